"""SliceBandwidth's spec: whatever is in it, limits or sentences come out; never an exception, never a guess."""

from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicebw.api import slice_bandwidth
from slicebw.core.desired import (
    DEFAULT_LIMITS,
    ClassLimits,
    Requirement,
    Selector,
    SelectorOperator,
    SliceKey,
    SliceSpec,
)

BYTES_USAGE = "use bytes with an optional suffix k, M, G, T, Ki, Mi, Gi, Ti (10Gi is 10,737,418,240 bytes)"
RATE_USAGE = "use bit/s with an optional suffix k, M, G, T, Ki, Mi, Gi (10M is 10,000,000 bit/s)"


def read(spec: Any, **metadata: Any) -> SliceSpec:
    return slice_bandwidth.parse({"metadata": {"namespace": "ns", "name": "codeen", **metadata}, "spec": spec})


def errors(spec: Any, **metadata: Any) -> tuple[str, ...]:
    return read(spec, **metadata).errors


def test_an_empty_spec_means_the_defaults_and_all_pods() -> None:
    specs: list[Any] = [{}, None, {"standard": {}, "exempt": None, "podSelector": {}}]
    for spec in specs:
        parsed = read(spec)
        assert parsed.limits == DEFAULT_LIMITS
        assert parsed.selector == Selector()
        assert parsed.errors == ()
    assert slice_bandwidth.parse({"metadata": {"namespace": "ns", "name": "codeen"}}).limits == DEFAULT_LIMITS


def test_every_field_is_read() -> None:
    parsed = read(
        {
            "podSelector": {
                "matchLabels": {"b": "2", "app": "proxy"},
                "matchExpressions": [
                    {"key": "example.org/role", "operator": "NotIn", "values": ["x", "y"]},
                    {"key": "tier", "operator": "Exists"},
                ],
            },
            "period": "1h30m",
            "share": 5,
            "standard": {"minRate": "512k", "maxRate": "10M", "budget": "10Gi", "threshold": "9Gi"},
            "exempt": {"minRate": 8, "maxRate": 10**9, "budget": 1000, "threshold": "99%", "share": 1000},
        },
        uid="u-1",
        generation=7,
        creationTimestamp="2026-11-22T10:00:00Z",
        resourceVersion="12",
    )
    assert parsed.errors == ()
    assert (parsed.key, parsed.uid, parsed.generation, parsed.created_s) == (
        SliceKey("ns", "codeen"),
        "u-1",
        7,
        1_795_341_600,
    )
    assert parsed.limits is not None
    assert parsed.limits.period_s == 5400
    assert parsed.limits.standard == ClassLimits(512_000, 10_000_000, 10 * 2**30, 9 * 2**30, 5)
    assert parsed.limits.exempt == ClassLimits(8, 10**9, 1000, 990, 1000)
    assert parsed.selector == Selector(
        (
            Requirement("app", SelectorOperator.IN, ("proxy",)),
            Requirement("b", SelectorOperator.IN, ("2",)),
            Requirement("example.org/role", SelectorOperator.NOT_IN, ("x", "y")),
            Requirement("tier", SelectorOperator.EXISTS),
        )
    )


def test_a_threshold_that_is_not_given_is_four_fifths_of_the_budget_that_is() -> None:
    limits = read({"standard": {"budget": "1000"}, "exempt": {"budget": "1k"}}).limits
    assert limits is not None
    assert limits.standard.threshold_bytes == limits.exempt.threshold_bytes == 800


def test_the_top_share_is_the_standard_class_s_only() -> None:
    limits = read({"share": 3}).limits
    assert limits is not None
    assert (limits.standard.share, limits.exempt.share) == (3, 1)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"period": "7d"}, 'spec.period: "7d" is not a duration: use whole hours, minutes and seconds, in that order'
         " (24h, 1h30m, 90s); 7 days are 168h"),
        ({"period": 60}, "spec.period: 60 is not a duration: use whole hours, minutes and seconds, in that order"
         " (24h, 1h30m, 90s)"),
        ({"period": "0s"}, 'spec.period: "0s" is out of range: use 1s to 8784h (366 days)'),
        ({"period": "8784h1s"}, 'spec.period: "8784h1s" is out of range: use 1s to 8784h (366 days)'),
        ({"share": 0}, "spec.share: 0 is not a share: use a whole number from 1 to 1000"),
        ({"share": 1001}, "spec.share: 1001 is not a share: use a whole number from 1 to 1000"),
        ({"share": "5"}, 'spec.share: "5" is not a share: use a whole number from 1 to 1000'),
        ({"share": True}, "spec.share: true is not a share: use a whole number from 1 to 1000"),
        ({"exempt": {"share": 1.5}}, "spec.exempt.share: 1.5 is not a share: use a whole number from 1 to 1000"),
        ({"standard": {"minRate": "10 M"}}, f'spec.standard.minRate: "10 M" is not a rate: {RATE_USAGE}'),
        ({"standard": {"minRate": 7}}, "spec.standard.minRate: 7 is too low: at least 8 bit/s, one byte a second"),
        ({"exempt": {"maxRate": "2P"}}, 'spec.exempt.maxRate: "2P" is too high: at most 1P, 10^15 bit/s'),
        ({"standard": {"minRate": "20M", "maxRate": "10M"}},
         'spec.standard.minRate: "20M" is above the maxRate of "10M": use at most that'),
        ({"exempt": {"minRate": 11, "maxRate": 10}},
         "spec.exempt.minRate: 11 is above the maxRate of 10: use at most that"),
        ({"standard": {"budget": 0}}, "spec.standard.budget: 0 is too low: at least 1 byte"),
        ({"standard": {"budget": [1]}}, f"spec.standard.budget: a list is not a number of bytes: {BYTES_USAGE}"),
        ({"standard": {"budget": "1G", "threshold": "2G"}},
         'spec.standard.threshold: "2G" is above the budget of "1G": use at most that, or 1% to 100%'),
        ({"standard": {"threshold": "11G"}},
         'spec.standard.threshold: "11G" is above the budget of 10800000000 bytes, the default: use at most that, or'
         " 1% to 100%"),
        ({"exempt": {"threshold": 80}},
         "spec.exempt.threshold: 80 means bytes here, which is too low: at least 101 bytes, or a percentage of the"
         ' budget ("80%")'),
        ({"standard": {"threshold": "101%"}},
         'spec.standard.threshold: "101%" is not a percentage: use a whole one from 1% to 100% (80%)'),
        ({"standard": {"threshold": "most"}},
         f'spec.standard.threshold: "most" is not a number of bytes: {BYTES_USAGE}, or a percentage of the budget'
         " (80%)"),
        ({"standard": "10M"}, 'spec.standard: "10M" must be an object with named fields'),
        ("x", 'spec: "x" must be an object with named fields'),
        ({"standrad": {}}, "spec.standrad: unknown field; did you mean standard?"),
        ({"standard": {"maxrate": 8}}, "spec.standard.maxrate: unknown field; did you mean maxRate?"),
        ({"standard": {"share": 1}},
         "spec.standard.share: unknown field; there are minRate, maxRate, budget, threshold"),
        ({"zzz": 1}, "spec.zzz: unknown field; there are podSelector, period, share, standard, exempt"),
        ({"a\nb": 1}, 'spec."a\\nb": unknown field; there are podSelector, period, share, standard, exempt'),
        ({1: 2}, "spec: 1 is not a field here; there are podSelector, period, share, standard, exempt"),
    ],
)  # fmt: skip
def test_a_wrong_limit_is_named_with_its_path_its_value_and_what_is_allowed(spec: Any, error: str) -> None:
    parsed = read(spec)
    assert parsed.errors == (error,)
    assert parsed.limits is None


@pytest.mark.parametrize(
    ("selector", "error"),
    [
        ([], ": a list must be an object with named fields"),
        ({"matchLabel": {}}, ".matchLabel: unknown field; did you mean matchLabels?"),
        ({"matchLabels": {"a b": "x"}},
         '.matchLabels.a b: "a b" is not a label key: use letters, digits, -, _ and . (app, example.org/role)'),
        ({"matchLabels": {"app": 1}},
         ".matchLabels.app: 1 is not a label value: use a string of up to 63 letters, digits, -, _ and ."),
        ({"matchLabels": {"Example.org/app": "x"}},
         '.matchLabels.Example.org/app: "Example.org/app" is not a label key: use letters, digits, -, _ and . (app,'
         " example.org/role)"),
        ({"matchExpressions": {}}, ".matchExpressions: an object must be a list"),
        ({"matchExpressions": ["x"]}, '.matchExpressions[0]: "x" must be an object with named fields'),
        ({"matchExpressions": [{"operator": "Exists"}]}, ".matchExpressions[0].key: must be given"),
        ({"matchExpressions": [{"key": "a"}]}, ".matchExpressions[0].operator: must be given"),
        ({"matchExpressions": [{"key": "a", "operator": "in", "values": ["x"]}]},
         '.matchExpressions[0].operator: "in" is not an operator: use In, NotIn, Exists, DoesNotExist'),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "a", "operator": "In"}]},
         ".matchExpressions[1].values: In needs at least one value"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]},
         ".matchExpressions[0].values: Exists takes no values"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y z"]}]},
         '.matchExpressions[0].values[1]: "y z" is not a label value: use a string of up to 63 letters, digits, -, _'
         " and ."),
        ({"matchExpressions": [{"key": "a", "operator": "Exists", "value": "x"}]},
         ".matchExpressions[0].value: unknown field; did you mean values?"),
    ],
)  # fmt: skip
def test_a_wrong_selector_is_named_and_leaves_the_limits_alone(selector: Any, error: str) -> None:
    parsed = read({"podSelector": selector})
    assert parsed.errors[0] == f"spec.podSelector{error}"
    assert parsed.selector is None
    assert parsed.limits == DEFAULT_LIMITS


@pytest.mark.parametrize("key", ["app", "a" * 63, "example.org/app", "a.b-c.d/A_b.c-d", "x" * 200 + "/app", "0/0"])
def test_every_legal_label_key_is_taken(key: str) -> None:
    assert read({"podSelector": {"matchLabels": {key: ""}}}).errors == ()


@pytest.mark.parametrize(
    "key", ["", "/app", "app/", "a/b/c", "-a", "a-", "a" * 64, "exa_mple/app", ".a/app", "a./app", "x" * 254 + "/app"]
)
def test_no_other_label_key_is_taken(key: str) -> None:
    parsed = read({"podSelector": {"matchExpressions": [{"key": key, "operator": "Exists"}]}})
    assert parsed.selector is None
    assert "is not a label key" in parsed.errors[0]


def test_each_wrong_field_is_named_and_one_wrong_limit_takes_all_limits_away() -> None:
    parsed = read({"period": "x", "standard": {"minRate": "y"}, "exempt": {"budget": "z"}, "podSelector": {"a": 1}})
    assert [error.split(":")[0] for error in parsed.errors] == [
        "spec.period",
        "spec.standard.minRate",
        "spec.exempt.budget",
        "spec.podSelector.a",
    ]
    assert parsed.limits is None
    assert parsed.selector is None


def test_an_unknown_field_of_the_spec_may_be_a_misspelt_selector_so_neither_counts() -> None:
    parsed = read({"podselector": {"matchLabels": {"app": "x"}}})
    assert parsed.errors == ("spec.podselector: unknown field; did you mean podSelector?",)
    assert parsed.selector is None
    assert parsed.limits is None


def test_unknown_fields_from_an_api_server_belong_to_a_newer_version_and_are_ignored() -> None:
    spec = {"burst": "1M", "standard": {"priority": 1}, "podSelector": {"matchFields": []}}
    parsed = read(spec, resourceVersion="1")
    assert parsed.errors == ()
    assert parsed.limits == DEFAULT_LIMITS
    assert len(errors(spec)) == 3


@pytest.mark.parametrize(
    ("obj", "first"),
    [
        (None, "metadata.name: must be given"),
        ([], "object: a list must be an object with named fields"),
        ("x", 'object: "x" must be an object with named fields'),
        ({"metadata": 1}, "metadata.name: must be given"),
        ({"metadata": {"name": "a"}}, "metadata.namespace: must be given"),
        ({"metadata": {"name": "A B", "namespace": "ns"}},
         'metadata.name: "A B" is not a name: use up to 253 lower case letters, digits, - and . (codeen)'),
        ({"metadata": {"name": "a", "namespace": "ns"}, "sepc": {}}, "sepc: unknown field; did you mean spec?"),
    ],
)  # fmt: skip
def test_what_is_hardly_an_object_at_all_is_named_and_gets_neither_limits_nor_pods(obj: Any, first: str) -> None:
    parsed = slice_bandwidth.parse(obj)
    assert parsed.errors[0] == first
    assert parsed.limits is None
    assert parsed.selector is None


def test_a_spec_that_is_wrong_all_over_has_its_first_errors_named_and_the_rest_counted() -> None:
    parsed = read({f"field{index}": index for index in range(100_000)})
    assert len(parsed.errors) == 21
    assert parsed.errors[-1] == "and 99980 more"


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(
        ["8", "10M", "80%", "24h", "1e6", 8, 10**9, "In", "Exists"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(
        st.one_of(st.integers(), st.text(max_size=8), st.sampled_from(
            ["metadata", "spec", "standard", "exempt", "minRate", "maxRate", "budget", "threshold", "share", "period",
             "podSelector", "matchLabels", "matchExpressions", "key", "operator", "values", "name", "namespace",
             "resourceVersion", "generation", "creationTimestamp"])),
        inner, max_size=6)),
    max_leaves=40,
)  # fmt: skip


@given(json_values)
def test_nothing_at_all_makes_parse_raise(obj: Any) -> None:
    for candidate in (obj, {"metadata": {"name": "a", "namespace": "b"}, "spec": obj}):
        parsed = slice_bandwidth.parse(candidate)
        assert (parsed.limits is None or parsed.selector is None) == bool(parsed.errors)
        assert all(error.isprintable() for error in parsed.errors)
        if parsed.limits is not None:
            for limits in (parsed.limits.standard, parsed.limits.exempt):
                assert limits.max_rate_bps is None or limits.min_rate_bps <= limits.max_rate_bps
                assert 0 <= limits.threshold_bytes <= limits.budget_bytes


def test_any_kind_of_mapping_will_do_not_only_a_dict() -> None:
    spec = MappingProxyType({"standard": MappingProxyType({"maxRate": "10M"})})
    body = MappingProxyType({"metadata": MappingProxyType({"namespace": "ns", "name": "codeen"}), "spec": spec})
    limits = slice_bandwidth.parse(body).limits
    assert limits is not None
    assert limits.standard.max_rate_bps == 10_000_000


@pytest.mark.parametrize("standard", [{"budget": 1}, {"budget": 99, "threshold": "1%"}])
def test_however_small_the_budget_a_slice_that_has_sent_nothing_is_not_over_its_threshold(standard: Any) -> None:
    limits = slice_bandwidth.parse({"metadata": {"name": "a", "namespace": "b"}, "spec": {"standard": standard}}).limits
    assert limits is not None
    assert limits.standard.threshold_bytes == 1
