"""Figures as people read them: in events, logs and columns. Exact numbers stay in the fields beside them."""

from datetime import datetime, timezone
from typing import Final

_UNITS: Final = "kMGTP"
_WHOLE_FROM: Final = 100
"""From here on a figure needs no tenths."""
_EARLIEST_S: Final = -62_135_596_800
_LATEST_S: Final = 253_402_300_799
"""The first second of the year 1 and the last of 9999: RFC 3339 can write no others."""


def _scaled(value: int) -> str:
    """Three significant digits at most, rounded down: a figure shown never exceeds the real one."""
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
    """``512k``, ``10M``, ``1.5G``: bit/s, decimal, as written in a spec."""
    return _scaled(rate_bps)


def bytes_text(count: int) -> str:
    """``10.8G``: bytes, decimal like rates, so that 10 Mbit/s for a second are seen to be 1.2M."""
    return _scaled(count)


def time_text(wall_s: int) -> str:
    """RFC 3339 in UTC, as Kubernetes writes times: ``2026-11-22T10:00:00Z``.

    Never raises: one clock or one object that is far out must not keep the reports of all others from being written.
    What is before the year 1 or after 9999 is shown as the first or last second of them.
    """
    within_s = max(_EARLIEST_S, min(_LATEST_S, wall_s))
    return datetime.fromtimestamp(within_s, timezone.utc).isoformat().replace("+00:00", "Z")
