"""Enters network namespaces, and checks whether this process may change traffic control in its own one.

A network namespace belongs to a *thread*: sockets that it opens and processes that it starts are in it too, other
threads are not (setns(2), CLONE_NEWNET).
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
    """Move the calling thread into the network namespace at ``path`` (``/proc/<pid>/ns/net``, ``/run/netns/<name>``).

    Raises UsageError if the path does not exist or is not a network namespace, or if CAP_SYS_ADMIN is missing.
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
    """Check that this thread may change traffic control in its network namespace. Raises UsageError.

    CapEff would not tell, because it says nothing about the namespace that the thread is in. So this deletes a class on
    device number 0, which never exists. The kernel refuses that in any case, but with EPERM if CAP_NET_ADMIN is
    missing, which rtnetlink checks first (net/core/rtnetlink.c, rtnetlink_rcv_msg).
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
