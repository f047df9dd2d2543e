"""GradInversion: Yin, Mallya, Vahdat, Alvarez, Kautz and Molchanov, CVPR 2021. There is no official code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks import matching, priors
from reprolib.attacks.matching import Matching
from reprolib.attacks.reconstruction import History, Reconstruction, require_images
from reprolib.attacks.search import NormalisedSearch, Search, SearchAttack, Taken
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import Minimum, langevin_adam, warm_cosine

_DISTANCES = {"norm": matching.norms, "square": matching.distance, "cosine": matching.cosine}
_SMOOTHNESS = {
    "four_directions": priors.four_direction_variation,
    "mean": priors.total_variation,
    "sum": priors.summed_variation,
}
_ENERGY = {
    "mean_norm": priors.mean_norm,
    "norm": lambda images: images.square().flatten(1).sum(1).sqrt(),
    "mean_square": lambda images: images.square().flatten(1).mean(1),
}


@dataclass(frozen=True)
class GradInversion(SearchAttack):
    """Find a batch of images by its gradient, its batch-norm statistics and the agreement of several searches.

    Minimises, in the victim's normalised space, for each of `seeds` starts of an update,
    gradient * sum_l |g_l' - g_l| + total_variation * TV + energy * |x| + batch_norm * R_BN + group * |x - E|,
    by Adam with a warm-up, a cosine and noise on the pixels (section 3 of the paper). E is the mean of the
    seeds, registered onto each other, and counts from iteration `group_start` on, anew after every `group_every`. The
    statistics are those that the update grants (`ThreatModel.batch_norm`); without any, the term is left out.
    The defaults are the paper's weights, as far as they are reported, with the terms as its authors' later code
    defines them.

    iterations, learning_rate, warmup: of Adam. gradient: a weight, or None for the one that makes this term and that of
    batch norm equal at the start, for each seed. first_batch_norm: weight of the first layer's statistics.
    gradient_form, batch_norm_form: sums of "norm"s or of "square"s; of the gradient also one minus the "cosine" over
    all parameters together. smoothness: `priors`' variation by "four_directions", "mean" or "sum". energy_form:
    "mean_norm" over images, "norm" or "mean_square" of the batch. noise, noise_on: its size as a multiple of the
    learning rate, on "pixels" or on the "gradient". signed: Adam is fed the sign of the slope. boxed: pixels stay in
    their range. labels: "known" takes the update's; "minimum" and "sum" read distinct ones off the last layer.
    registration: of the seeds, as in `priors.consensus`. select: the seed with the "best" gradient distance, which the
    attacker sees, or the "consensus" of all. The result's `candidates` are what every seed ended at, its evaluations
    those of all. It matches a single gradient, and reads labels off a batch of at most as many images as classes.
    """

    iterations: settings.Count = 20_000
    learning_rate: settings.Level = 0.1
    warmup: settings.Count = 50
    gradient: settings.Level | None = 1e-3
    total_variation: settings.Level = 1e-4
    energy: settings.Level = 1e-6
    batch_norm: settings.Level = 0.1
    first_batch_norm: settings.Level = 1.0
    group: settings.Level = 0.01
    gradient_form: Literal["norm", "square", "cosine"] = "norm"
    batch_norm_form: Literal["norm", "square"] = "norm"
    smoothness: Literal["four_directions", "mean", "sum"] = "four_directions"
    energy_form: Literal["mean_norm", "norm", "mean_square"] = "mean_norm"
    noise: settings.Level = 0.2
    noise_on: Literal["pixels", "gradient"] = "pixels"
    signed: bool = False
    boxed: bool = True
    labels: Literal["known", "minimum", "sum"] = "minimum"
    seeds: settings.Count = 8
    group_start: settings.CountOrZero = 5_000
    group_every: settings.Count = 100
    registration: priors.Registration = "affine"
    select: Literal["best", "consensus"] = "best"

    one_gradient = True
    rules = {"minimum": "yin", "sum": "yin_sum"}

    @classmethod
    def paper(cls) -> GradInversion:
        """The paper's weights and schedule, as reported: eight seeds, 20,000 iterations."""
        return cls()

    @classmethod
    def balanced(cls) -> GradInversion:
        """For small victims, where the paper's weights leave batch norm alone in charge: both terms start equal."""
        return cls(gradient=None, total_variation=5e-4)

    @classmethod
    def breaching(cls) -> GradInversion:
        """As the public framework `breaching` sets it: squares, means, noise on the gradient, no group."""
        return cls(
            gradient=5e-5,
            gradient_form="square",
            smoothness="mean",
            energy=5e-7,
            energy_form="mean_square",
            first_batch_norm=10.0,
            group=0.0,
            noise=0.01,
            noise_on="gradient",
            seeds=1,
        )

    @classmethod
    def fgla_stg(cls) -> GradInversion:
        """As FGLA's authors reimplement it for comparison: squares, sums, labels given, no group, no box.

        Their variances are unbiased; ours are not, on both sides.
        """
        return cls(
            gradient_form="square",
            batch_norm_form="square",
            smoothness="sum",
            energy_form="norm",
            group=0.0,
            boxed=False,
            labels="known",
            seeds=1,
        )

    @classmethod
    def strong(cls) -> GradInversion:
        """This book's own, for small victims: Inverting Gradients' cosine and signed steps beside the statistics.

        One seed, no group, no noise. Its two weights were chosen, roughly, on five images, and it takes its time: PSNR
        still rises after a thousand iterations.
        """
        return cls(
            iterations=1500,
            gradient=1.0,
            gradient_form="cosine",
            total_variation=1e-3,
            smoothness="mean",
            energy=0.0,
            batch_norm=1e-3,
            group=0.0,
            noise=0.0,
            signed=True,
            seeds=1,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.warmup < self.iterations:
            raise ValueError(f"warmup={self.warmup} must be below iterations={self.iterations}")
        if self.gradient is None and not self.batch_norm > 0:
            raise ValueError("gradient=None balances it against batch norm, but batch_norm=0: give it a weight")

    def compressed(self, iterations: int) -> GradInversion:
        """The same attack in fewer iterations: warm-up, group start and refreshes keep their share of the run.

        The seeds agree anew every fifth iteration at most: registration costs more than an iteration does.
        """
        scale = iterations / self.iterations
        return replace(
            self,
            iterations=iterations,
            warmup=max(1, min(iterations - 1, max(5, round(self.warmup * scale)))),
            group_start=round(self.group_start * scale),
            group_every=max(5, round(self.group_every * scale)),
        )

    def search(self, *told: Any) -> Search:
        return _Search(self, *told, each=self.seeds)

    def refuse(self, model: nn.Module | Victims, update: SharedUpdate) -> None:
        require_images("GradInversion", model, "registers and smooths pixels")
        if self.gradient is None and update.batch_norm is None:
            raise ValueError("gradient=None balances it against batch-norm statistics, but this update carries none")

    def of_direction(self) -> bool:
        return self.gradient_form == "cosine"


@dataclass
class _Group:
    """What the seeds of each trial agree on, in pixels [T, B, C, H, W]; None before they do."""

    consensus: Tensor | None = None


class _Search(NormalisedSearch):
    """The rows are (trial, seed) pairs, the seeds of a trial beside each other."""

    def __init__(self, attack: GradInversion, model: nn.Module | Victims, *told: Any, each: int) -> None:
        super().__init__(attack, model, *told, each=each)  # type: ignore[misc]
        owner = self.trials.to(self.device).repeat_interleave(each)
        known = (
            {} if self.update.batch_norm is None else client.batch_statistics(Victims.of(model).skeleton, self.update)
        )
        self.targets = {layer: tuple(value[owner] for value in pair) for layer, pair in known.items()}

    def compare(self, gradients: dict[str, Tensor], observation: Observation, rows: Tensor) -> Tensor:
        return _DISTANCES[self.attack.gradient_form](gradients, observation, rows)

    def prior(self, images: Tensor, rows: Tensor, group: _Group) -> Tensor:
        attack, x = self.attack, self.inputs.to_points(images)
        value = attack.total_variation * _SMOOTHNESS[attack.smoothness](x)
        value = value + attack.energy * _ENERGY[attack.energy_form](x)
        if group.consensus is not None:
            agreed = self.inputs.to_points(group.consensus[rows // self.each])
            away = (x - agreed).square().flatten(1).sum(1)
            value = value + attack.group * away.clamp(min=torch.finfo(self.dtype).tiny).sqrt()
        return value

    def statistics(self, seen: dict[str, tuple[Tensor, Tensor]], rows: Tensor) -> Tensor:
        attack, squared = self.attack, self.attack.batch_norm_form == "square"
        found = priors.batch_norm_distance(seen, self.targets, rows, attack.first_batch_norm, squared)
        return attack.batch_norm * found

    def agreed(self, x: Tensor) -> Tensor:
        """The consensus of each trial's seeds, in pixels: [T, B, C, H, W]."""
        every = self.images(x).unflatten(0, (-1, self.each))
        agreed = priors.consensus(every.transpose(0, 1).flatten(1, 2), self.attack.registration)
        return agreed.view(-1, *self.batch_shape)

    def weights(self, x: Tensor) -> Tensor:
        """[R] of the gradient's term; where it is balanced, that which makes it as large as batch norm's at x."""
        if self.attack.gradient is not None:
            return x.new_full((len(x),), self.attack.gradient)
        nothing = self.matching(0, compare=lambda gradients, seen, rows: x.new_zeros(len(rows)), **self._statistics())
        return nothing(x, self.everyone)[0] / self.value(x, 0)

    def _statistics(self) -> dict[str, Any]:
        return {"layers": tuple(self.targets), "statistics": self.statistics}

    def everything(self, weights: Tensor, group: _Group) -> Matching:
        """The objective with all its terms; weights: [R] of the gradient's."""
        return self.matching(
            0,
            prior=lambda images, rows: self.prior(images, rows, group),
            compare=lambda gradients, seen, rows: weights[rows] * self.compare(gradients, seen, rows),
            **(self._statistics() if self.targets and self.attack.batch_norm else {}),
        )

    def steps(self, x: Tensor, start: int) -> Iterator[Minimum]:
        attack, group, weights, streams = self.attack, _Group(), self.weights(x), self.streams(start)
        self.drawn(streams, self.pixels)  # the first draw of each stream is where its row began

        def agree(x: Tensor, iteration: int) -> None:
            since = iteration - attack.group_start
            if attack.group > 0 and self.each > 1 and since >= 0 and since % attack.group_every == 0:
                group.consensus = self.agreed(x)

        return langevin_adam(
            self.everything(weights, group),
            x,
            attack.iterations,
            warm_cosine(attack.learning_rate, attack.iterations, attack.warmup),
            (lambda: attack.noise * self.drawn(streams, self.pixels)) if attack.noise else None,
            attack.noise_on,
            project=self.inside if attack.boxed else (lambda y: y),
            signed=attack.signed,
            before=agree,
        )

    def result(self, minimum: Minimum, start: int, taken: list[Taken]) -> Reconstruction:
        value = self.value(minimum.last, start).masked_fill(minimum.diverged, math.inf).view(-1, self.each)
        best = value.argmin(1)
        every = self.images(minimum.last).unflatten(0, (-1, self.each))
        chosen, diverged = torch.arange(len(best), device=self.device), minimum.diverged.view(-1, self.each)
        raw, objective, failed = every[chosen, best], value[chosen, best], diverged.all(1)
        if self.attack.select == "consensus":
            raw, failed = self.agreed(minimum.last), diverged.any(1)
            objective = self.matching(start).alone(self.inputs.to_points(raw).flatten(1), chosen * self.each)
        return Reconstruction(
            raw=raw,
            labels=self.given,
            objective=objective,
            evaluations=minimum.evaluations.view(-1, self.each).sum(1),
            starts=torch.full_like(best, self.each),
            diverged=failed,
            seconds=0.0,
            history=self._of_the_best(self.history(taken, start), chosen * self.each + best),
            candidates=every,
            inputs=self.inputs,
        )

    def _of_the_best(self, history: History | None, row: Tensor) -> History | None:
        """The history of the seed that was best in the end; what all of them spent."""
        return history and History(
            iterations=history.iterations,
            objective=history.objective[:, row],
            evaluations=history.evaluations.unflatten(1, (-1, self.each)).sum(2),
            images=history.images[:, row],
            soft_labels=history.soft_labels[:, row],
        )
