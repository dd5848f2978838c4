"""When the controller lists pods, and how the condition Enforced follows."""

from msgspec.structs import replace

from slicebw.api.slice_bandwidth import SliceStatus
from slicebw.controller.pod_locations import BURST_PODS, PODS_PER_S, RECHECK_S, RECHECK_SOON_S
from slicebw.controller.write_budget import BURST
from slicebw.core.desired import Selector, SliceKey
from tests.support.reports import GB, usage_report
from tests.unit.controller.cluster import CODEEN, NAMESPACE, Clocked, World, capped, enforced, figures, many_slices


def test_a_slice_is_not_enforced_before_every_node_that_runs_its_pods_has_reported(
    world: World, clocked: Clocked
) -> None:
    world.apply()
    world.pods_on = {"n1": 1, "n2": 2}
    world.report("n1")
    clocked.after(1.0)
    assert enforced(world) == ("False", "NodesSilent")
    world.report("n2")
    clocked.after(1.0)
    assert enforced(world) == ("True", "OnAllNodes")


def test_a_pod_that_starts_just_before_the_last_report_is_seen(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    clocked.after(1.0)
    world.apply(generation=2)
    clocked.after(2.0)
    assert enforced(world) == ("False", "NodesBehind")
    world.pods_on["n2"] = 1
    world.report("n1", usage_report(NAMESPACE, generation=2))
    clocked.after(2.0)
    assert enforced(world) == ("False", "NodesSilent")


def test_pods_that_start_after_a_list_are_noticed_by_their_nodes_reports(world: World, clocked: Clocked) -> None:
    world.apply()
    clocked.after(1.0)
    assert enforced(world) == ("Unknown", "NoPods")
    world.report("n1")
    clocked.after(2.0)
    assert enforced(world) == ("True", "OnAllNodes")
    # Another node's report contradicts that list as well, and beside it one starts that nobody has reported.
    world.pods_on["n3"] = 1
    world.report("n2")
    clocked.after(2.0)
    assert enforced(world) == ("False", "NodesSilent")


def test_a_report_that_outlives_its_pod_does_not_cause_a_list_again_and_again(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    world.report("n2")
    del world.pods_on["n2"]
    clocked.after(1.0)
    clocked.after(10.0)  # the first status is a change of its own
    pod_lists = world.pod_lists
    for _ in range(20):
        clocked.after(10.0)
    assert world.pod_lists == pod_lists
    assert enforced(world) == ("True", "OnAllNodes")


def test_a_list_from_before_a_change_that_is_not_observed_yet_does_not_count(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    clocked.after(1.0)

    def late() -> None:
        """The object changes, and with it the pods, between a list and the status that is made from it."""
        world.after_list = None
        world.apply(generation=2)
        world.report("n1", usage_report(NAMESPACE, generation=2))
        world.pods_on["n2"] = 1

    world.after_list = late
    clocked.after(1.3 * RECHECK_S)
    assert enforced(world) == ("False", "NodesSilent")


def test_wording_alone_causes_no_list_before_it_may_be_written(world: World, clocked: Clocked) -> None:
    world.apply()
    for number in range(5):
        world.report(f"n{number}")
    clocked.after(1.0)
    world.apply(generation=2)
    clocked.after(2.0)
    pod_lists = world.pod_lists
    for number in range(4):
        world.report(f"n{number}", usage_report(NAMESPACE, generation=2))
        clocked.after(2.0)
    assert world.pod_lists == pod_lists
    assert "0 of 5" in next(one.message for one in world.status().conditions if one.type == "Enforced")
    clocked.after(2.0)
    assert world.pod_lists == pod_lists + 1
    assert "4 of 5" in next(one.message for one in world.status().conditions if one.type == "Enforced")


def test_pods_are_not_listed_while_nothing_but_figures_changes(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1", figures(0))
    clocked.after(1.0)
    pod_lists = world.pod_lists
    for used in range(1, 20):
        world.report("n1", figures(used * GB // 10))
        clocked.after(10.0)
    assert len(world.writes) == 20
    assert world.pod_lists == pod_lists


def test_pods_are_listed_again_every_few_minutes_and_sooner_while_nodes_are_missing(
    world: World, clocked: Clocked
) -> None:
    world.apply()
    world.report("n1")
    clocked.after(1.0)
    assert enforced(world) == ("True", "OnAllNodes")
    world.pods_on["n2"] = 1
    for _ in range(int(1.2 * RECHECK_S / 5.0) + 1):
        clocked.after(5.0)
    assert enforced(world) == ("False", "NodesSilent")
    del world.pods_on["n2"]
    for _ in range(int(RECHECK_SOON_S / 5.0) + 1):
        clocked.after(5.0)
    assert enforced(world) == ("True", "OnAllNodes")
    pod_lists = world.pod_lists
    for _ in range(int(0.75 * RECHECK_S / 5.0)):
        clocked.after(5.0)
    assert world.pod_lists == pod_lists


def test_the_lists_of_all_namespaces_have_a_budget(world: World, clocked: Clocked) -> None:
    world.apply()
    world.pods_on = {f"n{number}": 200 for number in range(100)}
    for generation in range(1, 101):  # every list has 20,000 pods
        world.apply(generation=generation)
        clocked.after(1.0)
    assert world.pod_lists <= 1 + (BURST_PODS + 100 * PODS_PER_S) / 20_000
    assert enforced(world)[0] == "False"
    assert world.status().observed_generation == 100, "the rest of the status does not wait"


def test_where_pods_may_not_be_listed_the_condition_says_so_and_nothing_else_waits(
    world: World, clocked: Clocked
) -> None:
    world.forbidden = "pods is forbidden"
    world.apply()
    world.report("n1", capped())
    clocked.after(1.0)
    assert enforced(world) == ("Unknown", "PodsUnknown")
    assert world.status().capped_nodes == 1
    world.forbidden = ""
    for _ in range(4):
        clocked.after(5.0)
    assert enforced(world) == ("True", "OnAllNodes")


def test_a_status_without_the_list_that_it_needs_is_rolled_up_again_while_it_waits(
    world: World, clocked: Clocked
) -> None:
    world.apply()
    world.pods_on = {"n1": int(BURST_PODS)}
    clocked.after(0.0)
    world.pods_on = {"n1": 1}
    spec = world.slices[CODEEN].spec
    for number in range(BURST + 10):
        key = SliceKey(f"tenant-{number:02}", "slice")
        world.put(key, replace(spec, key=key, selector=Selector()), SliceStatus())
    clocked.after(0.0)
    written = set(world.writes)
    waiting = set(world.slices) - written
    assert waiting, "the budget for lists is spent, and that for writes"
    for _ in range(20):
        clocked.after(1.0)
    assert all(world.writes.count(key) == 1 for key in waiting)
    assert {enforced(world, key) for key in waiting} == {("False", "NodesSilent")}


def test_when_a_slice_is_deleted_its_pods_are_another_slices_at_once(world: World, clocked: Clocked) -> None:
    world.apply("a", selector=Selector())
    world.apply("b")
    world.pods_on = {"n1": 1}
    clocked.after(1.0)
    older, younger = SliceKey(NAMESPACE, "a"), SliceKey(NAMESPACE, "b")
    assert enforced(world, older) == ("False", "NodesSilent")
    assert enforced(world, younger) == ("Unknown", "NoPods")
    del world.slices[older]
    world.dirty.add(older)
    clocked.after(2.0)
    assert enforced(world, younger) == ("False", "NodesSilent")


def test_a_slice_made_again_with_an_invalid_selector_has_not_the_pods_of_the_deleted_one(
    world: World, clocked: Clocked
) -> None:
    world.apply("a")
    world.apply("b")
    world.pods_on = {"n1": 1}
    clocked.after(1.0)
    again = SliceKey(NAMESPACE, "a")
    spec = world.slices[again].spec
    assert enforced(world, again) == ("False", "NodesSilent")
    del world.slices[again]
    world.dirty.add(again)
    clocked.after(2.0)
    world.put(again, replace(spec, uid="another", selector=None), SliceStatus())
    clocked.after(2.0)
    assert enforced(world, again) == ("Unknown", "NoPods")


def test_slices_that_change_while_pods_are_listed_do_not_make_one_step_list_them_again_and_again(
    world: World, clocked: Clocked
) -> None:
    many_slices(world, BURST)
    clocked.after(0.0)  # spends the budget, so that nothing is written in the step below
    for name in ("a", "b"):
        world.apply(name)

    def late() -> None:
        """Change both slices whenever pods are listed."""
        for name in ("a", "b"):
            world.apply(name, generation=world.pod_lists)

    world.after_list = late
    pod_lists = world.pod_lists
    clocked.after(0.1)
    assert world.pod_lists <= pod_lists + 3, "the namespace once, and once for each of the two"
    assert not {"a", "b"} & {key.name for key in world.writes}
