"""Inputs of fully connected layers in closed form: no search, one division."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reprolib import labels
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.client import SharedUpdate

Rows = Literal["least_squares", "largest"]


@dataclass(frozen=True)
class AnalyticRecovery:
    """Read the image off a network whose first layer is linear with a bias: `linear_inputs` of that layer.

    Exact for one image a trial, also after several local steps. The images of a batch all come out as the same signed
    mixture of them. layer: the layer's name; the victims' `mlp` calls it hidden1. rows: as in `linear_inputs`.
    Labels: `labels.of_update`. Source: Geiping et al. 2020, proposition 3.1.
    """

    layer: str = "hidden1"
    rows: Rows = "least_squares"

    def __call__(
        self, model: nn.Module, update: SharedUpdate, seed: int = 0, progress: bool | None = None
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial; seed and progress are taken and not used: nothing is drawn.

        objective of the result: 0, since nothing is searched for; evaluations: 0.
        Errors: ValueError for an update of another model or one with NaN, a layer that is not there, and one whose
        input is not the image; besides those of `linear_inputs`.
        """
        began = time.perf_counter()
        update.check(model)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if self.layer not in layers or layers[self.layer].bias is None:
            able = [name for name, module in layers.items() if module.bias is not None]
            raise ValueError(f"layer={self.layer!r} is no linear layer with a bias of this model; it has {able}")
        pixels = torch.Size(update.image_shape).numel()
        if layers[self.layer].in_features != pixels:
            raise ValueError(
                f"layer={self.layer!r} takes {layers[self.layer].in_features} values, an image has {pixels}: what "
                "leaks there are features, not the image; use attacks.linear_inputs for them"
            )
        gradients = update.as_gradients()
        inputs = linear_inputs(gradients[f"{self.layer}.weight"], gradients[f"{self.layer}.bias"], self.rows)
        images = inputs.view(update.trials, 1, *update.image_shape)
        if hasattr(model.normalize, "std"):
            images = images * model.normalize.std + model.normalize.mean
        zeros = torch.zeros(update.trials, dtype=torch.int64, device=images.device)
        return Reconstruction(
            raw=images.expand(-1, update.batch_size, -1, -1, -1),
            labels=labels.of_update(update),
            objective=zeros.to(images.dtype),
            evaluations=zeros,
            starts=zeros + 1,
            diverged=zeros.bool(),
            seconds=time.perf_counter() - began,
        )


def linear_inputs(weight_gradient: Tensor, bias_gradient: Tensor, rows: Rows = "least_squares") -> Tensor:
    """The input of a linear layer with bias, from its gradients, for T trials: [T, F].

    weight_gradient: [T, K, F], bias_gradient: [T, K]. Row i of the one is delta_i x, entry i of the other delta_i:
    their ratio is x, exactly, for one sample and whatever network comes after the layer; also for the weight
    difference of several local steps, where the layer is the network's first. For a batch it is a mixture of the
    samples with weights that add up to 1 and may be negative.
    rows: "largest" divides the row of the largest bias gradient; "least_squares" weighs all rows, which averages
    rounding and noise.
    Errors: ValueError for other shapes, an unknown `rows`, and a trial whose bias gradient is zero: nothing leaks.
    Source: Geiping et al. 2020, proposition 3.1; sheet `ig.md`, section 4.6.
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
