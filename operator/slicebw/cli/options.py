"""Options that several commands share. Each is also an environment variable."""

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
    """A duration as in a spec, such as ``60s`` or ``1m30s``. By default at least 1s: an interval of 0s has no pause."""

    name = "duration"

    def __init__(self, least_s: int = 1) -> None:
        self._least_s = least_s

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the duration in seconds."""
        try:
            duration_s = value if isinstance(value, int) else parse_duration(str(value))
        except QuantityError as error:
            self.fail(str(error), param, ctx)
        if duration_s < self._least_s:
            self.fail(f"{value} is too short: at least {self._least_s}s", param, ctx)
        return duration_s


def _verbosity(context: click.Context, _param: click.Parameter, level: str) -> None:
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    if level != "debug":  # kopf logs every event of every object; slicebw logs what matters of them itself
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
    help="The least severe messages to log. The log goes to stderr.",
)
kubeconfig = click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar=["SLICEBW_KUBECONFIG"],
    help="How to reach the API server. Default: $KUBECONFIG, the pod's service account, or ~/.kube/config.",
)
liveness_port = click.option(
    "--liveness-port",
    type=click.IntRange(0, 65535),
    envvar="SLICEBW_LIVENESS_PORT",
    help="Serve /healthz, /readyz and /metrics on this port; 0 takes a free one and logs it. Default: do not serve.",
)


def _address(_context: click.Context, _param: click.Parameter, address: str) -> str:
    try:
        ip_address(address)
    except ValueError:
        raise click.BadParameter(
            f"{address!r} is not an IP address: use one of this machine's, or 0.0.0.0 or :: for all"
        ) from None
    return address


liveness_address = click.option(
    "--liveness-address",
    default="127.0.0.1",
    show_default=True,
    envvar="SLICEBW_LIVENESS_ADDRESS",
    callback=_address,
    help="The address to serve them on. Metrics name every slice and its usage: with 0.0.0.0 or :: everyone who can "
    "reach this machine can read them.",
)
state_dir = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STATE_DIR,
    show_default=True,
    envvar="SLICEBW_STATE_DIR",
    help="The folder of the ledger. It must survive reboots.",
)
netns = click.option(
    "--netns",
    envvar="SLICEBW_NETNS",
    help="Work in this network namespace (a path such as /run/netns/NAME). The API server is reached from the "
    "namespace that the command is started in.",
)


def enter(path: str | None) -> None:
    """Check that this process may change the kernel, and enter the network namespace at ``path``, if any.

    Raises UsageError.
    """
    from slicebw.kernel import netns as namespaces

    namespaces.check_privileges()
    if path:
        namespaces.enter(path)


uplink = click.option(
    "--uplink",
    envvar="SLICEBW_UPLINK",
    help="The device to shape if no NodeBandwidth names one. Default: the device of the default route.",
)
