"""The CIFAR ResNets of Inverting Gradients and GradInversion: ReLU, batch norm, torchvision's basic blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from reprolib.models.victim import Victim

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}
NORMS = {"batch": nn.BatchNorm2d, "group": partial(nn.GroupNorm, 4)}


class ResNet(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes].

    A 3x3 convolution without pooling, then one stage for each entry of `blocks`, of so many basic blocks; `width`
    channels in the first stage, doubled and with a stride of 2 from each stage to the next; 1x1 convolutions with norm
    where a shortcut changes shape; global average, linear head. Convolutions are drawn as Kaiming normal (fan out), the
    norms start at 1 and 0, the head as torch's. activation: "relu", or "leaky_relu" (slope 0.01), whose features can be
    negative. norm: "batch", or "group" (four groups a layer), which has no statistics to give away. pooled=False leaves
    out the global average: the head reads the whole feature map. Source: He et al. 2016, section 4.2, in the variant
    of the code released with Geiping et al. 2020.
    Errors: ValueError for a width below 1, one that four groups do not divide, and another activation or norm.
    """

    blocks: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        width: int = 16,
        activation: str = "relu",
        norm: str = "batch",
        pooled: bool = True,
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width={width!r}: expected an integer of at least 1")
        for name, value, known in (("activation", activation, ACTIVATIONS), ("norm", norm, NORMS)):
            if value not in known:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
        if norm == "group" and width % 4:
            raise ValueError(f"width={width}: norm='group' takes four groups, expected a multiple of 4")
        normed = NORMS[norm]
        self.pooled = pooled
        self.conv = nn.Conv2d(image_shape[0], width, kernel_size=3, padding=1, bias=False)
        self.norm, self.activation = normed(width), nn.ReLU()  # type: ignore[operator]  # a layer's class
        sides: Sequence[int]
        stages, into, sides = [], width, image_shape[1:]
        for stage, count in enumerate(self.blocks):
            out = width * 2**stage
            stages.append(nn.Sequential(*(_block(into if i == 0 else out, out, normed) for i in range(count))))
            into, sides = out, [side if stage == 0 else (side + 1) // 2 for side in sides]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(into if pooled else into * sides[0] * sides[1], num_classes)
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.ReLU):
                # not in place: an attack differentiates the gradient again and needs what was there before
                self.set_submodule(name, ACTIVATIONS[activation]())

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.conv(self.normalize(x))))
        x = self.stages(x)
        return self.head(x.mean((2, 3)) if self.pooled else x.flatten(1))


def _block(into: int, out: int, normed) -> BasicBlock:  # type: ignore[no-untyped-def]
    if into == out:
        return BasicBlock(into, out, norm_layer=normed)
    shortcut = nn.Sequential(nn.Conv2d(into, out, kernel_size=1, stride=2, bias=False), normed(out))
    return BasicBlock(into, out, stride=2, downsample=shortcut, norm_layer=normed)


class ResNet20(ResNet):
    """Three stages of three blocks. width: 16 is He et al.'s; 64 is Inverting Gradients' ResNet20-4."""

    blocks = (3, 3, 3)


class ResNet32(ResNet):
    """Three stages of five blocks. width: 160 is Inverting Gradients' ResNet32-10."""

    blocks = (5, 5, 5)


class ResNet18(ResNet):
    """Four stages of two blocks, with the small stem of CIFAR images. width: 64 is He et al.'s."""

    blocks = (2, 2, 2, 2)

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        width: int = 64,
        activation: str = "relu",
        norm: str = "batch",
        pooled: bool = True,
    ) -> None:
        options = {"width": width, "activation": activation, "norm": norm, "pooled": pooled}
        super().__init__(num_classes, image_shape, normalize, **options)


class ResNetBN8(ResNet):
    """Three stages of one block: the small victim of GradInversion's chapter."""

    blocks = (1, 1, 1)
