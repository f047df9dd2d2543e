"""Experiments of the chapter on Inverting Gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reprolib import models
from reprolib.attacks import AnalyticRecovery, InvertingGradients
from reprolib.data import ImageSet
from reprolib.defenses import Defense, Rescale
from reprolib.experiments.networks import SHOWN, network_seed, shared
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics


def trace(
    attack: Any,
    images: ImageSet,
    trials: int,
    steps: Sequence[int],
    seed: int,
    device: torch.device,
    *,
    threat: ThreatModel | None = None,
    defense: Defense | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Watch an attack on `trials` images under one drawn LeNet.

    steps: iterations to look at; 0 is the start. threat: what the attacker knows, the labels when left out. options:
    LeNet's, for `models.build`. Returns "images" [S, C, H, W] of the image with most contrast and "truth" [C, H, W];
    and "rows": a row a (trial, iteration) with the PSNR and the distance that the attack minimises.
    """
    x, y = images.batches(1, trials, seed=seed)
    richest = int(x.flatten(1).std(1).argmax())
    threat = threat or ThreatModel(labels="known")
    model, update = shared(images, range(trials), 0, seed, device, defense, threat, "lenet", options)
    attack = replace(attack, iterations=max(steps))
    history = attack(model, update, seed=network_seed(seed, 0), snapshots=steps).history
    rows = []
    for step, shown, distance in zip(history.iterations, history.images.cpu(), history.objective.cpu(), strict=True):
        psnr = metrics.psnr(shown[:, 0].clamp(0, 1), x[:, 0]).numpy()
        columns = {"trial": range(trials), "iteration": step, "psnr": psnr, "distance": distance.numpy()}
        rows.append(pd.DataFrame(columns))
    shown = history.images[:, richest, 0].clamp(0, 1).cpu()
    return {"rows": pd.concat(rows, ignore_index=True), "images": shown, "truth": x[richest, 0]}


def read_first_layer(
    images: ImageSet, sizes: Sequence[int], count: int, networks: int, local: LocalTraining, seed: int, **options: Any
) -> dict[str, Any]:
    """What the closed form reads off an MLP's first layer: from one image, from batches, after several local steps.

    sizes: of the batches; `count` images in all are attacked at each size, in batches dealt out to `networks` drawn
    networks. local: of the case with local steps, which attacks single images, in float32 and in float64. options: the
    MLP's. Returns "rows": a row an image with the columns case, batch, network, trial (the batch), image, error
    (largest of a pixel) and rms (of the image); and for each size "batch N truth" and "batch N read" [n, C, H, W] of
    the first images.
    """
    cases = [(f"batch of {size}", size, torch.float32, None) for size in sizes]
    cases += [("local steps, float32", 1, torch.float32, local), ("local steps, float64", 1, torch.float64, local)]  # type: ignore[list-item]  # with and without local training
    rows, found = [], {}
    for name, size, dtype, of_client in cases:
        batches = max(1, count // size)
        x, y = images.batches(size, batches, seed=seed)
        x, read = x.to(dtype), []
        for network, own in enumerate(torch.arange(batches).tensor_split(min(networks, batches))):
            model = models.build(
                "mlp", images.num_classes, images.image_shape, seed=network_seed(seed, network), **options
            ).to(dtype)
            result = AnalyticRecovery()(model, client.share(model, x[own], y[own], local=of_client))
            read.append(result.images.flatten(0, 1))
            off = (result.raw - x[own]).flatten(0, 1).flatten(1)
            columns = {"case": name, "batch": size, "network": network, "trial": own.repeat_interleave(size)}
            columns |= {"image": torch.arange(size).repeat(len(own)), "error": off.abs().amax(1)}
            columns |= {"rms": off.square().mean(1).sqrt()}
            rows.append(pd.DataFrame({k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}))
        if of_client is None:
            found[f"batch {size} truth"] = x.flatten(0, 1)[:SHOWN]
            found[f"batch {size} read"] = torch.cat(read)[:SHOWN]
    return found | {"rows": pd.concat(rows, ignore_index=True)}


def grey_cards(
    images: ImageSet, trials: Sequence[int], seed: int, batch: int = 1, distinct_labels: bool = False
) -> pd.DataFrame:
    """What a constant grey image scores on the images that `attack_trials` meets in these trials: a row an image.

    Columns: trial, image, psnr (dB), in the order of the attack's scores.
    """
    drawn, _ = images.batches(batch, max(trials) + 1, seed=seed, distinct_labels=distinct_labels)
    truth = drawn[list(trials)].flatten(0, 1)
    psnr = metrics.psnr(torch.full_like(truth, 0.5), truth).double().numpy()
    trial, image = np.repeat(list(trials), batch), np.tile(np.arange(batch), len(trials))
    return pd.DataFrame({"trial": trial, "image": image, "psnr": psnr})


def first_distances(
    images: ImageSet, trials: Sequence[int], each: int, seed: int, factor: float, **options: Any
) -> pd.DataFrame:
    """The cosine distance at the attack's first iterate, on the gradient and on one `factor` times as long.

    Trial t meets the image, the network t // each and the start of `attack_trials`. options: LeNet's. Columns: network,
    trial, distance, rescaled; a row a trial.
    """
    drawn, labels = images.batches(1, max(trials) + 1, seed=seed)
    attack, known, rows = InvertingGradients(iterations=1), ThreatModel(labels="known"), []
    for network in sorted({trial // each for trial in trials}):
        own = [trial for trial in trials if trial // each == network]
        model = models.build(
            "lenet", images.num_classes, images.image_shape, seed=network_seed(seed, network), **options
        )
        streams, row = (
            [(network_seed(seed, network), trial % each) for trial in own],
            {"network": network, "trial": own},
        )
        for name, defense in (("distance", None), ("rescaled", Rescale(factor))):
            update = client.share(model, drawn[own], labels[own], threat=known, defense=defense, seed=streams)
            row[name] = attack(model, update, seed=streams, snapshots=[0]).history.objective[0].double().numpy()
        rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)
