"""A part's result as JSON and deflated arrays, and back: tables, tensors, pictures, JSON values.

A value's dictionaries keep their order, tables their columns, types and order, but no index.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reprolib.book import results


def deflated(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def inflated(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays that `deflated` packed. Raises ValueError where bytes and shape do not fit."""
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


def packed(value: Any, name: str, arrays: dict[str, Tensor], pictures: int | None) -> Any:
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
        return {"$items": [[key, packed(item, f"{name}/{key}", arrays, pictures)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [packed(item, f"{name}/{i}", arrays, pictures) for i, item in enumerate(value)]
    return results.encoded(value)


def _kept(tensor: Tensor, name: str, arrays: dict[str, Tensor]) -> str:
    """Put a tensor into `arrays` under its name, or one like it where that is taken; returns the name."""
    while name in arrays:
        name += "'"
    arrays[name] = tensor
    return name


def unpacked(value: Any, arrays: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [unpacked(item, arrays) for item in value]
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
    return {key: unpacked(item, arrays) for key, item in value["$items"]}


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
            return told | {"values": [packed(entry, name, arrays, None) for entry in entries]}
        first = dict(zip(reversed(marks), reversed(entries), strict=True))
        which = torch.tensor([place[mark] for mark in marks], dtype=torch.uint8)
        return told | {"of": results.encoded([first[mark] for mark in place]), "in": _kept(which, name, arrays)}
    if kind != str(array.dtype) or array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"a record cannot hold column {name}, whose values are {kind}: give it numbers, truths or text")
    bits = array.view(f"i{array.dtype.itemsize}") if array.dtype.kind == "f" else array  # 0.0 and -0.0 are equal
    different, places = np.unique(bits, return_inverse=True)
    if len(different) <= 255 and len(different) < len(array) / 2:
        entries = results.encoded(different.view(array.dtype).tolist())
        index = torch.from_numpy(places.reshape(-1).astype(np.uint8))
        return {"dtype": kind, "of": entries, "in": _kept(index, name, arrays)}
    narrow = array
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):
            short = array.astype(np.float32)
        narrow = short if np.array_equal(short.astype(np.float64), array, equal_nan=True) else array
    return {"dtype": kind, "in": _kept(torch.from_numpy(np.array(narrow)), name, arrays)}


def _values(how: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> pd.Series:
    if "values" in how:
        return pd.Series([unpacked(item, arrays) for item in how["values"]], dtype=how["dtype"])
    array = arrays[how["in"]].numpy()
    if "of" not in how:
        return pd.Series(array.astype(how["dtype"]))
    entries = pd.Series(how["of"], dtype=how["dtype"])
    return entries.iloc[array.astype(np.int64)].reset_index(drop=True)
