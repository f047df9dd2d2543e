"""Which attack met which defense: what `book/matrix.yml` names, with the reference run's numbers.

Nothing is measured here. An attack is one attacker on one kind of victim. Shares of different victims or pools are
never laid on one scale: a cell says in a word what its interval says, and only beside its own control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from pydantic import Field

from reprolib.book.claims import Claim, Paper
from reprolib.book.criteria import Strict, ends_words, number_words, read_yaml
from reprolib.book.numbers import digits
from reprolib.book.verdicts import Verdict

BROKEN, PROTECTED = 0.5, 0.2
"""A defense is broken if the whole interval lies above the one, and protects if it lies below the other, and every
claim that rests on the cell says so."""

ZONES = {
    "broken": ("●", "at least half of the images are identified, by the whole interval"),
    "between": (
        "◐",
        "the interval lies on neither side; or it does, and a claim that the defense hides the images, which may ask "
        "for more, is not decided or does not hold",
    ),
    "protects": ("○", "at most a fifth are, where the same attack without the defense identifies at least half"),
    "no control": (
        "?",
        "few are, but the attack does not identify half without the defense either, or that was not measured",
    ),
    "not measured": ("·", "the book has no number of this attack on these victims; a chapter may have one on others"),
}
"""Every word of a cell: its sign and what it means."""

OPEN = ("*", "a claim that rests on the cell is not decided: its number is no verdict")
"""The mark of such a cell, and what it means."""

STATIC = {"broken": "leaks anyway", "protects": "attack stopped"}
"""Zone -> what it means where the attacker ignores the defense: no defense is judged by him."""

WHO = {"static": "who ignores the defense", "adaptive": "who knows the defense"}
"""The two attackers that each defense meets."""


class Level(Strict):
    """A defense at one strength, and the measures that say what became of it; None: not measured.

    control: of this row, where it is another than the attack's. claim: the id of the one that says whether who knows
    the defense is kept out, where it is judged by another measure than `adaptive`.
    """

    defense: str = Field(min_length=1)
    level: str = Field(min_length=1)
    static: str | None = None
    adaptive: str | None = None
    cost: str | None = None
    control: str | None = None
    claim: str | None = None


class Pair(Strict):
    """What the two attackers see of one image: the records `static` and `adaptive` of a paper, and what they show."""

    paper: str
    says: str
    static: str
    adaptive: str


class Attack(Strict):
    """An attack on one kind of victim. paper: the chapter that measures it. figure: whether the dumbbells show it.

    accuracy: of the network that the levels' costs are of, trained without a defense. against: the attack and its
    victims in a few words, where the name alone says too little in a sentence. pair: the images beside the dumbbells.
    """

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    name: str
    against: str = ""
    paper: str
    victims: str
    control: str | None = None
    accuracy: str | None = None
    figure: bool = False
    pair: Pair | None = None
    levels: tuple[Level, ...] = Field(min_length=1)

    @property
    def measures(self) -> set[str]:
        """The names of all measures that the attack's cells come from."""
        named = {self.control, self.accuracy}
        for level in self.levels:
            named |= {level.static, level.adaptive, level.cost, level.control}
        return {name for name in named if name is not None}


class _Plan(Strict):
    attacks: tuple[Attack, ...]


class Measured(Protocol):
    """A measure of a results file."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Cell:
    """What one attacker makes of one defense. zone: a word of `ZONES`. claim: the id of one that rests on it.

    undecided: whether a claim that rests on it is not decided.
    """

    who: str
    found: Measured | None
    zone: str
    claim: str | None
    undecided: bool = False

    @property
    def sign(self) -> str:
        return ZONES[self.zone][0] + (OPEN[0] if self.undecided else "")

    @property
    def word(self) -> str:
        """The zone, in words that say no more of a defense than this attacker can."""
        return STATIC.get(self.zone, self.zone) if self.who == "static" else self.zone

    @property
    def words(self) -> str:
        """ "71.9 % [54.8, 84.2], broken"; that no claim rests on it which is decided."""
        told = f"{self.share} {self.interval}, {self.word}" if self.found else self.word
        return told + (", its claim not decided" if self.undecided else "")

    @property
    def share(self) -> str:
        """ "71.9 %", to the digits of the scoreboard; "" where nothing was measured."""
        return "" if self.found is None else number_words(self.found.value, True)

    @property
    def interval(self) -> str:
        return "" if self.found is None else ends_words(self.found.low, self.found.high, True)


@dataclass(frozen=True)
class Row:
    """A defense at one strength with its cells by attacker, its control, and what it costs."""

    level: Level
    cells: Mapping[str, Cell]
    control: Measured | None
    cost: Measured | None
    accuracy: Measured | None

    @property
    def price(self) -> str:
        """Points of accuracy lost by training with the defense: "7.57 [1.02, 14.1] of 38.0"; "" for none measured."""
        if self.cost is None:
            return ""
        told = f"{digits(100 * self.cost.value)} {ends_words(self.cost.low, self.cost.high, True)}"
        return told + ("" if self.accuracy is None else f" of {digits(100 * self.accuracy.value)}")


def load(path: Path) -> tuple[Attack, ...]:
    """The attacks of a matrix file; none without a file. Raises ValueError saying what is wrong with it."""
    if not path.is_file():
        return ()
    plan = read_yaml(path, _Plan)
    ids = [attack.id for attack in plan.attacks]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"{path.name}: used twice as an id: {', '.join(sorted(twice))}")
    return plan.attacks


def rows(
    attack: Attack, paper: Paper | None, measures: Mapping[str, Measured], verdicts: Mapping[str, Verdict]
) -> list[Row]:
    """The rows of an attack. measures: of the reference run, by name; verdicts: what it says of the claims, by id.

    Raises ValueError naming a measure or claim that the paper's claims do not declare: it would read as unmeasured.
    """
    if paper is not None and (unknown := sorted(attack.measures - paper.measures.keys())):
        raise ValueError(f"matrix.yml: {attack.id}: claims/{attack.paper}.yml has no measures {', '.join(unknown)}")
    named = {level.claim for level in attack.levels if level.claim}
    if paper is not None and (unknown := sorted(named - {claim.id for claim in paper.claims})):
        raise ValueError(f"matrix.yml: {attack.id}: claims/{attack.paper}.yml has no claims {', '.join(unknown)}")
    found = []
    for level in attack.levels:
        control = measures.get(level.control or attack.control or "")
        cells = {}
        for who in WHO:
            name = getattr(level, who)
            measured = measures.get(name) if name else None
            if measured is None:
                cells[who] = Cell(who, None, zone(None, control), None)
                continue
            resting = _resting(paper, name, level.claim if who == "adaptive" else None)
            word = zone(measured, control)
            if word == "protects" and not all(_borne_out(claim, verdicts) for claim in resting):
                word = "between"
            judged = [verdicts.get(claim.id) for claim in resting]
            undecided = any(verdict is None or not verdict.decided for verdict in judged)
            cells[who] = Cell(who, measured, word, resting[0].id if resting else _gated(paper, name), undecided)
        found.append(Row(level, cells, control, measures.get(level.cost or ""), measures.get(attack.accuracy or "")))
    return found


def zone(found: Measured | None, control: Measured | None) -> str:
    """What an interval says of a defense, beside what the same attack reaches without it."""
    if found is None:
        return "not measured"
    if found.low >= BROKEN:
        return "broken"
    if control is None or control.low < BROKEN:
        return "no control"
    return "protects" if found.high <= PROTECTED else "between"


def table(attack_rows: list[Row]) -> pd.DataFrame:
    """The rows that were measured, as `figures.dumbbells` reads them; what is not known is NaN or ""."""
    lines = []
    for row in attack_rows:
        cost = row.price.replace(" of ", "\nof ")
        line: dict[str, Any] = {"defense": f"{row.level.defense}, {row.level.level}", "cost": cost}
        for who, cell in row.cells.items():
            ends = (cell.found.value, cell.found.low, cell.found.high) if cell.found else (float("nan"),) * 3
            line |= dict(zip((who, f"{who}_low", f"{who}_high"), ends, strict=True))
        lines.append(line)
    every = pd.DataFrame(
        lines, columns=["defense", "cost", *(f"{who}{end}" for who in WHO for end in ("", "_low", "_high"))]
    )
    return every[every[list(WHO)].notna().any(axis=1)].sort_values(["adaptive", "static"], ascending=False)


def sentence(against: str, attack_rows: list[Row], others: Sequence[list[Row]] = ()) -> str:
    """What the rows show, with its numbers, against an attack that is named first.

    others: the rows of other attacks; the defenses that protect from one are named.
    """
    met = [row for row in attack_rows if row.cells["adaptive"].found]
    by_zone = {word: [row for row in met if row.cells["adaptive"].zone == word] for word in ZONES}
    stopped = [row for row in by_zone["broken"] if row.cells["static"].zone == "protects"]
    told = [
        f"Against {against}: of {len(met)} defended setting{'' if len(met) == 1 else 's'} {len(by_zone['broken'])} "
        f"{'is' if len(by_zone['broken']) == 1 else 'are'} broken by an attacker who knows them "
        f"({len(stopped)} of these stop one who does not), {len(by_zone['between'])} lie between, and "
        f"{len(by_zone['protects'])} {'protects' if len(by_zone['protects']) == 1 else 'protect'}"
    ]
    told += [_protects(row) for row in by_zone["protects"]]
    found = f"{told[0]}{': ' if told[1:] else ''}{'; '.join(told[1:])}."
    elsewhere = [row.level.defense for of in others for row in of if row.cells["adaptive"].zone == "protects"]
    if elsewhere:
        found += f" Against other attacks some settings of {', '.join(dict.fromkeys(elsewhere))} protect."
    return found


def _protects(row: Row) -> str:
    """A row that protects, with what is identified and, where it was measured, what it costs."""
    cell = row.cells["adaptive"]
    cost = f", training with it loses {row.price} points of accuracy" if row.price else ""
    return f"{row.level.defense} ({row.level.level}) leaves {cell.share} {cell.interval} identified{cost}"


def _resting(paper: Paper | None, measure: str, named: str | None) -> list[Claim]:
    """The claims that rest on a cell: the one that its row names, and those that are judged by its measure."""
    every = paper.claims if paper else ()
    own = [claim for claim in every if claim.id == named]
    return own + [claim for claim in every if any(criterion.measure == measure for criterion in claim.criteria)]


def _gated(paper: Paper | None, measure: str) -> str | None:
    """The id of the first claim whose control a measure is; None without any."""
    every = paper.claims if paper else ()
    return next((claim.id for claim in every if claim.gate is not None and claim.gate.measure == measure), None)


def _borne_out(claim: Claim, verdicts: Mapping[str, Verdict]) -> bool:
    """Whether the ledger lets a cell with few images identified say that the defense protects.

    It does not where it leaves the claim undecided, or denies that at most so many are identified.
    """
    verdict = verdicts.get(claim.id)
    if verdict is None or not verdict.decided:
        return False
    hidden = any(criterion.at_most is not None for criterion in claim.criteria)
    return not hidden or verdict.verdict in ("reproduced", "holds on a substitute", "holds")
