"""What is desired of a node: slices with their limits, pods, and the node's settings.

Units are in the names: ``_bps`` is bit/s, ``_bytes`` is bytes, ``_s`` is whole seconds. All are exact integers.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace


class TrafficClass(StrEnum):
    """The two accounted classes of a slice (PlanetLab: low bandwidth and Internet2)."""

    STANDARD = "standard"
    EXEMPT = "exempt"


class Mode(StrEnum):
    """What an agent does on its node."""

    ENFORCE = "Enforce"
    MONITOR = "Monitor"
    DISABLED = "Disabled"


class SliceKey(Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """The identity of a slice: namespace and name of its SliceBandwidth.

    The uid is not part of it: a slice that is deleted and made again continues with its usage.
    """

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ClassLimits(Struct, frozen=True, gc=False):
    """Limits of one traffic class of one slice. No ``max_rate_bps``: the node cap, for exempt the line rate."""

    min_rate_bps: int
    max_rate_bps: int | None
    budget_bytes: int
    threshold_bytes: int
    share: int


class SliceLimits(Struct, frozen=True, gc=False):
    """All limits in the spec of a SliceBandwidth, with defaults filled in."""

    period_s: int
    standard: ClassLimits
    exempt: ClassLimits

    def of(self, traffic_class: TrafficClass) -> ClassLimits:
        """Return the limits of one of the two classes."""
        return self.standard if traffic_class is TrafficClass.STANDARD else self.exempt


DEFAULT_PERIOD_S: Final = 24 * 3600
DEFAULT_MIN_RATE_BPS: Final = 8
DEFAULT_SHARE: Final = 1
DEFAULT_THRESHOLD_PERCENT: Final = 80
DEFAULT_STANDARD_BUDGET_BYTES: Final = 10_800_000_000  # 1 Mbit/s for 24 h
DEFAULT_EXEMPT_BUDGET_BYTES: Final = 32_400_000_000  # 3 Mbit/s for 24 h


def percent_of(percent: int, whole: int) -> int:
    """Return ``percent`` of ``whole``, rounded down."""
    return whole * percent // 100


def _default_class(budget_bytes: int) -> ClassLimits:
    threshold = percent_of(DEFAULT_THRESHOLD_PERCENT, budget_bytes)
    return ClassLimits(DEFAULT_MIN_RATE_BPS, None, budget_bytes, threshold, DEFAULT_SHARE)


DEFAULT_LIMITS: Final = SliceLimits(
    period_s=DEFAULT_PERIOD_S,
    standard=_default_class(DEFAULT_STANDARD_BUDGET_BYTES),
    exempt=_default_class(DEFAULT_EXEMPT_BUDGET_BYTES),
)
"""The meaning of ``spec: {}``: PlanetLab's defaults."""


class SelectorOperator(StrEnum):
    """Kubernetes' label selector operators (meta/v1 LabelSelectorOperator)."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Requirement(Struct, frozen=True):
    """One requirement of a label selector; ``matchLabels`` entries are ``In`` with a single value."""

    key: str
    operator: SelectorOperator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels satisfy it. As in Kubernetes, ``NotIn`` also matches labels without the key."""
        match self.operator:
            case SelectorOperator.IN:
                return labels.get(self.key) in self.values
            case SelectorOperator.NOT_IN:
                return labels.get(self.key) not in self.values
            case SelectorOperator.EXISTS:
                return self.key in labels
            case SelectorOperator.DOES_NOT_EXIST:
                return self.key not in labels


class Selector(Struct, frozen=True):
    """A label selector. All requirements must match; a selector without requirements matches every pod."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether it selects a pod with these labels."""
        return all(requirement.matches(labels) for requirement in self.requirements)


class SliceSpec(Struct, frozen=True):
    """A SliceBandwidth as read. An invalid ``selector`` or invalid ``limits`` are None, and ``errors`` says why."""

    key: SliceKey
    uid: str
    generation: int
    created_s: int
    selector: Selector | None
    limits: SliceLimits | None
    errors: tuple[str, ...] = ()


class Pod(Struct, frozen=True):
    """The part of a pod that slicebw needs. ``addresses`` are canonical texts of IPv4 and IPv6 addresses."""

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    addresses: tuple[str, ...]
    host_network: bool
    finished: bool
    """Succeeded or Failed: it sends no more, and its addresses may be reused."""
    created_s: int
    deleting: bool = False

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


_T = TypeVar("_T")


def _pick(own: _T | None, other: _T | None) -> _T | None:
    return other if own is None else own


class NodeSpec(Struct, frozen=True):
    """The spec of one NodeBandwidth as read. Fields not given or invalid are None; ``errors`` names the latter.

    ``wrong`` holds the names of the attributes that are None because the value given is invalid.
    """

    device: str | None = None
    cap_bps: int | None = None
    line_rate_bps: int | None = None
    mode: Mode | None = None
    exempt_destinations: tuple[str, ...] | None = None
    min_rate_share_percent: int | None = None
    generation: int = 0
    errors: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    unclassified_max_bps: int | None = None
    unclassified_exempt_max_bps: int | None = None

    def over(self, default: "NodeSpec") -> "NodeSpec":
        """Return this spec with fields from ``default`` where it has none."""
        return NodeSpec(
            device=_pick(self.device, default.device),
            cap_bps=_pick(self.cap_bps, default.cap_bps),
            line_rate_bps=_pick(self.line_rate_bps, default.line_rate_bps),
            mode=_pick(self.mode, default.mode),
            exempt_destinations=_pick(self.exempt_destinations, default.exempt_destinations),
            min_rate_share_percent=_pick(self.min_rate_share_percent, default.min_rate_share_percent),
            generation=self.generation,
            errors=default.errors + self.errors,
            wrong=self.wrong + tuple(name for name in default.wrong if getattr(self, name) is None),
            unclassified_max_bps=_pick(self.unclassified_max_bps, default.unclassified_max_bps),
            unclassified_exempt_max_bps=_pick(self.unclassified_exempt_max_bps, default.unclassified_exempt_max_bps),
        )

    def with_last_good(self, before: "NodeSpec") -> "NodeSpec":
        """Return this spec with the last good values of its wrong fields: a typing error must not lift the cap."""
        kept = {name: getattr(before, name) for name in self.wrong if getattr(before, name) is not None}
        return replace(self, **kept) if kept else self


class DesiredState(Struct, frozen=True):
    """Everything that a feed knows at one moment. ``node`` is the node's own spec, completed from the default one.

    ``synced`` is true after the first complete list of slices, pods and node settings. Nothing is deleted before.
    """

    slices: tuple[SliceSpec, ...] = ()
    pods: tuple[Pod, ...] = ()
    node: NodeSpec = NodeSpec()
    synced: bool = False


DEFAULT_LINE_RATE_BPS: Final = 10_000_000_000
"""The line rate if neither NodeBandwidth nor the device gives one."""

DEFAULT_MIN_RATE_SHARE_PERCENT: Final = 25


class NodeSettings(Struct, frozen=True):
    """Complete settings of one node; ``cap_bps`` never exceeds ``line_rate_bps``.

    ``unclassified_max_bps`` never exceeds ``cap_bps``, nor ``unclassified_exempt_max_bps`` the line rate.
    """

    mode: Mode
    cap_bps: int
    line_rate_bps: int
    exempt_destinations: frozenset[str]
    min_rate_share_percent: int
    unclassified_max_bps: int
    unclassified_exempt_max_bps: int


def settle(spec: NodeSpec, device_rate_bps: int | None) -> NodeSettings:
    """Complete the settings of a node: the line rate comes from the device, the cap from the line rate."""
    line_rate_bps = spec.line_rate_bps or device_rate_bps or DEFAULT_LINE_RATE_BPS
    cap_bps = min(spec.cap_bps or line_rate_bps, line_rate_bps)
    share = spec.min_rate_share_percent
    return NodeSettings(
        mode=spec.mode or Mode.ENFORCE,
        cap_bps=cap_bps,
        line_rate_bps=line_rate_bps,
        exempt_destinations=collapse(spec.exempt_destinations or ()),
        min_rate_share_percent=DEFAULT_MIN_RATE_SHARE_PERCENT if share is None else share,
        unclassified_max_bps=min(spec.unclassified_max_bps or cap_bps, cap_bps),
        unclassified_exempt_max_bps=min(spec.unclassified_exempt_max_bps or line_rate_bps, line_rate_bps),
    )


def collapse(networks: Iterable[str]) -> frozenset[str]:
    """Merge overlapping and adjacent networks, as nftables' interval sets hold them."""
    v4: list[IPv4Network] = []
    v6: list[IPv6Network] = []
    for network in map(ip_network, networks):
        if isinstance(network, IPv4Network):
            v4.append(network)
        else:
            v6.append(network)
    return frozenset(map(str, [*collapse_addresses(v4), *collapse_addresses(v6)]))
