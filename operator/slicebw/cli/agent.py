"""``slicebw agent``: wires feed, reconciler, kernel and report queue together, and runs them until a signal."""

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
    help="Run without a cluster: read SliceBandwidths, NodeBandwidths and Pods from the YAML files in this folder, and "
    "write BandwidthUsages and Events to its status/ folder.",
)
@click.option(
    "--report-interval",
    type=options.Duration(),
    default="60s",
    show_default=True,
    envvar="SLICEBW_REPORT_INTERVAL",
    help="Report changed usage at most this often. Caps, new periods and changed limits are reported at once.",
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
    """Hold this node's slices to their limits, and count what they send.

    When the agent stops, the limits stay in force.
    """
    from slicebw.agent.loop import Loop
    from slicebw.kernel import netns as namespaces

    if manifests is not None and kubeconfig is not None:
        raise UsageError("--manifests and --kubeconfig exclude each other: leave one out")
    namespaces.check_privileges()  # before the lock: this error needs no waiting
    stop = stop_signal()
    with ExitStack() as stack:
        stack.enter_context(node_lock(state_dir, stop))
        if stop.is_set():  # the lock may not be held
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
        # Polled, because a loop that ends by itself has to end the command, too.
        while not stop.wait(1.0):
            if not loop.is_alive():  # it could not enter the namespace, or open its sockets
                break
    if loop.failure is not None:
        raise loop.failure
    log.info("agent stopped; limits stay in force")


def _reconciler(
    edges: "_Edges", state_dir: Path, report_interval_s: int, uplink: str | None, wake: Callable[[], None]
) -> "Reconciler":
    """Return the reconciler of the calling thread's network namespace.

    ``wake`` is called when another program changes the tree, the table or the uplink there.
    """
    from slicebw.agent.checkpoint import FileStore
    from slicebw.agent.clock import SystemClock
    from slicebw.agent.ports import Ports
    from slicebw.agent.reconciler import Reconciler
    from slicebw.agent.report_throttle import ReportThrottle
    from slicebw.core.clock import NS
    from slicebw.kernel.htb import HtbShaper
    from slicebw.kernel.nft import NftClassifier

    # Opened in this thread: a netlink socket belongs to the network namespace of the thread that opens it.
    shaper, classifier = HtbShaper(), NftClassifier()
    ports = Ports(shaper, classifier, edges.feed, FileStore(state_dir), edges.reports)
    reconciler = Reconciler(ports, SystemClock(), ReportThrottle(report_interval_s * NS), uplink)
    # Watch before the first pass reads: a change after that read is then notified.
    shaper.watch(wake)
    classifier.watch(wake)
    return reconciler


@dataclass(frozen=True, slots=True)
class _Edges:
    """Where the desired state comes from and reports go to, and the services to start for that.

    ``api``: the state of the connection to the API server; None without a cluster.
    """

    feed: "Feed"
    reports: "ReportQueue"
    services: list[Service]
    api: "ApiHealth | None" = None


def _edges(node: str, manifests: Path | None, kubeconfig: Path | None, wake: Callable[[], None]) -> _Edges:
    """Return the edges of the folder ``manifests``; if that is None, those of the API server."""
    from slicebw.agent.report_queue import ReportQueue

    if manifests is not None:
        from slicebw.folder.feed import FolderFeed
        from slicebw.folder.sink import FolderSink

        folder_feed = FolderFeed(manifests, node, wake)
        reports = ReportQueue(FolderSink(manifests, node), last_chance_s=5.0)  # a folder takes all that waits
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
