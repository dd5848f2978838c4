"""One pass, whole: (what is wanted, what is observed, the ledger, now) -> (the next ledger, changes, reports)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from slicebw.core.account_reports import node_report, usage_reports
from slicebw.core.admission import admit, depart
from slicebw.core.books import counted_in, roll_all, shifted
from slicebw.core.changes import Classification, TableChange, TreeChange
from slicebw.core.ledger import Instant, Ledger, SliceAccount
from slicebw.core.membership import Membership, resolve
from slicebw.core.model import Mode, SliceKey, Snapshot, TrafficClass
from slicebw.core.notes import mode_note, node_note
from slicebw.core.pacing import SHORTEST_NS, Runner, next_pass_ns
from slicebw.core.plan import plan_table, plan_tree
from slicebw.core.reports import EventNote, NodeReport, Reason, UsageReport
from slicebw.core.settings import NodeSettings, settle
from slicebw.core.tree import ClassSpec, ObservedClass, ObservedTree, RootQdisc, leaf
from slicebw.core.verdict import SliceVerdict, judge_slice
from slicebw.core.wanted import frame, leaf_class, leaf_minors

OUTBOX_LIMIT: Final = 1000
"""Events kept while the API is away; beyond it the oldest are dropped."""


@dataclass(frozen=True, slots=True)
class PassInput:
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


def run_pass(given: PassInput) -> PassResult:
    """Fold counters, admit and dismiss slices, end periods, set caps, and plan the changes that all this asks for."""
    settings = settle(given.snapshot.node, given.tree.line_rate_bps)
    classes = given.tree.classes if given.tree.root is RootQdisc.OURS else {}
    before = shifted(given.ledger, given.now)
    counted = counted_in(before, given.tree.device, classes)
    membership = resolve(given.snapshot.slices, given.snapshot.pods)
    admission = admit(counted, given.snapshot.slices, membership, (classes, given.table.slices), given.now)
    accounts = admission.accounts
    if given.snapshot.synced:
        accounts = depart(accounts, membership.present)
    owed = [*_node_notes(given.ledger, given.tree, settings, given.now), *admission.owed]
    rolled, ended = roll_all(before, accounts, classes, settings, given.now)
    owed += ended
    verdicts = {key: judge_slice(account, settings, given.now) for key, account in rolled.items() if account.live}
    accounts = {key: verdicts[key].marked(account) if account.live else account for key, account in rolled.items()}
    owed += [note for verdict in verdicts.values() for one in verdict.both for note in one.owed]
    active = settings.mode is not Mode.DISABLED and given.tree.root is not RootQdisc.FOREIGN
    ledger = replace(
        counted,
        had_tree=active,
        slices=accounts,
        last_class_id=admission.last_class_id,
        refused=admission.refused,
        read_at=given.now,
        outbox=(*counted.outbox, *owed)[-OUTBOX_LIMIT:],
        mode=settings.mode,
    )
    tree = _wanted_tree(settings, accounts, verdicts) if active else None
    tree_changes = plan_tree(tree, given.tree, *_untargeted(given, before, classes))
    table = _wanted_table(given, settings, membership, accounts) if active else None
    leftover = given.snapshot.synced and any(minor not in tree for minor in classes) if tree else False
    return PassResult(
        ledger=ledger,
        settings=settings,
        tree_changes=tree_changes,
        table_change=plan_table(table, given.table),
        usages=usage_reports(given.snapshot, membership, accounts, verdicts),
        node=node_report(given.snapshot, given.tree, settings, tree or {}, ledger, verdicts),
        next_pass_ns=_next_pass_ns(given.now, accounts, verdicts, hurry=leftover),
        tree=tree,
        table=table,
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


def _wanted_tree(
    settings: NodeSettings, accounts: Mapping[SliceKey, SliceAccount], verdicts: Mapping[SliceKey, SliceVerdict]
) -> dict[int, ClassSpec]:
    classes = frame(settings)
    for key, verdict in verdicts.items():
        account = accounts[key]
        for traffic_class, decided in zip(TrafficClass, verdict.both, strict=True):
            share = account.limits.of(traffic_class).share
            spec = leaf_class(traffic_class, account.class_id, decided.kernel, share)
            classes[spec.minor] = spec
    return classes


def _untargeted(
    given: PassInput, before: Ledger, classes: Mapping[int, ObservedClass]
) -> tuple[frozenset[int], frozenset[int]]:
    """Classes to which the table sends nothing: those with an empty queue, and those whose queue stands still.

    Only with an empty queue may one be deleted: what a class sends between the dump and its deletion would not be
    counted. One that did not send since the last pass might need hours for its queue.
    """
    if not given.snapshot.synced:
        return frozenset(), frozenset()
    targeted = leaf_minors(set(given.table.slices.values()))
    free = {minor: seen for minor, seen in classes.items() if minor not in targeted}
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


def _next_pass_ns(
    now: Instant,
    accounts: Mapping[SliceKey, SliceAccount],
    verdicts: Mapping[SliceKey, SliceVerdict],
    *,
    hurry: bool,
) -> int:
    runners = [one.runner for verdict in verdicts.values() for one in verdict.both if one.runner is not None]
    if hurry:
        runners.append(Runner(0, 1))
    ends_s = [account.period_end_s for account in accounts.values() if account.live]
    return max(next_pass_ns(now.wall_ns, ends_s, runners), SHORTEST_NS // 100)
