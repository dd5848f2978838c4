"""Parses a file of manifests into objects, and into problems with their lines.

Fields that an API server fills in are derived from the object itself, so that they are the same after a restart and
for every copy of the file:

- ``uid``: from kind, namespace and name, if the file has none.
- ``generation``: always from the parsed spec. The number in a dump would not change when the dump is edited.
- ``creationTimestamp``: 1970 if the file has none. Of two such slices the one whose name sorts first counts as older.
- ``namespace``: ``default``.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, NamedTuple, TypeVar
from uuid import NAMESPACE_URL, uuid5

from msgspec.structs import replace

from slicebw.api import kinds, node_bandwidth, pod, slice_bandwidth
from slicebw.api.quantity import shown
from slicebw.core.desired import NodeSpec, Pod, SliceSpec
from slicebw.core.errors import SlicebwError
from slicebw.folder.documents import DocumentError, documents

POD: Final = "Pod"
_CORE: Final = "v1"
_DEFAULT_NAMESPACE: Final = "default"
_LIST_SUFFIX: Final = "List"
_OUR_KINDS: Final = tuple(kind.name for kind in kinds.ALL)
_GENERATION_BITS: Final = 31

_Spec = TypeVar("_Spec", SliceSpec, NodeSpec)


class Identity(NamedTuple):
    """Identifies an object. ``namespace`` is empty for a cluster-scoped one."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object of a file. ``node_name`` is the node that a pod is bound to; empty for none."""

    identity: Identity
    line: int
    value: SliceSpec | NodeSpec | Pod
    node_name: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in which line."""

    line: int
    text: str


@dataclass(slots=True)
class Content:
    """The content of a file. With ``problems`` it is incomplete. ``ignored`` counts objects of other kinds."""

    manifests: dict[Identity, Manifest] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)


class _UnusableError(SlicebwError):
    """An object that cannot be used at all."""


def read(content: bytes, *, is_json: bool = False) -> Content:
    """Parse as much of a file as possible: single objects, ``List`` and lists of one kind. Never raises.

    Errors within a spec are not problems of the file. They are in the value's ``errors``, as from an API server.
    """
    result = Content()
    try:
        for document in documents(content, is_json=is_json):
            for obj, line in _objects(document.value, document.line, document.item_lines, result.problems):
                _add(result, obj, line)
    except DocumentError as error:
        result.problems.append(Problem(error.line, str(error)))
    return result


def _objects(
    value: object, line: int, item_lines: tuple[int, ...], problems: list[Problem]
) -> Iterator[tuple[object, int]]:
    """Yield each object with its line. Items of a list like ``kind: PodList`` may lack kind and apiVersion."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(kind, str) or not kind.endswith(_LIST_SUFFIX):
        yield value, line
        return
    items = value.get("items")
    if items is None:
        return
    if not isinstance(items, list):
        problems.append(Problem(line, f"{kind}: items: {shown(items)} must be a list"))
        return
    inherited = {"apiVersion": value.get("apiVersion"), "kind": kind.removesuffix(_LIST_SUFFIX)}
    for index, item in enumerate(items):
        if kind != _LIST_SUFFIX and isinstance(item, Mapping):
            item = {**inherited, **item}  # noqa: PLW2901 - the item as it would stand alone
        yield item, item_lines[index] if index < len(item_lines) else line


def _add(result: Content, obj: object, line: int) -> None:
    try:
        manifest = _manifest(obj, line, result.ignored)
        if manifest is None:
            return
        first = result.manifests.get(manifest.identity)
        if first is not None:
            raise _UnusableError(f"{manifest.identity} is in this file already, in line {first.line}: keep one of them")
        result.manifests[manifest.identity] = manifest
    except _UnusableError as wrong:
        result.problems.append(Problem(line, str(wrong)))


def _manifest(obj: object, line: int, ignored: dict[str, int]) -> Manifest | None:
    """Return the parsed object, or None if its kind is not read here. Raises _UnusableError."""
    if not isinstance(obj, Mapping):
        raise _UnusableError(f"{shown(obj)} must be an object with apiVersion, kind and metadata")
    kind = _kind(obj)
    if kind is None or kind == kinds.BANDWIDTH_USAGE.name:  # a dump of a namespace has usages, too
        ignored[str(obj["kind"])] = ignored.get(str(obj["kind"]), 0) + 1
        return None
    namespaced = kind != kinds.NODE_BANDWIDTH.name
    identity = _identity(kind, obj, namespaced=namespaced)
    complete = {**obj, "metadata": _with_defaults(identity, obj["metadata"])}
    if kind == POD:
        spec = obj.get("spec")
        node_name = spec.get("nodeName") if isinstance(spec, Mapping) else None
        return Manifest(identity, line, pod.parse(complete), node_name if isinstance(node_name, str) else "")
    if kind == kinds.NODE_BANDWIDTH.name:
        return Manifest(identity, line, _with_generation(node_bandwidth.parse, complete))
    return Manifest(identity, line, _with_generation(slice_bandwidth.parse, complete))


def _kind(obj: Mapping[Any, Any]) -> str | None:
    """Return the object's kind if it is read here, else None. Raises _UnusableError for a misspelled one."""
    version, kind = _text(obj, "apiVersion"), _text(obj, "kind")
    wanted = _CORE if kind == POD else kinds.API_VERSION
    ours = kind == POD or kind in _OUR_KINDS
    if ours and version != wanted:
        raise _UnusableError(f"{kind}: apiVersion is {shown(version)}, which must be {wanted}")
    if ours:
        return kind
    if version.startswith(f"{kinds.GROUP}/"):
        close = get_close_matches(kind, _OUR_KINDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_OUR_KINDS)}"
        raise _UnusableError(f"kind {shown(kind)} is unknown in {kinds.GROUP}; {hint}")
    return None


def _text(obj: Mapping[Any, Any], name: str) -> str:
    value = obj.get(name)
    if isinstance(value, str) and value:
        return value
    given = "is missing" if value is None else f"is {shown(value)}"
    raise _UnusableError(
        f"{name} {given}: there are {kinds.API_VERSION} {kinds.SLICE_BANDWIDTH.name}, "
        f"{kinds.API_VERSION} {kinds.NODE_BANDWIDTH.name}, {_CORE} {POD} and {_CORE} {_LIST_SUFFIX}"
    )


def _identity(kind: str, obj: Mapping[Any, Any], *, namespaced: bool) -> Identity:
    metadata = obj.get("metadata")
    if not isinstance(metadata, Mapping):
        given = "is missing" if metadata is None else f"is {shown(metadata)}"
        raise _UnusableError(f"{kind}: metadata {given}; it must have a name")
    name = _name(kind, "name", metadata.get("name"))
    if not namespaced:
        return Identity(kind, "", name)
    return Identity(kind, _name(kind, "namespace", metadata.get("namespace") or _DEFAULT_NAMESPACE), name)


def _name(kind: str, field_name: str, value: object) -> str:
    """Return a legal name, which is also safe as a file name. Raises _UnusableError."""
    name = "" if value is None else value
    wrong = kinds.name_error(name) if isinstance(name, str) else f"{shown(value)} is not a string"
    if wrong is not None:
        raise _UnusableError(f"{kind}: metadata.{field_name}: {wrong}")
    return str(name)


def _with_defaults(identity: Identity, metadata: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the metadata with the fields that an API server would have filled in."""
    uid = metadata.get("uid") or str(uuid5(NAMESPACE_URL, f"{kinds.GROUP}/{'/'.join(identity)}"))
    return {**metadata, "namespace": identity.namespace or None, "uid": uid}


def _with_generation(parse: Callable[[object], _Spec], obj: object) -> _Spec:
    """Parse an object, and give it a generation made from its content.

    A changed spec has another one, so a reader of the reports can tell which spec a report is about.
    """
    spec = replace(parse(obj), generation=0)
    digest = hashlib.sha256(repr(spec).encode("utf-8", "backslashreplace")).digest()
    number = int.from_bytes(digest[:8], "big") & ((1 << _GENERATION_BITS) - 1)
    return replace(spec, generation=number or 1)
