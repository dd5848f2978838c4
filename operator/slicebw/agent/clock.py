"""The one place that reads clocks for the reconciler."""

import time
from pathlib import Path

from slicebw.core.clock import Instant

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """Both clocks of this machine; within one boot the second one never jumps."""

    def __init__(self) -> None:
        try:
            self._boot_id = _BOOT_ID.read_text().strip()
        except OSError:  # no /proc: every start then counts as a boot of its own
            self._boot_id = f"started-{time.time_ns()}"

    def __call__(self) -> Instant:
        """One reading of both clocks."""
        return Instant(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), self._boot_id)
