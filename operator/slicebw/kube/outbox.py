"""What is to be written to the API server: the latest state of each object, the urgent first, within a write budget."""

import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import chain
from typing import Generic, TypeVar

W = TypeVar("W")


class Urgency(IntEnum):
    """What goes out first."""

    TRANSITION = 0
    """An Event, or a cap that was set or lifted: somebody wants to know now."""
    CHANGE = 1
    """Something other than a figure changed."""
    FIGURES = 2


@dataclass(frozen=True, slots=True)
class Entry(Generic[W]):
    """One object to write. ``not_before`` is on the monotonic clock: it failed, and may be tried again then."""

    name: Hashable
    write: W
    urgency: Urgency
    not_before: float = 0.0


class Outbox(Generic[W]):
    """Entries by name: a newer write of an object takes the place of the one that waits. Safe from any thread."""

    def __init__(self, most: int) -> None:
        """Be empty. Where ``most`` entries wait, no further names are taken."""
        self._most = most
        self._lock = threading.Lock()
        self._queues: dict[Urgency, dict[Hashable, Entry[W]]] = {urgency: {} for urgency in Urgency}

    def __len__(self) -> int:
        """How many entries wait."""
        return sum(map(len, self._queues.values()))

    def put(self, name: Hashable, write: W, urgency: Urgency) -> bool:
        """Queue a write. It keeps its place and its urgency where the one it replaces had better ones.

        Returns whether it was taken: False where the outbox is full.
        """
        with self._lock:
            waiting = self._waiting(name)
            if waiting is None:
                if len(self) >= self._most:
                    return False
                self._queues[urgency][name] = Entry(name, write, urgency)
            elif waiting.urgency <= urgency:
                self._queues[waiting.urgency][name] = replace(waiting, write=write)
            else:
                del self._queues[waiting.urgency][name]
                self._queues[urgency][name] = Entry(name, write, urgency)
            return True

    def waiting(self, name: Hashable) -> W | None:
        """What waits to be written under a name."""
        with self._lock:
            entry = self._waiting(name)
            return None if entry is None else entry.write

    def next(self, now: float) -> Entry[W] | None:
        """The entry to write now; it stays until :meth:`done`."""
        with self._lock:
            return next((entry for entry in self._all() if entry.not_before <= now), None)

    def next_due(self) -> float | None:
        """When the next entry may be written, on the monotonic clock; None where none waits."""
        with self._lock:
            return min((entry.not_before for entry in self._all()), default=None)

    def done(self, entry: Entry[W]) -> None:
        """It is written. What was queued under its name meanwhile stays."""
        with self._lock:
            waiting = self._queues[entry.urgency].get(entry.name)
            if waiting is not None and waiting.write is entry.write:
                del self._queues[entry.urgency][entry.name]

    def later(self, entry: Entry[W], not_before: float) -> None:
        """It failed: others go first until ``not_before``. What was queued under its name meanwhile may go at once."""
        with self._lock:
            waiting = self._queues[entry.urgency].get(entry.name)
            if waiting is not None and waiting.write is entry.write:
                del self._queues[entry.urgency][entry.name]
                self._queues[entry.urgency][entry.name] = replace(waiting, not_before=not_before)

    def _all(self) -> Iterator[Entry[W]]:
        return chain.from_iterable(queue.values() for queue in self._queues.values())

    def _waiting(self, name: Hashable) -> Entry[W] | None:
        return next((queue[name] for queue in self._queues.values() if name in queue), None)
