"""How verdicts are told to readers: what each word means, their order and symbols, and the sentences beside one."""

from __future__ import annotations

from reprolib.book import claims
from reprolib.book.criteria import number_words
from reprolib.book.verdicts import SYMBOLS, UNDECIDED, Verdict

MEANINGS = {
    "reproduced": "Measured on the paper's own setting: the whole interval satisfies the criterion.",
    "partly": "On the paper's own setting, of a claim with named parts: some hold and the others fail.",
    "not reproduced": "On the paper's own setting: no part of the interval satisfies the criterion.",
    "holds on a substitute": "As reproduced, but a network, image set, size, budget or batch is another than the "
    "paper's. The differences stand beside it.",
    "partly on a substitute": "As partly, measured on a substitute.",
    "fails on a substitute": "As not reproduced, but measured on a substitute: it speaks of this setting, not of the "
    "paper's.",
    UNDECIDED: "This run cannot tell. A reason code and a sentence say why.",
    "holds": "An identity, which follows from algebra: every case satisfies it. Counted apart.",
    "fails": "An identity that some case does not satisfy.",
    "setting": "Something that the paper fixes and does not claim. Shown, not judged and not counted.",
}
"""Every word of a verdict, and what it means."""

REASON_MEANINGS = {
    "data": "the image set that it needs is not here, or another stands in for it",
    "weights": "needs trained weights that are not at hand",
    "compute": "needs more computing than this book has",
    "budget": "the run is too small: a larger profile decides it",
    "unreadable": "the paper's number or setting could not be read, and memory decides nothing",
    "imprecise": "the interval lies on both sides of the criterion",
    "gate": "its control does not reach its bound: where an attack fails anyway, nothing can be said of a defense",
    "few": "too few images, too few independent networks, batches or runs, or an interval without a width",
    "out of scope": "about something that this book does not measure",
    "stale": "the record answers another form of the experiment than the chapter's",
    "missing": "not measured in this run, or with an interval that does not cover; a new run decides",
}
"""Every reason code of a verdict that is not decided, and what it means."""

OPEN_BECAUSE = {
    "data": "whose image set is not here",
    "weights": "that need trained weights which are not at hand",
    "compute": "that need more computing than this book has",
    "budget": "for which the run is too small",
    "unreadable": "whose published numbers or settings could not be read",
    "imprecise": "measured too coarsely",
    "gate": "whose control fell short",
    "few": "with too few images or networks",
    "out of scope": "about what this book does not measure",
    "stale": "whose record answers another experiment",
    "missing": "that wait for a new run",
}
"""Every reason code, as it follows a number of claims: "60 whose published numbers or settings could not be read"."""

CLASSES = {word: "undecided" if word == UNDECIDED else word.replace(" ", "-") for word in SYMBOLS}
"""Verdict -> class in book/_static/leaky.css and in the report."""

PARTS = {"holds": SYMBOLS["reproduced"], "fails": SYMBOLS["not reproduced"], UNDECIDED: SYMBOLS[UNDECIDED]}
"""What becomes of a claim's part -> its symbol."""

IDENTITIES = ("holds", "fails")

KINDS = {
    "on the paper's own setting": ("reproduced", "partly", "not reproduced"),
    "on a substitute": ("holds on a substitute", "partly on a substitute", "fails on a substitute"),
    "identities": IDENTITIES,
    "open": (UNDECIDED,),
}
"""What the counts keep apart: title -> verdicts. Settings are not counted."""

FAILURES = ("not reproduced", "fails on a substitute", "fails")

FAILURES_FIRST = (
    *FAILURES,
    "partly",
    "partly on a substitute",
    "reproduced",
    "holds on a substitute",
    "holds",
    UNDECIDED,
    "setting",
)
"""The order of the claims in a ledger."""


def many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def criterion_lines(claim: claims.Claim, paper: claims.Paper) -> list[str]:
    """What is asked of which measure, a line for a claim's criterion or for each of its parts; why there is none."""
    if claim.kind == "setting":
        return ["a setting, which is not judged"]
    if claim.undecidable:
        return ["no criterion"]
    names = [f"{part.name}: " for part in claim.parts] or ["criterion: "]
    return [
        f"{name}{paper.measures[criterion.measure].says}: {criterion.words(paper.percent(claim, criterion))}"
        for name, criterion in zip(names, claim.criteria, strict=True)
    ]


def measured_lines(verdict: Verdict) -> list[str]:
    """What was measured, a line for the measure or for each part, with what became of the part."""
    if not verdict.parts:
        return [told] if (told := verdict.measured()) else []
    alone = [(part, verdict.model_copy(update={"parts": [part]})) for part in verdict.parts]
    return [f"{PARTS[part.verdict]} {one.measured() or f'{part.name}: —'}" for part, one in alone]


def basis(verdict: Verdict) -> str:
    """The interval's method, and on how much it rests."""
    if verdict.n is None:
        return ""
    method = verdict.method or "of the parts, the least"
    units = "" if verdict.clusters is None or "over" in method else f", {many(verdict.clusters, 'cluster')}"
    return f"{method}; n = {verdict.n}{units}"


def notes(verdict: Verdict, paper: claims.Paper) -> list[str]:
    """What must be said beside the word: why it is not decided, or what stands in, its control, and its limits."""
    reading = [verdict.read_as] * bool(verdict.reading)
    if verdict.verdict == UNDECIDED:
        return [f"{verdict.reason}: {verdict.why}", *reading]
    if not verdict.decided:
        return []
    told = substituted(verdict)
    told += [verdict.favours] if told and verdict.favours else []
    if gate := verdict.gate:
        measure = paper.measures[gate.measure]
        low = "—" if gate.low is None else number_words(gate.low, measure.share)
        asked = number_words(gate.at_least, measure.share)
        told.append(f"control: {measure.says}, at its lower end {low}, where {asked} is asked")
    if verdict.kind == "result":
        told += ["on this network, not of others"] if verdict.scope == "network" else []
        told += ["does not stand at 99 %"] if verdict.stands_at_99 is False else []
    return [*told, *reading, *[verdict.provisional] * bool(verdict.provisional)]


def short(verdict: Verdict) -> str:
    """What stands folded beside a verdict, in a word or two: the reason, or what is a substitute."""
    return verdict.reason or ", ".join(other.what for other in verdict.substitutes) or "criterion"


def substituted(verdict: Verdict) -> list[str]:
    """What stands in for what: "data: cifar10 in place of cifar100"."""
    return [f"{other.what}: {other.here} in place of {other.paper}" for other in verdict.substitutes]


def cause(verdict: Verdict) -> str:
    """What may explain a failure: what stood in for what and whom it favours, or that nothing did."""
    if verdict.kind == "identity":
        return "by algebra: some case does not satisfy it"
    told = [*substituted(verdict), *[verdict.favours] * bool(verdict.substitutes and verdict.favours)]
    told += ["on this network, not of others"] if verdict.scope == "network" else []
    return "; ".join(told) if verdict.substitutes else "; ".join(["on the paper's own setting", *told])


def setting_of(verdict: Verdict | None) -> str:
    """Where a decided result was measured: on the paper's "own" setting or on a "substitute"; "" for all others."""
    if verdict is None or verdict.kind != "result" or not verdict.decided:
        return ""
    return "substitute" if verdict.substitutes else "own"


WHOSE = {"paper": "The paper's claims", "book": "This book's own claims"}
