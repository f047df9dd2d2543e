"""What a row of one image and noise most likely holds, for a server that has images of its own."""

from __future__ import annotations

import math

import torch
from sklearn.decomposition import PCA
from torch import Tensor

COMPONENTS = 100
"""Principal components of the server's images in which a row is looked at; the rest has one variance."""

FEWEST = 8
"""Images that tell a law at all."""

AMPLITUDES = 60
"""Amplitudes of either sign that are tried, from a hundredth of the noise to a hundred times it."""

LIKELIER = 8.0
"""How much likelier than pure noise a row must be, as a logarithm and beyond one for each amplitude that is tried."""


def most_likely(weight: Tensor, bias: Tensor, noise_std: float, typical: Tensor) -> tuple[Tensor, Tensor]:
    """What rows [R, d] with biases [R] hold: inputs [R, d], and which hold nothing that shows, [R].

    A row is delta x + n and its bias delta + n', with n of deviation noise_std. Of x the attacker knows images like it,
    typical [N, d]: their mean, their COMPONENTS and the variance of the rest (probabilistic principal components). The
    result is the mean of x under all amplitudes delta, each weighed by how likely it makes row and bias.
    Errors: ValueError for fewer typical inputs than FEWEST.
    Source: Tipping and Bishop 1999 (doi:10.1111/1467-9868.00196) for the law of x; the reading is this book's.
    """
    if len(typical) < FEWEST:
        raise ValueError(f"{len(typical)} images do not say what images look like: give {FEWEST} or more")
    components = min(COMPONENTS, len(typical) // 4, -(-weight.shape[1] // 2))
    law = PCA(components, svd_solver="randomized", random_state=0).fit(typical.cpu().numpy())
    mean, axes, variances = (
        torch.as_tensor(part).to(weight) for part in (law.mean_, law.components_, law.explained_variance_)
    )
    dimensions, rest = weight.shape[1] - len(axes), float(law.noise_variance_)
    half = noise_std * torch.logspace(-2, 2, AMPLITUDES, dtype=weight.dtype, device=weight.device)
    deltas = torch.cat([-half, half, half.new_zeros(1)])

    # along the components, and the sum of squares of what lies outside of them
    row, centre = weight @ axes.T, axes @ mean
    along = row[:, None] - deltas[:, None] * centre  # [R, S, r]
    whole = (weight.square().sum(1)[:, None] - 2 * deltas * (weight @ mean)[:, None]) + deltas.square() * mean.dot(mean)
    outside = (whole - along.square().sum(2)).clamp(min=0)
    spread = deltas.square()[:, None] * variances + noise_std**2  # [S, r]
    spread_outside = deltas.square() * rest + noise_std**2
    fit = (along.square() / spread + spread.log()).sum(2)
    fit = fit + outside / spread_outside + dimensions * spread_outside.log()
    likelihood = -(fit + ((bias[:, None] - deltas) / noise_std).square()) / 2  # [R, S]

    weights = likelihood[:, :-1].softmax(1)
    deltas, spread, spread_outside = deltas[:-1], spread[:-1], spread_outside[:-1]
    gain, gain_outside = deltas[:, None] * variances / spread, deltas * rest / spread_outside
    inside = (weights[:, :, None] * gain * along[:, :-1]).sum(1)  # [R, r]
    of_row, of_mean = weights @ gain_outside, weights @ (gain_outside * deltas)
    left = of_row[:, None] * (weight - row @ axes) - of_mean[:, None] * (mean - centre @ axes)
    best = likelihood[:, :-1].amax(1) - likelihood[:, -1]
    return mean + inside @ axes + left, best <= LIKELIER + math.log(2 * AMPLITUDES)
