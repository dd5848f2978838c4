"""kopf as the notifier of changes: one kind, one operator, one supervised thread.

kopf ends for good on a handful of errors (404 after a CRD was removed, any ERROR event but 410, a 401 with unchanged
credentials), and in its own event loop it cancels everybody's tasks. So it runs in a thread of its own, and is begun
again whenever it ends. One operator per watch, because a kind whose CRD is missing would else take the others with it;
and without kopf's own scanning, which would have each of a thousand agents watch every CRD of the cluster: a kind that
is missing is looked for with one small request, less and less often.

Only ``on.event`` handlers are used: no other kind leaves the objects alone (finalizers, annotations), and an index
needs quadratic time. kopf emits nothing for what was deleted in a gap, so its own lists are read along on the wire,
by a middleware of the HTTP session that it is given: a list is exactly the state its watch goes on from.
"""

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import kopf

from slicebw.core.errors import SlicebwError
from slicebw.kube.api_thread import ApiThread
from slicebw.kube.backoff import Backoff
from slicebw.kube.client import (
    ApiClient,
    ApiRefused,
    ApiUnreachable,
    Page,
    is_later,
    page_of,
    silence,
    unauthorized,
)
from slicebw.kube.connection import Connection
from slicebw.kube.resources import Object, Resource, missing

log = logging.getLogger(__name__)

LIST_WITHIN_S: Final = 20.0
"""kopf asks for its first list within this time, or it has not found the kind (or waits for ever): begun again."""

GOODBYE_S: Final = 0.1
"""kopf breaks its watches off; what TLS still has to say about that is said in the background."""

STABLE_AFTER_S: Final = 300.0
"""An operator that ran this long is begun again at once when it ends."""

_HTTP_OK: Final = 200
_HTTP_ERROR: Final = 400
_HTTP_UNAUTHORIZED: Final = 401
_HTTP_FORBIDDEN: Final = 403


@dataclass(frozen=True, slots=True)
class Watched:
    """What to watch: a kind, in all namespaces, filtered by the server. ``page_size`` makes lists come in pages."""

    resource: Resource
    field_selector: str = ""
    label_selector: str = ""
    page_size: int | None = None

    def __str__(self) -> str:
        """For logs."""
        selector = self.field_selector or self.label_selector
        return f"{self.resource} ({selector})" if selector else str(self.resource)

    def query(self) -> dict[str, str]:
        """The selectors as query parameters of a list request."""
        named = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: value for name, value in named.items() if value}


EventSink = Callable[[str | None, Object], None]
"""Gets each event: ADDED, MODIFIED or DELETED. What is in kopf's lists goes to the ListSink alone. Must not raise."""

ListSink = Callable[[Page], None]
"""Gets the pages of one list in their order. Must not raise."""


class KopfWatch:
    """Watches one kind for as long as it lives, whatever becomes of the API server. Sinks are called in its thread."""

    def __init__(
        self, api: ApiThread, watched: Watched, on_event: EventSink, begin_list: Callable[[], ListSink]
    ) -> None:
        """Prepare; nothing runs before :meth:`start`. ``begin_list`` makes the sink for each new list."""
        self._api = api
        self._watched = watched
        self._on_event = on_event
        self._begin_list = begin_list
        self._list_sink: ListSink | None = None
        self._listed = False
        self._connection: Connection | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._end_life: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch {watched}", daemon=True)
        self._about = f"watch {watched}"

    def start(self) -> None:
        """Begin to watch, now or as soon as there is something to watch."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """End the watch soon."""
        self._stop.set()
        self.restart()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the watch; returns when the thread has ended, or after ``timeout_s``."""
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def restart(self) -> None:
        """List anew and watch from there."""
        with self._lock:
            if self._end_life is not None:
                self._end_life()

    def _run(self) -> None:
        _quiet_kopf()
        backoff = Backoff(most_s=60.0)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                asyncio.run(self._live())
            except Exception as error:  # noqa: BLE001 - whatever ended it, it is begun again; this is where it is said
                self._api.health.warn_once(
                    self._about, f"the watch of {self._watched} ended, beginning again: {error!r}", "watch"
                )
            if time.monotonic() - began > STABLE_AFTER_S:
                backoff.reset()
            self._stop.wait(backoff.next_s())

    async def _live(self) -> None:
        """One life: wait until the kind is served, then run an operator until it fails, or until told to end."""
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._lock:
            self._end_life = lambda: loop.call_soon_threadsafe(end.set)
        try:
            if self._stop.is_set() or not await _unless(end, self._wait_until_served()):
                return
            self._listed, self._list_sink = False, None
            # Made before the operator starts: a task made later would be ended by it.
            guard = asyncio.create_task(self._expect_list(end))
            try:
                await kopf.operator(
                    registry=self._registry(),
                    settings=self._settings(),
                    clusterwide=True,
                    stop_flag=end,
                    # Only peering would use it. Without one kopf looks up the user's name, and in a container there may
                    # be none for the user's number.
                    identity=self._api.user_agent,  # type: ignore[arg-type]  # a str by a name that kopf does not export
                )
            finally:
                guard.cancel()
        finally:
            with self._lock:
                self._end_life = None
            await asyncio.sleep(GOODBYE_S)

    async def _wait_until_served(self) -> bool:
        """Wait until the API server knows the kind; then true."""
        resource, health = self._watched.resource, self._api.health
        client = ApiClient(self._api.connect, self._api.user_agent, health)
        about, pause = f"missing {resource}", Backoff()
        try:
            while resource.custom:
                try:
                    if await _is_served(client, resource):
                        health.resolve(about, f"CustomResourceDefinition {resource} is installed now")
                        break
                    health.warn_once(about, missing(resource), "missing")
                except (ApiUnreachable, ApiRefused) as error:
                    log.debug("looking for %s: %s", resource, error)
                await asyncio.sleep(pause.next_s())
        finally:
            await client.close()
        return True

    async def _expect_list(self, end: asyncio.Event) -> None:
        """End this life if kopf does not list the kind: it has not found it, and would never look again."""
        await asyncio.sleep(LIST_WITHIN_S)
        if not self._listed:
            log.debug("kopf has not listed %s within %.0f s; beginning again", self._watched, LIST_WITHIN_S)
            end.set()

    def _registry(self) -> kopf.OperatorRegistry:
        registry, resource = kopf.OperatorRegistry(), self._watched.resource
        pause = Backoff()
        logins = 0

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            # Always a new object: credentials equal to refused ones end the operator. That makes a lasting 401 a loop,
            # which has to be slowed down here.
            nonlocal logins
            logins += 1
            if logins > 1:
                await asyncio.sleep(pause.next_s())
            try:
                connection = self._api.connect()
            except SlicebwError as error:
                self._api.health.unreachable(f"{error}.")
                raise kopf.TemporaryError(str(error), delay=pause.next_s()) from error
            self._connection = connection
            session = connection.session(self._api.user_agent, self._observe)
            return kopf.AiohttpSession(server=connection.server, aiohttp_session=session, default_namespace="default")

        @kopf.on.event(resource.group, resource.version, resource.plural, registry=registry)
        async def handle(event: Any, **_: Any) -> None:
            self._on_event(event["type"], event["object"])

        return registry

    def _settings(self) -> kopf.OperatorSettings:
        settings, resource = kopf.OperatorSettings(), self._watched.resource
        settings.peering.standalone = True
        settings.scanning.disabled = True
        settings.posting.enabled = False
        settings.posting.loggers = False
        settings.networking.error_backoffs = Backoff()
        settings.networking.request_timeout = 60.0
        settings.networking.connect_timeout = 5.0
        # The server ends a watch (it must be an int, or the API server refuses it), and kopf goes on from where it was;
        # only a connection that is silent for longer than that is given up.
        settings.watching.server_timeout = random.randint(240, 360)
        settings.watching.inactivity_timeout = settings.watching.server_timeout + 30.0
        settings.watching.reconnect_backoff = random.uniform(0.5, 2.0)
        if self._watched.page_size is not None:
            settings.watching.chunk_size = self._watched.page_size
        selected = (resource.group, resource.version, resource.plural)
        if self._watched.field_selector:
            settings.watching.field_selectors[selected] = self._watched.field_selector
        if self._watched.label_selector:
            settings.watching.label_selectors[selected] = self._watched.label_selector
        # How long a task per object stays around. Never a worker_limit: with it kopf can stand still for ever.
        settings.queueing.idle_timeout = 0.5
        # Else a failed operator would have this process killed ten minutes later.
        settings.process.ultimate_exiting_timeout = None
        return settings

    async def _observe(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Sees each request of kopf's: reads lists along, and tells how the API server is doing."""
        query = request.url.query
        listing = request.url.path.endswith(self._watched.resource.path()) and "watch" not in query
        first = listing and "continue" not in query
        if first and self._watched.page_size is None:
            # From the API server's memory, as every Kubernetes client does: else etcd is read for each agent, and for
            # the pods of one node even all pods.
            request.url = request.url.update_query(resourceVersion="0")
        origin = str(request.url.origin())
        try:
            response = await handler(request)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._api.health.unreachable(silence(origin, error))
            raise
        what = f"{request.method} {request.url.path}"
        if response.status >= _HTTP_ERROR:
            await self._note_refusal(what, response)
            return response
        self._api.health.reachable()
        if listing and response.status == _HTTP_OK:
            document = json.loads(await response.read())
            page = page_of(document)
            if first or self._list_sink is None:
                self._list_sink = self._begin_list()
            self._list_sink(page)
            self._listed = True
            _empty(response, document)
            self._api.health.resolve(self._about, f"{self._watched} are watched again")
        return response

    async def _note_refusal(self, what: str, response: aiohttp.ClientResponse) -> None:
        health, status = self._api.health, response.status
        if status == _HTTP_UNAUTHORIZED and self._connection is not None:
            health.unreachable(str(unauthorized(self._connection)))
            return
        health.reachable()
        if is_later(status):
            health.warn_once(f"{status} on GET", f"the API server cannot serve {what} now ({status}).", "later")
        elif status == _HTTP_FORBIDDEN:
            said = (await response.read()).decode(errors="replace")
            health.warn_once(f"403 {what}", f"not allowed: {what}: are slicebw's roles applied? {said}", "refused")


def _empty(response: aiohttp.ClientResponse, document: dict[str, Any]) -> None:
    """Take the objects out of a list that has been read along, before kopf gets it.

    They are taken in already; kopf would make two tasks, a worker and a memory of each of them: with 4,000 slices and
    their pods 10 s and 60 MB at the start, never given back. What it needs is where its watch is to go on from.
    """
    response._body = json.dumps({**document, "items": []}).encode()  # aiohttp has no other way


async def _is_served(client: ApiClient, resource: Resource) -> bool:
    """Whether the API server's discovery has the kind: it is what kopf will look at, too."""
    try:
        known = await client.get(f"/apis/{resource.group}/{resource.version}")
    except ApiRefused as refusal:
        if refusal.not_found:
            return False
        raise
    return any(one.get("name") == resource.plural for one in known.get("resources", ()))


async def _unless(end: asyncio.Event, work: Coroutine[Any, Any, bool]) -> bool:
    """What comes of the work; false if told to end first, and then it is broken off."""
    working, ending = asyncio.create_task(work), asyncio.create_task(end.wait())
    await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait((working,))
        return False
    return working.result()


def _quiet_kopf() -> None:
    """kopf logs an error for each attempt; here each trouble is said once, by ApiHealth. At debug level it may talk."""
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("kopf").setLevel(logging.CRITICAL)
