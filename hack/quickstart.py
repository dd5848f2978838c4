"""The quickstart's story; hack/quickstart prepares the machine and starts it."""

import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final

import yaml

from slicebw.core.reports import ClassUsage, UsageReport
from slicebw.core.text import bytes_text, rate_text
from slicebw.folder.sink import read_usages
from tests.support.processes import end
from tests.support.topology import UPLINK, Topology

SLICEBW: Final = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "slicebw"
NODE: Final = "node-1"
BOLD, DIM, PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
COLUMN_NAMES: Final = ("SLICE", "NODE", "USED", "BUDGET", "%", "RATE", "CAPPED", "PERIOD-START", "ARRIVING")
COLUMNS: Final = "{:<8} {:<7} {:>7} {:>7} {:>4} {:>6} {:<7} {:>12} {:>14}"

TRAFFIC_S: Final = 60
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

LIMITS: Final = """\
apiVersion: slicebw.io/v1alpha1
kind: NodeBandwidth
metadata: {name: default}
spec:
  lineRate: 1G
  exemptDestinations: [198.51.100.0/24] # a campus network: accounted and limited apart
---
apiVersion: slicebw.io/v1alpha1
kind: SliceBandwidth
metadata: {name: codeen, namespace: princeton}
spec:
  period: 20s # 24h in real life
  standard: {maxRate: 10M, budget: 10M, threshold: 50%} # 10 Mbit/s, 10 MB
---
apiVersion: slicebw.io/v1alpha1
kind: SliceBandwidth
metadata: {name: coral, namespace: nyu}
spec:
  standard: {minRate: 1M, maxRate: 20M, budget: 200M}
"""


class QuickstartError(Exception):
    """The quickstart did not show what it promises."""


class Quickstart:
    """One run: a network, an agent, and the words about them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._started = time.monotonic()
        self._manifests = folder / "manifests"
        self._state = folder / "state"
        self._log = folder / "agent.log"
        self._arrived: dict[str, tuple[int, float]] = {}

    def run(self) -> None:
        """Tell the whole story."""
        self.say("A network: a node with an uplink to a sink, and two pods behind it (namespaces, veth pairs)")
        self._lab = lab = self._stack.enter_context(Topology(pods=2))
        lab.sink.start_meter()
        self._pods = {"codeen": lab.pod(0), "coral": lab.pod(1)}
        self.say("Limits and pods, as YAML in a folder. codeen may send 10 MB in 20 s, and is watched from half of it")
        self.write_manifests()
        self.say("The agent, as a process: no cluster, the folder stands for the API server")
        self.start_agent()
        self.until("both slices have classes", lambda: len(self.usages()) == len(self._pods), within_s=10)
        for pod in self._pods.values():
            lab.traffic(pod, lab.sink.address, TRAFFIC_S)

        self.say("Both send as fast as TCP can: usage grows, each is held to its maxRate")
        self.table(lambda: self.codeen().capped, within_s=15)
        cap_bps = self.codeen().rate_bps
        self.say(f"codeen is over its threshold: what is left, over the time left, is {rate_text(cap_bps)}bit/s")
        self.show_kernel()
        settled = time.monotonic() + 3  # what was queued under the old ceiling drains
        self.table(lambda: time.monotonic() > settled, within_s=10)
        self.expect("codeen is down to the cap", self.rate_bps("codeen", 2), 0.5 * cap_bps, 1.3 * cap_bps)
        self.expect("coral is not disturbed", self.rate_bps("coral", 1), 14e6, 21e6)
        exempt_bps = lab.tcp_rate_bps(self._pods["codeen"], lab.sink.exempt_address, 1)
        self.expect("codeen to the exempt network, at the same time", exempt_bps, 50e6, 1e9)
        if not self.codeen().capped:
            raise QuickstartError("the period ended too early: this machine is too busy for the story")

        self.say("The period of 20 s ends: usage starts from zero, and the cap is lifted in that second")
        self.table(lambda: not self.codeen().capped, within_s=25, every_s=2.0)
        lifted_bps = self.rate_bps("codeen", 1.5)
        self.expect("codeen is back at its maxRate", lifted_bps, 7e6, 10.5e6)
        self.say("What its owner was told (manifests/status/events)")
        self.show_events()
        seconds = time.monotonic() - self._started
        print(
            f"\n{BOLD}Done in {seconds:.0f} s: held to 10 Mbit/s, over its threshold to {rate_text(cap_bps)}bit/s, "
            f"meanwhile {exempt_bps / 1e6:.0f} Mbit/s to exempt destinations, and in the next period "
            f"{lifted_bps / 1e6:.1f} Mbit/s again. Nothing is left behind.{PLAIN}"
        )

    def write_manifests(self) -> None:
        """The folder: limits, and the pods a kubelet would report."""
        self._manifests.mkdir()
        (self._manifests / "limits.yaml").write_text(LIMITS)
        pods = [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"nodeName": NODE},
                "status": {"podIPs": [{"ip": self._pods[name].address}, {"ip": self._pods[name].address6}]},
            }
            for name, namespace in (("codeen", "princeton"), ("coral", "nyu"))
        ]
        (self._manifests / "pods.yaml").write_text(yaml.safe_dump_all(pods))
        self.note("$ cat manifests/limits.yaml")
        print(textwrap.indent(LIMITS.partition("---\n")[2], "    "), end="")

    def start_agent(self) -> None:
        """A real process. Should this one be killed, the kernel ends that one too."""
        command = ["slicebw", "agent", "--manifests", "manifests", "--node", NODE]
        self.note(f"$ {' '.join(command)} &")
        options = ["--netns", self._lab.node.path, "--uplink", UPLINK, "--state-dir", str(self._state)]
        command = [str(SLICEBW), *command[1:], *options, "--report-interval", "1s"]
        with self._log.open("w") as log:
            agent = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                cwd=self._manifests.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._agent = agent
        self._stack.callback(end, agent)

    # --- looking ---

    def usages(self) -> Mapping[str, UsageReport]:
        """The BandwidthUsages in the status folder, by slice name."""
        return {one.report.key.name: one.report for one in read_usages(self._manifests, NODE)}

    def codeen(self) -> ClassUsage:
        """Codeen's standard class as last reported."""
        return self.usages()["codeen"].standard

    def arrived_bytes(self, name: str) -> int:
        """Bytes from a slice's pod that have arrived at the destination that is not exempt."""
        return self._lab.sink.meter(self._pods[name].address, self._lab.sink.address).ip_bytes

    def rate_bps(self, name: str, seconds: float) -> float:
        """What arrives from a slice, measured from now on."""
        before, start = self.arrived_bytes(name), time.monotonic()
        time.sleep(seconds)
        return (self.arrived_bytes(name) - before) * 8 / (time.monotonic() - start)

    def rate_since_bps(self, name: str) -> float:
        """What arrived from a slice since this was asked last."""
        now, at = self.arrived_bytes(name), time.monotonic()
        before, last = self._arrived.get(name, (now, at - 1))
        self._arrived[name] = now, at
        return (now - before) * 8 / (at - last)

    def until(self, what: str, look: Callable[[], bool], within_s: float) -> None:
        """Wait for something to come true."""
        deadline = time.monotonic() + within_s
        while not look():
            if self._agent.poll() is not None:
                raise QuickstartError(f"the agent has ended with exit code {self._agent.returncode}")
            if time.monotonic() > deadline:
                raise QuickstartError(f"after {within_s:.0f} s it is still not so: {what}")
            time.sleep(0.05)

    # --- words ---

    def say(self, text: str) -> None:
        """A chapter."""
        print(f"\n{BOLD}[{time.monotonic() - self._started:2.0f}s] {text}{PLAIN}", flush=True)

    def note(self, text: str) -> None:
        """An aside."""
        print(f"{DIM}{text}{PLAIN}", flush=True)

    def table(self, until: Callable[[], bool], within_s: float, every_s: float = 1.0) -> None:
        """What `kubectl get bwu` would show, again and again until something is so, and what arrives beside it."""
        self.note(COLUMNS.format(*COLUMN_NAMES))
        deadline = time.monotonic() + within_s
        for name in self._pods:
            self.rate_since_bps(name)
        reached = False
        while not reached:
            if time.monotonic() > deadline:
                raise QuickstartError(f"after {within_s:.0f} s it is still not so")
            tick = time.monotonic() + every_s
            while not (reached := until()) and time.monotonic() < tick:
                time.sleep(0.05)
            for name, usage in sorted(self.usages().items()):
                self.row(name, usage)

    def row(self, name: str, usage: UsageReport) -> None:
        """One line of the table."""
        now = usage.standard
        age = f"{max(0, int(time.time()) - usage.period_start_s)}s"
        figures = (bytes_text(now.used_bytes), bytes_text(now.budget_bytes), now.percent, rate_text(now.rate_bps))
        arriving = f"{self.rate_since_bps(name) / 1e6:.1f} Mbit/s"
        print(COLUMNS.format(name, NODE, *figures, str(now.capped).lower(), age, arriving), flush=True)

    def show_kernel(self) -> None:
        """Tc's view of codeen's class."""
        classid = f"1:1{self.usages()['codeen'].slice_id:03x}"
        self.note(f"$ tc -s class show dev {UPLINK} classid {classid}")
        shown = self._lab.node.run("tc", "-s", "class", "show", "dev", UPLINK, "classid", classid)
        print("\n".join(shown.splitlines()[:2]), flush=True)

    def show_events(self) -> None:
        """Reasons and messages of the events written."""
        found = [yaml.safe_load(path.read_text()) for path in (self._manifests / "status" / "events").glob("*/*.yaml")]
        for event in sorted(found, key=lambda event: (event["firstTimestamp"], event["reason"])):
            print(textwrap.fill(f"{event['reason']}: {event['message']}", 116, subsequent_indent="    "))

    def expect(self, what: str, measured_bps: float, low_bps: float, high_bps: float) -> None:
        """Say what was measured, and fail if it is not what was promised."""
        print(f"  measured: {measured_bps / 1e6:8.2f} Mbit/s   {what}", flush=True)
        if not low_bps <= measured_bps <= high_bps:
            promised = f"{low_bps / 1e6:.1f}..{high_bps / 1e6:.1f}"
            raise QuickstartError(f"{what}: {measured_bps / 1e6:.2f} Mbit/s is not in {promised}")


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the story."""
    be_deaf()
    raise KeyboardInterrupt


def be_deaf() -> None:
    """Removing what was made is not to be interrupted."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """Run the quickstart; 0 if it showed all it promises."""
    for number in SIGNALS:
        signal.signal(number, interrupt)
    with tempfile.TemporaryDirectory(prefix="slicebw-quickstart-") as folder, ExitStack() as stack:
        try:
            Quickstart(Path(folder), stack).run()
        except KeyboardInterrupt:
            print("\ninterrupted; removing what was made", file=sys.stderr)
            return 130
        except (QuickstartError, OSError, RuntimeError) as error:
            print(f"\nquickstart: {error}", file=sys.stderr)
            log = Path(folder) / "agent.log"
            if log.exists():
                print(
                    "--- the end of the agent's log ---", *log.read_text().splitlines()[-15:], sep="\n", file=sys.stderr
                )
            return 1
        finally:
            be_deaf()
    return 0


if __name__ == "__main__":
    sys.exit(main())
