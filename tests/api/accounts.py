"""Two counts of the same bytes that must agree: the ledger's accounts, and the sink's count of its arrivals."""

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
"""Whose bytes (a slice's namespace, ``host`` or ``default``), and of which traffic class."""
HOST: Final = "host"
DEFAULT: Final = "default"

POLL_S: Final = 0.02
SAMPLE_S: Final = 0.1


class Repeated(threading.Thread):
    """Repeats an action in a thread until the context ends. An exception of the action is raised there."""

    def __init__(self, act: Callable[[], None], pause_s: Callable[[], float]) -> None:
        super().__init__(daemon=True)
        self._act = act
        self._pause_s = pause_s
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the thread."""
        try:
            while not self._ended.wait(self._pause_s()):
                self._act()
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            self._error = error

    def __enter__(self) -> None:
        """Start the thread."""
        self.start()

    def __exit__(self, *_: object) -> None:
        """End the thread, and wait."""
        self._ended.set()
        self.join()
        if self._error is not None:
            raise self._error


class LedgerTotals:
    """Adds up all bytes that the ledger on disk has ever accounted for, also in accounts that it has dropped."""

    def __init__(self, state: Path) -> None:
        self._store = FileStore(state)
        self._lock = threading.Lock()
        self._last: dict[Entry, int] = {}
        self._dropped: Counter[Entry] = Counter()

    def polling(self) -> Repeated:
        """Make a context that reads the ledger again and again."""
        return Repeated(self.update, lambda: POLL_S)

    def read(self) -> Ledger:
        """Return the ledger on disk; an empty one before it is first written."""
        ledger, problem = self._store.peek_ledger()
        assert problem is None, problem
        return ledger or Ledger()

    def update(self) -> None:
        """Read the ledger and add what is new."""
        totals = _totals(self.read())
        with self._lock:
            for entry, last_bytes in self._last.items():
                # A total never falls: this account was dropped, and perhaps another one made.
                if totals.get(entry, -1) < last_bytes:
                    self._dropped[entry] += last_bytes
            self._last = totals

    def now(self) -> Mapping[Entry, int]:
        """Return the bytes ever accounted for, by entry."""
        self.update()
        with self._lock:
            return Counter(self._last) + self._dropped


def _totals(ledger: Ledger) -> dict[Entry, int]:
    found = {
        (key.namespace, traffic_class): account.of(traffic_class).total_bytes
        for key, account in ledger.slices.items()
        for traffic_class in TrafficClass
    }
    for name, slice_id in ((HOST, HOST_ID), (DEFAULT, DEFAULT_ID)):
        for traffic_class in TrafficClass:
            account = ledger.node_totals.get(leaf(traffic_class, slice_id))
            found[name, traffic_class] = 0 if account is None else account.total_bytes
    return found


class Arrivals:
    """Counts what has crossed the uplink, by sender and traffic class, with Ethernet headers as HTB does.

    Frames of unknown senders (ARP, neighbor discovery) count as default's.

    Args:
        sink: where the packets arrive.
        device: the sink's device on which they arrive.
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
        """Count frames of unknown senders from now on; the default class has counted ``default_bytes`` of them."""
        self._before_bytes = self.now()[DEFAULT, STANDARD] - default_bytes

    def now(self) -> Mapping[Entry, int]:
        """Return the bytes that have arrived so far, by entry."""
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
        """Make a context that takes samples."""
        return Repeated(self.sample, lambda: SAMPLE_S)

    def sample(self) -> None:
        """Remember what has arrived by now."""
        begun = time.time()
        self._samples.append((begun, self.now()))

    def before(self, at: float) -> Mapping[Entry, int]:
        """Return what had arrived shortly before a time of the wall clock: no more than had arrived by then."""
        index = bisect.bisect_right([when for when, _ in self._samples], at - SAMPLE_S)
        return self._samples[index - 1][1] if index else Counter()


class Losses:
    """Bounds the bytes lost by removing the tree: those from the last reading until there was a tree again."""

    def __init__(self, totals: LedgerTotals, arrivals: Arrivals) -> None:
        self._totals = totals
        self._arrivals = arrivals
        self.most_bytes: Counter[Entry] = Counter()
        self.count = 0

    @contextmanager
    def at_most_one_pass(self) -> Iterator[None]:
        """Make a context in which the test removes the tree and waits until it is back."""
        read_at = self._totals.read().read_at
        assert read_at is not None
        read = self._arrivals.before(read_at.wall_ns / NS)
        yield
        back = self._arrivals.now()
        for entry, arrived_bytes in back.items():
            self.most_bytes[entry] += arrived_bytes - read.get(entry, 0)
        self.count += 1


def killing(agent: Slicebw, draw: random.Random, alive: AbstractContextManager[object] | None = None) -> Repeated:
    """Make a context that kills an agent again and again at random instants, and starts it a little later.

    Two of three agents become ready before they are killed; the others may not reach their first pass. Whoever holds
    the lock ``alive`` keeps the agent from being killed.
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
    """Format both counts side by side, with what was lost and may have been, for people."""
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
