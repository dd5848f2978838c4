"""The agent's feed without a cluster: reads SliceBandwidths, NodeBandwidths and Pods from the files of a folder."""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from watchfiles import Change, watch

from slicebw.api import kinds
from slicebw.core.desired import DesiredState, NodeSpec, Pod, SliceSpec
from slicebw.core.errors import UsageError
from slicebw.folder.disk import STATUS
from slicebw.folder.manifest_files import Source, counted, shown_path
from slicebw.folder.manifest_parser import Identity, Manifest

log = logging.getLogger(__name__)

SCAN_EVERY_S: Final = 1.0
"""The folder is scanned this often even if the kernel reports no change: it reports none for files on network file
systems or behind symbolic links."""
_DEBOUNCE_MS: Final = 200
_STEP_MS: Final = 20


class FolderFeed:
    """Reads the manifests below a folder, and reads them again when they change (the agent's ``Feed`` port).

    It reads ``*.yaml``, ``*.yml`` and ``*.json``, in the form that ``kubectl get -o yaml`` writes, from the folder and
    its subfolders, except hidden ones and ``status``, where the reports are. It uses the NodeBandwidths ``default`` and
    the node's own, and the pods that are bound to this node or to none. A file that becomes invalid keeps the objects
    of its last good content; only removing the file removes them.
    """

    def __init__(self, folder: Path, node_name: str, wake: Callable[[], None]) -> None:
        """Start empty. Nothing runs before :meth:`start`.

        Raises UsageError if there is no such folder, or if the node name is not legal: files are named after it.

        Args:
            folder: has the manifests.
            node_name: this node's name.
            wake: called from the feed's thread after each change of the desired state.
        """
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise UsageError(f"manifests folder {folder} {what}: name a folder with SliceBandwidth and Pod YAML files")
        wrong = kinds.name_error(node_name)
        if wrong is not None:
            raise UsageError(f"node name: {wrong}")
        self._folder = folder.absolute()
        self._node_name = node_name
        self._wake = wake
        self._source = Source(self._folder, self._folder / STATUS / ".last-good" / node_name)
        self._owners: dict[Identity, str] = {}
        self._logged_duplicates: set[tuple[str, str]] = set()
        self._desired = DesiredState()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="folder-feed", daemon=True)

    def start(self) -> None:
        """Start to read and to watch. Returns at once; see ``desired_state().synced``."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the watch; the desired state stays readable."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def desired_state(self) -> DesiredState:
        """Return the newest known state. Never waits for the disk; callable from any thread."""
        return self._desired

    def _run(self) -> None:
        warned = False
        while not self._stopping.is_set():
            try:
                self._scan()
                self._watch()
            except (OSError, RuntimeError) as error:
                # This machine has no inotify watches left, or the folder is away. Scanning still works.
                if not warned:
                    log.warning("%s cannot be watched, it is scanned every second instead: %s", self._folder, error)
                warned = True
            except Exception:
                log.exception("reading %s failed; trying again", self._folder)
            self._stopping.wait(SCAN_EVERY_S)

    def _watch(self) -> None:
        """Scan after each possible change, until the feed is stopped or the folder is replaced by another one."""
        folder = self._folder.stat()
        for _ in watch(
            self._folder,
            watch_filter=self._matters,
            debounce=_DEBOUNCE_MS,
            step=_STEP_MS,
            stop_event=self._stopping,
            rust_timeout=int(SCAN_EVERY_S * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,  # signals are for the main thread
            ignore_permission_denied=True,
        ):
            self._scan()
            now = self._folder.stat()
            if (now.st_dev, now.st_ino) != (folder.st_dev, folder.st_ino):
                return  # the watch is still on the old folder

    def _matters(self, _: Change, path: str) -> bool:
        """Return whether a changed path is worth a scan: not if the sink has written it."""
        return not path.startswith(f"{self._folder / STATUS}/") and path != str(self._folder / STATUS)

    def _scan(self) -> None:
        if not self._source.refresh(self._stopping.wait):
            return
        desired = self._build()
        # Compared by value: an equal state must stay the same object, because passes compare their inputs by identity.
        if desired != self._desired:
            self._desired = desired
            self._wake()

    def _build(self) -> DesiredState:
        manifests = self._without_duplicates()
        node, default = NodeSpec(), NodeSpec()
        slices: list[SliceSpec] = []
        pods: list[Pod] = []
        for identity in sorted(manifests):
            value = manifests[identity].value
            if isinstance(value, SliceSpec):
                slices.append(value)
            elif isinstance(value, Pod):
                if manifests[identity].node_name in ("", self._node_name):  # a pod written by hand names no node
                    pods.append(value)
            elif identity.name == self._node_name:
                node = value
            elif identity.name == kinds.DEFAULT_NODE_BANDWIDTH:
                default = value
        return DesiredState(tuple(slices), tuple(pods), node.over(default), synced=True)

    def _without_duplicates(self) -> Mapping[Identity, Manifest]:
        """Return each object once. Of two files with the same object, the one that had it first counts."""
        claims: dict[Identity, list[str]] = defaultdict(list)
        for path in sorted(self._source.files):
            for identity in self._source.files[path].manifests:
                claims[identity].append(path)
        owners: dict[Identity, str] = {}
        losers: dict[tuple[str, str], list[Identity]] = defaultdict(list)
        for identity, paths in claims.items():
            before = self._owners.get(identity)
            owner = before if before in paths else paths[0]
            owners[identity] = owner
            for path in paths:
                if path != owner:
                    losers[path, owner].append(identity)
        self._owners = owners
        self._log_duplicates(losers)
        return {identity: self._source.files[path].manifests[identity] for identity, path in owners.items()}

    def _log_duplicates(self, losers: Mapping[tuple[str, str], list[Identity]]) -> None:
        """Log one line for each pair of files that has begun to share objects."""
        for (path, owner), identities in losers.items():
            if (path, owner) in self._logged_duplicates:
                continue
            identity = identities[0]
            line = self._source.files[path].manifests[identity].line
            first = self._source.files[owner].manifests[identity].line
            others = f" (and {counted(len(identities) - 1)} more)" if identities[1:] else ""
            log.error(
                "%s:%d: %s%s is in %s:%d already, which is used: keep it in one file",
                shown_path(path),
                line,
                identity,
                others,
                shown_path(owner),
                first,
            )
        self._logged_duplicates = set(losers)
