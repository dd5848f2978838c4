"""Which device the agent shapes: through renames, restarts, reboots, and while there is no route or another one."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import RootQdisc
from slicebw.core.errors import UplinkError
from slicebw.core.ledger import Reason
from slicebw.core.reports import NodeReport
from slicebw.kernel.fake import FakeDevice
from tests.unit.agent.test_reconciler import KEY, STANDARD, World
from tests.unit.core.builders import M, at


class Machine(World):
    """A node that can be booted, and whose devices can be renamed."""

    boot = "boot"

    def clock(self) -> Instant:
        return at(self.seconds, self.boot)

    def rename(self, old: str, new: str) -> None:
        self.shaper.devices[new] = self.shaper.devices.pop(old)
        if self.shaper.default_device == old:
            self.shaper.default_device = new

    def name_uplink(self, name: str | None) -> None:
        self.feed.now = replace(self.feed.now, node=replace(self.feed.now.node, device=name))

    def used_bytes(self) -> int:
        return self.ledger.slices[KEY].standard.used_bytes

    def ready(self) -> tuple[bool, str]:
        node = self.reporter.nodes[-1]
        return node.ready, node.not_ready_reason

    def reasons(self) -> set[Reason]:
        return {event.reason for event in self.reporter.events.values()}


@pytest.fixture
def world(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.run()
    return made


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("route", [True, False])
def test_a_rename_is_followed_and_every_byte_counted(world: Machine, *, away: bool, route: bool) -> None:
    world.shaper.send(STANDARD, 5 * M)
    world.run()
    applied = len(world.shaper.applied)
    world.shaper.send(STANDARD, 7 * M)
    world.rename("uplink0", "wan7")
    world.shaper.send(STANDARD, 11 * M)
    if not route:
        world.shaper.default_device = None
    if away:
        world.start_agent()
    world.run()
    assert world.used_bytes() == 23 * M
    assert world.ledger.device == "wan7"
    assert world.reporter.nodes[-1].device == "wan7"
    assert len(world.shaper.applied) == applied
    assert not world.reasons()
    assert world.reconciler.stats.repairs.total == 0


def test_the_name_that_a_renamed_uplink_had_is_nobodys(world: Machine) -> None:
    world.rename("uplink0", "wan7")
    world.shaper.devices["uplink0"] = FakeDevice()
    world.shaper.send(STANDARD, 7 * M)
    world.run()
    assert world.used_bytes() == 7 * M
    assert world.shaper.devices["uplink0"].root is RootQdisc.DEFAULT


def test_after_a_reboot_a_name_counts_and_a_number_does_not(world: Machine) -> None:
    world.shaper.send(STANDARD, 5 * M)
    world.run()
    first, second = world.shaper.devices["uplink0"], world.shaper.devices["uplink1"]
    first.lose_tree()
    first.ifindex, second.ifindex = second.ifindex, first.ifindex
    world.shaper.default_device = None
    world.boot = "next boot"
    world.start_agent()
    world.run()
    assert world.ceil_bps(device="uplink0") == 10 * M
    assert second.root is RootQdisc.DEFAULT
    world.shaper.send(STANDARD, 2 * M, "uplink0")
    world.run()
    assert world.used_bytes() == 7 * M
    assert not world.reasons()


def test_the_boot_that_a_number_is_of_is_on_disk_though_nothing_else_has_changed(world: Machine) -> None:
    world.run()
    world.boot = "next boot"
    world.start_agent()
    world.run()
    read_at = world.ledger.read_at
    assert read_at is not None
    assert read_at.boot_id == "next boot"


def test_after_a_reboot_the_device_with_the_default_route_is_taken_at_once(world: Machine) -> None:
    world.shaper.devices["uplink0"].lose_tree()
    world.shaper.default_device = "uplink1"
    world.boot = "next boot"
    world.start_agent()
    world.run()
    assert world.ceil_bps(device="uplink1") == 10 * M
    assert world.reasons() == {Reason.UPLINK_CHANGED}


def test_in_another_network_namespace_a_number_is_another_devices(world: Machine) -> None:
    """As on a node that is a container: it starts again, in a namespace of its own, within one boot of the machine."""
    first, second = world.shaper.devices["uplink0"], world.shaper.devices["uplink1"]
    first.lose_tree()
    first.ifindex, second.ifindex = second.ifindex, first.ifindex
    world.shaper.netns = 2
    world.shaper.default_device = None
    world.start_agent()
    world.run()
    assert world.ceil_bps(device="uplink0") == 10 * M
    assert second.root is RootQdisc.DEFAULT


def test_a_ledger_without_a_number_goes_by_the_name(world: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.reconciler, "_ledger", replace(world.ledger, ifindex=0, netns=0))
    world.shaper.send(STANDARD, 5 * M)
    world.run()
    assert world.used_bytes() == 5 * M
    assert world.ledger.ifindex == world.shaper.devices["uplink0"].ifindex


def test_without_a_route_the_last_uplink_is_kept_and_ready_says_so(world: Machine) -> None:
    world.shaper.default_device = None
    world.shaper.send(STANDARD, 90 * M, "uplink0")
    world.run()
    assert world.ready() == (False, "UplinkKept")
    expected = "there is no default route; slicebw stays on uplink0, the last uplink"
    assert world.reporter.nodes[-1].message == expected
    assert world.ceil_bps() < M, "a cap does not wait for a route"
    world.run(seconds=3600)
    assert world.ceil_bps() == 10 * M, "nor does the end of a period"
    world.shaper.default_device = "uplink0"
    world.run()
    assert world.ready()[0]


def test_another_device_is_taken_after_the_hold_off_and_not_if_the_route_comes_back(world: Machine) -> None:
    world.shaper.default_device = "uplink1"
    assert world.run() <= 5 * NS
    assert world.ready() == (False, "UplinkChanging")
    assert "the default route is on uplink1; slicebw stays on uplink0" in world.reporter.nodes[-1].message
    world.run(seconds=3)
    world.shaper.default_device = "uplink0"
    world.run()
    assert world.ready()[0]
    world.shaper.default_device = "uplink1"
    world.run()
    assert world.run(seconds=4) <= NS
    assert world.ceil_bps() == 10 * M
    world.run()
    assert world.ceil_bps(device="uplink1") == 10 * M
    assert world.ready()[0]
    assert world.reasons() == {Reason.UPLINK_CHANGED}


def test_a_route_that_comes_and_goes_elsewhere_is_followed_in_the_end(world: Machine) -> None:
    for device in ("uplink1", None, "uplink1", None, "uplink1", None):
        world.shaper.default_device = device
        world.run()
        assert world.ceil_bps() == 10 * M
    assert world.run(seconds=20) > NS, "without a route there is nothing to hurry for"
    world.shaper.default_device = "uplink1"
    world.run()
    assert world.ceil_bps(device="uplink1") == 10 * M


def test_a_device_that_somebody_names_is_taken_at_once(world: Machine) -> None:
    world.name_uplink("uplink1")
    world.run()
    assert world.ceil_bps(device="uplink1") == 10 * M
    assert world.shaper.devices["uplink0"].root is RootQdisc.DEFAULT
    world.name_uplink(None)
    world.run()
    assert world.ceil_bps(device="uplink0") == 10 * M
    assert world.shaper.devices["uplink1"].root is RootQdisc.DEFAULT


def test_a_device_that_is_named_and_missing_leaves_limits_where_they_are(world: Machine) -> None:
    world.name_uplink("eth7")
    world.shaper.send(STANDARD, 90 * M)
    world.run()
    assert world.ready() == (False, "UplinkKept")
    assert world.ceil_bps() < M
    world.shaper.devices["eth7"] = FakeDevice()
    world.run()
    assert world.ceil_bps(device="eth7") < M


def test_a_named_device_that_is_renamed_is_kept_until_another_one_has_the_name(world: Machine) -> None:
    world.name_uplink("uplink0")
    world.run()
    world.rename("uplink0", "wan7")
    world.shaper.send(STANDARD, 3 * M, "wan7")
    world.run()
    assert world.used_bytes() == 3 * M
    says = "there is no device named uplink0; slicebw stays on wan7, the last uplink"
    assert world.reporter.nodes[-1].message == says
    world.shaper.devices["uplink0"] = FakeDevice()
    world.run()
    assert world.ceil_bps(device="uplink0") == 10 * M
    assert world.shaper.devices["wan7"].root is RootQdisc.DEFAULT


@pytest.mark.parametrize("route", ["uplink0", None])
def test_a_device_made_again_under_its_name_is_another_one(world: Machine, route: str | None) -> None:
    world.shaper.send(STANDARD, 5 * M)
    world.run()
    world.shaper.devices["uplink0"] = FakeDevice()
    world.shaper.default_device = route
    world.run()
    world.shaper.send(STANDARD, 1 * M, "uplink0")
    world.run()
    assert world.used_bytes() == 6 * M
    assert [event.message for event in world.reporter.events.values()] == [
        "uplink0 is another device now; usage continues"
    ]


def test_an_uplink_that_is_gone_is_said_to_be_and_another_one_is_taken_at_once(world: Machine) -> None:
    del world.shaper.devices["uplink0"]
    world.shaper.default_device = None
    with pytest.raises(UplinkError):
        world.run()
    assert world.ready() == (False, "NoUplink")
    node: NodeReport = world.reporter.nodes[-1]
    assert (node.message, node.slices) == ("there is no default route, and nothing is limited: name the uplink", 1)
    assert world.reconciler.node == node
    says = "there is no default route, and nothing is limited: name the uplink"
    assert world.reporter.usages[-1].not_enforced_reason == says
    assert not world.reporter.expired
    world.shaper.default_device = "uplink1"
    world.run()
    assert world.ceil_bps(device="uplink1") == 10 * M
    assert world.ready()[0]
    assert world.reporter.usages[-1].not_enforced_reason == ""


def test_without_a_route_at_its_first_start_an_agent_waits_and_says_so(tmp_path: Path) -> None:
    world = Machine(tmp_path)
    world.shaper.default_device = None
    with pytest.raises(UplinkError, match="no default route: name the uplink; there are uplink0, uplink1"):
        world.run()
    assert world.ready() == (False, "NoUplink")
    world.shaper.default_device = "uplink0"
    world.run()
    assert world.ceil_bps() == 10 * M
    assert world.ready()[0]
