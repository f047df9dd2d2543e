"""What a chapter opens with, from a results file alone."""

import pytest

from reprolib.book.claims import Claim, Paper
from reprolib.book.criteria import Criterion, Measure, Needs
from reprolib.book.opening import HOW, IN_WORDS, OLDER, how_to_run, opening, record_missing, sets_needed
from reprolib.book.verdicts import Verdict, standing

VERDICT = {
    "id": "a", "says": "x <b>", "where": "x", "origin": "paper", "kind": "result", "central": True, "published": "90 %",
    "provenance": "read", "criterion": "at least 50 %", "verdict": "reproduced", "reason": "", "why": "",
    "measure": "share", "percent": True, "value": 0.55, "low": 0.51, "high": 0.6, "n": 90, "clusters": 90,
    "method": "t", "scope": "architecture", "substitutes": [], "favours": "", "gate": None, "reading": None,
    "provisional": "", "stands_at_99": True, "parts": [],
}  # fmt: skip
OPEN = {
    "verdict": "not decided here",
    "reason": "imprecise",
    "why": "on <i>both</i> sides",
    "stands_at_99": None,
}


@pytest.fixture
def paper():
    told = {"id": "a", "says": "x", "where": "x", "published": {"value": "x"}, "provenance": "read"}
    claim = Claim.model_validate(told | {"undecidable": {"reason": "data", "says": "x"}})
    measures = {"share": Measure(says="share of images")}
    made = {"finding": "<{share}> come back.", "picture": "strip", "measures": measures, "claims": [claim]}
    return Paper(paper="toy", title="Toy", **made)


def made(**entries):
    figure = {"name": "strip", "file": "strip.png", "caption": "A <strip>.", "number": 1}
    return {"measures": {"share": {"value": 0.55}}, "figures": [figure]} | entries


def test_it_opens_with_the_finding_the_central_claims_and_the_picture(paper, tmp_path):
    (tmp_path / "strip.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    verdicts = [Verdict(**VERDICT), Verdict(**VERDICT | OPEN), Verdict(**VERDICT | {"central": False, "says": "other"})]
    shown = opening(paper, verdicts, made(), tmp_path)
    assert "&lt;55\N{NO-BREAK SPACE}%&gt; come back." in shown and "x &lt;b&gt;" in shown and "other" not in shown
    assert "90 %" in shown and "55 % [51,\N{NO-BREAK SPACE}60]" in shown and "✔ reproduced" in shown
    assert "○ not decided here: imprecise" in shown and "&lt;i&gt;both&lt;/i&gt;" in shown
    assert "A &lt;strip&gt;." in shown and "data:image/png;base64," in shown


def test_what_the_run_lacks_is_left_out(paper, tmp_path):
    shown = opening(paper, [Verdict(**VERDICT)], made(measures={}, figures=[]), tmp_path)
    assert "come back" not in shown and "<img" not in shown and "✔ reproduced" in shown
    assert "<img" not in opening(paper, [], made(), tmp_path), "the file is not there"


def test_a_picture_that_is_a_link_or_no_picture_is_left_out(paper, tmp_path):
    (tmp_path / "secret").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "strip.png").symlink_to(tmp_path / "secret")
    assert "<img" not in opening(paper, [], made(), tmp_path)
    (tmp_path / "strip.png").unlink()
    (tmp_path / "strip.png").write_text("password")
    assert "<img" not in opening(paper, [], made(), tmp_path)


def test_what_stands_beside_a_verdict_is_shown_and_a_missing_record_leads_to_the_older_run(paper, tmp_path):
    beside = Verdict(**VERDICT | {"beside": "who knows it identifies <62 %>"})
    assert "who knows it identifies &lt;62 %&gt;" in opening(paper, [beside], made(), tmp_path)
    made_by = {"device": "cpu: x", "threads": 1, "seconds": 3600.0}
    told = record_missing("toy", "run", "", {"provenance": made_by})
    assert f'href="#{OLDER}"' in told and f'href="#{IN_WORDS}"' in told and "on a GPU it has not been timed" in told
    assert "reprolib run toy --profile gpu --device cuda --data ROOT" in told
    assert "By today's criteria its claims stand so: none decided" in told
    on_gpu = {"provenance": made_by | {"device": "cuda: y"}}
    assert "Expect for the whole chapter what the older run took" in how_to_run("toy", on_gpu)
    assert "what the reference run took" in how_to_run("toy", on_gpu | {"records": {"part": {}}})
    assert "nobody has measured" in record_missing("toy", "run", "why", None)


def test_how_to_run_names_the_sets_the_page_that_helps_and_what_a_gpu_needs(paper):
    needing = paper.claims[0].model_copy(update={"needs": Needs(data=("mnist",), profile="gpu", images=1)})
    made_by = {"device": "cpu: x", "threads": 1, "seconds": 3600.0}
    on_sets = {"provenance": made_by | {"data": {"cifar10 (test)": "0", "mnist (test)": "1"}}}
    needed = sets_needed([needing, *paper.claims], on_sets)
    assert needed == ["cifar10", "mnist"] and sets_needed(paper.claims, None) == []
    told = how_to_run("toy", on_sets, [needing, *paper.claims])
    assert f'<a href="{HOW}">' in told and "<code>cifar10</code>, <code>mnist</code>" in told
    assert "CUDA build of PyTorch" in told and "this chapter's" not in how_to_run("toy", None)


def test_what_stands_today_is_said_of_the_paper_and_of_the_book():
    own = Verdict(**VERDICT | {"id": "b", "origin": "book"})
    told = standing([Verdict(**VERDICT | OPEN), own])
    assert told == "decided of the paper's claims: none; of the book's own: 1 reproduced"
    assert standing([Verdict(**VERDICT | OPEN)]) == "none decided"


def test_a_number_of_the_finding_whose_claims_are_open_is_marked(paper):
    judged = paper.claims[0].model_copy(update={"criterion": Criterion(measure="share", at_least=0.5)})
    paper = paper.model_copy(update={"claims": (judged,)})
    assert paper.found({"share": 0.55}, {"a"}) == "<55\N{NO-BREAK SPACE}%*> come back. * measured, not decided."
    assert paper.found({"share": 0.55}) == "<55\N{NO-BREAK SPACE}%> come back."
    said = paper.model_copy(update={"finding": "{share} (not decided) come back."})
    assert said.found({"share": 0.55}, {"a"}) == "55\N{NO-BREAK SPACE}% (not decided) come back."
