"""Runs benchmarks, shows their rows as they come, writes them as JSON. ``hack/bench`` prepares the machine for it."""

import argparse
import importlib
import json
import logging
import os
import pkgutil
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from slicebw import __version__
from slicebw.cli.options import LOG_FORMAT
from tests.bench.frame import Row

_COLUMNS: Final = "{:<26} {:<40} {:>12} {:<9} {:>21}  {:<46} {:<10} {}"
_HEADINGS: Final = ("CASE", "WHAT", "MEDIAN", "", "LOW .. HIGH", "RATIO", "TARGET", "MET")
_MISSED: Final = 1
_WHOLE_FROM: Final = 1000


def discover() -> dict[str, ModuleType]:
    """Every benchmark of this folder by the name of its group."""
    folder = Path(__file__).parent
    found = {}
    for module in pkgutil.iter_modules([str(folder)]):
        if module.name.startswith(("_", "test_", "conftest")):
            continue
        loaded = importlib.import_module(f"tests.bench.{module.name}")
        if callable(getattr(loaded, "rows", None)):
            found[module.name.rstrip("_")] = loaded
    return dict(sorted(found.items()))


def title(bench: ModuleType) -> str:
    """The first line of a benchmark's docstring."""
    return (bench.__doc__ or "").strip().splitlines()[0]


def number(value: float) -> str:
    """A figure as people read it: three significant digits, no powers of ten."""
    return f"{value:,.0f}" if abs(value) >= _WHOLE_FROM else f"{value:.3g}"


def line(row: Row) -> str:
    """One row of the table."""
    spread = "" if row.low == row.high else f"{number(row.low)} .. {number(row.high)}"
    ratio = f"{number(row.ratio)} {row.reference}" if row.ratio is not None else ""
    if row.reference_value is not None:
        ratio += f" ({number(row.reference_value)})"
    target = "" if row.target is None else str(row.target)
    met = {None: "", True: "yes", False: "NO"}[row.met]
    return _COLUMNS.format(row.case, row.what, number(row.value), row.unit, spread, ratio, target, met).rstrip()


def run(benches: dict[str, ModuleType], *, quick: bool) -> Iterator[tuple[str, Row]]:
    """Run benchmarks one after the other; each row with its group, once it is printed."""
    for name, bench in benches.items():
        print(f"\n{name}: {title(bench)}\n{_COLUMNS.format(*_HEADINGS)}", flush=True)
        for row in bench.rows(quick):
            print(line(row), flush=True)
            yield name, row


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()}


def parser(names: list[str]) -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="hack/bench",
        description="Measure slicebw beside what it is compared with. Figures of one run belong together; compare "
        "ratios between machines, not milliseconds. Exit code 1: a target was missed.",
    )
    made.add_argument("names", nargs="*", metavar="NAME", help=f"which benchmarks; default all: {', '.join(names)}")
    made.add_argument("--quick", action="store_true", help="only see that everything works: the figures mean nothing")
    made.add_argument(
        "--json", type=Path, default=Path("build/bench.json"), metavar="FILE", help="default: %(default)s"
    )
    return made


def main(arguments: list[str]) -> int:
    """The program; its exit code."""
    benches = discover()
    options = parser(list(benches))
    chosen = options.parse_args(arguments)
    for name in chosen.names:
        if name not in benches:
            options.error(f"NAME: there is no benchmark {name!r}; there are {', '.join(benches)}")
    # What a benchmark has begun it also ends: an exception takes down what Ctrl-C would.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # As the agent does, only that nobody reads it: its log is part of what a pass costs.
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, filename=os.devnull)
    start = time.monotonic()
    rows = list(run({name: benches[name] for name in chosen.names or benches}, quick=chosen.quick))
    document = {
        "slicebw": __version__,
        "quick": chosen.quick,
        "machine": machine(),
        "rows": [row.as_json(group) for group, row in rows],
    }
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(document, indent=1) + "\n")
    missed = [f"{group}: {row.case}: {row.what}" for group, row in rows if row.met is False]
    print(f"\n{len(rows)} figures in {time.monotonic() - start:.0f} s, in {chosen.json}")
    if chosen.quick:
        return 0
    for one in missed:
        print(f"target missed: {one}")
    return _MISSED if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
