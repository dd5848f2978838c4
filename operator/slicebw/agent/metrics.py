"""The agent's metrics, for Prometheus: made from the last pass's outcome when somebody asks, and not before.

docs/metrics.md lists them; a test holds the two together. Rates are in bit/s as in a spec, so that a graph can show
limits as they were written.
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


class WriteCounts(Protocol):
    """Where reports wait to be written."""

    @property
    def waiting(self) -> int:
        """How many objects wait."""
        ...

    @property
    def writes(self) -> int:
        """How many requests were answered well so far."""
        ...


class AgentMetrics:
    """A collector for one agent. Holds nothing and counts nothing itself; every call looks at what there is then."""

    def __init__(self, reconciler: Callable[[], Reconciler | None], reports: WriteCounts | None = None) -> None:
        """Collect later.

        Args:
            reconciler: the agent's reconciler, once there is one.
            reports: counts of the report queue; None where reports go to a folder.
        """
        self._reconciler = reconciler
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        """All metric families. Callable from any thread: what it reads are values, and counts that only grow."""
        reconciler = self._reconciler()
        if reconciler is not None:
            yield from _counts(reconciler.stats)
            if reconciler.last is not None:
                yield from _slices(reconciler.last)
                yield from _node(reconciler.last)
        if self._reports is not None:
            yield GaugeMetricFamily(
                "slicebw_reports_waiting", "Objects that wait to be written to the API server.", self._reports.waiting
            )
            yield _counter(
                "slicebw_reports_written", "Writes that the API server has answered well.", self._reports.writes
            )


def _slices(last: PassResult) -> Iterable[Metric]:
    sent = CounterMetricFamily(
        "slicebw_slice_sent_bytes",
        "Bytes that a slice has sent from this node, as long as its ledger knows the slice.",
        labels=_SLICE_LABELS,
    )
    used = _gauge("slicebw_slice_used_bytes", "Bytes used of the budget in the running period.")
    budget = _gauge("slicebw_slice_budget_bytes", "Bytes that the slice may use in a period.")
    rate = _gauge("slicebw_slice_rate_limit_bps", "The ceiling in force, in bit/s; only where the slice has a class.")
    capped = _gauge("slicebw_slice_capped", "1 while usage is over the threshold.")
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


def _node(last: PassResult) -> Iterator[Metric]:
    sent = CounterMetricFamily(
        "slicebw_node_sent_bytes",
        "Bytes sent outside all slices: by the node itself (root), and unclassified (default).",
        labels=("traffic", "class"),
    )
    for name, slice_id in _OWN:
        for traffic_class in TrafficClass:
            account = last.ledger.node_totals.get(leaf(traffic_class, slice_id))
            if account is not None:
                sent.add_metric((name, traffic_class.value), account.total_bytes)
    yield sent
    yield from _node_state(last.node, last.ledger.read_at)


def _node_state(node: NodeReport, read_at: Instant | None) -> Iterator[Metric]:
    yield GaugeMetricFamily("slicebw_node_slices", "Slices that have classes on this node.", node.slices)
    yield GaugeMetricFamily("slicebw_node_capped_slices", "Slices of which a class is capped.", node.capped_slices)
    yield GaugeMetricFamily(
        "slicebw_node_cap_bps", "The most that all standard traffic may use, in bit/s.", node.cap_bps
    )
    yield GaugeMetricFamily("slicebw_node_line_rate_bps", "What the uplink can carry, in bit/s.", node.line_rate_bps)
    mode = GaugeMetricFamily(
        "slicebw_node_mode", "1 for the mode that the node is in, 0 for the others.", labels=("mode",)
    )
    for one in Mode:
        mode.add_metric((one.value,), one is node.mode)
    yield mode
    yield GaugeMetricFamily("slicebw_node_ready", "1 while limits are in force as they are wanted.", node.ready)
    if read_at is not None:
        text = "When the last pass that succeeded read the kernel, in seconds since 1970."
        yield GaugeMetricFamily("slicebw_last_pass_timestamp_seconds", text, read_at.wall_ns / NS)


def _counts(counts: Stats) -> Iterator[Metric]:
    yield _counter("slicebw_passes", "Passes begun.", counts.passes)
    yield _counter("slicebw_failed_passes", "Passes that ended with an error.", counts.failed_passes)
    yield _durations(counts.durations)
    for name, text, tally in (
        ("slicebw_changes_applied", "Changes to the kernel that hold, by kind.", counts.applied),
        ("slicebw_changes_failed", "Changes that the kernel refused or did not show, by kind.", counts.failed),
        ("slicebw_repairs", "Changes that undid what another program had done, by kind.", counts.repairs),
    ):
        family = CounterMetricFamily(name, text, labels=("kind",))
        for kind, count in tally.items():
            family.add_metric((kind,), count)
        yield family
    yield _counter("slicebw_orphans_removed", "Classes removed that belonged to no slice.", counts.orphans)
    yield _counter("slicebw_failed_saves", "Times that a checkpoint could not be written.", counts.failed_saves)


def _durations(histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(
        "slicebw_pass_duration_seconds", "How long the passes took that ended well, reading and changing the kernel."
    )
    bounds = [f"{bound / 1000:g}" for bound in BOUNDS_MS] + ["+Inf"]
    family.add_metric((), list(zip(bounds, histogram.cumulative(), strict=True)), histogram.sum_ns / NS)
    return family


def _counter(name: str, text: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value)
