"""Papermill over the chapters: unchanged ones are skipped, a killed run continues, no page is ever half written.

Papermill writes into a temporary file beside a chapter's page, which replaces the page in one step when the chapter
has ended well. Each chapter runs in a process of its own under a file lock, so that neither a crash nor a second run
can touch another chapter.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from reprolib.book import children
from reprolib.book.locks import Busy, NoLock, locked
from reprolib.book.notebooks import Chapter, Parameters, find, first_line, read_notebook, save_notebook
from reprolib.book.pages import fingerprint, is_current, mark_stale, written

PARAMETERS_TAG, INJECTED_TAG = "parameters", "injected-parameters"

SECONDS_BETWEEN_LINES = 60

# Threads that wait by spinning, OpenMP's default, make a chapter on a busy machine many times slower; threads that
# never spin make one on a quiet machine twice as slow. A short spin is as good as the better of the two.
SPINS = "20000"


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
                reason = f"cell {_failing_cell(chapter.executing)}: {error.ename}: {first_line(error.evalue)}"
                kept = _kept_for_reading(chapter)
            except DeadKernelError:
                reason = f"cell {_failing_cell(chapter.executing)}: the kernel died (killed, or out of memory)"
                kept = _kept_for_reading(chapter)
            except OSError as error:
                reason = _not_possible(chapter, error)
            except Exception as error:  # a notebook that is none, a kernel that does not start: the others still run
                reason = f"{type(error).__name__}: {first_line(error)}"
            finally:
                with suppress(OSError):
                    chapter.executing.unlink(missing_ok=True)
            reason, stale = _marked(chapter, reason)
            return Outcome(chapter.stem, "failed", time.monotonic() - started, reason, kept, stale)
    except Busy as error:
        return Outcome(chapter.stem, "busy", where=str(error))
    except NoLock as error:
        return Outcome(chapter.stem, "failed", time.monotonic() - started, str(error))


def _not_possible(chapter: Chapter, error: OSError) -> str:
    """What the operating system refused, without a path of this machine: the line stands on the page."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    pages = path is not None and path.parent == chapter.page.parent
    what = "the page could not be saved" if full or pages else "the chapter could not be executed"
    return f"{what}: {first_line(error.strerror or error)}{f' ({path.name})' if path else ''}"


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
        told = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
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
    page.metadata["reprolib"] = {"fingerprint": mark, "results": written(chapter, parameters)}
    save_notebook(page, chapter.page)
    with suppress(OSError):  # the page is whole, whatever becomes of an older failure
        chapter.failed.unlink(missing_ok=True)


def _papermill(chapter: Chapter, out: Path, parameters: Parameters, threads: int) -> None:
    """Execute the notebook into `out`."""
    seed = parameters.seed
    if seed is None:
        seed = int(papermill.inspect_notebook(chapter.notebook)["seed"]["default"])
    # A kernel runs the start-up files and the configuration of whoever starts it, which may change numbers and looks.
    with tempfile.TemporaryDirectory(prefix="reprolib-ipython-", ignore_cleanup_errors=True) as nobody:
        (Path(nobody) / "matplotlibrc").touch()
        papermill.execute_notebook(
            chapter.notebook,
            out,
            # The data root goes through the environment, and an empty parameter means just that: a page is for
            # publishing, and a folder of this machine has no place on it.
            parameters=asdict(replace(parameters, seed=seed, data_root="")),
            kernel_name="python3",
            kernel_manager_class=own_kernel(
                OMP_NUM_THREADS=str(threads),
                GOMP_SPINCOUNT=SPINS,
                REPROLIB_DATA=parameters.data_root,
                IPYTHONDIR=nobody,
                MATPLOTLIBRC=nobody,
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
        raise RuntimeError(f"{where}: {error.ename}: {first_line(error.evalue)}") from error


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
    running: dict[connection.Connection, tuple[Chapter, BaseProcess, float]] = {}
    queue = list(changed)
    try:
        while queue or running:
            while queue and len(running) < jobs:
                chapter = queue.pop(0)
                receiver, sender = multiprocessing.Pipe(duplex=False)
                process = children.start(_worker, sender, chapter, parameters, threads)
                sender.close()  # this side's copy, so that a dying worker closes the pipe
                running[receiver] = (chapter, process, time.monotonic())
                tell(f"{chapter.stem}: running (profile {parameters.profile}, {threads} threads)")
            ready = connection.wait(running, timeout=SECONDS_BETWEEN_LINES)
            for receiver in [one for one in running if one in ready]:
                chapter, process, started = running.pop(receiver)
                outcome = _receive(receiver, chapter, process, time.monotonic() - started)
                outcomes[chapter.stem] = outcome
                tell(f"{chapter.stem}: {outcome.status} ({outcome.seconds:.0f} s)")
            if not ready:
                now = time.monotonic()
                tell(", ".join(f"{c.stem}: {_progress(c)}, {(now - t) / 60:.0f} min" for c, _, t in running.values()))
    finally:
        for _, process, _ in running.values():  # left only when interrupted
            children.end(process)
    return [outcomes[c.stem] for c in wanted]


def _receive(pipe: connection.Connection, chapter: Chapter, process: BaseProcess, seconds: float) -> Outcome:
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
    """The chapter's own process. Its kernel ends with it."""
    pipe.send(execute(chapter, parameters, threads))


def _progress(chapter: Chapter) -> str:
    """How far a running chapter is. Papermill rewrites the temporary file at every cell: a look may meet a torn one."""
    try:
        cells = read_notebook(chapter.executing).cells
    except (OSError, ValueError):
        return "running"
    done = sum(cell.metadata.get("papermill", {}).get("status") == "completed" for cell in cells)
    return f"cell {done + 1} of {len(cells)}"
