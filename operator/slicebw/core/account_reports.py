"""What a pass tells the world: one usage per account, and the node's own state."""

from collections.abc import Collection, Mapping
from typing import Final

from msgspec.structs import replace

from slicebw.core.ledger import Ledger, SliceAccount
from slicebw.core.membership import Membership
from slicebw.core.model import DEFAULT_LIMITS, Mode, SliceKey, SliceSpec, Snapshot, TrafficClass
from slicebw.core.reports import ClassUsage, NodeReport, PodProblem, UsageReport
from slicebw.core.settings import NodeSettings
from slicebw.core.tree import DEFAULT_ID, MAX_SLICES, ROOT_ID, ObservedTree, RootQdisc, class_id_of
from slicebw.core.verdict import ClassVerdict, SliceVerdict

_FULL: Final = f"the node has {MAX_SLICES} slices already, the most it can hold"


def why_unenforced(observed: ObservedTree, mode: Mode) -> str:
    """Why a node holds no slice to its limits; empty where it does."""
    if observed.root is RootQdisc.FOREIGN and mode is not Mode.DISABLED:
        blame = f"{observed.device} has a {observed.root_kind} qdisc that is not slicebw's"
        return f"{blame}: remove it, or name another device"
    return "" if mode is Mode.ENFORCE else f"mode {mode}: nothing is limited"


def usage_report(
    account: SliceAccount,
    spec: SliceSpec | None,
    problems: tuple[PodProblem, ...],
    verdict: SliceVerdict | None,
    unenforced: str = "",
) -> UsageReport:
    """What is reported of one account, live or kept until its period ends; ``unenforced`` goes with live ones."""
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
        unenforced=unenforced if account.live else "",
    )


def denied_reports(
    specs: Mapping[SliceKey, SliceSpec],
    membership: Membership,
    accounts: Mapping[SliceKey, SliceAccount],
    refused: Collection[SliceKey],
) -> tuple[UsageReport, ...]:
    """One report for every slice without an account that is denied a pod here, or a class."""
    denied = membership.problems.keys() | refused if refused else membership.problems.keys()
    return tuple(
        _denied(specs[key], membership.problems.get(key, ()), _FULL if key in refused else "")
        for key in sorted(denied - accounts.keys())
    )


def told_refused(
    usages: Mapping[SliceKey, UsageReport], refused: Collection[SliceKey]
) -> Mapping[SliceKey, UsageReport]:
    """The reports; those of slices that are known from before, and get no class now, say why."""
    known = [key for key in refused if key in usages]
    return {**usages, **{key: replace(usages[key], unenforced=_FULL) for key in known}} if known else usages


def _denied(spec: SliceSpec, problems: tuple[PodProblem, ...], unenforced: str) -> UsageReport:
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
        unenforced=unenforced,
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
    message = why_unenforced(observed, settings.mode) or "; ".join(snapshot.node.errors) or "limits are in force"
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
