"""The agent's feed on a real API server: it knows within a second what is applied there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slicebw.api import kinds
from slicebw.core.desired import Mode
from tests.api.cluster import Cluster, eventually, node_bandwidth, slice_bandwidth, throughout
from tests.api.conftest import Watcher
from tests.api.proxy import FaultProxy

StartFeed = Callable[[Path, str], Watcher]

SOON_S = 1.0


@pytest.fixture
def watcher(cluster: Cluster, start_feed: StartFeed, node: str) -> Watcher:
    made = start_feed(cluster.kubeconfig, node)
    made.synced()
    return made


def test_a_slice_is_known_within_a_second_of_its_creation(cluster: Cluster, watcher: Watcher, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen", standard={"maxRate": "10M"}))
    spec = eventually(lambda: watcher.slices(namespace).get("codeen"), SOON_S)
    assert spec.limits is not None
    assert spec.limits.standard.max_rate_bps == 10_000_000


def test_a_changed_limit_is_known_within_a_second(cluster: Cluster, watcher: Watcher, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen", period="1h"))
    eventually(lambda: watcher.slices(namespace), SOON_S)
    cluster.merge(slice_bandwidth(namespace, "codeen", period="2h"))

    def period() -> int | None:
        limits = watcher.slices(namespace)["codeen"].limits
        return limits.period_s if limits else None

    eventually(lambda: period() == 7200, SOON_S)
    assert watcher.slices(namespace)["codeen"].generation == 2


def test_a_deleted_slice_is_gone_within_a_second(cluster: Cluster, watcher: Watcher, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    cluster.create(slice_bandwidth(namespace, "other"))
    eventually(lambda: len(watcher.slices(namespace)) == 2, SOON_S)
    cluster.delete(kinds.SLICE_BANDWIDTH, "codeen", namespace)
    eventually(lambda: set(watcher.slices(namespace)) == {"other"}, SOON_S)


def test_a_slice_that_is_deleted_and_made_again_at_once_is_the_new_one(
    cluster: Cluster, watcher: Watcher, namespace: str
) -> None:
    for number in range(10):
        cluster.create(slice_bandwidth(namespace, "codeen", share=number + 1))
        cluster.delete(kinds.SLICE_BANDWIDTH, "codeen", namespace)
    last = cluster.create(slice_bandwidth(namespace, "codeen", share=99))

    def is_last() -> bool:
        spec = watcher.slices(namespace).get("codeen")
        return spec is not None and spec.uid == last["metadata"]["uid"]

    eventually(is_last, 2 * SOON_S)
    throughout(is_last, 0.5)


def test_a_change_of_a_status_does_not_wake_the_agent(cluster: Cluster, watcher: Watcher, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    eventually(lambda: watcher.slices(namespace), SOON_S)
    wakes = watcher.wakes
    patch = {"status": {"nodes": 7}}
    cluster.custom.patch_namespaced_custom_object_status(
        kinds.GROUP, kinds.VERSION, namespace, "slicebandwidths", "codeen", patch
    )
    cluster.create(slice_bandwidth(namespace, "later"))
    eventually(lambda: "later" in watcher.slices(namespace), SOON_S)
    assert watcher.wakes == wakes + 1


def test_an_invalid_spec_arrives_with_its_errors(cluster: Cluster, watcher: Watcher, namespace: str) -> None:
    # The schema accepts it. A CEL rule forbids it, but this API server knows no CEL.
    cluster.create(slice_bandwidth(namespace, "codeen", standard={"minRate": "2M", "maxRate": "1M"}))
    spec = eventually(lambda: watcher.slices(namespace).get("codeen"), SOON_S)
    assert spec.limits is None
    assert any("minRate" in error for error in spec.errors)


def test_the_nodes_own_settings_are_laid_over_the_default_ones(cluster: Cluster, watcher: Watcher, node: str) -> None:
    cluster.create(node_bandwidth("default", cap="100M", mode="Monitor"))
    try:
        eventually(lambda: watcher.feed.desired_state().node.cap_bps == 100_000_000, SOON_S)
        cluster.create(node_bandwidth(node, cap="50M"))
        cluster.create(node_bandwidth("somebody-elses", cap="1M"))
        eventually(lambda: watcher.feed.desired_state().node.cap_bps == 50_000_000, SOON_S)
        assert watcher.feed.desired_state().node.mode is Mode.MONITOR
        cluster.delete(kinds.NODE_BANDWIDTH, node)
        eventually(lambda: watcher.feed.desired_state().node.cap_bps == 100_000_000, SOON_S)
    finally:
        for name in ("default", "somebody-elses"):
            if cluster.read(kinds.NODE_BANDWIDTH, name):
                cluster.delete(kinds.NODE_BANDWIDTH, name)


def test_a_pods_address_is_known_within_a_second(cluster: Cluster, watcher: Watcher, namespace: str, node: str) -> None:
    cluster.create_pod(namespace, "web", node, "10.1.0.7", "fd00::7", labels={"app": "web"})
    eventually(lambda: watcher.pods().get("web") == ("10.1.0.7", "fd00::7"), SOON_S)
    assert watcher.feed.desired_state().pods[0].labels == {"app": "web"}
    cluster.delete_pod(namespace, "web")
    eventually(lambda: not watcher.pods(), SOON_S)


def test_pods_of_other_nodes_are_not_even_sent_to_us(
    cluster: Cluster, watcher: Watcher, namespace: str, node: str
) -> None:
    cluster.create_pod(namespace, "theirs", "another-node", "10.1.0.8")
    cluster.create_pod(namespace, "ours", node, "10.1.0.9")
    eventually(lambda: "ours" in watcher.pods(), SOON_S)
    assert set(watcher.pods()) == {"ours"}


def test_nothing_is_synced_before_everything_was_listed(
    cluster: Cluster, proxy: FaultProxy, start_feed: StartFeed, node: str, namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    proxy.fail(403, [".*/pods"])
    watcher = start_feed(proxy.kubeconfig, node)
    eventually(lambda: watcher.slices(namespace))
    throughout(lambda: not watcher.feed.desired_state().synced, 1.0)
    proxy.mend()
    watcher.synced()


def test_a_feed_at_rest_asks_nothing_of_the_api_server(proxy: FaultProxy, start_feed: StartFeed, node: str) -> None:
    watcher = start_feed(proxy.kubeconfig, node)
    watcher.synced()
    watches = ("slicebandwidths", "nodebandwidths", "pods")
    eventually(lambda: sum("watch=true" in request.query for request in proxy.requests) == 4)
    assert all(request.path.endswith(watches) for request in proxy.requests if "watch=true" in request.query)
    asked = len(proxy.requests)
    throughout(lambda: len(proxy.requests) == asked, 2.0)
    lists = [request for request in proxy.requests if request.is_list and request.path.endswith(watches)]
    assert len(lists) == 4, "one list for each watch"
    assert all("resourceVersion=0" in request.query for request in lists), "from the API server's memory, not etcd's"
    assert not any("customresourcedefinitions" in request.path for request in proxy.requests)
