"""What is known of one list of objects, put together from lists and events that may come late, twice or out of order.

Every object carries a resourceVersion: one counter for all objects of a kind, which only grows (API conventions,
"resource versions"; comparable as numbers since they come from etcd's revision). So age decides, not arrival:

- an object replaces what is held only if it is newer;
- an object not held is taken only if it is newer than its own deletion and than the last complete list;
- a deletion counts for the very object (uid) it names, and for older ones of that name.

Only a restored etcd makes the counter jump back; :meth:`ObjectCache.rewind` then lets anything be newer.
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
class Gone(Generic[V]):
    """An object that is said not to be there any more, as of ``version``."""

    key: Key
    uid: str
    version: int


@dataclass(frozen=True, slots=True)
class Change(Generic[V]):
    """A value that changed: None before means that it is new, None after that it is gone."""

    before: V | None
    after: V | None


@dataclass(frozen=True, slots=True)
class _Held(Generic[V]):
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


def gone_of(obj: Object) -> "Gone[V]":
    """What a DELETED event says: its object has the version of the deletion."""
    return Gone(key_of(obj), obj["metadata"]["uid"], version_of(obj))


class ObjectCache(Generic[V]):
    """The newest known value of each object. Not thread-safe."""

    def __init__(self, parse: Callable[[Object], V]) -> None:
        """Know nothing yet. ``parse`` makes of an object what is worth keeping of it."""
        self._parse = parse
        self._held: dict[Key, _Held[V]] = {}
        self._tombstones: dict[Key, int] = {}
        self._floor = 0

    def __len__(self) -> int:
        """How many objects are known."""
        return len(self._held)

    def __iter__(self) -> Iterator[V]:
        """The values, in no particular order."""
        return (held.value for held in self._held.values())

    @property
    def floor(self) -> int:
        """The version of the newest complete list."""
        return self._floor

    def see(self, obj: Object, *, listed: bool = False) -> Change[V] | None:
        """Take note of an object. None where it is old news, or changes nothing that is kept of it.

        Args:
            obj: as it came.
            listed: it stands in a list, which is right about what exists even below the floor.
        """
        key, version = key_of(obj), version_of(obj)
        held = self._held.get(key)
        unheld = max(self._tombstones.get(key, 0), 0 if listed else self._floor)
        if version <= (unheld if held is None else held.version):
            return None
        value = self._parse(obj)
        # An equal value stays the same object: readers tell by identity what has changed.
        same = held is not None and held.value == value
        kept = held.value if held is not None and same else value
        self._held[key] = _Held(obj["metadata"]["uid"], version, kept)
        self._tombstones.pop(key, None)
        return None if same else Change(None if held is None else held.value, value)

    def forget(self, gone: "Gone[V]") -> Change[V] | None:
        """Drop an object, unless what is held under its name is another and newer one."""
        held = self._held.get(gone.key)
        if held is not None and held.uid != gone.uid and held.version >= gone.version:
            return None
        self._tombstones[gone.key] = max(gone.version, self._tombstones.get(gone.key, 0))
        while len(self._tombstones) > MAX_TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        if held is None:
            return None
        del self._held[gone.key]
        return Change(held.value, None)

    def missing_from(self, listed: Iterable[Key], version: int) -> "list[Gone[V]]":
        """What a complete list of ``version`` does not have any more, and is not newer than the list."""
        names = frozenset(listed)
        return [
            Gone(key, held.uid, version)
            for key, held in self._held.items()
            if key not in names and held.version <= version
        ]

    def complete(self, version: int) -> None:
        """A complete list of ``version`` has been taken in: whatever was deleted before it is known to be gone."""
        self._floor = max(self._floor, version)
        self._tombstones = {key: at for key, at in self._tombstones.items() if at > version}

    def rewind(self) -> None:
        """The versions have jumped back: hold on to the values, and take whatever comes for newer."""
        self._floor = 0
        self._tombstones.clear()
        self._held = {key: _Held(held.uid, 0, held.value) for key, held in self._held.items()}
