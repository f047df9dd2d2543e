"""Images recognised among others: what an attack without a search leaves to be told apart."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

from reprolib.attacks.fgla import FGLA
from reprolib.data import ImageSet
from reprolib.defenses.base import Defense
from reprolib.experiments.batches import Batches
from reprolib.federated import client
from reprolib.measure import metrics

AMONG = 500
"""Images of the set, of which the original must be the nearest to the reconstruction."""


def recognised(
    victim: nn.Module,
    attack: FGLA,
    batches: Batches,
    public: ImageSet,
    trials: Sequence[int],
    seed: int,
    defense: Defense | None,
) -> pd.DataFrame:
    """A row an image: identified among AMONG of its set, lost, and PSNR of the attack and of what takes no gradient.

    These are constant grey, the mean of the public images and the public image nearest to the original.
    """
    pool, device, rows = batches.images.images[:AMONG], victim.head.weight.device, []
    for trial in trials:
        x, y = batches.drawn([trial])
        known = client.ThreatModel(labels="known")
        update = client.share(victim, x.to(device), y.to(device), threat=known, defense=defense, seed=[(seed, trial)])
        found, truth = attack(victim, update), x[0]
        shown = found.images[0].cpu()
        guesses = {
            "psnr": shown,
            "grey": torch.full_like(truth, 0.5),
            "mean image": public.mean_image.expand_as(truth),
            "nearest public image": public.nearest(truth),
        }
        identified = (metrics.identify(shown, truth, pool)[0] == 1).numpy()
        row = {"trial": trial, "identified": identified, "lost": found.lost[0].cpu().numpy()}  # type: ignore[index]
        row |= {name: metrics.psnr(guess, truth).double().numpy() for name, guess in guesses.items()}
        rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)
