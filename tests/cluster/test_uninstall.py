"""slicebw is installed and uninstalled as docs/install.md says, in several orders: what is left of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client, config

from slicebw.api import kinds
from tests.api.cluster import eventually, node_bandwidth, slice_bandwidth
from tests.cluster.install import AGENTS, NAMESPACE, apply, clean_up, install, installed, remove
from tests.cluster.lab import START_S, AnyCluster, ClusterLab


@pytest.fixture
def taken_off(any_cluster: AnyCluster, slicebw_image: str) -> Iterator[None]:
    """Afterwards slicebw is taken off, however far a test has come."""
    yield
    if installed(any_cluster):
        clean_up(any_cluster)
        remove(any_cluster, "uninstall")


@pytest.fixture
def bare(cluster: ClusterLab, slicebw_image: str) -> Iterator[list[dict[str, str]]]:
    """Record the nodes' networks without slicebw, and uninstall it afterwards, however far a test has come."""
    states = network_states(cluster)
    for state in states:
        assert "htb" not in state["qdiscs"], "slicebw is on the cluster already"
        assert "slicebw" not in state["nft"], "slicebw is on the cluster already"
    yield states
    if network_states(cluster) != states:
        clean_up(cluster)
        remove(cluster, "uninstall")


def network_states(cluster: ClusterLab) -> list[dict[str, str]]:
    """Return the network state of all nodes."""
    return [node.network_state() for node in cluster.nodes]


def kept(cluster: ClusterLab) -> list[set[str]]:
    """Return the files in the nodes' state folders."""
    return [{path.name for path in (node.disk / "slicebw").iterdir()} for node in cluster.nodes]


@pytest.mark.needs_hack_cluster("looks into the nodes' kernels and disks")
def test_uninstalled_it_leaves_the_nodes_as_they_were_and_nothing_in_the_cluster(
    cluster: ClusterLab, bare: list[dict[str, str]], new_namespace: Callable[[], str]
) -> None:
    install(cluster)
    namespace = new_namespace()
    cluster.create(slice_bandwidth(namespace, "codeen"))
    own = cluster.nodes[0].name  # one node has its own settings, by which it enforces limits
    cluster.apply(node_bandwidth(own, mode="Enforce"))
    for before, during in zip(bare, network_states(cluster), strict=True):
        assert "htb" in during["qdiscs"]
        assert "table inet slicebw" in during["nft"]
        assert "table inet slicebw" not in before["nft"]

    clean_up(cluster)
    assert network_states(cluster) == bare
    assert all("ledger" in files for files in kept(cluster))
    remove(cluster, "uninstall")
    assert network_states(cluster) == bare
    assert not any(cluster.has_crd(kind.plural) for kind in kinds.ALL)
    assert NAMESPACE not in {one.metadata.name for one in cluster.core.list_namespace().items}
    left = cluster.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    assert "slicebw" not in left


@pytest.mark.needs_hack_cluster("looks into the nodes' kernels and disks")
def test_who_has_deleted_everything_first_can_still_clean_the_nodes_and_forget_all_usage(
    cluster: ClusterLab, bare: list[dict[str, str]]
) -> None:
    install(cluster)
    remove(cluster, "base")
    for before, left in zip(bare, network_states(cluster), strict=True):
        assert left != before, "deleting the agents leaves the kernel as it is"

    apply(cluster, "uninstall")
    cluster.kubectl("set", "env", "-n", NAMESPACE, AGENTS, "SLICEBW_FORGET_USAGE=true")
    cluster.rollout(NAMESPACE, AGENTS)
    assert network_states(cluster) == bare
    assert kept(cluster) == [{"lock"}] * len(cluster.nodes)
    remove(cluster, "uninstall")
    assert network_states(cluster) == bare


def test_view_takes_up_what_an_owner_may_see(
    any_cluster: AnyCluster, taken_off: None, new_namespace: Callable[[], str], tmp_path: Path
) -> None:
    install(any_cluster)
    mine, other = new_namespace(), new_namespace()
    any_cluster.core.create_namespaced_service_account(mine, {"metadata": {"name": "owner"}})
    any_cluster.kubectl(
        "create", "rolebinding", "-n", mine, "see", "--clusterrole=view", f"--serviceaccount={mine}:owner"
    )

    for namespace in (mine, other):
        any_cluster.create(slice_bandwidth(namespace, "codeen"))

    request = {"spec": {"audiences": [], "expirationSeconds": 3600}}
    token = any_cluster.core.create_namespaced_service_account_token("owner", mine, request).status.token
    document = json.loads(any_cluster.kubectl("config", "view", "--minify", "--flatten", "--raw", "-o", "json"))
    document["users"][0]["user"] = {"token": token}
    kubeconfig = tmp_path / "owner"
    kubeconfig.write_text(json.dumps(document))
    api = config.new_client_from_config(str(kubeconfig))
    owner, core = client.CustomObjectsApi(api), client.CoreV1Api(api)
    there, elsewhere = ((kinds.GROUP, kinds.VERSION, namespace, "slicebandwidths") for namespace in (mine, other))

    def seen() -> bool:
        try:
            return bool(owner.get_namespaced_custom_object(*there, "codeen"))
        except client.ApiException as error:
            if error.status != 403:
                raise
            return False

    eventually(seen, START_S)  # the controller manager combines the roles a little later
    usages = ((kinds.GROUP, kinds.VERSION, namespace, "bandwidthusages") for namespace in (mine, other))
    owner.list_namespaced_custom_object(*next(usages))
    core.list_namespaced_event(mine)
    with pytest.raises(client.ApiException, match="403"):
        owner.list_namespaced_custom_object(*next(usages))
    with pytest.raises(client.ApiException, match="403"):
        core.list_namespaced_event(other)
    with pytest.raises(client.ApiException, match="403"):
        owner.get_namespaced_custom_object(*elsewhere, "codeen")
    with pytest.raises(client.ApiException, match="403"):
        owner.patch_namespaced_custom_object(*there, "codeen", {"spec": {"share": 9}})
