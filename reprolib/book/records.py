"""Records: what a part of a chapter returned, with all that made it, as JSON and safetensors beside each other.

`NAME.json` holds the part's inputs by public names and field values, its seed, the fingerprint of the code that it
ran, commit, versions, device, seconds and the checksums; `NAME.safetensors` the tensors and the numeric columns of its
tables. Nothing in either is code. A record is the same in the store of a run (`results/parts`) and among the
committed ones (`results/reference/KEY/records`). This file measures nothing and shows nothing.
Source: the developer guide, "Records, profiles, replay".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

from reprolib.atomic import write_atomic
from reprolib.book import results
from reprolib.book.description import describe
from reprolib.book.packing import deflated, inflated, packed, unpacked

SCHEMA = 2
"""Raised when the layout of a record changes; `load` refuses any other."""


# --- a record ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Record:
    """What a part returned and what made it.

    value: a DataFrame, or a dictionary of tensors, tables and JSON values. function, inputs: `describe`'s. code: of
    `code_fingerprint`. made: commit, versions, device, platform, threads, time and seconds. sha256: of the whole
    record.
    """

    paper: str
    name: str
    function: dict[str, Any]
    inputs: dict[str, Any]
    seed: int
    code: str
    made: dict[str, Any]
    value: Any
    sha256: str = ""

    @property
    def committed(self) -> bool:
        """Whether a commit holds the code that made it: no edited tree, and no package outside a checkout."""
        return "+" not in (self.made["commit"] or "+")

    def answers(self, function: Mapping[str, Any], inputs: Mapping[str, Any], seed: int) -> list[str]:
        """In what the record differs from what is asked for; an empty list where it answers it.

        An option that an attack, a defense or a client got since the record was made is taken to be at its default.
        """
        asked = {"function": function, "seed": seed, **{f"inputs.{key}": item for key, item in inputs.items()}}
        own = {"function": self.function, "seed": self.seed}
        own |= {f"inputs.{key}": item for key, item in self.inputs.items()}
        plain = {key: json.dumps(item, sort_keys=True) for key, item in asked.items()}
        mine = {key: json.dumps(item, sort_keys=True) for key, item in own.items()}
        differing = {key for key in plain.keys() | mine.keys() if plain.get(key) != mine.get(key)}
        for key in differing & plain.keys() & mine.keys():  # few or none: the rest need not be looked up
            mine[key] = json.dumps(_with_new_options(own[key]), sort_keys=True)
        return sorted(key for key in differing if plain.get(key) != mine.get(key))


def _with_new_options(described: Any) -> Any:
    """A record's input with the defaults of the options that the library's classes got since."""
    if isinstance(described, list):
        return [_with_new_options(item) for item in described]
    if not isinstance(described, dict):
        return described
    found = {key: _with_new_options(item) for key, item in described.items()}
    if "$is" in found and "$class" not in found:
        for field in _options_of(found["$is"]):
            found.setdefault(field.name, describe(field.default))
    return found


def _options_of(name: str) -> list[dataclasses.Field]:
    """The fields with a plain default of the loaded library's dataclass of that name; none where there is no such."""
    for module, loaded in list(sys.modules.items()):
        kind = getattr(loaded, name, None) if module.startswith("reprolib.") else None
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return [field for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING]
    return []


def save(path: str | os.PathLike, record: Record, pictures: int | None = None) -> None:
    """Write a record, its tensors first: the JSON says that it is whole. What cannot be written leaves no file.

    A value's dictionaries keep their order, tables their columns, types and order, but no index.
    pictures: how many of each tensor of pictures are kept, all if None. A tensor [..., C, H, W] with one or three
    channels and values in [0, 1] counts as pictures and is kept in 8 bits.
    Raises ValueError for a value that is neither a table nor a dictionary, and for a table two of whose columns have
    one name; TypeError for what no record can hold.
    """
    if not isinstance(record.value, pd.DataFrame | dict):
        raise ValueError(
            f"part {record.name!r} returned a {type(record.value).__name__}: expected a DataFrame or a dictionary"
        )
    arrays: dict[str, Tensor] = {}
    plain = packed(record.value, "", arrays, pictures)
    path, content = Path(path), safetensors.torch.save(deflated(arrays)) if arrays else None
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    payload = fields | {
        "schema": SCHEMA,
        "value": plain,
        "tensors": None if content is None else hashlib.sha256(content).hexdigest(),
    }
    del payload["sha256"]
    payload = results.encoded(payload)  # before any file is written: TypeError for what JSON does not know
    if content is None:
        path.with_suffix(".safetensors").unlink(missing_ok=True)  # of an earlier record with tensors
    else:
        write_atomic(path.with_suffix(".safetensors"), content)
    results.save(path, payload)


_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, OverflowError)

_FIELDS = {
    "paper": str,
    "name": str,
    "function": dict,
    "inputs": dict,
    "seed": int,
    "code": str,
    "made": dict,
    "value": dict,
}

_MADE = {
    "python": str,
    "versions": dict,
    "commit": str | None,
    "device": str,
    "threads": int,
    "platform": str,
    "time": str,
    "seconds": int | float,
}


def load(path: str | os.PathLike) -> Record:
    """Read a record that `save` wrote.

    Raises FileNotFoundError for a missing file; ValueError for one that is cut, was changed, has another schema, is
    none, or whose tensors do not fit its checksum.
    """
    path = Path(path)
    try:
        payload = results.load(path)
    except RecursionError as error:
        raise ValueError(f"{path.name} is no record of a part: it is nested too deeply") from error
    if not isinstance(payload, dict):
        raise ValueError(f"{path.name} is no record of a part: it holds a {type(payload).__name__}")
    if missing := sorted((_FIELDS.keys() | {"schema", "tensors"}) - payload.keys()):
        raise ValueError(f"{path.name} is no record of a part: it lacks {', '.join(missing)}")
    if payload["schema"] != SCHEMA:
        raise ValueError(f"{path.name} is a record of schema {payload['schema']}, this reprolib reads schema {SCHEMA}")
    if wrong := [name for name, kind in _FIELDS.items() if not isinstance(payload[name], kind)]:
        raise ValueError(f"{path.name} is no record of a part: its {', '.join(wrong)} cannot be read")
    told = payload["made"]
    if missing := [name for name, kind in _MADE.items() if name not in told or not isinstance(told[name], kind)]:
        raise ValueError(f"{path.name} does not say what made it: {', '.join(missing)}")
    if not 0 <= told["seconds"] < np.inf:
        raise ValueError(f"{path.name} says that it took {told['seconds']} seconds")
    content = b""
    if payload["tensors"] is not None:
        content = path.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != payload["tensors"]:
            raise ValueError(f"{path.stem}.safetensors does not fit its checksum: it was cut or changed")
    try:
        value = unpacked(payload["value"], inflated(safetensors.torch.load(content)) if content else {})
    except (*_DAMAGE, safetensors.SafetensorError, zlib.error) as error:
        raise ValueError(f"{path.name} is damaged: its values and its tensors do not fit ({error!r})") from error
    own = {name: payload[name] for name in _FIELDS} | {"value": value}
    return Record(**own, sha256=checksum(path))


def copy(path: Path, target: Path) -> None:
    """Copy a record to `target`, a path that ends in .json like its own; its tensors first, as `save` writes them."""
    for suffix in (".safetensors", ".json"):
        if path.with_suffix(suffix).is_file():
            write_atomic(target.with_suffix(suffix), path.with_suffix(suffix).read_bytes())


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a record's JSON, which holds that of its tensors."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def made(device: torch.device, seconds: float) -> dict[str, Any]:
    """What a record says of the run that makes it."""
    found = results.provenance(device) | {"seconds": round(seconds, 3)}
    return {name: found[name] for name in _MADE}


def same_kind(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs, as `made` tells of them, are of the kind that gives equal numbers: machine and packages.

    On a processor the number of threads counts too: sums over many terms are split among them.
    """
    keys = ["device", "platform", "versions"] + ["threads"] * one["device"].startswith("cpu")
    return all(one[key] == other[key] for key in keys)


def read_all(folder: str | os.PathLike) -> tuple[dict[str, Record], list[str]]:
    """Every readable record in a folder by its part's name, and a line for each file that is none."""
    found, problems = {}, []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            record = load(path)
            if record.name != path.stem:
                raise ValueError(f"{path.name} is the record of part {record.name!r}")
        except (ValueError, OSError) as error:
            problems.append(str(error))
        else:
            found[record.name] = record
    return found, problems


def is_slug(name: str) -> bool:
    """Whether a name may be a file's: no path, and the same on every file system."""
    return re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) is not None


def check_slug(argument: str, name: str) -> None:
    """Raise ValueError for a name that no file can have, naming the argument that gave it."""
    if not is_slug(name):
        raise ValueError(f"{argument}={name!r}: expected small letters, digits, dashes, dots and underscores")
