"""The ``/metrics`` page: a registry of several collectors, served in the format that the scraper asks for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from slicebw import __version__

if TYPE_CHECKING:
    from slicebw.cli.probe_server import Page
    from slicebw.kube.api_health import ApiHealth


class BuildInfo:
    """A collector for the version of slicebw."""

    def collect(self) -> Iterator[Metric]:
        """Yield one constant metric."""
        family = GaugeMetricFamily("slicebw_build_info", "Always 1; its label is the version.", labels=("version",))
        family.add_metric((__version__,), 1)
        yield family


class ApiMetrics:
    """A collector for the state of this process's connection to the API server."""

    def __init__(self, health: "ApiHealth") -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families. Callable from any thread."""
        yield GaugeMetricFamily(
            "slicebw_api_unreachable_seconds",
            "For how long the API server has not answered; 0 while it does.",
            self._health.unreachable_s,
        )
        failures = CounterMetricFamily(
            "slicebw_api_failures", "What went wrong with the API server, by kind.", labels=("kind",)
        )
        for kind, count in sorted(self._health.failures.items()):
            failures.add_metric((kind,), count)
        yield failures


def page(*collectors: Collector) -> "Page":
    """Return a page with these collectors, the version, and the process's CPU, memory and files."""
    # Not the global registry: prometheus_client fills that one with collectors about Python.
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in (BuildInfo(), *collectors):
        registry.register(collector)

    def serve(accept: str) -> tuple[str, bytes]:
        encode, content_type = choose_encoder(accept)
        return content_type, encode(registry)

    return serve
