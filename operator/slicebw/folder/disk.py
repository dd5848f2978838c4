"""What feed and sink share: the folder's layout, and the atomic replacement of a file."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

STATUS: Final = "status"
"""The subfolder that the agent writes to. Desired state is never read from it."""

_LONGEST_STEM: Final = 240
"""In characters, without the suffix: an object name may have 253, a file name with suffix and ``.tmp`` only 255."""


def write_atomically(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Replace a file so that readers see either the old or the new content, never a part. Raises OSError.

    Only one thread or process may write ``path`` at a time.

    Args:
        path: the file. Missing folders above it are created.
        content: the whole new content.
        durable: whether to wait until the content is on disk. Otherwise a power failure may undo the write.
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
        with suppress(OSError):  # on a full disk the remains would take space
            temporary.unlink()
        raise


def remove(path: Path) -> None:
    """Remove a file if it exists, and then its folder if that is empty. Raises OSError."""
    path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder is not empty, or gone
        path.parent.rmdir()


def stem(name: str, mark: str) -> str:
    """Return an object's name as a file name without suffix. One that is too long is cut and ends in ``mark``."""
    return name if len(name) <= _LONGEST_STEM else f"{name[: _LONGEST_STEM - len(mark) - 1]}-{mark}"


def reason(error: OSError) -> str:
    """Return the error in words: ``No space left on device``."""
    return error.strerror or str(error)
