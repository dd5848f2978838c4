"""Every row of the parity list names tests that exist and always run, and docs/parity.md is made from the list."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.parity.document import DOCUMENT, ROOT, Row, document, rows

LAST_ROW = 25
NOT_RUN = {"skip", "skipif", "xfail"}


@cache
def module(path: Path) -> ast.Module:
    """Parse a file of tests."""
    return ast.parse(path.read_text())


def find(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    """Return the top-level function of this name; None if there is none."""
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return found[0] if found else None


def always_runs(tree: ast.Module, function: ast.FunctionDef) -> bool:
    """Tell whether neither the test nor its file has a mark that skips it or lets it fail."""
    of_file = [node for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    return not any(mark(node) in NOT_RUN for part in (*of_file, *function.decorator_list) for node in ast.walk(part))


def mark(node: ast.AST) -> str | None:
    """Return the name in ``pytest.mark.<name>``; None for anything else."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark":
        return node.attr
    return None


def trouble(test: str) -> str | None:
    """Return why a named test shows nothing; None if it is good."""
    file, separator, name = test.partition("::")
    path = ROOT / file
    if not separator or not file.startswith("tests/") or not Path(file).name.startswith("test_"):
        return "is not the id of a test: use tests/.../test_file.py::test_function"
    if not path.is_file():
        return "its file does not exist"
    function = find(module(path), name)
    if function is None or not name.startswith("test_"):
        return "its file has no such test"
    return None if always_runs(module(path), function) else "it does not always run"


def test_every_row_is_there_once_and_says_something() -> None:
    assert [row.number for row in rows()] == list(range(1, LAST_ROW + 1))
    for row in rows():
        for text in (row.bwmon, row.slicebw):
            assert text.strip()
            assert "|" not in text
            assert "\n" not in text


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"row-{row.number}")
def test_every_row_is_shown_by_tests_that_exist(row: Row) -> None:
    assert row.tests, "no test shows this row"
    assert len(set(row.tests)) == len(row.tests)
    assert {test: why for test in row.tests if (why := trouble(test)) is not None} == {}


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("tests/parity/test_parity.py", "is not the id of a test"),
        ("operator/x.py::test_x", "is not the id of a test"),
        ("tests/none/test_none.py::test_none", "its file does not exist"),
        ("tests/parity/test_parity.py::test_none", "its file has no such test"),
        ("tests/parity/test_parity.py::trouble", "its file has no such test"),
    ],
)
def test_what_shows_nothing_is_found_out(test: str, why: str) -> None:
    assert (trouble(test) or "").startswith(why)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("def test_x(): pass", True),
        ("@pytest.mark.parametrize('x', [1])\n@pytest.mark.timeout(5)\ndef test_x(x): pass", True),
        ("pytestmark = pytest.mark.usefixtures('kernel')\ndef test_x(): pass", True),
        ("@pytest.mark.xfail\ndef test_x(): pass", False),
        ("@pytest.mark.skipif(True, reason='slow')\ndef test_x(): pass", False),
        ("pytestmark = [pytest.mark.skip('later')]\ndef test_x(): pass", False),
        ("@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.xfail)])\ndef test_x(x): pass", False),
    ],
)
def test_a_test_that_may_be_left_out_shows_nothing(text: str, runs: bool) -> None:
    tree = ast.parse(text)
    function = find(tree, "test_x")
    assert function is not None
    assert always_runs(tree, function) is runs


def test_the_document_says_what_the_list_says() -> None:
    assert DOCUMENT.read_text() == document(), "run: python -m tests.parity.document"
