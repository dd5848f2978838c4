"""Drift is repaired within a second, because the kernel notifies the agent of it.

Nothing else causes a pass in these tests: without the notification the next one would come after ten seconds.
"""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.folder_lab import FolderLab, M, folder_lab
from tests.support.senders import Sender
from tests.support.topology import UPLINK, wait_until

pytestmark = pytest.mark.usefixtures("kernel")

REPAIR_S = 1.0
SENT_BPS = 2 * M

NOT_ALWAYS_ALIKE = re.compile(r" (root refcnt|direct_packets_stat) \d+")

CHANGE = f"tc class change dev {UPLINK} parent 1:10 classid 1:1001 htb rate 8bit"

KEEPS_COUNTERS = {
    "a ceiling is changed": f"{CHANGE} ceil 77mbit quantum 1600",
    "a share is changed": f"{CHANGE} ceil 10mbit quantum 9999",
    "the node cap is changed": f"tc class change dev {UPLINK} parent 1:1 classid 1:10 htb rate 8bit ceil 3mbit",
    "a class is added": f"tc class add dev {UPLINK} parent 1:10 classid 1:3333 htb rate 5mbit ceil 9mbit",
    "a class of no slice is added": f"tc class add dev {UPLINK} parent 1:10 classid 1:1abc htb rate 5mbit ceil 9mbit",
    "a class is added below a slice's": f"tc class add dev {UPLINK} parent 1:1002 classid 1:5555 htb rate 5mbit",
    "a leaf qdisc is replaced": f"tc qdisc replace dev {UPLINK} parent 1:1002 handle 7: pfifo limit 3",
    "a leaf qdisc is deleted": f"tc qdisc del dev {UPLINK} parent 1:1002 handle 1002:",
    "the table is deleted": "nft delete table inet slicebw",
    "the rules are flushed": "nft flush table inet slicebw",
    "the whole ruleset is flushed": "nft flush ruleset",
    "an element is removed": "nft delete element inet slicebw standard4 { 10.77.0.2 }",
    "an element is added": "nft add element inet slicebw standard4 { 10.9.9.9 : 1:1001 }",
    "a map is flushed": "nft flush map inet slicebw exempt6",
    "exempt destinations are added": "nft add element inet slicebw exempt_destinations4 { 192.0.2.0/24 }",
    "a rule is inserted": "nft insert rule inet slicebw postrouting meta priority set 1:1fff accept",
    "a rule is added at the end": "nft add rule inet slicebw exempt counter",
    "a chain is added": "nft add chain inet slicebw mine { type filter hook postrouting priority 0 ; policy drop ; }",
}
LOSES_COUNTERS = {
    "the root qdisc is deleted": f"tc qdisc del dev {UPLINK} root",
    "a class is deleted": f"tc class del dev {UPLINK} classid 1:1001",
}


def shape(lab: FolderLab) -> tuple[object, ...]:
    """Return everything that slicebw has in the kernel, as tc and nft list it, without counters."""
    node = lab.net.node
    classes = sorted(node.run("tc", "class", "show", "dev", UPLINK).splitlines())
    qdiscs = sorted(
        NOT_ALWAYS_ALIKE.sub("", line) for line in node.run("tc", "qdisc", "show", "dev", UPLINK).splitlines()
    )
    return classes, qdiscs, table(lab)


def table(lab: FolderLab) -> list[Any]:
    """Return the nftables ruleset without handles, with elements in order."""
    things = json.loads(lab.net.node.run("nft", "-j", "list", "ruleset"))["nftables"]
    for entry in things:
        for thing in entry.values():
            thing.pop("handle", None)
            if "elem" in thing:
                thing["elem"].sort(key=json.dumps)
    return [entry for entry in things if "metainfo" not in entry]


@pytest.fixture(scope="module")
def lab(kernel: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FolderLab]:
    """Two slices; the first one sends all the time."""
    with folder_lab(tmp_path_factory.mktemp("drift"), "codeen", "coral", cap="200M") as lab:
        lab.write_slice("codeen", standard={"maxRate": "10M"})
        lab.write_slice("coral", standard={"maxRate": "20M"})
        lab.start("--report-interval", "600s")
        assert (lab.slice_id("codeen"), lab.slice_id("coral")) == ("1:1001", "1:1002")
        with Sender(lab.pod("codeen"), lab.net.sink.address, SENT_BPS, seconds=600):
            yield lab


def disturb(lab: FolderLab, command: str) -> float:
    """Run a command as another program, and wait until its effect is repaired. Returns the seconds that took."""
    before = shape(lab)
    logged = len(lab.log())
    lab.net.node.run(*command.split())
    acted = time.monotonic()
    wait_until(lambda: shape(lab) == before, f"what {command!r} did is repaired", 15)
    took_s = time.monotonic() - acted
    assert " change=" in lab.log()[logged:]
    return took_s


def used_bytes(lab: FolderLab) -> int:
    """Return codeen's usage in the ledger. Its period does not end during these tests."""
    account = lab.account("codeen")
    assert account is not None
    return account.standard.used_bytes


@pytest.mark.parametrize("what", KEEPS_COUNTERS)
def test_drift_is_repaired_within_a_second(lab: FolderLab, what: str) -> None:
    used = used_bytes(lab)
    took_s = disturb(lab, KEEPS_COUNTERS[what])
    print(f"{what}: repaired after {took_s:.3f} s")
    assert took_s < REPAIR_S
    assert used_bytes(lab) >= used


@pytest.mark.parametrize("what", LOSES_COUNTERS)
def test_what_is_deleted_is_made_again_within_a_second_and_usage_goes_on(lab: FolderLab, what: str) -> None:
    used = used_bytes(lab)
    took_s = disturb(lab, LOSES_COUNTERS[what])
    print(f"{what}: repaired after {took_s:.3f} s")
    assert took_s < REPAIR_S
    # Usage from the lost counter is kept, and the new counter is added to it.
    assert used_bytes(lab) >= used
    until_usage_moves(lab, used)


def until_usage_moves(lab: FolderLab, used: int) -> None:
    """Wait until the present value of the counter is added to the usage before."""
    counter_bytes = lab.classes()["1:1001"].sent_bytes
    disturb(lab, KEEPS_COUNTERS["a ceiling is changed"])  # so that a pass is due now, not in ten seconds
    wait_until(lambda: used_bytes(lab) >= used + counter_bytes, "usage goes on", REPAIR_S)


def test_a_tree_that_was_taken_away_is_an_event_on_the_node(lab: FolderLab) -> None:
    last = int(time.time())
    wait_until(lambda: int(time.time()) > last, "it is another second: in one there is one such event")
    count = len(lab.events("TreeRebuilt"))
    disturb(lab, LOSES_COUNTERS["the root qdisc is deleted"])
    wait_until(lambda: len(lab.events("TreeRebuilt")) == count + 1, "the event is written")
    assert f"The HTB tree of {UPLINK} was removed by another program" in lab.events("TreeRebuilt")[-1]


def test_a_root_qdisc_of_another_program_is_left_alone_and_usage_goes_on_when_it_is_gone(
    lab: FolderLab,
) -> None:
    before, used = shape(lab), used_bytes(lab)
    lab.net.node.run("tc", "qdisc", "replace", "dev", UPLINK, "root", "handle", "5:", "htb")
    wait_until(lambda: not table(lab), "the table is gone too", REPAIR_S)
    wait_until(lambda: foreign_qdisc(lab) == "True", "it is said", REPAIR_S)
    assert "qdisc htb 5: root" in lab.net.node.run("tc", "qdisc", "show", "dev", UPLINK)
    lab.net.node.run("tc", "qdisc", "del", "dev", UPLINK, "root")
    wait_until(lambda: shape(lab) == before, "all is there again", REPAIR_S)
    wait_until(lambda: foreign_qdisc(lab) == "False", "it is said", REPAIR_S)
    assert used_bytes(lab) >= used
    until_usage_moves(lab, used)


def foreign_qdisc(lab: FolderLab) -> str:
    """Return the status of the condition ForeignQdisc in the NodeBandwidth; empty if there is none."""
    conditions = [one for own in lab.status("nodebandwidths") for one in own["status"]["conditions"]]
    return next((str(one["status"]) for one in conditions if one["type"] == "ForeignQdisc"), "")
