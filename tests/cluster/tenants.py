"""A slice with a pod on each node: what its pods send, and what the nodes and the API report about it."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from slicebw.agent.checkpoint import FileStore
from slicebw.api import kinds
from slicebw.core.dataplane import leaf
from slicebw.core.desired import SliceKey, TrafficClass
from slicebw.core.ledger import SliceAccount
from tests.api.cluster import eventually, slice_bandwidth
from tests.cluster.install import agent_pods
from tests.cluster.lab import START_S, AnyCluster, ClusterLab, NamedNode, Node, workload_daemon_set
from tests.support.tc import ShownClass

PASS_S: Final = 15.0
"""The longest until a node's ledger accounts for bytes that were sent: a pass is due at least every 10 s."""
REPORT_S: Final = 30.0
"""The longest until the API shows them: a report interval, the controller's interval of 10 s, and busy cores."""


class Tenant:
    """One slice, ``codeen`` in a namespace of its own, with a pod on every node.

    Args:
        cluster: where.
        namespace: its own, empty.
        spec: of its SliceBandwidth.
    """

    def __init__(self, cluster: AnyCluster, namespace: str, **spec: object) -> None:
        """Create the slice and its pods, and wait until every node enforces the limits."""
        self._cluster, self.namespace = cluster, namespace
        self.key = SliceKey(namespace, "codeen")
        pods = workload_daemon_set(namespace, "pods", cluster.workload)
        cluster.apply(slice_bandwidth(namespace, "codeen", **spec), pods)
        self.pods: dict[str, Any] = cluster.running_pods(namespace, count=len(cluster.nodes), app="pods")
        eventually(lambda: self.usages().keys() == self.pods.keys(), START_S, every_s=0.2)
        self.wait_for("Enforced")

    def wait_for(self, condition: str) -> None:
        """Run ``kubectl wait --for=condition=...`` until the condition is True."""
        wait = ("wait", f"--for=condition={condition}", "--timeout=60s", "-n", self.namespace, "slbw/codeen")
        self._cluster.kubectl_input("", *wait)

    def ceil_bps(self, node: NamedNode) -> int:
        """The ceiling of the slice's standard class in a node's kernel, as the node's agent shows it."""
        (pod,) = (pod for pod in agent_pods(self._cluster) if pod.spec.node_name == node.name)
        shown = json.loads(self._cluster.in_pod(pod, "slicebw", "node", "show", "-o", "json"))["classes"]
        wanted = (str(self.key), "standard")
        (row,) = (one for one in shown if (one["slice"], one["traffic_class"]) == wanted)
        return int(row["kernel_ceil_bps"])

    def usages(self) -> dict[str, Any]:
        """The slice's BandwidthUsages by node."""
        listed = self._cluster.custom.list_namespaced_custom_object(
            kinds.GROUP, kinds.VERSION, self.namespace, kinds.BANDWIDTH_USAGE.plural
        )
        return {usage["metadata"]["labels"][kinds.LABEL_NODE]: usage for usage in listed["items"]}

    def status(self) -> dict[str, Any]:
        """The SliceBandwidth's status; empty before the controller has written one."""
        found: dict[str, Any] = self._cluster.read(kinds.SLICE_BANDWIDTH, "codeen", self.namespace).get("status", {})
        return found


class LabTenant(Tenant):
    """A slice on hack/cluster: what its pods send, what arrives, and what the nodes' ledgers and kernels say of it."""

    def __init__(self, cluster: ClusterLab, namespace: str, **spec: object) -> None:
        self.cluster = cluster
        super().__init__(cluster, namespace, **spec)

    @contextmanager
    def pinging(self, rate_pps: int = 100, payload_bytes: int = 1000) -> Iterator[None]:
        """Send from all pods within the context, also without the API server. Every byte can be counted exactly."""
        for pod in self.pods.values():
            ping = f"ping -q -i {1 / rate_pps:g} -s {payload_bytes} -w 300 {self.cluster.sink}"
            self.cluster.in_pod(pod, "sh", "-c", f"setsid {ping} >/ping.out 2>&1 </dev/null &")
        try:
            yield
        finally:
            for node in self.cluster.nodes:
                # On the node and not through the API server, which may be stopped. Only one test at a time sends.
                node.execute("sh", "-c", "pkill -INT -x ping || true")

    def pinged(self, node: Node) -> int:
        """Return how many packets the pod on a node has sent, from the summary of its stopped ping."""
        summary = eventually(
            lambda: re.search(
                r"(\d+) packets transmitted", self.cluster.in_pod(self.pods[node.name], "cat", "/ping.out")
            )
        )
        return int(summary[1])

    def account(self, node: Node) -> SliceAccount | None:
        """Return the slice's account in the node's ledger."""
        ledger, _ = FileStore(node.disk / "slicebw").peek_ledger()
        return None if ledger is None else ledger.slices.get(self.key)

    def used_bytes(self, node: Node) -> int:
        """Return the standard bytes in the node's ledger; 0 without an account."""
        account = self.account(node)
        return 0 if account is None else account.standard.used_bytes

    def shown_class(self, node: Node) -> ShownClass:
        """Return the slice's standard class in the node's kernel."""
        account = self.account(node)
        assert account is not None
        return node.classes()[f"1:{leaf(TrafficClass.STANDARD, account.slice_id):x}"]

    def ceil_bps(self, node: NamedNode) -> int:
        """The same as tc shows it: an eye that shares no code with the product's."""
        return self.shown_class(self.cluster.node(node.name)).ceil_bps

    def arrived_bytes(self, node: Node) -> int:
        """Return the bytes that arrived outside from the slice's pod on a node, within :meth:`ClusterLab.arrivals`."""
        return self.cluster.outside.meter(self.pods[node.name].status.pod_ip, self.cluster.sink).wire_bytes

    def arrived_packets(self, node: Node) -> int:
        """Return the packets that arrived outside from the slice's pod on a node."""
        return self.cluster.outside.meter(self.pods[node.name].status.pod_ip, self.cluster.sink).packets

    def until_accounts_agree(self, nodes: Sequence[Node]) -> None:
        """Wait until each node has accounted for exactly what has arrived from its pod."""
        for node in nodes:
            eventually(lambda node=node: self.used_bytes(node) == self.arrived_bytes(node), PASS_S, every_s=0.2)  # type: ignore[misc]
