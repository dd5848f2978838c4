"""Writes the agent's usages, node status and Events to the API server, and decides which refusals are final."""

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from slicebw.api import bandwidth_usage, event, kinds, node_bandwidth
from slicebw.api.conditions import Condition
from slicebw.core.clock import TokenBucket
from slicebw.core.errors import TryLater
from slicebw.core.ledger import PendingEvent
from slicebw.core.reports import NodeWrite, ReportWrite, UsageRemoval, UsageReport, UsageWrite
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.backoff import Backoff
from slicebw.kube.client import ApiRefused, ApiUnreachable
from slicebw.kube.own_usages import list_own_usages
from slicebw.kube.resources import BANDWIDTH_USAGES, EVENTS, NODE_BANDWIDTHS, NODES, not_installed_text

log = logging.getLogger(__name__)

WRITES_PER_S: Final = 2.0
"""The mean rate of one agent's writes: a thousand agents share one API server."""

BURST: Final = 40
"""How many writes may follow each other without a pause."""

NODE_UID_S: Final = 600.0
"""The Node's uid is read again after this time: a Node that is registered again has another one."""

REFUSED_PAUSE_S: Final = 60.0
"""The pause before a refused write is tried again: roles and kinds are installed by people."""


class ApiSink:
    """Writes one node's reports to the API server (the agent's ``ReportSink`` port), in an :class:`ApiThread`."""

    def __init__(
        self,
        api: ApiThread,
        node_name: str,
        *,
        writes_per_s: float = WRITES_PER_S,
        burst: int = BURST,
        refused_pause_s: float = REFUSED_PAUSE_S,
    ) -> None:
        """Make no request yet.

        Args:
            api: makes the requests.
            node_name: this node's name in Kubernetes.
            writes_per_s: the mean rate of writes.
            burst: how many writes may follow each other without a pause.
            refused_pause_s: see REFUSED_PAUSE_S.
        """
        self.budget = TokenBucket(writes_per_s, burst, time.monotonic())
        self._api = api
        self._node_name = node_name
        self._refused_pause_s = refused_pause_s
        self._write_backoff = Backoff(most_s=60.0)
        self._read_backoff = Backoff()
        self._node_uid: tuple[str | None, float] | None = None
        self._conditions: tuple[Condition, ...] | None = None

    def start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine in the API thread until it returns."""
        self._api.keep_running("reporter", run)

    def warn_full(self, message: str) -> None:
        """Count that reports were dropped, and log it once."""
        self._api.health.warn_once("report queue", message, "full")

    async def previous_reports(self) -> tuple[UsageReport, ...]:
        """List this node's usages. Raises TryLater."""
        try:
            return await list_own_usages(self._api.client, self._node_name)
        except ApiUnreachable as error:
            pause_s = self._read_backoff.next_s()
            raise TryLater(str(error), pause_s=pause_s, retry_s=pause_s if error.busy else 0.0) from error
        except ApiRefused as refusal:
            self._api.health.warn_once(f"{refusal.status} on list", f"own usages not listed, trying again: {refusal}")
            raise TryLater(str(refusal), retry_s=self._read_backoff.next_s()) from refusal

    async def write(self, write: ReportWrite) -> bool:
        """Write one object. Return False if it was not written and need not be. Raises TryLater."""
        try:
            await self._send(write)
            written = True
        except ApiUnreachable as error:
            pause_s = self._write_backoff.next_s(error.retry_after_s)
            # A busy API server may be unable to serve just this write: retry it later, so that others go first.
            raise TryLater(str(error), pause_s=pause_s, retry_s=2 * pause_s if error.busy else 0.0) from error
        except ApiRefused as refusal:
            if not self._is_final(write, refusal):
                raise TryLater(str(refusal), retry_s=self._refused_pause_s) from refusal
            written = False
        self._write_backoff.reset()
        return written

    def _is_final(self, write: ReportWrite, refusal: ApiRefused) -> bool:
        """Return whether a refused write need not be tried again: the object exists, or can never exist. Else warn."""
        if isinstance(write, PendingEvent) and refusal.already_exists:
            return True
        if refusal.namespace_gone:
            log.debug("dropped, its namespace is gone: %s", refusal)
            return True
        if refusal.invalid:
            self._api.health.warn_once(f"invalid {refusal}", f"dropped: {refusal}")
            return True
        if refusal.kind_missing:
            resource = NODE_BANDWIDTHS if isinstance(write, NodeWrite) else BANDWIDTH_USAGES
            self._api.health.warn_once(f"missing {resource}", not_installed_text(resource), "missing")
        else:
            self._api.health.warn_once(f"{refusal.status} on write", f"not written, trying again: {refusal}")
        return False

    async def _send(self, write: ReportWrite) -> None:
        client = self._api.client
        match write:
            case PendingEvent():
                _, obj = event.to_object(write, self._node_name, await self._uid())
                await client.create(EVENTS, obj)
            case UsageWrite():
                obj = bandwidth_usage.to_object(write.report, self._node_name, await self._uid(), write.at_s)
                await client.apply(BANDWIDTH_USAGES, obj, kinds.AGENT_MANAGER)
            case UsageRemoval():
                name = bandwidth_usage.name(write.key.name, self._node_name)
                await client.delete(BANDWIDTH_USAGES, write.key.namespace, name)
            case NodeWrite():
                await self._send_node(write)

    async def _send_node(self, write: NodeWrite) -> None:
        """Apply the status of this node's NodeBandwidth. Creates the object if it does not exist."""
        client = self._api.client
        if self._conditions is None:  # after a start: keep the times of transition that an earlier agent has written
            self._conditions = node_bandwidth.parse_status(await self._own_node_bandwidth())
        status = node_bandwidth.status_object(self._node_name, write.report, write.at_s, self._conditions)
        try:
            answer = await client.apply(NODE_BANDWIDTHS, status, kinds.AGENT_MANAGER, "status")
        except ApiRefused as refusal:
            if not refusal.not_found or refusal.kind_missing:
                raise
            await client.apply(NODE_BANDWIDTHS, node_bandwidth.node_object(self._node_name), kinds.AGENT_MANAGER)
            answer = await client.apply(NODE_BANDWIDTHS, status, kinds.AGENT_MANAGER, "status")
        self._conditions = node_bandwidth.parse_status(answer)

    async def _own_node_bandwidth(self) -> object:
        try:
            return await self._api.client.get(NODE_BANDWIDTHS.path(name=self._node_name))
        except ApiRefused as refusal:
            if refusal.not_found and not refusal.kind_missing:
                return {}
            raise

    async def _uid(self) -> str | None:
        """Return the Node's uid, or None if the Node does not exist or may not be read."""
        if self._node_uid is None or time.monotonic() - self._node_uid[1] > NODE_UID_S:
            try:
                node = await self._api.client.get(NODES.path(name=self._node_name))
                uid: str | None = node["metadata"]["uid"]
            except ApiRefused as refusal:
                log.info("usages of this node get no owner: %s", refusal)
                uid = None
            self._node_uid = uid, time.monotonic()
        return self._node_uid[0]
