"""Each state and each transition of the two state machines that an agent starts with."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from slicebw.agent.checkpoint import FileStore
from slicebw.agent.desired_state import DesiredStateMachine, Source
from slicebw.agent.previous_reports import PreviousReports, Restore
from slicebw.core.desired import DesiredState, Mode, NodeSpec, SliceKey
from slicebw.core.ledger import Ledger
from slicebw.core.reports import UsageReport
from tests.unit.agent.test_reconciler import World
from tests.unit.core.builders import M, at, pod, spec

KEY = SliceKey("ns", "slice")
STANDARD = 0x1001
GOOD = DesiredState((spec(),), (pod("ns/pod", "10.0.0.1"),), NodeSpec(cap_bps=5 * M), synced=True)
OTHER = replace(GOOD, slices=(spec(max_rate_bps=7 * M),))
NOTHING = DesiredState()
WRONG_SLICE = replace(GOOD, slices=(replace(spec(), selector=None, generation=2),))
WRONG_NODE = replace(GOOD, node=NodeSpec(wrong=("cap_bps",), errors=("spec.cap: wrong",)))


def machine(state: Source) -> DesiredStateMachine:
    """Return a machine in this state. In all but the first state :data:`GOOD` holds."""
    made = DesiredStateMachine(GOOD if state is Source.LAST_SAVED else None)
    if state in (Source.LIVE, Source.LAST_GOOD):
        made.advance(GOOD, None)
    if state is Source.LAST_GOOD:
        made.advance(WRONG_SLICE, None)
    assert made.state is state
    return made


@pytest.mark.parametrize(
    ("state", "incomplete", "complete", "wrong"),
    [
        (Source.NOTHING_KNOWN, Source.NOTHING_KNOWN, Source.LIVE, Source.LIVE),
        (Source.LAST_SAVED, Source.LAST_SAVED, Source.LIVE, Source.LAST_GOOD),
        (Source.LIVE, Source.LAST_SAVED, Source.LIVE, Source.LAST_GOOD),
        (Source.LAST_GOOD, Source.LAST_SAVED, Source.LIVE, Source.LAST_GOOD),
    ],
)
def test_each_state_goes_where_the_table_says(
    state: Source, incomplete: Source, complete: Source, wrong: Source
) -> None:
    for listed, after in ((NOTHING, incomplete), (OTHER, complete), (WRONG_SLICE, wrong), (WRONG_NODE, wrong)):
        made = machine(state)
        made.advance(listed, None)
        assert made.state is after


@pytest.mark.parametrize("state", Source)
def test_only_the_feeds_own_complete_list_counts_as_listed(state: Source) -> None:
    assert machine(state).state.is_listed is (state in (Source.LIVE, Source.LAST_GOOD))


def test_without_a_saved_list_an_incomplete_one_holds_in_the_mode_of_the_last_pass() -> None:
    made = DesiredStateMachine()
    partial = replace(GOOD, synced=False)
    assert made.advance(partial, None) is partial
    assert made.advance(partial, Mode.DISABLED) == replace(partial, node=replace(partial.node, mode=Mode.DISABLED))


def test_without_a_saved_list_a_mode_that_is_listed_already_holds() -> None:
    partial = DesiredState(node=NodeSpec(mode=Mode.MONITOR))
    assert DesiredStateMachine().advance(partial, Mode.DISABLED) is partial


def test_the_saved_list_holds_until_the_feed_has_listed_everything() -> None:
    made = machine(Source.LAST_SAVED)
    assert made.advance(replace(OTHER, synced=False), Mode.DISABLED) is GOOD
    assert made.advance(OTHER, None) is OTHER


def test_what_was_live_last_holds_when_the_feed_is_incomplete_again() -> None:
    made = machine(Source.LIVE)
    assert made.advance(OTHER, None) is OTHER
    assert made.advance(NOTHING, None) is OTHER
    assert made.advance(OTHER, None) is OTHER
    assert made.state is Source.LIVE


@pytest.mark.parametrize("state", [Source.LAST_SAVED, Source.LIVE, Source.LAST_GOOD])
@pytest.mark.parametrize("wrong", [WRONG_SLICE, WRONG_NODE])
def test_the_last_valid_value_holds_in_place_of_an_invalid_one(state: Source, wrong: DesiredState) -> None:
    held = machine(state).advance(wrong, None)
    assert held.slices[0].selector == GOOD.slices[0].selector
    assert held.slices[0].generation == wrong.slices[0].generation
    assert held.node.cap_bps == 5 * M
    assert held.node.errors == wrong.node.errors


def test_a_value_that_was_never_valid_stays_invalid() -> None:
    made = machine(Source.NOTHING_KNOWN)
    assert made.advance(WRONG_SLICE, None) is WRONG_SLICE
    again = replace(WRONG_SLICE, pods=())
    assert made.advance(again, None) is again
    assert made.state is Source.LIVE


def test_a_value_that_is_valid_again_replaces_the_last_valid_one() -> None:
    made = machine(Source.LAST_GOOD)
    right = replace(GOOD, node=NodeSpec())
    assert made.advance(right, None) is right


@pytest.mark.parametrize("wrong", [WRONG_SLICE, WRONG_NODE])
def test_the_same_list_gives_the_same_objects_also_where_something_is_wrong(wrong: DesiredState) -> None:
    made = machine(Source.LIVE)
    held = made.advance(wrong, None)
    assert made.advance(wrong, None) is held
    pods_changed = made.advance(replace(wrong, pods=()), None)
    assert pods_changed.slices is held.slices
    assert pods_changed.node is held.node


def test_a_list_is_unsaved_until_it_is_said_to_be_saved() -> None:
    made = DesiredStateMachine()
    assert made.unsaved is None
    made.advance(replace(GOOD, synced=False), None)
    assert made.unsaved is None, "an incomplete list is not for the next agent"
    made.advance(GOOD, None)
    assert made.unsaved is GOOD
    made.mark_saved(GOOD)
    assert made.unsaved is None
    made.advance(replace(GOOD), None)
    assert made.unsaved is None, "it is equal to the saved one"
    made.advance(OTHER, None)
    assert made.unsaved is OTHER


def test_what_the_checkpoint_has_already_is_not_saved_again() -> None:
    made = machine(Source.LAST_SAVED)
    assert made.unsaved is None
    made.advance(replace(GOOD), None)
    assert made.unsaved is None


def test_a_list_that_could_not_be_saved_stays_unsaved_and_holds() -> None:
    made = machine(Source.LAST_SAVED)
    made.advance(OTHER, None)
    assert made.advance(OTHER, None) is made.unsaved is OTHER
    assert made.advance(NOTHING, None) is made.unsaved is OTHER


def test_what_was_live_before_a_failed_save_and_is_live_again_holds() -> None:
    made = machine(Source.LIVE)
    made.mark_saved(GOOD)
    made.advance(OTHER, None)
    made.advance(replace(GOOD), None)
    assert made.advance(NOTHING, None) == GOOD


def test_where_something_is_wrong_what_holds_is_saved_not_what_is_listed() -> None:
    made = machine(Source.LIVE)
    held = made.advance(WRONG_SLICE, None)
    assert made.unsaved is held


def reports(world: World) -> Sequence[UsageReport]:
    """Return the report of a node whose slice has sent 50 MB."""
    world.run()
    world.shaper.send(0x1001, 50 * M)
    world.run()
    assert world.reconciler.last is not None
    return world.reconciler.last.usages


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_lost_ledger_is_rebuilt_from_the_reports_and_own_ones_are_withheld_until_then(world: World) -> None:
    previous = reports(world)
    made = PreviousReports(Ledger(rebuilding=True))
    states = [made.state]
    assert made.withhold_own
    ledger, unknown = made.restore(Ledger(rebuilding=True), previous, (), at(20))
    assert [*states, made.state] == [Restore.REBUILDING, Restore.DONE]
    assert not made.withhold_own
    assert not ledger.rebuilding
    assert ledger.slices[KEY].standard.used_bytes == 50 * M
    assert unknown == []


def test_a_ledger_from_the_disk_stays_and_own_reports_are_sent_meanwhile(world: World) -> None:
    previous = reports(world)
    gone = replace(previous[0], key=SliceKey("gone", "slice"))
    made = PreviousReports(world.ledger)
    states = [made.state]
    assert not made.withhold_own
    ledger, unknown = made.restore(world.ledger, [*previous, gone], (), at(20))
    assert [*states, made.state] == [Restore.WAITING, Restore.DONE]
    assert ledger == world.ledger
    assert unknown == [gone.key]


def test_a_report_of_a_slice_that_only_this_pass_knows_is_kept(world: World) -> None:
    previous = reports(world)
    _, unknown = PreviousReports(Ledger()).restore(Ledger(), previous, previous, at(20))
    assert unknown == []


def lose_ledger(world: World) -> None:
    """Start a new agent whose ledger is lost, and that does not know the previous reports yet."""
    (world.folder / "ledger").write_bytes(b"\0" * 512)
    world.reporter.known = None
    world.reporter.usages.clear()
    world.start_agent()


def test_while_the_desired_state_is_incomplete_nothing_is_rebuilt(world: World) -> None:
    previous, listed = reports(world), world.feed.now
    (world.folder / "wishes").unlink()
    lose_ledger(world)
    world.feed.now, world.reporter.known = DesiredState(), previous
    world.run()
    assert world.ledger.rebuilding
    assert not world.reporter.usages
    world.feed.now = listed
    world.run()
    assert not world.ledger.rebuilding


def test_on_a_saved_list_the_ledger_is_rebuilt_without_the_feed(world: World) -> None:
    previous = reports(world)
    lose_ledger(world)
    world.feed.now, world.reporter.known = DesiredState(), previous
    world.run()
    assert world.ledger.slices[KEY].standard.used_bytes == 50 * M
    assert not world.reconciler.synced


def test_no_own_report_tells_less_than_what_the_ledger_is_rebuilt_from(world: World) -> None:
    previous = reports(world)
    lose_ledger(world)
    world.run()
    world.reporter.known = previous
    world.run()
    assert not world.reporter.usages
    world.run()
    assert [usage.standard.used_bytes for usage in world.reporter.usages] == [50 * M]


def test_an_agent_that_dies_while_rebuilding_leaves_that_to_the_next_one(world: World) -> None:
    previous = reports(world)
    lose_ledger(world)
    world.run()
    world.start_agent()
    world.run()
    assert not world.reporter.usages
    world.reporter.known = previous
    world.run()
    assert world.ledger.slices[KEY].standard.used_bytes == 50 * M


def test_where_nothing_was_reported_before_the_first_pass_reports(world: World) -> None:
    world.run()
    assert [usage.key for usage in world.reporter.usages] == [KEY]


def test_a_desired_state_that_could_not_be_saved_is_saved_on_a_later_pass(world: World) -> None:
    world.run()
    world.feed.now = OTHER
    (world.folder / "wishes.tmp").mkdir()  # makes every save fail, as a full or read-only disk does
    world.run()
    assert world.ceil_bps() == 5 * M, "the cap holds; nothing waits for the disk"
    assert FileStore(world.folder).load_desired_state()[0] != OTHER
    (world.folder / "wishes.tmp").rmdir()
    world.run()
    assert FileStore(world.folder).load_desired_state()[0] == OTHER


def test_a_desired_state_that_cannot_be_saved_is_logged_once_while_the_ledger_is_saved(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.run()
    (world.folder / "wishes.tmp").mkdir()
    world.feed.now = OTHER
    for _ in range(3):
        world.shaper.send(STANDARD, 10 * M)
        world.run()
    assert caplog.text.count("not saved") == 1
    assert "saved again" not in caplog.text
    (world.folder / "wishes.tmp").rmdir()
    world.run()
    assert "desired state saved again" in caplog.text


def test_a_desired_state_is_saved_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[DesiredState] = []
    monkeypatch.setattr(FileStore, "save_desired_state", lambda _, desired: saved.append(desired))
    for listed in (GOOD, GOOD, replace(GOOD), WRONG_NODE, WRONG_NODE):
        world.feed.now = listed
        world.run()
    held = replace(WRONG_NODE, node=replace(WRONG_NODE.node, cap_bps=5 * M))
    assert saved == [GOOD, held]
