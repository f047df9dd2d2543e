"""RMSprop with momentum over a leading trial axis."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reprolib.optimizers.minimum import Minimum, Objective


def rmsprop(
    objective: Objective,
    start: Tensor,
    iterations: int,
    learning_rate: float,
    momentum: float = 0.0,
    alpha: float = 0.99,
) -> Iterator[Minimum]:
    """RMSprop on T problems at once (`torch.optim.RMSprop`, whose arithmetic is row by row).

    start: [T, N]. alpha: how much of the mean of squares is kept at a step. Yields the state after each iteration. A
    row whose objective is no longer finite stays where it was.
    """
    minimum, trials = Minimum.start(start), torch.arange(len(start), device=start.device)
    x = start.clone()
    optimizer = torch.optim.RMSprop([x], lr=learning_rate, alpha=alpha, momentum=momentum)
    for iteration in range(iterations + 1):  # the last evaluation only observes
        value, gradient = objective(x, trials)
        finite = value.isfinite() & gradient.sum(1).isfinite()  # rows are long: a sum reads them once
        minimum.evaluations += ~minimum.diverged
        minimum.observe(trials, x, value, finite & ~minimum.diverged)
        minimum.diverged |= ~finite
        if iteration:
            yield minimum
        if iteration < iterations:
            x.grad = gradient if finite.all() else gradient.nan_to_num()
            optimizer.step()
