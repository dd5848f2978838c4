"""One cluster of two nodes for all tests here, started once; every test has namespaces of its own.

``SLICEBW_CLUSTER=DIR`` runs them on a cluster that hack/cluster keeps in DIR, started if need be and left running:
for who writes tests. Else it is one of the tests' own, and nothing of it may be left when they end.
"""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.cluster import HACK
from tests.cluster.lab import ClusterLab
from tests.cluster.traces import Traces
from tests.support.namespaces import namespace, new_namespace

__all__ = ["cluster", "namespace", "new_namespace", "slicebw_image", "workload"]

WORKLOAD = "slicebw.io/test-workload:bookworm"


def _cache() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SLICEBW_CACHE") or Path(caches, "slicebw"))


def _output(*command: str, seconds: float = 1200) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.fixture(scope="session")
def cluster() -> Iterator[ClusterLab]:
    """The cluster. Where there can be none: skip, or fail if SLICEBW_REQUIRE_KERNEL=1 says that there must be."""
    if os.geteuid() != 0:
        reason = "a cluster needs root"
        if os.environ.get("SLICEBW_REQUIRE_KERNEL") == "1":
            pytest.fail(f"SLICEBW_REQUIRE_KERNEL=1, but {reason}")
        pytest.skip(reason)
    kept = os.environ.get("SLICEBW_CLUSTER")
    home = Path(kept) if kept else _cache() / "test-cluster"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "session").open("w") as session:
        # One session at a time: what a session that was killed has left is removed by the next one.
        fcntl.flock(session, fcntl.LOCK_EX)
        if not kept:
            _output(str(HACK / "cluster"), "down", "--dir", str(home))
        lab = ClusterLab(home)
        lab.load(Path(_output(str(HACK / "cluster-images"), "workload")))
        try:
            yield lab
        finally:
            if not kept:
                traces = Traces(home)
                lab.stop()
                assert traces.left() == []


@pytest.fixture(scope="session")
def slicebw_image(cluster: ClusterLab) -> str:
    """The image of slicebw as it is in this folder, built and put on every node; its name."""
    _output(str(HACK / "image"))
    cluster.load(HACK.parent / "build" / "slicebw-image.tar")
    return _output(str(HACK / "image"), "name")


@pytest.fixture
def workload(cluster: ClusterLab) -> str:
    """The image that tests run as pods: iperf3, curl, ping, busybox."""
    return WORKLOAD
