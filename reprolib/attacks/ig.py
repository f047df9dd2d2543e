"""Inverting Gradients: Geiping, Bauermeister, Dröge and Moeller, NeurIPS 2020."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from reprolib import models
from reprolib.attacks import labels, matching, priors
from reprolib.attacks.matching import Matching
from reprolib.attacks.reconstruction import History, Reconstruction, join, keep_better
from reprolib.federated.observation import Observation
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import LBFGS, Minimum, adam, lbfgs, rows_that_fit, signed_adam

_OFFICIAL = (2.667, 1.6, 1.142)  # of the released code: the learning rate falls at T over these, rounded down


@dataclass(frozen=True)
class InvertingGradients:
    """Find the images whose gradient points in the direction of the one that was shared.

    Minimises 1 - cos(g', g) + total_variation * TV(x) by Adam on the sign of its gradient, in the victim's normalised
    space and inside the box of valid pixels (equation 4). Updates of several local steps are
    matched by differentiating through the client's training. The defaults are the paper's for CIFAR-10.

    iterations, learning_rate: of Adam; the rate falls tenfold three times, at the `milestones`: "official" as the code
    rounds them, "exact" at 3/8, 5/8 and 7/8, or "none". total_variation: its weight, in normalised units.
    objective: "cosine", or "euclidean" for the sum of squares. optimizer: "adam", or "lbfgs" with torch's defaults, as
    the paper's baseline has it: then `iterations` are outer steps of up to 20, and learning_rate, signed, boxed and
    milestones are not used. signed, boxed: as above, or plain Adam, or no box.
    labels: "known" takes the update's, "inferred" reads them off the last layer (`labels.of_update`). starts: normal
    draws, of which the smallest distance wins, which the attacker sees. iterate: return the "last" iterate, as the code
    does, or the "best".

    A bottleneck's noise is drawn anew in every iteration, as the public code does, unless the defense is known: then as
    its `counter` says. Noise that is optimised too starts normal, moves by the same steps and has no box.
    """

    iterations: int = 4800
    learning_rate: float = 0.1
    total_variation: float = 0.01
    objective: Literal["cosine", "euclidean"] = "cosine"
    optimizer: Literal["adam", "lbfgs"] = "adam"
    signed: bool = True
    boxed: bool = True
    milestones: Literal["official", "exact", "none"] = "official"
    labels: Literal["known", "inferred"] = "known"
    starts: int = 1
    iterate: Literal["last", "best"] = "last"

    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "objective": ("cosine", "euclidean"),
        "optimizer": ("adam", "lbfgs"),
        "milestones": ("official", "exact", "none"),
        "labels": ("known", "inferred"),
        "iterate": ("last", "best"),
    }

    @classmethod
    def official(cls) -> InvertingGradients:
        """The settings of the released baseline script for CIFAR-10: total variation 1e-4."""
        return cls(total_variation=1e-4)

    @classmethod
    def paper(cls) -> InvertingGradients:
        """The paper's settings for CIFAR-10: 4,800 iterations, total variation 0.01 for the untrained LeNet."""
        return cls()

    @classmethod
    def local_steps(cls) -> InvertingGradients:
        """The released notebook's settings for one image and five local steps."""
        return cls(iterations=8000, total_variation=1e-6)

    @classmethod
    def baseline(cls) -> InvertingGradients:
        """The paper's "Euclidean loss + L-BFGS": DLG with the label given, as its Table 1 compares it; no prior.

        The released script leaves its total variation of 1e-4 on for this row too.
        """
        return cls(iterations=500, learning_rate=1.0, total_variation=0.0, objective="euclidean", optimizer="lbfgs")

    def __post_init__(self) -> None:
        for name, known in self._known.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, known))}")
        for name in ("iterations", "starts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "total_variation"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a finite number of at least 0")

    def schedule(self) -> tuple[int, ...]:
        """The iterations at which the learning rate falls tenfold."""
        if self.milestones == "none":
            return ()
        if self.milestones == "exact":
            return tuple(self.iterations * eighths // 8 for eighths in (3, 5, 7))
        return tuple(int(self.iterations // part) for part in _OFFICIAL)

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial of the update; arguments as `attacks.DLG`'s.

        objective of the result: the distance to the shared gradient, without the prior. snapshots: iterations.
        Errors: ValueError for an update of another model, one with NaN or of length zero, and one without the labels
        that the attack needs.
        """
        began = time.perf_counter()
        update.check(model)
        given = self._given_labels(update)
        observation = Observation(update.as_gradients())
        if update.defense is not None:
            observation = update.defense.counter(model, update)
        if self.objective == "cosine":
            matching.require_direction(observation)
        problem = _Problem(self, model, update, observation, given, seed)
        chunk, runs = update.trials, []
        if self.optimizer == "lbfgs":
            variables = update.batch_size * math.prod(update.image_shape)
            first = next(iter(observation.target.values()))
            chunk = rows_that_fit(first.new_empty(variables), LBFGS().history_size)
        for rows in torch.arange(update.trials).split(chunk):
            best = problem.run(0, rows, progress, snapshots)
            for start in range(1, self.starts):
                best = keep_better(best, problem.run(start, rows, progress, ()))
            runs.append(best)
        return join(runs, time.perf_counter() - began)

    def _given_labels(self, update: SharedUpdate) -> Tensor:
        """[T, B]."""
        if self.labels == "known":
            if update.labels is None:
                raise ValueError("labels='known' needs labels in the update: share with ThreatModel(labels='known')")
            return update.labels
        return labels.of_update(update)


class _Problem:
    """One update's matching problem in the victim's normalised space."""

    def __init__(
        self,
        attack: InvertingGradients,
        model: nn.Module | Victims,
        update: SharedUpdate,
        observation: Observation,
        given: Tensor,
        seed: Seed,
    ) -> None:
        self.attack, self.model, self.update, self.observation, self.seed = attack, model, update, observation, seed
        first = next(iter(update.gradients.values()))
        self.device, self.dtype = first.device, first.dtype
        self.given = given.to(self.device)
        self.soft = update.targets(self.given, first)
        network = Victims.of(model).skeleton
        self.mean = network.mean.to(self.device, self.dtype)
        self.std = network.std.to(self.device, self.dtype)
        self.pixels = update.batch_size * math.prod(update.image_shape)
        # behind the pixels, where the attacker looks for the bottleneck's noise too: its buffers, one after the other
        self.bottleneck = models.noise_shapes(network)
        joint = self.bottleneck if observation.noise == "joint" else {}
        self.noise_shapes = {name: (update.batch_size, *shape) for name, shape in joint.items()}

    def images(self, x: Tensor) -> Tensor:
        """[R, N] normalised -> [R, B, C, H, W] in pixels."""
        return x[:, : self.pixels].view(-1, self.update.batch_size, *self.update.image_shape) * self.std + self.mean

    def joint_noise(self, x: Tensor, trials: Tensor) -> list[dict[str, Tensor]]:
        """The noise of the bottlenecks among the variables: a single pass, as `matching.dummy_noise` gives it."""
        parts = x[:, self.pixels :].split([math.prod(shape) for shape in self.noise_shapes.values()], 1)
        named = zip(self.noise_shapes.items(), parts, strict=True)
        return [{name: part.view(-1, *shape) for (name, shape), part in named}]

    def matching(self, rows: Tensor, prior: Callable[[Tensor, Tensor], Tensor] | None) -> Matching:
        chosen = rows.to(self.device)
        observation = self.observation.select(chosen)
        return Matching(
            Victims.of(self.model).select(chosen),
            observation,
            lambda x, of: (self.images(x), self.soft[chosen][of]),
            prior,
            self.update.threat.mode,
            matching.cosine if self.attack.objective == "cosine" else matching.distance,
            self.update.local,
            noise=self.noise(rows),
            sizes=self.update.sizes,
            order=None if self.update.order is None else self.update.order[chosen],
        )

    def noise(self, rows: Tensor) -> Callable[[Tensor, Tensor], list[dict[str, Tensor]]] | None:
        """The source of a bottleneck's noise, its streams at their beginning; None for a model without one."""
        if not self.bottleneck:
            return None
        if self.noise_shapes:
            return self.joint_noise
        streams = [generator(self.seed, trial, 0, 1) for trial in rows.tolist()]
        observation = self.observation.select(rows.to(self.device))
        return matching.dummy_noise(self.model, observation, streams, self.update.batch_size)

    def prior(self, images: Tensor, trials: Tensor) -> Tensor:
        return self.attack.total_variation * priors.total_variation((images - self.mean) / self.std)

    def inside(self, x: Tensor) -> Tensor:
        pixels = x[:, : self.pixels].view(len(x), self.update.batch_size, *self.update.image_shape)
        pixels = pixels.clamp((0 - self.mean) / self.std, (1 - self.mean) / self.std).view(len(x), -1)
        return torch.cat([pixels, x[:, self.pixels :]], 1) if self.noise_shapes else pixels

    def start(self, start: int, rows: Tensor) -> Tensor:
        sizes = [self.pixels, *(math.prod(shape) for shape in self.noise_shapes.values())]
        draws = []
        for trial in rows.tolist():
            random = generator(self.seed, trial, start)
            draws.append(torch.cat([torch.randn(size, generator=random) for size in sizes]))
        return torch.stack(draws).to(self.device, self.dtype)

    def steps(self, objective: Matching, x: Tensor) -> Iterator[Minimum]:
        """The state after every iteration, or after every outer step of L-BFGS."""
        attack = self.attack
        if attack.optimizer == "lbfgs":
            return lbfgs(objective, x, attack.iterations)
        return (signed_adam if attack.signed else adam)(
            objective,
            x,
            attack.iterations,
            attack.learning_rate,
            milestones=attack.schedule(),
            project=self.inside if attack.boxed else (lambda y: y),
        )

    def run(self, start: int, rows: Tensor, progress: bool | None, snapshots: Sequence[int]) -> Reconstruction:
        attack, x, wanted = self.attack, self.start(start, rows), set(snapshots)
        objective = self.matching(rows, self.prior if attack.total_variation else None)
        run = self.steps(objective, x)
        bar = tqdm(
            run,
            total=attack.iterations,
            desc=f"{type(attack).__name__}, {len(rows)} trials",
            disable=not (sys.stderr.isatty() if progress is None else progress),
            mininterval=0.5 if sys.stderr.isatty() else 60,
        )
        everyone, noise = torch.arange(len(rows), device=self.device), self.noise(rows)
        taken = [(0, x.clone(), objective.alone(x, everyone, noise), torch.zeros_like(everyone))] if 0 in wanted else []
        for iteration, minimum in enumerate(bar, 1):
            if iteration in wanted:
                value = objective.alone(minimum.last, everyone, noise)
                taken.append((iteration, minimum.last.clone(), value, minimum.evaluations.clone()))
        final = minimum.best if attack.iterate == "best" else minimum.last
        return Reconstruction(
            raw=self.images(final),
            labels=self.given[rows.to(self.device)],
            objective=objective.alone(final, everyone, self.noise(rows)),  # the same noise, whatever was looked at
            evaluations=minimum.evaluations,
            starts=torch.full_like(minimum.evaluations, start + 1),
            diverged=minimum.diverged,
            seconds=0.0,
            history=self._history(taken, rows) if taken else None,
        )

    def _history(self, taken: list[tuple[int, Tensor, Tensor, Tensor]], rows: Tensor) -> History:
        iterations, points, values, evaluations = zip(*taken, strict=True)
        soft = self.soft[rows.to(self.device)]
        return History(
            iterations=list(iterations),
            objective=torch.stack(values),
            evaluations=torch.stack(evaluations),
            images=torch.stack([self.images(x) for x in points]),
            soft_labels=soft.expand(len(points), *soft.shape),
        )
