"""The agent's reporter: usages, node status and Events, written in the background within a budget."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from slicebw.api import bandwidth_usage, event, kinds, node_bandwidth
from slicebw.api.conditions import Condition
from slicebw.core.clock import TokenBucket
from slicebw.core.model import SliceKey, TrafficClass
from slicebw.core.reports import EventNote, NodeReport, UsageReport
from slicebw.kube.background import ApiThread
from slicebw.kube.backoff import Backoff
from slicebw.kube.client import ApiRefused, ApiUnreachable
from slicebw.kube.outbox import Entry, Outbox, Urgency
from slicebw.kube.recall import usages_of_node
from slicebw.kube.resources import BANDWIDTH_USAGES, EVENTS, NODE_BANDWIDTHS, NODES, missing

log = logging.getLogger(__name__)

WRITES_PER_S: Final = 2.0
BURST: Final = 40

MAX_WAITING: Final = 20_000
"""Objects that wait for the API server; beyond it, news of further ones are dropped until there is room."""

RENEW_S: Final = 300.0
"""An unchanged usage is written again after this time if it is reported, so that a lost object comes back."""

NODE_UID_S: Final = 600.0
"""How long the Node's uid is believed: a Node that is registered anew has another."""

REFUSED_PAUSE_S: Final = 60.0
"""Before a refused write is tried again: roles and kinds are put right by people."""


@dataclass(frozen=True, slots=True)
class _Usage:
    """A usage to write, as reported at ``at_s`` (wall clock)."""

    report: UsageReport
    at_s: int


@dataclass(frozen=True, slots=True)
class _Removal:
    """A usage that is over."""

    key: SliceKey


@dataclass(frozen=True, slots=True)
class _Node:
    """The node's own state."""

    report: NodeReport
    at_s: int


_Write = _Usage | _Removal | _Node | EventNote


class ApiReporter:
    """Writes what the agent reports (its ``Reporter`` port). Nobody waits for it; it waits for the API server.

    Of each object only the latest state is kept. Events need no order: each has its own name, and the ledger reports
    them again until they are delivered, so that none is lost and none is there twice.
    """

    def __init__(
        self,
        api: ApiThread,
        node_name: str,
        *,
        writes_per_s: float = WRITES_PER_S,
        burst: int = BURST,
        wall_clock: Callable[[], float] = time.time,
        renew_s: float = RENEW_S,
        refused_pause_s: float = REFUSED_PAUSE_S,
    ) -> None:
        """Queue from now on; nothing is written before :meth:`start`.

        Args:
            api: where the requests are made.
            node_name: this node's name in Kubernetes.
            writes_per_s: the write budget in the long run.
            burst: how many writes may be made at once.
            wall_clock: dates the reports, in seconds since the epoch.
            renew_s: see RENEW_S.
            refused_pause_s: see REFUSED_PAUSE_S.
        """
        self._api = api
        self._node_name = node_name
        self._wall_clock = wall_clock
        self._renew_s = renew_s
        self._refused_pause_s = refused_pause_s
        self._outbox: Outbox[_Write] = Outbox(MAX_WAITING)
        self._budget = TokenBucket(writes_per_s, burst, time.monotonic())
        self._news = asyncio.Event()
        self._written: dict[SliceKey, tuple[UsageReport, float]] = {}
        self._delivered: set[str] = set()
        self._lock = threading.Lock()
        self._last_node: NodeReport | None = None
        self._node_uid: tuple[str | None, float] | None = None
        self._conditions: tuple[Condition, ...] | None = None
        self._reported: tuple[UsageReport, ...] | None = None
        self._recalling = asyncio.Lock()
        self.writes = 0
        """Requests that were answered well so far."""

    def start(self) -> None:
        """Begin to write."""
        self._api.keep_running("reporter", self._send_forever)
        self._api.keep_running("recall", self._recall_until_known)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Give what waits a last chance, at most ``timeout_s``, unless the API server is away."""
        deadline = time.monotonic() + timeout_s
        while self.waiting and not self._api.health.unreachable_s and time.monotonic() < deadline:
            time.sleep(0.02)

    @property
    def waiting(self) -> int:
        """How many objects wait to be written."""
        return len(self._outbox)

    def report(
        self,
        usages: Sequence[UsageReport],
        over: Sequence[SliceKey],
        events: Sequence[EventNote],
        node: NodeReport | None,
    ) -> None:
        """Queue reports. ``over``: slices whose usage of this node is to go. ``events``: all that are owed still."""
        at_s = int(self._wall_clock())
        taken = [self._put_event(note) for note in events]
        taken += [self._put_usage(report, at_s) for report in usages]
        taken += [self._outbox.put(key, _Removal(key), Urgency.CHANGE) for key in over]
        if node is not None:
            urgency = Urgency.FIGURES if _same_but_figures(self._last_node, node) else Urgency.CHANGE
            self._last_node = node
            taken.append(self._outbox.put("node", _Node(node, at_s), urgency))
        if not all(taken):
            self._api.health.complain("outbox", f"{MAX_WAITING} reports wait already, further ones are dropped", "full")
        if taken:
            self._api.soon(self._news.set)

    def delivered(self) -> frozenset[str]:
        """Ids of events written since the last call, so that the ledger can forget them."""
        with self._lock:
            delivered, self._delivered = self._delivered, set()
        return frozenset(delivered)

    def reported(self) -> tuple[UsageReport, ...] | None:
        """The BandwidthUsages of this node as an earlier agent left them; None until the API server has said so."""
        return self._reported

    def _put_event(self, note: EventNote) -> bool:
        if note.id in self._delivered or self._outbox.waiting(note.id) is not None:
            return True
        return self._outbox.put(note.id, note, Urgency.TRANSITION)

    def _put_usage(self, report: UsageReport, at_s: int) -> bool:
        last, written_at = self._written.get(report.key) or (None, 0.0)
        waiting = self._outbox.waiting(report.key)
        if waiting is None and report == last and time.monotonic() - written_at < self._renew_s:
            return True
        if isinstance(waiting, _Usage):
            last = waiting.report
        return self._outbox.put(report.key, _Usage(report, at_s), _urgency(last, report))

    async def _send_forever(self) -> None:
        backoff = Backoff(most_s=60.0)
        while True:
            entry = await self._next_entry()
            try:
                await self._send(entry.write)
                self.writes += 1
            except ApiUnreachable as error:
                pause_s = backoff.next_s(error.retry_after_s)
                log.debug("not written, again in %.1f s: %s", pause_s, error)
                if error.busy:  # which may be about this one write only: let others go first, and give them time
                    self._outbox.later(entry, time.monotonic() + 2 * pause_s)
                await asyncio.sleep(pause_s)
                continue
            except ApiRefused as refusal:
                if not self._settle(entry.write, refusal):
                    self._outbox.later(entry, time.monotonic() + self._refused_pause_s)
                    continue
            backoff.reset()
            self._note_done(entry)

    async def _next_entry(self) -> Entry[_Write]:
        """Wait for something to write and for the budget to allow it; of what waits then, the most urgent."""
        while True:
            self._news.clear()
            wait_s = self._budget.wait_s(time.monotonic())
            if wait_s == 0.0:
                entry = self._outbox.next(time.monotonic())
                if entry is not None:
                    self._budget.take(time.monotonic())
                    return entry
                due = self._outbox.next_due()
                wait_s = 3600.0 if due is None else max(0.0, due - time.monotonic())
                try:
                    await asyncio.wait_for(self._news.wait(), wait_s)
                except TimeoutError:
                    continue
            else:
                await asyncio.sleep(wait_s)

    def _note_done(self, entry: Entry[_Write]) -> None:
        match entry.write:
            case EventNote():
                with self._lock:
                    self._delivered.add(entry.write.id)
            case _Usage():
                self._written[entry.write.report.key] = entry.write.report, time.monotonic()
            case _Removal():
                self._written.pop(entry.write.key, None)
        self._outbox.done(entry)

    async def _send(self, write: _Write) -> None:
        match write:
            case EventNote():
                _, obj = event.to_object(write, self._node_name, await self._uid())
                await self._api.client.create(EVENTS, obj)
            case _Usage():
                # Not before we know what an earlier agent wrote: else we would read back our own beginnings.
                await self._recall()
                obj = bandwidth_usage.to_object(write.report, self._node_name, await self._uid(), write.at_s)
                await self._api.client.apply(BANDWIDTH_USAGES, obj, kinds.AGENT_MANAGER)
            case _Removal():
                name = bandwidth_usage.name(write.key.name, self._node_name)
                await self._api.client.delete(BANDWIDTH_USAGES, write.key.namespace, name)
            case _Node():
                await self._send_node(write)

    async def _send_node(self, write: _Node) -> None:
        """Apply the status of the node's own NodeBandwidth; where there is none, make it first."""
        client = self._api.client
        if self._conditions is None:
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
        """The Node's uid; None where there is no such Node, or we may not read it."""
        if self._node_uid is None or time.monotonic() - self._node_uid[1] > NODE_UID_S:
            try:
                node = await self._api.client.get(NODES.path(name=self._node_name))
                uid: str | None = node["metadata"]["uid"]
            except ApiRefused as refusal:
                log.info("usages of this node have no owner: %s", refusal)
                uid = None
            self._node_uid = uid, time.monotonic()
        return self._node_uid[0]

    async def _recall_until_known(self) -> None:
        """Ask for this node's usages until the API server answers."""
        backoff = Backoff()
        while self._reported is None:
            try:
                await self._recall()
            except (ApiUnreachable, ApiRefused) as error:
                log.debug("usages of this node cannot be fetched yet: %s", error)
                await asyncio.sleep(backoff.next_s())

    async def _recall(self) -> None:
        """Ask for this node's usages as an earlier agent left them. Raises ApiUnreachable, ApiRefused."""
        if self._reported is not None:
            return
        async with self._recalling:
            if self._reported is None:  # the other task may have been faster; later there are usages of our own
                self._reported = await usages_of_node(self._api.client, self._node_name)

    def _settle(self, write: _Write, refusal: ApiRefused) -> bool:
        """Whether a refused write is done with all the same: it is there already, or can never be."""
        if isinstance(write, EventNote) and refusal.already_exists:
            return True
        if refusal.namespace_gone:
            log.debug("dropped, its namespace is gone: %s", refusal)
            return True
        if refusal.hopeless:
            self._api.health.complain(f"hopeless {refusal}", f"dropped: {refusal}")
            return True
        if refusal.kind_missing:
            resource = NODE_BANDWIDTHS if isinstance(write, _Node) else BANDWIDTH_USAGES
            self._api.health.complain(f"missing {resource}", missing(resource), "missing")
        else:
            self._api.health.complain(f"{refusal.status} on write", f"not written, trying again: {refusal}")
        return False


def _urgency(last: UsageReport | None, report: UsageReport) -> Urgency:
    """How soon a usage is wanted, after what was written or queued last."""
    if last is None:
        return Urgency.TRANSITION if report.standard.capped or report.exempt.capped else Urgency.CHANGE
    if any(last.of(one).capped != report.of(one).capped for one in TrafficClass):
        return Urgency.TRANSITION
    figures = replace(last, standard=report.standard, exempt=report.exempt)
    return Urgency.FIGURES if figures == report else Urgency.CHANGE


def _same_but_figures(last: NodeReport | None, report: NodeReport) -> bool:
    if last is None:
        return False
    return replace(report, root_bytes=last.root_bytes, default_bytes=last.default_bytes) == last
