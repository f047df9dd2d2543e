import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reprolib.book import claims, judged, rendering, report, results, wording
from reprolib.book.ledger import Ledger
from reprolib.book.verdicts import REASONS, SYMBOLS
from reprolib.measure import intervals

CLAIMS = """
paper: {paper}
title: "{title}"
measures:
  label_accuracy: {{says: share of labels inferred, on: {{model: LeNet}}}}
  protected: share of images that leak under noise
  undefended: share of images that leak without a defense
claims:
  - id: label-accuracy
    says: the label of one sample & its <sign> are recovered
    where: Table 1
    published: {{value: 100.0, unit: "% of labels"}}
    provenance: read
    setting: {{model: {model}}}
    needs: {{data: [cifar10], profile: cpu, images: 100}}
    criterion: {{measure: label_accuracy, at_least: {bound}}}
  - id: noise
    says: strong noise protects
    where: Section 5
    published: {{value: protects}}
    provenance: read
    needs: {{data: [cifar10], profile: gpu, images: 64}}
    gate: {{measure: undefended, at_least: 0.5}}
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
    provenance: recalled
    undecidable: {{reason: out of scope, says: text is not part of this book}}
"""

CHANGED = "    changed: {{date: {date}, why: was <easier>, seen: [0]}}\n"

FURTHER = """
  - id: both
    says: trained and untrained
    where: Table 3
    published: {value: null}
    provenance: read
    needs: {profile: cpu, images: 1}
    parts:
      - {name: labels, criterion: {measure: label_accuracy, at_least: 0.5}}
      - {name: leak, criterion: {measure: protected, at_least: 0.5}}
  - id: algebra
    says: a sign is a sign
    kind: identity
    where: Equation 1
    published: {value: null}
    provenance: read
    criterion: {measure: label_accuracy, at_least: 0.2}
  - id: one-network
    says: this network gives labels away
    where: Table 4
    published: {value: null}
    provenance: read
    scope: network
    needs: {profile: cpu, images: 1}
    criterion: {measure: label_accuracy, at_least: 0.5}
  - id: optimiser
    says: the paper searches with L-BFGS
    kind: setting
    where: Section 3
    published: {value: null}
    provenance: read
"""
"""A claim of parts, an identity, a claim on one network, and a setting."""

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


def write_claims(root, paper, title, bound=0.9, model="LeNet", further=""):
    text = CLAIMS.format(paper=paper, title=title, bound=bound, model=model) + further
    (root / "claims" / f"{paper}.yml").write_text(text)


def add_run(
    root,
    paper,
    profile,
    kind="runs",
    data="cifar10",
    right=127,
    n=128,
    side=8,
    leaks=0,
    undefended=127,
    folder=None,
    seed=0,
    time="2026-12-01T00:00:00+00:00",
    names=("strip",),
    **made,
):
    """A results file with its pictures. kind: "runs" or "reference". made: further keys of the provenance."""
    ledger = Ledger(claims.load(root / "claims" / f"{paper}.yml"), profile, {"photos": "cifar10"}, seed, time)
    for name, hits in (("label_accuracy", right), ("protected", leaks), ("undefended", undefended)):
        ledger.record(name, intervals.proportion([1] * hits + [0] * (n - hits)), n, data)
    home = (
        root / "results" / "reference" / paper if kind == "reference" else root / "results/runs" / (folder or profile)
    )
    pictures = home if kind == "reference" else home / paper
    pictures.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(noise).save(pictures / f"{name}.png")
    caption = f"From {profile}: noise `becomes` an image."
    figures = [{"name": name, "number": 1, "caption": caption, "file": f"{name}.png"} for name in names]
    own = {"device": "cpu: AMD EPYC", "threads": 1, "seconds": 5400.0, "time": time}
    record = {
        "paper": paper,
        "profile": profile,
        **ledger.payload(),
        "figures": [*figures, {"name": "slider", "number": 2, "caption": "No file."}],
        "records": {},
        "provenance": results.provenance("cpu", seed, {data: "0123"}) | own | made,
    }
    path = home / f"{paper}.json"
    results.save(path, record)
    return path


def edit(path, change):
    """Change a results file as its writer could: the checksum fits."""
    payload = results.load(path)
    change(payload)
    results.save(path, payload)


def page(root, name):
    report.write_pages(root)
    return (root / "book" / "_generated" / f"{name}.md").read_text(encoding="utf-8")


def put_chapter(root, stem, heading="The ledger, at last", **metadata):
    path = root / "book" / "chapters" / f"{stem}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Title\n", "\n", f"## {heading}"]},
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


def row(text, claim, paper="dlg"):
    """The row of a claim in a ledger."""
    return re.search(rf'<tr id="{paper}-{claim}" .*?</tr>', text, re.DOTALL)[0]


def badges(text):
    """Classes of the verdicts on single claims, without the counts."""
    return re.findall(r'class="verdict ([a-z-]+)">\S+ [a-z]', text)


def words(text):
    """Text of HTML, without tags and line breaks."""
    return " ".join(re.sub(r"<[^>]+>", "", text.replace("</summary>", " ")).split()).replace("&#39;", "'")


# --- the book's pages -------------------------------------------------------------------------------------------------


def test_pages_exist_before_anything_was_run(root):
    assert "none yet" in page(root, "summary")
    assert page(root, "scoreboard").count("no reference run yet") == 8  # 4 claims of 2 papers
    assert "No run has a strip" in page(root, "picture")
    assert words(page(root, "machines")).count("no reference run yet") == 2
    assert "0 claims in all" in words(page(root, "exceptions"))


def test_a_row_shows_published_measured_and_verdict_with_what_they_rest_on(root):
    add_run(root, "dlg", "gpu", "reference")
    add_run(root, "dlg", "cpu", data="photos")
    text = page(root, "scoreboard")
    first = words(row(text, "label-accuracy"))
    assert "100 % of labels" in first and "99.2 % [95.7, 100]" in first and "✔ reproduced" in first
    assert "share of labels inferred: at least 90 %" in first and "Table 1 · label-accuracy" in first
    assert "Clopper-Pearson; n = 128, 128 clusters" in first
    assert "This run: ○ not decided here data data: needs cifar10, this run has photos, a stand-in for cifar10" in first
    noise = words(row(text, "noise"))
    assert "control: share of images that leak without a defense, at its lower end 95.7 %, where 50 % is asked" in noise
    told = words(row(text, "text"))
    assert "recalled, unverified" in told and "out of scope: text is not part of this book" in told


def test_a_closed_gate_says_so(root):
    add_run(root, "dlg", "gpu", "reference", undefended=10)
    noise = words(row(page(root, "scoreboard"), "noise"))
    assert "gate: its control, undefended, reaches 3.81 % at its lower bound, not 50 %" in noise


@pytest.mark.parametrize(
    ("word", "claim", "further", "model", "run"),
    [
        ("reproduced", "label-accuracy", "", "LeNet", {}),
        ("not reproduced", "label-accuracy", "", "LeNet", {"right": 20}),
        ("holds on a substitute", "label-accuracy", "", "ResNet-18", {}),
        ("fails on a substitute", "label-accuracy", "", "ResNet-18", {"right": 20}),
        ("not decided here", "label-accuracy", "", "LeNet", {"right": 115}),
        ("partly", "both", FURTHER, "LeNet", {}),
        ("partly on a substitute", "both", FURTHER.replace("parts:", "setting: {model: VGG}\n    parts:"), "LeNet", {}),
        ("holds", "algebra", FURTHER, "LeNet", {}),
        ("fails", "algebra", FURTHER, "LeNet", {"right": 20}),
        ("setting", "optimiser", FURTHER, "LeNet", {}),
    ],
)
def test_each_word_is_shown_with_symbol_and_class(root, word, claim, further, model, run):
    write_claims(root, "dlg", "Deep Leakage", further=further, model=model)
    add_run(root, "dlg", "gpu", "reference", **run)
    shown = re.search(r'<span class="verdict ([a-z-]+)">(\S+) ([a-z ]+)</span>', row(page(root, "scoreboard"), claim))
    assert (shown[1], shown[2], shown[3]) == (wording.CLASSES[word], SYMBOLS[word], word)


def test_every_word_and_reason_is_explained_and_has_its_look(root):
    assert wording.MEANINGS.keys() == SYMBOLS.keys() == set(wording.FAILURES_FIRST)
    assert tuple(wording.REASON_MEANINGS) == REASONS
    assert {word for kind in wording.KINDS.values() for word in kind} == SYMBOLS.keys() - {"setting"}
    assert badges(page(root, "words")) == list(wording.CLASSES.values())
    assert all(f"<b>{reason}</b>" in page(root, "reasons") for reason in REASONS)
    css = (Path(__file__).parents[1] / "book/_static/leaky.css").read_text(encoding="utf-8")
    for name in wording.CLASSES.values():
        assert f".verdict.{name} {{" in css and f".verdict.{name} {{" in written(root)


def test_substitutes_parts_scope_and_99_percent_stand_beside_the_verdict(root):
    write_claims(root, "dlg", "Deep Leakage", model="ResNet-18", further=FURTHER)
    add_run(root, "dlg", "gpu", "reference", right=121)
    text = page(root, "scoreboard")
    assert "model: LeNet in place of ResNet-18" not in words(row(text, "one-network"))
    assert "on this network, not of others" in words(row(text, "one-network"))
    both = words(row(text, "both"))
    assert "✔ labels: 94.5 %" in both and "✘ leak: 0 % [0, 2.84]" in both
    assert "labels: share of labels inferred: at least 50 %" in both and "of the parts, the least; n = 128" in both
    write_claims(root, "dlg", "Deep Leakage", model="ResNet-18", bound=0.885)
    first = words(row(page(root, "scoreboard"), "label-accuracy"))
    assert "(✔) holds on a substitute model model: LeNet in place of ResNet-18" in first
    assert "does not stand at 99 %" in first


def test_the_papers_claims_come_first_and_failures_before_the_rest(root):
    write_claims(root, "dlg", "Deep Leakage", further=FURTHER)
    add_run(root, "dlg", "gpu", "reference", right=20)
    found = re.findall(r'<tr id="dlg-([a-z-]+)" ', page(root, "scoreboard"))
    assert found == ["label-accuracy", "both", "one-network", "algebra", "noise", "text", "optimiser", "own"]


def test_counts_keep_apart_what_is_not_alike(root):
    write_claims(root, "dlg", "Deep Leakage", model="ResNet-18", further=FURTHER)
    add_run(root, "dlg", "gpu", "reference", right=121)
    add_run(root, "idlg", "gpu", "reference", right=20)
    summary = words(page(root, "summary"))
    dlg = (
        "6 claims of the paper, 1 of the book, and 1 setting not run here yet "
        "✔ 2 reproduced ◐ 1 partly = 1 identity holds ○ 2 not decided here 1 imprecise, 1 out of scope "
        "of 3 decided results 1 on one network only, 3 the same at 99 % the book's own: 1 reproduced; "
        "of 1 decided result 1 the same at 99 % none yet"
    )
    assert dlg in summary
    idlg = "3 claims of the paper, 1 of the book not run here yet ✔ 1 reproduced ✘ 1 not reproduced"
    assert idlg in summary
    total = words(re.search(r"<table.*?</table>", page(root, "summary"), re.DOTALL)[0])
    assert total.startswith("reference run, all chapters the papers' 9 claims the book's own 2 claims")
    assert "on a substitute none none identities = 1 identity holds none open" in total
    assert "○ 3 not decided here 2 about what this book does not measure, 1 measured too coarsely" in total
    assert "of 5 decided results 1 on one network only, 5 the same at 99 %" in total
    assert "of 3 decided results 1 on one network only" in words(written(root))


READINGS = """
  - id: scale
    says: noise of 1e-2 protects, read as a scale
    where: Section 5
    published: {value: null}
    provenance: read
    needs: {profile: cpu, images: 1}
    criterion: {measure: label_accuracy, at_least: 0.5}
    reading: {of: noise of 1e-2, how: the number is a <scale>}
  - id: square
    says: noise of 1e-2 protects, read as a variance
    where: Section 5
    published: {value: null}
    provenance: read
    needs: {profile: cpu, images: 1}
    criterion: {measure: protected, at_least: 0.5}
    reading: {of: noise of 1e-2, how: the number is a variance}
"""


def test_the_readings_of_a_statement_are_shown_and_count_once(root):
    write_claims(root, "dlg", "Deep Leakage", further=READINGS)
    add_run(root, "dlg", "gpu", "reference")
    assert "4 claims of the paper, 1 of the book" in words(page(root, "summary"))
    assert "○ 2 not decided here 1 unreadable, 1 out of scope" in words(page(root, "summary"))
    assert "Contradicted" not in page(root, "glance"), "one of two readings contradicts nothing"
    board = page(root, "scoreboard")
    first, second = (words(row(board, name)) for name in ("scale", "square"))
    assert "✔ reproduced" in first and "which the source leaves open: the number is a &lt;scale&gt;" in first
    assert "✘ not reproduced" in second and "the statement counts once" in second
    write_claims(root, "dlg", "Deep Leakage", further=READINGS.replace("a variance}", "a variance, stated: true}"))
    assert "1 not reproduced" in words(page(root, "summary")) and "Contradicted" in page(root, "glance")


def test_images_that_every_run_shares_stand_in_the_list(root):
    changed = CHANGED.format(date="2026-11-20").replace("seen: [0]", "seen: [0], images: one <set>")
    write_claims(root, "dlg", "Deep Leakage", further=changed.replace("{{", "{").replace("}}", "}"))
    assert "images: one &lt;set&gt;" in page(root, "exceptions")


def test_counts_in_words():
    counts = judged.Counts({"reproduced": 3, "not decided here": 2, "holds": 2}, {"data": 2}, 3, 1, 1, 1, 2)
    assert rendering.listed(counts) == (
        "3 reproduced, 2 not decided here (2 data), 2 identities hold; of 3 decided results 1 on one network only, "
        "1 the same at 99 %, 1 without a 99 % interval; 2 provisional"
    )
    assert counts.open_in_words() == "2 whose image set is not here"
    assert counts.open_in_words(0) == "2 for other reasons"
    assert set(wording.OPEN_BECAUSE) == set(REASONS)
    assert rendering.counted("holds on a substitute", 2) == "2 hold on a substitute"
    assert rendering.counted("fails", 1) == "1 identity fails"


def test_one_table_a_run_counts_all_chapters(root):
    assert "all chapters" not in page(root, "summary")
    add_run(root, "dlg", "gpu", "reference")
    assert page(root, "summary").count('<th scope="col">reference run, all chapters') == 1
    assert "this run, all chapters" not in page(root, "summary"), "this run has judged nothing yet"
    add_run(root, "idlg", "cpu")
    for text in (page(root, "summary"), written(root)):
        assert "<summary>The same of this run" in text and "this run, all chapters" in text


def test_text_of_claims_and_captions_is_escaped(root):
    add_run(root, "dlg", "cpu")
    assert "&amp; its &lt;sign&gt;" in page(root, "scoreboard")
    assert r"noise \`becomes\` an image" in page(root, "picture")
    write_claims(root, "dlg", "``````{raw} html")
    (root / "results" / "runs" / "cpu" / "dlg.json").unlink()
    assert "<summary>&#96;&#96;&#96;&#96;&#96;&#96;{raw} html" in page(root, "scoreboard")
    assert "&#96;&#96;&#96;" in page(root, "summary")


def test_text_of_results_files_is_escaped(root):
    hostile = "`````\n<script>x</script>"
    path = add_run(root, "dlg", "gpu", "reference", device=f"cpu: {hostile}", commit=hostile, data="photos")

    def change(payload):
        payload["measures"]["label_accuracy"]["method"] = hostile
        payload["measures"]["label_accuracy"]["conditions"] = {"model": hostile}
        payload["skipped"] = {"protected": {"reason": "few", "why": hostile}}
        payload["measures"].pop("protected")
        payload["figures"][0]["caption"] = hostile
        payload["provenance"]["versions"]["torch"] = hostile
        payload["provenance"]["data"] = {hostile: hostile}
        payload["provenance"]["time"] = "2026-12-01T00:00:00+00:00"

    edit(path, change)
    texts = [page(root, name) for name in report._PAGES]
    assert all("<script>" not in text for text in [*texts, written(root)])
    assert all(text.count("`````\n") <= 2 * text.count("`````{raw} html") for text in texts)


def test_the_picture_comes_from_the_reference_run_where_there_is_one(root):
    add_run(root, "dlg", "cpu")
    assert "/results/runs/cpu/dlg/strip.png" in page(root, "picture")
    add_run(root, "idlg", "gpu", "reference")
    assert "/results/reference/idlg/strip.png" in page(root, "picture")
    assert r"(reference run, cpu\: AMD EPYC, 1 thread, 1\.5 hours)" in page(root, "picture")
    add_run(root, "dlg", "cpu", names=["every-attack"])
    assert "every-attack" not in page(root, "picture")
    add_run(root, "dlg", "gpu", "reference", names=["every-attack"])
    shown = page(root, "picture")
    assert shown.index("/idlg/strip.png") < shown.index("/dlg/every-attack.png")


def test_this_run_is_what_was_written_last_and_smoke_only_without_another(root):
    os.utime(add_run(root, "dlg", "smoke"), (4e9, 4e9))
    assert "sizes of the profile smoke" in page(root, "scoreboard")
    os.utime(add_run(root, "dlg", "cpu"), (3e9, 3e9))
    os.utime(add_run(root, "dlg", "gpu", time="2030-01-01T00:00:00+00:00"), (2e9, 2e9))
    text = page(root, "scoreboard")
    assert "profile cpu" in text and "profile smoke" not in text and "profile gpu" not in text


def test_a_run_that_shows_the_reference_is_this_run(root):
    part = {"device": "cuda: NVIDIA H100", "seconds": 60.0, "commit": "abc", "sha256": "0", "code": "0", "time": "0"}
    made = add_run(root, "dlg", "gpu", "reference")
    edit(made, lambda payload: payload.update(records={"success": part, "labels": part | {"commit": "def"}}))
    again = add_run(root, "dlg", "gpu", folder="reference")
    text = page(root, "scoreboard")
    assert (
        '<th scope="row">this run</th><td><span class="note">shows the reference run from its records</span>'
        in text.replace("\n", "")
    )
    assert "cuda: NVIDIA H100, 1 thread, 1.5 hours, seed 0" in text and "commit abc and def" in text
    dlg = text.split("<summary>iDLG")[0]
    assert len(badges(row(dlg, "noise"))) == 1
    assert "This run: shows the reference run from its records.</p>" in dlg
    assert words(page(root, "summary")).count("all chapters") == 1, "and is not counted again"
    assert written(root).count("data:image/png;base64,") == 1
    edit(again, lambda payload: payload.update(state={"records that cannot be used": [], "not from the record": ["a"]}))
    assert "from its records; not from the record: a.</p>" in page(root, "scoreboard")
    edit(again, lambda payload: payload["measures"].pop("protected"))
    noise = words(row(page(root, "scoreboard"), "noise"))
    assert "missing: not measured in this run" in noise, "where a cell was changed the two differ"


def test_a_run_without_records_at_the_profile_reference_is_one_made_here(root):
    add_run(root, "dlg", "cpu", folder="reference")
    text = page(root, "scoreboard")
    assert "sizes of the profile cpu" in text and "from its records" not in text


def test_device_and_hours_are_named_and_no_profile_of_the_reference_run(root):
    add_run(root, "dlg", "gpu", "reference", threads=2, seconds=45.0)
    for text in (page(root, "scoreboard"), page(root, "machines"), written(root)):
        assert (
            "cpu: AMD EPYC, 2 threads, 45 seconds" in text and "profile gpu" not in text and "gpu profile" not in text
        )
    assert "seed 0, commit" in words(page(root, "machines"))
    assert "A chapter of 0 records was run before there were any" in page(root, "machines")


def test_a_criterion_changed_without_a_run_changes_the_page(root):
    add_run(root, "dlg", "gpu", "reference")
    assert badges(row(page(root, "scoreboard"), "label-accuracy"))[0] == "reproduced"
    write_claims(root, "dlg", "Deep Leakage", bound=0.97)
    text = row(page(root, "scoreboard"), "label-accuracy")
    assert badges(text)[0] == "undecided" and "lies on both sides of the criterion, at least 97 %" in text
    path = root / "claims" / "dlg.yml"
    path.write_text(path.read_text().replace("label_accuracy, at_least: 0.97", "protected, at_least: 0.9"))
    assert badges(row(page(root, "scoreboard"), "label-accuracy"))[0] == "fails-on-a-substitute"


def test_stored_verdicts_are_not_read(root):
    edit(add_run(root, "dlg", "gpu", "reference"), lambda payload: payload.update(verdicts=[{"id": "<nonsense>"}]))
    text = page(root, "scoreboard")
    assert badges(row(text, "label-accuracy"))[0] == "reproduced" and 'class="problem"' not in text


def test_exceptions_are_made_from_the_claims(root):
    write_claims(root, "dlg", "Deep <Leakage>", further=CHANGED.format(date="2026-11-28"))
    path = root / "claims" / "idlg.yml"
    changed = CHANGED.format(date="2026-11-20")
    path.write_text(path.read_text().replace("    criterion: {", changed + "    criterion: {"))
    text = page(root, "exceptions")
    assert "4 claims in all; the reference run decides 0 of them provisionally." in words(text)
    assert "Deep &lt;Leakage&gt;" in text and "was &lt;easier&gt;" in text
    assert '<a href="scoreboard.html#dlg-text">text</a>' in text
    assert "label-accuracy, noise, own 2026-11-20 seen: seed 0 was &lt;easier&gt; not decided yet" in words(text)
    add_run(root, "idlg", "gpu", "reference")
    assert "decides 3 of them provisionally" in words(page(root, "exceptions"))
    assert "seen: seed 0 was &lt;easier&gt; provisional" in words(page(root, "exceptions"))
    first = words(row(page(root, "scoreboard"), "label-accuracy", "idlg"))
    assert "provisional: the criterion was set on 2026-11-20, after seed 0 had been seen" in first
    assert "2 provisional" in words(page(root, "summary"))
    add_run(root, "idlg", "gpu", "reference", seed=1)
    assert "was &lt;easier&gt; no longer: decided with seed 1, 2026-12-01" in words(page(root, "exceptions"))


def test_exceptions_say_which_claims_cannot_be_read(root):
    (root / "claims" / "dlg.yml").write_text("paper: [")
    assert "The claims of this paper cannot be read" in page(root, "exceptions")


def test_links_lead_to_the_ledger_of_the_chapter(root):
    put_chapter(root, "01-dlg")
    text = page(root, "scoreboard")
    assert '<a href="chapters/01-dlg.html#the-ledger-at-last">label-accuracy</a>' in text
    assert '<a href="chapters/02-idlg.html">label-accuracy</a>' in text, "not run yet: to the placeholder"
    page_path = put_chapter(root, "01-dlg")
    page_path.write_text(page_path.read_text().replace("# Title", '<tr id=\\"claim-noise\\">'))
    text = page(root, "scoreboard")
    assert '<a href="chapters/01-dlg.html#claim-noise">noise</a>' in text, "to the claim's own row"
    assert '<a href="chapters/01-dlg.html#the-ledger-at-last">label-accuracy</a>' in text
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
    assert before == {path: path.stat().st_mtime_ns for path in files} and len(files) == 13


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


MEASURE = ("measures", "label_accuracy")


@pytest.mark.parametrize(
    ("keys", "value", "line"),
    [
        (["measures"], None, "measures: Field required"),
        (["measures"], [1, 2], "measures: Input should be a valid dictionary"),
        ([*MEASURE], 0.5, "measures, label_accuracy: Input should be a valid dictionary"),
        ([*MEASURE, "low"], "0", "measures, label_accuracy, low: Input should be a valid number"),
        ([*MEASURE, "n"], 1.5, "measures, label_accuracy, n: Input should be a valid integer"),
        ([*MEASURE, "images"], None, "measures, label_accuracy, images: Field required"),
        ([*MEASURE, "low"], 2.0, "stored measure &#39;label_accuracy&#39;: low=2.0 and high="),
        (["skipped"], {"protected": {"reason": "laziness", "why": "?"}}, "skipped, protected"),
        (
            ["profile"],
            "huge",
            "profile: Input should be &#39;smoke&#39;, &#39;cpu&#39;, &#39;gpu&#39; or &#39;paper&#39;",
        ),
        (["provenance"], "mine", "provenance: Input should be"),
        (["provenance", "time"], "yesterday", "Invalid isoformat string"),
        (["provenance", "seed"], "one", "provenance, seed: Input should be a valid integer"),
        (["figures"], {"strip": 1}, "figures: Input should be a valid list"),
        (["figures", 0, "file"], 7, "figures, 0, file: Input should be a valid string"),
        (["records"], {"success": {}}, "records, success, device: Field required"),
        (["paper"], "idlg", "dlg.json is of the paper &#39;idlg&#39;, not of &#39;dlg&#39;"),
    ],
)
def test_a_results_file_of_another_form_costs_one_line(root, keys, value, line):
    def change(payload):
        for key in keys[:-1]:
            payload = payload[key]
        payload[keys[-1]] = value
        if value is None:
            del payload[keys[-1]]

    edit(add_run(root, "dlg", "gpu", "reference"), change)
    add_run(root, "dlg", "cpu")
    for text in (page(root, "scoreboard"), written(root)):
        found = re.findall(r'<p class="problem">(.*?)</p>', text, re.DOTALL)
        assert len(found) == 1 and found[0].startswith("Reference run (dlg): ") and line in found[0]
        assert "profile cpu" in text and "iDLG" in text


@pytest.mark.parametrize(
    "payload",
    [[], "text", 5, None, {"figures": {"$table": 5}}, {"figures": {"$float": []}}, {"shown": {"$table": {}}}],
    ids=str,
)
def test_a_file_with_a_valid_checksum_and_no_results_costs_one_line(root, payload):
    path = add_run(root, "dlg", "gpu", "reference")
    text = json.dumps({"schema": 1, "sha256": results._checksum(payload), "payload": payload})
    path.write_text(text)
    found = re.findall(r'<p class="problem">(.*?)</p>', page(root, "scoreboard"))
    assert len(found) == 1 and found[0].startswith("Reference run (dlg): dlg.json is ")
    assert "run the chapter again" in found[0]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}"], ids=["too deep", "too long"])
def test_a_file_that_json_cannot_hold_costs_one_line(root, text):
    add_run(root, "dlg", "gpu", "reference").write_text(text)
    found = re.findall(r'<p class="problem">(.*?)</p>', page(root, "scoreboard"))
    assert len(found) == 1 and "dlg.json is no record of reprolib: it is nested too deeply or too long" in found[0]


@pytest.mark.parametrize("keys", [["shown"], ["sets"]])
def test_tables_and_sets_of_another_form_cost_one_line(root, keys):
    edit(add_run(root, "dlg", "gpu", "reference"), lambda payload: payload.update({keys[0]: [{"caption": 5}]}))
    assert f"dlg.json is of another form: {keys[0]}" in page(root, "scoreboard")


def test_a_folder_of_pictures_that_is_a_link_is_refused(root):
    path = add_run(root, "dlg", "gpu")
    folder = path.with_suffix("")
    folder.rename(root / "private")
    folder.symlink_to(root / "private")
    assert "its file &#39;strip.png&#39; is a link to another place" in page(root, "scoreboard")
    assert "data:image/png" not in written(root)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("../../../secret.png", "is not the bare name of a PNG file"),
        ("/etc/passwd", "is not the bare name of a PNG file"),
        ("dlg.json", "is not the bare name of a PNG file"),
        (".hidden.png", "is not the bare name of a PNG file"),
        ("a b.png", "is not the bare name of a PNG file"),
        ("link.png", "is a link to another place"),
        ("text.png", "is no PNG file"),
        ("folder.png", "is not there"),
        ("gone.png", "is not there"),
    ],
)
@pytest.mark.parametrize("kind", ["reference", "runs"])
def test_figures_that_are_no_png_of_the_run_are_refused(root, file, line, kind):
    path = add_run(root, "dlg", "gpu", kind, names=["strip", "other"])
    folder = path.parent if kind == "reference" else path.with_suffix("")
    secret = root / "secret.png"
    Image.new("RGB", (9, 9), "red").save(secret)
    (folder / "link.png").symlink_to(secret)
    (folder / "text.png").write_text("password")
    (folder / "folder.png").mkdir()
    edit(path, lambda payload: payload["figures"][0].update(file=file))
    text = page(root, "scoreboard")
    found = re.findall(r'<p class="problem">(.*?)</p>', text)
    assert len(found) == 1 and f"the figure &#39;strip&#39; is left out: its file &#39;{file}&#39; {line}" in found[0]
    assert badges(row(text, "label-accuracy"))[0 if kind == "reference" else -1] == "reproduced"
    assert written(root).count("data:image/png;base64,") == 1 and "strip.png" not in page(root, "picture")


def test_malformed_claims_become_a_line(root):
    (root / "claims" / "dlg.yml").write_text("paper: [")
    text = page(root, "scoreboard")
    assert "dlg.yml is not valid YAML" in text and "<summary>iDLG" in text


def test_missing_claims_become_a_line(root):
    (root / "claims" / "dlg.yml").unlink()
    assert "claims/dlg.yml is missing" in page(root, "scoreboard")


def test_a_notebook_cut_in_half_becomes_a_line(root):
    path = put_chapter(root, "01-dlg")
    path.write_text(path.read_text()[:20])
    assert "book/chapters/01-dlg.ipynb is not a complete notebook" in page(root, "summary")


def test_claims_of_another_paper_become_a_line(root):
    write_claims(root, "idlg", "iDLG: Improved")
    (root / "claims" / "dlg.yml").write_text((root / "claims" / "idlg.yml").read_text())
    assert "dlg.yml holds the claims of &#39;idlg&#39;: its key paper must be &#39;dlg&#39;" in page(root, "scoreboard")


@pytest.mark.parametrize(
    "text", ["[]", "5", "{}", "null", '{"cells": 1, "metadata": {}}', '{"metadata": []}', "[" * 100_000]
)
def test_a_page_that_is_no_notebook_becomes_a_line(root, text):
    put_chapter(root, "01-dlg").write_text(text)
    put_chapter(root, "02-idlg")
    assert "book/chapters/01-dlg.ipynb is not a complete notebook" in page(root, "summary")
    assert report.write_pages(root) == ["book/chapters/01-dlg.ipynb"], "the site is built without it"
    placeholder = (root / "book/chapters/01-dlg.md").read_text()
    assert "The page of this chapter cannot be shown" in placeholder and "is not a complete notebook" in placeholder
    put_chapter(root, "01-dlg")
    assert report.write_pages(root) == [] and not (root / "book/chapters/01-dlg.md").exists()


def test_a_page_that_cannot_be_read_becomes_a_line(root):
    (root / "book" / "chapters" / "01-dlg.ipynb").mkdir(parents=True)
    assert "book/chapters/01-dlg.ipynb cannot be read (Is a directory): run the chapter again" in page(root, "summary")


@pytest.mark.parametrize("text", ["paper: [", "[" * 10_000, "paper: 2026-99-99", "\udcff", "a: &a [*a]"], ids=repr)
def test_claims_that_are_none_become_a_line(root, text):
    (root / "claims" / "dlg.yml").write_text(text, errors="surrogateescape")
    found = re.findall(r'<p class="problem">(.*?)</p>', page(root, "scoreboard"), re.DOTALL)
    assert len(found) == 1 and found[0].startswith("dlg.yml ") and "<summary>iDLG" in page(root, "scoreboard")


def test_a_notebook_of_no_text_stops_no_page(root):
    (root / "notebooks").mkdir()
    (root / "notebooks" / "01-dlg.ipynb").write_bytes(b"\xff\xfe")
    assert "Deep Leakage" in page(root, "scoreboard")


@pytest.mark.parametrize("text", ["parts: [", "[" * 10_000, "\udcff"], ids=["cut", "too deep", "no text"])
def test_a_table_of_contents_that_is_none_is_refused(root, text):
    (root / "_toc.yml").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match="_toc.yml is not valid YAML: "):
        report.write_pages(root)


def test_a_generated_page_that_was_damaged_is_written_anew(root):
    text = page(root, "scoreboard")
    (root / "book" / "_generated" / "scoreboard.md").write_bytes(b"\xff")
    assert page(root, "scoreboard") == text


def test_names_of_files_are_escaped(root):
    key = 'x`````\n"><script>'
    write_claims(root, "x", "Odd")
    text = (root / "claims" / "x.yml").read_text().replace("paper: x", f"paper: {json.dumps(key)}")
    (root / "claims" / "x.yml").rename(root / "claims" / f"{key}.yml")
    (root / "claims" / f"{key}.yml").write_text(text)
    add_run(root, key, "gpu", "reference")
    texts = [page(root, name) for name in report._PAGES]
    assert all("<script>" not in text for text in [*texts, written(root)])
    assert all(text.count("`````") == 2 * text.count("`````{raw} html") for text in texts)


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
    assert "99.2 % [95.7, 100]" in text and "cpu: AMD EPYC, 1 thread, 1.5 hours" in text and "images photos" in text
    assert text.count("data:image/png;base64,") == 2
    assert "<script" not in text and "<link" not in text
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)
    assert "the whole interval satisfies the criterion." in text
    assert "&amp; its &lt;sign&gt;" in text


def test_report_without_results_says_so(root):
    text = written(root)
    assert text.count("no reference run yet") == 8 and "none yet" in text


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
    assert "From gpu" in text.split("Left out")[0] and re.search(
        r"Left out.*\sstrip \(this run, cpu: AMD EPYC, 1 thread, 1.5 hours\)\.", text, re.DOTALL
    )


def test_chapters_take_turns_where_there_is_no_room_for_all_figures(root, monkeypatch):
    bare = len(written(root).encode())
    for paper in ("dlg", "idlg"):
        add_run(root, paper, "gpu", "reference", side=60, names=["first", "second", "third"])
        add_run(root, paper, "cpu", side=60, names=["first"])
    picture = (len(written(root).encode()) - bare) // 8
    monkeypatch.setattr(report, "REPORT_LIMIT", len(written(root).encode()) - int(3.5 * picture))
    text = written(root)
    assert len(text.encode()) <= report.REPORT_LIMIT
    dlg, idlg = text.split('<details class="chapter" id="idlg">')
    assert dlg.count("<img") == 2 and idlg.count("<img") == 2
    for chapter in (dlg, idlg):
        made = "cpu: AMD EPYC, 1 thread, 1.5 hours"
        assert f"third (reference run, {made}), first (this run, {made})." in words(chapter)


def test_a_chapter_without_a_reference_run_shows_this_runs_first_figure(root, monkeypatch):
    add_run(root, "dlg", "gpu", "reference", side=60, names=["first", "second", "third"])
    add_run(root, "idlg", "cpu", side=60, names=["first", "second"])
    whole = len(written(root).encode())
    monkeypatch.setattr(report, "REPORT_LIMIT", whole - 30_000)  # two pictures
    dlg, idlg = written(root).split('<details class="chapter" id="idlg">')
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


def test_the_index_shows_each_paper_with_its_finding_and_what_was_contradicted(root):
    glance = page(root, "glance")
    assert "Of the " not in glance and "Still to be run in full, and so not decided: " in glance
    write_claims(root, "dlg", "DLG")
    path = root / "claims" / "dlg.yml"
    path.write_text(path.read_text().replace("measures:", 'finding: "<{label_accuracy}> of the labels."\nmeasures:', 1))
    add_run(root, "dlg", "gpu", "reference", right=10)
    glance = page(root, "glance")
    assert glance.startswith("Of the ") and "1 not reproduced" in glance and "that are not decided: " in glance
    assert "Bars:" in glance and "* measured, not decided." in glance
    assert '<span class="bar key" aria-hidden="true">' in glance
    assert "&lt;7.81\N{NO-BREAK SPACE}%&gt; of the labels." in glance
    assert 'Contradicted: <a href="scoreboard.html#dlg-label-accuracy">the label of one sample &amp; its' in glance
    assert '<span class="not-reproduced" style="flex:1" title="1 not reproduced"></span>' in glance


def test_the_scoreboard_says_why_it_has_more_rows_than_there_are_claims(root):
    write_claims(root, "dlg", "DLG", further=FURTHER)
    assert "<p>12 rows: 9 claims of the papers; 2 of the book; 1 setting, shown and not counted.</p>" in page(
        root, "scoreboard"
    )
