"""The thread for all requests to the API server except watches, so that no other thread waits for the network."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from slicebw.kube.api_health import ApiHealth
from slicebw.kube.client import ApiClient
from slicebw.kube.connection import Connection

_T = TypeVar("_T")

RESTART_AFTER_S: Final = 5.0
"""The pause before a failed task is started again."""

CLOSE_GRACE_S: Final = 0.05
"""aiohttp closes the sockets of a closed session some event loop iterations later."""


class ApiThread:
    """A thread with an event loop and one :class:`ApiClient`. It starts without the API server, too."""

    def __init__(self, connect: Callable[[], Connection], user_agent: str, health: ApiHealth | None = None) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Args:
            connect: reads the credentials, for instance ``lambda: connection.load(path)``; also used by the watches.
            user_agent: of every request of this process.
            health: logs and counts problems; a new one if not given.
        """
        self.connect = connect
        self.user_agent = user_agent
        self.health = health or ApiHealth()
        self.client = ApiClient(connect, user_agent, self.health)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Cancel all tasks, close the connections and end the thread. Waits ``timeout_s`` at most."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout_s)
        elif not self._loop.is_closed():
            self._loop.close()

    def submit(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        """Run a coroutine in the thread. The caller gets its result or error from the returned future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        """Run a coroutine in the thread and return its result. Raises TimeoutError, or what the coroutine raises."""
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def keep_running(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine in the thread until it returns. One that raises is logged, counted and started again."""
        self._loop.call_soon_threadsafe(self._spawn, name, work)

    def call_soon(self, act: Callable[[], object]) -> None:
        """Call a plain function in the thread. Does nothing after :meth:`stop`."""
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:  # The loop is closed. Checking first would be a race.
            return

    def _spawn(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(self._restart_on_error(name, work), name=name)
        # The event loop holds tasks weakly; without this reference a task could be collected while it runs.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _restart_on_error(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - logged and counted in one place, and started again
                self.health.failed("internal", f"{name} failed; starting again in {RESTART_AFTER_S:.0f} s", error)
                await asyncio.sleep(RESTART_AFTER_S)
            else:
                return

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            pending = asyncio.all_tasks(self._loop)
            for task in pending:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            self._loop.run_until_complete(self.client.close())
            self._loop.run_until_complete(asyncio.sleep(CLOSE_GRACE_S))
            self._loop.close()
