"""HCGLA: masked gradients matched from a generated start. Yang, Ge, Xiang and Li, TIFS 2023."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from reprolib import models
from reprolib.attacks.matching import Matching
from reprolib.attacks.reconstruction import History, Reconstruction
from reprolib.federated.closed_form import rows_of_labels
from reprolib.federated.observation import Observation
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import LBFGS, lbfgs


@dataclass(frozen=True)
class HCGLA:
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
    iterations: int = 42
    learning_rate: float = 0.01
    max_iter: int = 20
    history_size: int = 100
    iterate: Literal["last", "best"] = "last"

    _known: ClassVar[dict[str, tuple[str, ...]]] = {
        "start": ("generated", "mean_of_rows", "random"),
        "mask": ("all", "head", "none"),
        "iterate": ("last", "best"),
    }

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
        for name, known in self._known.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(map(repr, known))}")
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise ValueError(f"iterations={self.iterations!r}: expected an integer of at least 0")
        if (self.generator is None) != (self.start == "random"):
            raise ValueError(f"start={self.start!r} goes {'without' if self.start == 'random' else 'with'} a generator")
        self._settings()

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial; arguments as `attacks.DLG`'s. With 0 iterations: the start itself.

        objective of the result: the masked distance. Errors: ValueError for an update of another model, one with NaN,
        of several local steps or without labels, a generator of other features, images or trunk, and for
        "mean_of_rows" on a batch.
        """
        began = time.perf_counter()
        update.check(model)
        self._check(model, update)
        x = self.first(update, seed)
        objective = self._objective(model, update)
        everyone = torch.arange(update.trials, device=x.device)
        value = objective(x, everyone)[0]
        wanted, taken = set(snapshots), [(0, x.clone(), value, torch.zeros_like(everyone))] if 0 in snapshots else []
        final, value, spent, diverged = x, value, torch.zeros_like(everyone), torch.zeros_like(everyone).bool()
        if self.iterations:
            bar = tqdm(
                lbfgs(objective, x, self.iterations, self._settings()),
                total=self.iterations,
                desc=f"HCGLA, {len(x)} trials",
                disable=not (sys.stderr.isatty() if progress is None else progress),
                mininterval=0.5 if sys.stderr.isatty() else 60,
            )
            for iteration, minimum in enumerate(bar, 1):
                if iteration in wanted:
                    now = minimum.last.clone(), minimum.objective.clone(), minimum.evaluations.clone()
                    taken.append((iteration, *now))
            best = self.iterate == "best"
            final = minimum.best if best else minimum.last
            value = minimum.best_objective if best else minimum.objective
            spent, diverged = minimum.evaluations, minimum.diverged
        return Reconstruction(
            raw=final.view(update.trials, update.batch_size, *update.image_shape),
            labels=update.labels,
            objective=value,
            evaluations=spent,
            starts=torch.ones_like(spent),
            diverged=diverged,
            seconds=time.perf_counter() - began,
            history=self._history(update, taken) if taken else None,
            lost=(rows_of_labels(update.of_the_head()[0], update.labels) == 0).all(2),
        )

    def first(self, update: SharedUpdate, seed: Seed) -> Tensor:
        """The images that the search starts from: [T, B * C * H * W]."""
        weight, _ = update.of_the_head()
        if self.start == "random":
            pixels = update.batch_size * math.prod(update.image_shape)
            drawn = [torch.randn(pixels, generator=generator(seed, trial, 0)) for trial in range(update.trials)]
            return torch.stack(drawn).to(weight)
        rows = rows_of_labels(weight, update.labels) if self.start == "generated" else weight
        network = copy.deepcopy(self.generator).to(rows.device)
        with torch.no_grad():
            images = torch.stack([network(own) for own in rows])
        if self.start == "mean_of_rows":
            images = images.mean(1, keepdim=True)
        return images.flatten(1)

    def _settings(self) -> LBFGS:
        return LBFGS(learning_rate=self.learning_rate, max_iter=self.max_iter, history_size=self.history_size)

    def _objective(self, model: nn.Module | Victims, update: SharedUpdate) -> Matching:
        observation = Observation(update.as_gradients(), weight=self._support(update))
        if update.defense is not None:
            observation = update.defense.counter(model, update)
        soft = update.targets(update.labels, next(iter(observation.target.values())))
        shape = (update.batch_size, *update.image_shape)
        mode, sizes = update.threat.mode, update.sizes
        return Matching(model, observation, lambda x, of: (x.view(-1, *shape), soft[of]), mode=mode, sizes=sizes)

    def _support(self, update: SharedUpdate) -> dict[str, Tensor] | None:
        """1 where the shared gradient is not zero, of the tensors that the mask covers."""
        g = update.gradients
        names = {"all": list(g), "head": ["head.weight"], "none": []}[self.mask]
        return {name: (g[name] != 0).to(g[name]) for name in names} or None

    def _check(self, model: nn.Module | Victims, update: SharedUpdate) -> None:
        update.require_one_gradient("HCGLA")
        if update.labels is None:
            raise ValueError("HCGLA is given the labels: share with ThreatModel(labels='known')")
        if self.start == "mean_of_rows" and update.batch_size > 1:
            raise ValueError(f"start='mean_of_rows' is for single images, this update's batch_size={update.batch_size}")
        if self.generator is not None:
            models.check_inverse(self.generator, model, update.image_shape, "generator")

    def _history(self, update: SharedUpdate, taken: list[tuple[int, Tensor, Tensor, Tensor]]) -> History:
        iterations, points, values, evaluations = zip(*taken, strict=True)
        soft = update.targets(update.labels, points[0])
        shape = (update.trials, update.batch_size, *update.image_shape)
        return History(
            iterations=list(iterations),
            objective=torch.stack(values),
            evaluations=torch.stack(evaluations),
            images=torch.stack([x.view(shape) for x in points]),
            soft_labels=soft.expand(len(points), *soft.shape),
        )
