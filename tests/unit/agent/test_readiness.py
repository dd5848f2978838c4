"""``/readyz`` succeeds when limits are in force, so not before the pass that applies them has ended."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from slicebw.core.dataplane import CreateRoot
from slicebw.core.desired import DesiredState
from slicebw.core.errors import KernelError
from slicebw.kernel.fake import Fault
from tests.unit.agent.test_reconciler import Feed, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A node whose agent has not listed everything yet."""
    made = World(tmp_path)
    made.feed.now = DesiredState()
    made.run()
    return made


def list_everything(world: World) -> None:
    """Let the feed list the desired state."""
    world.feed.now = Feed().now


def test_it_is_not_ready_while_the_first_limits_are_being_put_in_force(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    apply = world.shaper.apply

    def applied(device: str, changes: Sequence[object], line_rate_bps: int) -> object:
        synced.append(world.reconciler.synced)
        return apply(device, changes, line_rate_bps)  # type: ignore[arg-type]

    monkeypatch.setattr(world.shaper, "apply", applied)
    list_everything(world)
    world.run()
    assert synced == [False]
    assert world.reconciler.synced


def test_a_pass_that_fails_does_not_make_it_ready(world: World) -> None:
    list_everything(world)
    world.shaper.devices["uplink0"].lose_tree()
    world.shaper.faults.append((CreateRoot, Fault.BEFORE))
    with pytest.raises(KernelError):
        world.run()
    assert not world.reconciler.synced
    world.run()
    assert world.reconciler.synced
    world.feed.now = replace(world.feed.now, synced=False)
    world.run()
    assert not world.reconciler.synced
