"""Files that appear whole or not at all. It imports nothing heavy: the runner needs it before any chapter starts."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomic(path: str | os.PathLike, content: bytes, temporary: str | None = None) -> None:
    """Replace a file's content in one step: the old file or the whole new one is there at any moment.

    path: its folder is made when missing. temporary: the name of the temporary file, where a later run must find what
    a killed one has left; otherwise every call has a name of its own, so that several may write at once. It lies in
    the same folder, since a rename is atomic only within one file system.
    Raises OSError (a full disk, no permission) with the old file intact and no temporary left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(temporary or f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
