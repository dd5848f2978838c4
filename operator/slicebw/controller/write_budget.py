"""Decides when the status of a SliceBandwidth may be written: WriteBudget.wait_s, and nothing else.

A status is part of an object that every agent watches. So each write is sent to all nodes, and its cost grows with
their number. Somebody waits for transitions (a cap, a node, a generation, a condition). All other changes are of
figures and wording only, and can wait longer.
"""

from typing import Final

from slicebw.core.clock import TokenBucket

STATUS_INTERVAL_S: Final = 10.0
"""A slice's figures are written at most this often, by all controllers together."""

TRANSITION_INTERVAL_S: Final = 1.0
"""A slice's transitions are written at most this often: a slice that starts on 1,000 nodes has 1,000 of them."""

WRITES_PER_S: Final = 5.0
"""Writes of statuses over all slices, in the long run."""

BURST: Final = 50
"""Writes over all slices that need not wait, after a quiet time."""

FIGURE_DELIVERIES_PER_S: Final = 2_500.0
"""Writes that change only figures are throttled to this many deliveries: every write is delivered to every agent.

A delivery is 2 kB and costs the API server 50 us of its CPU (docs/scale.md): 5 MB/s and an eighth of a core.
"""


class WriteBudget:
    """The intervals of one slice, a budget of writes over all slices, and one of deliveries for writes of figures.

    Instants are of one monotonic clock, in seconds. Not thread-safe.
    """

    def __init__(
        self, now_s: float, writes_per_s: float = WRITES_PER_S, status_interval_s: float = STATUS_INTERVAL_S
    ) -> None:
        """Start with full budgets. ``status_interval_s`` is for figures, and never below TRANSITION_INTERVAL_S."""
        self.nodes = 0
        """The number of nodes; 0 while it is unknown."""
        self._figures_interval_s = max(status_interval_s, TRANSITION_INTERVAL_S)
        # On a small cluster a write counts as this many deliveries, so that the budget of writes is the smaller one.
        self._fewest_deliveries = FIGURE_DELIVERIES_PER_S / writes_per_s
        self._most_deliveries = BURST * self._fewest_deliveries
        self._writes = TokenBucket(writes_per_s, float(BURST), now_s)
        self._deliveries = TokenBucket(FIGURE_DELIVERIES_PER_S, self._most_deliveries, now_s)

    def wait_s(self, now_s: float, written_s: float, *, figures_only: bool) -> float:
        """Return the seconds until a status may be written; 0 if it may be written now.

        A status that is written meanwhile can make the wait longer: ask again when it is over.

        Args:
            now_s: the present instant.
            written_s: when the status of this slice was last written, by any controller.
            figures_only: whether nothing but figures and wording would change (rollup.is_transition).
        """
        interval_wait_s = self.interval_wait_s(now_s, written_s, figures_only=figures_only)
        wait_s = max(interval_wait_s, self._writes.wait_s(now_s))
        return max(wait_s, self._deliveries.wait_s(now_s, self._deliveries_of_a_write())) if figures_only else wait_s

    def interval_wait_s(self, now_s: float, written_s: float, *, figures_only: bool) -> float:
        """Return the seconds that are left of the slice's own interval: before they are over it cannot be written."""
        interval_s = self._figures_interval_s if figures_only else TRANSITION_INTERVAL_S
        return max(0.0, written_s + interval_s - now_s)

    def take(self, now_s: float, *, figures_only: bool) -> None:
        """Spend what a write costs."""
        self._writes.take(now_s)
        if figures_only:
            self._deliveries.take(now_s, self._deliveries_of_a_write())

    def _deliveries_of_a_write(self) -> float:
        # The bucket would never grant more than it can hold.
        return min(max(self._fewest_deliveries, self.nodes), self._most_deliveries)
