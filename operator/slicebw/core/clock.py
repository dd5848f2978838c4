"""Steps of the wall clock, and budgets of so much per second. Instants are arguments: no clock is read here.

Running periods do not notice a step of the wall clock. They are bounded by the wall clock, because people read them,
but their length is real elapsed time. So when the wall clock is stepped, the bounds of every running period are moved
by the same step: a clock set back never makes a period longer, one set forward never ends it early. Slewing (NTP's
usual way) and leap seconds stay below :data:`STEP_NS` and are simply followed. Time zones and DST do not exist here:
all instants are UTC.
"""

from typing import Final

from msgspec import Struct


class Instant(Struct, frozen=True):
    """One reading of both clocks. ``boot_ns`` counts on through suspend and never jumps (CLOCK_BOOTTIME)."""

    wall_ns: int
    boot_ns: int
    boot_id: str = ""

    @property
    def wall_s(self) -> int:
        """Seconds of the wall clock, rounded down."""
        return self.wall_ns // 1_000_000_000


NS: Final = 1_000_000_000

STEP_NS: Final = 2 * NS
"""A larger difference of the two clocks between two passes is a step. Drift and leap seconds are smaller."""


def elapsed_ns(before: Instant | None, now: Instant) -> int:
    """Return the real time between two readings, never negative. Across a reboot only the wall clock can tell."""
    if before is None:
        return 0
    if before.boot_id == now.boot_id:
        return max(0, now.boot_ns - before.boot_ns)
    return max(0, now.wall_ns - before.wall_ns)


def step_s(before: Instant | None, now: Instant) -> int:
    """Return by how many seconds the wall clock was stepped between two readings; 0 if it was not.

    Within one boot that is the wall clock's advance less the real time elapsed. Across a reboot only a step back can
    be told from time spent switched off.
    """
    if before is None:
        return 0
    step_ns = now.wall_ns - before.wall_ns - elapsed_ns(before, now)
    if abs(step_ns) <= STEP_NS:
        return 0
    return (step_ns + NS // 2) // NS


class TokenBucket:
    """A budget: ``per_s`` units a second in the long run, ``burst`` units at once. Not thread-safe.

    ``now_s`` is an instant of any clock that never goes back, the same one at every call. ``per_s`` and ``burst`` may
    be changed; the new values also hold for the time since the last call.
    """

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        """Start with a full budget."""
        self.per_s, self.burst = per_s, burst
        self._tokens, self._at_s = burst, now_s

    def available(self, now_s: float) -> float:
        """Return how many units may be taken now."""
        self._tokens = min(self.burst, self._tokens + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        return self._tokens

    def wait_s(self, now_s: float, amount: float = 1.0) -> float:
        """Return the time in seconds until ``amount`` may be taken; 0.0 if it may be now."""
        return max(0.0, (amount - self.available(now_s)) / self.per_s)

    def take(self, now_s: float, amount: float = 1.0) -> None:
        """Take ``amount``, also if it is more than there is. The debt makes later waits longer."""
        self._tokens = self.available(now_s) - amount
