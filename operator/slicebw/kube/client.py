"""A small API client over aiohttp, with just the requests that the agent and the controller make.

It raises two errors: :class:`ApiUnreachable` if there is no usable answer, or if the API server asks to retry later,
and :class:`ApiRefused` if the API server has refused the request.
"""

import json
import os
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from slicebw.core.errors import SlicebwError
from slicebw.kube.api_health import ApiHealth
from slicebw.kube.connection import Connection
from slicebw.kube.resources import Object, Resource

REQUEST_TIMEOUT_S: Final = 30.0
"""For one whole request, its answer included."""

CONNECT_TIMEOUT_S: Final = 5.0

_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_GONE: Final = 410
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_INVALID: Final = 422


class ApiUnreachable(SlicebwError):  # noqa: N818 - a state more than an error
    """There is no usable answer: try again, after ``retry_after_s`` seconds if the server gave that time.

    ``busy``: the server answered, but could not serve this request now. It may still serve others.
    """

    def __init__(self, message: str, retry_after_s: float | None = None, *, busy: bool = False) -> None:
        """Create the error. ``message`` is one line that says why and what to look at."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.busy = busy


class ApiRefused(SlicebwError):  # noqa: N818 - an answer more than an error
    """The API server refused a request, with its own status code, reason and message (meta/v1 Status)."""

    def __init__(self, what: str, status: int, body: Mapping[str, Any]) -> None:
        """Create the error from ``what`` was requested and from the answer's status code and body."""
        self.status = status
        self.reason = str(body.get("reason", ""))
        self.message = str(body.get("message", ""))
        self.details: Mapping[str, Any] = body.get("details") or {}
        super().__init__(f"{what}: {status} {self.reason}: {self.message}")

    @property
    def not_found(self) -> bool:
        """The object, its namespace or its kind does not exist."""
        return self.status == _NOT_FOUND

    @property
    def kind_missing(self) -> bool:
        """The kind does not exist: its CustomResourceDefinition is not installed."""
        # For a missing object the answer names it; for a missing kind it names nothing.
        return self.status == _NOT_FOUND and not self.details.get("name")

    @property
    def namespace_gone(self) -> bool:
        """The object's namespace does not exist, or is being deleted and accepts no new objects."""
        if self.status == _NOT_FOUND:
            return self.details.get("kind") == "namespaces"
        causes = self.details.get("causes") or ()
        return self.status == _FORBIDDEN and (
            any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
            or "because it is being terminated" in self.message
        )

    @property
    def already_exists(self) -> bool:
        """An object of that name exists."""
        return self.status == _CONFLICT and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """The object has another version than the one that the request was made for."""
        return self.status == _CONFLICT and self.reason == "Conflict"

    @property
    def expired(self) -> bool:
        """The requested version, or the list of which a page was requested, is too old: start again."""
        return self.status == _GONE

    @property
    def invalid(self) -> bool:
        """The request itself is wrong: repeating it cannot help."""
        return self.status in (_BAD_REQUEST, _INVALID)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list. ``version`` is that of the whole list, ``last`` is true for its last page."""

    items: list[dict[str, Any]]
    version: int
    last: bool


def page_of(body: Mapping[str, Any]) -> Page:
    """Return the page in the answer to a list request."""
    metadata = body.get("metadata") or {}
    return Page(body.get("items") or [], int(metadata.get("resourceVersion") or 0), not metadata.get("continue"))


class ApiClient:
    """A client for one event loop. It connects when first used, and reads its credentials again after a 401."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        user_agent: str,
        health: ApiHealth,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        """Make no connection yet.

        Args:
            connect: reads the credentials; called at first use and after a 401.
            user_agent: identifies this program in the API server's audit log.
            health: notes answers and failures.
            timeout_s: see REQUEST_TIMEOUT_S.
        """
        self._connect = connect
        self._user_agent = user_agent
        self._health = health
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._open: tuple[Connection, aiohttp.ClientSession] | None = None

    async def close(self) -> None:
        """Close all connections. The client can be used again."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened[1].close()

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Read one object or any other document. Raises ApiUnreachable, ApiRefused."""
        return await self._request("GET", path, query)

    async def pages(
        self, resource: Resource, page_size: int | None = None, *, namespace: str | None = None, **query: str
    ) -> AsyncGenerator[Page, None]:
        """List all objects, or those of one namespace, in pages if ``page_size`` is given.

        Raises ApiUnreachable, and ApiRefused with ``expired`` set if reading the pages took too long: start again.
        """
        if page_size is not None:
            query["limit"] = str(page_size)
        while True:
            body = await self._request("GET", resource.path(namespace), query)
            page = page_of(body)
            yield page
            if page.last:
                return
            query["continue"] = body["metadata"]["continue"]
            query.pop("resourceVersion", None)  # the continue token stands for it; the API server refuses both

    async def page_from_cache(self, resource: Resource, version: int, **query: str) -> Page | None:
        """List from the API server's cache once it has at least ``version``. Return None if that takes too long.

        Raises ApiUnreachable, ApiRefused.
        """
        query["resourceVersion"] = str(version)
        try:
            body = await self._request("GET", resource.path(), query, warn_if_busy=False)
        except ApiUnreachable as error:
            if error.busy:
                return None
            raise
        return page_of(body)

    async def apply(
        self, resource: Resource, obj: Object, manager: str, subresource: str | None = None
    ) -> dict[str, Any]:
        """Create the object or set the given fields, by a forced server-side apply. Return the object as it is then.

        A subresource can be applied only to an object that exists. Raises ApiUnreachable, ApiRefused.
        """
        query = {"fieldManager": manager, "force": "true"}
        # The content type makes the patch a server-side apply. JSON is accepted under it, because JSON is YAML.
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return await self._request("PATCH", resource.path_of(obj, subresource), query, obj, headers)

    async def create(self, resource: Resource, obj: Object) -> dict[str, Any]:
        """Create an object. Raises ApiUnreachable, and ApiRefused, with ``already_exists`` set if the name is taken."""
        return await self._request("POST", resource.path(obj["metadata"].get("namespace")), {}, obj)

    async def delete(self, resource: Resource, namespace: str | None, name: str, uid: str | None = None) -> None:
        """Delete an object if it exists; with ``uid``, only that very one. Raises ApiUnreachable, ApiRefused."""
        body = {"preconditions": {"uid": uid}} if uid else {}
        try:
            await self._request("DELETE", resource.path(namespace, name), {}, body)
        except ApiRefused as refusal:
            if not refusal.not_found:
                raise

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        warn_if_busy: bool = True,
    ) -> dict[str, Any]:
        """Make one request and return the decoded answer. Raises ApiUnreachable, ApiRefused."""
        what = f"{method} {path}"
        connection, session = self._session()
        try:
            async with session.request(
                method, connection.server + path, params=query, json=body, headers=headers, timeout=self._timeout
            ) as response:
                status, answer, given = response.status, await response.read(), response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(ApiUnreachable(no_answer_text(connection.server, error))) from error
        if status == _UNAUTHORIZED:
            await self.close()  # the next request reads the credentials again
            raise self._unreachable(unauthorized(connection))
        self._health.reachable()
        if is_busy(status):
            message = f"{connection.server} cannot serve {what} now ({status})."
            if warn_if_busy:
                self._health.warn_once(f"{status} on {method}", message, "later")
            raise ApiUnreachable(message, _seconds(given.get("Retry-After")), busy=True)
        try:
            document = json.loads(answer)
        except ValueError as error:
            if status < _BAD_REQUEST:
                message = f"{connection.server} does not answer in JSON to {what}."
                raise self._unreachable(ApiUnreachable(message)) from error
            document = {"message": answer[:200].decode(errors="replace").strip()}
        if status >= _BAD_REQUEST:
            raise ApiRefused(what, status, document)
        return document  # type: ignore[no-any-return]

    def _session(self) -> tuple[Connection, aiohttp.ClientSession]:
        if self._open is None:
            try:
                connection = self._connect()
            except SlicebwError as error:
                raise self._unreachable(ApiUnreachable(f"{error}.")) from error
            self._open = connection, connection.session(self._user_agent)
        return self._open

    def _unreachable(self, error: ApiUnreachable) -> ApiUnreachable:
        self._health.unreachable(str(error))
        return error


def unauthorized(connection: Connection) -> ApiUnreachable:
    """Return the error for a 401. It is not a refusal: the next attempt reads the credentials again."""
    return ApiUnreachable(
        f"{connection.server} does not accept the credentials of {connection.source} (401): are they expired?"
    )


def is_busy(status: int) -> bool:
    """Return whether a status code asks to retry later: the server is overloaded, starting, or without etcd."""
    return status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR


def no_answer_text(server: str, error: Exception) -> str:
    """Return one line on why there is no answer and what to check."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"cannot trust {server}: {error.certificate_error}; is the kubeconfig's CA this cluster's?"
        case aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            return f"cannot speak TLS with {server}: {error}."
        case aiohttp.ClientConnectorDNSError():
            return f"cannot reach {server}: no address for {error.host}; is its name right?"
    return f"cannot reach {server}: {_reason(error)}; is the API server up?"


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


def _seconds(retry_after: str | None) -> float | None:
    """Return a Retry-After header in seconds (RFC 9110 §10.2.3; the API server uses only the number form)."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None
