"""From PlanetLab to the kernel: kubectl applies what ``slicebw import-rspec`` prints, and a node enforces it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slicebw.api import kinds
from tests.api.cluster import Cluster, eventually
from tests.support.processes import ROOT, SLICEBW, agent
from tests.support.tc import classes
from tests.support.topology import Topology

M = 1_000_000
NAMESPACE = "princeton-codeen"
RECORD = {
    "timestamp": 1_200_000_000,
    "slivers": [
        {
            "name": "princeton_codeen",
            "attributes": [
                {"tagname": "net_min_rate", "value": "500"},
                {"tagname": "net_max_rate", "value": "10000"},
                {"tagname": "net_i2_max_rate", "value": "100000"},
                {"tagname": "net_max_kbyte", "value": "10546875"},
                {"tagname": "net_thresh_kbyte", "value": "9492187"},
                {"tagname": "net_share", "value": "3"},
            ],
        }
    ],
}


@pytest.fixture
def codeen(cluster: Cluster) -> Iterator[None]:
    """Create the namespace that the slice's name maps to."""
    cluster.core.create_namespace({"metadata": {"name": NAMESPACE}})
    yield
    cluster.delete_namespace(NAMESPACE)


def test_an_imported_slice_is_applied_and_holds(cluster: Cluster, codeen: None, node: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    printed = subprocess.run(
        [*SLICEBW, "import-rspec"],
        input=json.dumps(RECORD),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    (tmp_path / "slices.yaml").write_text(printed)
    for _ in range(2):  # applying it again changes nothing
        cluster.kubectl("apply", "-f", str(tmp_path / "slices.yaml"))
    with Topology(pods=1) as net:
        (pod,) = net.pods
        cluster.create_pod(NAMESPACE, "pod", node, pod.address)
        with agent(tmp_path, node, net.node.path, "--kubeconfig", str(cluster.kubeconfig)):

            def limits() -> tuple[int, ...]:
                shown = classes(net.node, net.uplink)
                standard, exempt = shown.get("1:1001"), shown.get("1:2001")
                return (standard.rate_bps, standard.ceil_bps, exempt.ceil_bps) if standard and exempt else ()

            eventually(lambda: limits() == (M // 2, 10 * M, 100 * M))
            usage = eventually(lambda: cluster.read(kinds.BANDWIDTH_USAGE, f"codeen.{node}", NAMESPACE))
            assert usage["standard"]["bytesBudget"] == 10_800 * M
            row = cluster.kubectl("get", "slbw", "-n", NAMESPACE).splitlines()[1]
            assert row.split()[0] == "codeen"
            assert "quantum 4800" in net.node.run("tc", "-d", "class", "show", "dev", net.uplink)
    cluster.delete(kinds.NODE_BANDWIDTH, node)
