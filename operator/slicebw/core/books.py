"""A whole ledger brought up to date: clock steps, one reading of every counter, and the ends of periods."""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from slicebw.core.clock import NS, step_s
from slicebw.core.ledger import ClassAccount, Instant, Ledger, SliceAccount
from slicebw.core.model import SliceKey, TrafficClass
from slicebw.core.reports import EventNote
from slicebw.core.settings import NodeSettings
from slicebw.core.tree import DEFAULT_ID, ROOT_ID, ObservedClass, leaf
from slicebw.core.usage import count, period_is_over, roll
from slicebw.core.verdict import ended_notes
from slicebw.core.wanted import leaf_minors


def shifted(ledger: Ledger, now: Instant) -> Ledger:
    """The ledger with its periods moved along if the wall clock was stepped since the last reading."""
    step = step_s(ledger.read_at, now)
    if step == 0 or ledger.read_at is None:
        return ledger

    def moved(account: ClassAccount) -> ClassAccount:
        since_s = account.capped_since_s
        return account if since_s is None else replace(account, capped_since_s=since_s + step)

    slices = {
        key: replace(
            account,
            period_start_s=account.period_start_s + step,
            standard=moved(account.standard),
            exempt=moved(account.exempt),
        )
        for key, account in ledger.slices.items()
    }
    read_at = replace(ledger.read_at, wall_ns=ledger.read_at.wall_ns + step * NS)
    return replace(ledger, slices=slices, read_at=read_at)


def counted_in(
    ledger: Ledger, device: str, classes: Mapping[int, ObservedClass], only: Iterable[SliceKey] | None = None
) -> Ledger:
    """The ledger with one dump folded in. Counters of another device than last time start from what they show.

    ``only``: the slices whose classes may show something new, where that is known.
    """
    if ledger.device not in ("", device):
        ledger = _rebased(ledger, classes)
    counted: dict[SliceKey, SliceAccount] = {}
    for key in ledger.slices if only is None else only:
        account = ledger.slices[key]
        if not account.class_id:
            continue
        standard = count(account.standard, classes.get(leaf(TrafficClass.STANDARD, account.class_id)))
        exempt = count(account.exempt, classes.get(leaf(TrafficClass.EXEMPT, account.class_id)))
        if standard is not account.standard or exempt is not account.exempt:
            counted[key] = replace(account, standard=standard, exempt=exempt)
    node_totals = {
        minor: count(ledger.node_totals.get(minor, ClassAccount()), classes.get(minor))
        for minor in sorted(leaf_minors((ROOT_ID, DEFAULT_ID)))
    }
    slices = {**ledger.slices, **counted} if counted else ledger.slices
    return replace(ledger, slices=slices, node_totals=node_totals, device=device)


def _rebased(ledger: Ledger, classes: Mapping[int, ObservedClass]) -> Ledger:
    def rebase(account: ClassAccount, minor: int) -> ClassAccount:
        seen = classes.get(minor)
        return replace(account, counter_bytes=0 if seen is None else seen.sent_bytes)

    slices = {
        key: replace(
            account,
            standard=rebase(account.standard, leaf(TrafficClass.STANDARD, account.class_id)),
            exempt=rebase(account.exempt, leaf(TrafficClass.EXEMPT, account.class_id)),
        )
        for key, account in ledger.slices.items()
    }
    totals = {minor: rebase(account, minor) for minor, account in ledger.node_totals.items()}
    return replace(ledger, slices=slices, node_totals=totals)


def roll_all(
    before: Ledger,
    accounts: Mapping[SliceKey, SliceAccount],
    classes: Mapping[int, ObservedClass],
    settings: NodeSettings,
    now: Instant,
) -> tuple[dict[SliceKey, SliceAccount], list[EventNote]]:
    """End the periods that are over. A dead slice's account goes with its period, once its classes are gone."""
    rolled: dict[SliceKey, SliceAccount] = {}
    owed: list[EventNote] = []
    for key, account in accounts.items():
        if not period_is_over(account, now):
            rolled[key] = account
            continue
        if account.live:
            owed += ended_notes(account, settings, now.wall_s)
        elif not account.class_id or leaf_minors([account.class_id]).isdisjoint(classes):
            continue
        rolled[key] = roll(before.slices.get(key, account), account, before.read_at, now)
    return rolled, owed
