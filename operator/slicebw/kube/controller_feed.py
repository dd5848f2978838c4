"""The controller's feed: reduced copies of the cluster's SliceBandwidths, BandwidthUsages and Nodes."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from sys import intern
from typing import Any, Final

from msgspec.structs import replace

from slicebw.api import bandwidth_usage, slice_bandwidth
from slicebw.api.bandwidth_usage import NodeUsage, UsageRecord
from slicebw.api.fields import FieldError
from slicebw.api.slice_bandwidth import SliceRecord
from slicebw.core.desired import SliceKey
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.informer import Informer
from slicebw.kube.resources import BANDWIDTH_USAGES, NODES, SLICE_BANDWIDTHS, Object
from slicebw.kube.store import Change
from slicebw.kube.watch_supervisor import Watched

PAGE_SIZE: Final = 500
"""BandwidthUsages are read in pages: there is one for each slice and node, and a whole list would fill the memory."""


class ApiClusterFeed:
    """Watches all SliceBandwidths, BandwidthUsages and Nodes of the cluster (the controller's ``ClusterFeed``)."""

    def __init__(self, api: ApiThread, wake: Callable[[], None]) -> None:
        """Start empty. Nothing runs before :meth:`start`. ``wake`` is called from any thread after each change."""
        self._api = api
        self._wake = wake
        self._lock = threading.Lock()
        self._slices: dict[SliceKey, SliceRecord] = {}
        self._by_namespace: dict[str, set[SliceKey]] = defaultdict(set)
        self._usages: dict[SliceKey, dict[str, UsageRecord]] = defaultdict(dict)
        self._changed: set[SliceKey] = set()
        self._slice_informer = Informer(api, Watched(SLICE_BANDWIDTHS), _slice, self._slice_changed, wake)
        usages = Watched(BANDWIDTH_USAGES, page_size=PAGE_SIZE)
        self._usage_informer = Informer(api, usages, self._usage, self._usage_changed, wake)
        self._node_informer = Informer(api, Watched(NODES), _node, lambda _: wake(), wake)
        self._informers: tuple[Informer[Any], ...] = (self._slice_informer, self._usage_informer, self._node_informer)

    def start(self) -> None:
        """Start to watch. Returns at once; see :meth:`synced`."""
        for informer in self._informers:
            informer.start()

    def stop(self) -> None:
        """End the watches; the copies stay readable."""
        for informer in self._informers:
            informer.ask_to_stop()
        for informer in self._informers:
            informer.stop()

    def synced(self) -> bool:
        """Tell whether all SliceBandwidths and BandwidthUsages have been listed once. Nothing is known before."""
        return self._slice_informer.listed and self._usage_informer.listed

    def changed(self) -> frozenset[SliceKey]:
        """Return the slices that changed since the last call. A change of a slice's usages counts."""
        with self._lock:
            changed, self._changed = self._changed, set()
        return frozenset(changed)

    def slice_record(self, key: SliceKey) -> SliceRecord | None:
        """Return a SliceBandwidth; None if it does not exist (any more)."""
        with self._lock:
            return self._slices.get(key)

    def slices_in(self, namespace: str) -> Sequence[SliceRecord]:
        """Return all SliceBandwidths of one namespace, sorted by name."""
        with self._lock:
            return [self._slices[key] for key in sorted(self._by_namespace.get(namespace, ()))]

    def usages_of(self, key: SliceKey) -> Sequence[UsageRecord]:
        """Return all usages of one slice."""
        with self._lock:
            return tuple(self._usages.get(key, {}).values())

    def usages(self) -> Iterable[UsageRecord]:
        """Return all usages of all slices."""
        with self._lock:
            return [usage for usages in self._usages.values() for usage in usages.values()]

    def known_slices(self) -> int:
        """Return the number of known SliceBandwidths."""
        return len(self._slices)

    def known_usages(self) -> int:
        """Return the number of known BandwidthUsages."""
        with self._lock:
            return sum(map(len, self._usages.values()))

    def nodes(self) -> frozenset[str] | None:
        """Return the names of all Nodes; None before a complete list of them has been read."""
        return frozenset(self._node_informer.values()) if self._node_informer.listed else None

    def upsert_slice(self, obj: Object) -> None:
        """Store a SliceBandwidth from the answer to a write of ours, before the watch reports it."""
        self._slice_informer.upsert(obj)

    def upsert_usage(self, obj: Object) -> None:
        """Store a BandwidthUsage as if the watch had reported it."""
        self._usage_informer.upsert(obj)

    def _slice_changed(self, change: Change[SliceRecord]) -> None:
        record = change.after or change.before
        if record is None:
            return
        key = record.spec.key
        with self._lock:
            if change.after is None:
                self._slices.pop(key, None)
                self._by_namespace[key.namespace].discard(key)
                if not self._by_namespace[key.namespace]:
                    del self._by_namespace[key.namespace]
            else:
                self._slices[key] = change.after
                self._by_namespace[key.namespace].add(key)
            self._changed.add(key)
        self._wake()

    def _usage_changed(self, change: "Change[UsageRecord | None]") -> None:
        with self._lock:
            if change.before is not None:
                key = change.before.usage.report.key
                self._usages[key].pop(change.before.name, None)
                if not self._usages[key]:
                    del self._usages[key]
                self._changed.add(key)
            if change.after is not None:
                key = change.after.usage.report.key
                self._usages[key][change.after.name] = change.after
                self._changed.add(key)
        self._wake()

    def _usage(self, obj: Object) -> UsageRecord | None:
        """Return the record of a BandwidthUsage, or None for one that cannot be parsed: it is then ignored."""
        metadata = obj["metadata"]
        try:
            usage = bandwidth_usage.parse(obj)
        except FieldError as error:
            self._api.health.warn_once(f"unreadable {metadata['uid']}", f"ignored: {error}", "parse")
            return None
        owners = metadata.get("ownerReferences") or ()
        owned = any(owner.get("kind") == "Node" for owner in owners)
        slim = _slim(usage)
        return UsageRecord(slim.report.key.namespace, metadata["name"], metadata["uid"], owned, slim)


def _slice(obj: Object) -> SliceRecord:
    version = obj["metadata"]["resourceVersion"]
    return SliceRecord(slice_bandwidth.parse(obj), slice_bandwidth.parse_status(obj), version)


def _node(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _slim(usage: NodeUsage) -> NodeUsage:
    """Return a usage without the fields that only its node needs, to save memory."""
    report = usage.report
    # Interned: all usages of a slice or node share one copy of each name.
    key = SliceKey(intern(report.key.namespace), intern(report.key.name))
    standard, exempt = (replace(one, budget_bytes=0, counter_bytes=0) for one in (report.standard, report.exempt))
    slim = replace(report, key=key, standard=standard, exempt=exempt)
    return NodeUsage(slim, intern(usage.node_name), usage.reported_at_s)
