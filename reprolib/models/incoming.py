"""What people have of a model's numbers, weights or gradients in any form, read into tensors under its own names.

It reads and matches; it never runs a model, and no file that it opens can run code.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn

Numbers = Mapping[str, object] | Iterable[object] | nn.Module | str | os.PathLike
"""Arrays or tensors by name or in the order of the module's, a module, or a .pt, .npz or .safetensors file of them."""

INSIDE = ("state_dict", "model_state_dict", "model")
"""Entries under which training scripts keep a model's weights in a .pt file."""


def named(model: nn.Module, numbers: Numbers, what: str) -> tuple[dict[str, Tensor | None], list[str]]:  # type: ignore[valid-type]  # nn.Module is unknown here
    """Anybody's numbers under this model's names, with its dtype and device, and what had to be assumed, in words.

    numbers: see `Numbers`. A mapping, or pairs, goes by the model's names or, for one of `adapt`, by those of the
    reader's module, whatever stands before all of them; a sequence by the order of the module's `state_dict()`, of its
    `parameters()` or of those that are trained, and one long vector is cut by it. An order that does not fit is found
    by the shapes where these are all different. None stands for a gradient that was never computed. what: what these
    numbers are, for the messages.
    Errors: ValueError for another type, names, count or shape, numbers that are not real fractions, and a damaged file,
    with everything of a kind in one message; FileNotFoundError for a file that is not there.
    """
    assumed: list[str] = []
    if isinstance(numbers, str | os.PathLike):
        numbers = _opened(Path(numbers), what)
    numbers = _arranged(numbers, what)
    if not isinstance(numbers, Tensor):
        numbers = _read(numbers, what)
    theirs, state = names(model), model.state_dict()
    if isinstance(numbers, dict):
        found = _by_name(numbers, theirs, model, what, assumed)
    else:
        found = _by_order(numbers, theirs, model, what, assumed)
    types: Counter[tuple[str, str]]
    own, problems, types = called(model), [], Counter()
    for name, value in found.items():
        if value is None:
            continue
        like = state[name]
        if value.shape != like.shape:
            problems.append(
                f"{own[name]!r} has shape {tuple(value.shape)}, the model's {tuple(like.shape)}"
                + _turned(tuple(value.shape), tuple(like.shape))
            )
        elif like.is_floating_point() and not value.is_floating_point():
            problems.append(f"{own[name]!r} is of dtype {value.dtype}")
        elif value.dtype != like.dtype:
            types[str(value.dtype).removeprefix("torch."), str(like.dtype).removeprefix("torch.")] += 1
    if problems:
        where = " Expected fractions: turn a quantised update back first." if "dtype" in " ".join(problems) else ""
        raise ValueError(f"{what}: {few(problems, str)}.{where}")
    assumed += [f"{count} arrays of {of} were read as {to}" for (of, to), count in types.items()]
    return {name: None if value is None else value.to(state[name]) for name, value in found.items()}, assumed


def names(model: nn.Module) -> dict[str, str]:
    """The name in the reader's own module -> the name here, in the order of that module's `state_dict()`."""
    return getattr(model, "names", None) or {name: name for name in model.state_dict()}


def called(model: nn.Module) -> dict[str, str]:
    """The name here -> what the reader's own module calls it, for everything in the model's `state_dict()`."""
    return {name: name for name in model.state_dict()} | {here: theirs for theirs, here in names(model).items()}


def few(names: Sequence[str], shown: Callable[[str], str] = repr) -> str:
    """The first of them in words."""
    said = ", ".join(map(shown, names[:4]))
    return said if len(names) <= 4 else f"{said} and {len(names) - 4} more"


def _opened(path: Path, what: str) -> object:
    """What is in a file: arrays by name, or in their order where they were saved without names."""
    readers = dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _pickle)
    readers |= {".npz": _archive, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise ValueError(
            f"{what}: {path.name!r} has another ending than {', '.join(readers)}: torch.save(module.state_dict(), "
            "'weights.pt') and np.savez('weights.npz', *arrays) write what can be read"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{what}: there is no file {path}")
    try:
        return readers[path.suffix](path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{what}: {path.name!r} cannot be read as {path.suffix}: it holds more than tensors, such as a whole "
            "module or arrays, and opening that could run code: use torch.save(module.state_dict(), path)"
        ) from error
    except Exception as error:  # each library has exceptions of its own for a damaged file
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{what}: {path.name!r} cannot be read as {path.suffix}: {first[:200]}") from error


def _pickle(path: Path) -> object:
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        return found
    if {"state", "param_groups"} <= found.keys():
        raise ValueError("it is the state of an optimiser; the model's is module.state_dict()")
    entries = {key: value for key, value in found.items() if isinstance(value, dict) and value}
    inside = [entries[key] for key in INSIDE if key in entries]
    inside += [value for value in entries.values() if all(isinstance(each, Tensor) for each in value.values())]
    return inside[0] if inside else found


def _archive(path: Path) -> object:
    with np.load(path, allow_pickle=False) as archive:
        try:
            found = {name: archive[name] for name in archive.files}
        except ValueError as error:
            raise ValueError(f"{error}: use np.savez(path, *arrays), an array a parameter") from error
    unnamed = [f"arr_{i}" for i in range(len(found))]  # np.savez(path, *arrays), as Flower's examples do
    return [found[name] for name in unnamed] if set(found) == set(unnamed) else found


def _safetensors(path: Path) -> object:
    return read_safetensors(path.read_bytes())


def _arranged(numbers: object, what: str) -> dict[str, object] | list[object] | Tensor:
    """By name, in an order, or as one vector."""
    if isinstance(numbers, nn.Module):
        numbers = numbers.state_dict()
    array = isinstance(numbers, np.ndarray | Tensor)
    if array and numbers.ndim == 1 and numbers.dtype != object:  # type: ignore[attr-defined]  # an array
        return _array(numbers)
    if isinstance(numbers, Mapping):
        numbers = dict(numbers)
    elif (
        isinstance(numbers, Iterable)
        and not isinstance(numbers, str | bytes | set | frozenset)
        and not (array and numbers.ndim != 1)  # type: ignore[attr-defined]  # an array
    ):
        numbers = list(numbers)
        if numbers and all(isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str) for each in numbers):
            numbers = dict(numbers)
    else:
        raise ValueError(
            f"{what} must be a mapping from names to arrays, a list of arrays or the path of a .pt, .npz or "
            f".safetensors file, got {type(numbers).__name__}"
        )
    if isinstance(numbers, dict) and (other := [name for name in numbers if not isinstance(name, str)]):
        raise ValueError(f"{what}: the names must be text, got {other[:3]}")
    return numbers


def _read(numbers: dict[str, object] | list[object], what: str) -> dict[str, Tensor | None] | list[Tensor | None]:
    """The same as tensors of their own dtype, on their own device."""
    problems, read = [], {}
    for key, value in numbers.items() if isinstance(numbers, dict) else enumerate(numbers):
        try:
            read[key] = None if value is None else _array(value)
        except (TypeError, ValueError, RuntimeError):
            kind = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
            problems.append(f"{repr(key) if isinstance(key, str) else f'array {key}'} is no array of numbers: {kind}")
    if problems:
        hint = "; flwr.common.parameters_to_ndarrays turns Flower's bytes into arrays" if "bytes" in problems[0] else ""
        raise ValueError(f"{what}: {few(problems, str)}{hint}")
    return read if isinstance(numbers, dict) else list(read.values())  # type: ignore[return-value]  # names are text: checked above


def _array(value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach() if value.layout == torch.strided else value.detach().to_dense()
    array = np.asarray(value)
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))  # any byte order and strides


def _by_name(
    numbers: dict[str, Tensor | None], theirs: Mapping[str, str], model: nn.Module, what: str, assumed: list[str]
) -> dict[str, Tensor | None]:
    here = {**{name: name for name in model.state_dict()}, **theirs}
    off, on = _ways(numbers, here, theirs)
    if on or off:
        assumed.append(f"{what}: {off or on!r} before the names was {'left out' if off else 'put there'}")
    turned = {name: on + name.removeprefix(off) for name in numbers}
    found = {here[new]: numbers[name] for name, new in turned.items() if new in here}
    unknown = [name for name, new in turned.items() if new not in here]
    if unknown:
        trained = dict(model.named_parameters())
        lacking = [name for name, own in theirs.items() if own in trained and own not in found]
        raise ValueError(
            f"{what}: the model has no {few(unknown)}"
            + (f", and there is nothing for its {few(lacking)}" if lacking else "")
            + ": leave out what is not the model's; else these are numbers of another"
        )
    if len(found) < len(numbers):
        raise ValueError(f"{what}: several names stand for one tensor of the model: give each once")
    return found


def _ways(numbers: Iterable[str], here: Mapping[str, str], theirs: Iterable[str]) -> tuple[str, str]:
    """What wrappers, such as data-parallel, compiled and Lightning modules, put before names: (to leave out, to add).

    The pair under which most names are known here; of equally good ones that which changes least.
    """
    ahead = {name[: i + 1] for name in numbers for i, sign in enumerate(name) if sign == "."}
    around = os.path.commonprefix(list(theirs)).rpartition(".")[0]
    ways = [("", ""), *((off, "") for off in sorted(ahead, key=len)), ("", f"{around}." if around else "")]
    return max(ways, key=lambda way: sum(way[1] + name.removeprefix(way[0]) in here for name in numbers))


def _by_order(
    numbers: list[Tensor | None] | Tensor,
    theirs: Mapping[str, str],
    model: nn.Module,
    what: str,
    assumed: list[str],
) -> dict[str, Tensor | None]:
    parameters, state = dict(model.named_parameters()), model.state_dict()
    orders = {
        "state_dict()": list(theirs.values()),
        "parameters()": [name for name in theirs.values() if name in parameters],
        "trained parameters": [n for n in theirs.values() if n in parameters and parameters[n].requires_grad],
    }
    if isinstance(numbers, Tensor):
        return _cut(numbers, orders, state, what, assumed)  # type: ignore[return-value]  # a dictionary of fewer kinds
    shapes = [None if n is None else tuple(n.shape) for n in numbers]
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
        there = tuple(state[keys[first]].shape)
        raise ValueError(
            f"{what}: array {first} has shape {shapes[first]}, the module's {order} has {called(model)[keys[first]]!r} "
            f"with {there} there{_turned(shapes[first], there)}, and the shapes do not say where each belongs: give "
            "the arrays by name"
        )
    assumed.append(f"{what}: in another order than the module's; each was placed by its shape, which is the only one")
    return {wanted[shape]: value for shape, value in zip(shapes, numbers, strict=True)}  # type: ignore[index]


def _cut(
    vector: Tensor, orders: Mapping[str, Sequence[str]], state: Mapping[str, Tensor], what: str, assumed: list[str]
) -> dict[str, Tensor]:
    """One long vector, as `torch.nn.utils.parameters_to_vector` makes it, in the parts of the order that it fits."""
    lengths = {order: [state[name].numel() for name in keys] for order, keys in orders.items()}
    for order, sizes in lengths.items():
        if sum(sizes) == len(vector):
            assumed.append(f"{what}: one vector, cut in the order of the module's {order}")
            parts = zip(orders[order], vector.split(sizes), strict=True)
            return {name: part.view(state[name].shape) for name, part in parts}
    counts = ", ".join(f"{sum(sizes)} ({order})" for order, sizes in lengths.items())
    raise ValueError(f"{what}: a vector of {len(vector)} numbers, but the module has {counts}: it is of another model")


def _turned(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """How an array of another library's layout is turned into torch's; empty where it is none."""
    if len(shape) == 4 and tuple(shape[i] for i in (3, 2, 0, 1)) == wanted:
        return " (as Keras holds it: give array.transpose(3, 2, 0, 1))"
    if len(shape) == 2 and shape[::-1] == wanted:
        return " (transposed, as Keras holds it: give array.T)"
    return " (one axis too many: give array[0])" if shape == (1, *wanted) else ""
