"""Parses the documents of a YAML or JSON file, with line numbers.

Two mistakes are errors here that a plain load lets pass:

- a key that occurs twice in a mapping, of which the later one would win;
- nesting so deep that libyaml's composer would overflow the C stack and end the process.
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
"""Of nesting, in levels. The deepest Kubernetes objects have a quarter of it."""

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_LONGEST_FIELD: Final = 63

_TIMESTAMP_TAG: Final = "tag:yaml.org,2002:timestamp"
_CONSTRUCTOR_ERRORS: Final = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""Errors that PyYAML's constructors raise for a scalar that does not fit its tag (``!!int x``)."""


class DocumentError(SlicebwError):
    """A file that cannot be parsed to its end. ``line`` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """One document. ``item_lines`` are the lines of the entries of its top-level list ``items``, if it has one."""

    value: object
    line: int
    item_lines: tuple[int, ...] = ()


def documents(content: bytes, *, is_json: bool = False) -> Iterator[Document]:
    """Yield the documents of a file, except empty ones. Raises DocumentError at one that cannot be parsed."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(line, f"is not UTF-8 text: byte 0x{content[error.start]:02x}") from None
    return _json_documents(text) if is_json else _yaml_documents(text)


def _json_documents(text: str) -> Iterator[Document]:
    """Yield the documents of a JSON file. YAML's parser does not do: it forbids tabs as indentation."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_duplicates)
    position = _skip_blanks(text, 0)
    escaped = _SURROGATE.search(text) is not None  # the check of the values is slow, and rarely needed
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
        if escaped and _has_lone_surrogate(value):
            raise DocumentError(
                line, "cannot be read: \\ud800 to \\udfff is half of a pair, whose other half is missing"
            )
        if value is not None:
            yield Document(value, line)
        position = _skip_blanks(text, position)


def _has_lone_surrogate(value: object) -> bool:
    """Return whether a string has a lone surrogate: Python's JSON accepts it, but it cannot be written as UTF-8."""
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
        raise ValueError(f"the field {_field(twice)} occurs twice")
    return found


def _field(name: str) -> str:
    """Return a field's name for a message: printable, on one line, and short."""
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
        raise DocumentError(line, f"cannot be read: a value does not fit its tag: {error}") from None
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
    """libyaml's parser under PyYAML's own composer.

    libyaml's composer is faster, but cannot be overridden to check depth and keys, and it holds the interpreter lock.
    """

    # Times stay strings, as in JSON: in a label, 2026-13-01 must not be an error, nor 2026-12-01 a date.
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
        # A merge (<<) is not expanded yet, so a field that overrides a merged one is no duplicate.
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise _error(f"the field {_field(key.value)} occurs twice", key)
            seen.add((key.tag, key.value))
        return node
