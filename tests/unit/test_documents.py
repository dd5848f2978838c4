"""Documents name files and tests that exist: one that is renamed is renamed in them, too."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import ROOT

DOCUMENTS: Final = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if path != ROOT / "docs" / "parity.md"
)
"""docs/parity.md is made from a list of its own, which tests/parity holds to the tests that exist."""
FOLDERS: Final = (ROOT, ROOT / "operator" / "slicebw")

DECISIONS: Final = ROOT / "docs" / "decisions"


def links(document: Path) -> set[str]:
    """Where a document's links lead, but for addresses of other sites."""
    return {link for link in re.findall(r"\]\(([^)#]+)", document.read_text()) if "://" not in link}


def named_files(document: Path) -> set[str]:
    """Files of the repository that a document names in code font: those with a folder, and an extension of ours."""
    return set(re.findall(r"`(\w[\w.-]*/[\w./-]+\.(?:py|md|yaml))`", document.read_text()))


def existing_tests() -> set[str]:
    """Every test function, and every module of tests."""
    modules = list((ROOT / "tests").rglob("test_*.py"))
    functions = [re.findall(r"^ *def (test_\w+)", module.read_text(), re.MULTILINE) for module in modules]
    return {name for found in functions for name in found} | {module.stem for module in modules}


def named_tests(document: Path) -> set[str]:
    """Tests that a document names in code font, with or without their file."""
    return set(re.findall(r"`(?:[\w./-]+::)?(test_\w+)`", document.read_text()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    assert [link for link in sorted(links(document)) if not (document.parent / link).exists()] == []
    named = named_files(document)
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in FOLDERS)] == []


def test_every_test_that_a_document_names_exists() -> None:
    existing = existing_tests()
    named = {(document.name, name) for document in DOCUMENTS for name in named_tests(document)}
    assert named
    assert sorted((document, name) for document, name in named if name not in existing) == []


def test_the_index_lists_every_decision() -> None:
    numbered = {path.name for path in DECISIONS.glob("0*.md")}
    assert numbered
    assert {link for link in links(DECISIONS / "README.md") if link.startswith("0")} == numbered
