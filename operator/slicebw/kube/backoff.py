"""How long to wait before trying again."""

import random
from collections.abc import Iterator


class Backoff:
    """Pauses that double from ``first_s`` to ``most_s``, each with a jitter of half its length either way.

    Iterating gives an endless row from the start, any number of times: what kopf wants as ``error_backoffs``.
    """

    def __init__(self, first_s: float = 1.0, most_s: float = 30.0) -> None:
        """Begin with the shortest pause."""
        self._first_s, self._most_s = first_s, most_s
        self._base_s = first_s

    def __iter__(self) -> Iterator[float]:
        """Begin anew, for ever."""
        row = Backoff(self._first_s, self._most_s)
        while True:
            yield row.next_s()

    def next_s(self, at_least_s: float | None = None) -> float:
        """The pause to make now; not shorter than what the server asked for."""
        pause_s = self._base_s * random.uniform(0.5, 1.5)
        self._base_s = min(self._base_s * 2, self._most_s)
        return max(pause_s, at_least_s or 0.0)

    def reset(self) -> None:
        """It worked: the next pause is the shortest again."""
        self._base_s = self._first_s
