"""The fast decoder, compared with tc, and with unusual layouts and torn dumps."""

import re
import resource
from collections.abc import Callable, Mapping
from contextlib import closing

import pytest

from slicebw.core.dataplane import (
    ClassSpec,
    CreateClass,
    DeleteClass,
    ObservedClass,
    RemoveRoot,
    ReplaceLeafQdisc,
    leaf,
)
from slicebw.core.errors import KernelError
from slicebw.kernel import codec
from slicebw.kernel.dump import ClassDecoder, read_classes, read_root
from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.netlink import NLM_F_DUMP_INTR, NetlinkSocket, TornDumpError
from slicebw.kernel.uplink import Links
from tests.support.topology import UPLINK, Topology, wait_until
from tests.support.trees import EXEMPT, LINE_RATE_BPS, STANDARD, creation, tree


def as_specs(observed: Mapping[int, ObservedClass]) -> dict[int, ClassSpec]:
    return {
        minor: ClassSpec(one.minor, one.parent, one.rate_bps, one.ceil_bps, one.quantum_bytes, one.leaf_major)
        for minor, one in observed.items()
    }


def silence(lab: Topology) -> None:
    """Keep the node from sending by itself: IPv6 reports its multicast groups at any time, which moves counters."""
    lab.node.sysctl(ipv6__conf__all__disable_ipv6=1)


def test_every_number_is_what_tc_shows(lab: Topology, shaper: HtbShaper) -> None:
    desired = tree()
    desired[0x1001] = ClassSpec(0x1001, 0x10, 64_000, 1_000_000, 4800, 0x1001)
    shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS)
    sent = lab.send_udp(lab.node, lab.sink.address, 3, 700)  # no table: default
    observed = shaper.read(UPLINK).classes
    assert observed[0x1FFF].sent_bytes >= sent
    listing = lab.node.run("tc", "-s", "-d", "class", "show", "dev", UPLINK)
    pattern = (
        r"class htb 1:(\w+) (?:root|parent 1:(\w+)) (?:leaf (\w+): )?(?:prio 0 )?"
        r"(?:quantum (\d+) )?rate (\S+) ceil (\S+) .*\n Sent (\d+) bytes"
    )
    by_tc = {
        int(minor, 16): (int(parent or "0", 16), int(major or "0", 16), rate, ceil, int(quantum or 0), int(count))
        for minor, parent, major, quantum, rate, ceil, count in re.findall(pattern, listing)
    }
    assert by_tc.keys() == desired.keys() == observed.keys()
    assert by_tc[0x1001] == (0x10, 0x1001, "64Kbit", "1Mbit", 4800, observed[0x1001].sent_bytes)
    assert by_tc[0x1FFF] == (0x10, 0x1FFF, "8bit", "10Gbit", 1600, observed[0x1FFF].sent_bytes)
    for minor, one in observed.items():
        assert by_tc[minor][:2] == (one.parent, one.leaf_major)
        assert by_tc[minor][5] == one.sent_bytes
    assert as_specs(observed) == desired


def ifindex_of(device: str) -> int:
    with closing(Links()) as links:
        return links.find(device).ifindex


@pytest.mark.parametrize("line_rate_bps", [34_359_738_360, 34_359_738_368, 100_000_000_000, 3_200_000_000_000])
def test_rates_above_32_bits_stand_beside_others(lab: Topology, shaper: HtbShaper, line_rate_bps: int) -> None:
    desired = tree(range(1, 400), line_rate_bps=line_rate_bps)
    for number in range(1, 400, 3):
        minor = leaf(STANDARD, number)
        desired[minor] = ClassSpec(minor, 0x10, 8, 8_000 * number, 1600, minor)
        minor = leaf(EXEMPT, number)
        desired[minor] = ClassSpec(minor, 0x20, line_rate_bps - 8, line_rate_bps, 1600, minor)
    assert shaper.apply(UPLINK, creation(desired), line_rate_bps) == []
    assert as_specs(shaper.read(UPLINK).classes) == desired


def test_classes_of_other_qdiscs_on_the_device_are_passed_over(lab: Topology, shaper: HtbShaper) -> None:
    desired = tree()
    shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS)
    lab.node.run(
        "tc",
        "-batch",
        "-",
        text=f"""
        qdisc replace dev {UPLINK} parent 1:1001 handle 5: htb default 7
        class add dev {UPLINK} parent 5: classid 5:7 htb rate 1mbit
        class add dev {UPLINK} parent 5: classid 5:1002 htb rate 2mbit
        qdisc replace dev {UPLINK} parent 1:1002 handle 6: tbf rate 1mbit burst 10k limit 100k
        """,
    )
    assert lab.node.run("tc", "class", "show", "dev", UPLINK).count("class ") == len(desired) + 3
    observed = as_specs(shaper.read(UPLINK).classes)
    assert observed.keys() == desired.keys()
    assert (observed[0x1001].leaf_major, observed[0x1002].leaf_major) == (5, 6)
    # A dump without a parent contains them: classes of other qdiscs are not ours.
    netlink = NetlinkSocket()
    classes: dict[int, ObservedClass] = {}
    decoder = ClassDecoder()
    request = codec.TCMSG.pack(0, ifindex_of(UPLINK), 0, 0x60000, 0)
    netlink.dump_into(codec.RTM_GETTCLASS, request, "listing", lambda datagram: decoder.decode(datagram, classes)[1])
    netlink.close()
    assert classes == {}


def test_a_class_without_a_leaf_qdisc_of_ours_shows_none(lab: Topology, shaper: HtbShaper) -> None:
    shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS)
    lab.node.run("tc", "qdisc", "del", "dev", UPLINK, "parent", "1:1001")
    assert shaper.read(UPLINK).classes[0x1001].leaf_major == 0
    assert shaper.apply(UPLINK, [ReplaceLeafQdisc(0x1001, 0x1001)], LINE_RATE_BPS) == []
    assert shaper.read(UPLINK).classes[0x1001].leaf_major == 0x1001


def test_one_message_at_a_time_decodes_to_the_same_as_all_at_once(lab: Topology, shaper: HtbShaper) -> None:
    shaper.apply(UPLINK, creation(tree(range(1, 300), line_rate_bps=100_000_000_000)), LINE_RATE_BPS)
    lab.send_udp(lab.node, lab.sink.address, 50)
    datagrams: list[bytes] = []
    netlink = NetlinkSocket()
    at_once = ClassDecoder()
    together: dict[int, ObservedClass] = {}

    def take(datagram: memoryview) -> int:
        datagrams.append(bytes(datagram))
        return at_once.decode(datagram, together)[1]

    request = codec.TCMSG.pack(0, ifindex_of(UPLINK), 0, codec.ROOT_HANDLE, 0)
    netlink.dump_into(codec.RTM_GETTCLASS, request, "listing", take)
    netlink.close()
    singly: dict[int, ObservedClass] = {}
    count = 0
    for datagram in datagrams:
        position = 0
        while position < len(datagram):
            length = int.from_bytes(datagram[position : position + 4], "little")
            count += ClassDecoder().decode(memoryview(datagram[position : position + length]), singly)[0]
            position += length
    assert count == len(together)
    assert singly == together


def test_an_interruption_is_noticed_wherever_in_a_datagram_it_is_said(lab: Topology, shaper: HtbShaper) -> None:
    shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS)
    datagrams: list[bytearray] = []
    decoder = ClassDecoder()

    def take(datagram: memoryview) -> int:
        datagrams.append(bytearray(datagram))
        return decoder.decode(datagram, {})[1]

    with closing(NetlinkSocket()) as netlink:
        request = codec.TCMSG.pack(0, ifindex_of(UPLINK), 0, codec.ROOT_HANDLE, 0)
        netlink.dump_into(codec.RTM_GETTCLASS, request, "listing", take)
    position = 0
    for _ in range(3):
        torn = bytearray(datagrams[0])
        torn[position + 6] |= NLM_F_DUMP_INTR
        with pytest.raises(TornDumpError):
            decoder.decode(memoryview(torn), {})
        position += int.from_bytes(datagrams[0][position : position + 4], "little")


class Torn(NetlinkSocket):
    """A socket whose next dumps are torn."""

    torn = 0

    def dump_into(self, kind: int, payload: bytes, what: str, consume: Callable[[memoryview], int]) -> None:
        """Return half a dump, then the error of an interrupted one."""
        if self.torn > 0:
            self.torn -= 1
            super().dump_into(kind, payload, what, consume)
            raise TornDumpError
        super().dump_into(kind, payload, what, consume)


def test_a_torn_dump_is_made_again_and_given_up_in_the_end(lab: Topology, shaper: HtbShaper) -> None:
    desired = tree()
    shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS)
    netlink = Torn()
    ifindex = ifindex_of(UPLINK)
    netlink.torn = 4
    assert read_classes(netlink, ifindex, ClassDecoder()).keys() == desired.keys()
    netlink.torn = 5
    with pytest.raises(KernelError, match="kept changing"):
        read_classes(netlink, ifindex, ClassDecoder())
    netlink.close()


def test_a_class_listed_twice_reveals_a_torn_dump(lab: Topology, shaper: HtbShaper) -> None:
    shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS)

    class Stuttering(NetlinkSocket):
        dumps = 0

        def dump_into(self, kind: int, payload: bytes, what: str, consume: Callable[[memoryview], int]) -> None:
            self.dumps += 1
            super().dump_into(kind, payload, what, consume)
            if self.dumps == 1:
                super().dump_into(kind, payload, what, consume)

    netlink = Stuttering()
    read_classes(netlink, ifindex_of(UPLINK), ClassDecoder())
    assert netlink.dumps == 2
    netlink.close()


def test_a_dump_of_a_tree_that_is_being_taken_down_never_fails(lab: Topology, shaper: HtbShaper) -> None:
    for _ in range(3):
        shaper.apply(UPLINK, creation(tree(range(1, 600))), LINE_RATE_BPS)
        remover = lab.node.popen("tc", "qdisc", "del", "dev", UPLINK, "root")
        wait_until(lambda: not shaper.read(UPLINK).classes, "the tree is gone")
        remover.wait()
        assert shaper.apply(UPLINK, [RemoveRoot()], LINE_RATE_BPS) == []
    assert shaper.apply(UPLINK, [CreateClass(tree()[1])], LINE_RATE_BPS) != []


def test_an_unchanged_class_is_the_same_object_and_a_changed_one_is_another(lab: Topology, shaper: HtbShaper) -> None:
    shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS)
    first = shaper.read(UPLINK).classes
    lab.node.run("tc", *f"class change dev {UPLINK} parent 1:10 classid 1:1002 htb rate 8bit ceil 5mbit".split())
    second = shaper.read(UPLINK).classes
    assert second[0x1002] is not first[0x1002]
    assert second[0x1002].ceil_bps == 5_000_000
    assert second[0x1001] is first[0x1001]
    assert second[0x2002] is first[0x2002]
    shaper.apply(UPLINK, [RemoveRoot()], LINE_RATE_BPS)
    shaper.apply(UPLINK, creation(tree([2])), LINE_RATE_BPS)
    assert shaper.read(UPLINK).classes.keys() == tree([2]).keys()


def test_an_unchanged_dump_is_the_same_mapping(lab: Topology, shaper: HtbShaper) -> None:
    silence(lab)
    shaper.apply(UPLINK, creation(tree(range(1, 400))), LINE_RATE_BPS)  # several datagrams
    first = shaper.read(UPLINK).classes
    assert shaper.read(UPLINK).classes is first
    sent = lab.send_udp(lab.node, lab.sink.address, 3, 700)
    second = shaper.read(UPLINK).classes
    assert {minor for minor in second if second[minor] is not first[minor]} == {0x1, 0x10, 0x1FFF}
    assert second[0x1FFF].sent_bytes >= first[0x1FFF].sent_bytes + sent
    assert shaper.read(UPLINK).classes is second


def test_classes_that_come_and_go_leave_the_others_the_same_objects(lab: Topology, shaper: HtbShaper) -> None:
    silence(lab)
    desired = tree(range(1, 400))
    shaper.apply(UPLINK, creation(desired), LINE_RATE_BPS)
    first = shaper.read(UPLINK).classes
    new, gone = leaf(STANDARD, 500), leaf(EXEMPT, 3)
    spec = ClassSpec(new, 0x10, 8, 8_000, 1600, new)
    assert shaper.apply(UPLINK, [CreateClass(spec), DeleteClass(gone)], LINE_RATE_BPS) == []
    second = shaper.read(UPLINK).classes
    assert second.keys() == (first.keys() | {new}) - {gone}
    others = [minor for minor in first.keys() & second.keys() if second[minor] is not first[minor]]
    assert [(first[minor], second[minor]) for minor in others] == []
    assert as_specs(second) == {**{minor: desired[minor] for minor in desired if minor != gone}, new: spec}


@pytest.mark.parametrize("error", [TornDumpError, MemoryError, KeyboardInterrupt])
def test_late_datagrams_of_a_broken_dump_are_not_taken_for_the_next_one(
    lab: Topology, shaper: HtbShaper, error: type[BaseException]
) -> None:
    shaper.apply(UPLINK, creation(tree(range(1, 60))), LINE_RATE_BPS)
    netlink, decoder, ifindex = NetlinkSocket(), ClassDecoder(), ifindex_of(UPLINK)
    request = codec.TCMSG.pack(0, ifindex, 0, codec.ROOT_HANDLE, 0)
    first = read_classes(netlink, ifindex, decoder)

    def break_off(datagram: memoryview) -> int:
        raise error

    port = netlink.port
    with pytest.raises(error):
        netlink.dump_into(codec.RTM_GETTCLASS, request, "listing", break_off)
    again = read_classes(netlink, ifindex, decoder)
    assert netlink.port != port
    assert again.keys() == first.keys()
    assert all(again[minor] is first[minor] for minor in first), "what is known is still good"
    netlink.close()


def test_a_socket_that_cannot_be_opened_is_tried_again_at_the_next_request(lab: Topology, shaper: HtbShaper) -> None:
    shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS)
    netlink, ifindex = NetlinkSocket(), ifindex_of(UPLINK)
    with pytest.raises(MemoryError):
        netlink.dump_into(codec.RTM_GETTCLASS, codec.TCMSG.pack(0, ifindex, 0, codec.ROOT_HANDLE, 0), "listing", _fail)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(KernelError, match="cannot open a netlink socket"):
            read_root(netlink, ifindex)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert read_root(netlink, ifindex).kind == "htb"
    assert read_classes(netlink, ifindex, ClassDecoder()).keys() == tree().keys()
    netlink.close()


def _fail(datagram: memoryview) -> int:
    raise MemoryError
