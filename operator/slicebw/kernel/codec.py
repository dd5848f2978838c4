"""Encodes changes to the tree as netlink messages. Only here bit/s become bytes/s, and bursts become ticks.

Sources: include/uapi/linux/pkt_sched.h, net/sched/sch_htb.c (htb_change_class), net/sched/sch_api.c.
"""

import struct
from enum import StrEnum
from functools import lru_cache
from typing import Final

from slicebw.core.dataplane import (
    DEFAULT_ID,
    HANDLE_MAJOR,
    MIN_KERNEL_RATE_BPS,
    SCRATCH,
    ChangeClass,
    ClassSpec,
    CreateClass,
    CreateRoot,
    DeleteClass,
    RemoveRoot,
    ReplaceLeafQdisc,
    ResetTokens,
    TreeChange,
    leaf,
)
from slicebw.core.desired import TrafficClass
from slicebw.kernel.netlink import ATTRIBUTE, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Message, attribute

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_NEWTCLASS: Final = 40
RTM_DELTCLASS: Final = 41
RTM_GETTCLASS: Final = 42

TCMSG: Final = struct.Struct("=BxxxiIII")
"""struct tcmsg: family, device number, handle, parent, info."""
TC_H_ROOT: Final = 0xFFFFFFFF
TCA_KIND: Final = 1
TCA_OPTIONS: Final = 2
TCA_STATS2: Final = 7
TCA_HTB_PARMS: Final = 1
TCA_HTB_INIT: Final = 2
TCA_HTB_DIRECT_QLEN: Final = 5
TCA_HTB_RATE64: Final = 6
TCA_HTB_CEIL64: Final = 7
HTB_INIT: Final = struct.Struct("=IIIII")
"""struct tc_htb_glob: version, rate2quantum, default class, debug, direct packets."""
HTB_VERSION: Final = 3
_RATE2QUANTUM: Final = 10

ROOT_HANDLE: Final = HANDLE_MAJOR << 16
DEFAULT_MINOR: Final = leaf(TrafficClass.STANDARD, DEFAULT_ID)

DIRECT_QUEUE_PACKETS: Final = 1000
"""The length of HTB's direct queue. It is used only while a tree is being built and has no default class yet."""

_LINKLAYER_ETHERNET: Final = 1  # if a link layer is given, the kernel needs no rate tables
_RATE_SPEC: Final = struct.pack("=BBHhH", 0, _LINKLAYER_ETHERNET, 0, 0, 0)
"""struct tc_ratespec without the rate in bytes/s, its last field: cell_log, linklayer, overhead, cell_align, mpu."""
_HTB_OPT: Final = "8sI8sIIII8x"
"""struct tc_htb_opt: rate, ceil, buffer, cbuffer, quantum; level and prio are 0."""
_MAX_U32: Final = 0xFFFFFFFF
_TICKS_PER_S: Final = 1_000_000_000 // 64

_INNER_QUANTUM_BYTES: Final = 60_000
"""HTB never uses an inner class's quantum, but warns in the kernel log if it has to choose one itself."""

_MAX_QUANTUM_BYTES: Final = (1 << 31) - 1  # the kernel keeps it in an int

BURST_MS: Final = 2
MIN_BURST_BYTES: Final = 2 * 1600
"""Two full packets, with headers; see :func:`burst_bytes`."""

_FIFO_LIMIT_PACKETS: Final = 256
_FQ_CODEL_LIMIT_PACKETS: Final = 1000
_FQ_CODEL_FLOWS: Final = 128
_FQ_CODEL_MEMORY_BYTES: Final = 4 << 20
_TCA_FQ_CODEL_LIMIT: Final = 2
_TCA_FQ_CODEL_FLOWS: Final = 5
_TCA_FQ_CODEL_MEMORY_LIMIT: Final = 9


class LeafKind(StrEnum):
    """The qdisc under a leaf class. fq_codel keeps a slice's flows fair to each other, but not every kernel has it."""

    FQ_CODEL = "fq_codel"
    PFIFO = "pfifo"


def burst_bytes(rate_bps: int, line_rate_bps: int) -> int:
    """Return how many bytes a class may save up while it is idle or served late.

    It is two milliseconds at the rate, which allows at most 0.2 % too much in the first second, and at least two full
    packets. HTB drops tokens above the burst. It serves a class from a timer, so a burst below rate x lateness of the
    timer loses rate. Measured: a burst of two packets loses 0.7 % at 100 Mbit/s and 1 % at 1 Gbit/s (iproute2's default
    is one packet). A burst of two milliseconds loses 0.1 % or less from 10 Mbit/s to 1 Gbit/s, with and without GSO.
    A GSO packet larger than the burst loses nothing: the class goes into debt and pays it back.
    """
    # Conditions, because min() and max() take four times as long, and a pass may change 8,000 classes.
    burst = (rate_bps if rate_bps < line_rate_bps else line_rate_bps) * BURST_MS // 8_000
    return burst if burst > MIN_BURST_BYTES else MIN_BURST_BYTES


@lru_cache(maxsize=1 << 10)  # if thousands of classes change at once, they change to few different rates
def burst_ticks(rate_bps: int, line_rate_bps: int) -> int:
    """Return the burst as time at ``rate_bps``, in the kernel's ticks of 64 ns. 32 bits hold at most 275 s."""
    rate_bps = max(rate_bps, MIN_KERNEL_RATE_BPS)  # no division by 0; the kernel itself refuses the lower rate
    ticks = burst_bytes(rate_bps, line_rate_bps) * 8 * _TICKS_PER_S // rate_bps
    return (ticks or 1) if ticks < _MAX_U32 else _MAX_U32


def encode(change: TreeChange, ifindex: int, line_rate_bps: int, leaf_kind: LeafKind) -> list[Message]:
    """Return the messages that carry out one change. They must be sent in one system call."""
    messages: list[Message]
    if isinstance(change, ChangeClass):  # a pass may have 8,000 of these, and `match` costs as much as the encoding
        return [_class(ifindex, change.spec, 0, line_rate_bps)]
    match change:
        case CreateRoot():
            messages = [_create_root(ifindex)]
        case RemoveRoot():
            messages = [delete_root(ifindex, ROOT_HANDLE)]
        case CreateClass(spec):
            messages = _create(ifindex, spec, line_rate_bps, leaf_kind)
        case ResetTokens(spec):
            messages = _reset_tokens(ifindex, spec, line_rate_bps, leaf_kind)
        case ReplaceLeafQdisc(minor, leaf_major):
            messages = [_leaf(ifindex, minor, leaf_major, leaf_kind)]
        case DeleteClass(minor):
            messages = [_delete(ifindex, minor)]
    return messages


def delete_root(ifindex: int, handle: int) -> Message:
    """The message that removes a device's root qdisc, if it has this handle."""
    return Message(RTM_DELQDISC, 0, TCMSG.pack(0, ifindex, handle, TC_H_ROOT, 0))


def _create_root(ifindex: int) -> Message:
    init = attribute(TCA_HTB_INIT, HTB_INIT.pack(HTB_VERSION, _RATE2QUANTUM, DEFAULT_MINOR, 0, 0))
    init += attribute(TCA_HTB_DIRECT_QLEN, struct.pack("=I", DIRECT_QUEUE_PACKETS))
    payload = TCMSG.pack(0, ifindex, ROOT_HANDLE, TC_H_ROOT, 0)
    payload += attribute(TCA_KIND, b"htb\0") + attribute(TCA_OPTIONS, init)
    return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, payload)


def _create(ifindex: int, spec: ClassSpec, line_rate_bps: int, leaf_kind: LeafKind) -> list[Message]:
    messages = [_class(ifindex, spec, NLM_F_CREATE | NLM_F_EXCL, line_rate_bps)]
    if spec.leaf_major:
        messages.append(_leaf(ifindex, spec.minor, spec.leaf_major, leaf_kind))
    return messages


def _reset_tokens(ifindex: int, spec: ClassSpec, line_rate_bps: int, leaf_kind: LeafKind) -> list[Message]:
    """Return messages that fill a class's token buckets: give it a child, and delete that again.

    The child makes the class an inner one. When it is deleted, the kernel makes the class a leaf again, with full
    tokens (htb_parent_to_leaf) and a leaf qdisc of the kernel's choice; so our leaf qdisc is put back last. The class's
    limits are set first, without NLM_F_CREATE: if the class does not exist, that fails, and so does all the rest.
    """
    child = ClassSpec(SCRATCH, spec.minor, spec.rate_bps, spec.ceil_bps)
    return [
        _class(ifindex, spec, 0, line_rate_bps),
        _class(ifindex, child, NLM_F_CREATE | NLM_F_EXCL, line_rate_bps),
        _delete(ifindex, SCRATCH),
        _leaf(ifindex, spec.minor, spec.leaf_major, leaf_kind),
    ]


def _delete(ifindex: int, minor: int) -> Message:
    return Message(RTM_DELTCLASS, 0, TCMSG.pack(0, ifindex, ROOT_HANDLE | minor, 0, 0))


_KIND_HTB: Final = attribute(TCA_KIND, b"htb\0")
_PARMS: Final = ATTRIBUTE.pack(ATTRIBUTE.size + struct.calcsize("=" + _HTB_OPT), TCA_HTB_PARMS)
_CLASS: Final = struct.Struct("=4xiII4x")
"""struct tcmsg: device number, handle, parent."""
_LIMITS: Final = struct.Struct(f"=8s4s4s{_HTB_OPT}")
"""TCA_KIND, the headers of TCA_OPTIONS and TCA_HTB_PARMS, and struct tc_htb_opt."""
_OPTIONS_BYTES: Final = ATTRIBUTE.size + len(_PARMS) + struct.calcsize("=" + _HTB_OPT)
_OPTIONS: Final = ATTRIBUTE.pack(_OPTIONS_BYTES, TCA_OPTIONS)


def _class(ifindex: int, spec: ClassSpec, flags: int, line_rate_bps: int) -> Message:
    payload = _CLASS.pack(ifindex, ROOT_HANDLE | spec.minor, ROOT_HANDLE | spec.parent)
    payload += _limits(spec.rate_bps, spec.ceil_bps, spec.quantum_bytes, line_rate_bps)
    return Message(RTM_NEWTCLASS, flags, payload)


@lru_cache(maxsize=1 << 10)  # if thousands of classes change at once, they change to few different limits
def _limits(rate_bps: int, ceil_bps: int, quantum_bytes: int, line_rate_bps: int) -> bytes:
    """Return all attributes of a class message. They are packed at once: one by one takes five times as long."""
    rate, ceil = rate_bps // 8, ceil_bps // 8
    options, wide = _OPTIONS, b""
    if rate > _MAX_U32 or ceil > _MAX_U32:
        wide = _wide_rates(rate, ceil)
        options = ATTRIBUTE.pack(_OPTIONS_BYTES + len(wide), TCA_OPTIONS)
        rate, ceil = min(rate, _MAX_U32), min(ceil, _MAX_U32)
    limits = _LIMITS.pack(
        _KIND_HTB,
        options,
        _PARMS,
        _RATE_SPEC,
        rate,
        _RATE_SPEC,
        ceil,
        burst_ticks(rate_bps, line_rate_bps),
        burst_ticks(ceil_bps, line_rate_bps),
        min(quantum_bytes or _INNER_QUANTUM_BYTES, _MAX_QUANTUM_BYTES),
    )
    return limits + wide


def _wide_rates(rate: int, ceil: int) -> bytes:
    """Return the attributes for rates that do not fit in 32 bits. Unit: bytes/s."""
    wide = ((TCA_HTB_RATE64, rate), (TCA_HTB_CEIL64, ceil))
    return b"".join(attribute(kind, struct.pack("=Q", value)) for kind, value in wide if value > _MAX_U32)


def _leaf(ifindex: int, minor: int, leaf_major: int, kind: LeafKind) -> Message:
    if kind is LeafKind.FQ_CODEL:
        options = b"".join(
            attribute(option, struct.pack("=I", value))
            for option, value in (
                (_TCA_FQ_CODEL_LIMIT, _FQ_CODEL_LIMIT_PACKETS),
                (_TCA_FQ_CODEL_FLOWS, _FQ_CODEL_FLOWS),
                (_TCA_FQ_CODEL_MEMORY_LIMIT, _FQ_CODEL_MEMORY_BYTES),
            )
        )
    else:
        options = struct.pack("=I", _FIFO_LIMIT_PACKETS)  # struct tc_fifo_qopt
    payload = TCMSG.pack(0, ifindex, leaf_major << 16, ROOT_HANDLE | minor, 0)
    payload += attribute(TCA_KIND, kind.encode() + b"\0") + attribute(TCA_OPTIONS, options)
    return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, payload)
