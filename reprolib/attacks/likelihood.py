"""Sharper separation: derivatives as sources whose variance changes from place to place, by maximum likelihood.

FastICA keeps its unmixing orthogonal on whitened samples. With as many sources as hundredth parts of the samples, chance
correlations of different images are as large as what tells them apart, and that constraint costs more than it gives.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sharpen(samples: Tensor, start: Tensor, floor: float, iterations: int, tolerance: float = 1e-2) -> Tensor:
    """An unmixing [n, n] of higher likelihood than `start`, rows of no particular scale.

    samples: [n, c, N], mixed derivatives, of which the c at one place share a variance. Each source is Gaussian with a
    variance of its own at each place, which is estimated by its own samples there and `floor`, in units of its mean
    variance. Each step minimises an upper bound of the negative log-likelihood, by blocks of two sources, and is
    halved until the likelihood rises. tolerance: it ends when a step gains less.
    Source: Pham and Cardoso 2001 for the blocks; the model of the variances is this book's.
    """
    count, channels, places = samples.shape
    flat, eye = samples.flatten(1), torch.eye(count, dtype=samples.dtype, device=samples.device)
    unmixing, length = start.to(samples), 1.0
    sources = unmixing @ flat
    for _ in range(iterations):
        scale = sources.square().mean(1, keepdim=True).rsqrt()
        unmixing, sources = unmixing * scale, sources * scale
        value, weight, energy = _bound(sources.view(count, channels, places), floor)
        slope = (sources.view(count, channels, places) * weight[:, None]).flatten(1) @ sources.T / flat.shape[1]
        slope = slope - torch.diag(slope.diagonal())
        curve = weight @ energy.T / places
        step = _by_blocks(slope, curve)
        length = min(1.0, 2 * length)
        while length > 1e-3:
            turn = eye - length * step
            moved = turn @ sources
            sign, volume = torch.linalg.slogdet(turn)
            gain = value - _bound(moved.view(count, channels, places), floor)[0] + volume
            if sign > 0 and gain > 0:
                break
            length /= 2
        else:
            break
        unmixing, sources = turn @ unmixing, moved
        if gain < tolerance:
            break
    return unmixing


def _bound(sources: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood without its determinant, weights and energies [n, N] of sources [n, c, N]."""
    energy = sources.square().mean(1)
    variance = energy + floor
    return 0.5 * variance.log().mean(1).sum(), 1 / variance, energy


def _by_blocks(slope: Tensor, curve: Tensor, least: float = 0.02) -> Tensor:
    """The step of each pair of sources by its own two-by-two block, made positive where it is not."""
    own, other = curve, curve.T
    smallest = (own + other) / 2 - ((own - other).square() / 4 + 1).sqrt()
    lift = (least - smallest).clamp(min=0)
    own, other = own + lift, other + lift
    return (other * slope - slope.T) / (own * other - 1)
