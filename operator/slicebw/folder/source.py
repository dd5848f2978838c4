"""The files of a folder and what each of them gives: the last good content of those that are broken."""

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
from slicebw.folder.manifests import Content, Identity, Manifest, Problem, read

log = logging.getLogger(__name__)

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_BYTES: Final = 64 * 1024**2
"""Of one file; a dump of 5,000 SliceBandwidths has about 10 MB."""
SETTLE_S: Final = 0.1
"""A file must look the same twice, this far apart, before it is read (or believed to be gone): half-written files are
left alone, and editors that move a file away before they write the new one delete nothing."""
SETTLE_LOOKS: Final = 20
"""After so many looks, what has settled is read, and what has not is left for later."""

_Signature = tuple[int, ...]
_UNKNOWN: Final[_Signature] = ()
"""Of a file that is there but cannot be looked at."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file. ``complete``: ``manifests`` is all of what it says, or said when it was last right."""

    signature: _Signature | None = None
    manifests: Mapping[Identity, Manifest] = field(default_factory=dict)
    complete: bool = False
    complaint: str = ""


class Source:
    """All files below a folder, apart from its ``status``, hidden ones, and those that are neither YAML nor JSON.

    Symbolic links to files are followed (a mounted ConfigMap is made of them), links to folders are not.

    Args:
        folder: where the files are.
        memory: where copies of good files are kept, so that a file broken now gives what it gave, restarts included.
    """

    def __init__(self, folder: Path, memory: Path) -> None:
        self.files: dict[str, SourceFile] = {}
        self._folder = folder
        self._memory = _Memory(memory)
        self._unlisted: set[str] = set()
        self._started = False

    def refresh(self, pause: Callable[[float], bool]) -> bool:
        """Look for changes and take them in; whether there were any. Says in the log what is wrong with which file.

        Args:
            pause: waits for so many seconds; true where the wait is to be broken off.
        """
        seen = self._scan()
        if self._started and not self._changed(seen):
            return False
        moving: set[str] = set()
        for _ in range(SETTLE_LOOKS):
            if pause(SETTLE_S):
                return False
            again = self._scan()
            moving = {path for path in seen.keys() | again.keys() if seen.get(path) != again.get(path)}
            seen = again
            if not moving:
                break
        for path in sorted(self._changed(seen) - moving):
            if path in seen:
                self._take(path)
            else:
                self._drop(path)
        if not self._started:
            self._started = True
            for path in moving:
                self._broken(path, None, Content(problems=[Problem(1, "is still being written")]))
            self._memory.keep_only(self.files)
        return True

    def _changed(self, seen: Mapping[str, _Signature]) -> set[str]:
        gone = self.files.keys() - seen.keys()
        return {path for path, signature in seen.items() if self._signature(path) != signature} | gone

    def _signature(self, path: str) -> _Signature | None:
        known = self.files.get(path)
        return None if known is None else known.signature

    def _scan(self) -> dict[str, _Signature]:
        """Every file there is. What is in a folder that cannot be listed counts as unchanged."""
        seen: dict[str, _Signature] = {}
        unlisted: dict[str, str] = {}

        def on_error(error: OSError) -> None:
            where = os.path.relpath(error.filename, self._folder)
            if where == os.curdir or not isinstance(error, FileNotFoundError):
                unlisted[where] = reason(error)

        for where, folders, names in os.walk(self._folder, onerror=on_error):
            inner = os.path.relpath(where, self._folder)
            folders[:] = [one for one in folders if not one.startswith(".") and (inner, one) != (os.curdir, STATUS)]
            for name in names:
                if name.endswith(SUFFIXES) and not name.startswith("."):
                    path = os.path.normpath(os.path.join(inner, name))  # noqa: PTH118 - a Path for each is slow
                    signature = self._look(path)
                    if signature is not None:
                        seen[path] = signature
        self._say_unlisted(unlisted)
        for path, known in self.files.items():
            if known.signature is not None and any(_is_below(path, where) for where in unlisted):
                seen.setdefault(path, known.signature)
        return seen

    def _look(self, path: str) -> _Signature | None:
        """What tells a file from its former self; None where there is no such file."""
        try:
            status = os.stat(self._folder / path)  # noqa: PTH116 - one call for each file, each second
        except FileNotFoundError:
            return None
        except OSError:
            return _UNKNOWN
        return _signature(status) if S_ISREG(status.st_mode) else None

    def _say_unlisted(self, unlisted: Mapping[str, str]) -> None:
        for where in unlisted.keys() - self._unlisted:
            folder = self._folder / where
            log.error("%s cannot be listed: %s; what its files gave before holds on", folder, unlisted[where])
        self._unlisted = set(unlisted)

    def _take(self, path: str) -> None:
        """Read one file. One that is written to meanwhile is left for the next look."""
        try:
            with (self._folder / path).open("rb") as file:
                signature = _signature(os.fstat(file.fileno()))
                data = file.read(MAX_BYTES + 1)
                if _signature(os.fstat(file.fileno())) != signature:
                    return
        except FileNotFoundError:
            return
        except OSError as error:  # without a signature it is tried again with every look
            self._broken(path, None, Content(problems=[Problem(1, f"cannot be read: {reason(error)}")]))
            return
        content = _content(path, data)
        if not data.strip() and self._last_good(path) is not None:
            # A shell empties a file before the command that fills it has started.
            content.problems.append(Problem(1, "is empty: delete it if its objects are to go"))
        if content.problems:
            self._broken(path, signature, content)
        else:
            self._good(path, signature, data, content)

    def _good(self, path: str, signature: _Signature, data: bytes, content: Content) -> None:
        before = self.files.get(path)
        self.files[path] = SourceFile(signature, content.manifests, complete=True)
        if before is not None and before.complaint:
            log.info("%s is right again: %s", shown_path(path), counted(len(content.manifests)))
        if content.ignored:
            log.debug("%s: objects of other kinds ignored: %s", shown_path(path), content.ignored)
        for manifest in content.manifests.values():
            if not isinstance(manifest.value, Pod) and manifest.value.errors:
                errors = "; ".join(manifest.value.errors)
                log.error("%s:%d: %s: %s", shown_path(path), manifest.line, manifest.identity, errors)
        self._memory.keep(path, data if content.manifests else None)

    def _broken(self, path: str, signature: _Signature | None, content: Content) -> None:
        """Say what is wrong, once, and go on with what the file gave before; if it never was right, with what is."""
        before = self.files.get(path, SourceFile())
        last_good = self._last_good(path)
        if last_good is not None:
            kept = f"what it gave before holds on ({counted(len(last_good))})"
        else:
            kept = f"what is right in it is taken ({counted(len(content.manifests))})"
        first, more = content.problems[0], len(content.problems) - 1
        others = f" (and {more} more problems)" if more else ""
        complaint = f"{shown_path(path)}:{first.line}: {first.text}{others}; {kept}"
        if complaint != before.complaint:
            log.error("%s", complaint)
        manifests = content.manifests if last_good is None else last_good
        self.files[path] = SourceFile(signature, manifests, last_good is not None, complaint)

    def _last_good(self, path: str) -> Mapping[Identity, Manifest] | None:
        """The objects of the file when it was last right, None where it never was or had none."""
        known = self.files.get(path)
        if known is not None:
            return known.manifests if known.complete and known.manifests else None
        data = self._memory.recall(path)
        content = Content() if data is None else _content(path, data)
        return content.manifests if content.manifests and not content.problems else None

    def _drop(self, path: str) -> None:
        log.info("%s is gone: %s", shown_path(path), counted(len(self.files[path].manifests)))
        del self.files[path]
        self._memory.keep(path, None)


def shown_path(path: str) -> str:
    """A path as a log line shows it: whatever is in it, it stays one line."""
    return path if path.isprintable() else ascii(path)


def counted(objects: int) -> str:
    """``1 object``, ``2 objects``."""
    return f"{objects} object" if objects == 1 else f"{objects} objects"


def _content(path: str, data: bytes) -> Content:
    if len(data) > MAX_BYTES:
        return Content(problems=[Problem(1, f"is too big: at most {MAX_BYTES} bytes")])
    return read(data, is_json=path.endswith(".json"))


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_below(path: str, folder: str) -> bool:
    return folder == os.curdir or path.startswith(f"{folder}/")


class _Memory:
    """Copies of good files, under names that no tool takes for manifests. What cannot be written is done without."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, path: str, data: bytes | None) -> None:
        """Remember a file's content; None: forget it."""
        copy = self._copy(path)
        try:
            if data is None:
                copy.unlink(missing_ok=True)
            elif self.recall(path) != data:
                write_atomically(copy, data)
        except OSError as error:
            log.debug("no copy of %s: %s", shown_path(path), reason(error))

    def recall(self, path: str) -> bytes | None:
        """The content remembered, None where there is none."""
        try:
            return self._copy(path).read_bytes()
        except OSError:
            return None

    def keep_only(self, paths: Mapping[str, object]) -> None:
        """Forget all other files."""
        wanted = {self._copy(path) for path in paths}
        with suppress(OSError):
            for copy in self._folder.iterdir():
                if copy not in wanted:
                    copy.unlink()

    def _copy(self, path: str) -> Path:
        return self._folder / hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
