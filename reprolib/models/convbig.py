"""The network of the attack on Soteria: two convolutions, and three linear layers that hold nearly all weights."""

from __future__ import annotations

from torch import Tensor, nn

from reprolib.models.victim import Victim


class ConvBig(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes].

    A 3x3 convolution to w channels and a 1x1 convolution, padded by one, to 2w, each with ReLU and an average over 2x2;
    then linear layers to `features`, to features / 2 and to the classes: `hidden1`, `hidden2` and `head`. Soteria
    defends `hidden2`, whose input is the published representation. width: w, published 32; features: published 2000.
    Source: Balunovic et al. 2022, `RefConvLarge` of their code.
    Errors: ValueError for a width below 1, fewer than two features, and images below 2 x 2 pixels.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        width: int = 32,
        features: int = 2000,
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        for name, value, least in (("width", width, 1), ("features", features, 2)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
        channels, height, breadth = image_shape
        if min(height, breadth) < 2:
            raise ValueError(f"image_shape={image_shape!r}: two poolings by two need at least 2 x 2 pixels")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 1, padding=1)
        self.pool = nn.AvgPool2d(2)
        places = ((height // 2 + 2) // 2) * ((breadth // 2 + 2) // 2)
        self.hidden1 = nn.Linear(2 * width * places, features)
        self.hidden2 = nn.Linear(features, features // 2)
        self.head = nn.Linear(features // 2, num_classes)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.conv1(self.normalize(x))))
        x = self.pool(self.activation(self.conv2(x)))
        x = self.activation(self.hidden1(x.flatten(1)))
        x = self.activation(self.hidden2(x))
        return self.head(x)
