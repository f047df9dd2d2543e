"""Experiments of the chapter on DLG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from reprolib import models
from reprolib.attacks import DLG, matching
from reprolib.data import ImageSet
from reprolib.experiments.networks import network_seed
from reprolib.federated import client
from reprolib.measure import metrics


def follow(
    attacks: Mapping[str, DLG], images: ImageSet, trials: int, steps: Sequence[int], seed: int, device: torch.device
) -> dict[str, Any]:
    """Watch attacks on the same images under one drawn network, from the same dummy pixels.

    attacks: DLG, or attacks of its kind, such as IDLG. steps: outer iterations to look at. Returns, for each attack
    NAME, "NAME images" [S, C, H, W] of the image with most contrast and "NAME objective" [S]; "truth" [C, H, W] of that
    image; and "layers": a row a (attack, trial, outer iteration) with the MSE of the image and the distance of every
    parameter's gradient.
    """
    x, y = images.batches(1, trials, seed=seed)
    richest = int(x.flatten(1).std(1).argmax())
    model = models.build("lenet", images.num_classes, images.image_shape, seed=network_seed(seed, 0)).to(device)
    update, found, rows = client.share(model, x.to(device), y.to(device)), {"truth": x[richest, 0]}, []
    for name, attack in attacks.items():
        attack = replace(attack, starts=1, stop_objective=None, iterations=max(steps))
        history = attack(model, update, seed=network_seed(seed, 0), snapshots=steps).history
        found |= {f"{name} images": history.images[:, richest, 0], f"{name} objective": history.objective[:, richest]}
        for step, shown, soft in zip(history.iterations, history.images, history.soft_labels, strict=True):
            distances = matching.per_parameter(
                matching.dummy_gradients(model, shown, soft),
                matching.Observation(update.gradients),
                torch.arange(trials, device=device),
            )
            columns = {parameter: values.detach().cpu().numpy() for parameter, values in distances.items()}
            columns = {"attack": name, "trial": range(trials), "outer": step} | columns
            rows.append(pd.DataFrame(columns | {"image": metrics.mse(shown[:, 0].cpu(), x[:, 0]).numpy()}))
    return found | {"layers": pd.concat(rows, ignore_index=True)}
