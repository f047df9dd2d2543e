from pathlib import Path

import pytest

from reprolib import claims
from reprolib.metrics import Interval, wilson

ROOT = Path(__file__).resolve().parent.parent

FILE = """
paper: idlg
title: Improved DLG
measures:
  label_accuracy: share of labels inferred
  median_mse: median error
claims:
  - id: label-accuracy
    says: the label is recovered
    where: Table 1
    published: {value: 100.0, unit: "% of labels"}
    provenance: read
    needs: {data: [cifar10, mnist], profile: cpu, images: 100}
    criterion: {measure: label_accuracy, at_least: 0.99}
  - id: text
    says: text leaks too
    where: Table 2
    published: {value: all tokens}
    provenance: read
    needs: {profile: cpu, images: 1}
    criterion: null
    undecidable: text is not part of this book yet
"""


@pytest.fixture
def write(tmp_path):
    def write(text=FILE):
        path = tmp_path / "idlg.yml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def ledger(write):
    return claims.Ledger(claims.load(write()), "gpu", {"photos": "cifar10"})


def test_a_file_of_claims_is_read(write):
    paper = claims.load(write())
    assert paper.paper == "idlg" and [claim.id for claim in paper.claims] == ["label-accuracy", "text"]
    claim = paper.claim("label-accuracy")
    assert claim.criterion.words(percent=True) == "at least 99 %" and str(claim.published) == "100 % of labels"
    assert claim.needs.data == ("cifar10", "mnist") and claim.origin == "paper"
    with pytest.raises(ValueError, match="unknown claim 'x'; known: label-accuracy, text"):
        paper.claim("x")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("where: Table 1", "wher: Table 1", r"'label-accuracy', wher: unknown key; known: id, says, where"),
        ("at_least: 0.99", "atleast: 0.99", r"criterion, atleast: unknown key; known: measure, at_least"),
        ("    criterion: {measure: label_accuracy, at_least: 0.99}\n", "", r"'label-accuracy', criterion: missing \(a"),
        (", at_least: 0.99", "", "exactly one of at_least, at_most, between, above; got none"),
        ("at_least: 0.99", "at_least: 0.9, at_most: 1", r"exactly one of .* got \['at_least', 'at_most'\]"),
        ("at_least: 0.99", "between: [2, 1]", r"expected \[smaller, larger\]"),
        (
            "measure: label_accuracy",
            "measure: acuracy",
            "'acuracy' is not declared in measures; declared: label_accuracy, median_m",
        ),
        ("id: text", "id: label-accuracy", r"ids used twice: \['label-accuracy'\]"),
        ("id: text", "id: Text Claim", "'Text Claim', id: .*match pattern"),
        ("    undecidable: text is not part of this book yet\n", "", "say why in `undecidable"),
        ("at_least: 0.99}", "at_least: 0.99}\n    undecidable: why", "undecidable is given beside a criterion"),
        ("profile: cpu, images: 100", "profile: tpu, images: 100", "needs, profile: .*'smoke', 'cpu', 'gpu'"),
        ("images: 100", "images: 0", "needs, images: .*greater than or equal to 1"),
        ("provenance: read", "provenance: own", "own goes with origin book only"),
        ("  median_mse: median error", "  label_accuracy: again", "key 'label_accuracy' is given twice"),
        ("paper: idlg", "paper: [idlg", "idlg.yml is not valid YAML"),
        ("where: Table 1\n", "where: Table 1\n    criterion: null\n", "key 'criterion' is given twice"),
    ],
)
def test_a_malformed_file_names_claim_and_key(write, old, new, message):
    assert old in FILE
    with pytest.raises(ValueError, match=message):
        claims.load(write(FILE.replace(old, new, 1)))


def test_a_file_of_something_else(write):
    with pytest.raises(ValueError, match="idlg.yml: expected the keys paper, title, measures, claims"):
        claims.load(write("- a\n- b\n"))


@pytest.mark.parametrize("bound", ["at_least: 1.0", "between: [0.9, 1.0]"])
def test_a_recalled_number_cannot_be_the_criterion(write, bound):
    text = FILE.replace("provenance: read", "provenance: recalled", 1).replace("at_least: 0.99", bound)
    with pytest.raises(ValueError, match="a recalled number cannot decide"):
        claims.load(write(text))


@pytest.mark.parametrize(
    ("bound", "interval", "word"),
    [
        ({"at_least": 0.9}, (0.90, 0.99), "reproduced"),
        ({"at_least": 0.9}, (0.85, 0.99), "partly"),
        ({"at_least": 0.9}, (0.10, 0.89), "not reproduced"),
        ({"at_most": 0.1}, (0.00, 0.10), "reproduced"),
        ({"at_most": 0.1}, (0.00, 0.11), "partly"),
        ({"at_most": 0.1}, (0.11, 0.20), "not reproduced"),
        ({"between": (0.2, 0.4)}, (0.2, 0.4), "reproduced"),
        ({"between": (0.2, 0.4)}, (0.1, 0.5), "partly"),
        ({"between": (0.2, 0.4)}, (0.41, 0.5), "not reproduced"),
        ({"above": 0.0}, (0.01, 0.5), "reproduced"),
        ({"above": 0.0}, (0.0, 0.5), "partly"),
        ({"above": 0.0}, (-0.2, 0.0), "not reproduced"),
    ],
)
def test_the_whole_interval_decides(bound, interval, word):
    criterion = claims.Criterion(measure="m", **bound)
    assert criterion.judge(Interval(sum(interval) / 2, *interval, 10, "test")) == word


def test_a_measured_claim_gets_a_verdict(ledger):
    ledger.record("label_accuracy", wilson(1000, 1000), images=1000, data="cifar10")
    verdict, text = ledger.verdicts()
    assert str(verdict) == "✔ reproduced" and verdict.record.images == 1000
    assert str(text) == "○ not decided here: text is not part of this book yet"
    ledger.record("label_accuracy", wilson(500, 1000), images=1000, data="cifar10")
    assert ledger.verdicts()[0].word == "not reproduced"


@pytest.mark.parametrize(
    ("profile", "images", "data", "reason"),
    [
        ("smoke", 1000, "cifar10", "decided from the cpu profile on, this run is smoke"),
        ("gpu", 1000, "photos", "needs cifar10 or mnist, this run has photos, a stand-in for cifar10"),
        ("gpu", 1000, None, "needs cifar10 or mnist, this run has no images"),
        ("gpu", 64, "mnist", "needs 100 images, this run has 64"),
    ],
)
def test_what_a_run_lacks_leaves_a_claim_undecided(ledger, profile, images, data, reason):
    ledger.profile = profile
    ledger.record("label_accuracy", wilson(images, images), images=images, data=data)
    verdict = ledger.verdicts()[0]
    assert verdict.word == "not decided here" and verdict.reason == reason and verdict.record is not None


def test_measures_must_be_declared_recorded_or_skipped(ledger):
    assert ledger.verdicts()[0].reason == "not measured in this run"
    with pytest.raises(ValueError, match="never recorded: label_accuracy, median_mse; record them"):
        ledger.check()
    with pytest.raises(ValueError, match="unknown measure 'accuracy'; .*declares: label_accuracy, median_mse"):
        ledger.record("accuracy", wilson(1, 1), 1, "mnist")
    ledger.record("label_accuracy", wilson(1, 2), 2, "mnist")
    with pytest.raises(ValueError, match="never recorded: median_mse"):
        ledger.check()
    with pytest.raises(ValueError, match="reason for skipping 'median_mse' is empty"):
        ledger.skip("median_mse", "")
    ledger.skip("median_mse", "takes an hour")
    ledger.check()
    ledger.skip("label_accuracy", "takes an hour")
    assert ledger.verdicts()[0].reason == "takes an hour" and not ledger.records


@pytest.mark.parametrize(
    ("interval", "images", "message"),
    [
        (0.5, 10, "expected an Interval"),
        (Interval(0.5, float("nan"), 1.0, 3, "x"), 10, "ends must be numbers"),
        (Interval(0.5, 0.4, 1.0, 3, "x"), 0, "expected at least 1"),
    ],
)
def test_a_record_must_be_an_interval_over_images(ledger, interval, images, message):
    with pytest.raises(ValueError, match=message):
        ledger.record("label_accuracy", interval, images, "mnist")


def test_an_unknown_profile_lists_the_known(write):
    with pytest.raises(ValueError, match="unknown profile 'huge'; known: smoke, cpu, gpu, paper"):
        claims.Ledger(claims.load(write()), "huge")


def test_the_table_sets_three_values_side_by_side(ledger):
    ledger.record("label_accuracy", wilson(995, 1000), 1000, "cifar10")
    reference = ledger.payload()
    ledger.record("label_accuracy", wilson(64, 64), 64, "photos")
    row = ledger.table(reference).iloc[0]
    assert row["published"] == "100 % of labels" and row["criterion"] == "at least 99 %"
    assert row["reference run"] == "99.5 % [98.8, 99.8] ◐" and row["this run"] == "100 % [94.3, 100]"
    assert row["verdict"].startswith("○ not decided here: needs cifar10")
    assert ledger.table().iloc[0]["reference run"] == "—"


def test_the_payload_goes_through_a_results_file(ledger, tmp_path):
    from reprolib import results

    ledger.record("label_accuracy", wilson(64, 64), 64, "photos")
    ledger.skip("median_mse", "too long")
    results.save(tmp_path / "x.json", ledger.payload())
    stored = results.load(tmp_path / "x.json")
    assert stored["measures"]["label_accuracy"]["substitute_for"] == "cifar10"
    assert stored["skipped"] == {"median_mse": "too long"}
    assert [verdict["verdict"] for verdict in stored["verdicts"]] == ["not decided here"] * 2


@pytest.mark.parametrize("path", sorted((ROOT / "claims").glob("*.yml")), ids=lambda path: path.stem)
def test_the_books_own_claims_are_valid(path):
    paper = claims.load(path)
    assert paper.paper == path.stem and paper.claims
    decided = {claim.criterion.measure for claim in paper.claims if claim.criterion}
    assert decided <= set(paper.measures)
    for claim in paper.claims:
        # A number from memory is shown, never judged by: only directions and undecidable claims remain.
        assert claim.provenance != "recalled" or claim.criterion is None or claim.criterion.between is None
