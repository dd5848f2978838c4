"""What refusals and missing answers of the API server mean, and the texts that messages have for them."""

import errno
import os

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from slicebw.kube.client import ApiRefused, no_answer_text, page_of
from slicebw.kube.resources import BANDWIDTH_USAGES, NODES, PODS, SLICE_BANDWIDTHS

SERVER = "https://192.0.2.1:6443"
KEY = ConnectionKey("192.0.2.1", 6443, True, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))),
            f"cannot reach {SERVER}: connection refused; is the API server up?",
        ),
        (
            aiohttp.ClientConnectorError(KEY, OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))),
            f"cannot reach {SERVER}: no route to host; is the API server up?",
        ),
        (TimeoutError(), f"cannot reach {SERVER}: no answer in time; is the API server up?"),
        (aiohttp.ServerTimeoutError(), f"cannot reach {SERVER}: no answer in time; is the API server up?"),
        (
            aiohttp.ServerDisconnectedError(),
            f"cannot reach {SERVER}: Server disconnected; is the API server up?",
        ),
    ],
)
def test_a_missing_answer_is_explained_in_one_line(error: Exception, words: str) -> None:
    assert no_answer_text(SERVER, error) == words


def refusal(status: int, reason: str = "", message: str = "", **details: object) -> ApiRefused:
    return ApiRefused("PATCH /x", status, {"reason": reason, "message": message, "details": details})


def test_a_missing_kind_a_missing_namespace_and_a_missing_object_are_told_apart() -> None:
    # As an API server words them: a kind that is not served is just a page that is not found.
    kind = ApiRefused("PATCH /x", 404, {"message": "404 page not found"})
    namespace = refusal(404, "NotFound", 'namespaces "a" not found', name="a", kind="namespaces")
    thing = refusal(404, "NotFound", name="a.n1", group="slicebw.io", kind="bandwidthusages")
    assert [one.kind_missing for one in (kind, namespace, thing)] == [True, False, False]
    assert [one.namespace_gone for one in (kind, namespace, thing)] == [False, True, False]
    assert all(one.not_found for one in (kind, namespace, thing))


def test_a_namespace_that_is_going_and_a_missing_role_are_told_apart() -> None:
    going = refusal(403, "Forbidden", "x", causes=[{"reason": "NamespaceTerminating"}])
    worded = refusal(403, "Forbidden", "unable to create new content in namespace a because it is being terminated")
    role = refusal(403, "Forbidden", 'events is forbidden: User "a" cannot create resource "events"')
    assert [one.namespace_gone for one in (going, worded, role)] == [True, True, False]


def test_a_name_that_is_taken_and_another_conflict_are_told_apart() -> None:
    assert refusal(409, "AlreadyExists").already_exists
    assert not refusal(409, "Conflict").already_exists


def test_a_list_says_whether_it_is_complete() -> None:
    page = page_of({"metadata": {"resourceVersion": "12", "continue": "next"}, "items": [{"a": 1}]})
    assert (page.items, page.version, page.last) == ([{"a": 1}], 12, False)
    assert page_of({"metadata": {"resourceVersion": "12"}, "items": None}).last


def test_objects_have_the_paths_that_the_api_server_serves() -> None:
    assert PODS.path() == "/api/v1/pods"
    assert NODES.path(name="n1") == "/api/v1/nodes/n1"
    assert SLICE_BANDWIDTHS.path("ns", "a", "status") == (
        "/apis/slicebw.io/v1alpha1/namespaces/ns/slicebandwidths/a/status"
    )
    assert BANDWIDTH_USAGES.path_of({"metadata": {"namespace": "ns", "name": "a.n1"}}) == (
        "/apis/slicebw.io/v1alpha1/namespaces/ns/bandwidthusages/a.n1"
    )
    assert str(SLICE_BANDWIDTHS) == "slicebandwidths.slicebw.io"
