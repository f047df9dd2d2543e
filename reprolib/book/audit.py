"""Verdicts that an audit named: what they were then, what they are today, and by which rule.

`book/changed-verdicts.yml` holds what is past; what a verdict is today is drawn from the reference run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from reprolib.book.claims import Claim
from reprolib.book.criteria import Strict, read_yaml
from reprolib.book.judged import Paper
from reprolib.book.verdicts import UNDECIDED, Verdict
from reprolib.book.wording import FAILURES

TURNS = {
    "as before": "decided then and now, to the same side",
    "turned round": "decided then and now, to the other side",
    "open now": "decided then, not decided now",
    "decided now": "not decided then, decided now",
    "still open": "not decided then, nor now",
    "said anew": "not in the ledger any more: the verdict is of the claim in its place, which may say the contrary",
    "no result": "a setting, which claims none",
}
"""What became of a verdict since the audit, and what that means. "partly" was no side."""


class Named(Strict):
    """A claim that the audit named. then: its verdict at that time. rule: one of the file's. became: the claim that
    holds what this one said, where it is not in the ledger any more."""

    paper: str
    id: str
    then: Literal["reproduced", "partly", "not reproduced", "not decided here"]
    rule: str
    why: str = Field(min_length=1)
    became: str | None = None


class Group(Strict):
    """Claims that the audit named for one fault."""

    title: str
    says: str
    claims: tuple[Named, ...] = Field(min_length=1)


class Audit(Strict):
    """The whole file. rules: name -> what it asks."""

    rules: dict[str, str] = {}
    groups: tuple[Group, ...] = ()

    @property
    def named(self) -> list[Named]:
        return [named for group in self.groups for named in group.claims]


@dataclass(frozen=True)
class Today:
    """A named claim as it stands now. verdict: of the reference run; None without one."""

    named: Named
    paper: Paper
    claim: Claim
    verdict: Verdict | None

    @property
    def turn(self) -> str:
        """What became of the verdict: a word of `TURNS`."""
        if self.named.became:
            return "said anew"
        now = UNDECIDED if self.verdict is None else self.verdict.verdict
        if now == "setting":
            return "no result"
        if UNDECIDED in (now, self.named.then):
            open_then = "still open" if now == UNDECIDED else "decided now"
            return open_then if self.named.then == UNDECIDED else "open now"
        failed = self.named.then == "not reproduced"
        return "as before" if failed == (now in FAILURES) and self.named.then != "partly" else "turned round"


def load(path: Path) -> Audit:
    """What the file says; nothing without one. Raises ValueError saying what is wrong with it."""
    if not path.is_file():
        return Audit()
    found = read_yaml(path, Audit)
    if unknown := sorted({named.rule for named in found.named} - found.rules.keys()):
        raise ValueError(f"{path.name}: unknown rule {', '.join(unknown)}; known: {', '.join(found.rules)}")
    names = [f"{named.paper}/{named.id}" for named in found.named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path.name}: named twice: {', '.join(twice)}")
    return found


def today(found: Audit, papers: Mapping[str, Paper]) -> list[tuple[Group, list[Today]]]:
    """The named claims of these papers with their verdicts now, group by group; a paper whose claims cannot be read is
    left out. Raises ValueError for a claim that the ledger does not have: name the one that took its place."""
    told = []
    for group in found.groups:
        rows = []
        for named in group.claims:
            paper = papers.get(named.paper)
            if paper is None or paper.claims is None:
                continue
            name = named.became or named.id
            claim = next((claim for claim in paper.claims.claims if claim.id == name), None)
            if claim is None:
                raise ValueError(
                    f"changed-verdicts.yml: claims/{named.paper}.yml has no claim {name!r}; "
                    "say with `became` which one took its place"
                )
            rows.append(Today(named, paper, claim, (paper.reference.verdicts or {}).get(name)))
        told.append((group, rows))
    return told
