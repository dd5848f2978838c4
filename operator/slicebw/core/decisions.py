"""What a pass makes of each slice: its verdict, its marks, its two classes, its report. And what is kept of that.

The next pass starts from the :class:`Basis` of the one before it and decides anew only on slices of which something
differs; at 4,094 slices, deciding on all of them costs ten times what the kernel needs to list their classes.
"""

import operator
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from slicebw.core.account_reports import usage_report
from slicebw.core.ledger import Instant, SliceAccount
from slicebw.core.membership import Membership
from slicebw.core.model import SliceKey, SliceSpec, Snapshot, TrafficClass
from slicebw.core.pacing import crossing_ns
from slicebw.core.reports import EventNote, UsageReport
from slicebw.core.settings import NodeSettings
from slicebw.core.tree import ClassSpec, ObservedClass, class_id_of, leaf
from slicebw.core.verdict import SliceVerdict, judge_slice
from slicebw.core.wanted import frame, leaf_class


class Decisions(Struct, frozen=True):
    """On every slice, by key; and the leaves and inner classes that follow, by minor."""

    verdicts: Mapping[SliceKey, SliceVerdict]
    """Of those that are live."""
    usages: Mapping[SliceKey, UsageReport]
    crossings_ns: Mapping[SliceKey, int]
    """How long until a slice can cross a threshold, of those that can."""
    tree: Mapping[int, ClassSpec]
    restless: frozenset[SliceKey]
    """On these time alone decides anew (a cap moves with every second), or their marks have just changed."""


class Basis(Struct, frozen=True):
    """What a pass has seen and decided, for the next one to go on from. What is in it is never changed."""

    snapshot: Snapshot
    line_rate_bps: int | None
    membership: Membership
    specs: Mapping[SliceKey, SliceSpec]
    classes: Mapping[int, ObservedClass]
    keys: Mapping[int, SliceKey]
    """Slices by class id."""
    first_end_s: int | None
    """When the first of all periods ends; and the first of a live slice's."""
    first_live_end_s: int | None
    decisions: Decisions
    open_minors: frozenset[int]
    """Classes for which a change was planned: whether it holds has to be seen."""
    unwanted: frozenset[int]
    """Classes that are there and not in the tree that is wanted."""


class Outcome(Struct, frozen=True):
    """The decisions of one pass, and what is new in them."""

    decisions: Decisions
    accounts: Mapping[SliceKey, SliceAccount]
    """With the marks that the decisions leave; the same object where they leave none."""
    owed: list[EventNote]
    capped: int
    """How many slices are."""
    minors: set[int]
    """Leaves of which something else is wanted than before."""


def decide(
    accounts: Mapping[SliceKey, SliceAccount],
    touched: Collection[SliceKey],
    specs: Mapping[SliceKey, SliceSpec],
    membership: Membership,
    settings: NodeSettings,
    now: Instant,
    *,
    unenforced: str,
    before: Decisions | None,
) -> Outcome:
    """Decide on the ``touched`` slices; on all others, what was decided ``before`` holds on.

    All slices on which time alone decides anew must be among those touched, and where there is no before, all. What is
    known from before of those touched must have been decided under the limits they have now.
    """
    if before is not None and not touched:
        return Outcome(before, accounts, [], 0, set())
    verdicts = dict(before.verdicts) if before else {}
    usages = dict(before.usages) if before else {}
    crossings_ns = dict(before.crossings_ns) if before else {}
    tree = dict(before.tree) if before else frame(settings)
    marked: dict[SliceKey, SliceAccount] = {}
    restless: set[SliceKey] = set()
    owed: list[EventNote] = []
    minors: set[int] = set()
    capped = 0
    for key in touched:
        account = accounts[key]
        verdict = None
        if account.live:
            last = verdicts.get(key)
            verdict = judge_slice(account, settings, now, last)
            notes = verdict.standard.owed + verdict.exempt.owed
            was, account = account, verdict.marked(account)
            if account is not was:
                marked[key] = account
            is_capped = verdict.standard.capped or verdict.exempt.capped
            if is_capped or notes or account is not was:
                restless.add(key)
            owed += notes
            capped += is_capped
            minors |= _put_leaves(tree, account, verdict, last)
            verdicts[key] = verdict
            runners = [one.runner for one in (verdict.standard, verdict.exempt) if one.runner is not None]
            if runners:
                crossings_ns[key] = min(map(crossing_ns, runners))
            else:
                crossings_ns.pop(key, None)
        usages[key] = usage_report(account, specs.get(key), membership.problems.get(key, ()), verdict, unenforced)
    if owed:  # in one order, whichever slices were looked at first
        owed.sort(key=lambda note: str(note.key))
    if len(usages) != len(accounts) or any(map(operator.is_not, usages, accounts)):
        usages = {key: usages[key] for key in accounts}
    decisions = Decisions(verdicts, usages, crossings_ns, tree, frozenset(restless))
    return Outcome(decisions, {**accounts, **marked} if marked else accounts, owed, capped, minors)


def _put_leaves(
    tree: dict[int, ClassSpec], account: SliceAccount, verdict: SliceVerdict, before: SliceVerdict | None
) -> set[int]:
    """Put a slice's two classes into the tree, where they are not as ``before``; their minors."""
    minors: set[int] = set()
    if before is not None and _same_rates(before, verdict):
        return minors  # almost always; iterating over an enum takes longer than all the rest here
    for traffic_class in TrafficClass:
        decided = verdict.of(traffic_class)
        share = account.limits.of(traffic_class).share
        spec = leaf_class(traffic_class, account.class_id, decided.kernel, share)
        tree[spec.minor] = spec
        minors.add(spec.minor)
    return minors


def _same_rates(one: SliceVerdict, other: SliceVerdict) -> bool:
    return one.standard.kernel == other.standard.kernel and one.exempt.kernel == other.exempt.kernel


def carried(
    basis: Basis,
    earlier: Mapping[SliceKey, SliceAccount],
    accounts: Mapping[SliceKey, SliceAccount],
    specs: Mapping[SliceKey, SliceSpec],
    membership: Membership,
) -> tuple[Decisions, list[SliceKey], set[int]]:
    """What of the last decisions holds on where slices came, went or were given other limits.

    Args:
        basis: of the last pass, under the same settings.
        earlier: the accounts that it left.
        accounts: the present ones.
        specs: the present SliceBandwidths.
        membership: the present one.

    Returns:
        The decisions that hold on, the slices to decide on, and the leaves that nobody has any more (until then).
    """
    was, problems = basis.decisions, membership.problems
    changed = {key for key, spec in specs.items() if basis.specs.get(key) is not spec}
    changed |= basis.specs.keys() - specs.keys()
    changed |= {
        key
        for key in problems.keys() | basis.membership.problems.keys()
        if problems.get(key) != basis.membership.problems.get(key)
    }
    changed |= was.restless
    touched = [key for key, account in accounts.items() if key in changed or earlier.get(key) is not account]
    verdicts, usages, crossings_ns = dict(was.verdicts), dict(was.usages), dict(was.crossings_ns)
    tree = dict(was.tree)
    minors: set[int] = set()
    for key in (*touched, *(earlier.keys() - accounts.keys())):
        for kept in (verdicts, usages, crossings_ns):
            kept.pop(key, None)
        if key in earlier:
            minors.update(leaf(traffic_class, earlier[key].class_id) for traffic_class in TrafficClass)
    free = {leaf(traffic_class, 0) for traffic_class in TrafficClass}  # of those with no class; root's stay
    minors -= free
    for minor in minors:
        tree.pop(minor, None)
    return Decisions(verdicts, usages, crossings_ns, tree, frozenset()), touched, minors


def moved_minors(before: Mapping[int, ObservedClass], classes: Mapping[int, ObservedClass]) -> set[int]:
    """Classes that came, went, or may show something else: the kernel edge gives what is unchanged as it gave it."""
    if classes is before:
        return set()
    moved = {minor for minor, seen in classes.items() if before.get(minor) is not seen}
    return moved | (before.keys() - classes.keys())


def moved_slices(basis: Basis, minors: Iterable[int]) -> set[SliceKey]:
    """The slices of these leaves, and those on which time alone decides anew."""
    found = (basis.keys.get(class_id_of(minor) or 0) for minor in minors)
    return {key for key in found if key is not None} | basis.decisions.restless
