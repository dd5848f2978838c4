"""The report queue: which reports wait to be written, in which order, and which have been acknowledged.

The reconciler hands its reports to a :class:`ReportQueue` and never waits. The queue keeps the latest state of each
object, writes urgent ones first within the sink's budget, and retries failed ones. How one object is written is up to
the sink: ``kube/agent_sink.py`` or ``folder/sink.py``.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import chain
from typing import Final, Generic, TypeVar

from msgspec import structs

from slicebw.agent.ports import ReportSink
from slicebw.core.desired import SliceKey, TrafficClass
from slicebw.core.errors import TryLater
from slicebw.core.ledger import PendingEvent
from slicebw.core.reports import NodeReport, NodeWrite, ReportWrite, UsageRemoval, UsageReport, UsageWrite, object_of

log = logging.getLogger(__name__)

MAX_WAITING: Final = 20_000
"""The most objects that may wait. Reports of further objects are dropped until there is room."""

RENEW_S: Final = 300.0
"""If an unchanged usage is reported after this time, it is written again, so that a deleted object comes back."""

LAST_CHANCE_S: Final = 2.0
"""The longest time that a stopping agent waits for its last writes."""

W = TypeVar("W")


class Urgency(IntEnum):
    """How urgent a write is. The lowest number is written first."""

    TRANSITION = 0
    """An Event, or a cap that was set or lifted: people and programs wait for it."""
    CHANGE = 1
    """Something other than a figure changed."""
    FIGURES = 2
    """Only bytes or rates changed."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[W]):
    """One object to write. ``retry_at_s``: the instant before which it is not tried again; 0 if it has not failed."""

    name: Hashable
    write: W
    urgency: Urgency
    retry_at_s: float = 0.0


class WriteQueue(Generic[W]):
    """Entries by name: a newer write of an object replaces the one that waits. Safe from any thread."""

    def __init__(self, limit: int) -> None:
        """Start empty. While ``limit`` entries wait, no further names are accepted."""
        self._limit = limit
        self._lock = threading.Lock()
        self._queues: dict[Urgency, dict[Hashable, Entry[W]]] = {urgency: {} for urgency in Urgency}
        self._held: type[object] | None = None

    def __len__(self) -> int:
        """How many entries wait."""
        return sum(map(len, self._queues.values()))

    def put(self, name: Hashable, write: W, urgency: Urgency) -> bool:
        """Queue a write.

        If the one that it replaces was at least as urgent, it takes over its place, urgency and retry time.

        Returns False if the queue is full.
        """
        with self._lock:
            waiting = self._waiting(name)
            if waiting is None:
                if len(self) >= self._limit:
                    return False
                self._queues[urgency][name] = Entry(name, write, urgency)
            elif waiting.urgency <= urgency:
                self._queues[waiting.urgency][name] = replace(waiting, write=write)
            else:
                del self._queues[waiting.urgency][name]
                self._queues[urgency][name] = Entry(name, write, urgency)
            return True

    def hold(self, kind: type[object] | None) -> None:
        """Hold back all writes of a type until this is called with None."""
        self._held = kind

    def waiting(self, name: Hashable) -> W | None:
        """Return the write that waits under a name, if any."""
        with self._lock:
            entry = self._waiting(name)
            return None if entry is None else entry.write

    def next(self, now_s: float) -> Entry[W] | None:
        """Return the entry to write now, if any. It stays in the queue until :meth:`done`."""
        with self._lock:
            return next((entry for entry in self._writable() if entry.retry_at_s <= now_s), None)

    def next_due_s(self) -> float | None:
        """Return the instant from which an entry may be written; None if none waits."""
        with self._lock:
            return min((entry.retry_at_s for entry in self._writable()), default=None)

    def done(self, entry: Entry[W]) -> None:
        """Remove a written entry. If a newer write has been queued under its name meanwhile, that stays."""
        with self._lock:
            if self._is_latest(entry):
                del self._queues[entry.urgency][entry.name]

    def retry_at(self, entry: Entry[W], at_s: float) -> None:
        """Do not try an entry again before ``at_s``. A newer write under its name is not delayed."""
        with self._lock:
            if self._is_latest(entry):
                del self._queues[entry.urgency][entry.name]
                self._queues[entry.urgency][entry.name] = replace(entry, retry_at_s=at_s)

    def _is_latest(self, entry: Entry[W]) -> bool:
        waiting = self._queues[entry.urgency].get(entry.name)
        return waiting is not None and waiting.write is entry.write

    def _writable(self) -> Iterator[Entry[W]]:
        entries = chain.from_iterable(queue.values() for queue in self._queues.values())
        held = self._held
        return entries if held is None else (entry for entry in entries if not isinstance(entry.write, held))

    def _waiting(self, name: Hashable) -> Entry[W] | None:
        return next((queue[name] for queue in self._queues.values() if name in queue), None)


class ReportQueue:
    """Writes the agent's reports to a sink, in the sink's own thread. It is the reconciler's ``Reporter`` port.

    Only the latest state of each object is kept. Events need no order, because each is an object with its own name. The
    ledger reports an Event until it is acknowledged, so that none is lost and none is written twice.
    """

    def __init__(
        self,
        sink: ReportSink,
        *,
        wall_clock: Callable[[], float] = time.time,
        renew_s: float = RENEW_S,
        last_chance_s: float = LAST_CHANCE_S,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Accept reports from now on. Nothing is written before :meth:`start`.

        Args:
            sink: where reports are written.
            wall_clock: dates the reports, in seconds since the epoch.
            renew_s: see RENEW_S.
            last_chance_s: see LAST_CHANCE_S.
            max_waiting: see MAX_WAITING.
        """
        self._sink = sink
        self._wall_clock = wall_clock
        self._renew_s = renew_s
        self._last_chance_s = last_chance_s
        self._queue: WriteQueue[ReportWrite] = WriteQueue(max_waiting)
        self._queue.hold(UsageWrite)  # until the previous reports have been read; see _read_previous_reports
        self._lock = threading.Lock()
        self._acknowledged: set[str] = set()
        self._written_events: set[str] = set()
        self._written_usages: dict[SliceKey, tuple[UsageReport, float]] = {}
        self._last_node: NodeReport | None = None
        self._previous_reports: tuple[UsageReport, ...] | None = None
        self._wake: Callable[[], object] = lambda: None
        self._paused_until_s = 0.0
        self._sink_away = False
        self._stopping = False
        self._ended = threading.Event()
        self._ended.set()
        self.writes = 0
        """Objects written so far."""

    def start(self) -> None:
        """Start to write."""
        self._ended.clear()
        self._sink.start(self._run)

    def stop(self, timeout_s: float | None = None) -> None:
        """Try each waiting write once more, unless the sink is away, and end. Returns after ``last_chance_s`` at most.

        ``timeout_s`` overrides that time.
        """
        self._stopping = True
        self._wake()
        self._ended.wait(self._last_chance_s if timeout_s is None else timeout_s)

    @property
    def waiting(self) -> int:
        """How many objects wait to be written."""
        return len(self._queue)

    def report(
        self,
        usages: Sequence[UsageReport],
        expired: Sequence[SliceKey],
        events: Sequence[PendingEvent],
        node: NodeReport | None,
    ) -> None:
        """Queue reports; see :class:`slicebw.agent.ports.Reporter`. Returns at once."""
        at_s = int(self._wall_clock())
        taken = self._put_events(events)
        taken += [self._put_usage(UsageWrite(report, at_s)) for report in usages]
        taken += [self._put(UsageRemoval(key), Urgency.CHANGE) for key in expired]
        if node is not None:
            taken.append(self._put(NodeWrite(node, at_s), _node_urgency(self._last_node, node)))
            self._last_node = node
        if not all(taken):
            self._sink.warn_full(f"{self.waiting} reports wait already, further ones are dropped")
        if taken:
            self._wake()

    def acknowledged(self) -> frozenset[str]:
        """Ids of events written since the last call, so that the ledger can forget them."""
        with self._lock:
            acknowledged, self._acknowledged = self._acknowledged, set()
        return frozenset(acknowledged)

    def previous_reports(self) -> Sequence[UsageReport] | None:
        """The usages of this node as an earlier agent left them; None until the sink has read them."""
        return self._previous_reports

    def _put(self, write: ReportWrite, urgency: Urgency) -> bool:
        return self._queue.put(object_of(write), write, urgency)

    def _put_events(self, events: Sequence[PendingEvent]) -> list[bool]:
        # In this order: an event that is written between the two steps is then found among the written ones.
        new = {event.id: event for event in events if self._queue.waiting(event.id) is None}
        with self._lock:
            # The ledger reports an event until it is acknowledged, so other ids need not be remembered.
            self._written_events &= {event.id for event in events} | self._acknowledged
            written = self._written_events & new.keys()
        return [self._put(event, Urgency.TRANSITION) for event in new.values() if event.id not in written]

    def _put_usage(self, write: UsageWrite) -> bool:
        last, written_at_s = self._written_usages.get(write.report.key) or (None, 0.0)
        waits = self._queue.waiting(write.report.key) is not None
        if not waits and write.report == last and time.monotonic() - written_at_s < self._renew_s:
            return True
        return self._put(write, _usage_urgency(last, write.report))

    async def _run(self) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # raised by a closed loop; checking for that first would be a race
                loop.call_soon_threadsafe(changed.set)

        self._wake = wake
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read_previous_reports(changed))
            while (entry := await self._next_entry(changed)) is not None:
                await self._write(entry)
            reading.cancel()
        self._ended.set()

    async def _read_previous_reports(self, changed: asyncio.Event) -> None:
        """Read an earlier agent's usages, and only then release own ones: written earlier, these would be read back."""
        while self._previous_reports is None:
            try:
                self._previous_reports = tuple(await self._sink.previous_reports())
                # The sink answers reads. Whether it takes writes, only the last write can tell.
                self._sink_away = self._paused_until_s > time.monotonic()
            except TryLater as error:
                self._sink_away = not error.retry_s
                changed.set()  # a stopping queue need not wait for a sink that is away
                log.debug("usages of this node cannot be read yet: %s", error)
                await asyncio.sleep(max(error.pause_s, error.retry_s))
        self._queue.hold(None)
        changed.set()

    async def _next_entry(self, changed: asyncio.Event) -> Entry[ReportWrite] | None:
        """Wait until a write is due and within the budget, and return the most urgent one; None after :meth:`stop`."""
        budget = self._sink.budget
        while True:
            changed.clear()
            now_s = time.monotonic()
            # A stopping queue tries every entry now, also one that has just failed: it is its last chance.
            entry = self._queue.next(math.inf if self._stopping else now_s)
            if self._stopping and (self._sink_away or (entry is None and not self._held_back())):
                return None
            wait_s = max(self._paused_until_s - now_s, budget.wait_s(now_s) if budget is not None else 0.0)
            if entry is not None and wait_s <= 0:
                if budget is not None:
                    budget.take(now_s)
                return entry
            if entry is None:
                due_s = self._queue.next_due_s()
                wait_s = math.inf if due_s is None else max(wait_s, due_s - now_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), None if wait_s == math.inf else wait_s)

    def _held_back(self) -> bool:
        """Tell whether usages may still be held back until the previous reports are read."""
        return self._previous_reports is None and self.waiting > 0

    async def _write(self, entry: Entry[ReportWrite]) -> None:
        try:
            self.writes += await self._sink.write(entry.write)
        except TryLater as error:
            log.debug("not written, retrying in %.1f s: %s", max(error.pause_s, error.retry_s), error)
            now_s = time.monotonic()
            self._paused_until_s = now_s + error.pause_s
            self._sink_away = not error.retry_s
            if self._stopping:
                self._queue.done(entry)  # this was its last chance
            elif error.retry_s:
                self._queue.retry_at(entry, now_s + error.retry_s)
            return
        self._sink_away = False
        self._acknowledge(entry)

    def _acknowledge(self, entry: Entry[ReportWrite]) -> None:
        match entry.write:
            case PendingEvent():
                with self._lock:
                    self._acknowledged.add(entry.write.id)
                    self._written_events.add(entry.write.id)
            case UsageWrite():
                self._written_usages[entry.write.report.key] = entry.write.report, time.monotonic()
            case UsageRemoval():
                self._written_usages.pop(entry.write.key, None)
        self._queue.done(entry)


def _usage_urgency(last: UsageReport | None, report: UsageReport) -> Urgency:
    """Return how urgent a usage is, compared with the one that was written last."""
    if last is None:
        return Urgency.TRANSITION if report.standard.capped or report.exempt.capped else Urgency.CHANGE
    if any(last.of(one).capped != report.of(one).capped for one in TrafficClass):
        return Urgency.TRANSITION
    figures = structs.replace(last, standard=report.standard, exempt=report.exempt)
    return Urgency.FIGURES if figures == report else Urgency.CHANGE


def _node_urgency(last: NodeReport | None, report: NodeReport) -> Urgency:
    if last is None:
        return Urgency.CHANGE
    figures = structs.replace(last, host_bytes=report.host_bytes, default_bytes=report.default_bytes)
    return Urgency.FIGURES if figures == report else Urgency.CHANGE
