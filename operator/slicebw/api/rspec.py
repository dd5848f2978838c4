"""Converts PlanetLab's GetSlivers records into SliceBandwidths.

A GetSlivers record is the answer of PLCAPI to a node manager: a structure with ``slivers``, each with its slice's name
and ``attributes``. Names and units are those of PlanetLab's NodeManager (``bwmon.py``, ``slivermanager.py``): rates in
kbit/s, bytes in units of 1024. The rest of the record (keys, initscripts, other tags) is ignored.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from slicebw.api import kinds
from slicebw.api.fields import FieldError
from slicebw.api.quantity import MAX_BYTES, MAX_RATE_BPS, MIN_RATE_BPS, duration_text, shown
from slicebw.api.slice_bandwidth import MAX_SHARE
from slicebw.core.desired import (
    DEFAULT_LIMITS,
    DEFAULT_PERIOD_S,
    DEFAULT_THRESHOLD_PERCENT,
    ClassLimits,
    SliceKey,
    SliceLimits,
    TrafficClass,
    percent_of,
)


@dataclass(frozen=True, slots=True)
class Imported:
    """The SliceBandwidths to apply, an error line for each slice without one, and notes for the person who imports."""

    objects: tuple[dict[str, Any], ...]
    errors: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Attribute:
    """One of PlanetLab's attributes: its field in a SliceBandwidth, its unit, and its allowed values."""

    traffic_class: TrafficClass
    field: str
    unit: str
    unit_size: int
    most: int
    least: int = 1


def _attributes() -> dict[str, _Attribute]:
    found = {}
    for traffic_class, prefix, old in (
        (TrafficClass.STANDARD, "net_", "nm_net_"),
        (TrafficClass.EXEMPT, "net_i2_", "nm_net_exempt_"),
    ):
        for name, field in (("min_rate", "minRate"), ("max_rate", "maxRate")):
            # bwmon's default minimum is 0. It becomes the lowest rate of HTB, 8 bit/s.
            least_kbps, least_bps = (0, 0) if field == "minRate" else (1, MIN_RATE_BPS)
            found[prefix + name] = _Attribute(traffic_class, field, "kbit/s", 1000, MAX_RATE_BPS // 1000, least_kbps)
            found[old + name] = _Attribute(traffic_class, field, "bit/s", 1, MAX_RATE_BPS, least_bps)
        for name, field in (("max_kbyte", "budget"), ("thresh_kbyte", "threshold")):
            found[prefix + name] = _Attribute(traffic_class, field, "KiB", 1024, MAX_BYTES // 1024)
        for name in (f"{prefix}share", f"{old}share"):
            found[name] = _Attribute(traffic_class, "share", "shares", 1, MAX_SHARE)
    return found


ATTRIBUTES: Final[Mapping[str, _Attribute]] = _attributes()
"""By name. ``net_*`` are PlanetLab 4's ten. ``nm_net_*`` are PlanetLab 3's names for six of them, with rates in bit/s.
Its other attributes had another meaning; a note names them."""

OFF: Final = -1
"""With this ``net_max_rate`` in the default slice, bwmon removed all limits of the node."""

_DEFAULT_SLICE: Final = "default"
_SLICE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,30}")
_MAX_LABEL_LENGTH: Final = 63
"""Of a namespace's name, which is a DNS label (RFC 1123)."""


def convert(document: object, period_s: int = DEFAULT_PERIOD_S) -> Imported:
    """Convert all slivers of a GetSlivers record, in its order. A field with its default value is left out of the spec.

    A slice that is wrong is left out, and named in ``errors``.

    Args:
        document: the record as parsed from JSON or YAML, or a list of records, one for each node.
        period_s: the accounting period. In bwmon it was always 24 hours.

    Raises:
        FieldError: the document is no such record.
    """
    made: dict[SliceKey, tuple[str, dict[str, Any]]] = {}
    errors: list[str] = []
    notes: list[str] = []
    unknown: Counter[str] = Counter()
    for place, sliver in _slivers(document):
        try:
            name, key, found = _read(place, sliver, notes, unknown)
            if found is None:
                continue
            obj = _object(key, _limits(found, period_s))
        except _SliceError as error:
            errors += error.lines
            continue
        first_name, first = made.setdefault(key, (name, obj))
        if first_name != name:
            errors.append(f"slice {name}: it would become {key}, like slice {first_name}: rename one of them")
        elif first != obj:
            errors.append(
                f"slice {name}: its attributes are not the same on all nodes, those of its first sliver are used: "
                "a SliceBandwidth applies to every node"
            )
    notes += [_unknown_note(attribute, count) for attribute, count in unknown.items()]
    return Imported(tuple(obj for _, obj in made.values()), tuple(errors), tuple(notes))


def slice_key(name: str) -> SliceKey:
    """Return namespace ``princeton-codeen`` and name ``codeen`` for ``princeton_codeen``. Raises FieldError."""
    legal = name.lower().replace("_", "-").replace(".", "-")
    namespace, short = legal.strip("-"), legal[name.find("_") + 1 :].strip("-")
    if not _SLICE_NAME.fullmatch(name) or not short or len(namespace) > _MAX_LABEL_LENGTH:
        usage = f"use a site and a name of letters, digits and _, at most {_MAX_LABEL_LENGTH} (princeton_codeen)"
        raise FieldError(f"{shown(name)} is not a slice name: {usage}")
    return SliceKey(namespace, short)


class _SliceError(Exception):
    """What is wrong with one slice, one line each."""

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


_Found = dict[tuple[TrafficClass, str], tuple[str, int, int]]
"""By class and field: the attribute's name, its value in its own unit, and its value in bit/s, bytes or shares."""


def _slivers(document: object) -> Iterator[tuple[str, object]]:
    """Yield each sliver with its place in the document."""
    several = isinstance(document, list | tuple)
    for number, record in enumerate(document if isinstance(document, list | tuple) else [document]):
        path = f"[{number}].slivers" if several else "slivers"
        slivers = record.get("slivers") if isinstance(record, Mapping) else None
        if not isinstance(slivers, list | tuple):
            what = shown(record) if record is not None else "nothing"
            raise FieldError(f"{path}: {what} has no list of slivers: give the structure that GetSlivers returns")
        for index, sliver in enumerate(slivers):
            yield f"{path}[{index}]", sliver


def _read(place: str, sliver: object, notes: list[str], unknown: Counter[str]) -> tuple[str, SliceKey, _Found | None]:
    """Return a sliver's name, its key in the cluster, and its attributes.

    The attributes are None if they switched off all limits of the node: then there is nothing to create.
    Raises _SliceError.
    """
    name = sliver.get("name") if isinstance(sliver, Mapping) else None
    if not isinstance(sliver, Mapping) or not isinstance(name, str) or not name:
        raise _SliceError(f"{place}: name: must be given: the slice's name (princeton_codeen)")
    try:
        key = slice_key(name)
    except FieldError as error:
        raise _SliceError(f"{place}: name: {error}") from error
    errors: list[str] = []
    found: _Found = {}
    for attribute, value in _pairs(name, sliver):
        known = ATTRIBUTES.get(attribute)
        if known is None:
            if attribute.startswith(("net_", "nm_net_")):
                unknown[attribute] += 1
            continue
        if attribute == "net_max_rate" and key.name == _DEFAULT_SLICE and _whole(value) == OFF:
            notes.append(
                f"slice {name}: net_max_rate: -1 on the default slice switched off all limits; it becomes no "
                "SliceBandwidth: for the same effect set mode: Disabled in NodeBandwidth default"
            )
            return name, key, None
        _take(found, attribute, known, value, errors)
    if errors:
        raise _SliceError(*(f"slice {name}: {error}" for error in errors))
    conflicts = [f"slice {name}: {conflict}" for conflict in _conflicts(found)]
    if conflicts:
        raise _SliceError(*conflicts)
    return name, key, found


def _unknown_note(attribute: str, count: int) -> str:
    slices = "one slice" if count == 1 else f"{count} slices"
    known = ", ".join(name for name in ATTRIBUTES if not name.startswith("nm_"))
    return f"{shown(attribute)}: ignored on {slices}; there are {known}"


def _pairs(name: str, sliver: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    """Return attribute names and values, from PLCAPI's list or from a node manager's mapping. Raises _SliceError."""
    given = next((sliver[key] for key in ("attributes", "rspec", "_rspec") if sliver.get(key) is not None), {})
    if isinstance(given, Mapping):
        return [(key, value) for key, value in given.items() if isinstance(key, str)]
    if not isinstance(given, list | tuple):
        raise _SliceError(f"slice {name}: attributes: {shown(given)} must be a list of tagname and value")
    pairs = []
    for index, one in enumerate(given):
        # Before PLCAPI 5.0 the field was called name.
        tag = (one.get("tagname") or one.get("name")) if isinstance(one, Mapping) else None
        if not isinstance(tag, str):
            raise _SliceError(f"slice {name}: attributes[{index}]: {shown(one)} must have a tagname and a value")
        pairs.append((tag, one.get("value")))
    return pairs


def _take(found: _Found, name: str, known: _Attribute, value: object, errors: list[str]) -> None:
    """Add one attribute to ``found``, unless it is unset. The later of two for one field wins, as in a node manager."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return
    number = _whole(value)
    allowed = f"use {known.least} to {known.most}"
    if number is None:
        errors.append(f"{name}: {shown(value)} is not a whole number of {known.unit}: {allowed}")
    elif not known.least <= number <= known.most:
        off = ", or mode: Disabled in a NodeBandwidth for no limits at all" if number == OFF else ""
        errors.append(f"{name}: {shown(value)} {known.unit} is out of range: {allowed}{off}")
    else:
        found[known.traffic_class, known.field] = name, number, number * known.unit_size


def _whole(value: object) -> int | None:
    """Return a whole number from a number or a text, or None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if _WHOLE.fullmatch(text) else None


def _conflicts(found: _Found) -> Iterator[str]:
    """Yield an error for each minimum above its maximum, and each threshold above its budget."""
    for traffic_class in TrafficClass:
        for lower, upper in (("minRate", "maxRate"), ("threshold", "budget")):
            low, high = found.get((traffic_class, lower)), found.get((traffic_class, upper))
            if low is None:
                continue
            name, number, size = low
            unit = ATTRIBUTES[name].unit
            if high is not None and size > high[2]:
                limit = f"{high[0]} of {high[1]} {ATTRIBUTES[high[0]].unit}"
                yield f"{name}: {number} {unit} is above the {limit}: use at most that"
            default_bytes = DEFAULT_LIMITS.of(traffic_class).budget_bytes
            if high is None and lower == "threshold" and size > default_bytes:
                yield f"{name}: {number} {unit} is above the default budget of {default_bytes // 1024} {unit}: " + (
                    f"use at most that, or give {name.replace('thresh', 'max')}"
                )


def _limits(found: _Found, period_s: int) -> SliceLimits:
    def limits(traffic_class: TrafficClass) -> ClassLimits:
        default = DEFAULT_LIMITS.of(traffic_class)

        def pick(field: str, otherwise: int) -> int:
            return found.get((traffic_class, field), ("", 0, otherwise))[2]

        budget_bytes = pick("budget", default.budget_bytes)
        return ClassLimits(
            min_rate_bps=max(default.min_rate_bps, pick("minRate", default.min_rate_bps)),
            max_rate_bps=pick("maxRate", 0) or None,
            budget_bytes=budget_bytes,
            threshold_bytes=pick("threshold", percent_of(DEFAULT_THRESHOLD_PERCENT, budget_bytes)),
            share=pick("share", default.share),
        )

    return SliceLimits(period_s, limits(TrafficClass.STANDARD), limits(TrafficClass.EXEMPT))


def _object(key: SliceKey, limits: SliceLimits) -> dict[str, Any]:
    """Return the SliceBandwidth, without the fields that have their default values."""
    spec: dict[str, Any] = {}
    if limits.period_s != DEFAULT_LIMITS.period_s:
        spec["period"] = duration_text(limits.period_s)
    if limits.standard.share != DEFAULT_LIMITS.standard.share:
        spec["share"] = limits.standard.share
    for traffic_class in TrafficClass:
        own, default = limits.of(traffic_class), DEFAULT_LIMITS.of(traffic_class)
        fields: dict[str, Any] = {}
        if own.min_rate_bps != default.min_rate_bps:
            fields["minRate"] = rate_quantity(own.min_rate_bps)
        if own.max_rate_bps is not None:
            fields["maxRate"] = rate_quantity(own.max_rate_bps)
        if own.budget_bytes != default.budget_bytes:
            fields["budget"] = bytes_quantity(own.budget_bytes)
        if own.threshold_bytes != percent_of(DEFAULT_THRESHOLD_PERCENT, own.budget_bytes):
            fields["threshold"] = bytes_quantity(own.threshold_bytes)
        if traffic_class is TrafficClass.EXEMPT and own.share != default.share:
            fields["share"] = own.share
        if fields:
            spec[str(traffic_class)] = fields
    return {
        "apiVersion": kinds.API_VERSION,
        "kind": kinds.SLICE_BANDWIDTH.name,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "spec": spec,
    }


def rate_quantity(rate_bps: int) -> str:
    """Return a rate for a spec, exactly: ``10M``, ``1500k``, ``8``."""
    return _shortest(rate_bps, 1000, "kMGTP")


def bytes_quantity(count: int) -> str:
    """Return a number of bytes for a spec, exactly and in the shorter units: ``10800M``, ``10Gi``, ``5Ki``."""
    return min(_shortest(count, 1000, "kMGTP"), _shortest(count, 1024, "KMGTP", "i"), key=len)


def _shortest(value: int, base: int, suffixes: str, mark: str = "") -> str:
    power = 0
    while power < len(suffixes) and value and value % base ** (power + 1) == 0:
        power += 1
    return f"{value // base**power}{suffixes[power - 1] + mark if power else ''}"
