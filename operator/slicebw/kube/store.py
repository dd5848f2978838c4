"""What is known of one list of objects, put together from lists and events that may come late, twice or out of order.

Every object carries a resourceVersion: one counter for all objects of a kind, which only grows (API conventions,
"resource versions"; comparable as numbers since they come from etcd's revision). So age decides, not arrival:

- an object replaces what is held only if it is newer;
- an object not held is taken only if it is newer than its own deletion and than the last complete list;
- a deletion counts for the very object (uid) it names, and for older ones of that name.

Only a restored etcd makes the counter jump back; :meth:`Store.reset_versions` then lets anything be newer.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from sys import intern
from typing import Final, Generic, NamedTuple, TypeVar

from slicebw.kube.resources import Object

V = TypeVar("V")

MAX_TOMBSTONES: Final = 10_000
"""Deletions remembered since the last complete list, lest a list made before one brings the object back."""


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
    """A value that changed: None before means that it is new, None after that it is gone."""

    before: V | None
    after: V | None


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    uid: str
    version: int
    value: V


def key_of(obj: Object) -> Key:
    """The name of an object."""
    metadata = obj["metadata"]
    return Key(intern(metadata.get("namespace", "")), metadata["name"])


def version_of(obj: Object) -> int:
    """The resourceVersion of an object as a number."""
    return int(obj["metadata"]["resourceVersion"])


def deletion_of(obj: Object) -> Deletion:
    """What a DELETED event says: its object has the version of the deletion."""
    return Deletion(key_of(obj), obj["metadata"]["uid"], version_of(obj))


class Store(Generic[V]):
    """The newest known value of each object. Not thread-safe."""

    def __init__(self, parse: Callable[[Object], V]) -> None:
        """Know nothing yet. ``parse`` makes of an object what is worth keeping of it."""
        self._parse = parse
        self._entries: dict[Key, _Entry[V]] = {}
        self._tombstones: dict[Key, int] = {}
        self._list_version = 0

    def __len__(self) -> int:
        """How many objects are known."""
        return len(self._entries)

    def __iter__(self) -> Iterator[V]:
        """The values, in no particular order."""
        return (entry.value for entry in self._entries.values())

    @property
    def list_version(self) -> int:
        """The version of the newest complete list."""
        return self._list_version

    def upsert(self, obj: Object, *, listed: bool = False) -> Change[V] | None:
        """Take note of an object. None where it is old news, or changes nothing that is kept of it.

        Args:
            obj: as it came.
            listed: it stands in a list, which is right about what exists even below the floor.
        """
        key, version = key_of(obj), version_of(obj)
        entry = self._entries.get(key)
        newest_without = max(self._tombstones.get(key, 0), 0 if listed else self._list_version)
        if version <= (newest_without if entry is None else entry.version):
            return None
        value = self._parse(obj)
        # An equal value stays the same object: readers tell by identity what has changed.
        same = entry is not None and entry.value == value
        kept = entry.value if entry is not None and same else value
        self._entries[key] = _Entry(obj["metadata"]["uid"], version, kept)
        self._tombstones.pop(key, None)
        return None if same else Change(None if entry is None else entry.value, value)

    def delete(self, deletion: Deletion) -> Change[V] | None:
        """Drop an object, unless what is entry under its name is another and newer one."""
        entry = self._entries.get(deletion.key)
        if entry is not None and entry.uid != deletion.uid and entry.version >= deletion.version:
            return None
        self._tombstones[deletion.key] = max(deletion.version, self._tombstones.get(deletion.key, 0))
        while len(self._tombstones) > MAX_TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        if entry is None:
            return None
        del self._entries[deletion.key]
        return Change(entry.value, None)

    def missing_from(self, listed: Iterable[Key], version: int) -> list[Deletion]:
        """What a complete list of ``version`` does not have any more, and is not newer than the list."""
        names = frozenset(listed)
        return [
            Deletion(key, entry.uid, version)
            for key, entry in self._entries.items()
            if key not in names and entry.version <= version
        ]

    def complete_list(self, version: int) -> None:
        """A complete list of ``version`` has been taken in: whatever was deleted before it is known to be deletion."""
        self._list_version = max(self._list_version, version)
        self._tombstones = {key: at for key, at in self._tombstones.items() if at > version}

    def reset_versions(self) -> None:
        """The versions have jumped back: hold on to the values, and take whatever comes for newer."""
        self._list_version = 0
        self._tombstones.clear()
        self._entries = {key: _Entry(entry.uid, 0, entry.value) for key, entry in self._entries.items()}
