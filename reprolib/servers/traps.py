"""Trap weights: rows of the first layer that few images pass. Boenisch et al., EuroS&P 2023."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from reprolib import settings
from reprolib.federated.server import Honest
from reprolib.federated.streams import generator
from reprolib.federated.threat import ServerKind
from reprolib.models.victim import Victim, require_victim


@dataclass(frozen=True)
class TrapWeights(Honest):
    """Fill the model's own first layer, which must be linear and take the image, with weights of which each row's are
    half negative, -|z|, and half positive, scale x |z|, z ~ N(0, sigma^2), at random places; its bias is zero.

    Over pixels in [0, 1] a row's sum is then slightly negative on average, and most images leave its ReLU off: an image
    that passes a row alone can be read off it. Nothing of the architecture is changed. A model that normalises its
    pixels around zero makes traps that every second image passes.
    Errors: ValueError for settings outside their range; when sending, for a model whose first layer is no linear one
    over the image, or has no bias.
    Source: Boenisch et al. 2023 (arXiv:2112.02918); the port in breaching for scale and sigma.
    """

    kind: ClassVar[ServerKind] = "malicious parameters"
    sigma: settings.Length = 0.5
    scale: settings.Length = 0.95
    seed: settings.WholeOrZero = 0

    def __post_init__(self) -> None:
        settings.check(self)

    def broadcast(self, model: nn.Module) -> Victim:
        require_victim(model)
        sent = copy.deepcopy(model)
        layer = sent.get_submodule(first_linear(sent))
        rows, size = layer.weight.shape
        random = generator(self.seed, 0)
        magnitude = self.sigma * torch.randn(rows, size // 2, generator=random).abs()
        positive = self.scale * torch.nn.functional.pad(magnitude, (0, size % 2))
        places = torch.stack([torch.randperm(size, generator=random) for _ in range(rows)])
        with torch.no_grad():
            layer.weight.copy_(torch.zeros(rows, size).scatter_(1, places, torch.cat([-magnitude, positive], 1)))
            layer.bias.zero_()
        return sent


def first_linear(model: Victim) -> str:
    """The name of the layer that takes the flattened image. Errors: ValueError where the first layer is no such one."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    name, layer = layers[0]
    if not isinstance(layer, nn.Linear) or layer.in_features != math.prod(model.image_shape):
        raise ValueError(
            f"the first layer of {type(model).__name__}, {name!r}, is {layer}: no linear one over the image"
        )
    if layer.bias is None:
        raise ValueError(f"the first layer {name!r} has no bias, by whose gradient images are divided")
    return name
