"""Experiments of the chapter on Inverting Gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from reprolib import client, metrics, models
from reprolib.attacks import AnalyticRecovery
from reprolib.client import LocalTraining, ThreatModel
from reprolib.data import ImageSet
from reprolib.defenses import Defense
from reprolib.experiments.networks import SHOWN, network_seed, shared


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
    images: ImageSet, sizes: Sequence[int], count: int, local: LocalTraining, seed: int, **options: Any
) -> dict[str, Any]:
    """What the closed form reads off an MLP's first layer: from one image, from batches, after several local steps.

    sizes: of the batches; `count` images in all are attacked at each size. local: of the case with local steps, which
    attacks single images, in float32 and in float64. options: the MLP's. Returns "rows": a row an image with the
    columns case, batch, error (largest of a pixel) and rms (of the image); and for each size "batch N truth" and
    "batch N read" [n, C, H, W] of the first images.
    """
    cases = [(f"batch of {size}", size, torch.float32, None) for size in sizes]
    cases += [("local steps, float32", 1, torch.float32, local), ("local steps, float64", 1, torch.float64, local)]
    rows, found = [], {}
    for name, size, dtype, of_client in cases:
        x, y = images.batches(size, max(1, count // size), seed=seed)
        x = x.to(dtype)
        model = models.build("mlp", images.num_classes, images.image_shape, seed=network_seed(seed, 0), **options)
        model = model.to(dtype)
        result = AnalyticRecovery()(model, client.share(model, x, y, local=of_client))
        off = (result.raw - x).flatten(0, 1).flatten(1)
        columns = {"case": name, "batch": size, "error": off.abs().amax(1), "rms": off.square().mean(1).sqrt()}
        rows.append(pd.DataFrame({k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}))
        if of_client is None:
            found[f"batch {size} truth"] = x.flatten(0, 1)[:SHOWN]
            found[f"batch {size} read"] = result.images.flatten(0, 1)[:SHOWN]
    return found | {"rows": pd.concat(rows, ignore_index=True)}
