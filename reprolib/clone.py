"""Where the clone of the book is that something is run in."""

from __future__ import annotations

from pathlib import Path


def find() -> Path | None:
    """The nearest folder with claims/ and notebooks/, from the working directory upwards; None outside a clone."""
    here = Path.cwd()
    folders = (here, *here.parents)
    return next((path for path in folders if (path / "claims").is_dir() and (path / "notebooks").is_dir()), None)
