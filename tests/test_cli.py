"""The command line: one clear line an error, exit codes, and the tables that it prints."""

import os
import subprocess
import sys
import types

import pandas as pd
import pytest
from test_runner import text_of, write_chapter
from typer.testing import CliRunner

from reprolib import cli, runner


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
    assert "book/chapters/failed/" in result.stdout
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
    chapter = runner.Chapter(book, "01-good")
    with runner.locked(chapter.lock, chapter.stem):
        result = call("run", "1")
    assert result.exit_code == 1
    assert f"01-good is being made by process {os.getpid()}" in result.stdout


def test_book_builds_the_site_anew_even_after_a_failed_chapter(book, monkeypatch):
    (book / "_build").mkdir()
    (book / "_build" / "half-written.html").touch()
    outcomes = [runner.Outcome("01-good", "failed", 1.0, "cell 3: ValueError: no")]
    monkeypatch.setattr(runner, "run", lambda *arguments, **options: outcomes)
    commands = []

    def build(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(cli.subprocess, "run", build)
    result = call("book")
    assert result.exit_code == 1 and "marked stale" in result.stderr
    assert commands[0][0] == sys.executable and commands[0][-2:] == ["build", str(book)]
    assert not (book / "_build").exists()

    monkeypatch.setattr(cli.subprocess, "run", lambda command: subprocess.CompletedProcess(command, 3))
    result = call("book")
    assert result.exit_code == 1 and "jupyter-book build ended with exit code 3" in result.stderr


def test_report_is_written_where_asked(book, monkeypatch):
    written = []
    module = types.SimpleNamespace(write_report=lambda root, out: written.append((root, out.name)))
    monkeypatch.setitem(sys.modules, "reprolib.report", module)
    result = call("report", "--out", "mail.html")
    assert result.exit_code == 0 and "Wrote mail.html" in result.stdout
    assert written == [(book, "mail.html")]


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
    from reprolib import models, training

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
    from reprolib import results

    def record(profile, seconds, device):
        return {"profile": profile, "provenance": {"seconds": seconds, "device": device}}

    monkeypatch.setattr(cli, "_speed", lambda: "9 evaluations/s")
    monkeypatch.setattr(cli.console, "width", 200)  # a narrow terminal would break the lines that are looked for
    results.save(book / "results" / "runs" / "cpu" / "good.json", record("cpu", 95.2, "cpu: A"))
    results.save(book / "results" / "reference" / "good" / "good.json", record("gpu", 210.0, "cuda: B"))
    (book / "results" / "runs" / "smoke").mkdir()
    (book / "results" / "runs" / "smoke" / "good.json").write_text("{ cut in ha")
    result = call("doctor")
    assert result.exit_code == 0
    for text in ("memory", "threads", "photos", "checkpoints", "9 evaluations/s"):
        assert text in result.stdout
    assert "95 s, last run here" in result.stdout
    assert "210 s, reference run on cuda: B" in result.stdout
    assert "≤ 20 s, not run yet" in result.stdout, "a damaged record is no measurement"


def test_the_catalogue_is_printed_as_a_table():
    frame = pd.DataFrame({"name": ["photos"], "present": [True], "shape": ["3x32x32"]})
    table = cli._table(frame)
    assert [column.header for column in table.columns] == ["name", "present", "shape"]
    assert list(table.columns[1].cells) == ["yes"]
