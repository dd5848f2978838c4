"""The controller's metrics, for Prometheus; docs/metrics.md lists them."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from slicebw.controller.loop import Counts


class ControllerMetrics:
    """A collector for one controller: what its loop has done since it started."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """All metric families. Callable from any thread."""
        counts = self._counts
        for name, text, value in (
            ("status_writes", "Statuses of SliceBandwidths written.", counts.writes),
            ("failed_status_writes", "Statuses that could not be written; they are tried again.", counts.failed_writes),
            ("removed_usages", "BandwidthUsages removed of nodes that are gone.", counts.removed_usages),
            ("failed_steps", "Rounds of the loop that ended with an error.", counts.failures),
        ):
            yield CounterMetricFamily(f"slicebw_controller_{name}", text, value)
