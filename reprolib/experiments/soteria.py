"""Experiments of the chapter on Soteria."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F

from reprolib import client, labels, matching, models, training
from reprolib.attacks import AnalyticRecovery, linear_inputs
from reprolib.data import ImageSet
from reprolib.defenses import KeptColumns, Soteria
from reprolib.experiments.networks import network_seed


def examine_soteria(images: ImageSet, count: int, defense: Soteria, seed: int) -> pd.DataFrame:
    """What an update under Soteria gives away without any search, and what the defense leaves as it is: a row an image.

    Columns: repeats, whether clients with other random numbers share the same bits; untouched, whether all but whole
    columns of the head's weight gradient is the true gradient; feature_error, the largest of a shared feature read in
    closed form; label, whether the bias rule reads it; mlp_error, the largest of a pixel read off an MLP's first layer.
    """
    x, y = images.batches(1, count, seed=seed)
    size, own = (images.num_classes, images.image_shape), network_seed(seed, 0)
    options = {"init": "default", "normalize": training.CIFAR10}
    model = models.build("lenet", *size, seed=own, **options)
    clean = client.share(model, x, y).gradients
    update, again = (client.share(model, x, y, defense=defense, seed=own + i) for i in range(2))
    weight, name = update.gradients["head.weight"], "head.weight"
    kept = (weight != 0).any(1, keepdim=True)
    same = [torch.eq(g, again.gradients[key]).flatten(1).all(1) for key, g in update.gradients.items()]
    true = [torch.eq(g, clean[key]).flatten(1).all(1) for key, g in update.gradients.items() if key != name]
    true.append((weight == clean[name] * kept).flatten(1).all(1))
    read = linear_inputs(weight, update.gradients["head.bias"], "largest")
    features = models.penultimate(model, x[:, 0])
    mlp = models.build("mlp", *size, seed=own, width=1024, activation="relu", normalize=training.CIFAR10)
    pixels = AnalyticRecovery()(mlp, client.share(mlp, x, y, defense=defense, seed=own)).raw
    columns = {
        "repeats": torch.stack(same).all(0),
        "untouched": torch.stack(true).all(0),
        "feature_error": ((read - features).abs() * kept[:, 0]).amax(1),
        "label": labels.from_update(update, "bias") == y[:, 0],
        "mlp_error": (pixels - x).abs().flatten(1).amax(1),
    }
    return pd.DataFrame({key: values.numpy() for key, values in columns.items()})


def cost_of_the_truth(
    images: ImageSet, count: int, rates: Sequence[float], seed: int, defense: Soteria, **options: Any
) -> pd.DataFrame:
    """What the true image costs three attackers on updates under Soteria: a row an (image, rate), in float64.

    defense: its rate is replaced by each of `rates`, in percent. options: LeNet's, for `models.build`.
    Columns: image, rate, shared (of the squared gradient's sum), floor = 1 - sqrt(shared), and one minus the cosine at
    the true image for the attackers plain, dropped (without the tensor) and columns (on kept ones).
    Source: sheet `soteria.md`, section 8, test 10.
    """
    x, y = images.batches(1, count, seed=seed)
    x, own = x.double(), network_seed(seed, 0)
    model = models.build("lenet", images.num_classes, images.image_shape, seed=own, **options).double()
    soft = F.one_hot(y, images.num_classes).double()
    dummies = matching.dummy_gradients(client.worker(model, "eval"), x, soft)
    whole = sum(g.flatten(1).square().sum(1) for g in client.share(model, x, y).gradients.values())
    rows = []
    for rate in rates:
        chosen = replace(defense, pruning_rate=rate)
        update = client.share(model, x, y, defense=chosen, seed=own)
        shared = sum(g.flatten(1).square().sum(1) for g in update.gradients.values()) / whole
        known = KeptColumns(**vars(chosen))
        readings = {"plain": matching.Observation(update.gradients), "dropped": chosen.counter(model, update)}
        readings["columns"] = known.counter(model, update)
        columns = {"image": torch.arange(count), "shared": shared, "floor": 1 - shared.sqrt()}
        for name, reading in readings.items():
            columns[name] = matching.cosine(dummies, reading, torch.arange(count)).detach()
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        table.insert(1, "rate", rate)
        rows.append(table)
    return pd.concat(rows, ignore_index=True)
