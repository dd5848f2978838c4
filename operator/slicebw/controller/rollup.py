"""From what the nodes report to what a SliceBandwidth's status says. Pure.

Nothing in it depends on when or by whom it is computed, but for a condition's time of transition, and that is kept as
it stands in the object: two controllers at once write the same.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from slicebw.api.bandwidth_usage import NodeUsage
from slicebw.api.conditions import FALSE, TRUE, UNKNOWN, Condition, carry_over
from slicebw.api.slice_bandwidth import ClassStatus, SliceStatus
from slicebw.core.model import SliceSpec, TrafficClass
from slicebw.core.reports import PodProblem, UsageReport

ACCEPTED: Final = "Accepted"
"""The spec is valid, and no pod it selects belongs to another SliceBandwidth."""
ENFORCED: Final = "Enforced"
"""Every node that has the slice runs this generation of the spec."""
CAPPED: Final = "Capped"
"""At least one node has slowed the slice."""

MAX_NAMED: Final = 5
"""Nodes, pods and errors named in one message; the rest are counted."""


def roll_up(spec: SliceSpec, usages: Iterable[NodeUsage], previous: Iterable[Condition], now_s: int) -> SliceStatus:
    """The status of one slice.

    Args:
        spec: as read from the SliceBandwidth.
        usages: the reports of all nodes about it. Those of nodes that it has left count towards what was used.
        previous: the conditions as they stand in the object.
        now_s: becomes the time of transition of what is new.
    """
    ordered = sorted(usages, key=lambda usage: usage.node_name)
    running = [usage for usage in ordered if usage.report.class_id]
    counting = [usage for usage in ordered if usage.report.class_id or _has_used(usage.report)]
    conditions = (_accepted(spec, ordered), _enforced(spec, running), _capped(running))
    return SliceStatus(
        observed_generation=spec.generation,
        nodes=len(running),
        capped_nodes=sum(_is_capped(usage.report) for usage in running),
        period_start_s=min((usage.report.period_start_s for usage in counting), default=None),
        standard=_class_status(TrafficClass.STANDARD, ordered),
        exempt=_class_status(TrafficClass.EXEMPT, ordered),
        conditions=carry_over((Condition(*condition, now_s, spec.generation) for condition in conditions), previous),
    )


def is_transition(before: SliceStatus, after: SliceStatus) -> bool:
    """Whether something other than figures and wording has changed: then the status is not held back."""
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
    """Whether it says what was used, and not only why the slice has no class on the node."""
    return bool(report.standard.used_bytes or report.exempt.used_bytes)


def _class_status(traffic_class: TrafficClass, usages: Sequence[NodeUsage]) -> ClassStatus:
    found = [usage.report.of(traffic_class) for usage in usages]
    return ClassStatus(
        used_bytes=sum(one.used_bytes for one in found),
        peak_percent=max((one.percent for one in found), default=0),
        capped_rate_bps=min((one.rate_bps for one in found if one.capped), default=None),
    )


_Verdict = tuple[str, str, str, str]
"""Of a condition: type, status, reason, message."""


def _accepted(spec: SliceSpec, usages: Sequence[NodeUsage]) -> _Verdict:
    if spec.errors:
        kept = "; the last good limits stay in force, or the defaults where there are none"
        return ACCEPTED, FALSE, "InvalidSpec", _named(spec.errors, "; ") + kept
    problems = {problem.pod: problem for usage in usages for problem in usage.report.problems}
    lost = [_pod_text(problem) for _, problem in sorted(problems.items()) if problem.is_conflict]
    if lost:
        advice = "; change podSelector of one of them, or delete one"
        return ACCEPTED, FALSE, "PodsTaken", f"not in this slice: {_named(lost, '; ')}{advice}"
    left_out = [_pod_text(problem) for _, problem in sorted(problems.items())]
    if left_out:
        return ACCEPTED, TRUE, "Valid", f"the spec is valid; not limited: {_named(left_out, '; ')}"
    return ACCEPTED, TRUE, "Valid", "the spec is valid"


def _enforced(spec: SliceSpec, running: Sequence[NodeUsage]) -> _Verdict:
    if not running:
        return ENFORCED, UNKNOWN, "NoPods", "no node has a pod of this slice that sends through its uplink"
    generation = f"generation {spec.generation}"
    behind = [usage for usage in running if usage.report.generation != spec.generation]
    if not behind:
        count = "1 node runs" if len(running) == 1 else f"{len(running)} nodes run"
        return ENFORCED, TRUE, "OnAllNodes", f"{count} {generation}"
    current = len(running) - len(behind)
    message = f"{current} of {len(running)} nodes run {generation}; not yet: {_named(_names(behind), ', ')}"
    refused = sorted({error for usage in behind for error in usage.report.errors})
    if refused:
        return ENFORCED, FALSE, "RefusedByNodes", f"{message}; they say: {_named(refused, '; ')}"
    return ENFORCED, FALSE, "NodesBehind", message


def _capped(running: Sequence[NodeUsage]) -> _Verdict:
    where = []
    for traffic_class in TrafficClass:
        capped = [usage for usage in running if usage.report.of(traffic_class).capped]
        if capped:
            where.append(f"{traffic_class} traffic is capped on {_named(_names(capped), ', ')}")
    if where:
        return CAPPED, TRUE, "OverThreshold", "; ".join(where)
    return CAPPED, FALSE, "UnderThreshold", "no node caps this slice"


def _names(usages: Iterable[NodeUsage]) -> list[str]:
    return [usage.node_name for usage in usages]


def _pod_text(problem: PodProblem) -> str:
    return f"pod {problem.pod}: {problem.reason}"


def _named(texts: Sequence[str], separator: str) -> str:
    """The first few, and how many more there are."""
    more = len(texts) - MAX_NAMED
    return separator.join(texts[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
