"""Processes that outlive the command that starts them: started, found again, and ended."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from hack.lab.console import LabError, log, show_tail, wait_until
from hack.lab.files import Lock

# The process writes its pid before it becomes what it is to be: whenever the starting program dies, no process is
# without a pid file. It lets go of that program's lock after that: whoever gets the lock then finds either the pid
# file or no process.
_LAUNCH: Final = 'echo "$$" >"$1"; lock=$2; exec {lock}>&-; shift 2; exec "$@"'

_DETACHED: Final = ("setsid", "--fork", "bash", "-c", _LAUNCH, "launch")
_EXEC_LOOKS: Final = 50


@dataclass(frozen=True, slots=True)
class Service:
    """A long-lived process of ours.

    Args:
        name: what messages call it.
        folder: where NAME.pid and NAME.log are.
        mark: an argument of its command line by which it is told from any process that has its pid by now.
    """

    name: str
    folder: Path
    mark: str

    @property
    def log_file(self) -> Path:
        """What it writes to stdout and stderr; the log of the run before is beside it as NAME.log.1."""
        return self.folder / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def pid(self) -> int | None:
        """Its process id, None where it does not run."""
        try:
            text = self._pid_file.read_text().strip()
        except FileNotFoundError:
            return None
        if not re.fullmatch(r"[1-9][0-9]*", text):
            return None
        return int(text) if os.fsencode(self.mark) in _arguments(int(text)) else None

    def runs(self) -> bool:
        """Whether it runs."""
        return self.pid() is not None

    def launch(self, command: Sequence[str], lock: Lock) -> None:
        """Start it in a session of its own, so that it outlives this program and its terminal.

        It keeps neither the caller's environment, in which a variable of the user's could configure etcd, nor the
        caller's folder and open files.
        """
        self._pid_file.unlink(missing_ok=True)
        # The log of an earlier run must not be read for the reason of a failure now.
        if self.log_file.exists() and self.log_file.stat().st_size:
            self.log_file.replace(self.folder / f"{self.name}.log.1")
        with self.log_file.open("ab") as output:
            subprocess.run(
                [*_DETACHED, str(self._pid_file), str(lock.descriptor), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": os.environ["PATH"]},
                pass_fds=(lock.descriptor,),
                check=True,
            )
        if not wait_until(lambda: self._pid_file.exists() and self._pid_file.read_text(), f"{self.name} to start", 10):
            raise LabError(f"could not start {self.name}; see {self.log_file}")

    def give_up(self, why: str) -> NoReturn:
        """Show the end of its log, and raise."""
        show_tail(self.log_file)
        raise LabError(f"{self.name} {why}; these were the last lines of {self.log_file}")

    def stop(self, grace_s: float = 10) -> None:
        """Ask it to end, and kill it where it has not done so after some seconds; at once with 0."""
        pid = self.pid()
        if pid is None:
            log(f"{self.name} is not running")
        else:
            log(f"stopping {self.name} (pid {pid})")
            self._end(pid, grace_s)
        self._pid_file.unlink(missing_ok=True)

    def _end(self, pid: int, grace_s: float) -> None:
        if grace_s:
            _kill(pid, signal.SIGTERM)
            if wait_until(lambda: not self.runs(), f"{self.name} to end", grace_s):
                return
            log(f"{self.name} does not end; killing it")
        _kill(pid, signal.SIGKILL)
        if not wait_until(lambda: not self.runs(), f"{self.name} to be gone", 10):
            raise LabError(f"could not kill {self.name} (pid {pid}); see ps -fp {pid}")


def _arguments(pid: int) -> list[bytes]:
    """A process's command line; empty where it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for _ in range(_EXEC_LOOKS):
            shown = Path(f"/proc/{pid}/cmdline").read_bytes()
            # So it is for an instant while a process becomes another program, too.
            if shown or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return shown.split(b"\0")
            time.sleep(0.01)
    return []


def _kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
