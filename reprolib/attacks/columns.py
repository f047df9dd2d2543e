"""What ReLU leaves in the gradient of a linear layer: columns that are half zero, found exactly, and a certificate.

One trial's weight gradient is G = A X, with a column of A [m, B] for each image: delta_i, zero in each row
whose unit the image leaves off. A truncated singular value decomposition G = L R fixes A up to a square matrix, A = L
Q. A column q of Q is known when enough of the rows in which L q is zero are. Source: Dimitrov et al. 2024 (SPEAR),
section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprolib.attacks.first_layer import FirstLayer
from reprolib.federated import gradients
from reprolib.models import Victims

LEVERAGE = 1 - 1e-4
"""From it on a row alone keeps a direction out of the null space: the zero there was made, and is no unit left off."""

CLEAR = 0.9
"""Least share of an image's units that must be clearly on or off for a certificate."""

MADE = 1e-10
"""Smallest zero in float64, of columns of unit length: what the decomposition rounds."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """One trial's gradient, decomposed: weight = left @ right, bias [k], its dead rows left out.

    left: [k, B], orthonormal columns; right: [B, d]. weights, offset: [k, d] and [k], the layer's own, as it was sent;
    after: the same behind the client's steps, or None for a single gradient. zero: what counts as zero of a column of
    unit length, read off what the decomposition leaves over. values: the leading singular values, one more than B.
    """

    left: Tensor
    right: Tensor
    bias: Tensor
    weights: Tensor
    offset: Tensor
    after: tuple[Tensor, Tensor] | None
    zero: float
    values: Tensor

    @property
    def size(self) -> int:
        """How many images are mixed."""
        return self.left.shape[1]

    @property
    def null(self) -> float:
        """Singular values of some rows of `left` that count as zero; squares of them are what is computed."""
        return max(1e-7, self.zero * len(self.left) ** 0.5)

    def units(self, inputs: Tensor) -> Tensor:
        """[k, n]: how far inputs [n, d] switch each unit on; below zero it is off, behind the client's steps too.

        Of several steps the value counts that is surer: one that is off both before and after is off.
        """
        before = self.weights @ inputs.T + self.offset[:, None]
        if self.after is None:
            return before
        return torch.maximum(before, self.after[0] @ inputs.T + self.after[1][:, None])

    @classmethod
    def of(cls, layer: FirstLayer, trial: int, victims: Victims, sources: int, step: float | None) -> Mixture:
        """Decompose one trial's gradient by its leading `sources` directions.

        step: what times the gradient was added to the weights by several local steps; None for a single gradient.

        Errors: ValueError for more images than the layer is wide or than its numerical rank.
        """
        weight, bias = layer.rows(trial)
        if sources > min(weight.shape):
            raise ValueError(
                f"{sources} images are mixed in the layer {layer.name!r}, of which {len(weight)} units are alive and "
                f"which takes {weight.shape[1]} values: at most {min(weight.shape)} can be told apart"
            )
        left, values, right = _leading(weight, min(sources + 8, *weight.shape))
        rank = int((values > 8 * layer.eps * weight.shape[0] ** 0.5 * values[0]).sum())
        if rank < sources:
            raise ValueError(
                f"the gradient of {layer.name!r} has the numerical rank {rank} in trial {trial}, below the {sources} "
                f"images to separate: some are copies of each other, or left nothing behind; give sources={rank}"
            )
        left, right = left[:, :sources], values[:sources, None] * right[:sources]
        over = float((weight - left @ right).square().mean().sqrt())
        own = {name: value.double() for name, value in victims.weights().items() if name.startswith(f"{layer.name}.")}
        if victims.stacked is not None:
            own = {name: value[trial] for name, value in own.items()}
        alive = layer.alive[trial]
        names = f"{layer.name}.weight", f"{layer.name}.bias"
        weights, offset = (own[name][alive] for name in names)
        after = None
        if step is not None:
            after = weights + step * weight, offset + step * bias
        zero = max(MADE, 10 * over / float(values[sources - 1]))
        return cls(left, right, bias, weights, offset, after, zero, values[: sources + 1])


def _leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading `count` singular vectors and values of a matrix whose rank is hardly larger: by its row space."""
    sketch = torch.Generator().manual_seed(0)
    rows = torch.randn(count, len(matrix), generator=sketch, dtype=matrix.dtype).to(matrix.device) @ matrix
    for _ in range(2):  # twice more, for what noise adds to the row space
        rows = torch.linalg.qr(matrix @ torch.linalg.qr(rows.mT)[0])[0].mT @ matrix
    basis = torch.linalg.qr(rows.mT)[0]
    left, values, right = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return left, values, right @ basis.mT


def true_column(mixture: Mixture, candidate: Tensor) -> Tensor | None:
    """The column [B] of which `candidate` is an approximation, or None where its zeros do not single one out.

    The rows where left @ candidate is zero must have one null vector, and the second smallest singular value lie 100
    times higher; or several images are off in all of them. And no row may be needed for that alone: a mixture of
    two columns has a zero wherever one was asked for, but there it would become two without that row.
    """
    left, size = mixture.left, mixture.size
    column = candidate / candidate.norm()
    if size == 1:
        return column
    # Loose at first: null vectors of squares are exact to 1e-8. Then by the rows themselves, and as strict as they are.
    for zero in (1000 * mixture.zero, mixture.zero):
        rows = left[(left @ column).abs() < zero]
        if len(rows) < size + 3:
            return None
        squares, vectors = torch.linalg.eigh(rows.mT @ rows)
        least, second = squares[:2].clamp(min=0).sqrt().tolist()
        if least > mixture.null or second < max(1e-3, 100 * least):
            return None
        if (rows @ (vectors[:, 1:] / squares[1:].sqrt())).square().sum(1).max() > LEVERAGE:
            return None
        column = null_vector(rows)
    return column


def null_vector(rows: Tensor) -> Tensor:
    """The right singular vector [B] of rows [n, B], n >= B - 1, of the smallest singular value."""
    return torch.linalg.svd(torch.linalg.qr(rows)[1] if len(rows) > rows.shape[1] else rows)[2][-1]


def is_new(column: Tensor, found: Tensor) -> bool:
    """Whether a column [B] of unit length is none of the columns [B, n], up to its sign."""
    return not found.shape[1] or bool((found.T @ column).abs().max() < 1 - 1e-6)


def sampled(left: Tensor, zero: float, draws: Tensor, at_least: int) -> tuple[Tensor, Tensor]:
    """Null vectors of sampled rows: candidates [k, c] that are zero in at least so many rows, and these numbers [c].

    left: [m, k]; draws: [n, k - 1], rows that are taken for zeros of one column. Source: Dimitrov et al. 2024.
    """
    lengths = left.norm(dim=1, keepdim=True)
    unit = left / lengths.clamp(min=torch.finfo(left.dtype).tiny)
    basis = torch.linalg.qr(unit[draws].mT, mode="complete")[0][:, :, -1]
    zeros = ((left @ basis.T).abs() < zero).sum(0)
    kept = zeros >= at_least
    return basis[kept].T, zeros[kept]


@dataclass(frozen=True, eq=False)
class Completed:
    """A batch read off with all its columns: inputs [B, d], mixing [k, B], explained [B], and certified.

    explained: the share of an image's entries of the mixing whose zeros are those that its own units leave. certified:
    inputs and mixing give the gradient of weight and bias again, all units that an input clearly leaves off have a
    zero, and of those that it clearly switches on at least 99 % have none. It takes nothing of the truth.
    """

    inputs: Tensor
    mixing: Tensor
    explained: Tensor
    certified: bool

    @property
    def agreement(self) -> float:
        """The share of all entries."""
        return float(self.explained.mean())


def completed(mixture: Mixture, columns: Tensor) -> Completed:
    """Inputs and mixing of a full set of columns [B, B], scaled by the bias, with the certificate."""
    length = mixture.left @ columns
    scale = torch.linalg.lstsq(length, mixture.bias[:, None]).solution[:, 0]
    mixing = length * scale
    try:
        inputs = torch.linalg.solve(columns * scale, mixture.right)
    except RuntimeError:  # columns that depend on each other, or one of which the bias has nothing
        return Completed(torch.zeros_like(mixture.right), mixing, torch.zeros_like(scale), False)
    if not inputs.isfinite().all():
        return Completed(torch.zeros_like(mixture.right), mixing, torch.zeros_like(scale), False)
    left_over = (mixing.sum(1) - mixture.bias).norm() / mixture.bias.norm()
    units = mixture.units(inputs)
    size = units.square().mean(0).sqrt()
    zeros = mixing.abs() < mixture.zero * mixing.norm(dim=0)
    margin = max(1e-6, 100 * mixture.zero) * size
    off, on = units < -margin, units > margin
    if mixture.after is not None:  # in between the steps a unit may have been on
        on = on & (mixture.weights @ inputs.T + mixture.offset[:, None] > margin)
    explained = 1 - ((zeros & on) | (~zeros & off)).double().mean(0)
    sharp = bool((zeros | ~off).all()) and bool(((~zeros & on).sum(0) >= 0.99 * on.sum(0)).all())
    # where noise blurs so much that hardly an entry is clear, agreement says nothing
    sharp = sharp and bool(((off | on).double().mean(0) > CLEAR).all())
    certified = sharp and bool(left_over < max(1e-6, 100 * mixture.zero))
    return Completed(inputs, mixing, explained, certified)


def refuse_without_zeros(model: nn.Module | Victims, layer: FirstLayer, what: str) -> None:
    """Errors: ValueError where what follows the layer passes a gradient back through nearly every unit."""
    network = gradients.worker(Victims.of(model).skeleton, "eval")
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        seen.append(out.detach().clone().requires_grad_())
        return seen[-1]

    handle = network.get_submodule(layer.name).register_forward_hook(keep)
    first = next(network.parameters())
    probe = torch.rand(16, *network.inputs.shape, generator=torch.Generator().manual_seed(0)).to(first)
    try:
        back = torch.autograd.grad(network(probe).square().sum(), seen[0])[0]
    finally:
        handle.remove()
    share = float((back == 0).double().mean())
    if share < 0.05:
        raise ValueError(
            f"{what} needs units that images leave off, whose gradient is zero, as behind ReLU: of the layer "
            f"{layer.name!r} {share:.0%} of a probe's gradients are zero"
        )
