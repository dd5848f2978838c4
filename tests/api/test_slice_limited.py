"""From ``kubectl apply`` to the kernel and back to ``kubectl get``, with real packets."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slicebw.api import kinds
from slicebw.api.quantity import parse_time
from slicebw.core.clock import NS
from slicebw.core.policy import Rates, cap_bps
from tests.api.cluster import Cluster, eventually, node_bandwidth, slice_bandwidth
from tests.support.processes import Slicebw, agent
from tests.support.tc import ShownClass, classes
from tests.support.topology import Host, Topology

M = 1_000_000
LINE = "1G"


@dataclass
class Lab:
    """A node with an agent and the pods of two slices, on a real API server."""

    cluster: Cluster
    net: Topology
    node: str
    namespaces: list[str]
    agent: Slicebw
    folder: Path

    def classes(self) -> dict[str, ShownClass]:
        """Return the kernel's classes as tc shows them, by classid."""
        return classes(self.net.node, self.net.uplink)

    def ceil_bps(self, classid: str) -> int | None:
        """Return a class's ceiling in the kernel; None if there is no such class."""
        found = self.classes().get(classid)
        return None if found is None else found.ceil_bps

    def usage(self, number: int) -> Any:
        """Return the BandwidthUsage of the slice of this number."""
        return self.cluster.read(kinds.BANDWIDTH_USAGE, f"slice.{self.node}", self.namespaces[number])

    def classid(self, number: int, traffic_class: str = "standard") -> str:
        """Return the classid of a slice, once it is reported."""
        found: str = eventually(lambda: (self.usage(number) or {}).get(traffic_class, {}).get("classId"))
        return found

    def apply(self, number: int, **standard: object) -> None:
        """Create the slice's SliceBandwidth."""
        obj = slice_bandwidth(self.namespaces[number], "slice", standard=standard)
        self.cluster.create(obj)

    def patch(self, number: int, spec: dict[str, object]) -> None:
        """Change the slice's spec with ``kubectl patch``."""
        text = json.dumps({"spec": spec})
        self.cluster.kubectl("patch", "slbw", "slice", "-n", self.namespaces[number], "--type=merge", "-p", text)


@pytest.fixture
def lab(cluster: Cluster, new_namespace: Callable[[], str], node: str, tmp_path: Path) -> Iterator[Lab]:
    """Run an agent on a node with one pod in each of two namespaces, without limits."""
    with Topology(pods=2) as net:
        namespaces = [new_namespace(), new_namespace()]
        exempt = list(net.sink.exempt_networks)
        cluster.create(node_bandwidth(node, lineRate=LINE, cap="200M", exemptDestinations=exempt))
        for namespace, pod in zip(namespaces, net.pods, strict=True):
            cluster.create_pod(namespace, "pod", node, pod.address, pod.address6)
        kubeconfig = ("--kubeconfig", str(cluster.kubeconfig))
        try:
            with agent(tmp_path, node, net.node.path, *kubeconfig) as running:
                yield Lab(cluster, net, node, namespaces, running, tmp_path)
        finally:
            cluster.delete(kinds.NODE_BANDWIDTH, node)


def rate(lab: Lab, pod: Host, to: str | None = None, seconds: int = 3) -> float:
    """Measure TCP goodput from a pod, in Mbit/s."""
    return lab.net.tcp_rate_bps(pod, to or lab.net.sink.address, seconds) / M


def test_a_slice_is_held_to_its_limits_and_nobody_else_is(lab: Lab) -> None:
    one, other = lab.net.pods
    lab.apply(0, maxRate="10M")
    lab.apply(1, maxRate="40M")
    first = lab.classid(0)
    eventually(lambda: lab.ceil_bps(first) == 10 * M)
    assert 9 <= rate(lab, one) <= 10
    assert 9 <= rate(lab, one, lab.net.sink.address6) <= 10

    # A change takes effect within a second, without a restart.
    lab.patch(0, {"standard": {"maxRate": "50M"}})
    patched = time.monotonic()
    eventually(lambda: lab.ceil_bps(first) == 50 * M, within_s=1)
    assert time.monotonic() - patched < 1
    assert 45 <= rate(lab, one) <= 50

    # Neither the exempt class nor the second slice is limited by the first slice's standard class.
    flows = [(one, lab.net.sink.address), (one, lab.net.sink.exempt_address), (other, lab.net.sink.address)]
    standard, exempt, second = (bps / M for bps in lab.net.tcp_rates_bps(flows, 3))
    assert 45 <= standard <= 50
    assert exempt > 300
    assert 36 <= second <= 40

    # Without its SliceBandwidth the pod's traffic counts as default.
    lab.cluster.delete(kinds.SLICE_BANDWIDTH, "slice", lab.namespaces[0])
    eventually(lambda: lab.ceil_bps(first) is None)
    before = lab.classes()["1:1fff"].sent_bytes
    assert rate(lab, one, seconds=1) > 60
    assert lab.classes()["1:1fff"].sent_bytes - before > 5 * M


def test_a_pod_becomes_a_map_entry_within_a_second_and_stops_being_one(lab: Lab) -> None:
    lab.apply(0, maxRate="10M")
    lab.classid(0)

    def in_table(address: str) -> bool:
        return f"{address} : 1:1" in lab.net.node.run("nft", "list", "table", "inet", "slicebw")

    lab.cluster.create_pod(lab.namespaces[0], "second", lab.node, "10.77.3.3")
    eventually(lambda: in_table("10.77.3.3"), within_s=1)
    lab.cluster.delete_pod(lab.namespaces[0], "second")
    eventually(lambda: not in_table("10.77.3.3"), within_s=1)


def test_a_small_budget_is_capped_by_the_formula_kept_and_renewed_in_the_next_period(lab: Lab) -> None:
    budget, threshold, period_s = 30 * M, 15 * M, 25
    spec = {"period": f"{period_s}s", "standard": {"maxRate": "20M", "budget": "30M", "threshold": "50%"}}
    lab.cluster.create(slice_bandwidth(lab.namespaces[0], "slice", **spec))
    first = lab.classid(0)
    flow = lab.net.traffic(lab.net.pods[0], lab.net.sink.address, 40)

    # Poll the kernel's counter and ceiling as fast as tc can, to find when the threshold was crossed and when capped.
    crossed_at = capped_at = None
    while capped_at is None:
        seen, now = lab.classes()[first], time.time()
        if crossed_at is None and seen.sent_bytes >= threshold:
            crossed_at = now
        if seen.ceil_bps < 20 * M:
            capped_at = now
        assert crossed_at is None or now - crossed_at < 2
    assert crossed_at is None or capped_at - crossed_at <= 1

    # The cap in the kernel is the formula's result for the bytes that the kernel has counted and the time left.
    reported = eventually(lambda: (usage := lab.usage(0)) and usage["standard"]["capped"] and usage)
    standard = reported["standard"]
    start_s = parse_time(reported["periodStart"])
    left_ns = round((start_s + period_s - capped_at) * NS)
    formula = cap_bps(Rates(8, 20 * M), budget, standard["bytesUsed"], left_ns)
    assert standard["bitsPerSecond"] == pytest.approx(formula, rel=0.05)
    assert lab.ceil_bps(first) == pytest.approx(formula, rel=0.05)

    # At the end of the period usage is within the budget, and then a new period starts.
    last = standard["bytesUsed"]
    while (usage := lab.usage(0))["periodStart"] == reported["periodStart"]:
        last = max(last, usage["standard"]["bytesUsed"])
        time.sleep(0.1)
    assert threshold < last <= budget + 8 // 8 * period_s
    assert lab.ceil_bps(first) == 20 * M
    assert not usage["standard"]["capped"]
    flow.stop()

    events = {event.reason: event for event in lab.cluster.events(lab.namespaces[0])}
    assert set(events) == {"BandwidthCapped", "BandwidthRestored"}
    assert events["BandwidthCapped"].source.host == lab.node
    assert events["BandwidthCapped"].involved_object.name == "slice"
    assert events["BandwidthCapped"].count == 1


def test_kubectl_get_shows_every_column(lab: Lab, tmp_path: Path) -> None:
    lab.apply(0, maxRate="10M")
    with Slicebw(tmp_path / "controller.log", "controller", "--kubeconfig", str(lab.cluster.kubeconfig)):
        namespace = lab.namespaces[0]
        eventually(lambda: "True" in enforced(lab, namespace), within_s=20)
        header, row = lab.cluster.kubectl("get", "slbw", "-n", namespace).splitlines()
        assert header.split() == ["NAME", "NODES", "CAPPED", "USED", "PEAK%", "RATE", "PERIOD-START", "AGE"]
        assert row.split()[:5] == ["slice", "1", "0", "0", "0"]
        header, row = lab.cluster.kubectl("get", "bwu", "-n", namespace).splitlines()
        assert header.split() == ["NAME", "SLICE", "NODE", "USED", "BUDGET", "%", "RATE", "CAPPED", "PERIOD-START"]
        assert row.split()[1:8] == ["slice", lab.node, "0", "10.8G", "0", "10M", "false"]
        header, *rows = lab.cluster.kubectl("get", "nbw").splitlines()
        assert header.split() == ["NAME", "DEVICE", "MODE", "CAP", "SLICES", "CAPPED", "READY", "AGE"]
        own = next(row.split() for row in rows if row.startswith(f"{lab.node} "))
        assert own[1:7] == [lab.net.uplink, "Enforce", "200M", "1", "0", "True"]
    explained = lab.cluster.kubectl("explain", "slbw.spec.standard")
    for field in ("minRate", "maxRate", "budget", "threshold"):
        assert field in explained


def enforced(lab: Lab, namespace: str) -> str:
    path = "jsonpath={.items[*].status.conditions[?(@.type=='Enforced')].status}"
    return lab.cluster.kubectl("get", "slbw", "-n", namespace, "-o", path)
