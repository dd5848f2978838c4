"""SliceBandwidth: a slice's limits, and its usage in the whole cluster. Parses the spec; builds and parses the status.

The checks repeat those in crds/slicebandwidths.yaml (schema and CEL rules): API servers before Kubernetes 1.25 have no
CEL, and a folder of files has no API server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from slicebw.api import conditions, kinds, selector
from slicebw.api.conditions import Condition
from slicebw.api.fields import Fields, Metadata, lenient_int, lenient_time, limited
from slicebw.api.quantity import (
    QuantityError,
    duration_text,
    parse_bytes,
    parse_duration,
    parse_percent,
    parse_rate,
    shown,
)
from slicebw.core.desired import (
    DEFAULT_LIMITS,
    DEFAULT_THRESHOLD_PERCENT,
    ClassLimits,
    SliceKey,
    SliceLimits,
    SliceSpec,
    TrafficClass,
    percent_of,
)
from slicebw.core.text import bytes_text, rate_text, time_text

MIN_PERIOD_S: Final = 1
MAX_PERIOD_S: Final = 366 * 24 * 3600
MIN_SHARE: Final = 1
MAX_SHARE: Final = 1000
"""The HTB quantum is share * 1600 bytes: at 1000 a class may send 1.6 MB (over a second at 10 Mbit/s) before other
classes get their turn. It also keeps the kernel's signed 32-bit deficit far from overflow."""
MIN_THRESHOLD_BYTES: Final = 101
"""A number up to 100 is meant as a percentage. As bytes it would cap the slice at once and for ever."""

_SPEC_FIELDS: Final = ("podSelector", "period", "share", "standard", "exempt")
_STANDARD_FIELDS: Final = ("minRate", "maxRate", "budget", "threshold")
_EXEMPT_FIELDS: Final = (*_STANDARD_FIELDS, "share")
_OBJECT_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")


@dataclass(frozen=True, slots=True)
class ClassStatus:
    """One traffic class over all nodes: total usage, highest percentage, lowest capped rate (None: not capped)."""

    used_bytes: int = 0
    peak_percent: int = 0
    capped_rate_bps: int | None = None


@dataclass(frozen=True, slots=True)
class SliceStatus:
    """A slice over all its nodes. ``period_start_s`` is the earliest start of a running period, None if none runs."""

    observed_generation: int = 0
    nodes: int = 0
    capped_nodes: int = 0
    period_start_s: int | None = None
    standard: ClassStatus = ClassStatus()
    exempt: ClassStatus = ClassStatus()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class SliceRecord:
    """What the controller stores of a SliceBandwidth: its spec, its status, and the resourceVersion of both."""

    spec: SliceSpec
    status: SliceStatus
    version: str


def parse(obj: object) -> SliceSpec:
    """Parse a SliceBandwidth. Never raises: ``errors`` names each wrong field by its full path.

    ``limits`` is None if a limit is wrong, and ``selector`` is None if the selector is. Both are None for other errors,
    such as an unknown field of the spec. The last good value then stays in force.
    Unknown fields are errors if no API server has pruned them (see :class:`slicebw.api.fields.Metadata`).
    """
    metadata = Metadata(obj)
    strict = not metadata.stored
    object_errors: list[str] = []
    limit_errors: list[str] = []
    selector_errors: list[str] = []
    top = Fields(obj, "", object_errors)
    _check_names(top, metadata)
    spec = top.inner("spec")
    if strict:
        top.refuse_unknown(_OBJECT_FIELDS)
        spec.refuse_unknown(_SPEC_FIELDS)
    limits = _limits(spec.reporting_to(limit_errors), strict=strict)
    pods = selector.parse(spec.raw("podSelector"), spec.path_of("podSelector"), selector_errors, strict=strict)
    return SliceSpec(
        key=SliceKey(metadata.namespace, metadata.name),
        uid=metadata.uid,
        generation=metadata.generation,
        created_s=metadata.created_s,
        selector=None if object_errors or selector_errors else pods,
        limits=None if object_errors or limit_errors else limits,
        errors=limited(object_errors + limit_errors + selector_errors),
    )


def status_object(key: SliceKey, status: SliceStatus, version: str = "") -> dict[str, Any]:
    """Return the body of a server-side apply to ``/status``: all fields that the controller owns.

    With ``version``, a resourceVersion, the API server answers 409 if the object has another version.
    """
    body: dict[str, Any] = {
        "observedGeneration": status.observed_generation,
        "nodes": status.nodes,
        "cappedNodes": status.capped_nodes,
        "standard": _class_object(status.standard),
        "exempt": _class_object(status.exempt),
        "conditions": conditions.to_list(status.conditions),
    }
    # A field that is left out of the apply is removed from the object: no period is running.
    if status.period_start_s is not None:
        body["periodStart"] = time_text(status.period_start_s)
    return {
        "apiVersion": kinds.API_VERSION,
        "kind": kinds.SLICE_BANDWIDTH.name,
        "metadata": {
            "namespace": key.namespace,
            "name": key.name,
            **({"resourceVersion": version} if version else {}),
        },
        "status": body,
    }


def parse_status(obj: object) -> SliceStatus:
    """Parse the status of a SliceBandwidth. Never raises: a missing or wrong field gets its zero value."""
    status = _mapping(obj, "status")
    return SliceStatus(
        observed_generation=lenient_int(status.get("observedGeneration")),
        nodes=lenient_int(status.get("nodes")),
        capped_nodes=lenient_int(status.get("cappedNodes")),
        period_start_s=lenient_time(status.get("periodStart")),
        standard=_parse_class(_mapping(status, "standard")),
        exempt=_parse_class(_mapping(status, "exempt")),
        conditions=conditions.parse_list(status.get("conditions")),
    )


def _check_names(top: Fields, metadata: Metadata) -> None:
    """Check the names: an API server has checked them, but in a file they may be missing or wrong."""
    for field, name in (("metadata.name", metadata.name), ("metadata.namespace", metadata.namespace)):
        error = kinds.name_error(name)
        if error is not None:
            top.fail(field, error)


def _limits(spec: Fields, *, strict: bool) -> SliceLimits | None:
    """Return all limits, with defaults filled in, or None if one is wrong."""
    period_s = spec.read("period", _period, DEFAULT_LIMITS.period_s)
    share = spec.read("share", _share, DEFAULT_LIMITS.standard.share)
    standard, exempt = spec.inner("standard"), spec.inner("exempt")
    if strict:
        standard.refuse_unknown(_STANDARD_FIELDS)
        exempt.refuse_unknown(_EXEMPT_FIELDS)
    standard_limits = _class_limits(standard, TrafficClass.STANDARD, share)
    exempt_share = exempt.read("share", _share, DEFAULT_LIMITS.exempt.share)
    exempt_limits = _class_limits(exempt, TrafficClass.EXEMPT, exempt_share)
    if period_s is None or standard_limits is None or exempt_limits is None:
        return None
    return SliceLimits(period_s, standard_limits, exempt_limits)


def _class_limits(fields: Fields, traffic_class: TrafficClass, share: int | None) -> ClassLimits | None:
    default = DEFAULT_LIMITS.of(traffic_class)
    errors_before = len(fields.errors)
    min_rate_bps = fields.read("minRate", parse_rate, default.min_rate_bps)
    max_rate_bps = fields.read("maxRate", parse_rate, default.max_rate_bps)
    budget_bytes = fields.read("budget", parse_bytes, default.budget_bytes)
    if min_rate_bps is not None and max_rate_bps is not None and min_rate_bps > max_rate_bps:
        text = f"{shown(fields.raw('minRate'))} is above the maxRate of {shown(fields.raw('maxRate'))}"
        fields.fail("minRate", f"{text}: use at most that")
    # Even if the budget is wrong: all errors of an object are named at once.
    threshold_bytes = _threshold(fields, default.budget_bytes, budget_bytes)
    if min_rate_bps is None or budget_bytes is None or threshold_bytes is None or share is None:
        return None
    # A minRate above the maxRate, or a wrong maxRate: that one is None just as an absent one.
    if len(fields.errors) > errors_before:
        return None
    return ClassLimits(min_rate_bps, max_rate_bps, budget_bytes, threshold_bytes, share)


def _threshold(fields: Fields, default_budget_bytes: int, budget_bytes: int | None) -> int | None:
    """Return the threshold in bytes, given as bytes or as a percentage of the budget. None if it is wrong.

    ``budget_bytes`` is None if the budget is wrong. The threshold is at least one byte, even for the smallest budget:
    else a slice that has sent nothing would be over it.
    """
    value = fields.raw("threshold")
    known_budget_bytes = default_budget_bytes if budget_bytes is None else budget_bytes
    if value is None:
        return max(1, percent_of(DEFAULT_THRESHOLD_PERCENT, known_budget_bytes))
    if isinstance(value, str) and value.endswith("%"):
        percent = fields.read("threshold", parse_percent, None)
        return None if percent is None else max(1, percent_of(percent, known_budget_bytes))
    threshold_bytes = fields.read("threshold", _threshold_bytes, None)
    if threshold_bytes is not None and budget_bytes is not None and threshold_bytes > budget_bytes:
        given = fields.raw("budget")
        budget = f"{budget_bytes} bytes, the default" if given is None else shown(given)
        fields.fail("threshold", f"{shown(value)} is above the budget of {budget}: use at most that, or 1% to 100%")
        return None
    return threshold_bytes


def _threshold_bytes(value: object) -> int:
    try:
        threshold_bytes = parse_bytes(value)
    except QuantityError as error:
        raise QuantityError(f"{error}, or a percentage of the budget (80%)") from None
    if threshold_bytes < MIN_THRESHOLD_BYTES:
        text = f"{shown(value)} means bytes here, which is too low: at least {MIN_THRESHOLD_BYTES} bytes"
        raise QuantityError(f'{text}, or a percentage of the budget ("{threshold_bytes}%")')
    return threshold_bytes


def _period(value: object) -> int:
    period_s = parse_duration(value)
    if not MIN_PERIOD_S <= period_s <= MAX_PERIOD_S:
        allowed = f"{duration_text(MIN_PERIOD_S)} to {duration_text(MAX_PERIOD_S)} (366 days)"
        raise QuantityError(f"{shown(value)} is out of range: use {allowed}")
    return period_s


def _share(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and MIN_SHARE <= value <= MAX_SHARE:
        return value
    raise QuantityError(f"{shown(value)} is not a share: use a whole number from {MIN_SHARE} to {MAX_SHARE}")


def _class_object(status: ClassStatus) -> dict[str, Any]:
    body: dict[str, Any] = {
        "used": bytes_text(status.used_bytes),
        "bytesUsed": status.used_bytes,
        "peakPercent": status.peak_percent,
    }
    if status.capped_rate_bps is not None:
        body["cappedRate"] = rate_text(status.capped_rate_bps)
        body["cappedBitsPerSecond"] = status.capped_rate_bps
    return body


def _parse_class(values: Mapping[str, Any]) -> ClassStatus:
    capped_rate_bps = values.get("cappedBitsPerSecond")
    return ClassStatus(
        used_bytes=lenient_int(values.get("bytesUsed")),
        peak_percent=lenient_int(values.get("peakPercent")),
        capped_rate_bps=None if capped_rate_bps is None else lenient_int(capped_rate_bps),
    )


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    inner = value.get(name) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}
