"""The folder sink on real folders. A stopped queue has written everything, so tests stop it and read the files."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slicebw.agent.report_queue import ReportQueue
from slicebw.api import bandwidth_usage
from slicebw.core.desired import Mode, SliceKey
from slicebw.core.ledger import PendingEvent, Reason
from slicebw.core.reports import ClassUsage, NodeReport, UsageReport
from slicebw.folder import disk
from slicebw.folder import sink as sink_module
from slicebw.folder.feed import FolderFeed
from slicebw.folder.sink import FolderSink, read_usages
from tests.unit.folder.builders import logged

NODE = "node-a"
KEY = SliceKey("ns", "codeen")
NOW_S = 1_700_000_000


def usage(used_bytes: int = 7, key: SliceKey = KEY) -> UsageReport:
    one = ClassUsage(used_bytes, 1000, used_bytes // 10, 10_000_000, False, None, used_bytes)
    return UsageReport(key, 1, 3, NOW_S, NOW_S + 3600, one, one)


def note(number: int = 1, key: SliceKey | None = KEY) -> PendingEvent:
    identity = f"{Reason.CAPPED}/{key}/{number}"
    return PendingEvent(identity, key, "uid", Reason.CAPPED, True, f"message {number}", NOW_S)


def node(message: str = "limits are in force", *, ready: bool = True) -> NodeReport:
    return NodeReport("eth0", Mode.ENFORCE, 10**7, 10**9, 1, 0, 5, 6, None, None, ready, message)


class Desk:
    """A folder, and one report queue after another on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = folder / "status"
        self.now_s = NOW_S
        self.reporter = self.restart()

    def restart(self, node_name: str = NODE) -> ReportQueue:
        """Start another agent's queue."""
        sink = FolderSink(self.folder, node_name, retry_s=0.05)
        self.reporter = ReportQueue(sink, wall_clock=lambda: self.now_s, last_chance_s=5.0)
        self.reporter.start()
        return self.reporter

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it is so."""
        deadline = time.monotonic() + 10.0
        while not holds():
            assert time.monotonic() < deadline, self.files()
            time.sleep(0.005)

    def files(self) -> list[str]:
        """All files below status."""
        return sorted(str(path.relative_to(self.status)) for path in self.status.rglob("*") if path.is_file())

    def object(self, path: str) -> dict[str, Any]:
        """The only object in a file."""
        obj = yaml.safe_load((self.status / path).read_text())
        assert isinstance(obj, dict)
        return obj


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    one = Desk(tmp_path)
    yield one
    one.reporter.stop()


USAGE_FILE = "bandwidthusages/ns/codeen.node-a.yaml"
NODE_FILE = "nodebandwidths/node-a.yaml"


def test_reports_are_the_objects_an_api_server_would_hold(desk: Desk) -> None:
    desk.reporter.report([usage()], [], [note()], node())
    desk.reporter.stop()
    event_file = next(name for name in desk.files() if name.startswith("events/"))
    assert desk.files() == [USAGE_FILE, event_file, NODE_FILE]
    assert desk.object(USAGE_FILE) == bandwidth_usage.to_object(usage(), NODE, None, NOW_S)
    event, own = desk.object(event_file), desk.object(NODE_FILE)
    assert event_file == f"events/ns/{event['metadata']['name']}.yaml"
    assert (event["kind"], event["reason"], event["involvedObject"]["name"]) == ("Event", "BandwidthCapped", "codeen")
    assert (own["kind"], own["metadata"]["name"], own["status"]["device"]) == ("NodeBandwidth", NODE, "eth0")


def test_files_are_written_as_kubectl_writes_them(desk: Desk) -> None:
    desk.reporter.report([usage()], [], [], None)
    desk.reporter.stop()
    text = (desk.status / USAGE_FILE).read_text()
    assert text.startswith("apiVersion: slicebw.io/v1alpha1\nkind: BandwidthUsage\nmetadata:\n  namespace: ns\n")
    assert "reportedAt: '2023-11-14T22:13:20Z'" in text
    assert "&id" not in text
    assert (desk.status / USAGE_FILE).stat().st_mode & 0o444 == 0o444


def test_the_latest_report_is_the_one_that_stays(desk: Desk) -> None:
    for used_bytes in range(200):
        desk.reporter.report([usage(used_bytes)], [], [], None)
    desk.reporter.stop()
    assert desk.object(USAGE_FILE)["standard"]["bytesUsed"] == 199


def test_a_reader_never_sees_half_a_file(desk: Desk) -> None:
    path = desk.status / USAGE_FILE
    done = threading.Event()
    broken: list[str] = []

    def watch() -> None:
        while not done.is_set():
            if path.exists() and not path.read_text().endswith("classId: 1:2001\n"):
                broken.append(path.read_text())

    reader = threading.Thread(target=watch)
    reader.start()
    for used_bytes in range(100):
        desk.reporter.report([usage(used_bytes)], [], [], None)
        desk.until(lambda now=used_bytes: path.exists() and f"bytesUsed: {now}\n" in path.read_text())  # type: ignore[misc]
    done.set()
    reader.join()
    assert broken == []
    assert desk.files() == [USAGE_FILE]


def test_an_expired_usage_is_removed_with_its_folder(desk: Desk) -> None:
    other = SliceKey("other", "x")
    desk.reporter.report([usage(), usage(key=other)], [], [], None)
    desk.until(lambda: len(desk.files()) == 2)
    desk.reporter.report([], [KEY], [], None)
    desk.reporter.report([], [SliceKey("never", "was")], [], None)
    desk.reporter.stop()
    assert [path.name for path in (desk.status / "bandwidthusages").iterdir()] == ["other"]


def test_a_slice_that_comes_back_in_the_same_breath_stays(desk: Desk) -> None:
    desk.reporter.report([], [KEY], [], None)
    desk.reporter.report([usage()], [], [], None)
    desk.reporter.stop()
    assert desk.files() == [USAGE_FILE]


def acknowledged(desk: Desk) -> frozenset[str]:
    """Ids acknowledged, once there are some."""
    found: list[str] = []

    def take() -> bool:
        found.extend(desk.reporter.acknowledged())
        return bool(found)

    desk.until(take)
    return frozenset(found)


def test_an_event_is_written_once_however_often_it_is_reported(desk: Desk) -> None:
    for _ in range(5):
        desk.reporter.report([], [], [note()], None)
    assert acknowledged(desk) == {note().id}
    (name,) = desk.files()
    written = (desk.status / name).stat()
    desk.reporter.report([], [], [note()], None)
    desk.reporter.stop()
    assert desk.files() == [name]
    assert (desk.status / name).stat().st_ino == written.st_ino
    assert desk.reporter.acknowledged() == frozenset()


def test_an_event_that_was_written_before_the_agent_was_killed_is_not_written_again(desk: Desk) -> None:
    desk.reporter.report([], [], [note()], None)
    desk.reporter.stop()
    (name,) = desk.files()
    written = (desk.status / name).stat()
    desk.restart()
    desk.reporter.report([], [], [note()], None)
    assert acknowledged(desk) == {note().id}
    assert (desk.status / name).stat().st_ino == written.st_ino


def test_events_are_told_apart_by_id_and_by_node(desk: Desk) -> None:
    desk.reporter.report([], [], [note(1), note(2), note(1, None)], None)
    desk.reporter.stop()
    desk.restart("node-b").report([], [], [note(1)], None)
    desk.reporter.stop()
    assert len(desk.files()) == 4
    assert sum(name.startswith("events/default/") for name in desk.files()) == 1


def test_only_the_newest_events_are_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "EVENTS_KEPT", 3)
    for number in range(5):
        desk.reporter.report([], [], [note(number)], None)
        acknowledged(desk)
    desk.reporter.stop()
    assert {desk.object(name)["message"] for name in desk.files()} == {"message 2", "message 3", "message 4"}
    for name in desk.files():
        number = int(desk.object(name)["message"][-1])
        os.utime(desk.status / name, (NOW_S - number, NOW_S - number))  # the file of number 4 is the oldest now
    desk.restart().report([], [], [note(5)], None)
    desk.reporter.stop()
    assert {desk.object(name)["message"] for name in desk.files()} == {"message 2", "message 3", "message 5"}


def test_a_condition_keeps_its_time_of_transition_over_a_restart(desk: Desk) -> None:
    desk.reporter.report([], [], [], node())
    desk.reporter.stop()
    desk.now_s += 100
    desk.restart().report([], [], [], node("changed"))
    desk.reporter.stop()
    desk.now_s += 100
    desk.restart().report([], [], [], node("not any more", ready=False))
    desk.reporter.stop()
    status = desk.object(NODE_FILE)["status"]
    times = {one["type"]: one["lastTransitionTime"] for one in status["conditions"]}
    assert times["ForeignQdisc"] == "2023-11-14T22:13:20Z"
    assert times["Ready"] == status["reportedAt"] == "2023-11-14T22:16:40Z"


def test_a_condition_keeps_its_time_of_transition_from_report_to_report(desk: Desk) -> None:
    for message in ("one", "two"):
        desk.reporter.report([], [], [], node(message))
        desk.until(
            lambda text=message: (desk.status / NODE_FILE).exists() and text in (desk.status / NODE_FILE).read_text()  # type: ignore[misc]
        )
        desk.now_s += 100
    desk.reporter.stop()
    conditions = desk.object(NODE_FILE)["status"]["conditions"]
    assert {one["lastTransitionTime"] for one in conditions} == {"2023-11-14T22:13:20Z"}


def test_what_an_earlier_agent_reported_is_known_as_it_was(desk: Desk) -> None:
    desk.reporter.report([usage(500)], [], [], None)
    desk.reporter.stop()
    (desk.status / "bandwidthusages" / "ns" / "broken.yaml").write_text("kind: [")
    (desk.status / "bandwidthusages" / "ns" / "other.yaml").write_text("kind: BandwidthUsage\n")
    desk.restart("node-b").report([usage(1)], [], [], None)
    desk.reporter.stop()
    desk.restart().report([usage(3)], [], [], None)
    desk.reporter.stop()
    assert desk.reporter.previous_reports() == (usage(500),)
    assert [one.report for one in read_usages(desk.folder, NODE)] == [usage(3)]


def test_where_nobody_reported_before_that_is_known_too(desk: Desk) -> None:
    desk.until(lambda: desk.reporter.previous_reports() is not None)
    assert desk.reporter.previous_reports() == ()


def test_a_disk_error_is_said_once_stops_no_other_report_and_passes_by_itself(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    in_the_way = desk.status / "bandwidthusages" / "ns"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where a folder should be")
    for _ in range(3):
        desk.reporter.report([usage(9)], [], [note()], node())
    acknowledged(desk)
    for _ in range(3):
        desk.reporter.report([], [], [], None)
    desk.until((desk.status / NODE_FILE).exists)
    desk.until(lambda: bool(logged(caplog)))  # said once the last file of that turn is written
    assert len(logged(caplog)) == 1
    assert str(in_the_way) in logged(caplog)[0]
    in_the_way.unlink()
    desk.reporter.report([], [], [], None)
    desk.until(lambda: USAGE_FILE in desk.files())
    assert desk.object(USAGE_FILE)["standard"]["bytesUsed"] == 9
    desk.until(lambda: caplog.records[-1].getMessage() == "reports are written again")


def test_what_could_not_be_written_does_not_replace_what_came_meanwhile(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = disk.write_atomically

    def fail_late(path: Path, content: bytes, *, durable: bool = False) -> None:
        monkeypatch.setattr(sink_module, "write_atomically", write)
        desk.reporter.report([usage(2)], [], [], None)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sink_module, "write_atomically", fail_late)
    desk.reporter.report([usage(1)], [], [], None)
    desk.until((desk.status / USAGE_FILE).exists)
    desk.reporter.stop()
    assert desk.object(USAGE_FILE)["standard"]["bytesUsed"] == 2


def test_names_of_any_legal_length_become_files(desk: Desk) -> None:
    long_name, long_namespace = "s" * 253, "n" * 253
    desk.reporter.report(
        [usage(key=SliceKey(long_namespace, long_name))], [], [note(1, SliceKey("ns", long_name))], None
    )
    desk.reporter.stop()
    usages = read_usages(desk.folder, NODE)
    assert [one.report.key for one in usages] == [SliceKey(long_namespace, long_name)]
    assert len(desk.files()) == 2


def test_reporting_returns_at_once_with_thousands_of_slices(desk: Desk) -> None:
    usages = [usage(key=SliceKey("ns", f"s{number}")) for number in range(4000)]
    began = time.monotonic()
    desk.reporter.report(usages, [], [], None)
    assert time.monotonic() - began < 0.5
    desk.reporter.stop(60)
    assert len(desk.files()) == 4000


def test_reports_do_not_wake_the_feed_of_the_same_folder(desk: Desk) -> None:
    woken = threading.Semaphore(0)
    feed = FolderFeed(desk.folder, NODE, woken.release)
    feed.start()
    assert woken.acquire(timeout=10)
    before = feed.desired_state()
    for used_bytes in range(20):
        desk.reporter.report([usage(used_bytes)], [], [note(used_bytes)], node(str(used_bytes)))
    desk.until(lambda: len(desk.files()) == 22)
    assert not woken.acquire(timeout=1.5)
    assert feed.desired_state() is before
    feed.stop()
