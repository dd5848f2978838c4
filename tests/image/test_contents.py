"""What the image contains, what it must not contain, and its metadata."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from slicebw import __version__
from tests.image.container import NOBODY, Image
from tests.support.processes import ROOT

INSTALLED = """
import importlib.metadata, json
print(json.dumps({one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}))
"""
ROLES = """
import slicebw.cli.agent, slicebw.cli.controller, slicebw.cli.exposition, slicebw.cli.node
import slicebw.agent.checkpoint, slicebw.cli.probe_server, slicebw.agent.loop, slicebw.agent.metrics
import slicebw.controller.status_loop, slicebw.controller.metrics
import slicebw.folder.feed, slicebw.kernel.htb, slicebw.kernel.nft
import slicebw.kube.controller_writer, slicebw.kube.agent_feed
"""
WRITE = """
import os, sys
for folder in sys.argv[1:]:
    try:
        open(os.path.join(folder, "written"), "w")
    except OSError as error:
        print(os.getuid(), folder, error.strerror)
"""
UNWANTED = ("pip", "setuptools", "wheel", "kubernetes", "pytest", "tests")
FOUND = f"""
import importlib.util
print([name for name in {UNWANTED} if importlib.util.find_spec(name)])
"""


def paths(image: Image) -> Iterator[Path]:
    """Yield the path of every file in the image, from its root."""
    return (path.relative_to(image.files) for path in image.files.rglob("*"))


def test_it_is_the_version_that_the_source_names(image: Image) -> None:
    assert image.name == f"slicebw.io/slicebw:{__version__}"
    done = image.container("--version").run()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"slicebw, version {__version__}\n", "")


def test_its_labels_say_what_it_is(image: Image) -> None:
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in image.config["Labels"].items()}
    assert labels["title"] == "slicebw"
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert labels["description"].startswith("Fair, guaranteed and budgeted shares")
    assert labels["base.name"]
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert labels["revision"].removesuffix("-modified") == (head.stdout.strip() or "unknown")


def test_without_a_word_it_runs_as_nobody_and_prints_its_help(image: Image) -> None:
    assert image.config["User"] == f"{NOBODY}:{NOBODY}"
    done = image.container(*image.config["Cmd"]).run()
    assert done.returncode == 0, done.stderr
    assert "Usage: slicebw" in done.stdout


def test_not_even_root_can_write_to_it(image: Image) -> None:
    folders = ["/", "/tmp", "/var/lib/slicebw", "/opt/slicebw"]  # noqa: S108 - none is used
    done = image.program("python", "-c", WRITE, *folders, user=0).run()
    assert done.stdout.splitlines() == [f"0 {one} Read-only file system" for one in folders], done.stderr


def test_its_python_packages_are_those_of_the_lock_and_slicebw(image: Image) -> None:
    lock = (ROOT / "requirements-runtime.lock").read_text()
    locked = dict(re.findall(r"^(\S+)==(\S+)", lock, flags=re.MULTILINE))
    done = image.program("python", "-c", INSTALLED).run()
    found = {name.lower(): version for name, version in json.loads(done.stdout).items()}
    assert found == locked | {"slicebw": __version__}


def test_what_only_builds_and_tests_need_cannot_be_imported(image: Image) -> None:
    bases_own = (image.files / "opt/slicebw/bin/python3").readlink()
    for python in ("python", str(bases_own)):
        done = image.program(python, "-c", FOUND).run()
        assert (done.stdout, done.stderr) == ("[]\n", ""), python


def test_it_has_nft_and_neither_compilers_nor_sources_of_anything_else(image: Image) -> None:
    assert image.program("nft", "--version").run().stdout.startswith("nftables v")
    found = list(paths(image))
    programs = {path.name for path in found if path.parent.name in ("bin", "sbin")}
    assert {"nft", "slicebw"} <= programs
    tools = {"cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "cmake", "cargo", "go", "pip", "pip3", "git"}
    assert programs & tools == set()
    leftovers = {".git", "pip.conf", "wheels", "requirements-runtime.lock", "Dockerfile", "pyproject.toml"}
    assert [path for path in found if path.name in leftovers or path == Path("src")] == []
    assert [path for path in found if path.suffix == ".whl" or path.name.startswith("pip-")] == []


def test_nothing_of_the_machine_that_built_it_is_in_it(image: Image) -> None:
    for file in ("etc/resolv.conf", "etc/hostname"):
        path = image.files / file
        assert not path.exists() or path.read_text() == "", file
    assert list((image.files / "var/lib/apt/lists").glob("*_*")) == []
    assert list((image.files / "var/cache/apt").rglob("*.deb")) == []


def test_a_role_starts_from_bytecode_alone(image: Image) -> None:
    # The image is read-only at run time, so a missing bytecode file would be compiled again at each start.
    log = image.program("python", "-v", "-c", ROLES).run().stderr
    assert "# code object from '/opt/slicebw/lib/python3.11/site-packages/slicebw/cli/__pycache__/agent" in log, log
    assert re.findall(r"^# code object from '[^']*\.py'", log, flags=re.MULTILINE) == []


def test_the_program_that_builds_it_explains_itself() -> None:
    program = str(ROOT / "hack" / "image")
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    assert "SOURCE_DATE_EPOCH" in help_text.stdout
    wrong = subprocess.run([program, "biuld"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (2, "image: unknown command: biuld")
