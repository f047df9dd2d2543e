import json
import re

import numpy as np
import pytest
from PIL import Image

from reprolib import claims, report, results
from reprolib.metrics import wilson

CLAIMS = """
paper: {paper}
title: "{title}"
measures:
  label_accuracy: share of labels inferred
  protected: share of images that leak under noise
claims:
  - id: label-accuracy
    says: the label of one sample & its <sign> are recovered
    where: Table 1
    published: {{value: 100.0, unit: "% of labels"}}
    provenance: read
    needs: {{data: [cifar10], profile: cpu, images: 100}}
    criterion: {{measure: label_accuracy, at_least: {bound}}}
  - id: noise
    says: strong noise protects
    where: Section 5
    published: {{value: protects}}
    provenance: recalled
    needs: {{data: [cifar10], profile: gpu, images: 64}}
    criterion: {{measure: protected, at_most: 0.5}}
  - id: own
    says: half of the labels are inferred
    where: this book
    published: {{value: null}}
    provenance: own
    origin: book
    needs: {{profile: cpu, images: 1}}
    criterion: {{measure: label_accuracy, at_least: 0.5}}
  - id: text
    says: text leaks too
    where: Table 2
    published: {{value: null}}
    provenance: read
    needs: {{profile: cpu, images: 1}}
    criterion: null
    undecidable: text is not part of this book
"""

TOC = """
format: jb-book
root: book/index
parts:
  - caption: The papers
    chapters:
      - file: book/chapters/01-dlg
      - file: book/chapters/02-idlg
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "claims").mkdir()
    write_claims(tmp_path, "dlg", "Deep Leakage")
    write_claims(tmp_path, "idlg", "iDLG: Improved")
    return tmp_path


def write_claims(root, paper, title, bound=0.9):
    (root / "claims" / f"{paper}.yml").write_text(CLAIMS.format(paper=paper, title=title, bound=bound))


def add_run(root, paper, profile, kind="runs", data="cifar10", right=127, n=128, side=8, time=None, names=("strip",)):
    ledger = claims.Ledger(claims.load(root / "claims" / f"{paper}.yml"), profile, {"photos": "cifar10"})
    ledger.record("label_accuracy", wilson(right, n), n, data)
    ledger.record("protected", wilson(0, n), n, data)
    folder = root / "results" / "reference" / paper if kind == "reference" else root / "results" / "runs" / profile
    pictures = folder if kind == "reference" else folder / paper
    pictures.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(noise).save(pictures / f"{name}.png")
    provenance = results.provenance("cpu", 0, {data: "0123"})
    record = {
        "paper": paper,
        "profile": profile,
        **ledger.payload(),
        "figures": [
            *(
                {
                    "name": name,
                    "number": 1,
                    "caption": f"From {profile}: noise `becomes` an image.",
                    "file": f"{name}.png",
                }
                for name in names
            ),
            {"name": "slider", "number": 2, "caption": "No file."},
        ],
        "provenance": provenance | ({"time": time} if time else {}),
    }
    path = folder / f"{paper}.json"
    results.save(path, record)
    return path


def page(root, name):
    report.write_pages(root)
    return (root / "book" / "_generated" / f"{name}.md").read_text(encoding="utf-8")


def put_chapter(root, stem, heading="The ledger, at last", **metadata):
    path = root / "book" / "chapters" / f"{stem}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"cell_type": "markdown", "source": ["# Title\n", "\n", f"## {heading}"]}]
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


def badges(text):
    """Classes of the verdicts on single claims, without the counts."""
    return re.findall(r'class="verdict ([a-z-]+)">\S+ [a-z]', text)


# --- the book's pages -------------------------------------------------------------------------------------------------


def test_pages_exist_before_anything_was_run(root):
    assert "none yet" in page(root, "summary")
    assert page(root, "scoreboard").count("none yet") == 20  # 4 claims and the counts of 2 papers, 2 runs
    assert "No run has a strip" in page(root, "picture")


def test_scoreboard_shows_both_runs_beside_the_published_value(root):
    add_run(root, "dlg", "gpu", "reference")
    add_run(root, "dlg", "cpu", data="photos")
    text = page(root, "scoreboard")
    dlg = text.split("## iDLG")[0]
    assert "100 % of labels" in dlg and "99.2 % [95.7, 99.9]" in dlg
    decided, nowhere = ["reproduced", "undecided"], ["undecided", "undecided"]  # by the reference run, and by this one
    assert badges(dlg) == [*decided, *decided, "reproduced", "reproduced", *nowhere]
    assert "needs cifar10, this run has photos, a stand-in for cifar10" in dlg
    assert "recalled, unverified" in dlg
    assert "share of labels inferred: at least 90 %" in " ".join(dlg.split())


@pytest.mark.parametrize(
    ("right", "word"), [(127, "reproduced"), (115, "partly"), (20, "not-reproduced")], ids=lambda value: str(value)
)
def test_verdicts_have_symbol_word_and_class(root, right, word):
    add_run(root, "dlg", "cpu", right=right)
    first = re.search(r'<span class="verdict ([a-z-]+)">(\S+) ([a-z ]+)</span>', page(root, "scoreboard"))
    assert first[1] == word and first[3].replace(" ", "-") == word
    assert first[2] == claims.SYMBOLS[first[3]]


def words(text):
    """Text of HTML, without tags and line breaks."""
    return " ".join(re.sub(r"<[^>]+>", "", text).split())


def test_counts_set_the_papers_claims_apart_from_the_books_own(root):
    add_run(root, "dlg", "gpu", "reference")
    add_run(root, "idlg", "gpu", "reference", right=20)
    add_run(root, "idlg", "cpu", right=80)
    summary, scoreboard = words(page(root, "summary")), words(page(root, "scoreboard"))
    dlg = "✔ 2 reproduced ○ 1 not decided here the book's own: 1 reproduced"
    idlg = "✔ 1 reproduced ✘ 1 not reproduced ○ 1 not decided here the book's own: 1 not reproduced"
    assert f"Deep Leakage not run here yet 3 and 1 of the book's own {dlg} none yet" in summary
    assert f"3 and 1 of the book's own {idlg} ✘ 1 not reproduced" in summary
    assert f"reference run {dlg} this run none yet" in scoreboard and f"reference run {idlg} this run" in scoreboard
    assert f"Deep Leakage 3 and 1 of the book's own {dlg}" in words(written(root))


def test_one_line_a_run_counts_all_chapters(root):
    assert "all chapters" not in page(root, "summary")
    add_run(root, "dlg", "gpu", "reference")
    assert page(root, "summary").count("all chapters") == 1, "this run has judged nothing yet"
    add_run(root, "idlg", "gpu", "reference", right=20)
    add_run(root, "idlg", "cpu", right=120)
    for text in (page(root, "summary"), written(root)):
        assert (
            "Reference run, all chapters. The papers' 6 claims: 3 reproduced, 1 not reproduced, 2 not decided here; "
            "the book's own 2: 1 reproduced, 1 not reproduced."
        ) in words(text)
        assert "This run, all chapters. The papers' 3 claims: 1 partly, 2 not decided here" in words(text)


def test_text_of_claims_and_captions_is_escaped(root):
    add_run(root, "dlg", "cpu")
    assert "&amp; its &lt;sign&gt;" in page(root, "scoreboard")
    assert r"noise \`becomes\` an image" in page(root, "picture")
    write_claims(root, "dlg", "``````{raw} html")
    (root / "results" / "runs" / "cpu" / "dlg.json").unlink()
    assert r"## \`\`\`\`\`\`\{raw\} html" in page(root, "scoreboard")
    assert "&#96;&#96;&#96;" in page(root, "summary")


def test_the_picture_comes_from_the_reference_run_where_there_is_one(root):
    add_run(root, "dlg", "cpu")
    assert "/results/runs/cpu/dlg/strip.png" in page(root, "picture")
    add_run(root, "idlg", "gpu", "reference")
    assert "/results/reference/idlg/strip.png" in page(root, "picture")
    add_run(root, "dlg", "cpu", names=["every-attack"])
    assert "every-attack" not in page(root, "picture")
    add_run(root, "dlg", "gpu", "reference", names=["every-attack"])
    shown = page(root, "picture")
    assert shown.index("/idlg/strip.png") < shown.index("/dlg/every-attack.png")


def test_this_run_is_the_newest_and_smoke_only_without_another(root):
    add_run(root, "dlg", "smoke", time="2030-01-03T00:00:00+00:00")
    assert "profile smoke" in page(root, "scoreboard")
    add_run(root, "dlg", "cpu", time="2030-01-02T00:00:00+00:00")
    add_run(root, "dlg", "gpu", time="2030-01-01T00:00:00+00:00")
    text = page(root, "scoreboard")
    assert "profile cpu" in text and "profile smoke" not in text and "profile gpu" not in text


def test_a_verdict_by_another_criterion_no_longer_counts(root):
    add_run(root, "dlg", "cpu")
    write_claims(root, "dlg", "Deep Leakage", bound=0.95)
    text = page(root, "scoreboard")
    assert badges(text)[0] == "undecided"
    assert "judged by another criterion (label_accuracy: at least 90 %); run the chapter again" in text


def test_a_verdict_on_another_measure_no_longer_counts(root):
    add_run(root, "dlg", "cpu")
    path = root / "claims" / "dlg.yml"
    path.write_text(
        path.read_text().replace("measure: label_accuracy, at_least: 0.9", "measure: protected, at_least: 0.9")
    )
    text = page(root, "scoreboard")
    assert badges(text)[0] == "undecided" and "(label_accuracy: at least 90 %)" in text


def test_links_lead_to_the_ledger_of_the_chapter(root):
    put_chapter(root, "01-dlg")
    text = page(root, "scoreboard")
    assert '<a href="chapters/01-dlg.html#the-ledger-at-last">label-accuracy</a>' in text
    assert '<a href="chapters/02-idlg.html">label-accuracy</a>' in text, "not run yet: to the placeholder"
    put_chapter(root, "01-dlg", "Verdict")
    assert '<a href="chapters/01-dlg.html">label-accuracy</a>' in page(root, "scoreboard"), "no such section: its top"


def test_a_chapter_that_was_not_run_has_a_placeholder_until_its_page_exists(root):
    placeholder = root / "book" / "chapters" / "01-dlg.md"
    report.write_pages(root)
    assert "reprolib run 01-dlg" in placeholder.read_text() and "# Deep Leakage" in placeholder.read_text()
    assert "not run here yet" in page(root, "summary")
    put_chapter(root, "01-dlg")
    report.write_pages(root)
    assert not placeholder.exists()
    assert (root / "book" / "chapters" / "02-idlg.md").exists()


def test_a_stale_page_says_why(root):
    put_chapter(root, "01-dlg", reprolib={"stale": {"since": "2030", "reason": "cell 3: ValueError: no"}})
    assert "out of date: last run failed: cell 3: ValueError: no" in page(root, "summary")


def test_unchanged_pages_are_not_written_again(root):
    add_run(root, "dlg", "cpu")
    report.write_pages(root)
    files = [path for path in (root / "book").rglob("*.md")]
    before = {path: path.stat().st_mtime_ns for path in files}
    report.write_pages(root)
    assert before == {path: path.stat().st_mtime_ns for path in files} and len(files) == 5


# --- what is missing or damaged ---------------------------------------------------------------------------------------


def test_results_cut_in_half_become_a_line(root):
    path = add_run(root, "dlg", "gpu", "reference")
    path.write_text(path.read_text()[: path.stat().st_size // 2])
    text = page(root, "scoreboard")
    assert "Reference run (dlg): dlg.json is not complete JSON" in text
    assert "none yet" in text and "iDLG" in text


def test_a_damaged_run_does_not_hide_a_good_one(root):
    add_run(root, "dlg", "cpu")
    add_run(root, "dlg", "gpu").write_text("{}")
    text = page(root, "scoreboard")
    assert "This run (gpu): dlg.json is no record of reprolib" in text and "profile cpu" in text


def test_a_benchmarks_file_of_a_papers_name_is_no_run(root):
    results.save(root / "results" / "runs" / "benchmarks" / "dlg.json", {"speed": 1.0})
    assert "dlg.json" not in page(root, "scoreboard") and 'class="problem"' not in page(root, "scoreboard")


def test_results_without_a_ledger_become_a_line(root):
    path = root / "results" / "runs" / "cpu" / "dlg.json"
    results.save(path, {"profile": "cpu"})
    assert "dlg.json lacks figures, provenance, verdicts; run the chapter again" in page(root, "scoreboard")


def test_malformed_claims_become_a_line(root):
    (root / "claims" / "dlg.yml").write_text("paper: [")
    text = page(root, "scoreboard")
    assert "dlg.yml is not valid YAML" in text and "## iDLG" in text


def test_missing_claims_become_a_line(root):
    (root / "claims" / "dlg.yml").unlink()
    assert "claims/dlg.yml is missing" in page(root, "scoreboard")


def test_a_notebook_cut_in_half_becomes_a_line(root):
    path = put_chapter(root, "01-dlg")
    path.write_text(path.read_text()[:20])
    assert "book/chapters/01-dlg.ipynb is not a complete notebook" in page(root, "summary")


@pytest.mark.parametrize("write", [report.write_pages, lambda root: report.write_report(root, root / "out.html")])
def test_a_folder_without_a_book_is_refused(tmp_path, write):
    with pytest.raises(ValueError, match="holds no book: _toc.yml and the folder claims are expected there"):
        write(tmp_path)


# --- the one-file report ----------------------------------------------------------------------------------------------


def written(root):
    report.write_report(root, root / "report.html")
    return (root / "report.html").read_text(encoding="utf-8")


def test_report_holds_verdicts_figures_and_provenance_and_asks_for_nothing(root):
    add_run(root, "dlg", "gpu", "reference")
    add_run(root, "dlg", "cpu", data="photos")
    text = written(root)
    assert "99.2 % [95.7, 99.9]" in text and "profile gpu" in text and "images photos" in text
    assert text.count("data:image/png;base64,") == 2
    assert "<script" not in text and "<link" not in text
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)
    assert "The whole interval satisfies the criterion." in text
    assert "&amp; its &lt;sign&gt;" in text


def test_report_without_results_says_so(root):
    assert written(root).count("none yet") == 24  # 4 claims, counts and summary of 2 papers, 2 runs


def test_report_with_damaged_results_says_so(root):
    add_run(root, "dlg", "cpu").write_text("{}")
    assert "This run (cpu): dlg.json is no record of reprolib" in written(root)


def test_report_stays_small_and_keeps_the_reference_figures(root, monkeypatch):
    add_run(root, "dlg", "gpu", "reference", side=60)
    add_run(root, "dlg", "cpu", side=60)
    whole = len(written(root).encode())
    monkeypatch.setattr(report, "REPORT_LIMIT", whole - 1000)
    text = written(root)
    assert len(text.encode()) <= whole - 1000
    assert "From gpu" in text.split("Left out")[0] and re.search(r"Left out.*\sstrip \(this run\)\.", text, re.DOTALL)


def test_chapters_take_turns_where_there_is_no_room_for_all_figures(root, monkeypatch):
    bare = len(written(root).encode())
    for paper in ("dlg", "idlg"):
        add_run(root, paper, "gpu", "reference", side=60, names=["first", "second", "third"])
        add_run(root, paper, "cpu", side=60, names=["first"])
    picture = (len(written(root).encode()) - bare) // 8
    monkeypatch.setattr(report, "REPORT_LIMIT", len(written(root).encode()) - int(3.5 * picture))
    text = written(root)
    assert len(text.encode()) <= report.REPORT_LIMIT
    dlg, idlg = text.split('<h2 id="idlg">')
    assert dlg.count("<img") == 2 and idlg.count("<img") == 2
    for chapter in (dlg, idlg):
        assert "third (reference run), first (this run)." in words(chapter)


def test_a_chapter_without_a_reference_run_shows_this_runs_first_figure(root, monkeypatch):
    add_run(root, "dlg", "gpu", "reference", side=60, names=["first", "second", "third"])
    add_run(root, "idlg", "cpu", side=60, names=["first", "second"])
    whole = len(written(root).encode())
    monkeypatch.setattr(report, "REPORT_LIMIT", whole - 30_000)  # two pictures
    dlg, idlg = written(root).split('<h2 id="idlg">')
    assert "<img" in dlg and "<img" in idlg


def test_report_refuses_a_folder(root):
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        report.write_report(root, root)


def test_a_report_that_cannot_be_written_leaves_the_old_one(root, monkeypatch):
    old = written(root)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        report.write_report(root, root / "report.html")
    assert (root / "report.html").read_text(encoding="utf-8") == old
    assert [path.name for path in root.glob("*.tmp")] == [] and [path.name for path in root.glob(".*.tmp")] == []
