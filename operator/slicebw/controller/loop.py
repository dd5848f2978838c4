"""The controller's loop: keeps every SliceBandwidth's status true at a bounded rate, and clears away dead usages."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from slicebw.api.slice_bandwidth import SliceStatus
from slicebw.controller.budget import WRITES_PER_S, WriteBudget
from slicebw.controller.ports import ClusterFeed, ClusterWriter, UsageRecord
from slicebw.controller.rollup import is_transition, roll_up
from slicebw.core.model import SliceKey

log = logging.getLogger(__name__)

STATUS_INTERVAL_S: Final = 10.0
"""A slice's figures are written at most this often."""

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
        self._feed, self._writer = feed, writer
        self._status_interval_s = status_interval_s
        self._clear_interval_s = clear_interval_s
        self._clock, self._wall_clock = clock, wall_clock
        self._dirty: set[SliceKey] = set()
        self._tried_at: dict[SliceKey, float] = {}
        self._budget = WriteBudget(clock, writes_per_s)
        self._clear_at = clock()
        self._woken = threading.Event()
        self._stopping = threading.Event()

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
        self._dirty |= self._feed.changed()
        now = self._clock()
        transitions, figures, wait_s = self._due(now)
        due = {**transitions, **figures}
        nodes = self._feed.nodes()
        chosen = self._budget.choose(transitions, figures, None if nodes is None else len(nodes))
        if chosen:
            self._write({key: due[key] for key in chosen})
        if now >= self._clear_at:
            self._clear_at = now + self._clear_interval_s
            self._clear_dead()
        pause_s = min(wait_s, self._clear_interval_s, LONGEST_PAUSE_S)
        return min(pause_s, max(self._budget.pause_s, 0.05)) if len(chosen) < len(due) else pause_s

    def _due(self, now: float) -> tuple[dict[SliceKey, SliceStatus], dict[SliceKey, SliceStatus], float]:
        """Transitions and mere figures to write now, and the time until the next of the others is due."""
        transitions: dict[SliceKey, SliceStatus] = {}
        figures: dict[SliceKey, SliceStatus] = {}
        wait_s = LONGEST_PAUSE_S
        for key in sorted(self._dirty, key=lambda key: (self._tried_at.get(key, 0.0), key)):
            since = now - self._tried_at.get(key, float("-inf"))
            if since < TRANSITION_INTERVAL_S:
                wait_s = min(wait_s, TRANSITION_INTERVAL_S - since)
                continue
            record = self._feed.slice_record(key)
            status = None
            if record is not None:
                usages = [usage.usage for usage in self._feed.usages_of(key)]
                status = roll_up(record.spec, usages, record.status.conditions, int(self._wall_clock()))
            if record is None or status is None or status == record.status:
                self._dirty.discard(key)
                if record is None:
                    self._tried_at.pop(key, None)
            elif is_transition(record.status, status):
                transitions[key] = status
            elif since >= self._status_interval_s:
                figures[key] = status
            else:
                wait_s = min(wait_s, self._status_interval_s - since)
        return transitions, figures, wait_s

    def _write(self, statuses: Mapping[SliceKey, SliceStatus]) -> None:
        failures = self._writer.write(statuses)
        now = self._clock()
        for key in statuses:
            self._tried_at[key] = now
            if key in failures:
                log.debug("status not written slice=%s reason=%s", key, failures[key])
            else:
                # If it is not what it should be now, the feed will say so.
                self._dirty.discard(key)
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
