"""hack/lab: what its programs promise to whoever calls them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.lab.console import LabError, wait_until
from hack.lab.debian import deb822_sources, oneline_sources
from hack.lab.files import Lock, replace_link
from hack.lab.processes import Service
from tests.support.processes import ROOT
from tests.support.topology import wait_until as eventually

PROGRAMS = ("control-plane", "cluster", "cluster-images", "image", "kubernetes")


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run_on_a_machine_that_has_only_the_standard_library(program: str) -> None:
    command = [sys.executable, "-S", "-P", str(ROOT / "hack/lab/__main__.py"), program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"hack/{program}" in done.stdout


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("control-plane", "one of start, stop, status, env"),
        ("control-plane begin", "unknown command: begin"),
        ("control-plane start --only etcd", "--only"),
        ("control-plane stop --only nothing", "--only is one of: etcd apiserver"),
        ("control-plane status --dir", "--dir"),
        ("cluster down --nodes 3", "--nodes"),
        ("cluster up --nodes 100", "1 to 99, not: 100"),
        ("cluster exec", "NODE"),
        ("kubernetes build kube-everything", "no such component: kube-everything"),
        ("cluster-images lunch", "no such image: lunch (there are: pause, workload)"),
        ("image yesterday", "unknown command: yesterday"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_exit_code_2(line: str, complaint: str, tmp_path: Path) -> None:
    program, *arguments = line.split()
    environment = os.environ | {"SLICEBW_CACHE": str(tmp_path)}
    command = [str(ROOT / "hack" / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert done.stderr.startswith(f"{program}: ")
    assert done.stderr.endswith(f"Try: hack/{program} --help\n")
    assert done.stdout == ""


def test_only_our_releases_main_component_is_taken_from_deb822_sources() -> None:
    text = """Types: deb deb-src
URIs: http://mirror/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/one.gpg

Types: deb
URIs: http://mirror/other
Suites: trixie
Components: main

# A comment: with a colon
Types: deb
URIs: http://mirror/off
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://mirror/backports
Suites: bookworm-backports
Components: main

Types: deb
URIs: http://mirror/contrib
Suites: bookworm
Components: contrib
"""
    (stanza,) = deb822_sources(text, "deb-src")
    assert stanza == (
        "Types: deb-src\nURIs: http://mirror/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main contrib\nSigned-By: /usr/share/keyrings/one.gpg"
    )


def test_only_our_releases_main_component_is_taken_from_one_line_sources() -> None:
    text = """# deb http://mirror/debian bookworm main
deb [signed-by=/k.gpg arch=amd64] http://mirror/debian bookworm contrib main
deb http://mirror/security bookworm-security main
deb-src http://mirror/debian bookworm main
deb http://mirror/debian bookworm contrib
deb http://mirror/debian bookworm-backports main
deb http://mirror/debian trixie main
"""
    assert list(oneline_sources(text, "deb-src")) == [
        "deb-src [signed-by=/k.gpg arch=amd64] http://mirror/debian bookworm contrib main",
        "deb-src http://mirror/security bookworm-security main",
    ]


def test_a_link_is_replaced_in_place(tmp_path: Path) -> None:
    link = tmp_path / "link"
    for target in ("one", "one", "two"):
        replace_link(tmp_path / target, link)
        assert link.readlink() == tmp_path / target
    assert list(tmp_path.iterdir()) == [link]


def test_waiting_ends_when_the_time_is_up() -> None:
    assert wait_until(lambda: True, "nothing", 0)
    assert not wait_until(lambda: False, "for ever", 0.2)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A process to be, known by an argument of its own."""
    made = Service("sleeper", tmp_path, f"--folder={tmp_path}")
    yield made
    pid = made.pid()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def sleep(service: Service, script: str = "sleep 60") -> list[str]:
    return ["bash", "-c", f"{script}; true", "sleeper", service.mark]


def test_a_service_is_found_again_and_ended(service: Service, tmp_path: Path) -> None:
    assert service.pid() is None
    with Lock(tmp_path / "lock", "the test") as lock:
        service.launch(sleep(service), lock)
        pid = service.pid()
        assert pid is not None
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert Service(service.name, tmp_path, service.mark).pid() == pid, "another program finds it too"
    assert Service(service.name, tmp_path, "--folder=/other").pid() is None, "what has its pid by now is not it"
    service.stop()
    assert service.pid() is None
    assert not (tmp_path / "sleeper.pid").exists()


def test_a_service_that_does_not_want_to_end_is_killed(service: Service, tmp_path: Path) -> None:
    with Lock(tmp_path / "lock", "the test") as lock:
        service.launch(sleep(service, "trap '' TERM; echo deaf; while :; do sleep 60; done"), lock)
    eventually(lambda: "deaf" in service.log_file.read_text(), "it is deaf")
    service.stop(grace_s=0.2)
    assert service.pid() is None


def test_a_service_outlives_the_lock_that_it_was_started_under(service: Service, tmp_path: Path) -> None:
    with Lock(tmp_path / "lock", "the test") as lock:
        service.launch(sleep(service), lock)
    eventually((tmp_path / "sleeper.pid").read_text, "it has written its pid")
    before = time.monotonic()
    with Lock(tmp_path / "lock", "the test"):
        assert time.monotonic() - before < 5, "the service has let go of it"


def test_a_service_that_ends_by_itself_shows_why(
    service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lock(tmp_path / "lock", "the test") as lock:
        service.launch(sleep(service, "echo no such option; exit 1"), lock)
    eventually(lambda: not service.runs(), "it has ended")
    with pytest.raises(LabError, match=r"sleeper ended; .*sleeper\.log"):
        service.give_up("ended")
    assert "no such option" in capsys.readouterr().err
