"""What a pass must notice although it goes on from the last one: a change that comes alone, or together with another.

Each test is about something that would stay wrong on a node for good, or until somebody changes the slice in question.
"""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from slicebw.core.dataplane import DeleteClass, RootQdisc
from slicebw.core.desired import Mode, NodeSpec, SliceKey, SliceSpec
from slicebw.core.reports import UsageReport
from tests.unit.core.builders import M, Node, at, pod, spec

FIRST, SECOND = SliceKey("a", "s"), SliceKey("b", "s")
FIRST_STANDARD, SECOND_STANDARD = 0x1001, 0x1002


def idle_node() -> Node:
    """Two slices, each with a pod in a namespace of its own; four seconds in, a pass finds nothing to do."""
    node = Node(spec("a/s"), spec("b/s", created_s=1), pods=(pod("a/p", "10.0.0.1"), pod("b/p", "10.0.0.2")))
    for second in range(4):
        result = node.run(at(second))
    assert (result.tree_changes, result.table_change) == ((), None)
    return node


def edit(node: Node, key: SliceKey, **changes: object) -> None:
    """``kubectl edit`` of one SliceBandwidth; the others stay the objects they are."""
    slices = tuple(replace(one, **changes) if one.key == key else one for one in node.desired.slices)
    node.desired = replace(node.desired, slices=slices)


def edit_first_limits(node: Node) -> None:
    edit(node, FIRST, generation=2, limits=spec(max_rate_bps=7 * M).limits)


def report(usages: Iterable[UsageReport], key: SliceKey) -> UsageReport:
    (found,) = (usage for usage in usages if usage.key == key)
    return found


def leave(node: Node, key: SliceKey) -> None:
    """The slice's pods go to other nodes; its account stays here until its period ends."""
    pods = tuple(one for one in node.desired.pods if one.namespace != key.namespace)
    node.desired = replace(node.desired, pods=pods)
    for second in range(10, 14):
        node.run(at(second))
    assert not node.ledger.slices[key].live


def test_when_a_foreign_qdisc_is_gone_no_slice_is_reported_as_not_enforced() -> None:
    node = idle_node()
    node.lose_tree()
    node.root = RootQdisc.FOREIGN
    assert all(usage.not_enforced_reason for usage in node.run(at(10)).usages)
    node.root = RootQdisc.DEFAULT
    result = node.run(at(11))
    assert not any(usage.not_enforced_reason for usage in result.usages)
    assert node.classes[SECOND_STANDARD].ceil_bps == 10 * M


def test_when_the_own_tree_is_back_in_place_of_a_foreign_one_no_slice_is_reported_as_not_enforced() -> None:
    node = idle_node()
    tree = dict(node.classes)
    node.lose_tree()
    node.root = RootQdisc.FOREIGN
    node.run(at(10))
    node.root = RootQdisc.OURS
    node.classes = tree
    result = node.run(at(11))
    assert not any(usage.not_enforced_reason for usage in result.usages)
    assert result.table is not None
    assert result.table.slice_id_by_address == {"10.0.0.1": 1, "10.0.0.2": 2}


def test_a_class_that_another_program_changed_is_repaired_in_a_pass_in_which_another_slice_is_edited() -> None:
    node = idle_node()
    node.classes[SECOND_STANDARD] = replace(node.classes[SECOND_STANDARD], ceil_bps=500 * M)
    edit_first_limits(node)
    node.run(at(10))
    assert node.classes[SECOND_STANDARD].ceil_bps == 10 * M
    assert node.classes[FIRST_STANDARD].ceil_bps == 7 * M


def test_a_refused_change_is_planned_again_in_a_pass_in_which_another_slice_is_edited() -> None:
    node = idle_node()
    held = node.classes[SECOND_STANDARD]
    edit(node, SECOND, generation=2, limits=spec(max_rate_bps=5 * M).limits)
    node.run(at(10))
    node.classes[SECOND_STANDARD] = held  # the kernel refused
    edit_first_limits(node)
    node.run(at(11))
    assert node.classes[SECOND_STANDARD].ceil_bps == 5 * M
    assert node.classes[FIRST_STANDARD].ceil_bps == 7 * M


def test_a_class_that_nobody_wants_is_removed_from_an_idle_node() -> None:
    node = idle_node()
    node.classes[0x1777] = replace(node.classes[SECOND_STANDARD], minor=0x1777)
    assert node.run(at(10)).tree_changes == (DeleteClass(0x1777),)


def test_a_class_that_nobody_wants_is_no_longer_looked_for_once_another_program_has_removed_it() -> None:
    node = idle_node()
    node.classes[0x1777] = replace(node.classes[SECOND_STANDARD], minor=0x1777, backlog_bytes=3000)
    node.run(at(10))
    node.classes.pop(0x1777, None)
    result = node.run(at(11))
    assert result.tree_changes == ()
    assert result.next_pass_ns == node.run(at(11)).next_pass_ns


def test_errors_of_a_slice_that_has_left_the_node_are_reported_while_its_account_is_kept() -> None:
    node = idle_node()
    leave(node, SECOND)
    edit(node, SECOND, generation=2, errors=("spec.period: wrong",))
    assert report(node.run(at(20)).usages, SECOND).errors == ("spec.period: wrong",)
    edit(node, SECOND, generation=3, errors=())
    assert report(node.run(at(21)).usages, SECOND).errors == ()


def test_errors_that_read_differently_are_reported_though_nothing_else_of_the_slice_has_changed() -> None:
    node = idle_node()
    for second, errors in ((20, ("one",)), (21, ("one", "two")), (22, ("two",))):
        edit(node, SECOND, generation=2, errors=errors)
        assert report(node.run(at(second)).usages, SECOND).errors == errors


def test_a_deleted_slice_bandwidth_has_no_generation_in_force_and_one_made_again_has() -> None:
    node = idle_node()
    leave(node, SECOND)
    here = node.desired
    assert report(node.run(at(20)).usages, SECOND).generation == 1
    node.desired = replace(here, slices=here.slices[:1])
    assert report(node.run(at(21)).usages, SECOND).generation == 0
    node.desired = here
    assert report(node.run(at(22)).usages, SECOND).generation == 1


def test_a_pod_that_a_slice_does_not_get_is_reported_as_long_as_it_is_there() -> None:
    node = idle_node()
    here = node.desired
    node.desired = replace(here, pods=(*here.pods, pod("b/host", host_network=True)))
    (problem,) = report(node.run(at(20)).usages, SECOND).problems
    assert (problem.pod, problem.is_conflict) == ("b/host", False)
    node.desired = replace(here, pods=(*here.pods, pod("b/host")))
    (problem,) = report(node.run(at(21)).usages, SECOND).problems
    assert problem.reason == "it has no address yet"
    node.desired = here
    assert report(node.run(at(22)).usages, SECOND).problems == ()


def test_as_long_as_the_list_is_not_whole_an_address_stays_in_the_table_though_nobody_listed_has_it() -> None:
    node = idle_node()
    node.table = replace(node.table, slice_id_by_address={**node.table.slice_id_by_address, "10.0.0.9": 2})
    node.desired = replace(node.desired, synced=False)
    node.run(at(10))
    assert node.table.slice_id_by_address["10.0.0.9"] == 2
    node.desired = replace(node.desired, synced=True)
    node.run(at(11))
    assert "10.0.0.9" not in node.table.slice_id_by_address


def capped_node() -> Node:
    """The first slice is capped, and a pass at the same moment has seen that the cap holds in the kernel."""
    node = idle_node()
    node.send(FIRST_STANDARD, 90 * M)
    for _ in range(3):
        result = node.run(at(1000))
    assert (result.tree_changes, result.node.capped_slices) == ((), 1)
    return node


def test_the_cap_of_a_slice_that_sends_nothing_grows_with_time() -> None:
    """What is left of its budget is spread over ever less time, though nothing else changes on the whole node."""
    node = capped_node()
    before = node.classes[FIRST_STANDARD].ceil_bps
    node.run(at(2000))
    assert node.classes[FIRST_STANDARD].ceil_bps == pytest.approx(before * 2600 / 1600, rel=0.001)


def test_the_cap_of_a_slice_that_sends_nothing_grows_also_in_a_pass_in_which_another_slice_is_edited() -> None:
    node = capped_node()
    before = node.classes[FIRST_STANDARD].ceil_bps
    edit(node, SECOND, generation=2, limits=spec(max_rate_bps=7 * M).limits)
    node.run(at(2000))
    assert node.classes[FIRST_STANDARD].ceil_bps == pytest.approx(before * 2600 / 1600, rel=0.001)
    assert node.classes[SECOND_STANDARD].ceil_bps == 7 * M


def test_a_capped_slice_that_sends_nothing_stays_reported_as_capped() -> None:
    node = capped_node()
    for second in (1000, 1000, 1001, 1001, 1001):
        result = node.run(at(second))
        assert (result.node.capped_slices, report(result.usages, FIRST).standard.capped) == (1, True)


def test_usage_taken_up_from_earlier_reports_caps_a_slice_that_sends_nothing() -> None:
    node = idle_node()
    account = node.ledger.slices[FIRST]
    taken_up = replace(account, standard=replace(account.standard, used_bytes=90 * M, total_bytes=90 * M))
    node.ledger = replace(node.ledger, slices={**node.ledger.slices, FIRST: taken_up})
    assert report(node.run(at(10)).usages, FIRST).standard.capped
    assert node.classes[FIRST_STANDARD].ceil_bps < 1 * M


def test_a_share_that_is_edited_reaches_the_kernel_though_no_rate_changes() -> None:
    node = idle_node()
    edit(node, SECOND, generation=2, limits=_with_share(node.desired.slices[1], 3))
    node.run(at(10))
    assert node.classes[SECOND_STANDARD].quantum_bytes == 3 * 1600


def _with_share(one: SliceSpec, share: int) -> object:
    assert one.limits is not None
    return replace(one.limits, standard=replace(one.limits.standard, share=share))


def test_guarantees_are_added_up_again_when_a_slice_leaves() -> None:
    specs = [spec(f"ns{n}/s", min_rate_bps=25 * M, max_rate_bps=None) for n in range(5)]
    pods = tuple(pod(f"ns{n}/p", f"10.0.0.{n}") for n in range(5))
    node = Node(*specs, pods=pods, node=NodeSpec(line_rate_bps=100 * M))
    assert node.run(at(0)).node.overcommitted is not None
    assert node.run(at(1)).node.overcommitted is not None
    node.desired = replace(node.desired, slices=tuple(specs[:3]), pods=pods[:3])
    assert node.run(at(2)).node.overcommitted is None


def test_a_lifted_cap_is_announced_once_also_if_the_other_class_moves_in_the_next_pass() -> None:
    """In mode Monitor the kernel's class stays as it is, so nothing else tells that its outcome is an old one."""
    monitor = NodeSpec(line_rate_bps=1000 * M, mode=Mode.MONITOR)
    node = Node(spec(), pods=(pod("ns/pod", "10.0.0.1"),), node=monitor)
    node.run(at(0))
    node.send(FIRST_STANDARD, 90 * M)
    node.run(at(10))
    node.desired = replace(node.desired, slices=(spec(budget_bytes=1000 * M),))
    node.run(at(11))
    announced = [event.id for event in node.ledger.pending_events]
    assert len(announced) == 2
    node.send(0x2001, 1000)
    node.run(at(12))
    assert [event.id for event in node.ledger.pending_events] == announced
