"""Writes requirements-runtime.lock and requirements-build.lock from requirements.lock; hack/lock runs it.

Both name wheels for Debian 12's Python on every architecture that the image is built for, with their hashes, so that
whatever index the wheels come from, they are these.
"""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
ARCHITECTURES: Final = ("x86_64", "aarch64")
PIP: Final = [str(ROOT / ".venv" / "bin" / "pip"), "--disable-pip-version-check", "--quiet"]

Pins = dict[str, str]


def report(command: list[str]) -> list[dict[str, Any]]:
    """What a pip command would install."""
    done = subprocess.run(
        [*command, "--quiet", "--dry-run", "--ignore-installed", "--report", "-"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return found


def pins(*arguments: str) -> Pins:
    """Names and versions of what a request comes to, but slicebw itself."""
    found = report([*PIP, "install", "--constraint", "requirements.lock", *arguments])
    metadata = [one["metadata"] for one in found]
    return {one["name"].lower(): one["version"] for one in metadata if one["name"] != "slicebw"}


def hashes(wanted: Pins) -> dict[str, set[str]]:
    """The SHA-256 sums of the wheels, by name."""
    sums: dict[str, set[str]] = defaultdict(set)
    requirements = [f"{name}=={version}" for name, version in wanted.items()]
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as nowhere:
            pip = [str(ROOT / "hack" / "image-pip"), architecture, "install", "--target", nowhere, "--no-deps"]
            for one in report([*pip, *requirements]):
                sums[one["metadata"]["name"].lower()].add(one["download_info"]["archive_info"]["hashes"]["sha256"])
    return sums


def write(file: str, what: str, wanted: Pins) -> None:
    """Write one lock file."""
    sums = hashes(wanted)
    lines = [
        f"# Written by hack/lock (make lock). {what}, as wheels for CPython 3.11 on {' and '.join(ARCHITECTURES)}."
    ]
    for name, version in sorted(wanted.items()):
        lines.append(" \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{one}" for one in sorted(sums[name]))]))
    (ROOT / file).write_text("\n".join(lines) + "\n")
    print(f"{file} has {len(wanted)} packages", file=sys.stderr)


def main() -> None:
    """Write both."""
    write("requirements-runtime.lock", "What slicebw imports", pins("--no-build-isolation", "."))
    write("requirements-build.lock", "What builds slicebw for the image", pins("--no-deps", "pip", "setuptools"))


if __name__ == "__main__":
    main()
