"""The roles of manifests/base are enough for what the agent and the controller do, and for no more than that."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from slicebw.api import kinds
from slicebw.controller.loop import StatusLoop
from slicebw.core.model import SliceKey
from slicebw.kube.background import ApiThread
from slicebw.kube.client import ApiRefused
from slicebw.kube.cluster import ApiClusterFeed, ApiClusterWriter
from slicebw.kube.report import ApiReporter
from slicebw.kube.resources import SLICE_BANDWIDTHS
from tests.api.cluster import REPOSITORY, Cluster, eventually, slice_bandwidth
from tests.api.conftest import Watcher
from tests.support.reports import capped_note, node_report, usage_report

Connect = Callable[[Path], ApiThread]
BASE = REPOSITORY / "manifests" / "base"
NAMESPACE = "slicebw-system"


@pytest.fixture
def roles(cluster: Cluster) -> Iterator[None]:
    """Accounts and roles as `kubectl apply -k manifests/base` makes them."""
    files = ("namespace.yaml", "agent-rbac.yaml", "controller-rbac.yaml")
    arguments = [part for name in files for part in ("-f", str(BASE / name))]
    cluster.kubectl("apply", *arguments)
    yield
    cluster.kubectl("delete", "--wait=false", *arguments[2:])
    cluster.delete_namespace(NAMESPACE)


@pytest.fixture
def account(cluster: Cluster, roles: None, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a kubeconfig for a service account."""

    def make(name: str) -> Path:
        request = {"spec": {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 3600}}
        answer = cluster.core.create_namespaced_service_account_token(name, NAMESPACE, request)
        document = yaml.safe_load(cluster.kubeconfig.read_text())
        document["users"][0]["user"] = {"token": answer.status.token}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document))
        return path

    return make


def test_an_agent_may_do_all_it_does(
    cluster: Cluster,
    account: Callable[[str], Path],
    start_feed: Callable[[Path, str], Watcher],
    namespace: str,
    node: str,
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    watcher = start_feed(account("slicebw-agent"), node)
    watcher.synced()
    cluster.delete(kinds.SLICE_BANDWIDTH, "codeen", namespace)
    eventually(lambda: not watcher.slices(namespace))

    reporter = ApiReporter(watcher.api, node)
    reporter.start()
    note = capped_note(namespace)
    reporter.report([usage_report(namespace), usage_report(namespace, "over")], [], [note], node_report())
    eventually(lambda: reporter.waiting == 0)
    reporter.report([], [SliceKey(namespace, "over")], [], None)
    eventually(lambda: reporter.waiting == 0)
    assert reporter.reported() is not None
    assert reporter.delivered() == {note.id}
    obj = cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)
    assert obj["metadata"]["ownerReferences"][0]["name"] == node
    assert cluster.read(kinds.BANDWIDTH_USAGE, f"over.{node}", namespace) is None
    assert cluster.read(kinds.NODE_BANDWIDTH, node)["status"]["slices"] == 2
    cluster.delete(kinds.NODE_BANDWIDTH, node)
    assert watcher.api.health.failures == {}, "nothing was refused, nor asked in vain"


def test_an_agent_may_not_change_limits(
    cluster: Cluster, account: Callable[[str], Path], connect: Connect, namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    api = connect(account("slicebw-agent"))
    changed = slice_bandwidth(namespace, "codeen", standard={"maxRate": "10G"})
    for subresource in (None, "status"):
        with pytest.raises(ApiRefused, match="403 Forbidden"):
            api.call(api.client.apply(SLICE_BANDWIDTHS, changed, kinds.AGENT_MANAGER, subresource), 10.0)


def test_the_controller_may_do_all_it_does_and_not_change_limits(
    cluster: Cluster, account: Callable[[str], Path], connect: Connect, namespace: str, node: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    agent = ApiReporter(connect(cluster.kubeconfig), node)
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
