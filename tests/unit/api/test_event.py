"""Events: one pending event gives one Event, however often it is sent and by whom."""

import re

import pytest
from msgspec.structs import replace

from slicebw.api import event
from slicebw.core.desired import SliceKey
from slicebw.core.ledger import PendingEvent, Reason

T0 = 1_795_341_600
NOTE = PendingEvent(
    id="BandwidthCapped/princeton-codeen/codeen/standard/1795341600",
    key=SliceKey("princeton-codeen", "codeen"),
    uid="u-1",
    reason=Reason.CAPPED,
    warning=True,
    message="Slowed standard traffic",
    at_s=T0,
)


def test_what_is_wrong_with_a_spec_is_one_event_whoever_tells_it() -> None:
    wrong = replace(NOTE, reason=Reason.INVALID)
    bodies = [event.to_object(wrong, *by)[1] for by in (("node-7",), ("node-8",), ())]
    assert len({body["metadata"]["name"] for body in bodies}) == 1
    assert bodies[2]["source"] == {"component": "slicebw-controller"}
    assert bodies[2]["reportingInstance"] == "slicebw-controller"
    assert event.to_object(NOTE, "node-7")[1]["metadata"] != event.to_object(NOTE, "node-8")[1]["metadata"]


def test_an_event_about_a_slice_is_in_its_namespace_and_names_it() -> None:
    namespace, body = event.to_object(NOTE, "node-7")
    name = body["metadata"].pop("name")
    assert re.fullmatch(r"codeen-[0-9a-f]{16}", name)
    assert namespace == "princeton-codeen"
    assert body == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "princeton-codeen"},
        "involvedObject": {
            "apiVersion": "slicebw.io/v1alpha1",
            "kind": "SliceBandwidth",
            "namespace": "princeton-codeen",
            "name": "codeen",
            "uid": "u-1",
        },
        "type": "Warning",
        "reason": "BandwidthCapped",
        "message": "Slowed standard traffic",
        "source": {"component": "slicebw-agent", "host": "node-7"},
        "reportingComponent": "slicebw-agent",
        "reportingInstance": "node-7",
        "firstTimestamp": "2026-11-22T10:00:00Z",
        "lastTimestamp": "2026-11-22T10:00:00Z",
        "count": 1,
    }


@pytest.mark.parametrize(("uid", "expected"), [("u-7", "u-7"), (None, "node-7"), ("", "node-7")])
def test_an_event_about_the_node_is_in_the_default_namespace(uid: str | None, expected: str) -> None:
    note = replace(NOTE, key=None, uid="", reason=Reason.MODE_CHANGED, warning=False)
    namespace, body = event.to_object(note, "node-7", uid)
    assert namespace == body["metadata"]["namespace"] == "default"
    assert body["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "node-7", "uid": expected}
    assert body["type"] == "Normal"


def test_the_same_note_has_the_same_name_and_every_other_one_another() -> None:
    def name(note: PendingEvent, node_name: str) -> str:
        made: str = event.to_object(note, node_name)[1]["metadata"]["name"]
        return made

    assert name(NOTE, "node-7") == name(replace(NOTE, message="in other words", at_s=T0 + 5), "node-7")
    assert name(NOTE, "node-7") != name(replace(NOTE, id="another"), "node-7")
    assert name(NOTE, "node-7") != name(NOTE, "node-8")


def test_names_and_instances_stay_within_what_the_api_allows() -> None:
    long_name = "n" * 253
    _, body = event.to_object(replace(NOTE, key=SliceKey("ns", "s" * 253)), long_name)
    assert len(body["metadata"]["name"]) == 253
    assert len(body["reportingInstance"]) == 128
    assert body["source"]["host"] == long_name


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("x" * 1024, "x" * 1024),
        ("x" * 1025, "x" * 1021 + "..."),
        ("ü" * 600, "ü" * 510 + "..."),
        ("", ""),
    ],
)
def test_a_message_has_at_most_1024_bytes_and_no_half_characters(message: str, expected: str) -> None:
    _, body = event.to_object(replace(NOTE, message=message), "node-7")
    assert body["message"] == expected
    assert len(body["message"].encode()) <= 1024
