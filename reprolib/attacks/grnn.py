"""GRNN, Generative Regression Neural Network: Ren, Deng and Xie, ACM TIST 2022."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from reprolib import settings
from reprolib.attacks import matching, priors
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.attacks.search import Search, SearchAttack, Taken
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.models.grnn import RegressionGenerator
from reprolib.optimizers import Minimum, rmsprop

TOGETHER = 8
"""Trials searched at once on a CPU: more would leave its caches, and its allocator's, without any gain."""


@dataclass(frozen=True)
class GRNN(SearchAttack):
    """Train a generator until the image and the label that it makes of fixed noise have the gradient that was shared.

    Minimises |g' - g|^2 + |g' - g| + total_variation * TV over the weights of a generator that nobody trained before,
    one for each update: it is no prior of what images look like, but a way of writing pixels down. The second term is
    the released code's "Wasserstein distance", which is the Euclidean norm. TV is twice the mean squared difference of
    neighbouring pixels, down and across. The generator ends in a softmax too, whose soft label takes the label's place,
    and in a sigmoid, so that pixels cannot leave [0, 1]. Of a defense that the attacker knows, its `counter` is what
    g' is compared with. The defaults are the released script's for its LeNet.

    iterations, learning_rate, momentum: of RMSprop, whose mean of squares forgets a hundredth at each step.
    total_variation: 1e-3 for the LeNet, 1e-6 for the ResNet-18 (`residual`). noise_dim, width: of the generator.
    labels: "generated" by it, or "known". units: the sigmoid's output is taken for "pixels", or for the "normalised"
    values that enter the network, of which it then reaches half (FLEAK's switch `--normalize`).
    iterate: the "last" image, or the "best" by objective. starts: generators, of which the smallest distance wins.
    Errors: ValueError for values outside these, naming them; for images that are not square with a side of 8, 16, ...;
    for several local steps, and for a loss without classes where the labels are generated.
    Source: Ren et al. 2022, released code (GRNN.py, utils.py, wd.py).
    """

    iterations: settings.Count = 1000
    learning_rate: settings.Positive = 1e-4
    momentum: settings.Share = 0.99
    total_variation: settings.Level = 1e-3
    noise_dim: settings.Count = 128
    width: settings.Count = 32
    labels: Literal["generated", "known"] = "generated"
    units: Literal["pixels", "normalised"] = "pixels"
    iterate: Literal["last", "best"] = "last"
    starts: settings.Count = 1

    one_gradient = True

    @classmethod
    def official(cls) -> GRNN:
        """The released script for its LeNet."""
        return cls()

    @classmethod
    def residual(cls) -> GRNN:
        """The released script for its ResNet-18: a thousandth of the total variation."""
        return cls(total_variation=1e-6)

    def search(self, *told: Any) -> Search:
        return _Search(self, *told)

    def refuse(self, model: nn.Module | Victims, update: SharedUpdate) -> None:
        self.generator(update)

    def generator(self, update: SharedUpdate) -> RegressionGenerator:
        """The generator's layers without numbers. Errors: ValueError for images of a size that it cannot make."""
        with torch.device("meta"):
            return RegressionGenerator(
                update.num_classes, update.image_shape, noise_dim=self.noise_dim, width=self.width
            )

    def given_labels(self, update: SharedUpdate) -> Tensor | None:
        if self.labels == "generated":
            update.require_classes("making up the labels too")
            return None
        return super().given_labels(update)

    def _trials_at_once(self, update: SharedUpdate) -> int:
        on_cpu = next(iter(update.gradients.values())).device.type == "cpu"
        return min(update.trials, TOGETHER) if on_cpu else update.trials


class _Search(Search):
    """The rows are the weights of a generator each, one tensor behind the other, and its noise, which stands still."""

    def __init__(self, attack: GRNN, model: nn.Module | Victims, update: SharedUpdate, *told: Any) -> None:
        super().__init__(attack, model, update, *told)
        self.generator = attack.generator(update)
        self.shapes = {name: tensor.shape for name, tensor in self.generator.named_parameters()}
        self.noise_shape = (self.batch_shape[0], attack.noise_dim)
        self.sizes = [*(shape.numel() for shape in self.shapes.values()), math.prod(self.noise_shape)]

    def first(self, start: int) -> Tensor:
        uniform = self.drawn(self.streams(start), *self.sizes[:-1], draw=torch.rand).split(self.sizes[:-1], 1)
        weights = [self._as_torch_draws(name, part) for name, part in zip(self.shapes, uniform, strict=True)]
        return torch.cat([*weights, self.drawn(self.streams(start, 1), self.sizes[-1])], 1)

    def _as_torch_draws(self, name: str, uniform: Tensor) -> Tensor:
        """[R, n] in [0, 1) -> the generator's tensor of that name, drawn as torch draws it."""
        layer, _, kind = name.rpartition(".")
        if layer.startswith("norms"):
            return torch.full_like(uniform, 1.0 if kind == "weight" else 0.0)
        return (2 * uniform - 1) / math.sqrt(self.shapes[f"{layer}.weight"][1:].numel())

    def made(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, N] -> what enters the network [R, B, C, H, W], and the soft labels [R, B, K]."""
        *parts, noise = x.split(self.sizes, 1)
        named = zip(self.shapes.items(), parts, strict=True)
        weights = {name: part.view(-1, *shape) for (name, shape), part in named}
        noise = noise.detach().view(-1, *self.noise_shape)
        images, soft = vmap(lambda own, z: functional_call(self.generator, own, (z,)))(weights, noise)
        return self.inputs.of_points(images) if self.attack.units == "normalised" else images, soft

    def images(self, x: Tensor) -> Tensor:
        return self.made(x)[0]

    def parts(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        images, soft = self.made(x)
        return images, soft if self.soft is None else self.soft[rows]

    def compare(self, gradients: dict[str, Tensor], observation: Observation, rows: Tensor) -> Tensor:
        square = matching.distance(gradients, observation, rows)
        # at zero the root's slope is infinite: the floor makes it zero
        return square + square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()

    def prior(self, images: Tensor, rows: Tensor) -> Tensor:
        """Of the sigmoid's output, as the released code takes it."""
        made = self.inputs.to_points(images) if self.attack.units == "normalised" else images
        return self.attack.total_variation * priors.mean_squared_variation(made)

    def steps(self, x: Tensor, start: int) -> Iterator[Minimum]:
        attack = self.attack
        objective = self.matching(start, prior=self.prior if attack.total_variation else None)
        return rmsprop(objective, x, attack.iterations, attack.learning_rate, attack.momentum)

    def result(self, minimum: Minimum, start: int, taken: list[Taken]) -> Reconstruction:
        found = super().result(minimum, start, taken)
        labels = self.given if self.given is not None else self.made(self.point(minimum))[1].argmax(-1)
        return replace(found, labels=labels)
