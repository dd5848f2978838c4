"""Reading objects field by field: whatever arrives, the outcome is a value or a sentence with the field's full path."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Final, TypeVar

from slicebw.api.quantity import QuantityError, parse_time, shown
from slicebw.core.errors import SlicebwError

MAX_ERRORS: Final = 20
"""An object that is wrong in more places than this has its first ones named."""
_LONGEST_FIELD: Final = 63

_T = TypeVar("_T")


class FieldError(SlicebwError, ValueError):
    """An object that cannot be read. Names the field by its full path, the value, and what is allowed."""


class Fields:
    """One mapping of an object. Errors of all mappings of an object gather in one list.

    A field that is null counts as absent, as for the API server.
    """

    def __init__(self, value: object, path: str, errors: list[str]) -> None:
        self.path = path
        self.errors = errors
        self._values: Mapping[object, object] = {}
        if isinstance(value, Mapping):
            self._values = value
        elif value is not None:
            self.fail("", f"{shown(value)} must be an object with named fields")

    def raw(self, name: str) -> object:
        """The value as it is, None where absent."""
        return self._values.get(name)

    def read(self, name: str, parse: Callable[[object], _T], default: _T | None) -> _T | None:
        """The parsed value, ``default`` where absent, None where wrong (and the error is noted)."""
        value = self.raw(name)
        if value is None:
            return default
        try:
            return parse(value)
        except QuantityError as error:
            self.fail(name, str(error))
            return None

    def required(self, name: str, parse: Callable[[object], _T]) -> _T | None:
        """The parsed value; None where wrong or absent (and the error is noted)."""
        if self.raw(name) is None:
            self.fail(name, "must be given")
            return None
        return self.read(name, parse, None)

    def must(self, name: str, parse: Callable[[object], _T]) -> _T:
        """The parsed value; raises FieldError where wrong or absent."""
        value = self.required(name, parse)
        if value is None:
            raise FieldError(self.errors[0])
        return value

    def names(self) -> list[object]:
        """The names of all fields, known or not; in YAML they need not be strings."""
        return list(self._values)

    def inner(self, name: str) -> "Fields":
        """The mapping in a field, an empty one where absent."""
        return Fields(self.raw(name), self.path_of(name), self.errors)

    def reporting_to(self, errors: list[str]) -> "Fields":
        """The same mapping, with another list for what is wrong."""
        return Fields(self._values, self.path, errors)

    def items(self, name: str) -> list[tuple[str, object]]:
        """The entries of a list, each with its full path; none where absent."""
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.fail(name, f"{shown(value)} must be a list")
            return []
        path = self.path_of(name)
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]

    def fail(self, name: str, text: str) -> None:
        """Note what is wrong with a field (``""``: with the mapping itself)."""
        self.errors.append(f"{self.path_of(name)}: {text}")

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Note every field that is none of ``known``, with the one that was probably meant."""
        allowed = tuple(known)
        for name in self._values:
            if name in allowed:
                continue
            if not isinstance(name, str) or len(name) > _LONGEST_FIELD:
                self.fail("", f"{shown(name)} is not a field here; there are {', '.join(allowed)}")
                continue
            close = get_close_matches(name, allowed, n=1) if len(self.errors) < MAX_ERRORS else []
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(allowed)}"
            self.fail(name, f"unknown field; {hint}")

    def path_of(self, name: str) -> str:
        """A field's full path; what cannot be printed in a name is escaped, so that it stays on one line."""
        printable = name if name.isprintable() else shown(name)
        return ".".join(part for part in (self.path, printable) if part) or "object"


class Metadata:
    """What slicebw needs of an object's metadata, read leniently: the API server vouches for it."""

    def __init__(self, obj: object) -> None:
        metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
        values: Mapping[str, object] = metadata if isinstance(metadata, Mapping) else {}
        self.namespace = _text(values.get("namespace"))
        self.name = _text(values.get("name"))
        self.uid = _text(values.get("uid"))
        generation = values.get("generation")
        self.generation = generation if isinstance(generation, int) and not isinstance(generation, bool) else 0
        self.created_s = lenient_time(values.get("creationTimestamp")) or 0
        self.deleting = values.get("deletionTimestamp") is not None
        self.labels = text_map(values.get("labels"))
        self.stored = values.get("resourceVersion") is not None
        """It came from an API server, which has pruned what its schema does not know. Fields that are unknown here
        then belong to a newer version and are passed over; in a file nothing prunes, so there they are mistakes."""


def text_map(value: object) -> dict[str, str]:
    """The entries of a mapping whose keys and values are strings; nothing where it is none."""
    if not isinstance(value, Mapping):
        return {}
    return {key: text for key, text in value.items() if isinstance(key, str) and isinstance(text, str)}


def lenient_time(value: object) -> int | None:
    """A time in whole seconds, None where there is none or it cannot be read."""
    try:
        return parse_time(value)
    except QuantityError:
        return None


def lenient_int(value: object) -> int:
    """A whole number, 0 where there is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def limited(errors: list[str]) -> tuple[str, ...]:
    """The first errors, and how many more there are."""
    more = len(errors) - MAX_ERRORS
    return (*errors[:MAX_ERRORS], f"and {more} more") if more > 0 else tuple(errors)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
