"""Deep Leakage from Gradients: Zhu, Liu and Han, NeurIPS 2019."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from reprolib import settings
from reprolib.attacks import priors
from reprolib.attacks.matching import Matching
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.attacks.search import Search, SearchAttack, Taken, bar
from reprolib.federated.streams import generator
from reprolib.federated.update import SharedUpdate
from reprolib.optimizers import LBFGS, BatchedLBFGS, CyclicLBFGS, Minimum


@dataclass(frozen=True)
class DLG(SearchAttack):
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
    variation prior and pixels held to [0, 1] (Balunovic et al. 2022); the objective then holds the prior too.
    """

    one_gradient = True

    iterations: settings.Count = 1200
    learning_rate: settings.Length = 1.0
    max_iter: settings.Count = 20
    history_size: settings.Count = 100
    tolerance_grad: settings.Level = 1e-7
    tolerance_change: settings.Level = 1e-9
    line_search: Literal["none", "strong_wolfe"] = "none"
    labels: Literal["joint", "known"] = "joint"
    batch_update: Literal["joint", "cyclic"] = "joint"
    init_mean: float = 0.0
    init_std: settings.Level = 1.0
    starts: settings.Count = 1
    restart_above: settings.Level = 1e-4
    iterate: Literal["last", "best"] = "last"
    stop_objective: settings.Level | None = None
    stop_every: settings.Count = 10
    total_variation: settings.Level = 10.0

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

    def search(self, *told: Any) -> Search:
        return _Search(self, *told)

    def given_labels(self, update: SharedUpdate) -> Tensor | None:
        if self.labels == "joint":
            update.require_classes("looking for the labels too")
            return None
        return super().given_labels(update)

    def lbfgs(self) -> LBFGS:
        return LBFGS(
            learning_rate=self.learning_rate,
            max_iter=self.max_iter,
            history_size=self.history_size,
            tolerance_grad=self.tolerance_grad,
            tolerance_change=self.tolerance_change,
            line_search=self.line_search,
        )


class _Search(Search):
    """One chunk's search, over rows of pixels and, where the labels are looked for, their logits.

    A trial that ended high starts anew beside those still on their way: the batch stays full, and a trial's next start
    waits for nobody.
    """

    def objective(self) -> Matching:
        """The matching objective of the chunk's trials, with an image prior where the gradients are noisy."""
        observation = self.observation
        if observation.noise_std == 0:
            return self.matching(0)
        # Gaussian: D / (2 std^2) + prior; Laplacian: D / b + prior, with b = std / sqrt(2)
        gaussian = observation.law == "gaussian"
        unit = 2 * observation.noise_std**2 if gaussian else observation.noise_std / math.sqrt(2)

        def prior(images: Tensor, rows: Tensor) -> Tensor:
            smooth = self.attack.total_variation * priors.squared_total_variation(images)
            return unit * (smooth + BOX_WEIGHT * priors.outside_box(images))

        return self.matching(0, prior=prior)

    def parts(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.soft is not None:
            return super().parts(x, rows)
        return self.images(x), x[:, self.pixels :].view(-1, self.batch_shape[0], self.update.num_classes).softmax(-1)

    def lowest(self, progress: bool | None, snapshots: Sequence[int]) -> Reconstruction:
        """Every trial's starts, from dummies drawn for (seed, trial, start); the lowest objective of each."""
        attack, wanted, taken = self.attack, set(snapshots), list[Taken]()
        x = self._dummies(torch.zeros_like(self.trials), torch.arange(len(self.trials)))
        optimizer: BatchedLBFGS | CyclicLBFGS
        if attack.batch_update == "joint" or self.update.batch_size == 1:
            optimizer = BatchedLBFGS(self.objective(), x, attack.lbfgs())
        else:
            blocks = self._columns_of_each_image(x)
            optimizer = CyclicLBFGS(self.objective(), x, blocks, attack.lbfgs())
        minimum = optimizer.minimum
        kept, age, start = _Ended.none(x), torch.zeros_like(minimum.evaluations), torch.zeros_like(minimum.evaluations)
        shown = bar(None, attack, len(x), progress)
        iteration, alive = 0, optimizer.alive
        running = torch.ones_like(alive)  # a trial whose starts are not used up
        while True:
            if iteration in wanted:  # of the first start; trials that have ended it stay in the picture as they are
                taken.append(kept.first(iteration, minimum, start))
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
                shown.update()
                shown.set_postfix(live=int(alive.sum()), best=f"{minimum.best_objective.min():.1e}", refresh=False)
            iteration += 1
        shown.close()
        images, soft_labels = self.parts(kept.x, self.everyone)
        return Reconstruction(
            raw=images,
            labels=soft_labels.argmax(-1) if self.given is None else self.given,
            objective=kept.objective,
            evaluations=minimum.evaluations,
            starts=start + 1,
            diverged=kept.diverged,
            seconds=0.0,
            history=self.history(taken, 0),
            inputs=self.inputs,
        )

    def _dummies(self, starts: Tensor, rows: Tensor) -> Tensor:
        """[R, N] for the chunk's trials `rows`: the batch's pixels, then its label logits where these are optimised."""
        numbers = zip(self.trials[rows].tolist(), starts.tolist(), strict=True)
        logits = [] if self.soft is not None else [self.batch_shape[0] * self.update.num_classes]
        x = self.drawn([generator(self.seed, *number) for number in numbers], self.pixels, *logits)
        x[:, : self.pixels].mul_(self.attack.init_std).add_(self.attack.init_mean)
        return x

    def _columns_of_each_image(self, x: Tensor) -> list[Tensor]:
        columns = torch.arange(x.shape[1], device=self.device)
        parts = [columns[: self.pixels], columns[self.pixels :]]
        chunks = [part.chunk(self.batch_shape[0]) for part in parts if len(part)]
        return [torch.cat(own) for own in zip(*chunks, strict=True)]


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

    def first(self, iteration: int, minimum: Minimum, start: Tensor) -> Taken:
        """A snapshot of where each trial's first start is, or ended."""
        on = start == 0
        points = (minimum.last, minimum.objective, minimum.evaluations)
        x, objective, evaluations = (
            torch.where(on.view(-1, *[1] * (now.ndim - 1)), now, kept)
            for kept, now in zip(self.first_end, points, strict=True)
        )
        return iteration, x, evaluations, objective


BOX_WEIGHT = 1e3
"""Of pixels outside [0, 1] against noise: a pixel 0.03 outside costs as much as one nat of likelihood."""
