"""The node's mode, switched on a running agent with real packets: Enforce, Monitor, Disabled and back."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.folder_lab import FolderLab, M, folder_lab, node_object
from tests.support.topology import wait_until


@pytest.fixture
def lab(tmp_path: Path, kernel: None) -> Iterator[FolderLab]:
    """Two slices, one of them held to 10 Mbit/s; the test starts the agent."""
    with folder_lab(tmp_path, "codeen", "coral", offloads=True) as made:
        made.write_slice("codeen", standard={"maxRate": "10M"})
        made.write_slice("coral", standard={"maxRate": "500M"})
        yield made


NO_CEILING_BPS = 10**15
"""Of every class in mode Monitor."""


def set_mode(lab: FolderLab, mode: str, **spec: object) -> None:
    """Set the mode as a person does."""
    destinations = [*lab.net.sink.exempt_networks]
    lab.write("node", node_object(lineRate="1G", cap="200M", exemptDestinations=destinations, mode=mode, **spec))


def traces(lab: FolderLab) -> tuple[str, str]:
    """Everything that slicebw could leave behind: the uplink's qdiscs, without figures, and the nftables tables."""
    return lab.net.node.run("tc", "qdisc", "show", "dev", lab.net.uplink), lab.net.node.run("nft", "list", "tables")


def until_ceilings(lab: FolderLab, **ceilings: int) -> None:
    """Wait until the kernel has these ceilings, in bit/s, by slice id without its ``1:``."""
    expected = {name.replace("class_", "1:"): rate_bps for name, rate_bps in ceilings.items()}

    def hold() -> bool:
        observed = lab.classes()
        return all(name in observed and observed[name].ceil_bps == rate_bps for name, rate_bps in expected.items())

    wait_until(hold, f"ceilings are {expected}")


def used_bytes(lab: FolderLab) -> int:
    """What codeen has used, as the ledger on disk has it."""
    account = lab.account("codeen")
    return 0 if account is None else account.standard.used_bytes


def rate_mbps(lab: FolderLab, name: str, seconds: int = 2) -> float:
    """TCP goodput of a slice's pod."""
    return lab.net.tcp_rate_bps(lab.pod(name), lab.net.sink.address, seconds) / M


def test_disabled_leaves_the_device_as_it_was_found_and_enforce_brings_everything_back(lab: FolderLab) -> None:
    found = traces(lab)
    set_mode(lab, "Enforce")
    lab.start()
    codeen = lab.slice_id("codeen")
    until_ceilings(lab, class_10=200 * M, class_1001=10 * M)
    assert codeen == "1:1001"
    assert traces(lab) != found
    assert 8 <= rate_mbps(lab, "codeen") <= 10
    wait_until(lambda: used_bytes(lab) > 1 * M, "what was sent is counted")

    set_mode(lab, "Disabled")
    wait_until(lambda: traces(lab) == found, "nothing is left of slicebw")
    assert rate_mbps(lab, "codeen") > 50
    assert traces(lab) == found
    used = used_bytes(lab)

    set_mode(lab, "Enforce")
    until_ceilings(lab, class_10=200 * M, class_1001=10 * M)
    assert lab.slice_id("codeen") == codeen
    # Traffic in mode Disabled is not counted; usage from before stays.
    wait_until(lambda: used_bytes(lab) == used + lab.classes()[codeen].sent_bytes, "usage continues")
    assert 8 <= rate_mbps(lab, "codeen") <= 10


def test_monitor_limits_nothing_and_counts_everything(lab: FolderLab) -> None:
    lab.write_slice("codeen", standard={"maxRate": "10M", "budget": "10M", "threshold": "50%"})
    set_mode(lab, "Monitor")
    lab.start()
    codeen = lab.slice_id("codeen")
    until_ceilings(lab, class_10=NO_CEILING_BPS, class_20=NO_CEILING_BPS, class_1001=NO_CEILING_BPS)
    assert rate_mbps(lab, "codeen", 3) > 50
    wait_until(lambda: lab.events("BandwidthCapped"), "the event that would be")
    (message,) = lab.events("BandwidthCapped")
    assert message.startswith("Would have slowed (mode Monitor) standard traffic of slice codeen/codeen")
    assert {observed.ceil_bps for observed in lab.classes().values()} == {NO_CEILING_BPS}
    wait_until(lambda: used_bytes(lab) == lab.classes()[codeen].sent_bytes, "every byte is in the ledger", seconds=15)


def test_monitor_limits_nothing_where_the_line_rate_is_set_far_too_low(lab: FolderLab) -> None:
    """As where a device reports no speed, or a wrong one, and is faster than slicebw assumes."""
    spec = {"lineRate": "2M", "cap": "1M", "mode": "Monitor"}
    lab.write("node", node_object(**spec, exemptDestinations=[*lab.net.sink.exempt_networks]))
    lab.start()
    codeen = lab.slice_id("codeen")
    lab.until_served("codeen")
    assert rate_mbps(lab, "codeen") > 50
    exempt_mbps = lab.net.tcp_rate_bps(lab.pod("codeen"), lab.net.sink.exempt_address, 2) / M
    own_mbps = lab.net.tcp_rate_bps(lab.net.node, lab.net.sink.address, 2) / M
    assert min(exempt_mbps, own_mbps) > 50
    assert lab.classes()[codeen].ceil_bps == NO_CEILING_BPS
    # And limits take hold again from one second to the next, without a debt from before.
    set_mode(lab, "Enforce")
    until_ceilings(lab, class_1=1000 * M, class_10=200 * M, class_1001=10 * M)
    assert 8 <= rate_mbps(lab, "codeen") <= 10


SWITCHES = (("Monitor", 50, 10**6), ("Disabled", 50, 10**6), ("Enforce", 7, 12), ("Monitor", 50, 10**6))
"""Mode, and what one flow of codeen may then get, in Mbit/s."""


def test_every_switch_takes_hold_while_traffic_flows_and_is_one_event(lab: FolderLab) -> None:
    set_mode(lab, "Enforce")
    lab.start()
    until_ceilings(lab, class_1001=10 * M)
    flow = lab.net.traffic(lab.pod("codeen"), lab.net.sink.address, 60)
    messages = []
    before = "Enforce"
    for mode, least, most in SWITCHES:
        set_mode(lab, mode)
        messages.append(f"The mode of this node is {mode} now, it was {before}")
        until_events(lab, messages)
        until_passing(lab, least, most)
        before = mode
    flow.stop()
    assert lab.events("TreeRebuilt") == []
    lab.stop()
    lab.start()
    until_events(lab, messages)


def until_events(lab: FolderLab, messages: list[str]) -> None:
    """Wait until there are exactly these events of a change of mode."""
    wait_until(
        lambda: sorted(message.split(":")[0] for message in lab.events("ModeChanged")) == sorted(messages),
        f"the events are {messages}",
    )


def until_passing(lab: FolderLab, least_mbps: float, most_mbps: float) -> None:
    """Wait until so much arrives at the sink: a flow that was slowed needs a moment to take what it may have."""
    wait_until(lambda: least_mbps <= passing_mbps(lab) <= most_mbps, f"{least_mbps} to {most_mbps} Mbit/s arrive", 20)


def passing_mbps(lab: FolderLab, seconds: float = 0.5) -> float:
    """What arrives at the sink, measured over a short time."""
    before, start = lab.net.sink.received_bytes(lab.net.uplink), time.monotonic()
    wait_until(lambda: time.monotonic() - start > seconds, "some time has passed")
    return (lab.net.sink.received_bytes(lab.net.uplink) - before) * 8 / (time.monotonic() - start) / M
