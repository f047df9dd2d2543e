"""Robbing the Fed: images read off a block that sorts them into bins. Fowl, Geiping, Czaja et al., ICLR 2022."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.reconstruction import Reconstruction, check_call, read_off, refuse_snapshots
from reprolib.federated.streams import Seed
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.models.imprint import NAME

Differences = Literal["downward", "upward"]


def bins(weight: Tensor, bias: Tensor, differences: Differences = "downward") -> tuple[Tensor, Tensor]:
    """What each bin of a cumulative block holds: weight [T, K, d] and bias [T, K], as they are given.

    weight, bias: gradients of rows in the ascending order of their thresholds: row k holds all images above c_k.
    differences: "downward" takes the next row's away, and the last row is its own bin; "upward", as the released code
    has it, takes the row before, so that row 0 stays the sum of everything and the topmost bin is never alone.
    Source: Fowl et al. 2022, equation 5, and the released code.
    """
    settings.held("differences", Differences, differences)
    if differences == "upward":
        own, other = slice(1, None), slice(None, -1)
    else:
        own, other = slice(None, -1), slice(1, None)
    weight, bias = weight.clone(), bias.clone()
    weight[:, own], bias[:, own] = weight[:, own] - weight[:, other], bias[:, own] - bias[:, other]
    return weight, bias


@dataclass(frozen=True)
class RobbingTheFed:
    """Read the images off the block that a server of `servers.Imprint` put in front: one division a bin, no search.

    An image alone in its bin comes out exactly; several in one come out as a weighted mean of them. It draws nothing
    from labels, and works after local steps of SGD too, in which the thresholds move.
    tolerance: bins whose bias gradient is at most so much of the trial's largest are empty but for rounding; an
    attacker who knows of noise leaves out what three of its deviations may have made.
    differences: as `bins`'. Where noise drowns the bias it finds nothing: `likely.LikelyImages` reads on.
    """

    tolerance: Annotated[float, settings.Range(0, 1, below=True)] = 1e-5
    differences: Differences = "downward"

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
        """Reconstruct the batch behind each trial; seed and progress are taken and not used: nothing is drawn. It keeps
        no snapshots.

        The result holds an image for each row, [T, K, C, H, W], in the ascending order of the thresholds; lost: empty
        ones, mid-grey. labels: -1, none is inferred; objective: 0, since nothing is searched for.
        Errors: ValueError for a threat model without a malicious architecture, a model without the block, and those of
        `FirstLayer.of`.
        """
        began = time.perf_counter()
        refuse_snapshots(self, check_call(update, snapshots))
        update.check(model)
        update.require_server("RobbingTheFed", "malicious architecture")
        victims = Victims.of(model)
        block = getattr(victims.skeleton, NAME, None)
        if block is None:
            raise ValueError(
                "the model has no imprint block: send servers.Imprint(...).broadcast(model) to the clients"
            )
        layer = FirstLayer.of(model, update, f"{NAME}.rows")
        weight, bias, noise_std = layer.weight, layer.bias, layer.noise_std
        if block.layout == "cumulative":
            thresholds = -victims.weights()[f"{NAME}.rows.bias"]
            order = thresholds.expand(len(bias), -1).argsort(dim=1, stable=True)
            weight, bias = weight.take_along_dim(order[:, :, None], 1), bias.gather(1, order)
            weight, bias = bins(weight, bias, self.differences)
            noise_std *= 2**0.5  # of a difference
        return pictures_of(layer, *read_rows(weight, bias, self.tolerance, noise_std), began)


@dataclass(frozen=True)
class TrapRows:
    """Read the images off the first layer's rows, of which `servers.TrapWeights` made traps: one division a row.

    A row that one image alone passes holds it exactly; others hold weighted means. Without traps, on the rows of any
    ReLU network, it finds what passed a row alone by chance. tolerance: as `RobbingTheFed`'s.
    Source: Boenisch et al. 2023 (arXiv:2112.02918).
    """

    tolerance: Annotated[float, settings.Range(0, 1, below=True)] = 1e-5

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
        """As `RobbingTheFed`: an image for each row of the first layer, [T, K, C, H, W].

        Errors: ValueError for those of `FirstLayer.of`.
        """
        began = time.perf_counter()
        refuse_snapshots(self, check_call(update, snapshots))
        layer = FirstLayer.of(model, update)
        return pictures_of(layer, *read_rows(layer.weight, layer.bias, self.tolerance, layer.noise_std), began)


def read_rows(weight: Tensor, bias: Tensor, tolerance: float, noise_std: float) -> tuple[Tensor, Tensor]:
    """Rows [T, K, d] over their biases [T, K]: inputs [T, K, d], and which are lost, [T, K].

    Lost is a bias that rounding or three deviations of the noise may have made.
    """
    least = tolerance * bias.abs().amax(1, keepdim=True)
    lost = (bias.abs() <= least) | (bias.abs() <= 3 * noise_std)
    return weight / bias.masked_fill(lost, 1.0)[:, :, None], lost


def pictures_of(layer: FirstLayer, inputs: Tensor, lost: Tensor, began: float) -> Reconstruction:
    """Inputs [T, K, d] of the layer as images, mid-grey where they are `lost`."""
    found = layer.to_pixels(inputs)
    return read_off(found.masked_fill(lost[:, :, None, None, None], 0.5), began, lost=lost)


def expected_alone(images: int, bins: int) -> float:
    """How many of n images are alone in one of k bins of equal mass, on average: n (1 - 1/k)^(n - 1).

    Errors: ValueError for numbers below 1.
    """
    images, bins = settings.held("images", settings.Whole, images), settings.held("bins", settings.Whole, bins)
    return images * (1 - 1 / bins) ** (images - 1)


def expected_by_configurations(images: int, bins: int) -> float:
    """The paper's count r(n, k): the same with all ways to divide n among k bins equally likely, less n / k.

    Images do not fall so: that all share one bin is one way of many, but of images 1 in k^(n - 1). In closed form
    n k (k - 1) / ((n + k - 1) (n + k - 2)) - n / k.
    Errors: ValueError for numbers below 1. Source: Fowl et al. 2022, proposition 1.
    """
    n, k = settings.held("images", settings.Whole, images), settings.held("bins", settings.Whole, bins)
    if n + k < 3:
        return 0.0
    return n * k * (k - 1) / ((n + k - 1) * (n + k - 2)) - n / k
