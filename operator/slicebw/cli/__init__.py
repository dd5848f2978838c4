"""The command line: reads argv and the environment, wires the parts together, and turns errors into one line.

Every option is an environment variable too, ``SLICEBW_`` and its name, as a DaemonSet sets them. Each role imports
only what it needs, when it runs.
"""

import sys

import click

from slicebw import __version__
from slicebw.cli.agent import agent
from slicebw.cli.controller import controller
from slicebw.cli.node import node
from slicebw.cli.rspec import import_rspec
from slicebw.core.errors import SlicebwError


@click.group(context_settings={"auto_envvar_prefix": "SLICEBW", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="slicebw")
def cli() -> None:
    """Fair, guaranteed and budgeted shares of each node's uplink for every slice of a testbed."""


for command in (agent, controller, node, import_rspec):
    cli.add_command(command)


def main() -> None:
    """Run the command; every error slicebw raises on purpose is one line on stderr and exit code 1."""
    try:
        cli()
    except SlicebwError as error:
        click.echo(f"slicebw: {error}", err=True)
        sys.exit(1)
