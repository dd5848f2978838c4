"""The state of the API server as all connections of the process see it. Logs each problem once, not per attempt."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

REMIND_AFTER_S: Final = 600.0
"""A warning is repeated after this time if its problem persists."""

_UNREACHABLE: Final = "unreachable: "


class ApiHealth:
    """Current problems with the API server, and counts of failures. Callable from any thread."""

    def __init__(self) -> None:
        """Assume a working API server."""
        self._lock = threading.Lock()
        self._unreachable_since: float | None = None
        self._warned_at: dict[str, float] = {}
        self._failures: Counter[str] = Counter()

    @property
    def unreachable_s(self) -> float:
        """Seconds since the API server stopped answering; 0.0 while it answers."""
        since = self._unreachable_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def failures(self) -> Mapping[str, int]:
        """Number of failures by kind since the start (``unreachable``, ``refused``, ``watch``, ...), for metrics."""
        with self._lock:
            return dict(self._failures)

    def unreachable(self, message: str) -> None:
        """Note that a request got no usable answer. ``message`` is one line that says why and what to do."""
        with self._lock:
            self._failures["unreachable"] += 1
            if self._unreachable_since is None:
                self._unreachable_since = time.monotonic()
        self.warn_once(f"{_UNREACHABLE}{message}", f"{message} Trying again until it works.", count=False)

    def reachable(self) -> None:
        """Note that a request was answered; a refusal counts as an answer."""
        if self._unreachable_since is None:
            return
        with self._lock:
            since, self._unreachable_since = self._unreachable_since, None
            # The next outage is a new problem: it is logged at once, even within REMIND_AFTER_S.
            self._warned_at = {key: at for key, at in self._warned_at.items() if not key.startswith(_UNREACHABLE)}
        if since is not None:
            log.info("the API server is back after %.0f s", time.monotonic() - since)

    def warn_once(self, key: str, message: str, kind: str = "refused", *, count: bool = True) -> None:
        """Log a warning unless one with the same key was logged in the last REMIND_AFTER_S seconds.

        Args:
            key: identifies the problem until :meth:`resolve`.
            message: one line.
            kind: the failure's kind in :attr:`failures`.
            count: whether to count it there.
        """
        now = time.monotonic()
        with self._lock:
            if count:
                self._failures[kind] += 1
            last = self._warned_at.get(key)
            if last is not None and now - last < REMIND_AFTER_S:
                return
            self._warned_at[key] = now
        log.warning("%s", message)

    def resolve(self, key: str, message: str) -> None:
        """Log that a problem is over, if a warning was logged about it."""
        with self._lock:
            warned_at = self._warned_at.pop(key, None)
        if warned_at is not None:
            log.info("%s", message)

    def failed(self, kind: str, message: str, error: Exception) -> None:
        """Count an unexpected error, and log it with its traceback."""
        with self._lock:
            self._failures[kind] += 1
        log.error("%s", message, exc_info=error)
