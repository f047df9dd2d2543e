"""Every attack of the book on the same images: the figure of the first page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from reprolib.data import ImageSet
from reprolib.experiments.networks import SHOWN, network_seed
from reprolib.federated import client
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics


def every_attack(
    images: ImageSet, attacks: Mapping[str, tuple[Any, nn.Module]], seed: int, device: torch.device, pool: ImageSet
) -> dict[str, Any]:
    """SHOWN single images, each attacked on its own gradient by every attack, against the victim given with it.

    attacks: name -> (attack, victim). The attacker knows the label and no batch-norm statistics. Returns "truth" and
    each name, [SHOWN, C, H, W] in [0, 1], and "scores": a row an (attack, image) with `metrics.score`'s columns, those
    before them the attack's name and the seconds of all images together.
    """
    x, y = images.batches(1, SHOWN, seed=seed)
    found: dict[str, Tensor | pd.DataFrame] = {"truth": x[:, 0]}
    tables = []
    for name, (attack, victim) in attacks.items():
        victim = victim.to(device)
        update = client.share(victim, x.to(device), y.to(device), threat=ThreatModel(labels="known"))
        result = attack(victim, update, seed=network_seed(seed, 0))
        found[name] = result.images[:, 0].cpu()
        scores = metrics.score(result, x, y, pool)
        scores.insert(0, "attack", name)
        scores.insert(1, "seconds", result.seconds)
        tables.append(scores)
    return found | {"scores": pd.concat(tables, ignore_index=True)}
