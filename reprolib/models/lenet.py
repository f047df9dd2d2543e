"""The LeNet of DLG and iDLG: three 5x5 convolutions without pooling, and a linear head.

Source: mit-han-lab/dlg, models/vision.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from reprolib.models.victim import Victim

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
WIDTH = 12


class LeNet(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes].

    The convolutions' strides are 2, 2, 1, so a 32x32 image ends as 12 maps of 8x8: 768 features.
    activation: "sigmoid" (the papers': twice differentiable) or "relu". init: "uniform" draws every weight and bias
    from U(-0.5, 0.5), as both papers do; "default" is torch's.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        activation: str = "sigmoid",
        init: str = "uniform",
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        if init not in ("uniform", "default"):
            raise ValueError(f"init={init!r}: expected uniform or default")
        channels, height, width = image_shape
        features = WIDTH * _halved_twice(height) * _halved_twice(width)
        self.conv1 = nn.Conv2d(channels, WIDTH, kernel_size=5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, kernel_size=5, stride=2, padding=2)
        self.conv3 = nn.Conv2d(WIDTH, WIDTH, kernel_size=5, stride=1, padding=2)
        self.head = nn.Linear(features, num_classes)
        self.activation = ACTIVATIONS[activation]()
        if init == "uniform":
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalize(x)
        x = self.activation(self.conv1(x))
        x = self.activation(self.conv2(x))
        x = self.activation(self.conv3(x))
        return self.head(x.flatten(1))


def _halved_twice(size: int) -> int:
    # A stride of 2 with this padding rounds up.
    return ((size + 1) // 2 + 1) // 2
