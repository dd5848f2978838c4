"""Runs the reconciler in a thread of its own: a pass whenever one is due, or at once after :meth:`Loop.wake`."""

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
"""The longest pause after a failed pass. The first one is 1 s, and each further one twice as long."""

STUCK_S: Final = 60
"""Without a pass for this long the agent counts as stuck. Usually one starts at least every 10 s, also after errors."""


class Loop(threading.Thread):
    """The reconciler's thread.

    Args:
        build: makes the reconciler. Called in the new thread after ``enter``, so that it opens its sockets there.
        enter: moves the calling thread into the node's network namespace, or does nothing.
    """

    def __init__(self, build: Callable[[], Reconciler], enter: Callable[[], None]) -> None:
        super().__init__(name="reconciler")
        self._build = build
        self._enter = enter
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._logged_error: str | None = None
        """The kernel error that was logged last, so that it is logged once; None after a successful pass."""
        self.reconciler: Reconciler | None = None
        """None until the thread has built it."""
        self.failure: BaseException | None = None
        """Why the thread could not start; None if it could."""
        self._started_s = time.monotonic()
        """When the last pass was started, on the monotonic clock."""
        self._succeeded_s: float | None = None
        """When a pass succeeded last; None before the first one."""

    def wake(self) -> None:
        """Ask for a pass now. Callable from any thread. Calls until the pass starts are answered by that one pass."""
        self._wake.set()

    def stop(self) -> None:
        """End after the running pass. Changes nothing in the kernel."""
        self._stopping.set()
        self._wake.set()

    def liveness(self) -> str | None:
        """Return why a restart may help (the thread has ended, or hangs in a pass); None if all is well."""
        if not self.is_alive():
            return "the reconciler has ended"
        silence_s = time.monotonic() - self._started_s
        return f"no pass was started for {silence_s:.0f} s" if silence_s > STUCK_S else None

    def readiness(self) -> str | None:
        """Return why limits may not be in force; None if they are."""
        if self.reconciler is None or self._succeeded_s is None:
            return "no pass has succeeded yet"
        silence_s = time.monotonic() - self._succeeded_s
        if silence_s > STUCK_S:
            return f"no pass has succeeded for {silence_s:.0f} s: {self._logged_error or 'see the log'}"
        return (
            None if self.reconciler.synced else "not all SliceBandwidths, NodeBandwidths and pods have been listed yet"
        )

    def run(self) -> None:
        """Enter the namespace, build the reconciler, and run passes until :meth:`stop`. The thread's body."""
        try:
            self._enter()
            self.reconciler = self._build()
        except Exception as error:  # noqa: BLE001 - the main thread raises it again
            self.failure = error
            return
        self.reconciler.start()
        failures = 0
        while not self._stopping.is_set():
            self._wake.clear()  # before the pass: what causes a wake-up during it may be newer than what it has read
            pause_s = self._pass(self.reconciler)
            failures = 0 if pause_s is not None else failures + 1
            if pause_s is None:
                pause_s = min(LONGEST_RETRY_S, 2 ** min(failures - 1, 4))  # the inner min keeps the power small
            self._wake.wait(pause_s)
        self.reconciler.close()

    def _pass(self, reconciler: Reconciler) -> float | None:
        """Run one pass. Returns the pause after it in seconds; None if it failed."""
        self._started_s = time.monotonic()
        try:
            pause_ns = reconciler.run_once()
        except KernelError as error:
            reconciler.stats.failed_passes += 1
            if str(error) != self._logged_error:
                log.error("pass failed, retrying until it succeeds: %s", error)
            self._logged_error = str(error)
            return None
        except Exception:  # a bug must not end the agent: limits stay in force, and a later pass may get past it
            reconciler.stats.failed_passes += 1
            log.exception("pass failed, retrying")
            return None
        if self._logged_error is not None:
            log.info("passes succeed again")
            self._logged_error = None
        self._succeeded_s = time.monotonic()
        return pause_ns / NS
