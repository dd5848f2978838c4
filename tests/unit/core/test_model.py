"""The pure pass against a second, much simpler account of the rules in plain dictionaries.

The machine drives a node through traffic, time, changed limits, slices that go and come back, lost trees and reboots,
and compares usage, caps, events and slice ids after every pass. Passes are run when they are due, as an agent would, so
that every period's end is met; what a pass between two periods does with its bytes has tests of its own.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from slicebw.core.dataplane import leaf
from slicebw.core.desired import NodeSpec, SliceKey, SliceSpec, TrafficClass
from slicebw.core.ledger import Reason
from tests.unit.core.builders import START_S, M, Node, at, pod, spec

NAMES = ("alpha/s", "beta/s", "gamma/s")
NODE_CAP = 40 * M
LINE = 100 * M
BUDGETS = (10 * M, 50 * M, 100 * M)


@dataclass
class Tally:
    """One slice as the rules have it. Indexes 0 and 1 are standard and exempt."""

    slice_id: int
    start: int
    period: int
    budget: int
    present: bool = True
    used: list[int] = field(default_factory=lambda: [0, 0])
    over: list[bool] = field(default_factory=lambda: [False, False])
    told_capped: list[bool] = field(default_factory=lambda: [False, False])
    told_restored: list[bool] = field(default_factory=lambda: [False, False])


class PassAgainstTheRules(RuleBasedStateMachine):
    """The node under test, and beside it what the rules say."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node(node=NodeSpec(line_rate_bps=LINE, cap_bps=NODE_CAP))
        self.now = 0
        self.boot = 0
        self.specs: dict[str, SliceSpec] = {}
        self.tallies: dict[str, Tally] = {}
        self.unread: dict[str, list[int]] = {}
        self.expected_events: list[tuple[Reason, str]] = []

    @initialize()
    def first_pass(self) -> None:
        self.run_pass()

    @rule(name=st.sampled_from(NAMES), period=st.sampled_from((60, 600, 3600)), budget=st.sampled_from(BUDGETS))
    def apply(self, name: str, period: int, budget: int) -> None:
        """``kubectl apply``: a new slice, one that comes back, or other limits."""
        known = self.specs.get(name)
        generation = 1 if known is None else known.generation + 1
        fresh = spec(name, period_s=period, budget_bytes=budget)
        self.specs[name] = replace(fresh, generation=generation)
        self.run_pass()

    @precondition(lambda self: self.specs)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.specs)))
        del self.specs[name]
        self.run_pass()
        self.run_pass()  # the class goes once the table no longer sends to it

    @precondition(lambda self: self.specs)
    @rule(data=st.data(), size=st.integers(0, 30 * M), exempt=st.booleans())
    def send(self, data: st.DataObject, size: int, exempt: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.specs)))
        tally = self.tallies[name]
        traffic_class = TrafficClass.EXEMPT if exempt else TrafficClass.STANDARD
        self.node.send(leaf(traffic_class, tally.slice_id), size)
        self.unread[name][int(exempt)] += size

    @rule(seconds=st.integers(1, 700))
    def wait(self, seconds: int) -> None:
        """Time passes; passes are run when they are due, at the ends of periods at the latest."""
        until = self.now + seconds
        while ends := [t for t in self.ends() if self.now < t <= until]:
            self.now = min(ends)
            self.run_pass()
        self.now = until
        self.run_pass()

    @rule()
    def lose_the_tree(self) -> None:
        self.run_pass()  # what was sent since the last pass would be lost with it
        self.node.lose_tree()
        self.run_pass()

    @rule()
    def reboot(self) -> None:
        self.run_pass()
        self.boot += 1
        self.node.lose_tree()
        self.node.table = replace(self.node.table, slice_id_by_address={}, intact=False, present=False)
        self.run_pass()

    def ends(self) -> list[int]:
        return [tally.start + tally.period for tally in self.tallies.values()]

    def run_pass(self) -> None:
        specs = tuple(self.specs.values())
        pods = tuple(pod(f"{name.split('/')[0]}/pod", f"10.0.0.{NAMES.index(name) + 1}") for name in self.specs)
        self.node.desired = replace(self.node.desired, slices=specs, pods=pods)
        self.node.run(at(self.now, f"boot {self.boot}"))
        self.apply_the_rules()

    def apply_the_rules(self) -> None:
        for name, tally in self.tallies.items():
            for one in (0, 1):
                tally.used[one] += self.unread[name][one]
            self.unread[name] = [0, 0]
            tally.present = name in self.specs
        for name, wanted in sorted(self.specs.items(), key=lambda item: SliceKey(*item[0].split("/"))):
            assert wanted.limits is not None
            period, budget = wanted.limits.period_s, wanted.limits.standard.budget_bytes
            if name not in self.tallies:
                slice_id = self.node.ledger.slices[SliceKey(*name.split("/"))].slice_id
                self.tallies[name] = Tally(slice_id, self.now, period, budget)
                self.unread[name] = [0, 0]
            self.tallies[name].period, self.tallies[name].budget = period, budget
        for name, tally in list(self.tallies.items()):
            if self.now >= tally.start + tally.period:
                self.end_period(name, tally)
        for name, tally in self.tallies.items():
            if tally.present:
                self.judge(name, tally)

    def end_period(self, name: str, tally: Tally) -> None:
        if not tally.present:
            del self.tallies[name]
            return
        for one in (0, 1):
            if tally.over[one] and not tally.told_restored[one]:
                self.expected_events.append((Reason.RESTORED, name))
        while self.now >= tally.start + tally.period:
            tally.start += tally.period
        tally.used, tally.over = [0, 0], [False, False]
        tally.told_capped, tally.told_restored = [False, False], [False, False]

    def judge(self, name: str, tally: Tally) -> None:
        for one, budget in ((0, tally.budget), (1, 100 * M)):
            over = tally.used[one] >= budget * 8 // 10
            if over and not tally.told_capped[one]:
                self.expected_events.append((Reason.CAPPED, name))
                tally.told_capped[one] = True
            if tally.over[one] and not over and not tally.told_restored[one]:
                self.expected_events.append((Reason.RESTORED, name))
                tally.told_restored[one] = True
            tally.over[one] = over

    @invariant()
    def usage_and_periods_agree(self) -> None:
        accounts = {str(key): account for key, account in self.node.ledger.slices.items()}
        assert accounts.keys() == self.tallies.keys()
        for name, tally in self.tallies.items():
            account = accounts[name]
            assert (account.period_start_s - START_S, account.slice_id) == (tally.start, tally.slice_id)
            assert [account.standard.used_bytes, account.exempt.used_bytes] == tally.used
            assert account.live == tally.present

    @invariant()
    def ceilings_agree(self) -> None:
        for tally in self.tallies.values():
            for one, traffic_class in enumerate(TrafficClass):
                seen = self.node.classes.get(leaf(traffic_class, tally.slice_id))
                if not tally.present:
                    assert seen is None
                    continue
                assert seen is not None
                assert seen.ceil_bps == self.ceiling(tally, one)

    def ceiling(self, tally: Tally, one: int) -> int:
        budget = (tally.budget, 100 * M)[one]
        if not tally.over[one]:
            return 10 * M
        left_s = tally.start + tally.period - self.now
        spread = max(0, budget - tally.used[one]) * 8 // left_s
        return max(8, min(10 * M, spread // 8 * 8))

    @invariant()
    def events_agree(self) -> None:
        told = [
            (note.reason, str(note.key))
            for note in self.node.ledger.pending_events
            if note.reason in {Reason.CAPPED, Reason.RESTORED}
        ]
        assert sorted(told) == sorted(self.expected_events)

    @invariant()
    def class_ids_are_unique(self) -> None:
        ids = [account.slice_id for account in self.node.ledger.slices.values()]
        assert len(ids) == len(set(ids))


PassAgainstTheRules.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestPassAgainstTheRules = PassAgainstTheRules.TestCase
