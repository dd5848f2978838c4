"""The objects of a folder's files, step by step: tests change files in ``pause``, while the source waits."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slicebw.core.desired import SliceSpec
from slicebw.folder import manifest_files
from slicebw.folder.manifest_files import SETTLE_SCANS, Source
from tests.unit.folder.builders import logged, rate_mbit, slice_yaml

Pause = Callable[[float], bool]


class Folder:
    """A folder of manifests, and the source on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory = path / "status" / ".last-good"
        self.restart()

    def restart(self) -> None:
        """Start another agent on the same folder."""
        self.source = Source(self.path, self.memory)

    def write(self, name: str, text: str) -> int:
        """Replace a file's content in place, as a shell does."""
        return (self.path / name).write_text(text)

    def rates(self, pause: Pause = lambda _: False) -> dict[str, int | None]:
        """The rates of all slices after one more refresh."""
        self.source.refresh(pause)
        manifests = [one for file in self.source.files.values() for one in file.manifests.values()]
        return {one.identity.name: rate_mbit(one.value) for one in manifests if isinstance(one.value, SliceSpec)}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def meanwhile(steps: Iterator[object]) -> Pause:
    """A pause in which one more step is made, as long as there are any."""

    def pause(_: float) -> bool:
        next(steps, None)
        return False

    return pause


def test_a_file_is_read_when_it_has_been_written_to_its_end(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    assert folder.rates() == {}
    text = slice_yaml("one") + "---" + slice_yaml("two")
    parts = [text[start : start + 40] for start in range(0, len(text), 40)]
    assert 5 < len(parts) < SETTLE_SCANS

    def writing() -> Iterator[object]:
        with (folder.path / "a.yaml").open("w") as file:
            for part in parts:
                yield file.write(part)
                file.flush()

    steps = writing()
    assert next(steps)
    assert folder.rates(meanwhile(steps)) == {"one": 10, "two": 10}
    assert logged(caplog) == []


def test_what_was_read_while_it_was_written_is_read_again(
    folder: Folder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = slice_yaml("one") + "---" + slice_yaml("two")
    folder.write("a.yaml", text[:60])
    fstat = os.fstat

    def write_on(descriptor: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", fstat)
        before = fstat(descriptor)
        folder.write("a.yaml", text[:120])
        return before

    monkeypatch.setattr(os, "fstat", write_on)
    assert folder.rates() == {}
    folder.write("a.yaml", text)
    assert folder.rates() == {"one": 10, "two": 10}
    assert logged(caplog) == []


def test_a_file_that_is_written_to_all_the_time_keeps_nobody_waiting(folder: Folder) -> None:
    folder.write("a.yaml", slice_yaml("busy"))
    folder.write("b.yaml", slice_yaml("calm"))
    folder.rates()
    folder.write("a.yaml", slice_yaml("busy", "20M"))
    folder.write("b.yaml", slice_yaml("calm", "20M"))
    busy = (folder.path / "a.yaml").open("a")
    with busy:
        writing = (print("#" * number, file=busy, flush=True) for number in range(10_000))
        assert folder.rates(meanwhile(writing)) == {"busy": 10, "calm": 20}
    assert folder.rates() == {"busy": 20, "calm": 20}


def test_a_file_that_is_being_written_at_the_start_keeps_its_objects(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write("a.yaml", slice_yaml("codeen"))
    folder.rates()
    folder.restart()
    with (folder.path / "a.yaml").open("w") as busy:
        writing = (print("#" * number, file=busy, flush=True) for number in range(10_000))
        assert folder.rates(meanwhile(writing)) == {"codeen": 10}
    assert logged(caplog) == ["a.yaml:1: is still being written; its last good content stays in force (1 object)"]
    folder.write("a.yaml", slice_yaml("codeen", "20M"))
    assert folder.rates() == {"codeen": 20}


def test_an_editor_that_moves_the_file_away_before_it_writes_the_new_one_deletes_nothing(folder: Folder) -> None:
    folder.write("a.yaml", slice_yaml("codeen"))
    folder.rates()
    (folder.path / "a.yaml").rename(folder.path / "a.yaml~")
    writing = map(folder.write, ["a.yaml"], [slice_yaml("codeen", "20M")])
    assert folder.rates(meanwhile(writing)) == {"codeen": 20}


def test_a_file_that_is_gone_for_good_is_gone(folder: Folder) -> None:
    folder.write("a.yaml", slice_yaml("codeen"))
    folder.rates()
    (folder.path / "a.yaml").unlink()
    assert folder.rates() == {}
    assert list(folder.memory.iterdir()) == []


def test_a_refresh_that_is_abandoned_changes_nothing(folder: Folder) -> None:
    folder.write("a.yaml", slice_yaml("codeen"))
    assert folder.rates(lambda _: True) == {}
    assert folder.rates() == {"codeen": 10}


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_seen(folder: Folder) -> None:
    folder.write("a.yaml", slice_yaml("codeen", "10M"))
    folder.rates()
    old = (folder.path / "a.yaml").stat()
    folder.write("b", slice_yaml("codeen", "20M"))

    os.utime(folder.path / "b", ns=(old.st_atime_ns, old.st_mtime_ns))
    (folder.path / "b").rename(folder.path / "a.yaml")
    assert folder.rates() == {"codeen": 20}


def test_an_unchanged_folder_is_not_read_again(folder: Folder) -> None:
    folder.write("a.yaml", slice_yaml("codeen"))
    folder.rates()
    file = folder.source.files["a.yaml"]
    assert folder.source.refresh(lambda _: pytest.fail("nothing to wait for")) is False
    assert folder.source.files["a.yaml"] is file


def test_the_next_agent_finds_backups_of_valid_files_but_not_of_removed_ones(folder: Folder) -> None:
    folder.write("a.yaml", slice_yaml("a"))
    folder.write("b.yaml", slice_yaml("b"))
    folder.write("c.yaml", "apiVersion: v1\nkind: Namespace\n")
    folder.rates()
    assert len(list(folder.memory.iterdir())) == 2
    (folder.path / "a.yaml").unlink()
    folder.write("b.yaml", "kind: [")
    folder.restart()
    assert folder.rates() == {"b": 10}
    assert len(list(folder.memory.iterdir())) == 1


def test_a_file_that_never_was_valid_gives_its_valid_objects_however_often_it_changes(folder: Folder) -> None:
    for rate in (10, 20):
        folder.write("a.yaml", f"{slice_yaml('codeen', f'{rate}M')}---\n[]\n")
        assert folder.rates() == {"codeen": rate}
    folder.restart()
    assert folder.rates() == {"codeen": 20}


def test_an_empty_file_that_never_had_anything_is_no_error(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder.write("a.yaml", "")
    folder.write("b.yaml", "# nothing yet\n")
    assert folder.rates() == {}
    assert logged(caplog) == []


def test_a_file_with_only_a_comment_left_withdraws_its_objects(folder: Folder) -> None:
    folder.write("a.yaml", slice_yaml("codeen"))
    folder.rates()
    folder.write("a.yaml", "# off\n")
    assert folder.rates() == {}


def test_the_same_problem_is_logged_once_and_its_end_too(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for text in ("kind: [", "kind: [ ", "kind: [  "):
        folder.write("a.yaml", text)
        folder.rates()
    folder.write("a.yaml", slice_yaml("codeen"))
    folder.rates()
    assert len(logged(caplog)) == 1
    assert caplog.records[-1].getMessage() == "a.yaml is valid again: 1 object"


def test_a_file_that_is_too_big_is_refused(
    folder: Folder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_files, "MAX_BYTES", 20)
    folder.write("a.yaml", slice_yaml("codeen"))
    assert folder.rates() == {}
    assert "a.yaml:1: is too big: at most 20 bytes" in logged(caplog)[0]


def test_a_file_that_cannot_be_examined_keeps_its_objects_until_it_can(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder.path / "a.yaml"
    folder.write("a.yaml", slice_yaml("codeen"))
    folder.rates()
    file.unlink()
    file.symlink_to("a.yaml")  # no end to it: ELOOP
    for _ in range(3):
        assert folder.rates() == {"codeen": 10}
    (line,) = logged(caplog)
    assert line.startswith(
        "a.yaml:1: cannot be read: Too many levels of symbolic links; its last good content stays in force"
    )
    file.unlink()
    folder.write("a.yaml", slice_yaml("codeen", "20M"))
    assert folder.rates() == {"codeen": 20}


def test_files_are_read_even_if_their_backups_cannot_be_written(folder: Folder) -> None:
    (folder.path / "status").write_text("a file where the folder should be")
    folder.write("a.yaml", slice_yaml("codeen"))
    assert folder.rates() == {"codeen": 10}
    folder.write("a.yaml", "kind: [")
    assert folder.rates() == {"codeen": 10}
