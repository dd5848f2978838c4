"""Which statuses the loop writes, and what it does if one cannot be written."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from slicebw.api.bandwidth_usage import UsageRecord
from slicebw.api.slice_bandwidth import SliceStatus
from slicebw.controller.write_budget import BURST
from slicebw.core.desired import SliceKey
from tests.support.reports import GB, class_usage, usage_report
from tests.unit.controller.cluster import CODEEN, NAMESPACE, Clocked, World, all_have_used, capped, many_slices


def test_nothing_is_written_before_everything_was_listed(world: World, clocked: Clocked) -> None:
    world.is_synced = False
    world.apply()
    clocked.after(100.0)
    assert world.writes == []
    world.is_synced = True
    clocked.after(1.0)
    assert world.writes == [CODEEN]


def test_a_status_in_the_object_is_not_written_again_not_even_after_a_restart(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    clocked.after(1.0)
    for _ in range(5):
        clocked.after(100.0)
    clocked.restarted()
    world.dirty.add(CODEEN)
    clocked.after(100.0)
    assert world.writes == [CODEEN]


def test_a_status_that_waits_for_the_budget_is_rolled_up_again_only_if_its_slice_changes(
    world: World, clocked: Clocked
) -> None:
    """Thousands of slices can wait: rolling up all of them in every step would take all of the controller's time."""
    names = many_slices(world, 100)
    for seconds in (0.0, *[1.0] * 30):
        clocked.after(seconds)
    assert len(world.writes) == 100
    all_have_used(world, names, GB)
    clocked.after(20.0)
    assert len(world.writes) == 100 + BURST
    waiting = set(world.slices) - set(world.writes[100:])
    clocked.after(0.05)  # what was written shows
    world.rolled_up.clear()
    clocked.after(0.05)
    assert not world.rolled_up & waiting
    changed = max(waiting)
    world.report("n1", usage_report(NAMESPACE, changed.name, standard=class_usage(2 * GB)))
    clocked.after(0.05)
    assert world.rolled_up & waiting == {changed}
    for _ in range(30):
        clocked.after(1.0)
    assert {status.standard.used_bytes for key in waiting - {changed} for status in [world.status(key)]} == {GB}
    assert world.status(changed).standard.used_bytes == 2 * GB
    world.report("n1", usage_report(NAMESPACE, changed.name, standard=class_usage(9 * GB, capped=True)))
    clocked.after(1.0)
    assert world.status(changed).capped_nodes == 1


def test_a_status_that_waits_is_not_written_over_an_object_that_has_changed_since(
    world: World, clocked: Clocked
) -> None:
    names = many_slices(world, 60)
    elsewhere = replace(world.slices[SliceKey(NAMESPACE, names[0])].spec, key=SliceKey("elsewhere", "slice"))
    world.put(elsewhere.key, elsewhere, SliceStatus())
    for seconds in (0.0, *[1.0] * 20):
        clocked.after(seconds)
    all_have_used(world, names, GB)
    before = len(world.writes)
    clocked.after(20.0)
    changed = min(set(world.slices) - set(world.writes[before:]) - {elsewhere.key})
    before = len(world.writes)

    def late() -> None:
        """Change the slice while other pods are listed, which can take a while."""
        world.after_list = None
        world.apply(changed.name, generation=2)
        world.report("n1", usage_report(NAMESPACE, changed.name, generation=2, standard=class_usage(2 * GB)))

    world.after_list = late
    world.put(elsewhere.key, replace(elsewhere, generation=2), world.status(elsewhere.key))
    for _ in range(20):
        clocked.after(1.0)
    assert world.after_list is None
    assert world.writes[before:].count(changed) == 1
    assert world.status(changed).observed_generation == 2
    assert world.status(changed).standard.used_bytes == 2 * GB


def test_a_write_that_fails_is_made_later(world: World, clocked: Clocked) -> None:
    world.apply()
    world.away = True
    clocked.after(1.0)
    clocked.after(5.0)
    assert clocked.loop.stats.failed_writes == 2
    world.away = False
    clocked.after(5.0)
    assert world.writes == [CODEEN]


def test_a_slice_that_is_gone_is_forgotten(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    clocked.after(1.0)
    del world.slices[CODEEN]
    world.report("n1", capped())
    clocked.after(20.0)
    assert world.writes == [CODEEN]


def test_a_step_that_raises_is_counted_and_the_loop_goes_on(world: World, clocked: Clocked) -> None:
    loop = clocked.loop

    def fail() -> bool:
        loop.stop()
        raise ValueError("out of the blue")

    world.synced = fail  # type: ignore[method-assign]
    loop.run()
    assert loop.stats.failures == 1


def test_a_slice_that_cannot_be_reconciled_is_tried_again_and_no_other_waits_for_it(
    world: World, clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_slices(world, 3)
    first, *others = sorted(world.slices)
    usages_of = world.usages_of

    def fail(key: SliceKey) -> Sequence[UsageRecord]:
        if key == first:
            raise ValueError("out of the blue")
        return usages_of(key)

    monkeypatch.setattr(world, "usages_of", fail)
    clocked.after(1.0)
    assert world.writes == others
    clocked.after(0.5)  # the list of pods that the others needed may concern it as well
    failures = clocked.loop.stats.failures
    assert failures > 0
    clocked.after(2.0)
    assert clocked.loop.stats.failures == failures, "not again at every step"
    monkeypatch.undo()
    clocked.after(5.0)
    assert world.writes == [*others, first]


def test_a_status_is_not_written_over_an_object_that_has_changed_meanwhile(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    world.after_list = lambda: world.apply(generation=2)
    clocked.after(1.0)
    assert world.writes == []
    assert clocked.loop.stats.failed_writes == 1
    world.after_list = None
    clocked.after(1.0)
    assert world.writes == [CODEEN]
    assert world.status().observed_generation == 2


def test_an_invalid_spec_is_one_event_a_generation_whether_or_not_any_node_runs_its_pods(
    world: World, clocked: Clocked
) -> None:
    world.away = True
    world.apply(errors=("spec.period: too short",))
    clocked.after(1.0)
    assert world.emitted == []
    world.away = False
    for _ in range(5):
        clocked.after(5.0)
    clocked.restarted()
    world.dirty.add(CODEEN)
    clocked.after(5.0)
    clocked.after(5.0)
    assert world.emitted == [f"InvalidSpec/{CODEEN}/uid/1"]
    world.apply(generation=2, errors=("spec.period: too long",))
    clocked.after(5.0)
    assert world.emitted[1:] == [f"InvalidSpec/{CODEEN}/uid/2"]
