"""slicebw's own processes, as tests run them: started, seen to be ready, ended, and their logs shown on failure."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.support.topology import wait_until

SLICEBW: Final = (sys.executable, "-m", "slicebw")
ROOT: Final = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def with_default_signals(command: Sequence[str]) -> list[str]:
    """The command line with which a command handles SIGINT and SIGQUIT by default, whatever its parent does.

    A non-interactive shell starts background processes with both ignored, children inherit that, and no shell script
    can undo it (POSIX, "Signals and Error Handling").
    """
    return ["env", "--default-signal=INT,QUIT", *command]


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a process to end, and make it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Slicebw:
    """One slicebw process with its log and its probes. Use as a context manager."""

    def __init__(self, log: Path, *arguments: str) -> None:
        """Prepare; nothing runs before :meth:`start`."""
        self.log = log
        self._port = free_port()
        self._command = [*SLICEBW, *arguments, "--liveness-port", str(self._port)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Slicebw":
        """Start it and wait until it is ready."""
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it; show its log if the test has failed."""
        self.stop()
        if error is not None:
            sys.stderr.write(f"--- {self.log.name} ---\n{self.log.read_text()[-6000:]}\n")

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; its log is continued."""
        environment = os.environ | {"PYTHONPATH": str(ROOT / "operator")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)

    def wait_ready(self, seconds: float = 30) -> None:
        """Wait until it says that it is ready."""
        wait_until(lambda: self.probe("/readyz") == 200 or self.exit_code() is not None, "slicebw is ready", seconds)
        assert self.exit_code() is None, self.log.read_text()[-3000:]

    def probe(self, path: str) -> int:
        """The status that a probe gets; 0 where nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def page(self, path: str) -> str:
        """What it serves there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as the kubelet does, and wait."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"slicebw did not end on {number.name}") from None


def agent(folder: Path, node: str, netns: str, *arguments: str) -> Slicebw:
    """An agent whose ledger and log are in ``folder``, and that reports every second."""
    state = ("--state-dir", str(folder / "state"), "--report-interval", "1s")
    return Slicebw(folder / "agent.log", "agent", "--node", node, "--netns", netns, *state, *arguments)
