"""Keeps the nftables table that was read last, so that not every pass has to ask the kernel for it."""

import threading
import time
from collections.abc import Callable
from typing import Final

from slicebw.core.dataplane import NftTable

TABLE_CHECK_NS: Final = 10_000_000_000
"""A kept table is read again after this time, because a notification of a change may have been lost."""


def boot_ns() -> int:
    """Read the machine's clock that never jumps and counts on through suspend, in ns."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class TableCache:
    """Keeps one table, but only while there are notifications of changes. Without them every call reads it again.

    All calls but :meth:`invalidate` come from one thread.

    Args:
        clock_ns: any clock that never jumps.
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._notified = False
        self._invalidated = threading.Event()
        self._table: NftTable | None = None
        self._read_ns = 0

    def start(self) -> None:
        """Start to keep tables: from now on there are notifications."""
        self._notified = True
        self._table = None  # it may have changed before the first notification could arrive

    def stop(self) -> None:
        """Stop keeping tables: there are no notifications any more."""
        self._notified = False

    def invalidate(self) -> None:
        """Read the table again at the next call of :meth:`get`. Callable from any thread."""
        self._invalidated.set()

    def get(self, read: Callable[[], NftTable]) -> NftTable:
        """Return the kept table, or what ``read`` returns. If that raises, the next call reads again."""
        now_ns = self._clock_ns()
        expired = now_ns - self._read_ns >= TABLE_CHECK_NS
        if self._table is not None and self._notified and not expired and not self._invalidated.is_set():
            return self._table
        self._invalidated.clear()  # before reading: a change meanwhile sets the flag again
        self._table = None  # if reading raises, nothing old is left
        table = read()
        self._table, self._read_ns = table, now_ns
        return table
