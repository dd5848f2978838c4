"""Answers the kubelet's probes and serves pages over HTTP.

``/healthz`` fails if a restart may help; ``/readyz`` fails while limits may not be in force.
"""

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
"""Returns None if all is well, else the problem in one line."""

Page = Callable[[str], tuple[str, bytes]]
"""Takes the request's Accept header, and returns a content type and a body. Called in a thread of its own."""

_PLAIN: Final = "text/plain; charset=utf-8"


class ProbeServer:
    """An HTTP server in a daemon thread. It answers even while the API server or the kernel does not."""

    def __init__(
        self, address: str, port: int, probes: Mapping[str, Probe], pages: Mapping[str, Page] | None = None
    ) -> None:
        """Bind to an IP address and a port, of which 0 takes a free one. Raises UsageError if that fails."""
        try:
            self._server = _server_class(address)((address, port), _handler(probes, pages or {}))
        except OSError as error:
            wrong, better = f"--liveness-port {port}", "free the port or name another"
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                wrong, better = f"--liveness-address {address}", "use an address of this machine, or 0.0.0.0 for all"
            raise UsageError(f"{wrong}: cannot listen there ({error.strerror}); {better}") from error
        # A slow scrape must not keep the process from ending.
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering, and free the port."""
        self._server.shutdown()
        self._server.server_close()


def _server_class(address: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    return Server


def _handler(probes: Mapping[str, Probe], pages: Mapping[str, Page]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds; then a silent client is disconnected, so that it does not hold a thread

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in pages:
                self._serve(pages[path])
            elif path in probes:
                problem = probes[path]()
                self._text(HTTPStatus.OK if problem is None else HTTPStatus.SERVICE_UNAVAILABLE, problem or "ok")
            else:
                self._text(HTTPStatus.NOT_FOUND, f"not found; there are {', '.join(sorted({*probes, *pages}))}")

        def _serve(self, page: Page) -> None:
            try:
                kind, body = page(self.headers.get("Accept", ""))
            except Exception:
                # A page that fails must not look like a process that is gone.
                log.exception("%s cannot be served", self.path)
                self._text(HTTPStatus.INTERNAL_SERVER_ERROR, "failed; see the log")
                return
            self._answer(HTTPStatus.OK, kind, body)

        def _text(self, status: HTTPStatus, text: str) -> None:
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
