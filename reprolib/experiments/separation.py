"""How well the features of a batch separate, without any decoder: through training, by offset, and in how long."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprolib import models
from reprolib.attacks import labels
from reprolib.attacks.fgla import FGLA, head_gradients, refine, separate
from reprolib.data import ImageSet
from reprolib.experiments.batches import draw
from reprolib.experiments.networks import network_seed
from reprolib.federated import client
from reprolib.federated.streams import generator

OFFSETS = ("none", "official", "full", "self-consistent")


def fresh_head(model: nn.Module, classes: int, seed: int) -> nn.Module:
    """The model with a new, untrained head for so many classes, drawn as torch does; its trunk is the same."""
    fresh = copy.deepcopy(model)
    fresh.head = models.drawn(lambda: nn.Linear(model.head.in_features, classes), seed)
    fresh.head.to(model.head.weight)
    fresh.num_classes = classes
    return fresh


def separation_errors(
    trunk: nn.Module,
    images: ImageSet,
    cases: Sequence[tuple[int, int]],
    draws: int,
    seed: int,
    refine_steps: int,
    smoothing: float = 0.0,
    with_bias: bool = True,
    noise: float = 0.0,
    offsets: Sequence[str] = OFFSETS,
) -> pd.DataFrame:
    """How far separated features are from the true ones, without any decoder: a row a (case, draw, offset).

    cases: (classes, images in the batch); every draw takes a new head, images drawn anew and different labels. The
    head's gradient is computed in closed form. smoothing: of the client's labels. with_bias: False leaves the bias
    gradient out, so that -1/B is imputed. noise: standard deviation of Gaussian noise on every entry.
    Columns: classes, batch, draw, offset (of `offsets`), error (median over the batch, relative), cosine (mean).
    """
    rows = []
    for classes, size in cases:
        for k in range(draws):
            own = network_seed(seed, k)
            x, y = draw(images, size, 1, "relabel", classes, own)
            head = fresh_head(trunk, classes, own).head
            f = models.penultimate(trunk, x[0])[None]
            weight, bias = head.weight.detach(), head.bias.detach()
            errors = (f @ weight.T + bias).softmax(2) - (1 - smoothing) * F.one_hot(y, classes) - smoothing / classes
            gradients = errors.mT @ f / size, errors.sum(1) / size
            if noise:
                random = generator(seed, k, classes, size)
                gradients = tuple(g + noise * torch.randn(g.shape, generator=random) for g in gradients)
            for offset in offsets:
                given = gradients if with_bias else (gradients[0], None)
                found = _separated(offset, given, y, weight, bias, refine_steps)
                rows.append({"classes": classes, "batch": size, "draw": k, "offset": offset} | _off(found[0], f[0]))
    return pd.DataFrame(rows)


def heads_in_training(
    trunk: nn.Module,
    public: ImageSet,
    images: ImageSet,
    steps: Sequence[int],
    size: int,
    batches: int,
    seed: int,
    refine_steps: int,
    learning_rate: float = 0.01,
) -> pd.DataFrame:
    """What training does to the separation: a row a (steps, batch, offset), the trunk left as it is.

    The head learns the true classes by SGD with momentum on batches of 64 for so many steps. Columns: steps, batch,
    offset, error, cosine; confidence (median probability of the label); sign, minimum (share of labels restored).
    """
    x, y = images.batches(size, batches, seed=seed, distinct_labels=True)
    victim, known = fresh_head(trunk, public.num_classes, seed), models.penultimate(trunk, public.images)
    private = torch.stack([models.penultimate(trunk, batch) for batch in x])
    head, rows, done = victim.head.requires_grad_(True), [], 0
    optimizer = torch.optim.SGD(head.parameters(), lr=learning_rate, momentum=0.9)
    for count in sorted(steps):
        for step in range(done, count):
            index = torch.randint(len(known), (64,), generator=generator(seed, step, 1))
            optimizer.zero_grad()
            F.cross_entropy(head(known[index]), public.labels[index]).backward()
            optimizer.step()
        done = count
        weight, bias = head.weight.detach(), head.bias.detach()
        gradients = head_gradients(private, y, weight, bias)
        sure = (private @ weight.T + bias).softmax(2).gather(2, y[:, :, None])[:, :, 0].median(1).values
        counts = {rule: labels.infer_counts(*gradients, size, rule) for rule in ("bias_negative", "yin")}
        truth = F.one_hot(y, public.num_classes).sum(1)
        right = {rule: torch.minimum(found, truth).sum(1) / size for rule, found in counts.items()}
        for offset in OFFSETS:
            found = _separated(offset, gradients, y, weight, bias, refine_steps)
            for k in range(batches):
                row = {"steps": count, "batch": k, "offset": offset} | _off(found[k], private[k])
                row |= {"confidence": sure[k].item(), "sign": right["bias_negative"][k].item()}
                rows.append(row | {"minimum": right["yin"][k].item()})
    return pd.DataFrame(rows)


def _separated(
    offset: str, gradients: tuple[Tensor, Tensor | None], given: Tensor, weight: Tensor, bias: Tensor, steps: int
) -> Tensor:
    """Features [T, B, F] from the head's weight and bias gradient by one of OFFSETS; a missing bias is imputed."""
    consistent = offset == "self-consistent"
    how = "full" if consistent else offset
    found = separate(*gradients, given, how, "none", impute_bias=gradients[1] is None).features
    return refine(found, gradients[0], given, weight, bias, steps)[0] if consistent else found


def _off(found: Tensor, truth: Tensor) -> dict[str, float]:
    """Median relative error and mean cosine of features [B, F]."""
    error = (found - truth).norm(dim=1) / truth.norm(dim=1).clamp(min=1e-12)
    return {"error": error.median().item(), "cosine": F.cosine_similarity(found, truth).mean().item()}


def speed(
    victim: nn.Module, attack: FGLA, images: ImageSet, sizes: Sequence[int], batches: int, seed: int
) -> pd.DataFrame:
    """Seconds that a batch takes, stage by stage: a row a (batch size, batch, stage), the fastest of five repeats.

    Stages: "separation" and "decoder", after a first pass, loading and checking left out.
    """
    rows, device = [], victim.head.weight.device
    for size in sizes:
        for k in range(batches):
            x, given = (part.to(device) for part in draw(images, size, 1, "relabel", victim.num_classes, seed + k))
            gradients = client.share(victim, x, given).gradients
            weight, bias = gradients["head.weight"], gradients["head.bias"]
            f = separate(weight, bias, given, attack.offset).features
            stages = {
                "separation": lambda w=weight, b=bias, g=given: separate(w, b, g, attack.offset),
                "decoder": lambda f=f: attack.decode(f),
            }
            for stage, run in stages.items():
                rows.append({"batch": size, "draw": k, "stage": stage, "seconds": _fastest(run, device)})
    return pd.DataFrame(rows)


def _fastest(run: Any, device: torch.device, repeats: int = 5) -> float:
    """Seconds of the fastest repeat after a first one: the others were held up by something else."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
