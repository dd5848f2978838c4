"""What the node comes to: (desired, observed, ledger, now) -> (the next ledger, changes, reports). Start reading here.

A pass is a pure function. The result of the last pass only saves work, by one rule that holds at three levels:

- A step about the whole node (settings, membership, slice ids, table) is made again when one of its inputs has changed.
- The outcome of a slice (:mod:`slicebw.core.slice_pass`) is made again when one of its inputs is another object, or
  when its time is over.
- Where neither is the case for any slice, the totals over all slices are kept too. That makes an idle pass almost free.

With the last result or without it, the result is the same.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress, count
from operator import is_not, or_
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from slicebw.core.accounting import fold_counter, is_same_device, reset_baselines, shift_periods
from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import (
    DEFAULT_ID,
    HOST_ID,
    ClassSpec,
    NftTable,
    ObservedClass,
    ObservedTree,
    RootQdisc,
    TableChange,
    TreeChange,
    leaf,
)
from slicebw.core.desired import (
    DesiredState,
    Mode,
    NodeSettings,
    NodeSpec,
    Pod,
    SliceKey,
    SliceSpec,
    TrafficClass,
    settle,
)
from slicebw.core.events import mode_event, node_event
from slicebw.core.ledger import ClassAccount, Ledger, PendingEvent, Reason, SliceAccount
from slicebw.core.membership import Membership, resolve
from slicebw.core.plan import frame, leaf_minors, overcommitment, plan_class, plan_table, plan_tree
from slicebw.core.reports import NodeReport, UsageReport, node_report, not_enforced_reason, reports_without_class
from slicebw.core.slice_ids import Observed, allocate
from slicebw.core.slice_pass import (
    FAR_NS,
    FAR_S,
    Claim,
    Interval,
    NodeContext,
    Presence,
    SliceOutcome,
    slice_outcome,
)

SHORTEST_NS: Final = NS // 5
LONGEST_NS: Final = 10 * NS
"""The next pass is due within these bounds; only the end of a period may come sooner."""

SOONEST_NS: Final = NS // 500
"""Even the end of a period is not met by a tighter loop than this."""

PENDING_EVENTS_LIMIT: Final = 1000
"""Events kept while the API is away; beyond it the oldest are dropped."""

_NO_CLASSES: Final[Mapping[int, ObservedClass]] = {}
_NOBODY: Final = -1
"""A minor that no class has."""
_NO_CLAIM: Final = Claim(None, (), Presence.UNKNOWN)


_Row = tuple[int, SliceAccount, Claim, ObservedClass | None, ObservedClass | None, SliceOutcome | None]
"""The position of a slice in the order of the accounts, all that its outcome depends on, and its last outcome."""

_Fresh = list[tuple[int, SliceOutcome | None, SliceOutcome | None]]
"""One entry for each slice decided in this pass: its position, its last outcome (None for a newcomer), and its new one
(None if it was purged)."""


class PassInput(Struct, frozen=True):
    """All that a pass looks at."""

    desired: DesiredState
    tree: ObservedTree
    table: NftTable
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
    """Every desired class by minor; None: no tree at all."""
    table: NftTable | None
    """The desired content of the nftables table; None: no table at all."""
    memory: "_Memory" = field(repr=False, compare=False)
    """For the next pass."""


class _Members(Struct, frozen=True):
    """The step that finds out which slice has which pods."""

    slices: tuple[SliceSpec, ...]
    pods: tuple[Pod, ...]
    specs: Mapping[SliceKey, SliceSpec]
    membership: Membership
    changed: Collection[SliceKey]
    """The slices whose spec, presence or problems differ from the last answer."""


class _Roster(Struct, frozen=True):
    """Accounts joined with claims, once for as long as neither changes. Lists are in the order of the accounts."""

    members: _Members
    synced: bool
    claims: list[Claim]
    standard_minors: list[int]
    exempt_minors: list[int]
    without_class: tuple[UsageReport, ...]


class _Joined(Struct, frozen=True):
    """The roster of this pass, and what it was joined from."""

    roster: _Roster
    ledger: Ledger
    """With the newcomers' accounts."""
    outcomes: list[SliceOutcome | None]
    """The last ones, in the order of the accounts."""
    same_accounts: bool
    """Whether the accounts, newcomers aside, are those that the last pass left, and no slice waits for an id. Then
    lists in the order of accounts still fit."""
    events: tuple[PendingEvent, ...]
    """About slices that got no id."""


class _Totals(Struct, frozen=True):
    """The outcomes of all slices, in the order of the accounts, and what they add up to."""

    outcomes: list[SliceOutcome]
    accounts: Mapping[SliceKey, SliceAccount]
    tree: Mapping[int, ClassSpec]
    changes: list[TreeChange]
    usages: tuple[UsageReport, ...]
    events: tuple[PendingEvent, ...]
    live: int
    capped: int
    good_until_s: int
    time_to_threshold_ns: int
    live_until_s: int
    standard: list[ObservedClass | None]
    exempt: list[ObservedClass | None]
    """The observed classes that the outcomes were decided on."""
    times_to_threshold_ns: list[int]
    purged: bool
    """Whether an account was forgotten: then lists in the order of accounts do not fit the next pass."""


class _Memory(Struct, frozen=True):
    """What a pass leaves for the next one beside its result. Nothing in it is ever changed."""

    node_spec: NodeSpec
    line_rate_bps: int | None
    node: NodeContext
    roster: _Roster
    classes: Mapping[int, ObservedClass]
    totals: _Totals
    unwanted: frozenset[int]
    table: NftTable
    """As observed."""


def run_pass(given: PassInput, last: PassResult | None = None) -> PassResult:
    """Fold counters, give and take back slice ids, end periods, set caps, and plan the changes that follow.

    Unchanged inputs must be the same objects as before (:mod:`slicebw.core.slice_pass`). ``last`` is the result of an
    earlier pass, if there is one.
    """
    memory = last.memory if last else None
    node = _node(given, memory)
    classes = given.tree.classes if given.tree.root is RootQdisc.OURS else _NO_CLASSES
    # Before anything is compared with the clock: a step of it must not end or prolong a period.
    before = shift_periods(given.ledger, given.now)
    joined = _join(given, reset_baselines(before, given.tree, classes, given.now), classes, memory)
    totals = _totals(joined, node, classes, Interval(before.read_at, given.now), memory)
    next_ledger = _next_ledger(given, node, joined, totals, classes)
    tree = totals.tree if node.shaped else None
    unwanted = _unwanted(tree, classes, last)
    table = _table(given, node, joined, totals, last)
    return PassResult(
        ledger=next_ledger,
        settings=node.settings,
        tree_changes=_tree_changes(given, before, node, totals, unwanted),
        table_change=_table_change(given, table, last),
        usages=totals.usages,
        node=node_report(
            given.desired,
            given.tree,
            node.settings,
            next_ledger,
            slices=totals.live,
            capped_slices=totals.capped,
            overcommitted=_overcommitment(node, totals, last),
        ),
        next_pass_ns=_next_pass_ns(given.now, totals, hurry=joined.roster.synced and bool(unwanted)),
        tree=tree,
        table=table,
        memory=_Memory(
            node_spec=given.desired.node,
            line_rate_bps=given.tree.line_rate_bps,
            node=node,
            roster=joined.roster,
            classes=classes,
            totals=totals,
            unwanted=unwanted,
            table=given.table,
        ),
    )


def _next_ledger(
    given: PassInput, node: NodeContext, joined: _Joined, totals: _Totals, classes: Mapping[int, ObservedClass]
) -> Ledger:
    """Return the ledger after this pass, with the Events that it adds."""
    ledger = joined.ledger
    events = *ledger.pending_events, *_node_events(given, node.settings), *joined.events, *totals.events
    return replace(
        ledger,
        slices=totals.accounts,
        node_totals=_node_totals(ledger, classes),
        read_at=given.now,
        device=given.tree.device,
        ifindex=given.tree.ifindex,
        netns=given.tree.netns,
        had_tree=node.shaped,
        pending_events=events[-PENDING_EVENTS_LIMIT:],  # the newest: the API server may be away for days
        mode=node.settings.mode,
    )


def _node(given: PassInput, memory: _Memory | None) -> NodeContext:
    """Settle what holds for the whole node. Returns the last context if nothing about it has changed."""
    node_spec, line_rate_bps = given.desired.node, given.tree.line_rate_bps
    if memory and (memory.node_spec, memory.line_rate_bps) == (node_spec, line_rate_bps):
        settings = memory.node.settings
    else:
        settings = settle(node_spec, line_rate_bps)
    shaped = settings.mode is not Mode.DISABLED and given.tree.root is not RootQdisc.FOREIGN
    node = NodeContext(settings, shaped, not_enforced_reason(given.tree, settings.mode))
    return memory.node if memory and memory.node == node else node


def _members(desired: DesiredState, last: _Members | None) -> _Members:
    """Find out which slice has which pods. Returns the last answer if neither slices nor pods have changed."""
    if last and (last.slices, last.pods) == (desired.slices, desired.pods):
        return last
    specs = {spec.key: spec for spec in desired.slices}
    membership = resolve(desired.slices, desired.pods, last.membership if last else None)
    if last is None:
        return _Members(desired.slices, desired.pods, specs, membership, specs.keys())
    changed = _differing(last.specs, specs) | (last.membership.present ^ membership.present)
    changed |= _differing(last.membership.problems, membership.problems)
    return _Members(desired.slices, desired.pods, specs, membership, changed)


def _differing(before: Mapping[SliceKey, object], after: Mapping[SliceKey, object]) -> set[SliceKey]:
    """Return the keys under which one mapping has another object than the other, or none."""
    if before is after:
        return set()
    # Without a loop in Python: there are thousands of keys, and almost always only a few differ.
    other = compress(after, map(is_not, after.values(), map(before.get, after)))
    return {*other, *(before.keys() - after.keys())}


def _join(given: PassInput, ledger: Ledger, classes: Mapping[int, ObservedClass], memory: _Memory | None) -> _Joined:
    """Place newcomers, and join accounts with claims and last outcomes. Keeps the last roster where it still holds."""
    last, synced = memory.roster if memory else None, given.desired.synced
    members = _members(given.desired, last.members if last else None)
    same_accounts = (
        memory is not None
        and ledger.slices is memory.totals.accounts
        and synced == memory.roster.synced
        and not memory.totals.purged
        and not ledger.unplaced  # else an id may have become free
    )
    if last and memory and same_accounts and members is last.members:
        return _Joined(last, ledger, [*memory.totals.outcomes], same_accounts, ())
    changed = members.changed if same_accounts else None
    # Ids before outcomes: a class can be planned only under an id.
    placed = allocate(
        ledger,
        members.specs,
        members.membership,
        Observed(classes, given.table.slice_id_by_address),
        given.now,
        changed,
    )
    accounts = placed.accounts
    outcomes = _last_outcomes(accounts, memory, same_accounts=same_accounts)
    same_ids = same_accounts and accounts is ledger.slices
    if last and same_accounts:
        last_claims = last.claims
    else:
        last_claims = [outcome.claim if outcome is not None else _NO_CLAIM for outcome in outcomes]
    roster = _Roster(
        members=members,
        synced=synced,
        claims=_claims(accounts, members, placed.unplaced, last_claims, changed, synced=synced),
        standard_minors=last.standard_minors if last and same_ids else _minors(TrafficClass.STANDARD, accounts),
        exempt_minors=last.exempt_minors if last and same_ids else _minors(TrafficClass.EXEMPT, accounts),
        without_class=reports_without_class(members.specs, members.membership, accounts, placed.unplaced),
    )
    ledger = replace(ledger, slices=accounts, last_slice_id=placed.last_slice_id, unplaced=placed.unplaced)
    return _Joined(roster, ledger, outcomes, same_accounts, placed.events)


def _minors(traffic_class: TrafficClass, accounts: Mapping[SliceKey, SliceAccount]) -> list[int]:
    """Return the minor of each slice's class. A slice that is only remembered has none: id 0 is the host's."""
    base = leaf(traffic_class, 0)
    return [base | account.slice_id if account.slice_id else _NOBODY for account in accounts.values()]


def _claims(
    accounts: Mapping[SliceKey, SliceAccount],
    members: _Members,
    unplaced: Collection[SliceKey],
    last: list[Claim],
    changed: Iterable[SliceKey] | None,
    *,
    synced: bool,
) -> list[Claim]:
    """Return what the API says of each account. A claim that says the same as the last one is the last one.

    Args:
        accounts: all of them.
        members: which slice has which pods.
        unplaced: the slices for which no id is left.
        last: the last claims, in the order of accounts. Returned itself if no claim has changed.
        changed: the slices whose claim may have changed; None: all of them.
        synced: whether the API's list is complete.
    """
    specs, problems, present = members.specs, members.membership.problems, members.membership.present
    claims = [*last, *[_NO_CLAIM] * (len(accounts) - len(last))]
    positions = dict(zip(accounts, count()))
    other = False
    for key in accounts if changed is None else positions.keys() & changed:
        if key in present:
            presence = Presence.UNPLACED if key in unplaced else Presence.PRESENT
        else:
            presence = Presence.ABSENT if synced else Presence.UNKNOWN
        claim = Claim(specs.get(key), problems.get(key, ()), presence)
        before = claims[positions[key]]
        if before.spec is not claim.spec or before != claim:
            claims[positions[key]] = claim
            other = True
    return claims if other or len(claims) != len(last) else last


def _last_outcomes(
    accounts: Mapping[SliceKey, SliceAccount], memory: _Memory | None, *, same_accounts: bool
) -> list[SliceOutcome | None]:
    """Return the last outcome of each account; None for a newcomer."""
    if memory is None:
        return [None] * len(accounts)
    last = memory.totals.outcomes
    if same_accounts:
        return [*last, *[None] * (len(accounts) - len(last))]  # newcomers come last
    by_key = {outcome.account.key: outcome for outcome in last}
    return [by_key.get(key) for key in accounts]


def _totals(
    joined: _Joined,
    node: NodeContext,
    classes: Mapping[int, ObservedClass],
    interval: Interval,
    memory: _Memory | None,
) -> _Totals:
    """Decide every slice of which something has changed or whose time is over, and add all outcomes up."""
    same_node = memory is not None and memory.node is node
    same_claims = joined.same_accounts and memory is not None and memory.roster.claims is joined.roster.claims
    same_accounts = memory is not None and joined.ledger.slices is memory.totals.accounts
    now_s = interval.now.wall_s
    last = memory.totals if memory and same_node and same_claims and same_accounts else None
    if last is not None and now_s >= last.good_until_s:
        last = None
    if memory and last is not None and memory.classes is classes:
        return _kept(last, joined.roster.without_class, memory.roster.without_class)
    standard = list(map(classes.get, joined.roster.standard_minors))
    exempt = list(map(classes.get, joined.roster.exempt_minors))
    outcomes: list[SliceOutcome | None] = [None] * len(joined.outcomes)
    if same_node:
        outcomes = list(joined.outcomes)
    accounts = joined.ledger.slices.values()
    rows: Iterable[_Row] = zip(count(), accounts, joined.roster.claims, standard, exempt, outcomes)
    if last is not None:
        # Only classes can have moved. Rows whose classes are the same objects are passed over without a look at them:
        # with thousands of slices, to load them into the processor's cache is most of the work.
        moved = map(or_, map(is_not, standard, last.standard), map(is_not, exempt, last.exempt))
        rows = compress(rows, moved)
    fresh = _decide(rows, outcomes, node, interval)
    if last is not None:
        return _patched(last, joined, node, outcomes, fresh, (standard, exempt))
    return _add_up(joined, node, outcomes, fresh, (standard, exempt), memory if same_node else None)


def _decide(rows: Iterable[_Row], outcomes: list[SliceOutcome | None], node: NodeContext, interval: Interval) -> _Fresh:
    """Decide the slices whose outcome does not hold any more, put it into ``outcomes``, and return what was decided."""
    now_s = interval.now.wall_s
    fresh: _Fresh = []
    for position, account, claim, standard, exempt, last in rows:
        if (
            last is None
            or last.standard is not standard
            or last.exempt is not exempt
            or last.account is not account
            or last.claim is not claim
            or last.good_until_s <= now_s
        ):
            outcome = slice_outcome(account, claim, (standard, exempt), node, interval, last)
            outcomes[position] = outcome
            fresh.append((position, last, outcome))
    return fresh


def _kept(last: _Totals, without_class: tuple[UsageReport, ...], before: tuple[UsageReport, ...]) -> _Totals:
    """Return the last totals, without their Events, and with the present reports of slices that have no account."""
    if without_class == before:
        return replace(last, events=()) if last.events else last
    return replace(last, events=(), usages=(*[outcome.usage for outcome in last.outcomes], *without_class))


def _patched(
    last: _Totals,
    joined: _Joined,
    node: NodeContext,
    outcomes: list[SliceOutcome | None],
    fresh: _Fresh,
    observed: tuple[list[ObservedClass | None], list[ObservedClass | None]],
) -> _Totals:
    """Return the last totals with the fresh outcomes in place. No period has ended, and nobody came or went."""
    kept = [outcome for outcome in outcomes if outcome is not None]
    usages, times_ns = list(last.usages[: len(kept)]), list(last.times_to_threshold_ns)
    capped, good_until_s, open_changes = last.capped, last.good_until_s, bool(last.changes)
    for position, before, outcome in fresh:
        if before is not None and outcome is not None:  # always, because nobody came or went
            usages[position] = outcome.usage
            times_ns[position] = outcome.time_to_threshold_ns
            capped += outcome.capped - before.capped
            good_until_s = min(good_until_s, outcome.good_until_s)
            open_changes = open_changes or bool(outcome.changes)
    return replace(
        last,
        outcomes=kept,
        accounts=_accounts(joined.ledger.slices, kept, fresh),
        tree=_tree(node, kept, fresh, last.tree),
        changes=[change for outcome in kept for change in outcome.changes] if open_changes else [],
        usages=(*usages, *joined.roster.without_class),
        events=_events(fresh),
        capped=capped,
        good_until_s=good_until_s,
        time_to_threshold_ns=min(times_ns, default=FAR_NS),
        standard=observed[0],
        exempt=observed[1],
        times_to_threshold_ns=times_ns,
    )


def _add_up(
    joined: _Joined,
    node: NodeContext,
    outcomes: list[SliceOutcome | None],
    fresh: _Fresh,
    observed: tuple[list[ObservedClass | None], list[ObservedClass | None]],
    memory: _Memory | None,
) -> _Totals:
    """Add all outcomes up. ``fresh``: what was decided anew, before and after; ``memory``: of the same node."""
    kept = [outcome for outcome in outcomes if outcome is not None]
    changes: list[TreeChange] = []
    live = capped = 0
    good_until_s = live_until_s = FAR_S
    time_to_threshold_ns = FAR_NS
    for outcome in kept:  # one plain loop: with min() and sum() it takes five times as long
        if outcome.changes:
            changes += outcome.changes
        if outcome.classes:
            live += 1
        capped += outcome.capped
        if outcome.good_until_s < good_until_s:  # noqa: PLR1730
            good_until_s = outcome.good_until_s
        if outcome.time_to_threshold_ns < time_to_threshold_ns:  # noqa: PLR1730
            time_to_threshold_ns = outcome.time_to_threshold_ns
        if outcome.live_until_s < live_until_s:  # noqa: PLR1730
            live_until_s = outcome.live_until_s
    accounts = _accounts(joined.ledger.slices, kept, fresh)
    without_class, members = joined.roster.without_class, joined.roster.members
    purged = len(kept) < len(outcomes)
    if purged:  # one that is forgotten now may still be denied a pod
        without_class = reports_without_class(members.specs, members.membership, accounts, joined.ledger.unplaced)
    return _Totals(
        outcomes=kept,
        accounts=accounts,
        tree=_tree(node, kept, fresh, memory.totals.tree if memory and joined.same_accounts else None),
        changes=changes,
        usages=(*[outcome.usage for outcome in kept], *without_class),
        events=_events(fresh),
        live=live,
        capped=capped,
        good_until_s=good_until_s,
        time_to_threshold_ns=time_to_threshold_ns,
        live_until_s=live_until_s,
        standard=observed[0],
        exempt=observed[1],
        times_to_threshold_ns=[outcome.time_to_threshold_ns for outcome in kept],
        purged=purged,
    )


def _accounts(
    before: Mapping[SliceKey, SliceAccount], outcomes: list[SliceOutcome], fresh: _Fresh
) -> Mapping[SliceKey, SliceAccount]:
    """Return the accounts of all outcomes. Returns the same mapping if nothing in it changes."""
    if len(outcomes) < len(before):  # some were forgotten
        return {outcome.account.key: outcome.account for outcome in outcomes}
    moved = {outcome.account.key: outcome.account for _, _, outcome in fresh if outcome is not None}
    moved = {key: account for key, account in moved.items() if before[key] is not account}
    return {**before, **moved} if moved else before


def _events(fresh: _Fresh) -> tuple[PendingEvent, ...]:
    """Return the Events in the order of the accounts."""
    return tuple(event for _, _, outcome in fresh if outcome is not None for event in outcome.events)


def _tree(
    node: NodeContext,
    outcomes: Iterable[SliceOutcome],
    fresh: _Fresh,
    last: Mapping[int, ClassSpec] | None,
) -> Mapping[int, ClassSpec]:
    """Return every desired class by minor. Returns the same mapping if nothing in it changes."""
    if last is None:
        tree = frame(node.settings)
        tree.update((one.leaf.minor, one.leaf) for outcome in outcomes for one in outcome.classes)
        return tree
    removed: set[int] = set()
    added: dict[int, ClassSpec] = {}
    for _, last_outcome, outcome in fresh:
        leaves = {one.leaf.minor: one.leaf for one in outcome.classes} if outcome else {}
        before = {one.leaf.minor: one.leaf for one in last_outcome.classes} if last_outcome else {}
        if leaves != before:
            removed |= before.keys() - leaves.keys()
            added |= leaves
    if not removed and not added:
        return last
    tree = {**last, **added}
    for minor in removed - added.keys():
        del tree[minor]
    return tree


def _node_totals(ledger: Ledger, classes: Mapping[int, ObservedClass]) -> dict[int, ClassAccount]:
    """Count the bytes of the host's and the default classes."""
    return {
        minor: fold_counter(ledger.node_totals.get(minor, ClassAccount()), classes.get(minor))
        for minor in sorted(leaf_minors((HOST_ID, DEFAULT_ID)))
    }


def _node_events(given: PassInput, settings: NodeSettings) -> list[PendingEvent]:
    """Return Events if the mode has changed, and if another program has removed the tree within this boot."""
    ledger, tree, now = given.ledger, given.tree, given.now
    events = []
    if ledger.mode is not None and ledger.mode is not settings.mode:
        events.append(mode_event(tree.device, ledger.mode, settings.mode, now.wall_s))
    last = ledger.read_at
    had_one = ledger.had_tree and is_same_device(ledger, tree, now) and settings.mode is not Mode.DISABLED
    # After a reboot the tree is gone by itself: nobody removed it.
    if had_one and tree.root is RootQdisc.DEFAULT and last is not None and last.boot_id == now.boot_id:
        message = f"The HTB tree of {tree.device} was removed by another program; it is made again, and usage continues"
        events.append(node_event(Reason.TREE_REBUILT, message, now.wall_s))
    return events


def _unwanted(
    tree: Mapping[int, ClassSpec] | None, classes: Mapping[int, ObservedClass], last: PassResult | None
) -> frozenset[int]:
    """Return the minors of observed classes that are not desired."""
    if tree is None:
        return frozenset()
    if last is not None and tree is last.tree and classes is last.memory.classes:
        return last.memory.unwanted
    if classes.keys() <= tree.keys():  # almost always; it is cheaper than the difference
        return frozenset()
    return frozenset(classes.keys() - tree.keys())


def _tree_changes(
    given: PassInput, before: Ledger, node: NodeContext, totals: _Totals, unwanted: frozenset[int]
) -> tuple[TreeChange, ...]:
    """Plan the classes of all slices, those that are always there, and the end of unwanted ones."""
    if not node.shaped:
        return plan_tree(None, given.tree, ())
    classes = given.tree.classes if given.tree.root is RootQdisc.OURS else _NO_CLASSES
    planned = list(totals.changes)
    for spec in frame(node.settings).values():
        planned += plan_class(spec, classes.get(spec.minor))
    quiet, stuck = _drained(given, before, unwanted)
    return plan_tree(totals.tree, given.tree, quiet, stuck, planned)


def _drained(given: PassInput, before: Ledger, unwanted: Collection[int]) -> tuple[frozenset[int], frozenset[int]]:
    """Return the unwanted classes that the table sends nothing to.

    First those with an empty queue, then those whose queue does not move.
    Only a class with an empty queue may be deleted: what it sends between the dump and its deletion would not be
    counted. A class that sent nothing since the last pass might need hours to empty its queue.
    """
    if not unwanted or not given.desired.synced:
        return frozenset(), frozenset()
    targeted = leaf_minors(set(given.table.slice_id_by_address.values()))
    free = {minor: given.tree.classes[minor] for minor in unwanted if minor not in targeted}
    last = {
        leaf(traffic_class, account.slice_id): account.of(traffic_class).counter_bytes
        for account in before.slices.values()
        if not account.live
        for traffic_class in TrafficClass
    }
    empty = frozenset(minor for minor, observed in free.items() if observed.backlog_bytes == 0)
    stuck = frozenset(minor for minor, observed in free.items() if last.get(minor) == observed.sent_bytes)
    return empty, stuck - empty


def _table(
    given: PassInput, node: NodeContext, joined: _Joined, totals: _Totals, last: PassResult | None
) -> NftTable | None:
    """Map every address of a live slice to its id. Before the first complete list, what the table holds stays in it."""
    if not node.shaped:
        return None
    members, synced = joined.roster.members, joined.roster.synced
    addresses = members.membership.addresses
    if last is None or last.table is None or last.memory.node is not node or not joined.same_accounts or not synced:
        ids = {key: account.slice_id for key, account in totals.accounts.items() if account.live}
        slices = {} if synced else dict(given.table.slice_id_by_address)
        slices.update((address, ids[key]) for address, key in addresses.items() if key in ids)
        return NftTable(slices, node.settings.exempt_destinations)
    # A slice comes or goes together with its addresses, so only addresses that moved can be mapped to another id.
    before = last.memory.roster.members.membership.addresses
    moved = set() if addresses is before else addresses.items() ^ before.items()
    if not moved:
        return last.table
    slices = dict(last.table.slice_id_by_address)
    for address, _ in moved:
        key = addresses.get(address)
        account = None if key is None else totals.accounts.get(key)
        if account is None or not account.live:  # nobody's, or of a slice for which no id is left
            slices.pop(address, None)
        else:
            slices[address] = account.slice_id
    return NftTable(slices, node.settings.exempt_destinations)


def _overcommitment(node: NodeContext, totals: _Totals, last: PassResult | None) -> str | None:
    if last is not None and last.memory.totals.tree is totals.tree:
        return last.node.overcommitted
    return overcommitment(node.settings, totals.tree) if node.shaped else None


def _table_change(given: PassInput, table: NftTable | None, last: PassResult | None) -> TableChange | None:
    """Plan the table. Keeps the last plan if neither the desired nor the observed table is another object."""
    if last is not None and last.table is table and last.memory.table is given.table:
        return last.table_change
    return plan_table(table, given.table)


def next_pass_ns(now_wall_ns: int, period_ends_s: Iterable[int], times_to_threshold_ns: Iterable[int]) -> int:
    """Return the time to the next pass: within [0.2 s, 10 s], except that the end of a period is met exactly.

    A fixed interval would be too long: at 1 Gbit/s the last 20 % of a default budget are sent in 17 s.
    """
    due_ns = min(times_to_threshold_ns, default=LONGEST_NS)
    due_ns = max(SHORTEST_NS, min(LONGEST_NS, due_ns))
    end_ns = min((end_s * NS - now_wall_ns for end_s in period_ends_s), default=LONGEST_NS)
    return max(0, min(due_ns, end_ns))


def _next_pass_ns(now: Instant, totals: _Totals, *, hurry: bool) -> int:
    """Return the time to the next pass. ``hurry``: unwanted classes wait to be deleted."""
    soonest_ns = 0 if hurry else totals.time_to_threshold_ns
    return max(next_pass_ns(now.wall_ns, [totals.live_until_s], [soonest_ns]), SOONEST_NS)
