"""The reconciler over the fake kernel, with every fault that it can meet, and a real store on a real disk."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from slicebw.agent.checkpoint import FileStore
from slicebw.agent.ports import Ports
from slicebw.agent.reconciler import RETRY_NS, Reconciler
from slicebw.agent.report_throttle import ReportThrottle
from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import ChangeClass, CreateClass, CreateRoot, DeleteClass, RootQdisc
from slicebw.core.desired import DesiredState, Mode, NodeSpec, SliceKey
from slicebw.core.errors import KernelError
from slicebw.core.ledger import Ledger, PendingEvent, Reason
from slicebw.core.reports import NodeReport, UsageReport
from slicebw.kernel.fake import FakeClassifier, FakeShaper, Fault
from tests.unit.core.builders import M, at, pod, spec

KEY = SliceKey("ns", "slice")
STANDARD = 0x1001


class Feed:
    """A feed whose desired state the test sets."""

    def __init__(self) -> None:
        node = NodeSpec(line_rate_bps=1000 * M)
        self.now = DesiredState((spec(),), (pod("ns/pod", "10.0.0.1"),), node, synced=True)

    def desired_state(self) -> DesiredState:
        return self.now


class Reporter:
    """Remembers reports. The test decides when they are delivered."""

    def __init__(self) -> None:
        self.usages: list[UsageReport] = []
        self.expired: list[SliceKey] = []
        self.events: dict[str, PendingEvent] = {}
        self.nodes: list[NodeReport] = []
        self.known: Sequence[UsageReport] | None = ()
        self.done: set[str] = set()

    def report(
        self,
        usages: Sequence[UsageReport],
        expired: Sequence[SliceKey],
        events: Sequence[PendingEvent],
        node: NodeReport | None,
    ) -> None:
        self.usages += usages
        self.expired += expired
        self.events |= {note.id: note for note in events}
        self.nodes += [node] if node is not None else []

    def previous_reports(self) -> Sequence[UsageReport] | None:
        return self.known

    def acknowledged(self) -> frozenset[str]:
        done, self.done = frozenset(self.done), set()
        return done


class World:
    """A node around a reconciler: its kernel, its disk, its clock. They survive when the agent is started again."""

    def __init__(self, folder: Path) -> None:
        self.shaper = FakeShaper("uplink0", "uplink1")
        self.classifier = FakeClassifier(lambda: self.clock().boot_ns)
        self.classifier.watch(lambda: None)
        self.feed = Feed()
        self.reporter = Reporter()
        self.folder = folder
        self.seconds = 0.0
        self.start_agent()

    def clock(self) -> Instant:
        return at(self.seconds)

    def start_agent(self) -> None:
        """Start a new agent process. Only the disk and the kernel are left of the last one."""
        ports = Ports(self.shaper, self.classifier, self.feed, FileStore(self.folder), self.reporter)
        self.reconciler = Reconciler(ports, self.clock, ReportThrottle(60 * NS))
        self.reconciler.start()

    def run(self, seconds: float = 1.0) -> int:
        """Let some time pass, then run a pass."""
        self.seconds += seconds
        return self.reconciler.run_once()

    @property
    def ledger(self) -> Ledger:
        """The ledger on disk."""
        ledger, problem = FileStore(self.folder).peek_ledger()
        assert ledger is not None, problem
        return ledger

    def ceil_bps(self, minor: int = STANDARD, device: str = "uplink0") -> int:
        return self.shaper.devices[device].classes[minor].ceil_bps


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.run()
    return made


def test_the_first_pass_builds_everything_and_the_second_changes_nothing(world: World) -> None:
    applied = len(world.shaper.applied), len(world.classifier.applied)
    assert world.ceil_bps() == 10 * M
    assert world.classifier.table is not None
    assert world.classifier.table.slice_id_by_address == {"10.0.0.1": 1}
    world.run()
    assert (len(world.shaper.applied), len(world.classifier.applied)) == applied


def test_a_killed_agent_loses_nothing_and_touches_nothing(world: World) -> None:
    world.shaper.send(STANDARD, 50 * M)
    world.run()
    world.shaper.send(STANDARD, 20 * M)
    applied = len(world.shaper.applied)
    world.start_agent()
    world.run()
    assert world.ledger.slices[KEY].standard.used_bytes == 70 * M
    assert len(world.shaper.applied) == applied


def test_a_cap_is_not_announced_again_by_the_next_agent(world: World) -> None:
    world.shaper.send(STANDARD, 90 * M)
    world.run()
    (identity,) = world.reporter.events
    world.reporter.done = {identity}
    world.run()
    assert world.ledger.pending_events == ()
    world.reporter.events.clear()
    world.start_agent()
    world.run()
    assert not world.reporter.events


def test_an_event_that_was_not_delivered_is_reported_again_by_the_next_agent(world: World) -> None:
    world.shaper.send(STANDARD, 90 * M)
    world.run()
    identities = list(world.reporter.events)
    world.reporter.events.clear()
    world.start_agent()
    world.run()
    assert list(world.reporter.events) == identities


def test_a_torn_dump_is_neither_a_reset_nor_a_deletion(world: World) -> None:
    world.shaper.send(STANDARD, 50 * M)
    world.shaper.torn_reads = 1
    with pytest.raises(KernelError):
        world.run()
    world.run()
    assert world.ledger.slices[KEY].standard.used_bytes == 50 * M


@pytest.mark.parametrize("fault", list(Fault))
def test_a_change_that_fails_is_made_on_a_later_pass_and_the_others_now(world: World, fault: Fault) -> None:
    world.feed.now = replace(
        world.feed.now,
        slices=(spec(max_rate_bps=20 * M), spec("b/s")),
        pods=(
            *world.feed.now.pods,
            pod("b/p", "10.0.0.2"),
        ),
    )
    world.shaper.faults.append((ChangeClass, fault))
    if fault is Fault.REFUSED:
        assert world.run() == RETRY_NS
        assert 0x1002 in world.shaper.devices["uplink0"].classes
    else:
        with pytest.raises(KernelError):
            world.run()
    world.run()
    assert world.ceil_bps() == 20 * M
    assert world.ceil_bps(0x1002) == 10 * M
    assert world.run() > RETRY_NS


def test_a_table_that_cannot_be_read_does_not_keep_a_cap_from_being_set(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.classifier.invalidate()
    world.classifier.failing_reads = 1
    world.shaper.send(STANDARD, 90 * M)
    with caplog.at_level(logging.ERROR):
        world.run()
    assert "table cannot be read" in caplog.text
    assert world.ceil_bps() < 10 * M
    world.run()
    assert world.classifier.table is not None
    assert world.classifier.table.slice_id_by_address == {"10.0.0.1": 1}


def test_a_table_change_that_fails_is_made_on_a_later_pass(world: World) -> None:
    world.classifier.faults.append(Fault.BEFORE)
    world.feed.now = replace(world.feed.now, pods=(pod("ns/pod", "10.0.0.9"),))
    assert world.run() == RETRY_NS
    world.run()
    assert world.classifier.table is not None
    assert world.classifier.table.slice_id_by_address == {"10.0.0.9": 1}


def test_a_table_changed_by_another_program_is_written_again(world: World) -> None:
    world.classifier.spoil()
    world.run(seconds=11)
    assert world.classifier.table is not None
    assert world.classifier.table.intact


def test_without_a_disk_nothing_is_destroyed_and_everything_else_goes_on(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    (world.folder / "ledger.tmp").mkdir()  # makes every save fail, as a full or read-only disk does
    world.shaper.send(STANDARD, 90 * M)
    world.run()
    assert world.ceil_bps() < 10 * M
    assert "not saved, continuing in memory" in caplog.text
    world.feed.now = replace(world.feed.now, pods=())
    for _ in range(3):
        world.run()
    assert STANDARD in world.shaper.devices["uplink0"].classes
    assert world.reconciler.stats.failed_saves >= 4
    (world.folder / "ledger.tmp").rmdir()
    world.run()
    assert STANDARD not in world.shaper.devices["uplink0"].classes
    assert world.ledger.slices[KEY].standard.used_bytes == 90 * M


def test_without_the_api_a_restarted_agent_enforces_the_last_desired_state(world: World) -> None:
    known = world.feed.now
    world.feed.now = DesiredState()
    world.start_agent()
    world.shaper.devices["uplink0"].lose_tree()
    world.run()
    assert world.ceil_bps() == 10 * M
    assert not world.reconciler.synced
    world.feed.now = replace(known, slices=(), pods=())
    for _ in range(3):
        world.run()
    assert STANDARD not in world.shaper.devices["uplink0"].classes


def test_a_selector_that_becomes_wrong_keeps_its_pods_restarts_included(world: World) -> None:
    bad = replace(spec(), selector=None, generation=2, errors=("spec.podSelector: wrong",))
    world.feed.now = replace(world.feed.now, slices=(bad,))
    for _ in range(3):
        world.run()
    world.start_agent()
    for _ in range(3):
        world.run()
    assert world.ceil_bps() == 10 * M
    assert world.classifier.table is not None
    assert world.classifier.table.slice_id_by_address == {"10.0.0.1": 1}
    assert [note.reason for note in world.reporter.events.values()] == [Reason.INVALID]
    assert world.ledger.slices[KEY].generation == 1, "the second one is not in force as a whole"


def test_a_cap_that_becomes_wrong_stays_what_it_was_restarts_included(world: World) -> None:
    good = replace(world.feed.now.node, cap_bps=5 * M)
    world.feed.now = replace(world.feed.now, node=good)
    world.run()
    assert world.ceil_bps() == 5 * M
    bad = replace(good, cap_bps=None, wrong=("cap_bps",), errors=("spec.cap: wrong",))
    world.feed.now = replace(world.feed.now, node=bad)
    world.run()
    world.start_agent()
    world.run()
    assert world.ceil_bps() == 5 * M
    assert world.reporter.nodes[-1].message == "spec.cap: wrong"
    world.feed.now = replace(world.feed.now, node=replace(good, cap_bps=None))
    world.run()
    assert world.ceil_bps() == 10 * M, "no cap is no mistake"


def test_a_ledger_that_cannot_be_trusted_is_rebuilt_from_what_was_reported(world: World) -> None:
    world.shaper.send(STANDARD, 90 * M)
    world.run()
    reports = [report for report in world.reporter.usages if report.standard.capped]
    world.shaper.send(STANDARD, 1 * M)
    (world.folder / "ledger").write_bytes(b"\0" * 512)
    world.reporter.known = None
    world.reporter.events.clear()
    world.start_agent()
    sent = len(world.reporter.usages)
    world.run()
    assert world.ledger.rebuilding
    assert len(world.reporter.usages) == sent  # they would overwrite the reports to restore from
    world.reporter.known = reports
    assert world.run() == RETRY_NS
    assert world.ledger.slices[KEY].standard.used_bytes == 91 * M
    world.run()
    account = world.ledger.slices[KEY]
    assert (account.standard.used_bytes, account.slice_id) == (91 * M, 1)
    assert not world.ledger.rebuilding
    assert {note.reason for note in world.reporter.events.values()} == {Reason.LEDGER_REBUILT}
    assert world.ceil_bps() < 10 * M


def test_usages_of_slices_that_the_ledger_has_purged_are_removed(world: World) -> None:
    world.run()
    gone = replace(world.reporter.usages[0], key=SliceKey("gone", "slice"))
    world.reporter.known = [world.reporter.usages[0], gone]
    world.start_agent()
    world.run()
    assert world.reporter.expired == [gone.key]


def test_when_the_uplink_changes_the_old_one_is_counted_and_left_as_it_was_found(world: World) -> None:
    world.shaper.send(STANDARD, 30 * M)
    world.shaper.default_device = "uplink1"
    world.run()
    world.run(seconds=5)
    assert world.shaper.devices["uplink0"].root is RootQdisc.DEFAULT
    assert world.ceil_bps(device="uplink1") == 10 * M
    world.shaper.send(STANDARD, 5 * M, device="uplink1")
    world.run()
    assert world.ledger.slices[KEY].standard.used_bytes == 35 * M
    assert {note.reason for note in world.reporter.events.values()} == {Reason.UPLINK_CHANGED}


def test_an_old_uplink_that_is_unplugged_does_not_hold_up_the_new_one(world: World) -> None:
    del world.shaper.devices["uplink0"]
    world.shaper.default_device = "uplink1"
    world.run()
    assert world.ceil_bps(device="uplink1") == 10 * M


def test_the_ledger_is_on_disk_before_a_class_is_deleted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    save, apply = FileStore.save_ledger, world.shaper.apply

    def saved(store: FileStore, ledger: Ledger) -> None:
        order.append("save")
        save(store, ledger)

    monkeypatch.setattr(FileStore, "save_ledger", saved)

    def applied(device: str, changes: Sequence[object], line_rate_bps: int) -> object:
        order.extend("delete" for change in changes if isinstance(change, DeleteClass))
        return apply(device, changes, line_rate_bps)  # type: ignore[arg-type]

    monkeypatch.setattr(world.shaper, "apply", applied)
    world.feed.now = replace(world.feed.now, pods=())
    for _ in range(3):
        world.run()
    assert order.index("save") < order.index("delete")


def test_the_mode_is_live(world: World) -> None:
    for mode, root in ((Mode.DISABLED, RootQdisc.DEFAULT), (Mode.ENFORCE, RootQdisc.OURS)):
        world.feed.now = replace(world.feed.now, node=replace(world.feed.now.node, mode=mode))
        world.run()
        assert world.shaper.devices["uplink0"].root is root
        world.run()
    assert world.ceil_bps() == 10 * M


def test_building_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    for kind in (CreateRoot, CreateClass):
        for fault in (Fault.BEFORE, Fault.AFTER):
            world = World(tmp_path / f"{kind.__name__}-{fault}")
            world.shaper.faults.append((kind, fault))
            with pytest.raises(KernelError):
                world.run()
            world.start_agent()
            world.run()
            assert world.ceil_bps() == 10 * M
