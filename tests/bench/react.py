"""How soon changes are in the kernel: from the API to the class, and from the threshold to the cap."""

import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence

from tests.api.cluster import eventually
from tests.bench.agent_lab import AgentLab, Monitor, agent_lab, standard_classid
from tests.bench.frame import Row, Samples, at_most_times, figure, say, single_times, times
from tests.support.tc import ShownClass, classes

RATE_OVER_S = 0.1
"""The rate at the threshold is measured over the last of these seconds, up to twice as many."""
LINE_MBIT = 1000
"""The rate that the slice under test may send at: 1 Gbit/s."""
ANSWER = "the API server's answer"
CHANGE = 100.0
"""A change may take at most this many times the API server's answer until it is in the kernel, at p99."""
CAP = 40.0
"""A cap may come late by at most this many times a whole change, from the API to the kernel."""


def rows(quick: bool) -> Iterator[Row]:
    """Make patches, pods and caps, one at a time, on a node with many slices."""
    slices, repeats, caps = (5, 5, 1) if quick else (100, 100, 10)
    with agent_lab(pods=1) as lab:
        say(f"a control plane, an agent, {slices} slices")
        (pod,) = lab.net.pods
        lab.add_slices(range(slices), lambda n: pod.address if n == 0 else _address(97, n), maxRate=f"{LINE_MBIT}M")
        with (
            lab.agent(),
            Monitor(lab.net.node, "tc", "monitor") as tree,
            Monitor(lab.net.node, "nft", "monitor") as nft,
        ):
            case = f"{slices} slices"
            patches, answers = _patches(lab, tree, slices, repeats)
            yield from _spread(case, "SliceBandwidth patch to class", patches, answers)
            yield from _spread(case, "new pod to map element", *_pods(lab, nft, slices, repeats))
            classid = eventually(lambda: standard_classid(lab, 0), within_s=30)
            measured = [_cap(lab, tree, classid, 50 if quick else 250) for _ in range(caps)]
            rate = Samples(tuple(rate_bps / 1e6 for rate_bps, _ in measured))
            yield figure("1 Gbit/s", "rate at the threshold", rate, "Mbit/s")
            late = Samples(tuple(late_s for _, late_s in measured))
            yield figure("1 Gbit/s", "threshold to cap", late, "s")
            reference = ("a SliceBandwidth patch to its class", statistics.median(patches))
            within = at_most_times(CAP)
            yield single_times("1 Gbit/s", "threshold to cap, latest", late.high, "s", reference, within)


def _spread(case: str, what: str, seconds: Sequence[float], answers: Sequence[float]) -> Iterator[Row]:
    """Compare with the API server's own answer to the request that makes the change."""
    mine, its = Samples(tuple(seconds)), Samples(tuple(answers))
    yield times(case, f"{what}, p50", mine, "s", (ANSWER, its))
    reference = (f"{ANSWER}, p50", its.median)
    yield single_times(case, f"{what}, p99", _p99(seconds), "s", reference, at_most_times(CHANGE))


def _p99(seconds: Sequence[float]) -> float:
    return max(seconds) if len(seconds) < 2 else statistics.quantiles(seconds, n=100, method="inclusive")[98]


def _address(network: int, number: int) -> str:
    return f"10.{network}.{number // 250}.{number % 250 + 1}"


def _patches(lab: AgentLab, tree: Monitor, slices: int, times: int) -> tuple[list[float], list[float]]:
    """Set a new maxRate each time. Returns the seconds until the kernel has it, and until the API server answers."""
    found, answers = [], []
    for number in range(times):
        time.sleep(random.uniform(0.05, 0.3))  # hits the agent at any point of its cycle
        tree.forget()
        begun = time.monotonic()
        lab.patch(1 + number % (slices - 1), maxRate=f"{101 + number}M")
        answers.append(time.monotonic() - begun)
        found.append(tree.first(rf"class htb .* ceil {101 + number}Mbit").at_s - begun)
    return found, answers


def _pods(lab: AgentLab, table: Monitor, slices: int, times: int) -> tuple[list[float], list[float]]:
    """Add pods. Returns the seconds from the address in the status to the kernel's map, and to the answer."""
    found, answers = [], []
    for number in range(times):
        time.sleep(random.uniform(0.05, 0.3))
        address = _address(98, number)
        begun = lab.add_pod(1 + number % (slices - 1), f"extra-{number}", address)
        answers.append(time.monotonic() - begun)
        found.append(table.first(rf"add element .*[ {{]{re.escape(address)} ").at_s - begun)
    return found, answers


def _cap(lab: AgentLab, tree: Monitor, classid: str, megabytes: int) -> tuple[float, float]:
    """Send until the slice is capped. Returns the rate at its threshold, and the seconds from there to the cap."""
    threshold = _shown(lab, classid).sent_bytes + megabytes * 1_000_000
    limits = {"maxRate": f"{LINE_MBIT}M", "threshold": str(threshold), "budget": str(2 * threshold)}
    lab.patch(0, **limits)
    eventually(lambda: _shown(lab, classid).ceil_bps == LINE_MBIT * 1_000_000)
    tree.forget()
    flow = lab.net.traffic(lab.net.pods[0], lab.net.sink.address, 60)
    try:
        before_s, before = middle_s, middle = time.monotonic(), _shown(lab, classid).sent_bytes
        while True:
            now = _shown(lab, classid).sent_bytes
            now_s = time.monotonic()
            if now >= threshold:
                break
            if now_s - middle_s > RATE_OVER_S:
                before_s, before, middle_s, middle = middle_s, middle, now_s, now
        rate_bps = (now - before) * 8 / (now_s - before_s)
        crossed_s = now_s - (now - threshold) * 8 / rate_bps
        capped_s = tree.first(rf"class htb {classid} .* ceil (?!{LINE_MBIT // 1000}Gbit)").at_s
    finally:
        flow.stop()
    return rate_bps, max(0.0, capped_s - crossed_s)


def _shown(lab: AgentLab, classid: str) -> ShownClass:
    return classes(lab.net.node, lab.net.uplink)[classid]
