"""The runner on tiny notebooks: what is run, what is skipped, and what is left after every way of going wrong."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from reprolib.book import locks, notebooks, pages, runner

PARAMETERS = 'profile = "reference"\nseed = 0\ndevice = "auto"\ndata_root = ""'


def write_chapter(root: Path, stem: str, *sources: str) -> notebooks.Chapter:
    cells = [
        nbformat.v4.new_markdown_cell(f"# Chapter {stem}\n\nWhat the paper says.", id="title"),
        nbformat.v4.new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (root / "notebooks").mkdir(exist_ok=True)
    chapter = notebooks.Chapter(root, stem)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), chapter.notebook)
    return chapter


def put_good_page(chapter: notebooks.Chapter, text: str = "the last good page") -> bytes:
    page = nbformat.read(chapter.notebook, as_version=4)
    page.cells.append(nbformat.v4.new_markdown_cell(text, id="good"))
    page.metadata["reprolib"] = {"fingerprint": "of another day"}
    notebooks.save_notebook(page, chapter.page)
    return chapter.page.read_bytes()


def text_of(path: Path) -> str:
    page = nbformat.read(path, as_version=4)
    outputs = (output.get("text", "") for cell in page.cells for output in cell.get("outputs", []))
    return "\n".join([*(cell.source for cell in page.cells), *outputs])


def leftovers(root: Path) -> list[str]:
    return [path.name for path in (root / "book" / "chapters").glob(".*") if not path.name.endswith(".lock")]


def test_chapters_are_found_by_stem_number_and_paper(tmp_path):
    for stem in ("02-idlg", "01-dlg", "03-ig"):
        write_chapter(tmp_path, stem)
    assert [c.stem for c in notebooks.find(tmp_path)] == ["01-dlg", "02-idlg", "03-ig"]
    assert [c.stem for c in notebooks.find(tmp_path, ["idlg", "1", "01-dlg"])] == ["01-dlg", "02-idlg"]


def test_the_paper_is_the_one_that_the_notebook_opens(tmp_path):
    write_chapter(tmp_path, "03-inverting-gradients", 'ch = chapter.start("ig", profile)')
    (found,) = notebooks.find(tmp_path, ["ig"])
    assert (found.stem, found.paper, found.number) == ("03-inverting-gradients", "ig", 3)


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="holds no notebook: run this inside a clone"):
        notebooks.find(tmp_path)
    write_chapter(tmp_path, "01-dlg")
    with pytest.raises(ValueError, match="chapter 'gdl' is unknown; known chapters: 01-dlg"):
        notebooks.find(tmp_path, ["gdl"])
    with pytest.raises(ValueError, match="'huge' is unknown; known profiles: reference, smoke, cpu, gpu, paper"):
        notebooks.Parameters(profile="huge")
    with pytest.raises(ValueError, match="device 'gpu' is unknown; known devices: auto, cpu, cuda"):
        notebooks.Parameters(device="gpu")
    with pytest.raises(ValueError, match="seed is -1; it must be 0 or more"):
        notebooks.Parameters(seed=-1)
    with pytest.raises(ValueError, match="data_root '/no/such/folder' is not a folder"):
        notebooks.Parameters(data_root="/no/such/folder")
    with pytest.raises(ValueError, match="jobs is 0; it must be at least 1"):
        runner.run(tmp_path, jobs=0)


def test_fingerprint_follows_what_a_chapter_reads_and_nothing_else(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg", "1 + 1")
    data = tmp_path / "data"
    data.mkdir()
    base = notebooks.Parameters(profile="smoke", data_root=str(data))
    seen = [pages.fingerprint(chapter, base)]

    def changed() -> bool:
        seen.append(pages.fingerprint(chapter, base))
        return seen[-1] not in seen[:-1]

    executed = nbformat.read(chapter.notebook, as_version=4)
    executed.cells[-1].outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(executed, chapter.notebook)
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "idlg.yml").write_text("paper: idlg")
    assert not changed(), "neither a cell's output nor another paper's claims"
    (tmp_path / "claims" / "dlg.yml").write_text("paper: dlg")
    assert changed()
    (tmp_path / "results" / "reference" / "dlg").mkdir(parents=True)
    (tmp_path / "results" / "reference" / "dlg" / "gpu.json").write_text("{}")
    assert changed()
    (data / "cifar10" / "test").mkdir(parents=True)
    assert changed()
    write_chapter(tmp_path, "01-dlg", "1 + 2")
    assert changed()
    assert pages.fingerprint(chapter, notebooks.Parameters(profile="smoke", seed=2, data_root=str(data))) not in seen


def test_without_a_seed_each_chapter_has_its_own(tmp_path):
    chapter = write_chapter(tmp_path, "01-own", "print('seed', seed)")
    path = chapter.notebook
    path.write_text(path.read_text().replace("seed = 0", "seed = 5"))
    for parameters, seen in ((notebooks.Parameters("smoke"), 5), (notebooks.Parameters("smoke", seed=7), 7)):
        assert runner.execute(chapter, parameters).status == "ran"
        assert f"seed {seen}\n" in text_of(chapter.page) and f"seed = {seen}" in chapter.page.read_text()


def test_a_failing_chapter_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    good = write_chapter(
        tmp_path,
        "01-good",
        "import os, sys\nprint(profile, seed, os.environ['OMP_NUM_THREADS'], sys.executable)",
    )
    bad = write_chapter(tmp_path, "02-bad", "1 + 1", "raise ValueError('too grey\\nsecond line')")
    old = put_good_page(bad)
    parameters = notebooks.Parameters(profile="smoke", seed=7)
    lines = []
    outcomes = runner.run(tmp_path, parameters=parameters, jobs=2, tell=lines.append)
    assert [o.status for o in outcomes] == ["ran", "failed"]
    assert outcomes[1].where == "cell 4: ValueError: too grey"
    assert any("02-bad: failed" in line for line in lines)

    page = nbformat.read(good.page, as_version=4)
    assert f"smoke 7 1 {sys.executable}" in text_of(good.page)
    assert [cell.id for cell in page.cells] == ["title", "parameters", "cell-0"], "the run's parameters, once"
    assert page.metadata.papermill.input_path == "notebooks/01-good.ipynb", "no path of this machine"
    assert "too grey" in text_of(bad.failed)
    assert "the last good page" in text_of(bad.page) and "Stale page" in text_of(bad.page)
    assert bad.page.read_bytes() != old
    assert leftovers(tmp_path) == []

    write_chapter(tmp_path, "02-bad", "print('repaired')")
    outcomes = runner.run(tmp_path, parameters=parameters, tell=lines.append)
    assert [o.status for o in outcomes] == ["unchanged", "ran"]
    assert "repaired" in text_of(bad.page) and "Stale page" not in text_of(bad.page)
    assert not bad.failed.exists(), "nothing to read any more"


@pytest.mark.parametrize("results", [None, "kept elsewhere"])
def test_a_chapter_whose_results_are_gone_or_changed_runs_again(tmp_path, monkeypatch, results):
    if results:
        monkeypatch.setenv("REPROLIB_RESULTS", results)
    folder = tmp_path / (results or "results") / "runs" / "smoke"
    write_chapter(
        tmp_path,
        "01-first",
        f"from pathlib import Path\nfolder = Path({str(folder)!r}, 'first')\nfolder.mkdir(parents=True, exist_ok=True)",
        "folder.with_suffix('.json').write_text('{}')\n(folder / 'picture.png').write_text('as drawn')",
    )

    def outcome() -> str:
        (found,) = runner.run(tmp_path, parameters=notebooks.Parameters(profile="smoke"), tell=lambda line: None)
        return found.status

    assert [outcome(), outcome()] == ["ran", "unchanged"]
    (folder / "first.json").unlink()  # what the message of a damaged file asks for
    assert [outcome(), outcome()] == ["ran", "unchanged"]
    (folder / "first" / "picture.png").write_text("cut")
    assert [outcome(), outcome()] == ["ran", "unchanged"]
    (folder.parent / "cpu").mkdir()
    (folder.parent / "cpu" / "first.json").write_text("of another profile")
    assert outcome() == "unchanged"


def test_a_stale_mark_stands_below_the_title_once(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg")
    put_good_page(chapter)
    pages.mark_stale(chapter, "first reason")
    pages.mark_stale(chapter, "second reason")
    page = nbformat.read(chapter.page, as_version=4)
    assert page.cells[0].source == "# Chapter 01-dlg"
    assert "second reason" in page.cells[1].source and time.strftime("%Y-%m-%d") in page.cells[1].source
    assert page.cells[2].source == "What the paper says."
    assert "first reason" not in text_of(chapter.page)
    assert page.metadata.reprolib.stale.reason == "second reason"
    page.metadata.reprolib.fingerprint = pages.fingerprint(chapter, notebooks.Parameters())
    notebooks.save_notebook(page, chapter.page)
    assert not pages.is_current(chapter, notebooks.Parameters()), "a stale page is run again whatever its inputs"


def test_a_chapter_that_never_ran_leaves_a_page_that_says_so(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg")
    pages.mark_stale(chapter, "cell 1: KeyError")
    text = text_of(chapter.page)
    assert "# Chapter 01-dlg" in text and "has not run to its end yet" in text and "KeyError" in text


def test_a_killed_kernel_and_a_killed_process_are_failures_of_one_chapter(tmp_path):
    write_chapter(tmp_path, "01-kernel", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    write_chapter(tmp_path, "02-process", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    (tmp_path / "notebooks" / "03-none.ipynb").write_text("{ cut in ha")
    outcomes = runner.run(tmp_path, jobs=3, tell=lambda line: None)
    assert [o.status for o in outcomes] == ["failed"] * 3
    assert outcomes[0].where == "cell 4: the kernel died (killed, or out of memory)"
    assert outcomes[1].where == "the chapter's process ended with signal SIGKILL"
    assert outcomes[2].where.startswith(
        "ValueError: 03-none.ipynb is not a complete notebook (Notebook does not appear"
    )
    assert [o.kept for o in outcomes] == [True, False, False] and all(o.stale for o in outcomes)
    assert "# 03-none" in text_of(notebooks.Chapter(tmp_path, "03-none").page)


def test_a_second_run_of_the_same_chapter_says_so_and_does_nothing(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg", "1 + 1")
    with locks.locked(chapter.lock, chapter.stem):
        outcome = runner.execute(chapter, notebooks.Parameters())
    assert outcome.status == "busy" and not outcome.good and not (outcome.kept or outcome.stale)
    assert f"01-dlg is being made by process {os.getpid()}, since 20" in outcome.where
    assert not chapter.page.exists()
    with locks.locked(chapter.lock, chapter.stem):
        pass  # the lock is free again


def test_a_holder_that_could_not_leave_its_name_is_another_process(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg")
    with locks.locked(chapter.lock, chapter.stem):
        chapter.lock.with_suffix(".holder").unlink()
        assert "01-dlg is being made by another process" in runner.execute(chapter, notebooks.Parameters()).where


def test_a_lock_that_cannot_be_taken_is_one_failed_outcome(tmp_path):
    locked, good = write_chapter(tmp_path, "01-locked"), write_chapter(tmp_path, "02-good", "print('complete')")
    lost = write_chapter(
        tmp_path,
        "03-lost",
        "import os, signal\nlock = 'book/chapters/.03-lost.lock'\nos.remove(lock)\nos.mkdir(lock)\n"
        "os.kill(os.getppid(), signal.SIGKILL)",
    )
    locked.lock.mkdir(parents=True)
    outcomes = runner.run(tmp_path, jobs=3, tell=lambda line: None)
    assert [o.status for o in outcomes] == ["failed", "ran", "failed"]
    assert outcomes[0].where == (
        "01-locked was not made: its lock chapters/.01-locked.lock cannot be taken (Is a directory); take away what "
        "stands in its place, and see that the folder can be written to"
    )
    assert outcomes[2].where == "the chapter's process ended with signal SIGKILL"
    assert not any(o.kept or o.stale for o in outcomes), "without the lock no page is touched"
    assert "complete" in text_of(good.page) and not locked.page.exists() and not lost.page.exists()


def test_a_file_in_the_place_of_the_pages_folder_fails_each_chapter(tmp_path):
    chapters = [write_chapter(tmp_path, stem) for stem in ("01-dlg", "02-idlg")]
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "chapters").write_text("")
    outcomes = [runner.execute(chapter, notebooks.Parameters()) for chapter in chapters]
    assert [o.status for o in outcomes] == ["failed"] * 2
    assert all("cannot be taken (File exists)" in o.where for o in outcomes)


NO_NOTEBOOKS = {
    "nothing": "",
    "an empty object": "{}",
    "a list": "[]",
    "null": "null",
    "a number": "5",
    "other keys": '{"cells": 1, "metadata": {}}',
    "no cells": '{"cells": [1], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
    "another version": '{"nbformat": "x"}',
    "a version that is no number": '{"nbformat": 4, "nbformat_minor": "x", "cells": [], "metadata": {}}',
    "wrong tags": '{"cells": [{"cell_type": "markdown", "id": "a", "source": "", "metadata": {"tags": 5}}], '
    '"metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
    "too deep": "[" * 100_000,
    "no text": "\udcff",
}


@pytest.mark.parametrize("text", NO_NOTEBOOKS.values(), ids=NO_NOTEBOOKS.keys())
def test_a_page_or_notebook_that_is_none_stops_nothing(tmp_path, text):
    chapter = write_chapter(tmp_path, "01-dlg")
    chapter.page.parent.mkdir(parents=True)
    chapter.page.write_text(text, errors="surrogateescape")
    assert not pages.is_current(chapter, notebooks.Parameters())
    assert runner._marked(chapter, "cell 1: KeyError") == ("cell 1: KeyError", True)
    assert "has not run to its end yet" in text_of(chapter.page) and "# Chapter 01-dlg" in text_of(chapter.page)

    chapter.notebook.write_text(text, errors="surrogateescape")
    assert notebooks.find(tmp_path, ["dlg"]) == [chapter]
    outcome = runner.execute(chapter, notebooks.Parameters())
    assert outcome.status == "failed" and not outcome.kept
    assert outcome.where.startswith("ValueError: 01-dlg.ipynb is not a complete notebook (")
    assert "\n" not in outcome.where


def test_notes_of_another_on_a_page_are_no_fingerprint(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg")
    page = nbformat.read(chapter.notebook, as_version=4)
    page.metadata["reprolib"] = [1]
    notebooks.save_notebook(page, chapter.page)
    assert not pages.is_current(chapter, notebooks.Parameters())


def test_a_folder_in_the_place_of_a_page_is_one_failed_outcome(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg")
    chapter.page.mkdir(parents=True)
    (outcome,) = runner.run(tmp_path, tell=lambda line: None)
    assert outcome.status == "failed" and not outcome.stale
    assert outcome.where.startswith("the page could not be saved: Is a directory")
    assert outcome.where.endswith("(nor could the page be marked stale: Is a directory)")
    assert str(tmp_path) not in outcome.where, "no path of this machine"


def test_a_notebook_that_cannot_be_read_does_not_say_that_its_page_was_not_saved(tmp_path):
    chapter = notebooks.Chapter(tmp_path, "01-dlg")
    chapter.notebook.mkdir(parents=True)
    outcome = runner.execute(chapter, notebooks.Parameters())
    assert outcome.where == "the chapter could not be executed: Is a directory (01-dlg.ipynb)"


def test_a_failure_that_cannot_be_kept_does_not_say_so(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg", "1 / 0")
    chapter.failed.parent.parent.mkdir(parents=True)
    chapter.failed.parent.write_text("a file in the folder's place")
    outcome = runner.execute(chapter, notebooks.Parameters())
    assert outcome.where == "cell 3: ZeroDivisionError: division by zero" and outcome.stale and not outcome.kept
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "allowed"),
    [("2", 2), ("", None), (" 3 ", 3), ("4,2", 4), ("many", None), ("0", None), ("-1", None), ("9" * 5000, None)],
)
def test_threads_are_read_as_openmp_reads_them(monkeypatch, value, allowed):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert runner._threads_allowed() == allowed


def test_chapters_run_whatever_the_environment_says(tmp_path, monkeypatch):
    """The reader's own start-up files do not run in a chapter's kernel, and its variables arrive as they are."""
    own = tmp_path / "ipython" / "profile_default"
    (own / "startup").mkdir(parents=True)
    (own / "startup" / "00-own.py").write_text("own = 1")
    (own / "ipython_config.py").write_text("c.InteractiveShellApp.exec_lines = ['configured = 1']")
    (own / "ipython_kernel_config.py").write_text("c.IPKernelApp.exec_lines = ['configured = 1']")
    (tmp_path / "startup.py").write_text("started = 1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))
    (own / "matplotlibrc").write_text("lines.linewidth: 17")
    monkeypatch.setenv("MATPLOTLIBRC", str(own))
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")  # which takes the docstrings that cma reads
    monkeypatch.setenv("OMP_NUM_THREADS", "1,2")
    data = tmp_path / 'it\'s "$HOME" `a`; $(b)'
    data.mkdir()
    names = "{'own', 'configured', 'started'} & set(globals())"
    chapter = write_chapter(
        tmp_path,
        "01-dlg",
        f"import os, sys, matplotlib\nnames = 'OMP_NUM_THREADS', 'REPROLIB_DATA'\n"
        f"print({names}, sys.flags.optimize, *map(os.environ.get, names), matplotlib.rcParams['lines.linewidth'])",
    )
    (outcome,) = runner.run(tmp_path, parameters=notebooks.Parameters(data_root=str(data)), tell=lambda line: None)
    assert outcome.status == "ran", outcome.where
    assert f"set() 0 1 {data} 1.5" in text_of(chapter.page)


def test_what_cannot_be_read_in_the_data_root_is_left_to_who_needs_it(tmp_path, monkeypatch):
    chapter, data = write_chapter(tmp_path, "01-dlg"), tmp_path / "data"
    (data / "lost+found").mkdir(parents=True)
    parameters = notebooks.Parameters(data_root=str(data))
    (data / "gone").symlink_to(tmp_path / "nowhere")
    (data / "round").symlink_to(data / "round")
    seen = pages.fingerprint(chapter, parameters)
    scan = os.scandir

    def refused(folder):
        if Path(folder).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(runner.os, "scandir", refused)
    assert pages.fingerprint(chapter, parameters) == seen


def test_a_full_disk_leaves_the_old_page(tmp_path):
    chapter = write_chapter(tmp_path, "01-dlg", "print('x' * 300_000)")
    put_good_page(chapter)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a write beyond fails, as on a full disk
    try:
        outcome = runner.execute(chapter, notebooks.Parameters())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.status == "failed" and "the page could not be saved: File too large" in outcome.where
    assert "the last good page" in text_of(chapter.page) and "could not be saved" in text_of(chapter.page)
    assert leftovers(tmp_path) == []


def test_a_disk_too_full_even_for_the_mark_leaves_the_page_as_it_was(tmp_path, monkeypatch):
    chapter = write_chapter(tmp_path, "01-dlg")
    old = put_good_page(chapter)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "_execute", full)
    monkeypatch.setattr(runner.os, "fsync", full)
    outcome = runner.execute(chapter, notebooks.Parameters())
    assert "No space left on device (nor could the page be marked stale" in outcome.where
    assert chapter.page.read_bytes() == old
    assert leftovers(tmp_path) == []


SLOW = "import pathlib, time\npathlib.Path('reached').touch()\ntime.sleep(600 if pathlib.Path('slow').exists() else 0)"
RUN = "import pathlib\nfrom reprolib.book import notebooks, runner\n{patch}\nrunner.{call}"
STOP_IN_SAVE = """
import os, time
def stop(*_):
    pathlib.Path("reached").touch()
    time.sleep(600)
os.{step} = stop
"""


@pytest.mark.parametrize("moment", ["in a cell", "before the page is replaced", "before the text is on disk"])
def test_sigkill_leaves_the_old_page_and_the_next_run_continues(tmp_path, moment):
    chapter = write_chapter(tmp_path, "01-dlg", SLOW, "print('complete')")
    old = put_good_page(chapter)
    (tmp_path / "slow").touch()
    if moment == "in a cell":
        script = RUN.format(patch="", call="run(pathlib.Path.cwd())")
    else:
        (tmp_path / "slow").unlink()
        step = "replace" if moment == "before the page is replaced" else "fsync"
        call = "execute(notebooks.Chapter(pathlib.Path.cwd(), '01-dlg'), notebooks.Parameters())"
        # Only the last `reached` counts: the cell has touched it too, so the script removes it as papermill ends.
        patch = "papermill = runner.papermill.execute_notebook\n" + STOP_IN_SAVE.format(step=step)
        script = RUN.format(patch=patch, call=call).replace(
            "runner.execute(",
            "runner.papermill.execute_notebook = lambda *a, **k: (papermill(*a, **k), os.remove('reached'))\n"
            "runner.execute(",
        )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    deadline = time.monotonic() + 60
    reached = tmp_path / "reached"
    while not (reached.exists() and (moment == "in a cell" or list(chapter.page.parent.glob(".*.tmp")))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert chapter.page.read_bytes() == old
    (tmp_path / "slow").unlink(missing_ok=True)
    outcome = runner.execute(chapter, notebooks.Parameters())
    while outcome.status == "busy" and time.monotonic() < deadline:  # the worker has yet to see that its parent is gone
        time.sleep(0.1)
        outcome = runner.execute(chapter, notebooks.Parameters())
    assert outcome.status == "ran"
    assert "complete" in text_of(chapter.page)
    assert leftovers(tmp_path) == []
