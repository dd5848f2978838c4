"""The newest known state of one kind's objects, from lists and events that may arrive late, twice or out of order.

Every object carries a resourceVersion: one counter for all objects of a kind, which only grows (API conventions,
"resource versions"; comparable as numbers because etcd's revision is the counter). The store orders by it, not by
arrival:

- An object replaces a stored one only if its version is higher.
- An object that is not stored is added only if its version is higher than that of its own deletion and, unless a list
  has it, than that of the last complete list.
- A deletion removes the object whose uid it names, and older objects of the same name.

Only a restored etcd makes the counter jump back. :meth:`Store.reset_versions` then makes any version newer.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from sys import intern
from typing import Final, Generic, NamedTuple, TypeVar

from slicebw.kube.resources import Object

V = TypeVar("V")

MAX_TOMBSTONES: Final = 10_000
"""How many deletions since the last complete list are remembered: a list from before them must not undo them."""


class Key(NamedTuple):
    """An object's name. ``namespace`` is empty for cluster-scoped kinds."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Deletion:
    """An object that does not exist any more, as of ``version``."""

    key: Key
    uid: str
    version: int


@dataclass(frozen=True, slots=True)
class Change(Generic[V]):
    """A value that changed. ``before`` is None for a new one, ``after`` is None for a deleted one."""

    before: V | None
    after: V | None


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    uid: str
    version: int
    value: V


def key_of(obj: Object) -> Key:
    """Return the namespace and name of an object."""
    metadata = obj["metadata"]
    return Key(intern(metadata.get("namespace", "")), metadata["name"])


def version_of(obj: Object) -> int:
    """Return the resourceVersion of an object as a number."""
    return int(obj["metadata"]["resourceVersion"])


def deletion_of(obj: Object) -> Deletion:
    """Return the deletion that a DELETED event reports."""
    # The object in such an event carries the version of the deletion, not that of its last change.
    return Deletion(key_of(obj), obj["metadata"]["uid"], version_of(obj))


class Store(Generic[V]):
    """The newest known value of each object, with its version. Not thread-safe."""

    def __init__(self, parse: Callable[[Object], V]) -> None:
        """Start empty. ``parse`` makes the stored value from an object."""
        self._parse = parse
        self._entries: dict[Key, _Entry[V]] = {}
        self._tombstones: dict[Key, int] = {}
        self._list_version = 0

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self._entries)

    def __iter__(self) -> Iterator[V]:
        """Iterate over the values, in no particular order."""
        return (entry.value for entry in self._entries.values())

    @property
    def list_version(self) -> int:
        """The version of the newest complete list; 0 before the first."""
        return self._list_version

    def upsert(self, obj: Object, *, listed: bool = False) -> Change[V] | None:
        """Add or replace an object. Return None if it is not newer, or if its stored value stays the same.

        Raises what ``parse`` raises; the store is then unchanged.

        Args:
            obj: the object as received.
            listed: whether it comes from a list. An event below ``list_version`` may be about an object that was
                deleted since; an object in a list existed when the list was made.
        """
        key, version = key_of(obj), version_of(obj)
        entry = self._entries.get(key)
        newest_without = max(self._tombstones.get(key, 0), 0 if listed else self._list_version)
        if version <= (newest_without if entry is None else entry.version):
            return None
        value = self._parse(obj)
        # An equal value stays the same object: the pass compares its inputs by identity.
        same = entry is not None and entry.value == value
        kept = entry.value if entry is not None and same else value
        self._entries[key] = _Entry(obj["metadata"]["uid"], version, kept)
        self._tombstones.pop(key, None)
        return None if same else Change(None if entry is None else entry.value, value)

    def delete(self, deletion: Deletion) -> Change[V] | None:
        """Remove an object. Does nothing if another, newer object is stored under its name."""
        entry = self._entries.get(deletion.key)
        if entry is not None and entry.uid != deletion.uid and entry.version >= deletion.version:
            return None
        self._tombstones[deletion.key] = max(deletion.version, self._tombstones.get(deletion.key, 0))
        while len(self._tombstones) > MAX_TOMBSTONES:  # a dict keeps insertion order: the oldest goes first
            del self._tombstones[next(iter(self._tombstones))]
        if entry is None:
            return None
        del self._entries[deletion.key]
        return Change(entry.value, None)

    def missing_from(self, listed: Iterable[Key], version: int) -> list[Deletion]:
        """Return deletions of the stored objects that a complete list of ``version`` lacks, except newer ones."""
        names = frozenset(listed)
        return [
            Deletion(key, entry.uid, version)
            for key, entry in self._entries.items()
            if key not in names and entry.version <= version
        ]

    def complete_list(self, version: int) -> None:
        """Note that all of a complete list is stored; deletions before ``version`` need not be remembered."""
        self._list_version = max(self._list_version, version)
        self._tombstones = {key: at for key, at in self._tombstones.items() if at > version}

    def reset_versions(self) -> None:
        """Keep the values, and let any version replace them: the API server's versions have jumped back."""
        self._list_version = 0
        self._tombstones.clear()
        self._entries = {key: _Entry(entry.uid, 0, entry.value) for key, entry in self._entries.items()}
