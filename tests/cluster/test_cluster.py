"""The cluster itself is as the other tests assume: real pods on real nodes, and one uplink for each node."""

import json
from typing import Any

import pytest

from tests.api.cluster import eventually
from tests.cluster.lab import ClusterLab, Node, workload_daemon_set, workload_pod
from tests.support.topology import Meter, NetworkNamespace

pytestmark = pytest.mark.needs_hack_cluster("is about hack/cluster itself")
PINGS = 20
PING_IP_BYTES = 20 + 8 + 56


@pytest.fixture
def pods(cluster: ClusterLab, namespace: str, workload: str) -> dict[str, Any]:
    """Run an ordinary pod on every node, and return them by node."""
    cluster.apply(workload_daemon_set(namespace, "pods", workload))
    return cluster.running_pods(namespace, count=2, app="pods")


def test_every_node_runs_pods_of_its_own_network_and_pods_of_its_own(
    cluster: ClusterLab, namespace: str, workload: str, pods: dict[str, Any]
) -> None:
    cluster.apply(workload_daemon_set(namespace, "hosts", workload, hostNetwork=True))
    hosts = cluster.running_pods(namespace, count=2, app="hosts")
    for number, node in enumerate(cluster.nodes, 1):
        assert hosts[node.name].status.pod_ip == node.address
        assert cluster.in_pod(hosts[node.name], "hostname").strip() == node.name
        assert json.loads(node.run("ip", "-j", "route", "show", "default"))[0]["dev"] == node.uplink
        assert cluster.in_pod(hosts[node.name], "ls", "/sys/class/net").split().count(node.uplink) == 1
        assert pods[node.name].status.pod_ip.startswith(f"10.244.{number}.")
        assert cluster.in_pod(pods[node.name], "ls", "/sys/class/net").split() == ["eth0", "lo"]


def test_pods_run_as_other_users_too(cluster: ClusterLab, namespace: str, workload: str) -> None:
    user = {"runAsNonRoot": True, "runAsUser": 65534, "runAsGroup": 65534}
    cluster.apply(workload_daemon_set(namespace, "users", workload, securityContext=user))
    for pod in cluster.running_pods(namespace, count=2, app="users").values():
        assert cluster.in_pod(pod, "id", "-u").strip() == "65534"


def test_pods_reach_each_other_across_nodes(cluster: ClusterLab, pods: dict[str, Any]) -> None:
    first, second = (pods[node.name] for node in cluster.nodes)
    cluster.in_pod(first, "ping", "-c", "1", "-w", "20", second.status.pod_ip)
    cluster.in_pod(second, "ping", "-c", "1", "-w", "20", first.status.pod_ip)


def test_what_a_pod_sends_leaves_by_its_nodes_uplink_under_the_pods_address(
    cluster: ClusterLab, pods: dict[str, Any]
) -> None:
    with cluster.arrivals() as outside:
        for node in cluster.nodes:
            pod = pods[node.name]
            with PostroutingMeter(node) as meter:
                cluster.in_pod(pod, "ping", "-c", str(PINGS), "-i", "0.01", "-w", "20", cluster.sink)
                sent = Meter(PINGS, PINGS * PING_IP_BYTES)
                assert meter.read() == {(node.uplink, pod.status.pod_ip, cluster.sink): sent}
                assert outside.meter(pod.status.pod_ip, cluster.sink) == sent


class PostroutingMeter:
    """Counts what leaves a node for addresses outside, by device and addresses, where slicebw classifies."""

    def __init__(self, node: NetworkNamespace) -> None:
        self._node = node

    def __enter__(self) -> "PostroutingMeter":
        self._node.run(
            "nft",
            "-f",
            "-",
            text="""
            table ip departures {
                set seen { type ifname . ipv4_addr . ipv4_addr; flags dynamic; counter; }
                chain count {
                    type filter hook postrouting priority mangle;
                    ip daddr 203.0.113.0/24 update @seen { oifname . ip saddr . ip daddr }
                }
            }""",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._node.run("nft", "delete", "table", "ip", "departures")

    def read(self) -> dict[tuple[str, str, str], Meter]:
        """Return what has left so far."""
        shown = json.loads(self._node.run("nft", "-j", "list", "set", "ip", "departures", "seen"))["nftables"]
        elements = [one["elem"] for item in shown for one in item.get("set", {}).get("elem", ())]
        return {tuple(e["val"]["concat"]): Meter(e["counter"]["packets"], e["counter"]["bytes"]) for e in elements}


@pytest.mark.parametrize("host_network", [False, True])
def test_pods_reach_the_api_server_with_their_service_account(
    cluster: ClusterLab, namespace: str, workload: str, host_network: bool
) -> None:
    for node in cluster.nodes:
        cluster.apply(workload_pod(namespace, f"on-{node.name}", node.name, workload, hostNetwork=host_network))
        pod = cluster.running_pods(namespace, count=1, app=f"on-{node.name}")[node.name]
        asked = cluster.in_pod(
            pod,
            "sh",
            "-c",
            """cd /var/run/secrets/kubernetes.io/serviceaccount
            curl --silent --show-error --fail --cacert ca.crt --header "Authorization: Bearer $(cat token)" \
              --request POST --header 'Content-Type: application/json' --data @- \
              https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/apis/authorization.k8s.io/v1/selfsubjectrulesreviews
            """,
            text=json.dumps({"kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}),
        )
        assert json.loads(asked)["status"]["resourceRules"]


def test_a_node_that_lost_its_power_boots_and_runs_its_pods_again(
    cluster: ClusterLab, namespace: str, workload: str
) -> None:
    cluster.apply(workload_daemon_set(namespace, "pods", workload))
    before = cluster.running_pods(namespace, count=2, app="pods")
    node = cluster.nodes[1]
    other_classes = cluster.nodes[0].network_state()

    cluster.power_off(node.name)
    cluster.start()

    assert cluster.node(node.name).pid != node.pid

    def restarted() -> bool:
        now = cluster.running_pods(namespace, count=2, app="pods")[node.name]
        same_pod = now.metadata.uid == before[node.name].metadata.uid
        return same_pod and bool(now.status.container_statuses[0].restart_count)

    eventually(restarted, within_s=120, every_s=0.2)
    after = cluster.running_pods(namespace, count=2, app="pods")
    for name in before:
        cluster.in_pod(after[name], "ping", "-c", "1", "-w", "20", cluster.sink)
    assert cluster.nodes[0].network_state() == other_classes


def test_an_outage_of_the_api_server_ends_where_it_began(cluster: ClusterLab, namespace: str, workload: str) -> None:
    cluster.apply(workload_daemon_set(namespace, "pods", workload))
    before = cluster.running_pods(namespace, count=2, app="pods")
    cluster.stop_api_server()
    cluster.start()
    after = cluster.running_pods(namespace, count=2, app="pods")
    assert {pod.metadata.uid for pod in after.values()} == {pod.metadata.uid for pod in before.values()}


def test_commands_run_on_the_node(cluster: ClusterLab) -> None:
    first, second = cluster.nodes
    assert first.execute("hostname") == first.name
    assert Node(cluster, second.name).execute("cat", "/proc/1/cmdline").split("\0")[1].endswith("hack/cluster-node")
    first.execute("mkdir", "/var/lib/some-state")
    assert (first.disk / "some-state").is_dir()
    assert not (second.disk / "some-state").exists()
    first.execute("rmdir", "/var/lib/some-state")
