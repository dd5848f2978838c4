"""The feed without a working API server or without the kinds: it warns once, goes on, and recovers."""

import getpass
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from slicebw.api import kinds
from slicebw.core.desired import SliceKey
from tests.api.cluster import Cluster, eventually, node_bandwidth, slice_bandwidth, throughout
from tests.api.conftest import Watcher
from tests.api.proxy import FaultProxy

StartFeed = Callable[[Path, str], Watcher]

RECOVERY_S = 40.0
"""The longest pause between two tries is 30 s, give or take half."""


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_api_server_that_is_away_at_the_start_is_waited_for(
    cluster: Cluster,
    proxy: FaultProxy,
    start_feed: StartFeed,
    node: str,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    proxy.cut()
    watcher = start_feed(proxy.kubeconfig, node)
    eventually(lambda: watcher.api.health.unreachable_s > 1.0)
    assert not watcher.feed.desired_state().synced
    proxy.mend()
    watcher.synced(RECOVERY_S)
    assert "codeen" in watcher.slices(namespace)
    address = yaml.safe_load(proxy.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    assert warnings_in(caplog) == [
        f"cannot reach {address}: connection refused; is the API server up? Trying again until it works."
    ]
    assert watcher.api.health.unreachable_s == 0.0


def test_a_user_without_a_name_as_in_a_container_can_watch(
    cluster: Cluster, start_feed: StartFeed, node: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr(getpass, "getuser", no_name)
    watcher = start_feed(cluster.kubeconfig, node)
    watcher.synced()
    cluster.create(slice_bandwidth(namespace, "codeen"))
    eventually(lambda: "codeen" in watcher.slices(namespace))
    assert watcher.api.health.failures == {}


def test_during_an_outage_everything_known_stays_known_and_afterwards_changes_arrive(
    outage: Cluster, start_feed: StartFeed, node: str, namespace: str
) -> None:
    outage.create(slice_bandwidth(namespace, "codeen"))
    watcher = start_feed(outage.kubeconfig, node)
    watcher.synced()
    outage.stop_api_server()
    eventually(lambda: watcher.api.health.unreachable_s > 0.0)
    before = watcher.feed.desired_state()
    throughout(lambda: watcher.feed.desired_state() == before, 2.0)
    assert before.synced
    outage.start()
    outage.create(slice_bandwidth(namespace, "later"))
    eventually(lambda: set(watcher.slices(namespace)) == {"codeen", "later"}, RECOVERY_S)
    outage.delete(kinds.SLICE_BANDWIDTH, "codeen", namespace)
    eventually(lambda: set(watcher.slices(namespace)) == {"later"}, RECOVERY_S)


def test_an_object_deleted_during_an_outage_is_forgotten(
    outage: Cluster, proxy: FaultProxy, start_feed: StartFeed, node: str, namespace: str
) -> None:
    outage.create(slice_bandwidth(namespace, "stays"))
    outage.create(slice_bandwidth(namespace, "goes"))
    outage.create_pod(namespace, "web", node, "10.1.0.7")
    watcher = start_feed(proxy.kubeconfig, node)
    watcher.synced()
    eventually(lambda: watcher.pods().get("web") == ("10.1.0.7",))
    proxy.cut()
    outage.delete(kinds.SLICE_BANDWIDTH, "goes", namespace)
    outage.delete_pod(namespace, "web")
    # A restarted API server has no events from before its start, so the watch cannot resume.
    outage.stop_api_server()
    outage.start()
    assert set(watcher.slices(namespace)) == {"stays", "goes"}
    proxy.mend()
    eventually(lambda: set(watcher.slices(namespace)) == {"stays"}, RECOVERY_S)
    eventually(lambda: not watcher.pods(), RECOVERY_S)


def test_the_last_object_of_a_kind_deleted_during_an_outage_is_forgotten_too(
    outage: Cluster, proxy: FaultProxy, start_feed: StartFeed, node: str
) -> None:
    # kopf passes on nothing of an empty list.
    outage.create(node_bandwidth(node, cap="50M"))
    watcher = start_feed(proxy.kubeconfig, node)
    watcher.synced()
    assert watcher.feed.desired_state().node.cap_bps == 50_000_000
    proxy.cut()
    outage.delete(kinds.NODE_BANDWIDTH, node)
    outage.stop_api_server()
    outage.start()
    proxy.mend()
    eventually(lambda: watcher.feed.desired_state().node.cap_bps is None, RECOVERY_S)


def test_kinds_that_are_missing_at_the_start_are_named_and_found_when_they_come(
    outage: Cluster,
    start_feed: StartFeed,
    node: str,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage.remove_crds()
    outage.create_pod(namespace, "web", node, "10.1.0.7")
    watcher = start_feed(outage.kubeconfig, node)
    eventually(lambda: watcher.pods().get("web"))
    eventually(lambda: len(warnings_in(caplog)) == 2)
    assert sorted(warnings_in(caplog)) == [
        "CustomResourceDefinition nodebandwidths.slicebw.io is not installed: kubectl apply -f crds/",
        "CustomResourceDefinition slicebandwidths.slicebw.io is not installed: kubectl apply -f crds/",
    ]
    assert not watcher.feed.desired_state().synced
    outage.install_crds("slicebandwidths")
    outage.create(slice_bandwidth(namespace, "codeen"))
    eventually(lambda: "codeen" in watcher.slices(namespace), RECOVERY_S)
    assert not watcher.feed.desired_state().synced
    outage.install_crds("nodebandwidths", "bandwidthusages")
    watcher.synced(RECOVERY_S)


def test_kinds_that_are_removed_leave_everything_in_force_until_they_are_back(
    outage: Cluster,
    start_feed: StartFeed,
    node: str,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in range(20):
        outage.create(slice_bandwidth(namespace, f"slice-{number}"))
    outage.create(node_bandwidth(node, cap="50M"))
    watcher = start_feed(outage.kubeconfig, node)
    watcher.synced()
    assert len(watcher.slices(namespace)) == 20

    outage.remove_crds()
    eventually(lambda: any("is being removed" in text or "not installed" in text for text in warnings_in(caplog)))

    def in_force() -> bool:
        return len(watcher.slices(namespace)) == 20 and watcher.feed.desired_state().node.cap_bps == 50_000_000

    throughout(in_force, 3.0)
    # Pods are not one of slicebw's kinds: they still come and go.
    outage.create_pod(namespace, "web", node, "10.1.0.7")
    eventually(lambda: watcher.pods().get("web") == ("10.1.0.7",))

    outage.install_crds()
    outage.create(slice_bandwidth(namespace, "slice-7"))
    eventually(lambda: set(watcher.slices(namespace)) == {"slice-7"}, RECOVERY_S)
    eventually(lambda: watcher.feed.desired_state().node.cap_bps is None, RECOVERY_S)


def test_a_slice_that_is_deleted_while_its_kind_exists_is_removed(
    cluster: Cluster, start_feed: StartFeed, node: str, namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    watcher = start_feed(cluster.kubeconfig, node)
    watcher.synced()
    cluster.delete(kinds.SLICE_BANDWIDTH, "codeen", namespace)
    eventually(lambda: not watcher.slices(namespace))


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_the_feed_recovers_after_every_request_was_refused(
    status: int, cluster: Cluster, proxy: FaultProxy, start_feed: StartFeed, node: str, namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    watcher = start_feed(proxy.kubeconfig, node)
    watcher.synced()
    asked = len(proxy.requests)
    proxy.fail(status)
    eventually(lambda: len(proxy.requests) > asked + 4, 20.0)
    assert "codeen" in watcher.slices(namespace)
    in_trouble = len(proxy.requests)
    throughout(lambda: len(proxy.requests) < in_trouble + 40, 2.0)
    proxy.mend()
    cluster.create(slice_bandwidth(namespace, "later"))
    eventually(lambda: "later" in watcher.slices(namespace), RECOVERY_S)


def test_credentials_that_expire_are_read_again(
    cluster: Cluster, start_feed: StartFeed, node: str, namespace: str, tmp_path: Path
) -> None:
    good = cluster.kubeconfig.read_text()
    document = yaml.safe_load(good)
    document["users"][0]["user"]["token"] = "expired"  # noqa: S105 - the tokens in this file open nothing
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(document))
    watcher = start_feed(kubeconfig, node)
    eventually(lambda: watcher.api.health.failures.get("unreachable"))
    kubeconfig.write_text(good)
    watcher.synced(RECOVERY_S)


def test_a_connection_that_falls_silent_is_given_up(
    cluster: Cluster, proxy: FaultProxy, start_feed: StartFeed, node: str, namespace: str
) -> None:
    # At the start the first list gets no answer.
    proxy.freeze()
    watcher = start_feed(proxy.kubeconfig, node)
    eventually(lambda: proxy.requests)
    cluster.create(slice_bandwidth(namespace, "codeen"))
    proxy.mend()
    watcher.synced(100.0)
    assert SliceKey(namespace, "codeen") in {one.key for one in watcher.feed.desired_state().slices}
