"""Generative Gradient Leakage: Li, Zhang, Liu and Liu, CVPR 2022."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks import matching, priors
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.attacks.search import Search, SearchAttack, Taken
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import Minimum, adam, cma_es, langevin_adam, ramp, signed_adam

_STEPS = (2.667, 1.6, 1.142)  # of the released code: Adam's rate falls tenfold at T over these, rounded down
_REGULARIZERS = {"kl": priors.moment_divergence, "norm": priors.norm_excess}


@dataclass(frozen=True)
class GGL(SearchAttack):
    """Find the latent of a generator whose image has the gradient that was shared.

    Minimises D(y, T(F(G(z)))) + reg_weight * R(z) over z, where G is a generator trained on public images of the same
    kind, F the client's gradient, and T what the defense does, as far as the attacker knows it (the defense's
    `counter`). Only images that the generator can make come out, whatever the gradient says. The defaults are the
    paper's (section 3).

    generator: latents [N, k] -> images [N, C, H, W] in [0, 1], with the attribute `latent_dim` = k (`models`). It runs
    in evaluation mode; the attack works on a copy.
    optimizer: "cma" scores populations and needs no derivative of the generator; "adam" differentiates through it.
    evaluations: gradients of the victim that a start spends; for Adam each is differentiated once more.
    population, sigma0: of CMA-ES; a generation that would exceed the evaluations is not begun. start: the first latent,
    "zeros", "normal" or "uniform" in [0, 1). bound: "tanh" searches the z whose tanh enters the generator.
    distance: "l2", the sum of squares, or one minus the "cosine". reduction: of the sum of squares, "mean_tensors"
    divides it by the number of the victim's tensors (the code, and so the meaning of reg_weight), "sum" does not.
    regularizer: "kl" of the latent's own mean and variance, its "norm", or "none".
    learning_rate, signed, schedule: of Adam; "step" falls tenfold three times, "ramp" rises and falls smoothly.
    iterate: the "best" point evaluated, or the "last": of CMA-ES its mean, which averages noise, of Adam the last one.
    labels: "inferred" from the lowest row sums of the last layer's gradient, or "known". starts: searches, of which the
    smallest distance wins, which the attacker sees.
    Errors: ValueError for values outside these, naming them.
    """

    generator: nn.Module = field(repr=False)
    optimizer: Literal["cma", "adam"] = "cma"
    evaluations: settings.Count = 40_000
    population: Annotated[int, settings.Range(4, settings.MOST)] = 50
    sigma0: settings.Length = 1.0
    start: Literal["zeros", "normal", "uniform"] = "zeros"
    bound: Literal["none", "tanh"] = "none"
    distance: Literal["l2", "cosine"] = "l2"
    reduction: Literal["mean_tensors", "sum"] = "mean_tensors"
    regularizer: Literal["kl", "norm", "none"] = "kl"
    reg_weight: settings.Level = 0.1
    learning_rate: settings.Level = 0.1
    signed: bool = True
    schedule: Literal["step", "ramp"] = "step"
    iterate: Literal["best", "last"] = "best"
    labels: Literal["inferred", "known"] = "inferred"
    starts: settings.Count = 1

    rules = {"inferred": "yin_sum"}  # for one image the row-sum rule of iDLG, on whatever the defense left

    @classmethod
    def paper(cls, generator: nn.Module) -> GGL:
        """The paper's main setting: CMA-ES, 800 generations of 50."""
        return cls(generator)

    @classmethod
    def official(cls, generator: nn.Module) -> GGL:
        """What the code for faces does: 25,000 evaluations, and the population of 18 that its optimiser really has."""
        return cls(generator, evaluations=25_000, population=18)

    @classmethod
    def official_bounded(cls, generator: nn.Module) -> GGL:
        """The code for ImageNet: latents through tanh, a start in [0, 1), no regulariser."""
        return cls(generator, evaluations=25_000, population=18, start="uniform", bound="tanh", regularizer="none")

    @classmethod
    def adam(cls, generator: nn.Module) -> GGL:
        """The code for faces with Adam: signed, and the squares not divided, so that reg_weight means less."""
        return cls(generator, optimizer="adam", evaluations=2500, start="normal", reduction="sum")

    @classmethod
    def adam_ramp(cls, generator: nn.Module) -> GGL:
        """The code for ImageNet with Adam: plain, a rate that rises and falls, the squares divided."""
        return cls(generator, optimizer="adam", evaluations=2500, start="normal", signed=False, schedule="ramp")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.generator, "latent_dim"):
            raise ValueError(
                f"generator must be a module with `latent_dim`, such as models.build_generator('vae', ...), got "
                f"{type(self.generator).__name__}"
            )
        least, what = (self.population, "one generation") if self.optimizer == "cma" else (2, "one step of Adam")
        if self.evaluations < least:
            raise ValueError(f"evaluations must be at least {least}, {what}, got {self.evaluations}")
        if self.schedule == "ramp" and self.signed:
            raise ValueError("schedule='ramp' goes with signed=False: its small last steps would not be small")

    @property
    def iterations(self) -> int:  # type: ignore[override]
        """Generations of CMA-ES, or steps of Adam, which looks once more at where it ends."""
        return self.evaluations // self.population if self.optimizer == "cma" else self.evaluations - 1

    def search(self, *told: Any) -> Search:
        return _Search(self, *told)

    def refuse(self, model: nn.Module | Victims, update: SharedUpdate) -> None:
        like = next(self.generator.parameters(), torch.zeros(()))
        try:
            with torch.no_grad():
                made = copy.deepcopy(self.generator).eval()(like.new_zeros(1, self.generator.latent_dim))
        except RuntimeError as error:
            size = self.generator.latent_dim
            raise ValueError(f"the generator takes no latents of its latent_dim={size}: {error}") from error
        if made.shape[1:] != update.image_shape:
            raise ValueError(
                f"the generator makes images of {tuple(made.shape[1:])}, the client's are {update.image_shape}: "
                "use one trained on images of that shape"
            )

    def of_direction(self) -> bool:
        return self.distance == "cosine"


class _Search(Search):
    """The rows are latents, [R, B * k]."""

    def __init__(self, attack: GGL, *told: Any) -> None:
        super().__init__(attack, *told)
        self.size = (self.batch_shape[0], attack.generator.latent_dim)
        self.generator = copy.deepcopy(attack.generator).eval().requires_grad_(False).to(self.device, self.dtype)

    def latents(self, x: Tensor) -> Tensor:
        """[R, B * k] -> what enters the generator, [R, B, k]."""
        z = x.view(-1, *self.size)
        return z.tanh() if self.attack.bound == "tanh" else z

    def images(self, x: Tensor) -> Tensor:
        """[R, B * k] -> [R, B, C, H, W]."""
        made = self.generator(self.latents(x).flatten(0, 1))
        return made.view(-1, *self.batch_shape)

    def penalty(self, x: Tensor) -> Tensor | float:
        attack = self.attack
        if attack.regularizer == "none" or not attack.reg_weight:
            return 0.0
        return attack.reg_weight * _REGULARIZERS[attack.regularizer](self.latents(x))

    def compare(self, gradients: dict[str, Tensor], observation: Observation, rows: Tensor) -> Tensor:
        if self.attack.distance == "cosine":
            return matching.cosine(gradients, observation, rows)
        parts = len(gradients) if self.attack.reduction == "mean_tensors" else 1
        return matching.distance(gradients, observation, rows) / parts

    def first(self, start: int) -> Tensor:
        if self.attack.start == "zeros":
            return torch.zeros(len(self.trials), math.prod(self.size), device=self.device, dtype=self.dtype)
        draw = {"normal": torch.randn, "uniform": torch.rand}[self.attack.start]
        return self.drawn(self.streams(start), math.prod(self.size), draw=draw)

    def steps(self, x: Tensor, start: int) -> Iterator[Minimum]:
        attack, distance = self.attack, self.matching(start)
        if attack.optimizer == "cma":

            def value(x: Tensor, trials: Tensor) -> Tensor:
                return distance.alone(x, trials) + self.penalty(x)

            return cma_es(value, x, attack.iterations, attack.population, attack.sigma0, self.streams(start, 1))

        def objective(x: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = distance(x, trials)
            x = x.detach().requires_grad_()
            penalty = self.penalty(x)
            if isinstance(penalty, Tensor):
                slope = slope + torch.autograd.grad(penalty.sum(), x)[0]
                value = value + penalty.detach()
            return value, slope

        if attack.schedule == "ramp":
            return langevin_adam(objective, x, attack.iterations, ramp(attack.learning_rate, attack.iterations))
        falls = tuple(int(attack.evaluations // part) for part in _STEPS)
        how = signed_adam if attack.signed else adam
        return how(objective, x, attack.iterations, attack.learning_rate, milestones=falls)

    def result(self, minimum: Minimum, start: int, taken: list[Taken]) -> Reconstruction:
        return replace(super().result(minimum, start, taken), latents=self.latents(self.point(minimum)))
