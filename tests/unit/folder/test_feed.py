"""The feed on real folders with a real watch. No test sleeps for a fixed time: each waits for what it expects."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from slicebw.core.desired import DesiredState
from slicebw.core.errors import UsageError
from slicebw.folder import manifest_files
from slicebw.folder.feed import FolderFeed
from tests.unit.folder.builders import logged, rate_mbit, slice_yaml

NODE = "node-a"
PATIENCE_S = 10.0


def pod_yaml(name: str, node: str | None = None) -> str:
    spec = "{}" if node is None else f"{{nodeName: {node}}}"
    return dedent(f"""
        apiVersion: v1
        kind: Pod
        metadata: {{name: {name}, namespace: ns}}
        spec: {spec}
        status: {{podIP: 10.0.0.1}}
    """)


def node_yaml(name: str, spec: str) -> str:
    return dedent(f"""
        apiVersion: slicebw.io/v1alpha1
        kind: NodeBandwidth
        metadata: {{name: {name}}}
        spec: {spec}
    """)


def rates(desired: DesiredState) -> dict[str, int | None]:
    """The maximum rates in Mbit/s by slice name."""
    return {spec.key.name: rate_mbit(spec) for spec in desired.slices}


class Fed:
    """A feed on a folder, with the wakes it made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wakes = threading.Semaphore(0)
        self.feed = FolderFeed(folder, NODE, self.wakes.release)

    def start(self) -> DesiredState:
        """Start, and wait for the first complete desired state."""
        self.feed.start()
        return self.until(lambda desired: desired.synced)

    def until(self, holds: Callable[[DesiredState], bool]) -> DesiredState:
        """The first desired state that fits. A wake must have announced each change."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(self.feed.desired_state()):
            assert self.wakes.acquire(timeout=max(0.0, deadline - time.monotonic())), self.feed.desired_state()
        return self.feed.desired_state()

    def until_rates(self, **expected: int | None) -> DesiredState:
        """The desired state that has exactly these slices with these maximum rates in Mbit/s."""
        return self.until(lambda desired: rates(desired) == expected)

    def passed_over(self, marker: str = "marker") -> DesiredState:
        """The desired state once all files written so far have been read."""
        (self.folder / f"{marker}.yaml").write_text(pod_yaml(marker))
        return self.until(lambda desired: marker in {pod.name for pod in desired.pods})


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Fed]:
    one = Fed(tmp_path)
    yield one
    one.feed.stop()


def until_logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(words in line for line in logged(caplog)):
        assert time.monotonic() < deadline, logged(caplog)
        time.sleep(0.01)


def test_nothing_is_known_and_nothing_complete_before_the_first_read(fed: Fed) -> None:
    (fed.folder / "a.yaml").write_text(slice_yaml("codeen"))
    assert fed.feed.desired_state() == DesiredState()
    assert rates(fed.start()) == {"codeen": 10}


def test_an_empty_folder_is_complete(fed: Fed) -> None:
    assert fed.start() == DesiredState(synced=True)


@pytest.mark.parametrize(("name", "words"), [("missing", "does not exist"), ("file", "is not a folder")])
def test_a_folder_that_is_not_there_is_refused_in_one_line(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=words) as caught:
        FolderFeed(tmp_path / name, NODE, lambda: None)
    assert "\n" not in str(caught.value)


def test_a_node_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="node name"):
        FolderFeed(tmp_path, "../other", lambda: None)


def test_subfolders_are_read_and_hidden_and_temporary_files_and_the_status_folder_are_not(fed: Fed) -> None:
    inner = fed.folder / "site" / "status"
    for folder in (inner, fed.folder / "status", fed.folder / ".git"):
        folder.mkdir(parents=True)
    (inner / "a.yaml").write_text(slice_yaml("in-subfolder"))
    (fed.folder / "b.yml").write_text(slice_yaml("yml"))
    (fed.folder / "c.json").write_text(json.dumps(yaml.safe_load(slice_yaml("json")), indent="\t"))
    for name in ("status/x.yaml", ".git/x.yaml", ".x.yaml", "x.yaml~", "#x.yaml#", "x.txt", ".x.yaml.swp"):
        (fed.folder / name).write_text(slice_yaml("never"))
    assert {spec.key.name for spec in fed.start().slices} == {"in-subfolder", "yml", "json"}


def test_pods_of_this_node_and_of_no_node_count(fed: Fed) -> None:
    (fed.folder / "pods.yaml").write_text(
        f"{pod_yaml('ours', NODE)}---{pod_yaml('theirs', 'node-b')}---{pod_yaml('nobodys')}"
    )
    assert [pod.name for pod in fed.start().pods] == ["nobodys", "ours"]


def test_the_nodes_own_settings_lie_over_the_default_ones(fed: Fed) -> None:
    (fed.folder / "nodes.yaml").write_text(
        f"{node_yaml('default', '{cap: 50M, lineRate: 1G}')}---{node_yaml(NODE, '{cap: 20M}')}"
        f"---{node_yaml('node-b', '{cap: 1M}')}"
    )
    node = fed.start().node
    assert (node.cap_bps, node.line_rate_bps) == (20_000_000, 1_000_000_000)


def shortest_delay_s(fed: Fed, file: Path) -> float:
    """The shortest time in which any of some edits was seen."""
    seen_s = []
    for rate in (20, 30, 40):
        began = time.monotonic()
        file.write_text(slice_yaml("codeen", f"{rate}M"))
        fed.until_rates(codeen=rate)
        seen_s.append(time.monotonic() - began)
    return min(seen_s)


def test_an_edit_is_seen_well_within_a_second(fed: Fed) -> None:
    file = fed.folder / "a.yaml"
    file.write_text(slice_yaml("codeen"))
    fed.start()
    fed.passed_over()
    assert shortest_delay_s(fed, file) < 0.6


def test_files_added_and_removed_and_whole_folders_moved_in_are_seen(
    fed: Fed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fed.start()
    (fed.folder / "a.yaml").write_text(slice_yaml("a"))
    fed.until_rates(a=10)
    prepared = tmp_path_factory.mktemp("prepared")
    (prepared / "b.yaml").write_text(slice_yaml("b"))
    prepared.rename(fed.folder / "more")
    fed.until_rates(a=10, b=10)
    (fed.folder / "more" / "b.yaml").write_text(slice_yaml("b", "20M"))
    fed.until_rates(a=10, b=20)
    (fed.folder / "a.yaml").unlink()
    fed.until_rates(b=20)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("kind: [", "bad.yaml:2: cannot be read"),
        (slice_yaml("x").replace("SliceBandwidth", "SliceBandwith"), 'bad.yaml:2: kind "SliceBandwith" is unknown'),
        (slice_yaml("x").replace("name: x, ", ""), "bad.yaml:2: SliceBandwidth: metadata.name: must be given"),
        ("", "bad.yaml:1: is empty: to remove its objects, delete the file"),
    ],
)
def test_an_invalid_file_keeps_its_objects_and_disturbs_no_other(
    fed: Fed, caplog: pytest.LogCaptureFixture, broken: str, words: str
) -> None:
    bad, good = fed.folder / "bad.yaml", fed.folder / "good.yaml"
    bad.write_text(slice_yaml("bad"))
    good.write_text(slice_yaml("good"))
    fed.start()
    bad.write_text(broken)
    until_logged(caplog, words)
    good.write_text(slice_yaml("good", "20M"))
    fed.until_rates(bad=10, good=20)
    (line,) = logged(caplog)
    assert line.startswith(words)
    assert line.endswith("its last good content stays in force (1 object)")
    bad.write_text(slice_yaml("bad", "30M"))
    fed.until_rates(bad=30, good=20)


def test_a_file_that_is_invalid_when_the_agent_starts_again_keeps_its_objects(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(slice_yaml("codeen"))
    for content in (slice_yaml("codeen"), "kind: [", ""):
        file.write_text(content)
        again = Fed(tmp_path)
        assert rates(again.start()) == {"codeen": 10}
        again.feed.stop()
    file.unlink()
    empty = Fed(tmp_path)
    assert rates(empty.start()) == {}
    empty.feed.stop()
    file.write_text("kind: [")
    new = Fed(tmp_path)
    assert rates(new.start()) == {}
    new.feed.stop()


def test_a_file_that_never_was_valid_gives_its_valid_objects(fed: Fed, caplog: pytest.LogCaptureFixture) -> None:
    (fed.folder / "a.yaml").write_text(f"{slice_yaml('right')}---\nkind: Pod\n---{slice_yaml('also')}---\n[1]\n")
    assert rates(fed.start()) == {"right": 10, "also": 10}
    assert logged(caplog) == [
        "a.yaml:8: apiVersion is missing: there are slicebw.io/v1alpha1 SliceBandwidth, slicebw.io/v1alpha1 "
        "NodeBandwidth, v1 Pod and v1 List (and 1 more problems); its valid objects are used (2 objects)"
    ]


def test_a_wrong_limit_is_the_slices_own_and_is_logged_with_file_and_line(
    fed: Fed, caplog: pytest.LogCaptureFixture
) -> None:
    (fed.folder / "a.yaml").write_text(slice_yaml("codeen", "10Q"))
    (spec,) = fed.start().slices
    assert spec.limits is None
    (line,) = logged(caplog)
    assert line.startswith('a.yaml:2: SliceBandwidth ns/codeen: spec.standard.maxRate: "10Q" is not a rate')


def test_an_object_in_two_files_is_the_first_ones_until_that_lets_go(
    fed: Fed, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = fed.folder / "m.yaml", fed.folder / "a.yaml"
    first.write_text(slice_yaml("codeen"))
    fed.start()
    second.write_text(f"{slice_yaml('codeen', '20M')}---{slice_yaml('other')}")
    fed.until_rates(codeen=10, other=10)
    assert logged(caplog) == [
        "a.yaml:2: SliceBandwidth ns/codeen is in m.yaml:2 already, which is used: keep it in one file"
    ]
    first.unlink()
    fed.until_rates(codeen=20, other=10)


def test_of_two_files_with_an_object_found_at_the_start_the_name_that_sorts_first_has_it(fed: Fed) -> None:
    (fed.folder / "b.yaml").write_text(slice_yaml("codeen", "20M"))
    (fed.folder / "a.yaml").write_text(slice_yaml("codeen", "10M"))
    assert rates(fed.start()) == {"codeen": 10}


def test_a_symlinked_folder_that_is_switched_is_followed(tmp_path: Path) -> None:
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "a.yaml").write_text(slice_yaml("codeen", f"{release}M"))
    link = tmp_path / "current"
    link.symlink_to("1")
    fed = Fed(link)
    assert rates(fed.start()) == {"codeen": 1}
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(link)
    fed.until_rates(codeen=2)
    assert shortest_delay_s(fed, tmp_path / "2" / "a.yaml") < 0.6
    fed.feed.stop()


def test_a_mounted_configmap_is_followed_when_it_is_switched(fed: Fed) -> None:
    for release in ("..1", "..2"):
        (fed.folder / release).mkdir()
        (fed.folder / release / "a.yaml").write_text(slice_yaml("codeen", f"{release[-1]}M"))
    (fed.folder / "..data").symlink_to("..1")
    (fed.folder / "a.yaml").symlink_to("..data/a.yaml")
    assert rates(fed.start()) == {"codeen": 1}
    (fed.folder / "..next").symlink_to("..2")
    (fed.folder / "..next").rename(fed.folder / "..data")
    fed.until_rates(codeen=2)


def test_a_folder_that_goes_away_and_comes_back_deletes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(slice_yaml("codeen"))
    fed = Fed(folder)
    fed.start()
    folder.rename(tmp_path / "away")
    until_logged(caplog, "cannot be listed: No such file or directory")
    assert rates(fed.feed.desired_state()) == {"codeen": 10}
    folder.mkdir()
    (folder / "a.yaml").write_text(slice_yaml("codeen", "20M"))
    fed.until_rates(codeen=20)
    fed.feed.stop()


def test_what_is_no_regular_file_is_not_opened(fed: Fed) -> None:
    os.mkfifo(fed.folder / "pipe.yaml")
    (fed.folder / "folder.yaml").mkdir()
    (fed.folder / "dangling.yaml").symlink_to("nowhere")
    (fed.folder / "a.yaml").write_text(slice_yaml("codeen"))
    assert rates(fed.start()) == {"codeen": 10}


def test_a_name_that_would_break_a_log_line_does_not(fed: Fed, caplog: pytest.LogCaptureFixture) -> None:
    (fed.folder / "a\nb.yaml").write_text("kind: [")
    Path(os.fsdecode(os.fsencode(fed.folder) + b"/\xff.yaml")).write_text("kind: [")
    fed.start()
    assert len(logged(caplog)) == 2
    assert all(line.isprintable() for line in logged(caplog))


def test_reports_written_beside_the_manifests_wake_nobody(fed: Fed) -> None:
    (fed.folder / "a.yaml").write_text(slice_yaml("codeen"))
    fed.start()
    fed.passed_over()
    while fed.wakes.acquire(blocking=False):
        pass
    before = fed.feed.desired_state()
    status = fed.folder / "status" / "bandwidthusages" / "ns"
    status.mkdir(parents=True)
    for number in range(20):
        (status / f"{number}.yaml").write_text(slice_yaml(f"never-{number}"))
    (fed.folder / "a.yaml").touch()
    assert not fed.wakes.acquire(timeout=2 * manifest_files.SETTLE_S + 1.0)
    assert fed.feed.desired_state() is before


def test_a_folder_that_cannot_be_watched_is_scanned(
    fed: Fed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left on device: too many watches")

    monkeypatch.setattr("slicebw.folder.feed.watch", refuse)
    fed.start()
    for rate in (20, 30):
        (fed.folder / "a.yaml").write_text(slice_yaml("codeen", f"{rate}M"))
        fed.until_rates(codeen=rate)
    assert sum("cannot be watched" in record.getMessage() for record in caplog.records) == 1


def test_five_thousand_slices_in_one_dump_are_read_in_bounded_time(fed: Fed) -> None:
    (fed.folder / "dump.yaml").write_text("---".join(slice_yaml(f"s{number}") for number in range(5000)))
    fed.start()
    assert len(fed.feed.desired_state().slices) == 5000
