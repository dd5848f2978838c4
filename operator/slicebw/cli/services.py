"""Starting and ending what a command runs: services, probes, signals."""

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
    """Something that runs beside the command."""

    def start(self) -> None:
        """Begin."""
        ...

    def stop(self) -> None:
        """End, and wait for it."""
        ...


class ThreadService:
    """A thread with a ``stop`` of its own, as a service."""

    def __init__(self, thread: "_Stoppable") -> None:
        self._thread = thread

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._thread.stop()
        self._thread.join()


class _Stoppable(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self) -> None: ...


def run(stack: ExitStack, services: "list[Service]") -> None:
    """Start services in order; they are stopped in reverse order when the stack unwinds."""
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
    """Answer probes and scrapes on a port of an address until the stack unwinds, if there is a port.

    Raises UsageError: the port is taken, or the address is not this machine's.
    """
    if port is None:
        return
    from slicebw.cli.exposition import page
    from slicebw.cli.probes import ProbeServer

    server = ProbeServer(address, port, probes, {"/metrics": page(*metrics())})
    run(stack, [server])
    log.info("probes and metrics served address=%s port=%d", address, server.port)


def stop_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop


def api_thread(kubeconfig: Path | None, role: str) -> "ApiThread":
    """The thread that talks to the API server; one that is away is waited for. Raises UsageError: no credentials."""
    _leave_out_client_libraries()
    from slicebw.kube import connection
    from slicebw.kube.api_thread import ApiThread

    path = None if kubeconfig is None else str(kubeconfig)
    connection.load(path)
    return ApiThread(lambda: connection.load(path), f"slicebw-{role}/{__version__}")


def _leave_out_client_libraries() -> None:
    """Keep kopf from importing client libraries that happen to be installed: 20 MB and 0.2 s, and nobody uses them."""
    for library in ("kubernetes", "pykube"):
        sys.modules.setdefault(library, None)  # type: ignore[arg-type]  # None: importing it is an ImportError
