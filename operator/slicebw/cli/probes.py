"""Answers the kubelet's probes, ``/healthz`` (restart me?) and ``/readyz`` (are limits in force?), and serves pages."""

import errno
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from slicebw.core.errors import UsageError

log = logging.getLogger(__name__)

Probe = Callable[[], str | None]
"""None where all is well, else what is not, in one line."""

Page = Callable[[str], tuple[str, bytes]]
"""Takes the request's Accept header; gives a content type and a body. Called in a thread of its own."""

_PLAIN: Final = "text/plain; charset=utf-8"


class ProbeServer:
    """An HTTP server in a daemon thread. It answers while the API server, or the kernel, does not."""

    def __init__(
        self, address: str, port: int, probes: Mapping[str, Probe], pages: Mapping[str, Page] | None = None
    ) -> None:
        """Bind at once; raises UsageError if it cannot. ``address`` is an IP address, ``port`` 0 takes a free one."""
        try:
            self._server = _server_class(address)((address, port), _handler(probes, pages or {}))
        except OSError as error:
            wrong, better = f"--liveness-port {port}", "free the port or name another"
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                wrong, better = f"--liveness-address {address}", "use an address of this machine, or 0.0.0.0 for all"
            raise UsageError(f"{wrong}: cannot listen there ({error.strerror}); {better}") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End; the port is free afterwards."""
        self._server.shutdown()
        self._server.server_close()


def _server_class(address: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    return Server


def _handler(probes: Mapping[str, Probe], pages: Mapping[str, Page]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds; a client that says nothing is hung up on

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in pages:
                self._serve(pages[path])
            elif path in probes:
                trouble = probes[path]()
                self._say(HTTPStatus.OK if trouble is None else HTTPStatus.SERVICE_UNAVAILABLE, trouble or "ok")
            else:
                self._say(HTTPStatus.NOT_FOUND, f"not found; there are {', '.join(sorted({*probes, *pages}))}")

        def _serve(self, page: Page) -> None:
            try:
                kind, body = page(self.headers.get("Accept", ""))
            except Exception:
                log.exception("%s cannot be served", self.path)
                self._say(HTTPStatus.INTERNAL_SERVER_ERROR, "failed; the log says why")
                return
            self._answer(HTTPStatus.OK, kind, body)

        def _say(self, status: HTTPStatus, text: str) -> None:
            self._answer(status, _PLAIN, f"{text}\n".encode())

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
            log.debug(format, *args)

    return Handler
