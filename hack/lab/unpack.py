"""Prints the folder in which Debian packages are unpacked, not installed. For shell scripts: run_lab unpack.

Usage: unpack NAME PACKAGE...
"""

from collections.abc import Sequence

from hack.lab.console import Parser
from hack.lab.debian import unpack_packages


def main(arguments: Sequence[str]) -> int:
    """Fetch what is missing, and print the folder."""
    parser = Parser(prog="unpack", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("packages", nargs="+")
    options = parser.parse_args(arguments)
    print(unpack_packages(options.name, *options.packages))
    return 0
