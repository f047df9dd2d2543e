"""What every chapter does: choose profile, device and data, keep the ledger, show its parts, resume, and close.

A notebook's calls::

    ch = chapter.start("dlg", profile, seed, device, data_root)       # sizes and claims stand in claims/dlg.yml
    images = ch.data("cifar10", count=ch.settings.images)
    scores = ch.part("success", run_attacks, attack=DLG.stable())     # saved; a killed chapter continues after it
    ch.measure({"recovery_success": intervals.below(scores.mse, 1e-3, scores.network)}, data=images)
    ch.figure(figures.fidelity(curves), "fidelity", "Share of images below each error.")
    ch.finish()
"""

from __future__ import annotations

import html
import inspect
import os
import re
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from IPython.display import Markdown, display

from reprolib import clone, data
from reprolib.atomic import write_atomic
from reprolib.book import checked, claims, figures, markup, opening, recorded_set, records, reference_run, results
from reprolib.book.criteria import PROFILES as SIZES
from reprolib.book.ledger import Ledger
from reprolib.book.parts import Parts
from reprolib.book.verdicts import Verdict
from reprolib.measure.entries import Entries, Measured, Unmeasured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reprolib.data import ImageSet
    from reprolib.federated.threat import ThreatModel


PICTURE_LIMIT = 150_000
"""Bytes of a saved figure: small enough to be committed with a reference run."""

REPLAY = "reference"
"""The profile that shows the committed reference run: its parts are read from records, the rest is executed."""

PROFILES = (REPLAY, *SIZES)

UNRECORDED = "smoke"
"""The sizes at which that profile runs a chapter without records: a book of many chapters is replayed in minutes."""


def start(
    paper: str,
    profile: str = REPLAY,
    seed: int = 1,
    device: str = "auto",
    data_root: str | os.PathLike = "",
    sizes: Mapping[str, Sequence[Any]] | None = None,
) -> Chapter:
    """Open a paper's chapter.

    paper: the name of a file in `claims/`. profile: "reference" shows the committed reference run, and where there is
    none runs at the sizes of UNRECORDED; or one of `criteria.PROFILES`, which runs all here. device: "auto", "cpu"
    or "cuda". data_root: folder of the papers' image sets; "" takes REPROLIB_DATA, and without it the offline sets
    stand in. sizes: name -> its values in the four profiles, from smoke to paper, in place of those in the claims'
    file; `ch.settings` has the active ones.
    Raises ValueError for unknown names, a missing CUDA device, and sizes that lack a profile.
    """
    root = clone.repository()
    known = sorted(path.stem for path in (root / "claims").glob("*.yml"))
    if paper not in known:
        raise ValueError(
            f"paper={paper!r}: no claims/{paper}.yml; known: {', '.join(known) or 'none'}; a new chapter begins with it"
        )
    chosen = _device(device)
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed={seed!r}: expected a whole number of at least 0")
    figures.style()
    loaded = claims.load(root / "claims" / f"{paper}.yml")
    sizes = loaded.sizes if sizes is None else sizes
    for name, values in sizes.items():
        if len(values) != len(SIZES):
            wanted = f"expected a value for each of {', '.join(SIZES)}; they stand in claims/{paper}.yml"
            raise ValueError(f"sizes[{name!r}]={values!r}: {wanted}")
    by_profile = {str(title): {name: values[i] for name, values in sizes.items()} for i, title in enumerate(SIZES)}
    reference, verdicts, problem = reference_run.read(paper, loaded)
    size, when = UNRECORDED if profile == REPLAY else profile, None
    if profile == REPLAY and reference is not None and "records" in reference:
        size, when = reference["profile"], reference["provenance"]["time"]
    ledger = Ledger(loaded, size, seed=seed)
    if when is not None:
        ledger.time = when
    chapter = Chapter(paper, size, seed, chosen, str(data_root), by_profile, ledger, reference, profile == REPLAY)
    chapter._open(verdicts, problem)
    return chapter


class Settings(types.SimpleNamespace):
    """The active profile's sizes, as attributes."""

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(vars(self)) or "none"
        says = f"known: {known}; `sizes` of its claims' file holds them"
        raise AttributeError(f"no setting {name!r} in this chapter; {says}")


class Chapter:
    """An open chapter. Made by `start`.

    Attributes for the notebook: paper, profile (whose sizes are shown), seed, device, settings, ledger.
    """

    def __init__(
        self,
        paper: str,
        profile: str,
        seed: int,
        device: torch.device,
        data_root: str,
        sizes: dict[str, dict[str, Any]],
        ledger: Ledger,
        reference: dict[str, Any] | None,
        replaying: bool,
    ) -> None:
        self.paper, self.profile, self.seed, self.device, self.ledger = paper, profile, seed, device, ledger
        self.settings = Settings(**sizes[profile])
        self._sizes, self._data_root = sizes, data_root
        self._began = time.perf_counter()
        self._sets: dict[str, Any] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self._shown: list[dict[str, Any]] = []
        self._figures: dict[str, dict[str, Any]] = {}
        self._threat: Any = None
        self._reference = reference
        self._made = "" if reference is None else reference_run.made_on(reference)
        self._whose = f"{reference_run.name(reference)}, {html.escape(self._made)}"
        self._folder_of_run = REPLAY if replaying else profile
        self._parts = Parts(
            paper, profile, seed, device, reference, replaying, self._folder("runs") / "records", self.show
        )

    # --- what goes in

    def described(self) -> dict[str, Any]:
        """What a part depends on that reads the chapter: its settings, seed and image sets."""
        return {"settings": vars(self.settings), "seed": self.seed, "data": dict(sorted(self._sets.items()))}

    @property
    def replays(self) -> bool:
        """Whether this chapter shows the committed reference run."""
        return self._parts.replays

    def data(
        self,
        name: str,
        split: str = "test",
        count: int | None = None,
        skip: int = 0,
        size: int | None = None,
        grey: bool = False,
    ) -> ImageSet:
        """Open an image set, the paper's or its stand-in; a stand-in is announced once and noted in the ledger.

        skip: leave out the images that an earlier run, of seed 0, met in its first `skip` trials (`ImageSet.after`), so
        that this run judges on others. It has no effect on stand-ins, on which nothing was judged. size, grey: as for
        `data.load`.
        In a chapter that shows the reference run the set is what the record knows of it: shape, classes, fingerprint;
        its pixels are those of the copy at hand, if that is the same.
        """
        request = f"{name}, {split}, {count}, {skip}, {size}" + (", grey" if grey else "")

        def opened() -> ImageSet:
            images = data.choose(name, split, count, 0 if skip else self.seed, self._data_root or None, size, grey)
            return images.after(skip) if skip and not images.substitute else images

        known = self._reference.get("sets", {}).get(request) if self._reference and self.replays else None
        images: Any = opened() if known is None else recorded_set.RecordedSet(known, opened)
        if known is not None and self._parts.verifying:
            images.opened  # noqa: B018 - a verification needs the record's own images, and says at once that it lacks them
        self._known[request] = recorded_set.known_of(images)
        if images.substitute:
            stands_for = self.ledger.substitutes.get(images.name, "").split(" and ")
            if name not in stands_for:
                self.ledger.substitutes[images.name] = " and ".join([*filter(None, stands_for), name])
                self.show(markup.stand_in(name, images, known is not None))
        self._sets[f"{images.name} ({split})"] = images
        return images

    def threat(self, model: ThreatModel) -> None:
        """Show the threat model as a box: what the attacker knows, and what it does not."""
        self._threat = model
        rows = [(html.escape(question), html.escape(answer)) for question, answer in model.rows()]
        items = "".join(f"<li><i>{question}</i> {answer}</li>" for question, answer in rows)
        self.show(markup.box("Threat model", f"<ul style='margin:.3rem 0 0'>{items}</ul>", "#0072B2"))

    def settings_table(self) -> None:
        """Show the settings of all four profiles, with the active column marked."""
        columns = {f"▶ {name} (this run)" if name == self.profile else name: self._sizes[name] for name in SIZES}
        table = pd.DataFrame(
            {"setting": [name.replace("_", " ") for name in vars(self.settings)]}
            | {title: [markup.words(value) for value in sizes.values()] for title, sizes in columns.items()}
        )
        self.table(table, "The sizes of this chapter's experiments in the four profiles.")

    # --- measuring

    def part(self, name: str, function: Callable[..., Any], *, pictures: int | None = None, **inputs: Any) -> Any:
        """The result of `function(**inputs)`: read from the committed record, or computed once and stored.

        function: returns a DataFrame, or a dictionary of tensors, tables and JSON values. A killed chapter resumes
        after its last finished part; split a long experiment by calling `part` once a network. pictures: how many
        images of each tensor of pictures are kept; None keeps all.
        A record answers where name, function, inputs and seed are equal (`description.describe`). In a chapter that
        shows the reference run, a part whose inputs were changed runs here on two trials, and says so; an old result is
        never shown in its place. A run's own store goes by the code and the installed packages as well
        (`fingerprints.code_fingerprint`): change what a part runs, and it runs again; an edited docstring changes
        nothing.
        What is returned went through the store, so fresh, resumed and replayed chapters see the same numbers.
        Raises ValueError for inputs whose content cannot be identified, and for results of another type; MissingPart
        for a part that no record answers and that cannot be run on fewer trials.
        """
        return self._parts.part(name, function, inputs, pictures)

    def live(self, name: str, function: Callable[..., Any], *, pictures: int | None = None, **inputs: Any) -> Any:
        """A part that really runs on this machine, for a few seconds, also where the reference run is shown.

        There it runs on the record's own images where they are at hand, and what comes out is compared with the record:
        a difference raises ValueError. Elsewhere it runs on the offline images, and nothing is compared; nor where the
        record answers other inputs, as after a change of the cell.
        """
        return self._parts.live(name, function, inputs, pictures)

    def measure(self, found: Entries, data: ImageSet | str | None = None) -> None:
        """Enter what an experiment found into the ledger: its measures by name, each a value or why there is none.

        The functions that make them of an experiment's tables stand in `experiments.measures`, a file for each chapter.
        data: the image set it was measured on; it may be left out while the chapter has opened only one.
        """
        names = sorted({images.name for images in self._sets.values()})
        name = data if isinstance(data, str | None) else data.name
        for measure, value in found.items():
            if isinstance(value, Unmeasured):
                self.ledger.skip(measure, *value)
                continue
            if data is None and len(names) > 1:
                raise ValueError(f"data is missing for {measure!r}: this chapter has opened {', '.join(names)}")
            entry = value if isinstance(value, Measured) else Measured(value)
            images = entry.interval.n if entry.images is None else entry.images
            self.ledger.record(measure, entry.interval, images, name or next(iter(names), None), entry.conditions)

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table under this name in the results file, which a reference run commits."""
        records.check_slug("name", name)
        self._tables[name] = table

    # --- showing

    def show(self, content: str, plain: str = "") -> None:
        """Display HTML (with a plain text for readers without it)."""
        text = plain or re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", content))).strip()
        display({"text/html": content, "text/plain": text}, raw=True)

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """Show a numbered figure and save it for the report; a smaller run's stands folded behind the reference run's.

        name: of the file, results/runs/<profile>/<paper>/NAME.png. caption: what the figure shows, with its number
        (`Ledger.filled`); also what is read to who cannot see it.
        """
        caption = self.ledger.filled(caption)
        number = self._number(name, caption)
        drawn = figures.png(figure)
        write_atomic(self._folder("runs") / f"{name}.png", figures.png_within(figure, PICTURE_LIMIT, drawn))
        self._figures[name] |= {"file": f"{name}.png", "live": self._parts.ran_live}
        title = f"<b>Figure {number}.</b> {html.escape(caption)}"
        body = figures.captioned(figures.picture(drawn, caption), f"{title} {self._parts.origin()}", f"fig-{name}")
        kept = self._kept_figure(name)
        if not self.replays and kept is not None:
            picture, old = kept
            said = f"<b>Figure {number}.</b> {html.escape(old)} <i>({self._whose})</i>"
            front = figures.captioned(figures.picture(picture, old), said, f"fig-{name}")
            again = figures.captioned(figures.picture(drawn, caption), title)
            body = front + markup.fold("The same figure from this run", again)
        self.show(body, caption)

    def interactive(self, content: str, name: str, caption: str) -> None:
        """Show numbered HTML, for instance `figures.slider`. caption: as for `figure`."""
        caption = self.ledger.filled(caption)
        number = self._number(name, caption)
        self.show(
            figures.captioned(
                content, f"<b>Figure {number}.</b> {html.escape(caption)} {self._parts.origin()}", f"fig-{name}"
            ),
            caption,
        )

    def table(
        self, table: pd.DataFrame, caption: str, folded: str = "", saved: str = "", anchors: Sequence[str] = ()
    ) -> None:
        """Show a numbered table, which scrolls sideways on a narrow screen. The index is not shown.

        Columns `low` and `high` join the column before them, as the ends of its interval. folded: for long tables, the
        line that unfolds them. saved: the name under which the results file keeps it too (`save_table`).
        caption: as for `figure`. anchors: names of its rows, which links can lead to. A smaller run's table stands
        folded behind the reference run's.
        """
        caption = self.ledger.filled(caption)
        if saved:
            self.save_table(saved, table)
        shown = markup.in_words(table)
        self._shown.append({"caption": caption, "table": shown, "live": self._parts.ran_live})
        number = len(self._shown)
        body = markup.table(shown, number, caption, folded, self._parts.origin(), anchors)
        stored = [] if self._reference is None else self._reference.get("shown", [])
        if not self.replays and number <= len(stored):
            old = stored[number - 1]
            front = markup.table(old["table"], number, old["caption"], folded, f"<i>({self._whose})</i>")
            body = front + markup.fold(
                "The same table from this run", markup.table(shown, number, caption, "", "", anchors)
            )
        self.show(body, f"Table {number}. {caption}\n{shown.to_string(index=False)}")

    def claims_table(self) -> None:
        """Show every claim that the chapter puts to the test, folded, before anything is measured."""
        every = self.ledger.paper.claims
        columns = ["claim", "where", "published", "provenance"]
        rows = [(claim.says, claim.where, str(claim.published), claim.provenance) for claim in every]
        book = sum(claim.origin == "book" for claim in every)
        settings = sum(claim.kind == "setting" and claim.origin == "paper" for claim in every)
        count = f"{len(every) - book - settings} claims of the paper and {book} of this book"
        count += f", and {settings} shown as a setting" if settings else ""
        says = "What this chapter puts to the test. What is recalled could not be checked and decides nothing."
        self.table(pd.DataFrame(rows, columns=columns), says, folded=count)

    def source(self, thing: Any) -> None:
        """Show the source of a function or class of reprolib, as it runs."""
        path = Path(inspect.getsourcefile(thing) or "").relative_to(clone.PACKAGE.parent)
        code = inspect.cleandoc("\n" + inspect.getsource(thing))
        display(Markdown(f"From `{path.as_posix()}`:\n\n```python\n{code}\n```"))

    def finish(self) -> None:
        """Write results/runs/<profile>/<paper>.json; show the verdicts, what they rest on, and the provenance.

        Raises ValueError naming every measure that the claims declare and the chapter neither recorded nor skipped.
        """
        self.ledger.check()
        provenance = self._provenance()
        self.ledger.time = provenance["time"]
        payload = {
            "paper": self.paper,
            "title": self.ledger.paper.title,
            "profile": self.profile,
            "settings": vars(self.settings),
            "threat": self._threat,
            **self.ledger.payload(),
            "tables": self._tables,
            "shown": self._shown,
            "figures": [{"name": name, **entry} for name, entry in self._figures.items()],
            "sets": self._known,
            "records": self._parts.entries,
            "state": self._parts.state() if self.replays else {},
            "twice": sorted(self._parts.twice),
            "provenance": provenance,
        }
        results.save(self._folder("runs").with_suffix(".json"), payload)
        self.table(
            self.ledger.table(None if self.replays else self._reference),
            "The ledger: every claim with its verdict, the published value, what was measured with its 95 % interval, "
            "the criterion, and the place in the paper.",
            anchors=[f"claim-{claim.id}" for claim in self.ledger.paper.claims],
        )
        if self._parts.twice:
            names = html.escape(", ".join(sorted(self._parts.twice)))
            text = f"Other inputs under a name that was taken: {names}. A record keeps the last, so this run is none."
            self.show(markup.box("⚠ Two parts of one name", text, "#D55E00"))
        if self.replays:
            self.show(markup.box("The record", self._parts.told(payload["state"])))
        self.show(markup.box("Provenance", markup.provenance(provenance)))

    # --- inside

    def _open(self, now: list[Verdict], problem: str) -> None:
        """The top: the reference run's finding, central claims and picture; what this page shows; all its verdicts."""
        if now and self._reference:
            self.show(opening.opening(self.ledger.paper, now, self._reference, clone.reference_root() / self.paper))
        claimed = self.ledger.paper.claims
        if self.replays:
            text = (
                f"This page shows the <b>reference run</b> from its committed records ({html.escape(self._made)}). "
                f"Every table and figure says whether it comes from the record or ran here. "
                f"{opening.how_to_run(self.paper, self._reference, claimed)}"
            )
            self.show(markup.box("The reference run", text))
        else:
            run = f"profile <b>{self.profile}</b>, device <b>{self.device.type}</b>, seed <b>{self.seed}</b>"
            if self._folder_of_run == REPLAY:
                self.show(opening.record_missing(self.paper, run, problem, self._reference, now, claimed))
            else:
                self.show(markup.box("This run", run))
                if problem:
                    self.show(markup.box("⚠ The reference run cannot be shown", html.escape(problem), "#D55E00"))
        if now:
            self.show(
                markup.box(
                    f"All claims in the {reference_run.name(self._reference)}",
                    markup.in_a_minute(now, self._made),
                    "#009E73",
                    opening.OLDER,
                )
            )

    def _folder(self, kind: str) -> Path:
        return clone.results_root() / kind / self._folder_of_run / self.paper

    def _kept_figure(self, name: str) -> tuple[bytes, str] | None:
        """The reference run's picture of this name with its caption; None without one, or where its file is none."""
        if self._reference is None:
            return None
        return checked.kept_picture(self._reference["figures"], clone.reference_root() / self.paper, name)

    def _number(self, name: str, caption: str) -> int:
        records.check_slug("name", name)
        if name not in self._figures:
            self._figures[name] = {"number": len(self._figures) + 1}
        self._figures[name]["caption"] = caption
        return self._figures[name]["number"]

    def _provenance(self) -> dict[str, Any]:
        """Of the run that made the numbers: this one, or that of the records."""
        fingerprints = {name: images.fingerprint for name, images in self._sets.items()}
        made = results.provenance(self.device, self.seed, fingerprints, time.perf_counter() - self._began)
        made["seconds"] = round(made["seconds"] + self._parts.resumed, 1)  # with what stored parts had taken
        if self._reference and self.replays:
            made = {**self._reference["provenance"], "data": fingerprints}
        return made


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but PyTorch finds no CUDA device here: use device='cpu' (or 'auto')")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
