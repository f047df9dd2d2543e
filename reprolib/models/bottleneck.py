"""Layers that pass on a random sample instead of their input, and how others hand them their random numbers.

A model with such a layer is an ordinary model: `functional_call(model, noise, (x,))` runs it under the noise given, and
a plain `model(x)` draws from torch's global generator, in training and in evaluation mode alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Replace the input by a decoded sample z = mu + noise * std, where the encoder gives mu and std for each sample.

    std is the softplus of the encoder's second half: a standard deviation, no variance and no logarithm. The buffer
    `noise` [B, *noise_shape] takes the noise of one call through `functional_call`; it is no part of the weights.
    beta: of `penalty`, beta times the KL divergence from N(mu, std^2) to N(0, 1) in bits, summed over a sample's
    entries and averaged over the batch; it is what the last forward pass adds to the loss.
    """

    def __init__(self, noise_shape: tuple[int, ...], beta: float) -> None:
        super().__init__()
        self.noise_shape, self.beta = noise_shape, beta
        self.register_buffer("noise", None, persistent=False)
        self.penalty: Tensor | None = None

    def encode(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the sample, each [B, *noise_shape]."""
        mu, spread = self.encoder(a).chunk(2, 1)
        return mu, F.softplus(spread)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, a: Tensor) -> Tensor:
        """a: [B, *in_shape] -> the same shape. Errors: ValueError for noise of another shape than [B, *noise_shape]."""
        mu, std = self.encode(a)
        noise = torch.randn_like(mu) if self.noise is None else self.noise
        if noise.shape != mu.shape:
            raise ValueError(f"noise must have shape {list(mu.shape)} here, one row a sample, got {list(noise.shape)}")
        self.penalty = self.beta * kl_bits(mu, std).mean()
        return self.decode(mu + noise * std).view(a.shape)

    def enter(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The forward pre-hook of the layer that the bottleneck stands before."""
        return (self(inputs[0]), *inputs[1:])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"penalty": None}  # a forward pass's graph cannot be copied with the model


class VariationalBottleneck(Bottleneck):
    """PRECODE's bottleneck: a linear encoder to 2k values, a sample of k, a linear decoder; inputs are flattened.

    in_shape: of one sample, (F,) or (C, H, W). No activation follows. Source: Scheliga et al. 2022, section 3 and the
    official `VariationalBottleneck`.
    """

    def __init__(self, in_shape: tuple[int, ...], k: int = 256, beta: float = 1e-3) -> None:
        super().__init__((k,), beta)
        self.in_shape, size = tuple(in_shape), math.prod(in_shape)
        self.encoder = nn.Linear(size, 2 * k)
        self.decoder = nn.Linear(k, size)

    def encode(self, a: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(a.flatten(1))


class ConvolutionalBottleneck(Bottleneck):
    """A sketch of the convolutional bottleneck: 3x3 convolutions to 2k maps and from k maps, noise at every pixel.

    in_shape: (C, H, W). The follow-up's layer sizes are not known to this book. Source: Scheliga et al. 2023, abstract.
    """

    def __init__(self, in_shape: tuple[int, ...], k: int = 8, beta: float = 1e-3) -> None:
        channels, height, width = in_shape
        super().__init__((k, height, width), beta)
        self.in_shape = tuple(in_shape)
        self.encoder = nn.Conv2d(channels, 2 * k, 3, padding=1)
        self.decoder = nn.Conv2d(k, channels, 3, padding=1)


def kl_bits(mu: Tensor, std: Tensor) -> Tensor:
    """KL(N(mu, std^2) || N(0, 1)) in bits, summed over each sample's entries: [B, ...] -> [B]."""
    return 0.5 * (mu.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1) / math.log(2)


def noise_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The noise that one sample needs: buffer name -> shape; empty for a model without bottleneck."""
    return {
        f"{name}.noise": module.noise_shape for name, module in model.named_modules() if isinstance(module, Bottleneck)
    }


def draw_noise(model: nn.Module, samples: int, random: torch.Generator) -> dict[str, Tensor]:
    """Noise for `samples` samples from a CPU generator: buffer name -> [samples, *noise_shape], as the weights are.

    A model without bottleneck draws nothing.
    """
    like = next(model.parameters())
    return {
        name: torch.randn(samples, *shape, generator=random).to(like) for name, shape in noise_shapes(model).items()
    }


def no_noise(model: nn.Module, samples: int) -> dict[str, Tensor]:
    """Noise of zero: every bottleneck passes on its mean. As `draw_noise`."""
    like = next(model.parameters())
    return {name: like.new_zeros(samples, *shape) for name, shape in noise_shapes(model).items()}


def penalty(model: nn.Module) -> Tensor | float:
    """What the bottlenecks' last forward pass adds to the loss; 0 without bottleneck. It is handed out once.

    Errors: ValueError before the first forward pass, and for a second time.
    """
    total: float | Tensor = 0.0
    for name, module in model.named_modules():
        if isinstance(module, Bottleneck):
            if module.penalty is None:
                raise ValueError(f"the penalty of {name!r} belongs to a forward pass: run the model first")
            total, module.penalty = total + module.penalty, None  # kept, it would keep the pass's graph
    return total


def leave_out_penalty(model: nn.Module) -> None:
    """Let the model's bottlenecks add nothing to the loss from now on; in place."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.beta = 0.0
