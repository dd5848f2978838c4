"""Keeps the nftables table that was read last, so that a pass does not ask the kernel for it each time."""

import threading
import time
from collections.abc import Callable
from typing import Final

from slicebw.core.dataplane import NftTable

TABLE_CHECK_NS: Final = 10_000_000_000
"""A kept table is read again after this time: a notification of somebody else's change may have been lost."""


def boot_ns() -> int:
    """The machine's clock that never jumps and counts on through suspend, in ns."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class TableCache:
    """One table. It is kept only while notifications come, for without them nobody tells when it changes.

    All calls but :meth:`distrust` come from one thread.

    Args:
        clock_ns: any clock that never jumps.
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._notified = False
        self._distrusted = threading.Event()
        self._table: NftTable | None = None
        self._read_ns = 0

    def start(self) -> None:
        """Keep what is read from now on: notifications come."""
        self._notified = True
        self._table = None  # it may have changed before anybody listened

    def stop(self) -> None:
        """Keep nothing: notifications come no longer."""
        self._notified = False

    def distrust(self) -> None:
        """Read the table again at the next call of :meth:`get`. Callable from any thread."""
        self._distrusted.set()

    def get(self, read: Callable[[], NftTable]) -> NftTable:
        """The kept table, or what ``read`` returns. What it raises is passed on, and the next call reads again."""
        now_ns = self._clock_ns()
        expired = now_ns - self._read_ns >= TABLE_CHECK_NS
        if self._table is not None and self._notified and not expired and not self._distrusted.is_set():
            return self._table
        self._distrusted.clear()  # before the reading: a change during it sets the flag again
        self._table = None
        table = read()
        self._table, self._read_ns = table, now_ns
        return table
