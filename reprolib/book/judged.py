"""What the report knows of each paper: its claims with the verdicts of the reference run and of this run.

Verdicts are drawn from the measures that the results files hold, with the claims as they are now. A file that is
missing, damaged or of another schema becomes a line in the place where its content would stand.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from docutils.nodes import make_id
from markupsafe import Markup

from reprolib.book import checked, claims, criteria, judge, notebooks, results
from reprolib.book.checked import Stored
from reprolib.book.claims import Claim
from reprolib.book.verdicts import REASONS, UNDECIDED, Verdict, count, count_at_99, once, standing
from reprolib.book.wording import FAILURES, FAILURES_FIRST, OPEN_BECAUSE, many

REPLAY = notebooks.PROFILES[0]
"""The profile whose run shows the reference run from its records, and the folder of such runs."""


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

    def open_in_words(self, most: int | None = None) -> str:
        """The same told: "3 whose image set is not here, 1 with too few images or networks", the most frequent first.

        most: how many reasons are told; the others are counted together.
        """
        every = sorted(self.reasons.items(), key=lambda entry: -entry[1])
        told = [f"{number} {OPEN_BECAUSE[reason]}" for reason, number in every[:most]]
        others = 0 if most is None else sum(number for _, number in every[most:])
        return ", ".join([*told, *[f"{others} for other reasons"] * bool(others)])

    @property
    def limits(self) -> list[str]:
        """What must be said beside the numbers of decided verdicts, in sentences without a full stop."""
        told = []
        if self.decided:
            of_which = [f"{self.network} on one network only"] * bool(self.network)
            of_which += [f"{self.at_99} the same at 99 %"]
            of_which += [f"{self.unknown_at_99} without a 99 % interval"] * bool(self.unknown_at_99)
            told = [f"of {many(self.decided, 'decided result')} {', '.join(of_which)}"]
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
    def standing(self) -> str:
        """Which of its claims are decided today."""
        return standing((self.verdicts or {}).values())

    @property
    def tiny(self) -> bool:
        """Whether its numbers mean nothing: a test's sizes."""
        return self.stored is not None and self.stored.profile == "smoke"

    @property
    def made(self) -> str:
        """Devices, threads and time: "cpu: AMD EPYC, 1 thread, 1.5 hours"."""
        return "" if self.stored is None else _made_on(self.stored)

    @property
    def recorded(self) -> bool:
        """Whether its rows are committed, and not only what was made of them."""
        return self.stored is not None and bool(self.stored.records)

    @property
    def provenance(self) -> str:
        """What the run was made on and with, in one line."""
        if self.stored is None:
            return "none"
        if self.replays:
            told = {kind: names for kind, names in self.stored.state.items() if names}
            differs = [f"{k}: {many(len(n), 'part') if len(n) > 5 else ', '.join(n)}" for k, n in told.items()]
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
        if self.stored is None:
            return ""
        made = {part.commit for part in self.stored.records.values()} or {self.stored.provenance.commit}
        return " and ".join(sorted(commit or "unknown" for commit in made))


def _made_on(stored: Stored) -> str:
    """Devices, threads and time of a run; of its parts where it has records, which several machines may have made."""
    made = stored.provenance
    seconds: dict[str, float] = {}
    for part in stored.records.values():
        seconds[part.device] = seconds.get(part.device, 0.0) + part.seconds
    named = sorted(seconds, key=lambda device: -seconds[device]) or [made.device]
    took = [] if made.seconds is None else [results.duration(made.seconds)]
    return ", ".join([" and ".join(named), many(made.threads, "thread"), *took])


@dataclass(frozen=True)
class Change:
    """Claims of a paper whose criterion was set after a measurement, for one reason. state: of their verdicts now."""

    ids: tuple[str, ...]
    changed: criteria.Changed
    state: str


@dataclass(frozen=True)
class Paper:
    """A paper's claims with the two runs. stem: of the chapter's file, None for claims without a chapter.

    claims: the file of claims, None where it cannot be read. ledger: id of the section with the ledger on the page.
    anchors: the claims whose rows on the page can be linked to.
    """

    key: str
    stem: str | None
    title: str
    claims: claims.Paper | None
    reference: Run
    run: Run
    has_page: bool
    ledger: str
    anchors: frozenset[str]
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

    def page_claim(self, claim: str) -> str | None:
        """Address of a claim's row in its chapter; of the ledger, where the page has no name for the row."""
        return f"{self.page}#claim-{claim}" if claim in self.anchors else self.page_ledger

    @property
    def number(self) -> str:
        """Of the chapter, as the command line takes it: "6"; "" where its file has none."""
        number, _, name = (self.stem or "").partition("-")
        return str(int(number)) if number.isdecimal() and name else ""

    @property
    def short(self) -> str:
        """Number and name of the chapter: "6 soteria"."""
        return f"{self.number} {(self.stem or '').partition('-')[2].replace('-', ' ')}" if self.number else self.key

    @property
    def heading(self) -> str:
        """The title to its colon, where room is scarce."""
        return self.title.partition(": ")[0]

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

    def ordered(self, origin: str) -> list[Claim]:
        """The claims of an origin, failures of the reference run first (of this run, where there is none), and of a
        verdict the central ones."""
        every = self.claims.claims if self.claims else ()
        return sorted((claim for claim in every if claim.origin == origin), key=self.place)

    def place(self, claim: Claim) -> tuple[int, int, bool]:
        """What claims of one origin are ordered by."""
        verdict = (self.reference.verdicts or self.run.verdicts or {}).get(claim.id)
        word, reason = (verdict.verdict, verdict.reason) if verdict else (UNDECIDED, "")
        return FAILURES_FIRST.index(word), REASONS.index(reason) if reason else 0, not claim.central

    @property
    def finding(self) -> str:
        """The chapter in a sentence, with the reference run's values; "" where there is none, or a value is missing."""
        stored = self.reference.stored
        if self.claims is None or stored is None:
            return ""
        undecided = {name for name, verdict in (self.reference.verdicts or {}).items() if not verdict.decided}
        return self.claims.found({name: measure.value for name, measure in stored.measures.items()}, undecided)

    @property
    def failure(self) -> Claim | None:
        """The first claim of the paper that the reference run contradicts, a central one before others."""
        if self.claims is None:
            return None
        failed = {v.id for v in once((self.reference.verdicts or {}).values()) if v.verdict in FAILURES}
        return next((claim for claim in self.ordered("paper") if claim.id in failed), None)

    @property
    def untold(self) -> bool:
        """Whether an older run alone measured the chapter, and there is neither a finding nor a contradiction of it."""
        return not (self.reference.recorded or self.finding or self.failure)

    @property
    def changes(self) -> list[Change]:
        """Every `changed` entry of the claims, those of equal date, reason and state in one."""
        found: dict[tuple[criteria.Changed, str], list[str]] = {}
        for claim in self.claims.claims if self.claims else ():
            if claim.changed is not None:
                found.setdefault((claim.changed, self._state(claim)), []).append(claim.id)
        return [Change(tuple(ids), changed, state) for (changed, state), ids in found.items()]

    def _state(self, claim: Claim) -> str:
        verdict, stored = (self.reference.verdicts or {}).get(claim.id), self.reference.stored
        if verdict is None or stored is None or not verdict.decided:
            return "not decided yet"
        if verdict.provisional:
            return "provisional"
        made = stored.provenance
        return f"no longer: decided with seed {made.seed}, {made.time[:10]}"


def read_papers(root: Path) -> list[Paper]:
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
    by_key = {notebooks.Chapter(root, stem).paper: stem for stem in stems}
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
    has_page, stale, heading, anchors = _page_notes(page) if stem else (False, "", "", frozenset())
    folder = root / "results"
    reference = _run("reference run", [folder / "reference" / key / f"{key}.json"], key, loaded)
    run = _run(
        "this run", [folder / "runs" / name / f"{key}.json" for name in notebooks.PROFILES], key, loaded, reference
    )
    return Paper(key, stem, title, loaded, reference, run, has_page, heading, anchors, stale, problems)


def _run(title: str, paths: list[Path], key: str, paper: claims.Paper | None, reference: Run | None = None) -> Run:
    """The newest readable results; of the smoke profile, whose numbers mean nothing, only without others.

    New is what was written last: the time that a run of records names is that of the records.
    """
    found, problems = [], []
    for path in paths:
        where = f"{title.capitalize()} ({path.parent.name})"
        try:
            stored, payload = checked.read(path, key)
            verdicts = {verdict.id: verdict for verdict in judge.judge(paper, payload)} if paper else {}
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
        replays = reference.recorded and stored.provenance.time == reference.stored.provenance.time
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


def _page_notes(page: Path) -> tuple[bool, str, str, frozenset[str]]:
    """Whether a chapter has a page, why it is out of date ("" where it is not), the id of its section's ledger, and the
    claims whose rows have a name there."""
    try:
        notebook = notebooks.read_notebook(page)
        stale = notebook.metadata.get("reprolib", {}).get("stale")
        reason = f"last run failed: {stale['reason']}" if stale else ""
    except FileNotFoundError:
        return False, "", "", frozenset()
    except OSError as error:
        return (
            False,
            f"book/chapters/{page.name} cannot be read ({error.strerror}): run the chapter again",
            "",
            frozenset(),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return (
            False,
            f"book/chapters/{page.name} is not a complete notebook: delete it and run the chapter again",
            "",
            frozenset(),
        )
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    headings = [match[1] for text in texts for match in re.finditer(r"^##+ (.+)$", text, re.MULTILINE)]
    ledger = next((make_id(heading) for heading in headings if "ledger" in heading.lower()), "")
    return (
        True,
        reason,
        ledger,
        frozenset(re.findall(r'id=\\?"claim-([a-z0-9.-]+)\\?"', page.read_text(encoding="utf-8"))),
    )
