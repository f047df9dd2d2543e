"""The templates of the generated pages and of the report, with the functions that they call."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reprolib.book import audit, matrix
from reprolib.book.claims import OPEN_NUMBER
from reprolib.book.criteria import ends_words, number_words
from reprolib.book.judged import Counts, Paper
from reprolib.book.verdicts import REASONS, SYMBOLS, UNDECIDED, counted
from reprolib.book.wording import (
    CLASSES,
    FAILURES,
    KINDS,
    MEANINGS,
    REASON_MEANINGS,
    WHOSE,
    basis,
    cause,
    criterion_lines,
    many,
    measured_lines,
    notes,
    setting_of,
    short,
    substituted,
)


def _badge(verdict: str, number: int | None = None) -> Markup:
    word = verdict if number is None else counted(verdict, number)
    return Markup('<span class="verdict {}">{} {}</span>').format(CLASSES[verdict], SYMBOLS[verdict], word)


def _in_words(counts: Counts) -> str:
    """Counts in one line: "3 reproduced, 2 not decided here"."""
    return ", ".join(counted(word, number) for word, number in counts.words.items())


def listed(counts: Counts) -> str:
    """Counts in one line, with reasons and limits: "3 reproduced, 2 not decided here (1 data, 1 few)"."""
    told = [counted(word, number) for word, number in counts.words.items()]
    told = [f"{line} ({counts.why_open})" if line.endswith(UNDECIDED) else line for line in told]
    return ", ".join(told) + "".join(f"; {line}" for line in counts.limits)


def board_words(papers: Iterable[Paper]) -> str:
    """How the scoreboard's rows come to be more than the claims that the first page counts."""
    known = [paper for paper in papers if paper.claims is not None]
    count = {name: sum(paper.numbers[name] for paper in known) for name in ("paper", "book", "settings")}
    rows = sum(len(paper.claims.claims) for paper in known if paper.claims is not None)
    told = [f"{many(count['paper'], 'claim')} of the papers", f"{count['book']} of the book"]
    told += [f"{many(count['settings'], 'setting')}, shown and not counted"] * bool(count["settings"])
    further = rows - sum(count.values())
    if further:
        told += [f"{many(further, 'further reading')} of statements that can be read in several ways and count once"]
    return f"{many(rows, 'row')}: {'; '.join(told)}."


def _linked(text: str, address: str | None) -> Markup:
    return Markup('<a href="{}">{}</a>').format(address, _in_raw(text)) if address else _in_raw(text)


def _markdown(text: str) -> Markup:
    """Text as Markdown shows it literally, on one line: a caption may hold what looks like markup."""
    return Markup(re.sub(r"([\\`*_{}\[\]()<>#+\-.!|$~:^])", r"\\\1", " ".join(text.split())))


def _in_raw(text: str) -> Markup:
    """Text inside a raw block of Markdown: escaped, and without what would end the block."""
    one_line = re.sub(r"[ \t\r\n\f\v]+", " ", text).strip(" ")  # a no-break space stays one
    return Markup(str(Markup.escape(one_line)).replace("`", "&#96;"))


def _lines(texts: Iterable[str]) -> Markup:
    """Texts in a raw block, one below the other: the style of `.lines` keeps the breaks, without a node for each."""
    return Markup("\n").join(_in_raw(text) for text in texts)


def _root_path(path: Path) -> str:
    """A picture's address from the book's root, as Sphinx reads it."""
    parts = path.parts
    return "/" + "/".join(parts[len(parts) - 1 - parts[::-1].index("results") :])


_NOTES = {"recalled": "recalled, unverified", "plot": "off the plot"}

FILTERS = (
    ("whose", "whose claim", {"paper": "the papers'", "book": "the book's own"}),
    ("verdict", "verdict", {word: word for word in SYMBOLS}),
    ("reason", "why open", {reason: reason for reason in REASONS}),
    ("setting", "measured on", {"own": "the paper's setting", "substitute": "a substitute"}),
)
"""The scoreboard's filters besides the chapter: name, title, and value -> word of each choice. A row has each value."""

TEMPLATES = Environment(
    loader=PackageLoader("reprolib.book"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

TEMPLATES.globals |= {
    "FAILURES": FAILURES,
    "FILTERS": FILTERS,
    "NOTES": _NOTES,
    "WHO": matrix.WHO,
    "ZONES": matrix.ZONES,
    "OPEN": matrix.OPEN,
    "OPEN_NUMBER": OPEN_NUMBER,
    "number_words": number_words,
    "ends_words": ends_words,
    "WHOSE": WHOSE,
    "KINDS": KINDS,
    "TURNS": audit.TURNS,
    "SHOWN": {"verdict", "value", "low", "high", "parts", "why", "substitutes", "provisional"},
    "UNDECIDED": UNDECIDED,
    "MEANINGS": MEANINGS,
    "REASON_MEANINGS": REASON_MEANINGS,
    "badge": _badge,
    "board_words": board_words,
    "cause": cause,
    "basis": basis,
    "criterion_lines": criterion_lines,
    "linked": _linked,
    "listed": listed,
    "counted": counted,
    "in_words": _in_words,
    "CLASSES": CLASSES,
    "many": many,
    "measured_lines": measured_lines,
    "notes": notes,
    "setting_of": setting_of,
    "short": short,
    "substituted": substituted,
}

TEMPLATES.filters |= {"lines": _lines, "markdown": _markdown, "raw_text": _in_raw, "root_path": _root_path}
