"""Limits hold and usage continues through a killed agent, a full disk, a damaged ledger, and a reboot."""

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slicebw.core.dataplane import DEFAULT_ID, leaf
from slicebw.core.desired import TrafficClass
from slicebw.core.ledger import SliceAccount
from tests.support.folder_lab import FolderLab, M, budget_lab, pod_object
from tests.support.senders import Sender
from tests.support.topology import UPLINK, wait_until

pytestmark = pytest.mark.usefixtures("kernel")

KILLS = 12
PERIOD_S = 600


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FolderLab]:
    with budget_lab(tmp_path, PERIOD_S) as lab:
        yield lab


def cap_codeen(lab: FolderLab) -> SliceAccount:
    """Send until codeen is over its threshold. Returns its account once it is capped and all bytes are counted."""
    lab.send("codeen", 1000)
    wait_until(lambda: lab.events("BandwidthCapped"), "codeen is capped")
    lab.until_counted("codeen")
    assert capped(lab)
    return account(lab)


def account(lab: FolderLab, name: str = "codeen") -> SliceAccount:
    """A slice's account in the ledger on disk."""
    found = lab.account(name)
    assert found is not None
    return found


def capped(lab: FolderLab) -> bool:
    """Tell whether the kernel limits codeen to the rest of its budget: under 1 MB over ten minutes."""
    return (lab.ceil_bps("codeen") or 50 * M) < 20_000


def assert_same(lab: FolderLab, before: SliceAccount) -> None:
    """Check that class and period are the same, that no usage is lost, and that there is still one Event."""
    now = account(lab)
    assert now.slice_id == before.slice_id
    assert now.period_start_s == before.period_start_s
    assert now.standard.used_bytes >= before.standard.used_bytes
    assert len(lab.events("BandwidthCapped")) == 1


@contextmanager
def monitored(lab: FolderLab) -> Iterator[Callable[[], str]]:
    """Run ``tc monitor``. Gives a function that returns what it has printed."""
    file = lab.folder / "monitor"
    with file.open("wb") as output:
        monitor = subprocess.Popen(lab.net.node.command("stdbuf", "-oL", "tc", "monitor"), stdout=output)
        try:
            # It listens once it prints our own change; the agent does not care about lo.
            wait_until(lambda: _touched(lab, file), "tc monitor listens")
            yield file.read_text
        finally:
            monitor.kill()
            monitor.wait()


def _touched(lab: FolderLab, file: Path) -> bool:
    lab.net.node.run("tc", "qdisc", "replace", "dev", "lo", "root", "pfifo")
    lab.net.node.run("tc", "qdisc", "del", "dev", "lo", "root")
    return "lo" in file.read_text()


def test_an_agent_killed_again_and_again_disturbs_nobody_and_loses_nothing(lab: FolderLab) -> None:
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    before = cap_codeen(lab)
    coral = lab.slice_id("coral")
    at_first = lab.classes()[coral]
    rates_mbps = []
    with (
        monitored(lab) as changes,
        Sender(lab.pod("coral"), lab.net.sink.address, 12 * M),
        Sender(lab.pod("codeen"), lab.net.sink.address, 100_000),
    ):
        wait_until(lambda: lab.classes()[coral].sent_bytes > at_first.sent_bytes + M, "coral sends all it may")
        for _ in range(KILLS):
            lab.kill()
            before_kill = lab.counters()
            # An agent needs about 0.6 s until its first pass: some die before it, some during it, some after it.
            lab.start_unready()
            lifetime_s = draw.uniform(0.3, 1.1)
            dies_s = before_kill.at_s + lifetime_s
            wait_until(lambda dies_s=dies_s: time.monotonic() > dies_s, "it is time")  # type: ignore[misc]
            rates_mbps.append(lab.counters().rate_bps(before_kill, coral) / M)
    lab.kill()
    print(f"seed {seed}: coral sent {' '.join(f'{rate:.2f}' for rate in rates_mbps)} Mbit/s while agents died")
    assert rates_mbps == [pytest.approx(8, rel=0.05)] * KILLS
    # Only codeen's cap was changed, no other class and no leaf qdisc. (Reading the root qdisc causes a notification
    # too.)
    touched = [line for line in changes().splitlines() if "dev lo" not in line and " root refcnt " not in line]
    assert not [line for line in touched if not line.startswith("class htb 1:1001 ")]
    lab.start()
    lab.until_counted("coral")
    assert_same(lab, before)
    assert capped(lab)


def test_with_a_full_disk_passes_go_on_in_memory(lab: FolderLab) -> None:
    """Changes that destroy nothing are made at once; one that destroys a counter waits until that is on disk."""
    lab.kill()
    lab.state.rename(lab.folder / "kept")
    lab.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(lab.state)], check=True)
    try:
        for kept in (lab.folder / "kept").iterdir():
            (lab.state / kept.name).write_bytes(kept.read_bytes())
        lab.start()
        fill = lab.state / "fill"
        with fill.open("wb") as file, pytest.raises(OSError, match="No space"):
            file.write(bytes(1 << 20))
        assert_served_unsaved(lab, "No space left on device")
        fill.unlink()
        assert_saved_again(lab)
    finally:
        lab.kill()
        subprocess.run(["umount", str(lab.state)], check=True)


def test_with_a_disk_that_turned_read_only_passes_go_on_in_memory(lab: FolderLab) -> None:
    state = str(lab.state)
    # A bind mount over the agent's folder can be made read-only while the lock in it is open.
    subprocess.run(["mount", "--bind", state, state], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", state], check=True)
        assert_served_unsaved(lab, "Read-only file system")
    finally:
        subprocess.run(["umount", state], check=True)
    assert_saved_again(lab)


def assert_served_unsaved(lab: FolderLab, reason: str) -> None:
    """Check that limits, caps and reports go on, while the ledger on disk stays as it is and the log says why."""
    ledger = (lab.state / "ledger").read_bytes()
    lab.write_slice("coral", standard={"maxRate": "9M"})
    wait_until(lambda: lab.ceil_bps("coral") == 9 * M, "coral has its new rate")
    lab.send("codeen", 1000)
    wait_until(lambda: lab.events("BandwidthCapped"), "codeen is capped")
    assert capped(lab)
    usage = lab.usage("codeen")
    assert usage is not None
    assert usage["standard"]["bytesUsed"] > M
    assert f"cannot write {lab.state}/ledger: {reason}" in lab.log()
    assert (lab.state / "ledger").read_bytes() == ledger
    # A class's counter must be saved before the class may go.
    lab.remove_slice("coral")
    wait_until(lambda: "10.77.0.2" not in lab.ruleset(), "coral is out")
    second = int(time.monotonic())
    wait_until(lambda: time.monotonic() > second + 2.5, "some passes have gone by")
    assert "1:1002" in lab.classes()


def assert_saved_again(lab: FolderLab) -> None:
    """Check that the ledger is soon on disk, and that the class that waited for that is deleted."""
    lab.until_counted("codeen")
    wait_until(lambda: not account(lab, "coral").live, "coral's leaving is saved")
    wait_until(lambda: "1:1002" not in lab.classes(), "its class goes")


def truncated(content: bytes) -> bytes:
    return content[:-20]


def flipped(content: bytes) -> bytes:
    return content.replace(b'"used_bytes":1', b'"used_bytes":0')


def emptied(_: bytes) -> bytes:
    return b""


def foreign(_: bytes) -> bytes:
    return b"(dp0\nS'slices'\np1\n."  # bwmon's, say


def newer(content: bytes) -> bytes:
    line, _, payload = content.partition(b"\n")
    return json.dumps(json.loads(line) | {"version": 99}).encode() + b"\n" + payload


@pytest.mark.parametrize(
    ("spoil", "word"),
    [(truncated, "truncated"), (flipped, "corrupt"), (emptied, "empty"), (foreign, "foreign"), (newer, "version-99")],
)
def test_a_ledger_that_cannot_be_used_is_set_aside_and_rebuilt_from_what_was_reported(
    lab: FolderLab, spoil: Callable[[bytes], bytes], word: str
) -> None:
    before = cap_codeen(lab)
    lab.stop()
    ledger = lab.state / "ledger"
    spoiled = spoil(ledger.read_bytes())
    assert spoiled != ledger.read_bytes()
    ledger.write_bytes(spoiled)
    lab.send("codeen", 10, chunk=5)
    lab.start()
    lab.until_counted("codeen")
    wait_until(lambda: capped(lab), "codeen is capped again", 2)
    assert_same(lab, before)
    assert (lab.state / f"ledger.{word}-0").read_bytes() == spoiled
    wait_until(lambda: lab.events("LedgerRebuilt"), "an event on the node says so")
    assert f"set aside as ledger.{word}-0" in lab.events("LedgerRebuilt")[0]


def test_a_reboot_forgives_nothing(lab: FolderLab) -> None:
    before = cap_codeen(lab)
    lab.stop()
    lab.net.node.run("tc", "qdisc", "del", "dev", UPLINK, "root")
    lab.net.node.run("nft", "flush", "ruleset")
    lab.start()
    assert_same(lab, before)
    assert capped(lab)
    assert lab.classes()[lab.slice_id("codeen")].sent_bytes == 0
    lab.send("codeen", 5, chunk=5)
    lab.until_counted("codeen")


def test_a_capped_slice_that_is_deleted_and_made_again_goes_on_where_it_was(lab: FolderLab) -> None:
    before = cap_codeen(lab)
    manifest = lab.manifests / "codeen.yaml"
    text = manifest.read_text()
    for _ in range(3):
        lab.remove_slice("codeen")
        wait_until(lambda: lab.ceil_bps("codeen") is None, "its class is gone")
        manifest.write_text(text)
        lab.until_served("codeen")
        assert capped(lab)
        assert_same(lab, before)
        lab.send("codeen", 5, chunk=5)
        lab.until_counted("codeen")
    assert account(lab).standard.used_bytes == lab.arrived_bytes(lab.pod("codeen"))


def test_a_slice_deleted_while_its_packets_wait_is_charged_for_each_that_still_leaves(lab: FolderLab) -> None:
    lab.write_slice("codeen", standard={"maxRate": "20k"})
    wait_until(lambda: lab.ceil_bps("codeen") == 20_000, "codeen is slow")
    text = (lab.manifests / "codeen.yaml").read_text()
    codeen = lab.pod("codeen")
    # A packet that leaves while its class is deleted is charged to codeen, a later one to default, and none is lost.
    # Default also has ARP and the like: these are the bytes that the sink has received from others than codeen.
    before = lab.classes()["1:1fff"].sent_bytes - others_bytes(lab)
    with Sender(codeen, lab.net.sink.address, 200_000, sizes=(600, 600)):
        for _ in range(10):
            wait_until(lambda: lab.classes()["1:1001"].waiting_packets > 5, "packets wait")
            lab.remove_slice("codeen")
            wait_until(lambda: lab.ceil_bps("codeen") is None, "its class is gone")
            (lab.manifests / "codeen.yaml").write_text(text)
            lab.until_served("codeen")
    lab.write_slice("codeen", standard={"maxRate": "20M"})

    def accounted() -> int:
        default = lab.ledger().node_totals[leaf(TrafficClass.STANDARD, DEFAULT_ID)]
        return account(lab).standard.total_bytes + default.total_bytes - before - others_bytes(lab)

    wait_until(lambda: accounted() == lab.arrived_bytes(codeen), "every byte is accounted for", 20)


def others_bytes(lab: FolderLab) -> int:
    """Return the bytes that the sink has received from others than codeen's pod."""
    return lab.net.sink.received_bytes(UPLINK) - lab.arrived_bytes(lab.pod("codeen"))


def test_an_address_that_passes_to_another_slices_pod_is_charged_to_that_one_from_the_next_packet_on(
    lab: FolderLab,
) -> None:
    codeen, coral = lab.pod("codeen"), lab.pod("coral")
    address = codeen.address
    classes = {name: lab.slice_id(name) for name in ("codeen", "coral")}
    held = [pod_object("codeen", address, codeen.address6), pod_object("coral", coral.address)]
    moved = [pod_object("codeen", codeen.address6), pod_object("coral", coral.address, address)]

    def owner() -> str:
        listing = lab.net.node.run("nft", "list", "map", "inet", "slicebw", "standard4")
        return next(name for name, slice_id in classes.items() if f"{address} : {slice_id}" in listing)

    def sent(slice_id: str) -> int:
        return lab.classes()[slice_id].sent_bytes

    with Sender(codeen, lab.net.sink.address, 800_000, sizes=(200, 200)):
        for objects, name, other in [(moved, "coral", "codeen"), (held, "codeen", "coral")] * 3:
            lab.write("pods", *objects)
            wait_until(lambda name=name: owner() == name, f"the address is {name}'s", 1)  # type: ignore[misc]
            at_the_event = sent(classes[other])
            begin = sent(classes[name])
            wait_until(lambda name=name, begin=begin: sent(classes[name]) > begin + 20_000, "packets are charged")  # type: ignore[misc]
            assert sent(classes[other]) == at_the_event
    # Every packet went through one of the two classes, because the table changes in one transaction. (The counter of
    # default cannot show that: it also counts what is not IP, such as ARP.)
    wait_until(lambda: sum(map(sent, classes.values())) == lab.arrived_bytes(codeen), "nothing is under way")
    wait_until(
        lambda: sum(account(lab, name).standard.used_bytes for name in classes) == lab.arrived_bytes(codeen),
        "everything is counted",
    )
