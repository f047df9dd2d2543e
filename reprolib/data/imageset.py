"""A set of images in memory, from which every experiment draws its batches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from reprolib import settings
from reprolib.data.pictures import permuted


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels, and where they come from.

    images: [N, C, H, W] float32 in [0, 1]. labels: [N] int64 in 0..len(classes)-1. `source` is a sentence for the
    reader; `asked` is the name that was asked for, which differs from `name` where a substitute stands in.
    Raises ValueError for other shapes, values or labels.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    asked: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) == 0:
            raise ValueError(
                f"images of {self.name!r}: expected shape [N, C, H, W] with N > 0, got {self.images.shape}"
            )
        if self.images.dtype != torch.float32 or not ((self.images >= 0) & (self.images <= 1)).all():
            raise ValueError(
                f"images of {self.name!r}: expected float32 values in [0, 1], got {self.images.dtype} values"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(f"labels of {self.name!r}: expected {len(self.images)} int64, got {self.labels.shape}")
        if not ((self.labels >= 0) & (self.labels < len(self.classes))).all():
            raise ValueError(f"labels of {self.name!r}: expected 0..{len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def substitute(self) -> bool:
        return self.name != self.asked

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])  # type: ignore[return-value]  # images have three sides

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def mean_image(self) -> Tensor:
        """[C, H, W]: the average image, a baseline that any reconstruction must beat."""
        return self.images.mean(0)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over pixels, labels and class names."""
        digest = hashlib.sha256(repr((self.image_shape, self.classes)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def batches(self, size: int, count: int, seed: int = 0, distinct_labels: bool = False) -> tuple[Tensor, Tensor]:
        """Draw `count` victims' batches of `size` images; no image occurs twice.

        Returns images [T, B, C, H, W] and labels [T, B] with T = count, B = size. The first t batches are the same for
        every count >= t. `distinct_labels` keeps the labels within a batch different from each other.
        Raises ValueError where the set holds too few images or classes.
        """
        for argument, value in (("size", size), ("count", count)):
            if settings.held(argument, int, value) < 1:
                raise ValueError(f"{argument}={value}: expected at least 1")
        if size * count > len(self):
            raise ValueError(
                f"size={size} x count={count} needs {size * count} images, but {self.name!r} ({self.split}) holds "
                f"{len(self)} here: ask for fewer, or load more"
            )
        order = permuted(len(self), seed)
        index = self._distinct(order.tolist(), size, count) if distinct_labels else order[: size * count]
        index = index.view(count, size)
        return self.images[index], self.labels[index]

    def after(self, count: int, seed: int = 0) -> ImageSet:
        """The set without the images that the first `count` trials of one image under that seed meet (`batches`).

        For a run that must not see the images of an earlier one. Raises ValueError where nothing would be left.
        """
        if not 0 <= settings.held("count", int, count) < len(self):
            raise ValueError(f"count={count}: {self.name!r} ({self.split}) holds {len(self)} images here")
        return self.subset(permuted(len(self), seed)[count:])

    def nearest(self, images: Tensor) -> Tensor:
        """The set's image nearest to each of `images` [N, C, H, W], by squared error: [N, C, H, W].

        An oracle's guess, which takes the truth to choose: what the best real image would be worth without an attack.
        """
        return self.images[torch.cdist(images.flatten(1).float(), self.images.flatten(1)).argmin(1)]

    def subset(self, where: slice | Tensor) -> ImageSet:
        """The images at these places, in their order, under the same name. Raises ValueError where there is none."""
        return replace(self, images=self.images[where], labels=self.labels[where])

    def _distinct(self, order: list[int], size: int, count: int) -> Tensor:
        labels = self.labels.tolist()
        if size > len(set(labels)):
            raise ValueError(
                f"size={size} with distinct labels: the {len(self)} images of {self.name!r} ({self.split}) are of "
                f"{len(set(labels))} classes"
            )
        chosen: list[int] = []
        for trial in range(count):
            batch: dict[int, int] = {}
            for position in order:
                if len(batch) == size:
                    break
                batch.setdefault(labels[position], position)
            if len(batch) < size:
                raise ValueError(
                    f"count={count}: only {trial} batches of {size} distinct labels can be drawn from the {len(self)} "
                    f"images of {self.name!r} ({self.split}): ask for fewer, or load more"
                )
            taken = set(batch.values())
            order = [position for position in order if position not in taken]
            chosen.extend(batch.values())
        return torch.tensor(chosen)
