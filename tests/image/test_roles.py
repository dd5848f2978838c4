"""Both roles in containers: the privileges in the manifests are sufficient, and all of them are needed."""

from pathlib import Path

import pytest

from tests.image.container import NOBODY, Image
from tests.support.folder_lab import NODE, M, folder_lab
from tests.support.modules import AWAY
from tests.support.topology import Topology, wait_until

INSIDE = "/var/lib/slicebw"
MISSING = (
    "slicebw: CAP_NET_ADMIN is missing: run as root, or add NET_ADMIN to securityContext.capabilities.add "
    "of the container\n"
)


def test_an_agent_with_net_admin_alone_holds_limits_and_counts_every_byte(image: Image, tmp_path: Path) -> None:
    with folder_lab(tmp_path, "codeen") as lab:
        lab.write_slice("codeen", standard={"maxRate": "10M"})
        lab.state.mkdir()
        arguments = ("agent", "--node", NODE, "--manifests", "/manifests", "--report-interval", "1s")
        settings = {
            "user": 0,
            "capabilities": ("CAP_NET_ADMIN",),
            "network": lab.net.node.path,
            "writable": {lab.state: INSIDE, lab.manifests: "/manifests"},
        }
        with image.container(*arguments, **settings) as agent:
            agent.until_logged("agent started")
            wait_until(lambda: lab.ceil_bps("codeen") == 10 * M, "codeen has its ceiling", 30)
            lab.until_served("codeen")
            lab.send("codeen", 200)
            lab.until_counted("codeen")
            output = agent.execute("slicebw", "node", "show")
            assert "codeen/codeen" in output
            assert agent.stop() == 0
            assert [line for line in agent.log().splitlines() if " ERROR " in line or "Traceback" in line] == []
        assert lab.ceil_bps("codeen") == 10 * M


@pytest.mark.parametrize(
    ("user", "capabilities"),
    [
        pytest.param(0, (), id="root without capabilities"),
        pytest.param(NOBODY, ("CAP_NET_ADMIN",), id="nobody, whom the kernel gives no capabilities"),
    ],
)
def test_an_agent_that_may_not_shape_says_so_in_one_line(
    image: Image, tmp_path: Path, user: int, capabilities: tuple[str, ...]
) -> None:
    tmp_path.chmod(0o777)
    with Topology(pods=0) as net:
        settings = {"user": user, "capabilities": capabilities, "network": net.node.path}
        agent = image.container("agent", "--node", NODE, **settings, writable={tmp_path: INSIDE})
        done = agent.run()
    assert (done.returncode, done.stdout, done.stderr) == (1, "", MISSING)


def test_an_agent_whose_state_cannot_be_written_says_so_in_one_line(image: Image) -> None:
    with Topology(pods=0) as net:
        settings = {"user": 0, "capabilities": ("CAP_NET_ADMIN",), "network": net.node.path}
        done = image.container("agent", "--node", NODE, **settings).run()
    problem = f"slicebw: --state-dir {INSIDE}: cannot be used (Read-only file system); "
    assert (done.returncode, done.stderr) == (1, f"{problem}name a writable folder that survives reboots\n")


def test_a_controller_needs_no_privilege_and_writes_nothing(image: Image, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    secret.chmod(0o755)
    (secret / "kubeconfig").write_text(AWAY)
    arguments = ("controller", "--kubeconfig", "/secret/kubeconfig", "--liveness-port", "9748")
    with image.container(*arguments, writable={secret: "/secret"}) as controller:
        controller.until_logged("controller started")
        assert "probes and metrics served" in controller.log()
        assert controller.stop() == 0
        assert "Traceback" not in controller.log()
