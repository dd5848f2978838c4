"""Every wrong spec of the table: who sees it, from old API servers to slicebw itself, and what is said."""

from typing import Any

import pytest

from slicebw.api import kinds, node_bandwidth, slice_bandwidth
from tests.support.bad_specs import NODES, SLICES, Bad, Catch
from tests.unit.api import crd

TABLE = [
    pytest.param(kind, bad, id=f"{kind.short_name}-{bad.name}")
    for kind, table in ((kinds.SLICE_BANDWIDTH, SLICES), (kinds.NODE_BANDWIDTH, NODES))
    for bad in table
]


def object_of(kind: kinds.Kind, bad: Bad) -> dict[str, Any]:
    return {
        "apiVersion": kinds.API_VERSION,
        "kind": kind.name,
        "metadata": {"namespace": "ns", "name": "a"} if kind.namespaced else {"name": "a"},
        "spec": bad.spec,
    }


def test_the_table_is_long_and_names_each_row_once() -> None:
    assert len(SLICES) >= 60
    for table in (SLICES, NODES):
        assert len({bad.name for bad in table}) == len(table)
        assert {bad.catch for bad in table} == set(Catch)


@pytest.mark.parametrize(("kind", "bad"), TABLE)
def test_servers_see_what_the_table_says_and_name_the_field(kind: kinds.Kind, bad: Bad) -> None:
    schema = crd.schema(kind.plural, "spec")
    value = crd.with_defaults(schema, bad.spec)
    old, new = (crd.Server(knows_cel).errors(schema, value, "spec") for knows_cel in (False, True))
    pruned = [error for error in new if error.endswith(": pruned")]
    assert bool(pruned) == (bad.catch is Catch.PRUNED)
    assert bool(old) == (bad.catch in (Catch.SCHEMA, Catch.PRUNED))
    assert bool(new) == (bad.catch is not Catch.AGENT)
    parent, _, last = bad.field.rpartition(".")
    for error in new:
        path, _, message = error.partition(": ")
        assert path == bad.field or (path == parent and last in message), error


@pytest.mark.parametrize(("kind", "bad"), TABLE)
def test_slicebw_sees_it_where_no_server_has_looked_and_says_field_value_and_what_is_allowed(
    kind: kinds.Kind, bad: Bad
) -> None:
    parse = slice_bandwidth.parse if kind is kinds.SLICE_BANDWIDTH else node_bandwidth.parse
    # A budget or a threshold that is wrong is named as it was given, or as the server's default has filled it in.
    value = crd.with_defaults(crd.schema(kind.plural, "spec"), bad.spec)
    errors = parse({**object_of(kind, bad), "spec": value}).errors
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"{bad.field}: {bad.said}")
    assert len(errors[0]) < 500
    assert "\n" not in errors[0]
