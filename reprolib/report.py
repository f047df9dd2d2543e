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
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from docutils.nodes import make_id
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from reprolib import checked, claims, ledger, results, runner
from reprolib.atomic import write_atomic
from reprolib.checked import Stored
from reprolib.claims import number_words
from reprolib.verdicts import REASONS, SYMBOLS, UNDECIDED, Verdict, count, count_at_99, once

REPORT_LIMIT = 5_000_000
"""Bytes of the report: most mail servers let an attachment of this size pass."""

REPLAY = runner.PROFILES[0]
"""The profile whose run shows the reference run from its records, and the folder of such runs."""

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


def write_pages(root: str | os.PathLike) -> list[str]:
    """Write what the book includes: book/_generated/*.md, and a placeholder for each chapter without a page.

    root: the repository. Files are replaced in one step, and only when their content changes, so that Sphinx rebuilds
    no page without need. Returns the pages that are no notebooks, by their paths from `root`: the site is built without
    them. Raises ValueError where `root` holds no book, OSError where it cannot be written to.
    """
    root = Path(root)
    papers = _papers(root)
    content = {"papers": papers, "pictures": _pictures(papers), "totals": _totals(papers)}
    generated = root / "book" / "_generated"
    for name, template in _PAGES.items():
        text = _TEMPLATES.from_string(template).render(content)
        _write(generated / f"{name}.md", text)
    for paper in papers:
        if paper.stem is None:
            continue
        placeholder = root / "book" / "chapters" / f"{paper.stem}.md"
        if paper.has_page:
            placeholder.unlink(missing_ok=True)  # Sphinx takes one source a page
        else:
            _write(placeholder, _TEMPLATES.from_string(_PLACEHOLDER).render(paper=paper))
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
    papers = _papers(Path(root))
    template, totals = _TEMPLATES.from_string(_REPORT), _totals(papers)
    everything = {paper.key: [*paper.reference.figures, *paper.further_figures] for paper in papers}
    bare = template.render(papers=papers, totals=totals, figures={}, left_out=everything)
    figures = _chosen(papers, REPORT_LIMIT - len(bare.encode()))
    left_out = {key: [figure for figure in every if figure not in figures[key]] for key, every in everything.items()}
    text = template.render(papers=papers, totals=totals, figures=figures, left_out=left_out)
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


# --- what is known of a paper -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A saved picture of a run. path: the PNG file. run: of which run, and on what it was made."""

    path: Path
    caption: str
    run: str

    @property
    def source(self) -> str:
        return f"data:image/png;base64,{b64encode(self.path.read_bytes()).decode()}"

    @property
    def size(self) -> int:
        """Bytes that it takes in the report, where its caption stands twice: below it, and for who cannot see it."""
        caption, run = (len(Markup.escape(text).encode()) for text in (self.caption, self.run))
        return len(self.source) + 2 * caption + run + 200


@dataclass(frozen=True)
class Counts:
    """How many verdicts of one origin there are of each kind.

    words: verdict -> number, without settings and zeros. reasons: code -> number of undecided ones. Of the decided
    results: how many there are, of one network only, the same at 99 %, and of no known 99 % interval. provisional: of
    all decided.
    """

    words: dict[str, int]
    reasons: dict[str, int]
    decided: int
    network: int
    at_99: int
    unknown_at_99: int
    provisional: int

    @classmethod
    def of(cls, verdicts: Iterable[Verdict], origin: str) -> Counts:
        own = [verdict for verdict in once(verdicts) if verdict.origin == origin]
        reasons = Counter(verdict.reason for verdict in own if verdict.reason)
        judged = [verdict for verdict in own if verdict.kind == "result" and verdict.decided]
        return cls(
            count(own, origin),
            {reason: reasons[reason] for reason in REASONS if reasons[reason]},
            len(judged),
            sum(verdict.scope == "network" for verdict in judged),
            count_at_99(own, origin),
            sum(verdict.stands_at_99 is None for verdict in judged),
            sum(bool(verdict.provisional) for verdict in own),
        )

    @property
    def total(self) -> int:
        return sum(self.words.values())

    def some(self, words: Iterable[str]) -> dict[str, int]:
        return {word: self.words[word] for word in words if word in self.words}

    @property
    def why_open(self) -> str:
        """The undecided ones by reason: "3 data, 1 few"."""
        return ", ".join(f"{number} {reason}" for reason, number in self.reasons.items())

    @property
    def limits(self) -> list[str]:
        """What must be said beside the numbers of decided verdicts, in sentences without a full stop."""
        told = []
        if self.decided:
            of_which = [f"{self.network} on one network only"] * bool(self.network)
            of_which += [f"{self.at_99} the same at 99 %"]
            of_which += [f"{self.unknown_at_99} without a 99 % interval"] * bool(self.unknown_at_99)
            told = [f"of {_many(self.decided, 'decided result')} {', '.join(of_which)}"]
        return [*told, *[f"{self.provisional} provisional"] * bool(self.provisional)]


@dataclass(frozen=True)
class Run:
    """What a run says of a paper's claims.

    title: how tables call it. stored: its results file, None without one. verdicts: claim -> verdict, drawn now.
    replays: whether it shows the reference run from its records.
    """

    title: str
    stored: Stored | None = None
    verdicts: Mapping[str, Verdict] | None = None
    figures: tuple[Figure, ...] = ()
    problems: tuple[str, ...] = ()
    replays: bool = False

    def counts(self, origin: str) -> Counts:
        return Counts.of((self.verdicts or {}).values(), origin)

    @property
    def made(self) -> str:
        """Devices, threads and time: "cpu: AMD EPYC, 1 thread, 1.5 hours"."""
        return _made_on(self.stored)

    @property
    def provenance(self) -> str:
        """What the run was made on and with, in one line."""
        if self.stored is None:
            return "none"
        if self.replays:
            differs = [f"{kind}: {', '.join(names)}" for kind, names in self.stored.state.items() if names]
            return "; ".join(["shows the reference run from its records", *differs])
        made = self.stored.provenance
        sizes = {"this run": f"sizes of the profile {self.stored.profile}"}
        parts = [
            self.made,
            sizes.get(self.title, ""),
            f"seed {made.seed}",
            f"images {', '.join(made.data) or 'none'}",
            f"torch {made.versions.get('torch')}",
            f"commit {self.commits}",
            made.time[:10],
        ]
        return ", ".join(filter(None, parts))

    @property
    def commits(self) -> str:
        made = {part.commit for part in self.stored.records.values()} or {self.stored.provenance.commit}
        return " and ".join(sorted(commit or "unknown" for commit in made))


def _made_on(stored: Stored) -> str:
    """Devices, threads and time of a run; of its parts where it has records, which several machines may have made."""
    made, devices = stored.provenance, Counter()
    for part in stored.records.values():
        devices[part.device] += part.seconds
    named = [device for device, _ in devices.most_common()] or [made.device]
    parts = [" and ".join(named), _many(made.threads, "thread")]
    return ", ".join([*parts, *[results.duration(made.seconds)] * (made.seconds is not None)])


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Change:
    """Claims of a paper whose criterion was set after a measurement, for one reason. state: of their verdicts now."""

    ids: tuple[str, ...]
    changed: claims.Changed
    state: str


@dataclass(frozen=True)
class Paper:
    """A paper's claims with the two runs. stem: of the chapter's file, None for claims without a chapter.

    claims: the file of claims, None where it cannot be read. ledger: id of the section with the ledger on the page.
    """

    key: str
    stem: str | None
    title: str
    claims: claims.Paper | None
    reference: Run
    run: Run
    has_page: bool
    ledger: str
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

    @property
    def shows_reference(self) -> bool:
        """Whether this run says the same as the reference run because it shows it."""
        return self.run.replays and self.run.verdicts == self.reference.verdicts

    @property
    def further_figures(self) -> tuple[Figure, ...]:
        """This run's figures, without those of the reference run that it shows once more."""
        known = {figure.path.name for figure in self.reference.figures} if self.run.replays else ()
        return tuple(figure for figure in self.run.figures if figure.path.name not in known)

    @property
    def numbers(self) -> dict[str, int]:
        """How many claims are the paper's, the book's, and settings; the readings of one statement are one."""
        every = self.claims.claims if self.claims else ()
        named = {(c.reading.of if c.reading else f"claim {c.id}", c.origin) for c in every if c.kind != "setting"}
        judged = Counter(origin for _, origin in named)
        settings = sum(claim.kind == "setting" for claim in every)
        return {"paper": judged["paper"], "book": judged["book"], "settings": settings}

    def ordered(self, origin: str) -> list[claims.Claim]:
        """The claims of an origin, failures of the reference run first (of this run, where there is none), and of a
        verdict the central ones."""
        verdicts = self.reference.verdicts or self.run.verdicts or {}

        def place(claim: claims.Claim) -> tuple[int, int, bool]:
            verdict = verdicts.get(claim.id)
            word, reason = (verdict.verdict, verdict.reason) if verdict else (UNDECIDED, "")
            return FAILURES_FIRST.index(word), REASONS.index(reason) if reason else 0, not claim.central

        return sorted((claim for claim in self.claims.claims if claim.origin == origin), key=place)

    @property
    def finding(self) -> str:
        """The chapter in a sentence, with the reference run's values; "" where there is none, or a value is missing."""
        stored = self.reference.stored
        if self.claims is None or stored is None:
            return ""
        return self.claims.found({name: measure.value for name, measure in stored.measures.items()})

    @property
    def failure(self) -> claims.Claim | None:
        """The first claim of the paper that the reference run contradicts, a central one before others."""
        if self.claims is None:
            return None
        failed = {v.id for v in once((self.reference.verdicts or {}).values()) if v.verdict in FAILURES}
        return next((claim for claim in self.ordered("paper") if claim.id in failed), None)

    @property
    def changes(self) -> list[Change]:
        """Every `changed` entry of the claims, those of equal date, reason and state in one."""
        found: dict[tuple[claims.Changed, str], list[str]] = {}
        for claim in self.claims.claims if self.claims else ():
            if claim.changed is not None:
                found.setdefault((claim.changed, self._state(claim)), []).append(claim.id)
        return [Change(tuple(ids), changed, state) for (changed, state), ids in found.items()]

    def _state(self, claim: claims.Claim) -> str:
        verdict = (self.reference.verdicts or {}).get(claim.id)
        if verdict is None or not verdict.decided:
            return "not decided yet"
        if verdict.provisional:
            return "provisional"
        made = self.reference.stored.provenance
        return f"no longer: decided with seed {made.seed}, {made.time[:10]}"


def criterion_lines(claim: claims.Claim, paper: claims.Paper) -> list[str]:
    """What is asked of which measure, a line for a claim's criterion or for each of its parts; why there is none."""
    if claim.kind == "setting":
        return ["a setting, which is not judged"]
    if claim.undecidable:
        return ["no criterion"]
    names = [f"{part.name}: " for part in claim.parts] or [""]
    return [
        f"{name}{paper.measures[criterion.measure].says}: {criterion.words(claim.published.percent)}"
        for name, criterion in zip(names, claim.criteria, strict=True)
    ]


def measured_lines(verdict: Verdict, percent: bool) -> list[str]:
    """What was measured, a line for the measure or for each part, with what became of the part."""
    if not verdict.parts:
        return [told] if (told := verdict.measured(percent)) else []
    alone = [(part, verdict.model_copy(update={"parts": [part]})) for part in verdict.parts]
    return [f"{PARTS[part.verdict]} {one.measured(percent) or f'{part.name}: —'}" for part, one in alone]


def basis(verdict: Verdict) -> str:
    """The interval's method, and on how much it rests."""
    if verdict.n is None:
        return ""
    method = verdict.method or "of the parts, the least"
    units = "" if verdict.clusters is None or "over" in method else f", {_many(verdict.clusters, 'cluster')}"
    return f"{method}; n = {verdict.n}{units}"


def notes(verdict: Verdict, paper: claims.Paper) -> list[str]:
    """What must be said beside the word: why it is not decided, or what stands in, its control, and its limits."""
    reading = [verdict.read_as] * bool(verdict.reading)
    if verdict.verdict == UNDECIDED:
        return [f"{verdict.reason}: {verdict.why}", *reading]
    if not verdict.decided:
        return []
    told = [f"{other.what}: {other.here} in place of {other.paper}" for other in verdict.substitutes]
    told += [verdict.favours] if verdict.substitutes and verdict.favours else []
    if gate := verdict.gate:
        measure = paper.measures[gate.measure]
        low, asked = (number_words(bound, measure.share) for bound in (gate.low, gate.at_least))
        told.append(f"control: {measure.says}, at its lower end {low}, where {asked} is asked")
    if verdict.kind == "result":
        told += ["on this network, not of others"] if verdict.scope == "network" else []
        told += ["does not stand at 99 %"] if verdict.stands_at_99 is False else []
    return [*told, *reading, *[verdict.provisional] * bool(verdict.provisional)]


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


def _papers(root: Path) -> list[Paper]:
    """The papers in the order of the table of contents, then any further claims."""
    toc = root / "_toc.yml"
    if not toc.is_file() or not (root / "claims").is_dir():
        raise ValueError(f"root={str(root)!r} holds no book: _toc.yml and the folder claims are expected there")
    try:
        contents = yaml.dump(yaml.safe_load(toc.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"_toc.yml is not valid YAML: {' '.join(str(error).split())}") from error
    stems = re.findall(r"book/chapters/([\w.-]+)", contents)
    stems = sorted(dict.fromkeys(Path(stem).stem if stem.endswith((".ipynb", ".md")) else stem for stem in stems))
    by_key = {runner.Chapter(root, stem).paper: stem for stem in stems}
    keys = [*by_key, *sorted({path.stem for path in (root / "claims").glob("*.yml")} - by_key.keys())]
    return [_paper(root, key, by_key.get(key)) for key in keys]


def _paper(root: Path, key: str, stem: str | None) -> Paper:
    problems: list[str] = []
    title, loaded = stem or key, None
    try:
        found = claims.load(root / "claims" / f"{key}.yml")
        if found.paper != key:
            raise ValueError(f"{key}.yml holds the claims of {found.paper!r}: its key paper must be {key!r}")
        title, loaded = found.title, found
    except FileNotFoundError:
        problems.append(f"claims/{key}.yml is missing, so there is nothing to judge.")
    except (ValueError, OSError, RecursionError) as error:
        problems.append(str(error))
    page = root / "book" / "chapters" / f"{stem}.ipynb"
    has_page, stale, heading = _page_notes(page) if stem else (False, "", "")
    folder = root / "results"
    reference = _run("reference run", [folder / "reference" / key / f"{key}.json"], key, loaded)
    run = _run("this run", [folder / "runs" / name / f"{key}.json" for name in runner.PROFILES], key, loaded, reference)
    return Paper(key, stem, title, loaded, reference, run, has_page, heading, stale, problems)


def _run(title: str, paths: list[Path], key: str, paper: claims.Paper | None, reference: Run | None = None) -> Run:
    """The newest readable results; of the smoke profile, whose numbers mean nothing, only without others.

    New is what was written last: the time that a run of records names is that of the records.
    """
    found, problems = [], []
    for path in paths:
        where = f"{title.capitalize()} ({path.parent.name})"
        try:
            stored, payload = checked.read(path, key)
            verdicts = {verdict.id: verdict for verdict in ledger.judge(paper, payload)} if paper else {}
            written = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            problems.append(f"{where}: {error}")
        else:
            found.append((stored.profile != "smoke", written, path, stored, verdicts))
    if not found:
        return Run(title, problems=tuple(problems))
    _, _, path, stored, verdicts = max(found, key=lambda entry: entry[:2])
    # Committed pictures lie beside their results, those of another run in a folder of the paper's name.
    folder = path.parent if reference is None else path.with_suffix("")
    figures, refused = _figures(stored.figures, folder, f"{title}, {_made_on(stored)}")
    replays = False
    if reference is not None and reference.stored is not None and path.parent.name == REPLAY:
        replays = bool(reference.stored.records) and stored.provenance.time == reference.stored.provenance.time
    problems += [f"{title.capitalize()} ({path.parent.name}): {line}" for line in refused]
    return Run(title, stored, verdicts, figures, tuple(problems), replays)


def _figures(entries: list[checked.Figure], folder: Path, run: str) -> tuple[tuple[Figure, ...], list[str]]:
    """The pictures that a results file names, and a line for each that is none."""
    figures, refused = [], []
    for entry in entries:
        if not entry.file:
            continue
        try:
            figures.append(Figure(checked.picture(folder, entry.file), entry.caption, run))
        except ValueError as error:
            refused.append(f"the figure {entry.name!r} is left out: {error}")
    return tuple(figures), refused


def _page_notes(page: Path) -> tuple[bool, str, str]:
    """Whether a chapter has a page, why it is out of date ("" where it is not), and the id of its section's ledger."""
    try:
        notebook = runner.read_notebook(page)
        stale = notebook.metadata.get("reprolib", {}).get("stale")
        reason = f"last run failed: {stale['reason']}" if stale else ""
    except FileNotFoundError:
        return False, "", ""
    except OSError as error:
        return False, f"book/chapters/{page.name} cannot be read ({error.strerror}): run the chapter again", ""
    except (ValueError, LookupError, TypeError, AttributeError):
        return False, f"book/chapters/{page.name} is not a complete notebook: delete it and run the chapter again", ""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    headings = [match[1] for text in texts for match in re.finditer(r"^##+ (.+)$", text, re.MULTILINE)]
    return True, reason, next((make_id(heading) for heading in headings if "ledger" in heading.lower()), "")


FIRST_PAGE = {"strip": claims.PROFILES, "every-attack": ("gpu", "paper")}
"""Figures for the first page, and the profiles whose figure may stand there: a reconstruction over the iterations, and
all attacks on the same images, which a run of a few iterations would show unfinished, not as strong as they are."""


def _pictures(papers: list[Paper]) -> list[Figure]:
    """The figures of the first page, as far as there are any: of the reference run where it has one."""
    named = [paper for paper in papers if re.fullmatch(r"[\w.-]+", paper.key)]  # the page names a picture by its path
    runs = [paper.reference for paper in named] + [paper.run for paper in named]
    found = []
    for name, profiles in FIRST_PAGE.items():
        fitting = (run for run in runs if run.stored is not None and run.stored.profile in profiles)
        figures = (figure for run in fitting for figure in run.figures if figure.path.stem == name)
        found += itertools.islice(figures, 1)
    return found


def _write(path: Path, text: str) -> None:
    content = text.encode(errors="replace")  # a name of a file may hold what is no character
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


# --- templates --------------------------------------------------------------------------------------------------------


def _badge(verdict: str, number: int | None = None) -> Markup:
    word = verdict if number is None else _counted(verdict, number)
    return Markup('<span class="verdict {}">{} {}</span>').format(CLASSES[verdict], SYMBOLS[verdict], word)


def _counted(verdict: str, number: int) -> str:
    """ "3 reproduced", "2 hold on a substitute", "2 identities hold": in a count an identity is named as one."""
    word = verdict if number == 1 else verdict.replace("holds", "hold").replace("fails", "fail")
    if verdict in IDENTITIES:
        return f"{number} {'identity' if number == 1 else 'identities'} {word}"
    return f"{number} {word}"


def _in_words(counts: Counts) -> str:
    """Counts in one line: "3 reproduced, 2 not decided here"."""
    return ", ".join(_counted(word, number) for word, number in counts.words.items())


def _listed(counts: Counts) -> str:
    """Counts in one line, with reasons and limits: "3 reproduced, 2 not decided here (1 data, 1 few)"."""
    told = [_counted(word, number) for word, number in counts.words.items()]
    told = [f"{line} ({counts.why_open})" if line.endswith(UNDECIDED) else line for line in told]
    return ", ".join(told) + "".join(f"; {line}" for line in counts.limits)


def _linked(text: str, address: str | None) -> Markup:
    return Markup('<a href="{}">{}</a>').format(address, _in_raw(text)) if address else _in_raw(text)


def _markdown(text: str) -> Markup:
    """Text as Markdown shows it literally, on one line: a caption may hold what looks like markup."""
    return Markup(re.sub(r"([\\`*_{}\[\]()<>#+\-.!|$~:^])", r"\\\1", " ".join(text.split())))


def _in_raw(text: str) -> Markup:
    """Text inside a raw block of Markdown: escaped, and without what would end the block."""
    one_line = re.sub(r"[ \t\r\n\f\v]+", " ", text).strip(" ")  # a no-break space stays one
    return Markup(str(Markup.escape(one_line)).replace("`", "&#96;"))


def _root_path(path: Path) -> str:
    """A picture's address from the book's root, as Sphinx reads it."""
    parts = path.parts
    return "/" + "/".join(parts[len(parts) - 1 - parts[::-1].index("results") :])


_NOTES = {"recalled": "recalled, unverified", "plot": "off the plot"}
_WHOSE = {"paper": "The paper's claims", "book": "This book's own claims"}

_TEMPLATES = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_TEMPLATES.globals |= {
    "NOTES": _NOTES,
    "WHOSE": _WHOSE,
    "KINDS": KINDS,
    "SHOWN": {"verdict", "value", "low", "high", "parts", "why", "substitutes", "provisional"},
    "UNDECIDED": UNDECIDED,
    "MEANINGS": MEANINGS,
    "REASON_MEANINGS": REASON_MEANINGS,
    "badge": _badge,
    "basis": basis,
    "criterion_lines": criterion_lines,
    "linked": _linked,
    "listed": _listed,
    "counted": _counted,
    "in_words": _in_words,
    "CLASSES": CLASSES,
    "many": _many,
    "measured_lines": measured_lines,
    "notes": notes,
}
_TEMPLATES.filters |= {"markdown": _markdown, "raw_text": _in_raw, "root_path": _root_path}

_PICTURE = """\
{% for picture in pictures %}
```{figure} {{ picture.path | root_path }}
:alt: {{ picture.caption | tojson }}

{{ picture.caption | markdown }} ({{ picture.run | markdown }})
```
{% else %}
<!-- No run has a strip of a reconstruction yet. -->
{% endfor %}
"""

_COUNTS = """\
{% macro badges(counts, words) %}
{% for verdict, number in counts.some(words).items() %}
{{ badge(verdict, number) }}
{% endfor %}
{% endmacro %}
{% macro counts(run) %}
{% set papers_claims, own = run.counts("paper"), run.counts("book") %}
<div>
{% for words in KINDS.values() if papers_claims.some(words) %}
<div>{{ badges(papers_claims, words) }}
{% if UNDECIDED in words %}
<span class="note">{{ papers_claims.why_open }}</span>
{% endif %}
</div>
{% endfor %}
{% for line in papers_claims.limits %}
<div class="note">{{ line }}</div>
{% endfor %}
{% if own.total %}
<div class="note">the book's own: {{ listed(own) }}</div>
{% elif not papers_claims.total %}
none yet
{% endif %}
</div>
{% endmacro %}
{% macro of_this_run(paper) %}
{% if paper.shows_reference %}
<span class="note">shows the reference run from its records</span>
{% else %}
{{ counts(paper.run) }}
{% endif %}
{% endmacro %}
{% macro how_many(paper) %}
<div class="note">{{ many(paper.numbers.paper, "claim") }} of the paper
{%- if paper.numbers.book %}, {{ paper.numbers.book }} of the book{% endif %}
{%- if paper.numbers.settings %}, and {{ many(paper.numbers.settings, "setting") }}{% endif %}
</div>
{% endmacro %}
{% macro totals_table(run, by_origin) %}
<table class="ledger cards totals" aria-label="{{ run | capitalize }}, all chapters">
<thead><tr><th>{{ run }}, all chapters</th>
{% for origin, counts in by_origin.items() %}
<th>{{ "the papers' " if origin == "paper" else "the book's own " }}{{ many(counts.total, "claim") }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for title, words in KINDS.items() %}
<tr><td>{{ title }}</td>
{% for origin, counts in by_origin.items() %}
<td data-column="{{ "the papers'" if origin == "paper" else "the book's own" }}"><div>
{{ badges(counts, words) if counts.some(words) else "none" }}
{% if UNDECIDED in words %}
<div class="note">{{ counts.why_open }}</div>
{% endif %}
</div></td>
{% endfor %}
</tr>
{% endfor %}
<tr><td>limits</td>
{% for origin, counts in by_origin.items() %}
<td data-column="{{ "the papers'" if origin == "paper" else "the book's own" }}"><div>
{% for line in counts.limits %}
<div class="note">{{ line }}</div>
{% else %}
none
{% endfor %}
</div></td>
{% endfor %}
</tr>
</tbody></table>
{% endmacro %}
{% macro totals_of(totals) %}
{% for run, by_origin in totals.items() %}
{% if loop.first %}
{{ totals_table(run, by_origin) }}
{% else %}
<details><summary>The same of {{ run }}, where it is another</summary>
{{ totals_table(run, by_origin) }}
</details>
{% endif %}
{% endfor %}
{% endmacro %}
"""

_GLANCE = """\
{% macro bar(counts) %}
<div class="bar" role="img" aria-label="{{ in_words(counts) or "no claims" }}">
{% for verdict, number in counts.words.items() %}
<span class="{{ CLASSES[verdict] }}" style="flex:{{ number }}" title="{{ counted(verdict, number) }}"></span>
{% endfor %}
</div>
<div class="note">{{ in_words(counts) }}</div>
{% endmacro %}
{% for every in (totals.values() | map(attribute="paper") | list)[:1] %}
Of the {{ every.total }} claims of {{ papers | length }} papers: **{{ in_words(every) }}**.
Why those are open: {{ every.why_open or "none is" }}.
{% endfor %}

`````{raw} html
<table class="ledger cards glance">
<thead><tr><th>paper, and the verdicts on its claims</th><th>what the reference run found</th></tr></thead>
<tbody>
{% for paper in papers %}
<tr><td>{{ linked(paper.title, paper.page) }}{{ bar(paper.reference.counts("paper")) }}</td>
<td data-column="found">
{% if paper.finding %}
<div>{{ paper.finding | raw_text }}</div>
{% endif %}
{% if not (paper.reference.stored and paper.reference.stored.records) %}
<div class="note">{{ "These numbers are an older run's. " if paper.finding }}
The record is missing: this chapter is yet to be run in full under its present criteria.</div>
{% elif not paper.finding %}
<div>No finding in a sentence yet.</div>
{% endif %}
{% if paper.failure %}
{% set row = "scoreboard.html#" ~ paper.key ~ "-" ~ paper.failure.id %}
<div class="failure">Contradicted: {{ linked(paper.failure.says, row) }}</div>
{% endif %}
</td></tr>
{% else %}
<tr><td colspan="2">There are no claims yet.</td></tr>
{% endfor %}
</tbody></table>
`````
"""

_SUMMARY = (
    _COUNTS
    + """\
`````{raw} html
{{ totals_of(totals) }}
<table class="ledger cards">
<thead><tr><th>chapter</th><th>reference run</th><th>this run</th></tr></thead>
<tbody>
{% for paper in papers %}
<tr><td>{{ linked(paper.title, paper.page) }}{{ how_many(paper) }}
{% if paper.page and not paper.has_page and not paper.stale %}
<div class="note">not run here yet</div>
{% endif %}
{% if paper.stale %}
<div class="note">out of date: {{ paper.stale | raw_text }}</div>
{% endif %}
</td>
<td data-column="reference run">{{ counts(paper.reference) }}</td>
<td data-column="this run">{{ of_this_run(paper) }}</td></tr>
{% else %}
<tr><td colspan="3">There are no claims yet.</td></tr>
{% endfor %}
</tbody></table>
`````
"""
)

_LEDGER = """\
{% macro verdict_cell(verdict, paper) %}
<div>{{ badge(verdict.verdict) }}
{% for line in notes(verdict, paper.claims) %}
<div class="note">{{ line | raw_text }}</div>
{% endfor %}
</div>
{% endmacro %}
{% macro measured_cell(verdict, claim) %}
<div class="measured">
{% for line in measured_lines(verdict, claim.published.percent) %}
<div>{{ line | raw_text }}</div>
{% else %}
—
{% endfor %}
{% if basis(verdict) %}
<div class="note">{{ basis(verdict) | raw_text }}</div>
{% endif %}
</div>
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
<tr><th>reference run</th><td>{{ counts(paper.reference) }}</td></tr>
<tr><th>this run</th><td>{{ of_this_run(paper) }}</td></tr>
</tbody></table>
{% set both = not paper.shows_reference %}
<table class="ledger cards">
<thead><tr><th>claim</th><th>published</th><th>measured</th><th>verdict</th>
{% if both %}
<th>this run</th>
{% endif %}
</tr></thead>
{% for origin in WHOSE if paper.ordered(origin) %}
<tbody>
<tr class="group"><th colspan="{{ 5 if both else 4 }}" scope="rowgroup">{{ WHOSE[origin] }}</th></tr>
{% for claim in paper.ordered(origin) %}
{% set verdict = paper.reference.verdicts[claim.id] if paper.reference.verdicts else none %}
{% set here = paper.run.verdicts[claim.id] if paper.run.verdicts else none %}
<tr id="{{ paper.key | raw_text }}-{{ claim.id }}"><td><div>{{ claim.says | raw_text }}</div>
<div class="where">{{ claim.where | raw_text if claim.origin == "paper" else "this book" }} ·
{{ linked(claim.id, link) }}{{ " · central" if claim.central }}</div>
{% for line in criterion_lines(claim, paper.claims) %}
<div class="where">{{ "criterion: " if loop.first and not line.startswith(("no ", "a ")) }}{{ line | raw_text }}</div>
{% endfor %}
</td>
<td data-column="published"><div{% if claim.provenance == "recalled" %} class="recalled"{% endif %}>
{{ claim.published | string | raw_text }}
{% if claim.provenance in NOTES %}
<div class="note">{{ NOTES[claim.provenance] }}</div>
{% endif %}
</div></td>
{% if verdict %}
<td data-column="measured">{{ measured_cell(verdict, claim) }}</td>
<td data-column="verdict">{{ verdict_cell(verdict, paper) }}</td>
{% else %}
<td data-column="measured">—</td>
<td data-column="verdict"><span class="note">no reference run yet</span></td>
{% endif %}
{% if both %}
<td data-column="this run">
{% if here and verdict and here.model_dump(include=SHOWN) == verdict.model_dump(include=SHOWN) %}
<span class="note">the same</span>
{% elif here %}
<div>{{ verdict_cell(here, paper) }}
{% if here.n %}
{{ measured_cell(here, claim) }}
{% endif %}
</div>
{% else %}
<span class="note">none yet</span>
{% endif %}
</td>
{% endif %}
</tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
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

_WORDS = """\
{% macro words() %}
<table class="legend">
<tbody>
{% for word, meaning in MEANINGS.items() %}
<tr><td>{{ badge(word) }}</td><td>{{ meaning }}</td></tr>
{% endfor %}
</tbody></table>
{% endmacro %}
{% macro reasons() %}
<table class="legend">
<tbody>
{% for reason, meaning in REASON_MEANINGS.items() %}
<tr><td><b>{{ reason }}</b></td><td>{{ meaning }}</td></tr>
{% endfor %}
</tbody></table>
{% endmacro %}
"""

_EXCEPTIONS = """\
{% set every = papers | map(attribute="changes") | sum(start=[]) %}
`````{raw} html
<p>{{ many(every | map(attribute="ids") | map("length") | sum, "claim") }} in all; the reference run decides
{{ every | selectattr("state", "equalto", "provisional") | map(attribute="ids") | map("length") | sum }} of them
provisionally.</p>
<table class="ledger cards exceptions">
<thead><tr><th>claims</th><th>changed</th><th>why</th><th>provisional?</th></tr></thead>
{% for paper in papers if paper.changes or not paper.claims %}
<tbody>
<tr class="group"><th colspan="4" scope="rowgroup">{{ paper.title | raw_text }}</th></tr>
{% for change in paper.changes %}
<tr><td><div>
{% for id in change.ids %}
<a href="scoreboard.html#{{ paper.key | raw_text }}-{{ id }}">{{ id }}</a>{{ "" if loop.last else ", " }}
{% endfor %}
</div></td>
<td data-column="changed"><div>{{ change.changed.date }}
{% if change.changed.seen %}
<div class="note">seen: seed {{ change.changed.seen | join(", ") }}</div>
{% endif %}
{% if change.changed.images %}
<div class="note">images: {{ change.changed.images | raw_text }}</div>
{% endif %}
</div></td>
<td data-column="why"><div>{{ change.changed.why | raw_text }}</div></td>
<td data-column="provisional?"><div>{{ change.state }}</div></td></tr>
{% endfor %}
{% if not paper.claims %}
<tr><td colspan="4">The claims of this paper cannot be read: see the scoreboard.</td></tr>
{% endif %}
</tbody>
{% endfor %}
</table>
`````
"""

_MACHINES = """\
`````{raw} html
<table class="ledger cards machines">
<thead><tr><th>chapter</th><th>made on</th><th>images</th><th>made with</th></tr></thead>
<tbody>
{% for paper in papers %}
<tr><td>{{ linked(paper.title, paper.page) }}</td>
{% if paper.reference.stored %}
{% set made = paper.reference.stored.provenance %}
<td data-column="made on"><div>{{ paper.reference.made | raw_text }}</div></td>
<td data-column="images"><div>{{ (made.data | join(", ") or "none") | raw_text }}</div></td>
<td data-column="made with"><div>seed {{ made.seed }}, commit {{ paper.reference.commits | raw_text }},
{{ made.time[:10] | raw_text }}; {{ many(paper.reference.stored.records | length, "record") }}</div></td></tr>
{% else %}
<td colspan="3">no reference run yet</td></tr>
{% endif %}
{% endfor %}
</tbody></table>
{% if papers | map(attribute="reference") | selectattr("stored") | rejectattr("stored.records") | list %}
<p>A chapter of 0 records was run before there were any: its measures and pictures are committed, its rows are not.</p>
{% endif %}
`````
"""

_PAGES = {
    "picture": _PICTURE,
    "glance": _GLANCE,
    "summary": _SUMMARY,
    "scoreboard": _SCOREBOARD,
    "words": _WORDS + "`````{raw} html\n{{ words() }}\n`````\n",
    "reasons": _WORDS + "`````{raw} html\n{{ reasons() }}\n`````\n",
    "exceptions": _EXCEPTIONS,
    "machines": _MACHINES,
}
"""Name of a file in book/_generated -> its template."""

_PLACEHOLDER = """\
# {{ paper.title | markdown }}

{% if paper.stale %}
:::{admonition} The page of this chapter cannot be shown
:class: warning

{{ paper.stale | markdown }}. In a clone of the repository:
{% else %}
:::{admonition} This chapter has not been run here
:class: warning

Its page appears once the notebook has been executed. In a clone of the repository:
{% endif %}

    reprolib run {{ paper.stem }}
    jupyter-book build .

or `make book`, which runs every chapter that is missing. The notebook is `notebooks/{{ paper.stem }}.ipynb`.
:::

The [scoreboard](../scoreboard.md) has its claims, with what the reference run measured.
"""

_REPORT = (
    _COUNTS
    + _LEDGER
    + _WORDS
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
.ledger thead th:first-child { width: 34%; }
.ledger tr.group th { padding-top: 1.1rem; }
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
.verdict.holds-on-a-substitute { color: var(--blue); }
.verdict.partly-on-a-substitute { color: var(--amber); }
.verdict.fails-on-a-substitute { color: var(--red); }
.verdict.holds, .verdict.fails { border-radius: .25em; }
.verdict.holds { color: var(--blue); }
.verdict.fails { color: var(--red); }
.verdict.undecided { color: var(--grey); border-style: dashed; font-weight: 500; }
.verdict.setting { color: var(--grey); border-color: transparent; padding-left: 0; font-weight: 500; }
.problem { border-left: .3rem solid var(--red); background: var(--red-soft); padding: .5rem .8rem; }
figure { margin: 1.2rem 0; }
figure img { display: block; box-sizing: border-box; max-width: 100%; height: auto; padding: .3rem;
  border-radius: .3rem; background: #fff; }
@media (max-width: 640px) {
  table.cards thead { display: none; }
  table.cards, table.cards tbody { display: block; }
  table.cards tr { display: block; margin-bottom: .8rem; padding: .4rem 0; border: 1px solid var(--line);
    border-radius: .5rem; }
  table.cards tr.group { border: 0; margin: 0; }
  table.cards tr.group th { display: block; border: 0; }
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
(controls, attackers who know a defense, steps of an argument) are counted beside them. What was measured on the paper's
own setting is counted apart from what was measured on a substitute.</p>

{{ totals_of(totals) }}
<table class="cards">
<thead><tr><th>paper</th><th>reference run</th><th>this run</th></tr></thead>
<tbody>
{% for paper in papers %}
<tr><td><a href="#{{ paper.key }}">{{ paper.title }}</a>{{ how_many(paper) }}</td>
<td data-column="reference run">{{ counts(paper.reference) }}</td>
<td data-column="this run">{{ of_this_run(paper) }}</td></tr>
{% else %}
<tr><td colspan="3">There are no claims yet: the folder claims holds no file.</td></tr>
{% endfor %}
</tbody></table>

<h2>How to read a verdict</h2>
{{ words() }}
<p>A verdict that is not decided has one of these reasons:</p>
{{ reasons() }}
<p><em>provisional</em>: the criterion was written or changed after something of it had been measured; a run of another
seed, made since, decides. The <em>reference run</em> is committed with the book; <em>this run</em> is the one on the
machine that wrote this file, where other images may stand in for a paper's. A published value in
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
