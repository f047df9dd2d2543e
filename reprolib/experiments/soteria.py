"""Experiments of the chapter on Soteria."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reprolib import models
from reprolib.attacks import AnalyticRecovery, labels, linear_inputs, matching
from reprolib.data import ImageSet
from reprolib.defenses import Defense, KeptColumns, Soteria, describe, pruned_features
from reprolib.experiments import training, utility
from reprolib.experiments.networks import network_seed
from reprolib.federated import client


def examine_soteria(images: ImageSet, count: int, defense: Soteria, seed: int, features: int) -> pd.DataFrame:
    """What an update under Soteria gives away without any search, and what the defense leaves as it is: a row an image.

    features: of ConvBig, which is defended at its second linear layer. Columns: repeats, whether clients with other
    random numbers share the same bits; untouched, whether all but whole columns of the head's weight gradient, as many
    as the percentile cuts of different values, is the true gradient; feature_error, the largest of a shared feature
    read in closed form; label, whether the bias rule reads it; mlp_error, the largest of a pixel read off an MLP's
    first layer; hidden1_error, the largest of an input of ConvBig's first linear layer.
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
    width = weight.shape[2]
    shares = width - math.ceil(defense.pruning_rate / 100 * (width - 1))
    true.append(kept[:, 0].sum(1) == shares)
    read = linear_inputs(weight, update.gradients["head.bias"], "largest")
    represented = models.penultimate(model, x[:, 0])
    mlp = models.build("mlp", *size, seed=own, width=1024, activation="relu", normalize=training.CIFAR10)
    pixels = AnalyticRecovery()(mlp, client.share(mlp, x, y, defense=defense, seed=own)).raw
    columns = {
        "repeats": torch.stack(same).all(0),
        "untouched": torch.stack(true).all(0),
        "feature_error": ((read - represented).abs() * kept[:, 0]).amax(1),
        "label": labels.from_update(update, "bias") == y[:, 0],
        "mlp_error": (pixels - x).abs().flatten(1).amax(1),
        "hidden1_error": _hidden1_error(x, y, images, replace(defense, layer="hidden2"), own, features),
    }
    return pd.DataFrame({key: values.numpy() for key, values in columns.items()})


def _hidden1_error(x: Tensor, y: Tensor, images: ImageSet, defense: Soteria, seed: int, features: int) -> Tensor:
    """The largest error of ConvBig's inputs to its first linear layer, read off each update: [T]."""
    options = {"features": features, "normalize": training.CIFAR10}
    model = models.build("convbig", images.num_classes, images.image_shape, seed=seed, **options)
    shared = client.share(model, x, y, defense=defense, seed=seed).gradients
    read = linear_inputs(shared["hidden1.weight"], shared["hidden1.bias"], "largest")
    seen: list[Tensor] = []
    model.hidden1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(x[:, 0])
    return (read - seen[0]).abs().amax(1)


def cost_of_the_truth(
    images: ImageSet, count: int, rates: Sequence[float], seed: int, defense: Soteria, **options: Any
) -> pd.DataFrame:
    """What the true image costs three attackers on updates under Soteria: a row an (image, rate), in float64.

    defense: its rate is replaced by each of `rates`, in percent. options: LeNet's, for `models.build`.
    Columns: image, rate, shared (of the squared gradient's sum), floor = 1 - sqrt(shared), and one minus the cosine at
    the true image for the attackers plain, dropped (without the tensor) and columns (on kept ones).
    Source: this book.
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


def effective_rates(
    images: ImageSet,
    trials: Sequence[int],
    each: int,
    rates: Sequence[float],
    seed: int,
    defense: Soteria,
    model: str = "lenet",
    shipped: torch.nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """What a rate prunes, in percent of the features that are not zero anyway: a row a (trial, rate).

    trials: as `attack_networks` counts them, `each` to a drawn network. defense: whose rate each of `rates` takes the
    place of. shipped: one trained network for all trials, in place of drawn ones. options: for `models.build`.
    Columns: network, and those of `defenses.pruned_features`.
    """
    x, _ = images.batches(1, max(trials) + 1, seed=seed)
    rows, network, victim = [], None, shipped
    for trial in trials:
        if shipped is None and network != trial // each:
            own = network_seed(seed, trial // each)
            victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options or {})
        network = trial // each
        found = pruned_features(defense, victim, x[trial, None], network_seed(seed, trial), rates)
        rows.append(found.assign(network=network, trial=trial))
    return pd.concat(rows, ignore_index=True)


def features_of_one(
    images: ImageSet, victims: Mapping[str, Mapping[str, Any]], defense: Soteria, seed: int
) -> pd.DataFrame:
    """Every feature of the first image under each victim: what the defense measures of it, and whether it goes.

    victims: name -> the keyword arguments of `models.build`, with its `name`. Columns: victim; r, the feature, and g,
    the norm of its derivative, each over the victim's largest; state, one of "kept", "zeroed" and "dead".
    """
    x, _ = images.batches(1, 1, seed=seed)
    tables = []
    for name, options in victims.items():
        own = network_seed(seed, 0)
        victim = models.build(num_classes=images.num_classes, image_shape=images.image_shape, seed=own, **options)
        chosen = defense.select(victim, x[0], client.generator(own, 0))
        feature, gain = (values[0] / values.max() for values in (chosen.representation, chosen.gain))
        state = np.where(chosen.kept, "kept", np.where(feature == 0, "dead", "zeroed"))
        tables.append(pd.DataFrame({"victim": name, "r": feature.numpy(), "g": gain.numpy(), "state": state}))
    return pd.concat(tables, ignore_index=True)


def accuracy_on_defended_gradients(
    train_images: ImageSet,
    test_images: ImageSet,
    defense: Defense | None,
    steps: int,
    batch_size: int,
    runs: int,
    seed: int,
    device: torch.device,
    learning_rates: Sequence[float] = (0.003, 0.01, 0.03),
) -> pd.DataFrame:
    """Test accuracy of a ReLU LeNet whose every step takes the gradient of one defended batch: a row a training run.

    Runs of one number start from the same weights and see the same batches under every defense. The learning rate is
    chosen for each defense by the accuracy on the last tenth of the training images, which no model trains on, in the
    run behind the counted ones. Columns: defense, run, learning_rate, accuracy, seconds (of the training).
    """
    cut = len(train_images) * 9 // 10
    fit, held_out = train_images.subset(slice(None, cut)), train_images.subset(slice(cut, None))

    def learned(rate: float, run: int, test: ImageSet) -> tuple[float, float]:
        own = network_seed(seed, run)
        options = {"activation": "relu", "init": "default", "normalize": training.CIFAR10}
        model = models.build("lenet", fit.num_classes, fit.image_shape, seed=own, **options).to(device)
        began = time.perf_counter()
        utility.train(model, fit, steps, rate, batch_size=batch_size, defense=defense, seed=own)
        return utility.accuracy(model, test), time.perf_counter() - began

    tried = {rate: learned(rate, runs, held_out)[0] for rate in learning_rates}
    best = max(tried, key=tried.get)
    rows = []
    for run in range(runs):
        accuracy, seconds = learned(best, run, test_images)
        row = {"defense": describe(defense), "run": run, "learning_rate": best}
        rows.append(row | {"accuracy": accuracy, "seconds": seconds})
    return pd.DataFrame(rows)
