"""What is read of a results file, checked before anything of it is shown; it writes nothing.

A results file may come from another version of the book, another paper or another hand. Whatever shows one reads it
here, so that a bad file is one clear line.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reprolib.book import criteria, results
from reprolib.book.verdicts import Reason

PNG = b"\x89PNG\r\n\x1a\n"
"""How every PNG file begins."""


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


class Measured(_Checked):
    """A measure of a results file: its value with its 95 % interval, and on how much it rests."""

    value: float
    low: float
    high: float
    n: int
    method: str
    images: int
    data: str | None
    substitute_for: str | None = None
    conditions: dict[str, str | int | float] = {}
    clusters: int | None = None
    low99: float | None = None
    high99: float | None = None
    skewed: bool = False


class _Skipped(_Checked):
    reason: Reason
    why: str


class Figure(_Checked):
    """A picture that a run names. file: its bare name in the run's folder; None for what is no file, such as HTML."""

    name: str
    caption: str
    file: str | None = None


class _Shown(_Checked):
    caption: str
    table: pd.DataFrame


class _Set(_Checked):
    name: str
    split: str
    asked: str
    source: str
    count: Annotated[int, Field(ge=0)]
    image_shape: list[int]
    classes: list[Any]
    fingerprint: str


class _Part(_Checked):
    device: str
    seconds: float
    commit: str | None


class _Made(_Checked):
    device: str
    threads: Annotated[int, Field(ge=1)]
    seed: int | None
    data: dict[str, str]
    versions: dict[str, str | None]
    commit: str | None
    time: str
    seconds: float | None = None
    python: str = "unknown"
    platform: str = "unknown"


class Stored(_Checked):
    """A results file, as far as it is read here. profile: whose sizes were run. records: of each part, if it has any.

    skipped: measure -> why, in older files a sentence alone. shown, sets: its tables and image sets. state: of a run
    that shows the reference run, what is not as the records have it.
    """

    paper: str
    profile: criteria.Profile
    measures: dict[str, Measured]
    skipped: dict[str, _Skipped | str]
    figures: list[Figure]
    provenance: _Made
    records: dict[str, _Part] = {}
    state: dict[str, list[str]] = {}
    shown: list[_Shown] = []
    sets: dict[str, _Set] = {}


def read(path: Path, key: str) -> tuple[Stored, dict[str, Any]]:
    """The results file of the paper `key`, checked, and as it is.

    Raises FileNotFoundError, and ValueError saying what is wrong with it.
    """
    payload = results.load(path)
    return check(payload, key, path.name), payload


def check(payload: Mapping[str, Any], key: str, name: str) -> Stored:
    """What a results file of this name holds. Raises ValueError for another form, or the results of another paper."""
    try:
        found = Stored.model_validate(payload)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ", ".join(str(step) for step in fault["loc"]) or "the whole"
        raise ValueError(f"{name} is of another form: {where}: {fault['msg']}; run the chapter again") from error
    if found.paper != key:
        raise ValueError(f"{name} is of the paper {found.paper!r}, not of {key!r}")
    return found


def picture(folder: Path, file: str) -> Path:
    """The PNG file that a results file names, in the folder of its run.

    What is shown is sent by mail and put on the web: a name may lead nowhere else, and to nothing but a picture.
    Raises ValueError saying what is wrong with the name or the file.
    """
    path, problem = folder / file, ""
    try:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.png", file, re.ASCII):
            problem = "is not the bare name of a PNG file"
        elif path.is_symlink() or folder.is_symlink():
            problem = "is a link to another place"
        elif not path.is_file():
            problem = "is not there"
        else:
            with path.open("rb") as opened:
                problem = "" if opened.read(len(PNG)) == PNG else "is no PNG file"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    if problem:
        raise ValueError(f"its file {file!r} {problem}")
    return path


def kept_picture(figures: Sequence[Mapping[str, Any]], folder: Path, name: str) -> tuple[bytes, str] | None:
    """The picture of this name that a run drew, with its caption; None without one, or where its file is none.

    figures: the entries of its results file. folder: the run's.
    """
    for entry in figures:
        if entry["name"] == name:
            with contextlib.suppress(OSError, ValueError):
                return picture(folder, f"{name}.png").read_bytes(), entry["caption"]
    return None
