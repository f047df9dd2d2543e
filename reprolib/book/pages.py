"""A chapter's page, its executed notebook in `book/chapters`: what it depends on, whether it is current, or stale.

Its metadata keep a fingerprint of everything that the chapter read, and one of the results that it wrote beside the
page; where both are the same, it is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path

import nbformat
from packaging.requirements import Requirement

from reprolib import clone
from reprolib.book.notebooks import Chapter, Parameters, read_notebook, save_notebook

STALE_TAG = "stale-page"

AROUND = (
    "runner",
    "notebooks",
    "pages",
    "locks",
    "children",
    "verification",
    "report",
    "judged",
    "rendering",
    "wording",
    "audit",
)
"""Files of `book` that run chapters or show them from outside: no chapter reaches them, nor the command line."""


def fingerprint(chapter: Chapter, parameters: Parameters) -> str:
    """16 hex digits over everything a chapter's page depends on; equal means that the page need not be run again.

    Read: the notebook's cells (not its outputs), reprolib's sources, the chapter's claims and reference results, the
    checkpoints, the parameters, the versions of Python and of reprolib's requirements, and the data root's listing.
    """
    cells = read_notebook(chapter.notebook).cells
    around = {
        clone.PACKAGE / "__main__.py",
        clone.PACKAGE / "cli.py",
        *(clone.PACKAGE / "book" / f"{name}.py" for name in AROUND),
    }
    sources = (path for path in clone.PACKAGE.rglob("*.py") if path not in around)
    root = chapter.root
    inputs = {
        "cells": [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in cells],
        "sources": _contents(sources, clone.PACKAGE),
        "claims": _contents((root / "claims").glob(f"{chapter.paper}.y*ml"), root),
        "reference": _contents((root / "results" / "reference" / chapter.paper).rglob("*"), root),
        "checkpoints": _contents((root / "checkpoints").rglob("*"), root),
        "parameters": asdict(parameters),
        "versions": _versions(),
        "data": _listing(Path(parameters.data_root)) if parameters.data_root else None,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _contents(paths: Iterable[Path], base: Path) -> list[tuple[str, str]]:
    """Name and checksum of each file."""
    files = sorted(path for path in paths if path.is_file())
    return [(str(path.relative_to(base)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def _versions() -> dict[str, str]:
    required = (Requirement(line) for line in metadata.requires("reprolib") or ())
    names = sorted(r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""}))
    return {"python": ".".join(map(str, sys.version_info[:2]))} | {name: metadata.version(name) for name in names}


def _listing(folder: Path, depth: int = 3) -> list[tuple[str, int, int]]:
    """Names, sizes and times down to the class folders: cheap where a set has a million files.

    A folder that may not be read, such as the lost+found of a disk, counts by its name alone: whoever needs it says so.
    """
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return []
    entries = []
    for entry in found:
        if entry.name.startswith("."):  # a download under way
            continue
        try:
            is_folder, stat = entry.is_dir(), entry.stat()
        except OSError:  # a link that leads nowhere, or to itself
            entries.append((entry.name, -1, -1))
            continue
        entries.append((entry.name, 0 if is_folder else stat.st_size, stat.st_mtime_ns))
        if is_folder and depth > 1:
            below = _listing(Path(entry.path), depth - 1)
            entries.extend((f"{entry.name}/{name}", size, changed) for name, size, changed in below)
    return entries


def written(chapter: Chapter, parameters: Parameters) -> str:
    """16 hex digits over the results, pictures and records of a chapter's last run at this profile, as they lie there.

    A run leaves them beside the page, where `report`, `accept` and the scoreboard read them.
    """
    folder = chapter.root / (os.environ.get("REPROLIB_RESULTS") or "results") / "runs" / parameters.profile
    files = [folder / f"{chapter.paper}.json", *(folder / chapter.paper).rglob("*")]
    return hashlib.sha256(json.dumps(_contents(files, folder)).encode()).hexdigest()[:16]


def is_current(chapter: Chapter, parameters: Parameters) -> bool:
    """Whether the page was executed from these very inputs, is not stale, and its run's results lie as it left them."""
    try:
        record = _own_notes(read_notebook(chapter.page))
        read, made = record.get("fingerprint"), record.get("results")
        return (
            "stale" not in record and read == fingerprint(chapter, parameters) and made == written(chapter, parameters)
        )
    except (OSError, ValueError):  # no page, or one that is no notebook, or inputs that are none: the run says which
        return False


def _own_notes(page: nbformat.NotebookNode) -> dict[str, object]:
    """What the runner has noted on a page; nothing where another wrote there."""
    notes = page.metadata.get("reprolib", {})
    return notes if isinstance(notes, dict) else {}


def mark_stale(chapter: Chapter, reason: str) -> None:
    """Say on top of the last good page that it is out of date and why; without such a page, leave one that says so.

    reason: one line. Raises OSError where the page cannot be saved.
    """
    now = datetime.now().astimezone().isoformat(timespec="minutes")
    try:
        page = read_notebook(chapter.page)
    except (FileNotFoundError, ValueError):  # a page that is none has nothing to keep
        page = nbformat.v4.new_notebook()
    if "fingerprint" in _own_notes(page):
        says = "This page shows the last run that succeeded; it is out of date."
    else:
        page = nbformat.v4.new_notebook(cells=_title_of(chapter))
        says = "This chapter has not run to its end yet."
    page.cells = [cell for cell in page.cells if STALE_TAG not in cell.metadata.get("tags", [])]
    note = nbformat.v4.new_markdown_cell(
        f"````{{admonition}} Stale page\n:class: warning\n{says} A run on {now[:10]} at {now[11:16]} failed:\n\n"
        f"    {reason}\n````",
        id="stale-page",
        metadata={"tags": [STALE_TAG]},
    )
    page.cells.insert(_below_title(page), note)
    page.metadata.setdefault("reprolib", {})["stale"] = {"since": now, "reason": reason}
    save_notebook(page, chapter.page)


def _title_of(chapter: Chapter) -> list[nbformat.NotebookNode]:
    """The first cell of a chapter, or a title in its place where the notebook is none."""
    with suppress(OSError, ValueError):
        return read_notebook(chapter.notebook).cells[:1]
    return [nbformat.v4.new_markdown_cell(f"# {chapter.stem}", id="title")]


def _below_title(page: nbformat.NotebookNode) -> int:
    """Index of the cell below the title, whose cell is cut after the heading: Sphinx wants the heading first."""
    if not page.cells or page.cells[0].cell_type != "markdown":
        return 0
    match = re.search(r"^# .*$", page.cells[0].source, re.MULTILINE)
    if match is None:
        return 0
    rest = page.cells[0].source[match.end() :].strip("\n")
    if rest:
        page.cells[0].source = page.cells[0].source[: match.end()]
        page.cells.insert(1, nbformat.v4.new_markdown_cell(rest, id="below-title"))
    return 1
