"""Experiments of the chapter on GradInversion."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprolib import models
from reprolib.attacks import GradInversion, matching
from reprolib.data import ImageSet
from reprolib.experiments import utility
from reprolib.experiments.labels import count_labels
from reprolib.experiments.networks import SHOWN, TRAINED_AT, attack_trials, network_seed
from reprolib.federated import client
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics

SHOWN_RULES = ("yin", "yin_sum", "bias_corrected")
"""The rules of `labels.COUNT_RULES` that the chapter compares: row minimum, row sum, and one that counts."""


def attack_apart(
    attacks: Mapping[str, tuple[Any, ThreatModel]],
    images: ImageSet,
    trials: Sequence[int],
    each: int,
    seed: int,
    device: torch.device,
    *,
    model: str = "resnetbn8",
    options: Mapping[str, Any] | None = None,
    trained_on: ImageSet | None = None,
    train_steps: int = 0,
    **inputs: Any,
) -> dict[str, Any]:
    """Several attacks on the same batches, network after network: for victims with batch-norm buffers of their own.

    attacks: name -> (attack, what it knows). trials: ascending; trial t attacks the set's batch t under network
    t // each, as in `attack_trials`, which gets `inputs`; but trained networks, whose buffers differ, share no
    computation. trained_on: images on which each network trains `train_steps` steps, once for all attacks.
    Returns "scores": a row an (attack, image), the attack's name first, and of trained networks their accuracy on 500
    of the images last; "truth" and each name, [n, C, H, W] with n at
    most SHOWN, in the order of the images.
    """
    shown: dict[str, list[Tensor]]
    tables, shown = [], {"truth": [], **{name: [] for name in attacks}}
    for network in sorted({trial // each for trial in trials}):
        own = [trial for trial in trials if trial // each == network]
        drawn = network_seed(seed, network)
        victim = models.build(model, images.num_classes, images.image_shape, seed=drawn, **options or {}).to(device)
        if trained_on is not None:
            utility.train(victim, trained_on, train_steps, TRAINED_AT, seed=drawn)
            accuracy = utility.accuracy(victim, images.subset(slice(500)))
        for i, (name, (attack, threat)) in enumerate(attacks.items()):
            found = attack_trials(
                attack, images, own, each, seed, device, threat=threat, model=model, shipped=victim, **inputs
            )
            found["scores"].insert(0, "attack", name)
            if trained_on is not None:
                found["scores"]["accuracy"] = accuracy
            tables.append(found["scores"])
            shown[name].append(found["shown"])
            shown["truth"] += [] if i else [found["truth"]]
    scores = pd.concat(tables, ignore_index=True)
    order = pd.Categorical(scores["attack"], list(attacks), ordered=True)
    scores = scores.assign(at=order.codes).sort_values("at", kind="stable").drop(columns="at")
    return {"scores": scores.reset_index(drop=True)} | {name: torch.cat(x)[:SHOWN] for name, x in shown.items()}


def weighed_terms(
    attack: GradInversion,
    images: ImageSet,
    trials: Sequence[int],
    seed: int,
    device: torch.device,
    *,
    threat: ThreatModel,
    batch: int = 1,
    model: str = "resnetbn8",
    options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """The two main terms of the attack's objective at its first seed's start, with their weights: a row a network.

    trials: the networks' numbers; network t meets batch t, from the start that `attack_apart` would give it. Columns:
    network, trial, gradient, batch_norm. Source: the paper sheet's measurement, on one network.
    """
    x, y = images.batches(batch, max(trials) + 1, seed=seed, distinct_labels=True)
    balanced, rows = replace(attack, seeds=1, gradient=None), []
    for trial in trials:
        drawn = network_seed(seed, trial)
        victim = models.build(model, images.num_classes, images.image_shape, seed=drawn, **options or {}).to(device)
        update = client.share(victim, x[trial, None].to(device), y[trial, None].to(device), threat=threat)
        (search,) = balanced.searches(victim, update, [(drawn, 0)])
        start = search.first(0)
        distance = search.value(start, 0).item()
        terms = {"gradient": attack.gradient * distance, "batch_norm": search.weights(start).item() * distance}  # type: ignore[operator, attr-defined]  # a preset with a gradient
        rows.append({"network": trial, "trial": trial, **terms})
    return pd.DataFrame(rows)


def guesses(images: ImageSet, trials: Sequence[int], seed: int, batch: int = 1) -> pd.DataFrame:
    """What takes no attack, on the images that `attack_trials` meets in these trials: a row an image.

    Columns: trial, image, grey and colour (PSNR in dB of constant grey and of the image's own mean colour), best (the
    higher of the two). Labels within a batch are distinct.
    """
    drawn, _ = images.batches(batch, max(trials) + 1, seed=seed, distinct_labels=True)
    truth = drawn[list(trials)].flatten(0, 1)
    colour = truth.mean((2, 3), keepdim=True).expand_as(truth)
    grey, own = (metrics.psnr(guess, truth).double() for guess in (torch.full_like(truth, 0.5), colour))
    rows = [{"trial": trial, "image": image} for trial in trials for image in range(batch)]
    columns = {"grey": grey.numpy(), "colour": own.numpy(), "best": torch.maximum(grey, own).numpy()}
    return pd.DataFrame(rows).assign(**columns)


def statistics_from_buffers(victim: nn.Module, images: ImageSet, size: int, batches: int, seed: int) -> pd.DataFrame:
    """How far the statistics computed from a client's buffers are from its batch's own: a row a (batch, layer).

    Columns: trial (the batch), layer, error: the largest difference of a channel's mean or variance over the largest of
    its layer. Source: Hatamizadeh et al. 2023 (arXiv:2202.06924).
    """
    x, y = images.batches(size, batches, seed=seed, distinct_labels=True)
    exact, buffers = (
        client.batch_statistics(victim, client.share(victim, x, y, threat=ThreatModel("train", batch_norm=source)))
        for source in ("exact", "buffers")
    )
    rows = []
    for layer, pair in exact.items():
        parts = zip(buffers[layer], pair, strict=True)
        errors = torch.stack([(ours - own).abs().amax(1) / own.abs().amax(1) for ours, own in parts]).amax(0)
        rows.append(pd.DataFrame({"trial": range(batches), "layer": layer, "error": errors.double().numpy()}))
    return pd.concat(rows, ignore_index=True)


def labels_after_training(
    images: ImageSet,
    trials: Sequence[int],
    size: int,
    batches: int,
    seed: int,
    device: torch.device,
    *,
    trained_on: ImageSet | None = None,
    train_steps: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Labels of `batches` batches of distinct labels under each drawn ResNetBN8: rows of `count_labels`, train mode.

    trials: the networks' numbers. trained_on: images on which each trains `train_steps` steps first; None leaves it
    untrained. Columns besides: network, trial (the network), accuracy (of the network on `images`), case (the batch).
    """
    rows = []
    for network in trials:
        drawn = network_seed(seed, network)
        victim = models.build("resnetbn8", images.num_classes, images.image_shape, seed=drawn, **options).to(device)
        if trained_on is not None:
            utility.train(victim, trained_on, train_steps, TRAINED_AT, seed=drawn)
        found = count_labels(images, (size,), batches, drawn, distinct=True, mode="train", shipped=victim.cpu())
        found["case"] = found.groupby("rule").cumcount()
        rows.append(found.assign(network=network, trial=network, accuracy=utility.accuracy(victim, images)))
    return pd.concat(rows, ignore_index=True)


def labels_apart(
    victim: nn.Module, images: ImageSet, size: int, trials: Sequence[int], seed: int, mode: client.Mode = "train"
) -> pd.DataFrame:
    """Labels of disjoint batches of distinct labels under one network: rows of `count_labels`, and the column trial.

    trials: the batches' numbers. Batches that share no image are what an interval for one network rests on.
    """
    x, y = images.batches(size, max(trials) + 1, seed=seed, distinct_labels=True)
    rows = []
    for trial in trials:
        batch = replace(images, images=x[trial], labels=y[trial])
        found = count_labels(batch, (size,), 1, seed, distinct=True, mode=mode, shipped=victim)
        rows.append(found[found.rule.isin(SHOWN_RULES)].assign(trial=trial))
    return pd.concat(rows, ignore_index=True)


def labels_by_activation(
    images: ImageSet,
    trials: Sequence[int],
    size: int,
    seed: int,
    *,
    activations: Sequence[str] = ("relu", "leaky_relu", "tanh"),
    **options: Any,
) -> pd.DataFrame:
    """Labels of a batch of distinct labels under each drawn, untrained ResNetBN8, by its activation, in train mode.

    trials: the networks' numbers; network t meets batch t, and no image occurs twice. activations: those of
    `models.build`, or "tanh", put in place of every ReLU. Rows of `count_labels`, and the columns activation, trial
    and negative, the share of the batch's features at the head that are below zero. Source: this book.
    """
    x, y = images.batches(size, max(trials) + 1, seed=seed, distinct_labels=True)
    rows = []
    for trial in trials:
        drawn, batch = network_seed(seed, trial), replace(images, images=x[trial], labels=y[trial])
        for activation in activations:
            built = options | {"activation": "relu" if activation == "tanh" else activation}
            victim = models.build("resnetbn8", images.num_classes, images.image_shape, seed=drawn, **built)
            for name, module in list(victim.named_modules()) if activation == "tanh" else ():
                if isinstance(module, nn.ReLU):
                    victim.set_submodule(name, nn.Tanh())
            found = count_labels(batch, (size,), 1, drawn, distinct=True, mode="train", shipped=victim)
            below = models.penultimate(client.worker(victim, "train"), x[trial]) < 0
            rows.append(found.assign(activation=activation, trial=trial, negative=below.double().mean().item()))
    return pd.concat(rows, ignore_index=True)


def mode_mismatch(victim: nn.Module, images: ImageSet, size: int, batches: int, seed: int) -> pd.DataFrame:
    """How far the attacker's gradient at the true batch is from the shared one, by the batch-norm modes of both sides.

    Columns: client, attacker, mismatch (|g' - g| / |g| over all parameters); a row a batch and case. An attacker in
    eval mode who loads the client's buffers does not undo a train-mode client: it does not differentiate through the
    batch's mean and variance. Source: this book.
    """
    x, y = images.batches(size, batches, seed=seed, distinct_labels=True)
    soft, rows = F.one_hot(y, images.num_classes).to(x.dtype), []
    for mode, attacker in (("train", "train"), ("eval", "eval"), ("train", "eval, the client's buffers")):
        update = client.share(
            victim, x, y, threat=ThreatModel(mode, batch_norm="buffers" if mode == "train" else "none")
        )
        for k in range(batches):
            model = victim
            if attacker.endswith("buffers"):
                model = copy.deepcopy(victim)
                for layer, (mean, variance) in update.batch_norm.items():
                    model.get_submodule(layer).running_mean.copy_(mean[k])
                    model.get_submodule(layer).running_var.copy_(variance[k])
            worker = client.worker(model, attacker.split(",")[0])
            found = matching.dummy_gradients(worker, x[k, None], soft[k, None])
            pairs = [(found[name][0].detach().flatten(), g[k].flatten()) for name, g in update.gradients.items()]
            ours, theirs = (torch.cat(part) for part in zip(*pairs, strict=True))
            rows.append(
                {"client": mode, "attacker": attacker, "mismatch": ((ours - theirs).norm() / theirs.norm()).item()}
            )
    return pd.DataFrame(rows)
