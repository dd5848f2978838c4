"""``slicebw agent``."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slicebw import __version__
from slicebw.cli import options
from slicebw.cli.lock import node_lock
from slicebw.cli.services import Service, ThreadService, api_thread, run, serve_health, stop_signal
from slicebw.core.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from slicebw.agent.loop import Loop
    from slicebw.agent.ports import Feed
    from slicebw.agent.reconciler import Reconciler
    from slicebw.agent.report_queue import ReportQueue
    from slicebw.kube.api_health import ApiHealth

log = logging.getLogger(__name__)


@click.command()
@click.option("--node", required=True, envvar="SLICEBW_NODE", help="This node's name in Kubernetes.")
@options.netns
@options.uplink
@options.state_dir
@options.kubeconfig
@click.option(
    "--manifests",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="SLICEBW_MANIFESTS",
    help="No cluster: take SliceBandwidths, NodeBandwidths and Pods from the YAML files in this folder, and write "
    "BandwidthUsages and Events under its status/ folder.",
)
@click.option(
    "--report-interval",
    type=options.Duration(),
    default="60s",
    show_default=True,
    envvar="SLICEBW_REPORT_INTERVAL",
    help="Usage that moved is reported at most this often; caps, new periods and changed limits at once.",
)
@options.liveness_port
@options.liveness_address
@options.log_level
def agent(
    node: str,
    netns: str | None,
    uplink: str | None,
    state_dir: Path,
    kubeconfig: Path | None,
    manifests: Path | None,
    report_interval: int,
    liveness_port: int | None,
    liveness_address: str,
) -> None:
    """Hold this node's slices to their limits and count what they send.

    Stopping it changes nothing in the kernel.
    """
    from slicebw.agent.loop import Loop
    from slicebw.kernel import netns as namespaces

    if manifests is not None and kubeconfig is not None:
        raise UsageError("--manifests and --kubeconfig: an agent has one or the other; leave one out")
    namespaces.check_privileges()
    stop = stop_signal()
    with ExitStack() as stack:
        stack.enter_context(node_lock(state_dir, stop))
        if stop.is_set():
            return
        edges = _edges(node, manifests, kubeconfig, lambda: loop.wake())  # noqa: PLW0108 - the loop is made below
        loop = Loop(
            lambda: _reconciler(edges, state_dir, report_interval, uplink, loop.wake),
            lambda: namespaces.enter(netns) if netns else None,
        )
        probes = {"/healthz": loop.liveness, "/readyz": loop.readiness}
        serve_health(stack, liveness_address, liveness_port, probes, lambda: _metrics(loop, edges))
        run(stack, [*edges.services, ThreadService(loop)])
        log.info("agent started version=%s node=%s netns=%s state_dir=%s", __version__, node, netns or "own", state_dir)
        while not stop.wait(1.0):
            if not loop.is_alive():
                break
    if loop.failure is not None:
        raise loop.failure
    log.info("agent stopped; the kernel stays as it is")


def _reconciler(
    edges: "_Edges", state_dir: Path, report_interval_s: int, uplink: str | None, wake: Callable[[], None]
) -> "Reconciler":
    """The reconciler on the kernel of the calling thread's network namespace; ``wake`` is called when that changes."""
    from slicebw.agent.checkpoint import FileStore
    from slicebw.agent.clock import SystemClock
    from slicebw.agent.ports import Ports
    from slicebw.agent.reconciler import Reconciler
    from slicebw.agent.report_throttle import ReportThrottle
    from slicebw.core.clock import NS
    from slicebw.kernel.htb import HtbShaper
    from slicebw.kernel.nft import NftClassifier

    shaper, classifier = HtbShaper(), NftClassifier()
    ports = Ports(shaper, classifier, edges.feed, FileStore(state_dir), edges.reports)
    reconciler = Reconciler(ports, SystemClock(), ReportThrottle(report_interval_s * NS), uplink)
    shaper.watch(wake)
    classifier.watch(wake)
    return reconciler


@dataclass(frozen=True, slots=True)
class _Edges:
    """Where desired state comes from and reports go to, and what has to be started for it. ``api``: with a cluster."""

    feed: "Feed"
    reports: "ReportQueue"
    services: list[Service]
    api: "ApiHealth | None" = None


def _edges(node: str, manifests: Path | None, kubeconfig: Path | None, wake: Callable[[], None]) -> _Edges:
    """A folder's edges or the API server's."""
    from slicebw.agent.report_queue import ReportQueue

    if manifests is not None:
        from slicebw.folder.feed import FolderFeed
        from slicebw.folder.sink import FolderSink

        folder_feed = FolderFeed(manifests, node, wake)
        reports = ReportQueue(FolderSink(manifests, node), last_chance_s=5.0)
        return _Edges(folder_feed, reports, [reports, folder_feed])
    api = api_thread(kubeconfig, "agent")  # before anything imports kopf
    from slicebw.kube.agent_feed import ApiFeed
    from slicebw.kube.agent_sink import ApiSink

    feed = ApiFeed(api, node, wake)
    reports = ReportQueue(ApiSink(api, node))
    return _Edges(feed, reports, [api, feed, reports], api.health)


def _metrics(loop: "Loop", edges: _Edges) -> "Iterator[Collector]":
    from slicebw.agent.metrics import AgentMetrics
    from slicebw.cli.exposition import ApiMetrics

    yield AgentMetrics(lambda: loop.reconciler, None if edges.api is None else edges.reports)
    if edges.api is not None:
        yield ApiMetrics(edges.api)
