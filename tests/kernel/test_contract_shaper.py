"""What every Shaper must do: the same tests over the fake and over the kernel."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from slicebw.agent.ports import Shaper
from slicebw.core.dataplane import (
    ChangeClass,
    CreateClass,
    CreateRoot,
    DeleteClass,
    ObservedTree,
    RemoveRoot,
    ReplaceLeafQdisc,
    ResetTokens,
    RootQdisc,
    TreeChange,
)
from slicebw.core.errors import UplinkError
from slicebw.core.plan import plan_tree, unmet
from slicebw.kernel.fake import FakeShaper
from slicebw.kernel.htb import HtbShaper
from tests.support.topology import UPLINK, Topology
from tests.support.trees import LINE_RATE_BPS, creation, tree


@dataclass
class World:
    """A shaper, and what other programs do to its device."""

    shaper: Shaper
    delete_tree: Callable[[], object]
    put_foreign_root: Callable[[], object]
    rename: Callable[[str, str], object]
    send: Callable[[int], int]
    """Lets the default class send this many packets. Returns their bytes."""

    def apply(self, *changes: TreeChange) -> list[TreeChange]:
        """Carry out changes. Returns the refused ones."""
        return [failed.change for failed in self.shaper.apply(UPLINK, changes, LINE_RATE_BPS)]


@pytest.fixture(params=["fake", "kernel"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """An uplink with the kernel's default qdisc."""
    if request.param == "fake":
        fake = FakeShaper(UPLINK)
        device = fake.devices[UPLINK]

        def put_foreign_root() -> None:
            device.root, device.root_kind = RootQdisc.FOREIGN, "tbf"

        def send(packets: int) -> int:
            fake.send(0x1FFF, packets * 1042)
            return packets * 1042

        def rename(old: str, new: str) -> None:
            fake.devices[new] = fake.devices.pop(old)
            fake.default_device = new

        yield World(fake, device.lose_tree, put_foreign_root, rename, send)
        return
    lab: Topology = request.getfixturevalue("lab")
    run = lab.node.run
    shaper = HtbShaper()
    foreign = ("tc", "qdisc", "add", "dev", UPLINK, "root", "tbf", "rate", "1mbit", "burst", "10k", "limit", "100k")
    yield World(
        shaper,
        lambda: run("tc", "qdisc", "del", "dev", UPLINK, "root"),
        lambda: run(*foreign),
        lambda old, new: _rename(lab, old, new),
        lambda packets: lab.send_udp(lab.node, lab.sink.address, packets, 1000),
    )
    shaper.close()


def _rename(lab: Topology, old: str, new: str) -> None:
    """Rename a device, in the way that the oldest kernel allows: while it is down, which costs it its routes."""
    gateway = lab.node.run("ip", "route", "show", "default").split()[2]
    lab.node.ip(f"link set {old} down\nlink set {old} name {new}\nlink set {new} up\nroute add default via {gateway}")


def _uncounted(observed: ObservedTree) -> ObservedTree:
    """A tree without its counters: a device that comes up sends IPv6 packets of its own between two reads."""
    classes = {minor: replace(one, sent_bytes=0, backlog_bytes=0) for minor, one in observed.classes.items()}
    return replace(observed, classes=classes)


def test_an_uplink_as_found_has_a_default_root_and_no_classes(world: World) -> None:
    observed = world.shaper.read(UPLINK)
    assert (observed.device, observed.root, observed.root_kind) == (UPLINK, RootQdisc.DEFAULT, "noqueue")
    assert (dict(observed.classes), observed.line_rate_bps) == ({}, 10_000_000_000)


def test_without_a_name_it_is_the_device_of_the_default_route(world: World) -> None:
    assert world.shaper.read(None) == world.shaper.read(UPLINK)


def test_a_device_is_the_same_one_under_another_name(world: World) -> None:
    before = world.shaper.find(UPLINK)
    assert before == world.shaper.find(None)
    assert before is not None
    assert before.name == UPLINK
    assert world.shaper.find(before) == before
    world.apply(*creation(tree()))
    world.rename(UPLINK, "wan7")
    after = replace(before, name="wan7")
    assert world.shaper.find(before) == world.shaper.find("wan7") == world.shaper.find(None) == after
    assert world.shaper.find(UPLINK) is None
    assert world.shaper.find(replace(before, netns=before.netns + 1)) is None, "of another namespace the name counts"
    seen = world.shaper.read(before.ifindex)
    assert _uncounted(seen) == _uncounted(world.shaper.read("wan7"))
    assert (seen.device, seen.ifindex, seen.netns, seen.root) == ("wan7", before.ifindex, before.netns, RootQdisc.OURS)
    assert world.shaper.apply(before.ifindex, [DeleteClass(0x1001)], LINE_RATE_BPS) == []
    assert 0x1001 not in world.shaper.read(before.ifindex).classes
    with pytest.raises(UplinkError):
        world.shaper.read(UPLINK)


def test_a_created_tree_is_observed(world: World) -> None:
    desired = tree()
    assert world.apply(*creation(desired)) == []
    observed = world.shaper.read(UPLINK)
    assert (observed.root, observed.root_kind) == (RootQdisc.OURS, "htb")
    assert observed.classes.keys() == desired.keys()
    for minor, spec in desired.items():
        one = observed.classes[minor]
        assert (one.minor, one.parent, one.rate_bps, one.ceil_bps) == (minor, spec.parent, spec.rate_bps, spec.ceil_bps)
        assert (one.quantum_bytes, one.leaf_major) == (spec.quantum_bytes, spec.leaf_major)
    assert plan_tree(desired, observed, ()) == ()
    assert unmet(creation(desired), observed) == ()


def test_a_change_keeps_what_was_counted(world: World) -> None:
    desired = tree()
    world.apply(*creation(desired))
    before = world.shaper.read(UPLINK).classes[0x1FFF].sent_bytes
    sent = world.send(3)
    default = desired[0x1FFF]
    for change in (
        ChangeClass(replace(default, ceil_bps=80_000, quantum_bytes=3200)),
        ResetTokens(replace(default, ceil_bps=8_000_000, quantum_bytes=3200)),
        ReplaceLeafQdisc(0x1FFF, 0x7000),
    ):
        assert world.apply(change) == []
        assert unmet([change], world.shaper.read(UPLINK)) == ()
    after = world.shaper.read(UPLINK).classes[0x1FFF]
    assert before + sent <= after.sent_bytes < before + sent + 500
    assert (after.ceil_bps, after.quantum_bytes, after.leaf_major) == (8_000_000, 3200, 0x7000)
    assert 0x3000 not in world.shaper.read(UPLINK).classes


def test_refused_changes_are_reported_and_the_others_hold(world: World) -> None:
    desired = tree()
    world.apply(*creation(desired))
    absent = replace(desired[0x1001], minor=0x1777, leaf_major=0x1777)
    slower = ChangeClass(replace(desired[0x1001], ceil_bps=8000))
    refused: list[TreeChange] = [
        CreateRoot(),
        CreateClass(desired[0x1002]),
        ChangeClass(absent),
        ResetTokens(absent),
        ReplaceLeafQdisc(0x1777, 0x1777),
        DeleteClass(0x10),
    ]
    assert world.apply(*refused[:3], slower, *refused[3:], DeleteClass(0x2002)) == refused
    observed = world.shaper.read(UPLINK).classes
    assert observed[0x1001].ceil_bps == 8000
    assert desired.keys() - observed.keys() == {0x2002}


def test_what_is_gone_already_may_be_deleted_again(world: World) -> None:
    world.apply(*creation(tree()))
    assert world.apply(DeleteClass(0x1002), DeleteClass(0x1002), DeleteClass(0x1777)) == []
    assert world.apply(RemoveRoot(), RemoveRoot()) == []
    assert world.shaper.read(UPLINK).root is RootQdisc.DEFAULT


def test_a_class_made_anew_counts_from_zero(world: World) -> None:
    desired = tree()
    world.apply(*creation(desired))
    world.send(3)
    assert world.shaper.read(UPLINK).classes[0x1FFF].sent_bytes > 3000
    assert world.apply(DeleteClass(0x1FFF), CreateClass(desired[0x1FFF])) == []
    assert world.shaper.read(UPLINK).classes[0x1FFF].sent_bytes < 500


def test_a_tree_deleted_by_others_is_made_again(world: World) -> None:
    desired = tree()
    world.apply(*creation(desired))
    world.delete_tree()
    observed = world.shaper.read(UPLINK)
    assert observed.root is RootQdisc.DEFAULT
    assert world.apply(*plan_tree(desired, observed, ())) == []
    assert plan_tree(desired, world.shaper.read(UPLINK), ()) == ()


def test_without_our_root_no_class_is_touched(world: World) -> None:
    changes: list[TreeChange] = [CreateClass(tree()[1]), DeleteClass(0x1001), ReplaceLeafQdisc(0x1001, 0x1001)]
    assert world.apply(*changes) == changes
    world.put_foreign_root()
    changes = [*creation(tree()), RemoveRoot()]
    assert world.apply(*changes) == changes
    observed = world.shaper.read(UPLINK)
    assert (observed.root, observed.root_kind, dict(observed.classes)) == (RootQdisc.FOREIGN, "tbf", {})


def test_a_device_that_is_not_there_is_an_error_that_names_it(world: World) -> None:
    with pytest.raises(UplinkError, match=r"^there is no device named wlan7; there are "):
        world.shaper.read("wlan7")
    with pytest.raises(UplinkError, match=r"^there is no device named wlan7; there are "):
        world.shaper.apply("wlan7", [CreateRoot()], LINE_RATE_BPS)
