"""NodeBandwidth: how an agent treats its node. Parses the spec; builds and reads back the status.

The object named ``default`` applies to every node, one named after a node overrides it field by field
(:meth:`slicebw.core.desired.NodeSpec.over`). The status is always on the node's own object.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final

from msgspec.structs import replace

from slicebw.api import conditions, kinds
from slicebw.api.conditions import Condition
from slicebw.api.fields import Fields, Metadata, limited
from slicebw.api.quantity import QuantityError, parse_node_rate, parse_percent, shown
from slicebw.core.desired import Mode, NodeSpec
from slicebw.core.reports import NodeReport
from slicebw.core.text import bytes_text, rate_text, time_text

READY: Final = "Ready"
FOREIGN_QDISC: Final = "ForeignQdisc"
GUARANTEES_OVERCOMMITTED: Final = "GuaranteesOvercommitted"

MAX_EXEMPT_DESTINATIONS: Final = 10_000
"""At 43 characters each that is well below the 1.5 MB that etcd takes in one object."""

_ATTRIBUTES: Final = {
    "device": "device",
    "cap": "cap_bps",
    "lineRate": "line_rate_bps",
    "mode": "mode",
    "exemptDestinations": "exempt_destinations",
    "minRateShare": "min_rate_share_percent",
}
"""The spec's fields, and what they are called in :class:`slicebw.core.desired.NodeSpec`."""
_OBJECT_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_DEVICE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,14}")
_DESTINATION: Final = re.compile(r"[0-9A-Fa-f:.]{2,39}(?:/[0-9]{1,3})?")


def parse(obj: object) -> NodeSpec:
    """A NodeBandwidth's spec as read. Never raises: a wrong field is left out and named in ``errors``; others hold.

    Of the exempt destinations only the wrong ones are left out; the others come in canonical form, each once.
    Unknown fields are errors where no API server has pruned them (see :class:`slicebw.api.fields.Metadata`).
    """
    metadata = Metadata(obj)
    errors: list[str] = []
    top = Fields(obj, "", errors)
    spec = top.inner("spec")
    if not metadata.stored:
        top.refuse_unknown(_OBJECT_FIELDS)
        spec.refuse_unknown(_ATTRIBUTES)
    read = NodeSpec(
        device=spec.read("device", _device, None),
        cap_bps=spec.read("cap", parse_node_rate, None),
        line_rate_bps=spec.read("lineRate", parse_node_rate, None),
        mode=spec.read("mode", _mode, None),
        exempt_destinations=_exempt_destinations(spec),
        min_rate_share_percent=spec.read("minRateShare", parse_percent, None),
        generation=metadata.generation,
        errors=limited(errors),
    )
    given = [name for field, name in _ATTRIBUTES.items() if spec.raw(field) is not None]
    return replace(read, wrong=tuple(name for name in given if getattr(read, name) is None))


def node_object(node_name: str) -> dict[str, Any]:
    """The body for the server-side apply that makes a node's own object where it is missing; it sets no field.

    It goes before :func:`status_object`, for a status cannot be applied to what does not exist. It names no owner:
    the object may be a person's, whose settings must not vanish with a Node that is re-registered.
    """
    return {
        "apiVersion": kinds.API_VERSION,
        "kind": kinds.NODE_BANDWIDTH.name,
        "metadata": {"name": node_name},
    }


def status_object(
    node_name: str, report: NodeReport, reported_at_s: int, previous: Iterable[Condition] = ()
) -> dict[str, Any]:
    """The body for server-side apply to the ``/status`` of the node's own object.

    ``previous`` are the conditions as they stand there (:func:`parse_status`), whose times of transition are kept
    where their status has not changed.
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
            "slices": report.slices,
            "cappedSlices": report.capped_slices,
            "rootSent": bytes_text(report.host_bytes),
            "bytesRoot": report.host_bytes,
            "defaultSent": bytes_text(report.default_bytes),
            "bytesDefault": report.default_bytes,
            "reportedAt": time_text(reported_at_s),
            "conditions": conditions.to_list(current),
        },
    }


def parse_status(obj: object) -> tuple[Condition, ...]:
    """The conditions in a NodeBandwidth's status, read leniently; none where it has no status."""
    status = obj.get("status") if isinstance(obj, Mapping) else None
    return conditions.parse_list(status.get("conditions")) if isinstance(status, Mapping) else ()


def _conditions(report: NodeReport, now_s: int) -> tuple[Condition, ...]:
    if report.foreign_qdisc is not None:
        blame = f"{report.device} has a {report.foreign_qdisc} qdisc that is not slicebw's"
        foreign = (conditions.TRUE, "NotOurs", f"{blame}: remove it, or name another device")
    else:
        foreign = (conditions.FALSE, "NoneFound", f"nobody else's qdisc is in the way on {report.device}")
    if report.overcommitted is not None:
        overcommitted = (conditions.TRUE, "Overcommitted", report.overcommitted)
    else:
        overcommitted = (conditions.FALSE, "WithinCap", "the node can give all its guarantees at once")
    ready_reason = _READY_REASONS[report.mode] if report.ready else "NotReady"
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
        spec.fail("exemptDestinations", f"{len(items)} are too many: at most {MAX_EXEMPT_DESTINATIONS} hold")
    destinations: dict[str, None] = {}
    for index, (_, item) in enumerate(items[:MAX_EXEMPT_DESTINATIONS]):
        try:
            destinations[_destination(item)] = None
        except QuantityError as error:
            spec.fail(f"exemptDestinations[{index}]", str(error))
    return tuple(destinations)


def _destination(value: object) -> str:
    """The canonical text of a network or a single address of either family."""
    usage = "use a network or an address (192.0.2.0/24, 2001:db8::/32, 192.0.2.1)"
    if not isinstance(value, str) or not _DESTINATION.fullmatch(value):
        raise QuantityError(f"{shown(value)} is not a network: {usage}")
    try:
        network: IPv4Network | IPv6Network = ip_network(value, strict=False)
    except ValueError:
        raise QuantityError(f"{shown(value)} is not a network: {usage}") from None
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
