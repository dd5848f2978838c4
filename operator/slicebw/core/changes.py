"""Changes to the kernel as values. ``str()`` of one is its stable text form, in tc's and nft's words.

``--dry-run``, logs and golden tests all print this text; the kernel edge executes the value.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from msgspec import Struct, field

from slicebw.core.desired import TrafficClass
from slicebw.core.tree import DEFAULT_ID, HANDLE_MAJOR, ClassSpec, classid, leaf

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


class ForgiveDebt(Struct, frozen=True):
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
        return f"class forgive {self.spec}"


class SetLeaf(Struct, frozen=True):
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


TreeChange = CreateRoot | RemoveRoot | CreateClass | ChangeClass | ForgiveDebt | SetLeaf | DeleteClass


class FailedChange(Struct, frozen=True):
    """A change the kernel refused, and why."""

    change: TreeChange
    reason: str


class Classification(Struct, frozen=True):
    """What the nftables table holds, wanted or observed: address -> slice id, and the exempt destinations.

    ``intact`` is false where the table is missing or its rules are not ours as we write them: then it is
    replaced whole, in one transaction. Addresses and networks are canonical texts of either family.
    """

    slices: Mapping[str, int] = field(default_factory=dict)
    exempt_destinations: frozenset[str] = frozenset()
    intact: bool = True
    present: bool = True


class ReplaceTable(Struct, frozen=True):
    """Write the whole table in one transaction."""

    wanted: Classification

    def __str__(self) -> str:
        return f"table replace ({len(self.wanted.slices)} addresses, {len(self.wanted.exempt_destinations)} exempt)"


class UpdateTable(Struct, frozen=True):
    """Element changes, in one transaction. An address that moves is in both ``remove`` and ``add``."""

    remove: tuple[str, ...] = ()
    add: tuple[tuple[str, int], ...] = ()
    exempt_remove: tuple[str, ...] = ()
    exempt_add: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [f"-{address}" for address in self.remove]
        words += [f"+{address}={class_id:03x}" for address, class_id in self.add]
        words += [f"-exempt {network}" for network in self.exempt_remove]
        words += [f"+exempt {network}" for network in self.exempt_add]
        more = len(words) - _MOST_SHOWN
        return "table update " + " ".join([*words[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])])


class RemoveTable(Struct, frozen=True):
    """Delete the table with everything in it."""

    def __str__(self) -> str:
        return "table delete"


TableChange = ReplaceTable | UpdateTable | RemoveTable
