"""The reconciler: read kernel -> fold counters -> save -> decide -> plan -> apply -> re-read -> report.

Start, error and drift are the same path. Nothing here waits for the API.
"""

import logging
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from slicebw.agent.desired_state import DesiredStateMachine, PreviousReports, Restore
from slicebw.agent.ports import Ports
from slicebw.agent.report_throttle import ReportThrottle
from slicebw.agent.stats import Stats
from slicebw.agent.transition_log import transitions
from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import (
    DeleteClass,
    NftTable,
    ObservedTree,
    RemoveRoot,
    RootQdisc,
    TableChange,
    TreeChange,
    slice_id_of,
)
from slicebw.core.desired import DesiredState, NodeSpec
from slicebw.core.errors import KernelError, SaveError
from slicebw.core.events import node_event
from slicebw.core.ledger import Ledger, PendingEvent, Reason
from slicebw.core.node_pass import PassInput, PassResult, run_pass
from slicebw.core.plan import drift_repairs, unmet
from slicebw.core.reports import UsageReport

log = logging.getLogger(__name__)

RETRY_NS: Final = NS
"""The next pass after one that left something undone."""


class Reconciler:
    """One node's reconciler. Lives in one thread, which stands in the node's network namespace.

    Args:
        ports: all that it is connected to.
        clock: reads both clocks.
        throttle: tells which reports are due.
        uplink: the device to shape where the node's settings name none; None: the default route's.
    """

    def __init__(
        self, ports: Ports, clock: Callable[[], Instant], throttle: ReportThrottle, uplink: str | None = None
    ) -> None:
        self.stats = Stats()
        self.synced = False
        """Whether the last pass that ended well was made on the feed's own complete list."""
        self.last: PassResult | None = None
        """The result of the last pass that ended well. It is a value: any thread may read it."""
        self._ports = ports
        self._clock = clock
        self._throttle = throttle
        self._uplink = uplink
        self._ledger = Ledger()
        self._saved: Ledger | None = None
        self._save_trouble = ""
        """Why the last save failed; logged once."""
        self._desired = DesiredStateMachine()
        self._previous = PreviousReports(self._ledger)
        self._held: PassResult | None = None
        """The last result, if all of it was seen to hold. Anything that differs later is drift."""

    def start(self) -> None:
        """Load the ledger and the last desired state. Never fails: what cannot be used is logged and rebuilt."""
        ledger, problem = self._ports.store.load_ledger()
        self._ledger = ledger or Ledger(rebuilding=True)
        if problem is not None:
            log.error("ledger not used: %s", problem)
            self._emit(Reason.LEDGER_REBUILT, f"The ledger could not be used and is rebuilt: {problem}")
        self._previous = PreviousReports(self._ledger)
        desired, problem = self._ports.store.load_desired_state()
        self._desired = DesiredStateMachine(desired)
        if problem is not None:
            log.error("last desired state not used: %s", problem)

    def run_once(self) -> int:
        """One whole pass. Returns the time to the next one in ns. Raises KernelError where nothing could be read."""
        self.stats.passes += 1
        begun_ns = self._clock().boot_ns
        self._forget_acknowledged()
        desired = self._desired_state()
        device = desired.node.device or self._uplink
        tree = self._ports.shaper.read(device)
        self._leave_old_device(tree, desired.node)
        table = self._read_table()
        result = run_pass(PassInput(desired, tree, table, self._ledger, self._clock()), self.last)
        for line in transitions(self._ledger, result.ledger):
            log.info("%s", line)
        # Before anything is applied: applying can destroy counters, and a slice id must outlive a crash.
        saved = self._save(result.ledger)
        self._count_repairs(result)
        held = self._apply(tree, result, saved=saved)
        merged = desired.synced and self._restore_from_reports(result)
        # Own usage reports would overwrite those that the ledger is rebuilt from; and where these have just been
        # merged, the figures of this pass are still without them.
        incomplete = merged or self._previous.withhold_own
        self._report(result, () if incomplete else result.usages)
        self.last, self._held = result, result if held else None
        self.synced = self._desired.state.is_listed
        self.stats.durations.observe(max(0, self._clock().boot_ns - begun_ns))
        # Usage is known as of the last pass: one is due whenever a report may be.
        return min(result.next_pass_ns, self._throttle.interval_ns if held and not incomplete else RETRY_NS)

    def close(self) -> None:
        """Free what the kernel ports hold. The kernel stays as it is."""
        self._ports.shaper.close()

    def _desired_state(self) -> DesiredState:
        """The desired state that holds now. A new complete list is saved, in case the next agent finds no API."""
        desired = self._desired.advance(self._ports.feed.desired_state(), self._ledger.mode)
        unsaved = self._desired.unsaved
        if unsaved is not None:
            try:
                self._ports.store.save_desired_state(unsaved)
                self._desired.mark_saved(unsaved)
            except SaveError as error:
                self._count_failed_save(error)
        return desired

    def _leave_old_device(self, tree: ObservedTree, node: NodeSpec) -> None:
        """If the uplink is another device now, count what the old one still sent and take our tree off it."""
        old = self._ledger.device
        if old in {"", tree.device} or not self._ledger.had_tree:
            return
        log.warning("uplink changed old=%s new=%s", old, tree.device)
        self._emit(Reason.UPLINK_CHANGED, f"The uplink is {tree.device} now, it was {old}; usage continues")
        try:
            left = self._ports.shaper.read(old)
        except KernelError as error:
            log.warning("old uplink cannot be read device=%s reason=%s", old, error)
            return
        if left.root is not RootQdisc.OURS:
            return
        result = run_pass(PassInput(DesiredState(node=node), left, NftTable(), self._ledger, self._clock()))
        self._save(result.ledger)
        for failed in self._ports.shaper.apply(old, (RemoveRoot(),), result.settings.line_rate_bps):
            log.error("change refused change=%s reason=%s", failed.change, failed.reason)

    def _read_table(self) -> NftTable:
        try:
            return self._ports.classifier.read()
        except KernelError as error:  # classes and caps do not wait for the table
            log.error("table cannot be read: %s", error)
            return NftTable()

    def _save(self, ledger: Ledger) -> bool:
        """Take the ledger, and say whether it is on disk."""
        self._ledger = ledger
        if self._saved is not None and replace(self._saved, read_at=ledger.read_at) == ledger:
            return True
        try:
            self._ports.store.save_ledger(ledger)
        except SaveError as error:
            self._count_failed_save(error)
            return False
        self._saved = ledger
        if self._save_trouble:
            log.info("saved again")
            self._save_trouble = ""
        return True

    def _apply(self, tree: ObservedTree, result: PassResult, *, saved: bool) -> bool:
        """Carry the changes out, look again, and say whether all of them hold."""
        changes = tuple(change for change in result.tree_changes if saved or not change.destroys)
        complete = len(changes) == len(result.tree_changes)
        if changes:
            complete &= self._apply_tree(tree.device, changes, result)
        if result.table_change is not None:
            complete &= self._apply_table(result.table_change)
        return complete

    def _apply_table(self, change: TableChange) -> bool:
        log.info("table change=%s", change)
        try:
            self._ports.classifier.apply(change)
        except KernelError as error:
            self.stats.failed.add([change])
            log.error("change refused change=%s reason=%s", change, error)
            return False
        self.stats.applied.add([change])
        return True

    def _apply_tree(self, device: str, changes: tuple[TreeChange, ...], result: PassResult) -> bool:
        for change in changes:
            log.info("tree device=%s change=%s", device, change)
        refused = self._ports.shaper.apply(device, changes, result.settings.line_rate_bps)
        for failed in refused:
            log.error("change refused device=%s change=%s reason=%s", device, failed.change, failed.reason)
        open_changes = unmet(changes, self._ports.shaper.read(device))
        self.stats.failed.add(open_changes)
        still_open = set(open_changes)
        done = [change for change in changes if change not in still_open]
        self.stats.applied.add(done)
        known = {account.slice_id for account in result.ledger.slices.values()}
        self.stats.orphans += sum(
            isinstance(change, DeleteClass) and slice_id_of(change.minor) not in known for change in done
        )
        return not open_changes

    def _count_repairs(self, result: PassResult) -> None:
        """Count the changes that undo drift since the last pass."""
        held, self._held = self._held, None
        if held is None or held.node.device != result.node.device:
            return
        self.stats.repairs.add(drift_repairs(result.tree_changes, result.tree, held.tree))
        if result.table_change is not None and result.table == held.table:
            self.stats.repairs.add([result.table_change])

    def _report(self, result: PassResult, usages: tuple[UsageReport, ...]) -> None:
        now_ns = self._clock().boot_ns
        due, expired = self._throttle.due(usages, now_ns)
        node = result.node if self._throttle.node_due(result.node, now_ns) else None
        self._ports.reporter.report(due, expired, result.ledger.pending_events, node)

    def _restore_from_reports(self, result: PassResult) -> bool:
        """Deal with the reports of an earlier agent, once, as soon as they are known.

        Returns whether any was merged into the ledger; the next pass may then have to set caps.
        """
        if self._previous.state is Restore.DONE or (previous := self._ports.reporter.previous_reports()) is None:
            return False
        rebuilding = self._previous.state is Restore.REBUILDING
        ledger, unknown = self._previous.restore(self._ledger, previous, result.usages, self._clock())
        if rebuilding:
            self._save(ledger)  # else the next agent would merge them again
            log.info("ledger rebuilt slices=%d reported=%d", len(ledger.slices), len(previous))
        self._ports.reporter.report((), unknown, ledger.pending_events, None)
        return rebuilding and bool(previous)

    def _forget_acknowledged(self) -> None:
        acknowledged = self._ports.reporter.acknowledged()
        if acknowledged:
            pending_events = tuple(event for event in self._ledger.pending_events if event.id not in acknowledged)
            self._ledger = replace(self._ledger, pending_events=pending_events)

    def _emit(self, reason: Reason, message: str) -> None:
        event: PendingEvent = node_event(reason, message, self._clock().wall_s)
        self._ledger = replace(self._ledger, pending_events=(*self._ledger.pending_events, event))

    def _count_failed_save(self, error: SaveError) -> None:
        self.stats.failed_saves += 1
        if str(error) != self._save_trouble:
            log.error("not saved, going on in memory: %s", error)
        self._save_trouble = str(error)
