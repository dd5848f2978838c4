"""One cluster for all tests here; every test has namespaces of its own.

``CLUSTER_KUBECONFIG=FILE CLUSTER_IMAGE=NAME`` runs tests on somebody's cluster, as its administrator, with an image of
slicebw that its nodes can pull. slicebw is installed there and taken off again. Tests that ask for ``cluster`` need
control over the machine: they are left out, and the summary names them with the reason that their mark
``needs_hack_cluster`` gives.

Else the cluster is one of hack/cluster with two nodes, started once. ``SLICEBW_CLUSTER=DIR`` takes the one that
hack/cluster keeps in DIR, started if need be and left running: for who writes tests. Without it, the cluster is the
tests' own, and nothing of it may be left when they end.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.api.cluster import HACK
from tests.cluster.install import installed
from tests.cluster.lab import AnyCluster, ClusterLab
from tests.cluster.traces import Traces
from tests.support.namespaces import namespace, new_namespace

__all__ = ["any_cluster", "cluster", "namespace", "new_namespace", "slicebw_image", "workload"]

GIVEN: Final = os.environ.get("CLUSTER_KUBECONFIG") or None
IMAGE: Final = os.environ.get("CLUSTER_IMAGE", "")
_LEFT_OUT: Final = pytest.StashKey[dict[str, str]]()


def _cache() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SLICEBW_CACHE") or Path(caches, "slicebw"))


def _output(*command: str, seconds: float = 1200) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what somebody's cluster cannot be used for."""
    ours = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    if GIVEN is None or not ours:
        return
    if not IMAGE:
        raise pytest.UsageError("CLUSTER_IMAGE is missing: name an image of slicebw that the cluster's nodes can pull")
    left_out = {item: _reason(item) for item in ours if "cluster" in getattr(item, "fixturenames", ())}
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))
    config.stash[_LEFT_OUT] = {item.nodeid: reason for item, reason in left_out.items()}


def _reason(item: pytest.Item) -> str:
    mark = item.get_closest_marker("needs_hack_cluster")
    return str(mark.args[0]) if mark else "controls the machine"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which tests were left out, and why."""
    left_out = config.stash.get(_LEFT_OUT, {})
    if left_out:
        terminalreporter.section("left out: needs hack/cluster (make test-cluster without CLUSTER_KUBECONFIG)")
        for name, reason in left_out.items():
            terminalreporter.line(f"{name}: {reason}")


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
def any_cluster(request: pytest.FixtureRequest) -> AnyCluster:
    """The cluster, for tests that need nothing but its API: somebody's, or hack/cluster's."""
    if GIVEN is None:
        lab: ClusterLab = request.getfixturevalue("cluster")
        return lab
    # Theirs, which fits their cluster, or that of .venv.
    kubectl = shutil.which("kubectl") or str(Path(sys.executable).parent / "kubectl")
    given = AnyCluster(Path(GIVEN).resolve(), Path(kubectl), IMAGE, workload=IMAGE)
    if installed(given):
        pytest.fail("slicebw is on that cluster already, and these tests take it off: use a cluster without it")
    if len(given.nodes) < 2:
        pytest.fail("that cluster has fewer than two nodes that take ordinary pods: add one")
    return given


@pytest.fixture(scope="session")
def slicebw_image(any_cluster: AnyCluster) -> str:
    """The image's name. On hack/cluster it is built of this folder as it is, and put on every node."""
    if not isinstance(any_cluster, ClusterLab):
        return IMAGE
    _output(str(HACK / "image"))
    any_cluster.load(HACK.parent / "build" / "slicebw-image.tar")
    return _output(str(HACK / "image"), "name")


@pytest.fixture
def workload(any_cluster: AnyCluster) -> str:
    """The image that tests run as pods."""
    return any_cluster.workload
