"""hack/cluster may be interrupted at any time. A second cluster runs beside the tests' own."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.cluster import HACK, eventually
from tests.cluster.lab import ClusterLab
from tests.cluster.traces import Traces
from tests.support.processes import with_default_signals


@pytest.fixture
def home(cluster: ClusterLab, tmp_path: Path) -> Iterator[Path]:
    """Make a folder for a cluster of one test, and remove that cluster if the test has not."""
    yield tmp_path / "cluster"
    hack("down", tmp_path / "cluster")


def hack(command: str, home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [str(HACK / "cluster"), command, "--dir", str(home), *arguments]
    return subprocess.run(line, check=False, capture_output=True, text=True, timeout=250)


def interrupt_up(home: Path, when_there_is: str, number: signal.Signals) -> None:
    """Start a cluster, and interrupt the command and what it runs as soon as it has made a certain file."""
    line = [str(HACK / "cluster"), "up", "--nodes", "1", "--dir", str(home)]
    with subprocess.Popen(
        with_default_signals(line), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as command:
        try:
            eventually((home / when_there_is).exists, within_s=120)
        finally:
            os.killpg(command.pid, number)
        assert command.wait(60) != 0, "it was to be interrupted before it was done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("when_there_is", ["wan.pid", "control-plane/apiserver.pid", "node-1.pid"])
def test_down_removes_all_of_an_up_that_was_interrupted(home: Path, when_there_is: str, number: signal.Signals) -> None:
    interrupt_up(home, when_there_is, number)
    traces = Traces(home)
    assert traces.left()
    done = hack("down", home)
    assert done.returncode == 0, done.stderr
    assert traces.left() == []
    assert hack("status", home).returncode == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_up_goes_on_where_it_was_interrupted(home: Path, number: signal.Signals) -> None:
    interrupt_up(home, "node-1.pid", number)
    done = hack("up", home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(home / "control-plane" / "kubeconfig")
    assert hack("status", home).returncode == 0
    assert hack("exec", home, "node-1", "hostname").stdout == "node-1\n"
    traces = Traces(home)
    assert hack("down", home).returncode == 0
    assert traces.left() == []
