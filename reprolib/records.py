"""Records: what a part of a chapter returned, with all that made it, as JSON and safetensors beside each other.

`NAME.json` holds the part's inputs by public names and field values, its seed, the fingerprint of the code that it
ran, commit, versions, device, seconds and the checksums; `NAME.safetensors` the tensors and the numeric columns of its
tables. Nothing in either is code. A record is the same in the store of a run (`results/parts`) and among the
committed ones (`results/reference/KEY/records`). This file measures nothing and shows nothing.
Source: design section 4.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import hashlib
import inspect
import io
import json
import os
import re
import tokenize
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn

from reprolib import models, results
from reprolib.atomic import write_atomic

SCHEMA = 1
"""Raised when the layout of a record changes; `load` refuses any other."""

PACKAGE = Path(__file__).resolve().parent

# Files that show measurements and make none: a part's result does not depend on them.
PRESENTATION = {"chapter", "claims", "verdicts", "clone", "figures", "results", "report", "runner", "cli", "records"}
PRESENTATION |= {"ledger", "verification", "atomic", "intervals"}


# --- what a part was given --------------------------------------------------------------------------------------------


def describe(value: Any, where: str = "value") -> Any:
    """A part's input as JSON that is equal for equal content: public names and field values, never a module's path.

    Models, sets of images, tensors and tables stand in it by their fingerprints. A device is left out: results do not
    depend on it. Of a notebook's own function the source counts, and the values that it reads.
    Raises ValueError for a value whose content cannot be identified, naming it.
    """
    return _Description().of(value, where)


class _Description:
    def __init__(self) -> None:
        self._home: str | None = None
        self._seen: set[int] = set()

    def of(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | np.generic):
            plain = value.item() if isinstance(value, np.generic) else value
            return plain if not isinstance(plain, float) or np.isfinite(plain) else {"$number": repr(plain)}
        if isinstance(value, torch.device):
            return None
        if isinstance(value, torch.dtype):
            return str(value)
        if isinstance(value, Mapping):
            return {str(key): self.of(item, f"{where}[{key!r}]") for key, item in value.items()}
        if isinstance(value, list | tuple | range):
            return [self.of(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, Tensor | np.ndarray):
            array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
            return {"$tensor": f"{array.dtype}{list(array.shape)}", "sha256": digest}
        if isinstance(value, pd.DataFrame | pd.Series):
            return {"$frame": hashlib.sha256(value.to_csv().encode()).hexdigest()[:16]}
        if isinstance(value, nn.Module):
            return {"$model": type(value).__name__, "fingerprint": models.fingerprint(value)}
        if isinstance(getattr(value, "fingerprint", None), str) and hasattr(value, "image_shape"):
            return {"$images": value.name, "split": value.split, "count": len(value), "fingerprint": value.fingerprint}
        if isinstance(getattr(value, "fingerprint", None), str):
            return {"$fingerprint": value.fingerprint}
        if isinstance(value, types.SimpleNamespace):
            return self.of(vars(value), where)
        if hasattr(value, "described"):  # an open chapter, which a notebook's function reads
            return self.of(value.described(), where)
        if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
            return {"$name": value.__name__}
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {"$is": type(value).__name__, **self.of(fields, where)}
        raise ValueError(
            f"{where} is a {type(value).__name__}, whose content cannot be identified: pass numbers, text, tensors, "
            f"tables, image sets, models, attacks or defenses"
        )

    def _function(self, function: types.FunctionType, where: str) -> Any:
        """A notebook's function by its source and the values of earlier cells that it reads; else by its name."""
        name = {"$function": function.__qualname__}
        library = function.__module__.partition(".")[0] == "reprolib"
        if library or id(function) in self._seen or self._home not in (None, function.__module__):
            return name
        self._home = function.__module__
        self._seen.add(id(function))
        codes, names = [function.__code__], set()
        while codes:
            code = codes.pop()
            names |= {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
            codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        read = {key: function.__globals__[key] for key in sorted(names) if key in function.__globals__}
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        read |= {key: cell.cell_contents for key, cell in cells}
        values = {key: self.of(value, f"{where} reads {key}, which") for key, value in read.items()}
        return name | {"source": without_prose(inspect.getsource(function)), "reads": values}


# --- what code a part ran ---------------------------------------------------------------------------------------------


def code_fingerprint(function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
    """16 hex digits over the sources that a part runs, without their comments and docstrings.

    They are the modules of `function` and of the classes of its inputs, and every module of reprolib that these import,
    directly or not, as far as it measures: files that only show what was measured do not count.
    """
    texts, roots = [], set()
    for thing in (function, *_things(inputs)):
        module = getattr(thing, "__module__", "") or ""
        if module.partition(".")[0] == "reprolib":
            roots.add(module)
        elif isinstance(thing, types.FunctionType):
            texts.append(without_prose(inspect.getsource(thing)))
    for module in sorted(_reached(frozenset(roots))):
        texts.append(f"{module}\n{_source_of(module)}")
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def without_prose(source: str) -> str:
    """Python source without comments, docstrings and differences of white space: what an edit of prose leaves equal."""
    source = inspect.cleandoc("\n" + source) + "\n"
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            prose = node.body[0]
            for number in range(prose.lineno - 1, prose.end_lineno):
                lines[number] = "\n"
            lines[prose.end_lineno - 1] = "pass\n" if len(node.body) == 1 else "\n"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            if lines[row - 1].strip() not in ("", "pass"):
                lines[row - 1] = lines[row - 1][:column] + "\n"
    return re.sub(r"\s+", " ", "".join(lines)).strip()


def _things(value: Any) -> Iterator[Any]:
    """The classes and functions that a part's inputs bring with them."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _things(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _things(item)
    elif isinstance(value, types.FunctionType | type):
        yield value
    elif isinstance(value, nn.Module):
        yield from {type(module) for module in value.modules()}
    elif dataclasses.is_dataclass(value):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from _things(getattr(value, field.name))


def _reached(roots: frozenset[str]) -> set[str]:
    """The modules of reprolib that the roots import, directly or not, themselves included; none that only show."""
    found, ahead = set(), list(roots)
    while ahead:
        module = ahead.pop()
        if module in found or module.split(".")[1:2] and module.split(".")[1] in PRESENTATION:
            continue
        found.add(module)
        ahead += _imported(module)
    return found


@lru_cache
def _file_of(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


@lru_cache
def _source_of(module: str) -> str:
    path = _file_of(module)
    return without_prose(path.read_text(encoding="utf-8")) if path else ""


@lru_cache
def _imported(module: str) -> tuple[str, ...]:
    """The modules of reprolib that one imports when it runs; a name passed on by a package leads to its home."""
    path = _file_of(module)
    if path is None:
        return ()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] == "reprolib"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "reprolib":
            found += [_home_of(node.module, alias.name) for alias in node.names]
    return tuple(dict.fromkeys(found))


def _home_of(package: str, name: str) -> str:
    """The module that `from package import name` reaches."""
    if _file_of(f"{package}.{name}") is not None:
        return f"{package}.{name}"
    path = _file_of(package)
    if path is not None and path.name == "__init__.py":
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            passed_on = isinstance(node, ast.ImportFrom) and name in {a.asname or a.name for a in node.names}
            if passed_on and (node.module or "").startswith("reprolib.") and node.module != package:
                return _home_of(node.module, name)
    return package


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

    def answers(self, function: Mapping[str, Any], inputs: Mapping[str, Any], seed: int) -> list[str]:
        """In what the record differs from what is asked for; an empty list where it answers it."""
        asked = {"function": function, "seed": seed, **{f"inputs.{key}": item for key, item in inputs.items()}}
        own = {"function": self.function, "seed": self.seed}
        own |= {f"inputs.{key}": item for key, item in self.inputs.items()}
        plain = {key: json.dumps(item, sort_keys=True) for key, item in asked.items()}
        mine = {key: json.dumps(item, sort_keys=True) for key, item in own.items()}
        return sorted(key for key in plain.keys() | mine.keys() if plain.get(key) != mine.get(key))


def save(path: str | os.PathLike, record: Record, pictures: int | None = None) -> None:
    """Write a record, its tensors first: the JSON says that it is whole.

    pictures: how many of each tensor of pictures are kept, all if None. A tensor [..., C, H, W] with one or three
    channels and values in [0, 1] counts as pictures and is kept in 8 bits.
    Raises ValueError for a value that is neither a table nor a dictionary, TypeError for what no record can hold.
    """
    value = record.value
    if not isinstance(value, pd.DataFrame | dict):
        raise ValueError(
            f"part {record.name!r} returned a {type(value).__name__}: expected a DataFrame or a dictionary"
        )
    arrays: dict[str, Tensor] = {}
    if isinstance(value, dict):
        plain = {key: _packed(item, key, arrays, pictures) for key, item in value.items()}
    else:
        plain = _packed(value, "table", arrays, pictures)
    path, content = Path(path), safetensors.torch.save(arrays) if arrays else None
    if content is not None:
        write_atomic(path.with_suffix(".safetensors"), content)
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    payload = fields | {
        "schema": SCHEMA,
        "value": plain,
        "tensors": None if content is None else hashlib.sha256(content).hexdigest(),
    }
    del payload["sha256"]
    results.save(path, payload)


def load(path: str | os.PathLike) -> Record:
    """Read a record that `save` wrote.

    Raises FileNotFoundError for a missing file; ValueError for one that is cut, was changed, has another schema, or
    whose tensors do not fit its checksum.
    """
    path = Path(path)
    payload = results.load(path)
    fields = {field.name for field in dataclasses.fields(Record)} - {"sha256"}
    if missing := sorted((fields | {"schema", "tensors"}) - payload.keys()):
        raise ValueError(f"{path.name} is no record of a part: it lacks {', '.join(missing)}")
    if payload["schema"] != SCHEMA:
        raise ValueError(f"{path.name} is a record of schema {payload['schema']}, this reprolib reads schema {SCHEMA}")
    arrays: dict[str, Tensor] = {}
    if payload["tensors"] is not None:
        content = path.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != payload["tensors"]:
            raise ValueError(f"{path.stem}.safetensors does not fit its checksum: it was cut or changed")
        arrays = safetensors.torch.load(content)
    value = payload["value"]
    if isinstance(value, dict) and "$columns" not in value:
        value = {key: _unpacked(item, key, arrays) for key, item in value.items()}
    else:
        value = _unpacked(value, "table", arrays)
    own = {name: payload[name] for name in fields} | {"value": value}
    return Record(**own, sha256=checksum(path))


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a record's JSON, which holds that of its tensors."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def made(device: torch.device, seconds: float) -> dict[str, Any]:
    """What a record says of the run that makes it."""
    found = results.provenance(device)
    keep = ("python", "versions", "commit", "device", "threads", "platform", "time")
    return {name: found[name] for name in keep} | {"seconds": round(seconds, 3)}


def _packed(value: Any, name: str, arrays: dict[str, Tensor], pictures: int | None) -> Any:
    """JSON for a value; its numbers go into `arrays`."""
    if isinstance(value, pd.DataFrame):
        columns = {}
        for column in value.columns:
            columns[str(column)] = _column(value[column], f"{name}/{column}", arrays)
        return {"$columns": columns, "rows": len(value)}
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        shown = tensor.ndim >= 3 and tensor.shape[-3] in (1, 3) and tensor.is_floating_point() and tensor.numel()
        if shown and tensor.ndim >= 4 and pictures is not None:
            tensor = tensor[:pictures].contiguous()
        if shown and tensor.numel() and tensor.min() >= 0 and tensor.max() <= 1:
            arrays[name] = (tensor.double() * 255).round().to(torch.uint8)
            return {"$pictures": str(tensor.dtype).removeprefix("torch.")}
        arrays[name] = tensor
        return {"$tensor": True}
    return results.encoded(value)


def _unpacked(value: Any, name: str, arrays: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and "$columns" in value:
        columns = {key: _values(how, f"{name}/{key}", arrays, value["rows"]) for key, how in value["$columns"].items()}
        return pd.DataFrame(columns, index=pd.RangeIndex(value["rows"]))
    if isinstance(value, dict) and "$pictures" in value:
        return (arrays[name].to(getattr(torch, value["$pictures"])) / 255).contiguous()
    if isinstance(value, dict) and "$tensor" in value:
        return arrays[name]
    return value


def _column(values: pd.Series, name: str, arrays: dict[str, Tensor]) -> Any:
    """A column as its different values and, row by row, which of them: short where values repeat; else as it is."""
    array = values.to_numpy()
    if array.dtype == object or array.dtype.kind not in "biuf":
        entries = list(dict.fromkeys(array.tolist())) if all(map(_hashable, array)) else None
        if entries is None or len(entries) > 255:
            return {"values": results.encoded(array.tolist())}
        place = {entry: i for i, entry in enumerate(entries)}
        arrays[name] = torch.tensor([place[entry] for entry in array.tolist()], dtype=torch.uint8)
        return {"of": results.encoded(entries)}
    different, which = np.unique(array, return_inverse=True)
    if len(different) <= 255 and len(different) < len(array) / 2:
        arrays[name] = torch.from_numpy(which.reshape(-1).astype(np.uint8))
        return {"dtype": str(array.dtype), "of": results.encoded(different.tolist())}
    narrow = array
    if array.dtype == np.float64 and np.array_equal(array.astype(np.float32).astype(np.float64), array, equal_nan=True):
        narrow = array.astype(np.float32)
    arrays[name] = torch.from_numpy(np.array(narrow))
    return {"dtype": str(array.dtype)}


def _values(how: Mapping[str, Any], name: str, arrays: Mapping[str, Tensor], rows: int) -> Any:
    if "values" in how:
        return how["values"]
    if "of" in how:
        entries, which = how["of"], arrays[name].long().numpy()
        if "dtype" in how:
            return np.array(entries, dtype=how["dtype"])[which] if rows else np.array([], dtype=how["dtype"])
        return [entries[i] for i in which]
    return arrays[name].numpy().astype(how["dtype"])


def _hashable(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


# --- two records of one part ------------------------------------------------------------------------------------------

KEYS = ("network", "trial", "image", "draw", "batch", "attack", "rule", "offset", "classes", "steps", "stage", "level")
KEYS += ("attacker", "outer", "defense")
"""Columns by which rows of two tables are found to be the same trial."""

TIMES = ("seconds",)
"""Columns that no two runs share."""


def differences(recorded: Any, fresh: Any, exact: bool = True) -> list[str]:
    """Where a part that ran again differs from its record, one line each; the fresh one may hold fewer trials.

    exact: every number must be equal to six digits, as on the kind of machine that made the record. Otherwise, on
    another kind, what was decided of each row must be equal: columns of truth values and whole numbers other than
    counts of evaluations; and numbers only to a factor of two, because a search is chaotic in its last digits.
    Seconds are never compared.
    """
    found = []
    for name, (old, new) in _tables(recorded, fresh).items():
        keys = [key for key in KEYS if key in old and key in new]
        if not keys:
            if len(old) != len(new):
                found.append(f"{name}: {len(new)} rows, the record has {len(old)}")
                continue
            old, new = old.reset_index(names="row"), new.reset_index(names="row")
            keys = ["row"]
        joined = new.merge(old, on=keys, suffixes=("", " recorded"), how="left", indicator=True)
        if (absent := int((joined["_merge"] != "both").sum()) or len(joined) - len(new)) != 0:
            found.append(f"{name}: {abs(absent)} rows have no counterpart in the record")
            continue
        for column in new.columns:
            if column in keys or column in TIMES or f"{column} recorded" not in joined:
                continue
            a, b = joined[column], joined[f"{column} recorded"]
            unequal = ~_equal(a, b, exact, column)
            if unequal.any():
                row = int(unequal.to_numpy().argmax())
                place = ", ".join(f"{key} {joined[key].iloc[row]}" for key in keys)
                text = f"{name}, {column}: {int(unequal.sum())} of {len(joined)} rows differ, first at {place}: "
                found.append(text + f"{a.iloc[row]} here, {b.iloc[row]} recorded")
    return found


def beside(recorded: Any, fresh: Any) -> list[str]:
    """Fresh numbers beside recorded ones, one line a column: its mean over the rows that both have."""
    lines = []
    for name, (old, new) in _tables(recorded, fresh).items():
        keys = [key for key in KEYS if key in old and key in new]
        both = new.merge(old, on=keys, suffixes=("", " recorded")) if keys else new.join(old, rsuffix=" recorded")
        for column in new.select_dtypes(["bool", "number"]).columns.difference([*keys, *TIMES], sort=False):
            if f"{column} recorded" in both:
                here, there = (both[name].astype(float).mean() for name in (column, f"{column} recorded"))
                lines.append(f"{name}, {column}: {here:.6g} here, {there:.6g} recorded")
    return lines


def _tables(recorded: Any, fresh: Any) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    if isinstance(recorded, pd.DataFrame):
        return {"table": (recorded, fresh)}
    return {
        key: (item, fresh[key]) for key, item in recorded.items() if isinstance(item, pd.DataFrame) and key in fresh
    }


def _equal(a: pd.Series, b: pd.Series, exact: bool, column: str) -> pd.Series:
    if a.dtype.kind == "f" or b.dtype.kind == "f":
        x, y = a.astype(float).to_numpy(), b.astype(float).to_numpy()
        tolerance = 1e-6 if exact else 1.0
        near = np.abs(x - y) <= tolerance * np.maximum(np.abs(x), np.abs(y)) + 1e-12
        return pd.Series(near | (x == y) | (np.isnan(x) & np.isnan(y)), index=a.index)
    if not exact and column in ("evaluations", "starts", "rank"):
        return pd.Series(True, index=a.index)
    return (a == b) | (a.isna() & b.isna())


# --- sets of images that only a record knows --------------------------------------------------------------------------


class RecordedSet:
    """An image set as a record knows it: name, shape, classes, size and fingerprint; pixels only where it is at hand.

    It stands wherever an `ImageSet` does. Whoever asks for pixels gets those of `open`, a function that opens the set,
    if it has the record's fingerprint.
    """

    def __init__(self, known: Mapping[str, Any], open: Callable[[], Any]) -> None:
        self._known, self._open, self._opened = dict(known), open, None
        self.name, self.split, self.source = known["name"], known["split"], known["source"]
        self.asked, self.fingerprint = known["asked"], known["fingerprint"]
        self.classes, self.image_shape = tuple(known["classes"]), tuple(known["image_shape"])

    def __len__(self) -> int:
        return self._known["count"]

    @property
    def substitute(self) -> bool:
        return self.name != self.asked

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def opened(self) -> Any:
        """The set itself. Raises FileNotFoundError where it is not at hand, ValueError where it is another."""
        if self._opened is None:
            here = (
                f"The record knows of {self.name!r} ({self.split}) that it has {len(self)} images of {self.image_shape}"
            )
            try:
                found = self._open()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{here}, and its pixels are not here. {error}") from error
            if found.fingerprint != self.fingerprint:
                raise ValueError(
                    f"{here} and fingerprint {self.fingerprint}, but the copy here is {found.name!r} with {len(found)} "
                    f"images and fingerprint {found.fingerprint}: these are other images"
                )
            self._opened = found
        return self._opened

    def __getattr__(self, name: str) -> Any:
        if name in ("images", "labels", "batches", "mean_image", "after"):
            return getattr(self.opened, name)
        raise AttributeError(f"an image set has no attribute {name!r}")


def known_of(images: Any) -> dict[str, Any]:
    """What a record keeps of an image set."""
    return {
        "name": images.name,
        "split": images.split,
        "asked": images.asked,
        "source": images.source,
        "count": len(images),
        "image_shape": list(images.image_shape),
        "classes": list(images.classes),
        "fingerprint": images.fingerprint,
    }


def read_all(folder: str | os.PathLike) -> tuple[dict[str, Record], list[str]]:
    """Every readable record in a folder by its part's name, and a line for each file that is none."""
    found, problems = {}, []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            record = load(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
        else:
            found[record.name] = record
    return found, problems
