"""Validates a checkpoint that has passed its checksum. Otherwise an impossible value in it would fail every pass.

Both public functions return the first error, in one line that names the field and its value; None if there is none.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Final

from slicebw.api.kinds import name_error
from slicebw.core.clock import Instant
from slicebw.core.dataplane import FIRST_ID, LAST_ID
from slicebw.core.desired import DesiredState, SliceKey, SliceLimits, TrafficClass
from slicebw.core.ledger import ClassAccount, SliceAccount

_MAX_COUNT: Final = (1 << 63) - 1
"""The largest integer that the API server takes; as bytes, nine exabytes."""
_MAX_COUNTER: Final = (1 << 64) - 1
_MAX_TIME_S: Final = 1 << 40


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
