"""From a picture's file to a tensor."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from reprolib import settings
from reprolib.data.folders import path_of


def drawn_order(total: int, count: int | None, seed: int, what: str) -> Tensor:
    count = settings.held("count", int | None, count)
    if total == 0:
        raise ValueError(f"{what} holds no images here: where a class has a single one, that is in the test half")
    if count is not None and count < 1:
        raise ValueError(f"count={count}: expected at least 1, or None for the whole set")
    if count is not None and count > total:
        raise ValueError(f"count={count}: {what} holds {total} images")
    return permuted(total, seed)[:count]


def permuted(total: int, seed: int) -> Tensor:
    """The numbers [total] below it in the order of a seed. Errors: ValueError for a seed that is none."""
    generator = torch.Generator().manual_seed(settings.held("seed", settings.SeedOfTorch, seed))
    return torch.randperm(total, generator=generator)


def decode(
    dataset: Dataset, name: str, count: int | None, seed: int, shape: tuple[int, int, int] | int, fit: str
) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] and labels [N] of the first `count` items in the order of `seed`.

    shape: (C, H, W), or C alone, where all pictures must have the first one's size.
    """
    images, labels = [], []
    for item in drawn_order(len(dataset), count, seed, repr(name)).tolist():
        picture, label = read(dataset, item, name)
        if isinstance(shape, int):
            shape, fit = (shape, *picture.size[::-1]), "exact"
        if fit == "exact" and picture.size != shape[:0:-1]:
            raise ValueError(
                f"{path_of(dataset, item)} of {name!r} is {size_words(picture.size)} pixels, expected "
                f"{size_words(shape[:0:-1])} like the others: resize it first, or give size="
            )
        images.append(_fitted(picture, shape, fit))
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def read(dataset: Dataset, item: int, name: str) -> tuple[Image.Image, int]:
    """A picture as "L", "RGB" or "RGBA", and its label. Raises ValueError that names a file which cannot be read."""
    try:
        picture, label = dataset[item]
        if picture.mode.startswith("I;16"):  # PIL's own conversion cuts everything above 255
            picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise ValueError(f"it has mode {picture.mode}, expected 8 or 16 bits a channel: convert it first")
        if picture.mode not in ("L", "RGB", "RGBA"):
            grey, clear = picture.mode in ("1", "LA"), "transparency" in picture.info  # of a palette
            picture = picture.convert("L" if grey else "RGBA" if clear else "RGB")
        return picture, int(label)
    except Exception as error:  # a damaged file makes PIL's readers fail in many ways
        raise ValueError(f"cannot read {path_of(dataset, item)} of {name!r}: {error}") from error


def _fitted(picture: Image.Image, shape: tuple[int, int, int], fit: str) -> Tensor:
    """[C, H, W] in [0, 1] of the given shape.

    fit: "exact", it has that size; "whole", it is squeezed; "crop", its shorter side is resized, then the centre cut
    out; "square", the square at its centre is cut out, then resized.
    """
    channels, height, width = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if fit == "whole":
        picture = resize(picture, [height, width])
    if fit == "crop":
        # 256 before a crop of 224 is ImageNet's customary evaluation; smaller targets are filled by the shorter side.
        picture = center_crop(resize(picture, 256 if height == 224 else height), [height, width])
    if fit == "square":
        picture = ImageOps.fit(picture, (width, height))
    return pixels_of(picture)


def pixels_of(picture: Image.Image) -> Tensor:
    return pil_to_tensor(picture).float() / 255


def size_words(pixels: tuple[int, int]) -> str:
    return f"{pixels[0]}x{pixels[1]}"
