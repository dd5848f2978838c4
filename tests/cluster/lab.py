"""A whole cluster as the tests see it: hack/cluster runs it; nodes, pods and the world outside have handles."""

import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tests.api.cluster import HACK, ClusterClient, eventually
from tests.support import tc
from tests.support.topology import SINK, SINK_EXEMPT, UPLINK, Flow, NetworkNamespace, wait_until

START_S: Final = 180.0
"""Within which a pod runs, a node is ready, a workload is rolled out; on two busy cores."""

WORKLOAD: Final = "slicebw.io/test-workload:bookworm"
"""hack/cluster-images workload: iperf3, curl, ping, busybox."""
_SENDER: Final = """
import socket, sys, time
sink, count, payload = sys.argv[1], int(sys.argv[2]), bytes(int(sys.argv[3]))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    sender.sendto(payload, (sink, 9))
    count -= 1
    if count == 0:
        break
    time.sleep(0.0004)
"""
"""Sends datagrams to an address: so many (0: without end), of so many bytes; with 1,000 bytes below 20 Mbit/s."""

_ports = itertools.count(5201)


class NamedNode(Protocol):
    """A node as far as the API tells of it."""

    @property
    def name(self) -> str:
        """Of its Node."""


@dataclass(frozen=True, slots=True)
class PlainNode:
    """A node of which nothing else is known."""

    name: str


class AnyCluster(ClusterClient):
    """A cluster with two nodes or more, of which nothing is known but its API. Tests on it need no control of machines.

    Args:
        kubeconfig: of its administrator.
        kubectl: the program.
        image: slicebw's, for nodes to pull; None: the one that manifests/base names, which the nodes have.
        workload: what tests run as pods.
    """

    sink: Final = SINK
    """An address outside the cluster, reserved for documentation; at first not on any exempt list."""

    def __init__(self, kubeconfig: Path, kubectl: Path, image: str | None, workload: str) -> None:
        super().__init__(kubeconfig, kubectl)
        self.image = image
        self.workload = workload

    @property
    def nodes(self) -> Sequence[NamedNode]:
        """The nodes on which ordinary pods run, in order."""
        items = self.core.list_node().items
        return [PlainNode(item.metadata.name) for item in items if _takes_pods(item)]

    @property
    def server_minor(self) -> int:
        """The API server's minor version."""
        return int(re.sub(r"\D", "", json.loads(self.kubectl("get", "--raw", "/version"))["minor"]))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """kubectl apply objects of any kind."""
        self.kubectl_input(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}), "apply", "-f", "-")

    def kubectl_input(self, text: str, *arguments: str) -> str:
        """What kubectl prints, given something to read. Raises RuntimeError with its complaint."""
        done = subprocess.run(
            self.kubectl_command(*arguments), input=text, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def rollout(self, namespace: str, kind_name: str) -> None:
        """Wait until a DaemonSet or Deployment (``daemonset/agent``) runs everywhere as it was last applied."""
        self.kubectl_input("", "rollout", "status", "-n", namespace, kind_name, f"--timeout={START_S:.0f}s")

    def running_pods(self, namespace: str, count: int, **labels: str) -> dict[str, Any]:
        """Wait until that many pods with these labels are ready, and no others are there; the pods by their node."""
        selector = ",".join(f"{name}={value}" for name, value in labels.items())

        def look() -> dict[str, Any] | None:
            items = self.core.list_namespaced_pod(namespace, label_selector=selector).items
            ready = [pod for pod in items if _is_ready(pod)]
            return {pod.spec.node_name: pod for pod in ready} if len(ready) == len(items) == count else None

        try:
            return eventually(look, START_S, every_s=0.2)
        except AssertionError:
            print(self.kubectl_input("", "describe", "pods", "-n", namespace, "-l", selector)[-6000:])
            raise

    def pod_command(self, pod: Any, *command: str) -> list[str]:
        """A command line that runs a command in a pod's first container."""
        return self.kubectl_command("exec", "-i", "-n", pod.metadata.namespace, pod.metadata.name, "--", *command)

    def in_pod(self, pod: Any, *command: str, text: str = "") -> str:
        """What a command prints that runs in a pod. Raises RuntimeError with its complaint."""
        done = subprocess.run(
            self.pod_command(pod, *command), input=text, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"{pod.metadata.name}: {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout

    def send_datagrams(self, pod: Any, count: int, payload_bytes: int) -> None:
        """Send packets of 28 bytes of headers and a payload from a pod to :attr:`sink`."""
        self.in_pod(pod, "python3", "-c", _SENDER, self.sink, str(count), str(payload_bytes))

    @contextmanager
    def sending(self, pod: Any) -> Iterator[None]:
        """Send from a pod to :attr:`sink` meanwhile, more than its slice may."""
        command = self.pod_command(pod, "timeout", "120", "python3", "-c", _SENDER, self.sink, "0", "1000")
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as sender:
            try:
                yield
            finally:
                sender.kill()  # in the pod it goes on until the pod's end, or the two minutes'

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace and wait until its pods are gone; the rest follows, more slowly than tests need it."""
        options = ("-n", name, "--all", f"--timeout={START_S:.0f}s")
        self.kubectl_input("", "delete", "daemonsets,deployments,replicasets", *options, "--cascade=orphan")
        self.kubectl_input("", "delete", "pods", *options, "--grace-period=1")
        self.kubectl_input("", "delete", "namespace", name, "--ignore-not-found", "--wait=false")


class Node(NetworkNamespace):
    """A node. As a network namespace it is where its uplink, its qdiscs and its nftables are."""

    uplink: Final = UPLINK

    def __init__(self, lab: "ClusterLab", name: str) -> None:
        super().__init__(name, int(lab.hack("pid", name)))
        self.lab = lab
        shown = json.loads(self.run("ip", "-j", "-4", "address", "show", "dev", self.uplink))
        self.address: str = shown[0]["addr_info"][0]["local"]

    @property
    def disk(self) -> Path:
        """Where the node's /var/lib is on this machine."""
        return self.lab.home / "nodes" / self.name / "var-lib"

    def execute(self, *command: str) -> str:
        """What a command prints that runs on the node as root, among its processes and on its disk."""
        return self.lab.hack("exec", self.name, *command)

    def classes(self) -> dict[str, tc.ShownClass]:
        """The HTB classes of its uplink by class id, as tc shows them."""
        return tc.classes(self, self.uplink)

    def network_state(self) -> dict[str, str]:
        """Its uplink's qdiscs and classes, and all its nftables, as tc and nft show them, counters left out."""
        return {
            "qdiscs": self.run("tc", "qdisc", "show", "dev", self.uplink),
            "classes": self.run("tc", "class", "show", "dev", self.uplink),
            "nft": self.run("nft", "--stateless", "list", "ruleset"),
        }


class ClusterLab(AnyCluster):
    """The cluster of hack/cluster, whose nodes and outside can be looked into and switched off.

    Args:
        home: hack/cluster's DIR.
        nodes: how many nodes there are to be.
    """

    sink_exempt: Final = SINK_EXEMPT
    """Another address outside, for exempt lists."""

    def __init__(self, home: Path, nodes: int = 2) -> None:
        self.home = home
        self._nodes = nodes
        self.start()
        plane = home / "control-plane"
        super().__init__(plane / "kubeconfig", plane / "assets" / "kubectl", None, WORKLOAD)
        self.outside = NetworkNamespace("wan", int(self.hack("pid", "wan")))
        """The network outside."""

    def hack(self, command: str, *arguments: str, seconds: float = 600) -> str:
        """Run hack/cluster; what it printed. Raises RuntimeError with its complaint."""
        line = [str(HACK / "cluster"), command, "--dir", str(self.home), *arguments]
        done = subprocess.run(line, check=False, capture_output=True, text=True, timeout=seconds, env=os.environ)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self) -> None:
        """Start what does not run, nodes and control plane, and wait until all are ready."""
        self.hack("up", "--nodes", str(self._nodes), seconds=1200)

    def stop(self) -> None:
        """Stop and forget everything."""
        self.hack("down")

    def stop_api_server(self) -> None:
        """As in an outage; etcd keeps everything."""
        command = [
            str(HACK / "control-plane"),
            "stop",
            "--only",
            "apiserver",
            "--dir",
            str(self.home / "control-plane"),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def load(self, *images: Path) -> None:
        """Put images on every node."""
        self.hack("load", *map(str, images))

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes as they are now: one that was started again is another network namespace."""
        return [Node(self, f"node-{number}") for number in range(1, self._nodes + 1)]

    def node(self, name: str) -> Node:
        """The node of that name, as it is now."""
        return Node(self, name)

    def power_off(self, node: str) -> None:
        """As when the power fails: all its processes and its network are gone at once; :meth:`start` boots it."""
        self.hack("down", "--only", node)

    def send_datagrams(self, pod: Any, count: int, payload_bytes: int) -> None:
        """As pings, which have headers of the same size."""
        self.in_pod(pod, "ping", "-q", "-c", str(count), "-i", "0.01", "-s", str(payload_bytes), self.sink)

    @contextmanager
    def sending(self, pod: Any) -> Iterator[None]:
        """With iperf3: as much as TCP can."""
        flow = self.traffic(pod, self.sink, 60)
        try:
            yield
        finally:
            flow.stop()

    @contextmanager
    def arrivals(self) -> Iterator[NetworkNamespace]:
        """Count for a while what arrives outside; ask :meth:`~NetworkNamespace.meter` by pod's address and a sink's."""
        self.outside.start_meter()
        try:
            yield self.outside
        finally:
            self.outside.stop_meter()

    def traffic(self, pod: Any, to: str, seconds: int, *options: str) -> Flow:
        """Send from a pod to an address outside the cluster with iperf3, in the background: as much as TCP can."""
        port = next(_ports)
        server = subprocess.Popen(
            self.outside.command("iperf3", "--server", "--one-off", "--bind", to, "--port", str(port)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self.outside.listens(port), "iperf3 listens outside")
        line = ("iperf3", "--json", "--client", to, "--port", str(port), "--time", str(seconds), *options)
        client = subprocess.Popen(
            self.pod_command(pod, *line),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        return Flow(client, server, seconds)


def _takes_pods(node: Any) -> bool:
    taints = [taint.effect for taint in node.spec.taints or ()]
    return not node.spec.unschedulable and not {"NoSchedule", "NoExecute"} & set(taints)


def _is_ready(pod: Any) -> bool:
    conditions = pod.status.conditions or []
    return pod.metadata.deletion_timestamp is None and any(c.type == "Ready" and c.status == "True" for c in conditions)


def workload_daemon_set(namespace: str, name: str, image: str, **pod_spec: object) -> dict[str, Any]:
    """A DaemonSet of pods that wait for commands; ``hostNetwork=True`` and the like go into their spec."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _idle(image) | pod_spec},
        },
    }


def workload_pod(namespace: str, name: str, node: str, image: str, **pod_spec: object) -> dict[str, Any]:
    """A pod on a node that waits for commands."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": _idle(image) | {"nodeName": node} | pod_spec,
    }


def _idle(image: str) -> dict[str, Any]:
    # Ends at once on SIGTERM, which an init that sleeps ignores.
    container = {"name": "main", "image": image, "command": ["sh", "-c", "trap exit TERM; sleep infinity & wait"]}
    return {"containers": [container | {"imagePullPolicy": "IfNotPresent"}], "terminationGracePeriodSeconds": 5}
