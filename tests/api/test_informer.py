"""An informer puts itself right where the watch cannot: what it missed, and versions that have jumped back."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slicebw.api import kinds
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.informer import Informer
from slicebw.kube.resources import SLICE_BANDWIDTHS, Object
from slicebw.kube.store import key_of
from slicebw.kube.watch_supervisor import Watched
from tests.api.cluster import Cluster, eventually, slice_bandwidth, throughout
from tests.api.proxy import FaultProxy

RELIST_S = 2.0


@pytest.fixture
def informer(proxy: FaultProxy, connect: Callable[[Path], ApiThread]) -> Iterator[Informer[str]]:
    """An informer of SliceBandwidths' names that makes a list of its own every one to three seconds."""

    def parse(obj: Object) -> str:
        return "/".join(key_of(obj))

    api = connect(proxy.kubeconfig)
    made = Informer(api, Watched(SLICE_BANDWIDTHS), parse, lambda _: None, lambda: None, relist_s=RELIST_S)
    made.start()
    eventually(lambda: made.listed)
    yield made
    made.stop()


def test_a_list_of_our_own_repairs_what_a_silent_watch_has_missed(
    cluster: Cluster, proxy: FaultProxy, informer: Informer[str], namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "goes"))
    eventually(lambda: f"{namespace}/goes" in informer.values())
    eventually(lambda: any("watch=true" in request.query for request in proxy.requests))
    proxy.mute()
    cluster.delete(kinds.SLICE_BANDWIDTH, "goes", namespace)
    cluster.create(slice_bandwidth(namespace, "comes"))
    eventually(lambda: f"{namespace}/comes" in informer.values(), 30.0)
    eventually(lambda: f"{namespace}/goes" not in informer.values(), 30.0)


def test_after_a_restored_etcd_everything_is_read_again_and_the_watch_works_again(
    cluster: Cluster, informer: Informer[str], namespace: str
) -> None:
    cluster.create(slice_bandwidth(namespace, "lost"))
    eventually(lambda: f"{namespace}/lost" in informer.values())
    # All versions that are there now are lower than those seen before, as after a restore from a backup.
    store = informer._store
    store.complete_list(10**15)
    store._entries = {key: type(entry)(entry.uid, 10**14, entry.value) for key, entry in store._entries.items()}
    cluster.delete(kinds.SLICE_BANDWIDTH, "lost", namespace)
    cluster.create(slice_bandwidth(namespace, "restored"))
    eventually(lambda: f"{namespace}/restored" in informer.values(), 40.0)
    eventually(lambda: f"{namespace}/lost" not in informer.values(), 10.0)
    cluster.create(slice_bandwidth(namespace, "later"))
    eventually(lambda: f"{namespace}/later" in informer.values(), 10.0)


def test_an_object_that_cannot_be_processed_is_ignored_and_the_others_are_known(
    cluster: Cluster, proxy: FaultProxy, connect: Callable[[Path], ApiThread], namespace: str
) -> None:
    def parse(obj: Object) -> str:
        if obj["metadata"]["name"] == "bad":
            raise ValueError("out of the blue")
        return str(obj["metadata"]["name"])

    for name in ("bad", "good"):
        cluster.create(slice_bandwidth(namespace, name))
    api = connect(proxy.kubeconfig)
    made = Informer(api, Watched(SLICE_BANDWIDTHS), parse, lambda _: None, lambda: None)
    made.start()
    try:
        eventually(lambda: "good" in made.values())
        eventually(lambda: made.listed)
        cluster.create(slice_bandwidth(namespace, "later"))
        eventually(lambda: "later" in made.values())
        throughout(lambda: "bad" not in made.values(), 0.2)
        assert api.health.failures["parse"] >= 1
    finally:
        made.stop()
