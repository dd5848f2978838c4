"""The two books that must agree: what the ledger accounts for, and what crossed the uplink as the sink counts it."""

import bisect
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from slicebw.agent.checkpoint import FileStore
from slicebw.core.clock import NS
from slicebw.core.dataplane import DEFAULT_ID, HOST_ID, leaf
from slicebw.core.desired import TrafficClass
from slicebw.core.ledger import Ledger
from tests.support.processes import Slicebw
from tests.support.topology import Host, Sink

STANDARD, EXEMPT = TrafficClass

Entry = tuple[str, TrafficClass]
"""Whose bytes (a slice's namespace, ``root`` or ``default``), and of which class."""
ROOT: Final = "root"
DEFAULT: Final = "default"

POLL_S: Final = 0.02
SAMPLE_S: Final = 0.1


class Repeated(threading.Thread):
    """Something done again and again, until the context ends. What it raises is raised there."""

    def __init__(self, act: Callable[[], None], pause_s: Callable[[], float]) -> None:
        super().__init__(daemon=True)
        self._act = act
        self._pause_s = pause_s
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """The thread's body."""
        try:
            while not self._ended.wait(self._pause_s()):
                self._act()
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            self._error = error

    def __enter__(self) -> None:
        """Begin."""
        self.start()

    def __exit__(self, *_: object) -> None:
        """End it, and wait."""
        self._ended.set()
        self.join()
        if self._error is not None:
            raise self._error


class LedgerTotals:
    """Adds up what the ledger on disk accounts for, also in accounts that it has dropped since."""

    def __init__(self, state: Path) -> None:
        self._store = FileStore(state)
        self._lock = threading.Lock()
        self._last: dict[Entry, int] = {}
        self._dropped: Counter[Entry] = Counter()

    def polling(self) -> Repeated:
        """Keep up with the ledger, as a context."""
        return Repeated(self.update, lambda: POLL_S)

    def read(self) -> Ledger:
        """The ledger on disk; an empty one before it is first written."""
        ledger, problem = self._store.peek_ledger()
        assert problem is None, problem
        return ledger or Ledger()

    def update(self) -> None:
        """Take in what the ledger has now."""
        totals = _totals(self.read())
        with self._lock:
            for entry, last_bytes in self._last.items():
                if totals.get(entry, -1) < last_bytes:
                    self._dropped[entry] += last_bytes
            self._last = totals

    def now(self) -> Mapping[Entry, int]:
        """Bytes ever accounted for, of each entry."""
        self.update()
        with self._lock:
            return Counter(self._last) + self._dropped


def _totals(ledger: Ledger) -> dict[Entry, int]:
    found = {
        (key.namespace, traffic_class): account.of(traffic_class).total_bytes
        for key, account in ledger.slices.items()
        for traffic_class in TrafficClass
    }
    for name, slice_id in ((ROOT, HOST_ID), (DEFAULT, DEFAULT_ID)):
        for traffic_class in TrafficClass:
            account = ledger.node_totals.get(leaf(traffic_class, slice_id))
            found[name, traffic_class] = 0 if account is None else account.total_bytes
    return found


class Arrivals:
    """What has crossed the uplink, by sender and class, with Ethernet headers as HTB counts them.

    Frames of no sender that we know (ARP, neighbour discovery) are default's.

    Args:
        sink: where they arrive.
        device: by which device.
        hosts: the senders by the names of their entries.
    """

    def __init__(self, sink: Sink, device: str, hosts: Mapping[str, Host]) -> None:
        self._sink = sink
        self._device = device
        self._hosts = hosts
        self._samples: list[tuple[float, Mapping[Entry, int]]] = []
        self._before_bytes = 0
        sink.start_meter()

    def begin(self, default_bytes: int) -> None:
        """Count frames of unknown senders from here on; default's class shows that it has counted so many of them."""
        self._before_bytes = self.now()[DEFAULT, STANDARD] - default_bytes

    def now(self) -> Mapping[Entry, int]:
        """Bytes that have arrived so far."""
        found: Counter[Entry] = Counter()
        meters = self._sink.meters()
        for name, host in self._hosts.items():
            for traffic_class, destinations in (
                (STANDARD, (self._sink.address, self._sink.address6)),
                (EXEMPT, (self._sink.exempt_address, self._sink.exempt_address6)),
            ):
                for source in (host.address, host.address6):
                    found[name, traffic_class] += sum(
                        meters[source, to].wire_bytes for to in destinations if (source, to) in meters
                    )
        others_bytes = self._sink.received_bytes(self._device) - found.total()
        found[DEFAULT, STANDARD] += others_bytes - self._before_bytes
        return found

    def sampling(self) -> Repeated:
        """Take samples, as a context."""
        return Repeated(self.sample, lambda: SAMPLE_S)

    def sample(self) -> None:
        """Remember what has arrived, and that it had by now."""
        begun = time.time()
        self._samples.append((begun, self.now()))

    def before(self, at: float) -> Mapping[Entry, int]:
        """At most what had arrived at a time of the wall clock."""
        index = bisect.bisect_right([when for when, _ in self._samples], at - SAMPLE_S)
        return self._samples[index - 1][1] if index else Counter()


class Losses:
    """What taking the tree away can have cost: what went by between the last reading and there being a tree again."""

    def __init__(self, totals: LedgerTotals, arrivals: Arrivals) -> None:
        self._totals = totals
        self._arrivals = arrivals
        self.most_bytes: Counter[Entry] = Counter()
        self.count = 0

    @contextmanager
    def at_most_one_pass(self) -> Iterator[None]:
        """Take the tree away in this context, and wait there until it is back."""
        read_at = self._totals.read().read_at
        assert read_at is not None
        read = self._arrivals.before(read_at.wall_ns / NS)
        yield
        back = self._arrivals.now()
        for entry, arrived_bytes in back.items():
            self.most_bytes[entry] += arrived_bytes - read.get(entry, 0)
        self.count += 1


def killing(agent: Slicebw, draw: random.Random, alive: AbstractContextManager[object] | None = None) -> Repeated:
    """Kill an agent again and again at random instants, and start it anew a little later, as a context.

    Two in three become ready before they have to fear for their lives, the others may not see their first pass.
    ``alive`` is a lock: whoever holds it keeps the agent from being killed.
    """

    def kill() -> None:
        with alive or nullcontext():
            agent.kill()
            time.sleep(draw.uniform(0, 0.8))
            agent.start()
        if draw.random() < 2 / 3:
            with suppress(TimeoutError):  # the API server may be away
                agent.wait_ready(8)

    return Repeated(kill, lambda: draw.uniform(0, 2.5))


def table_of(accounted: Mapping[Entry, int], crossed: Mapping[Entry, int], most: Mapping[Entry, int]) -> str:
    """Both books side by side, and what may have been lost, for people."""
    lines = [f"{'':14}{'':10}{'accounted':>14}{'crossed':>14}{'lost':>12}{'at most':>12}"]
    by_name: dict[str, list[TrafficClass]] = defaultdict(list)
    for name, traffic_class in crossed:
        by_name[name].append(traffic_class)
    for name, classes in by_name.items():
        for traffic_class in classes:
            entry = name, traffic_class
            lost = crossed[entry] - accounted[entry]
            figures = f"{accounted[entry]:>14,}{crossed[entry]:>14,}{lost:>12,}{most.get(entry, 0):>12,}"
            lines.append(f"{name:14}{traffic_class:10}{figures}")
    return "\n".join(lines)
