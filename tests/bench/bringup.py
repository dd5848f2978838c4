"""Bring-up and removal: 0 to 4,094 slices and back, compared with the kernel's own time for it."""

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace

from slicebw.core.dataplane import ClassSpec, CreateClass, RemoveRoot, UpdateTable
from slicebw.core.desired import Mode
from slicebw.kernel.codec import LeafKind, encode
from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.netlink import NetlinkSocket
from slicebw.kernel.nft import render_update
from tests.bench.frame import Row, at_most_times, count, figure, in_turn, in_turn_together, say, times, wall_ms
from tests.bench.nodes import Agent, agent_on_a_node, desired_state, pod
from tests.support.topology import UPLINK, Topology
from tests.support.trees import LINE_RATE_BPS, creation, tree

SLICES = (100, 1_000, 4_094)
NEW_PODS = 1_000
KERNEL = "the kernel's own time for these classes"
REMOVAL = 15.0
"""A pass may take at most this many times the kernel's own time to remove tree and table."""
NFT = "nft alone, with the same elements"


def rows(quick: bool) -> Iterator[Row]:
    """Measure bring-up and removal at each size, a start on an existing tree, and many pods at once."""
    for slices in SLICES[:1] if quick else SLICES:
        say(f"{count(slices)}, up and down")
        yield from up_and_down(slices, rounds=1 if quick else 3)
        yield from start_on_an_existing_tree(slices, rounds=1 if quick else 5)
    yield from many_pods(20 if quick else NEW_PODS, rounds=1 if quick else 5)


@contextmanager
def bare_node() -> Iterator[None]:
    """Enter a new node with nothing on its uplink."""
    with Topology(pods=0) as lab, lab.node.inside():
        yield


def up_and_down(slices: int, rounds: int) -> Iterator[Row]:
    """Time an agent's first pass on a bare node, and the pass that removes everything again (mode Disabled)."""
    desired = desired_state(slices)

    def slicebw() -> tuple[float, float]:
        with bare_node(), tempfile.TemporaryDirectory() as folder:
            agent = Agent(desired, Path(folder))
            took = wall_ms(agent.reconciler.run_once)
            agent.settle()
            agent.feed.now = replace(desired, node=replace(desired.node, mode=Mode.DISABLED))
            down = wall_ms(agent.reconciler.run_once)
            agent.close()
            return took, down

    found = in_turn_together(rounds, {KERNEL: lambda: kernel_alone(slices), "slicebw": slicebw})
    (up, down), (kernel_up, kernel_down) = found["slicebw"], found[KERNEL]
    case = count(slices)
    most = slices == SLICES[-1]
    within = at_most_times(1.5) if most else None
    yield times(case, "first pass: tree and table", up, "ms", (KERNEL, kernel_up), within)
    within = at_most_times(REMOVAL) if most else None
    yield times(case, "tree and table removed", down, "ms", (KERNEL, kernel_down), within)


def kernel_alone(slices: int) -> tuple[float, float]:
    """Return the kernel's own time to create the classes and to remove them, in ms.

    Messages are encoded beforehand and sent in the same batches as slicebw's, so that only the kernel's work is timed.
    """
    with bare_node():
        shaper, netlink = HtbShaper(), NetlinkSocket()
        desired = tree(range(1, slices + 1))
        root, *_ = creation(desired)
        ifindex = socket.if_nametoindex(UPLINK)
        if shaper.apply(UPLINK, [root], LINE_RATE_BPS):
            raise RuntimeError("the root qdisc was refused")
        groups = [encode(CreateClass(spec), ifindex, LINE_RATE_BPS, LeafKind.FQ_CODEL) for spec in in_order(desired)]
        up = wall_ms(lambda: netlink.batch(groups, "creating classes"))
        down = wall_ms(lambda: shaper.apply(UPLINK, [RemoveRoot()], LINE_RATE_BPS))
        shaper.close()
        netlink.close()
        return up, down


def in_order(specs: dict[int, ClassSpec]) -> list[ClassSpec]:
    """Sort parents before children."""
    return [spec for _, spec in sorted(specs.items())]


def start_on_an_existing_tree(slices: int, rounds: int) -> Iterator[Row]:
    """Time a restarted agent until the end of its first pass: it reads its checkpoint and finds all in place."""
    with tempfile.TemporaryDirectory() as folder, bare_node():
        first = Agent(desired_state(slices), Path(folder))
        first.settle()
        first.close()

        def restart() -> float:
            begun: list[Agent] = []

            def start() -> None:
                begun.append(Agent(desired, Path(folder)))
                begun[0].reconciler.run_once()

            took = wall_ms(start)
            if begun[0].reconciler.stats.applied.total:
                raise RuntimeError("the restarted agent has changed something")
            begun[0].close()
            return took

        desired = desired_state(slices)
        found = in_turn(rounds, {"slicebw": restart})
    yield figure(count(slices), "start on an existing tree, to the end of the first pass", found["slicebw"], "ms")


def many_pods(new: int, rounds: int) -> Iterator[Row]:
    """Let many pods of one slice come at once, and go again: their addresses are written in one transaction."""
    first = 10_000
    with agent_on_a_node(desired_state(1)) as agent:
        few = agent.feed.now
        many = replace(few, pods=(*few.pods, *(pod(first + number, of_slice=1) for number in range(new))))

        def arrive() -> float:
            agent.feed.now = many
            took = wall_ms(agent.reconciler.run_once)
            last = agent.reconciler.last
            if last is None or last.table_change != UpdateTable(add=tuple(sorted(added))):
                raise RuntimeError("more or less was written than the new elements")
            if len(agent.classifier.read().slice_id_by_address) != new + 1:
                raise RuntimeError("not all addresses are in the table")
            return took

        def leave() -> float:
            agent.feed.now = few
            return wall_ms(agent.reconciler.run_once)

        def nft_alone() -> float:
            """Time nft alone with the same elements, and remove them again."""
            took = wall_ms(lambda: run_nft(render_update(UpdateTable(add=added))))
            run_nft(render_update(UpdateTable(remove=tuple(address for address, _ in added))))
            agent.classifier.invalidate()
            agent.settle()
            return took

        added = tuple((address, 1) for one in many.pods[len(few.pods) :] for address in one.addresses)
        found = in_turn(rounds, {NFT: nft_alone, "arrive": arrive, "leave": leave})
    case = f"{new:,} pods at once"
    yield times(case, "added in one pass", found["arrive"], "ms", (NFT, found[NFT]))
    yield figure(case, "removed in one pass", found["leave"], "ms")


def run_nft(transaction: str) -> None:
    """Run a transaction with the nft program, on its standard input."""
    subprocess.run(["nft", "-f", "-"], input=transaction, text=True, check=True)
