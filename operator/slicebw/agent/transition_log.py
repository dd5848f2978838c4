"""Log lines about what a pass has changed for the slices. Changes to the kernel are logged by the reconciler itself."""

from collections.abc import Iterator

from slicebw.core.desired import ClassLimits, TrafficClass
from slicebw.core.ledger import Ledger, SliceAccount


def transitions(before: Ledger, after: Ledger) -> Iterator[str]:
    """Yield a line for every slice added, removed, purged, or given other limits, and for every new pending Event."""
    for key, account in after.slices.items() if after.slices is not before.slices else ():
        last = before.slices.get(key)
        if last is account:
            continue
        was_live = last is not None and last.live
        if account.live and not was_live:
            yield f"slice added slice={key} {_limits(account)}"
        elif was_live and not account.live:
            yield f"slice removed slice={key} slice_id={account.slice_id:03x}; its usage is kept until its period ends"
        elif last is not None and last.limits != account.limits:
            yield f"limits changed slice={key} {_limits(account)}"
    for key in before.slices.keys() - after.slices.keys():
        yield f"slice purged slice={key}; its period has ended"
    known = {event.id for event in before.pending_events}
    for event in after.pending_events:
        if event.id not in known:
            yield f"event reason={event.reason} about={event.key or 'node'} message={event.message}"


def _limits(account: SliceAccount) -> str:
    words = [f"slice_id={account.slice_id:03x} generation={account.generation} period_s={account.limits.period_s}"]
    words += [_class_limits(traffic_class, account.limits.of(traffic_class)) for traffic_class in TrafficClass]
    return " ".join(words)


def _class_limits(traffic_class: TrafficClass, limits: ClassLimits) -> str:
    maximum = "node" if limits.max_rate_bps is None else limits.max_rate_bps
    figures = {
        "min_rate_bps": limits.min_rate_bps,
        "max_rate_bps": maximum,
        "budget_bytes": limits.budget_bytes,
        "threshold_bytes": limits.threshold_bytes,
        "share": limits.share,
    }
    return " ".join(f"{traffic_class}.{name}={value}" for name, value in figures.items())
