"""Files that earlier versions wrote. Those in ``data`` were written by the code of their time and never change."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from slicebw.agent.checkpoint import FileStore
from slicebw.core.desired import Mode, NodeSpec
from tests.unit.agent.test_checkpoint import lived_in

DATA = Path(__file__).with_name("data")


def load(folder: Path, name: str) -> tuple[Any, str | None]:
    """Load one of the old files."""
    shutil.copy(DATA / name, folder / name.partition("-")[0])
    store = FileStore(folder)
    return store.load_ledger() if name.startswith("ledger") else store.load_desired_state()


def test_the_first_version_of_the_ledger_is_read_whole(tmp_path: Path) -> None:
    ledger, problem = load(tmp_path, "ledger-v1")
    assert problem is None
    assert ledger == replace(lived_in().ledger, mode=None)


def test_a_ledger_of_the_first_version_is_written_in_the_present_one(tmp_path: Path) -> None:
    ledger, _ = load(tmp_path, "ledger-v1")
    store = FileStore(tmp_path)
    store.save_ledger(replace(ledger, mode=Mode.MONITOR))
    assert json.loads((tmp_path / "ledger").read_bytes().partition(b"\n")[0])["version"] == 2
    assert store.load_ledger() == (replace(ledger, mode=Mode.MONITOR), None)


@pytest.mark.parametrize(("field", "sound"), [("rebuilding", True), ("slices", False)])
def test_only_a_field_that_the_earliest_files_lack_may_be_missing(tmp_path: Path, field: str, sound: bool) -> None:
    payload = json.loads((DATA / "ledger-v1").read_bytes().partition(b"\n")[2])
    del payload[field]
    body = json.dumps(payload).encode()
    header = {"slicebw": "ledger", "version": 1, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    (tmp_path / "ledger").write_bytes(json.dumps(header).encode() + b"\n" + body)
    ledger, problem = FileStore(tmp_path).load_ledger()
    assert (ledger is not None, problem is None) == (sound, sound)


def test_a_desired_state_of_the_first_version_is_read_whole(tmp_path: Path) -> None:
    desired_state, problem = load(tmp_path, "wishes-v1")
    assert problem is None
    assert desired_state == lived_in().desired


def test_wishes_from_before_unclassified_traffic_had_a_ceiling_are_read_whole(tmp_path: Path) -> None:
    """The new keys are no new version: without them the default holds, and an older agent passes them over."""
    before, problem = load(tmp_path, "wishes-v1-whole")
    assert problem is None
    after, _ = load(tmp_path, "wishes-v1-unclassified")
    ceilings = {"unclassified_max_bps": 50_000_000, "unclassified_exempt_max_bps": 60_000_000}
    assert after == replace(before, node=replace(before.node, **ceilings))


def test_the_newest_wishes_have_every_setting_of_a_node() -> None:
    payload = json.loads((DATA / "wishes-v1-unclassified").read_bytes().partition(b"\n")[2])
    assert payload["node"].keys() == set(NodeSpec.__struct_fields__)


@pytest.mark.parametrize("name", ["ledger-v2", "ledger-v2-numbered", "wishes-v1-unclassified"])
def test_a_file_of_the_present_version_is_read_whole_and_written_again_byte_for_byte(tmp_path: Path, name: str) -> None:
    """The file has every kind of field, so this fails if a renamed attribute changes a key in the file.

    The first writers of version 2 knew their device by name alone. What they wrote is also written again as it was.
    """
    found, problem = load(tmp_path, name)
    assert problem is None
    store = FileStore(tmp_path)
    if name.startswith("ledger"):
        store.save_ledger(found)
        assert len(found.slices) == 3
    else:
        store.save_desired_state(found)
        assert len(found.slices) == 4
    assert (tmp_path / name.partition("-")[0]).read_bytes() == (DATA / name).read_bytes()
