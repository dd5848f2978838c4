"""The CRDs agree with the code, and with each other: patterns, bounds, rules, defaults, columns, descriptions."""

import re
from fractions import Fraction
from typing import Any, Final

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from slicebw.api import kinds, node_bandwidth, slice_bandwidth
from slicebw.api.quantity import MAX_BYTES, MAX_RATE_BPS, MIN_BYTES, MIN_RATE_BPS
from slicebw.core.desired import DEFAULT_LIMITS, DEFAULT_THRESHOLD_PERCENT, Mode, Selector, SelectorOperator
from tests.unit.api import crd
from tests.unit.api.crd import Server

PLURALS: Final = [kind.plural for kind in kinds.ALL]
SLICE_SPEC: Final = crd.schema("slicebandwidths", "spec")
NODE_SPEC: Final = crd.schema("nodebandwidths", "spec")
CEL_WORDS: Final = {
    "self", "int", "string", "has", "all", "double", "find", "endsWith", "duration", "size", "type", "in"
}  # fmt: skip
"""All of CEL the rules use: standard functions and macros, and Kubernetes' find; servers have them from 1.25 on."""


def server_takes(node: dict[str, Any], value: Any, *, knows_cel: bool = True) -> bool:
    return Server(knows_cel).errors(node, crd.with_defaults(node, value)) == []


def agents_take(spec: Any) -> bool:
    return not slice_bandwidth.parse({"metadata": {"namespace": "ns", "name": "a"}, "spec": spec}).errors


# --- what is in the files ---


@pytest.mark.parametrize("plural", PLURALS)
def test_every_field_is_described_so_that_kubectl_explain_reads_well(plural: str) -> None:
    for path, node in crd.walk(crd.schema(plural)):
        if path == ".metadata":
            assert set(node) == {"type"}  # the API server wants it so
            continue
        text = node.get("description", "")
        assert len(text) > 8, path
        assert text[0].isupper(), path
        assert text.endswith("."), path
        assert "%" not in text, f"{path}: old versions of kubectl explain take it for a format"


@pytest.mark.parametrize("plural", PLURALS)
def test_every_schema_is_structural_and_says_nothing_this_test_does_not_understand(plural: str) -> None:
    for path, node in crd.walk(crd.schema(plural)):
        assert set(node) <= crd.UNDERSTOOD, path
        assert ("type" in node) != node.get("x-kubernetes-int-or-string", False), path
        assert node.get("type") != "array" or "x-kubernetes-list-type" in node, path
        if "pattern" in node:
            assert node["pattern"].startswith("^"), path
            assert node["pattern"].endswith("$"), path


@pytest.mark.parametrize("plural", PLURALS)
def test_every_status_subresource_is_there_where_a_status_is(plural: str) -> None:
    version = crd.version(plural)
    assert ("status" in crd.schema(plural)["properties"]) == (version.get("subresources") == {"status": {}})


COLUMNS: Final = {
    "slicebandwidths": ["Nodes", "Capped", "Used", "Peak%", "Rate", "Period-Start", "Age"],
    "bandwidthusages": ["Slice", "Node", "Used", "Budget", "%", "Rate", "Capped", "Period-Start"],
    "nodebandwidths": ["Device", "Mode", "Cap", "Slices", "Capped", "Ready", "Age"],
}


@pytest.mark.parametrize("plural", PLURALS)
def test_the_columns_are_the_promised_ones_and_show_fields_that_there_are(plural: str) -> None:
    columns = crd.version(plural)["additionalPrinterColumns"]
    assert [one["name"] for one in columns if one.get("priority", 0) == 0] == COLUMNS[plural]
    for column in columns:
        if column["jsonPath"] == ".metadata.creationTimestamp":
            continue
        assert column["description"].endswith("."), column
        path = column["jsonPath"].split("[?")[0].removeprefix(".").split(".")
        node = crd.schema(plural, *path)
        if "[?" in column["jsonPath"]:
            node = node["items"]["properties"][column["jsonPath"].rsplit(".", 1)[1]]
        shown_as = "date" if node.get("format") == "date-time" else node["type"]
        assert column["type"] == shown_as, column


def test_both_classes_of_a_slice_are_checked_alike() -> None:
    def bare(node: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in node.items() if key not in ("description", "default", "properties")}
        return {**kept, **{name: bare(inner) for name, inner in node.get("properties", {}).items()}}

    standard, exempt = (bare(SLICE_SPEC["properties"][name]) for name in ("standard", "exempt"))
    assert exempt.pop("share") == bare(SLICE_SPEC["properties"]["share"])
    assert standard == exempt


def test_the_fields_of_the_schemas_are_those_the_parsers_know() -> None:
    for schema, parse in ((SLICE_SPEC, slice_bandwidth.parse), (NODE_SPEC, node_bandwidth.parse)):
        for path, node in crd.walk(schema, "spec"):
            if "[]" in path or not node.get("properties"):
                continue
            spec: Any = {"no such field": 1}
            for name in reversed(path.split(".")[1:]):
                spec = {name: spec}
            errors = " ".join(parse({"metadata": {"namespace": "ns", "name": "a"}, "spec": spec}).errors)
            assert f"there are {', '.join(node['properties'])}" in errors


def test_the_defaults_are_the_core_s() -> None:
    filled = crd.with_defaults(SLICE_SPEC, {})
    assert filled == {
        "podSelector": {},
        "period": "24h",
        "share": 1,
        "standard": {"minRate": "8", "budget": "10800M", "threshold": f"{DEFAULT_THRESHOLD_PERCENT}%"},
        "exempt": {"minRate": "8", "budget": "32400M", "threshold": f"{DEFAULT_THRESHOLD_PERCENT}%", "share": 1},
    }
    assert crd.with_defaults(crd.schema("slicebandwidths"), {})["spec"] == filled
    parsed = slice_bandwidth.parse({"metadata": {"namespace": "ns", "name": "a"}, "spec": filled})
    assert parsed.limits == DEFAULT_LIMITS
    assert parsed.selector == Selector()
    assert Server().errors(SLICE_SPEC, filled) == []


def test_the_bounds_are_the_parsers() -> None:
    for name in ("standard", "exempt"):
        fields = SLICE_SPEC["properties"][name]["properties"]
        for rate in ("minRate", "maxRate"):
            assert (fields[rate]["minimum"], fields[rate]["maximum"]) == (MIN_RATE_BPS, MAX_RATE_BPS)
        assert (fields["budget"]["minimum"], fields["budget"]["maximum"]) == (MIN_BYTES, MAX_BYTES)
        assert fields["threshold"]["minimum"] == slice_bandwidth.MIN_THRESHOLD_BYTES
        assert fields["threshold"]["maximum"] == MAX_BYTES
    share = SLICE_SPEC["properties"]["share"]
    assert (share["minimum"], share["maximum"]) == (slice_bandwidth.MIN_SHARE, slice_bandwidth.MAX_SHARE)
    assert NODE_SPEC["properties"]["exemptDestinations"]["maxItems"] == node_bandwidth.MAX_EXEMPT_DESTINATIONS
    assert NODE_SPEC["properties"]["mode"]["enum"] == list(Mode)
    expressions = SLICE_SPEC["properties"]["podSelector"]["properties"]["matchExpressions"]["items"]
    assert expressions["properties"]["operator"]["enum"] == list(SelectorOperator)


# --- the rules ---


def all_rules() -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    return [
        (f"{plural}{path}", dict(node), rule)
        for plural in PLURALS
        for path, node in crd.walk(crd.schema(plural))
        for rule in node.get("x-kubernetes-validations", [])
    ]


@pytest.mark.parametrize(("path", "node", "rule"), all_rules())
def test_every_rule_compiles_to_a_truth_value_and_uses_only_what_kubernetes_1_25_has(
    path: str, node: dict[str, Any], rule: dict[str, str]
) -> None:
    assert crd.compiled(rule["rule"]).return_type().name() in ("bool", "BOOL")
    assert set(rule) == {"rule", "message"}
    assert "\n" not in rule["message"]
    assert "\n" not in rule["rule"]
    words = set(re.findall(r"[A-Za-z_]+", re.sub(r"'[^']*'|\b[0-9.]+(e[0-9]+)?", " ", rule["rule"])))
    fields = set(re.findall(r"self\.([A-Za-z]+)(?!\w*\()", rule["rule"]))
    named = set(re.findall(r"\.all\(([a-z]+),", rule["rule"]))
    assert fields <= set(node.get("properties", {})), path
    assert words <= CEL_WORDS | fields | named, path


@pytest.mark.parametrize(("path", "node", "rule"), all_rules())
def test_no_rule_costs_more_than_half_of_what_a_server_allows(
    path: str, node: dict[str, Any], rule: dict[str, str]
) -> None:
    """A part of Kubernetes' estimate, the part that counts: 10,000,000 is the limit of one rule.

    (apiserver, pkg/cel/library/cost.go): a find costs a tenth of the longest string there can be, which for
    int-or-string is a whole request of 3 MiB, times a quarter of the regular expression's length, rounded up.
    """
    assert path
    cost = 0
    if any(inner.get("x-kubernetes-int-or-string") for _, inner in crd.walk(node)):
        longest = 3 * 1024 * 1024 // 10
        cost += sum(longest * -(-len(pattern) // 4) for pattern in re.findall(r"find\('([^']+)'\)", rule["rule"]))
        cost += longest * rule["rule"].count("type(self)")
    assert cost < 5_000_000


NUMBERS: Final = [
    "0", "00", "1", "7", "7.99", "8", "9", "10", "50", "99", "100", "101", "512", "999", "1000", "1024", "10800", "1.5",
    "1.", ".5", ".", "0.001", "0.008", "1.1", "0.7", "1e3", "1E6", "1e-3", "8000e-3", "1e15", "1e18", "1e19", "1e99",
    "1e", "1e+2", "1e1.5", "-8", "+8", "++8", "0x8", "1_0", "1,5", "\u0668", "", " 8", "8 ", "8\n", "8\0", "9" * 15,
    "9" * 18, "9" * 31, "9" * 32, "9" * 33,
]  # fmt: skip
SUFFIXES: Final = [
    "", " M", "k", "K", "M", "G", "T", "P", "E", "Ki", "ki", "Mi", "Gi", "Ti", "Pi", "Ei", "m", "u", "n", "%", "B",
    "bit", "Mbit", "MB", "ii", "i",
]  # fmt: skip
CORPUS: Final = [number + suffix for number in NUMBERS for suffix in SUFFIXES]


def assert_agreed(name: str, field: str, text: Any) -> None:
    """The server takes a field exactly if the agents do: its schema and its rules, about that field alone."""
    value: dict[str, Any] = {field: text}
    if field == "threshold":
        value["budget"] = MAX_BYTES  # so that nothing is above it
    server = server_takes(SLICE_SPEC, {name: value})
    assert server == agents_take({name: value}), (field, text, server)


@pytest.mark.parametrize("field", ["minRate", "maxRate", "budget", "threshold"])
def test_schema_and_parser_agree_on_every_quantity_of_a_large_corpus(field: str) -> None:
    taken = 0
    for text in CORPUS:
        assert_agreed("standard", field, text)
        taken += agents_take({"standard": {field: text, **({"budget": MAX_BYTES} if field == "threshold" else {})}})
    assert 80 < taken < len(CORPUS) - 80


@given(
    st.sampled_from(["minRate", "maxRate", "budget", "threshold"]),
    st.text(alphabet="0123456789.+-eEkKMGTPim% \n", max_size=12),
)
def test_schema_and_parser_agree_on_quantities_made_up(field: str, text: str) -> None:
    assert_agreed("exempt", field, text)


@given(
    st.sampled_from(["minRate", "maxRate", "budget", "threshold"]),
    st.one_of(st.integers(), st.integers(-3, 120), st.integers(10**15 - 2, 10**15 + 2), st.booleans(), st.floats(),
              st.lists(st.integers(), max_size=1)),
)  # fmt: skip
def test_schema_and_parser_agree_on_what_is_not_text(field: str, value: Any) -> None:
    assert_agreed("standard", field, value)


PERIODS: Final = [
    "24h", "1h30m", "90s", "1h5s", "0s", "0h0m1s", "8784h", "8784h1s", "8783h60m", "8783h61m", "31622400s", "31622401s",
    "99999h", "100000h", "9999999m", "99999999s", "7d", "24", "h", "1.5h", "30m1h", "-1h", "1H", "1h1h", "100ms", "",
    " 1h", "1h ", "1h\n",
]  # fmt: skip


@pytest.mark.parametrize("text", PERIODS)
def test_schema_and_parser_agree_on_periods(text: str) -> None:
    assert server_takes(SLICE_SPEC, {"period": text}) == agents_take({"period": text})


@given(st.from_regex(r"[0-9]{0,6}[hms]?[0-9]{0,8}[hms]?[0-9]{0,9}s?", fullmatch=True))
def test_schema_and_parser_agree_on_periods_made_up(text: str) -> None:
    assert server_takes(SLICE_SPEC, {"period": text}) == agents_take({"period": text})


good_quantities = st.builds(
    lambda digits, point, suffix: f"{digits[:point]}.{digits[point:]}".strip(".") + suffix,
    st.from_regex(r"[1-9][0-9]{0,5}", fullmatch=True),
    st.integers(1, 6),
    st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi", "e3"]),
)


@given(good_quantities, good_quantities)
@example("1.1G", "1100M")
@example("1100M", "1.1G")
@example("0.7G", "700M")
@example("1Gi", "1073741824")
@example("1000001", "1M")
@example("1.1Gi", "1181116006")
@example("2.007M", "2007000")  # as floating point numbers the first is above the second
def test_a_server_with_cel_takes_a_pair_of_limits_exactly_if_the_agents_do(low: str, high: str) -> None:
    exact = [exactly(low), exactly(high)]
    for spec in (
        {"standard": {"minRate": low, "maxRate": high}},
        {"exempt": {"threshold": low, "budget": high}},
    ):
        server, agents = server_takes(SLICE_SPEC, spec), agents_take(spec)
        if all(number.denominator == 1 for number in exact):
            assert server == agents
        elif server != agents:  # agents round fractions of a byte up before they compare
            assert exact[1] < exact[0] < exact[1] + 1
            assert agents


def exactly(text: str) -> Fraction:
    match = re.fullmatch(r"([0-9.]+)(k|M|G|Ki|Mi|Gi|e3)?", text)
    assert match
    unit = {None: 1, "k": 1000, "e3": 1000, "M": 10**6, "G": 10**9, "Ki": 1024, "Mi": 2**20, "Gi": 2**30}[match[2]]
    return Fraction(match[1]) * unit


@pytest.mark.parametrize(
    ("field", "spec", "message"),
    [
        ("standard", {"minRate": "20M", "maxRate": "10M"},
         "minRate must be at least 8 bit/s, maxRate not below it and at most 1P (10^15 bit/s)"),
        ("standard", {"minRate": 20, "maxRate": "10"},
         "minRate must be at least 8 bit/s, maxRate not below it and at most 1P (10^15 bit/s)"),
        ("standard", {"minRate": "0.001k"},
         "minRate must be at least 8 bit/s, maxRate not below it and at most 1P (10^15 bit/s)"),
        ("exempt", {"maxRate": "1.001P"},
         "minRate must be at least 8 bit/s, maxRate not below it and at most 1P (10^15 bit/s)"),
        ("exempt", {"budget": "1G", "threshold": "1.1G"},
         "budget must be at least 1 byte and at most 1000P (10^18 bytes), threshold not above it: a percentage, or"
         " more than 100 bytes"),
        ("standard", {"budget": "1G", "threshold": "80"},
         "budget must be at least 1 byte and at most 1000P (10^18 bytes), threshold not above it: a percentage, or"
         " more than 100 bytes"),
        ("standard", {"budget": "0"},
         "budget must be at least 1 byte and at most 1000P (10^18 bytes), threshold not above it: a percentage, or"
         " more than 100 bytes"),
    ],
)  # fmt: skip
def test_what_one_field_cannot_say_a_rule_says_with_the_field_s_name(
    field: str, spec: dict[str, Any], message: str
) -> None:
    value = crd.with_defaults(SLICE_SPEC, {field: spec})
    assert Server().errors(SLICE_SPEC, value) == [f".{field}: {message}"]
    assert Server(knows_cel=False).errors(SLICE_SPEC, value) == []
    assert not agents_take({field: spec})


@pytest.mark.parametrize(
    ("expression", "fine"),
    [
        ({"key": "a", "operator": "In", "values": ["x"]}, True),
        ({"key": "a", "operator": "In", "values": []}, False),
        ({"key": "a", "operator": "NotIn"}, False),
        ({"key": "a", "operator": "Exists"}, True),
        ({"key": "a", "operator": "Exists", "values": []}, True),
        ({"key": "a", "operator": "DoesNotExist", "values": ["x"]}, False),
        ({"key": "a", "operator": "Equals"}, False),
        ({"key": "a b", "operator": "Exists"}, False),
        ({"key": "example.org/a", "operator": "Exists"}, True),
        ({"key": "Example.org/a", "operator": "Exists"}, False),
        ({"operator": "Exists"}, False),
    ],
)
def test_schema_and_parser_agree_on_selectors(expression: dict[str, Any], fine: bool) -> None:
    spec = {"podSelector": {"matchExpressions": [expression]}}
    assert server_takes(SLICE_SPEC, spec) is fine
    assert agents_take(spec) is fine


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "device": st.sampled_from(
                ["eth0", "bond0.1", "a" * 15, "a" * 16, "", ".", "..", "a b", "a/b", "ü", "_x", "-x"]
            ),
            "cap": st.sampled_from([8, 7, "8", "7", "1G", "1.5G", "x", "1P", "1.1P", 10**15 + 1, True]),
            "lineRate": st.sampled_from(CORPUS),
            "mode": st.sampled_from(["Enforce", "Monitor", "Disabled", "enforce", ""]),
            "unclassified": st.fixed_dictionaries(
                {},
                optional={
                    "maxRate": st.sampled_from(CORPUS),
                    "exemptMaxRate": st.sampled_from(["1M", "999k", 8, "2P"]),
                },
            ),
            "minRateShare": st.sampled_from(["1%", "25%", "100%", "0%", "101%", "25", "025%", "2.5%", "%"]),
            "exemptDestinations": st.lists(
                st.sampled_from(["10.0.0.0/8", "::/0", "192.0.2.1", "2001:db8::/32", "x", "", "10.0.0.0/", "/8"]),
                max_size=3,
                unique=True,
            ),
        },
    )
)
def test_schema_and_parser_agree_on_node_settings(spec: dict[str, Any]) -> None:
    assert server_takes(NODE_SPEC, spec) == (node_bandwidth.parse({"spec": spec}).errors == ())


def test_a_network_with_bits_behind_its_prefix_is_left_to_the_agents() -> None:
    spec = {"exemptDestinations": ["10.1.2.3/8"]}
    assert server_takes(NODE_SPEC, spec)
    assert node_bandwidth.parse({"spec": spec}).errors


@given(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3})?(M|G|Ki)?", fullmatch=True))
def test_a_server_without_cel_still_takes_all_that_is_right(text: str) -> None:
    assume(agents_take({"standard": {"maxRate": text}}))
    assert server_takes(SLICE_SPEC, {"standard": {"maxRate": text}}, knows_cel=False)


# --- the samples ---


def samples() -> list[Any]:
    found = sorted((crd.ROOT / "manifests" / "samples").glob("*.yaml"))
    assert found
    loaded = [(path.name, obj) for path in found for obj in yaml.safe_load_all(path.read_text())]
    return [pytest.param(obj, id=name) for name, obj in loaded if obj.get("apiVersion") == kinds.API_VERSION]


@pytest.mark.parametrize("sample", samples())
def test_every_sample_is_taken_by_server_and_agents(sample: dict[str, Any]) -> None:
    kind = next(kind for kind in kinds.ALL if kind.name == sample["kind"])
    assert Server().errors(crd.schema(kind.plural), {**sample, "metadata": {}}) == []
    if kind is kinds.SLICE_BANDWIDTH:
        assert slice_bandwidth.parse(sample).errors == ()
    else:
        assert node_bandwidth.parse(sample).errors == ()
