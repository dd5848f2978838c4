"""The counters of all classes at one instant, for tests that compare what several senders get.

One read in this process: a program for each sender starts 0.1 to 0.7 s after the one before it on a busy machine, which
is a large part of the seconds that a rate is measured over.
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
    """Bytes sent by slice id as tc writes it, and when they were read (monotonic clock)."""

    at_s: float
    sent_bytes: Mapping[str, int]

    def sent_since(self, before: "Counters", slice_id: str) -> int:
        """Bytes that a class has sent between two readings."""
        return self.sent_bytes[slice_id] - before.sent_bytes[slice_id]

    def rate_bps(self, before: "Counters", slice_id: str) -> float:
        """The rate at which a class has sent between two readings."""
        return self.sent_since(before, slice_id) * 8 / (self.at_s - before.at_s)


def read_counters(shaper: HtbShaper, device: str) -> Counters:
    """All classes of a device, by one dump.

    Where this process was held up while it read, it is not known when the kernel did: then it reads again.
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
