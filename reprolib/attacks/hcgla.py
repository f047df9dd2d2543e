"""HCGLA: masked gradients matched from a generated start. Yang, Ge, Xiang and Li, TIFS 2023."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reprolib import models, settings
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.attacks.search import Search, SearchAttack, Taken
from reprolib.federated.closed_form import rows_of_labels
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import LBFGS, Minimum, lbfgs


@dataclass(frozen=True)
class HCGLA(SearchAttack):
    """Match a compressed gradient where compression left something, from images that a generator made of its rows.

    Minimises the sum over parameters of |m * (g' - g)|^2 over the images by L-BFGS, the labels given; m is 1 where the
    shared gradient is not zero. If the update grants the defense, its `counter` takes the mask's place: of a pruned
    entry one then also knows how large it can have been. The defaults are the released mini-batch script's.

    generator: rows [N, F] of the head's weight gradient, not divided by the bias gradient, to images in [0, 1]
    (`generators.fit_rows`). start: "generated" from each label's row; "mean_of_rows" decodes every row of the head and
    averages, for single images; "random" is DLG's normal start, without generator. mask: of "all" tensors, of the
    "head"'s weight alone (the code's for ResNets), or "none", which is DLG with the label given. iterations: outer
    steps; learning_rate to history_size: as `LBFGS`. iterate: the "last" or the "best" by objective.

    Not rebuilt: the DnCNN that filters the result, and the released code's slips: its DLG branch never optimises the
    dummy label, and its PSNR takes images in [0, 1] for 255 grey levels, 48 dB too many.
    Source: Yang et al. 2023, released code.
    """

    generator: nn.Module | None = field(default=None, repr=False)
    start: Literal["generated", "mean_of_rows", "random"] = "generated"
    mask: Literal["all", "head", "none"] = "all"
    iterations: settings.CountOrZero = 42
    learning_rate: settings.Length = 0.01
    max_iter: settings.Count = 20
    history_size: settings.Count = 100
    iterate: Literal["last", "best"] = "last"

    one_gradient = True
    labels = "known"

    @classmethod
    def official(cls, generator: nn.Module) -> HCGLA:
        """The released mini-batch script: every label's row decoded, 42 outer steps at a learning rate of 0.01."""
        return cls(generator)

    @classmethod
    def single(cls, generator: nn.Module) -> HCGLA:
        """The released variant for single images: all rows decoded and averaged."""
        return cls(generator, start="mean_of_rows")

    @classmethod
    def masked_dlg(cls) -> HCGLA:
        """The mask without the generator: DLG's start and learning rate."""
        return cls(start="random", learning_rate=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.generator is None) != (self.start == "random"):
            raise ValueError(f"start={self.start!r} goes {'without' if self.start == 'random' else 'with'} a generator")

    def search(self, *told: Any) -> Search:
        return _Search(self, *told)

    def lbfgs(self) -> LBFGS:
        return LBFGS(learning_rate=self.learning_rate, max_iter=self.max_iter, history_size=self.history_size)

    def refuse(self, model: nn.Module | Victims, update: SharedUpdate) -> None:
        if self.start == "mean_of_rows" and update.batch_size > 1:
            raise ValueError(f"start='mean_of_rows' is for single images, this update's batch_size={update.batch_size}")
        if self.generator is not None:
            models.check_inverse(self.generator, model, update.image_shape, "generator")

    def observed(self, model: nn.Module | Victims, update: SharedUpdate) -> Observation:
        observation = super().observed(model, update)
        return observation if update.defense is not None else replace(observation, weight=self._support(update))

    def _support(self, update: SharedUpdate) -> dict[str, Tensor] | None:
        """1 where the shared gradient is not zero, of the tensors that the mask covers."""
        g = update.gradients
        names = {"all": list(g), "head": ["head.weight"], "none": []}[self.mask]
        return {name: (g[name] != 0).to(g[name]) for name in names} or None


class _Search(Search):
    """The rows are pixels, from what a generator made of the head's gradient."""

    def first(self, start: int) -> Tensor:
        if self.attack.start == "random":
            return super().first(start)
        weight = self.update.of_the_head()[0][self.trials.to(self.device)]
        rows = rows_of_labels(weight, self.given) if self.attack.start == "generated" else weight
        network = copy.deepcopy(self.attack.generator).eval().to(self.device, self.dtype)
        with torch.no_grad():
            images = torch.stack([network(own) for own in rows])
        if self.attack.start == "mean_of_rows":
            images = images.mean(1, keepdim=True)
        return images.flatten(1)

    def steps(self, x: Tensor, start: int) -> Iterator[Minimum]:
        return lbfgs(self.matching(start), x, self.attack.iterations, self.attack.lbfgs())

    def result(self, minimum: Minimum, start: int, taken: list[Taken]) -> Reconstruction:
        rows = rows_of_labels(self.update.of_the_head()[0][self.trials.to(self.device)], self.given)
        return replace(super().result(minimum, start, taken), lost=(rows == 0).all(2))
