"""A small API client over aiohttp: what the agent and the controller ask of the API server, and nothing more.

It has two errors. :class:`ApiUnreachable`: nobody is there, or it asks to come back later; try again.
:class:`ApiRefused`: somebody is there and said no.
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
    """No usable answer: try again, after ``retry_after_s`` where the server asked for that.

    ``busy``: the server is there and could not serve this very request; another one may fare better.
    """

    def __init__(self, message: str, retry_after_s: float | None = None, *, busy: bool = False) -> None:
        """Keep the wish of the server beside the message."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.busy = busy


class ApiRefused(SlicebwError):  # noqa: N818 - an answer more than an error
    """The API server refused a request, with its own status code, reason and message (meta/v1 Status)."""

    def __init__(self, what: str, status: int, body: Mapping[str, Any]) -> None:
        """Take the refusal apart."""
        self.status = status
        self.reason = str(body.get("reason", ""))
        self.message = str(body.get("message", ""))
        self.details: Mapping[str, Any] = body.get("details") or {}
        super().__init__(f"{what}: {status} {self.reason}: {self.message}")

    @property
    def not_found(self) -> bool:
        """The object, its namespace, or its kind is not there."""
        return self.status == _NOT_FOUND

    @property
    def kind_missing(self) -> bool:
        """The whole kind is not there: its CustomResourceDefinition is not installed. Then nothing is named."""
        return self.status == _NOT_FOUND and not self.details.get("name")

    @property
    def namespace_gone(self) -> bool:
        """The object's namespace is not there, or is being deleted and takes nothing new."""
        if self.status == _NOT_FOUND:
            return self.details.get("kind") == "namespaces"
        causes = self.details.get("causes") or ()
        return self.status == _FORBIDDEN and (
            any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
            or "because it is being terminated" in self.message
        )

    @property
    def already_exists(self) -> bool:
        """An object of that name is there already."""
        return self.status == _CONFLICT and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """The object is not of the version that the request was made for any more."""
        return self.status == _CONFLICT and self.reason == "Conflict"

    @property
    def expired(self) -> bool:
        """The list being read page by page, or the version asked for, is too old: start again."""
        return self.status == _GONE

    @property
    def hopeless(self) -> bool:
        """The request itself is wrong: sending it again cannot help."""
        return self.status in (_BAD_REQUEST, _INVALID)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list. ``version`` is the whole list's; ``last`` says that the list is complete with this page."""

    items: list[dict[str, Any]]
    version: int
    last: bool


def page_of(body: Mapping[str, Any]) -> Page:
    """Take the answer to a list request apart."""
    metadata = body.get("metadata") or {}
    return Page(body.get("items") or [], int(metadata.get("resourceVersion") or 0), not metadata.get("continue"))


class ApiClient:
    """One client for one event loop. It connects when first used, and again after its credentials were refused."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        user_agent: str,
        health: ApiHealth,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        """Connect nowhere yet.

        Args:
            connect: reads the credentials; called at first use and after a 401.
            user_agent: shows in the API server's audit log.
            health: told of every answer and of every silence.
            timeout_s: for one whole request.
        """
        self._connect = connect
        self._user_agent = user_agent
        self._health = health
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._open: tuple[Connection, aiohttp.ClientSession] | None = None

    async def close(self) -> None:
        """Close all connections. The client may be used again."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened[1].close()

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Read one object, or any other document."""
        return await self._request("GET", path, query)

    async def pages(
        self, resource: Resource, page_size: int | None = None, *, namespace: str | None = None, **query: str
    ) -> AsyncGenerator[Page, None]:
        """List all objects, or those of one namespace, page by page where ``page_size`` is given.

        Raises ApiRefused with ``expired`` set where the pages took too long to read: begin again.
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
            query.pop("resourceVersion", None)

    async def page_from_memory(self, resource: Resource, version: int, **query: str) -> Page | None:
        """List from the API server's memory, once that is at least as new as ``version``; None if it is not in time."""
        try:
            body = await self._request("GET", resource.path(), {**query, "resourceVersion": str(version)}, hurry=True)
        except ApiUnreachable as error:
            if error.busy:
                return None
            raise
        return page_of(body)

    async def apply(
        self, resource: Resource, obj: Object, manager: str, subresource: str | None = None
    ) -> dict[str, Any]:
        """Server-side apply: create the object, or make its fields ours and as given; forced.

        A subresource can only be applied to an object that exists. Returns the object as it is now.
        """
        query = {"fieldManager": manager, "force": "true"}
        # JSON is YAML. Without this content type it would be another kind of patch, and the fields nobody's.
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return await self._request("PATCH", resource.path_of(obj, subresource), query, obj, headers)

    async def create(self, resource: Resource, obj: Object) -> dict[str, Any]:
        """Create an object. Raises ApiRefused with ``already_exists`` set where one of its name exists."""
        return await self._request("POST", resource.path(obj["metadata"].get("namespace")), {}, obj)

    async def delete(self, resource: Resource, namespace: str | None, name: str, uid: str | None = None) -> None:
        """Delete an object, only if it is the very one with ``uid`` where that is given. Gone already is fine."""
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
        hurry: bool = False,
    ) -> dict[str, Any]:
        """``hurry``: that there is no answer now is nothing to complain about."""
        what = f"{method} {path}"
        connection, session = self._session()
        try:
            async with session.request(
                method, connection.server + path, params=query, json=body, headers=headers, timeout=self._timeout
            ) as response:
                status, answer, given = response.status, await response.read(), response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(ApiUnreachable(silence(connection.server, error))) from error
        if status == _UNAUTHORIZED:
            await self.close()
            raise self._lost(unauthorized(connection))
        self._health.reachable()
        if is_later(status):
            message = f"{connection.server} cannot serve {what} now ({status})."
            if not hurry:
                self._health.warn_once(f"{status} on {method}", message, "later")
            raise ApiUnreachable(message, _seconds(given.get("Retry-After")), busy=True)
        try:
            document = json.loads(answer)
        except ValueError as error:
            if status < _BAD_REQUEST:
                raise self._lost(ApiUnreachable(f"{connection.server} does not answer in JSON to {what}.")) from error
            document = {"message": answer[:200].decode(errors="replace").strip()}
        if status >= _BAD_REQUEST:
            raise ApiRefused(what, status, document)
        return document  # type: ignore[no-any-return]

    def _session(self) -> tuple[Connection, aiohttp.ClientSession]:
        if self._open is None:
            try:
                connection = self._connect()
            except SlicebwError as error:
                raise self._lost(ApiUnreachable(f"{error}.")) from error
            self._open = connection, connection.session(self._user_agent)
        return self._open

    def _lost(self, error: ApiUnreachable) -> ApiUnreachable:
        self._health.unreachable(str(error))
        return error


def unauthorized(connection: Connection) -> ApiUnreachable:
    """The error for a 401: new credentials may be there at the next try."""
    return ApiUnreachable(
        f"{connection.server} does not accept the credentials of {connection.source} (401): are they expired?"
    )


def is_later(status: int) -> bool:
    """Whether an answer asks to come back later: the server is busy, starting, or has lost its etcd."""
    return status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR


def silence(server: str, error: Exception) -> str:
    """One line on why there is no answer, and what to look at."""
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
    """The Retry-After header in seconds (RFC 9110 §10.2.3; the API server only uses the number form)."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None
