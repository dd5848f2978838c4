"""Which BandwidthUsages the loop removes."""

from slicebw.controller.dead_usages import GRACE_S
from tests.support.reports import DAY_S, usage_report
from tests.unit.controller.cluster import NAMESPACE, Clocked, World


def test_usages_of_a_node_that_vanished_are_removed_after_asking_for_the_node(world: World, clocked: Clocked) -> None:
    world.apply()
    world.node_names = {"n2"}
    world.report("n1")
    world.report("n2")
    clocked.after(60.0)
    assert world.deleted == ["codeen.n1"]
    assert world.asked == ["n1"]
    clocked.after(60.0)
    assert world.status().nodes == 1


def test_a_node_that_is_missing_from_the_list_but_there_when_asked_keeps_its_usages(
    world: World, clocked: Clocked
) -> None:
    world.node_names, world.hidden_nodes = set(), {"n1"}
    world.report("n1")
    clocked.after(60.0)
    assert world.asked == ["n1"]
    assert world.deleted == []


def test_nothing_is_removed_while_the_api_server_does_not_answer(world: World, clocked: Clocked) -> None:
    world.node_names = set()
    world.report("n1")
    world.away = True
    clocked.after(60.0)
    assert world.deleted == []


def test_nothing_is_removed_before_all_nodes_were_listed(world: World, clocked: Clocked) -> None:
    world.report("n1")
    clocked.after(60.0)
    assert world.deleted == []
    assert world.asked == []


def test_a_usage_without_an_owner_stays_until_its_period_is_long_over(world: World, clocked: Clocked) -> None:
    world.node_names = set()
    world.report("n1", usage_report(NAMESPACE, period_end_s=int(world.wall_s) + 1000), owned=False)
    clocked.after(1000.0 + GRACE_S)
    assert world.deleted == []
    clocked.after(60.0)
    assert world.deleted == ["codeen.n1"]


def test_a_usage_that_is_still_reported_stays_whatever_its_period(world: World, clocked: Clocked) -> None:
    # Like the usage of a slice that has lost its pods to another one: without a class no period runs.
    world.node_names = {"n1"}
    long_over = usage_report(NAMESPACE, slice_id=0, period_end_s=int(world.wall_s) - 10 * DAY_S)
    world.report("n1", long_over, reported_at_s=int(world.wall_s))
    clocked.after(60.0)
    assert world.deleted == []
    clocked.after(GRACE_S)
    assert world.deleted == ["codeen.n1"]
