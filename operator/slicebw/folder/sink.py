"""Writes the agent's reports to files: BandwidthUsages, NodeBandwidth status and Events.

::

    DIR/status/bandwidthusages/<namespace>/<slice>.<node>.yaml
    DIR/status/events/<namespace>/<name>.yaml
    DIR/status/nodebandwidths/<node>.yaml

Each file is an object as an API server would have it, and is replaced atomically.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.cyaml import CSafeDumper

from slicebw.api import bandwidth_usage, event, kinds, node_bandwidth
from slicebw.api.bandwidth_usage import NodeUsage
from slicebw.api.conditions import Condition
from slicebw.api.fields import FieldError
from slicebw.core.desired import SliceKey
from slicebw.core.errors import TryLater
from slicebw.core.ledger import PendingEvent
from slicebw.core.reports import NodeWrite, ReportWrite, UsageRemoval, UsageReport, UsageWrite, object_of
from slicebw.folder.disk import STATUS, reason, remove, stem, write_atomically
from slicebw.folder.documents import DocumentError, documents

log = logging.getLogger(__name__)

EVENTS_KEPT: Final = 1000
"""How many files of Events to keep; the oldest are removed. (An API server keeps Events for an hour.)"""

RETRY_S: Final = 5.0
"""The pause before a failed write is tried again."""

_SUFFIX: Final = ".yaml"


class _Dumper(CSafeDumper):
    """Writes YAML as kubectl does: without anchors, even if two fields share a value."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - its signature is PyYAML's
        return True


_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))  # our string enums


class FolderSink:
    """Writes one node's reports below ``folder/status`` (the agent's ``ReportSink`` port), in a thread of its own."""

    budget: Final = None  # a disk takes all writes

    def __init__(self, folder: Path, node_name: str, *, retry_s: float = RETRY_S) -> None:
        """Read and write nothing yet.

        Args:
            folder: the manifests folder.
            node_name: this node's name.
            retry_s: see RETRY_S.
        """
        self._status = folder.absolute() / STATUS
        self._node_name = node_name
        self._retry_s = retry_s
        self._failing: set[SliceKey | str] = set()
        self._warned_full = False
        self._conditions: tuple[Condition, ...] | None = None
        self._event_files: deque[Path] | None = None

    def start(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine in a new thread until it returns. One that raises is logged and started again."""
        threading.Thread(target=self._keep_running, args=(run,), name="folder-report", daemon=True).start()

    def warn_full(self, message: str) -> None:
        """Log that reports were dropped, once."""
        if not self._warned_full:
            log.error("%s", message)
        self._warned_full = True

    async def previous_reports(self) -> tuple[UsageReport, ...]:
        """Read this node's usages from their files. Those that cannot be read are left out. Never raises."""
        try:
            return tuple(usage.report for usage in read_usages(self._status.parent, self._node_name))
        except Exception:
            log.exception("reading %s failed; going on without", self._status)
            return ()

    async def write(self, write: ReportWrite) -> bool:
        """Write or remove one file. Raises TryLater."""
        try:
            self._write(write)
        except OSError as error:
            if not self._failing:  # one line for all writes that fail on the same disk
                where, why = error.filename or self._status, reason(error)
                log.error("cannot write %s: %s; trying again every %g s", where, why, self._retry_s)
            self._failing.add(object_of(write))
            raise TryLater(str(error), retry_s=self._retry_s) from error
        if self._failing:
            self._failing.discard(object_of(write))
            if not self._failing:
                log.info("reports are written again")
        return True

    def _keep_running(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                asyncio.run(run())
            except Exception:
                log.exception("writing to %s failed; trying again", self._status)
                time.sleep(self._retry_s)
            else:
                return

    def _write(self, write: ReportWrite) -> None:
        match write:
            case PendingEvent():
                self._write_event(write)
            case UsageWrite():
                obj = bandwidth_usage.to_object(write.report, self._node_name, None, write.at_s)
                write_atomically(self._usage_file(write.report.key), _text(obj))
            case UsageRemoval():
                remove(self._usage_file(write.key))
            case NodeWrite():
                self._write_node(write)

    def _write_event(self, pending: PendingEvent) -> None:
        """Write an Event unless its file exists."""
        if self._event_files is None:
            files = [path for path in (self._status / "events").glob(f"*/*{_SUFFIX}") if not path.name.startswith(".")]
            self._event_files = deque(sorted(files, key=_age))
        namespace, obj = event.to_object(pending, self._node_name)
        path = self._file("events", namespace, obj["metadata"]["name"])
        # The file exists if an agent was killed after the write, but before its ledger was saved without the Event.
        if not path.exists():
            write_atomically(path, _text(obj), durable=True)
            self._event_files.append(path)
        while len(self._event_files) > EVENTS_KEPT:
            remove(self._event_files[0])
            self._event_files.popleft()

    def _write_node(self, write: NodeWrite) -> None:
        path = self._node_file()
        if self._conditions is None:
            written = next(_objects(path), None)
            self._conditions = () if written is None else node_bandwidth.parse_status(written)
        obj = node_bandwidth.status_object(self._node_name, write.report, write.at_s, self._conditions)
        write_atomically(path, _text(obj))
        self._conditions = node_bandwidth.parse_status(obj)

    def _usage_file(self, key: SliceKey) -> Path:
        name = bandwidth_usage.name(key.name, self._node_name)
        return self._file(kinds.BANDWIDTH_USAGE.plural, key.namespace, name)

    def _node_file(self) -> Path:
        name = self._node_name
        return self._status / kinds.NODE_BANDWIDTH.plural / f"{stem(name, kinds.digest(name))}{_SUFFIX}"

    def _file(self, folder: str, namespace: str, name: str) -> Path:
        file_name = f"{stem(name, kinds.digest(name))}{_SUFFIX}"
        return self._status / folder / stem(namespace, kinds.digest(namespace)) / file_name


def read_usages(folder: Path, node_name: str) -> list[NodeUsage]:
    """Return the BandwidthUsages that this node's agent has written below ``folder``. Unreadable ones are left out."""
    usages = []
    for path in (folder / STATUS / kinds.BANDWIDTH_USAGE.plural).glob(f"*/*{_SUFFIX}"):
        for obj in _objects(path):
            with suppress(FieldError):
                usages.append(bandwidth_usage.parse(obj))
    return [usage for usage in usages if usage.node_name == node_name]


def _objects(path: Path) -> Iterator[object]:
    """Yield the objects of a report file; none if it is missing or cannot be parsed."""
    with suppress(OSError, DocumentError):
        yield from (document.value for document in documents(path.read_bytes()))


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _text(obj: object) -> bytes:
    return yaml.dump(obj, Dumper=_Dumper, sort_keys=False, allow_unicode=True, encoding="utf-8", width=120)
