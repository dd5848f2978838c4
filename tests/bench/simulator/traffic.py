"""Counts requests, and bytes of bodies both ways, over the connections of a simulated fleet."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from slicebw.kube import connection
from slicebw.kube.connection import Connection


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests by method, and bytes of their bodies."""

    requests: Mapping[str, int]
    sent_bytes: int
    received_bytes: int

    def since(self, before: "Traffic") -> "Traffic":
        """Return the difference to an earlier reading."""
        requests = {method: count - before.requests.get(method, 0) for method, count in self.requests.items()}
        sent_bytes = self.sent_bytes - before.sent_bytes
        return Traffic(requests, sent_bytes, self.received_bytes - before.received_bytes)


class TrafficMeter:
    """An HTTP middleware that counts. It runs in one event loop; :meth:`now` may be called from any thread."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._sent_bytes = 0
        self._received_bytes = 0

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Count one request and its answer."""
        self._requests[request.method] += 1
        self._sent_bytes += int(request.headers.get("Content-Length", 0))
        response = await handler(request)
        self._received_bytes += len(await response.read())
        return response

    def now(self) -> Traffic:
        """Return the counts so far."""
        return Traffic(dict(self._requests), self._sent_bytes, self._received_bytes)


class MeteredConnection(Connection):
    """A connection whose sessions count, for the product's own client, which needs no change for it."""

    __slots__ = ("_meter",)

    @classmethod
    def load(cls, kubeconfig: str, meter: TrafficMeter) -> "MeteredConnection":
        """Read a kubeconfig."""
        plain = connection.load(kubeconfig)
        made = cls(plain.info, plain.source, plain.ssl_context, plain.token_path)
        object.__setattr__(made, "_meter", meter)
        return made

    def session(self, user_agent: str, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
        """Open a session that counts."""
        meter: TrafficMeter = self._meter  # type: ignore[attr-defined]
        return Connection.session(self, user_agent, meter, *middlewares)
