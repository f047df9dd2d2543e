"""What every attack is called with, and what it returns."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.federated.streams import Seed
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.models.inputs import Images, Inputs


@dataclass(frozen=True, eq=False)
class History:
    """How an attack went: snapshots after the named iterations (0 is the start).

    objective: [S, T]. evaluations: [S, T], spent so far. images: [S, T, B, C, H, W], not clamped. soft_labels:
    [S, T, B, K].
    """

    iterations: list[int]
    objective: Tensor
    evaluations: Tensor
    images: Tensor
    soft_labels: Tensor


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attacker made of an update, and what it cost.

    raw: [T, B, C, H, W], as the optimiser left it; `images` is clamped to [0, 1]. labels: [T, B]. objective: [T], the
    matching objective at `raw`. evaluations: [T], gradients of the objective spent, over all starts. starts: [T], how
    many dummy images were tried. diverged: [T], the chosen start ended with an objective that is not finite.
    seconds: wall time of the whole call. candidates: [T, S, B, C, H, W], what S searches that ran side by side ended
    at, for attacks that let them agree. lost: [T, B], images of which the update says nothing, for attacks that can
    tell. latents: [T, B, k], what a generator made `raw` of. inputs: what the victim takes; None for images.
    """

    raw: Tensor
    labels: Tensor
    objective: Tensor
    evaluations: Tensor
    starts: Tensor
    diverged: Tensor
    seconds: float
    history: History | None = None
    candidates: Tensor | None = None
    lost: Tensor | None = None
    latents: Tensor | None = None
    inputs: Inputs | None = None

    @property
    def images(self) -> Tensor:
        """`raw` as a client has it: pixels clamped to [0, 1], or the numbers of tokens, [T, B, L]."""
        return self.raw.clamp(0, 1) if self.inputs is None else self.inputs.values(self.raw)


class Attack(Protocol):
    """What all attacks are: settings that are called with the victim and the update."""

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial of the update, all trials at once.

        model: the victim, with the weights that the server sent, or `Victims` with one for each trial. seed: of the
        attack's random numbers; trial t's depend on (seed, t) alone. progress: True shows a bar, False none; None shows
        one in a terminal. snapshots: iterations after which `history` keeps where the attack is; 0 is the start.
        Errors: ValueError for what is no update, one of another model or with NaN, one that this attack cannot work
        on, and snapshots that are none or that it does not keep.
        """
        ...


def check_call(update: SharedUpdate, snapshots: Sequence[int]) -> tuple[int, ...]:
    """What every attack looks at first; returns the snapshots.

    Errors: ValueError for what is no update, and snapshots that are no iterations.
    """
    if not isinstance(update, SharedUpdate):
        raise ValueError(
            f"update must be a SharedUpdate, from client.share or SharedUpdate.of, got {type(update).__name__}"
        )
    return settings.each("snapshots", settings.WholeOrZero, snapshots)


def refuse_snapshots(attack: Attack, snapshots: Sequence[int]) -> None:
    """For attacks whose steps leave no image. Errors: ValueError for snapshots."""
    if snapshots:
        raise ValueError(f"{type(attack).__name__} keeps no snapshots, got {len(snapshots)}")


def keep_better(best: Reconstruction, again: Reconstruction) -> Reconstruction:
    """Replace the trials whose new start ended lower; what each start cost adds up."""
    least = best.objective.masked_fill(best.diverged, math.inf)
    better = again.objective.masked_fill(again.diverged, math.inf) < least
    chosen = {}
    for name, value in vars(best).items():
        if isinstance(value, Tensor):
            chosen[name] = value.clone()
            chosen[name][better] = getattr(again, name)[better]
    chosen |= {"evaluations": best.evaluations + again.evaluations, "starts": again.starts}
    return replace(best, **chosen)


def require_images(attack: str, model: nn.Module | Victims, what: str) -> None:
    """For attacks that know something of pictures. what: that. Errors: ValueError for a victim of other inputs."""
    inputs = Victims.of(model).skeleton.inputs
    if not isinstance(inputs, Images):
        raise ValueError(f"{attack} {what}, but this victim takes {type(inputs).__name__}: only images have that")


def read_off(raw: Tensor, began: float, **measured: Tensor) -> Reconstruction:
    """What an attack returns that reads a batch off, in no order: labels are -1, one start, 0 for what is not measured.

    began: `time.perf_counter()` at the call. measured: fields of `Reconstruction`.
    """
    none = torch.zeros(len(raw), dtype=torch.int64, device=raw.device)
    plain = {"labels": torch.full(raw.shape[:2], -1, device=raw.device), "objective": none.double()}
    plain |= {"evaluations": none, "starts": none + 1, "diverged": none.bool()}
    return Reconstruction(raw=raw, seconds=time.perf_counter() - began, **(plain | measured))


def join(runs: list[Reconstruction], seconds: float) -> Reconstruction:
    """The chunks one after the other."""
    every = {field.name: getattr(runs[0], field.name) for field in fields(Reconstruction)}
    names, history = [name for name, value in every.items() if isinstance(value, Tensor)], None
    if runs[0].history is not None:
        series = ("objective", "evaluations", "images", "soft_labels")
        merged = {name: torch.cat([getattr(run.history, name) for run in runs], 1) for name in series}
        history = History(runs[0].history.iterations, **merged)
    joined = {name: torch.cat([getattr(run, name) for run in runs]) for name in names}
    return replace(runs[0], **joined, seconds=seconds, history=history)
