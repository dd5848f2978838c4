"""Usage accumulation: kernel counters go in, bytes used this period come out. Nothing lost, nothing counted twice."""

from msgspec.structs import replace

from slicebw.core.clock import NS
from slicebw.core.ledger import ClassAccount, Instant, SliceAccount
from slicebw.core.model import TrafficClass
from slicebw.core.tree import ObservedClass


def delta_bytes(counter_bytes: int, observed: ObservedClass | None) -> int:
    """Bytes sent since the counter was last read.

    A counter that went down belongs to a class made anew (tree rebuilt, node rebooted): all it shows is new. A class
    that a complete dump does not show has sent nothing since; when it comes back it starts from zero.
    """
    if observed is None:
        return 0
    if observed.sent_bytes >= counter_bytes:
        return observed.sent_bytes - counter_bytes
    return observed.sent_bytes


def count(account: ClassAccount, observed: ObservedClass | None) -> ClassAccount:
    """The account with one reading of its class folded in; the same object if nothing moved."""
    counter_bytes = 0 if observed is None else observed.sent_bytes
    if counter_bytes == account.counter_bytes:
        return account
    delta = delta_bytes(account.counter_bytes, observed)
    return replace(
        account,
        used_bytes=account.used_bytes + delta,
        total_bytes=account.total_bytes + delta,
        counter_bytes=counter_bytes,
    )


def period_is_over(account: SliceAccount, now: Instant) -> bool:
    """Whether the running period ends at or before ``now``."""
    return now.wall_s >= account.period_end_s


def roll(before: SliceAccount, counted: SliceAccount, read_at: Instant | None, now: Instant) -> SliceAccount:
    """Begin the period that ``now`` is in: usage starts again, caps and notification marks are cleared.

    Periods stay in step with the first one, however late the end is seen. Bytes of the last reading belong to both
    periods in proportion to the time each had of it, exactly: the two parts add up to what was counted.

    Args:
        before: the account as it was before the last reading was folded in.
        counted: the account after it.
        read_at: when the reading before that was made.
        now: when the last reading was made.
    """
    period_s = counted.limits.period_s
    start_s = counted.period_start_s + (now.wall_s - counted.period_start_s) // period_s * period_s
    rolled = replace(counted, period_start_s=start_s)
    for traffic_class in TrafficClass:
        account = counted.of(traffic_class)
        delta = account.used_bytes - before.of(traffic_class).used_bytes
        fresh = ClassAccount(
            used_bytes=_part_since(start_s, delta, read_at, now),
            total_bytes=account.total_bytes,
            counter_bytes=account.counter_bytes,
        )
        rolled = rolled.with_class(traffic_class, fresh)
    return rolled


def _part_since(start_s: int, delta: int, read_at: Instant | None, now: Instant) -> int:
    """The part of ``delta`` bytes, sent evenly between two readings, that falls behind ``start_s``."""
    if read_at is None or now.wall_ns <= read_at.wall_ns:
        return 0
    since_ns = now.wall_ns - max(start_s * NS, read_at.wall_ns)
    return delta * max(0, since_ns) // (now.wall_ns - read_at.wall_ns)
