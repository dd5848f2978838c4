"""docs/metrics.md lists exactly the metrics that exist, with their types and labels."""

import re
from pathlib import Path

from prometheus_client.core import Metric

from slicebw import __version__
from slicebw.agent.metrics import AgentMetrics
from slicebw.cli.exposition import ApiMetrics, BuildInfo, page
from slicebw.controller.metrics import ControllerMetrics
from slicebw.controller.stats import Stats
from slicebw.controller.status_loop import StatusLoop
from slicebw.kube.api_health import ApiHealth
from tests.support.processes import ROOT
from tests.unit.agent.test_reconciler import World
from tests.unit.controller.cluster import World as Cluster

Row = tuple[str, str, tuple[str, ...]]


class Reports:
    """The counts of a report queue."""

    waiting, writes = 0, 0


def controller_metrics(stats: Stats) -> ControllerMetrics:
    """Return the metrics of a controller with these stats."""
    cluster = Cluster()
    loop = StatusLoop(cluster, cluster)
    loop.stats = stats
    return ControllerMetrics(cluster, loop)


def row(family: Metric) -> Row:
    """Return name, type and labels, as the document has them."""
    labels = sorted({name for sample in family.samples for name in sample.labels})
    name = family.name + ("_total" if family.type == "counter" else "")
    return name, family.type, tuple(labels)


def documented() -> list[Row]:
    """Return the rows of the document's tables of metrics."""
    lines = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    cells = (re.fullmatch(r"\| `(slicebw_\w+)` \| (\w+) \| ([\w, ]*?) ?\| .+ \|", line) for line in lines)
    return sorted(
        (found[1], found[2], tuple(sorted(found[3].split(", ")) if found[3] else ())) for found in cells if found
    )


def test_the_document_and_the_code_know_the_same_metrics(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run()
    health = ApiHealth()
    health.failed("internal", "something", LookupError())
    collectors = (
        AgentMetrics(lambda: world.reconciler, Reports()),
        controller_metrics(Stats()),
        ApiMetrics(health),
        BuildInfo(),
    )
    assert documented() == sorted(row(family) for collector in collectors for family in collector.collect())


def test_how_long_the_api_server_is_away_is_told() -> None:
    health = ApiHealth()
    assert b"slicebw_api_unreachable_seconds 0.0\n" in page(ApiMetrics(health))("")[1]
    health.unreachable("cannot reach it.")
    _, body = page(ApiMetrics(health))("")
    (away,) = (line.split()[1] for line in body.splitlines() if line.startswith(b"slicebw_api_unreachable_seconds "))
    assert float(away) > 0
    assert b'slicebw_api_failures_total{kind="unreachable"} 1.0\n' in body


def test_two_pages_share_nothing() -> None:
    first, second = page(controller_metrics(Stats(writes=1))), page(controller_metrics(Stats(writes=2)))
    assert b"status_writes_total 1.0" in first("")[1]
    assert b"status_writes_total 2.0" in second("")[1]
    assert f'slicebw_build_info{{version="{__version__}"}} 1.0'.encode() in first("")[1]
