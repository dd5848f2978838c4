"""SliceBandwidth's status and conditions: written and read back the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slicebw.api import conditions, kinds, slice_bandwidth
from slicebw.api.conditions import FALSE, TRUE, UNKNOWN, Condition
from slicebw.api.slice_bandwidth import ClassStatus, SliceStatus
from slicebw.core.desired import SliceKey
from slicebw.core.text import bytes_text
from tests.unit.api import crd

KEY = SliceKey("princeton-codeen", "codeen")
SCHEMA = crd.schema("slicebandwidths")
T0 = 1_795_341_600

seconds = st.integers(0, 4_102_444_800)
counts = st.integers(0, 2**63 - 1)
some_conditions = st.lists(
    st.builds(
        Condition,
        type=st.sampled_from(["Accepted", "Enforced", "Capped"]),
        status=st.sampled_from([TRUE, FALSE, UNKNOWN]),
        reason=st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,30}", fullmatch=True),
        message=st.text(max_size=50),
        last_transition_s=seconds,
        observed_generation=counts,
    ),
    max_size=3,
).map(tuple)
class_statuses = st.builds(ClassStatus, counts, counts, st.none() | st.integers(1, 10**15))
statuses = st.builds(
    SliceStatus, counts, counts, counts, st.none() | seconds, class_statuses, class_statuses, some_conditions
)


@given(statuses)
def test_a_status_is_read_back_as_it_was_written_and_fits_the_schema(status: SliceStatus) -> None:
    body = slice_bandwidth.status_object(KEY, status)
    assert slice_bandwidth.parse_status(body) == status
    assert crd.Server().errors(SCHEMA, body) == []


def test_figures_stand_in_a_status_for_people_and_beside_them_exactly() -> None:
    status = SliceStatus(
        observed_generation=3,
        nodes=12,
        capped_nodes=2,
        period_start_s=T0,
        standard=ClassStatus(91_268_055_040, 97, 512_345),
        conditions=(Condition("Accepted", TRUE, "Valid", "the spec is in force", T0, 3),),
    )
    assert slice_bandwidth.status_object(KEY, status) == {
        "apiVersion": "slicebw.io/v1alpha1",
        "kind": "SliceBandwidth",
        "metadata": {"namespace": "princeton-codeen", "name": "codeen"},
        "status": {
            "observedGeneration": 3,
            "nodes": 12,
            "cappedNodes": 2,
            "periodStart": "2026-11-22T10:00:00Z",
            "standard": {
                "used": bytes_text(91_268_055_040),
                "bytesUsed": 91_268_055_040,
                "peakPercent": 97,
                "cappedRate": "512k",
                "cappedBitsPerSecond": 512_345,
            },
            "exempt": {"used": "0", "bytesUsed": 0, "peakPercent": 0},
            "conditions": [
                {
                    "type": "Accepted",
                    "status": "True",
                    "reason": "Valid",
                    "message": "the spec is in force",
                    "lastTransitionTime": "2026-11-22T10:00:00Z",
                    "observedGeneration": 3,
                }
            ],
        },
    }


@pytest.mark.parametrize(
    "obj",
    [None, [], {}, {"status": None}, {"status": []}, {"status": {"nodes": "x", "standard": 1, "conditions": {}}},
     {"status": {"periodStart": "soon", "exempt": {"bytesUsed": True}, "conditions": [1, {}, {"type": 1}]}}],
)  # fmt: skip
def test_a_status_that_is_not_there_or_not_ours_reads_as_nothing(obj: Any) -> None:
    assert slice_bandwidth.parse_status(obj) == SliceStatus()


def test_a_condition_keeps_its_time_of_transition_until_its_status_changes() -> None:
    old = (Condition("Accepted", TRUE, "Valid", "fine", T0, 1), Condition("Capped", FALSE, "NoneCapped", "", T0, 1))
    new = (
        Condition("Accepted", TRUE, "StillValid", "still fine", T0 + 60, 2),
        Condition("Capped", TRUE, "Capped", "on 1 node", T0 + 60, 2),
        Condition("Enforced", FALSE, "Pending", "", T0 + 60, 2),
    )
    carried = conditions.carry_over(new, old)
    assert [(one.type, one.last_transition_s) for one in carried] == [
        ("Accepted", T0),
        ("Capped", T0 + 60),
        ("Enforced", T0 + 60),
    ]
    assert (carried[0].reason, carried[0].message) == ("StillValid", "still fine")
    assert carried[0].observed_generation == 2


def test_a_message_is_cut_to_what_a_condition_may_hold() -> None:
    body = conditions.to_list([Condition("Accepted", FALSE, "Invalid", "x" * 100_000, T0)])
    assert len(body[0]["message"]) == 32_768


def test_only_the_controller_s_own_fields_are_in_a_status_body() -> None:
    body = slice_bandwidth.status_object(KEY, SliceStatus())
    assert set(body) == {"apiVersion", "kind", "metadata", "status"}
    assert set(body["metadata"]) == {"namespace", "name"}
    assert body["apiVersion"] == f"{kinds.GROUP}/{kinds.VERSION}"
