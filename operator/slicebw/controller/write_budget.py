"""When the status of a SliceBandwidth may be written: WriteBudget.wait_s, and nothing else, decides that.

A status is part of an object that every agent watches. So each write is sent to all nodes, and its cost grows with
their number. Transitions (a cap, a node, a generation, a condition) are what somebody waits for; all other changes are
of figures and wording only.
"""

from typing import Final

from slicebw.core.clock import TokenBucket

STATUS_INTERVAL_S: Final = 10.0
"""A slice's figures are written at most this often, by all controllers together."""

TRANSITION_INTERVAL_S: Final = 1.0
"""And its transitions this often: a slice that comes up on a thousand nodes has a thousand of them."""

WRITES_PER_S: Final = 5.0
"""Over all slices, in the long run."""

BURST: Final = 50
"""Writes over all slices that need not wait, after a quiet time."""

FIGURE_DELIVERIES_PER_S: Final = 2_500.0
"""Writes that change only figures are throttled so that agents are sent no more than this, over all agents.

A delivery is 2 kB and costs the API server 50 us of its CPU (docs/scale.md): 5 MB/s and an eighth of a core.
"""


class WriteBudget:
    """A budget of writes, and within it one of deliveries for writes that change only figures. Not thread-safe.

    Instants are of one monotonic clock, in seconds.
    """

    def __init__(
        self, now_s: float, writes_per_s: float = WRITES_PER_S, status_interval_s: float = STATUS_INTERVAL_S
    ) -> None:
        """Be full."""
        self.nodes = 0
        """How many nodes there are; 0 while that is not known."""
        self.figures_interval_s = max(status_interval_s, TRANSITION_INTERVAL_S)
        """The shortest time between two writes of one slice of which the later one changes only figures."""
        # On a small cluster a write counts as this many deliveries: there the budget of writes is the smaller one.
        self._fewest_deliveries = FIGURE_DELIVERIES_PER_S / writes_per_s
        self._most_deliveries = BURST * self._fewest_deliveries
        self._writes = TokenBucket(writes_per_s, float(BURST), now_s)
        self._deliveries = TokenBucket(FIGURE_DELIVERIES_PER_S, self._most_deliveries, now_s)

    def wait_s(self, now_s: float, written_s: float, *, figures_only: bool) -> float:
        """How many seconds a status has to wait until it may be written; 0 if it may be written now.

        Another status that is written first can make the wait longer: ask again when it is over.

        Args:
            now_s: the present instant.
            written_s: when the status of this slice was last written, by any controller.
            figures_only: whether nothing but figures and wording would change (rollup.is_transition).
        """
        interval_s = self.figures_interval_s if figures_only else TRANSITION_INTERVAL_S
        wait_s = max(written_s + interval_s - now_s, self._writes.wait_s(now_s))
        if figures_only:
            wait_s = max(wait_s, self._deliveries.wait_s(now_s, self._deliveries_of_a_write()))
        return max(0.0, wait_s)

    def take(self, now_s: float, *, figures_only: bool) -> None:
        """Count a write."""
        self._writes.take(now_s)
        if figures_only:
            self._deliveries.take(now_s, self._deliveries_of_a_write())

    def _deliveries_of_a_write(self) -> float:
        # More than the bucket holds would never be granted.
        return min(max(self._fewest_deliveries, self.nodes), self._most_deliveries)
