"""A multilayer perceptron: the smallest victim, whose first layer leaks the image in closed form."""

from __future__ import annotations

import math

from torch import Tensor, nn

from reprolib.models.victim import Victim

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


class MLP(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes] through two hidden layers of `width` units.

    activation: "sigmoid" or "relu". init: "default" is torch's; "uniform" draws all from U(-0.5, 0.5).
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        width: int = 128,
        activation: str = "sigmoid",
        init: str = "default",
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width={width!r}: expected an integer of at least 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        if init not in ("uniform", "default"):
            raise ValueError(f"init={init!r}: expected uniform or default")
        self.hidden1 = nn.Linear(math.prod(image_shape), width)
        self.hidden2 = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)
        self.activation = ACTIVATIONS[activation]()
        if init == "uniform":
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalize(x).flatten(1)
        x = self.activation(self.hidden1(x))
        x = self.activation(self.hidden2(x))
        return self.head(x)
