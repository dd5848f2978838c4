"""Runs a real Kubernetes cluster on this machine from Debian packages alone.

Every node has a network of its own with an uplink, and its own kubelet and containerd.

Usage:
  hack/cluster up     [--nodes N]     start what is not running, wait until all nodes are Ready, print the
                                      path of the kubeconfig (default: 2 nodes, or those there are)
  hack/cluster down                   stop everything and remove what was made; only the logs stay
               --only NODE            ... power one node off, as in an outage: its disk stays, up boots it
  hack/cluster status                 say what runs; exit code 0: all of it, 3: not all
  hack/cluster env                    print shell code that points KUBECONFIG and PATH to it:
                                      eval "$(hack/cluster env)"
  hack/cluster load   IMAGE.tar...    put images (docker or OCI archives) on every node; pods use them with
                                      imagePullPolicy: IfNotPresent or Never
  hack/cluster exec   NODE COMMAND... run a command within a node, as root, or in wan, the network outside
                                      (hack/cluster exec node-1 tc -s class show dev uplink0)
  hack/cluster pid    NODE            print the process whose /proc/PID/ns the node (or wan) is

  hack/cluster prepare                build and fetch all that up needs, and start nothing

All take --dir DIR, the folder that holds everything there is to the cluster (default:
$SLICEBW_CACHE/cluster); those of one DIR wait for each other. With several DIRs several run side by side.

    pods 10.244.1.0/24 ── cni0 [node-1] uplink0 ──┐
    pods 10.244.2.0/24 ── cni0 [node-2] uplink0 ──┤ [wan] 203.0.113.1 and 198.51.100.1, outside the cluster
    API server (hack/control-plane, this machine) ┘

A node has 198.18.X.(10+i) on uplink0, X chosen for each DIR, and its default route by it. Nodes route
to each other's pods; the world outside sees pods by their own addresses (nothing is masqueraded there),
so that what arrives can be told apart by pod. Pods reach the API server with their service accounts.
There is no DNS and no Service but kubernetes. A node's disk (/var/lib, /var/log) is below DIR/nodes/NODE,
and so are the logs: containerd.log, kubelet.log.

Needs Debian 12, root, and 4 GB in $SLICEBW_CACHE. The first up compiles Kubernetes (hack/kubernetes, about
8 minutes on 2 cores); later ones build nothing, need no network and take half a minute. Interrupt it
whenever you like: up goes on from there, down removes what there is. An outage of the control plane:
  hack/control-plane stop --only apiserver --dir DIR/control-plane; up ends it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from hack.lab import cluster_images
from hack.lab.cluster_layout import SINKS, WAN, Layout, pod_network
from hack.lab.cluster_network import connect_node, start_wan
from hack.lab.cluster_node import check_cgroups, configure_node, make_cgroups, remove_cgroups
from hack.lab.console import Interrupted, LabError, Parser, UsageError, log, show_tail, step, wait_until
from hack.lab.control_plane import ControlPlane
from hack.lab.debian import need_packages, require_bookworm, unpack_packages
from hack.lab.files import CACHE, HACK, Lock, need_disk, remove, replace_link
from hack.lab.kubernetes import build

_COMMANDS: Final = ("up", "down", "status", "env", "load", "exec", "pid", "prepare")
_ROOTS: Final = ("up", "down", "load", "exec", "prepare")
_KUBERNETES: Final = ("kube-apiserver", "kubectl", "kubelet", "kube-controller-manager", "kube-scheduler")
_DEFAULT_NODES: Final = 2
_NODES_OWN: Final = ("/var/lib/", "/var/log/", "/run/", "/var/run/")
"""Folders of which every node has its own, so that it does not see this machine's."""
_UNSHARE: Final = (
    *("unshare", "--net", "--mount", "--pid", "--uts", "--ipc"),
    # With a node's init all of its processes end, containers included, whatever became of them.
    *("--fork", "--kill-child", "--mount-proc", "--propagation=slave"),
)


def main(arguments: Sequence[str]) -> int:
    """Run a command."""
    options = _parser().parse_args(arguments)
    if not options.dir:
        raise UsageError("--dir needs a folder")
    if options.command in _ROOTS and os.geteuid() != 0:
        raise LabError("namespaces and containers need root: run it as root")
    cluster = Cluster(Layout(Path(os.path.realpath(options.dir))))
    try:
        return _run(cluster, options)
    except RuntimeError as error:  # of a command in a namespace
        raise LabError(f"{error}; run it again, or begin anew with: hack/cluster down") from error


def _run(cluster: "Cluster", options: argparse.Namespace) -> int:
    match options.command:
        case "up":
            print(cluster.up(options.nodes))
        case "down":
            cluster.down(options.only)
        case "prepare":
            cluster.prepare()
        case "status":
            return cluster.status()
        case "env":
            print(cluster.shell_code())
        case "load":
            cluster.load(options.images)
        case "exec":
            cluster.execute(options.node, options.line)
        case "pid":
            print(cluster.layout.namespace_pid(options.node))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="hack/cluster", description=__doc__)
    commands = parser.add_commands(*_COMMANDS)
    for command in commands.values():
        command.add_argument("--dir", default=str(CACHE / "cluster"))
    commands["up"].add_argument("--nodes", type=_node_count)
    commands["down"].add_argument("--only", metavar="NODE")
    commands["load"].add_argument("images", nargs="+", metavar="IMAGE.tar", type=Path)
    for name in ("exec", "pid"):
        commands[name].add_argument("node", metavar="NODE")
    # What follows a node's name is that command's own.
    commands["exec"].add_argument("line", nargs=argparse.REMAINDER, metavar="COMMAND")
    return parser


def _node_count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]?", text):
        raise argparse.ArgumentTypeError(f"a number from 1 to 99, not: {text}")
    return int(text)


class Cluster:
    """The cluster in a folder, running or not."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    # --- commands ---

    def prepare(self) -> tuple[Path, Path, Path]:
        """Build and fetch all that nodes run: the folders of Kubernetes and containerd, and the pause image."""
        self._check_machine()
        return self._parts()

    def _parts(self) -> tuple[Path, Path, Path]:
        kubernetes = build(*_KUBERNETES)
        containerd = unpack_packages("containerd", "containerd", "runc", "containernetworking-plugins")
        unpack_packages("etcd", "etcd-server")
        return kubernetes, containerd, cluster_images.make("pause")

    def up(self, nodes: int | None) -> Path:
        """Start what does not run, and wait until all nodes are Ready; the administrator's kubeconfig.

        Args:
            nodes: how many there are to be at least; None: those there are, or two.
        """
        layout = self.layout
        self._check_machine()
        with self._lock() as lock:
            kubernetes, containerd, pause = self._parts()
            layout.nodes_folder.mkdir(parents=True, exist_ok=True)
            replace_link(kubernetes / "kubelet", layout.nodes_folder / "kubelet")
            replace_link(containerd, layout.packaged)
            os.umask(0o077)  # from here on all is for the owner only: keys, tokens, logs
            try:
                start_wan(layout, lock)
                plane = ControlPlane(layout.control_plane_folder, address=layout.machine_address)
                kubeconfig = plane.start()
                for node in [node for node in self._wanted(nodes) if self._start_node(node, plane, lock)]:
                    self._import(node, [pause])
                for node in layout.nodes():
                    self._await_ready(node, plane)
            except Interrupted:
                log("interrupted; up again goes on from here, down removes it")
                raise
            count = len(layout.nodes())
            step(f'ready: {count} nodes; point your shell to it: eval "$(hack/cluster env --dir {layout.folder})"')
            return kubeconfig

    def down(self, only: str | None) -> None:
        """Stop everything and remove what was made but the logs, or power one node off."""
        layout = self.layout
        if not layout.folder.is_dir():
            log(f"nothing in {layout.folder}")
            return
        with self._lock():
            if only is not None:
                if only not in layout.nodes():
                    raise LabError(f"there is no node {only}; there are: {' '.join(layout.nodes())}")
                self._stop_node(only)
                return
            for node in layout.nodes():
                self._stop_node(node)
            # Its device goes with it, and with that this machine's address and routes.
            wan = layout.service(WAN)
            if wan.runs():
                wan.stop(grace_s=0)
            if layout.control_plane_folder.is_dir():
                self._plane().stop()
            self._keep_logs_alone()
        log(f"all is gone but the logs: {layout.folder}/logs")

    def _keep_logs_alone(self) -> None:
        layout = self.layout
        for node in layout.nodes():
            logs = layout.folder / "logs" / node
            logs.mkdir(parents=True, exist_ok=True)
            for file in layout.node_folder(node).glob("*.log*"):
                file.replace(logs / file.name)
        # By name, never the folder itself: it is the user's, and may hold more than ours. The nodes' mounts were in
        # namespaces of their own, so these are but files.
        remove(layout.nodes_folder, layout.network_file, *layout.folder.glob("*.pid"))

    def status(self) -> int:
        """Print what runs; 0: all of it and ready, 3: not all."""
        layout = self.layout
        if not layout.network_file.exists():
            print(f"no cluster in {layout.folder}; make one with: hack/cluster up --dir {layout.folder}")
            return 3
        plane = self._plane()
        code = plane.status()
        for name in (WAN, *layout.nodes()):
            try:
                pid = layout.namespace_pid(name)
            except LabError:
                print(f"{name:18} stopped")
                code = 3
                continue
            if name == WAN:
                print(f"{name:18} running  pid {pid:<7} {' '.join(SINKS)}")
                continue
            ready = self._is_ready(name, plane)
            state = "Ready" if ready else f"not ready, see {layout.node_folder(name)}/kubelet.log"
            print(f"{name:18} running  pid {pid:<7} {layout.node_address(name)}  {state}")
            code = code if ready else 3
        return code

    def shell_code(self) -> str:
        """Exports for a shell to evaluate."""
        self._require_running()
        return self._plane().shell_code()

    def load(self, images: Sequence[Path]) -> None:
        """Put images on every node."""
        for image in images:
            if not image.is_file():
                raise LabError(f"there is no image {image}; give the path of a docker or OCI archive")
        self._require_running()
        with self._lock():
            for node in self.layout.nodes():
                self._import(node, images)

    def execute(self, name: str, command: Sequence[str]) -> NoReturn:
        """Become a command within a node or wan."""
        if not command:
            raise UsageError(f"which command shall run in {name}?")
        line = self._in_namespaces(name, command)
        os.execvp(line[0], line)  # noqa: S606 - its streams and exit code are to be ours

    # --- what it needs ---

    def _check_machine(self) -> None:
        require_bookworm("the cluster")
        need_packages("iproute2", "nftables", "procps")
        for place in (self.layout.folder, CACHE):
            if f"{place}/".startswith(_NODES_OWN):
                raise LabError(
                    f"{place} is in a folder of which every node has its own;"
                    " choose another with --dir or SLICEBW_CACHE"
                )
        if not Path("/dev/kmsg").is_char_device():
            raise LabError("kubelet needs /dev/kmsg, which is missing: start this container with it")
        check_cgroups()
        need_disk(self.layout.folder, 2000, "the cluster")

    def _require_running(self) -> None:
        if not self.layout.service(WAN).runs() or not (self.layout.control_plane_folder / "kubeconfig").exists():
            folder = self.layout.folder
            raise LabError(f"no cluster runs in {folder}; start it with: hack/cluster up --dir {folder}")

    def _lock(self) -> Lock:
        return Lock(self.layout.folder / "lock", f"the cluster in {self.layout.folder}")

    def _plane(self) -> ControlPlane:
        return ControlPlane(self.layout.control_plane_folder)

    # --- nodes ---

    def _wanted(self, nodes: int | None) -> Sequence[str]:
        there = len(self.layout.nodes())
        return [f"node-{number}" for number in range(1, max(nodes or 0, there or (nodes or _DEFAULT_NODES)) + 1)]

    def _start_node(self, name: str, plane: ControlPlane, lock: Lock) -> bool:
        """Start a node; whether there was anything to start."""
        layout, folder, service = self.layout, self.layout.node_folder(name), self.layout.service(name)
        if self._is_ready(name, plane):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        server = plane.url("apiserver")
        configure_node(layout, name, server)
        # A kubelet registers its node when it starts, so a Node that was deleted needs a new one.
        if service.runs() and self._node_object(name, plane) is None:
            self._stop_node(name)
        if not service.runs():
            step(f"starting {name} (logs: {folder}/*.log)")
            make_cgroups(layout, name)
            init = (str(HACK / "cluster-node"), f"--folder={folder}", name, layout.node_address(name))
            service.launch([*_UNSHARE, *init], lock)
        if not wait_until(lambda: layout.has_namespace(name), f"{name}'s namespaces", 10):
            service.give_up("did not start")
        connect_node(layout, name, server.removeprefix("https://"))
        return True

    def _stop_node(self, name: str) -> None:
        service = self.layout.service(name)
        if service.runs():
            service.stop(grace_s=0)
        remove_cgroups(self.layout, name)

    def _node_object(self, name: str, plane: ControlPlane) -> dict[str, Any] | None:
        """The Node, None where there is none, or no answer."""
        done = plane.kubectl("get", "node", name, "--ignore-not-found", "-o", "json")
        found: dict[str, Any] | None = json.loads(done.stdout or "null") if done.returncode == 0 else None
        return found

    def _is_ready(self, name: str, plane: ControlPlane) -> bool:
        """Whether the kubelet that runs now says so, and pods are scheduled there."""
        try:
            boot = (self.layout.node_folder(name) / "boot-id").read_text().strip()
        except FileNotFoundError:
            return False
        node = self._node_object(name, plane) if self.layout.service(name).runs() else None
        if node is None:
            return False
        conditions = {one["type"]: one["status"] for one in node["status"].get("conditions", ())}
        taints = {one["key"] for one in node["spec"].get("taints", ())}
        away = {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
        same_boot = node["status"].get("nodeInfo", {}).get("bootID") == boot
        return same_boot and conditions.get("Ready") == "True" and not taints & away

    def _await_ready(self, name: str, plane: ControlPlane) -> None:
        if not wait_until(lambda: self._is_ready(name, plane), f"{name} to be Ready", 120):
            folder = self.layout.node_folder(name)
            show_tail(folder / "kubelet.log")
            for one in (self._node_object(name, plane) or {}).get("status", {}).get("conditions", ()):
                log(f"{one['type']}={one['status']}: {one['message']}")
            raise LabError(f"{name} did not become Ready in time; its logs are {folder}/*.log")
        # Which pods are where, for who looks at the Node. (The nodes' networks are fixed here, so that routes are
        # there before the node is; a controller would choose them later.)
        if not (self._node_object(name, plane) or {}).get("spec", {}).get("podCIDR"):
            done = plane.kubectl("patch", "node", name, "--patch", json.dumps({"spec": {"podCIDR": pod_network(name)}}))
            if done.returncode:
                raise LabError(f"cannot set the podCIDR of {name}: {done.stderr.strip()}; run up again")

    # --- images ---

    def _import(self, node: str, images: Sequence[Path]) -> None:
        file = self.layout.node_folder(node) / "containerd.log"
        if not wait_until(lambda: self._containerd_answers(node), f"containerd on {node}", 60):
            show_tail(file)
            raise LabError(f"containerd on {node} does not answer; these were the last lines of {file}")
        for image in images:
            log(f"{node}: {image.name}")
            with image.open("rb") as archive:
                done = subprocess.run(
                    self._ctr(node, "images", "import", "-"), stdin=archive, stdout=sys.stderr, check=False
                )
            if done.returncode:
                raise LabError(f"{node} cannot take {image}: is it a docker or OCI archive?")

    def _containerd_answers(self, node: str) -> bool:
        with suppress(LabError):  # it is only just starting
            return subprocess.run(self._ctr(node, "version"), capture_output=True, check=False).returncode == 0
        return False

    def _ctr(self, node: str, *arguments: str) -> list[str]:
        return self._in_namespaces(node, [f"{self.layout.packaged}/usr/bin/ctr", "--namespace", "k8s.io", *arguments])

    def _in_namespaces(self, name: str, command: Sequence[str]) -> list[str]:
        which = "--net" if name == WAN else "--all"
        return ["nsenter", "--target", str(self.layout.namespace_pid(name)), which, "--", *command]
