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


@click.command()
@options.liveness_address
def address_command(liveness_address: str) -> None:
    click.echo(liveness_address)


@pytest.mark.parametrize("given", ["127.0.0.1", "::1", "0.0.0.0", "::"])  # noqa: S104
def test_probes_are_answered_at_an_ip_address(given: str) -> None:
    assert CliRunner().invoke(address_command, env={"SLICEBW_LIVENESS_ADDRESS": given}).output == f"{given}\n"


def test_probes_are_answered_to_this_machine_alone_unless_told_otherwise() -> None:
    assert CliRunner().invoke(address_command).output == "127.0.0.1\n"


@pytest.mark.parametrize("given", ["localhost", "127.0.0.1:80", "[::1]"])
def test_what_is_no_ip_address_is_refused(given: str) -> None:
    result = CliRunner().invoke(address_command, ["--liveness-address", given])
    assert result.exit_code == 2
    assert f"{given!r} is not an IP address: use one of this machine's, or 0.0.0.0 or :: for all" in result.output
