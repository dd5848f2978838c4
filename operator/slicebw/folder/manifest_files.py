"""Reads the files of a folder. An invalid file keeps the objects of its last good content."""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Final

from slicebw.core.desired import Pod
from slicebw.folder.disk import STATUS, reason, write_atomically
from slicebw.folder.manifest_parser import Content, Identity, Manifest, Problem, read

log = logging.getLogger(__name__)

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_BYTES: Final = 64 * 1024**2
"""Of one file. A dump of 5,000 SliceBandwidths has about 10 MB."""
SETTLE_S: Final = 0.1
"""A file is read, or taken as removed, only when two scans with this pause in between agree. So half-written files are
not read, and an editor that moves a file away before it writes the new one removes nothing."""
SETTLE_SCANS: Final = 20
"""After so many scans the settled files are read, and the others are left for the next refresh."""

_Signature = tuple[int, ...]
_UNKNOWN: Final[_Signature] = ()
"""Of a file that exists but cannot be examined."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file. ``complete``: ``manifests`` are all objects of its content, or of its last good content."""

    signature: _Signature | None = None
    manifests: Mapping[Identity, Manifest] = field(default_factory=dict)
    complete: bool = False
    warning: str = ""


class Source:
    """All YAML and JSON files below a folder, except hidden ones and those below ``status``.

    Symbolic links to files are followed, because a mounted ConfigMap consists of them. Links to folders are not.

    Args:
        folder: has the files.
        backups: a folder for copies of valid files. With them an invalid file keeps its objects over a restart, too.
    """

    def __init__(self, folder: Path, backups: Path) -> None:
        self.files: dict[str, SourceFile] = {}
        self._folder = folder
        self._backups = _Backups(backups)
        self._unlisted: set[str] = set()
        self._started = False

    def refresh(self, pause: Callable[[float], bool]) -> bool:
        """Read files that have changed, and log what is wrong in them. Return whether there were changes.

        Args:
            pause: waits for so many seconds. Returns true if the refresh is to be abandoned.
        """
        seen = self._scan()
        if self._started and not self._changed(seen):
            return False
        moving: set[str] = set()
        for _ in range(SETTLE_SCANS):
            if pause(SETTLE_S):
                return False
            again = self._scan()
            moving = {path for path in seen.keys() | again.keys() if seen.get(path) != again.get(path)}
            seen = again
            if not moving:
                break
        for path in sorted(self._changed(seen) - moving):
            if path in seen:
                self._read(path)
            else:
                self._remove(path)
        if not self._started:
            self._started = True
            # Without their last good content the first state would lack objects, and it counts as complete.
            for path in moving:
                self._keep_invalid(path, None, Content(problems=[Problem(1, "is still being written")]))
            self._backups.keep_only(self.files)
        return True

    def _changed(self, seen: Mapping[str, _Signature]) -> set[str]:
        gone = self.files.keys() - seen.keys()
        return {path for path, signature in seen.items() if self._signature(path) != signature} | gone

    def _signature(self, path: str) -> _Signature | None:
        known = self.files.get(path)
        return None if known is None else known.signature

    def _scan(self) -> dict[str, _Signature]:
        """Return the signature of each file. Files in a folder that cannot be listed count as unchanged."""
        seen: dict[str, _Signature] = {}
        unlisted: dict[str, str] = {}

        def on_error(error: OSError) -> None:
            where = os.path.relpath(error.filename, self._folder)
            # A subfolder that does not exist was removed during the scan. If the whole folder is away, its files stay.
            if where == os.curdir or not isinstance(error, FileNotFoundError):
                unlisted[where] = reason(error)

        for where, folders, names in os.walk(self._folder, onerror=on_error):
            inner = os.path.relpath(where, self._folder)
            folders[:] = [one for one in folders if not one.startswith(".") and (inner, one) != (os.curdir, STATUS)]
            for name in names:
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    path = os.path.normpath(os.path.join(inner, name))  # noqa: PTH118 - a Path for each is slow
                    signature = self._examine(path)
                    if signature is not None:
                        seen[path] = signature
        self._log_unlisted(unlisted)
        for path, known in self.files.items():
            if known.signature is not None and any(_is_below(path, where) for where in unlisted):
                seen.setdefault(path, known.signature)
        return seen

    def _examine(self, path: str) -> _Signature | None:
        """Return a value that differs after each change of a file, or None if there is no such file."""
        try:
            status = os.stat(self._folder / path)  # noqa: PTH116 - one call for each file, each second
        except FileNotFoundError:
            return None
        except OSError:
            return _UNKNOWN
        return _signature(status) if S_ISREG(status.st_mode) else None

    def _log_unlisted(self, unlisted: Mapping[str, str]) -> None:
        for where in unlisted.keys() - self._unlisted:
            folder = self._folder / where
            log.error("%s cannot be listed: %s; the objects of its files stay in force", folder, unlisted[where])
        self._unlisted = set(unlisted)

    def _read(self, path: str) -> None:
        """Read one file. One that changes meanwhile is left for the next refresh."""
        try:
            with (self._folder / path).open("rb") as file:
                signature = _signature(os.fstat(file.fileno()))
                data = file.read(MAX_BYTES + 1)
                if _signature(os.fstat(file.fileno())) != signature:
                    return
        except FileNotFoundError:
            return
        except OSError as error:  # stored without a signature, so that each refresh tries again
            self._keep_invalid(path, None, Content(problems=[Problem(1, f"cannot be read: {reason(error)}")]))
            return
        content = _content(path, data)
        if not data.strip() and self._last_good(path) is not None:
            # With `command > file` the shell empties the file before the command writes to it.
            content.problems.append(Problem(1, "is empty: to remove its objects, delete the file"))
        if content.problems:
            self._keep_invalid(path, signature, content)
        else:
            self._keep_valid(path, signature, data, content)

    def _keep_valid(self, path: str, signature: _Signature, data: bytes, content: Content) -> None:
        before = self.files.get(path)
        self.files[path] = SourceFile(signature, content.manifests, complete=True)
        if before is not None and before.warning:
            log.info("%s is valid again: %s", shown_path(path), counted(len(content.manifests)))
        if content.ignored:
            log.debug("%s: objects of other kinds ignored: %s", shown_path(path), content.ignored)
        for manifest in content.manifests.values():
            if not isinstance(manifest.value, Pod) and manifest.value.errors:
                errors = "; ".join(manifest.value.errors)
                log.error("%s:%d: %s: %s", shown_path(path), manifest.line, manifest.identity, errors)
        self._backups.keep(path, data if content.manifests else None)

    def _keep_invalid(self, path: str, signature: _Signature | None, content: Content) -> None:
        """Log what is wrong, once, and keep the last good content. A file without one gives its valid objects."""
        before = self.files.get(path, SourceFile())
        last_good = self._last_good(path)
        if last_good is not None:
            kept = f"its last good content stays in force ({counted(len(last_good))})"
        else:
            kept = f"its valid objects are used ({counted(len(content.manifests))})"
        first, more = content.problems[0], len(content.problems) - 1
        others = f" (and {more} more problems)" if more else ""
        warning = f"{shown_path(path)}:{first.line}: {first.text}{others}; {kept}"
        if warning != before.warning:
            log.error("%s", warning)
        manifests = content.manifests if last_good is None else last_good
        self.files[path] = SourceFile(signature, manifests, last_good is not None, warning)

    def _last_good(self, path: str) -> Mapping[Identity, Manifest] | None:
        """Return the objects of the file's last good content, or None if it never was valid or had no objects."""
        known = self.files.get(path)
        if known is not None:
            return known.manifests if known.complete and known.manifests else None
        data = self._backups.read(path)
        content = Content() if data is None else _content(path, data)
        return content.manifests if content.manifests and not content.problems else None

    def _remove(self, path: str) -> None:
        log.info("%s was removed, with %s", shown_path(path), counted(len(self.files[path].manifests)))
        del self.files[path]
        self._backups.keep(path, None)


def shown_path(path: str) -> str:
    """Return a path for a log line. Line breaks and the like are escaped."""
    return path if path.isprintable() else ascii(path)


def counted(objects: int) -> str:
    """Return ``1 object`` or ``2 objects``."""
    return f"{objects} object" if objects == 1 else f"{objects} objects"


def _content(path: str, data: bytes) -> Content:
    if len(data) > MAX_BYTES:
        return Content(problems=[Problem(1, f"is too big: at most {MAX_BYTES} bytes")])
    return read(data, is_json=path.endswith(".json"))


def _signature(status: os.stat_result) -> _Signature:
    # The change time differs even after an edit that keeps size and modification time.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_below(path: str, folder: str) -> bool:
    return folder == os.curdir or path.startswith(f"{folder}/")


class _Backups:
    """Copies of valid files, under names that no tool takes for manifests. A failed write only costs the copy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, path: str, data: bytes | None) -> None:
        """Store a copy of a file's content. None removes it."""
        copy = self._copy(path)
        try:
            if data is None:
                copy.unlink(missing_ok=True)
            elif self.read(path) != data:
                write_atomically(copy, data)
        except OSError as error:
            log.debug("no copy of %s: %s", shown_path(path), reason(error))

    def read(self, path: str) -> bytes | None:
        """Return the stored content of a file, or None if there is none."""
        try:
            return self._copy(path).read_bytes()
        except OSError:
            return None

    def keep_only(self, paths: Mapping[str, object]) -> None:
        """Remove the copies of all other files."""
        wanted = {self._copy(path) for path in paths}
        with suppress(OSError):
            for copy in self._folder.iterdir():
                if copy not in wanted:
                    copy.unlink()

    def _copy(self, path: str) -> Path:
        return self._folder / hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
