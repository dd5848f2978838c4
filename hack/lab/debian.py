"""Packages of Debian 12: installed where a program needs them, or fetched and unpacked without being installed.

As a program (``hack/lab unpack NAME PACKAGE...``) see ``hack.lab.unpack``.
"""

import os
import platform
import pwd
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hack.lab.console import LabError, run_logged, step
from hack.lab.files import CACHE, HACK, Lock, empty_folder, remove

CODENAME: Final = "bookworm"
"""The only release whose packages these programs know."""
_APT: Final = Path("/etc/apt")


def require_bookworm(what: str) -> None:
    """Raise LabError on any other system than Debian 12."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    if (release.get("ID"), release.get("VERSION_CODENAME")) != ("debian", CODENAME):
        name = release.get("PRETTY_NAME", "another system")
        raise LabError(
            f"{what} comes from the packages of Debian 12 ({CODENAME}), and this is {name};"
            " set KUBEBUILDER_ASSETS to a folder that holds etcd, kube-apiserver and kubectl instead"
        )


def need_packages(*packages: str) -> None:
    """Install what is missing (hack/packages). Raises LabError where that fails; its complaint is on stderr."""
    done = subprocess.run([str(HACK / "packages"), "these", *packages], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise LabError(f"these packages are needed: {' '.join(packages)}; see above why they are not installed")


def write_sources(kind: str, folder: Path) -> None:
    """Write apt's sources of our release, as this machine is configured with them.

    Args:
        kind: deb or deb-src, in place of the type given there.
        folder: for ``debian.sources`` and ``debian.list``.
    """
    stanzas = [stanza for file in _apt_files("*.sources") for stanza in deb822_sources(file.read_text(), kind)]
    one_line = [_APT / "sources.list", *_apt_files("*.list")]
    lines = [line for file in one_line if file.exists() for line in oneline_sources(file.read_text(), kind)]
    if not stanzas and not lines:
        raise LabError(f"apt is not configured with a mirror of Debian {CODENAME}; add one to /etc/apt/sources.list")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "debian.sources").write_text("".join(f"{stanza}\n\n" for stanza in stanzas))
    (folder / "debian.list").write_text("".join(f"{line}\n" for line in lines))


def _apt_files(pattern: str) -> Sequence[Path]:
    return sorted((_APT / "sources.list.d").glob(pattern))


def deb822_sources(text: str, kind: str) -> Iterator[str]:
    """Those stanzas of a .sources file that are our release's main component, with their options (keyring, trust)."""
    for stanza in re.split(r"\n\s*\n", text):
        fields = {
            name.strip().lower(): value.lower().split()
            for name, colon, value in (line.partition(":") for line in stanza.splitlines())
            if colon and not name.startswith("#")
        }
        ours = any(re.fullmatch(rf"{CODENAME}(-updates|-security)?", suite) for suite in fields.get("suites", ()))
        binary = "deb" in fields.get("types", ()) and "main" in fields.get("components", ())
        off = set(fields.get("enabled", ())) & {"no", "false", "0", "off"}
        if ours and binary and not off:
            yield re.sub(r"(?im)^types:.*$", f"Types: {kind}", stanza.strip("\n"))


def oneline_sources(text: str, kind: str) -> Iterator[str]:
    """Those lines of a .list file that are our release's main component, with their options."""
    ours = re.compile(
        rf"deb(?=[ \t]+(\[[^]]*\][ \t]+)?\S+[ \t]+{CODENAME}(-updates|-security)?[ \t](.*[ \t])?main([ \t]|$))"
    )
    for line in text.splitlines():
        if ours.match(line):
            yield ours.sub(kind, line, count=1)


def apt_get(folder: Path, kind: str, *arguments: str) -> list[str]:
    """An apt-get command line with lists and sources of its own in a folder; needs no root.

    Args:
        folder: made if it is not there.
        kind: deb or deb-src.
        arguments: of apt-get.
    """
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_sources(kind, folder / "sources")
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": f"{folder}/sources",
        "Dir::State::lists": f"{folder}/lists",
        "Dir::Cache": f"{folder}/cache",
        # apt's own user usually cannot enter somebody's cache folder, and apt says so at length.
        "APT::Sandbox::User": pwd.getpwuid(os.getuid()).pw_name,
    }
    return ["apt-get", "-q", *(part for item in options.items() for part in ("-o", "=".join(item))), *arguments]


def unpack_packages(name: str, *packages: str) -> Path:
    """The folder in the cache where these packages are unpacked, fetched if need be.

    They are not installed, because installing would start some of them as services of this machine.
    """
    root = CACHE / f"{name}-{CODENAME}"
    if root.is_dir():
        return root
    require_bookworm(name)
    need_packages("ca-certificates")
    with Lock(CACHE / f"{name}.lock", f"the download of {name}"):
        if not root.is_dir():
            step(f"fetching the packages {' '.join(packages)}")
            _fetch(root, packages)
    return root


def _fetch(root: Path, packages: Sequence[str]) -> None:
    new, file = root.with_name(f"{root.name}.new"), root.with_name(f"{root.name}.log")
    failure = f"fetching {' '.join(packages)} failed; the log is {file}; check apt's mirror and try again"
    remove(file)
    empty_folder(new)
    run_logged(apt_get(new / "apt", "deb", "update"), file, failure)
    run_logged(apt_get(new / "apt", "deb", "download", *packages), file, failure, cwd=new)
    (new / "root").mkdir()
    for package in new.glob("*.deb"):
        run_logged(["dpkg-deb", "-x", str(package), str(new / "root")], file, failure)
    (new / "root").replace(root)
    remove(new)
