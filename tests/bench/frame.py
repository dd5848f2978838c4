"""What benchmarks are built from: rows of figures, references to compare them with, and targets.

A benchmark is a module of this folder with a function ``rows(quick) -> Iterator[Row]``. The first line of its docstring
is its title, and its name without a trailing underscore is the name of its group. It yields each row as soon as it is
known. With ``quick`` it does the same at a small size and for a short time, only to show that it works.

Milliseconds mean little on another machine. So each reference runs in the same benchmark, in turn with slicebw
(:func:`in_turn`), and targets are ratios wherever that is possible.
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
        """The median of all rounds."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The lowest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest value."""
        return max(self.values)

    def over(self, reference: "Samples") -> float:
        """Return how many times the reference this is: the median of the rounds' ratios.

        A round in which the machine was slow slowed both.
        """
        return statistics.median(
            mine / its if its else float("inf") for mine, its in zip(self.values, reference.values, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Target:
    """An upper or lower limit for a row's value, or with ``of_ratio`` for its ratio."""

    limit: float
    at_least: bool
    of_ratio: bool

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{' x' if self.of_ratio else ''}"

    def is_met(self, value: float) -> bool:
        """Tell whether a value, or a ratio, is within the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


def at_most(limit: float) -> Target:
    """Aim at a value of at most this."""
    return Target(limit, at_least=False, of_ratio=False)


def at_least(limit: float) -> Target:
    """Aim at a value of at least this."""
    return Target(limit, at_least=True, of_ratio=False)


def at_most_times(limit: float) -> Target:
    """Aim at a ratio of at most this."""
    return Target(limit, at_least=False, of_ratio=True)


def at_least_times(limit: float) -> Target:
    """Aim at a ratio of at least this."""
    return Target(limit, at_least=True, of_ratio=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Args:
        case: the setting, such as "4,094 slices".
        what: what was measured, such as "slicebw, CPU".
        value: the median, in ``unit``; ``low`` and ``high`` are the extremes of the rounds.
        reference: the text that follows the ratio, such as "x recv alone"; empty without a reference.
        ratio: to the reference, in the direction that ``reference`` names.
        target: the aim, if there is one.
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
        """Whether the target was met; None without a target."""
        if self.target is None:
            return None
        figure = self.ratio if self.target.of_ratio else self.value
        return figure is not None and self.target.is_met(figure)

    def as_json(self, group: str) -> dict[str, Any]:
        """Return the row as the file of results has it."""
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
    """Make a row without a reference."""
    return Row(case, what, samples.median, unit, samples.low, samples.high, target=target)


def single(case: str, what: str, value: float, unit: str, target: Target | None = None) -> Row:
    """Make a row of a value that was measured once, or computed from many measurements."""
    return Row(case, what, value, unit, value, value, target=target)


def single_times(
    case: str, what: str, value: float, unit: str, reference: tuple[str, float], target: Target | None = None
) -> Row:
    """Make a row of one value, with its ratio to the reference's one value."""
    name, its = reference
    return _beside(single(case, what, value, unit, target), f"x {name}", Samples((its,)), value / its)


def times(
    case: str, what: str, samples: Samples, unit: str, reference: tuple[str, Samples], target: Target | None = None
) -> Row:
    """Make a row with the ratio to the reference: ``1.25 x recv alone``."""
    name, its = reference
    return _beside(figure(case, what, samples, unit, target), f"x {name}", its, samples.over(its))


def less(
    case: str, what: str, samples: Samples, unit: str, reference: tuple[str, Samples], target: Target | None = None
) -> Row:
    """Make a row with the ratio of the reference to the figure: ``4.1 x less than tc``."""
    name, its = reference
    return _beside(figure(case, what, samples, unit, target), f"x less than {name}", its, its.over(samples))


def _beside(row: Row, words: str, reference: Samples, ratio: float) -> Row:
    return replace(row, reference=words, reference_value=reference.median, ratio=ratio)


def in_turn(rounds: int, subjects: Mapping[str, Callable[[], float]]) -> dict[str, Samples]:
    """Measure all subjects in every round, so that a slow spell of the machine slows all of them.

    Each subject measures itself and returns its figure. The first round does not count, because it fills caches; with
    0 rounds it does.
    """
    figures: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, subject in subjects.items():
            value = subject()
            if number > 0 or rounds == 0:
                figures[name].append(value)
    return {name: Samples(tuple(values)) for name, values in figures.items()}


def in_turn_together(rounds: int, subjects: Mapping[str, Callable[[], Sequence[float]]]) -> dict[str, list[Samples]]:
    """Do as :func:`in_turn` for subjects that each return several figures, such as wall time and CPU."""
    found: dict[str, list[Sequence[float]]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, subject in subjects.items():
            values = subject()
            if number > 0 or rounds == 0:
                found[name].append(values)
    return {name: [Samples(tuple(column)) for column in zip(*rows, strict=True)] for name, rows in found.items()}


def wall_ms(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    start = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start) / _NS_PER_MS


def wall_and_cpu_ms(action: Callable[[], object]) -> tuple[float, float]:
    """Return an action's wall time and CPU time, the latter with that of the processes that it ran and waited for."""
    cpu = cpu_ms()
    start = time.perf_counter_ns()
    action()
    wall = (time.perf_counter_ns() - start) / _NS_PER_MS
    return wall, cpu_ms() - cpu


def cpu_ms() -> float:
    """Return the CPU time of this process and of its ended children, in user space and in the kernel."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) * 1000


def say(text: str) -> None:
    """Print progress on stderr, before something that takes a while."""
    print(f"    {text} …", file=sys.stderr, flush=True)


def count(number: int) -> str:
    """Format a number of slices: ``4,094 slices``."""
    return f"{number:,} slice{'' if number == 1 else 's'}"
