"""What the attacks that search share: the update as they read it, points, bar, snapshots, starts and the result.

An attack's own file holds its settings, its objective and its steps.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from reprolib import settings
from reprolib.attacks import labels, matching
from reprolib.attacks.matching import Matching
from reprolib.attacks.reconstruction import History, Reconstruction, check_call, join, keep_better
from reprolib.federated.observation import Observation
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import LBFGS, Minimum, rows_that_fit

Taken = tuple[int, Tensor, Tensor, Tensor | None]
"""A snapshot: iteration, points [R, N], evaluations [R], and the objective [R] where the search had it."""


class SearchAttack:
    """Base of the attacks that search: a frozen dataclass of settings, with what it asks of the update and its search.

    rules: how its `labels` are read off the last layer, setting -> a rule of `labels.infer_counts`; "known" takes the
    update's. one_gradient: it refuses updates of several local steps. starts, iterate: how many searches a trial gets,
    of which the lowest wins, and whether a search returns its "last" point or the "best"; fields, where an attack has a
    choice. iterations: the steps of a search at most.
    Errors: ValueError for settings outside their ranges, and TypeError for an attack that lacks one of these.
    """

    rules: ClassVar[dict[str, str]] = {}
    one_gradient: ClassVar[bool] = False
    labels: str
    iterations: int
    starts = 1
    iterate = "last"

    def __post_init__(self) -> None:
        settings.check(self)
        mine = type(self)
        if missing := [name for name in ("labels", "iterations") if not hasattr(self, name)]:
            raise TypeError(f"{mine.__name__} searches, and needs {' and '.join(missing)}: a field or an attribute")
        if mine.search is SearchAttack.search:
            raise TypeError(f"{mine.__name__} needs a method search(self, *told) that returns a Search(self, *told)")
        reads = mine.given_labels is SearchAttack.given_labels
        if reads and self.labels != "known" and self.labels not in self.rules:
            raise TypeError(
                f"{mine.__name__} has no rule for labels={self.labels!r}: rules = {{{self.labels!r}: 'yin_sum'}}, or "
                f"another of {', '.join(labels.COUNT_RULES)}, or a method given_labels"
            )
        if self.iterate not in ("last", "best"):
            raise TypeError(f"{mine.__name__}.iterate must be 'last' or 'best', got {self.iterate!r}")

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial of the update, all trials at once.

        model: the victim, or victims with one for each trial. Trial t's numbers depend on (seed, t) alone.
        progress: True shows a bar, False none; None shows one in a terminal. snapshots: iterations after which
        `history` keeps where the first start is; 0 is the start itself, and one that has ended stays where it is.
        objective of the result: the distance to the shared gradient alone, as the attack measures it.
        Errors: ValueError for an update of another model, one with NaN, one without the labels that the attack needs,
        and what else the attack cannot do.
        """
        began = time.perf_counter()
        snapshots = check_call(update, snapshots)
        runs = [search.lowest(progress, snapshots) for search in self.searches(model, update, seed)]
        return join(runs, time.perf_counter() - began)

    def searches(self, model: nn.Module | Victims, update: SharedUpdate, seed: Seed = 0) -> Iterator[Search]:
        """The searches of all trials, as many at a time as memory holds."""
        observation = self.observed(model, update)
        self.refuse(model, update)
        given = self.given_labels(update)
        for trials in torch.arange(update.trials).split(self._trials_at_once(update)):
            yield self.search(model, update, observation, given, seed, trials)

    def search(self, *told: Any) -> Search:
        """This attack's search of some trials; told: what `Search` is made of, after the attack."""
        raise NotImplementedError

    def of_direction(self) -> bool:
        """Whether it compares directions, and so needs a gradient that has one."""
        return False

    def refuse(self, model: nn.Module | Victims, update: SharedUpdate) -> None:
        """Errors: ValueError for an update of this model that this attack cannot work on."""

    def given_labels(self, update: SharedUpdate) -> Tensor | None:
        """[T, B] labels that the search holds fixed; None where it looks for them too."""
        return labels.given(update) if self.labels == "known" else labels.of_update(update, self.rules[self.labels])

    def observed(self, model: nn.Module | Victims, update: SharedUpdate) -> Observation:
        """What this attacker compares with. Errors: those of `SharedUpdate.observed`, and a gradient of length zero."""
        observation = update.observed(model, type(self).__name__, self.one_gradient)
        if self.of_direction():
            matching.require_direction(observation)
        return observation

    def lbfgs(self) -> LBFGS | None:
        """The settings of L-BFGS, whose memory limits the trials that run at once; None for another optimiser."""
        return None

    def _trials_at_once(self, update: SharedUpdate) -> int:
        if (chosen := self.lbfgs()) is None:
            return update.trials
        variables = update.batch_size * (math.prod(update.image_shape) + update.num_classes)
        return rows_that_fit(next(iter(update.gradients.values())).new_empty(variables), chosen.history_size)


class Search:
    """The search behind some trials of an update, over rows [R, N]: one a trial, or `each` of them beside each other.

    A subclass says where a row starts (`first`), how it moves (`steps`), and, where a row is not simply pixels, what
    images it stands for (`images`). `run` does the rest.
    """

    def __init__(
        self,
        attack: Any,
        model: nn.Module | Victims,
        update: SharedUpdate,
        observation: Observation,
        given: Tensor | None,
        seed: Seed,
        trials: Tensor,
        each: int = 1,
    ) -> None:
        self.attack, self.update, self.seed, self.trials, self.each = attack, update, seed, trials, each
        first = next(iter(update.gradients.values()))
        self.device, self.dtype = first.device, first.dtype
        self.inputs = Victims.of(model).skeleton.inputs
        self.batch_shape = (update.batch_size, *update.image_shape)
        self.pixels = math.prod(self.batch_shape)
        owner = trials.to(self.device).repeat_interleave(each)
        self.everyone = torch.arange(len(owner), device=self.device)
        self.given = None if given is None else given.to(self.device)[trials.to(self.device)]
        self.soft = None if given is None else update.targets(given.to(self.device)[owner], first)
        self.model, self.observation = Victims.of(model).select(owner), observation.select(owner)
        self.order = None if update.order is None or attack.one_gradient else update.order[owner]

    def first(self, start: int) -> Tensor:
        """Where the rows begin: [R, N]."""
        return self.drawn(self.streams(start), self.pixels)

    def steps(self, x: Tensor, start: int) -> Iterator[Minimum]:
        """The state after each iteration from x on."""
        raise NotImplementedError

    def images(self, x: Tensor) -> Tensor:
        """[R, N] -> [R, B, *shape], what enters the network: of images their pixels in [0, 1]."""
        return x[:, : self.pixels].view(-1, *self.batch_shape)

    def parts(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[R, N] of these rows -> images, and soft labels [R, B, K]."""
        return self.images(x), self.soft[rows]  # type: ignore[index]

    def compare(self, gradients: dict[str, Tensor], observation: Observation, rows: Tensor) -> Tensor:
        """The distance [R] between dummy and shared gradients."""
        return matching.distance(gradients, observation, rows)

    def noise(self, start: int) -> Callable[[Tensor, Tensor], Sequence[dict[str, Tensor]]] | None:
        """The source of a bottleneck's noise, its streams at their beginning; None for a model without one."""
        return matching.dummy_noise(self.model, self.observation, self.streams(start, 2), self.update.batch_size)

    def matching(self, start: int, **others: Any) -> Matching:
        """The objective of the rows; others: fields of `Matching`, besides those that every search gives it."""
        told = {"mode": self.update.threat.mode, "compare": self.compare, "noise": self.noise(start)}
        told |= {} if self.attack.one_gradient else {"local": self.update.local, "order": self.order}  # type: ignore[dict-item]
        return Matching(self.model, self.observation, self.parts, sizes=self.update.sizes, **(told | others))

    def streams(self, start: int, *path: int) -> list[torch.Generator]:
        """A generator a row, of its trial and its start; path: what for."""
        own = range(start * self.each, (start + 1) * self.each)
        return [generator(self.seed, trial, start, *path) for trial in self.trials.tolist() for start in own]

    def drawn(self, streams: Sequence[torch.Generator], *sizes: int, draw: Callable = torch.randn) -> Tensor:
        """[R, sum of sizes] numbers, those of a row from its own stream."""
        rows = [torch.cat([draw(size, generator=stream) for size in sizes]) for stream in streams]
        return torch.stack(rows).to(self.device, self.dtype)

    def lowest(self, progress: bool | None, snapshots: Sequence[int]) -> Reconstruction:
        """The lowest end of each trial's starts."""
        best = self.run(0, progress, snapshots)
        for start in range(1, self.attack.starts):
            best = keep_better(best, self.run(start, progress, ()))
        return best

    def run(self, start: int, progress: bool | None, snapshots: Sequence[int]) -> Reconstruction:
        """One start of every row, and what it came to."""
        x, ahead = self.first(start), sorted(set(snapshots))
        minimum, taken = Minimum.start(x), list[Taken]()

        def take(last: float, now: Minimum) -> None:
            while ahead and ahead[0] <= last:
                taken.append((ahead.pop(0), self.point(now).clone(), now.evaluations.clone(), None))

        take(0, minimum)
        steps = bar(self.steps(x, start), self.attack, len(self.trials), progress, self.attack.iterations)
        for iteration, minimum in enumerate(steps, 1):
            take(iteration, minimum)
        take(math.inf, minimum)  # where a search that has ended stays
        return self.result(minimum, start, taken)

    def point(self, minimum: Minimum) -> Tensor:
        return minimum.best if self.attack.iterate == "best" else minimum.last

    def value(self, x: Tensor, start: int) -> Tensor:
        """[R] distance to the shared gradient, under the same noise of a bottleneck whatever was looked at before."""
        return self.matching(start).alone(x, self.everyone)

    def result(self, minimum: Minimum, start: int, taken: list[Taken]) -> Reconstruction:
        final = self.point(minimum)
        return Reconstruction(
            raw=self.images(final),
            labels=self.given,
            objective=self.value(final, start),
            evaluations=minimum.evaluations,
            starts=torch.full_like(minimum.evaluations, start + 1),
            diverged=minimum.diverged,
            seconds=0.0,
            history=self.history(taken, start),
            inputs=self.inputs,
        )

    def history(self, taken: list[Taken], start: int) -> History | None:
        if not taken:
            return None
        parts = [self.parts(x, self.everyone) for _, x, _, _ in taken]
        return History(
            iterations=[iteration for iteration, _, _, _ in taken],
            objective=torch.stack([self.value(x, start) if told is None else told for _, x, _, told in taken]),
            evaluations=torch.stack([spent for _, _, spent, _ in taken]),
            images=torch.stack([images for images, _ in parts]),
            soft_labels=torch.stack([soft for _, soft in parts]),
        )


class NormalisedSearch(Search):
    """A search in the victim's own units: of images its normalisation's, in which pixels have mean 0, deviation 1."""

    def images(self, x: Tensor) -> Tensor:
        return self.inputs.of_points(super().images(x))

    def inside(self, x: Tensor) -> Tensor:
        """The rows with every pixel held to [0, 1]; what stands behind the pixels stays."""
        pixels = self.inputs.inside(super().images(x))
        return torch.cat([pixels.flatten(1), x[:, self.pixels :]], 1)


def bar(steps: Iterable | None, attack: object, trials: int, progress: bool | None, total: int | None = None) -> tqdm:
    """The progress bar of an attack's steps; progress: as an attack is told."""
    return tqdm(
        steps,
        total=total,
        desc=f"{type(attack).__name__}, {trials} trials",
        unit=" steps",
        disable=not (sys.stderr.isatty() if progress is None else progress),
        mininterval=0.5 if sys.stderr.isatty() else 60,
    )
