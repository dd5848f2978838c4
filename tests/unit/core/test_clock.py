from hypothesis import given
from hypothesis import strategies as st

from slicebw.core.clock import NS, Instant, TokenBucket, elapsed_ns, step_s
from tests.unit.core.builders import at

SECONDS = st.integers(-(10**9), 10**9)


@given(run=st.integers(0, 10**6), step=SECONDS)
def test_within_a_boot_a_step_is_what_the_wall_clock_moved_beyond_real_time(run: int, step: int) -> None:
    before = at(0)
    now = Instant(before.wall_ns + (run + step) * NS, before.boot_ns + run * NS, before.boot_id)
    assert elapsed_ns(before, now) == run * NS
    assert step_s(before, now) == (step if abs(step) > 2 else 0)


@given(off=SECONDS)
def test_elapsed_time_is_never_negative(off: int) -> None:
    before = at(10**9)
    for boot_id in ("boot", "another"):
        now = Instant(before.wall_ns + off * NS, before.boot_ns + off * NS, boot_id)
        assert elapsed_ns(before, now) >= 0


def test_time_spent_switched_off_is_real_time_and_not_a_step() -> None:
    assert step_s(at(0, "one boot"), at(7200, "the next")) == 0


def test_a_clock_set_back_while_switched_off_is_a_step() -> None:
    assert step_s(at(7200, "one boot"), at(0, "the next")) == -7200


def test_leap_seconds_and_slewing_are_followed() -> None:
    before = at(0)
    leap = Instant(before.wall_ns + 9 * NS, before.boot_ns + 10 * NS, before.boot_id)
    assert step_s(before, leap) == 0


def test_suspend_counts_as_time_because_the_boot_clock_runs_on() -> None:
    assert elapsed_ns(at(0), at(3600)) == 3600 * NS
    assert step_s(at(0), at(3600)) == 0


def test_a_budget_allows_a_burst_and_then_its_rate() -> None:
    budget = TokenBucket(2.0, 3, 0.0)
    for _ in range(3):
        assert budget.wait_s(0.0) == 0.0
        budget.take(0.0)
    assert budget.wait_s(0.0) == 0.5
    assert budget.wait_s(0.5) == 0.0
    budget.take(0.5)
    for _ in range(3):
        assert budget.wait_s(1000.0) == 0.0
        budget.take(1000.0)
    assert budget.wait_s(1000.0) == 0.5, "rest does not add up beyond the burst"


def test_a_budget_gives_more_than_one_at_a_time_and_what_was_taken_too_much_is_waited_for() -> None:
    budget = TokenBucket(4.0, 8, 0.0)
    assert budget.wait_s(0.0, 8) == 0.0
    budget.take(0.0, 10)
    assert budget.available(0.0) == -2
    assert budget.wait_s(0.0, 2) == 1.0
    assert budget.available(1.5) == 4


def test_a_budget_whose_limits_change_follows_them_at_once() -> None:
    budget = TokenBucket(1.0, 10, 0.0)
    budget.burst = 2.0
    assert budget.available(0.0) == 2
    budget.take(0.0, 2)
    budget.per_s = 0.5
    assert budget.wait_s(1.0) == 1.0
