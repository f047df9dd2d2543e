"""Blind separation of mixed images: FastICA on their pixels or on their derivatives, for many trials at once.

Differences between neighbouring pixels are taken along the rows of a mixture, which mixes images: both commute. So the
differenced rows are the same mixture of differenced images, and these are sparse and nearly uncorrelated, as FastICA
needs its sources; pixels are neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reprolib.attacks.first_layer import FirstLayer
from reprolib.federated.streams import Seed, generator

Samples = Literal["derivatives", "pixels"]

ICA_STREAM = 0x1CA  # of the rotations that FastICA starts from


@dataclass(frozen=True, eq=False)
class Separated:
    """What was separated of a mixture weight = A X, bias = A 1, n inputs a trial.

    inputs: [T, n, d], the rows of X in an order of their own, with the sign and scale that the bias gives. mixing:
    [T, m, n], A. lost: [T, n], inputs whose scale the bias does not tell (zeros). converged, iterations: [T], of
    FastICA. residual: [T], |bias - A 1| / |bias|: rounding where the inputs span the gradient's rows.
    """

    inputs: Tensor
    mixing: Tensor
    lost: Tensor
    converged: Tensor
    iterations: Tensor
    residual: Tensor


@dataclass(frozen=True, eq=False)
class Unmixing:
    """What FastICA found: matrix [T, n, n], orthogonal; converged and iterations [T]."""

    matrix: Tensor
    converged: Tensor
    iterations: Tensor


def derivatives(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Horizontal and vertical differences of each row read as a map: [.., C H W] to [.., C H (W - 1) + C (H - 1) W].

    Errors: ValueError for a shape that is no map (C, H, W) of at least two pixels a side.
    """
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise ValueError(f"shape={shape} has no neighbouring pixels to take differences of: use samples='pixels'")
    maps = rows.unflatten(-1, shape)
    return torch.cat([maps.diff(dim=-1).flatten(-3), maps.diff(dim=-2).flatten(-3)], -1)


def whitened(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [T, n, N] less their means, made uncorrelated and of unit variance, and the whitening Q [T, n, n].

    Errors: ValueError for rows that depend on each other: fewer sources than rows vary in these samples.
    """
    centred = samples - samples.mean(2, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.mT / centred.shape[2])
    flat = values[:, 0] <= 1e-14 * values[:, -1]
    if flat.any():
        raise ValueError(
            f"the samples of trial {int(flat.nonzero()[0])} vary in fewer than {samples.shape[1]} directions: fewer "
            "sources can be separated"
        )
    whitening = vectors.mT / values.sqrt()[:, :, None]
    return whitening @ centred, whitening


def fast_ica(white: Tensor, start: Tensor, iterations: int = 2000, tolerance: float = 1e-7) -> Unmixing:
    """Parallel FastICA with the contrast log cosh on whitened samples [T, n, N], from the matrices `start` [T, n, n].

    A trial ends when no row of its matrix turns by more than the tolerance (1 - |cos|) between two iterations; one that
    did not within `iterations` has not converged. Source: Hyvärinen and Oja 2000; scikit-learn's `fastica`, with which
    a test compares it.
    """
    matrix = _orthogonal(start)
    running = torch.arange(len(white), device=white.device)
    used = torch.full((len(white),), iterations, device=white.device)
    converged = torch.zeros(len(white), dtype=torch.bool, device=white.device)
    samples = white
    for step in range(1, iterations + 1):
        own = matrix[running]
        bent = (own @ samples).tanh()
        slope = 1 - bent.square().mean(2)
        moved = _orthogonal(bent @ samples.mT / samples.shape[2] - slope[:, :, None] * own)
        turned = (1 - (moved * own).sum(2).abs()).abs().amax(1)
        matrix[running] = moved
        ended = turned < tolerance
        if ended.any():
            used[running[ended]], converged[running[ended]] = step, True
            running = running[~ended]
            if not len(running):
                break
            samples = white[running]
    return Unmixing(matrix, converged, used)


def separate(
    layer: FirstLayer,
    sources: int | None = None,
    samples: Samples = "derivatives",
    seed: Seed = 0,
    iterations: int = 2000,
    tolerance: float = 1e-7,
) -> Separated:
    """The inputs behind a linear layer's gradient, by FastICA within its row space; nothing of the truth is used.

    sources: n, how many inputs to look for in each trial; None is the size of the batch. samples: what FastICA takes
    for samples, differences of neighbouring pixels or the pixels. Trial t's start is drawn from (seed, t) alone.
    Errors: ValueError for more sources than the layer can give (`FirstLayer.sources`), besides those of `derivatives`.
    """
    count = layer.sources(sources)
    rows = layer.subspace(count)
    taken = derivatives(rows, layer.shape) if samples == "derivatives" else rows
    white, whitening = whitened(taken)
    start = torch.stack(
        [
            torch.randn(count, count, generator=generator(seed, trial, ICA_STREAM), dtype=torch.float64)
            for trial in range(layer.trials)
        ]
    )
    found = fast_ica(white, start.to(white.device), iterations, tolerance)
    directions = found.matrix @ whitening @ rows
    inputs, mixing, lost, residual = scaled_by_bias(layer, directions)
    return Separated(inputs, mixing, lost, found.converged, found.iterations, residual)


def scaled_by_bias(layer: FirstLayer, directions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sign and scale of separated inputs from the bias gradient: inputs, mixing, lost, residual (`Separated`).

    directions: [T, n, d], each input up to a factor. With A' = weight directions^+, the factors s solve A' s = bias in
    least squares; an input is its direction over s. Exact where the directions are. One whose factor is below 1e-9 of
    the largest is lost: the bias has nothing of it.
    """
    basis, triangle = torch.linalg.qr(directions.mT)
    mixing = torch.linalg.solve_triangular(triangle, (layer.weight @ basis).mT, upper=True).mT
    factors = torch.linalg.lstsq(mixing, layer.bias[:, :, None], driver="gels").solution
    residual = (mixing @ factors)[:, :, 0] - layer.bias
    factors = factors[:, :, 0]
    lost = ~(factors.abs() > 1e-9 * factors.abs().amax(1, keepdim=True))
    divisors = factors.masked_fill(lost, 1.0)[:, :, None]
    inputs = (directions / divisors).masked_fill(lost[:, :, None], 0.0)
    length = layer.bias.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    return inputs, mixing * divisors.mT, lost, residual.norm(dim=1) / length


def _orthogonal(matrix: Tensor) -> Tensor:
    """(M M')^(-1/2) M, the orthogonal matrix nearest to each."""
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    root = values.clamp(min=torch.finfo(values.dtype).tiny).rsqrt()
    return (vectors * root[:, None]) @ vectors.mT @ matrix
