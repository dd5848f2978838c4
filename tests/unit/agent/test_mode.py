"""What the reconciler makes of the node's mode where the desired state are lost, or the uplink changes."""

from pathlib import Path

from msgspec.structs import replace

from slicebw.core.dataplane import RootQdisc
from slicebw.core.desired import DesiredState, Mode
from slicebw.core.ledger import Reason
from tests.unit.agent.test_reconciler import World
from tests.unit.core.builders import M


def world_in(mode: Mode, folder: Path) -> World:
    """A node in this mode since its first pass."""
    world = World(folder)
    world.feed.now = replace(world.feed.now, node=replace(world.feed.now.node, mode=mode))
    world.run()
    return world


def test_a_node_that_is_left_alone_is_not_taken_over_while_nobody_knows_what_is_wanted(tmp_path: Path) -> None:
    world = world_in(Mode.DISABLED, tmp_path)
    known = world.feed.now
    (tmp_path / "wishes").unlink()
    world.feed.now = DesiredState()
    world.start_agent()
    for _ in range(3):
        world.run()
    assert world.shaper.devices["uplink0"].root is RootQdisc.DEFAULT
    assert not world.shaper.applied
    world.feed.now = known
    world.run()
    assert not world.reporter.events


def test_on_another_uplink_a_node_that_only_counts_goes_on_only_counting(tmp_path: Path) -> None:
    world = world_in(Mode.MONITOR, tmp_path)
    world.shaper.send(0x1001, 90 * M)
    world.shaper.default_device = "uplink1"
    world.run()
    notes = list(world.reporter.events.values())
    assert {note.reason for note in notes} == {Reason.UPLINK_CHANGED, Reason.CAPPED}
    assert all("Would have slowed (mode Monitor)" in note.message for note in notes if note.reason is Reason.CAPPED)
