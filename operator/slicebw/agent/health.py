"""Answers the kubelet's probes: ``/healthz`` (restart me?) and ``/readyz`` (are limits in force?), as plain HTTP."""

import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from slicebw.core.errors import UsageError

log = logging.getLogger(__name__)

Probe = Callable[[], str | None]
"""None where all is well, else what is not, in one line."""


class HealthServer:
    """An HTTP server in a daemon thread. It answers while the API server, or the kernel, does not."""

    def __init__(self, port: int, probes: dict[str, Probe], address: str = "") -> None:
        """Bind at once; raises UsageError if the port is taken. ``port`` 0 takes a free one."""
        try:
            self._server = ThreadingHTTPServer((address, port), _handler(probes))
        except OSError as error:
            raise UsageError(
                f"--liveness-port {port}: cannot listen there ({error.strerror}); free the port or name another"
            ) from error
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


def _handler(probes: dict[str, Probe]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds; a client that says nothing is hung up on

        def do_GET(self) -> None:
            probe = probes.get(self.path.partition("?")[0])
            if probe is None:
                self._answer(HTTPStatus.NOT_FOUND, f"not found; there are {', '.join(sorted(probes))}")
                return
            trouble = probe()
            self._answer(HTTPStatus.OK if trouble is None else HTTPStatus.SERVICE_UNAVAILABLE, trouble or "ok")

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
            log.debug(format, *args)

    return Handler
