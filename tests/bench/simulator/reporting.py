"""The simulated agents' reports: one process, with the product's own report queue, sink and throttle for each node.

Each agent has its own queue and write budget, lists the usages of an earlier agent, and makes a pass every ten seconds.
Only the kernel is simulated, and all agents share their connections.
"""

import heapq
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Final

from slicebw.agent.report_queue import ReportQueue
from slicebw.agent.report_throttle import SILENCE_NS, ReportThrottle
from slicebw.core.clock import NS
from slicebw.core.ledger import PendingEvent
from slicebw.core.node_pass import LONGEST_NS
from slicebw.kube.agent_sink import ApiSink
from slicebw.kube.api_thread import ApiThread
from tests.bench.simulator.fleet import Fleet, SimulatedNode
from tests.bench.simulator.traffic import MeteredConnection, Traffic, TrafficMeter

REPORT_INTERVAL_NS: Final = 60 * NS
AGE_S: Final = 3600
"""How long the periods have been running at the start."""


@dataclass(frozen=True, slots=True)
class Cap:
    """A request to cap the slice with this index on this node."""

    node: int
    index: int


@dataclass(frozen=True, slots=True)
class CapMade:
    """The answer to :class:`Cap`: capped and reported at ``at_s`` (monotonic clock, the same in all processes)."""

    namespace: str
    at_s: float


class Stop:
    """A request to end."""


class Look:
    """A request for :class:`Reported`."""


@dataclass(frozen=True, slots=True)
class Reported:
    """What the fleet has reported so far. ``late_s`` is by how much the last pass was late."""

    started: int
    waiting: int
    writes: int
    unanswered: int
    traffic: Traffic
    late_s: float


class _Agent:
    """One node's pass, throttle and report queue."""

    def __init__(self, api: ApiThread, node: SimulatedNode) -> None:
        self.node = node
        self.reports = ReportQueue(ApiSink(api, node.name))
        self._throttle = ReportThrottle(REPORT_INTERVAL_NS)
        # Spread over ten minutes when nodes end their silence, as in a fleet that did not start all at once.
        self._age_ns: int = node.number * 7919 * NS % SILENCE_NS

    def start(self) -> None:
        self.reports.start()

    def make_pass(self, events: tuple[PendingEvent, ...] = ()) -> None:
        now_s = time.time()
        now_ns, self._age_ns = time.monotonic_ns() - self._age_ns, 0
        due, expired = self._throttle.due(self.node.usages(now_s), now_ns)
        report = self.node.node_report(now_s)
        self.reports.report(due, expired, events, report if self._throttle.node_due(report, now_ns) else None)


class Reporting:
    """All agents' reports, from the calling thread and one :class:`ApiThread`."""

    def __init__(self, kubeconfig: str, fleet: Fleet, ramp_s: float) -> None:
        self._meter = TrafficMeter()
        self._api = ApiThread(lambda: MeteredConnection.load(kubeconfig, self._meter), "slicebw-agent/simulated")
        self._api.start()
        begun_s = int(time.time()) - AGE_S
        self._agents = [_Agent(self._api, SimulatedNode(fleet, number, begun_s)) for number in range(fleet.nodes)]
        now = time.monotonic()
        self._due = [(now + ramp_s * number / fleet.nodes, number) for number in range(fleet.nodes)]
        self._started = 0
        self._late_s = 0.0

    def serve(self, pipe: Pipe) -> None:
        """Make passes when they are due and answer requests, until :class:`Stop` comes."""
        while True:
            if pipe.poll(max(0.0, self._due[0][0] - time.monotonic())):
                match pipe.recv():
                    case Cap(node, index):
                        pipe.send(self._cap(node, index))
                    case Look():
                        pipe.send(self._look())
                    case _:
                        self._api.stop()
                        return
            if self._due[0][0] <= time.monotonic():
                self._next_pass()

    def _next_pass(self) -> None:
        due, number = heapq.heappop(self._due)
        agent = self._agents[number]
        self._late_s = time.monotonic() - due
        if self._started <= number:
            agent.start()
            self._started += 1
        agent.make_pass()
        heapq.heappush(self._due, (due + LONGEST_NS / NS, number))

    def _cap(self, number: int, index: int) -> CapMade:
        agent = self._agents[number]
        key, event = agent.node.cap(index, time.time())
        at_s = time.monotonic()
        agent.make_pass((event,))
        return CapMade(key.namespace, at_s)

    def _look(self) -> Reported:
        waiting = sum(agent.reports.waiting for agent in self._agents)
        writes = sum(agent.reports.writes for agent in self._agents)
        unanswered = sum(agent.reports.previous_reports() is None for agent in self._agents)
        return Reported(self._started, waiting, writes, unanswered, self._meter.now(), self._late_s)


def run(pipe: Pipe, kubeconfig: str, fleet: Fleet, ramp_s: float) -> None:
    """Run the process. Agents start one after the other within ``ramp_s``."""
    Reporting(kubeconfig, fleet, ramp_s).serve(pipe)
