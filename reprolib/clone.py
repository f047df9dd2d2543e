"""Where the book's files are: the one place that finds a root. It imports nothing of the library."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def find() -> Path | None:
    """The nearest folder with claims/ and notebooks/, from the working directory upwards; None outside a clone."""
    here = Path.cwd()
    folders = (here, *here.parents)
    return next((path for path in folders if (path / "claims").is_dir() and (path / "notebooks").is_dir()), None)


def shipped() -> Path:
    """What reprolib came with: claims/, checkpoints/, results/reference/. Its own clone, or a folder of its wheel."""
    carried = PACKAGE / "carried"  # setup.py puts it there
    return carried if carried.is_dir() else PACKAGE.parent


def repository() -> Path:
    """The clone that the working directory is in; elsewhere what reprolib came with."""
    return find() or shipped()


def results_root() -> Path:
    """Where measurements go: the folder that REPROLIB_RESULTS names, or `results/` of the clone.

    That is the clone of the working directory, else the one that reprolib lies in; with neither, `results/` here:
    nothing is written into an installed package.
    """
    if named := os.environ.get("REPROLIB_RESULTS"):
        return Path(named)
    root = repository()
    return (Path.cwd() if PACKAGE in root.parents else root) / "results"


def reference_root() -> Path:
    """Where the committed reference runs are: `results/reference` of the repository, wherever measurements go."""
    return repository() / "results" / "reference"
