"""The node-local account of every slice: who has which slice id, since when, and how much of which budget is used.

A ledger is a value. :mod:`slicebw.core.accounting` folds kernel counters into it, and
:mod:`slicebw.core.node_pass` decides on it.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct, field
from msgspec.structs import replace

from slicebw.core.clock import Instant
from slicebw.core.desired import Mode, SliceKey, SliceLimits, TrafficClass


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


class PendingEvent(Struct, frozen=True, gc=False):
    """An Event to emit exactly once. ``id`` is the same however often it is sent; ``key`` None: about the node."""

    id: str
    key: SliceKey | None
    uid: str
    reason: Reason
    warning: bool
    message: str
    at_s: int


class ClassAccount(Struct, frozen=True, gc=False):
    """One class of one slice. ``total_bytes`` never goes down while the ledger knows the slice."""

    used_bytes: int = 0
    total_bytes: int = 0
    counter_bytes: int = 0
    """The kernel class's counter when it was last read; 0 while there is no such class."""
    capped_since_s: int | None = None
    notified_capped: bool = False
    """A BandwidthCapped Event was made in this period already."""
    notified_restored: bool = False


class SliceAccount(Struct, frozen=True, gc=False):
    """One slice on this node. ``limits`` are its last good ones; ``live`` is false once it has left the node.

    ``slice_id`` is 0 for one that is only remembered: it has had no class since the ledger was rebuilt.
    """

    key: SliceKey
    uid: str
    slice_id: int = field(name="class_id")  # its key in the ledger's file
    generation: int
    period_start_s: int
    limits: SliceLimits
    standard: ClassAccount = ClassAccount()
    exempt: ClassAccount = ClassAccount()
    live: bool = True
    complained_generation: int = 0
    """The last generation about whose errors an InvalidSpec Event was made."""

    @property
    def period_end_s(self) -> int:
        """When the running period ends, in wall clock seconds."""
        return self.period_start_s + self.limits.period_s

    def of(self, traffic_class: TrafficClass) -> ClassAccount:
        """The account of one of the two classes."""
        return self.standard if traffic_class is TrafficClass.STANDARD else self.exempt

    def with_class(self, traffic_class: TrafficClass, account: ClassAccount) -> "SliceAccount":
        """The same slice with one class's account replaced."""
        if traffic_class is TrafficClass.STANDARD:
            return replace(self, standard=account)
        return replace(self, exempt=account)


class Ledger(Struct, frozen=True):
    """All accounts of a node. ``read_at`` is when the last dump folded in was made, ``device`` whose it was."""

    slices: Mapping[SliceKey, SliceAccount] = field(default_factory=dict)
    node_totals: Mapping[int, ClassAccount] = field(default_factory=dict)
    """Root's and default's classes by minor: only ``total_bytes`` and ``counter_bytes`` are used."""
    last_slice_id: int = 0
    """The id given last; the search for a free one starts behind it, so that freed ids are reused last."""
    read_at: Instant | None = None
    device: str = ""
    had_tree: bool = False
    """Whether our tree was on the device, or was about to be put there, at the last pass."""
    pending_events: tuple[PendingEvent, ...] = ()
    """Events that are not known to be delivered yet."""
    rebuilding: bool = False
    """Begun without a ledger to go on: what this node reported before is taken up once it is known."""
    unplaced: frozenset[SliceKey] = frozenset()
    """Slices for which there was no slice id left, and whose owners were told so."""
    mode: Mode | None = None
    """What the node was in at the last pass; None before the first one."""
