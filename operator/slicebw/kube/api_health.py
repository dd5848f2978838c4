"""One memory of how the API server is doing, for every connection of the process: says each thing once, not per try."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

REMIND_AFTER_S: Final = 600.0
"""A complaint that still holds is repeated this often."""

_UNREACHABLE: Final = "unreachable: "


class ApiHealth:
    """What is wrong with the API server at the moment, and how much went wrong so far. Safe from any thread."""

    def __init__(self) -> None:
        """Start out well."""
        self._lock = threading.Lock()
        self._unreachable_since: float | None = None
        self._complaints: dict[str, float] = {}
        self._failures: Counter[str] = Counter()

    @property
    def unreachable_s(self) -> float:
        """For how long the API server has not answered; 0.0 while it does."""
        since = self._unreachable_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def failures(self) -> Mapping[str, int]:
        """Failures by kind since the start (``unreachable``, ``refused``, ``watch``, ...), for metrics."""
        with self._lock:
            return dict(self._failures)

    def unreachable(self, message: str) -> None:
        """A request found no API server, or not one that works: ``message`` is one line that says what to do."""
        with self._lock:
            self._failures["unreachable"] += 1
            if self._unreachable_since is None:
                self._unreachable_since = time.monotonic()
        self.warn_once(f"{_UNREACHABLE}{message}", f"{message} Trying again until it works.", count=False)

    def reachable(self) -> None:
        """A request was answered, be it with a refusal."""
        if self._unreachable_since is None:
            return
        with self._lock:
            since, self._unreachable_since = self._unreachable_since, None
            self._complaints = {
                about: at for about, at in self._complaints.items() if not about.startswith(_UNREACHABLE)
            }
        if since is not None:
            log.info("the API server is back after %.0f s", time.monotonic() - since)

    def warn_once(self, about: str, message: str, kind: str = "refused", *, count: bool = True) -> None:
        """Log a warning, unless it is known: ``about`` identifies the trouble until :meth:`resolve`."""
        now = time.monotonic()
        with self._lock:
            if count:
                self._failures[kind] += 1
            said = self._complaints.get(about)
            if said is not None and now - said < REMIND_AFTER_S:
                return
            self._complaints[about] = now
        log.warning("%s", message)

    def resolve(self, about: str, message: str) -> None:
        """Log that a trouble is over, if it was complained about."""
        with self._lock:
            known = self._complaints.pop(about, None)
        if known is not None:
            log.info("%s", message)

    def failed(self, kind: str, message: str, error: Exception) -> None:
        """Count and log, with its traceback, an error nobody expected."""
        with self._lock:
            self._failures[kind] += 1
        log.error("%s", message, exc_info=error)
