"""What a benchmark is made of: rows of figures, the references beside them, and targets that are met or not.

A benchmark is a module of this folder with a function ``rows(quick) -> Iterator[Row]``; the first line of its
docstring is its title, its name without a trailing underscore is that of its group. A row is yielded as soon as it
is known. With ``quick`` it does the same on less and for a shorter time: that it works is what counts then, not what
it finds.

Milliseconds mean little on another machine. So what slicebw is compared with runs in the same benchmark, in turn with
it (:func:`in_turn`), and targets are ratios wherever a ratio says it.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Samples:
    """One figure, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)

    def over(self, reference: "Samples") -> float:
        """How many times the reference this is: the median over rounds, so that what slows a round slows both."""
        return statistics.median(
            mine / its if its else float("inf") for mine, its in zip(self.values, reference.values, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Target:
    """What a row is to show: a value, or where ``of_ratio`` a ratio, of at most or at least ``limit``."""

    limit: float
    at_least: bool
    of_ratio: bool

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{' x' if self.of_ratio else ''}"

    def is_met(self, value: float) -> bool:
        """Whether a value, or a ratio, is what it is to be."""
        return value >= self.limit if self.at_least else value <= self.limit


def at_most(limit: float) -> Target:
    """The value is to be no more than this."""
    return Target(limit, at_least=False, of_ratio=False)


def at_least(limit: float) -> Target:
    """The value is to be no less than this."""
    return Target(limit, at_least=True, of_ratio=False)


def at_most_times(limit: float) -> Target:
    """The ratio is to be no more than this."""
    return Target(limit, at_least=False, of_ratio=True)


def at_least_times(limit: float) -> Target:
    """The ratio is to be no less than this."""
    return Target(limit, at_least=True, of_ratio=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Args:
        case: what it was measured on: "4,094 slices".
        what: what was measured: "slicebw, CPU".
        value: the median, in ``unit``; ``low`` and ``high`` are the extremes of the rounds.
        reference: what it is compared with, in words that follow the ratio: "x recv alone"; empty: with nothing.
        ratio: the comparison. Which way it was divided is what ``reference`` says.
        target: what was aimed at, if anything.
    """

    case: str
    what: str
    value: float
    unit: str
    low: float
    high: float
    reference: str = ""
    reference_value: float | None = None
    ratio: float | None = None
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None where there is none."""
        if self.target is None:
            return None
        figure = self.ratio if self.target.of_ratio else self.value
        return figure is not None and self.target.is_met(figure)

    def as_json(self, group: str) -> dict[str, Any]:
        """As it stands in the file of results."""
        return {
            "group": group,
            "case": self.case,
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "low": self.low,
            "high": self.high,
            "reference": self.reference or None,
            "referenceValue": self.reference_value,
            "ratio": self.ratio,
            "target": None if self.target is None else str(self.target),
            "met": self.met,
        }


def figure(case: str, what: str, samples: Samples, unit: str, target: Target | None = None) -> Row:
    """A row compared with nothing."""
    return Row(case, what, samples.median, unit, samples.low, samples.high, target=target)


def single(case: str, what: str, value: float, unit: str, target: Target | None = None) -> Row:
    """A row of something measured once, or computed from many measurements."""
    return Row(case, what, value, unit, value, value, target=target)


def single_times(
    case: str, what: str, value: float, unit: str, reference: tuple[str, float], target: Target | None = None
) -> Row:
    """A row of one value, and how many times the reference's one value it is."""
    name, its = reference
    return _beside(single(case, what, value, unit, target), f"x {name}", Samples((its,)), value / its)


def times(
    case: str, what: str, samples: Samples, unit: str, reference: tuple[str, Samples], target: Target | None = None
) -> Row:
    """A row that says how many times the reference the figure is: ``1.25 x recv alone``."""
    name, its = reference
    return _beside(figure(case, what, samples, unit, target), f"x {name}", its, samples.over(its))


def less(
    case: str, what: str, samples: Samples, unit: str, reference: tuple[str, Samples], target: Target | None = None
) -> Row:
    """A row that says how many times less than the reference the figure is: ``4.1 x less than tc``."""
    name, its = reference
    return _beside(figure(case, what, samples, unit, target), f"x less than {name}", its, its.over(samples))


def _beside(row: Row, words: str, reference: Samples, ratio: float) -> Row:
    return replace(row, reference=words, reference_value=reference.median, ratio=ratio)


def in_turn(rounds: int, subjects: Mapping[str, Callable[[], float]]) -> dict[str, Samples]:
    """Measure subjects round by round, one after the other: what slows the machine for a while slows them all.

    Each subject measures itself and returns its figure. The first round is not counted: caches fill in it.
    """
    figures: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, subject in subjects.items():
            value = subject()
            if number > 0 or rounds == 0:
                figures[name].append(value)
    return {name: Samples(tuple(values)) for name, values in figures.items()}


def in_turn_together(rounds: int, subjects: Mapping[str, Callable[[], Sequence[float]]]) -> dict[str, list[Samples]]:
    """The same for subjects that each return several figures (wall time and CPU, say)."""
    found: dict[str, list[Sequence[float]]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, subject in subjects.items():
            values = subject()
            if number > 0 or rounds == 0:
                found[name].append(values)
    return {name: [Samples(tuple(column)) for column in zip(*rows, strict=True)] for name, rows in found.items()}


def wall_ms(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start) / _NS_PER_MS


def wall_and_cpu_ms(action: Callable[[], object]) -> tuple[float, float]:
    """How long an action takes, and how much processor time: ours and that of the processes it ran and waited for."""
    cpu = cpu_ms()
    start = time.perf_counter_ns()
    action()
    wall = (time.perf_counter_ns() - start) / _NS_PER_MS
    return wall, cpu_ms() - cpu


def cpu_ms() -> float:
    """Processor time of this process and of its children that have ended, in user space and in the kernel."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) * 1000


def say(text: str) -> None:
    """Progress, on stderr: what takes a while and has no row to show yet."""
    print(f"    {text} …", file=sys.stderr, flush=True)


def count(number: int) -> str:
    """``4,094 slices``."""
    return f"{number:,} slice{'' if number == 1 else 's'}"
