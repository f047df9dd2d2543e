"""The CIFAR ResNet made twice differentiable, as DLG describes its victim: sigmoids for ReLUs, and no strides.

DLG's released ResNet does not run, so this is our own construction after the paper's text (section 4). He et al.
(2016), section 4.2, is the network it starts from: 6n + 2 layers in three stages of 16, 32 and 64 channels; shortcuts
have no parameters, new channels start as zeros (their option A).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.models.victim import Victim

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: [N, in, H, W] to [N, out, H, W] with out >= in."""

    def __init__(self, in_channels: int, out_channels: int, activation: str, norm: str) -> None:
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.conv1, self.norm1 = _convolution(in_channels, out_channels, norm)
        self.conv2, self.norm2 = _convolution(out_channels, out_channels, norm)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.activation(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        shortcut = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return self.activation(residual + shortcut)


class DLGResNet(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes]; every map keeps the image's resolution.

    activation: "sigmoid" or "relu". norm: "none" (convolutions have biases) or "batch" (they have none). init:
    "default" is torch's; "uniform" draws every parameter from U(-0.5, 0.5).
    """

    def __init__(
        self,
        blocks_per_stage: int,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        activation: str,
        norm: str,
        init: str,
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        if norm not in ("none", "batch"):
            raise ValueError(f"norm={norm!r}: expected none or batch")
        if init not in ("uniform", "default"):
            raise ValueError(f"init={init!r}: expected uniform or default")
        self.conv, self.norm = _convolution(image_shape[0], 16, norm)
        self.activation = ACTIVATIONS[activation]()
        self.stage1 = _stage(16, 16, blocks_per_stage, activation, norm)
        self.stage2 = _stage(16, 32, blocks_per_stage, activation, norm)
        self.stage3 = _stage(32, 64, blocks_per_stage, activation, norm)
        self.head = nn.Linear(64, num_classes)
        if init == "uniform":
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.conv(self.normalize(x))))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean((2, 3)))


class DLGResNet20(DLGResNet):
    """Three blocks a stage; arguments as `DLGResNet`."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        activation: str = "sigmoid",
        norm: str = "none",
        init: str = "default",
    ) -> None:
        super().__init__(3, num_classes, image_shape, normalize, activation, norm, init)


class DLGResNet56(DLGResNet):
    """Nine blocks a stage; arguments as `DLGResNet`."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        activation: str = "sigmoid",
        norm: str = "none",
        init: str = "default",
    ) -> None:
        super().__init__(9, num_classes, image_shape, normalize, activation, norm, init)


def _convolution(in_channels: int, out_channels: int, norm: str) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=norm == "none")
    return convolution, nn.BatchNorm2d(out_channels) if norm == "batch" else nn.Identity()


def _stage(in_channels: int, out_channels: int, blocks: int, activation: str, norm: str) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * blocks
    return nn.Sequential(*(Block(widths[i], widths[i + 1], activation, norm) for i in range(blocks)))
