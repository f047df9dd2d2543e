"""Papermill over the chapters: unchanged ones are skipped, a killed run continues, no page is ever half written.

An executed chapter is a page, `book/chapters/<stem>.ipynb`. Papermill writes into a temporary file beside it, which
replaces the page in one step when the chapter has ended well. The page's metadata keep a fingerprint of everything
that the chapter read; a page with the same fingerprint is not run again. Each chapter runs in a process of its own
under a file lock, so that neither a crash nor a second run can touch another chapter.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from importlib import metadata
from multiprocessing import connection
from pathlib import Path
from typing import Literal

import nbformat
import papermill
from filelock import FileLock, Timeout
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from packaging.requirements import Requirement
from papermill.exceptions import PapermillExecutionError

from reprolib import clone
from reprolib.atomic import write_atomic

PROFILES = ("reference", "smoke", "cpu", "gpu", "paper")
DEVICES = ("auto", "cpu", "cuda")
PARAMETERS_TAG, INJECTED_TAG, STALE_TAG = "parameters", "injected-parameters", "stale-page"
SECONDS_BETWEEN_LINES = 60
# Threads that wait by spinning, OpenMP's default, make a chapter on a busy machine many times slower; threads that
# never spin make one on a quiet machine twice as slow. A short spin is as good as the better of the two.
SPINS = "20000"


class Busy(RuntimeError):
    """Another process is making the same chapter, or the site."""


class NoLock(RuntimeError):
    """A lock that cannot be taken, whoever holds it: something else stands in its place, or nothing can be written."""


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

    def __post_init__(self):
        if self.profile not in PROFILES:
            raise ValueError(f"profile {self.profile!r} is unknown; known profiles: {', '.join(PROFILES)}")
        if self.device not in DEVICES:
            raise ValueError(f"device {self.device!r} is unknown; known devices: {', '.join(DEVICES)}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.data_root and not Path(self.data_root).is_dir():
            raise ValueError(f"data_root {self.data_root!r} is not a folder; make it, or leave it out to run offline")


@dataclass(frozen=True)
class Outcome:
    """What became of a chapter. where: for a failure, the cell and the exception in one line.

    kept: whether the notebook that failed was kept for reading; stale: whether its page was marked.
    """

    chapter: str
    status: Literal["ran", "unchanged", "failed", "busy"]
    seconds: float = 0.0
    where: str = ""
    kept: bool = False
    stale: bool = False

    @property
    def good(self) -> bool:
        return self.status in ("ran", "unchanged")


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


# --- what a chapter reads ---------------------------------------------------------------------------------------------


def fingerprint(chapter: Chapter, parameters: Parameters) -> str:
    """16 hex digits over everything a chapter's page depends on; equal means that the page need not be run again.

    Read: the notebook's cells (not its outputs), reprolib's sources, the chapter's claims and reference results, the
    checkpoints, the parameters, the versions of Python and of reprolib's requirements, and the data root's listing.
    """
    cells = read_notebook(chapter.notebook).cells
    # The runner and what stands to its left (the developer guide, "Layout") never reach a chapter.
    sources = (p for p in clone.PACKAGE.rglob("*.py") if p.stem not in ("runner", "cli", "report"))
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


def _contents(paths: Iterator[Path], base: Path) -> list[tuple[str, str]]:
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
            entries.extend((f"{entry.name}/{name}", *rest) for name, *rest in _listing(Path(entry.path), depth - 1))
    return entries


def is_current(chapter: Chapter, parameters: Parameters) -> bool:
    """Whether the chapter's page was executed from these very inputs and is not marked stale."""
    try:
        record = _own_notes(read_notebook(chapter.page))
        return "stale" not in record and record.get("fingerprint") == fingerprint(chapter, parameters)
    except (OSError, ValueError):  # no page, or one that is no notebook, or inputs that are none: the run says which
        return False


# --- pages on disk ----------------------------------------------------------------------------------------------------


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook. Raises OSError where it cannot be read, and ValueError for a file that is none."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except OSError:
        raise
    except Exception as error:  # nbformat fails on other JSON with whatever its code meets first
        raise ValueError(f"{path.name} is not a complete notebook ({_first_line(error)})") from error


def _own_notes(page: nbformat.NotebookNode) -> dict[str, object]:
    """What the runner has noted on a page; nothing where another wrote there."""
    notes = page.metadata.get("reprolib", {})
    return notes if isinstance(notes, dict) else {}


def save_notebook(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook so that `path` holds the old text or the new one at every moment. OSError leaves the old one.

    The temporary file has one name a page: the next run takes away what a killed one has left.
    """
    write_atomic(path, nbformat.writes(notebook).encode(), temporary=f".{path.name}.tmp")


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


# --- one chapter ------------------------------------------------------------------------------------------------------


def own_kernel(**environment: str) -> type[AsyncKernelManager]:
    """A kernel manager that starts this very interpreter, whatever kernels the user has installed."""
    literal = {name: value.replace("$", "$$") for name, value in environment.items()}  # Jupyter fills in $NAME there
    spec = KernelSpec(**get_kernel_dict(), env=literal)

    class OwnKernel(AsyncKernelManager):
        kernel_spec = spec

    return OwnKernel


def execute(chapter: Chapter, parameters: Parameters, threads: int = 1) -> Outcome:
    """Run a chapter now, under its lock, and replace its page; on failure keep the old page and mark it stale."""
    started = time.monotonic()
    try:
        with locked(chapter.lock, chapter.stem):
            kept = False
            try:
                _execute(chapter, parameters, threads)
                return Outcome(chapter.stem, "ran", time.monotonic() - started)
            except PapermillExecutionError as error:
                reason = f"cell {_failing_cell(chapter.executing)}: {error.ename}: {_first_line(error.evalue)}"
                kept = _kept_for_reading(chapter)
            except DeadKernelError:
                reason = f"cell {_failing_cell(chapter.executing)}: the kernel died (killed, or out of memory)"
                kept = _kept_for_reading(chapter)
            except OSError as error:
                reason = _not_possible(chapter, error)
            except Exception as error:  # a notebook that is none, a kernel that does not start: the others still run
                reason = f"{type(error).__name__}: {_first_line(error)}"
            finally:
                with suppress(OSError):
                    chapter.executing.unlink(missing_ok=True)
            reason, stale = _marked(chapter, reason)
            return Outcome(chapter.stem, "failed", time.monotonic() - started, reason, kept, stale)
    except Busy as error:
        return Outcome(chapter.stem, "busy", where=str(error))
    except NoLock as error:
        return Outcome(chapter.stem, "failed", time.monotonic() - started, str(error))


def _first_line(told: object) -> str:
    return (str(told).strip().splitlines() or [""])[0]


def _not_possible(chapter: Chapter, error: OSError) -> str:
    """What the operating system refused, without a path of this machine: the line stands on the page."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    pages = path is not None and path.parent == chapter.page.parent
    what = "the page could not be saved" if full or pages else "the chapter could not be executed"
    return f"{what}: {_first_line(error.strerror or error)}{f' ({path.name})' if path else ''}"


def _kept_for_reading(chapter: Chapter) -> bool:
    """Move a failed execution to where it can be read; False where that is not possible."""
    try:
        chapter.failed.parent.mkdir(exist_ok=True)
        os.replace(chapter.executing, chapter.failed)
    except OSError:
        return False
    return True


def _marked(chapter: Chapter, reason: str) -> tuple[str, bool]:
    """Mark a chapter's page stale. Returns the reason, with the fault where that failed, and whether it is marked."""
    try:
        mark_stale(chapter, reason)
    except (OSError, ValueError) as error:
        told = (error.strerror if isinstance(error, OSError) else None) or _first_line(error)
        return f"{reason} (nor could the page be marked stale: {told})", False
    return reason, True


def _execute(chapter: Chapter, parameters: Parameters, threads: int) -> None:
    """Papermill into the temporary file, then the page in one step."""
    mark = fingerprint(chapter, parameters)  # before the run: what is edited meanwhile makes the page run again
    _papermill(chapter, chapter.executing, parameters, threads)
    page = nbformat.read(chapter.executing, as_version=4)
    defaults = next((i for i, c in enumerate(page.cells) if PARAMETERS_TAG in c.metadata.get("tags", [])), None)
    if defaults is not None:
        # The page shows the parameters that were run, in the place of the defaults, under the same (fixed) cell id.
        page.cells[defaults + 1].id = page.cells[defaults].id
        del page.cells[defaults]
    # Paths of this machine say nothing to a reader.
    for key, path in (("input_path", chapter.notebook), ("output_path", chapter.page)):
        page.metadata.papermill[key] = path.relative_to(chapter.root).as_posix()
    page.metadata["reprolib"] = {"fingerprint": mark}
    save_notebook(page, chapter.page)
    with suppress(OSError):  # the page is whole, whatever becomes of an older failure
        chapter.failed.unlink(missing_ok=True)


def _papermill(chapter: Chapter, out: Path, parameters: Parameters, threads: int) -> None:
    """Execute the notebook into `out`."""
    # A kernel runs the start-up files and the configuration of whoever starts it, which may change numbers.
    with tempfile.TemporaryDirectory(prefix="reprolib-ipython-", ignore_cleanup_errors=True) as nobody:
        papermill.execute_notebook(
            chapter.notebook,
            out,
            # The data root goes through the environment, and an empty parameter means just that: a page is for
            # publishing, and a folder of this machine has no place on it.
            parameters=asdict(replace(parameters, data_root="")),
            kernel_name="python3",
            kernel_manager_class=own_kernel(
                OMP_NUM_THREADS=str(threads),
                GOMP_SPINCOUNT=SPINS,
                REPROLIB_DATA=parameters.data_root,
                IPYTHONDIR=nobody,
                PYTHONSTARTUP="",
                PYTHONOPTIMIZE="",
            ),
            # of the kernel's own log, which warns of plain sockets on this machine
            extra_arguments=["--log-level=ERROR"],
            shutdown_kernel="immediate",  # a chapter has saved everything when its last cell ends
            progress_bar=False,
            cwd=chapter.root,
        )


def execute_aside(chapter: Chapter, parameters: Parameters, folder: Path, threads: int = 1) -> None:
    """Run a chapter into a folder, without a page: for what is read from its side effects, such as a verification.

    Raises RuntimeError naming the cell and the exception.
    """
    out = folder / chapter.notebook.name
    try:
        _papermill(chapter, out, parameters, threads)
    except PapermillExecutionError as error:
        where = f"{chapter.stem}, cell {_failing_cell(out)}"
        raise RuntimeError(f"{where}: {error.ename}: {_first_line(error.evalue)}") from error


def _failing_cell(notebook: Path) -> int | str:
    """Number, counted from 1 in the clean notebook, of the last cell that was started; "?" where nothing tells it."""
    try:
        cells = read_notebook(notebook).cells
    except (OSError, ValueError):
        return "?"
    cells = [c for c in cells if "papermill" in c.metadata and INJECTED_TAG not in c.metadata.get("tags", [])]
    started = [number for number, cell in enumerate(cells, 1) if cell.metadata.papermill.get("start_time")]
    return started[-1] if started else "?"


# --- many chapters ----------------------------------------------------------------------------------------------------


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads_allowed() -> int | None:
    """OMP_NUM_THREADS, as OpenMP reads it: the first of a list, which is for nested regions; None without a number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if re.fullmatch(r"0*[1-9]\d{0,8}", first, re.ASCII) else None


def run(
    root: Path,
    names: Sequence[str] = (),
    parameters: Parameters | None = None,
    jobs: int = 1,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run the chapters whose inputs changed, `jobs` at once; a failing one does not stop the others.

    Each gets cores // jobs threads (fewer if OMP_NUM_THREADS says so). `tell` gets a line when a chapter starts or
    ends, and one a minute in between. force: run unchanged chapters too.
    Raises ValueError for an unknown chapter or jobs < 1, before any work starts.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; it must be at least 1")
    parameters = parameters or Parameters()
    wanted = find(root, names)
    changed = [c for c in wanted if force or not is_current(c, parameters)]
    outcomes = {c.stem: Outcome(c.stem, "unchanged") for c in wanted if c not in changed}
    threads = max(1, cores() // max(1, min(jobs, len(changed))))
    threads = min(threads, _threads_allowed() or threads)
    context = multiprocessing.get_context("spawn")
    running: dict[connection.Connection, tuple[Chapter, multiprocessing.Process, float]] = {}
    queue = list(changed)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                chapter = queue.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_worker, args=(sender, chapter, parameters, threads))
                process.start()
                sender.close()  # this side's copy, so that a dying worker closes the pipe
                running[receiver] = (chapter, process, time.monotonic())
                tell(f"{chapter.stem}: running (profile {parameters.profile}, {threads} threads)")
            ready = connection.wait(running, timeout=SECONDS_BETWEEN_LINES)
            for receiver in ready:
                chapter, process, started = running.pop(receiver)
                outcome = _receive(receiver, chapter, process, time.monotonic() - started)
                outcomes[chapter.stem] = outcome
                tell(f"{chapter.stem}: {outcome.status} ({outcome.seconds:.0f} s)")
            if not ready:
                now = time.monotonic()
                tell(", ".join(f"{c.stem}: {_progress(c)}, {(now - t) / 60:.0f} min" for c, _, t in running.values()))
    finally:
        for _, process, _ in running.values():  # left only when interrupted
            process.terminate()
    return [outcomes[c.stem] for c in wanted]


def _receive(
    pipe: connection.Connection, chapter: Chapter, process: multiprocessing.Process, seconds: float
) -> Outcome:
    """The worker's outcome, or what ended the worker."""
    try:
        outcome = pipe.recv()
        process.join()
        return outcome
    except (EOFError, OSError):
        process.join()
    code = process.exitcode or 0
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    reason, stale = f"the chapter's process ended with {how}", False
    # busy: another run has taken over and decides what the page says
    with suppress(Busy, NoLock), locked(chapter.lock, chapter.stem):
        reason, stale = _marked(chapter, reason)
    return Outcome(chapter.stem, "failed", seconds, reason, stale=stale)


def _worker(pipe: connection.Connection, chapter: Chapter, parameters: Parameters, threads: int) -> None:
    """The chapter's own process. It ends with its parent, however that one ends; the kernel does the same with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    parent = multiprocessing.parent_process().sentinel

    def end_with_parent():
        connection.wait([parent])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    pipe.send(execute(chapter, parameters, threads))


def _progress(chapter: Chapter) -> str:
    """How far a running chapter is. Papermill rewrites the temporary file at every cell: a look may meet a torn one."""
    try:
        cells = read_notebook(chapter.executing).cells
    except (OSError, ValueError):
        return "running"
    done = sum(cell.metadata.get("papermill", {}).get("status") == "completed" for cell in cells)
    return f"cell {done + 1} of {len(cells)}"
