"""Random histories of one node, as plain data, and the small world that plays them.

A :class:`History` is drawn by hypothesis and holds only names and small numbers, so that a failing one shrinks to what
matters and can be read. :class:`World` plays it over the fake kernel and runs a pass after every step. Its parts are
small on purpose (five SliceBandwidths, five pods, five addresses, sometimes three slice ids): that makes them meet.

Everything that the world hands to a pass keeps its identity exactly as the real edges keep it: what has not changed is
the same object, and where nothing in a mapping or tuple has changed, so is the mapping or tuple.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar
from unittest.mock import patch

import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

from slicebw.core import slice_ids as slice_ids_module
from slicebw.core.accounting import restore_from_reports
from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import NftTable, ObservedClass, ObservedTree, RemoveRoot, RootQdisc, TreeChange
from slicebw.core.desired import (
    DesiredState,
    Mode,
    NodeSpec,
    Pod,
    Requirement,
    Selector,
    SelectorOperator,
    SliceKey,
    SliceLimits,
    SliceSpec,
)
from slicebw.core.errors import KernelError
from slicebw.core.ledger import Ledger
from slicebw.core.node_pass import PassInput, PassResult, run_pass
from slicebw.core.reports import UsageReport
from slicebw.kernel.fake import FakeClassifier, FakeDevice, FakeShaper
from tests.unit.core.builders import START_S, M, limits

# --- The adapter: all that these histories know of how a pass is called. ---


def pass_input(desired: DesiredState, tree: ObservedTree, table: NftTable, ledger: Ledger, now: Instant) -> PassInput:
    """What a pass looks at."""
    return PassInput(desired, tree, table, ledger, now)


def call_pass(given: PassInput, last: PassResult | None) -> PassResult:
    """One pass that goes on from ``last``; None: from nothing."""
    return run_pass(given, last)


@contextmanager
def slice_ids(count: int | None) -> Iterator[None]:
    """Let a node have only so many slice ids, so that the last one is given away after a few slices."""
    if count is None:
        yield
    else:
        with patch.object(slice_ids_module, "MAX_SLICES", count):
            yield


# --- What things are drawn from. Equal numbers mean equal things, so that a history is replayed exactly. ---

_T = TypeVar("_T")

KEYS: Final = tuple(SliceKey(*name.split("/")) for name in ("a/s", "a/t", "b/s", "a/u", "b/t"))
POD_NAMES: Final = ("a/p", "b/p", "a/q", "a/r", "b/q")
ADDRESSES: Final = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2")
LABELS: Final[tuple[dict[str, str], ...]] = ({"app": "x"}, {"app": "y"}, {}, {"app": "x", "tier": "1"}, {"tier": "1"})
_IN = SelectorOperator.IN
SELECTORS: Final = (
    Selector((Requirement("app", _IN, ("x",)),)),
    Selector((Requirement("app", _IN, ("y",)),)),
    Selector(),
    Selector((Requirement("app", _IN, ("x",)), Requirement("tier", _IN, ("1",)))),
    Selector((Requirement("app", _IN, ("x", "y")),)),
    Selector((Requirement("app", SelectorOperator.NOT_IN, ("x",)),)),
    Selector((Requirement("tier", SelectorOperator.EXISTS),)),
    Selector((Requirement("tier", SelectorOperator.DOES_NOT_EXIST),)),
)
BASE: Final = SliceLimits(3600, limits(), limits())
BUDGETS: Final = (1000 * M, 10 * M, 200 * M)
LIMITS: Final[tuple[Callable[[SliceLimits, int], SliceLimits], ...]] = (
    lambda old, n: replace(old, standard=replace(old.standard, max_rate_bps=(5 * M, None, 20 * M)[n % 3])),
    lambda old, n: replace(old, period_s=(60, 600, 3600)[n % 3]),
    lambda old, n: replace(old, standard=replace(old.standard, share=(2, 1, 3)[n % 3])),
    lambda old, n: replace(old, exempt=replace(old.exempt, share=(2, 1, 3)[n % 3])),
    lambda old, n: replace(old, standard=limits(budget_bytes=BUDGETS[n % 3])),
    lambda old, n: replace(old, exempt=limits(budget_bytes=BUDGETS[n % 3])),
    lambda old, n: replace(old, standard=replace(old.standard, min_rate_bps=(8, 2 * M, 90 * M)[n % 3])),
    lambda old, n: replace(old, standard=replace(old.standard, threshold_bytes=(90 * M, 1 * M, 80 * M)[n % 3])),
    lambda old, n: replace(old, exempt=replace(old.exempt, max_rate_bps=(10 * M, 1 * M, None)[n % 3])),
)
WAITS_S: Final = (1, 0, 0.2, 2, 10, 1, 59, 1, 600, 3601)
SENDS: Final = (1500, 90 * M, 30 * M, 8 * M, 1, 300 * M)
ORPHANS: Final = (0x1777, 0x2001, 0x1002, 0x2777, 0x1003, 0x30)
STEPS_S: Final = (3600, -3600, 3, -3, 100_000, -100_000)
NODE: Final = NodeSpec(line_rate_bps=1000 * M)
NODES: Final[tuple[Callable[[NodeSpec, int], NodeSpec], ...]] = (
    lambda old, n: replace(old, mode=(Mode.MONITOR, Mode.ENFORCE, Mode.DISABLED, None)[n % 4]),
    lambda old, n: replace(old, cap_bps=(50 * M, None, 8 * M)[n % 3]),
    lambda old, n: replace(old, line_rate_bps=(100 * M, 1000 * M, None)[n % 3]),
    lambda old, n: replace(old, min_rate_share_percent=(50, None, 1)[n % 3]),
    lambda old, n: replace(old, exempt_destinations=(("10.1.0.0/16",), (), ("10.1.0.0/17", "10.1.128.0/17"))[n % 3]),
    lambda old, n: replace(old, unclassified_max_bps=(5 * M, None, 500 * M)[n % 3]),
    lambda old, n: replace(old, unclassified_exempt_max_bps=(None, 7 * M, 70 * M)[n % 3]),
    lambda old, n: replace(old, errors=("cap: wrong", "mode: wrong")[: n % 3], generation=old.generation + 1),
    lambda old, _: replace(old),
)


def _pick(things: Mapping[Any, _T], number: int) -> Any:
    """One of the keys, or None where there is none."""
    return sorted(things)[number % len(things)] if things else None


def _copy(thing: _T) -> _T:
    """An equal value all of whose parts are other objects."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(thing), type=type(thing))


def copy_ledger(ledger: Ledger) -> Ledger:
    """The ledger as loaded from a file: equal, and every account another object."""
    return replace(ledger, slices={_copy(key): _copy(account) for key, account in ledger.slices.items()})


class Op(NamedTuple):
    """One thing that happens: the name of a method of :class:`World`, and what it happens to."""

    name: str
    which: int
    how: int
    value: int


class Step(NamedTuple):
    """What happens between two passes, and what becomes of the changes that the pass then plans.

    ``fate``: "all" of them are carried out; "none" (a crash after the ledger was saved); only the "first" ``nth``;
    all but the ``nth`` ("refused"); the "table" is not, all others are; "raised": the first ``nth`` are, and the
    outcome is not kept for the next pass, though its ledger is.
    """

    ops: tuple[Op, ...] = ()
    wait_s: float = 1
    fate: str = "all"
    nth: int = 0


class History(NamedTuple):
    """How the node begins, and the steps."""

    slice_ids: int | None
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "\n".join([f"slice_ids={self.slice_ids}", *map(str, self.steps)])


class World:
    """A node, what is wanted of it, and an agent that makes passes."""

    def __init__(self) -> None:
        self.shaper = FakeShaper("eth0", "eth1")
        self.classifier = FakeClassifier()
        self.specs: dict[SliceKey, SliceSpec] = {}
        self.pods: dict[str, Pod] = {}
        self.desired = DesiredState(node=NODE, synced=True)
        self.ledger = Ledger()
        self.last: PassResult | None = None
        self.now = Instant(START_S * NS, 1000 * NS, "boot 0")
        self.table = NftTable(intact=False, present=False)
        self.device_name = "eth0"
        self.reported: tuple[UsageReport, ...] = ()
        self.stale: dict[int, ObservedClass] = {}
        for number in range(3):
            self.slice_comes_or_goes(number, number, 0)
            self.pod_comes_or_goes(number, number, number)

    # What is wanted.

    def slice_comes_or_goes(self, which: int, how: int, value: int) -> None:
        """``kubectl apply`` of a new SliceBandwidth, or ``kubectl delete`` of one that is there."""
        key = KEYS[which % len(KEYS)]
        if self.specs.pop(key, None) is None:
            selector = SELECTORS[how % len(SELECTORS)]
            spec_limits = LIMITS[value % len(LIMITS)](BASE, value)
            self.specs[key] = SliceSpec(key, f"uid {value}", 1, which % 3, selector, spec_limits)
        self._slices_changed()

    def slice_limits(self, which: int, how: int, value: int) -> None:
        """One limit of a SliceBandwidth is another one now; it is right again where it was wrong."""
        if (key := _pick(self.specs, which)) is not None:
            old = self.specs[key]
            self._edit_slice(old, limits=LIMITS[how % len(LIMITS)](old.limits or BASE, value), errors=())

    def slice_selector(self, which: int, how: int, _: int) -> None:
        """A SliceBandwidth selects other pods, or the same ones in other words."""
        if (key := _pick(self.specs, which)) is not None:
            self._edit_slice(self.specs[key], selector=SELECTORS[how % len(SELECTORS)])

    def slice_wrong(self, which: int, how: int, value: int) -> None:
        """A SliceBandwidth is wrong: its limits, its selector, both, or a selector that goes on as it was."""
        if (key := _pick(self.specs, which)) is not None:
            wrong = ({"limits": None}, {"selector": None}, {}, {"limits": None, "selector": None})[how % 4]
            self._edit_slice(self.specs[key], errors=("wrong", "wrong too")[: 1 + value % 2], **wrong)

    def slice_errors(self, which: int, how: int, _: int) -> None:
        """The same generation of a SliceBandwidth is found wrong in other words, or right."""
        if (key := _pick(self.specs, which)) is not None:
            self.specs[key] = replace(self.specs[key], errors=((), ("other words",), ("wrong",))[how % 3])
            self._slices_changed()

    def slice_again(self, which: int, how: int, _: int) -> None:
        """A SliceBandwidth is listed again: an equal object, another uid, another age, or in another order."""
        if (key := _pick(self.specs, which)) is None:
            return
        old = self.specs[key]
        match how % 4:
            case 0:
                self.specs[key] = _copy(old)
            case 1:
                self.specs[key] = replace(old, uid=f"{old.uid}'")
            case 2:
                self.specs[key] = replace(old, created_s=(old.created_s + 1) % 3)
            case 3:
                self.specs[key] = self.specs.pop(key)
        self._slices_changed()

    def pod_comes_or_goes(self, which: int, how: int, value: int) -> None:
        """A pod starts, or is gone."""
        name = POD_NAMES[which % len(POD_NAMES)]
        if self.pods.pop(name, None) is None:
            namespace, _, short = name.partition("/")
            addresses = (ADDRESSES[value % len(ADDRESSES)],)
            labels = LABELS[how % len(LABELS)]
            self.pods[name] = Pod(namespace, short, f"uid {which}", labels, addresses, False, False, which % 3)
        self._pods_changed()

    def pod_labels(self, which: int, how: int, _: int) -> None:
        """``kubectl label pod``."""
        self._edit_pod(which, labels=LABELS[how % len(LABELS)])

    def pod_addresses(self, which: int, how: int, value: int) -> None:
        """A pod gets an address (perhaps one that another pod had or has), two, or none."""
        first, second = ADDRESSES[how % len(ADDRESSES)], ADDRESSES[value % len(ADDRESSES)]
        self._edit_pod(which, addresses=((first,), (first, second), ())[value % 3])

    def pod_state(self, which: int, how: int, value: int) -> None:
        """A pod is finished, is being deleted, is a hostNetwork pod, is younger, or is none of these."""
        on = value % 2 == 0
        self._edit_pod(
            which,
            **({"host_network": on}, {"finished": on}, {"deleting": on}, {"created_s": value % 3})[how % 4],
        )

    def pod_again(self, which: int, how: int, _: int) -> None:
        """A pod is listed again: an equal object, or in another order."""
        if (name := _pick(self.pods, which)) is not None:
            old = self.pods[name] if how % 2 == 0 else self.pods.pop(name)
            self.pods[name] = _copy(old)
            self._pods_changed()

    def node_settings(self, _: int, how: int, value: int) -> None:
        """One field of the NodeBandwidth is another one now."""
        self.desired = replace(self.desired, node=NODES[how % len(NODES)](self.desired.node, value))

    def snapshot_again(self, _: int, how: int, __: int) -> None:
        """What is wanted comes as other objects, equal ones: the desired state, or its tuples, or all in it."""
        match how % 3:
            case 0:
                self.desired = replace(self.desired)
            case 1:
                self._slices_changed()
                self._pods_changed()
            case 2:
                self.specs = {key: _copy(spec) for key, spec in self.specs.items()}
                self.pods = {name: _copy(pod) for name, pod in self.pods.items()}
                self._slices_changed()
                self._pods_changed()

    def unsynced(self, _: int, how: int, __: int) -> None:
        """The list of what is wanted is not whole any more, or is whole again."""
        self.desired = replace(self.desired, synced=not self.desired.synced)
        if how % 4 == 3 and not self.desired.synced:
            self.desired = replace(self.desired, slices=(), pods=())
        elif self.desired.synced and len(self.desired.slices) != len(self.specs):
            self._slices_changed()
            self._pods_changed()

    # What the kernel shows.

    @property
    def device(self) -> FakeDevice:
        """The uplink."""
        return self.shaper.devices[self.device_name]

    def send(self, which: int, how: int, _: int) -> None:
        """A class sends."""
        if (minor := _pick(self.device.classes, which)) is not None:
            self.shaper.send(minor, SENDS[how % len(SENDS)], self.device_name)

    def slice_sends(self, which: int, how: int, _: int) -> None:
        """A class of a slice sends."""
        ids = {account.slice_id for account in self.ledger.slices.values()}
        minors = {minor: 0 for minor in self.device.classes if minor & 0xFFF in ids}
        if (minor := _pick(minors, which)) is not None:
            self.shaper.send(minor, SENDS[how % len(SENDS)], self.device_name)

    def backlog(self, which: int, how: int, _: int) -> None:
        """A class has packets in its queue, or none any more."""
        if (minor := _pick(self.device.classes, which)) is not None:
            self._edit_class(minor, backlog_bytes=(3000, 0)[how % 2])

    def alter_class(self, which: int, how: int, value: int) -> None:
        """Another program changes a class."""
        if (minor := _pick(self.device.classes, which)) is None:
            return
        match how % 5:
            case 0:
                self._edit_class(minor, ceil_bps=(8, 3 * M)[value % 2])
            case 1:
                self._edit_class(minor, rate_bps=(8, 16, 3 * M)[value % 3])
            case 2:
                self._edit_class(minor, quantum_bytes=1500 + value)
            case 3:
                self._edit_class(minor, leaf_major=0)
            case 4:
                self._edit_class(minor, parent=(0x1, 0x10, 0x20)[value % 3])

    def remove_class(self, which: int, _: int, __: int) -> None:
        """Another program removes a class, or one dump leaves it out."""
        if (minor := _pick(self.device.classes, which)) is not None:
            self.stale = {minor: self.device.classes.pop(minor)}

    def orphan(self, which: int, how: int, value: int) -> None:
        """A class is there that nobody wants; it may have packets in its queue, and may have been there before."""
        if self.device.root is not RootQdisc.OURS:
            return
        if how % 3 == 2:
            self.device.classes.update({m: seen for m, seen in self.stale.items() if m not in self.device.classes})
            return
        minor = ORPHANS[which % len(ORPHANS)]
        parent = 0x10 if minor < 0x2000 else 0x20
        backlog = (0, 3000)[how % 2]
        self.device.classes.setdefault(minor, ObservedClass(minor, parent, 8, 10 * M, 1600, value, backlog, minor))

    def lose_tree(self, _: int, how: int, __: int) -> None:
        """The tree is gone: the kernel's own root qdisc is back, or another program's tree stands in its place."""
        self.stale = dict(self.device.classes)
        self.device.lose_tree()
        if how % 2:
            self.device.root, self.device.root_kind = RootQdisc.FOREIGN, "prio"

    def tree_back(self, _: int, how: int, __: int) -> None:
        """Another program's tree goes away; or our tree is back as it was, with classes that may be stale."""
        if self.device.root is RootQdisc.FOREIGN and how % 2 == 0:
            self.device.lose_tree()
        elif self.device.root is not RootQdisc.OURS:
            self.device.root, self.device.root_kind, self.device.classes = RootQdisc.OURS, "htb", dict(self.stale)

    def dump_again(self, _: int, how: int, __: int) -> None:
        """The kernel's classes come as other objects, equal ones: the mapping, or all in it, in any order."""
        classes = dict(reversed(self.device.classes.items())) if how % 3 == 2 else dict(self.device.classes)
        if how % 3:
            classes = {minor: _copy(seen) for minor, seen in classes.items()}
        self.device.classes, self.device.observed = classes, dict(classes)

    def alter_table(self, which: int, how: int, value: int) -> None:
        """Another program changes the nftables table, removes it, or does something to its rules."""
        table = self.classifier.table
        if how % 5 == 0:
            self.classifier.table = None
        elif table is not None and how % 5 == 1:
            self.classifier.spoil()
        elif table is not None:
            address = ADDRESSES[which % len(ADDRESSES)]
            slices = {**table.slice_id_by_address, address: 1 + value % 4}
            if how % 5 == 2:
                del slices[address]
            exempt = frozenset(("10.9.0.0/16",)) if how % 5 == 4 else table.exempt_destinations
            self.classifier.table = replace(table, slice_id_by_address=slices, exempt_destinations=exempt)

    def table_again(self, _: int, __: int, ___: int) -> None:
        """The table is read again: an equal object."""
        self.table = _copy(self.table)

    def other_device(self, _: int, how: int, value: int) -> None:
        """The uplink is another device. What the old one still sent is counted first, if the agent gets to it."""
        old, self.device_name = self.device_name, "eth1" if self.device_name == "eth0" else "eth0"
        if how % 2 == 0:
            left = self.shaper.read(old)
            given = pass_input(DesiredState(node=self.desired.node), left, NftTable(), self.ledger, self.now)
            self.ledger = call_pass(given, None).ledger
            self.shaper.apply(old, (RemoveRoot(),), 0)
        self.link_speed(0, value, 0)

    def rename(self, _: int, how: int, __: int) -> None:
        """The uplink gets another name, which may have been another device's."""
        old, self.device_name = self.device_name, ("wan7", "wan8", "eth1")[how % 3]
        if self.device_name != old:
            self.shaper.devices[self.device_name] = self.shaper.devices.pop(old)
        for name in ("eth0", "eth1"):
            self.shaper.devices.setdefault(name, FakeDevice())

    def link_speed(self, _: int, how: int, __: int) -> None:
        """The uplink says that it can carry more or less, or does not say."""
        self.device.line_rate_bps = (10_000 * M, None, 100 * M)[how % 3]

    # The clock and the agent.

    def clock_step(self, _: int, how: int, __: int) -> None:
        """Somebody sets the wall clock."""
        self.now = replace(self.now, wall_ns=self.now.wall_ns + STEPS_S[how % len(STEPS_S)] * NS)

    def reboot(self, _: int, how: int, __: int) -> None:
        """The node boots; some come up so fast that the agent's memory of the last pass must not mislead it."""
        self.now = replace(self.now, boot_ns=NS, boot_id=f"{self.now.boot_id}'")
        if how % 2 == 0:
            self.device.lose_tree()
            self.classifier.table = None

    def restart(self, _: int, __: int, ___: int) -> None:
        """The agent starts again, with the ledger from its file."""
        self.ledger, self.last = copy_ledger(self.ledger), None

    def ledger_again(self, _: int, how: int, value: int) -> None:
        """The ledger comes as other objects, equal ones, in part or whole; or an account in it is lost or other."""
        key = _pick(self.ledger.slices, value)
        match how % 5:
            case 0:
                self.ledger = copy_ledger(self.ledger)
            case 1:
                self.ledger = replace(self.ledger, slices=dict(self.ledger.slices))
            case 2:
                self.ledger = replace(self.ledger)
            case 3:
                slices = {other: account for other, account in self.ledger.slices.items() if other != key}
                self.ledger = replace(self.ledger, slices=slices)
            case 4 if key is not None:
                account = self.ledger.slices[key]
                account = replace(account, standard=replace(account.standard, used_bytes=SENDS[value % len(SENDS)]))
                self.ledger = replace(self.ledger, slices={**self.ledger.slices, key: account})

    def lose_ledger(self, _: int, how: int, __: int) -> None:
        """The ledger cannot be read; the agent may have started again for that, or not."""
        self.ledger = Ledger(rebuilding=True)
        self.last = None if how % 2 else self.last

    def recall(self, _: int, how: int, __: int) -> None:
        """What this node reported before is taken up, or is reported just now."""
        if how % 2 and self.last is not None:
            self.reported = self.last.usages
        else:
            self.ledger = restore_from_reports(self.ledger, self.reported, self.now)

    def acknowledge(self, _: int, how: int, __: int) -> None:
        """Events were delivered: all of them, or the oldest."""
        self.ledger = replace(self.ledger, pending_events=self.ledger.pending_events[1:] if how % 2 else ())

    # One step.

    def play(self, step: Step) -> tuple[PassResult, PassResult]:
        """Let happen what happens, run a pass both ways, and carry the changes out; (from last, from nothing)."""
        for op in step.ops:
            getattr(self, op.name)(op.which, op.how, op.value)
        elapsed_ns = round(step.wait_s * NS)
        self.now = replace(self.now, wall_ns=self.now.wall_ns + elapsed_ns, boot_ns=self.now.boot_ns + elapsed_ns)
        table = self.classifier.read()
        if table != self.table:
            self.table = table
        given = pass_input(self.desired, self.shaper.read(self.device_name), self.table, self.ledger, self.now)
        anew = call_pass(given, None)
        result = call_pass(given, self.last)
        self.ledger = result.ledger
        if step.fate != "raised":
            self.last = result
        self._apply(result, step)
        return result, anew

    def _apply(self, result: PassResult, step: Step) -> None:
        changes = list(result.tree_changes)
        self.shaper.apply(self.device_name, _carried_out(changes, step), result.settings.line_rate_bps)
        if result.table_change is not None and step.fate in {"all", "refused"}:
            try:
                self.classifier.apply(result.table_change)
            except KernelError:
                self.classifier.table = None  # two elements that exclude one another were put there by another program

    def _edit_slice(self, old: SliceSpec, **changes: Any) -> None:
        self.specs[old.key] = replace(old, generation=old.generation + 1, **changes)
        self._slices_changed()

    def _edit_pod(self, which: int, **changes: Any) -> None:
        if (name := _pick(self.pods, which)) is not None:
            self.pods[name] = replace(self.pods[name], **changes)
            self._pods_changed()

    def _edit_class(self, minor: int, **changes: Any) -> None:
        self.device.classes[minor] = replace(self.device.classes[minor], **changes)

    def _slices_changed(self) -> None:
        self.desired = replace(self.desired, slices=tuple(self.specs.values()))

    def _pods_changed(self) -> None:
        self.desired = replace(self.desired, pods=tuple(self.pods.values()))


def _carried_out(changes: list[TreeChange], step: Step) -> list[TreeChange]:
    match step.fate:
        case "none":
            return []
        case "first" | "raised":
            return changes[: step.nth]
        case "refused":
            nth = step.nth % len(changes) if changes else 0
            return changes[:nth] + changes[nth + 1 :]
        case _:
            return changes


# --- How histories are drawn. ---

COMMON: Final = ("slice_sends", "slice_sends", "slice_limits", "slice_comes_or_goes", "pod_comes_or_goes")
RARE: Final = (
    *("slice_selector", "slice_wrong", "slice_errors", "slice_again"),
    *("pod_labels", "pod_addresses", "pod_state", "pod_again"),
    *("node_settings", "node_settings", "snapshot_again", "unsynced", "unsynced"),
    *("send", "backlog", "alter_class", "alter_class", "remove_class", "orphan", "dump_again"),
    *("lose_tree", "tree_back", "other_device", "rename", "link_speed", "alter_table", "alter_table", "table_again"),
    *("clock_step", "reboot", "restart", "ledger_again", "ledger_again", "lose_ledger", "recall", "acknowledge"),
)
FATES: Final = ("all", "all", "all", "all", "all", "all", "all", "all", "refused", "none", "first", "raised", "table")
MOST_STEPS: Final = 50

_NUMBERS = st.integers(0, 17)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Histories of some 25 steps. Most are about a few kinds of things only: what is rare otherwise meets itself."""
    few = draw(st.lists(st.sampled_from(RARE), min_size=1, max_size=6))
    kinds = COMMON + (RARE if draw(st.booleans()) else tuple(few))
    op = st.builds(Op, st.sampled_from(kinds), _NUMBERS, _NUMBERS, _NUMBERS)
    ops = st.lists(op, max_size=3)
    steps: list[Step] = []
    while len(steps) < MOST_STEPS and draw(st.integers(0, 60)):
        fate = draw(st.sampled_from(FATES))
        nth = 0 if fate in {"all", "none", "table"} else draw(st.integers(0, 4))
        steps.append(Step(tuple(draw(ops)), draw(st.sampled_from(WAITS_S)), fate, nth))
    return History(draw(st.sampled_from((None, None, 2, 3))), tuple(steps))
