"""The roles of manifests/base allow all that the agent and the controller do, and no more."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config

from slicebw.agent.report_queue import ReportQueue
from slicebw.api import kinds
from slicebw.controller.status_loop import StatusLoop
from slicebw.core.desired import SliceKey
from slicebw.kube.agent_sink import ApiSink
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.client import ApiRefused
from slicebw.kube.controller_feed import ApiClusterFeed
from slicebw.kube.controller_writer import ApiClusterWriter
from slicebw.kube.resources import BANDWIDTH_USAGES, SLICE_BANDWIDTHS
from tests.api.cluster import REPOSITORY, Cluster, eventually, node_bandwidth, slice_bandwidth
from tests.api.conftest import Watcher
from tests.support.reports import capped_event, node_report, usage_report

Connect = Callable[[Path], ApiThread]
Account = Callable[..., Path]
Person = Callable[..., Path]
BASE = REPOSITORY / "manifests" / "base"
NAMESPACE = "slicebw-system"


@pytest.fixture
def roles(cluster: Cluster) -> Iterator[None]:
    """Create accounts and roles as `kubectl apply -k manifests/base` does."""
    files = ("namespace.yaml", "agent-rbac.yaml", "controller-rbac.yaml", "people-rbac.yaml")
    arguments = [part for name in files for part in ("-f", str(BASE / name))]
    cluster.kubectl("apply", *arguments)
    yield
    cluster.kubectl("delete", "--wait=false", *arguments[2:])
    cluster.delete_namespace(NAMESPACE)


@pytest.fixture
def account(cluster: Cluster, roles: None, tmp_path: Path) -> Account:
    """Make a kubeconfig for a service account."""

    def make(name: str, namespace: str = NAMESPACE) -> Path:
        request = {"spec": {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 3600}}
        answer = cluster.core.create_namespaced_service_account_token(name, namespace, request)
        document = yaml.safe_load(cluster.kubeconfig.read_text())
        document["users"][0]["user"] = {"token": answer.status.token}
        path = tmp_path / f"{namespace}.{name}"
        path.write_text(yaml.safe_dump(document))
        return path

    return make


@pytest.fixture
def person(cluster: Cluster, account: Account) -> Iterator[Person]:
    """Create a service account with these cluster roles in a namespace. Returns its kubeconfig."""
    everywhere: list[str] = []

    def make(namespace: str, *cluster_roles: str, in_all_namespaces: bool = False) -> Path:
        cluster.core.create_namespaced_service_account(namespace, {"metadata": {"name": "person"}})
        for role in cluster_roles:
            binding = [f"{namespace}-{role}", f"--clusterrole={role}", f"--serviceaccount={namespace}:person"]
            if in_all_namespaces:
                cluster.kubectl("create", "clusterrolebinding", *binding)
                everywhere.append(binding[0])
            else:
                cluster.kubectl("create", "rolebinding", *binding, "--namespace", namespace)
        return account("person", namespace)

    yield make
    for name in everywhere:
        cluster.kubectl("delete", "clusterrolebinding", name)


def can(cluster: Cluster, who: Path, verb: str, resource: str, namespace: str = "") -> bool:
    """Ask ``kubectl auth can-i``. The namespace "" means all of them."""
    place = ["--namespace", namespace] if namespace else ["--all-namespaces"]
    kubectl = [str(cluster.folder / "assets" / "kubectl"), "--kubeconfig", str(who)]
    kind, _, subresource = resource.partition("/")
    words = [*kubectl, "auth", "can-i", verb, kind, *place]
    if subresource:
        words += ["--subresource", subresource]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() in {"yes", "no"}, done.stderr
    return done.stdout.strip() == "yes"


def forbidden(request: Callable[..., object], *arguments: object) -> bool:
    """Tell whether the API server forbids a request."""
    try:
        request(*arguments)
    except client.ApiException as error:
        return int(error.status) == 403
    return False


def test_an_agent_may_do_all_it_does(
    cluster: Cluster,
    account: Account,
    start_feed: Callable[[Path, str], Watcher],
    namespace: str,
    node: str,
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    watcher = start_feed(account("slicebw-agent"), node)
    watcher.synced()
    cluster.delete(kinds.SLICE_BANDWIDTH, "codeen", namespace)
    eventually(lambda: not watcher.slices(namespace))

    reporter = ReportQueue(ApiSink(watcher.api, node))
    reporter.start()
    note = capped_event(namespace)
    reporter.report([usage_report(namespace), usage_report(namespace, "over")], [], [note], node_report())
    eventually(lambda: reporter.waiting == 0)
    reporter.report([], [SliceKey(namespace, "over")], [], None)
    eventually(lambda: reporter.waiting == 0)
    assert reporter.previous_reports() is not None
    # So few usages are listed from etcd at once. Many would be read one by one (kube/own_usages.py).
    path = BANDWIDTH_USAGES.path(namespace, f"codeen.{node}")
    assert watcher.api.call(watcher.api.client.get(path), 10.0)["sliceName"] == "codeen"
    listed = watcher.api.client.page_from_cache(BANDWIDTH_USAGES, 0, labelSelector=f"{kinds.LABEL_NODE}={node}")
    assert watcher.api.call(listed, 10.0) is not None
    assert reporter.acknowledged() == {note.id}
    obj = cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)
    assert obj["metadata"]["ownerReferences"][0]["name"] == node
    assert cluster.read(kinds.BANDWIDTH_USAGE, f"over.{node}", namespace) is None
    assert cluster.read(kinds.NODE_BANDWIDTH, node)["status"]["slices"] == 2
    cluster.delete(kinds.NODE_BANDWIDTH, node)
    assert watcher.api.health.failures == {}, "nothing was refused, nor asked in vain"


def test_an_agent_may_not_change_limits(cluster: Cluster, account: Account, connect: Connect, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    api = connect(account("slicebw-agent"))
    changed = slice_bandwidth(namespace, "codeen", standard={"maxRate": "10G"})
    for subresource in (None, "status"):
        with pytest.raises(ApiRefused, match="403 Forbidden"):
            api.call(api.client.apply(SLICE_BANDWIDTHS, changed, kinds.AGENT_MANAGER, subresource), 10.0)


def test_the_controller_may_do_all_it_does_and_not_change_limits(
    cluster: Cluster, account: Account, connect: Connect, namespace: str, node: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    agent = ReportQueue(ApiSink(connect(cluster.kubeconfig), node))
    agent.start()
    agent.report([usage_report(namespace, period_end_s=2_000_000_000)], [], [], None)
    eventually(lambda: agent.waiting == 0)

    api = connect(account("slicebw-controller"))
    feed = ApiClusterFeed(api, lambda: loop.wake())  # noqa: PLW0108 - the loop is made below
    loop = StatusLoop(feed, ApiClusterWriter(api, feed), clear_interval_s=0.2)
    thread = threading.Thread(target=loop.run)
    feed.start()
    thread.start()
    try:
        eventually(lambda: cluster.read(kinds.SLICE_BANDWIDTH, "codeen", namespace).get("status", {}).get("nodes") == 1)
        cluster.core.delete_node(node)
        eventually(lambda: cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace) is None)
        changed = slice_bandwidth(namespace, "codeen", standard={"maxRate": "10G"})
        with pytest.raises(ApiRefused, match="403 Forbidden"):
            api.call(api.client.apply(SLICE_BANDWIDTHS, changed, kinds.CONTROLLER_MANAGER), 10.0)
        assert api.health.failures == {}
    finally:
        loop.stop()
        thread.join()
        feed.stop()


def test_no_agent_and_no_controller_reads_secrets_or_writes_limits(
    cluster: Cluster, account: Account, namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    cluster.core.create_namespaced_secret(namespace, {"metadata": {"name": "key"}})
    for name in ("slicebw-agent", "slicebw-controller"):
        who = account(name)
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
            assert not can(cluster, who, verb, "secrets", namespace)
            assert can(cluster, who, verb, "slicebandwidths.slicebw.io", namespace) == (verb in {"list", "watch"})
        for verb, resource in (("create", "pods"), ("create", "pods/exec"), ("create", "serviceaccounts/token")):
            assert not can(cluster, who, verb, resource, namespace)
        api = config.new_client_from_config(str(who))
        core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        place = (kinds.GROUP, kinds.VERSION, namespace, "slicebandwidths")
        assert forbidden(core.read_namespaced_secret, "key", namespace)
        assert forbidden(core.list_secret_for_all_namespaces)
        assert forbidden(custom.patch_namespaced_custom_object, *place, "codeen", {"spec": {"share": 9}})
        assert forbidden(custom.delete_namespaced_custom_object, *place, "codeen")
    assert cluster.read(kinds.SLICE_BANDWIDTH, "codeen", namespace)["spec"]["share"] == 1


def test_an_owner_sees_its_own_slice_and_its_usage_and_events_and_changes_none_of_them(
    cluster: Cluster,
    connect: Connect,
    person: Person,
    new_namespace: Callable[[], str],
    node: str,
) -> None:
    mine, other = new_namespace(), new_namespace()
    reporter = ReportQueue(ApiSink(connect(cluster.kubeconfig), node))
    reporter.start()
    for namespace in (mine, other):
        cluster.create(slice_bandwidth(namespace, "codeen"))
        reporter.report([usage_report(namespace)], [], [capped_event(namespace)], None)
    eventually(lambda: reporter.waiting == 0)

    # The controller manager, which is not here, would make `view` of these: slicebw's role, and its usual rules.
    owner = person(mine, "slicebw-view", "system:aggregate-to-view")
    for resource in ("slicebandwidths.slicebw.io", "bandwidthusages.slicebw.io", "events"):
        for verb in ("get", "list", "watch"):
            assert can(cluster, owner, verb, resource, mine)
            assert not can(cluster, owner, verb, resource, other)
            assert not can(cluster, owner, verb, resource)
        for verb in ("create", "update", "patch", "delete"):
            assert not can(cluster, owner, verb, resource, mine)
    assert not can(cluster, owner, "patch", "slicebandwidths.slicebw.io/status", mine)

    api = config.new_client_from_config(str(owner))
    core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
    usage = f"codeen.{node}"
    for plural, name in (("slicebandwidths", "codeen"), ("bandwidthusages", usage)):
        there, elsewhere = ((kinds.GROUP, kinds.VERSION, namespace, plural) for namespace in (mine, other))
        assert custom.get_namespaced_custom_object(*there, name)["metadata"]["namespace"] == mine
        assert [one["metadata"]["name"] for one in custom.list_namespaced_custom_object(*there)["items"]] == [name]
        assert forbidden(custom.get_namespaced_custom_object, *elsewhere, name)
        assert forbidden(custom.list_namespaced_custom_object, *elsewhere)
        assert forbidden(custom.list_cluster_custom_object, kinds.GROUP, kinds.VERSION, plural)
        assert forbidden(custom.patch_namespaced_custom_object, *there, name, {"metadata": {"labels": {"a": "b"}}})
        assert forbidden(custom.delete_namespaced_custom_object, *there, name)
    assert [one.reason for one in core.list_namespaced_event(mine).items] == ["BandwidthCapped"]
    assert forbidden(core.list_namespaced_event, other)
    assert forbidden(core.delete_collection_namespaced_event, mine)


def test_view_includes_the_role_for_owners_and_edit_and_admin_include_no_more(cluster: Cluster, roles: None) -> None:
    """Check by labels which role is part of which. The controller manager, which is not here, would combine them."""
    rbac = client.RbacAuthorizationV1Api(cluster.core.api_client)
    ours = [role for role in rbac.list_cluster_role().items if role.metadata.name.startswith("slicebw-")]
    assert len(ours) == 4
    for taker, taken in (("view", {"slicebw-view"}), ("edit", set()), ("admin", set())):
        selectors = rbac.read_cluster_role(taker).aggregation_rule.cluster_role_selectors
        found = {
            role.metadata.name
            for role in ours
            for selector in selectors
            if selector.match_labels.items() <= (role.metadata.labels or {}).items()
        }
        assert found == taken


def test_an_operator_sets_limits_and_modes_and_forges_no_usage(
    cluster: Cluster, person: Person, namespace: str, node: str
) -> None:
    operator = person(namespace, "slicebw-operator", in_all_namespaces=True)
    custom = client.CustomObjectsApi(config.new_client_from_config(str(operator)))
    place = (kinds.GROUP, kinds.VERSION, namespace, "slicebandwidths")
    custom.create_namespaced_custom_object(*place, slice_bandwidth(namespace, "codeen"))
    custom.patch_namespaced_custom_object(*place, "codeen", {"spec": {"share": 9}})
    custom.delete_namespaced_custom_object(*place, "codeen")
    nodes = (kinds.GROUP, kinds.VERSION, "nodebandwidths")
    custom.create_cluster_custom_object(*nodes, node_bandwidth(node, mode="Monitor"))
    custom.delete_cluster_custom_object(*nodes, node)
    assert custom.list_cluster_custom_object(kinds.GROUP, kinds.VERSION, "bandwidthusages")["items"] is not None
    for verb in ("create", "update", "patch", "delete"):
        assert not can(cluster, operator, verb, "bandwidthusages.slicebw.io")
    for resource in ("slicebandwidths.slicebw.io/status", "nodebandwidths.slicebw.io/status"):
        assert not can(cluster, operator, "patch", resource)
    assert not can(cluster, operator, "get", "secrets")
