"""Builders of nodes' reports with defaults, so that a test names only the fields it checks."""

from slicebw.core.desired import Mode, SliceKey
from slicebw.core.ledger import PendingEvent, Reason
from slicebw.core.membership import PodProblem
from slicebw.core.reports import ClassUsage, NodeReport, UsageReport

PERIOD_START_S = 1_795_000_000
DAY_S = 86_400
GB = 1_000_000_000


def class_usage(
    used_bytes: int = 0, *, budget_bytes: int = 10 * GB, capped: bool = False, rate_bps: int = 10_000_000
) -> ClassUsage:
    return ClassUsage(
        used_bytes=used_bytes,
        budget_bytes=budget_bytes,
        percent=used_bytes * 100 // budget_bytes,
        rate_bps=rate_bps,
        capped=capped,
        capped_since_s=PERIOD_START_S + 100 if capped else None,
        counter_bytes=used_bytes,
    )


def usage_report(
    namespace: str,
    name: str = "codeen",
    *,
    standard: ClassUsage | None = None,
    exempt: ClassUsage | None = None,
    slice_id: int = 0x123,
    generation: int = 1,
    period_start_s: int = PERIOD_START_S,
    period_end_s: int = PERIOD_START_S + DAY_S,
    problems: tuple[PodProblem, ...] = (),
    errors: tuple[str, ...] = (),
) -> UsageReport:
    return UsageReport(
        key=SliceKey(namespace, name),
        slice_id=slice_id,
        generation=generation,
        period_start_s=period_start_s,
        period_end_s=period_end_s,
        standard=standard or class_usage(),
        exempt=exempt or class_usage(budget_bytes=30 * GB, rate_bps=1_000_000_000),
        problems=problems,
        errors=errors,
    )


def node_report(*, slices: int = 2, capped_slices: int = 0, host_bytes: int = 0) -> NodeReport:
    return NodeReport(
        device="eth0",
        mode=Mode.ENFORCE,
        cap_bps=100_000_000,
        line_rate_bps=1_000_000_000,
        slices=slices,
        capped_slices=capped_slices,
        host_bytes=host_bytes,
        default_bytes=0,
        foreign_qdisc=None,
        overcommitted=None,
        ready=True,
        message="limits are in force",
    )


def capped_event(namespace: str, name: str = "codeen", *, period_start_s: int = PERIOD_START_S) -> PendingEvent:
    return PendingEvent(
        id=f"BandwidthCapped/{namespace}/{name}/standard/{period_start_s}",
        key=SliceKey(namespace, name),
        uid="0b8a3f2e-0000-4000-8000-000000000001",
        reason=Reason.CAPPED,
        warning=True,
        message=f"Slowed standard traffic of slice {namespace}/{name} to 512kbit/s",
        at_s=PERIOD_START_S + 100,
    )
