"""The agent's reports without a cluster: BandwidthUsages, NodeBandwidth status and Events as files.

::

    DIR/status/bandwidthusages/<namespace>/<slice>.<node>.yaml
    DIR/status/events/<namespace>/<name>.yaml
    DIR/status/nodebandwidths/<node>.yaml

They are the objects an API server would hold, one a file, each replaced as a whole.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.cyaml import CSafeDumper

from slicebw.api import bandwidth_usage, event, kinds, node_bandwidth
from slicebw.api.bandwidth_usage import NodeUsage
from slicebw.api.conditions import Condition
from slicebw.api.fields import FieldError
from slicebw.core.model import SliceKey
from slicebw.core.reports import EventNote, NodeReport, UsageReport
from slicebw.folder.disk import STATUS, reason, remove, stem, write_atomically
from slicebw.folder.documents import DocumentError, documents

log = logging.getLogger(__name__)

EVENTS_KEPT: Final = 1000
"""Files of Events; beyond it the oldest are removed. (An API server keeps them for an hour.)"""
_SUFFIX: Final = ".yaml"


class _Dumper(CSafeDumper):
    """YAML as kubectl writes it: no anchors, whatever two fields share."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - its signature is PyYAML's
        return True


_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))  # enums that are texts


@dataclass(slots=True)
class _Work:
    """What is to be written: the latest state of each object."""

    usages: dict[SliceKey, tuple[UsageReport | None, int]] = field(default_factory=dict)
    """Each with the time of the report in seconds; None: the usage is to go."""
    events: dict[str, EventNote] = field(default_factory=dict)
    node: tuple[NodeReport, int] | None = None

    def keep(self, failed: "_Work") -> None:
        """Take back what could not be written, apart from what is newer here."""
        self.usages = {**failed.usages, **self.usages}
        self.events = {**failed.events, **self.events}
        self.node = self.node or failed.node


class FolderReporter:
    """Writes reports below ``folder/status`` in a thread of its own (the agent's ``Reporter`` port).

    What cannot be written is said once, and tried again with each following report.
    """

    def __init__(self, folder: Path, node_name: str, now_s: Callable[[], int] = lambda: int(time.time())) -> None:
        """Write nothing yet; nothing runs before :meth:`start`.

        Args:
            folder: the manifests folder.
            node_name: this node's name.
            now_s: the wall clock, for ``reportedAt``.
        """
        self._status = folder.absolute() / STATUS
        self._node_name = node_name
        self._now_s = now_s
        self._changed = threading.Condition()
        self._work = _Work()
        self._reported = False
        self._stopping = False
        self._known: set[str] = set()
        self._delivered: set[str] = set()
        self._complained = False
        self._conditions: tuple[Condition, ...] = ()
        self._earlier: tuple[UsageReport, ...] | None = None
        self._event_files: deque[Path] = deque()
        self._thread = threading.Thread(target=self._run, name="folder-report", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def report(
        self,
        usages: Sequence[UsageReport],
        over: Sequence[SliceKey],
        events: Sequence[EventNote],
        node: NodeReport | None,
    ) -> None:
        """Queue reports; see :class:`slicebw.agent.ports.Reporter`. Returns at once."""
        now_s = self._now_s()
        with self._changed:
            work = self._work
            work.usages.update(dict.fromkeys(over, (None, now_s)))
            work.usages.update({usage.key: (usage, now_s) for usage in usages})
            work.events.update({note.id: note for note in events if note.id not in self._known})
            # An event that the ledger no longer owes cannot come again, so its id need not be known.
            self._known = {note.id for note in events} | work.events.keys()
            work.node = work.node if node is None else (node, now_s)
            self._reported = True
            self._changed.notify()

    def reported(self) -> Sequence[UsageReport] | None:
        """Usages of this node as the files had them when the reporter was started; None until they are read."""
        return self._earlier

    def delivered(self) -> frozenset[str]:
        """Ids of events written since the last call, so that the ledger can forget them."""
        with self._changed:
            delivered, self._delivered = frozenset(self._delivered), set()
            return delivered

    def _run(self) -> None:
        try:
            self._take_stock()
        except Exception:
            log.exception("reading %s failed; going on without", self._status)
            self._earlier = ()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._reported or self._stopping)
                stopping, self._reported = self._stopping, False
                work, self._work = self._work, _Work()
            try:
                failed = self._write(work)
            except Exception:
                log.exception("writing to %s failed; trying again", self._status)
                failed = work
            with self._changed:
                self._work.keep(failed)
            if stopping:
                return

    def _take_stock(self) -> None:
        """What an earlier agent left, before anything of it is replaced."""
        self._earlier = tuple(usage.report for usage in read_usages(self._status.parent, self._node_name))
        for obj in _objects(self._node_file()):
            self._conditions = node_bandwidth.parse_status(obj)
        files = [path for path in (self._status / "events").glob(f"*/*{_SUFFIX}") if not path.name.startswith(".")]
        self._event_files.extend(sorted(files, key=_age))

    def _write(self, work: _Work) -> _Work:
        """Write all of it; returns what could not be."""
        failed = _Work()
        errors: list[OSError] = []
        for note in work.events.values():
            if not _tried(errors, self._write_event, note):
                failed.events[note.id] = note
        for key, (usage, at_s) in work.usages.items():
            if not _tried(errors, self._write_usage, key, usage, at_s):
                failed.usages[key] = usage, at_s
        if work.node is not None and not _tried(errors, self._write_node, *work.node):
            failed.node = work.node
        self._say(errors)
        return failed

    def _say(self, errors: Sequence[OSError]) -> None:
        if errors and not self._complained:
            error, more = errors[0], len(errors) - 1
            others = f" (and {more} more)" if more else ""
            where = error.filename or self._status
            log.error("cannot write %s: %s%s; trying again with each report", where, reason(error), others)
        elif self._complained and not errors:
            log.info("reports are written again")
        self._complained = bool(errors)

    def _write_event(self, note: EventNote) -> None:
        """Once: a file that is there was written by an agent that was killed before its ledger could forget."""
        namespace, obj = event.to_object(note, self._node_name)
        path = self._file("events", namespace, obj["metadata"]["name"])
        if not path.exists():
            write_atomically(path, _text(obj), durable=True)
            self._event_files.append(path)
        with self._changed:
            self._delivered.add(note.id)
        while len(self._event_files) > EVENTS_KEPT:
            remove(self._event_files[0])
            self._event_files.popleft()

    def _write_usage(self, key: SliceKey, usage: UsageReport | None, at_s: int) -> None:
        path = self._file(kinds.BANDWIDTH_USAGE.plural, key.namespace, bandwidth_usage.name(key.name, self._node_name))
        if usage is None:
            remove(path)
        else:
            write_atomically(path, _text(bandwidth_usage.to_object(usage, self._node_name, None, at_s)))

    def _write_node(self, report: NodeReport, at_s: int) -> None:
        obj = node_bandwidth.status_object(self._node_name, report, at_s, self._conditions)
        write_atomically(self._node_file(), _text(obj))
        self._conditions = node_bandwidth.parse_status(obj)

    def _node_file(self) -> Path:
        name = self._node_name
        return self._status / kinds.NODE_BANDWIDTH.plural / f"{stem(name, kinds.digest(name))}{_SUFFIX}"

    def _file(self, folder: str, namespace: str, name: str) -> Path:
        file_name = f"{stem(name, kinds.digest(name))}{_SUFFIX}"
        return self._status / folder / stem(namespace, kinds.digest(namespace)) / file_name


def read_usages(folder: Path, node_name: str) -> list[NodeUsage]:
    """The BandwidthUsages that this node's agent has written below ``folder``; what cannot be read is left out."""
    usages = []
    for path in (folder / STATUS / kinds.BANDWIDTH_USAGE.plural).glob(f"*/*{_SUFFIX}"):
        for obj in _objects(path):
            with suppress(FieldError):
                usages.append(bandwidth_usage.parse(obj))
    return [usage for usage in usages if usage.node_name == node_name]


def _objects(path: Path) -> Iterator[object]:
    """The objects in a file we wrote; none where it is not there or not whole."""
    with suppress(OSError, DocumentError):
        yield from (document.value for document in documents(path.read_bytes()))


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _tried(errors: list[OSError], act: Callable[..., None], *given: object) -> bool:
    """Whether it worked; one file that cannot be written must not stop the others."""
    try:
        act(*given)
    except OSError as error:
        errors.append(error)
        return False
    return True


def _text(obj: object) -> bytes:
    return yaml.dump(obj, Dumper=_Dumper, sort_keys=False, allow_unicode=True, encoding="utf-8", width=120)
