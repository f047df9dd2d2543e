"""Inputs of fully connected layers in closed form: no search, one division."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from reprolib import settings
from reprolib.attacks import labels
from reprolib.attacks.reconstruction import Reconstruction, check_call, read_off, refuse_snapshots, require_images
from reprolib.federated.closed_form import Rows, linear_inputs
from reprolib.federated.streams import Seed
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims


@dataclass(frozen=True)
class AnalyticRecovery:
    """Read the image off a network whose first layer is linear with a bias: `linear_inputs` of that layer.

    Exact for one image a trial, also after several local steps. Of a batch it gives one picture, the same for all its
    images: their signed mixture in one row or in the average over rows. That is no limit of the proposition: a ReLU
    row that one image alone switches on holds that image, and `TrapRows` reads every row. layer: the layer's name; the
    victims' `mlp` calls it hidden1. rows: as in `linear_inputs`.
    Labels: `labels.of_update`. Source: Geiping et al. 2020, proposition 3.1.
    """

    layer: str = "hidden1"
    rows: Rows = "least_squares"

    def __post_init__(self) -> None:
        settings.check(self)

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial; seed and progress are taken and not used: nothing is drawn. It keeps
        no snapshots.

        objective of the result: 0, since nothing is searched for; evaluations: 0.
        Errors: ValueError for an update of another model or one with NaN, a layer that is not there, and one whose
        input is not the image; besides those of `linear_inputs`.
        """
        began = time.perf_counter()
        refuse_snapshots(self, check_call(update, snapshots))
        update.check(model)
        require_images("AnalyticRecovery", model, "reads pixels off a layer")
        network = Victims.of(model).skeleton  # of the weights nothing is read
        layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
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
        images = inputs.view(update.trials, 1, *update.image_shape) * network.std.to(inputs) + network.mean.to(inputs)
        raw, found = images.expand(-1, update.batch_size, -1, -1, -1), labels.of_update(update)
        return read_off(raw, began, labels=found, objective=torch.zeros_like(inputs[:, 0]))
