"""Where a cluster keeps what: its folder, its addresses, its processes and their namespaces."""

import os
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hack.lab.console import LabError
from hack.lab.files import write
from hack.lab.processes import Service
from tests.support.topology import SINK, SINK_EXEMPT, NetworkNamespace

WAN: Final = "wan"
"""The network outside the cluster."""
SINKS: Final = (SINK, SINK_EXEMPT)
"""Its addresses: reserved for documentation (RFC 5737), so nobody has them."""
POD_NETWORK: Final = "10.244"
"""The first half of all pods' addresses; then comes the node's number."""
MACHINE: Final = NetworkNamespace("this machine", os.getpid())
"""The network namespace that this program was started in."""
_HOST_OF_MACHINE: Final = 254
_HOST_OF_WAN: Final = 1
_FIRST_HOST_OF_NODES: Final = 10


@dataclass(frozen=True, slots=True)
class Layout:
    """The cluster in a folder."""

    folder: Path

    # --- files ---

    @property
    def network_file(self) -> Path:
        """Holds the number; there as long as the cluster is."""
        return self.folder / "network"

    @property
    def nodes_folder(self) -> Path:
        """Holds the nodes' folders, and links to what all of them run."""
        return self.folder / "nodes"

    def node_folder(self, node: str) -> Path:
        """A node's disk, configuration and logs."""
        return self.nodes_folder / node

    @property
    def packaged(self) -> Path:
        """Containerd, runc and the CNI plugins, unpacked; a link."""
        return self.nodes_folder / "packaged"

    @property
    def control_plane_folder(self) -> Path:
        """The DIR of hack/control-plane."""
        return self.folder / "control-plane"

    def nodes(self) -> Sequence[str]:
        """The names of the nodes there are, running or not, by their numbers."""
        names = [path.name for path in self.nodes_folder.glob("node-*") if path.is_dir()]
        return sorted(names, key=number_of)

    # --- names and addresses ---

    @property
    def number(self) -> int:
        """What makes this cluster's names and addresses differ from another's on this machine."""
        return int(self.network_file.read_text())

    def choose_number(self) -> None:
        """Choose it where there is none yet."""
        if self.network_file.exists():
            return
        for number in random.sample(range(256), 256):
            # 198.18.0.0/15 is for benchmarks (RFC 2544): it is not routed anywhere.
            routes = MACHINE.run("ip", "-o", "route", "show", f"198.18.{number}.0/24")
            if not routes.strip() and not Path(f"/sys/class/net/slicebw-{number}").exists():
                write(self.network_file, f"{number}\n")
                return
        raise LabError("all networks 198.18.X.0/24 are in use on this machine: see ip route show, and free one")

    @property
    def device(self) -> str:
        """The link from this machine to the network outside, at this end."""
        return f"slicebw-{self.number}"

    @property
    def machine_address(self) -> str:
        """Of this machine; the API server listens there."""
        return self._address(_HOST_OF_MACHINE)

    @property
    def gateway(self) -> str:
        """The nodes' next hop to everywhere."""
        return self._address(_HOST_OF_WAN)

    def node_address(self, node: str) -> str:
        """A node's, on its uplink."""
        return self._address(_FIRST_HOST_OF_NODES + number_of(node))

    def _address(self, host: int) -> str:
        return f"198.18.{self.number}.{host}"

    def cgroup(self, node: str) -> str:
        """The cgroup of a node's pods, as a path in each hierarchy."""
        return f"/slicebw-{self.number}-{node}"

    # --- processes ---

    def service(self, name: str) -> Service:
        """The process that keeps the namespaces of a node or of wan."""
        mark = str(self.network_file) if name == WAN else f"--folder={self.node_folder(name)}"
        return Service(name, self.folder, mark)

    def namespace_pid(self, name: str) -> int:
        """The process whose namespaces are those of a node (its init) or of wan. Raises LabError where none runs."""
        if name != WAN and not self.node_folder(name).is_dir():
            raise LabError(f"there is no node {name} in {self.folder}; there are: {' '.join((WAN, *self.nodes()))}")
        pid = self.service(name).pid()
        if pid is None:
            raise LabError(f"{name} does not run; start it with: hack/cluster up --dir {self.folder}")
        if name == WAN:
            return pid
        # A node's init is the child of the unshare that waits for it.
        done = subprocess.run(["pgrep", "--parent", str(pid)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"{name} is only just starting, or ending; try again")
        return int(done.stdout.split()[0])

    def namespace(self, name: str) -> NetworkNamespace:
        """The network namespace of a node or of wan. Raises LabError where it does not run."""
        return NetworkNamespace(name, self.namespace_pid(name))

    def has_namespace(self, name: str) -> bool:
        """Whether a node or wan runs, in a network namespace of its own already."""
        try:
            return Path(self.namespace(name).path).readlink() != Path(MACHINE.path).readlink()
        except (LabError, OSError):
            return False


def number_of(node: str) -> int:
    """The number in a node's name."""
    return int(node.removeprefix("node-"))


def pod_network(node: str) -> str:
    """The network of a node's pods."""
    return f"{POD_NETWORK}.{number_of(node)}.0/24"
