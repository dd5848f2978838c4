"""When the loop writes, and what it removes, over ports that stand in memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from slicebw.api.bandwidth_usage import NodeUsage
from slicebw.api.slice_bandwidth import SliceStatus
from slicebw.controller.budget import BURST
from slicebw.controller.census import BURST_PODS, PODS_PER_S, RECHECK_S, RECHECK_SOON_S
from slicebw.controller.loop import OVER_GRACE_S, StatusLoop
from slicebw.controller.ports import ClusterFeed, ClusterWriter
from slicebw.core.model import DEFAULT_LIMITS, Pod, Requirement, Selector, SelectorOperator, SliceKey, SliceSpec
from slicebw.core.reports import EventNote, UsageReport
from tests.support.reports import DAY_S, GB, PERIOD_START_S, class_usage, usage_report

NAMESPACE = "princeton-codeen"
CODEEN = SliceKey(NAMESPACE, "codeen")


@dataclass(frozen=True, slots=True)
class Slice:
    spec: SliceSpec
    status: SliceStatus
    version: str


@dataclass(frozen=True, slots=True)
class Usage:
    namespace: str
    name: str
    uid: str
    owned: bool
    usage: NodeUsage


@dataclass
class World(ClusterFeed, ClusterWriter):
    """A cluster in memory: what is written shows at once."""

    wall_s: float = PERIOD_START_S + 3600.0
    slices: dict[SliceKey, Slice] = field(default_factory=dict)
    all_usages: dict[tuple[str, str], Usage] = field(default_factory=dict)
    node_names: set[str] | None = None
    hidden_nodes: set[str] = field(default_factory=set)
    dirty: set[SliceKey] = field(default_factory=set)
    writes: list[SliceKey] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    away: bool = False
    versions: int = 0
    forbidden: str = ""
    pods_on: dict[str, int] = field(default_factory=dict)
    looks: int = 0
    rolled_up: set[SliceKey] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    after_look: Callable[[], None] | None = None
    is_synced: bool = True

    def apply(
        self,
        name: str = "codeen",
        generation: int = 1,
        errors: tuple[str, ...] = (),
        selector: Selector | None = None,
    ) -> None:
        key = SliceKey(NAMESPACE, name)
        selector = Selector((Requirement("slice", SelectorOperator.IN, (name,)),)) if selector is None else selector
        spec = SliceSpec(key, "uid", generation, 0, selector, None if errors else DEFAULT_LIMITS, errors)
        known = self.slices.get(key)
        self.put(key, spec, known.status if known else SliceStatus())

    def put(self, key: SliceKey, spec: SliceSpec, status: SliceStatus) -> None:
        self.versions += 1
        self.slices[key] = Slice(spec, status, str(self.versions))
        self.dirty.add(key)

    def report(
        self, node: str, report: UsageReport | None = None, *, owned: bool = True, reported_at_s: int = 0
    ) -> None:
        report = report or usage_report(NAMESPACE, period_end_s=PERIOD_START_S + DAY_S)
        name = f"{report.key.name}.{node}"
        self.all_usages[node, name] = Usage(
            NAMESPACE, name, f"uid-{name}", owned, NodeUsage(report, node, reported_at_s)
        )
        self.dirty.add(report.key)
        if report.class_id:
            self.pods_on[node] = 1

    def status(self, key: SliceKey = CODEEN) -> SliceStatus:
        return self.slices[key].status

    def synced(self) -> bool:
        return self.is_synced

    def changed(self) -> frozenset[SliceKey]:
        dirty, self.dirty = self.dirty, set()
        return frozenset(dirty)

    def slice_record(self, key: SliceKey) -> Slice | None:
        return self.slices.get(key)

    def slices_in(self, namespace: str) -> Sequence[Slice]:
        return [one for key, one in self.slices.items() if key.namespace == namespace]

    def known_slices(self) -> int:
        return len(self.slices)

    def known_usages(self) -> int:
        return len(self.all_usages)

    def usages_of(self, key: SliceKey) -> Sequence[Usage]:
        self.rolled_up.add(key)
        return [usage for usage in self.all_usages.values() if usage.usage.report.key == key]

    def usages(self) -> Iterable[Usage]:
        return self.all_usages.values()

    def nodes(self) -> frozenset[str] | None:
        return None if self.node_names is None else frozenset(self.node_names)

    def write(self, statuses: Mapping[SliceKey, tuple[SliceStatus, str]]) -> Mapping[SliceKey, str]:
        if self.away:
            return dict.fromkeys(statuses, "cannot reach it")
        failures = {}
        for key, (status, version) in statuses.items():
            if version != self.slices[key].version:
                failures[key] = "conflict"
                continue
            self.writes.append(key)
            self.put(key, self.slices[key].spec, status)
        return failures

    def tell(self, note: EventNote) -> bool:
        if not self.away:
            self.told.append(note.id)
        return not self.away

    def pods(self, namespace: str) -> Mapping[str, Sequence[Pod]] | str | None:
        """As many pods of every slice on each node as ``pods_on`` says."""
        self.looks += 1
        found = {
            node: [
                Pod(namespace, f"{key.name}-{at}", "", {"slice": key.name}, (f"10.{number}.0.{at}",), False, False, 0)
                for number, key in enumerate(self.slices)
                for at in range(count)
            ]
            for node, count in self.pods_on.items()
        }
        if self.after_look:
            self.after_look()
        return self.forbidden or None if self.away or self.forbidden else found

    def node_exists(self, name: str) -> bool | None:
        self.asked.append(name)
        if self.away:
            return None
        return name in (self.node_names or ()) or name in self.hidden_nodes

    def delete_usage(self, namespace: str, name: str, uid: str) -> bool:
        assert uid == f"uid-{name}"
        self.deleted.append(name)
        usage = next(one for one in self.all_usages.values() if one.name == name)
        del self.all_usages[usage.usage.node_name, name]
        self.dirty.add(usage.usage.report.key)
        return True


class Clocked:
    """A loop whose clock a test moves on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = 0.0
        self.loop = self.restarted()

    def restarted(self) -> StatusLoop:
        self.loop = StatusLoop(
            self.world, self.world, clock=lambda: self.now, wall_clock=lambda: self.world.wall_s + self.now
        )
        return self.loop

    def after(self, seconds: float) -> float:
        self.now += seconds
        return self.loop.step()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def clocked(world: World) -> Clocked:
    return Clocked(world)


def figures(used_bytes: int) -> UsageReport:
    return usage_report(NAMESPACE, standard=class_usage(used_bytes))


def capped(used_bytes: int = 9 * GB) -> UsageReport:
    return usage_report(NAMESPACE, standard=class_usage(used_bytes, capped=True, rate_bps=512_000))


def many_slices(world: World, count: int) -> list[str]:
    """Apply so many slices, and report each of them from one node; their names."""
    names = [f"slice-{number:03}" for number in range(count)]
    for name in names:
        world.apply(name)
        world.report("n1", usage_report(NAMESPACE, name))
    return names


def all_have_used(world: World, names: Iterable[str], used_bytes: int) -> None:
    """Report other figures of each."""
    for name in names:
        world.report("n1", usage_report(NAMESPACE, name, standard=class_usage(used_bytes)))


def test_nothing_is_written_before_everything_was_listed(world: World, clocked: Clocked) -> None:
    world.is_synced = False
    world.apply()
    clocked.after(100.0)
    assert world.writes == []
    world.is_synced = True
    clocked.after(1.0)
    assert world.writes == [CODEEN]


def test_what_is_written_already_is_not_written_again_not_even_after_a_restart(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    clocked.after(1.0)
    for _ in range(5):
        clocked.after(100.0)
    clocked.restarted()
    world.dirty.add(CODEEN)
    clocked.after(100.0)
    assert world.writes == [CODEEN]


def test_figures_are_written_once_an_interval_and_the_latest_count(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1", figures(0))
    clocked.after(1.0)
    for used in range(1, 10):
        world.report("n1", figures(used * GB))
        pause_s = clocked.after(1.0)
        assert pause_s <= 10.0
    assert world.writes == [CODEEN]
    clocked.after(1.0)
    assert world.writes == [CODEEN, CODEEN]
    assert world.status().standard.used_bytes == 9 * GB


def test_a_transition_does_not_wait_for_the_interval(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1", figures(0))
    clocked.after(1.0)
    world.report("n1", capped())
    clocked.after(1.0)
    assert world.status().capped_nodes == 1


def test_transitions_of_one_slice_are_written_once_a_second(world: World, clocked: Clocked) -> None:
    world.apply()
    for number in range(1000):
        world.report(f"n{number}")
        clocked.after(0.01)
    assert 8 <= len(world.writes) <= 12
    clocked.after(1.0)
    assert world.status().nodes == 1000


def test_over_all_slices_the_budget_holds_and_transitions_go_first(world: World, clocked: Clocked) -> None:
    names = many_slices(world, 100)
    clocked.after(0.0)
    assert len(world.writes) == BURST
    pause_s = clocked.after(0.1)
    assert pause_s <= 0.2, "there is more to write as soon as there is budget"
    for _ in range(100):
        clocked.after(0.2)
    assert len(world.writes) == 100, "5 a second"

    all_have_used(world, names, GB)
    clocked.after(0.0)
    world.report("n1", usage_report(NAMESPACE, "slice-099", standard=class_usage(9 * GB, capped=True)))
    before = len(world.writes)
    clocked.after(1.0)
    assert world.writes[before] == SliceKey(NAMESPACE, "slice-099")


def test_what_waits_for_the_budget_is_rolled_up_again_only_if_something_about_it_changes(
    world: World, clocked: Clocked
) -> None:
    """Thousands of slices can wait: to roll all of them up at every step would take all of the controller's time."""
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
        """While other pods are looked up, which can take a while, somebody changes the slice."""
        world.after_look = None
        world.apply(changed.name, generation=2)
        world.report("n1", usage_report(NAMESPACE, changed.name, generation=2, standard=class_usage(2 * GB)))

    world.after_look = late
    world.put(elsewhere.key, replace(elsewhere, generation=2), world.status(elsewhere.key))
    for _ in range(20):
        clocked.after(1.0)
    assert world.after_look is None
    assert world.writes[before:].count(changed) == 1
    assert world.status(changed).observed_generation == 2
    assert world.status(changed).standard.used_bytes == 2 * GB


def test_a_status_without_the_look_that_it_needs_is_rolled_up_again_while_it_waits(
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
    assert waiting, "the budget for looks is spent, and that for writes"
    for _ in range(20):
        clocked.after(1.0)
    assert all(world.writes.count(key) == 1 for key in waiting)
    assert {enforced(world, key) for key in waiting} == {("False", "NodesSilent")}


def test_a_write_that_fails_is_made_later(world: World, clocked: Clocked) -> None:
    world.apply()
    world.away = True
    clocked.after(1.0)
    clocked.after(5.0)
    assert clocked.loop.counts.failed_writes == 2
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
    clocked.after(1000.0 + OVER_GRACE_S)
    assert world.deleted == []
    clocked.after(60.0)
    assert world.deleted == ["codeen.n1"]


def test_a_usage_that_is_still_reported_stays_whatever_its_period(world: World, clocked: Clocked) -> None:
    # As of a slice that is denied its pods: it has no class, so no period runs.
    world.node_names = {"n1"}
    long_over = usage_report(NAMESPACE, class_id=0, period_end_s=int(world.wall_s) - 10 * DAY_S)
    world.report("n1", long_over, reported_at_s=int(world.wall_s))
    clocked.after(60.0)
    assert world.deleted == []
    clocked.after(OVER_GRACE_S)
    assert world.deleted == ["codeen.n1"]


def test_a_step_that_raises_is_counted_and_the_loop_goes_on(world: World, clocked: Clocked) -> None:
    loop = clocked.loop

    def fail() -> bool:
        loop.stop()
        raise ValueError("out of the blue")

    world.synced = fail  # type: ignore[method-assign]
    loop.run()
    assert loop.counts.failures == 1


def enforced(world: World, key: SliceKey = CODEEN) -> tuple[str, str]:
    found = next(one for one in world.status(key).conditions if one.type == "Enforced")
    return found.status, found.reason


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


def test_pods_that_start_after_a_look_are_seen_by_their_nodes_reports(world: World, clocked: Clocked) -> None:
    world.apply()
    clocked.after(1.0)
    assert enforced(world) == ("Unknown", "NoPods")
    world.report("n1")
    clocked.after(2.0)
    assert enforced(world) == ("True", "OnAllNodes")
    # Another node's report contradicts that look as well, and beside it one starts that nobody has reported.
    world.pods_on["n3"] = 1
    world.report("n2")
    clocked.after(2.0)
    assert enforced(world) == ("False", "NodesSilent")


def test_a_report_that_outlives_its_pod_is_no_reason_to_look_again_and_again(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    world.report("n2")
    del world.pods_on["n2"]
    clocked.after(1.0)
    clocked.after(10.0)  # the first status is a change of its own
    looks = world.looks
    for _ in range(20):
        clocked.after(10.0)
    assert world.looks == looks
    assert enforced(world) == ("True", "OnAllNodes")


def test_a_look_from_before_a_change_that_nobody_told_of_yet_does_not_count(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    clocked.after(1.0)

    def late() -> None:
        """The object changes, and with it the pods, between a look and what is made of it."""
        world.after_look = None
        world.apply(generation=2)
        world.report("n1", usage_report(NAMESPACE, generation=2))
        world.pods_on["n2"] = 1

    world.after_look = late
    clocked.after(1.3 * RECHECK_S)
    assert enforced(world) == ("False", "NodesSilent")


def test_wording_alone_is_no_reason_to_look_before_it_is_written(world: World, clocked: Clocked) -> None:
    world.apply()
    for number in range(5):
        world.report(f"n{number}")
    clocked.after(1.0)
    world.apply(generation=2)
    clocked.after(2.0)
    looks = world.looks
    for number in range(4):
        world.report(f"n{number}", usage_report(NAMESPACE, generation=2))
        clocked.after(2.0)
    assert world.looks == looks
    assert "0 of 5" in next(one.message for one in world.status().conditions if one.type == "Enforced")
    clocked.after(2.0)
    assert world.looks == looks + 1
    assert "4 of 5" in next(one.message for one in world.status().conditions if one.type == "Enforced")


def test_pods_are_not_looked_up_while_nothing_but_figures_changes(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1", figures(0))
    clocked.after(1.0)
    looks = world.looks
    for used in range(1, 20):
        world.report("n1", figures(used * GB // 10))
        clocked.after(10.0)
    assert len(world.writes) == 20
    assert world.looks == looks


def test_pods_are_looked_up_again_every_few_minutes_and_sooner_while_nodes_are_missing(
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
    looks = world.looks
    for _ in range(int(0.75 * RECHECK_S / 5.0)):
        clocked.after(5.0)
    assert world.looks == looks


def test_the_looks_of_all_namespaces_have_a_budget(world: World, clocked: Clocked) -> None:
    world.apply()
    world.pods_on = {f"n{number}": 200 for number in range(100)}
    for generation in range(1, 101):  # every look is at 20,000 pods
        world.apply(generation=generation)
        clocked.after(1.0)
    assert world.looks <= 1 + (BURST_PODS + 100 * PODS_PER_S) / 20_000
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


def test_a_status_is_not_written_over_an_object_that_has_changed_meanwhile(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1")
    world.after_look = lambda: world.apply(generation=2)
    clocked.after(1.0)
    assert world.writes == []
    assert clocked.loop.counts.failed_writes == 1
    world.after_look = None
    clocked.after(1.0)
    assert world.writes == [CODEEN]
    assert world.status().observed_generation == 2


def test_of_two_controllers_one_writes_and_neither_more_often_than_one_would(world: World, clocked: Clocked) -> None:
    first, second = Clocked(world), clocked
    seen = {id(first): set[SliceKey](), id(second): set[SliceKey]()}

    def step(one: Clocked) -> None:
        dirty, world.dirty = world.dirty, set()
        for keys in seen.values():
            keys.update(dirty)
        world.dirty, seen[id(one)] = seen[id(one)], set()
        one.after(0.5)
        for keys in seen.values():
            keys.update(world.dirty)

    world.apply()
    world.report("n1", figures(0))
    for half_second in range(240):
        world.report("n1", figures(half_second))
        step(first if half_second % 3 else second)
        step(second if half_second % 3 else first)
    assert 11 <= len(world.writes) <= 13, "120 s: one write every 10 s, whoever makes it"


def test_a_restart_writes_no_figures_sooner(world: World, clocked: Clocked) -> None:
    world.apply()
    world.report("n1", figures(0))
    clocked.after(1.0)
    for used in range(1, 9):
        world.report("n1", figures(used * GB))
        clocked.restarted()
        clocked.after(1.0)
    assert world.writes == [CODEEN]
    clocked.after(10.0)
    assert world.writes == [CODEEN, CODEEN]


def test_a_wrong_spec_is_told_once_a_generation_whether_or_not_anybody_runs_its_pods(
    world: World, clocked: Clocked
) -> None:
    world.away = True
    world.apply(errors=("spec.period: too short",))
    clocked.after(1.0)
    assert world.told == []
    world.away = False
    for _ in range(5):
        clocked.after(5.0)
    clocked.restarted()
    world.dirty.add(CODEEN)
    clocked.after(5.0)
    clocked.after(5.0)
    assert world.told == [f"InvalidSpec/{CODEEN}/uid/1"]
    world.apply(generation=2, errors=("spec.period: too long",))
    clocked.after(5.0)
    assert world.told[1:] == [f"InvalidSpec/{CODEEN}/uid/2"]


def test_when_a_slice_goes_its_pods_are_another_one_s_at_once(world: World, clocked: Clocked) -> None:
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
