"""FGLA's decoder: from the features that enter a victim's head back to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Decoder(nn.Module):
    """Features [N, features] to images [N, C, H, W] in [0, 1].

    The features are the flattened map of `channels` x `size` x `size`, or with pooled=True its average, [N, channels],
    which a linear layer spreads out first; they are divided by `scale` (a buffer, 1 until a training sets it). Each
    entry of `widths` doubles the side by a transposed convolution and refines it with `blocks` residual blocks; a 1x1
    convolution and a sigmoid end it, and what is beyond the image is cut off. size: None is the smallest that covers
    the image. trunk: the fingerprint of the victim's trunk whose features it reads ("" for none). data: the set it was
    trained on ("" for none). The defaults are those for CIFAR images.
    Source: Xue et al. 2023, the released generator (`paper`: widths 1024 to 64, three blocks).
    Errors: ValueError for images that are not square and sizes that do not give images of `image_shape`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        channels: int = 128,
        size: int | None = None,
        widths: Sequence[int] = (64, 32),
        blocks: int = 1,
        pooled: bool = False,
        trunk: str = "",
        data: str = "",
    ) -> None:
        super().__init__()
        side, times = image_shape[1], 2 ** len(widths)
        fitting = -(-side // times)
        if size not in (None, fitting) or image_shape[2] != side:
            raise ValueError(
                f"size={size}, widths={tuple(widths)!r}: this decoder gives square images of up to "
                f"{(size or fitting) * times} pixels a side, expected image_shape={image_shape!r}"
            )
        size = fitting
        if min(channels, *widths) < 1 or blocks < 0:
            raise ValueError(f"channels={channels}, widths={widths!r}, blocks={blocks}: expected positive sizes")
        self.register_buffer("scale", torch.ones(()))
        self.map, self.side, self.trunk, self.data = (channels, size, size), side, trunk, data
        self.features = channels if pooled else math.prod(self.map)
        layers: list[nn.Module] = []
        if pooled:
            layers += [nn.Linear(channels, math.prod(self.map)), nn.LeakyReLU()]
        layers.append(nn.Unflatten(1, self.map))
        for into, out in zip([channels, *widths], widths, strict=False):
            layers += [nn.ConvTranspose2d(into, out, 3, stride=2, padding=1, output_padding=1), nn.LeakyReLU()]
            layers += [_Residual(out) for _ in range(blocks)]
        layers += [nn.Conv2d(widths[-1], image_shape[0], 1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features / self.scale)[..., : self.side, : self.side]


class _Residual(nn.Module):
    """LeakyReLU(x + BN(Conv(LeakyReLU(BN(Conv(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.activation = nn.LeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.layers(x))
