"""What the agent loads, with a cluster and without one; the other commands are in tests/unit/cli/test_imports.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import modules
from tests.support.topology import Topology


@pytest.fixture
def net(kernel: None) -> Iterator[Topology]:
    """A node without pods."""
    with Topology(pods=0) as made:
        yield made


def loaded_by_agent(net: Topology, folder: Path, *arguments: str) -> modules.Modules:
    """Run an agent on the node until it has started, and stop it."""
    options = ("agent", "--node", "node-a", "--state-dir", str(folder / "state"), *arguments)
    return modules.run_until("agent started", folder, *options, inside=net.node.command())


def test_an_agent_without_a_cluster_loads_nothing_that_talks_to_one(net: Topology, tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    loaded = loaded_by_agent(net, tmp_path, "--manifests", str(tmp_path / "manifests"))
    assert modules.imported(loaded, "watchfiles", "pyroute2") == ["watchfiles", "pyroute2"]
    assert modules.imported(loaded, "kopf", "aiohttp", "slicebw.kube", "slicebw.controller", "prometheus_client") == []


def test_an_agent_with_a_cluster_loads_no_folder_and_needs_no_client_library(net: Topology, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(modules.AWAY)
    loaded = loaded_by_agent(net, tmp_path, "--kubeconfig", str(tmp_path / "kubeconfig"))
    assert modules.imported(loaded, "kopf", "pyroute2") == ["kopf", "pyroute2"]
    unneeded = ("watchfiles", "slicebw.folder", "slicebw.controller", "prometheus_client", "kubernetes")
    assert modules.imported(loaded, *unneeded) == []
