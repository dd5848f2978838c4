"""NodeBandwidth: the settings of a node. Parses the spec; builds and parses the status.

The object named ``default`` applies to every node. One named after a node overrides it field by field
(:meth:`slicebw.core.desired.NodeSpec.over`). The status is always in the node's own object.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final

from msgspec.structs import replace

from slicebw.api import conditions, kinds
from slicebw.api.conditions import Condition
from slicebw.api.fields import Fields, Metadata, limited
from slicebw.api.quantity import QuantityError, parse_node_rate, parse_percent, parse_unclassified_rate, shown
from slicebw.core.desired import Mode, NodeSpec
from slicebw.core.reports import NodeReport
from slicebw.core.text import bytes_text, rate_text, time_text

READY: Final = "Ready"
FOREIGN_QDISC: Final = "ForeignQdisc"
GUARANTEES_OVERCOMMITTED: Final = "GuaranteesOvercommitted"

MAX_EXEMPT_DESTINATIONS: Final = 10_000
"""At 43 characters each they are well below etcd's limit of 1.5 MB an object."""

_ATTRIBUTES: Final = {
    "device": "device",
    "cap": "cap_bps",
    "lineRate": "line_rate_bps",
    "mode": "mode",
    "exemptDestinations": "exempt_destinations",
    "minRateShare": "min_rate_share_percent",
}
"""The spec's fields, and their names in :class:`slicebw.core.desired.NodeSpec`."""
_UNCLASSIFIED_ATTRIBUTES: Final = {
    "maxRate": "unclassified_max_bps",
    "exemptMaxRate": "unclassified_exempt_max_bps",
}
"""The fields in ``spec.unclassified``, and their names there."""
_SPEC_FIELDS: Final = (*_ATTRIBUTES, "unclassified")
_OBJECT_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_DEVICE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,14}")
_DESTINATION: Final = re.compile(r"[0-9A-Fa-f:.]{2,39}(?:/[0-9]{1,3})?")


def parse(obj: object) -> NodeSpec:
    """Parse a NodeBandwidth's spec. Never raises: a wrong field is left out and named in ``errors``.

    Of the exempt destinations only the wrong ones are left out. The others are in canonical form, without duplicates. A
    list that is too long is left out whole: part of it would be settings that nobody has chosen.
    Unknown fields are errors if no API server has pruned them (see :class:`slicebw.api.fields.Metadata`).
    """
    metadata = Metadata(obj)
    errors: list[str] = []
    top = Fields(obj, "", errors)
    spec = top.inner("spec")
    unclassified = spec.inner("unclassified")
    if not metadata.stored:
        top.refuse_unknown(_OBJECT_FIELDS)
        spec.refuse_unknown(_SPEC_FIELDS)
        unclassified.refuse_unknown(_UNCLASSIFIED_ATTRIBUTES)
    read = NodeSpec(
        device=spec.read("device", _device, None),
        cap_bps=spec.read("cap", parse_node_rate, None),
        line_rate_bps=spec.read("lineRate", parse_node_rate, None),
        mode=spec.read("mode", _mode, None),
        exempt_destinations=_exempt_destinations(spec),
        min_rate_share_percent=spec.read("minRateShare", parse_percent, None),
        unclassified_max_bps=unclassified.read("maxRate", parse_unclassified_rate, None),
        unclassified_exempt_max_bps=unclassified.read("exemptMaxRate", parse_unclassified_rate, None),
        generation=metadata.generation,
        errors=limited(errors),
    )
    given = [name for field, name in _ATTRIBUTES.items() if spec.raw(field) is not None]
    whole = isinstance(spec.raw("unclassified"), Mapping)
    for field, name in _UNCLASSIFIED_ATTRIBUTES.items() if spec.raw("unclassified") is not None else ():
        # An ``unclassified`` that is no object gives no rate: both are what they were last.
        if not whole or unclassified.raw(field) is not None:
            given.append(name)
    return replace(read, wrong=tuple(name for name in given if getattr(read, name) is None))


def node_object(node_name: str) -> dict[str, Any]:
    """Return the body of a server-side apply that creates a node's own object. It sets no field.

    A status can be applied only to an object that exists, so this comes before :func:`status_object`. The object gets
    no owner: a person may put settings into it, and they must outlive a Node that is registered again.
    """
    return {
        "apiVersion": kinds.API_VERSION,
        "kind": kinds.NODE_BANDWIDTH.name,
        "metadata": {"name": node_name},
    }


def status_object(
    node_name: str, report: NodeReport, reported_at_s: int, previous: Iterable[Condition] = ()
) -> dict[str, Any]:
    """Return the body of a server-side apply to the ``/status`` of the node's own object.

    ``previous`` are the conditions in the current status (:func:`parse_status`). A condition whose status has not
    changed keeps its time of transition.
    """
    current = conditions.carry_over(_conditions(report, reported_at_s), previous)
    return {
        **node_object(node_name),
        "status": {
            "observedGeneration": report.generation,
            "device": report.device,
            "mode": report.mode.value,
            "cap": rate_text(report.cap_bps),
            "capBitsPerSecond": report.cap_bps,
            "lineRate": rate_text(report.line_rate_bps),
            "lineRateBitsPerSecond": report.line_rate_bps,
            "unclassified": {
                "maxRate": rate_text(report.unclassified_max_bps),
                "maxBitsPerSecond": report.unclassified_max_bps,
                "exemptMaxRate": rate_text(report.unclassified_exempt_max_bps),
                "exemptMaxBitsPerSecond": report.unclassified_exempt_max_bps,
            },
            "slices": report.slices,
            "cappedSlices": report.capped_slices,
            # "root" is the name in v1alpha1 for traffic of the host itself.
            "rootSent": bytes_text(report.host_bytes),
            "bytesRoot": report.host_bytes,
            "defaultSent": bytes_text(report.default_bytes),
            "bytesDefault": report.default_bytes,
            "reportedAt": time_text(reported_at_s),
            "conditions": conditions.to_list(current),
        },
    }


def parse_status(obj: object) -> tuple[Condition, ...]:
    """Return the conditions in a NodeBandwidth's status; none if it has no status. Never raises."""
    status = obj.get("status") if isinstance(obj, Mapping) else None
    return conditions.parse_list(status.get("conditions")) if isinstance(status, Mapping) else ()


def _conditions(report: NodeReport, now_s: int) -> tuple[Condition, ...]:
    if report.foreign_qdisc is not None:
        found = f"{report.device} has a {report.foreign_qdisc} qdisc that is not slicebw's"
        foreign = (conditions.TRUE, "NotOurs", f"{found}: remove it, or name another device")
    else:
        foreign = (conditions.FALSE, "NoneFound", f"no other program's qdisc is in the way on {report.device}")
    if report.overcommitted is not None:
        overcommitted = (conditions.TRUE, "Overcommitted", report.overcommitted)
    else:
        overcommitted = (conditions.FALSE, "WithinCap", "the node can send all guaranteed rates at once")
    ready_reason = _READY_REASONS[report.mode] if report.ready else report.not_ready_reason
    ready = (conditions.TRUE if report.ready else conditions.FALSE, ready_reason, report.message)
    return tuple(
        Condition(type_, status, reason, message, now_s, report.generation)
        for type_, (status, reason, message) in (
            (READY, ready),
            (FOREIGN_QDISC, foreign),
            (GUARANTEES_OVERCOMMITTED, overcommitted),
        )
    )


_READY_REASONS: Final = {Mode.ENFORCE: "Enforcing", Mode.MONITOR: "Monitoring", Mode.DISABLED: "Disabled"}


def _exempt_destinations(spec: Fields) -> tuple[str, ...] | None:
    if spec.raw("exemptDestinations") is None:
        return None
    items = spec.items("exemptDestinations")
    if not isinstance(spec.raw("exemptDestinations"), list | tuple):
        return None
    if len(items) > MAX_EXEMPT_DESTINATIONS:
        usage = f"use at most {MAX_EXEMPT_DESTINATIONS}; the last good list stays in force"
        spec.fail("exemptDestinations", f"{len(items)} are too many: {usage}")
        return None
    destinations: dict[str, None] = {}
    # Not a set: the order stays that of the object, so that an equal spec gives an equal value.
    for index, (_, item) in enumerate(items):
        try:
            destinations[_destination(item)] = None
        except QuantityError as error:
            spec.fail(f"exemptDestinations[{index}]", str(error))
    return tuple(destinations)


def _destination(value: object) -> str:
    """Return a network, or a single address, of either family in canonical form. Raises QuantityError."""
    usage = "use a network or an address (192.0.2.0/24, 2001:db8::/32, 192.0.2.1)"
    if not isinstance(value, str) or not _DESTINATION.fullmatch(value):
        raise QuantityError(f"{shown(value)} is not a network: {usage}")
    try:
        network: IPv4Network | IPv6Network = ip_network(value, strict=False)
    except ValueError:
        raise QuantityError(f"{shown(value)} is not a network: {usage}") from None
    # A bit behind the prefix is more likely a slip in the prefix than meant, and it would exempt a whole network.
    if "/" in value and ip_network(value.split("/")[0]).network_address != network.network_address:
        raise QuantityError(f"{shown(value)} has bits set behind its prefix: did you mean {network}?")
    return str(network)


def _device(value: object) -> str:
    if isinstance(value, str) and _DEVICE.fullmatch(value):
        return value
    raise QuantityError(
        f"{shown(value)} is not a network device: use its name, up to 15 letters, digits, _ . @ + - (eth0)"
    )


def _mode(value: object) -> Mode:
    for mode in Mode:
        if value == mode.value:
            return mode
    raise QuantityError(f"{shown(value)} is not a mode: use {', '.join(Mode)}")
