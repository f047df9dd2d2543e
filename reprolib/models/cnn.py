"""FLEAK's network for CIFAR: two convolutions with ReLU, one max-pooling, and a wide linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from reprolib.models.victim import Victim


class CNN(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes]; torch's own weights.

    3x3 convolutions, padded, to w and 2w channels, each with ReLU, a max-pooling by two, and linear layers to 16w and
    the classes. width: w, 32 in FLEAK (8,413,642 parameters at 32 x 32 x 3 and ten classes).
    Source: the network `cnn` of FLEAK, the federated attack collection of Zhu et al. 2025.
    Errors: ValueError for a width below 1, and images below 2 x 2 pixels.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        width: int = 32,
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width={width!r}: expected an integer of at least 1")
        channels, height, breadth = image_shape
        if min(height, breadth) < 2:
            raise ValueError(f"image_shape={image_shape!r}: a pooling by two needs at least 2 x 2 pixels")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.hidden1 = nn.Linear(2 * width * (height // 2) * (breadth // 2), 16 * width)
        self.head = nn.Linear(16 * width, num_classes)
        self.activation, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.conv2(self.activation(self.conv1(self.normalize(x)))))
        return self.head(self.activation(self.hidden1(self.pool(x).flatten(1))))
