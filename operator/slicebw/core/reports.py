"""What a node reports: usages, its own state, and the writes that carry them. Sinks give them their outer form."""

from collections.abc import Collection, Mapping
from typing import Final

from msgspec import Struct

from slicebw.core.dataplane import DEFAULT_ID, HOST_ID, MAX_SLICES, ObservedTree, RootQdisc, slice_id_of
from slicebw.core.desired import (
    DEFAULT_LIMITS,
    ClassLimits,
    DesiredState,
    Mode,
    NodeSettings,
    SliceKey,
    SliceSpec,
    TrafficClass,
)
from slicebw.core.ledger import ClassAccount, Ledger, PendingEvent, SliceAccount
from slicebw.core.membership import Membership, PodProblem


class ClassUsage(Struct, frozen=True, gc=False):
    """The usage of one class of one slice on one node. ``rate_bps`` is the ceiling in force, 0 if there is none."""

    used_bytes: int
    budget_bytes: int
    percent: int
    rate_bps: int
    capped: bool
    capped_since_s: int | None
    counter_bytes: int = 0
    """The kernel's counter at that time: with it a lost ledger is restored to the byte."""


class UsageReport(Struct, frozen=True, gc=False):
    """The BandwidthUsage of one slice on this node. ``slice_id`` is 0 if the slice has no class here."""

    key: SliceKey
    slice_id: int
    generation: int
    """The generation whose limits are in force here; 0 after the SliceBandwidth is deleted."""
    period_start_s: int
    period_end_s: int
    standard: ClassUsage
    exempt: ClassUsage
    problems: tuple[PodProblem, ...] = ()
    errors: tuple[str, ...] = ()
    """The errors in the spec. While there are any, the last good limits are in force."""
    not_enforced_reason: str = ""
    """The reason why this node does not enforce the limits; empty if it does."""

    def of(self, traffic_class: TrafficClass) -> ClassUsage:
        """Return the usage of one of the two classes."""
        return self.standard if traffic_class is TrafficClass.STANDARD else self.exempt


class NodeReport(Struct, frozen=True):
    """The status of this node's NodeBandwidth."""

    device: str
    mode: Mode
    cap_bps: int
    line_rate_bps: int
    slices: int
    capped_slices: int
    host_bytes: int
    default_bytes: int
    foreign_qdisc: str | None
    """The kind of another program's root qdisc, or None."""
    overcommitted: str | None
    """The sum of all guarantees in words, if it is more than the node can give; else None."""
    ready: bool
    message: str
    generation: int = 0
    not_ready_reason: str = "NotReady"
    """The reason of the condition Ready while it is False."""
    unclassified_max_bps: int = 0
    """The ceiling of standard traffic that could not be classified; the next one is that of exempt traffic."""
    unclassified_exempt_max_bps: int = 0


class UsageWrite(Struct, frozen=True, gc=False):
    """Write the BandwidthUsage of a slice on this node, as reported at ``at_s`` (wall clock)."""

    report: UsageReport
    at_s: int


class UsageRemoval(Struct, frozen=True, gc=False):
    """Remove the BandwidthUsage of a slice on this node."""

    key: SliceKey


class NodeWrite(Struct, frozen=True, gc=False):
    """Write the status of this node's NodeBandwidth, as reported at ``at_s`` (wall clock)."""

    report: NodeReport
    at_s: int


ReportWrite = UsageWrite | UsageRemoval | NodeWrite | PendingEvent
"""One object to write or to remove. An Event is written once."""


def object_of(write: ReportWrite) -> SliceKey | str:
    """Return the object that a write is about. Of two writes to one object only the later one matters."""
    match write:
        case UsageWrite():
            return write.report.key
        case UsageRemoval():
            return write.key
        case NodeWrite():
            return "node"
        case PendingEvent():
            return write.id


NO_ID_LEFT: Final = f"the node has {MAX_SLICES} slices already, the most it can hold"


def not_enforced_reason(observed: ObservedTree, mode: Mode) -> str:
    """Return the reason why a node enforces no limits; empty if it does."""
    if observed.root is RootQdisc.FOREIGN and mode is not Mode.DISABLED:
        blame = f"{observed.device} has a {observed.root_kind} qdisc that is not slicebw's"
        return f"{blame}: remove it, or name another device"
    return "" if mode is Mode.ENFORCE else f"mode {mode}: nothing is limited"


def queues_message(observed: ObservedTree, mode: Mode) -> str:
    """Say that the HTB root replaces the ``mq`` of a device with several transmit queues; empty if it does not."""
    if not observed.lost_queues or mode is Mode.DISABLED or observed.root is RootQdisc.FOREIGN:
        return ""
    return f"one HTB root replaces mq, so the {observed.lost_queues} transmit queues of {observed.device} share a lock"


def usage_report(
    account: SliceAccount,
    spec: SliceSpec | None,
    problems: tuple[PodProblem, ...],
    usages: tuple[ClassUsage, ClassUsage] | None,
    not_enforced_reason: str,
) -> UsageReport:
    """Report one account. ``usages`` is None for a slice that has left the node: nothing is in force for it."""
    if usages is None:
        standard = class_usage(account.standard, account.limits.standard, 0, capped=False)
        exempt = class_usage(account.exempt, account.limits.exempt, 0, capped=False)
    else:
        standard, exempt = usages
    return UsageReport(
        key=account.key,
        slice_id=account.slice_id if account.live else 0,  # a slice that left has no class in force
        generation=account.generation if spec is not None else 0,
        period_start_s=account.period_start_s,
        period_end_s=account.period_end_s,
        standard=standard,
        exempt=exempt,
        problems=problems,
        errors=spec.errors if spec is not None else (),
        not_enforced_reason=not_enforced_reason,
    )


def class_usage(account: ClassAccount, limits: ClassLimits, rate_bps: int, *, capped: bool) -> ClassUsage:
    """Report one class. ``rate_bps`` is the ceiling in force, 0 if there is none."""
    return ClassUsage(
        used_bytes=account.used_bytes,
        budget_bytes=limits.budget_bytes,
        percent=account.used_bytes * 100 // limits.budget_bytes,
        rate_bps=rate_bps,
        capped=capped,
        capped_since_s=account.capped_since_s if capped else None,
        counter_bytes=account.counter_bytes,
    )


def reports_without_class(
    specs: Mapping[SliceKey, SliceSpec],
    membership: Membership,
    accounts: Collection[SliceKey],
    unplaced: Collection[SliceKey],
) -> tuple[UsageReport, ...]:
    """Report every slice without an account that was denied a pod or an id here."""
    denied = {*membership.problems, *unplaced}.difference(accounts)
    return tuple(
        _without_class(specs[key], membership.problems.get(key, ()), NO_ID_LEFT if key in unplaced else "")
        for key in sorted(denied)
    )


def _without_class(spec: SliceSpec, problems: tuple[PodProblem, ...], not_enforced_reason: str) -> UsageReport:
    """Report a slice that never had a class here, with the problems that kept it from one."""
    limits = spec.limits or DEFAULT_LIMITS

    def nothing(traffic_class: TrafficClass) -> ClassUsage:
        return ClassUsage(0, limits.of(traffic_class).budget_bytes, 0, 0, capped=False, capped_since_s=None)

    return UsageReport(
        key=spec.key,
        slice_id=0,
        generation=spec.generation,
        period_start_s=spec.created_s,
        period_end_s=spec.created_s + limits.period_s,
        standard=nothing(TrafficClass.STANDARD),
        exempt=nothing(TrafficClass.EXEMPT),
        problems=problems,
        errors=spec.errors,
        not_enforced_reason=not_enforced_reason,
    )


def node_report(
    desired: DesiredState,
    observed: ObservedTree,
    settings: NodeSettings,
    ledger: Ledger,
    *,
    slices: int,
    capped_slices: int,
    overcommitted: str | None,
) -> NodeReport:
    """Return the status of this node's NodeBandwidth."""
    foreign = observed.root_kind if observed.root is RootQdisc.FOREIGN else None
    # In mode Disabled it does not matter which device is the uplink.
    trouble = observed.uplink_trouble if settings.mode is not Mode.DISABLED else None
    if trouble is not None:
        message = "; ".join((trouble.message, *desired.node.errors))
    else:
        reason = not_enforced_reason(observed, settings.mode)
        message = reason or "; ".join(desired.node.errors) or "limits are in force"
    return NodeReport(
        device=observed.device,
        mode=settings.mode,
        cap_bps=settings.cap_bps,
        line_rate_bps=settings.line_rate_bps,
        slices=slices,
        capped_slices=capped_slices,
        host_bytes=_total(ledger, HOST_ID),
        default_bytes=_total(ledger, DEFAULT_ID),
        foreign_qdisc=foreign,
        overcommitted=overcommitted,
        ready=foreign is None and trouble is None and not desired.node.errors,
        message="; ".join(filter(None, (message, queues_message(observed, settings.mode)))),
        generation=desired.node.generation,
        not_ready_reason=trouble.reason if trouble is not None else "NotReady",
        unclassified_max_bps=settings.unclassified_max_bps,
        unclassified_exempt_max_bps=settings.unclassified_exempt_max_bps,
    )


def _total(ledger: Ledger, slice_id: int) -> int:
    return sum(account.total_bytes for minor, account in ledger.node_totals.items() if slice_id_of(minor) == slice_id)
