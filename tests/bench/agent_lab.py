"""A real agent on a real API server, for benchmarks: a node's network, the process, and monitors of the kernel."""

import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from slicebw.api import kinds
from slicebw.kube import connection
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.client import ApiClient
from slicebw.kube.resources import PODS, SLICE_BANDWIDTHS
from tests.api.cluster import Cluster, node_bandwidth, slice_bandwidth
from tests.bench.simulator.testbed import NAMESPACES, all_of
from tests.support.processes import Slicebw
from tests.support.topology import Namespace, Topology

NODE = "node"
CALL_S = 900.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a monitor printed, and when (monotonic clock)."""

    at_s: float
    text: str


class Monitor:
    """``tc monitor`` or ``nft monitor`` in a namespace: the kernel's own messages about its changes, as they come."""

    def __init__(self, namespace: Namespace, *command: str) -> None:
        """Start it, in line-buffered mode, and keep its lines from now on."""
        self._process = subprocess.Popen(
            namespace.command("stdbuf", "-oL", *command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._changed = threading.Condition()
        self._lines: list[Line] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Monitor":
        """The monitor is running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def forget(self) -> None:
        """Drop the lines so far."""
        with self._changed:
            self._lines.clear()

    def first(self, pattern: str, within_s: float = 10.0) -> Line:
        """Wait for the first line since :meth:`forget` that the pattern matches. Raises TimeoutError."""
        regex, deadline, read = re.compile(pattern), time.monotonic() + within_s, 0
        with self._changed:
            while True:
                for line in self._lines[read:]:
                    if regex.search(line.text):
                        return line
                read = len(self._lines)
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise TimeoutError(f"waited {within_s:g} s for {pattern!r} of {self._process.args!r}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = Line(time.monotonic(), text)
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()


@dataclass(slots=True)
class AgentLab:
    """A control plane and a node's network; :meth:`agent` starts an agent there."""

    cluster: Cluster
    net: Topology
    folder: Path
    _api: ApiThread

    def agent(self, kubeconfig: Path | None = None, name: str = "agent", **options: str) -> Slicebw:
        """Make an agent with a ledger of its own; it is not started yet."""
        arguments = ["--kubeconfig", str(kubeconfig or self.cluster.kubeconfig), "--node", NODE]
        arguments += ["--netns", self.net.node.path, "--state-dir", str(self.folder / f"{name}.state")]
        for option, value in options.items():
            arguments += [f"--{option.replace('_', '-')}", value]
        return Slicebw(self.folder / f"{name}.log", "agent", *arguments)

    def controller(self) -> Slicebw:
        """Make a controller; it is not started yet."""
        return Slicebw(self.folder / "controller.log", "controller", "--kubeconfig", str(self.cluster.kubeconfig))

    def add_slices(self, numbers: Sequence[int], address: Callable[[int], str], **standard: str) -> None:
        """Create slices of one pod each, every one in a namespace of its own."""

        async def create(client: ApiClient) -> None:
            await all_of(client.create(NAMESPACES, {"metadata": {"name": namespace(one)}}) for one in numbers)
            await all_of(
                client.create(SLICE_BANDWIDTHS, slice_bandwidth(namespace(one), "slice", standard=standard))
                for one in numbers
            )
            await all_of(client.create(PODS, _pod(one)) for one in numbers)
            await all_of(client.apply(PODS, _running(one, address(one)), "bench", "status") for one in numbers)

        self._api.call(create(self._api.client), CALL_S)

    def patch(self, number: int, **standard: object) -> None:
        """Change a slice's limits, by server-side apply."""
        obj = slice_bandwidth(namespace(number), "slice", standard=standard)
        self._api.call(self._api.client.apply(SLICE_BANDWIDTHS, obj, "bench"), CALL_S)

    def add_pod(self, number: int, name: str, address: str) -> float:
        """Create a second pod of a slice. Returns when its address was sent to the API server (monotonic clock)."""
        self.cluster.core.create_namespaced_pod(namespace(number), _pod(number, name))
        at_s = time.monotonic()
        self.cluster.core.patch_namespaced_pod_status(name, namespace(number), {"status": _status(address)})
        return at_s


def namespace(number: int) -> str:
    """Return the namespace of a slice."""
    return f"tenant-{number:04}"


def _pod(number: int, name: str = "pod") -> dict[str, Any]:
    container = {"name": "main", "image": "none"}
    spec = {"nodeName": NODE, "containers": [container], "automountServiceAccountToken": False}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace(number), "name": name}, "spec": spec}


def _running(number: int, address: str) -> dict[str, Any]:
    metadata = {"namespace": namespace(number), "name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": _status(address)}


def _status(address: str) -> dict[str, Any]:
    return {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}


@contextmanager
def agent_lab(pods: int) -> Iterator[AgentLab]:
    """Run a control plane with slicebw's kinds beside a node with an uplink of 10 Gbit/s, within the context."""
    folder = Path(tempfile.mkdtemp(prefix="slicebw-bench-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        net = stack.enter_context(Topology(pods=pods))
        cluster = Cluster(folder / "control-plane")
        stack.callback(cluster.stop)
        cluster.install_crds()
        cluster.core.create_node({"metadata": {"name": NODE}})
        cluster.create(
            node_bandwidth(NODE, lineRate="10G", cap="5G", exemptDestinations=list(net.sink.exempt_networks))
        )
        api = ApiThread(lambda: connection.load(str(cluster.kubeconfig)), "slicebw-bench")
        api.start()
        stack.callback(api.stop)
        yield AgentLab(cluster, net, folder, api)


def standard_classid(lab: AgentLab, number: int) -> str:
    """Return the classid of a slice's standard class from its BandwidthUsage; empty before it is reported."""
    usage = lab.cluster.read(kinds.BANDWIDTH_USAGE, f"slice.{NODE}", namespace(number))
    return "" if usage is None else str(usage["standard"].get("classId", ""))
