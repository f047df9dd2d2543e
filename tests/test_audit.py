import re
from pathlib import Path

import pytest
from test_report import add_run, page, root  # noqa: F401  (a fixture and helpers)

from reprolib.book import audit, judged, results

ROOT = Path(__file__).resolve().parent.parent
FILE = """
rules: {criterion: it states the claim}
groups:
  - title: Too generous
    says: less was measured
    claims:
      - {paper: dlg, id: label-accuracy, then: not reproduced, rule: criterion, why: "the <bound> was another"}
      - {paper: dlg, id: noise, then: reproduced, rule: criterion, why: it had no control}
      - {paper: dlg, id: text, then: not decided here, rule: criterion, why: text is not here}
      - {paper: dlg, id: old, became: own, then: reproduced, rule: criterion, why: it was the book's}
      - {paper: nobody, id: noise, then: reproduced, rule: criterion, why: of a chapter that is not there}
"""


def put(home, text=FILE):
    (home / "book").mkdir(exist_ok=True)
    (home / "book" / "changed-verdicts.yml").write_text(text)


def test_a_line_has_the_verdict_then_the_one_of_the_reference_run_and_the_rule(root):  # noqa: F811
    put(root)
    add_run(root, "dlg", "gpu", "reference", undefended=0)
    rows = re.findall(r"<tr><td>.*?</tr>", page(root, "changed"), re.DOTALL)
    assert len(rows) == 4
    assert "✘ not reproduced" in rows[0] and "✔ reproduced" in rows[0] and "the &lt;bound&gt; was another" in rows[0]
    assert 'scoreboard.html#dlg-label-accuracy"' in rows[0] and 'href="#rule-criterion"' in rows[0]
    assert "○ not decided here" in rows[1] and '<div class="note">gate</div>' in rows[1]
    assert "own</a>, then old" in rows[3]


def test_what_became_of_each_is_counted(root):  # noqa: F811
    put(root)
    add_run(root, "dlg", "gpu", "reference", undefended=0)
    counted = dict(re.findall(r'<th scope="row">([a-z ]+)</th><td>(\d)</td>', page(root, "changed")))
    assert list(counted) == list(audit.TURNS)
    assert {turn: int(number) for turn, number in counted.items() if number != "0"} == {
        "turned round": 1,
        "open now": 1,
        "still open": 1,
        "said anew": 1,
    }


def test_without_a_reference_run_and_without_the_file_the_page_says_so(root):  # noqa: F811
    assert "There is no such table" in page(root, "changed")
    put(root)
    assert page(root, "changed").count("no reference run yet") == 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rule: criterion, why: it had", "rule: chance, why: it had", "unknown rule chance; known: criterion"),
        ("id: noise, then", "id: text, then", "named twice: dlg/text"),
        ("became: own", "became: none", "claims/dlg.yml has no claim 'none'; say with `became`"),
        ("then: not reproduced", "then: fails", "groups, 0, claims, 0, then: Input should be 'reproduced', 'partly'"),
        ("groups:", "groups: [", "changed-verdicts.yml is not valid YAML"),
    ],
)
def test_a_file_that_is_wrong_says_where(root, old, new, says):  # noqa: F811
    put(root, FILE.replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(says)):
        page(root, "changed")


def test_the_books_own_file_names_claims_of_the_ledger_and_shows_what_is_stored():
    papers = {paper.key: paper for paper in judged.read_papers(ROOT)}
    found = audit.load(ROOT / "book" / "changed-verdicts.yml")
    rows = [row for _, rows in audit.today(found, papers) for row in rows]
    assert len(rows) == len(found.named) > 100
    for key in {row.paper.key for row in rows}:
        paper, path = papers[key], ROOT / "results" / "reference" / key / f"{key}.json"
        stored = {verdict["id"]: verdict for verdict in results.load(path)["verdicts"]}
        for row in (row for row in rows if row.paper is paper):
            assert (row.verdict.verdict, row.verdict.reason) == tuple(
                stored[row.claim.id][what] for what in ("verdict", "reason")
            ), row.named.id
