"""Check that every benchmark runs and that its rows are complete and plausible. Speed is not checked here."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.__main__ import discover
from tests.bench.frame import Samples, at_least_times, at_most, less, single, times

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", discover())
def test_a_benchmark_finds_rows_that_are_complete(name: str, tmp_path: Path) -> None:
    results = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tests.bench", name, "--quick", "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    document = json.loads(results.read_text())
    assert document["quick"] is True
    assert document["rows"]
    seen = set()
    for row in document["rows"]:
        assert row["group"] == name
        assert row["case"]
        assert row["what"]
        assert row["unit"]
        assert math.isfinite(row["value"]), row
        assert 0 <= row["low"] <= row["value"] <= row["high"], row
        assert (row["ratio"] is None) == (row["reference"] is None) == (row["referenceValue"] is None), row
        if row["ratio"] is not None:
            assert math.isfinite(row["ratio"]), row
            assert row["ratio"] >= 0, row
            assert row["referenceValue"] > 0, row
        assert (row["target"] is None) == (row["met"] is None)
        identity = (row["case"], row["what"], row["reference"])
        assert identity not in seen, f"{identity} is there twice"
        seen.add(identity)
        assert row["case"] in done.stdout


def test_a_ratio_is_that_of_rounds_and_not_of_medians() -> None:
    """A round in which the machine was slow for both counts like any other."""
    mine, its = Samples((2.0, 20.0, 2.0)), Samples((1.0, 10.0, 1.0))
    assert times("case", "mine", mine, "ms", ("its", its)).ratio == pytest.approx(2)
    assert less("case", "its", its, "ms", ("mine", mine)).ratio == pytest.approx(2)


def test_a_target_can_be_missed() -> None:
    mine, its = Samples((2.0, 2.0)), Samples((5.0, 5.0))
    assert less("case", "mine", mine, "ms", ("its", its), at_least_times(2.5)).met is True
    assert less("case", "mine", mine, "ms", ("its", its), at_least_times(2.6)).met is False
    assert single("case", "mine", 3.0, "ms", at_most(3)).met is True
    assert single("case", "mine", 3.1, "ms", at_most(3)).met is False
    assert single("case", "mine", 3.1, "ms").met is None


def test_what_is_no_benchmark_is_refused_by_name() -> None:
    command = [sys.executable, "-m", "tests.bench", "reed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "no benchmark 'reed'; there are " in done.stderr
