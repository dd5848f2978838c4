"""Names: what the code calls things is what the CRDs call them, and every name made is a legal one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicebw.api import kinds
from tests.unit.api import crd

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")

names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?){0,3}", fullmatch=True)


@pytest.mark.parametrize("kind", kinds.ALL, ids=lambda kind: kind.name)
def test_each_kind_is_named_in_its_crd_as_in_the_code(kind: kinds.Kind) -> None:
    definition = crd.load(kind.plural)
    spec = definition["spec"]
    assert definition["metadata"]["name"] == kind.crd
    assert spec["group"] == kinds.GROUP
    assert [one["name"] for one in spec["versions"]] == [kinds.VERSION]
    assert spec["names"]["kind"] == kind.name
    assert spec["names"]["listKind"] == f"{kind.name}List"
    assert spec["names"]["plural"] == kind.plural
    assert spec["names"]["shortNames"] == [kind.short_name]
    assert spec["names"]["categories"] == [kinds.CATEGORY]
    assert spec["scope"] == ("Namespaced" if kind.namespaced else "Cluster")


@given(names, names)
def test_marked_names_and_label_values_are_legal_however_long_the_name_is(first: str, second: str) -> None:
    name = kinds.marked(f"{first}.{second}.{first}", kinds.digest(first, second))
    assert SUBDOMAIN.fullmatch(name)
    assert len(name) <= 253
    value = kinds.label_value(first)
    assert LABEL_VALUE.fullmatch(value)
    assert len(value) <= 63
    assert value == first or len(first) > 63


def test_a_cut_name_never_ends_in_punctuation_before_its_mark() -> None:
    assert kinds.marked("a" * 200 + "." * 100, "0123456789abcdef").startswith("a" * 200 + "-0123")
    assert kinds.label_value("a" * 46 + "." + "b" * 40) == "a" * 46 + "-" + kinds.digest("a" * 46 + "." + "b" * 40)


def test_digests_tell_apart_what_joins_to_the_same_text() -> None:
    assert kinds.digest("a", "bc") != kinds.digest("ab", "c")
    assert kinds.digest("codeen", "node-7") == "ba77c908e6068009"  # never to change: objects are found by it


@pytest.mark.parametrize("name", ["codeen", "a", "a.b", "node-7.princeton.edu", "0", "a" * 253])
def test_legal_names_have_no_error(name: str) -> None:
    assert kinds.name_error(name) is None


@pytest.mark.parametrize("name", ["A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a/b", "a b", "ü", "a" * 254, "a\n"])
def test_other_names_are_named_with_what_is_allowed(name: str) -> None:
    error = kinds.name_error(name)
    assert error is not None
    assert "is not a name: use up to 253 lower case letters, digits, - and . (codeen)" in error
    assert kinds.name_error("") == "must be given"
