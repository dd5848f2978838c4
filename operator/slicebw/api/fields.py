"""Reads objects field by field. Any input gives a value or an error text that starts with the field's full path."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Final, TypeVar

from slicebw.api.quantity import QuantityError, parse_time, shown
from slicebw.core.errors import SlicebwError

MAX_ERRORS: Final = 20
"""Of one object: further errors are only counted."""
_LONGEST_FIELD: Final = 63

_T = TypeVar("_T")


class FieldError(SlicebwError, ValueError):
    """An object that cannot be parsed. Names the field with its full path, the value, and what is allowed."""


class Fields:
    """One mapping of an object. All mappings of an object add their errors to one list.

    A null field counts as absent, as on the API server.
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
        """Return the value as it is, None if absent."""
        return self._values.get(name)

    def read(self, name: str, parse: Callable[[object], _T], default: _T | None) -> _T | None:
        """Return the parsed value, or ``default`` if absent. If wrong, add an error and return None."""
        value = self.raw(name)
        if value is None:
            return default
        try:
            return parse(value)
        except QuantityError as error:
            self.fail(name, str(error))
            return None

    def required(self, name: str, parse: Callable[[object], _T]) -> _T | None:
        """Return the parsed value. If wrong or absent, add an error and return None."""
        if self.raw(name) is None:
            self.fail(name, "must be given")
            return None
        return self.read(name, parse, None)

    def must(self, name: str, parse: Callable[[object], _T]) -> _T:
        """Return the parsed value. Raises FieldError if wrong or absent."""
        value = self.required(name, parse)
        if value is None:
            raise FieldError(self.errors[0])
        return value

    def names(self) -> list[object]:
        """Return the names of all fields, known or not. In YAML they need not be strings."""
        return list(self._values)

    def inner(self, name: str) -> "Fields":
        """Return the mapping in a field; an empty one if absent."""
        return Fields(self.raw(name), self.path_of(name), self.errors)

    def reporting_to(self, errors: list[str]) -> "Fields":
        """Return the same mapping, with another list for its errors."""
        return Fields(self._values, self.path, errors)

    def items(self, name: str) -> list[tuple[str, object]]:
        """Return the entries of a list, each with its full path; none if absent."""
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.fail(name, f"{shown(value)} must be a list")
            return []
        path = self.path_of(name)
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]

    def fail(self, name: str, text: str) -> None:
        """Add an error about a field; ``""`` stands for the mapping itself."""
        self.errors.append(f"{self.path_of(name)}: {text}")

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """Add an error for each field that is not in ``known``, with the name that was probably meant."""
        allowed = tuple(known)
        for name in self._values:
            if name in allowed:
                continue
            # Such a name is shown cut off, as a value: an error's path has to stay readable.
            if not isinstance(name, str) or len(name) > _LONGEST_FIELD:
                self.fail("", f"{shown(name)} is not a field here; there are {', '.join(allowed)}")
                continue
            # The search is slow, and further errors are not shown.
            close = get_close_matches(name, allowed, n=1) if len(self.errors) < MAX_ERRORS else []
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(allowed)}"
            self.fail(name, f"unknown field; {hint}")

    def path_of(self, name: str) -> str:
        """Return a field's full path, on one line: unprintable characters are escaped."""
        printable = name if name.isprintable() else shown(name)
        return ".".join(part for part in (self.path, printable) if part) or "object"


class Metadata:
    """The metadata that slicebw needs. Wrong fields count as absent: the API server has checked them."""

    def __init__(self, obj: object) -> None:
        metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
        values: Mapping[str, object] = metadata if isinstance(metadata, Mapping) else {}
        self.namespace = _text(values.get("namespace"))
        self.name = _text(values.get("name"))
        self.uid = _text(values.get("uid"))
        generation = values.get("generation")
        # True and False are ints in Python, and in JSON they are not numbers.
        self.generation = generation if isinstance(generation, int) and not isinstance(generation, bool) else 0
        self.created_s = lenient_time(values.get("creationTimestamp")) or 0
        self.deleting = values.get("deletionTimestamp") is not None
        self.labels = text_map(values.get("labels"))
        self.stored = values.get("resourceVersion") is not None
        """Whether the object comes from an API server, which prunes fields that its schema does not have. Fields that
        are unknown here then belong to a newer schema and are ignored. In a file they are mistakes."""


def text_map(value: object) -> dict[str, str]:
    """Return the entries of a mapping whose keys and values are strings; none if it is no mapping."""
    if not isinstance(value, Mapping):
        return {}
    return {key: text for key, text in value.items() if isinstance(key, str) and isinstance(text, str)}


def lenient_time(value: object) -> int | None:
    """Return a time in whole seconds since the epoch, or None if it is absent or wrong."""
    try:
        return parse_time(value)
    except QuantityError:
        return None


def lenient_int(value: object) -> int:
    """Return a whole number, or 0 for any other value."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def limited(errors: list[str]) -> tuple[str, ...]:
    """Return the first MAX_ERRORS errors, and the number of further ones."""
    more = len(errors) - MAX_ERRORS
    return (*errors[:MAX_ERRORS], f"and {more} more") if more > 0 else tuple(errors)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
