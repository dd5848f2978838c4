import resource
from pathlib import Path

import pytest
from msgspec.structs import replace

from slicebw.agent.checkpoint import FileStore
from slicebw.core.dataplane import HOST_ID, leaf
from slicebw.core.desired import Mode, NodeSpec, TrafficClass
from slicebw.core.errors import SaveError
from slicebw.core.ledger import Ledger
from tests.unit.core.builders import M, Node, at, pod, spec


def lived_in() -> Node:
    """Return a node with a capped slice, a pending Event, and another slice that was removed."""
    exempt = ("10.9.0.0/16",)
    node = Node(
        spec(),
        spec("gone/slice"),
        pods=(pod("ns/p", "10.0.0.1"), pod("gone/p", "10.0.0.2", labels={"a": "b"})),
        node=NodeSpec(line_rate_bps=100 * M, mode=Mode.ENFORCE, exempt_destinations=exempt),
    )
    node.run(at(0))
    for minor in list(node.classes):
        node.send(minor, 90 * M)
    node.run(at(1))
    node.desired = replace(node.desired, slices=node.desired.slices[:1])
    node.run(at(2))
    return node


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    node = lived_in()
    store = FileStore(tmp_path / "made" / "when needed")
    store.save_ledger(node.ledger)
    store.save_desired_state(node.desired)
    fresh = FileStore(tmp_path / "made" / "when needed")
    assert fresh.load_ledger() == (node.ledger, None)
    assert fresh.load_desired_state() == (node.desired, None)
    assert node.ledger.pending_events
    assert node.ledger.node_totals[leaf(TrafficClass.STANDARD, HOST_ID)].total_bytes == 90 * M


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    assert FileStore(tmp_path).load_ledger() == (None, None)


def damaged(content: bytes, kind: str) -> bytes:
    header, _, payload = content.partition(b"\n")
    return {
        "empty": b"",
        "truncated": content[:-10],
        "flipped bit": header + b"\n" + payload.replace(b"1", b"2", 1),
        "header only": header,
        "another program's": b"\x80\x04\x95pickled by bwmon",
        "another kind": content.replace(b'"slicebw": "ledger"', b'"slicebw": "wishes"'),
        "newer": content.replace(b'"version": 2', b'"version": 7'),
        "older than any": content.replace(b'"version": 2', b'"version": 0'),
        "header of lists": b"[]\n" + payload,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "aside", "says"),
    [
        ("empty", "ledger.empty-0", "is empty"),
        ("truncated", "ledger.truncated-0", "bytes of payload instead of"),
        ("flipped bit", "ledger.corrupt-0", "fails its checksum"),
        ("header only", "ledger.foreign-0", "is not a slicebw ledger"),
        ("another program's", "ledger.foreign-0", "is not a slicebw ledger"),
        ("another kind", "ledger.foreign-0", "is not a slicebw ledger"),
        ("newer", "ledger.version-7-0", "newer than this agent's 2"),
        ("older than any", "ledger.version-0-0", "of version 0, which nothing can read any more"),
        ("header of lists", "ledger.foreign-0", "is not a slicebw ledger"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_set_aside_under_a_telling_name(
    tmp_path: Path, kind: str, aside: str, says: str
) -> None:
    store = FileStore(tmp_path)
    store.save_ledger(lived_in().ledger)
    content = damaged((tmp_path / "ledger").read_bytes(), kind)
    (tmp_path / "ledger").write_bytes(content)
    ledger, problem = store.load_ledger()
    assert ledger is None
    assert problem is not None
    assert says in problem
    assert aside in problem
    assert (tmp_path / aside).read_bytes() == content
    assert store.load_ledger() == (None, None)


def test_a_second_damaged_file_does_not_overwrite_the_first_one_set_aside(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for content in (b"one", b"two"):
        (tmp_path / "ledger").write_bytes(content)
        store.load_ledger()
    assert [(tmp_path / f"ledger.foreign-{n}").read_bytes() for n in (0, 1)] == [b"one", b"two"]


def test_a_failed_save_leaves_no_part_of_a_file_on_a_full_disk(tmp_path: Path) -> None:
    store, node = FileStore(tmp_path), lived_in()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100, before[1])
    )  # the writer gets an error in mid-file, as on a full disk
    try:
        with pytest.raises(SaveError, match=r"cannot write .*/ledger: File too large"):
            store.save_ledger(node.ledger)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_says_so_and_leaves_the_last_good_file(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.save_ledger(Ledger(last_slice_id=3))
    (tmp_path / "ledger.tmp").mkdir()  # makes every save fail, as a full or read-only disk does
    with pytest.raises(SaveError, match=r"cannot write .*/ledger: "):
        store.save_ledger(Ledger(last_slice_id=4))
    ledger, _ = store.load_ledger()
    assert ledger is not None
    assert ledger.last_slice_id == 3
