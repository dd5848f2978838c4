"""The whole testbed: a control plane, a real controller, and the two processes of the simulator."""

import asyncio
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final, TypeVar

from slicebw.core.errors import SlicebwError
from slicebw.kube import connection
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.client import ApiClient
from slicebw.kube.resources import NODES, SLICE_BANDWIDTHS, Resource
from tests.api.cluster import Cluster
from tests.bench.gauges import Served, cpu_s, rss_mb, served
from tests.bench.simulator import reporting, watching
from tests.bench.simulator.fleet import Fleet
from tests.support.processes import Slicebw

_T = TypeVar("_T")

NAMESPACES: Final = Resource("", "v1", "namespaces", namespaced=False)
CONCURRENT: Final = 16
CALL_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Reading:
    """All figures at one moment. CPU is in seconds since each process started."""

    at_s: float
    cpu_s: dict[str, float]
    served: Served
    reported: reporting.Reported
    watching: watching.Watching


class Testbed:
    """A fleet on a control plane. The parts of the fleet are started one by one."""

    def __init__(self, cluster: Cluster, fleet: Fleet, folder: Path, stack: ExitStack) -> None:
        self.cluster, self.fleet, self._stack = cluster, fleet, stack
        self._api = ApiThread(lambda: connection.load(str(cluster.kubeconfig)), "slicebw-bench")
        self._api.start()
        stack.callback(self._api.stop)
        kubeconfig = ("--kubeconfig", str(cluster.kubeconfig))
        self.controller = Slicebw(folder / "controller.log", "controller", *kubeconfig)
        self.pids = {name: int((cluster.folder / f"{name}.pid").read_text()) for name in ("apiserver", "etcd")}
        self._agents: Pipe | None = None
        self._watchers: Pipe | None = None

    def call(self, work: Callable[[ApiClient], Coroutine[Any, Any, _T]]) -> _T:
        """Run a coroutine with the product's client, and wait."""
        return self._api.call(work(self._api.client), CALL_S)

    def populate(self) -> None:
        """Create Nodes, namespaces and SliceBandwidths."""
        fleet = self.fleet
        nodes = [{"metadata": {"name": fleet.node(number)}} for number in range(fleet.nodes)]
        keys = [fleet.key(number) for number in range(fleet.slices)]
        namespaces = [{"metadata": {"name": key.namespace}} for key in keys]

        async def create(client: ApiClient) -> None:
            await all_of(client.create(NODES, node) for node in nodes)
            await all_of(client.create(NAMESPACES, namespace) for namespace in namespaces)
            await all_of(
                client.apply(SLICE_BANDWIDTHS, fleet.slice_bandwidth(number), "kubectl")
                for number in range(fleet.slices)
            )

        self.call(create)

    def start_controller(self) -> None:
        """Start a real controller, and wait until it is ready."""
        self._stack.enter_context(self.controller)
        self.pids["controller"] = self.controller.pid

    def start_watches(self) -> None:
        """Open every agent's watches, and wait until they are open."""
        self._watchers, self.pids["watchers"] = self._spawn("watches", watching.run, self.fleet)
        until(lambda: self.watches().open == 4 * self.fleet.nodes, "all watches are open", 60 + self.fleet.nodes / 2)

    def start_agents(self, ramp_s: float) -> None:
        """Begin to start agents; all have started after ``ramp_s``."""
        self._agents, self.pids["agents"] = self._spawn("agents", reporting.run, self.fleet, ramp_s)

    def all_reported(self) -> bool:
        """Tell whether every agent has started and has no reports waiting."""
        reported = self.reports()
        return reported.started == self.fleet.nodes and not reported.waiting and not reported.unanswered

    def all_rolled_up(self) -> bool:
        """Tell whether every SliceBandwidth's status counts all nodes that run it."""

        async def count(client: ApiClient) -> int:
            total = 0
            async for page in client.pages(SLICE_BANDWIDTHS, resourceVersion="0"):
                total += sum(item.get("status", {}).get("nodes", 0) for item in page.items)
            return total

        return self.call(count) == self.fleet.usages

    def cap(self, node: int, index: int) -> reporting.CapMade:
        """Cap the slice of this index on a node."""
        return self._ask(self._agents, reporting.Cap(node, index))  # type: ignore[no-any-return]

    def reports(self) -> reporting.Reported:
        """Return what the agents have reported."""
        return self._ask(self._agents, reporting.Look())  # type: ignore[no-any-return]

    def watches(self) -> watching.Watching:
        """Return what their watches have received."""
        return self._ask(self._watchers, watching.Look())  # type: ignore[no-any-return]

    def served(self) -> Served:
        """Return what the API server has served."""
        return served(self.cluster.kubectl("get", "--raw", "/metrics"))

    def read(self) -> Reading:
        """Read all figures."""
        cpu = {name: cpu_s(pid) for name, pid in self.pids.items()}
        return Reading(time.monotonic(), cpu, self.served(), self.reports(), self.watches())

    def rss_mb(self) -> dict[str, float]:
        """Return the resident memory of each process."""
        return {name: rss_mb(pid) for name, pid in self.pids.items()}

    def _spawn(self, name: str, body: Callable[..., None], *arguments: object) -> tuple[Pipe, int]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=body, args=(theirs, str(self.cluster.kubeconfig), *arguments), name=name, daemon=True
        )
        process.start()
        theirs.close()

        def end() -> None:
            with suppress(OSError):  # it may have ended already
                ours.send(reporting.Stop() if name == "agents" else watching.Stop())
            process.join(15)
            if process.is_alive():
                process.kill()
                process.join()

        self._stack.callback(end)
        assert process.pid is not None
        return ours, process.pid

    def _ask(self, pipe: Pipe | None, question: object) -> Any:
        assert pipe is not None, "not started"
        pipe.send(question)
        if not pipe.poll(60):
            raise TimeoutError(f"the simulator does not answer {type(question).__name__}")
        return pipe.recv()


@contextmanager
def testbed(fleet: Fleet) -> Iterator[Testbed]:
    """Run a control plane with slicebw's kinds in a temporary folder, within the context."""
    folder = Path(tempfile.mkdtemp(prefix="slicebw-scale-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = Cluster(folder / "control-plane")
        stack.callback(cluster.stop)
        cluster.install_crds()
        yield Testbed(cluster, fleet, folder, stack.enter_context(ExitStack()))


def until(condition: Callable[[], object], what: str, seconds: float, every_s: float = 0.25) -> float:
    """Poll until a condition holds. Returns how long that took, in s. Raises TimeoutError."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"waited {seconds:.0f} s until {what}")
        time.sleep(every_s)
    return time.monotonic() - begun


async def all_of(work: Iterator[Coroutine[Any, Any, object]]) -> None:
    """Run coroutines, CONCURRENT at a time. Raises SlicebwError if one of them failed."""
    gate = asyncio.Semaphore(CONCURRENT)

    async def one(coroutine: Coroutine[Any, Any, object]) -> None:
        async with gate:
            await coroutine

    results = await asyncio.gather(*(one(coroutine) for coroutine in work), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise SlicebwError(f"the testbed cannot be made: {result}") from result
