"""The controller's two ports over the API: a slim copy of the whole cluster, and the few writes it makes."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from sys import intern
from typing import Any, Final

from msgspec.structs import replace

from slicebw.api import bandwidth_usage, event, kinds, pod, slice_bandwidth
from slicebw.api.bandwidth_usage import NodeUsage
from slicebw.api.fields import FieldError
from slicebw.api.slice_bandwidth import SliceStatus
from slicebw.core.model import Pod, SliceKey, SliceSpec
from slicebw.core.reports import EventNote
from slicebw.kube.background import ApiThread
from slicebw.kube.cache import Change
from slicebw.kube.client import ApiRefused, ApiUnreachable
from slicebw.kube.mirror import Mirror
from slicebw.kube.resources import BANDWIDTH_USAGES, EVENTS, NODES, PODS, SLICE_BANDWIDTHS, Object
from slicebw.kube.watch import Watched

PAGE_SIZE: Final = 500
"""Usages are the one list that grows with slices times nodes: it is read in pages, whole it would fill the memory."""

POD_PAGE_SIZE: Final = 250
"""At 6 to 8 kB a pod a page is 2 MB on the wire, and ten times that while it is decoded."""

CONCURRENT_WRITES: Final = 8
CALL_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class SliceCopy:
    """What is kept of a SliceBandwidth: its spec, its status as it stands in the API, and both's resourceVersion."""

    spec: SliceSpec
    status: SliceStatus
    version: str


@dataclass(frozen=True, slots=True)
class UsageCopy:
    """What is kept of a BandwidthUsage. ``owned``: it belongs to a Node object."""

    namespace: str
    name: str
    uid: str
    owned: bool
    usage: NodeUsage


class ApiClusterFeed:
    """Mirrors SliceBandwidths, BandwidthUsages and Nodes of the whole cluster (the controller's ``ClusterFeed``)."""

    def __init__(self, api: ApiThread, wake: Callable[[], None]) -> None:
        """Know nothing yet; nothing runs before :meth:`start`. ``wake`` is called after each change that matters."""
        self._api = api
        self._wake = wake
        self._lock = threading.Lock()
        self._slices: dict[SliceKey, SliceCopy] = {}
        self._by_namespace: dict[str, set[SliceKey]] = defaultdict(set)
        self._usages: dict[SliceKey, dict[str, UsageCopy]] = defaultdict(dict)
        self._changed: set[SliceKey] = set()
        self._slice_mirror = Mirror(api, Watched(SLICE_BANDWIDTHS), _slice, self._slice_changed, wake)
        usages = Watched(BANDWIDTH_USAGES, page_size=PAGE_SIZE)
        self._usage_mirror = Mirror(api, usages, self._usage, self._usage_changed, wake)
        self._node_mirror = Mirror(api, Watched(NODES), _node, lambda _: wake(), wake)
        self._mirrors: tuple[Mirror[Any], ...] = (self._slice_mirror, self._usage_mirror, self._node_mirror)

    def start(self) -> None:
        """Begin to watch. Returns at once; see :meth:`synced`."""
        for mirror in self._mirrors:
            mirror.start()

    def stop(self) -> None:
        """End the watches; what is known stays readable."""
        for mirror in self._mirrors:
            mirror.ask_to_stop()
        for mirror in self._mirrors:
            mirror.stop()

    def synced(self) -> bool:
        """Whether complete lists of SliceBandwidths and BandwidthUsages have been seen."""
        return self._slice_mirror.listed and self._usage_mirror.listed

    def changed(self) -> frozenset[SliceKey]:
        """Slices of which anything changed since the last call, their usages included."""
        with self._lock:
            changed, self._changed = self._changed, set()
        return frozenset(changed)

    def slice_record(self, key: SliceKey) -> SliceCopy | None:
        """One SliceBandwidth, None where there is none (any more)."""
        with self._lock:
            return self._slices.get(key)

    def slices_in(self, namespace: str) -> Sequence[SliceCopy]:
        """All SliceBandwidths of one namespace."""
        with self._lock:
            return [self._slices[key] for key in sorted(self._by_namespace.get(namespace, ()))]

    def usages_of(self, key: SliceKey) -> Sequence[UsageCopy]:
        """All usages of one slice."""
        with self._lock:
            return tuple(self._usages.get(key, {}).values())

    def usages(self) -> Iterable[UsageCopy]:
        """All usages of all slices."""
        with self._lock:
            return [usage for usages in self._usages.values() for usage in usages.values()]

    def known_slices(self) -> int:
        """How many SliceBandwidths are known."""
        return len(self._slices)

    def known_usages(self) -> int:
        """How many BandwidthUsages are known."""
        with self._lock:
            return sum(map(len, self._usages.values()))

    def nodes(self) -> frozenset[str] | None:
        """The names of all Nodes, None before a complete list of them has been seen."""
        return frozenset(self._node_mirror.values()) if self._node_mirror.listed else None

    def note_written(self, obj: Object) -> None:
        """Take note of a SliceBandwidth as a write of ours left it, ahead of the watch."""
        self._slice_mirror.see(obj)

    def note_usage(self, obj: Object) -> None:
        """Take note of a BandwidthUsage, as the watch does."""
        self._usage_mirror.see(obj)

    def _slice_changed(self, change: Change[SliceCopy]) -> None:
        some = change.after or change.before
        if some is None:
            return
        key = some.spec.key
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

    def _usage_changed(self, change: "Change[UsageCopy | None]") -> None:
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

    def _usage(self, obj: Object) -> UsageCopy | None:
        """What is kept of a BandwidthUsage; None for one that cannot be read, which then counts for nothing."""
        metadata = obj["metadata"]
        try:
            usage = bandwidth_usage.parse(obj)
        except FieldError as error:
            self._api.health.complain(f"unreadable {metadata['uid']}", f"passed over: {error}", "parse")
            return None
        owners = metadata.get("ownerReferences") or ()
        owned = any(owner.get("kind") == "Node" for owner in owners)
        slim = _slim(usage)
        return UsageCopy(slim.report.key.namespace, metadata["name"], metadata["uid"], owned, slim)


class ApiClusterWriter:
    """The controller's writes (its ``ClusterWriter``). Called from the controller's thread, which waits."""

    def __init__(self, api: ApiThread, feed: ApiClusterFeed) -> None:
        """Write through ``api``; what the API server answers is shown to ``feed`` at once."""
        self._api = api
        self._feed = feed

    def write(self, statuses: Mapping[SliceKey, tuple[SliceStatus, str]]) -> Mapping[SliceKey, str]:
        """Write statuses, and say which could not be written, and why. A slice that is gone counts as written.

        With each goes the version of the object that it was made for: over any other one it is not written.
        """
        try:
            return self._api.call(self._write_all(statuses), CALL_TIMEOUT_S)
        except TimeoutError:
            return dict.fromkeys(statuses, "no answer in time")

    def tell(self, note: EventNote) -> bool:
        """Emit an Event, if it is not there already; false where it has to be tried again."""
        _, obj = event.to_object(note)
        try:
            self._api.call(self._api.client.create(EVENTS, obj), CALL_TIMEOUT_S)
        except ApiRefused as refusal:
            if not (refusal.already_exists or refusal.namespace_gone):
                self._api.health.complain(f"event {refusal.status}", str(refusal))
        except (ApiUnreachable, TimeoutError):
            return False
        return True

    def pods(self, namespace: str) -> Mapping[str, Sequence[Pod]] | str | None:
        """The pods of a namespace by node, as they are now (no older than the call).

        A text says why the API server refuses to tell; None: it does not answer, try again.
        """
        try:
            return self._api.call(self._pods_by_node(namespace), CALL_TIMEOUT_S)
        except ApiRefused as refusal:
            if refusal.expired:
                return None
            self._api.health.complain(f"pods {refusal.status}", f"{refusal}: are slicebw's roles applied?")
            return str(refusal)
        except (ApiUnreachable, TimeoutError):
            return None

    def node_exists(self, name: str) -> bool | None:
        """Ask the API server itself whether there is such a Node; None where it does not say."""
        try:
            self._api.call(self._api.client.get(NODES.path(name=name)), CALL_TIMEOUT_S)
        except ApiRefused as refusal:
            return False if refusal.not_found else None
        except (ApiUnreachable, TimeoutError):
            return None
        return True

    def delete_usage(self, namespace: str, name: str, uid: str) -> bool:
        """Delete a BandwidthUsage, only if it is still the very object; whether it is gone."""
        try:
            self._api.call(self._api.client.delete(BANDWIDTH_USAGES, namespace, name, uid), CALL_TIMEOUT_S)
        except ApiRefused as refusal:
            self._api.health.complain(f"delete usage {refusal.status}", str(refusal))
            return False
        except (ApiUnreachable, TimeoutError):
            return False
        return True

    async def _pods_by_node(self, namespace: str) -> dict[str, list[Pod]]:
        """Page by page, so that of a large namespace only a page is in the memory as it came."""
        by_node: dict[str, list[Pod]] = defaultdict(list)
        pages = self._api.client.pages(PODS, POD_PAGE_SIZE, namespace=namespace)
        async with aclosing(pages):
            async for page in pages:
                for obj in page.items:
                    node = (obj.get("spec") or {}).get("nodeName")
                    if node:
                        by_node[node].append(pod.parse(obj))
        return by_node

    async def _write_all(self, statuses: Mapping[SliceKey, tuple[SliceStatus, str]]) -> dict[SliceKey, str]:
        gate = asyncio.Semaphore(CONCURRENT_WRITES)
        failures: dict[SliceKey, str] = {}

        async def write(key: SliceKey, status: SliceStatus, version: str) -> None:
            async with gate:
                try:
                    body = slice_bandwidth.status_object(key, status, version)
                    answer = await self._api.client.apply(SLICE_BANDWIDTHS, body, kinds.CONTROLLER_MANAGER, "status")
                except ApiUnreachable as error:
                    failures[key] = str(error)
                except ApiRefused as refusal:
                    if refusal.conflict:
                        failures[key] = "somebody else has changed it meanwhile"
                    elif not refusal.not_found:
                        self._api.health.complain(f"status {refusal.status}", str(refusal))
                        failures[key] = str(refusal)
                else:
                    self._feed.note_written(answer)

        await asyncio.gather(*(write(key, *one) for key, one in statuses.items()))
        return failures


def _slice(obj: Object) -> SliceCopy:
    version = obj["metadata"]["resourceVersion"]
    return SliceCopy(slice_bandwidth.parse(obj), slice_bandwidth.parse_status(obj), version)


def _node(obj: Object) -> str:
    return str(obj["metadata"]["name"])


def _slim(usage: NodeUsage) -> NodeUsage:
    """A usage without what only its node needs, and with names that all usages of a slice or a node share."""
    report = usage.report
    key = SliceKey(intern(report.key.namespace), intern(report.key.name))
    standard, exempt = (replace(one, budget_bytes=0, counter_bytes=0) for one in (report.standard, report.exempt))
    slim = replace(report, key=key, standard=standard, exempt=exempt)
    return NodeUsage(slim, intern(usage.node_name), usage.reported_at_s)
