"""L-BFGS over a leading trial axis: every trial has a memory and a step of its own, as torch's has alone."""

# The state of a search is set by name, from one dictionary (`BatchedLBFGS._fresh`): no checker sees its attributes.
# mypy: disable-error-code="attr-defined, call-arg, has-type"

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from torch import Tensor

from reprolib import settings
from reprolib.optimizers.minimum import Minimum, Objective

HISTORY_BLOCK = 16
"""Rows whose L-BFGS history is read at once: two passes over 16 x 2 x 100 x 3,072 floats then meet in the cache."""


@dataclass(frozen=True)
class LBFGS:
    """The settings of `torch.optim.LBFGS`, under the same names and with the same meaning and defaults.

    The thresholds are absolute, so the algorithm is not invariant to the scale of the objective.
    `tolerance_grad` was 1e-5 in torch up to 1.4, the authors' likely version.
    """

    learning_rate: settings.Positive = 1.0
    max_iter: settings.Whole = 20
    max_eval: settings.WholeOrZero | None = None
    history_size: settings.Whole = 100
    tolerance_grad: float = 1e-7
    tolerance_change: float = 1e-9
    line_search: Literal["none", "strong_wolfe"] = "none"

    def __post_init__(self) -> None:
        settings.check(self)

    @property
    def evaluations_per_step(self) -> int:
        return self.max_iter * 5 // 4 if self.max_eval is None else self.max_eval


class BatchedLBFGS:
    """L-BFGS on T problems at once; on each row the iterates are `torch.optim.LBFGS`'s, to rounding.

    start: [T, N]. `step()` is one `.step()` of torch's for every row still running: up to `max_iter` iterations with
    memory kept between calls. Rows that converge or diverge leave and stop costing time. torch evaluates the objective
    again where a step begins; nothing moved in between, so that evaluation is saved here.

    The direction is the two-loop recursion written as two triangular solves: with S, Y the stored steps and gradient
    differences, R the upper triangle of S'Y, D its diagonal and h the scale of the initial inverse Hessian::

        R a = -S'g,   R' c = D a + h (Y'g + Y'Y a),   d = -h (g + Y a) + S c.

    It reads the history twice instead of four times and needs no loop over pairs. S and Y are ring buffers; R and Y'Y
    are kept in order of age with the newest pair last, and identity rows where no pair is stored yet.
    """

    def __init__(self, objective: Objective, start: Tensor, settings: LBFGS) -> None:
        self.objective, self.settings = objective, settings
        self.minimum = Minimum.start(start)
        fresh = self._fresh(torch.arange(len(start), device=start.device), start)
        self._rowwise = tuple(fresh)
        for name, value in fresh.items():
            setattr(self, name, value)
        self.refresh()

    def _fresh(self, trials: Tensor, start: Tensor) -> dict[str, Tensor]:
        """All that is kept a row, before the first step from `start`."""
        rows, size = start.shape
        memory = self.settings.history_size
        no, zero = torch.zeros(rows, dtype=torch.bool, device=start.device), torch.zeros_like(trials)
        return {
            "trials": trials,
            "running": ~no,
            "stopped": no,
            "x": start.clone(),
            "value": start.new_empty(rows),
            "gradient": torch.empty_like(start),
            "previous_gradient": torch.zeros_like(start),
            "direction": torch.zeros_like(start),
            "step_size": start.new_zeros(rows),
            "scale": start.new_ones(rows),
            "iteration": zero,
            "pairs": zero.clone(),
            "steps": start.new_zeros(rows, memory, size),
            "differences": start.new_zeros(rows, memory, size),
            "curvature": torch.eye(memory, dtype=start.dtype, device=start.device).repeat(rows, 1, 1),
            "gram": start.new_zeros(rows, memory, memory),
        }

    def restart(self, trials: Tensor, x: Tensor) -> None:
        """Begin the named trials anew at x [R, N], beside those that run on; evaluations go on counting."""
        others = ~torch.isin(self.trials, trials)
        for name, value in self._fresh(trials, x).items():
            setattr(self, name, torch.cat([getattr(self, name)[others], value]))
        self.minimum.renew(trials, x)
        self._evaluate(torch.arange(len(self.trials) - len(trials), len(self.trials), device=x.device), x)

    def refresh(self) -> None:
        """Evaluate the objective anew at the current points, as it must be when something else it depends on changed.

        Rows that had converged run again; those that diverged or were stopped do not.
        """
        self.running = ~self.minimum.diverged[self.trials] & ~self.stopped
        self.minimum.converged[self.trials] = False
        rows = self.running.nonzero()[:, 0]
        self.minimum.best_objective[self.trials] = math.inf  # values of another objective cannot be compared
        if rows.numel():
            self._evaluate(rows, self.x[rows])

    @property
    def alive(self) -> Tensor:
        """[T] bool: the trials that still run."""
        alive = torch.zeros_like(self.minimum.diverged)
        alive[self.trials[self.running]] = True
        return alive

    def stop(self, trials: Tensor) -> None:
        """End the named trials where they are."""
        self.stopped |= torch.isin(self.trials, trials)
        self.running &= ~self.stopped

    def step(self) -> None:
        """One outer step for all running rows."""
        s = self.settings
        flat = self.gradient.abs().amax(1) <= s.tolerance_grad
        self._finish((self.running & flat).nonzero()[:, 0])
        rows = self.running.nonzero()[:, 0]
        spent = torch.ones_like(rows)
        for inner in range(1, s.max_iter + 1):
            if not rows.numel():
                break
            slope = self._directions(rows)
            flat = slope > -s.tolerance_change
            self._finish(rows[flat])
            rows, spent, slope = rows[~flat], spent[~flat], slope[~flat]
            if not rows.numel():
                break
            before = self.value[rows]
            if s.line_search == "none":
                self._evaluate(rows, self.x[rows] + self.step_size[rows, None] * self.direction[rows])
                spent = spent + (inner < s.max_iter)
            else:
                spent = spent + self._line_search(rows, slope, s.evaluations_per_step - spent)
            moved = (self.direction[rows].abs().amax(1) * self.step_size[rows].abs()) > s.tolerance_change
            steep = self.gradient[rows].abs().amax(1) > s.tolerance_grad
            changed = (self.value[rows] - before).abs() >= s.tolerance_change
            go_on = moved & steep & changed & (spent < s.evaluations_per_step) & self.running[rows]
            rows, spent = rows[go_on], spent[go_on]

    def _evaluate(self, rows: Tensor, x: Tensor) -> None:
        """Move the rows to x and evaluate there; a row whose objective is not finite stays and stops."""
        trials = self.trials[rows]
        value, gradient = self.objective(x, trials)
        self.minimum.evaluations[trials] += 1
        self._accept(rows, x, value, gradient)

    def _accept(self, rows: Tensor, x: Tensor, value: Tensor, gradient: Tensor) -> None:
        finite = value.isfinite() & gradient.isfinite().all(1) & x.isfinite().all(1)
        self.minimum.observe(self.trials[rows], x, value, finite)
        self.running[rows[~finite]] = False
        rows, x, value, gradient = (v if finite.all() else v[finite] for v in (rows, x, value, gradient))
        self.x[rows], self.value[rows], self.gradient[rows] = x, value, gradient

    def _finish(self, rows: Tensor) -> None:
        """These rows cannot move any more: every further step would repeat itself."""
        self.running[rows] = False
        self.minimum.converged[self.trials[rows]] = True

    def compact(self) -> None:
        """Drop the rows that no longer run for good, once they are a quarter, so that the rest is dense."""
        if self.running.sum() > 0.75 * len(self.running):
            return
        keep = self.running.nonzero()[:, 0]
        for name in self._rowwise:
            setattr(self, name, getattr(self, name)[keep])

    def _directions(self, rows: Tensor) -> Tensor:
        """Set direction, step size and previous gradient of the rows; return the slopes g'd.

        Blocks of neighbouring rows, so that histories are read in place; idle rows among them are computed and dropped.
        """
        wanted = torch.zeros(len(self.trials), dtype=torch.bool, device=rows.device)
        wanted[rows] = True
        slope = self.x.new_zeros(len(wanted))
        first = self.iteration == 0
        shrunk = self.settings.learning_rate * (1 / self.gradient.abs().sum(1)).clamp(max=1.0)
        for start in range(0, len(wanted), HISTORY_BLOCK):
            block = slice(start, start + HISTORY_BLOCK)
            if not wanted[block].any():
                continue
            direction = self._two_loop(block, wanted[block])
            slope[block] = (self.gradient[block] * direction).sum(1)
            self.direction[block] = torch.where(wanted[block, None], direction, self.direction[block])
        size = torch.where(first, shrunk, self.settings.learning_rate)
        self.step_size = torch.where(wanted, size, self.step_size)
        self.previous_gradient[rows] = self.gradient[rows]
        self.iteration += wanted
        return slope[rows]

    def _two_loop(self, block: slice, wanted: Tensor) -> Tensor:
        """Push the pair (s, y) of the wanted rows' last move, if its curvature is positive enough; the directions."""
        gradient = self.gradient[block]
        y = gradient - self.previous_gradient[block]
        s = self.direction[block] * self.step_size[block, None]
        product = (y * s).sum(1)
        push = (product > 1e-10) & (self.iteration[block] > 0) & wanted
        rows = push.nonzero()[:, 0] + block.start
        memory = self.settings.history_size
        slot = self.pairs[rows] % memory
        self.steps[rows, slot], self.differences[rows, slot] = s[push], y[push]
        self.pairs[rows] += 1
        self.scale[rows] = product[push] / y[push].square().sum(1)

        pairs = self.pairs[block]
        used = min(int(pairs.max()), memory)
        if not used:
            return -gradient
        order = pairs[:, None] + torch.arange(-memory, 0, device=pairs.device)
        order = torch.where(order < 0, -1, order % memory)  # the slot of the pair of each age, -1 where there is none
        steps, differences = self.steps[block, :used], self.differences[block, :used]
        both = torch.stack([gradient, y], 1)
        # vectors as rows: as columns the same products read memory at a third of the speed
        along_steps, along_differences = ((both @ v.mT).unbind(1) for v in (steps, differences))
        for matrix, column in ((self.curvature, along_steps[1]), (self.gram, along_differences[1])):
            column = _by_age(column, order)[push]
            aged = torch.zeros_like(matrix[rows])
            aged[:, :-1, :-1] = matrix[rows, 1:, 1:]
            aged[:, :, -1] = column
            if matrix is self.gram:
                aged[:, -1, :] = column
            matrix[rows] = aged

        curvature, scale = self.curvature[block], self.scale[block, None]
        along_steps, along_differences = (_by_age(v[0], order)[:, :, None] for v in (along_steps, along_differences))
        a = torch.linalg.solve_triangular(curvature, -along_steps, upper=True)
        right = along_differences + self.gram[block] @ a
        right = curvature.diagonal(dim1=1, dim2=2)[:, :, None] * a + scale[:, :, None] * right
        c = torch.linalg.solve_triangular(curvature.mT, right, upper=False)
        # where no pair is stored, the identity row gives 0: steps and differences are zero there
        a, c = (_by_slot(v[:, :, 0], order, used)[:, None] for v in (a, c))
        return -scale * (gradient + (a @ differences)[:, 0]) + (c @ steps)[:, 0]

    def _line_search(self, rows: Tensor, slope: Tensor, budget: Tensor) -> Tensor:
        """Strong-Wolfe line search of all rows at once; returns the evaluations each spent.

        The decisions are scalars and run in one generator a row; the evaluations that they ask for are batched.
        """
        s, base, direction = self.settings, self.x[rows], self.direction[rows]
        width = direction.abs().amax(1).tolist()
        searches = [
            _strong_wolfe(*scalars, self.gradient[r], s.tolerance_change)
            for r, *scalars in zip(
                rows.tolist(),
                self.step_size[rows].tolist(),
                self.value[rows].tolist(),
                slope.tolist(),
                width,
                budget.tolist(),
                strict=True,
            )
        ]
        asked = {i: next(search) for i, search in enumerate(searches)}
        found: dict[int, tuple[float, float, Tensor]] = {}
        spent = torch.zeros_like(rows)
        while asked:
            index = torch.tensor(list(asked), device=rows.device)
            t = torch.tensor(list(asked.values()), dtype=base.dtype, device=rows.device)
            trials = self.trials[rows[index]]
            value, gradient = self.objective(base[index] + t[:, None] * direction[index], trials)
            self.minimum.evaluations[trials] += 1
            spent[index] += 1
            slopes = (gradient * direction[index]).sum(1)
            answers = zip(index.tolist(), value.tolist(), slopes.tolist(), gradient, strict=True)
            asked = {}
            for i, f, gtd, g in answers:
                try:
                    asked[i] = searches[i].send((f, g, gtd))
                except StopIteration as end:
                    found[i] = end.value
        t = torch.tensor([found[i][0] for i in range(len(rows))], dtype=base.dtype, device=rows.device)
        value = torch.tensor([found[i][1] for i in range(len(rows))], dtype=base.dtype, device=rows.device)
        self.step_size[rows] = t
        self._accept(rows, base + t[:, None] * direction, value, torch.stack([found[i][2] for i in range(len(rows))]))
        return spent


def lbfgs(objective: Objective, start: Tensor, iterations: int, settings: LBFGS | None = None) -> Iterator[Minimum]:
    """`BatchedLBFGS` over its outer steps: yields the state after each, also after the last trial has ended."""
    optimizer = BatchedLBFGS(objective, start, settings or LBFGS())
    for _ in range(iterations):
        if optimizer.running.any():
            optimizer.step()
            optimizer.compact()
        yield optimizer.minimum


def rows_that_fit(start: Tensor, history_size: int) -> int:
    """Trials whose L-BFGS histories take at most half of the memory that is free now. start: [.., N], one of them."""
    one = start.element_size() * 2 * start.shape[-1] * (history_size + 8)
    free = torch.cuda.mem_get_info(start.device)[0] if start.is_cuda else psutil.virtual_memory().available
    return max(1, int(free / 2 / one))


def _by_age(values: Tensor, order: Tensor) -> Tensor:
    """[R, used] in slots -> [R, memory] by age, oldest first, 0 where there is none."""
    return torch.where(order < 0, 0.0, values.gather(1, order.clamp(min=0)))


def _by_slot(values: Tensor, order: Tensor, used: int) -> Tensor:
    """[R, memory] by age -> [R, used] in slots."""
    slots = values.new_zeros(len(values), used + 1)
    return slots.scatter(1, torch.where(order < 0, used, order), values)[:, :used]


def _cubic(x1: float, f1: float, g1: float, x2: float, f2: float, g2: float, low: float, high: float) -> float:
    """The minimiser of the cubic through two points with slopes, held inside [low, high]; else the middle."""
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2)
    square = d1 * d1 - g1 * g2
    if not 0 <= square < math.inf:
        return (low + high) / 2
    d2 = math.sqrt(square)
    x = (
        x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2))
        if x1 <= x2
        else x1 - (x1 - x2) * ((g1 + d2 - d1) / (g1 - g2 + 2 * d2))
    )
    return min(max(x, low), high)


def _strong_wolfe(
    t: float, f: float, gtd: float, width: float, budget: int, gradient: Tensor, tolerance_change: float
) -> Generator[float, tuple[float, Tensor, float], tuple[float, float, Tensor]]:
    """Line search for the strong Wolfe conditions (c1 = 1e-4, c2 = 0.9), decision for decision torch's.

    Yields step sizes to try and is sent (objective, gradient, slope) there; returns (step, objective, gradient).
    Source: `torch.optim.lbfgs._strong_wolfe`, after minFunc.
    """
    c1, c2 = 1e-4, 0.9
    zero = (0.0, f, gradient, gtd)
    previous, trial = zero, (t, *(yield t))
    trial = (t, trial[1], trial[2], trial[3])
    spent, done = 0, False
    bracket = [zero, trial]
    while spent < budget:
        t, f_new, _, gtd_new = trial
        if f_new > f + c1 * t * gtd or (spent > 1 and f_new >= previous[1]):
            bracket = [previous, trial]
            break
        if abs(gtd_new) <= -c2 * gtd:
            bracket, done = [trial], True
            break
        if gtd_new >= 0:
            bracket = [previous, trial]
            break
        t_next = _cubic(previous[0], previous[1], previous[3], t, f_new, gtd_new, t + 0.01 * (t - previous[0]), t * 10)
        previous, trial = trial, (t_next, *(yield t_next))
        spent += 1
    if spent == budget:
        bracket = [zero, trial]

    low, high = (0, 1) if bracket[0][1] <= bracket[-1][1] else (1, 0)
    insufficient = False
    while not done and spent < budget:
        ends = sorted(point[0] for point in bracket)
        if (ends[1] - ends[0]) * width < tolerance_change:
            break
        (x1, f1, _, g1), (x2, f2, _, g2) = bracket
        t = _cubic(x1, f1, g1, x2, f2, g2, *ends)
        margin = 0.1 * (ends[1] - ends[0])
        if min(ends[1] - t, t - ends[0]) < margin:  # too near an end twice, or on it: move inside
            if insufficient or t >= ends[1] or t <= ends[0]:
                t = ends[1] - margin if abs(t - ends[1]) < abs(t - ends[0]) else ends[0] + margin
                insufficient = False
            else:
                insufficient = True
        else:
            insufficient = False
        trial = (t, *(yield t))
        spent += 1
        _, f_new, _, gtd_new = trial
        if f_new > f + c1 * t * gtd or f_new >= bracket[low][1]:
            bracket[high] = trial
            low, high = (0, 1) if bracket[0][1] <= bracket[1][1] else (1, 0)
        else:
            if abs(gtd_new) <= -c2 * gtd:
                done = True
            elif gtd_new * (bracket[high][0] - bracket[low][0]) >= 0:
                bracket[high] = bracket[low]
            bracket[low] = trial
    return bracket[low][:3]
