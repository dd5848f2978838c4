"""Leaf queues on a kernel with fq_codel, as nearly all have it."""

import re

from msgspec.structs import replace

from slicebw.core.dataplane import DEFAULT_ID, ChangeClass, DeleteClass, ReplaceLeafQdisc, ResetTokens, TreeChange, leaf
from slicebw.kernel.htb import HtbShaper
from tests.support.round_trips import ping_ms
from tests.support.topology import UPLINK, Topology, wait_until
from tests.support.trees import LINE_RATE_BPS, STANDARD, creation, tree

M = 1_000_000
DEFAULT = leaf(STANDARD, DEFAULT_ID)


def leaves(lab: Topology) -> dict[str, str]:
    """Return every leaf qdisc by its handle, as tc lists it."""
    listing = lab.node.run("tc", "qdisc", "show", "dev", UPLINK)
    return dict(re.findall(r"qdisc \w+ (\w+): parent 1:\w+ (.*?) *$", listing, re.MULTILINE))


def test_every_leaf_is_an_fq_codel_with_our_limits_and_stays_one(lab: Topology, shaper: HtbShaper) -> None:
    desired = tree()
    assert shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS) == []
    before = lab.node.run("tc", "qdisc", "show", "dev", UPLINK)
    handles = {f"{spec.leaf_major:x}" for spec in desired.values() if spec.leaf_major}
    assert leaves(lab).keys() == handles
    assert before.count("qdisc fq_codel ") == len(handles)
    for parameters in leaves(lab).values():
        assert parameters.startswith(
            "limit 1000p flows 128 quantum 1514 target 5ms interval 100ms memory_limit 4Mb ecn"
        )
    spec = desired[0x1001]
    lab.node.run("tc", "qdisc", "del", "dev", UPLINK, "parent", "1:1002")
    changes: list[TreeChange] = [
        ChangeClass(replace(spec, ceil_bps=8_000)),
        ResetTokens(replace(spec, ceil_bps=M)),
        ReplaceLeafQdisc(0x1002, 0x1002),
    ]
    assert shaper.apply(UPLINK, changes, LINE_RATE_BPS) == []
    assert sorted(lab.node.run("tc", "qdisc", "show", "dev", UPLINK).splitlines()) == sorted(before.splitlines())
    assert shaper.apply(UPLINK, [DeleteClass(0x1001)], LINE_RATE_BPS) == []
    assert leaves(lab).keys() == handles - {"1001"}


def test_bytes_are_counted_as_they_leave_the_queue(lab: Topology, shaper: HtbShaper) -> None:
    desired = tree()
    shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS)
    before = lab.sink.received_bytes(UPLINK)
    lab.send_udp(lab.pod(0), lab.sink.address, 200, 1000)
    wait_until(lambda: lab.sink.received_packets(UPLINK) >= 200, "the datagrams arrive")
    arrived = lab.sink.received_bytes(UPLINK) - before
    assert arrived >= 200_000
    assert shaper.read(UPLINK).classes[DEFAULT].sent_bytes == arrived


def test_a_ping_does_not_wait_behind_a_stream(lab: Topology, shaper: HtbShaper) -> None:
    """Compare the ping beside the same stream in a plain queue and in ours: this is what fq_codel is for."""
    desired = tree()
    shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS)
    shaper.apply(UPLINK, [ChangeClass(replace(desired[DEFAULT], ceil_bps=4 * M))], LINE_RATE_BPS)
    idle = lab.sink.received_bytes(UPLINK)
    flow = lab.traffic(lab.pod(0), lab.sink.address, 60)
    try:
        wait_until(lambda: lab.sink.received_bytes(UPLINK) > idle + 500_000, "the stream has filled the queue", 30)
        ours = ping_ms(lab.pod(0), lab.sink, 2)
        lab.node.run(*f"tc qdisc replace dev {UPLINK} parent 1:{DEFAULT:x} handle 7001: pfifo limit 256".split())
        received = lab.sink.received_bytes(UPLINK)
        wait_until(lambda: lab.sink.received_bytes(UPLINK) > received + 500_000, "the stream has filled the queue", 30)
        plain = ping_ms(lab.pod(0), lab.sink, 2)
    finally:
        flow.stop()
    assert ours * 4 < plain
    # A leaf qdisc of another program is recognized by its handle, and replaced.
    assert shaper.read(UPLINK).classes[DEFAULT].leaf_major == 0x7001
    assert shaper.apply(UPLINK, [ReplaceLeafQdisc(DEFAULT, DEFAULT)], LINE_RATE_BPS) == []
    assert leaves(lab)[f"{DEFAULT:x}"].startswith("limit 1000p flows 128")
