"""The condition Enforced: True once every node that runs the slice's pods enforces this generation."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slicebw.api import kinds
from tests.api.cluster import Cluster, eventually, node_bandwidth, slice_bandwidth
from tests.support.processes import Slicebw, agent
from tests.support.tc import classes
from tests.support.topology import Topology

M = 1_000_000


@dataclass
class Lab:
    """Two nodes with a pod of one slice each, a controller, and an agent on the first node only."""

    cluster: Cluster
    namespace: str
    nodes: list[str]
    nets: list[Topology]
    agents: list[Slicebw]
    controller: Slicebw

    def wait(self, seconds: int) -> bool:
        """Run ``kubectl wait`` as a script would. Returns whether it succeeded."""
        kubectl = [str(self.cluster.folder / "assets" / "kubectl"), "--kubeconfig", str(self.cluster.kubeconfig)]
        command = [*kubectl, "wait", "--for=condition=Enforced", "slbw/slice", "-n", self.namespace]
        done = subprocess.run([*command, f"--timeout={seconds}s"], check=False, capture_output=True, timeout=90)
        return done.returncode == 0

    def enforced(self) -> tuple[str, str, str]:
        """Return the condition's status, reason and message."""
        status = (self.cluster.read(kinds.SLICE_BANDWIDTH, "slice", self.namespace) or {}).get("status", {})
        found = next((one for one in status.get("conditions", ()) if one["type"] == "Enforced"), None)
        return (found["status"], found["reason"], found["message"]) if found else ("", "", "")

    def patch(self, spec: dict[str, object]) -> None:
        """Change the slice with ``kubectl patch``."""
        self.cluster.kubectl(
            "patch", "slbw", "slice", "-n", self.namespace, "--type=merge", "-p", json.dumps({"spec": spec})
        )

    def ceilings(self) -> list[set[int]]:
        """Return for each node the ceilings of the slice's standard class in the kernel, in Mbit/s."""
        shown = [classes(net.node, net.uplink) for net in self.nets]
        return [{one.ceil_bps // M for name, one in found.items() if name == "1:1001"} for found in shown]


@pytest.fixture
def lab(
    cluster: Cluster, namespace: str, node: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Iterator[Lab]:
    nodes = [node, f"{node}-other"]
    kubeconfig = ("--kubeconfig", str(cluster.kubeconfig))
    cluster.core.create_node({"metadata": {"name": nodes[1]}})
    with Topology(pods=1) as first, Topology(pods=1) as second:
        nets = [first, second]
        agents = []
        for number, (name, net) in enumerate(zip(nodes, nets, strict=True)):
            cluster.create(node_bandwidth(name, lineRate="1G"))
            cluster.create_pod(namespace, f"pod-{number}", name, net.pod(0).address)
            agents.append(agent(tmp_path_factory.mktemp(name), name, net.node.path, *kubeconfig))
        controller = Slicebw(tmp_path / "controller.log", "controller", *kubeconfig, "--status-interval", "1s")
        try:
            with controller, agents[0]:
                yield Lab(cluster, namespace, nodes, nets, agents, controller)
        finally:
            agents[1].stop()
            for name in nodes:
                cluster.delete(kinds.NODE_BANDWIDTH, name)
            cluster.core.delete_node(nodes[1])


def test_kubectl_wait_waits_for_every_node_that_runs_pods_of_the_slice(lab: Lab) -> None:
    lab.cluster.create(slice_bandwidth(lab.namespace, "slice", standard={"maxRate": "10M"}))
    message = (
        f"1 of 2 nodes enforce generation 1; {lab.nodes[1]} runs 1 pod of this slice and has not reported it: "
        "is the agent running there?"
    )
    eventually(lambda: lab.enforced() == ("False", "NodesSilent", message), within_s=20)
    assert not lab.wait(1)

    lab.agents[1].start()
    assert lab.wait(60)
    assert lab.ceilings() == [{10}, {10}]
    assert lab.enforced() == ("True", "OnAllNodes", "2 nodes enforce generation 1")

    # Right after a change, kubectl wait waits until the change is in the kernels of both nodes.
    lab.patch({"standard": {"maxRate": "20M"}})
    assert lab.wait(60)
    assert lab.ceilings() == [{20}, {20}]


def test_a_node_whose_agent_is_down_does_not_run_what_was_applied_since(lab: Lab) -> None:
    lab.cluster.create(slice_bandwidth(lab.namespace, "slice", standard={"maxRate": "10M"}))
    lab.agents[1].start()
    assert lab.wait(60)
    lab.agents[1].kill()
    lab.patch({"standard": {"maxRate": "20M"}})
    message = f"1 of 2 nodes enforce generation 2; an earlier one is in force on {lab.nodes[1]}"
    eventually(lambda: lab.enforced() == ("False", "NodesBehind", message), within_s=20)
    assert lab.ceilings() == [{20}, {10}]

    # Without a pod the node no longer counts, though its agent cannot report that.
    lab.cluster.delete_pod(lab.namespace, "pod-1")
    assert lab.wait(60)
    assert lab.enforced()[2] == "1 node enforces generation 2"


@pytest.mark.parametrize("mode", ["Monitor", "Disabled"])
def test_a_node_that_limits_nothing_does_not_enforce(lab: Lab, mode: str) -> None:
    lab.cluster.create(slice_bandwidth(lab.namespace, "slice", standard={"maxRate": "10M"}))
    lab.agents[1].start()
    assert lab.wait(60)
    lab.cluster.kubectl("patch", "nbw", lab.nodes[1], "--type=merge", "-p", json.dumps({"spec": {"mode": mode}}))
    message = f"1 of 2 nodes enforce generation 1; not enforced on {lab.nodes[1]} (mode {mode}: nothing is limited)"
    eventually(lambda: lab.enforced() == ("False", "NotLimited", message), within_s=20)
    lab.cluster.kubectl("patch", "nbw", lab.nodes[1], "--type=merge", "-p", json.dumps({"spec": {"mode": None}}))
    assert lab.wait(60)
    assert lab.ceilings() == [{10}, {10}]


def test_kubectl_describe_shows_the_conditions_in_plain_words(lab: Lab) -> None:
    lab.cluster.create(slice_bandwidth(lab.namespace, "slice", standard={"maxRate": "10M"}))
    lab.agents[1].start()
    assert lab.wait(60)
    described = lab.cluster.kubectl("describe", "slbw", "slice", "-n", lab.namespace)
    for line in ("2 nodes enforce generation 1", "OnAllNodes", "the spec is valid", "no node has capped this slice"):
        assert line in described
    assert "Managed Fields" not in described or "slicebw-controller" in described
    page = lab.controller.page("/metrics")
    for name, value in (("slices", 1), ("usages", 2)):
        shown = next(line for line in page.splitlines() if line.startswith(f"slicebw_controller_{name} "))
        assert float(shown.split()[1]) >= value
