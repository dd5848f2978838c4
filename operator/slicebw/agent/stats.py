"""Counts of what the agent has done since it started. Only the reconciler's thread writes them; any may read them."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from slicebw.core.dataplane import (
    ChangeClass,
    CreateClass,
    CreateRoot,
    DeleteClass,
    RemoveRoot,
    RemoveTable,
    ReplaceLeafQdisc,
    ReplaceTable,
    ResetTokens,
    TableChange,
    TreeChange,
    UpdateTable,
)

Change = TreeChange | TableChange

BOUNDS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Upper bounds of the histogram's buckets, in ms. They go around 0.2 s, the aim for a pass over 4,000 slices."""

_MS: Final = 1_000_000

KINDS: Final[Mapping[type[Change], str]] = {
    CreateRoot: "create_root",
    RemoveRoot: "remove_root",
    CreateClass: "create_class",
    ChangeClass: "change_class",
    ResetTokens: "forgive_debt",
    ReplaceLeafQdisc: "set_leaf",
    DeleteClass: "delete_class",
    ReplaceTable: "replace_table",
    UpdateTable: "update_table",
    RemoveTable: "remove_table",
}
"""The metrics' label value for each kind of change. It stays when the class in the code gets another name."""


class Tally:
    """Counts changes by kind. Every kind is present from the start, so that its series starts at 0."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(KINDS.values(), 0)

    def add(self, changes: Iterable[Change]) -> None:
        """Count these changes."""
        for change in changes:
            self._counts[KINDS[type(change)]] += 1

    def items(self) -> Iterator[tuple[str, int]]:
        """Iterate over (kind, count)."""
        return iter(self._counts.items())

    @property
    def total(self) -> int:
        """The sum over all kinds."""
        return sum(self._counts.values())


class Histogram:
    """Counts durations in buckets (:data:`BOUNDS_MS`)."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_MS) + 1)
        self.sum_ns = 0

    def observe(self, duration_ns: int) -> None:
        """Count one duration."""
        self._counts[bisect_left(BOUNDS_MS, duration_ns / _MS)] += 1
        self.sum_ns += duration_ns

    def cumulative(self) -> list[int]:
        """Return how many durations are within each bound, and last the number of all, as Prometheus counts them."""
        return list(accumulate(self._counts))


@dataclass(slots=True)
class Stats:
    """Everything that the agent counts."""

    passes: int = 0
    """Passes started; those that succeeded are counted in ``durations``."""
    failed_passes: int = 0
    failed_saves: int = 0
    applied: Tally = field(default_factory=Tally)
    """Changes that the kernel was observed to have afterwards."""
    failed: Tally = field(default_factory=Tally)
    """Changes that it was not observed to have."""
    repairs: Tally = field(default_factory=Tally)
    """Changes that repair drift: needed although the desired state had not changed since the last pass."""
    orphans: int = 0
    """Removed classes that belonged to no slice."""
    durations: Histogram = field(default_factory=Histogram)
