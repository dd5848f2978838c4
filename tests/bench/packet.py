"""Packets through the node: the cost of shaping, and how exactly rates, bursts, delays and shares are held.

Rates count bytes as HTB does: IP packets with their Ethernet headers, without preamble, gap and checksum. For rates the
uplink passes on no bundles of packets (GSO), so that the sink's device counts the same bytes. At 1,000 Mbit/s pods may
send bundles, because no processor here fills that ceiling with single packets. The first second begins with the first
packet that arrives. Round trips depend on the kernel's leaf queues: see latency.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from slicebw.kernel.codec import burst_bytes
from tests.bench.frame import (
    Row,
    Samples,
    at_least_times,
    at_most,
    figure,
    in_turn,
    in_turn_together,
    say,
    single,
    times,
)
from tests.bench.shaping import CONTAINERD_BURST_BITS, LINE_RATE_BPS, ByCniPlugin, BySlicebw, Shaped, Unshaped
from tests.support.round_trips import ping_ms
from tests.support.topology import UPLINK, Meter, Pod, Topology, wait_until

M: Final = 1_000_000
SLICES: Final = (1, 64, 1_000, 4_000)
RATES_MBPS: Final = (1, 10, 100, 1_000)
BUNDLES_FROM_MBPS: Final = 1_000
UNSHAPED: Final = "unshaped"
CNI: Final = "the CNI plugin's"
ONE_SLICE: Final = "with 1 slice"
SMALL_BYTES: Final = 64
NODE_MBPS: Final = 100


def rows(quick: bool) -> Iterator[Row]:
    """Measure what shaping costs, and then how exactly limits are held."""
    sizes = SLICES[:2] if quick else SLICES
    yield from throughput(sizes, seconds=1 if quick else 2, rounds=0 if quick else 5)
    yield from packets(sizes, seconds=0.5 if quick else 2, rounds=0 if quick else 5)
    for rate in RATES_MBPS[1:2] if quick else RATES_MBPS:
        yield from rates(rate, seconds=1 if quick else 5, rounds=0 if quick else 2)
    yield from shares(seconds=1 if quick else 5)


def labs(stack: ExitStack, sizes: Sequence[int], *, offloads: bool) -> dict[str, Shaped]:
    """Build the same path once for each way of shaping, so that they can be measured in turn. None is limited."""
    found: dict[str, Shaped] = {UNSHAPED: Unshaped(offloads=offloads), CNI: ByCniPlugin(offloads=offloads)}
    for slices in sizes:
        say(f"making a node with {slices:,} slices")
        found[with_slices(slices)] = BySlicebw(slices=slices, offloads=offloads)
    for lab in found.values():
        stack.enter_context(lab)
    found[CNI].limit(LINE_RATE_BPS)
    return found


def with_slices(slices: int) -> str:
    """Return the name of this size in rows."""
    return f"with {slices:,} slice{'' if slices == 1 else 's'}"


def costs(case: str, unit: str, found: dict[str, Samples]) -> Iterator[Row]:
    """Make rows of each way against unshaped, and of the largest tree against the smallest."""
    for name, samples in found.items():
        if name == UNSHAPED:
            yield figure(case, name, samples, unit)
        else:
            yield times(case, name, samples, unit, (UNSHAPED, found[UNSHAPED]))
    largest = list(found)[-1]
    whole = at_least_times(0.95) if largest == with_slices(SLICES[-1]) else None
    yield times(case, largest, found[largest], unit, (ONE_SLICE, found[ONE_SLICE]), whole)
    yield times(case, ONE_SLICE, found[ONE_SLICE], unit, (CNI, found[CNI]))


def throughput(sizes: Sequence[int], seconds: int, rounds: int) -> Iterator[Row]:
    """Measure one TCP stream, in bundles of up to 64 KiB as on a real node."""
    with ExitStack() as stack:
        ways = labs(stack, sizes, offloads=True)
        say("TCP throughput, in turn")
        found = in_turn(rounds, {name: tcp_mbps(shaped, seconds) for name, shaped in ways.items()})
    yield from costs("TCP, bundles of 64 KiB", "Mbit/s", found)


def tcp_mbps(shaped: Shaped, seconds: int) -> Callable[[], float]:
    """Make a measurement of one stream's rate."""
    return lambda: shaped.lab.tcp_rate_bps(shaped.lab.pod(0), shaped.lab.sink.address, seconds) / M


def packets(sizes: Sequence[int], seconds: float, rounds: int) -> Iterator[Row]:
    """Measure small datagrams without bundles: the cost of each packet."""
    with ExitStack() as stack:
        ways = labs(stack, sizes, offloads=False)
        say("packets per second, in turn")
        found = in_turn(rounds, {name: kilopackets(shaped.lab, seconds) for name, shaped in ways.items()})
    yield from costs(f"UDP, {SMALL_BYTES} bytes each", "kpackets/s", found)


def kilopackets(lab: Topology, seconds: float) -> Callable[[], float]:
    """Make a measurement of small datagrams that arrive in a second, sent as fast as one processor can."""

    def measure() -> float:
        flow = lab.start_small_udp(lab.pod(0), lab.sink.address, SMALL_BYTES)
        try:
            start_bytes = received(lab)
            wait_until(lambda: received(lab) > start_bytes, "datagrams arrive")
            before, begin = received_packets(lab), time.monotonic()
            sleep_until(begin + seconds)
            after, end = received_packets(lab), time.monotonic()
        finally:
            flow.stop()
        return (after - before) / (end - begin) / 1000

    return measure


def rates(mbps: int, seconds: float, rounds: int) -> Iterator[Row]:
    """Measure one ceiling with slicebw, and with the plugin at slicebw's burst and at containerd's."""
    case = f"ceiling {mbps:,} Mbit/s"
    say(f"{case}: rate, first second, round-trip time")
    burst_bits = burst_bytes(mbps * M, LINE_RATE_BPS) * 8
    bundles = {"offloads": mbps >= BUNDLES_FROM_MBPS, "uplink_offloads": False}
    with ExitStack() as stack:
        ways: dict[str, Shaped] = {
            "slicebw": BySlicebw(**bundles),
            "CNI plugin, same burst": ByCniPlugin(burst_bits=burst_bits, **bundles),
            "CNI plugin, as containerd runs it": ByCniPlugin(burst_bits=CONTAINERD_BURST_BITS, **bundles),
        }
        for shaped in ways.values():
            stack.enter_context(shaped)
            shaped.limit(mbps * M)
        found = in_turn_together(rounds, {name: held(shaped, mbps, seconds) for name, shaped in ways.items()})
    mine = found["slicebw"]
    for name, (rate, error, first, rtt) in found.items():
        is_mine = name == "slicebw"
        yield figure(case, f"{name}: rate", rate, "Mbit/s")
        yield figure(case, f"{name}: rate error", error, "%", at_most(3) if is_mine else None)
        yield figure(case, f"{name}: first second above it by", first, "%", at_most(10) if is_mine else None)
        yield figure(case, f"{name}: round trip under load", rtt, "ms")
    reference = ("the CNI plugin's, same burst", found["CNI plugin, same burst"][3])
    yield times(case, "slicebw: round trip under load", mine[3], "ms", reference)


def held(shaped: Shaped, mbps: int, seconds: float) -> Callable[[], tuple[float, float, float, float]]:
    """Make a measurement: rate, its error in %, the first second's excess in %, median round trip beside the stream."""

    def measure() -> tuple[float, float, float, float]:
        lab = shaped.lab
        shaped.limit(mbps * M)
        idle = received(lab)
        flow = lab.traffic(lab.pod(0), lab.sink.address, 60)
        try:
            # The stream's control connection comes first: more than one packet's bytes mean that the data has begun.
            wait_until(lambda: received(lab) > idle + 2_000, "the stream arrives")
            before, begin = received(lab), time.monotonic()
            sleep_until(begin + 1)
            first_bps = (received(lab) - before) * 8 / (time.monotonic() - begin)
            before, begin = received(lab), time.monotonic()
            round_trip_ms = ping_ms(lab.pod(0), lab.sink, seconds)
            rate_bps = (received(lab) - before) * 8 / (time.monotonic() - begin)
        finally:
            flow.stop()
        error = abs(rate_bps / (mbps * M) - 1) * 100
        return rate_bps / M, error, max(0.0, first_bps / (mbps * M) - 1) * 100, round_trip_ms

    return measure


def shares(seconds: float) -> Iterator[Row]:
    """Let two pods fill a 100 Mbit/s uplink, one with a single stream, the other with eight: each should get half."""
    case = f"2 pods, uplink {NODE_MBPS} Mbit/s, 1 and 8 streams"
    say(f"fairness: {case}")
    mine, cni = BySlicebw(pods=2, slices=2, offloads=False), ByCniPlugin(pods=2, offloads=False)
    with mine, cni:
        mine.limit_node(NODE_MBPS * M)
        cni.limit(NODE_MBPS * M)
        cni.line(NODE_MBPS * M)
        yield single(case, "slicebw: fairness error", unfairness(mine.lab, seconds), "%", at_most(5))
        error = unfairness(cni.lab, seconds)
        yield single(case, "CNI plugin, a plain queue on the uplink: fairness error", error, "%")


def unfairness(lab: Topology, seconds: float) -> float:
    """Return by how many percent a pod's share differs from half of both pods' bytes."""
    to = lab.sink.address
    lab.sink.start_meter()
    flows = [lab.traffic(lab.pod(0), to, 60), *(lab.traffic(lab.pod(1), to, 60) for _ in range(8))]
    try:
        pods = (lab.pod(0), lab.pod(1))
        wait_until(lambda: all(count > M for count in arrived(lab, pods)), "both send", 30)
        before = arrived(lab, pods)
        sleep_until(time.monotonic() + seconds)
        got = [now - then for now, then in zip(arrived(lab, pods), before, strict=True)]
    finally:
        for flow in flows:
            flow.stop()
    half = sum(got) / 2
    return max(abs(one - half) for one in got) * 100 / half


def arrived(lab: Topology, pods: Sequence[Pod]) -> list[int]:
    """Return the bytes that have arrived from each pod, all read at once."""
    meters = lab.sink.meters()
    return [meters.get((pod.address, lab.sink.address), Meter()).wire_bytes for pod in pods]


def received(lab: Topology) -> int:
    """Return the bytes on the wire that have arrived at the sink."""
    return lab.sink.received_bytes(UPLINK)


def received_packets(lab: Topology) -> int:
    """Return the packets that have arrived at the sink."""
    return lab.sink.received_packets(UPLINK)


def sleep_until(deadline: float) -> None:
    """Sleep for the time of a measurement."""
    time.sleep(max(0.0, deadline - time.monotonic()))
