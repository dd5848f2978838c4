"""Nodes to measure on: a namespace with an uplink and any number of slices."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace

from slicebw.agent.checkpoint import FileStore
from slicebw.agent.clock import SystemClock
from slicebw.agent.ports import Ports
from slicebw.agent.reconciler import Reconciler
from slicebw.agent.report_throttle import ReportThrottle
from slicebw.core.clock import NS
from slicebw.core.dataplane import HANDLE_MAJOR, leaf
from slicebw.core.desired import (
    DEFAULT_LIMITS,
    DesiredState,
    NodeSpec,
    Pod,
    Selector,
    SliceKey,
    SliceSpec,
    TrafficClass,
)
from slicebw.core.ledger import PendingEvent
from slicebw.core.reports import NodeReport, UsageReport
from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.nft import NftClassifier
from tests.support.topology import SINK, UPLINK, Topology
from tests.support.trees import LINE_RATE_BPS, creation, tree


@contextmanager
def node_with_tree(slices: int) -> Iterator[HtbShaper]:
    """Enter a new node with the classes of this many slices on its uplink. No class limits below the line rate."""
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
    """Return the address of the number-th pod of :func:`desired_state`."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def desired_state(slices: int, **limits: int) -> DesiredState:
    """Make a desired state of slices with one pod each. ``limits`` replace defaults in both traffic classes."""
    both = replace(
        DEFAULT_LIMITS,
        standard=replace(DEFAULT_LIMITS.standard, **limits),
        exempt=replace(DEFAULT_LIMITS.exempt, **limits),
    )
    return DesiredState(
        slices=tuple(
            SliceSpec(
                key=SliceKey(f"slice-{number}", "slice"),
                uid=f"00000000-0000-0000-0000-{number:012x}",
                generation=1,
                created_s=number,
                selector=Selector(),
                limits=both,
            )
            for number in range(1, slices + 1)
        ),
        pods=tuple(pod(number) for number in range(1, slices + 1)),
        node=NodeSpec(device=UPLINK, line_rate_bps=LINE_RATE_BPS),
        synced=True,
    )


def pod(number: int, of_slice: int | None = None) -> Pod:
    """Make the number-th pod. It belongs to the slice of the same number, or to ``of_slice``."""
    return Pod(
        namespace=f"slice-{of_slice or number}",
        name=f"pod-{number}",
        uid=f"00000000-0000-0000-0001-{number:012x}",
        labels={"app": "experiment"},
        addresses=(address_of(number),),
        host_network=False,
        finished=False,
        created_s=number,
    )


class StaticFeed:
    """A Feed that gives the state that the benchmark sets."""

    def __init__(self, desired: DesiredState) -> None:
        self.now = desired

    def desired_state(self) -> DesiredState:
        """Return the present desired state."""
        return self.now

    def limit(self, part: float, max_rate_bps: int) -> None:
        """Change the ceiling of a part of all slices (0 to 1), in both traffic classes."""
        slices = list(self.now.slices)
        for index in range(round(len(slices) * part)):
            spec = slices[index]
            assert spec.limits is not None
            standard = replace(spec.limits.standard, max_rate_bps=max_rate_bps)
            exempt = replace(spec.limits.exempt, max_rate_bps=max_rate_bps)
            limits = replace(spec.limits, standard=standard, exempt=exempt)
            slices[index] = replace(spec, limits=limits, generation=spec.generation + 1)
        self.now = replace(self.now, slices=tuple(slices))


class _Nobody:
    """A Reporter that drops all reports: writing them is measured elsewhere."""

    def report(
        self,
        usages: Sequence[UsageReport],
        expired: Sequence[SliceKey],
        events: Sequence[PendingEvent],
        node: NodeReport | None,
    ) -> None:
        """Drop the reports."""

    def previous_reports(self) -> Sequence[UsageReport] | None:
        """Return no earlier reports."""
        return ()

    def acknowledged(self) -> frozenset[str]:
        """Return no Events."""
        return frozenset()


class Agent:
    """An agent's whole reconciler on the real kernel and disk, run pass by pass in this thread."""

    def __init__(self, desired: DesiredState, folder: Path) -> None:
        """Start from the ledger in ``folder``, if there is one, and keep it there."""
        self.feed = StaticFeed(desired)
        self.shaper = HtbShaper()
        self.classifier = NftClassifier()
        self.classifier.watch(lambda: None)
        ports = Ports(self.shaper, self.classifier, self.feed, FileStore(folder), _Nobody())
        self.reconciler = Reconciler(ports, SystemClock(), ReportThrottle(60 * NS))
        self.reconciler.start()

    def settle(self) -> None:
        """Make passes until one changes nothing. Raises RuntimeError after ten."""
        for _ in range(10):
            done = self.reconciler.stats.applied.total
            self.reconciler.run_once()
            if self.reconciler.stats.applied.total == done:
                return
        raise RuntimeError("the tenth pass still changed something")

    def close(self) -> None:
        """Close the sockets. The kernel keeps its state."""
        self.reconciler.close()
        self.classifier.close()


@contextmanager
def agent_on_a_node(desired: DesiredState) -> Iterator[Agent]:
    """Enter a new node with an agent that has brought it to the desired state."""
    with Topology(pods=0) as lab, lab.node.inside(), TemporaryDirectory() as folder:
        agent = Agent(desired, Path(folder))
        try:
            agent.settle()
            yield agent
        finally:
            agent.close()


class Traffic:
    """Sends datagrams of slices on this node. The socket's priority names the class, as it does for tunnels."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, slices: int) -> None:
        """Send one datagram for each of the first ``slices`` slices, in its standard class."""
        for slice_id in range(1, slices + 1):
            priority = HANDLE_MAJOR << 16 | leaf(TrafficClass.STANDARD, slice_id)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
            self._socket.sendto(bytes(100), (SINK, 9))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
