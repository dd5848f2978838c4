"""The demo's story; hack/demo prepares the machine and starts it."""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

import yaml

from tests.support.processes import end
from tests.support.topology import POD_DEVICE, UPLINK, Host, Namespace, Topology

ROOT: Final = Path(__file__).resolve().parents[1]
SAMPLES: Final = ROOT / "manifests" / "samples" / "demo"
NODE: Final = "node-1"
SLICES: Final = (("princeton-codeen", "codeen"), ("nyu-coral", "coral"))
BOLD, DIM, PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


class DemoError(Exception):
    """The demo did not show what it promises."""


class Demo:
    """Everything the demo starts, and the words it says."""

    def __init__(self, folder: Path, stack: ExitStack, *, fast: bool) -> None:
        self._folder = folder
        self._stack = stack
        self._fast = fast
        self._started = time.monotonic()
        self._control_plane = folder / "control-plane"

    def run(self) -> None:
        """Tell the whole story."""
        self.say("A control plane: a real etcd and a real kube-apiserver, with role-based access control")
        self.start_control_plane()
        self.say("A node with two slices' pods: network namespaces, behind them an uplink to a sink")
        lab = self._stack.enter_context(Topology(pods=2))
        self.install()
        self.create_pods(lab)
        self.say("Agent and controller: real processes, each with its own service account")
        self.start("controller", "slicebw", "controller", "--status-interval", "2s")
        self.start("agent", "slicebw", "agent", "--node", NODE, "--netns", lab.node.path, "--report-interval", "2s")
        self.say("Limits, by kubectl apply")
        self.show("kubectl", "apply", "-f", str(SAMPLES.relative_to(ROOT)))
        self.until("both slices are enforced", lambda: self.enforced() == len(SLICES), within_s=30)
        self.show("kubectl", "get", "slbw,nbw", "-A")
        self.watch_a_budget_being_used(lab)
        self.say("The events that their owners see")
        self.show("kubectl", "get", "events", "-A", "-o", EVENT_COLUMNS, "--sort-by=.lastTimestamp")
        self.say("And what the kernel holds, on the node (class 1:1001 is the first slice's)")
        self.show_kernel(lab.node)
        self.say(f"Done in {time.monotonic() - self._started:.0f} s. Everything is removed again.")

    def watch_a_budget_being_used(self, lab: Topology) -> None:
        """Traffic from both pods: usage grows, the cap comes, holds, and is lifted at the period's end."""
        codeen, coral = lab.pod(0), lab.pod(1)
        start_s = time.monotonic()
        self.say("Both slices send as fast as they may: codeen may 10 Mbit/s, coral 20 Mbit/s")
        lab.traffic(codeen, lab.sink.address, 300)
        lab.traffic(coral, lab.sink.address, 300)
        self.until("codeen sends", lambda: rate_bps(codeen, 1) > 5e6, within_s=15)
        self.expect("codeen is held to its maxRate", rate_bps(codeen, 3), 8.5e6, 10.5e6)
        self.expect("coral is held to its maxRate", rate_bps(coral, 3), 17e6, 21e6)
        self.show("kubectl", "get", "bwu", "-A")
        self.say("At half of its budget of 40 MB, codeen is slowed to what is left over the time left")
        self.until("the cap is set", lambda: self.capped() is True, within_s=40)
        cap_bps = self.usage()["standard"]["bitsPerSecond"]
        self.until(
            "the controller says so", lambda: " 1 " in self.kubectl("get", "slbw", "-n", SLICES[0][0]), within_s=10
        )
        self.show("kubectl", "get", "slbw,bwu", "-A")
        time.sleep(2)  # what was queued under the old ceiling drains
        self.expect(
            f"codeen falls to the cap of {cap_bps / 1e6:.2f} Mbit/s", rate_bps(codeen, 5), 0.7 * cap_bps, 1.15 * cap_bps
        )
        self.expect("coral is not disturbed", rate_bps(coral, 3), 17e6, 21e6)
        self.say("To an exempt destination codeen still sends at full speed: that is another class")
        exempt_bps = lab.tcp_rate_bps(codeen, lab.sink.exempt_address, 2)
        self.expect("codeen to the exempt network", exempt_bps, 100e6, 1e12)
        self.say("The period of 60 s ends: usage starts again from zero and the cap is lifted at once")
        self.until("the period ends", lambda: self.capped() is False, within_s=60)
        self.expect("codeen is back", rate_bps(codeen, 3), 8.5e6, 10.5e6)
        self.show("kubectl", "get", "slbw,bwu", "-A")
        self.note(f"(watched for {time.monotonic() - start_s:.0f} s)")

    # --- the cluster ---

    def start_control_plane(self) -> None:
        """hack/control-plane in a folder of its own; stopped at the end. The first time this builds Kubernetes."""
        command = [str(ROOT / "hack" / "control-plane")]
        self._stack.callback(
            subprocess.run,
            [*command, "stop", "--dir", str(self._control_plane)],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        subprocess.run([*command, "start", "--dir", str(self._control_plane)], check=True, stdout=subprocess.DEVNULL)

    def install(self) -> None:
        """Kinds, accounts and roles; a server that knows CEL rules checks them, an older one wants no validation."""
        validate = [] if self.server_minor() >= CEL_SINCE_MINOR else ["--validate=false"]
        self.show("kubectl", "apply", *validate, "-k", "manifests/base")
        for plural in ("slicebandwidths", "nodebandwidths", "bandwidthusages"):
            self.kubectl("wait", "--for=condition=Established", f"crd/{plural}.slicebw.io", "--timeout=30s")

    def server_minor(self) -> int:
        """The API server's minor version."""
        return int(re.sub(r"\D", "", json.loads(self.kubectl("get", "--raw", "/version"))["minor"]))

    def create_pods(self, lab: Topology) -> None:
        """Node and Pod objects; their addresses, which a kubelet would report, are those of the namespaces."""
        self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        for (namespace, name), pod in zip(SLICES, lab.pods, strict=True):
            self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            self.apply(pod_object(namespace, name))
            self.put_status(namespace, name, pod)
        self.show("kubectl", "get", "pods", "-A", "-o", "wide")

    def put_status(self, namespace: str, name: str, pod: Host) -> None:
        """What the kubelet writes; this kubectl has no --subresource yet."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        obj = json.loads(self.kubectl("get", "--raw", path))
        addresses = [{"ip": pod.address}, {"ip": pod.address6}]
        obj["status"] = {"phase": "Running", "podIP": pod.address, "podIPs": addresses}
        self.kubectl("replace", "--raw", f"{path}/status", "-f", "-", text=json.dumps(obj))

    def start(self, role: str, *command: str) -> None:
        """A slicebw process with its service account's kubeconfig, a log, and an end."""
        kubeconfig = self.account(f"slicebw-{role}")
        log = (self._folder / f"{role}.log").open("w")
        state = ["--state-dir", str(self._folder / "state")] if role == "agent" else []
        full = [str(ROOT / ".venv" / "bin" / command[0]), *command[1:], "--kubeconfig", str(kubeconfig), *state]
        process = subprocess.Popen(full, stdout=log, stderr=subprocess.STDOUT)
        self._stack.callback(end, process)
        self._stack.callback(log.close)
        self.note(f"$ {' '.join([*command, *state])} &")

    def account(self, name: str) -> Path:
        """A kubeconfig with a token of a service account (TokenRequest)."""
        path = f"/api/v1/namespaces/slicebw-system/serviceaccounts/{name}/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        answer = json.loads(self.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(request)))
        config = yaml.safe_load((self._control_plane / "kubeconfig").read_text())
        config["users"][0]["user"] = {"token": answer["status"]["token"]}
        kubeconfig = self._folder / f"{name}.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(config))
        return kubeconfig

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl; what it prints."""
        command = [str(self._control_plane / "assets" / "kubectl"), *arguments]
        command += ["--kubeconfig", str(self._control_plane / "kubeconfig")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, input=text, cwd=ROOT, timeout=60)
        if done.returncode:
            raise DemoError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, obj: dict[str, Any]) -> None:
        """Apply one object without a word."""
        self.kubectl("apply", "-f", "-", text=json.dumps(obj))

    def usage(self) -> dict[str, Any]:
        """Codeen's BandwidthUsage on the node; empty where there is none yet."""
        namespace, name = SLICES[0]
        with suppress(DemoError):
            found: dict[str, Any] = json.loads(
                self.kubectl("get", "bwu", "-n", namespace, f"{name}.{NODE}", "-o", "json")
            )
            return found
        return {}

    def capped(self) -> bool | None:
        """Whether codeen is capped, as the agent reports it."""
        usage = self.usage()
        return usage["standard"]["capped"] if usage else None

    def enforced(self) -> int:
        """How many slices are enforced everywhere, as the controller says."""
        items = json.loads(self.kubectl("get", "slbw", "-A", "-o", "json"))["items"]
        conditions = [one for item in items for one in item.get("status", {}).get("conditions", [])]
        return sum(one["type"] == "Enforced" and one["status"] == "True" for one in conditions)

    # --- words ---

    def say(self, text: str) -> None:
        """A chapter."""
        print(f"\n{BOLD}[{time.monotonic() - self._started:3.0f}s] {text}{PLAIN}", flush=True)
        if not self._fast:
            time.sleep(1)

    def note(self, text: str) -> None:
        """An aside."""
        print(f"{DIM}{text}{PLAIN}", flush=True)

    def show(self, *command: str) -> None:
        """Run kubectl as a person would, and show it."""
        self.note(f"$ {' '.join(command)}")
        print(self.kubectl(*command[1:]).rstrip(), flush=True)

    def show_kernel(self, node: Namespace) -> None:
        """tc's view of the first slice's class."""
        self.note(f"$ tc -s class show dev {UPLINK} classid 1:1001")
        print("\n".join(node.run("tc", "-s", "class", "show", "dev", UPLINK, "classid", "1:1001").splitlines()[:2]))

    def until(self, what: str, look: Callable[[], bool], within_s: float) -> None:
        """Wait for something to come true."""
        deadline = time.monotonic() + within_s
        while not look():
            if time.monotonic() > deadline:
                raise DemoError(f"after {within_s:.0f} s it is still not so: {what}")
            time.sleep(0.2)

    def expect(self, what: str, measured_bps: float, low_bps: float, high_bps: float) -> None:
        """Say what was measured, and fail if it is not what was promised."""
        print(f"  measured: {measured_bps / 1e6:8.2f} Mbit/s   {what}", flush=True)
        if not low_bps <= measured_bps <= high_bps:
            raise DemoError(
                f"{what}: {measured_bps / 1e6:.2f} Mbit/s is not in {low_bps / 1e6:.1f}..{high_bps / 1e6:.1f}"
            )


EVENT_COLUMNS: Final = "custom-columns=NAMESPACE:.metadata.namespace,REASON:.reason,NODE:.source.host,MESSAGE:.message"
CEL_SINCE_MINOR: Final = 25


def pod_object(namespace: str, name: str) -> dict[str, Any]:
    """A pod bound to the demo's node."""
    spec = {"nodeName": NODE, "automountServiceAccountToken": False, "containers": [{"name": "main", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def rate_bps(pod: Namespace, seconds: float) -> float:
    """What a pod sends, by its own device's counter."""
    before, start = sent_bytes(pod), time.monotonic()
    time.sleep(seconds)
    return (sent_bytes(pod) - before) * 8 / (time.monotonic() - start)


def sent_bytes(pod: Namespace) -> int:
    """The counter of bytes that have left the pod."""
    (link,) = json.loads(pod.run("ip", "-j", "-s", "link", "show", "dev", POD_DEVICE))
    return int(link["stats64"]["tx"]["bytes"])


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: with its leftovers removed."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; 0 if it showed all it promises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="without pauses for reading")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    with tempfile.TemporaryDirectory(prefix="slicebw-demo-") as folder, ExitStack() as stack:
        try:
            Demo(Path(folder), stack, fast=options.fast).run()
        except KeyboardInterrupt:
            print("\ninterrupted; removing what was made", file=sys.stderr)
            return 130
        except (DemoError, AssertionError, subprocess.CalledProcessError) as error:
            print(f"\ndemo: {error}", file=sys.stderr)
            for log in sorted(Path(folder).glob("*.log")):
                print(
                    f"--- the end of {log.name} ---\n" + "\n".join(log.read_text().splitlines()[-15:]), file=sys.stderr
                )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
