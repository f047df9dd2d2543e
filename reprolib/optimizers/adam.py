"""Adam and its relatives over a leading trial axis, and their rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from reprolib.optimizers.minimum import Minimum, Objective


def adam(
    objective: Objective,
    start: Tensor,
    iterations: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    milestones: tuple[int, ...] = (),
    project: Callable[[Tensor], Tensor] = lambda x: x,
) -> Iterator[Minimum]:
    """Adam on T problems at once (Kingma and Ba 2015; `torch.optim.Adam`, whose arithmetic is row by row).

    start: [T, N]. The learning rate falls tenfold at each milestone; `project` maps the points back after a step,
    for instance into [0, 1]. Yields the state after each iteration: stop reading to stop the run. A row whose
    objective is no longer finite stays where it was.
    """
    return _adam(objective, start, iterations, _falling(learning_rate, milestones), betas, project, lambda g, _: g)


def signed_adam(
    objective: Objective,
    start: Tensor,
    iterations: int,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    milestones: tuple[int, ...] = (),
    project: Callable[[Tensor], Tensor] = lambda x: x,
) -> Iterator[Minimum]:
    """Adam on the sign of the gradient (Geiping et al. 2020, section 4); otherwise as `adam`."""
    rate = _falling(learning_rate, milestones)
    return _adam(objective, start, iterations, rate, betas, project, lambda g, _: g.sign())


def langevin_adam(
    objective: Objective,
    start: Tensor,
    iterations: int,
    rate: Callable[[int], float],
    noise: Callable[[], Tensor] | None = None,
    noise_on: Literal["pixels", "gradient"] = "pixels",
    betas: tuple[float, float] = (0.9, 0.999),
    project: Callable[[Tensor], Tensor] = lambda x: x,
    signed: bool = False,
    before: Callable[[Tensor, int], None] = lambda x, iteration: None,
) -> Iterator[Minimum]:
    """Adam with a step size for each iteration and noise of that size (Yin et al. 2021, section 3.4).

    rate: iteration, counted from 0, -> learning rate. noise: draws [T, N] anew at each call; times the rate it is added
    to the points after the step, or to the gradient before it, which Adam then rescales. signed: Adam is fed the sign
    of the gradient. before: is shown the points and the iteration before the objective is evaluated. Otherwise as
    `adam`.
    """

    def shape(gradient: Tensor, iteration: int) -> Tensor:
        gradient = gradient.sign() if signed else gradient
        if noise is None or noise_on == "pixels":
            return gradient
        return gradient + rate(iteration) * noise()

    def moved(x: Tensor, iteration: int) -> Tensor:
        return x if noise is None or noise_on == "gradient" else x + rate(iteration) * noise()

    return _adam(objective, start, iterations, rate, betas, project, shape, moved, before)


def warm_cosine(learning_rate: float, iterations: int, warmup: int) -> Callable[[int], float]:
    """A rate that rises linearly over `warmup` iterations and falls to zero along half a cosine after them."""

    def rate(iteration: int) -> float:
        if iteration < warmup:
            return learning_rate * (iteration + 1) / warmup
        return learning_rate * 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / (iterations - warmup)))

    return rate


def ramp(learning_rate: float, iterations: int, rise: float = 0.05, fall: float = 0.25) -> Callable[[int], float]:
    """A rate that rises linearly over the first share of the iterations and falls along half a cosine over the last.

    Source: the schedule of StyleGAN's projector, which GGL's code takes over.
    """

    def rate(iteration: int) -> float:
        done = iteration / iterations
        falling = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / fall))
        return learning_rate * falling * min(1.0, done / rise)

    return rate


def _falling(learning_rate: float, milestones: tuple[int, ...]) -> Callable[[int], float]:
    return lambda iteration: learning_rate * 0.1 ** sum(milestone <= iteration for milestone in milestones)


def _adam(
    objective: Objective,
    start: Tensor,
    iterations: int,
    rate: Callable[[int], float],
    betas: tuple[float, float],
    project: Callable[[Tensor], Tensor],
    shape: Callable[[Tensor, int], Tensor],
    moved: Callable[[Tensor, int], Tensor] = lambda x, _: x,
    before: Callable[[Tensor, int], None] = lambda x, _: None,
) -> Iterator[Minimum]:
    minimum, trials = Minimum.start(start), torch.arange(len(start), device=start.device)
    x = start.clone()
    optimizer = torch.optim.Adam([x], betas=betas)
    for iteration in range(iterations + 1):  # the last evaluation only observes
        before(x, iteration)
        value, gradient = objective(x, trials)
        finite = value.isfinite() & gradient.isfinite().all(1)
        minimum.evaluations += ~minimum.diverged
        minimum.observe(trials, x, value, finite & ~minimum.diverged)
        minimum.diverged |= ~finite
        if iteration:
            yield minimum
        if iteration < iterations:
            x.grad = shape(gradient, iteration).nan_to_num()
            optimizer.param_groups[0]["lr"] = rate(iteration)
            optimizer.step()
            x.copy_(project(moved(x, iteration)))
