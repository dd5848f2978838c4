"""When the next pass is due: at the earliest moment at which something can have to change, and no later than 10 s."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from slicebw.core.clock import NS

SHORTEST_NS: Final = NS // 5
LONGEST_NS: Final = 10 * NS


class Runner(Struct, frozen=True, gc=False):
    """One class that can cross its threshold: how many bytes it has to go, and at most how fast (bit/s)."""

    to_go_bytes: int
    ceil_bps: int


def crossing_ns(runner: Runner) -> int:
    """The earliest time from now at which the class can reach its threshold at its present ceiling."""
    return max(0, runner.to_go_bytes) * 8 * NS // max(1, runner.ceil_bps)


def next_pass_ns(now_wall_ns: int, period_ends_s: Iterable[int], crossings_ns: Iterable[int]) -> int:
    """Time from now to the next pass: within [0.2 s, 10 s], except that a period's end is met exactly.

    The 20 % reserve of a default budget burns in 17 s at 1 Gbit/s, so a fixed interval cannot do.
    """
    due_ns = min(crossings_ns, default=LONGEST_NS)
    due_ns = max(SHORTEST_NS, min(LONGEST_NS, due_ns))
    end_ns = min((end_s * NS - now_wall_ns for end_s in period_ends_s), default=LONGEST_NS)
    return max(0, min(due_ns, end_ns))
