"""How the agent starts if something is missing: one line that says what to do, and a retry if waiting helps."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT, SLICEBW, Slicebw, agent
from tests.support.topology import Namespace, Topology, wait_until


def refused(*arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """Run an agent that cannot start. Returns its one line on stderr."""
    done = subprocess.run(
        [*prefix, *SLICEBW, "agent", "--node", "n", "--log-level", "error", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator"), "HOME": "/nonexistent", "KUBECONFIG": ""},
    )
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, ...]:
    """A manifests folder and a state folder, as arguments."""
    (tmp_path / "manifests").mkdir()
    return ("--manifests", str(tmp_path / "manifests"), "--state-dir", str(tmp_path / "state"))


@pytest.fixture
def bare() -> Iterator[Namespace]:
    """A namespace with nothing but a loopback device."""
    namespace = Namespace("bare")
    yield namespace
    namespace.close()


def test_without_net_admin_it_says_how_to_get_it(folders: tuple[str, ...]) -> None:
    line = refused(*folders, prefix=("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--"))
    assert line == (
        "slicebw: CAP_NET_ADMIN is missing: run as root, or add NET_ADMIN to securityContext.capabilities.add "
        "of the container"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--netns", "/run/netns/none"), "cannot open network namespace /run/netns/none: No such file or directory"),
        (("--manifests", "/nonexistent"), "manifests folder /nonexistent does not exist"),
        (("--state-dir", "/proc/none"), "--state-dir /proc/none: cannot be used"),
        (("--kubeconfig", "some-kubeconfig"), "--manifests and --kubeconfig exclude each other: leave one out"),
        (("--liveness-port", "1"), "--liveness-port 1: cannot listen there"),
    ],
)
def test_what_waiting_cannot_mend_ends_it_with_one_line(
    folders: tuple[str, ...], arguments: tuple[str, ...], says: str
) -> None:

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = refused(*folders, *(port if argument == "1" else argument for argument in arguments))
    assert line.startswith("slicebw: ")
    assert says.replace("port 1:", f"port {port}:") in line


def test_without_any_way_to_an_api_server_it_says_so(tmp_path: Path) -> None:
    line = refused("--state-dir", str(tmp_path))
    assert line == "slicebw: no way to the API server: give --kubeconfig, set KUBECONFIG, or run in a pod"


def test_a_missing_uplink_is_said_once_and_waited_for(
    tmp_path: Path, folders: tuple[str, ...], bare: Namespace
) -> None:
    running = agent(tmp_path, "n", bare.path, *folders[:2], "--uplink", "up0")
    try:
        running.start()
        says = "pass failed, retrying until it succeeds: there is no device named up0; there are lo\n"
        wait_until(lambda: says in running.log.read_text(), "the missing uplink is named")
        assert running.probe("/healthz") == 200
        assert running.probe("/readyz") == 503
        bare.ip("link add up0 type veth peer name up1\nlink set up1 up\nlink set up0 up\n")
        running.wait_ready()
        assert running.log.read_text().count("there is no device named up0") == 1
        assert "qdisc htb 1: root" in bare.run("tc", "qdisc", "show", "dev", "up0")
    finally:
        running.stop()


def test_an_api_server_that_is_away_is_said_once_and_the_node_is_served(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(NOBODY_THERE)
    with Topology(pods=0) as net:
        running = agent(tmp_path, "n", net.node.path, "--kubeconfig", str(kubeconfig))
        try:
            running.start()
            says = "cannot reach https://127.0.0.1:1: connection refused; is the API server up?"
            wait_until(lambda: says in running.log.read_text(), "the missing API server is named", 20)
            wait_until(lambda: "htb 1:" in net.node.run("tc", "qdisc", "show", "dev", net.uplink), "the tree is there")
            assert running.probe("/healthz") == 200
            assert running.probe("/readyz") == 503
            assert running.log.read_text().count("is the API server up?") == 1
        finally:
            running.stop()


def test_two_agents_of_one_node_take_turns(tmp_path: Path, folders: tuple[str, ...]) -> None:
    with Topology(pods=0) as net, agent(tmp_path, "n", net.node.path, *folders[:2]) as first:
        second = Slicebw(
            tmp_path / "second.log",
            *("agent", "--node", "n", "--netns", net.node.path, "--state-dir", str(tmp_path / "state"), *folders[:2]),
        )
        try:
            second.start()
            wait_until(lambda: "another agent holds" in second.log.read_text(), "the second one waits")
            assert second.probe("/healthz") == 0
            first.stop()
            second.wait_ready()
        finally:
            second.stop()


NOBODY_THERE = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
