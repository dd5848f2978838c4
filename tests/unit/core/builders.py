"""Tiny builders for the core's values, so that a test names only what it is about."""

from collections.abc import Mapping

from msgspec.structs import replace

from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import (
    ChangeClass,
    ClassSpec,
    CreateClass,
    CreateRoot,
    DeleteClass,
    NftTable,
    ObservedClass,
    ObservedTree,
    RemoveRoot,
    RemoveTable,
    ReplaceTable,
    ResetTokens,
    RootQdisc,
    TableChange,
    UpdateTable,
)
from slicebw.core.desired import (
    ClassLimits,
    DesiredState,
    NodeSpec,
    Pod,
    Selector,
    SliceKey,
    SliceLimits,
    SliceSpec,
)
from slicebw.core.ledger import Ledger
from slicebw.core.node_pass import PassInput, PassResult, run_pass

M = 1_000_000
START_S = 1_700_000_000
EVERYTHING = Selector()


def limits(
    *,
    min_rate_bps: int = 8,
    max_rate_bps: int | None = 10 * M,
    budget_bytes: int = 100 * M,
    threshold_bytes: int | None = None,
    share: int = 1,
) -> ClassLimits:
    threshold = budget_bytes * 80 // 100 if threshold_bytes is None else threshold_bytes
    return ClassLimits(min_rate_bps, max_rate_bps, budget_bytes, threshold, share)


def spec(name: str = "ns/slice", *, created_s: int = 0, period_s: int = 3600, **standard: int | None) -> SliceSpec:
    namespace, _, short = name.partition("/")
    both = SliceLimits(period_s, limits(**standard), limits())  # type: ignore[arg-type]
    return SliceSpec(SliceKey(namespace, short), f"uid-{name}", 1, created_s, EVERYTHING, both)


def pod(name: str = "ns/pod", *addresses: str, **changes: object) -> Pod:
    namespace, _, short = name.partition("/")
    fields: dict[str, object] = {
        "namespace": namespace,
        "name": short,
        "uid": f"uid-{name}",
        "labels": {},
        "addresses": addresses,
        "host_network": False,
        "finished": False,
        "created_s": 0,
    }
    return Pod(**(fields | changes))  # type: ignore[arg-type]


def at(seconds: float, boot_id: str = "boot") -> Instant:
    """An instant this many seconds after the start of the test, on both clocks."""
    ns = round(seconds * NS)
    return Instant(START_S * NS + ns, 1000 * NS + ns, boot_id)


class Node:
    """A node driven by passes: a ledger, and a kernel that takes every change and counts what the test says it sent."""

    def __init__(self, *specs: SliceSpec, pods: tuple[Pod, ...] = (), node: NodeSpec | None = None) -> None:
        self.ledger = Ledger()
        self.desired = DesiredState(specs, pods, node or NodeSpec(line_rate_bps=1000 * M), synced=True)
        self.classes: dict[int, ObservedClass] = {}
        self.shown: dict[int, ObservedClass] = {}
        self.root = RootQdisc.DEFAULT
        self.lost_queues = 0
        self.table = NftTable(intact=False, present=False)
        self.last: PassResult | None = None

    def run(self, now: Instant) -> PassResult:
        """One pass, its ledger kept, its changes carried out."""
        if self.shown != self.classes:  # where nothing has changed it is the same mapping, as the kernel edge has it
            self.shown = dict(self.classes)
        tree = ObservedTree("eth0", self.root, "htb", self.shown, lost_queues=self.lost_queues)
        given = PassInput(self.desired, tree, self.table, self.ledger, now)
        result = run_pass(given, self.last)
        assert result == run_pass(given), "going on from the last pass comes to the same as beginning anew"
        self.ledger, self.last = result.ledger, result
        self._apply(result)
        return result

    def send(self, minor: int, count: int) -> None:
        """Let a class send this many bytes."""
        seen = self.classes[minor]
        self.classes[minor] = replace(seen, sent_bytes=seen.sent_bytes + count)

    def lose_tree(self) -> None:
        """What a reboot, or somebody's ``tc qdisc del``, does."""
        self.classes.clear()
        self.root = RootQdisc.DEFAULT

    def _apply(self, result: PassResult) -> None:
        for change in result.tree_changes:
            match change:
                case CreateRoot():
                    self.root = RootQdisc.OURS
                case RemoveRoot():
                    self.lose_tree()
                case CreateClass(spec=wanted) | ChangeClass(spec=wanted) | ResetTokens(spec=wanted):
                    known = self.classes.get(wanted.minor)
                    self.classes[wanted.minor] = from_spec(wanted, known.sent_bytes if known else 0)
                case DeleteClass(minor=minor):
                    del self.classes[minor]
        self.table = applied(self.table, result.table_change)


def applied(table: NftTable, change: TableChange | None) -> NftTable:
    """The table after a change."""
    match change:
        case None:
            return table
        case ReplaceTable(desired=desired):
            return desired
        case RemoveTable():
            return NftTable(intact=False, present=False)
        case UpdateTable():
            kept = {
                address: owner for address, owner in table.slice_id_by_address.items() if address not in change.remove
            }
            exempt = table.exempt_destinations - set(change.exempt_remove) | set(change.exempt_add)
            return NftTable(kept | dict(change.add), exempt)


def from_spec(wanted: ClassSpec, sent_bytes: int = 0) -> ObservedClass:
    """A class exactly as wanted."""
    return ObservedClass(
        wanted.minor,
        wanted.parent,
        wanted.rate_bps,
        wanted.ceil_bps,
        wanted.quantum_bytes,
        sent_bytes,
        leaf_major=wanted.leaf_major,
    )


def tree_of(classes: Mapping[int, ObservedClass], root: RootQdisc = RootQdisc.OURS) -> ObservedTree:
    return ObservedTree("eth0", root, "htb", classes)
