"""Watches one kind with kopf: one operator in one supervised thread for each watch.

- A thread of its own: kopf ends for good on some errors (404 after a CRD was removed, any ERROR event but 410, a 401
  with unchanged credentials), and when it ends, it cancels all tasks of its event loop. It is started again each time.
- An operator of its own: a kind whose CRD is missing would end the watches of the other kinds, too.
- No scanning: each of a thousand agents would watch every CRD of the cluster. A missing kind is looked for with one
  small request instead, with growing pauses.
- Only ``on.event`` handlers: all others write finalizers or annotations, and an index needs quadratic time.
- A middleware of kopf's HTTP session reads its lists: kopf has no event for an object that was deleted while the watch
  was broken, but the watch continues exactly from the state in the list.
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
    is_busy,
    no_answer_text,
    page_of,
    unauthorized,
)
from slicebw.kube.connection import Connection
from slicebw.kube.resources import Object, Resource, not_installed_text

log = logging.getLogger(__name__)

LIST_WITHIN_S: Final = 20.0
"""If kopf has not listed by then, it has not found the kind or waits for ever: it is started again."""

CLOSE_GRACE_S: Final = 0.1
"""kopf aborts its watches, and TLS connections need some event loop iterations to close."""

STABLE_AFTER_S: Final = 300.0
"""An operator that ran for this long is started again after the shortest pause."""

_HTTP_OK: Final = 200
_HTTP_ERROR: Final = 400
_HTTP_UNAUTHORIZED: Final = 401
_HTTP_FORBIDDEN: Final = 403


@dataclass(frozen=True, slots=True)
class Watched:
    """What to watch: a kind in all namespaces, filtered by the API server. ``page_size``: list in pages."""

    resource: Resource
    field_selector: str = ""
    label_selector: str = ""
    page_size: int | None = None

    def __str__(self) -> str:
        """Return the name for log lines."""
        selector = self.field_selector or self.label_selector
        return f"{self.resource} ({selector})" if selector else str(self.resource)

    def query(self) -> dict[str, str]:
        """Return the selectors as query parameters of a list request."""
        selectors = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: value for name, value in selectors.items() if value}


EventSink = Callable[[str | None, Object], None]
"""Gets each event (ADDED, MODIFIED, DELETED). Listed objects go only to the ListSink. Must not raise."""

ListSink = Callable[[Page], None]
"""Gets the pages of one list in order. Must not raise."""


class KopfWatch:
    """Watches one kind until it is stopped, through outages of the API server. Calls the sinks in its own thread."""

    def __init__(
        self, api: ApiThread, watched: Watched, on_event: EventSink, begin_list: Callable[[], ListSink]
    ) -> None:
        """Prepare. Nothing runs before :meth:`start`. ``begin_list`` makes the sink for each new list."""
        self._api = api
        self._watched = watched
        self._on_event = on_event
        self._begin_list = begin_list
        self._list_sink: ListSink | None = None
        self._listed = False
        self._connection: Connection | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._end_operator: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch {watched}", daemon=True)
        self._problem = f"watch {watched}"

    def start(self) -> None:
        """Start to watch. The kind may be installed later."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Ask the watch to end, without waiting."""
        self._stop.set()
        self.restart()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the watch. Waits until its thread has ended, ``timeout_s`` at most."""
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def restart(self) -> None:
        """List again and watch from there."""
        with self._lock:
            if self._end_operator is not None:
                self._end_operator()

    def _run(self) -> None:
        _silence_kopf()
        backoff = Backoff(most_s=60.0)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                asyncio.run(self._run_operator())
            except Exception as error:  # noqa: BLE001 - logged here, and started again whatever it was
                self._api.health.warn_once(
                    self._problem, f"the watch of {self._watched} ended, starting again: {error!r}", "watch"
                )
            if time.monotonic() - began > STABLE_AFTER_S:
                backoff.reset()
            self._stop.wait(backoff.next_s())

    async def _run_operator(self) -> None:
        """Wait until the kind is installed, then run an operator until it fails or is asked to end."""
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._lock:
            self._end_operator = lambda: loop.call_soon_threadsafe(end.set)
        try:
            if self._stop.is_set() or not await _run_unless(end, self._wait_until_served()):
                return
            self._listed, self._list_sink = False, None
            # Created before the operator starts: kopf cancels all tasks that are newer than itself when it ends.
            guard = asyncio.create_task(self._expect_list(end))
            try:
                await kopf.operator(
                    registry=self._registry(),
                    settings=self._settings(),
                    clusterwide=True,
                    stop_flag=end,
                    # Only peering would use it, which is off. Without it kopf looks up the user's name, and in a
                    # container the user id may have none.
                    identity=self._api.user_agent,  # type: ignore[arg-type]  # a str by a name that kopf does not export
                )
            finally:
                guard.cancel()
        finally:
            with self._lock:
                self._end_operator = None
            await asyncio.sleep(CLOSE_GRACE_S)

    async def _wait_until_served(self) -> bool:
        """Wait until the API server serves the kind. Returns True."""
        resource, health = self._watched.resource, self._api.health
        client = ApiClient(self._api.connect, self._api.user_agent, health)
        problem, pause = f"missing {resource}", Backoff()
        try:
            while resource.custom:
                try:
                    if await _is_served(client, resource):
                        health.resolve(problem, f"CustomResourceDefinition {resource} is installed now")
                        break
                    health.warn_once(problem, not_installed_text(resource), "missing")
                except (ApiUnreachable, ApiRefused) as error:
                    log.debug("looking for %s: %s", resource, error)
                await asyncio.sleep(pause.next_s())
        finally:
            await client.close()
        return True

    async def _expect_list(self, end: asyncio.Event) -> None:
        """Set ``end`` if kopf does not list the kind: it has not found it, and would never look again."""
        await asyncio.sleep(LIST_WITHIN_S)
        if not self._listed:
            log.debug("kopf has not listed %s within %.0f s; starting again", self._watched, LIST_WITHIN_S)
            end.set()

    def _registry(self) -> kopf.OperatorRegistry:
        registry, resource = kopf.OperatorRegistry(), self._watched.resource
        pause = Backoff()
        logins = 0

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            # Always a new session: kopf ends the operator if the new credentials equal the refused ones. They never do,
            # so a lasting 401 would make it log in again and again: pause before every login but the first.
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
        # The API server ends a watch after this time (it accepts only an int), and kopf continues it from its last
        # version. A connection that is silent for longer is broken.
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
        # How long the task of an object lives after its last event. No worker_limit: with one, kopf can deadlock.
        settings.queueing.idle_timeout = 0.5
        # By default a failed operator kills the process ten minutes later.
        settings.process.ultimate_exiting_timeout = None
        return settings

    async def _observe(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """See each of kopf's requests: read the lists, and note whether the API server answers."""
        query = request.url.query
        listing = request.url.path.endswith(self._watched.resource.path()) and "watch" not in query
        first = listing and "continue" not in query
        if first and self._watched.page_size is None:
            # From the API server's cache, as other Kubernetes clients do. Else it reads etcd for each agent, and all
            # pods of the cluster to find those of one node.
            request.url = request.url.update_query(resourceVersion="0")
        origin = str(request.url.origin())
        try:
            response = await handler(request)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._api.health.unreachable(no_answer_text(origin, error))
            raise
        what = f"{request.method} {request.url.path}"
        if response.status >= _HTTP_ERROR:
            await self._report_refusal(what, response)
            return response
        self._api.health.reachable()
        if listing and response.status == _HTTP_OK:
            document = json.loads(await response.read())
            page = page_of(document)
            if first or self._list_sink is None:
                self._list_sink = self._begin_list()
            self._list_sink(page)
            self._listed = True
            _drop_items(response, document)
            self._api.health.resolve(self._problem, f"the watch of {self._watched} works again")
        return response

    async def _report_refusal(self, what: str, response: aiohttp.ClientResponse) -> None:
        health, status = self._api.health, response.status
        if status == _HTTP_UNAUTHORIZED and self._connection is not None:
            health.unreachable(str(unauthorized(self._connection)))
            return
        health.reachable()
        if is_busy(status):
            health.warn_once(f"{status} on GET", f"the API server cannot serve {what} now ({status}).", "later")
        elif status == _HTTP_FORBIDDEN:
            answer = (await response.read()).decode(errors="replace")
            health.warn_once(f"403 {what}", f"not allowed: {what}: are slicebw's roles applied? {answer}", "refused")


def _drop_items(response: aiohttp.ClientResponse, document: dict[str, Any]) -> None:
    """Remove the objects from a list before kopf gets it; they are stored by then.

    kopf would make two tasks, a worker and a record for each: with 4,000 slices and their pods that takes 10 s at the
    start, and 60 MB that are never freed. All that kopf needs is the version from which its watch continues.
    """
    response._body = json.dumps({**document, "items": []}).encode()  # aiohttp has no public way to replace a body


async def _is_served(client: ApiClient, resource: Resource) -> bool:
    """Return whether the API server's discovery, which kopf will read, too, lists the kind."""
    try:
        group = await client.get(f"/apis/{resource.group}/{resource.version}")
    except ApiRefused as refusal:
        if refusal.not_found:
            return False
        raise
    return any(one.get("name") == resource.plural for one in group.get("resources", ()))


async def _run_unless(end: asyncio.Event, work: Coroutine[Any, Any, bool]) -> bool:
    """Return the result of the work. If ``end`` is set first, cancel the work and return False."""
    working, ending = asyncio.create_task(work), asyncio.create_task(end.wait())
    await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait((working,))
        return False
    return working.result()


def _silence_kopf() -> None:
    """Turn off kopf's log, except at debug level: it logs each attempt, while ApiHealth logs each problem once."""
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger("kopf").setLevel(logging.CRITICAL)
