"""What a node needs before it starts: the configuration of its parts, and its cgroups."""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from hack.lab.certificates import make_node_certificate, write_kubeconfig
from hack.lab.cluster_images import PAUSE
from hack.lab.cluster_layout import Layout, number_of, pod_network
from hack.lab.console import LabError, wait_until

_CGROUPS: Final = Path("/sys/fs/cgroup")
_UNIFIED: Final = _CGROUPS / "cgroup.controllers"
"""There in version 2 of cgroups alone; lists the controllers."""
_SUBTREE: Final = _CGROUPS / "cgroup.subtree_control"
_FIRST_SERIAL: Final = 100


def configure_node(layout: Layout, name: str, server: str) -> None:
    """Write the configuration of a node's containerd, CNI plugins and kubelet into its folder.

    Args:
        layout: of the cluster.
        name: of the node.
        server: the API server's address, with https://.
    """
    folder = layout.node_folder(name)
    for part in ("cni", "var-lib", "var-log"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "containerd.toml").write_text(_containerd(layout, folder))
    (folder / "cni" / "pods.conflist").write_text(_cni(name))
    (folder / "kubelet.yaml").write_text(_kubelet(layout, name))
    pki, kubeconfig = layout.control_plane_folder / "pki", folder / "kubeconfig"
    made_for = (pki / "clients.crt").stat().st_mtime_ns
    if not kubeconfig.exists() or kubeconfig.stat().st_mtime_ns < made_for:
        credentials = make_node_certificate(folder, pki, name, _FIRST_SERIAL + number_of(name))
        write_kubeconfig(kubeconfig, server, pki / "ca.crt", "kubelet", credentials)


def _containerd(layout: Layout, folder: Path) -> str:
    shown = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    # The kernel does not put one overlay upon another.
    snapshotter = "native" if shown.stdout.strip() == "overlayfs" else "overlayfs"
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
# Without CAP_SYS_RESOURCE, as in many a container or sandbox, no pod would start.
restrict_oom_score_adj = true
# Its profile would be loaded into the machine's kernel.
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{layout.packaged}/usr/sbin/runc"
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{layout.packaged}/usr/lib/cni"
conf_dir = "{folder}/cni"
"""


def _cni(name: str) -> str:
    ranges = f'[[{{"subnet": "{pod_network(name)}"}}]]'
    return f"""{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {{"type": "host-local", "ranges": {ranges}, "routes": [{{"dst": "0.0.0.0/0"}}]}}
}}]}}
"""


def _kubelet(layout: Layout, name: str) -> str:
    return f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {layout.control_plane_folder}/pki/clients.crt}}
authorization: {{mode: Webhook}}
cgroupDriver: cgroupfs
# A kubelet ends what it finds in cgroups of pods that it does not know, so each has a root of its own.
cgroupRoot: {layout.cgroup(name)}
enforceNodeAllocatable: []
failSwapOn: false
# The disk is the machine's: a kubelet is not to evict pods because of how full that is.
evictionHard: {{nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}}
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
# On cluster-node's copies of them, not the kernel's own.
protectKernelDefaults: true
resolvConf: /dev/null
volumePluginDir: /var/lib/kubelet/volume-plugins
"""


# --- cgroups ---


def check_cgroups() -> None:
    """Raise LabError where the kernel or this container has no cgroups that a kubelet can use."""
    if _UNIFIED.exists():
        missing = {"cpu", "cpuset", "memory", "pids"} - set(_UNIFIED.read_text().split())
        if missing:
            raise LabError(
                f"kubelet needs the cgroup controllers {', '.join(sorted(missing))}, which {_UNIFIED} does not list;"
                " enable them where this machine or container was started"
            )
        return
    for controller in ("cpu", "cpuacct", "cpuset", "memory", "pids"):
        folder = _CGROUPS / controller
        if not os.access(folder / "cgroup.procs", os.W_OK):
            raise LabError(
                f"{folder} cannot be written; kubelet needs cgroups (version 2, or 1 with {controller}):"
                " mount them, or start this container with them writable"
            )


def _cgroup_folders(layout: Layout, node: str) -> Sequence[Path]:
    """The node's cgroup in every hierarchy of the machine: several with version 1, one with version 2."""
    hierarchies = [_CGROUPS] if _UNIFIED.exists() else sorted(one for one in _CGROUPS.iterdir() if one.is_dir())
    return [Path(f"{hierarchy}{layout.cgroup(node)}") for hierarchy in hierarchies]


def make_cgroups(layout: Layout, node: str) -> None:
    """Make the cgroups of a node's pods. The node's own processes stay in those of whoever starts it."""
    if _UNIFIED.exists():
        # kubelet takes a cgroup for missing where it has not all of these that the machine has.
        there, passed_on = _UNIFIED.read_text().split(), _SUBTREE.read_text().split()
        for controller in ("cpu", "cpuset", "hugetlb", "memory", "pids"):
            if controller in there and controller not in passed_on:
                _SUBTREE.write_text(f"+{controller}")
    for folder in _cgroup_folders(layout, node):
        if os.access(folder.parent, os.W_OK):
            folder.mkdir(exist_ok=True)


def remove_cgroups(layout: Layout, node: str) -> None:
    """Remove the cgroups of a node's pods, as soon as their processes have ended."""
    if not layout.network_file.exists():
        return
    for folder in _cgroup_folders(layout, node):
        if not wait_until(lambda folder=folder: _remove_cgroup(folder), f"the processes of {node} to end", 20):  # type: ignore[misc]
            raise LabError(f"cannot remove {folder}; see which processes are in there: cat {folder}/**/cgroup.procs")


def _remove_cgroup(folder: Path) -> bool:
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # processes are in there, or it went by itself
            Path(path).rmdir()
    return not folder.exists()
