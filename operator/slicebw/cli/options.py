"""Options that several commands share, each an environment variable too."""

import logging
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import click

from slicebw.api.quantity import QuantityError, parse_duration

DEFAULT_STATE_DIR: Final = Path("/var/lib/slicebw")
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A duration as in a spec: ``60s``, ``1m30s``; of an interval at least 1s: 0s would be work without a pause."""

    name = "duration"

    def __init__(self, least_s: int = 1) -> None:
        self._least_s = least_s

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        try:
            duration_s = value if isinstance(value, int) else parse_duration(str(value))
        except QuantityError as error:
            self.fail(str(error), param, ctx)
        if duration_s < self._least_s:
            self.fail(f"{value} is too short: at least {self._least_s}s", param, ctx)
        return duration_s


def _verbosity(context: click.Context, _param: click.Parameter, level: str) -> None:
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    if level != "debug":  # kopf tells every event of every object; what matters of it is said in our own words
        logging.getLogger("kopf").setLevel(logging.ERROR)
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
    context.meta["log_level"] = level


log_level = click.option(
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
kubeconfig = click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=["SLICEBW_KUBECONFIG"],
    help="Default: $KUBECONFIG, the pod's service account, or ~/.kube/config.",
)
liveness_port = click.option(
    "--liveness-port",
    type=click.IntRange(0, 65535),
    envvar="SLICEBW_LIVENESS_PORT",
    help="Serve /healthz, /readyz and /metrics on this port (0: any free one, logged). Default: do not.",
)


def _address(_context: click.Context, _param: click.Parameter, address: str) -> str:
    try:
        ip_address(address)
    except ValueError:
        raise click.BadParameter(
            f"{address!r} is no IP address: use one of this machine's, or 0.0.0.0 or :: for all"
        ) from None
    return address


liveness_address = click.option(
    "--liveness-address",
    default="127.0.0.1",
    show_default=True,
    envvar="SLICEBW_LIVENESS_ADDRESS",
    callback=_address,
    help="The address to serve them on. Metrics name slices and what they used: 0.0.0.0 or :: shows them to everybody.",
)
state_dir = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    envvar="SLICEBW_STATE_DIR",
    help="Where the ledger is kept.",
)
netns = click.option(
    "--netns",
    envvar="SLICEBW_NETNS",
    help="Shape in this network namespace (a path such as /run/netns/NAME); the API is reached from the present one.",
)


def enter(path: str | None) -> None:
    """Make sure that the kernel may be changed, and go into the network namespace named, if any. Raises UsageError."""
    from slicebw.kernel import netns as namespaces

    namespaces.check_privileges()
    if path:
        namespaces.enter(path)


uplink = click.option(
    "--uplink",
    envvar="SLICEBW_UPLINK",
    help="The device to shape, unless a NodeBandwidth names one. Default: the device of the default route.",
)
