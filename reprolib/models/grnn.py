"""GRNN's generator: fixed noise to images and soft labels. It is drawn for one update and learns from that alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class RegressionGenerator(nn.Module):
    """Noise [B, noise_dim] to images [B, C, s, s] in [0, 1] and soft labels [B, K], a softmax of one linear layer.

    A transposed convolution to 4 x 4, then for each doubling of the side a nearest upsampling, a 3x3 convolution
    without bias, batch norm by the batch's own statistics and a gated linear unit; a sigmoid ends it. width: channels
    before the last doubling, twice as many at each doubling before; 32 in the released code (710,988 parameters at 32 x
    32 x 3, and 129 for each class). Weights are drawn as torch draws them: the released `weight_init` never reaches the
    layers that it is meant for. For 28 x 28 pixels the released generator gives 16 x 16: refused here.
    Source: Ren et al. 2022, Generator/model.py of the released code.
    Errors: ValueError for images that are not square with a side of 8, 16, 32, ..., and sizes below 1.
    """

    def __init__(self, num_classes: int, image_shape: Sequence[int], *, noise_dim: int = 128, width: int = 32) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        if height != breadth or height < 8 or height & (height - 1):
            raise ValueError(
                f"image_shape={tuple(image_shape)}: this generator doubles a side of 4, so that images must be square "
                "with a side of 8, 16, 32, ...: resize them"
            )
        if min(noise_dim, width) < 1:
            raise ValueError(f"noise_dim={noise_dim}, width={width}: expected integers of at least 1")
        doublings = height.bit_length() - 3
        widths = [width << i for i in reversed(range(doublings))] + [channels]
        self.noise_dim = noise_dim
        self.label = nn.Linear(noise_dim, num_classes)
        self.first = nn.ConvTranspose2d(noise_dim, 2 * widths[0], 4)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.convs = nn.ModuleList(nn.Conv2d(into, 2 * out, 3, padding=1, bias=False) for into, out in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2 * out, track_running_stats=False) for _, out in pairs)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        x = F.glu(self.first(noise[:, :, None, None]), 1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.glu(norm(conv(F.interpolate(x, scale_factor=2))), 1)
        return x.sigmoid(), self.label(noise).softmax(1)
