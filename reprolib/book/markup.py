"""The HTML of a chapter's page that reads in light and dark, in Jupyter and in the book: boxes, tables, provenance."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reprolib.book import results
from reprolib.book.numbers import digits
from reprolib.book.verdicts import SYMBOLS, Verdict, once, value_words
from reprolib.measure.intervals import Interval


def box(title: str, body: str, colour: str = "rgba(128,128,128,.8)", anchor: str = "") -> str:
    """A box with a title, which is text, over HTML. anchor: a name that links can lead to."""
    name = f' id="{anchor}"' if anchor else ""
    return (
        f'<div role="note"{name} style="border:1px solid rgba(128,128,128,.5);border-left:.35rem solid {colour};'
        f'border-radius:.3rem;background:rgba(128,128,128,.08);padding:.6rem .9rem;margin:1rem 0">'
        f"<b>{html.escape(title)}</b><br>{body}</div>"
    )


def stand_in(asked: str, images: Any, recorded: bool) -> str:
    """The box that says which images stand in for those asked for. recorded: they did in the reference run already."""
    name, here, source = html.escape(asked), html.escape(images.name), html.escape(images.source)
    undecided = f"Claims that need {name} are <i>not decided here</i>."
    text = (
        f"The paper's <b>{name}</b> is not here, so <b>{here}</b> stands in: {source} {undecided} To use your "
        f"own copy, set <code>data_root</code> or <code>REPROLIB_DATA</code>."
    )
    if recorded:
        text = f"The reference run had no <b>{name}</b>: <b>{here}</b> stands in. {source} {undecided}"
    return box("⚠ Substitute data", text, "#D55E00")


def in_a_minute(verdicts: list[Verdict], made: str) -> str:
    """How the reference run judged the papers' claims, and below them the book's own; unfolded, which and by what."""
    lines = [f"{html.escape(made)}."]
    for origin, whose in (("paper", "The papers' claims"), ("book", "This book's own claims")):
        own = [verdict for verdict in once(verdicts) if verdict.origin == origin and verdict.kind != "setting"]
        if own:
            lines.append(f"<div style='margin-top:.4rem'>{whose}, {len(own)}:</div>")
        for word, symbol in SYMBOLS.items():
            items = [_in_short(verdict) for verdict in own if verdict.verdict == word]
            if items:
                title = f"{symbol} <b>{word}: {len(items)}</b>"
                lines.append(fold(title, f"<ul>{''.join(items)}</ul>"))
    return "".join(lines)


def _in_short(verdict: Verdict) -> str:
    """A claim as an item of a list, with what was published and measured."""
    sides = [f"published: {verdict.published}"] if verdict.origin == "paper" else []
    measured = verdict.measured()
    sides += [f"measured: {measured}"] if measured else []
    sides += [*filter(None, [verdict.note, verdict.beside])]
    return f"<li>{html.escape(verdict.says)} <small>({html.escape('; '.join(sides))})</small></li>"


def fold(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"


METRICS = {
    "mse": "MSE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "psnr_whole": "batch PSNR",
    "psnr_dim0": "released code's PSNR",
}
"""How columns that the library names so are headed on a page."""


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table's headings and cells as text; columns `low` and `high` join the one before them."""
    shown = pd.DataFrame({str(c): [words(v) for v in table[c]] for c in table.columns})
    if "low" in shown and "high" in shown:
        value = shown.columns[shown.columns.get_loc("low") - 1]
        shown[value] += " [" + shown.pop("low") + ", " + shown.pop("high") + "]"
    return shown.rename(columns=lambda name: METRICS.get(name, name.replace("_", " ")))


def table(shown: pd.DataFrame, number: int, caption: str, folded: str, note: str, anchors: Sequence[str] = ()) -> str:
    label = html.escape(f"Table {number}. {caption}")
    body = shown.to_html(index=False, border=0, classes="dataframe", justify="left")
    body = body.replace("<th>", '<th scope="col">')
    for anchor in anchors:  # row by row: the heading's is none of these, its class stands in it
        body = body.replace("<tr>", f'<tr id="{html.escape(anchor, quote=True)}">', 1)
    body = f'<div style="overflow-x:auto;font-size:.85rem" tabindex="0" role="region" aria-label="{label}">{body}</div>'
    if folded:
        body = fold(html.escape(folded), body)
    return (
        f'<figure style="margin:1rem 0"><figcaption style="margin-bottom:.3rem"><b>Table {number}.</b> '
        f"{html.escape(caption)} {note}</figcaption>{body}</figure>"
    )


def words(value: Any) -> str:
    """A cell of a table: numbers to three digits, intervals with their ends, lists within a list in parentheses."""
    if isinstance(value, Interval):
        return value_words(value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "—"
    if isinstance(value, float | np.floating):
        return "∞" if value == np.inf else digits(float(value))
    if isinstance(value, list | tuple):
        return ", ".join(f"({words(item)})" if isinstance(item, list | tuple) else words(item) for item in value)
    return str(value)


def provenance(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items() if number)
    marks = {html.escape(name): html.escape(str(mark)) for name, mark in record["data"].items()}
    images = ", ".join(f"{name} <code>{mark}</code>" for name, mark in marks.items()) or "none"
    lines = [
        f"seed {record['seed']}, {results.duration(record['seconds'])} on {record['device']}, "
        f"{record['threads']} threads, {record['platform']}",
        f"Python {record['python']}, {versions}",
        f"commit {record['commit'] or 'unknown'}, {record['time']}",
    ]
    seed, python, commit = map(html.escape, lines)
    return "<br>".join([seed, python, f"images: {images}", commit])
