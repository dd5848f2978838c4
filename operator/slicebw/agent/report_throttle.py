"""Decides which reports are due: a pass takes place every few seconds, but few of its figures are worth a write."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import compress
from operator import is_not
from typing import Final

from msgspec.structs import replace

from slicebw.core.clock import NS
from slicebw.core.desired import SliceKey, TrafficClass
from slicebw.core.reports import NodeReport, UsageReport

SILENCE_NS: Final = 600 * NS
"""After this time a change of any size is reported, and the node's own state even if it has not changed, so that a
reader can tell an idle agent from a dead one."""
IDLE_NS: Final = 3600 * NS
"""After this time an unchanged usage is reported again. It may be long: the node's state shows that the agent lives."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """The last report of a slice that was let through, and when."""

    report: UsageReport
    occasion: tuple[object, ...]
    at_ns: int


class ReportThrottle:
    """Remembers the last report of each slice and of the node, and decides which new ones are due.

    - At once: a cap was set or lifted, a period began, limits or the class changed, a problem appeared or went away.
    - After ``interval_ns`` (60 s by default): usage moved by 1 % of the budget, or the node's bytes moved at all.
    - After 10 minutes: usage moved at all; and the node's state in any case.
    - After an hour: every usage.
    """

    def __init__(self, interval_ns: int) -> None:
        self.interval_ns = interval_ns
        self._sent: dict[SliceKey, _Sent] = {}
        self._last_usages: tuple[UsageReport, ...] = ()
        self._none_due_until_ns = 0
        """Until then no report of ``_last_usages`` is due."""
        self._node: tuple[NodeReport, int] | None = None

    def due(self, usages: Collection[UsageReport], now_ns: int) -> tuple[list[UsageReport], list[SliceKey]]:
        """Return the reports to send now, and the slices whose report has expired.

        ``now_ns`` is an instant of any clock that never jumps, the same one at every call.
        """
        usages = tuple(usages)
        # An idle node's reports are the same objects; comparing 4,000 objects with themselves takes no time.
        if usages == self._last_usages and now_ns < self._none_due_until_ns:
            return [], []
        due: list[UsageReport] = []
        examined, due_from = usages, []
        if len(usages) == len(self._last_usages) and now_ns < self._none_due_until_ns:
            # A report that is the same object is not due yet: only the others are looked at.
            examined = tuple(compress(usages, map(is_not, usages, self._last_usages)))
            due_from = [self._none_due_until_ns]
        for report in examined:
            last = self._sent.get(report.key)
            due_ns = now_ns if last is None else self._due_ns(last, report)
            if last is None or now_ns >= due_ns:
                due.append(report)
                self._sent[report.key] = _Sent(report, _occasion(report), now_ns)
                due_ns = now_ns + IDLE_NS
            elif last.report is not report and last.report == report:
                # An equal report, but another object: keep the new one, so that the next comparison is by identity.
                self._sent[report.key] = _Sent(report, last.occasion, last.at_ns)
            due_from.append(due_ns)
        self._last_usages, self._none_due_until_ns = usages, min(due_from, default=now_ns)
        return due, self._expired(usages) if len(self._sent) > len(usages) else []

    def _expired(self, usages: Collection[UsageReport]) -> list[SliceKey]:
        """Drop slices that have no report any more. Returns their keys."""
        expired = list(self._sent.keys() - {report.key for report in usages})
        for key in expired:
            del self._sent[key]
        return expired

    def node_due(self, report: NodeReport, now_ns: int) -> bool:
        """Tell whether the node's own state is due. Only its bytes wait; everything else is reported at once."""
        if self._node is not None:
            last, at_ns = self._node
            only_bytes = replace(report, host_bytes=last.host_bytes, default_bytes=last.default_bytes) == last
            wait_ns = SILENCE_NS if report == last else self.interval_ns
            if only_bytes and now_ns - at_ns < wait_ns:
                return False
        self._node = (report, now_ns)
        return True

    def _due_ns(self, last: _Sent, report: UsageReport) -> int:
        """Return the instant from which this report is due. One in the past means now."""
        if report is last.report:  # the usual case, so it comes first
            return last.at_ns + IDLE_NS
        if last.occasion != _occasion(report):
            return last.at_ns
        if report == last.report:
            return last.at_ns + IDLE_NS
        # An interval above 10 minutes must not delay a large change longer than a small one.
        return last.at_ns + (min(self.interval_ns, SILENCE_NS) if _moved(last.report, report) else SILENCE_NS)


def _occasion(report: UsageReport) -> tuple[object, ...]:
    """Return the fields whose change is reported at once.

    A capped class's rate is left out, because it changes at every pass.
    """
    standard, exempt = report.standard, report.exempt
    identity = (report.slice_id, report.generation, report.period_start_s, report.period_end_s)
    troubles = (report.problems, report.errors, report.not_enforced_reason)
    of_standard = (standard.capped, standard.budget_bytes, 0 if standard.capped else standard.rate_bps)
    return (
        identity,
        troubles,
        of_standard,
        (exempt.capped, exempt.budget_bytes, 0 if exempt.capped else exempt.rate_bps),
    )


def _moved(last: UsageReport, report: UsageReport) -> bool:
    """Tell whether the usage of either class moved by 1 % of its budget."""
    return any(
        (report.of(traffic_class).used_bytes - last.of(traffic_class).used_bytes) * 100
        >= report.of(traffic_class).budget_bytes
        for traffic_class in TrafficClass
    )
