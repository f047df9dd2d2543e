"""What a defense costs: the accuracy of a model trained on defended gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch.func import functional_call

from reprolib import models
from reprolib.data import ImageSet
from reprolib.defenses import Defense, describe, with_feedback
from reprolib.federated import client
from reprolib.federated.streams import generator


def train(
    model: torch.nn.Module,
    images: ImageSet,
    steps: int,
    learning_rate: float,
    *,
    batch_size: int = 64,
    momentum: float = 0.9,
    defense: Defense | None = None,
    error_feedback: bool = False,
    seed: int = 0,
) -> torch.nn.Module:
    """Train a model in place by SGD, the defense applied to every step's gradient as to one client's update.

    error_feedback: what the defense withholds from a step's gradient is added to the next one's (`defenses.md`, 4.3).
    Batches are drawn with replacement from (seed, step); the defense's numbers come from (seed, step, 1), as does the
    noise of a model that it has extended (`client.extended`). A gradient that is no longer finite ends the training.
    Returns the model in evaluation mode. Source: DLG, Table 3 (training with the defense on every update).
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    model.train()
    withheld: dict[str, torch.Tensor] = {}
    for step in range(steps):
        index = torch.randint(len(images), (batch_size,), generator=generator(seed, step))
        x, y = images.images[index].to(device), images.labels[index].to(device)
        optimizer.zero_grad()
        targets, random = F.one_hot(y, model.num_classes).to(x.dtype), generator(seed, step, 1)
        noise = models.draw_noise(model, batch_size, random)
        if defense is not None:
            x, targets = defense.encode(x, targets, random)
        client.loss(model, noise, x, targets).backward()
        if defense is not None:
            gradients = {name: p.grad for name, p in model.named_parameters()}
            shared, left = with_feedback(defense, gradients, withheld, model, x, y, random)
            for name, p in model.named_parameters():
                p.grad = shared[name]
            if error_feedback:
                withheld = left
        if not all(p.grad.isfinite().all() for p in model.parameters()):
            break
        optimizer.step()
    return model.eval()


def accuracy(model: torch.nn.Module, images: ImageSet) -> float:
    """The share of images classified correctly, in evaluation mode; NaN outputs are wrong.

    A bottleneck samples here as in training, the same noise for every model.
    """
    device = next(model.parameters()).device
    right, random = [], generator(0, 0)
    with torch.no_grad():
        for x, y in zip(images.images.split(500), images.labels.split(500), strict=True):
            logits = functional_call(model, models.draw_noise(model, len(x), random), (x.to(device),)).cpu()
            right.append((logits.argmax(1) == y) & logits.isfinite().all(1))
    return torch.cat(right).double().mean().item()


def with_defense(
    train_images: ImageSet,
    test_images: ImageSet,
    defense: Defense | None,
    steps: int,
    seeds: int,
    learning_rates: Sequence[float] = (0.003, 0.01, 0.03),
    error_feedback: bool = False,
    seed: int = 0,
    *,
    model: str = "lenet",
    activation: str = "relu",
    init: str = "default",
    **options: object,
) -> pd.DataFrame:
    """Accuracy of a model, by default a ReLU LeNet, trained under a defense: a row a seed.

    The learning rate is chosen for each defense by the accuracy on the last tenth of the training images, which no
    model trains on. error_feedback: as for `train`. model to options: for `models.build`.
    Columns: defense, seed, learning_rate, accuracy. Source: DLG, Table 3.
    """
    held_out = max(1, len(train_images) // 10)
    fit, validation = train_images.subset(slice(None, -held_out)), train_images.subset(slice(-held_out, None))

    options |= {"activation": activation, "init": init}

    def trained(learning_rate: float, run: int) -> torch.nn.Module:
        built = models.build(model, fit.num_classes, fit.image_shape, seed=seed + run, **options)
        victim = client.extended(built, defense)
        return train(victim, fit, steps, learning_rate, defense=defense, error_feedback=error_feedback, seed=seed + run)

    tried = {rate: trained(rate, 0) for rate in learning_rates}
    best = max(tried, key=lambda rate: accuracy(tried[rate], validation))
    return pd.DataFrame(
        {
            "defense": describe(defense),
            "seed": run,
            "learning_rate": best,
            "accuracy": accuracy(trained(best, run) if run else tried[best], test_images),
        }
        for run in range(seeds)
    )
