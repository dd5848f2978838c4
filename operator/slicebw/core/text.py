"""Figures for people, in Events, logs and columns. Exact numbers are in the fields beside them."""

from datetime import datetime, timezone
from typing import Final

_UNITS: Final = "kMGTP"
_WHOLE_FROM: Final = 100
"""Figures of this size and more are shown without tenths."""
_EARLIEST_S: Final = -62_135_596_800
_LATEST_S: Final = 253_402_300_799
"""The first second of the year 1 and the last of 9999: RFC 3339 can write no others."""


def _scaled(value: int) -> str:
    """Write at most three significant digits, rounded down: a figure never exceeds the real one."""
    power = 0
    while power < len(_UNITS) and value >= 1000 ** (power + 1):
        power += 1
    if power == 0:
        return str(value)
    unit = 1000**power
    whole = value // unit
    tenths = value * 10 // unit % 10
    digits = f"{whole}.{tenths}" if tenths and whole < _WHOLE_FROM else f"{whole}"
    return f"{digits}{_UNITS[power - 1]}"


def rate_text(rate_bps: int) -> str:
    """Write a rate as in a spec: ``512k``, ``10M``, ``1.5G``. Decimal, bit/s."""
    return _scaled(rate_bps)


def bytes_text(count: int) -> str:
    """Write bytes like rates, in decimal units: ``10.8G``. So 10 Mbit/s for one second is 1.2M."""
    return _scaled(count)


def time_text(wall_s: int) -> str:
    """Write a time as Kubernetes does, in RFC 3339 and UTC: ``2026-11-22T10:00:00Z``.

    It never raises: one wrong clock or object must not block all other reports. Times before the year 1 or after 9999
    become the first or the last second that RFC 3339 can write.
    """
    within_s = max(_EARLIEST_S, min(_LATEST_S, wall_s))
    return datetime.fromtimestamp(within_s, timezone.utc).isoformat().replace("+00:00", "Z")
