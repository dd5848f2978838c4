"""The files that survive the agent: the ledger and the last complete desired state. Both are replaced atomically.

A file is one header line (kind, version, the payload's length and SHA-256) and a JSON payload. The checksum is over the
payload's bytes as written. A file that cannot be trusted is renamed, with the reason in its new name, and never
overwritten.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from slicebw.agent.checkpoint_trust import DESIRED_STATE, LEDGER, Kind, UntrustedError, decode
from slicebw.core.desired import DesiredState
from slicebw.core.errors import SaveError
from slicebw.core.ledger import Ledger, SliceAccount

_T = TypeVar("_T")


class _File(Generic[_T]):
    """One checkpoint file, which holds one value."""

    def __init__(self, folder: Path, kind: Kind[_T]) -> None:
        self._path = folder / kind.name
        self._kind = kind
        self._encoder = msgspec.json.Encoder()

    def save(self, make: Callable[[], object]) -> None:
        """Write to a temporary file, fsync, rename, fsync the folder. Raises SaveError.

        ``make`` returns a value of the kind's form, or one that is encoded to the same JSON.
        """
        try:
            payload = self._encoder.encode(make())
        except UnicodeEncodeError as error:  # half a surrogate pair; it must be an error that a pass survives
            raise SaveError(f"cannot write {self._path}: a text in it cannot be encoded: {error.reason}") from error
        header = {
            "slicebw": self._kind.name,
            "version": self._kind.version,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(json.dumps(header).encode() + b"\n" + payload)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()  # on a full disk it would take the room that the other file needs
            raise SaveError(f"cannot write {self._path}: {error.strerror or error}") from error

    def load(self, *, set_aside: bool = True) -> tuple[_T | None, str | None]:
        """Return the value, and why there is none: (None, None) without a file, (None, reason) if it is unusable.

        ``set_aside``: whether to rename an unusable file.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None, None
        except OSError as error:  # renamed too: the next save must not overwrite it, it may be readable again later
            then = f"; {self._set_aside('unreadable')}" if set_aside else ""
            return None, f"cannot read {self._path}: {error.strerror or error}{then}"
        try:
            return decode(content, self._kind), None
        except UntrustedError as untrusted:
            then = f"; {self._set_aside(untrusted.word)}" if set_aside else ""
            return None, f"{self._path} {untrusted}{then}"

    def remove(self) -> None:
        """Remove the file, and all its earlier versions that were set aside. Raises SaveError."""
        try:
            for path in (self._path, *self._path.parent.glob(f"{self._path.name}.*")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise SaveError(f"cannot remove {error.filename}: {error.strerror or error}") from error

    def _set_aside(self, word: str) -> str:
        """Rename the file, so that nothing overwrites it. Returns what was done, for the log.

        The new name has the first free number, so that files set aside earlier are kept too.
        """
        number = 0
        while (target := self._path.with_name(f"{self._path.name}.{word}-{number}")).exists():
            number += 1
        try:
            self._path.replace(target)
        except OSError as error:
            return f"it could not be set aside: {error.strerror or error}"
        return f"set aside as {target.name}"


class FileStore:
    """The checkpoint folder of one node."""

    def __init__(self, folder: Path) -> None:
        self._ledger = _File(folder, LEDGER)
        self._desired_state = _File(folder, DESIRED_STATE)
        self._accounts = _Accounts()

    def load_ledger(self) -> tuple[Ledger | None, str | None]:
        """Return the ledger, and why it cannot be used; (None, None) if there is no file yet.

        A file that cannot be used is set aside.
        """
        form, problem = self._ledger.load()
        return (None if form is None else form.to_ledger()), problem

    def peek_ledger(self) -> tuple[Ledger | None, str | None]:
        """Like :meth:`load_ledger`, but changes nothing on disk."""
        form, problem = self._ledger.load(set_aside=False)
        return (None if form is None else form.to_ledger()), problem

    def save_ledger(self, ledger: Ledger) -> None:
        """Replace the ledger on disk. Raises SaveError."""
        self._ledger.save(lambda: _to_document(ledger, self._accounts.encoded(ledger)))

    def load_desired_state(self) -> tuple[DesiredState | None, str | None]:
        """Return the last complete desired state, and why it cannot be used; like :meth:`load_ledger`.

        With it an agent enforces limits before the API server has answered.
        """
        return self._desired_state.load()

    def save_desired_state(self, desired: DesiredState) -> None:
        """Replace the desired state on disk. Raises SaveError."""
        self._desired_state.save(lambda: desired)

    def forget(self) -> None:
        """Remove the ledger, the desired state, and the files of both that were set aside. Raises SaveError."""
        self._ledger.remove()
        self._desired_state.remove()


class _Accounts:
    """Encodes accounts as JSON, and keeps the result from save to save: only changed accounts are encoded again.

    An unchanged account is the same object, at the same position, as in the last ledger.
    """

    def __init__(self) -> None:
        self._encoder = msgspec.json.Encoder()
        self._last: list[SliceAccount] = []
        self._encoded: list[msgspec.Raw] = []

    def encoded(self, ledger: Ledger) -> list[msgspec.Raw]:
        """Return the ledger's accounts in order, encoded. Raises UnicodeEncodeError for half a surrogate pair."""
        accounts = list(ledger.slices.values())
        before = itertools.chain(zip(self._last, self._encoded, strict=True), itertools.repeat((None, msgspec.Raw())))
        self._encoded = [
            raw if account is last else self._encode(account)
            for account, (last, raw) in zip(accounts, before, strict=False)
        ]
        self._last = accounts
        return self._encoded

    def _encode(self, account: SliceAccount) -> msgspec.Raw:
        return msgspec.Raw(self._encoder.encode(account))


def _to_document(ledger: Ledger, accounts: list[msgspec.Raw]) -> dict[str, object]:
    """Return a document that is encoded to the same JSON as a :class:`LedgerForm`."""
    return {
        "slices": accounts,
        "node_totals": ledger.node_totals,
        "last_class_id": ledger.last_slice_id,
        "read_at": ledger.read_at,
        "device": ledger.device,
        "had_tree": ledger.had_tree,
        "rebuilding": ledger.rebuilding,
        "outbox": ledger.pending_events,
        "refused": sorted(ledger.unplaced),
        "mode": ledger.mode,
        **({"ifindex": ledger.ifindex, "netns": ledger.netns} if ledger.ifindex else {}),
    }
