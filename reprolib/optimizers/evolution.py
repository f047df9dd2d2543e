"""CMA-ES, one search for each trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import cma
import numpy as np
import torch
from torch import Tensor

from reprolib.optimizers.minimum import Minimum


def cma_es(
    objective: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    iterations: int,
    population: int,
    sigma: float,
    random: Sequence[torch.Generator],
) -> Iterator[Minimum]:
    """CMA-ES on T problems at once, a strategy of the `cma` package for each (Hansen and Ostermeier 2001).

    objective: values alone, (x [R, N], trials [R]) -> [R]; a generation of all trials is one call with R = T times
    `population` rows. start: [T, N], the first means. sigma: the first standard deviation. random: a CPU generator a
    trial, its only source of random numbers: the package's own seed is shared by all strategies of a process, and 0
    would mean the time. Yields the state after each generation: `best` is the best candidate so far, `last` the mean,
    which is no candidate, and `objective` the smallest value of the newest generation. A strategy that has converged
    leaves, and so does one whose whole generation is not finite; single candidates that are not finite count as the
    worst of their generation.
    """
    minimum = Minimum.start(start)
    strategies = {
        trial: cma.CMAEvolutionStrategy(
            start[trial].double().cpu().numpy(),
            sigma,
            {"popsize": population, "seed": np.nan, "randn": _normal(random[trial]), "verbose": -9, "verb_log": 0},
        )
        for trial in range(len(start))
    }
    for _ in range(iterations):
        running = [trial for trial in strategies if not (minimum.diverged | minimum.converged)[trial]]
        if running:
            asked = {trial: np.stack(strategies[trial].ask()) for trial in running}
            points = torch.from_numpy(np.concatenate(list(asked.values()))).to(start)
            trials = torch.tensor(running, device=start.device).repeat_interleave(population)
            values = objective(points, trials).view(len(running), population)
            minimum.evaluations[running] += population
            best = values.nan_to_num(math.inf, math.inf, math.inf).argmin(1)
            rows = torch.arange(len(running), device=start.device)
            value, found = values[rows, best], points.view(len(running), population, -1)[rows, best]
            minimum.observe(torch.tensor(running, device=start.device), found, value, value.isfinite())
            for row, trial in enumerate(running):
                if minimum.diverged[trial]:
                    continue
                told = values[row].double().cpu().numpy()
                told = np.where(np.isfinite(told), told, told[np.isfinite(told)].max())
                strategies[trial].tell(list(asked[trial]), told.tolist())
                minimum.last[trial] = torch.from_numpy(strategies[trial].mean).to(start)
                minimum.converged[trial] = bool(strategies[trial].stop())
        yield minimum


def _normal(random: torch.Generator) -> Callable[..., np.ndarray]:
    return lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64).numpy()
