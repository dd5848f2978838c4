"""The network between a cluster's nodes, this machine and the world outside."""

from contextlib import suppress
from typing import Final

from hack.lab.cluster_layout import MACHINE, POD_NETWORK, SINKS, WAN, Layout, pod_network
from hack.lab.console import LabError, step, wait_until
from hack.lab.files import Lock
from tests.support.topology import UPLINK

API_SERVICE: Final = "10.0.0.1"
"""The address of the Service kubernetes."""
_BRIDGE: Final = "bridge0"


def start_wan(layout: Layout, lock: Lock) -> None:
    """Make the network outside, with this machine's link to it, as far as it is not there."""
    layout.choose_number()
    service = layout.service(WAN)
    if not service.runs():
        step(f"starting the network outside the nodes: {' '.join(SINKS)}")
        # Any process that sleeps for ever would do; this one can be recognised by its argument.
        service.launch(["unshare", "--net", "tail", "-f", "--", str(layout.network_file)], lock)
    if not wait_until(lambda: layout.has_namespace(WAN), "the network namespace", 10):
        raise LabError(f"could not make a network namespace; see {service.log_file}")
    # The machine's address is set last and tells that all is done.
    with suppress(RuntimeError):
        if f" {layout.machine_address}/" in MACHINE.run("ip", "-o", "address", "show", "dev", layout.device):
            return
    with suppress(RuntimeError):
        MACHINE.run("ip", "link", "delete", layout.device)
    _link_wan(layout)


def _link_wan(layout: Layout) -> None:
    wan = layout.namespace(WAN)
    with suppress(RuntimeError):  # an interrupted start may have made it
        wan.run("ip", "link", "add", _BRIDGE, "type", "bridge")
    wan.ip(
        f"link set lo up\nlink set {_BRIDGE} up\naddress replace {layout.gateway}/24 dev {_BRIDGE}\n"
        + "".join(f"address replace {sink}/32 dev lo\n" for sink in SINKS)
    )
    MACHINE.ip(f"link add {layout.device} type veth peer name machine netns {wan.pid}\n")
    wan.ip(f"link set machine master {_BRIDGE} up\n")
    MACHINE.ip(f"link set {layout.device} up\naddress add {layout.machine_address}/24 dev {layout.device}\n")


def connect_node(layout: Layout, name: str, api_endpoint: str) -> None:
    """Give a node its uplink and its routes, and the other nodes theirs to its pods.

    Args:
        layout: of the cluster.
        name: of a node that runs.
        api_endpoint: the API server's host and port.
    """
    node = layout.namespace(name)
    # The default route is set last and tells that all is done; the node's init waits for it.
    if not node.run("ip", "route", "show", "default").strip():
        _give_uplink(layout, name, api_endpoint)
    for other in layout.nodes():
        if other == name:
            continue
        node.run("ip", "route", "replace", pod_network(other), "via", layout.node_address(other))
        # One that is not there yet or powered off gets its routes when it starts.
        with suppress(LabError, RuntimeError):
            if layout.has_namespace(other):
                route = (pod_network(name), "via", layout.node_address(name))
                layout.namespace(other).run("ip", "route", "replace", *route)


def _give_uplink(layout: Layout, name: str, api_endpoint: str) -> None:
    node, wan, address = layout.namespace(name), layout.namespace(WAN), layout.node_address(name)
    with suppress(RuntimeError):  # of an interrupted start
        wan.run("ip", "link", "delete", name)
    wan.ip(
        f"link add {name} type veth peer name {UPLINK} netns {node.pid}\n"
        f"link set {name} master {_BRIDGE} up\n"
        f"route replace {pod_network(name)} via {address}\n"
    )
    node.sysctl(ipv4__ip_forward=1)
    node.run("nft", "-f", "-", text=_service_table(layout, api_endpoint))
    node.ip(
        "link set lo up\n"
        f"address add {address}/24 dev {UPLINK}\n"
        f"link set {UPLINK} up\n"
        f"route add default via {layout.gateway}\n"
    )


def _service_table(layout: Layout, api_endpoint: str) -> str:
    # In place of kube-proxy, which would need iptables and its kernel modules for the one Service there is.
    # Only on the way to the API server is a pod behind its node's address: this machine has no route to pods.
    return f"""
table ip cluster {{
  chain service {{
    type nat hook prerouting priority dstnat
    ip daddr {API_SERVICE} tcp dport 443 dnat to {api_endpoint}
  }}
  chain service-from-node {{
    type nat hook output priority -100
    ip daddr {API_SERVICE} tcp dport 443 dnat to {api_endpoint}
  }}
  chain behind-node {{
    type nat hook postrouting priority srcnat
    ip saddr {POD_NETWORK}.0.0/16 ip daddr {layout.machine_address} masquerade
  }}
}}
"""
