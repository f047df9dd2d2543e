"""What people have of a model's numbers, weights or gradients in any form, read into tensors under its own names.

It reads and matches; it never runs a model, and no file that it opens can run code.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn

Numbers = Mapping[str, object] | Sequence[object] | str | os.PathLike
"""Arrays or tensors by name or in the order of the module's, or a .pt, .npz or .safetensors file of them."""

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What data-parallel, compiled and Lightning modules put before a parameter's name."""

INSIDE = ("state_dict", "model_state_dict", "model")
"""Entries under which training scripts keep a model's weights in a .pt file."""


def named(model: nn.Module, numbers: Numbers, what: str) -> tuple[dict[str, Tensor | None], list[str]]:
    """Anybody's numbers under this model's names, with its dtype and device, and what had to be assumed, in words.

    numbers: see `Numbers`. A mapping goes by the model's names or, for one of `adapt`, by those of the reader's module;
    a sequence by the order of the module's `state_dict()`, of its `parameters()` or of those that are trained. An order
    that does not fit is found by the shapes where these are all different. None stands for a gradient that was never
    computed. what: what these numbers are, for the messages.
    Errors: ValueError for another type, names, count or shape, numbers that are not real fractions, and a damaged file;
    FileNotFoundError for a file that is not there.
    """
    assumed: list[str] = []
    if isinstance(numbers, str | os.PathLike):
        numbers = _opened(Path(numbers), what)
    theirs = names(model)
    state = model.state_dict()
    if isinstance(numbers, Mapping):
        if not all(isinstance(name, str) for name in numbers):
            raise ValueError(
                f"{what}: the names must be text, got {[n for n in numbers if not isinstance(n, str)][:3]}"
            )
        found = _by_name(dict(numbers), theirs, state, what, assumed)
    elif isinstance(numbers, Sequence) and not isinstance(numbers, bytes):
        found = _by_order(list(numbers), theirs, model, what, assumed)
    else:
        raise ValueError(
            f"{what} must be a mapping from names to arrays, a list of arrays or the path of a .pt, .npz or "
            f".safetensors file, got {type(numbers).__name__}"
        )
    read, types = {}, Counter()
    for name, value in found.items():
        read[name] = None if value is None else _tensor(value, state[name], f"{what}, {name!r}", types)
    assumed += [f"{count} arrays of {of} were read as {to}" for (of, to), count in types.items()]
    return read, assumed


def names(model: nn.Module) -> dict[str, str]:
    """The name in the reader's own module -> the name here, in the order of that module's `state_dict()`."""
    return getattr(model, "names", None) or {name: name for name in model.state_dict()}


def _opened(path: Path, what: str) -> object:
    """What is in a file: arrays by name, or in their order where they were saved without names."""
    readers = {".pt": _pickle, ".pth": _pickle, ".npz": _archive, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise ValueError(f"{what}: {path.name!r} has another ending than {', '.join(readers)}")
    if not path.is_file():
        raise FileNotFoundError(f"{what}: there is no file {path}")
    try:
        return readers[path.suffix](path)
    except Exception as error:  # each library has exceptions of its own for a damaged file
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{what}: {path.name!r} cannot be read as {path.suffix}: {first[:200]}") from error


def _pickle(path: Path) -> object:
    found = torch.load(path, map_location="cpu", weights_only=True)
    inside = [key for key in INSIDE if isinstance(found, dict) and isinstance(found.get(key), dict)]
    return found[inside[0]] if inside else found


def _archive(path: Path) -> object:
    with np.load(path, allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    unnamed = [f"arr_{i}" for i in range(len(found))]  # np.savez(path, *arrays), as Flower's examples do
    return [found[name] for name in unnamed] if set(found) == set(unnamed) else found


def _safetensors(path: Path) -> object:
    return read_safetensors(path.read_bytes())


def _by_name(
    numbers: dict[str, object], theirs: Mapping[str, str], state: Mapping[str, Tensor], what: str, assumed: list[str]
) -> dict[str, object]:
    for wrapper in WRAPPERS:
        if numbers and all(name.startswith(wrapper) for name in numbers) and not numbers.keys() & theirs.keys():
            numbers = {name.removeprefix(wrapper): value for name, value in numbers.items()}
            assumed.append(f"{what}: {wrapper!r} before every name was left out")
    here = {**{name: name for name in state}, **theirs}
    if unknown := [name for name in numbers if name not in here]:
        raise ValueError(
            f"{what}: the model has no {_few(unknown)}; it has {_few(list(theirs))}: these are numbers of another model"
        )
    return {here[name]: value for name, value in numbers.items()}


def _by_order(
    numbers: list[object], theirs: Mapping[str, str], model: nn.Module, what: str, assumed: list[str]
) -> dict[str, object]:
    parameters = dict(model.named_parameters())
    orders = {
        "state_dict()": list(theirs.values()),
        "parameters()": [name for name in theirs.values() if name in parameters],
        "trained parameters": [n for n in theirs.values() if n in parameters and parameters[n].requires_grad],
    }
    state, shapes = model.state_dict(), [None if n is None else tuple(np.shape(n)) for n in numbers]
    counted = {order: keys for order, keys in orders.items() if len(keys) == len(numbers)}
    if not counted:
        counts = ", ".join(f"{len(keys)} ({order})" for order, keys in orders.items())
        raise ValueError(f"{what}: {len(numbers)} arrays, but the module has {counts}: these are of another model")
    for order, keys in counted.items():
        if all(s is None or s == tuple(state[key].shape) for s, key in zip(shapes, keys, strict=True)):
            assumed.append(f"{what}: taken in the order of the module's {order}")
            return dict(zip(keys, numbers, strict=True))
    order, keys = next(iter(counted.items()))
    wanted = {tuple(state[key].shape): key for key in keys}
    if len(wanted) < len(keys) or sorted(wanted, key=repr) != sorted(shapes, key=repr):
        first = next(i for i, s in enumerate(shapes) if s is not None and s != tuple(state[keys[i]].shape))
        raise ValueError(
            f"{what}: array {first} has shape {shapes[first]}, the module's {order} has {keys[first]!r} with "
            f"{tuple(state[keys[first]].shape)} there, and the shapes do not say where each belongs: give the arrays "
            "by name"
        )
    assumed.append(f"{what}: in another order than the module's; each was placed by its shape, which is the only one")
    return {wanted[shape]: value for shape, value in zip(shapes, numbers, strict=True)}


def _tensor(value: object, like: Tensor, what: str, types: Counter) -> Tensor:
    try:
        found = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is no array of numbers: {type(value).__name__}") from error
    if found.shape != like.shape:
        raise ValueError(f"{what} has shape {tuple(found.shape)}, the model's {tuple(like.shape)}")
    if like.is_floating_point() and not found.is_floating_point():
        raise ValueError(f"{what} is of dtype {found.dtype}: expected fractions; turn a quantised update back first")
    if found.dtype != like.dtype:
        types[str(found.dtype).removeprefix("torch."), str(like.dtype).removeprefix("torch.")] += 1
    return found.to(like)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:4]))
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
