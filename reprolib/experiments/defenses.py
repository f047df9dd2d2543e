"""Experiments of the page on all defenses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from reprolib import client, metrics
from reprolib.client import ThreatModel, generator
from reprolib.data import ImageSet
from reprolib.defenses import Defense, GradDefense
from reprolib.defenses.graddefense import compensate
from reprolib.experiments.networks import CPU, attack_together, network_seed, shared


def denoised(
    model: torch.nn.Module, images: ImageSet, defense: GradDefense, clients: int, size: int, seed: int
) -> pd.DataFrame:
    """What the server's denoising makes of GradDefense's noise in the mean of clients' updates: a row a tensor.

    Columns: tensor; before, and after, the denoising, the Euclidean distance to the mean of the clean updates; after
    with the noise's variance in a mean ("fixed"), and with the one that the released demo computes ("official"),
    clients^2 times as large. Each client has `size` images. Source: sheet `defenses.md`, section 5, GradDefense 4.
    """
    x, y = images.batches(size, clients, seed=seed)
    clean, noisy = (client.share(model, x, y, defense=d, seed=seed).gradients for d in (None, defense))
    clean, noisy = ({name: g.mean(0) for name, g in gradients.items()} for gradients in (clean, noisy))
    variance = defense.noise_variance([1 / clients] * clients)
    cleaned = {"fixed": compensate(noisy, variance), "official": compensate(noisy, clients**2 * variance)}
    rows = []
    for name, g in clean.items():
        row = {"tensor": name, "before": (noisy[name] - g).norm().item()}
        rows.append(row | {way: (found[name] - g).norm().item() for way, found in cleaned.items()})
    return pd.DataFrame(rows)


def without_noise(
    images: ImageSet, defense: GradDefense, networks: int, attack: Any, seed: int, pool: ImageSet, **options: Any
) -> pd.DataFrame:
    """The scores of an attack by somebody who knows the seed of GradDefense's noise: a drawn network for each image."""
    x, y = images.batches(1, networks, seed=seed)
    victims, updates = [], []
    for k in range(networks):
        victim, update = shared(images, [k], k, seed, CPU, defense, ThreatModel(labels="known"), "lenet", options)
        clean = defense.without_noise(update, victim, network_seed(seed, k))
        updates.append(replace(update, gradients=clean))
        victims.append(victim)
    return metrics.score(attack_together(attack, victims, updates, seed), x, y, pool)


def attack_encoded(
    attack: Any,
    images: ImageSet,
    defense: Defense | None,
    networks: int,
    seed: int,
    pool: ImageSet,
    threat: ThreatModel,
    **options: Any,
) -> pd.DataFrame:
    """The scores of an attack on clients that alter their data, against what they trained on: a network an image.

    The last column, `original_identified`, is whether the reconstruction identifies the image that was altered.
    options: LeNet's, for `models.build`.
    """
    x, y = images.batches(1, networks, seed=seed)
    victims, updates, encoded = [], [], []
    for k in range(networks):
        victim, update = shared(images, [k], k, seed, CPU, defense, threat, "lenet", options)
        victims.append(victim)
        updates.append(update)
        targets = F.one_hot(y[k], images.num_classes).float()
        random = generator(network_seed(seed, k), 0, client.DEFENSE_STREAM, 0)  # as `share` does for its first trial
        encoded.append(x[k] if defense is None else defense.encode(x[k], targets, random)[0])
    reconstruction = attack_together(attack, victims, updates, seed)
    scores = metrics.score(reconstruction, torch.stack(encoded), y, pool)
    scores["original_identified"] = metrics.score(reconstruction, x, y, pool).identified
    return scores
