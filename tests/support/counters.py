"""The counters of all classes at one instant, for tests that compare the rates of several senders.

They are read at once, in this process. One program for each sender would not do: on a busy machine each starts 0.1 to
0.7 s after the one before it, which is a large part of the few seconds that a rate is measured over.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from slicebw.core.dataplane import classid
from slicebw.kernel.htb import HtbShaper

_MOST_READINGS: Final = 20
_UNDISTURBED_S: Final = 0.003


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes sent by classid, and when they were read (monotonic clock)."""

    at_s: float
    sent_bytes: Mapping[str, int]

    def sent_since(self, before: "Counters", name: str) -> int:
        """Return the bytes that a class has sent between two readings."""
        return self.sent_bytes[name] - before.sent_bytes[name]

    def rate_bps(self, before: "Counters", name: str) -> float:
        """Return the rate at which a class has sent between two readings."""
        return self.sent_since(before, name) * 8 / (self.at_s - before.at_s)


def read_counters(shaper: HtbShaper, device: str) -> Counters:
    """Read all classes of a device in one dump.

    A reading that took long could be of any instant in it, because the process may have been held up: it is made again,
    and the quickest one counts.
    """
    quickest_s, found = float("inf"), Counters(0, {})
    for _ in range(_MOST_READINGS):
        begin_s = time.monotonic()
        classes = shaper.read(device).classes
        took_s = time.monotonic() - begin_s
        if took_s < quickest_s:
            sent_bytes = {classid(minor): one.sent_bytes for minor, one in classes.items()}
            quickest_s, found = took_s, Counters(begin_s + took_s / 2, sent_bytes)
        if quickest_s < _UNDISTURBED_S:
            break
    return found
