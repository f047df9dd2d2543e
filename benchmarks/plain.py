"""The plain loop that the engine is measured against: one `torch.optim.LBFGS` after another, at the official settings.

Written for this comparison from the published description (sheet `dlg.md`, 4.3). The closure uses
`torch.autograd.grad` for the dummies alone, which spares it the official code's growing weight gradients.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprolib.client import SharedUpdate, generator
from reprolib.labels import from_update


@dataclass
class PlainRun:
    """One trial: the last dummy [C, H, W], its label, closures spent, wall seconds."""

    image: Tensor
    label: int
    closures: int
    seconds: float


class PlainObjective:
    """D(x', y') of one trial and its gradient, by autograd alone."""

    def __init__(self, model: nn.Module, update: SharedUpdate, trial: int) -> None:
        self.model, self.parameters = model, list(model.parameters())
        self.target = [g[trial] for g in update.gradients.values()]

    def __call__(self, image: Tensor, soft_label: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(image), soft_label)
        dummy = torch.autograd.grad(loss, self.parameters, create_graph=True)
        return sum((d - g).square().sum() for d, g in zip(dummy, self.target, strict=True))


def attack(model: nn.Module, update: SharedUpdate, trial: int, seed: int, iterations: int = 300) -> PlainRun:
    """iDLG's official loop on one trial, from the dummy image that the engine draws for (seed, trial).

    A dummy that is no longer finite ends the loop: torch would go on to no effect.
    """
    began = time.perf_counter()
    objective = PlainObjective(model, update, trial)
    label = from_update(update.select(trial))
    soft_label = F.one_hot(label, update.num_classes).to(torch.float32)
    pixels = torch.randn(math.prod(update.image_shape), generator=generator(seed, trial, 0))
    image = pixels.view(1, *update.image_shape).requires_grad_()
    optimizer = torch.optim.LBFGS([image], lr=1.0)
    closures = 0

    def closure() -> Tensor:
        nonlocal closures
        closures += 1
        value = objective(image, soft_label)
        (image.grad,) = torch.autograd.grad(value, image)
        return value

    for iteration in range(iterations):
        value = optimizer.step(closure)
        if not image.isfinite().all():
            break
        if iteration % 10 == 0 and value < 1e-6:
            break
    return PlainRun(image.detach()[0], int(label), closures, time.perf_counter() - began)
