"""The one engine that client and attacker share: what clients compute from images, for many trials at once.

It holds how a client trains and what its network is meanwhile. It never sees a defense, a threat model or an attack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from reprolib import models, settings
from reprolib.models import Victims, task
from reprolib.models.adapt import second_derivatives

Mode = Literal["eval", "train"]
Weights = dict[str, Tensor]

RECOMPUTED_FROM = 20
"""Local steps from which on each is computed again for its derivative, so that memory does not grow with them."""


@dataclass(frozen=True)
class LocalTraining:
    """FedAvg's local work: `epochs` passes over a client's images, `batch_size` a step, the last step what is left.

    optimizer: "sgd" (with `momentum`) or "adam" (betas 0.9 and 0.999, eps 1e-8); weight_decay: the L2 penalty's factor;
    all as in `torch.optim`, and the optimiser starts anew in every round. shuffle: each pass takes the images in an
    order drawn for it; order_known: the server knows it, otherwise it takes every pass to be in the first one's order.
    sizes: images of each client where several take part; `share` fills it in, () is one client.
    Errors: ValueError for epochs, batch_size or sizes below 1, a learning rate that is not positive and finite,
    negative factors, momentum for Adam, and a known order of no shuffling.
    Source: McMahan et al. 2017, algorithm 1; `torch.optim.SGD` and `torch.optim.Adam`.
    """

    epochs: settings.Whole
    batch_size: settings.Whole
    learning_rate: settings.Positive
    momentum: settings.Share = 0.0
    weight_decay: Annotated[float, settings.Range(0, below=True)] = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    shuffle: bool = False
    order_known: bool = False
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", settings.each("sizes", settings.Whole, self.sizes))
        settings.check(self)
        if self.optimizer == "adam" and self.momentum:
            raise ValueError(f"momentum={self.momentum} is SGD's; Adam has its own: leave it out")
        if self.order_known and not self.shuffle:
            raise ValueError("order_known=True, but shuffle=False: there is no order to know")

    def steps(self, images: int) -> int:
        """Steps that a client with `images` images takes."""
        return self.epochs * -(-images // self.batch_size)

    def most_steps(self, images: int) -> int:
        """Steps of the client that takes most of them; images: of all clients together."""
        return max(self.steps(size) for size in self.sizes or (images,))

    def is_one_gradient(self, images: int) -> bool:
        """Whether the weight difference is a multiple of the gradient at the weights that the server sent."""
        return self.most_steps(images) == 1 and self.optimizer == "sgd" and not self.weight_decay

    def direction(
        self, step: int, gradient: Tensor, weight: Tensor, state: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Where the optimiser goes at its step (counted from 1) for one parameter, before the learning rate.

        state: what it returned at the step before, [] at first.
        """
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        if self.optimizer == "sgd":
            if not self.momentum:
                return gradient, []
            velocity = self.momentum * state[0] + gradient if state else gradient
            return velocity, [velocity]
        mean, square = state or (torch.zeros_like(gradient), torch.zeros_like(gradient))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        # the floor keeps the derivative of the root finite where a gradient is zero
        root = (square.clamp(min=torch.finfo(square.dtype).tiny) / (1 - 0.999**step)).sqrt()
        return mean / (1 - 0.9**step) / (root + 1e-8), [mean, square]


def shared(
    worker: Victims,
    images: Tensor,
    targets: Tensor,
    local: LocalTraining | None = None,
    sizes: Sequence[int] = (),
    noise: Mapping[str, Tensor] | None = None,
    order: Tensor | None = None,
) -> Weights:
    """What the clients of R trials share, as gradients: name -> [R, *param], differentiable in images, targets, noise.

    worker: the victims of R trials, their skeleton made by `worker`. images: [R, B, C, H, W]. targets: [R, B, K],
    soft labels. Without `local` a client's gradient of its mean loss; with it the mean, over its steps, of the
    directions in which it went, (w_0 - w_S) / (learning rate x S), a sum and so free of the cancellation in w_S - w_0.
    sizes: how many of the B images each client has, () for one; the clients' shares count by their sizes, as in FedAvg,
    and S is the steps of the client that takes most. noise: for the network's bottlenecks, buffer name ->
    [R, rows, *shape], one row for each image that passes. order: [R, epochs, B], where each pass takes its images from.
    """
    noise, total = dict(noise or {}), images.shape[1]
    if len(sizes) < 2:
        return _of_a_client(worker, images, targets, local, noise, order)
    firsts = np.cumsum([0, *sizes]).tolist()
    passes = 1 if local is None else local.epochs
    steps = [1 if local is None else local.steps(size) for size in sizes]
    found: Weights = {}
    for first, size, taken in zip(firsts, sizes, steps, strict=False):
        mine = slice(first, first + size)
        drawn = {name: values[:, first * passes : (first + size) * passes] for name, values in noise.items()}
        own = None if order is None else order[:, :, mine] - first
        part = _of_a_client(worker, images[:, mine], targets[:, mine], local, drawn, own)
        share = size / total * taken / max(steps)
        found = {name: found.get(name, 0.0) + share * value for name, value in part.items()}
    return found


def _of_a_client(
    worker: Victims,
    images: Tensor,
    targets: Tensor,
    local: LocalTraining | None,
    noise: Weights,
    order: Tensor | None,
) -> Weights:
    network, weights, frozen, axis = parameters(worker)

    def loss_of(weights: Weights, frozen: Weights, x: Tensor, y: Tensor, drawn: Weights) -> Tensor:
        return loss(network, weights | frozen | drawn, x, y)

    if local is None:
        with _named_faults(network):
            return vmap(grad(loss_of), in_dims=(axis, axis, 0, 0, 0))(weights, frozen, images, targets, noise)

    names, size, steps = list(weights), images.shape[1], local.steps(images.shape[1])

    def step(
        axes: tuple[int | None, int | None], x: Tensor, y: Tensor, drawn: Weights, *values: Tensor
    ) -> tuple[Tensor, ...]:
        now = dict(zip(names, values, strict=True))
        with _named_faults(network):
            gradients = vmap(grad(loss_of), in_dims=(*axes, 0, 0, 0))(now, frozen, x, y, drawn)
        return tuple(gradients[name] for name in names)

    axes, done = (axis, axis), 0
    total: dict[str, float | Tensor]
    state: dict[str, list[Tensor]]
    total, state = dict.fromkeys(names, 0.0), {name: [] for name in names}
    for epoch in range(local.epochs):
        x, y = (part if order is None else _taken(part, order[:, epoch]) for part in (images, targets))
        rows = {name: values[:, epoch * size : (epoch + 1) * size] for name, values in noise.items()}
        for first in range(0, size, local.batch_size):
            mine, done = slice(first, first + local.batch_size), done + 1
            inputs = (axes, x[:, mine], y[:, mine], {name: r[:, mine] for name, r in rows.items()}, *weights.values())
            found = step(*inputs) if steps < RECOMPUTED_FROM or noise else _recomputed(step, inputs)
            for name, gradient in zip(names, found, strict=True):
                went, state[name] = local.direction(done, gradient, weights[name], state[name])
                total[name] = total[name] + went / steps
                weights = weights | {name: weights[name] - local.learning_rate * went}
            axes = (0, axis)
    return total  # type: ignore[return-value]


def _taken(values: Tensor, order: Tensor) -> Tensor:
    """[R, B, ...] in the order [R, B]."""
    return torch.take_along_dim(values, order.view(*order.shape, *[1] * (values.ndim - 2)), 1)


def parameters(worker: Victims) -> tuple[nn.Module, Weights, Weights, int | None]:
    """The network to run, the weights that its clients train and those they do not, and their trial axis.

    The axis is 0 where every trial has its own weights.
    """
    every, trained = worker.weights(), set(trained_names(worker.skeleton))
    weights = {name: value for name, value in every.items() if name in trained}
    frozen = {name: value for name, value in every.items() if name not in trained}
    return worker.skeleton, weights, frozen, worker.axis


def trained_names(network: nn.Module) -> list[str]:
    """The parameters that a client trains and so shares: those that require a gradient.

    Errors: ValueError for a network of which nothing is trained.
    """
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError("every parameter of the model is frozen: a client that trains nothing shares nothing")
    return names


def loss(network: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """What a client minimises: its task's loss, plus the penalty of the network's bottlenecks where it has one.

    tensors: what to put in place of the network's own, name -> weights, and a bottleneck's noise. images: [B, C, H, W].
    labels: soft ones [B, K], or classes [B].
    """
    return task.of(network)(functional_call(network, dict(tensors), (images,)), labels) + models.penalty(network)


# --- the network as it runs at a client


def worker(model: nn.Module, mode: Mode) -> nn.Module:
    """A copy of the model that runs as the client's does and is safe under `vmap`; the model itself stays untouched.

    mode: "eval" or "train" batch norm, as in `ThreatModel`. Attacks differentiate their dummy batches through it too.
    Layers whose second derivative through `vmap(grad(...))` is wrong in torch 2.11, or that write buffers, are written
    out: batch norm by the batch's own statistics, layer norm, instance norm (tests compare with finite differences).
    Errors: ValueError for dropout in "train" mode, whose masks nobody could repeat, and for recurrent layers.
    """
    copied = copy.deepcopy(model).train(mode == "train")
    if mode == "train":
        layers = dict(copied.named_modules())
        dropout = {name: module.p for name, module in layers.items() if isinstance(module, _DropoutNd)}
        dropout |= {
            name: module.dropout for name, module in layers.items() if isinstance(module, nn.MultiheadAttention)
        }
        for name in dropout:
            layers[name].train(bool(dropout[name]))  # one that leaves nothing out would ask for random numbers
        if random := [name for name, share in dropout.items() if share]:
            raise ValueError(f"mode='train' would draw unrepeatable dropout masks in the layers {random}: use 'eval'")
    if recurrent := [name for name, module in copied.named_modules() if isinstance(module, nn.RNNBase)]:
        raise ValueError(f"the layers {recurrent} are recurrent: torch cannot differentiate them twice or in batches")
    for name, module in list(copied.named_modules()):
        for kind, written_out in _WRITTEN_OUT.items():
            if isinstance(module, kind) and name and (own := written_out.standing_for(module)) is not None:  # type: ignore[attr-defined]
                copied.set_submodule(name, own)
    return copied


def _standardised(input: Tensor, axes: list[int], eps: float) -> Tensor:
    """Less its mean and over its deviation along the axes, written out: no buffer is read or written.

    torch's own kernels cannot be used: that of batch norm writes its buffers, which vmap forbids, and even without any
    the second derivatives of batch, layer (affine) and instance norm through `vmap(grad(...))` come out wrong in torch
    2.11 (a test compares them with finite differences).
    """
    away = input - input.mean(axes, keepdim=True)
    return away * (away.square().mean(axes, keepdim=True) + eps).rsqrt()


def _scaled(normed: Tensor, like: nn.Module) -> Tensor:
    """[N, C, ...] by the channels' weights and biases of a norm, where it has any."""
    if like.weight is None:
        return normed
    shape = [-1, *[1] * (normed.ndim - 2)]
    return normed * like.weight.view(shape) + like.bias.view(shape)


class _NormOfTheBatch(_BatchNorm):
    """Batch norm by the batch's own statistics."""

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, track_running_stats=False)
        self.weight, self.bias = like.weight, like.bias
        self.train(like.training)

    @classmethod
    def standing_for(cls, like: _BatchNorm) -> _NormOfTheBatch | None:
        """In its place where it takes the batch's statistics; None where it takes the running ones."""
        return cls(like) if like.training or like.running_mean is None else None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm takes [N, C, ...], got {input.ndim} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        return _scaled(_standardised(input, [0, *range(2, input.ndim)], self.eps), self)


class _LayerNorm(nn.Module):
    """Layer norm."""

    def __init__(self, like: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.axes = like.weight, like.bias, like.eps, len(like.normalized_shape)

    @classmethod
    def standing_for(cls, like: nn.LayerNorm) -> _LayerNorm:
        return cls(like)

    def forward(self, input: Tensor) -> Tensor:
        out = _standardised(input, list(range(-self.axes, 0)), self.eps)
        out = out if self.weight is None else out * self.weight
        return out if self.bias is None else out + self.bias


class _InstanceNorm(nn.Module):
    """Instance norm by each image's own statistics, or by running ones where it tracks them and is not trained."""

    def __init__(self, like: nn.modules.instancenorm._InstanceNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = like.weight, like.bias, like.eps
        running = not like.training and like.running_mean is not None
        self.register_buffer("mean", like.running_mean.clone() if running else None)
        self.register_buffer("variance", like.running_var.clone() if running else None)

    @classmethod
    def standing_for(cls, like: nn.modules.instancenorm._InstanceNorm) -> _InstanceNorm:
        return cls(like)

    def forward(self, input: Tensor) -> Tensor:
        if self.mean is None:
            return _scaled(_standardised(input, list(range(2, input.ndim)), self.eps), self)
        shape = [-1, *[1] * (input.ndim - 2)]
        return _scaled((input - self.mean.view(shape)) * (self.variance.view(shape) + self.eps).rsqrt(), self)


_WRITTEN_OUT = {
    _BatchNorm: _NormOfTheBatch,
    nn.LayerNorm: _LayerNorm,
    nn.modules.instancenorm._InstanceNorm: _InstanceNorm,
}


@contextmanager
def _named_faults(network: nn.Module) -> Iterator[None]:
    """Second derivatives; and what torch cannot batch is named in one line."""
    try:
        with second_derivatives():
            yield
    except RuntimeError as error:
        text = str(error)
        if "randomness" in text or "vmap" in text:
            layers = sorted({type(module).__name__ for module in network.modules()} - {type(network).__name__})
            raise ValueError(
                f"{type(network).__name__} cannot run in batches under torch.func.vmap ({text.splitlines()[0][:150]}); "
                f"its layers: {', '.join(layers)}. Functional dropout that is always on and buffers that a forward "
                "pass writes are the usual reasons"
            ) from error
        raise


def _recomputed(step: Callable, inputs: tuple) -> tuple[Tensor, ...]:
    axes, x, y, drawn, *values = inputs
    return _Recomputed.apply(lambda axes, x, y, *values: step(axes, x, y, drawn, *values), axes, x, y, *values)


class _Recomputed(torch.autograd.Function):
    """`function(first, *tensors)` that keeps its inputs alone and runs again when it is differentiated, once.

    torch's own checkpoints do not work around `torch.func`: it forbids the hooks of one kind and the other needs
    `.backward()`.
    """

    @staticmethod
    def forward(ctx, function, first, *tensors):  # type: ignore[no-untyped-def]
        ctx.function, ctx.first = function, first
        ctx.save_for_backward(*tensors)
        return function(first, *tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *outer):  # type: ignore[no-untyped-def]
        needed = ctx.needs_input_grad[2:]
        tensors = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
        wanted = [t for t in tensors if t.requires_grad]
        with torch.enable_grad():
            outputs = ctx.function(ctx.first, *tensors)
            found = iter(torch.autograd.grad(outputs, wanted, outer, allow_unused=True))
        return None, None, *(next(found) if t.requires_grad else None for t in tensors)
