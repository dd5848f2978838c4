"""What is remembered on a node: the account of every slice, the Events that are pending, and the state of the node.

A ledger is a value. :mod:`slicebw.core.accounting` folds kernel counters into it, and
:mod:`slicebw.core.node_pass` decides on it.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct, field
from msgspec.structs import replace

from slicebw.core.clock import Instant
from slicebw.core.dataplane import Device
from slicebw.core.desired import Mode, SliceKey, SliceLimits, TrafficClass


class Reason(StrEnum):
    """The reasons of the Events that slicebw emits."""

    CAPPED = "BandwidthCapped"
    RESTORED = "BandwidthRestored"
    REFUSED = "BandwidthRefused"
    INVALID = "InvalidSpec"
    TREE_REBUILT = "TreeRebuilt"
    LEDGER_REBUILT = "LedgerRebuilt"
    UPLINK_CHANGED = "UplinkChanged"
    MODE_CHANGED = "ModeChanged"


class PendingEvent(Struct, frozen=True, gc=False):
    """An Event to emit exactly once. Its ``id`` is the same when it is sent again; without ``key`` it is the node's."""

    id: str
    key: SliceKey | None
    uid: str
    reason: Reason
    warning: bool
    message: str
    at_s: int


class ClassAccount(Struct, frozen=True, gc=False):
    """The account of one class of one slice. ``total_bytes`` never decreases while the ledger knows the slice."""

    used_bytes: int = 0
    total_bytes: int = 0
    counter_bytes: int = 0
    """The counter of the kernel's class at the last reading; 0 while there is no such class."""
    capped_since_s: int | None = None
    notified_capped: bool = False
    """A BandwidthCapped Event was made in this period already."""
    notified_restored: bool = False


class SliceAccount(Struct, frozen=True, gc=False):
    """The account of one slice on this node. ``limits`` are the last good ones; ``live``: it is on the node.

    ``slice_id`` is 0 for a slice that is only remembered: it has no class, and another slice may have its id.
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
    invalid_event_generation: int = field(name="complained_generation", default=0)  # its key in the ledger's file
    """The last generation about whose errors an InvalidSpec Event was made."""

    @property
    def period_end_s(self) -> int:
        """The end of the running period, in seconds of the wall clock."""
        return self.period_start_s + self.limits.period_s

    def of(self, traffic_class: TrafficClass) -> ClassAccount:
        """Return the account of one of the two classes."""
        return self.standard if traffic_class is TrafficClass.STANDARD else self.exempt

    def with_class(self, traffic_class: TrafficClass, account: ClassAccount) -> "SliceAccount":
        """Return the slice with another account of one class."""
        if traffic_class is TrafficClass.STANDARD:
            return replace(self, standard=account)
        return replace(self, exempt=account)


class Ledger(Struct, frozen=True):
    """All accounts of a node. The last dump folded in was made at ``read_at``, on ``device``."""

    slices: Mapping[SliceKey, SliceAccount] = field(default_factory=dict)
    node_totals: Mapping[int, ClassAccount] = field(default_factory=dict)
    """The host's and default's classes by minor. Only ``total_bytes`` and ``counter_bytes`` are used."""
    last_slice_id: int = 0
    """The id given out last. The search for a free id starts after it, so that freed ids are given out last."""
    read_at: Instant | None = None
    device: str = ""
    ifindex: int = 0
    """The number of ``device``, valid for the boot of ``read_at``; 0: not known."""
    netns: int = 0
    """The network namespace that ``ifindex`` is of (:class:`slicebw.core.dataplane.Device`)."""
    had_tree: bool = False
    """Whether our tree was on the device at the last pass, or was about to be put there."""
    pending_events: tuple[PendingEvent, ...] = ()
    """Events whose delivery is not confirmed yet."""
    rebuilding: bool = False
    """The ledger was lost. It is restored from this node's previous reports as soon as they are known."""
    unplaced: frozenset[SliceKey] = frozenset()
    """Slices for which no id was left. An Event about each has been made."""
    mode: Mode | None = None
    """The mode of the node at the last pass; None before the first one."""

    def last_device(self, now: Instant) -> Device:
        """Return the device of the last pass. After a reboot only its name is known: numbers are given out anew."""
        same_boot = self.read_at is not None and self.read_at.boot_id == now.boot_id
        return Device(self.device, self.ifindex if same_boot else 0, self.netns)
