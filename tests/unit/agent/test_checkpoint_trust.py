"""Checkpoints with a correct checksum and impossible values."""

import hashlib
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from slicebw.agent.checkpoint import FileStore
from slicebw.core.clock import Instant
from slicebw.core.dataplane import HOST_ID
from slicebw.core.desired import DesiredState, NodeSpec, SliceKey
from slicebw.core.errors import SaveError
from slicebw.core.ledger import ClassAccount, Ledger, SliceAccount
from tests.unit.core.builders import M, Node, at, pod, spec

KEY = SliceKey("ns", "slice")


def ledger() -> Ledger:
    node = Node(spec(), pods=(pod("ns/p", "10.0.0.1"),))
    node.run(at(0))
    node.send(0x1001, 90 * M)
    node.run(at(1))
    return node.ledger


def with_account(whole: Ledger, account: SliceAccount) -> Ledger:
    return replace(whole, slices={**whole.slices, account.key: account})


def impossible(kind: str) -> Ledger:
    whole = ledger()
    one = whole.slices[KEY]
    limits = one.limits
    return {
        "negative bytes": with_account(whole, replace(one, standard=replace(one.standard, used_bytes=-1))),
        "too many bytes": with_account(whole, replace(one, exempt=replace(one.exempt, total_bytes=(1 << 64) - 1))),
        "default's class": with_account(whole, replace(one, slice_id=0xFFF)),
        "no class": with_account(whole, replace(one, slice_id=0x1000)),
        "class twice": with_account(whole, replace(one, key=SliceKey("ns", "other"))),
        "no name": with_account(whole, replace(one, key=SliceKey("ns", "../../x"), slice_id=7)),
        "no namespace": with_account(whole, replace(one, key=SliceKey("", "x"), slice_id=7)),
        "no period": with_account(whole, replace(one, limits=replace(limits, period_s=0))),
        "no budget": with_account(
            whole, replace(one, limits=replace(limits, exempt=replace(limits.exempt, budget_bytes=0)))
        ),
        "far period": with_account(whole, replace(one, period_start_s=1 << 60)),
        "far cap": with_account(whole, replace(one, standard=replace(one.standard, capped_since_s=1 << 60))),
        "last id": replace(whole, last_slice_id=-1),
        "node total": replace(whole, node_totals={HOST_ID: ClassAccount(total_bytes=-1)}),
        "no device": replace(whole, ifindex=1 << 31),
        "far clock": replace(whole, read_at=Instant(wall_ns=1 << 63, boot_ns=0)),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("negative bytes", "slice ns/slice: standard.used_bytes: -1 is not within 0 to"),
        ("too many bytes", "slice ns/slice: exempt.total_bytes: 18446744073709551615 is not within 0 to"),
        ("default's class", "slice ns/slice: class_id: 4095 is not within 0 to 4094"),
        ("no class", "slice ns/slice: class_id: 4096 is not within 0 to 4094"),
        ("class twice", "slice ns/other: class_id: 1 is also that of slice ns/slice"),
        ("no name", 'slice\'s name: "../../x" is not a name: use'),
        ("no namespace", "slice's namespace: must be given"),
        ("no period", "slice ns/slice: period_s: 0 is not within 1 to"),
        ("no budget", "slice ns/slice: exempt.budget_bytes: 0 is not within 1 to"),
        ("far period", "slice ns/slice: period_start_s: "),
        ("far cap", "slice ns/slice: standard.capped_since_s: "),
        ("last id", "last_class_id: -1 is not within 0 to 4094"),
        ("node total", "node.total_bytes: -1 is not within"),
        ("no device", "ifindex: 2147483648 is not within 0 to 2147483647"),
        ("far clock", "read_at.wall_ns: "),
    ],
)
def test_a_ledger_that_cannot_be_right_is_set_aside(tmp_path: Path, kind: str, says: str) -> None:
    store = FileStore(tmp_path)
    store.save_ledger(impossible(kind))
    found, problem = store.load_ledger()
    assert found is None
    assert problem is not None
    assert says in problem
    assert "set aside as ledger.implausible-0" in problem
    assert store.load_ledger() == (None, None)


@pytest.mark.parametrize("address", ["fe80::1%eth0", "10.0.0.1 }\ndelete table inet other", "10.0.0.0/8", ""])
def test_a_desired_state_with_an_invalid_address_is_set_aside(tmp_path: Path, address: str) -> None:
    store = FileStore(tmp_path)
    store.save_desired_state(DesiredState(pods=(pod("ns/p", address),), synced=True))
    found, problem = store.load_desired_state()
    assert found is None
    assert problem is not None
    assert "pod ns/p: " in problem
    assert "\n" not in problem


def test_a_desired_state_with_an_invalid_network_is_set_aside(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.save_desired_state(DesiredState(node=NodeSpec(exempt_destinations=("10.0.0.0/8", "10.0.0.1/8")), synced=True))
    found, problem = store.load_desired_state()
    assert found is None
    assert problem is not None
    assert "node: '10.0.0.1/8' is not a network" in problem


def file(version: object, payload: bytes = b"{}") -> bytes:
    digest = hashlib.sha256(payload).hexdigest()
    header = {"slicebw": "ledger", "version": version, "bytes": len(payload), "sha256": digest}
    return json.dumps(header).encode() + b"\n" + payload


@pytest.mark.parametrize(
    ("content", "aside"),
    [
        (b"[" * 100_000 + b"\n{}", "ledger.foreign-0"),
        (file(float("inf")), "ledger.foreign-0"),
        (file(10**300), "ledger.foreign-0"),
        (file(2, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "ledger.corrupt-0"),
        (file(1, b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "ledger.corrupt-0"),
    ],
    ids=["deep header", "infinite version", "huge version", "deep payload", "deep old payload"],
)
def test_no_content_ends_the_agent(tmp_path: Path, content: bytes, aside: str) -> None:
    (tmp_path / "ledger").write_bytes(content)
    found, problem = FileStore(tmp_path).load_ledger()
    assert found is None
    assert problem is not None
    assert (tmp_path / aside).read_bytes() == content


def test_what_cannot_be_read_is_set_aside_and_not_in_the_way_of_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    store = FileStore(tmp_path)
    found, problem = store.load_ledger()
    assert found is None
    assert problem is not None
    assert "Is a directory; set aside as ledger.unreadable-0" in problem
    store.save_ledger(Ledger(last_slice_id=3))
    assert FileStore(tmp_path).load_ledger() == (Ledger(last_slice_id=3), None)


def test_a_text_that_json_cannot_encode_is_a_failed_save(tmp_path: Path) -> None:
    whole = ledger()
    odd = with_account(whole, replace(whole.slices[KEY], uid="\ud800"))
    with pytest.raises(SaveError, match=r"cannot write .*/ledger: a text in it cannot be encoded"):
        FileStore(tmp_path).save_ledger(odd)
