import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from test_report import add_run, page, root, written  # noqa: F401  (a fixture and helpers)

from reprolib.book import claims, figures, matrix, report
from reprolib.book.criteria import Criterion

PLAN = """
attacks:
  - id: search
    name: A search
    against: a search by value
    paper: dlg
    victims: one image
    control: undefended
    accuracy: label_accuracy
    figure: true
    levels:
      - {defense: Noise, level: std 1, static: protected, adaptive: label_accuracy, cost: undefended}
      - {defense: Noise, level: std 2}
  - id: absent
    name: Of a chapter that is not there
    paper: nobody
    victims: none
    levels: [{defense: Noise, level: std 1}]
"""


@dataclass
class Found:
    value: float
    low: float
    high: float
    n: int = 32


def put_plan(home, text=PLAN):
    (home / "book").mkdir(exist_ok=True)
    (home / "book" / "matrix.yml").write_text(text)


@pytest.mark.parametrize(
    ("found", "control", "word"),
    [
        (None, Found(1, 0.9, 1), "not measured"),
        (Found(0.6, 0.5, 0.7), None, "broken"),
        (Found(0.1, 0.0, 0.2), Found(1, 0.9, 1), "protects"),
        (Found(0.1, 0.0, 0.2), Found(0.6, 0.49, 0.7), "no control"),
        (Found(0.1, 0.0, 0.2), None, "no control"),
        (Found(0.1, 0.0, 0.21), Found(1, 0.9, 1), "between"),
        (Found(0.6, 0.49, 0.7), Found(1, 0.9, 1), "between"),
    ],
)
def test_an_interval_says_a_word_only_beside_its_control(found, control, word):
    assert matrix.zone(found, control) == word


@pytest.mark.parametrize(
    ("word", "at_most", "named", "zone"),
    [
        ("reproduced", True, False, "protects"),
        ("not decided here", True, False, "between"),
        ("not reproduced", True, False, "between"),
        ("not reproduced", False, False, "protects"),
        ("not decided here", False, False, "between"),
        ("not decided here", True, True, "between"),
        (None, True, False, "between"),
    ],
)
def test_a_cell_does_not_say_protects_where_the_ledger_does_not(word, at_most, named, zone):
    bound = Criterion(measure="other" if named else "read", **{"at_most" if at_most else "at_least": 0.1})
    claim = SimpleNamespace(id="hides", criteria=(bound,), gate=None)
    paper = SimpleNamespace(claims=[claim], measures={"read": 0, "other": 0, "plain": 0})
    level = {"defense": "Noise", "level": "std 1", "adaptive": "read", "claim": "hides" if named else None}
    attack = matrix.Attack(id="a", name="a", paper="p", victims="v", control="plain", levels=[level])
    verdict = SimpleNamespace(verdict=word, decided=word != "not decided here")
    measures = {"read": Found(0.05, 0.0, 0.15), "plain": Found(1, 0.9, 1)}
    (row,) = matrix.rows(attack, paper, measures, {"hides": verdict} if word else {})
    cell = row.cells["adaptive"]
    assert cell.zone == zone and cell.claim == "hides"
    undecided = word in (None, "not decided here")
    assert cell.undecided == undecided == cell.sign.endswith("*") == cell.words.endswith("not decided")


def test_an_attacker_who_ignores_the_defense_never_says_that_it_protects():
    cells = [matrix.Cell(who, Found(0.1, 0, 0.2), "protects", None) for who in matrix.WHO]
    assert [cell.words for cell in cells] == ["10 % [0, 20], attack stopped", "10 % [0, 20], protects"]


def test_the_page_shows_numbers_and_says_what_was_not_measured(root):  # noqa: F811
    put_plan(root)
    assert "Without a defense it identifies\na share that was not measured." in page(root, "matrix")
    add_run(root, "dlg", "gpu", "reference")
    text = page(root, "matrix")
    cell = 'href="scoreboard.html#dlg-label-accuracy">● 99.2 %</a> [95.7, 100]<br><span class="note">broken</span>'
    assert cell in text and 'href="scoreboard.html#dlg-noise">○ 0 %</a>' in text and "attack stopped" in text
    assert text.count("not measured</span></td>") >= 2 and "99.2 [95.7, 100] of 99.2</td>" in text
    assert "Of a chapter that is not there" not in text
    assert (
        "Against a search by value \\(an older run, provisional\\)\\: of 1 defended setting 1 is broken" in text
        and (root / "book/_generated/dumbbells.png").exists()
    )
    assert 'class="drawn"' in written(root)


def test_a_book_without_a_matrix_says_so(root):  # noqa: F811
    assert "There is no matrix" in page(root, "matrix")
    assert 'class="drawn"' not in written(root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("attacks: [", "matrix.yml is not valid YAML"),
        ("attacks: 3", "matrix.yml: attacks: Input should be a valid tuple"),
        (PLAN.replace("victims: one image", "victim: one"), "matrix.yml: attacks, 0, victims: Field required"),
        (PLAN.replace("id: absent", "id: search"), "used twice as an id: search"),
        (PLAN.replace("static: protected", "static: protect"), "claims/dlg.yml has no measures protect"),
    ],
)
def test_a_matrix_that_is_none_is_refused(root, text, says):  # noqa: F811
    put_plan(root, text)
    with pytest.raises(ValueError, match=re.escape(says)):
        report.write_pages(root)


def test_the_books_own_matrix_names_measures_that_exist_and_every_defended_share_once():
    home = Path(__file__).parents[1]
    attacks = matrix.load(home / "book" / "matrix.yml")
    for attack in attacks:
        paper = claims.load(home / "claims" / f"{attack.paper}.yml")
        assert matrix.rows(attack, paper, {}, {}), attack.id
    cells = [(attack.paper, level) for attack in attacks for level in attack.levels]
    names = [(paper, name) for paper, level in cells for name in (level.static, level.adaptive) if name]
    assert len(names) == len(set(names))
    assert sum(attack.figure for attack in attacks) == 1
    assert yaml.safe_load((home / "_toc.yml").read_text())["parts"][0]["chapters"] == [{"file": "book/matrix"}]


def test_defenses_that_protect_from_other_attacks_are_named_once_each():
    def row(level, zone):
        cells = {who: matrix.Cell(who, Found(0.1, 0, 0.2), zone, None) for who in matrix.WHO}
        return matrix.Row(matrix.Level(defense="Noise", level=level), cells, None, None, None)

    others = [[row("std 1", "protects"), row("std 2", "broken")], [row("std 1", "protects")]]
    told = matrix.sentence("DLG", [row("std 0.1", "broken")], others)
    assert told == (
        "Against DLG: of 1 defended setting 1 is broken by an attacker who knows them (0 of these stop one "
        "who does not), 0 lie between, and 0 protect. "
        "Against other attacks some settings of Noise protect."
    )


def test_dumbbells_leave_out_what_nobody_measured():
    levels = [matrix.Level(defense="Noise", level=f"std {i}") for i in range(3)]
    full = {who: matrix.Cell(who, Found(0.1, 0, 0.2), "protects", None) for who in matrix.WHO}
    half = full | {"static": matrix.Cell("static", None, "not measured", None)}
    none = {who: matrix.Cell(who, None, "not measured", None) for who in matrix.WHO}
    rows = [matrix.Row(level, cells, None, None, None) for level, cells in zip(levels, (full, half, none), strict=True)]
    table = matrix.table(rows)
    assert table.defense.tolist() == ["Noise, std 0", "Noise, std 1"]
    drawn = figures.dumbbells(table.assign(cost=["7.6 [1.0, 14.1]", ""]))
    words = [text.get_text() for text in drawn.axes[0].texts]
    assert "7.6 [1.0, 14.1]" in words and "not measured" in words
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert any("◇\N{NO-BREAK SPACE}not" in label for label in labels), "off the scale, where no point is meant"
    named = figures.dumbbells(table.assign(cost=""), attack="a search by value").axes[0].get_xlabel()
    assert "a search by value" in named
    with pytest.raises(ValueError, match="the table has no columns"):
        figures.dumbbells(table.drop(columns="adaptive_low"))
