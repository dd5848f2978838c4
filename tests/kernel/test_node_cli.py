"""``slicebw node show`` and ``slicebw node cleanup``: their output, and what they leave behind on a node."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slicebw.core.desired import SliceKey
from tests.support.folder_lab import FolderLab, M, folder_lab, node_object
from tests.support.processes import ROOT, SLICEBW, Slicebw
from tests.support.tc import classes
from tests.support.topology import Namespace, Topology, wait_until

Done = subprocess.CompletedProcess[str]


def run(*arguments: str, prefix: tuple[str, ...] = ()) -> Done:
    """Run ``slicebw node``."""
    command = [*prefix, *SLICEBW, "node", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environment)


def show(lab: FolderLab, *arguments: str) -> Done:
    """``slicebw node show`` on the lab's node."""
    return run("show", "--state-dir", str(lab.state), "--netns", lab.net.node.path, *arguments)


def cleanup(lab: FolderLab, *arguments: str) -> Done:
    """``slicebw node cleanup`` on the lab's node."""
    return run("cleanup", "--state-dir", str(lab.state), "--netns", lab.net.node.path, *arguments)


def document(lab: FolderLab, *arguments: str) -> dict[str, Any]:
    """Return the output of ``node show -o json``."""
    done = show(lab, "-o", "json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(lab: FolderLab, name: str, traffic_class: str = "standard") -> dict[str, Any]:
    """Return one class from the output of ``node show``."""
    rows = [one for one in document(lab)["classes"] if (one["slice"], one["traffic_class"]) == (name, traffic_class)]
    (only,) = rows
    found: dict[str, Any] = only
    return found


def qdiscs(net: Topology) -> list[str]:
    """Return the uplink's qdiscs: kinds, handles and parents."""
    lines = net.node.run("tc", "qdisc", "show", "dev", net.uplink).splitlines()
    return [line.partition(" refcnt")[0] for line in lines]


@pytest.fixture
def lab(tmp_path: Path, kernel: None) -> Iterator[FolderLab]:
    """Two slices, of which codeen has a small budget; the test starts the agent."""
    with folder_lab(tmp_path, "codeen", "coral") as made:
        made.write_slice("codeen", standard={"maxRate": "50M", "budget": "2M", "threshold": "50%"})
        made.write_slice("coral", standard={"maxRate": "20M"})
        yield made


@pytest.fixture
def net(kernel: None) -> Iterator[Topology]:
    """A node without an agent."""
    with Topology(pods=0) as made:
        yield made


def start(lab: FolderLab) -> None:
    """Start the agent, and wait until the kernel sends every slice to its class."""
    lab.start()
    for name in lab.names:
        wait_until(lambda one=name: lab.ceil_bps(one), f"{name} has a class")  # type: ignore[misc]
        address = lab.pod(name).address
        wait_until(lambda one=address: one in table(lab.net), f"{address} is in the table")  # type: ignore[misc]


def table(net: Topology) -> str:
    """Return the node's whole nftables ruleset."""
    return net.node.run("nft", "list", "ruleset")


def send(lab: FolderLab, name: str, packets: int) -> int:
    """Send from a slice's pod, and wait until it has arrived. Returns all bytes that have arrived from this pod."""
    for _ in range(packets // 50):
        pod = lab.pod(name)
        expected = lab.arrived_bytes(pod) + lab.net.send_udp(pod, lab.net.sink.address, 50)
        wait_until(lambda total=expected, source=pod: lab.arrived_bytes(source) == total, "datagrams arrive")  # type: ignore[misc]
    return lab.arrived_bytes(lab.pod(name))


def test_show_puts_the_ledger_and_the_kernel_side_by_side_while_the_agent_runs(lab: FolderLab) -> None:
    start(lab)
    ids = {name: lab.slice_id(name) for name in lab.names}
    sent = send(lab, "coral", 100)
    wait_until(lambda: row(lab, "coral/coral")["used_bytes"] == sent, "it is counted", seconds=20)
    pod = lab.pod("coral")
    assert row(lab, "coral/coral") == {
        "slice": "coral/coral",
        "traffic_class": "standard",
        "class_id": ids["coral"],
        "state": "live",
        "used_bytes": sent,
        "budget_bytes": 10_800 * M,
        "capped": False,
        "period_end": (lab.usage("coral") or {})["periodEnd"],
        "kernel_ceil_bps": 20 * M,
        "kernel_sent_bytes": sent,
        "kernel_backlog_bytes": 0,
        "addresses": [pod.address, pod.address6],
    }
    found = document(lab)
    assert (found["device"], found["root"]) == (lab.net.uplink, "ours")
    names = [(one["slice"], one["traffic_class"], one["state"]) for one in found["classes"]]
    assert names == [
        (name, traffic_class, "own" if name.startswith("(") else "live")
        for name in ("(root)", "(default)", "codeen/codeen", "coral/coral")
        for traffic_class in ("standard", "exempt")
    ]
    own = row(lab, "(default)", "exempt")
    assert (own["class_id"], own["budget_bytes"], own["capped"], own["kernel_ceil_bps"]) == (
        "1:2fff",
        None,
        None,
        10**9,
    )


def test_show_tells_a_capped_slice_and_one_that_is_gone(lab: FolderLab) -> None:
    start(lab)
    sent = send(lab, "codeen", 1000)
    wait_until(lambda: row(lab, "codeen/codeen")["capped"], "it is capped")
    assert row(lab, "codeen/codeen")["kernel_ceil_bps"] < 1 * M
    assert not row(lab, "codeen/codeen", "exempt")["capped"]
    lab.remove_slice("codeen")
    wait_until(lambda: row(lab, "codeen/codeen")["kernel_ceil_bps"] is None, "its class is removed")
    gone = row(lab, "codeen/codeen")
    assert (gone["state"], gone["used_bytes"], gone["addresses"]) == ("gone", sent, [])


def test_all_three_forms_say_the_same(lab: FolderLab) -> None:
    start(lab)
    lab.stop()
    found = document(lab)
    assert yaml.safe_load(show(lab, "-o", "yaml").stdout) == found
    first, header, *rows = show(lab).stdout.splitlines()
    assert first == f"device {lab.net.uplink}: slicebw's tree"
    assert header.split() == [
        *("SLICE", "CLASS", "ID", "STATE", "USED", "BUDGET", "CAPPED", "PERIOD-END", "CEIL", "SENT", "ADDRESSES"),
    ]
    assert [line.split()[:4] for line in rows] == [
        [one["slice"], one["traffic_class"], one["class_id"], one["state"]] for one in found["classes"]
    ]
    coral = next(line.split() for line in rows if line.startswith("coral/coral "))
    pod = lab.pod("coral")
    period_end = row(lab, "coral/coral")["period_end"]
    assert coral[4:] == ["0", "10.8G", "false", period_end, "20M", "0", f"{pod.address},{pod.address6}"]


def test_a_class_that_no_slice_knows_is_shown(lab: FolderLab) -> None:
    start(lab)
    lab.stop()
    add = f"tc class add dev {lab.net.uplink} parent 1:10 classid 1:1777 htb rate 1mbit ceil 5mbit"
    leaf = f"tc qdisc add dev {lab.net.uplink} parent 1:1777 handle 1777: pfifo"
    for command in (add, leaf):
        lab.net.node.run(*command.split())
    orphan = next(one for one in document(lab)["classes"] if one["state"] == "orphan")
    assert (orphan["slice"], orphan["class_id"], orphan["kernel_ceil_bps"]) == ("(unknown)", "1:1777", 5 * M)


def test_show_finds_the_uplink_under_a_new_name(lab: FolderLab) -> None:
    start(lab)
    lab.stop()
    lab.net.node.run("ip", "link", "set", lab.net.uplink, "name", "wan7")
    found = document(lab)
    assert (found["device"], found["root"]) == ("wan7", "ours")


def test_without_a_ledger_the_kernel_is_shown_all_the_same_and_nothing_is_made(lab: FolderLab) -> None:
    done = show(lab)
    assert done.returncode == 0
    assert done.stderr == f"slicebw: there is no ledger in {lab.state}\n"
    first, _, *rows = done.stdout.splitlines()
    assert first == f"device {lab.net.uplink}: the kernel's default (noqueue): nothing is limited"
    assert [line.split()[0] for line in rows] == ["(root)", "(root)", "(default)", "(default)"]
    assert not lab.state.exists()


def test_a_ledger_that_cannot_be_read_is_named_and_left_where_it_is(lab: FolderLab) -> None:
    lab.state.mkdir()
    (lab.state / "ledger").write_bytes(b"\0" * 512)
    done = show(lab, "-o", "json")
    assert done.returncode == 0
    assert done.stderr == f"slicebw: {lab.state}/ledger is not a slicebw ledger\n"
    assert json.loads(done.stdout)["root"] == "default"
    assert [path.name for path in lab.state.iterdir()] == ["ledger"]


def test_somebody_elses_tree_is_named_and_neither_command_touches_it(lab: FolderLab) -> None:
    lab.net.node.run(*f"tc qdisc add dev {lab.net.uplink} root handle 5: htb".split())
    before = qdiscs(lab.net)
    assert show(lab).stdout.splitlines()[0] == f"device {lab.net.uplink}: another program's htb: left alone"
    assert document(lab)["root"] == "foreign"
    done = cleanup(lab)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no tree of slicebw's on any device\nno table inet slicebw\n"
    done = cleanup(lab, "--uplink", lab.net.uplink)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{lab.net.uplink}: no tree of slicebw's (root qdisc: htb)\nno table inet slicebw\n"
    assert qdiscs(lab.net) == before


def test_cleanup_leaves_the_node_as_it_was_found_and_the_ledger_where_it_is(lab: FolderLab) -> None:
    lab.net.node.run("nft", "add", "table", "inet", "somebody")
    found = qdiscs(lab.net), table(lab.net)
    start(lab)
    sent = send(lab, "coral", 100)
    wait_until(lambda: row(lab, "coral/coral")["used_bytes"] == sent, "it is counted", seconds=20)
    lab.stop()
    ledger = lab.ledger()
    done = cleanup(lab)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{lab.net.uplink}: tree removed\ntable inet slicebw removed\n"
    assert (qdiscs(lab.net), table(lab.net)) == found
    assert lab.ledger() == ledger
    again = cleanup(lab)
    assert (again.returncode, again.stdout) == (0, "no tree of slicebw's on any device\nno table inet slicebw\n")
    # An agent that is started again continues with the ledger.
    lab.start()
    assert lab.ledger().slices[SliceKey("coral", "coral")].standard.used_bytes == sent
    assert send(lab, "coral", 50) > sent
    wait_until(lambda: row(lab, "coral/coral")["kernel_sent_bytes"] > 0, "it is limited again")


def test_cleanup_finds_the_tree_on_a_device_that_is_not_the_default_route_s(lab: FolderLab) -> None:
    lab.net.node.ip("link add spare type veth peer name other")
    found = lab.net.node.run("tc", "qdisc", "show")
    lab.write("node", node_object(device="spare", lineRate="1G"))
    lab.start()
    lab.stop()
    assert lab.net.node.run("tc", "qdisc", "show") != found
    assert cleanup(lab).stdout == "spare: tree removed\ntable inet slicebw removed\n"
    assert lab.net.node.run("tc", "qdisc", "show") == found


@pytest.mark.parametrize("mode", ["Enforce", "Monitor"])
def test_an_uplink_that_loses_its_queues_is_told_of_and_gets_them_back(lab: FolderLab, mode: str) -> None:
    """Also where its mq was made on request, with nothing but its default children."""
    lab.net.node.ip("link add name wan0 numtxqueues 8 type ifb\nlink set wan0 up\n")
    found = lab.net.node.run("tc", "qdisc", "show", "dev", "wan0")
    lab.net.node.run("tc", "qdisc", "add", "dev", "wan0", "root", "mq")
    lab.write("node", node_object(device="wan0", lineRate="1G", mode=mode))
    lab.start()
    said = "one HTB root replaces mq, so the 8 transmit queues of wan0 share a lock"

    def ready() -> list[tuple[str, str]]:
        conditions = [one for status in lab.status("nodebandwidths") for one in status["status"]["conditions"]]
        return [(one["status"], one["message"].split("; ")[-1]) for one in conditions if one["type"] == "Ready"]

    wait_until(lambda: ready() == [("True", said)], "the node says so")
    assert f"transmit queues lost device=wan0 queues=8: {said}" in lab.log()
    # The next agent finds the tree as it is: it has nothing to log, and says the same of the node.
    lab.kill()
    lab.start()
    wait_until(lambda: ready() == [("True", said)], "the node says so again")
    ceilings = {line.split()[8] for line in show(lab).stdout.splitlines() if line.startswith("(")}
    assert ceilings == {"none" if mode == "Monitor" else "1G"}
    lab.stop()
    assert cleanup(lab).stdout == "wan0: tree removed\ntable inet slicebw removed\n"
    assert lab.net.node.run("tc", "qdisc", "show", "dev", "wan0") == found
    assert found.startswith("qdisc mq 0: root")


def test_while_an_agent_is_at_work_cleanup_says_so_and_changes_nothing(lab: FolderLab) -> None:
    start(lab)
    before = classes(lab.net.node, lab.net.uplink).keys()
    done = cleanup(lab)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"slicebw: an agent is running (it holds {lab.state}/lock)")
    assert done.stderr.count("\n") == 1
    assert classes(lab.net.node, lab.net.uplink).keys() == before


def test_usage_is_removed_on_request(lab: FolderLab) -> None:
    start(lab)
    lab.stop()
    (lab.state / "ledger.corrupt-0").write_text("set aside some day")
    done = cleanup(lab, "--forget-usage")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"ledger in {lab.state} removed"
    assert [path.name for path in lab.state.iterdir()] == ["lock"]


def test_a_pod_that_cleans_up_waits_for_the_agent_s_end_and_keeps_others_away(lab: FolderLab, tmp_path: Path) -> None:
    found = qdiscs(lab.net), table(lab.net)
    start(lab)
    place = ("--state-dir", str(lab.state), "--netns", lab.net.node.path)
    cleaner = Slicebw(tmp_path / "cleaner.log", "node", "cleanup", "--stay", *place)
    cleaner.start()
    try:
        wait_until(lambda: "waiting until it stops" in cleaner.log.read_text(), "it waits for the agent")
        assert cleaner.probe("/readyz") == 0
        assert lab.classes()
        lab.stop()
        cleaner.wait_ready()
        assert (qdiscs(lab.net), table(lab.net)) == found
        logged = len(lab.log())
        lab.start_unready()
        wait_until(lambda: "waiting until it stops" in lab.log()[logged:], "another agent waits")
        assert cleaner.probe("/healthz") == 200
        assert (qdiscs(lab.net), table(lab.net)) == found
        cleaner.stop()
        assert cleaner.exit_code() == 0
        assert lab.agent is not None
        lab.agent.wait_ready()  # the lock is free now
    finally:
        cleaner.kill()


def test_where_there_is_no_uplink_one_line_says_what_to_name(tmp_path: Path, kernel: None) -> None:
    namespace = Namespace("bare")
    try:
        place = ("--state-dir", str(tmp_path), "--netns", namespace.path)
        done = run("show", *place)
        assert (done.returncode, done.stdout) == (1, "")
        line = done.stderr.splitlines()[-1]
        assert line.startswith("slicebw: ")
        assert "default route" in line
        done = run("cleanup", *place)  # cleanup needs no uplink
        assert (done.returncode, done.stdout) == (0, "no tree of slicebw's on any device\nno table inet slicebw\n")
        for command in ("show", "cleanup"):
            named = run(command, *place, "--uplink", "up7")
            assert "there is no device named up7; there are lo" in named.stderr
            assert "Traceback" not in named.stderr
    finally:
        namespace.close()


def test_without_net_admin_both_say_how_to_get_it(net: Topology, tmp_path: Path) -> None:
    setpriv = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--")
    for command in ("show", "cleanup"):
        done = run(command, "--state-dir", str(tmp_path), "--netns", net.node.path, prefix=setpriv)
        assert done.returncode == 1
        assert "CAP_NET_ADMIN is missing" in done.stderr
