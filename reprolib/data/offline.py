"""Sets that come with the packages of the environment: photographs, faces and digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from reprolib.data.pictures import pixels_of

# Ten photographs, as CIFAR-10 has ten classes. The tiles' scales (side of a tile in the photograph's pixels) go from a
# detail to most of the subject; every photograph's left 60 % holds its subject and is the test region.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}


TEST_REGION = 0.6
TILE_SIDES = (64, 96, 144, 208)
TILES_PER_PHOTOGRAPH = {"train": 200, "test": 100}
FLAT = 0.05  # tiles with a smaller standard deviation of brightness show nothing


@dataclass(frozen=True)
class OfflineSet:
    """A set made of files inside installed packages. `made(split, size)` gives images, labels and class names."""

    title: str
    image_shape: tuple[int, int, int]
    num_classes: int
    made: Callable[[str, int], tuple[Tensor, Tensor, tuple[str, ...]]]


def _shipped(package: str, path: str) -> Path:
    with as_file(files(package) / path) as found:
        if not found.is_file():
            raise FileNotFoundError(f"the installed {package} lacks {path}: reinstall it from its wheel")
        return found


@lru_cache
def _photos(split: str, size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    tiles: list[Tensor]
    labels: list[int]
    tiles, labels = [], []
    for label, (package, path) in enumerate(PHOTOGRAPHS.values()):
        with Image.open(_shipped(package, path)) as photograph:
            border = round(photograph.width * TEST_REGION)
            left, right = (0, border) if split == "test" else (border, photograph.width)
            region = photograph.convert("RGB").crop((left, 0, right, photograph.height))
        boxes = _boxes(region, TILES_PER_PHOTOGRAPH[split])
        tiles.extend(pixels_of(region.resize((size, size), Image.Resampling.BOX, box)) for box in boxes)
        labels.extend([label] * len(boxes))
    return torch.stack(tiles), torch.tensor(labels), tuple(PHOTOGRAPHS)


def _boxes(region: Image.Image, count: int) -> list[tuple[int, int, int, int]]:
    """At most `count` squares that show something and differ: every scale, on a grid of a quarter of their side."""
    boxes, tiles = [], []
    for side in TILE_SIDES:
        step = side // 4
        rows, columns = (region.height - side) // step + 1, (region.width - side) // step + 1
        if min(rows, columns) < 1:
            continue
        boxes += [(c * step, r * step, c * step + side, r * step + side) for r in range(rows) for c in range(columns)]
        # one shrunken picture holds all tiles of a scale, at 8 pixels a step
        whole = (columns + 3, rows + 3)
        small = region.resize([8 * n for n in whole], Image.Resampling.BOX, (0, 0, *(step * n for n in whole)))
        tiles.append(pixels_of(small).unfold(1, 32, 8).unfold(2, 32, 8).flatten(1, 2).transpose(0, 1))
    tiles = torch.cat(tiles)  # type: ignore[assignment]
    shown = (tiles.mean(1).flatten(1).std(1) > FLAT).nonzero().flatten()  # type: ignore[attr-defined]  # stacked above
    return [boxes[shown[index]] for index in _spread(tiles[shown], count).tolist()]


def _spread(tiles: Tensor, count: int) -> Tensor:
    """Indices of `count` tiles far from each other: each next one is the farthest from those taken, at 8x8 pixels."""
    flat = F.adaptive_avg_pool2d(tiles, 8).flatten(1)
    chosen = [int(flat.std(1).argmax())]
    nearest = torch.full((len(flat),), torch.inf)
    while len(chosen) < min(count, len(flat)):
        nearest = torch.minimum(nearest, (flat - flat[chosen[-1]]).square().mean(1))
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def _faces(split: str, size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    # The first 100 of 200 are faces, the others background (docstring of skimage.data.lfw_subset).
    crops = torch.from_numpy(np.load(_shipped("skimage", "data/lfw_subset.npy"))[:100]).float()[:, None]
    kept = torch.arange(80) if split == "test" else torch.arange(80, 100)
    return _resized(crops[kept], size), kept, tuple(f"face {number:02d}" for number in range(100))


def _digits(split: str, size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    bunch = load_digits()
    kept = slice(-1000, None) if split == "test" else slice(None, -1000)
    images = torch.from_numpy(bunch.images[kept] / 16).float()[:, None]
    return _resized(images, size), torch.from_numpy(bunch.target[kept]).long(), tuple(map(str, range(10)))


def _resized(images: Tensor, size: int) -> Tensor:
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


OFFLINE_SETS: dict[str, OfflineSet] = {
    "photos": OfflineSet(
        title="tiles of ten photographs that scikit-image and scikit-learn ship, one class a photograph, "
        "train and test tiles from different regions",
        image_shape=(3, 32, 32),
        num_classes=len(PHOTOGRAPHS),
        made=_photos,
    ),
    "faces": OfflineSet(
        title="100 grey face crops of LFW that scikit-image ships without their names, each its own class",
        image_shape=(1, 25, 25),
        num_classes=100,
        made=_faces,
    ),
    "digits": OfflineSet(
        title="handwritten digits of 8x8 pixels that scikit-learn ships (UCI optdigits)",
        image_shape=(1, 8, 8),
        num_classes=10,
        made=_digits,
    ),
}
