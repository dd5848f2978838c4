"""A reverse proxy in front of the API server that a test can cut, freeze, or let answer with errors.

It also records all requests in their order.
"""

import asyncio
import re
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import yaml
from aiohttp import web

from slicebw.kube import connection

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request, answered or not."""

    method: str
    path: str
    query: str
    user_agent: str

    @property
    def is_list(self) -> bool:
        """Whether it lists a collection, and does not watch it."""
        return self.method == "GET" and "watch=" not in self.query and re.search(r"/\w+s$", self.path) is not None


class FaultProxy:
    """Listens on one port of 127.0.0.1. It passes everything on until a test breaks it."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        """Start in front of the API server that ``kubeconfig`` names. :attr:`kubeconfig` names the proxy itself."""
        self.requests: list[Request] = []
        self.sent_bytes = 0
        """Bytes in the bodies of requests."""
        self.received_bytes = 0
        """Bytes in the bodies of answers, watches included."""
        self.kubeconfig = folder / "proxied"
        self._upstream = connection.load(str(kubeconfig))
        self._answer: Callable[[Request], int | None] = lambda _: None
        self._frozen = self._mute = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = self._call(self._make_runner())
        self._site: web.TCPSite | None = None
        self._port = 0
        self.mend()
        self._write_kubeconfig(kubeconfig)

    def cut(self) -> None:
        """Refuse new connections, and break the present ones."""
        self._call(self._cut())

    def freeze(self) -> None:
        """Accept requests and never answer."""
        self._frozen = True

    def fail(self, status: int, paths: Iterable[str] = (".*",), methods: str = ".*") -> None:
        """Answer with an error if path and method match, and end the running watches."""
        patterns = tuple(paths)

        def answer(request: Request) -> int | None:
            hit = re.fullmatch(methods, request.method) and any(re.fullmatch(one, request.path) for one in patterns)
            return status if hit else None

        self._answer = answer
        self._call(self._break_off())

    def mute(self) -> None:
        """Keep watches open, and drop their events."""
        self._mute = True

    def mend(self) -> None:
        """Pass everything on again. Events that were dropped stay lost."""
        self._answer, self._frozen, self._mute = lambda _: None, False, False
        self._call(self._mend())

    def stop(self) -> None:
        """End the proxy."""
        self._call(self._cut())
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _make_runner(self) -> web.AppRunner:
        self._session = self._upstream.session("proxy")
        self._running: set[asyncio.Task[object]] = set()
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{tail:.*}", self._serve)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await runner.setup()
        return runner

    async def _mend(self) -> None:
        if self._site is None:
            self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
            await self._site.start()
            self._port = self._runner.addresses[0][1]

    async def _cut(self) -> None:
        if self._site is not None:
            await self._site.stop()
            self._site = None
        await self._break_off()
        server = self._runner.server
        if server is not None:
            for one in server.connections:
                one.force_close()

    async def _break_off(self) -> None:
        for task in list(self._running):
            task.cancel()

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await self._forward(request)
        finally:
            self._running.discard(task)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        seen = Request(request.method, request.path, request.query_string, request.headers.get("User-Agent", ""))
        self.requests.append(seen)
        if self._frozen:
            await asyncio.Event().wait()
        status = self._answer(seen)
        if status is not None:
            fault = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": "Fault"}
            return web.json_response(fault, status=status)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name in ("Content-Type", "Accept", "Authorization")
        }
        url = self._upstream.server + request.path_qs
        timeout = aiohttp.ClientTimeout(total=None)
        body = await request.read()
        self.sent_bytes += len(body)
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, timeout=timeout
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                self.received_bytes += len(chunk)
                if not (self._mute and "watch=true" in request.query_string):
                    await response.write(chunk)
            await response.write_eof()
            return response

    def _write_kubeconfig(self, original: Path) -> None:
        document = yaml.safe_load(original.read_text())
        document["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self._port}"}
        self.kubeconfig.write_text(yaml.safe_dump(document))
