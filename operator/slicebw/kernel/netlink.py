"""A small netlink socket: single requests, dumps, and batches that report each refused message.

It is written here for three reasons. A dump that the kernel marks as interrupted must be noticed (pyroute2 0.9 does
not), a dump of 8,000 classes must cost little more than receiving it, and a batch must name each message that failed.
Sources: include/uapi/linux/netlink.h, net/netlink/af_netlink.c, Documentation/userspace-api/netlink/intro.rst.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

from msgspec import Struct

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
"""A batch is sent in chunks of about this many bytes, so that the answers fit in an unprivileged receive buffer."""
_DUMP_SEQUENCE: Final = 1
"""The sequence number of every dump. It is constant so that an unchanged dump is equal byte for byte to the last one.
Commands have numbers from 2 on."""
_LAST_SEQUENCE: Final = 0xFFFFFFFF
_ANSWER_TIMEOUT_S: Final = 30.0


class TornDumpError(Exception):
    """The objects changed while they were listed, or some were lost: list them again."""


class Message(Struct, frozen=True, gc=False):
    """One request: its type, its flags besides NLM_F_REQUEST, and the payload after the netlink header."""

    type: int
    flags: int
    payload: bytes


class Refusal(Struct, frozen=True):
    """Why the kernel refused a message: the errno, and the kernel's explanation (extended ack) if it gave one."""

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
    """Walk attributes between two offsets. Yields (type, start of the value, its end). Stops at a malformed one."""
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(buffer, start)
        if length < ATTRIBUTE.size or start + length > end:
            return
        yield kind & _NLA_TYPE_MASK, start + ATTRIBUTE.size, start + length
        start += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute: header, value, padding to four bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def text(value: bytes | memoryview) -> str:
    """Decode the value of a NUL-terminated string attribute."""
    return bytes(value).split(b"\0", 1)[0].decode(errors="replace")


def _set_up(opened: socket.socket, groups: Sequence[int]) -> None:
    opened.settimeout(_ANSWER_TIMEOUT_S)
    for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_BYTES)
        except PermissionError:  # not in the initial user namespace: take as much as the sysctl allows
            opened.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)
    for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
        opened.setsockopt(_SOL_NETLINK, option, 1)
    opened.bind((0, 0))  # the kernel chooses the port
    for group in groups:
        opened.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)


class NetlinkSocket:
    """One netlink socket in the calling thread's network namespace. Not for use by two threads at once."""

    def __init__(self, protocol: int = NETLINK_ROUTE, groups: Sequence[int] = ()) -> None:
        """Open the socket, and join multicast groups by number. Raises KernelError."""
        self._protocol = protocol
        self._groups = tuple(groups)
        self._sequence = _DUMP_SEQUENCE
        self._half_read = False
        self._open()

    def _open(self) -> None:
        try:
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._protocol)
            _set_up(opened, self._groups)
        except OSError as error:
            raise KernelError(f"cannot open a netlink socket: {error.strerror}") from error
        self._socket = opened
        self.port: int = opened.getsockname()[0]
        """The socket's netlink address. A notification carries the address of the socket that caused it."""

    def fileno(self) -> int:
        """Return the file descriptor, for poll()."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def receive(self) -> bytes:
        """Receive one datagram. Raises OSError; ENOBUFS means that some were lost."""
        return self._socket.recv(_RECEIVE_BYTES)

    def _send(self, kind: int, flags: int, payload: bytes, sequence: int) -> None:
        header = HEADER.pack(HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, sequence, 0)
        self._socket.send(header + payload)

    def _number(self, messages: int) -> int:
        """Reserve this many consecutive sequence numbers, none of them a dump's. Returns the first."""
        if self._sequence + messages > _LAST_SEQUENCE:
            self._sequence = _DUMP_SEQUENCE
        first = self._sequence + 1
        self._sequence += messages
        return first

    def get(self, kind: int, payload: bytes, what: str, flags: int = 0) -> memoryview | None:
        """Request one object. Returns its payload; None if the kernel acknowledges but sends nothing (a noop qdisc).

        ``what`` names the request in errors. Raises RefusedError, KernelError.
        """
        self._renew()
        found = None
        try:
            sequence = self._number(1)
            self._send(kind, flags | NLM_F_ACK, payload, sequence)
            while True:
                datagram = self.receive()
                length, answer, _, answered, _ = HEADER.unpack_from(datagram)
                if answered != sequence:
                    continue  # a late answer to an earlier request that timed out
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
        """Send one command, and wait for its acknowledgement. Raises RefusedError, KernelError."""
        for refusal in self.batch([[message]], what)[0].values():
            raise RefusedError(what, refusal)

    def dump_into(self, kind: int, payload: bytes, what: str, consume: Callable[[memoryview], int]) -> None:
        """Request all objects of a kind, and pass each datagram of whole messages to ``consume`` as it arrives.

        ``consume`` returns the offset of the first message that is not an object (type below
        :data:`FIRST_OBJECT_TYPE`), or the datagram's length. Its view is valid only during the call. It must check
        objects for NLM_F_DUMP_INTR itself.

        Raises TornDumpError if the kernel lost messages (ENOBUFS) or says that the dump was interrupted, KernelError
        otherwise. After any exception the next request uses a new socket with another port: all dumps have the same
        sequence number, so the rest of this one would be taken for the next one's answer.
        """
        self._renew()
        try:
            self._dump_into(kind, payload, what, consume)
        except BaseException as error:
            self._half_read = True
            if isinstance(error, OSError):
                if error.errno == errno.ENOBUFS:
                    raise TornDumpError from error
                _give_up(what, error)
            raise

    def _dump_into(self, kind: int, payload: bytes, what: str, consume: Callable[[memoryview], int]) -> None:
        buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._send(kind, NLM_F_DUMP, payload, _DUMP_SEQUENCE)
        while True:
            datagram = buffer[: self._socket.recv_into(buffer)]
            _, _, _, answered, _ = HEADER.unpack_from(datagram)
            if answered == _DUMP_SEQUENCE and _closes_dump(datagram, consume(datagram), what):
                return

    def _renew(self) -> None:
        if self._half_read:
            old = self._socket
            self._open()
            self._half_read = False
            old.close()  # after opening: the kernel could give the new socket the same port

    def batch(self, groups: Sequence[Sequence[Message]], what: str) -> list[dict[int, Refusal]]:
        """Carry out groups of messages in order. Returns per group its refused messages, by position, and why.

        A group is never split over two system calls, and the kernel finishes a call even if the caller is killed
        meanwhile. In a chunk only refusals are answered; a NOOP that requests an acknowledgement ends it. Raises
        KernelError if the socket itself fails.
        """
        self._renew()
        refusals: list[dict[int, Refusal]] = [{} for _ in groups]
        first = 0
        parts: list[Message] = []
        size = 0
        for last, group in enumerate(groups, 1):
            parts += group
            for message in group:
                size += HEADER.size + len(message.payload)
            # Only at the end of a group: it must not be split.
            if size >= CHUNK_BYTES or (parts and last == len(groups)):
                for number, refusal in self._chunk(parts, what):
                    owner, index = _owner(groups, first, number)
                    refusals[owner][index] = refusal
                first, parts, size = last, [], 0
        return refusals

    def _chunk(self, messages: Sequence[Message], what: str) -> list[tuple[int, Refusal]]:
        """Send messages in one system call. Returns the refused ones, by position."""
        first = sequence = self._number(len(messages) + 1)
        parts: list[bytes] = []
        for message in messages:
            length = HEADER.size + len(message.payload)
            parts.append(HEADER.pack(length, message.type, message.flags | NLM_F_REQUEST, sequence, 0))
            parts.append(message.payload)
            sequence += 1
        parts.append(HEADER.pack(HEADER.size, _NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, sequence, 0))
        refused: list[tuple[int, Refusal]] = []
        try:
            self._socket.send(b"".join(parts))
            while True:
                datagram = self.receive()
                _, answer, _, answered, _ = HEADER.unpack_from(datagram)
                if answered == sequence:
                    return refused
                if answer == _NLMSG_ERROR and first <= answered < sequence:
                    refusal = _refusal(datagram, 0)
                    if refusal is not None:
                        refused.append((answered - first, refusal))
        except OSError as error:
            _give_up(what, error)


def _owner(groups: Sequence[Sequence[Message]], first: int, number: int) -> tuple[int, int]:
    """Return the group of a message, and its position there. ``number`` counts messages from the group ``first`` on."""
    while number >= len(groups[first]):
        number -= len(groups[first])
        first += 1
    return first, number


def _give_up(what: str, error: OSError) -> NoReturn:
    reason = "the kernel did not answer in time" if isinstance(error, TimeoutError) else error.strerror
    raise KernelError(f"{what}: {reason}") from error


def _refusal(buffer: bytes | memoryview, position: int) -> Refusal | None:
    """Decode an NLMSG_ERROR message; None: it is an acknowledgement."""
    length, _, flags, _, _ = HEADER.unpack_from(buffer, position)
    (code,) = struct.unpack_from("=i", buffer, position + HEADER.size)
    if code == 0:
        return None
    detail = ""
    if flags & _NLM_F_ACK_TLVS:
        start = position + HEADER.size + 4 + HEADER.size  # NETLINK_CAP_ACK: only the request's header is echoed
        for kind, begin, end in attributes(buffer, start, position + length):
            if kind == _NLMSGERR_ATTR_MSG:
                detail = text(buffer[begin:end]).rstrip(".")
    return Refusal(-code, detail)


def _closes_dump(datagram: memoryview, position: int, what: str) -> bool:
    """Tell whether a control message ends the dump. It comes alone or, since Linux 6.9, after the last objects.

    Raises TornDumpError if the dump was interrupted, RefusedError if it failed.
    """
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
