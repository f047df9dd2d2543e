"""A paper's committed reference run as a chapter reads it: its results, its records, and what was verified of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reprolib import clone
from reprolib.book import checked, claims, records, results
from reprolib.book.judge import judge
from reprolib.book.verdicts import Verdict


def read(paper: str, loaded: claims.Paper) -> tuple[dict[str, Any] | None, list[Verdict], str]:
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
        return None, [], fault(error)


def made_on(reference: Mapping[str, Any]) -> str:
    """Device and hours of the run that made these results."""
    made = reference["provenance"]
    threads = f"{made['threads']} thread{'s' * (made['threads'] > 1)}"
    return f"{made['device']}, {threads}, {results.duration(made['seconds'])}"


def name(reference: Mapping[str, Any] | None) -> str:
    """What pages call it: "reference run", or "older run" where it left no records and a new one is to replace it."""
    return "older run" if reference is not None and not reference.get("records") else "reference run"


def fault(error: ValueError | OSError) -> str:
    """What is wrong with a file, without a path of this machine: it stands on the page."""
    if isinstance(error, OSError) and error.filename:
        return f"{Path(os.fsdecode(error.filename)).name} cannot be read: {error.strerror}"
    return str(error)


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
            records.check_slug("a part's name", name)
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
            problems.append(f"{name}: {fault(error)}")
    return found, problems
