"""A small network in namespaces: a node with its uplink to a sink, and pods behind it. For tests, demo and quickstart.

    pod 0 ──┐
    pod 1 ──┤ node ── uplink0 ─────── sink: one address on the exempt list, one that is not
      …   ──┘        (shaped here)

Every namespace lives as long as a small process does that waits on a pipe of ours, so all of it is gone when this
process ends, however it ends. Nothing is touched outside: no named namespaces, no files. Works as root, and for
others under ``unshare -rn``. Needs ``ip`` and ``nsenter``; for TCP also ``iperf3``, for meters ``nft``.
"""

import ctypes
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

UPLINK: Final = "uplink0"
"""The node's uplink, and the sink's end of it."""
SINK: Final = "203.0.113.1"
"""The sink's address that is not on the exempt list."""
SINK_EXEMPT: Final = "198.51.100.1"
"""The sink's address that is."""
POD_DEVICE: Final = "eth0"
ETHERNET_HEADER_BYTES: Final = 14
"""What HTB counts of a packet beside the IP packet itself."""

_CLONE_NEWNET: Final = 0x40000000
_READY_S: Final = 10.0
_GATEWAY: Final = ("169.254.1.1", "fe80::1")


def wait_until(condition: Callable[[], object], what: str, seconds: float = _READY_S, every_s: float = 0.005) -> None:
    """Poll until a condition holds. Raises TimeoutError, which says what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s until {what}")
        time.sleep(every_s)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")


@dataclass(frozen=True, slots=True)
class Meter:
    """What arrived in a namespace from one address to another: packets, and bytes without Ethernet headers."""

    packets: int = 0
    ip_bytes: int = 0

    @property
    def wire_bytes(self) -> int:
        """Bytes as HTB counts them: with Ethernet headers, where no packet was a bundle (``offloads=False``)."""
        return self.ip_bytes + ETHERNET_HEADER_BYTES * self.packets


class NetworkNamespace:
    """A network namespace, by a process that is in it. ``path`` names it for setns(), nsenter and ``agent --netns``."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        """That process; ``ip link ... netns <pid>`` moves devices into the namespace."""
        self.path = f"/proc/{pid}/ns/net"

    def command(self, *command: str) -> list[str]:
        """A command line that runs a command in this namespace."""
        return ["nsenter", f"--net={self.path}", *command]

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command here; what it printed. Raises RuntimeError with its complaint."""
        done = subprocess.run(self.command(*command), input=text, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def popen(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start a command here, and do not wait for it."""
        return subprocess.Popen(self.command(*command))

    def ip(self, batch: str) -> None:
        """Run lines of ``ip`` commands, as ``ip -batch`` takes them."""
        self.run("ip", "-batch", "-", text=batch)

    def sysctl(self, **settings: int) -> None:
        """Set switches below /proc/sys/net, with ``__`` for a slash: ``ipv4__ip_forward=1``."""
        lines = [f"echo {value} > /proc/sys/net/{name.replace('__', '/')}\n" for name, value in settings.items()]
        self.run("sh", "-e", text="".join(lines))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Put the calling thread, and what it starts, into this namespace for a while."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)

    def received_bytes(self, device: str) -> int:
        """Bytes that came in by a device, Ethernet headers included."""
        return self._received(device)[0]

    def received_packets(self, device: str) -> int:
        """Packets that came in by a device."""
        return self._received(device)[1]

    def _received(self, device: str) -> tuple[int, int]:
        for line in Path(f"/proc/{self.pid}/net/dev").read_text().splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == device:
                count, packets, *_ = figures.split()
                return int(count), int(packets)
        raise LookupError(f"{self.name} has no device {device}")

    def listens(self, port: int) -> bool:
        """Whether something listens on a TCP port here."""
        wanted = f":{port:04X}"
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if local.endswith(wanted) and state == "0A":
                    return True
        return False

    def start_meter(self) -> None:
        """Begin to count what arrives, by source and destination."""
        chains = "".join(
            f"""
            set seen{version} {{ type ipv{version}_addr . ipv{version}_addr; flags dynamic; counter; }}
            chain count{version} {{
                type filter hook prerouting priority -300;
                update @seen{version} {{ {family} saddr . {family} daddr }}
            }}"""
            for version, family in ((4, "ip"), (6, "ip6"))
        )
        self.run("nft", "-f", "-", text=f"table inet arrivals {{ {chains}\n}}")

    def stop_meter(self) -> None:
        """Count no longer, and forget what was counted."""
        self.run("nft", "delete", "table", "inet", "arrivals")

    def meter(self, source: str, destination: str) -> Meter:
        """What arrived from one address at another since :meth:`start_meter`."""
        return self.meters().get((source, destination), Meter())

    def meters(self) -> dict[tuple[str, str], Meter]:
        """What arrived since :meth:`start_meter`, by source and destination."""
        found = {}
        for entry in json.loads(self.run("nft", "-j", "list", "table", "inet", "arrivals"))["nftables"]:
            for item in entry.get("set", {}).get("elem", ()):
                element = item["elem"]
                source, destination = element["val"]["concat"]
                found[source, destination] = Meter(element["counter"]["packets"], element["counter"]["bytes"])
        return found


class Namespace(NetworkNamespace):
    """A new network namespace, kept by a process of its own."""

    def __init__(self, name: str) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        super().__init__(name, self._holder.pid)
        try:
            wait_until(self._is_made_or_refused, f"{name} is made")
            if self._holder.poll() is not None:
                raise PermissionError(f"cannot make network namespace {name}: needs CAP_SYS_ADMIN (or unshare -rn)")
            self.run("ip", "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def _is_made_or_refused(self) -> bool:
        try:
            there, here = Path(self.path).readlink(), Path("/proc/thread-self/ns/net").readlink()
        except OSError:  # the holder has ended
            return self._holder.poll() is not None
        return there != here or self._holder.poll() is not None

    def close(self) -> None:
        """Let the namespace go, with all devices in it."""
        if self._holder.stdin is not None:
            self._holder.stdin.close()
        self._holder.wait(_READY_S)


class Host(Namespace):
    """A namespace with an IPv4 and an IPv6 address of its own."""

    def __init__(self, name: str, address: str, address6: str) -> None:
        super().__init__(name)
        self.address = address
        self.address6 = address6


class Pod(Host):
    """A pod, to whom its node is everything behind ``eth0``."""


class Sink(Host):
    """Where the traffic goes. ``exempt_networks`` hold its exempt addresses and no others."""

    exempt_address: Final = SINK_EXEMPT
    exempt_address6: Final = "2001:db8:e::1"
    exempt_networks: Final = ("198.51.100.0/24", "2001:db8:e::/48")


class Flow:
    """An iperf3 stream under way."""

    def __init__(self, client: "subprocess.Popen[str]", server: "subprocess.Popen[bytes]", seconds: int) -> None:
        self._client = client
        self._server = server
        self._seconds = seconds

    def result(self) -> dict[str, Any]:
        """Wait for the end; iperf3's own report. Raises RuntimeError with its complaint."""
        try:
            output, _ = self._client.communicate(timeout=self._seconds + 30)
            report: dict[str, Any] = json.loads(output)
        finally:
            self.stop()
        if "error" in report:
            raise RuntimeError(f"iperf3: {report['error']}")
        return report

    def rate_bps(self) -> int:
        """Wait for the end; what arrived a second, without headers."""
        end = self.result()["end"]
        return int(end["sum_received" if "sum_received" in end else "sum"]["bits_per_second"])

    def stop(self) -> None:
        """End both processes, if they have not ended by themselves."""
        for process in (self._client, self._server):
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


_N = TypeVar("_N", bound=Namespace)

_QUIET: Final = {
    "ipv6__conf__default__accept_ra": 0,
    "ipv6__conf__default__router_solicitations": 0,
    "ipv6__conf__default__accept_dad": 0,
}
"""Keeps IPv6 from sending packets of its own that nobody counts on."""


class Topology(AbstractContextManager["Topology"]):
    """The network. Use as a context manager.

    Args:
        pods: how many pods to begin with; :meth:`add_pod` adds more.
        offloads: veth passes bundles of up to 64 KiB (TSO/GSO) on as one packet, as a real node with virtual devices
            does: right for rates. Off, every packet is one as on a wire, so bytes can be compared exactly.
        uplink_offloads: the same of the uplink alone. Off beside pods with offloads, what pods send as one packet is
            taken apart behind the uplink's queues: what arrives is exact, and more of it than without any offloads.
    """

    node: Host
    sink: Sink

    def __init__(self, pods: int = 1, *, offloads: bool = True, uplink_offloads: bool | None = None) -> None:
        self._stack = ExitStack()
        self._offloads = offloads
        self._uplink_offloads = offloads if uplink_offloads is None else uplink_offloads
        self._ports = itertools.count(5201)
        self._pods: list[Pod] = []
        try:
            self.node = self._keep(Host("node", "192.0.2.1", "2001:db8::1"))
            self.sink = self._keep(Sink("sink", SINK, "2001:db8:1::1"))
            self._connect_sink()
            for _ in range(pods):
                self.add_pod()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take everything down."""
        self.close()

    def close(self) -> None:
        """Take everything down. Can be called twice."""
        self._stack.close()

    @property
    def uplink(self) -> str:
        """The name of the node's uplink."""
        return UPLINK

    @property
    def pods(self) -> Sequence[Pod]:
        """All pods there are."""
        return self._pods

    def pod(self, index: int) -> Pod:
        """The pod that was added as the index-th."""
        return self._pods[index]

    def _keep(self, namespace: _N) -> _N:
        self._stack.callback(namespace.close)
        return namespace

    def _connect_sink(self) -> None:
        node, sink = self.node, self.sink
        for host in (node, sink):
            host.sysctl(**_QUIET)
        node.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        node.ip(f"link add {UPLINK} type veth peer name {UPLINK} netns {sink.pid}")
        self._set_up_device(node, UPLINK, offloads=self._uplink_offloads)
        self._set_up_device(sink, UPLINK, offloads=self._uplink_offloads)
        node.ip(
            f"""
            addr add 192.0.2.1/24 dev {UPLINK}
            addr add 2001:db8::1/64 dev {UPLINK} nodad
            """
        )
        sink.ip(
            f"""
            addr add 192.0.2.2/24 dev {UPLINK}
            addr add 2001:db8::2/64 dev {UPLINK} nodad
            addr add {sink.address}/32 dev lo
            addr add {sink.exempt_address}/32 dev lo
            addr add {sink.address6}/128 dev lo nodad
            addr add {sink.exempt_address6}/128 dev lo nodad
            """
        )
        self._introduce(node, UPLINK, sink, UPLINK, ("192.0.2.2", "2001:db8::2"))
        self._introduce(sink, UPLINK, node, UPLINK, ("192.0.2.1", "2001:db8::1"))
        node.ip(f"route add default via 192.0.2.2\nroute add ::/0 via 2001:db8::2 dev {UPLINK}\n")
        sink.ip(f"route add default via 192.0.2.1\nroute add ::/0 via 2001:db8::1 dev {UPLINK}\n")

    def add_pod(self) -> Pod:
        """Add a pod: a namespace behind the node, with an address of each family that the node forwards."""
        number = len(self._pods)
        pod = self._keep(Pod(f"pod{number}", f"10.77.{number // 250}.{number % 250 + 1}", f"fd77::{number + 1:x}"))
        self._pods.append(pod)
        near = f"pod{number}"
        pod.sysctl(**_QUIET)
        self.node.ip(f"link add {near} type veth peer name {POD_DEVICE} netns {pod.pid}")
        self._set_up_device(self.node, near, offloads=self._offloads)
        self._set_up_device(pod, POD_DEVICE, offloads=self._offloads)
        pod.ip(
            f"""
            addr add {pod.address}/32 dev {POD_DEVICE}
            addr add {pod.address6}/128 dev {POD_DEVICE} nodad
            """
        )
        self._introduce(pod, POD_DEVICE, self.node, near, _GATEWAY)
        self._introduce(self.node, near, pod, POD_DEVICE, (pod.address, pod.address6))
        pod.ip(
            f"""
            route add default via {_GATEWAY[0]} dev {POD_DEVICE} onlink
            route add ::/0 via {_GATEWAY[1]} dev {POD_DEVICE} onlink
            """
        )
        self.node.ip(f"route add {pod.address}/32 dev {near}\nroute add {pod.address6}/128 dev {near}\n")
        return pod

    def _set_up_device(self, host: Host, device: str, *, offloads: bool) -> None:
        if not offloads:
            host.ip(f"link set {device} gso_max_segs 1\n")
        host.ip(f"link set {device} up\n")

    def _introduce(self, host: Host, device: str, neighbour: Host, its_device: str, addresses: Sequence[str]) -> None:
        """Tell a host a neighbour's hardware address, so that no ARP and no neighbour discovery blur the counts."""
        (link,) = json.loads(neighbour.run("ip", "-j", "link", "show", "dev", its_device))
        host.ip("".join(f"neigh replace {to} dev {device} lladdr {link['address']}\n" for to in addresses))

    def traffic(self, source: Namespace, to: str, seconds: int) -> Flow:
        """Send as much as TCP can from a namespace to an address of the sink, in the background."""
        return self._start(source, to, seconds)

    def start_udp(self, source: Namespace, to: str, seconds: int, rate_bps: int) -> Flow:
        """Send UDP at a rate (of payload) from a namespace to an address of the sink, in the background."""
        return self._start(source, to, seconds, "--udp", "--bitrate", str(rate_bps), "--length", "1400")

    def start_small_udp(self, source: Namespace, to: str, payload_bytes: int) -> Flow:
        """Send datagrams of this size from a namespace as fast as iperf3 can, in the background."""
        return self._start(source, to, 60, "--udp", "--bitrate", "0", "--length", str(payload_bytes))

    def tcp_rate_bps(self, source: Namespace, to: str, seconds: int) -> int:
        """TCP goodput from a namespace to an address of the sink, measured over some seconds where it arrives."""
        return self.traffic(source, to, seconds).rate_bps()

    def tcp_rates_bps(self, flows: Sequence[tuple[Namespace, str]], seconds: int) -> list[int]:
        """Goodputs of several TCP streams at once, in order."""
        started = [self.traffic(source, to, seconds) for source, to in flows]
        return [flow.rate_bps() for flow in started]

    def _start(self, source: Namespace, to: str, seconds: int, *options: str) -> Flow:
        port = next(self._ports)
        server = subprocess.Popen(
            self.sink.command("iperf3", "--server", "--one-off", "--bind", to, "--port", str(port)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self.sink.listens(port), "iperf3 listens at the sink")
        client = subprocess.Popen(
            source.command(
                *("iperf3", "--json", "--client", to, "--port", str(port), "--time", str(seconds), *options)
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        flow = Flow(client, server, seconds)
        self._stack.callback(flow.stop)
        return flow

    def send_udp(self, source: Namespace, to: str, packets: int, payload_bytes: int = 1000) -> int:
        """Send datagrams from a namespace, as fast as they go; the bytes that makes on the wire, as HTB counts them."""
        family, ip_header = (socket.AF_INET6, 40) if ":" in to else (socket.AF_INET, 20)
        with source.inside(), socket.socket(family, socket.SOCK_DGRAM) as sender:
            for _ in range(packets):
                sender.sendto(bytes(payload_bytes), (to, 9))
        return packets * (ETHERNET_HEADER_BYTES + ip_header + 8 + payload_bytes)
