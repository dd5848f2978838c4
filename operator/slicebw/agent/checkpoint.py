"""The files that survive the agent: the ledger and the last complete desired state. Both are replaced atomically.

A file is one header line (kind, version, the payload's length and SHA-256) and a JSON payload. The checksum is over the
payload's bytes as written. A file that cannot be trusted is renamed, with the reason in its new name, and never
overwritten.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from slicebw.agent.checkpoint_validation import wrong_desired_state, wrong_ledger
from slicebw.core.clock import Instant
from slicebw.core.desired import DesiredState, Mode, SliceKey
from slicebw.core.errors import SaveError
from slicebw.core.ledger import ClassAccount, Ledger, PendingEvent, SliceAccount

_T = TypeVar("_T")

_LARGEST_VERSION: Final = 1_000_000
"""A higher number is not a version that slicebw ever wrote, and would make a bad file name."""

_Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts the decoded payload of one version to the next version."""


class _UntrustedError(Exception):
    """A file must not be used. ``word`` becomes part of its new name; the text says why, for people."""

    def __init__(self, word: str, reason: str) -> None:
        super().__init__(reason)
        self.word = word


@dataclass(frozen=True, slots=True)
class _LedgerForm:
    """The ledger as it is stored. It has lists for mappings, because a JSON object's keys are strings.

    The names are keys in files on nodes, so they stay when the code gets other words. Version 2 has the node's mode;
    version 1 has not, and its earliest files lack ``rebuilding``.
    """

    slices: list[SliceAccount]
    node_totals: dict[int, ClassAccount]
    last_class_id: int
    read_at: Instant | None
    device: str
    had_tree: bool
    rebuilding: bool
    outbox: list[PendingEvent]
    refused: list[SliceKey]
    mode: Mode | None


def _ledger_from_1(payload: dict[str, Any]) -> dict[str, Any]:
    return {"rebuilding": False, **payload, "mode": None}


@dataclass(frozen=True, slots=True)
class _Kind(Generic[_T]):
    """A kind of checkpoint file.

    ``wrong`` returns what in a decoded value is impossible, or None. ``migrations`` has an entry for every older
    version that can still be read.
    """

    name: str
    version: int
    form: type[_T]
    wrong: Callable[[_T], str | None]
    migrations: Mapping[int, _Migration] = field(default_factory=dict)


def _wrong_form(form: _LedgerForm) -> str | None:
    return wrong_ledger(form.slices, form.node_totals.values(), form.last_class_id, form.read_at)


_LEDGER: Final = _Kind("ledger", 2, _LedgerForm, _wrong_form, {1: _ledger_from_1})
_DESIRED_STATE: Final = _Kind("wishes", 1, DesiredState, wrong_desired_state)


class _File(Generic[_T]):
    """One checkpoint file, which holds one value."""

    def __init__(self, folder: Path, kind: _Kind[_T]) -> None:
        self._path = folder / kind.name
        self._kind = kind
        self._decoder = msgspec.json.Decoder(kind.form)
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
            return self._decode(content), None
        except _UntrustedError as untrusted:
            then = f"; {self._set_aside(untrusted.word)}" if set_aside else ""
            return None, f"{self._path} {untrusted}{then}"

    def remove(self) -> None:
        """Remove the file, and all its earlier versions that were set aside. Raises SaveError."""
        try:
            for path in (self._path, *self._path.parent.glob(f"{self._path.name}.*")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise SaveError(f"cannot remove {error.filename}: {error.strerror or error}") from error

    def _decode(self, content: bytes) -> _T:
        if not content:
            raise _UntrustedError("empty", "is empty")
        name, newest = self._kind.name, self._kind.version
        line, newline, payload = content.partition(b"\n")
        try:
            header = json.loads(line)
            kind, version = header["slicebw"], int(header["version"])
            length, checksum = int(header["bytes"]), header["sha256"]
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise _UntrustedError("foreign", f"is not a slicebw {name}") from error
        # The checks go from coarse to fine, so that the first one that fails names the cause.
        if kind != name or not newline or abs(version) > _LARGEST_VERSION:
            raise _UntrustedError("foreign", f"is not a slicebw {name}")
        if version > newest:
            raise _UntrustedError(f"version-{version}", f"is of version {version}, newer than this agent's {newest}")
        if len(payload) != length:
            raise _UntrustedError("truncated", f"has {len(payload)} bytes of payload instead of {length}")
        if hashlib.sha256(payload).hexdigest() != checksum:
            raise _UntrustedError("corrupt", "fails its checksum")
        try:
            value = self._decoder.decode(self._migrated(payload, version))
        except (msgspec.DecodeError, RecursionError) as error:
            raise _UntrustedError("corrupt", f"does not decode: {error}") from error
        wrong = self._kind.wrong(value)
        if wrong is not None:
            raise _UntrustedError("implausible", f"cannot be right: {wrong}")
        return value

    def _migrated(self, payload: bytes, version: int) -> bytes:
        """Return the payload in the newest version's form. Raises _UntrustedError if there is no migration to it."""
        if version == self._kind.version:
            return payload  # the usual case, without decoding it twice
        document = msgspec.json.decode(payload, type=dict[str, Any])
        for number in range(version, self._kind.version):
            migrate = self._kind.migrations.get(number)
            if migrate is None:
                raise _UntrustedError(f"version-{version}", f"is of version {version}, which nothing can read any more")
            document = migrate(document)
        return msgspec.json.encode(document)

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
        self._ledger = _File(folder, _LEDGER)
        self._desired_state = _File(folder, _DESIRED_STATE)
        self._accounts = _Accounts()

    def load_ledger(self) -> tuple[Ledger | None, str | None]:
        """Return the ledger, and why it cannot be used; (None, None) if there is no file yet.

        A file that cannot be used is set aside.
        """
        form, problem = self._ledger.load()
        return (None if form is None else _from_form(form)), problem

    def peek_ledger(self) -> tuple[Ledger | None, str | None]:
        """Like :meth:`load_ledger`, but changes nothing on disk."""
        form, problem = self._ledger.load(set_aside=False)
        return (None if form is None else _from_form(form)), problem

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
    """Return a document that is encoded to the same JSON as a :class:`_LedgerForm`."""
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
    }


def _from_form(form: _LedgerForm) -> Ledger:
    return Ledger(
        slices={account.key: account for account in form.slices},
        node_totals=form.node_totals,
        last_slice_id=form.last_class_id,
        read_at=form.read_at,
        device=form.device,
        had_tree=form.had_tree,
        rebuilding=form.rebuilding,
        pending_events=tuple(form.outbox),
        unplaced=frozenset(form.refused),
        mode=form.mode,
    )
