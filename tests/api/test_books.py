"""Nothing is lost and nothing is counted twice, whatever happens to the agent, the API server and the slices."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from slicebw.api import kinds
from slicebw.core.desired import TrafficClass
from tests.api.books import (
    DEFAULT,
    EXEMPT,
    ROOT,
    STANDARD,
    Arrivals,
    Entry,
    LedgerTotals,
    Losses,
    killing,
    table_of,
)
from tests.api.cluster import Cluster, eventually, node_bandwidth, slice_bandwidth
from tests.support.processes import Slicebw, agent
from tests.support.senders import Sender, discarding
from tests.support.tc import classes
from tests.support.topology import Host, Topology

K, M = 1_000, 1_000_000
SECONDS: Final = 25
DEFAULT_CLASSES: Final = {STANDARD: "1:1fff", EXEMPT: "1:2fff"}
GENEROUS: Final = {"maxRate": "100M", "budget": "100G"}


@dataclass
class Slice:
    """A slice, its pod, and what it sends."""

    namespace: str
    pod: Host
    senders: list[Sender] = field(default_factory=list)

    def halt(self) -> None:
        """Send nothing new."""
        for sender in self.senders:
            sender.halt()

    def resume(self) -> None:
        """Go on."""
        for sender in self.senders:
            sender.resume()


class Site:
    """A node whose agent is killed again and again, with three slices and a pod that is in none.

    * ``careful`` is deleted and made again only while it is silent, so that it is known what it sent as default.
    * ``steady`` is never deleted.
    * ``wild`` is deleted and made again in full flight: what it sent is known only together with default's.

    The first two are guaranteed more than a megabit: where a cap below that is lifted, a packet can slip from a
    slice to default (``ResetTokens``). For the wild one that makes no difference.
    """

    def __init__(self, cluster: Cluster, net: Topology, node: str, namespaces: list[str], state: Path) -> None:
        self.cluster = cluster
        self.net = net
        self.node = node
        self.careful, self.steady, self.wild, self.stranger = map(Slice, [*namespaces[:3], DEFAULT], net.pods)
        hosts = {one.namespace: one.pod for one in (self.careful, self.steady, self.wild, self.stranger)}
        self.arrivals = Arrivals(net.sink, net.uplink, {**hosts, ROOT: net.node})
        self.totals = LedgerTotals(state)
        self.known_default: Counter[TrafficClass] = Counter()
        """What the careful slice sent while it was deleted."""

    def start_traffic(self, stack: ExitStack, seed: int) -> None:
        """Datagrams and streams of both families to both kinds of destinations."""
        sink = self.net.sink

        def send(one: Slice, to: str, rate_bps: int, *, tcp: bool = False) -> None:
            sender = Sender(one.pod, to, rate_bps, tcp=tcp, sizes=(64, 1400), seed=seed, seconds=150)
            stack.callback(sender.stop)
            one.senders.append(sender)

        stack.enter_context(discarding(sink))
        send(self.careful, sink.address, 1200 * K)
        send(self.careful, sink.exempt_address6, 600 * K)
        send(self.steady, sink.address6, 800 * K)
        send(self.steady, sink.address, 800 * K, tcp=True)
        send(self.steady, sink.exempt_address, 600 * K)
        send(self.wild, sink.address, 600 * K)
        send(self.wild, sink.exempt_address, 400 * K, tcp=True)
        send(self.stranger, sink.address6, 200 * K)
        send(self.stranger, sink.exempt_address, 200 * K)
        send(Slice(ROOT, self.net.node, self.stranger.senders), sink.address, 200 * K)
        send(Slice(ROOT, self.net.node, self.stranger.senders), sink.exempt_address6, 100 * K)

    @property
    def slices(self) -> list[Slice]:
        """Those that have a SliceBandwidth, most of the time."""
        return [self.careful, self.steady, self.wild]

    def create(self, one: Slice, spec: Mapping[str, object]) -> None:
        """kubectl apply."""
        self.cluster.create(slice_bandwidth(one.namespace, "slice", **spec))

    def limit(self, one: Slice, spec: Mapping[str, object]) -> None:
        """kubectl patch."""
        self.cluster.merge(slice_bandwidth(one.namespace, "slice", **spec))

    def delete(self, one: Slice) -> None:
        """kubectl delete."""
        self.cluster.delete(kinds.SLICE_BANDWIDTH, "slice", one.namespace)

    def is_wanted(self, one: Slice) -> bool:
        """Whether there is a SliceBandwidth of it."""
        return self.cluster.read(kinds.SLICE_BANDWIDTH, "slice", one.namespace) is not None

    def is_served(self, one: Slice) -> bool:
        """Whether the table sends the slice's packets to classes of their own."""
        table = self.net.node.run("nft", "list", "ruleset")
        return f"{one.pod.address} : 1:1" in table and f"{one.pod.address6} : 1:2" in table

    def is_unserved(self, one: Slice) -> bool:
        """Whether it does not."""
        return f"{one.pod.address} " not in self.net.node.run("nft", "list", "ruleset")

    def until_served(self, one: Slice) -> None:
        """Wait for it; a killed agent, or a watch that was cut, may need a while."""
        eventually(lambda: self.is_served(one), 40)

    def until_drained(self, *slice_ids: str) -> None:
        """Wait until nothing waits in these classes (none: in any), and nothing is under way."""
        last_bytes = -1

        def drained() -> bool:
            nonlocal last_bytes
            before, last_bytes = last_bytes, sum(self.arrivals.now().values()) if not slice_ids else 0
            shown = classes(self.net.node, self.net.uplink)
            waiting = [
                one for name, one in shown.items() if one.waiting_packets and (name in slice_ids or not slice_ids)
            ]
            return not waiting and before == last_bytes

        eventually(drained, 20, every_s=0.5)

    def slice_ids(self, one: Slice) -> list[str]:
        """Both classes of a slice."""
        account = next(account for key, account in self.totals.read().slices.items() if key.namespace == one.namespace)
        return [f"1:{base:x}{account.slice_id:03x}" for base in (1, 2)]


class Chaos:
    """What happens to a site, in random order."""

    def __init__(self, site: Site, draw: random.Random) -> None:
        self.site = site
        self.draw = draw
        self.done: Counter[str] = Counter()

    def limits(self, one: Slice) -> dict[str, object]:
        """Limits under which a slice is capped in some periods, and its periods end often."""

        def side(least: str) -> dict[str, object]:
            return {
                "minRate": least,
                "maxRate": self.draw.choice(["2M", "3M", "20M"]),
                "budget": self.draw.choice(["200k", "400k", "1M"]),
                "threshold": self.draw.choice(["50%", "80%", "100%"]),
            }

        least = "8" if one is self.site.wild else "1200k"
        return {"period": self.draw.choice(["3s", "4s", "7s"]), "standard": side(least), "exempt": side(least)}

    def change_limits(self) -> None:
        """Other limits for somebody who is there."""
        one = self.draw.choice([self.site.careful, self.site.steady])
        self.site.limit(one, self.limits(one))

    def delete_carefully(self) -> None:
        """Delete a silent slice, let it send as default, and make it again when it is silent."""
        site, one = self.site, self.site.careful
        one.halt()
        site.limit(one, {"standard": GENEROUS, "exempt": GENEROUS})
        site.until_drained(*site.slice_ids(one))
        before = site.arrivals.now()
        site.delete(one)
        eventually(lambda: site.is_unserved(one), 40)
        one.resume()
        time.sleep(self.draw.uniform(0.3, 1))
        one.halt()
        site.until_drained(*DEFAULT_CLASSES.values())
        for traffic_class in TrafficClass:
            entry = one.namespace, traffic_class
            site.known_default[traffic_class] += site.arrivals.now()[entry] - before[entry]
        site.create(one, self.limits(one))
        site.until_served(one)
        one.resume()

    def delete_wildly(self) -> None:
        """Delete a slice that sends, and make it again at some other time."""
        site = self.site
        if site.is_wanted(site.wild):
            site.delete(site.wild)
        else:
            site.create(site.wild, self.limits(site.wild))

    def run(self, seconds: float, *more: Callable[[], None]) -> None:
        """Let things happen for some seconds; every kind at least once."""
        every = [self.change_limits, self.delete_carefully, self.delete_wildly, self.delete_wildly, *more]
        end, waiting = time.monotonic() + seconds, list(every)
        self.draw.shuffle(waiting)
        while time.monotonic() < end or waiting:
            act = waiting.pop() if waiting else self.draw.choice([*every, self.change_limits, *more])
            act()
            self.done[act.__name__] += 1
            time.sleep(self.draw.uniform(0.1, 1))


@pytest.fixture
def site(outage: Cluster, new_namespace: Callable[[], str], node: str, tmp_path: Path) -> Iterator[Site]:
    """The node, its pods and the agent's settings; neither agent nor traffic nor slices yet."""
    with Topology(pods=4, offloads=False) as net:
        namespaces = [new_namespace() for _ in range(4)]
        exempt = list(net.sink.exempt_networks)
        outage.create(node_bandwidth(node, lineRate="1G", cap="200M", exemptDestinations=exempt))
        for namespace, pod in zip(namespaces, net.pods, strict=True):
            outage.create_pod(namespace, "pod", node, pod.address, pod.address6)
        try:
            yield Site(outage, net, node, namespaces, tmp_path / "state")
        finally:
            outage.start()
            outage.delete(kinds.NODE_BANDWIDTH, node)


@pytest.fixture
def draw() -> random.Random:
    """Random numbers that SLICEBW_SEED repeats (as far as the machine does)."""
    seed = int(os.environ.get("SLICEBW_SEED", random.randrange(10**6)))
    print(f"SLICEBW_SEED={seed}")
    return random.Random(seed)


def new_agent(site: Site, folder: Path) -> Slicebw:
    return agent(folder, site.node, site.net.node.path, "--kubeconfig", str(site.cluster.kubeconfig))


def settle(site: Site, running: Slicebw) -> None:
    """Everybody falls silent, all caps are lifted, what waits goes on its way, and an agent lives."""
    for one in (*site.slices, site.stranger):
        for sender in one.senders:
            sender.stop()
    if running.exit_code() is not None:
        running.start()
    running.wait_ready()
    if not site.is_wanted(site.wild):
        site.create(site.wild, {})
    for one in site.slices:
        site.limit(one, {"standard": GENEROUS, "exempt": GENEROUS})
    site.until_drained()


def both_books(site: Site) -> tuple[dict[Entry, int], dict[Entry, int]]:
    """What is accounted for, and what has crossed the uplink, entry by entry.

    What the wild slice sent while it was deleted is with default's in one book and with its own in the other: those
    two are one entry here.
    """
    accounted, crossed = Counter(site.totals.now()), Counter(site.arrivals.now())
    for traffic_class in TrafficClass:
        careful, wild = (site.careful.namespace, traffic_class), (site.wild.namespace, traffic_class)
        default = DEFAULT, traffic_class
        crossed[careful] -= site.known_default[traffic_class]
        crossed[default] += site.known_default[traffic_class]
        for book in (accounted, crossed):
            book[f"{DEFAULT}+wild", traffic_class] = book.pop(default) + book.pop(wild)
    return dict(accounted), dict(crossed)


def assert_nobody_told_twice(site: Site) -> None:
    """One Event for each slice, class and period: the message names all three."""
    for one in site.slices:
        for reason in ("BandwidthCapped", "BandwidthRestored"):
            found = [event for event in site.cluster.events(one.namespace) if event.reason == reason]
            periods = [(event.message.split()[1], event.message.rsplit("since ", 1)[1]) for event in found]
            assert len(periods) == len(set(periods)), found
            assert all(event.count == 1 for event in found)


def begin(site: Site, chaos: Chaos, running: Slicebw, stack: ExitStack) -> None:
    """An agent that runs, slices that are served, traffic that flows, and both books open."""
    stack.enter_context(running)
    for one in site.slices:
        site.create(one, chaos.limits(one))
    for one in site.slices:
        site.until_served(one)
    site.arrivals.begin(classes(site.net.node, site.net.uplink)[DEFAULT_CLASSES[STANDARD]].sent_bytes)
    stack.enter_context(site.totals.polling())
    site.start_traffic(stack, chaos.draw.randrange(10**6))


def test_the_books_agree_to_the_byte_while_agents_die_and_slices_come_and_go(
    site: Site, draw: random.Random, tmp_path: Path
) -> None:
    chaos, running = Chaos(site, draw), new_agent(site, tmp_path)

    def api_outage() -> None:
        site.cluster.stop_api_server()
        time.sleep(draw.uniform(0.5, 2))
        site.cluster.start()

    with ExitStack() as stack:
        begin(site, chaos, running, stack)
        with killing(running, draw):
            chaos.run(SECONDS / 2)
            api_outage()
            chaos.run(SECONDS / 2)
        settle(site, running)
        with suppress(AssertionError):
            eventually(lambda: both_books(site)[0] == both_books(site)[1], 10, every_s=0.5)
        accounted, crossed = both_books(site)
        print(f"{dict(chaos.done)}\n{table_of(accounted, crossed, {})}")
        assert accounted == crossed
        assert min(crossed.values()) > 50 * K
        assert_nobody_told_twice(site)


def test_taking_the_tree_away_costs_the_bytes_of_one_pass_at_most(
    site: Site, draw: random.Random, tmp_path: Path
) -> None:
    chaos, running = Chaos(site, draw), new_agent(site, tmp_path)
    losses, alive = Losses(site.totals, site.arrivals), threading.Lock()

    def has_looked_since(moment_ns: int) -> bool:
        read_at = site.totals.read().read_at
        return read_at is not None and read_at.wall_ns > moment_ns

    def take_the_tree_away() -> None:
        with alive:  # without an agent nobody would make it again, and nothing could count what goes by
            begun_ns = time.time_ns()
            eventually(lambda: has_looked_since(begun_ns), 20)
            time.sleep(draw.uniform(0, 1))
            with losses.at_most_one_pass():
                site.net.node.run("tc", "qdisc", "del", "dev", site.net.uplink, "root")
                eventually(lambda: "1:2fff" in classes(site.net.node, site.net.uplink), 1)

    with ExitStack() as stack:
        begin(site, chaos, running, stack)
        stack.enter_context(site.arrivals.sampling())
        with killing(running, draw, alive):
            chaos.run(SECONDS, take_the_tree_away, take_the_tree_away, take_the_tree_away)
        settle(site, running)
        most: Counter[Entry] = Counter()
        for (name, traffic_class), count in losses.most_bytes.items():
            shared = name in (DEFAULT, site.wild.namespace)
            most[f"{DEFAULT}+wild" if shared else name, traffic_class] += count

        def agree() -> bool:
            accounted, crossed = both_books(site)
            return all(0 <= crossed[entry] - accounted[entry] <= most[entry] for entry in crossed)

        with suppress(AssertionError):
            eventually(agree, 10, every_s=0.5)
        accounted, crossed = both_books(site)
        print(f"{dict(chaos.done)}\n{table_of(accounted, crossed, most)}")
        assert losses.count >= 3
        for entry, crossed_bytes in crossed.items():
            assert 0 <= crossed_bytes - accounted[entry] <= most[entry], entry
