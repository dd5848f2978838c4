"""Pods: the needed fields, from any input."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicebw.api import pod
from slicebw.core.desired import Pod


def test_everything_needed_is_read() -> None:
    obj = {
        "metadata": {
            "namespace": "princeton-codeen",
            "name": "proxy-0",
            "uid": "u-1",
            "labels": {"app": "proxy"},
            "creationTimestamp": "2026-11-22T10:00:00Z",
        },
        "spec": {"nodeName": "node-7"},
        "status": {
            "phase": "Running",
            "podIP": "10.1.0.5",
            "podIPs": [{"ip": "10.1.0.5"}, {"ip": "2001:0DB8:0::5"}],
        },
    }
    assert pod.parse(obj) == Pod(
        namespace="princeton-codeen",
        name="proxy-0",
        uid="u-1",
        labels={"app": "proxy"},
        addresses=("10.1.0.5", "2001:db8::5"),
        host_network=False,
        finished=False,
        created_s=1_795_341_600,
        deleting=False,
    )


@pytest.mark.parametrize(
    ("status", "addresses"),
    [
        ({}, ()),
        ({"podIP": "10.1.0.5"}, ("10.1.0.5",)),
        ({"podIP": ""}, ()),
        ({"podIPs": [{"ip": "fd00::1"}], "podIP": "fd00:0::1"}, ("fd00::1",)),
        ({"podIPs": [{"ip": "::ffff:10.1.0.5"}]}, ("10.1.0.5",)),
        ({"podIPs": [{"ip": "nonsense"}, {}, 7, {"ip": 7}, {"ip": "10.1.0.6"}]}, ("10.1.0.6",)),
        ({"podIPs": "10.1.0.5"}, ()),
        (None, ()),
    ],
)
def test_addresses_of_both_families_are_canonical_and_each_there_once(status: Any, addresses: tuple[str, ...]) -> None:
    assert pod.parse({"status": status}).addresses == addresses


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Pending", False), ("Running", False), ("Unknown", False), ("Succeeded", True), ("Failed", True), (None, False)],
)
def test_a_pod_is_finished_when_its_phase_says_so(phase: str | None, finished: bool) -> None:
    assert pod.parse({"status": {"phase": phase}}).finished is finished


def test_a_pod_that_is_being_deleted_still_sends() -> None:
    parsed = pod.parse({"metadata": {"deletionTimestamp": "2026-11-22T10:00:00Z"}, "status": {"phase": "Running"}})
    assert parsed.deleting
    assert not parsed.finished


def test_the_host_s_network_is_told_from_a_pod_s_own() -> None:
    assert pod.parse({"spec": {"hostNetwork": True}}).host_network
    assert not pod.parse({"spec": {"hostNetwork": "true"}}).host_network


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["metadata", "spec", "status", "podIPs", "podIP", "ip", "labels", "phase", "name", "uid"]),
            inner,
            max_size=6,
        ),
    ),
    max_leaves=30,
)


@given(json_values)
def test_nothing_at_all_makes_parse_raise(obj: Any) -> None:
    parsed = pod.parse(obj)
    assert all(isinstance(address, str) for address in parsed.addresses)


@pytest.mark.parametrize(
    "address",
    [
        "fe80::1%eth0",
        "fe80::1%x }\ndelete table inet other\n#",
        "::ffff:192.0.2.1%3",
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",  # noqa: S104 - nothing is bound to it
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
    ],
)
def test_an_address_that_cannot_be_one_pods_own_is_left_out(address: str) -> None:
    ips = [{"ip": address}, {"ip": "192.0.2.7"}]
    assert pod.parse({"status": {"podIPs": ips, "podIP": address}}).addresses == ("192.0.2.7",)
