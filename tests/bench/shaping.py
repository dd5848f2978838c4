"""Ways to shape a pod's traffic on the same path: not at all, by the bandwidth CNI plugin, by slicebw."""

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
"""More than any processor sends, so that it never limits."""
CNI_BANDWIDTH: Final = "/usr/lib/cni/bandwidth"
CONTAINERD_BURST_BITS: Final = 2**32 - 1
"""The burst that containerd gives the plugin for ``kubernetes.io/egress-bandwidth``: practically no limit."""


class Shaped(AbstractContextManager["Shaped"]):
    """A node with pods and a sink, shaped in one of the ways. Use as a context manager."""

    def __init__(self, pods: int = 1, *, offloads: bool, uplink_offloads: bool | None = None) -> None:
        """Start without limits. See :class:`~tests.support.topology.Topology` for the offloads."""
        self._stack = ExitStack()
        lab = Topology(pods=pods, offloads=offloads, uplink_offloads=uplink_offloads)
        self.lab = self._stack.enter_context(lab)

    def __exit__(self, *_: object) -> None:
        """Remove the node."""
        self._stack.close()

    def limit(self, rate_bps: int) -> None:
        """Limit every pod to this rate from now on."""
        raise NotImplementedError


class Unshaped(Shaped):
    """No shaping at all."""


class ByTree(Shaped):
    """slicebw's tree without its nft table, so that all that pods send is in the default class."""

    def __init__(self, pods: int = 1, slices: int = 1, *, offloads: bool, uplink_offloads: bool | None = None) -> None:
        super().__init__(pods, offloads=offloads, uplink_offloads=uplink_offloads)
        self._specs: dict[int, ClassSpec] = tree(range(1, slices + 1), line_rate_bps=LINE_RATE_BPS)
        self._shaper = HtbShaper()
        self._stack.callback(self._shaper.close)
        self._apply(creation(self._specs))

    def limit(self, rate_bps: int) -> None:
        """Set the ceiling of the default class."""
        self._change([leaf(STANDARD, DEFAULT_ID)], rate_bps)

    def _change(self, minors: list[int], ceil_bps: int) -> None:
        self._apply([ChangeClass(replace(self._specs[minor], ceil_bps=ceil_bps)) for minor in minors])

    def _apply(self, changes: Sequence[TreeChange]) -> None:
        with self.lab.node.inside():
            failed = self._shaper.apply(UPLINK, changes, LINE_RATE_BPS)
        if failed:
            raise RuntimeError(f"{failed[0].change}: {failed[0].reason}")


class BySlicebw(ByTree):
    """slicebw's tree and table. The pods belong to the last slices."""

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
    """The CNI project's bandwidth plugin, run as a container runtime runs it: a TBF per pod behind an ifb device.

    Args:
        burst_bits: the burst to ask for; containerd's by default.
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
                # The plugin leaves this qdisc to go with the pod's device, but here the device stays.
                self.lab.node.run("tc", "qdisc", "del", "dev", f"pod{index}", "ingress")
            self._run("ADD", f"pod{index}", pod, rate_bps)
        self._limited = True

    def line(self, rate_bps: int) -> None:
        """Limit the uplink to this rate for all pods together, with a plain queue as in a switch."""
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
