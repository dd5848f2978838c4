"""What feed and sink share: where things are in the folder, and how a file is replaced."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

STATUS: Final = "status"
"""The subfolder the agent writes to, and never reads desired state from."""

_LONGEST_STEM: Final = 240
"""Of a file name without its suffix: object names have up to 253 characters, file names 255 bytes with everything."""


def write_atomically(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace a file so that a reader sees the old content or the new, never a part. Raises OSError.

    There must be only one writer of ``path`` at a time.

    Args:
        path: the file; folders above it are made as needed.
        content: all of it.
        durable: whether it must be on disk before this returns; else a power cut may undo it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def remove(path: Path) -> None:
    """Remove a file if it is there, and the folder it was in if that is empty now. Raises OSError."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def stem(name: str, mark: str) -> str:
    """A file's name, without its suffix, for an object's name; ``mark`` keeps those apart that have to be cut."""
    return name if len(name) <= _LONGEST_STEM else f"{name[: _LONGEST_STEM - len(mark) - 1]}-{mark}"


def reason(error: OSError) -> str:
    """Why, in words: ``No space left on device``."""
    return error.strerror or str(error)
