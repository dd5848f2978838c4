"""What a pass tells the world: one usage per account, and the node's own state."""

from collections.abc import Mapping

from slicebw.core.ledger import Ledger, SliceAccount
from slicebw.core.membership import Membership
from slicebw.core.model import DEFAULT_LIMITS, Mode, SliceKey, SliceSpec, Snapshot, TrafficClass
from slicebw.core.reports import ClassUsage, NodeReport, PodProblem, UsageReport
from slicebw.core.settings import NodeSettings
from slicebw.core.tree import DEFAULT_ID, ROOT_ID, ObservedTree, RootQdisc, class_id_of
from slicebw.core.verdict import ClassVerdict, SliceVerdict


def usage_report(
    account: SliceAccount, spec: SliceSpec | None, problems: tuple[PodProblem, ...], verdict: SliceVerdict | None
) -> UsageReport:
    """What is reported of one account, live or kept until its period ends."""
    return UsageReport(
        key=account.key,
        class_id=account.class_id if account.live else 0,
        generation=account.generation if spec is not None else 0,
        period_start_s=account.period_start_s,
        period_end_s=account.period_end_s,
        standard=_class_usage(account, TrafficClass.STANDARD, verdict.standard if verdict else None),
        exempt=_class_usage(account, TrafficClass.EXEMPT, verdict.exempt if verdict else None),
        problems=problems,
        errors=spec.errors if spec is not None else (),
    )


def denied_reports(
    specs: Mapping[SliceKey, SliceSpec], membership: Membership, accounts: Mapping[SliceKey, SliceAccount]
) -> tuple[UsageReport, ...]:
    """One report for every slice without an account that is denied a pod here."""
    return tuple(_denied(specs[key], problems) for key, problems in membership.problems.items() if key not in accounts)


def _denied(spec: SliceSpec, problems: tuple[PodProblem, ...]) -> UsageReport:
    """A slice that has no class here and never had: reported only for what stands in its way."""
    limits = spec.limits or DEFAULT_LIMITS

    def nothing(traffic_class: TrafficClass) -> ClassUsage:
        return ClassUsage(0, limits.of(traffic_class).budget_bytes, 0, 0, capped=False, capped_since_s=None)

    return UsageReport(
        key=spec.key,
        class_id=0,
        generation=spec.generation,
        period_start_s=spec.created_s,
        period_end_s=spec.created_s + limits.period_s,
        standard=nothing(TrafficClass.STANDARD),
        exempt=nothing(TrafficClass.EXEMPT),
        problems=problems,
        errors=spec.errors,
    )


def _class_usage(account: SliceAccount, traffic_class: TrafficClass, verdict: ClassVerdict | None) -> ClassUsage:
    kept = account.of(traffic_class)
    budget_bytes = account.limits.of(traffic_class).budget_bytes
    return ClassUsage(
        used_bytes=kept.used_bytes,
        budget_bytes=budget_bytes,
        percent=kept.used_bytes * 100 // budget_bytes,
        rate_bps=verdict.kernel.max_bps if verdict else 0,
        capped=verdict.capped if verdict else False,
        capped_since_s=kept.capped_since_s if verdict and verdict.capped else None,
        counter_bytes=kept.counter_bytes,
    )


def node_report(
    snapshot: Snapshot,
    observed: ObservedTree,
    settings: NodeSettings,
    ledger: Ledger,
    *,
    slices: int,
    capped_slices: int,
    overcommitted: str | None,
) -> NodeReport:
    """The status of this node's NodeBandwidth."""
    foreign = observed.root_kind if observed.root is RootQdisc.FOREIGN else None
    message = "; ".join(snapshot.node.errors) or "limits are in force"
    if settings.mode is not Mode.ENFORCE:
        message = f"mode {settings.mode}: nothing is limited"
    if foreign is not None and settings.mode is not Mode.DISABLED:
        message = f"{observed.device} has a {foreign} qdisc that is not slicebw's: remove it, or name another device"
    return NodeReport(
        device=observed.device,
        mode=settings.mode,
        cap_bps=settings.cap_bps,
        line_rate_bps=settings.line_rate_bps,
        slices=slices,
        capped_slices=capped_slices,
        root_bytes=_total(ledger, ROOT_ID),
        default_bytes=_total(ledger, DEFAULT_ID),
        foreign_qdisc=foreign,
        overcommitted=overcommitted,
        ready=foreign is None and not snapshot.node.errors,
        message=message,
        generation=snapshot.node.generation,
    )


def _total(ledger: Ledger, class_id: int) -> int:
    return sum(account.total_bytes for minor, account in ledger.node_totals.items() if class_id_of(minor) == class_id)
