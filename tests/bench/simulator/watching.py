"""The simulated agents' watches: one process that opens what each agent opens, and counts what comes.

An agent watches four lists (``slicebw.kube.agent_feed``), each over a connection of its own. This process makes the
same requests over the product's own connections and counts the answers, but does not decode them: with a thousand
stores of all SliceBandwidths it would measure Python. ``footprint`` shows what decoding costs one agent.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Final

import aiohttp

from slicebw.api.kinds import DEFAULT_NODE_BANDWIDTH
from slicebw.kube import connection
from slicebw.kube.resources import NODE_BANDWIDTHS, PODS, SLICE_BANDWIDTHS
from slicebw.kube.watch_supervisor import Watched
from tests.bench.simulator.fleet import Fleet

AT_ONCE: Final = 16
"""Lists under way at a time, as in a DaemonSet's roll-out, where agents do not all start at once."""
REMEMBERED: Final = 20_000
_VERSION: Final = re.compile(rb'"resourceVersion":"(\d+)"')


@dataclass(frozen=True, slots=True)
class Shown:
    """A SliceBandwidth's status as it came to the first of the agents, and when (monotonic clock)."""

    at_s: float
    namespace: str
    capped_nodes: int
    version: int


@dataclass(slots=True)
class FanOut:
    """How one version of an object spread: when it first and last came to an agent, and to how many."""

    first_s: float
    last_s: float
    times: int = 1


@dataclass(frozen=True, slots=True)
class Watching:
    """What has come so far. ``open`` counts streams, ``broken`` those that the server did not end itself."""

    open: int
    broken: int
    list_bytes: int
    events: Mapping[str, int]
    event_bytes: Mapping[str, int]
    shown: tuple[Shown, ...]
    fan_outs: Mapping[int, FanOut]


class Stop:
    """A request to end."""


class Look:
    """A request for :class:`Watching`. Each answer has only what was shown since the last one."""


@dataclass
class _Counts:
    open: int = 0
    broken: int = 0
    list_bytes: int = 0
    events: Counter[str] = field(default_factory=Counter)
    event_bytes: Counter[str] = field(default_factory=Counter)
    shown: list[Shown] = field(default_factory=list)
    fan_outs: dict[int, FanOut] = field(default_factory=dict)
    order: deque[int] = field(default_factory=deque)


class _Watches:
    def __init__(self, kubeconfig: str, fleet: Fleet) -> None:
        self._connection = connection.load(kubeconfig)
        self._fleet = fleet
        self._counts = _Counts()
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def serve(self, pipe: Pipe) -> None:
        async with self._connection.session("slicebw-agent/simulated") as session:
            tasks = [
                asyncio.create_task(self._follow(session, watched, first=number == 0))
                for number in range(self._fleet.nodes)
                for watched in self._watched_by(number)
            ]
            try:
                while not isinstance(await asyncio.to_thread(pipe.recv), Stop):
                    pipe.send(self._look())
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _watched_by(self, number: int) -> tuple[Watched, ...]:
        """Return the watches of one agent, as ApiFeed opens them."""
        node = self._fleet.node(number)
        return (
            Watched(SLICE_BANDWIDTHS),
            Watched(PODS, f"spec.nodeName={node}"),
            Watched(NODE_BANDWIDTHS, f"metadata.name={DEFAULT_NODE_BANDWIDTH}"),
            Watched(NODE_BANDWIDTHS, f"metadata.name={node}"),
        )

    async def _follow(self, session: aiohttp.ClientSession, watched: Watched, *, first: bool) -> None:
        version = ""
        while True:
            try:
                if not version:
                    async with self._gate:
                        version = await self._list(session, watched)
                version = await self._watch(session, watched, version, first=first)
            except (aiohttp.ClientError, TimeoutError, OSError):
                self._counts.broken += 1
                version = ""
            await asyncio.sleep(random.uniform(0.5, 2.0))

    async def _list(self, session: aiohttp.ClientSession, watched: Watched) -> str:
        query = {**watched.query(), "resourceVersion": "0"}
        async with session.get(self._url(watched), params=query, raise_for_status=True) as answer:
            body = await answer.read()
        self._counts.list_bytes += len(body)
        found = _VERSION.findall(body[-400:]) or _VERSION.findall(body[:400])
        return str(found[-1].decode())

    async def _watch(self, session: aiohttp.ClientSession, watched: Watched, version: str, *, first: bool) -> str:
        query = {**watched.query(), "watch": "true", "resourceVersion": version}
        query["timeoutSeconds"] = str(random.randint(240, 360))
        whole = watched.resource is SLICE_BANDWIDTHS
        timeout = aiohttp.ClientTimeout(total=None)
        async with session.get(self._url(watched), params=query, timeout=timeout, raise_for_status=True) as answer:
            self._counts.open += 1
            try:
                async for line in answer.content:
                    found = _VERSION.search(line)
                    version = version if found is None else found[1].decode()
                    self._count(watched.resource.plural, line)
                    if whole:
                        self._note(int(version), line, first=first)
            finally:
                self._counts.open -= 1
        return version

    def _url(self, watched: Watched) -> str:
        return self._connection.server + watched.resource.path()

    def _count(self, plural: str, line: bytes) -> None:
        self._counts.events[plural] += 1
        self._counts.event_bytes[plural] += len(line)

    def _note(self, version: int, line: bytes, *, first: bool) -> None:
        counts, now = self._counts, time.monotonic()
        known = counts.fan_outs.get(version)
        if known is None:
            counts.fan_outs[version] = FanOut(now, now)
            counts.order.append(version)
            if len(counts.order) > REMEMBERED:
                del counts.fan_outs[counts.order.popleft()]
        else:
            known.last_s = now
            known.times += 1
        if first:
            obj = json.loads(line)["object"]
            capped_nodes = obj.get("status", {}).get("cappedNodes", 0)
            counts.shown.append(Shown(now, obj["metadata"]["namespace"], capped_nodes, version))

    def _look(self) -> Watching:
        counts = self._counts
        shown, counts.shown = tuple(counts.shown), []
        fan_outs, counts.fan_outs = counts.fan_outs, {}
        counts.order.clear()
        return Watching(
            counts.open,
            counts.broken,
            counts.list_bytes,
            dict(counts.events),
            dict(counts.event_bytes),
            shown,
            fan_outs,
        )


def run(pipe: Pipe, kubeconfig: str, fleet: Fleet) -> None:
    """Run the process."""
    asyncio.run(_Watches(kubeconfig, fleet).serve(pipe))
