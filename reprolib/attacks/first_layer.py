"""The gradient of a linear layer that the images reach, as each attack on it reads it: a mixture of the batch's inputs.

For the layer z = W x + b a batch leaves dL/dW = sum_i delta_i x_i' and dL/db = sum_i delta_i, whatever follows the
layer: dL/dW = A X, with a column of the mixing A [m, B] for each image, and dL/db = A 1. Local steps of SGD add up to
the same form where the layer is the network's first: the images stay, only the deltas are sums over the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from reprolib.federated import gradients
from reprolib.federated.gradients import LocalTraining
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.models.inputs import Images


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """What T updates say of one linear layer, in float64: weight [T, m, d] = A X and bias [T, m] = A 1.

    name: the layer. shape: of one of its inputs before it is flattened, (C, H, W), or (d,) where it is no map. mean,
    std: what takes an input back to pixels, [C, 1, 1] or [1]; None where the inputs are features. batch_size: images
    behind one update. eps: relative rounding of the numbers as they were shared. noise_std: standard deviation of the
    noise that an attacker who knows the defense allows for. slack: [T, m, d], how far an entry of `weight` may lie from
    what was shared, for an attacker who knows the defense: infinity where it shows nothing; None for 0 throughout.
    bias_slack: [T, m], the same of `bias`.
    """

    name: str
    shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    batch_size: int
    eps: float
    mean: Tensor | None = None
    std: Tensor | None = None
    noise_std: float = 0.0
    slack: Tensor | None = None
    bias_slack: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module | Victims, update: SharedUpdate, layer: str | None = None) -> FirstLayer:
        """Read the layer whose input is the image, found by a probe image, or the layer of this name.

        layer: None, or the name of a linear layer with a bias, whose inputs are features where it lies behind others.
        Errors: ValueError for an update of another model or with NaN (`SharedUpdate.check`), a layer that is not there,
        is not linear, has no bias, is not shared or whose input is no vector; for steps of Adam; and, where the inputs
        are features, for a weight difference that is no single gradient.
        """
        what = f"reading the layer {layer!r}" if layer else "reading the first layer"
        _refuse_what_is_not_linear(update.local, what)
        observed = update.observed(model, what)
        victims = Victims.of(model)
        found = _found(victims.skeleton, layer)
        if not found.is_image:
            update.require_one_gradient(f"{what}, which lies behind others,")
        names = [f"{found.name}.weight", f"{found.name}.bias"]
        if missing := [name for name in names if name not in observed.target]:
            raise ValueError(f"the update has nothing of {missing}: the clients do not train that layer")
        shared = observed.target[names[0]]
        weight, bias = (_without_decay(observed.target[name], name, victims, update).double() for name in names)
        return cls(
            name=found.name,
            shape=found.shape,
            weight=weight,
            bias=bias,
            batch_size=update.batch_size,
            eps=torch.finfo(shared.dtype).eps,
            mean=victims.skeleton.mean.double() if found.is_image else None,
            std=victims.skeleton.std.double() if found.is_image else None,
            noise_std=observed.noise_std,
            slack=_slack(observed, names[0], weight),
            bias_slack=_slack(observed, names[1], bias),
        )

    def __post_init__(self) -> None:
        if self.weight.ndim != 3 or self.bias.shape != self.weight.shape[:2]:
            raise ValueError(
                f"weight and bias must have the shapes [T, m, d] and [T, m], got {list(self.weight.shape)} and "
                f"{list(self.bias.shape)}"
            )
        if torch.Size(self.shape).numel() != self.weight.shape[2]:
            raise ValueError(f"shape={self.shape} holds no {self.weight.shape[2]} values, as many as the layer takes")
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            bad = ~value.isfinite().flatten(2 if value.ndim == 3 else 1).all(-1)
            if bad.any():
                trial, *row = bad.nonzero()[0].tolist()
                where = f"row {row[0]} of trial {trial}" if row else f"trial {trial}"
                raise ValueError(f"the {name} gradient has a NaN or infinite entry in {where}")

    @property
    def trials(self) -> int:
        """The number of trials T."""
        return len(self.weight)

    @property
    def width(self) -> int:
        """The number of outputs m of the layer."""
        return self.weight.shape[1]

    @property
    def alive(self) -> Tensor:
        """[T, m]: rows that hold anything. A unit that no image of the batch switched on leaves a row of zeros."""
        return (self.weight != 0).any(2) | (self.bias != 0)

    def rows(self, trial: int) -> tuple[Tensor, Tensor]:
        """One trial's weight [k, d] and bias [k] gradient with its dead rows left out."""
        alive = self.alive[trial]
        return self.weight[trial, alive], self.bias[trial, alive]

    def to_pixels(self, inputs: Tensor) -> Tensor:
        """Inputs of the layer [T, n, d] as images [T, n, C, H, W], not clamped.

        Errors: ValueError where the layer's inputs are features: a decoder is needed.
        """
        if self.mean is None or self.std is None:
            raise ValueError(f"the inputs of {self.name!r} are features, not images: a decoder makes images of them")
        return inputs.view(*inputs.shape[:2], *self.shape) * self.std.to(inputs) + self.mean.to(inputs)

    def of_pixels(self, images: Tensor) -> Tensor:
        """Images [T, n, C, H, W] as inputs of the layer [T, n, d]: the inverse of `to_pixels`."""
        if self.mean is None or self.std is None:
            raise ValueError(f"the inputs of {self.name!r} are features, not images: the network computes them")
        images = images.to(self.weight)
        return ((images - self.mean.to(images)) / self.std.to(images)).flatten(2)

    @cached_property
    def decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weight gradient's singular vectors and values, U [T, m, k], S [T, k], V' [T, k, d]; QR goes first."""
        if self.weight.shape[1] > self.weight.shape[2]:
            return tuple(torch.linalg.svd(self.weight, full_matrices=False))
        basis, triangle = torch.linalg.qr(self.weight.mT)
        left, values, right = torch.linalg.svd(triangle.mT)
        return left, values, right @ basis.mT

    @property
    def rank(self) -> Rank:
        """The numerical rank of each trial's weight gradient, which tells how many inputs are mixed in it."""
        return numerical_rank(self.decomposed[1], self.eps)

    def subspace(self, sources: int) -> Tensor:
        """The orthonormal rows [T, n, d] that hold most of the weight gradient: its leading right singular vectors."""
        return self.decomposed[2][:, :sources]

    def sources(self, assumed: int | None = None) -> int:
        """How many inputs an attacker can separate in every trial: `assumed`, or the size of the batch.

        Errors: ValueError where that is more than the layer is wide, than an input has values, or than the numerical
        rank of a trial, since then the mixing has no inverse.
        """
        wanted = self.batch_size if assumed is None else assumed
        most = min(self.weight.shape[1:])
        if wanted > most:
            raise ValueError(
                f"{wanted} images are mixed in the layer {self.name!r}, which is {self.width} wide and takes "
                f"{self.weight.shape[2]} values: at most {most} can be separated"
            )
        rank = self.rank.rank
        if (rank < wanted).any():
            trial = int((rank < wanted).nonzero()[0])
            raise ValueError(
                f"the gradient of {self.name!r} has the numerical rank {int(rank[trial])} in trial {trial}, below the "
                f"{wanted} images to separate: some are copies of each other, or left nothing behind; give "
                f"sources={int(rank.min())}"
            )
        return wanted


@dataclass(frozen=True, eq=False)
class Rank:
    """The numerical rank of T matrices: rank [T], values [T, k], the singular values, and gap [T].

    gap: the last singular value that counts over the first that does not, infinity where none is left.
    """

    rank: Tensor
    gap: Tensor
    values: Tensor


def numerical_rank(values: Tensor, eps: float) -> Rank:
    """How many singular values [T, k], falling, are more than rounding: above eps sqrt(k) times 8 times the largest."""
    k = values.shape[1]
    rank = (values > 8 * eps * k**0.5 * values[:, :1]).sum(1)
    padded = torch.cat([values, values.new_zeros(len(values), 1)], 1)
    last = padded.gather(1, (rank - 1).clamp(min=0)[:, None])[:, 0]
    following = padded.gather(1, rank[:, None])[:, 0]
    return Rank(rank, last / following, values)


@dataclass(frozen=True)
class _Found:
    name: str
    shape: tuple[int, ...]
    is_image: bool


def _found(skeleton: nn.Module, layer: str | None) -> _Found:
    """The layer to read, what its inputs are shaped like, and whether they are the image as it enters the network."""
    inputs = skeleton.inputs
    if not isinstance(inputs, Images):
        raise ValueError(
            f"the model takes {type(inputs).__name__.lower()}, not images: its first layer mixes no pixels"
        )
    network = gradients.worker(skeleton, "eval")
    layers = {name: module for name, module in network.named_modules() if name}
    if layer is not None and not isinstance(layers.get(layer), nn.Linear):
        able = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
        raise ValueError(f"layer={layer!r} is no linear layer of this model; it has {able}")
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    handles = [
        module.register_forward_hook(
            lambda _, given, out, name=name: (
                seen[name].append((given[0], out)) if isinstance(given[0], Tensor) else None
            )
        )
        for name, module in layers.items()
    ]
    first = next(network.parameters())
    probe = torch.rand(2, *inputs.shape, generator=torch.Generator().manual_seed(0)).to(first)
    with torch.no_grad():
        entered = network.normalize(probe)
        network(probe)
    for handle in handles:
        handle.remove()
    linear = {name: seen[name] for name, module in layers.items() if isinstance(module, nn.Linear) and seen[name]}
    images = [name for name, calls in linear.items() if _same(calls[0][0], entered)]
    if layer is None and not images:
        taking = [
            f"{name!r}, a {type(layers[name]).__name__}"
            for name, calls in seen.items()
            if calls and name != "normalize" and _same(calls[0][0], entered) and not list(layers[name].children())
        ]
        raise ValueError(
            f"the model's first layer is not linear: the image enters {taking[0] if taking else 'no layer of torch'}. "
            f"Behind it the linear layers {list(linear)} take features: name one of them as `layer`"
        )
    name = images[0] if layer is None else layer
    if layers[name].bias is None:
        raise ValueError(f"the layer {name!r} has no bias, by whose gradient sign and scale of an image are known")
    if (
        name not in linear
        or len(linear[name]) > 1
        or linear[name][0][0].shape != (len(probe), layers[name].in_features)
    ):
        raise ValueError(f"the layer {name!r} does not take one vector an image: what it mixes are not the images")
    vectors = linear[name][0][0]
    if name in images:
        return _Found(name, tuple(inputs.shape), True)
    maps = [
        tuple(out.shape[1:])
        for calls in seen.values()
        for _, out in calls
        if isinstance(out, Tensor) and out.ndim == 4 and _same(out, vectors)
    ]
    return _Found(name, maps[-1] if maps else (vectors.shape[1],), False)


def _same(values: Tensor, others: Tensor) -> bool:
    """Whether these are the same numbers, image by image, however they are laid out."""
    return len(values) == len(others) and torch.equal(values.flatten(1), others.flatten(1))


def _refuse_what_is_not_linear(local: LocalTraining | None, what: str) -> None:
    if local is not None and local.optimizer != "sgd":
        raise ValueError(
            f"{what} needs an update that is linear in the gradients, but the client's optimiser is "
            f"{local.optimizer!r}: it divides each entry by a root of its own, and the mixing of the images is lost"
        )


def _without_decay(shared: Tensor, name: str, victims: Victims, update: SharedUpdate) -> Tensor:
    """The shared values less what weight decay made of the weights that were sent: a known multiple of these."""
    local = update.local
    if local is None or not local.weight_decay:
        return shared
    sizes: Sequence[int] = local.sizes or (update.batch_size,)
    left = sum(size * _decayed(local, local.steps(size)) for size in sizes) / sum(sizes)
    return shared - update.scale * (left - 1) * victims.weights()[name]


def _decayed(local: LocalTraining, steps: int) -> float:
    """What is left after the steps of a weight of 1 that has no gradient."""
    weight, nothing, state = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), []
    for step in range(1, steps + 1):
        direction, state = local.direction(step, nothing, weight, state)
        weight = weight - local.learning_rate * direction
    return float(weight)


def _slack(observed: Observation, name: str, like: Tensor) -> Tensor | None:
    """How far each entry may lie from the target, infinity for one that is not compared; None where all are exact."""
    slack = torch.zeros_like(like)
    if observed.slack is not None and name in observed.slack:
        slack = slack + observed.slack[name].to(like)
    for where in (observed.weight, observed.beyond):
        if where is not None and name in where:
            shown = where[name] != 0 if where is observed.weight else slack == 0
            slack = slack.masked_fill(~shown.expand_as(slack), torch.inf)
    return slack if slack.any() else None
