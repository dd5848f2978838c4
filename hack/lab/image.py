"""Builds the container image, for both roles, and writes it to build/slicebw-image.tar.

Usage:
  hack/image [build]   what has changed since the last time; prints the name it is tagged with
  hack/image fresh     the same with a new base, so with Debian's newest fixes
  hack/image name      print that name: slicebw.io/slicebw:VERSION
  hack/image clean     remove base, wheels and layers from the cache

The file is a docker-archive: `docker load -i`, `podman load -i` or `ctr -n k8s.io images import` take it.

Environment:
  BASE                an image to build on instead of our own, such as the registry's:
                      BASE=docker.io/library/python:3.11-slim-bookworm
  SLICEBW_CACHE       where base, wheels and layers are kept (default: ~/.cache/slicebw)
  STORAGE_DRIVER      vfs where the kernel refuses overlays, as in some containers (default: overlay)
  SOURCE_DATE_EPOCH   the time that files and image bear (default: the last commit's)

Our own base is a Debian 12 with python3 and nftables, made from the mirror that this machine's apt is configured with,
and made anew when it is two weeks old. Python packages come, as wheels with the hashes in requirements-*.lock, from
the index that pip is configured with; the image holds nothing of either configuration. Needs root, about a minute and
700 MB in the cache the first time; then seconds, and the network only when the base is old or a lock file has changed.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hack.lab.console import LabError, Parser, log, run_logged, show_tail, step
from hack.lab.debian import CODENAME, require_bookworm, write_sources
from hack.lab.files import CACHE, HACK, ROOT, Lock, empty_folder, need_disk, remove

_FOLDER: Final = CACHE / "image"
_RUN: Final = Path("/run") / f"slicebw-image-{hashlib.sha256(str(_FOLDER).encode()).hexdigest()[:8]}"
_OWN_BASE: Final = "localhost/slicebw-base:bookworm"
_BASE_MAX_AGE_S: Final = 14 * 24 * 3600
_BASE_LOG: Final = _FOLDER / "base.log"
_OUTPUT: Final = ROOT / "build" / "slicebw-image.tar"
_LOCKS: Final = ("requirements-runtime.lock", "requirements-build.lock")


def main(arguments: Sequence[str]) -> int:
    """Run a command."""
    parser = Parser(prog="hack/image", description=__doc__)
    parser.add_argument("command", nargs="?", default="build", choices=("build", "fresh", "name", "clean"))
    command = parser.parse_args(arguments).command
    if command == "name":
        print(_name())
    elif command == "clean":
        _clean()
    else:
        print(_build(fresh=command == "fresh"))
    return 0


def _version() -> str:
    found = re.search(r'^__version__ = "(.*)"$', (ROOT / "operator/slicebw/__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise LabError("operator/slicebw/__init__.py has no __version__; restore it")
    return found[1]


def _name() -> str:
    return f"slicebw.io/slicebw:{_version()}"


def _build(*, fresh: bool) -> str:
    if os.geteuid() != 0:
        raise LabError("layers of an image belong to root: run it as root, or use docker build or podman build")
    need_disk(_FOLDER, 1000, "building the image")
    with _lock():
        for part in ([str(HACK / "packages"), "image"], [str(HACK / "venv")]):
            if subprocess.run(part, stdout=sys.stderr, check=False).returncode:
                raise LabError(f"{' '.join(part)} failed; see above")
        base = os.environ.get("BASE") or _make_base(fresh=fresh)
        _gather_wheels()
        name = _name()
        _build_layers(name, base)
        _write_archive(name)
    return name


def _lock() -> Lock:
    return Lock(_FOLDER / "lock", "the image's cache")


def _buildah(*arguments: str) -> list[str]:
    """A buildah command line with a store of its own, so that no other image on this machine is seen or touched."""
    driver = os.environ.get("STORAGE_DRIVER") or "overlay"
    store = ("--root", f"{_FOLDER}/storage", "--runroot", str(_RUN), "--storage-driver", driver)
    return ["buildah", *store, *arguments]


def _output(*command: str) -> str:
    """What a command prints. Raises LabError with its complaint."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


# --- base ---


def _make_base(*, fresh: bool) -> str:
    """Make our own base where it is not there, is old, or is to be fresh; its name."""
    inspect = _buildah("inspect", "--type", "image", _OWN_BASE)
    there = not subprocess.run(inspect, capture_output=True, check=False).returncode
    if there and not fresh and not _base_is_old():
        return _OWN_BASE
    if not _fetch_base():
        if there and not fresh:
            log(f"the base is older than 14 days and could not be made anew ({_BASE_LOG}); going on with it")
            return _OWN_BASE
        show_tail(_BASE_LOG)
        raise LabError(f"the base could not be made; its log is {_BASE_LOG}; check apt's mirror and try again")
    if there:
        # All layers stand on the old base.
        _output(*_buildah("rmi", "--all", "--force"))
    step("importing the base")
    context = empty_folder(_FOLDER / "context")
    (_FOLDER / "base.tar").replace(context / "base.tar")
    (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\nENV LANG=C.UTF-8\n")
    _output(*_buildah("bud", "--quiet", "--tag", _OWN_BASE, str(context)))
    remove(context)
    (_FOLDER / "base.made").touch()
    return _OWN_BASE


def _base_is_old() -> bool:
    made = _FOLDER / "base.made"
    return not made.exists() or time.time() - made.stat().st_mtime > _BASE_MAX_AGE_S


def _fetch_base() -> bool:
    """Make base.tar; whether that succeeded."""
    require_bookworm("the image's base")
    step(f"making a base image of Debian {CODENAME} with python3 and nftables (a minute, only now and then)")
    sources, part = _FOLDER / "sources", _FOLDER / "base.tar.part"
    write_sources("deb", sources)
    # No SOURCE_DATE_EPOCH: a file's time may not change once its bytecode, which names the time, is compiled.
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    left_out = ("doc", "man", "info", "locale")
    command = [
        *("mmdebstrap", "--variant=essential", "--include=python3,nftables"),
        # Without merged-usr the package usrmerge comes in, and with it all of Perl.
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in left_out),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        # These are this machine's; where the image runs it gets others.
        '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
        *(CODENAME, str(part)),
        *(str(file) for file in sorted(sources.iterdir())),
    ]
    with _BASE_LOG.open("wb") as output:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
    if done.returncode == 0:
        part.replace(_FOLDER / "base.tar")
    return done.returncode == 0


# --- Python packages ---


def _gather_wheels() -> None:
    """Make build/wheels: exactly what the lock files name."""
    digest = hashlib.sha256(b"".join((ROOT / lock).read_bytes() for lock in _LOCKS)).hexdigest()[:16]
    wheels, target = _FOLDER / f"wheels-{digest}", ROOT / "build" / "wheels"
    if not wheels.is_dir():
        step("downloading the Python packages")
        remove(*_FOLDER.glob("wheels-*"))
        part = wheels.with_name(f"{wheels.name}.part")
        for lock in _LOCKS:
            options = ("--quiet", "--require-hashes", "--no-deps", "--dest", str(part), "-r", str(ROOT / lock))
            command = [str(HACK / "image-pip"), platform.machine(), "download", *options]
            if subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode:
                raise LabError("the Python packages could not be downloaded; check pip's index and try again")
        part.replace(wheels)
    target.parent.mkdir(exist_ok=True)
    remove(target)
    shutil.copytree(wheels, target)


# --- image ---


def _git(*arguments: str) -> str:
    """What git prints; nothing where this is no repository."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _build_layers(name: str, base: str) -> None:
    revision = _git("rev-parse", "HEAD") or "unknown"
    if revision != "unknown" and _git("status", "--porcelain"):
        revision += "-modified"
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct") or f"{time.time():.0f}"
    arguments = {"BASE": base, "VERSION": _version(), "REVISION": revision}
    # As labels too, not as arguments alone: a layer of the Dockerfile's LABEL is taken from the cache whatever the
    # arguments in it have become.
    labels = {"version": _version(), "revision": revision, "base.name": base}
    file = _FOLDER / "build.log"
    remove(file)
    step(f"building {name}")
    run_logged(
        _buildah(
            *("bud", "--isolation", "chroot", "--layers", "--pull=false", "--timestamp", epoch, "--tag", name),
            *(part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")),
            *(part for key, value in labels.items() for part in ("--label", f"org.opencontainers.image.{key}={value}")),
            str(ROOT),
        ),
        file,
        f"the image could not be built; the full log is {file}",
        lines=30,
    )


def _write_archive(name: str) -> None:
    """Write the archive where it is not that of this image already; it appears when it is whole."""
    known = _OUTPUT.with_name(f"{_OUTPUT.name}.id")
    made = _output(*_buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", name))
    shown = _OUTPUT.relative_to(ROOT)
    if _OUTPUT.exists() and known.exists() and known.read_text().strip() == made:
        log(f"{shown} is up to date")
        return
    step(f"writing {shown}")
    part = _OUTPUT.with_name(f"{_OUTPUT.name}.part")
    remove(part, known)
    _output(*_buildah("push", "--quiet", name, f"docker-archive:{part}:{name}"))
    part.replace(_OUTPUT)
    known.write_text(f"{made}\n")
    log(f"{name}: {_OUTPUT.stat().st_size // 1_000_000} MB")


def _clean() -> None:
    if not _FOLDER.is_dir():
        return
    with _lock():
        if (_FOLDER / "storage").is_dir() and shutil.which("buildah"):
            subprocess.run(_buildah("rmi", "--all", "--force"), capture_output=True, check=False)
        # With --one-file-system an overlay that is still mounted stays, and rm says so.
        remove(_FOLDER, _RUN)
