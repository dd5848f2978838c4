"""BandwidthUsage: one legal, unique object per slice and node, from which the report comes back exactly."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from slicebw.api import bandwidth_usage
from slicebw.api.bandwidth_usage import NodeUsage
from slicebw.api.fields import FieldError
from slicebw.core.dataplane import FIRST_ID, LAST_ID
from slicebw.core.desired import SliceKey
from slicebw.core.membership import OLDER_HAS_IT, PodProblem
from slicebw.core.reports import ClassUsage, UsageReport
from slicebw.core.text import bytes_text
from tests.unit.api import crd

SCHEMA = crd.schema("bandwidthusages")
T0 = 1_795_341_600
STANDARD = ClassUsage(9_878_424_780, 10_800_000_000, 91, 512_345, True, T0 + 3600, 77)
EXEMPT = ClassUsage(0, 32_400_000_000, 0, 10**9, False, None, 0)
REPORT = UsageReport(
    key=SliceKey("princeton-codeen", "codeen"),
    slice_id=0x2A,
    generation=3,
    period_start_s=T0,
    period_end_s=T0 + 86_400,
    standard=STANDARD,
    exempt=EXEMPT,
    problems=(PodProblem("princeton-codeen/proxy-0", "it is on the host's network"),),
    errors=("spec.share: 0 is not a share",),
)

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=6).map(".".join).filter(lambda name: len(name) <= 253)
seconds = st.integers(0, 4_102_444_800)
counts = st.integers(0, 2**63 - 1)
usages = st.builds(ClassUsage, counts, counts, counts, counts, st.booleans(), st.none() | seconds, counts)
texts = st.text(min_size=1, max_size=30)
reports = st.builds(
    UsageReport,
    key=st.builds(SliceKey, labels, names),
    slice_id=st.just(0) | st.integers(FIRST_ID, LAST_ID),
    generation=counts,
    period_start_s=seconds,
    period_end_s=seconds,
    standard=usages,
    exempt=usages,
    problems=st.lists(st.builds(PodProblem, texts, texts), max_size=3).map(tuple),
    errors=st.lists(texts, max_size=3).map(tuple),
)


@given(reports, names, seconds, st.none() | st.uuids().map(str))
def test_a_report_comes_back_exactly_and_the_object_fits_the_schema(
    report: UsageReport, node_name: str, reported_at_s: int, node_uid: str | None
) -> None:
    body = bandwidth_usage.to_object(report, node_name, node_uid, reported_at_s)
    assert bandwidth_usage.parse(body) == NodeUsage(report, node_name, reported_at_s)
    assert crd.Server().errors(SCHEMA, {**body, "metadata": {}}) == []


def test_the_object_says_everything_exactly_and_for_people() -> None:
    assert bandwidth_usage.to_object(REPORT, "node-7", "u-7", T0 + 7200) == {
        "apiVersion": "slicebw.io/v1alpha1",
        "kind": "BandwidthUsage",
        "metadata": {
            "namespace": "princeton-codeen",
            "name": "codeen.node-7",
            "labels": {"slicebw.io/slice": "codeen", "slicebw.io/node": "node-7"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node-7", "uid": "u-7"}],
        },
        "sliceName": "codeen",
        "nodeName": "node-7",
        "observedGeneration": 3,
        "periodStart": "2026-11-22T10:00:00Z",
        "periodEnd": "2026-11-23T10:00:00Z",
        "reportedAt": "2026-11-22T12:00:00Z",
        "standard": {
            "classId": "1:102a",
            "used": bytes_text(9_878_424_780),
            "bytesUsed": 9_878_424_780,
            "budget": bytes_text(10_800_000_000),
            "bytesBudget": 10_800_000_000,
            "percent": 91,
            "rate": "512k",
            "bitsPerSecond": 512_345,
            "capped": True,
            "cappedSince": "2026-11-22T11:00:00Z",
            "bytesCounter": 77,
        },
        "exempt": {
            "classId": "1:202a",
            "used": "0",
            "bytesUsed": 0,
            "budget": bytes_text(32_400_000_000),
            "bytesBudget": 32_400_000_000,
            "percent": 0,
            "rate": "1G",
            "bitsPerSecond": 1_000_000_000,
            "capped": False,
            "bytesCounter": 0,
        },
        "problems": [{"pod": "princeton-codeen/proxy-0", "reason": "it is on the host's network"}],
        "errors": ["spec.share: 0 is not a share"],
    }


def test_a_slice_without_a_class_here_names_none_for_zero_is_the_root_s() -> None:
    body = bandwidth_usage.to_object(replace(REPORT, slice_id=0), "node-7", None, T0)
    assert "classId" not in body["standard"]
    assert "classId" not in body["exempt"]


def test_without_the_node_s_uid_nobody_owns_the_object() -> None:
    for uid in (None, ""):
        assert "ownerReferences" not in bandwidth_usage.to_object(REPORT, "node-7", uid, T0)["metadata"]


def test_the_name_is_slice_dot_node_where_that_can_be_no_other_pair() -> None:
    assert bandwidth_usage.name("codeen", "node-7.princeton.edu") == "codeen.node-7.princeton.edu"


@given(st.lists(st.tuples(names, names), min_size=2, max_size=8, unique=True))
def test_every_pair_of_slice_and_node_has_a_legal_name_of_its_own(pairs: list[tuple[str, str]]) -> None:
    made = [bandwidth_usage.name(*pair) for pair in pairs]
    assert len(set(made)) == len(pairs)
    for name in made:
        assert len(name) <= 253
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a.b", "c"), ("a", "b.c")),
        (("a.b.c", "d"), ("a.b", "c.d")),
        (("s" * 130, "n" * 130), ("s" * 130, "n" * 129)),
        (("s" * 253, "node-1"), ("s" * 253, "node-2")),
    ],
)
def test_pairs_that_would_meet_in_one_name_do_not(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert bandwidth_usage.name(*one) != bandwidth_usage.name(*other)


def test_too_many_problems_and_too_long_texts_are_cut_so_that_the_object_can_be_written() -> None:
    problems = tuple(PodProblem(f"ns/p{index}", "x" * 5000) for index in range(100_000))
    report = replace(REPORT, problems=problems, errors=("y" * 5000,) * 50)
    body = bandwidth_usage.to_object(report, "node-7", None, T0)
    assert len(body["problems"]) == len(body["errors"]) == 20
    assert crd.Server().errors(SCHEMA, {**body, "metadata": {}}) == []


def test_where_not_all_problems_fit_the_conflicts_are_among_those_that_do() -> None:
    others = tuple(PodProblem(f"ns/p{index}", "it has no address") for index in range(50))
    conflict = PodProblem("ns/last", f"{OLDER_HAS_IT}ns/other")
    body = bandwidth_usage.to_object(replace(REPORT, problems=(*others, conflict)), "node-7", None, T0)
    assert [problem["pod"] for problem in body["problems"]] == ["ns/last", *(f"ns/p{index}" for index in range(19))]


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("sliceName", None, "sliceName: must be given"),
        ("sliceName", 1, "sliceName: 1 must be a string"),
        ("nodeName", "", 'nodeName: "" must be a string'),
        ("periodStart", "today", 'periodStart: "today" is not a time: use RFC 3339 (2026-11-22T10:00:00Z)'),
        ("periodEnd", None, "periodEnd: must be given"),
        ("reportedAt", 0, "reportedAt: 0 is not a time: use RFC 3339 (2026-11-22T10:00:00Z)"),
        ("observedGeneration", -1, "observedGeneration: -1 must be a whole number, 0 or more"),
        ("standard", [], "standard: a list must be an object with named fields"),
        ("standard", None, "standard.bytesUsed: must be given"),
        ("standard.classId", "1:3001", 'standard.classId: "1:3001" must be the classid of a slice (1:1001)'),
        ("standard.bytesUsed", 1.5, "standard.bytesUsed: 1.5 must be a whole number, 0 or more"),
        ("exempt.capped", "yes", 'exempt.capped: "yes" must be true or false'),
        ("exempt.bytesCounter", True, "exempt.bytesCounter: true must be a whole number, 0 or more"),
        ("standard.cappedSince", "x", 'standard.cappedSince: "x" is not a time: use RFC 3339 (2026-11-22T10:00:00Z)'),
        ("problems", {}, "problems: an object must be a list"),
        ("problems", [{"pod": "a"}], "problems[0].reason: must be given"),
    ],
)
def test_an_object_that_is_not_ours_is_refused_with_the_field_that_tells(path: str, value: Any, error: str) -> None:
    body = bandwidth_usage.to_object(REPORT, "node-7", None, T0)
    *outer, last = path.split(".")
    target = body[outer[0]] if outer else body
    target[last] = value
    with pytest.raises(FieldError) as caught:
        bandwidth_usage.parse(body)
    assert error in str(caught.value)
    assert str(caught.value).startswith("BandwidthUsage princeton-codeen/codeen.node-7: ")


@pytest.mark.parametrize("obj", [None, [], {}, "x", {"metadata": 1}])
def test_what_is_no_object_is_refused_the_same_way(obj: Any) -> None:
    with pytest.raises(FieldError, match=r"^BandwidthUsage"):
        bandwidth_usage.parse(obj)


def test_more_bytes_than_an_api_server_could_hold_are_refused() -> None:
    obj = bandwidth_usage.to_object(REPORT, "node-a", None, 0)
    obj["standard"]["bytesUsed"] = 1 << 63
    with pytest.raises(FieldError, match=r"standard\.bytesUsed: 9223372036854775808 is too high: at most "):
        bandwidth_usage.parse(obj)


@pytest.mark.parametrize("name", ["../../etc/cron", "/etc/passwd", "..", "a/b", "a\nERROR forged", "A"])
def test_what_is_no_name_does_not_become_part_of_a_path(name: str) -> None:
    for field in ("sliceName", "nodeName"):
        obj = bandwidth_usage.to_object(REPORT, "node-a", None, 0) | {field: name}
        with pytest.raises(FieldError, match=f"{field}: .* is not a name: ") as caught:
            bandwidth_usage.parse(obj)
        assert "\n" not in str(caught.value)
    obj = bandwidth_usage.to_object(REPORT, "node-a", None, 0)
    obj["metadata"]["namespace"] = name
    with pytest.raises(FieldError, match=r"metadata\.namespace: .* is not a name: ") as caught:
        bandwidth_usage.parse(obj)
    assert "\n" not in str(caught.value)
