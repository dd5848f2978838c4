"""How the programs talk: progress on stderr, the answer alone on stdout, and errors that say the next step."""

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from tests.support.topology import wait_until as poll_until

_STARTED_S: Final = time.monotonic()
_SIGNALS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_PROGRESS_S: Final = 10.0


class LabError(Exception):
    """Why a program cannot go on, and what to do about it; shown as one line without a traceback."""


class UsageError(LabError):
    """The command line cannot be understood."""


class Interrupted(BaseException):
    """SIGHUP, SIGINT or SIGTERM. Not an Exception, so that no handler of errors takes it for one."""


def _write(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED_S:.0f}s] {text}", file=sys.stderr, flush=True)


def log(text: str) -> None:
    """Say something on stderr, with the seconds since the program started."""
    _write(text)


def step(text: str) -> None:
    """Say on stderr what begins now."""
    _write(f"==> {text}")


def show_tail(file: Path, lines: int = 20) -> None:
    """Show the end of a log on stderr, if there is one."""
    if file.exists():
        print("\n".join(file.read_text(errors="replace").splitlines()[-lines:]), file=sys.stderr, flush=True)


def wait_until(condition: Callable[[], object], what: str, seconds: float) -> bool:
    """Poll until a condition holds, and say every ten seconds that it is still awaited. False when the time is up."""
    started = reported = time.monotonic()

    def look() -> object:
        nonlocal reported
        met = condition()
        now = time.monotonic()
        if not met and now - reported >= _PROGRESS_S:
            reported = now
            log(f"waiting for {what} ({now - started:.0f}s of at most {seconds:.0f}s)")
        return met

    try:
        poll_until(look, what, seconds, every_s=0.1)
    except TimeoutError:
        return False
    return True


def run_logged(
    command: Sequence[str],
    file: Path,
    failure: str,
    *,
    lines: int = 20,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a command with its output appended to a log.

    Args:
        command: the command line.
        file: the log.
        failure: what to raise, as LabError, where the command fails; the end of the log is shown before.
        lines: how many lines of the log.
        cwd: in which folder it runs; None: in this one.
        env: its whole environment; None: this one.
    """
    with file.open("ab") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=cwd, env=env, check=False
        )
    if done.returncode:
        show_tail(file, lines)
        raise LabError(failure)


class Parser(argparse.ArgumentParser):
    """A parser whose help is the text it is given as description: a module's docstring."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def add_commands(self, *names: str) -> dict[str, "Parser"]:
        """Parsers of a program's commands, one of which has to be given; ``command`` says which it was."""
        commands = self.add_subparsers(dest="command", required=True, metavar=f"one of {', '.join(names)}")
        return {name: commands.add_parser(name, description=self.description) for name in names}

    def format_help(self) -> str:
        """The description, the same for every command of a program."""
        return f"{(self.description or '').strip()}\n"

    def error(self, message: str) -> NoReturn:
        """Exit code 2, as everywhere."""
        unknown = re.fullmatch(r"argument .*: invalid choice: '(.*)' \(choose from .*\)", message)
        raise UsageError(f"unknown command: {unknown[1]}" if unknown else message)


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a program with the command line's arguments, and exit with its code. Errors are one line, interrupts 130."""
    for number in _SIGNALS:
        # A signal that the caller ignores stays ignored, as nohup wants it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    name = Path(sys.argv[0]).name
    arguments = ["--help" if one == "help" and not index else one for index, one in enumerate(sys.argv[1:])]
    try:
        sys.exit(main(arguments))
    except UsageError as error:
        print(f"{name}: {error}\nTry: {sys.argv[0]} --help", file=sys.stderr)
        sys.exit(2)
    except LabError as error:
        _write(f"{name}: {error}")
        sys.exit(1)
    except Interrupted:
        sys.exit(130)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted
