"""The Event about the node when its mode changes: once each time, and not because an agent starts."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from slicebw.core.desired import Mode, NodeSpec
from slicebw.core.ledger import Ledger, PendingEvent, Reason
from tests.unit.core.builders import M, Node, at, pod, spec

ENFORCE, MONITOR, DISABLED = Mode.ENFORCE, Mode.MONITOR, Mode.DISABLED


def node_in(mode: Mode | None) -> Node:
    """A node with a slice that has seen its first pass."""
    node = Node(spec(), pods=(pod("ns/pod", "10.0.0.1"),), node=NodeSpec(line_rate_bps=1000 * M, mode=mode))
    node.run(at(0))
    return node


def switch(node: Node, *modes: Mode | None) -> None:
    """Set one mode after the other, with two passes in each."""
    for mode in modes:
        node.desired = replace(node.desired, node=replace(node.desired.node, mode=mode))
        now = 0 if node.ledger.read_at is None else node.ledger.read_at.wall_s - at(0).wall_s
        for second in (now + 1, now + 2):
            node.run(at(second))


def notes(events: Iterable[PendingEvent]) -> list[PendingEvent]:
    return [note for note in events if note.reason is Reason.MODE_CHANGED]


@pytest.mark.parametrize("mode", [None, *Mode])
def test_the_first_mode_of_a_node_is_no_change(mode: Mode | None) -> None:
    node = node_in(mode)
    switch(node, mode)
    assert not node.ledger.pending_events
    assert node.ledger.mode is (mode or ENFORCE)


def test_every_change_is_one_event_about_the_node() -> None:
    node = node_in(ENFORCE)
    switch(node, MONITOR, DISABLED, ENFORCE, None)
    found = notes(node.ledger.pending_events)
    assert [(note.key, note.warning) for note in found] == [(None, False)] * 3
    assert len({note.id for note in found}) == 3
    assert [note.message for note in found] == [
        "The mode of this node is Monitor now, it was Enforce: traffic on eth0 is counted and nothing is limited",
        "The mode of this node is Disabled now, it was Monitor: eth0 is as slicebw found it, nothing is counted",
        "The mode of this node is Enforce now, it was Disabled: slices on eth0 are held to their limits",
    ]


def test_there_and_back_within_a_second_are_two_events() -> None:
    node = node_in(ENFORCE)
    for mode in (MONITOR, ENFORCE):
        node.desired = replace(node.desired, node=replace(node.desired.node, mode=mode))
        node.run(at(0.5))
    assert len({note.id for note in notes(node.ledger.pending_events)}) == 2


def test_a_ledger_that_does_not_know_the_mode_is_no_change() -> None:
    node = node_in(MONITOR)
    node.ledger = replace(node.ledger, mode=None)
    switch(node, DISABLED)
    assert notes(node.ledger.pending_events) == []
    assert Ledger().mode is None


def test_a_mode_set_while_no_agent_ran_is_a_change_that_the_next_one_tells() -> None:
    node = node_in(ENFORCE)
    later = node_in(MONITOR)
    later.ledger = node.ledger
    later.run(at(60))
    (note,) = notes(later.ledger.pending_events)
    assert "is Monitor now, it was Enforce" in note.message


def test_taking_the_tree_down_on_purpose_is_not_another_hand() -> None:
    node = node_in(ENFORCE)
    switch(node, DISABLED, ENFORCE)
    assert {note.reason for note in node.ledger.pending_events} == {Reason.MODE_CHANGED}
