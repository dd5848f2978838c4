"""The command line: reads argv and the environment, wires the parts together, and prints errors as one line.

Every option is also an environment variable, ``SLICEBW_`` and its name, as a DaemonSet sets them. A command imports
what it needs when it runs, so that an agent does not carry the controller's modules, and the other way round.
"""

import sys
from importlib import import_module
from typing import Final

import click

from slicebw import __version__
from slicebw.core.errors import SlicebwError

_COMMANDS: Final = {
    "agent": "slicebw.cli.agent:agent",
    "controller": "slicebw.cli.controller:controller",
    "import-rspec": "slicebw.cli.rspec:import_rspec",
    "node": "slicebw.cli.node:node",
}
"""The module and function of each command."""


class _Commands(click.Group):
    """Imports a command when it is run, or when its help is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it so
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_Commands, context_settings={"auto_envvar_prefix": "SLICEBW", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="slicebw")
def cli() -> None:
    """Fair, guaranteed and budgeted shares of each node's uplink for every slice of a testbed."""


def main() -> None:
    """Run the command. An error that slicebw raises on purpose is printed on stderr as one line, with exit code 1."""
    try:
        cli()
    except SlicebwError as error:
        click.echo(f"slicebw: {error}", err=True)
        sys.exit(1)
