"""CPU and memory of agent and controller, and an agent's requests to the API server."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.api.proxy import FaultProxy
from tests.bench.agent_lab import AgentLab, agent_lab
from tests.bench.bwmon import Bwmon
from tests.bench.frame import (
    Row,
    at_most,
    at_most_times,
    count,
    in_turn_together,
    say,
    single,
    single_times,
    wall_and_cpu_ms,
)
from tests.bench.gauges import cpu_s, peak_rss_mb, rss_mb, threads
from tests.support.processes import Slicebw
from tests.support.topology import wait_until

WINDOW_S = float(os.environ.get("SLICEBW_BENCH_WINDOW_S", "70"))
"""How long each measurement takes. Only a window above ten minutes shows what an agent does every ten minutes."""
QUIET_S = 6.0
SENDERS = 10
SENDER_RATE = "20M"
PASS_EVERY_S = 10.0
BWMON = "a bwmon-style loop"
RESTING = 15.0
"""An agent at rest may cost at most this many times bwmon's loop: it also watches the API server and serves probes."""


def rows(quick: bool) -> Iterator[Row]:
    """Measure an agent at rest and at work, a controller, and an agent on a full node."""
    window_s, senders = (2.0, 2) if quick else (WINDOW_S, SENDERS)
    with agent_lab(pods=senders) as lab:
        small, large = (10, 30) if quick else (100, 4_094)
        _fill(lab, 0, small)
        yield from _start_and_rest(lab, small, window_s, quick=quick)
        yield from _requests(lab, small, window_s, quick=quick)
        yield from _controller(lab, small, window_s, quick=quick)
        say(f"{large - small:,} more slices")
        _fill(lab, small, large)
        yield from _large(lab, large, 1.0 if quick else 30.0)


def _fill(lab: AgentLab, first: int, last: int) -> None:
    """Create slices. The first ones have real pods, which can send."""
    pods = lab.net.pods

    def address(number: int) -> str:
        return pods[number].address if number < len(pods) else f"10.9{number >> 16}.{number >> 8 & 255}.{number & 255}"

    lab.add_slices(range(first, last), address, maxRate=SENDER_RATE)


def started_s(process: Slicebw) -> float:
    """Start a process. Returns the seconds until it says that it is ready."""
    begun = time.monotonic()
    process.start()
    process.wait_ready(120)
    return time.monotonic() - begun


def _start_and_rest(lab: AgentLab, slices: int, window_s: float, *, quick: bool) -> Iterator[Row]:
    case = f"agent, {count(slices)}"
    agent = lab.agent(name="resting")
    with ExitStack() as stack:
        stack.callback(agent.stop)
        yield single(case, "start to ready", started_s(agent), "s")
        _settle(agent, 1.0 if quick else 60.0)
        cpu = _cpu_percent(agent.pid, window_s)
        yield single(case, "resident memory", rss_mb(agent.pid), "MB", at_most(90))
        yield single(case, "resident memory, peak", peak_rss_mb(agent.pid), "MB")
        yield single(case, "threads", threads(agent.pid), "threads")
        reference = (f"{BWMON} every {PASS_EVERY_S:g} s", _bwmon_percent(lab, 1 if quick else 20))
        within = at_most_times(RESTING)
        yield single_times(case, "CPU at rest", cpu, "% of a core", reference, within)


def _settle(process: Slicebw, most_s: float, waiting_metric: str = "slicebw_reports_waiting") -> None:
    """Wait until no reports of the start are waiting any more, or the time is up."""
    deadline = time.monotonic() + most_s
    waiting = 1.0
    while waiting and time.monotonic() < deadline:
        time.sleep(0.5)
        lines = process.page("/metrics").splitlines()
        waiting = sum(float(line.split()[-1]) for line in lines if line.startswith(waiting_metric))


def _cpu_percent(pid: int, window_s: float) -> float:
    before, begun = cpu_s(pid), time.monotonic()
    time.sleep(window_s)
    return 100 * (cpu_s(pid) - before) / (time.monotonic() - begun)


def _bwmon_percent(lab: AgentLab, rounds: int) -> float:
    """Return the CPU of bwmon's loop over the same classes, if it ran as often as an agent at rest reads them."""
    with TemporaryDirectory() as folder, lab.net.node.inside():
        bwmon = Bwmon(lab.net.uplink, Path(folder) / "bwmon")
        found = in_turn_together(rounds, {BWMON: lambda: wall_and_cpu_ms(lambda: bwmon.run_once({}))})
    return 100 * found[BWMON][1].median / 1e3 / PASS_EVERY_S


@dataclass(frozen=True, slots=True)
class _Talk:
    """What went through the proxy, per minute."""

    requests: float
    sent_kb: float
    received_kb: float


def _requests(lab: AgentLab, slices: int, window_s: float, *, quick: bool) -> Iterator[Row]:
    """Count an agent's requests with a proxy, at rest and while some slices send."""
    proxy = FaultProxy(lab.cluster.kubeconfig, lab.folder)
    agent = lab.agent(proxy.kubeconfig, name="proxied")
    with ExitStack() as stack:
        stack.callback(proxy.stop)
        stack.callback(agent.stop)
        started_s(agent)
        _wait_quiet(proxy, 1.0 if quick else QUIET_S)
        yield single(f"agent, {count(slices)}", "requests at the start", len(proxy.requests), "requests")
        yield single(f"agent, {count(slices)}", "bytes at the start", _bytes(proxy) / 1e3, "kB")
        rest = _talk(proxy, window_s)
        yield from _talk_rows(f"agent, {count(slices)}, at rest", rest, 10)
        flows = [lab.net.traffic(pod, lab.net.sink.address, int(window_s) + 60) for pod in lab.net.pods]
        for flow in flows:
            stack.callback(flow.stop)
        time.sleep(1.0 if quick else 5.0)
        cpu, begun = cpu_s(agent.pid), time.monotonic()
        case = f"agent, {count(slices)}, {len(flows)} sending {SENDER_RATE}"
        yield from _talk_rows(case, _talk(proxy, window_s), None)
        yield single(case, "CPU", 100 * (cpu_s(agent.pid) - cpu) / (time.monotonic() - begun), "% of a core")


def _bytes(proxy: FaultProxy) -> int:
    return proxy.sent_bytes + proxy.received_bytes


def _wait_quiet(proxy: FaultProxy, quiet_s: float) -> None:
    """Wait until no request has come for some time."""
    seen, since = -1, time.monotonic()

    def quiet() -> bool:
        nonlocal seen, since
        if len(proxy.requests) != seen:
            seen, since = len(proxy.requests), time.monotonic()
        return time.monotonic() - since > quiet_s

    wait_until(quiet, "the agent makes no more requests", 240)


def _talk(proxy: FaultProxy, window_s: float) -> _Talk:
    before, begun = (len(proxy.requests), proxy.sent_bytes, proxy.received_bytes), time.monotonic()
    time.sleep(window_s)
    minutes = (time.monotonic() - begun) / 60
    after = (len(proxy.requests), proxy.sent_bytes, proxy.received_bytes)
    requests, sent, received = (now - then for now, then in zip(after, before, strict=True))
    return _Talk(requests / minutes, sent / 1e3 / minutes, received / 1e3 / minutes)


def _talk_rows(case: str, talk: _Talk, most_requests: float | None) -> Iterator[Row]:
    target = None if most_requests is None else at_most(most_requests)
    yield single(case, "API requests", talk.requests, "/min", target)
    yield single(case, "bytes to the API server", talk.sent_kb, "kB/min")
    yield single(case, "bytes from the API server", talk.received_kb, "kB/min")


def _controller(lab: AgentLab, slices: int, window_s: float, *, quick: bool) -> Iterator[Row]:
    case = f"controller, {count(slices)}"
    controller = lab.controller()
    with ExitStack() as stack:
        stack.callback(controller.stop)
        yield single(case, "start to ready", started_s(controller), "s")
        _settle(controller, 1.0 if quick else 60.0, "slicebw_controller_waiting_statuses")
        yield single(case, "CPU at rest", _cpu_percent(controller.pid, min(window_s, 30.0)), "% of a core")
        yield single(case, "resident memory", rss_mb(controller.pid), "MB")


def _large(lab: AgentLab, slices: int, window_s: float) -> Iterator[Row]:
    """Measure an agent on a full node. Its first reports take half an hour, at two a second."""
    case = f"agent, {count(slices)}"
    agent = lab.agent(name="full")
    with ExitStack() as stack:
        stack.callback(agent.stop)
        yield single(case, "start to ready", started_s(agent), "s")
        cpu = _cpu_percent(agent.pid, window_s)
        yield single(case, "CPU while it first reports", cpu, "% of a core")
        yield single(case, "resident memory", rss_mb(agent.pid), "MB", at_most(150))
        yield single(case, "resident memory, peak", peak_rss_mb(agent.pid), "MB")
