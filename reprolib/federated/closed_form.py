"""What gradients give away in closed form, for attacks and for attackers who know a defense."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Rows = Literal["least_squares", "largest"]


def linear_inputs(weight_gradient: Tensor, bias_gradient: Tensor, rows: Rows = "least_squares") -> Tensor:
    """The input of a linear layer with bias, from its gradients, for T trials: [T, F].

    weight_gradient: [T, K, F], bias_gradient: [T, K]. Row i of the one is delta_i x, entry i of the other delta_i:
    their ratio is x, exactly, for one sample and whatever network comes after the layer; also for the weight
    difference of several local steps, where the layer is the network's first. For a batch it is a mixture of the
    samples with weights that add up to 1 and may be negative.
    rows: "largest" divides the row of the largest bias gradient; "least_squares" weighs all rows, which averages
    rounding and noise.
    Errors: ValueError for other shapes, an unknown `rows`, and a trial whose bias gradient is zero: nothing leaks.
    Source: Geiping et al. 2020, proposition 3.1.
    """
    if weight_gradient.ndim != 3 or bias_gradient.shape != weight_gradient.shape[:2]:
        raise ValueError(
            f"weight_gradient and bias_gradient must have the shapes [T, K, F] and [T, K], "
            f"got {list(weight_gradient.shape)} and {list(bias_gradient.shape)}"
        )
    if rows not in ("least_squares", "largest"):
        raise ValueError(f"rows={rows!r} is unknown; use 'least_squares' or 'largest'")
    size = bias_gradient.abs().amax(1)
    if (size == 0).any():
        dead = (size == 0).nonzero()[:, 0].tolist()
        raise ValueError(f"the bias gradient of the trials {dead} is zero: their layer passed nothing back")
    scaled = bias_gradient / size[:, None]  # squares of tiny gradients would underflow
    if rows == "largest":
        scaled = scaled * torch.nn.functional.one_hot(scaled.abs().argmax(1), scaled.shape[1])
    mixed = (scaled[:, None] @ weight_gradient)[:, 0]
    return mixed / (scaled.square().sum(1) * size)[:, None]


def rows_of_labels(weight_gradient: Tensor, given: Tensor) -> Tensor:
    """Each image's row of a head's weight gradient: [T, K, F] and labels [T, B] to [T, B, F]."""
    return weight_gradient[torch.arange(len(given), device=given.device)[:, None], given]
