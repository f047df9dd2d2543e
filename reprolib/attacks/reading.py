"""What the attacks that read a batch exactly out of a linear layer begin and end with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from reprolib.attacks.columns import Completed, Mixture, refuse_without_zeros
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.reconstruction import Attack, Reconstruction, check_call, read_off, refuse_snapshots
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims


@dataclass(frozen=True, eq=False)
class Read:
    """What was read of one trial: the batch, how many columns were found, how many were tried, how many a pass."""

    batch: Completed
    columns: int
    tried: int
    trace: tuple[int, ...]


def started(
    attack: Attack,
    model: nn.Module | Victims,
    update: SharedUpdate,
    snapshots: Sequence[int],
    name: str | None,
    sources: int | None,
) -> tuple[FirstLayer, Iterator[tuple[int, Mixture]]]:
    """The layer, and each trial with its mixture, decomposed when it is asked for.

    Errors: ValueError as `check_call`, `FirstLayer.of`, `columns.refuse_without_zeros` and `columns.Mixture.of`.
    """
    refuse_snapshots(attack, check_call(update, snapshots))
    layer = FirstLayer.of(model, update, name)
    refuse_without_zeros(model, layer, type(attack).__name__)
    one = update.local is None or update.local.is_one_gradient(update.batch_size)
    step, count = None if one else 1 / update.scale, update.batch_size if sources is None else sources
    victims = Victims.of(model)
    return layer, ((t, Mixture.of(layer, t, victims, count, step)) for t in range(layer.trials))


def reconstructed(update: SharedUpdate, layer: FirstLayer, found: Sequence[Read], began: float) -> Reconstruction:
    """What an attack returns, images in no order; labels are -1: none is read.

    Errors: ValueError where the layer's inputs are features, of which no image can be made without a decoder.
    """
    inputs = torch.stack([own.batch.inputs for own in found])
    raw = layer.to_pixels(inputs).to(next(iter(update.gradients.values())))
    told = {
        "objective": torch.tensor([1 - own.batch.agreement for own in found]),
        "evaluations": torch.tensor([own.tried for own in found]),
        "diverged": torch.tensor([not own.batch.certified for own in found]),
    }
    told = {name: value.to(raw.device) for name, value in told.items()}
    return read_off(raw, began, **told, lost=(inputs == 0).all(2))
