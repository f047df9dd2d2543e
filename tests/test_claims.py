from datetime import date
from pathlib import Path

import pytest

from reprolib.book import claims, criteria

ROOT = Path(__file__).resolve().parent.parent

FILE = """
paper: idlg
title: Improved DLG
measures:
  label_accuracy: share of labels inferred
  undefended: {says: share of images identified without the defense, on: {model: LeNet, batch: 1}}
  gain: share of labels right with iDLG minus with DLG
  steps: the number of steps
claims:
  - id: label-accuracy
    says: the label is recovered
    central: true
    where: Table 1
    published: {value: 100.0, unit: "% of labels"}
    provenance: read
    setting: {model: LeNet, data: [mnist, lfw], batch: 1, budget: [300]}
    favours: the attacker, because the images are smaller
    needs: {data: [cifar10, mnist], profile: cpu, images: 100}
    scope: architecture
    gate: {measure: undefended, at_least: 0.5}
    criterion: {measure: label_accuracy, at_least: 0.99}
    changed: {date: 2026-11-28, why: it named no attacker, seen: [0]}
  - id: text
    says: text leaks too
    where: Table 2
    published: {value: all tokens}
    provenance: read
    undecidable: {reason: missing, says: the chapter on text is not written}
  - id: stages
    says: it works at any stage
    where: Section 3
    published: {value: any, unit: "%"}
    provenance: read
    needs: {profile: cpu, images: 10}
    scope: network
    parts:
      - {name: untrained, criterion: {measure: label_accuracy, at_least: 0.5}}
      - {name: trained, criterion: {measure: gain, above: 0.0}}
  - id: optimiser
    kind: setting
    says: L-BFGS is the optimiser
    where: Section 4
    published: {value: L-BFGS}
    provenance: read
  - id: sign
    kind: identity
    says: the gradient is negative at the true class
    where: Equation 3
    published: {value: always, unit: "%"}
    provenance: read
    criterion: {measure: label_accuracy, at_least: 1.0}
"""


@pytest.fixture
def write(tmp_path):
    def write(text=FILE):
        path = tmp_path / "idlg.yml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_of_claims_is_read(write):
    paper = claims.load(write())
    assert paper.paper == "idlg"
    assert [claim.id for claim in paper.claims] == ["label-accuracy", "text", "stages", "optimiser", "sign"]
    claim = paper.claim("label-accuracy")
    assert paper.criterion_words(claim) == "at least 99 %" and str(claim.published) == "100 % of labels"
    assert claim.needs.data == ("cifar10", "mnist") and claim.origin == "paper" and claim.kind == "result"
    assert claim.central and claim.scope == "architecture" and claim.gate.at_least == 0.5
    assert claim.changed.date == date(2026, 11, 28) and claim.changed.seen == (0,)
    assert paper.claim("text").undecidable.reason == "missing" and paper.criterion_words(paper.claim("text")) == ""
    assert paper.criterion_words(paper.claim("stages")) == "untrained: at least 50 %; trained: above 0 %"
    assert paper.claim("optimiser").kind == "setting" and paper.claim("sign").needs is None
    with pytest.raises(ValueError, match="unknown claim 'x'; known: label-accuracy, text"):
        paper.claim("x")


def test_one_value_of_a_setting_is_a_list_of_one(write):
    setting = claims.load(write()).claim("label-accuracy").setting
    assert setting.model == ("LeNet",) and setting.data == ("mnist", "lfw")
    assert setting.batch == (1,) and setting.budget == (300,) and setting.scale is None


def test_a_measure_is_a_sentence_or_says_what_it_is_measured_on(write):
    measures = claims.load(write()).measures
    assert measures["steps"].says == "the number of steps" and measures["steps"].on == criteria.Conditions()
    # YAML 1.1 takes the key `on` for a truth value
    assert measures["undefended"].on == criteria.Conditions(model="LeNet", batch=1)
    assert measures["label_accuracy"].share and not measures["gain"].share and not measures["steps"].share


LABELS = "criterion: {measure: label_accuracy, at_least: 0.99}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("where: Table 1", "wher: Table 1", r"'label-accuracy', wher: unknown key; known: id, says, kind, central"),
        ("at_least: 0.99", "atleast: 0.99", r"criterion, atleast: unknown key; known: measure, at_least"),
        ("batch: 1, budget", "bach: 1, budget", r"setting, bach: unknown key; known: model, data, attacker, batch"),
        ("{model: LeNet, batch: 1}", "{modl: LeNet}", r"measures, undefended, on, modl: unknown key; known: model, sc"),
        ("{says: share of images", "{say: share of images", r"measures, undefended, say: unknown key; known: says, on"),
        ("{measure: undefended, at", "{measur: undefended, at", r"gate, measur: unknown key; known: measure, at_least"),
        (LABELS, "", r"exactly one of criterion, parts, undecidable \(kind result\); got none"),
        (LABELS, f"{LABELS}\n    undecidable: {{reason: data, says: x}}", "got criterion and undecidable"),
        (", at_least: 0.99", "", "exactly one of at_least, at_most, between, above; got none"),
        ("at_least: 0.99", "at_least: 0.9, at_most: 1", r"exactly one of .* got \['at_least', 'at_most'\]"),
        ("at_least: 0.99", "between: [2, 1]", r"expected \[smaller, larger\]"),
        ("at_least: 0.99", "at_least: .nan", "'label-accuracy', criterion, at_least: bounds are finite numbers"),
        ("at_least: 0.99", "at_most: .inf", "criterion, at_most: bounds are finite numbers"),
        ("at_least: 0.99", "above: '0.5'", "criterion, above: bounds are finite numbers .got '0.5'"),
        ("at_least: 0.99", "at_least: true", "criterion, at_least: bounds are finite numbers"),
        ("at_least: 0.99", "between: [0.1, .inf]", "criterion, between, number 2: bounds are finite numbers"),
        ("at_least: 0.5}\n    crit", "at_least: .nan}\n    crit", "gate, at_least: bounds are finite numbers"),
        ("{measure: undefended, at_least: 0.5}", "{measure: undefended}", "'label-accuracy', gate, at_least: missing"),
        (
            LABELS,
            LABELS.replace("label_accuracy", "acuracy"),
            "criterion.measure='acuracy' is not declared in measures; declared: label_accuracy, undefended",
        ),
        ("gate: {measure: undefended", "gate: {measure: control", "gate.measure='control' is not declared in measures"),
        (
            "{measure: gain, above",
            "{measure: gains, above",
            "'stages': criterion.measure='gains' is not declared",
        ),
        ("id: text", "id: label-accuracy", r"ids used twice: \['label-accuracy'\]"),
        ("id: text", "id: Text Claim", "'Text Claim', id: .*match pattern"),
        ("reason: missing,", "reason: no time,", "'text', undecidable, reason: .*'data', 'weights', 'compute'"),
        ("reason: missing, says: the chapter on text is not written", "reason: data", "undecidable, says: missing"),
        (
            "{reason: missing, says: the chapter on text is not written}",
            "no text",
            "'text', undecidable: expected the keys reason, says",
        ),
        ("profile: cpu, images: 100", "profile: tpu, images: 100", "needs, profile: .*'smoke', 'cpu', 'gpu'"),
        ("images: 100}", "images: 0}", "needs, images: .*greater than or equal to 1"),
        ("    needs: {data: [cifar10, mnist], profile: cpu, images: 100}\n", "", "'label-accuracy': needs is missing"),
        ("provenance: read", "provenance: own", "own goes with origin book only"),
        ("scope: network", "scope: this network", "'stages', scope: .*'architecture', 'network' or 'none'"),
        ("kind: setting", "kind: fact", "'optimiser', kind: .*'result', 'setting' or 'identity'"),
        ("kind: setting", f"kind: setting\n    {LABELS}", "kind setting is not judged: remove criterion"),
        ("kind: setting", "kind: setting\n    central: true", "kind setting is not judged: remove central"),
        ("    scope: network\n", "    kind: setting\n", "kind setting is not judged: remove parts"),
        (
            "kind: setting",
            "kind: setting\n    undecidable: {reason: data, says: no data}",
            "kind setting is not judged: remove undecidable",
        ),
        ("    scope: network\n", "    kind: identity\n", "an identity has one criterion, .*: remove parts"),
        (
            "      - {name: trained, criterion: {measure: gain, above: 0.0}}\n",
            "",
            "'stages', parts: 1 given: .* two",
        ),
        ("name: trained", "name: untrained", r"parts: names used twice: \['untrained'\]"),
        ("{name: trained, ", "{", "'stages', parts, number 2, name: missing"),
        ("date: 2026-11-28, ", "", "'label-accuracy', changed, date: missing"),
        ("why: it named no attacker, ", "", "'label-accuracy', changed, why: missing"),
        ("date: 2026-11-28", "date: last week", "changed, date: .*valid date"),
        ("seen: [0]", "seen: [first]", "changed, seen, number 1: .*valid integer"),
        ("data: [mnist, lfw]", "data: []", "setting, data: no value is listed: leave out what the paper does not fix"),
        ("model: LeNet, data", "model: [[LeNet]], data", "setting, model: expected one value, text or a finite number"),
        ("model: LeNet, data", "scale: .nan, data", "setting, scale: expected one value, text or a finite number"),
        ("at_least: 0.99", f"at_least: {'9' * 400}", "criterion, at_least: bounds are finite numbers"),
        ("on: {model: LeNet, batch: 1}", "on: {batch: [1]}", "undefended, on, batch: expected one value, text or a f"),
        ("value: 100.0", "value: .nan", "published, value"),
        ('{value: 100.0, unit: "% of labels"}', "100", "published: expected the keys value, unit .got '100'"),
        ("  steps: the number", "  label_accuracy: the number", "key 'label_accuracy' is given twice"),
        ("paper: idlg", "paper: [idlg", "idlg.yml is not valid YAML"),
        ("where: Table 1\n", "where: Table 1\n    criterion: null\n", "key 'criterion' is given twice"),
    ],
)
def test_a_malformed_file_names_claim_and_key(write, old, new, message):
    assert old in FILE
    with pytest.raises(ValueError, match=message):
        claims.load(write(FILE.replace(old, new, 1)))


@pytest.mark.parametrize("bound", ["at_least: 0.0", "at_most: 1.0", "between: [0, 1]", "above: -0.1"])
def test_a_criterion_that_cannot_fail_is_none(write, bound):
    with pytest.raises(ValueError, match="'label-accuracy': criterion .* cannot fail: label_accuracy is a share in"):
        claims.load(write(FILE.replace("at_least: 0.99", bound)))


def test_bounds_of_shares_are_no_percentages(write):
    with pytest.raises(ValueError, match="criterion 'at least 99' cannot hold: label_accuracy is a share in"):
        claims.load(write(FILE.replace("at_least: 0.99", "at_least: 99.0")))


@pytest.mark.parametrize(
    ("says", "success"),
    [
        ("share of images identified under noise", True),
        ("share of 64 x 64 images with MSE < 1e-3", True),
        ("share of images that the plain attacker identifies", True),
        ("share of the variance of success (MSE < 1e-3) that lies between networks", False),
        ("share of images identified under pruning minus without, paired", False),
        ("share of labels inferred", False),
    ],
)
def test_what_an_attack_gets_is_told_from_other_shares(says, success):
    assert criteria.Measure(says=says).success is success


def test_a_difference_of_shares_may_be_held_to_zero(write):
    paper = claims.load(write(FILE.replace("above: 0.0", "at_least: 0.0")))
    assert paper.claim("stages").parts[1].criterion.at_least == 0


def test_a_file_of_something_else(write):
    with pytest.raises(
        ValueError, match="idlg.yml: expected the keys paper, title, finding, picture, sizes, measures, claims"
    ):
        claims.load(write("- a\n- b\n"))


def test_the_sizes_of_experiments_are_fixed_values(write):
    text = FILE.replace(
        "measures:", "sizes: {pairs: [[1, 2], [2, 4], [8, 4], [16, 4]], sets: [[a], [a], [a], [a]]}\nmeasures:", 1
    )
    assert claims.load(write(text)).sizes["pairs"] == ((1, 2), (2, 4), (8, 4), (16, 4))


@pytest.mark.parametrize("bound", ["at_least: 1.0", "between: [0.9, 1.0]"])
def test_a_recalled_number_cannot_be_the_criterion(write, bound):
    text = FILE.replace("provenance: read", "provenance: recalled", 1).replace("at_least: 0.99", bound)
    with pytest.raises(ValueError, match="a recalled number cannot decide"):
        claims.load(write(text))


def test_nor_that_of_a_part(write):
    head, tail = FILE.split("  - id: stages")
    tail = tail.replace("provenance: read", "provenance: recalled", 1).replace("above: 0.0", "between: [0.1, 0.2]")
    with pytest.raises(ValueError, match="'stages': a recalled number cannot decide"):
        claims.load(write(f"{head}  - id: stages{tail}"))


@pytest.mark.parametrize(
    ("bound", "interval", "holds"),
    [
        ({"at_least": 0.9}, (0.90, 0.99), True),
        ({"at_least": 0.9}, (0.85, 0.99), None),
        ({"at_least": 0.9}, (0.10, 0.89), False),
        ({"at_most": 0.1}, (0.00, 0.10), True),
        ({"at_most": 0.1}, (0.00, 0.11), None),
        ({"at_most": 0.1}, (0.11, 0.20), False),
        ({"between": (0.2, 0.4)}, (0.2, 0.4), True),
        ({"between": (0.2, 0.4)}, (0.1, 0.5), None),
        ({"between": (0.2, 0.4)}, (0.41, 0.5), False),
        ({"above": 0.0}, (0.01, 0.5), True),
        ({"above": 0.0}, (0.0, 0.5), None),
        ({"above": 0.0}, (-0.2, 0.0), False),
        ({"at_most": 0.1}, (0.05, float("inf")), None),
    ],
)
def test_the_whole_interval_decides(bound, interval, holds):
    assert criteria.Criterion(measure="m", **bound).holds(*interval) is holds


CENTRAL = """
  - id: c{}
    says: x
    central: true
    where: x
    published: {{value: x}}
    provenance: read
    undecidable: {{reason: data, says: x}}"""


@pytest.mark.parametrize("central", [2, 6])
def test_three_to_five_claims_are_central(write, central):
    claim = CENTRAL
    head = FILE.split("  - id: label-accuracy")[0]
    four = claims.load(write(head + "".join(claim.format(i) for i in range(4))))
    claims.check_central(four)
    paper = claims.load(write(head + "".join(claim.format(i) for i in range(central))))
    with pytest.raises(ValueError, match=rf"claims/idlg.yml has {central} claims with .central: true., .*: c0, c1"):
        claims.check_central(paper)


def test_the_readings_of_a_statement_are_one_central_claim(write):
    claim = CENTRAL + "\n    reading: {{of: statement {}, how: x}}"
    head = FILE.split("  - id: label-accuracy")[0]
    claims.check_central(claims.load(write(head + "".join(claim.format(i, i // 2) for i in range(6)))))
    paper = claims.load(write(head + "".join(claim.format(i, "x") for i in range(4))))
    with pytest.raises(ValueError, match="has 1 claims"):
        claims.check_central(paper)


@pytest.mark.parametrize("path", sorted((ROOT / "claims").glob("*.yml")), ids=lambda path: path.stem)
def test_the_books_own_claims_are_valid(path):
    paper = claims.load(path)
    assert paper.paper == path.stem and paper.claims
    claims.check_central(paper)


# the finding


def test_a_finding_holds_the_measured_values_in_their_own_scale(write):
    titled = "title: Improved DLG\n"
    said = 'finding: "{label_accuracy} of the labels are read, in {steps} steps."\n'
    path = write(FILE.replace(titled, titled + said))
    paper = claims.load(path)
    measured = {"label_accuracy": 0.5546, "steps": 16.58}
    assert paper.found(measured) == "55.5\N{NO-BREAK SPACE}% of the labels are read, in 16.6 steps."
    assert paper.found({"label_accuracy": 0.5}) == "", "a finding with a gap is none"


READINGS = """
  - id: text-tokens
    says: text leaks too, token by token
    where: Table 2
    published: {value: all tokens}
    provenance: read
    undecidable: {reason: missing, says: the chapter on text is not written}
    reading: {of: text, how: every token}
"""


def test_readings_are_at_least_two(write):
    with pytest.raises(ValueError, match="claim 'text-tokens': the only reading of 'text'; readings are at least two"):
        claims.load(write(FILE + READINGS))
    with pytest.raises(ValueError, match="claim 'text-tokens', reading, how: missing"):
        claims.load(write(FILE + READINGS.replace(", how: every token", "")))


def test_at_most_one_reading_is_what_the_source_says(write):
    stated = READINGS.replace("every token", "every token, stated: true")
    other = stated.replace("text-tokens", "words")
    paper = claims.load(write(FILE + READINGS + other))
    assert [claim.reading.stated for claim in paper.claims if claim.reading] == [False, True]
    with pytest.raises(ValueError, match="readings of 'text': .'text-tokens', 'words'. are stated, at most one"):
        claims.load(write(FILE + stated + other))


def test_readings_are_of_one_origin(write):
    other = READINGS.replace("text-tokens", "words").replace("provenance: read", "provenance: own\n    origin: book")
    with pytest.raises(ValueError, match="readings of 'text': .* differ in origin, or one of them is a setting"):
        claims.load(write(FILE + READINGS + other))


def test_a_finding_names_only_measures(write):
    titled = "title: Improved DLG\n"
    path = write(FILE.replace(titled, titled + 'finding: "{stesp.__class__} it is."\n'))
    with pytest.raises(ValueError, match=r"finding: \{stesp.__class__\} is not declared in measures; declared: label"):
        claims.load(path)
