"""What a part was given, as JSON: equal for equal content, by public names and field values.

Records keep it, and answer by it. This file measures nothing and shows nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reprolib import models
from reprolib.book import own_code, results


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
            own = {"source": own_code.source_of_file(value)} if own_code.origin(value.__name__) == "own" else {}
            return {"$name": value.__name__.rpartition(".")[2]} | own
        if isinstance(value, types.BuiltinFunctionType):
            return {"$name": value.__name__}
        if isinstance(value, types.FunctionType):
            return self._function(own_code.unwrapped(value), where)
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {"$is": type(value).__name__} | self._own(type(value), where) | self.of(fields, where)
        raise ValueError(
            f"{where} is a {type(value).__name__}, whose content cannot be identified: pass numbers, text, tensors, "
            f"tables, image sets, models, attacks or defenses"
        )

    def _function(self, function: types.FunctionType, where: str) -> dict[str, Any]:
        """A notebook's function by its source and the values that it reads; an installed one by its name."""
        name, origin = {"$function": function.__qualname__}, own_code.origin(function.__module__)
        if origin == "package" or id(function) in self._seen:
            return name
        self._seen.add(id(function))
        read = own_code.closure_of(function)
        if origin == "own":
            name["source"] = own_code.source_of_function(function, where)
            read |= own_code.defaults_of(function) | {key: value for key, _, value in own_code.globals_of(function)}
        values = {key: self.of(read[key], f"{where} reads {key}, which") for key in sorted(read)}
        return name | ({"reads": values} if values or origin == "own" else {})

    def _own(self, kind: type, where: str) -> dict[str, Any]:
        """What a class of the notebook does, which its name does not tell; nothing for an installed one."""
        if own_code.origin(kind.__module__) != "own" or id(kind) in self._seen:
            return {}
        self._seen.add(id(kind))
        return {"$class": {name: self.of(item, f"{where}.{name}") for name, item in own_code.members(kind).items()}}


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
