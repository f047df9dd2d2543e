"""The ledger: a chapter's measures, and the judge that makes verdicts on the paper's claims of them.

A results file stores the measures; `judge` draws the verdicts from them with the file of claims as it is now, so that a
criterion may change without another run, and `faults` says where a stored verdict breaks a rule.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

from reprolib.book.claims import CONDITIONS, PROFILES, Claim, Criterion, Measure, Paper, number_words
from reprolib.book.verdicts import (
    REASONS,
    SYMBOLS,
    UNDECIDED,
    GateState,
    PartVerdict,
    Substitute,
    Verdict,
    ends_words,
    validate_verdicts,
)
from reprolib.measure.intervals import Interval, proportion

LEAST_CLUSTERS = {"architecture": 5, "network": 10, "none": 5}
"""The fewest independent units whose interval decides: drawn networks, batches on one network, runs."""

_RESULT = {
    ("holds", False): "reproduced",
    ("partly", False): "partly",
    ("fails", False): "not reproduced",
    ("holds", True): "holds on a substitute",
    ("partly", True): "partly on a substitute",
    ("fails", True): "fails on a substitute",
}
_UNITS = {"architecture": "networks", "network": "batches", "none": "runs"}
_PROVENANCE = {"read": "", "plot": " (off the plot)", "recalled": " (recalled, unverified)", "own": ""}


# --- what a run holds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A measured interval, what it was measured on, and whether an interval of this method covers.

    images: how many it rests on; data: the set's name; substitute_for: the set it stands in for; conditions: what this
    run measured it on, as far as the measure does not always say it.
    """

    interval: Interval
    images: int
    data: str | None
    substitute_for: str | None = None
    conditions: Mapping[str, str | int | float] = field(default_factory=dict)
    covers: bool = True

    def stored(self) -> dict[str, Any]:
        """As results files hold it."""
        told = {"data": self.data, "substitute_for": self.substitute_for, "conditions": dict(self.conditions)}
        return dataclasses.asdict(self.interval) | {"images": self.images} | told

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Record:
        """From a results file. Files of 2026 before December know neither clusters nor 99 % ends."""
        known = {key.name: stored[key.name] for key in dataclasses.fields(Interval) if key.name in stored}
        covers = True
        if "clusters" not in stored:
            known["clusters"] = _old_clusters(stored["method"], stored["n"])
            covers = known["clusters"] is not None
        hits = stored["value"] * stored["n"]
        if stored["method"] == "Wilson" and hits >= 0 and math.isclose(hits, round(hits), abs_tol=1e-6):
            # a share of independent trials: its count is all that the exact interval needs
            known = dataclasses.asdict(proportion(np.arange(stored["n"]) < round(hits)))
        told = (stored["images"], stored["data"], stored.get("substitute_for"), stored.get("conditions", {}))
        return cls(Interval(**known), *told, covers)


def _old_clusters(method: str, n: int) -> int | None:
    """The independent units behind an interval of the methods used before; None for those that do not cover.

    Bootstraps, Welch's interval of clustered images and one network's images taken for independent cover too rarely.
    """
    if method == "Wilson":
        return n
    if match := re.fullmatch(r"Wilson, (?:no variation, )?effective n = (\d+)(?: networks)?", method):
        return int(match[1])
    if (match := re.fullmatch(r"Student's t over (\d+) runs", method)) and int(match[1]) >= LEAST_CLUSTERS["none"]:
        return int(match[1])
    return None


@dataclass(frozen=True)
class _Run:
    """What the judge knows of a run. skipped: measure -> (code, sentence)."""

    profile: str
    seed: int | None
    day: date | None
    records: Mapping[str, Record]
    skipped: Mapping[str, tuple[str, str]]

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> _Run:
        _known_profile(payload["profile"])
        made = payload.get("provenance", {})
        skipped = {
            name: ("missing", told) if isinstance(told, str) else (told["reason"], told["why"])
            for name, told in payload["skipped"].items()
        }
        records = {}
        for name, stored in payload["measures"].items():
            try:
                records[name] = Record.read(stored)
            except ValueError as error:
                raise ValueError(f"stored measure {name!r}: {error}") from error
        day = datetime.fromisoformat(made["time"]).date() if made.get("time") else None
        return cls(payload["profile"], made.get("seed"), day, records, skipped)


def _known_profile(profile: str) -> None:
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")


# --- judging ----------------------------------------------------------------------------------------------------------


def judge(paper: Paper, payload: Mapping[str, Any]) -> list[Verdict]:
    """The verdict of each claim of the file as it is now, from the measures that a results file holds.

    payload: profile, measures, skipped, and provenance with seed and time. Raises ValueError for an unknown profile and
    for stored intervals that are none.
    """
    run = _Run.read(payload)
    return [_judge(claim, paper, run) for claim in paper.claims]


@dataclass(frozen=True)
class _Outcome:
    """Of a criterion. word: holds, fails, partly, or "" where a reason says why not."""

    word: str
    reason: str = ""
    why: str = ""
    at_99: bool | None = None


def _judge(claim: Claim, paper: Paper, run: _Run) -> Verdict:
    gate = _gate(claim, run)
    told = [_weigh(claim, criterion, paper.measures, gate, run) for criterion in claim.criteria]
    records = [run.records.get(criterion.measure) for criterion in claim.criteria]
    others: list[Substitute] = []
    for criterion, record in zip(claim.criteria, records, strict=True):
        if record is not None:
            found = _substitutes(claim, record, paper.measures[criterion.measure])
            others += [other for other in found if other not in others]

    if claim.kind == "setting":
        outcome, word = _Outcome(""), "setting"
    else:
        if claim.undecidable:
            outcome = _Outcome("", claim.undecidable.reason, claim.undecidable.says)
        elif claim.provenance == "recalled":
            outcome = _Outcome("", "unreadable", "recalled: nobody could check the source, so nothing decides")
        else:
            outcome = _together(claim, told)
        word = outcome.word or UNDECIDED
        if claim.kind == "result" and outcome.word:
            word = _RESULT[outcome.word, bool(others)]

    at_hand = [record for record in records if record is not None]
    only = at_hand[0] if claim.criterion and at_hand else None
    exact, clusters = claim.kind == "identity", [record.interval.clusters for record in at_hand]
    return Verdict(
        id=claim.id,
        says=claim.says,
        where=claim.where,
        origin=claim.origin,
        kind=claim.kind,
        central=claim.central,
        published=str(claim.published),
        provenance=claim.provenance,
        criterion=claim.criterion_words(),
        verdict=word,
        reason=outcome.reason,
        why=outcome.why,
        measure=claim.criterion.measure if claim.criterion else None,
        **_numbers(only, exact),
        n=min((record.interval.n for record in at_hand), default=None),
        clusters=min((c for c in clusters if c is not None), default=None) if not exact else None,
        method=("every case" if exact else only.interval.method) if only else None,
        scope=claim.scope,
        substitutes=others,
        favours=claim.favours,
        gate=gate,
        reading=claim.reading,
        provisional=_provisional(claim, run) if outcome.word else "",
        stands_at_99=outcome.at_99,
        parts=[
            PartVerdict(name=part.name, verdict=one.word or UNDECIDED, **_numbers(record))
            for part, one, record in zip(claim.parts, told, records, strict=False)
        ],
    )


def _together(claim: Claim, told: list[_Outcome]) -> _Outcome:
    """The outcome of a claim of one criterion, or of its parts: all decided, or the first reason."""
    if claim.criterion:
        return told[0]
    for part, one in zip(claim.parts, told, strict=True):
        if not one.word:
            failing = [other.name for other, its in zip(claim.parts, told, strict=True) if its.word == "fails"]
            says = "; ".join([f"{part.name}: {one.why}", *(f"{name}: fails" for name in failing)])
            return dataclasses.replace(one, why=says)
    words = {one.word for one in told}
    at_99 = None if any(one.at_99 is None for one in told) else all(one.at_99 for one in told)
    return _Outcome(words.pop() if len(words) == 1 else "partly", at_99=at_99)


def _weigh(
    claim: Claim, criterion: Criterion, measures: Mapping[str, Measure], gate: GateState | None, run: _Run
) -> _Outcome:
    """Judge one criterion, in the order: measured, profile, data, how many, gate, interval."""
    record, needs = run.records.get(criterion.measure), claim.needs
    if record is None:
        return _Outcome("", *run.skipped.get(criterion.measure, ("missing", "not measured in this run")))
    exact = claim.kind == "identity"
    if not (record.covers or exact):
        return _Outcome("", "missing", "its stored interval does not cover; a new run decides")
    if needs is not None:
        if PROFILES.index(run.profile) < PROFILES.index(needs.profile):
            sizes = f"decided at the sizes of {needs.profile} or more, this run has those of {run.profile}"
            return _Outcome("", "budget", sizes)
        if needs.data and record.data not in needs.data:
            stand_in = f", a stand-in for {record.substitute_for}" if record.substitute_for else ""
            wanted, here = " or ".join(needs.data), record.data or "no images"
            return _Outcome("", "data", f"needs {wanted}, this run has {here}{stand_in}")
        if record.images < needs.images:
            return _Outcome("", "few", f"needs {needs.images} images, this run has {record.images}")
    if not exact and (lack := _few(claim, record.interval)):
        return _Outcome("", "few", lack)
    if gate is not None and not gate.open:
        return _Outcome("", "gate", _closed(gate, measures[gate.measure].share))
    if exact:
        return _exactly(criterion, record.interval)
    outcome, lower = _interval(claim, criterion, record.interval), (criterion.at_least, criterion.above)
    if (
        outcome.word == "fails"
        and gate is None
        and measures[criterion.measure].success
        and any(b is not None for b in lower)
    ):
        return _Outcome("", "gate", "that an attack fails is decided behind a control, and the claim names none")
    return outcome


def _few(claim: Claim, interval: Interval) -> str:
    """What an interval lacks to decide a result, "" where nothing."""
    least, units = LEAST_CLUSTERS[claim.scope], _UNITS[claim.scope]
    if interval.clusters is None:
        return f"its interval does not say on how many {units} it rests, at least {least} decide"
    if interval.clusters < least:
        return f"rests on {interval.clusters} {units}, at least {least} decide"
    return "" if interval.low < interval.high else "its interval has no width, which no number of trials gives"


def _exactly(criterion: Criterion, interval: Interval) -> _Outcome:
    return _Outcome("holds" if criterion.holds(interval.value, interval.value) else "fails")


def _interval(claim: Claim, criterion: Criterion, interval: Interval) -> _Outcome:
    """Whole 95 % interval inside, or none of it; of a skewed measure the whole 99 % one too."""
    percent = claim.published.percent
    bound = criterion.words(percent)
    inside = criterion.holds(interval.low, interval.high)
    if inside is None:
        ends = ends_words(interval.low, interval.high, percent)
        return _Outcome("", "imprecise", f"the interval {ends} lies on both sides of the criterion, {bound}")
    at_99 = _stands_at_99(criterion, interval)
    if interval.skewed and not at_99:
        if at_99 is None:
            return _Outcome("", "imprecise", "a skewed measure decides at 99 %, and its 99 % interval is not known")
        ends = ends_words(interval.low99, interval.high99, percent)
        return _Outcome("", "imprecise", f"a skewed measure decides at 99 %, and there {ends} does not: {bound}")
    return _Outcome("holds" if inside else "fails", at_99=at_99)


def _stands_at_99(criterion: Criterion, interval: Interval) -> bool | None:
    """Whether the 99 % interval decides as the 95 % one does; None where it is not known."""
    if interval.low99 is None or interval.high99 is None:
        return None
    inside = criterion.holds(interval.low, interval.high)
    return inside is not None and criterion.holds(interval.low99, interval.high99) is inside


def _gate(claim: Claim, run: _Run) -> GateState | None:
    if claim.gate is None:
        return None
    record = run.records.get(claim.gate.measure)
    if record is None or not record.covers:
        value = low = None
    else:
        value, low = record.interval.value, record.interval.low
    bound = claim.gate.at_least
    state = low is not None and low >= bound
    return GateState(measure=claim.gate.measure, value=value, low=low, at_least=bound, open=state)


def _closed(gate: GateState, percent: bool) -> str:
    asked = number_words(gate.at_least, percent)
    if gate.low is None:
        return f"its control, {gate.measure}, has no measurement that covers; its lower bound must reach {asked}"
    return f"its control, {gate.measure}, reaches {number_words(gate.low, percent)} at its lower bound, not {asked}"


def _numbers(record: Record | None, exact: bool = False) -> dict[str, float | None]:
    """Value and ends for a verdict; no ends of an interval that does not cover, and none where every case counts."""
    if record is None:
        return {"value": None, "low": None, "high": None}
    ends = (record.interval.low, record.interval.high) if record.covers and not exact else (None, None)
    return {"value": record.interval.value, "low": ends[0], "high": ends[1]}


def _substitutes(claim: Claim, record: Record, measure: Measure) -> list[Substitute]:
    """Where the record's images and conditions are not among the paper's own.

    A condition that neither the record nor the measure names is one too, because nothing shows that it is the paper's;
    the attacker alone is compared only where one is named.
    """
    here = measure.on.model_dump(exclude_none=True) | dict(record.conditions)
    here |= {"data": record.data} if record.data is not None else {}
    found = []
    for what, own in claim.setting:
        if own is None or (what == "attacker" and what not in here):
            continue
        if what not in here:
            found.append(Substitute(what=what, paper=_own_words(what, own), here="not recorded"))
        elif not any(_same(what, here[what], one) for one in own):
            found.append(Substitute(what=what, paper=_own_words(what, own), here=_text(here[what])))
    return found


def _same(what: str, here: Any, own: Any) -> bool:
    """Whether a condition is the paper's; a budget is with as much or more of the same unit ("300 outer steps")."""
    if what == "budget":
        (many, unit), (least, own_unit) = _amount(here), _amount(own)
        if many is not None and least is not None:
            return many >= least and own_unit in ("", unit)
    return _text(here).casefold() == _text(own).casefold()


def _amount(budget: Any) -> tuple[float | None, str]:
    """A budget's number and the words behind it; None where it begins with none."""
    first, _, unit = _text(budget).casefold().partition(" ")
    try:
        return float(first.replace(",", "")), unit
    except ValueError:
        return None, ""


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())


def _own_words(what: str, own: tuple[Any, ...]) -> str:
    least = what == "budget"
    return " or ".join(f"at least {_text(v)}" if least and not isinstance(v, str) else _text(v) for v in own)


def _provisional(claim: Claim, run: _Run) -> str:
    """Why a verdict waits for another run, "" where its criterion stood before this run's seed was seen."""
    changed = claim.changed
    if changed is None:
        return ""
    new = run.seed is not None and run.seed not in changed.seen and run.day is not None and run.day >= changed.date
    if new and not changed.images:
        return ""
    seen = f", after seed {' and '.join(map(str, changed.seen))} had been seen" if changed.seen else ""
    other = "on other images" if changed.images else "of another seed"
    told = f"provisional: the criterion was set on {changed.date}{seen} ({changed.why})"
    return f"{told}; a run {other}, made since, decides" + (f": {changed.images}" if changed.images else "")


def faults(paper: Paper, payload: Mapping[str, Any]) -> list[str]:
    """Every way in which a results file's stored verdicts break a rule of the ledger; empty where none does.

    A decided result needs: its measures recorded, clusters enough for its scope, an interval of some width, an open
    gate, the paper's own setting for the words without "substitute", and at 99 % the same where its measure is skewed.
    And what is stored must be what `judge` says today.
    """
    try:
        validate_verdicts(payload["verdicts"], paper)
    except ValueError as error:
        return [str(error)]
    run, stored = _Run.read(payload), {verdict["id"]: verdict for verdict in payload["verdicts"]}
    found = []
    for anew in judge(paper, payload):
        if anew.id not in stored:
            found.append(f"{anew.id}: no verdict is stored")
            continue
        then, now = stored[anew.id], anew.model_dump()
        found += [f"{anew.id}: {then['verdict']}, but {fault}" for fault in _broken(then["verdict"], anew, paper, run)]
        if differing := [f"{key} is {then[key]!r}, not {now[key]!r}" for key in now if then[key] != now[key]]:
            found.append(f"{anew.id}: differs when judged anew: {'; '.join(differing)}")
    return found


def _broken(word: str, anew: Verdict, paper: Paper, run: _Run) -> list[str]:
    """The rules that a claim decided with this word breaks."""
    claim = paper.claim(anew.id)
    if word in (UNDECIDED, "setting"):
        return []
    broken = []
    if anew.gate is not None and not anew.gate.open:
        broken.append(_closed(anew.gate, paper.measures[anew.gate.measure].share))
    if anew.substitutes and word in _RESULT.values() and "substitute" not in word:
        broken.append(f"it was judged on substitutes: {', '.join(other.what for other in anew.substitutes)}")
    for criterion in claim.criteria:
        record = run.records.get(criterion.measure)
        if record is None:
            broken.append(f"{criterion.measure} is not recorded")
        elif claim.kind == "result":
            interval = record.interval
            if lack := _few(claim, interval):
                broken.append(f"{criterion.measure}: {lack}")
            if interval.skewed and not _stands_at_99(criterion, interval):
                broken.append(f"{criterion.measure} is skewed and does not stand at 99 %")
    return broken


# --- the ledger of a run ----------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """Collects a chapter's measures and judges the paper's claims by them.

    profile: the run's profile. substitutes: image set that stands in -> the set that was asked for. seed, time: the
    run's; time is a date and time in ISO's form, now where it is "".
    """

    paper: Paper
    profile: str
    substitutes: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    time: str = ""
    records: dict[str, Record] = field(default_factory=dict)
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _known_profile(self.profile)

    def record(
        self,
        measure: str,
        interval: Interval,
        images: int,
        data: str | None,
        conditions: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """Note a measure. images: how many the interval rests on; data: the set's name, None where no images are used.

        conditions: what this run measured it on, any of model, scale, budget, batch, attacker; they come before what
        the measure's `on` says. Measuring again replaces the record, so that a cell can be run twice.
        Raises ValueError for undeclared measures and conditions, and for numbers that are none.
        """
        self._known(measure)
        if not isinstance(interval, Interval):
            raise ValueError(f"interval={interval!r} for {measure!r}: expected one of `reprolib.measure.intervals`")
        if math.isnan(interval.value):
            raise ValueError(f"interval={interval} for {measure!r}: its value must be a number")
        if images < 1:
            raise ValueError(f"images={images} for {measure!r}: expected at least 1")
        told = {}
        for name, value in (conditions or {}).items():
            if name not in CONDITIONS:
                raise ValueError(f"unknown condition {name!r} for {measure!r}; known: {', '.join(CONDITIONS)}")
            told[name] = _plain(value, f"conditions[{name!r}] for {measure!r}")
        self.skipped.pop(measure, None)
        self.records[measure] = Record(
            _own_numbers(interval), int(images), data, self.substitutes.get(data or ""), told
        )

    def skip(self, measure: str, why: str, reason: str = "missing") -> None:
        """Say why this run does not take a measure, for example that the profile is too small for it.

        reason: a code of `REASONS`.
        """
        self._known(measure)
        if not why:
            raise ValueError(f"the reason for skipping {measure!r} is empty: say why it was not measured")
        if reason not in REASONS:
            raise ValueError(f"reason={reason!r} for skipping {measure!r}; known: {', '.join(REASONS)}")
        self.records.pop(measure, None)
        self.skipped[measure] = (reason, why)

    def check(self) -> None:
        """Raise ValueError naming every declared measure that was neither recorded nor skipped."""
        forgotten = [name for name in self.paper.measures if name not in self.records and name not in self.skipped]
        if forgotten:
            raise ValueError(
                f"measures declared in claims/{self.paper.paper}.yml but never recorded: {', '.join(forgotten)}; "
                f"record them, or give the reason with skip(measure, why)"
            )

    def verdicts(self) -> list[Verdict]:
        made = {"seed": self.seed, "time": self.time or datetime.now(UTC).isoformat(timespec="seconds")}
        return judge(self.paper, {"profile": self.profile, "provenance": made, **self._measured()})

    def table(self, reference: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The claims with verdict, published value, this run's and the reference run's, criterion and place.

        reference: the reference run's results file; its verdicts are drawn anew, by the claims as they are now.
        """
        judged = {verdict.id: verdict for verdict in judge(self.paper, reference)} if reference else {}
        rows = []
        for claim, verdict in zip(self.paper.claims, self.verdicts(), strict=True):
            percent = claim.published.percent
            stored = judged[claim.id].measured(percent) if judged else ""
            rows.append(
                {
                    "claim": claim.says,
                    "verdict": str(verdict),
                    "published": f"{claim.published}{_PROVENANCE[claim.provenance]}",
                    "this run": verdict.measured(percent) or "—",
                    "reference run": f"{stored} {SYMBOLS[judged[claim.id].verdict]}" if stored else "—",
                    "criterion": verdict.criterion or "—",
                    "where": claim.where if claim.origin == "paper" else "this book",
                }
            )
        return pd.DataFrame(rows)

    def payload(self) -> dict[str, Any]:
        """The ledger as it goes into the results file: measures, skipped, verdicts (a dictionary a claim)."""
        return {**self._measured(), "verdicts": [verdict.model_dump() for verdict in self.verdicts()]}

    def _measured(self) -> dict[str, Any]:
        return {
            "measures": {name: record.stored() for name, record in self.records.items()},
            "skipped": {name: {"reason": code, "why": why} for name, (code, why) in self.skipped.items()},
        }

    def _known(self, measure: str) -> None:
        if measure not in self.paper.measures:
            raise ValueError(
                f"unknown measure {measure!r}; claims/{self.paper.paper}.yml declares: {', '.join(self.paper.measures)}"
            )


def _plain(value: Any, name: str) -> str | int | float:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}: expected text or a number")
    return int(value) if isinstance(value, Integral) else float(value)


def _own_numbers(interval: Interval) -> Interval:
    """The same with Python's own numbers: those of NumPy differ from what a results file gives back."""
    given = {key.name: getattr(interval, key.name) for key in dataclasses.fields(interval)}
    return Interval(**{key: value.item() if hasattr(value, "item") else value for key, value in given.items()})
