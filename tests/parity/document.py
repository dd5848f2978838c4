"""Makes docs/parity.md from rows.yaml: run ``python -m tests.parity.document``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
ROWS: Final = Path(__file__).with_name("rows.yaml")
DOCUMENT: Final = ROOT / "docs" / "parity.md"

_HEADER: Final = """\
# Parity with bwmon

This page compares PlanetLab's bandwidth monitor (bwmon, with bwlimit under it) with slicebw, row by row. Where bwmon
had defects, slicebw does the right thing instead. Each row names the tests that show it. A test fails if a row names
none, or names one that does not exist. This file is generated from [rows.yaml](../tests/parity/rows.yaml).

| # | bwmon, bwlimit | slicebw | shown by |
|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing bwmon did, what slicebw does, and the ids of the tests that show it (``file::function``)."""

    number: int
    bwmon: str
    slicebw: str
    tests: tuple[str, ...]


def rows() -> list[Row]:
    """Read all rows, in the order of the file."""
    loaded = yaml.safe_load(ROWS.read_text())
    return [Row(one["row"], one["bwmon"], one["slicebw"], tuple(one["tests"])) for one in loaded]


def document() -> str:
    """Return the text of docs/parity.md."""
    return _HEADER + "".join(
        f"| {row.number} | {row.bwmon} | {row.slicebw} | {'<br>'.join(map(_link, row.tests))} |\n" for row in rows()
    )


def _link(test: str) -> str:
    path, _, function = test.partition("::")
    return f"[{function.removeprefix('test_').replace('_', ' ')}](../{path})"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
