"""Run benchmarks, print each row once it is known, and write all rows as JSON. ``hack/bench`` prepares the machine."""

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

_COLUMNS: Final = "{:<26} {:<60} {:>10} {:<11} {:>21}  {:<46} {:<10} {}"
_HEADINGS: Final = ("CASE", "WHAT", "MEDIAN", "", "LOW .. HIGH", "RATIO", "TARGET", "MET")
_MISSED: Final = 1
_WHOLE_FROM: Final = 1000


def discover() -> dict[str, ModuleType]:
    """Find every benchmark of this folder, by the name of its group."""
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
    """Return the first line of a benchmark's docstring."""
    return (bench.__doc__ or "").strip().splitlines()[0]


def number(value: float) -> str:
    """Format a figure for people: three significant digits, no powers of ten."""
    return f"{value:,.0f}" if abs(value) >= _WHOLE_FROM else f"{value:.3g}"


def line(row: Row) -> str:
    """Format one row of the table."""
    spread = "" if row.low == row.high else f"{number(row.low)} .. {number(row.high)}"
    ratio = f"{number(row.ratio)} {row.reference}" if row.ratio is not None else ""
    if row.reference_value is not None:
        ratio += f" ({number(row.reference_value)})"
    target = "" if row.target is None else str(row.target)
    met = {None: "", True: "yes", False: "NO"}[row.met]
    return _COLUMNS.format(row.case, row.what, number(row.value), row.unit, spread, ratio, target, met).rstrip()


def run(benches: dict[str, ModuleType], *, quick: bool) -> Iterator[tuple[str, Row]]:
    """Run benchmarks one after the other. Gives each row with its group, once it is printed."""
    for name, bench in benches.items():
        print(f"\n{name}: {title(bench)}\n{_COLUMNS.format(*_HEADINGS)}", flush=True)
        for row in bench.rows(quick):
            print(line(row), flush=True)
            yield name, row


def machine() -> dict[str, Any]:
    """Describe the machine that the figures were measured on."""
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()}


def parser(names: list[str]) -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="hack/bench",
        description="Measure slicebw and its references in turn. Compare figures of one run; between machines, compare "
        "ratios, not milliseconds. Exit code 1: a target was missed.",
    )
    made.add_argument("names", nargs="*", metavar="NAME", help=f"which benchmarks; default all: {', '.join(names)}")
    made.add_argument("--quick", action="store_true", help="only check that everything works: the figures mean nothing")
    made.add_argument(
        "--json", type=Path, default=Path("build/bench.json"), metavar="FILE", help="default: %(default)s"
    )
    return made


def main(arguments: list[str]) -> int:
    """Run the program. Returns its exit code."""
    benches = discover()
    options = parser(list(benches))
    chosen = options.parse_args(arguments)
    for name in chosen.names:
        if name not in benches:
            options.error(f"NAME: there is no benchmark {name!r}; there are {', '.join(benches)}")
    # As an exception, so that a benchmark that is ended also ends its processes and namespaces, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # The agent's logging is part of the cost of a pass: format its lines as usual, and drop them.
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
