"""Changes by other programs wake the agent, its own do not.

Notifications come in order. So a test that expects no wake-up then causes one by another program, and expects one only.
"""

import threading
from collections.abc import Callable

import pytest

from slicebw.core.dataplane import ChangeClass, NftTable, RemoveTable, ReplaceTable, ResetTokens, UpdateTable
from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.nft import NftClassifier
from tests.support.topology import UPLINK, Topology, wait_until
from tests.support.trees import LINE_RATE_BPS, creation, tree


class Wakes:
    """Counts how often it was called, and from which threads."""

    def __init__(self) -> None:
        self.count = 0
        self.threads: set[str] = set()

    def __call__(self) -> None:
        """Count one wake-up."""
        self.threads.add(threading.current_thread().name)
        self.count += 1

    def only_when(self, disturb: Callable[[], object]) -> None:
        """Cause one notification. Check that it is the first to wake us, so that all earlier ones were ignored."""
        disturb()
        wait_until(lambda: self.count > 0, "we are woken", 1)
        assert self.count == 1


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@pytest.fixture
def watching(lab: Topology, shaper: HtbShaper, wakes: Wakes) -> HtbShaper:
    shaper.watch(wakes)
    assert shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS) == []
    shaper.read(None)
    return shaper


def disturbance(lab: Topology) -> Callable[[], object]:
    """Return a change by another program that causes one notification."""
    line = f"class change dev {UPLINK} parent 1:10 classid 1:1001 htb rate 8bit ceil 5mbit quantum 1600\n"
    return lambda: lab.node.run("tc", "-batch", "-", text=line)


def test_our_own_changes_and_readings_do_not_wake_us(lab: Topology, watching: HtbShaper, wakes: Wakes) -> None:
    for _ in range(20):
        spec = tree()[0x1002]
        assert watching.apply(UPLINK, [ChangeClass(spec), ResetTokens(spec)], LINE_RATE_BPS) == []
        watching.read(UPLINK)
    wakes.only_when(disturbance(lab))
    assert wakes.threads == {"watcher"}


@pytest.mark.parametrize(
    "command",
    [
        f"tc qdisc del dev {UPLINK} root",
        f"tc class del dev {UPLINK} classid 1:1001",
        f"tc class add dev {UPLINK} parent 1:10 classid 1:1005 htb rate 1mbit",
        f"tc qdisc replace dev {UPLINK} parent 1:1001 pfifo limit 3",
        f"ip link set {UPLINK} down",
        f"ip link del {UPLINK}",
        "ip route del default",
        "ip route replace default via 192.0.2.77",
        "ip -6 route del default",
    ],
)
def test_what_others_do_to_the_uplink_wakes_us(lab: Topology, watching: HtbShaper, wakes: Wakes, command: str) -> None:
    lab.node.run(*command.split())
    wait_until(lambda: wakes.count > 0, "we are woken", 1)


def test_other_devices_and_other_routes_do_not_wake_us(lab: Topology, watching: HtbShaper, wakes: Wakes) -> None:
    lab.add_pod()
    lab.node.run("tc", "qdisc", "add", "dev", "pod0", "root", "pfifo")
    lab.node.run("ip", "route", "add", "198.18.0.0/15", "via", "192.0.2.2")
    wakes.only_when(disturbance(lab))


def test_before_an_uplink_is_found_every_device_counts(lab: Topology, shaper: HtbShaper, wakes: Wakes) -> None:
    shaper.watch(wakes)
    lab.node.run("ip", "link", "set", "pod0", "alias", "x")
    wait_until(lambda: wakes.count > 0, "we are woken", 1)


def test_after_close_nobody_is_woken(lab: Topology, watching: HtbShaper, wakes: Wakes) -> None:
    watching.close()
    disturbance(lab)()
    assert "watcher" not in {thread.name for thread in threading.enumerate()}
    assert wakes.count == 0


def test_lost_notifications_wake_us(lab: Topology, shaper: HtbShaper, wakes: Wakes) -> None:
    hold = threading.Event()

    def wake_slowly() -> None:
        wakes()
        hold.wait(60)

    shaper.watch(wake_slowly)
    assert shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS) == []
    shaper.read(UPLINK)
    disturbance(lab)()
    wait_until(lambda: wakes.count == 1, "we are woken", 1)
    # Make our own changes, which do not wake us, until the socket buffer of 8 MiB is full: nothing reads it meanwhile.
    changes = [ChangeClass(spec) for spec in tree().values()] * 100
    for _ in range(20):
        assert shaper.apply(UPLINK, changes, LINE_RATE_BPS) == []
    assert wakes.count == 1
    hold.set()
    wait_until(lambda: wakes.count == 2, "the loss wakes us", 10)


@pytest.fixture
def watching_table(lab: Topology, classifier: NftClassifier, wakes: Wakes) -> NftClassifier:
    classifier.watch(wakes)
    classifier.apply(ReplaceTable(NftTable({"10.0.0.1": 1})))
    return classifier


def test_our_own_transactions_do_not_wake_us(lab: Topology, watching_table: NftClassifier, wakes: Wakes) -> None:
    for number in range(5):
        watching_table.apply(UpdateTable(add=((f"10.0.1.{number}", 5),)))
        watching_table.read()
    watching_table.apply(RemoveTable())
    watching_table.apply(ReplaceTable(NftTable({"10.0.0.1": 1})))
    wakes.only_when(lambda: lab.node.run("nft", "add element inet slicebw standard4 { 10.0.0.9 : 1:1009 }"))


@pytest.mark.parametrize(
    "command",
    [
        "delete table inet slicebw",
        "flush ruleset",
        "flush chain inet slicebw exempt",
        "insert rule inet slicebw postrouting counter",
        "add set inet slicebw other { type ipv4_addr; }",
        "delete element inet slicebw standard4 { 10.0.0.1 }",
    ],
)
def test_what_others_do_to_the_table_wakes_us(
    lab: Topology, watching_table: NftClassifier, wakes: Wakes, command: str
) -> None:
    lab.node.run("nft", command)
    wait_until(lambda: wakes.count > 0, "we are woken", 1)


def test_other_tables_do_not_wake_us(lab: Topology, watching_table: NftClassifier, wakes: Wakes) -> None:
    lab.node.run("nft", "-f", "-", text="table inet other { chain c { counter accept; }\n }")
    lab.node.run("nft", "delete table inet other")
    wakes.only_when(lambda: lab.node.run("nft", "add element inet slicebw standard4 { 10.0.0.9 : 1:1009 }"))
