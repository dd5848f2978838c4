from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import MAX_SLICES, NO_CEILING_BPS, TOP, DeleteClass, ResetTokens, RootQdisc
from slicebw.core.desired import Mode, NodeSpec, SliceKey, TrafficClass
from slicebw.core.ledger import Ledger, Reason
from slicebw.core.node_pass import LONGEST_NS, PENDING_EVENTS_LIMIT, SHORTEST_NS, next_pass_ns
from slicebw.core.plan import matches
from slicebw.core.policy import Rates, cap_bps, time_to_threshold_ns
from tests.unit.core.builders import START_S, M, Node, at, pod, spec

KEY = SliceKey("ns", "slice")
POD = pod("ns/pod", "10.0.0.1")
STANDARD, EXEMPT = 0x1001, 0x2001


def one_slice(**standard: Any) -> Node:
    """A node with one slice on it, its tree built: 80 MB of 100 MB are the threshold, the period is an hour."""
    node = Node(spec(**standard), pods=(POD,))
    node.run(at(0))
    return node


def reasons(node: Node) -> list[Reason]:
    return [note.reason for note in node.ledger.pending_events]


def test_a_slice_appears_with_both_classes_and_its_address_and_a_period() -> None:
    node = one_slice()
    assert node.classes[STANDARD].ceil_bps == 10 * M
    assert {STANDARD, EXEMPT} <= set(node.classes)
    assert node.table.slice_id_by_address == {"10.0.0.1": 1}
    assert node.ledger.slices[KEY].period_start_s == START_S


def test_planning_twice_changes_nothing_the_second_time() -> None:
    node = one_slice()
    again = node.run(at(0))
    assert again.tree_changes == ()
    assert again.table_change is None


def test_over_the_threshold_the_class_gets_exactly_what_the_formula_says() -> None:
    node = one_slice()
    node.send(STANDARD, 90 * M)
    node.run(at(1000))
    expected = cap_bps(Rates(8, 10 * M), 100 * M, 90 * M, 2600 * NS)
    assert node.classes[STANDARD].ceil_bps == expected == 30_768
    assert node.classes[EXEMPT].ceil_bps == 10 * M


def test_one_event_tells_of_the_cap_and_one_of_its_end_however_many_passes() -> None:
    node = one_slice()
    node.send(STANDARD, 90 * M)
    for second in range(1000, 1005):
        node.run(at(second))
    (note,) = node.ledger.pending_events
    assert note.reason is Reason.CAPPED
    assert note.message == (
        "Slowed standard traffic of slice ns/slice to 30.7kbit/s until 2023-11-14T23:13:20Z: "
        "it has used 90M of 100M (90 %) since 2023-11-14T22:13:20Z"
    )
    node.run(at(3600))
    node.run(at(3601))
    assert reasons(node) == [Reason.CAPPED, Reason.RESTORED]


def test_at_the_end_of_its_period_a_slice_starts_again_at_once() -> None:
    node = one_slice()
    node.send(STANDARD, 90 * M)
    node.run(at(3599))
    assert node.run(at(3599.5)).next_pass_ns == NS // 2
    result = node.run(at(3600))
    assert node.classes[STANDARD].ceil_bps == 10 * M
    (usage,) = result.usages
    assert (usage.standard.used_bytes, usage.period_start_s) == (0, START_S + 3600)


def test_a_cap_is_set_right_at_once_by_what_was_sent_before_it_took_hold() -> None:
    node = one_slice()
    node.send(STANDARD, 90 * M)
    assert node.run(at(0)).next_pass_ns == NS // 5
    first_bps = node.classes[STANDARD].ceil_bps
    node.send(STANDARD, 5 * M)
    assert node.run(at(0.2)).next_pass_ns == 10 * NS
    assert node.classes[STANDARD].ceil_bps == pytest.approx(first_bps / 2, rel=0.01)


def test_raised_limits_lift_the_cap_at_once_and_a_second_cap_in_the_period_is_not_announced_again() -> None:
    node = one_slice()
    node.send(STANDARD, 90 * M)
    node.run(at(10))
    low = node.desired
    node.desired = replace(low, slices=(spec(budget_bytes=1000 * M),))
    node.run(at(11))
    assert node.classes[STANDARD].ceil_bps == 10 * M
    node.desired = low
    node.run(at(12))
    assert node.classes[STANDARD].ceil_bps < 10 * M
    assert reasons(node) == [Reason.CAPPED, Reason.RESTORED]


def test_both_classes_capped_in_one_pass_are_two_events() -> None:
    """Bwmon mailed nobody then."""
    node = one_slice()
    node.send(STANDARD, 90 * M)
    node.send(EXEMPT, 95 * M)
    node.run(at(10))
    assert reasons(node) == [Reason.CAPPED, Reason.CAPPED]
    assert len({note.id for note in node.ledger.pending_events}) == 2


def test_a_slice_that_left_and_came_back_goes_on_where_it_was() -> None:
    node = one_slice()
    node.send(STANDARD, 90 * M)
    node.run(at(10))
    here = node.desired
    node.desired = replace(here, slices=(), pods=())
    for second in (11, 12):
        node.run(at(second))
    assert STANDARD not in node.classes
    assert not node.table.slice_id_by_address
    node.desired = replace(here, slices=(replace(here.slices[0], uid="another object of the same name"),))
    node.run(at(13))
    account = node.ledger.slices[KEY]
    assert (account.standard.used_bytes, account.slice_id, account.period_start_s) == (90 * M, 1, START_S)
    assert node.classes[STANDARD].ceil_bps < 10 * M
    assert reasons(node) == [Reason.CAPPED]


def test_a_slice_that_is_gone_is_forgotten_after_its_period() -> None:
    node = one_slice()
    node.desired = replace(node.desired, slices=(), pods=())
    for second in (1, 2, 3600):
        result = node.run(at(second))
    assert node.ledger.slices == {}
    assert result.usages == ()


def test_a_class_that_still_sends_is_not_deleted_before_its_last_byte_is_counted() -> None:
    node = one_slice()
    node.desired = replace(node.desired, pods=())
    node.run(at(1))  # the address leaves the table; the class is still targeted in this pass's view
    node.classes[STANDARD] = replace(node.classes[STANDARD], backlog_bytes=3000, sent_bytes=500)
    node.run(at(2))
    assert STANDARD in node.classes
    node.classes[STANDARD] = replace(node.classes[STANDARD], backlog_bytes=0, sent_bytes=3500)
    node.run(at(3))
    assert STANDARD not in node.classes
    assert node.ledger.slices[KEY].standard.used_bytes == 3500


def test_a_class_whose_queue_stands_still_is_emptied_and_deleted_only_when_nothing_can_go_uncounted() -> None:
    node = one_slice()
    node.desired = replace(node.desired, pods=())
    node.run(at(1))
    node.classes[STANDARD] = replace(node.classes[STANDARD], backlog_bytes=3000, sent_bytes=500)
    assert node.run(at(2)).tree_changes == (DeleteClass(EXEMPT),)
    seen = node.classes[STANDARD]
    (change,) = node.run(at(2.2)).tree_changes
    assert isinstance(change, ResetTokens)
    assert matches(change.spec, seen)
    # One more packet left between that dump and the change.
    node.send(STANDARD, 1500)
    assert node.run(at(2.4)).tree_changes == (DeleteClass(STANDARD),)
    assert node.ledger.slices[KEY].standard.used_bytes == 2000


def test_a_tree_taken_away_is_made_again_and_usage_continues() -> None:
    node = one_slice()
    node.send(STANDARD, 40 * M)
    node.run(at(5))
    node.lose_tree()
    node.run(at(6))
    node.send(STANDARD, 50 * M)
    node.run(at(7))
    assert node.ledger.slices[KEY].standard.used_bytes == 90 * M
    assert reasons(node) == [Reason.TREE_REBUILT, Reason.CAPPED]


def test_a_reboot_forgives_nothing() -> None:
    node = one_slice()
    node.send(STANDARD, 90 * M)
    node.run(at(5))
    node.lose_tree()
    node.table = replace(node.table, slice_id_by_address={}, intact=False, present=False)
    node.run(at(60, "the next boot"))
    assert node.ledger.slices[KEY].standard.used_bytes == 90 * M
    assert node.classes[STANDARD].ceil_bps < 10 * M
    assert reasons(node) == [Reason.CAPPED]


def test_before_the_first_complete_list_nothing_is_deleted() -> None:
    node = one_slice()
    kept = dict(node.classes)
    node.desired = replace(node.desired, slices=(), pods=(), synced=False)
    for second in (1, 2, 3):
        node.run(at(second))
    assert node.classes == kept
    assert node.table.slice_id_by_address == {"10.0.0.1": 1}
    assert node.ledger.slices[KEY].live


def test_an_invalid_spec_keeps_the_last_good_limits_and_says_so_once() -> None:
    node = one_slice(max_rate_bps=20 * M)
    bad = replace(spec(), limits=None, generation=2, errors=("spec.standard.maxRate: wrong",))
    node.desired = replace(node.desired, slices=(bad,))
    for second in (1, 2):
        result = node.run(at(second))
    assert node.classes[STANDARD].ceil_bps == 20 * M
    assert reasons(node) == [Reason.INVALID]
    assert (result.usages[0].generation, result.usages[0].errors) == (1, bad.errors)


def test_a_slice_that_was_never_valid_gets_the_defaults() -> None:
    node = Node(replace(spec(), limits=None, errors=("x",)), pods=(POD,))
    node.run(at(0))
    assert node.classes[STANDARD].ceil_bps == 1000 * M


def test_one_more_slice_than_there_are_ids_is_unplaced_with_one_event() -> None:
    names = [f"ns{n:04}/s" for n in range(MAX_SLICES + 1)]
    specs = [spec(name, created_s=n) for n, name in enumerate(names)]
    pods = tuple(pod(f"ns{n:04}/p", f"10.{n // 65536}.{n // 256 % 256}.{n % 256}") for n in range(len(names)))
    node = Node(*reversed(specs), pods=pods)
    for second in (0, 1):
        result = node.run(at(second))
    (report,) = (usage for usage in result.usages if usage.key == specs[-1].key)
    assert (report.slice_id, report.not_enforced_reason) == (
        0,
        "the node has 4094 slices already, the most it can hold",
    )
    assert sum(bool(usage.not_enforced_reason) for usage in result.usages) == 1
    assert len(node.ledger.slices) == MAX_SLICES
    (note,) = node.ledger.pending_events
    assert (note.reason, note.key) == (Reason.REFUSED, specs[-1].key)
    assert len({account.slice_id for account in node.ledger.slices.values()}) == MAX_SLICES


def test_freed_ids_are_reused_last() -> None:
    first, second = spec("ns/first"), spec("other/second")
    node = Node(first, pods=(POD,))
    for second_s in (0, 1):
        node.run(at(second_s))
    node.desired = replace(node.desired, slices=(second,), pods=(pod("other/p", "10.0.0.2"),))
    node.ledger = replace(node.ledger, slices={})
    node.run(at(2))
    assert node.ledger.slices[second.key].slice_id == 2


def test_after_a_lost_ledger_the_class_that_serves_the_address_is_reclaimed() -> None:
    node = one_slice()
    node.send(STANDARD, 5 * M)
    node.ledger = Ledger()
    result = node.run(at(1))
    account = node.ledger.slices[KEY]
    assert (account.slice_id, account.standard.counter_bytes, account.standard.used_bytes) == (1, 5 * M, 0)
    assert result.tree_changes == ()


def test_monitor_mode_limits_nothing_and_says_what_it_would_have_done() -> None:
    node = Node(spec(), pods=(POD,), node=NodeSpec(line_rate_bps=1000 * M, cap_bps=100 * M, mode=Mode.MONITOR))
    node.run(at(0))
    node.send(STANDARD, 90 * M)
    result = node.run(at(1))
    assert {seen.ceil_bps for seen in node.classes.values()} == {NO_CEILING_BPS}
    assert node.classes[TOP].rate_bps == NO_CEILING_BPS
    assert result.usages[0].standard.capped
    assert result.usages[0].standard.rate_bps == 1000 * M
    assert node.ledger.pending_events[0].message.startswith("Would have slowed (mode Monitor) standard traffic")


def test_monitor_mode_limits_nothing_on_a_device_that_reports_no_speed() -> None:
    node = Node(spec(), pods=(POD,), node=NodeSpec(mode=Mode.MONITOR))
    node.run(at(0))
    assert {seen.ceil_bps for seen in node.classes.values()} == {NO_CEILING_BPS}
    assert node.run(at(1)).tree_changes == ()


@pytest.mark.parametrize(
    ("changes", "standard_bps", "exempt_bps"),
    [
        ({}, 100 * M, 1000 * M),
        ({"unclassified_max_bps": 5 * M}, 5 * M, 1000 * M),
        ({"unclassified_exempt_max_bps": 6 * M + 7}, 100 * M, 6 * M),
        ({"unclassified_max_bps": 300 * M, "unclassified_exempt_max_bps": 3000 * M}, 100 * M, 1000 * M),
    ],
)
def test_what_nobody_owns_has_a_ceiling_of_its_own_below_that_of_its_class(
    changes: dict[str, int], standard_bps: int, exempt_bps: int
) -> None:
    node = Node(spec(), pods=(POD,), node=NodeSpec(line_rate_bps=1000 * M, cap_bps=100 * M, **changes))  # type: ignore[arg-type]
    report = node.run(at(0)).node
    assert (node.classes[0x1FFF].ceil_bps, node.classes[0x2FFF].ceil_bps) == (standard_bps, exempt_bps)
    assert (report.unclassified_max_bps // 8 * 8, report.unclassified_exempt_max_bps // 8 * 8) == (
        standard_bps,
        exempt_bps,
    )
    assert (node.classes[0x1000].ceil_bps, node.classes[0x2000].ceil_bps) == (100 * M, 1000 * M)


@pytest.mark.parametrize(
    ("mode", "before"), [(Mode.ENFORCE, "limits are in force"), (Mode.MONITOR, "mode Monitor: nothing is limited")]
)
def test_an_uplink_that_loses_its_queues_says_so_in_every_report(mode: Mode, before: str) -> None:
    node = Node(spec(), pods=(POD,), node=NodeSpec(line_rate_bps=1000 * M, mode=mode))
    node.lost_queues = 8
    said = f"{before}; one HTB root replaces mq, so the 8 transmit queues of eth0 share a lock"
    for second in range(2):
        report = node.run(at(second)).node
        assert (report.message, report.ready) == (said, True)
    node.desired = replace(node.desired, node=replace(node.desired.node, mode=Mode.DISABLED))
    assert node.run(at(2)).node.message == "mode Disabled: nothing is limited"


def test_disabled_mode_takes_tree_and_table_away_and_enforce_brings_them_back() -> None:
    node = one_slice()
    before = dict(node.classes)
    on = node.desired
    node.desired = replace(on, node=replace(on.node, mode=Mode.DISABLED))
    node.run(at(1))
    assert (node.root, node.classes, node.table.present) == (RootQdisc.DEFAULT, {}, False)
    assert node.run(at(2)).tree_changes == ()
    node.desired = on
    node.run(at(3))
    assert node.classes == before


def test_a_foreign_tree_is_reported_and_left_alone() -> None:
    node = Node(spec(), pods=(POD,))
    node.root = RootQdisc.FOREIGN
    result = node.run(at(0))
    assert result.tree_changes == ()
    assert result.node.foreign_qdisc == "htb"
    assert not result.node.ready


def test_guarantees_above_the_nodes_share_are_cut_and_their_sum_reported() -> None:
    specs = [spec(f"ns{n}/s", min_rate_bps=90 * M, max_rate_bps=None) for n in range(5)]
    pods = tuple(pod(f"ns{n}/p", f"10.0.0.{n}") for n in range(5))
    node = Node(*specs, pods=pods, node=NodeSpec(line_rate_bps=100 * M))
    result = node.run(at(0))
    assert node.classes[STANDARD].rate_bps == 25 * M
    assert result.node.overcommitted is not None
    assert "125" in result.node.overcommitted


def test_another_uplink_starts_from_what_its_classes_show() -> None:
    node = one_slice()
    node.send(STANDARD, 5 * M)
    node.run(at(1))
    node.ledger = replace(node.ledger, device="eth9")
    node.send(STANDARD, 7 * M)
    node.run(at(2))
    assert node.ledger.slices[KEY].standard.used_bytes == 5 * M


@pytest.mark.parametrize("step", [-100_000, -3600, -3, 3, 3600, 100_000])
def test_a_stepped_wall_clock_neither_shortens_nor_lengthens_a_period(step: int) -> None:
    node = one_slice()
    node.send(STANDARD, 90 * M)
    node.run(at(1000))
    ceil = node.classes[STANDARD].ceil_bps
    jumped = Instant(at(1001).wall_ns + step * NS, at(1001).boot_ns, "boot")
    node.run(jumped)
    account = node.ledger.slices[KEY]
    assert account.period_end_s * NS - jumped.wall_ns == 2599 * NS
    assert node.classes[STANDARD].ceil_bps == pytest.approx(ceil, rel=0.001)
    assert account.standard.capped_since_s == START_S + 1000 + step


def test_pending_events_are_bounded() -> None:
    node = one_slice()
    node.ledger = replace(node.ledger, pending_events=node.ledger.pending_events * 0)
    for second in range(1, PENDING_EVENTS_LIMIT + 10):
        node.lose_tree()
        node.run(at(second))
    assert len(node.ledger.pending_events) == PENDING_EVENTS_LIMIT


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("standard"), st.integers(0, 60 * M)),
        st.tuples(st.just("exempt"), st.integers(0, 60 * M)),
        st.tuples(st.just("wait"), st.integers(1, 1500)),
        st.tuples(st.just("lose tree"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_happens_totals_are_what_was_sent_and_the_cap_is_the_formulas(steps: list[tuple[str, int]]) -> None:
    node = one_slice()
    sent = {TrafficClass.STANDARD: 0, TrafficClass.EXEMPT: 0}
    now = 0
    for step, size in steps:
        if step == "wait":
            now += size
        elif step == "lose tree":
            node.lose_tree()
        elif step in {"standard", "exempt"}:
            traffic_class = TrafficClass(step)
            node.send(STANDARD if traffic_class is TrafficClass.STANDARD else EXEMPT, size)
            sent[traffic_class] += size
        result = node.run(at(now))
        account = node.ledger.slices[KEY]
        for traffic_class, minor in ((TrafficClass.STANDARD, STANDARD), (TrafficClass.EXEMPT, EXEMPT)):
            kept = account.of(traffic_class)
            assert kept.total_bytes == sent[traffic_class]
            left_ns = account.period_end_s * NS - at(now).wall_ns
            over = kept.used_bytes >= 80 * M
            formula = cap_bps(Rates(8, 10 * M), 100 * M, kept.used_bytes, left_ns) if over else 10 * M
            assert node.classes[minor].ceil_bps == formula
            assert (kept.capped_since_s is not None) == over
        assert node.run(at(now)).tree_changes == ()
        assert 0 < result.next_pass_ns <= 10 * NS


def test_a_younger_slice_without_a_pod_is_reported_with_who_has_its_pods() -> None:
    young = spec("ns/young", created_s=5)
    node = Node(spec(), young, pods=(POD,))
    reports = {report.key: report for report in node.run(at(0)).usages}
    assert reports[young.key].slice_id == 0
    (problem,) = reports[young.key].problems
    assert (problem.pod, problem.is_conflict) == ("ns/pod", True)
    assert node.run(at(1)).usages == tuple(reports.values())


def test_an_orphan_class_is_removed() -> None:
    node = one_slice()
    node.classes[0x1777] = replace(node.classes[STANDARD], minor=0x1777)
    node.run(at(1))
    assert 0x1777 not in node.classes


def test_only_what_has_moved_is_decided_anew() -> None:
    """Every test here also compares going on from the last pass with beginning anew; this one sees that it goes on."""
    node = Node(spec("a/s"), spec("b/s", created_s=1), pods=(pod("a/p", "10.0.0.1"), pod("b/p", "10.0.0.2")))
    node.run(at(0))
    first = node.run(at(1))
    node.send(STANDARD, 1 * M)
    second = node.run(at(2))
    moved, still = SliceKey("a", "s"), SliceKey("b", "s")
    before, after = (
        {outcome.account.key: outcome for outcome in result.memory.totals.outcomes} for result in (first, second)
    )
    (was_standard, was_exempt), (standard, exempt) = before[moved].classes, after[moved].classes
    assert standard is not was_standard
    assert exempt is was_exempt
    assert after[still] is before[still]
    assert second.ledger.slices[still] is first.ledger.slices[still]
    third = node.run(at(3))
    assert third.ledger.slices is second.ledger.slices


def test_a_change_that_did_not_take_hold_is_planned_again_though_nothing_moved() -> None:
    node = one_slice()
    node.run(at(0.5))
    node.desired = replace(node.desired, slices=(spec(max_rate_bps=5 * M),))
    held = node.classes[STANDARD]
    assert node.run(at(1)).tree_changes != ()
    node.classes[STANDARD] = held  # the kernel refused
    assert node.run(at(2)).tree_changes != ()
    assert node.classes[STANDARD].ceil_bps == 5 * M


def test_the_first_complete_list_dismisses_who_is_not_in_it_though_the_same_was_listed_before() -> None:
    node = Node(spec("a/s"), spec("b/s", created_s=1), pods=(pod("a/p", "10.0.0.1"), pod("b/p", "10.0.0.2")))
    node.run(at(0))
    partial = replace(node.desired, slices=node.desired.slices[:1], pods=node.desired.pods[:1], synced=False)
    for second, node.desired in enumerate((partial, partial, replace(partial, synced=True)), 1):
        node.run(at(second))
    assert [account.live for account in node.ledger.slices.values()] == [True, False]


def test_who_was_refused_comes_in_as_soon_as_a_class_is_gone_though_nobody_else_has_changed() -> None:
    specs = [spec(f"ns{number}/s", created_s=number) for number in range(MAX_SLICES + 1)]
    pods = [pod(f"ns{number}/p", f"10.0.{number >> 8}.{number & 255}") for number in range(MAX_SLICES + 1)]
    node = Node(*specs, pods=tuple(pods))
    node.run(at(0))
    node.desired = replace(node.desired, slices=tuple(specs[1:]), pods=tuple(pods[1:]))
    for second in range(1, 6):
        node.run(at(second))
    assert node.ledger.slices[specs[-1].key].live


def test_a_node_that_limits_nothing_says_so_on_every_slice() -> None:
    for changes, why in (
        ({"mode": Mode.MONITOR}, "mode Monitor: nothing is limited"),
        ({"mode": Mode.DISABLED}, "mode Disabled: nothing is limited"),
        ({}, ""),
    ):
        node = Node(spec(), pods=(POD,), node=NodeSpec(line_rate_bps=1000 * M, **changes))  # type: ignore[arg-type]
        node.run(at(0))
        assert [usage.not_enforced_reason for usage in node.run(at(1)).usages] == [why]
    foreign = Node(spec(), pods=(POD,))
    foreign.root = RootQdisc.FOREIGN
    (usage,) = foreign.run(at(0)).usages
    assert usage.not_enforced_reason.endswith("qdisc that is not slicebw's: remove it, or name another device")


def test_a_foreign_tree_that_takes_the_place_of_ours_is_told_on_every_slice_at_once() -> None:
    """Also on those whose counters stand at zero, of which nothing else has changed."""
    node = one_slice()
    node.run(at(0.5))
    node.lose_tree()
    node.root = RootQdisc.FOREIGN
    (usage,) = node.run(at(1)).usages
    assert usage.not_enforced_reason.endswith("qdisc that is not slicebw's: remove it, or name another device")


def test_a_slice_that_is_forgotten_and_still_denied_a_pod_is_reported_without_a_break() -> None:
    """Else its BandwidthUsage would be deleted in one pass and made again in the next."""
    young, old = spec("ns/young", created_s=5), spec("ns/old")
    node = Node(young, pods=(POD,))
    node.run(at(0))
    node.desired = replace(node.desired, slices=(young, old))
    for second in (1, 2, 3600, 3601):
        result = node.run(at(second))
        assert young.key in {usage.key for usage in result.usages}
    assert young.key not in node.ledger.slices


def test_with_nothing_to_wait_for_the_next_pass_is_in_ten_seconds() -> None:
    assert next_pass_ns(0, [], []) == 10 * NS


def test_the_pass_is_due_when_the_fastest_class_could_cross() -> None:
    times = [time_to_threshold_ns(to_go_bytes, ceil_bps=10**9) for to_go_bytes in (10**9, 125_000_000)]
    assert next_pass_ns(0, [], times) == 1 * NS


def test_a_class_about_to_cross_is_looked_at_five_times_a_second() -> None:
    assert next_pass_ns(0, [], [time_to_threshold_ns(0, 10**9)]) == NS // 5


def test_the_end_of_a_period_is_met_exactly() -> None:
    assert next_pass_ns(100 * NS - 30_000_000, [100], []) == 30_000_000
    assert next_pass_ns(100 * NS, [100], []) == 0


@given(st.lists(st.tuples(st.integers(-10, 10**12), st.integers(0, 10**12))), st.lists(st.integers(0, 10**6)))
def test_a_pass_is_never_later_than_any_reason_for_it(runs: list[tuple[int, int]], ends: list[int]) -> None:
    due = next_pass_ns(0, ends, [time_to_threshold_ns(*run) for run in runs])
    assert 0 <= due <= LONGEST_NS
    assert all(due <= end * NS for end in ends)
    for to_go_bytes, ceil_bps in runs:
        assert due <= max(SHORTEST_NS, max(0, to_go_bytes) * 8 * NS // max(1, ceil_bps))
