"""Starts and stops what a command runs: services, probes, and the API thread. Turns signals into an event."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from slicebw import __version__

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from slicebw.kube.api_thread import ApiThread

log = logging.getLogger(__name__)


class Service(Protocol):
    """Something that runs in the background while the command runs."""

    def start(self) -> None:
        """Start it."""
        ...

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        ...


class ThreadService:
    """A thread with a ``stop`` of its own, as a service."""

    def __init__(self, thread: "_Stoppable") -> None:
        self._thread = thread

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end, and wait until it has."""
        self._thread.stop()
        self._thread.join()


class _Stoppable(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self) -> None: ...


def run(stack: ExitStack, services: "list[Service]") -> None:
    """Start services in order. When the stack unwinds, they are stopped in reverse order."""
    for service in services:
        service.start()
        stack.callback(service.stop)


def serve_health(
    stack: ExitStack,
    address: str,
    port: int | None,
    probes: dict[str, Callable[[], str | None]],
    metrics: "Callable[[], Iterable[Collector]]",
) -> None:
    """Answer probes and scrapes until the stack unwinds. Does nothing if ``port`` is None.

    Raises UsageError if the port is taken, or the address is not this machine's.
    """
    if port is None:
        return
    from slicebw.cli.exposition import page
    from slicebw.cli.probe_server import ProbeServer

    server = ProbeServer(address, port, probes, {"/metrics": page(*metrics())})
    run(stack, [server])
    log.info("probes and metrics served address=%s port=%d", address, server.port)


def stop_signal() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop


def api_thread(kubeconfig: Path | None, role: str) -> "ApiThread":
    """Return the thread that talks to the API server. It waits for a server that is away.

    Raises UsageError if there are no credentials.
    """
    _leave_out_client_libraries()
    from slicebw.kube import connection
    from slicebw.kube.api_thread import ApiThread

    path = None if kubeconfig is None else str(kubeconfig)
    connection.load(path)  # already here: missing credentials must end the command before anything is started
    return ApiThread(lambda: connection.load(path), f"slicebw-{role}/{__version__}")


def _leave_out_client_libraries() -> None:
    """Keep kopf from importing client libraries that happen to be installed: 20 MB and 0.2 s that nothing needs."""
    for library in ("kubernetes", "pykube"):
        sys.modules.setdefault(library, None)  # type: ignore[arg-type]  # None: importing it is an ImportError
