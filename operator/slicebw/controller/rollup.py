"""Computes the status of a SliceBandwidth from the nodes' reports and from where its pods run. Pure.

Two controllers with the same knowledge compute the same status. Only a condition's time of transition depends on the
clock, and a condition that is in the object already keeps it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from slicebw.api.bandwidth_usage import NodeUsage
from slicebw.api.conditions import FALSE, TRUE, UNKNOWN, Condition, carry_over
from slicebw.api.slice_bandwidth import ClassStatus, SliceStatus
from slicebw.core.desired import SliceSpec, TrafficClass
from slicebw.core.membership import PodProblem
from slicebw.core.reports import UsageReport

ACCEPTED: Final = "Accepted"
"""The spec is valid, and no pod it selects belongs to another SliceBandwidth."""
ENFORCED: Final = "Enforced"
"""Every node that runs pods of the slice enforces this generation of the spec."""
CAPPED: Final = "Capped"
"""At least one node has capped the slice."""

NO_PODS: Final = "NoPods"
"""Reason of Enforced while there is nothing to enforce."""

PodsByNode = Mapping[str, int]
"""How many pods of a slice run on each node; nodes without any are left out."""

MAX_NAMED: Final = 5
"""The most nodes, pods or errors that one message names; the rest are counted."""


def roll_up(
    spec: SliceSpec,
    usages: Iterable[NodeUsage],
    located: PodsByNode | str | None,
    previous: Sequence[Condition],
    now_s: int,
) -> SliceStatus:
    """Compute the status of one slice.

    Args:
        spec: as read from the SliceBandwidth.
        usages: the reports of all nodes about it. Those of nodes that it has left count towards the bytes used.
        located: how many of its pods run on each node, or a text that says why that is unknown. None keeps the
            condition Enforced of ``previous``.
        previous: the conditions in the object.
        now_s: the time of transition of conditions that change, in seconds since the epoch.
    """
    ordered = sorted(usages, key=lambda usage: usage.node_name)
    # A node without a slice id only says why the slice has no class there, or what a slice that has left had used.
    running = [usage for usage in ordered if usage.report.slice_id]
    counting = [usage for usage in ordered if usage.report.slice_id or _has_used(usage.report)]
    accepted, capped = (one.dated(now_s, spec) for one in (_accepted(spec, ordered), _capped(running)))
    # Until the pods are listed the last statement stays: its generation shows that it may be an old one.
    kept = next((one for one in previous if one.type == ENFORCED), None) if located is None else None
    enforced = kept or _enforced(spec, ordered, located).dated(now_s, spec)
    return SliceStatus(
        observed_generation=spec.generation,
        nodes=len(running),
        capped_nodes=sum(_is_capped(usage.report) for usage in running),
        period_start_s=min((usage.report.period_start_s for usage in counting), default=None),
        standard=_class_status(TrafficClass.STANDARD, ordered),
        exempt=_class_status(TrafficClass.EXEMPT, ordered),
        conditions=carry_over((accepted, enforced, capped), previous),
    )


def is_outdated(located: PodsByNode | str, usages: Iterable[NodeUsage]) -> bool:
    """Tell whether a pod has started since the list: a node reports the slice where the list found no pod of it."""
    return isinstance(located, Mapping) and any(
        usage.report.slice_id and usage.node_name not in located for usage in usages
    )


def is_transition(before: SliceStatus, after: SliceStatus) -> bool:
    """Tell whether something other than figures and wording has changed: then the status is not to wait."""
    return _outline(before) != _outline(after)


def _outline(status: SliceStatus) -> tuple[object, ...]:
    return (
        status.observed_generation,
        status.nodes,
        status.capped_nodes,
        status.standard.capped_rate_bps is None,
        status.exempt.capped_rate_bps is None,
        tuple((condition.type, condition.status, condition.reason) for condition in status.conditions),
    )


def _is_capped(report: UsageReport) -> bool:
    return report.standard.capped or report.exempt.capped


def _has_used(report: UsageReport) -> bool:
    """Tell whether a report counts bytes. One without may only say why the slice has no class on the node."""
    return bool(report.standard.used_bytes or report.exempt.used_bytes)


def _class_status(traffic_class: TrafficClass, usages: Sequence[NodeUsage]) -> ClassStatus:
    found = [usage.report.of(traffic_class) for usage in usages]
    return ClassStatus(
        used_bytes=sum(one.used_bytes for one in found),
        peak_percent=max((one.percent for one in found), default=0),
        capped_rate_bps=min((one.rate_bps for one in found if one.capped), default=None),
    )


@dataclass(frozen=True, slots=True)
class _UndatedCondition:
    """A condition without its time of transition and generation."""

    type: str
    status: str
    reason: str
    message: str

    def dated(self, now_s: int, spec: SliceSpec) -> Condition:
        return Condition(self.type, self.status, self.reason, self.message, now_s, spec.generation)


def _accepted(spec: SliceSpec, usages: Sequence[NodeUsage]) -> _UndatedCondition:
    if spec.errors:
        kept = "; the last good limits stay in force, or the defaults if there were none"
        return _UndatedCondition(ACCEPTED, FALSE, "InvalidSpec", _named(spec.errors, "; ") + kept)
    # By pod: if one is created again on another node, both nodes may still report a problem of it.
    problems = {problem.pod: problem for usage in usages for problem in usage.report.problems}
    lost = [_pod_text(problem) for _, problem in sorted(problems.items()) if problem.is_conflict]
    if lost:
        advice = "; change the podSelector of one SliceBandwidth, or delete one"
        return _UndatedCondition(ACCEPTED, FALSE, "PodsTaken", f"not in this slice: {_named(lost, '; ')}{advice}")
    left_out = [_pod_text(problem) for _, problem in sorted(problems.items())]
    if left_out:
        return _UndatedCondition(ACCEPTED, TRUE, "Valid", f"the spec is valid; not limited: {_named(left_out, '; ')}")
    return _UndatedCondition(ACCEPTED, TRUE, "Valid", "the spec is valid")


def _enforced(spec: SliceSpec, usages: Sequence[NodeUsage], located: PodsByNode | str | None) -> _UndatedCondition:
    if not isinstance(located, Mapping):
        why = located or "they have not been listed yet"
        message = f"the nodes of this slice's pods are unknown: {why}"
        return _UndatedCondition(ENFORCED, UNKNOWN, "PodsUnknown", message)
    if not located:
        message = "no node runs a pod of this slice that sends through the node's uplink"
        return _UndatedCondition(ENFORCED, UNKNOWN, NO_PODS, message)
    nodes = _by_report(spec, usages, located)
    if nodes.current == len(located):
        count = "1 node enforces" if nodes.current == 1 else f"{nodes.current} nodes enforce"
        return _UndatedCondition(ENFORCED, TRUE, "OnAllNodes", f"{count} generation {spec.generation}")
    # If nodes differ, the reason is the one that most needs somebody to act; the message names all of them.
    reasons = (
        (nodes.refusing, "RefusedByNodes"),
        (nodes.behind, "NodesBehind"),
        (nodes.silent, "NodesSilent"),
        (nodes.unlimited, "NotLimited"),
    )
    reason = next(reason for named, reason in reasons if named)
    return _UndatedCondition(ENFORCED, FALSE, reason, _missing_text(spec, nodes, located))


def _missing_text(spec: SliceSpec, nodes: "_Nodes", located: PodsByNode) -> str:
    behind = sorted(nodes.behind + nodes.refusing)
    parts = [f"{nodes.current} of {len(located)} nodes enforce generation {spec.generation}"]
    parts += [f"an earlier one is in force on {_named(behind, ', ')}"] if behind else []
    parts += [f"refused as invalid: {_named(sorted(nodes.errors), '; ')}"] if nodes.errors else []
    parts += [_silent_text(nodes.silent, located)] if nodes.silent else []
    parts += [f"not enforced on {_named(nodes.unlimited, ', ')}"] if nodes.unlimited else []
    return "; ".join(parts)


@dataclass(slots=True)
class _Nodes:
    """The nodes that run pods of a slice, by what they report about it; ``unlimited`` includes the reason."""

    current: int = 0
    behind: list[str] = field(default_factory=list)
    refusing: list[str] = field(default_factory=list)
    errors: set[str] = field(default_factory=set)
    silent: list[str] = field(default_factory=list)
    unlimited: list[str] = field(default_factory=list)


def _by_report(spec: SliceSpec, usages: Sequence[NodeUsage], located: PodsByNode) -> _Nodes:
    nodes, reports = _Nodes(), {usage.node_name: usage.report for usage in usages}
    for node in sorted(located):
        report = reports.get(node)
        # A report from before the pod started is left over from an earlier pod: it says nothing about this one.
        if report is None or not (report.slice_id or report.not_enforced_reason):
            nodes.silent.append(node)
        elif report.not_enforced_reason:
            nodes.unlimited.append(f"{node} ({report.not_enforced_reason})")
        elif report.generation == spec.generation:
            nodes.current += 1
        elif report.errors:
            nodes.refusing.append(node)
            nodes.errors.update(report.errors)
        else:
            nodes.behind.append(node)
    return nodes


def _silent_text(nodes: Sequence[str], located: PodsByNode) -> str:
    """Name the nodes that run pods of the slice and have not reported it, and what to check there."""
    if len(nodes) == 1:
        runs = f"{nodes[0]} runs {_pods(located[nodes[0]])} of this slice and has not reported it"
    else:
        named = _named([f"{node} ({_pods(located[node])})" for node in nodes], ", ")
        runs = f"{named} run pods of this slice and have not reported it"
    return f"{runs}: is the agent running there?"


def _pods(count: int) -> str:
    return "1 pod" if count == 1 else f"{count} pods"


def _capped(running: Sequence[NodeUsage]) -> _UndatedCondition:
    where = []
    for traffic_class in TrafficClass:
        capped = [usage for usage in running if usage.report.of(traffic_class).capped]
        if capped:
            where.append(f"{traffic_class} traffic is capped on {_named(_names(capped), ', ')}")
    if where:
        return _UndatedCondition(CAPPED, TRUE, "OverThreshold", "; ".join(where))
    return _UndatedCondition(CAPPED, FALSE, "UnderThreshold", "no node has capped this slice")


def _names(usages: Iterable[NodeUsage]) -> list[str]:
    return [usage.node_name for usage in usages]


def _pod_text(problem: PodProblem) -> str:
    return f"pod {problem.pod}: {problem.reason}"


def _named(texts: Sequence[str], separator: str) -> str:
    """Join the first MAX_NAMED texts, and say how many more there are."""
    more = len(texts) - MAX_NAMED
    return separator.join(texts[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
