from hypothesis import given
from hypothesis import strategies as st

from slicebw.core.clock import NS
from slicebw.core.dataplane import MIN_KERNEL_RATE_BPS
from slicebw.core.policy import (
    Rates,
    cap_bps,
    guarantee_limit_bps,
    is_over,
    rates,
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
