"""The agent's reports on a real API server: ``kubectl get`` shows what is reported."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from slicebw.agent.report_queue import RENEW_S, ReportQueue
from slicebw.api import bandwidth_usage, kinds
from slicebw.core.desired import SliceKey
from slicebw.core.ledger import PendingEvent, Reason
from slicebw.core.reports import UsageReport
from slicebw.kube.agent_sink import ApiSink
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.own_usages import list_own_usages
from tests.api.cluster import Cluster, eventually, node_bandwidth, throughout
from tests.api.proxy import FaultProxy, Request
from tests.support.reports import GB, PERIOD_START_S, capped_event, class_usage, node_report, usage_report

Connect = Callable[[Path], ApiThread]

NOW_S = PERIOD_START_S + 3600


class Reporting:
    """A running report queue, and its API thread."""

    def __init__(
        self,
        api: ApiThread,
        node: str,
        wall_clock: Callable[[], float] = lambda: NOW_S,
        renew_s: float = RENEW_S,
        **options: Any,
    ) -> None:
        self.api = api
        sink = ApiSink(api, node, **{"refused_pause_s": 0.5, **options})
        self.reporter = ReportQueue(sink, wall_clock=wall_clock, renew_s=renew_s)
        self.reporter.start()

    def usages(self, *reports: UsageReport) -> None:
        self.reporter.report(reports, (), (), None)

    def expire(self, *keys: SliceKey) -> None:
        self.reporter.report((), keys, (), None)

    def events(self, *notes: PendingEvent) -> None:
        self.reporter.report((), (), notes, None)

    def settled(self, within_s: float = 10.0) -> None:
        eventually(lambda: self.reporter.waiting == 0, within_s)


@pytest.fixture
def reporting(cluster: Cluster, connect: Connect, node: str) -> Reporting:
    return Reporting(connect(cluster.kubeconfig), node)


@pytest.fixture
def proxied(proxy: FaultProxy, connect: Connect, node: str) -> Reporting:
    return Reporting(connect(proxy.kubeconfig), node)


def writes(proxy: FaultProxy) -> list[Request]:
    return [request for request in proxy.requests if request.method != "GET"]


def test_a_usage_is_what_kubectl_get_shows(cluster: Cluster, reporting: Reporting, namespace: str, node: str) -> None:
    used = class_usage(9 * GB, capped=True, rate_bps=512_000)
    reporting.usages(usage_report(namespace, standard=used))
    reporting.settled()
    columns, row = (line.split() for line in cluster.kubectl("get", "bwu", "-n", namespace).splitlines())
    shown = dict(zip(columns, row, strict=True))
    assert {**shown, "PERIOD-START": "-"} == {
        "NAME": f"codeen.{node}",
        "SLICE": "codeen",
        "NODE": node,
        "USED": "9G",
        "BUDGET": "10G",
        "%": "90",
        "RATE": "512k",
        "CAPPED": "true",
        "PERIOD-START": "-",
    }


def test_a_usage_reads_back_as_it_was_reported_and_belongs_to_the_node(
    cluster: Cluster, reporting: Reporting, namespace: str, node: str
) -> None:
    report = usage_report(namespace, standard=class_usage(123_456_789), generation=7)
    reporting.usages(report)
    reporting.settled()
    obj = cluster.read(kinds.BANDWIDTH_USAGE, bandwidth_usage.name("codeen", node), namespace)
    assert bandwidth_usage.parse(obj) == bandwidth_usage.NodeUsage(report, node, NOW_S)
    uid = cluster.core.read_node(node).metadata.uid
    assert [owner["uid"] for owner in obj["metadata"]["ownerReferences"]] == [uid]
    managers = {entry["manager"]: entry["operation"] for entry in obj["metadata"]["managedFields"]}
    assert managers == {"slicebw-agent": "Apply"}


def test_a_later_report_replaces_everything_the_earlier_one_said(
    cluster: Cluster, reporting: Reporting, namespace: str, node: str
) -> None:
    reporting.usages(usage_report(namespace, errors=("spec.share: 0 is not a share",)))
    reporting.settled()
    reporting.usages(usage_report(namespace, standard=class_usage(GB)))
    reporting.settled()
    obj = cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)
    assert "errors" not in obj
    assert obj["standard"]["bytesUsed"] == GB


def test_a_node_without_a_node_object_reports_too(cluster: Cluster, connect: Connect, namespace: str) -> None:
    reporting = Reporting(connect(cluster.kubeconfig), "no-such-node")
    reporting.usages(usage_report(namespace))
    reporting.settled()
    obj = cluster.read(kinds.BANDWIDTH_USAGE, "codeen.no-such-node", namespace)
    assert "ownerReferences" not in obj["metadata"]


def test_a_usage_that_is_over_is_deleted(cluster: Cluster, reporting: Reporting, namespace: str, node: str) -> None:
    reporting.usages(usage_report(namespace, "goes"), usage_report(namespace, "stays"))
    reporting.settled()
    reporting.expire(SliceKey(namespace, "goes"), SliceKey(namespace, "never-was"))
    reporting.settled()
    assert cluster.read(kinds.BANDWIDTH_USAGE, f"goes.{node}", namespace) is None
    assert cluster.read(kinds.BANDWIDTH_USAGE, f"stays.{node}", namespace)
    reporting.usages(usage_report(namespace, "goes"))
    reporting.settled()
    assert cluster.read(kinds.BANDWIDTH_USAGE, f"goes.{node}", namespace), "the same report again, after a deletion"


def test_the_nodes_own_status_is_made_with_its_object(cluster: Cluster, reporting: Reporting, node: str) -> None:
    reporting.reporter.report((), (), (), node_report(slices=12, capped_slices=2, host_bytes=GB))
    reporting.settled()
    try:
        columns, row = (line.split() for line in cluster.kubectl("get", "nbw", node).splitlines())
        shown = dict(zip(columns, row, strict=True))
        assert {**shown, "AGE": "-"} == {
            "NAME": node,
            "DEVICE": "eth0",
            "MODE": "Enforce",
            "CAP": "100M",
            "SLICES": "12",
            "CAPPED": "2",
            "READY": "True",
            "AGE": "-",
        }
    finally:
        cluster.delete(kinds.NODE_BANDWIDTH, node)


def test_the_nodes_own_status_leaves_a_persons_settings_alone(
    cluster: Cluster, reporting: Reporting, node: str
) -> None:
    cluster.create(node_bandwidth(node, cap="50M"))
    try:
        reporting.reporter.report((), (), (), node_report())
        reporting.settled()
        obj = cluster.read(kinds.NODE_BANDWIDTH, node)
        assert obj["spec"] == {"cap": "50M"}
        assert obj["metadata"]["generation"] == 1
        assert obj["status"]["slices"] == 2
    finally:
        cluster.delete(kinds.NODE_BANDWIDTH, node)


def test_a_condition_keeps_its_time_of_transition_over_a_restart(cluster: Cluster, connect: Connect, node: str) -> None:
    def transition(now_s: int) -> str:
        reporting = Reporting(connect(cluster.kubeconfig), node, wall_clock=lambda: now_s)
        reporting.reporter.report((), (), (), node_report(host_bytes=now_s))
        reporting.settled()
        status = cluster.read(kinds.NODE_BANDWIDTH, node)["status"]
        assert status["bytesRoot"] == now_s
        return next(str(one["lastTransitionTime"]) for one in status["conditions"] if one["type"] == "Ready")

    try:
        assert transition(NOW_S) == transition(NOW_S + 1000)
    finally:
        cluster.delete(kinds.NODE_BANDWIDTH, node)


def test_an_event_is_there_once_however_often_it_is_sent(
    cluster: Cluster, connect: Connect, namespace: str, node: str
) -> None:
    note = capped_event(namespace)
    first = Reporting(connect(cluster.kubeconfig), node)
    first.events(note, note)
    first.events(note)
    first.settled()
    assert first.reporter.acknowledged() == {note.id}
    assert first.reporter.acknowledged() == frozenset()
    # As after a crash between writing it and noting that.
    second = Reporting(connect(cluster.kubeconfig), node)
    second.events(note)
    second.settled()
    assert second.reporter.acknowledged() == {note.id}
    events = cluster.events(namespace)
    assert [(event.reason, event.type, event.message, event.source.host) for event in events] == [
        ("BandwidthCapped", "Warning", note.message, node)
    ]
    assert events[0].involved_object.kind == "SliceBandwidth"
    assert "BandwidthCapped" in cluster.kubectl("get", "events", "-n", namespace)


def test_an_event_about_the_node_is_found_with_the_node(cluster: Cluster, reporting: Reporting, node: str) -> None:
    note = PendingEvent(f"TreeRebuilt/{node}", None, "", Reason.TREE_REBUILT, True, "made again", PERIOD_START_S)
    reporting.events(note)
    reporting.settled()
    assert reporting.reporter.acknowledged() == {note.id}
    mine = [event for event in cluster.events("default") if event.involved_object.name == node]
    assert [event.reason for event in mine] == ["TreeRebuilt"]


def test_reports_about_a_namespace_that_is_gone_are_dropped(
    cluster: Cluster, reporting: Reporting, namespace: str, node: str
) -> None:
    note = capped_event("no-such-namespace")
    reporting.usages(usage_report("no-such-namespace"), usage_report(namespace))
    reporting.events(note)
    reporting.settled()
    assert reporting.reporter.acknowledged() == {note.id}, "nobody is left to read it"
    assert cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)


def test_reports_about_a_namespace_that_is_being_deleted_are_dropped(
    cluster: Cluster, reporting: Reporting, namespace: str
) -> None:
    # Nobody finishes the deletion here, so it lasts.
    cluster.core.delete_namespace(namespace)
    note = capped_event(namespace)
    reporting.usages(usage_report(namespace))
    reporting.events(note)
    reporting.settled()
    assert reporting.reporter.acknowledged() == {note.id}


def test_what_has_not_changed_is_not_written_again(proxy: FaultProxy, proxied: Reporting, namespace: str) -> None:
    report = usage_report(namespace, standard=class_usage(GB))
    proxied.usages(report)
    proxied.settled()
    written = len(writes(proxy))
    for _ in range(5):
        proxied.usages(report)
    proxied.usages(usage_report(namespace, "other"))
    proxied.settled()
    assert len(writes(proxy)) == written + 1


def test_what_has_not_changed_is_written_again_after_a_while_and_comes_back_if_it_was_lost(
    cluster: Cluster, connect: Connect, namespace: str, node: str
) -> None:
    reporting = Reporting(connect(cluster.kubeconfig), node, renew_s=0.3)
    report = usage_report(namespace)
    reporting.usages(report)
    reporting.settled()
    cluster.delete(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)

    def back() -> object:
        reporting.usages(report)
        return cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)

    eventually(back)


def test_after_an_outage_only_the_latest_state_is_written(
    cluster: Cluster, proxy: FaultProxy, proxied: Reporting, namespace: str, node: str
) -> None:
    proxy.cut()
    note = capped_event(namespace)
    for used in range(100):
        began = time.monotonic()
        proxied.usages(usage_report(namespace, standard=class_usage(used * GB)))
        proxied.events(note)
        assert time.monotonic() - began < 0.1, "the reconciler never waits for the API"
    eventually(lambda: proxied.api.health.unreachable_s > 0.0)
    assert proxied.reporter.waiting == 2
    proxy.mend()
    proxied.settled(within_s=60.0)
    obj = cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)
    assert obj["standard"]["bytesUsed"] == 99 * GB
    assert len(cluster.events(namespace)) == 1
    assert len(writes(proxy)) == 2


def test_caps_and_events_go_before_figures(proxy: FaultProxy, connect: Connect, namespace: str, node: str) -> None:
    reporting = Reporting(connect(proxy.kubeconfig), node, writes_per_s=20.0, burst=1)
    names = [f"slice-{number}" for number in range(6)]
    reports = {name: usage_report(namespace, name) for name in names}
    reporting.usages(*reports.values())
    reporting.settled()
    written = len(writes(proxy))
    proxy.cut()
    reporting.usages(*(replace(report, standard=class_usage(GB)) for report in reports.values()))
    eventually(lambda: reporting.api.health.failures.get("unreachable"))
    reporting.usages(replace(reports["slice-4"], standard=class_usage(9 * GB, capped=True, rate_bps=8)))
    reporting.events(capped_event(namespace))
    # Tried in vain as they are, they still are the first when it works again.
    eventually(lambda: reporting.api.health.failures["unreachable"] >= 3, 15.0)
    proxy.mend()
    reporting.settled(within_s=60.0)
    order = [request.path.rsplit("/", 1)[1] for request in writes(proxy)[written:]]
    assert set(order[:2]) == {f"slice-4.{node}", "events"}
    assert len(order) == 7


def test_the_write_budget_holds(proxy: FaultProxy, connect: Connect, namespace: str, node: str) -> None:
    reporting = Reporting(connect(proxy.kubeconfig), node, writes_per_s=10.0, burst=5)
    reporting.usages(*(usage_report(namespace, f"slice-{number}") for number in range(25)))
    began = time.monotonic()
    reporting.settled(within_s=30.0)
    assert time.monotonic() - began >= 1.8, "5 at once, then 20 at 10 a second"
    assert len(writes(proxy)) == 25


def test_kinds_that_are_missing_are_waited_for(outage: Cluster, connect: Connect, namespace: str, node: str) -> None:
    outage.remove_crds()
    reporting = Reporting(connect(outage.kubeconfig), node)
    note = capped_event(namespace)
    reporting.usages(usage_report(namespace))
    reporting.events(note)
    reporting.reporter.report((), (), (), node_report())
    eventually(lambda: reporting.reporter.acknowledged() == {note.id})
    throughout(lambda: reporting.reporter.waiting == 2, 1.0)
    outage.install_crds()
    reporting.settled(within_s=20.0)
    assert outage.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)
    assert outage.read(kinds.NODE_BANDWIDTH, node)["status"]["slices"] == 2


@pytest.mark.parametrize("status", [403, 429, 500])
def test_a_write_that_fails_does_not_hold_up_the_others_and_is_made_in_the_end(
    status: int, cluster: Cluster, proxy: FaultProxy, proxied: Reporting, namespace: str, node: str
) -> None:
    proxy.fail(status, [".*/events"], methods="POST")
    note = capped_event(namespace)
    proxied.events(note)
    proxied.usages(usage_report(namespace))
    eventually(lambda: cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace), 20.0)
    assert proxied.reporter.acknowledged() == frozenset()
    proxy.mend()
    proxied.settled(within_s=60.0)
    assert proxied.reporter.acknowledged() == {note.id}


def test_credentials_that_expire_are_read_again_for_the_next_write(
    cluster: Cluster, connect: Connect, namespace: str, node: str, tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    good = cluster.kubeconfig.read_text()
    kubeconfig.write_text(good)
    reporting = Reporting(connect(kubeconfig), node)
    reporting.usages(usage_report(namespace))
    reporting.settled()
    kubeconfig.write_text(re.sub("token: .*", "token: expired", good))
    reporting.api.call(reporting.api.client.close(), 5.0)  # as if the API server had ended the connection
    reporting.usages(usage_report(namespace, standard=class_usage(GB)))
    eventually(lambda: reporting.api.health.unreachable_s > 0.0)
    kubeconfig.write_text(good)
    reporting.settled(within_s=30.0)
    obj = cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)
    assert obj["standard"]["bytesUsed"] == GB


def test_a_write_that_can_never_succeed_is_dropped(
    cluster: Cluster, reporting: Reporting, namespace: str, node: str
) -> None:
    note = replace(capped_event(namespace), key=SliceKey(namespace, "Not A Name"))
    reporting.events(note)
    reporting.usages(usage_report(namespace))
    reporting.settled()
    assert reporting.reporter.acknowledged() == {note.id}
    assert cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", namespace)


def test_a_lost_ledger_finds_this_nodes_usages_again(
    cluster: Cluster, connect: Connect, namespace: str, node: str
) -> None:
    mine = Reporting(connect(cluster.kubeconfig), node)
    theirs = Reporting(connect(cluster.kubeconfig), "another-node")
    reports = {usage_report(namespace, "a", standard=class_usage(GB)), usage_report(namespace, "b")}
    mine.usages(*reports)
    theirs.usages(usage_report(namespace, "a"))
    mine.settled()
    theirs.settled()
    assert set(mine.reporter.previous_reports() or ()) == set(), "there was no earlier agent"

    later = Reporting(connect(cluster.kubeconfig), node)
    assert set(eventually(later.reporter.previous_reports)) == reports


@pytest.mark.parametrize("few", [0, 2_000])
def test_what_was_written_last_is_found_however_many_usages_there_are(
    few: int, cluster: Cluster, connect: Connect, new_namespace: Callable[[], str], node: str
) -> None:
    namespace = new_namespace()
    reporting = Reporting(connect(cluster.kubeconfig), node)
    Reporting(connect(cluster.kubeconfig), "another-node").usages(usage_report(namespace))

    def found() -> set[UsageReport]:
        return set(reporting.api.call(list_own_usages(reporting.api.client, node, few), 30.0))

    for used_bytes in range(5):
        report = usage_report(namespace, standard=class_usage(used_bytes))
        reporting.usages(report)
        reporting.settled()
        assert found() == {report}
    new_namespace()  # a version that the API server's memory of usages hears nothing about
    assert found() == {report}


def test_a_lost_ledger_is_not_mistaken_for_what_an_earlier_agent_wrote(
    cluster: Cluster, proxy: FaultProxy, connect: Connect, namespace: str, node: str
) -> None:
    earlier = Reporting(connect(cluster.kubeconfig), node)
    earlier.usages(usage_report(namespace, standard=class_usage(GB)))
    earlier.settled()
    proxy.fail(503, [".*/bandwidthusages"], methods="GET")
    later = Reporting(connect(proxy.kubeconfig), node)
    later.usages(usage_report(namespace))
    later.events(capped_event(namespace))
    eventually(later.reporter.acknowledged)
    throughout(lambda: [request.method for request in writes(proxy)] == ["POST"], 1.0)
    proxy.mend()
    (found,) = eventually(later.reporter.previous_reports, 60.0)
    assert found.standard.used_bytes == GB


def test_a_lost_ledger_learns_nothing_from_an_api_server_that_is_away(
    cluster: Cluster, proxy: FaultProxy, connect: Connect, namespace: str, node: str
) -> None:
    earlier = Reporting(connect(cluster.kubeconfig), node)
    earlier.usages(usage_report(namespace, standard=class_usage(GB)))
    earlier.settled()
    proxy.cut()
    later = Reporting(connect(proxy.kubeconfig), node)
    later.usages(usage_report(namespace))
    eventually(lambda: later.api.health.unreachable_s > 0.5)
    assert later.reporter.previous_reports() is None
    proxy.mend()
    (found,) = eventually(later.reporter.previous_reports, 60.0)
    assert found.standard.used_bytes == GB
