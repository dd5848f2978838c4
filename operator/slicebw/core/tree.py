"""The shape of the kernel tree (PlanetLab's): which class has which id, and what a class is.

    1:            htb, default 1fff
    └ 1:1         line rate
      ├ 1:10      standard, ceil = node cap          └ 1:20      exempt, ceil = line rate
      │ ├ 1:1000  root: the node itself                ├ 1:2000
      │ ├ 1:1xxx  slice xxx                            ├ 1:2xxx
      │ └ 1:1fff  default: unclassified                └ 1:2fff

A *minor* is the lower half of a class id: 0x1xxx or 0x2xxx for leaves. Rates are bit/s.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from slicebw.core.desired import TrafficClass

HANDLE_MAJOR: Final = 0x1
TOP: Final = 0x1
PARENTS: Final[Mapping[TrafficClass, int]] = {TrafficClass.STANDARD: 0x10, TrafficClass.EXEMPT: 0x20}
_LEAF_BASE: Final[Mapping[TrafficClass, int]] = {TrafficClass.STANDARD: 0x1000, TrafficClass.EXEMPT: 0x2000}

ROOT_ID: Final = 0x000
"""The node's own traffic: share 5, never capped, belongs to no user."""
FIRST_ID: Final = 0x001
LAST_ID: Final = 0xFFE
"""Slices have the ids FIRST_ID..LAST_ID: 4,094 of them on a node."""
DEFAULT_ID: Final = 0xFFF
"""Whatever cannot be classified: never blocked, always counted."""
MAX_SLICES: Final = LAST_ID - FIRST_ID + 1

SCRATCH: Final = 0x3000
"""Minor of the short-lived child by which a leaf's token debt is cleared; never there between two batches."""

ROOT_SHARE: Final = 5
QUANTUM_PER_SHARE_BYTES: Final = 1600

MIN_KERNEL_RATE_BPS: Final = 8
"""HTB counts whole bytes a second, at least one."""


def leaf(traffic_class: TrafficClass, class_id: int) -> int:
    """The minor of a slice's (or root's, or default's) leaf class."""
    return _LEAF_BASE[traffic_class] | class_id


def class_id_of(minor: int) -> int | None:
    """The slice id within a leaf's minor; None for minors that are no leaf's."""
    return minor & 0xFFF if minor & ~0xFFF in _LEAF_BASE.values() else None


def kernel_rate(rate_bps: int) -> int:
    """The nearest rate not above ``rate_bps`` that HTB can hold: whole bytes a second, at least one. Unit: bit/s."""
    return max(MIN_KERNEL_RATE_BPS, rate_bps // 8 * 8)


def classid(minor: int) -> str:
    """A class id as tc writes it: ``1:1001``."""
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
