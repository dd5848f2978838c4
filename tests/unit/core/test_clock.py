from hypothesis import given
from hypothesis import strategies as st

from slicebw.core.clock import NS, elapsed_ns, step_s
from slicebw.core.ledger import Instant
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
