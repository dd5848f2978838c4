"""How many statuses may be written: each is sent to the agents of all nodes, so its price grows with their number."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, TypeVar

from slicebw.core.clock import TokenBucket

WRITES_PER_S: Final = 5.0
"""Over all slices, in the long run."""

BURST: Final = 50

FIGURE_DELIVERIES_PER_S: Final = 2_500.0
"""Statuses in which nothing but figures has changed are written so rarely that agents are sent no more than this.

A delivery is 2 kB and costs the API server 50 us of its CPU (docs/scale.md): 5 MB/s and an eighth of a core.
"""

T = TypeVar("T")


class WriteBudget:
    """A budget for all writes, and within it one for writes that change figures alone. Not thread-safe."""

    def __init__(self, clock: Callable[[], float], writes_per_s: float = WRITES_PER_S) -> None:
        """Be full. ``clock`` is monotonic, in seconds."""
        self._clock = clock
        self._writes = TokenBucket(writes_per_s, float(BURST), clock())
        self._figures = TokenBucket(writes_per_s, float(BURST), clock())

    def choose(self, transitions: Iterable[T], figures: Iterable[T], nodes: int | None) -> Sequence[T]:
        """As many as may be written now, transitions first; they are taken for written.

        Args:
            transitions: what somebody waits for.
            figures: what tells of figures alone.
            nodes: how many nodes there are, None if that is not known.
        """
        now_s = self._clock()
        self._figures.per_s = min(self._writes.per_s, FIGURE_DELIVERIES_PER_S / max(1, nodes or 0))
        self._figures.burst = max(1.0, BURST * self._figures.per_s / self._writes.per_s)
        urgent = list(islice(transitions, int(self._writes.available(now_s))))
        self._writes.take(now_s, len(urgent))
        allowed = min(self._writes.available(now_s), self._figures.available(now_s))
        others = list(islice(figures, int(allowed)))
        for bucket in (self._writes, self._figures):
            bucket.take(now_s, len(others))
        return [*urgent, *others]

    @property
    def pause_s(self) -> float:
        """How long it takes until there may be a write more, where some were left over."""
        now_s = self._clock()
        return self._writes.wait_s(now_s) or self._figures.wait_s(now_s)
