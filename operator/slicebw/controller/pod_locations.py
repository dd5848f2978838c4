"""On which nodes the pods of each slice run; the agents' reports are compared with that.

Only agents know what is in force, and one that does not run reports nothing. So before a status says that a slice is
enforced everywhere, its pods are looked up. The controller does not watch pods: on 1,000 nodes there are tens of
thousands, each changes half a dozen times in its life, and almost none of these changes matters here. It lists the pods
of one namespace when it has a reason to, and keeps one number per slice and node:

- a condition Enforced that differs from the one in the object is written only after such a list;
- while all slices of a namespace are enforced, its pods are listed every RECHECK_S, and sooner while nodes are missing:
  the controller sees nothing else of a pod that starts, or ends, where no agent runs.

The list is read from etcd (where a namespace's pods stand together), in pages, not from the API server's memory: it
must not be older than the reports. A budget in pods per second (PODS_PER_S) bounds what this costs the API server.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from slicebw.controller.ports import ClusterFeed, ClusterWriter
from slicebw.controller.rollup import PodsByNode
from slicebw.controller.work_queue import WorkQueue
from slicebw.core.clock import TokenBucket
from slicebw.core.desired import Pod, SliceKey, SliceSpec
from slicebw.core.membership import resolve, with_last_good_selectors

RECHECK_S: Final = 300.0
"""How often the pods of a namespace are listed while all its slices are enforced."""

RECHECK_SOON_S: Final = 15.0
"""And while one is not; a large namespace less often, so that it costs at most SOON_PODS_PER_S."""

SOON_PODS_PER_S: Final = 20.0

RETRY_S: Final = 5.0
"""After a list that the API server did not answer."""

PODS_PER_S: Final = 1000.0
"""Over all namespaces. At 6 kB a pod that is 6 MB/s at the very most; 1,000 nodes with 20 slices each, listed every
five minutes, are 70 pods a second."""

BURST_PODS: Final = 5000.0
PODS_PER_LIST: Final = 10.0
"""What a request costs beside its pods, in pods."""


@dataclass(frozen=True, slots=True)
class SliceLocations:
    """Where the pods of a slice ran at ``listed_s``, when the list was begun; a text says why nobody knows."""

    nodes: PodsByNode | str
    listed_s: float


class PodLocations:
    """What the last list of each namespace's pods has shown, and when to list them again. Not thread-safe."""

    def __init__(self, feed: ClusterFeed, writer: ClusterWriter, clock: Callable[[], float]) -> None:
        """Know nothing. ``clock`` is monotonic, in seconds."""
        self._feed, self._writer, self._clock = feed, writer, clock
        self._locations: dict[str, dict[SliceKey, SliceLocations]] = {}
        self._pods: dict[str, int] = {}
        self._specs: dict[SliceKey, SliceSpec] = {}
        self._rechecks = WorkQueue[str]()
        self._budget = TokenBucket(PODS_PER_S, BURST_PODS, clock())
        self.lists = 0
        """How many lists were made."""
        self.listed_pods = 0
        """How many pods were in them."""

    def of(self, key: SliceKey) -> SliceLocations | None:
        """Where the pods of a slice ran when they were last listed; None before the first list."""
        return self._locations.get(key.namespace, {}).get(key)

    def refresh(self, namespace: str) -> bool:
        """List the pods of a namespace now; false if the budget is spent or the API server does not answer."""
        now_s = self._clock()
        if self._budget.available(now_s) <= 0:
            return False
        records = self._feed.slices_in(namespace)
        if not records:
            self.forget(namespace)
            return True
        self._recheck_after(namespace, RETRY_S, now_s)
        pods = self._writer.pods(namespace)
        self.lists += 1
        self._budget.take(now_s, PODS_PER_LIST)
        if pods is None:
            return False
        specs = with_last_good_selectors([record.spec for record in records], self._specs.values())
        self._specs.update((spec.key, spec) for spec in specs)
        found: Mapping[SliceKey, PodsByNode | str]
        if isinstance(pods, str):
            found, count = dict.fromkeys([spec.key for spec in specs], pods), 0
        else:
            found, count = locate(specs, pods), sum(map(len, pods.values()))
        self._locations[namespace] = {key: SliceLocations(nodes, now_s) for key, nodes in found.items()}
        self._pods[namespace] = count
        self.listed_pods += count
        self._budget.take(now_s, count)
        self._recheck_after(namespace, RECHECK_S * random.uniform(0.8, 1.2), now_s)
        return True

    def due(self) -> str | None:
        """A namespace whose pods are to be listed again; None if there is none, or no budget for it."""
        now_s = self._clock()
        return self._rechecks.get(now_s) if self._budget.available(now_s) > 0 else None

    def recheck_soon(self, namespace: str) -> None:
        """List the pods of a namespace again before long: one of its slices is not enforced."""
        after_s = max(RECHECK_SOON_S, self._pods.get(namespace, 0) / SOON_PODS_PER_S)
        if namespace in self._rechecks:
            self._rechecks.add_after(namespace, after_s, self._clock())

    def recheck_now(self, namespace: str) -> None:
        """List the pods of a namespace again: one of its slices is new, changed or gone, so pods may change hands."""
        if namespace in self._rechecks:
            self._rechecks.add(namespace, self._clock())

    def forget(self, namespace: str) -> None:
        """Drop a namespace that has no slice any more."""
        self._locations.pop(namespace, None)
        self._pods.pop(namespace, None)
        self._rechecks.discard(namespace)
        for key in [key for key in self._specs if key.namespace == namespace]:
            del self._specs[key]

    def _recheck_after(self, namespace: str, after_s: float, now_s: float) -> None:
        # A recheck that was asked for earlier has just been made.
        self._rechecks.discard(namespace)
        self._rechecks.add_after(namespace, after_s, now_s)


def locate(specs: Sequence[SliceSpec], pods: Mapping[str, Iterable[Pod]]) -> dict[SliceKey, PodsByNode]:
    """For each slice of a namespace its pods by node, assigned as the agents assign them (core.membership). Pure.

    Args:
        specs: all SliceBandwidths of the namespace.
        pods: the pods of the namespace, by node.
    """
    located: dict[SliceKey, dict[str, int]] = {spec.key: {} for spec in specs}
    slices = tuple(specs)
    without_pods = resolve(slices, ())  # indexes the selectors once, not for every node
    for node, on_node in pods.items():
        found = list(on_node)
        owners = resolve(slices, found, without_pods).addresses
        counts = Counter(key for pod in found if (key := _owner(pod, owners)) is not None)
        for key, count in counts.items():
            located[key][node] = count
    return dict(located)


def _owner(pod: Pod, owners: Mapping[str, SliceKey]) -> SliceKey | None:
    if pod.host_network or pod.finished:
        return None
    return next((owners[address] for address in pod.addresses if address in owners), None)
