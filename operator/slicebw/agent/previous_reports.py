"""Decides what to do with the usage that this node reported before the agent started: a small state machine.

The last column gives the next state once these reports are known and the desired state is complete.

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

from slicebw.core.accounting import restore_from_reports
from slicebw.core.clock import Instant
from slicebw.core.desired import SliceKey
from slicebw.core.ledger import Ledger
from slicebw.core.reports import UsageReport


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
