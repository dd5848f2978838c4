"""NodeBandwidth: a wrong field is named and left out, the others hold; the status says what is in force."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from slicebw.api import node_bandwidth
from slicebw.api.conditions import FALSE, TRUE
from slicebw.core.desired import Mode, NodeSpec
from slicebw.core.reports import NodeReport
from slicebw.core.text import bytes_text
from tests.unit.api import crd

SCHEMA = crd.schema("nodebandwidths")
T0 = 1_795_341_600
REPORT = NodeReport(
    device="eth0",
    mode=Mode.ENFORCE,
    cap_bps=500_000_000,
    line_rate_bps=10**9,
    slices=3,
    capped_slices=1,
    host_bytes=2**30,
    default_bytes=7,
    foreign_qdisc=None,
    overcommitted=None,
    ready=True,
    message="limits are in force",
    generation=4,
    unclassified_max_bps=50_000_000,
    unclassified_exempt_max_bps=10**8,
)


def read(spec: Any, **metadata: Any) -> NodeSpec:
    return node_bandwidth.parse({"metadata": {"name": "default", **metadata}, "spec": spec})


def test_an_empty_spec_sets_nothing_and_has_no_errors() -> None:
    for spec in ({}, None, {"device": None, "exemptDestinations": None, "unclassified": {"maxRate": None}}):
        assert read(spec) == NodeSpec()
    assert node_bandwidth.parse({}) == NodeSpec()


def test_every_field_is_read() -> None:
    spec = {
        "device": "bond0.100",
        "cap": "500M",
        "lineRate": 10**9,
        "mode": "Monitor",
        "exemptDestinations": ["192.0.2.0/24", "2001:DB8::/32"],
        "minRateShare": "30%",
        "unclassified": {"maxRate": "50M", "exemptMaxRate": 10**8},
    }
    assert read(spec, generation=5) == NodeSpec(
        device="bond0.100",
        cap_bps=500_000_000,
        line_rate_bps=10**9,
        mode=Mode.MONITOR,
        exempt_destinations=("192.0.2.0/24", "2001:db8::/32"),
        min_rate_share_percent=30,
        unclassified_max_bps=50_000_000,
        unclassified_exempt_max_bps=10**8,
        generation=5,
    )


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("device", "a/b", '"a/b" is not a network device: use its name, up to 15 letters, digits, _ . @ + - (eth0)'),
        ("device", "..", '".." is not a network device: use its name, up to 15 letters, digits, _ . @ + - (eth0)'),
        ("device", "e" * 16,
         f'"{"e" * 16}" is not a network device: use its name, up to 15 letters, digits, _ . @ + - (eth0)'),
        ("device", 0, "0 is not a network device: use its name, up to 15 letters, digits, _ . @ + - (eth0)"),
        ("cap", "10m", '"10m" is not a rate: m means thousandths; millions are 10M'),
        (
            "lineRate",
            1,
            "1 is too low: at least 1M: the node's own traffic is under it too, so that less (100 for 100M) would cut "
            "the node off",
        ),
        ("mode", "enforce", '"enforce" is not a mode: use Enforce, Monitor, Disabled'),
        ("mode", ["Enforce"], "a list is not a mode: use Enforce, Monitor, Disabled"),
        ("minRateShare", 25, "25 is not a percentage: use a whole one from 1% to 100% (80%)"),
        ("exemptDestination", [], "unknown field; did you mean exemptDestinations?"),
        (
            "budget",
            1,
            "unknown field; there are device, cap, lineRate, mode, exemptDestinations, minRateShare, unclassified",
        ),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_its_value_and_what_is_allowed_and_the_others_hold(
    field: str, value: Any, error: str
) -> None:
    good: dict[str, Any] = {"device": "eth1", "cap": "1G", "mode": "Disabled", "exemptDestinations": ["10.0.0.0/8"]}
    parsed = read({**good, field: value})
    assert parsed.errors == (f"spec.{field}: {error}",)
    expected = read({name: one for name, one in good.items() if name != field})
    assert len(parsed.wrong) == ("unknown field" not in error)
    assert replace(parsed, errors=(), wrong=()) == expected


def test_what_is_wrong_is_what_it_was_last_and_nothing_else_is() -> None:
    before = read({"cap": "1G", "mode": "Monitor", "device": "eth1"})
    own, default = read({"cap": "0"}), read({"cap": "2G", "mode": "monitor"})
    merged = own.over(default)
    assert set(merged.wrong) == {"cap_bps", "mode"}
    kept = merged.with_last_good(before)
    assert (kept.cap_bps, kept.mode, kept.device) == (10**9, Mode.MONITOR, None)
    assert merged.with_last_good(NodeSpec()) == merged, (
        "where nothing was good before, the default's is better than none"
    )
    assert merged.cap_bps == 2 * 10**9
    assert read({"mode": "Enforce"}).over(default).wrong == ()


@pytest.mark.parametrize(
    ("unclassified", "errors", "wrong"),
    [
        (
            {"maxRate": "100", "exemptMaxRate": "2G"},
            ('.maxRate: "100" is too low: at least 1M: the node\'s ARP is under it too',),
            ("unclassified_max_bps",),
        ),
        (
            {"exemptMaxRate": "2P"},
            ('.exemptMaxRate: "2P" is too high: at most 1P, 10^15 bit/s',),
            ("unclassified_exempt_max_bps",),
        ),
        (
            "10M",
            (': "10M" must be an object with named fields',),
            ("unclassified_max_bps", "unclassified_exempt_max_bps"),
        ),
        ({"maxrate": "10M"}, (".maxrate: unknown field; did you mean maxRate?",), ()),
    ],
)
def test_a_wrong_ceiling_of_unclassified_traffic_is_what_it_was_last(
    unclassified: Any, errors: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    before = read({"unclassified": {"maxRate": "5M", "exemptMaxRate": "6M"}})
    parsed = read({"unclassified": unclassified})
    assert parsed.errors == tuple(f"spec.unclassified{error}" for error in errors)
    assert parsed.wrong == wrong
    kept = parsed.with_last_good(before)
    for name in wrong:
        assert getattr(kept, name) == getattr(before, name)


def test_the_ceilings_of_unclassified_traffic_are_overridden_one_by_one() -> None:
    default = read({"unclassified": {"maxRate": "5M", "exemptMaxRate": "6M"}})
    own = read({"unclassified": {"exemptMaxRate": "7M"}})
    merged = own.over(default)
    assert (merged.unclassified_max_bps, merged.unclassified_exempt_max_bps) == (5_000_000, 7_000_000)


def test_of_the_exempt_destinations_only_the_wrong_ones_are_left_out() -> None:
    usage = "use a network or an address (192.0.2.0/24, 2001:db8::/32, 192.0.2.1)"
    parsed = read(
        {
            "exemptDestinations": [
                "10.1.2.3/8", "192.0.2.1", "2001:db8::1/64", "192.0.2.1/32", "example.org", 8, "10.0.0.0/33",
                "2001:0db8:0000::/32", "fe80::1%eth0", "010.0.0.0/8", "0.0.0.0/0", "::/0", "1.2.3/24", None,
                "10.0.0.0/255.0.0.0",
            ]
        }
    )  # fmt: skip
    assert parsed.exempt_destinations == ("192.0.2.1/32", "2001:db8::/32", "0.0.0.0/0", "::/0")
    assert parsed.errors == (
        'spec.exemptDestinations[0]: "10.1.2.3/8" has bits set behind its prefix: did you mean 10.0.0.0/8?',
        'spec.exemptDestinations[2]: "2001:db8::1/64" has bits set behind its prefix: did you mean 2001:db8::/64?',
        f'spec.exemptDestinations[4]: "example.org" is not a network: {usage}',
        f"spec.exemptDestinations[5]: 8 is not a network: {usage}",
        f'spec.exemptDestinations[6]: "10.0.0.0/33" is not a network: {usage}',
        f'spec.exemptDestinations[8]: "fe80::1%eth0" is not a network: {usage}',
        f'spec.exemptDestinations[9]: "010.0.0.0/8" is not a network: {usage}',
        f'spec.exemptDestinations[12]: "1.2.3/24" is not a network: {usage}',
        f"spec.exemptDestinations[13]: null is not a network: {usage}",
        f'spec.exemptDestinations[14]: "10.0.0.0/255.0.0.0" is not a network: {usage}',
    )


@given(st.ip_addresses(), st.integers(0, 128))
def test_any_network_of_either_family_is_read_and_its_canonical_text_read_again_the_same(
    address: Any, prefix: int
) -> None:
    first = read({"exemptDestinations": [f"{address}/{min(prefix, address.max_prefixlen)}"]})
    if first.errors:
        meant = first.errors[0].removesuffix("?").split()[-1]
        assert read({"exemptDestinations": [meant]}).exempt_destinations == (meant,)
    else:
        assert read({"exemptDestinations": list(first.exempt_destinations or ())}) == first


@pytest.mark.parametrize("count", [10_001, 20_000])
def test_more_destinations_than_an_object_can_hold_leave_the_last_good_ones_in_force(count: int) -> None:
    before = read({"exemptDestinations": ["192.0.2.0/24"]})
    parsed = read({"exemptDestinations": [f"10.{index // 256}.{index % 256}.0/24" for index in range(count)]})
    assert parsed.errors == (
        f"spec.exemptDestinations: {count} are too many: use at most 10000; the last good list stays in force",
    )
    assert parsed.with_last_good(before).exempt_destinations == ("192.0.2.0/24",)
    assert parsed.exempt_destinations is None, "part of the list would be limits that nobody has chosen"


def test_as_many_destinations_as_an_object_can_hold_are_read() -> None:
    parsed = read({"exemptDestinations": [f"10.{index // 256}.{index % 256}.0/24" for index in range(10_000)]})
    assert (len(parsed.exempt_destinations or ()), parsed.errors, parsed.wrong) == (10_000, (), ())


def test_a_destination_list_that_is_none_is_named() -> None:
    parsed = read({"exemptDestinations": "10.0.0.0/8"})
    assert parsed.errors == ('spec.exemptDestinations: "10.0.0.0/8" must be a list',)


def test_unknown_fields_from_an_api_server_belong_to_a_newer_version_and_are_ignored() -> None:
    assert read({"burst": 1}, resourceVersion="9") == NodeSpec()


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(
                st.integers(), st.text(max_size=5), st.sampled_from([*SCHEMA["properties"]["spec"]["properties"]])
            ),
            inner,
            max_size=6,
        ),
    ),
    max_leaves=30,
)


@given(json_values)
def test_nothing_at_all_makes_parse_raise(obj: Any) -> None:
    for candidate in (obj, {"metadata": {"name": "default"}, "spec": obj}):
        assert all(error.isprintable() for error in node_bandwidth.parse(candidate).errors)
        node_bandwidth.parse_status(candidate)


def conditions_of(report: NodeReport) -> dict[str, tuple[str, str, str]]:
    body = node_bandwidth.status_object("node-7", report, T0)
    return {one["type"]: (one["status"], one["reason"], one["message"]) for one in body["status"]["conditions"]}


def test_a_node_that_does_what_is_asked_says_so() -> None:
    body = node_bandwidth.status_object("node-7", REPORT, T0)
    assert crd.Server().errors(SCHEMA, body) == []
    conditions = body["status"].pop("conditions")
    assert body == {
        "apiVersion": "slicebw.io/v1alpha1",
        "kind": "NodeBandwidth",
        "metadata": {"name": "node-7"},
        "status": {
            "observedGeneration": 4,
            "device": "eth0",
            "mode": "Enforce",
            "cap": "500M",
            "capBitsPerSecond": 500_000_000,
            "lineRate": "1G",
            "lineRateBitsPerSecond": 1_000_000_000,
            "unclassified": {
                "maxRate": "50M",
                "maxBitsPerSecond": 50_000_000,
                "exemptMaxRate": "100M",
                "exemptMaxBitsPerSecond": 100_000_000,
            },
            "slices": 3,
            "cappedSlices": 1,
            "rootSent": bytes_text(2**30),
            "bytesRoot": 2**30,
            "defaultSent": "7",
            "bytesDefault": 7,
            "reportedAt": "2026-11-22T10:00:00Z",
        },
    }
    assert conditions[0] == {
        "type": "Ready",
        "status": "True",
        "reason": "Enforcing",
        "message": "limits are in force",
        "lastTransitionTime": "2026-11-22T10:00:00Z",
        "observedGeneration": 4,
    }


def test_each_condition_says_why() -> None:
    assert conditions_of(REPORT) == {
        "Ready": (TRUE, "Enforcing", "limits are in force"),
        "ForeignQdisc": (FALSE, "NoneFound", "no other program's qdisc is in the way on eth0"),
        "GuaranteesOvercommitted": (FALSE, "WithinCap", "the node can send all guaranteed rates at once"),
    }
    trouble = replace(REPORT, foreign_qdisc="prio", overcommitted="2G of 1G", ready=False, message="it is in the way")
    assert conditions_of(trouble) == {
        "Ready": (FALSE, "NotReady", "it is in the way"),
        "ForeignQdisc": (
            TRUE,
            "NotOurs",
            "eth0 has a prio qdisc that is not slicebw's: remove it, or name another device",
        ),
        "GuaranteesOvercommitted": (TRUE, "Overcommitted", "2G of 1G"),
    }
    assert conditions_of(replace(REPORT, mode=Mode.MONITOR))["Ready"][1] == "Monitoring"
    assert conditions_of(replace(REPORT, mode=Mode.DISABLED))["Ready"][1] == "Disabled"
    kept = replace(REPORT, ready=False, not_ready_reason="UplinkKept", message="it stays on eth0")
    assert conditions_of(kept)["Ready"] == (FALSE, "UplinkKept", "it stays on eth0")


def test_transitions_keep_their_time_across_reports() -> None:
    first = node_bandwidth.status_object("node-7", REPORT, T0)
    second = node_bandwidth.status_object(
        "node-7", replace(REPORT, ready=False), T0 + 60, node_bandwidth.parse_status(first)
    )
    assert [one.last_transition_s for one in node_bandwidth.parse_status(second)] == [T0 + 60, T0, T0]
    assert second["status"]["reportedAt"] == "2026-11-22T10:01:00Z"


def test_making_a_node_s_own_object_sets_nothing_that_a_person_may_have_set() -> None:
    assert node_bandwidth.node_object("node-7") == {
        "apiVersion": "slicebw.io/v1alpha1",
        "kind": "NodeBandwidth",
        "metadata": {"name": "node-7"},
    }
