"""The words of verdicts and their one schema: what results files store of each claim, checked, counted and told.

How verdicts come about: `reprolib.book.ledger`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, ConfigDict, ValidationError, model_validator

from reprolib.book.claims import Paper
from reprolib.book.criteria import Reading, Strict, ends_words, number_words
from reprolib.measure.intervals import Interval

SYMBOLS = {
    "reproduced": "✔",
    "partly": "◐",
    "not reproduced": "✘",
    "holds on a substitute": "(✔)",
    "partly on a substitute": "(◐)",
    "fails on a substitute": "(✘)",
    "not decided here": "○",
    "holds": "=",
    "fails": "≠",
    "setting": "·",
}
"""Every word of a verdict: seven of results, two more of identities, one of settings."""

COUNTED = tuple(SYMBOLS)[:7]
"""The words of results, in the order in which lists count them."""

UNDECIDED: Final = "not decided here"

Reason = Literal[
    "data",
    "weights",
    "compute",
    "budget",
    "unreadable",
    "imprecise",
    "gate",
    "few",
    "out of scope",
    "stale",
    "missing",
]
REASONS = get_args(Reason)

_WORDS = {
    "result": COUNTED,
    "identity": ("holds", "fails", UNDECIDED),
    "setting": ("setting",),
}


# --- the schema of a verdict ------------------------------------------------------------------------------------------


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("not a number")
    return value


Number = Annotated[float, AfterValidator(_number)]


class _Stored(Strict):
    model_config = ConfigDict(strict=True)


class Substitute(_Stored):
    """Something that the run has in place of the paper's own. what: data, or one of `criteria.CONDITIONS`."""

    what: str
    paper: str
    here: str


class GateState(_Stored):
    """A claim's control in a run. value, low: None where it was not measured, or by an interval that does not cover."""

    measure: str
    value: Number | None
    low: Number | None
    at_least: Number
    open: bool


class PartVerdict(_Stored):
    """What became of one part of a claim."""

    name: str
    verdict: Literal["holds", "fails", "not decided here"]
    percent: bool = False
    value: Number | None
    low: Number | None
    high: Number | None


class Verdict(_Stored):
    """A claim's verdict in a run, as results files store it (`model_dump`).

    verdict: a word of `SYMBOLS`; reason, why: a code and a sentence, where it is not decided. measure to method: of the
    criterion's measure; for a claim of parts, whose numbers stand in `parts`, n and clusters are the least of any.
    percent: its numbers are told in per cent (`claims.Paper.percent`).
    published, criterion: in words. stands_at_99: None where nothing was decided or no 99 % interval is known.
    reading: of a statement that can be read in several ways, which this one is (`once`). provisional: why the verdict
    of a changed criterion waits for another run. beside: what the claim's file says besides, with this run's numbers.
    Identities have neither ends nor clusters: every case counts.
    """

    id: str
    says: str
    where: str
    origin: Literal["paper", "book"]
    kind: Literal["result", "setting", "identity"]
    central: bool
    published: str
    provenance: Literal["read", "plot", "recalled", "own"]
    criterion: str
    verdict: str
    reason: Reason | Literal[""]
    why: str
    measure: str | None
    percent: bool = False
    value: Number | None
    low: Number | None
    high: Number | None
    n: int | None
    clusters: int | None
    method: str | None
    scope: Literal["architecture", "network", "none"]
    substitutes: list[Substitute]
    favours: str
    gate: GateState | None
    reading: Reading | None
    provisional: str
    beside: str = ""
    stands_at_99: bool | None
    parts: list[PartVerdict]

    @model_validator(mode="after")
    def _fits(self) -> Verdict:
        if self.verdict not in (words := _WORDS[self.kind]):
            raise ValueError(f"verdict={self.verdict!r} of kind {self.kind}: expected one of {', '.join(words)}")
        if (self.verdict == UNDECIDED) != bool(self.reason):
            raise ValueError(f"reason={self.reason!r} beside {self.verdict!r}: undecided verdicts have one, no others")
        judged = self.kind == "result" and self.decided
        if judged and ("substitute" in self.verdict) != bool(self.substitutes):
            raise ValueError(f"{len(self.substitutes)} substitutes beside {self.verdict!r}")
        if self.stands_at_99 is not None and not judged:
            raise ValueError(f"stands_at_99={self.stands_at_99} beside {self.verdict!r}: only decided results have one")
        return self

    @property
    def decided(self) -> bool:
        return self.verdict not in (UNDECIDED, "setting")

    @property
    def note(self) -> str:
        """What must be said beside the word: why it is not decided, or what stands in and what limits it."""
        if not self.decided:
            return "; ".join(filter(None, [self.why, self.read_as]))
        notes = [f"{other.what}: {other.here} in place of {other.paper}" for other in self.substitutes]
        notes += [self.favours] if self.substitutes and self.favours else []
        if self.kind == "result":
            notes += ["on this network, not of others"] if self.scope == "network" else []
            notes += ["does not stand at 99 %"] if self.stands_at_99 is False else []
        return "; ".join(filter(None, [*notes, self.read_as, self.provisional]))

    @property
    def read_as(self) -> str:
        """Of a statement that can be read in several ways, which reading this is; "" for others."""
        if self.reading is None:
            return ""
        own = "the source's own words" if self.reading.stated else "which the source leaves open"
        return f"one reading, {own}: {self.reading.how}; the statement counts once"

    def measured(self) -> str:
        """What was measured, in words, or of each part; "" without any."""
        told: list[tuple[str, PartVerdict | Verdict]] = [(f"{part.name}: ", part) for part in self.parts]
        told = [(name, one) for name, one in told or [("", self)] if one.value is not None]
        if self.kind == "identity":  # of algebra there is no interval
            return "; ".join(name + _words(one.value, None, None, one.percent) for name, one in told)
        return "; ".join(name + _words(one.value, one.low, one.high, one.percent) for name, one in told)

    def __str__(self) -> str:
        said = "; ".join(filter(None, [self.note, self.beside]))
        return f"{SYMBOLS[self.verdict]} {self.verdict}" + (f": {said}" if said else "")


def validate_verdicts(verdicts: Iterable[Mapping[str, Any]], paper: Paper) -> None:
    """Check stored verdicts against the schema.

    Raises ValueError naming claim and key: unknown, missing and mistyped keys, words that a kind has not, claims that
    the paper's file does not hold, and claims judged twice.
    """
    found, known = [], [claim.id for claim in paper.claims]
    for place, stored in enumerate(verdicts, 1):
        name = stored.get("id") if isinstance(stored, Mapping) else None
        title = f"verdict of claim {name!r}" if name is not None else f"verdict number {place}"
        try:
            found.append(Verdict.model_validate(stored).id)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ", ".join([title, *(str(step) for step in fault["loc"])])
            told = {"missing": "missing", "extra_forbidden": f"unknown key; known: {', '.join(Verdict.model_fields)}"}
            message = fault["msg"].removeprefix("Value error, ") + f" (got {str(fault['input'])[:80]!r})"
            raise ValueError(f"{where}: {told.get(fault['type'], message)}") from error
    for name in found:
        if name not in known:
            raise ValueError(f"verdict of claim {name!r}: claims/{paper.paper}.yml holds no claim of this id")
        if found.count(name) > 1:
            raise ValueError(f"verdict of claim {name!r}: stored {found.count(name)} times")


def once(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts with the readings of one statement put into one, in the place of the first.

    It is that of the reading which the source states, or what all readings come to. Where they differ and the source
    states none, the statement is not decided: which of them is meant could not be read. Their `reading` is None.
    """
    statements: dict[str | int, list[Verdict]] = {}
    for place, verdict in enumerate(verdicts):
        statements.setdefault(verdict.reading.of if verdict.reading else place, []).append(verdict)
    return [_one(readings) for readings in statements.values()]


def _one(readings: list[Verdict]) -> Verdict:
    stated = [verdict for verdict in readings if verdict.reading and verdict.reading.stated]
    if stated or len({verdict.verdict for verdict in readings}) == 1:
        return (stated or readings)[0].model_copy(update={"reading": None})
    told = "; ".join(f"{verdict.reading.how}: {verdict.verdict}" for verdict in readings if verdict.reading)
    open_now = {"verdict": UNDECIDED, "reason": "unreadable", "why": f"it depends on the reading: {told}"}
    of_one: dict[str, Any] = {"measure": None, "value": None, "low": None, "high": None, "parts": [], "provisional": ""}
    return readings[0].model_copy(update={"reading": None, "stands_at_99": None, **open_now, **of_one})


def count(verdicts: Iterable[Verdict], origin: str, scope: str | None = None) -> dict[str, int]:
    """Word -> how many verdicts on claims of this origin, "paper" or "book", in the order of `SYMBOLS`; no zeros.

    Settings are left out; identities that are decided count under their own words, holds and fails; the readings of
    one statement count once. scope: only those of this scope, for the counts that keep single networks apart.
    """
    found = Counter(verdict.verdict for verdict in _of(verdicts, origin, scope))
    return {word: found[word] for word in SYMBOLS if found[word] and word != "setting"}


def standing(verdicts: Iterable[Verdict]) -> str:
    """What is decided today, the papers' claims and the book's own: "decided: none of the paper's claims; of the book's
    own 6 reproduced"."""
    every = list(verdicts)
    told = {}
    for origin in ("paper", "book"):
        found = {word: number for word, number in count(every, origin).items() if word != UNDECIDED}
        told[origin] = ", ".join(counted(word, number) for word, number in found.items()) or "none"
    if set(told.values()) == {"none"}:
        return "none decided"
    return f"decided of the paper's claims: {told['paper']}; of the book's own: {told['book']}"


def counted(verdict: str, number: int) -> str:
    """ "3 reproduced", "2 hold on a substitute", "2 identities hold": in a count an identity is named as one."""
    word = verdict if number == 1 else verdict.replace("holds", "hold").replace("fails", "fail")
    if verdict in _WORDS["identity"][:2]:
        return f"{number} {'identity' if number == 1 else 'identities'} {word}"
    return f"{number} {word}"


def count_at_99(verdicts: Iterable[Verdict], origin: str, scope: str | None = None) -> int:
    """How many of the decided results that `count` counts would be the same by their 99 % intervals."""
    return sum(verdict.stands_at_99 is True for verdict in _of(verdicts, origin, scope))


def _of(verdicts: Iterable[Verdict], origin: str, scope: str | None) -> list[Verdict]:
    if origin not in ("paper", "book"):
        raise ValueError(f"origin={origin!r}: expected paper or book")
    return [v for v in once(verdicts) if v.origin == origin and scope in (None, v.scope)]


def value_words(interval: Interval, percent: bool = False) -> str:
    """An interval as the tables print it: "97.7 % [91.2, 99.8]"."""
    return _words(interval.value, interval.low, interval.high, percent)


def _words(value: float | None, low: float | None, high: float | None, percent: bool) -> str:
    told = "—" if value is None else number_words(value, percent)
    return told if low is None or high is None else f"{told} {ends_words(low, high, percent)}"
