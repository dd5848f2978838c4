"""The policy: which rate a class may have, and how soon it can reach its threshold.

Source of the cap: PlanetLab's bwmon (``Slice.update``), with two mistakes mended: the cap never exceeds maxRate, and
the guarantee is limited for both classes.
"""

from msgspec import Struct

from slicebw.core.clock import NS
from slicebw.core.dataplane import NO_CEILING_BPS, kernel_rate
from slicebw.core.desired import ClassLimits, Mode, NodeSettings, TrafficClass, percent_of


class Rates(Struct, frozen=True, gc=False):
    """The rates of one class on one node, as the kernel can hold them. Unit: bit/s; min <= max."""

    min_bps: int
    max_bps: int


class RateDecision(Struct, frozen=True, gc=False):
    """The rates of one class now."""

    kernel: Rates
    """The rate and the ceiling that HTB gets. In Monitor mode the ceiling is one that never binds."""
    in_force_bps: int
    """The most that the class can send: HTB's ceiling, or in Monitor mode the line rate."""
    ceil_bps: int
    """The ceiling by the slice's limits, whatever the mode."""
    capped: bool
    """Whether usage has reached the threshold."""


def rates(limits: ClassLimits, ceiling_bps: int, guarantee_limit_bps: int) -> Rates:
    """Bring a class's limits under those of its node.

    Args:
        limits: the slice's limits for this class.
        ceiling_bps: the most for all slices' traffic of this class together (node cap; exempt: line rate).
        guarantee_limit_bps: the most that one slice may be guaranteed on this node.
    """
    maximum = ceiling_bps if limits.max_rate_bps is None else min(limits.max_rate_bps, ceiling_bps)
    # HTB needs rate <= ceil; a guarantee above the ceiling could not be used anyway.
    minimum = min(limits.min_rate_bps, guarantee_limit_bps, maximum)
    return Rates(kernel_rate(minimum), kernel_rate(maximum))


def guarantee_limit_bps(cap_bps: int, share_percent: int) -> int:
    """Return the part of the node cap above which no slice's minRate counts (bwmon: 25 %)."""
    return percent_of(share_percent, cap_bps)


def ceiling_bps(settings: NodeSettings, traffic_class: TrafficClass) -> int:
    """Return the ceiling of the inner class: the node cap, for exempt traffic the line rate; in Monitor mode none."""
    return class_cap_bps(settings, traffic_class) if settings.mode is Mode.ENFORCE else NO_CEILING_BPS


def unclassified_ceiling_bps(settings: NodeSettings, traffic_class: TrafficClass) -> int:
    """Return the ceiling of the default leaf of this class; in Monitor mode none."""
    if settings.mode is not Mode.ENFORCE:
        return NO_CEILING_BPS
    if traffic_class is TrafficClass.STANDARD:
        return settings.unclassified_max_bps
    return settings.unclassified_exempt_max_bps


def class_cap_bps(settings: NodeSettings, traffic_class: TrafficClass) -> int:
    """Return the most that one class of a slice may use here: the node cap, or the line rate for exempt traffic."""
    return settings.cap_bps if traffic_class is TrafficClass.STANDARD else settings.line_rate_bps


def allowed_rates(limits: ClassLimits, traffic_class: TrafficClass, settings: NodeSettings) -> Rates:
    """Return the rates of a class that has not reached its threshold."""
    guarantee_bps = guarantee_limit_bps(settings.cap_bps, settings.min_rate_share_percent)
    return rates(limits, class_cap_bps(settings, traffic_class), guarantee_bps)


def is_over(limits: ClassLimits, used_bytes: int) -> bool:
    """Tell whether usage has reached the threshold, so that the cap applies."""
    return used_bytes >= limits.threshold_bytes


def cap_bps(allowed: Rates, budget_bytes: int, used_bytes: int, left_ns: int) -> int:
    """Spread the rest of the budget over the rest of the period, within [min, max]. Unit: bit/s.

    Where ``left_ns`` is zero or less the period is over and its end is being handled: there is no cap then.
    """
    if left_ns <= 0:
        return allowed.max_bps
    spread_bps = max(0, budget_bytes - used_bytes) * 8 * NS // left_ns
    # Rounded down to what HTB can hold, so that the budget is not exceeded by rounding.
    return max(allowed.min_bps, min(allowed.max_bps, kernel_rate(spread_bps)))


def decide_rate(
    limits: ClassLimits, traffic_class: TrafficClass, used_bytes: int, left_ns: int, settings: NodeSettings
) -> RateDecision:
    """Decide the rates of one class: over its threshold it gets the cap as its ceiling, else its maximum.

    Args:
        limits: the slice's limits for this class.
        traffic_class: which class it is.
        used_bytes: bytes sent in this period.
        left_ns: time until the period ends.
        settings: the node's.
    """
    allowed = allowed_rates(limits, traffic_class, settings)
    capped = is_over(limits, used_bytes)
    ceil_bps = cap_bps(allowed, limits.budget_bytes, used_bytes, left_ns) if capped else allowed.max_bps
    if settings.mode is Mode.ENFORCE:
        return RateDecision(Rates(allowed.min_bps, ceil_bps), ceil_bps, ceil_bps, capped)
    # Monitor counts and reports as Enforce does; only the kernel gets no ceiling. The guarantee stays: it takes nothing
    # from other classes while no packet waits, and the sum of all guarantees is reported.
    return RateDecision(Rates(allowed.min_bps, NO_CEILING_BPS), settings.line_rate_bps, ceil_bps, capped)


def time_to_threshold_ns(to_go_bytes: int, ceil_bps: int) -> int:
    """Return the shortest time in which a class can reach its threshold at its present ceiling."""
    return max(0, to_go_bytes) * 8 * NS // max(1, ceil_bps)
