"""The chapters' notebooks: which there are, the parameters that they take, and their files, read and written whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat

from reprolib.atomic import write_atomic

PROFILES = ("reference", "smoke", "cpu", "gpu", "paper")

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Chapter:
    """One notebook: `notebooks/01-dlg.ipynb` has the stem `01-dlg`, the number 1 and the paper key `dlg`.

    The key is what the notebook hands to `chapter.start`; it names the claims and the results.
    """

    root: Path
    stem: str

    @property
    def number(self) -> int | None:
        match = re.match(r"(\d+)-", self.stem)
        return int(match[1]) if match else None

    @cached_property
    def paper(self) -> str:
        try:
            text = self.notebook.read_text(encoding="utf-8", errors="replace")
        except OSError:  # none, or none that can be read: the chapter's own run says so
            text = ""
        started = re.search(r"chapter\.start\(\\?[\"']([\w-]+)", text)
        return started[1] if started else re.sub(r"^\d+-", "", self.stem)

    @property
    def notebook(self) -> Path:
        return self.root / "notebooks" / f"{self.stem}.ipynb"

    @property
    def page(self) -> Path:
        return self.root / "book" / "chapters" / f"{self.stem}.ipynb"

    @property
    def failed(self) -> Path:
        """Where a failing execution is kept for reading; the site does not show it."""
        return self.page.parent / "failed" / self.page.name

    @property
    def executing(self) -> Path:
        # One name a chapter, not one a process: under the lock a leftover is always a dead process's, and is replaced.
        return self.page.with_name(f".{self.stem}.executing.ipynb")

    @property
    def lock(self) -> Path:
        return self.page.with_name(f".{self.stem}.lock")


@dataclass(frozen=True)
class Parameters:
    """What a notebook's `parameters` cell holds. data_root: an absolute folder, or "" for the offline sets alone."""

    profile: str = "reference"
    seed: int = 1
    device: str = "auto"
    data_root: str = ""

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile {self.profile!r} is unknown; known profiles: {', '.join(PROFILES)}")
        if self.device not in DEVICES:
            raise ValueError(f"device {self.device!r} is unknown; known devices: {', '.join(DEVICES)}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.data_root and not Path(self.data_root).is_dir():
            raise ValueError(f"data_root {self.data_root!r} is not a folder; make it, or leave it out to run offline")


def chapters(root: Path) -> list[Chapter]:
    """All chapters of the book at `root`, in the order of their file names."""
    return [Chapter(root, path.stem) for path in sorted((root / "notebooks").glob("*.ipynb"))]


def find(root: Path, names: Sequence[str] = ()) -> list[Chapter]:
    """The chapters called by file stem, number or paper key, in the book's order; all of them without names.

    Raises ValueError for a name that no chapter has; it lists the known ones.
    """
    known = chapters(root)
    if not known:
        raise ValueError(f"{root / 'notebooks'} holds no notebook: run this inside a clone of the book")
    wanted = set()
    for name in names:
        number = int(name) if name.isdecimal() else None
        hits = [c for c in known if name in (c.stem, c.paper) or (number is not None and number == c.number)]
        if not hits:
            raise ValueError(f"chapter {name!r} is unknown; known chapters: {', '.join(c.stem for c in known)}")
        wanted.update(hits)
    return [c for c in known if c in wanted] if names else known


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook. Raises OSError where it cannot be read, and ValueError for a file that is none."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except OSError:
        raise
    except Exception as error:  # nbformat fails on other JSON with whatever its code meets first
        raise ValueError(f"{path.name} is not a complete notebook ({first_line(error)})") from error


def save_notebook(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook so that `path` holds the old text or the new one at every moment. OSError leaves the old one.

    The temporary file has one name a page: the next run takes away what a killed one has left.
    """
    write_atomic(path, nbformat.writes(notebook).encode(), temporary=f".{path.name}.tmp")


def first_line(told: object) -> str:
    return (str(told).strip().splitlines() or [""])[0]
