"""Experiments of the chapter on PRECODE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reprolib import client, labels, matching, models, utility
from reprolib.attacks import AnalyticRecovery
from reprolib.client import ThreatModel, generator
from reprolib.data import ImageSet
from reprolib.defenses import PRECODE, Counter, Defense
from reprolib.defenses.precode import recovered_noise
from reprolib.experiments.networks import TRAINED_AT, network_seed, shared
from reprolib.models.bottleneck import kl_bits


def objective_curves(
    attack: Any,
    images: ImageSet,
    trials: int,
    steps: Sequence[int],
    seed: int,
    device: torch.device,
    cases: Mapping[str, Defense | None],
    model: str,
    **options: Any,
) -> pd.DataFrame:
    """The objective of an attack that knows no defense, over its iterations: columns case, iteration, distance.

    A row a (case, step), means over `trials` images under one drawn network, the same for all cases.
    """
    rows = []
    for case, defense in cases.items():
        network, update = shared(
            images, range(trials), 0, seed, device, defense, ThreatModel(labels="known"), model, options
        )
        history = attack(network, update, seed=network_seed(seed, 0), snapshots=steps).history
        distance = history.objective.mean(1).cpu().numpy()
        rows.append(pd.DataFrame({"case": case, "iteration": history.iterations, "distance": distance}))
    return pd.concat(rows, ignore_index=True)


def noise_at_truth(
    images: ImageSet, trials: int, seed: int, device: torch.device, defense: PRECODE, model: str, **options: Any
) -> pd.DataFrame:
    """What the cosine distance is worth where an attack on PRECODE should end, and where it should not.

    A row a (trial, tensors, image, noise), in column `distance`: at the true image and at one of uniform noise; over
    all tensors and over those upstream of the bottleneck; under the client's noise, fresh noise and none. The KL term
    is left out, as the unchanged attack does. Trials are the first of `attack_networks` with one image a network.
    options: for `models.build`. Source: sheet `precode.md`, sections 4.2 and 4.3.
    """
    rows, told = [], ThreatModel(labels="known", defense_known=True)
    for trial in range(trials):
        network, update = shared(images, [trial], trial, seed, device, defense, told, model, options)
        worker = client.worker(network, "eval")
        models.leave_out_penalty(worker)
        true = images.batches(1, trials, seed=seed)[0][trial, None].to(device)
        uniform = torch.rand(true.shape, generator=generator(seed, trial)).to(true)
        soft = F.one_hot(update.labels, images.num_classes).to(true.dtype)
        for tensors in ("all", "upstream"):
            for noise, name in (("recovered", "the client's"), ("fixed", "fresh"), ("zero", "none")):
                reading = replace(defense, against=Counter(tensors, noise)).counter(network, update)
                for image, pixels in (("true", true), ("random", uniform)):
                    dummies = matching.dummy_gradients(worker, pixels, soft, noise=reading.noise)
                    distance = matching.cosine(
                        dummies, reading, torch.zeros(1, dtype=torch.int64, device=device)
                    ).item()
                    rows.append((trial, tensors, image, name, distance))
    return pd.DataFrame(rows, columns=["trial", "tensors", "image", "noise", "distance"])


def noise_by_layer(
    images: ImageSet, trials: int, seed: int, device: torch.device, defense: PRECODE, model: str, **options: Any
) -> pd.DataFrame:
    """How much each parameter's gradient depends on a bottleneck's noise: a row a (trial, parameter).

    Columns: share, of the gradient's squared length; cosine, between the gradients of one image under two draws. Trials
    as `noise_at_truth`'s. Source: sheet `precode.md`, section 4.2.
    """
    rows = []
    for trial in range(trials):
        drawn = [
            shared(images, [trial], trial, seed, device, defense, ThreatModel(), model, options, draw)[1].gradients
            for draw in (0, 1)
        ]
        whole = sum(g.square().sum() for g in drawn[0].values())
        for name, first in drawn[0].items():
            cosine = F.cosine_similarity(first.flatten(), drawn[1][name].flatten(), dim=0).item()
            rows.append((trial, name, (first.square().sum() / whole).item(), cosine))
    return pd.DataFrame(rows, columns=["trial", "parameter", "share", "cosine"])


def closed_form(
    images: ImageSet, trials: int, seed: int, device: torch.device, defense: PRECODE, model: str, **options: Any
) -> pd.DataFrame:
    """What PRECODE gives away without any search, from single images: a row an image. Trials as `noise_at_truth`'s.

    Columns: noise, the largest error of the client's noise as an attacker recovers it; label, whether it was read; for
    the `mlp` also image, the largest error of a pixel that `attacks.AnalyticRecovery` leaves.
    """
    x, y = images.batches(1, trials, seed=seed)
    rows = []
    for trial in range(trials):
        network, update = shared(images, [trial], trial, seed, device, defense, ThreatModel(), model, options)
        own = generator(network_seed(seed, trial), 0, client.DEFENSE_STREAM, 0)
        (drawn,) = models.draw_noise(network, 1, own).values()
        row = {"noise": (recovered_noise(network, update) - drawn).abs().max().item()}
        row["label"] = bool(labels.of_update(update).cpu() == y[trial])
        if model == "mlp":
            row["image"] = (AnalyticRecovery()(network, update).raw.cpu() - x[trial]).abs().max().item()
        rows.append(row)
    return pd.DataFrame(rows)


def noise_after_training(
    images: ImageSet,
    train_images: ImageSet,
    steps: Sequence[int],
    seed: int,
    device: torch.device,
    defense: PRECODE,
    model: str,
    **options: Any,
) -> pd.DataFrame:
    """What training does to a bottleneck: a row a number of steps, of the networks that `attack_networks` trains.

    Columns: steps, accuracy, std and mean (of the sample, over `images`: the mean std and the mean |mu|), bits (of the
    divergence, for one image).
    """
    rows, codes, own = [], [], network_seed(seed, 0)

    def note(layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        codes.append(layer.encode(inputs[0]))

    for count in steps:
        victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options).to(device)
        network = client.extended(victim, defense)
        utility.train(network, train_images, count, TRAINED_AT, seed=own)
        codes.clear()
        network.bottleneck.register_forward_pre_hook(note)
        row = {"steps": count, "accuracy": utility.accuracy(network, images)}
        mu, std = (torch.cat(parts) for parts in zip(*codes, strict=True))
        row |= {"std": std.mean().item(), "mean": mu.abs().mean().item(), "bits": kl_bits(mu, std).mean().item()}
        rows.append(row)
    return pd.DataFrame(rows)
