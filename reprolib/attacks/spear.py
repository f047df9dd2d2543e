"""SPEAR: a whole batch read exactly from the gradient of a linear layer in front of a ReLU.

Dimitrov, Baader, Müller and Vechev, NeurIPS 2024. Written from the paper's abstract, figure captions and reviews; the
released code was not read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks.columns import Completed, Mixture, completed, null_vector, sampled
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.reading import Read, reconstructed, started
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims

SPEAR_STREAM = 0x5BEA  # of the rows that are sampled

POOL = 4  # candidates that are kept for the second stage, in batches: the sparsest, and those that span

NEW = 64  # different candidates of one evaluation that are looked at


@dataclass(frozen=True)
class SPEAR:
    """Sample rows until all are zero in one column; keep sparse null vectors; stop on a certificate, without any truth.

    With B images, B - 1 rows are all zero in a given column with a probability of about 2^-(B - 1).
    batch_samples: submatrices evaluated at once. max_samples: submatrices after which it gives up. sparsity: the least
    share of a column's rows that must be zero. swaps: of the second, greedy stage, which exchanges columns for other
    candidates that explain more of the zeros; it is run where the sparsest do not certify, when
    twice as many were sampled as the last time. layer, sources: as
    `MaskGuided`'s. Source: Dimitrov et al. 2024, sections 3 and 4.
    """

    batch_samples: settings.Count = 4096
    max_samples: settings.Whole = 400_000
    sparsity: settings.Share = 0.15
    swaps: settings.CountOrZero = 4
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
        submatrices sampled. diverged: no certificate: of what is shown nothing is claimed to be exact.
        Errors: ValueError as `MaskGuided`'s.
        """
        began = time.perf_counter()
        layer, found = self.read(model, update, seed, snapshots)
        return reconstructed(update, layer, found, began)

    def read(
        self, model: nn.Module | Victims, update: SharedUpdate, seed: Seed = 0, snapshots: Sequence[int] = ()
    ) -> tuple[FirstLayer, list[Read]]:
        """The layer, and what was read of each trial."""
        layer, mixtures = started(self, model, update, snapshots, self.layer, self.sources)
        return layer, [self._one(mixture, generator(seed, t, SPEAR_STREAM)) for t, mixture in mixtures]

    def _one(self, mixture: Mixture, random: torch.Generator) -> Read:
        rows, size = mixture.left.shape
        if size == 1:
            return Read(completed(mixture, mixture.left.new_ones(1, 1)), 1, 1, (1,))
        least, tried = max(int(self.sparsity * rows), size + 2), 0
        pool, zeros = mixture.left.new_zeros(size, 0), torch.zeros(0, dtype=torch.int64)
        best = Completed(mixture.right * 0, mixture.left * 0, mixture.bias.new_zeros(size), False)
        rank, swapped, loose = 0, 0, max(mixture.zero, 1e-7)
        trace: list[int] = []
        picked: list[int] = []
        while tried < self.max_samples:
            draws = torch.rand(self.batch_samples, rows, generator=random, dtype=torch.float32).topk(size - 1)[1]
            new, own = sampled(mixture.left, loose, draws, least)
            tried += self.batch_samples
            held = pool.shape[1]
            order = own.argsort(descending=True)
            new, own = new[:, order], own[order]
            for _ in range(NEW):  # the sparsest that is none of the pool's: most are the same few, again and again
                fresh = (pool.T @ new).abs().amax(0) < 1 - 1e-6 if pool.shape[1] else own >= 0
                new, own = new[:, fresh], own[fresh]
                if not len(own):
                    break
                # all its zeros say it more exactly than the rows that were sampled
                column = null_vector(mixture.left[(mixture.left @ new[:, 0]).abs() < loose])
                pool, zeros = torch.cat([pool, column[:, None]], 1), torch.cat([zeros, own[:1]])
                new, own = new[:, 1:], own[1:]
            trace.append(pool.shape[1])
            if pool.shape[1] == held:
                continue
            order = zeros.argsort(descending=True)
            first = _independent(pool[:, order], size)
            rest = [k for k in range(len(order)) if k not in first][: (POOL - 1) * size]
            order, chosen = order[[*first, *rest]], list(range(len(first)))
            pool, zeros = pool[:, order], zeros[order]
            rank, before = len(chosen), picked
            picked = zeros[chosen].tolist()
            if rank < size or picked == before:
                continue
            found = completed(mixture, pool[:, chosen])
            if not found.certified and tried >= 2 * swapped:
                found, swapped = self._second_stage(mixture, pool, chosen), tried
            if found.agreement >= best.agreement:
                best = found
            if best.certified:
                break
        return Read(best, rank, tried, tuple(trace))

    def _second_stage(self, mixture: Mixture, pool: Tensor, chosen: list[int]) -> Completed:
        """Exchange the columns whose zeros their images explain least for other candidates, while more is explained."""
        best = completed(mixture, pool[:, chosen])
        others = [k for k in range(pool.shape[1]) if k not in chosen]
        for _ in range(self.swaps):
            if best.certified or not others:
                break
            worst = int(best.explained.argmin())
            swapped = [[*chosen[:worst], k, *chosen[worst + 1 :]] for k in others]
            tried = [completed(mixture, pool[:, own]) for own in swapped]
            k = max(range(len(tried)), key=lambda k: tried[k].agreement)
            if tried[k].agreement <= best.agreement:
                break
            others[k], chosen, best = chosen[worst], swapped[k], tried[k]
        return best


def _independent(pool: Tensor, size: int) -> list[int]:
    """The first columns of [B, n], the sparsest before the others, that do not depend on those taken before."""
    chosen: list[int] = []
    basis = pool.new_zeros(len(pool), 0)
    for k in range(pool.shape[1]):
        rest = pool[:, k] - basis @ (basis.T @ pool[:, k])
        if rest.norm() > 1e-5:
            basis, chosen = torch.cat([basis, (rest / rest.norm())[:, None]], 1), [*chosen, k]
        if len(chosen) == size:
            break
    return chosen
