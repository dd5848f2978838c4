"""The lock in the state folder: of the processes that change a node's kernel, one does at a time."""

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slicebw.core.errors import UsageError

log = logging.getLogger(__name__)


@contextmanager
def node_lock(state_dir: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the state folder's lock; two agents of one node (a rolling update) take turns.

    Waits until it is to be had, or until ``stop`` is set: then it may not be held. Raises UsageError: the folder cannot
    be used.
    """
    descriptor = _open(state_dir)
    try:
        told = False
        while not stop.is_set() and not _taken(descriptor):
            if not told:
                log.warning("another agent holds %s; waiting until it has stopped", state_dir / "lock")
            told = True
            stop.wait(0.2)
        yield
    finally:
        os.close(descriptor)


def is_held(state_dir: Path) -> bool:
    """Whether somebody holds the lock; where there is no lock nobody does."""
    try:
        descriptor = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _taken(descriptor)
    finally:
        os.close(descriptor)


def _open(state_dir: Path) -> int:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        return os.open(state_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"--state-dir {state_dir}: cannot be used ({error.strerror}); name a writable folder that is kept"
        ) from error


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
