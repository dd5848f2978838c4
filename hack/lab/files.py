"""The cache outside the tree, locks, and files that appear in one step."""

import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from hack.lab.console import LabError, log

ROOT: Final = Path(__file__).resolve().parents[2]
"""The repository."""
HACK: Final = ROOT / "hack"


def _cache() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.path.realpath(os.environ.get("SLICEBW_CACHE") or Path(caches, "slicebw")))


CACHE: Final = _cache()
"""Where downloads and builds are kept ($SLICEBW_CACHE). All of it can be made again."""

_MEGABYTE: Final = 1024 * 1024


class Lock:
    """An exclusive lock on a file, held within a ``with`` block.

    A child that is given ``descriptor`` (``pass_fds``) holds it too, until it ends or closes that.
    """

    def __init__(self, file: Path, what: str) -> None:
        """Open the file.

        Args:
            file: made if it is not there.
            what: what the lock is for, as a message names it.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        self._what = what
        self.descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> "Lock":
        """Wait for the lock, and say so every 15 s."""
        said = 0.0
        while not self._taken():
            if time.monotonic() - said > 15:
                log(f"{self._what} is in use by another process; {'still ' if said else ''}waiting for it to finish")
                said = time.monotonic()
            time.sleep(0.2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go."""
        os.close(self.descriptor)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def need_disk(folder: Path, megabytes: int, purpose: str) -> None:
    """Raise LabError where a folder's disk has less room than that."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free // _MEGABYTE
    if free < megabytes:
        raise LabError(
            f"{purpose} needs about {megabytes} MB in {folder}, where {free} MB are free;"
            " make room, or set SLICEBW_CACHE to a folder on a larger disk"
        )


def replace_link(target: Path, link: Path) -> None:
    """Point a link elsewhere in one step, so that nobody who uses it finds it missing."""
    if link.is_symlink() and link.readlink() == target:
        return
    new = link.with_name(f"{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def write(file: Path, text: str) -> None:
    """Write a file that appears whole."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


def remove(*paths: Path) -> None:
    """Remove files, links and trees, if they are there; of a tree nothing that is mounted in it."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", *map(str, paths)], check=True)


def empty_folder(path: Path) -> Path:
    """Make a folder anew."""
    remove(path)
    path.mkdir(parents=True)
    return path
