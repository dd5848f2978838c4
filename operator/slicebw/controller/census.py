"""On which nodes the pods of each slice run: what the agents' reports are held against.

Only agents know what is in force, and one that does not run says nothing. So before a slice is said to be enforced
everywhere its pods are looked up. The controller does not watch pods: on 1,000 nodes there are tens of thousands, each
of which changes half a dozen times in its life, and next to none of these changes matters here. It lists the pods of
one namespace when it has a reason to, and keeps of them one number per slice and node:

- a condition Enforced that would say something else than before is written only after such a look (Census.look);
- while all is well each namespace is looked at every RECHECK_S, and while nodes are missing sooner: pods that have
  started where no agent runs, or have ended there, change nothing else that the controller could see.

The list is read from etcd (where a namespace's pods stand together), in pages, not from the API server's memory: it
must not be older than the reports. A budget in pods per second (PODS_PER_S) bounds what this costs the API server.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from slicebw.controller.places import Places, places_of
from slicebw.controller.ports import ClusterFeed, ClusterWriter
from slicebw.core.membership import with_last_good_selectors
from slicebw.core.model import SliceKey, SliceSpec

RECHECK_S: Final = 300.0
"""How often a namespace is looked at while all its slices are enforced."""

RECHECK_SOON_S: Final = 15.0
"""And while one is not; a large namespace less often, so that it costs at most SOON_PODS_PER_S."""

SOON_PODS_PER_S: Final = 20.0

RETRY_S: Final = 5.0
"""After a list that the API server did not answer."""

PODS_PER_S: Final = 1000.0
"""Over all namespaces. At 6 kB a pod that is 6 MB/s at the very most; 1,000 nodes with 20 slices each, looked at every
five minutes, are 70 pods a second."""

BURST_PODS: Final = 5000.0
PODS_PER_LIST: Final = 10.0
"""What a request costs beside its pods, in pods."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a slice's pods has shown: where they are, or (a text) why nobody says. ``at_s``: when it began."""

    places: Places | str
    at_s: float


class Census:
    """The last look at each slice's pods, and when to look again."""

    def __init__(self, feed: ClusterFeed, writer: ClusterWriter, clock: Callable[[], float]) -> None:
        """Know nothing. ``clock`` is monotonic, in seconds."""
        self._feed, self._writer, self._clock = feed, writer, clock
        self._looks: dict[str, dict[SliceKey, Look]] = {}
        self._due_s: dict[str, float] = {}
        self._pods: dict[str, int] = {}
        self._specs: dict[SliceKey, SliceSpec] = {}
        self._budget, self._budget_at_s = BURST_PODS, clock()
        self.lists = 0
        """How many looks there were."""
        self.listed_pods = 0
        """How many pods they showed."""

    def of(self, key: SliceKey) -> Look | None:
        """The last look at a slice's pods, None before the first."""
        return self._looks.get(key.namespace, {}).get(key)

    def look(self, namespace: str) -> bool:
        """Look at the pods of a namespace now; false where the budget is spent or the API server does not answer."""
        now_s = self._clock()
        self._budget = min(BURST_PODS, self._budget + (now_s - self._budget_at_s) * PODS_PER_S)
        self._budget_at_s = now_s
        if self._budget <= 0:
            return False
        records = self._feed.slices_in(namespace)
        if not records:
            self.forget(namespace)
            return True
        pods = self._writer.pods(namespace)
        self.lists += 1
        self._budget -= PODS_PER_LIST
        if pods is None:
            self._due_s[namespace] = now_s + RETRY_S
            return False
        specs = with_last_good_selectors([record.spec for record in records], self._specs.values())
        self._specs.update((spec.key, spec) for spec in specs)
        if isinstance(pods, str):
            self._looks[namespace] = {spec.key: Look(pods, now_s) for spec in specs}
            self._pods[namespace] = 0
        else:
            self._looks[namespace] = {key: Look(places, now_s) for key, places in places_of(specs, pods).items()}
            self._pods[namespace] = count = sum(map(len, pods.values()))
            self.listed_pods += count
            self._budget -= count
        self._due_s[namespace] = now_s + RECHECK_S * random.uniform(0.8, 1.2)
        return True

    def hurry(self, namespace: str) -> None:
        """A slice of this namespace is not enforced: look again sooner."""
        look_s = max(RECHECK_SOON_S, self._pods.get(namespace, 0) / SOON_PODS_PER_S)
        if namespace in self._due_s:
            self._due_s[namespace] = min(self._due_s[namespace], self._clock() + look_s)

    def distrust(self, namespace: str) -> None:
        """A slice of this namespace has come, gone or changed: pods may be another one's now. Look again."""
        if namespace in self._due_s:
            self._due_s[namespace] = self._clock()

    def due(self) -> Iterator[str]:
        """Namespaces that have not been looked at for long, the longest first."""
        now_s = self._clock()
        yield from sorted(
            (namespace for namespace, due_s in self._due_s.items() if due_s <= now_s), key=self._due_s.__getitem__
        )

    def forget(self, namespace: str) -> None:
        """There is no slice in this namespace any more."""
        for known in (self._looks, self._due_s, self._pods):
            known.pop(namespace, None)
        for key in [key for key in self._specs if key.namespace == namespace]:
            del self._specs[key]
