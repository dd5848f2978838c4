"""``slicebw import-rspec``: converts a testbed's slices from PlanetLab's format to SliceBandwidths."""

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import click
import yaml

from slicebw.api import rspec
from slicebw.api.fields import FieldError
from slicebw.api.quantity import duration_text
from slicebw.api.slice_bandwidth import MAX_PERIOD_S, MIN_PERIOD_S
from slicebw.cli import options
from slicebw.core.desired import DEFAULT_PERIOD_S
from slicebw.core.errors import UsageError

_STDIN: Final = "-"
_PLAIN: Final = re.compile(r"[A-Za-z/][-A-Za-z0-9/.]*|[0-9]+(?:[kMGTP]|[KMGTP]i)")
"""Texts that every YAML reader takes for text. Others are quoted: PyYAML and kubectl differ on ``1e5`` and ``0x10``."""


class _Dumper(yaml.SafeDumper):
    """Writes YAML that kubectl reads the same way."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if _PLAIN.fullmatch(text) else '"')


_Dumper.add_representer(str, _text)


@click.command("import-rspec")
@click.argument("file", default=_STDIN, metavar="[FILE|-]")
@click.option(
    "--period",
    type=options.Duration(least_s=0),
    default=duration_text(DEFAULT_PERIOD_S),
    show_default=True,
    help="The recording period of all slices; PlanetLab's was a constant.",
)
@click.pass_context
def import_rspec(context: click.Context, file: str, period: int) -> None:
    """Print a SliceBandwidth for every slice of a PlanetLab GetSlivers record (JSON or YAML).

    princeton_codeen becomes codeen in namespace princeton-codeen; namespaces are not created. A slice that cannot be
    converted is left out and named on stderr, and the exit code is then 1.
    """
    if not MIN_PERIOD_S <= period <= MAX_PERIOD_S:
        allowed = f"{duration_text(MIN_PERIOD_S)} to {duration_text(MAX_PERIOD_S)}"
        raise UsageError(f"--period {duration_text(period)}: out of range: use {allowed}")
    name = "standard input" if file == _STDIN else file
    try:
        imported = rspec.convert(_document(file, name), period)
    except FieldError as error:
        raise UsageError(f"{name}: {error}") from error
    yaml.dump_all(imported.objects, sys.stdout, Dumper=_Dumper, sort_keys=False, explicit_start=True)
    for line in (*imported.notes, *imported.errors):
        click.echo(f"slicebw: {line}", err=True)
    context.exit(1 if imported.errors else 0)


def _document(file: str, name: str) -> Any:
    """Read the document in a file. ``name``: the file's name in errors. Raises UsageError."""
    try:
        content = sys.stdin.buffer.read() if file == _STDIN else Path(file).read_bytes()
        text = content.decode()
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror}); name a file, or - for standard input") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is not text: write the record as JSON or YAML (a pickle cannot be read)") from error
    try:
        return json.loads(text)  # tabs, which YAML refuses, are fine in JSON
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "nested too deeply, or no value at all"
        raise UsageError(f"{name}{where}: is neither JSON nor YAML: {problem}") from error
