"""The agent's feed without a cluster: SliceBandwidths, NodeBandwidths and Pods from the files of a folder."""

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
from slicebw.folder.manifests import Identity, Manifest
from slicebw.folder.source import Source, counted, shown_path

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
"""The folder is looked at this often even if the kernel reports nothing: it does not for files on network file
systems, nor behind symbolic links."""
_DEBOUNCE_MS: Final = 200
_STEP_MS: Final = 20


class FolderFeed:
    """Mirrors the manifests below a folder (the agent's ``Feed`` port).

    Read are ``*.yaml``, ``*.yml`` and ``*.json`` in the folder and its subfolders, apart from ``status``, where the
    reports go, and from hidden ones. They are documents as ``kubectl get -o yaml`` writes them. Of the
    NodeBandwidths only ``default`` and the node's own count, of the pods those bound to this node or to none.
    What is in a file counts until the file says otherwise or is gone; a broken file says nothing new.
    """

    def __init__(self, folder: Path, node_name: str, wake: Callable[[], None]) -> None:
        """Know nothing yet; nothing runs before :meth:`start`. Raises UsageError where there is no such folder.

        Also for a node name that no Node can have: files are named after it.

        Args:
            folder: where the manifests are.
            node_name: this node's name.
            wake: called from the feed's thread after each change that matters to the node.
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
        self._said: set[tuple[str, str]] = set()
        self._desired = DesiredState()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="folder-feed", daemon=True)

    def start(self) -> None:
        """Begin to read and to watch. Returns at once; see ``desired_state().synced``."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the watch; the desired state stays readable."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def desired_state(self) -> DesiredState:
        """What is known now; cheap, never blocks, callable from any thread."""
        return self._desired

    def _run(self) -> None:
        complained = False
        while not self._stopping.is_set():
            try:
                self._look()
                self._watch()
            except (OSError, RuntimeError) as error:
                # Too many inotify watches on this machine, or the folder is away: looking still works.
                if not complained:
                    log.warning("%s cannot be watched, only looked at every second: %s", self._folder, error)
                complained = True
            except Exception:
                log.exception("reading %s failed; trying again", self._folder)
            self._stopping.wait(LOOK_EVERY_S)

    def _watch(self) -> None:
        """Look whenever something may have changed, until the folder is another one or the feed is stopped."""
        folder = self._folder.stat()
        for _ in watch(
            self._folder,
            watch_filter=self._matters,
            debounce=_DEBOUNCE_MS,
            step=_STEP_MS,
            stop_event=self._stopping,
            rust_timeout=int(LOOK_EVERY_S * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        ):
            self._look()
            now = self._folder.stat()
            if (now.st_dev, now.st_ino) != (folder.st_dev, folder.st_ino):
                return

    def _matters(self, _: Change, path: str) -> bool:
        """Not what the sink writes."""
        return not path.startswith(f"{self._folder / STATUS}/") and path != str(self._folder / STATUS)

    def _look(self) -> None:
        if not self._source.refresh(self._stopping.wait):
            return
        desired = self._merged()
        if desired != self._desired:
            self._desired = desired
            self._wake()

    def _merged(self) -> DesiredState:
        manifests = self._one_each()
        node, default = NodeSpec(), NodeSpec()
        slices: list[SliceSpec] = []
        pods: list[Pod] = []
        for identity in sorted(manifests):
            value = manifests[identity].value
            if isinstance(value, SliceSpec):
                slices.append(value)
            elif isinstance(value, Pod):
                if manifests[identity].node_name in ("", self._node_name):
                    pods.append(value)
            elif identity.name == self._node_name:
                node = value
            elif identity.name == kinds.DEFAULT_NODE_BANDWIDTH:
                default = value
        return DesiredState(tuple(slices), tuple(pods), node.over(default), synced=True)

    def _one_each(self) -> Mapping[Identity, Manifest]:
        """Every object once. Where two files have it, the one that had it first goes on having it."""
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
        self._say_duplicates(losers)
        return {identity: self._source.files[path].manifests[identity] for identity, path in owners.items()}

    def _say_duplicates(self, losers: Mapping[tuple[str, str], list[Identity]]) -> None:
        """One line for each pair of files that have something in common, when it begins."""
        for (path, owner), identities in losers.items():
            if (path, owner) in self._said:
                continue
            identity = identities[0]
            line = self._source.files[path].manifests[identity].line
            first = self._source.files[owner].manifests[identity].line
            others = f" (and {counted(len(identities) - 1)} more)" if identities[1:] else ""
            log.error(
                "%s:%d: %s%s is in %s:%d already, which holds: keep it in one file",
                shown_path(path),
                line,
                identity,
                others,
                shown_path(owner),
                first,
            )
        self._said = set(losers)
