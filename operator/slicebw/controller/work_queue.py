"""A queue of keys to reconcile, now or later, like controller-runtime's priority queue.

It holds keys, not events: whoever takes a key reads the current state of its object. So a key is in the queue at most
once, however often it is added, and many changes at once cost one reconciliation.
"""

import itertools
import math
import sys
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

K = TypeVar("K")

Priority = tuple[int, float]
"""The ready key with the lowest priority is taken first; among equal ones, the one that was ready first."""

NORMAL: Final[Priority] = (0, 0.0)
LAST: Final[Priority] = (sys.maxsize, 0.0)

SPARE_ENTRIES: Final = 64
"""Replaced entries that the heaps may hold in any case before they are cleaned."""


@dataclass(slots=True, eq=False)
class _Entry(Generic[K]):
    key: K
    ready_s: float
    priority: Priority


class WorkQueue(Generic[K]):
    """Keys, each with the instant from which it may be taken.

    ``now_s`` is an instant of one monotonic clock, in seconds. Not thread-safe, except for ``len``.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._entries: dict[K, _Entry[K]] = {}
        # Removing from the middle of a heap is expensive: replaced entries stay there and are skipped when they come
        # up. An entry counts only while `_entries` has that very one.
        self._delayed: list[tuple[float, int, _Entry[K]]] = []
        self._ready: list[tuple[Priority, int, _Entry[K]]] = []
        self._sequence = itertools.count()

    def __len__(self) -> int:
        """The number of keys in the queue, ready or not. Callable from any thread."""
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        """Whether the key is in the queue, ready or not."""
        return key in self._entries

    def add(self, key: K, now_s: float, priority: Priority = NORMAL) -> None:
        """Make a key ready now."""
        self.add_after(key, 0.0, now_s, priority)

    def add_after(self, key: K, after_s: float, now_s: float, priority: Priority = NORMAL) -> None:
        """Make a key ready in ``after_s`` seconds.

        Of a key that is in the queue already, the earlier time and the lower priority count.
        """
        ready_s = now_s + max(0.0, after_s)
        held = self._entries.get(key)
        if held is not None:
            ready_s, priority = min(ready_s, held.ready_s), min(priority, held.priority)
            if (ready_s, priority) == (held.ready_s, held.priority):
                return
        entry = self._entries[key] = _Entry(key, ready_s, priority)
        heappush(self._delayed, (ready_s, next(self._sequence), entry))
        if len(self._delayed) + len(self._ready) > 2 * len(self._entries) + SPARE_ENTRIES:
            self._drop_replaced()

    def discard(self, key: K) -> None:
        """Remove a key, if it is in the queue."""
        self._entries.pop(key, None)

    def get(self, now_s: float, below: Priority = LAST) -> K | None:
        """Take the next key that is ready and has a priority lower than ``below``; None if there is none."""
        while self._delayed and self._delayed[0][0] <= now_s:
            entry = heappop(self._delayed)[-1]
            if self._holds(entry):
                heappush(self._ready, (entry.priority, next(self._sequence), entry))
        while self._ready and self._ready[0][0] < below:
            entry = heappop(self._ready)[-1]
            if self._holds(entry):
                del self._entries[entry.key]
                return entry.key
        return None

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the next delayed key is ready; infinity if there is none.

        Keys that :meth:`get` has found ready and left, because of their priority, do not count.
        """
        while self._delayed and not self._holds(self._delayed[0][-1]):
            heappop(self._delayed)
        return max(0.0, self._delayed[0][0] - now_s) if self._delayed else math.inf

    def _holds(self, entry: _Entry[K]) -> bool:
        return self._entries.get(entry.key) is entry

    def _drop_replaced(self) -> None:
        self._delayed = [item for item in self._delayed if self._holds(item[-1])]
        self._ready = [item for item in self._ready if self._holds(item[-1])]
        heapify(self._delayed)
        heapify(self._ready)
