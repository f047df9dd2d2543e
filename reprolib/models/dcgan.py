"""HCGLA's start: from a row of the head's gradient to an image, in the layout of a DCGAN."""

from __future__ import annotations

from torch import Tensor, nn


class DCGAN(nn.Module):
    """Rows [N, features] to images [N, C, 32, 32] in [0, 1].

    Five transposed 4x4 convolutions from 1 x 1 to 64 x 64 with batch norm, ReLU and at the end a sigmoid, then a
    max-pooling to 32 x 32. width: of the last hidden layer, doubled towards the row; the released code's is 64.
    trunk: as for `Decoder`.
    Source: Yang et al. 2023, released code.
    Errors: ValueError for images of other sides and sizes below 1.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], *, features: int = 768, width: int = 64, trunk: str = ""
    ) -> None:
        super().__init__()
        if image_shape[1:] != (32, 32):
            raise ValueError(f"image_shape={image_shape!r}: this generator gives images of 32 x 32 pixels")
        if min(features, width) < 1:
            raise ValueError(f"features={features}, width={width}: expected integers of at least 1")
        self.features, self.trunk = features, trunk
        layers: list[nn.Module] = [nn.Unflatten(1, (features, 1, 1))]
        into, stride, padding = features, 1, 0
        for out in (8 * width, 4 * width, 2 * width, width):
            layers += [
                nn.ConvTranspose2d(into, out, 4, stride, padding, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            into, stride, padding = out, 2, 1
        layers += [nn.ConvTranspose2d(width, image_shape[0], 4, 2, 1, bias=False), nn.BatchNorm2d(image_shape[0])]
        self.layers = nn.Sequential(*layers, nn.Sigmoid(), nn.MaxPool2d(2))

    def forward(self, rows: Tensor) -> Tensor:
        return self.layers(rows)
