import click
import pytest
from click.testing import CliRunner

from slicebw.cli import options


@click.command()
@click.option("--every", type=options.Duration(), envvar="EVERY", default="1m30s")
def command(every: int) -> None:
    click.echo(every)


@pytest.mark.parametrize(("given", "seconds"), [((), "90"), (("--every", "1s"), "1"), (("--every", "2h"), "7200")])
def test_a_duration_is_taken_as_seconds(given: tuple[str, ...], seconds: str) -> None:
    assert CliRunner().invoke(command, given).output == f"{seconds}\n"


@pytest.mark.parametrize("given", ["0s", "0h0m"])
def test_no_duration_at_all_would_be_work_without_a_pause_and_is_refused(given: str) -> None:
    result = CliRunner().invoke(command, ["--every", given])
    assert result.exit_code == 2
    assert f"{given} is too short: at least 1s" in result.output


def test_an_empty_variable_counts_as_none() -> None:
    assert CliRunner().invoke(command, env={"EVERY": ""}).output == "90\n"
