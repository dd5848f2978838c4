"""The controller on a real API server: the nodes' reports become each SliceBandwidth's status."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slicebw.api import bandwidth_usage, kinds
from slicebw.api.slice_bandwidth import SliceStatus
from slicebw.controller.status_loop import StatusLoop
from slicebw.core.desired import SliceKey
from slicebw.core.membership import OLDER_HAS_IT, PodProblem
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.controller_feed import ApiClusterFeed
from slicebw.kube.controller_writer import ApiClusterWriter
from tests.api.cluster import Cluster, eventually, slice_bandwidth, throughout
from tests.api.proxy import FaultProxy
from tests.support.reports import DAY_S, GB, class_usage, usage_report

Connect = Callable[[Path], ApiThread]
Start = Callable[..., "Controller"]


class Controller:
    """A running controller, built as the command line builds it."""

    def __init__(self, api: ApiThread, **options: Any) -> None:
        self.api = api
        self.feed = ApiClusterFeed(api, lambda: self.loop.wake())  # noqa: PLW0108 - the loop is made below
        self.loop = StatusLoop(self.feed, ApiClusterWriter(api, self.feed), **options)
        self._thread = threading.Thread(target=self.loop.run)
        self.feed.start()
        self._thread.start()

    def stop(self) -> None:
        self.loop.stop()
        self._thread.join()
        self.feed.stop()


@pytest.fixture
def start(cluster: Cluster, connect: Connect) -> Iterator[Start]:
    """Start controllers, and stop them afterwards."""
    made: list[Controller] = []

    def make(kubeconfig: Path | None = None, **options: Any) -> Controller:
        made.append(Controller(connect(kubeconfig or cluster.kubeconfig), **options))
        return made[-1]

    yield make
    for controller in made:
        controller.stop()


def put_pod(cluster: Cluster, namespace: str, node: str, name: str = "codeen") -> None:
    """Create a pod of a slice that runs on a node."""
    address = f"10.99.{next(_addresses)}.1"
    cluster.create_pod(namespace, f"{name}-{node}", node, address, labels={"slice": name})


_addresses = itertools.count(1)


def put_usage(
    cluster: Cluster,
    namespace: str,
    node: str,
    *,
    owned: bool = False,
    now_s: int | None = None,
    pod: bool = True,
    **fields: Any,
) -> None:
    """Create or update a BandwidthUsage as a node's agent writes it, and create a pod for it."""
    if pod and not any(one.spec.node_name == node for one in cluster.core.list_namespaced_pod(namespace).items):
        put_pod(cluster, namespace, node)
    now_s = int(time.time()) if now_s is None else now_s
    report = usage_report(namespace, **{"period_start_s": now_s - 100, "period_end_s": now_s + DAY_S, **fields})
    uid = cluster.core.read_node(node).metadata.uid if owned else None
    obj = bandwidth_usage.to_object(report, node, uid, now_s)
    if cluster.read(kinds.BANDWIDTH_USAGE, obj["metadata"]["name"], namespace):
        cluster.merge(obj)
    else:
        cluster.create(obj)


def status_of(cluster: Cluster, namespace: str, name: str = "codeen") -> dict[str, Any]:
    status = cluster.read(kinds.SLICE_BANDWIDTH, name, namespace).get("status", {})
    assert isinstance(status, dict)
    return status


def condition(status: dict[str, Any], name: str) -> tuple[str, str, str]:
    found = next((one for one in status.get("conditions", ()) if one["type"] == name), None)
    return (found["status"], found["reason"], found["message"]) if found else ("", "", "")


def test_usages_of_all_nodes_become_the_status_that_kubectl_get_shows(
    cluster: Cluster, start: Start, namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1", standard=class_usage(2 * GB))
    put_usage(cluster, namespace, "n2", standard=class_usage(9 * GB, capped=True, rate_bps=512_000))
    start()
    eventually(lambda: status_of(cluster, namespace).get("nodes") == 2)
    lines = cluster.kubectl("get", "slbw", "-n", namespace).splitlines()
    columns, row = (line.split() for line in lines)
    shown = dict(zip(columns, row, strict=True))
    assert {**shown, "PERIOD-START": "-", "AGE": "-"} == {
        "NAME": "codeen",
        "NODES": "2",
        "CAPPED": "1",
        "USED": "11G",
        "PEAK%": "90",
        "RATE": "512k",
        "PERIOD-START": "-",
        "AGE": "-",
    }
    status = status_of(cluster, namespace)
    assert status["standard"]["bytesUsed"] == 11 * GB
    assert status["observedGeneration"] == 1
    assert condition(status, "Accepted") == ("True", "Valid", "the spec is valid")
    assert condition(status, "Enforced") == ("True", "OnAllNodes", "2 nodes enforce generation 1")
    assert condition(status, "Capped") == ("True", "OverThreshold", "standard traffic is capped on n2")


def test_a_cap_that_is_set_or_lifted_shows_at_once(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1")
    start(status_interval_s=3600.0)
    eventually(lambda: condition(status_of(cluster, namespace), "Capped")[0] == "False")
    put_usage(cluster, namespace, "n1", standard=class_usage(9 * GB, capped=True, rate_bps=512_000))
    eventually(lambda: condition(status_of(cluster, namespace), "Capped")[0] == "True", 3.0)
    put_usage(cluster, namespace, "n1", standard=class_usage(9 * GB))
    eventually(lambda: condition(status_of(cluster, namespace), "Capped")[0] == "False", 3.0)
    assert "cappedRate" not in status_of(cluster, namespace)["standard"]


def test_figures_alone_wait_for_the_interval(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1", standard=class_usage(GB))
    start(status_interval_s=3.0)
    eventually(lambda: status_of(cluster, namespace).get("nodes") == 1)
    began = time.monotonic()
    put_usage(cluster, namespace, "n1", standard=class_usage(2 * GB))
    throughout(lambda: status_of(cluster, namespace)["standard"]["bytesUsed"] == GB, 1.5)
    eventually(lambda: status_of(cluster, namespace)["standard"]["bytesUsed"] == 2 * GB, 10.0)
    assert time.monotonic() - began > 1.5


def test_a_changed_spec_is_enforced_only_when_every_node_says_so(
    cluster: Cluster, start: Start, namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1")
    put_usage(cluster, namespace, "n2")
    start()
    eventually(lambda: condition(status_of(cluster, namespace), "Enforced")[0] == "True")
    cluster.merge(slice_bandwidth(namespace, "codeen", share=2))
    eventually(lambda: condition(status_of(cluster, namespace), "Enforced")[:2] == ("False", "NodesBehind"))
    put_usage(cluster, namespace, "n2", generation=2)
    message = "1 of 2 nodes enforce generation 2; an earlier one is in force on n1"
    eventually(lambda: condition(status_of(cluster, namespace), "Enforced")[2] == message, 15.0)
    put_usage(cluster, namespace, "n1", generation=2)
    eventually(lambda: condition(status_of(cluster, namespace), "Enforced")[0] == "True")
    assert status_of(cluster, namespace)["observedGeneration"] == 2


def test_an_invalid_spec_is_named_with_its_field(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen", standard={"minRate": "2M", "maxRate": "1M"}))
    start()
    eventually(lambda: condition(status_of(cluster, namespace), "Accepted")[:2] == ("False", "InvalidSpec"))
    assert "spec.standard.minRate" in condition(status_of(cluster, namespace), "Accepted")[2]


def test_a_pod_that_an_older_slice_has_is_named_with_the_winner(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    problem = PodProblem(f"{namespace}/web", f"{OLDER_HAS_IT}{namespace}/older")
    put_usage(cluster, namespace, "n1", slice_id=0, problems=(problem,))
    start()
    eventually(lambda: condition(status_of(cluster, namespace), "Accepted")[:2] == ("False", "PodsTaken"))
    message = condition(status_of(cluster, namespace), "Accepted")[2]
    assert f"pod {namespace}/web: it belongs to the older SliceBandwidth {namespace}/older" in message


def test_a_slice_without_pods_says_so(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    start()
    eventually(lambda: condition(status_of(cluster, namespace), "Enforced")[:2] == ("Unknown", "NoPods"))
    assert status_of(cluster, namespace)["nodes"] == 0


def test_a_usage_that_is_deleted_no_longer_counts(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1", standard=class_usage(GB))
    put_usage(cluster, namespace, "n2", standard=class_usage(GB))
    start()
    eventually(lambda: status_of(cluster, namespace).get("nodes") == 2)
    cluster.delete(kinds.BANDWIDTH_USAGE, "codeen.n2", namespace)
    eventually(lambda: status_of(cluster, namespace).get("nodes") == 1)
    assert status_of(cluster, namespace)["standard"]["bytesUsed"] == GB


def test_a_node_that_vanishes_takes_its_usages_along(cluster: Cluster, start: Start, namespace: str, node: str) -> None:
    put_usage(cluster, namespace, node, owned=True)
    put_usage(cluster, namespace, "never-was-a-node")
    start(clear_interval_s=0.2)
    throughout(lambda: cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace), 1.5)
    cluster.core.delete_node(node)
    eventually(lambda: cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace) is None)
    assert cluster.read(kinds.BANDWIDTH_USAGE, "codeen.never-was-a-node", namespace)


def test_a_node_that_vanished_while_no_controller_ran_takes_its_usages_along(
    cluster: Cluster, start: Start, namespace: str, node: str
) -> None:
    put_usage(cluster, namespace, node, owned=True)
    cluster.core.delete_node(node)
    start(clear_interval_s=0.2)
    eventually(lambda: cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace) is None)


def test_no_usage_is_removed_while_nodes_cannot_be_listed(
    cluster: Cluster, proxy: FaultProxy, start: Start, namespace: str, node: str
) -> None:
    put_usage(cluster, namespace, node, owned=True)
    proxy.fail(403, [".*/nodes"])
    controller = start(proxy.kubeconfig, clear_interval_s=0.2)
    eventually(controller.feed.synced)
    throughout(lambda: cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace), 2.0)


def test_a_usage_whose_period_is_long_over_is_removed(cluster: Cluster, start: Start, namespace: str) -> None:
    long_ago_s = int(time.time()) - 3 * DAY_S
    put_usage(cluster, namespace, "n1", now_s=long_ago_s)
    put_usage(cluster, namespace, "n2")
    start(clear_interval_s=0.2)
    eventually(lambda: cluster.read(kinds.BANDWIDTH_USAGE, "codeen.n1", namespace) is None)
    assert cluster.read(kinds.BANDWIDTH_USAGE, "codeen.n2", namespace)


def test_two_controllers_and_a_restart_write_nothing_more(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1", standard=class_usage(GB))
    start(status_interval_s=0.1)
    start(status_interval_s=0.1)

    def version() -> str:
        return str(cluster.read(kinds.SLICE_BANDWIDTH, "codeen", namespace)["metadata"]["resourceVersion"])

    eventually(lambda: status_of(cluster, namespace).get("nodes") == 1)
    time.sleep(1.5)  # time for both to write; that nothing happens cannot be polled for
    last = version()
    third = start(status_interval_s=0.1)
    eventually(third.feed.synced)
    throughout(lambda: version() == last, 2.0)
    assert third.loop.stats.writes == 0


def test_a_status_that_something_else_changed_is_corrected(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1")
    start(status_interval_s=0.5)
    eventually(lambda: status_of(cluster, namespace).get("nodes") == 1)
    cluster.custom.patch_namespaced_custom_object_status(
        kinds.GROUP, kinds.VERSION, namespace, "slicebandwidths", "codeen", {"status": {"nodes": 99}}
    )
    eventually(lambda: status_of(cluster, namespace)["nodes"] == 1)


def test_after_an_outage_the_status_is_brought_up_to_date(
    cluster: Cluster, proxy: FaultProxy, start: Start, namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1")
    start(proxy.kubeconfig)
    eventually(lambda: status_of(cluster, namespace).get("nodes") == 1)
    proxy.cut()
    put_usage(cluster, namespace, "n2")
    put_usage(cluster, namespace, "n3")
    proxy.mend()
    eventually(lambda: status_of(cluster, namespace)["nodes"] == 3, 60.0)


def test_what_was_written_is_known_before_the_watch_tells(
    cluster: Cluster, connect: Connect, namespace: str, proxy: FaultProxy
) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    api = connect(proxy.kubeconfig)
    feed = ApiClusterFeed(api, lambda: None)
    feed.start()
    key = SliceKey(namespace, "codeen")
    try:
        eventually(feed.synced)
        for nodes in range(1, 11):
            status = SliceStatus(nodes=nodes)
            record = eventually(lambda: feed.slice_record(key))
            statuses = {key: (status, record.version), SliceKey(namespace, "gone"): (status, record.version)}
            assert ApiClusterWriter(api, feed).write(statuses) == {}
            written = feed.slice_record(key)
            assert written is not None
            assert written.status == status
            # The object has changed since: a status that was made for its old version is not written.
            assert ApiClusterWriter(api, feed).write(statuses) == {key: "another writer has changed it meanwhile"}
            assert api.health.failures == {}
    finally:
        feed.stop()


def test_a_usage_that_nobody_can_read_counts_for_nothing(cluster: Cluster, start: Start, namespace: str) -> None:
    cluster.create(slice_bandwidth(namespace, "codeen"))
    put_usage(cluster, namespace, "n1", standard=class_usage(GB))
    put_usage(cluster, namespace, "n2", standard=class_usage(GB))
    controller = start()
    eventually(lambda: status_of(cluster, namespace).get("nodes") == 2)
    # The schema accepts it, because it has the form of a date.
    cluster.merge(
        {
            "apiVersion": kinds.API_VERSION,
            "kind": "BandwidthUsage",
            "metadata": {"namespace": namespace, "name": "codeen.n1"},
            "periodStart": "0000-01-01T00:00:00Z",
        }
    )
    eventually(lambda: status_of(cluster, namespace).get("nodes") == 1)
    assert controller.api.health.failures == {"parse": 1}
