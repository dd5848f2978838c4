"""Whole passes (read the kernel, count, decide, plan, save, apply, verify), compared with a bwmon-style loop."""

import itertools
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from slicebw.core.dataplane import ChangeClass, ClassSpec, TreeChange, classid, leaf
from slicebw.core.desired import TrafficClass
from tests.bench.bwmon import Bwmon
from tests.bench.frame import (
    Row,
    Samples,
    at_least_times,
    at_most_times,
    count,
    figure,
    in_turn_together,
    less,
    say,
    times,
    wall_and_cpu_ms,
)
from tests.bench.nodes import Agent, Traffic, agent_on_a_node, desired_state, node_with_tree
from tests.bench.read import FLOOR, floor
from tests.support.topology import UPLINK
from tests.support.trees import LINE_RATE_BPS, tree

SLICES = (100, 1_000, 4_094)
PARTS = (0.01, 0.1, 1.0)
"""Parts of all ceilings that are changed before a pass, or of all slices that have sent since the last one."""
PASS_EVERY_MS = 10_000
BWMON = "a bwmon-style loop"
TC_BATCH = "tc -batch"
NOTHING_SENT = "steady, nothing sent"
AIMS_OVER_FLOOR = {
    ("4,094 slices", NOTHING_SENT): at_most_times(5),
    ("4,094 slices", "steady, 10% of slices sent"): at_most_times(5),
}
AIMS_OVER_BWMON = {
    ("100 slices", NOTHING_SENT): at_most_times(0.2),
    ("1,000 slices", NOTHING_SENT): at_most_times(0.2),
    ("4,094 slices", NOTHING_SENT): at_most_times(0.2),
    # The loop decides and reports nothing. At 100 slices most of its time is the start of one program.
    ("100 slices", "steady, 100% of slices sent"): at_most_times(1.5),
    ("1,000 slices", "steady, 100% of slices sent"): at_most_times(3),
    ("4,094 slices", "steady, 100% of slices sent"): at_most_times(3),
}
M = 1_000_000


def rows(quick: bool) -> Iterator[Row]:
    """Measure steady passes and passes with changes against bwmon's loop, and changes alone against ``tc -batch``."""
    for slices in (100,) if quick else SLICES:
        say(f"making a node with {count(slices)}")
        with agent_on_a_node(desired_state(slices)) as agent, tempfile.TemporaryDirectory() as folder:
            bwmon = Bwmon(UPLINK, Path(folder) / "bwmon")
            yield from steady(agent, bwmon, slices, rounds=2 if quick else 20)
            yield from changed(agent, bwmon, slices, rounds=1 if quick else 3)
        yield from changes_alone(slices, rounds=1 if quick else 15)


def steady(agent: Agent, bwmon: Bwmon, slices: int, rounds: int) -> Iterator[Row]:
    """Measure passes that change nothing: nothing was sent, or some or all of the slices have sent."""
    case = count(slices)
    receive = floor(socket.if_nametoindex(UPLINK))

    def slicebw() -> tuple[float, float]:
        return wall_and_cpu_ms(agent.reconciler.run_once)

    with closing(Traffic()) as traffic:
        for part in (0.0, *PARTS):
            senders = round(slices * part)

            def floor_after_traffic(senders: int = senders) -> tuple[float, float]:
                traffic.send(senders)
                return wall_and_cpu_ms(receive)

            subjects: dict[str, Callable[[], tuple[float, float]]] = {FLOOR: floor_after_traffic, "slicebw": slicebw}
            if part in (0.0, 1.0):
                subjects[BWMON] = lambda: wall_and_cpu_ms(lambda: bwmon.run_once({}))
            found = in_turn_together(rounds, subjects)
            what = f"steady, {part:.0%} of slices sent" if part else NOTHING_SENT
            yield from compared(case, what, found)


def compared(case: str, what: str, found: Mapping[str, Sequence[Samples]]) -> Iterator[Row]:
    """Compare a steady pass with its references. Aims are for CPU: a pass that has counted waits for the disk."""
    (wall, cpu), (floor_wall, floor_cpu) = found["slicebw"], found[FLOOR]
    yield times(case, f"{what}: wall", wall, "ms", (FLOOR, floor_wall))
    yield times(case, f"{what}: CPU", cpu, "ms", (FLOOR, floor_cpu), AIMS_OVER_FLOOR.get((case, what)))
    if BWMON not in found:
        return
    bwmon_wall, bwmon_cpu = found[BWMON]
    yield times(case, f"{what}: wall", wall, "ms", (BWMON, bwmon_wall))
    yield times(case, f"{what}: CPU", cpu, "ms", (BWMON, bwmon_cpu), AIMS_OVER_BWMON.get((case, what)))
    per_core = Samples(tuple(value * 100 / PASS_EVERY_MS for value in cpu.values))
    yield figure(case, f"{what}: CPU, a pass every 10 s", per_core, "% of a core")


def changed(agent: Agent, bwmon: Bwmon, slices: int, rounds: int) -> Iterator[Row]:
    """Measure the pass after a part of all slices got other limits."""
    case = count(slices)
    rates = itertools.cycle((100 * M, 200 * M))
    for part in PARTS:
        say(f"changing {part:.0%} of the ceilings of {case}, also with {BWMON}")
        changing = round(slices * part)

        def slicebw(part: float = part) -> tuple[float, float]:
            agent.feed.limit(part, next(rates))
            return wall_and_cpu_ms(agent.reconciler.run_once)

        def reference(changing: int = changing) -> tuple[float, float]:
            rate = next(rates)
            minors = [leaf(traffic_class, 1 + number) for number in range(changing) for traffic_class in TrafficClass]
            ceilings_bps = {classid(minor): rate for minor in minors}
            measured = wall_and_cpu_ms(lambda: bwmon.run_once(ceilings_bps))
            agent.feed.limit(changing / slices, rate)
            agent.settle()  # it finds everything in place
            return measured

        # The reference starts up to 8,188 processes: one round of it is enough, without a first one for the caches.
        its = in_turn_together(0, {BWMON: reference})[BWMON]
        mine = in_turn_together(rounds, {"slicebw": slicebw})["slicebw"]
        what = f"{part:.0%} of ceilings changed"
        yield figure(case, f"{what}: wall", mine[0], "ms")
        target = at_least_times(20) if part == 1.0 else None
        its_cpu = Samples(its[1].values * len(mine[1].values))
        yield less(case, f"{what}: CPU", mine[1], "ms", (f"{BWMON}'s", its_cpu), target)


def changes_alone(slices: int, rounds: int) -> Iterator[Row]:
    """Measure only the changes of classes, against the same changes as text for ``tc -batch``.

    If somebody edits limits, many classes change to the same ceiling. If slices are capped, each changes to its own.
    """
    with node_with_tree(slices) as shaper:
        leaves = [spec for spec in tree(range(1, slices + 1)).values() if spec.minor & 0xFFF in range(1, slices + 1)]
        leaves = [spec for spec in leaves if spec.leaf_major]
        rates = itertools.cycle((100 * M, 200 * M))

        def specs(step_bps: int) -> list[ClassSpec]:
            rate = next(rates)
            return [replace(spec, ceil_bps=rate + number * step_bps) for number, spec in enumerate(leaves)]

        def slicebw(step_bps: int) -> tuple[float, float]:
            changes: list[TreeChange] = [ChangeClass(spec) for spec in specs(step_bps)]
            return wall_and_cpu_ms(lambda: shaper.apply(UPLINK, changes, LINE_RATE_BPS))

        def tc_batch(step_bps: int) -> tuple[float, float]:
            text = "".join(f"class change dev {UPLINK} {spec}\n" for spec in specs(step_bps))
            return wall_and_cpu_ms(lambda: subprocess.run(["tc", "-batch", "-"], input=text, text=True, check=True))

        for words, step_bps, least in (("to one value", 0, 3.0), ("each to its own value", 8_000, 1.5)):
            subjects = {"slicebw": partial(slicebw, step_bps), TC_BATCH: partial(tc_batch, step_bps)}
            found = in_turn_together(rounds, subjects)
            what = f"{len(leaves):,} ceilings {words}, the changes alone"
            target = at_least_times(least) if slices == SLICES[-1] else None
            (wall, cpu), (its_wall, its_cpu) = found["slicebw"], found[TC_BATCH]
            yield less(count(slices), f"{what}: wall", wall, "ms", (TC_BATCH, its_wall))
            yield less(count(slices), f"{what}: CPU", cpu, "ms", (TC_BATCH, its_cpu), target)
