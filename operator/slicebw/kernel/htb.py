"""The HTB tree of the node's uplink: reads it whole, changes it in few system calls, and names each refused change."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from slicebw.core.dataplane import (
    ChangeClass,
    CreateClass,
    CreateRoot,
    DeleteClass,
    Device,
    FailedChange,
    ObservedTree,
    RemoveRoot,
    ReplaceLeafQdisc,
    ResetTokens,
    RootQdisc,
    TreeChange,
    classid,
)
from slicebw.core.errors import UplinkError
from slicebw.kernel.codec import LeafKind, delete_root, encode
from slicebw.kernel.dump import MQ, ClassDecoder, Root, is_default, may_be_ours, owner, read_classes, read_root
from slicebw.kernel.netlink import Message, NetlinkSocket, Refusal, RefusedError
from slicebw.kernel.uplink import Link, Links
from slicebw.kernel.watch import Watcher, watch_tree

LINE_RATE_MAX_AGE_S: Final = 10.0
"""A device's speed is read at most this often: some drivers ask their firmware, and hold the rtnl lock meanwhile."""

_QUEUED_KINDS: Final = frozenset({"", "ifb", "tun"})
"""The kinds of device that get an mq from the kernel if they have several queues. Others (veth, bond) get noqueue."""


@dataclass(slots=True)
class _Device:
    """What is remembered of a device. The key is its number: a new device of the same name is another one."""

    leaf_kind: LeafKind | None = None
    """The leaf qdisc that the kernel has; None until it has accepted or refused fq_codel once."""
    line_rate_bps: int | None = None
    line_rate_until_s: float = field(default=float("-inf"))
    had_mq: bool = False
    """Whether its root was an mq when last read without our tree. A veth, say, has one only if it was asked for."""


class HtbShaper:
    """The Shaper port over netlink.

    All calls come from one thread. Sockets are opened at first use, in that thread's network namespace, so the object
    may be made in another thread.
    """

    def __init__(self) -> None:
        self._netlink: NetlinkSocket | None = None
        self._links = Links()
        self._own_ports: set[int] = set()
        self._decoder = ClassDecoder()
        self._devices: dict[int, _Device] = {}
        self._ifindex: int | None = None
        self._watcher: Watcher | None = None

    def find(self, device: Device | str | None) -> Device | None:
        """Return a device under its present name; None: that of the default route. Returns None if there is none.

        A Device of this network namespace is looked up by its number, any other by its name. Raises KernelError.
        """
        netns = self._links.namespace()
        wanted: str | int | None
        if isinstance(device, Device):
            wanted = device.ifindex if device.ifindex and device.netns == netns else device.name
        else:
            wanted = device
        link = self._links.lookup(wanted)
        return None if link is None else Device(link.name, link.ifindex, netns)

    def read(self, device: str | int | None) -> ObservedTree:
        """Read the whole tree of a device by name or number; None: the default route's device.

        If the root qdisc is not ours, the result has no classes. Raises UplinkError, KernelError.
        """
        netlink = self._socket()
        try:
            link = self._links.find(device)
        except UplinkError:
            self._ifindex = None
            raise
        self._ifindex = link.ifindex
        root = self._root(link)
        classes = read_classes(netlink, link.ifindex, self._decoder) if may_be_ours(root) else {}
        self._own_ports.add(netlink.port)  # again: after a broken dump there is a new socket, with another port
        whose = owner(root, classes)
        return ObservedTree(
            device=link.name,
            root=whose,
            root_kind=root.kind,
            classes=classes if whose is RootQdisc.OURS else {},
            line_rate_bps=self._line_rate_bps(link),
            ifindex=link.ifindex,
            netns=self._links.namespace(),
            lost_queues=self._lost_queues(link, root),
        )

    def shaped_devices(self) -> list[str]:
        """Return the names of all devices whose root qdisc is ours, not only the uplink's. Raises KernelError."""
        return [link.name for link in self._links.all() if self._is_ours(link)]

    def apply(self, device: str | int, changes: Sequence[TreeChange], line_rate_bps: int) -> list[FailedChange]:
        """Carry out changes in order. Returns those that the kernel refused; they do not stop the others.

        Under a root qdisc that is not ours nothing is changed: if CreateRoot fails, so do all changes after it.
        Deleting a class or a tree that does not exist is no failure. Raises UplinkError, KernelError.
        """
        link = self._links.find(device)
        root = self._root(link)
        failed: list[FailedChange] = []
        ours = may_be_ours(root)
        waiting: list[TreeChange] = []
        for change in changes:
            if isinstance(change, CreateRoot | RemoveRoot):
                failed += self._change_classes(link, waiting, line_rate_bps)
                waiting = []
                failed += self._change_root(link, root, change, line_rate_bps)
                root = self._root(link)  # what is there now decides, not what the change was to do
                ours = may_be_ours(root)
            elif ours:
                waiting.append(change)
            else:
                failed.append(FailedChange(change, f"the root qdisc of {link.name} is not ours: {root}"))
        return failed + self._change_classes(link, waiting, line_rate_bps)

    def watch(self, wake: Callable[[], None]) -> None:
        """From now on call ``wake``, from a thread of its own, when another program changes the tree or the uplink.

        Any other socket counts as another program, also that of a second HtbShaper. Raises KernelError.
        """
        self._socket()  # its port must be known before the first notification of a change of ours
        self._watcher = watch_tree(self._own_ports, lambda: self._ifindex, wake)

    def close(self) -> None:
        """Close sockets, and end the watching thread. Changes nothing in the kernel."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        self._links.close()

    def _socket(self) -> NetlinkSocket:
        if self._netlink is None:
            self._netlink = NetlinkSocket()
        self._own_ports.add(self._netlink.port)
        return self._netlink

    def _is_ours(self, link: Link) -> bool:
        try:
            root = self._root(link)
            if not may_be_ours(root):
                return False
            classes = read_classes(self._socket(), link.ifindex, self._decoder)
        except RefusedError:
            return False  # the device was removed meanwhile, as pods' devices often are
        return owner(root, classes) is RootQdisc.OURS

    def _root(self, link: Link) -> Root:
        return read_root(self._socket(), link.ifindex)

    def _device(self, link: Link) -> _Device:
        return self._devices.setdefault(link.ifindex, _Device())

    def _line_rate_bps(self, link: Link) -> int | None:
        device = self._device(link)
        now_s = monotonic()
        if now_s >= device.line_rate_until_s:
            device.line_rate_bps = self._links.line_rate_bps(link)
            device.line_rate_until_s = now_s + LINE_RATE_MAX_AGE_S
        return device.line_rate_bps

    def _lost_queues(self, link: Link, root: Root) -> int:
        device = self._device(link)
        if not may_be_ours(root):
            device.had_mq = root.kind == MQ
        several = link.tx_queues > 1 and (device.had_mq or link.kind in _QUEUED_KINDS)
        return link.tx_queues if several else 0

    def _change_root(
        self, link: Link, root: Root, change: CreateRoot | RemoveRoot, line_rate_bps: int
    ) -> list[FailedChange]:
        if isinstance(change, RemoveRoot):
            if is_default(root):  # the tree is gone already
                return []
            if not may_be_ours(root):
                return [FailedChange(change, f"the root qdisc of {link.name} is not ours: {root}")]
        messages = encode(change, link.ifindex, line_rate_bps, LeafKind.PFIFO)  # the kind does not matter: no leaf
        if root.bare:
            # The kernel does not add a root over one that was attached on request, nor replace one of the same handle.
            messages = [delete_root(link.ifindex, root.handle), *messages]
        (refused,) = self._socket().batch([messages], str(change))
        return [FailedChange(change, str(refusal)) for _, refusal in sorted(refused.items())[:1]]

    def _change_classes(self, link: Link, changes: Sequence[TreeChange], line_rate_bps: int) -> list[FailedChange]:
        """Carry out changes below the root, in one batch. Until the device's leaf kind is known, split after leaves."""
        device = self._device(link)
        failed: list[FailedChange] = []
        start = 0
        if device.leaf_kind is None:
            while start < len(changes) and device.leaf_kind is None:
                end = _after_first_leaf(changes, start)
                failed += self._batch(link, changes[start:end], line_rate_bps, LeafKind.FQ_CODEL, learn=device)
                start = end
        return failed + self._batch(link, changes[start:], line_rate_bps, device.leaf_kind or LeafKind.FQ_CODEL)

    def _batch(
        self,
        link: Link,
        changes: Sequence[TreeChange],
        line_rate_bps: int,
        leaf_kind: LeafKind,
        learn: _Device | None = None,
    ) -> list[FailedChange]:
        if not changes:
            return []
        groups = [encode(change, link.ifindex, line_rate_bps, leaf_kind) for change in changes]
        refusals = self._socket().batch(groups, f"changing the tree of {link.name}")
        if learn is not None and _makes_leaf(changes[-1]):
            fallback = encode(changes[-1], link.ifindex, line_rate_bps, LeafKind.PFIFO)[-1]
            self._learn_leaf_kind(learn, fallback, len(groups[-1]) - 1, refusals[-1])
        return [
            FailedChange(change, reason)
            for change, refused in zip(changes, refusals, strict=True)
            if refused and (reason := _reason(change, refused)) is not None
        ]

    def _learn_leaf_kind(self, device: _Device, fallback: Message, last: int, refused: dict[int, Refusal]) -> None:
        """Find out from the first leaf whether the kernel has fq_codel. If not, give that leaf a pfifo at once.

        The kernel refuses with ENOENT if it has no fq_codel, and also if the class does not exist. It was the first if
        the class then accepts a pfifo.
        """
        if not refused:
            device.leaf_kind = LeafKind.FQ_CODEL
        elif (
            refused.keys() == {last}
            and refused[last].errno == errno.ENOENT
            and not self._socket().batch([[fallback]], "giving a class its leaf qdisc")[0]
        ):
            device.leaf_kind = LeafKind.PFIFO
            refused.clear()


def _after_first_leaf(changes: Sequence[TreeChange], start: int) -> int:
    """Return the position after the first change, from ``start`` on, that makes a leaf qdisc; else the end."""
    for position in range(start, len(changes)):
        if _makes_leaf(changes[position]):
            return position + 1
    return len(changes)


def _makes_leaf(change: TreeChange) -> bool:
    match change:
        case CreateClass(spec):
            return spec.leaf_major != 0
        case ResetTokens() | ReplaceLeafQdisc():
            return True
        case _:
            return False


def _reason(change: TreeChange, refused: dict[int, Refusal]) -> str | None:
    """Return why a change was refused; None if its aim is met nevertheless."""
    _, refusal = min(refused.items())
    missing = refusal.errno == errno.ENOENT
    match change:
        case DeleteClass() if missing:
            return None
        case ChangeClass(spec) | ResetTokens(spec) if missing and not refusal.detail:
            return f"there is no class {classid(spec.minor)} ({refusal})"
        case _:
            return str(refusal)
