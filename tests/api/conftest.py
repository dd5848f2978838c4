"""Fixtures of the API tests: one control plane for all, and namespaces and node names for each test."""

import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slicebw.api import kinds
from slicebw.core.desired import SliceSpec
from slicebw.kube import connection
from slicebw.kube.agent_feed import ApiFeed
from slicebw.kube.api_thread import ApiThread
from tests.api.cluster import Cluster, eventually
from tests.api.proxy import FaultProxy
from tests.support.namespaces import namespace, new_namespace

__all__ = ["any_cluster", "cluster", "connect", "namespace", "new_namespace", "node", "outage", "proxy", "start_feed"]

_numbers = itertools.count(1)


class Watcher:
    """A feed, and how often it woke its agent."""

    def __init__(self, api: ApiThread, node: str) -> None:
        """Start the feed."""
        self.api = api
        self.wakes = 0
        self.feed = ApiFeed(api, node, self._wake)
        self.feed.start()

    def _wake(self) -> None:
        self.wakes += 1

    def synced(self, within_s: float = 10.0) -> None:
        """Wait until everything has been listed once."""
        eventually(lambda: self.feed.desired_state().synced, within_s)

    def slices(self, namespace: str) -> dict[str, SliceSpec]:
        """Return the slices of one namespace by name."""
        return {one.key.name: one for one in self.feed.desired_state().slices if one.key.namespace == namespace}

    def pods(self) -> dict[str, tuple[str, ...]]:
        """Return the addresses of this node's pods by the pods' names."""
        return {one.name: one.addresses for one in self.feed.desired_state().pods}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a real etcd and API server with slicebw's kinds.

    If that is impossible the tests are skipped, or fail if ``SLICEBW_REQUIRE_API`` (or ``CI``) is set.
    """
    try:
        made = Cluster(tmp_path_factory.mktemp("control-plane"))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        if os.environ.get("SLICEBW_REQUIRE_API") or os.environ.get("CI"):
            raise
        pytest.skip(f"no control plane: {error}")
    try:
        made.install_crds()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def any_cluster(cluster: Cluster) -> Cluster:
    """The cluster in which the fixtures of tests.support.namespaces make namespaces."""
    return cluster


@pytest.fixture
def node(cluster: Cluster) -> Iterator[str]:
    """Create a Node object for one test, without a kubelet."""
    name = f"node-{next(_numbers)}"
    cluster.core.create_node({"metadata": {"name": name}})
    yield name
    if any(item.metadata.name == name for item in cluster.core.list_node().items):
        cluster.core.delete_node(name)


@pytest.fixture
def outage(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, for tests that stop its API server or remove its kinds. Both are restored afterwards."""
    yield cluster
    cluster.start()
    missing = [kind.plural for kind in kinds.ALL if not cluster.has_crd(kind.plural)]
    if missing:
        cluster.install_crds(*missing)


@pytest.fixture
def proxy(cluster: Cluster, tmp_path: Path) -> Iterator[FaultProxy]:
    """A proxy to the API server that a test can break for itself alone."""
    made = FaultProxy(cluster.kubeconfig, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def connect() -> Iterator[Callable[[Path], ApiThread]]:
    """Start API threads by kubeconfig, and stop them afterwards."""
    made = []

    def start(kubeconfig: Path) -> ApiThread:
        api = ApiThread(lambda: connection.load(str(kubeconfig)), "slicebw-test")
        api.start()
        made.append(api)
        return api

    yield start
    for api in made:
        api.stop()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith(("api", "watch "))]
    assert left == [], "a stopped API thread leaves no threads, whatever the API server does"


@pytest.fixture
def start_feed(connect: Callable[[Path], ApiThread]) -> Iterator[Callable[..., Watcher]]:
    """Start feeds for a node by kubeconfig, and stop them afterwards."""
    made = []

    def start(kubeconfig: Path, node: str) -> Watcher:
        watcher = Watcher(connect(kubeconfig), node)
        made.append(watcher)
        return watcher

    yield start
    for watcher in made:
        watcher.feed.stop()
