"""Which reports are due: a report goes out when it says something new enough, not at every pass."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from slicebw.core.model import SliceKey, TrafficClass
from slicebw.core.reports import NodeReport, UsageReport

NS: Final = 1_000_000_000
SILENCE_NS: Final = 600 * NS
"""Whatever moved, be it by a byte, is reported after this time, and the node's own state even if nothing did: so its
reader can tell quiet from dead."""
IDLE_NS: Final = 3600 * NS
"""A usage in which nothing moved is repeated after this time only: there are many of them, and the node speaks for it.
"""


@dataclass(frozen=True, slots=True)
class _Sent:
    report: UsageReport
    occasion: tuple[object, ...]
    at_ns: int


class Gate:
    """Remembers what was reported last, and lets through what is due.

    At once: a cap set or lifted, a period begun, limits or class changed, a problem found or gone. After
    ``interval_ns`` (60 s by default): usage that moved by 1 % of the budget. After 10 min: usage that moved at all, and
    the node's state. After an hour: anything.
    """

    def __init__(self, interval_ns: int) -> None:
        self.interval_ns = interval_ns
        self._sent: dict[SliceKey, _Sent] = {}
        self._looked_at: tuple[UsageReport, ...] = ()
        self._quiet_until_ns = 0
        """Until then nothing of what was looked at last is due."""
        self._node: tuple[NodeReport, int] | None = None

    def due(self, usages: Collection[UsageReport], now_ns: int) -> tuple[list[UsageReport], list[SliceKey]]:
        """Reports to send now, and the slices whose report is over. ``now_ns`` is any clock that never jumps."""
        usages = tuple(usages)
        if usages == self._looked_at and now_ns < self._quiet_until_ns:
            return [], []  # nothing has moved anywhere: to compare 4,000 objects with themselves takes no time
        due: list[UsageReport] = []
        due_from: list[int] = []
        for report in usages:
            last = self._sent.get(report.key)
            due_ns = now_ns if last is None else self._due_ns(last, report)
            if last is None or now_ns >= due_ns:
                due.append(report)
                self._sent[report.key] = _Sent(report, _occasion(report), now_ns)
                due_ns = now_ns + IDLE_NS
            elif last.report is not report and last.report == report:
                # It is known again by being the same object.
                self._sent[report.key] = _Sent(report, last.occasion, last.at_ns)
            due_from.append(due_ns)
        self._looked_at, self._quiet_until_ns = usages, min(due_from, default=now_ns)
        return due, self._over(usages) if len(self._sent) > len(usages) else []

    def _over(self, usages: Collection[UsageReport]) -> list[SliceKey]:
        """Forget the slices that nothing is reported of any more; which they were."""
        over = list(self._sent.keys() - {report.key for report in usages})
        for key in over:
            del self._sent[key]
        return over

    def node_due(self, report: NodeReport, now_ns: int) -> bool:
        """Whether the node's own state is due, by the same rules: bytes wait for the interval, the rest does not."""
        if self._node is not None:
            last, at_ns = self._node
            still = replace(report, root_bytes=last.root_bytes, default_bytes=last.default_bytes) == last
            wait_ns = SILENCE_NS if report == last else self.interval_ns
            if still and now_ns - at_ns < wait_ns:
                return False
        self._node = (report, now_ns)
        return True

    def _due_ns(self, last: _Sent, report: UsageReport) -> int:
        """When a report is due, if nothing is reported of the slice before: now, where that has passed."""
        if report is last.report:
            return last.at_ns + IDLE_NS  # what most of 4,000 slices come to
        if last.occasion != _occasion(report):
            return last.at_ns
        if report == last.report:
            return last.at_ns + IDLE_NS
        return last.at_ns + (min(self.interval_ns, SILENCE_NS) if _moved(last.report, report) else SILENCE_NS)


def _occasion(report: UsageReport) -> tuple[object, ...]:
    """All that is reported at once when it changes. A capped class's rate moves with every pass and is left out."""
    standard, exempt = report.standard, report.exempt
    return (
        *(report.class_id, report.generation, report.period_start_s, report.period_end_s),
        *(report.problems, report.errors, report.unenforced),
        *(standard.capped, standard.budget_bytes, 0 if standard.capped else standard.rate_bps),
        *(exempt.capped, exempt.budget_bytes, 0 if exempt.capped else exempt.rate_bps),
    )


def _moved(last: UsageReport, report: UsageReport) -> bool:
    """Whether a class's usage moved by 1 % of its budget."""
    return any(
        (report.of(traffic_class).used_bytes - last.of(traffic_class).used_bytes) * 100
        >= report.of(traffic_class).budget_bytes
        for traffic_class in TrafficClass
    )
