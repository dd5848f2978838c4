"""Fixtures for tests on the real kernel, in namespaces that exist for one test."""

import os
import shutil
from collections.abc import Iterator

import pytest

from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.nft import NftClassifier
from tests.support.topology import Namespace, Topology

PROGRAMS = ("ip", "tc", "nft", "iperf3", "nsenter", "unshare")


def what_is_missing() -> str | None:
    """Return why this machine cannot run tests on the kernel, or None."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"programs are missing: {', '.join(absent)} (apt install iproute2 nftables iperf3 util-linux)"
    try:
        Namespace("probe").close()
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def kernel() -> None:
    """A kernel to test on. Without one: skip the test, or fail if SLICEBW_REQUIRE_KERNEL=1."""
    reason = what_is_missing()
    if reason is not None:
        do_without(reason)


def do_without(reason: str) -> None:
    """Skip the test because of a missing part of this machine; fail instead if SLICEBW_REQUIRE_KERNEL=1."""
    if os.environ.get("SLICEBW_REQUIRE_KERNEL") == "1":
        pytest.fail(f"SLICEBW_REQUIRE_KERNEL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture
def lab(kernel: None) -> Iterator[Topology]:
    """A node with two pods and no offloads: every packet is one as on a wire. The test runs inside the node."""
    with Topology(pods=2, offloads=False) as topology, topology.node.inside():
        yield topology


@pytest.fixture
def fast_lab(kernel: None) -> Iterator[Topology]:
    """The same with bundles of up to 64 KiB (GSO), as on a real node, for tests of rates."""
    with Topology(pods=2) as topology, topology.node.inside():
        yield topology


@pytest.fixture
def namespace(kernel: None) -> Iterator[Namespace]:
    """An empty network namespace. The test runs inside it."""
    empty = Namespace("empty")
    try:
        with empty.inside():
            yield empty
    finally:
        empty.close()


@pytest.fixture
def shaper() -> Iterator[HtbShaper]:
    """A shaper in the test's namespace."""
    made = HtbShaper()
    yield made
    made.close()


@pytest.fixture
def classifier() -> Iterator[NftClassifier]:
    """A classifier in the test's namespace."""
    made = NftClassifier()
    yield made
    made.close()
