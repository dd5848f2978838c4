"""Growing pauses between attempts."""

import random
from collections.abc import Iterator


class Backoff:
    """Pauses that double from ``first_s`` to ``most_s`` seconds, each with a random jitter of up to half its length.

    kopf takes an instance as its ``error_backoffs``: each iteration is an endless series from the shortest pause.
    """

    def __init__(self, first_s: float = 1.0, most_s: float = 30.0) -> None:
        """Start with the shortest pause."""
        self._first_s, self._most_s = first_s, most_s
        self._base_s = first_s

    def __iter__(self) -> Iterator[float]:
        """Yield pauses in seconds without end, independently of :meth:`next_s`."""
        pauses = Backoff(self._first_s, self._most_s)
        while True:
            yield pauses.next_s()

    def next_s(self, at_least_s: float | None = None) -> float:
        """Return the next pause in seconds, ``at_least_s`` if the server has asked for a longer one."""
        # Without jitter, a thousand agents that lost the API server together would all come back together.
        pause_s = self._base_s * random.uniform(0.5, 1.5)
        self._base_s = min(self._base_s * 2, self._most_s)
        return max(pause_s, at_least_s or 0.0)

    def reset(self) -> None:
        """Make the next pause the shortest again, after a success."""
        self._base_s = self._first_s
