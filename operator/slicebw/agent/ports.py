"""The agent's ports: the interfaces through which the reconciler reaches everything else. Each has a fake for tests.

The kernel ports are called from the reconciler's thread only, which is in the node's network namespace.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slicebw.core.clock import TokenBucket
from slicebw.core.dataplane import Device, FailedChange, NftTable, ObservedTree, TableChange, TreeChange
from slicebw.core.desired import DesiredState, SliceKey
from slicebw.core.ledger import Ledger, PendingEvent
from slicebw.core.reports import NodeReport, ReportWrite, UsageReport


class Shaper(Protocol):
    """The HTB tree of the node's uplink."""

    def find(self, device: Device | str | None) -> Device | None:
        """Return a device under its present name; None: that of the default route. Returns None if there is none.

        A Device of this network namespace is looked up by its number, any other by its name. Raises KernelError.
        """
        ...

    def read(self, device: str | int | None) -> ObservedTree:
        """Read the whole tree of a device by name or number; None: the default route's device.

        Raises UplinkError, KernelError.
        """
        ...

    def apply(self, device: str | int, changes: Sequence[TreeChange], line_rate_bps: int) -> Sequence[FailedChange]:
        """Carry out changes in order, in as few batches as possible. Returns those that the kernel refused.

        A refused change does not stop the others. Raises UplinkError, KernelError if the kernel does not answer.
        """
        ...

    def close(self) -> None:
        """Close sockets. Changes nothing in the kernel."""
        ...


class Classifier(Protocol):
    """The nftables table that maps pod addresses to classes."""

    def read(self) -> NftTable:
        """Read the table; cheap while nothing changes. Raises KernelError.

        If a notification is lost, another program's change may be missed for up to 10 s. Own changes are never missed.
        """
        ...

    def apply(self, change: TableChange) -> None:
        """Carry out one change as one transaction: all of it or none. Raises KernelError."""
        ...


class Feed(Protocol):
    """Where the desired state comes from: the API server, or a folder. Wakes the reconciler when it changes."""

    def desired_state(self) -> DesiredState:
        """Return what is known now. Cheap, never blocks, callable from any thread."""
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
    """Where the report queue writes: the API server, or a folder. The coroutines run in the sink's own thread."""

    @property
    def budget(self) -> TokenBucket | None:
        """How many writes the sink accepts; None: any number."""
        ...

    def start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine in the sink's thread until it returns. If it raises, log that and start it again."""
        ...

    async def previous_reports(self) -> Sequence[UsageReport]:
        """Read the usages of this node as they are written now. Raises TryLater."""
        ...

    async def write(self, write: ReportWrite) -> bool:
        """Write one object. Returns False if nothing was written and no retry is needed. Raises TryLater."""
        ...

    def warn_full(self, message: str) -> None:
        """Log once that reports are being dropped. Callable from any thread."""
        ...


class Store(Protocol):
    """The files that survive the agent."""

    def load_ledger(self) -> tuple[Ledger | None, str | None]:
        """Return the ledger, and why it cannot be used; (None, None) if there is none yet."""
        ...

    def save_ledger(self, ledger: Ledger) -> None:
        """Replace the ledger atomically. Raises SaveError."""
        ...

    def load_desired_state(self) -> tuple[DesiredState | None, str | None]:
        """Return the last complete desired state, and why it cannot be used; (None, None) if there is none yet."""
        ...

    def save_desired_state(self, desired: DesiredState) -> None:
        """Replace the last complete desired state atomically. Raises SaveError."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one reconciler."""

    shaper: Shaper
    classifier: Classifier
    feed: Feed
    store: Store
    reporter: Reporter
