"""The command line: reads argv and the environment, wires the parts together, and turns errors into one line.

Every option is an environment variable too, ``SLICEBW_`` and its name, as a DaemonSet sets them. Each role imports
only what it needs, when it runs.
"""

import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

import click

from slicebw import __version__
from slicebw.api.quantity import QuantityError, parse_duration
from slicebw.core.errors import SlicebwError, UsageError

if TYPE_CHECKING:
    from slicebw.agent.cycle import Cycle
    from slicebw.agent.ports import Feed, Reporter
    from slicebw.controller.loop import StatusLoop
    from slicebw.kube.background import ApiThread

log = logging.getLogger(__name__)

DEFAULT_STATE_DIR: Final = Path("/var/lib/slicebw")
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class _Service(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


class _Duration(click.ParamType):  # type: ignore[type-arg]
    """A duration as in a spec: ``60s``, ``1m30s``."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        try:
            return value if isinstance(value, int) else parse_duration(str(value))
        except QuantityError as error:
            self.fail(str(error), param, ctx)


@click.group(context_settings={"auto_envvar_prefix": "SLICEBW", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="slicebw")
def cli() -> None:
    """Fair, guaranteed and budgeted shares of each node's uplink for every slice of a testbed."""


def _verbosity(context: click.Context, _param: click.Parameter, level: str) -> None:
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    if level != "debug":  # kopf tells every event of every object; what matters of it is said in our own words
        logging.getLogger("kopf").setLevel(logging.ERROR)
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
    context.meta["log_level"] = level


_log_level = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="SLICEBW_LOG_LEVEL",
    expose_value=False,
    callback=_verbosity,
    is_eager=True,
    help="How much to say on stderr.",
)
_kubeconfig = click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=["SLICEBW_KUBECONFIG"],
    help="Default: $KUBECONFIG, the pod's service account, or ~/.kube/config.",
)
_liveness_port = click.option(
    "--liveness-port",
    type=click.IntRange(0, 65535),
    envvar="SLICEBW_LIVENESS_PORT",
    help="Serve /healthz and /readyz on this port (0: any free one, logged). Default: do not.",
)


@cli.command()
@click.option("--node", required=True, envvar="SLICEBW_NODE", help="This node's name in Kubernetes.")
@click.option(
    "--netns",
    envvar="SLICEBW_NETNS",
    help="Shape in this network namespace (a path such as /run/netns/NAME); the API is reached from the present one.",
)
@click.option(
    "--uplink",
    envvar="SLICEBW_UPLINK",
    help="The device to shape, unless a NodeBandwidth names one. Default: the device of the default route.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    envvar="SLICEBW_STATE_DIR",
    help="Where the ledger is kept.",
)
@_kubeconfig
@click.option(
    "--manifests",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="SLICEBW_MANIFESTS",
    help="No cluster: take SliceBandwidths, NodeBandwidths and Pods from the YAML files in this folder, and write "
    "BandwidthUsages and Events under its status/ folder.",
)
@click.option(
    "--report-interval",
    type=_Duration(),
    default="60s",
    show_default=True,
    envvar="SLICEBW_REPORT_INTERVAL",
    help="Usage that moved is reported at most this often; caps, new periods and changed limits at once.",
)
@_liveness_port
@_log_level
def agent(
    node: str,
    netns: str | None,
    uplink: str | None,
    state_dir: Path,
    kubeconfig: Path | None,
    manifests: Path | None,
    report_interval: int,
    liveness_port: int | None,
) -> None:
    """Hold this node's slices to their limits and count what they send.

    Stopping it changes nothing in the kernel.
    """
    from slicebw.agent.checkpoint import FileStore
    from slicebw.agent.clock import SystemClock
    from slicebw.agent.cycle import Cycle
    from slicebw.agent.gate import NS, Gate
    from slicebw.agent.loop import Loop
    from slicebw.kernel import netns as namespaces
    from slicebw.kernel.htb import HtbShaper
    from slicebw.kernel.nft import NftClassifier

    if manifests is not None and kubeconfig is not None:
        raise UsageError("--manifests and --kubeconfig: an agent has one or the other; leave one out")
    namespaces.check_privileges()
    stop = _stop_signal()
    with ExitStack() as stack:
        stack.enter_context(_node_lock(state_dir, stop))
        if stop.is_set():
            return
        feed, reporter, services = _edges(node, manifests, kubeconfig, lambda: loop.wake())  # noqa: PLW0108 - the loop is made below

        def build() -> "Cycle":
            shaper = HtbShaper()
            shaper.watch(loop.wake)
            return Cycle(
                shaper=shaper,
                classifier=NftClassifier(),
                feed=feed,
                store=FileStore(state_dir),
                reporter=reporter,
                clock=SystemClock(),
                gate=Gate(report_interval * NS),
                uplink=uplink,
            )

        loop = Loop(build, lambda: namespaces.enter(netns) if netns else None)
        _serve_health(stack, liveness_port, {"/healthz": loop.liveness, "/readyz": loop.readiness})
        _run(stack, [*services, _Thread(loop)])
        log.info("agent started version=%s node=%s netns=%s state_dir=%s", __version__, node, netns or "own", state_dir)
        while not stop.wait(1.0):
            if not loop.is_alive():
                break
    if loop.failure is not None:
        raise loop.failure
    log.info("agent stopped; the kernel stays as it is")


@cli.command()
@_kubeconfig
@click.option(
    "--status-interval",
    type=_Duration(),
    default="10s",
    show_default=True,
    envvar="SLICEBW_STATUS_INTERVAL",
    help="A slice's status is written at most this often, except when a cap, a node or a generation changes.",
)
@_liveness_port
@_log_level
def controller(kubeconfig: Path | None, status_interval: int, liveness_port: int | None) -> None:
    """Roll usages up into the status of SliceBandwidths, and remove usages of nodes that are gone.

    Several may run at once: they write the same.
    """
    from slicebw.controller.loop import StatusLoop
    from slicebw.kube.cluster import ApiClusterFeed, ApiClusterWriter

    stop = _stop_signal()
    with ExitStack() as stack:
        api = _api(kubeconfig, "controller")
        feed = ApiClusterFeed(api, lambda: loop.wake())  # noqa: PLW0108 - the loop is made below
        loop = StatusLoop(feed, ApiClusterWriter(api, feed), status_interval_s=status_interval)
        thread = _LoopThread(loop)
        ready = "not all SliceBandwidths and BandwidthUsages have been listed yet"
        probes = {"/healthz": thread.liveness, "/readyz": lambda: None if feed.synced() else ready}
        _serve_health(stack, liveness_port, probes)
        _run(stack, [api, feed, _Thread(thread)])
        log.info("controller started version=%s", __version__)
        stop.wait()
    log.info("controller stopped")


class _LoopThread(threading.Thread):
    """The controller's loop in a thread of its own."""

    def __init__(self, loop: "StatusLoop") -> None:
        super().__init__(name="controller", target=loop.run)
        self._loop = loop

    def stop(self) -> None:
        self._loop.stop()

    def liveness(self) -> str | None:
        return None if self.is_alive() else "the controller's loop has ended"


def _edges(
    node: str, manifests: Path | None, kubeconfig: Path | None, wake: Callable[[], None]
) -> "tuple[Feed, Reporter, list[_Service]]":
    """The two ports to the outer world: a folder's or the API server's, and what has to be started for them."""
    if manifests is not None:
        from slicebw.folder.feed import FolderFeed
        from slicebw.folder.report import FolderReporter

        folder_feed = FolderFeed(manifests, node, wake)
        return folder_feed, FolderReporter(manifests, node), [folder_feed]
    from slicebw.kube.feed import ApiFeed
    from slicebw.kube.report import ApiReporter

    api = _api(kubeconfig, "agent")
    feed = ApiFeed(api, node, wake)
    reporter = ApiReporter(api, node)
    return feed, reporter, [api, feed, reporter]


def _api(kubeconfig: Path | None, role: str) -> "ApiThread":
    """The thread that talks to the API server; one that is away is waited for. Raises UsageError: no credentials."""
    from slicebw.kube import connection
    from slicebw.kube.background import ApiThread

    path = None if kubeconfig is None else str(kubeconfig)
    connection.load(path)
    return ApiThread(lambda: connection.load(path), f"slicebw-{role}/{__version__}")


class _Thread:
    """A thread with a ``stop`` of its own, as a service."""

    def __init__(self, thread: "_Stoppable") -> None:
        self._thread = thread

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.stop()
        self._thread.join()


class _Stoppable(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self) -> None: ...


def _run(stack: ExitStack, services: "list[_Service]") -> None:
    for service in services:
        service.start()
        stack.callback(service.stop)


def _serve_health(stack: ExitStack, port: int | None, probes: dict[str, Callable[[], str | None]]) -> None:
    if port is None:
        return
    from slicebw.agent.health import HealthServer

    server = HealthServer(port, probes)
    _run(stack, [server])
    log.info("probes served port=%d", server.port)


def _stop_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop


@contextmanager
def _node_lock(state_dir: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the state folder's lock; two agents of one node (a rolling update) take turns. Raises UsageError."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"--state-dir {state_dir}: cannot be used ({error.strerror}); name a writable folder that is kept"
        ) from error
    try:
        told = False
        while not stop.is_set():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    log.warning("another agent holds %s; waiting until it has stopped", state_dir / "lock")
                told = True
                stop.wait(0.2)
        yield
    finally:
        os.close(descriptor)


def main() -> None:
    """Run the command; every error slicebw raises on purpose is one line on stderr and exit code 1."""
    try:
        cli()
    except SlicebwError as error:
        click.echo(f"slicebw: {error}", err=True)
        sys.exit(1)
