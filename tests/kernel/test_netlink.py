"""Batches: every refusal is reported for its own message, in any chunk and with any sequence number."""

import errno
from contextlib import closing

import pytest

from slicebw.core.dataplane import ChangeClass, ClassSpec, DeleteClass, ResetTokens, TreeChange
from slicebw.kernel import codec
from slicebw.kernel.codec import LeafKind, encode
from slicebw.kernel.dump import ClassDecoder, read_classes
from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.netlink import CHUNK_BYTES, Message, NetlinkSocket, RefusedError
from tests.kernel.test_dump import ifindex_of
from tests.support.topology import UPLINK, Topology
from tests.support.trees import LINE_RATE_BPS, creation, tree


def test_refusals_in_a_long_batch_are_on_their_own_messages(lab: Topology, shaper: HtbShaper) -> None:
    desired = tree(range(1, 400))
    shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS)
    absent = ClassSpec(0x1777, 0x10, 8, 8_000, 1600, 0x1777)
    changes: list[TreeChange] = []
    for number, minor in enumerate(sorted(desired)):
        changes.append(ChangeClass(desired[minor]))
        if number % 7 == 0:
            changes.append(ResetTokens(absent) if number % 2 else ChangeClass(absent))
    groups = [encode(change, ifindex_of(UPLINK), LINE_RATE_BPS, LeafKind.PFIFO) for change in changes]
    assert sum(len(message.payload) for group in groups for message in group) > 2 * CHUNK_BYTES
    with closing(NetlinkSocket()) as netlink:
        refusals = netlink.batch(groups, "changing")
    assert [index for index, refused in enumerate(refusals) if refused] == [
        index for index, change in enumerate(changes) if change in (ResetTokens(absent), ChangeClass(absent))
    ]
    for change, refused in zip(changes, refusals, strict=True):
        if isinstance(change, ResetTokens):  # an absent class cannot have a leaf qdisc either
            assert {0, 3} <= set(refused)
        assert all(refusal.errno in (errno.ENOENT, errno.EINVAL) for refusal in refused.values())


def test_numbers_begin_again_when_they_are_used_up(lab: Topology, shaper: HtbShaper) -> None:
    shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS)
    ifindex = ifindex_of(UPLINK)
    (delete,) = encode(DeleteClass(0x1777), ifindex, LINE_RATE_BPS, LeafKind.PFIFO)
    with closing(NetlinkSocket()) as netlink:
        netlink._sequence = (1 << 32) - 4
        assert netlink._number(4) == 2, "1 is the dumps'"
        netlink._sequence = (1 << 32) - 4
        for _ in range(4):
            assert [set(refused) for refused in netlink.batch([[delete], [], [delete]], "deleting")] == [
                {0},
                set(),
                {0},
            ]
            assert len(read_classes(netlink, ifindex, ClassDecoder())) == len(tree())
            with pytest.raises(RefusedError):
                netlink.command(Message(codec.RTM_DELTCLASS, 0, delete.payload), "deleting")


def test_an_empty_batch_refuses_nothing(lab: Topology) -> None:
    with closing(NetlinkSocket()) as netlink:
        assert netlink.batch([], "nothing") == []
        assert netlink.batch([[], []], "nothing") == [{}, {}]
