"""slicebw on two real nodes, installed as documented: each node enforces and accounts by itself, whatever happens."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import pytest

from slicebw.api import kinds
from tests.api.cluster import eventually, slice_bandwidth, throughout
from tests.cluster.install import (
    AGENTS,
    CONTROLLERS,
    NAMESPACE,
    agent_pods,
    clean_up,
    component_pods,
    install,
    remove,
)
from tests.cluster.lab import START_S, AnyCluster, ClusterLab, Node, workload_pod
from tests.cluster.tenants import PASS_S, REPORT_S, LabTenant, Tenant
from tests.support.tc import ShownClass

M: Final = 1_000_000
NewTenant = Callable[..., Tenant]
NewLabTenant = Callable[..., LabTenant]


@pytest.fixture(scope="module")
def slicebw(any_cluster: AnyCluster, slicebw_image: str) -> Iterator[None]:
    """Install slicebw on the cluster, with reports every second."""
    try:
        install(any_cluster)
        any_cluster.kubectl("set", "env", "-n", NAMESPACE, AGENTS, "SLICEBW_REPORT_INTERVAL=1s")
        any_cluster.rollout(NAMESPACE, AGENTS)
        yield
    finally:
        clean_up(any_cluster)
        remove(any_cluster, "uninstall")


@pytest.fixture
def tenant(cluster: ClusterLab, slicebw: None, new_namespace: Callable[[], str]) -> NewLabTenant:
    """Make tenants from the spec of their SliceBandwidth."""

    def make(**spec: object) -> LabTenant:
        return LabTenant(cluster, new_namespace(), **spec)

    return make


@pytest.fixture
def any_tenant(any_cluster: AnyCluster, slicebw: None, new_namespace: Callable[[], str]) -> NewTenant:
    """The same on any cluster."""

    def make(**spec: object) -> Tenant:
        if isinstance(any_cluster, ClusterLab):
            return LabTenant(any_cluster, new_namespace(), **spec)
        return Tenant(any_cluster, new_namespace(), **spec)

    return make


def kill_agent(node: Node) -> None:
    """Kill a node's agent with SIGKILL, as soon as it runs."""
    eventually(lambda: node.execute("sh", "-c", "pkill -KILL -f 'slicebw [a]gent' && echo done || true"), START_S, 0.2)


def columns(cluster: AnyCluster, kind: str, *arguments: str) -> list[dict[str, str]]:
    """Return the rows of ``kubectl get`` by column; only up to the first column that is empty in some row."""
    header, *rows = cluster.kubectl("get", kind, *arguments).splitlines()
    return [dict(zip(header.split(), row.split(), strict=False)) for row in rows]


@pytest.mark.needs_hack_cluster("measures what arrives outside")
def test_both_nodes_enforce_and_the_roll_up_is_their_sum(cluster: ClusterLab, tenant: NewLabTenant) -> None:
    # A hundredth of the budget is less than a packet, so that every packet is reported at once.
    codeen = tenant(standard={"maxRate": "10M", "budget": "10M", "threshold": "100%"}, period="1h")
    flows = {node.name: cluster.traffic(codeen.pods[node.name], cluster.sink, 4) for node in cluster.nodes}
    rates = {name: flow.rate_bps() / M for name, flow in flows.items()}
    assert all(8.5 <= rate <= 10 for rate in rates.values()), rates

    def summed() -> bool:
        usages, status = codeen.usages(), codeen.status()
        used = sum(usage["standard"]["bytesUsed"] for usage in usages.values())
        return bool(used > 8 * M and status["standard"]["bytesUsed"] == used and status["nodes"] == 2)

    eventually(summed, REPORT_S, every_s=0.2)
    (row,) = columns(cluster, "slbw", "-n", codeen.namespace)
    assert (row["NAME"], row["NODES"], row["CAPPED"]) == ("codeen", "2", "0")
    assert row["USED"].endswith("M")
    percents = [usage["standard"]["percent"] for usage in codeen.usages().values()]
    assert row["PEAK%"] == str(max(percents))
    rows = columns(cluster, "bwu", "-n", codeen.namespace)
    names = ("SLICE", "NODE", "BUDGET", "%", "RATE", "CAPPED")
    assert [[row[name] for name in names] for row in rows] == [
        ["codeen", node.name, "10M", str(codeen.usages()[node.name]["standard"]["percent"]), "10M", "false"]
        for node in cluster.nodes
    ]
    shown = [
        [row[name] for name in ("NAME", "DEVICE", "MODE", "SLICES", "CAPPED", "READY")]
        for row in columns(cluster, "nbw")
    ]
    assert shown == [[node.name, node.uplink, "Enforce", "1", "0", "True"] for node in cluster.nodes]


def test_one_nodes_cap_is_that_nodes_alone_and_its_owner_is_told(
    any_cluster: AnyCluster, any_tenant: NewTenant
) -> None:
    codeen = any_tenant(standard={"maxRate": "10M", "budget": "4M", "threshold": "50%"}, period="1h")
    busy, idle, *_ = any_cluster.nodes
    with any_cluster.sending(codeen.pods[busy.name]):
        codeen.wait_for("Capped")
    usages = codeen.usages()
    assert usages[busy.name]["standard"]["capped"]
    assert not usages[idle.name]["standard"]["capped"]
    assert codeen.ceil_bps(busy) < 10 * M
    assert codeen.ceil_bps(idle) == 10 * M
    assert codeen.status()["cappedNodes"] == 1
    assert [row["CAPPED"] for row in columns(any_cluster, "slbw", "-n", codeen.namespace)] == ["1"]
    events = eventually(
        lambda: [e for e in any_cluster.events(codeen.namespace) if e.reason == "BandwidthCapped"], REPORT_S
    )
    assert [(event.source.host, event.involved_object.name) for event in events] == [(busy.name, "codeen")]


@pytest.mark.needs_hack_cluster("kills processes on the nodes, counts what arrives outside")
def test_agents_are_killed_again_and_again_and_not_a_byte_is_lost(cluster: ClusterLab, tenant: NewLabTenant) -> None:
    codeen = tenant(standard={"maxRate": "10M"})
    first, second = cluster.nodes
    with cluster.arrivals():
        with codeen.pinging():
            for node in (first, second, first, second):
                kill_agent(node)
            eventually(lambda: _restarted(cluster, 2), START_S, every_s=0.5)
        codeen.until_accounts_agree(cluster.nodes)
        assert all(codeen.used_bytes(node) > 100_000 for node in cluster.nodes)


def _restarted(cluster: ClusterLab, times: int) -> bool:
    """Tell whether every pod has been restarted that often, and is ready again."""
    states = [pod.status.container_statuses[0] for pod in agent_pods(cluster)]
    return all(state.ready and state.restart_count >= times for state in states)


@pytest.mark.needs_hack_cluster("looks into the kernels, counts what arrives outside")
def test_a_rolling_update_changes_no_class_loses_no_byte_and_slows_nobody(
    cluster: ClusterLab, tenant: NewLabTenant
) -> None:
    codeen, busy = tenant(standard={"maxRate": "10M"}), tenant(standard={"maxRate": "10M"})
    classes = {node.name: set(node.classes()) for node in cluster.nodes}
    readings = [Reading(codeen, busy)]
    before = {pod.metadata.uid for pod in agent_pods(cluster)}
    flows = [cluster.traffic(busy.pods[node.name], cluster.sink, 120) for node in cluster.nodes]
    try:
        eventually(lambda: all(busy.shown_class(node).waiting_packets for node in cluster.nodes), START_S)
        with cluster.arrivals():
            with codeen.pinging():
                cluster.kubectl("rollout", "restart", "-n", NAMESPACE, AGENTS)

                def rolled_out() -> bool:
                    assert {node.name: set(node.classes()) for node in cluster.nodes} == classes
                    readings.append(Reading(codeen, busy))
                    now = agent_pods(cluster)
                    ready = all(c.status == "True" for pod in now for c in pod.status.conditions or ())
                    return ready and len(now) == 2 and before.isdisjoint(pod.metadata.uid for pod in now)

                eventually(rolled_out, 100, every_s=0.1)
            codeen.until_accounts_agree(cluster.nodes)
            pinged = [codeen.pinged(node) for node in cluster.nodes]
            assert pinged == [codeen.arrived_packets(node) for node in cluster.nodes], "nothing was lost on the way"
            assert min(pinged) > 100
    finally:
        for flow in flows:
            flow.stop()
    for earlier, later in pairwise(readings):
        for was, seen in zip((*earlier.polite, *earlier.greedy), (*later.polite, *later.greedy), strict=True):
            assert (seen.rate_bps, seen.ceil_bps) == (was.rate_bps, was.ceil_bps)
            assert seen.sent_bytes >= was.sent_bytes, "the class is the same one"
        assert all(seen.waiting_packets == 0 for seen in later.polite), "nobody waits who sends less than they may"
    rates = [rate_bps / M for rate_bps in greedy_rates_bps(readings[1:])]
    assert rates
    assert all(8 < rate < 11 for rate in rates), f"who sends as much as they can gets 10, all the time: {rates}"


class Reading:
    """The classes of two tenants on all nodes at one moment: one sends below its limit, one as fast as it can."""

    def __init__(self, polite: LabTenant, greedy: LabTenant) -> None:
        nodes = polite.cluster.nodes
        self.polite = [polite.shown_class(node) for node in nodes]
        self.greedy: list[ShownClass] = []
        self.greedy_at_s: list[float] = []
        for node in nodes:
            self.greedy.append(greedy.shown_class(node))
            self.greedy_at_s.append(time.monotonic())


def greedy_rates_bps(readings: Sequence[Reading]) -> Iterator[float]:
    """Give the greedy class's rate on each node over four seconds each: the time of a reading then matters little."""
    since = readings[0]
    for reading in readings:
        passed_s = [now_s - then_s for then_s, now_s in zip(since.greedy_at_s, reading.greedy_at_s, strict=True)]
        if min(passed_s) >= 4:
            for was, seen, took_s in zip(since.greedy, reading.greedy, passed_s, strict=True):
                yield (seen.sent_bytes - was.sent_bytes) * 8 / took_s
            since = reading


@pytest.mark.needs_hack_cluster("stops the API server")
def test_without_the_api_server_nodes_go_on_and_tell_afterwards(cluster: ClusterLab, tenant: NewLabTenant) -> None:
    codeen = tenant(standard={"maxRate": "10M", "budget": "1G"}, period="1h")
    with cluster.arrivals():
        with codeen.pinging():
            eventually(lambda: all(codeen.used_bytes(node) for node in cluster.nodes), PASS_S)
            cluster.stop_api_server()
            try:
                before = {node.name: codeen.used_bytes(node) for node in cluster.nodes}
                for node in cluster.nodes:
                    eventually(lambda node=node: codeen.used_bytes(node) > before[node.name] + 100_000, 2 * PASS_S)  # type: ignore[misc]
            finally:
                cluster.start()
        codeen.until_accounts_agree(cluster.nodes)
        # One more transition of each usage brings its latest figures along.
        cluster.create(slice_bandwidth(codeen.namespace, "unused", podSelector={"matchLabels": {"none": "such"}}))
        cluster.merge(slice_bandwidth(codeen.namespace, "codeen", standard={"maxRate": "20M"}))
        total = sum(codeen.used_bytes(node) for node in cluster.nodes)
        eventually(lambda: codeen.status()["standard"]["bytesUsed"] == total, START_S, every_s=0.5)
    codeen.wait_for("Enforced")


def test_a_controller_killed_is_a_controller_replaced(any_cluster: AnyCluster, any_tenant: NewTenant) -> None:
    codeen = any_tenant(standard={"maxRate": "10M"})
    for pod in component_pods(any_cluster, "controller"):
        any_cluster.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)
    any_cluster.merge(slice_bandwidth(codeen.namespace, "codeen", standard={"maxRate": "20M"}))
    generation = any_cluster.read(kinds.SLICE_BANDWIDTH, "codeen", codeen.namespace)["metadata"]["generation"]
    eventually(lambda: codeen.status().get("observedGeneration") == generation, START_S, every_s=0.2)
    codeen.wait_for("Enforced")
    assert {codeen.ceil_bps(node) for node in any_cluster.nodes} == {20 * M}
    any_cluster.rollout(NAMESPACE, CONTROLLERS)


def test_a_pod_that_moves_takes_its_limits_along_and_leaves_its_usage(
    any_cluster: AnyCluster, slicebw: None, namespace: str
) -> None:
    first, second, *_ = (node.name for node in any_cluster.nodes)
    spec = {"maxRate": "10M", "budget": "1M", "threshold": "100%"}
    any_cluster.apply(slice_bandwidth(namespace, "codeen", standard=spec, period="1h"))

    def send_from(node: str) -> None:
        any_cluster.apply(workload_pod(namespace, f"on-{node}", node, any_cluster.workload))
        pod = any_cluster.running_pods(namespace, count=1, app=f"on-{node}")[node]
        eventually(lambda: node in places(), START_S)
        any_cluster.send_datagrams(pod, 100, 1000)
        any_cluster.kubectl_input("", "delete", "pod", "-n", namespace, pod.metadata.name, "--grace-period=1")

    def places() -> set[str]:
        """Return the nodes on which the slice has a class."""
        listed = json.loads(any_cluster.kubectl("get", "bwu", "-n", namespace, "-o", "json"))["items"]
        return {usage["metadata"]["labels"][kinds.LABEL_NODE] for usage in listed if "classId" in usage["standard"]}

    def status() -> dict[str, Any]:
        found: dict[str, Any] = any_cluster.read(kinds.SLICE_BANDWIDTH, "codeen", namespace).get("status", {})
        return found

    send_from(first)
    eventually(lambda: places() == set(), START_S)
    send_from(second)
    # Ethernet, IP and ICMP (or UDP) headers and 1,000 bytes, a hundred times, on each of the two nodes.
    eventually(lambda: status().get("standard", {}).get("bytesUsed") == 2 * 100 * (14 + 20 + 8 + 1000), REPORT_S)
    eventually(lambda: status()["nodes"] == 0, START_S)


@pytest.mark.needs_hack_cluster("switches a node off")
def test_a_node_that_is_drained_and_deleted_takes_its_usages_along(cluster: ClusterLab, tenant: NewLabTenant) -> None:
    codeen = tenant(standard={"maxRate": "10M"})
    stays, goes = cluster.nodes
    cluster.kubectl_input("", "drain", goes.name, "--ignore-daemonsets", "--force", "--grace-period=1", "--timeout=60s")
    cluster.power_off(goes.name)
    cluster.core.delete_node(goes.name)
    try:
        eventually(lambda: codeen.usages().keys() == {stays.name}, START_S, every_s=0.5)
        eventually(lambda: codeen.status()["nodes"] == 1, REPORT_S, every_s=0.5)
        throughout(lambda: codeen.usages().keys() == {stays.name}, 2, every_s=0.2)
    finally:
        cluster.start()  # its kubelet registers it again
    eventually(lambda: codeen.usages().keys() == {stays.name, goes.name}, START_S, every_s=0.5)
    cluster.rollout(NAMESPACE, AGENTS)
