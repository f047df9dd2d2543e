"""Cases whose numbers `test_fixed_numbers` keeps: how they are registered, made small, and what they share."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reprolib import models
from reprolib.data import ImageSet
from reprolib.federated import client

Small = dict[str, "Small"] | list["Small"] | str | int | float | None
"""A value's dictionaries and lists, in them numbers and texts; "SHAPE: NORM PROJECTION" stands for a tensor."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What computes a value, and how near the numbers must come: rtol is larger where the library takes float32."""

    compute: Callable[[], Any]
    rtol: float

    def numbers(self) -> Small:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return small(self.compute())


CASES: dict[str, Case] = {}

SINGLE = 1e-3
"""rtol of what the library computes in float32."""

NORMAL = 1e-4
"""rtol of searches that begin at normal numbers, which it draws in float32: processors round these differently."""


def case(name: str, rtol: float = 1e-6) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function without arguments under a name of its own."""

    def register(compute: Callable[[], Any]) -> Callable[[], Any]:
        if name in CASES:
            raise ValueError(f"two cases are called {name!r}")
        CASES[name] = Case(compute, rtol)
        return compute

    return register


def small(value: Any) -> Small:
    """A value as a few numbers by which no change goes unnoticed; seconds are left out."""
    if isinstance(value, nn.Module):
        return small(dict(value.state_dict()))
    if isinstance(value, ImageSet):
        return small([value.images, value.labels, value.classes, value.name, value.source])
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return _of_a_tensor(torch.as_tensor(value).detach())
    if isinstance(value, pd.DataFrame):
        columns = {str(name): value[name].to_numpy() for name in value if "second" not in str(name)}
        return small({n: c if c.dtype.kind in "biuf" else ", ".join(map(str, c)) for n, c in columns.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name != "seconds"]
        found = {name: small(getattr(value, name)) for name in names}
        return {name: own for name, own in found.items() if own is not None}
    if isinstance(value, Mapping):
        return {str(name): small(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [small(part) for part in value]
    value = value.item() if isinstance(value, Tensor | np.generic | np.ndarray) else value
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, bool | int | str | None) else type(value).__name__


TENSOR = re.compile(r"([\dx]+): (\S+) (\S+)( and \d+ not finite)?")


def _of_a_tensor(value: Tensor) -> str:
    """Shape, norm and projection of the finite entries, and how many are not finite."""
    flat = value.flatten().double()
    odd = int((~flat.isfinite()).sum())
    flat = flat.nan_to_num(0.0, 0.0, 0.0)
    wave = torch.cos(0.7 * torch.arange(len(flat), dtype=torch.float64) + 0.3)
    shape = "x".join(map(str, value.shape))
    return f"{shape}: {flat.norm():.9g} {flat @ wave:.9g}" + f" and {odd} not finite" * bool(odd)


def differences(found: Small, kept: Small, rtol: float, atol: float = 1e-9, where: str = "") -> Iterator[str]:
    """What differs, a line each."""
    if isinstance(found, dict) and isinstance(kept, dict) or isinstance(found, list) and isinstance(kept, list):
        ours, theirs = (own if isinstance(own, dict) else dict(enumerate(own)) for own in (found, kept))
        for name in {**theirs, **ours}:
            own = ours.get(name, "nothing"), theirs.get(name, "nothing")
            yield from differences(*own, rtol, atol, f"{where}/{name}")
    elif not _alike(found, kept, rtol, atol):
        yield f"{where or 'the value'}: {str(found)[:200]} here, {str(kept)[:200]} kept"


def _alike(found: Any, kept: Any, rtol: float, atol: float) -> bool:
    if isinstance(found, str) and isinstance(kept, str):
        tensors = TENSOR.fullmatch(found), TENSOR.fullmatch(kept)
        if None in tensors:
            return found == kept
        (shape, *ours, odd), (other, *theirs, others) = (tensor.groups() for tensor in tensors)
        near = rtol * abs(float(theirs[0])) + atol  # of both: a projection may be near zero
        same = all(abs(float(a) - float(b)) <= near for a, b in zip(ours, theirs, strict=True))
        return (shape, odd) == (other, others) and same
    if isinstance(found, float) and isinstance(kept, float | int):
        return math.isclose(found, kept, rel_tol=rtol, abs_tol=atol)
    return type(found) is type(kept) and found == kept


# --- what cases share


def drawn(*shape: int, seed: int = 1) -> Tensor:
    """Uniform float64 numbers in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape: int, below: int = 4, seed: int = 2) -> Tensor:
    """Labels."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


SHAPE = (3, 6, 5)
MEANS = ((0.4, 0.5, 0.6), (0.3, 0.25, 0.2))


def victim(name: str = "mlp", shape: tuple[int, int, int] = SHAPE, count: int = 4, seed: int = 0, **options: Any):
    """A victim in float64; an MLP is narrow and normalises its pixels unless told otherwise."""
    options = ({"width": 6, "normalize": MEANS} if name == "mlp" else {}) | options
    return exact(models.build(name, count, shape, seed, **options), seed)


def exact(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64, its weights as large as they were, but such that no processor rounds them differently."""
    for number, parameter in enumerate(network.double().parameters()):
        bound = float(f"{parameter.abs().max():.1g}")
        if parameter.min() < parameter.max():
            parameter.data = (2 * drawn(*parameter.shape, seed=1000 * seed + number) - 1) * bound
    return network


@contextmanager
def settled() -> Iterator[None]:
    """Singular and eigenvectors with their largest entry above zero: their signs are a processor's choice."""
    svd, eigh = torch.linalg.svd, torch.linalg.eigh

    def signs(columns: Tensor) -> Tensor:
        return columns.take_along_dim(columns.abs().argmax(-2, keepdim=True), -2).sign()

    def settled_svd(matrix: Tensor, full_matrices: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = svd(matrix, full_matrices=full_matrices)
        sign = signs(left)[..., : values.shape[-1]] if left.shape[-1] == right.shape[-2] else 1
        return left * sign, values, right * (sign.mT if isinstance(sign, Tensor) else 1)

    def settled_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(matrix)
        return values, vectors * signs(vectors)

    with mock.patch.object(torch.linalg, "svd", settled_svd), mock.patch.object(torch.linalg, "eigh", settled_eigh):
        yield


def batch(trials: int = 2, size: int = 2, shape: tuple[int, int, int] = SHAPE, below: int = 4) -> tuple[Tensor, Tensor]:
    """Images [T, B, C, H, W] and labels [T, B], all different; in a trial all labels differ where classes allow."""
    labels = (torch.arange(size)[None] + torch.arange(trials)[:, None] * 3 + 1) % below
    return drawn(trials, size, *shape), labels


def known(**others: Any) -> client.ThreatModel:
    return client.ThreatModel(labels="known", **others)


def images_of(count: int, shape: tuple[int, int, int] = SHAPE, below: int = 4, seed: int = 5) -> ImageSet:
    """Somebody's own images, whose labels go around."""
    pixels = drawn(count, *shape, seed=seed).float()
    labels, names = torch.arange(count) % below, tuple(f"class {k}" for k in range(below))
    return ImageSet("drawn", "train", pixels, labels, names, "drawn", "drawn")


def refused(call: Callable[[], Any]) -> str:
    """The beginning of what is said where a call is refused; "" where it is not."""
    try:
        call()
    except ValueError as error:
        return str(error)[:120]
    return ""
