"""The controller's requests: it writes statuses and Events, lists pods, and deletes usages of dead nodes."""

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
"""A pod has 6 to 8 kB, so a page has 2 MB on the wire and ten times that while it is decoded."""

CONCURRENT_WRITES: Final = 8
CALL_TIMEOUT_S: Final = 60.0


class ApiClusterWriter:
    """The controller's requests (its ``ClusterWriter``). The calling thread waits, CALL_TIMEOUT_S at most."""

    def __init__(self, api: ApiThread, feed: ApiClusterFeed) -> None:
        """Write through ``api``, and put the API server's answers into ``feed`` at once."""
        self._api = api
        self._feed = feed

    def write(self, statuses: Mapping[SliceKey, tuple[SliceStatus, str]]) -> Mapping[SliceKey, str]:
        """Write statuses. Returns the slices whose status could not be written, with the reason.

        Each status comes with the resourceVersion of the object that it was made for, and is written over no other
        one. A slice that is gone counts as written.
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
        """Return the pods of a namespace by node, as they are now (no older than the call).

        Returns the API server's message if it refuses the list, and None if it does not answer: then retry.
        """
        try:
            return self._api.call(self._pods_by_node(namespace), CALL_TIMEOUT_S)
        except ApiRefused as refusal:
            if refusal.expired:  # reading the pages took too long
                return None
            self._api.health.warn_once(f"pods {refusal.status}", f"{refusal}: are slicebw's roles applied?")
            return str(refusal)
        except (ApiUnreachable, TimeoutError):
            return None

    def node_exists(self, name: str) -> bool | None:
        """Ask the API server itself whether a Node exists; None if it does not say."""
        try:
            self._api.call(self._api.client.get(NODES.path(name=name)), CALL_TIMEOUT_S)
        except ApiRefused as refusal:
            return False if refusal.not_found else None
        except (ApiUnreachable, TimeoutError):
            return None
        return True

    def delete_usage(self, namespace: str, name: str, uid: str) -> bool:
        """Delete a BandwidthUsage, only if it still has this uid. Returns whether it is gone."""
        try:
            self._api.call(self._api.client.delete(BANDWIDTH_USAGES, namespace, name, uid), CALL_TIMEOUT_S)
        except ApiRefused as refusal:
            self._api.health.warn_once(f"delete usage {refusal.status}", str(refusal))
            return False
        except (ApiUnreachable, TimeoutError):
            return False
        return True

    async def _pods_by_node(self, namespace: str) -> dict[str, list[Pod]]:
        """List in pages, so that only one page at a time is in memory as decoded JSON."""
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
        slots = asyncio.Semaphore(CONCURRENT_WRITES)
        failures: dict[SliceKey, str] = {}

        async def write(key: SliceKey, status: SliceStatus, version: str) -> None:
            async with slots:
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
                    self._feed.upsert_slice(answer)  # else the next roll-up could start from the old status

        await asyncio.gather(*(write(key, *one) for key, one in statuses.items()))
        return failures
