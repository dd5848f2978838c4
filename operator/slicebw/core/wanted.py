"""The kernel state a node should have: every class of the tree, and the nftables table that fills it."""

from collections.abc import Iterable, Mapping

from slicebw.core.cap import Rates
from slicebw.core.model import TrafficClass
from slicebw.core.settings import NodeSettings
from slicebw.core.tree import (
    DEFAULT_ID,
    MIN_KERNEL_RATE_BPS,
    PARENTS,
    QUANTUM_PER_SHARE_BYTES,
    ROOT_ID,
    ROOT_SHARE,
    TOP,
    ClassSpec,
    kernel_rate,
    leaf,
)
from slicebw.core.verdict import ceiling_bps


def frame(settings: NodeSettings) -> dict[int, ClassSpec]:
    """The classes that are always there: top, standard, exempt, and root's and default's leaves."""
    line_bps = kernel_rate(settings.line_rate_bps)
    classes = {TOP: ClassSpec(TOP, 0, line_bps, line_bps)}
    for traffic_class, parent in PARENTS.items():
        ceil_bps = kernel_rate(ceiling_bps(settings, traffic_class))
        # The smallest rate: standard and exempt share the line by their leaves' quanta, neither goes before the other.
        classes[parent] = ClassSpec(parent, TOP, MIN_KERNEL_RATE_BPS, ceil_bps)
        free = Rates(MIN_KERNEL_RATE_BPS, ceil_bps)
        for class_id, share in ((ROOT_ID, ROOT_SHARE), (DEFAULT_ID, 1)):
            spec = leaf_class(traffic_class, class_id, free, share)
            classes[spec.minor] = spec
    return classes


def leaf_class(traffic_class: TrafficClass, class_id: int, rates: Rates, share: int) -> ClassSpec:
    """One leaf. Its quantum is its weight for spare bandwidth (PlanetLab: share * 1600)."""
    minor = leaf(traffic_class, class_id)
    quantum = share * QUANTUM_PER_SHARE_BYTES
    return ClassSpec(minor, PARENTS[traffic_class], rates.min_bps, rates.max_bps, quantum, leaf_major=minor)


def leaf_minors(class_ids: Iterable[int]) -> frozenset[int]:
    """The minors of both leaves of each of these ids."""
    return frozenset(leaf(traffic_class, class_id) for class_id in class_ids for traffic_class in TrafficClass)


def overcommitment(settings: NodeSettings, wanted: Mapping[int, ClassSpec]) -> str | None:
    """What the guarantees of the slices add up to where that is more than they can get together, or None."""
    words = []
    for traffic_class, parent in PARENTS.items():
        total_bps = sum(spec.rate_bps for spec in wanted.values() if spec.parent == parent)
        limit_bps = settings.cap_bps if traffic_class is TrafficClass.STANDARD else settings.line_rate_bps
        if total_bps > limit_bps:
            words.append(f"{traffic_class}: minRates add up to {total_bps} bit/s of {limit_bps} bit/s")
    return "; ".join(words) or None
