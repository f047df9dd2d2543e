"""The experiment that most chapters repeat: one attack on many images under several drawn networks."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from reprolib import client, metrics, models
from reprolib.chapter import Chapter
from reprolib.client import ThreatModel
from reprolib.data import ImageSet
from reprolib.defenses import Defense, describe


def attack_networks(
    ch: Chapter,
    name: str,
    attack: Any,
    images: ImageSet,
    networks: int,
    each: int,
    *,
    batch: int = 1,
    threat: ThreatModel | None = None,
    defense: Defense | None = None,
    pool: ImageSet | None = None,
    model: str = "lenet",
    **options: Any,
) -> pd.DataFrame:
    """Attack `each` batches of different images under each of `networks` drawn networks: a row an image.

    The columns are `metrics.score`'s, before them `network` and `defense`, after them `starts`. Network k and its
    images are the same for every attack and defense under one seed, so that results compare in pairs. Each network is
    a part of the chapter: a killed run continues with the next one. options: the architecture's, for `models.build`.
    """
    victims, labels = images.batches(batch, networks * each, seed=ch.seed)
    frames = []
    for network in range(networks):
        mine = slice(network * each, (network + 1) * each)
        frames.append(
            ch.part(
                f"{name}-network-{network}",
                attack_network,
                attack=attack,
                images=victims[mine],
                labels=labels[mine],
                classes=images.num_classes,
                network=network,
                seed=ch.seed,
                device=ch.device,
                threat=threat,
                defense=defense,
                pool=pool,
                model=model,
                options=options,
            )
        )
    return pd.concat(frames, ignore_index=True)


def attack_network(
    attack: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    network: int,
    seed: int,
    device: torch.device,
    threat: ThreatModel | None,
    defense: Defense | None,
    pool: ImageSet | None,
    model: str,
    options: dict[str, Any],
) -> pd.DataFrame:
    """The rows of one network: build the victim, share, attack, score. images: [T, B, C, H, W]."""
    victim = models.build(model, classes, tuple(images.shape[2:]), seed=network_seed(seed, network), **options)
    victim = victim.to(device)
    update = client.share(victim, images.to(device), labels.to(device), threat=threat, defense=defense, seed=seed)
    if defense is not None:  # `share` extends the victim itself; the attacker is given the same extended model
        victim = defense.extend(victim)
    reconstruction = attack(victim, update, seed=network_seed(seed, network))
    scores = metrics.score(reconstruction, images, labels, pool)
    scores.insert(0, "network", network)
    scores.insert(1, "defense", describe(defense))
    scores["starts"] = reconstruction.starts.cpu().repeat_interleave(images.shape[1]).numpy()
    return scores


def network_seed(seed: int, network: int) -> int:
    """The seed of the weights, and of the dummies against them: no two (seed, network) pairs share one."""
    return 100_000 * seed + network
