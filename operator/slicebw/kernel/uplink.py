"""The node's uplink: the device named, or the one that carries the default route, and what it can carry.

Everything is asked over netlink and one ioctl, never read from sysfs: a mounted /sys shows the network
namespace of whoever mounted it, not ours.
"""

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from slicebw.core.errors import KernelError, UplinkError
from slicebw.kernel.netlink import NetlinkSocket, RefusedError, TornDumpError, attribute, attributes, text

_RTM_GETLINK: Final = 18
_RTM_GETROUTE: Final = 26

_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFLA_IFNAME: Final = 3
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_IFLA_EXT_MASK: Final = 29
_RTEXT_FILTER_SKIP_STATS: Final = 8
_IFF_UP: Final = 0x1
_IFF_LOWER_UP: Final = 0x10000

_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_RTA_OIF: Final = 4
_RTA_PRIORITY: Final = 6
_RTA_MULTIPATH: Final = 9
_RTA_TABLE: Final = 15
_RTNEXTHOP: Final = struct.Struct("=HBBi")
_RT_TABLE_MAIN: Final = 254
_RTN_UNICAST: Final = 1
_RTNH_F_DEAD: Final = 1

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GLINKSETTINGS: Final = 0x4C
_LINK_SETTINGS: Final = struct.Struct("=IIBBBBBBBbBBBB7I")
"""struct ethtool_link_settings up to its link mode masks (include/uapi/linux/ethtool.h)."""
_MAX_MASK_BYTES: Final = 3 * 4 * 127
_SPEED_UNKNOWN: Final = 0xFFFFFFFF
_MADE_UP_SPEED_KINDS: Final = frozenset({"tun"})
"""Kinds of device that report a speed nobody measured or negotiated: tun says 10 Mbit/s, whatever is under it."""

_DUMP_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. ``up`` means switched on and with a carrier; ``kind`` is "" for hardware."""

    name: str
    ifindex: int
    up: bool
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Uplink:
    """The uplink found. ``line_rate_bps`` is None where the device does not say (virtio, tunnels, no carrier)."""

    name: str
    ifindex: int
    line_rate_bps: int | None
    up: bool


def find_uplink(netlink: NetlinkSocket, device: str | None) -> Uplink:
    """The device named, or where None the one of the default route (:func:`default_route_ifindex`).

    Raises UplinkError, in one line that lists the devices there are; KernelError.
    """
    link = find_link(netlink, device)
    return Uplink(link.name, link.ifindex, line_rate_bps(link), link.up)


def find_link(netlink: NetlinkSocket, device: str | None) -> Link:
    """Like :func:`find_uplink`, without asking the driver for its speed."""
    if device is not None:
        found = _link(netlink, 0, attribute(_IFLA_IFNAME, device.encode()[:15] + b"\0"))
        if found is None or found.name != device:
            raise UplinkError(f"there is no device named {device}; there are {_names(netlink)}")
        return found
    ifindex = default_route_ifindex(netlink)
    found = None if ifindex is None else _link(netlink, ifindex, b"")
    if found is None:
        raise UplinkError(
            f"no default route in the main table, IPv4 or IPv6: name the uplink; there are {_names(netlink)}"
        )
    return found


def default_route_ifindex(netlink: NetlinkSocket) -> int | None:
    """The device of the IPv4 default route with the lowest metric, else of the IPv6 one; None where there is none.

    Only the main routing table counts, and only unicast routes to 0.0.0.0/0 or ::/0. Of a multipath (ECMP) route
    it is the first next hop that is not dead: slicebw shapes one device, so on a node with several uplinks in use
    at once the others go unshaped, and the device should be named instead.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        routes = sorted(_default_routes(netlink, family), key=lambda route: route[0])
        if routes:
            return routes[0][1]
    return None


def _default_routes(netlink: NetlinkSocket, family: int) -> Iterator[tuple[int, int]]:
    """(metric, device number) of each default route, in the kernel's order."""
    request = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    for route in _dump(netlink, _RTM_GETROUTE, request, "listing routes"):
        answered, destination_bits, _, _, table, _, _, kind, flags = _RTMSG.unpack_from(route)
        if answered != family or destination_bits != 0 or kind != _RTN_UNICAST or flags & _RTNH_F_DEAD:
            continue
        found = _next_hop(route, table)
        if found is not None:
            yield found


def _next_hop(route: bytes, table: int) -> tuple[int, int] | None:
    metric = 0
    ifindex = None
    for kind, begin, end in attributes(route, _RTMSG.size, len(route)):
        if kind == _RTA_MULTIPATH:
            ifindex = _first_of_multipath(route, begin, end)
        elif kind in (_RTA_OIF, _RTA_PRIORITY, _RTA_TABLE):
            (number,) = struct.unpack_from("=I", route, begin)
            if kind == _RTA_OIF:
                ifindex = number
            elif kind == _RTA_PRIORITY:
                metric = number
            else:
                table = number
    return (metric, ifindex) if table == _RT_TABLE_MAIN and ifindex is not None else None


def _first_of_multipath(route: bytes, start: int, end: int) -> int | None:
    while start + _RTNEXTHOP.size <= end:
        length, flags, _, ifindex = _RTNEXTHOP.unpack_from(route, start)
        if not flags & _RTNH_F_DEAD:
            return int(ifindex)
        start += (max(length, _RTNEXTHOP.size) + 3) & ~3
    return None


def _link(netlink: NetlinkSocket, ifindex: int, extra: bytes) -> Link | None:
    request = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0) + extra
    request += attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    try:
        answer = netlink.get(_RTM_GETLINK, request, "looking up the uplink")
    except RefusedError as error:
        if error.refusal.errno in (errno.ENODEV, errno.EINVAL):
            return None
        raise
    return None if answer is None else _decode_link(answer)


def _decode_link(answer: bytes | memoryview) -> Link:
    _, _, ifindex, flags, _ = _IFINFOMSG.unpack_from(answer)
    name = kind_name = ""
    for kind, begin, end in attributes(answer, _IFINFOMSG.size, len(answer)):
        if kind == _IFLA_IFNAME:
            name = text(answer[begin:end])
        elif kind == _IFLA_LINKINFO:
            for inner, inner_begin, inner_end in attributes(answer, begin, end):
                if inner == _IFLA_INFO_KIND:
                    kind_name = text(answer[inner_begin:inner_end])
    up = flags & (_IFF_UP | _IFF_LOWER_UP) == _IFF_UP | _IFF_LOWER_UP
    return Link(name, ifindex, up, kind_name)


def _names(netlink: NetlinkSocket) -> str:
    request = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    request += attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    links = [_decode_link(answer) for answer in _dump(netlink, _RTM_GETLINK, request, "listing devices")]
    return ", ".join(link.name for link in links)


def _dump(netlink: NetlinkSocket, kind: int, request: bytes, what: str) -> list[bytes]:
    for _ in range(_DUMP_ATTEMPTS):
        try:
            return netlink.dump(kind, request, what)
        except TornDumpError:
            netlink.reopen()
    raise KernelError(f"{what}: what is there kept changing during {_DUMP_ATTEMPTS} attempts")


def line_rate_bps(link: Link) -> int | None:
    """What a device says it can carry, in bit/s, or None where it does not say.

    ETHTOOL_GLINKSETTINGS is called twice, as its handshake wants: the kernel first answers how long its link mode
    masks are (a negative count), then fills them in. The calling thread must stand in the device's namespace.
    """
    if link.kind in _MADE_UP_SPEED_KINDS:
        return None
    settings = ctypes.create_string_buffer(_LINK_SETTINGS.size + _MAX_MASK_BYTES)
    request = struct.pack("16sP16x", link.name.encode(), ctypes.addressof(settings))
    words = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _ in range(2):
            _LINK_SETTINGS.pack_into(
                settings, 0, _ETHTOOL_GLINKSETTINGS, 0, 0, 0, 0, 0, 0, 0, 0, words, 0, 0, 0, 0, *(0,) * 7
            )
            try:
                fcntl.ioctl(control, _SIOCETHTOOL, request)
            except OSError:  # no such operation: loopback, dummies, many tunnels
                return None
            words = -_LINK_SETTINGS.unpack_from(settings)[9]
    megabits = int(_LINK_SETTINGS.unpack_from(settings)[1])
    return None if megabits in (0, _SPEED_UNKNOWN) else megabits * 1_000_000
