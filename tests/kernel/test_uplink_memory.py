"""The uplink is remembered: by its number through a rename, and for as long as no other one is known for certain."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.folder_lab import FolderLab, M, budget_lab, node_object
from tests.support.senders import Sender
from tests.support.topology import SINK, UPLINK, wait_until

pytestmark = pytest.mark.usefixtures("kernel")

PERIOD_S = 60


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FolderLab]:
    with budget_lab(tmp_path, PERIOD_S) as lab:
        yield lab


def ready(lab: FolderLab) -> tuple[str, str, str]:
    """Status, reason and message of the node's condition Ready."""
    (status,) = lab.status("nodebandwidths")
    (found,) = [one for one in status["status"]["conditions"] if one["type"] == "Ready"]
    return found["status"], found["reason"], found["message"]


def until_ready(lab: FolderLab, status: str, reason: str, seconds: float = 5) -> str:
    """Wait until Ready says this; its message."""
    wait_until(lambda: ready(lab)[:2] == (status, reason), f"Ready is {status}, {reason}", seconds, every_s=0.05)
    return ready(lab)[2]


def rename(lab: FolderLab, old: str, new: str) -> None:
    """Rename a device of the node, with whatever goes through it."""
    lab.net.node.ip(f"link set {old} name {new}\n")


def lose_default_routes(lab: FolderLab) -> None:
    """Take both default routes away; the sink can still be reached."""
    lab.net.node.ip(
        """
        route add 203.0.113.0/24 via 192.0.2.2
        route del default
        route del ::/0
        """
    )
    assert SINK.startswith("203.0.113.")


def let_pass(seconds: float) -> None:
    """Let so much time go by."""
    begin = time.monotonic()
    wait_until(lambda: time.monotonic() > begin + seconds, "time goes by")


def device(lab: FolderLab) -> Any:
    """The device that the node reports."""
    (status,) = lab.status("nodebandwidths")
    return status["status"]["device"]


def is_shaped(lab: FolderLab, name: str) -> bool:
    """Whether a device has slicebw's classes."""
    return "htb 1:10 " in lab.net.node.run("tc", "class", "show", "dev", name)


def test_a_rename_under_traffic_loses_no_byte(lab: FolderLab) -> None:
    with Sender(lab.pod("coral"), lab.net.sink.address, 6 * M):
        for old, new in ((UPLINK, "wan7"), ("wan7", "wan8"), ("wan8", UPLINK)):
            let_pass(1.5)
            rename(lab, old, new)
            wait_until(lambda new=new: device(lab) == new, f"it is called {new}", 5)  # type: ignore[misc]
    lab.until_counted("coral")
    assert not lab.events("UplinkChanged")
    assert not lab.events("TreeRebuilt")
    assert re.search(r"uplink renamed old=uplink0 new=wan7", lab.log())


def test_a_rename_while_the_agent_is_away_loses_no_byte(lab: FolderLab) -> None:
    lab.send("coral", 20)
    lab.until_counted("coral")
    lab.stop()
    lab.send("coral", 30)
    rename(lab, UPLINK, "wan7")
    lab.send("coral", 40)
    lab.start()
    lab.until_counted("coral")
    assert device(lab) == "wan7"
    assert not lab.events("UplinkChanged")


def test_without_a_default_route_caps_and_period_ends_go_on(lab: FolderLab) -> None:
    lab.send("codeen", 10)
    lab.until_counted("codeen")
    lose_default_routes(lab)
    lab.send("codeen", 1000)
    wait_until(lambda: lab.events("BandwidthCapped"), "codeen is capped")
    assert (lab.ceil_bps("codeen") or 50 * M) < M
    lab.until_counted("codeen")
    message = until_ready(lab, "False", "UplinkKept")
    assert "no default route" in message
    assert "uplink0" in message
    wait_until(lambda: lab.ceil_bps("codeen") == 50 * M, "its next period begins", PERIOD_S + 5, every_s=0.2)
    lab.net.node.ip("route add default via 192.0.2.2\n")
    until_ready(lab, "True", "Enforcing")
    assert not lab.events("UplinkChanged")


def test_an_agent_that_starts_while_the_route_is_away_goes_on_with_the_last_uplink(lab: FolderLab) -> None:
    lab.send("codeen", 10)
    lab.until_counted("codeen")
    lab.kill()
    lose_default_routes(lab)
    rename(lab, UPLINK, "wan7")
    lab.start()
    until_ready(lab, "False", "UplinkKept")
    lab.send("codeen", 1000)
    wait_until(lambda: lab.events("BandwidthCapped"), "codeen is capped")
    lab.until_counted("codeen")


def test_another_device_is_taken_when_the_default_route_has_stayed_there_for_a_while(lab: FolderLab) -> None:
    lab.net.node.ip("link add wan9 type ifb\nlink set wan9 up\n")
    lose_default_routes(lab)
    lab.net.node.ip("route add default dev wan9\n")
    message = until_ready(lab, "False", "UplinkChanging", 2)
    assert "wan9" in message
    assert is_shaped(lab, UPLINK)
    lab.net.node.ip("route replace default via 192.0.2.2\n")
    until_ready(lab, "True", "Enforcing", 2)
    lab.send("coral", 20)
    lab.until_counted("coral")
    assert not lab.events("UplinkChanged")
    lab.net.node.ip("route replace default dev wan9\n")
    wait_until(lambda: device(lab) == "wan9", "the other device is taken", 10)
    until_ready(lab, "True", "Enforcing")
    assert not is_shaped(lab, UPLINK)
    assert is_shaped(lab, "wan9")
    wait_until(lambda: lab.events("UplinkChanged"), "an event says so")


def test_a_device_that_is_named_and_not_there_leaves_limits_where_they_are(lab: FolderLab) -> None:
    lab.write("node", node_object(lineRate="1G", cap="100M", device="eth7"))
    message = until_ready(lab, "False", "UplinkKept")
    assert "no device named eth7" in message
    lab.send("codeen", 1000)
    wait_until(lambda: lab.events("BandwidthCapped"), "codeen is capped")
    lab.net.node.ip("link add eth7 type ifb\nlink set eth7 up\n")
    wait_until(lambda: device(lab) == "eth7", "the device that is named is taken", 15)
    until_ready(lab, "True", "Enforcing")


def test_a_device_made_again_under_its_name_gets_a_tree_and_is_told_as_another_one(lab: FolderLab) -> None:
    lab.net.node.ip("link add wan9 type ifb\nlink set wan9 up\n")
    lab.write("node", node_object(lineRate="1G", cap="200M", device="wan9"))
    wait_until(lambda: is_shaped(lab, "wan9"), "the device that is named is taken")
    wait_until(lambda: len(lab.events("UplinkChanged")) == 1, "an event says so")
    let_pass(1.1)  # events of one reason in one second are one
    lab.net.node.ip("link del wan9\n")
    until_ready(lab, "False", "NoUplink", 10)
    lab.net.node.ip("link add wan9 type ifb\nlink set wan9 up\n")
    wait_until(lambda: is_shaped(lab, "wan9"), "the new one is taken", 15)
    until_ready(lab, "True", "Enforcing")
    wait_until(lambda: len(lab.events("UplinkChanged")) == 2, "an event says so")
    assert not lab.events("TreeRebuilt")
