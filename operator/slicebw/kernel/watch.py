"""Watches for changes that other programs make to slicebw's tree or table, so that drift is repaired at once.

The kernel notifies the members of a multicast group of every change, with the netlink address (port id) of the socket
that requested it. By that address our own changes are ignored: otherwise every pass that changes something would be
followed by another one at once, endlessly on a node where a cap moves from pass to pass. Reading a root qdisc causes a
notification too, also with our address (net/sched/sch_api.c, qdisc_get_notify).
"""

import errno
import logging
import os
import select
import struct
import threading
from collections.abc import Callable, Collection
from typing import Final

from slicebw.kernel.netlink import HEADER, NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket, attributes, text

log = logging.getLogger(__name__)

Concerns = Callable[[memoryview], bool]
"""Tells whether a message, header included, is about a change that another program made to something of ours."""

_RTNLGRP_LINK: Final = 1
_RTNLGRP_TC: Final = 4
_RTNLGRP_IPV4_ROUTE: Final = 7
_RTNLGRP_IPV6_ROUTE: Final = 11
_NFNLGRP_NFTABLES: Final = 7

_LINK_TYPES: Final = frozenset({16, 17})  # RTM_NEWLINK, RTM_DELLINK
_ROUTE_TYPES: Final = frozenset({24, 25})  # RTM_NEWROUTE, RTM_DELROUTE
_TC_TYPES: Final = frozenset({36, 37, 40, 41})  # RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTCLASS, RTM_DELTCLASS
_IFINDEX_OFFSET: Final = HEADER.size + 4  # the same in struct tcmsg and struct ifinfomsg
_DESTINATION_BITS_OFFSET: Final = HEADER.size + 1  # in struct rtmsg

_NFNL_SUBSYS_NFTABLES: Final = 10
_NFT_MSG_NEWGEN: Final = 15
_NFGENMSG_BYTES: Final = 4
_NFTA_TABLE: Final = 1  # the table's name, in messages about tables, chains, rules, sets and elements alike


class Watcher:
    """A thread that receives notifications, and calls ``wake`` for those that concern us.

    The socket is opened by the constructor, so it is in the calling thread's network namespace. The constructor raises
    KernelError if the groups cannot be joined.
    """

    def __init__(self, protocol: int, groups: Collection[int], concerns: Concerns, wake: Callable[[], None]) -> None:
        self._netlink = NetlinkSocket(protocol, tuple(groups))
        self._concerns = concerns
        self._wake = wake
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and wait until it has ended. Must not be called from ``wake``."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._netlink.close()
        os.close(self._stop)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._netlink.fileno(), select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._stop in ready:
                return
            try:
                datagram = memoryview(self._netlink.receive())
            except TimeoutError:
                continue  # a spurious wakeup of poll()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    log.error("no notifications any more, drift is found at the next pass: %s", error.strerror)
                    return
                self._wake()  # notifications were lost, so anything may have changed
                continue
            if any(self._concerns(message) for message in _messages(datagram)):
                self._wake()


def _messages(datagram: memoryview) -> list[memoryview]:
    found = []
    position = 0
    while position + HEADER.size <= len(datagram):
        (length,) = struct.unpack_from("=I", datagram, position)
        if length < HEADER.size:
            break
        found.append(datagram[position : position + length])
        position += (length + 3) & ~3
    return found


def watch_tree(own_ports: Collection[int], ifindex: Callable[[], int | None], wake: Callable[[], None]) -> Watcher:
    """Wake on other programs' changes to a device, its qdiscs and classes, and to default routes.

    Args:
        own_ports: netlink addresses of our sockets, whose changes are ignored; read at each notification.
        ifindex: returns the device's number, or None while it is not known: then every device counts.
        wake: called from the watcher's thread.
    """

    def concerns(message: memoryview) -> bool:
        _, kind, _, _, port = HEADER.unpack_from(message)
        if port in own_ports:
            return False
        if kind in _ROUTE_TYPES:
            return message[_DESTINATION_BITS_OFFSET] == 0  # a default route: it may have moved to another device
        if kind in _TC_TYPES or kind in _LINK_TYPES:
            return ifindex() in (None, struct.unpack_from("=i", message, _IFINDEX_OFFSET)[0])
        return False

    groups = (_RTNLGRP_LINK, _RTNLGRP_TC, _RTNLGRP_IPV4_ROUTE, _RTNLGRP_IPV6_ROUTE)
    return Watcher(NETLINK_ROUTE, groups, concerns, wake)


def watch_table(table: str, own_ports: Collection[int], wake: Callable[[], None]) -> Watcher:
    """Wake on other programs' changes to an nftables table of this name, of any family.

    Args:
        table: the table's name.
        own_ports: netlink addresses of our nft processes, whose changes are ignored. Such an address is the process id,
            or another number if that is taken: then a change of our own wakes us once for nothing.
        wake: called from the watcher's thread.
    """

    def concerns(message: memoryview) -> bool:
        _, kind, _, _, port = HEADER.unpack_from(message)
        # NEWGEN announces every transaction, of any table, so it says nothing.
        if port in own_ports or kind >> 8 != _NFNL_SUBSYS_NFTABLES or kind & 0xFF == _NFT_MSG_NEWGEN:
            return False
        names = attributes(message, HEADER.size + _NFGENMSG_BYTES, len(message))
        return any(number == _NFTA_TABLE and text(message[begin:end]) == table for number, begin, end in names)

    return Watcher(NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,), concerns, wake)
