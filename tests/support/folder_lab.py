"""A node whose agent reads its desired state from a folder, and all that a test can observe of it."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from slicebw.agent.checkpoint import FileStore
from slicebw.core.desired import SliceKey
from slicebw.core.ledger import Ledger, SliceAccount
from slicebw.kernel.htb import HtbShaper
from tests.support.counters import Counters, read_counters
from tests.support.processes import Slicebw, agent
from tests.support.tc import ShownClass, classes
from tests.support.topology import Host, Topology, wait_until

M: Final = 1_000_000
NODE: Final = "node-a"
API_VERSION: Final = "slicebw.io/v1alpha1"


def slice_object(name: str, **spec: object) -> dict[str, Any]:
    """Make a SliceBandwidth as a person writes it, in a namespace of its own name."""
    metadata = {"name": name, "namespace": name}
    return {"apiVersion": API_VERSION, "kind": "SliceBandwidth", "metadata": metadata, "spec": spec}


def pod_object(name: str, *addresses: str) -> dict[str, Any]:
    """Make a pod as a person writes it, in a namespace of its own name, without uid and node."""
    status = {"podIPs": [{"ip": address} for address in addresses]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": name}, "status": status}


def node_object(**spec: object) -> dict[str, Any]:
    """Make the NodeBandwidth ``default``, which applies to every node."""
    return {"apiVersion": API_VERSION, "kind": "NodeBandwidth", "metadata": {"name": "default"}, "spec": spec}


class FolderLab:
    """A node, a pod for each slice, a folder of manifests, and an agent that the test starts and kills.

    ``names`` are the slices' names in the order of their pods. Each slice has a namespace of its own name.
    """

    def __init__(self, net: Topology, folder: Path, names: Sequence[str]) -> None:
        """Make the folder. Nothing runs before :meth:`start`."""
        self.net = net
        self.folder = folder
        self.names = tuple(names)
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.state = folder / "state"
        self.agent: Slicebw | None = None

    def start(self, *arguments: str) -> Slicebw:
        """Start an agent on the state of the last one, and wait until limits are in force. Raises TimeoutError."""
        started = self.start_unready(*arguments)
        try:
            started.wait_ready()
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its log ends with:\n{self.log()[-3000:]}") from error
        return started

    def start_unready(self, *arguments: str) -> Slicebw:
        """Start an agent on the state of the last one, and do not wait."""
        self.agent = agent(self.folder, NODE, self.net.node.path, "--manifests", str(self.manifests), *arguments)
        self.agent.start()
        return self.agent

    def kill(self) -> None:
        """SIGKILL the agent."""
        assert self.agent is not None
        self.agent.kill()

    def stop(self) -> None:
        """SIGTERM the agent, if there is one."""
        if self.agent is not None:
            self.agent.stop()

    def log(self) -> str:
        """Return the log of all agents of this folder."""
        return (self.folder / "agent.log").read_text()

    # What people write into the folder.

    def write(self, file: str, *objects: dict[str, Any]) -> None:
        """Write objects into a file."""
        (self.manifests / f"{file}.yaml").write_text(yaml.safe_dump_all(objects))

    def write_slice(self, name: str, **spec: object) -> None:
        """Create or change a slice."""
        self.write(name, slice_object(name, **spec))

    def remove_slice(self, name: str) -> None:
        """Delete a slice."""
        (self.manifests / f"{name}.yaml").unlink()

    def write_pods(self) -> None:
        """Write one pod for every slice."""
        self.write("pods", *(pod_object(name, self.pod(name).address, self.pod(name).address6) for name in self.names))

    # What the agent has written.

    def ledger(self) -> Ledger:
        """Return the ledger on disk; an empty one if there is none that can be read."""
        return FileStore(self.state).peek_ledger()[0] or Ledger()

    def account(self, name: str) -> SliceAccount | None:
        """Return a slice's account in the ledger on disk."""
        return self.ledger().slices.get(SliceKey(name, name))

    def slice_id(self, name: str) -> str:
        """Return the classid of a slice's standard class, once it has one."""
        wait_until(lambda: self.account(name) is not None, f"{name} has a class")
        account = self.account(name)
        assert account is not None
        return f"1:1{account.slice_id:03x}"

    def until_served(self, *names: str) -> None:
        """Wait until the slices' pods send through classes of their own."""
        for name in names:
            element = f"{self.pod(name).address} : {self.slice_id(name)}"
            wait_until(lambda element=element: element in self.ruleset(), f"the table has {element}")  # type: ignore[misc]

    def ruleset(self) -> str:
        """Return the nftables ruleset of the node."""
        return self.net.node.run("nft", "list", "ruleset")

    def status(self, kind: str) -> list[dict[str, Any]]:
        """Return the objects of a kind that the agent has reported."""
        paths = sorted((self.manifests / "status" / kind).rglob("*.yaml"))
        return [yaml.safe_load(path.read_text()) for path in paths]

    def usage(self, name: str) -> dict[str, Any] | None:
        """Return a slice's BandwidthUsage; None if there is none (yet)."""
        found = [one for one in self.status("bandwidthusages") if one["sliceName"] == name]
        return found[0] if found else None

    def events(self, reason: str) -> list[str]:
        """Return the messages of the Events with a reason, oldest first."""
        found = [one for one in self.status("events") if one["reason"] == reason]
        return [one["message"] for one in found]

    # What the kernel and the sink show.

    def classes(self) -> dict[str, ShownClass]:
        """Return the kernel's classes as tc shows them, by classid."""
        return classes(self.net.node, self.net.uplink)

    def counters(self) -> Counters:
        """Return the counters of all classes at one instant."""
        with closing(HtbShaper()) as shaper, self.net.node.inside():
            return read_counters(shaper, self.net.uplink)

    def ceil_bps(self, name: str) -> int | None:
        """Return the ceiling of a slice's standard class; None if it has no class."""
        account = self.account(name)
        shown = None if account is None else self.classes().get(f"1:1{account.slice_id:03x}")
        return None if shown is None else shown.ceil_bps

    def pod(self, name: str) -> Host:
        """Return a slice's pod."""
        return self.net.pod(self.names.index(name))

    def arrived_bytes(self, source: Host, to: str | None = None) -> int:
        """Return the bytes that have arrived at the sink from a host, as HTB counts them."""
        return self.net.sink.meter(source.address, to or self.net.sink.address).wire_bytes

    def send(self, name: str, packets: int, chunk: int = 50) -> None:
        """Send datagrams from a slice's pod, at most a queue's length at once, and wait until they have arrived."""
        pod, to = self.pod(name), self.net.sink.address
        for count in [chunk] * (packets // chunk) + [packets % chunk]:
            expected = self.arrived_bytes(pod) + self.net.send_udp(pod, to, count)
            wait_until(lambda total=expected: self.arrived_bytes(pod) == total, "datagrams arrive")  # type: ignore[misc]

    def until_counted(self, name: str, seconds: float = 15) -> None:
        """Wait until the ledger accounts for all that has arrived from a slice's pod at the sink's standard address."""

        def counted() -> bool:
            account = self.account(name)
            return account is not None and account.standard.total_bytes == self.arrived_bytes(self.pod(name))

        wait_until(counted, f"all of {name} is counted", seconds)


@contextmanager
def folder_lab(folder: Path, *names: str, offloads: bool = False, **node: object) -> Iterator[FolderLab]:
    """Build a lab with a pod for each name, and ``node`` as the NodeBandwidth's spec; no slices and no agent yet."""
    with Topology(pods=len(names), offloads=offloads) as net:
        net.sink.start_meter()
        lab = FolderLab(net, folder, names)
        lab.write("node", node_object(**{"lineRate": "1G", "exemptDestinations": [*net.sink.exempt_networks], **node}))
        lab.write_pods()
        try:
            yield lab
        finally:
            lab.stop()


@contextmanager
def budget_lab(folder: Path, period_s: int) -> Iterator[FolderLab]:
    """Build a lab with an agent. Codeen may send 2 MB a period and is slowed after 1 MB; coral is far from that."""
    with folder_lab(folder, "codeen", "coral", cap="200M") as lab:
        standard = {"maxRate": "50M", "budget": "2M", "threshold": "50%"}
        lab.write_slice("codeen", period=f"{period_s}s", standard=standard)
        lab.write_slice("coral", standard={"maxRate": "8M"})
        lab.start()
        lab.until_served("codeen", "coral")
        yield lab
