"""A netlink socket as small as slicebw needs: requests, dumps, and batches whose every refusal is known.

Raw on purpose. A dump that the kernel marks as interrupted must be noticed (pyroute2 0.9 does not), a dump of
8,000 classes must cost little more than receiving it, and a batch must name each message that failed.
Sources: include/uapi/linux/netlink.h, net/netlink/af_netlink.c, Documentation/userspace-api/netlink/intro.rst.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from slicebw.core.errors import KernelError

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_ECHO: Final = 0x8
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

FIRST_OBJECT_TYPE: Final = 0x10
"""Message types below this one are netlink's own (NLMSG_MIN_TYPE)."""
_NLMSG_NOOP: Final = 0x1
_NLMSG_ERROR: Final = 0x2
_NLMSG_DONE: Final = 0x3
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSGERR_ATTR_MSG: Final = 1

_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

HEADER: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port id."""
ATTRIBUTE: Final = struct.Struct("=HH")
"""struct nlattr: length with this header, type."""
_NLA_TYPE_MASK: Final = 0x3FFF

_BUFFER_BYTES: Final = 8 << 20
_RECEIVE_BYTES: Final = 1 << 16
CHUNK_BYTES: Final = 1 << 15
"""A batch is sent in chunks of at most this many bytes, so that the answers fit in an unprivileged receive buffer."""
_ANSWER_TIMEOUT_S: Final = 30.0


class TornDumpError(Exception):
    """What is being listed changed while it was listed: list it again."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request: its type, its flags beside NLM_F_REQUEST, and what follows the netlink header."""

    type: int
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the kernel refused a message: the errno, and the kernel's own words where it has any."""

    errno: int
    detail: str = ""

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno, str(self.errno))
        return f"{self.detail} ({name})" if self.detail else f"{os.strerror(self.errno)} ({name})"


class RefusedError(KernelError):
    """The kernel refused a single request."""

    def __init__(self, what: str, refusal: Refusal) -> None:
        super().__init__(f"{what}: {refusal}")
        self.refusal = refusal


def attributes(buffer: bytes | memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Walk attributes between two offsets: (type, offset of the value, offset behind it). Stops at nonsense."""
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(buffer, start)
        if length < ATTRIBUTE.size or start + length > end:
            return
        yield kind & _NLA_TYPE_MASK, start + ATTRIBUTE.size, start + length
        start += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute: header, value, padding to four bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def text(value: bytes | memoryview) -> str:
    """A NUL-terminated string attribute."""
    return bytes(value).split(b"\0", 1)[0].decode(errors="replace")


class NetlinkSocket:
    """One netlink socket in the calling thread's network namespace. Not for use by two threads at once."""

    def __init__(self, protocol: int = NETLINK_ROUTE, groups: Sequence[int] = ()) -> None:
        """Open, and join multicast groups by number. Raises KernelError."""
        self._protocol = protocol
        self._groups = tuple(groups)
        self._sequence = 0
        self._open()

    def _open(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._protocol)
            self._set_up(self._groups)
        except OSError as error:
            raise KernelError(f"cannot open a netlink socket: {error.strerror}") from error
        self.port: int = self._socket.getsockname()[0]
        """The socket's netlink address; notifications carry that of the socket that caused them."""

    def reopen(self) -> None:
        """Begin anew after an exception in the middle of a dump. The port changes. Raises KernelError."""
        self._socket.close()
        self._open()

    def _set_up(self, groups: Sequence[int]) -> None:
        self._socket.settimeout(_ANSWER_TIMEOUT_S)
        for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_BYTES)
            except PermissionError:  # not in the initial user namespace: as much as the sysctl allows
                self._socket.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """The file descriptor, for select()."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def receive(self) -> bytes:
        """One datagram as it comes. Raises OSError; ENOBUFS means that some were lost."""
        return self._socket.recv(_RECEIVE_BYTES)

    def _send(self, kind: int, flags: int, payload: bytes) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        header = HEADER.pack(HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + payload)
        return self._sequence

    def get(self, kind: int, payload: bytes, what: str, flags: int = 0) -> memoryview | None:
        """Ask for one object: its payload, or None where the kernel has it and keeps it to itself (a noop qdisc).

        ``what`` names the request in errors. Raises RefusedError, KernelError.
        """
        found = None
        try:
            sequence = self._send(kind, flags | NLM_F_ACK, payload)
            while True:
                datagram = self.receive()
                length, answer, _, answered, _ = HEADER.unpack_from(datagram)
                if answered != sequence:
                    continue  # an answer to a request that was given up
                if answer != _NLMSG_ERROR:
                    found = memoryview(datagram)[HEADER.size : length]
                    continue
                refusal = _refusal(datagram, 0)
                if refusal is not None:
                    raise RefusedError(what, refusal)
                return found
        except OSError as error:
            _give_up(what, error)

    def command(self, message: Message, what: str) -> None:
        """Send one command and wait for its acknowledgement. Raises RefusedError, KernelError."""
        for refusal in self.batch([[message]], what)[0].values():
            raise RefusedError(what, refusal)

    def dump_into(self, kind: int, payload: bytes, what: str, consume: Callable[[memoryview], int]) -> None:
        """Ask for all objects of a kind, and hand each datagram of whole messages to ``consume`` as it comes.

        ``consume`` returns the offset of the first message that is not an object (type below
        :data:`FIRST_OBJECT_TYPE`), or the datagram's length. The view is good for the call only. ``consume`` must
        look for NLM_F_DUMP_INTR itself. Raises TornDumpError where the kernel lost some (ENOBUFS) or says the dump
        was interrupted, KernelError otherwise; after an exception the socket is half read: :meth:`reopen` it.
        """
        buffer = memoryview(bytearray(_RECEIVE_BYTES))
        try:
            sequence = self._send(kind, NLM_F_DUMP, payload)
            while True:
                datagram = buffer[: self._socket.recv_into(buffer)]
                _, _, _, answered, _ = HEADER.unpack_from(datagram)
                if answered == sequence and _closes_dump(datagram, consume(datagram), what):
                    return
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise TornDumpError from error
            _give_up(what, error)

    def batch(self, groups: Sequence[Sequence[Message]], what: str) -> list[dict[int, Refusal]]:
        """Carry out groups of messages in order; per group, which of its messages were refused, and why.

        A group is never split over two system calls, and the kernel works through a whole call even where the
        caller is killed meanwhile. Within a chunk nothing is acknowledged but refusals; a NOOP that asks for an
        acknowledgement closes it. Raises KernelError where the socket itself fails.
        """
        refusals: list[dict[int, Refusal]] = [{} for _ in groups]
        first = 0
        while first < len(groups):
            last = first
            size = 0
            while last < len(groups) and (size < CHUNK_BYTES or last == first):
                size += sum(HEADER.size + len(message.payload) for message in groups[last])
                last += 1
            self._chunk(groups, first, last, refusals, what)
            first = last
        return refusals

    def _chunk(
        self,
        groups: Sequence[Sequence[Message]],
        first: int,
        last: int,
        refusals: list[dict[int, Refusal]],
        what: str,
    ) -> None:
        parts = []
        owners: dict[int, tuple[int, int]] = {}
        for group in range(first, last):
            for index, message in enumerate(groups[group]):
                self._sequence = (self._sequence + 1) & 0xFFFFFFFF
                owners[self._sequence] = (group, index)
                length = HEADER.size + len(message.payload)
                parts.append(HEADER.pack(length, message.type, message.flags | NLM_F_REQUEST, self._sequence, 0))
                parts.append(message.payload)
        self._sequence = barrier = (self._sequence + 1) & 0xFFFFFFFF
        parts.append(HEADER.pack(HEADER.size, _NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, barrier, 0))
        try:
            self._socket.send(b"".join(parts))
            while True:
                datagram = self.receive()
                _, answer, _, answered, _ = HEADER.unpack_from(datagram)
                if answered == barrier:
                    return
                if answer == _NLMSG_ERROR and answered in owners:
                    group, index = owners[answered]
                    refusal = _refusal(datagram, 0)
                    if refusal is not None:
                        refusals[group][index] = refusal
        except OSError as error:
            _give_up(what, error)


def _give_up(what: str, error: OSError) -> NoReturn:
    reason = "the kernel did not answer in time" if isinstance(error, TimeoutError) else error.strerror
    raise KernelError(f"{what}: {reason}") from error


def _refusal(buffer: bytes | memoryview, position: int) -> Refusal | None:
    """Decode a NLMSG_ERROR message; None is an acknowledgement. NETLINK_CAP_ACK: only the header is echoed."""
    length, _, flags, _, _ = HEADER.unpack_from(buffer, position)
    (code,) = struct.unpack_from("=i", buffer, position + HEADER.size)
    if code == 0:
        return None
    detail = ""
    if flags & _NLM_F_ACK_TLVS:
        start = position + HEADER.size + 4 + HEADER.size
        for kind, begin, end in attributes(buffer, start, position + length):
            if kind == _NLMSGERR_ATTR_MSG:
                detail = text(buffer[begin:end]).rstrip(".")
    return Refusal(-code, detail)


def _closes_dump(datagram: memoryview, position: int, what: str) -> bool:
    """Whether a control message ends the dump. It may stand alone or, since Linux 6.9, behind the last objects."""
    while position + HEADER.size <= len(datagram):
        length, answer, flags, _, _ = HEADER.unpack_from(datagram, position)
        if flags & NLM_F_DUMP_INTR:
            raise TornDumpError
        if answer == _NLMSG_ERROR:
            raise RefusedError(what, _refusal(datagram, position) or Refusal(errno.ENODATA))
        if answer == _NLMSG_DONE:
            (code,) = struct.unpack_from("=i", datagram, position + HEADER.size)
            if code < 0:
                raise RefusedError(what, Refusal(-code))
            return True
        position += (max(length, HEADER.size) + 3) & ~3
    return False
