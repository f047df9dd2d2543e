"""Anybody's network as a victim: its last layer found, its inputs normalised, all that attacks need checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from reprolib.models import incoming
from reprolib.task import Task

CROSS_ENTROPY = Task()


class Adapted(nn.Module):
    """Somebody's network with its normalisation in front and its last layer apart, as every victim of the book.

    names: the name in their module -> the name here, for everything in its `state_dict()`.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Linear,
        normalize: nn.Module,
        image_shape: tuple[int, int, int],
        names: dict[str, str],
        task: Task,
        label: str,
    ) -> None:
        super().__init__()
        self.normalize, self.body, self.head = normalize, body, head
        self.image_shape, self.num_classes, self.names, self.task = image_shape, head.out_features, names, task
        self.architecture = {"name": label, "num_classes": self.num_classes, "image_shape": image_shape}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.normalize(x)))


def adapt(
    module: nn.Module,
    image_shape: Sequence[int],
    num_classes: int,
    *,
    head: str | None = None,
    normalize: nn.Module | None = None,
    task: Task = CROSS_ENTROPY,
    weights: incoming.Numbers | None = None,
) -> Adapted:
    """A copy of anybody's `nn.Module` in evaluation mode that every attack and defense of the book takes.

    module: takes images [N, C, H, W] and returns logits [N, num_classes], which its last linear layer computed.
    image_shape: (C, H, W). head: that layer's name; found where it is None. normalize: applied to images in [0, 1]
    before the module, as `models.Normalize(mean, std)`; leave it out where the module normalises by itself. task: what
    it is trained for; num_classes are its outputs, one at least where these are no classes. weights: those that the
    server sent, in any form that `incoming.named` reads; None keeps the module's own.
    Errors: ValueError with a line for everything that is missing or does not fit.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be an nn.Module, got {type(module).__name__}")
    problems = []
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    if len(shape) != 3 or not all(isinstance(size, Integral) and size >= 1 for size in shape):
        problems.append(f"image_shape={image_shape!r}: expected (channels, height, width), each at least 1")
    least = 2 if task.loss == "cross-entropy" else 1
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < least:
        problems.append(f"num_classes={num_classes!r}: expected an integer of at least {least}")
    problems += _of_its_tensors(module)
    if recurrent := [name for name, layer in module.named_modules() if isinstance(layer, nn.RNNBase)]:
        problems.append(f"the layers {recurrent} are recurrent: torch cannot differentiate them twice or in batches")
    if problems:
        raise ValueError(_told(module, problems))
    shape = tuple(map(int, shape))
    body = copy.deepcopy(module).eval()
    first = next(body.parameters())
    normalize = nn.Identity() if normalize is None else copy.deepcopy(normalize).to(first)
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(first)
    try:
        found, logits = _last_layer(body, normalize(images), head)
        _check_logits(logits, found, int(num_classes))
    except _NotFittingError as error:
        raise ValueError(_told(module, error.args)) from error
    last = body.get_submodule(found)
    theirs = list(body.state_dict())
    body.set_submodule(found, nn.Identity())
    names = {
        name: f"head.{name.removeprefix(found + '.')}" if name.startswith(found + ".") else f"body.{name}"
        for name in theirs
    }
    adapted = Adapted(body, last, normalize, shape, names, task, type(module).__name__).eval()
    with torch.no_grad():
        same = torch.equal(adapted(images), logits)
    if not same:
        raise ValueError(
            _told(module, [f"its output is not what {found!r} computes from what comes before it: it is no last layer"])
        )
    if weights is not None:
        _load(adapted, weights)
    return adapted


class _NotFittingError(ValueError):
    """What is wrong with a module, a line an argument."""


def _of_its_tensors(module: nn.Module) -> list[str]:
    parameters = dict(module.named_parameters())
    if not parameters:
        return ["it has no parameters: a client that trains nothing shares nothing"]
    if lazy := [name for name, p in parameters.items() if isinstance(p, UninitializedTensorMixin)]:
        return [f"the parameters {lazy} have no values yet: run the module once on an image"]
    problems = []
    dtypes, devices = {p.dtype for p in parameters.values()}, {p.device for p in parameters.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        problems.append(f"its parameters are of {sorted(map(str, dtypes))}: use module.float() or .double()")
    if len(devices) > 1:
        problems.append(f"its parameters are on {sorted(map(str, devices))}: use module.to(device)")
    if not any(p.requires_grad for p in parameters.values()):
        problems.append("all its parameters are frozen (requires_grad): a client that trains nothing shares nothing")
    if bad := [name for name, p in parameters.items() if not p.isfinite().all()]:
        problems.append(f"the parameters {bad} hold NaN or infinite values")
    return problems


def _last_layer(body: nn.Module, images: Tensor, head: str | None) -> tuple[str, Tensor]:
    """The name of the linear layer that computes the output, and the output for these images."""
    linear = {name: layer for name, layer in body.named_modules() if name and isinstance(layer, nn.Linear)}
    if head is not None and head not in linear:
        raise _NotFittingError(f"head={head!r} is none of its linear layers: {', '.join(linear) or 'it has none'}")
    seen: dict[str, list[Tensor]] = {name: [] for name in linear}
    handles = [
        layer.register_forward_hook(lambda _, __, out, name=name: seen[name].append(out))
        for name, layer in linear.items()
    ]
    try:
        with torch.no_grad():
            out = body(images)
    except Exception as error:  # the module is the reader's: whatever it raises is told in one line
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise _NotFittingError(f"it does not take images of shape {list(images.shape)}: {first[:200]}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(out, Tensor):
        raise _NotFittingError(f"it returns a {type(out).__name__}: wrap it in a module that returns the logits alone")
    candidates = [name for name, outputs in seen.items() if any(o is out for o in outputs)]
    if not candidates:
        like = [name for name, outputs in seen.items() if outputs and outputs[-1].shape == out.shape]
        raise _NotFittingError(
            f"its output [N, {', '.join(map(str, out.shape[1:]))}] is no linear layer's"
            + (f": something follows {like[-1]!r}. " if like else ". ")
            + "Let it return logits: no softmax, log-softmax, sigmoid, scaling or reshaping after the last nn.Linear"
        )
    (name,) = candidates
    if head is not None and head != name:
        raise _NotFittingError(f"head={head!r}, but its output is what {name!r} computes")
    if len(seen[name]) > 1:
        raise _NotFittingError(f"its last layer {name!r} runs {len(seen[name])} times an image: it must run once")
    weight = linear[name].weight
    others = [n for n, p in body.named_parameters(remove_duplicate=False) if p is weight and n != f"{name}.weight"]
    if others:
        raise _NotFittingError(f"its last layer shares its weight with {others}: untie them")
    return name, out


def _check_logits(logits: Tensor, head: str, num_classes: int) -> None:
    if logits.shape != (2, num_classes):
        raise _NotFittingError(
            f"its last layer {head!r} gives {list(logits.shape)} for two images, expected [2, {num_classes}]: "
            f"num_classes is {num_classes}"
        )
    if not logits.isfinite().all():
        raise _NotFittingError("its logits for an image in [0, 1] are NaN or infinite")


def _load(model: Adapted, weights: incoming.Numbers) -> None:
    found, _ = incoming.named(model, weights, "weights")
    state = model.state_dict()
    if missing := [name for name in dict(model.named_parameters()) if found.get(name) is None]:
        raise ValueError(f"weights: nothing for {missing}; expected all of the module's, as `state_dict()` holds them")
    with torch.no_grad():
        for name, value in found.items():
            state[name].copy_(value)
    if bad := [name for name, value in found.items() if not value.isfinite().all()]:
        raise ValueError(f"weights: {bad} hold NaN or infinite values")


def _told(module: nn.Module, problems: Sequence[str]) -> str:
    lines = (
        "; ".join(f"({i + 1}) {problem}" for i, problem in enumerate(problems)) if len(problems) > 1 else problems[0]
    )
    return f"{type(module).__name__} cannot be a victim as it is: {lines}"
