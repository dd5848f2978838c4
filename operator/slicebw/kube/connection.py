"""Address and credentials of the API server, from a kubeconfig or from a pod's service account.

kopf's loaders read the files. Added here are:

- a kubeconfig that is named on the command line;
- the API server's address from the environment, because hostNetwork pods cannot resolve its DNS name;
- a service account token that is read again for each request, so that its rotation never leads to a 401.
"""

import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import aiohttp
import kopf
import yaml

from slicebw.core.errors import UsageError

_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Connection:
    """Address and credentials of an API server. ``source`` says for messages where they were read."""

    info: kopf.ConnectionInfo
    source: str
    ssl_context: ssl.SSLContext
    token_path: Path | None = None

    @property
    def server(self) -> str:
        """The API server's base URL, without a trailing slash."""
        return self.info.server.rstrip("/")

    def headers(self) -> dict[str, str]:
        """Return the headers that authorize a request now. Raises OSError if the token file cannot be read."""
        if self.token_path is not None:
            return {"Authorization": f"Bearer {self.token_path.read_text().strip()}"}
        return self.info.as_http_headers()

    def session(self, user_agent: str, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
        """Return a new HTTP session for the running event loop. The caller closes it."""

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            request.headers.update(self.headers())
            return await handler(request)

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self.ssl_context, socket_factory=_socket),
            headers={"User-Agent": user_agent},
            middlewares=(*middlewares, authorize),
            proxy=self.info.proxy_url,
        )


def load(kubeconfig: str | None = None) -> Connection:
    """Read address and credentials. Reads only files, so it works without the API server.

    Args:
        kubeconfig: the path of a kubeconfig. Without it: ``$KUBECONFIG``, then the pod's service account, then
            ``~/.kube/config``.

    Raises:
        UsageError: there are none, or they cannot be used.
    """
    if kubeconfig is not None:
        with _environment("KUBECONFIG", kubeconfig):
            return _from_kubeconfig()
    if not os.environ.get("KUBECONFIG") and (_SERVICE_ACCOUNT / "token").exists():
        return _from_service_account()
    return _from_kubeconfig()


def _from_kubeconfig() -> Connection:
    source = os.environ.get("KUBECONFIG") or "~/.kube/config"
    try:
        info = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    except (KeyError, TypeError, AttributeError) as error:
        what = "it is no kubeconfig, or lacks what its current context names"
        raise UsageError(f"kubeconfig {source} cannot be used: {what} ({_words(error)})") from error
    except (OSError, ValueError, yaml.YAMLError, kopf.LoginError) as error:
        raise UsageError(f"kubeconfig {source} cannot be used: {_words(error)}") from error
    if info is None:
        raise UsageError("no way to the API server: give --kubeconfig, set KUBECONFIG, or run in a pod")
    if not isinstance(info.server, str):
        raise UsageError(f"kubeconfig {source} cannot be used: its current context's cluster has no server")
    return Connection(info, f"kubeconfig {source}", _ssl_context(info, f"kubeconfig {source}"))


def _from_service_account() -> Connection:
    info = kopf.login_with_service_account(settings=kopf.OperatorSettings())
    if info is None:
        raise UsageError(f"no service account token in {_SERVICE_ACCOUNT}")
    # kopf uses the name kubernetes.default.svc, but a hostNetwork pod uses the node's DNS, which does not know it.
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host:
        info = replace(info, server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")
    context = _ssl_context(info, "the service account")
    return Connection(info, "the service account", context, _SERVICE_ACCOUNT / "token")


def _ssl_context(info: kopf.ConnectionInfo, source: str) -> ssl.SSLContext:
    try:
        return info.as_ssl_context()
    except (OSError, ValueError) as error:
        raise UsageError(f"{source} cannot be used: bad certificate or key: {_words(error)}") from error


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return " ".join(str(error).split()) or type(error).__name__


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a TCP socket that fails within 30 s when the other end disappears without closing it (tcp(7)).

    A watch may be silent for minutes, so only TCP's keepalive can tell an idle API server from a lost one.
    """
    keepalive = socket.socket(family=address[0], type=address[1], proto=address[2])
    keepalive.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    keepalive.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    keepalive.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    keepalive.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    keepalive.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return keepalive


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a moment; kopf's loader takes the path from nowhere else."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
