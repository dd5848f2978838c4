"""Where an agent stands between its start and the first complete answers of the API: two small state machines.

Both are without I/O: the reconciler passes them what it has read.

:class:`DesiredStateMachine` decides which desired state holds now. Passes do not wait for the API: until the feed has
listed everything, the last complete list holds. The last three columns give the next state if the feed's list is
incomplete, complete and valid, or complete with an invalid selector or node setting that was valid before.

============= =========================================================== ============= ======== =========
state         a pass is made on                                           incomplete    complete wrong
============= =========================================================== ============= ======== =========
NOTHING_KNOWN the feed's incomplete list, in the ledger's mode            NOTHING_KNOWN LIVE     LIVE
LAST_SAVED    the last complete list: the checkpoint's, or what was live  LAST_SAVED    LIVE     LAST_GOOD
LIVE          the feed's list                                             LAST_SAVED    LIVE     LAST_GOOD
LAST_GOOD     the feed's list; where it is wrong, what held before        LAST_SAVED    LIVE     LAST_GOOD
============= =========================================================== ============= ======== =========

:class:`PreviousReports` decides what to do with the usage that this node reported before the agent started. The last
column gives the next state once these reports are known and the desired state is complete.

============= ============= ================= =================================================
state         the ledger is own usage reports next
============= ============= ================= =================================================
REBUILDING    begun anew    withheld          DONE; the reports are merged into the ledger
WAITING       from the disk sent              DONE
DONE          complete      sent              stays
============= ============= ================= =================================================

Reports of slices that nobody knows any more are deleted on the way to DONE.
"""

from collections.abc import Iterable, Sequence
from enum import Enum

from msgspec.structs import replace

from slicebw.core.accounting import restore_from_reports
from slicebw.core.clock import Instant
from slicebw.core.desired import DesiredState, Mode, SliceKey
from slicebw.core.ledger import Ledger
from slicebw.core.membership import with_last_good_selectors
from slicebw.core.reports import UsageReport


class Source(Enum):
    """Where the desired state of a pass comes from; the states of :class:`DesiredStateMachine`."""

    NOTHING_KNOWN = "nothing known"
    LAST_SAVED = "last saved"
    LIVE = "live"
    LAST_GOOD = "last good"

    @property
    def is_listed(self) -> bool:
        """Whether it is the feed's own complete list."""
        return self in (Source.LIVE, Source.LAST_GOOD)


class DesiredStateMachine:
    """Decides which desired state holds now.

    Args:
        saved: the last complete list as the checkpoint has it, None where there is none.
    """

    def __init__(self, saved: DesiredState | None = None) -> None:
        self.state = Source.NOTHING_KNOWN if saved is None else Source.LAST_SAVED
        self._held = saved
        self._made_from: DesiredState | None = None
        """The feed's list that ``_held`` was made from."""
        self._saved = saved

    def advance(self, listed: DesiredState, last_mode: Mode | None) -> DesiredState:
        """Take the feed's list, and return the desired state for this pass.

        While the list is the same object, so is what this returns: passes compare by identity.

        Args:
            listed: what the feed knows now, complete or not.
            last_mode: the node's mode at the last pass, None before the first one.
        """
        if not listed.synced:
            if self._held is not None:
                self.state = Source.LAST_SAVED
                return self._held
            self.state = Source.NOTHING_KNOWN
            if listed.node.mode is not None or last_mode is None:
                return listed
            # The mode is not listed yet, so the last one holds: a node in mode Disabled must not get a tree meanwhile.
            return replace(listed, node=replace(listed.node, mode=last_mode))
        if self._held is None or listed is not self._made_from:
            self._held = listed if self._held is None else _with_last_good(listed, self._held)
            self._made_from = listed
            if self._held == self._saved:
                self._saved = self._held  # the file has the same content already, so nothing is written
        self.state = Source.LIVE if self._held is listed else Source.LAST_GOOD
        return self._held

    @property
    def unsaved(self) -> DesiredState | None:
        """The last complete list if the checkpoint has another one or none; otherwise None."""
        return None if self._held is self._saved else self._held

    def mark_saved(self, saved: DesiredState) -> None:
        """Note that the checkpoint has ``saved`` now."""
        self._saved = saved


class Restore(Enum):
    """Whether the previous reports have been processed; the states of :class:`PreviousReports`."""

    REBUILDING = "rebuilding"
    WAITING = "waiting"
    DONE = "done"


class PreviousReports:
    """Decides what to do with the usage that this node reported before the agent started.

    Args:
        ledger: as it was loaded, or begun anew. It remembers on disk that it is still to be rebuilt.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.state = Restore.REBUILDING if ledger.rebuilding else Restore.WAITING

    @property
    def withhold_own(self) -> bool:
        """Whether own usage reports must wait: they would overwrite what the ledger is rebuilt from."""
        return self.state is Restore.REBUILDING

    def restore(
        self, ledger: Ledger, previous: Sequence[UsageReport], current: Iterable[UsageReport], now: Instant
    ) -> tuple[Ledger, list[SliceKey]]:
        """Go to DONE.

        Args:
            ledger: as the pass has left it.
            previous: all usage that this node has reported before.
            current: what the pass reports.
            now: this pass's instant.

        Returns:
            The ledger to go on with, and the slices whose previous report is to be deleted.
        """
        if self.state is Restore.REBUILDING:
            ledger = restore_from_reports(ledger, previous, now)
        self.state = Restore.DONE
        known = {*ledger.slices, *(usage.key for usage in current)}
        return ledger, [report.key for report in previous if report.key not in known]


def _with_last_good(listed: DesiredState, before: DesiredState) -> DesiredState:
    """Return the list, with the last valid selector or node setting wherever the listed one is invalid."""
    slices, node = listed.slices, listed.node
    if any(spec.selector is None for spec in slices):
        slices = with_last_good_selectors(slices, before.slices)
        if slices == before.slices:
            slices = before.slices  # passes tell changes by identity
    if node.wrong:
        node = node.with_last_good(before.node)
        if node == before.node:
            node = before.node
    if slices == listed.slices and node == listed.node:
        return listed
    return replace(listed, slices=slices, node=node)
