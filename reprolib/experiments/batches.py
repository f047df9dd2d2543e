"""Batches drawn from a set of images: with distinct labels, with labels drawn anew, or as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reprolib.data import ImageSet
from reprolib.federated.streams import generator

Sampler = Literal["distinct", "relabel", "natural"]


def draw(images: ImageSet, size: int, count: int, sampler: Sampler, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` batches of `size` images, [T, B, C, H, W], and labels [T, B].

    sampler: "distinct" keeps the true labels and draws images whose labels differ; "natural" takes images as they
    come, with repeated labels; "relabel" gives the images of a batch different labels among `classes`, at random, which
    says nothing false of an untrained head. Errors: ValueError for an unknown sampler, more images than classes to
    relabel, and those of `ImageSet.batches`.
    """
    if sampler not in ("distinct", "relabel", "natural"):
        raise ValueError(f"sampler={sampler!r} is unknown; use 'distinct', 'relabel' or 'natural'")
    x, y = images.batches(size, count, seed=seed, distinct_labels=sampler == "distinct")
    if sampler == "relabel":
        if size > classes:
            raise ValueError(f"sampler='relabel': {size} images cannot have different labels among {classes} classes")
        y = torch.stack([torch.randperm(classes, generator=generator(seed, t, size))[:size] for t in range(count)])
    return x, y


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of a set, as `draw` draws them with these arguments: what an experiment takes in place of pixels."""

    images: ImageSet
    size: int
    count: int
    sampler: Sampler
    classes: int
    seed: int

    def drawn(self, trials: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The batches of these numbers: images [T, B, C, H, W] and labels [T, B]."""
        x, y = draw(self.images, self.size, self.count, self.sampler, self.classes, self.seed)
        return x[list(trials)], y[list(trials)]
