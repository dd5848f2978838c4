"""The controller's ports: what its loop needs of the cluster. Small, so that a test can stand in for it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from slicebw.api.bandwidth_usage import UsageRecord
from slicebw.api.slice_bandwidth import SliceRecord, SliceStatus
from slicebw.core.desired import Pod, SliceKey
from slicebw.core.ledger import PendingEvent


class ClusterFeed(Protocol):
    """What is known of the cluster; cheap, and callable from any thread."""

    def synced(self) -> bool:
        """Whether complete lists of SliceBandwidths and BandwidthUsages have been seen. Nothing is known before."""
        ...

    def changed(self) -> frozenset[SliceKey]:
        """Slices of which anything changed since the last call, their usages included."""
        ...

    def slice_record(self, key: SliceKey) -> SliceRecord | None:
        """One SliceBandwidth, None where there is none (any more)."""
        ...

    def slices_in(self, namespace: str) -> Sequence[SliceRecord]:
        """All SliceBandwidths of one namespace."""
        ...

    def usages_of(self, key: SliceKey) -> Sequence[UsageRecord]:
        """All usages of one slice."""
        ...

    def usages(self) -> Iterable[UsageRecord]:
        """All usages of all slices."""
        ...

    def known_slices(self) -> int:
        """How many SliceBandwidths are known."""
        ...

    def known_usages(self) -> int:
        """How many BandwidthUsages are known."""
        ...

    def nodes(self) -> frozenset[str] | None:
        """The names of all Nodes, None before a complete list of them has been seen."""
        ...


class ClusterWriter(Protocol):
    """What is done to the cluster. Waits for the API server, for a bounded time."""

    def write(self, statuses: Mapping[SliceKey, tuple[SliceStatus, str]]) -> Mapping[SliceKey, str]:
        """Write statuses, and say which could not be written, and why. A slice that is gone counts as written.

        With each goes the version of the object that it was made for: over any other one it is not written.
        """
        ...

    def emit(self, event: PendingEvent) -> bool:
        """Emit an Event, if it is not there already; false where it has to be tried again."""
        ...

    def pods(self, namespace: str) -> Mapping[str, Sequence[Pod]] | str | None:
        """The pods of a namespace by node, as they are now (no older than the call).

        A text says why the API server refuses to tell; None: it does not answer, try again.
        """
        ...

    def node_exists(self, name: str) -> bool | None:
        """Ask the API server itself whether there is such a Node; None where it does not say."""
        ...

    def delete_usage(self, namespace: str, name: str, uid: str) -> bool:
        """Delete a BandwidthUsage, only if it is still the very object; whether it is gone."""
        ...
