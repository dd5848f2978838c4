"""What the kernel has or should have (classes, table), and the changes between the two.

The HTB tree has PlanetLab's shape::

    1:            htb, default 1fff
    └ 1:1         line rate
      ├ 1:10      standard, ceil = node cap          └ 1:20      exempt, ceil = line rate
      │ ├ 1:1000  host: the node itself                ├ 1:2000
      │ ├ 1:1xxx  slice xxx                            ├ 1:2xxx
      │ └ 1:1fff  default: unclassified                └ 1:2fff

A *minor* is the lower half of a classid: 0x1xxx or 0x2xxx for leaves. Rates are bit/s.

Changes are values. ``str()`` of one is its stable text form, in the words of tc and nft: ``--dry-run``, logs and golden
tests print this text, and the kernel edge executes the value.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, Final

from msgspec import Struct, field

from slicebw.core.desired import TrafficClass

HANDLE_MAJOR: Final = 0x1
TOP: Final = 0x1
PARENTS: Final[Mapping[TrafficClass, int]] = {TrafficClass.STANDARD: 0x10, TrafficClass.EXEMPT: 0x20}
_LEAF_BASE: Final[Mapping[TrafficClass, int]] = {TrafficClass.STANDARD: 0x1000, TrafficClass.EXEMPT: 0x2000}

HOST_ID: Final = 0x000
"""The host: traffic of the node itself. It has share 5, is never capped, and belongs to no user."""
FIRST_ID: Final = 0x001
LAST_ID: Final = 0xFFE
"""Slices have the ids FIRST_ID to LAST_ID: 4,094 on one node."""
DEFAULT_ID: Final = 0xFFF
"""Traffic that cannot be classified. It is counted, and never blocked."""
MAX_SLICES: Final = LAST_ID - FIRST_ID + 1

SCRATCH: Final = 0x3000
"""Minor of the short-lived child class that resets a leaf's tokens. It never outlives its batch."""

HOST_SHARE: Final = 5
QUANTUM_PER_SHARE_BYTES: Final = 1600

MIN_KERNEL_RATE_BPS: Final = 8
"""HTB holds whole bytes per second, and at least one."""

NO_CEILING_BPS: Final = 10**15
"""A ceiling that never binds, for mode Monitor. HTB charges a packet of up to 64 KiB at this rate with 0 ns.

It is more than any device carries, and well within the 64 bits that HTB has for bytes/s.
"""


def leaf(traffic_class: TrafficClass, slice_id: int) -> int:
    """Return the minor of the leaf class of a slice, of the host, or of default."""
    return _LEAF_BASE[traffic_class] | slice_id


def slice_id_of(minor: int) -> int | None:
    """Return the slice id within a leaf's minor, or None if the minor is not a leaf's."""
    return minor & 0xFFF if minor & ~0xFFF in _LEAF_BASE.values() else None


def kernel_rate(rate_bps: int) -> int:
    """Return the nearest rate not above ``rate_bps`` that HTB can hold. Unit: bit/s."""
    return max(MIN_KERNEL_RATE_BPS, rate_bps // 8 * 8)


def classid(minor: int) -> str:
    """Return a classid as tc writes it: ``1:1001``."""
    return f"{HANDLE_MAJOR:x}:{minor:x}"


class ClassSpec(Struct, frozen=True, gc=False):
    """One desired HTB class. ``quantum_bytes`` is 0 and ``leaf_major`` 0 for inner classes.

    ``leaf_major`` is the handle (major part) of the leaf qdisc. It is the class's own minor, which marks it as ours.
    Rates are exactly those that the kernel can hold (:func:`kernel_rate`).
    """

    minor: int
    parent: int
    rate_bps: int
    ceil_bps: int
    quantum_bytes: int = 0
    leaf_major: int = 0

    def __str__(self) -> str:
        parent = f"{HANDLE_MAJOR:x}:" if self.parent == 0 else classid(self.parent)
        quantum = f" quantum {self.quantum_bytes}" if self.quantum_bytes else ""
        rates = f"rate {self.rate_bps}bit ceil {self.ceil_bps}bit"
        return f"parent {parent} classid {classid(self.minor)} htb {rates}{quantum}"


class ObservedClass(Struct, frozen=True, gc=False):
    """One observed HTB class. ``sent_bytes`` is the 64-bit counter of bytes that left the class."""

    minor: int
    parent: int
    rate_bps: int
    ceil_bps: int
    quantum_bytes: int
    sent_bytes: int
    backlog_bytes: int = 0
    leaf_major: int = 0


class RootQdisc(StrEnum):
    """Who set up the root qdisc of the device."""

    DEFAULT = "default"
    """The kernel (noqueue, pfifo_fast, fq_codel, mq, ...), or nobody. It may be replaced; cleanup restores it."""
    OURS = "ours"
    FOREIGN = "foreign"
    """Another program: its classful tree is never touched."""


class Device(Struct, frozen=True):
    """A network device. A name can pass to another device; the number stays through a rename.

    ``ifindex`` is unique within one network namespace and one boot; 0: not known. ``netns`` is a number of the
    namespace that no other one of this boot has.
    """

    name: str
    ifindex: int = 0
    netns: int = 0


class UplinkTrouble(Struct, frozen=True):
    """Why the device that is shaped may not be the one that carries the node's traffic. ``reason`` is CamelCase."""

    reason: str
    message: str


class ObservedTree(Struct, frozen=True):
    """One complete dump of a device. ``line_rate_bps`` is the speed that the device reports, if it reports any.

    ``lost_queues`` is how many transmit queues the device has whose ``mq`` an HTB root replaces; 0 if it has none.
    """

    device: str
    root: RootQdisc
    root_kind: str
    classes: Mapping[int, ObservedClass]
    line_rate_bps: int | None = None
    ifindex: int = 0
    netns: int = 0
    uplink_trouble: UplinkTrouble | None = None
    """Set by whoever chose the device."""
    lost_queues: int = 0


_MOST_SHOWN: Final = 100
"""Elements of one table change in its text. A change that nft refuses is tried and logged every second."""


class CreateRoot(Struct, frozen=True):
    """Put our HTB qdisc on the device. It is planned only where the root qdisc is the kernel's default."""

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"qdisc add root handle {HANDLE_MAJOR:x}: htb default {leaf(TrafficClass.STANDARD, DEFAULT_ID):x}"


class RemoveRoot(Struct, frozen=True):
    """Remove the whole tree from the device. The kernel puts its default qdisc back."""

    destroys: ClassVar[bool] = True

    def __str__(self) -> str:
        return "qdisc del root"


class CreateClass(Struct, frozen=True, gc=False):
    """Add a missing class, and its leaf qdisc if it is a leaf."""

    spec: ClassSpec

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"class add {self.spec}"


class ChangeClass(Struct, frozen=True, gc=False):
    """Change rates or quantum of an existing class. Its counters stay."""

    spec: ClassSpec

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"class change {self.spec}"


class ResetTokens(Struct, frozen=True):
    """Reset the tokens of a leaf class and set its limits. Its counters stay.

    HTB keeps a class's token debt, up to 60 s of it, across a change of its ceiling (net/sched/sch_htb.c,
    ``mbuffer``), so a class that was held to a few bit/s would stay silent for up to a minute after its cap is
    lifted. Turning the leaf into an inner class and back resets its tokens (``htb_parent_to_leaf``): change the
    limits, add a child (minor :data:`SCRATCH`), delete it, put the leaf qdisc back; one batch.
    Its queued packets are dropped; packets that arrive within the batch go to default. A class that is about to be
    deleted is reset for that alone: to drop its queue.
    """

    spec: ClassSpec

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"class reset-tokens {self.spec}"


class ReplaceLeafQdisc(Struct, frozen=True):
    """Give a leaf class its own leaf qdisc, also if it has lost it."""

    minor: int
    leaf_major: int

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"qdisc replace parent {classid(self.minor)} handle {self.leaf_major:x}:"


class DeleteClass(Struct, frozen=True):
    """Remove a class that gets no traffic any more."""

    minor: int

    destroys: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"class del classid {classid(self.minor)}"


TreeChange = CreateRoot | RemoveRoot | CreateClass | ChangeClass | ResetTokens | ReplaceLeafQdisc | DeleteClass


class FailedChange(Struct, frozen=True):
    """A change that the kernel refused, and the reason."""

    change: TreeChange
    reason: str


class NftTable(Struct, frozen=True):
    """The content of the nftables table, desired or observed: address -> slice id, and the exempt destinations.

    ``intact`` is false if the table is missing, or its rules differ from ours. Then it is replaced whole, in one
    transaction. Addresses and networks are canonical texts of IPv4 or IPv6.
    """

    slice_id_by_address: Mapping[str, int] = field(default_factory=dict)
    exempt_destinations: frozenset[str] = frozenset()
    intact: bool = True
    present: bool = True


class ReplaceTable(Struct, frozen=True):
    """Write the whole table in one transaction."""

    desired: NftTable

    def __str__(self) -> str:
        addresses, exempt = len(self.desired.slice_id_by_address), len(self.desired.exempt_destinations)
        return f"table replace ({addresses} addresses, {exempt} exempt)"


class UpdateTable(Struct, frozen=True):
    """Change elements in one transaction. An address that moves is in both ``remove`` and ``add``."""

    remove: tuple[str, ...] = ()
    add: tuple[tuple[str, int], ...] = ()
    exempt_remove: tuple[str, ...] = ()
    exempt_add: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [f"-{address}" for address in self.remove]
        words += [f"+{address}={slice_id:03x}" for address, slice_id in self.add]
        words += [f"-exempt {network}" for network in self.exempt_remove]
        words += [f"+exempt {network}" for network in self.exempt_add]
        more = len(words) - _MOST_SHOWN
        return "table update " + " ".join([*words[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])])


class RemoveTable(Struct, frozen=True):
    """Delete the table with everything in it."""

    def __str__(self) -> str:
        return "table delete"


TableChange = ReplaceTable | UpdateTable | RemoveTable
