"""The eight-layer ConvNet of Inverting Gradients, its width a real argument."""

from __future__ import annotations

from torch import Tensor, nn

from reprolib.models.victim import Victim


class ConvNet(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes]: eight 3x3 convolutions with batch norm and ReLU.

    Channels w, 2w, 2w, 4w, 4w, 4w, then a 3x3 max-pooling, two more of 4w, another pooling, and a linear head. width:
    w; the official names ConvNet8 to ConvNet64 all build 64. norm: "batch" or "none".
    Source: Geiping et al. 2020, the network that the released code builds.
    Errors: ValueError for a width below 1, an unknown norm, and images too small for two poolings.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        width: int = 64,
        norm: str = "batch",
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width={width!r}: expected an integer of at least 1")
        if norm not in ("batch", "none"):
            raise ValueError(f"norm={norm!r}: expected batch or none")
        channels, height, breadth = image_shape
        if min(height, breadth) < 9:
            raise ValueError(f"image_shape={image_shape!r}: two poolings by three need at least 9 x 9 pixels")
        widths = [channels, width, *[2 * width] * 2, *[4 * width] * 5]
        layers: list[nn.Module] = []
        for i, (into, out) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out) if norm == "batch" else nn.Identity()]
            layers.append(nn.ReLU())
            if i in (5, 7):
                layers.append(nn.MaxPool2d(3))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width * (height // 9) * (breadth // 9), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self.normalize(x)).flatten(1))
