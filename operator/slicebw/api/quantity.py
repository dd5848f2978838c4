"""Parses rates, bytes, percentages, durations and times, as people and Kubernetes write them, into exact integers.

There are no floats. The grammar of rates and bytes is that of Kubernetes' Quantity (apimachinery, api/resource), except
for negative values, for the suffixes n, u and m (there is no thousandth of a byte), and for E and Ei (above the highest
allowed value). Fractions of a unit are rounded up, as Kubernetes does. The patterns in crds/ accept the same strings,
which tests check. :mod:`slicebw.core.text` formats figures for people.
"""

import json
import re
from calendar import timegm
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Final

from slicebw.core.errors import SlicebwError

MIN_RATE_BPS: Final = 8
"""One byte a second, the lowest rate of HTB."""
MIN_NODE_RATE_BPS: Final = 1_000_000
MAX_RATE_BPS: Final = 10**15
MIN_BYTES: Final = 1
MAX_BYTES: Final = 10**18
"""A year at 250 Gbit/s. It fits into a signed 64-bit integer."""
MAX_TEXT_LENGTH: Final = 32
"""A longer text is refused before it is parsed: it could be a number of any size."""

_QUANTITY: Final = re.compile(
    r"\+?(?:(?P<whole>[0-9]+)(?:\.(?P<fraction>[0-9]*))?|\.(?P<bare_fraction>[0-9]+))"
    r"(?:(?P<suffix>[kMGTP]|[KMGTP]i)|[eE](?P<exponent>[+-]?[0-9]{1,2}))?"
)
_MULTIPLIERS: Final = {
    **{suffix: 1000 ** (power + 1) for power, suffix in enumerate("kMGTP")},
    **{f"{suffix}i": 1024 ** (power + 1) for power, suffix in enumerate("KMGTP")},
}
_THOUSANDTHS: Final = re.compile(r"[0-9.]+m")
_DURATION: Final = re.compile(r"(?:([0-9]{1,5})h)?(?:([0-9]{1,7})m)?(?:([0-9]{1,8})s)?")
_DAYS: Final = re.compile(r"([0-9]{1,3})d")
_PERCENT: Final = re.compile(r"(100|[1-9][0-9]?)%")
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)

_SHOWN_LENGTH: Final = 40
_QUOTED_LENGTH: Final = 120
_LARGEST_INT_SHOWN: Final = 10**30


class QuantityError(SlicebwError, ValueError):
    """A value that is not the expected quantity. The message has the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class _Measure:
    """How rates and bytes differ: their limits, and words for messages."""

    noun: str
    usage: str
    lowest: int
    lowest_text: str
    highest: int
    highest_text: str


_RATE: Final = _Measure(
    noun="a rate",
    usage="use bit/s with an optional suffix k, M, G, T, Ki, Mi, Gi (10M is 10,000,000 bit/s)",
    lowest=MIN_RATE_BPS,
    lowest_text="8 bit/s, one byte a second",
    highest=MAX_RATE_BPS,
    highest_text="1P, 10^15 bit/s",
)
_NODE_RATE: Final = replace(
    _RATE,
    lowest=MIN_NODE_RATE_BPS,
    lowest_text="1M: the node's own traffic is under it too, so that less (100 for 100M) would cut the node off",
)
_UNCLASSIFIED_RATE: Final = replace(
    _NODE_RATE,
    lowest_text="1M: the node's ARP is under it too",
)
_BYTES: Final = _Measure(
    noun="a number of bytes",
    usage="use bytes with an optional suffix k, M, G, T, Ki, Mi, Gi, Ti (10Gi is 10,737,418,240 bytes)",
    lowest=MIN_BYTES,
    lowest_text="1 byte",
    highest=MAX_BYTES,
    highest_text="1000P, 10^18 bytes",
)


def parse_rate(value: object) -> int:
    """Parse a rate in bit/s: ``8``, ``"512k"``, ``"1.5G"``, ``"10Ki"``, ``"1e6"``; an int or a string.

    Raises QuantityError, also outside MIN_RATE_BPS..MAX_RATE_BPS.
    """
    return _parse(value, _RATE)


def parse_node_rate(value: object) -> int:
    """Parse the rate of a whole node in bit/s, like :func:`parse_rate`. Raises QuantityError, also below 1M."""
    return _parse(value, _NODE_RATE)


def parse_unclassified_rate(value: object) -> int:
    """The ceiling of unclassified traffic in bit/s, as :func:`parse_rate`. Raises QuantityError, also below 1M."""
    return _parse(value, _UNCLASSIFIED_RATE)


def parse_bytes(value: object) -> int:
    """Parse a number of bytes: ``"10Gi"``, ``"10800M"``, ``4096``. Raises QuantityError, also outside 1..MAX_BYTES."""
    return _parse(value, _BYTES)


def parse_percent(value: object) -> int:
    """Parse a whole percentage from ``"1%"`` to ``"100%"``. Raises QuantityError."""
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise QuantityError(f"{shown(value)} is not a percentage: use a whole one from 1% to 100% (80%)")
    return int(match[1])


def parse_duration(value: object) -> int:
    """Parse a duration into whole seconds: ``"24h"``, ``"1h30m"``, ``"90s"``. Raises QuantityError.

    Units are those of Kubernetes' durations from seconds up, largest first. Days would be ambiguous: 24 h, or a
    calendar day.
    """
    text = value if isinstance(value, str) else ""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        days = _DAYS.fullmatch(text)
        hint = f"; {days[1]} days are {int(days[1]) * 24}h" if days else ""
        usage = "use whole hours, minutes and seconds, in that order (24h, 1h30m, 90s)"
        raise QuantityError(f"{shown(value)} is not a duration: {usage}{hint}")
    hours, minutes, seconds = (int(digits or 0) for digits in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def duration_text(duration_s: int) -> str:
    """Return a duration as :func:`parse_duration` reads it: ``24h``, ``1h30m``, ``1m30s``, ``0s``."""
    minutes, seconds = divmod(duration_s, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if count]
    return "".join(parts) or "0s"


def parse_time(value: object) -> int:
    """Parse an RFC 3339 time into whole seconds since the epoch, fractions cut off. Raises QuantityError.

    Also accepts a datetime, which PyYAML makes from an unquoted time. Without a zone it is UTC, as in YAML.
    """
    if isinstance(value, datetime):
        try:
            return timegm(value.utctimetuple())
        except OverflowError:  # an hour before the year 1
            raise QuantityError(f"{value.isoformat()} is not a time: it is outside the years 1 to 9999") from None
    match = _TIME.fullmatch(value) if isinstance(value, str) and len(value) <= _SHOWN_LENGTH else None
    if match is not None:
        zone = "+00:00" if match[3] in "Zz" else match[3]
        try:
            return timegm(datetime.fromisoformat(f"{match[1]}T{match[2]}{zone}").astimezone(timezone.utc).timetuple())
        except (ValueError, OverflowError):
            pass  # the 30th of February, or an hour before the year 1
    raise QuantityError(f"{shown(value)} is not a time: use RFC 3339 (2026-11-22T10:00:00Z)")


def shown(value: object) -> str:
    """Return a value for an error message: on one line, short, and with strings in quotes as in JSON."""
    if isinstance(value, str):
        kept = value[:_SHOWN_LENGTH]
        while len(quoted := json.dumps(kept)) > _QUOTED_LENGTH:  # escapes may make it twelve times as long
            kept = kept[:-1]
        return quoted if kept == value else f"{quoted}..."
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) <= _LARGEST_INT_SHOWN else "a number of more than 30 digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if hasattr(value, "keys") else f"a {type(value).__name__}"


def _parse(value: object, measure: _Measure) -> int:
    if isinstance(value, str):
        number, scale = _parse_text(value, measure)
    elif isinstance(value, int) and not isinstance(value, bool):
        number, scale = value, 1
    elif isinstance(value, float):
        raise QuantityError(f'{shown(value)} is not {measure.noun}: write it as a string ("1.5G") or a whole number')
    else:
        raise QuantityError(f"{shown(value)} is not {measure.noun}: {measure.usage}")
    if number < measure.lowest * scale:
        raise QuantityError(f"{shown(value)} is too low: at least {measure.lowest_text}")
    if number > measure.highest * scale:
        raise QuantityError(f"{shown(value)} is too high: at most {measure.highest_text}")
    return -(-number // scale)  # rounded up


def _parse_text(text: str, measure: _Measure) -> tuple[int, int]:
    """Return the exact value as a quotient of two integers. MAX_TEXT_LENGTH keeps both below 10^150."""
    match = _QUANTITY.fullmatch(text) if len(text) <= MAX_TEXT_LENGTH else None
    if match is None:
        if len(text) <= MAX_TEXT_LENGTH and _THOUSANDTHS.fullmatch(text):
            raise QuantityError(f"{shown(text)} is not {measure.noun}: m means thousandths; millions are {text[:-1]}M")
        raise QuantityError(f"{shown(text)} is not {measure.noun}: {measure.usage}")
    fraction = match["fraction"] or match["bare_fraction"] or ""
    number = int((match["whole"] or "") + fraction)
    exponent = int(match["exponent"] or 0)
    number *= _MULTIPLIERS.get(match["suffix"], 1) * 10 ** max(exponent, 0)
    return number, 10 ** (len(fraction) + max(-exponent, 0))
