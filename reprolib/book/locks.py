"""A lock of the book: one process at a time makes a chapter, or the site."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout


class Busy(RuntimeError):
    """Another process is making the same chapter, or the site."""


class NoLock(RuntimeError):
    """A lock that cannot be taken, whoever holds it: something else stands in its place, or nothing can be written."""


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file. Raises Busy at once, naming `what` and the holder, where another process has it.

    Raises NoLock where it cannot be taken at all: a folder stands in its place, or the folder takes no file.
    """
    held, note = FileLock(lock), lock.with_suffix(".holder")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise Busy(f"{what} is being made by {_holder(note)}; wait for it to end, or end it") from None
    except OSError as error:
        place = f"{lock.parent.name}/{lock.name}"
        raise NoLock(
            f"{what} was not made: its lock {place} cannot be taken ({error.strerror or error}); take away what stands "
            f"in its place, and see that the folder can be written to"
        ) from error
    # The lock file stays: removing it would let a third run lock a new file while a second waits on the old one.
    try:
        with suppress(OSError):  # a full disk: the holder stays unnamed
            note.write_text(f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            note.unlink()
        held.release()


def _holder(note: Path) -> str:
    try:
        return note.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"
