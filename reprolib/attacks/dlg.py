"""Deep Leakage from Gradients: Zhu, Liu and Han, NeurIPS 2019."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from reprolib.attacks import matching, priors
from reprolib.attacks.matching import Matching
from reprolib.attacks.reconstruction import History, Reconstruction, join
from reprolib.federated.observation import Observation
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import LBFGS, BatchedLBFGS, CyclicLBFGS, Minimum, rows_that_fit


@dataclass(frozen=True)
class DLG:
    """Find dummy images and labels whose gradient is the one that was shared.

    Minimises D(x', u) = sum over parameters of |dl(F(x'), softmax(u))/dW - g|^2 with L-BFGS, from x' and u ~ N(0, 1)
    (Algorithm 1 and equation 4; hyper-parameters of section 4). A trial is one update; every trial is optimised by
    itself, all of them at once. The defaults are the paper's; `official()` is what its public code runs.

    iterations: outer L-BFGS steps of up to `max_iter` iterations each; learning_rate to line_search: as `LBFGS`.
    labels: "joint" optimises them with the images; "known" takes the update's (the code's first release).
    batch_update: in a batch, "joint" moves all images together, "cyclic" one image an outer step, each with an
    optimiser of its own (section 3.3; how this combines with L-BFGS the paper leaves open).
    init_mean, init_std: of the dummy images' pixels; the paper's are 0 and 1.
    starts: dummy images tried at most; the next is drawn only while the objective is above `restart_above`, and the
    smallest objective wins, which the attacker sees. iterate: return the "last" iterate or the "best" by objective;
    a trial that diverges returns its last finite or its best one.
    stop_objective: end a trial below it, looked at after every `stop_every`-th outer step, counted from 0.
    total_variation: the weight of the image prior against a noisy update, in units of the noise's variance.

    If the update grants the defense (`ThreatModel(defense_known=True)`), dummy gradients are compared with the
    defense's `counter`: the same attack, adapted. Against noise that is the maximum a posteriori with a total
    variation prior and pixels held to [0, 1] (Balunovic et al. 2022).
    """

    iterations: int = 1200
    learning_rate: float = 1.0
    max_iter: int = 20
    history_size: int = 100
    tolerance_grad: float = 1e-7
    tolerance_change: float = 1e-9
    line_search: Literal["none", "strong_wolfe"] = "none"
    labels: Literal["joint", "known"] = "joint"
    batch_update: Literal["joint", "cyclic"] = "joint"
    init_mean: float = 0.0
    init_std: float = 1.0
    starts: int = 1
    restart_above: float = 1e-4
    iterate: Literal["last", "best"] = "last"
    stop_objective: float | None = None
    stop_every: int = 10
    total_variation: float = 10.0

    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "labels": ("joint", "known"),
        "batch_update": ("joint", "cyclic"),
        "iterate": ("last", "best"),
    }

    @classmethod
    def official(cls) -> DLG:
        """The settings of the public code's final version: 300 outer steps, joint labels, no stop rule."""
        return cls(iterations=300)

    @classmethod
    def paper(cls) -> DLG:
        """The settings of the paper's text: 1,200 iterations, taken as outer steps."""
        return cls()

    @classmethod
    def first_release(cls) -> DLG:
        """The public code of December 2019: the true label is given, only the image is optimised."""
        return cls(iterations=300, labels="known")

    @classmethod
    def stable(cls) -> DLG:
        """Near-grey starts, and new ones while the objective stays high: hardly fails on unlucky networks.

        A start that is thrown out of the image range ends within some 150 evaluations, a tenth of a success: under
        networks that throw out most starts, sixteen of them cost little. An objective of 1e-6 is an MSE below 1e-3
        under nearly all drawn networks; 1e-5 is not.
        """
        return cls(
            iterations=175, init_mean=0.5, init_std=0.1, starts=16, iterate="best", stop_objective=1e-6, stop_every=1
        )

    def __post_init__(self) -> None:
        for name, known in self._known.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, known))}")
        for name in ("iterations", "starts", "stop_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        self._optimizer_settings()

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial of the update.

        model: the victim, or victims with one for each trial.
        progress: True shows a bar, False none; None shows one in a terminal. snapshots: outer iterations after which
        `history` keeps the dummies (of each trial's first start). Trial t's numbers depend on (seed, t) alone.
        Errors: ValueError for an update of another model, one with NaN, one without the labels that the attack needs,
        and one of several local steps, because this attack matches a single gradient.
        """
        began = time.perf_counter()
        update.check(model)
        update.require_one_gradient(type(self).__name__)
        given = self._given_labels(update)
        observation = Observation(update.as_gradients())
        if update.defense is not None:
            observation = update.defense.counter(model, update)
        variables = update.batch_size * (math.prod(update.image_shape) + update.num_classes)
        chunk = rows_that_fit(next(iter(update.gradients.values())).new_empty(variables), self.history_size)
        runs = []
        for first in range(0, update.trials, chunk):
            trials = torch.arange(first, min(first + chunk, update.trials))
            search = _Search(self, model, update, observation, given, seed, trials)
            runs.append(search.run(progress, snapshots))
        return join(runs, time.perf_counter() - began)

    def _given_labels(self, update: SharedUpdate) -> Tensor | None:
        """[T, B] labels that are not optimised, or None."""
        if self.labels == "joint":
            update.require_classes("looking for the labels too")
            return None
        if update.labels is None:
            raise ValueError("labels='known' needs labels in the update: share with ThreatModel(labels='known')")
        return update.labels

    def _optimizer_settings(self) -> LBFGS:
        return LBFGS(
            learning_rate=self.learning_rate,
            max_iter=self.max_iter,
            history_size=self.history_size,
            tolerance_grad=self.tolerance_grad,
            tolerance_change=self.tolerance_change,
            line_search=self.line_search,
        )


class _Search:
    """One chunk's matching problem and the search for all its trials.

    A trial that ended high starts anew beside those still on their way: the batch stays full, and a trial's next start
    waits for nobody.
    """

    def __init__(
        self,
        attack: DLG,
        model: nn.Module | Victims,
        update: SharedUpdate,
        observation: Observation,
        given: Tensor | None,
        seed: Seed,
        trials: Tensor,
    ) -> None:
        self.attack, self.update, self.seed, self.trials = attack, update, seed, trials
        first = next(iter(update.gradients.values()))
        self.device, self.dtype = first.device, first.dtype
        self.pixels = update.batch_size * math.prod(update.image_shape)
        self.given = given
        if given is not None:
            self.given = update.targets(given[trials.to(given.device)].to(self.device), first)
        chosen = trials.to(self.device)
        self.observation = observation.select(chosen)
        self.model = Victims.of(model).select(chosen)

    def _objective(self) -> Matching:
        """The matching objective of the chunk's trials, with an image prior where the gradients are noisy."""
        attack, observation, model, parts = self.attack, self.observation, self.model, self._parts
        mode = self.update.threat.mode
        streams = [generator(self.seed, trial, 0, 1) for trial in self.trials.tolist()]
        noise = matching.dummy_noise(model, observation, streams, self.update.batch_size)
        if observation.noise_std == 0:
            return Matching(model, observation, parts, mode=mode, noise=noise, sizes=self.update.sizes)
        # Gaussian: D / (2 std^2) + prior; Laplacian: D / b + prior, with b = std / sqrt(2)
        gaussian = observation.law == "gaussian"
        unit = 2 * observation.noise_std**2 if gaussian else observation.noise_std / math.sqrt(2)

        def prior(images: Tensor, trials: Tensor) -> Tensor:
            smooth = attack.total_variation * priors.squared_total_variation(images)
            return unit * (smooth + BOX_WEIGHT * priors.outside_box(images))

        return Matching(model, observation, parts, prior, mode, noise=noise, sizes=self.update.sizes)

    def run(self, progress: bool | None, snapshots: Sequence[int]) -> Reconstruction:
        """Every trial's starts, from dummies drawn for (seed, trial, start); the lowest objective of each."""
        attack, wanted, taken = self.attack, set(snapshots), []
        x = self._dummies(torch.zeros_like(self.trials), torch.arange(len(self.trials)))
        if attack.batch_update == "joint" or self.update.batch_size == 1:
            optimizer = BatchedLBFGS(self._objective(), x, attack._optimizer_settings())
        else:
            blocks = self._columns_of_each_image(x)
            optimizer = CyclicLBFGS(self._objective(), x, blocks, attack._optimizer_settings())
        minimum = optimizer.minimum
        kept, age, start = _Ended.none(x), torch.zeros_like(minimum.evaluations), torch.zeros_like(minimum.evaluations)
        bar = tqdm(
            desc=f"{type(attack).__name__}, {len(x)} trials",
            unit=" steps",
            disable=not (sys.stderr.isatty() if progress is None else progress),
            mininterval=0.5 if sys.stderr.isatty() else 60,
        )
        iteration, alive = 0, optimizer.alive
        running = torch.ones_like(alive)  # a trial whose starts are not used up
        while True:
            if iteration in wanted:  # of the first start; trials that have ended it stay in the picture as they are
                taken.append((iteration, *kept.first(minimum, start)))
            while (ended := running & ~alive).any():
                kept.settle(ended, minimum, start, attack.iterate)
                high = ended & (~(kept.objective <= attack.restart_above) | kept.diverged) & (start + 1 < attack.starts)
                running &= ~ended | high
                if high.any():
                    again = high.nonzero()[:, 0]
                    start[again] += 1
                    age[again] = 0
                    optimizer.restart(again, self._dummies(start[again].cpu(), again.cpu()))
                    alive = optimizer.alive
            if not running.any() and not any(iteration < late for late in wanted):
                break
            if running.any():
                optimizer.step()
                age += alive
                if attack.stop_objective is not None:
                    due = alive & ((age - 1) % attack.stop_every == 0)
                    optimizer.stop((due & (minimum.objective < attack.stop_objective)).nonzero()[:, 0])
                optimizer.stop((age >= attack.iterations).nonzero()[:, 0])
                optimizer.compact()
                alive = optimizer.alive
                bar.update()
                bar.set_postfix(live=int(alive.sum()), best=f"{minimum.best_objective.min():.1e}", refresh=False)
            iteration += 1
        bar.close()
        images, soft_labels = self._parts(kept.x, torch.arange(len(x), device=self.device))
        return Reconstruction(
            raw=images,
            labels=soft_labels.argmax(-1),
            objective=kept.objective,
            evaluations=minimum.evaluations,
            starts=start + 1,
            diverged=kept.diverged,
            seconds=0.0,
            history=self._history(taken) if taken else None,
        )

    def _dummies(self, starts: Tensor, rows: Tensor) -> Tensor:
        """[R, N] for the chunk's trials `rows`: the batch's pixels, then its label logits where these are optimised."""
        dummies = []
        for trial, start in zip(self.trials[rows].tolist(), starts.tolist(), strict=True):
            random = generator(self.seed, trial, start)
            pixels = self.attack.init_mean + self.attack.init_std * torch.randn(self.pixels, generator=random)
            logits = torch.randn(self.update.batch_size * self.update.num_classes, generator=random)
            dummies.append(pixels if self.given is not None else torch.cat([pixels, logits]))
        return torch.stack(dummies).to(self.device, self.dtype)

    def _parts(self, x: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
        """[R, N] -> images [R, B, C, H, W] and soft labels [R, B, K]."""
        images = x[:, : self.pixels].view(-1, self.update.batch_size, *self.update.image_shape)
        if self.given is not None:
            return images, self.given[trials]
        return images, x[:, self.pixels :].view(-1, self.update.batch_size, self.update.num_classes).softmax(-1)

    def _columns_of_each_image(self, x: Tensor) -> list[Tensor]:
        columns = torch.arange(x.shape[1], device=self.device)
        pixels = columns[: self.pixels].chunk(self.update.batch_size)
        if self.given is not None:
            return list(pixels)
        logits = columns[self.pixels :].chunk(self.update.batch_size)
        return [torch.cat(pair) for pair in zip(pixels, logits, strict=True)]

    def _history(self, taken: list[tuple[int, Tensor, Tensor, Tensor]]) -> History:
        everyone = torch.arange(len(taken[0][1]), device=self.device)
        iterations, points, objectives, evaluations = zip(*taken, strict=True)
        states = [self._parts(x, everyone) for x in points]
        return History(
            iterations=list(iterations),
            objective=torch.stack(objectives),
            evaluations=torch.stack(evaluations),
            images=torch.stack([images for images, _ in states]),
            soft_labels=torch.stack([soft for _, soft in states]),
        )


@dataclass(eq=False)
class _Ended:
    """The lowest end of each trial's starts so far, x [T, N], objective and diverged [T]; and how the first ended."""

    x: Tensor
    objective: Tensor
    diverged: Tensor
    first_end: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def none(cls, x: Tensor) -> _Ended:
        infinite, count = x.new_full(x.shape[:1], math.inf), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return cls(x.clone(), infinite, torch.ones_like(count, dtype=torch.bool), (x.clone(), infinite.clone(), count))

    def settle(self, ended: Tensor, minimum: Minimum, start: Tensor, iterate: str) -> None:
        """Note the trials whose current start has ended."""
        points = (minimum.last, minimum.objective, minimum.evaluations)
        for kept, now in zip(self.first_end, points, strict=True):
            kept[ended & (start == 0)] = now[ended & (start == 0)]
        x = minimum.best if iterate == "best" else minimum.last
        objective = minimum.best_objective if iterate == "best" else minimum.objective
        lower = objective.masked_fill(minimum.diverged, math.inf) < self.objective.masked_fill(self.diverged, math.inf)
        lower = ended & (lower | (start == 0))
        self.x[lower], self.objective[lower], self.diverged[lower] = x[lower], objective[lower], minimum.diverged[lower]

    def first(self, minimum: Minimum, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each trial's first start is, or ended: points, objectives, evaluations."""
        on = start == 0
        points = (minimum.last, minimum.objective, minimum.evaluations)
        x, *rest = (
            torch.where(on.view(-1, *[1] * (now.ndim - 1)), now, kept)
            for kept, now in zip(self.first_end, points, strict=True)
        )
        return (x, *rest)


BOX_WEIGHT = 1e3
"""Of pixels outside [0, 1] against noise: a pixel 0.03 outside costs as much as one nat of likelihood."""
