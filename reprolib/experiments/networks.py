"""Attacks on many images under drawn networks: what the experiments of every chapter stand on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reprolib import models
from reprolib.book.chapter import Chapter
from reprolib.data import ImageSet
from reprolib.defenses import Defense, describe
from reprolib.experiments import training, utility
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate
from reprolib.measure import metrics
from reprolib.models import Victims
from reprolib.models.victim import Victim

TOGETHER = 64
"""Trials attacked at once, and so the size of a part that a killed chapter computes again."""

CPU = torch.device("cpu")

SHOWN = 8
"""Images of an experiment that are kept to be looked at."""

TRAINED_AT = 0.01
"""Learning rate of victims that are trained before they are attacked: the best of 0.003, 0.01 and 0.03."""

ACTIVATIONS = {"relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.01), "gelu": nn.GELU, "sigmoid": nn.Sigmoid}
"""Of `one_hidden`."""


@dataclass(frozen=True, eq=False)
class Attacked:
    """What came of `attack_networks`: all scores, and the first images and their reconstructions.

    scores: a row an image. truth, shown: [n, C, H, W] with n at most SHOWN, the reconstructions clamped and in the
    order of their images.
    """

    scores: pd.DataFrame
    truth: Tensor
    shown: Tensor


def attack_networks(
    ch: Chapter,
    name: str,
    attack: Any,
    images: ImageSet,
    networks: int,
    each: int,
    *,
    batch: int = 1,
    distinct_labels: bool = False,
    threat: ThreatModel | None = None,
    defense: Defense | None = None,
    local: LocalTraining | None = None,
    pool: ImageSet | None = None,
    model: str = "lenet",
    checkpoint: str | None = None,
    trained_on: ImageSet | None = None,
    train_steps: int = 0,
    watch: float | None = None,
    judge: torch.nn.Module | None = None,
    pictures: int = SHOWN,
    **options: Any,
) -> Attacked:
    """Attack `each` batches of different images under each of `networks` drawn networks.

    The columns of the scores are `metrics.score`'s, before them `network` and `defense`, after them `starts`,
    `seconds` (of the whole call, shared out evenly) and, with `watch`, `evaluations_to`: what a trial had spent after
    the first outer step at which all its images were below that MSE, +inf where it never got there. Network k, its
    images and the dummies against it are the same for every attack and defense under one seed, so that results
    compare in pairs. Networks are attacked together, up to TOGETHER trials at once; each such group is a part of the
    chapter: a killed run continues with the next one.
    distinct_labels: within a batch. local: what the clients train, where they share a weight difference. checkpoint: a
    shipped victim by its name in `training.RECIPES`, the one network of all trials. judge: a network whose features
    add the columns `registered` (PSNR), `features` (distance) and `in_class`, `in_class_chance` (identified among the
    images of its class, in `pool`). trained_on: images on which every network trains `train_steps` steps before it is
    attacked. pictures: how many images are kept to be looked at, 0 for none. options: the architecture's, for
    `models.build`.
    Errors: ValueError for several networks with a checkpoint.
    """
    if checkpoint is not None and networks != 1:
        raise ValueError(f"checkpoint={checkpoint!r} is one network, but networks={networks}")
    shipped = None if checkpoint is None else training.victim(checkpoint)
    together = max(1, TOGETHER // each) * each
    every, parts = range(networks * each), []
    for first in every[::together]:
        parts.append(
            ch.part(
                f"{name}-networks-{first // each}",
                attack_trials,
                pictures=0 if first else pictures,
                attack=attack,
                images=images,
                trials=list(every[first : first + together]),
                each=each,
                batch=batch,
                distinct_labels=distinct_labels,
                seed=ch.seed,
                device=ch.device,
                threat=threat,
                defense=defense,
                local=local,
                pool=pool,
                model=model,
                shipped=shipped,
                trained_on=trained_on,
                train_steps=train_steps,
                watch=watch,
                judge=judge,
                options=options,
            )
        )
    scores = pd.concat([part["scores"] for part in parts], ignore_index=True)
    return Attacked(scores, parts[0]["truth"], parts[0]["shown"])


def attack_trials(
    attack: Any,
    images: ImageSet,
    trials: Sequence[int],
    each: int,
    seed: int,
    device: torch.device,
    batch: int = 1,
    distinct_labels: bool = False,
    threat: ThreatModel | None = None,
    defense: Defense | None = None,
    local: LocalTraining | None = None,
    pool: ImageSet | None = None,
    model: str = "lenet",
    shipped: torch.nn.Module | None = None,
    trained_on: ImageSet | None = None,
    train_steps: int = 0,
    watch: float | None = None,
    judge: torch.nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A part of `attack_networks`: build the victims, share, attack, score.

    trials: ascending; trial t attacks the set's batch t under network t // each. Its numbers come from (network,
    t % each) and do not depend on which others are asked for, so that any two of them can be run again.
    """
    drawn, labels = images.batches(batch, max(trials) + 1, seed=seed, distinct_labels=distinct_labels)
    drawn, labels = drawn[list(trials)], labels[list(trials)]
    networks = torch.tensor([trial // each for trial in trials])
    streams = [(network_seed(seed, trial // each), trial % each) for trial in trials]
    victims, updates = [], []
    for network in networks.unique().tolist():
        victim, own = shipped, network_seed(seed, network)
        if victim is None:
            victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options or {})
        # the model that the clients train; the attacker is given the same
        victim = client.extended(victim.to(device), defense)
        if trained_on is not None:
            utility.train(victim, trained_on, train_steps, TRAINED_AT, seed=own)
        mine = networks == network
        x, y = drawn[mine].to(device), labels[mine].to(device)
        seeds = [stream for stream in streams if stream[0] == own]
        updates.append(client.share(victim, x, y, threat=threat, defense=defense, local=local, seed=seeds))
        victims.append(victim)
    together, update = victims[0], updates[0]
    if shipped is None and len(trials) > 1:
        rows = networks.unique(return_inverse=True)[1]
        together = Victims.of(victims, 1).select(rows)
        update = SharedUpdate.join(updates, together)
    steps = range(attack.iterations + 1) if watch is not None else ()
    reconstruction = attack(together, update, seed=streams, snapshots=steps)
    scores = metrics.score(reconstruction, drawn, labels, pool)
    scores["trial"] = np.asarray(trials)[scores["trial"]]
    scores.insert(0, "network", networks.repeat_interleave(batch).numpy())
    scores.insert(1, "defense", describe(defense))
    scores["starts"] = reconstruction.starts.cpu().repeat_interleave(batch).numpy()
    scores["seconds"] = reconstruction.seconds / len(scores)
    if watch is not None:
        spent = evaluations_to(reconstruction.history, drawn, watch)
        scores["evaluations_to"] = spent.repeat_interleave(batch).numpy()
    placed = in_order(reconstruction.images.cpu(), drawn)
    if judge is not None:
        found, originals = placed.flatten(0, 1), drawn.flatten(0, 1)

        def features(pictures: Tensor) -> Tensor:
            return models.penultimate(judge, pictures)

        scores["registered"] = metrics.registered_psnr(found, originals).double().numpy()
        scores["features"] = metrics.feature_distance(found, originals, features).double().numpy()
        seen = _gallery_features(judge, pool)
        hits, chance = metrics.identify_in_class(found, originals, labels.flatten(), pool, features, seen)
        scores["in_class"], scores["in_class_chance"] = hits.numpy(), chance.numpy()
    return {"scores": scores, "truth": drawn.flatten(0, 1)[:SHOWN], "shown": placed.flatten(0, 1)[:SHOWN]}


@lru_cache(maxsize=1)  # a chapter judges every attack by one network among one gallery
def _gallery_features(judge: torch.nn.Module, pool: ImageSet) -> Tensor:
    return models.penultimate(judge, pool.images)


def in_order(raw: Tensor, images: Tensor) -> Tensor:
    """Reconstructions [T, B, C, H, W] in the order of the images that they are matched to."""
    return raw[torch.arange(len(raw))[:, None], metrics.match_batches(raw, images)]


def evaluations_to(history: Any, images: Tensor, threshold: float) -> Tensor:
    """Evaluations a trial had spent when all its images first lay below the MSE: [T], +inf where they never did.

    history: of a run with a snapshot after every outer step; the count is exact to one such step. images: the truth,
    [T, B, C, H, W]. Batches are matched anew at every snapshot.
    """
    spent = torch.full((len(images),), math.inf, dtype=torch.float64)
    for raw, evaluations in zip(history.images.cpu(), history.evaluations.cpu(), strict=True):
        placed = in_order(raw, images).flatten(0, 1)
        error = metrics.mse(placed, images.flatten(0, 1)).view(len(images), -1).amax(1)
        arrived = (error < threshold) & spent.isinf()
        spent[arrived] = evaluations[arrived].double()
    return spent


def network_seed(seed: int, network: int) -> int:
    """The seed of the weights, and of the dummies against them: no two (seed, network) pairs share one."""
    return 100_000 * seed + network


def shared(
    images: ImageSet,
    trials: Sequence[int],
    network: int,
    seed: int,
    device: torch.device,
    defense: Defense | None,
    threat: ThreatModel,
    model: str,
    options: Mapping[str, Any],
    draw: int = 0,
) -> tuple[torch.nn.Module, SharedUpdate]:
    """The network of that number as its clients train it, and what they share of single images under draw `draw`."""
    x, y = (part[list(trials)].to(device) for part in images.batches(1, max(trials) + 1, seed=seed))
    own = network_seed(seed, network)
    victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options).to(device)
    victim = client.extended(victim, defense)
    return victim, client.share(victim, x, y, threat=threat, defense=defense, seed=own + 50_000 * draw)


def attack_together(
    attack: Any,
    victims: Sequence[torch.nn.Module],
    updates: Sequence[SharedUpdate],
    seed: int,
    snapshots: Sequence[int] = (),
) -> Any:
    """The reconstruction from updates of one trial each, update k under network k."""
    together = Victims.of(victims, 1)
    joined = SharedUpdate.join(updates, together)
    streams = [(network_seed(seed, network), 0) for network in range(len(victims))]
    return attack(together, joined, seed=streams, snapshots=snapshots)


def baselines(images: ImageSet, auxiliary: ImageSet, count: int, seed: int, threshold: float) -> pd.DataFrame:
    """`metrics.baselines` on the first `count` victims of single images, or on as many as there are."""
    victims, _ = images.batches(1, min(count, len(images)), seed=seed)
    return metrics.baselines(victims, auxiliary, seed, threshold)


def one_hidden(image_shape: Sequence[int], classes: int, width: int, seed: int, activation: str = "relu") -> Victim:
    """A network of one hidden layer, d - width - classes, torch's own weights drawn from `seed`, in float32.

    Pixels come to lie in [-1, 1]: of units that see [0, 1], training soon switches most off for good.
    """
    size = int(torch.tensor(image_shape).prod())

    def layers() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(size, width), ACTIVATIONS[activation](), nn.Linear(width, classes))

    half = (0.5,) * image_shape[0]
    return models.adapt(models.drawn(layers, seed), image_shape, classes, normalize=(half, half))
