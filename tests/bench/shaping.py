"""Ways to shape a pod's traffic, on the same path: none, the bandwidth CNI plugin, slicebw."""

import json
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Final

from msgspec.structs import replace

from slicebw.core.dataplane import (
    DEFAULT_ID,
    PARENTS,
    ChangeClass,
    ClassSpec,
    NftTable,
    ReplaceTable,
    TreeChange,
    leaf,
)
from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.nft import NftClassifier
from tests.bench.nodes import address_of
from tests.support.topology import UPLINK, Pod, Topology
from tests.support.trees import STANDARD, creation, tree

LINE_RATE_BPS: Final = 100_000_000_000
"""Above what any processor sends, so that where nothing is to be limited nothing is."""
CNI_BANDWIDTH: Final = "/usr/lib/cni/bandwidth"
CONTAINERD_BURST_BITS: Final = 2**32 - 1
"""What containerd hands the plugin for a pod with ``kubernetes.io/egress-bandwidth``: as good as no limit on bursts."""


class Shaped(AbstractContextManager["Shaped"]):
    """A node with pods and a sink, shaped in one of the ways. Use as a context manager."""

    def __init__(self, pods: int = 1, *, offloads: bool, uplink_offloads: bool | None = None) -> None:
        """Not shaped at all yet. What the offloads are is said at :class:`~tests.support.topology.Topology`."""
        self._stack = ExitStack()
        lab = Topology(pods=pods, offloads=offloads, uplink_offloads=uplink_offloads)
        self.lab = self._stack.enter_context(lab)

    def __exit__(self, *_: object) -> None:
        """Take it down."""
        self._stack.close()

    def limit(self, rate_bps: int) -> None:
        """Hold every pod to this rate, from now on."""
        raise NotImplementedError


class Unshaped(Shaped):
    """Nothing at all on the way."""


class ByTree(Shaped):
    """By slicebw's tree with so many slices, and no table: all that pods send is in the default class."""

    def __init__(self, pods: int = 1, slices: int = 1, *, offloads: bool, uplink_offloads: bool | None = None) -> None:
        super().__init__(pods, offloads=offloads, uplink_offloads=uplink_offloads)
        self._wanted: dict[int, ClassSpec] = tree(range(1, slices + 1), line_rate_bps=LINE_RATE_BPS)
        self._shaper = HtbShaper()
        self._stack.callback(self._shaper.close)
        self._apply(creation(self._wanted))

    def limit(self, rate_bps: int) -> None:
        """Set the ceiling of the default class."""
        self._change([leaf(STANDARD, DEFAULT_ID)], rate_bps)

    def _change(self, minors: list[int], ceil_bps: int) -> None:
        self._apply([ChangeClass(replace(self._wanted[minor], ceil_bps=ceil_bps)) for minor in minors])

    def _apply(self, changes: Sequence[TreeChange]) -> None:
        with self.lab.node.inside():
            failed = self._shaper.apply(UPLINK, changes, LINE_RATE_BPS)
        if failed:
            raise RuntimeError(f"{failed[0].change}: {failed[0].reason}")


class BySlicebw(ByTree):
    """By slicebw's tree and table with so many slices. The pods are the last of them."""

    def __init__(self, pods: int = 1, slices: int = 1, *, offloads: bool, uplink_offloads: bool | None = None) -> None:
        slices = max(slices, pods)
        super().__init__(pods, slices, offloads=offloads, uplink_offloads=uplink_offloads)
        self._first = slices - pods + 1
        addresses = {address_of(number): number for number in range(1, self._first)}
        for number, pod in enumerate(self.lab.pods, self._first):
            addresses |= {pod.address: number, pod.address6: number}
        with self.lab.node.inside():
            classifier = NftClassifier()
            classifier.apply(ReplaceTable(NftTable(addresses, frozenset(self.lab.sink.exempt_networks))))
            classifier.close()

    def limit(self, rate_bps: int) -> None:
        """Set the ceilings of the pods' standard classes."""
        minors = [leaf(STANDARD, self._first + index) for index in range(len(self.lab.pods))]
        self._change(minors, rate_bps)

    def limit_node(self, rate_bps: int) -> None:
        """Set the node cap."""
        self._change([PARENTS[STANDARD]], rate_bps)


class ByCniPlugin(Shaped):
    """By the CNI project's bandwidth plugin, run as a container runtime runs it: a TBF per pod behind an ifb device.

    Args:
        burst_bits: the burst to ask for; containerd's unless given.
    """

    def __init__(
        self,
        pods: int = 1,
        burst_bits: int = CONTAINERD_BURST_BITS,
        *,
        offloads: bool,
        uplink_offloads: bool | None = None,
    ) -> None:
        super().__init__(pods, offloads=offloads, uplink_offloads=uplink_offloads)
        self._burst_bits = burst_bits
        self._limited = False

    def limit(self, rate_bps: int) -> None:
        """Run the plugin for every pod (again)."""
        for index, pod in enumerate(self.lab.pods):
            if self._limited:
                self._run("DEL", f"pod{index}", pod, rate_bps)
                # It leaves this to go with the pod's device, which here stays.
                self.lab.node.run("tc", "qdisc", "del", "dev", f"pod{index}", "ingress")
            self._run("ADD", f"pod{index}", pod, rate_bps)
        self._limited = True

    def line(self, rate_bps: int) -> None:
        """Make the uplink a line of this rate, which all pods share: a plain queue, as in a switch."""
        words = f"tc qdisc replace dev {UPLINK} root tbf rate {rate_bps}bit burst 32k latency 50ms".split()
        self.lab.node.run(*words)

    def _run(self, verb: str, device: str, pod: Pod, rate_bps: int) -> None:
        config = {
            "cniVersion": "0.4.0",
            "name": "bench",
            "type": "bandwidth",
            "egressRate": rate_bps,
            "egressBurst": self._burst_bits,
            "prevResult": {
                "cniVersion": "0.4.0",
                "interfaces": [{"name": device}, {"name": "eth0", "sandbox": pod.path}],
                "ips": [],
            },
        }
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": device,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        command = self.lab.node.command(CNI_BANDWIDTH)
        done = subprocess.run(
            command, input=json.dumps(config), env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{CNI_BANDWIDTH} {verb}: {done.stdout.strip() or done.stderr.strip()}")
