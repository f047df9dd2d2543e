"""The command line: one clear line an error, exit codes, and the tables that it prints."""

import os
import socket
import subprocess
import sys
import threading
import types
from urllib.request import urlopen

import pandas as pd
import pytest
from test_runner import text_of, write_chapter
from typer.testing import CliRunner

from reprolib import cli
from reprolib.book import locks, notebooks, runner


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPROLIB_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "claims").mkdir()
    write_chapter(tmp_path, "01-good", "import os\nprint(profile, os.environ['REPROLIB_DATA'])")
    return tmp_path


def call(*arguments: str):
    return CliRunner().invoke(cli.app, arguments)


def test_run_names_what_failed_and_where_and_ends_non_zero(book):
    write_chapter(book, "02-bad", "1 / 0")
    (book / "images").mkdir()
    result = call("run", "--profile", "smoke", "--jobs", "2", "--data", "images")
    assert result.exit_code == 1
    assert "cell 3: ZeroDivisionError: division by zero" in result.stdout
    assert "Kept for reading: book/chapters/failed/02-bad.ipynb" in result.stdout
    assert "Pages marked stale: 02-bad" in result.stdout
    assert f"smoke {book / 'images'}" in text_of(book / "book" / "chapters" / "01-good.ipynb")
    result = call("run", "good", "--profile", "smoke", "--data", "images")
    assert result.exit_code == 0 and "unchanged" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "gdl"], "Error: chapter 'gdl' is unknown; known chapters: 01-good"),
        (["run", "--profile", "huge"], "profile 'huge' is unknown; known profiles: reference, smoke, cpu, gpu, paper"),
        (["run", "--device", "tpu"], "device 'tpu' is unknown; known devices: auto, cpu, cuda"),
        (["run", "--jobs", "0"], "jobs is 0; it must be at least 1"),
        (["run", "--data", "nowhere"], "nowhere' is not a folder; make it, or leave it out to run offline"),
        (["serve"], "there is no site yet: make book builds it"),
        (["serve", "--port", "99999"], "port is 99999; it must be between 1 and 65535"),
        (["data", "check", "nowhere"], "'nowhere' is neither a folder nor a known data set"),
        (["data", "download", "photos"], "'photos' comes with the installed packages: nothing to download"),
    ],
)
def test_a_wrong_argument_is_one_clear_line_and_exit_code_2(book, arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_cuda_absent_says_so_and_what_to_do(book, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = call("run", "--device", "cuda")
    assert result.exit_code == 2
    assert "device 'cuda' was asked for, but torch finds no CUDA here; use --device cpu" in result.stderr


def test_debug_shows_the_traceback(book):
    assert isinstance(call("--debug", "run", "gdl").exception, ValueError)


def test_outside_a_clone_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("run")
    assert result.exit_code == 2 and "no folder with claims/ and notebooks/ in" in result.stderr


def test_a_second_run_of_a_chapter_ends_non_zero(book):
    chapter = notebooks.Chapter(book, "01-good")
    with locks.locked(chapter.lock, chapter.stem):
        result = call("run", "1")
    assert result.exit_code == 1
    assert f"01-good is being made by process {os.getpid()}" in result.stdout
    assert "stale" not in result.stdout and "Kept" not in result.stdout


def test_a_site_whose_lock_cannot_be_taken_is_one_line(book, monkeypatch):
    (book / "book" / "chapters" / ".site.lock").mkdir(parents=True)
    monkeypatch.setattr(runner, "run", lambda *arguments, **options: [])
    result = call("book")
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1
    assert "the site was not made: its lock chapters/.site.lock cannot be taken (Is a directory)" in result.stderr


def test_book_builds_the_site_anew_even_after_a_failed_chapter(book, monkeypatch):
    (book / "_build").mkdir()
    (book / "_build" / "half-written.html").touch()
    outcomes = [
        runner.Outcome("01-good", "failed", 1.0, "cell 3: ValueError: no", stale=True),
        runner.Outcome("02-other", "failed", 1.0, "its lock cannot be taken"),
        runner.Outcome("03-busy", "busy", where="is being made"),
    ]
    monkeypatch.setattr(runner, "run", lambda *arguments, **options: outcomes)
    started = []

    def build(code):
        def start(*work):
            started.append(work)
            nothing = dict.fromkeys(("join", "terminate", "kill"), lambda *_: None)
            return types.SimpleNamespace(exitcode=code, **nothing)

        return start

    monkeypatch.setattr(cli.children, "start", build(0))
    result = call("book")
    assert result.exit_code == 1
    assert result.stderr.strip() == "Not made anew: 01-good (failed), 02-other (failed), 03-busy (busy)"
    assert "Pages marked stale: 01-good\n" in result.stdout and "Kept" not in result.stdout
    assert started == [(cli._site, str(book))]
    assert not (book / "_build").exists()

    monkeypatch.setattr(cli.children, "start", build(3))
    result = call("book")
    assert result.exit_code == 1 and "jupyter-book build ended with exit code 3" in result.stderr


def test_report_is_written_where_asked(book, monkeypatch):
    written = []
    module = types.SimpleNamespace(write_report=lambda root, out: written.append((root, out.name)))
    monkeypatch.setitem(sys.modules, "reprolib.book.report", module)
    result = call("report", "--out", "mail.html")
    assert result.exit_code == 0 and "Wrote mail.html" in result.stdout
    assert written == [(book, "mail.html")]


def test_a_busy_port_is_one_line(book):
    (book / "_build" / "html").mkdir(parents=True)
    (book / "_build" / "html" / "index.html").write_text("the site")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = call("serve", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1
    assert "cannot be used (Address already in use); name another: make serve PORT=8001" in result.stderr


def test_the_site_is_served_until_it_is_stopped(book, monkeypatch):
    (book / "_build" / "html").mkdir(parents=True)
    (book / "_build" / "html" / "index.html").write_text("the site")

    def once(server):
        page = threading.Thread(target=lambda: seen.append(urlopen(f"http://127.0.0.1:{port}/").read()))
        page.start()
        server.handle_request()
        page.join()
        raise KeyboardInterrupt

    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(cli.ThreadingHTTPServer, "serve_forever", once)
    result = call("serve", "--port", str(port))
    assert result.exit_code == 0 and seen == [b"the site"]
    assert f"The site is at http://127.0.0.1:{port} until Ctrl-C" in result.stdout


def test_python_without_docstrings_is_refused_in_one_line():
    code = "import sys; from reprolib.cli import app; sys.argv = ['reprolib', 'doctor']; app()"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "Python was started without docstrings (-OO), which the package cma reads: leave out one O" in done.stderr


def test_data_lists_every_set_and_checks_one(book):
    result = call("data")
    assert result.exit_code == 0
    assert "photos" in result.stdout and "cifar10" in result.stdout
    assert call("data", "list").stdout == result.stdout
    result = call("data", "check", "digits")
    assert result.exit_code == 0 and "no problem found" in result.stdout


@pytest.mark.parametrize(
    ("value", "epochs", "said"),
    [
        (0.52, 2, "50.0 % of 10 test images right [40.0, 60.0]; the new figure lies within this interval"),
        (0.61, 2, "[40.0, 60.0]; the new figure lies OUTSIDE this interval"),
        (0.52, 3, "[40.0, 60.0], by another recipe or on other images"),
        (0.52, None, None),
    ],
)
def test_training_again_is_compared_with_the_card_that_it_replaces(book, monkeypatch, value, epochs, said):
    from reprolib import models
    from reprolib.experiments import training

    def card(value):
        interval = {"value": value, "low": value - 0.1, "high": value + 0.1, "images": 10}
        return {"recipe": {"epochs": 2, "rate": (1, 2)}, "data": {"train": "own"}, "test_accuracy": interval}

    monkeypatch.setattr(cli.console, "width", 200)
    monkeypatch.setitem(training.RECIPES, "own-photos", None)
    monkeypatch.setattr(training, "train", lambda *given: card(value))
    if epochs is not None:
        shipped = card(0.5)
        shipped["recipe"]["epochs"] = epochs
        models.save_checkpoint(
            models.build("lenet", 10, (3, 32, 32), 0), book / "checkpoints" / "own-photos.safetensors", shipped
        )
    result = call("train", "own-photos")
    assert result.exit_code == 0, result.output
    first, *rest = result.stdout.strip().splitlines()
    assert first.startswith(f"own-photos: {100 * value:.1f} % of 10 test images right [")
    assert (said in rest[0] and len(rest) == 1) if said else not rest


def test_doctor_says_what_is_here_and_what_it_costs(book, monkeypatch):
    from reprolib.book import results

    def record(profile, seconds, device):
        made = results.provenance("cpu", 0) | {"seconds": seconds, "device": device}
        held = {"measures": {}, "skipped": {}, "figures": []}
        return {"paper": "good", "profile": profile, "provenance": made} | held

    monkeypatch.setattr(cli, "_speed", lambda: "9 evaluations/s")
    monkeypatch.setattr(cli.console, "width", 200)  # a narrow terminal would break the lines that are looked for
    results.save(book / "results" / "runs" / "cpu" / "good.json", record("cpu", 95.2, "cpu: A"))
    results.save(book / "results" / "reference" / "good" / "good.json", record("gpu", 210.0, "cuda: B"))
    (book / "results" / "runs" / "smoke").mkdir()
    (book / "results" / "runs" / "smoke" / "good.json").write_text("{ cut in ha")
    results.save(book / "results" / "runs" / "gpu" / "good.json", {"measures": ["of another schema"]})
    results.save(book / "results" / "runs" / "paper" / "good.json", record("paper", 9.0, "cpu: A") | {"paper": "other"})
    result = call("doctor")
    assert result.exit_code == 0
    for text in ("memory", "threads", "photos", "checkpoints", "9 evaluations/s"):
        assert text in result.stdout
    assert "95 s, last run here" in result.stdout
    assert "210 s, reference run on cuda: B" in result.stdout
    assert "≤ 20 s, not run yet" in result.stdout, "a damaged record is no measurement"
    assert "hours, not run yet" in result.stdout, "nor is that of another paper"


def test_the_catalogue_is_printed_as_a_table():
    frame = pd.DataFrame({"name": ["photos"], "present": [True], "shape": ["3x32x32"]})
    table = cli._table(frame)
    assert [column.header for column in table.columns] == ["name", "present", "shape"]
    assert list(table.columns[1].cells) == ["yes"]
