"""What is in the kernel, desired or observed, and what is a change of it.

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
"""The node's own traffic: share 5, never capped, belongs to no user."""
FIRST_ID: Final = 0x001
LAST_ID: Final = 0xFFE
"""Slices have the ids FIRST_ID..LAST_ID: 4,094 of them on a node."""
DEFAULT_ID: Final = 0xFFF
"""Whatever cannot be classified: never blocked, always counted."""
MAX_SLICES: Final = LAST_ID - FIRST_ID + 1

SCRATCH: Final = 0x3000
"""Minor of the short-lived child by which a leaf's token debt is cleared; never there between two batches."""

HOST_SHARE: Final = 5
QUANTUM_PER_SHARE_BYTES: Final = 1600

MIN_KERNEL_RATE_BPS: Final = 8
"""HTB counts whole bytes a second, at least one."""


def leaf(traffic_class: TrafficClass, slice_id: int) -> int:
    """The minor of a slice's (or the host's, or default's) leaf class."""
    return _LEAF_BASE[traffic_class] | slice_id


def slice_id_of(minor: int) -> int | None:
    """The slice id within a leaf's minor; None for minors that are no leaf's."""
    return minor & 0xFFF if minor & ~0xFFF in _LEAF_BASE.values() else None


def kernel_rate(rate_bps: int) -> int:
    """The nearest rate not above ``rate_bps`` that HTB can hold: whole bytes a second, at least one. Unit: bit/s."""
    return max(MIN_KERNEL_RATE_BPS, rate_bps // 8 * 8)


def classid(minor: int) -> str:
    """A slice id as tc writes it: ``1:1001``."""
    return f"{HANDLE_MAJOR:x}:{minor:x}"


class ClassSpec(Struct, frozen=True, gc=False):
    """One HTB class as wanted. ``quantum_bytes`` is 0 and ``leaf_major`` 0 for inner classes.

    ``leaf_major`` is the handle (major part) of the leaf qdisc: the class's own minor, so that it is known as ours.
    Rates are exactly what the kernel can hold (:func:`kernel_rate`).
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
    """One HTB class as the kernel shows it. ``sent_bytes`` is the 64-bit counter of bytes that left the class."""

    minor: int
    parent: int
    rate_bps: int
    ceil_bps: int
    quantum_bytes: int
    sent_bytes: int
    backlog_bytes: int = 0
    leaf_major: int = 0


class RootQdisc(StrEnum):
    """Whose root qdisc the device has."""

    DEFAULT = "default"
    """The kernel's own (noqueue, pfifo_fast, fq_codel, mq, ...) or none: may be replaced and comes back on cleanup."""
    OURS = "ours"
    FOREIGN = "foreign"
    """Somebody's classful tree: never touched."""


class ObservedTree(Struct, frozen=True):
    """One complete dump of a device. ``line_rate_bps`` is what the device says it can carry, None where it does not."""

    device: str
    root: RootQdisc
    root_kind: str
    classes: Mapping[int, ObservedClass]
    line_rate_bps: int | None = None


_MOST_SHOWN: Final = 100
"""Of the elements of one table change; 10,000 networks that nft refuses are tried, and logged, every second."""


class CreateRoot(Struct, frozen=True):
    """Put our HTB qdisc on the device. Only ever planned where the root is the kernel's default."""

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"qdisc add root handle {HANDLE_MAJOR:x}: htb default {leaf(TrafficClass.STANDARD, DEFAULT_ID):x}"


class RemoveRoot(Struct, frozen=True):
    """Take the whole tree off the device; the kernel puts its default qdisc back."""

    destroys: ClassVar[bool] = True

    def __str__(self) -> str:
        return "qdisc del root"


class CreateClass(Struct, frozen=True, gc=False):
    """Add a class that is not there, and its leaf qdisc if it is a leaf."""

    spec: ClassSpec

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"class add {self.spec}"


class ChangeClass(Struct, frozen=True, gc=False):
    """Change rates or quantum of a class that is there; its counters stay."""

    spec: ClassSpec

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"class change {self.spec}"


class ResetTokens(Struct, frozen=True):
    """Clear a leaf class's token debt and set its limits, keeping its counters.

    HTB keeps a class's token debt, up to 60 s of it, across a change of its ceiling (net/sched/sch_htb.c,
    ``mbuffer``), so a class that was held to a few bit/s would stay silent for up to a minute after its cap is
    lifted. Turning the leaf into an inner class and back resets its tokens (``htb_parent_to_leaf``): change the
    limits, add a child (minor :data:`~slicebw.core.tree.SCRATCH`), delete it, put the leaf qdisc back; one batch.
    Its queued packets are dropped; packets that arrive within the batch go to default. Of a class that is to be
    deleted, only that its queue is dropped is wanted.
    """

    spec: ClassSpec

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"class reset-tokens {self.spec}"


class ReplaceLeafQdisc(Struct, frozen=True):
    """Give a leaf class its own leaf qdisc (again)."""

    minor: int
    leaf_major: int

    destroys: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"qdisc replace parent {classid(self.minor)} handle {self.leaf_major:x}:"


class DeleteClass(Struct, frozen=True):
    """Remove a class that nothing is sent to any more."""

    minor: int

    destroys: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"class del classid {classid(self.minor)}"


TreeChange = CreateRoot | RemoveRoot | CreateClass | ChangeClass | ResetTokens | ReplaceLeafQdisc | DeleteClass


class FailedChange(Struct, frozen=True):
    """A change the kernel refused, and why."""

    change: TreeChange
    reason: str


class NftTable(Struct, frozen=True):
    """What the nftables table holds, wanted or observed: address -> slice id, and the exempt destinations.

    ``intact`` is false where the table is missing or its rules are not ours as we write them: then it is
    replaced whole, in one transaction. Addresses and networks are canonical texts of either family.
    """

    slice_id_by_address: Mapping[str, int] = field(default_factory=dict)
    exempt_destinations: frozenset[str] = frozenset()
    intact: bool = True
    present: bool = True


class ReplaceTable(Struct, frozen=True):
    """Write the whole table in one transaction."""

    wanted: NftTable

    def __str__(self) -> str:
        addresses, exempt = len(self.wanted.slice_id_by_address), len(self.wanted.exempt_destinations)
        return f"table replace ({addresses} addresses, {exempt} exempt)"


class UpdateTable(Struct, frozen=True):
    """Element changes, in one transaction. An address that moves is in both ``remove`` and ``add``."""

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
