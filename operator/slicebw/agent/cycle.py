"""The cycle: read kernel -> fold counters -> save -> decide -> plan -> apply -> re-read -> report.

Start, error and drift are the same path. Nothing here waits for the API.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from slicebw.agent.gate import NS, Gate
from slicebw.agent.ports import Classifier, Feed, Reporter, Shaper, Store
from slicebw.core.changes import Classification, RemoveRoot, TableChange, TreeChange
from slicebw.core.errors import KernelError, SaveError
from slicebw.core.ledger import Instant, Ledger
from slicebw.core.model import NodeSpec, Snapshot
from slicebw.core.notes import node_note
from slicebw.core.passes import PassInput, PassResult, run_pass
from slicebw.core.plan import unmet
from slicebw.core.rebuild import take_up
from slicebw.core.reports import EventNote, Reason
from slicebw.core.tree import ObservedTree, RootQdisc

log = logging.getLogger(__name__)

TABLE_CHECK_NS: Final = 10 * NS
"""The nftables table sends no notification of its own; it is read again this often."""

RETRY_NS: Final = NS
"""The next pass after one that left something undone."""


@dataclass(slots=True)
class Counts:
    """What the agent has done since it started."""

    passes: int = 0
    failed_passes: int = 0
    changes: int = 0
    failed_changes: int = 0
    failed_saves: int = 0


class Cycle:
    """One node's cycle. Lives in one thread, which stands in the node's network namespace."""

    def __init__(
        self,
        *,
        shaper: Shaper,
        classifier: Classifier,
        feed: Feed,
        store: Store,
        reporter: Reporter,
        clock: Callable[[], Instant],
        gate: Gate,
        uplink: str | None = None,
    ) -> None:
        self.counts = Counts()
        self.synced = False
        self._shaper = shaper
        self._classifier = classifier
        self._feed = feed
        self._store = store
        self._reporter = reporter
        self._clock = clock
        self._gate = gate
        self._uplink = uplink
        self._ledger = Ledger()
        self._saved: Ledger | None = None
        self._recalled = False
        self._last_wishes: Snapshot | None = None
        self._saved_wishes: Snapshot | None = None
        self._table: Classification | None = None
        self._table_read_ns = 0

    def start(self) -> None:
        """Take up the ledger and the last wishes from the store. Never fails: what is lost is said and made anew."""
        ledger, problem = self._store.load_ledger()
        self._ledger = ledger or Ledger(rebuilding=True)
        if problem is not None:
            log.error("ledger not used: %s", problem)
            self._owe(Reason.LEDGER_REBUILT, f"The ledger could not be used and is rebuilt: {problem}")
        self._last_wishes, problem = self._store.load_wishes()
        if problem is not None:
            log.error("last wishes not used: %s", problem)

    def run_once(self) -> int:
        """One pass, whole. Returns the time to the next one in ns. Raises KernelError where nothing could be read."""
        self.counts.passes += 1
        self._forget_delivered()
        snapshot = self._wishes()
        device = snapshot.node.device or self._uplink
        tree = self._shaper.read(device)
        self._leave_old_device(tree, snapshot.node)
        table = self._read_table()
        result = run_pass(PassInput(snapshot, tree, table, self._ledger, self._clock()))
        saved = self._save(result.ledger)
        complete = self._apply(tree, result, saved=saved)
        self._report(result)
        if snapshot.synced:
            self._take_up_reported()
        # Usage is known as of the last pass: one is due whenever a report may be.
        return min(result.next_pass_ns, self._gate.interval_ns if complete else RETRY_NS)

    def close(self) -> None:
        """Free what the kernel ports hold. The kernel stays as it is."""
        self._shaper.close()

    def distrust_table(self) -> None:
        """Read the nftables table again on the next pass."""
        self._table = None

    def _wishes(self) -> Snapshot:
        """What the feed knows; before its first complete list, what the last agent knew.

        If even that is lost, the mode at least is the last one: a node that is left alone is not taken over meanwhile.
        """
        snapshot = self._feed.snapshot()
        self.synced = snapshot.synced
        if not snapshot.synced:
            node = replace(snapshot.node, mode=snapshot.node.mode or self._ledger.mode)
            return self._last_wishes or replace(snapshot, node=node)
        if snapshot != self._saved_wishes:
            self._last_wishes = snapshot
            try:
                self._store.save_wishes(snapshot)
                self._saved_wishes = snapshot
            except SaveError as error:
                self._count_failed_save(error)
        return snapshot

    def _leave_old_device(self, tree: ObservedTree, node: NodeSpec) -> None:
        """If the uplink is another device now: count what the old one still sent, and leave it as it was found."""
        old = self._ledger.device
        if old in {"", tree.device} or not self._ledger.had_tree:
            return
        log.warning("uplink changed old=%s new=%s", old, tree.device)
        self._owe(Reason.UPLINK_CHANGED, f"The uplink is {tree.device} now, it was {old}; usage continues")
        try:
            left = self._shaper.read(old)
        except KernelError as error:
            log.warning("old uplink cannot be read device=%s reason=%s", old, error)
            return
        if left.root is not RootQdisc.OURS:
            return
        result = run_pass(PassInput(Snapshot(node=node), left, Classification(), self._ledger, self._clock()))
        self._save(result.ledger)
        for failed in self._shaper.apply(old, (RemoveRoot(),), result.settings.line_rate_bps):
            log.error("change refused change=%s reason=%s", failed.change, failed.reason)

    def _read_table(self) -> Classification:
        now_ns = self._clock().boot_ns
        if self._table is None or now_ns - self._table_read_ns >= TABLE_CHECK_NS:
            self._table_read_ns = now_ns
            try:
                self._table = self._classifier.read()
            except KernelError as error:  # classes and caps do not wait for the table
                log.error("table cannot be read: %s", error)
                return Classification()
        return self._table

    def _save(self, ledger: Ledger) -> bool:
        """Save before anything is applied: applying can destroy counters, and a class id must outlive a crash."""
        self._ledger = ledger
        if self._saved is not None and replace(self._saved, read_at=ledger.read_at) == ledger:
            return True
        try:
            self._store.save_ledger(ledger)
        except SaveError as error:
            self._count_failed_save(error)
            return False
        self._saved = ledger
        return True

    def _apply(self, tree: ObservedTree, result: PassResult, *, saved: bool) -> bool:
        """Carry the changes out, look again, and say whether all of them hold."""
        changes = tuple(change for change in result.tree_changes if saved or not change.destroys)
        complete = len(changes) == len(result.tree_changes)
        if changes:
            complete &= self._apply_tree(tree.device, changes, result.settings.line_rate_bps)
        if result.table_change is not None:
            complete &= self._apply_table(result.table_change)
        return complete

    def _apply_table(self, change: TableChange) -> bool:
        log.info("table change=%s", change)
        self.counts.changes += 1
        self._table = None  # look again on the next pass
        try:
            self._classifier.apply(change)
        except KernelError as error:
            self.counts.failed_changes += 1
            log.error("change refused change=%s reason=%s", change, error)
            return False
        return True

    def _apply_tree(self, device: str, changes: tuple[TreeChange, ...], line_rate_bps: int) -> bool:
        for change in changes:
            log.info("tree device=%s change=%s", device, change)
        refused = self._shaper.apply(device, changes, line_rate_bps)
        for failed in refused:
            log.error("change refused device=%s change=%s reason=%s", device, failed.change, failed.reason)
        open_changes = unmet(changes, self._shaper.read(device))
        self.counts.changes += len(changes)
        self.counts.failed_changes += len(open_changes)
        return not open_changes

    def _report(self, result: PassResult) -> None:
        now_ns = self._clock().boot_ns
        due, over = self._gate.due(result.usages, now_ns)
        node = result.node if self._gate.node_due(result.node, now_ns) else None
        self._reporter.report(due, over, result.ledger.outbox, node)

    def _take_up_reported(self) -> None:
        """Once, as soon as it is known: go on from what an earlier agent reported, if its ledger is lost.

        Reports of slices that the ledger does not know are of periods that are over: they are removed.
        """
        if self._recalled or (reported := self._reporter.reported()) is None:
            return
        self._recalled = True
        if self._ledger.rebuilding:
            self._ledger = take_up(self._ledger, reported, self._clock())
            log.info("ledger rebuilt slices=%d reported=%d", len(self._ledger.slices), len(reported))
        stale = [report.key for report in reported if report.key not in self._ledger.slices]
        self._reporter.report((), stale, (), None)

    def _forget_delivered(self) -> None:
        delivered = self._reporter.delivered()
        if delivered:
            outbox = tuple(note for note in self._ledger.outbox if note.id not in delivered)
            self._ledger = replace(self._ledger, outbox=outbox)

    def _owe(self, reason: Reason, message: str) -> None:
        note: EventNote = node_note(reason, message, self._clock().wall_s)
        self._ledger = replace(self._ledger, outbox=(*self._ledger.outbox, note))

    def _count_failed_save(self, error: SaveError) -> None:
        self.counts.failed_saves += 1
        log.error("not saved, going on in memory: %s", error)
