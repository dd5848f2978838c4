"""The agent's metrics, as a scraper reads them: over HTTP, parsed by Prometheus' own library."""

import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from slicebw.agent.metrics import AgentMetrics
from slicebw.agent.stats import BOUNDS_MS, KINDS, Histogram
from slicebw.cli.exposition import page
from slicebw.cli.probe_server import ProbeServer
from slicebw.core.dataplane import ChangeClass, RootQdisc, TableChange, TreeChange
from slicebw.core.desired import Mode
from slicebw.kernel.fake import Fault
from tests.unit.agent.test_reconciler import World
from tests.unit.core.builders import START_S, M, pod, spec

STANDARD, EXEMPT = 0x1001, 0x2001
Samples = dict[tuple[str, str], float]


def parsed(text: str) -> Samples:
    """Return samples by name and label values; these are in the order of the labels' names."""
    return {
        (
            sample.name.removeprefix("slicebw_"),
            " ".join(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Reports:
    """The counts of a report queue."""

    waiting, writes = 3, 7


class Scraped(World):
    """A node, and an agent on it that can be scraped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = ProbeServer(
            "127.0.0.1", 0, {}, {"/metrics": page(AgentMetrics(lambda: self.reconciler, Reports()))}
        )
        self.server.start()

    def scrape(self, accept: str = "") -> str:
        """Return the page that a scraper gets."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.server.port}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - its scheme stands above
            self.content_type = answer.headers["Content-Type"]
            return str(answer.read().decode())

    @property
    def samples(self) -> Samples:
        """The page that a scraper gets, parsed."""
        return parsed(self.scrape())

    def sum_of(self, name: str) -> float:
        """Return the sum of a metric over all labels."""
        return sum(value for (found, _), value in self.samples.items() if found == name)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Scraped]:
    made = Scraped(tmp_path)
    yield made
    made.server.stop()


def test_before_the_first_pass_there_is_nothing_to_say_of_slices(world: Scraped) -> None:
    samples = world.samples
    assert samples["passes_total", ""] == 0
    assert not any(name.startswith(("slice_", "node_")) for name, _ in samples)
    assert ("last_pass_timestamp_seconds", "") not in samples
    assert {labels for name, labels in samples if name == "changes_applied_total"} == set(KINDS.values())


def test_the_label_values_of_changes_stay_whatever_their_classes_are_called() -> None:
    words = "create_root remove_root create_class change_class forgive_debt set_leaf delete_class"
    assert list(KINDS.values()) == [*words.split(), "replace_table", "update_table", "remove_table"]
    assert set(KINDS) == {*get_args(TreeChange), *get_args(TableChange)}


def test_every_slice_and_class_has_what_it_sent_used_and_may(world: Scraped) -> None:
    world.run()
    world.shaper.send(STANDARD, 90 * M)
    world.shaper.send(EXEMPT, 5 * M)
    world.run()
    samples = world.samples
    figures = {
        name: (samples[f"slice_{name}", "standard ns slice"], samples[f"slice_{name}", "exempt ns slice"])
        for name in ("sent_bytes_total", "used_bytes", "budget_bytes", "rate_limit_bps", "capped")
    }
    assert figures == {
        "sent_bytes_total": (90 * M, 5 * M),
        "used_bytes": (90 * M, 5 * M),
        "budget_bytes": (100 * M, 100 * M),
        "rate_limit_bps": (world.ceil_bps(), 10 * M),
        "capped": (1, 0),
    }
    assert samples["node_capped_slices", ""] == 1


def test_used_starts_again_with_a_period_and_sent_never_does(world: Scraped) -> None:
    world.run()
    world.shaper.send(STANDARD, 90 * M)
    world.run()
    world.run(seconds=3600)
    samples = world.samples
    assert samples["slice_used_bytes", "standard ns slice"] < 90 * M
    assert samples["slice_sent_bytes_total", "standard ns slice"] == 90 * M


def test_a_slice_that_left_keeps_its_usage_and_has_no_ceiling(world: Scraped) -> None:
    world.run()
    world.shaper.send(STANDARD, 7 * M)
    world.feed.now = replace(world.feed.now, pods=())
    for _ in range(3):
        world.run()
    samples = world.samples
    assert samples["slice_used_bytes", "standard ns slice"] == 7 * M
    assert ("slice_rate_limit_bps", "standard ns slice") not in samples
    assert samples["node_slices", ""] == 0


def test_the_node_tells_of_its_own_traffic_its_rates_and_its_mode(world: Scraped) -> None:
    world.run()
    world.shaper.send(0x1000, 11)
    world.shaper.send(0x2FFF, 13)
    world.feed.now = replace(world.feed.now, node=replace(world.feed.now.node, cap_bps=50 * M, mode=Mode.MONITOR))
    world.run()
    samples = world.samples
    assert samples["node_sent_bytes_total", "standard root"] == 11
    assert samples["node_sent_bytes_total", "exempt default"] == 13
    assert (samples["node_cap_bps", ""], samples["node_line_rate_bps", ""]) == (50 * M, 1000 * M)
    unclassified = [samples["node_unclassified_max_bps", name] for name in ("standard", "exempt")]
    assert unclassified == [50 * M, 1000 * M]
    assert [samples["node_mode", mode.value] for mode in Mode] == [0, 1, 0]
    assert samples["node_ready", ""] == 1


def test_passes_are_counted_and_timed(world: Scraped) -> None:
    for _ in range(3):
        world.run()
    samples = world.samples
    assert samples["passes_total", ""] == samples["pass_duration_seconds_count", ""] == 3
    assert samples["pass_duration_seconds_bucket", "+Inf"] == samples["pass_duration_seconds_bucket", "0.001"] == 3
    assert samples["last_pass_timestamp_seconds", ""] == START_S + world.seconds


@pytest.mark.parametrize(
    ("duration_ms", "bucket"), [(0, 0), (1, 0), (1.001, 1), (5000, len(BOUNDS_MS) - 1), (9000, len(BOUNDS_MS))]
)
def test_a_duration_is_counted_where_it_belongs(duration_ms: float, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(int(duration_ms * 1_000_000))
    assert histogram.cumulative() == [0] * bucket + [1] * (len(BOUNDS_MS) + 1 - bucket)
    assert histogram.sum_ns == int(duration_ms * 1_000_000)


def test_changes_are_counted_by_kind_and_apart_where_they_failed(world: Scraped) -> None:
    world.run()
    applied = world.samples
    assert applied["changes_applied_total", "create_root"] == applied["changes_applied_total", "replace_table"] == 1
    assert applied["changes_applied_total", "create_class"] == 9
    world.shaper.faults.append((ChangeClass, Fault.REFUSED))
    world.classifier.faults.append(Fault.BEFORE)
    pods = (pod("ns/pod", "10.0.0.7"),)
    world.feed.now = replace(world.feed.now, slices=(spec(max_rate_bps=20 * M),), pods=pods)
    world.run()
    samples = world.samples
    assert samples["changes_failed_total", "change_class"] == samples["changes_failed_total", "update_table"] == 1
    assert samples["changes_applied_total", "change_class"] == 0
    world.run()
    samples = world.samples
    assert samples["changes_applied_total", "change_class"] == samples["changes_applied_total", "update_table"] == 1
    assert samples["changes_failed_total", "change_class"] == 1
    assert world.sum_of("repairs_total") == 0


def test_changes_that_undo_drift_are_counted_as_repairs(world: Scraped) -> None:
    world.run()
    device = world.shaper.devices["uplink0"]
    device.classes[STANDARD] = replace(device.classes[STANDARD], ceil_bps=99 * M)
    device.classes[EXEMPT] = replace(device.classes[EXEMPT], leaf_major=0)
    world.run()
    assert world.samples["repairs_total", "change_class"] == world.samples["repairs_total", "set_leaf"] == 1
    world.classifier.spoil()
    world.run(seconds=11)
    assert world.samples["repairs_total", "replace_table"] == 1
    device.lose_tree()
    world.run()
    assert world.samples["repairs_total", "create_root"] == 1
    assert world.samples["repairs_total", "create_class"] == 9


def test_removing_a_tree_that_is_not_desired_is_counted_as_a_repair(world: Scraped) -> None:
    world.feed.now = replace(world.feed.now, node=replace(world.feed.now.node, mode=Mode.DISABLED))
    world.run()
    world.shaper.devices["uplink0"].root = RootQdisc.OURS
    world.run()
    assert world.samples["repairs_total", "remove_root"] == 1


def test_changes_of_the_desired_state_are_not_counted_as_repairs(world: Scraped) -> None:
    world.run()
    node = world.feed.now.node
    world.shaper.send(STANDARD, 90 * M)
    for mode in (Mode.ENFORCE, Mode.DISABLED, Mode.DISABLED, Mode.ENFORCE, Mode.MONITOR):
        world.feed.now = replace(world.feed.now, node=replace(node, mode=mode))
        world.run(seconds=20)
    world.shaper.default_device = "uplink1"
    world.run()
    world.run(seconds=5)
    world.feed.now = replace(world.feed.now, slices=(), pods=())
    for _ in range(3):
        world.run()
    assert world.shaper.devices["uplink1"].root is RootQdisc.OURS
    assert world.sum_of("repairs_total") == 0
    assert world.sum_of("orphans_removed_total") == 0


def test_a_class_that_no_slice_knows_is_an_orphan(world: Scraped) -> None:
    world.run()
    classes = world.shaper.devices["uplink0"].classes
    classes[0x1777] = replace(classes[STANDARD], minor=0x1777, leaf_major=0x1777)
    for _ in range(2):
        world.run()
    assert 0x1777 not in classes
    assert world.samples["orphans_removed_total", ""] == 1
    assert world.sum_of("repairs_total") == 0


def test_checkpoints_that_fail_and_reports_that_wait_are_told(world: Scraped) -> None:
    world.run()
    (world.folder / "ledger.tmp").mkdir()
    world.shaper.send(STANDARD, 1)
    world.run()
    samples = world.samples
    assert samples["failed_saves_total", ""] == 1
    assert (samples["reports_waiting", ""], samples["reports_written_total", ""]) == (3, 7)


def test_openmetrics_is_spoken_too(world: Scraped) -> None:
    world.run()
    text = world.scrape("application/openmetrics-text;version=1.0.0")
    assert world.content_type.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    world.scrape()
    assert world.content_type.startswith("text/plain; version=0.0.4")


def test_names_and_types_follow_prometheus_conventions(world: Scraped) -> None:
    world.run()
    text = world.scrape()
    for line in text.splitlines():
        if line.startswith("# TYPE slicebw_"):
            _, _, name, kind = line.split()
            assert (kind == "counter") == name.endswith("_total"), line
    assert "process_resident_memory_bytes" in text
    assert "python_info" not in text


def test_scraping_while_passes_run_is_safe(world: Scraped) -> None:
    world.run()
    stop, troubles = threading.Event(), []

    def scrape() -> None:
        while not stop.is_set():
            try:
                assert world.samples["passes_total", ""] >= 1
            except Exception as error:  # noqa: BLE001 - any error of the thread must fail the test
                troubles.append(error)

    scrapers = [threading.Thread(target=scrape) for _ in range(2)]
    for scraper in scrapers:
        scraper.start()
    for number in range(60):
        names = [f"ns{(number + n) % 40}" for n in range(20)]
        pods = tuple(pod(f"{name}/p", f"10.0.0.{n + 1}") for n, name in enumerate(names))
        world.feed.now = replace(world.feed.now, slices=tuple(spec(f"{name}/s") for name in names), pods=pods)
        world.run()
    stop.set()
    for scraper in scrapers:
        scraper.join()
    assert troubles == []


def test_a_page_that_fails_is_an_error_500_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def broken(accept: str) -> tuple[str, bytes]:
        raise LookupError(accept)

    server = ProbeServer("127.0.0.1", 0, {"/healthz": lambda: None}, {"/metrics": broken})
    server.start()
    try:
        with pytest.raises(urllib.request.HTTPError, match="500"):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10) as answer:
            assert answer.read() == b"ok\n"
    finally:
        server.stop()
    assert "/metrics cannot be served" in caplog.text
