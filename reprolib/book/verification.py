"""The reference run as data: `accept` a run as the reference, `compare` another with it, `verify` it by a new run.

It moves files and starts chapters; it measures nothing itself. The rules stand in the developer guide.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from reprolib import clone
from reprolib.book import (
    chapter,
    checked,
    claims,
    comparison,
    notebooks,
    parts,
    records,
    reference_run,
    results,
    runner,
)
from reprolib.book.judge import judge
from reprolib.book.verdicts import Verdict, validate_verdicts

TRIALS = 3
"""Trials of a long part that a verification runs again: more than one, because a single trial takes another path."""

LONG = 0.25
"""The share of a verification's seconds beyond which a part is long. A shorter one runs whole, which alone gives every
digit again: a search is chaotic, and how many trials run at once decides how its sums are rounded."""

LIMIT_MB = 3.0
"""A chapter's committed records may take so much."""

OVERHEAD = 20.0
"""Seconds that a chapter needs to open and close."""


# --- accept -----------------------------------------------------------------------------------------------------------


def accept(root: Path, paper: str, profile: str = "gpu") -> str:
    """Make a finished run of a paper's chapter the reference run: results, records and figures; returns what was done.

    profile: "reference" takes the results of a chapter that was drawn from the present records: after a change of
    claims, intervals or figures, which needs no new run.
    Raises FileNotFoundError for a run that never ended, and ValueError for one that failed or was made by uncommitted
    code, whose records or figures are incomplete, damaged or of another paper, that asks for measures of another file
    of claims, or that is too large. The old reference stays until the new one is whole, and also where this fails.
    """
    if profile not in chapter.PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(chapter.PROFILES)}")
    runs = clone.results_root() / "runs" / profile
    path, made = runs / f"{paper}.json", runs / paper
    if not path.is_file():
        raise FileNotFoundError(
            f"results/runs/{profile}/{paper}.json is not there: this run has not ended, or failed. "
            f"`reprolib run {paper} --profile {profile}` goes on where it stopped"
        )
    payload = results.load(path)
    whose, sizes = (payload.get(key) if isinstance(payload, dict) else None for key in ("paper", "profile"))
    if whose != paper or profile not in (chapter.REPLAY, sizes):
        raise ValueError(f"{path.name} is of {whose!r} at {sizes!r}, not this run's")
    checked.check(payload, paper, path.name)
    target = clone.reference_root() / paper
    source = made / "records"
    if profile == chapter.REPLAY:
        source = target / "records"
        if stale := [f"{kind}: {', '.join(names)}" for kind, names in payload.get("state", {}).items() if names]:
            stale = [line for line in stale if "verified since" not in line]
        if stale or not payload.get("state"):
            raise ValueError(f"{path.name} does not show the records as they are ({'; '.join(stale) or 'no records'})")
    _check_complete(payload, path, root, paper)
    size = _put_in_place(payload, source, made, target, keeps=profile == chapter.REPLAY)
    count = len(payload["records"])
    return f"{paper}: {count} records, {size:.1f} MB, are the reference run now; commit results/reference/{paper}"


def _check_complete(payload: dict[str, Any], path: Path, root: Path, paper: str) -> None:
    """Raise ValueError for results that lack something, took one name twice, or do not fit the file of claims."""
    if not payload.get("records"):
        raise ValueError(f"{path.name} names no records: it was written by an older reprolib; run the chapter again")
    if missing := sorted({"measures", "verdicts", "figures", "provenance"} - payload.keys()):
        raise ValueError(f"{path.name} lacks {', '.join(missing)}: run the chapter again")
    if payload.get("twice"):
        names = ", ".join(payload["twice"])
        raise ValueError(
            f"other inputs under a name that was taken: {names}. Name these parts apart, or, after a change of a cell, "
            f"run the chapter again from its start"
        )
    loaded = claims.load(root / "claims" / f"{paper}.yml")
    if unknown := sorted(payload["measures"].keys() - loaded.measures.keys()):
        raise ValueError(f"{path.name} holds measures that claims/{paper}.yml does not declare: {', '.join(unknown)}")
    validate_verdicts(payload["verdicts"], loaded)


def _put_in_place(payload: dict[str, Any], source: Path, made: Path, target: Path, keeps: bool) -> float:
    """Make a folder of the run beside the reference and let it take its place; returns megabytes of records.

    source: where the run's records are; made: where its figures are. keeps: the log of verifications goes on, and so
    does what the reference run shows of its own live experiment.
    """
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():  # killed between the two steps below
        os.replace(old, target)
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        live = _keep_live(payload, target) if keeps else set()
        size = _copied(payload, source, fresh)
        for figure in payload["figures"]:
            if figure.get("file"):
                _copy_picture(figure, target if figure["name"] in live else made, fresh)
        results.save(fresh / f"{target.name}.json", payload)
        if keeps and (target / "verified.json").is_file():
            shutil.copyfile(target / "verified.json", fresh / "verified.json")
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return size


def _keep_live(payload: dict[str, Any], target: Path) -> set[str]:
    """Give a replay's live experiment the captions and tables of the reference run; returns the figures to keep.

    A replay runs it again, on stand-ins where the images are not here: that is no part of the reference run.
    """
    old = checked.read(target / f"{target.name}.json", payload["paper"])[1]
    captions = {figure["name"]: figure["caption"] for figure in old["figures"] if figure.get("file")}
    live = [figure for figure in payload["figures"] if figure.get("live") and figure["name"] in captions]
    for figure in live:
        figure["caption"] = captions[figure["name"]]
    tables = [[one for one in run.get("shown", []) if one.get("live")] for run in (payload, old)]
    for mine, kept in zip(*tables, strict=False):
        mine.update(kept)
    return {figure["name"] for figure in live}


def _copy_picture(figure: Mapping[str, Any], made: Path, fresh: Path) -> None:
    try:
        drawn = checked.picture(made, figure["file"])
    except ValueError as error:
        raise ValueError(f"the figure {figure['name']!r}: {error}; run the chapter again") from error
    shutil.copyfile(drawn, fresh / drawn.name)


def _copied(payload: dict[str, Any], source: Path, fresh: Path) -> float:
    """Copy a run's records into a new folder, and check the copies; returns megabytes of records."""
    (fresh / "records").mkdir(parents=True)
    for name, entry in payload["records"].items():
        copy = fresh / "records" / f"{name}.json"
        if not records.is_slug(name) or not (source / copy.name).is_file():
            raise ValueError(f"the record of part {name!r} is missing from the run: run the chapter again")
        shutil.copyfile(source / copy.name, copy)
        if records.checksum(copy) != entry["sha256"]:
            raise ValueError(f"the record of part {name!r} is another than the run's: run the chapter again")
        tensors = copy.with_suffix(".safetensors").name
        if (source / tensors).is_file():
            shutil.copyfile(source / tensors, fresh / "records" / tensors)
        try:
            record = records.load(copy)
        except FileNotFoundError as error:
            raise ValueError(f"the tensors of part {name!r} are missing from the run: run it again") from error
        if (record.paper, record.name) != (payload["paper"], name):
            raise ValueError(f"the record of part {name!r} is of the paper {record.paper!r}, part {record.name!r}")
        if not record.committed:
            raise ValueError(
                f"part {name!r} was made by code that no commit holds ({record.made['commit'] or 'no checkout'}): "
                f"commit it and run the chapter again"
            )
    size = sum(file.stat().st_size for file in (fresh / "records").iterdir()) / 1e6
    if size > LIMIT_MB:
        raise ValueError(f"the records take {size:.1f} MB, a chapter may have {LIMIT_MB:g}: keep fewer `pictures`")
    return size


# --- compare ----------------------------------------------------------------------------------------------------------


def compare(paper: str, run: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Anybody's run beside the reference: its measures, and its records row by row.

    run: the results file of a run, with the folder of its records beside it (results/runs/<profile>/<paper>.json).
    Returns a row for each measure of either (measure, reference, run), and one for each part of either (part, equal,
    what differs). Raises FileNotFoundError where one of the two is not there, ValueError for a file of another paper.
    """
    mine, home = checked.read(run, paper)[1], clone.reference_root() / paper
    reference = checked.read(home / f"{paper}.json", paper)[1]
    measures = [
        {
            "measure": name,
            "reference": _interval(reference["measures"].get(name)),
            "run": _interval(mine["measures"].get(name)),
        }
        for name in dict.fromkeys([*reference["measures"], *mine["measures"]])
    ]
    old, damaged = records.read_all(home / "records")
    new, broken = records.read_all(run.with_suffix("") / "records")
    rows = [{"part": "?", "equal": "no", "what differs": f"cannot be read: {problem}"} for problem in damaged + broken]
    for name in sorted(old.keys() & new.keys()):
        one, other = old[name], new[name]
        if asked := one.answers(other.function, other.inputs, other.seed):
            rows.append({"part": name, "equal": "—", "what differs": f"asked otherwise: {', '.join(asked)}"})
        else:
            found = comparison.differences(one.value, other.value, records.same_kind(one.made, other.made))
            rows.append({"part": name, "equal": "no" if found else "yes", "what differs": "; ".join(found)})
    only = {"only in the reference": old.keys() - new.keys(), "only in the run": new.keys() - old.keys()}
    rows += [
        {"part": name, "equal": "—", "what differs": where} for where, names in only.items() for name in sorted(names)
    ]
    return pd.DataFrame(measures), pd.DataFrame(rows, columns=["part", "equal", "what differs"])


def verdicts(paper: str, run: Path) -> pd.DataFrame:
    """The verdicts of anybody's run beside the reference's, both by the claims as they are now.

    run: as for `compare`. A row for each claim that is judged: claim, reference, run, flipped. A verdict flips where
    both runs decide and one finds otherwise, whether on a substitute or not. What a small run leaves open has not
    flipped. Raises as `compare`.
    """
    loaded = claims.load(clone.repository() / "claims" / f"{paper}.yml")
    files = (clone.reference_root() / paper / f"{paper}.json", run)
    old, new = (judge(loaded, checked.read(path, paper)[1]) for path in files)
    rows = [
        {
            "claim": a.id,
            "reference": a.verdict,
            "run": b.verdict,
            "flipped": a.decided and b.decided and _found(a) != _found(b),
        }
        for a, b in zip(old, new, strict=True)
        if a.kind != "setting"
    ]
    return pd.DataFrame(rows, columns=["claim", "reference", "run", "flipped"])


def _found(verdict: Verdict) -> str:
    on_a_substitute = {"holds": "reproduced", "fails": "not reproduced"}
    word = verdict.verdict.removesuffix(" on a substitute")
    return on_a_substitute.get(word, word)


def _interval(stored: dict[str, Any] | None) -> str:
    return "—" if stored is None else f"{stored['value']:.4g} [{stored['low']:.4g}, {stored['high']:.4g}]"


# --- verify -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """What a verification found: a line for each part that ran again, and those that differ from their record."""

    lines: list[str]
    failed: list[str]
    parts: int


def has_records(paper: str) -> bool:
    """Whether the reference run of a paper is data that can be verified; True also where its files are damaged."""
    home = clone.reference_root() / paper
    try:
        return bool(results.load(home / f"{paper}.json").get("records"))
    except FileNotFoundError:
        return (home / "records").is_dir()
    except ValueError:
        return True


def verify(
    which: notebooks.Chapter, parameters: notebooks.Parameters, seconds: float, tell: Callable[[str], None] = print
) -> Verified:
    """Run trials of a chapter's committed records again, under their seed, and compare number with number.

    Parts are drawn at random among those verified least recently, as many as fit into `seconds` by the seconds that
    their records took; of a long part whose tables know their trials, TRIALS of them, and all where one of these
    differs, whatever that takes. What was found equal goes into results/reference/KEY/verified.json, an entry for each
    part and code that it was run by; what differs is taken out of it.
    Raises FileNotFoundError without records or a data root; ValueError for records that are missing, damaged or not
    those of the results; RuntimeError where the chapter does not execute, as with a data set that is absent or has
    another fingerprint, saying why.
    """
    if parameters.profile != "reference":
        raise ValueError(f"profile={parameters.profile!r}: a verification executes the profile reference")
    paper, home = which.paper, clone.reference_root() / which.paper
    named = results.load(home / f"{paper}.json").get("records") if (home / f"{paper}.json").is_file() else None
    if not named:
        raise FileNotFoundError(f"results/reference/{paper} holds no records: nothing to verify")
    found, problems = reference_run.accepted_records(paper, named)
    if problems:
        raise ValueError("; ".join(problems))
    data_root = parameters.data_root or os.environ.get("REPROLIB_DATA", "")
    if not data_root:
        raise FileNotFoundError("a verification runs on the record's own images: name their folder with --data")
    parameters = replace(parameters, seed=next(iter(found.values())).seed, data_root=data_root)
    log = [entry for entry in reference_run.verification_log(paper) if _of_record(entry, found)]
    plan = _drawn(found, log, seconds, _waiting(paper))
    # as many as the records were made with: otherwise their digits do not come out again
    threads = Counter(found[name].made["threads"] for name in plan).most_common(1)[0][0]
    tell(f"{paper}: {len(plan)} of {len(found)} parts run again")
    entries = _run_again(which, parameters, plan, threads)
    # chaos, or a fault? a few trials cannot say, and all of them can (`comparison.ended_elsewhere`, `fell_otherwise`)
    unsure: dict[str, list[int] | None] = {
        entry["part"]: None for entry in entries if entry["differences"] and entry["trials"] is not None
    }
    if unsure:
        tell(f"{paper}: trials differ, so the whole part runs again: {', '.join(sorted(unsure))}")
        whole = _run_again(which, parameters, unsure, threads)
        entries = [entry for entry in entries if entry["part"] not in unsure]
        entries += [entry for entry in whole if entry["part"] in unsure]
    lines, failed = _told(entries, plan)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    kept = [
        {
            "part": entry["part"],
            "sha256": entry["sha256"],
            "code": entry["code"],
            "commit": results.commit(),
            "count": len(entry["trials"] or _trials(found[entry["part"]]) or [0]),
            "trials": entry["trials"],
            "how": entry["how"],
            "time": now,
        }
        for entry in entries
        if entry["part"] not in failed
    ]
    again = {(entry["part"], entry["code"]) for entry in entries}
    older = [e for e in log if (e["part"], e["code"]) not in again and (e["part"] not in failed)]
    results.save(home / "verified.json", {"entries": older + kept})
    return Verified(lines, failed, len(entries))


def _run_again(
    which: notebooks.Chapter, parameters: notebooks.Parameters, plan: Mapping[str, list[int] | None], threads: int
) -> list[dict[str, Any]]:
    """Execute a chapter in which the parts of a plan run again; an entry for each that did, and for what runs live."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "log"
        notes.touch()
        Path(folder, "plan").write_text(json.dumps({"parts": plan, "log": str(notes)}), encoding="utf-8")
        os.environ[parts.VERIFY] = str(Path(folder, "plan"))
        try:
            runner.execute_aside(which, parameters, Path(folder), threads)
        finally:
            del os.environ[parts.VERIFY]
        return [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]


def _told(entries: list[dict[str, Any]], plan: Collection[str]) -> tuple[list[str], list[str]]:
    """Lines on the parts that ran again, and the names of those that differ or that the notebook did not ask for."""
    lines, failed = [], []
    for entry in entries:
        trials = "all" if entry["trials"] is None else f"trials {', '.join(map(str, entry['trials']))}"
        verdict = f"DIFFERS: {'; '.join(entry['differences'])}" if entry["differences"] else entry["how"]
        lines += [
            f"{entry['part']} ({trials}, {entry['seconds']} s): {verdict}",
            *(f"    {x}" for x in entry["beside"]),
        ]
        if entry["differences"]:
            failed.append(entry["part"])
    for name in sorted(set(plan) - {entry["part"] for entry in entries}):
        lines.append(f"{name}: the notebook asks for other inputs than the record answers, or for no such part")
        failed.append(name)
    return lines, failed


def _of_record(entry: dict[str, Any], found: dict[str, records.Record]) -> bool:
    return entry["part"] in found and found[entry["part"]].sha256 == entry["sha256"]


def _trials(record: records.Record) -> list[int]:
    """The trials of a part whose tables know them; else none."""
    trials = record.inputs.get("trials")
    return trials if isinstance(trials, list) and comparison.by_trial(record.value) else []


def _waiting(paper: str) -> set[str]:
    """The parts that the last replay here found to run code that nobody has verified; none without a replay."""
    try:
        state = results.load(clone.results_root() / "runs" / "reference" / f"{paper}.json")["state"]
        return set(state["code changed and not verified"])
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def _drawn(
    found: dict[str, records.Record], log: list[dict[str, Any]], seconds: float, waiting: Collection[str] = ()
) -> dict[str, list[int] | None]:
    """Parts to run again, and which of their trials; at least one part.

    First those that wait for it, because their code has changed since; among them and among the rest a part of each
    code that no part has verified yet, the quickest; then the least recently verified.
    """
    last = {entry["part"]: entry["time"] for entry in log}
    order = random.SystemRandom().sample(sorted(found), len(found))
    order.sort(key=lambda name: last.get(name, ""))
    seen = {found[name].code for name in last if name in found and name not in waiting}
    first: dict[str, str] = {}
    for name in sorted(order, key=lambda name: found[name].made["seconds"]):
        if found[name].code not in seen:
            first.setdefault(found[name].code, name)
    order.sort(key=lambda name: (name not in waiting, name not in first.values()))
    plan: dict[str, list[int] | None] = {}
    spent = OVERHEAD
    for name in order:
        trials, share = _trials(found[name]), 1.0
        chosen: list[int] | None = None
        if len(trials) > TRIALS and found[name].made["seconds"] > LONG * seconds:
            chosen = sorted(random.SystemRandom().sample(trials, TRIALS))
            # a few trials at once are slower each than many: by a factor of two at most, measured on LeNet
            share = min(1.0, 2 * TRIALS / len(trials))
        cost = found[name].made["seconds"] * share
        if plan and spent + cost > seconds:
            continue
        plan[name], spent = chosen, spent + cost
    return plan
