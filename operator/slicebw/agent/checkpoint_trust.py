"""Decides whether a checkpoint file can be trusted: its header, its checksum, its version, and every value in it.

The checksum proves that the file is as it was written, not that it was right. An impossible value would fail every
pass, so the values are checked too. An error is one line that names the field and its value.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Any, Final, Generic, TypeVar

import msgspec

from slicebw.api.kinds import name_error
from slicebw.core.clock import Instant
from slicebw.core.dataplane import FIRST_ID, LAST_ID
from slicebw.core.desired import DesiredState, Mode, SliceKey, SliceLimits, TrafficClass
from slicebw.core.ledger import ClassAccount, Ledger, PendingEvent, SliceAccount

_T = TypeVar("_T")

_MAX_COUNT: Final = (1 << 63) - 1
"""The largest integer that the API server takes; as bytes, nine exabytes."""
_MAX_COUNTER: Final = (1 << 64) - 1
_MAX_TIME_S: Final = 1 << 40
_MAX_IFINDEX: Final = (1 << 31) - 1


_LARGEST_VERSION: Final = 1_000_000
"""A higher number is not a version that slicebw ever wrote, and would make a bad file name."""

_Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts the decoded payload of one version to the next version."""


class UntrustedError(Exception):
    """A file must not be used. ``word`` becomes part of its new name; the text says why, for people."""

    def __init__(self, word: str, reason: str) -> None:
        super().__init__(reason)
        self.word = word


@dataclass(frozen=True, slots=True)
class LedgerForm:
    """The ledger as it is stored. It has lists for mappings, because a JSON object's keys are strings.

    The names are keys in files on nodes, so they stay when the code gets other words. Version 2 has the node's mode;
    version 1 has not, and its earliest files lack ``rebuilding``.
    """

    slices: list[SliceAccount]
    node_totals: dict[int, ClassAccount]
    last_class_id: int
    read_at: Instant | None
    device: str
    had_tree: bool
    rebuilding: bool
    outbox: list[PendingEvent]
    refused: list[SliceKey]
    mode: Mode | None
    # Agents that knew their device by name alone did not write these two.
    ifindex: int = 0
    netns: int = 0

    def to_ledger(self) -> Ledger:
        """Return the ledger that was stored."""
        return Ledger(
            slices={account.key: account for account in self.slices},
            node_totals=self.node_totals,
            last_slice_id=self.last_class_id,
            read_at=self.read_at,
            device=self.device,
            had_tree=self.had_tree,
            rebuilding=self.rebuilding,
            pending_events=tuple(self.outbox),
            unplaced=frozenset(self.refused),
            mode=self.mode,
            ifindex=self.ifindex,
            netns=self.netns,
        )


def _ledger_from_1(payload: dict[str, Any]) -> dict[str, Any]:
    return {"rebuilding": False, **payload, "mode": None}


@dataclass(frozen=True)
class Kind(Generic[_T]):
    """A kind of checkpoint file.

    ``wrong`` returns what in a decoded value is impossible, or None. ``migrations`` has an entry for every older
    version that can still be read.
    """

    name: str
    version: int
    form: type[_T]
    wrong: Callable[[_T], str | None]
    migrations: Mapping[int, _Migration] = field(default_factory=dict)

    @cached_property
    def decoder(self) -> msgspec.json.Decoder[_T]:
        """The decoder of the form. It takes longer to make than to use."""
        return msgspec.json.Decoder(self.form)


def decode(content: bytes, kind: Kind[_T]) -> _T:
    """Return the value in a file. Raises UntrustedError if it must not be used."""
    if not content:
        raise UntrustedError("empty", "is empty")
    name, newest = kind.name, kind.version
    line, newline, payload = content.partition(b"\n")
    try:
        header = json.loads(line)
        found, version = header["slicebw"], int(header["version"])
        length, checksum = int(header["bytes"]), header["sha256"]
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise UntrustedError("foreign", f"is not a slicebw {name}") from error
    # The checks go from coarse to fine, so that the first one that fails names the cause.
    if found != name or not newline or abs(version) > _LARGEST_VERSION:
        raise UntrustedError("foreign", f"is not a slicebw {name}")
    if version > newest:
        raise UntrustedError(f"version-{version}", f"is of version {version}, newer than this agent's {newest}")
    if len(payload) != length:
        raise UntrustedError("truncated", f"has {len(payload)} bytes of payload instead of {length}")
    if hashlib.sha256(payload).hexdigest() != checksum:
        raise UntrustedError("corrupt", "fails its checksum")
    try:
        value = kind.decoder.decode(_migrated(payload, version, kind))
    except (msgspec.DecodeError, RecursionError) as error:
        raise UntrustedError("corrupt", f"does not decode: {error}") from error
    wrong = kind.wrong(value)
    if wrong is not None:
        raise UntrustedError("implausible", f"cannot be right: {wrong}")
    return value


def _migrated(payload: bytes, version: int, kind: Kind[_T]) -> bytes:
    """Return the payload in the newest version's form. Raises UntrustedError if there is no migration to it."""
    if version == kind.version:
        return payload  # the usual case, without decoding it twice
    document = msgspec.json.decode(payload, type=dict[str, Any])
    for number in range(version, kind.version):
        migrate = kind.migrations.get(number)
        if migrate is None:
            raise UntrustedError(f"version-{version}", f"is of version {version}, which nothing can read any more")
        document = migrate(document)
    return msgspec.json.encode(document)


def wrong_ledger(
    accounts: Iterable[SliceAccount], node_totals: Iterable[ClassAccount], last_slice_id: int, read_at: Instant | None
) -> str | None:
    """Check a ledger: every figure is in its range, no slice and no slice id is there twice."""
    return next(_wrong_ledger(accounts, node_totals, last_slice_id, read_at), None)


def wrong_desired_state(desired: DesiredState) -> str | None:
    """Check a desired state: limits are in their ranges, and addresses and networks are what nft accepts."""
    return next(_wrong_desired_state(desired), None)


def _wrong_ledger(
    accounts: Iterable[SliceAccount], node_totals: Iterable[ClassAccount], last_slice_id: int, read_at: Instant | None
) -> Iterator[str]:
    keys: set[SliceKey] = set()
    owners: dict[int, SliceKey] = {}
    for account in accounts:
        yield from _wrong_names(account.key)
        what = f"slice {account.key}"
        if account.key in keys:
            yield f"{what} is there twice"
        keys.add(account.key)
        # Errors name fields by their keys in the file, which are older than the names in the code.
        yield from _outside(f"{what}: class_id", account.slice_id, 0, LAST_ID)
        if account.slice_id and account.slice_id in owners:
            yield f"{what}: class_id: {account.slice_id} is also that of slice {owners[account.slice_id]}"
        owners[account.slice_id] = account.key
        yield from _outside(f"{what}: period_start_s", account.period_start_s, -_MAX_TIME_S, _MAX_TIME_S)
        yield from _wrong_limits(what, account.limits)
        for traffic_class in TrafficClass:
            yield from _wrong_counts(f"{what}: {traffic_class}", account.of(traffic_class))
    for total in node_totals:
        yield from _wrong_counts("node", total)
    yield from _outside("last_class_id", last_slice_id, FIRST_ID - 1, LAST_ID)
    if read_at is not None:
        yield from _outside("read_at.wall_ns", read_at.wall_ns, -_MAX_COUNT, _MAX_COUNT)


def _wrong_names(key: SliceKey) -> Iterator[str]:
    """Check a slice's names, because they become parts of file names and URLs."""
    for part, name in (("namespace", key.namespace), ("name", key.name)):
        wrong = name_error(name)
        if wrong is not None:
            yield f"slice's {part}: {wrong}"


def _wrong_counts(what: str, account: ClassAccount) -> Iterator[str]:
    yield from _outside(f"{what}.used_bytes", account.used_bytes, 0, _MAX_COUNT)
    yield from _outside(f"{what}.total_bytes", account.total_bytes, 0, _MAX_COUNT)
    yield from _outside(f"{what}.counter_bytes", account.counter_bytes, 0, _MAX_COUNTER)
    yield from _outside(f"{what}.capped_since_s", account.capped_since_s or 0, -_MAX_TIME_S, _MAX_TIME_S)


def _wrong_limits(what: str, limits: SliceLimits) -> Iterator[str]:
    yield from _outside(f"{what}: period_s", limits.period_s, 1, _MAX_TIME_S)
    for traffic_class in TrafficClass:
        of_class = limits.of(traffic_class)
        yield from _outside(f"{what}: {traffic_class}.min_rate_bps", of_class.min_rate_bps, 0, _MAX_COUNT)
        yield from _outside(f"{what}: {traffic_class}.max_rate_bps", of_class.max_rate_bps or 0, 0, _MAX_COUNT)
        yield from _outside(f"{what}: {traffic_class}.budget_bytes", of_class.budget_bytes, 1, _MAX_COUNT)
        yield from _outside(f"{what}: {traffic_class}.threshold_bytes", of_class.threshold_bytes, 0, _MAX_COUNT)
        yield from _outside(f"{what}: {traffic_class}.share", of_class.share, 1, _MAX_COUNT)


def _wrong_desired_state(desired: DesiredState) -> Iterator[str]:
    for spec in desired.slices:
        if spec.limits is not None:
            yield from _wrong_names(spec.key)
            yield from _wrong_limits(f"slice {spec.key}", spec.limits)
    for pod in desired.pods:
        for address in pod.addresses:
            if not _is_canonical(address):
                yield f"pod {pod}: {address!a} is not an address"
    for network in desired.node.exempt_destinations or ():
        if not _is_network(network):
            yield f"node: {network!a} is not a network"


def _is_canonical(address: str) -> bool:
    """Tell whether this is an address in its one canonical form, as nft lists it. A zone (``%eth0``) is not."""
    try:
        return "%" not in address and str(ip_address(address)) == address
    except ValueError:
        return False


def _is_network(text: str) -> bool:
    try:
        return "%" not in text and bool(ip_network(text))
    except ValueError:
        return False


def _outside(field: str, value: int, lowest: int, highest: int) -> Iterator[str]:
    if not lowest <= value <= highest:
        yield f"{field}: {value} is not within {lowest} to {highest}"


def _wrong_form(form: LedgerForm) -> str | None:
    for wrong in _outside("ifindex", form.ifindex, 0, _MAX_IFINDEX):
        return wrong
    return wrong_ledger(form.slices, form.node_totals.values(), form.last_class_id, form.read_at)


LEDGER: Final = Kind("ledger", 2, LedgerForm, _wrong_form, {1: _ledger_from_1})
DESIRED_STATE: Final = Kind("wishes", 1, DesiredState, wrong_desired_state)
