"""Makes container images from Debian packages alone: no registry, no container tools, no root.

Usage:
  hack/cluster-images pause      the image that keeps a pod's namespaces, compiled from Kubernetes' own source
  hack/cluster-images workload   slicebw.io/test-workload:bookworm, what tests run as pods: iperf3, curl,
                         ping, and busybox (sh, nc, wget, httpd ...) as the usual commands

Prints the path of a docker-archive, made once and kept in $SLICEBW_CACHE (default: ~/.cache/slicebw):
something for hack/cluster load, ctr images import, docker load.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hack.lab.console import Parser, UsageError, run_logged, step
from hack.lab.debian import CODENAME, apt_get, require_bookworm
from hack.lab.files import CACHE, Lock, empty_folder, remove
from hack.lab.kubernetes import VERSION, build

PAUSE: Final = f"slicebw.io/pause:{VERSION}"
WORKLOAD: Final = f"slicebw.io/test-workload:{CODENAME}"
_PACKAGES: Final = ("busybox-static", "curl", "iperf3", "iputils-ping")
_IMAGES: Final = CACHE / "images"


def main(arguments: Sequence[str]) -> int:
    """Make an image, and print its path."""
    parser = Parser(prog="hack/cluster-images", description=__doc__)
    parser.add_argument("image")
    name = parser.parse_args(arguments).image
    if name not in ("pause", "workload"):
        raise UsageError(f"no such image: {name} (there are: pause, workload)")
    print(make(name))
    return 0


def make(name: str) -> Path:
    """Make an image where it is not made yet; its archive. An image of another version of this file is another one."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    archive = _IMAGES / f"{name}-{version}.tar"
    if archive.exists():
        return archive
    require_bookworm(f"the image {name}")
    with Lock(_IMAGES / "lock", "the making of images"):
        if not archive.exists():
            step(f"making the image {name}")
            work = empty_folder(archive.with_name(f"{archive.name}.work"))
            (work / "root").mkdir()
            files = _pause(work) if name == "pause" else _workload(work)
            remove(*_IMAGES.glob(f"{name}-*.tar"))
            new = archive.with_name(f"{archive.name}.new")
            subprocess.run(["tar", "-C", str(files), "-cf", str(new), "."], check=True)
            new.replace(archive)
            remove(work)
    return archive


def _pause(work: Path) -> Path:
    shutil.copy2(build("pause") / "pause", work / "root" / "pause")
    return _archive(work, PAUSE, {"Entrypoint": ["/pause"], "User": "65535:65535"})


def _workload(work: Path) -> Path:
    root, file = work / "root", work / "log"
    _unpack_with_dependencies(work, root, file)
    for pattern in ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "usr/share/perl*"):
        remove(*root.glob(pattern))
    remove(*root.glob("usr/lib/*/gconv"), *root.glob("usr/lib/*/perl*"))
    listed = subprocess.run([str(root / "bin/busybox"), "--list"], capture_output=True, text=True, check=True)
    for command in listed.stdout.split():
        if not any((root / folder / command).exists() for folder in ("bin", "usr/bin")):
            (root / "bin" / command).symlink_to("busybox")
    for folder in ("tmp", "root"):
        (root / folder).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return _archive(work, WORKLOAD, {"Cmd": ["/bin/sh"], "Env": [path]})


def _unpack_with_dependencies(work: Path, root: Path, file: Path) -> None:
    apt, failure = work / "apt", "fetching the packages of the image failed; check apt's mirror and try again"
    apt.mkdir()
    # An empty list of what is installed makes apt fetch all that they depend on.
    (apt / "status").touch()
    options = ("-o", f"Dir::State::status={apt}/status", "-o", "Debug::NoLocking=true")
    run_logged(apt_get(apt, "deb", *options, "update"), file, failure)
    fetch = ("install", "--yes", "--no-install-recommends", "--download-only", *_PACKAGES)
    run_logged(apt_get(apt, "deb", *options, *fetch), file, failure)
    # Their maintainer scripts do not run; what is here needs none of them.
    for package in (apt / "cache/archives").glob("*.deb"):
        run_logged(["dpkg-deb", "-x", str(package), str(root)], file, failure)


def _archive(work: Path, tag: str, config: Mapping[str, Any]) -> Path:
    """Make the files of a docker-archive from the tree in WORK/root; their folder.

    Args:
        work: the working folder.
        tag: the image's name.
        config: how the image is run: ``Entrypoint``, ``Env`` and so on.
    """
    archive = work / "archive"
    archive.mkdir()
    same_everywhere = ("--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0")
    layer = archive / "layer.tar"
    subprocess.run(["tar", "-C", str(work / "root"), "-cf", str(layer), *same_everywhere, "."], check=True)
    shown = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    document = {
        "architecture": shown.stdout.strip(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer.read_bytes())}"]},
        "history": [{"created_by": "hack/cluster-images"}],
    }
    text = json.dumps(document)
    name = f"{_sha256(text.encode())}.json"
    (archive / name).write_text(text)
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]
    (archive / "manifest.json").write_text(json.dumps(manifest))
    return archive


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
