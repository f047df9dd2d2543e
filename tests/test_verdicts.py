import math

import pytest

from reprolib.book import verdicts
from reprolib.book.claims import Claim, Paper
from reprolib.book.criteria import Measure
from reprolib.book.verdicts import Verdict
from reprolib.measure.intervals import Interval

STORED = {
    "id": "c",
    "says": "it leaks",
    "where": "Table 1",
    "origin": "paper",
    "kind": "result",
    "central": False,
    "published": "95 %",
    "provenance": "read",
    "criterion": "at least 90 %",
    "verdict": "reproduced",
    "reason": "",
    "why": "",
    "measure": "share",
    "percent": True,
    "value": 0.95,
    "low": 0.92,
    "high": 0.98,
    "n": 320,
    "clusters": 32,
    "method": "Korn-Graubard over 32 clusters",
    "scope": "architecture",
    "substitutes": [],
    "favours": "",
    "beside": "",
    "gate": None,
    "reading": None,
    "provisional": "",
    "stands_at_99": True,
    "parts": [],
}
SUBSTITUTE = {"what": "model", "paper": "LeNet", "here": "MLP"}
UNDECIDED = {"verdict": "not decided here", "reason": "few", "why": "rests on 2 networks", "stands_at_99": None}


@pytest.fixture
def paper():
    told = {"says": "x", "where": "x", "published": {"value": "x"}, "provenance": "read"}
    told |= {"undecidable": {"reason": "data", "says": "x"}}
    made = [Claim.model_validate(told | {"id": name}) for name in "cd"]
    return Paper(paper="toy", title="Toy", measures={"share": Measure(says="share")}, claims=made)


def verdict(**changes):
    return Verdict.model_validate(STORED | changes)


def test_stored_verdicts_fit_the_schema(paper):
    gate = {"measure": "control", "value": 0.7, "low": 0.6, "at_least": 0.5, "open": True}
    part = {"name": "trained", "verdict": "fails", "percent": False, "value": None, "low": None, "high": None}
    other = STORED | {"id": "d", "gate": gate, "parts": [part], "high": math.inf}
    other |= {"substitutes": [SUBSTITUTE], "verdict": "partly on a substitute"}
    verdicts.validate_verdicts([STORED, other], paper)
    assert Verdict.model_validate(other).model_dump() == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measured": "95 %"}, "'c', measured: unknown key; known: id, says, where, origin, kind"),
        ({"verdict": "holds"}, "'c': verdict='holds' of kind result: expected one of reproduced, partly, not repr"),
        ({"kind": "identity"}, "'c': verdict='reproduced' of kind identity: expected one of holds, fails, not decided"),
        ({"kind": "setting"}, "verdict='reproduced' of kind setting: expected one of setting"),
        ({"verdict": "not decided here"}, "'c': reason='' beside 'not decided here': undecided verdicts have one"),
        ({"reason": "few"}, "'c': reason='few' beside 'reproduced'"),
        (UNDECIDED | {"reason": "later"}, "'c', reason.*'data', 'weights', 'compute'"),
        ({"verdict": "fails on a substitute"}, "'c': 0 substitutes beside 'fails on a substitute'"),
        ({"substitutes": [SUBSTITUTE]}, "'c': 1 substitutes beside 'reproduced'"),
        (UNDECIDED | {"stands_at_99": True}, "'c': stands_at_99=True beside 'not decided here': only decided results"),
        ({"clusters": "32"}, "'c', clusters: .*valid integer .got '32'"),
        ({"value": math.nan}, "'c', value: not a number"),
        ({"low": "0.9"}, "'c', low: .*valid number"),
        ({"scope": "this network"}, "'c', scope: .*'architecture', 'network' or 'none'"),
        ({"stands_at_99": 1}, "'c', stands_at_99: .*valid boolean"),
        ({"substitutes": [{"what": "model", "paper": "LeNet"}]}, "'c', substitutes, 0, here: missing"),
        ({"gate": {"measure": "control"}}, "'c', gate, value: missing"),
        ({"parts": [{"name": "x", "verdict": "reproduced"}]}, "'c', parts, 0, verdict: .*'holds', 'fails' or"),
        ({"id": "e"}, "verdict of claim 'e': claims/toy.yml holds no claim of this id"),
        ({"id": "d"}, "verdict of claim 'd': stored 2 times"),
    ],
)
def test_what_does_not_fit_names_claim_and_key(paper, changes, message):
    with pytest.raises(ValueError, match=message):
        verdicts.validate_verdicts([STORED | {"id": "d"}, STORED | changes], paper)


@pytest.mark.parametrize("key", [key for key in STORED if key not in ("beside", "percent")])  # older files lack them
def test_every_key_is_asked_for(paper, key):
    stored = {name: value for name, value in STORED.items() if name != key}
    title = "verdict number 1" if key == "id" else "verdict of claim 'c'"
    with pytest.raises(ValueError, match=f"{title}, {key}: missing"):
        verdicts.validate_verdicts([stored], paper)


def test_a_verdict_that_is_no_mapping_is_counted(paper):
    with pytest.raises(ValueError, match="verdict number 1: "):
        verdicts.validate_verdicts(["reproduced"], paper)


def test_every_word_has_a_symbol_of_its_own():
    assert len(set(verdicts.SYMBOLS.values())) == len(verdicts.SYMBOLS) == 10
    assert verdicts.COUNTED[0] == "reproduced" and verdicts.COUNTED[-1] == verdicts.UNDECIDED
    for word in verdicts.COUNTED[:3]:
        assert str(verdict(verdict=word)) == f"{verdicts.SYMBOLS[word]} {word}"


def test_the_note_says_what_limits_a_verdict():
    changes = {
        "verdict": "holds on a substitute",
        "substitutes": [SUBSTITUTE],
        "favours": "the attacker: no convolution",
        "scope": "network",
        "stands_at_99": False,
        "provisional": "provisional: …",
    }
    expected = (
        "model: MLP in place of LeNet; the attacker: no convolution; on this network, not of others; "
        "does not stand at 99 %; provisional: …"
    )
    assert verdict(**changes).note == expected and verdict().note == ""
    assert str(verdict(**UNDECIDED)) == "○ not decided here: rests on 2 networks"


def test_what_was_measured_in_words():
    assert verdict().measured() == "95 % [92, 98]" and verdict(percent=False).measured() == "0.95 [0.92, 0.98]"
    assert verdict(low=None, high=None).measured() == "95 %"
    assert verdict(value=None).measured() == ""
    parts = [
        {"name": "untrained", "verdict": "holds", "value": 0.95, "low": 0.92, "high": 0.98},
        {"name": "trained", "verdict": "fails", "value": 0.1, "low": 0.0, "high": 0.2},
        {"name": "large", "verdict": "not decided here", "value": None, "low": None, "high": None},
    ]
    parts[1]["percent"] = True
    assert verdict(value=None, parts=parts).measured() == "untrained: 0.95 [0.92, 0.98]; trained: 10 % [0, 20]"
    assert verdicts.value_words(Interval(0.95, 0.92, 0.98, 9, "x")) == "0.95 [0.92, 0.98]"


def test_counts_keep_kinds_origins_and_single_networks_apart():
    made = [
        verdict(),
        verdict(scope="network", stands_at_99=False),
        verdict(verdict="fails on a substitute", substitutes=[SUBSTITUTE]),
        verdict(**UNDECIDED),
        verdict(kind="identity", verdict="holds", stands_at_99=None),
        verdict(kind="setting", verdict="setting", stands_at_99=None),
        verdict(origin="book", provenance="own", verdict="partly"),
    ]
    expected = {"reproduced": 2, "fails on a substitute": 1, "not decided here": 1, "holds": 1}
    assert verdicts.count(made, "paper") == expected and list(verdicts.count(made, "paper")) == list(expected)
    assert verdicts.count(made, "book") == {"partly": 1}
    assert verdicts.count(made, "paper", scope="network") == {"reproduced": 1}
    assert verdicts.count_at_99(made, "paper") == 2 and verdicts.count_at_99(made, "paper", scope="network") == 0
    with pytest.raises(ValueError, match="origin='papers': expected paper or book"):
        verdicts.count(made, "papers")


def read(how, stated=False, **changes):
    return verdict(id=how, reading={"of": "noise of 1e-2", "how": how, "stated": stated}, **changes)


FAILED = {"verdict": "not reproduced"}


@pytest.mark.parametrize(
    ("readings", "word"),
    [
        ([read("std"), read("variance")], "reproduced"),
        ([read("std", **FAILED), read("variance", stated=True)], "reproduced"),
        ([read("std"), read("variance", stated=True, **UNDECIDED)], "not decided here"),
        ([read("std"), read("variance", **FAILED)], "not decided here"),
        ([read("std"), read("variance", **UNDECIDED)], "not decided here"),
    ],
)
def test_the_readings_of_one_statement_count_once(readings, word):
    assert verdicts.count([verdict(), *readings], "paper") == {"reproduced": 1} | {word: 1 + (word == "reproduced")}
    assert verdicts.count_at_99(readings, "paper") == (word == "reproduced")
    found = verdicts.once(readings)
    assert [one.verdict for one in found] == [word] and verdicts.once(found) == found
    Verdict.model_validate(found[0].model_dump())


def test_readings_that_differ_say_how():
    found = verdicts.once([read("std"), read("variance", **FAILED)])[0]
    assert found.reason == "unreadable" and found.value is None
    assert found.why == "it depends on the reading: std: reproduced; variance: not reproduced"


def test_claims_without_a_reading_are_never_put_together():
    assert len(verdicts.once([verdict(), verdict()])) == 2


def test_a_reading_says_that_it_is_one():
    assert read("std").note == "one reading, which the source leaves open: std; the statement counts once"
    told = read("variance", stated=True, **UNDECIDED).note
    assert told.endswith("; one reading, the source's own words: variance; the statement counts once")
