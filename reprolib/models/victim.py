"""What a victim is: a network whose normalisation, last layer and shapes attacks and defenses read by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reprolib.models.inputs import Images, Inputs
from reprolib.models.task import Task


class Normalize(nn.Module):
    """(x - mean) / std a channel, for images [N, C, H, W] in [0, 1]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Victim(nn.Module):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes]: every network of the book, and anybody's by `adapt`.

    image_shape: (C, H, W). normalize: what images pass first. head: the last layer, whose output the logits are; each
    network makes its own. task: what it is trained for. architecture: what the card of its weights says.
    """

    head: nn.Linear
    task: Task = Task()
    architecture: dict[str, object]

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module) -> None:
        super().__init__()
        self.num_classes, self.image_shape, self.normalize = num_classes, image_shape, normalize

    @property
    def inputs(self) -> Inputs:
        """What it takes: images, unless a network of another modality says otherwise."""
        return Images(tuple(self.image_shape), self.mean, self.std)

    @property
    def mean(self) -> Tensor:
        """What `normalize` takes away, [C, 1, 1]; [0] where that is no `Normalize`: attackers then search in pixels."""
        return self.normalize.mean if isinstance(self.normalize, Normalize) else torch.zeros(1)

    @property
    def std(self) -> Tensor:
        """What `normalize` divides by, [C, 1, 1]; [1] where that is no `Normalize`."""
        return self.normalize.std if isinstance(self.normalize, Normalize) else torch.ones(1)


def checked_normalize(
    normalize: tuple[Sequence[float], Sequence[float]], channels: int
) -> tuple[Sequence[float], Sequence[float]]:
    """(mean, std) as they are; ValueError unless each has a finite number for every channel, and std positive ones."""
    try:
        mean, std = normalize
        fits = len(mean) == len(std) == channels
        fits = fits and all(math.isfinite(value) for value in mean) and all(0 < value < math.inf for value in std)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"normalize={normalize!r}: expected (mean, std) with {channels} numbers each, std positive")
    return mean, std


def require_victim(model: nn.Module) -> None:
    """Refuse what is no victim: attacks read its last layer, its normalisation and its shapes."""
    known = isinstance(model, Victim)
    if not known or model.head.out_features != model.num_classes:
        what = f"its head gives {model.head.out_features} classes" if known else "it is no models.Victim"
        raise ValueError(
            f"{type(model).__name__} is no victim as it is ({what}): models.adapt(module, image_shape, num_classes) "
            "makes anybody's network one, models.build one of the book's"
        )
