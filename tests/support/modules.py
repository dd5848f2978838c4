"""Runs a slicebw command in its own process and lists the modules that it had imported when it ended.

As a program (``-m tests.support.modules FILE ARGUMENT...``) it runs ``slicebw ARGUMENT...`` and writes the list to
FILE. ``kubernetes``, which only tests need, cannot be imported there, as in the image.
"""

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.processes import ROOT
from tests.support.topology import wait_until

Modules = frozenset[str]

AWAY: Final = """\
apiVersion: v1
kind: Config
current-context: away
contexts: [{name: away, context: {cluster: away, user: nobody}}]
clusters: [{name: away, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: nobody, user: {token: none}}]
"""
"""A kubeconfig of an API server that does not answer."""


def run(folder: Path, *arguments: str) -> tuple[Modules, str]:
    """Run a command that ends by itself. Returns its modules and its output."""
    process = _start(folder, arguments, [])
    process.wait(60)
    return _read(folder), _log(folder)


def run_until(running: str, folder: Path, *arguments: str, inside: Sequence[str] = ()) -> Modules:
    """Run a command until its log contains ``running``, and end it. ``inside`` is put before it (``nsenter ...``)."""
    process = _start(folder, arguments, inside)
    try:
        wait_until(lambda: running in _log(folder) or process.poll() is not None, running, 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, _log(folder)
        assert running in _log(folder), _log(folder)
    finally:
        process.kill()
        process.wait()
    return _read(folder)


def _start(folder: Path, arguments: Sequence[str], inside: Sequence[str]) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}", "COLUMNS": "200"}
    command = [*inside, sys.executable, "-m", "tests.support.modules", str(folder / "modules"), *arguments]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _log(folder: Path) -> str:
    return (folder / "log").read_text()


def _read(folder: Path) -> Modules:
    return frozenset((folder / "modules").read_text().split())


def imported(modules: Modules, *packages: str) -> list[str]:
    """Return the packages of which at least a part is among the modules."""
    return [one for one in packages if any(name == one or name.startswith(f"{one}.") for name in modules)]


def _main() -> None:
    written, *arguments = sys.argv[1:]
    sys.modules["kubernetes"] = None  # type: ignore[assignment]
    atexit.register(
        lambda: Path(written).write_text("\n".join(name for name, module in sys.modules.items() if module is not None))
    )
    sys.argv = ["slicebw", *arguments]
    from slicebw.cli import main  # noqa: PLC0415 - after `kubernetes` is hidden

    main()


if __name__ == "__main__":
    _main()
