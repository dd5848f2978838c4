"""Compute one status from the nodes' reports, with messages that say what to do."""

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from slicebw.api.bandwidth_usage import NodeUsage
from slicebw.api.conditions import Condition
from slicebw.api.slice_bandwidth import SliceStatus, parse_status, status_object
from slicebw.controller.rollup import PodsByNode, is_transition
from slicebw.controller.rollup import roll_up as roll_up_with
from slicebw.core.desired import DEFAULT_LIMITS, Selector, SliceKey, SliceSpec
from slicebw.core.membership import OLDER_HAS_IT, PodProblem
from slicebw.core.reports import UsageReport
from tests.support.reports import DAY_S, GB, PERIOD_START_S, class_usage, usage_report

NAMESPACE = "princeton-codeen"
NOW_S = PERIOD_START_S + 5000


def spec(*, generation: int = 1, errors: tuple[str, ...] = ()) -> SliceSpec:
    limits = None if errors else DEFAULT_LIMITS
    return SliceSpec(SliceKey(NAMESPACE, "codeen"), "uid", generation, 0, Selector(), limits, errors)


def on(node: str, report: UsageReport | None = None) -> NodeUsage:
    return NodeUsage(report or usage_report(NAMESPACE), node, NOW_S)


def roll_up(
    current: SliceSpec,
    usages: Iterable[NodeUsage],
    previous: Sequence[Condition],
    now_s: int,
    located: PodsByNode | str | None = None,
) -> SliceStatus:
    """Roll up with one pod on each node that has a class, unless ``located`` is given."""
    known = list(usages)
    seen = {usage.node_name: 1 for usage in known if usage.report.slice_id} if located is None else located
    return roll_up_with(current, known, seen, previous, now_s)


def condition(status: SliceStatus, name: str) -> Condition:
    return next(one for one in status.conditions if one.type == name)


def outcome(status: SliceStatus, name: str) -> tuple[str, str, str]:
    found = condition(status, name)
    return found.status, found.reason, found.message


def test_nothing_reported_is_a_slice_without_pods() -> None:
    status = roll_up(spec(), [], (), NOW_S)
    assert (status.nodes, status.capped_nodes, status.period_start_s) == (0, 0, None)
    assert outcome(status, "Enforced")[:2] == ("Unknown", "NoPods")
    assert outcome(status, "Accepted") == ("True", "Valid", "the spec is valid")
    assert outcome(status, "Capped") == ("False", "UnderThreshold", "no node has capped this slice")


def test_bytes_add_up_and_the_worst_node_and_the_lowest_cap_show() -> None:
    usages = [
        on("n1", usage_report(NAMESPACE, standard=class_usage(9 * GB, capped=True, rate_bps=700_000))),
        on("n2", usage_report(NAMESPACE, standard=class_usage(8 * GB, capped=True, rate_bps=900_000))),
        on("n3", usage_report(NAMESPACE, standard=class_usage(GB), exempt=class_usage(2 * GB))),
    ]
    status = roll_up(spec(), usages, (), NOW_S)
    assert (status.nodes, status.capped_nodes) == (3, 2)
    assert (status.standard.used_bytes, status.standard.peak_percent) == (18 * GB, 90)
    assert status.standard.capped_rate_bps == 700_000
    assert (status.exempt.used_bytes, status.exempt.capped_rate_bps) == (2 * GB, None)
    assert outcome(status, "Capped") == ("True", "OverThreshold", "standard traffic is capped on n1, n2")


def test_a_node_capped_in_both_classes_is_one_capped_node() -> None:
    capped = class_usage(9 * GB, capped=True, rate_bps=8)
    status = roll_up(spec(), [on("n1", usage_report(NAMESPACE, standard=capped, exempt=capped))], (), NOW_S)
    assert status.capped_nodes == 1
    message = "standard traffic is capped on n1; exempt traffic is capped on n1"
    assert outcome(status, "Capped")[2] == message


def test_the_earliest_running_period_shows() -> None:
    starts = [PERIOD_START_S + 50, PERIOD_START_S, PERIOD_START_S + 100]
    usages = [on(f"n{at}", usage_report(NAMESPACE, period_start_s=at)) for at in starts]
    assert roll_up(spec(), usages, (), NOW_S).period_start_s == PERIOD_START_S


def test_a_node_that_only_says_why_the_slice_has_no_class_there_runs_no_period() -> None:
    denied = usage_report(NAMESPACE, slice_id=0, period_start_s=PERIOD_START_S - 10 * DAY_S)
    assert roll_up(spec(), [on("n1", denied)], (), NOW_S).period_start_s is None
    assert roll_up(spec(), [on("n1", denied), on("n2")], (), NOW_S).period_start_s == PERIOD_START_S


def test_a_node_that_the_slice_has_left_counts_towards_what_was_used_but_not_as_a_node() -> None:
    left = usage_report(NAMESPACE, slice_id=0, generation=0, standard=class_usage(4 * GB))
    status = roll_up(spec(), [on("n1"), on("n2", left)], (), NOW_S)
    assert (status.nodes, status.standard.used_bytes, status.standard.peak_percent) == (1, 4 * GB, 40)
    assert outcome(status, "Enforced") == ("True", "OnAllNodes", "1 node enforces generation 1")


def test_nodes_that_run_an_older_generation_are_named() -> None:
    usages = [on("n1"), on("n2", usage_report(NAMESPACE, generation=2))]
    status = roll_up(spec(generation=2), usages, (), NOW_S)
    assert outcome(status, "Enforced") == (
        "False",
        "NodesBehind",
        "1 of 2 nodes enforce generation 2; an earlier one is in force on n1",
    )


def test_of_many_nodes_only_the_first_few_are_named() -> None:
    usages = [on(f"n{number:02}") for number in range(12)]
    message = outcome(roll_up(spec(generation=2), usages, (), NOW_S), "Enforced")[2]
    first = "0 of 12 nodes enforce generation 2; an earlier one is in force on "
    assert message == first + "n00, n01, n02, n03, n04 and 7 more"


def test_errors_of_nodes_about_a_spec_that_is_valid_here_are_in_the_message() -> None:
    usages = [on("n1", usage_report(NAMESPACE, errors=("spec.share: 5000 is not a share",)))]
    status = roll_up(spec(generation=2), usages, (), NOW_S)
    assert outcome(status, "Enforced")[:2] == ("False", "RefusedByNodes")
    assert "refused as invalid: spec.share: 5000 is not a share" in outcome(status, "Enforced")[2]


def test_an_invalid_spec_is_not_accepted_and_every_error_is_named() -> None:
    status = roll_up(spec(errors=("spec.period: too short", "spec.share: too high")), [], (), NOW_S)
    assert outcome(status, "Accepted") == (
        "False",
        "InvalidSpec",
        "spec.period: too short; spec.share: too high; "
        "the last good limits stay in force, or the defaults if there were none",
    )


def test_pods_that_an_older_slice_has_are_named_with_the_winner() -> None:
    problems = (
        PodProblem(f"{NAMESPACE}/host", "it is a hostNetwork pod"),
        PodProblem(f"{NAMESPACE}/web", f"{OLDER_HAS_IT}{NAMESPACE}/older"),
    )
    # A slice that has lost all its pods has no class on the node.
    usages = [on("n1", usage_report(NAMESPACE, slice_id=0, problems=problems))]
    status = roll_up(spec(), usages, (), NOW_S)
    assert outcome(status, "Accepted") == (
        "False",
        "PodsTaken",
        f"not in this slice: pod {NAMESPACE}/web: it belongs to the older SliceBandwidth {NAMESPACE}/older; "
        "change the podSelector of one SliceBandwidth, or delete one",
    )


def test_pods_that_cannot_be_limited_are_named_but_the_spec_is_accepted() -> None:
    problems = (PodProblem(f"{NAMESPACE}/host", "it is a hostNetwork pod"),)
    status = roll_up(spec(), [on("n1", usage_report(NAMESPACE, problems=problems))], (), NOW_S)
    message = f"the spec is valid; not limited: pod {NAMESPACE}/host: it is a hostNetwork pod"
    assert outcome(status, "Accepted") == ("True", "Valid", message)


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = roll_up(spec(), [on("n1")], (), NOW_S)
    assert {one.last_transition_s for one in first.conditions} == {NOW_S}
    capped = on("n1", usage_report(NAMESPACE, standard=class_usage(9 * GB, capped=True)))
    second = roll_up(spec(), [capped], first.conditions, NOW_S + 60)
    assert condition(second, "Capped").last_transition_s == NOW_S + 60
    assert condition(second, "Accepted").last_transition_s == NOW_S


def test_the_status_does_not_depend_on_the_order_of_usages_or_the_time() -> None:
    usages = [on(f"n{number}") for number in range(8)]
    first = roll_up(spec(), usages, (), NOW_S)
    assert roll_up(spec(), reversed(usages), first.conditions, NOW_S + 99) == first


def test_only_figures_and_wording_are_no_transition() -> None:
    before = roll_up(spec(), [on("n1", usage_report(NAMESPACE, standard=class_usage(GB)))], (), NOW_S)
    after = roll_up(spec(), [on("n1", usage_report(NAMESPACE, standard=class_usage(2 * GB)))], (), NOW_S)
    assert before != after
    assert not is_transition(before, after)


def test_a_cap_a_node_a_generation_are_transitions() -> None:
    before = roll_up(spec(), [on("n1")], (), NOW_S)
    capped = usage_report(NAMESPACE, standard=class_usage(9 * GB, capped=True))
    for after in (
        roll_up(spec(), [on("n1", capped)], (), NOW_S),
        roll_up(spec(), [on("n1"), on("n2")], (), NOW_S),
        roll_up(spec(generation=2), [on("n1")], (), NOW_S),
        roll_up(spec(errors=("wrong",)), [on("n1")], (), NOW_S),
    ):
        assert is_transition(before, after)
        assert is_transition(after, before)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**15), st.booleans(), st.integers(8, 10**11), st.integers(0, 3), st.integers(0, 3)),
        max_size=8,
    ),
    st.integers(0, 3),
)
def test_every_status_is_read_back_as_it_was_written(
    nodes: list[tuple[int, bool, int, int, int]], generation: int
) -> None:
    usages = [
        on(
            f"n{number}",
            replace(
                usage_report(NAMESPACE, standard=class_usage(used, capped=capped and bool(slice_id), rate_bps=rate)),
                slice_id=slice_id,
                generation=reported,
            ),
        )
        for number, (used, capped, rate, slice_id, reported) in enumerate(nodes)
    ]
    status = roll_up(spec(generation=generation), usages, (), NOW_S)
    assert parse_status(status_object(SliceKey(NAMESPACE, "codeen"), status)) == status


def enforced(usages: list[NodeUsage], located: PodsByNode | str | None, generation: int = 1) -> tuple[str, str, str]:
    return outcome(roll_up(spec(generation=generation), usages, (), NOW_S, located), "Enforced")


def test_a_node_that_runs_pods_and_reports_nothing_is_named_with_what_to_check() -> None:
    assert enforced([on("n1")], {"n1": 1, "node-7": 2}) == (
        "False",
        "NodesSilent",
        "1 of 2 nodes enforce generation 1; "
        "node-7 runs 2 pods of this slice and has not reported it: is the agent running there?",
    )
    assert enforced([], {"n1": 1, "n2": 3})[2] == (
        "0 of 2 nodes enforce generation 1; "
        "n1 (1 pod), n2 (3 pods) run pods of this slice and have not reported it: is the agent running there?"
    )


def test_a_report_from_before_the_pod_started_does_not_count() -> None:
    left = usage_report(NAMESPACE, slice_id=0, generation=1)
    assert enforced([on("n1", left)], {"n1": 1})[:2] == ("False", "NodesSilent")


def test_a_node_without_pods_any_more_does_not_count_whatever_it_reported_last() -> None:
    stale = on("n1", usage_report(NAMESPACE, generation=1))
    current = on("n2", usage_report(NAMESPACE, generation=2))
    assert enforced([stale, current], {"n2": 1}, 2) == ("True", "OnAllNodes", "1 node enforces generation 2")


def test_a_node_that_limits_nothing_is_not_one_that_enforces() -> None:
    why = "mode Monitor: nothing is limited"
    watching = on("n2", replace(usage_report(NAMESPACE), not_enforced_reason=why))
    assert enforced([on("n1"), watching], {"n1": 1, "n2": 1}) == (
        "False",
        "NotLimited",
        "1 of 2 nodes enforce generation 1; not enforced on n2 (mode Monitor: nothing is limited)",
    )
    full = on(
        "n2", replace(usage_report(NAMESPACE, slice_id=0), not_enforced_reason="the node has 4094 slices already")
    )
    assert enforced([full], {"n2": 1})[1:] == (
        "NotLimited",
        "0 of 1 nodes enforce generation 1; not enforced on n2 (the node has 4094 slices already)",
    )


def test_while_the_pods_nodes_are_unknown_enforced_is_unknown() -> None:
    assert enforced([on("n1")], "pods is forbidden")[:2] == ("Unknown", "PodsUnknown")
    assert "pods is forbidden" in enforced([on("n1")], "pods is forbidden")[2]
    assert roll_up_with(spec(), [on("n1")], None, (), NOW_S).conditions[1].reason == "PodsUnknown"
    before = roll_up(spec(), [on("n1")], (), NOW_S).conditions
    after = roll_up_with(spec(generation=2), [on("n1")], None, before, NOW_S + 1).conditions
    assert after[1] == before[1], "what was said stays, and which generation it was said of"
