"""``slicebw agent --manifests``: the whole agent as a process, on real namespaces and packets, without a cluster."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import Slicebw, agent
from tests.support.tc import classes
from tests.support.topology import Host, Topology, wait_until

M = 1_000_000
NODE = "node-a"
NAMES = ("codeen", "coral")


class Lab:
    """A node with two pods, a folder of manifests, and an agent on it."""

    def __init__(self, net: Topology, folder: Path) -> None:
        self.net = net
        self.folder = folder
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.agent = self.new_agent()

    def new_agent(self, *arguments: str) -> Slicebw:
        """An agent like the first one, with the same state."""
        self.agent = agent(self.folder, NODE, self.net.node.path, "--manifests", str(self.manifests), *arguments)
        return self.agent

    def write(self, name: str, *objects: dict[str, Any]) -> None:
        """Put objects into a file."""
        (self.manifests / f"{name}.yaml").write_text(yaml.safe_dump_all(objects))

    def status(self, kind: str) -> list[dict[str, Any]]:
        """Return the objects of a kind that the agent has written."""
        paths = sorted((self.manifests / "status" / kind).rglob("*.yaml"))
        return [yaml.safe_load(path.read_text()) for path in paths]

    def usage(self, name: str) -> dict[str, Any] | None:
        """A slice's BandwidthUsage, None where there is none (yet)."""
        found = [one for one in self.status("bandwidthusages") if one["sliceName"] == name]
        return found[0] if found else None

    def standard(self, name: str) -> dict[str, Any]:
        """The standard class of a slice's BandwidthUsage; empty where there is none (yet)."""
        usage = self.usage(name)
        return {} if usage is None else dict(usage["standard"])

    def ceil_bps(self, name: str) -> int | None:
        """The ceiling of a slice's standard class in the kernel, None where it has no class."""
        observed = classes(self.net.node, self.net.uplink).get(self.standard(name).get("classId", ""))
        return None if observed is None else observed.ceil_bps

    def until(self, what: str, condition: Callable[[], object], seconds: float = 10) -> None:
        """Wait until a condition holds."""
        wait_until(condition, what, seconds)

    def until_ceiling(self, name: str, ceil_bps: int | None, seconds: float = 10) -> None:
        """Wait until a slice has this ceiling in the kernel."""
        self.until(f"{name} has ceiling {ceil_bps}", lambda: self.ceil_bps(name) == ceil_bps, seconds)

    def arrived_bytes(self, name: str, to: str | None = None) -> int:
        """Return the bytes that have arrived from a slice's pod, as HTB counts them."""
        return self.net.sink.meter(self.pod(name).address, to or self.net.sink.address).wire_bytes

    def pod(self, name: str) -> Host:
        """A slice's pod."""
        return self.net.pod(NAMES.index(name))

    def send(self, name: str, packets: int, chunk: int = 50) -> None:
        """Send datagrams from a slice's pod, no more at once than queues hold, and wait until they have arrived."""
        for _ in range(packets // chunk):
            expected = self.arrived_bytes(name) + self.net.send_udp(self.pod(name), self.net.sink.address, chunk)
            self.until("datagrams arrive", lambda total=expected: self.arrived_bytes(name) == total)  # type: ignore[misc]


def slice_object(name: str, **spec: object) -> dict[str, Any]:
    """A SliceBandwidth as a person writes it."""
    metadata = {"name": name, "namespace": name}
    return {"apiVersion": "slicebw.io/v1alpha1", "kind": "SliceBandwidth", "metadata": metadata, "spec": spec}


def pod_object(name: str, *addresses: str) -> dict[str, Any]:
    """A pod as a person writes it: no uid, no node."""
    status = {"podIPs": [{"ip": address} for address in addresses]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": name}, "status": status}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Two slices with a pod and a ``maxRate`` each; the agent is started by the test."""
    with Topology(pods=2, offloads=False) as net:
        net.sink.start_meter()
        one = Lab(net, tmp_path)
        destinations = list(net.sink.exempt_networks)
        node = {"apiVersion": "slicebw.io/v1alpha1", "kind": "NodeBandwidth", "metadata": {"name": "default"}}
        one.write("node", {**node, "spec": {"lineRate": "1G", "exemptDestinations": destinations}})
        one.write(
            "pods", *(pod_object(name, pod.address, pod.address6) for name, pod in zip(NAMES, net.pods, strict=True))
        )
        one.write("codeen", slice_object("codeen", standard={"maxRate": "10M"}))
        one.write("coral", slice_object("coral", standard={"maxRate": "20M"}))
        yield one
        one.agent.stop()


def test_limits_from_a_folder_are_held_and_every_byte_is_reported(lab: Lab) -> None:
    with lab.agent:
        lab.until_ceiling("codeen", 10 * M)
        lab.until_ceiling("coral", 20 * M)
        sink = lab.net.sink
        flows = [(lab.pod("codeen"), sink.address), (lab.pod("coral"), sink.address6)]
        codeen, coral, exempt = (
            bps / M for bps in lab.net.tcp_rates_bps([*flows, (lab.pod("codeen"), sink.exempt_address)], 3)
        )
        assert 8.5 <= codeen <= 10
        assert 17 <= coral <= 20
        assert exempt > 50
        # A new generation is reported at once, with all usage until then.
        lab.write("codeen", slice_object("codeen", standard={"maxRate": "11M"}))
        lab.until_ceiling("codeen", 11 * M)
        lab.until("it is reported", lambda: lab.standard("codeen")["rate"] == "11M")
        usage = lab.usage("codeen")
        assert usage is not None
        assert usage["standard"]["bytesUsed"] == lab.arrived_bytes("codeen")
        assert usage["exempt"]["bytesUsed"] == lab.arrived_bytes("codeen", sink.exempt_address)
    (own,) = lab.status("nodebandwidths")
    assert (own["metadata"]["name"], own["status"]["device"], own["status"]["slices"]) == (NODE, lab.net.uplink, 2)


def test_an_edited_file_changes_the_rate_within_a_second(lab: Lab) -> None:
    with lab.new_agent("--report-interval", "60s"):  # otherwise there is a pass every second anyway
        lab.until_ceiling("codeen", 10 * M)
        lab.until_ceiling("coral", 20 * M)
        flow = lab.net.traffic(lab.net.pod(0), lab.net.sink.address, 20)
        for rate in (30, 15, 5):
            generation = (lab.usage("codeen") or {})["observedGeneration"]
            lab.write("codeen", slice_object("codeen", standard={"maxRate": f"{rate}M"}))
            lab.until_ceiling("codeen", rate * M, seconds=1)
            lab.until("the edit is reported", lambda old=generation: lab.usage("codeen")["observedGeneration"] != old)  # type: ignore[index, misc]
        before, start = lab.net.sink.received_bytes(lab.net.uplink), time.monotonic()
        lab.until("some seconds have been measured", lambda: time.monotonic() - start > 3)
        sent_bps = (lab.net.sink.received_bytes(lab.net.uplink) - before) * 8 / (time.monotonic() - start)
        assert 4 * M <= sent_bps <= 5.5 * M
        assert lab.ceil_bps("coral") == 20 * M
        flow.stop()


def test_a_slice_whose_file_is_removed_goes_to_the_default_class_and_goes_on_when_it_is_back(lab: Lab) -> None:
    with lab.agent:
        lab.until_ceiling("codeen", 10 * M)
        lab.send("codeen", 300)
        sent = lab.arrived_bytes("codeen")
        text = (lab.manifests / "codeen.yaml").read_text()
        (lab.manifests / "codeen.yaml").unlink()
        lab.until("its usage has no class any more", lambda: "classId" not in lab.standard("codeen"))
        assert lab.standard("codeen")["bytesUsed"] == sent
        default = classes(lab.net.node, lab.net.uplink)["1:1fff"].sent_bytes
        lab.send("codeen", 100)
        in_default = classes(lab.net.node, lab.net.uplink)["1:1fff"].sent_bytes - default
        assert in_default == lab.arrived_bytes("codeen") - sent > 0
        (lab.manifests / "codeen.yaml").write_text(text)
        lab.until_ceiling("codeen", 10 * M)
        assert lab.standard("codeen")["bytesUsed"] == sent


def test_a_broken_file_changes_nothing_and_holds_up_nothing(lab: Lab) -> None:
    with lab.agent:
        lab.until_ceiling("codeen", 10 * M)
        lab.until_ceiling("coral", 20 * M)
        (lab.manifests / "codeen.yaml").write_text("kind: [")
        lab.write("coral", slice_object("coral", standard={"maxRate": "40M"}))
        lab.until_ceiling("coral", 40 * M)
        lab.until("the log says so", lambda: "codeen.yaml:2: cannot be read" in lab.agent.log.read_text())
        assert lab.ceil_bps("codeen") == 10 * M
    # The next agent also has the last valid content of the file.
    with lab.new_agent():
        lab.write("coral", slice_object("coral", standard={"maxRate": "50M"}))
        lab.until_ceiling("coral", 50 * M)
        assert lab.ceil_bps("codeen") == 10 * M


def test_a_wrong_limit_keeps_the_last_good_ones_and_is_said_everywhere(lab: Lab) -> None:
    with lab.agent:
        lab.until_ceiling("codeen", 10 * M)
        lab.write("codeen", slice_object("codeen", standard={"maxRate": "10 Mbit"}))
        lab.until("an event says so", lambda: lab.status("events"))
        (event,) = lab.status("events")
        assert event["reason"] == "InvalidSpec"
        assert "spec.standard.maxRate" in event["message"]
        lab.until("the usage says so", lambda: (lab.usage("codeen") or {}).get("errors"))
        assert "codeen.yaml:1: SliceBandwidth codeen/codeen: spec.standard.maxRate" in lab.agent.log.read_text()
        assert lab.ceil_bps("codeen") == 10 * M


def capped_slice() -> dict[str, Any]:
    """Give codeen a budget of 2 MB, and slow it after 1 MB."""
    return slice_object("codeen", period="120s", standard={"maxRate": "50M", "budget": "2M", "threshold": "50%"})


def test_an_event_is_written_once_however_often_the_agent_is_killed(lab: Lab) -> None:
    lab.write("codeen", capped_slice())
    lab.agent.start()
    lab.until_ceiling("codeen", 50 * M)
    lab.send("codeen", 1000)
    lab.until("the event is there", lambda: lab.status("events"))
    lab.agent.kill()
    (path,) = (lab.manifests / "status" / "events").rglob("*.yaml")
    written = path.stat()
    for _ in range(3):
        with lab.new_agent():
            reported_at = (lab.usage("codeen") or {})["reportedAt"]
            lab.send("codeen", 20, chunk=20)
            lab.until("it reports", lambda old=reported_at: (lab.usage("codeen") or {})["reportedAt"] != old)  # type: ignore[misc]
            assert lab.standard("codeen")["capped"] is True
            assert (lab.ceil_bps("codeen") or 0) < 1 * M
            lab.agent.kill()
    assert list((lab.manifests / "status" / "events").rglob("*.yaml")) == [path]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_lost_ledger_is_rebuilt_from_the_status_folder(lab: Lab) -> None:
    lab.write("codeen", capped_slice())
    with lab.agent:
        lab.until_ceiling("codeen", 50 * M)
        lab.send("codeen", 1000)
        lab.until("the cap is reported", lambda: lab.standard("codeen")["capped"])
        period_start = (lab.usage("codeen") or {})["periodStart"]
    shutil.rmtree(lab.folder / "state")
    lab.send("codeen", 20, chunk=20)
    with lab.new_agent():
        lab.until("usage goes on", lambda: lab.standard("codeen")["bytesUsed"] == lab.arrived_bytes("codeen"))
        assert (lab.usage("codeen") or {})["periodStart"] == period_start
        assert lab.standard("codeen")["capped"] is True
        assert [one["reason"] for one in lab.status("events")] == ["BandwidthCapped"]


@pytest.mark.parametrize(("name", "words", "code"), [("missing", "does not exist", 1), ("file", "is a file", 2)])
def test_a_folder_that_is_not_there_ends_the_agent_with_one_line(
    tmp_path: Path, name: str, words: str, code: int
) -> None:
    (tmp_path / "file").touch()
    with Topology(pods=0) as net:
        process = agent(tmp_path, NODE, net.node.path, "--manifests", str(tmp_path / name))
        process.start()
        wait_until(lambda: process.exit_code() is not None, "the agent has ended")
        assert process.exit_code() == code
        assert words in process.log.read_text().splitlines()[-1]
        assert "Traceback" not in process.log.read_text()
