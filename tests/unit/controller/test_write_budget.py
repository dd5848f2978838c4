"""When a status may be written: the budget's rule, and how the loop keeps it."""

import pytest

from slicebw.api.slice_bandwidth import SliceRecord
from slicebw.controller.write_budget import BURST, STATUS_INTERVAL_S, TRANSITION_INTERVAL_S, WriteBudget
from slicebw.core.desired import SliceKey
from tests.support.reports import GB, class_usage, usage_report
from tests.unit.controller.cluster import (
    CODEEN,
    NAMESPACE,
    Clocked,
    World,
    all_have_used,
    capped,
    figures,
    many_slices,
)

NEVER = float("-inf")


def budget_for(nodes: int, now_s: float = 100.0) -> WriteBudget:
    budget = WriteBudget(now_s)
    budget.nodes = nodes
    return budget


def take_all(budget: WriteBudget, now_s: float, most: int, *, figures_only: bool) -> int:
    """Write as many statuses as may be written now, but at most ``most``. Returns how many."""
    for count in range(most):
        if budget.wait_s(now_s, NEVER, figures_only=figures_only):
            return count
        budget.take(now_s, figures_only=figures_only)
    return most


def written(seconds: int, transitions: int, figures: int, nodes: int) -> tuple[int, int]:
    """Count transitions and figures written in ``seconds`` after the first burst, if so many are due at all times."""
    now_s, found = 100.0, (0, 0)
    budget = budget_for(nodes, now_s)
    for step in range(seconds * 8 + 1):
        urgent = take_all(budget, now_s, transitions, figures_only=False)
        others = take_all(budget, now_s, figures, figures_only=True)
        found = (found[0] + urgent, found[1] + others) if step else found
        now_s += 0.125  # exact in binary
    return found


def test_there_is_a_burst_and_then_five_a_second() -> None:
    assert take_all(budget_for(10), 100.0, 200, figures_only=True) == BURST
    assert written(100, 0, 200, nodes=10) == (0, 500)


def test_the_rate_of_figures_falls_with_the_number_of_agents_that_get_them() -> None:
    assert written(100, 0, 200, nodes=500) == (0, 500)
    assert written(100, 0, 200, nodes=1000) == (0, 250)
    assert written(100, 0, 200, nodes=5000) == (0, 50)


def test_transitions_are_written_at_the_full_rate() -> None:
    assert written(100, 200, 200, nodes=5000) == (500, 0)
    budget = budget_for(5000)
    take_all(budget, 100.0, 200, figures_only=True)
    assert budget.wait_s(100.0, NEVER, figures_only=True) > 0
    assert budget.wait_s(100.0, NEVER, figures_only=False) == 0


def test_no_nodes_or_none_known_is_no_reason_to_write_less() -> None:
    assert WriteBudget(100.0).nodes == 0
    assert written(10, 0, 200, nodes=0) == (0, 50)


def test_a_write_to_more_agents_than_the_burst_is_made_in_the_end() -> None:
    budget = budget_for(1_000_000)
    assert take_all(budget, 100.0, 200, figures_only=True) == 1
    assert 0 < budget.wait_s(100.0, NEVER, figures_only=True) < 60


def test_after_the_wait_one_more_write_is_allowed() -> None:
    for nodes in (1, 5000):
        budget, now_s = budget_for(nodes), 100.0
        while take_all(budget, now_s, 200, figures_only=True):
            now_s += 0.01
        wait_s = budget.wait_s(now_s, NEVER, figures_only=True)
        assert wait_s > 0
        now_s += wait_s * 1.001
        assert take_all(budget, now_s, 200, figures_only=True) == 1


def test_one_slice_waits_for_its_interval_however_full_the_budget_is() -> None:
    budget = budget_for(10)
    assert budget.wait_s(100.25, 100.0, figures_only=False) == TRANSITION_INTERVAL_S - 0.25
    assert budget.wait_s(100.25, 100.0, figures_only=True) == STATUS_INTERVAL_S - 0.25
    assert budget.wait_s(100.0 + STATUS_INTERVAL_S, 100.0, figures_only=True) == 0
    often = WriteBudget(100.0, status_interval_s=0.1)
    assert often.wait_s(100.0, 100.0, figures_only=True) == TRANSITION_INTERVAL_S


def test_the_longest_of_all_waits_counts() -> None:
    budget = budget_for(5000)
    take_all(budget, 100.0, 200, figures_only=True)
    assert budget.wait_s(100.0, 100.0, figures_only=True) == STATUS_INTERVAL_S
    assert budget.wait_s(100.0, 91.0, figures_only=True) == 2.0, "5,000 deliveries at 2,500 a second"
    take_all(budget, 100.0, 200, figures_only=False)
    assert budget.wait_s(100.0, NEVER, figures_only=False) == 0.2, "a write at five a second"


def test_figures_are_written_once_an_interval_and_the_latest_count(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1", figures(0))
    clocked.after(1.0)
    for used in range(1, 10):
        world.report("n1", figures(used * GB))
        pause_s = clocked.after(1.0)
        assert pause_s <= 10.0
    assert world.writes == [CODEEN]
    clocked.after(1.0)
    assert world.writes == [CODEEN, CODEEN]
    assert world.status().standard.used_bytes == 9 * GB


def test_a_transition_does_not_wait_for_the_interval(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1", figures(0))
    clocked.after(1.0)
    world.report("n1", capped())
    clocked.after(1.0)
    assert world.status().capped_nodes == 1


def test_transitions_of_one_slice_are_written_once_a_second(world: World, clocked: Clocked) -> None:
    world.apply()
    for number in range(1000):
        world.report(f"n{number}")
        clocked.after(0.01)
    assert 8 <= len(world.writes) <= 12
    clocked.after(1.0)
    assert world.status().nodes == 1000


def test_over_all_slices_the_budget_holds_and_transitions_go_first(world: World, clocked: Clocked) -> None:
    names = many_slices(world, 100)
    clocked.after(0.0)
    assert len(world.writes) == BURST
    pause_s = clocked.after(0.1)
    assert pause_s <= 0.2, "there is more to write as soon as there is budget"
    for _ in range(100):
        clocked.after(0.2)
    assert len(world.writes) == 100, "5 a second"

    all_have_used(world, names, GB)
    clocked.after(0.0)
    world.report("n1", usage_report(NAMESPACE, "slice-099", standard=class_usage(9 * GB, capped=True)))
    before = len(world.writes)
    clocked.after(1.0)
    assert world.writes[before] == SliceKey(NAMESPACE, "slice-099")


def test_of_slices_that_change_at_once_the_transition_is_written_first(world: World, clocked: Clocked) -> None:
    names = many_slices(world, BURST + 10)
    for seconds in (0.0, *[1.0] * 5, 20.0):
        clocked.after(seconds)
    last = world.writes[-1]
    all_have_used(world, names, GB)
    world.report("n1", usage_report(NAMESPACE, last.name, standard=class_usage(9 * GB, capped=True)))
    before = len(world.writes)
    clocked.after(0.0)
    assert len(world.writes) == before + BURST
    assert world.writes[before] == last, "the one that was written last, so it would be the last of the figures"


def test_figures_that_wait_for_the_budget_cost_nothing_until_one_of_them_has_its_turn(
    world: World, clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.node_names = {f"n{number}" for number in range(1000)}
    names = many_slices(world, 100)
    for seconds in (0.0, *[1.0] * 30):
        clocked.after(seconds)
    all_have_used(world, names, GB)
    before = len(world.writes)
    clocked.after(20.0)
    assert len(world.writes) == before + 25, "25,000 deliveries"
    assert clocked.after(0.25) <= 0.25, "the next one may be written after 0.4 s"
    read = list[SliceKey]()
    slice_record = world.slice_record

    def record(key: SliceKey) -> SliceRecord | None:
        read.append(key)
        return slice_record(key)

    monkeypatch.setattr(world, "slice_record", record)
    clocked.after(0.125)
    assert read == []
    clocked.after(0.125)
    assert len(world.writes) == before + 26
    assert read == world.writes[-1:]


def test_of_two_controllers_one_writes_and_neither_more_often_than_one_would(world: World, clocked: Clocked) -> None:
    first, second = Clocked(world), clocked
    seen = {id(first): set[SliceKey](), id(second): set[SliceKey]()}

    def step(one: Clocked) -> None:
        dirty, world.dirty = world.dirty, set()
        for keys in seen.values():
            keys.update(dirty)
        world.dirty, seen[id(one)] = seen[id(one)], set()
        one.after(0.5)
        for keys in seen.values():
            keys.update(world.dirty)

    world.apply()
    world.report("n1", figures(0))
    for half_second in range(240):
        world.report("n1", figures(half_second))
        step(first if half_second % 3 else second)
        step(second if half_second % 3 else first)
    assert 11 <= len(world.writes) <= 13, "120 s: one write every 10 s, whoever makes it"


def test_a_restart_writes_no_figures_sooner(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1", figures(0))
    clocked.after(1.0)
    for used in range(1, 9):
        world.report("n1", figures(used * GB))
        clocked.restarted()
        clocked.after(1.0)
    assert world.writes == [CODEEN]
    clocked.after(10.0)
    assert world.writes == [CODEEN, CODEEN]
