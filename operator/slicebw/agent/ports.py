"""The agent's ports: what the reconciler needs of the world. Ours, and small; every one has two implementations.

Kernel ports are called from the reconciler's own thread only, which stands in the node's network namespace.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slicebw.core.clock import TokenBucket
from slicebw.core.dataplane import FailedChange, NftTable, ObservedTree, TableChange, TreeChange
from slicebw.core.desired import DesiredState, SliceKey
from slicebw.core.ledger import Ledger, PendingEvent
from slicebw.core.reports import NodeReport, ReportWrite, UsageReport


class Shaper(Protocol):
    """The HTB tree of the node's uplink."""

    def read(self, device: str | None) -> ObservedTree:
        """One complete dump of ``device``, or of the default route's device where None. Raises KernelError."""
        ...

    def apply(self, device: str, changes: Sequence[TreeChange], line_rate_bps: int) -> Sequence[FailedChange]:
        """Carry out changes in order, in as few batches as possible; a failed one does not stop the others."""
        ...

    def close(self) -> None:
        """Free sockets. Leaves the kernel as it is."""
        ...


class Classifier(Protocol):
    """The nftables table that maps pod addresses to classes."""

    def read(self) -> NftTable:
        """What the table holds; cheap while nothing changes. Raises KernelError.

        May miss somebody else's change for 10 s if the notification of it is lost, never one of our own.
        """
        ...

    def apply(self, change: TableChange) -> None:
        """Carry out one change as one transaction: all of it or nothing. Raises KernelError."""
        ...


class Feed(Protocol):
    """Where desired state come from: the Kubernetes API, or a folder. Wakes the reconciler when something changed."""

    def desired_state(self) -> DesiredState:
        """What is known now; cheap, never blocks, callable from any thread."""
        ...


class Reporter(Protocol):
    """Where reports go. Never blocks; keeps the latest state of each object until it is written."""

    def report(
        self,
        usages: Sequence[UsageReport],
        expired: Sequence[SliceKey],
        events: Sequence[PendingEvent],
        node: NodeReport | None,
    ) -> None:
        """Queue reports. ``expired``: slices whose usage is to be deleted. ``events``: all that are pending."""
        ...

    def previous_reports(self) -> Sequence[UsageReport] | None:
        """The usages that an earlier agent of this node had reported; None while that is not known (yet)."""
        ...

    def acknowledged(self) -> frozenset[str]:
        """Ids of events written since the last call, so that the ledger can forget them."""
        ...


class ReportSink(Protocol):
    """Where the report queue writes. ``previous_reports`` and ``write`` run in the sink's own thread."""

    @property
    def budget(self) -> TokenBucket | None:
        """How many writes the sink takes; None: as many as there are."""
        ...

    def start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine in the sink's thread until it ends by itself; one that fails is logged and begun again."""
        ...

    async def previous_reports(self) -> Sequence[UsageReport]:
        """Read the usages of this node as they are written now. Raises TryLater."""
        ...

    async def write(self, write: ReportWrite) -> bool:
        """Write one object. False: nothing was written, and never need be. Raises TryLater."""
        ...

    def warn_full(self, message: str) -> None:
        """Log that reports were dropped, once. Callable from any thread."""
        ...


class Store(Protocol):
    """What survives the agent."""

    def load_ledger(self) -> tuple[Ledger | None, str | None]:
        """The ledger if there is one that can be trusted; else None, and what is wrong with the one there is."""
        ...

    def save_ledger(self, ledger: Ledger) -> None:
        """Replace the ledger atomically. Raises SaveError."""
        ...

    def load_desired_state(self) -> tuple[DesiredState | None, str | None]:
        """The last complete desired, likewise."""
        ...

    def save_desired_state(self, desired: DesiredState) -> None:
        """Replace the last complete desired. Raises SaveError."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """All that one agent's reconciler is connected to."""

    shaper: Shaper
    classifier: Classifier
    feed: Feed
    store: Store
    reporter: Reporter


Wake = Callable[[], None]
