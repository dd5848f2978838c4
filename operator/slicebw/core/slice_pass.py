"""What one slice comes to. The outcomes are all that one pass keeps for the next.

A slice's outcome is a pure function of its account, its claim, its two observed classes, the node's settings, and now.
It holds while all of these are the same objects and until ``good_until_s``.

The same objects, not equal ones: inputs are compared by identity, because comparing 4,094 equal values costs more than
the kernel needs to list their classes. So pass unchanged objects on as they are, and never mutate one.
"""

from enum import Enum, auto
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from slicebw.core.accounting import fold_counters, period_is_over, start_next_period
from slicebw.core.clock import NS, Instant
from slicebw.core.dataplane import ClassSpec, ObservedClass, TreeChange
from slicebw.core.desired import Mode, NodeSettings, SliceSpec, TrafficClass
from slicebw.core.events import capped_event, invalid_event, restored_event
from slicebw.core.ledger import ClassAccount, PendingEvent, SliceAccount
from slicebw.core.membership import PodProblem
from slicebw.core.plan import leaf_class, plan_class
from slicebw.core.policy import RateDecision, allowed_rates, decide_rate, time_to_threshold_ns
from slicebw.core.reports import NO_ID_LEFT, ClassUsage, UsageReport, class_usage, usage_report

FAR_NS: Final = 1 << 62
FAR_S: Final = 1 << 62
"""A time to the threshold, and an end, that never decide when the next pass is due."""


class Presence(Enum):
    """Whether a slice has pods on this node."""

    PRESENT = auto()
    ABSENT = auto()
    UNKNOWN = auto()
    """Not known before the first complete list: the slice stays as it is."""
    UNPLACED = auto()
    """It has pods here, and no slice id was left for it."""


class Claim(Struct, frozen=True, gc=False):
    """What the API says of a slice. ``spec`` is None once its SliceBandwidth is deleted."""

    spec: SliceSpec | None
    problems: tuple[PodProblem, ...]
    presence: Presence


class NodeContext(Struct, frozen=True):
    """What a slice's outcome depends on beside the slice itself."""

    settings: NodeSettings
    shaped: bool
    """Whether the tree on the device is ours to keep: not in mode Disabled, and not where the root is foreign."""
    not_enforced_reason: str


class Interval(Struct, frozen=True):
    """The time between the last two readings of the counters. ``start`` is None at the first reading."""

    start: Instant | None
    now: Instant


class ClassOutcome(Struct, frozen=True, gc=False):
    """What one class of a slice that is on the node comes to."""

    account: ClassAccount
    """With its cap state."""
    observed: ObservedClass | None
    leaf: ClassSpec
    """The HTB class it should have."""
    changes: tuple[TreeChange, ...]
    """The changes that bring the observed class to ``leaf``."""
    usage: ClassUsage
    events: tuple[PendingEvent, ...]
    capped: bool
    steady: bool
    """Whether the outcome is independent of time. A capped class's is not: its rate is computed anew at every pass."""
    time_to_threshold_ns: int


class SliceOutcome(Struct, frozen=True, gc=False):
    """What one slice comes to. ``classes`` is empty for a slice that has left the node."""

    claim: Claim
    standard: ObservedClass | None
    exempt: ObservedClass | None
    account: SliceAccount
    classes: tuple[ClassOutcome, ...]
    usage: UsageReport
    events: tuple[PendingEvent, ...]
    changes: tuple[TreeChange, ...]
    """The plan of both classes. It is part of the outcome, so that a refused change, or drift, is planned again."""
    good_until_s: int
    capped: bool
    time_to_threshold_ns: int
    live_until_s: int
    """The end of the running period if the slice is on the node, else FAR_S: no pass is made for that end."""


def slice_outcome(
    account: SliceAccount,
    claim: Claim,
    observed: tuple[ObservedClass | None, ObservedClass | None],
    node: NodeContext,
    interval: Interval,
    last: SliceOutcome | None,
) -> SliceOutcome | None:
    """Decide one slice's outcome. None purges it: its period is over, and it has neither pods nor classes here.

    Args:
        account: as the ledger has it.
        claim: what the API says of it.
        observed: its standard and its exempt class as the kernel shows them.
        node: the same for all slices.
        interval: of this reading.
        last: an earlier outcome of the slice in the same ``node``: the part about a class that has not moved is kept.
    """
    standard, exempt = observed
    now = interval.now
    # Count first: what was sent until now belongs to the limits that held until now.
    current, events = _under_claim(fold_counters(account, standard, exempt), claim, now.wall_s)
    if period_is_over(current, now):
        if current.live:
            events += _period_end_events(current, node.settings, now.wall_s)
        elif standard is None and exempt is None:
            return None  # with its classes gone, nothing can be counted to it any more
        current = start_next_period(account, current, interval.start, now)
    if not current.live:
        return _off_node(current, claim, observed, events)
    kept = _kept_classes(last, current)
    of_standard = _class_outcome(current, TrafficClass.STANDARD, standard, node, now, kept[0])
    of_exempt = _class_outcome(current, TrafficClass.EXEMPT, exempt, node, now, kept[1])
    if of_standard.account is not current.standard or of_exempt.account is not current.exempt:
        current = replace(current, standard=of_standard.account, exempt=of_exempt.account)
    usages = of_standard.usage, of_exempt.usage
    return SliceOutcome(
        claim=claim,
        standard=standard,
        exempt=exempt,
        account=current,
        classes=(of_standard, of_exempt),
        usage=usage_report(current, claim.spec, claim.problems, usages, node.not_enforced_reason),
        events=events + of_standard.events + of_exempt.events,
        changes=of_standard.changes + of_exempt.changes,
        good_until_s=current.period_end_s if of_standard.steady and of_exempt.steady else 0,  # 0: until the next pass
        capped=of_standard.capped or of_exempt.capped,
        time_to_threshold_ns=min(of_standard.time_to_threshold_ns, of_exempt.time_to_threshold_ns),
        live_until_s=current.period_end_s,
    )


def _off_node(
    account: SliceAccount,
    claim: Claim,
    observed: tuple[ObservedClass | None, ObservedClass | None],
    events: tuple[PendingEvent, ...],
) -> SliceOutcome:
    """Return the outcome of a slice that has left the node: its account stays until the period ends."""
    reason = NO_ID_LEFT if claim.presence is Presence.UNPLACED else ""
    return SliceOutcome(
        claim=claim,
        standard=observed[0],
        exempt=observed[1],
        account=account,
        classes=(),
        usage=usage_report(account, claim.spec, claim.problems, None, reason),
        events=events,
        changes=(),
        good_until_s=account.period_end_s,
        capped=False,
        time_to_threshold_ns=FAR_NS,
        live_until_s=FAR_S,
    )


def _under_claim(account: SliceAccount, claim: Claim, now_s: int) -> tuple[SliceAccount, tuple[PendingEvent, ...]]:
    """Bring the account under what the API says. A wrong spec leaves the last good limits and their generation.

    Where only the selector is wrong the limits are the new ones; the generation as a whole is not in force.
    """
    spec = claim.spec
    # UNKNOWN changes nothing: before the first complete list a missing pod proves nothing.
    if claim.presence is Presence.ABSENT and account.live:
        return replace(account, live=False), ()
    if claim.presence is not Presence.PRESENT or spec is None:
        return account, ()
    limits = account.limits if spec.limits is None else spec.limits
    generation = account.generation if spec.errors else spec.generation
    if (account.limits, account.generation, account.uid, account.live) != (limits, generation, spec.uid, True):
        account = replace(account, limits=limits, generation=generation, uid=spec.uid, live=True)
    if not spec.errors or account.invalid_event_generation == spec.generation:
        return account, ()
    return replace(account, invalid_event_generation=spec.generation), (invalid_event(spec, now_s),)


def _kept_classes(last: SliceOutcome | None, current: SliceAccount) -> tuple[ClassOutcome | None, ClassOutcome | None]:
    """Return the last outcomes of both classes, if they were decided under the same id and limits."""
    if last is None or not last.classes:
        return None, None
    if last.account.limits is not current.limits or last.account.slice_id != current.slice_id:
        return None, None
    standard, exempt = last.classes
    return standard, exempt


def _class_outcome(
    slice_account: SliceAccount,
    traffic_class: TrafficClass,
    observed: ObservedClass | None,
    node: NodeContext,
    now: Instant,
    last: ClassOutcome | None,
) -> ClassOutcome:
    """Decide one class's outcome; return the last one if neither its counter nor its observed class has changed."""
    counted = slice_account.of(traffic_class)
    if last is not None and last.steady and last.account is counted and last.observed is observed:
        return last
    limits = slice_account.limits.of(traffic_class)
    left_ns = slice_account.period_end_s * NS - now.wall_ns
    decision = decide_rate(limits, traffic_class, counted.used_bytes, left_ns, node.settings)
    events = _cap_events(slice_account, traffic_class, decision, node.settings.mode, now.wall_s)
    account = _with_cap_state(counted, capped=decision.capped, notified=bool(events), now_s=now.wall_s)
    leaf = leaf_class(traffic_class, slice_account.slice_id, decision.kernel, limits.share)
    if last is not None and last.leaf == leaf:
        leaf = last.leaf  # the same object, so that the tree is seen to be the same
    # A class that has just crossed its threshold went on sending until its cap took hold. The next reading shows how
    # much, and corrects the cap: it is due as soon as if the class could cross again.
    may_cross = not decision.capped or counted.capped_since_s is None
    to_go_bytes = limits.threshold_bytes - counted.used_bytes
    return ClassOutcome(
        account=account,
        observed=observed,
        leaf=leaf,
        changes=tuple(plan_class(leaf, observed)) if node.shaped else (),
        usage=class_usage(account, limits, decision.in_force_bps, capped=decision.capped),
        events=events,
        capped=decision.capped,
        steady=not decision.capped and account is counted,
        time_to_threshold_ns=time_to_threshold_ns(to_go_bytes, decision.in_force_bps) if may_cross else FAR_NS,
    )


def _cap_events(
    account: SliceAccount, traffic_class: TrafficClass, decision: RateDecision, mode: Mode, now_s: int
) -> tuple[PendingEvent, ...]:
    """Return the Event that a decision on one class calls for, if it was not emitted in this period already."""
    kept = account.of(traffic_class)
    if decision.capped and not kept.notified_capped:
        return (capped_event(account, traffic_class, decision.ceil_bps, mode, now_s),)
    if not decision.capped and kept.capped_since_s is not None and not kept.notified_restored:
        why = "it is under its threshold again"
        return (restored_event(account, traffic_class, decision.ceil_bps, why, now_s),)
    return ()


def _period_end_events(before: SliceAccount, settings: NodeSettings, now_s: int) -> tuple[PendingEvent, ...]:
    """Return the BandwidthRestored Events of a slice whose period ends while a class is capped."""
    return tuple(
        restored_event(
            before,
            traffic_class,
            allowed_rates(before.limits.of(traffic_class), traffic_class, settings).max_bps,
            "its period has ended",
            now_s,
        )
        for traffic_class in TrafficClass
        if before.of(traffic_class).capped_since_s is not None and not before.of(traffic_class).notified_restored
    )


def _with_cap_state(account: ClassAccount, *, capped: bool, notified: bool, now_s: int) -> ClassAccount:
    """Return the account with its cap state and notified flags; the same object if nothing changes."""
    if capped and account.capped_since_s is None:
        return replace(account, capped_since_s=now_s, notified_capped=True)
    if not capped and account.capped_since_s is not None:
        return replace(account, capped_since_s=None, notified_restored=account.notified_restored or notified)
    return account
