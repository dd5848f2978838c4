"""The built image, unpacked, and containers of it as a kubelet would have them run: runc, and a read-only root."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.support.processes import ROOT
from tests.support.topology import wait_until

ARCHIVE: Final = ROOT / "build" / "slicebw-image.tar"
NOBODY: Final = 65532

_NUMBERS: Final = itertools.count()


def _checked(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Image:
    """The image that ``make image`` has built. ``config``: its OCI configuration; ``files``: where it is unpacked."""

    def __init__(self, folder: Path) -> None:
        """Build the image if needed, and unpack it."""
        self._folder = folder
        self.name = _checked(str(ROOT / "hack" / "image")).strip()
        layout = f"oci:{folder / 'layout'}:image"
        _checked("skopeo", "copy", "--quiet", f"docker-archive:{ARCHIVE}:{self.name}", layout)
        self.config: dict[str, Any] = json.loads(_checked("skopeo", "inspect", "--config", layout))["config"]
        _checked("umoci", "unpack", "--image", f"{folder / 'layout'}:image", str(folder / "bundle"))
        self.files = folder / "bundle" / "rootfs"
        self._runtime: dict[str, Any] = json.loads((folder / "bundle" / "config.json").read_text())

    def container(self, *arguments: str, **settings: Any) -> "Container":
        """Return a container that runs the image's entry point. ``settings``: fields of :class:`Settings`."""
        return self._container([*self.config["Entrypoint"], *arguments], Settings(**settings))

    def program(self, *command: str, **settings: Any) -> "Container":
        """Return a container that runs another program of the image."""
        return self._container(list(command), Settings(**settings))

    def _container(self, command: Sequence[str], settings: "Settings") -> "Container":
        number = next(_NUMBERS)
        bundle = self._folder / f"container-{number}"
        bundle.mkdir()
        spec = settings.applied(self._runtime, command, self.files)
        (bundle / "config.json").write_text(json.dumps(spec))
        return Container(f"slicebw-test-{os.getpid()}-{number}", bundle)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a container in a pod's manifest.

    ``user`` is the image's where it is None; ``writable`` are folders bound to paths inside, and nothing else can be
    written; ``network`` is the path of a network namespace, None an empty one of its own.
    """

    user: int | None = None
    capabilities: tuple[str, ...] = ()
    network: str | None = None
    writable: Mapping[Path, str] | None = None

    def applied(self, runtime: Mapping[str, Any], command: Sequence[str], root: Path) -> dict[str, Any]:
        """Return an OCI runtime configuration, made from that of the image."""
        spec: dict[str, Any] = json.loads(json.dumps(runtime))
        process = spec["process"]
        process.update(args=list(command), terminal=False, noNewPrivileges=True)
        if self.user is not None:
            process["user"] = {"uid": self.user, "gid": self.user}
        # As containerd does: none are ambient, so the kernel gives them only to root when the program starts.
        held = list(self.capabilities)
        process["capabilities"] = {"bounding": held, "permitted": held, "effective": held}
        spec["root"] = {"path": str(root), "readonly": True}
        # No limits, so that it does not matter which cgroups this machine has.
        spec["linux"].pop("resources", None)
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"]
        for outside, inside in (self.writable or {}).items():
            spec["mounts"].append(
                {"destination": inside, "type": "bind", "source": str(outside), "options": ["bind", "rw"]}
            )
        for namespace in spec["linux"]["namespaces"]:
            if namespace["type"] == "network" and self.network is not None:
                namespace["path"] = self.network
        return spec


class Container:
    """One container. As a context manager it runs in the background; :meth:`run` waits until it ends."""

    def __init__(self, name: str, bundle: Path) -> None:
        """Prepare the container; nothing runs yet."""
        self._name = name
        self._bundle = bundle
        self._log = bundle / "log"
        self._runc = ("runc", "--root", str(bundle / "runc"))
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> "subprocess.CompletedProcess[str]":
        """Run it until it ends."""
        command = [*self._runc, "run", "--bundle", str(self._bundle), self._name]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        finally:
            self._delete()

    def __enter__(self) -> "Container":
        """Start it."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._runc, "run", "--bundle", str(self._bundle), self._name], stdout=log, stderr=log
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it if it still runs. Print its log if the test has failed."""
        self._delete()
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        if error is not None:
            sys.stderr.write(f"--- {self._name} ---\n{self.log()[-6000:]}\n")

    def execute(self, *command: str) -> str:
        """Run another program inside, as ``kubectl exec`` does. Returns its output."""
        return _checked(*self._runc, "exec", self._name, *command)

    def until_logged(self, words: str) -> None:
        """Wait until its log contains a text."""
        assert self._process is not None
        process = self._process
        wait_until(lambda: words in self.log() or process.poll() is not None, f"the log says: {words}", 30)
        assert words in self.log(), self.log()

    def stop(self) -> int:
        """Send SIGTERM, as the kubelet does. Returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)  # runc passes it on
        return self._process.wait(30)

    def log(self) -> str:
        """Return its log."""
        return self._log.read_text()

    def _delete(self) -> None:
        with suppress(FileNotFoundError):
            subprocess.run([*self._runc, "delete", "--force", self._name], capture_output=True, check=False)
