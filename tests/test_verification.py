"""The reference run as data: shown from records, accepted, compared and verified, and what is left when that fails."""

import dataclasses
import os
import shutil
import struct
import types

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from test_records import change_tensors, rewrite, written
from test_runner import write_chapter
from typer.testing import CliRunner

from reprolib import cli, data
from reprolib.book import (
    chapter,
    checked,
    comparison,
    figures,
    fingerprints,
    notebooks,
    parts,
    recorded_set,
    records,
    reference_run,
    results,
    runner,
    verification,
)
from reprolib.measure import intervals, metrics
from reprolib.measure.entries import Unmeasured

CLAIMS = """
paper: toy
title: A Toy Paper
measures:
  hits: share of images found
claims:
  - id: finds
    says: images are found
    where: abstract
    published: {value: 90.0, unit: "%"}
    provenance: read
    needs: {data: [mnist], profile: cpu, images: 2}
    scope: none
    criterion: {measure: hits, at_least: 0.5}
"""
SIZES = {"trials": (2, 3, 6, 9)}
COMMIT = "0123456789ab"
log = types.ModuleType("log")  # of which a record knows no more than the name, whatever it holds
log.ran = []


def measure(images, trials, seed, factor, device):
    """A row a trial, as an attack's scores."""
    log.ran.append(f"measure {len(trials)}")
    rows = []
    for trial in trials:
        truth = images.images[trial]
        guess = truth * factor
        error = metrics.mse(guess[None], truth[None]).item()
        rows.append({"trial": trial, "mse": error, "hit": error < 0.3, "label": 7 * trial + seed, "seconds": 0.1})
    return {"scores": pd.DataFrame(rows), "shown": images.images[:2], "n": 3}


def whole(seed, power):
    log.ran.append("whole")
    return {
        "levels": pd.DataFrame({"level": [0.5, 1.0], "x": [0.25**power, 1.0]}),
        "curve": torch.arange(3.0),
        "s": seed,
    }


def _mnist(root, shift=0):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = (np.arange(12 * 784, dtype=np.uint32) * 7 + shift).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 12, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 12) + bytes(i % 10 for i in range(12)))
    return str(root)


class Book:
    """A repository with one paper, whose chapter `run` executes as a notebook would, cell by cell."""

    def __init__(self, root, monkeypatch):
        self.root, self.shown, self.cell = root, [], 0
        self.images = _mnist(root / "data")
        (root / "claims").mkdir()
        (root / "claims" / "toy.yml").write_text(CLAIMS)
        (root / "notebooks").mkdir()
        self.home = root / "results" / "reference" / "toy"
        self.results = self.home / "toy.json"
        monkeypatch.chdir(root)
        monkeypatch.delenv("REPROLIB_RESULTS", raising=False)
        monkeypatch.setattr(chapter, "display", lambda content, raw=False: self.shown.append(content["text/html"]))
        monkeypatch.setattr(parts, "cell", lambda: self.cell)
        monkeypatch.setattr(figures, "png", lambda figure: checked.PNG)  # drawing is tested elsewhere, and slow
        monkeypatch.setattr(figures, "png_within", lambda figure, limit, drawn: drawn)

    def run(self, profile="reference", images="", seed=1, factor=0.5, power=2, part=measure, only=(), finish=True):
        """Execute the chapter; what it displays is in `shown`. only: of its three parts."""
        log.ran.clear()
        self.shown.clear()
        ch = chapter.start("toy", profile, seed, "cpu", images, sizes=SIZES)
        self.images_of_chapter = digits = ch.data("mnist", count=12)
        self.values = {}
        trials = list(range(ch.settings.trials))
        inputs = {"images": digits, "seed": ch.seed, "device": ch.device}

        def cells():
            if "measure" in wanted:
                self.values["measure"] = ch.part("measure", part, trials=trials, factor=factor, **inputs)
                ch.figure(picture(), "main", "The figure.")
                yield
            if "whole" in wanted:
                self.values["whole"] = ch.part("whole", whole, seed=ch.seed, power=power)
                ch.table(self.values["whole"]["levels"], "The levels.")
                yield
            if "live" in wanted:
                self.values["live"] = ch.live("live", measure, trials=[0, 1], factor=factor, **inputs)
                ch.figure(picture(), "live", "What ran live.")
                yield
            ch.table(pd.DataFrame({"x": [len(log.ran)]}), "After everything.")

        wanted = only or ("measure", "whole", "live")
        for _ in cells():
            self.cell += 1
        if finish:
            hits = self.values["measure"]["scores"].hit if "measure" in wanted else [True, True]
            ch.measure({"hits": intervals.proportion([*hits])}, data=digits)
            ch.finish()
        return ch

    def accept(self, **options):
        self.run("gpu", self.images, **options)
        return verification.accept(self.root, "toy")

    def caption(self, text):
        return next(shown for shown in self.shown if text in shown)

    def state(self):
        return results.load(self.root / "results/runs/reference/toy.json")["state"]

    def record(self, name="measure"):
        return self.home / "records" / f"{name}.json"

    def name_again(self, name="measure"):
        """Let the results name a record as it is now, as one who wants to deceive."""
        payload = results.load(self.results)
        payload["records"][name]["sha256"] = records.checksum(self.record(name))
        results.save(self.results, payload)


def picture():
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    return figure


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A book without a reference run."""
    monkeypatch.setattr(results, "commit", lambda: COMMIT)
    with matplotlib.rc_context():
        yield Book(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def accepted_once(tmp_path_factory):
    """The files of a book whose run was accepted."""
    root = tmp_path_factory.mktemp("accepted")
    with pytest.MonkeyPatch.context() as monkeypatch, matplotlib.rc_context():
        monkeypatch.setattr(results, "commit", lambda: COMMIT)
        Book(root, monkeypatch).accept()
    return root


@pytest.fixture
def book(fresh, accepted_once):
    """A book with an accepted reference run of the profile gpu."""
    shutil.copytree(accepted_once / "results", fresh.root / "results")
    return fresh


def forge(book, column="mse", name="measure", table="scores", row=0, add=1e-3):
    """Change one digit of a record, with every checksum computed again."""

    def change(arrays):
        values = arrays[f"/{table}/{column}"].clone()
        values[row] = values[row] + add
        return arrays | {f"/{table}/{column}": values}

    change_tensors(book.record(name), change)
    book.name_again(name)


# --- a chapter that shows the reference run


def test_tables_and_figures_come_from_the_record_and_say_so(book):
    book.run()
    assert log.ran == ["measure 2"], "the live one alone, on stand-ins"
    assert "This page shows the <b>reference run</b> from its committed records" in book.shown[1]
    for text in ("The figure.", "The levels.", "After everything."):
        assert "<i>(from the record)</i>" in book.caption(text), text
    assert f"3 parts, read from <code>results/reference/toy/records</code>, made at commit {COMMIT}." in book.shown[-2]
    assert not any(book.state().values()) and len(book.values["measure"]["scores"]) == 6
    mine, reference = results.load(book.root / "results/runs/reference/toy.json"), results.load(book.results)
    for key in ("profile", "measures", "records", "sets", "settings"):
        assert mine[key] == reference[key], key
    assert mine["provenance"] == reference["provenance"] and "Substitute" not in "".join(book.shown)


def test_replayed_and_fresh_parts_have_the_same_values(book):
    book.run()
    shown = dict(book.values)
    book.run("gpu", book.images)
    for name in ("measure", "whole"):
        assert comparison.differences(shown[name], book.values[name]) == []
        assert [*shown[name]] == [*book.values[name]]


def test_a_cell_that_changes_what_it_got_gets_it_as_it_was(book):
    ch = book.run()
    value = ch.part("whole", whole, seed=1, power=2)
    value.pop("levels")
    value["curve"].zero_()
    again = ch.part("whole", whole, seed=1, power=2)
    assert "levels" in again and again["curve"].tolist() == [0, 1, 2]


def test_a_changed_part_runs_on_two_trials_and_says_so(book):
    book.run(images=book.images, factor=0.75, only=("measure", "whole"))
    assert log.ran == ["measure 2"] and book.values["measure"]["scores"]["trial"].tolist() == [0, 3]
    box = book.caption("Not from the record")
    assert (
        "its record does not answer what the notebook asks for (inputs.factor). So 2 of its 6 trials run here;" in box
    )
    assert "<code>reprolib run toy --profile gpu --data ROOT</code> runs all" in box
    assert "<i>(run here on 2 trials: this part was changed)</i>" in book.caption("The figure.")
    assert "<i>(partly run here: a cell above was changed)</i>" in book.caption("The levels.")
    assert (
        book.state()["not from the record"] == ["measure"] and "<b>Not from the record</b>: measure." in book.shown[-2]
    )
    assert book.state()["records that nothing asks for"] == ["live"]


def test_a_changed_part_runs_on_stand_ins_where_its_images_are_absent(book):
    book.run(factor=0.75)
    assert "2 of its 6 trials run here, on stand-in images;" in book.caption("Not from the record")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 2}, "inputs.seed, seed"),
        ({"part": lambda **inputs: measure(**inputs)}, "function"),
        ({"factor": 1}, "inputs.factor"),
    ],
)
def test_what_differs_from_the_record_is_named(book, changed, named):
    book.run(only=("measure",), **changed)
    assert f"what the notebook asks for ({named})" in book.caption("Not from the record")


def test_a_changed_part_that_cannot_run_small_is_a_gap_with_the_command(book):
    with pytest.raises(parts.MissingPart, match=r"part 'whole': .*\(inputs.power\); `reprolib run toy --profile gpu"):
        book.run(power=3)


def test_a_record_that_nothing_asks_for_is_named_at_the_end(book):
    book.run(only=("measure", "live"))
    assert "<b>Records that nothing asks for</b>: whole." in book.shown[-2]


# images


def test_a_set_that_is_absent_tells_what_the_record_knows(book):
    book.run()
    images = book.images_of_chapter
    assert (len(images), images.num_classes, images.image_shape, images.name) == (12, 10, (1, 28, 28), "mnist")
    assert images.fingerprint == data.load("mnist", count=12, seed=1, root=book.images).fingerprint
    with pytest.raises(FileNotFoundError, match=r"The record knows of 'mnist' \(test\) that it has 12 images of"):
        _ = images.images
    book.run(images=book.images)
    assert book.images_of_chapter.images.shape == (12, 1, 28, 28)


def test_another_copy_of_a_set_is_not_taken_for_the_records(book, tmp_path):
    other = _mnist(tmp_path / "other", shift=1)
    book.run(images=other)
    with pytest.raises(
        ValueError, match="but the copy here is 'mnist' with 12 images and fingerprint .*: these are other"
    ):
        _ = book.images_of_chapter.images
    assert "The paper&#x27;s images are not here, so it ran on stand-ins" in book.caption("Run live")
    book.run(images=other, factor=0.75)
    assert ", on stand-in images;" in book.caption("Not from the record")


def test_a_set_that_the_record_does_not_know_is_opened_here(book):
    ch = book.run()
    assert ch.data("digits", count=5).name == "digits" and ch.data("mnist", count=7).substitute


def test_images_are_found_wherever_they_stand_in_a_parts_inputs(book):
    @dataclasses.dataclass(frozen=True)
    class Holder:
        images: object
        others: tuple = ()

    ch = book.run(images=book.images)
    known = book.images_of_chapter
    inputs = {"a": [known], "b": {"c": (known, 1)}, "d": Holder(Holder(known), (Holder(known),)), "e": Holder(3)}
    here, same = recorded_set.with_images(inputs, ch.seed)
    assert same and here["e"] is inputs["e"]
    found = (here["a"][0], here["b"]["c"][0], here["d"].images.images, here["d"].others[0].images)
    assert all(isinstance(images, data.ImageSet) for images in found)


# live


def test_a_live_part_runs_on_the_records_images_and_is_compared(book):
    book.run(images=book.images)
    assert log.ran == ["measure 2"]
    assert f"Beside the record, made at commit {COMMIT}: equal to six digits." in book.caption("Run live")
    assert "(live ran on this machine, on the images of the record)" in book.caption("What ran live.")
    assert not any(book.state().values()), "its record is asked for"


def test_a_live_part_runs_on_stand_ins_where_the_images_are_absent(book):
    book.run()
    box = book.caption("Run live")
    assert "it ran on stand-ins, and its numbers are not the record&#x27;s" in box and "equal" not in box
    assert "(live ran on this machine, on stand-in images)" in book.caption("What ran live.")


@pytest.mark.parametrize(("column", "add"), [("mse", 1e-4), ("label", 1)])
def test_a_live_part_that_differs_from_its_record_is_an_error(book, column, add):
    forge(book, column, "live", add=add)
    with pytest.raises(ValueError, match=f"part 'live' ran here and differs from its record: scores, {column}: 1 of 2"):
        book.run(images=book.images)


def test_a_live_part_of_other_inputs_is_not_compared_and_is_no_record(book):
    book.run(images=book.images, factor=0.75)
    assert "Its record is of other inputs (inputs.factor), so there is nothing to compare" in book.caption("Run live")
    assert book.state()["not from the record"] == ["live", "measure"]


@pytest.mark.parametrize("what", ["device", "packages", "threads"])
def test_on_another_kind_of_machine_a_live_part_must_have_the_same_outcomes(book, monkeypatch, what):
    if what == "device":
        monkeypatch.setattr(results, "device_name", lambda device: "cuda: another")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    else:
        monkeypatch.setattr(results, "versions", lambda: {"torch": "99"})
    forge(book, "mse", "live", add=1e-4)
    book.run(images=book.images)
    assert "the same outcomes, on another kind of machine, or with other packages or threads" in book.caption(
        "Run live"
    )
    forge(book, "label", "live", add=1)
    with pytest.raises(ValueError, match="part 'live' ran here and differs from its record: scores, label"):
        book.run(images=book.images)


def test_a_live_part_without_a_record_says_so(book):
    payload = results.load(book.results)
    del payload["records"]["live"]
    results.save(book.results, payload)
    book.run(images=book.images)
    assert "There is no record of it to compare with." in book.caption("Run live")


# records that are missing or bad


def _commit(path, commit):
    rewrite(path, lambda payload: payload["made"].update(commit=commit))


BAD = {
    "cut in half": (lambda p: p.write_bytes(p.read_bytes()[:300]), False, "is not complete JSON"),
    "cut tensors": (
        lambda p: (t := p.with_suffix(".safetensors")).write_bytes(t.read_bytes()[:99]),
        False,
        "its checksum",
    ),
    "missing": (lambda p: p.unlink(), False, "measure: the record is missing from records"),
    "missing tensors": (
        lambda p: p.with_suffix(".safetensors").unlink(),
        False,
        "measure: its tensors are missing from records",
    ),
    "a digit, and its own checksums": (
        lambda p: change_tensors(p, lambda a: a | {"/scores/mse": a["/scores/mse"] + 1}),
        False,
        "it is not the one that was accepted|the record is not the one that was accepted",
    ),
    "of another schema": (lambda p: rewrite(p, lambda q: q.update(schema=1)), True, "is a record of schema 1"),
    "of another paper": (lambda p: rewrite(p, lambda q: q.update(paper="idlg")), True, "is of the paper &#x27;idlg"),
    "of another part": (lambda p: rewrite(p, lambda q: q.update(name="whole")), True, "and of part &#x27;whole&#x27;"),
    "of a tree with changes": (lambda p: _commit(p, f"{COMMIT}+changes"), True, "made from a tree with changes"),
    "of no checkout": (lambda p: _commit(p, None), True, "made from a tree with changes, which no commit holds"),
    "no record": (lambda p: rewrite(p, lambda q: {"a": 1}), True, "is no record of a part: it lacks code"),
    "made by nothing": (lambda p: rewrite(p, lambda q: q.update(made={})), True, "does not say what made it"),
    "without its values": (
        lambda p: rewrite(p, lambda q: q.update(value={})),
        True,
        "its values and its tensors do not",
    ),
}


@pytest.mark.parametrize(("damage", "named", "message"), BAD.values(), ids=BAD)
def test_a_bad_record_is_a_marked_gap_and_the_chapter_goes_on(book, damage, named, message):
    damage(book.record())
    if named:
        book.name_again()
    book.run(images=book.images)
    assert log.ran == ["measure 2", "measure 2"], "two trials in its place, and the live part"
    assert "(run here on 2 trials: this part was changed)" in book.caption("The figure.")
    (problem,) = book.state()["records that cannot be used"]
    assert problem.startswith("measure: ")
    for box in (book.caption("Not from the record"), book.shown[-2]):
        assert any(part in box for part in message.split("|")), box
    assert book.state()["not from the record"] == ["measure"] and book.state()["records that nothing asks for"] == []
    assert len(book.values["whole"]["levels"]) == 2, "the others stay"


@pytest.mark.parametrize("name", ["../measure", "/etc/passwd", "a/b", "A", ""])
def test_a_record_is_no_path(book, name):
    payload = results.load(book.results)
    payload["records"][name] = payload["records"]["measure"]
    results.save(book.results, payload)
    shutil.copy(book.record(), book.home / "measure.json")
    book.run()
    (problem,) = book.state()["records that cannot be used"]
    assert "expected small letters, digits, dashes" in problem


@pytest.mark.parametrize("entry", [None, "abc", {}, {"sha256": None}])
def test_a_record_that_the_results_do_not_name_by_its_checksum_is_not_shown(book, entry):
    payload = results.load(book.results)
    payload["records"]["measure"] = entry
    results.save(book.results, payload)
    book.run()
    assert "the record is not the one that was accepted" in book.state()["records that cannot be used"][0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "toy.json is not complete JSON"),
        (lambda p: p.write_text(p.read_text().replace('"schema": 1', '"schema": 9', 1)), "toy.json has schema 9"),
        (lambda p: results.save(p, results.load(p) | {"paper": "idlg"}), "toy.json is of the paper &#x27;idlg&#x27;"),
        (lambda p: results.save(p, {"paper": "toy", "records": {}}), "toy.json lacks figures, measures, profile"),
        (lambda p: results.save(p, results.load(p) | {"records": [1]}), "toy.json cannot be read: its records"),
        (
            lambda p: results.save(p, results.load(p) | {"provenance": {"time": 1}}),
            "does not say what made it: device, platform, python, sec",
        ),
        (lambda p: p.unlink(), "It has not been computed yet as data"),
    ],
)
def test_a_bad_results_file_is_no_reference_and_the_chapter_runs_small(book, damage, message):
    damage(book.results)
    book.run()
    box = book.caption("Record missing")
    assert (
        message in box
        and "reprolib run toy --profile gpu --device cuda --data ROOT</code> runs the chapter in full" in box
    )
    assert log.ran == ["measure 2", "whole", "measure 2"] and "profile <b>smoke</b>" in box
    assert "<i>(run here at the sizes of a test)</i>" in book.caption("The figure.")
    assert "from the record" not in "".join(book.shown)


def test_a_smaller_run_leads_with_the_reference_run(book):
    book.run("cpu", book.images)
    assert log.ran == ["measure 3", "whole", "measure 2"]
    figure, table = book.caption("The figure."), book.caption("The levels.")
    for shown, what in ((figure, "figure"), (table, "table")):
        front, _, folded = shown.partition("<details>")
        assert "<i>(reference run, " in front and f"The same {what} from this run" in folded
        assert "reference run" not in folded
    assert "All claims in the reference run" in "".join(book.shown)


# code that changed since


def _coded(monkeypatch, code):
    monkeypatch.setattr(fingerprints, "code_fingerprint", lambda function, inputs: code)


def test_changed_code_is_said_until_it_is_verified(book, monkeypatch):
    _coded(monkeypatch, "new code")
    book.run()
    assert book.state()["code changed and not verified"] == ["live", "measure", "whole"]
    assert "<b>Code changed and not verified</b>: live, measure, whole." in book.shown[-2]
    assert "(from the record)" in book.caption("The figure."), "it is still the record's"
    entry = {"part": "measure", "code": "new code", "commit": "fedcba", "count": 3, "time": "2026-12-01T00:00:00+00:00"}
    entry |= {"sha256": records.checksum(book.record()), "how": "equal to six digits"}
    results.save(book.home / "verified.json", {"entries": [entry]})
    book.run()
    assert "Code changed since; 3 trials re-run equal at fedcba." in book.shown[-2]
    assert not book.state()["code changed and not verified"]
    results.save(book.home / "verified.json", {"entries": [entry | {"how": "the same outcomes, on another machine"}]})
    book.run()
    assert "Code changed since; 3 trials re-run with the same outcomes at fedcba." in book.shown[-2]
    for other in ({"code": "older code"}, {"sha256": "of another record"}):
        results.save(book.home / "verified.json", {"entries": [entry | other]})
        book.run()
        assert book.state()["code changed and not verified"], other


@pytest.mark.parametrize("content", ["", "[]", '{"entries": 3}', "{}"])
def test_a_damaged_log_verifies_nothing(book, monkeypatch, content):
    _coded(monkeypatch, "new code")
    (book.home / "verified.json").write_text(content)
    book.run()
    results.save(book.home / "verified.json", {"entries": [1, {"part": "measure"}]})
    book.run()
    assert book.state()["code changed and not verified"] == ["live", "measure", "whole"]


# the store of a run


def test_an_upgrade_of_a_package_runs_a_part_again_and_an_edited_docstring_does_not(fresh, tmp_path, monkeypatch):
    text = 'def part(n):\n    """{}"""\n    # {}\n    return {{"n": n{}}}\n'
    functions = [written(tmp_path, text.format(*words)) for words in (("a", "b", ""), ("c", "d", ""), ("a", "b", "+1"))]
    ran = []

    def found(module):
        ch = chapter.start("toy", "cpu", device="cpu", sizes=SIZES)
        before = len(list((fresh.root / "results/parts/cpu").glob("*.json")))
        value = ch.part("one", module.part, n=1)
        ran.append(len(list((fresh.root / "results/parts/cpu").glob("*.json"))) > before)
        return value

    assert found(functions[0]) == found(functions[1]) == {"n": 1} and found(functions[2]) == {"n": 2}
    assert ran == [True, False, True]
    monkeypatch.setattr(results, "versions", lambda: {"cma": "99.0"})
    found(functions[0])
    assert ran[-1]


# --- accept


def test_a_finished_run_becomes_the_reference_run(fresh):
    said = fresh.accept()
    assert said.startswith("toy: 3 records, 0.0 MB, are the reference run now; commit results/reference/toy")
    files = sorted(path.relative_to(fresh.home).as_posix() for path in fresh.home.rglob("*") if path.is_file())
    whole_files = [f"records/{name}{end}" for name in ("live", "measure", "whole") for end in (".json", ".safetensors")]
    assert files == sorted(["toy.json", "main.png", "live.png", *whole_files])
    payload = results.load(fresh.results)
    assert payload["profile"] == "gpu" and set(payload["records"]) == {"live", "measure", "whole"}
    found, problems = reference_run.accepted_records("toy", payload["records"])
    assert len(found) == 3 and problems == []
    assert not list(fresh.home.parent.glob(".*"))


def test_an_old_reference_is_replaced_whole(book):
    (book.home / "old.png").write_bytes(b"old")
    results.save(book.home / "verified.json", {"entries": []})
    book.accept(factor=0.25)
    assert not (book.home / "old.png").exists() and not (book.home / "verified.json").exists()
    assert records.load(book.record()).inputs["factor"] == 0.25


def test_a_replay_leaves_what_ran_live_in_the_reference_run(book, monkeypatch):
    before = results.load(book.results)
    assert [figure["name"] for figure in before["figures"] if figure["live"]] == ["live"]
    (book.home / "live.png").write_bytes(checked.PNG + b"of the reference run")
    monkeypatch.setattr(figures, "png", lambda figure: checked.PNG + b"drawn anew")
    run = chapter.Chapter.figure
    monkeypatch.setattr(chapter.Chapter, "figure", lambda ch, drawn, name, caption: run(ch, drawn, name, f"New {name}"))
    book.run()  # without the images: the live experiment has stand-ins
    verification.accept(book.root, "toy", "reference")
    assert (book.home / "live.png").read_bytes() == checked.PNG + b"of the reference run"
    assert (book.home / "main.png").read_bytes() == checked.PNG + b"drawn anew"
    after = {figure["name"]: figure["caption"] for figure in results.load(book.results)["figures"]}
    assert after == {"main": "New main", "live": "What ran live."}


def _runs(book):
    return book.root / "results" / "runs" / "gpu"


def _payload(book, **changes):
    path = _runs(book) / "toy.json"
    results.save(path, results.load(path) | changes)


def _renamed(book, name):
    path = _runs(book) / "toy.json"
    payload = results.load(path)
    payload["records"][name] = payload["records"]["measure"]
    results.save(path, payload)


def _made_record(book, change):
    """Change a record of the run, and let the run's results name it."""
    path = _runs(book) / "toy" / "records" / "measure.json"
    rewrite(path, change)
    payload = results.load(_runs(book) / "toy.json")
    payload["records"]["measure"]["sha256"] = records.checksum(path)
    results.save(_runs(book) / "toy.json", payload)


REFUSED = {
    "unfinished": (
        lambda b: (_runs(b) / "toy.json").unlink(),
        "results/runs/gpu/toy.json is not there: this run has not ended",
    ),
    "cut": (lambda b: (_runs(b) / "toy.json").write_text("{"), "toy.json is not complete JSON"),
    "another paper": (lambda b: _payload(b, paper="idlg"), "toy.json is of 'idlg' at 'gpu', not this run's"),
    "another profile": (lambda b: _payload(b, profile="cpu"), "toy.json is of 'toy' at 'cpu', not this run's"),
    "no records": (lambda b: _payload(b, records={}), "toy.json names no records: it was written by an older reprolib"),
    "unknown measures": (
        lambda b: _payload(b, measures={"nonsense": results.load(_runs(b) / "toy.json")["measures"]["hits"]}),
        "measures that claims/toy.yml does not declare: nonse",
    ),
    "verdicts of none": (lambda b: _payload(b, verdicts=[{"id": "finds"}]), "finds|verdict"),
    "a record is missing": (
        lambda b: (_runs(b) / "toy/records/measure.json").unlink(),
        "the record of part 'measure' is missing from the run",
    ),
    "its tensors are missing": (
        lambda b: (_runs(b) / "toy/records/measure.safetensors").unlink(),
        "the tensors of part 'measure' are missing from the run",
    ),
    "another checksum": (
        lambda b: rewrite(_runs(b) / "toy/records/measure.json", lambda q: q.update(seed=2)),
        "the record of part 'measure' is another than the run's",
    ),
    "another run's tensors": (
        lambda b: (_runs(b) / "toy/records/measure.safetensors").write_bytes(b"x"),
        "measure.safetensors does not fit its checksum",
    ),
    "another paper's record": (
        lambda b: _made_record(b, lambda q: q.update(paper="idlg")),
        "the record of part 'measure' is of the paper 'idlg', part 'measure'",
    ),
    "another part's record": (
        lambda b: _made_record(b, lambda q: q.update(name="whole")),
        "of the paper 'toy', part 'whole'",
    ),
    "uncommitted code": (
        lambda b: _made_record(b, lambda q: q["made"].update(commit=f"{COMMIT}+changes")),
        rf"part 'measure' was made by code that no commit holds \({COMMIT}\+changes\)",
    ),
    "no checkout": (
        lambda b: _made_record(b, lambda q: q["made"].update(commit=None)),
        "no commit holds .no checkout.",
    ),
    "a path": (lambda b: _renamed(b, "../measure"), "the record of part '../measure' is missing from the run"),
    "no figure": (
        lambda b: (_runs(b) / "toy/main.png").unlink(),
        "the figure 'main': its file 'main.png' is not there",
    ),
    "a figure that is none": (
        lambda b: (_runs(b) / "toy/main.png").write_text("x"),
        "the figure 'main': its file 'main.png' is no PNG file; run the chapter again",
    ),
    "a figure that is a link": (
        lambda b: (_runs(b) / "toy/main.png").rename(b.root / "x") and (_runs(b) / "toy/main.png").symlink_to("../x"),
        "the figure 'main': its file 'main.png' is a link to another place",
    ),
    "a figure elsewhere": (
        lambda b: _payload(b, figures=[{"name": "main", "caption": "c", "file": "../../../x.png"}]),
        "the figure 'main': its file '../../../x.png' is not the bare name of a PNG file",
    ),
    "another form": (lambda b: _payload(b, state=[1]), "toy.json is of another form: state: Input should be a valid d"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED)
def test_a_run_that_is_not_whole_is_refused_and_the_reference_stays(book, damage, message):
    before = {path: path.read_bytes() for path in book.home.rglob("*") if path.is_file()}
    damage(book)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        verification.accept(book.root, "toy")
    assert {path: path.read_bytes() for path in book.home.rglob("*") if path.is_file()} == before
    assert [path.name for path in book.home.parent.iterdir()] == ["toy"]


def test_two_parts_of_one_name_are_no_record(fresh):
    ch = fresh.run("gpu", fresh.images, finish=False)
    for _ in range(2):
        ch.part("whole", whole, seed=1, power=2)
    assert ch._parts.twice == set(), "the same again"
    ch.part("whole", whole, seed=1, power=3)
    ch.measure({"hits": Unmeasured("not here")})
    ch.finish()
    assert "Other inputs under a name that was taken: whole. A record keeps the last" in fresh.caption(
        "Two parts of one"
    )
    with pytest.raises(ValueError, match="other inputs under a name that was taken: whole. Name these parts apart"):
        verification.accept(fresh.root, "toy")


def test_a_run_that_is_too_large_is_refused(book, monkeypatch):
    monkeypatch.setattr(verification, "LIMIT_MB", 0.001)
    with pytest.raises(ValueError, match="the records take 0.0 MB, a chapter may have 0.001: keep fewer `pictures`"):
        verification.accept(book.root, "toy")
    with pytest.raises(ValueError, match="unknown profile 'huge'; known: reference, smoke, cpu, gpu, paper"):
        verification.accept(book.root, "toy", "huge")


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_copy_that_fails_midway_leaves_nothing_half_written(book, monkeypatch, step):
    before = {path: path.read_bytes() for path in book.home.rglob("*") if path.is_file()}
    copy, copied = shutil.copyfile, []

    def full(source, target):
        copied.append(target)
        if len(copied) == step:
            target.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        verification.accept(book.root, "toy")
    assert {path: path.read_bytes() for path in book.home.rglob("*") if path.is_file()} == before
    assert [path.name for path in book.home.parent.iterdir()] == ["toy"]


def test_the_last_step_failing_takes_the_old_reference_back(book, monkeypatch):
    replace, steps = os.replace, []

    def failing(source, target):
        steps.append(source)
        if len(steps) == 2:
            raise OSError("no")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no"):
        verification.accept(book.root, "toy")
    assert [path.name for path in book.home.parent.iterdir()] == ["toy"] and book.results.is_file()
    book.home.rename(book.home.with_name(".toy.old"))  # killed between the two steps
    monkeypatch.setattr(os, "replace", replace)
    (_runs(book) / "toy" / "main.png").unlink()
    with pytest.raises(ValueError, match="its file 'main.png' is not there"):
        verification.accept(book.root, "toy")
    assert book.results.is_file() and [path.name for path in book.home.parent.iterdir()] == ["toy"]


# --- compare


def test_a_run_beside_the_reference(book):
    book.run("gpu", book.images, factor=0.75)
    measures, parts = verification.compare("toy", _runs(book) / "toy.json")
    assert list(measures) == ["measure", "reference", "run"] and measures["measure"].tolist() == ["hits"]
    assert measures["reference"][0] == measures["run"][0].replace("none", "") and "[" in measures["run"][0]
    assert list(parts) == ["part", "equal", "what differs"]
    rows = parts.set_index("part")
    assert (
        rows.loc["measure", "what differs"] == "asked otherwise: inputs.factor" and rows.loc["whole", "equal"] == "yes"
    )


def test_numbers_that_differ_are_named_row_by_row(book, monkeypatch):
    monkeypatch.setattr(metrics, "mse", lambda found, truth: (found - truth).square().mean((1, 2, 3)) + 1e-3)
    shutil.rmtree(book.root / "results" / "parts")
    book.run("gpu", book.images)
    rows = verification.compare("toy", _runs(book) / "toy.json")[1].set_index("part")
    assert (
        rows.loc["measure", "equal"] == "no"
        and "scores, mse: 6 of 6 rows differ" in rows.loc["measure", "what differs"]
    )


def test_parts_of_one_run_alone_and_damaged_ones_are_listed(book):
    made = _runs(book) / "toy" / "records"
    for end in (".json", ".safetensors"):
        (made / f"whole{end}").unlink()
    (made / "live.json").write_text("{")
    rows = verification.compare("toy", _runs(book) / "toy.json")[1]
    assert rows[rows.part == "whole"]["what differs"].item() == "only in the reference"
    damaged = rows[rows.part == "?"]["what differs"].item()
    assert damaged.startswith("cannot be read: live.json is not complete JSON")


def test_only_a_run_of_the_same_paper_is_compared(book):
    _payload(book, paper="idlg")
    with pytest.raises(ValueError, match="toy.json is of the paper 'idlg', not of 'toy'"):
        verification.compare("toy", _runs(book) / "toy.json")
    _payload(book, paper="toy", measures={"hits": {}})
    with pytest.raises(ValueError, match="toy.json is of another form: measures, hits, value: Field required"):
        verification.compare("toy", _runs(book) / "toy.json")
    with pytest.raises(FileNotFoundError):
        verification.compare("toy", book.root / "none.json")
    book.results.unlink()
    _payload(book, measures={})
    with pytest.raises(FileNotFoundError):
        verification.compare("toy", _runs(book) / "toy.json")


def _judged_by(book, value):
    """The results of a run whose one measure is `value`, between 0.1 less and 0.1 more."""
    stored = results.load(book.results)["measures"]["hits"]
    _payload(book, measures={"hits": stored | {"value": value, "low": value - 0.1, "high": value + 0.1}})


@pytest.mark.parametrize(
    ("reference", "run", "flips"), [(0.9, 0.2, True), (0.9, 0.8, False), (0.9, 0.5, False), (0.5, 0.2, False)]
)
def test_a_verdict_flips_where_both_runs_decide_and_differ(book, reference, run, flips):
    _judged_by(book, reference)
    shutil.copyfile(_runs(book) / "toy.json", book.results)
    _judged_by(book, run)
    found = verification.verdicts("toy", _runs(book) / "toy.json")
    assert list(found) == ["claim", "reference", "run", "flipped"] and found.claim.tolist() == ["finds"]
    assert found.flipped.tolist() == [flips], found
    done = CliRunner().invoke(cli.app, ["compare", str(_runs(book) / "toy.json")])
    assert done.exit_code == flips, done.output
    assert ("the run finds otherwise than the reference run: finds" in done.stderr) == flips


# --- verify


@pytest.fixture
def verify(book, monkeypatch):
    """Verify the book's chapter in this process; options: `Book.run`'s, as an edit of the notebook."""

    def called(seconds=300.0, images=None, **options):
        def execute(which, parameters, folder, threads):
            book.run(parameters.profile, parameters.data_root, parameters.seed, **options)

        monkeypatch.setattr(runner, "execute_aside", execute)
        parameters = notebooks.Parameters("reference", 1, "cpu", book.images if images is None else images)
        try:
            return verification.verify(types.SimpleNamespace(paper="toy"), parameters, seconds, lambda line: None)
        finally:
            assert parts.VERIFY not in os.environ

    return called


def _found(book):
    return reference_run.accepted_records("toy", results.load(book.results)["records"])[
        0
    ], reference_run.verification_log("toy")


def _logged(book):
    return {entry["part"]: entry for entry in reference_run.verification_log("toy")}


def test_parts_that_run_equal_are_logged_with_their_code(book, verify):
    found = verify()
    assert found.failed == [] and found.parts == 3
    assert any(line.startswith("measure (all, ") and line.endswith(": equal to six digits") for line in found.lines)
    assert "    scores, mse: " in "\n".join(found.lines), "number beside number"
    entries = _logged(book)
    assert (
        set(entries) == {"measure", "whole", "live"}
        and entries["measure"]["count"] == 6
        and entries["whole"]["count"] == 1
    )
    assert entries["measure"]["code"] == records.load(book.record()).code and entries["measure"]["commit"] == COMMIT
    assert entries["measure"]["sha256"] == records.checksum(book.record())


def test_a_second_verification_draws_other_parts_first(book, verify):
    seen = []
    book.accept(only=("measure", "whole"))
    for _ in range(2):
        found = verify(seconds=0.0, only=("measure", "whole"))
        assert found.parts == 1 and found.failed == []
        seen.append(found.lines[0].split()[0])
    assert sorted(seen) == ["measure", "whole"] and len(_logged(book)) == 2


def test_a_verification_of_other_code_leaves_what_was_verified(book, verify, monkeypatch):
    verify()
    monkeypatch.setattr(fingerprints, "code_fingerprint", lambda function, inputs: "0" * 16)
    assert verify().failed == []
    log = reference_run.verification_log("toy")
    assert len(log) == 6 and sum(entry["code"] == "0" * 16 for entry in log) == 3
    verify()
    assert len(reference_run.verification_log("toy")) == 6, "one entry a part and code"
    monkeypatch.undo()


def test_of_parts_of_one_code_the_least_recently_verified_comes_first():
    found = {name: types.SimpleNamespace(code="same", made={"seconds": 1.0}, inputs={}) for name in "abc"}
    log = [{"part": name, "time": f"2026-11-{day}"} for name, day in (("a", 12), ("b", 10), ("c", 11))]
    assert list(verification._drawn(found, log, 30.0)) == ["b", "c", "a"]


def test_parts_run_with_the_threads_that_made_their_records(book, monkeypatch):
    for name in ("measure", "whole", "live"):
        rewrite(book.record(name), lambda payload: payload["made"].update(threads=7))
        book.name_again(name)
    used = []
    monkeypatch.setattr(runner, "execute_aside", lambda which, parameters, folder, threads: used.append(threads))
    parameters = notebooks.Parameters("reference", 1, "cpu", book.images)
    found = verification.verify(types.SimpleNamespace(paper="toy"), parameters, 300.0, lambda line: None)
    assert used == [7] and sorted(found.failed) == ["live", "measure", "whole"], "nothing ran"


def test_a_part_that_is_asked_for_twice_runs_again_once(book, verify, monkeypatch):
    def execute(which, parameters, folder, threads):
        ch = book.run(parameters.profile, parameters.data_root)
        ch.part("whole", whole, seed=1, power=2)

    verify()
    monkeypatch.setattr(runner, "execute_aside", execute)
    parameters = notebooks.Parameters("reference", 1, "cpu", book.images)
    found = verification.verify(types.SimpleNamespace(paper="toy"), parameters, 300.0, lambda line: None)
    assert log.ran.count("whole") == 1 and found.failed == [] and len(reference_run.verification_log("toy")) == 3


def test_of_a_long_part_a_few_trials_run_again(book, verify, monkeypatch):
    monkeypatch.setattr(verification, "LONG", -1.0)
    found = verify()
    entry = _logged(book)["measure"]
    assert found.failed == [] and len(entry["trials"]) == entry["count"] == verification.TRIALS
    assert set(entry["trials"]) <= set(range(6)) and "measure 3" in log.ran
    assert _logged(book)["whole"]["trials"] is None, "it knows no trials"


def test_where_a_few_trials_differ_the_whole_part_decides(book, verify, monkeypatch):
    monkeypatch.setattr(verification, "LONG", -1.0)

    true, few = metrics.mse, f"measure {verification.TRIALS}"
    monkeypatch.setattr(metrics, "mse", lambda x, y: true(x, y) * (10 if log.ran[-1] == few else 1))  # chaos
    found = verify()
    assert found.failed == [] and found.parts == 3
    assert next(line for line in found.lines if line.startswith("measure (all, ")).endswith("equal to six digits")
    assert _logged(book)["measure"]["trials"] is None and len(_logged(book)) == 3


FORGED = {
    "a digit": {"column": "mse", "add": 1e-4},
    "a count": {"column": "label", "add": 1},
    "a number of a part without trials": {"name": "whole", "table": "levels", "column": "x", "add": 1e-4},
    "the last row": {"column": "mse", "row": 5, "add": -1e-4},
}


@pytest.mark.parametrize("forgery", FORGED.values(), ids=FORGED)
def test_a_changed_digit_in_a_record_is_caught(book, verify, forgery):
    verify()
    forge(book, **forgery)
    name = forgery.get("name", "measure")
    found = verify()
    assert found.failed == [name]
    assert f"DIFFERS: {forgery.get('table', 'scores')}, {forgery['column']}: 1 of" in "\n".join(found.lines)
    assert name not in _logged(book) and len(_logged(book)) == 2, "what was verified of it before is withdrawn"
    assert list(verification._drawn(*_found(book), 0.0)) == [name], "and it is drawn first the next time"


def test_what_a_replay_found_unverified_is_drawn_first(book, monkeypatch):
    assert verification._waiting("toy") == set(), "there was no replay here"
    _coded(monkeypatch, "new code")
    book.run()
    assert verification._waiting("toy") == {"live", "measure", "whole"}
    for name in ("measure", "whole"):
        assert list(verification._drawn(*_found(book), 0.0, {name})) == [name]


def test_a_part_of_each_code_comes_before_others_that_wait(book, verify):
    verify()
    found, log = _found(book)
    found = {
        name: dataclasses.replace(record, code="one", made=record.made | {"seconds": 1.0 + place})
        for place, (name, record) in enumerate(found.items())
    }
    quickest = min(sorted(found), key=lambda name: found[name].made["seconds"])
    assert list(verification._drawn(found, log, 0.0, set(found))) == [quickest], "all of them wait"


@pytest.mark.parametrize("name", ["/n", "/curve"])
def test_a_forged_value_beside_the_tables_is_caught(book, verify, name):
    if name == "/curve":
        change_tensors(book.record("whole"), lambda arrays: arrays | {"/curve": arrays["/curve"] + 1})
        book.name_again("whole")
        part = "whole"
    else:
        rewrite(
            book.record(),
            lambda q: [pair.__setitem__(1, 4) for pair in q["value"]["$items"] if pair[0] == "n"] and None,
        )
        book.name_again()
        part = "measure"
    assert verify().failed == [part]


def test_few_trials_that_round_otherwise_have_the_same_outcomes(book, verify, monkeypatch):
    monkeypatch.setattr(verification, "LONG", -1.0)
    true = metrics.mse
    monkeypatch.setattr(metrics, "mse", lambda found, truth: true(found, truth) * (1 + 1e-4))
    found = verify()
    line = next(line for line in found.lines if line.startswith("measure"))
    assert "the same outcomes; few trials at once are rounded otherwise than all of them" in line
    assert found.failed == ["live"], "which ran whole"
    monkeypatch.setattr(metrics, "mse", lambda found, truth: true(found, truth) * 10)
    assert "measure" in verify().failed


def test_a_change_in_the_library_that_changes_numbers_is_caught(book, verify, monkeypatch):
    true = metrics.mse
    monkeypatch.setattr(metrics, "mse", lambda found, truth: true(found, truth) + 1e-4)
    assert sorted(verify().failed) == ["live", "measure"]


def test_a_changed_line_of_the_part_is_caught(book, verify):
    def changed(images, trials, seed, factor, device):
        return measure(images, trials, seed, factor, device)

    found = verify(part=changed)
    assert found.failed == ["measure"]
    assert "measure: the notebook asks for other inputs than the record answers, or for no such part" in found.lines


def test_a_changed_setting_is_caught_and_a_part_that_is_gone(book, verify):
    assert sorted(verify(factor=0.75).failed) == ["live", "measure"]
    assert verify(only=("measure", "live")).failed == ["whole"]
    with pytest.raises(parts.MissingPart, match="part 'whole'"):
        verify(power=3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b.record("whole").unlink(), "whole: the record is missing from records"),
        (lambda b: b.record("whole").write_text("{"), "whole: whole.json is not complete JSON"),
        (
            lambda b: rewrite(b.record("whole"), lambda q: q.update(seed=2)),
            "whole: the record is not the one that was acc",
        ),
        (lambda b: shutil.rmtree(b.home / "records"), "live: the record is missing .*measure: the record is missing"),
        (lambda b: b.results.write_text("{"), "toy.json is not complete JSON"),
    ],
)
def test_no_record_that_the_results_name_is_left_out(book, verify, damage, message):
    damage(book)
    with pytest.raises(ValueError, match=message):
        verify()
    assert verification.has_records("toy")


def test_a_verification_needs_records_and_images(book, verify, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="runs on the record's own images: name their folder with --data"):
        verify(images="")
    monkeypatch.setenv("REPROLIB_DATA", book.images)
    assert verify(images="").failed == []
    with pytest.raises(ValueError, match="'mnist' .* fingerprint .*: these are other images"):
        verify(images=_mnist(tmp_path / "other", 1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match="its pixels are not here, only 'digits' in its place: let data_root or"
    ):
        verify(images=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="profile='cpu': a verification executes the profile reference"):
        verification.verify(types.SimpleNamespace(paper="toy"), notebooks.Parameters("cpu"), 1.0)
    book.results.unlink()
    with pytest.raises(FileNotFoundError, match="results/reference/toy holds no records: nothing to verify"):
        verify()


CELLS = """
from dataclasses import dataclass

import pandas as pd
import torch

from reprolib.book import chapter
from reprolib.measure import intervals, metrics
from reprolib.measure.entries import Unmeasured

FACTOR = 0.5


@dataclass(frozen=True)
class Scale:
    power: int

    def __call__(self, x):
        return (FACTOR * x) ** self.power


@torch.no_grad()
def measure(images, trials, scale):
    # a row a trial
    guess = scale(images.images[trials])
    return pd.DataFrame({"trial": trials, "value": metrics.mse(guess, images.images[trials]).numpy()})
"""
RUN = """
ch = chapter.start("toy", profile, seed, device, data_root, sizes={sizes})
images = ch.data("mnist", count=12)
table = ch.part("measure", measure, images=images, trials=list(range(6)), scale=Scale(2))
ch.measure({"hits": intervals.proportion([True, True, False])}, data=images)
ch.finish()
"""


def test_a_notebook_is_verified_as_papermill_runs_it(fresh, tmp_path, monkeypatch):
    run = RUN.replace("{sizes}", repr(SIZES))
    cells = written(tmp_path, CELLS)
    scope = {"profile": "gpu", "seed": 1, "device": "cpu", "data_root": fresh.images}
    exec(run, vars(cells) | scope)  # the reference run, of the same cells in this process
    verification.accept(fresh.root, "toy")
    write_chapter(fresh.root, "01-toy", CELLS, run)

    def call(*arguments):
        monkeypatch.setenv("COLUMNS", "200")
        return CliRunner().invoke(cli.app, ["verify", *arguments, "--data", fresh.images])

    good = call("toy")
    assert good.exit_code == 0 and "toy: 1 of 1 parts run again" in good.stdout, good.output
    assert "measure (all, " in good.stdout and "equal to six digits" in good.stdout
    assert "table, value: " in good.stdout
    (entry,) = reference_run.verification_log("toy")
    assert entry["code"] == records.load(fresh.record()).code and entry["count"] == 6

    write_chapter(fresh.root, "01-toy", CELLS.replace("** self.power", "* self.power"), run)
    bad = call("1")
    assert bad.exit_code == 1 and "1 parts differ from their records: measure" in bad.stderr
    assert reference_run.verification_log("toy") == []


def test_a_chapter_without_records_is_named(book, monkeypatch):
    write_chapter(book.root, "01-toy", 'chapter.start("toy")')
    write_chapter(book.root, "02-other", 'chapter.start("other")')
    monkeypatch.setattr(verification, "verify", lambda *_: verification.Verified(["measure: equal"], [], 1))
    both = CliRunner().invoke(cli.app, ["verify", "--data", book.images])
    assert both.exit_code == 0 and "02-other: no committed records, nothing to verify" in both.stdout
    one = CliRunner().invoke(cli.app, ["verify", "other", "--data", book.images])
    assert one.exit_code == 2 and "no committed records of 02-other: nothing to verify" in one.stderr
