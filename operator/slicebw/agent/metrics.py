"""The agent's metrics for Prometheus. They are collected when they are scraped, from the result of the last pass.

docs/metrics.md lists them, and a test compares the two. Rates are in bit/s as in a spec, so that a graph shows limits
as they were written.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from slicebw.agent.reconciler import Reconciler
from slicebw.agent.stats import BOUNDS_MS, Histogram, Stats
from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import DEFAULT_ID, HOST_ID, leaf
from slicebw.core.desired import Mode, TrafficClass
from slicebw.core.node_pass import PassResult
from slicebw.core.reports import NodeReport

_SLICE_LABELS: Final = ("namespace", "slice", "class")
_OWN: Final = (("root", HOST_ID), ("default", DEFAULT_ID))
"""Label values for traffic outside all slices. ``root`` is the host's: the value is older than the word."""


class WriteCounts(Protocol):
    """The counts of a report queue."""

    @property
    def waiting(self) -> int:
        """How many objects wait to be written."""
        ...

    @property
    def writes(self) -> int:
        """How many objects were written so far."""
        ...


class AgentMetrics:
    """A collector for one agent. It keeps no state: each call reads the current values."""

    def __init__(self, reconciler: Callable[[], Reconciler | None], reports: WriteCounts | None = None) -> None:
        """Collect later.

        Args:
            reconciler: returns the agent's reconciler, or None before there is one.
            reports: the report queue; None if reports go to a folder.
        """
        self._reconciler = reconciler
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families. Callable from any thread: it reads immutable results and counts that only grow."""
        reconciler = self._reconciler()
        if reconciler is not None:
            yield from _counts(reconciler.stats)
            if reconciler.last is not None:
                yield from _slices(reconciler.last)
                yield from _node(reconciler.last, reconciler.node or reconciler.last.node)
        if self._reports is not None:
            yield GaugeMetricFamily(
                "slicebw_reports_waiting", "Objects waiting to be written to the API server.", self._reports.waiting
            )
            yield _counter("slicebw_reports_written", "Writes that the API server has accepted.", self._reports.writes)


def _slices(last: PassResult) -> Iterable[Metric]:
    sent = CounterMetricFamily(
        "slicebw_slice_sent_bytes",
        "Bytes the slice has sent from this node since the ledger first knew it.",
        labels=_SLICE_LABELS,
    )
    used = _gauge("slicebw_slice_used_bytes", "Bytes used of the budget in the running period.")
    budget = _gauge("slicebw_slice_budget_bytes", "Bytes the slice may use in a period.")
    rate = _gauge(
        "slicebw_slice_rate_limit_bps", "The ceiling in force, in bit/s; absent without a class on this node."
    )
    capped = _gauge("slicebw_slice_capped", "1 while the class is capped because its usage is over the threshold.")
    for report in last.usages:
        account = last.ledger.slices.get(report.key)
        for traffic_class in TrafficClass:
            labels = (report.key.namespace, report.key.name, traffic_class.value)
            usage = report.of(traffic_class)
            if account is not None:
                sent.add_metric(labels, account.of(traffic_class).total_bytes)
            used.add_metric(labels, usage.used_bytes)
            budget.add_metric(labels, usage.budget_bytes)
            capped.add_metric(labels, usage.capped)
            if report.slice_id:
                rate.add_metric(labels, usage.rate_bps)
    return sent, used, budget, rate, capped


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=_SLICE_LABELS)


def _node(last: PassResult, node: NodeReport) -> Iterator[Metric]:
    sent = CounterMetricFamily(
        "slicebw_node_sent_bytes",
        "Bytes sent outside all slices: by the host itself (root), and unclassified (default).",
        labels=("traffic", "class"),
    )
    for name, slice_id in _OWN:
        for traffic_class in TrafficClass:
            account = last.ledger.node_totals.get(leaf(traffic_class, slice_id))
            if account is not None:
                sent.add_metric((name, traffic_class.value), account.total_bytes)
    yield sent
    yield from _node_state(node, last.ledger.read_at)


def _node_state(node: NodeReport, read_at: Instant | None) -> Iterator[Metric]:
    yield GaugeMetricFamily("slicebw_node_slices", "Slices that have classes on this node.", node.slices)
    yield GaugeMetricFamily("slicebw_node_capped_slices", "Slices with at least one capped class.", node.capped_slices)
    yield GaugeMetricFamily(
        "slicebw_node_cap_bps", "The node cap: the most that all standard traffic may use, in bit/s.", node.cap_bps
    )
    yield GaugeMetricFamily(
        "slicebw_node_line_rate_bps", "The line rate: what the uplink can carry, in bit/s.", node.line_rate_bps
    )
    unclassified = GaugeMetricFamily(
        "slicebw_node_unclassified_max_bps",
        "The most that traffic may use that could not be classified, in bit/s.",
        labels=("class",),
    )
    unclassified.add_metric((TrafficClass.STANDARD.value,), node.unclassified_max_bps)
    unclassified.add_metric((TrafficClass.EXEMPT.value,), node.unclassified_exempt_max_bps)
    yield unclassified
    mode = GaugeMetricFamily(
        "slicebw_node_mode", "1 for the mode that the node is in, 0 for the others.", labels=("mode",)
    )
    for one in Mode:
        mode.add_metric((one.value,), one is node.mode)
    yield mode
    yield GaugeMetricFamily("slicebw_node_ready", "1 while the desired limits are in force.", node.ready)
    if read_at is not None:
        text = "When the last successful pass read the kernel, in seconds since 1970."
        yield GaugeMetricFamily("slicebw_last_pass_timestamp_seconds", text, read_at.wall_ns / NS)


def _counts(counts: Stats) -> Iterator[Metric]:
    yield _counter("slicebw_passes", "Passes started.", counts.passes)
    yield _counter("slicebw_failed_passes", "Passes that ended with an error.", counts.failed_passes)
    yield _durations(counts.durations)
    for name, text, tally in (
        ("slicebw_changes_applied", "Changes to the kernel that were verified afterwards, by kind.", counts.applied),
        ("slicebw_changes_failed", "Changes that the kernel refused or did not show, by kind.", counts.failed),
        ("slicebw_repairs", "Changes that repaired drift, by kind.", counts.repairs),
    ):
        family = CounterMetricFamily(name, text, labels=("kind",))
        for kind, count in tally.items():
            family.add_metric((kind,), count)
        yield family
    yield _counter("slicebw_orphans_removed", "Removed classes that belonged to no slice.", counts.orphans)
    yield _counter("slicebw_failed_saves", "Times that a checkpoint could not be written.", counts.failed_saves)


def _durations(histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(
        "slicebw_pass_duration_seconds", "Duration of the passes that succeeded, kernel included."
    )
    bounds = [f"{bound / 1000:g}" for bound in BOUNDS_MS] + ["+Inf"]
    family.add_metric((), list(zip(bounds, histogram.cumulative(), strict=True)), histogram.sum_ns / NS)
    return family


def _counter(name: str, text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value)
