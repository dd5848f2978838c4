"""The controller's loop: keeps every SliceBandwidth's status true at a bounded rate, and clears away dead usages.

Several controllers may run at once. None is the leader: a status is written only over the very object that it was made
for (the API server compares resourceVersions), figures wait until nobody has written for an interval, and who would
contradict what another has said about pods looks at them first. So of two that agree one writes, and one that lags
behind is refused, whatever it believes.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from slicebw.api.conditions import TRUE, Condition
from slicebw.api.slice_bandwidth import SliceStatus
from slicebw.controller.budget import WRITES_PER_S, WriteBudget
from slicebw.controller.census import Census
from slicebw.controller.ports import ClusterFeed, ClusterWriter, SliceRecord, UsageRecord
from slicebw.controller.rollup import ENFORCED, NO_PODS, is_outdated, is_transition, roll_up
from slicebw.core.model import SliceKey
from slicebw.core.notes import invalid_note

log = logging.getLogger(__name__)

STATUS_INTERVAL_S: Final = 10.0
"""A slice's figures are written at most this often, by all controllers together."""

TRANSITION_INTERVAL_S: Final = 1.0
"""And its transitions this often: a slice that comes up on a thousand nodes has a thousand of them."""

CLEAR_INTERVAL_S: Final = 30.0

OVER_GRACE_S: Final = 3600
"""A usage whose period ended this long ago, and that nobody has reported for as long, is nobody's any more."""

MAX_CLEARED: Final = 200
"""Usages removed at a time, so that the statuses do not wait for long."""

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
class _Known:
    """What the loop remembers of a slice. Times are on the monotonic clock.

    ``written_s`` is when its status last changed as far as we saw, by whoever's hand, or when we last tried to change
    it; ``changed_s`` when anything about it was last seen to change; ``not_before_s`` when it is to be rolled up again,
    unless something changes before.
    """

    status: SliceStatus
    version: str
    generation: int
    written_s: float
    changed_s: float
    not_before_s: float = float("-inf")
    ready: SliceStatus | None = None
    """A status that waits for the budget: while nothing about the slice changes it is not rolled up again."""
    is_transition: bool = False
    """Whether the one that waits is."""
    told_generation: int = 0


@dataclass(slots=True)
class _Due:
    """Statuses to write now, each with the version of the object it is for, and when the next one is due."""

    transitions: dict[SliceKey, tuple[SliceStatus, str]] = field(default_factory=dict)
    figures: dict[SliceKey, tuple[SliceStatus, str]] = field(default_factory=dict)
    wait_s: float = LONGEST_PAUSE_S


class StatusLoop:
    """Rolls up and writes. Keeps no state that matters: a restart, or a second controller, changes nothing."""

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
        self.census = Census(feed, writer, clock)
        self._feed, self._writer = feed, writer
        self._status_interval_s = status_interval_s
        self._clear_interval_s = clear_interval_s
        self._clock, self._wall_clock = clock, wall_clock
        self._known: dict[SliceKey, _Known] = {}
        self._dirty: set[SliceKey] = set()
        self._budget = WriteBudget(clock, writes_per_s)
        self._clear_at = clock()
        self._woken = threading.Event()
        self._stopping = threading.Event()

    @property
    def waiting(self) -> int:
        """Slices whose status may not be what it should be. Callable from any thread."""
        return len(self._dirty)

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
        """Write what is due, clear away what is dead; returns the time in seconds until something may be due again."""
        if not self._feed.synced():
            return LONGEST_PAUSE_S
        now = self._clock()
        for key in self._feed.changed():
            self._note(key, now)
        for namespace in list(self.census.due()):
            if not self._look(namespace):
                break
        due = self._due(now)
        nodes = self._feed.nodes()
        chosen = self._budget.choose(due.transitions, due.figures, None if nodes is None else len(nodes))
        if chosen:
            self._write({key: due.transitions.get(key) or due.figures[key] for key in chosen})
        if now >= self._clear_at:
            self._clear_at = now + self._clear_interval_s
            self._clear_dead()
        pause_s = min(due.wait_s, self._clear_interval_s)
        left = len(due.transitions) + len(due.figures) - len(chosen)
        return min(pause_s, max(self._budget.pause_s, 0.05)) if left else pause_s

    def _note(self, key: SliceKey, now: float) -> None:
        """Something about a slice has changed: its spec, its status, or a usage."""
        record, known = self._feed.slice_record(key), self._known.get(key)
        if record is None or known is None or known.generation != record.spec.generation:
            self.census.distrust(key.namespace)
        if record is None:
            self._dirty.discard(key)
            self._known.pop(key, None)
            if not self._feed.slices_in(key.namespace):
                self.census.forget(key.namespace)
            return
        self._dirty.add(key)
        if known is None:
            # Whoever has written it may have done so just now: a restart is no reason to write sooner.
            written_s = now if record.status.observed_generation else float("-inf")
            self._known[key] = _Known(record.status, record.version, record.spec.generation, written_s, now)
            return
        if known.status != record.status:
            known.status, known.written_s = record.status, now
        known.version, known.generation, known.ready = record.version, record.spec.generation, None
        known.changed_s, known.not_before_s = now, float("-inf")

    def _look(self, namespace: str) -> bool:
        """Look at the pods of a namespace; what it shows may concern all of its slices."""
        if not self.census.look(namespace):
            return False
        for record in self._feed.slices_in(namespace):
            known = self._known.get(record.spec.key)
            if known is not None:
                known.not_before_s, known.ready = float("-inf"), None
                self._dirty.add(record.spec.key)
        return True

    def _due(self, now: float) -> _Due:
        """Statuses to write now, those that were not written for longest first."""
        due = _Due()
        for key in sorted(self._dirty, key=lambda key: (self._known[key].written_s, key)):
            known, record = self._known[key], self._feed.slice_record(key)
            earliest_s = max(known.written_s + TRANSITION_INTERVAL_S, known.not_before_s)
            if record is None or now < earliest_s:
                due.wait_s = min(due.wait_s, max(0.0, earliest_s - now))
                continue
            self._tell(record, known)
            status = known.ready if record.version == known.version else None
            if status is None:
                status, wait_s = self._decide(record, known, now)
                due.wait_s = min(due.wait_s, wait_s)
            if status is not None:
                chosen = due.transitions if known.is_transition else due.figures
                chosen[key] = status, record.version
        return due

    def _decide(self, record: SliceRecord, known: _Known, now: float) -> tuple[SliceStatus | None, float]:
        """Roll a slice up: its status if it is to be written now, else in how many seconds to look again."""
        figures_s = known.written_s + self._status_interval_s
        status, settled = self._roll_up(record, known, figures_due=now >= figures_s)
        if status == record.status:
            if settled:
                self._dirty.discard(record.spec.key)
                return None, LONGEST_PAUSE_S
            known.not_before_s = now + TRANSITION_INTERVAL_S
            return None, TRANSITION_INTERVAL_S
        known.is_transition = is_transition(record.status, status)
        if known.is_transition or now >= figures_s:
            known.ready = status if settled else None
            return status, LONGEST_PAUSE_S
        known.not_before_s = figures_s
        return None, figures_s - now

    def _roll_up(self, record: SliceRecord, known: _Known, *, figures_due: bool) -> tuple[SliceStatus, bool]:
        """The status as it should be, and whether that is all: else where the pods run has still to be looked up.

        What it says about pods is that of the last look, as long as it says the same as before and no node reports the
        slice that the look had not found it on. Before it says anything else, also than what another controller has
        written, the pods are looked at again.
        """
        key = record.spec.key
        look = self.census.of(key)
        status = self._with_places(record)
        before, after = _enforced(record.status), _enforced(status)
        fresh = look is not None and look.at_s >= known.changed_s and record.version == known.version
        outdated = look is not None and is_outdated(look.places, [one.usage for one in self._feed.usages_of(key)])
        settled = fresh or (look is not None and after == before and not outdated)
        if not settled:
            # Wording alone is no reason to look sooner than it could be written.
            if look is None or outdated or _verdict(after) != _verdict(before) or figures_due:
                settled = self._look(key.namespace)
            status = self._with_places(record, keep=not settled)
            after = _enforced(status)
        if after is not None and after.status != TRUE and after.reason != NO_PODS:
            self.census.hurry(key.namespace)
        return status, settled

    def _with_places(self, record: SliceRecord, *, keep: bool = False) -> SliceStatus:
        look = None if keep else self.census.of(record.spec.key)
        usages = [usage.usage for usage in self._feed.usages_of(record.spec.key)]
        places = None if look is None else look.places
        return roll_up(record.spec, usages, places, record.status.conditions, int(self._wall_clock()))

    def _tell(self, record: SliceRecord, known: _Known) -> None:
        """An Event for a spec that is wrong: agents tell it, too, but only those that run pods of the slice."""
        spec = record.spec
        if not spec.errors or known.told_generation == spec.generation:
            return
        said = any(one.reason == "InvalidSpec" and one.observed_generation == spec.generation
                   for one in record.status.conditions)  # fmt: skip
        if said or self._writer.tell(invalid_note(spec, int(self._wall_clock()))):
            known.told_generation = spec.generation

    def _write(self, statuses: Mapping[SliceKey, tuple[SliceStatus, str]]) -> None:
        failures = self._writer.write(statuses)
        now = self._clock()
        for key, (status, _) in statuses.items():
            self._known[key].written_s, self._known[key].ready = now, None
            if key in failures:
                log.debug("status not written slice=%s reason=%s", key, failures[key])
            else:
                self._known[key].status = status
        self.counts.writes += len(statuses) - len(failures)
        self.counts.failed_writes += len(failures)

    def _clear_dead(self) -> None:
        """Remove usages whose Node has vanished, and those that were over long ago and that nobody renews."""
        nodes = self._feed.nodes()
        if nodes is None:
            return
        cleared = 0
        for record, why in self._dead(nodes):
            if cleared == MAX_CLEARED or self._stopping.is_set():
                return
            if self._writer.delete_usage(record.namespace, record.name, record.uid):
                cleared += 1
                self.counts.removed_usages += 1
                log.info("usage removed name=%s/%s reason=%s", record.namespace, record.name, why)

    def _dead(self, nodes: frozenset[str]) -> Iterator[tuple[UsageRecord, str]]:
        """Usages to remove, and why. That a Node has vanished is asked of the API server itself."""
        over_before_s = int(self._wall_clock()) - OVER_GRACE_S
        vanished: dict[str, bool] = {}
        for record in list(self._feed.usages()):
            node = record.usage.node_name
            if max(record.usage.report.period_end_s, record.usage.reported_at_s) < over_before_s:
                yield record, "its period is over and nobody renews it"
            # Without an owner there never was a Node (an agent outside Kubernetes): then only time tells.
            elif node not in nodes and record.owned:
                if node not in vanished:
                    vanished[node] = self._writer.node_exists(node) is False
                if vanished[node]:
                    yield record, f"node {node} is gone"


def _enforced(status: SliceStatus) -> Condition | None:
    """What a status says about nodes and pods."""
    return next((one for one in status.conditions if one.type == ENFORCED), None)


def _verdict(condition: Condition | None) -> tuple[str, str, int] | None:
    """A condition without its wording."""
    return None if condition is None else (condition.status, condition.reason, condition.observed_generation)
