"""The node's mode when the desired state is lost, or the uplink changes."""

from pathlib import Path

from msgspec.structs import replace

from slicebw.core.dataplane import RootQdisc
from slicebw.core.desired import DesiredState, Mode
from slicebw.core.ledger import Reason
from tests.unit.agent.test_reconciler import World
from tests.unit.core.builders import M


def world_in(mode: Mode, folder: Path) -> World:
    """Return a node that is in this mode since its first pass."""
    world = World(folder)
    world.feed.now = replace(world.feed.now, node=replace(world.feed.now.node, mode=mode))
    world.run()
    return world


def test_a_disabled_node_gets_no_tree_while_the_desired_state_is_unknown(tmp_path: Path) -> None:
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


def test_in_mode_monitor_another_uplink_is_only_counted_too(tmp_path: Path) -> None:
    world = world_in(Mode.MONITOR, tmp_path)
    world.shaper.send(0x1001, 90 * M)
    world.shaper.default_device = "uplink1"
    world.run()
    world.run(seconds=5)
    events = list(world.reporter.events.values())
    assert {event.reason for event in events} == {Reason.UPLINK_CHANGED, Reason.CAPPED}
    assert all("Would have slowed (mode Monitor)" in event.message for event in events if event.reason is Reason.CAPPED)
