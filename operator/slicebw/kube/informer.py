"""A local copy of one kind's objects, kept up to date by kopf's events and lists, and by a rare list of our own."""

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
from slicebw.kube.resources import CRDS, Object
from slicebw.kube.store import Change, Deletion, Key, Store, deletion_of, key_of
from slicebw.kube.watch_supervisor import KopfWatch, ListSink, Watched

log = logging.getLogger(__name__)

V = TypeVar("V")

RELIST_S: Final = 1800.0
"""The mean time between our own lists, jittered by half. They are a safety net; changes normally come by the watch."""

REFUSED_PAUSE_S: Final = 120.0
"""The mean pause after a refused list of our own; roles and kinds are installed by people."""

FIRST_LIST_S: Final = 15.0
"""Our own first list is made after this time if kopf's has not arrived."""


class Informer(Generic[V]):
    """The newest known values of one watched list. Reading is cheap and possible from any thread.

    When a CustomResourceDefinition is removed, the API server deletes the objects of its kind one by one, and the watch
    cannot tell this from deletions by a user. Settings must outlive such a removal. So with ``confirm_deletions`` a
    deletion takes effect only once a request has shown that the CustomResourceDefinition is there to stay.
    """

    def __init__(
        self,
        api: ApiThread,
        watched: Watched,
        parse: Callable[[Object], V],
        on_change: Callable[[Change[V]], None],
        on_synced: Callable[[], None],
        *,
        confirm_deletions: bool = False,
        relist_s: float = RELIST_S,
    ) -> None:
        """Start empty. Nothing runs before :meth:`start`.

        Args:
            api: makes our own requests.
            watched: the list to watch.
            parse: makes the stored value from an object.
            on_change: called with each change, in order, from any thread and under the informer's lock; it must be
                quick and must not call the informer.
            on_synced: called once, when the first complete list is stored.
            confirm_deletions: see above.
            relist_s: the mean time between our own lists.
        """
        self._api = api
        self._watched = watched
        self._on_change = on_change
        self._on_synced = on_synced
        self._confirm_deletions = confirm_deletions and watched.resource.custom
        self._relist_s = relist_s
        self._lock = threading.RLock()
        self._store = Store(parse)
        self._listed = False
        self._unconfirmed: dict[Key, Deletion] = {}
        self._confirming = False
        self._relist_now = asyncio.Event()
        self._watch = KopfWatch(api, watched, self._on_event, self._begin_list)

    def start(self) -> None:
        """Start to watch."""
        self._watch.start()
        self._api.keep_running(f"relist {self._watched}", self._relist_forever)

    def ask_to_stop(self) -> None:
        """Ask the watch to end, without waiting. Ask several informers first, then :meth:`stop` each."""
        self._watch.ask_to_stop()

    def stop(self) -> None:
        """End the watch; the values stay readable."""
        self._watch.stop()

    @property
    def listed(self) -> bool:
        """Whether a complete list has been stored since the start."""
        return self._listed

    def values(self) -> list[V]:
        """Return all values, in no particular order."""
        with self._lock:
            return list(self._store)

    def upsert(self, obj: Object) -> None:
        """Store an object that was the answer to a request of ours, before the watch reports it."""
        self._apply(lambda: self._store.upsert(obj))

    def _on_event(self, event_type: str | None, obj: Object) -> None:
        if event_type == "DELETED":
            self._apply(lambda: self._remove([deletion_of(obj)]))
        else:
            self._apply(lambda: self._store.upsert(obj))

    def _begin_list(self) -> ListSink:
        listed: set[Key] = set()

        def store_page(page: Page) -> None:
            if page.version < self._store.list_version:
                # The API server lags behind, or etcd was restored: our own list finds out which.
                self._api.call_soon(self._relist_now.set)
                return
            for obj in page.items:
                listed.add(key_of(obj))
                self._apply(lambda obj=obj: self._store.upsert(obj, listed=True))  # type: ignore[misc]
            if page.last:
                self._apply(lambda: self._end_list(listed, page.version))

        return store_page

    def _end_list(self, listed: Iterable[Key], version: int) -> None:
        self._remove(self._store.missing_from(listed, version))
        self._store.complete_list(version)
        if not self._listed:
            self._listed = True
            log.info("%s: first list complete, %d objects", self._watched, len(self._store))
            self._on_synced()

    def _apply(self, change: Callable[[], Change[V] | None]) -> None:
        """Change the store and pass the change on. An error is logged and counted."""
        with self._lock:
            try:
                made = change()
                if made is not None:
                    self._on_change(made)
            except Exception as error:  # noqa: BLE001 - one bad object must not stop the others
                self._api.health.failed("parse", f"cannot process an object of {self._watched}, it is ignored", error)

    def _remove(self, deletions: list[Deletion]) -> None:
        if not deletions:
            return
        if not self._confirm_deletions:
            self._delete(deletions)
            return
        self._unconfirmed.update((one.key, one) for one in deletions)
        self._api.call_soon(self._start_confirming)

    def _delete(self, deletions: Iterable[Deletion]) -> None:
        for one in deletions:
            change = self._store.delete(one)
            if change is not None:
                self._on_change(change)

    def _start_confirming(self) -> None:
        if not self._confirming:
            self._confirming = True
            self._api.keep_running(f"confirm deletions of {self._watched}", self._confirm_waiting_deletions)

    async def _confirm_waiting_deletions(self) -> None:
        """Carry out the waiting deletions, or discard them if the kind itself is being removed."""
        pause = Backoff()
        while True:
            with self._lock:
                deletions, self._unconfirmed = self._unconfirmed, {}
                if not deletions:
                    self._confirming = False
                    return
            try:
                installed = await self._kind_is_installed()
            except ApiUnreachable as error:
                with self._lock:
                    self._unconfirmed = {**deletions, **self._unconfirmed}  # newer ones win
                await asyncio.sleep(pause.next_s(error.retry_after_s))
                continue
            if installed:
                with self._lock:
                    self._delete(deletions.values())
            else:
                resource = self._watched.resource
                self._api.health.warn_once(
                    f"missing {resource}",
                    f"CustomResourceDefinition {resource} is being removed: its {len(deletions)} objects stay in force "
                    "until it is installed again: kubectl apply -f crds/",
                    "missing",
                )

    async def _kind_is_installed(self) -> bool:
        """Return whether the kind's CustomResourceDefinition exists and is not being deleted. Raises ApiUnreachable."""
        try:
            crd = await self._api.client.get(CRDS.path(name=str(self._watched.resource)))
        except ApiRefused as refusal:
            if refusal.not_found:
                return False
            self._api.health.warn_once("crds", f"{refusal}: the removal of a kind cannot be told from deletions now")
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
                # The watch of the same kind warns about a missing kind or missing rights.
                log.debug("own list of %s: %s", self._watched, refusal)
                wait_s = REFUSED_PAUSE_S * random.uniform(0.5, 1.5)

    async def _relist(self) -> None:
        """List and store the objects. If the versions have jumped back, replace all that is stored.

        Raises ApiUnreachable, ApiRefused.
        """
        # "0" lets the API server answer from its cache, which may lag; without it, it reads from etcd. It ignores the
        # page size for "0", so lists that need pages are read from etcd at once.
        from_cache = {"resourceVersion": "0"} if self._watched.page_size is None else {}
        if await self._list(from_cache) or (from_cache and await self._list({})):
            return
        # Even etcd has only versions below those that were seen before.
        log.warning("%s: versions have jumped back, was etcd restored? All objects are read again", self._watched)
        with self._lock:
            self._store.reset_versions()
        self._watch.restart()
        await self._list({})

    async def _list(self, query: dict[str, str]) -> bool:
        """List and store. Return False if the list is older than the newest one before the request; it is ignored."""
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
