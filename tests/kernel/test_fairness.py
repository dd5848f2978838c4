"""PlanetLab's published share vectors at a node cap of 10 Mbit/s, with real flows that all want everything."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.folder_lab import FolderLab, M, folder_lab
from tests.support.senders import Sender
from tests.support.topology import Host, wait_until

pytestmark = pytest.mark.usefixtures("kernel")

HOST = "host"
HOST_CLASS = "1:1000"
"""The class of what the node itself sends."""
SETTLE_S = 1.5
MEASURED_S = 5.0

Spec = dict[str, object]
Flow = Callable[[FolderLab, Host], AbstractContextManager[object]]


def udp(lab: FolderLab, host: Host) -> AbstractContextManager[object]:
    """More than the whole node may send, whatever happens to it."""
    return Sender(host, lab.net.sink.address, 12 * M)


def tcp(lab: FolderLab, host: Host) -> AbstractContextManager[object]:
    """As much as one connection can."""
    stack = ExitStack()
    stack.callback(lab.net.traffic(host, lab.net.sink.address, 60).stop)
    return stack


def rates_bps(lab: FolderLab, slice_ids: Sequence[str]) -> list[float]:
    """The rate at which each class sends, measured over some seconds; the sink confirms the sum."""
    begin = time.monotonic()
    wait_until(lambda: time.monotonic() - begin > SETTLE_S, "the flows have settled")
    before, arrived_before = lab.counters(), lab.net.sink.received_bytes(lab.net.uplink)
    wait_until(lambda: time.monotonic() - before.at_s > MEASURED_S, "it has been measured")
    after, arrived = lab.counters(), lab.net.sink.received_bytes(lab.net.uplink) - arrived_before
    # There are no other flows. The sink is read a moment after the classes, hence the tolerance.
    sent_bytes = sum(after.sent_since(before, one) for one in slice_ids)
    assert arrived == pytest.approx(sent_bytes, rel=0.05)
    return [after.rate_bps(before, one) for one in slice_ids]


VECTORS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "the node itself and five slices": ({HOST: None, **{f"s{i}": {} for i in range(5)}}, [5, 1, 1, 1, 1, 1]),
    "five slices": ({f"s{i}": {} for i in range(5)}, [2, 2, 2, 2, 2]),
    "two slices, one with a guarantee of 2 Mbit/s": ({"s0": {"standard": {"minRate": "2M"}}, "s1": {}}, [6, 4]),
    "two slices with shares of 3 and 1": ({"s0": {"share": 3}, "s1": {}}, [7.5, 2.5]),
}


@pytest.mark.parametrize("flow", [udp, tcp])
@pytest.mark.parametrize("vector", VECTORS)
def test_all_senders_get_their_published_shares_of_the_node_cap(tmp_path: Path, vector: str, flow: Flow) -> None:
    specs, published_mbps = VECTORS[vector]
    slices = {name: spec for name, spec in specs.items() if spec is not None}
    with folder_lab(tmp_path, *slices, cap="10M") as lab, ExitStack() as flows:
        for name, spec in slices.items():
            lab.write_slice(name, **spec)
        lab.start()
        for name in slices:
            wait_until(lambda name=name: lab.ceil_bps(name) == 10 * M, f"{name} is served")  # type: ignore[misc]
        for name in specs:
            flows.enter_context(flow(lab, lab.net.node if name == HOST else lab.pod(name)))
        slice_ids = [HOST_CLASS if name == HOST else lab.slice_id(name) for name in specs]
        measured_mbps = [rate / M for rate in rates_bps(lab, slice_ids)]
    print(f"{vector}, {flow.__name__}: {' '.join(f'{rate:.2f}' for rate in measured_mbps)} Mbit/s")
    assert measured_mbps == [pytest.approx(rate, rel=0.1) for rate in published_mbps]
