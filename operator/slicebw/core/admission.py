"""Which slices are on the node, under which class id, with which limits."""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from slicebw.core.ledger import ClassAccount, Instant, Ledger, SliceAccount
from slicebw.core.membership import Membership, age
from slicebw.core.model import DEFAULT_LIMITS, SliceKey, SliceSpec, TrafficClass
from slicebw.core.notes import invalid_note, refused_note
from slicebw.core.reports import EventNote
from slicebw.core.tree import FIRST_ID, LAST_ID, MAX_SLICES, ObservedClass, class_id_of, leaf


class Admission(Struct, frozen=True):
    """The accounts with newcomers in them, and the events owed about those that could not come in as asked."""

    accounts: Mapping[SliceKey, SliceAccount]
    last_class_id: int
    refused: frozenset[SliceKey]
    owed: tuple[EventNote, ...]


def admit(
    ledger: Ledger,
    specs: Iterable[SliceSpec],
    membership: Membership,
    kernel: tuple[Mapping[int, ObservedClass], Mapping[str, int]],
    now: Instant,
) -> Admission:
    """Bring the accounts in line with who is present: newcomers get a class id, the others their present limits.

    A slice keeps its class id while the ledger knows it, live or not; only where no other is left, newcomers get those
    of slices that are gone, classes and all (they get another one should they come back). After a lost ledger the
    class that the nftables table already sends a slice's address to is taken over. The oldest SliceBandwidths come in
    first, so that which is the 4,095th does not depend on the order of events.

    Args:
        ledger: with the last reading folded in.
        specs: every SliceBandwidth known.
        membership: who is present.
        kernel: classes by minor, and the table's address -> class id, as observed.
        now: becomes a newcomer's period start.
    """
    classes, table = kernel
    accounts = dict(ledger.slices)
    ids = _Ids(accounts.values(), classes, ledger.last_class_id)
    adopted = {
        membership.addresses[address]: class_id
        for address, class_id in table.items()
        if address in membership.addresses
    }
    refused: set[SliceKey] = set()
    owed: list[EventNote] = []
    gone: Iterator[SliceKey] | None = None
    for spec in sorted(specs, key=age):
        if spec.key not in membership.present:
            continue
        known = accounts.get(spec.key)
        if known is None or not known.class_id:
            class_id = ids.adopt(adopted.get(spec.key)) or ids.next_free()
            if class_id is None:
                gone = gone or _gone(accounts, membership.present, kernel)
                class_id = _taken_over(accounts, gone)
            if class_id is None:
                refused.add(spec.key)
                if spec.key not in ledger.refused:
                    owed.append(refused_note(spec, MAX_SLICES, now.wall_s))
                continue
            known = _newcomer(spec, class_id, classes, now, known)
        updated = _updated(known, spec)
        if spec.errors and updated.complained_generation != spec.generation:
            owed.append(invalid_note(spec, now.wall_s))
            updated = replace(updated, complained_generation=spec.generation)
        accounts[spec.key] = updated
    return Admission(accounts, ids.last, frozenset(refused), tuple(owed))


def depart(accounts: Mapping[SliceKey, SliceAccount], present: frozenset[SliceKey]) -> dict[SliceKey, SliceAccount]:
    """Mark as gone those that are not present: their classes go, their accounts stay until the period ends."""
    return {
        key: replace(account, live=False) if account.live and key not in present else account
        for key, account in accounts.items()
    }


def _newcomer(
    spec: SliceSpec, class_id: int, classes: Mapping[int, ObservedClass], now: Instant, known: SliceAccount | None
) -> SliceAccount:
    """A new account, or a known one that has no class yet (rebuilt from what was reported).

    What an adopted class has counted before is not counted here: nobody knows when it was sent.
    """

    def fresh(traffic_class: TrafficClass) -> ClassAccount:
        seen = classes.get(leaf(traffic_class, class_id))
        before = ClassAccount() if known is None else known.of(traffic_class)
        return replace(before, counter_bytes=0 if seen is None else seen.sent_bytes)

    if known is not None:
        standard, exempt = fresh(TrafficClass.STANDARD), fresh(TrafficClass.EXEMPT)
        return replace(known, class_id=class_id, standard=standard, exempt=exempt)
    return SliceAccount(
        key=spec.key,
        uid=spec.uid,
        class_id=class_id,
        generation=0,
        period_start_s=now.wall_s,
        limits=DEFAULT_LIMITS,
        standard=fresh(TrafficClass.STANDARD),
        exempt=fresh(TrafficClass.EXEMPT),
    )


def _updated(account: SliceAccount, spec: SliceSpec) -> SliceAccount:
    """The account under the spec's limits; an invalid spec leaves the last good ones, and their generation.

    Where only the selector is wrong the limits are the new ones; the generation as a whole is not in force.
    """
    limits = account.limits if spec.limits is None else spec.limits
    generation = account.generation if spec.errors else spec.generation
    if (account.limits, account.generation, account.uid, account.live) == (limits, generation, spec.uid, True):
        return account
    return replace(account, limits=limits, generation=generation, uid=spec.uid, live=True)


def _gone(
    accounts: Mapping[SliceKey, SliceAccount],
    present: frozenset[SliceKey],
    kernel: tuple[Mapping[int, ObservedClass], Mapping[str, int]],
) -> Iterator[SliceKey]:
    """Slices that have left nothing in the kernel, neither a class nor an address; those whose period ends first."""
    classes, table = kernel
    used = {class_id_of(minor) for minor in classes} | {0, *table.values()}
    gone = [one for one in accounts.values() if not one.live and one.key not in present and one.class_id not in used]
    return (account.key for account in sorted(gone, key=lambda account: (account.period_end_s, account.key)))


def _taken_over(accounts: dict[SliceKey, SliceAccount], gone: Iterator[SliceKey]) -> int | None:
    """The class id of the next of those that are gone, who from now on is only remembered; None where none is left."""
    key = next(gone, None)
    if key is None:
        return None
    class_id = accounts[key].class_id
    accounts[key] = replace(accounts[key], class_id=0)
    return class_id


class _Ids:
    """Class ids in turn: those that nobody has and no class in the kernel still uses, freed ones last."""

    def __init__(self, accounts: Iterable[SliceAccount], classes: Mapping[int, ObservedClass], last: int) -> None:
        self.last = last
        self._taken = {account.class_id for account in accounts}
        self._leftover = {class_id_of(minor) for minor in classes}
        self._search = self._free_ids()

    def adopt(self, class_id: int | None) -> int | None:
        """Take over this id if nobody has it."""
        if class_id is None or class_id in self._taken or not FIRST_ID <= class_id <= LAST_ID:
            return None
        self._taken.add(class_id)
        return class_id

    def next_free(self) -> int | None:
        """The next id in turn, or None if all 4,094 are taken."""
        class_id = next(self._search, None)
        if class_id is not None:
            self._taken.add(class_id)
            self.last = class_id
        return class_id

    def _free_ids(self) -> Iterator[int]:
        start = self.last
        for step in range(MAX_SLICES):
            class_id = FIRST_ID + (start + step) % MAX_SLICES
            if class_id not in self._taken and class_id not in self._leftover:
                yield class_id
