"""NodeBandwidth: its settings reach the kernel, and its status shows the node's state."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slicebw.api import kinds
from tests.api.cluster import Cluster, eventually, node_bandwidth, slice_bandwidth
from tests.support.processes import Slicebw, agent
from tests.support.tc import ShownClass, classes
from tests.support.topology import Topology

M = 1_000_000
TOP, STANDARD, EXEMPT, HOST = "1:1", "1:10", "1:20", "1:1000"


@dataclass
class Lab:
    """A node with a pod and an agent that is not started yet, on a real API server."""

    cluster: Cluster
    net: Topology
    node: str
    namespace: str
    agent: Slicebw

    def classes(self) -> dict[str, ShownClass]:
        """Return the kernel's classes as tc shows them, by classid."""
        return classes(self.net.node, self.net.uplink)

    def ceils(self) -> tuple[int | None, ...]:
        """Return the ceilings of top, all standard, all exempt, and host, in Mbit/s."""
        shown = self.classes()
        return tuple(shown[name].ceil_bps // M if name in shown else None for name in (TOP, STANDARD, EXEMPT, HOST))

    def until_ceils(self, *ceils: int, within_s: float = 5) -> None:
        """Wait for these ceilings."""
        with suppress(AssertionError):  # the assertion below shows the ceilings
            eventually(lambda: self.ceils() == ceils, within_s)
        assert self.ceils() == ceils

    def set(self, name: str, **spec: object) -> None:
        """Set fields with ``kubectl patch``; None unsets one."""
        self.cluster.kubectl("patch", "nbw", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def status(self) -> Any:
        """Return the status of the node's own object."""
        return (self.cluster.read(kinds.NODE_BANDWIDTH, self.node) or {}).get("status", {})

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Return a condition's status, reason and message, as kubectl prints them."""
        path = f"{{.status.conditions[?(@.type=='{kind}')]['status','reason','message']}}"
        shown = self.cluster.kubectl("get", "nbw", self.node, "-o", f"jsonpath={path}")
        status, _, rest = shown.partition(" ")
        reason, _, message = rest.partition(" ")
        return status, reason, message

    def row(self) -> dict[str, str]:
        """Return the row of ``kubectl get nbw NODE``, by column."""
        header, line = self.cluster.kubectl("get", "nbw", self.node).splitlines()
        return dict(zip(header.split(), line.split(), strict=True))


@pytest.fixture
def default(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """Create the NodeBandwidth ``default``, which applies to every node, and delete it afterwards."""

    def make(**spec: object) -> None:
        cluster.create(node_bandwidth("default", **spec))

    yield make
    if cluster.read(kinds.NODE_BANDWIDTH, "default") is not None:
        cluster.delete(kinds.NODE_BANDWIDTH, "default")


@pytest.fixture
def lab(cluster: Cluster, namespace: str, node: str, tmp_path: Path) -> Iterator[Lab]:
    """Make a node with one pod, and a slice with default limits for it."""
    with Topology(pods=1) as net:
        (pod,) = net.pods
        cluster.create_pod(namespace, "pod", node, pod.address, pod.address6)
        cluster.create(slice_bandwidth(namespace, "slice"))
        running = agent(tmp_path, node, net.node.path, "--kubeconfig", str(cluster.kubeconfig))
        try:
            yield Lab(cluster, net, node, namespace, running)
        finally:
            running.stop()
            if cluster.read(kinds.NODE_BANDWIDTH, node) is not None:
                cluster.delete(kinds.NODE_BANDWIDTH, node)


def start(lab: Lab) -> None:
    """Start the agent, and wait until it has reported its node."""
    lab.agent.start()
    lab.agent.wait_ready()
    eventually(lambda: lab.status().get("slices") == 1, within_s=15)


def test_without_any_node_bandwidth_the_line_rate_is_the_cap_and_the_object_is_made(lab: Lab) -> None:
    start(lab)
    lab.until_ceils(10_000, 10_000, 10_000, 10_000)
    status = lab.status()
    assert (status["device"], status["mode"]) == (lab.net.uplink, "Enforce")
    assert (status["capBitsPerSecond"], status["lineRateBitsPerSecond"]) == (10_000 * M, 10_000 * M)
    assert lab.condition("Ready")[:2] == ("True", "Enforcing")


def test_the_object_of_a_node_overrides_the_default_one_field_by_field_and_live(
    lab: Lab, default: Callable[..., None]
) -> None:
    default(lineRate="1G", cap="300M")
    start(lab)
    lab.until_ceils(1000, 300, 1000, 300)

    # The agent has created the node's own object for its report. Each of its fields overrides the default's.
    lab.set(lab.node, cap="100M")
    lab.until_ceils(1000, 100, 1000, 100)
    lab.set("default", lineRate="2G", cap="400M")
    lab.until_ceils(2000, 100, 2000, 100)
    lab.set(lab.node, cap=None, lineRate="500M")
    lab.until_ceils(500, 400, 500, 400)

    # The cap is never above the line rate, whichever object each of them comes from.
    lab.set(lab.node, lineRate="200M")
    lab.until_ceils(200, 200, 200, 200)
    lab.cluster.delete(kinds.NODE_BANDWIDTH, "default")
    lab.set(lab.node, cap="50M")
    lab.until_ceils(200, 50, 200, 50)
    eventually(lambda: lab.row()["CAP"] == "50M")
    assert {**lab.row(), "AGE": ""} == {
        "NAME": lab.node,
        "DEVICE": lab.net.uplink,
        "MODE": "Enforce",
        "CAP": "50M",
        "SLICES": "1",
        "CAPPED": "0",
        "READY": "True",
        "AGE": "",
    }
    assert lab.status()["lineRate"] == "200M"
    generation = lab.cluster.read(kinds.NODE_BANDWIDTH, lab.node)["metadata"]["generation"]
    eventually(lambda: lab.status()["observedGeneration"] == generation)


def test_deleting_a_nodes_object_falls_back_to_the_default_and_it_is_made_again_for_its_status(
    lab: Lab, default: Callable[..., None]
) -> None:
    default(lineRate="1G", cap="300M")
    lab.cluster.create(node_bandwidth(lab.node, cap="100M"))
    start(lab)
    lab.until_ceils(1000, 100, 1000, 100)
    lab.cluster.delete(kinds.NODE_BANDWIDTH, lab.node)
    lab.until_ceils(1000, 300, 1000, 300)
    eventually(lambda: lab.status().get("capBitsPerSecond") == 300 * M, within_s=15)
    assert not lab.cluster.read(kinds.NODE_BANDWIDTH, lab.node).get("spec")


def test_traffic_is_exempt_as_long_as_its_destination_is_on_the_list(lab: Lab, default: Callable[..., None]) -> None:
    default(lineRate="1G", cap="20M")
    start(lab)
    lab.until_ceils(1000, 20, 1000, 20)
    (pod,), sink = lab.net.pods, lab.net.sink

    def rate_mbps(to: str) -> float:
        return lab.net.tcp_rate_bps(pod, to, 2) / M

    assert rate_mbps(sink.exempt_address) <= 20
    v4, v6 = sink.exempt_networks
    lab.set("default", exemptDestinations=[v4])
    eventually(lambda: v4 in lab.net.node.run("nft", "list", "table", "inet", "slicebw"), within_s=1)
    assert rate_mbps(sink.exempt_address) > 50
    assert rate_mbps(sink.exempt_address6) <= 20
    lab.set("default", exemptDestinations=[v6])
    eventually(lambda: v6 in lab.net.node.run("nft", "list", "table", "inet", "slicebw"), within_s=1)
    assert rate_mbps(sink.exempt_address6) > 50
    assert rate_mbps(sink.exempt_address) <= 20
    assert rate_mbps(sink.address) <= 20
    # A node's own list replaces the default one, even if it is empty.
    lab.set(lab.node, exemptDestinations=[])
    eventually(lambda: v6 not in lab.net.node.run("nft", "list", "table", "inet", "slicebw"), within_s=1)
    assert rate_mbps(sink.exempt_address6) <= 20


def test_no_guarantee_counts_above_its_share_of_the_cap_and_too_many_are_reported(
    lab: Lab, default: Callable[..., None]
) -> None:
    default(lineRate="1G", cap="100M")
    limits = {"standard": {"minRate": "60M"}, "exempt": {"minRate": "60M"}}
    patch = json.dumps({"spec": limits})
    lab.cluster.kubectl("patch", "slbw", "slice", "-n", lab.namespace, "--type=merge", "-p", patch)
    start(lab)

    def guaranteed() -> tuple[int, ...]:
        shown = lab.classes()
        return tuple(shown[name].rate_bps // M for name in ("1:1001", "1:2001"))

    eventually(lambda: guaranteed() == (25, 25))
    lab.set("default", minRateShare="40%")
    eventually(lambda: guaranteed() == (40, 40))
    lab.set(lab.node, minRateShare="100%")
    eventually(lambda: guaranteed() == (60, 60))
    eventually(lambda: lab.condition("GuaranteesOvercommitted")[0] == "False")
    assert lab.condition("GuaranteesOvercommitted")[1:] == (
        "WithinCap",
        "the node can send all guaranteed rates at once",
    )

    # A second slice with the same minRate: together they exceed the cap.
    pod = lab.net.add_pod()
    lab.cluster.create_pod(lab.namespace, "other", lab.node, pod.address, labels={"app": "other"})
    other = slice_bandwidth(lab.namespace, "younger", podSelector={"matchLabels": {"app": "other"}}, **limits)
    own = {"spec": {"podSelector": {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}}}
    lab.cluster.kubectl("patch", "slbw", "slice", "-n", lab.namespace, "--type=merge", "-p", json.dumps(own))
    lab.cluster.create(other)
    eventually(lambda: lab.condition("GuaranteesOvercommitted")[:2] == ("True", "Overcommitted"), within_s=15)
    message = lab.condition("GuaranteesOvercommitted")[2]
    assert message == "standard: minRates add up to 120000016 bit/s of 100000000 bit/s"
    # The node reports that, and refuses nothing.
    assert lab.condition("Ready")[0] == "True"
    lab.set("default", cap="200M")
    eventually(lambda: lab.condition("GuaranteesOvercommitted")[0] == "False", within_s=15)


def test_somebody_elses_tree_is_left_alone_and_shown_until_it_is_gone(lab: Lab, default: Callable[..., None]) -> None:
    default(lineRate="1G", cap="300M")
    uplink = lab.net.uplink
    lab.net.node.run(*f"tc qdisc add dev {uplink} root handle 5: htb default 1".split())
    lab.net.node.run(*f"tc class add dev {uplink} parent 5: classid 5:1 htb rate 7mbit".split())
    lab.agent.start()
    eventually(lab.status, within_s=20)
    eventually(lambda: lab.condition("ForeignQdisc")[0] == "True")
    says = f"{uplink} has a htb qdisc that is not slicebw's: remove it, or name another device"
    assert lab.condition("ForeignQdisc")[1:] == ("NotOurs", says)
    assert lab.condition("Ready") == ("False", "NotReady", says)
    assert lab.row()["READY"] == "False"
    shown = lab.net.node.run("tc", "class", "show", "dev", uplink)
    assert shown.startswith("class htb 5:1 root")
    assert "rate 7Mbit" in shown
    assert len(shown.splitlines()) == 1
    assert "slicebw" not in lab.net.node.run("nft", "list", "tables")

    lab.net.node.run(*f"tc qdisc del dev {uplink} root".split())
    lab.until_ceils(1000, 300, 1000, 300)
    eventually(lambda: lab.condition("ForeignQdisc")[:2] == ("False", "NoneFound"), within_s=15)
    assert lab.condition("Ready")[:2] == ("True", "Enforcing")


def test_modes_are_shown_and_each_switch_is_an_event_on_the_node(lab: Lab, default: Callable[..., None]) -> None:
    default(lineRate="1G", cap="300M")
    start(lab)
    for mode, reason in (("Monitor", "Monitoring"), ("Disabled", "Disabled"), ("Enforce", "Enforcing")):
        lab.set("default", mode=mode)
        eventually(lambda word=reason: lab.condition("Ready")[:2] == ("True", word), within_s=15)  # type: ignore[misc]
        eventually(lambda word=mode: lab.row()["MODE"] == word)  # type: ignore[misc]

    def mode_events() -> list[Any]:
        found = lab.cluster.core.list_event_for_all_namespaces().items
        return [one for one in found if one.involved_object.name == lab.node and one.reason == "ModeChanged"]

    eventually(lambda: len(mode_events()) == 3, within_s=15)
    for event in mode_events():
        assert (event.involved_object.kind, event.type, event.count) == ("Node", "Normal", 1)
    assert {event.message.split(":")[0] for event in mode_events()} == {
        "The mode of this node is Monitor now, it was Enforce",
        "The mode of this node is Disabled now, it was Monitor",
        "The mode of this node is Enforce now, it was Disabled",
    }


def test_another_device_is_taken_and_the_old_one_left_as_it_was(lab: Lab, default: Callable[..., None]) -> None:
    default(lineRate="1G", cap="300M")
    start(lab)
    lab.until_ceils(1000, 300, 1000, 300)
    lab.net.node.ip("link add spare0 type veth peer name spare1\nlink set spare1 up\nlink set spare0 up\n")
    lab.set(lab.node, device="spare0")
    eventually(lambda: TOP in classes(lab.net.node, "spare0"))
    eventually(lambda: lab.ceils() == (None, None, None, None))
    eventually(lambda: lab.row()["DEVICE"] == "spare0", within_s=15)
    lab.set(lab.node, device=None)
    lab.until_ceils(1000, 300, 1000, 300)
    assert "htb" not in lab.net.node.run("tc", "qdisc", "show", "dev", "spare0")
