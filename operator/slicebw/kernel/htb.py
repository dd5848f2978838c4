"""The HTB tree of the node's uplink: read whole, changed in few system calls, every refusal on its change."""

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
from slicebw.kernel.codec import LeafKind, encode
from slicebw.kernel.dump import ClassDecoder, Root, may_be_ours, owner, read_classes, read_root
from slicebw.kernel.netlink import Message, NetlinkSocket, Refusal, RefusedError
from slicebw.kernel.uplink import Link, Links
from slicebw.kernel.watch import Watcher, watch_tree

LINE_RATE_MAX_AGE_S: Final = 10.0
"""A device is asked for its speed this often at most: some drivers ask their firmware, with rtnl locked."""


@dataclass(slots=True)
class _Device:
    """What is remembered of a device, by its number; another device of the same name is another one."""

    leaf_kind: LeafKind | None = None
    """None until the kernel has accepted or refused fq_codel once."""
    line_rate_bps: int | None = None
    line_rate_until_s: float = field(default=float("-inf"))


class HtbShaper:
    """The Shaper port over netlink.

    Sockets are opened at first use, in the network namespace of the thread that calls; all calls come from that one
    thread. The class may be made in any other.
    """

    def __init__(self) -> None:
        self._netlink: NetlinkSocket | None = None
        self._links = Links()
        self._own_ports: set[int] = set()
        self._decoder = ClassDecoder()
        self._devices: dict[int, _Device] = {}
        self._ifindex: int | None = None
        self._watcher: Watcher | None = None

    def read(self, device: str | None) -> ObservedTree:
        """One complete dump of ``device``, or of the default route's device where None.

        Where the root qdisc is not ours there are no classes in it. Raises UplinkError, KernelError.
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
        self._own_ports.add(netlink.port)
        whose = owner(root, classes)
        return ObservedTree(
            device=link.name,
            root=whose,
            root_kind=root.kind,
            classes=classes if whose is RootQdisc.OURS else {},
            line_rate_bps=self._line_rate_bps(link),
        )

    def shaped_devices(self) -> list[str]:
        """Return the names of all devices whose root qdisc is ours, not only the uplink's. Raises KernelError."""
        return [link.name for link in self._links.all() if self._is_ours(link)]

    def apply(self, device: str, changes: Sequence[TreeChange], line_rate_bps: int) -> list[FailedChange]:
        """Carry out changes in order; a failed one does not stop the others. Raises UplinkError, KernelError.

        Nothing is changed under a root qdisc that does not bear our marks: where putting ours there fails, so does all
        that follows. To delete a class that is gone, or a tree that is, is no failure.
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
                root = self._root(link)
                ours = may_be_ours(root)
            elif ours:
                waiting.append(change)
            else:
                failed.append(FailedChange(change, f"the root qdisc of {device} is not ours: {root}"))
        return failed + self._change_classes(link, waiting, line_rate_bps)

    def watch(self, wake: Callable[[], None]) -> None:
        """From now on call ``wake``, from a thread of its own, when somebody else changes the tree or the uplink.

        Somebody else: whoever does it by another socket than ours, a second HtbShaper too. Raises KernelError.
        """
        self._socket()
        self._watcher = watch_tree(self._own_ports, lambda: self._ifindex, wake)

    def close(self) -> None:
        """Free sockets, end the watching thread. Leaves the kernel as it is."""
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
            return False  # it is gone, as pods' devices go
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

    def _change_root(
        self, link: Link, root: Root, change: CreateRoot | RemoveRoot, line_rate_bps: int
    ) -> list[FailedChange]:
        if isinstance(change, RemoveRoot):
            if root.handle == 0:
                return []
            if not may_be_ours(root):
                return [FailedChange(change, f"the root qdisc of {link.name} is not ours: {root}")]
        (message,) = encode(change, link.ifindex, line_rate_bps, LeafKind.PFIFO)
        try:
            self._socket().command(message, str(change))
        except RefusedError as error:
            return [FailedChange(change, str(error.refusal))]
        return []

    def _change_classes(self, link: Link, changes: Sequence[TreeChange], line_rate_bps: int) -> list[FailedChange]:
        """Carry out changes below the root: one batch, but for the first leaf qdisc on a device."""
        device = self._device(link)
        failed: list[FailedChange] = []
        start = 0
        if device.leaf_kind is None:
            while start < len(changes) and device.leaf_kind is None:
                end = _behind_first_leaf(changes, start)
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
        """Find out from the first leaf whether the kernel has fq_codel; where not, give that leaf a pfifo at once.

        A kernel without fq_codel refuses with ENOENT, and so does one without the class: only a leaf that a pfifo
        can be put under tells which it was.
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


def _behind_first_leaf(changes: Sequence[TreeChange], start: int) -> int:
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
    """What to say of a refused change; None where what it wanted holds all the same."""
    _, refusal = min(refused.items())
    missing = refusal.errno == errno.ENOENT
    match change:
        case DeleteClass() if missing:
            return None
        case ChangeClass(spec) | ResetTokens(spec) if missing and not refusal.detail:
            return f"there is no class {classid(spec.minor)} ({refusal})"
        case _:
            return str(refusal)
