"""Measurement records: JSON with a checksum and provenance, written so that no reader ever sees half a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from reprolib import clone
from reprolib.atomic import write_atomic

SCHEMA = 1
"""Raised when the layout of the files changes; `load` refuses any other."""

PACKAGES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
    "cma",
)
"""Packages whose versions a measurement depends on."""


def save(path: str | os.PathLike, payload: Mapping[str, Any]) -> None:
    """Write a record atomically, with its schema version and the checksum of its payload.

    payload: string keys; values of JSON's types, and besides: pandas tables (their index is dropped), dataclasses,
    NumPy and torch numbers and arrays, and floats that are not finite. `load` gives tables and floats back as they
    were, dataclasses as dictionaries, arrays as lists.
    Raises TypeError for anything else; OSError as `write_atomic`.
    """
    plain = encoded(payload)
    lines = ",\n".join(f"{json.dumps(key)}: {_dumps(value)}" for key, value in plain.items())
    text = f'{{"schema": {SCHEMA},\n"sha256": "{_checksum(plain)}",\n"payload": {{\n{lines}\n}}}}\n'
    write_atomic(path, text.encode())


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Read a record that `save` wrote.

    Raises FileNotFoundError for a missing file, and ValueError for one that is truncated, was changed by hand, has
    another schema or is of another form, saying what to do.
    """
    path = Path(path)
    remedy = "delete it and run the chapter again (or take the committed file back: git checkout)"
    try:
        record = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not complete JSON ({error}): the file was cut or edited; {remedy}") from error
    except (RecursionError, ValueError) as error:  # brackets in brackets, a number of thousands of digits
        raise ValueError(
            f"{path.name} is no record of reprolib: it is nested too deeply or too long; {remedy}"
        ) from error
    if not isinstance(record, dict) or not {"schema", "sha256", "payload"} <= record.keys():
        raise ValueError(f"{path.name} is no record of reprolib (schema, sha256 and payload are expected); {remedy}")
    if record["schema"] != SCHEMA:
        raise ValueError(f"{path.name} has schema {record['schema']}, this reprolib reads schema {SCHEMA}; {remedy}")
    try:
        mark = _checksum(record["payload"])
    except (RecursionError, ValueError) as error:  # NaN, or half a character: `save` writes neither
        raise ValueError(f"{path.name} holds what no record holds ({error}); {remedy}") from error
    if record["sha256"] != mark:
        raise ValueError(f"{path.name}: the checksum does not fit the content, so it was changed or damaged; {remedy}")
    try:
        return _decode(record["payload"])
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path.name} is of another form: a table or a number in it is none ({error!r}); {remedy}"
        ) from error


def provenance(
    device: torch.device | str = "cpu",
    seed: int | None = None,
    data: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """What a measurement was made with: versions, commit, device, threads, seed, data; never a path or a host name.

    data: name of each image set -> its fingerprint. seconds: what it took, by a clock that is never set back.
    """
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "seed": seed,
        "data": dict(data or {}),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if seconds is not None:
        record["seconds"] = round(seconds, 1)
    return record


def duration(seconds: float) -> str:
    """Seconds in words: "40 seconds", "12 minutes", "4.6 hours"."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes"


def device_name(device: torch.device | str) -> str:
    """The device's model as its maker calls it, for example "cpu: AMD EPYC 9354, family 25, model 17, AVX512".

    A virtual machine may say "AMD EPYC" of each of them, and sums come out otherwise on another: so family, model and
    the vector instructions that torch uses belong to it. Records of before 2026-11-30 lack them, and are of no kind
    that can be named again.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    told: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    words = [told.get("model name") or platform.processor() or platform.machine()]
    words += [f"{word} {told[key]}" for key, word in (("cpu family", "family"), ("model", "model")) if told.get(key)]
    return f"{device.type}: {', '.join([*words, torch.backends.cpu.get_cpu_capability()])}"


def versions() -> dict[str, str | None]:
    """The installed version of each of PACKAGES, None where one is not installed."""
    return {name: _installed(name) for name in PACKAGES}


@lru_cache  # each one is read from a file, and every part asks
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@lru_cache  # a chapter asks at every part; an edit during a run is the next run's
def commit() -> str | None:
    """The commit of the checkout that reprolib lies in, with "+changes" for edited files; None outside a checkout."""
    root = clone.PACKAGE.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # A package installed below someone else's repository must not claim that repository's commit.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        # a log of what was verified runs nothing
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results/reference/*/verified.json")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _dumps(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _checksum(plain: Any) -> str:
    return hashlib.sha256(_dumps(plain).encode()).hexdigest()


def encoded(value: Any) -> Any:
    """A value reduced to strict JSON. Tables and non-finite floats become objects with one key that starts with $."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, pd.DataFrame):
        columns = [encoded(value.iloc[:, i].tolist()) for i in range(value.shape[1])]
        return {"$table": {"columns": [str(name) for name in value.columns], "values": columns}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return encoded({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"keys of a record must be strings, got {[k for k in value if not isinstance(k, str)]}")
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return encoded(value.tolist())
    if isinstance(value, torch.Tensor):
        return encoded(value.detach().cpu().tolist())
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$float"}:
        return float(value["$float"])
    if value.keys() == {"$table"}:
        table = value["$table"]
        return pd.DataFrame(dict(zip(table["columns"], map(_decode, table["values"]), strict=True)))
    return {key: _decode(item) for key, item in value.items()}
