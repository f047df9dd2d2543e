"""The CIFAR ResNets of Inverting Gradients and GradInversion: ReLU, batch norm, torchvision's basic blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class ResNet(nn.Module):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes].

    A 3x3 convolution without pooling, then one stage for each entry of `blocks`, of so many basic blocks; `width`
    channels in the first stage, doubled and with a stride of 2 from each stage to the next; 1x1 convolutions with batch
    norm where a shortcut changes shape; global average, linear head. Convolutions are drawn as Kaiming normal (fan
    out), batch norm starts at 1 and 0, the head as torch's. Source: He et al. 2016, section 4.2, in the variant of the
    code released with Geiping et al. 2020 (sheet `ig.md`, section 6.3).
    Errors: ValueError for a width or number of blocks below 1.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        blocks: Sequence[int],
        width: int,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), *(("blocks", count) for count in blocks)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer of at least 1")
        self.normalize = normalize
        self.conv = nn.Conv2d(image_shape[0], width, kernel_size=3, padding=1, bias=False)
        self.norm, self.activation = nn.BatchNorm2d(width), nn.ReLU()
        stages, into = [], width
        for stage, count in enumerate(blocks):
            out = width * 2**stage
            stages.append(nn.Sequential(*(_block(into if i == 0 else out, out) for i in range(count))))
            into = out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(into, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.ReLU):
                module.inplace = False  # an attack differentiates the gradient again and needs what was there before

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.conv(self.normalize(x))))
        return self.head(self.stages(x).mean((2, 3)))


def _block(into: int, out: int) -> BasicBlock:
    if into == out:
        return BasicBlock(into, out)
    shortcut = nn.Sequential(nn.Conv2d(into, out, kernel_size=1, stride=2, bias=False), nn.BatchNorm2d(out))
    return BasicBlock(into, out, stride=2, downsample=shortcut)


class ResNet20(ResNet):
    """Three stages of three blocks. width: 16 is He et al.'s; 64 is Inverting Gradients' ResNet20-4."""

    def __init__(
        self, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module, *, width: int = 16
    ) -> None:
        super().__init__(num_classes, image_shape, normalize, (3, 3, 3), width)


class ResNet32(ResNet):
    """Three stages of five blocks. width: 160 is Inverting Gradients' ResNet32-10."""

    def __init__(
        self, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module, *, width: int = 16
    ) -> None:
        super().__init__(num_classes, image_shape, normalize, (5, 5, 5), width)


class ResNet18(ResNet):
    """Four stages of two blocks, with the small stem of CIFAR images."""

    def __init__(
        self, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module, *, width: int = 64
    ) -> None:
        super().__init__(num_classes, image_shape, normalize, (2, 2, 2, 2), width)


class ResNetBN8(ResNet):
    """Three stages of one block: the small victim of GradInversion's chapter (sheet `gradinversion.md`, section 6)."""

    def __init__(
        self, num_classes: int, image_shape: tuple[int, int, int], normalize: nn.Module, *, width: int = 16
    ) -> None:
        super().__init__(num_classes, image_shape, normalize, (1, 1, 1), width)
