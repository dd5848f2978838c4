"""Rates that real traffic gets, and bytes that are counted for it."""

import time
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from slicebw.core.dataplane import (
    ChangeClass,
    ClassSpec,
    CreateClass,
    NftTable,
    ReplaceTable,
    ResetTokens,
    TreeChange,
    UpdateTable,
    classid,
)
from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.nft import NftClassifier
from tests.support.counters import read_counters
from tests.support.topology import UPLINK, Namespace, Topology, wait_until
from tests.support.trees import LINE_RATE_BPS, creation, tree

M = 1_000_000


@dataclass
class Node:
    """A lab whose pods are slices 1, 2, ..., and its desired tree."""

    lab: Topology
    shaper: HtbShaper
    classifier: NftClassifier
    desired: dict[int, ClassSpec]

    def set(self, minor: int, **limits: int) -> None:
        """Give a class other limits."""
        self.apply(ChangeClass(replace(self.desired[minor], **limits)))

    def apply(self, change: TreeChange) -> None:
        """Carry out one change."""
        assert self.shaper.apply(UPLINK, [change], LINE_RATE_BPS) == []

    def sent(self, minor: int) -> int:
        """Return a class's counter."""
        return self.shaper.read(UPLINK).classes[minor].sent_bytes

    def drained(self, minor: int) -> int:
        """Wait until a class's queue is empty. Returns its counter."""
        wait_until(lambda: self.shaper.read(UPLINK).classes[minor].backlog_bytes == 0, f"{minor:x} has drained", 30)
        return self.sent(minor)


def build(lab: Topology, shaper: HtbShaper, classifier: NftClassifier) -> Node:
    desired = tree(range(1, len(lab.pods) + 1))
    assert shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS) == []
    slices = {address: number for number, pod in enumerate(lab.pods, 1) for address in (pod.address, pod.address6)}
    classifier.apply(ReplaceTable(NftTable(slices, frozenset(lab.sink.exempt_networks))))
    return Node(lab, shaper, classifier, desired)


def add_slice(node: Node, slice_id: int) -> None:
    """One more pod, in a slice of its own."""
    pod = node.lab.add_pod()
    minor = 0x1000 | slice_id
    node.desired[minor] = replace(node.desired[0x1001], minor=minor, leaf_major=minor)
    node.apply(CreateClass(node.desired[minor]))
    node.classifier.apply(UpdateTable(add=((pod.address, slice_id),)))


@pytest.fixture
def node(fast_lab: Topology, shaper: HtbShaper, classifier: NftClassifier) -> Node:
    return build(fast_lab, shaper, classifier)


@pytest.fixture
def exact_node(lab: Topology, shaper: HtbShaper, classifier: NftClassifier) -> Node:
    return build(lab, shaper, classifier)


@pytest.mark.parametrize(("ceil_mbps", "address"), [(1, "address"), (10, "address"), (100, "address6")])
def test_a_ceiling_is_held(node: Node, ceil_mbps: int, address: str) -> None:
    node.set(0x1001, ceil_bps=ceil_mbps * M)
    rate = node.lab.tcp_rate_bps(node.lab.pod(0), getattr(node.lab.sink, address), 4) / M
    assert 0.9 * ceil_mbps <= rate <= ceil_mbps


def test_the_two_classes_of_a_slice_have_ceilings_of_their_own(node: Node) -> None:
    node.set(0x1001, ceil_bps=5 * M)
    node.set(0x2001, ceil_bps=50 * M)
    pod, sink = node.lab.pod(0), node.lab.sink
    standard, exempt = node.lab.tcp_rates_bps([(pod, sink.address), (pod, sink.exempt_address)], 3)
    assert 4.5 * M <= standard <= 5 * M
    assert 45 * M <= exempt <= 50 * M


def test_a_change_holds_at_once_while_traffic_flows(node: Node) -> None:
    node.set(0x1001, ceil_bps=10 * M)
    flow = node.lab.traffic(node.lab.pod(0), node.lab.sink.address, 30)
    wait_until(lambda: node.sent(0x1001) > 100_000, "traffic flows")
    before = node.sent(0x1001)
    for ceil_bps in (40 * M, 5 * M, 20 * M):
        node.set(0x1001, ceil_bps=ceil_bps)
        count, start = node.sent(0x1001), time.monotonic()
        wait_until(lambda start=start: time.monotonic() > start + 1.5, "time has passed")  # type: ignore[misc]
        rate_bps = (node.sent(0x1001) - count) * 8 / (time.monotonic() - start)
        assert 0.85 * ceil_bps <= rate_bps <= 1.1 * ceil_bps
    assert node.sent(0x1001) > before
    flow.stop()


def rates_of_all_sending(node: Node, senders: dict[int, Namespace]) -> list[float]:
    """Let all send three times the available rate. Returns each class's rate over some seconds, in Mbit/s."""
    lab = node.lab
    flows = [lab.start_udp(sender, lab.sink.address, 60, 30 * M) for sender in senders.values()]
    for minor in senders:
        wait_until(lambda minor=minor: node.sent(minor) > 500_000, "all send", 30)  # type: ignore[misc]
    before = read_counters(node.shaper, UPLINK)
    wait_until(lambda: time.monotonic() > before.at_s + 4, "some seconds have been measured")
    after = read_counters(node.shaper, UPLINK)
    for flow in flows:
        flow.stop()
    return [after.rate_bps(before, classid(minor)) / M for minor in senders]


def test_spare_bandwidth_is_shared_by_quantum(exact_node: Node) -> None:
    """PlanetLab's vectors at 10 Mbit/s: root, with share 5, and five slices get 5 and 1 each; without root 2 each."""
    lab = exact_node.lab
    exact_node.set(0x10, ceil_bps=10 * M)
    pods: dict[int, Namespace] = {0x1001: lab.pod(0), 0x1002: lab.pod(1)}
    for slice_id in (3, 4, 5):
        add_slice(exact_node, slice_id)
        pods[0x1000 | slice_id] = lab.pods[-1]
    with_root = rates_of_all_sending(exact_node, {0x1000: lab.node, **pods})
    assert with_root == pytest.approx([5, 1, 1, 1, 1, 1], rel=0.1)
    assert rates_of_all_sending(exact_node, pods) == pytest.approx([2] * 5, rel=0.1)


def test_a_guarantee_comes_before_shares(exact_node: Node) -> None:
    """PlanetLab's other vector: two slices under 10 Mbit/s, one of them with a minRate of 2 Mbit/s, get 6 and 4."""
    lab = exact_node.lab
    exact_node.set(0x10, ceil_bps=10 * M)
    exact_node.set(0x1001, rate_bps=2 * M)
    assert rates_of_all_sending(exact_node, {0x1001: lab.pod(0), 0x1002: lab.pod(1)}) == pytest.approx([6, 4], rel=0.1)


@pytest.mark.parametrize("address", ["address", "exempt_address6"])
def test_every_byte_that_arrives_was_counted_and_none_besides(exact_node: Node, address: str) -> None:
    lab = exact_node.lab
    pod, to = lab.pod(0), str(getattr(lab.sink, address))
    source, minor = (pod.address6, 0x2001) if ":" in to else (pod.address, 0x1001)
    lab.sink.start_meter()
    exact_node.set(minor, ceil_bps=20 * M)
    before = exact_node.sent(minor)
    assert lab.tcp_rate_bps(pod, to, 2) > 15 * M
    counted = exact_node.drained(minor) - before
    wait_until(lambda: lab.sink.meter(source, to).wire_bytes >= counted, "all has arrived")
    assert lab.sink.meter(source, to).wire_bytes == counted > 4 * M


def test_what_a_change_drops_was_never_counted(exact_node: Node) -> None:
    lab = exact_node.lab
    pod, to = lab.pod(0), lab.sink.address
    lab.sink.start_meter()
    exact_node.set(0x1001, ceil_bps=8)
    lab.send_udp(pod, to, 20)
    wait_until(lambda: exact_node.shaper.read(UPLINK).classes[0x1001].backlog_bytes > 10_000, "packets wait")
    exact_node.apply(ResetTokens(exact_node.desired[0x1001]))
    lab.send_udp(pod, to, 20)
    counted = exact_node.drained(0x1001)
    wait_until(lambda: lab.sink.meter(pod.address, to).packets >= 21, "the later packets have arrived")
    assert lab.sink.meter(pod.address, to).wire_bytes == counted


def test_counters_continue_beyond_32_bits(node: Node) -> None:
    lab = node.lab
    flow = lab.traffic(lab.pod(0), lab.sink.address, 120)
    last = 0
    deadline = time.monotonic() + 120
    while last <= 1 << 32 and time.monotonic() < deadline:
        sent = node.sent(0x1001)
        assert sent >= last
        last = sent
    flow.stop()
    assert last > 1 << 32
    assert node.drained(0x1001) >= last
    # The sink's device counts the headers of a bundle once; HTB counts those of each packet in it, as on a wire.
    assert 0.9 * last < lab.sink.received_bytes(UPLINK)


def time_until_it_sends_again(node: Node, change: TreeChange, limit_s: float) -> float:
    """Hold a class to 8 bit/s, let it send, raise the ceiling by a change, and see how long it stays silent."""
    lab = node.lab
    pod, to = lab.pod(0), lab.sink.address
    node.set(0x1001, ceil_bps=8)
    lab.send_udp(pod, to, 2)
    wait_until(lambda: node.sent(0x1001) > 0, "the first packet is let through")
    node.apply(change)
    before, start = node.sent(0x1001), time.monotonic()
    while node.sent(0x1001) == before and time.monotonic() < start + limit_s:
        lab.send_udp(pod, to, 1)
    return time.monotonic() - start


def test_a_class_whose_tokens_are_reset_sends_at_once(exact_node: Node) -> None:
    change = ResetTokens(replace(exact_node.desired[0x1001], ceil_bps=10 * M))
    before = exact_node.sent(0x1001)
    assert time_until_it_sends_again(exact_node, change, 5) < 0.5
    assert exact_node.sent(0x1001) > before
    assert exact_node.lab.tcp_rate_bps(exact_node.lab.pod(0), exact_node.lab.sink.address, 3) > 9 * M


def test_a_class_that_is_only_changed_stays_silent(exact_node: Node) -> None:
    """Without ResetTokens the silence takes up to 60 s, of which this test waits three."""
    change = ChangeClass(replace(exact_node.desired[0x1001], ceil_bps=10 * M))
    assert time_until_it_sends_again(exact_node, change, 3) > 3
