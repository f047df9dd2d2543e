"""The reference run as data: `accept` a run as the reference, `compare` another with it, `verify` it by a new run.

It moves files and starts chapters; it measures nothing itself. Source: design section 4.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from reprolib import chapter, claims, records, results, runner
from reprolib.verdicts import validate_verdicts

TRIALS = 3
"""Trials of a part that a verification runs again: more than one, because a single trial takes another path."""

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
    code, whose records are incomplete, damaged or of another paper, that asks for measures of another file of claims,
    or that is too large. The old reference stays until the new one is whole.
    """
    runs = chapter.results_root() / "runs" / profile
    path, made = runs / f"{paper}.json", runs / paper
    if not path.is_file():
        raise FileNotFoundError(
            f"results/runs/{profile}/{paper}.json is not there: this run has not ended, or failed. "
            f"`reprolib run {paper} --profile {profile}` goes on where it stopped"
        )
    payload = results.load(path)
    if payload.get("paper") != paper or profile not in (chapter.REPLAY, payload.get("profile")):
        raise ValueError(f"{path.name} is of {payload.get('paper')!r} at {payload.get('profile')!r}, not this run's")
    target = chapter.reference_root() / paper
    source = made / "records"
    if profile == chapter.REPLAY:
        source = target / "records"
        if stale := [f"{kind}: {', '.join(names)}" for kind, names in payload.get("state", {}).items() if names]:
            stale = [line for line in stale if "verified since" not in line]
        if stale or not payload.get("state"):
            raise ValueError(f"{path.name} does not show the records as they are ({'; '.join(stale) or 'no records'})")
    if not payload.get("records"):
        raise ValueError(f"{path.name} names no records: it was written by an older reprolib; run the chapter again")
    loaded = claims.load(root / "claims" / f"{paper}.yml")
    if unknown := sorted(payload["measures"].keys() - loaded.measures.keys()):
        raise ValueError(f"{path.name} holds measures that claims/{paper}.yml does not declare: {', '.join(unknown)}")
    validate_verdicts(payload["verdicts"], loaded)
    for name, entry in payload["records"].items():
        file = source / f"{name}.json"
        if not file.is_file() or records.checksum(file) != entry["sha256"]:
            raise ValueError(
                f"the record of part {name!r} is missing from the run, or is another: run the chapter again"
            )
        record = records.load(file)
        if record.paper != paper:
            raise ValueError(f"the record of part {name!r} is of the paper {record.paper!r}")
        if not record.made["commit"] or "+" in record.made["commit"]:
            raise ValueError(
                f"part {name!r} was made by code that no commit holds ({record.made['commit'] or 'no checkout'}): "
                f"commit it and run the chapter again"
            )
    kept = [source / f"{name}{end}" for name in payload["records"] for end in (".json", ".safetensors")]
    size = sum(file.stat().st_size for file in kept if file.is_file()) / 1e6
    if size > LIMIT_MB:
        raise ValueError(f"the records take {size:.1f} MB, a chapter may have {LIMIT_MB:g}: keep fewer `pictures`")
    fresh, old = target.with_name(f".{paper}.new"), target.with_name(f".{paper}.old")
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    (fresh / "records").mkdir(parents=True)
    for file in kept:
        if file.is_file():
            shutil.copyfile(file, fresh / "records" / file.name)
    for figure in payload["figures"]:
        if figure.get("file"):
            shutil.copyfile(made / Path(figure["file"]).name, fresh / Path(figure["file"]).name)
    shutil.copyfile(path, fresh / f"{paper}.json")
    if profile == chapter.REPLAY and (target / "verified.json").is_file():
        shutil.copyfile(target / "verified.json", fresh / "verified.json")
    if target.exists():
        os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)
    count = len(payload["records"])
    return f"{paper}: {count} records, {size:.1f} MB, are the reference run now; commit results/reference/{paper}"


# --- compare ----------------------------------------------------------------------------------------------------------


def compare(paper: str, run: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Anybody's run beside the reference: its measures, and its records row by row.

    run: the results file of a run, with the folder of its records beside it (results/runs/<profile>/<paper>.json).
    Returns a row for each measure (measure, reference, run) and one for each part that both have (part, rows, equal,
    differs). Raises FileNotFoundError where one of the two is not there, ValueError for a file of another paper.
    """
    mine = results.load(run)
    if mine.get("paper") != paper:
        raise ValueError(f"{run.name} is of the paper {mine.get('paper')!r}, not of {paper!r}")
    home = chapter.reference_root() / paper
    reference = results.load(home / f"{paper}.json")
    measures = [
        {
            "measure": name,
            "reference": _interval(reference["measures"].get(name)),
            "run": _interval(mine["measures"].get(name)),
        }
        for name in dict.fromkeys([*reference["measures"], *mine["measures"]])
    ]
    old, _ = records.read_all(home / "records")
    new, _ = records.read_all(run.with_suffix("") / "records")
    rows = []
    for name in sorted(old.keys() & new.keys()):
        one, other = old[name], new[name]
        if asked := one.answers(other.function, other.inputs, other.seed):
            rows.append({"part": name, "equal": "—", "what differs": f"asked otherwise: {', '.join(asked)}"})
        else:
            exact = one.made["device"] == other.made["device"]
            found = records.differences(one.value, other.value, exact)
            rows.append({"part": name, "equal": "no" if found else "yes", "what differs": "; ".join(found)})
    only = {"only in the reference": old.keys() - new.keys(), "only in the run": new.keys() - old.keys()}
    rows += [
        {"part": name, "equal": "—", "what differs": where} for where, names in only.items() for name in sorted(names)
    ]
    return pd.DataFrame(measures), pd.DataFrame(rows, columns=["part", "equal", "what differs"])


def _interval(stored: dict[str, Any] | None) -> str:
    return "—" if stored is None else f"{stored['value']:.4g} [{stored['low']:.4g}, {stored['high']:.4g}]"


# --- verify -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """What a verification found: a line for each part that ran again, and those that differ from their record."""

    lines: list[str]
    failed: list[str]
    parts: int


def verify(
    which: runner.Chapter, parameters: runner.Parameters, seconds: float, tell: Callable[[str], None] = print
) -> Verified:
    """Run trials of a chapter's committed records again and compare number with number.

    Parts are drawn at random among those verified least recently, as many as fit into `seconds` by the seconds that
    their records took; of a part that knows its trials, TRIALS of them. What was found equal goes into
    results/reference/KEY/verified.json, with the code that it was run by.
    Raises FileNotFoundError without records or without the data set, ValueError for a data set with another fingerprint
    and for damaged records, RuntimeError where the chapter does not execute.
    """
    if parameters.profile != "reference":
        raise ValueError(f"profile={parameters.profile!r}: a verification executes the profile reference")
    paper, home = which.paper, chapter.reference_root() / which.paper
    found, problems = records.read_all(home / "records")
    if problems:
        raise ValueError("; ".join(problems))
    if not found:
        raise FileNotFoundError(f"results/reference/{paper}/records holds no record: nothing to verify")
    if not parameters.data_root and not os.environ.get("REPROLIB_DATA"):
        raise FileNotFoundError("a verification runs on the record's own images: name their folder with --data")
    log = chapter.verification_log(paper)
    plan = _drawn(found, log, seconds)
    tell(f"{paper}: {len(plan)} of {len(found)} parts run again")
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "log"
        notes.touch()
        Path(folder, "plan").write_text(json.dumps({"parts": plan, "log": str(notes)}), encoding="utf-8")
        os.environ[chapter.VERIFY] = str(Path(folder, "plan"))
        try:
            runner.execute_aside(which, parameters, Path(folder))
        finally:
            del os.environ[chapter.VERIFY]
        entries = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
    lines, failed, now = [], [], datetime.now(UTC).isoformat(timespec="seconds")
    for entry in entries:
        how = "equal to six digits" if entry["exact"] else "the same outcomes, on another kind of machine"
        trials = "all" if entry["trials"] is None else f"trials {', '.join(map(str, entry['trials']))}"
        verdict = f"DIFFERS: {'; '.join(entry['differences'])}" if entry["differences"] else how
        lines += [
            f"{entry['part']} ({trials}, {entry['seconds']} s): {verdict}",
            *(f"    {x}" for x in entry["beside"]),
        ]
        if entry["differences"]:
            failed.append(entry["part"])
    for name in sorted(plan.keys() - {entry["part"] for entry in entries}):
        lines.append(f"{name}: the notebook asks for other inputs than the record answers, or for no such part")
        failed.append(name)
    kept = [
        {
            "part": entry["part"],
            "code": entry["code"],
            "commit": results.commit(),
            "count": len(entry["trials"] or [0]),
            "trials": entry["trials"],
            "exact": entry["exact"],
            "time": now,
        }
        for entry in entries
        if not entry["differences"]
    ]
    again = {entry["part"] for entry in kept}
    results.save(home / "verified.json", {"entries": [e for e in log if e["part"] not in again] + kept})
    return Verified(lines, failed, len(entries))


def _drawn(found: dict[str, records.Record], log: list[dict[str, Any]], seconds: float) -> dict[str, list[int] | None]:
    """Parts to run again, the least recently verified first, and which of their trials; at least one part."""
    last = {entry["part"]: entry["time"] for entry in log}
    order = random.SystemRandom().sample(sorted(found), len(found))
    order.sort(key=lambda name: last.get(name, ""))
    plan, spent = {}, OVERHEAD
    for name in order:
        trials = found[name].inputs.get("trials")
        share = 1.0
        chosen = None
        if isinstance(trials, list) and len(trials) > TRIALS:
            chosen = sorted(random.SystemRandom().sample(trials, TRIALS))
            # a few trials at once are slower each than many: by a factor of two at most, measured on LeNet
            share = min(1.0, 2 * TRIALS / len(trials))
        cost = found[name].made["seconds"] * share
        if plan and spent + cost > seconds:
            continue
        plan[name], spent = chosen, spent + cost
    return plan
