"""All columns of a batch at once by the masks of its blurred images, none of them tested. The book's own.

`MaskGuided` tests each column before it goes on. Rounding, and local steps in which a unit crosses zero, leave zeros
that are none: the test refuses a column, and with it the batch. Here a false mask does no more than blur the images,
which give better masks the next time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks.columns import Completed, Mixture, completed, null_vector
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.reading import Read, reconstructed, started
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.attacks.separation import separate
from reprolib.federated.streams import Seed
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims

MARGINS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0, 0.0, 0.0)
"""How far below zero a unit counts as off, in turn, in root mean squares of an image's units."""

WORST = 0.03
"""The share of an image's rows that are left out in the end: those that fit its column worst."""


@dataclass(frozen=True)
class MasksAtOnce:
    """All images of a batch from the gradient of the linear layer that takes them, in front of a ReLU.

    Each image's column is what the units that it leaves off allow best: first those surely off, at last all. Of the
    separation and what follows from it the images are kept whose mixing leaks least into units that they leave off.
    margins: as `MARGINS`. sources: how many images to look for; None is the batch.
    """

    margins: tuple[settings.Share, ...] = MARGINS
    sources: settings.Count | None = None

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
        """Reconstruct the batch behind each trial; progress is taken and not used. It keeps no snapshots.

        objective of the result: the share of the mixing's entries whose zeros the images do not explain; evaluations:
        how often all columns were looked for. diverged: no certificate (`columns.completed`): the images may be exact
        all the same, and nothing says so. Errors: ValueError as `MaskGuided`'s.
        """
        began = time.perf_counter()
        layer, found = self.read(model, update, seed, snapshots)
        return reconstructed(update, layer, found, began)

    def read(
        self, model: nn.Module | Victims, update: SharedUpdate, seed: Seed = 0, snapshots: Sequence[int] = ()
    ) -> tuple[FirstLayer, list[Read]]:
        """The layer, and what was read of each trial."""
        layer, mixtures = started(self, model, update, snapshots, None, self.sources)
        blurred = separate(layer, self.sources, seed=seed).inputs
        return layer, [self.followed(layer, mixture, blurred[t]) for t, mixture in mixtures]

    def followed(self, layer: FirstLayer, mixture: Mixture, guess: Tensor) -> Read:
        """What becomes of the separated inputs [B, d] of one trial."""
        size = mixture.size
        columns = torch.linalg.lstsq(guess.T, mixture.right.T).solution.T
        seen = [Completed(guess, mixture.left @ columns, guess.new_zeros(size), False)]
        for margin in self.margins:
            units = mixture.units(layer.of_pixels(layer.to_pixels(guess[None]).clamp(0, 1))[0])
            least = units.argsort(0)[: size + 8]  # as many rows as a column takes, and a few more
            off = (units < -margin * units.square().mean(0).sqrt()).scatter(0, least, True)
            whole = completed(mixture, torch.stack([_column(mixture.left[own]) for own in off.T], 1))
            if not whole.inputs.any():  # columns that depend on each other
                break
            seen.append(whole)
            if whole.certified:
                return Read(whole, size, len(seen) - 1, ())
            guess = whole.inputs
        return Read(min(seen, key=lambda batch: leak(mixture, batch)), size, len(seen) - 1, ())


def _column(rows: Tensor) -> Tensor:
    """The null vector [B] of rows [n, B] but for the worst of them, which are false masks or units that crossed."""
    away = (rows @ null_vector(rows)).abs()
    return null_vector(rows[away.argsort()[: max(rows.shape[1], int((1 - WORST) * len(rows)))]])


def leak(mixture: Mixture, batch: Completed) -> float:
    """The share of a mixing's squares in units that the images themselves leave off, mean over images: in 0 to 1.

    Of a single gradient's truth it is what rounding leaves. It sorts what no certificate tells apart.
    """
    squares, off = batch.mixing.square(), mixture.units(batch.inputs) < 0
    return float(((squares * off).sum(0) / squares.sum(0)).mean())
