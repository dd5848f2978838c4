"""Every pass on a real node: removes orphans, changes nothing without need, and copes with one invalid slice."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.folder_lab import FolderLab, M, folder_lab, slice_object
from tests.support.topology import wait_until


@pytest.fixture
def lab(tmp_path: Path, kernel: None) -> Iterator[FolderLab]:
    """Three slices; the test starts the agent."""
    with folder_lab(tmp_path, "codeen", "coral", "dip") as made:
        for name, rate in (("codeen", "10M"), ("coral", "20M"), ("dip", "30M")):
            made.write_slice(name, standard={"maxRate": rate})
        yield made


def start(lab: FolderLab, *names: str) -> None:
    """Start the agent, and wait until these slices have their classes."""
    lab.start()
    for name in names or lab.names:
        wait_until(lambda one=name: lab.ceil_bps(one), f"{name} has a class")  # type: ignore[misc]


def metric(lab: FolderLab, name: str) -> int:
    """Return a metric of the agent, summed over its labels."""
    assert lab.agent is not None
    page = lab.agent.page("/metrics")
    return sum(int(float(value)) for value in re.findall(rf"^slicebw_{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


def tc(lab: FolderLab, command: str) -> str:
    """Run tc as another program."""
    return lab.net.node.run("tc", *command.replace("UPLINK", f"dev {lab.net.uplink}").split())


def test_a_class_without_a_slice_is_removed_logged_and_counted(lab: FolderLab) -> None:
    start(lab)
    tc(lab, "class add UPLINK parent 1:10 classid 1:1777 htb rate 1mbit ceil 5mbit")
    tc(lab, "qdisc add UPLINK parent 1:1777 handle 1777: pfifo")
    wait_until(lambda: "1:1777" not in lab.classes(), "the orphan is removed", seconds=1)
    wait_until(lambda: metric(lab, "orphans_removed_total") == 1, "it is counted")
    assert re.search(r"tree device=uplink0 change=class del classid 1:1777$", lab.log(), re.MULTILINE)
    assert lab.ceil_bps("codeen") == 10 * M


def test_a_slices_class_that_is_missing_is_made_again(lab: FolderLab) -> None:
    start(lab)
    missing = lab.slice_id("coral")
    tc(lab, f"class del UPLINK classid {missing}")
    wait_until(lambda: lab.ceil_bps("coral") == 20 * M, "it is there again", seconds=1)
    wait_until(lambda: metric(lab, "repairs_total") >= 1, "it is counted as another program's")


def test_while_nothing_differs_nothing_is_touched(lab: FolderLab) -> None:
    start(lab)
    passes, changes = metric(lab, "passes_total"), metric(lab, "changes_applied_total")
    for _ in range(10):
        lab.net.send_udp(lab.pod("codeen"), lab.net.sink.address, 20)
        tc(lab, "qdisc add dev lo root handle 9: pfifo")  # a change that does not concern the agent does not wake it
        tc(lab, "qdisc del dev lo root")
    wait_until(lambda: metric(lab, "passes_total") > passes + 2, "some more passes are made", seconds=30)
    assert metric(lab, "changes_applied_total") == changes
    assert metric(lab, "changes_failed_total") == 0
    # New limits of one class are one change.
    lab.write_slice("coral", standard={"maxRate": "25M"})
    wait_until(lambda: lab.ceil_bps("coral") == 25 * M, "the change holds")
    wait_until(lambda: metric(lab, "changes_applied_total") > changes, "it is counted")
    assert metric(lab, "changes_applied_total") == changes + 1


def test_one_bad_slice_is_told_so_and_every_other_is_served(lab: FolderLab) -> None:
    lab.write_slice("codeen", standard={"maxRate": "fast"})
    start(lab, "coral", "dip")
    # A slice that was never valid has the defaults, so that its traffic is at least counted.
    wait_until(lambda: lab.ceil_bps("codeen") == 1000 * M, "codeen has the defaults")
    assert (lab.ceil_bps("coral"), lab.ceil_bps("dip")) == (20 * M, 30 * M)
    wait_until(lambda: lab.events("InvalidSpec"), "its event")
    (message,) = lab.events("InvalidSpec")
    assert "codeen/codeen" in message
    assert 'spec.standard.maxRate: "fast" is not a rate' in message
    lab.write("two-more", slice_object("nobody", period="soon"), slice_object("new", share=0))
    lab.write_slice("dip", standard={"maxRate": "35M"})
    wait_until(lambda: lab.ceil_bps("dip") == 35 * M, "others change meanwhile", seconds=1)
    assert metric(lab, "failed_passes_total") == 0
    wait_until(lambda: (lab.usage("codeen") or {}).get("errors"), "its usage says what is wrong")
    assert not (lab.usage("coral") or {}).get("errors")
    lab.write_slice("codeen", standard={"maxRate": "5M"})
    wait_until(lambda: lab.ceil_bps("codeen") == 5 * M, "it is right now", seconds=1)
