"""A ledger begun anew takes up what this node had reported before: the accounts go on, periods, caps and all."""

from collections.abc import Iterable

from msgspec.structs import replace

from slicebw.core.ledger import ClassAccount, Instant, Ledger, SliceAccount
from slicebw.core.model import DEFAULT_LIMITS, TrafficClass
from slicebw.core.reports import ClassUsage, UsageReport


def take_up(ledger: Ledger, reported: Iterable[UsageReport], now: Instant) -> Ledger:
    """The ledger with this node's last reports merged in, and no longer rebuilding.

    A report tells the usage and the kernel counter it includes, so where the class has survived, what was sent
    between the report and the loss of the ledger is known exactly. Reports of periods that are over say nothing, nor do
    those of a period that ends before it begins. One that begins later than now, by a clock that was wrong then or is
    now, begins now: it would not end for as long as the clock is off.
    """
    slices = dict(ledger.slices)
    for report in reported:
        if report.period_end_s <= max(now.wall_s, report.period_start_s):
            continue
        account = slices.get(report.key)
        start_s = min(report.period_start_s, now.wall_s)
        slices[report.key] = _recalled(report, start_s) if account is None else _merged(account, report, start_s)
    return replace(ledger, slices=slices, rebuilding=False)


def _recalled(report: UsageReport, start_s: int) -> SliceAccount:
    """The account of a slice that is not on the node: without a class, kept until its period ends."""
    return SliceAccount(
        key=report.key,
        uid="",
        class_id=0,
        generation=0,
        period_start_s=start_s,
        limits=replace(DEFAULT_LIMITS, period_s=report.period_end_s - report.period_start_s),
        standard=_class_account(ClassAccount(), report.standard, gap_bytes=0),
        exempt=_class_account(ClassAccount(), report.exempt, gap_bytes=0),
        live=False,
    )


def _merged(account: SliceAccount, report: UsageReport, start_s: int) -> SliceAccount:
    same_classes = account.class_id == report.class_id
    merged = replace(account, period_start_s=start_s)
    for traffic_class in TrafficClass:
        kept, usage = account.of(traffic_class), report.of(traffic_class)
        # The counter when the class was adopted is what it shows now less what has been counted since.
        adopted_bytes = kept.counter_bytes - kept.total_bytes
        gap_bytes = max(0, adopted_bytes - usage.counter_bytes) if same_classes else 0
        merged = merged.with_class(traffic_class, _class_account(kept, usage, gap_bytes))
    return merged


def _class_account(kept: ClassAccount, usage: ClassUsage, gap_bytes: int) -> ClassAccount:
    before_bytes = usage.used_bytes + gap_bytes
    return replace(
        kept,
        used_bytes=kept.used_bytes + before_bytes,
        total_bytes=kept.total_bytes + before_bytes,
        capped_since_s=usage.capped_since_s if usage.capped else kept.capped_since_s,
        notified_capped=kept.notified_capped or usage.capped,
    )
