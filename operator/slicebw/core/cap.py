"""The cap policy: what a class may send, given its limits, its node, and what it has used.

Source: PlanetLab's bwmon (``Slice.update``), with its two mistakes mended: the cap never exceeds maxRate, and the
guarantee is limited for both classes.
"""

from msgspec import Struct

from slicebw.core.clock import NS
from slicebw.core.model import ClassLimits, percent_of
from slicebw.core.tree import kernel_rate


class Rates(Struct, frozen=True, gc=False):
    """The rates that hold for one class on one node, as the kernel can hold them. Unit: bit/s; min <= max."""

    min_bps: int
    max_bps: int


def rates(limits: ClassLimits, ceiling_bps: int, guarantee_limit_bps: int) -> Rates:
    """A class's limits brought under its node's.

    Args:
        limits: the slice's limits for this class.
        ceiling_bps: what all slices' traffic of this class may use together (node cap, or line rate for exempt).
        guarantee_limit_bps: the most that one slice may be guaranteed on this node.
    """
    maximum = ceiling_bps if limits.max_rate_bps is None else min(limits.max_rate_bps, ceiling_bps)
    minimum = min(limits.min_rate_bps, guarantee_limit_bps, maximum)
    return Rates(kernel_rate(minimum), kernel_rate(maximum))


def guarantee_limit_bps(cap_bps: int, share_percent: int) -> int:
    """No slice's minRate counts above this part of the node cap (bwmon: 25 %)."""
    return percent_of(share_percent, cap_bps)


def is_over(limits: ClassLimits, used_bytes: int) -> bool:
    """Whether usage has reached the threshold, so that the cap applies."""
    return used_bytes >= limits.threshold_bytes


def cap_bps(allowed: Rates, budget_bytes: int, used_bytes: int, left_ns: int) -> int:
    """What is left of the budget spread over what is left of the period, within [min, max]. Unit: bit/s.

    ``left_ns`` at or below zero (the period is over, its end is being handled) asks for no cap at all.
    """
    if left_ns <= 0:
        return allowed.max_bps
    spread_bps = max(0, budget_bytes - used_bytes) * 8 * NS // left_ns
    return max(allowed.min_bps, min(allowed.max_bps, kernel_rate(spread_bps)))
