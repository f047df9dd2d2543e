"""The chapters' notebooks: which there are, the parameters that they take, and their files, read and written whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
import yaml

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
    """What a notebook's `parameters` cell holds.

    seed: None for each notebook's own, which is that of its reference run. data_root: an absolute folder, or "" for the
    offline sets alone.
    """

    profile: str = "reference"
    seed: int | None = None
    device: str = "auto"
    data_root: str = ""

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile {self.profile!r} is unknown; known profiles: {', '.join(PROFILES)}")
        if self.device not in DEVICES:
            raise ValueError(f"device {self.device!r} is unknown; known devices: {', '.join(DEVICES)}")
        if self.seed is not None and self.seed < 0:
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


INSTALL = "install"
"""The id of a notebook's first cell, which installs the package where it is missing."""


def install_cell(address: str, branch: str) -> str:
    """The source of that cell. address: of the repository, "" where nobody has named it (`address_of`)."""
    return f'''# Where reprolib is missing, as on Colab, it is installed from the repository's address,
# which `reprolib address URL` writes here and into _config.yml.
from importlib.util import find_spec

address, branch = "{address}", "{branch}"
if find_spec("reprolib") is None:
    if not address:
        raise ModuleNotFoundError("reprolib is not installed, and this copy names no "
                                  "repository: pip install . in a clone")
    print(f"reprolib is not here: installing it from {{address}}")
    get_ipython().run_line_magic("pip", f"install --quiet git+{{address}}@{{branch}}")'''


def address_of(root: Path) -> tuple[str, str]:
    """The repository's address, "" while nobody has set it, and its branch: both as _config.yml names them."""
    try:
        named = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")).get("repository", {})
    except (OSError, yaml.YAMLError, AttributeError):
        return "", "main"
    return named.get("url") or "", named.get("branch") or "main"


def set_address(root: Path, address: str, branch: str = "main") -> None:
    """Write the repository's address into _config.yml and into the first cell of every notebook.

    Raises ValueError for an address that is none of the web, and where _config.yml has no place for it.
    """
    if not re.fullmatch(r"https://[\w.~-]+(?:/[\w.~-]+)+", address) or not re.fullmatch(r"[\w./-]+", branch):
        raise ValueError(
            f"address={address!r}, branch={branch!r}: expected https://HOST/OWNER/NAME and a branch's name"
        )
    config = root / "_config.yml"
    text = config.read_text(encoding="utf-8")
    pattern = r'(\nrepository:\n  url: )"[^"]*"(\n  branch: )\S+'
    changed, found = re.subn(pattern, rf'\g<1>"{address}"\g<2>{branch}', text)
    if found != 1:
        raise ValueError('_config.yml has no lines `repository:`, `url: ""` and `branch: main`')
    for chapter in chapters(root):
        notebook = read_notebook(chapter.notebook)
        for cell in notebook.cells:
            if cell.get("id") == INSTALL:
                cell.source = install_cell(address, branch)
        save_notebook(notebook, chapter.notebook)
    write_atomic(config, changed.encode())


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
