"""Nodes to measure on: a namespace with an uplink, and as many slices as wanted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from slicebw.core.model import DEFAULT_LIMITS, Pod, Selector, SliceKey, SliceSpec, Snapshot
from slicebw.kernel.htb import HtbShaper
from tests.support.topology import UPLINK, Topology
from tests.support.trees import LINE_RATE_BPS, creation, tree


@contextmanager
def node_with_tree(slices: int) -> Iterator[HtbShaper]:
    """Stand in a node on whose uplink this many slices have their classes, none of them held to less than the line."""
    with Topology(pods=0) as lab, lab.node.inside():
        shaper = HtbShaper()
        try:
            failed = shaper.apply(UPLINK, creation(tree(range(1, slices + 1))), LINE_RATE_BPS)
            if failed:
                raise RuntimeError(f"{failed[0].change}: {failed[0].reason}")
            yield shaper
        finally:
            shaper.close()


def address_of(number: int) -> str:
    """The address of the number-th pod of :func:`wishes`."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def wishes(slices: int, **limits: int) -> Snapshot:
    """So many slices of one pod each. ``limits`` are fields of their standard class that are not the default's."""
    standard = replace(DEFAULT_LIMITS.standard, **limits)
    return Snapshot(
        slices=tuple(
            SliceSpec(
                key=SliceKey(f"slice-{number}", "slice"),
                uid=f"00000000-0000-0000-0000-{number:012x}",
                generation=1,
                created_s=number,
                selector=Selector(),
                limits=replace(DEFAULT_LIMITS, standard=standard),
            )
            for number in range(1, slices + 1)
        ),
        pods=tuple(
            Pod(
                namespace=f"slice-{number}",
                name="pod",
                uid=f"00000000-0000-0000-0001-{number:012x}",
                labels={"app": "experiment"},
                addresses=(address_of(number),),
                host_network=False,
                finished=False,
                created_s=number,
            )
            for number in range(1, slices + 1)
        ),
        synced=True,
    )
