"""What the controller does to the cluster: it writes statuses and Events, lists pods, and deletes dead usages."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Final

from slicebw.api import event, kinds, pod, slice_bandwidth
from slicebw.api.slice_bandwidth import SliceStatus
from slicebw.core.desired import Pod, SliceKey
from slicebw.core.ledger import PendingEvent
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.client import ApiRefused, ApiUnreachable
from slicebw.kube.controller_feed import ApiClusterFeed
from slicebw.kube.resources import BANDWIDTH_USAGES, EVENTS, NODES, PODS, SLICE_BANDWIDTHS

POD_PAGE_SIZE: Final = 250
"""At 6 to 8 kB a pod a page is 2 MB on the wire, and ten times that while it is decoded."""

CONCURRENT_WRITES: Final = 8
CALL_TIMEOUT_S: Final = 60.0


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

    def emit(self, pending: PendingEvent) -> bool:
        """Emit an Event, if it is not there already; false where it has to be tried again."""
        _, obj = event.to_object(pending)
        try:
            self._api.call(self._api.client.create(EVENTS, obj), CALL_TIMEOUT_S)
        except ApiRefused as refusal:
            if not (refusal.already_exists or refusal.namespace_gone):
                self._api.health.warn_once(f"event {refusal.status}", str(refusal))
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
            self._api.health.warn_once(f"pods {refusal.status}", f"{refusal}: are slicebw's roles applied?")
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
            self._api.health.warn_once(f"delete usage {refusal.status}", str(refusal))
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
                        failures[key] = "another writer has changed it meanwhile"
                    elif not refusal.not_found:
                        self._api.health.warn_once(f"status {refusal.status}", str(refusal))
                        failures[key] = str(refusal)
                else:
                    self._feed.note_written(answer)

        await asyncio.gather(*(write(key, *one) for key, one in statuses.items()))
        return failures
