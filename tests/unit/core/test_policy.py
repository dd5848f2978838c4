from hypothesis import given
from hypothesis import strategies as st

from slicebw.core.clock import NS
from slicebw.core.dataplane import MIN_KERNEL_RATE_BPS
from slicebw.core.policy import (
    LONGEST_NS,
    SHORTEST_NS,
    Rates,
    cap_bps,
    guarantee_limit_bps,
    is_over,
    next_pass_ns,
    rates,
    time_to_threshold_ns,
)
from tests.unit.core.builders import M, limits

BPS = st.integers(1, 10**13)
BYTES = st.integers(1, 10**15)


def test_the_cap_is_what_is_left_spread_over_the_time_left() -> None:
    allowed = Rates(8, 10 * M)
    assert cap_bps(allowed, budget_bytes=100 * M, used_bytes=90 * M, left_ns=80 * NS) == 1 * M


def test_bwmons_mistake_is_mended_the_cap_never_exceeds_max_rate_late_in_a_period() -> None:
    """Bwmon turned 10 Mbit/s into 273 Mbit/s when a slice crossed its threshold a minute before the end."""
    assert cap_bps(Rates(8, 10 * M), 10_800 * M, 8_640 * M, left_ns=60 * NS) == 10 * M


def test_a_spent_budget_leaves_the_guarantee() -> None:
    assert cap_bps(Rates(64_000, 10 * M), 100 * M, 100 * M, 3600 * NS) == 64_000
    assert cap_bps(Rates(64_000, 10 * M), 100 * M, 250 * M, 3600 * NS) == 64_000


def test_when_the_period_is_over_nothing_is_held_back() -> None:
    assert cap_bps(Rates(8, 10 * M), 100 * M, 100 * M, left_ns=0) == 10 * M


def test_capping_starts_at_the_threshold_itself() -> None:
    assert not is_over(limits(budget_bytes=100, threshold_bytes=80), 79)
    assert is_over(limits(budget_bytes=100, threshold_bytes=80), 80)


def test_an_unset_max_rate_is_the_nodes() -> None:
    assert rates(limits(max_rate_bps=None), 50 * M, 5 * M).max_bps == 50 * M
    assert rates(limits(max_rate_bps=80 * M), 50 * M, 5 * M).max_bps == 50 * M


def test_a_guarantee_is_cut_to_the_nodes_share() -> None:
    allowed = rates(limits(min_rate_bps=9 * M), 20 * M, guarantee_limit_bps(20 * M, 25))
    assert allowed.min_bps == 5 * M


@given(minimum=BPS, maximum=st.none() | BPS, ceiling=BPS, guarantee=BPS, budget=BYTES, used=BYTES, left=st.integers())
def test_the_cap_lies_within_min_and_max_and_is_a_rate_the_kernel_can_hold(
    minimum: int, maximum: int | None, ceiling: int, guarantee: int, budget: int, used: int, left: int
) -> None:
    allowed = rates(limits(min_rate_bps=minimum, max_rate_bps=maximum), ceiling, guarantee)
    cap = cap_bps(allowed, budget, used, left)
    assert MIN_KERNEL_RATE_BPS <= allowed.min_bps <= cap <= allowed.max_bps
    assert cap % 8 == 0
    assert allowed.max_bps <= max(MIN_KERNEL_RATE_BPS, ceiling)


@given(used=st.lists(st.integers(0, 200 * M), min_size=2, max_size=2), left=st.integers(1, 86_400 * NS))
def test_more_usage_never_raises_the_cap(used: list[int], left: int) -> None:
    less, more = sorted(used)
    allowed = Rates(8, 10 * M)
    assert cap_bps(allowed, 100 * M, more, left) <= cap_bps(allowed, 100 * M, less, left)


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
