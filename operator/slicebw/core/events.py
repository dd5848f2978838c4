"""The words of the Events: each names the slice, its class, the usage, since when, and until when.

Which Events are due is decided in slice_pass, slice_ids and node_pass. An Event's id is the same however often it is
made or sent. The sinks derive the Event's name from it, so that it exists once.
"""

from slicebw.core.desired import Mode, SliceSpec, TrafficClass
from slicebw.core.ledger import PendingEvent, Reason, SliceAccount
from slicebw.core.text import bytes_text, rate_text, time_text


def capped_event(
    account: SliceAccount, traffic_class: TrafficClass, cap_bps: int, mode: Mode, now_s: int
) -> PendingEvent:
    """Return BandwidthCapped: a class crossed its threshold and is slowed (in Monitor mode: would be)."""
    limits = account.limits.of(traffic_class)
    used_bytes = account.of(traffic_class).used_bytes
    verb = "Slowed" if mode is Mode.ENFORCE else "Would have slowed (mode Monitor)"
    message = (
        f"{verb} {traffic_class} traffic of slice {account.key} to {rate_text(cap_bps)}bit/s until "
        f"{time_text(account.period_end_s)}: it has used {_used(used_bytes, limits.budget_bytes)} "
        f"since {time_text(account.period_start_s)}"
    )
    return _slice_event(account, traffic_class, Reason.CAPPED, message, now_s, warning=True)


def restored_event(
    account: SliceAccount, traffic_class: TrafficClass, rate_bps: int, why: str, now_s: int
) -> PendingEvent:
    """Return BandwidthRestored. ``account`` is the one before the cap was lifted: the Event names that period."""
    limits = account.limits.of(traffic_class)
    used_bytes = account.of(traffic_class).used_bytes
    message = (
        f"Restored {traffic_class} traffic of slice {account.key} to {rate_text(rate_bps)}bit/s: {why}; "
        f"it had used {_used(used_bytes, limits.budget_bytes)} since {time_text(account.period_start_s)}"
    )
    return _slice_event(account, traffic_class, Reason.RESTORED, message, now_s, warning=False)


def unplaced_event(spec: SliceSpec, most: int, now_s: int) -> PendingEvent:
    """Return BandwidthRefused: no slice id is left on the node."""
    message = (
        f"Slice {spec.key} has no class of its own: this node already has {most} slices, the most it can hold; "
        "its traffic counts as default"
    )
    return PendingEvent(
        f"{Reason.REFUSED}/{spec.key}/{spec.uid}", spec.key, spec.uid, Reason.REFUSED, True, message, now_s
    )


def invalid_event(spec: SliceSpec, now_s: int) -> PendingEvent:
    """Return InvalidSpec: the API server let a wrong spec through; the last good limits stay in force."""
    message = f"Slice {spec.key} keeps its last good limits (or the defaults): {'; '.join(spec.errors)}"
    identity = f"{Reason.INVALID}/{spec.key}/{spec.uid}/{spec.generation}"
    return PendingEvent(identity, spec.key, spec.uid, Reason.INVALID, True, message, now_s)


def node_event(reason: Reason, message: str, now_s: int) -> PendingEvent:
    """Return a warning about the node itself."""
    return PendingEvent(f"{reason}/{now_s}", None, "", reason, True, message, now_s)


def mode_event(device: str, before: Mode, mode: Mode, now_s: int) -> PendingEvent:
    """Return ModeChanged. It is no warning: a person has set the mode."""
    now = {
        Mode.ENFORCE: f"slices on {device} are held to their limits",
        Mode.MONITOR: f"traffic on {device} is counted and nothing is limited",
        Mode.DISABLED: f"{device} is as slicebw found it, nothing is counted",
    }[mode]
    message = f"The mode of this node is {mode} now, it was {before}: {now}"
    return PendingEvent(f"{Reason.MODE_CHANGED}/{now_s}/{mode}", None, "", Reason.MODE_CHANGED, False, message, now_s)


def _used(used_bytes: int, budget_bytes: int) -> str:
    return f"{bytes_text(used_bytes)} of {bytes_text(budget_bytes)} ({used_bytes * 100 // budget_bytes} %)"


def _slice_event(
    account: SliceAccount, traffic_class: TrafficClass, reason: Reason, message: str, now_s: int, *, warning: bool
) -> PendingEvent:
    identity = f"{reason}/{account.key}/{traffic_class}/{account.period_start_s}"
    return PendingEvent(identity, account.key, account.uid, reason, warning, message, now_s)
