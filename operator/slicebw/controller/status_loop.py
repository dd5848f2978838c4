"""The controller's loop: keeps the status of each SliceBandwidth equal to what the nodes report.

A work queue holds the keys of the slices whose status may be out of date, as controller-runtime's does. A change of a
slice, of its usages or of its pods does nothing but add the key. Reconciling a key compares the status that the reports
amount to with the status in the object, and says when to reconcile it again. So it does not matter which changes came,
in which order, or how many at once.

A step of the loop queues what has changed, lists pods where that is due (pod_locations), reconciles the keys that are
ready, and then writes the statuses that may be written now (write_budget) all together.

Several controllers may run at once, and none is the leader. Three rules keep them from overwriting each other:

- A status is written only over the version of the object that it was made for: the API server compares
  resourceVersions.
- Figures wait until no controller has written the slice's status for an interval.
- Before a controller writes a condition about pods that differs from the one in the object, it lists the pods.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from slicebw.api.conditions import TRUE, Condition
from slicebw.api.slice_bandwidth import SliceRecord, SliceStatus
from slicebw.controller.dead_usages import DeadUsages
from slicebw.controller.pod_locations import PodLocations, SliceLocations
from slicebw.controller.ports import ClusterFeed, ClusterWriter
from slicebw.controller.rollup import ENFORCED, NO_PODS, is_outdated, is_transition, roll_up
from slicebw.controller.stats import Stats
from slicebw.controller.work_queue import LAST, NORMAL, Priority, WorkQueue
from slicebw.controller.write_budget import STATUS_INTERVAL_S, TRANSITION_INTERVAL_S, WRITES_PER_S, WriteBudget
from slicebw.core.desired import SliceKey
from slicebw.core.events import invalid_event

log = logging.getLogger(__name__)

CLEAR_INTERVAL_S: Final = 30.0
"""How often dead usages are looked for."""

NEVER: Final = float("-inf")
FIGURES: Final[Priority] = (1, NEVER)
"""The first priority of slices of which only figures and wording have changed."""

SHORTEST_REQUEUE_S: Final = 0.05
"""A slice that waits is not reconciled again sooner, so that steps do not follow each other too closely."""
SHORTEST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 5.0


@dataclass(slots=True)
class _SliceState:
    """What the loop remembers of one slice. Instants are of the monotonic clock, in seconds."""

    status: SliceStatus
    """The status in the object, as last observed or written."""
    version: str
    """The object's resourceVersion, as last observed; so is ``generation``."""
    generation: int
    written_s: float
    """When a changed status was last observed, whoever wrote it, or when this controller last tried to write one."""
    changed_s: float
    """When a change of the slice or of one of its usages was last observed."""
    pending: SliceStatus | None = None
    """A status that waits until it may be written. It is reused until something about the slice changes."""
    figures_only: bool = False
    """Whether the last roll-up since a change found that only figures and wording differ."""
    event_generation: int = 0
    """The newest generation for which the Event about an invalid spec is emitted."""

    @property
    def priority(self) -> Priority:
        """What may be a transition goes first, then the slice whose status was written longest ago."""
        return FIGURES[0] if self.figures_only else NORMAL[0], self.written_s


class StatusLoop:
    """Reconciles slices and writes their statuses. All that it remembers can be lost: a restart changes no status."""

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
        self.stats = Stats()
        self._feed, self._writer = feed, writer
        self._clock, self._wall_clock = clock, wall_clock
        self._locations = PodLocations(feed, writer, self.stats, clock)
        self._dead_usages = DeadUsages(feed, writer, self.stats, wall_clock)
        self._clear_interval_s = clear_interval_s
        self._clear_at_s = clock()
        self._states: dict[SliceKey, _SliceState] = {}
        self._queue = WorkQueue[SliceKey]()
        self._budget = WriteBudget(clock(), writes_per_s, status_interval_s)
        self._outgoing: dict[SliceKey, tuple[SliceStatus, str]] = {}
        self._woken = threading.Event()
        self._stopping = threading.Event()

    @property
    def waiting(self) -> int:
        """The number of slices whose status may be out of date. Callable from any thread."""
        return len(self._queue)

    def wake(self) -> None:
        """End the pause between two steps: something changed. Callable from any thread."""
        self._woken.set()

    def stop(self) -> None:
        """End :meth:`run` after the present step. Callable from any thread."""
        self._stopping.set()
        self._woken.set()

    def run(self) -> None:
        """Run step after step, until :meth:`stop`. An exception in a step is logged, and the next step is made."""
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                pause_s = self.step()
            except Exception:
                self.stats.failures += 1
                log.exception("a step of the controller failed; trying again in %.0f s", LONGEST_PAUSE_S)
                pause_s = LONGEST_PAUSE_S
            # Changes come by the hundred: those of half a second are rolled up in one step.
            self._stopping.wait(min(pause_s, SHORTEST_PAUSE_S))
            self._woken.wait(max(0.0, pause_s - SHORTEST_PAUSE_S))

    def step(self) -> float:
        """Bring up to date all statuses that may be written now. Returns the seconds until the next step is due."""
        if not self._feed.synced():
            return LONGEST_PAUSE_S
        # One instant for the whole step: a key that has to wait is ready in a later step, so every step ends.
        now_s = self._clock()
        self._budget.nodes = len(self._feed.nodes() or ())
        for changed in sorted(self._feed.changed()):
            self._observe(changed, now_s)
        while (namespace := self._locations.due()) is not None and self._list_pods(namespace, now_s):
            pass
        self._reconcile_ready(now_s)
        self._write_outgoing()
        if now_s >= self._clear_at_s:
            self._clear_at_s = now_s + self._clear_interval_s
            self._dead_usages.remove(self._stopping.is_set)
        return self._pause_s(now_s)

    def _observe(self, key: SliceKey, now_s: float) -> None:
        """Queue a slice of which something has changed: its spec, its status, or a usage."""
        record, state = self._feed.slice_record(key), self._states.get(key)
        if record is None or state is None or state.generation != record.spec.generation:
            # Its podSelector may be another one now, and that moves pods between the slices of the namespace.
            self._locations.recheck_now(key.namespace)
        if record is None:
            self._forget(key)
            return
        if state is None:
            # Somebody may have written this status just now: a restart is no reason to write the next one sooner.
            written_s = now_s if record.status.observed_generation else NEVER
            state = _SliceState(record.status, record.version, record.spec.generation, written_s, now_s)
            self._states[key] = state
        elif state.status != record.status:
            state.status, state.written_s = record.status, now_s
        state.version, state.generation, state.changed_s = record.version, record.spec.generation, now_s
        self._enqueue(key, state, now_s)

    def _forget(self, key: SliceKey) -> None:
        """Drop a slice that is gone."""
        self._queue.discard(key)
        self._states.pop(key, None)
        if not self._feed.slices_in(key.namespace):
            self._locations.forget(key.namespace)

    def _enqueue(self, key: SliceKey, state: _SliceState, now_s: float, after_s: float = 0.0) -> None:
        """Queue a slice to be rolled up again, as soon as any status of it may be written."""
        state.pending, state.figures_only = None, False
        after_s = max(after_s, self._budget.interval_wait_s(now_s, state.written_s, figures_only=False))
        self._queue.add_after(key, after_s, now_s, state.priority)

    def _list_pods(self, namespace: str, now_s: float, *, reconciling: SliceKey | None = None) -> bool:
        """List the pods of a namespace, and queue its slices but the one that is being reconciled.

        Returns false if the budget for lists is spent or the API server does not answer.
        """
        if not self._locations.refresh(namespace):
            return False
        # In a later step: two slices that both need a list would take turns in this one for as long as there is budget.
        after_s = SHORTEST_REQUEUE_S if reconciling else 0.0
        for record in self._feed.slices_in(namespace):
            key = record.spec.key
            state = self._states.get(key)
            if state is not None and key != reconciling:
                self._enqueue(key, state, now_s, after_s)
        return True

    def _reconcile_ready(self, now_s: float) -> None:
        """Reconcile the slices that are ready, and queue each again for when it asks for."""
        while True:
            # Thousands of slices can wait for the budget of figures. While it is spent they stay in the queue.
            may_write_figures = self._budget.wait_s(now_s, NEVER, figures_only=True) == 0
            key = self._queue.get(now_s, LAST if may_write_figures else FIGURES)
            if key is None:
                return
            try:
                after_s = self._reconcile(key, now_s)
            except Exception:
                # A slice that cannot be reconciled must not keep the others waiting.
                self.stats.failures += 1
                log.exception("slice not reconciled; trying again in %.0f s slice=%s", LONGEST_PAUSE_S, key)
                after_s = LONGEST_PAUSE_S
            if after_s is not None:
                self._queue.add_after(key, after_s, now_s, self._states[key].priority)

    def _reconcile(self, key: SliceKey, now_s: float) -> float | None:
        """Bring one slice's status up to date.

        Returns the seconds after which to reconcile it again; None: not before something about it changes.
        """
        record, state = self._feed.slice_record(key), self._states.get(key)
        if record is None or state is None:
            return None
        self._emit_invalid(record, state)
        status = state.pending if record.version == state.version else None
        if status is None:
            status, complete = self._roll_up(record, state, now_s)
            if status == record.status:
                return None if complete else TRANSITION_INTERVAL_S
            state.pending = status if complete else None
            was_figures_only, state.figures_only = state.figures_only, not is_transition(record.status, status)
            if state.figures_only and not was_figures_only:
                # Back into the queue at its lower priority: transitions have the first choice of the budget.
                return 0.0
        wait_s = self._budget.wait_s(now_s, state.written_s, figures_only=state.figures_only)
        if wait_s > 0:
            return max(wait_s, SHORTEST_REQUEUE_S)
        self._budget.take(now_s, figures_only=state.figures_only)
        self._outgoing[key] = status, record.version
        state.written_s, state.pending = now_s, None
        # By then the object shows whether it was written: if not, this makes it again.
        return TRANSITION_INTERVAL_S

    def _roll_up(self, record: SliceRecord, state: _SliceState, now_s: float) -> tuple[SliceStatus, bool]:
        """Return the status as it should be, and whether it is complete.

        A status is incomplete until the slice's pods have been listed; until then it keeps the object's condition
        Enforced.

        The last list of pods is good enough as long as it leads to the condition that the object has. Before the
        condition becomes another one, whichever controller wrote it, the pods are listed again.
        """
        key = record.spec.key
        last = self._locations.of(key)
        status = self._status_with(record, last)
        before, after = _enforced(record.status), _enforced(status)
        # Nothing of the slice was seen to change since this list was begun.
        fresh = last is not None and last.listed_s >= state.changed_s and record.version == state.version
        outdated = last is not None and is_outdated(last.nodes, [one.usage for one in self._feed.usages_of(key)])
        complete = fresh or (last is not None and after == before and not outdated)
        if not complete:
            # If only the wording differs, there is no use in a list before the wording may be written.
            may_be_written = self._budget.interval_wait_s(now_s, state.written_s, figures_only=True) == 0
            if last is None or outdated or _without_message(after) != _without_message(before) or may_be_written:
                complete = self._list_pods(key.namespace, now_s, reconciling=key)
            status = self._status_with(record, self._locations.of(key) if complete else None)
            after = _enforced(status)
        if after is not None and after.status != TRUE and after.reason != NO_PODS:
            self._locations.recheck_soon(key.namespace)
        return status, complete

    def _status_with(self, record: SliceRecord, locations: SliceLocations | None) -> SliceStatus:
        usages = [usage.usage for usage in self._feed.usages_of(record.spec.key)]
        nodes = None if locations is None else locations.nodes
        return roll_up(record.spec, usages, nodes, record.status.conditions, int(self._wall_clock()))

    def _emit_invalid(self, record: SliceRecord, state: _SliceState) -> None:
        """Emit an Event for an invalid spec, once a generation.

        Agents emit the same Event, but only those that run pods of the slice.
        """
        spec = record.spec
        if not spec.errors or state.event_generation == spec.generation:
            return
        # If the object has the condition already, this controller or another one has emitted the Event.
        emitted = any(
            one.reason == "InvalidSpec" and one.observed_generation == spec.generation
            for one in record.status.conditions
        )
        if emitted or self._writer.emit(invalid_event(spec, int(self._wall_clock()))):
            state.event_generation = spec.generation

    def _write_outgoing(self) -> None:
        """Write the statuses that this step has decided to write."""
        if not self._outgoing:
            return
        outgoing, self._outgoing = self._outgoing, {}
        failures = self._writer.write(outgoing)
        # The calls may have taken long: the intervals begin now.
        now_s = self._clock()
        for key, (status, _) in outgoing.items():
            self._states[key].written_s = now_s
            if key in failures:
                log.debug("status not written slice=%s reason=%s", key, failures[key])
            else:
                self._states[key].status = status
        self.stats.writes += len(outgoing) - len(failures)
        self.stats.failed_writes += len(failures)

    def _pause_s(self, now_s: float) -> float:
        """Return the seconds until a key is ready, or until figures that wait for the budget may be written."""
        figures_wait_s = self._budget.wait_s(now_s, NEVER, figures_only=True) or LONGEST_PAUSE_S
        pause_s = max(min(self._queue.wait_s(now_s), figures_wait_s), SHORTEST_REQUEUE_S)
        return min(pause_s, LONGEST_PAUSE_S, self._clear_interval_s)


def _enforced(status: SliceStatus) -> Condition | None:
    """The condition of a status that depends on where pods run."""
    return next((one for one in status.conditions if one.type == ENFORCED), None)


def _without_message(condition: Condition | None) -> tuple[str, str, int] | None:
    return None if condition is None else (condition.status, condition.reason, condition.observed_generation)
