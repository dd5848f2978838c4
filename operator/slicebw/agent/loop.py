"""Runs the reconciler in a thread of its own: a pass when one is due, or when somebody wakes it."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from slicebw.agent.reconciler import Reconciler
from slicebw.core.clock import NS
from slicebw.core.errors import KernelError

log = logging.getLogger(__name__)

LONGEST_RETRY_S: Final = 10

STUCK_S: Final = 60
"""Passes are due at least every 10 s; a minute without one is not normal."""


class Loop(threading.Thread):
    """The reconciler's thread.

    Args:
        build: makes the reconciler, called in the new thread after ``enter``, so that its sockets are made there.
        enter: moves the calling thread to the node's network namespace, or does nothing.
    """

    def __init__(self, build: Callable[[], Reconciler], enter: Callable[[], None]) -> None:
        super().__init__(name="reconciler")
        self._build = build
        self._enter = enter
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._said: str | None = None
        self.reconciler: Reconciler | None = None
        self.failure: BaseException | None = None
        self._tried_at = time.monotonic()
        self._worked_at: float | None = None

    def wake(self) -> None:
        """Ask for a pass now. Callable from any thread; many calls before the pass make one pass."""
        self._wake.set()

    def stop(self) -> None:
        """End after the pass that runs. The kernel stays as it is."""
        self._stopping.set()
        self._wake.set()

    def liveness(self) -> str | None:
        """What a restart could mend, or None: the thread died, or hangs in a pass."""
        if not self.is_alive():
            return "the reconciler has ended"
        silence_s = time.monotonic() - self._tried_at
        return f"no pass was begun for {silence_s:.0f} s" if silence_s > STUCK_S else None

    def readiness(self) -> str | None:
        """Why limits are not known to be in force, or None."""
        if self.reconciler is None or self._worked_at is None:
            return "no pass has succeeded yet"
        if time.monotonic() - self._worked_at > STUCK_S:
            return f"no pass has succeeded lately: {self._said or 'see the log'}"
        return (
            None if self.reconciler.synced else "not all SliceBandwidths, NodeBandwidths and pods have been listed yet"
        )

    def run(self) -> None:
        """The thread's body: enter the namespace, build the reconciler, then pass after pass."""
        try:
            self._enter()
            self.reconciler = self._build()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which reports it
            self.failure = error
            return
        self.reconciler.start()
        failures = 0
        while not self._stopping.is_set():
            self._wake.clear()
            pause_s = self._pass(self.reconciler)
            failures = 0 if pause_s is not None else failures + 1
            if pause_s is None:
                pause_s = min(LONGEST_RETRY_S, 2 ** min(failures - 1, 4))
            self._wake.wait(pause_s)
        self.reconciler.close()

    def _pass(self, reconciler: Reconciler) -> float | None:
        """One pass; the pause after it in seconds, or None where it failed."""
        self._tried_at = time.monotonic()
        try:
            pause_ns = reconciler.run_once()
        except KernelError as error:
            reconciler.stats.failed_passes += 1
            if str(error) != self._said:
                log.error("%s; trying again until it works", error)
            self._said = str(error)
            return None
        except Exception:
            reconciler.stats.failed_passes += 1
            log.exception("a pass failed; trying again")
            return None
        if self._said is not None:
            log.info("passes work again")
            self._said = None
        self._worked_at = time.monotonic()
        return pause_ns / NS
