"""``/metrics`` of a running agent and controller, with the API server and during its outage."""

import re
from pathlib import Path

from tests.api.cluster import Cluster, eventually, slice_bandwidth
from tests.api.proxy import FaultProxy
from tests.support.processes import Slicebw, agent
from tests.support.senders import Sender
from tests.support.topology import Topology


def metric(process: Slicebw, name: str, labels: str = "") -> float | None:
    """Return a sample's value; None if there is none."""
    found = re.search(rf"^slicebw_{name}{re.escape(labels)} (\S+)$", process.page("/metrics"), re.MULTILINE)
    return None if found is None else float(found[1])


def test_metrics_of_agent_and_controller_show_the_slice_and_an_outage(
    cluster: Cluster, proxy: FaultProxy, namespace: str, node: str, tmp_path: Path
) -> None:
    limits = {"maxRate": "10M", "budget": "2M", "threshold": "50%"}
    cluster.create(slice_bandwidth(namespace, "slice", period="1h", standard=limits))
    kubeconfig = ("--kubeconfig", str(proxy.kubeconfig))
    with Topology(pods=1) as net:
        (pod,) = net.pods
        cluster.create_pod(namespace, "pod", node, pod.address)
        with (
            agent(tmp_path, node, net.node.path, *kubeconfig) as running,
            Slicebw(tmp_path / "controller.log", "controller", *kubeconfig) as controller,
        ):
            standard = f'{{class="standard",namespace="{namespace}",slice="slice"}}'
            eventually(lambda: metric(running, "slice_rate_limit_bps", standard) == 10_000_000)
            assert metric(running, "slice_budget_bytes", standard) == 2_000_000
            eventually(lambda: (metric(running, "reports_written_total") or 0) >= 2, within_s=15)
            eventually(lambda: (metric(controller, "controller_status_writes_total") or 0) >= 1, within_s=15)
            assert metric(controller, "slice_budget_bytes", standard) is None
            assert metric(running, "api_unreachable_seconds") == metric(controller, "api_unreachable_seconds") == 0

            # During the outage limits hold and reports wait, and the metrics of both show it.
            proxy.cut()
            eventually(lambda: (metric(running, "api_unreachable_seconds") or 0) > 1, within_s=15)
            eventually(lambda: (metric(controller, "api_unreachable_seconds") or 0) > 1, within_s=15)
            assert (metric(running, "api_failures_total", '{kind="unreachable"}') or 0) >= 1
            with Sender(pod, net.sink.address, 8_000_000):
                eventually(lambda: metric(running, "slice_capped", standard) == 1, within_s=15)
            assert (metric(running, "slice_rate_limit_bps", standard) or 0) < 10_000_000
            eventually(lambda: (metric(running, "reports_waiting") or 0) >= 2)

            proxy.mend()
            eventually(lambda: metric(running, "reports_waiting") == 0, within_s=60)
            assert metric(running, "api_unreachable_seconds") == 0
            assert metric(running, "failed_passes_total") == 0
