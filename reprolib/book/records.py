"""Records: what a part of a chapter returned, with all that made it, as JSON and safetensors beside each other.

`NAME.json` holds the part's inputs by public names and field values, its seed, the fingerprint of the code that it
ran, commit, versions, device, seconds and the checksums; `NAME.safetensors` the tensors and the numeric columns of its
tables. Nothing in either is code. A record is the same in the store of a run (`results/parts`) and among the
committed ones (`results/reference/KEY/records`). This file measures nothing and shows nothing.
Source: the developer guide, "Records, profiles, replay".
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import hashlib
import inspect
import json
import math
import os
import sys
import types
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor, nn

from reprolib import data, models
from reprolib.atomic import write_atomic
from reprolib.book import results, sources

SCHEMA = 2
"""Raised when the layout of a record changes; `load` refuses any other."""


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
        self._seen: set[int] = set()

    def of(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float | np.generic):
            plain = value.item() if isinstance(value, np.generic) else value
            if isinstance(plain, float) and not np.isfinite(plain):
                return {"$number": repr(plain)}
            if isinstance(plain, bool | int | float | str):
                return plain
        if isinstance(value, torch.device):
            return None
        if isinstance(value, torch.dtype):
            return str(value)
        if isinstance(value, Mapping):
            if len({str(key) for key in value}) < len(value):
                raise ValueError(f"{where} has keys that are equal as text among {list(value)}: name them apart")
            return {str(key): self.of(item, f"{where}[{key!r}]") for key, item in value.items()}
        if isinstance(value, list | tuple | range):
            return [self.of(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            return self.of(value.tolist(), where)
        if isinstance(value, Tensor | np.ndarray):
            return _array(value)
        if isinstance(value, pd.DataFrame | pd.Series):
            return {"$frame": _digest_of_table(value, where)}
        if isinstance(value, nn.Module):
            known = {"$model": type(value).__name__, "fingerprint": models.fingerprint(value)}
            return known | {"layers": _digest(_layers(value))} | self._own(type(value), where)
        if isinstance(getattr(value, "fingerprint", None), str) and hasattr(value, "image_shape"):
            return {"$images": value.name, "split": value.split, "count": len(value), "fingerprint": value.fingerprint}
        if isinstance(getattr(value, "fingerprint", None), str):
            return {"$fingerprint": value.fingerprint}
        if isinstance(value, types.SimpleNamespace):
            return self.of(vars(value), where)
        if isinstance(value, type):
            return {"$name": value.__name__} | self._own(value, where)
        if hasattr(value, "described"):  # an open chapter, which a notebook's function reads
            return self.of(value.described(), where)
        if isinstance(value, types.ModuleType):
            own = {"source": _source_of_file(value)} if _origin(value.__name__) == "own" else {}
            return {"$name": value.__name__.rpartition(".")[2]} | own
        if isinstance(value, types.BuiltinFunctionType):
            return {"$name": value.__name__}
        if isinstance(value, types.FunctionType):
            return self._function(_unwrapped(value), where)
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {"$is": type(value).__name__} | self._own(type(value), where) | self.of(fields, where)
        raise ValueError(
            f"{where} is a {type(value).__name__}, whose content cannot be identified: pass numbers, text, tensors, "
            f"tables, image sets, models, attacks or defenses"
        )

    def _function(self, function: types.FunctionType, where: str) -> dict[str, Any]:
        """A notebook's function by its source and the values that it reads; an installed one by its name."""
        name, origin = {"$function": function.__qualname__}, _origin(function.__module__)
        if origin == "package" or id(function) in self._seen:
            return name
        self._seen.add(id(function))
        read = _closure_of(function)
        if origin == "own":
            name["source"] = _source_of_function(function, where)
            read |= _defaults_of(function) | {key: value for key, _, value in _globals_of(function)}
        values = {key: self.of(read[key], f"{where} reads {key}, which") for key in sorted(read)}
        return name | ({"reads": values} if values or origin == "own" else {})

    def _own(self, kind: type, where: str) -> dict[str, Any]:
        """What a class of the notebook does, which its name does not tell; nothing for an installed one."""
        if _origin(kind.__module__) != "own" or id(kind) in self._seen:
            return {}
        self._seen.add(id(kind))
        return {"$class": {name: self.of(item, f"{where}.{name}") for name, item in _members(kind).items()}}


def _array(value: Tensor | np.ndarray) -> dict[str, str]:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        content = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()  # NumPy has no bfloat16
    else:
        kind, content = str(value.dtype), np.ascontiguousarray(value)
    digest = hashlib.sha256(content.tobytes()).hexdigest()[:16]
    return {"$tensor": f"{kind}{list(value.shape)}", "sha256": digest}


def _digest_of_table(table: pd.DataFrame | pd.Series, where: str) -> str:
    frame = table.to_frame() if isinstance(table, pd.Series) else table
    try:
        content = [results.encoded(frame), results.encoded(frame.index.tolist())]
    except TypeError as error:
        raise ValueError(f"{where} is a table whose content cannot be identified: {error}") from error
    return _digest([content, [str(dtype) for dtype in frame.dtypes]])


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _layers(model: nn.Module) -> list[Any]:
    """What the weights of a model do not tell: its layers' classes, strides, activations, and how it was built."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return repr(value)
        return getattr(value, "__name__", "")  # of a function, for instance F.relu

    found = []
    for name, layer in model.named_modules():
        told = {key: plain(item) for key, item in vars(layer).items() if key[0] != "_" and key != "training"}
        found.append([name, type(layer).__name__, told])
    return found


# --- what a notebook defines itself -----------------------------------------------------------------------------------


def _origin(module: str | None) -> str:
    """Whose code a module is: "library" (reprolib), "package" (installed) or "own" (a notebook, a file beside it)."""
    top = (module or "").partition(".")[0]
    if top == "reprolib":
        return "library"
    file = Path(getattr(sys.modules.get(top), "__file__", None) or "")
    installed = top in sys.stdlib_module_names or {"site-packages", "dist-packages"} & set(file.parts)
    return "package" if installed or not top else "own"


def _unwrapped(function: types.FunctionType) -> types.FunctionType:
    """The function below the decorators of installed packages, such as `torch.no_grad`."""
    while hasattr(function, "__wrapped__") and _origin(function.__globals__.get("__name__")) == "package":
        function = function.__wrapped__
    return function


def _source_of_function(function: types.FunctionType, where: str) -> str:
    try:
        return sources.without_prose(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise ValueError(f"{where} is a function without source: define it in a cell or in a file") from error


def _source_of_file(module: types.ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return sources.without_prose(Path(file).read_text(encoding="utf-8")) if file else ""


def _codes_of(function: types.FunctionType) -> Iterator[types.CodeType]:
    """The code of a function and of those that it defines inside."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        yield code


def _globals_of(function: types.FunctionType) -> Iterator[tuple[str, str, Any]]:
    """The values of earlier cells that a function reads: name, the attribute that is taken of it or "", value."""
    for code in _codes_of(function):
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        for step, after in zip(steps, [*steps[1:], None], strict=True):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                taken = after is not None and after.opname in ("LOAD_ATTR", "LOAD_METHOD")
                yield step.argval, after.argval if taken else "", function.__globals__[step.argval]


def _closure_of(function: types.FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell: the name is not bound yet
            found[name] = cell.cell_contents
    return found


def _defaults_of(function: types.FunctionType) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {f"{one.name}=": one.default for one in parameters if one.default is not one.empty}


def _members(kind: type) -> dict[str, Any]:
    """What a notebook's class and the notebook's classes below it define: functions, and values with public names."""
    found: dict[str, Any] = {"bases": [base.__name__ for base in kind.__mro__[1:]]}
    for base in reversed([base for base in kind.__mro__ if _origin(base.__module__) == "own"]):
        for name, item in vars(base).items():
            for inner in ("__func__", "fget", "func"):  # of static and class methods, properties, cached properties
                item = getattr(item, inner, None) or item
            if isinstance(item, types.FunctionType):
                if not _unwrapped(item).__code__.co_filename.startswith("<string>"):  # what a dataclass generates
                    found[name] = item
            elif not name.startswith("_") and not isinstance(item, types.MemberDescriptorType):
                found[name] = item
    return found


# --- what code a part ran ---------------------------------------------------------------------------------------------


def code_fingerprint(function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
    """16 hex digits over what a part runs, without comments, docstrings and annotations.

    It is everything of reprolib that `function` and the classes of its inputs can reach, definition by definition, as
    far as it measures: what only shows what was measured does not count, nor does the file that a definition stands in
    (`sources.reached`). Of a notebook's own function or class it is its source, and what that reaches.
    """
    own, roots, called = _begins(function, inputs)
    return hashlib.sha256("\0".join(sorted(own | sources.texts(roots, called))).encode()).hexdigest()[:16]


def _begins(function: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[set[str], set[sources.Place], set[str]]:
    """Where a part begins: sources of the notebook's own, places in the library, and names that it may look up."""
    texts, roots, called, seen, ahead = set(), set(), set(), set(), [*_things(function), *_things(inputs)]
    while ahead:
        thing = ahead.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, str):
            called.add(thing)
            continue
        origin = _origin(thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__)
        if origin == "library":
            roots |= set(_places(thing))
        elif origin == "own" and isinstance(thing, types.ModuleType):
            texts.add(_source_of_file(thing))
        elif origin == "own" and isinstance(thing, types.FunctionType):
            texts.add(_source_of_function(thing, thing.__qualname__))
            for code in _codes_of(thing):
                ahead += [name for name in (*code.co_names, *code.co_consts) if isinstance(name, str)]
            for _, attribute, value in _globals_of(thing):  # of a module what is taken from it, not all of it
                ahead += _things(getattr(value, attribute, value) if isinstance(value, types.ModuleType) else value)
            ahead += _things([_closure_of(thing), _defaults_of(thing)])
        elif origin == "own":
            ahead += _things(_members(thing))
            ahead += [base for base in thing.__mro__ if _origin(base.__module__) == "library"]
    return texts, roots, called


def _places(thing: Any) -> Iterator[sources.Place]:
    """Where a module, class or function of the library is defined; its whole module if that cannot be told."""
    if isinstance(thing, types.ModuleType):
        yield thing.__name__, sources.WHOLE
        return
    outer, _, inner = thing.__qualname__.partition(".<locals>")[0].partition(".")
    places = [(thing.__module__, outer)] + ([(thing.__module__, f"{outer}.{inner}")] if inner else [])
    known = [place for place in places if sources.defines(place)]
    yield from known or [(thing.__module__, sources.WHOLE)]


def _things(value: Any) -> Iterator[Any]:
    """The classes, functions and modules that a part's inputs bring with them, and their texts, which may name some."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _things(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _things(item)
    elif isinstance(value, types.FunctionType):
        yield _unwrapped(value)
    elif isinstance(value, str | type | types.ModuleType):
        yield value
    elif isinstance(value, nn.Module):
        yield from dict.fromkeys(type(module) for module in value.modules())
        yield from _things(
            [held for one in value.modules() for held in vars(one).values() if dataclasses.is_dataclass(held)]
        )
    elif isinstance(value, RecordedSet | data.ImageSet):
        yield data.ImageSet  # which a record stands for
    elif isinstance(value, types.SimpleNamespace):
        yield from _things(vars(value))
    elif dataclasses.is_dataclass(value):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from _things(getattr(value, field.name))


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
    plain = _packed(record.value, "", arrays, pictures)
    path, content = Path(path), safetensors.torch.save(_deflated(arrays)) if arrays else None
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
        value = _unpacked(payload["value"], _inflated(safetensors.torch.load(content)) if content else {})
    except (*_DAMAGE, safetensors.SafetensorError, zlib.error) as error:
        raise ValueError(f"{path.name} is damaged: its values and its tensors do not fit ({error!r})") from error
    own = {name: payload[name] for name in _FIELDS} | {"value": value}
    return Record(**own, sha256=checksum(path))


def _deflated(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays as deflated bytes, named "NAME DTYPE SHAPE": a third to a half of their size.

    The bytes of equal rank in all numbers stand together, since exponents repeat and last digits do not.
    """
    packed = {}
    for name, tensor in arrays.items():
        plain = tensor.contiguous().reshape(-1)
        planes = plain.view(torch.uint8).reshape(len(plain), -1).T.contiguous() if len(plain) else plain
        shape = "x".join(map(str, tensor.shape)) or "-"
        content = zlib.compress(planes.numpy().tobytes(), 9)
        told = f"{name} {str(tensor.dtype).removeprefix('torch.')} {shape}"
        packed[told] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return packed


def _inflated(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays that `_deflated` packed. Raises ValueError where bytes and shape do not fit."""
    arrays = {}
    for told, content in packed.items():
        name, dtype, shape = told.rsplit(" ", 2)
        kind, sides = getattr(torch, dtype), [] if shape == "-" else list(map(int, shape.split("x")))
        count = math.prod(sides)
        planes = zlib.decompressobj().decompress(content.numpy().tobytes(), kind.itemsize * count + 1)
        if len(planes) != kind.itemsize * count:
            raise ValueError(f"{name!r} holds {len(planes)} bytes, its shape asks for {kind.itemsize * count}")
        plain = torch.empty(0, dtype=kind)
        if count:
            plain = torch.frombuffer(bytearray(planes), dtype=torch.uint8).reshape(kind.itemsize, count).T.contiguous()
        arrays[name] = plain.reshape(-1).view(kind).reshape(sides)
    return arrays


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


def _packed(value: Any, name: str, arrays: dict[str, Tensor], pictures: int | None) -> Any:
    """JSON for a value; its numbers go into `arrays`, under the names that the JSON gives."""
    if isinstance(value, pd.DataFrame):
        names = [str(column) for column in value.columns]
        if len(set(names)) < len(names):
            raise ValueError(f"the table {name or 'of a part'} has several columns of one name among {names}")
        columns = [_column(value.iloc[:, i], f"{name}/{column}", arrays) for i, column in enumerate(names)]
        return {"$columns": [[column, how] for column, how in zip(names, columns, strict=True)], "rows": len(value)}
    if isinstance(value, Tensor):
        # a copy: the file holds no two tensors that share their memory
        tensor = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        shown = tensor.ndim >= 3 and tensor.shape[-3] in (1, 3) and tensor.is_floating_point() and tensor.numel()
        if shown and tensor.ndim >= 4 and pictures is not None:
            tensor = tensor[:pictures].clone()
        if shown and tensor.numel() and tensor.min() >= 0 and tensor.max() <= 1:
            pixels = (tensor.double() * 255).round().to(torch.uint8)
            return {"$pictures": str(tensor.dtype).removeprefix("torch."), "in": _kept(pixels, name, arrays)}
        return {"$tensor": _kept(tensor, name, arrays)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):  # in pairs: JSON is written in the order of its keys
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"keys of what a part returns must be text, got {wrong}")
        return {"$items": [[key, _packed(item, f"{name}/{key}", arrays, pictures)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(item, f"{name}/{i}", arrays, pictures) for i, item in enumerate(value)]
    return results.encoded(value)


def _kept(tensor: Tensor, name: str, arrays: dict[str, Tensor]) -> str:
    """Put a tensor into `arrays` under its name, or one like it where that is taken; returns the name."""
    while name in arrays:
        name += "'"
    arrays[name] = tensor
    return name


def _unpacked(value: Any, arrays: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "$columns" in value:
        columns = {name: _values(how, arrays) for name, how in value["$columns"]}
        if wrong := [name for name, column in columns.items() if len(column) != value["rows"]]:
            raise ValueError(f"{', '.join(wrong)} has other rows than the {value['rows']} of its table")
        return pd.DataFrame(columns, index=pd.RangeIndex(value["rows"]))
    if "$pictures" in value:
        kind = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
        return (arrays[value["in"]].double() / 255).to((kind | {"float64": torch.float64})[value["$pictures"]])
    if "$tensor" in value:
        return arrays[value["$tensor"]]
    return {key: _unpacked(item, arrays) for key, item in value["$items"]}


def _column(values: pd.Series, name: str, arrays: dict[str, Tensor]) -> Any:
    """A column as its different values and, row by row, which of them: short where values repeat; else as it is."""
    array, kind = values.to_numpy(), str(values.dtype)
    if array.dtype.kind == "O":
        entries = array.tolist()
        marks = [(type(entry), repr(entry)) for entry in entries]  # True, 1 and 1.0 are equal, and not the same
        place = {mark: i for i, mark in enumerate(dict.fromkeys(marks))}
        told = {"dtype": kind if kind in ("str", "string") else "object"}
        simple = all(entry is None or isinstance(entry, str | bool | int | float) for entry in entries)
        if len(place) > 255 or not simple:
            return told | {"values": [_packed(entry, name, arrays, None) for entry in entries]}
        first = dict(zip(reversed(marks), reversed(entries), strict=True))
        which = torch.tensor([place[mark] for mark in marks], dtype=torch.uint8)
        return told | {"of": results.encoded([first[mark] for mark in place]), "in": _kept(which, name, arrays)}
    if kind != str(array.dtype) or array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"a record cannot hold column {name}, whose values are {kind}: give it numbers, truths or text")
    bits = array.view(f"i{array.dtype.itemsize}") if array.dtype.kind == "f" else array  # 0.0 and -0.0 are equal
    different, which = np.unique(bits, return_inverse=True)
    if len(different) <= 255 and len(different) < len(array) / 2:
        entries = results.encoded(different.view(array.dtype).tolist())
        index = torch.from_numpy(which.reshape(-1).astype(np.uint8))
        return {"dtype": kind, "of": entries, "in": _kept(index, name, arrays)}
    narrow = array
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            short = array.astype(np.float32)
        narrow = short if np.array_equal(short.astype(np.float64), array, equal_nan=True) else array
    return {"dtype": kind, "in": _kept(torch.from_numpy(np.array(narrow)), name, arrays)}


def _values(how: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> pd.Series:
    if "values" in how:
        return pd.Series([_unpacked(item, arrays) for item in how["values"]], dtype=how["dtype"])
    array = arrays[how["in"]].numpy()
    if "of" not in how:
        return pd.Series(array.astype(how["dtype"]))
    entries = pd.Series(how["of"], dtype=how["dtype"])
    return entries.iloc[array.astype(np.int64)].reset_index(drop=True)


# --- two records of one part ------------------------------------------------------------------------------------------

KEYS = ("network", "trial", "image", "draw", "batch", "attack", "rule", "offset", "classes", "steps", "stage", "case")
KEYS += ("attacker", "outer", "defense", "client", "seed", "tensor", "baseline")
"""Columns by which rows of two tables are found to be the same trial; not where they hold fractions."""

TIMES = ("seconds",)
"""Columns and entries that no two runs share."""

COSTS = ("evaluations", "starts", "rank")
"""Whole numbers that depend on the last digits of a search."""

EXACT_HITS = ("psnr_dim0",)
"""Measures that are infinite as soon as one pixel is met to its last digit, which another machine need not do."""

LOST = 1e-2
"""Mean squared error beyond which a search ended away from its image."""


def by_trial(value: Any) -> bool:
    """Whether a few trials of what a part returned can be compared: it holds tables, and each knows its trials."""
    tables = [value] if isinstance(value, pd.DataFrame) else [v for v in value.values() if isinstance(v, pd.DataFrame)]
    return bool(tables) and all("trial" in table for table in tables)


def differences(recorded: Any, fresh: Any, exact: bool = True, trials: Sequence[int] | None = None) -> list[str]:
    """Where a part that ran again differs from its record, one line each.

    Everything is compared: tables row by row, with the same columns and rows, tensors, texts and numbers; seconds
    never. Rows are matched by the columns of KEYS that they have, and by their order where these are equal.
    exact: every number must be equal to six digits, or to 1e-12, as on the kind of machine that made the record; and
    pictures to a level of 8 bits. Otherwise, on another kind, or where fewer trials ran at once, what was decided must
    be equal, truths, texts and whole numbers other than COSTS, and of fractions the size, because a search is chaotic
    in its last digits: a factor of two, and below one a factor of two in decibels. Tensors of fractions are not
    compared there, nor whether one of EXACT_HITS is infinite; and of a search that ended away from its image both times
    (LOST), at other objectives, only whether the image was identified: chaos alone says where it ended.
    trials: those that ran again, where these are not all (`by_trial`): then the tables are compared in their rows, and
    nothing else.
    """
    if trials is None:
        return _compared(recorded, fresh, "", exact)
    if not by_trial(recorded):
        return ["nothing of it can be compared on a few trials: run all of it"]
    if isinstance(recorded, pd.DataFrame):
        recorded, fresh = {"table": recorded}, {"table": fresh}
    old, new = ({k: v for k, v in tables.items() if isinstance(v, pd.DataFrame)} for tables in (recorded, fresh))
    return _compared({name: table[table.trial.isin(trials)] for name, table in old.items()}, new, "", exact)


def beside(recorded: Any, fresh: Any) -> list[str]:
    """Fresh numbers beside recorded ones, one line a column: its mean over the rows that both have."""
    pairs = {"table": (recorded, fresh)}
    if isinstance(recorded, Mapping):
        pairs = {name: (item, fresh.get(name)) for name, item in recorded.items()}
    lines = []
    for name, (old, new) in pairs.items():
        if not (isinstance(old, pd.DataFrame) and isinstance(new, pd.DataFrame)):
            continue
        keys, theirs, ours, _, _ = _paired(old, new)
        for column in new.select_dtypes(["bool", "number"]).columns.difference([*keys, *TIMES], sort=False):
            if ours and column in old and old[column].dtype.kind in "biuf":
                here, there = (t[column].iloc[rows].astype(float).mean() for t, rows in ((new, ours), (old, theirs)))
                lines.append(f"{name}, {column}: {here:.6g} here, {there:.6g} recorded")
    return lines


def _compared(old: Any, new: Any, name: str, exact: bool) -> list[str]:
    """Lines on where two values differ, and in what."""
    if dataclasses.is_dataclass(new) and not isinstance(new, type):  # a record holds its fields
        new = {field.name: getattr(new, field.name) for field in dataclasses.fields(new)}
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = [f"{_of(name, key)}: not here" for key in old.keys() - new.keys()]
        lines += [f"{_of(name, key)}: not recorded" for key in new.keys() - old.keys()]
        lines.sort()
        for key in old:
            if key in new and key not in TIMES:
                lines += _compared(old[key], new[key], _of(name, key), exact)
        return lines
    if isinstance(old, pd.DataFrame) and isinstance(new, pd.DataFrame):
        return _compared_tables(old, new, name or "table", exact)
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return _compared_tensors(old, new.detach().cpu(), name, exact)
    kinds = pd.DataFrame | Tensor | Mapping
    lists = isinstance(old, list) and isinstance(new, list | tuple) and len(old) == len(new)
    if lists and any(isinstance(item, kinds | list) for item in old):
        parts = enumerate(zip(old, new, strict=True))
        return [line for i, pair in parts for line in _compared(*pair, _of(name, str(i)), exact)]
    if isinstance(old, kinds) or isinstance(new, kinds):
        return [f"{name or 'the part'} is a {type(new).__name__} here, a {type(old).__name__} recorded"]
    same = _same(results.encoded(old), results.encoded(new), exact)
    return [] if same else [f"{name}: {_short(new)} here, {_short(old)} recorded"]


def _of(name: str, key: str) -> str:
    return f"{name}/{key}" if name else key


def _short(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _compared_tables(old: pd.DataFrame, new: pd.DataFrame, name: str, exact: bool) -> list[str]:
    ours, theirs = ({str(column) for column in table} for table in (new, old))
    lines = [f"{name}: column {column} is not here" for column in sorted(theirs - ours)]
    lines += [f"{name}: column {column} is not recorded" for column in sorted(ours - theirs)]
    keys, left, right, more, fewer = _paired(old, new)
    if more:
        lines.append(f"{name}: {more} of {len(new)} rows have no counterpart in the record")
    if fewer:
        lines.append(f"{name}: {fewer} of {len(old)} recorded rows are not here")
    here, there = new.iloc[right].reset_index(drop=True), old.iloc[left].reset_index(drop=True)
    lost = np.zeros(len(here), dtype=bool) if exact else _lost(here, there)
    for column in [column for column in new if str(column) in theirs and column not in (*keys, *TIMES)]:
        a, b = here[column], there[str(column)]
        equal = _equal(a, b, exact, str(column))
        if not exact and column in EXACT_HITS:
            equal |= np.isinf(a.to_numpy()) ^ np.isinf(b.to_numpy())
        unequal = np.flatnonzero(~equal if column == "identified" else ~equal & ~lost)
        if len(unequal):
            row = int(unequal[0])
            place = ", ".join(f"{key} {new[key].iloc[right[row]]}" for key in keys) or f"row {right[row]}"
            lines.append(
                f"{name}, {column}: {len(unequal)} of {len(a)} rows differ, first at {place}: "
                f"{_short(a[row])} here, {_short(b[row])} recorded"
            )
    return lines


def _lost(here: pd.DataFrame, there: pd.DataFrame) -> np.ndarray:
    """Rows of searches that ended away from their image in both tables, and not in one place."""
    if not all({"mse", "objective"} <= set(table) for table in (here, there)):
        return np.zeros(len(here), dtype=bool)
    away = (here.mse.to_numpy() > LOST) & (there.mse.to_numpy() > LOST)
    return away & ~_near(here.objective.to_numpy(), there.objective.to_numpy(), True)


def _paired(old: pd.DataFrame, new: pd.DataFrame) -> tuple[list[str], list[int], list[int], int, int]:
    """Rows of two tables that are the same trial: the key columns, places in old and in new, and how many are alone."""
    keys = [key for key in KEYS if all(key in table and table[key].dtype.kind != "f" for table in (old, new))]
    found: dict[tuple[str, ...], deque[int]] = {}
    for place, key in enumerate(_rows(old, keys)):
        found.setdefault(key, deque()).append(place)
    left, right = [], []
    for place, key in enumerate(_rows(new, keys)):
        if found.get(key):
            left.append(found[key].popleft())
            right.append(place)
    return keys, left, right, len(new) - len(right), len(old) - len(left)


def _rows(table: pd.DataFrame, keys: list[str]) -> list[tuple[str, ...]]:
    if not keys:
        return [()] * len(table)
    return list(zip(*(map(repr, table[key].tolist()) for key in keys), strict=True))


def _equal(a: pd.Series, b: pd.Series, exact: bool, column: str) -> np.ndarray:
    if a.dtype.kind in "biuf" and b.dtype.kind in "biuf":
        if "f" in (a.dtype.kind, b.dtype.kind):
            return _near(a.to_numpy(float), b.to_numpy(float), exact)
        return (a == b).to_numpy() | (not exact and column in COSTS)

    def plain(item: Any) -> Any:  # what is missing in a column of text is None or NaN, as pandas has it
        return None if isinstance(item, float) and np.isnan(item) else results.encoded(item)

    ours, theirs = (map(plain, side.tolist()) for side in (a, b))
    return np.array([_same(x, y, exact) for x, y in zip(ours, theirs, strict=True)], dtype=bool)


def _near(x: np.ndarray, y: np.ndarray, exact: bool) -> np.ndarray:
    """Whether numbers are equal as `differences` says; NaN and an infinite number equal nothing but themselves."""
    with np.errstate(all="ignore"):
        tolerance = 1e-6 if exact else 0.5
        near = np.abs(x - y) <= tolerance * np.maximum(np.abs(x), np.abs(y)) + 1e-12
        if not exact:
            low, high = np.log(np.minimum(x, y)), np.log(np.maximum(x, y))
            near |= (high < 0) & np.isfinite(low) & (high - low <= -0.5 * low)
        return (np.isfinite(x) & np.isfinite(y) & near) | (x == y) | (np.isnan(x) & np.isnan(y))


def _same(x: Any, y: Any, exact: bool) -> bool:
    """Whether two JSON values are equal as `differences` says."""
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(key in TIMES or _same(x[key], y[key], exact) for key in x)
    if isinstance(x, list) and isinstance(y, list):
        return len(x) == len(y) and all(_same(one, other, exact) for one, other in zip(x, y, strict=True))
    numbers = [one for one in (x, y) if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) == 2 and any(isinstance(one, float) for one in numbers):
        return bool(_near(np.array(float(x)), np.array(float(y)), exact))
    return type(x) is type(y) and x == y


def _compared_tensors(old: Tensor, new: Tensor, name: str, exact: bool) -> list[str]:
    if old.ndim >= 4 and old.shape[1:] == new.shape[1:] and len(old) < len(new):
        new = new[: len(old)]  # a record may keep the first pictures only
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        shapes = [f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in (new, old)]
        return [f"{name} is {shapes[0]} here, {shapes[1]} recorded"]
    if not old.is_floating_point():
        unequal = old != new
    elif not exact:
        return []
    else:
        unequal = ~torch.from_numpy(_near(new.double().numpy(), old.double().numpy(), exact))
        levels = old.double() * 255
        if old.numel() and (levels - levels.round()).abs().max() < 1e-3:  # pictures are kept in 8 bits
            unequal &= (levels - new.double() * 255).abs().nan_to_num(nan=256.0) > 0.51
    if not unequal.any():
        return []
    return [f"{name}: {int(unequal.sum())} of {unequal.numel()} numbers differ, by up to {_gap(old, new):.3g}"]


def _gap(old: Tensor, new: Tensor) -> float:
    return float((old.double() - new.double()).abs().nan_to_num(nan=torch.inf).max())


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
            if found.name != self.name:
                raise FileNotFoundError(
                    f"{here}, and its pixels are not here, only {found.name!r} in its place: let data_root or "
                    f"REPROLIB_DATA name the folder that holds it"
                )
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
            if record.name != path.stem:
                raise ValueError(f"{path.name} is the record of part {record.name!r}")
        except (ValueError, OSError) as error:
            problems.append(str(error))
        else:
            found[record.name] = record
    return found, problems
