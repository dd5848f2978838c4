"""A cluster in memory for the controller's tests, and a status loop whose clock the test sets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from slicebw.api.bandwidth_usage import NodeUsage, UsageRecord
from slicebw.api.slice_bandwidth import SliceRecord, SliceStatus
from slicebw.controller.ports import ClusterFeed, ClusterWriter
from slicebw.controller.status_loop import StatusLoop
from slicebw.core.desired import DEFAULT_LIMITS, Pod, Requirement, Selector, SelectorOperator, SliceKey, SliceSpec
from slicebw.core.ledger import PendingEvent
from slicebw.core.reports import UsageReport
from tests.support.reports import DAY_S, GB, PERIOD_START_S, class_usage, usage_report

NAMESPACE = "princeton-codeen"
CODEEN = SliceKey(NAMESPACE, "codeen")


@dataclass
class World(ClusterFeed, ClusterWriter):
    """A cluster in memory. The feed shows at once what is written."""

    wall_s: float = PERIOD_START_S + 3600.0
    slices: dict[SliceKey, SliceRecord] = field(default_factory=dict)
    all_usages: dict[tuple[str, str], UsageRecord] = field(default_factory=dict)
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
    pod_lists: int = 0
    rolled_up: set[SliceKey] = field(default_factory=set)
    emitted: list[str] = field(default_factory=list)
    after_list: Callable[[], None] | None = None
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
        self.slices[key] = SliceRecord(spec, status, str(self.versions))
        self.dirty.add(key)

    def report(
        self, node: str, report: UsageReport | None = None, *, owned: bool = True, reported_at_s: int = 0
    ) -> None:
        report = report or usage_report(NAMESPACE, period_end_s=PERIOD_START_S + DAY_S)
        name = f"{report.key.name}.{node}"
        self.all_usages[node, name] = UsageRecord(
            NAMESPACE, name, f"uid-{name}", owned, NodeUsage(report, node, reported_at_s)
        )
        self.dirty.add(report.key)
        if report.slice_id:
            self.pods_on[node] = 1

    def status(self, key: SliceKey = CODEEN) -> SliceStatus:
        return self.slices[key].status

    def synced(self) -> bool:
        return self.is_synced

    def changed(self) -> frozenset[SliceKey]:
        dirty, self.dirty = self.dirty, set()
        return frozenset(dirty)

    def slice_record(self, key: SliceKey) -> SliceRecord | None:
        return self.slices.get(key)

    def slices_in(self, namespace: str) -> Sequence[SliceRecord]:
        return [one for key, one in self.slices.items() if key.namespace == namespace]

    def known_slices(self) -> int:
        return len(self.slices)

    def known_usages(self) -> int:
        return len(self.all_usages)

    def usages_of(self, key: SliceKey) -> Sequence[UsageRecord]:
        self.rolled_up.add(key)
        return [usage for usage in self.all_usages.values() if usage.usage.report.key == key]

    def usages(self) -> Iterable[UsageRecord]:
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

    def emit(self, note: PendingEvent) -> bool:
        if not self.away:
            self.emitted.append(note.id)
        return not self.away

    def pods(self, namespace: str) -> Mapping[str, Sequence[Pod]] | str | None:
        """Return as many pods of every slice on each node as ``pods_on`` has."""
        self.pod_lists += 1
        found = {
            node: [
                Pod(namespace, f"{key.name}-{at}", "", {"slice": key.name}, (f"10.{number}.0.{at}",), False, False, 0)
                for number, key in enumerate(self.slices)
                for at in range(count)
            ]
            for node, count in self.pods_on.items()
        }
        if self.after_list:
            self.after_list()
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
    """A status loop whose clock the test advances."""

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


def figures(used_bytes: int) -> UsageReport:
    return usage_report(NAMESPACE, standard=class_usage(used_bytes))


def capped(used_bytes: int = 9 * GB) -> UsageReport:
    return usage_report(NAMESPACE, standard=class_usage(used_bytes, capped=True, rate_bps=512_000))


def many_slices(world: World, count: int) -> list[str]:
    """Create ``count`` slices and report each of them from one node. Returns their names."""
    names = [f"slice-{number:03}" for number in range(count)]
    for name in names:
        world.apply(name)
        world.report("n1", usage_report(NAMESPACE, name))
    return names


def all_have_used(world: World, names: Iterable[str], used_bytes: int) -> None:
    """Report other figures of each slice."""
    for name in names:
        world.report("n1", usage_report(NAMESPACE, name, standard=class_usage(used_bytes)))


def enforced(world: World, key: SliceKey = CODEEN) -> tuple[str, str]:
    found = next(one for one in world.status(key).conditions if one.type == "Enforced")
    return found.status, found.reason
