"""Network namespaces of threads, and whether we may change what is in ours.

A network namespace belongs to a *thread*: sockets opened and processes started from it are in it too, and
other threads are not (setns(2), CLONE_NEWNET).
"""

import ctypes
import errno
import os
from typing import Final

from slicebw.core.errors import UsageError
from slicebw.kernel.netlink import Message, NetlinkSocket, RefusedError

_CLONE_NEWNET: Final = 0x40000000
_RTM_DELTCLASS: Final = 41
_TCMSG_BYTES: Final = 20


def enter(path: str) -> None:
    """Put the calling thread into the network namespace at ``path`` (``/proc/<pid>/ns/net``, ``/run/netns/<name>``).

    Raises UsageError where there is no such path, it is not a network namespace, or CAP_SYS_ADMIN is missing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open network namespace {path}: {error.strerror}") from error
    try:
        _setns(descriptor, path)
    finally:
        os.close(descriptor)


def _setns(descriptor: int, path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if libc.setns(descriptor, _CLONE_NEWNET) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EPERM:
        raise UsageError(
            f"cannot enter network namespace {path}: CAP_SYS_ADMIN is missing; run as root, "
            "or start inside the namespace (hostNetwork: true)"
        )
    if code == errno.EINVAL:
        raise UsageError(f"{path} is not a network namespace")
    raise UsageError(f"cannot enter network namespace {path}: {os.strerror(code)}")


def check_privileges() -> None:
    """Make sure that this thread may change traffic control in its network namespace. Raises UsageError.

    Asks the kernel rather than reading CapEff, which says nothing about the namespace we stand in: rtnetlink
    checks CAP_NET_ADMIN before anything else (net/core/rtnetlink.c, rtnetlink_rcv_msg), so a deletion on
    device number 0, which never exists, is refused either way and tells the two apart.
    """
    netlink = NetlinkSocket()
    try:
        netlink.command(Message(_RTM_DELTCLASS, 0, bytes(_TCMSG_BYTES)), "checking privileges")
    except RefusedError as error:
        if error.refusal.errno == errno.EPERM:
            raise UsageError(
                "CAP_NET_ADMIN is missing: run as root, or add NET_ADMIN to securityContext.capabilities.add "
                "of the container"
            ) from None
    finally:
        netlink.close()
