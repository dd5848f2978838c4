from hypothesis import given
from hypothesis import strategies as st

from slicebw.core.clock import NS
from slicebw.core.pacing import LONGEST_NS, SHORTEST_NS, Runner, crossing_ns, next_pass_ns


def test_with_nothing_to_wait_for_the_next_pass_is_in_ten_seconds() -> None:
    assert next_pass_ns(0, [], []) == 10 * NS


def test_the_pass_is_due_when_the_fastest_class_could_cross() -> None:
    runners = [Runner(to_go_bytes=10**9, ceil_bps=10**9), Runner(to_go_bytes=125_000_000, ceil_bps=10**9)]
    assert next_pass_ns(0, [], map(crossing_ns, runners)) == 1 * NS


def test_a_class_about_to_cross_is_looked_at_five_times_a_second() -> None:
    assert next_pass_ns(0, [], [crossing_ns(Runner(0, 10**9))]) == NS // 5


def test_the_end_of_a_period_is_met_exactly() -> None:
    assert next_pass_ns(100 * NS - 30_000_000, [100], []) == 30_000_000
    assert next_pass_ns(100 * NS, [100], []) == 0


@given(st.lists(st.tuples(st.integers(-10, 10**12), st.integers(0, 10**12))), st.lists(st.integers(0, 10**6)))
def test_a_pass_is_never_later_than_any_reason_for_it(runs: list[tuple[int, int]], ends: list[int]) -> None:
    runners = [Runner(*run) for run in runs]
    due = next_pass_ns(0, ends, map(crossing_ns, runners))
    assert 0 <= due <= LONGEST_NS
    assert all(due <= end * NS for end in ends)
    for runner in runners:
        assert due <= max(SHORTEST_NS, max(0, runner.to_go_bytes) * 8 * NS // max(1, runner.ceil_bps))
