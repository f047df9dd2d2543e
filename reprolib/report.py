"""The results for readers: the book's generated pages, and one HTML file to send by mail.

Both read `claims/*.yml`, the committed reference run `results/reference/<paper>/<paper>.json` and this run
`results/runs/<profile>/<paper>.json`; nothing is measured or judged here. A file that is missing or damaged becomes a
line in the place where its content would stand.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docutils.nodes import make_id
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reprolib import claims, results
from reprolib.atomic import write_atomic
from reprolib.runner import Chapter

REPORT_LIMIT = 5_000_000
"""Bytes of the report: most mail servers let an attachment of this size pass."""

CLASSES = {
    "reproduced": "reproduced",
    "partly": "partly",
    "not reproduced": "not-reproduced",
    "not decided here": "undecided",
}
"""Verdict -> class in book/_static/leaky.css, in the order in which the tables count them."""


def write_pages(root: str | os.PathLike) -> None:
    """Write what the book includes: book/_generated/*.md, and a placeholder for each chapter that has not been run.

    root: the repository. Files are replaced in one step, and only when their content changes, so that Sphinx rebuilds
    no page without need. Raises ValueError where `root` holds no book, OSError where it cannot be written to.
    """
    root = Path(root)
    papers = _papers(root)
    generated = root / "book" / "_generated"
    for name in ("picture", "summary", "scoreboard"):
        template = _TEMPLATES.from_string(globals()[f"_{name.upper()}"])
        text = template.render(papers=papers, pictures=_pictures(papers), totals=_totals(papers))
        _write(generated / f"{name}.md", text)
    for paper in papers:
        if paper.stem is None:
            continue
        placeholder = root / "book" / "chapters" / f"{paper.stem}.md"
        if paper.has_page:
            placeholder.unlink(missing_ok=True)  # Sphinx takes one source a page
        else:
            _write(placeholder, _TEMPLATES.from_string(_PLACEHOLDER).render(paper=paper))


def write_report(root: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write one self-contained HTML file: scoreboard, figures, provenance, how to read verdicts.

    root: the repository; out: the file, replaced in one step. It needs no script and no network, and stays below
    `REPORT_LIMIT` bytes: figures that do not fit are named instead of shown.
    Raises ValueError where `root` holds no book or `out` is a folder, OSError where it cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out={str(out)!r} is a folder: name a file in it, for example {out.name}/report.html")
    papers = _papers(Path(root))
    template, totals = _TEMPLATES.from_string(_REPORT), _totals(papers)
    everything = {paper.key: [*paper.reference.figures, *paper.run.figures] for paper in papers}
    bare = template.render(papers=papers, totals=totals, figures={}, left_out=everything)
    figures = _chosen(papers, REPORT_LIMIT - len(bare.encode()))
    left_out = {key: [figure for figure in every if figure not in figures[key]] for key, every in everything.items()}
    text = template.render(papers=papers, totals=totals, figures=figures, left_out=left_out)
    write_atomic(out, text.encode())


def _chosen(papers: list[Paper], room: int) -> dict[str, list[Figure]]:
    """The figures of each paper that fit into `room` bytes together.

    The papers take turns, each with its next figure in the order of its chapter, so that the first ones of every
    chapter are there. What was measured at full size comes first: where a paper has figures of a reference run, those
    of the other run wait until no paper has any of the former left.
    """
    chosen: dict[str, list[Figure]] = {paper.key: [] for paper in papers}
    first = [paper.reference.figures or paper.run.figures for paper in papers]
    second = [paper.run.figures if paper.reference.figures else () for paper in papers]
    for turn in itertools.chain(itertools.zip_longest(*first), itertools.zip_longest(*second)):
        for paper, figure in zip(papers, turn, strict=True):
            if figure is not None and figure.size <= room:
                chosen[paper.key].append(figure)
                room -= figure.size
    return chosen


# --- what is known of a paper -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A saved picture of a run. path: the PNG file."""

    path: Path
    caption: str
    run: str

    @property
    def source(self) -> str:
        return f"data:image/png;base64,{b64encode(self.path.read_bytes()).decode()}"

    @property
    def size(self) -> int:
        """Bytes that it takes in the report, where its caption stands twice: below it, and for who cannot see it."""
        return len(self.source) + 2 * len(Markup.escape(self.caption).encode()) + 200


@dataclass(frozen=True)
class Run:
    """What a run says of a paper's claims. title: how tables call it; record: its results file, None without one."""

    title: str
    record: Mapping[str, Any] | None = None
    figures: tuple[Figure, ...] = ()
    problems: tuple[str, ...] = ()

    def cell(self, claim: claims.Claim) -> dict[str, str] | None:
        """Measured value, verdict and reason of a claim; None where this run knows nothing of it."""
        if self.record is None:
            return None
        stored = next((entry for entry in self.record["verdicts"] if entry["id"] == claim.id), None)
        if stored is None:
            return None
        criterion = claim.criterion
        now = (criterion.measure, criterion.words(claim.published.percent)) if criterion else (None, None)
        if (stored["measure"], stored["criterion"]) != now:
            then = f"{stored['measure']}: {stored['criterion']}" if stored["measure"] else "none"
            reason = f"judged by another criterion ({then}); run the chapter again"
            return {"measured": stored["measured"] or "", "verdict": "not decided here", "reason": reason}
        return {"measured": stored["measured"] or "", "verdict": stored["verdict"], "reason": stored["reason"]}

    def counts(self, all_claims: tuple[claims.Claim, ...], origin: str) -> dict[str, int]:
        """Verdict -> number of claims of this origin, "paper" or "book"; without the verdicts that none has."""
        cells = (self.cell(claim) for claim in all_claims if claim.origin == origin)
        return _in_order(Counter(cell["verdict"] for cell in cells if cell is not None))

    @property
    def provenance(self) -> str:
        """Profile, device, seed, time and commit in one line."""
        if self.record is None:
            return "none"
        made = self.record["provenance"]
        parts = [
            f"profile {self.record['profile']}",
            f"{made['device']}",
            f"seed {made['seed']}",
            f"{made['seconds']:.0f} s" if made.get("seconds") is not None else "",
            f"images {', '.join(made['data']) or 'none'}",
            f"torch {made['versions'].get('torch')}",
            f"commit {made['commit'] or 'unknown'}",
            made["time"][:10],
        ]
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Paper:
    """A paper's claims with the two runs. stem: of the chapter's file, None for claims without a chapter."""

    key: str
    stem: str | None
    title: str
    measures: Mapping[str, str]
    claims: tuple[claims.Claim, ...]
    reference: Run
    run: Run
    has_page: bool
    ledger: str  # id of the section with the ledger on the chapter's page
    stale: str
    problems: list[str]

    @property
    def page(self) -> str | None:
        """Address of the chapter relative to the folder `book`."""
        return f"chapters/{self.stem}.html" if self.stem else None

    @property
    def page_ledger(self) -> str | None:
        """Address of the chapter's ledger; of the chapter where it has no section for it."""
        return f"{self.page}#{self.ledger}" if self.ledger else self.page

    @property
    def all_problems(self) -> list[str]:
        return [*self.problems, *self.reference.problems, *self.run.problems]


def _in_order(counted: Counter[str]) -> dict[str, int]:
    return {verdict: counted[verdict] for verdict in CLASSES if counted[verdict]}


def _totals(papers: list[Paper]) -> dict[str, dict[str, dict[str, int]]]:
    """Title of a run -> origin of claims -> verdict -> how many over all chapters; without runs that have none."""
    found = {}
    for runs in ([paper.reference for paper in papers], [paper.run for paper in papers]):
        counted = {"paper": Counter(), "book": Counter()}
        for paper, run in zip(papers, runs, strict=True):
            for origin, counter in counted.items():
                counter.update(run.counts(paper.claims, origin))
        if any(counted.values()):
            found[runs[0].title] = {origin: _in_order(counter) for origin, counter in counted.items()}
    return found


def _papers(root: Path) -> list[Paper]:
    """The papers in the order of the table of contents, then any further claims."""
    toc = root / "_toc.yml"
    if not toc.is_file() or not (root / "claims").is_dir():
        raise ValueError(f"root={str(root)!r} holds no book: _toc.yml and the folder claims are expected there")
    stems = re.findall(r"book/chapters/([\w.-]+)", yaml.dump(yaml.safe_load(toc.read_text(encoding="utf-8"))))
    stems = sorted(dict.fromkeys(Path(stem).stem if stem.endswith((".ipynb", ".md")) else stem for stem in stems))
    by_key = {Chapter(root, stem).paper: stem for stem in stems}
    keys = [*by_key, *sorted({path.stem for path in (root / "claims").glob("*.yml")} - by_key.keys())]
    return [_paper(root, key, by_key.get(key)) for key in keys]


def _paper(root: Path, key: str, stem: str | None) -> Paper:
    problems: list[str] = []
    title, measures, entries = stem or key, {}, ()
    try:
        loaded = claims.load(root / "claims" / f"{key}.yml")
        title, measures, entries = loaded.title, loaded.measures, loaded.claims
    except FileNotFoundError:
        problems.append(f"claims/{key}.yml is missing, so there is nothing to judge.")
    except ValueError as error:
        problems.append(str(error))
    page = root / "book" / "chapters" / f"{stem}.ipynb"
    stale, ledger = _page_notes(page) if stem else ("", "")
    return Paper(
        key,
        stem,
        title,
        measures,
        entries,
        _run("reference run", [root / "results" / "reference" / key / f"{key}.json"]),
        _run("this run", [root / "results" / "runs" / profile / f"{key}.json" for profile in claims.PROFILES]),
        stem is not None and page.is_file(),
        ledger,
        stale,
        problems,
    )


def _run(title: str, paths: list[Path]) -> Run:
    """The newest readable record; one of the smoke profile, whose numbers mean nothing, only without another."""
    found, problems = [], []
    for path in paths:
        try:
            record = results.load(path)
            if missing := {"profile", "verdicts", "provenance", "figures"} - record.keys():
                raise ValueError(f"{path.name} lacks {', '.join(sorted(missing))}; run the chapter again")
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            problems.append(f"{title.capitalize()} ({path.parent.name}): {error}")
        else:
            found.append((record["profile"] != "smoke", record["provenance"]["time"], path, record))
    if not found:
        return Run(title, problems=tuple(problems))
    _, _, path, record = max(found, key=lambda entry: entry[:2])
    # A reference run's pictures lie beside its record, another run's in a folder of the paper's name.
    folder = path.parent if path.parent.name == path.stem else path.with_suffix("")
    figures = tuple(
        Figure(folder / entry["file"], entry["caption"], title)
        for entry in record["figures"]
        if entry.get("file") and (folder / entry["file"]).is_file()
    )
    return Run(title, record, figures, tuple(problems))


def _page_notes(page: Path) -> tuple[str, str]:
    """Why a chapter's page is out of date ("" where it is not), and the id of its section with the ledger."""
    try:
        notebook = json.loads(page.read_bytes())
    except FileNotFoundError:
        return "", ""
    except ValueError:
        return f"book/chapters/{page.name} is not a complete notebook: delete it and run the chapter again", ""
    stale = notebook["metadata"].get("reprolib", {}).get("stale")
    texts = ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    headings = [match[1] for text in texts for match in re.finditer(r"^##+ (.+)$", text, re.MULTILINE)]
    ledger = next((make_id(heading) for heading in headings if "ledger" in heading.lower()), "")
    return (f"last run failed: {stale['reason']}" if stale else ""), ledger


FIRST_PAGE = {"strip": claims.PROFILES, "every-attack": ("gpu", "paper")}
"""Figures for the first page, and the profiles whose figure may stand there: a reconstruction over the iterations, and
all attacks on the same images, which a run of a few iterations would show unfinished, not as strong as they are."""


def _pictures(papers: list[Paper]) -> list[Figure]:
    """The figures of the first page, as far as there are any: of the reference run where it has one."""
    runs = [paper.reference for paper in papers] + [paper.run for paper in papers]
    found = []
    for name, profiles in FIRST_PAGE.items():
        fitting = (run for run in runs if run.record is not None and run.record["profile"] in profiles)
        figures = (figure for run in fitting for figure in run.figures if figure.path.stem == name)
        found += itertools.islice(figures, 1)
    return found


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text.encode())


# --- templates --------------------------------------------------------------------------------------------------------


def _badge(verdict: str, count: int | None = None) -> Markup:
    word = verdict if count is None else f"{count} {verdict}"
    return Markup('<span class="verdict {}">{} {}</span>').format(CLASSES[verdict], claims.SYMBOLS[verdict], word)


def _linked(text: str, address: str | None) -> Markup:
    return Markup('<a href="{}">{}</a>').format(address, _in_raw(text)) if address else _in_raw(text)


def _markdown(text: str) -> Markup:
    """Text as Markdown shows it literally, on one line: a caption may hold what looks like markup."""
    return Markup(re.sub(r"([\\`*_{}\[\]()<>#+\-.!|$~:^])", r"\\\1", " ".join(text.split())))


def _in_raw(text: str) -> Markup:
    """Text inside a raw block of Markdown: escaped, and without what would end the block."""
    return Markup(str(Markup.escape(" ".join(text.split()))).replace("`", "&#96;"))


def _root_path(path: Path) -> str:
    """A picture's address from the book's root, as Sphinx reads it."""
    parts = path.parts
    return "/" + "/".join(parts[len(parts) - 1 - parts[::-1].index("results") :])


_NOTES = {"recalled": "recalled, unverified", "plot": "off the plot"}

_TEMPLATES = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_TEMPLATES.globals |= {"badge": _badge, "linked": _linked, "NOTES": _NOTES}
_TEMPLATES.filters |= {"markdown": _markdown, "raw_text": _in_raw, "root_path": _root_path}

_PICTURE = """\
{% for picture in pictures %}
```{figure} {{ picture.path | root_path }}
:alt: {{ picture.caption | tojson }}

{{ picture.caption | markdown }} ({{ picture.run }})
```
{% else %}
<!-- No run has a strip of a reconstruction yet. -->
{% endfor %}
"""

_COUNTS = """\
{% macro listed(counts) %}
{% for verdict, count in counts.items() %}{{ count }} {{ verdict }}{{ "" if loop.last else ", " }}{% endfor %}
{% endmacro %}
{% macro counts(run, claims) %}
{% set papers_claims, own = run.counts(claims, "paper"), run.counts(claims, "book") %}
<div>
{% for verdict, count in papers_claims.items() %}
{{ badge(verdict, count) }}
{% endfor %}
{% if own %}
<div class="note">the book's own: {{ listed(own) }}</div>
{% elif not papers_claims %}
none yet
{% endif %}
</div>
{% endmacro %}
{% macro how_many(claims) %}
{% set own = claims | selectattr("origin", "equalto", "book") | list | length %}
<div>{{ claims | length - own }}
{% if own %}
<div class="note">and {{ own }} of the book's own</div>
{% endif %}
</div>
{% endmacro %}
{% macro totals_of(totals) %}
{% for run, by_origin in totals.items() %}
<p class="totals">{{ run | capitalize }}, all chapters. The papers' {{ by_origin.paper.values() | sum }} claims:
<b>{{ listed(by_origin.paper) }}</b>; the book's own {{ by_origin.book.values() | sum }}:
{{ listed(by_origin.book) }}.</p>
{% endfor %}
{% endmacro %}
"""

_SUMMARY = (
    _COUNTS
    + """\
`````{raw} html
{{ totals_of(totals) }}
<table class="ledger cards">
<thead><tr><th>chapter</th><th>papers' claims</th><th>reference run</th><th>this run</th></tr></thead>
<tbody>
{% for paper in papers %}
<tr><td>{{ linked(paper.title, paper.page) }}
{% if paper.page and not paper.has_page %}
<div class="note">not run here yet</div>
{% endif %}
{% if paper.stale %}
<div class="note">out of date: {{ paper.stale | raw_text }}</div>
{% endif %}
</td>
<td data-column="papers' claims" class="number">{{ how_many(paper.claims) }}</td>
<td data-column="reference run">{{ counts(paper.reference, paper.claims) }}</td>
<td data-column="this run">{{ counts(paper.run, paper.claims) }}</td></tr>
{% else %}
<tr><td colspan="4">There are no claims yet.</td></tr>
{% endfor %}
</tbody></table>
`````
"""
)

_LEDGER = """\
{% macro result(claim, run) %}
{% set cell = run.cell(claim) %}
{% if cell %}
<div>{{ badge(cell.verdict) }}
{% if cell.measured %}
<div class="measured">{{ cell.measured | raw_text }}</div>
{% endif %}
{% if cell.reason %}
<div class="note">{{ cell.reason | raw_text }}</div>
{% endif %}
</div>
{% elif run.record %}
<span class="note">not in this run's ledger; run the chapter again</span>
{% else %}
<span class="note">none yet</span>
{% endif %}
{% endmacro %}
{% macro problems(paper) %}
{% for problem in paper.all_problems %}
<p class="problem">{{ problem | raw_text }}</p>
{% endfor %}
{% if paper.stale %}
<p class="problem">Out of date: {{ paper.stale | raw_text }}</p>
{% endif %}
{% endmacro %}
{% macro ledger(paper, link) %}
{% if paper.claims %}
<table class="counts"><tbody>
<tr><th>reference run</th><td>{{ counts(paper.reference, paper.claims) }}</td></tr>
<tr><th>this run</th><td>{{ counts(paper.run, paper.claims) }}</td></tr>
</tbody></table>
<table class="ledger cards">
<thead><tr><th>claim</th><th>published</th><th>reference run</th><th>this run</th></tr></thead>
<tbody>
{% for claim in paper.claims %}
<tr id="{{ paper.key }}-{{ claim.id }}"><td>{{ claim.says | raw_text }}
<div class="where">{{ claim.where | raw_text if claim.origin == "paper" else "this book" }} ·
{{ linked(claim.id, link) }}</div>
<div class="where">
{% if claim.criterion %}
criterion: {{ paper.measures[claim.criterion.measure] | raw_text }}:
{{ claim.criterion.words(claim.published.percent) | raw_text }}
{% else %}
no criterion
{% endif %}
</div></td>
<td data-column="published"><div{% if claim.provenance == "recalled" %} class="recalled"{% endif %}>
{{ claim.published | string | raw_text }}
{% if claim.provenance in NOTES %}
<div class="note">{{ NOTES[claim.provenance] }}</div>
{% endif %}
</div></td>
<td data-column="reference run">{{ result(claim, paper.reference) }}</td>
<td data-column="this run">{{ result(claim, paper.run) }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
<p class="provenance">Reference run: {{ paper.reference.provenance | raw_text }}.<br>
This run: {{ paper.run.provenance | raw_text }}.</p>
{% endmacro %}
"""

_SCOREBOARD = (
    _COUNTS
    + _LEDGER
    + """\
{% for paper in papers %}
## {{ paper.title | markdown }}

`````{raw} html
{{ problems(paper) }}
{{ ledger(paper, paper.page_ledger) }}
`````

{% else %}
There are no claims yet: `claims/` holds no file.
{% endfor %}
"""
)

_PLACEHOLDER = """\
# {{ paper.title | markdown }}

:::{admonition} This chapter has not been run here
:class: warning

Its page appears once the notebook has been executed. In a clone of the repository:

    reprolib run {{ paper.stem }} --profile cpu
    jupyter-book build .

or `make book`, which runs every chapter that is missing. The notebook is `notebooks/{{ paper.stem }}.ipynb`.
:::

The [scoreboard](../scoreboard.md) has its claims, with what the reference run measured.
"""

_REPORT = (
    _COUNTS
    + _LEDGER
    + """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Leaky Gradients: report</title>
<style>
:root { --text: #1d2329; --back: #fff; --line: #d5dae0; --grey: #525a63; --blue: #0b5a94; --blue-soft: #e3f0fa;
  --amber: #7a4a00; --amber-soft: #fdf0d2; --red: #9b2c12; --red-soft: #fbe5de; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --text: #dfe4ea; --back: #14181c; --line: #424a53; --grey: #b4bcc6; --blue: #8cc8f5; --blue-soft: #12324a;
    --amber: #f3c566; --amber-soft: #43310b; --red: #f5a48d; --red-soft: #4a2016; }
}
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { margin: 2.6rem 0 .6rem; }
a { color: var(--blue); }
table { border-collapse: collapse; width: 100%; margin: .7rem 0; font-size: .92rem; line-height: 1.45; }
th, td { border-bottom: 1px solid var(--line); padding: .45rem .6rem; text-align: left; vertical-align: top; }
thead th { border-bottom-width: 2px; }
.ledger th:first-child { width: 38%; }
.counts { width: auto; }
.counts th, .counts td { border: 0; padding: .15rem .8rem .15rem 0; }
.counts th { font-weight: 500; white-space: nowrap; }
.where, .note, .provenance, figcaption, .recalled { color: var(--grey); font-size: .9em; }
.recalled { font-style: italic; }
.measured { font-variant-numeric: tabular-nums; }
.verdict { display: inline-block; padding: 0 .6em; border: 1px solid currentcolor; border-radius: 1em; font-size: .9em;
  font-weight: 600; white-space: nowrap; }
.verdict.reproduced { color: var(--blue); background: var(--blue-soft); }
.verdict.partly { color: var(--amber); background: var(--amber-soft); }
.verdict.not-reproduced { color: var(--red); background: var(--red-soft); }
.verdict.undecided { color: var(--grey); border-style: dashed; font-weight: 500; }
.problem { border-left: .3rem solid var(--red); background: var(--red-soft); padding: .5rem .8rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; box-sizing: border-box; max-width: 100%; height: auto; padding: .3rem;
  border-radius: .3rem; background: #fff; }
@media (max-width: 640px) {
  table.cards thead { display: none; }
  table.cards, table.cards tbody { display: block; }
  table.cards tr { display: block; margin-bottom: .8rem; padding: .4rem 0; border: 1px solid var(--line);
    border-radius: .5rem; }
  table.cards td { display: flex; gap: .8rem; border: 0; padding: .2rem .6rem; }
  table.cards td:not([data-column]) { display: block; }
  table.cards td[data-column]::before { content: attr(data-column); flex: 0 0 6.2rem; color: var(--grey);
    font-size: .9em; }
}
@media print { body { max-width: none; } tr, figure { break-inside: avoid; } }
</style>
</head>
<body>
<h1>Leaky Gradients</h1>
<p>The gradient-inversion papers, re-run and judged: the results in one file. Each claim has a criterion, fixed before
the run that judges it (the book's page <em>How to read and rerun</em> lists the exceptions); a verdict compares the
95&nbsp;% interval of what was measured with it. Coloured labels count the claims of the papers; the book's own
(controls, attackers who know a defense, steps of an argument) are counted beside them.</p>

{{ totals_of(totals) }}
<table class="cards">
<thead><tr><th>paper</th><th>papers' claims</th><th>reference run</th><th>this run</th></tr></thead>
<tbody>
{% for paper in papers %}
<tr><td><a href="#{{ paper.key }}">{{ paper.title }}</a></td>
<td data-column="papers' claims">{{ how_many(paper.claims) }}</td>
<td data-column="reference run">{{ counts(paper.reference, paper.claims) }}</td>
<td data-column="this run">{{ counts(paper.run, paper.claims) }}</td></tr>
{% else %}
<tr><td colspan="4">There are no claims yet: the folder claims holds no file.</td></tr>
{% endfor %}
</tbody></table>

<h2>How to read a verdict</h2>
<table>
<tbody>
<tr><td>{{ badge("reproduced") }}</td><td>The whole interval satisfies the criterion.</td></tr>
<tr><td>{{ badge("partly") }}</td><td>Part of the interval satisfies it.</td></tr>
<tr><td>{{ badge("not reproduced") }}</td><td>No part of the interval satisfies it.</td></tr>
<tr><td>{{ badge("not decided here") }}</td><td>The run cannot judge the claim; the reason stands beside it.</td></tr>
</tbody></table>
<p>The <em>reference run</em> uses the papers' data and large sizes; <em>this run</em> is the one on the machine that
wrote this file, where other images may stand in for a paper's. A published value in
<span class="recalled">grey italics</span> could not be checked against its source; no verdict rests on it.</p>

{% for paper in papers %}
<h2 id="{{ paper.key }}">{{ paper.title }}</h2>
{{ problems(paper) }}
{{ ledger(paper, none) }}
{% for figure in figures.get(paper.key, []) %}
<figure><img src="{{ figure.source }}" alt="{{ figure.caption }}">
<figcaption>{{ figure.caption }} ({{ figure.run }})</figcaption></figure>
{% endfor %}
{% if left_out.get(paper.key) %}
<p class="note">Left out to keep this file small, but shown in the book:
{% for figure in left_out[paper.key] %}
{{ figure.path.stem }} ({{ figure.run }}){{ "," if not loop.last else "." }}
{% endfor %}
</p>
{% endif %}
{% endfor %}
</body>
</html>
"""
)
