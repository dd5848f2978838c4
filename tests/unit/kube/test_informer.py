"""A list that lags behind changes nothing of what the informer has stored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slicebw.kube import connection
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.client import Page
from slicebw.kube.informer import Informer
from slicebw.kube.resources import SLICE_BANDWIDTHS, Object
from slicebw.kube.watch_supervisor import Watched


def obj(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}}


@pytest.fixture
def informer(tmp_path: Path) -> Iterator[Informer[str]]:
    """An informer of names, without an API server and not started: the test feeds it."""
    api = ApiThread(lambda: connection.load(str(tmp_path / "none")), "slicebw-test")

    def parse(one: Object) -> str:
        return str(one["metadata"]["name"])

    yield Informer(api, Watched(SLICE_BANDWIDTHS), parse, lambda _: None, lambda: None)
    api.stop()


def test_a_list_from_before_the_last_complete_one_does_not_bring_a_deleted_object_back(informer: Informer[str]) -> None:
    informer._on_event("ADDED", obj("x", 50))
    informer._on_event("DELETED", obj("x", 100))
    informer._begin_list()(Page([obj("y", 60)], 110, last=True))  # nothing from before it need be remembered any more
    informer._begin_list()(Page([obj("x", 50), obj("y", 60)], 90, last=True))
    assert informer.values() == ["y"]
