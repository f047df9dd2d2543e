"""What the judge reads of a run: its measures, each with what it was measured on, its seed, day and skipped ones."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import numpy as np

from reprolib.book.criteria import PROFILES
from reprolib.book.verdicts import Reason
from reprolib.measure.intervals import Interval, proportion

LEAST_CLUSTERS = {"architecture": 5, "network": 10, "none": 5}
"""The fewest independent units whose interval decides: drawn networks, batches on one network, runs."""


@dataclass(frozen=True)
class Record:
    """A measured interval, what it was measured on, and whether an interval of this method covers.

    images: how many it rests on; data: the set's name; substitute_for: the set it stands in for; conditions: what this
    run measured it on, as far as the measure does not always say it.
    """

    interval: Interval
    images: int
    data: str | None
    substitute_for: str | None = None
    conditions: Mapping[str, str | int | float] = field(default_factory=dict)
    covers: bool = True

    def stored(self) -> dict[str, Any]:
        """As results files hold it."""
        told = {"data": self.data, "substitute_for": self.substitute_for, "conditions": dict(self.conditions)}
        return dataclasses.asdict(self.interval) | {"images": self.images} | told

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Record:
        """From a results file. Files of 2026 before December know neither clusters nor 99 % ends."""
        known = {key.name: stored[key.name] for key in dataclasses.fields(Interval) if key.name in stored}
        covers = True
        if "clusters" not in stored:
            known["clusters"] = _old_clusters(stored["method"], stored["n"])
            covers = known["clusters"] is not None
        hits = stored["value"] * stored["n"]
        if stored["method"] == "Wilson" and hits >= 0 and math.isclose(hits, round(hits), abs_tol=1e-6):
            # a share of independent trials: its count is all that the exact interval needs
            known = dataclasses.asdict(proportion(np.arange(stored["n"]) < round(hits)))
        told = (stored["images"], stored["data"], stored.get("substitute_for"), stored.get("conditions", {}))
        return cls(Interval(**known), *told, covers)


def _old_clusters(method: str, n: int) -> int | None:
    """The independent units behind an interval of the methods used before; None for those that do not cover.

    Bootstraps, Welch's interval of clustered images and one network's images taken for independent cover too rarely.
    """
    if method == "Wilson":
        return n
    if match := re.fullmatch(r"Wilson, (?:no variation, )?effective n = (\d+)(?: networks)?", method):
        return int(match[1])
    if (match := re.fullmatch(r"Student's t over (\d+) runs", method)) and int(match[1]) >= LEAST_CLUSTERS["none"]:
        return int(match[1])
    return None


@dataclass(frozen=True)
class Run:
    """What the judge knows of a run. skipped: measure -> (code, sentence)."""

    profile: str
    seed: int | None
    day: date | None
    records: Mapping[str, Record]
    skipped: Mapping[str, tuple[Reason, str]]

    @classmethod
    def read(cls, payload: Mapping[str, Any]) -> Run:
        known_profile(payload["profile"])
        made = payload.get("provenance", {})
        skipped: dict[str, tuple[Reason, str]] = {
            name: ("missing", told) if isinstance(told, str) else (told["reason"], told["why"])
            for name, told in payload["skipped"].items()
        }
        records = {}
        for name, stored in payload["measures"].items():
            try:
                records[name] = Record.read(stored)
            except ValueError as error:
                raise ValueError(f"stored measure {name!r}: {error}") from error
        day = datetime.fromisoformat(made["time"]).date() if made.get("time") else None
        return cls(payload["profile"], made.get("seed"), day, records, skipped)


def known_profile(profile: str) -> None:
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
