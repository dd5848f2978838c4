"""Which answers of the API server are final for a report, and when the others are retried."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from slicebw.core.desired import SliceKey
from slicebw.core.errors import TryLater
from slicebw.core.reports import NodeWrite, ReportWrite, UsageRemoval, UsageWrite
from slicebw.kube.agent_sink import ApiSink
from slicebw.kube.api_health import ApiHealth
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.client import ApiRefused, ApiUnreachable, Page
from slicebw.kube.resources import BANDWIDTH_USAGES, NODE_BANDWIDTHS, Object, Resource
from tests.support.reports import capped_event, node_report, usage_report

NODE = "node-a"
NOTE = capped_event("ns")
USAGE = UsageWrite(usage_report("ns"), 1_700_000_000)
REMOVAL = UsageRemoval(SliceKey("ns", "codeen"))
NODE_STATUS = NodeWrite(node_report(), 1_700_000_000)
WRITES = (NOTE, USAGE, REMOVAL, NODE_STATUS)


def refusal(status: int, reason: str = "", **details: object) -> ApiRefused:
    return ApiRefused("POST /x", status, {"reason": reason, "message": "no", "details": details})


MISSING = ApiRefused("PATCH /x", 404, {"message": "404 page not found"})
NO_OBJECT = refusal(404, "NotFound", name=NODE, kind="nodebandwidths")


class Client:
    """Accepts each request, except those with an answer in ``answers``. Records all in ``requests``."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Exception]] = {}
        self.requests: list[str] = []

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        self._answer("get", path)
        return {"metadata": {"uid": "uid-of-node"}}

    async def create(self, resource: Resource, obj: Object) -> None:
        self._answer("create", resource)

    async def apply(self, resource: Resource, obj: Object, manager: str, subresource: str | None = None) -> Object:
        self._answer("apply", f"{resource}/{subresource}" if subresource else resource)
        return obj

    async def delete(self, resource: Resource, namespace: str, name: str) -> None:
        self._answer("delete", f"{resource} {namespace}/{name}")

    async def pages(self, resource: Resource, **query: str) -> Any:
        self._answer("list", resource)
        yield Page([], 1, last=True)

    def fail(self, verb: str, *answers: Exception) -> None:
        """Let the next requests with a verb fail."""
        self.answers[verb] = list(answers)

    def _answer(self, verb: str, what: object) -> None:
        self.requests.append(f"{verb} {what}")
        if self.answers.get(verb):
            raise self.answers[verb].pop(0)


class Api:
    """What the sink needs of an API thread."""

    def __init__(self) -> None:
        self.client = Client()
        self.health = ApiHealth()
        self.kept_running: list[object] = []

    def keep_running(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.kept_running.append(work)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def sink(api: Api) -> ApiSink:
    return ApiSink(cast(ApiThread, api), NODE, refused_pause_s=7.0)


def write(sink: ApiSink, *writes: ReportWrite) -> list[bool | TryLater]:
    """The outcome of each write."""

    async def all_of_them() -> list[bool | TryLater]:
        outcomes: list[bool | TryLater] = []
        for one in writes:
            try:
                outcomes.append(await sink.write(one))
            except TryLater as error:
                outcomes.append(error)
        return outcomes

    return asyncio.run(all_of_them())


def failed(sink: ApiSink, one: ReportWrite) -> TryLater:
    (outcome,) = write(sink, one)
    assert isinstance(outcome, TryLater)
    return outcome


def verbs(api: Api) -> list[str]:
    return [request for request in api.client.requests if not request.startswith("get ")]


def test_each_report_is_one_request_and_the_nodes_uid_is_asked_for_once(api: Api, sink: ApiSink) -> None:
    assert write(sink, *WRITES) == [True] * 4
    assert verbs(api) == [
        "create events",
        f"apply {BANDWIDTH_USAGES}",
        f"delete {BANDWIDTH_USAGES} ns/codeen.{NODE}",
        f"apply {NODE_BANDWIDTHS}/status",
    ]
    assert api.client.requests.count(f"get /api/v1/nodes/{NODE}") == 1


def test_a_node_status_without_its_object_makes_the_object_first(api: Api, sink: ApiSink) -> None:
    api.client.fail("apply", NO_OBJECT)
    assert write(sink, NODE_STATUS) == [True]
    status, own = f"apply {NODE_BANDWIDTHS}/status", f"apply {NODE_BANDWIDTHS}"
    assert verbs(api) == [status, own, status]


def test_an_event_that_is_there_is_not_written_again(api: Api, sink: ApiSink) -> None:
    api.client.fail("create", refusal(409, "AlreadyExists"))
    assert write(sink, NOTE) == [False]
    assert api.health.failures == {}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal(404, "NotFound", name="ns", kind="namespaces"), {}),
        (refusal(403, "Forbidden", causes=[{"reason": "NamespaceTerminating"}]), {}),
        (refusal(422, "Invalid", name="codeen"), {"refused": 1}),
        (refusal(400, "BadRequest"), {"refused": 1}),
    ],
)
def test_a_write_that_can_never_succeed_is_dropped(
    api: Api, sink: ApiSink, answer: ApiRefused, expected: dict[str, int]
) -> None:
    api.client.fail("apply", answer)
    assert write(sink, USAGE) == [False]
    assert api.health.failures == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal(403, "Forbidden"), {"refused": 1}),
        (MISSING, {"missing": 1}),
        (refusal(409, "Conflict"), {"refused": 1}),
    ],
)
def test_a_refusal_that_people_can_repair_is_tried_again_later_and_others_go_on(
    api: Api, sink: ApiSink, answer: ApiRefused, expected: dict[str, int]
) -> None:
    api.client.fail("apply", answer)
    error = failed(sink, USAGE)
    assert (error.retry_s, error.pause_s) == (7.0, 0.0)
    assert api.health.failures == expected


def test_an_api_server_that_is_away_is_left_alone_for_longer_and_longer(api: Api, sink: ApiSink) -> None:
    api.client.fail("create", *[ApiUnreachable("away")] * 3)
    pauses = [failed(sink, NOTE) for _ in range(3)]
    assert [error.retry_s for error in pauses] == [0.0] * 3
    for error, base_s in zip(pauses, (1, 2, 4), strict=True):
        assert 0.5 * base_s <= error.pause_s <= 1.5 * base_s
    assert write(sink, NOTE) == [True]
    api.client.fail("create", ApiUnreachable("away"))
    assert failed(sink, NOTE).pause_s <= 1.5, "it starts again after a success"


def test_a_busy_api_server_is_given_the_time_it_asks_for_and_other_writes_go_first(api: Api, sink: ApiSink) -> None:
    api.client.fail("create", ApiUnreachable("busy", 9.0, busy=True))
    error = failed(sink, NOTE)
    assert (error.pause_s, error.retry_s) == (9.0, 18.0)


def test_previous_reports_are_listed_until_that_works(api: Api, sink: ApiSink) -> None:
    api.client.fail("get", ApiUnreachable("away"), refusal(403, "Forbidden"), MISSING)
    for _ in range(2):
        with pytest.raises(TryLater) as raised:
            asyncio.run(sink.previous_reports())
        assert raised.value.pause_s or raised.value.retry_s
    assert api.health.failures == {"refused": 1}
    assert asyncio.run(sink.previous_reports()) == (), "no kind, no usages"


def test_it_runs_in_the_api_thread_and_counts_what_is_dropped(api: Api, sink: ApiSink) -> None:
    async def run() -> None:
        return

    sink.start(run)
    sink.warn_full("full")
    assert api.kept_running == [run]
    assert api.health.failures == {"full": 1}
