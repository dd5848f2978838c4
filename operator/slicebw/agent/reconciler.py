"""The reconciler: makes the node's kernel match the desired state, one pass after another.

A pass is :meth:`Reconciler.run_once`. Its steps, in this order:

1. Take the desired state that holds now (:mod:`slicebw.agent.desired_state`).
2. Read the kernel: the HTB tree and its counters, then the nftables table.
3. Fold the counters into the ledger, decide every slice's rates, and plan the changes. This step is a pure function,
   :func:`slicebw.core.node_pass.run_pass`.
4. Save the ledger.
5. Apply the changes.
6. Read the tree again if it was changed, and count what does not hold as failed.
7. Queue reports.

The start, an error and drift take no other path: the next pass plans whatever is still missing. No step waits for the
API server.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from slicebw.agent.desired_state import DesiredStateMachine
from slicebw.agent.ports import Ports
from slicebw.agent.previous_reports import PreviousReports, Restore
from slicebw.agent.report_throttle import ReportThrottle
from slicebw.agent.stats import Stats
from slicebw.agent.transition_log import transitions
from slicebw.agent.uplink import NO_UPLINK, UplinkChooser
from slicebw.core.accounting import is_same_device
from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import (
    CreateRoot,
    DeleteClass,
    NftTable,
    ObservedTree,
    RemoveRoot,
    RootQdisc,
    TableChange,
    TreeChange,
    UplinkTrouble,
    slice_id_of,
)
from slicebw.core.desired import DesiredState, NodeSpec, TrafficClass, settle
from slicebw.core.errors import KernelError, SaveError, UplinkError
from slicebw.core.events import node_event
from slicebw.core.ledger import Ledger, PendingEvent, Reason, SliceAccount
from slicebw.core.node_pass import PassInput, PassResult, run_pass
from slicebw.core.plan import drift_repairs, unmet
from slicebw.core.reports import NodeReport, UsageReport, node_report, queues_message

log = logging.getLogger(__name__)

RETRY_NS: Final = NS
"""The longest time to the next pass after one that left something undone."""


class Reconciler:
    """One node's reconciler. All calls come from one thread, which is in the node's network namespace.

    Args:
        ports: the kernel, the feed, the checkpoint folder, and the report queue.
        clock: reads both clocks.
        throttle: decides which reports are due.
        uplink: the device to shape if the node's settings name none; None: the default route's device.
    """

    def __init__(
        self, ports: Ports, clock: Callable[[], Instant], throttle: ReportThrottle, uplink: str | None = None
    ) -> None:
        self.stats = Stats()
        self.synced = False
        """Whether the last successful pass was made on the feed's own complete list."""
        self.last: PassResult | None = None
        """The result of the last successful pass. It is immutable, so any thread may read it."""
        self.node: NodeReport | None = None
        """The state of the node. It is newer than ``last`` while there is no uplink. Any thread may read it."""
        self._ports = ports
        self._clock = clock
        self._throttle = throttle
        self._uplink = UplinkChooser(ports.shaper, uplink)
        self._ledger = Ledger()
        self._saved: Ledger | None = None
        """The ledger that this agent saved last; None before its first save."""
        self._save_errors: dict[str, str] = {}
        """Why the last save of a file failed, by file, so that the same failure is logged once."""
        self._desired = DesiredStateMachine()
        self._previous = PreviousReports(self._ledger)
        self._enforced: PassResult | None = None
        """The last result, if the kernel was observed to match all of it. Anything that differs later is drift."""

    def start(self) -> None:
        """Load the ledger and the last desired state. A file that cannot be used is logged; its content is rebuilt."""
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
        """Run one pass; the module docstring lists its steps. Returns the time until the next one, in ns.

        Raises KernelError if the tree could not be read, or the kernel did not answer. The ledger then keeps what was
        saved, and the next pass starts over.
        """
        self.stats.passes += 1
        begun_ns = self._clock().boot_ns
        self._forget_acknowledged()
        desired = self._desired_state()
        tree = self._read_tree(desired)
        # Before the pass: it moves the ledger to the new device, and the old counters would be lost.
        self._leave_old_device(tree, desired.node)
        table = self._read_table()
        result = run_pass(PassInput(desired, tree, table, self._ledger, self._clock()), self.last)
        for line in transitions(self._ledger, result.ledger):
            log.info("%s", line)
        # Save before apply: a change can destroy counters, and a slice id that is in use must survive a crash.
        saved = self._save(result.ledger)
        self._count_repairs(result)
        enforced = self._apply(tree, result, saved=saved)
        merged = desired.synced and self._restore_from_reports(result)
        # Own usage reports would overwrite the ones that the ledger is still to be rebuilt from. If those have just
        # been merged, the figures of this pass do not contain them yet.
        incomplete = merged or self._previous.withhold_own
        self._report(result.node, () if incomplete else result.usages, result.ledger.pending_events)
        self.last, self._enforced = result, result if enforced else None
        self.synced = self._desired.state.is_listed  # only now: /readyz says that the limits are applied
        self.stats.durations.observe(max(0, self._clock().boot_ns - begun_ns))
        # A report carries the usage of the last pass, so there is a pass whenever a report may become due.
        due_ns = min(result.next_pass_ns, self._throttle.interval_ns if enforced and not incomplete else RETRY_NS)
        hold_off_ns = self._uplink.wait_ns(self._clock())
        return due_ns if hold_off_ns is None else min(due_ns, hold_off_ns)

    def close(self) -> None:
        """Close the kernel ports' sockets. Changes nothing in the kernel."""
        self._ports.shaper.close()

    def _desired_state(self) -> DesiredState:
        """Return the desired state that holds now. Saves a new complete list, so that an agent can start without API.

        A list that cannot be saved is tried again at the next pass.
        """
        desired = self._desired.advance(self._ports.feed.desired_state(), self._ledger.mode)
        unsaved = self._desired.unsaved
        if unsaved is not None:
            try:
                self._ports.store.save_desired_state(unsaved)
                self._desired.mark_saved(unsaved)
                self._note_saved("desired state")
            except SaveError as error:
                self._note_failed_save("desired state", error)
        return desired

    def _read_tree(self, desired: DesiredState) -> ObservedTree:
        """Read the uplink's tree. If there is no uplink, no pass is possible: report that, and raise UplinkError."""
        try:
            return self._uplink.read(desired.node.device, self._ledger, self._clock())
        except UplinkError:
            trouble = self._uplink.trouble
            if trouble is not None and trouble.reason == NO_UPLINK:  # else the device vanished within this call
                self._report_no_uplink(desired, trouble)
            raise

    def _report_no_uplink(self, desired: DesiredState, trouble: UplinkTrouble) -> None:
        """Report that nothing is enforced; else the reports of the last pass would still say that all is well."""
        last, ledger = self.last, self._ledger
        line_rate_bps = last.settings.line_rate_bps if last is not None else None
        nothing = ObservedTree(ledger.device, RootQdisc.DEFAULT, "", {}, line_rate_bps, uplink_trouble=trouble)
        live = [account for account in ledger.slices.values() if account.live]
        node = node_report(
            desired,
            nothing,
            settle(desired.node, line_rate_bps),
            ledger,
            slices=len(live),
            capped_slices=sum(_is_capped(account) for account in live),
            overcommitted=None,
        )
        usages = last.usages if last is not None and not self._previous.withhold_own else ()
        unlimited = [replace(one, not_enforced_reason=one.not_enforced_reason or trouble.message) for one in usages]
        self._report(node, unlimited, ledger.pending_events)

    def _leave_old_device(self, tree: ObservedTree, node: NodeSpec) -> None:
        """If the uplink has changed, fold the old device's last counters into the ledger and remove our tree there."""
        now, old = self._clock(), self._ledger.device
        if is_same_device(self._ledger, tree, now):
            if old not in ("", tree.device):
                log.info("uplink renamed old=%s new=%s", old, tree.device)
            return
        if not self._ledger.had_tree:
            return
        log.warning("uplink changed old=%s new=%s", old, tree.device)
        what = (
            f"The uplink is {tree.device} now, it was {old}" if old != tree.device else f"{old} is another device now"
        )
        self._emit(Reason.UPLINK_CHANGED, f"{what}; usage continues")
        last = self._uplink.last(self._ledger, now)
        if last is None or last.ifindex == tree.ifindex:
            log.warning("old uplink is gone device=%s", old)
            return
        try:
            left = self._ports.shaper.read(last.ifindex)
        except KernelError as error:
            log.warning("old uplink cannot be read device=%s reason=%s", old, error)
            return
        if left.root is not RootQdisc.OURS:
            return
        # Only for the counters: this pass knows no slices, and none of its changes is applied.
        result = run_pass(PassInput(DesiredState(node=node), left, NftTable(), self._ledger, self._clock()))
        self._save(result.ledger)  # before the counters are destroyed with the tree
        for failed in self._ports.shaper.apply(last.ifindex, (RemoveRoot(),), result.settings.line_rate_bps):
            log.error("change refused change=%s reason=%s", failed.change, failed.reason)

    def _read_table(self) -> NftTable:
        """Read the table; an empty one if nft fails, so that classes and caps do not wait for it."""
        try:
            return self._ports.classifier.read()
        except KernelError as error:
            log.error("table cannot be read: %s", error)
            return NftTable()

    def _save(self, ledger: Ledger) -> bool:
        """Continue with this ledger. Returns whether it is on disk."""
        self._ledger = ledger
        saved = self._saved
        # An idle node writes nothing: only the time of the reading differs. But the file must name the boot that the
        # device's number is valid for.
        if saved is not None and _boot(saved) == _boot(ledger) and replace(saved, read_at=ledger.read_at) == ledger:
            return True
        try:
            self._ports.store.save_ledger(ledger)
        except SaveError as error:
            self._note_failed_save("ledger", error)
            return False
        self._saved = ledger
        self._note_saved("ledger")
        return True

    def _apply(self, tree: ObservedTree, result: PassResult, *, saved: bool) -> bool:
        """Apply the planned changes. Returns whether all of them were applied and the kernel shows them."""
        # A change that destroys counters waits until these are on disk; the next pass plans it again.
        changes = tuple(change for change in result.tree_changes if saved or not change.destroys)
        complete = len(changes) == len(result.tree_changes)
        # The tree before the table: a class must exist before packets are sent to it.
        if changes:
            self._warn_of_lost_queues(tree, changes, result)
            complete &= self._apply_tree(tree, changes, result)
        if result.table_change is not None:
            complete &= self._apply_table(result.table_change)
        return complete

    @staticmethod
    def _warn_of_lost_queues(tree: ObservedTree, changes: tuple[TreeChange, ...], result: PassResult) -> None:
        message = queues_message(tree, result.settings.mode)
        if message and any(isinstance(change, CreateRoot) for change in changes):
            log.warning("transmit queues lost device=%s queues=%d: %s", tree.device, tree.lost_queues, message)

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

    def _apply_tree(self, tree: ObservedTree, changes: tuple[TreeChange, ...], result: PassResult) -> bool:
        """Apply changes to the tree, then observe it again. Returns whether it shows all of them."""
        for change in changes:
            log.info("tree device=%s change=%s", tree.device, change)
        refused = self._ports.shaper.apply(tree.ifindex, changes, result.settings.line_rate_bps)
        for failed in refused:
            log.error("change refused device=%s change=%s reason=%s", tree.device, failed.change, failed.reason)
        # The observed tree decides, not the kernel's answers: a change that was accepted may be undone meanwhile.
        open_changes = unmet(changes, self._ports.shaper.read(tree.ifindex))
        self.stats.failed.add(open_changes)
        still_open = set(open_changes)
        done = [change for change in changes if change not in still_open]
        self.stats.applied.add(done)
        # A deleted class of no account was an orphan: left by another program, or under a ledger that was lost.
        known = {account.slice_id for account in result.ledger.slices.values()}
        self.stats.orphans += sum(
            isinstance(change, DeleteClass) and slice_id_of(change.minor) not in known for change in done
        )
        return not open_changes

    def _count_repairs(self, result: PassResult) -> None:
        """Count the planned changes that undo drift since the last pass."""
        # Reset first: if applying fails, the next pass cannot tell drift from what this one has left undone.
        last, self._enforced = self._enforced, None
        device = result.ledger.ifindex, result.ledger.netns
        if last is None or (last.ledger.ifindex, last.ledger.netns) != device:  # a tree on a new uplink is no repair
            return
        self.stats.repairs.add(drift_repairs(result.tree_changes, result.tree, last.tree))
        if result.table_change is not None and result.table == last.table:
            self.stats.repairs.add([result.table_change])

    def _report(self, node: NodeReport, usages: Sequence[UsageReport], events: tuple[PendingEvent, ...]) -> None:
        """Queue the reports that are due, and every pending Event."""
        self.node = node
        now_ns = self._clock().boot_ns
        due, expired = self._throttle.due(usages, now_ns)
        node_due = node if self._throttle.node_due(node, now_ns) else None
        self._ports.reporter.report(due, expired, events, node_due)

    def _restore_from_reports(self, result: PassResult) -> bool:
        """Process the reports of an earlier agent, once, as soon as they are known.

        Returns whether any was merged into the ledger. The next pass may then have to set caps.
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

    def _note_saved(self, file: str) -> None:
        if self._save_errors.pop(file, None) is not None:
            log.info("%s saved again", file)

    def _note_failed_save(self, file: str, error: SaveError) -> None:
        self.stats.failed_saves += 1
        if str(error) != self._save_errors.get(file):
            log.error("not saved, continuing in memory: %s", error)
        self._save_errors[file] = str(error)


def _boot(ledger: Ledger) -> str | None:
    """Return the boot that the last reading was made in; None before the first one."""
    return ledger.read_at.boot_id if ledger.read_at is not None else None


def _is_capped(account: SliceAccount) -> bool:
    """Tell whether a class of a slice was capped at the last pass."""
    return any(account.of(traffic_class).capped_since_s is not None for traffic_class in TrafficClass)
