"""The controller stores only what it needs of each usage."""

import gc
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from slicebw.api import bandwidth_usage
from slicebw.core.desired import SliceKey
from slicebw.core.errors import SlicebwError
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.connection import Connection
from slicebw.kube.controller_feed import ApiClusterFeed
from tests.support.reports import GB, PERIOD_START_S, class_usage, usage_report

MOST_BYTES = 1200
"""Of memory for one usage; 20,000 (1,000 nodes with 20 slices each) then are 24 MB. As it comes one is 10 kB."""


def usage(number: int) -> Any:
    """A usage as decoded from the API server's answer: it shares no string with another one."""
    report = usage_report(
        f"slice-namespace-{number % 20:04d}",
        slice_id=number % 4000 + 1,
        standard=class_usage(number * 1_000_003),
        exempt=class_usage(number * 7919),
    )
    node = f"node-{number // 20:05d}.example.org"
    obj = bandwidth_usage.to_object(report, node, f"0b8a3f2e-0000-4000-8000-{number:012d}", PERIOD_START_S + number)
    obj["metadata"].update(uid=f"1b8a3f2e-0000-4000-8000-{number:012d}", resourceVersion=str(1000 + number))
    return json.loads(json.dumps(obj))


def nowhere() -> Connection:
    raise SlicebwError("there is no API server")


@pytest.fixture
def known() -> Iterator[ApiClusterFeed]:
    """A feed without an API server. The test puts usages into it."""
    api = ApiThread(nowhere, "test")
    api.start()
    yield ApiClusterFeed(api, lambda: None)
    api.stop()


def test_of_many_usages_only_what_is_needed_is_kept(known: ApiClusterFeed) -> None:
    count = 4_000
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(count):
            known.upsert_usage(usage(number))
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert known.known_usages() == count
    assert kept / count < MOST_BYTES


def test_what_is_needed_is_kept(known: ApiClusterFeed) -> None:
    known.upsert_usage(usage(7))
    (copy,) = known.usages_of(SliceKey("slice-namespace-0007", "codeen"))
    assert (copy.name, copy.owned, copy.usage.node_name) == (
        "codeen.node-00000.example.org",
        True,
        "node-00000.example.org",
    )
    assert copy.usage.report.standard.used_bytes == 7 * 1_000_003
    assert copy.usage.report.standard.percent == 7 * 1_000_003 * 100 // (10 * GB)
    assert copy.usage.report.slice_id == 8
