"""What a node tells the world: usages, events, its own state. Plain values; reporters give them their outer form."""

from enum import StrEnum
from typing import Final

from msgspec import Struct

from slicebw.core.desired import Mode, SliceKey, TrafficClass


class ClassUsage(Struct, frozen=True, gc=False):
    """One class of one slice on one node: ``rate_bps`` is the ceiling in force, ``percent`` is of the budget."""

    used_bytes: int
    budget_bytes: int
    percent: int
    rate_bps: int
    capped: bool
    capped_since_s: int | None
    counter_bytes: int = 0
    """The kernel's counter that ``used_bytes`` includes, so that a lost ledger can be rebuilt exactly."""


OLDER_HAS_IT: Final = "it belongs to the older SliceBandwidth "
"""How the reason begins, followed by the winner, where two SliceBandwidths select one pod."""


class PodProblem(Struct, frozen=True, gc=False):
    """A pod that a SliceBandwidth selects and does not get, and why."""

    pod: str
    reason: str

    @property
    def is_conflict(self) -> bool:
        """Whether another SliceBandwidth has the pod; else the pod itself is why it is left out."""
        return self.reason.startswith(OLDER_HAS_IT)


class UsageReport(Struct, frozen=True, gc=False):
    """The BandwidthUsage of one slice on this node. ``class_id`` 0: the slice has no class here (any more)."""

    key: SliceKey
    class_id: int
    generation: int
    """Of the SliceBandwidth whose limits are in force here; 0 once it is deleted."""
    period_start_s: int
    period_end_s: int
    standard: ClassUsage
    exempt: ClassUsage
    problems: tuple[PodProblem, ...] = ()
    errors: tuple[str, ...] = ()
    """What is wrong with the spec; the last good limits are in force."""
    unenforced: str = ""
    """Why this node does not hold the slice to its limits; empty where it does."""

    def of(self, traffic_class: TrafficClass) -> ClassUsage:
        """The usage of one of the two classes."""
        return self.standard if traffic_class is TrafficClass.STANDARD else self.exempt


class Reason(StrEnum):
    """Reasons of the Events that slicebw emits."""

    CAPPED = "BandwidthCapped"
    RESTORED = "BandwidthRestored"
    REFUSED = "BandwidthRefused"
    INVALID = "InvalidSpec"
    TREE_REBUILT = "TreeRebuilt"
    LEDGER_REBUILT = "LedgerRebuilt"
    UPLINK_CHANGED = "UplinkChanged"
    MODE_CHANGED = "ModeChanged"


class EventNote(Struct, frozen=True, gc=False):
    """An Event to emit exactly once. ``id`` is the same however often it is sent; ``key`` None: about the node."""

    id: str
    key: SliceKey | None
    uid: str
    reason: Reason
    warning: bool
    message: str
    at_s: int


class NodeReport(Struct, frozen=True):
    """The status of this node's NodeBandwidth."""

    device: str
    mode: Mode
    cap_bps: int
    line_rate_bps: int
    slices: int
    capped_slices: int
    root_bytes: int
    default_bytes: int
    foreign_qdisc: str | None
    """The kind of the classful qdisc that is in our way, or None."""
    overcommitted: str | None
    """What the guarantees add up to where that is more than the node can give, or None."""
    ready: bool
    message: str
    generation: int = 0


class UsageWrite(Struct, frozen=True, gc=False):
    """Write the BandwidthUsage of a slice on this node, as reported at ``at_s`` (wall clock)."""

    report: UsageReport
    at_s: int


class UsageRemoval(Struct, frozen=True, gc=False):
    """Remove the BandwidthUsage of a slice on this node."""

    key: SliceKey


class NodeWrite(Struct, frozen=True, gc=False):
    """Write the status of this node's NodeBandwidth, as reported at ``at_s`` (wall clock)."""

    report: NodeReport
    at_s: int


ReportWrite = UsageWrite | UsageRemoval | NodeWrite | EventNote
"""One object to write or to remove. An Event is written once."""


def object_of(write: ReportWrite) -> SliceKey | str:
    """Which object a write is about: of two writes with the same answer, only the later one matters."""
    match write:
        case UsageWrite():
            return write.report.key
        case UsageRemoval():
            return write.key
        case NodeWrite():
            return "node"
        case EventNote():
            return write.id
