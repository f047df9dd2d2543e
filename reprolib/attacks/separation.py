"""Blind separation of mixed images: FastICA on their pixels or on their derivatives, for many trials at once.

Differences between neighbouring pixels are taken along a row of the gradient, mixing goes across the rows: they
commute. So the differenced rows are the same mixture of differenced images, and these are sparse and nearly
uncorrelated, as FastICA needs its sources; pixels are neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb
from typing import Literal

import torch
from torch import Tensor

from reprolib import settings
from reprolib.attacks.first_layer import FirstLayer
from reprolib.federated.streams import Seed, generator

Samples = Literal["bands", "derivatives", "pixels"]

OPPONENTS = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]], dtype=torch.float64)
"""Brightness, red against green, and both against blue: the axes on which an image's colours hardly correlate."""

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


ORDERS = ((2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))
"""How often a band takes differences across and down: all of the orders two and three."""


def derivatives(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Horizontal and vertical differences of each row read as a map: [.., C H W] to [.., C H (W - 1) + C (H - 1) W].

    Errors: ValueError for a shape that is no map (C, H, W) of at least two pixels a side.
    """
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise ValueError(f"shape={shape} has no neighbouring pixels to take differences of: use samples='pixels'")
    maps = rows.unflatten(-1, shape)
    return torch.cat([maps.diff(dim=-1).flatten(-3), maps.diff(dim=-2).flatten(-3)], -1)


def bands(rows: Tensor, shape: tuple[int, ...], noise: Tensor | None = None) -> Tensor:
    """All differences of the orders two and three of each row read as a map, by colour axis: [.., C H W] to [.., N].

    Three channels are turned to `OPPONENTS` first. Each band, a difference of one colour axis, is brought to the mean
    square 1 over all rows of a trial: a photograph's energy lies in brightness and low frequencies, what tells it from
    another in all of them alike. noise: [T], the mean variance of noise on the rows' entries: a band then counts by
    the share of its energy that is signal, and the first differences, which noise buries last, count too.
    Errors: ValueError for maps of less than four pixels a side.
    """
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ValueError(f"shape={shape} is no map of four pixels a side: use samples='derivatives' or 'pixels'")
    maps = rows.unflatten(-1, shape)
    if shape[0] == 3:
        axes = torch.nn.functional.normalize(OPPONENTS, dim=1).to(maps)
        maps = torch.einsum("kc,...chw->...khw", axes, maps)
    found = []
    for across, down in ORDERS if noise is None else ((1, 0), (0, 1), *ORDERS):
        band = maps.diff(n=across, dim=-1).diff(n=down, dim=-2)
        energy = band.square().mean((-4, -2, -1), keepdim=True).clamp(min=torch.finfo(band.dtype).tiny)
        weight = energy.rsqrt()
        if noise is not None:
            # the filter's squared length: the squares of binomials sum to a binomial
            gain = comb(2 * across, across) * comb(2 * down, down)
            weight = weight * (1 - gain * noise.view(-1, 1, 1, 1, 1) / energy).clamp(min=0).sqrt()
        found.append((band * weight).flatten(-3))
    return torch.cat(found, -1)


_STEEPNESS = {"bands": 3.0, "derivatives": 1.0, "pixels": 1.0}
"""Samples -> how steep FastICA's contrast is for them: the sparser they are, the steeper."""


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


def fast_ica(
    white: Tensor, start: Tensor, iterations: int = 500, tolerance: float = 1e-7, steepness: float = 1.0
) -> Unmixing:
    """Parallel FastICA with the contrast log cosh (a x) / a on whitened samples [T, n, N], from `start` [T, n, n].

    steepness: a; FastICA's authors have 1 to 2, larger values suit sparser sources. A trial ends when no row of its
    matrix turns by more than the tolerance (1 - |cos|) between two iterations; one that did not within `iterations` has
    not converged. Source: Hyvärinen and Oja 2000; scikit-learn's `fastica`, with which a test compares it.
    """
    matrix = _orthogonal(start)
    running = torch.arange(len(white), device=white.device)
    used = torch.full((len(white),), iterations, device=white.device)
    converged = torch.zeros(len(white), dtype=torch.bool, device=white.device)
    samples = white
    for step in range(1, iterations + 1):
        own = matrix[running]
        bent = (steepness * (own @ samples)).tanh()
        slope = steepness * (1 - bent.square().mean(2))
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
    samples: Samples = "bands",
    seed: Seed = 0,
    iterations: int = 500,
    tolerance: float = 1e-7,
) -> Separated:
    """The inputs behind a linear layer's gradient, by FastICA within its row space; nothing of the truth is used.

    sources: n, how many inputs to look for in each trial; None is the size of the batch. samples: what FastICA takes
    for samples: "bands" of differences, the first "derivatives", or the "pixels" themselves. Trial t's start is drawn
    from (seed, t) alone.
    Errors: ValueError for more sources than the layer can give (`FirstLayer.sources`), besides those of `bands` and
    `derivatives`.
    """
    count = layer.sources(sources)
    rows = layer.subspace(count)
    white, whitening = whitened(_taken(layer, rows, settings.held("samples", Samples, samples)))
    start = torch.stack(
        [
            torch.randn(count, count, generator=generator(seed, trial, ICA_STREAM), dtype=torch.float64)
            for trial in range(layer.trials)
        ]
    )
    found = fast_ica(white, start.to(white.device), iterations, tolerance, _STEEPNESS[samples])
    directions = found.matrix @ whitening @ rows
    inputs, mixing, lost, residual = scaled_by_bias(layer, directions)
    return Separated(inputs, mixing, lost, found.converged, found.iterations, residual)


def _taken(layer: FirstLayer, rows: Tensor, samples: Samples) -> Tensor:
    """What FastICA takes for samples of a layer's right singular vectors [T, n, d]."""
    if samples == "bands":
        values = layer.decomposed[1][:, : rows.shape[1]]
        return bands(rows, layer.shape, (layer.noise_std / values).square().mean(1) if layer.noise_std else None)
    return derivatives(rows, layer.shape) if samples == "derivatives" else rows


def scaled_by_bias(layer: FirstLayer, directions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sign and scale of separated inputs from the bias gradient: inputs, mixing, lost, residual (`Separated`).

    directions: [T, n, d], each input up to a factor. With A' = weight directions^+, the factors s solve A' s = bias in
    least squares; an input is its direction over s. Exact where the directions are. One whose factor is below 1e-9 of
    the largest is lost: the bias has nothing of it. Entries of the bias that a defense left open are not used where
    enough others are shown.
    """
    basis, triangle = torch.linalg.qr(directions.mT)
    mixing = torch.linalg.solve_triangular(triangle, (layer.weight @ basis).mT, upper=True).mT
    used = torch.ones_like(layer.bias)
    if layer.bias_slack is not None:
        shown = layer.bias_slack == 0
        used[shown.sum(1) >= directions.shape[1]] = shown[shown.sum(1) >= directions.shape[1]].to(used)
    factors = torch.linalg.lstsq(mixing * used[:, :, None], (layer.bias * used)[:, :, None], driver="gels").solution
    residual = ((mixing @ factors)[:, :, 0] - layer.bias) * used
    factors = factors[:, :, 0]
    lost = ~(factors.abs() > 1e-9 * factors.abs().amax(1, keepdim=True))
    divisors = factors.masked_fill(lost, 1.0)[:, :, None]
    inputs = (directions / divisors).masked_fill(lost[:, :, None], 0.0)
    length = layer.bias.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    return inputs, mixing * divisors.mT, lost, residual.norm(dim=1) / length


def completed(layer: FirstLayer, sources: int | None = None, iterations: int = 200) -> FirstLayer:
    """The layer with what a known defense left open filled in: of what it can have been, a gradient of rank n.

    Alternating projections, each started beyond the last as Nesterov's method does: onto the matrices of rank n,
    `sources` or the size of the batch, and onto what was shared, give or take `slack`. For pruned and for quantised
    entries alike; without slack the layer stays as it is. It ends once a round moves each trial by less than 1e-7 of
    its length. The space of the largest directions is carried from round to round, one step of subspace iteration each.
    """
    if layer.slack is None:
        return layer
    count = min(sources or layer.batch_size, *layer.weight.shape[1:])
    low, high = layer.weight - layer.slack, layer.weight + layer.slack
    weight, ahead, space = layer.weight, layer.weight, layer.decomposed[0][:, :, :count]
    for step in range(iterations):
        space = torch.linalg.qr(ahead @ (ahead.mT @ space)).Q
        moved = (space @ (space.mT @ ahead)).clamp(low, high)
        change = (moved - weight).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
        ahead = moved + step / (step + 3) * (moved - weight)
        weight = moved
        if change.max() < 1e-7:
            break
    return replace(layer, weight=weight)


def _orthogonal(matrix: Tensor) -> Tensor:
    """(M M')^(-1/2) M, the orthogonal matrix nearest to each."""
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    root = values.clamp(min=torch.finfo(values.dtype).tiny).rsqrt()
    return (vectors * root[:, None]) @ vectors.mT @ matrix
