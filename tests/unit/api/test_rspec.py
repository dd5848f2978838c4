"""From a GetSlivers record to SliceBandwidths: attributes in their units, mistakes on the slice they belong to."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicebw.api import rspec, slice_bandwidth
from slicebw.api.fields import FieldError
from slicebw.api.quantity import MAX_BYTES, MAX_RATE_BPS, parse_bytes, parse_rate
from slicebw.api.rspec import Imported, convert
from slicebw.core.desired import DEFAULT_LIMITS, SliceKey, SliceLimits, percent_of
from tests.unit.api import crd
from tests.unit.api.crd import Server

SPEC_SCHEMA = crd.schema("slicebandwidths", "spec")
TEN = (
    *("net_min_rate", "net_max_rate", "net_max_kbyte", "net_thresh_kbyte", "net_share"),
    *("net_i2_min_rate", "net_i2_max_rate", "net_i2_max_kbyte", "net_i2_thresh_kbyte", "net_i2_share"),
)


def sliver(name: str = "princeton_codeen", /, **attributes: object) -> dict[str, Any]:
    """A sliver as PLCAPI gives it, with fields that are not about bandwidth, too."""
    pairs = [{"tagname": key, "value": value} for key, value in attributes.items()]
    return {
        "name": name,
        "slice_id": 7,
        "instantiation": "plc-instantiated",
        "keys": [{"key_type": "ssh", "key": "ssh-rsa AAAA"}],
        "attributes": [{"tagname": "initscript", "value": "start"}, *pairs, {"tagname": "vsys", "value": "fd_tuntap"}],
    }


def record(*slivers: object) -> dict[str, Any]:
    """A GetSlivers record."""
    return {"timestamp": 1_200_000_000, "node_id": 3, "initscripts": [], "networks": [], "slivers": list(slivers)}


def spec_of(**attributes: object) -> Any:
    """The spec of one slice with these attributes."""
    imported = convert(record(sliver(**attributes)))
    assert (imported.errors, imported.notes) == ((), ())
    (obj,) = imported.objects
    return obj["spec"]


def error_of(**attributes: object) -> str:
    """What is wrong with one slice that has these attributes."""
    imported = convert(record(sliver(**attributes)))
    assert imported.objects == ()
    (error,) = imported.errors
    return error


def limits_of(imported: Imported) -> list[SliceLimits]:
    """The objects as the agents parse them; none may be wrong."""
    parsed = [slice_bandwidth.parse(obj) for obj in imported.objects]
    assert [one.errors for one in parsed] == [()] * len(parsed)
    return [one.limits for one in parsed if one.limits is not None]


def test_all_ten_attributes_arrive_in_slicebw_units() -> None:
    assert spec_of(
        net_min_rate="512",
        net_max_rate="10000",
        net_max_kbyte="1048576",
        net_thresh_kbyte="524288",
        net_share="5",
        net_i2_min_rate="1500",
        net_i2_max_rate="100000",
        net_i2_max_kbyte="31250000",
        net_i2_thresh_kbyte="15625001",
        net_i2_share="2",
    ) == {
        "share": 5,
        "standard": {"minRate": "512k", "maxRate": "10M", "budget": "1Gi", "threshold": "512Mi"},
        "exempt": {"minRate": "1500k", "maxRate": "100M", "budget": "32G", "threshold": "15625001Ki", "share": 2},
    }


def test_a_slice_without_attributes_has_the_defaults_and_they_are_left_out() -> None:
    assert spec_of() == {}
    defaults = {"net_min_rate": "0", "net_max_kbyte": "10546875", "net_thresh_kbyte": "8437500", "net_share": "1"}
    exempt = {"net_i2_min_rate": 0, "net_i2_max_kbyte": 31640625, "net_i2_thresh_kbyte": 25312500, "net_i2_share": 1}
    assert spec_of(**defaults, **exempt) == {}
    (limits,) = limits_of(convert(record(sliver())))
    assert limits == DEFAULT_LIMITS


def test_a_threshold_of_80_percent_is_the_default_of_any_budget() -> None:
    assert spec_of(net_max_kbyte="5662310", net_thresh_kbyte="4529848") == {"standard": {"budget": "5662310Ki"}}


@pytest.mark.parametrize("unset", [None, "", "  "])
def test_an_attribute_that_is_not_set_counts_as_absent(unset: object) -> None:
    assert spec_of(net_max_rate=unset, net_share="2") == {"share": 2}


@pytest.mark.parametrize(
    ("name", "namespace", "short"),
    [
        ("princeton_codeen", "princeton-codeen", "codeen"),
        ("irisaple_plc_cloud", "irisaple-plc-cloud", "plc-cloud"),
        ("ucla_MyMBR", "ucla-mymbr", "mymbr"),
        ("upmc_slice.1_", "upmc-slice-1", "slice-1"),
        ("pl__x", "pl--x", "x"),
        ("root", "root", "root"),
    ],
)
def test_a_slice_name_becomes_a_namespace_and_a_name_that_kubernetes_takes(
    name: str, namespace: str, short: str
) -> None:
    (obj,) = convert(record(sliver(name))).objects
    assert obj["metadata"] == {"name": short, "namespace": namespace}


@pytest.mark.parametrize("name", ["princeton_", "_", "a b", "x_ü", "a_b\n", "p_" + "x" * 62])
def test_a_name_that_cannot_be_one_is_an_error_with_its_place(name: str) -> None:
    imported = convert(record(sliver("a_ok"), sliver(name)))
    assert [obj["metadata"]["name"] for obj in imported.objects] == ["ok"]
    (error,) = imported.errors
    assert error.startswith("slivers[1]: name: ")
    assert "is not a slice name: use a site and a name of letters, digits and _, at most 63" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("net_max_rate", "10mbit", '"10mbit" is not a whole number of kbit/s: use 1 to 1000000000000'),
        ("net_max_rate", "-1", '"-1" kbit/s is out of range: use 1 to 1000000000000, or mode: Disabled in a Node'),
        ("net_max_rate", 0, "0 kbit/s is out of range: use 1 to"),
        ("net_min_rate", -5, "-5 kbit/s is out of range: use 0 to 1000000000000"),
        ("net_i2_max_rate", 10_000.5, "10000.5 is not a whole number of kbit/s"),
        ("net_max_kbyte", True, "true is not a whole number of KiB: use 1 to 976562500000000"),
        ("net_i2_thresh_kbyte", [5], "a list is not a whole number of KiB"),
        ("net_max_kbyte", "9" * 31, "is not a whole number of KiB"),
        ("net_i2_max_kbyte", "976562500000001", "is out of range: use 1 to 976562500000000"),
        ("net_share", "1001", '"1001" shares is out of range: use 1 to 1000'),
        ("net_i2_share", "0", '"0" shares is out of range'),
    ],
)
def test_a_wrong_value_is_named_with_its_slice_and_attribute_and_what_is_allowed(
    attribute: str, value: object, says: str
) -> None:
    error = error_of(**{attribute: value})
    assert error.startswith(f"slice princeton_codeen: {attribute}: ")
    assert says in error


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        (
            {"net_min_rate": "20000", "net_max_rate": "10000"},
            "net_min_rate: 20000 kbit/s is above the net_max_rate of 10000 kbit/s: use at most that",
        ),
        (
            {"net_i2_max_kbyte": "100", "net_i2_thresh_kbyte": "101"},
            "net_i2_thresh_kbyte: 101 KiB is above the net_i2_max_kbyte of 100 KiB: use at most that",
        ),
        (
            {"net_thresh_kbyte": "10546876"},
            "net_thresh_kbyte: 10546876 KiB is above the default budget of 10546875 KiB: "
            "use at most that, or give net_max_kbyte",
        ),
    ],
)
def test_limits_that_contradict_each_other_are_reported(attributes: dict[str, object], says: str) -> None:
    assert error_of(**attributes) == f"slice princeton_codeen: {says}"


def test_a_bad_slice_does_not_stop_the_others_and_all_its_mistakes_are_named() -> None:
    bad = sliver("a_bad", net_max_rate="fast", net_share="none")
    imported = convert(record(sliver("a_one"), bad, "nothing", {}, sliver("a_two", net_share="2")))
    assert [obj["metadata"]["name"] for obj in imported.objects] == ["one", "two"]
    assert [error.split(": ")[:2] for error in imported.errors] == [
        ["slice a_bad", "net_max_rate"],
        ["slice a_bad", "net_share"],
        ["slivers[2]", "name"],
        ["slivers[3]", "name"],
    ]


def test_the_switch_that_turned_everything_off_is_explained_and_makes_no_slice() -> None:
    imported = convert(record(sliver("pl_default", net_max_rate="-1"), sliver("pl_other")))
    assert [obj["metadata"]["name"] for obj in imported.objects] == ["other"]
    assert imported.errors == ()
    (note,) = imported.notes
    assert "slice pl_default: net_max_rate: -1 on the default slice" in note
    assert "set mode: Disabled in NodeBandwidth default" in note


def test_two_slices_of_one_name_are_reported_and_the_first_one_stays() -> None:
    imported = convert(record(sliver("a_b_c", net_share="2"), sliver("a_b.c")))
    assert [obj["spec"] for obj in imported.objects] == [{"share": 2}]
    assert imported.errors == ("slice a_b.c: it would become a-b-c/b-c, like slice a_b_c: rename one of them",)


def test_records_of_several_nodes_make_each_slice_once_and_differences_are_reported() -> None:
    same, differs = sliver("a_same", net_share="2"), sliver("a_differs", net_share="2")
    imported = convert([record(same, differs), record(same, sliver("a_differs", net_share="3"))])
    assert [obj["metadata"]["name"] for obj in imported.objects] == ["same", "differs"]
    (error,) = imported.errors
    assert error.startswith("slice a_differs: its attributes are not the same on all nodes")


@pytest.mark.parametrize(
    "form",
    [
        {"attributes": [{"name": "net_share", "value": "4"}]},
        {"attributes": {"net_share": "4", "initscript": "x"}},
        {"rspec": {"net_share": 4, "cpu_share": 1, 5: 6}},
        {"_rspec": {"net_share": 4}},
        {"attributes": [{"tagname": "net_share", "value": "4"}], "rspec": {"net_share": 1}},
        {"attributes": [{"tagname": "net_share", "value": "2"}, {"tagname": "net_share", "value": "4"}]},
    ],
)
def test_attributes_are_found_in_every_form_a_node_manager_knew(form: Mapping[str, object]) -> None:
    (obj,) = convert(record({"name": "a_b", **form})).objects
    assert obj["spec"] == {"share": 4}


@pytest.mark.parametrize("attributes", ["net_share=4", [["net_share", "4"]], [{"value": "4"}]])
def test_attributes_in_another_form_are_an_error(attributes: object) -> None:
    (error,) = convert(record({"name": "a_b", "attributes": attributes})).errors
    assert error.startswith("slice a_b: attributes")


def test_planetlab_3_spelled_its_rates_in_bits() -> None:
    old = {"nm_net_min_rate": "8", "nm_net_max_rate": "1500000", "nm_net_exempt_max_rate": "2000000"}
    assert spec_of(**old, nm_net_share="3", nm_net_exempt_share="2") == {
        "share": 3,
        "standard": {"maxRate": "1500k"},
        "exempt": {"maxRate": "2M", "share": 2},
    }


def test_an_unknown_bandwidth_attribute_is_noted_once() -> None:
    slivers = [sliver(f"a_{n}", net_max_kbytes="5", nm_net_avg_rate="1") for n in range(3)]
    imported = convert(record(*slivers))
    assert [obj["spec"] for obj in imported.objects] == [{}] * 3
    assert [note.split(";")[0] for note in imported.notes] == [
        '"net_max_kbytes": ignored on 3 slices',
        '"nm_net_avg_rate": ignored on 3 slices',
    ]


@pytest.mark.parametrize("document", [None, "text", 5, {}, {"slivers": None}, {"slivers": {}}, [1], [{"nodes": []}]])
def test_what_is_no_record_is_refused_whole(document: object) -> None:
    with pytest.raises(FieldError, match=r"slivers: .* has no list of slivers: give the structure that GetSlivers"):
        convert(document)


def test_the_period_is_written_only_where_it_is_not_a_day() -> None:
    (obj,) = convert(record(sliver()), 3600).objects
    assert obj["spec"] == {"period": "1h"}


VALUES = st.one_of(
    st.integers(-2, 10**13).map(str),
    st.integers(0, 3000),
    st.sampled_from(["", "x", None, "0", "1", "1000", str(MAX_BYTES // 1024), str(MAX_RATE_BPS // 1000)]),
)
SLIVERS = st.builds(
    lambda name, attributes: sliver(name, **attributes),
    st.from_regex(r"[a-z0-9]{1,4}_[A-Za-z0-9_]{1,4}", fullmatch=True),
    st.dictionaries(st.sampled_from(TEN), VALUES, max_size=4),
)


@given(st.lists(SLIVERS, max_size=6), st.integers(1, 366 * 24 * 3600))
def test_whatever_goes_in_what_comes_out_is_taken_by_the_agents_and_by_the_api_server(
    slivers: list[dict[str, Any]], period_s: int
) -> None:
    imported = convert(record(*slivers), period_s)
    assert all(limits.period_s == period_s for limits in limits_of(imported))
    for obj in imported.objects:
        assert Server().errors(SPEC_SCHEMA, crd.with_defaults(SPEC_SCHEMA, obj["spec"])) == []
    placed = {(obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in imported.objects}
    assert len(placed) == len(imported.objects)
    assert len(imported.objects) + len(imported.errors) + len(imported.notes) >= len({one["name"] for one in slivers})
    assert not any("\n" in line for line in (*imported.errors, *imported.notes))


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(1, 100), st.integers(1, 100), st.integers(1, 1000))
def test_every_figure_is_exact(min_kbps: int, budget_kib: int, times: int, percent: int, share: int) -> None:
    threshold_kib = max(1, percent_of(percent, budget_kib))
    one = sliver(
        net_min_rate=min_kbps,
        net_max_rate=min_kbps * times,
        net_max_kbyte=budget_kib,
        net_thresh_kbyte=threshold_kib,
        net_share=share,
    )
    (limits,) = limits_of(convert(record(one)))
    standard = limits.standard
    assert (standard.min_rate_bps, standard.max_rate_bps) == (min_kbps * 1000, min_kbps * times * 1000)
    assert (standard.budget_bytes, standard.threshold_bytes) == (budget_kib * 1024, threshold_kib * 1024)
    assert (standard.share, limits.exempt) == (share, DEFAULT_LIMITS.exempt)


@given(st.integers(8, MAX_RATE_BPS), st.integers(1, MAX_BYTES))
def test_quantities_say_exactly_what_they_are_made_of(rate_bps: int, count: int) -> None:
    assert parse_rate(rspec.rate_quantity(rate_bps)) == rate_bps
    assert parse_bytes(rspec.bytes_quantity(count)) == count


def test_the_key_of_a_slice_can_be_asked_for_alone() -> None:
    assert rspec.slice_key("princeton_codeen") == SliceKey("princeton-codeen", "codeen")
