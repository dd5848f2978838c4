"""Pods that two slices select, pods that cannot be limited, and slices deleted and created with their namespace."""

import json
from pathlib import Path
from typing import Any

from slicebw.api import kinds
from tests.api.cluster import eventually, slice_bandwidth
from tests.api.test_slice_limited import Lab, M, lab
from tests.support.processes import Slicebw

__all__ = ["lab"]  # the fixture


def accepted(lab: Lab, name: str) -> dict[str, Any]:
    """Return the condition Accepted of a SliceBandwidth in the first namespace; empty while there is none."""
    return condition(lab, name, "Accepted")


def condition(lab: Lab, name: str, kind: str) -> dict[str, Any]:
    """Return a condition of a SliceBandwidth in the first namespace; empty while there is none."""
    obj = json.loads(lab.cluster.kubectl("get", "slbw", name, "-n", lab.namespaces[0], "-o", "json"))
    conditions: list[dict[str, Any]] = obj.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def test_the_older_slice_keeps_the_pod_and_the_younger_ones_condition_says_so_until_it_gets_it(
    lab: Lab, tmp_path: Path
) -> None:
    namespace = lab.namespaces[0]
    lab.apply(0, maxRate="10M")
    first = lab.classid(0)
    with Slicebw(
        tmp_path / "c.log", "controller", "--kubeconfig", str(lab.cluster.kubeconfig), "--status-interval", "1s"
    ):
        older_s = lab.cluster.read(kinds.SLICE_BANDWIDTH, "slice", namespace)["metadata"]["creationTimestamp"]

        def make_younger() -> bool:
            """Create it in another second: in the same one it would be the older, because its name sorts first."""
            made = lab.cluster.create(slice_bandwidth(namespace, "another", standard={"maxRate": "20M"}))
            if made["metadata"]["creationTimestamp"] != older_s:
                return True
            lab.cluster.delete(kinds.SLICE_BANDWIDTH, "another", namespace)
            return False

        eventually(make_younger)
        refused = eventually(lambda: (one := accepted(lab, "another")).get("status") == "False" and one, within_s=20)
        assert f"{namespace}/pod" in refused["message"]
        assert f"{namespace}/slice" in refused["message"]
        assert lab.ceil_bps(first) == 10 * M
        eventually(lambda: condition(lab, "another", "Enforced").get("reason") == "NoPods", within_s=20)
        eventually(lambda: condition(lab, "slice", "Enforced").get("status") == "True", within_s=20)

        lab.cluster.delete(kinds.SLICE_BANDWIDTH, "slice", namespace)
        eventually(lambda: accepted(lab, "another").get("status") == "True", within_s=20)
        eventually(lambda: condition(lab, "another", "Enforced").get("status") == "True", within_s=20)
        usage = eventually(lambda: lab.cluster.read(kinds.BANDWIDTH_USAGE, f"another.{lab.node}", namespace))
        second = eventually(lambda: usage["standard"].get("classId") or reread(lab, "another").get("classId"))
        assert eventually(lambda: lab.ceil_bps(second) == 20 * M)


def reread(lab: Lab, name: str) -> dict[str, Any]:
    """Read the standard class of a usage again."""
    found: dict[str, Any] = lab.cluster.read(kinds.BANDWIDTH_USAGE, f"{name}.{lab.node}", lab.namespaces[0])["standard"]
    return found


def test_pods_that_cannot_be_limited_are_named(lab: Lab) -> None:
    namespace = lab.namespaces[0]
    lab.apply(0, maxRate="10M")
    lab.classid(0)
    lab.cluster.create_pod(namespace, "pending", lab.node)
    spec = {"nodeName": lab.node, "hostNetwork": True, "containers": [{"name": "main", "image": "none"}]}
    lab.cluster.core.create_namespaced_pod(namespace, {"metadata": {"name": "host"}, "spec": spec})
    status = {"phase": "Running", "podIP": "192.0.2.1"}
    lab.cluster.core.patch_namespaced_pod_status("host", namespace, {"status": status})

    def problems() -> dict[str, str]:
        return {one["pod"]: one["reason"] for one in lab.usage(0).get("problems", [])}

    eventually(lambda: len(problems()) == 2, within_s=10)
    named = problems()
    assert "hostNetwork" in named[f"{namespace}/host"]
    assert "no address yet" in named[f"{namespace}/pending"]
    table = lab.net.node.run("nft", "list", "table", "inet", "slicebw")
    assert "192.0.2.1" not in table

    # A finished pod is no problem any more, and its address may belong to another pod.
    finished = lab.net.pod(0).address
    lab.cluster.core.patch_namespaced_pod_status("pod", namespace, {"status": {"phase": "Succeeded"}})
    eventually(lambda: finished not in lab.net.node.run("nft", "list", "table", "inet", "slicebw"))


def test_a_capped_slice_is_not_freed_by_deleting_its_namespace_and_making_it_again(lab: Lab) -> None:
    namespace, pod = lab.namespaces[0], lab.net.pod(0)
    spec = {"period": "10m", "standard": {"maxRate": "20M", "budget": "4M", "threshold": "50%"}}
    lab.cluster.create(slice_bandwidth(namespace, "slice", **spec))
    first = lab.classid(0)
    flow = lab.net.traffic(pod, lab.net.sink.address, 30)
    before = eventually(lambda: (usage := lab.usage(0))["standard"]["capped"] and usage, within_s=10)
    flow.stop()

    lab.cluster.delete_namespace(namespace)
    eventually(lambda: lab.ceil_bps(first) is None, within_s=10)
    lab.cluster.core.create_namespace({"metadata": {"name": namespace}})
    lab.cluster.create_pod(namespace, "pod", lab.node, pod.address, pod.address6)
    lab.cluster.create(slice_bandwidth(namespace, "slice", **spec))

    after = eventually(lambda: (usage := lab.usage(0)) and usage["standard"]["capped"] and usage, within_s=15)
    assert after["periodStart"] == before["periodStart"]
    assert after["standard"]["classId"] == first
    assert after["standard"]["bytesUsed"] >= before["standard"]["bytesUsed"]
    assert (lab.ceil_bps(first) or 20 * M) < 1 * M
    capped = [event for event in lab.cluster.events(namespace) if event.reason == "BandwidthCapped"]
    assert capped == []  # its Event of this period is in the namespace that is gone
