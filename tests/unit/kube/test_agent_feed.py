"""A desired state is complete only if all lists were complete before its first value was read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slicebw.api.node_bandwidth import parse
from slicebw.kube import connection
from slicebw.kube.agent_feed import ApiFeed
from slicebw.kube.api_thread import ApiThread

NODE = {"metadata": {"name": "node-1"}, "spec": {"exemptDestinations": ["198.51.100.0/24"]}}


class LateInformer:
    """An informer whose first list arrives during a read: the values that were read are from before it."""

    def __init__(self, *values: Any) -> None:
        self.listed = False
        self._values = values

    def values(self) -> list[Any]:
        before = list(self._values) if self.listed else []
        self.listed = True
        return before


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiThread]:
    """Without an API server."""
    thread = ApiThread(lambda: connection.load(str(tmp_path / "none")), "slicebw-test")
    thread.start()
    yield thread
    thread.stop()


def test_a_list_that_arrives_while_the_state_is_built_does_not_make_it_complete(
    monkeypatch: pytest.MonkeyPatch, api: ApiThread
) -> None:
    feed = ApiFeed(api, "node-1", lambda: None)
    own = LateInformer(parse(NODE))
    for name, informer in (("_own", own), ("_slices", LateInformer()), ("_pods", LateInformer())):
        monkeypatch.setattr(feed, name, informer)
    monkeypatch.setattr(feed, "_nodes", {"default": LateInformer(), "node-1": own})
    feed._changed()
    first = feed.desired_state()
    assert not first.synced
    assert first.node.exempt_destinations is None
    feed._changed()
    second = feed.desired_state()
    assert second.synced
    assert second.node.exempt_destinations is not None
