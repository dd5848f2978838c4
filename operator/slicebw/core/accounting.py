"""How bytes are counted against a period: kernel counters go in, bytes used come out.

Nothing is lost and nothing is counted twice: not when a class is made again, the wall clock is stepped, the uplink is
another device, or the ledger is lost.
"""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from slicebw.core.clock import NS, Instant, step_s
from slicebw.core.dataplane import ObservedClass, ObservedTree, leaf
from slicebw.core.desired import DEFAULT_LIMITS, TrafficClass
from slicebw.core.ledger import ClassAccount, Ledger, SliceAccount
from slicebw.core.reports import ClassUsage, UsageReport


def delta_bytes(counter_bytes: int, observed: ObservedClass | None) -> int:
    """Return the bytes sent since the counter was last read.

    A counter that went down belongs to a class made again (tree rebuilt, node rebooted): all of it is new. A class that
    is missing from a complete dump has sent nothing since; when it comes back it starts from zero.
    """
    if observed is None:
        return 0
    # A reset that the class has outgrown since looks like no reset: only what was sent before it is lost.
    if observed.sent_bytes >= counter_bytes:
        return observed.sent_bytes - counter_bytes
    return observed.sent_bytes


def fold_counter(account: ClassAccount, observed: ObservedClass | None) -> ClassAccount:
    """Fold one reading of a class into its account. Returns the same object if the counter has not moved."""
    counter_bytes = 0 if observed is None else observed.sent_bytes
    if counter_bytes == account.counter_bytes:
        return account  # the same object: outcomes are kept by identity
    delta = delta_bytes(account.counter_bytes, observed)
    return replace(
        account,
        used_bytes=account.used_bytes + delta,
        total_bytes=account.total_bytes + delta,
        counter_bytes=counter_bytes,
    )


def fold_counters(account: SliceAccount, standard: ObservedClass | None, exempt: ObservedClass | None) -> SliceAccount:
    """Fold one reading of both classes of a slice. Returns the same object if neither counter has moved."""
    first, second = fold_counter(account.standard, standard), fold_counter(account.exempt, exempt)
    if first is account.standard and second is account.exempt:
        return account
    return replace(account, standard=first, exempt=second)


def period_is_over(account: SliceAccount, now: Instant) -> bool:
    """Tell whether the running period ends at or before ``now``."""
    return now.wall_s >= account.period_end_s


def start_next_period(
    before: SliceAccount, counted: SliceAccount, read_at: Instant | None, now: Instant
) -> SliceAccount:
    """Start the period that ``now`` is in: usage starts again, cap state and notified flags are cleared.

    Periods stay in step with the first one, even if an end is noticed late. The bytes of the last reading are divided
    between the two periods by time, exactly: the two parts add up to the bytes counted.

    Args:
        before: the account before the last reading was folded in.
        counted: the account after it.
        read_at: when the reading before that was made.
        now: when the last reading was made.
    """
    period_s = counted.limits.period_s
    # Whole periods, because the agent may have been away for several of them.
    start_s = counted.period_start_s + (now.wall_s - counted.period_start_s) // period_s * period_s
    started = replace(counted, period_start_s=start_s)
    for traffic_class in TrafficClass:
        account = counted.of(traffic_class)
        delta = account.used_bytes - before.of(traffic_class).used_bytes
        # Only the totals go on: cap state and notified flags belong to the period that ended.
        fresh = ClassAccount(
            used_bytes=_part_since(start_s, delta, read_at, now),
            total_bytes=account.total_bytes,
            counter_bytes=account.counter_bytes,
        )
        started = started.with_class(traffic_class, fresh)
    return started


def _part_since(start_s: int, delta: int, read_at: Instant | None, now: Instant) -> int:
    """Return the part after ``start_s`` of ``delta`` bytes that were sent evenly between two readings."""
    if read_at is None or now.wall_ns <= read_at.wall_ns:
        return 0  # without two instants there is no rate to divide by
    since_ns = now.wall_ns - max(start_s * NS, read_at.wall_ns)
    return delta * max(0, since_ns) // (now.wall_ns - read_at.wall_ns)


def shift_periods(ledger: Ledger, now: Instant) -> Ledger:
    """Move all periods along if the wall clock was stepped since the last reading; else return the same ledger."""
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


def is_same_device(ledger: Ledger, tree: ObservedTree, now: Instant) -> bool:
    """Tell whether a dump is of the device that the ledger was kept on, under whatever name.

    A number decides where both are known within one boot and one network namespace; elsewhere the name does. Before
    the first pass every device is the same.
    """
    last = ledger.last_device(now)
    if last.ifindex and tree.ifindex and last.netns == tree.netns:
        return last.ifindex == tree.ifindex
    return last.name in ("", tree.device)


def reset_baselines(ledger: Ledger, tree: ObservedTree, classes: Mapping[int, ObservedClass], now: Instant) -> Ledger:
    """Start the counters of another device from what they show now; on the same device return the same ledger."""
    if is_same_device(ledger, tree, now):
        return ledger

    def reset(account: ClassAccount, observed: ObservedClass | None) -> ClassAccount:
        return replace(account, counter_bytes=0 if observed is None else observed.sent_bytes)

    def reset_slice(account: SliceAccount) -> SliceAccount:
        standard, exempt = observed_leaves(account.slice_id, classes)
        return replace(account, standard=reset(account.standard, standard), exempt=reset(account.exempt, exempt))

    slices = {key: reset_slice(account) for key, account in ledger.slices.items()}
    totals = {minor: reset(account, classes.get(minor)) for minor, account in ledger.node_totals.items()}
    return replace(ledger, slices=slices, node_totals=totals)


def observed_leaves(
    slice_id: int, classes: Mapping[int, ObservedClass]
) -> tuple[ObservedClass | None, ObservedClass | None]:
    """Return both classes of a slice as observed. A slice that is only remembered has none: id 0 is the host's."""
    if not slice_id:
        return None, None
    return classes.get(leaf(TrafficClass.STANDARD, slice_id)), classes.get(leaf(TrafficClass.EXEMPT, slice_id))


def restore_from_reports(ledger: Ledger, reported: Iterable[UsageReport], now: Instant) -> Ledger:
    """Merge this node's previous reports into a ledger that was lost. The ledger is no longer ``rebuilding`` then.

    A report names the usage and the kernel counter that it includes. So where the class has survived, the bytes sent
    between the report and the loss of the ledger are known exactly. Two kinds of report are ignored: those of periods
    that are over, and those of a period that ends before it begins. A period that begins in the future, by a clock that
    is or was wrong, begins now: otherwise it would last longer by the clock's error.
    """
    slices = dict(ledger.slices)
    for report in reported:
        if report.period_end_s <= max(now.wall_s, report.period_start_s):
            continue  # over, or not to be trusted
        account = slices.get(report.key)
        start_s = min(report.period_start_s, now.wall_s)
        slices[report.key] = _remembered(report, start_s) if account is None else _merged(account, report, start_s)
    return replace(ledger, slices=slices, rebuilding=False)


def _remembered(report: UsageReport, start_s: int) -> SliceAccount:
    """Return the account of a slice that is not on the node: without a class, kept until its period ends."""
    return SliceAccount(
        key=report.key,
        uid="",  # the next SliceBandwidth of this name brings its own
        slice_id=0,
        generation=0,
        period_start_s=start_s,
        limits=replace(DEFAULT_LIMITS, period_s=report.period_end_s - report.period_start_s),
        standard=_with_usage(ClassAccount(), report.standard, gap_bytes=0),
        exempt=_with_usage(ClassAccount(), report.exempt, gap_bytes=0),
        live=False,
    )


def _merged(account: SliceAccount, report: UsageReport, start_s: int) -> SliceAccount:
    same_classes = account.slice_id == report.slice_id
    merged = replace(account, period_start_s=start_s)
    for traffic_class in TrafficClass:
        kept, usage = account.of(traffic_class), report.of(traffic_class)
        # What the class had counted when it was reclaimed: its counter now, less the bytes counted since.
        reclaimed_bytes = kept.counter_bytes - kept.total_bytes
        gap_bytes = max(0, reclaimed_bytes - usage.counter_bytes) if same_classes else 0
        merged = merged.with_class(traffic_class, _with_usage(kept, usage, gap_bytes))
    return merged


def _with_usage(kept: ClassAccount, usage: ClassUsage, gap_bytes: int) -> ClassAccount:
    before_bytes = usage.used_bytes + gap_bytes
    return replace(
        kept,
        used_bytes=kept.used_bytes + before_bytes,
        total_bytes=kept.total_bytes + before_bytes,
        capped_since_s=usage.capped_since_s if usage.capped else kept.capped_since_s,
        notified_capped=kept.notified_capped or usage.capped,
    )
