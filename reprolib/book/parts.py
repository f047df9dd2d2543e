"""The parts of a chapter: read from their records, or computed here once and stored; and what is not as recorded."""

from __future__ import annotations

import copy
import hashlib
import html
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from IPython import get_ipython

from reprolib import clone
from reprolib.book import comparison, description, fingerprints, markup, records, reference_run, results
from reprolib.book.recorded_set import with_images

VERIFY = "REPROLIB_VERIFY"
"""Environment variable with the file that says which parts a verification runs again (`reprolib.book.verification`)."""


class MissingPart(RuntimeError):
    """A part that no record answers and that cannot be run small; the message names the command that runs it."""


class Parts:
    """The parts of one open chapter.

    reference: the results of the committed reference run, None without. replaying: whether the chapter shows it where
    its records are there. folder: where this run's records go. show: puts HTML on the page.
    replays: whether the reference run is shown, from its records. entries: part -> what the results file keeps of its
    record. resumed: seconds that stored parts had taken. twice: names under which two different parts were asked for.
    """

    def __init__(
        self,
        paper: str,
        profile: str,
        seed: int,
        device: torch.device,
        reference: dict[str, Any] | None,
        replaying: bool,
        folder: Path,
        show: Callable[[str], None],
    ) -> None:
        self._paper, self._profile, self._seed, self._device = paper, profile, seed, device
        self._replaying, self._folder, self._show = replaying, folder, show
        manifest = None if reference is None else reference.get("records")
        self._whole = manifest is not None
        self.replays = replaying and self._whole
        self._recorded: dict[str, records.Record] = {}
        self._problems: list[str] = []
        if replaying and manifest is not None:
            self._recorded, self._problems = reference_run.accepted_records(paper, manifest)
        self._plan = _plan_of_verification() if replaying else None
        self.entries: dict[str, dict[str, Any]] = {}
        self.resumed = 0.0
        self.twice: set[str] = set()
        self._here: dict[int, str] = {}  # number of a cell -> what ran in it and did not come from the record
        self._live: set[int] = set()  # numbers of the cells with a live experiment
        self._changed: dict[str, str] = {}  # part -> the fingerprint of its code, where it is not its record's
        self._small: set[str] = set()  # parts that ran on two trials because no record answers them

    @property
    def verifying(self) -> bool:
        """Whether this is a verification, which needs the record's own images."""
        return self._plan is not None

    @property
    def ran_live(self) -> bool:
        """Whether the running cell holds a live experiment, which every run makes anew."""
        return cell() in self._live

    def origin(self) -> str:
        """Whether what is shown now comes from the record or ran here, as the end of a caption."""
        if not self.replays:
            return "<i>(run here at the sizes of a test)</i>" if self._replaying else ""
        here = self._here.get(cell())
        if here is not None:
            return f"<i>({html.escape(here)})</i>"
        if any("changed" in text for text in self._here.values()):
            return "<i>(partly run here: a cell above was changed)</i>"
        return "<i>(from the record)</i>"

    def part(self, name: str, function: Callable[..., Any], inputs: Mapping[str, Any], pictures: int | None) -> Any:
        """As `Chapter.part`."""
        records.check_slug("name", name)
        if not self.replays:
            return self._computed(name, function, inputs, pictures)
        record, differing = self._answering(name, function, inputs)
        if record is None:
            return self._run_small(name, function, inputs, differing or ["there is no record of this name"])
        code = self._code_of(record, function, inputs)
        if self._plan is not None and name in self._plan["parts"]:
            here, _ = with_images(inputs, self._seed)
            trials = self._plan["parts"].pop(name)  # once, however often the notebook asks for it
            began = time.perf_counter()
            value = function(**(here if trials is None else here | {"trials": trials}))
            self._log(self._plan["log"], record, code, value, trials, time.perf_counter() - began)
        self._note(record)
        return copy.deepcopy(record.value)  # a cell that changes what it got, and runs again, gets it as it was

    def live(self, name: str, function: Callable[..., Any], inputs: Mapping[str, Any], pictures: int | None) -> Any:
        """As `Chapter.live`."""
        self._live.add(cell())
        if not self.replays:
            return self.part(name, function, inputs, pictures)
        records.check_slug("name", name)
        record, differing = self._answering(name, function, inputs)
        note = "There is no record of it to compare with."
        if differing:
            self._small.add(name)
            note = f"Its record is of other inputs ({', '.join(differing)}), so there is nothing to compare it with."
        here, same = with_images(inputs, self._seed)
        self._here[cell()] = (
            f"{name} ran on this machine, on {'the images of the record' if same else 'stand-in images'}"
        )
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
                self._log(self._plan["log"], record, code, value, None, seconds)
            elif found:
                raise ValueError(f"part {name!r} ran here and differs from its record: {'; '.join(found)}")
            note = f"Beside the record, made at commit {record.made['commit']}: {how}."
        self._show(markup.box("Run live", f"This ran just now, in {seconds:.1f} s. {html.escape(note)}", "#009E73"))
        return value

    def _answering(
        self, name: str, function: Callable[..., Any], inputs: Mapping[str, Any]
    ) -> tuple[records.Record | None, list[str]]:
        """The record that answers a part, or None and in what the one of its name differs: nothing where none is."""
        asked, record = _asked(inputs), self._recorded.get(name)
        if record is None:
            return None, []
        differing = record.answers(description.describe(function), asked, self._seed)
        return (None, differing) if differing else (record, [])

    def _computed(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: Mapping[str, Any],
        pictures: int | None,
    ) -> Any:
        """A part of a run: from the run's store, or computed and stored."""
        asked = _asked(inputs)
        code = fingerprints.code_fingerprint(function, inputs)
        what = description.describe(function, "function")
        identity = [name, what, asked, self._seed, self._device.type, code, results.versions(), pictures]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        path = clone.results_root() / "parts" / self._profile / f"{self._paper}-{name}-{key}.json"
        record, problem = None, ""
        try:
            found = records.load(path)
            if other := self._other(found, name, what, asked, code):
                raise ValueError(f"{path.name} is the record of another part: its {', '.join(other)} differ")
            record = found
            self.resumed += record.made["seconds"]
        except (ValueError, OSError) as error:  # damaged: a part can always be computed again
            problem = reference_run.fault(error) if path.is_file() else ""
        if record is None:
            record = self._handed_over(name, what, asked, path)
        if record is None:
            if problem:
                self._show(markup.box("A stored part is computed again", html.escape(problem)))
            began = time.perf_counter()
            value = function(**inputs)
            made = records.made(self._device, time.perf_counter() - began)
            records.save(path, records.Record(self._paper, name, what, asked, self._seed, code, made, value), pictures)
            record = records.load(path)
        records.copy(path, self._folder / f"{name}.json")
        self._note(record)
        return record.value

    def _other(
        self, record: records.Record, name: str, what: Mapping[str, Any], asked: Mapping[str, Any], code: str
    ) -> list[str]:
        """In what a stored part is not the one that is asked for: a file's name alone does not make it that."""
        made = record.made
        pairs = {
            "paper": (record.paper, self._paper),
            "name": (record.name, name),
            "code": (record.code, code),
            "device": (made["device"].partition(":")[0], self._device.type),
            "packages": (made["versions"], results.versions()),
        }
        return [key for key, (one, other) in pairs.items() if one != other] + record.answers(what, asked, self._seed)

    def _handed_over(
        self, name: str, what: Mapping[str, Any], asked: Mapping[str, Any], path: Path
    ) -> records.Record | None:
        """The committed record of a part of a reference run that is not whole yet, which so goes on over days; or None.

        Where the code has changed since it was made, `reprolib verify` is asked for once the run is accepted. A run of
        a chapter whose reference is whole computes everything anew, and so does a small one, which says that it ran.
        """
        committed = clone.reference_root() / self._paper / "records" / path.with_stem(name).name
        if self._whole or self._profile in ("smoke", "cpu") or not committed.is_file():
            return None
        try:
            record = records.load(committed)
        except (ValueError, OSError) as error:
            self._show(markup.box("A committed record is computed again", html.escape(reference_run.fault(error))))
            return None
        if (
            (record.paper, record.name) != (self._paper, name)
            or record.answers(what, asked, self._seed)
            or not record.committed
        ):
            return None
        records.copy(committed, path)
        self.resumed += record.made["seconds"]
        return record

    def _note(self, record: records.Record) -> None:
        if self.entries.get(record.name, {}).get("sha256", record.sha256) != record.sha256:
            self.twice.add(record.name)
        entry = {"sha256": record.sha256, "code": record.code} | record.made
        self.entries[record.name] = {
            key: entry[key] for key in ("sha256", "code", "commit", "device", "seconds", "time")
        }

    def _run_small(
        self, name: str, function: Callable[..., Any], inputs: Mapping[str, Any], differing: list[str]
    ) -> Any:
        """What stands in for a part that the record does not answer: two of its trials, run here, and said so."""
        why = f"its record does not answer what the notebook asks for ({', '.join(differing)})"
        why = next((problem for problem in self._problems if problem.startswith(f"{name}:")), why)
        command = f"reprolib run {self._paper} --profile gpu --data ROOT"
        if "trials" not in inputs:
            raise MissingPart(
                f"part {name!r}: {why}; `{command}` computes it anew. To try a changed cell at once, choose "
                "profile='smoke' or 'cpu'"
            )
        self._small.add(name)
        here, same = with_images(inputs, self._seed)
        trials = list(inputs["trials"])
        here["trials"] = trials[:: max(1, len(trials) // 2)][:2]
        text = (
            f"Part <code>{html.escape(name)}</code>: {html.escape(why)}. So {len(here['trials'])} of its {len(trials)} "
            f"trials run here{'' if same else ', on stand-in images'}; <code>{html.escape(command)}</code> runs all."
        )
        self._here[cell()] = f"run here on {len(here['trials'])} trials: this part was changed"
        self._show(markup.box("⚠ Not from the record", text, "#D55E00"))
        return function(**here)

    def _log(
        self, log: str, record: records.Record, code: str, value: Any, trials: list[int] | None, seconds: float
    ) -> None:
        """Write into the verification's log how a part that ran again compares with its record."""
        how, found = self._beside(record, value, trials)
        entry = {
            "part": record.name,
            "sha256": record.sha256,
            "trials": trials,
            "how": how,
            "differences": found,
            "beside": comparison.beside(record.value, value),
            "code": code,
            "seconds": round(seconds, 1),
        }
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _beside(self, record: records.Record, value: Any, trials: list[int] | None = None) -> tuple[str, list[str]]:
        """How a part that ran here was compared with its record, and where it differs; trials: `differences`'s."""
        if not records.same_kind(record.made, records.made(self._device, 0.0)):
            how = "the same outcomes, on another kind of machine, or with other packages or threads"
            found = comparison.differences(record.value, value, False, trials)
            for few in (comparison.ended_elsewhere, comparison.fell_otherwise) if found else ():
                if told := few(record.value, value, trials):
                    return f"{how}; {told}", []
            return how, found
        found = comparison.differences(record.value, value, True, trials)
        if found and trials is not None and not comparison.differences(record.value, value, False, trials):
            return "the same outcomes; few trials at once are rounded otherwise than all of them", []
        return "equal to six digits", found

    def _code_of(self, record: records.Record, function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
        """The fingerprint of the code as it is now; a change since the record is noted."""
        code = fingerprints.code_fingerprint(function, inputs)
        if code != record.code:
            self._changed[record.name] = code
        return code

    def state(self) -> dict[str, list[str]]:
        """What is not as the record has it, by kind; nothing but empty lists where the page is the reference run's."""
        verified = {entry["code"] for entry in self._verified()}
        changed = self._changed.items()
        return {
            "code changed and verified since": sorted(name for name, code in changed if code in verified),
            "code changed and not verified": sorted(name for name, code in changed if code not in verified),
            "not from the record": sorted(self._small),
            "records that nothing asks for": sorted(self._recorded.keys() - self.entries.keys() - self._small),
            "records that cannot be used": list(self._problems),
        }

    def _verified(self) -> list[dict[str, Any]]:
        """What was verified of these very records."""
        marks = {record.name: record.sha256 for record in self._recorded.values()}
        return [
            entry
            for entry in reference_run.verification_log(self._paper)
            if marks.get(entry["part"]) == entry["sha256"]
        ]

    def told(self, state: Mapping[str, list[str]]) -> str:
        """The state in sentences."""
        commits = sorted({entry["commit"] or "unknown" for entry in self.entries.values()})
        lines = [
            f"{len(self.entries)} parts, read from <code>results/reference/{html.escape(self._paper)}/records</code>, "
            f"made at commit {html.escape(', '.join(commits))}."
        ]
        codes = set(self._changed.values())
        seen = [entry for entry in self._verified() if entry["code"] in codes]
        if seen:
            trials = sum(entry["count"] for entry in seen)
            how = "equal" if all(entry["how"].startswith("equal") for entry in seen) else "with the same outcomes"
            lines.append(f"Code changed since; {trials} trials re-run {how} at {html.escape(str(seen[-1]['commit']))}.")
        for kind, names in state.items():
            if names and kind != "code changed and verified since":
                lines.append(f"<b>{kind.capitalize()}</b>: {html.escape(', '.join(names))}.")
        return "<br>".join(lines)


def cell() -> int:
    """Number of the notebook's running cell; 0 outside a notebook."""
    shell = get_ipython()
    return 0 if shell is None else shell.execution_count


def _asked(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A part's inputs as a record keeps them: without devices, on which results do not depend."""
    told = {key: item for key, item in inputs.items() if not isinstance(item, torch.device)}
    return {key: description.describe(item, f"inputs[{key!r}]") for key, item in told.items()}


def _plan_of_verification() -> dict[str, Any] | None:
    path = os.environ.get(VERIFY)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None
