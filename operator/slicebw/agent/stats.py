"""What the agent has done since it started. Written by the reconciler's thread alone; any thread may read it."""

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
"""Upper bounds of the histogram's buckets: a pass over 4,000 slices is to stay below 0.2 s."""

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
"""How metrics name each kind of change. These are label values: they stay when a class gets another name."""


class Tally:
    """Counts by kind of change. All kinds are there from the start, so that their series are, too."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(KINDS.values(), 0)

    def add(self, changes: Iterable[Change]) -> None:
        """Count each of the changes."""
        for change in changes:
            self._counts[KINDS[type(change)]] += 1

    def items(self) -> Iterator[tuple[str, int]]:
        """Kind and count."""
        return iter(self._counts.items())

    @property
    def total(self) -> int:
        """Over all kinds."""
        return sum(self._counts.values())


class Histogram:
    """Durations, counted in buckets (:data:`BOUNDS_MS`)."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_MS) + 1)
        self.sum_ns = 0

    def observe(self, duration_ns: int) -> None:
        """Count one duration."""
        self._counts[bisect_left(BOUNDS_MS, duration_ns / _MS)] += 1
        self.sum_ns += duration_ns

    def cumulative(self) -> list[int]:
        """How many took at most as long as each bound, and at last how many there were."""
        return list(accumulate(self._counts))


@dataclass(slots=True)
class Stats:
    """What the agent has done since it started."""

    passes: int = 0
    """Begun; those that ended well are in ``durations``."""
    failed_passes: int = 0
    failed_saves: int = 0
    applied: Tally = field(default_factory=Tally)
    """Changes that were seen to hold afterwards."""
    failed: Tally = field(default_factory=Tally)
    repairs: Tally = field(default_factory=Tally)
    """Changes needed though the desired state was the same as at the last pass: they repair drift."""
    orphans: int = 0
    """Classes removed that belonged to no slice."""
    durations: Histogram = field(default_factory=Histogram)
