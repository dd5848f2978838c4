"""Runs the cycle in a thread of its own: a pass when one is due, or when somebody wakes it."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from slicebw.agent.cycle import Cycle
from slicebw.agent.gate import NS
from slicebw.core.errors import KernelError

log = logging.getLogger(__name__)

LONGEST_RETRY_S: Final = 10


class Loop(threading.Thread):
    """The cycle's thread.

    Args:
        build: makes the cycle, called in the new thread after ``enter``, so that its sockets are made there.
        enter: moves the calling thread to the node's network namespace, or does nothing.
    """

    def __init__(self, build: Callable[[], Cycle], enter: Callable[[], None]) -> None:
        super().__init__(name="cycle")
        self._build = build
        self._enter = enter
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._said: str | None = None
        self.cycle: Cycle | None = None
        self.finished_passes = 0
        self.last_pass_ns = 0
        self.failure: BaseException | None = None

    def wake(self) -> None:
        """Ask for a pass now. Callable from any thread; many calls before the pass make one pass."""
        self._wake.set()

    def stop(self) -> None:
        """End after the pass that runs. The kernel stays as it is."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """The thread's body: enter the namespace, build the cycle, then pass after pass."""
        try:
            self._enter()
            self.cycle = self._build()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which reports it
            self.failure = error
            return
        self.cycle.start()
        failures = 0
        while not self._stopping.is_set():
            self._wake.clear()
            pause_s = self._pass(self.cycle)
            failures = 0 if pause_s is not None else failures + 1
            if pause_s is None:
                pause_s = min(LONGEST_RETRY_S, 2 ** min(failures - 1, 4))
            self._wake.wait(pause_s)

    def _pass(self, cycle: Cycle) -> float | None:
        """One pass; the pause after it in seconds, or None where it failed."""
        try:
            pause_ns = cycle.run_once()
        except KernelError as error:
            cycle.counts.failed_passes += 1
            if str(error) != self._said:
                log.error("%s; trying again until it works", error)
            self._said = str(error)
            return None
        except Exception:
            cycle.counts.failed_passes += 1
            log.exception("a pass failed; trying again")
            return None
        if self._said is not None:
            log.info("passes work again")
            self._said = None
        self.finished_passes += 1
        self.last_pass_ns = cycle.now().boot_ns
        return pause_ns / NS
