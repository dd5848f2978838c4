"""Reads a device's root qdisc, and all classes of our tree in little more than the time that the kernel itself takes.

The kernel sends every class as a message of nested attributes. Walking them in Python costs several times what
receiving them does (8,188 classes: at least 12 ms to receive, 36 ms to walk). Two things avoid most walks:

- Most of a dump is the same as in the last one. A datagram that is equal byte for byte holds the same classes. In one
  that is not, a message that is equal after its header holds the same class.
- Messages of one kind look alike. The first message of a given length is walked, and the offsets of the numbers that
  we need become one precompiled ``struct``. Further messages of that length are unpacked with it. Every message is
  checked for the attribute headers that this layout assumes; one that differs is walked. There is one layout per
  length, because each rate above 34 Gbit/s adds an attribute.
"""

import errno
import struct
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from slicebw.core.dataplane import PARENTS, TOP, ObservedClass, RootQdisc
from slicebw.core.errors import KernelError
from slicebw.kernel import codec
from slicebw.kernel.codec import ROOT_HANDLE, TC_H_ROOT, TCMSG
from slicebw.kernel.netlink import (
    FIRST_OBJECT_TYPE,
    HEADER,
    NLM_F_DUMP_INTR,
    NLM_F_ECHO,
    NetlinkSocket,
    RefusedError,
    TornDumpError,
    attributes,
    text,
)

_TCA_STATS_BASIC: Final = 1
_TCA_STATS_QUEUE: Final = 3

_RATE_IN_PARMS: Final = 8
_CEIL_IN_PARMS: Final = 20
_QUANTUM_IN_PARMS: Final = 32
_BACKLOG_IN_QUEUE: Final = 4
"""Offsets in struct tc_htb_opt and struct gnet_stats_queue."""

_INNER_MINORS: Final = frozenset({TOP, *PARENTS.values()})
"""Inner classes. Their quantum is read as 0, because the kernel never uses it (see codec)."""
_DUMP_ATTEMPTS: Final = 5

MQ: Final = "mq"
"""The kernel's root qdisc for a device with several transmit queues: one child qdisc for each."""


class Root(Struct, frozen=True):
    """A device's root qdisc. ``handle`` 0 means that the kernel attached it by itself.

    ``bare`` is true for an ``mq`` that was attached on request and has only the children that the kernel gave it.
    """

    kind: str
    handle: int
    default_minor: int = 0
    bare: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.handle >> 16:x}:"


def read_root(netlink: NetlinkSocket, ifindex: int) -> Root:
    """Read the root qdisc of a device. Raises RefusedError if there is no such device, KernelError."""
    request = TCMSG.pack(0, ifindex, 0, TC_H_ROOT, 0)
    try:
        answer = netlink.get(codec.RTM_GETQDISC, request, "reading the root qdisc", NLM_F_ECHO)
    except RefusedError as error:
        if error.refusal.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        answer = None  # Linux before 6.8 refuses, later versions answer nothing
    if answer is None:
        return Root("noop", 0)  # a device that was never up
    _, _, handle, _, _ = TCMSG.unpack_from(answer)
    kind = ""
    default_minor = 0
    for attribute, begin, end in attributes(answer, TCMSG.size, len(answer)):
        if attribute == codec.TCA_KIND:
            kind = text(answer[begin:end])
        elif attribute == codec.TCA_OPTIONS and kind == "htb":
            for option, start, stop in attributes(answer, begin, end):
                if option == codec.TCA_HTB_INIT and stop - start >= codec.HTB_INIT.size:
                    default_minor = codec.HTB_INIT.unpack_from(answer, start)[2]
    bare = kind == MQ and handle != 0 and not _has_attached(netlink, ifindex, handle)
    return Root(kind, handle, default_minor, bare)


def _has_attached(netlink: NetlinkSocket, ifindex: int, parent: int) -> bool:
    """Tell whether a child of a root qdisc was attached on request. The kernel's own children have handle 0."""
    found = False

    def take(datagram: memoryview) -> int:
        nonlocal found
        position = 0
        while position + HEADER.size <= len(datagram):
            length, kind, flags, _, _ = HEADER.unpack_from(datagram, position)
            if kind < FIRST_OBJECT_TYPE:
                break
            if flags & NLM_F_DUMP_INTR or not HEADER.size + TCMSG.size <= length <= len(datagram) - position:
                raise TornDumpError
            _, index, handle, above, _ = TCMSG.unpack_from(datagram, position + HEADER.size)
            found |= index == ifindex and handle != 0 and above >> 16 == parent >> 16
            position += (length + 3) & ~3
        return position

    # The kernel lists the qdiscs of all devices, whichever is asked for.
    for _ in range(_DUMP_ATTEMPTS):
        try:
            netlink.dump_into(codec.RTM_GETQDISC, TCMSG.pack(0, ifindex, 0, 0, 0), "listing qdiscs", take)
        except TornDumpError:
            continue
        return found
    raise KernelError(f"the list of qdiscs kept changing while it was read ({_DUMP_ATTEMPTS} attempts)")


def is_default(root: Root) -> bool:
    """Tell whether a root qdisc may be replaced, because the kernel attaches such a one again when ours is removed.

    The kernel gives handle 0 to a qdisc that it attaches by itself (noqueue, pfifo_fast, fq_codel, mq with its
    children, whatever net.core.default_qdisc says). The children of an mq with handle 0 need no check: they cannot be
    addressed, so the kernel attached them too. Of the qdiscs that were attached on request only a bare mq counts.
    """
    return root.handle == 0 or root.bare


def may_be_ours(root: Root) -> bool:
    """Tell whether a root qdisc looks like ours: htb, handle 1:, default class 1fff."""
    return root.kind == "htb" and root.handle == ROOT_HANDLE and root.default_minor == codec.DEFAULT_MINOR


def owner(root: Root, classes: Mapping[int, ObservedClass]) -> RootQdisc:
    """Tell who attached the root qdisc. ``classes``: those under it; needed only if it may be ours.

    DEFAULT: :func:`is_default`.

    FOREIGN: any other qdisc attached on request, an explicit ``fq_codel`` too. The kernel would not restore it.

    OURS: :func:`may_be_ours`, and there are no classes; or 1:1 is directly under the root, and 1:10 and 1:20, if they
    exist, are under 1:1. A tree is made from the top down, so this also holds if that was interrupted. Classes that
    another program has put into our tree are drift to repair, and no reason to stop enforcing.
    """
    if is_default(root):
        return RootQdisc.DEFAULT
    if not may_be_ours(root):
        return RootQdisc.FOREIGN
    if not classes:
        return RootQdisc.OURS
    top = classes.get(TOP)
    inner_fit = all(minor not in classes or classes[minor].parent == TOP for minor in PARENTS.values())
    return RootQdisc.OURS if top is not None and top.parent == 0 and inner_fit else RootQdisc.FOREIGN


class _Places(Struct, frozen=True):
    """Offsets of the attribute values that we need in a class message; 0 for an absent one."""

    parms: int
    basic: int
    queue: int
    rate64: int = 0
    ceil64: int = 0


_KIND_HTB: Final = b"htb\0"

_Known = dict[int, tuple[bytes, ObservedClass]]
"""By minor: the bytes of a class's message after the handle, and the class decoded from them.

An unchanged class stays the same object. Passes compare by identity, so they skip it.
"""


def _find_places(message: memoryview) -> _Places | None:
    """Find the offsets by a walk over a class message. Returns None if it is not an htb class with all we need."""
    kind = options = stats = (0, 0)
    for attribute, begin, end in attributes(message, HEADER.size + TCMSG.size, len(message)):
        match attribute:
            case codec.TCA_KIND:
                kind = (begin, end)
            case codec.TCA_OPTIONS:
                options = (begin, end)
            case codec.TCA_STATS2:
                stats = (begin, end)
    if bytes(message[kind[0] : kind[1]]) != _KIND_HTB:
        return None
    option = {number: begin for number, begin, _ in attributes(message, *options)}
    stat = {number: begin for number, begin, _ in attributes(message, *stats)}
    parms, basic, queue = option.get(codec.TCA_HTB_PARMS), stat.get(_TCA_STATS_BASIC), stat.get(_TCA_STATS_QUEUE)
    if parms is None or basic is None or queue is None:
        return None
    return _Places(parms, basic, queue, option.get(codec.TCA_HTB_RATE64, 0), option.get(codec.TCA_HTB_CEIL64, 0))


_AFTER_HANDLE: Final = HEADER.size + 12


class _Layout:
    """The layout of class messages of one length: what to unpack, and the headers that must equal the first one's."""

    def __init__(self, message: memoryview, places: _Places) -> None:
        """Learn the layout from a first message. Raises ValueError if its attributes are in an unknown order."""
        self._wide = bool(places.rate64 or places.ceil64)
        code = "="
        position = 0
        for offset, field in (
            (HEADER.size + 12, "II"),  # parent, info
            (places.parms - 4, "I"),  # an attribute's header, then the fields of its value that we need
            (places.parms + _RATE_IN_PARMS, "I"),
            (places.parms + _CEIL_IN_PARMS, "I"),
            (places.parms + _QUANTUM_IN_PARMS, "I"),
            *(((places.rate64 - 4, "IQ"), (places.ceil64 - 4, "IQ")) if self._wide else ()),
            (places.basic - 4, "IQ"),
            (places.queue - 4, "I"),
            (places.queue + _BACKLOG_IN_QUEUE, "I"),
        ):
            if offset < 0:
                code += "0s0s"  # only one of the two is present: the other is unpacked as b"", which is false
                continue
            if offset < position:
                raise ValueError(f"attribute at {offset} out of order")
            code += f"{offset - position}x{field}"
            position = offset + struct.calcsize("=" + field)
        self._numbers = struct.Struct(code)
        fields = self._numbers.unpack_from(message)
        self._headers = tuple(fields[index] for index in ((2, 6, 8, 10, 12) if self._wide else (2, 6, 8)))
        # Length, type and flags as one number; skip sequence number, port and device; the handle; the rest.
        self._message = struct.Struct(f"=Q16xI{len(message) - _AFTER_HANDLE}s")
        (self._head, _, _) = self._message.unpack_from(message)

    def unpack(self, messages: memoryview, classes: dict[int, ObservedClass], known: _Known) -> int:
        """Unpack messages for as long as they have this layout. Returns how many did."""
        size = self._message.size
        decode = self._wide_class if self._wide else self._narrow_class
        count = 0
        for head, handle, rest in self._message.iter_unpack(messages[: len(messages) // size * size]):
            if head != self._head:
                break
            minor = handle - ROOT_HANDLE
            last = known.get(minor)
            if last is None or last[0] != rest:
                observed = decode(minor, messages, count * size)
                if observed is None:
                    break
                if last is not None and last[1] == observed:
                    observed = last[1]  # only bytes that we do not use differ, such as padding: keep the object
                known[minor] = last = rest, observed
            classes[minor] = last[1]
            count += 1
        return count

    def _narrow_class(self, minor: int, messages: memoryview, offset: int) -> ObservedClass | None:
        """Decode the message at an offset. Returns None if an attribute is not where it was in the first message."""
        unpacked = self._numbers.unpack_from(messages, offset)
        parent, info, parms, rate, ceil, quantum, basic, sent, queue, backlog = unpacked
        if (parms, basic, queue) != self._headers:
            return None
        return _observed((minor, parent, info), (rate, ceil, quantum), sent, backlog)

    def _wide_class(self, minor: int, messages: memoryview, offset: int) -> ObservedClass | None:
        """Do the same for a rate of 2^32 bytes/s or more. Its 32-bit field is 2^32-1, the rate another attribute."""
        (parent, info, parms, rate, ceil, quantum, rate64, wide_rate, ceil64, wide_ceil,
         basic, sent, queue, backlog) = self._numbers.unpack_from(messages, offset)  # fmt: skip
        if (parms, rate64, ceil64, basic, queue) != self._headers:
            return None
        return _observed((minor, parent, info), (wide_rate or rate, wide_ceil or ceil, quantum), sent, backlog)


def _observed(
    head: tuple[int, int, int], parms: tuple[int, int, int], sent_bytes: int, backlog_bytes: int
) -> ObservedClass:
    """Convert to core's units: rates in bit/s; 0 for no parent (TC_H_ROOT), and for an inner class's quantum.

    ``head``: minor, parent, info; ``parms``: rate, ceiling, quantum.
    """
    minor, parent, info = head
    rate, ceil, quantum = parms
    return ObservedClass(
        minor,
        0 if parent == TC_H_ROOT else parent & 0xFFFF,
        rate * 8,
        ceil * 8,
        0 if minor in _INNER_MINORS else quantum,
        sent_bytes,
        backlog_bytes,
        info >> 16,
    )


class _Datagram(Struct, frozen=True):
    """One datagram of a dump, and the classes in it.

    ``count``: how many class messages it has; more than ``classes`` if one is listed twice. ``end``: the offset of the
    first message that is not an object.
    """

    raw: bytes
    classes: dict[int, ObservedClass]
    count: int
    end: int


class ClassDecoder:
    """Decodes dumps of the classes under handle 1:. It keeps layouts and classes from one dump to the next."""

    def __init__(self) -> None:
        self._layouts: dict[int, _Layout] = {}
        self._known: _Known = {}
        self.datagrams: list[_Datagram] = []
        """The datagrams of the last complete dump, in order."""
        self.classes: Mapping[int, ObservedClass] = {}
        """All classes of that dump, by minor."""

    def keep(self, datagrams: list[_Datagram], classes: Mapping[int, ObservedClass]) -> None:
        """Keep a complete dump, and drop remembered classes that are not in it."""
        self.datagrams, self.classes = datagrams, classes
        if len(self._known) > len(classes):
            self._known = {minor: self._known[minor] for minor in classes if minor in self._known}

    def decode(self, datagram: memoryview, classes: dict[int, ObservedClass]) -> tuple[int, int]:
        """Add the htb classes in a datagram to ``classes``.

        Skips classes of other qdiscs. Returns how many htb classes there were, and the offset of the first message
        that is not an object. Raises TornDumpError if the kernel says that the dump was interrupted.
        """
        position = 0
        found = 0
        end = len(datagram)
        while position + HEADER.size <= end:
            length, kind, flags, _, _ = HEADER.unpack_from(datagram, position)
            if kind < FIRST_OBJECT_TYPE:
                break
            if flags & NLM_F_DUMP_INTR or not HEADER.size <= length <= end - position:
                raise TornDumpError
            layout = self._layouts.get(length)
            count = 0 if layout is None else layout.unpack(datagram[position:], classes, self._known)
            if count == 0 and kind == codec.RTM_NEWTCLASS:
                found += self._walk(datagram[position : position + length], classes)
            found += count
            position += (length + 3 & ~3) * max(count, 1)
        return found, position

    def _walk(self, message: memoryview, classes: dict[int, ObservedClass]) -> int:
        """Unpack one message by a walk over its attributes, and keep its layout for those that follow."""
        places = _find_places(message)
        if places is None:
            return 0
        try:
            layout = _Layout(message, places)
        except ValueError:
            observed = _unpack_by_places(message, places)
            classes[observed.minor] = observed
        else:
            layout.unpack(message, classes, self._known)
            self._layouts[len(message)] = layout
        return 1


def _unpack_by_places(message: memoryview, places: _Places) -> ObservedClass:
    def number(offset: int, code: str = "=I") -> int:
        return int(struct.unpack_from(code, message, offset)[0])

    handle, parent, info = struct.unpack_from("=III", message, HEADER.size + 8)
    rate = number(places.rate64, "=Q") if places.rate64 else number(places.parms + _RATE_IN_PARMS)
    ceil = number(places.ceil64, "=Q") if places.ceil64 else number(places.parms + _CEIL_IN_PARMS)
    return _observed(
        (handle - ROOT_HANDLE, parent, info),
        (rate, ceil, number(places.parms + _QUANTUM_IN_PARMS)),
        number(places.basic, "=Q"),
        number(places.queue + _BACKLOG_IN_QUEUE),
    )


def read_classes(netlink: NetlinkSocket, ifindex: int, decoder: ClassDecoder) -> Mapping[int, ObservedClass]:
    """Read all classes under handle 1: of a device, by minor. Raises KernelError.

    A class that is unchanged since the last dump by this decoder is the same object. If all are, and none was added or
    removed, the mapping is the same object too.

    The kernel lists classes bucket by bucket over several system calls. It holds no lock meanwhile, and does not set
    NLM_F_DUMP_INTR for classes. A class that is listed twice shows that the list has changed, so it is read again. A
    class that is left out cannot be noticed. So absence from one dump never proves that a class is gone.
    """
    request = TCMSG.pack(0, ifindex, 0, ROOT_HANDLE, 0)
    for _ in range(_DUMP_ATTEMPTS):
        dump = _ClassDump(decoder)
        try:
            netlink.dump_into(codec.RTM_GETTCLASS, request, "listing classes", dump.take)
        except TornDumpError:
            continue
        if dump.is_whole():
            return decoder.classes
    raise KernelError(f"the list of classes kept changing while it was read ({_DUMP_ATTEMPTS} attempts)")


class _ClassDump:
    """A dump that is being received."""

    def __init__(self, decoder: ClassDecoder) -> None:
        self._decoder = decoder
        self._before = iter(decoder.datagrams)
        self._datagrams: list[_Datagram] = []
        self._all_same = True

    def take(self, datagram: memoryview) -> int:
        """Consume one datagram; see :meth:`NetlinkSocket.dump_into`."""
        raw = bytes(datagram)
        found = next(self._before, None)
        if found is None or found.raw != raw:
            self._all_same = False
            classes: dict[int, ObservedClass] = {}
            count, end = self._decoder.decode(datagram, classes)
            found = _Datagram(raw, classes, count, end)
        self._datagrams.append(found)
        return found.end

    def is_whole(self) -> bool:
        """Tell at the end whether no class was listed twice. If so, give the dump to the decoder to keep."""
        if self._all_same:  # not fewer either: the last datagram, which ends the dump, is among them
            return True
        classes: dict[int, ObservedClass] = {}
        for datagram in self._datagrams:
            classes |= datagram.classes
        if len(classes) != sum(datagram.count for datagram in self._datagrams):
            return False
        self._decoder.keep(self._datagrams, classes)
        return True
