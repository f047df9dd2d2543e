"""GRNN's victim, the LeNet of the textbooks with sigmoids: two convolutions with max-pooling and three linear layers.

Source: Ren et al. 2022, Backbone/lenet.py of the released code.
"""

from __future__ import annotations

from torch import Tensor, nn

from reprolib.models.victim import Victim


class LeNet5(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes].

    5x5 convolutions to 6 and 16 channels, each with a sigmoid and a max-pooling by two, then linear layers to 120, 84
    and the classes. init: "uniform" draws every weight and bias from U(-0.5, 0.5), as GRNN's code does; "default" is
    torch's.
    Errors: ValueError for another init, and images below 16 x 16 pixels.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        init: str = "uniform",
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if init not in ("uniform", "default"):
            raise ValueError(f"init={init!r}: expected uniform or default")
        channels, height, width = image_shape
        if min(height, width) < 16:
            raise ValueError(f"image_shape={image_shape!r}: two convolutions and poolings need at least 16 x 16 pixels")
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.hidden1 = nn.Linear(16 * _after(height) * _after(width), 120)
        self.hidden2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)
        self.activation, self.pool = nn.Sigmoid(), nn.MaxPool2d(2)
        if init == "uniform":
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.conv1(self.normalize(x))))
        x = self.pool(self.activation(self.conv2(x))).flatten(1)
        return self.head(self.activation(self.hidden2(self.activation(self.hidden1(x)))))


def _after(side: int) -> int:
    return ((side - 4) // 2 - 4) // 2
