"""``slicebw controller``: wires the cluster's feed and the status loop together, and runs them until a signal."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slicebw import __version__
from slicebw.cli import options
from slicebw.cli.services import ThreadService, api_thread, run, serve_health, stop_signal

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from slicebw.controller.status_loop import StatusLoop
    from slicebw.kube.api_thread import ApiThread
    from slicebw.kube.controller_feed import ApiClusterFeed

log = logging.getLogger(__name__)


@click.command()
@options.kubeconfig
@click.option(
    "--status-interval",
    type=options.Duration(),
    default="10s",
    show_default=True,
    envvar="SLICEBW_STATUS_INTERVAL",
    help="Write a slice's status at most this often. A change of cap, node or generation is written at once.",
)
@options.liveness_port
@options.liveness_address
@options.log_level
def controller(kubeconfig: Path | None, status_interval: int, liveness_port: int | None, liveness_address: str) -> None:
    """Sum up usages into the status of SliceBandwidths, and remove usages of nodes that are gone.

    Several controllers may run at once: a status that one has written is not written again by the others.
    """
    stop = stop_signal()
    with ExitStack() as stack:
        api = api_thread(kubeconfig, "controller")  # before anything imports kopf
        from slicebw.controller.status_loop import StatusLoop
        from slicebw.kube.controller_feed import ApiClusterFeed
        from slicebw.kube.controller_writer import ApiClusterWriter

        feed = ApiClusterFeed(api, lambda: loop.wake())  # noqa: PLW0108 - the loop is made below
        loop = StatusLoop(feed, ApiClusterWriter(api, feed), status_interval_s=status_interval)
        thread = _LoopThread(loop)
        ready = "not all SliceBandwidths and BandwidthUsages have been listed yet"
        probes = {"/healthz": thread.liveness, "/readyz": lambda: None if feed.synced() else ready}
        serve_health(stack, liveness_address, liveness_port, probes, lambda: _metrics(api, feed, loop))
        run(stack, [api, feed, ThreadService(thread)])
        log.info("controller started version=%s", __version__)
        stop.wait()
    log.info("controller stopped")


def _metrics(api: "ApiThread", feed: "ApiClusterFeed", loop: "StatusLoop") -> "Iterator[Collector]":
    from slicebw.cli.exposition import ApiMetrics
    from slicebw.controller.metrics import ControllerMetrics

    yield ControllerMetrics(feed, loop)
    yield ApiMetrics(api.health)


class _LoopThread(threading.Thread):
    """The controller's loop in a thread of its own."""

    def __init__(self, loop: "StatusLoop") -> None:
        super().__init__(name="controller", target=loop.run)
        self._loop = loop

    def stop(self) -> None:
        self._loop.stop()

    def liveness(self) -> str | None:
        return None if self.is_alive() else "the controller's loop has ended"
