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

import copy
import dataclasses
import hashlib
import html
import inspect
import json
import os
import re
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import Markdown, display

from reprolib import clone, data
from reprolib.atomic import write_atomic
from reprolib.book import checked, claims, figures, opening, records, results
from reprolib.book.ledger import Ledger, judge
from reprolib.book.verdicts import SYMBOLS, Verdict, once, value_words
from reprolib.measure.entries import Measured, Unmeasured
from reprolib.measure.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reprolib.data import ImageSet
    from reprolib.federated.threat import ThreatModel

PICTURE_LIMIT = 150_000
"""Bytes of a saved figure: small enough to be committed with a reference run."""

REPLAY = "reference"
"""The profile that shows the committed reference run: its parts are read from records, the rest is executed."""

PROFILES = (REPLAY, *claims.PROFILES)

UNRECORDED = "smoke"
"""The sizes at which that profile runs a chapter without records: a book of many chapters is replayed in minutes."""

VERIFY = "REPROLIB_VERIFY"
"""Environment variable with the file that says which parts a verification runs again (`reprolib.book.verification`)."""


class MissingPart(RuntimeError):
    """A part that no record answers and that cannot be run small; the message names the command that runs it."""


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
    none runs at the sizes of UNRECORDED; or one of `claims.PROFILES`, which runs everything here. device: "auto", "cpu"
    or "cuda". data_root: folder of the papers' image sets; "" takes REPROLIB_DATA, and without it the offline sets
    stand in. sizes: name -> its values in the four profiles, from smoke to paper, in place of those in the claims'
    file; `ch.settings` has the active ones.
    Raises ValueError for unknown names, a missing CUDA device, and sizes that lack a profile.
    """
    root = clone.repository()
    known = sorted(path.stem for path in (root / "claims").glob("*.yml"))
    if paper not in known:
        raise ValueError(f"paper={paper!r}: no claims/{paper}.yml; known: {', '.join(known) or 'none'}")
    chosen = _device(device)
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed={seed!r}: expected a whole number of at least 0")
    figures.style()
    loaded = claims.load(root / "claims" / f"{paper}.yml")
    sizes = loaded.sizes if sizes is None else sizes
    for name, values in sizes.items():
        if len(values) != len(claims.PROFILES):
            raise ValueError(f"sizes[{name!r}]={values!r}: expected a value for each of {', '.join(claims.PROFILES)}")
    by_profile = {
        title: {name: values[place] for name, values in sizes.items()} for place, title in enumerate(claims.PROFILES)
    }
    reference, verdicts, problem = _read_reference(paper, loaded)
    replays = profile == REPLAY and reference is not None and "records" in reference
    size = reference["profile"] if replays else UNRECORDED if profile == REPLAY else profile
    ledger = Ledger(loaded, size, seed=seed)
    if replays:
        ledger.time = reference["provenance"]["time"]
    chapter = Chapter(paper, size, seed, chosen, str(data_root), by_profile, ledger, reference, profile == REPLAY)
    chapter._open(verdicts, problem)
    return chapter


def _read_reference(paper: str, loaded: claims.Paper) -> tuple[dict[str, Any] | None, list[Verdict], str]:
    """The committed results of a paper with the verdicts drawn from them, and why they cannot be used."""
    path = clone.reference_root() / paper / f"{paper}.json"
    try:
        found = results.load(path)
        if not isinstance(found, dict):
            raise ValueError(f"{path.name} holds no results")
        if found.get("paper") != paper:
            raise ValueError(f"{path.name} is of the paper {found.get('paper')!r}, not of {paper!r}")
        if missing := {"profile", "measures", "verdicts", "provenance", "figures"} - found.keys():
            raise ValueError(f"{path.name} lacks {', '.join(sorted(missing))}")
        if wrong := [
            key for key in ("measures", "provenance", "records", "sets") if not isinstance(found.get(key, {}), dict)
        ]:
            raise ValueError(f"{path.name} cannot be read: its {', '.join(wrong)}")
        if missing := {"device", "threads", "seconds", "time", "python", "platform"} - found["provenance"].keys():
            raise ValueError(f"{path.name} does not say what made it: {', '.join(sorted(missing))}")
        checked.check(found | {"records": {}}, paper, path.name)  # each record is looked at when it is read
        return found, judge(loaded, found), ""
    except FileNotFoundError:
        return None, [], ""
    except (ValueError, OSError) as error:
        return None, [], _fault(error)


def _fault(error: ValueError | OSError) -> str:
    """What is wrong with a file, without a path of this machine: it stands on the page."""
    if isinstance(error, OSError) and error.filename:
        return f"{Path(os.fsdecode(error.filename)).name} cannot be read: {error.strerror}"
    return str(error)


class Settings(types.SimpleNamespace):
    """The active profile's sizes, as attributes."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no setting {name!r} in this chapter; known: {', '.join(vars(self)) or 'none'}")


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
        self._began, self._resumed = time.perf_counter(), 0.0
        self._sets: dict[str, Any] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self._shown: list[dict[str, Any]] = []
        self._figures: dict[str, dict[str, Any]] = {}
        self._threat: Any = None
        self._reference = reference
        self._folder_of_run = REPLAY if replaying else profile
        self._recorded: dict[str, records.Record] | None = None
        self._problems: list[str] = []
        if replaying and reference is not None and "records" in reference:
            self._recorded, self._problems = accepted_records(paper, reference["records"])
        self._parts: dict[str, dict[str, Any]] = {}
        self._changed_code: dict[str, str] = {}
        self._twice: set[str] = set()  # names under which two different parts were asked for
        self._small: set[str] = set()  # parts that ran on two trials because no record answers them
        self._here: dict[int, str] = {}  # number of a cell -> what ran in it and did not come from the record
        self._plan = _plan_of_verification() if replaying else None

    # --- what goes in

    def described(self) -> dict[str, Any]:
        """What a part depends on that reads the chapter: its settings, seed and image sets."""
        return {"settings": vars(self.settings), "seed": self.seed, "data": dict(sorted(self._sets.items()))}

    @property
    def replays(self) -> bool:
        """Whether this chapter shows the committed reference run."""
        return self._recorded is not None

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

        known = self._reference.get("sets", {}).get(request) if self.replays else None
        images = opened() if known is None else records.RecordedSet(known, opened)
        if known is not None and self._plan is not None:
            images.opened  # noqa: B018 - a verification needs the record's own images, and says at once that it lacks them
        self._known[request] = records.known_of(images)
        if images.substitute:
            stands_for = self.ledger.substitutes.get(images.name, "").split(" and ")
            if name not in stands_for:
                self.ledger.substitutes[images.name] = " and ".join([*filter(None, stands_for), name])
                asked, name_here = html.escape(name), html.escape(images.name)
                text = (
                    f"The paper's <b>{asked}</b> is not here, so <b>{name_here}</b> stands in: "
                    f"{html.escape(images.source)} Claims that need {asked} are <i>not decided here</i>. To use your "
                    f"own copy, set <code>data_root</code> or <code>REPROLIB_DATA</code>."
                )
                if known is not None:
                    text = (
                        f"The reference run had no <b>{asked}</b>: <b>{name_here}</b> stands in. "
                        f"{html.escape(images.source)} Claims that need {asked} are <i>not decided here</i>."
                    )
                self.show(_box("⚠ Substitute data", text, "#D55E00"))
        self._sets[f"{images.name} ({split})"] = images
        return images

    def threat(self, model: ThreatModel) -> None:
        """Show the threat model as a box: what the attacker knows, and what it does not."""
        self._threat = model
        rows = [(html.escape(question), html.escape(answer)) for question, answer in model.rows()]
        items = "".join(f"<li><i>{question}</i> {answer}</li>" for question, answer in rows)
        self.show(_box("Threat model", f"<ul style='margin:.3rem 0 0'>{items}</ul>", "#0072B2"))

    def settings_table(self) -> None:
        """Show the settings of all four profiles, with the active column marked."""
        columns = {
            f"▶ {name} (this run)" if name == self.profile else name: self._sizes[name] for name in claims.PROFILES
        }
        table = pd.DataFrame(
            {"setting": [name.replace("_", " ") for name in vars(self.settings)]}
            | {title: [_words(value) for value in sizes.values()] for title, sizes in columns.items()}
        )
        self.table(table, "The sizes of this chapter's experiments in the four profiles.")

    # --- measuring

    def part(self, name: str, function: Callable[..., Any], *, pictures: int | None = None, **inputs: Any) -> Any:
        """The result of `function(**inputs)`: read from the committed record, or computed once and stored.

        function: returns a DataFrame, or a dictionary of tensors, tables and JSON values. A killed chapter resumes
        after its last finished part; split a long experiment by calling `part` once a network. pictures: how many
        images of each tensor of pictures are kept; None keeps all.
        A record answers where name, function, inputs and seed are equal (`records.describe`). In a chapter that shows
        the reference run, a part whose inputs were changed runs here on two trials, and says so; an old result is never
        shown in its place. A run's own store goes by the code and the installed packages as well
        (`records.code_fingerprint`): change what a part runs, and it runs again; an edited docstring changes nothing.
        What is returned went through the store, so fresh, resumed and replayed chapters see the same numbers.
        Raises ValueError for inputs whose content cannot be identified, and for results of another type; MissingPart
        for a part that no record answers and that cannot be run on fewer trials.
        """
        _slug("name", name)
        asked = _asked(inputs)
        if not self.replays:
            return self._computed(name, function, asked, inputs, pictures)
        record = self._recorded.get(name)
        differing = ["there is no record of this name"] if record is None else None
        differing = differing or record.answers(records.describe(function), asked, self.seed)
        if differing:
            return self._run_small(name, function, inputs, differing)
        code = self._code_of(record, function, inputs)
        if self._plan is not None and name in self._plan["parts"]:
            here, _ = self._with_images(inputs)
            trials = self._plan["parts"].pop(name)  # once, however often the notebook asks for it
            self._verify(record, code, function, here if trials is None else here | {"trials": trials}, trials)
        self._note(record)
        return copy.deepcopy(record.value)  # a cell that changes what it got, and runs again, gets it as it was

    def live(self, name: str, function: Callable[..., Any], *, pictures: int | None = None, **inputs: Any) -> Any:
        """A part that really runs on this machine, for a few seconds, also where the reference run is shown.

        There it runs on the record's own images where they are at hand, and what comes out is compared with the record:
        a difference raises ValueError. Elsewhere it runs on the offline images, and nothing is compared; nor where the
        record answers other inputs, as after a change of the cell.
        """
        _slug("name", name)
        asked = _asked(inputs)
        if not self.replays:
            return self.part(name, function, pictures=pictures, **inputs)
        record, note = self._recorded.get(name), "There is no record of it to compare with."
        if record is not None and (differing := record.answers(records.describe(function), asked, self.seed)):
            self._small.add(name)
            note = f"Its record is of other inputs ({', '.join(differing)}), so there is nothing to compare it with."
            record = None
        here, same = self._with_images(inputs)
        self._ran_here(f"{name} ran on this machine, on {'the images of the record' if same else 'stand-in images'}")
        began = time.perf_counter()
        value = function(**here)
        seconds = time.perf_counter() - began
        if record is not None:
            self._note(record)
            code = self._code_of(record, function, inputs)
        if not same:
            note = "The paper's images are not here, so it ran on stand-ins, and its numbers are not the record's."
        elif record is not None:
            how, found = self._beside(record, value)
            if self._plan is not None:
                self._log(record, code, value, None, seconds)
            elif found:
                raise ValueError(f"part {name!r} ran here and differs from its record: {'; '.join(found)}")
            note = f"Beside the record, made at commit {record.made['commit']}: {how}."
        self.show(_box("Run live", f"This ran just now, in {seconds:.1f} s. {html.escape(note)}", "#009E73"))
        return value

    def measure(
        self, found: Mapping[str, Interval | Measured | Unmeasured], data: ImageSet | str | None = None
    ) -> None:
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
            images = getattr(entry.interval, "n", None) if entry.images is None else entry.images
            self.ledger.record(measure, entry.interval, images, name or next(iter(names), None), entry.conditions)

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table under this name in the results file, which a reference run commits."""
        _slug("name", name)
        self._tables[name] = table

    # --- showing

    def show(self, content: str, plain: str = "") -> None:
        """Display HTML (with a plain text for readers without it)."""
        text = plain or re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", content))).strip()
        display({"text/html": content, "text/plain": text}, raw=True)

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """Show a numbered figure and save it for the report; a smaller run's stands folded behind the reference run's.

        name: of the file, results/runs/<profile>/<paper>/NAME.png. caption: also what is read to who cannot see it.
        """
        number = self._number(name, caption)
        drawn = figures.png(figure)
        write_atomic(self._folder("runs") / f"{name}.png", figures.png_within(figure, PICTURE_LIMIT, drawn))
        self._figures[name]["file"] = f"{name}.png"
        title = f"<b>Figure {number}.</b> {html.escape(caption)}"
        body = figures.captioned(figures.picture(drawn, caption), f"{title} {self._origin()}", f"fig-{name}")
        kept = self._kept_figure(name)
        if not self.replays and kept is not None:
            picture, old = kept
            said = f"<b>Figure {number}.</b> {html.escape(old)} <i>(reference run, {html.escape(self._made())})</i>"
            front = figures.captioned(figures.picture(picture, old), said, f"fig-{name}")
            again = figures.captioned(figures.picture(drawn, caption), title)
            body = front + _folded("The same figure from this run", again)
        self.show(body, caption)

    def interactive(self, content: str, name: str, caption: str) -> None:
        """Show numbered HTML, for instance `figures.slider`."""
        number = self._number(name, caption)
        self.show(
            figures.captioned(
                content, f"<b>Figure {number}.</b> {html.escape(caption)} {self._origin()}", f"fig-{name}"
            ),
            caption,
        )

    def table(
        self, table: pd.DataFrame, caption: str, folded: str = "", saved: str = "", anchors: Sequence[str] = ()
    ) -> None:
        """Show a numbered table, which scrolls sideways on a narrow screen. The index is not shown.

        Columns `low` and `high` join the column before them, as the ends of its interval. folded: for long tables, the
        line that unfolds them. saved: the name under which the results file keeps it too (`save_table`).
        anchors: names of its rows, which links can lead to. A smaller run's table stands folded behind the reference
        run's.
        """
        if saved:
            self.save_table(saved, table)
        shown = _in_words(table)
        self._shown.append({"caption": caption, "table": shown})
        number = len(self._shown)
        body = _table(shown, number, caption, folded, self._origin(), anchors)
        stored = [] if self._reference is None else self._reference.get("shown", [])
        if not self.replays and number <= len(stored):
            old = stored[number - 1]
            note = f"<i>(reference run, {html.escape(self._made())})</i>"
            front = _table(old["table"], number, old["caption"], folded, note)
            body = front + _folded("The same table from this run", _table(shown, number, caption, "", "", anchors))
        self.show(body, f"Table {number}. {caption}\n{shown.to_string(index=False)}")

    def claims_table(self) -> None:
        """Show every claim that the chapter puts to the test, folded, before anything is measured."""
        every = self.ledger.paper.claims
        rows = [(claim.says, claim.where, str(claim.published), claim.provenance) for claim in every]
        book = sum(claim.origin == "book" for claim in every)
        self.table(
            pd.DataFrame(rows, columns=["claim", "where", "published", "provenance"]),
            "What this chapter puts to the test. Values marked recalled could not be checked against the paper and "
            "decide nothing.",
            folded=f"{len(every) - book} claims of the paper and {book} of this book",
        )

    def source(self, thing: Any) -> None:
        """Show the source of a function or class of reprolib, as it runs."""
        path = Path(inspect.getsourcefile(thing)).relative_to(clone.PACKAGE.parent)
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
            "records": self._parts,
            "state": self._state() if self.replays else {},
            "twice": sorted(self._twice),
            "provenance": provenance,
        }
        results.save(self._folder("runs").with_suffix(".json"), payload)
        self.table(
            self.ledger.table(None if self.replays else self._reference),
            "The ledger: every claim with its verdict, the published value, what was measured with its 95 % interval, "
            "the criterion, and the place in the paper.",
            anchors=[f"claim-{claim.id}" for claim in self.ledger.paper.claims],
        )
        if self._twice:
            names = html.escape(", ".join(sorted(self._twice)))
            text = f"Other inputs under a name that was taken: {names}. A record keeps the last, so this run is none."
            self.show(_box("⚠ Two parts of one name", text, "#D55E00"))
        if self.replays:
            self.show(_box("The record", self._state_of_the_record(payload["state"])))
        self.show(_box("Provenance", _provenance(provenance)))

    # --- inside

    def _open(self, now: list[Verdict], problem: str) -> None:
        """The top: the reference run's finding, central claims and picture; what this page shows; all its verdicts."""
        if now:
            folder = clone.reference_root() / self.paper
            self.show(opening.opening(self.ledger.paper, now, self._reference, folder))
        if self.replays:
            text = (
                f"This page shows the <b>reference run</b> from its committed records ({html.escape(self._made())}). "
                f"Every table and figure says whether it comes from the record or ran here."
            )
            self.show(_box("The reference run", text))
        else:
            run = f"profile <b>{self.profile}</b>, device <b>{self.device.type}</b>, seed <b>{self.seed}</b>"
            if self._folder_of_run == REPLAY:
                why = html.escape(problem) if problem else "it has not been computed yet as data"
                text = (
                    f"<b>Record missing</b>: {why}. What follows ran here at the sizes of a test ({run}): its numbers "
                    f"mean little. The pictures of the older reference run stand before its own. "
                    f"<code>reprolib run {html.escape(self.paper)} --profile gpu --data ROOT</code> makes the record, "
                    f"<code>--profile cpu</code> runs the chapter small."
                )
                self.show(_box("⚠ Record missing", text, "#D55E00"))
            else:
                self.show(_box("This run", run))
                if problem:
                    self.show(_box("⚠ The reference run cannot be shown", html.escape(problem), "#D55E00"))
        if now:
            self.show(_box("All claims in the reference run", _in_a_minute(now, self._made()), "#009E73"))

    def _made(self) -> str:
        """Device and hours of the reference run."""
        made = self._reference["provenance"]
        threads = f"{made['threads']} thread{'s' * (made['threads'] > 1)}"
        return f"{made['device']}, {threads}, {results.duration(made['seconds'])}"

    def _folder(self, kind: str) -> Path:
        return clone.results_root() / kind / self._folder_of_run / self.paper

    def _kept_figure(self, name: str) -> tuple[bytes, str] | None:
        """The reference run's picture of this name with its caption; None without one, or where its file is none."""
        if self._reference is None:
            return None
        return checked.kept_picture(self._reference["figures"], clone.reference_root() / self.paper, name)

    def _number(self, name: str, caption: str) -> int:
        _slug("name", name)
        if name not in self._figures:
            self._figures[name] = {"number": len(self._figures) + 1}
        self._figures[name]["caption"] = caption
        return self._figures[name]["number"]

    def _origin(self) -> str:
        """Whether what is shown now comes from the record or ran here, as the end of a caption."""
        if not self.replays:
            return "<i>(run here at the sizes of a test)</i>" if self._folder_of_run == REPLAY else ""
        here = self._here.get(_cell())
        if here is not None:
            return f"<i>({html.escape(here)})</i>"
        if any("changed" in text for text in self._here.values()):
            return "<i>(partly run here: a cell above was changed)</i>"
        return "<i>(from the record)</i>"

    def _ran_here(self, what: str) -> None:
        self._here[_cell()] = what

    def _computed(
        self,
        name: str,
        function: Callable[..., Any],
        asked: dict[str, Any],
        inputs: Mapping[str, Any],
        pictures: int | None,
    ) -> Any:
        """A part of a run: from the run's store, or computed and stored."""
        code = records.code_fingerprint(function, inputs)
        what = records.describe(function, "function")
        identity = [name, what, asked, self.seed, self.device.type, code, results.versions(), pictures]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        path = clone.results_root() / "parts" / self.profile / f"{self.paper}-{name}-{key}.json"
        record, problem = None, ""
        try:
            found = records.load(path)
            if other := self._other(found, name, what, asked, code):
                raise ValueError(f"{path.name} is the record of another part: its {', '.join(other)} differ")
            record = found
            self._resumed += record.made["seconds"]
        except (ValueError, OSError) as error:  # damaged: a part can always be computed again
            problem = _fault(error) if path.is_file() else ""
        if record is None:
            record = self._handed_over(name, what, asked, path)
        if record is None:
            if problem:
                self.show(_box("A stored part is computed again", html.escape(problem)))
            began = time.perf_counter()
            value = function(**inputs)
            made = records.made(self.device, time.perf_counter() - began)
            records.save(
                path,
                records.Record(self.paper, name, what, asked, self.seed, code, made, value),
                pictures,
            )
            record = records.load(path)
        folder = self._folder("runs") / "records"
        for suffix in (".safetensors", ".json"):
            if path.with_suffix(suffix).is_file():
                write_atomic(folder / f"{name}{suffix}", path.with_suffix(suffix).read_bytes())
        self._note(record)
        return record.value

    def _other(
        self, record: records.Record, name: str, what: Mapping[str, Any], asked: Mapping[str, Any], code: str
    ) -> list[str]:
        """In what a stored part is not the one that is asked for: a file's name alone does not make it that."""
        made = record.made
        pairs = {
            "paper": (record.paper, self.paper),
            "name": (record.name, name),
            "code": (record.code, code),
            "device": (made["device"].partition(":")[0], self.device.type),
            "packages": (made["versions"], results.versions()),
        }
        return [key for key, (one, other) in pairs.items() if one != other] + record.answers(what, asked, self.seed)

    def _handed_over(
        self, name: str, what: Mapping[str, Any], asked: Mapping[str, Any], path: Path
    ) -> records.Record | None:
        """The committed record of a part of a reference run that is not whole yet, which so goes on over days; or None.

        Where the code has changed since it was made, `reprolib verify` is asked for once the run is accepted. A run of
        a chapter whose reference is whole computes everything anew, and so does a small one, which says that it ran.
        """
        committed = clone.reference_root() / self.paper / "records" / path.with_stem(name).name
        whole = self._reference is not None and "records" in self._reference
        if whole or self.profile in ("smoke", "cpu") or not committed.is_file():
            return None
        try:
            record = records.load(committed)
        except (ValueError, OSError) as error:
            self.show(_box("A committed record is computed again", html.escape(_fault(error))))
            return None
        if (
            (record.paper, record.name) != (self.paper, name)
            or record.answers(what, asked, self.seed)
            or not record.committed
        ):
            return None
        for suffix in (".safetensors", ".json"):
            if committed.with_suffix(suffix).is_file():
                write_atomic(path.with_suffix(suffix), committed.with_suffix(suffix).read_bytes())
        self._resumed += record.made["seconds"]
        return record

    def _note(self, record: records.Record) -> None:
        if self._parts.get(record.name, {}).get("sha256", record.sha256) != record.sha256:
            self._twice.add(record.name)
        entry = {"sha256": record.sha256, "code": record.code} | record.made
        self._parts[record.name] = {
            key: entry[key] for key in ("sha256", "code", "commit", "device", "seconds", "time")
        }

    def _run_small(
        self, name: str, function: Callable[..., Any], inputs: Mapping[str, Any], differing: list[str]
    ) -> Any:
        """What stands in for a part that the record does not answer: two of its trials, run here, and said so."""
        why = f"its record does not answer what the notebook asks for ({', '.join(differing)})"
        why = next((problem for problem in self._problems if problem.startswith(f"{name}:")), why)
        command = f"reprolib run {self.paper} --profile gpu --data ROOT"
        if "trials" not in inputs:
            raise MissingPart(f"part {name!r}: {why}; `{command}` computes it anew")
        self._small.add(name)
        here, same = self._with_images(inputs)
        trials = list(inputs["trials"])
        here["trials"] = trials[:: max(1, len(trials) // 2)][:2]
        text = (
            f"Part <code>{html.escape(name)}</code>: {html.escape(why)}. So {len(here['trials'])} of its {len(trials)} "
            f"trials run here{'' if same else ', on stand-in images'}; <code>{html.escape(command)}</code> runs all."
        )
        self._ran_here(f"run here on {len(here['trials'])} trials: this part was changed")
        self.show(_box("⚠ Not from the record", text, "#D55E00"))
        return function(**here)

    def _with_images(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The inputs with images in place of what a record knows of them, and whether they are the record's own."""
        same = True

        def filled(value: Any) -> Any:
            nonlocal same
            if isinstance(value, records.RecordedSet):
                try:
                    return value.opened
                except (FileNotFoundError, ValueError):
                    same = False
                    return data.choose(value.asked, value.split, None, self.seed)
            if isinstance(value, dict):
                new = {key: filled(item) for key, item in value.items()}
                return new if any(new[key] is not item for key, item in value.items()) else value
            if type(value) in (list, tuple):
                new = [filled(item) for item in value]
                return type(value)(new) if any(a is not b for a, b in zip(new, value, strict=True)) else value
            if dataclasses.is_dataclass(value) and not isinstance(value, type | data.ImageSet):
                own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
                new = filled(own)
                return dataclasses.replace(value, **new) if new is not own else value
            return value

        return {key: filled(item) for key, item in inputs.items()}, same

    def _verify(
        self,
        record: records.Record,
        code: str,
        function: Callable[..., Any],
        inputs: Mapping[str, Any],
        trials: list[int] | None,
    ) -> None:
        """Run the planned trials of a part again, all if None, for the verification's log."""
        began = time.perf_counter()
        value = function(**inputs)
        self._log(record, code, value, trials, time.perf_counter() - began)

    def _log(self, record: records.Record, code: str, value: Any, trials: list[int] | None, seconds: float) -> None:
        """Write into the verification's log how a part that ran again compares with its record."""
        how, found = self._beside(record, value, trials)
        entry = {
            "part": record.name,
            "sha256": record.sha256,
            "trials": trials,
            "how": how,
            "differences": found,
            "beside": records.beside(record.value, value),
            "code": code,
            "seconds": round(seconds, 1),
        }
        with open(self._plan["log"], "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    def _beside(self, record: records.Record, value: Any, trials: list[int] | None = None) -> tuple[str, list[str]]:
        """How a part that ran here was compared with its record, and where it differs; trials: `differences`'s."""
        if not records.same_kind(record.made, records.made(self.device, 0.0)):
            how = "the same outcomes, on another kind of machine, or with other packages or threads"
            return how, records.differences(record.value, value, False, trials)
        found = records.differences(record.value, value, True, trials)
        if found and trials is not None and not records.differences(record.value, value, False, trials):
            return "the same outcomes; few trials at once are rounded otherwise than all of them", []
        return "equal to six digits", found

    def _code_of(self, record: records.Record, function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
        """The fingerprint of the code as it is now; a change since the record is noted."""
        code = records.code_fingerprint(function, inputs)
        if code != record.code:
            self._changed_code[record.name] = code
        return code

    def _state(self) -> dict[str, list[str]]:
        """What is not as the record has it, by kind; nothing but empty lists where the page is the reference run's."""
        verified = {entry["code"] for entry in self._verified()}
        changed = {name: code for name, code in self._changed_code.items()}
        return {
            "code changed and verified since": sorted(name for name, code in changed.items() if code in verified),
            "code changed and not verified": sorted(name for name, code in changed.items() if code not in verified),
            "not from the record": sorted(self._small),
            "records that nothing asks for": sorted(self._recorded.keys() - self._parts.keys() - self._small),
            "records that cannot be used": list(self._problems),
        }

    def _verified(self) -> list[dict[str, Any]]:
        """What was verified of these very records."""
        marks = {record.name: record.sha256 for record in self._recorded.values()}
        return [entry for entry in verification_log(self.paper) if marks.get(entry["part"]) == entry["sha256"]]

    def _state_of_the_record(self, state: Mapping[str, list[str]]) -> str:
        """The state in sentences."""
        commits = sorted({entry["commit"] or "unknown" for entry in self._parts.values()})
        lines = [
            f"{len(self._parts)} parts, read from <code>results/reference/{html.escape(self.paper)}/records</code>, "
            f"made at commit {html.escape(', '.join(commits))}."
        ]
        codes = set(self._changed_code.values())
        seen = [entry for entry in self._verified() if entry["code"] in codes]
        if seen:
            trials = sum(entry["count"] for entry in seen)
            how = "equal" if all(entry["how"].startswith("equal") for entry in seen) else "with the same outcomes"
            lines.append(f"Code changed since; {trials} trials re-run {how} at {html.escape(str(seen[-1]['commit']))}.")
        for kind, names in state.items():
            if names and kind != "code changed and verified since":
                lines.append(f"<b>{kind.capitalize()}</b>: {html.escape(', '.join(names))}.")
        return "<br>".join(lines)

    def _provenance(self) -> dict[str, Any]:
        """Of the run that made the numbers: this one, or that of the records."""
        fingerprints = {name: images.fingerprint for name, images in self._sets.items()}
        made = results.provenance(self.device, self.seed, fingerprints, time.perf_counter() - self._began)
        made["seconds"] = round(made["seconds"] + self._resumed, 1)  # with what stored parts had taken
        if self.replays:
            made = {**self._reference["provenance"], "data": fingerprints}
        return made


def verification_log(paper: str) -> list[dict[str, Any]]:
    """What `reprolib verify` has found equal, newest last; empty without a readable log."""
    keys = {"part", "sha256", "code", "commit", "count", "how", "time"}
    try:
        entries = results.load(clone.reference_root() / paper / "verified.json")["entries"]
        return [entry for entry in entries if keys <= entry.keys()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []


def accepted_records(paper: str, manifest: Mapping[str, Any]) -> tuple[dict[str, records.Record], list[str]]:
    """The records that an accepted run names, by part, and a line for each that cannot be used."""
    folder, found, problems = clone.reference_root() / paper / "records", {}, []
    for name, entry in manifest.items():
        try:
            _slug("a part's name", name)
            record = records.load(folder / f"{name}.json")
            if (record.paper, record.name) != (paper, name):
                raise ValueError(f"the record is of the paper {record.paper!r} and of part {record.name!r}")
            if not isinstance(entry, dict) or record.sha256 != entry.get("sha256"):
                raise ValueError("the record is not the one that was accepted: its checksum is another")
            if not record.committed:
                raise ValueError("the record was made from a tree with changes, which no commit holds")
            found[name] = record
        except FileNotFoundError:
            what = "its tensors are" if (folder / f"{name}.json").is_file() else "the record is"
            problems.append(f"{name}: {what} missing from {folder.name}")
        except (ValueError, OSError) as error:
            problems.append(f"{name}: {_fault(error)}")
    return found, problems


def _asked(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A part's inputs as a record keeps them: without devices, on which results do not depend."""
    told = {key: item for key, item in inputs.items() if not isinstance(item, torch.device)}
    return {key: records.describe(item, f"inputs[{key!r}]") for key, item in told.items()}


def _plan_of_verification() -> dict[str, Any] | None:
    path = os.environ.get(VERIFY)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def _cell() -> int:
    """Number of the notebook's running cell; 0 outside a notebook."""
    shell = get_ipython()
    return 0 if shell is None else shell.execution_count


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but PyTorch finds no CUDA device here: use device='cpu' (or 'auto')")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def is_slug(name: str) -> bool:
    """Whether a name may be a file's: no path, and the same on every file system."""
    return re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) is not None


def _slug(argument: str, name: str) -> None:
    if not is_slug(name):
        raise ValueError(f"{argument}={name!r}: expected small letters, digits, dashes, dots and underscores")


# --- HTML that reads in light and dark, in Jupyter and in the book


def _box(title: str, body: str, colour: str = "rgba(128,128,128,.8)") -> str:
    return (
        f'<div role="note" style="border:1px solid rgba(128,128,128,.5);border-left:.35rem solid {colour};'
        f'border-radius:.3rem;background:rgba(128,128,128,.08);padding:.6rem .9rem;margin:1rem 0">'
        f"<b>{html.escape(title)}</b><br>{body}</div>"
    )


def _in_a_minute(verdicts: list[Verdict], made: str) -> str:
    """How the reference run judged the papers' claims, and below them the book's own; unfolded, which and by what."""
    lines = [f"{html.escape(made)}."]
    for origin, whose in (("paper", "The papers' claims"), ("book", "This book's own claims")):
        own = [verdict for verdict in once(verdicts) if verdict.origin == origin and verdict.kind != "setting"]
        if own:
            lines.append(f"<div style='margin-top:.4rem'>{whose}, {len(own)}:</div>")
        for word, symbol in SYMBOLS.items():
            items = [_in_short(verdict) for verdict in own if verdict.verdict == word]
            if items:
                title = f"{symbol} <b>{len(items)} {word}</b>"
                lines.append(_folded(title, f"<ul>{''.join(items)}</ul>"))
    return "".join(lines)


def _in_short(verdict: Verdict) -> str:
    """A claim as an item of a list, with what was published and measured."""
    percent = (verdict.published or "").endswith("%")
    sides = [f"published: {verdict.published}"] if verdict.origin == "paper" else []
    measured = verdict.measured(percent)
    sides += [f"measured: {measured}"] if measured else []
    sides += [verdict.note] if verdict.note else []
    return f"<li>{html.escape(verdict.says)} <small>({html.escape('; '.join(sides))})</small></li>"


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table's cells as text; columns `low` and `high` join the one before them."""
    shown = pd.DataFrame({str(c): [_words(v) for v in table[c]] for c in table.columns})
    if "low" in shown and "high" in shown:
        value = shown.columns[shown.columns.get_loc("low") - 1]
        shown[value] += " [" + shown.pop("low") + ", " + shown.pop("high") + "]"
    return shown


def _table(shown: pd.DataFrame, number: int, caption: str, folded: str, note: str, anchors: Sequence[str] = ()) -> str:
    label = html.escape(f"Table {number}. {caption}")
    body = shown.to_html(index=False, border=0, classes="dataframe", justify="left")
    body = body.replace("<th>", '<th scope="col">')
    for anchor in anchors:  # row by row: the heading's is none of these, its class stands in it
        body = body.replace("<tr>", f'<tr id="{html.escape(anchor, quote=True)}">', 1)
    body = f'<div style="overflow-x:auto;font-size:.85rem" tabindex="0" role="region" aria-label="{label}">{body}</div>'
    if folded:
        body = _folded(html.escape(folded), body)
    return (
        f'<figure style="margin:1rem 0"><figcaption style="margin-bottom:.3rem"><b>Table {number}.</b> '
        f"{html.escape(caption)} {note}</figcaption>{body}</figure>"
    )


def _words(value: Any) -> str:
    """A cell of a table: numbers to three digits, intervals with their ends, missing values as a dash."""
    if isinstance(value, Interval):
        return value_words(value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "—"
    if isinstance(value, float | np.floating):
        return "∞" if value == np.inf else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    return str(value)


def _provenance(record: Mapping[str, Any]) -> str:
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
