"""Mask-guided recovery: a blurred image says which units it leaves off, which give its exact column. The book's own.

SPEAR (Dimitrov et al. 2024) samples rows until all of them happen to be zero in one column: twice the work for each
image more. Derivative ICA (`separation`) separates the same batch within a second, not exactly, but well enough to
say which units an image surely leaves off. Their rows have one null vector, the image's column. Whether somebody
published this before was not searched exhaustively.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks import separation
from reprolib.attacks.columns import Completed, Mixture, completed, is_new, sampled, true_column
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.reading import Read, reconstructed, started
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims

MASK_STREAM = 0x3A5C  # of the rows that are drawn among those that an image probably leaves off

LADDER = (1.15, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 6.5, 8.0)
"""How many of an image's surest rows are tried, in turn, in units of the batch."""


@dataclass(frozen=True)
class MaskGuided:
    """All images of a batch, exactly, from the gradient of a linear layer in front of a ReLU: no search over images.

    A column is believed where its zeros are sharp. Those of rounded updates and of several steps are not: there it may
    lose a batch that is exact, and `MasksAtOnce` goes further.

    passes: how often separation and columns follow each other at most, each time on the images that are left.
    subspace: the most images that may be off together in all rows tried; within their null space `draws` sets of rows
    are sampled as SPEAR does. ica_iterations, tolerance: of FastICA on bands in each pass (`separation.fast_ica`).
    layer: the name of a linear layer behind others, whose inputs are features;
    None finds the one that takes the image. sources: how many images to look for; None is the batch.
    """

    passes: settings.Count = 20
    subspace: settings.Count = 8
    draws: settings.Count = 256
    ica_iterations: settings.Count = 150
    tolerance: settings.Positive = 1e-4
    layer: str | None = None
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
        columns tried. diverged: no certificate (`columns.completed`): the images are then those of the separation, of
        which none is claimed to be exact.
        Errors: ValueError for what `FirstLayer.of` and `columns.Mixture.of` refuse, a layer whose inputs are features
        (`read` gives those), and a layer whose units pass gradients whatever the image.
        """
        began = time.perf_counter()
        layer, found = self.read(model, update, seed, snapshots)
        return reconstructed(update, layer, found, began)

    def read(
        self, model: nn.Module | Victims, update: SharedUpdate, seed: Seed = 0, snapshots: Sequence[int] = ()
    ) -> tuple[FirstLayer, list[Read]]:
        """The layer, and what was read of each trial: inputs of the layer, features where it lies behind others."""
        layer, mixtures = started(self, model, update, snapshots, self.layer, self.sources)
        return layer, [_Search(self, layer, mixture, generator(seed, t, MASK_STREAM)).run() for t, mixture in mixtures]


@dataclass(eq=False)
class _Search:
    """One trial's way: columns found so far, and the images of which none is."""

    attack: MaskGuided
    layer: FirstLayer
    mixture: Mixture
    random: torch.Generator
    found: Tensor = field(init=False)
    tried: int = 0
    trace: list[int] = field(default_factory=list)

    def run(self) -> Read:
        mixture, attack = self.mixture, self.attack
        self.found = mixture.left.new_zeros(mixture.size, 0)
        if mixture.size == 1:
            return Read(completed(mixture, mixture.left.new_ones(1, 1)), 1, 1, (1,))
        guess: Tensor | None = None
        first, stale = None, 0
        for _ in range(attack.passes):
            guess = self._separate(guess if stale == 0 else None)
            first = guess if first is None else first
            before = self.found.shape[1]
            self._columns(mixture.units(guess))
            whole = completed(mixture, self.found) if self.found.shape[1] == mixture.size else None
            self.trace.append(self.found.shape[1])
            if whole is not None and whole.certified:
                return Read(whole, mixture.size, self.tried, tuple(self.trace))
            if whole is not None:  # some column is a mixture after all: drop those that their images do not explain
                self.found = self.found[:, whole.explained > 0.999]
            stale = 0 if self.found.shape[1] > before else stale + 1
            if stale == 3:
                break
        none = mixture.left.new_zeros(len(mixture.left), mixture.size)
        failed = Completed(first, none, first.new_zeros(mixture.size), False)
        return Read(failed, self.found.shape[1], self.tried, tuple(self.trace))

    def _separate(self, guess: Tensor | None) -> Tensor:
        """Images [n, d] of which no column is known, separated in what is left of the gradient without the others."""
        mixture = self.mixture
        rows, bias, left = mixture.right, mixture.bias, mixture.left
        columns = left @ self.found
        if columns.shape[1]:
            basis = torch.linalg.qr(columns)[0]
            rest = left - basis @ (basis.T @ left)
            bias = bias - basis @ (basis.T @ bias)
            outer, values, inner = torch.linalg.svd(rest, full_matrices=False)
            kept = mixture.size - columns.shape[1]
            left, rows = outer[:, :kept] * values[:kept], inner[:kept] @ rows
        taken = self._samples(rows)
        white, whitening = separation.whitened(taken[None])
        if guess is None or len(rows) > len(guess):
            start = torch.randn(len(rows), len(rows), generator=self.random, dtype=rows.dtype)
        else:  # the images of the last pass, as far as the rows that are left span them
            unmixing = torch.linalg.lstsq(rows.T, self._unexplained(guess, len(rows)).T).solution.T
            start = torch.linalg.solve(whitening[0], unmixing, left=False)
        steepness = 3.0 if self.maps else 1.0
        turned = separation.fast_ica(
            white.float(), start[None].float(), self.attack.ica_iterations, self.attack.tolerance, steepness
        )
        unmixing = turned.matrix[0].to(rows) @ whitening[0]
        return self._scaled(unmixing @ rows, left @ torch.linalg.inv(unmixing), bias)

    @property
    def maps(self) -> bool:
        """Whether the layer's inputs have neighbours to take differences of."""
        return len(self.layer.shape) == 3 and min(self.layer.shape[1:]) >= 4

    def _samples(self, rows: Tensor) -> Tensor:
        return separation.bands(rows[None], self.layer.shape)[0] if self.maps else rows

    def _unexplained(self, guess: Tensor, size: int) -> Tensor:
        """The `size` images of the last pass whose own columns are least among those found."""
        mixture = self.mixture
        zeros = (mixture.left @ self.found).abs() < mixture.zero
        off = (mixture.units(guess) < 0).to(guess)
        # a found column belongs to the guess that leaves off the same units
        share = off.T @ zeros.to(guess) + (1 - off).T @ (~zeros).to(guess)
        taken = torch.zeros(len(guess), dtype=torch.bool)
        for column in range(share.shape[1]):
            order = share[:, column].masked_fill(taken, -1.0)
            if int((~taken).sum()) > size:
                taken[order.argmax()] = True
        return guess[~taken][:size]

    def _scaled(self, directions: Tensor, mixing: Tensor, bias: Tensor) -> Tensor:
        """Inputs with the sign and scale that the bias gives them, within the range that pixels have."""
        scale = torch.linalg.lstsq(mixing, bias[:, None]).solution
        inputs = directions / torch.where(scale.abs() > 1e-12, scale, torch.ones_like(scale))
        if self.layer.mean is None or self.layer.std is None:
            return inputs
        return self.layer.of_pixels(self.layer.to_pixels(inputs[None]).clamp(0, 1))[0]

    def _columns(self, units: Tensor) -> None:
        """Look for the column of each image by the rows [k, n] that it surely leaves off."""
        mixture, left = self.mixture, self.mixture.left
        size = mixture.size
        for image in range(units.shape[1]):
            values = units[:, image]
            order, off = values.argsort(), int((values < 0).sum())
            gram, last = left.new_zeros(size, size), 0
            for times in LADDER:
                count = min(int(times * size) + 2, off)
                if count <= last or self.found.shape[1] >= size:
                    break
                rows = left[order[last:count]]
                gram, last = gram + rows.T @ rows, count
                squares, vectors = torch.linalg.eigh(gram)
                nullity = int((squares < mixture.null**2).sum())
                if nullity == 0:
                    break
                if nullity <= self.attack.subspace and self._take(vectors[:, :nullity], values):
                    break

    def _take(self, null: Tensor, values: Tensor) -> bool:
        """Add what columns the null space [B, k] of some rows holds; whether there is nothing more in it to find."""
        if null.shape[1] == 1:
            candidates = null
        else:
            reduced = self.mixture.left @ null
            likely = torch.special.ndtr(-values / values.square().mean().sqrt() * 4)
            likely = likely.clamp(min=1e-3) * (reduced.norm(dim=1) > 10 * self.mixture.zero)
            if int((likely > 0).sum()) < null.shape[1] + 3:
                return False
            weights = likely.expand(self.attack.draws, -1)
            draws = torch.multinomial(weights, null.shape[1] - 1, generator=self.random)
            own, zeros = sampled(reduced, self.mixture.zero, draws, null.shape[1] + 3)
            candidates = null @ own[:, zeros.argsort(descending=True)[:24]]
        before = self.found.shape[1]
        for candidate in candidates.T:
            self.tried += 1
            if is_new(candidate / candidate.norm(), self.found):
                column = true_column(self.mixture, candidate)
                if column is not None and is_new(column, self.found):
                    self.found = torch.cat([self.found, column[:, None]], 1)
        return null.shape[1] == 1 or self.found.shape[1] > before
