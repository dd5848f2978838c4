"""A local copy of one list of objects that keeps itself right: kopf's events and lists, and a rare list of our own."""

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from typing import Final, Generic, TypeVar

from slicebw.kube.api_thread import ApiThread
from slicebw.kube.backoff import Backoff
from slicebw.kube.client import ApiRefused, ApiUnreachable, Page
from slicebw.kube.kopf_watch import KopfWatch, ListSink, Watched
from slicebw.kube.resources import CRDS, Object
from slicebw.kube.store import Change, Deletion, Key, Store, deletion_of, key_of

log = logging.getLogger(__name__)

V = TypeVar("V")

RELIST_S: Final = 1800.0
"""How often our own list is made, give or take half of it: a safety net, the watch is what normally tells."""

REFUSED_PAUSE_S: Final = 120.0

FIRST_LIST_S: Final = 15.0
"""Our own list is made early if kopf's has not come by then."""


class Informer(Generic[V]):
    """The newest known values of one watched list. Reading is cheap and safe from any thread.

    Objects of a kind whose CustomResourceDefinition is being removed are deleted by the API server, one by one, as if
    somebody had deleted each of them. Nobody has: what they said stays in force until the kind is installed again. So
    with ``doubt_removals`` a deletion counts only once the CustomResourceDefinition is seen to stand.
    """

    def __init__(
        self,
        api: ApiThread,
        watched: Watched,
        parse: Callable[[Object], V],
        changed: Callable[[Change[V]], None],
        synced: Callable[[], None],
        *,
        doubt_removals: bool = False,
        relist_s: float = RELIST_S,
    ) -> None:
        """Know nothing yet; nothing runs before :meth:`start`.

        Args:
            api: where own requests are made.
            watched: the list.
            parse: makes of an object what is worth keeping of it.
            changed: told of each change, in order, from some thread; quick, and without calling back.
            synced: told once, when the first complete list has been taken in.
            doubt_removals: see above.
            relist_s: the mean time between own lists.
        """
        self._api = api
        self._watched = watched
        self._changed = changed
        self._synced = synced
        self._doubt_removals = doubt_removals and watched.resource.custom
        self._relist_s = relist_s
        self._lock = threading.RLock()
        self._store = Store(parse)
        self._listed = False
        self._doubtful: dict[Key, Deletion] = {}
        self._asking = False
        self._relist_now = asyncio.Event()
        self._watch = KopfWatch(api, watched, self._on_event, self._begin_list)

    def start(self) -> None:
        """Begin to watch."""
        self._watch.start()
        self._api.keep_running(f"relist {self._watched}", self._relist_forever)

    def ask_to_stop(self) -> None:
        """End the watch soon: where there are several, ask all of them before waiting for one."""
        self._watch.ask_to_stop()

    def stop(self) -> None:
        """End the watch; what is known stays readable."""
        self._watch.stop()

    @property
    def listed(self) -> bool:
        """Whether a complete list has been taken in since the start."""
        return self._listed

    def values(self) -> list[V]:
        """All values, in no particular order."""
        with self._lock:
            return list(self._store)

    def upsert(self, obj: Object) -> None:
        """Take note of an object that came as the answer to a request of ours."""
        self._take(lambda: self._store.upsert(obj))

    def _on_event(self, event_type: str | None, obj: Object) -> None:
        if event_type == "DELETED":
            self._take(lambda: self._remove([deletion_of(obj)]))
        else:
            self._take(lambda: self._store.upsert(obj))

    def _begin_list(self) -> ListSink:
        listed: set[Key] = set()

        def take(page: Page) -> None:
            for obj in page.items:
                listed.add(key_of(obj))
                self._take(lambda obj=obj: self._store.upsert(obj, listed=True))  # type: ignore[misc]
            if page.last:
                self._take(lambda: self._end_list(listed, page.version))

        return take

    def _end_list(self, listed: Iterable[Key], version: int) -> None:
        if version < self._store.list_version:
            # From an API server that lags behind, or etcd was restored: a list of our own will tell.
            self._api.soon(self._relist_now.set)
            return
        self._remove(self._store.missing_from(listed, version))
        self._store.complete_list(version)
        if not self._listed:
            self._listed = True
            log.info("%s: %d known", self._watched, len(self._store))
            self._synced()

    def _take(self, change: Callable[[], Change[V] | None]) -> None:
        """Change the store and tell; an object that cannot be understood is logged, and leaves everything as it was."""
        with self._lock:
            try:
                changed = change()
                if changed is not None:
                    self._changed(changed)
            except Exception as error:  # noqa: BLE001 - logged and counted in one place; the object is passed over
                self._api.health.failed("parse", f"cannot take in an object of {self._watched}", error)

    def _remove(self, deletions: list[Deletion]) -> None:
        if not deletions:
            return
        if not self._doubt_removals:
            self._delete(deletions)
            return
        self._doubtful.update((one.key, one) for one in deletions)
        self._api.soon(self._ask)

    def _delete(self, deletions: Iterable[Deletion]) -> None:
        for one in deletions:
            change = self._store.delete(one)
            if change is not None:
                self._changed(change)

    def _ask(self) -> None:
        if not self._asking:
            self._asking = True
            self._api.keep_running(f"confirm removals of {self._watched}", self._settle_doubts)

    async def _settle_doubts(self) -> None:
        """Carry out the deletions that are deletions, and forget those that come of the kind's removal."""
        pause = Backoff()
        while True:
            with self._lock:
                doubtful, self._doubtful = self._doubtful, {}
                if not doubtful:
                    self._asking = False
                    return
            try:
                standing = await self._kind_stands()
            except ApiUnreachable as error:
                with self._lock:
                    self._doubtful = {**doubtful, **self._doubtful}
                await asyncio.sleep(pause.next_s(error.retry_after_s))
                continue
            if standing:
                with self._lock:
                    self._delete(doubtful.values())
            else:
                resource = self._watched.resource
                self._api.health.warn_once(
                    f"missing {resource}",
                    f"CustomResourceDefinition {resource} is being removed: what its {len(doubtful)} objects said "
                    "stays in force until it is installed again: kubectl apply -f crds/",
                    "missing",
                )

    async def _kind_stands(self) -> bool:
        """Whether the kind's CustomResourceDefinition is there, and to stay. Raises ApiUnreachable."""
        try:
            crd = await self._api.client.get(CRDS.path(name=str(self._watched.resource)))
        except ApiRefused as refusal:
            if refusal.not_found:
                return False
            self._api.health.warn_once("crds", f"{refusal}: a removed kind now looks like deleted objects")
            return True
        return "deletionTimestamp" not in crd["metadata"]

    async def _relist_forever(self) -> None:
        pause = Backoff()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._relist_now.wait(), min(FIRST_LIST_S, self._relist_s))
        wait_s = self._relist_s * random.uniform(0.5, 1.5) if self._listed else 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._relist_now.wait(), wait_s)
            self._relist_now.clear()
            wait_s = self._relist_s * random.uniform(0.5, 1.5)
            try:
                await self._relist()
                pause.reset()
            except ApiUnreachable as error:
                log.debug("own list of %s: %s", self._watched, error)
                wait_s = pause.next_s(error.retry_after_s)
            except ApiRefused as refusal:
                # A kind that is missing or refused is complained about, and waited for, by the watch.
                log.debug("own list of %s: %s", self._watched, refusal)
                wait_s = REFUSED_PAUSE_S * random.uniform(0.5, 1.5)

    async def _relist(self) -> None:
        """List, and take the list in; where the versions have jumped back, over all that is known.

        Raises ApiUnreachable, ApiRefused.
        """
        fast = {"resourceVersion": "0"} if self._watched.page_size is None else {}
        if await self._list(fast) or (fast and await self._list({})):
            return
        # Not even etcd itself knows of versions that we have seen.
        log.warning("%s: versions have jumped back, was etcd restored? Everything is taken anew", self._watched)
        with self._lock:
            self._store.reset_versions()
        self._watch.restart()
        await self._list({})

    async def _list(self, query: dict[str, str]) -> bool:
        """Take in a list, unless it is older than one that was taken in before the request: then return false."""
        list_version, sink = self._store.list_version, self._begin_list()
        pages = self._api.client.pages(
            self._watched.resource, self._watched.page_size, **self._watched.query(), **query
        )
        async with aclosing(pages):
            async for page in pages:
                if page.version < list_version:
                    return False
                sink(page)
        return True
