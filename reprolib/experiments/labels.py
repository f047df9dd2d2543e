"""Labels read from the gradient, and counted in batches: experiments of the chapters on iDLG and GradInversion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reprolib import models
from reprolib.attacks import labels
from reprolib.data import ImageSet
from reprolib.defenses import Defense
from reprolib.experiments.networks import network_seed
from reprolib.federated import client
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel


def read_labels(
    images: ImageSet,
    networks: int,
    each: int,
    seed: int,
    defense: Defense | None = None,
    model: str = "lenet",
    **options: Any,
) -> pd.DataFrame:
    """What each rule of `labels.RULES` reads off single images' gradients: a row a (network, image) pair.

    Columns: network; one_negative, whether the true class alone has a negative bias gradient; a column a rule, whether
    it found the label. An image may recur under another network. options: the architecture's, for `models.build`.
    """
    rows = []
    for k in range(networks):
        own = network_seed(seed, k)
        x, y = images.batches(1, each, seed=own)
        victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options)
        update, truth = client.share(victim, x, y, defense=defense, seed=own), y[:, 0]
        bias = update.gradients["head.bias"]
        row = {"one_negative": ((bias < 0).sum(1) == 1) & (bias.argmin(1) == truth)}
        row |= {rule: labels.from_update(update, rule) == truth for rule in labels.RULES}
        rows.append(pd.DataFrame({"network": k} | {name: value.numpy() for name, value in row.items()}))
    return pd.concat(rows, ignore_index=True)


def predict_labels(images: ImageSet, networks: int, each: int, seed: int, levels: Sequence[float]) -> pd.DataFrame:
    """The share of labels that theory grants to two rules under Gaussian noise: a row a level.

    Noise of standard deviation s on every entry is noise of s in the bias rule's scores and of s * sqrt(F) in the row
    sums'. Columns: level, row_sum, bias. The pairs are those of `read_labels`. Source: this book.
    """
    chances: dict[tuple[float, str], list[Tensor]] = {
        (level, rule): [] for level in levels for rule in ("row_sum", "bias")
    }
    for k in range(networks):
        own = network_seed(seed, k)
        x, y = images.batches(1, each, seed=own)
        model = models.build("lenet", images.num_classes, images.image_shape, seed=own)
        gradients = client.share(model, x, y).gradients
        weight = gradients["head.weight"]
        for level in levels:
            row_sum = labels.chance_under_noise(weight.sum(2), y[:, 0], level * math.sqrt(weight.shape[2]))
            chances[level, "row_sum"].append(row_sum)
            chances[level, "bias"].append(labels.chance_under_noise(gradients["head.bias"], y[:, 0], level))
    means = {key: torch.cat(values).mean().item() for key, values in chances.items()}
    return pd.DataFrame({"level": s, "row_sum": means[s, "row_sum"], "bias": means[s, "bias"]} for s in levels)


def head_gradients(
    pairs: int, classes: int, seed: int, smoothing: float = 0.0, shift: float = 0.0, features: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact last-layer gradients of random heads: labels [T], weight gradients [T, K, F], bias gradients [T, K].

    Features are uniform in [0, 1], minus `shift` times their mean; weights U(-0.5, 0.5); smoothing: of the labels.
    """
    random = generator(seed, classes)
    h = torch.rand(pairs, features, generator=random)
    h = h - shift * h.mean(1, keepdim=True)
    logits = (h[:, None] * (torch.rand(pairs, classes, features, generator=random) - 0.5)).sum(2)
    truth = torch.randint(classes, (pairs,), generator=random)
    target = F.one_hot(truth, classes) * (1 - smoothing) + smoothing / classes
    g = logits.softmax(1) - target
    return truth, g[:, :, None] * h[:, None], g


def count_labels(
    images: ImageSet,
    sizes: Sequence[int],
    batches: int,
    seed: int,
    *,
    distinct: bool = False,
    mode: client.Mode = "eval",
    model: str = "lenet",
    shipped: torch.nn.Module | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The share of a batch's labels that each counting rule restores: columns batch, rule, right; a row a batch.

    Every batch meets a drawn network of its own, or the `shipped` one. It is drawn with replacement, so that labels
    repeat, or with `distinct` labels. The rules "yin" and "yin_sum" assume distinct labels and are left out where a
    batch has more images than there are classes. options: the architecture's, for `models.build`.
    Errors: ValueError for distinct batches of more images than there are classes.
    """
    present = images.labels.unique()
    if distinct and max(sizes) > len(present):
        raise ValueError(f"sizes={list(sizes)} with distinct labels: the images are of {len(present)} classes")
    rows = []
    for size in sizes:
        index = torch.stack([_batch_of(images, size, generator(seed, size, k), distinct) for k in range(batches)])
        x, y = images.images[index], images.labels[index]
        if shipped is not None:
            updates = [client.share(shipped, x, y, threat=ThreatModel(mode=mode))]
        else:
            drawn = (
                models.build(model, images.num_classes, images.image_shape, seed=network_seed(seed, k), **options)
                for k in range(batches)
            )
            updates = [
                client.share(victim, x[k, None], y[k, None], threat=ThreatModel(mode=mode))
                for k, victim in enumerate(drawn)
            ]
        weight, bias = (
            torch.cat([update.gradients[f"head.{name}"] for update in updates]) for name in ("weight", "bias")
        )
        truth = F.one_hot(y, images.num_classes).sum(1)
        for rule in labels.COUNT_RULES:
            if not rule.startswith("yin") or size <= images.num_classes:
                counts = labels.infer_counts(weight, bias, size, rule)
                right = torch.minimum(counts, truth).sum(1) / size
                rows.append(pd.DataFrame({"batch": size, "rule": rule, "right": right.numpy()}))
    return pd.concat(rows, ignore_index=True)


def _batch_of(images: ImageSet, size: int, random: torch.Generator, distinct: bool) -> Tensor:
    """Which images a drawn batch holds: [size] int64, with replacement, or of classes that differ."""
    if not distinct:
        return torch.randint(len(images), (size,), generator=random)
    order = torch.randperm(len(images), generator=random)
    index = torch.stack([order[images.labels[order] == c][0] for c in images.labels.unique()])
    return index[torch.randperm(len(index), generator=random)[:size]]
