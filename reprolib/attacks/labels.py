"""Labels from the classifier's gradient alone, without optimising anything.

With logits z = W h + b, p = softmax(z) and the true class c, the gradient of cross-entropy is g_i = p_i - 1[i = c]
for the bias and g_i h for row i of the weight: only the true class has a negative entry (iDLG, Zhao et al. 2020,
section 2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from reprolib.federated.update import SharedUpdate

_GRAM_ENTRIES = 2**25  # entries of the K x K inner products held at once (256 MiB in float64)


def _unique_argmin(values: Tensor) -> Tensor:
    """Index of the strict minimum of each row, [T, K] -> [T]; -1 where the minimum is shared."""
    smallest, index = values.min(1)
    return torch.where((values == smallest[:, None]).sum(1) == 1, index, -1)


def _row_sum(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The class whose row sums lowest: row i sums to g_i * sum(h), so it needs features with a positive sum."""
    return _unique_argmin(weight.sum(2))


def _bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The class with the lowest bias gradient g_i = p_i - 1[i = c]: no condition on the features."""
    return _unique_argmin(_required(bias, "bias"))


def _pairwise(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The only class whose row has no positive inner product with another: <row_i, row_j> = g_i g_j |h|^2.

    With two classes both satisfy it. Exact on a clean gradient alone: any noise flips a sign among the rows near zero.
    """
    classes = weight.shape[1]
    if classes < 3:
        return torch.full((len(weight),), -1, device=weight.device)
    diagonal = torch.eye(classes, dtype=torch.bool, device=weight.device)

    def decide(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.double()  # products of two small probabilities underflow in float32
        alone = ((rows @ rows.T <= 0) | diagonal).all(1)
        return alone.sum(), alone.long().argmax()

    found, index = torch.vmap(decide, chunk_size=max(1, _GRAM_ENTRIES // classes**2))(weight)
    return torch.where(found == 1, index, -1)


def _norm(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The class with the longest row: |g_c| is the sum of all the others' p_i. With two classes they tie."""
    if weight.shape[1] < 3:
        return torch.full((len(weight),), -1, device=weight.device)
    return _unique_argmin(-weight.norm(dim=2))


_RULES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "row_sum": _row_sum,
    "bias": _bias,
    "pairwise": _pairwise,
    "norm": _norm,
}
RULES = tuple(_RULES)


def infer(weight_gradient: Tensor, bias_gradient: Tensor | None, rule: str = "row_sum") -> Tensor:
    """The label of a single private sample, for T trials at once: [T] int64, -1 where the rule cannot decide.

    weight_gradient: [T, K, F], bias_gradient: [T, K] or None, gradients of the last layer at batch size 1. A weight
    difference points the other way and gives wrong labels: convert it first (`SharedUpdate.as_gradients`).
    rule: "row_sum" (iDLG's code), "bias", "pairwise" (iDLG's text), "norm" (this book's addition).
    Errors: ValueError for an unknown rule, other shapes, NaN, and "bias" without bias.
    Source: iDLG, section 2.
    """
    _check(weight_gradient, bias_gradient)
    return _known(rule, _RULES)(weight_gradient, bias_gradient)


def from_update(update: SharedUpdate, rule: str = "row_sum") -> Tensor:
    """The labels of an update of batch size 1: `infer` on its classifier's gradient, weight differences converted.

    Errors: ValueError for a batch of several images (use `infer_counts`), besides those of `infer`.

    >>> from reprolib import data, models
    >>> from reprolib.attacks import labels
    >>> from reprolib.federated import client
    >>> images, truth = data.load("photos", count=5).batches(size=1, count=5)
    >>> victim = models.build("lenet", num_classes=10, image_shape=(3, 32, 32), seed=0)
    >>> bool((labels.from_update(client.share(victim, images, truth)) == truth[:, 0]).all())
    True
    """
    if update.batch_size != 1:
        raise ValueError(
            f"the rule {rule!r} reads the label of one sample, but the update has batch_size {update.batch_size}: "
            "use labels.infer_counts on the gradients of head.weight and head.bias"
        )
    return infer(*update.of_the_head(), rule)


def _bias_negative(weight: Tensor, bias: Tensor | None, batch_size: int) -> Tensor:
    """One for each class with a negative bias gradient: surely present; others may be, and counts stay unknown."""
    return (_required(bias, "bias_negative") < 0).long()


def _yin(weight: Tensor, bias: Tensor | None, batch_size: int) -> Tensor:
    """One for each of the N classes whose row has the lowest entry (Yin et al. 2021, GradInversion, equation 6)."""
    classes = weight.shape[1]
    if batch_size > classes:
        raise ValueError(f"the rule 'yin' assumes distinct labels: batch_size {batch_size} exceeds {classes} classes")
    lowest = weight.amin(2).argsort(dim=1, stable=True)[:, :batch_size]
    return torch.zeros(weight.shape[:2], dtype=torch.int64, device=weight.device).scatter_(1, lowest, 1)


def _yin_sum(weight: Tensor, bias: Tensor | None, batch_size: int) -> Tensor:
    """As "yin", by a row's sum and not its lowest entry: iDLG's rule carried over to a batch (Yin et al., Table 1)."""
    return _yin(weight.sum(2, keepdim=True), bias, batch_size)


def _wainakh(weight: Tensor, bias: Tensor | None, batch_size: int) -> Tensor:
    """Take the lowest row sum and add the impact of one label to it, N times (Wainakh et al. 2022, LLG)."""
    row_sums = weight.sum(2)
    impact = -row_sums.clamp(max=0).sum(1) * (1 + 1 / weight.shape[1]) / batch_size
    return _greedy(row_sums, impact, torch.zeros_like(row_sums, dtype=torch.int64), batch_size)


def _bias_corrected(weight: Tensor, bias: Tensor | None, batch_size: int) -> Tensor:
    """First every class with a negative bias gradient, then the greedy rule on the bias (breaching, bias-corrected)."""
    bias = _required(bias, "bias_corrected")
    order = bias.argsort(dim=1, stable=True)[:, :batch_size]  # noise can make more than N entries negative: keep N
    present = torch.zeros_like(bias, dtype=torch.int64).scatter_(1, order, 1) * (bias < 0)
    impact = -bias.clamp(max=0).sum(1) / batch_size
    return _greedy(bias + present * impact[:, None], impact, present, batch_size)


def _uniform(weight: Tensor, bias: Tensor | None, batch_size: int) -> Tensor:
    """N (1/K - g_c) of class c, rounded to a sum of N: exact where every softmax is uniform."""
    bias = _required(bias, "uniform")
    expected = batch_size * (1 / bias.shape[1] - bias)
    return _greedy(-expected, torch.ones_like(bias[:, 0]), torch.zeros_like(bias, dtype=torch.int64), batch_size)


_COUNT_RULES: dict[str, Callable[[Tensor, Tensor | None, int], Tensor]] = {
    "bias_negative": _bias_negative,
    "yin": _yin,
    "yin_sum": _yin_sum,
    "wainakh": _wainakh,
    "bias_corrected": _bias_corrected,
    "uniform": _uniform,
}
COUNT_RULES = tuple(_COUNT_RULES)


def infer_counts(
    weight_gradient: Tensor, bias_gradient: Tensor | None, batch_size: int, rule: str = "bias_corrected"
) -> Tensor:
    """How often each class occurs in a batch, for T trials at once: [T, K] int64.

    weight_gradient: [T, K, F], bias_gradient: [T, K] or None, gradients of the last layer for the mean loss.
    rule: "bias_negative" (presence only, never a false one on a clean gradient), "yin" and "yin_sum" (distinct labels
    assumed), "wainakh", "bias_corrected", "uniform" (an untrained head). Except for the first, the counts of a trial
    sum to batch_size.
    Errors: ValueError for an unknown rule, other shapes, NaN, batch_size below 1, a missing bias, and "yin" with more
    samples than classes. Source: Wainakh et al. 2021 (arXiv:2105.09369).
    """
    _check(weight_gradient, bias_gradient)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return _known(rule, _COUNT_RULES)(weight_gradient, bias_gradient, batch_size)


def given(update: SharedUpdate) -> Tensor:
    """The labels [T, B] that the update carries. Errors: ValueError for one that carries none."""
    if update.labels is None:
        raise ValueError("labels='known' needs labels in the update: share with ThreatModel(labels='known')")
    return update.labels


def of_update(update: SharedUpdate, rule: str = "bias_corrected") -> Tensor:
    """The labels behind an update by one of the rules of `infer_counts`, in the order of the classes: [T, B] int64.

    Errors: those of `infer_counts`, and ValueError for a rule whose counts do not sum to the batch size.
    """
    counts = infer_counts(*update.of_the_head(), update.batch_size, rule)
    if (counts.sum(1) != update.batch_size).any():
        raise ValueError(f"the rule {rule!r} does not say how often a class occurs: use one that does")
    classes = torch.arange(counts.shape[1], device=counts.device)
    return torch.stack([classes.repeat_interleave(count) for count in counts])


def distinct_ceiling(classes: int, batch_size: int) -> float:
    """The expected share of a batch's labels, drawn uniformly, that a rule of distinct labels can restore at most.

    It names each class once: N (1 - (1 - 1/N)^K) of K labels, N classes. Source: this book.
    """
    return classes * (1 - (1 - 1 / classes) ** batch_size) / batch_size


def chance_under_noise(scores: Tensor, truth: Tensor, std: float) -> Tensor:
    """The chance that the true class keeps the lowest score under Gaussian noise: [T] float64.

    scores: [T, K], what a rule takes the minimum of. truth: [T]. std: of the noise on each score, above 0. With e the
    noise of the true class, the others must all stay above s_c + e: the expectation over e of
    prod_i Phi((s_i - s_c - e) / std), by Gauss-Hermite quadrature.
    Errors: ValueError for std that is not above 0.
    """
    if not std > 0:
        raise ValueError(f"std={std!r}: expected a number above 0")
    nodes, weights = (torch.from_numpy(v).to(scores.device) for v in np.polynomial.hermite_e.hermegauss(64))
    gap = (scores - scores.gather(1, truth[:, None])).double() / std
    others = torch.ones_like(gap).scatter_(1, truth[:, None], 0.0).bool()
    keeps = torch.special.log_ndtr(gap[:, :, None] - nodes).masked_fill(~others[:, :, None], 0.0).sum(1).exp()
    return keeps @ (weights / weights.sum())


def _greedy(scores: Tensor, impact: Tensor, counts: Tensor, batch_size: int) -> Tensor:
    """Give the class of the lowest score one more sample and raise it by the impact, until each trial has N."""
    for _ in range(batch_size):
        open_trials = counts.sum(1) < batch_size
        lowest = scores.argmin(1, keepdim=True)
        counts = counts.scatter_add(1, lowest, open_trials[:, None].to(counts.dtype))
        scores = scores.scatter_add(1, lowest, (impact * open_trials)[:, None])
    return counts


def _required(bias: Tensor | None, rule: str) -> Tensor:
    if bias is None:
        raise ValueError(f"the rule {rule!r} needs the bias gradient of the last layer, which this model does not have")
    return bias


def _known(rule: str, rules: dict[str, Callable]) -> Callable:
    if rule not in rules:
        raise ValueError(f"unknown rule {rule!r}: known rules are {', '.join(rules)}")
    return rules[rule]


def _check(weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 3:
        raise ValueError(f"weight_gradient must have shape [trials, classes, features], got {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:2]:
        raise ValueError(f"bias_gradient must have shape {list(weight.shape[:2])}, got {list(bias.shape)}")
    for name, gradient in (("weight_gradient", weight), ("bias_gradient", bias)):
        if gradient is not None and not gradient.isfinite().all():
            raise ValueError(f"{name} has a NaN or infinite entry")
