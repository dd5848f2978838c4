"""The decision on each class of a slice: its ceiling, whether it is capped, and which events that owes."""

from msgspec import Struct
from msgspec.structs import replace

from slicebw.core.cap import Rates, cap_bps, guarantee_limit_bps, is_over, rates
from slicebw.core.clock import NS
from slicebw.core.ledger import ClassAccount, Instant, SliceAccount
from slicebw.core.model import Mode, TrafficClass
from slicebw.core.notes import capped_note, restored_note
from slicebw.core.pacing import Runner
from slicebw.core.reports import EventNote
from slicebw.core.settings import NodeSettings


class ClassVerdict(Struct, frozen=True, gc=False):
    """What holds for one class now. ``kernel`` is what HTB gets.

    ``runner`` is set while the class can still cross its threshold, and once more when it has just done so: what it
    sent between the reading and the cap is known only by the next reading, and the cap is set right by it.
    """

    account: ClassAccount
    kernel: Rates
    capped: bool
    runner: Runner | None
    owed: tuple[EventNote, ...]


class SliceVerdict(Struct, frozen=True, gc=False):
    """The decisions on both classes of a slice."""

    standard: ClassVerdict
    exempt: ClassVerdict

    @property
    def both(self) -> tuple[ClassVerdict, ClassVerdict]:
        """In the order of :class:`~slicebw.core.model.TrafficClass`."""
        return self.standard, self.exempt

    def of(self, traffic_class: TrafficClass) -> ClassVerdict:
        """The decision on one of the two classes."""
        return self.standard if traffic_class is TrafficClass.STANDARD else self.exempt

    def marked(self, account: SliceAccount) -> SliceAccount:
        """The account with the marks that the decisions leave on it; the same object if there are none."""
        if account.standard is self.standard.account and account.exempt is self.exempt.account:
            return account
        return replace(account, standard=self.standard.account, exempt=self.exempt.account)


def ceiling_bps(settings: NodeSettings, traffic_class: TrafficClass) -> int:
    """What all traffic of a class may use on the node: the node cap, or the line rate for exempt. Monitor: the line."""
    if traffic_class is TrafficClass.STANDARD and settings.mode is Mode.ENFORCE:
        return settings.cap_bps
    return settings.line_rate_bps


def judge_slice(
    account: SliceAccount, settings: NodeSettings, now: Instant, before: SliceVerdict | None = None
) -> SliceVerdict:
    """Decide both classes of a slice. ``before``: the last verdict under the same settings and limits, if any."""
    standard = before.standard if before is not None and _holds(before.standard, account.standard) else None
    exempt = before.exempt if before is not None and _holds(before.exempt, account.exempt) else None
    return SliceVerdict(
        standard or judge(account, TrafficClass.STANDARD, settings, now),
        exempt or judge(account, TrafficClass.EXEMPT, settings, now),
    )


def _holds(verdict: ClassVerdict, account: ClassAccount) -> bool:
    """Whether a verdict still holds: nothing was sent, and neither a cap nor an event makes it one of its moment."""
    return verdict.account is account and not verdict.capped and not verdict.owed


def judge(
    slice_account: SliceAccount, traffic_class: TrafficClass, settings: NodeSettings, now: Instant
) -> ClassVerdict:
    """Decide one class: over its threshold it gets what is left spread over the time left, else its maximum."""
    limits = slice_account.limits.of(traffic_class)
    account = slice_account.of(traffic_class)
    node_bps = settings.cap_bps if traffic_class is TrafficClass.STANDARD else settings.line_rate_bps
    allowed = rates(limits, node_bps, guarantee_limit_bps(settings.cap_bps, settings.min_rate_share_percent))
    over = is_over(limits, account.used_bytes)
    left_ns = slice_account.period_end_s * NS - now.wall_ns
    ceil_bps = cap_bps(allowed, limits.budget_bytes, account.used_bytes, left_ns) if over else allowed.max_bps
    owed: list[EventNote] = []
    if over and not account.notified_capped:
        owed.append(capped_note(slice_account, traffic_class, ceil_bps, settings.mode, now.wall_s))
    if not over and account.capped_since_s is not None and not account.notified_restored:
        owed.append(
            restored_note(slice_account, traffic_class, ceil_bps, "it is under its threshold again", now.wall_s)
        )
    enforced = settings.mode is Mode.ENFORCE
    line = ceiling_bps(settings, traffic_class)
    kernel = Rates(allowed.min_bps, ceil_bps) if enforced else Rates(allowed.min_bps, line)
    to_go_bytes = limits.threshold_bytes - account.used_bytes
    return ClassVerdict(
        account=_marked(account, over=over, owed=bool(owed), now_s=now.wall_s),
        kernel=kernel,
        capped=over,
        runner=None if over and account.capped_since_s is not None else Runner(to_go_bytes, kernel.max_bps),
        owed=tuple(owed),
    )


def _marked(account: ClassAccount, *, over: bool, owed: bool, now_s: int) -> ClassAccount:
    """The account with its cap and notification marks brought up to date; the same object if they are."""
    if over and account.capped_since_s is None:
        return replace(account, capped_since_s=now_s, notified_capped=True)
    if not over and account.capped_since_s is not None:
        return replace(account, capped_since_s=None, notified_restored=account.notified_restored or owed)
    return account


def ended_notes(before: SliceAccount, settings: NodeSettings, now_s: int) -> tuple[EventNote, ...]:
    """The BandwidthRestored notes owed because the period ended with a class capped."""
    owed = []
    for traffic_class in TrafficClass:
        account = before.of(traffic_class)
        if account.capped_since_s is None or account.notified_restored:
            continue
        limits = before.limits.of(traffic_class)
        node_bps = settings.cap_bps if traffic_class is TrafficClass.STANDARD else settings.line_rate_bps
        guarantee = guarantee_limit_bps(settings.cap_bps, settings.min_rate_share_percent)
        rate_bps = rates(limits, node_bps, guarantee).max_bps
        owed.append(restored_note(before, traffic_class, rate_bps, "its period has ended", now_s))
    return tuple(owed)
