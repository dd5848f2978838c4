"""The controller's metrics, for Prometheus; docs/metrics.md lists them."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from slicebw.controller.ports import ClusterFeed
from slicebw.controller.status_loop import StatusLoop


class ControllerMetrics:
    """A collector for one controller: what it knows, and what its loop has done since it started."""

    def __init__(self, feed: ClusterFeed, loop: StatusLoop) -> None:
        self._feed, self._loop = feed, loop

    def collect(self) -> Iterator[Metric]:
        """Give all metric families. Callable from any thread."""
        stats = self._loop.stats
        for name, text, value in (
            ("status_writes", "Statuses of SliceBandwidths that were written.", stats.writes),
            ("failed_status_writes", "Statuses that could not be written; they are retried.", stats.failed_writes),
            ("pod_lists", "Times that the pods of one namespace were listed.", stats.pod_lists),
            ("listed_pods", "Pods in these lists.", stats.listed_pods),
            ("removed_usages", "BandwidthUsages removed: node gone, or period long over.", stats.removed_usages),
            ("failed_steps", "Steps of the loop, or slices in them, that failed with an error.", stats.failures),
        ):
            yield CounterMetricFamily(f"slicebw_controller_{name}", text, value)
        for name, text, known in (
            ("slices", "SliceBandwidths in the cluster.", self._feed.known_slices()),
            ("usages", "BandwidthUsages in the cluster.", self._feed.known_usages()),
            ("waiting_statuses", "SliceBandwidths whose status may be out of date.", self._loop.waiting),
        ):
            yield GaugeMetricFamily(f"slicebw_controller_{name}", text, known)
