"""One pass, whole: (what is wanted, what is observed, the ledger, now) -> (the next ledger, changes, reports)."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from slicebw.core.account_reports import denied_reports, node_report, told_refused, why_unenforced
from slicebw.core.admission import admit, depart
from slicebw.core.books import counted_in, roll_all, shifted
from slicebw.core.changes import Classification, TableChange, TreeChange
from slicebw.core.decisions import Basis, Decisions, Outcome, carried, decide, moved_minors, moved_slices
from slicebw.core.ledger import Instant, Ledger, SliceAccount
from slicebw.core.membership import Membership, resolve
from slicebw.core.model import Mode, SliceKey, SliceSpec, Snapshot, TrafficClass
from slicebw.core.notes import mode_note, node_note
from slicebw.core.pacing import SHORTEST_NS, next_pass_ns
from slicebw.core.plan import minor_of, plan_table, plan_tree
from slicebw.core.reports import EventNote, NodeReport, Reason, UsageReport
from slicebw.core.settings import NodeSettings, settle
from slicebw.core.tree import ClassSpec, ObservedClass, ObservedTree, RootQdisc, leaf
from slicebw.core.wanted import leaf_minors, overcommitment

OUTBOX_LIMIT: Final = 1000
"""Events kept while the API is away; beyond it the oldest are dropped."""


class PassInput(Struct, frozen=True):
    """All that a pass looks at."""

    snapshot: Snapshot
    tree: ObservedTree
    table: Classification
    ledger: Ledger
    now: Instant


@dataclass(frozen=True, slots=True)
class PassResult:
    """All that a pass decides. Save the ledger before carrying out the changes."""

    ledger: Ledger
    settings: NodeSettings
    tree_changes: tuple[TreeChange, ...]
    table_change: TableChange | None
    usages: tuple[UsageReport, ...]
    node: NodeReport
    next_pass_ns: int
    tree: Mapping[int, ClassSpec] | None
    """Every class that is wanted, by minor; None: no tree at all."""
    table: Classification | None
    """What is wanted in the nftables table; None: no table at all."""
    basis: Basis = field(repr=False, compare=False)
    """For the next pass."""


class _Books(Struct, frozen=True):
    """The first half of a pass: who is on the node, and every counter folded in."""

    ledger: Ledger
    accounts: Mapping[SliceKey, SliceAccount]
    specs: Mapping[SliceKey, SliceSpec]
    owed: tuple[EventNote, ...]
    touched: Collection[SliceKey]
    """The slices to decide on."""
    before: Decisions | None = None
    """What was decided on the others."""
    suspects: set[int] | None = None
    """Classes that may be other than wanted, where only some may be."""


def run_pass(given: PassInput, last: PassResult | None = None) -> PassResult:
    """Fold counters, admit and dismiss slices, end periods, set caps, and plan the changes that all this asks for.

    ``last`` is the outcome of an earlier pass. With it or without it the result is the same; with it, work is done
    only on what differs from what that pass has seen. Whether it differs is told by whether it is the same object, so
    whoever makes a value anew makes work, and nobody may change a value.
    """
    settings, membership = _settled(given, last), _members(given.snapshot, last)
    classes = given.tree.classes if given.tree.root is RootQdisc.OURS else {}
    before = shifted(given.ledger, given.now)
    basis = last.basis if last and _goes_on(given, last, before, settings, membership) else None
    if basis is not None:
        books = _moved_books(given, basis)
    else:
        books = _whole_books(given, before, classes, settings, membership)
        foreign = given.tree.root is RootQdisc.FOREIGN  # which every slice is told, and nobody was told before
        if last is not None and last.tree is not None and settings == last.settings and not foreign:
            books = _narrowed(books, last, classes, membership)
    outcome = decide(
        *(books.accounts, books.touched, books.specs, membership, settings, given.now),
        unenforced=why_unenforced(given.tree, settings.mode),
        before=books.before,
    )
    owed = (*_node_notes(given.ledger, given.tree, settings, given.now), *books.owed, *outcome.owed)
    active = settings.mode is not Mode.DISABLED and given.tree.root is not RootQdisc.FOREIGN
    ledger = replace(
        books.ledger,
        had_tree=active,
        slices=outcome.accounts,
        read_at=given.now,
        outbox=(*books.ledger.outbox, *owed)[-OUTBOX_LIMIT:],
        mode=settings.mode,
    )
    tree = outcome.decisions.tree if active else None
    unwanted = _unwanted(tree, classes, basis)
    suspects = None if books.suspects is None else books.suspects | outcome.minors
    tree_changes = plan_tree(tree, given.tree, *_untargeted(given, before, unwanted), suspects=suspects)
    if last is not None and basis is not None:
        table, overcommitted = last.table, last.node.overcommitted  # neither has to do with what was sent
    else:
        table = _wanted_table(given, settings, membership, outcome.accounts) if active else None
        overcommitted = overcommitment(settings, tree or {})
    verdicts = outcome.decisions.verdicts
    kept = _kept(given, membership, books, outcome, tree_changes, unwanted, basis)
    return PassResult(
        ledger=ledger,
        settings=settings,
        tree_changes=tree_changes,
        table_change=plan_table(table, given.table),
        usages=(
            *told_refused(outcome.decisions.usages, ledger.refused).values(),
            *denied_reports(books.specs, membership, outcome.accounts, ledger.refused),
        ),
        node=node_report(
            *(given.snapshot, given.tree, settings, ledger),
            slices=len(verdicts),
            capped_slices=outcome.capped,
            overcommitted=overcommitted,
        ),
        next_pass_ns=_next_pass_ns(given.now, kept, hurry=given.snapshot.synced and bool(unwanted)),
        tree=tree,
        table=table,
        basis=kept,
    )


def _settled(given: PassInput, last: PassResult | None) -> NodeSettings:
    node, line_rate_bps = given.snapshot.node, given.tree.line_rate_bps
    if last and (last.basis.snapshot.node, last.basis.line_rate_bps) == (node, line_rate_bps):
        return last.settings
    return settle(node, line_rate_bps)


def _members(snapshot: Snapshot, last: PassResult | None) -> Membership:
    if last and (last.basis.snapshot.slices, last.basis.snapshot.pods) == (snapshot.slices, snapshot.pods):
        return last.basis.membership
    return resolve(snapshot.slices, snapshot.pods, last.basis.membership if last else None)


def _goes_on(
    given: PassInput, last: PassResult, before: Ledger, settings: NodeSettings, membership: Membership
) -> bool:
    """Whether nothing can have changed since the last pass but what classes show, and time.

    The accounts are those that the last pass left, on the same device, with the same members, settings and limits,
    and no period has ended. Slices that were refused a class are looked at again, and a tree that is not there is
    made whole.
    """
    basis = last.basis
    return (
        before is given.ledger  # the clock was not stepped
        and given.ledger.slices is last.ledger.slices
        and given.ledger.device == given.tree.device
        and given.tree.root is RootQdisc.OURS
        and last.tree is not None
        and settings == last.settings
        and settings.mode is not Mode.DISABLED
        and membership is basis.membership
        and given.snapshot.synced
        and basis.snapshot.synced
        and not given.ledger.refused
        and (basis.first_end_s is None or given.now.wall_s < basis.first_end_s)
    )


def _whole_books(
    given: PassInput,
    before: Ledger,
    classes: Mapping[int, ObservedClass],
    settings: NodeSettings,
    membership: Membership,
) -> _Books:
    """Every account looked at: counted, admitted or dismissed, and begun anew where its period is over."""
    counted = counted_in(before, given.tree.device, classes)
    admission = admit(counted, given.snapshot.slices, membership, (classes, given.table.slices), given.now)
    accounts = admission.accounts
    if given.snapshot.synced:
        accounts = depart(accounts, membership.present)
    rolled, ended = roll_all(before, accounts, classes, settings, given.now)
    ledger = replace(counted, last_class_id=admission.last_class_id, refused=admission.refused)
    specs = {spec.key: spec for spec in given.snapshot.slices}
    return _Books(ledger, rolled, specs, (*admission.owed, *ended), touched=rolled)


def _narrowed(books: _Books, last: PassResult, classes: Mapping[int, ObservedClass], membership: Membership) -> _Books:
    """Decide only on those who came, went, moved or have other limits: a pod that comes must not cost 4,000 slices."""
    before, touched, minors = carried(last.basis, last.ledger.slices, books.accounts, books.specs, membership)
    suspects = moved_minors(last.basis.classes, classes) | minors | last.basis.open_minors
    return replace(books, touched=touched, before=before, suspects=suspects)


def _moved_books(given: PassInput, basis: Basis) -> _Books:
    """Only what classes show is new: count in those that show something else."""
    moved = moved_minors(basis.classes, given.tree.classes)
    touched = moved_slices(basis, moved)
    counted = counted_in(given.ledger, given.tree.device, given.tree.classes, touched)
    suspects = moved | basis.open_minors
    return _Books(counted, counted.slices, basis.specs, (), touched, basis.decisions, suspects)


def _unwanted(
    tree: Mapping[int, ClassSpec] | None, classes: Mapping[int, ObservedClass], basis: Basis | None
) -> frozenset[int]:
    """Classes that are there and not in the tree."""
    if tree is None:
        return frozenset()
    if basis is not None and tree is basis.decisions.tree and classes is basis.classes:
        return basis.unwanted
    return frozenset(classes.keys() - tree.keys())


def _kept(
    given: PassInput,
    membership: Membership,
    books: _Books,
    outcome: Outcome,
    changes: Iterable[TreeChange],
    unwanted: frozenset[int],
    basis: Basis | None,
) -> Basis:
    """What the next pass can go on from."""
    accounts = outcome.accounts.values()
    open_minors = frozenset(minor for change in changes if (minor := minor_of(change)) is not None)
    if basis is not None:
        keys, first_end_s, first_live_end_s = basis.keys, basis.first_end_s, basis.first_live_end_s
    else:
        keys = {account.class_id: account.key for account in accounts if account.class_id}
        first_end_s = min((account.period_end_s for account in accounts), default=None)
        first_live_end_s = min((account.period_end_s for account in accounts if account.live), default=None)
    return Basis(
        snapshot=given.snapshot,
        line_rate_bps=given.tree.line_rate_bps,
        membership=membership,
        specs=books.specs,
        classes=given.tree.classes if given.tree.root is RootQdisc.OURS else {},
        keys=keys,
        first_end_s=first_end_s,
        first_live_end_s=first_live_end_s,
        decisions=outcome.decisions,
        open_minors=open_minors,
        unwanted=unwanted,
    )


def _node_notes(ledger: Ledger, tree: ObservedTree, settings: NodeSettings, now: Instant) -> list[EventNote]:
    """Notes if the mode is another one now, and if somebody else took away the tree of this boot's last pass."""
    notes = []
    if ledger.mode is not None and ledger.mode is not settings.mode:
        notes.append(mode_note(tree.device, ledger.mode, settings.mode, now.wall_s))
    last = ledger.read_at
    had_one = ledger.had_tree and ledger.device == tree.device and settings.mode is not Mode.DISABLED
    if had_one and tree.root is RootQdisc.DEFAULT and last is not None and last.boot_id == now.boot_id:
        message = f"The HTB tree of {tree.device} had been removed by another hand; it is made again, usage continues"
        notes.append(node_note(Reason.TREE_REBUILT, message, now.wall_s))
    return notes


def _untargeted(given: PassInput, before: Ledger, unwanted: Collection[int]) -> tuple[frozenset[int], frozenset[int]]:
    """Unwanted classes to which the table sends nothing: those with an empty queue, and those whose queue stands still.

    Only with an empty queue may one be deleted: what a class sends between the dump and its deletion would not be
    counted. One that did not send since the last pass might need hours for its queue.
    """
    if not unwanted or not given.snapshot.synced:
        return frozenset(), frozenset()
    targeted = leaf_minors(set(given.table.slices.values()))
    free = {minor: given.tree.classes[minor] for minor in unwanted if minor not in targeted}
    last = {
        leaf(traffic_class, account.class_id): account.of(traffic_class).counter_bytes
        for account in before.slices.values()
        if not account.live
        for traffic_class in TrafficClass
    }
    empty = frozenset(minor for minor, seen in free.items() if seen.backlog_bytes == 0)
    stuck = frozenset(minor for minor, seen in free.items() if last.get(minor) == seen.sent_bytes)
    return empty, stuck - empty


def _wanted_table(
    given: PassInput, settings: NodeSettings, membership: Membership, accounts: Mapping[SliceKey, SliceAccount]
) -> Classification:
    """Every address of a live slice. Before the first complete list, what the table holds already stays in it."""
    slices = {} if given.snapshot.synced else dict(given.table.slices)
    for address, key in membership.addresses.items():
        account = accounts.get(key)
        if account is not None and account.live:
            slices[address] = account.class_id
    return Classification(slices, settings.exempt_destinations)


def _next_pass_ns(now: Instant, basis: Basis, *, hurry: bool) -> int:
    crossings_ns = basis.decisions.crossings_ns
    soonest = [] if not crossings_ns else [min(crossings_ns.values())]
    if hurry:
        soonest.append(0)
    ends_s = [] if basis.first_live_end_s is None else [basis.first_live_end_s]
    return max(next_pass_ns(now.wall_ns, ends_s, soonest), SHORTEST_NS // 100)
