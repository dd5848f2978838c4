"""Builds Kubernetes from Debian's source package, once, and keeps the binaries in a cache.

Usage:
  hack/kubernetes build [COMPONENT...]   build what is not built yet (default: kube-apiserver
                                         kubectl), print the folder that holds the binaries
  hack/kubernetes path                   print that folder, built or not
  hack/kubernetes clean                  remove the source tree and the compiler's cache, keep
                                         the binaries

COMPONENT is one of: kube-apiserver kubectl kubelet kube-controller-manager kube-scheduler pause
(pause: what keeps a pod's namespaces, as a static program to make an image of)

Needs Debian 12, and root if packages are missing (golang-go, make, rsync, ...). The first build
takes about 5 minutes on 2 cores and 2.2 GB in $SLICEBW_CACHE (default: ~/.cache/slicebw), of which
clean frees all but 150 MB. Interrupt it whenever you like: the next run goes on where it stopped.
With everything built, build uses neither network nor root.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from hack.lab.console import LabError, Parser, UsageError, log, run_logged, show_tail, step
from hack.lab.debian import apt_get, need_packages, require_bookworm
from hack.lab.files import CACHE, Lock, empty_folder, need_disk, remove

VERSION: Final = "1.20.2"
"""What bookworm has, and will have: only fixes are added to a released Debian."""
COMPONENTS: Final = ("kube-apiserver", "kubectl", "kubelet", "kube-controller-manager", "kube-scheduler", "pause")
PACKAGES: Final = (
    *("ca-certificates", "dpkg-dev", "gcc", "golang-github-modern-go-reflect2-dev", "golang-go", "jq", "libc6-dev"),
    *("make", "rsync", "xz-utils"),
)

_FOLDER: Final = CACHE / f"kubernetes-{VERSION}"
BIN: Final = _FOLDER / "bin"
_WORK: Final = _FOLDER / "build"
_TEMPORARY: Final = _WORK / "tmp"
_SOURCE: Final = _WORK / "src"
_LOG: Final = _FOLDER / "build.log"
_REFLECT2: Final = "github.com/modern-go/reflect2"
_PROGRESS_S: Final = 15.0


def main(arguments: Sequence[str]) -> int:
    """Run a command."""
    parser = Parser(prog="hack/kubernetes", description=__doc__)
    commands = parser.add_commands("build", "path", "clean")
    commands["build"].add_argument("components", nargs="*")
    options = parser.parse_args(arguments)
    if options.command == "build":
        print(build(*(options.components or ("kube-apiserver", "kubectl"))))
    elif options.command == "path":
        print(BIN)
    elif _FOLDER.is_dir():
        with _lock():
            remove(_WORK)
    return 0


def build(*components: str) -> Path:
    """Build those components that are not built yet; the folder that holds the binaries."""
    for component in components:
        if component not in COMPONENTS:
            raise UsageError(f"no such component: {component} (there are: {' '.join(COMPONENTS)})")
    if _missing(components):
        require_bookworm(f"Kubernetes {VERSION}")
        with _lock() as lock:
            # Somebody else may have built them while we waited for the lock.
            missing = _missing(components)
            if missing:
                _build(missing, lock)
    return BIN


def _lock() -> Lock:
    return Lock(_FOLDER / "lock", f"the build of Kubernetes {VERSION}")


def _missing(components: Sequence[str]) -> list[str]:
    return [component for component in components if not os.access(BIN / component, os.X_OK)]


def _build(components: Sequence[str], lock: Lock) -> None:
    step(f"building Kubernetes {VERSION}: {' '.join(components)} (some minutes, only this once)")
    # As measured: 0.3 GB of source; with compiler's cache and binaries 2.2 GB for the default two components, 3.3 GB
    # for all five.
    need_disk(_FOLDER, 1500 if _SOURCE.is_dir() else 3500, "building Kubernetes")
    need_packages(*PACKAGES)
    _TEMPORARY.mkdir(parents=True, exist_ok=True)
    resumed = _SOURCE.is_dir()
    if not resumed:
        _unpack()
    if not _compile(components, lock):
        # A build that was cut short can leave a generated file half written. Only a fresh tree tells whether the
        # failure is that or real.
        if resumed:
            log("the build that was interrupted earlier cannot be completed; starting it afresh")
            remove(_SOURCE)
            _unpack()
        if not resumed or not _compile(components, lock):
            show_tail(_LOG, 30)
            raise LabError(f"compiling {' '.join(components)} failed; the full log is {_LOG}")
    _publish(components)


def _unpack() -> None:
    """Fetch the source and make the tree of it: either the whole tree is there, patched, or none of it."""
    step("fetching the source package kubernetes (35 MB)")
    apt, tree = empty_folder(_TEMPORARY) / "apt", _TEMPORARY / "tree"
    remove(_LOG)
    failure = f"fetching the source package failed; the log is {_LOG}; check apt's mirror and try again"
    run_logged(apt_get(apt, "deb-src", "update"), _LOG, failure)
    run_logged(apt_get(apt, "deb-src", "source", "--download-only", "kubernetes"), _LOG, failure, cwd=_TEMPORARY)
    (description,) = _TEMPORARY.glob("kubernetes_*.dsc")
    found = re.search(r"^Version: (.*)$", description.read_text(), re.MULTILINE)
    packaged = found[1] if found else "none"
    if f"{VERSION}-" not in packaged:
        raise LabError(f"expected the source of Kubernetes {VERSION}, Debian has {packaged}: adapt {__file__}")

    step(f"unpacking kubernetes {packaged}")
    # --no-check: apt has checked the archive's signature and the files' sums; this would need the packager's key.
    unpack = ["dpkg-source", "--no-check", "-x", str(description), str(tree)]
    run_logged(unpack, _LOG, f"unpacking failed; the log is {_LOG}")
    _patch(tree)
    tree.replace(_SOURCE)
    empty_folder(_TEMPORARY)


def _patch(tree: Path) -> None:
    # The vendored reflect2 (1.0.1) reaches into the runtime in a way that Go 1.18 ended: the API server crashes at its
    # first custom resource. Debian packages the version that does not.
    vendored = tree / "vendor" / _REFLECT2
    remove(vendored)
    shutil.copytree(Path("/usr/share/gocode/src") / _REFLECT2, vendored)
    major, minor, _ = VERSION.split(".")
    script = (tree / "hack" / "lib" / "version.sh").read_text()
    commit = re.search(r"^ *KUBE_GIT_COMMIT='([0-9a-f]*)'$", script, re.MULTILINE)
    values = {
        "COMMIT": commit[1] if commit else "",
        "TREE_STATE": "archive",
        "VERSION": f"v{VERSION}",
        "MAJOR": major,
        "MINOR": minor,
    }
    (tree / "slicebw-version").write_text("".join(f"KUBE_GIT_{name}='{value}'\n" for name, value in values.items()))
    (tree / ".go/src/k8s.io").mkdir(parents=True)
    (tree / ".go/src/k8s.io/kubernetes").symlink_to("../../..")


def _compile(components: Sequence[str], lock: Lock) -> bool:
    if "pause" in components and not _compile_pause():
        return False
    targets = [component for component in components if component != "pause"]
    return not targets or _compile_go(targets, lock)


def _compile_pause() -> bool:
    """As build/pause/Makefile does, for which it needs docker."""
    step("compiling pause")
    binary = _SOURCE / "_output/bin/pause"
    binary.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-Os", "-Wall", "-static", f"-DVERSION=v{VERSION}", "-o", str(binary)]
    with _LOG.open("ab") as output:
        source = str(_SOURCE / "build/pause/linux/pause.c")
        return not subprocess.run([*command, source], stdout=output, stderr=output, check=False).returncode


def _compile_go(components: Sequence[str], lock: Lock) -> bool:
    step(f"compiling {' '.join(components)} (log: {_LOG})")
    # An environment of its own: GOFLAGS, GOROOT and the like of whoever calls must not get in, nor another Go that
    # comes first in PATH. With the date fixed, an interrupted build links nothing twice.
    environment = {
        "HOME": str(_TEMPORARY),
        "TMPDIR": str(_TEMPORARY),
        "PATH": "/usr/lib/go/bin:/usr/bin:/bin",
        "GOPATH": str(_SOURCE / ".go"),
        "GO111MODULE": "off",
        "GOPROXY": "off",
        "CGO_ENABLED": "0",
        "KUBE_GIT_VERSION_FILE": str(_SOURCE / "slicebw-version"),
        "SOURCE_DATE_EPOCH": "1610582400",
    }
    with _LOG.open("ab") as output:
        compiler = subprocess.Popen(
            ["make", "WHAT=" + " ".join(f"cmd/{component}" for component in components)],
            cwd=_SOURCE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that all of it can be ended
            pass_fds=(lock.descriptor,),  # should this program be killed, the next one waits for the compiler
        )
    try:
        return _watch(compiler)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(compiler.pid, signal.SIGTERM)
        compiler.wait()
        log("interrupted; run it again to go on from here")
        raise


def _watch(compiler: "subprocess.Popen[bytes]") -> bool:
    """Wait for the compiler, and say what it is at; whether it succeeded."""
    started_s = time.monotonic()
    while True:
        try:
            return compiler.wait(_PROGRESS_S) == 0
        except subprocess.TimeoutExpired:
            log(f"compiling for {time.monotonic() - started_s:.0f}s: {_now_compiling(compiler.pid)}")


def _now_compiling(session: int) -> str:
    """The log says little while most of the time passes; the running compiler's command line says more."""
    shown = subprocess.run(["ps", "--sid", str(session), "-o", "args="], capture_output=True, text=True, check=False)
    found = re.search(r"/compile .* -p (\S+) ", shown.stdout)
    if found:
        return found[1]
    lines = _LOG.read_text(errors="replace").splitlines()
    return lines[-1].strip() if lines else "starting"


def _publish(components: Sequence[str]) -> None:
    """Put each binary in its place in one step, after it has shown that it runs."""
    options = {"kubectl": ("version", "--client"), "pause": ("-v",)}
    BIN.mkdir(parents=True, exist_ok=True)
    for component in components:
        built = _TEMPORARY / component
        shutil.copy2(_SOURCE / "_output/bin" / component, built)
        command = [str(built), *options.get(component, ("--version",))]
        reported = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if f"v{VERSION}" not in reported:
            raise LabError(f"the {component} that was built reports '{reported.strip()}', not v{VERSION}")
        built.replace(BIN / component)
    step(f"built {' '.join(components)} in {BIN}")
    log(
        f"kept the source and the compiler's cache in {_WORK}, with which another component builds in a third of"
        " the time; to remove them: hack/kubernetes clean"
    )
