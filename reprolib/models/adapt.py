"""Anybody's network as a victim: its last layer found, its inputs normalised, all that attacks need checked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]  # torch leaves it out of its own list
from torch.overrides import TorchFunctionMode

from reprolib.models import incoming
from reprolib.models.task import Task
from reprolib.models.victim import Normalize, Victim, checked_normalize

CROSS_ENTROPY = Task()


class Adapted(Victim):
    """Somebody's network with its normalisation in front and its last layer apart, as every victim of the book.

    names: the name in their module -> the name here, for everything in its `state_dict()`. unsteady: buffers, besides
    those of normalisation, that a pass in training mode writes, as spectral norm's: such a pass cannot be repeated.
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
        unsteady: Sequence[str],
    ) -> None:
        super().__init__(head.out_features, image_shape, normalize)
        self.body, self.head, self.names, self.task, self.unsteady = body, head, names, task, unsteady
        self.architecture = {"name": label, "num_classes": self.num_classes, "image_shape": image_shape}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.normalize(x)))

    def train(self, mode: bool = True) -> Adapted:
        """As every module's. Errors: ValueError for training mode where it would write buffers that are `unsteady`."""
        if mode and self.unsteady:
            raise ValueError(
                f"mode='train' would write the buffers {self.unsteady} in every pass, so that no pass could be "
                "repeated: use 'eval'"
            )
        return super().train(mode)


def adapt(
    module: nn.Module,
    image_shape: Sequence[int],
    num_classes: int,
    *,
    head: str | None = None,
    normalize: nn.Module | tuple[Sequence[float], Sequence[float]] | None = None,
    task: Task = CROSS_ENTROPY,
    weights: incoming.Numbers | None = None,
) -> Adapted:
    """A copy of anybody's `nn.Module` in evaluation mode that every attack and defense of the book takes.

    module: takes images [N, C, H, W] and returns logits [N, num_classes], which its last linear layer computed; also as
    the entry or attribute `logits`, alone in a mapping, in a tuple alone or as the only entry of that shape, or as [N]
    for one output. What data-parallel training and torch.compile wrap around a module is taken off.
    image_shape: (C, H, W). head: that layer's name; found where it is None. normalize: applied to images in [0, 1]
    before the module: `models.Normalize(mean, std)`, (mean, std) or torchvision's transform; leave it out where the
    module normalises by itself. task: what it is trained for; num_classes are its outputs, one at least where these are
    no classes. weights: those that the server sent, in any form that `incoming.named` reads; None keeps the module's.
    Errors: ValueError with a line for everything that is missing or does not fit.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be an nn.Module, got {type(module).__name__}")
    module, problems = _unwrapped(module), []
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    if len(shape) != 3 or not all(isinstance(size, Integral) and size >= 1 for size in shape):
        problems.append(f"image_shape={image_shape!r}: expected (channels, height, width), each at least 1")
    least = 2 if task.loss == "cross-entropy" else 1
    if not isinstance(num_classes, Integral) or isinstance(num_classes, bool) or num_classes < least:
        of_one = "; for one output give task=Task('bce') or Task('squared error')" if num_classes == 1 else ""
        problems.append(f"num_classes={num_classes!r}: expected an integer of at least {least}{of_one}")
    try:
        normalize = _normalization(normalize, shape[0] if shape else 0)
    except ValueError as error:
        problems.append(str(error))
    problems += [*_of_its_tensors(module), *_of_its_layers(module)]
    if problems:
        raise ValueError(_told(module, problems))
    shape = tuple(map(int, shape))
    body = _copied(module, int(num_classes))
    first = next(body.parameters())
    normalize = normalize.to(first).eval()
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(first)
    try:
        found, logits = _last_layer(body, normalize(images), head)  # type: ignore[operator]  # a module by now
        _check_logits(logits, found, int(num_classes))
    except _NotFittingError as error:
        raise ValueError(_told(module, error.args)) from error
    unsteady = _written_in_training(body, normalize(images))  # type: ignore[operator]
    last = body.get_submodule(found)
    theirs = list(body.state_dict())
    body.set_submodule(found, nn.Identity())
    names = {
        name: f"head.{name.removeprefix(found + '.')}" if name.startswith(found + ".") else f"body.{name}"
        for name in theirs
    }
    adapted = Adapted(body, last, normalize, shape, names, task, type(module).__name__, unsteady).eval()
    try:
        _check_runs(adapted, images, logits, found)
    except _NotFittingError as error:
        raise ValueError(_told(module, error.args)) from error
    if weights is not None:
        _load(adapted, weights)
    return adapted


class _NotFittingError(ValueError):
    """What is wrong with a module, a line an argument."""


def _normalization(given: object, channels: int) -> nn.Module:
    """A module of its own from what somebody has: None, (mean, std), a module with these, or any other module."""
    if given is None:
        return nn.Identity()
    pair = (given.mean, given.std) if hasattr(given, "mean") and hasattr(given, "std") else given
    if isinstance(pair, nn.Module):
        return copy.deepcopy(pair)
    if isinstance(pair, tuple | list):
        pair = tuple(part.flatten().tolist() if isinstance(part, Tensor) else part for part in pair)
    return Normalize(*checked_normalize(pair, channels))


def _unwrapped(module: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module) or (
        isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) and (inner := module.module)
    ):
        module = inner
    return module


def _copied(module: nn.Module, num_classes: int) -> nn.Module:
    """A copy in evaluation mode that returns logits alone, its Hardsigmoid written out.

    torch has no second derivative of its own Hardsigmoid, which every MobileNetV3 has.
    """
    try:
        body = copy.deepcopy(module).eval()
    except Exception as error:  # the module is the reader's: whatever it raises is told in one line
        raise ValueError(
            _told(
                module,
                [
                    f"it cannot be copied ({_first_line(error)}). torch.nn.utils.weight_norm, spectral_norm and prune "
                    "are the usual reasons: use torch.nn.utils.parametrizations, and prune.remove"
                ],
            )
        ) from error
    for name, layer in list(body.named_modules()):
        if type(layer) is nn.Hardsigmoid and name:
            body.set_submodule(name, _Hardsigmoid())
    body.register_forward_hook(_Logits(num_classes))
    return body


class _Hardsigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


class _Logits:
    """A hook: the logits [N, K] in what somebody's module returns; what it returns where they cannot be told.

    entry: which of several in a tuple they are, told by their shape in the first pass, when the last layer is in place.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.entry: int | None = None

    def __call__(self, _: nn.Module, __: object, out: object) -> object:
        if isinstance(out, Mapping):
            out = out["logits"] if "logits" in out else next(iter(out.values())) if len(out) == 1 else out
        elif hasattr(out, "logits"):
            out = out.logits
        elif isinstance(out, tuple | list):
            if self.entry is None:
                ends = [tuple(each.shape[1:]) if isinstance(each, Tensor) else None for each in out]
                alike = [i for i, end in enumerate(ends) if len(out) == 1 or end == (self.num_classes,)]
                self.entry = alike[0] if len(alike) == 1 else None
            out = out if self.entry is None else out[self.entry]
        return out[:, None] if isinstance(out, Tensor) and out.ndim == 1 else out


def _of_its_layers(module: nn.Module) -> list[str]:
    layers, problems = dict(module.named_modules()), []
    if recurrent := [name for name, layer in layers.items() if isinstance(layer, nn.RNNBase)]:
        problems.append(f"the layers {recurrent} are recurrent: torch cannot differentiate them twice or in batches")
    if compiled := [name for name, layer in layers.items() if isinstance(getattr(layer, "_orig_mod", None), nn.Module)]:
        problems.append(f"torch.compile wraps its layers {compiled}: give it as it was before")
    for kind in (nn.LayerNorm, _BatchNorm, _InstanceNorm):
        own = {n: x for n, x in layers.items() if isinstance(x, kind) and type(x).forward is not kind.forward}
        if own := [f"{n!r} ({type(x).__name__})" for n, x in own.items() if not isinstance(x, nn.SyncBatchNorm)]:  # type: ignore[assignment]
            problems.append(
                f"{incoming.few(own, str)} are normalisation with a forward of their own in place of "
                f"{kind.__name__.strip('_')}'s: its second derivative in batches would be wrong"
            )
    return problems


def _of_its_tensors(module: nn.Module) -> list[str]:
    if any(isinstance(layer, torch.jit.ScriptModule) for layer in module.modules()):
        return ["torch.jit compiled it: give the nn.Module that it was made from"]
    parameters = dict(module.named_parameters())
    if not parameters:
        return ["it has no parameters: a client that trains nothing shares nothing"]
    if lazy := [name for name, p in parameters.items() if isinstance(p, UninitializedTensorMixin)]:
        return [f"the parameters {lazy} have no values yet: run the module once on an image"]
    if meta := [name for name, p in parameters.items() if p.is_meta]:
        return [f"the parameters {meta} have no values (device 'meta'): use module.to_empty, and load its weights"]
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


class _Norms(TorchFunctionMode):
    """While it lasts, counts the calls of the norms whose second derivative in batches torch has wrong."""

    of_layers = (nn.LayerNorm, _InstanceNorm)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += function in (F.layer_norm, F.instance_norm)
        return function(*args, **(kwargs or {}))


@contextmanager
def without_fast_path() -> Iterator[None]:
    """A pass of torch's transformer layers as hooks and derivatives have it.

    Their fast path, which torch takes for frozen layers in evaluation mode, rounds otherwise and has no derivative.
    """
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


@contextmanager
def second_derivatives() -> Iterator[None]:
    """While it lasts, attention takes the kernel that has a second derivative, and no fast path around it."""
    with sdpa_kernel(SDPBackend.MATH), without_fast_path():
        yield


def _last_layer(body: nn.Module, images: Tensor, head: str | None) -> tuple[str, Tensor]:
    """The name of the linear layer that computes the output, and the output for these images."""
    linear = {name: layer for name, layer in body.named_modules() if name and isinstance(layer, nn.Linear)}
    if head is not None and head not in linear:
        raise _NotFittingError(f"head={head!r} is none of its linear layers: {', '.join(linear) or 'it has none'}")
    seen: dict[str, list[object]] = {name: [] for name, _ in body.named_modules() if name}
    handles = [
        layer.register_forward_hook(lambda _, __, out, name=name: seen[name].append(out))
        for name, layer in body.named_modules()
        if name
    ]
    direct = _Norms()
    try:
        with torch.no_grad(), direct:
            out = body(images)
    except Exception as error:
        raise _NotFittingError(
            f"it does not take images of shape {list(images.shape)}: {_first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    by_layers = sum(len(seen[n]) for n, layer in body.named_modules() if n and isinstance(layer, _Norms.of_layers))
    if direct.calls > by_layers:
        raise _NotFittingError(
            "its forward calls F.layer_norm or F.instance_norm, whose second derivative in batches is wrong in torch: "
            "use nn.LayerNorm or nn.InstanceNorm, which are written out"
        )
    if not isinstance(out, Tensor):
        raise _NotFittingError(
            f"it returns a {type(out).__name__} without an entry or attribute 'logits': wrap it in a module that "
            "returns the logits alone"
        )
    with torch.no_grad(), without_fast_path():
        if not torch.equal(out, body(images)) and out.isfinite().all():
            raise _NotFittingError(
                "two passes over the same images differ, also in evaluation mode: it draws random numbers or keeps "
                "a state; F.dropout needs training=self.training"
            )
    # the very tensor, or a view of one output [N, 1], which came back as [N]
    last = {
        n: [o for o in seen[n] if o is out or (o.shape == out.shape and o.data_ptr() == out.data_ptr())]  # type: ignore[attr-defined]  # outputs of layers
        for n in linear
    }
    candidates = [name for name, outputs in last.items() if outputs]
    if not candidates:
        like = [name for name in linear if seen[name] and seen[name][-1].shape == out.shape]  # type: ignore[attr-defined]
        by = [f": {name!r}, a {_kind(body.get_submodule(name))}" for name in seen if any(o is out for o in seen[name])]
        follows = f"something follows {like[-1]!r}" if like else "no nn.Linear gives that shape"
        raise _NotFittingError(
            f"its output [N, {', '.join(map(str, out.shape[1:]))}] is no linear layer's: {follows}{''.join(by[-1:])}. "
            "Let it return the logits of an nn.Linear: no softmax, log-softmax, sigmoid, scaling or reshaping after it"
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


def _check_runs(adapted: Adapted, images: Tensor, logits: Tensor, found: str) -> None:
    """Refuse what does not give the same logits with its last layer apart, and what torch cannot match in batches."""
    network = copy.deepcopy(adapted)  # torch.nn.utils.spectral_norm leaves the weights of a pass behind
    trained = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def distance(image: Tensor) -> Tensor:
        of = grad(lambda weights: functional_call(network, weights, (image,)).square().sum())(trained)
        return sum(value.square().sum() for value in of.values())

    # batch norm by the batch's own statistics may have none of a single image
    by_batch = any(isinstance(m, _BatchNorm) and m.running_mean is None for m in network.modules())
    few = images if by_batch else images[:1]
    no_last_layer = f"its output is not what {found!r} computes from what comes before it: it is no last layer"
    try:
        with torch.no_grad(), without_fast_path():
            both, one = network(images), network(few)
    except Exception as error:
        raise _NotFittingError(
            f"{no_last_layer}, or it takes two images and not one alone ({_first_line(error)}): squeeze(1), not "
            "squeeze(), keeps a batch of one"
        ) from error
    if not torch.equal(both, logits) or one.shape != logits[: len(few)].shape:
        raise _NotFittingError(no_last_layer)
    try:
        with second_derivatives():
            vmap(grad(distance))(few[None])
    except Exception as error:
        layers = sorted({type(layer).__name__ for layer in adapted.body.modules()} - {"Identity"})
        raise _NotFittingError(
            f"torch cannot differentiate it twice in batches of one image ({_first_line(error)}); its layers: "
            f"{', '.join(layers)}. Branches on values, buffers that a forward pass writes, changes in place and random "
            "numbers are the usual reasons"
        ) from error


def _written_in_training(body: nn.Module, images: Tensor) -> list[str]:
    """The buffers that a pass in training mode writes, besides those of normalisation, which the engine writes out."""
    copied = copy.deepcopy(body).train()
    norms = {name for name, layer in copied.named_modules() if isinstance(layer, _BatchNorm | _InstanceNorm)}
    buffers = {name: b.clone() for name, b in copied.named_buffers() if name.rpartition(".")[0] not in norms}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copied(images)
    except Exception:  # it has no training mode on two such images, as batch norm over single pixels
        return []
    now = dict(copied.named_buffers())
    return [name for name, before in buffers.items() if not torch.equal(before, now[name])]


def _load(model: Adapted, weights: incoming.Numbers) -> None:
    found, _ = incoming.named(model, weights, "weights")
    state, own = model.state_dict(), incoming.called(model)
    if missing := [own[name] for name, _ in model.named_parameters() if found.get(name) is None]:
        raise ValueError(f"weights: nothing for {missing}; expected all of the module's, as `state_dict()` holds them")
    if bad := [own[name] for name, value in found.items() if value is not None and not value.isfinite().all()]:
        raise ValueError(f"weights: {bad} hold NaN or infinite values")
    with torch.no_grad():
        for name, value in found.items():
            if value is not None:
                state[name].copy_(value)


def _kind(layer: nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__name__}"


def _first_line(error: Exception) -> str:
    """Whatever a reader's module raises, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _told(module: nn.Module, problems: Sequence[str]) -> str:
    lines = (
        "; ".join(f"({i + 1}) {problem}" for i, problem in enumerate(problems)) if len(problems) > 1 else problems[0]
    )
    return f"{type(module).__name__} cannot be a victim as it is: {lines}"
