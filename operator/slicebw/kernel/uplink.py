"""Finds the node's uplink (the named device, or that of the default route), and reads its speed.

Everything is read over netlink (pyroute2), not from sysfs: a mounted /sys shows the network namespace of the process
that mounted it, not ours.
"""

import errno
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyroute2 import Ethtool, IPRoute
from pyroute2.ethtool.ioctl import NotSupportedError
from pyroute2.netlink.exceptions import NetlinkError

from slicebw.core.errors import KernelError, UplinkError

_RT_TABLE_MAIN: Final = 254
_RTN_UNICAST: Final = 1
_RTNH_F_DEAD: Final = 1
_RTEXT_FILTER_SKIP_STATS: Final = 8
_SO_NETNS_COOKIE: Final = 71
_NO_SUCH_DEVICE: Final = frozenset({errno.ENODEV, errno.EINVAL, errno.ERANGE})
"""The kernel's answers if there is no device of a name, or the name is invalid."""
_MADE_UP_SPEED_KINDS: Final = frozenset({"tun"})
"""Kinds of device whose reported speed means nothing: tun reports 10 Mbit/s, whatever is below it."""


@dataclass(frozen=True, slots=True)
class Link:
    """A network device; ``kind`` is "" for hardware.

    ``tx_queues`` is how many transmit queues it was made with; its driver may use fewer of them.
    """

    name: str
    ifindex: int
    kind: str = ""
    tx_queues: int = 1


class Links:
    """Reads devices and routes, in the network namespace of the thread that uses it first; for that thread only."""

    def __init__(self) -> None:
        self._route: IPRoute | None = None
        self._ethtool: Ethtool | None = None
        self._last: Link | None = None
        self._namespace: int | None = None

    def find(self, device: str | int | None) -> Link:
        """Return a device, as :meth:`lookup` does. Raises UplinkError, whose text lists the devices there are.

        Raises KernelError.
        """
        found = self.lookup(device)
        if found is not None:
            return found
        if device is None:
            missing = "no default route in the main table, IPv4 or IPv6: name the uplink"
        else:
            missing = f"there is no device {'named' if isinstance(device, str) else 'with number'} {device}"
        raise UplinkError(f"{missing}; there are {self._names()}")

    def lookup(self, device: str | int | None) -> Link | None:
        """Return the device with a name or number; None: that of the default route (:meth:`default_route_ifindex`).

        Returns None if there is no such device. Raises KernelError.
        """
        if isinstance(device, str):
            last = self._last
            if last is not None and last.name == device and _name(last.ifindex) == device:
                return last
            found = self._get(ifname=device)
            self._last = found if found is not None and found.name == device else None  # else it is another's altname
            return self._last
        ifindex = self.default_route_ifindex() if device is None else device
        if ifindex is None:
            return None
        if self._last is None or self._last.ifindex != ifindex or _name(ifindex) != self._last.name:
            self._last = self._get(index=ifindex)
        return self._last

    def namespace(self) -> int:
        """Return a number that no other network namespace of this boot has or had (SO_NETNS_COOKIE).

        Kernels before 5.14 have none: there it is the namespace's inode, which a later namespace may get again.
        """
        if self._namespace is None:
            with socket.socket(socket.AF_UNIX) as any_socket:
                try:
                    cookie = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
                    self._namespace = int.from_bytes(cookie, sys.byteorder)
                except OSError:
                    self._namespace = Path("/proc/thread-self/ns/net").stat().st_ino
        return self._namespace

    def all(self) -> list[Link]:
        """Return every device of the namespace. Raises KernelError."""
        try:
            return [_link(message) for message in self._netlink().get_links()]
        except NetlinkError as error:
            raise KernelError(f"listing devices: {error}") from error

    def default_route_ifindex(self) -> int | None:
        """Return the device of the IPv4 default route with the lowest metric, else of the IPv6 one; None without any.

        Only the main routing table counts, and only unicast routes to 0.0.0.0/0 or ::/0. Of a multipath (ECMP) route
        the first next hop that is not dead counts. slicebw shapes one device: on a node that uses several uplinks at
        once the others are not shaped, and the device should be named instead.
        """
        for family in (socket.AF_INET, socket.AF_INET6):
            routes = sorted(self._default_routes(family), key=lambda route: route[0])
            if routes:
                return routes[0][1]
        return None

    def line_rate_bps(self, link: Link) -> int | None:
        """Return the speed that a device reports, in bit/s; None if it reports none (virtio, tunnels, no carrier)."""
        if link.kind in _MADE_UP_SPEED_KINDS:
            return None
        if self._ethtool is None:
            self._ethtool = Ethtool()
        try:
            megabits = self._ethtool.get_link_mode(link.name).speed
        except (NotSupportedError, NetlinkError, OSError):  # loopback, dummies, many tunnels
            return None
        return megabits * 1_000_000 if megabits else None

    def close(self) -> None:
        """Close the sockets."""
        for opened in (self._route, self._ethtool):
            if opened is not None:
                opened.close()
        self._route = self._ethtool = None

    def _netlink(self) -> IPRoute:
        if self._route is None:
            self._route = IPRoute()
        return self._route

    def _get(self, **which: str | int) -> Link | None:
        try:
            answer = self._netlink().link("get", ext_mask=_RTEXT_FILTER_SKIP_STATS, **which)
        except NetlinkError as error:
            if error.code in _NO_SUCH_DEVICE:
                return None
            raise KernelError(f"looking up the uplink: {error}") from error
        return _link(answer[0]) if answer else None

    def _names(self) -> str:
        return ", ".join(link.name for link in self.all())

    def _default_routes(self, family: int) -> Iterator[tuple[int, int]]:
        """Yield (metric, device number) of each default route, in the kernel's order."""
        try:
            routes = list(self._netlink().get_default_routes(family=family))
        except NetlinkError as error:
            raise KernelError(f"listing routes: {error}") from error
        for route in routes:
            ifindex = _next_hop(route)
            if route.get("table") != _RT_TABLE_MAIN:
                continue
            if route["type"] == _RTN_UNICAST and not route["flags"] & _RTNH_F_DEAD and ifindex is not None:
                yield route.get("priority") or 0, ifindex


def _name(ifindex: int) -> str | None:
    """Return the present name of a device. This takes a hundredth of the time of reading the whole device."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return None


def _next_hop(route: Any) -> int | None:
    """Return the device of a route's next hop; of several, the first that is not dead."""
    hops = route.get("multipath") or ()
    living = (hop["oif"] for hop in hops if not hop["flags"] & _RTNH_F_DEAD)
    found: int | None = next(living, None) if hops else route.get("oif")
    return found


def _link(message: Any) -> Link:
    kind = message.get(("linkinfo", "kind")) or ""
    return Link(message.get("ifname"), message["index"], kind, message.get("num_tx_queues") or 1)
