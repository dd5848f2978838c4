"""Log lines about slices. bwmon had one of them: "Updating princeton_codeen: Max Rate = 10000"."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.unit.agent.test_reconciler import World
from tests.unit.core.builders import M, spec


@pytest.fixture
def world(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> World:
    caplog.set_level("INFO", logger="slicebw")
    return World(tmp_path)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines about slices since the last call, without those about the kernel and the ledger."""
    logged = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return [line for line in logged if not line.startswith(("tree ", "table ", "ledger "))]


LIMITS = (
    "slice_id=001 generation=1 period_s=3600 standard.min_rate_bps=8 standard.max_rate_bps=10000000 "
    "standard.budget_bytes=100000000 standard.threshold_bytes=80000000 standard.share=1 exempt.min_rate_bps=8 "
    "exempt.max_rate_bps=10000000 exempt.budget_bytes=100000000 exempt.threshold_bytes=80000000 exempt.share=1"
)


def test_an_added_slice_is_logged_once_with_all_its_limits(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.run()
    assert lines(caplog) == [f"slice added slice=ns/slice {LIMITS}"]
    world.shaper.send(0x1001, 5 * M)
    world.run()
    world.start_agent()
    world.run()
    assert lines(caplog) == []


def test_each_change_of_a_slices_limits_is_one_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.run()
    lines(caplog)
    changed = replace(spec(max_rate_bps=None, share=3), generation=2)
    world.feed.now = replace(world.feed.now, slices=(changed,))
    for _ in range(3):
        world.run()
    (line,) = lines(caplog)
    assert line.startswith("limits changed slice=ns/slice slice_id=001 generation=2 period_s=3600 ")
    assert "standard.max_rate_bps=node " in line
    assert "standard.share=3 " in line


def test_what_changes_in_the_kernel_is_logged_in_the_words_of_tc(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.run()
    caplog.clear()
    world.feed.now = replace(world.feed.now, slices=(replace(spec(max_rate_bps=20 * M), generation=2),))
    world.run()
    (line,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("tree "))
    assert line == (
        "tree device=uplink0 change=class change parent 1:10 classid 1:1001 htb rate 8bit ceil 20000000bit quantum 1600"
    )


def test_a_cap_is_logged_when_its_event_is_pending(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.run()
    lines(caplog)
    world.shaper.send(0x1001, 90 * M)
    for _ in range(3):
        world.run()
    (line,) = lines(caplog)
    assert line.startswith("event reason=BandwidthCapped about=ns/slice message=Slowed standard traffic of slice ns/sl")


def test_a_slice_that_is_removed_added_again_and_purged_is_logged_each_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.run()
    lines(caplog)
    here = world.feed.now
    world.feed.now = replace(here, slices=(), pods=())
    world.run()
    world.shaper.send(0x1001, 500)  # still in its queue when it was removed
    for _ in range(3):
        world.run()
    assert lines(caplog) == ["slice removed slice=ns/slice slice_id=001; its usage is kept until its period ends"]
    world.feed.now = here
    world.run()
    assert lines(caplog) == [f"slice added slice=ns/slice {LIMITS}"]
    world.feed.now = replace(here, slices=(), pods=())
    for _ in range(3):
        world.run()
    lines(caplog)
    world.run(seconds=3600)
    assert lines(caplog) == ["slice purged slice=ns/slice; its period has ended"]
