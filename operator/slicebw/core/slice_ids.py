"""Which slice has which id? A slice keeps its id as long as the ledger knows it; freed ids are given out last."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from slicebw.core.accounting import observed_leaves
from slicebw.core.clock import Instant
from slicebw.core.dataplane import FIRST_ID, LAST_ID, MAX_SLICES, ObservedClass, slice_id_of
from slicebw.core.desired import DEFAULT_LIMITS, SliceKey, SliceSpec
from slicebw.core.events import unplaced_event
from slicebw.core.ledger import ClassAccount, Ledger, PendingEvent, SliceAccount
from slicebw.core.membership import Membership, age


class Observed(Struct, frozen=True):
    """What the kernel has: the classes by minor, and where the nftables table sends each address."""

    classes: Mapping[int, ObservedClass]
    slice_id_by_address: Mapping[str, int]


class Allocation(Struct, frozen=True):
    """The accounts, with one for every slice that has an id now; and the slices for which no id is left."""

    accounts: Mapping[SliceKey, SliceAccount]
    last_slice_id: int
    unplaced: frozenset[SliceKey]
    events: tuple[PendingEvent, ...]


def allocate(
    ledger: Ledger,
    specs: Mapping[SliceKey, SliceSpec],
    membership: Membership,
    kernel: Observed,
    now: Instant,
    changed: Collection[SliceKey] | None = None,
) -> Allocation:
    """Give an id to every slice that has pods here and no id yet. ``accounts`` is the ledger's own where all have one.

    After a lost ledger the class that the nftables table already sends a slice's address to is reclaimed. Only where no
    other id is left, a newcomer gets the id of a slice that has left the node and the kernel; that one gets another id
    if it comes back. The oldest SliceBandwidth comes first, so that the order of events does not decide which slice
    stays without an id.

    Args:
        ledger: the accounts known.
        specs: every SliceBandwidth known.
        membership: which slices have pods here.
        kernel: the observed classes and table.
        now: becomes a newcomer's period start.
        changed: the slices among which newcomers can be; None: look at all.
    """
    candidates = membership.present if changed is None else membership.present.intersection(changed)
    newcomers = [key for key in candidates if (known := ledger.slices.get(key)) is None or not known.slice_id]
    if not newcomers:
        return Allocation(ledger.slices, ledger.last_slice_id, frozenset(), ())
    accounts = dict(ledger.slices)
    ids = _Ids(accounts.values(), kernel.classes, ledger.last_slice_id)
    in_table = ids.unowned(kernel.slice_id_by_address, membership.addresses)
    unplaced: set[SliceKey] = set()
    events: list[PendingEvent] = []
    gone: Iterator[SliceKey] | None = None
    for spec in sorted((specs[key] for key in newcomers), key=age):
        slice_id = ids.reclaim(in_table.get(spec.key)) or ids.next_free()
        if slice_id is None:
            # Made once and only here: on nearly every node there are ids left.
            gone = gone or _gone(accounts, membership.present, kernel)
            slice_id = _release(accounts, gone)
        if slice_id is None:
            unplaced.add(spec.key)
            if spec.key not in ledger.unplaced:  # else its Event was made before
                events.append(unplaced_event(spec, MAX_SLICES, now.wall_s))
            continue
        accounts[spec.key] = _placed(spec, slice_id, kernel.classes, now, accounts.get(spec.key))
    return Allocation(accounts, ids.last, frozenset(unplaced), tuple(events))


def _placed(
    spec: SliceSpec, slice_id: int, classes: Mapping[int, ObservedClass], now: Instant, known: SliceAccount | None
) -> SliceAccount:
    """Return a new account, or a remembered one (restored from reports) with an id.

    Bytes that a reclaimed class has counted already are not counted here: the time at which they were sent is unknown.
    """
    standard, exempt = observed_leaves(slice_id, classes)

    def from_here(account: ClassAccount, observed: ObservedClass | None) -> ClassAccount:
        return replace(account, counter_bytes=0 if observed is None else observed.sent_bytes)

    account = known or SliceAccount(
        key=spec.key,
        uid=spec.uid,
        slice_id=slice_id,
        generation=0,
        period_start_s=now.wall_s,
        limits=DEFAULT_LIMITS,
    )
    return replace(
        account,
        slice_id=slice_id,
        standard=from_here(account.standard, standard),
        exempt=from_here(account.exempt, exempt),
    )


def _gone(
    accounts: Mapping[SliceKey, SliceAccount],
    present: frozenset[SliceKey],
    kernel: Observed,
) -> Iterator[SliceKey]:
    """Yield slices that have left neither a class nor an address in the kernel; the earliest end of period first."""
    # 0 marks a slice without an id, so there is none to take.
    used = {slice_id_of(minor) for minor in kernel.classes} | {0, *kernel.slice_id_by_address.values()}
    gone = [one for one in accounts.values() if not one.live and one.key not in present and one.slice_id not in used]
    return (account.key for account in sorted(gone, key=lambda account: (account.period_end_s, account.key)))


def _release(accounts: dict[SliceKey, SliceAccount], gone: Iterator[SliceKey]) -> int | None:
    """Take the id from the next slice in ``gone``, whose account stays without an id; None if there is none."""
    key = next(gone, None)
    if key is None:
        return None
    slice_id = accounts[key].slice_id
    accounts[key] = replace(accounts[key], slice_id=0)
    return slice_id


class _Ids:
    """The ids in turn: those that no account has and no class in the kernel still uses, freed ones last."""

    def __init__(self, accounts: Iterable[SliceAccount], classes: Mapping[int, ObservedClass], last: int) -> None:
        self.last = last
        self._taken = {account.slice_id for account in accounts}
        # Their bytes would be counted to the newcomer.
        self._leftover = {slice_id_of(minor) for minor in classes}
        self._search = self._free_ids()

    def unowned(self, table: Mapping[str, int], owners: Mapping[str, SliceKey]) -> Mapping[SliceKey, int]:
        """Return the ids that the table has for slices' addresses though no account has them: a ledger was lost."""
        lost = set(table.values()) - self._taken
        if not lost:
            return {}
        return {
            owners[address]: slice_id for address, slice_id in table.items() if slice_id in lost and address in owners
        }

    def reclaim(self, slice_id: int | None) -> int | None:
        """Take this id if no account has it."""
        if slice_id is None or slice_id in self._taken or not FIRST_ID <= slice_id <= LAST_ID:
            return None
        self._taken.add(slice_id)
        return slice_id

    def next_free(self) -> int | None:
        """Take the next id in turn, or return None if all 4,094 are taken."""
        slice_id = next(self._search, None)
        if slice_id is not None:
            self._taken.add(slice_id)
            self.last = slice_id
        return slice_id

    def _free_ids(self) -> Iterator[int]:
        start = self.last
        for step in range(MAX_SLICES):
            slice_id = FIRST_ID + (start + step) % MAX_SLICES
            if slice_id not in self._taken and slice_id not in self._leftover:
                yield slice_id
