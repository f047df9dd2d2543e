"""FGLA's small victim: three convolutions whose features keep an 8 x 8 layout on CIFAR images."""

from __future__ import annotations

from torch import Tensor, nn

from reprolib.models.victim import Victim


class ConvNet8(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes]: three 3x3 convolutions with batch norm and ReLU.

    Channels w, 2w, 4w with strides 1, 2, 2; the features, [N, 4w * H/4 * W/4] (rounded up), enter the head as they are,
    or averaged over their positions with pooled=True. The eight is the side of the feature map of a CIFAR image: this
    is not the ConvNet of Inverting Gradients. Source: this book.
    Errors: ValueError for a width below 1.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        width: int = 32,
        pooled: bool = False,
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width={width!r}: expected an integer of at least 1")
        channels, height, breadth = image_shape
        self.pooled = pooled
        layers: list[nn.Module] = []
        for into, out, stride in ((channels, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
            layers += [nn.Conv2d(into, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width * (1 if pooled else -(-height // 4) * -(-breadth // 4)), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(self.normalize(x))
        return self.head(features.mean((2, 3)) if self.pooled else features.flatten(1))
