"""The results for readers: the book's generated pages, and one HTML file to send by mail.

Both read `claims/*.yml`, the committed reference run `results/reference/<paper>/<paper>.json` and this run
`results/runs/<profile>/<paper>.json`. Verdicts are drawn from the measures that these files hold, with the claims as
they are now; nothing is measured here, and a stored verdict is not read. A file that is missing, damaged or of another
schema becomes a line in the place where its content would stand.
"""

from __future__ import annotations

import itertools
import os
import re
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from torch import Tensor

from reprolib.atomic import write_atomic
from reprolib.book import audit, checked, claims, criteria, figures, matrix, notebooks, records
from reprolib.book.judged import Counts, Figure, Paper, read_papers
from reprolib.book.rendering import TEMPLATES
from reprolib.book.verdicts import once
from reprolib.book.wording import WHOSE

REPORT_LIMIT = 5_000_000
"""Bytes of the report: most mail servers let an attachment of this size pass."""


def write_pages(root: str | os.PathLike) -> list[str]:
    """Write what the book includes: book/_generated/*.md, and a placeholder for each chapter without a page.

    root: the repository. Files are replaced in one step, and only when their content changes, so that Sphinx rebuilds
    no page without need. Returns the pages that are no notebooks, by their paths from `root`: the site is built without
    them. Raises ValueError where `root` holds no book, OSError where it cannot be written to.
    """
    root = Path(root)
    papers = read_papers(root)
    attacks = _attacks(root, papers)
    drawn = dumbbells(root, attacks)
    content = {"papers": papers, "pictures": _pictures(papers), "totals": _totals(papers), "board": _board(papers)}
    content |= {"attacks": attacks, "drawn": drawn, "address": notebooks.address_of(root)[0]}
    read = audit.load(root / "book" / "changed-verdicts.yml")
    content |= {"audited": audit.today(read, {paper.key: paper for paper in papers}), "rules": read.rules}
    generated = root / "book" / "_generated"
    for name in _PAGES:
        _write(
            generated / f"{name}.md", TEMPLATES.get_template(f"{name}.md.j2").render(content).encode(errors="replace")
        )
    if drawn is not None:
        _write(generated / "dumbbells.png", drawn.png)
    for paper in papers:
        if paper.stem is None:
            continue
        placeholder = root / "book" / "chapters" / f"{paper.stem}.md"
        if paper.has_page:
            placeholder.unlink(missing_ok=True)  # Sphinx takes one source a page
        else:
            text = TEMPLATES.get_template("placeholder.md.j2").render(paper=paper)
            _write(placeholder, text.encode(errors="replace"))
    pages = [f"book/chapters/{paper.stem}.ipynb" for paper in papers if paper.stem and not paper.has_page]
    return [page for page in pages if (root / page).exists()]


def write_report(root: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write one self-contained HTML file: scoreboard, figures, provenance, how to read verdicts.

    root: the repository; out: the file, replaced in one step. It needs no script and no network, and stays below
    `REPORT_LIMIT` bytes: figures that do not fit are named instead of shown.
    Raises ValueError where `root` holds no book or `out` is a folder, OSError where it cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out={str(out)!r} is a folder: name a file in it, for example {out.name}/report.html")
    papers = read_papers(Path(root))
    template, attacks = TEMPLATES.get_template("report.html.j2"), _attacks(Path(root), papers)
    content = {
        "papers": papers,
        "totals": _totals(papers),
        "board": _board(papers),
        "drawn": dumbbells(Path(root), attacks),
    }
    everything = {paper.key: [*paper.reference.figures, *paper.further_figures] for paper in papers}
    bare = template.render(content, figures={}, left_out=everything)
    chosen = _chosen(papers, REPORT_LIMIT - len(bare.encode()))
    left_out = {key: [figure for figure in every if figure not in chosen[key]] for key, every in everything.items()}
    text = template.render(content, figures=chosen, left_out=left_out)
    write_atomic(out, text.encode(errors="replace"))


def _chosen(papers: list[Paper], room: int) -> dict[str, list[Figure]]:
    """The figures of each paper that fit into `room` bytes together.

    The papers take turns, each with its next figure in the order of its chapter, so that the first ones of every
    chapter are there. Where a paper has figures of a reference run, those of the other run wait until no paper has any
    of the former left.
    """
    chosen: dict[str, list[Figure]] = {paper.key: [] for paper in papers}
    first = [paper.reference.figures or paper.further_figures for paper in papers]
    second = [paper.further_figures if paper.reference.figures else () for paper in papers]
    for turn in itertools.chain(itertools.zip_longest(*first), itertools.zip_longest(*second)):
        for paper, figure in zip(papers, turn, strict=True):
            if figure is not None and figure.size <= room:
                chosen[paper.key].append(figure)
                room -= figure.size
    return chosen


def _board(papers: list[Paper]) -> list[tuple[Paper, claims.Claim]]:
    """Every claim of every paper: the papers' before the book's own, failures first, chapter by chapter."""
    known = [paper for paper in papers if paper.claims]
    rows = [(paper, claim) for origin in WHOSE for paper in known for claim in paper.ordered(origin)]
    return sorted(rows, key=lambda row: (list(WHOSE).index(row[1].origin), row[0].place(row[1])))


@dataclass(frozen=True)
class Met:
    """An attack of the matrix with its rows. paper: the chapter that measures it."""

    attack: matrix.Attack
    paper: Paper
    rows: list[matrix.Row]

    @property
    def control(self) -> checked.Measured | None:
        """What the attack reaches without a defense."""
        stored = self.paper.reference.stored
        return stored.measures.get(self.attack.control or "") if stored else None

    @property
    def against(self) -> str:
        """The attack in a sentence, and whether its numbers may stand: "GGL (an older run, provisional)"."""
        named = self.attack.against or self.attack.name
        return f"{named} (an older run, provisional)" if self.older else named

    @property
    def older(self) -> bool:
        """Whether the numbers come from a run without records, which the chapter is to replace."""
        return self.paper.reference.stored is not None and not self.paper.reference.recorded

    def of(self, defense: str) -> list[matrix.Row]:
        return [row for row in self.rows if row.level.defense == defense]


def _attacks(root: Path, papers: list[Paper]) -> list[Met]:
    """The matrix, as far as its chapters are in the book. Raises ValueError for a file that is none."""
    by_key, found = {paper.key: paper for paper in papers}, []
    for attack in matrix.load(root / "book" / "matrix.yml"):
        if attack.paper in by_key:
            paper = by_key[attack.paper]
            measures = paper.reference.stored.measures if paper.reference.stored else {}
            verdicts = paper.reference.verdicts or {}
            found.append(Met(attack, paper, matrix.rows(attack, paper.claims, measures, verdicts)))
    return found


@dataclass(frozen=True)
class Drawn:
    """The dumbbells, with the sentence that they show. attack: which they are of. run: of which run they are."""

    png: bytes
    sentence: str
    attack: str
    run: str

    @property
    def source(self) -> str:
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


def _pair(root: Path, pair: matrix.Pair | None) -> dict[str, Tensor]:
    """An image and what the two attackers see of it, by what each shows; nothing where a record is missing."""
    if pair is None:
        return {}
    folder = root / "results" / "reference" / pair.paper / "records"
    try:
        static, adaptive = (records.load(folder / f"{name}.json").value for name in (pair.static, pair.adaptive))
        both = static["shown"][0], adaptive["shown"][0]
    except (ValueError, OSError, LookupError):
        return {}
    texts = (f"a client's image; {pair.says}", "who ignores it sees this", "who knows it, this")
    return dict(zip(texts, (static["truth"][0], *both), strict=True))


def dumbbells(root: Path, attacks: list[Met]) -> Drawn | None:
    """Each defense from the attacker who ignores it to the one who knows it; None where nothing was measured."""
    for met in attacks:
        table = matrix.table(met.rows)
        if met.attack.figure and len(table):
            with mpl.rc_context():
                figures.style()
                pictures = _pair(root, met.attack.pair)
                chart = figures.dumbbells(table, matrix.BROKEN, matrix.PROTECTED, pictures, met.against)
                drawn = figures.png(chart)
            others = [other.rows for other in attacks if other is not met]
            sentence = matrix.sentence(met.against, met.rows, others)
            run = "older run" if met.older else "reference run"
            return Drawn(drawn, sentence, met.against, f"{run}, {met.paper.reference.made}")
    return None


def _totals(papers: list[Paper]) -> dict[str, dict[str, Counts]]:
    """Title of a run -> origin of claims -> counts over all chapters; without runs that have none.

    A run that only shows the reference run is not counted a second time.
    """
    found = {}
    for runs in (
        [paper.reference for paper in papers],
        [paper.run for paper in papers if not paper.shows_reference],
    ):
        verdicts = [verdict for run in runs for verdict in once((run.verdicts or {}).values())]
        if verdicts:
            found[runs[0].title] = {origin: Counts.of(verdicts, origin) for origin in ("paper", "book")}
    return found


FIRST_PAGE = {"strip": criteria.PROFILES, "every-attack": ("gpu", "paper")}
"""Figures for the first page, and the profiles whose figure may stand there: a reconstruction over the iterations, and
all attacks on the same images, which a run of a few iterations would show unfinished, not as strong as they are."""


def _pictures(papers: list[Paper]) -> list[Figure]:
    """The figures of the first page, as far as there are any: of the reference run where it has one."""
    named = [paper for paper in papers if re.fullmatch(r"[\w.-]+", paper.key)]  # the page names a picture by its path
    runs = [paper.reference for paper in named] + [paper.run for paper in named]
    found: list[Figure] = []
    for name, profiles in FIRST_PAGE.items():
        fitting = (run for run in runs if run.stored is not None and run.stored.profile in profiles)
        figures = (figure for run in fitting for figure in run.figures if figure.path.stem == name)
        found += itertools.islice(figures, 1)
    return found


def _write(path: Path, content: bytes) -> None:
    """Replace a generated file if its content changes. Text is encoded with what is no character replaced."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


_PAGES = (
    "picture",
    "glance",
    "summary",
    "scoreboard",
    "matrix",
    "words",
    "reasons",
    "exceptions",
    "changed",
    "machines",
    "clone",
)
"""The files in book/_generated, each from the template of its name."""
