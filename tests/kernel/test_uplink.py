"""Finding the uplink, with routes as nodes have them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from slicebw.core.errors import UplinkError
from slicebw.kernel.uplink import Links
from tests.support.topology import Namespace


@pytest.fixture
def node(namespace: Namespace) -> Namespace:
    """Three devices with addresses of both families, and no default route."""
    for number, name in enumerate(("wan0", "wan1", "wan2")):
        namespace.ip(
            f"""
            link add {name} type veth peer name {name}-far
            link set {name} up
            link set {name}-far up
            addr add 10.0.{number}.1/24 dev {name}
            addr add fd00:{number}::1/64 dev {name} nodad
            """
        )
    return namespace


@pytest.fixture
def links(node: Namespace) -> Iterator[Links]:
    made = Links()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("routes", "uplink"),
    [
        pytest.param(["default via 10.0.1.2"], "wan1", id="the only one"),
        pytest.param(
            ["default via 10.0.0.2 metric 200", "default via 10.0.2.2 metric 100"], "wan2", id="lowest metric"
        ),
        pytest.param(["default via 10.0.0.2 metric 1", "default via 10.0.1.2"], "wan1", id="no metric is the lowest"),
        pytest.param(["default nexthop via 10.0.2.2 nexthop via 10.0.0.2"], "wan2", id="first of several next hops"),
        pytest.param(["::/0 via fd00:1::2"], "wan1", id="IPv6 only"),
        pytest.param(["::/0 nexthop via fd00:2::2 nexthop via fd00::2"], "wan2", id="IPv6 with several next hops"),
        pytest.param(
            ["default via 10.0.2.2 metric 500", "::/0 via fd00:1::2 metric 1"], "wan2", id="IPv4 goes before IPv6"
        ),
        pytest.param(["default via 10.0.0.2 table 100", "default via 10.0.1.2"], "wan1", id="only the main table"),
        pytest.param(["unreachable default", "::/0 via fd00:1::2"], "wan1", id="only unicast routes"),
        pytest.param(["0.0.0.0/1 via 10.0.0.2", "default via 10.0.1.2"], "wan1", id="half of everything is no default"),
    ],
)
def test_the_uplink_carries_the_default_route(node: Namespace, links: Links, routes: list[str], uplink: str) -> None:
    node.ip("".join(f"route add {route}\n" for route in routes))
    assert links.find(None).name == uplink


def test_a_device_can_be_named_against_the_default_route(node: Namespace, links: Links) -> None:
    node.ip("route add default via 10.0.0.2\n")
    found = links.find("wan1")
    assert found.name == "wan1"
    assert f"{found.ifindex}: wan1@" in node.run("ip", "link", "show", "wan1")


def test_without_a_default_route_the_error_lists_the_devices(node: Namespace, links: Links) -> None:
    with pytest.raises(UplinkError) as caught:
        links.find(None)
    assert str(caught.value) == (
        "no default route in the main table, IPv4 or IPv6: name the uplink; "
        "there are lo, wan0-far, wan0, wan1-far, wan1, wan2-far, wan2"
    )


@pytest.mark.parametrize("name", ["eth7", "a-name-longer-than-any-device-has", "a-name-longer-than", ""])
def test_a_device_that_is_not_there_is_named_beside_those_that_are(node: Namespace, links: Links, name: str) -> None:
    with pytest.raises(UplinkError) as caught:
        links.find(name)
    assert str(caught.value).startswith(f"there is no device named {name}; there are lo, ")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_known_is_looked_up_again_when_it_is_another_one(node: Namespace, links: Links) -> None:
    first = links.find("wan1")
    assert links.find("wan1") == first
    node.ip("link set wan1 down\n")
    assert links.find("wan1") == first
    node.ip("link set wan1 name old\nlink set wan2 down\nlink set wan2 name wan1\n")
    second = links.find("wan1")
    assert (second.name, second.ifindex) != (first.name, first.ifindex)
    assert links.find("old").ifindex == first.ifindex
    node.ip("link del wan1\nlink add wan1 type ifb\n")
    assert (links.find("wan1").name, links.find("wan1").kind) == ("wan1", "ifb")
    node.ip("link set wan1 name gone\nlink property add dev gone altname wan1\n")
    with pytest.raises(UplinkError, match="no device named wan1; there are "):
        links.find("wan1")


def test_a_number_stays_with_its_device_and_is_of_one_namespace(node: Namespace, links: Links) -> None:
    found = links.find("wan1")
    node.ip("link set wan1 down\nlink set wan1 name old\nlink set wan2 down\nlink set wan2 name wan1\n")
    assert links.find(found.ifindex).name == "old"
    node.ip("link del old\n")
    assert links.lookup(found.ifindex) is None
    with pytest.raises(UplinkError, match=f"there is no device with number {found.ifindex}; there are lo, "):
        links.find(found.ifindex)
    assert links.namespace() == Links().namespace()
    other = Namespace("other")
    try:
        with other.inside():
            assert links.namespace() != Links().namespace()
    finally:
        other.close()


def test_the_line_rate_is_what_the_driver_says_or_unknown(node: Namespace, links: Links) -> None:
    node.ip("link add name quiet type ifb\nlink set quiet up\n")
    assert links.line_rate_bps(links.find("wan0")) == 10_000_000_000
    assert links.line_rate_bps(links.find("quiet")) is None
    assert links.line_rate_bps(links.find("lo")) is None


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no /dev/net/tun")
def test_the_speed_that_tun_makes_up_is_not_believed(node: Namespace, links: Links) -> None:
    node.ip("tuntap add name tun0 mode tun\n")
    assert links.line_rate_bps(links.find("tun0")) is None
