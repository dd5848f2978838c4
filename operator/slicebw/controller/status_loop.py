"""The controller's loop: keeps the status of each SliceBandwidth up to date, and removes usages that nobody owns.

A work queue holds the keys of the slices whose status may be wrong. Reconciling one compares the status that the nodes'
reports amount to with the one in the object, whatever the change was that brought the key here.

Several controllers may run at once, and none is the leader. A status is written only over the very object that it was
made for (the API server compares resourceVersions). Figures wait until nobody has written for an interval. Before a
controller contradicts what another one has written about pods it lists them. So of two that agree one writes, and one
that lags behind is refused, whatever it believes.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from slicebw.api.bandwidth_usage import UsageRecord
from slicebw.api.conditions import TRUE, Condition
from slicebw.api.slice_bandwidth import SliceRecord, SliceStatus
from slicebw.controller.pod_locations import PodLocations, SliceLocations
from slicebw.controller.ports import ClusterFeed, ClusterWriter
from slicebw.controller.rollup import ENFORCED, NO_PODS, is_outdated, is_transition, roll_up
from slicebw.controller.work_queue import LAST, NORMAL, Priority, WorkQueue
from slicebw.controller.write_budget import STATUS_INTERVAL_S, TRANSITION_INTERVAL_S, WRITES_PER_S, WriteBudget
from slicebw.core.desired import SliceKey
from slicebw.core.events import invalid_event

log = logging.getLogger(__name__)

CLEAR_INTERVAL_S: Final = 30.0
"""How often dead usages are looked for."""

OVER_GRACE_S: Final = 3600
"""A usage is removed if its period ended, and it was last reported, longer ago than this."""

MAX_CLEARED: Final = 200
"""Usages removed at a time, so that the statuses do not wait for long."""

NEVER: Final = float("-inf")
FIGURES: Final[Priority] = (1, NEVER)
"""The first priority of slices of which only figures and wording have changed."""

SHORTEST_REQUEUE_S: Final = 0.05
"""A slice that waits is not reconciled again before this, however little is missing: steps would follow too closely."""
SHORTEST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True)
class Counts:
    """What the controller has done since it started."""

    writes: int = 0
    failed_writes: int = 0
    removed_usages: int = 0
    failures: int = 0


@dataclass(slots=True)
class _SliceState:
    """What the loop remembers of a slice. Times are on the monotonic clock.

    ``status``, ``version`` and ``generation`` are those of the object when it was last seen to change. ``written_s`` is
    when a changed status was last seen, whoever wrote it, or when we last tried to write one; ``changed_s`` when
    anything of the slice, its usages included, was last seen to change.
    """

    status: SliceStatus
    version: str
    generation: int
    written_s: float
    changed_s: float
    pending: SliceStatus | None = None
    """A status that waits until it may be written. It is not rolled up again while nothing it was made of changes."""
    figures_only: bool = False
    """Whether the last roll-up since a change found that only figures and wording differ."""
    event_generation: int = 0
    """The newest generation whose Event about a wrong spec is emitted."""

    @property
    def priority(self) -> Priority:
        """What may be a transition goes first, then what was not written for longest."""
        return FIGURES[0] if self.figures_only else NORMAL[0], self.written_s


class StatusLoop:
    """Reconciles and writes. Keeps no state that matters: a restart, or a second controller, changes nothing."""

    def __init__(
        self,
        feed: ClusterFeed,
        writer: ClusterWriter,
        *,
        status_interval_s: float = STATUS_INTERVAL_S,
        writes_per_s: float = WRITES_PER_S,
        clear_interval_s: float = CLEAR_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Do nothing before :meth:`run`.

        Args:
            feed: what is known of the cluster.
            writer: what is done to it.
            status_interval_s: see STATUS_INTERVAL_S.
            writes_per_s: the write budget over all slices.
            clear_interval_s: how often dead usages are looked for.
            clock: monotonic, in seconds.
            wall_clock: dates transitions and ends periods, in seconds since the epoch.
        """
        self.counts = Counts()
        self.locations = PodLocations(feed, writer, clock)
        self._feed, self._writer = feed, writer
        self._clear_interval_s = clear_interval_s
        self._clock, self._wall_clock = clock, wall_clock
        self._states: dict[SliceKey, _SliceState] = {}
        self._queue = WorkQueue[SliceKey]()
        self._budget = WriteBudget(clock(), writes_per_s, status_interval_s)
        self._outgoing: dict[SliceKey, tuple[SliceStatus, str]] = {}
        self._clear_at_s = clock()
        self._woken = threading.Event()
        self._stopping = threading.Event()

    @property
    def waiting(self) -> int:
        """How many slices have a status that may not be up to date. Callable from any thread."""
        return len(self._queue)

    def wake(self) -> None:
        """Something changed. Callable from any thread."""
        self._woken.set()

    def stop(self) -> None:
        """End :meth:`run` after the step that runs. Callable from any thread."""
        self._stopping.set()
        self._woken.set()

    def run(self) -> None:
        """Step after step, until :meth:`stop`."""
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                pause_s = self.step()
            except Exception:
                self.counts.failures += 1
                log.exception("a step of the controller failed; trying again in %.0f s", LONGEST_PAUSE_S)
                pause_s = LONGEST_PAUSE_S
            # Changes come by the hundred; those of half a second are rolled up in one go.
            self._stopping.wait(min(pause_s, SHORTEST_PAUSE_S))
            self._woken.wait(max(0.0, pause_s - SHORTEST_PAUSE_S))

    def step(self) -> float:
        """Reconcile all slices that are ready, and remove dead usages; returns after how many seconds to call again."""
        if not self._feed.synced():
            return LONGEST_PAUSE_S
        # All of a step happens at this instant: a key that has to wait is ready in a later step, so a step ends.
        now_s = self._clock()
        self._budget.nodes = len(self._feed.nodes() or ())
        for changed in sorted(self._feed.changed()):
            self._observe(changed, now_s)
        while (namespace := self.locations.due()) is not None and self._refresh_locations(namespace, now_s):
            pass
        figures_wait_s = self._reconcile_ready(now_s)
        self._write_outgoing()
        if now_s >= self._clear_at_s:
            self._clear_at_s = now_s + self._clear_interval_s
            self._remove_dead_usages()
        pause_s = max(min(self._queue.wait_s(now_s), figures_wait_s), SHORTEST_REQUEUE_S)
        return min(pause_s, LONGEST_PAUSE_S, self._clear_interval_s)

    def _observe(self, key: SliceKey, now_s: float) -> None:
        """Queue a slice of which something has changed: its spec, its status, or a usage."""
        record, state = self._feed.slice_record(key), self._states.get(key)
        if record is None or state is None or state.generation != record.spec.generation:
            self.locations.recheck_now(key.namespace)
        if record is None:
            self._queue.discard(key)
            self._states.pop(key, None)
            if not self._feed.slices_in(key.namespace):
                self.locations.forget(key.namespace)
            return
        if state is None:
            # Whoever has written it may have done so just now: a restart is no reason to write sooner.
            written_s = now_s if record.status.observed_generation else NEVER
            state = _SliceState(record.status, record.version, record.spec.generation, written_s, now_s)
            self._states[key] = state
        elif state.status != record.status:
            state.status, state.written_s = record.status, now_s
        state.version, state.generation, state.changed_s = record.version, record.spec.generation, now_s
        self._enqueue(key, state, now_s)

    def _enqueue(self, key: SliceKey, state: _SliceState, now_s: float, after_s: float = 0.0) -> None:
        """Roll a slice up again, as soon as any status of it may be written."""
        state.pending, state.figures_only = None, False
        after_s = max(after_s, state.written_s + TRANSITION_INTERVAL_S - now_s)
        self._queue.add_after(key, after_s, now_s, state.priority)

    def _refresh_locations(self, namespace: str, now_s: float, *, reconciling: SliceKey | None = None) -> bool:
        """List the pods of a namespace; that may concern all of its slices."""
        if not self.locations.refresh(namespace):
            return False
        # In a later step: two slices that both need a list would take turns in this one for as long as there is budget.
        after_s = SHORTEST_REQUEUE_S if reconciling else 0.0
        for record in self._feed.slices_in(namespace):
            key = record.spec.key
            state = self._states.get(key)
            if state is not None and key != reconciling:
                self._enqueue(key, state, now_s, after_s)
        return True

    def _reconcile_ready(self, now_s: float) -> float:
        """Reconcile the slices that are ready; returns in how many seconds a status with new figures may be written."""
        while True:
            wait_s = self._budget.wait_s(now_s, NEVER, figures_only=True)
            # Thousands of slices can wait for the budget: they stay where they are until one of them has its turn.
            key = self._queue.get(now_s, FIGURES if wait_s > 0 else LAST)
            if key is None:
                return wait_s or LONGEST_PAUSE_S
            after_s = self._reconcile_or_retry(key, now_s)
            if after_s is not None:
                self._queue.add_after(key, after_s, now_s, self._states[key].priority)

    def _reconcile_or_retry(self, key: SliceKey, now_s: float) -> float | None:
        try:
            return self._reconcile(key, now_s)
        except Exception:
            # A slice that cannot be reconciled must not keep the others waiting.
            self.counts.failures += 1
            log.exception("slice not reconciled; trying again in %.0f s slice=%s", LONGEST_PAUSE_S, key)
            return LONGEST_PAUSE_S

    def _reconcile(self, key: SliceKey, now_s: float) -> float | None:
        """Bring one slice's status up to date.

        Returns in how many seconds to reconcile it again; None: not before something about it changes.
        """
        record, state = self._feed.slice_record(key), self._states.get(key)
        if record is None or state is None:
            return None
        self._emit_invalid(record, state)
        status = state.pending if record.version == state.version else None
        if status is None:
            status, settled = self._roll_up(record, state, now_s)
            if status == record.status:
                return None if settled else TRANSITION_INTERVAL_S
            state.pending = status if settled else None
            was_behind, state.figures_only = state.figures_only, not is_transition(record.status, status)
            if state.figures_only and not was_behind:
                # Behind all that may be transitions: those have the first choice of what the budget allows.
                return 0.0
        wait_s = self._budget.wait_s(now_s, state.written_s, figures_only=state.figures_only)
        if wait_s > 0:
            return max(wait_s, SHORTEST_REQUEUE_S)
        self._budget.take(now_s, figures_only=state.figures_only)
        self._outgoing[key] = status, record.version
        state.written_s, state.pending = now_s, None
        # By then the object shows whether it was written.
        return TRANSITION_INTERVAL_S

    def _roll_up(self, record: SliceRecord, state: _SliceState, now_s: float) -> tuple[SliceStatus, bool]:
        """The status as it should be, and whether that is all: if not, the pods have still to be listed.

        What it says about pods is that of the last list, as long as it says the same as before and no node reports the
        slice on which the list found no pod of it. Before it says anything else, also than what another controller has
        written, the pods are listed again.
        """
        key = record.spec.key
        seen = self.locations.of(key)
        status = self._status_with(record, seen)
        before, after = _enforced(record.status), _enforced(status)
        fresh = seen is not None and seen.listed_s >= state.changed_s and record.version == state.version
        outdated = seen is not None and is_outdated(seen.nodes, [one.usage for one in self._feed.usages_of(key)])
        settled = fresh or (seen is not None and after == before and not outdated)
        if not settled:
            # Wording alone is no reason to list pods sooner than it could be written.
            figures_due = now_s >= state.written_s + self._budget.figures_interval_s
            if seen is None or outdated or _outline(after) != _outline(before) or figures_due:
                settled = self._refresh_locations(key.namespace, now_s, reconciling=key)
            status = self._status_with(record, self.locations.of(key) if settled else None)
            after = _enforced(status)
        if after is not None and after.status != TRUE and after.reason != NO_PODS:
            self.locations.recheck_soon(key.namespace)
        return status, settled

    def _status_with(self, record: SliceRecord, locations: SliceLocations | None) -> SliceStatus:
        usages = [usage.usage for usage in self._feed.usages_of(record.spec.key)]
        nodes = None if locations is None else locations.nodes
        return roll_up(record.spec, usages, nodes, record.status.conditions, int(self._wall_clock()))

    def _emit_invalid(self, record: SliceRecord, state: _SliceState) -> None:
        """Emit an Event for a wrong spec, once a generation: only agents that run pods of the slice emit it as well."""
        spec = record.spec
        if not spec.errors or state.event_generation == spec.generation:
            return
        # The condition stands in the object: this controller or another one has emitted the Event before.
        emitted = any(one.reason == "InvalidSpec" and one.observed_generation == spec.generation
                   for one in record.status.conditions)  # fmt: skip
        if emitted or self._writer.emit(invalid_event(spec, int(self._wall_clock()))):
            state.event_generation = spec.generation

    def _write_outgoing(self) -> None:
        """Write the statuses that this step has found to be written."""
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, {}
        failures = self._writer.write(outgoing)
        now_s = self._clock()
        for key, (status, _) in outgoing.items():
            self._states[key].written_s = now_s
            if key in failures:
                log.debug("status not written slice=%s reason=%s", key, failures[key])
            else:
                self._states[key].status = status
        self.counts.writes += len(outgoing) - len(failures)
        self.counts.failed_writes += len(failures)

    def _remove_dead_usages(self) -> None:
        """Remove usages whose Node is gone, and those whose period ended long ago and that nobody reports any more."""
        nodes = self._feed.nodes()
        if nodes is None:
            return
        removed = 0
        for record, why in self._dead_usages(nodes):
            if removed == MAX_CLEARED or self._stopping.is_set():
                return
            if self._writer.delete_usage(record.namespace, record.name, record.uid):
                removed += 1
                self.counts.removed_usages += 1
                log.info("usage removed name=%s/%s reason=%s", record.namespace, record.name, why)

    def _dead_usages(self, nodes: frozenset[str]) -> Iterator[tuple[UsageRecord, str]]:
        """Usages to remove, and why. Whether a Node is gone is asked of the API server: the watch may lag behind."""
        over_before_s = int(self._wall_clock()) - OVER_GRACE_S
        vanished: dict[str, bool] = {}
        for record in list(self._feed.usages()):
            node = record.usage.node_name
            if max(record.usage.report.period_end_s, record.usage.reported_at_s) < over_before_s:
                yield record, "its period has ended and nobody reports it any more"
            # Without an owner there never was a Node (an agent outside Kubernetes): then only time tells.
            elif node not in nodes and record.owned:
                if node not in vanished:
                    vanished[node] = self._writer.node_exists(node) is False
                if vanished[node]:
                    yield record, f"node {node} is gone"


def _enforced(status: SliceStatus) -> Condition | None:
    """The condition of a status that depends on where pods run."""
    return next((one for one in status.conditions if one.type == ENFORCED), None)


def _outline(condition: Condition | None) -> tuple[str, str, int] | None:
    """A condition without its wording."""
    return None if condition is None else (condition.status, condition.reason, condition.observed_generation)
