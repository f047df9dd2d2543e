"""FGLA: features separated in closed form, then decoded. Xue, Yang, Ge, Li, Xu and Li, INFOCOM 2023."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from reprolib import models, settings
from reprolib.attacks import labels
from reprolib.attacks.reconstruction import Reconstruction, check_call, refuse_snapshots
from reprolib.federated import client
from reprolib.federated.closed_form import rows_of_labels
from reprolib.federated.streams import Seed
from reprolib.federated.update import SharedUpdate

Offset = Literal["none", "official", "full"]
MissingOffset = Literal["raise", "none"]

_LABEL_RULES = {"minimum": "yin", "sign": "bias_corrected", "count": "uniform"}


@dataclass(frozen=True, eq=False)
class Separation:
    """Features read off a head's gradient: features [T, B, F], and lost [T, B], of which nothing is left (zeros)."""

    features: Tensor
    lost: Tensor


def separate(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    given: Tensor,
    offset: Offset = "official",
    missing_offset: MissingOffset = "raise",
    impute_bias: bool = False,
) -> Separation:
    """What entered a linear layer, image by image, from its gradient for the mean cross-entropy, for T trials at once.

    weight_gradient: [T, K, F], bias_gradient: [T, K] or None. given: [T, B], the labels. Image k is
    (gW[y_k] - off_W) / (gb[y_k] - off_b), both offsets kappa times the mean over the rows of absent classes: what the
    other images leave in row y_k. offset: kappa 0 ("none"), (B - 1) / B ("official", the paper's) or 1 ("full", exact
    for a uniform softmax). Images of one class all come out as their mean.
    missing_offset: where every class is present, "raise", or take "none" for that trial. impute_bias: where gb[y] is
    zero or there is no bias, divide by what a uniform softmax makes of it for n images of the class: -n / B where an
    offset was taken, -n / B + 1 / C where none was.
    A row or a bias entry that compression set to zero loses its images: they are counted, never NaN. A feature of which
    it left nothing in any absent row has no offset of the bias either: one without the other would scale it down.
    Errors: ValueError for other shapes or settings, labels out of range, a missing bias that is not imputed, and a
    trial without absent classes.
    Source: Xue et al. 2023, and the released code.
    """
    _check_separation(weight_gradient, bias_gradient, given, offset, missing_offset, impute_bias)
    size = given.shape[1]
    kappa = {"none": 0.0, "official": (size - 1) / size, "full": 1.0}[offset]
    absent = torch.ones(weight_gradient.shape[:2], dtype=torch.bool, device=given.device).scatter_(1, given, False)
    missing = absent.sum(1) == 0
    if kappa and missing_offset == "raise" and missing.any():
        raise ValueError(
            f"every class is present in trial {int(missing.nonzero()[0])}: no absent row to estimate the offset "
            f"from; use missing_offset='none', or offset='none'"
        )
    share = kappa * absent.to(weight_gradient) / absent.sum(1, keepdim=True).clamp(min=1)
    off_weight = share[:, None] @ weight_gradient
    rows = rows_of_labels(weight_gradient, given)
    same = (given[:, :, None] == given[:, None]).sum(2)
    has_offset = off_weight != 0
    imputed = -same[:, :, None].to(weight_gradient) / size + ~has_offset / weight_gradient.shape[1]
    empty = (rows == 0).all(2)
    if bias_gradient is None:
        divisor, zeroed = imputed, torch.zeros_like(empty)
    else:
        off_bias = (share * bias_gradient).sum(1)[:, None, None] * has_offset
        entries = bias_gradient.gather(1, given)
        zeroed = entries == 0
        divisor = entries[:, :, None] - off_bias
        if impute_bias:
            divisor = torch.where(zeroed[:, :, None], imputed, divisor)
            zeroed = torch.zeros_like(zeroed)
    features = (rows - off_weight) / divisor
    lost = empty | zeroed | ~features.isfinite().all(2)
    return Separation(features.masked_fill(lost[:, :, None], 0.0), lost)


def head_gradients(features: Tensor, given: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The head's gradient for the mean cross-entropy in closed form: weight [T, K, F], bias [T, K].

    features: [T, B, F], given: [T, B] labels; weight: [K, F], bias: [K]. Source: Xue et al. 2023, their code.
    """
    errors = _errors(features, given, weight, bias)
    return errors.mT @ features, errors.sum(1)


def refine(
    features: Tensor, weight_gradient: Tensor, given: Tensor, weight: Tensor, bias: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Make separated features agree with the gradient: features [T, B, F], and their relative residual [T].

    The head's weight gradient is E^T F, E = (softmax(F W^T + b) - Y) / B [B, K], and the server knows W and b: so
    compute E from F, solve for F, `steps` times. Of all iterates, the start among them, each trial keeps that of the
    smallest residual |gW - E^T F| / |gW|, because under a trained head the iteration leaves the solution.
    This is the book's extension, not the paper's.
    """
    best, residual = features, _residual(features, weight_gradient, given, weight, bias)
    for _ in range(steps):
        features = torch.linalg.pinv(_errors(features, given, weight, bias).mT) @ weight_gradient
        found = _residual(features, weight_gradient, given, weight, bias)
        better = found < residual
        best = torch.where(better[:, None, None], features, best)
        residual = torch.where(better, found, residual)
        if not features.isfinite().all():
            break
    return best, residual


@dataclass(frozen=True)
class FGLA:
    """Separate the features of a batch from the head's gradient and decode each by a network trained beforehand.

    No search: one pass over the head's gradient and one forward pass of the decoder. The decoder belongs to one state
    of the victim's trunk; that the head is untrained makes the separation good. The defaults are the paper's formula
    with the decoder in evaluation mode.

    decoder: from `models.build_generator("decoder", ...)`, features [N, F] to images [N, C, H, W] in [0, 1].
    offset, missing_offset, impute_bias: as `separate`'s. refine_steps: as `refine`'s. labels: the rule for an update
    that carries none: "minimum" (B different classes), "sign" (negative bias gradients, then the greedy rule) or
    "count" (an untrained head). decoder_mode: "train" normalises by the batch that is decoded, as the released code
    does, which never calls `.eval()`.
    """

    decoder: nn.Module = field(repr=False)
    offset: Offset = "official"
    missing_offset: MissingOffset = "raise"
    refine_steps: settings.WholeOrZero = 0
    impute_bias: bool = False
    labels: Literal["minimum", "sign", "count"] = "minimum"
    decoder_mode: client.Mode = "eval"

    @classmethod
    def official(cls, decoder: nn.Module) -> FGLA:
        """As the released code runs it, the decoder in training mode."""
        return cls(decoder, decoder_mode="train")

    @classmethod
    def self_consistent(cls, decoder: nn.Module) -> FGLA:
        """With all that the server knows: the exact offset, 20 refinements and imputed bias entries."""
        return cls(decoder, offset="full", missing_offset="none", refine_steps=20, impute_bias=True)

    def __post_init__(self) -> None:
        settings.check(self)

    def __call__(
        self,
        model: nn.Module,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial; seed and progress are taken and not used: nothing is drawn. It keeps
        no snapshots.

        objective of the result: the relative residual of the head's weight gradient (`refine`). lost: images whose
        row or bias entry compression emptied; they show the decoder's picture of zero features. Labels that repeat
        within a batch blend its images, which a warning says.
        Errors: ValueError for an update of another model, one with NaN or of several local steps, several victims, a
        decoder of another trunk, feature size or image size, and a head without bias unless `impute_bias`; besides
        those of `separate` and of `labels.of_update` (a batch larger than the classes).
        """
        began = time.perf_counter()
        refuse_snapshots(self, check_call(update, snapshots))
        update.check(model)
        models.check_inverse(self.decoder, model, update.image_shape, "decoder")
        update.require_one_gradient("FGLA")
        given = labels.of_update(update, _LABEL_RULES[self.labels]) if update.labels is None else update.labels
        if repeated := sum(len(own.unique()) < len(own) for own in given):
            warnings.warn(
                f"labels repeat in {repeated} of {update.trials} batches: their images come out as one blend a class",
                stacklevel=2,
            )
        weight_gradient, bias_gradient = update.of_the_head()
        found = separate(weight_gradient, bias_gradient, given, self.offset, self.missing_offset, self.impute_bias)
        weight = model.head.weight.detach()
        bias = weight.new_zeros(len(weight)) if model.head.bias is None else model.head.bias.detach()
        parts = [  # one trial at a time: a residual is as large as the head's gradient
            refine(  # type: ignore[call-arg]
                *(part[t : t + 1] for part in (found.features, weight_gradient, given)), weight, bias, self.refine_steps
            )
            for t in range(update.trials)
        ]
        features, residual = (torch.cat(part) for part in zip(*parts, strict=True))
        none = torch.zeros(update.trials, dtype=torch.int64, device=features.device)
        return Reconstruction(
            raw=self.decode(features),
            labels=given,
            objective=residual,
            evaluations=none,
            starts=none + 1,
            diverged=none.bool(),
            seconds=time.perf_counter() - began,
            lost=found.lost,
        )

    def decode(self, features: Tensor) -> Tensor:
        """Features [T, B, F] to images [T, B, C, H, W], without gradient; every trial is a batch of its own."""
        network = copy.deepcopy(self.decoder).to(features.device)
        if self.decoder_mode == "train" or network.training:
            network = client.worker(network, self.decoder_mode)
        with torch.no_grad():
            return torch.stack([network(own) for own in features])


def _errors(features: Tensor, given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(softmax - one-hot) / B of each image: [T, B, K]."""
    probabilities = (features @ weight.T + bias).softmax(2)
    return (probabilities - torch.nn.functional.one_hot(given, len(weight))) / given.shape[1]


def _residual(features: Tensor, weight_gradient: Tensor, given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    found, _ = head_gradients(features, given, weight, bias)
    length = weight_gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(found.dtype).tiny)
    return (weight_gradient - found).flatten(1).norm(dim=1) / length


def _check_separation(
    weight_gradient: Tensor,
    bias_gradient: Tensor | None,
    given: Tensor,
    offset: str,
    missing_offset: str,
    impute_bias: bool,
) -> None:
    settings.held("offset", Offset, offset)
    settings.held("missing_offset", MissingOffset, missing_offset)
    settings.held("impute_bias", bool, impute_bias)
    if weight_gradient.ndim != 3:
        raise ValueError(
            f"weight_gradient must have shape [trials, classes, features], got {list(weight_gradient.shape)}"
        )
    trials, classes, _ = weight_gradient.shape
    if bias_gradient is None and not impute_bias:
        raise ValueError(
            "the head has no bias, by whose gradient the features are divided: impute_bias=True takes -1/B instead, "
            "which holds for an untrained head"
        )
    if bias_gradient is not None and bias_gradient.shape != (trials, classes):
        raise ValueError(f"bias_gradient must have shape {[trials, classes]}, got {list(bias_gradient.shape)}")
    if given.ndim != 2 or len(given) != trials or given.dtype != torch.int64:
        raise ValueError(f"labels must be int64 of shape [{trials}, batch], got {given.dtype} {list(given.shape)}")
    if given.numel() == 0 or given.min() < 0 or given.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1} for this head, got {given.tolist()}")
