"""What holds for a node once NodeBandwidth, the device and the defaults are put together."""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Final

from msgspec import Struct

from slicebw.core.model import Mode, NodeSpec

DEFAULT_LINE_RATE_BPS: Final = 10_000_000_000
"""Where neither NodeBandwidth nor the device says what the uplink can carry."""

DEFAULT_MIN_RATE_SHARE_PERCENT: Final = 25


class NodeSettings(Struct, frozen=True):
    """Complete settings of one node; ``cap_bps`` never exceeds ``line_rate_bps``."""

    mode: Mode
    cap_bps: int
    line_rate_bps: int
    exempt_destinations: frozenset[str]
    min_rate_share_percent: int


def settle(spec: NodeSpec, device_rate_bps: int | None) -> NodeSettings:
    """Fill in what a NodeBandwidth leaves open: line rate from the device, cap from the line rate."""
    line_rate_bps = spec.line_rate_bps or device_rate_bps or DEFAULT_LINE_RATE_BPS
    share = spec.min_rate_share_percent
    return NodeSettings(
        mode=spec.mode or Mode.ENFORCE,
        cap_bps=min(spec.cap_bps or line_rate_bps, line_rate_bps),
        line_rate_bps=line_rate_bps,
        exempt_destinations=collapse(spec.exempt_destinations or ()),
        min_rate_share_percent=DEFAULT_MIN_RATE_SHARE_PERCENT if share is None else share,
    )


def collapse(networks: Iterable[str]) -> frozenset[str]:
    """The same destinations as the fewest networks: overlapping ones are merged, as an interval set holds them."""
    v4: list[IPv4Network] = []
    v6: list[IPv6Network] = []
    for network in map(ip_network, networks):
        if isinstance(network, IPv4Network):
            v4.append(network)
        else:
            v6.append(network)
    return frozenset(map(str, [*collapse_addresses(v4), *collapse_addresses(v6)]))
