"""torchvision's ImageNet ResNets, for victims of 224 x 224 pixels."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from reprolib.models.victim import Victim


class _ImageNetResNet(Victim):
    """Images [N, C, H, W] in [0, 1] to logits [N, num_classes].

    weights: "random" draws as torchvision does; "imagenet" reads torchvision's IMAGENET1K_V1 file from torch's own
    cache and never from the network: 1,000 classes, three channels, normalised with ImageNet's mean and deviation.
    pooled=False leaves out the global average and draws a head for the whole feature map, as FGLA's released code does.
    Errors: ValueError for other weights, for weights that do not fit the classes or channels, and for a damaged file;
    FileNotFoundError where the file is not in the cache, with the command that puts it there.
    """

    name: str

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        *,
        weights: str = "random",
        pooled: bool = True,
    ) -> None:
        super().__init__(num_classes, image_shape, normalize)
        if weights not in ("random", "imagenet"):
            raise ValueError(f"weights={weights!r}: expected random or imagenet")
        if image_shape[0] != 3:
            raise ValueError(f"image_shape={image_shape!r}: torchvision's {self.name} takes three channels")
        body = getattr(torchvision.models, self.name)(weights=None, num_classes=num_classes)
        if weights == "imagenet":
            if num_classes != 1000:
                raise ValueError(f"num_classes={num_classes}: the ImageNet weights of {self.name} have 1000 classes")
            body.load_state_dict(_cached(self.name))
        for module in body.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # an attack differentiates the gradient again and needs what was there before
        head, body.fc = body.fc, nn.Identity()
        if not pooled:
            body.avgpool = nn.Identity()
            sides = [math.ceil(side / 32) for side in image_shape[1:]]
            head = nn.Linear(head.in_features * sides[0] * sides[1], num_classes)
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.normalize(x)))


def _cached(name: str) -> dict[str, Tensor]:
    """The state of torchvision's IMAGENET1K_V1 file, whose name ends with the first digits of its SHA-256."""
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        raise FileNotFoundError(
            f"the ImageNet weights of {name} are not at {path}: to download them run "
            f"`python -c \"import torchvision; torchvision.models.{name}(weights='IMAGENET1K_V1')\"`"
        )
    expected = path.stem.rpartition("-")[2]
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(expected):
        raise ValueError(f"{path} is damaged: its SHA-256 does not begin with {expected}; delete it, download it again")
    return torch.load(path, map_location="cpu", weights_only=True)


class ImageNetResNet18(_ImageNetResNet):
    """18 layers of basic blocks: 11,689,512 parameters with 1,000 classes."""

    name = "resnet18"


class ImageNetResNet50(_ImageNetResNet):
    """50 layers of bottlenecks: 25,557,032 parameters with 1,000 classes; GradInversion's victim."""

    name = "resnet50"
