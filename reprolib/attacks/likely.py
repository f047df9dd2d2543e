"""The likeliest images behind rows that DP-SGD clipped and drowned, for a server that has images of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.reconstruction import Reconstruction, check_call, read_off, refuse_snapshots
from reprolib.data import ImageSet
from reprolib.federated.streams import Seed
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.models.imprint import NAME

AXES = 128
"""Directions in which a row is looked at: those that most of the server's images need."""

TYPICAL = 4000
"""Of the server's images, the first that tell these directions."""

NEAR = 1000
"""Of the server's images, those nearest to a bin tell what the images in it look like."""

FEWEST = 32
"""Images that tell a law at all."""

CONTRAST = 2.0
"""What sets an image apart from others in its bin is shown so many times as strong as it is expected to be.

The expected image is pale: what noise hides is left out, and the palest picture of a pool is the nearest to it. On
images of seed 101, at a noise multiplier of 0.1, a factor of 1 identified 63 %, and 2 identified 84 %.
"""


@dataclass(frozen=True, eq=False)
class LikelyImages:
    """Read a batch off the rows of a sparse `servers.Imprint` under DP-SGD: as many images as the batch holds.

    Where the rows hold nearly all of an image's gradient, the clip fixes the length of what each image leaves in its
    row: r = +-u C / B + noise, u being (x, 1) at length 1. Each bin fixes the brightness of its images, and the
    server's own images of that brightness say what u may be (`most_likely`). The rows that most likely hold an image
    are read, one for each image of the batch, however unsure: it always guesses.
    public: the server's images. max_norm: C, the clip of the `defenses.DPSGD` that it knows of.
    """

    public: ImageSet = field(repr=False)
    max_norm: settings.Length

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
        """Reconstruct the batch behind each trial, [T, B, C, H, W], the surest first; seed and progress are not used.

        labels: -1, none is inferred; objective: 0, since nothing is searched for.
        Errors: ValueError for a threat model without a malicious architecture, a model without rows that pass one bin
        each, an update without noise that the attacker knows of, several models, and those of `FirstLayer.of`.
        """
        began = time.perf_counter()
        refuse_snapshots(self, check_call(update, snapshots))
        update.check(model)
        update.require_server("LikelyImages", "malicious architecture")
        victims = Victims.of(model)
        block = getattr(victims.skeleton, NAME, None)
        if block is None or block.layout == "cumulative":
            raise ValueError("the model has no rows that pass one bin each: send servers.Imprint(layout='sparse')")
        layer = FirstLayer.of(model, update, f"{NAME}.rows")
        if layer.noise_std == 0:
            raise ValueError("the attacker knows of no noise: give a threat model with defense_known=True, and DP-SGD")
        weight, bias = (victims.weights()[f"{NAME}.rows.{part}"].detach() for part in ("weight", "bias"))
        if weight.dim() != 2:
            raise ValueError("the trials are of several models, whose bins differ: read them one by one")
        images = victims.skeleton.normalize.forward(self.public.images.to(weight)).flatten(1)
        unit = self.max_norm / layer.batch_size
        rows = (torch.cat([layer.weight, layer.bias[:, :, None]], 2) / unit).to(images)
        places = (images @ weight.T + bias) / block.top
        found = most_likely(rows, layer.noise_std / unit, images, places, layer.batch_size)
        return read_off(layer.to_pixels(found), began, lost=torch.zeros(found.shape[:2], dtype=torch.bool))


def most_likely(rows: Tensor, noise: float, images: Tensor, places: Tensor, count: int) -> Tensor:
    """The `count` inputs [T, count, d] that rows [T, K, d + 1] most likely hold, the surest first.

    A row is empty or +-u, u = (x, 1) at length 1, and noise of this deviation on each entry. images: [N, d], the
    attacker's own; places: [N, K], where they lie on each row's bin, inside from 0 to 1.
    Errors: ValueError for fewer images than FEWEST.
    """
    if len(images) < FEWEST:
        raise ValueError(f"{len(images)} images do not say what images look like: give {FEWEST} or more")
    near = min(NEAR, len(images) // 4)
    typical = torch.nn.functional.normalize(torch.nn.functional.pad(images, (0, 1), value=1.0))
    kept = min(AXES, near // 4, typical.shape[1])
    axes = randomized_svd(typical[:TYPICAL].numpy(), kept, n_iter=2, random_state=0)[2]
    axes = torch.as_tensor(axes).to(rows)
    scores, seen = typical @ axes.T, rows @ axes.T
    laws = [_Law.of(scores, places[:, k], near, rows.shape[1]) for k in range(rows.shape[1])]
    likelier = torch.stack([law.read(seen[:, k], noise)[0] for k, law in enumerate(laws)], 1)
    best = likelier.topk(min(count, len(laws)), 1).indices
    found = rows.new_empty(*best.shape, images.shape[1])
    for t, chosen in enumerate(best.tolist()):
        for j, k in enumerate(chosen):
            found[t, j] = laws[k].read(seen[t, k][None], noise)[1][0] @ images[laws[k].near]
    return found


@dataclass(frozen=True, eq=False)
class _Law:
    """The normal law of one bin's u in r directions, by the n own images nearest to the bin, `near` [n].

    level: [n], the weights of these images in the mean of the bin; mean: [r], of u there; spread: [n, r], how far the
    images lie from what their place alone would say, along directions of these variances [r]; basis: [r, r].
    """

    near: Tensor
    level: Tensor
    mean: Tensor
    spread: Tensor
    variances: Tensor
    basis: Tensor

    @classmethod
    def of(cls, scores: Tensor, places: Tensor, near: int, bins: int) -> _Law:
        """scores: [N, r], of all own images; places: [N] on the bin; near: how many tell the law."""
        away = (places - places.clamp(0, 1)).abs()
        index = away.argsort(stable=True)[:near]
        # the mean changes along the bins: a line through the neighbours gives it in the bin's own midst
        place = places[index] - places[index[: max(1, len(places) // bins)]].mean()
        line = torch.stack([torch.ones_like(place), place / place.abs().max().clamp(min=1e-12)], 1)
        through = torch.linalg.pinv(line)  # [2, n]
        own = scores[index]
        left = own - line @ (through @ own)
        variances, basis = torch.linalg.eigh(left.T @ left / (near - 2))
        return cls(index, through[0], through[0] @ own, left @ basis, variances.clamp(min=0), basis)

    def read(self, seen: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """Rows [T, r]: how much likelier each is than an empty one, [T] (log), and the image as weights [T, n].

        The weights are those of the own images: their sum is what the row's image is expected to be, by either sign as
        likely as the row makes it, and CONTRAST times as far from the mean of the bin.
        """
        whole = self.variances + noise**2
        away = torch.stack([(sign * seen - self.mean) @ self.basis for sign in (1, -1)])  # [2, T, r]
        fit = -((away.square() / whole).sum(2) + (whole / noise**2).log().sum()) / 2
        empty = -(seen.square() / noise**2).sum(1) / 2
        apart = (fit.softmax(0)[:, :, None] * away).sum(0) / whole
        weights = self.level + CONTRAST * apart @ self.spread.T / (len(self.near) - 2)
        return fit.logsumexp(0) - empty, weights
