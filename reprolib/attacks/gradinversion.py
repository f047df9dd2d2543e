"""GradInversion: Yin, Mallya, Vahdat, Alvarez, Kautz and Molchanov, CVPR 2021. There is no official code."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from reprolib.attacks import labels, matching, priors
from reprolib.attacks.matching import Matching
from reprolib.attacks.reconstruction import History, Reconstruction
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import langevin_adam, warm_cosine

_LABEL_RULES = {"minimum": "yin", "sum": "yin_sum"}
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
class GradInversion:
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
    attacker sees, or the "consensus" of all.
    """

    iterations: int = 20_000
    learning_rate: float = 0.1
    warmup: int = 50
    gradient: float | None = 1e-3
    total_variation: float = 1e-4
    energy: float = 1e-6
    batch_norm: float = 0.1
    first_batch_norm: float = 1.0
    group: float = 0.01
    gradient_form: Literal["norm", "square", "cosine"] = "norm"
    batch_norm_form: Literal["norm", "square"] = "norm"
    smoothness: Literal["four_directions", "mean", "sum"] = "four_directions"
    energy_form: Literal["mean_norm", "norm", "mean_square"] = "mean_norm"
    noise: float = 0.2
    noise_on: Literal["pixels", "gradient"] = "pixels"
    signed: bool = False
    boxed: bool = True
    labels: Literal["known", "minimum", "sum"] = "minimum"
    seeds: int = 8
    group_start: int = 5_000
    group_every: int = 100
    registration: priors.Registration = "affine"
    select: Literal["best", "consensus"] = "best"

    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "gradient_form": tuple(_DISTANCES),
        "batch_norm_form": ("norm", "square"),
        "smoothness": tuple(_SMOOTHNESS),
        "energy_form": tuple(_ENERGY),
        "noise_on": ("pixels", "gradient"),
        "labels": ("known", *_LABEL_RULES),
        "registration": get_args(priors.Registration),
        "select": ("best", "consensus"),
    }

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
        for name, known in self._known.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, known))}")
        for name in ("iterations", "seeds", "group_every", "warmup"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "gradient", "total_variation", "energy", "batch_norm", "group", "noise"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} must be a finite number of at least 0")
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

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial of the update; arguments as `attacks.DLG`'s.

        objective of the result: the gradient distance alone, in its own units. candidates: what every seed ended at.
        evaluations: of all seeds together. snapshots: iterations.
        Errors: ValueError for an update of another model, one with NaN, one of several local steps, one without the
        labels that the attack needs, and more images than classes where labels are read off.
        """
        began = time.perf_counter()
        update.check(model)
        update.require_one_gradient("GradInversion")
        return _Search(self, model, update, self._given_labels(update), seed).run(progress, snapshots, began)

    def _given_labels(self, update: SharedUpdate) -> Tensor:
        """[T, B], in the order of the classes where they are read off: one order for all seeds."""
        if self.labels == "known":
            if update.labels is None:
                raise ValueError("labels='known' needs labels in the update: share with ThreatModel(labels='known')")
            return update.labels
        return labels.of_update(update, _LABEL_RULES[self.labels])


class _Search:
    """One update's problem: rows are (trial, seed) pairs, the seeds of a trial beside each other."""

    def __init__(
        self, attack: GradInversion, model: nn.Module | Victims, update: SharedUpdate, given: Tensor, seed: Seed
    ) -> None:
        self.attack, self.update, self.seed = attack, update, seed
        first = next(iter(update.gradients.values()))
        self.device, self.dtype = first.device, first.dtype
        self.given = given.to(self.device)
        self.owner = torch.arange(update.trials, device=self.device).repeat_interleave(attack.seeds)
        network = Victims.of(model).skeleton
        self.mean = network.mean.to(self.device, self.dtype)
        self.std = network.std.to(self.device, self.dtype)
        observation = Observation(update.as_gradients())
        if update.defense is not None:
            observation = update.defense.counter(model, update)
        if attack.gradient_form == "cosine":
            matching.require_direction(observation)
        soft = update.targets(self.given, first)[self.owner]
        self.targets = client.batch_statistics(network, update) if update.batch_norm is not None else {}
        self.weight = torch.full((len(self.owner),), attack.gradient or 0.0, device=self.device, dtype=self.dtype)
        self.consensus: Tensor | None = None
        self.calls = 0
        observation = observation.select(self.owner)
        streams = [generator(seed, trial, start, 1) for trial in range(update.trials) for start in range(attack.seeds)]
        common = {
            "model": Victims.of(model).select(self.owner),
            "observation": observation,
            "noise": matching.dummy_noise(model, observation, streams, update.batch_size),
            "parts": lambda x, rows: (self.pixels(x), soft[rows]),
            "mode": update.threat.mode,
            "sizes": update.sizes,
            "layers": tuple(self.targets),
        }
        distance = _DISTANCES[attack.gradient_form]
        self.distance = Matching(**common, compare=distance)
        self.everything = Matching(
            **common,
            prior=self.prior,
            compare=lambda gradients, seen, rows: self.weight[rows] * distance(gradients, seen, rows),
            statistics=self.statistics if self.targets and attack.batch_norm else None,
        )
        if attack.gradient is None and not self.targets:
            raise ValueError("gradient=None balances it against batch-norm statistics, but this update carries none")
        nothing = replace(self.distance, compare=lambda gradients, seen, rows: torch.zeros_like(self.weight[rows]))
        self.batch_norm = replace(nothing, statistics=self.statistics)

    def pixels(self, x: Tensor) -> Tensor:
        """[R, N] normalised -> [R, B, C, H, W] in pixels."""
        return x.view(-1, self.update.batch_size, *self.update.image_shape) * self.std + self.mean

    def prior(self, images: Tensor, rows: Tensor) -> Tensor:
        attack, x = self.attack, (images - self.mean) / self.std
        value = attack.total_variation * _SMOOTHNESS[attack.smoothness](x)
        value = value + attack.energy * _ENERGY[attack.energy_form](x)
        if self.consensus is not None:
            away = (x - self.consensus[rows]).square().flatten(1).sum(1)
            value = value + attack.group * away.clamp(min=torch.finfo(self.dtype).tiny).sqrt()
        return value

    def statistics(self, seen: dict[str, tuple[Tensor, Tensor]], rows: Tensor) -> Tensor:
        attack = self.attack
        squared = attack.batch_norm_form == "square"
        targets = {layer: tuple(value[self.owner] for value in pair) for layer, pair in self.targets.items()}
        return attack.batch_norm * priors.batch_norm_distance(seen, targets, rows, attack.first_batch_norm, squared)

    def objective(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Called once an iteration with all rows; on the way, the seeds agree on what they should look like."""
        attack = self.attack
        since = self.calls - attack.group_start
        if attack.group > 0 and attack.seeds > 1 and since >= 0 and since % attack.group_every == 0:
            agreed = self.agreed(x).repeat_interleave(attack.seeds, 0)
            self.consensus = (agreed - self.mean) / self.std
        self.calls += 1
        value, gradient = self.everything(x, rows)
        return value, gradient.sign() if attack.signed else gradient

    def agreed(self, x: Tensor) -> Tensor:
        """The consensus of each trial's seeds, in pixels: [T, B, C, H, W]."""
        every = self.pixels(x).view(self.update.trials, self.attack.seeds, *self._batch_shape())
        agreed = priors.consensus(every.transpose(0, 1).flatten(1, 2), self.attack.registration)
        return agreed.view(self.update.trials, *self._batch_shape())

    def inside(self, x: Tensor) -> Tensor:
        pixels = x.view(len(x), self.update.batch_size, *self.update.image_shape)
        return pixels.clamp((0 - self.mean) / self.std, (1 - self.mean) / self.std).view(x.shape)

    def run(self, progress: bool | None, snapshots: Sequence[int], began: float) -> Reconstruction:
        attack, wanted = self.attack, set(snapshots)
        streams = [
            generator(self.seed, trial, start) for trial in range(self.update.trials) for start in range(attack.seeds)
        ]
        size = self.update.batch_size * math.prod(self.update.image_shape)

        def drawn() -> Tensor:
            return torch.stack([torch.randn(size, generator=s) for s in streams]).to(self.device, self.dtype)

        x, rows = drawn(), torch.arange(len(self.owner), device=self.device)
        if attack.gradient is None:
            self.weight = self.batch_norm(x, rows)[0] / self.distance(x, rows)[0]
        run = langevin_adam(
            self.objective,
            x,
            attack.iterations,
            warm_cosine(attack.learning_rate, attack.iterations, attack.warmup),
            (lambda: attack.noise * drawn()) if attack.noise else None,
            attack.noise_on,
            project=self.inside if attack.boxed else (lambda y: y),
        )
        bar = tqdm(
            run,
            total=attack.iterations,
            desc=f"GradInversion, {self.update.trials} trials of {attack.seeds} seeds",
            disable=not (sys.stderr.isatty() if progress is None else progress),
            mininterval=0.5 if sys.stderr.isatty() else 60,
        )
        taken = [(0, x.clone(), torch.zeros_like(rows))] if 0 in wanted else []
        for iteration, minimum in enumerate(bar, 1):
            if iteration in wanted:
                taken.append((iteration, minimum.last.clone(), minimum.evaluations.clone()))
        return self._result(minimum, taken, rows, began)

    def _result(self, minimum, taken, rows: Tensor, began: float) -> Reconstruction:
        attack, trials = self.attack, self.update.trials
        value = self.distance(minimum.last, rows)[0].masked_fill(minimum.diverged, math.inf).view(trials, -1)
        best = value.argmin(1)
        every = self.pixels(minimum.last).view(trials, attack.seeds, *self._batch_shape())
        chosen = torch.arange(trials, device=self.device)
        raw = every[chosen, best] if attack.select == "best" else self.agreed(minimum.last)
        return Reconstruction(
            raw=raw,
            labels=self.given,
            objective=value[chosen, best],
            evaluations=minimum.evaluations.view(trials, -1).sum(1),
            starts=torch.full_like(best, attack.seeds),
            diverged=minimum.diverged.view(trials, -1).all(1),
            seconds=time.perf_counter() - began,
            history=self._history(taken, best) if taken else None,
            candidates=every,
        )

    def _batch_shape(self) -> tuple[int, ...]:
        return (self.update.batch_size, *self.update.image_shape)

    def _history(self, taken: list[tuple[int, Tensor, Tensor]], best: Tensor) -> History:
        """Of the seed that was best in the end."""
        trials = len(best)
        row = torch.arange(trials, device=self.device) * self.attack.seeds + best
        iterations, points, evaluations = zip(*taken, strict=True)
        soft = self.update.targets(self.given, points[0])
        everyone = torch.arange(len(self.owner), device=self.device)
        return History(
            iterations=list(iterations),
            objective=torch.stack([self.distance(x, everyone)[0][row] for x in points]),
            evaluations=torch.stack([spent.view(trials, -1).sum(1) for spent in evaluations]),
            images=torch.stack([self.pixels(x)[row] for x in points]),
            soft_labels=soft.expand(len(points), *soft.shape),
        )
