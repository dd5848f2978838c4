"""How many statuses may be written: each is sent to the agents of all nodes, so its price grows with their number."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final, TypeVar

WRITES_PER_S: Final = 5.0
"""Over all slices, in the long run."""

BURST: Final = 50

FIGURE_DELIVERIES_PER_S: Final = 2_500.0
"""Statuses in which nothing but figures has changed are written so rarely that agents are sent no more than this.

A delivery is 2 kB and costs the API server 50 us of its CPU (docs/scale.md): 5 MB/s and an eighth of a core.
"""

T = TypeVar("T")


class WriteBudget:
    """Tokens for all writes, and within them tokens for those that tell of figures alone. Not thread-safe."""

    def __init__(self, clock: Callable[[], float], writes_per_s: float = WRITES_PER_S) -> None:
        """Be full. ``clock`` is monotonic, in seconds."""
        self._clock, self._writes_per_s = clock, writes_per_s
        self._tokens = self._figure_tokens = float(BURST)
        self._at_s = clock()
        self._figures_per_s = writes_per_s

    def choose(self, transitions: Iterable[T], figures: Iterable[T], nodes: int | None) -> Sequence[T]:
        """As many as may be written now, transitions first; they are taken for written.

        Args:
            transitions: what somebody waits for.
            figures: what tells of figures alone.
            nodes: how many nodes there are, None if that is not known.
        """
        now_s = self._clock()
        self._figures_per_s = min(self._writes_per_s, FIGURE_DELIVERIES_PER_S / max(1, nodes or 0))
        burst = BURST * self._figures_per_s / self._writes_per_s
        self._tokens = min(float(BURST), self._tokens + (now_s - self._at_s) * self._writes_per_s)
        self._figure_tokens = min(max(1.0, burst), self._figure_tokens + (now_s - self._at_s) * self._figures_per_s)
        self._at_s = now_s
        urgent = list(islice(transitions, int(self._tokens)))
        self._tokens -= len(urgent)
        others = list(islice(figures, int(min(self._tokens, self._figure_tokens))))
        self._tokens -= len(others)
        self._figure_tokens -= len(others)
        return [*urgent, *others]

    @property
    def pause_s(self) -> float:
        """How long it takes until there may be a write more, where some were left over."""
        short = self._tokens < 1
        return (
            (1 - self._tokens) / self._writes_per_s
            if short
            else max(0.0, 1 - self._figure_tokens) / self._figures_per_s
        )
