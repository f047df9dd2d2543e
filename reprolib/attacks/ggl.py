"""Generative Gradient Leakage: Li, Zhang, Liu and Liu, CVPR 2022."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from reprolib.attacks import labels, matching, priors
from reprolib.attacks.matching import Matching
from reprolib.attacks.reconstruction import History, Reconstruction, keep_better
from reprolib.federated.observation import Observation
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import Minimum, adam, cma_es, langevin_adam, ramp, signed_adam

_STEPS = (2.667, 1.6, 1.142)  # of the released code: Adam's rate falls tenfold at T over these, rounded down
_REGULARIZERS = {"kl": priors.moment_divergence, "norm": priors.norm_excess}


@dataclass(frozen=True)
class GGL:
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
    evaluations: int = 40_000
    population: int = 50
    sigma0: float = 1.0
    start: Literal["zeros", "normal", "uniform"] = "zeros"
    bound: Literal["none", "tanh"] = "none"
    distance: Literal["l2", "cosine"] = "l2"
    reduction: Literal["mean_tensors", "sum"] = "mean_tensors"
    regularizer: Literal["kl", "norm", "none"] = "kl"
    reg_weight: float = 0.1
    learning_rate: float = 0.1
    signed: bool = True
    schedule: Literal["step", "ramp"] = "step"
    iterate: Literal["best", "last"] = "best"
    labels: Literal["inferred", "known"] = "inferred"
    starts: int = 1

    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "optimizer": ("cma", "adam"),
        "start": ("zeros", "normal", "uniform"),
        "bound": ("none", "tanh"),
        "distance": ("l2", "cosine"),
        "reduction": ("mean_tensors", "sum"),
        "regularizer": ("kl", "norm", "none"),
        "schedule": ("step", "ramp"),
        "iterate": ("best", "last"),
        "labels": ("inferred", "known"),
    }

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
        for name, known in self._known.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, known))}")
        if not isinstance(self.generator, nn.Module) or not hasattr(self.generator, "latent_dim"):
            raise ValueError(
                f"generator must be a module with `latent_dim`, such as models.build_generator('vae', ...), got "
                f"{type(self.generator).__name__}"
            )
        for name in ("sigma0", "reg_weight", "learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a finite number of at least 0")
        if not self.sigma0 > 0:
            raise ValueError("sigma0=0 would search nothing: use a number above 0")
        for name in ("population", "evaluations", "starts"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected an integer")
        if self.starts < 1:
            raise ValueError(f"starts={self.starts} must be at least 1")
        least = 2
        if self.optimizer == "cma":
            if self.population < 4:
                raise ValueError(f"population={self.population} must be at least 4: CMA-ES ranks half of it")
            least = self.population
        if self.evaluations < least:
            raise ValueError(
                f"evaluations={self.evaluations} must be at least {least}: "
                + ("one generation of the population" if self.optimizer == "cma" else "one step of Adam")
            )
        if self.schedule == "ramp" and self.signed:
            raise ValueError("schedule='ramp' goes with signed=False: its small last steps would not be small")

    @property
    def iterations(self) -> int:
        """Generations of CMA-ES, or steps of Adam, which looks once more at where it ends."""
        return self.evaluations // self.population if self.optimizer == "cma" else self.evaluations - 1

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial of the update; arguments as `attacks.DLG`'s.

        objective of the result: the distance to the shared gradient, without the regulariser. snapshots: iterations.
        Errors: ValueError for an update of another model, one with NaN or of length zero, one without the labels that
        the attack needs, and a generator that makes no images of the client's shape from its latents.
        """
        began = time.perf_counter()
        update.check(model)
        search = _Search(self, model, update, seed)
        best = search.run(0, progress, snapshots)
        for start in range(1, self.starts):
            best = keep_better(best, search.run(start, progress, ()))
        return replace(best, seconds=time.perf_counter() - began)

    def _given_labels(self, update: SharedUpdate) -> Tensor:
        """[T, B]. For one image the row-sum rule of iDLG, on whatever the defense left of the gradient."""
        if self.labels == "known":
            if update.labels is None:
                raise ValueError("labels='known' needs labels in the update: share with ThreatModel(labels='known')")
            return update.labels
        return labels.of_update(update, "yin_sum")


class _Search:
    """One update's problem over the latents of all trials: rows [R, B * k]."""

    def __init__(self, attack: GGL, model: nn.Module | Victims, update: SharedUpdate, seed: Seed) -> None:
        self.attack, self.model, self.update, self.seed = attack, model, update, seed
        first = next(iter(update.gradients.values()))
        self.device, self.dtype = first.device, first.dtype
        self.size = (update.batch_size, attack.generator.latent_dim)
        frozen = copy.deepcopy(attack.generator).eval().requires_grad_(False)
        self.generator = frozen.to(self.device, self.dtype)
        self._check_generator()
        self.given = attack._given_labels(update).to(self.device)
        self.soft = update.targets(self.given, first)
        self.observation = Observation(update.as_gradients())
        if update.defense is not None:
            self.observation = update.defense.counter(model, update)
        if attack.distance == "cosine":
            matching.require_direction(self.observation)
        self.everyone = torch.arange(update.trials, device=self.device)

    def _check_generator(self) -> None:
        try:
            with torch.no_grad():
                made = self.generator(torch.zeros(1, self.size[1], device=self.device, dtype=self.dtype))
        except RuntimeError as error:
            raise ValueError(f"the generator takes no latents of its latent_dim={self.size[1]}: {error}") from error
        if made.shape[1:] != self.update.image_shape:
            raise ValueError(
                f"the generator makes images of {tuple(made.shape[1:])}, the client's are {self.update.image_shape}: "
                "use one trained on images of that shape"
            )

    def latents(self, x: Tensor) -> Tensor:
        """[R, B * k] -> what enters the generator, [R, B, k]."""
        z = x.view(-1, *self.size)
        return z.tanh() if self.attack.bound == "tanh" else z

    def images(self, x: Tensor) -> Tensor:
        """[R, B * k] -> [R, B, C, H, W]."""
        made = self.generator(self.latents(x).flatten(0, 1))
        return made.view(len(x), self.size[0], *self.update.image_shape)

    def penalty(self, x: Tensor) -> Tensor | float:
        attack = self.attack
        if attack.regularizer == "none" or not attack.reg_weight:
            return 0.0
        return attack.reg_weight * _REGULARIZERS[attack.regularizer](self.latents(x))

    def compare(self, gradients: dict[str, Tensor], observation: Observation, trials: Tensor) -> Tensor:
        if self.attack.distance == "cosine":
            return matching.cosine(gradients, observation, trials)
        parts = len(gradients) if self.attack.reduction == "mean_tensors" else 1
        return matching.distance(gradients, observation, trials) / parts

    def noise(self, start: int) -> Callable[[Tensor, Tensor], list[dict[str, Tensor]]] | None:
        """The source of a bottleneck's noise, its streams at their beginning; None for a model without one."""
        streams = [generator(self.seed, trial, start, 2) for trial in range(self.update.trials)]
        return matching.dummy_noise(self.model, self.observation, streams, self.update.batch_size)

    def matching(self, start: int) -> Matching:
        return Matching(
            self.model,
            self.observation,
            lambda x, of: (self.images(x), self.soft[of]),
            mode=self.update.threat.mode,
            compare=self.compare,
            local=self.update.local,
            noise=self.noise(start),
            sizes=self.update.sizes,
            order=self.update.order,
        )

    def first(self, start: int) -> Tensor:
        draw = {"zeros": None, "normal": torch.randn, "uniform": torch.rand}[self.attack.start]
        wanted = math.prod(self.size)
        if draw is None:
            return torch.zeros(self.update.trials, wanted, device=self.device, dtype=self.dtype)
        drawn = [draw(wanted, generator=generator(self.seed, t, start)) for t in range(self.update.trials)]
        return torch.stack(drawn).to(self.device, self.dtype)

    def steps(self, distance: Matching, x: Tensor, start: int) -> Iterator[Minimum]:
        """The state after every generation or step."""
        attack = self.attack
        if attack.optimizer == "cma":
            random = [generator(self.seed, trial, start, 1) for trial in range(len(x))]

            def value(x: Tensor, trials: Tensor) -> Tensor:
                return distance.alone(x, trials) + self.penalty(x)

            return cma_es(value, x, attack.iterations, attack.population, attack.sigma0, random)

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

    def run(self, start: int, progress: bool | None, snapshots: Sequence[int]) -> Reconstruction:
        attack, x, wanted, distance = self.attack, self.first(start), set(snapshots), self.matching(start)
        taken = [(0, x.clone(), torch.zeros_like(self.everyone))] if 0 in wanted else []
        bar = tqdm(
            self.steps(distance, x, start),
            total=attack.iterations,
            desc=f"{type(attack).__name__}, {len(x)} trials",
            disable=not (sys.stderr.isatty() if progress is None else progress),
            mininterval=0.5 if sys.stderr.isatty() else 60,
        )
        for iteration, minimum in enumerate(bar, 1):
            if iteration in wanted:
                chosen = minimum.best if attack.iterate == "best" else minimum.last
                taken.append((iteration, chosen.clone(), minimum.evaluations.clone()))
        final = minimum.best if attack.iterate == "best" else minimum.last
        return Reconstruction(
            raw=self.images(final),
            labels=self.given,
            objective=distance.alone(final, self.everyone, self.noise(start)),  # the same noise, whatever was looked at
            evaluations=minimum.evaluations,
            starts=torch.full_like(minimum.evaluations, start + 1),
            diverged=minimum.diverged,
            seconds=0.0,
            history=self._history(taken, distance, start) if taken else None,
            latents=self.latents(final),
        )

    def _history(self, taken: list[tuple[int, Tensor, Tensor]], distance: Matching, start: int) -> History:
        iterations, points, evaluations = zip(*taken, strict=True)
        return History(
            iterations=list(iterations),
            objective=torch.stack([distance.alone(x, self.everyone, self.noise(start)) for x in points]),
            evaluations=torch.stack(evaluations),
            images=torch.stack([self.images(x) for x in points]),
            soft_labels=self.soft.expand(len(points), *self.soft.shape),
        )
