"""Traffic outside all slices: the host's own, and what cannot be classified (default). It is counted, and never capped.

Pods in the host's network are part of it, because their packets cannot be told from the host's.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.folder_lab import NODE, FolderLab, M, folder_lab, node_object, pod_object, slice_object
from tests.support.topology import Host, wait_until

ROOT, ROOT_EXEMPT, DEFAULT, DEFAULT_EXEMPT = "1:1000", "1:2000", "1:1fff", "1:2fff"


@pytest.fixture
def lab(tmp_path: Path, kernel: None) -> Iterator[FolderLab]:
    """A slice with a pod, and a pod in no slice. The test starts the agent."""
    with folder_lab(tmp_path, "codeen", "stranger", cap="100M") as made:
        made.write_slice("codeen", standard={"maxRate": "20M"})
        yield made


def start(lab: FolderLab) -> None:
    """Start the agent, and wait until codeen's pod is sent to its class."""
    lab.start()
    wait_until(lambda: lab.ceil_bps("codeen"), "codeen has a class")
    address = lab.pod("codeen").address
    wait_until(lambda: address in lab.net.node.run("nft", "list", "ruleset"), "codeen is in the table")


def send(lab: FolderLab, source: Host, to: str, packets: int = 100) -> int:
    """Send datagrams, and wait until they have arrived. Returns all bytes that have arrived, as HTB counts them."""
    for _ in range(packets // 50):
        total = lab.arrived_bytes(source, to) + lab.net.send_udp(source, to, 50)
        wait_until(lambda expected=total: lab.arrived_bytes(source, to) == expected, "datagrams arrive")  # type: ignore[misc]
    return lab.arrived_bytes(source, to)


def node_status(lab: FolderLab) -> dict[str, Any]:
    """Return the status that the agent has written to its NodeBandwidth; empty if it has not."""
    found = [one for one in lab.status("nodebandwidths") if one["metadata"]["name"] == NODE]
    return dict(found[0]["status"]) if found else {}


def test_the_nodes_own_traffic_and_that_of_nobodys_pods_is_counted_apart_and_reported(lab: FolderLab) -> None:
    start(lab)
    sink, before = lab.net.sink, lab.classes()
    sent = {
        ROOT: send(lab, lab.net.node, sink.address),
        ROOT_EXEMPT: send(lab, lab.net.node, sink.exempt_address, 150),
        DEFAULT: send(lab, lab.pod("stranger"), sink.address, 200),
        DEFAULT_EXEMPT: send(lab, lab.pod("stranger"), sink.exempt_address, 250),
    }
    send(lab, lab.pod("codeen"), sink.address)
    # Besides the test's packets the kernels send some of neighbor discovery.
    after = lab.classes()
    extra = {name: after[name].sent_bytes - before[name].sent_bytes - count for name, count in sent.items()}
    assert all(0 <= count < 5000 for count in extra.values()), extra

    def reported() -> bool:
        observed, status = lab.classes(), node_status(lab)
        root, default = (
            observed[standard].sent_bytes + observed[exempt].sent_bytes
            for standard, exempt in ((ROOT, ROOT_EXEMPT), (DEFAULT, DEFAULT_EXEMPT))
        )
        return (status.get("bytesRoot"), status.get("bytesDefault")) == (root, default)

    wait_until(reported, "the NodeBandwidth has every byte", seconds=20)
    # The agent's metrics say the same.
    assert lab.agent is not None
    page = lab.agent.page("/metrics")
    for traffic_class, traffic, name in (("standard", "root", ROOT), ("exempt", "default", DEFAULT_EXEMPT)):
        labels = f'{{class="{traffic_class}",traffic="{traffic}"}}'
        (value,) = re.findall(rf"^slicebw_node_sent_bytes_total{re.escape(labels)} (\S+)$", page, re.MULTILINE)
        assert int(float(value)) >= after[name].sent_bytes
    # Bytes outside all slices are charged to no slice.
    assert len(lab.status("bandwidthusages")) == 1
    assert lab.arrived_bytes(lab.pod("codeen")) == after["1:1001"].sent_bytes


def test_both_are_there_from_the_first_pass_on_with_their_shares_and_ceilings(lab: FolderLab) -> None:
    lab.remove_slice("codeen")
    lab.start()
    observed = lab.classes()
    assert {name: observed[name].ceil_bps for name in (ROOT, ROOT_EXEMPT, DEFAULT, DEFAULT_EXEMPT)} == {
        ROOT: 100 * M,
        ROOT_EXEMPT: 1000 * M,
        DEFAULT: 100 * M,
        DEFAULT_EXEMPT: 1000 * M,
    }
    listing = lab.net.node.run("tc", "-d", "class", "show", "dev", lab.net.uplink)
    quanta = {line.split()[2]: line.split("quantum ")[1].split()[0] for line in listing.splitlines() if "leaf" in line}
    assert quanta == {ROOT: "8000", ROOT_EXEMPT: "8000", DEFAULT: "1600", DEFAULT_EXEMPT: "1600"}


def test_what_nobody_owns_gets_what_the_node_lets_it_have_and_nobody_else_is_held_by_that(lab: FolderLab) -> None:
    node = {"lineRate": "1G", "cap": "100M", "exemptDestinations": [*lab.net.sink.exempt_networks]}
    lab.write("node", node_object(**node, unclassified={"maxRate": "5M", "exemptMaxRate": "8M"}))
    start(lab)
    assert [lab.classes()[name].ceil_bps for name in (DEFAULT, DEFAULT_EXEMPT)] == [5 * M, 8 * M]
    stranger, sink = lab.pod("stranger"), lab.net.sink
    for to, name, most_mbps in ((sink.address, DEFAULT, 5), (sink.exempt_address, DEFAULT_EXEMPT, 8)):
        flow = lab.net.start_udp(stranger, to, 30, 50 * M)
        own = lab.net.start_udp(lab.pod("codeen"), to, 30, 15 * M)
        wait_until(lambda name=name: lab.classes()[name].sent_bytes > M, "the stranger sends")  # type: ignore[misc]
        before = lab.counters()
        wait_until(lambda before=before: lab.counters().at_s > before.at_s + 4, "some seconds have passed", 10)  # type: ignore[misc]
        after = lab.counters()
        flow.stop()
        own.stop()
        assert after.rate_bps(before, name) / M == pytest.approx(most_mbps, rel=0.02)
        codeen = {DEFAULT: "1:1001", DEFAULT_EXEMPT: "1:2001"}[name]
        assert after.rate_bps(before, codeen) / M > 15
    status = {"maxRate": "5M", "maxBitsPerSecond": 5 * M, "exemptMaxRate": "8M", "exemptMaxBitsPerSecond": 8 * M}
    wait_until(lambda: node_status(lab).get("unclassified") == status, "the NodeBandwidth says so")
    assert lab.agent is not None
    page = lab.agent.page("/metrics")
    shown = re.findall(r'^slicebw_node_unclassified_max_bps\{class="(\w+)"\} (\S+)$', page, re.MULTILINE)
    assert {traffic_class: float(value) for traffic_class, value in shown} == {"standard": 5 * M, "exempt": 8 * M}

    # What is wrong is what it was; what is taken away is the class's own ceiling again.
    lab.write("node", node_object(**node, unclassified={"maxRate": "5k", "exemptMaxRate": "9M"}))
    wait_until(lambda: lab.classes()[DEFAULT_EXEMPT].ceil_bps == 9 * M, "the right one is taken")
    assert lab.classes()[DEFAULT].ceil_bps == 5 * M
    lab.write("node", node_object(**node))
    wait_until(lambda: lab.classes()[DEFAULT].ceil_bps == 100 * M, "the node cap is the ceiling again")
    assert lab.classes()[DEFAULT_EXEMPT].ceil_bps == 1000 * M


def test_a_list_that_is_too_long_leaves_the_last_good_destinations_exempt_and_is_said(lab: FolderLab) -> None:
    start(lab)
    sink, codeen = lab.net.sink, lab.pod("codeen")
    why = "20000 are too many: use at most 10000; the last good list stays in force"
    many = [f"10.{index // 256}.{index % 256}.0/24" for index in range(20_000)]
    lab.write("node", node_object(lineRate="1G", cap="50M", exemptDestinations=many))
    wait_until(lambda: lab.classes()[DEFAULT].ceil_bps == 50 * M, "the other settings are taken", 30)
    before = lab.classes()
    sent = send(lab, codeen, sink.exempt_address)
    after = lab.classes()
    assert after["1:2001"].sent_bytes - before["1:2001"].sent_bytes == sent
    assert "10.0.0.0" not in lab.ruleset()

    def said() -> bool:
        ready = [one for one in node_status(lab).get("conditions", ()) if one["type"] == "Ready"]
        return [(one["status"], one["message"]) for one in ready] == [("False", f"spec.exemptDestinations: {why}")]

    wait_until(said, "the node says so", 20)
    # The next agent knows no more than the last one.
    lab.kill()
    start(lab)
    assert send(lab, codeen, sink.exempt_address, 50) > sent
    assert "10.0.0.0" not in lab.ruleset()
    assert lab.classes()["1:2001"].sent_bytes > after["1:2001"].sent_bytes


def test_neither_is_ever_capped_however_much_it_sends(lab: FolderLab) -> None:
    lab.write_slice("codeen", period="120s", standard={"budget": "200k", "threshold": "50%"})
    start(lab)
    for source in (lab.net.node, lab.pod("stranger")):
        send(lab, source, lab.net.sink.address, 400)
    lab.net.send_udp(lab.pod("codeen"), lab.net.sink.address, 200)  # the last ones may be queued for long
    wait_until(lambda: (lab.ceil_bps("codeen") or 0) < M, "codeen is capped", seconds=15)
    observed = lab.classes()
    assert (observed[ROOT].ceil_bps, observed[DEFAULT].ceil_bps) == (100 * M, 100 * M)
    wait_until(lambda: lab.events("BandwidthCapped"), "its event")
    (message,) = lab.events("BandwidthCapped")
    assert "codeen/codeen" in message


def test_a_pod_in_the_hosts_network_counts_as_the_node_and_its_slice_is_told(lab: FolderLab) -> None:
    on_host = pod_object("codeen", "192.0.2.1", "2001:db8::1")
    on_host["metadata"]["name"] = "on-host"
    on_host["spec"] = {"hostNetwork": True}
    without = pod_object("codeen")
    without["metadata"]["name"] = "without-address"
    lab.write("more-pods", on_host, without)
    start(lab)
    before = lab.classes()[ROOT].sent_bytes
    sent = send(lab, lab.net.node, lab.net.sink.address)
    assert lab.classes()[ROOT].sent_bytes - before == sent
    assert lab.classes()["1:1001"].sent_bytes == 0
    assert "192.0.2.1 :" not in lab.net.node.run("nft", "list", "ruleset")
    wait_until(lambda: (lab.usage("codeen") or {}).get("problems"), "its usage says so")
    assert {problem["pod"]: problem["reason"] for problem in (lab.usage("codeen") or {})["problems"]} == {
        "codeen/on-host": "it is a hostNetwork pod: its traffic is the node's own and counts as the host's",
        "codeen/without-address": "it has no address yet",
    }


def test_a_slice_of_nothing_but_such_pods_has_no_class_and_is_told_why(lab: FolderLab) -> None:
    lab.write("lonely", slice_object("lonely"), {**pod_object("lonely", "192.0.2.1"), "spec": {"hostNetwork": True}})
    start(lab)
    wait_until(lambda: lab.usage("lonely"), "it is reported")
    usage = lab.usage("lonely") or {}
    assert "classId" not in usage["standard"]
    assert "hostNetwork" in usage["problems"][0]["reason"]
    assert lab.account("lonely") is None
