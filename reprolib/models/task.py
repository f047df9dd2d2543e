"""What a network is trained for: how its mistake is counted, and what stands for a label in it.

It holds no model and computes no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprolib import settings

Loss = Literal["cross-entropy", "bce", "squared error"]


@dataclass(frozen=True)
class Task:
    """How a client counts its network's mistake, as torch's own losses do.

    loss: "cross-entropy" over classes; "bce", a sigmoid and binary cross-entropy for each output, be it one or several
    (multi-label); "squared error" of each output. reduction: "mean" (over images, and for the last two over outputs
    too) or "sum". smoothing: label smoothing of the cross-entropy, in [0, 1).
    Labels are classes, [.., B] int64, for cross-entropy; for "bce" with one output they are 0 or 1, in the same form.
    With several outputs "bce" takes [.., B, K] in [0, 1], and "squared error" takes [.., B, K], of the model's dtype.
    Errors: ValueError for other values, and smoothing of another loss.
    Source: `torch.nn.CrossEntropyLoss`, `BCEWithLogitsLoss` and `MSELoss`.
    """

    loss: Loss = "cross-entropy"
    reduction: Literal["mean", "sum"] = "mean"
    smoothing: settings.Share = 0.0

    def __post_init__(self) -> None:
        settings.check(self)
        if self.smoothing and self.loss != "cross-entropy":
            raise ValueError(f"smoothing={self.smoothing} is of the cross-entropy, but loss={self.loss!r}")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of outputs [B, K]; targets: soft ones [B, K], or classes [B] for cross-entropy."""
        if self.loss == "cross-entropy":
            return F.cross_entropy(outputs, targets, reduction=self.reduction, label_smoothing=self.smoothing)
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(outputs, targets, reduction=self.reduction)
        return F.mse_loss(outputs, targets, reduction=self.reduction)

    def targets(self, labels: Tensor, outputs: int, like: Tensor) -> Tensor:
        """Labels as soft targets [.., B, K] of the dtype of `like`; not under vmap, where F.one_hot fails."""
        if self.loss == "cross-entropy":
            return F.one_hot(labels, outputs).to(like.dtype)
        return (labels[..., None] if self._binary(outputs) else labels).to(like.dtype)

    def check(self, labels: Tensor, trials: int, batch: int, outputs: int, dtype: torch.dtype) -> None:
        """Errors: ValueError for labels of another shape, dtype or range than this task's."""
        form = "" if self.loss == "cross-entropy" or self._binary(outputs) else f", {outputs}"
        if list(labels.shape) != [trials, batch] + [outputs] * bool(form):
            raise ValueError(
                f"labels must have shape [{trials}, {batch}{form}] like images"
                f"{self._told() if form else ''}, got {list(labels.shape)}"
            )
        wanted = dtype if form else torch.int64
        if labels.dtype != wanted:
            raise ValueError(f"labels must be of dtype {wanted}{self._told()}, got {labels.dtype}")
        if self.loss == "squared error":
            if not labels.isfinite().all():
                raise ValueError("labels have a NaN or infinite value")
            return
        highest = outputs - 1 if self.loss == "cross-entropy" else 1
        if not (labels >= 0).all() or not (labels <= highest).all():
            raise ValueError(
                f"labels must lie in 0..{highest} for this model{self._told()}, got {labels.min()} to {labels.max()}"
            )

    def _binary(self, outputs: int) -> bool:
        return self.loss == "bce" and outputs == 1

    def _told(self) -> str:
        return "" if self == Task() else f" under {self}"


def of(model: nn.Module) -> Task:
    """The task of a victim: mean cross-entropy, unless it was adapted for another."""
    return getattr(model, "task", Task())
