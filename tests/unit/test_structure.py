"""Rules about the shape and the words of operator/ that no linter has, checked on the syntax tree of every file."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

OPERATOR = Path(__file__).parents[2] / "operator"
MOST_LINES = 50
MOST_PARAMETERS = 7
MOST_CORE_FILES = 15

OLD_WORDS = re.compile(
    r"(^|_)(wishes|snapshot|classification|class_id|root_id|event_note|outbox|forgive_debt|set_leaf|verdict|decisions"
    r"|owed|mirror|census|judge|admission|counted_in|take_up|told)"
    r"(e?s)?(_|$)"
)
"""Words that the glossary has replaced. ``class_id`` was a slice id; tc's word is classid."""
KEPT_WORDS = {
    "slicebw/agent/checkpoint_trust.py": {"outbox", "last_class_id"},  # keys of the ledger's file
    "slicebw/api/bandwidth_usage.py": {"_CLASS_ID", "_class_id"},  # the field classId of a BandwidthUsage
    "slicebw/cli/node.py": {"class_id"},  # a key of what ``slicebw node show`` prints as JSON
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[ast.Module], Iterator[tuple[int, str]]]


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def long_functions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines from ``def`` to the end, docstring included, decorators not."""
    for function in functions(tree):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        if lines > MOST_LINES:
            yield function.lineno, f"{function.name} has {lines} lines"


def wide_functions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """All parameters but ``self`` and ``cls``.

    Constructors are calls by keyword and click commands are called by click, so neither is counted.
    """
    methods = {id(item) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for item in node.body}
    for function in functions(tree):
        if function.name == "__init__" or is_click_command(function):
            continue
        given = function.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        if id(function) in methods and named and named[0].arg in {"self", "cls"}:
            named = named[1:]
        number = len(named) + (given.vararg is not None) + (given.kwarg is not None)
        if number > MOST_PARAMETERS:
            yield function.lineno, f"{function.name} has {number} parameters"


def is_click_command(function: Function) -> bool:
    """Whether a decorator is ``@....command(...)`` or ``@....group(...)``."""
    calls = [decorator.func for decorator in function.decorator_list if isinstance(decorator, ast.Call)]
    return any(isinstance(call, ast.Attribute) and call.attr in {"command", "group"} for call in calls)


def star_tuples(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """``f(*(a, b))``: arguments behind a star that are written out there, which hides how many there are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            items = node.args
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            items = node.elts
        else:
            continue
        for item in items:
            if isinstance(item, ast.Starred) and isinstance(item.value, ast.Tuple | ast.List):
                yield item.lineno, "a star before a tuple that is written out"


def without_docstring(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """A module whose docstring is missing or empty."""
    if not (ast.get_docstring(tree) or "").strip():
        yield 1, "no module docstring"


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every name that the code defines, imports or uses, and not the strings or comments."""
    for node in ast.walk(tree):
        for attribute in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, attribute, None)
            if isinstance(name, str):
                yield getattr(node, "lineno", 0), name


def old_words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Identifiers with a word that the glossary has replaced, whether in snake case or in camel case."""
    for line, name in identifiers(tree):
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        found = OLD_WORDS.search(snake)
        if found:
            yield line, f"{name}: {found[2]} has another name now"


def test_core_has_few_files() -> None:
    files = sorted(path.name for path in (OPERATOR / "slicebw" / "core").glob("*.py") if path.name != "__init__.py")
    assert len(files) <= MOST_CORE_FILES, files


def test_no_old_word_comes_back_as_an_identifier() -> None:
    broken = []
    for path in sorted(OPERATOR.rglob("*.py")):
        file = str(path.relative_to(OPERATOR))
        for line, words in old_words(ast.parse(path.read_text())):
            if words.split(":")[0] not in KEPT_WORDS.get(file, ()):
                broken.append(f"{file}:{line}: {words}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("rule", [long_functions, wide_functions, star_tuples, without_docstring])
def test_the_operator_keeps_the_rule(rule: Rule) -> None:
    broken = [
        f"{path.relative_to(OPERATOR)}:{line}: {words}"
        for path in sorted(OPERATOR.rglob("*.py"))
        for line, words in rule(ast.parse(path.read_text()))
    ]
    assert not broken, "\n".join(broken)


LONG = "def f():\n" + "    pass\n" * MOST_LINES
METHOD = "class C:\n    def f(self, a, b, c, d, e, f, *, g{more}): ...\n"


@pytest.mark.parametrize(
    ("rule", "text", "found"),
    [
        (long_functions, LONG, 1),
        (long_functions, "@decorator\n" + LONG.replace("    pass\n", "", 1), 0),
        (wide_functions, METHOD.format(more=""), 0),
        (wide_functions, METHOD.format(more=", **h"), 1),
        (wide_functions, METHOD.format(more=", h").replace("def f", "def __init__"), 0),
        (wide_functions, METHOD.format(more=", h").replace("    def", "    @click.command()\n    def"), 0),
        (wide_functions, "async def f(self, b, c, d, e, f, g, h): ...", 1),
        (star_tuples, "f(a, *(b, c))", 1),
        (star_tuples, "[*[a, b], c]", 1),
        (star_tuples, "f(*a, *g(b))", 0),
        (without_docstring, "import ast", 1),
        (without_docstring, '""" """', 1),
        (without_docstring, '"""What it is for."""', 0),
        (old_words, "class ClusterSnapshot: ...", 1),
        (old_words, "def f(class_id): return class_id", 2),
        (old_words, "from m import EventNote as Note", 1),
        (old_words, "f(old_verdicts=1)", 1),
        (old_words, "classid = decision = outboxed = 'wishes'  # verdict", 0),
    ],
)
def test_each_rule_finds_what_breaks_it(rule: Rule, text: str, found: int) -> None:
    assert len(list(rule(ast.parse(text)))) == found
