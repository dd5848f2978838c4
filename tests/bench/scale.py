"""A fleet on one API server: the cost of its reports and watches for the API server and the controller."""

import math
import os
import statistics
import sys
import time
from collections.abc import Iterator

from slicebw.kube.client import ApiClient
from slicebw.kube.own_usages import list_own_usages
from slicebw.kube.resources import SLICE_BANDWIDTHS
from tests.bench.frame import Row, Samples, figure, in_turn_together, less, say, single
from tests.bench.gauges import cpu_s, peak_rss_mb
from tests.bench.simulator.fleet import Fleet
from tests.bench.simulator.testbed import Reading, Testbed, testbed, until
from tests.bench.simulator.watching import Shown

NODES = int(os.environ.get("SLICEBW_BENCH_NODES", "200"))
"""1000 is the full size: it takes ten minutes and 4 GB on two cores, which API server, etcd and simulator share."""
PER_NODE = 20
STARTS_PER_S = 8.0
"""Agents that start per second in the roll-out. With 20 usages each, two cores can keep up with this."""


def rows(quick: bool) -> Iterator[Row]:
    """Roll out a fleet, let it run, cap slices, and change limits."""
    fleet = Fleet(nodes=8, per_node=4, slices=8) if quick else Fleet(NODES, PER_NODE, math.ceil(NODES * 0.6))
    case = f"{fleet.nodes:,} nodes, {fleet.usages:,} usages"
    with testbed(fleet) as bed:
        say(f"{fleet.nodes:,} Nodes and {fleet.slices:,} SliceBandwidths")
        bed.populate()
        bed.start_controller()
        yield from _watches(bed, case)
        yield from _roll_out(bed, case)
        yield from _memory(bed, case)
        before = bed.read()
        time.sleep(2 if quick else 60)
        after = bed.read()
        yield from _running(bed, case, before, after)
        yield from _own_usages(bed, case, 1 if quick else 3)
        yield from _caps(bed, case, 3 if quick else 20)
        yield from _fan_out(bed, case, _per_s(before, after)["apiserver"], 5 if quick else 100)
        yield single(case, "watches broken", bed.watches().broken, "watches")


def _watches(bed: Testbed, case: str) -> Iterator[Row]:
    """Open four watches for each node, with their lists."""
    say(f"{4 * bed.fleet.nodes:,} watches")
    before = bed.rss_mb()["apiserver"]
    bed.start_watches()
    listed = bed.watches().list_bytes / bed.fleet.nodes
    yield single(case, "lists of a starting agent", listed / 1e3, "kB")
    grown = max(0.0, bed.rss_mb()["apiserver"] - before)
    yield single(case, "API server memory for an agent", grown / bed.fleet.nodes * 1e3, "kB")


def _roll_out(bed: Testbed, case: str) -> Iterator[Row]:
    """Start all agents over some time; each lists its own usages and reports all its slices."""
    fleet = bed.fleet
    ramp_s = fleet.nodes / STARTS_PER_S
    say(f"agents start, {STARTS_PER_S:g} a second")
    begun = time.monotonic()
    bed.start_agents(ramp_s)
    before = bed.read()
    until(bed.all_reported, "all agents have reported", 120 + 4 * ramp_s, every_s=1.0)
    after = bed.read()
    yield single(case, "roll-out until all have reported", after.at_s - begun, "s")
    writes = after.reported.writes - before.reported.writes
    spent_s = {name: after.cpu_s[name] - before.cpu_s[name] for name in after.cpu_s}
    yield single(case, "roll-out, writes", writes / (after.at_s - before.at_s), "/s")
    yield single(case, "roll-out, API server CPU a write", spent_s["apiserver"] / writes * 1e3, "ms")
    yield single(case, "roll-out, etcd CPU a write", spent_s["etcd"] / writes * 1e3, "ms")
    yield single(case, "roll-out, controller CPU a write", spent_s["controller"] / writes * 1e3, "ms")
    until(bed.all_rolled_up, "every status knows its nodes", 120 + fleet.slices, every_s=1.0)
    yield single(case, "last report to last status", time.monotonic() - after.at_s, "s")


def _memory(bed: Testbed, case: str) -> Iterator[Row]:
    resident = bed.rss_mb()
    yield single(case, "controller, resident memory", resident["controller"], "MB")
    yield single(case, "controller, resident memory, peak", peak_rss_mb(bed.controller.pid), "MB")
    yield single(case, "API server, resident memory", resident["apiserver"], "MB")
    yield single(case, "etcd, resident memory", resident["etcd"], "MB")


def _per_s(before: Reading, after: Reading) -> dict[str, float]:
    """Return the CPU of each process, in cores."""
    return {name: (after.cpu_s[name] - before.cpu_s[name]) / (after.at_s - before.at_s) for name in after.cpu_s}


def _running(bed: Testbed, case: str, before: Reading, after: Reading) -> Iterator[Row]:
    """Measure the steady state: usages are reported and statuses written; nothing starts and no limits change."""
    seconds = after.at_s - before.at_s
    case = f"{case}, running"
    served = after.served.since(before.served)
    for what, verb, resource in (
        ("usages written", "APPLY", "bandwidthusages"),
        ("node states written", "APPLY", "nodebandwidths"),
        ("statuses written", "APPLY", "slicebandwidths"),
    ):
        yield single(case, what, served.requests.get((verb, resource), 0) / seconds, "/s")
    traffic = after.reported.traffic.since(before.reported.traffic)
    yield single(case, "agents to API server", traffic.sent_bytes / seconds / 1e3, "kB/s")
    yield single(case, "API server to agents, answers", traffic.received_bytes / seconds / 1e3, "kB/s")
    for plural in ("slicebandwidths", "nodebandwidths"):
        came = after.watching.event_bytes.get(plural, 0) - before.watching.event_bytes.get(plural, 0)
        yield single(case, f"API server to agents, {plural}", came / seconds / 1e3, "kB/s")
    for name, cores in _per_s(before, after).items():
        if name in ("apiserver", "etcd", "controller"):
            yield single(case, f"{name}, CPU", 100 * cores, "% of a core")
    yield single(case, "latest pass of the simulator", after.reported.late_s, "s late")


def _own_usages(bed: Testbed, case: str, rounds: int) -> Iterator[Row]:
    """Measure the first request of a starting agent, its own usages, against a plain list from etcd."""
    node = bed.fleet.node(bed.fleet.nodes // 2)

    def ask(few: int) -> tuple[float, float]:
        begun, cpu = time.monotonic(), cpu_s(bed.pids["apiserver"])
        if len(bed.call(lambda client: list_own_usages(client, node, few))) != bed.fleet.per_node:
            raise RuntimeError(f"not all usages of {node} were found")
        return (time.monotonic() - begun) * 1e3, (cpu_s(bed.pids["apiserver"]) - cpu) * 1e3

    plain = "a list from etcd"
    found = in_turn_together(rounds, {"slicebw": lambda: ask(0), plain: lambda: ask(sys.maxsize)})
    yield less(case, "own usages listed at the start", found["slicebw"][0], "ms", (plain, found[plain][0]))
    yield single(case, "own usages, API server CPU", statistics.fmean(found["slicebw"][1].values), "ms")
    yield single(case, "own usages from etcd, API server CPU", statistics.fmean(found[plain][1].values), "ms")


def _caps(bed: Testbed, case: str, times: int) -> Iterator[Row]:
    """Cap slices on one node each, and measure until an agent's watch shows it in the SliceBandwidth's status."""
    fleet, seconds = bed.fleet, []
    for number in range(times):
        made = bed.cap(number * fleet.nodes // times, number % fleet.per_node)
        shown: list[Shown] = []

        def seen(shown: list[Shown] = shown, namespace: str = made.namespace) -> bool:
            shown += [one for one in bed.watches().shown if one.namespace == namespace and one.capped_nodes]
            return bool(shown)

        until(seen, "a cap shows in the status", 60, every_s=0.1)
        seconds.append(shown[0].at_s - made.at_s)
    yield figure(case, "cap on a node to status, p50", Samples(tuple(seconds)), "s")
    yield single(case, "cap on a node to status, latest", max(seconds), "s")


def _fan_out(bed: Testbed, case: str, idle_cores: float, times: int) -> Iterator[Row]:
    """Change SliceBandwidths, which goes to every agent: time from the first agent to the last, bytes, and CPU."""
    fleet = bed.fleet
    versions: list[int] = []
    before = bed.read()

    async def touch(client: ApiClient) -> int:
        obj = fleet.slice_bandwidth(len(versions) % fleet.slices)
        metadata = {**obj["metadata"], "annotations": {"bench": str(len(versions))}}
        answer = await client.apply(SLICE_BANDWIDTHS, {**obj, "metadata": metadata}, "kubectl")
        return int(answer["metadata"]["resourceVersion"])

    spreads: list[float] = []
    for _ in range(times):
        versions.append(bed.call(touch))
        spreads.append(_spread_s(bed, versions[-1]))
    after = bed.read()
    events = after.watching.events["slicebandwidths"] - before.watching.events.get("slicebandwidths", 0)
    size = after.watching.event_bytes["slicebandwidths"] - before.watching.event_bytes.get("slicebandwidths", 0)
    yield single(case, "a SliceBandwidth's event", size / events, "bytes")
    yield single(case, "a SliceBandwidth's change, all agents", size / events * fleet.nodes / 1e3, "kB")
    yield figure(case, "first to last agent, p50", Samples(tuple(spreads)), "s")
    busy_s = after.cpu_s["apiserver"] - before.cpu_s["apiserver"] - idle_cores * (after.at_s - before.at_s)
    yield single(case, "API server CPU for a delivery", max(0.0, busy_s) / events * 1e6, "us")


def _spread_s(bed: Testbed, version: int) -> float:
    """Return the time from the first agent that gets a version to the last, in s."""
    firsts: list[float] = []
    lasts: list[float] = []
    agents = 0

    def all_have_it() -> bool:
        nonlocal agents
        found = bed.watches().fan_outs.get(version)
        if found is not None:
            firsts.append(found.first_s)
            lasts.append(found.last_s)
            agents += found.times
        return agents >= bed.fleet.nodes

    until(all_have_it, "all agents have the change", 60, every_s=0.05)
    return max(lasts) - min(firsts)
