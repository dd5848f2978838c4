"""Knows on which nodes the pods of each slice run, to compare the agents' reports with.

A node without a running agent reports nothing, so reports alone cannot show that a slice is enforced everywhere: its
pods must be found, too. The controller does not watch pods: on 1,000 nodes there are tens of thousands, each changes
half a dozen times in its life, and almost none of these changes matters here. It lists the pods of one namespace when
it has a reason to, and keeps one number per slice and node:

- A condition Enforced that differs from the one in the object is written only after such a list.
- While all slices of a namespace are enforced, its pods are listed every RECHECK_S; while one is not, they are listed
  sooner. Nothing else shows the controller a pod that starts or ends where no agent runs.

A list is read from etcd, where a namespace's pods are adjacent, and in pages. It is not read from the API server's
cache, because it must not be older than the reports. A budget in pods per second (PODS_PER_S) bounds its cost.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from slicebw.controller.ports import ClusterFeed, ClusterWriter
from slicebw.controller.rollup import PodsByNode
from slicebw.controller.stats import Stats
from slicebw.controller.work_queue import WorkQueue
from slicebw.core.clock import TokenBucket
from slicebw.core.desired import Pod, SliceKey, SliceSpec
from slicebw.core.membership import resolve, with_last_good_selectors

RECHECK_S: Final = 300.0
"""How often the pods of a namespace are listed while all its slices are enforced."""

RECHECK_SOON_S: Final = 15.0
"""How often they are listed while one is not enforced. A large namespace is listed less often (SOON_PODS_PER_S)."""

SOON_PODS_PER_S: Final = 20.0
"""The most pods per second that these sooner lists of one namespace may cost."""

RETRY_S: Final = 5.0
"""How soon a list is retried that the API server did not answer."""

PODS_PER_S: Final = 1000.0
"""The most pods listed per second over all namespaces, in the long run.

At 6 kB a pod that is 6 MB/s. 1,000 nodes with 20 slices each, listed every five minutes, need 70 pods a second.
"""

BURST_PODS: Final = 5000.0
PODS_PER_LIST: Final = 10.0
"""The cost of a request itself, in pods."""


@dataclass(frozen=True, slots=True)
class SliceLocations:
    """Where the pods of a slice ran at ``listed_s``, when the list was begun; a text says why that is unknown."""

    nodes: PodsByNode | str
    listed_s: float


class PodLocations:
    """The result of each namespace's last list of pods, and when to list them again. Not thread-safe."""

    def __init__(self, feed: ClusterFeed, writer: ClusterWriter, stats: Stats, clock: Callable[[], float]) -> None:
        """Know nothing yet. ``clock`` is monotonic, in seconds."""
        self._feed, self._writer, self._stats, self._clock = feed, writer, stats, clock
        self._locations: dict[str, dict[SliceKey, SliceLocations]] = {}
        self._pod_counts: dict[str, int] = {}
        # With their last good podSelector, which is used while the present one is invalid, as on the nodes.
        self._specs: dict[str, tuple[SliceSpec, ...]] = {}
        self._rechecks = WorkQueue[str]()
        self._budget = TokenBucket(PODS_PER_S, BURST_PODS, clock())

    def of(self, key: SliceKey) -> SliceLocations | None:
        """Return where the pods of a slice ran when they were last listed; None before the first list."""
        return self._locations.get(key.namespace, {}).get(key)

    def refresh(self, namespace: str) -> bool:
        """List the pods of a namespace now.

        Returns false if the budget is spent or the API server does not answer. A refusal is an answer.
        """
        now_s = self._clock()
        if self._budget.available(now_s) <= 0:
            return False
        records = self._feed.slices_in(namespace)
        if not records:
            self.forget(namespace)
            return True
        # Before the call: if it fails, whether by an answer or an exception, the next try is scheduled.
        self._recheck_after(namespace, RETRY_S, now_s)
        pods = self._writer.pods(namespace)
        self._stats.pod_lists += 1
        self._budget.take(now_s, PODS_PER_LIST)
        if pods is None:
            return False
        specs = with_last_good_selectors([record.spec for record in records], self._specs.get(namespace, ()))
        self._specs[namespace] = specs
        found: Mapping[SliceKey, PodsByNode | str]
        if isinstance(pods, str):
            found, count = dict.fromkeys([spec.key for spec in specs], pods), 0
        else:
            found, count = locate(specs, pods), sum(map(len, pods.values()))
        self._locations[namespace] = {key: SliceLocations(nodes, now_s) for key, nodes in found.items()}
        self._pod_counts[namespace] = count
        self._stats.listed_pods += count
        self._budget.take(now_s, count)
        # Spread the lists of namespaces that were all listed at the start.
        self._recheck_after(namespace, RECHECK_S * random.uniform(0.8, 1.2), now_s)
        return True

    def due(self) -> str | None:
        """Take a namespace whose pods are to be listed again; None if there is none, or no budget for it."""
        now_s = self._clock()
        return self._rechecks.get(now_s) if self._budget.available(now_s) > 0 else None

    def recheck_soon(self, namespace: str) -> None:
        """Schedule the namespace's next list early, because one of its slices is not enforced."""
        after_s = max(RECHECK_SOON_S, self._pod_counts.get(namespace, 0) / SOON_PODS_PER_S)
        if namespace in self._rechecks:
            self._rechecks.add_after(namespace, after_s, self._clock())

    def recheck_now(self, namespace: str) -> None:
        """Make the namespace due, because a slice is new, changed or gone: pods may belong to another slice now."""
        if namespace in self._rechecks:
            self._rechecks.add(namespace, self._clock())

    def forget(self, namespace: str) -> None:
        """Drop a namespace that has no slices any more."""
        self._locations.pop(namespace, None)
        self._pod_counts.pop(namespace, None)
        self._rechecks.discard(namespace)
        self._specs.pop(namespace, None)

    def _recheck_after(self, namespace: str, after_s: float, now_s: float) -> None:
        # The queue keeps the earlier of two times, but the list that was due earlier has just been made.
        self._rechecks.discard(namespace)
        self._rechecks.add_after(namespace, after_s, now_s)


def locate(specs: Sequence[SliceSpec], pods: Mapping[str, Iterable[Pod]]) -> dict[SliceKey, PodsByNode]:
    """Count the pods of each slice of a namespace by node. Pure.

    Pods are assigned to slices as the agents do it (core.membership).

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
