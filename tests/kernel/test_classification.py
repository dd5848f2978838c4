"""Which class real packets land in: pods, the node, others; both families; behind NAT and inside tunnels."""

import socket
from dataclasses import dataclass

import pytest

from slicebw.core.dataplane import DeleteClass, NftTable, ReplaceTable, UpdateTable, classid
from slicebw.kernel.htb import HtbShaper
from slicebw.kernel.nft import NftClassifier
from tests.support.topology import POD_DEVICE, UPLINK, Host, Namespace, Topology, wait_until
from tests.support.trees import LINE_RATE_BPS, creation, tree

NOISE_BYTES = 400
"""The bytes that the node's own IPv6 (multicast reports) may add to the host and default classes during a test."""


@dataclass
class Node:
    """A lab whose node has a tree and a table: pod 0 is slice 1, pod 1 is in no slice."""

    lab: Topology
    shaper: HtbShaper
    classifier: NftClassifier

    def sent(self) -> dict[int, int]:
        """Return every leaf's counter."""
        classes = self.shaper.read(UPLINK).classes
        return {minor: observed.sent_bytes for minor, observed in classes.items() if minor >= 0x1000}

    def charged(self, source: Namespace, to: str, packets: int = 10) -> dict[int, int]:
        """Send datagrams, and wait until all have left. Returns the bytes that each class has sent."""
        before = self.sent()
        expected = self.lab.send_udp(source, to, packets)
        return self.wait_for(before, expected)

    def wait_for(self, before: dict[int, int], expected: int) -> dict[int, int]:
        """Wait until at least so many bytes were sent since ``before``. Returns them by class, without noise."""

        def grown() -> dict[int, int]:
            return {minor: count - before.get(minor, 0) for minor, count in self.sent().items()}

        wait_until(lambda: sum(grown().values()) >= expected, f"{expected} bytes have been sent")
        return {minor: count for minor, count in grown().items() if count > NOISE_BYTES}


@pytest.fixture
def node(lab: Topology, shaper: HtbShaper, classifier: NftClassifier) -> Node:
    assert shaper.apply(UPLINK, creation(tree()), LINE_RATE_BPS) == []
    pod = lab.pod(0)
    slices = {pod.address: 1, pod.address6: 1}
    classifier.apply(ReplaceTable(NftTable(slices, frozenset(lab.sink.exempt_networks))))
    return Node(lab, shaper, classifier)


def wire(packets: int, destination: str, payload: int = 1000) -> int:
    """Return the size of UDP datagrams as HTB counts it, in bytes."""
    return packets * (14 + (40 if ":" in destination else 20) + 8 + payload)


def sink_address(node: Node, name: str) -> str:
    return str(getattr(node.lab.sink, name))


DESTINATIONS = [
    ("address", 0x1000),
    ("address6", 0x1000),
    ("exempt_address", 0x2000),
    ("exempt_address6", 0x2000),
]


@pytest.mark.parametrize(("name", "kind"), DESTINATIONS)
def test_a_slices_packets_go_to_its_class(node: Node, name: str, kind: int) -> None:
    to = sink_address(node, name)
    charged = node.charged(node.lab.pod(0), to)
    assert {classid(minor): count for minor, count in charged.items()} == {classid(kind | 1): wire(10, to)}


@pytest.mark.parametrize(("name", "kind"), DESTINATIONS)
def test_what_is_forwarded_from_no_slice_goes_to_default(node: Node, name: str, kind: int) -> None:
    to = sink_address(node, name)
    charged = node.charged(node.lab.pod(1), to)
    assert list(map(classid, charged)) == [classid(kind | 0xFFF)]
    assert 0 <= charged[kind | 0xFFF] - wire(10, to) < NOISE_BYTES


@pytest.mark.parametrize(("name", "kind"), DESTINATIONS)
def test_the_nodes_own_packets_go_to_the_hosts_class(node: Node, name: str, kind: int) -> None:
    to = sink_address(node, name)
    charged = node.charged(node.lab.node, to)
    assert list(map(classid, charged)) == [classid(kind)]
    assert 0 <= charged[kind] - wire(10, to) < NOISE_BYTES


@pytest.mark.parametrize("source", ["pod", "node"])
def test_tcp_goes_where_udp_goes(node: Node, source: str) -> None:
    lab = node.lab
    sender: Host = lab.pod(0) if source == "pod" else lab.node
    before = node.sent()
    report = lab.traffic(sender, lab.sink.exempt_address6, 1).result()
    charged = node.wait_for(before, int(report["end"]["sum_received"]["bytes"]))
    assert list(map(classid, charged)) == ["1:2001" if source == "pod" else "1:2000"]


@pytest.mark.parametrize("command", ["masquerade", "snat ip to 192.0.2.1"])
def test_source_nat_behind_us_changes_nothing(node: Node, command: str) -> None:
    lab = node.lab
    lab.sink.start_meter()
    rules = f"chain sources {{ type nat hook postrouting priority srcnat; oifname {UPLINK} {command}; }}"
    lab.node.run("nft", "-f", "-", text=f"table inet nat {{ {rules}\n}}")
    to = lab.sink.address
    assert node.charged(lab.pod(0), to) == {0x1001: wire(10, to)}
    wait_until(lambda: lab.sink.meter("192.0.2.1", to).packets == 10, "all arrived, from the node's address")
    assert lab.sink.meter(lab.pod(0).address, to).packets == 0


def test_an_address_that_moves_takes_its_packets_along(node: Node) -> None:
    pod, to = node.lab.pod(0), node.lab.sink.address
    node.classifier.apply(UpdateTable(remove=(pod.address,), add=((pod.address, 2),)))
    assert node.charged(pod, to) == {0x1002: wire(10, to)}
    node.classifier.apply(UpdateTable(remove=(pod.address,)))
    assert list(node.charged(pod, to)) == [0x1FFF]


def test_a_slice_without_its_class_flows_in_default(node: Node) -> None:
    assert node.shaper.apply(UPLINK, [DeleteClass(0x1001)], LINE_RATE_BPS) == []
    assert list(node.charged(node.lab.pod(0), node.lab.sink.address)) == [0x1FFF]


@pytest.mark.parametrize(("pod", "minor"), [(0, 0x1001), (1, 0x1FFF)])
def test_a_pod_cannot_choose_its_class(node: Node, pod: int, minor: int) -> None:
    lab = node.lab
    before = node.sent()
    with lab.pod(pod).inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 0x12002)
        for _ in range(10):
            sender.sendto(bytes(1000), (lab.sink.address, 9))
    assert list(node.wait_for(before, wire(10, lab.sink.address))) == [minor]


def test_a_pod_that_forges_the_nodes_address_does_not_become_root(node: Node) -> None:
    lab = node.lab
    lab.pod(1).ip("addr add 2001:db8::1/128 dev lo nodad\n")
    before = node.sent()
    with lab.pod(1).inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.bind(("2001:db8::1", 0))
        for _ in range(10):
            sender.sendto(bytes(1000), (lab.sink.address6, 9))
    assert list(node.wait_for(before, wire(10, lab.sink.address6))) == [0x1FFF]


def test_arp_goes_to_default(node: Node) -> None:
    node.lab.node.ip(f"addr add 192.0.3.1/24 dev {UPLINK}\n")
    before = node.sent()
    node.lab.send_udp(node.lab.node, "192.0.3.99", 1)
    wait_until(lambda: node.sent()[0x1FFF] >= before[0x1FFF] + 42, "an ARP request has been sent")
    assert node.sent()[0x1001] == before[0x1001]


@pytest.fixture
def tunnel(node: Node) -> str:
    """Make a VXLAN between node and sink, as overlay networks have. Returns the sink's address in it."""
    lab = node.lab
    for host, number, far in ((lab.node, 1, "192.0.2.2"), (lab.sink, 2, "192.0.2.1")):
        host.ip(
            f"""
            link add name overlay type vxlan id 7 remote {far} dstport 4789 dev {UPLINK}
            link set overlay up
            addr add 10.99.0.{number}/24 dev overlay
            """
        )
    lab.sink.ip("".join(f"route add {pod.address}/32 via 10.99.0.1\n" for pod in lab.pods))
    lab.send_udp(lab.node, "10.99.0.2", 1)  # so that ARP inside the tunnel is done
    wait_until(lambda: "10.99.0.2 lladdr" in lab.node.run("ip", "neigh", "show", "dev", "overlay"), "ARP is done")
    return "10.99.0.2"


@pytest.mark.parametrize(("sender", "minor"), [("pod0", 0x1001), ("pod1", 0x1FFF), ("node", 0x1000)])
def test_a_tunnels_outer_packets_stay_with_the_inner_ones(node: Node, tunnel: str, sender: str, minor: int) -> None:
    lab = node.lab
    source: Host = {"pod0": lab.pod(0), "pod1": lab.pod(1), "node": lab.node}[sender]
    charged = node.charged(source, tunnel)
    outer = 10 * (14 + 20 + 8 + 8)  # Ethernet, IP, UDP and VXLAN headers around each
    assert list(map(classid, charged)) == [classid(minor)]
    assert 0 <= charged[minor] - wire(10, tunnel) - outer < NOISE_BYTES


def test_an_exempt_destination_inside_a_tunnel_counts_as_exempt(node: Node, tunnel: str) -> None:
    node.classifier.apply(UpdateTable(exempt_add=("10.99.0.0/16",)))
    assert list(node.charged(node.lab.pod(0), tunnel)) == [0x2001]


def test_classification_needs_no_tree(node: Node) -> None:
    node.lab.node.run("tc", "qdisc", "del", "dev", UPLINK, "root")
    node.lab.sink.start_meter()
    pod, to = node.lab.pod(0), node.lab.sink.address
    node.lab.send_udp(pod, to, 10)
    wait_until(lambda: node.lab.sink.meter(pod.address, to).packets == 10, "all arrived")


def test_pods_reach_each_other_and_the_node_unshaped(node: Node) -> None:
    lab = node.lab
    before = node.sent()
    with lab.pod(1).inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((lab.pod(1).address, 9))
        receiver.settimeout(5)
        lab.send_udp(lab.pod(0), lab.pod(1).address, 1)
        assert receiver.recvfrom(2000)[1][0] == lab.pod(0).address
    assert node.sent()[0x1001] == before[0x1001]
    assert POD_DEVICE not in lab.node.run("tc", "qdisc", "show")
