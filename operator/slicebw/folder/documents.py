"""The text of a YAML or JSON file to its documents, with line numbers; stricter and safer than a plain load.

Refused, because each is a mistake that would otherwise pass in silence or end the process: a key that stands twice
in one mapping (the later one would win), and nesting so deep that libyaml's composer would overflow the C stack.
"""

import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from yaml import MarkedYAMLError, Node, YAMLError
from yaml._yaml import CParser
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, ScalarNode, SequenceNode
from yaml.reader import ReaderError
from yaml.resolver import Resolver

from slicebw.api.quantity import shown
from slicebw.core.errors import SlicebwError

MAX_DEPTH: Final = 100
"""Of nesting; the deepest Kubernetes objects have a quarter of it."""

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_LONGEST_FIELD: Final = 63

_TIMESTAMP_TAG: Final = "tag:yaml.org,2002:timestamp"
_CONSTRUCTOR_ERRORS: Final = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""What PyYAML's constructors let through where a scalar is not what its tag says (``!!int x``)."""


class DocumentError(SlicebwError):
    """A text that cannot be read to its end. ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """One document: ``item_lines`` are the lines of its top-level ``items``, where it has such a list."""

    value: object
    line: int
    item_lines: tuple[int, ...] = ()


def documents(content: bytes, *, is_json: bool = False) -> Iterator[Document]:
    """All documents of a file that are not empty, one after the other. Raises DocumentError where one is broken."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(line, f"is not UTF-8 text: byte 0x{content[error.start]:02x}") from None
    return _json_documents(text) if is_json else _yaml_documents(text)


def _json_documents(text: str) -> Iterator[Document]:
    """JSON needs its own reader: tabs may indent it, which YAML forbids."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_duplicates)
    position = _skip_blanks(text, 0)
    escaped = _SURROGATE.search(text) is not None
    while position < len(text):
        line = text.count("\n", 0, position) + 1
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DocumentError(error.lineno, f"cannot be read: {error.msg}") from None
        except RecursionError:
            raise DocumentError(line, "cannot be read: nested too deeply") from None
        except ValueError as error:
            raise DocumentError(line, f"cannot be read: {error}") from None
        if escaped and _has_half_a_character(value):
            raise DocumentError(line, "cannot be read: a \\ud800 to \\udfff that is half of a pair is no character")
        if value is not None:
            yield Document(value, line)
        position = _skip_blanks(text, position)


def _has_half_a_character(value: object) -> bool:
    """Whether there is a lone surrogate in it: Python's JSON reads it, but no file or checkpoint can hold it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return True
    return False


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {_field(twice)} is there twice")
    return found


def _field(name: str) -> str:
    """A field's name as a message shows it: on one line, and short."""
    return name if name.isprintable() and len(name) <= _LONGEST_FIELD else shown(name)


def _yaml_documents(text: str) -> Iterator[Document]:
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                yield from _document(loader, node)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(line, f"cannot be read: {error.reason}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DocumentError(mark.line + 1 if mark else 1, f"cannot be read: {error.problem or error.context}") from None
    except YAMLError as error:
        raise DocumentError(1, f"cannot be read: {error}") from None


def _document(loader: "_Loader", node: Node) -> Iterator[Document]:
    line = node.start_mark.line + 1
    try:
        value = loader.construct_document(node)
    except _CONSTRUCTOR_ERRORS as error:
        raise DocumentError(line, f"cannot be read: a value is not what its tag says: {error}") from None
    if value is not None:
        yield Document(value, line, _item_lines(node))


def _item_lines(node: Node) -> tuple[int, ...]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode) and key.value == "items" and isinstance(value, SequenceNode):
                return tuple(item.start_mark.line + 1 for item in value.value)
    return ()


def _error(problem: str, where: Any) -> MarkedYAMLError:
    return MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


class _Loader(Composer, CParser, SafeConstructor, Resolver):
    """libyaml's parser under PyYAML's own composer, which can be watched, and lets other threads run meanwhile."""

    # As in JSON, a time is a text: 2026-13-01 in a label must not be an error, nor 2026-12-01 a date.
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, regexp) for tag, regexp in resolvers if tag != _TIMESTAMP_TAG]
        for first, resolvers in Resolver.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(f"nested too deeply: at most {MAX_DEPTH} levels", self.peek_event())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise _error(f"the field {_field(key.value)} is there twice", key)
            seen.add((key.tag, key.value))
        return node
