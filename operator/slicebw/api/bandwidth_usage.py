"""BandwidthUsage: how much of its budget one slice has used on one node. Only that node's agent writes it.

It is a record and has no desired state: like NodeMetrics and EndpointSlice it has neither spec nor status, and its
fields are at the top level. Without a status subresource one server-side apply creates or updates the whole object.
Figures for people are beside the exact ones. Only the exact ones are read back.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

from slicebw.api import kinds
from slicebw.api.fields import FieldError, Fields, Metadata
from slicebw.api.quantity import QuantityError, parse_time, shown
from slicebw.core.dataplane import classid, leaf, slice_id_of
from slicebw.core.desired import SliceKey, TrafficClass
from slicebw.core.membership import PodProblem
from slicebw.core.reports import ClassUsage, UsageReport
from slicebw.core.text import bytes_text, rate_text, time_text

MAX_LISTED: Final = 20
"""Of problems, and of errors. With 100,000 pods in conflict the object would be too big for etcd, or for a person."""
_MAX_TEXT_LENGTH: Final = 1024

_MAX_COUNT: Final = (1 << 63) - 1
"""The largest integer of an API server. A file could have a larger one."""

_CLASSID: Final = re.compile(r"1:([0-9a-f]{4})")


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """One parsed BandwidthUsage: the report, its node, and its time in seconds since the epoch."""

    report: UsageReport
    node_name: str
    reported_at_s: int


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What the controller stores of a BandwidthUsage, with name and uid to delete it by.

    ``owned``: it has a Node as its owner, so that Kubernetes deletes it with the Node.
    """

    namespace: str
    name: str
    uid: str
    owned: bool
    usage: NodeUsage


def name(slice_name: str, node_name: str) -> str:
    """Return the name of the BandwidthUsage of a slice on a node: ``<slice>.<node>``, unique in its namespace.

    It ends in a digest of both names if it would be longer than 253 characters, or if the slice's name has a dot: else
    ``a.b`` on ``c`` and ``a`` on ``b.c`` would share a name. The full names are in the object's fields.
    """
    plain = f"{slice_name}.{node_name}"
    if "." not in slice_name and len(plain) <= kinds.MAX_NAME_LENGTH:
        return plain
    return kinds.marked(plain, kinds.digest(slice_name, node_name))


def to_object(report: UsageReport, node_name: str, node_uid: str | None, reported_at_s: int) -> dict[str, Any]:
    """Return the whole object, for one server-side apply. With a ``node_uid`` it is deleted with its Node."""
    slice_name = report.key.name
    metadata: dict[str, Any] = {
        "namespace": report.key.namespace,
        "name": name(slice_name, node_name),
        "labels": {
            kinds.LABEL_SLICE: kinds.label_value(slice_name),
            kinds.LABEL_NODE: kinds.label_value(node_name),
        },
    }
    if node_uid:
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": node_name, "uid": node_uid}]
    body: dict[str, Any] = {
        "apiVersion": kinds.API_VERSION,
        "kind": kinds.BANDWIDTH_USAGE.name,
        "metadata": metadata,
        "sliceName": slice_name,
        "nodeName": node_name,
        "observedGeneration": report.generation,
        "periodStart": time_text(report.period_start_s),
        "periodEnd": time_text(report.period_end_s),
        "reportedAt": time_text(reported_at_s),
    }
    for traffic_class in TrafficClass:
        body[traffic_class] = _class_object(report.of(traffic_class), traffic_class, report.slice_id)
    if report.problems:
        listed = report.problems
        if len(listed) > MAX_LISTED:  # conflicts first: the controller makes the condition Accepted from them
            listed = tuple(sorted(listed, key=lambda problem: not problem.is_conflict)[:MAX_LISTED])
        body["problems"] = [{"pod": problem.pod, "reason": problem.reason[:_MAX_TEXT_LENGTH]} for problem in listed]
    if report.not_enforced_reason:
        body["notEnforced"] = report.not_enforced_reason[:_MAX_TEXT_LENGTH]
    if report.errors:
        body["errors"] = [error[:_MAX_TEXT_LENGTH] for error in report.errors[:MAX_LISTED]]
    return body


def parse(obj: object) -> NodeUsage:
    """Parse a BandwidthUsage that :func:`to_object` has made. Raises FieldError, which names the wrong field."""
    metadata = Metadata(obj)
    errors: list[str] = []
    fields = Fields(obj, "", errors)
    try:
        standard = fields.inner("standard")
        report = UsageReport(
            key=SliceKey(_namespace(metadata), fields.must("sliceName", _name)),
            slice_id=0 if standard.raw("classId") is None else standard.must("classId", _slice_id),
            generation=fields.must("observedGeneration", _count),
            period_start_s=fields.must("periodStart", parse_time),
            period_end_s=fields.must("periodEnd", parse_time),
            standard=_parse_class(standard),
            exempt=_parse_class(fields.inner("exempt")),
            problems=tuple(_parse_problem(Fields(item, path, errors)) for path, item in fields.items("problems")),
            errors=tuple(item for _, item in fields.items("errors") if isinstance(item, str)),
            not_enforced_reason=fields.read("notEnforced", _text, "") or "",
        )
        usage = NodeUsage(report, fields.must("nodeName", _name), fields.must("reportedAt", parse_time))
        if errors:
            raise FieldError(errors[0])
    except FieldError as error:
        raise FieldError(f"BandwidthUsage {_shown(metadata.namespace)}/{_shown(metadata.name)}: {error}") from None
    return usage


def _namespace(metadata: Metadata) -> str:
    wrong = kinds.name_error(metadata.namespace)
    if wrong is not None:
        raise FieldError(f"metadata.namespace: {wrong}")
    return metadata.namespace


def _shown(name: str) -> str:
    """Return a legal name as it is, any other text in quotes and on one line."""
    return name if kinds.name_error(name) is None else shown(name)


def _class_object(usage: ClassUsage, traffic_class: TrafficClass, slice_id: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "used": bytes_text(usage.used_bytes),
        "bytesUsed": usage.used_bytes,
        "budget": bytes_text(usage.budget_bytes),
        "bytesBudget": usage.budget_bytes,
        "percent": usage.percent,
        "rate": rate_text(usage.rate_bps),
        "bitsPerSecond": usage.rate_bps,
        "capped": usage.capped,
        "bytesCounter": usage.counter_bytes,  # with it, an agent that lost its ledger counts on without a gap
    }
    if usage.capped_since_s is not None:
        body["cappedSince"] = time_text(usage.capped_since_s)
    if slice_id:
        body["classId"] = classid(leaf(traffic_class, slice_id))
    return body


def _parse_class(fields: Fields) -> ClassUsage:
    return ClassUsage(
        used_bytes=fields.must("bytesUsed", _count),
        budget_bytes=fields.must("bytesBudget", _count),
        percent=fields.must("percent", _count),
        rate_bps=fields.must("bitsPerSecond", _count),
        capped=fields.must("capped", _flag),
        capped_since_s=None if fields.raw("cappedSince") is None else fields.must("cappedSince", parse_time),
        counter_bytes=fields.must("bytesCounter", _count),
    )


def _parse_problem(fields: Fields) -> PodProblem:
    return PodProblem(pod=fields.must("pod", _text), reason=fields.must("reason", _text))


def _text(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise QuantityError(f"{shown(value)} must be a string")


def _name(value: object) -> str:
    """Check a name: names become parts of file names and URLs."""
    text = _text(value)
    wrong = kinds.name_error(text)
    if wrong is not None:
        raise QuantityError(wrong)
    return text


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise QuantityError(f"{shown(value)} must be true or false")


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise QuantityError(f"{shown(value)} must be a whole number, 0 or more")
    if value > _MAX_COUNT:
        raise QuantityError(f"{shown(value)} is too high: at most {_MAX_COUNT}")
    return value


def _slice_id(value: object) -> int:
    match = _CLASSID.fullmatch(value) if isinstance(value, str) else None
    slice_id = slice_id_of(int(match[1], 16)) if match is not None else None
    if slice_id is None:  # no classid, or that of an inner class
        raise QuantityError(f"{shown(value)} must be the classid of a slice (1:1001)")
    return slice_id
