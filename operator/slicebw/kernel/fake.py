"""A small kernel in memory, behind the same two ports as the real one, with faults on demand.

It ships with the package, so that code that is built on the ports can be tested with it. One suite of tests runs over
the fake and the real kernel (tests/kernel/test_contract_*.py), so that both behave alike.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_network
from itertools import count

from msgspec.structs import replace

from slicebw.core.dataplane import (
    PARENTS,
    TOP,
    ChangeClass,
    ClassSpec,
    CreateClass,
    CreateRoot,
    DeleteClass,
    Device,
    FailedChange,
    NftTable,
    ObservedClass,
    ObservedTree,
    RemoveRoot,
    RemoveTable,
    ReplaceLeafQdisc,
    ReplaceTable,
    ResetTokens,
    RootQdisc,
    TableChange,
    TreeChange,
    UpdateTable,
    classid,
)
from slicebw.core.desired import collapse
from slicebw.core.errors import KernelError, UplinkError
from slicebw.kernel.table_cache import TableCache, boot_ns


class Fault(StrEnum):
    """How a change fails."""

    REFUSED = "refused"
    """The kernel refuses the change. Later ones are carried out."""
    BEFORE = "before"
    """The socket (or nft) fails before the change. KernelError; neither it nor any later one is carried out."""
    AFTER = "after"
    """The answer is lost after the change. KernelError; it is carried out, and no later one is."""


@dataclass(slots=True)
class FakeDevice:
    """One device. ``root_kind`` is what ``tc qdisc show`` would call its root qdisc."""

    line_rate_bps: int | None = 10_000_000_000
    ifindex: int = field(default_factory=count(1).__next__)
    """It stays with the device when a test moves it to another name."""
    root: RootQdisc = RootQdisc.DEFAULT
    root_kind: str = "noqueue"
    lost_queues: int = 0
    classes: dict[int, ObservedClass] = field(default_factory=dict)
    observed: dict[int, ObservedClass] = field(default_factory=dict)
    """What was read last. While nothing changes, reads return this same mapping, as the real one does."""

    def lose_tree(self) -> None:
        """Delete the root qdisc, as another program might: all classes and their counters are lost."""
        self.root, self.root_kind, self.classes = RootQdisc.DEFAULT, "noqueue", {}


class FakeShaper:
    """The Shaper port in memory. Tests reach into ``devices``; ``default_device`` carries the default route."""

    def __init__(self, *names: str) -> None:
        self.devices = {name: FakeDevice() for name in names or ("uplink0",)}
        self.default_device: str | None = next(iter(self.devices))
        self.netns = 1
        self.applied: list[TreeChange] = []
        """Every change carried out, in order."""
        self.torn_reads = 0
        """How many of the next reads fail."""
        self.faults: deque[tuple[type[TreeChange], Fault]] = deque()
        """Each takes effect once: the first in the queue, at the next change of its kind."""
        self.closed = False

    def find(self, device: Device | str | None) -> Device | None:
        """Return a device under its present name, or the default route's; None if there is none."""
        wanted: str | int | None
        if isinstance(device, Device):
            wanted = device.ifindex if device.ifindex and device.netns == self.netns else device.name
        else:
            wanted = device
        try:
            name, found = self._find(wanted)
        except UplinkError:
            return None
        return Device(name, found.ifindex, self.netns)

    def read(self, device: str | int | None) -> ObservedTree:
        """Return the whole tree. Raises UplinkError, and KernelError while ``torn_reads`` is above 0."""
        name, found = self._find(device)
        if self.torn_reads > 0:
            self.torn_reads -= 1
            raise KernelError("the list of classes kept changing while it was read")
        if found.observed != found.classes:
            found.observed = dict(found.classes)
        return ObservedTree(
            name,
            found.root,
            found.root_kind,
            found.observed,
            found.line_rate_bps,
            found.ifindex,
            self.netns,
            lost_queues=found.lost_queues,
        )

    def apply(self, device: str | int, changes: Sequence[TreeChange], line_rate_bps: int) -> list[FailedChange]:
        """Carry out changes in order. Returns the refused ones. Raises UplinkError, KernelError."""
        del line_rate_bps  # it sets bursts, which are not read back
        _, found = self._find(device)
        failed = []
        for change in changes:
            fault = self._next_fault(change)
            if fault is Fault.BEFORE:
                raise KernelError(f"{change}: the kernel did not answer in time")
            reason = "fault" if fault is Fault.REFUSED else _carry_out(found, change)
            if reason is not None:
                failed.append(FailedChange(change, reason))
            else:
                self.applied.append(change)
            if fault is Fault.AFTER:
                raise KernelError(f"{change}: the kernel did not answer in time")
        return failed

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def send(self, minor: int, count: int, device: str | None = None) -> None:
        """Let a class send this many bytes."""
        _, found = self._find(device)
        before = found.classes[minor]
        found.classes[minor] = replace(before, sent_bytes=before.sent_bytes + count)

    def _find(self, device: str | int | None) -> tuple[str, FakeDevice]:
        if isinstance(device, int):
            device = next((name for name, one in self.devices.items() if one.ifindex == device), f"number {device}")
        name = device or self.default_device
        if name is None:
            raise UplinkError(f"no default route: name the uplink; there are {', '.join(self.devices)}")
        if name not in self.devices:
            raise UplinkError(f"there is no device named {name}; there are {', '.join(self.devices)}")
        return name, self.devices[name]

    def _next_fault(self, change: TreeChange) -> Fault | None:
        if self.faults and isinstance(change, self.faults[0][0]):
            return self.faults.popleft()[1]
        return None


def _carry_out(device: FakeDevice, change: TreeChange) -> str | None:
    """Carry out a change as the kernel does. Returns why it refuses, or None."""
    match change:
        case CreateRoot():
            if device.root is not RootQdisc.DEFAULT:
                return "File exists"
            device.root, device.root_kind = RootQdisc.OURS, "htb"
            return None
        case RemoveRoot():
            if device.root is RootQdisc.FOREIGN:
                return f"the root qdisc is not ours: {device.root_kind}"
            device.lose_tree()
            return None
    if device.root is not RootQdisc.OURS:
        return f"the root qdisc is not ours: {device.root_kind}"
    return _change_class(device.classes, change)


def _change_class(classes: dict[int, ObservedClass], change: TreeChange) -> str | None:
    match change:
        case CreateClass(spec):
            if spec.minor in classes:
                return "File exists"
            classes[spec.minor] = _observed(spec, 0, spec.leaf_major)
        case ChangeClass(spec) | ResetTokens(spec):
            before = classes.get(spec.minor)
            if before is None:
                return f"there is no class {classid(spec.minor)}"
            leaf_major = spec.leaf_major if isinstance(change, ResetTokens) else before.leaf_major
            classes[spec.minor] = replace(_observed(spec, before.sent_bytes, leaf_major), parent=before.parent)
        case ReplaceLeafQdisc(minor, leaf_major):
            if minor not in classes:
                return f"there is no class {classid(minor)}"
            classes[minor] = replace(classes[minor], leaf_major=leaf_major)
        case DeleteClass(minor):
            if any(child.parent == minor for child in classes.values()):
                return "HTB class in use"
            classes.pop(minor, None)
    return None


def _observed(spec: ClassSpec, sent_bytes: int, leaf_major: int) -> ObservedClass:
    quantum = 0 if spec.minor in (TOP, *PARENTS.values()) else spec.quantum_bytes
    return ObservedClass(
        spec.minor, spec.parent, spec.rate_bps, spec.ceil_bps, quantum, sent_bytes, leaf_major=leaf_major
    )


class FakeClassifier:
    """The Classifier port in memory. ``table`` is what the kernel has; None: no table.

    A test that assigns to ``table`` causes no notification: while the table is watched, it is read again after 10 s.
    """

    def __init__(self, clock_ns: Callable[[], int] = boot_ns) -> None:
        self.table: NftTable | None = None
        self.applied: list[TableChange] = []
        self.faults: deque[Fault] = deque()
        """Each takes effect once, at the next change. REFUSED and BEFORE are the same here."""
        self.failing_reads = 0
        """How many of the next reads fail."""
        self._cache = TableCache(clock_ns)
        self._wake: Callable[[], None] | None = None

    def read(self) -> NftTable:
        """Return the table, cached as the real one is. Raises KernelError while ``failing_reads`` is above 0."""
        return self._cache.get(self._read)

    def _read(self) -> NftTable:
        if self.failing_reads > 0:
            self.failing_reads -= 1
            raise KernelError("nft -j list table inet slicebw: no answer")
        return self.table or NftTable(intact=False, present=False)

    def apply(self, change: TableChange) -> None:
        """Carry out one change as one transaction: all of it or none. Raises KernelError."""
        self._cache.invalidate()
        fault = self.faults.popleft() if self.faults else None
        if fault in (Fault.BEFORE, Fault.REFUSED):
            raise KernelError("nft -f -: no answer")
        self.table = _changed(self.table, change)
        self.applied.append(change)
        if fault is Fault.AFTER:
            raise KernelError("nft -f -: no answer")

    def watch(self, wake: Callable[[], None]) -> None:
        """From now on keep the table that was read last, and call ``wake`` after a notification of a change."""
        self._wake = wake
        self._cache.start()

    def invalidate(self) -> None:
        """Read the table again at the next call of :meth:`read`."""
        self._cache.invalidate()

    def close(self) -> None:
        """Stop watching."""
        self._cache.stop()
        self._wake = None

    def spoil(self, *, notified: bool = False) -> None:
        """Add a foreign rule to the table, as another program might. ``notified``: with a notification."""
        if self.table is not None:
            self.table = replace(self.table, intact=False)
        if notified and self._wake is not None:
            self._cache.invalidate()
            self._wake()


def _changed(table: NftTable | None, change: TableChange) -> NftTable | None:
    match change:
        case RemoveTable():
            return None
        case ReplaceTable(desired):
            return NftTable(dict(desired.slice_id_by_address), collapse(desired.exempt_destinations))
        case UpdateTable():
            if table is None:
                raise KernelError("No such file or directory; add element inet slicebw")
            return _updated(table, change)


def _updated(table: NftTable, change: UpdateTable) -> NftTable:
    slices = dict(table.slice_id_by_address)
    for address in change.remove:
        if slices.pop(address, None) is None:
            raise KernelError(f"No such file or directory; delete element {address}")
    for address, slice_id in change.add:
        if slices.setdefault(address, slice_id) != slice_id:
            raise KernelError(f"File exists; add element {address}")
    networks = set(table.exempt_destinations)
    for network in change.exempt_remove:
        if network not in networks:
            raise KernelError(f"element does not exist; delete element {network}")
        networks.remove(network)
    for network in change.exempt_add:
        if _overlaps(network, networks - {network}):
            raise KernelError(f"conflicting intervals specified; add element {network}")
        networks.add(network)
    return replace(table, slice_id_by_address=slices, exempt_destinations=frozenset(networks))


def _overlaps(network: str, others: set[str]) -> bool:
    one = ip_network(network)
    return any(other.version == one.version and one.overlaps(other) for other in map(ip_network, others))
