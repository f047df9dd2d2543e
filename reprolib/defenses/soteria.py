"""Soteria: share no gradient for the features of one layer that say most about the image (Sun et al., CVPR 2021).

There is no generator, no noise and no training in it: the forward pass, the loss and every other gradient are the true
ones. The defense ranks the entries of a linear layer's input and zeroes the matching columns of its weight gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from reprolib import settings
from reprolib.defenses.base import Defense
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate

Score = Literal["row", "pinv", "elementwise", "random"]
Jacobian = Literal["auto", "vjp", "jacrev", "jvp"]

EXACT_UP_TO = 1e12
"""Floating-point operations that "auto" spends on exact row norms; beyond, it estimates. Half a minute on one core."""

TOGETHER = 64
"""Copies of an image, or rows of its Jacobian, that go through the network at once."""

FLOOR = 1e-6
"""Of the score "elementwise": smaller derivatives count as this share of the sample's largest, as many are zero."""


@dataclass(frozen=True)
class Soteria(Defense):
    """Zero the columns of one linear layer's weight gradient whose features, if changed, move the image most.

    A feature r_i counts by q_i = gain_i / (r_i + eps), added over the batch; the columns with the smallest q go, those
    strictly below the percentile `pruning_rate`, as in the official code. The paper's score is its reciprocal,
    |r_i| / gain_i. One mask serves the whole batch. Dead features (r_i = 0) have q_i = 0 and take their part of the
    rate though their columns are zero anyway: `pruned_features` counts what is left, and a warning says when nothing
    is.

    pruning_rate: in percent of the features, 0 to 100. layer: the name of the defended `nn.Linear`.
    score: "row", gain_i = ||dr_i/dX||, the code's; "pinv", 1 / ||J^+ e_i||, the smallest shift of the image that moves
    r_i alone, to first order; "elementwise", 1 / ||1 / (dr_i/dX)||, with a floor; "random", a rank drawn anew for every
    client. ridge: of "pinv", as a share of the mean eigenvalue of J J^T.
    eps: as published with DLG 0, with Inverting Gradients 0.1, with GGL 1e-10 (see the presets). With 0 a dead feature
    makes the percentile NaN and nothing is pruned. signed_denominator: r_i + eps, as the code has it, and |q_i| for the
    comparison alone; False takes |r_i| + eps, which differs where features can be negative.
    jacobian: how the gains come about: "vjp", batched backward passes over the features; "jacrev", torch.func's whole
    Jacobian, slow for convolutions; "jvp", an estimate for "row" from `draws` random directions, off by about
    sqrt(1 / (2 draws)); "auto" takes vjp up to EXACT_UP_TO operations, and beyond them jvp if the score allows it.
    X is the image as the network's first layer normalises it, and batch norm runs in evaluation mode here, whatever the
    client trains in: samples must not interact.
    Errors: ValueError for a rate outside [0, 100], unknown names, an estimate asked of a score that needs the whole
    Jacobian; when sharing, for a layer that is not there or not linear, and one whose input is no representation.
    Source: Sun et al. 2021, section 4 and Algorithm 1; the official code.
    """

    pruning_rate: Annotated[float, settings.Range(0, 100, note="it is in percent of the features")]
    layer: str = "head"
    score: Score = "row"
    eps: settings.Level = 0.1
    signed_denominator: bool = True
    jacobian: Jacobian = "auto"
    draws: settings.Count = 30
    ridge: settings.Level = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score in ("pinv", "elementwise") and self.jacobian == "jvp":
            raise ValueError(
                f"jacobian='jvp' estimates row norms only, and score={self.score!r} needs more: use 'auto'"
            )

    @classmethod
    def dlg(cls, pruning_rate: float = 1.0, layer: str = "head") -> Soteria:
        """As the official notebook defends against DLG: one percent, eps 0."""
        return cls(pruning_rate, layer, eps=0.0)

    @classmethod
    def gs(cls, pruning_rate: float = 60.0, layer: str = "head") -> Soteria:
        """As the official script defends against Inverting Gradients: 60 percent, eps 0.1."""
        return cls(pruning_rate, layer, eps=0.1)

    @classmethod
    def ggl(cls, pruning_rate: float = 80.0, layer: str = "head") -> Soteria:
        """As the code of GGL (Li et al. 2022) runs it: 80 percent, eps 1e-10."""
        return cls(pruning_rate, layer, eps=1e-10)

    def __str__(self) -> str:
        where = "" if self.layer == "head" else f" of {self.layer}"
        return f"Soteria, {self.pruning_rate:g}%{where}" + ("" if self.score == "row" else f", {self.score} score")

    def extend(self, model: nn.Module) -> nn.Module:
        """The model as it is, once it is clear that it has the layer."""
        _require_linear(model, self.layer)
        return model

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.pruning_rate == 0:
            return gradients
        selection = self.select(model, images, generator)
        if not selection.pruned_live:
            warnings.warn(
                f"{self} prunes none of the {selection.live} live features of this batch: {selection.dead} of "
                f"{len(selection.kept)} are dead, and they take the whole rate",
                stacklevel=2,
            )
        name = f"{self.layer}.weight"
        return gradients | {name: gradients[name].masked_fill(~selection.kept, 0.0)}

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """The update without the defended tensor: what is left is untouched, so no rate changes this attack.

        It holds whatever comes after the defense or is averaged with it. `KeptColumns` reads the tensor's other columns
        as well.
        """
        return without_layer(update, self.layer)

    def select(self, model: nn.Module, images: Tensor, generator: torch.Generator) -> Selection:
        """What the defense measures on a client's images [B, C, H, W] and which features it lets go."""
        features = _Features(model, self.layer)
        x = features.normalize(images)
        with torch.no_grad():
            r = features(x)
        if self.score == "random":
            gain = torch.ones_like(r)
            ranked = torch.rand(r.shape[1], generator=generator, dtype=torch.float64).to(r.device)
        else:
            gain = self._gain(features, x, r, generator)
            ranked = (gain / ((r if self.signed_denominator else r.abs()) + self.eps)).double().sum(0)
        return Selection(r, gain, ranked, self.pruning_rate)

    def _gain(self, features: _Features, x: Tensor, r: Tensor, generator: torch.Generator) -> Tensor:
        """[B, m]; 0 for features that are 0 in the whole batch, whose columns hold nothing to hide."""
        alive = (r != 0).any(0)
        live, way, together = alive.nonzero()[:, 0], self.jacobian, features.that_fit(x)
        if way == "auto":
            small = self.score != "row" or features.operations(x) * len(live) <= EXACT_UP_TO
            way = "vjp" if small else "jvp"
        if way == "jvp":
            return estimated_row_norms(features, x, self.draws, together, generator).where(alive, 0.0)
        gain = torch.zeros_like(r)
        if self.score == "row" and way == "vjp":
            for part, gradients in row_gradients(features, x, live, together):
                gain[:, part] = gradients.norm(dim=2)
            return gain
        for sample, image in enumerate(x):  # one at a time: a Jacobian has m x D entries
            if way == "jacrev":
                whole = jacrev(lambda x: features(x[None])[0], chunk_size=together)(image).flatten(1)[live]
            else:
                whole = torch.cat([part[0] for _, part in row_gradients(features, image[None], live, together)])
            gain[sample, live] = _GAINS[self.score](whole, self.ridge)
        return gain


@dataclass(frozen=True)
class KeptColumns(Soteria):
    """The same client, met by an attacker who also matches the columns that it shared; the zeroed ones count nothing.

    It reads the mask off the update, so it holds for one client's update that nothing changed afterwards: noise on top
    fills the zeros, and a mean of clients has columns that some of them left out.
    Source: Li et al. 2022 (GGL), section 4.
    """

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        return with_kept_columns(update, self.layer)


@dataclass(frozen=True, eq=False)
class Selection:
    """What Soteria measured on a batch, and what it lets go at a rate in percent.

    representation, gain: [B, m], the layer's inputs and what the score divides them by. ranked: [m], q.
    """

    representation: Tensor
    gain: Tensor
    ranked: Tensor
    pruning_rate: float

    @property
    def kept(self) -> Tensor:
        """[m], False for the columns that become zero."""
        threshold = float(np.percentile(self.ranked.cpu().numpy(), self.pruning_rate))
        return ~(self.ranked.abs() < threshold)

    @property
    def live(self) -> int:
        """Features that are not 0 for some image of the batch: the columns that hold anything."""
        return int((self.representation != 0).any(0).sum())

    @property
    def dead(self) -> int:
        return len(self.ranked) - self.live

    @property
    def pruned_live(self) -> int:
        return int(((self.representation != 0).any(0) & ~self.kept).sum())


def pruned_features(
    defense: Soteria, model: nn.Module, images: Tensor, seed: int = 0, rates: Sequence[float] | None = None
) -> pd.DataFrame:
    """How much of a rate reaches features that say anything: a row a rate and trial of images [T, B, C, H, W].

    rates: in percent, the defense's own when left out. Columns: trial, rate, features, dead, pruned (of all),
    pruned_live, effective_rate (in percent of the live features). Random numbers are those that `client.share` gives
    the first client under this seed.
    """
    rows = []
    for trial, own in enumerate(images):
        measured = defense.select(model, own, client.generator(seed, trial, client.DEFENSE_STREAM, 0))
        for rate in [defense.pruning_rate] if rates is None else rates:
            at = replace(measured, pruning_rate=rate)
            row = {"trial": trial, "rate": rate, "features": len(at.ranked), "dead": at.dead}
            row |= {"pruned": int((~at.kept).sum()), "pruned_live": at.pruned_live}
            rows.append(row | {"effective_rate": 100 * at.pruned_live / max(1, at.live)})
    return pd.DataFrame(rows)


def without_layer(update: SharedUpdate, layer: str) -> Observation:
    """The attacker who leaves the defended weight gradient out of the comparison.

    Source: Balunovic et al. 2022, section 5. Errors: ValueError for another layer.
    """
    weight = _defended(update, layer)
    return Observation(target=update.as_gradients(), weight={f"{layer}.weight": weight.new_zeros(1)})


def with_kept_columns(update: SharedUpdate, layer: str) -> Observation:
    """The attacker who compares the defended weight gradient where its columns are not zero, and all else.

    Errors: ValueError for another layer.
    """
    weight = _defended(update, layer)
    kept = (weight != 0).any(1, keepdim=True).to(weight.dtype)
    return Observation(target=update.as_gradients(), weight={f"{layer}.weight": kept})


def _defended(update: SharedUpdate, layer: str) -> Tensor:
    """[T, n, m]."""
    name = f"{layer}.weight"
    if name not in update.gradients or update.gradients[name].ndim != 3:
        able = [key.removesuffix(".weight") for key, g in update.gradients.items() if g.ndim == 3]
        raise ValueError(f"layer={layer!r} is no linear layer of this update; it has {', '.join(able)}")
    return update.gradients[name]


# --- the Jacobian of the representation -------------------------------------------------------------------------------


class _Features:
    """What enters a linear layer, as a function of normalised images: [B, C, H, W] -> [B, m]."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        _require_linear(model, layer)
        self.layer = layer
        self.network = client.worker(model, "eval").requires_grad_(False)
        self.normalize, self.network.normalize = self.network.normalize, nn.Identity()
        self._seen: list[Tensor] = []
        # on a copy, which ends with this object
        self.network.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))

    def __call__(self, x: Tensor) -> Tensor:
        self._seen.clear()
        self.network(x)
        if len(self._seen) != 1 or self._seen[0].shape[:-1] != x.shape[:1]:
            shapes = [list(seen.shape) for seen in self._seen]
            raise ValueError(
                f"layer={self.layer!r} must take one representation [N, features] in a forward pass over N = {len(x)} "
                f"images, but the shapes that it took are {shapes}"
            )
        return self._seen[0]

    def that_fit(self, x: Tensor) -> int:
        """Copies of an image to run at once: as many as memory holds, and no more than caches like."""
        return min(TOGETHER, client.trials_that_fit(self.network, x[:1].detach().clone().requires_grad_()))

    def operations(self, x: Tensor) -> float:
        """Floating-point operations of a forward pass over x, and of a backward pass to x about as many."""
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            self.network(x)
        return counted.get_total_flops()


def _require_linear(model: nn.Module, layer: str) -> None:
    modules = dict(model.named_modules())
    if not isinstance(modules.get(layer), nn.Linear):
        what = f"is of type {type(modules[layer]).__name__}" if layer in modules else "is not there"
        able = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        raise ValueError(f"layer={layer!r} {what}: expected a linear layer of this model, one of {', '.join(able)}")


def row_gradients(
    features: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor, together: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """dr_i/dx_b of the features i in `rows` [k] int64, part by part: these features, and their gradients [B, part, D].

    A copy of the images for every feature, and one backward pass through all copies: torch's own batched backward pass
    runs convolutions one after the other (in torch 2.11), which is no faster than a loop. features: maps [N, C, H, W]
    to [N, m], each sample by itself. together: copies at once.
    """
    for part in rows.split(max(1, together // len(x))):
        copies = x.detach().repeat_interleave(len(part), 0).requires_grad_()
        chosen = features(copies).gather(1, part.repeat(len(x))[:, None])
        (found,) = torch.autograd.grad(chosen.sum(), copies)
        yield part, found.view(len(x), len(part), -1)


def estimated_row_norms(
    features: Callable[[Tensor], Tensor], x: Tensor, draws: int, together: int, generator: torch.Generator
) -> Tensor:
    """An estimate of ||dr_i/dx_b|| from E (J v)_i^2 = ||g_i||^2 over v ~ N(0, 1), forward mode: [B, m]."""
    directions = torch.randn(draws, *x.shape, generator=generator).to(x)
    moved = vmap(lambda v: jvp(features, (x,), (v,))[1], chunk_size=max(1, together // len(x)))(directions)
    return moved.square().mean(0).sqrt()


def _row(rows: Tensor, ridge: float) -> Tensor:
    return rows.norm(dim=1)


def _pinv(rows: Tensor, ridge: float) -> Tensor:
    """1 / ||J^+ e_i||, with ||J^+ e_i||^2 = [(J J^T)^-1]_ii; in float64, as J J^T is close to singular."""
    gram = rows.double() @ rows.double().T
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise ValueError(f"ridge={ridge!r}: J J^T of these features is singular, use a larger one")
    return torch.cholesky_inverse(factor).diagonal().rsqrt().to(rows.dtype)


def _elementwise(rows: Tensor, ridge: float) -> Tensor:
    least = FLOOR * rows.abs().max()
    return rows.abs().clamp(min=least).double().square().reciprocal().sum(1).rsqrt().to(rows.dtype)


_GAINS = {"row": _row, "pinv": _pinv, "elementwise": _elementwise}
