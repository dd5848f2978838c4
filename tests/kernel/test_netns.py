"""Entering network namespaces, and errors that name a missing privilege."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from slicebw.core.errors import UsageError
from slicebw.kernel import netns
from tests.support.topology import Namespace

HERE = Path("/proc/thread-self/ns/net")


def test_only_the_calling_thread_and_what_it_starts_move(kernel: None) -> None:
    other = Namespace("other")
    namespaces: dict[str, str] = {}
    before = str(HERE.readlink())

    def move() -> None:
        netns.enter(other.path)
        namespaces["thread"] = str(HERE.readlink())
        namespaces["child"] = subprocess.run(
            ["readlink", HERE], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        thread = threading.Thread(target=move)
        thread.start()
        thread.join()
        assert namespaces == {"thread": str(Path(other.path).readlink()), "child": str(Path(other.path).readlink())}
        assert namespaces["thread"] != before
        assert str(HERE.readlink()) == before
    finally:
        other.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/run/netns/nowhere", "cannot open network namespace /run/netns/nowhere: No such file or directory"),
        ("/etc/hostname", "/etc/hostname is not a network namespace"),
        ("/proc/self/ns/uts", "/proc/self/ns/uts is not a network namespace"),
    ],
)
def test_what_is_no_namespace_is_named(kernel: None, path: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        netns.enter(path)
    assert str(caught.value) == words


def run_without(capability: str, code: str) -> str:
    """Run code with python, without one capability. Returns its output."""
    drop = [f"--inh-caps=-{capability}", f"--bounding-set=-{capability}"]
    program = f"from slicebw.core.errors import UsageError\nfrom slicebw.kernel import netns\ntry:\n    {code}\n"
    program += "except UsageError as error:\n    print(error)\n"
    command = ["setpriv", *drop, sys.executable, "-c", program]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "operator"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_the_privilege_we_need_is_asked_of_the_kernel(namespace: Namespace) -> None:
    netns.check_privileges()


def test_without_net_admin_one_line_says_what_to_do(namespace: Namespace) -> None:
    assert run_without("net_admin", "netns.check_privileges()") == (
        "CAP_NET_ADMIN is missing: run as root, or add NET_ADMIN to securityContext.capabilities.add of the container"
    )


def test_without_sys_admin_one_line_says_what_to_do(namespace: Namespace) -> None:
    words = run_without("sys_admin", f"netns.enter({namespace.path!r})")
    assert words.startswith(f"cannot enter network namespace {namespace.path}: CAP_SYS_ADMIN is missing; run as root")
