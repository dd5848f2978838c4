"""Invalid specs on a real API server: refused by its schema, or reported while the last good limits stay in force."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes import client

from slicebw.api import kinds
from tests.api.cluster import Cluster, eventually, node_bandwidth, slice_bandwidth
from tests.support.bad_specs import NODES, SLICES, Bad, Catch
from tests.support.processes import Slicebw, agent
from tests.support.tc import classes
from tests.support.topology import Topology

M = 1_000_000
NAMESPACE = "bad-specs"
CAP = 900
"""Of the node, in Mbit/s; every slice has another maxRate below it, by which its class is known."""
SERVED = 500
DEFAULTS = Bad("defaults", Catch.CEL, {"standard": {"maxRate": "1M", "minRate": "2M"}}, "spec.standard.minRate", "")
NOBODY = Bad("nobody", Catch.CEL, {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In"}]}}, "", "")
"""Two that never were good: wrong limits, and a wrong selector."""


def rows(table: tuple[Bad, ...], *catches: Catch) -> list[Any]:
    return [pytest.param(bad, id=bad.name) for bad in table if bad.catch in catches]


LET_THROUGH = rows(SLICES, Catch.CEL, Catch.AGENT)
NODES_LET_THROUGH = rows(NODES, Catch.CEL, Catch.AGENT)


def without_indices(path: str) -> str:
    return path.replace("[0]", "").replace("[1]", "")


# --- specs that an API server refuses ---


def refusal(cluster: Cluster, obj: dict[str, Any]) -> str:
    """Create an object that the API server refuses. Returns its message."""
    with pytest.raises(client.ApiException) as caught:
        cluster.create(obj)
    assert caught.value.status == 422
    return str(json.loads(caught.value.body)["message"])


def assert_names_the_field(message: str, kind: kinds.Kind, bad: Bad) -> None:
    """Check that the message names the field, or the object around it if it is missing or a list's item."""
    parent, _, last = bad.field.rpartition(".")
    text = without_indices(message)
    assert without_indices(bad.field) in text or (without_indices(parent) in text and last in text), message
    assert kind.name in message


@pytest.mark.parametrize("bad", rows(SLICES, Catch.SCHEMA))
def test_a_server_of_any_version_refuses_and_names_the_field(cluster: Cluster, bad: Bad) -> None:
    obj = {**slice_bandwidth("default", "bad"), "spec": bad.spec}
    assert_names_the_field(refusal(cluster, obj), kinds.SLICE_BANDWIDTH, bad)


@pytest.mark.parametrize("bad", rows(NODES, Catch.SCHEMA))
def test_a_server_of_any_version_refuses_a_wrong_node_bandwidth(cluster: Cluster, bad: Bad) -> None:
    obj = {**node_bandwidth("bad"), "spec": bad.spec}
    assert_names_the_field(refusal(cluster, obj), kinds.NODE_BANDWIDTH, bad)


def kubectl(cluster: Cluster, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """kubectl, whether it succeeds or not."""
    command = [str(cluster.folder / "assets" / "kubectl"), "--kubeconfig", str(cluster.kubeconfig), *arguments]
    return subprocess.run(command, input=given, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("bad", rows(SLICES, Catch.PRUNED))
def test_kubectl_refuses_a_misspelled_field(cluster: Cluster, bad: Bad) -> None:
    # The API server publishes the schema of a new kind a little later.
    eventually(lambda: "minRate" in kubectl(cluster, "explain", "slbw.spec.standard").stdout, within_s=60)
    text = json.dumps({**slice_bandwidth("default", "bad"), "spec": bad.spec})
    done = kubectl(cluster, "create", "-f", "-", given=text)
    assert done.returncode != 0
    assert "unknown field" in done.stderr
    assert bad.field.rpartition(".")[2] in done.stderr


# --- specs that an older API server lets through ---


@dataclass
class Served:
    """A node with an agent and a slice for every row that is let through, after all of these specs became invalid."""

    cluster: Cluster
    before: dict[str, int]
    """Each slice's ceiling while its spec was valid, in Mbit/s."""
    slices: dict[str, Any]
    events: list[Any]
    after: list[int]
    """The ceilings in the kernel after all specs became invalid and a valid one was changed, in Mbit/s."""
    restarted: list[int]
    """The ceilings after a restart of the agent, in Mbit/s."""
    nodes: dict[str, tuple[str, str, tuple[int, int]]]
    """For each invalid NodeBandwidth: Ready's status and message, and the cap and line rate in force, in Mbit/s."""

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """Return a slice's condition at the end."""
        found: list[dict[str, Any]] = self.slices[name]["status"]["conditions"]
        return next(one for one in found if one["type"] == kind)


def knows_cel(cluster: Cluster) -> bool:
    """Tell whether the API server checks CEL rules: older ones silently drop them from the kinds."""
    crd = cluster.extensions.read_custom_resource_definition(kinds.SLICE_BANDWIDTH.crd)
    spec = crd.spec.versions[0].schema.open_apiv3_schema.properties["spec"]
    return bool(spec.properties["standard"].x_kubernetes_validations)


def good(name: str, rate: int) -> dict[str, Any]:
    return slice_bandwidth(
        NAMESPACE, name, podSelector={"matchLabels": {"slice": name}}, standard={"maxRate": f"{rate}M"}
    )


def spoil(cluster: Cluster, bad: Bad) -> None:
    """Replace a spec by an invalid one. It keeps its selector, unless that is the invalid part."""
    spec = {"podSelector": {"matchLabels": {"slice": bad.name}}, **bad.spec}
    if "podSelector" in bad.spec:
        spec["standard"] = cluster.read(kinds.SLICE_BANDWIDTH, bad.name, NAMESPACE)["spec"]["standard"]
    patch = [{"op": "replace", "path": "/spec", "value": spec}]
    # Not with kubectl, which reads the patch as YAML: keys have at most 1,024 characters there.
    cluster.custom.patch_namespaced_custom_object(
        kinds.GROUP,
        kinds.VERSION,
        NAMESPACE,
        kinds.SLICE_BANDWIDTH.plural,
        bad.name,
        patch,
        _content_type="application/json-patch+json",
    )


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run one agent and one controller for the whole table."""
    if knows_cel(cluster):
        pytest.skip("this API server checks the CEL rules: it lets none of these specs through")
    folder, node = tmp_path_factory.mktemp("bad-specs"), "bad-specs-node"
    bad = [row.values[0] for row in LET_THROUGH]
    before = {one.name: 10 + number for number, one in enumerate(bad)}
    kubeconfig = ("--kubeconfig", str(cluster.kubeconfig))
    cluster.core.create_namespace({"metadata": {"name": NAMESPACE}})
    cluster.core.create_node({"metadata": {"name": node}})
    cluster.create(node_bandwidth(node, lineRate="1G", cap=f"{CAP}M"))
    try:
        for number, name in enumerate([*before, "served", DEFAULTS.name, NOBODY.name]):
            cluster.create_pod(NAMESPACE, name, node, f"10.88.{number}.1", labels={"slice": name})
        for name, rate in (*before.items(), ("served", SERVED)):
            cluster.create(good(name, rate))
        for one in (DEFAULTS, NOBODY):
            spec = {"podSelector": {"matchLabels": {"slice": one.name}}, **one.spec}
            cluster.create({**slice_bandwidth(NAMESPACE, one.name), "spec": spec})
        with (
            Topology(pods=1) as net,
            agent(folder, node, net.node.path, *kubeconfig) as running,
            Slicebw(folder / "controller.log", "controller", *kubeconfig, "--status-interval", "1s"),
        ):

            def ceilings() -> list[int]:
                """Return the ceilings of all slices' standard classes, in Mbit/s."""
                shown = classes(net.node, net.uplink)
                leaves = {name: one for name, one in shown.items() if name.startswith("1:1") and len(name) == 6}
                return sorted(one.ceil_bps // M for name, one in leaves.items() if name not in ("1:1000", "1:1fff"))

            eventually(lambda: {*before.values(), SERVED, CAP} <= {*ceilings()}, within_s=20)
            for one in bad:
                spoil(cluster, one)
            # The last change: once it is in the kernel, all the others have been handled.
            cluster.merge(good("served", SERVED + 1))
            eventually(lambda: SERVED + 1 in ceilings(), within_s=20)
            after = ceilings()
            slices = eventually(lambda: refused_slices(cluster, len(bad) + 2), within_s=60)
            events = eventually(lambda: invalid_events(cluster, len(bad) + 2), within_s=60)
            running.stop()
            running.start()
            running.wait_ready()
            restarted = ceilings()

            def node_rates() -> tuple[int, int]:
                shown = classes(net.node, net.uplink)
                return shown["1:10"].ceil_bps // M, shown["1:1"].ceil_bps // M

            nodes = {}
            for one in (row.values[0] for row in NODES_LET_THROUGH):
                patch = [{"op": "replace", "path": "/spec", "value": {"lineRate": "1G", "cap": f"{CAP}M", **one.spec}}]
                cluster.kubectl("patch", "nbw", node, "--type=json", "-p", json.dumps(patch))
                status, message = eventually(lambda: ready(cluster, node), within_s=20)
                nodes[one.name] = status, message, node_rates()
            yield Served(cluster, before, slices, events, after, restarted, nodes)
    finally:
        cluster.delete(kinds.NODE_BANDWIDTH, node)
        cluster.core.delete_node(node)
        cluster.delete_namespace(NAMESPACE)


def refused_slices(cluster: Cluster, count: int) -> dict[str, Any]:
    """Return all SliceBandwidths, once ``count`` of them are not Accepted at their present generation."""
    listed = cluster.custom.list_namespaced_custom_object(
        kinds.GROUP, kinds.VERSION, NAMESPACE, kinds.SLICE_BANDWIDTH.plural
    )
    found = {one["metadata"]["name"]: one for one in listed["items"]}
    refused = [
        name
        for name, one in found.items()
        for condition in one.get("status", {}).get("conditions", ())
        if condition["type"] == "Accepted" and condition["status"] == "False"
        if condition["observedGeneration"] == one["metadata"]["generation"]
    ]
    return found if len(refused) == count else {}


def invalid_events(cluster: Cluster, count: int) -> list[Any]:
    found = [event for event in cluster.events(NAMESPACE) if event.reason == "InvalidSpec"]
    return found if len(found) >= count else []


def ready(cluster: Cluster, node: str) -> tuple[str, str] | None:
    """Return a node's condition Ready, once it is about the present generation."""
    obj = cluster.read(kinds.NODE_BANDWIDTH, node)
    for one in obj.get("status", {}).get("conditions", ()):
        if one["type"] == "Ready" and one["observedGeneration"] == obj["metadata"]["generation"]:
            return one["status"], one["message"]
    return None


@pytest.mark.parametrize("bad", NODES_LET_THROUGH)
def test_a_wrong_node_bandwidth_makes_the_node_not_ready_and_leaves_it_as_it_was(served: Served, bad: Bad) -> None:
    status, message, rates = served.nodes[bad.name]
    assert status == "False"
    assert message.startswith(f"{bad.field}: {bad.said}")
    assert rates == (CAP, 1000)


@pytest.mark.parametrize("bad", LET_THROUGH)
def test_an_invalid_spec_that_the_server_lets_through_keeps_the_last_good_limits_and_is_one_event(
    served: Served, bad: Bad
) -> None:
    accepted = served.condition(bad.name, "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert accepted["message"].startswith(f"{bad.field}: {bad.said}")
    assert served.condition(bad.name, "Enforced")["status"] != "True"

    (event,) = [one for one in served.events if one.involved_object.name == bad.name]
    assert (event.type, event.count) == ("Warning", 1)
    assert f"{bad.field}: {bad.said}"[:200] in event.message

    assert served.after.count(served.before[bad.name]) == 1
    assert served.restarted.count(served.before[bad.name]) == 1


def test_a_slice_that_was_never_valid_has_the_defaults_and_without_a_selector_no_pods(served: Served) -> None:
    # Each slice has a class, except the one without a valid selector; the one without valid limits has the node cap.
    assert served.after == sorted([*served.before.values(), SERVED + 1, CAP])
    assert served.condition(NOBODY.name, "Accepted")["status"] == "False"
    assert [one.involved_object.name for one in served.events].count(NOBODY.name) == 1
    assert served.condition("served", "Accepted")["status"] == "True"


def test_kubectl_describe_says_what_is_wrong_and_what_to_do(served: Served) -> None:
    described = served.cluster.kubectl("describe", "slbw", "period-zero", "-n", NAMESPACE)
    assert 'spec.period: "0s" is out of range: use 1s to 8784h (366 days)' in described
    assert "Warning  InvalidSpec" in described
