"""The lock in the state folder. It lets only one process at a time change the node's kernel."""

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
    """Hold the state folder's lock. During a rolling update two agents of one node take turns by it.

    Waits until the lock is free or ``stop`` is set; in the second case it may not be held. Raises UsageError if the
    folder cannot be used.
    """
    descriptor = _open(state_dir)
    try:
        logged = False
        while not stop.is_set() and not _acquire(descriptor):
            if not logged:
                log.warning("another agent holds %s; waiting until it stops", state_dir / "lock")
            logged = True
            stop.wait(0.2)  # polled, because a blocking flock would not end when ``stop`` is set
        yield
    finally:
        os.close(descriptor)  # the file stays: another process may wait for the lock on it


def is_held(state_dir: Path) -> bool:
    """Tell whether a process holds the lock. Without a lock file none does."""
    try:
        descriptor = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _acquire(descriptor)
    finally:
        os.close(descriptor)  # releases the lock again


def _open(state_dir: Path) -> int:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        return os.open(state_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"--state-dir {state_dir}: cannot be used ({error.strerror}); name a writable folder that survives reboots"
        ) from error


def _acquire(descriptor: int) -> bool:
    """Take the lock if it is free. Returns whether this process holds it. The kernel frees it when a process dies."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
