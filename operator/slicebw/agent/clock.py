"""Reads the machine's clocks for the reconciler. Nothing else does, so that tests can set the time."""

import time
from pathlib import Path

from slicebw.core.clock import Instant

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """Reads the wall clock, and the clock since boot, which never jumps and counts on through suspend."""

    def __init__(self) -> None:
        try:
            self._boot_id = _BOOT_ID.read_text().strip()
        except OSError:  # without /proc every start counts as a boot of its own
            self._boot_id = f"started-{time.time_ns()}"

    def __call__(self) -> Instant:
        """Read both clocks."""
        return Instant(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), self._boot_id)
