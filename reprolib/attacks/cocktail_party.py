"""The Cocktail Party Attack: a batch unmixed from a linear layer's gradient. Kariyappa et al., ICML 2023."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.priors import total_variation
from reprolib.attacks.reconstruction import Reconstruction, check_call, read_off, refuse_snapshots
from reprolib.attacks.separation import Samples, completed, scaled_by_bias, separate
from reprolib.federated.streams import Seed
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import adam

Reading = Literal["range", "bias"]


@dataclass(frozen=True)
class DerivativeICA:
    """FastICA on the image derivatives of the gradient's rows, sign and scale from the bias gradient: the book's own.

    No search over images and no weights to sweep: a decomposition, a few dozen iterations of FastICA, and one least
    squares. samples: what FastICA takes for samples (`separation.separate`); "pixels" is plain FastICA. sources: how
    many images to look for; None is the batch. layer: a linear layer's name; None finds the one that the image enters.
    An attacker who knows a defense fills in the entries that it left out (`separation.completed`).
    Source: the separation is Kariyappa et al. 2023, section 4, with FastICA (Hyvärinen and Oja 2000) in place of their
    objective; derivatives and the bias are this book's.
    """

    samples: Samples = "bands"
    sources: settings.Count | None = None
    layer: str | None = None
    iterations: settings.Count = 500
    tolerance: settings.Positive = 1e-7

    def __post_init__(self) -> None:
        settings.check(self)

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial, [T, n, C, H, W] in no order; progress is taken and not used. It
        keeps no snapshots.

        labels of the result: -1, none is read. objective: what the separated images leave of the bias gradient, as a
        share of it. evaluations: iterations of FastICA; diverged: it did not converge, its images are shown all the
        same. lost: images whose sign and scale the bias does not tell.
        Errors: ValueError for what `FirstLayer.of` and `separation.separate` refuse, and a layer whose inputs are
        features: `separate` gives these.
        """
        began = time.perf_counter()
        refuse_snapshots(self, check_call(update, snapshots))
        layer = completed(_of_images(model, update, self.layer), self.sources)
        found = separate(layer, self.sources, self.samples, seed, self.iterations, self.tolerance)
        images = layer.to_pixels(found.inputs).masked_fill(found.lost[:, :, None, None, None], 0.5)
        told = {"objective": found.residual, "evaluations": found.iterations, "diverged": ~found.converged}
        return read_off(images, began, **told, lost=found.lost)


@dataclass(frozen=True)
class CocktailParty:
    """The paper's objective on an unmixing matrix, by Adam: sources far from Gaussian, rows apart, images smooth.

    The rows of the gradient are centred and whitened to Z [n, d]. With U [n, n] of unit rows, S = U Z, the images are
    S and what centring took away, and for each trial the search minimises
    - contrast * mean_i (mean_j log cosh S_ij)^2 + decorrelation * mean_(i != k) (exp(temperature |cos(U_i, U_k)|) - 1)
    + variation * TV(images). The defaults are those of FC2 on Tiny-ImageNet.
    reading: "range" stretches each image from its least to its largest value, the sign is left open (the paper's);
    "bias" takes both from the bias gradient (`separation.scaled_by_bias`). sources, layer: as `DerivativeICA`'s.
    Source: Kariyappa et al. 2023, equations 6 to 8; values from the released scripts.
    """

    contrast: settings.Level = 1.0
    decorrelation: settings.Level = 1.47
    temperature: settings.Level = 12.4
    variation: settings.Level = 3.1
    learning_rate: settings.Length = 1e-3
    iterations: settings.Count = 25000
    reading: Reading = "range"
    sources: settings.Count | None = None
    layer: str | None = None

    @classmethod
    def paper(cls) -> CocktailParty:
        """The objective as the paper writes it, with the contrast."""
        return cls()

    @classmethod
    def released(cls) -> CocktailParty:
        """As the released code runs it, which sets the contrast to zero."""
        return cls(contrast=0.0)

    def __post_init__(self) -> None:
        settings.check(self)

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial, [T, n, C, H, W] in no order; seed and progress are taken and not
        used: the search starts from the identity. It keeps no snapshots.

        labels of the result: -1, none is read. objective: the search's. Errors: as `DerivativeICA`'s.
        """
        began = time.perf_counter()
        refuse_snapshots(self, check_call(update, snapshots))
        layer = _of_images(model, update, self.layer)
        party = Party.of(layer, layer.sources(self.sources))
        start = torch.eye(party.count, dtype=party.white.dtype, device=party.white.device)
        start = start.expand(layer.trials, -1, -1).flatten(1)

        def objective(points: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                unmixing = points.detach().unflatten(1, (party.count, party.count)).requires_grad_()
                value = self.objective(unmixing, party.select(trials), layer.shape)
                (slope,) = torch.autograd.grad(value.sum(), unmixing)
            return value.detach(), slope.flatten(1)

        (ended,) = deque(adam(objective, start, self.iterations, self.learning_rate), maxlen=1)
        unmixing = _unit_rows(ended.last.unflatten(1, (party.count, party.count))).double()
        if self.reading == "bias":
            inputs, _, lost, _ = scaled_by_bias(layer, unmixing @ party.whitening @ layer.weight)
            images, told = layer.to_pixels(inputs).masked_fill(lost[:, :, None, None, None], 0.5), {"lost": lost}
        else:
            images, told = _stretched(unmixing @ party.whitening @ layer.weight, layer), {}
        told |= {"objective": ended.objective.double(), "evaluations": ended.evaluations, "diverged": ended.diverged}
        return read_off(images, began, **told)

    def objective(self, unmixing: Tensor, party: Party, shape: tuple[int, ...]) -> Tensor:
        """The objective [T] of unmixing matrices [T, n, n], whose rows need not be of unit length."""
        rows = _unit_rows(unmixing)
        sources = rows @ party.white
        images = sources + rows @ party.offset
        value = self.variation * total_variation(images.unflatten(2, shape))
        if self.contrast:
            # log cosh x, without the overflow of cosh
            size = sources.abs()
            curve = (size + torch.nn.functional.softplus(-2 * size) - 0.6931471805599453).mean(2)
            value = value - self.contrast * curve.square().mean(1)
        if self.decorrelation and party.count > 1:
            cosines = (rows @ rows.mT).abs()
            apart = (self.temperature * cosines).exp() - 1
            apart = apart.sum((1, 2)) - apart.diagonal(dim1=1, dim2=2).sum(1)
            value = value + self.decorrelation * apart / (party.count * (party.count - 1))
        return value


@dataclass(frozen=True, eq=False)
class Party:
    """The mixtures that the objective unmixes: white [T, n, d], whitening Q [T, n, m], offset [T, n, 1], Q's of means.

    white is Q times the centred rows, its rows uncorrelated and of unit variance: white white' / (d - 1) = 1.
    """

    white: Tensor
    whitening: Tensor
    offset: Tensor

    @property
    def count(self) -> int:
        """The number of sources n."""
        return self.white.shape[1]

    @classmethod
    def of(cls, layer: FirstLayer, count: int) -> Party:
        """Centre and whiten a layer's weight gradient to its `count` largest directions. In float32, but for Q."""
        means = layer.weight.mean(2, keepdim=True)
        left, values, right = replace(layer, weight=layer.weight - means).decomposed
        scale = (layer.weight.shape[2] - 1) ** 0.5
        whitening = left[:, :, :count].mT * scale / values[:, :count, None]
        return cls((right[:, :count] * scale).float(), whitening, (whitening @ means).float())

    def select(self, trials: Tensor) -> Party:
        return Party(self.white[trials], self.whitening[trials], self.offset[trials])


def _of_images(model: nn.Module | Victims, update: SharedUpdate, name: str | None) -> FirstLayer:
    layer = FirstLayer.of(model, update, name)
    if layer.mean is None:
        raise ValueError(
            f"layer={name!r} lies behind others, its inputs are features: separation.separate gives these, a decoder "
            "makes images of them"
        )
    return layer


def _unit_rows(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm(dim=2, keepdim=True)


def _stretched(directions: Tensor, layer: FirstLayer) -> Tensor:
    """Each direction as an image from its least value, 0, to its largest, 1."""
    images = directions.unflatten(2, layer.shape) * layer.std.to(directions)
    low, high = images.amin((2, 3, 4), keepdim=True), images.amax((2, 3, 4), keepdim=True)
    return (images - low) / (high - low).clamp(min=torch.finfo(images.dtype).tiny)
