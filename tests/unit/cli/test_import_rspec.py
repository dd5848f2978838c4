"""``slicebw import-rspec`` as a process: what it prints, where, and how it ends."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from slicebw.api import slice_bandwidth
from tests.support.processes import ROOT, SLICEBW


def run(*arguments: str, text: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run the command with something on its standard input."""
    command = [*SLICEBW, "import-rspec", *arguments]
    environment = {"PYTHONPATH": str(ROOT / "operator"), "LANG": "C.UTF-8"}
    return subprocess.run(command, input=text, capture_output=True, check=False, timeout=30, env=environment)


def record(**slices: dict[str, object]) -> dict[str, Any]:
    """A GetSlivers record."""
    slivers = [
        {"name": name, "attributes": [{"tagname": key, "value": value} for key, value in attributes.items()]}
        for name, attributes in slices.items()
    ]
    return {"timestamp": 1, "slivers": slivers}


GOOD = record(princeton_codeen={"net_max_rate": "10000"}, ple_1e5={}, pl_yes={"net_share": "2"})


@pytest.mark.parametrize("form", ["json", "json with tabs", "yaml"])
@pytest.mark.parametrize("source", ["file", "-", "nothing"])
def test_it_reads_json_and_yaml_from_a_file_or_standard_input_and_prints_manifests(
    tmp_path: Path, form: str, source: str
) -> None:
    text = yaml.safe_dump(GOOD) if form == "yaml" else json.dumps(GOOD, indent="\t" if "tabs" in form else None)
    (tmp_path / "record").write_text(text)
    arguments = {"file": [str(tmp_path / "record")], "-": ["-"], "nothing": []}[source]
    done = run(*arguments, text=b"" if source == "file" else text.encode())
    assert (done.returncode, done.stderr) == (0, b"")
    objects = list(yaml.safe_load_all(done.stdout))
    assert [(one["metadata"]["namespace"], one["metadata"]["name"], one["spec"]) for one in objects] == [
        ("princeton-codeen", "codeen", {"standard": {"maxRate": "10M"}}),
        ("ple-1e5", "1e5", {}),
        ("pl-yes", "yes", {"share": 2}),
    ]
    assert all(not slice_bandwidth.parse(one).errors for one in objects)


def test_what_another_yaml_reader_could_take_for_a_number_is_quoted() -> None:
    printed = run(text=json.dumps(GOOD).encode()).stdout.decode()
    assert 'name: "1e5"' in printed
    assert 'name: "yes"' in printed or "name: 'yes'" in printed
    assert "maxRate: 10M\n" in printed


def test_the_good_slices_are_printed_and_the_bad_ones_named_and_the_exit_code_is_1() -> None:
    both = record(a_good={"net_share": "2"}, a_bad={"net_share": "many"})
    done = run("--period", "12h", text=json.dumps(both).encode())
    assert done.returncode == 1
    (obj,) = yaml.safe_load_all(done.stdout)
    assert obj["spec"] == {"period": "12h", "share": 2}
    assert done.stderr.decode() == (
        'slicebw: slice a_bad: net_share: "many" is not a whole number of shares: use 1 to 1000\n'
    )


def test_a_note_is_no_failure() -> None:
    done = run(text=json.dumps(record(pl_default={"net_max_rate": -1})).encode())
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"slicebw: slice pl_default: net_max_rate: -1 on the default slice")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "standard input: slivers: nothing has no list of slivers"),
        (
            b"\x80\x04\x95\x10",
            "standard input: is not text: write the record as JSON or YAML (a pickle cannot be read)",
        ),
        (b"(dp0\nS'slivers'\n", "has no list of slivers"),
        (b"slivers:\n- name: [", "standard input:2: is neither JSON nor YAML: "),
        (b"[" * 100_000, "is neither JSON nor YAML"),
        (b'{"slivers": 5}', "slivers: an object has no list of slivers"),
    ],
)
def test_what_is_no_record_is_one_line(text: bytes, says: str) -> None:
    done = run(text=text)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("slicebw: ")
    assert says in line


def test_a_file_that_is_not_there_and_a_period_that_cannot_be_are_one_line_each(tmp_path: Path) -> None:
    missing = run(str(tmp_path / "none"))
    assert missing.stderr.decode() == (
        f"slicebw: {tmp_path / 'none'}: cannot be read (No such file or directory); "
        "name a file, or - for standard input\n"
    )
    period = run("--period", "9000h")
    assert period.stderr == b"slicebw: --period 9000h: out of range: use 1s to 8784h\n"
    assert (missing.returncode, period.returncode) == (1, 1)
