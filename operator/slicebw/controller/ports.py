"""The controller's ports: what its loop reads of the cluster, and what it does to it. A test fakes both."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from slicebw.api.bandwidth_usage import UsageRecord
from slicebw.api.slice_bandwidth import SliceRecord, SliceStatus
from slicebw.core.desired import Pod, SliceKey
from slicebw.core.ledger import PendingEvent


class ClusterFeed(Protocol):
    """What is known of the cluster. All calls answer from memory, from any thread."""

    def synced(self) -> bool:
        """Tell whether all SliceBandwidths and BandwidthUsages have been listed once. Nothing is known before."""
        ...

    def changed(self) -> frozenset[SliceKey]:
        """Return the slices that changed since the last call. A change of a slice's usages counts."""
        ...

    def slice_record(self, key: SliceKey) -> SliceRecord | None:
        """Return a SliceBandwidth; None if it does not exist (any more)."""
        ...

    def slices_in(self, namespace: str) -> Sequence[SliceRecord]:
        """Return all SliceBandwidths of one namespace."""
        ...

    def usages_of(self, key: SliceKey) -> Sequence[UsageRecord]:
        """Return all usages of one slice."""
        ...

    def usages(self) -> Iterable[UsageRecord]:
        """Return all usages of all slices."""
        ...

    def known_slices(self) -> int:
        """Return the number of known SliceBandwidths."""
        ...

    def known_usages(self) -> int:
        """Return the number of known BandwidthUsages."""
        ...

    def nodes(self) -> frozenset[str] | None:
        """Return the names of all Nodes; None before a complete list of them has been read."""
        ...


class ClusterWriter(Protocol):
    """What is done to the cluster. Each call waits for the API server, for a bounded time."""

    def write(self, statuses: Mapping[SliceKey, tuple[SliceStatus, str]]) -> Mapping[SliceKey, str]:
        """Write statuses. Returns the slices whose status could not be written, with the reason.

        Each status comes with the resourceVersion of the object that it was made for, and is written over no other
        one. A slice that is gone counts as written.
        """
        ...

    def emit(self, event: PendingEvent) -> bool:
        """Emit an Event, if it is not there already; false where it has to be tried again."""
        ...

    def pods(self, namespace: str) -> Mapping[str, Sequence[Pod]] | str | None:
        """Return the pods of a namespace by node, as they are now (no older than the call).

        Returns the API server's message if it refuses the list, and None if it does not answer: then retry.
        """
        ...

    def node_exists(self, name: str) -> bool | None:
        """Ask the API server itself whether a Node exists; None if it does not say."""
        ...

    def delete_usage(self, namespace: str, name: str, uid: str) -> bool:
        """Delete a BandwidthUsage, only if it still has this uid. Returns whether it is gone."""
        ...
