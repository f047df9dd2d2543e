import json
import math
import os
import shutil
import time
from datetime import datetime
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from reprolib import clone
from reprolib.book import chapter, markup, results
from reprolib.federated.threat import ThreatModel
from reprolib.measure.entries import Measured, Unmeasured
from reprolib.measure.intervals import Interval, proportion

CLAIMS = """
paper: toy
title: A Toy Paper
measures:
  success: share of images recovered
  speed: evaluations needed
claims:
  - id: recovers
    says: images are recovered
    where: abstract
    published: {value: 90.0, unit: "%"}
    provenance: read
    needs: {data: [cifar10], profile: cpu, images: 10}
    scope: none
    criterion: {measure: success, at_least: 0.5}
  - id: own
    says: few images are lost
    where: this book
    published: {value: null}
    provenance: own
    origin: book
    needs: {data: [cifar10], profile: cpu, images: 10}
    scope: none
    criterion: {measure: success, above: 0.95}
"""

NINE_OF_TEN = proportion([1] * 9 + [0])
MOST = proportion([1] * 97 + [0] * 3)
SIZES = {"images": (2, 10, 64, 1000)}
FACTOR = 2  # read by a part below, as a notebook's function reads an earlier cell's value


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """A repository with one paper; the list collects what the chapter displays."""
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "toy.yml").write_text(CLAIMS)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    for name in ("REPROLIB_RESULTS", "REPROLIB_DATA"):
        monkeypatch.delenv(name, raising=False)
    seen = []

    def display(content, raw=False):
        seen.append(content["text/html"] if raw else content.data)

    monkeypatch.setattr(chapter, "display", display)
    with matplotlib.rc_context():
        yield seen


def _start(profile="cpu", **options):
    return chapter.start("toy", profile, device="cpu", sizes=SIZES, **options)


def _picture():
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1])
    return figure


# --- opening


def test_a_chapter_opens_from_its_parameters(shown):
    ch = _start("cpu", seed=3)
    assert ch.profile == "cpu" and ch.device.type == "cpu" and ch.settings.images == 10 and ch.seed == 3
    assert "profile <b>cpu</b>" in shown[0]
    ch.settings_table()
    assert "▶ cpu (this run)" in shown[1] and "1000" in shown[1]
    with pytest.raises(AttributeError, match="no setting 'size' in this chapter; known: images"):
        _ = ch.settings.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paper": "nope"}, r"paper='nope': no claims/nope\.yml; known: toy"),
        ({"profile": "huge"}, "unknown profile 'huge'; known: reference, smoke, cpu, gpu, paper"),
        ({"device": "tpu"}, "device='tpu': expected auto, cpu or cuda"),
        ({"seed": -1}, "seed=-1: expected a whole number"),
        ({"seed": "0"}, "seed='0': expected a whole number"),
        (
            {"sizes": {"images": (2, 10, 64)}},
            r"sizes\['images'\]=\(2, 10, 64\): expected a value for each of smoke, cpu",
        ),
    ],
)
def test_bad_parameters_are_named(shown, options, message):
    with pytest.raises(ValueError, match=message):
        chapter.start(**({"paper": "toy", "profile": "cpu", "device": "cpu", "sizes": SIZES} | options))


def test_cuda_that_is_absent_says_what_to_use(shown, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device here: use device='cpu'"):
        chapter.start("toy", "cpu", device="cuda")
    assert chapter.start("toy", "cpu").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chapter.start("toy", "cpu").device.type == "cuda"


def test_the_repository_is_found_upward_and_results_can_go_elsewhere(shown, tmp_path, monkeypatch):
    assert clone.repository() == tmp_path and clone.results_root() == tmp_path / "results"
    monkeypatch.setenv("REPROLIB_RESULTS", str(tmp_path / "other"))
    assert clone.results_root() == tmp_path / "other"
    monkeypatch.chdir("/")
    assert clone.repository() == Path(chapter.__file__).resolve().parent.parent.parent, (
        "outside a clone: reprolib's own"
    )


def test_an_installed_package_reads_what_it_carries_and_writes_where_it_is_called(tmp_path, monkeypatch):
    package, here = tmp_path / "site-packages" / "reprolib", tmp_path / "empty"
    (package / "carried" / "claims").mkdir(parents=True)
    here.mkdir()
    monkeypatch.setattr(clone, "PACKAGE", package)
    monkeypatch.chdir(here)
    assert clone.repository() == package / "carried"
    assert clone.reference_root() == package / "carried" / "results" / "reference"
    assert clone.results_root() == here / "results"


# --- data and the ledger


def test_a_substitute_is_announced_once_and_leaves_claims_undecided(shown):
    ch = _start()
    images = ch.data("cifar10", count=10)
    ch.data("cifar10", "train", count=10)
    banners = [text for text in shown if "Substitute data" in text]
    assert len(banners) == 1 and "<b>cifar10</b> is not here" in banners[0] and images.name in banners[0]
    ch.measure({"success": NINE_OF_TEN})
    verdict = ch.ledger.verdicts()[0]
    assert (verdict.verdict, verdict.reason) == ("not decided here", "data")


def test_an_offline_set_asked_for_by_name_is_no_substitute(shown):
    ch = _start()
    ch.data("digits", count=5)
    assert not any("Substitute" in text for text in shown)
    ch.data("photos", count=5)
    with pytest.raises(ValueError, match="data is missing for 'success': this chapter has opened digits, photos"):
        ch.measure({"success": NINE_OF_TEN})
    ch.measure({"success": Measured(NINE_OF_TEN, images=5)}, data="digits")
    assert ch.ledger.records["success"].images == 5


def test_a_missing_data_root_is_an_error(shown):
    ch = _start(data_root="/nowhere/at/all")
    with pytest.raises(FileNotFoundError, match="/nowhere/at/all"):
        ch.data("cifar10")


def test_the_threat_model_is_a_box_of_sentences(shown):
    ch = _start()
    ch.threat(ThreatModel(labels="known", defense_known=True, observes="mean of 4"))
    for text in ("Yes. They come with the update.", "adaptive attacker", "the mean of 4 clients&#x27; updates"):
        assert text in shown[-1]
    ch.threat(ThreatModel("train", batch_norm="buffers"))
    assert "The running statistics after the client&#x27;s step" in shown[-1] and "static attacker" in shown[-1]
    assert shown[-1].count("<li>") == 6


# --- parts


def _count(step):
    print(f"step {step}")
    return pd.DataFrame({"mse": [0.1 * step, math.inf]})


def test_a_part_runs_once_for_the_same_inputs(shown, tmp_path, capsys):
    first = _start().part("count", _count, step=1)
    pd.testing.assert_frame_equal(first, _start().part("count", _count, step=1))
    assert capsys.readouterr().out == "step 1\n" and first["mse"].tolist() == [0.1, math.inf]
    _start().part("count", _count, step=2)
    _start(seed=5).part("count", _count, step=1)
    _start("smoke").part("count", _count, step=1)
    assert capsys.readouterr().out == "step 2\nstep 1\nstep 1\n"
    assert len(list((tmp_path / "results" / "parts" / "cpu").glob("toy-count-*.json"))) == 3


def test_a_resumed_chapter_counts_the_seconds_of_its_stored_parts(shown, tmp_path):
    for _ in range(2):
        ch = _start()
        ch.part("slow", lambda: time.sleep(0.4) or {"done": True})
        for measure in ("success", "speed"):
            ch.measure({measure: Unmeasured("not here")})
        ch.finish()
        seconds = results.load(tmp_path / "results/runs/cpu/toy.json")["provenance"]["seconds"]
        assert 0.3 <= seconds < 5


def test_a_part_runs_again_when_a_value_that_it_reads_has_changed(shown, monkeypatch):
    ch = _start()

    def scale(x):
        return {"y": FACTOR * x}

    assert ch.part("scale", scale, x=1) == {"y": 2}
    monkeypatch.setitem(globals(), "FACTOR", 5)
    assert ch.part("scale", scale, x=1) == {"y": 5}


def test_parts_may_hold_tensors_and_tables(shown):
    ch = _start()
    value = {"images": torch.rand(2, 3), "n": 4, "table": pd.DataFrame({"a": [1]}), "x": torch.tensor([math.nan])}
    kept = ch.part("mixed", lambda: value)
    assert list(kept) == list(value) and torch.equal(kept["images"], value["images"]) and kept["n"] == 4
    assert kept["x"].isnan().all() and kept["table"].equals(value["table"])


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_part_is_computed_again(shown, tmp_path, suffix):
    ch = _start()

    def draw():
        return {"x": torch.arange(3)}

    ch.part("draw", draw)
    path = next((tmp_path / "results" / "parts").rglob(f"toy-draw-*{suffix}"))
    path.write_bytes(path.read_bytes()[:10])
    assert ch.part("draw", draw)["x"].tolist() == [0, 1, 2]


def _change(path, **changes):
    payload = results.load(path)
    made = payload["made"] | changes.pop("made", {})
    results.save(path, payload | {"made": made} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paper": "idlg"}, "is the record of another part: its paper differ"),
        ({"name": "other"}, "is the record of another part: its name differ"),
        ({"seed": 2}, "is the record of another part: its seed differ"),
        ({"code": "0" * 16}, "is the record of another part: its code differ"),
        ({"inputs": {"step": 2}}, "is the record of another part: its inputs.step differ"),
        ({"made": {"device": "cuda: x"}}, "is the record of another part: its device differ"),
        ({"made": {"versions": {"cma": "1"}}}, "is the record of another part: its packages differ"),
        ({"schema": 1}, "is a record of schema 1, this reprolib reads schema 2"),
        ({"inputs": [1]}, "is no record of a part: its inputs cannot be read"),
        ({"value": {"$columns": 5}}, "is damaged: its values and its tensors do not fit"),
    ],
)
def test_a_stored_part_that_is_not_the_one_asked_for_is_computed_again(shown, tmp_path, capsys, changes, message):
    _start().part("count", _count, step=1)
    (path,) = (tmp_path / "results" / "parts").rglob("toy-count-*.json")
    _change(path, **changes)
    shown.clear()
    assert _start().part("count", _count, step=1)["mse"].tolist() == [0.1, math.inf]
    assert capsys.readouterr().out == "step 1\nstep 1\n"
    (box,) = (text for text in shown if "A stored part is computed again" in text)
    assert f"{path.name} {message}" in box
    _start().part("count", _count, step=1)
    assert capsys.readouterr().out == "", "what was computed again is the part"


def test_a_part_without_its_tensors_is_computed_again_with_a_word(shown, tmp_path):
    def draw():
        return {"x": torch.arange(3)}

    _start().part("draw", draw)
    next((tmp_path / "results" / "parts").rglob("toy-draw-*.safetensors")).unlink()
    shown.clear()
    assert _start().part("draw", draw)["x"].tolist() == [0, 1, 2]
    (box,) = (text for text in shown if "A stored part is computed again" in text)
    assert ".safetensors cannot be read: No such file or directory" in box and str(tmp_path) not in box


def _attack(network):
    if os.environ.get("KILLED_AT") == str(network):
        raise KeyboardInterrupt
    print(f"network {network}")
    return {"network": network}


def test_a_killed_chapter_continues_after_its_last_finished_part(shown, monkeypatch, capsys):
    def whole():
        ch = _start()
        return [ch.part("attack", _attack, network=network)["network"] for network in range(4)]

    monkeypatch.setenv("KILLED_AT", "2")
    with pytest.raises(KeyboardInterrupt):
        whole()
    assert capsys.readouterr().out == "network 0\nnetwork 1\n"
    monkeypatch.delenv("KILLED_AT")
    assert whole() == [0, 1, 2, 3] and capsys.readouterr().out == "network 2\nnetwork 3\n"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ch: ch.part("x", lambda y: {}, y=object()), r"inputs\['y'\] is a object, whose content cannot be"),
        (lambda ch: ch.part("x", lambda: 3), "part 'x' returned a int: expected a DataFrame or a dictionary"),
        (lambda ch: ch.part("A name", lambda: {}), "name='A name': expected small letters"),
        (lambda ch: ch.figure(_picture(), "../x", "c"), "name='../x': expected small letters"),
        (lambda ch: ch.save_table("", pd.DataFrame()), "name='': expected small letters"),
    ],
)
def test_misuse_is_named(shown, call, message):
    with pytest.raises(ValueError, match=message):
        call(_start())


# --- showing and closing


def test_figures_and_tables_are_numbered_and_readable_without_sight(shown, tmp_path):
    ch = _start()
    ch.figure(_picture(), "first", "A line & more.")
    ch.interactive("<p>slider</p>", "second", "A slider.")
    ch.figure(_picture(), "first", "A line & more.")  # a cell run twice keeps its number
    ch.table(
        pd.DataFrame({"x": [1e-7, math.inf, math.nan], "i": [Interval(0.5, 0.0945, 0.905, 2, "x"), None, (1, 2)]}),
        "Numbers <small>.",
    )
    one, two, again, table = shown[1:]
    assert "<b>Figure 1.</b> A line &amp; more." in one and 'alt="A line &amp; more."' in one and one == again
    assert "<b>Figure 2.</b>" in two and "<p>slider</p>" in two
    assert "overflow-x:auto" in table and "1·10⁻⁷" in table and "∞" in table and "0.5 [0.0945, 0.905]" in table
    assert "&lt;small&gt;" in table
    assert (tmp_path / "results/runs/cpu/toy/first.png").stat().st_size <= chapter.PICTURE_LIMIT


def test_an_interval_is_one_cell_and_a_long_table_is_folded(shown):
    ch = _start()
    rates = pd.DataFrame({"preset": ["official"], "success": [0.5], "low": [0.25], "high": [0.75], "images": [8]})
    ch.table(rates, "Rates.")
    assert "0.5 [0.25, 0.75]" in shown[-1] and ">low</th>" not in shown[-1] and "<details>" not in shown[-1]
    ch.claims_table()
    assert "<details><summary>1 claims of the paper and 1 of this book</summary>" in shown[-1]
    assert "images are recovered" in shown[-1] and "<b>Table 2.</b>" in shown[-1]


def test_columns_of_a_table_are_headed_in_words(shown):
    ch = _start()
    ch.table(pd.DataFrame({"learning_rate": [0.1], "psnr": [20.0], "psnr_dim0": [20.5]}), "Rates.")
    for heading in ("learning rate", "PSNR", "released code's PSNR"):
        assert f'<th scope="col">{heading}</th>' in shown[-1]


def test_a_part_that_reads_the_chapter_depends_on_its_settings_and_sets(shown, capsys):
    def through(ch):
        print(ch.settings.images)
        return {"n": ch.settings.images}

    ch = _start()
    ch.part("through", through, ch=ch)
    ch.part("through", through, ch=ch)
    ch.settings.images = 11
    ch.part("through", through, ch=ch)
    assert capsys.readouterr().out == "10\n11\n"
    ch.data("digits")
    ch.part("through", through, ch=ch)
    assert capsys.readouterr().out == "11\n"


def test_the_source_is_the_librarys_own(shown):
    _start().source(ThreatModel.clients.fget)
    assert "`reprolib/federated/threat.py`" in shown[-1] and "```python\n@property\ndef clients" in shown[-1]


def test_closing_writes_the_results_and_shows_verdicts(shown, tmp_path):
    ch = _start()
    with pytest.raises(ValueError, match="never recorded: success, speed"):
        ch.finish()
    ch.threat(ThreatModel())
    ch.data("photos", count=10)
    ch.measure({"success": NINE_OF_TEN}, data="cifar10")
    ch.measure({"speed": Unmeasured("the cpu profile is too small")})
    ch.figure(_picture(), "main", "The figure.")
    ch.save_table("rates", pd.DataFrame({"std": [0.1], "rate": [0.5]}))
    ch.table(pd.DataFrame({"rate": [0.25]}), "Shown and kept.", saved="kept")
    ch.finish()
    stored = results.load(tmp_path / "results" / "runs" / "cpu" / "toy.json")
    assert stored["verdicts"][0]["verdict"] == "reproduced" and stored["skipped"]["speed"]["why"].startswith("the cpu")
    assert stored["figures"] == [
        {"name": "main", "number": 1, "caption": "The figure.", "file": "main.png", "live": False}
    ]
    assert stored["tables"]["rates"]["rate"].tolist() == [0.5] and stored["threat"]["labels"] == "unknown"
    assert stored["tables"]["kept"]["rate"].tolist() == [0.25]
    assert stored["provenance"]["seed"] == 1 and "photos (test)" in stored["provenance"]["data"]
    assert "✔ reproduced" in shown[-2] and "seed 1" in shown[-1]
    ids = [f'<tr id="claim-{claim.id}">' for claim in ch.ledger.paper.claims]
    assert len(ids) == 2 and all(shown[-2].count(name) == 1 for name in ids), "where the scoreboard's links lead"
    assert str(tmp_path) not in json.dumps(shown) and str(tmp_path) not in json.dumps(stored, default=str)


TAG = "<img src=x onerror=alert(1)>"


def test_names_of_folders_and_what_made_a_run_are_escaped(shown, tmp_path):
    own = tmp_path / TAG / "0"
    own.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(own / f"{i}.png")
    ch = _start()
    ch.data(f"folder:{own.parent}")
    assert ch.data(f"folder:{own.parent}", size=16, grey=True).image_shape == (1, 16, 16)
    ch.measure({"success": NINE_OF_TEN})
    ch.measure({"speed": Unmeasured(TAG)})
    ch.finish()
    assert TAG not in "".join(shown) and "&lt;img src=x onerror=alert(1)&gt;" in shown[-1]
    told = dict.fromkeys(("python", "platform", "device", "commit", "time", "seed"), TAG)
    told |= {"versions": {TAG: TAG}, "data": {TAG: TAG}, "seconds": 1.0, "threads": 1}
    assert "<img" not in markup.provenance(told)


def _committed(tmp_path):
    """A finished run as the reference run."""
    ch = _start()
    ch.measure({"success": NINE_OF_TEN}, data="cifar10")
    ch.measure({"speed": Unmeasured("not here")})
    ch.figure(_picture(), "main", "The figure.")
    ch.finish()
    home = tmp_path / "results" / "reference" / "toy"
    home.mkdir(parents=True)
    (tmp_path / "results/runs/cpu/toy.json").rename(home / "toy.json")
    (tmp_path / "results/runs/cpu/toy/main.png").rename(home / "main.png")
    return home


def test_only_a_picture_of_the_reference_run_is_shown_as_one(shown, tmp_path):
    home = _committed(tmp_path)

    def front():
        _start().figure(_picture(), "main", "The figure.")
        return shown[-1].count("<img")

    assert front() == 2, "the reference run's and this run's"
    (home / "main.png").rename(tmp_path / "secret.png")
    assert front() == 1
    (home / "main.png").symlink_to(tmp_path / "secret.png")
    assert front() == 1
    (home / "main.png").unlink()
    (home / "main.png").write_text("password")
    assert front() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: [1], "toy.json holds no results"),
        (lambda p: p | {"measures": {"success": {}}}, "toy.json is of another form: measures, success, value"),
        (lambda p: p | {"shown": [{"caption": "x"}]}, "toy.json is of another form: shown, 0, table: Field required"),
        (lambda p: p | {"figures": ["main"]}, "toy.json is of another form: figures, 0: Input should be"),
        (lambda p: p | {"sets": {"x": {}}}, "toy.json is of another form: sets, x, name: Field required"),
        (lambda p: p | {"profile": "huge"}, "toy.json is of another form: profile: Input should be"),
        (lambda p: p | {"provenance": p["provenance"] | {"time": "x"}}, "Invalid isoformat string"),
    ],
)
def test_a_reference_run_of_another_form_is_one_box(shown, tmp_path, change, message):
    path = _committed(tmp_path) / "toy.json"
    plain = results.encoded(change(results.load(path)))
    path.write_text(json.dumps({"schema": results.SCHEMA, "sha256": results._checksum(plain), "payload": plain}))
    shown.clear()
    ch = _start()
    ch.figure(_picture(), "main", "The figure.")
    ch.table(pd.DataFrame({"x": [1]}), "A table.")
    (box,) = (text for text in shown if "The reference run cannot be shown" in text)
    assert message in box
    shown.clear()
    _start("reference")
    assert message in next(text for text in shown if "Record missing" in text)


def test_a_clock_set_back_gives_no_negative_seconds(shown, tmp_path, monkeypatch):
    ch = _start()

    class Past(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(results, "datetime", Past)
    for measure in ("success", "speed"):
        ch.measure({measure: Unmeasured("not here")})
    ch.part("count", _count, step=1)
    ch.finish()
    made = results.load(tmp_path / "results/runs/cpu/toy.json")["provenance"]
    assert made["time"].startswith("2001") and 0 <= made["seconds"] < 60


def test_a_run_goes_on_from_the_committed_records_of_an_unfinished_reference(shown, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results, "commit", lambda: "abc")
    first = _start("gpu")
    first.part("count", _count, step=1)
    made = tmp_path / "results" / "runs" / "gpu" / "toy" / "records"
    committed = tmp_path / "results" / "reference" / "toy" / "records"
    committed.parent.mkdir(parents=True)
    made.rename(committed)
    shutil.rmtree(tmp_path / "results" / "parts")
    again = _start("gpu")
    assert again.part("count", _count, step=1)["mse"].tolist() == [0.1, math.inf]
    assert again._parts.entries["count"]["commit"] == "abc"
    again.part("count", _count, step=2)
    assert capsys.readouterr().out == "step 1\nstep 2\n"
