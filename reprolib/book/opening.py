"""What a chapter opens with: its finding in a sentence, the claims that its paper stands on, and one picture.

All of it comes from the reference run's results file; nothing is measured here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reprolib.book import checked, figures, markup, reference_run
from reprolib.book.claims import Claim, Paper
from reprolib.book.verdicts import SYMBOLS, Verdict, once, standing

_CELL = "padding:.25rem .6rem .25rem 0;vertical-align:top;text-align:left"


def opening(paper: Paper, verdicts: Sequence[Verdict], reference: Mapping[str, Any], folder: Path) -> str:
    """The opening as HTML.

    verdicts: of the reference run. reference: its results file. folder: where its figures lie. A finding whose measures
    the run lacks, and a picture that it did not draw, are left out.
    """
    undecided = {verdict.id for verdict in verdicts if not verdict.decided}
    finding = paper.found({name: entry["value"] for name, entry in reference["measures"].items()}, undecided)
    sentence = f'<p style="font-size:1.15rem;margin:.2rem 0 .6rem">{html.escape(finding)}</p>' if finding else ""
    rows = "".join(_row(verdict) for verdict in once(verdicts) if verdict.central)
    head = "".join(f'<th scope="col" style="{_CELL}">{name}</th>' for name in _COLUMNS)
    title = "The claims that the chapter stands on"
    table = f'<p style="margin:.6rem 0 .2rem"><b>{title}</b></p>'
    table += (
        f'<div style="overflow-x:auto;font-size:.9rem" tabindex="0" role="region" aria-label="{title}">'
        f'<table class="ledger cards" style="border-collapse:collapse;width:100%">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    return sentence + table + _picture(paper.picture, reference, folder)


OLDER = "all-claims"
"""The anchor of the box with all claims of the reference run, or of the older one."""

IN_WORDS = "what-an-older-run-found"
"""The anchor of the section that tells it in words, as the site makes it of the section's heading."""


def record_missing(
    paper: str,
    run: str,
    problem: str,
    reference: Mapping[str, Any] | None,
    verdicts: Sequence[Verdict] = (),
    claimed: Sequence[Claim] = (),
) -> str:
    """The box of a chapter whose reference run is no data yet.

    run: what ran instead, as HTML. problem: why, or "". reference: the older run's results file, if there is one, and
    its verdicts. claimed: the chapter's claims.
    """
    why = html.escape(problem) if problem else "It has not been computed yet as data"
    text = f"{why}. What follows ran here at the sizes of a test ({run}): its numbers mean little. "
    if reference is not None:
        made = html.escape(reference_run.made_on(reference))
        text += (
            f'What an <a href="#{OLDER}">older run</a> found ({made}) is listed below, and '
            f'<a href="#{IN_WORDS}">told in words</a> near the page\'s end; '
            f"its pictures stand before those of this run. By today's criteria its claims stand so: "
            f"{html.escape(standing(verdicts))}. "
        )
    return markup.box("⚠ Record missing", text + how_to_run(paper, reference, claimed), "#D55E00")


HOW = "../how-to-read.html#the-reference-run-and-yours"
"""The page that says how to set up the environment, from a chapter's."""


def sets_needed(claims: Iterable[Claim], reference: Mapping[str, Any] | None) -> list[str]:
    """The image sets that a chapter's claims need, and those that its reference run was measured on."""
    needed = {name for claim in claims if claim.needs for name in claim.needs.data}
    measured = reference["provenance"].get("data", {}) if reference is not None else {}
    return sorted(needed | {name.partition(" (")[0] for name in measured})


def how_to_run(paper: str, reference: Mapping[str, Any] | None, claimed: Sequence[Claim] = ()) -> str:
    """Which commands run the chapter, and how long that takes as far as anybody has measured it, as HTML.

    claimed: the chapter's claims, which need image sets.
    """
    command = f"reprolib run {html.escape(paper)} --profile"
    text = (
        f"<code>{command} gpu --device cuda --data ROOT</code> runs the chapter in full on your GPU and makes its "
        f"records, <code>{command} cpu</code> small on a laptop, in minutes. A GPU needs a CUDA build of PyTorch; "
        f"ROOT is the folder of the papers' image sets{_named(sets_needed(claimed, reference))}. "
        f'<a href="{HOW}">How to read</a> says how to set up both. '
    )
    if reference is None:
        return text + "How long the full run takes nobody has measured yet."
    made = html.escape(reference_run.made_on(reference))
    if reference["provenance"]["device"].startswith("cuda"):
        return text + f"Expect for the whole chapter what the {reference_run.name(reference)} took: {made}."
    return text + (
        f"For the whole chapter the {reference_run.name(reference)} took {made}; on a GPU it has not been timed."
    )


def _named(needed: Sequence[str]) -> str:
    names = ", ".join(f"<code>{html.escape(name)}</code>" for name in needed)
    return f" (this chapter's: {names}; claims about one that is not there stay undecided)" if names else ""


_COLUMNS = ("claim", "published", "measured", "verdict")


def _row(verdict: Verdict) -> str:
    # where it is not decided, the reason in a word stands in the row; the sentence is a click away
    word = f"{SYMBOLS[verdict.verdict]} {verdict.verdict}" + (f": {verdict.reason}" if verdict.reason else "")
    told = f"<b>{html.escape(word)}</b>"
    if verdict.note:
        told = f"<details><summary>{told}</summary><small>{html.escape(verdict.note)}</small></details>"
    if verdict.beside:
        told += f'<div style="font-size:.9em">{html.escape(verdict.beside)}</div>'
    measured = re.sub(r"\[.*?\]", lambda ends: ends[0].replace(" ", "\N{NO-BREAK SPACE}"), verdict.measured())
    published = verdict.published if verdict.origin == "paper" else "this book's own claim"
    texts = (verdict.says, published, measured or "—")
    named = ("", *(f' data-column="{name}"' for name in _COLUMNS[1:3]))  # for narrow screens: the book's style sheet
    cells = [f'<td{name} style="{_CELL}">{html.escape(cell)}</td>' for name, cell in zip(named, texts, strict=True)]
    return (
        f'<tr style="border-top:1px solid rgba(128,128,128,.4)">{"".join(cells)}'
        f'<td data-column="{_COLUMNS[3]}" style="{_CELL};min-width:11rem">{told}</td></tr>'
    )


def _picture(name: str, reference: Mapping[str, Any], folder: Path) -> str:
    kept = checked.kept_picture(reference["figures"], folder, name)
    if kept is None:
        return ""
    content, caption = kept
    return figures.captioned(
        figures.picture(content, caption), f"{html.escape(caption)} <i>(from the {reference_run.name(reference)})</i>"
    )
