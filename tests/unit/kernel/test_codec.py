"""Units and messages: bursts in ticks, rates that need 64 bits, and messages that belong in one system call."""

import struct

import pytest

from slicebw.core.dataplane import ClassSpec, CreateClass, RemoveRoot, ResetTokens
from slicebw.kernel.codec import LeafKind, burst_bytes, burst_ticks, encode
from slicebw.kernel.netlink import attribute

GBIT = 1_000_000_000
TICK_NS = 64


@pytest.mark.parametrize(
    ("rate_bps", "burst"),
    [
        (8, 3200),
        (1_000_000, 3200),
        (12_800_000, 3200),
        (100_000_000, 25_000),
        (GBIT, 250_000),
        (10 * GBIT, 2_500_000),
        (100 * GBIT, 2_500_000),
    ],
)
def test_a_burst_is_two_milliseconds_or_two_packets_and_never_more_than_the_line_takes(
    rate_bps: int, burst: int
) -> None:
    assert burst_bytes(rate_bps, 10 * GBIT) == burst


def test_ticks_are_the_burst_as_time_and_fit_32_bits() -> None:
    assert burst_ticks(GBIT, 10 * GBIT) * TICK_NS == 2_000_000
    assert burst_ticks(1_000_000, 10 * GBIT) * TICK_NS == 25_600_000
    assert burst_ticks(8, 10 * GBIT) == 0xFFFFFFFF
    assert burst_ticks(0, 10 * GBIT) == 0xFFFFFFFF


def leaf_spec(ceil_bps: int) -> ClassSpec:
    return ClassSpec(0x1005, 0x10, 8, ceil_bps, 1600, 0x1005)


@pytest.mark.parametrize(("ceil_bps", "wide"), [(8 * 0xFFFFFFFF, False), (8 * 0x1_0000_0000, True)])
def test_rates_of_32_bits_and_more_have_an_attribute_of_their_own(ceil_bps: int, wide: bool) -> None:
    (message, _) = encode(CreateClass(leaf_spec(ceil_bps)), 3, ceil_bps, LeafKind.PFIFO)
    assert (attribute(7, struct.pack("=Q", ceil_bps // 8)) in message.payload) is wide
    assert attribute(6, struct.pack("=Q", 1)) not in message.payload


def test_a_leaf_is_made_with_its_queue_in_one_group() -> None:
    for kind in LeafKind:
        messages = encode(CreateClass(leaf_spec(8000)), 3, GBIT, kind)
        assert [message.type for message in messages] == [40, 36]
        assert attribute(1, kind.encode() + b"\0") in messages[1].payload
    assert len(encode(CreateClass(ClassSpec(1, 0, 8, 8)), 3, GBIT, LeafKind.PFIFO)) == 1


def test_tokens_are_reset_in_one_group_that_leaves_no_scratch_class() -> None:
    messages = encode(ResetTokens(leaf_spec(8000)), 3, GBIT, LeafKind.PFIFO)
    handles = [struct.unpack_from("=I", message.payload, 8)[0] for message in messages]
    assert [(message.type, handle) for message, handle in zip(messages, handles, strict=True)] == [
        (40, 0x11005),
        (40, 0x13000),
        (41, 0x13000),
        (36, 0x10050000),
    ]


def test_only_a_root_with_our_handle_is_ever_deleted() -> None:
    (message,) = encode(RemoveRoot(), 3, GBIT, LeafKind.PFIFO)
    assert struct.unpack("=BxxxiIII", message.payload) == (0, 3, 0x10000, 0xFFFFFFFF, 0)


def test_the_quantum_always_fits_the_kernels_int() -> None:
    spec = ClassSpec(0x1005, 0x10, 8, 8000, 1 << 40, 0x1005)
    (message, _) = encode(CreateClass(spec), 3, GBIT, LeafKind.PFIFO)
    assert struct.pack("=I", (1 << 31) - 1) in message.payload
