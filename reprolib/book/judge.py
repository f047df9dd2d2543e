"""The judge: the verdict of each claim, drawn from the measures of a results file.

`judge` takes the file of claims as it is now, so that a criterion may change without another run, and `faults` says
where a stored verdict breaks a rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reprolib.book.claims import Claim, Paper
from reprolib.book.criteria import PROFILES, Criterion, ends_words, number_words
from reprolib.book.measured import LEAST_CLUSTERS, Record, Run
from reprolib.book.substitutes import substitutes_of
from reprolib.book.verdicts import (
    UNDECIDED,
    GateState,
    PartVerdict,
    Reason,
    Substitute,
    Verdict,
    validate_verdicts,
)
from reprolib.measure.intervals import Interval

_RESULT = {
    ("holds", False): "reproduced",
    ("partly", False): "partly",
    ("fails", False): "not reproduced",
    ("holds", True): "holds on a substitute",
    ("partly", True): "partly on a substitute",
    ("fails", True): "fails on a substitute",
}

_UNITS = {"architecture": "networks", "network": "batches", "none": "runs"}


def judge(paper: Paper, payload: Mapping[str, Any]) -> list[Verdict]:
    """The verdict of each claim of the file as it is now, from the measures that a results file holds.

    payload: profile, measures, skipped, and provenance with seed and time. Raises ValueError for an unknown profile and
    for stored intervals that are none.
    """
    run = Run.read(payload)
    return [_judge(claim, paper, run) for claim in paper.claims]


@dataclass(frozen=True)
class _Outcome:
    """Of a criterion. word: holds, fails, partly, or "" where a reason says why not."""

    word: Literal["", "holds", "fails", "partly"]
    reason: Reason | Literal[""] = ""
    why: str = ""
    at_99: bool | None = None


def _judge(claim: Claim, paper: Paper, run: Run) -> Verdict:
    gate = _gate(claim, run)
    told = [_weigh(claim, criterion, paper, gate, run) for criterion in claim.criteria]
    records = [run.records.get(criterion.measure) for criterion in claim.criteria]
    others: list[Substitute] = []
    for criterion, record in zip(claim.criteria, records, strict=True):
        if record is not None:
            found = substitutes_of(claim, record, paper.measures[criterion.measure])
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
        criterion=paper.criterion_words(claim),
        verdict=word,
        reason=outcome.reason,
        why=outcome.why,
        measure=claim.criterion.measure if claim.criterion else None,
        percent=claim.criterion is not None and paper.percent(claim, claim.criterion),
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
        beside=_beside(claim, paper, run),
        stands_at_99=outcome.at_99,
        parts=_parts(claim, paper, told, records),
    )


def _parts(claim: Claim, paper: Paper, told: Sequence[_Outcome], records: Sequence[Record | None]) -> list[PartVerdict]:
    """What became of each part of a claim: it has one criterion, of which nothing holds partly."""
    return [
        PartVerdict(
            name=part.name,
            verdict=one.word or UNDECIDED,  # type: ignore[arg-type]
            percent=paper.percent(claim, part.criterion),
            **_numbers(record),
        )
        for part, one, record in zip(claim.parts, told, records, strict=False)
    ]


def _beside(claim: Claim, paper: Paper, run: Run) -> str:
    """What the claim's file wants to be read beside the verdict; "" where this run did not measure what it names."""
    told = paper.filled(claim.beside, {name: record.interval for name, record in run.records.items()})
    return "" if "—" in told else told


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


def _weigh(claim: Claim, criterion: Criterion, paper: Paper, gate: GateState | None, run: Run) -> _Outcome:
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
        return _Outcome("", "gate", _closed(gate, paper.measures[gate.measure].share))
    if exact:
        return _exactly(criterion, record.interval)
    outcome = _interval(criterion, record.interval, paper.percent(claim, criterion))
    lower = criterion.at_least, criterion.above
    if (
        outcome.word == "fails"
        and gate is None
        and paper.measures[criterion.measure].success
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


def _interval(criterion: Criterion, interval: Interval, percent: bool) -> _Outcome:
    """Whole 95 % interval inside, or none of it; of a skewed measure the whole 99 % one too. percent: in the words."""
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


def _gate(claim: Claim, run: Run) -> GateState | None:
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


def _provisional(claim: Claim, run: Run) -> str:
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
    run, stored = Run.read(payload), {verdict["id"]: verdict for verdict in payload["verdicts"]}
    found = []
    for anew in judge(paper, payload):
        if anew.id not in stored:
            found.append(f"{anew.id}: no verdict is stored")
            continue
        then, now = (one.model_dump() for one in (Verdict.model_validate(stored[anew.id]), anew))
        found += [f"{anew.id}: {then['verdict']}, but {fault}" for fault in _broken(then["verdict"], anew, paper, run)]
        if differing := [f"{key} is {then[key]!r}, not {now[key]!r}" for key in now if then[key] != now[key]]:
            found.append(f"{anew.id}: differs when judged anew: {'; '.join(differing)}")
    return found


def _broken(word: str, anew: Verdict, paper: Paper, run: Run) -> list[str]:
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
