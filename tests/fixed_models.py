"""Fixed numbers of networks as they are drawn, run and adapted, and of what settings and constants are by default."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from itertools import product

import numpy as np
import torch
from fixed import SHAPE, SINGLE, case, classes, drawn, exact, images_of, refused, victim
from torch import nn

import reprolib
from reprolib import models
from reprolib.models import incoming
from reprolib.models.bottleneck import kl_bits
from reprolib.models.grnn import RegressionGenerator
from reprolib.models.imprint import ImprintBlock, in_front
from reprolib.models.inputs import Images, Tokens
from reprolib.models.latent import Critic
from reprolib.models.task import Task

SMALL = {
    "convbig": {"width": 3, "features": 8},
    "mlp": {"width": 6},
    "convnet": {"width": 3},
    "resnet18": {"width": 4},
    "resnet32": {"width": 4},
}
"""Options that keep a victim small beside its defaults, under which it is drawn too."""

OPTIONS = {
    "width": [3, 4],
    "activation": ["sigmoid", "relu", "leaky_relu"],
    "init": ["uniform", "default"],
    "norm": ["batch", "none", "group"],
    "pooled": [True, False],
    "features": [6, 8],
}

LARGE = ("imagenet-resnet18", "imagenet-resnet50", "cnn", "convbig", "convnet", "resnet18", "resnet32")


def _of_a_victim(name: str) -> object:
    shape = (3, 33, 35) if name.startswith("imagenet") else (3, 18, 16)
    built = {"defaults": models.build(name, 3, shape, 0)}
    if not name.startswith("imagenet"):
        for option, values in OPTIONS.items() if name != "dlg-resnet56" else ():
            for value in values:
                told = SMALL.get(name, {}) | {option: value}
                if option in built["defaults"].architecture and not refused(
                    lambda t=told: models.build(name, 3, shape, 1, **t)
                ):
                    built[f"{option} {value}"] = models.build(name, 3, shape, 1, **told)
        means = ((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
        built["other"] = models.build(name, 3, (3, 16, 21), 2, normalize=means, **SMALL.get(name, {}))
    found = {}
    for number, (way, model) in enumerate(built.items()):
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()} if number == 0 else {}
        weights = nn.utils.parameters_to_vector(model.parameters())
        found[way] = [len(shapes), str(shapes)[:2000] if len(shapes) < 20 else "", weights, str(model.architecture)]
        if name.startswith("imagenet") or (number == 0 and name in LARGE):
            found[way].append(model(drawn(1, *model.image_shape).float()))
            continue
        for mode in ("eval", "train"):
            model.double().train(mode == "train")
            loss = nn.functional.cross_entropy(model(drawn(2, *model.image_shape)), torch.tensor([2, 0]))
            slopes = torch.autograd.grad(loss, list(model.parameters()))
            found[way] += [loss, torch.cat([slope.flatten() for slope in slopes])]
    return found


for _name in models.ARCHITECTURES:
    case(f"model {_name}", rtol=SINGLE)(lambda name=_name: _of_a_victim(name))


GENERATED = {
    "dcgan": [((3, 32, 32), {}, {"features": 5, "width": 2})],
    "decoder": [
        ((3, 32, 32), {}, {"channels": 4, "widths": (3, 2), "blocks": 2}),
        ((1, 9, 9), {"channels": 4, "widths": (3, 2), "pooled": True}, {"channels": 4, "widths": (2,), "blocks": 0}),
    ],
    "wgan": [((3, 9, 12), {}, {"latent_dim": 4, "width": 2})],
    "vae": [((3, 9, 12), {}, {"latent_dim": 4, "width": 2})],
}


def _of_a_generator(name: str) -> object:
    found = []
    for shape, *options in GENERATED.get(name, [((3, 8, 8), {})]):
        for told in options:
            model = models.build_generator(name, shape, 3, **told).double()
            size = model.latent_dim if hasattr(model, "latent_dim") else model.features
            if hasattr(model, "scale"):
                model.scale.fill_(2.5)
            x = (drawn(2, size) - 0.3).requires_grad_()
            out = model(x)
            (slope,) = torch.autograd.grad(out.square().sum(), x)
            weights = nn.utils.parameters_to_vector(model.parameters())
            code = model.encode(drawn(2, *shape)) if hasattr(model, "encode") else None
            found.append([weights, out, slope, code, str(model.architecture), model.training, len(model.state_dict())])
    return found


for _name in models.GENERATORS:
    case(f"generator {_name}", rtol=1e-5)(lambda name=_name: _of_a_generator(name))


@case("networks beside a generator", rtol=1e-5)
def _() -> object:
    critic = models.drawn(lambda: Critic((3, 9, 12), 2), 1).double()
    ours = [
        models.drawn(lambda s=s: RegressionGenerator(4, (3, s, s), noise_dim=5, width=3), 2).double() for s in (8, 16)
    ]
    weights = [nn.utils.parameters_to_vector(own.parameters()) for own in (critic, *ours)]
    return weights, critic(drawn(2, 3, 9, 12)), [own(drawn(3, 5) - 0.5) for own in ours]


@case("what stands around a victim")
def _() -> object:
    model = victim()
    fresh = models.build("mlp", 4, SHAPE, 0, width=6)
    inputs = Images(SHAPE, torch.tensor([0.3, 0.4, 0.5]).view(3, 1, 1), torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1))
    x = drawn(2, 2, *SHAPE) * 3 - 1
    tokens = Tokens(3, drawn(5, 4, seed=3) * torch.tensor([0.2, 1, 2, 3, 4])[:, None] - 0.5)
    return [
        models.fingerprint(model),
        models.trunk_fingerprint(model),
        models.penultimate(model, drawn(3, *SHAPE)),
        [inputs.of_points(x), inputs.to_points(x), inputs.inside(x), inputs.values(x)],
        [tokens.values(drawn(4, 3, 4, seed=8) * 3 - 0.5), tokens.enter(classes(2, 3)), tokens.shape],
        kl_bits(drawn(2, 3) - 0.5, drawn(2, 3, seed=3)),
        [model.mean, model.std, fresh.mean, fresh.std],
        refused(lambda: models.build("mlp", 4, SHAPE, 0, depth=3)),
        refused(lambda: models.build("no such", 4, SHAPE, 0)),
    ]


@case("tasks")
def _() -> object:
    outputs, soft, found = drawn(3, 4) * 4 - 2, drawn(3, 4, seed=3), []
    for loss, reduction in product(("cross-entropy", "bce", "squared error"), ("mean", "sum")):
        task = Task(loss, reduction, 0.2 if loss == "cross-entropy" else 0.0)
        labels = classes(2, 3) if loss == "cross-entropy" else drawn(2, 3, 4)
        found += [task(outputs, soft), task.targets(labels, 4, outputs)]
        found.append([refused(lambda t=task, y=y: t.check(y, 2, 3, 4, torch.float64)) for y in (labels, labels + 3)])
    return found, Task("bce").targets(torch.tensor([[0, 1]]), 1, outputs), Task()(outputs, classes(3))


@case("imprint blocks of every kind")
def _() -> object:
    found, x = [], drawn(4, *SHAPE) - 0.4
    kinds = product(("cumulative", "sparse", "scattered"), ("addition", "linear", "cat", "softmax"))
    for layout, connection in kinds:
        block = ImprintBlock(drawn(5, 90) - 0.5, drawn(5, seed=3), layout, connection, 1.5, 0.7, drawn(90, seed=4))
        sent = in_front(victim(normalize=((0.4,) * 3, (0.5,) * 3)), block)
        found.append([block(x), block.passed(x), sent(x + 0.4), list(sent.state_dict()), str(block)])
    return found


class _Own(nn.Module):
    """Somebody's network, which returns its logits among other things."""

    def __init__(self, returned: str) -> None:
        super().__init__()
        self.returned = returned
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(90, 5), nn.Hardsigmoid())
        self.last = nn.Linear(5, 1 if returned == "one" else 4)

    def forward(self, x: torch.Tensor) -> object:
        seen = self.body(x)
        logits = self.last(seen)
        return {"dict": {"logits": logits}, "tuple": (seen, logits), "one": logits.squeeze(1)}.get(
            self.returned, logits
        )


@case("adapt")
def _() -> object:
    found = {}
    normal = models.Normalize((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
    for returned, normalize in product(("plain", "dict", "tuple", "one"), (None, normal, ((0.5,) * 3, (0.2,) * 3))):
        outputs, task = (1, Task("bce")) if returned == "one" else (4, Task())
        own = exact(_Own(returned))
        model = models.adapt(own, SHAPE, outputs, normalize=normalize, task=task)
        state = own.state_dict()
        other = {f"module.{name}": value + 0.1 for name, value in state.items()}
        moved = models.adapt(own, SHAPE, outputs, weights=other, normalize=normalize, task=task)
        found[f"{returned} {type(normalize).__name__}"] = [model, model(drawn(2, *SHAPE)), moved(drawn(2, *SHAPE))]
    found["names"] = [model.names, str(model.architecture)]
    unfit = nn.Sequential(nn.Flatten(), nn.Linear(90, 4), nn.Softmax(1)).double()
    found["refused"] = [
        refused(lambda: models.adapt(unfit, SHAPE, 4)),
        refused(lambda: models.adapt(_Own("plain"), SHAPE, 5)),
        refused(lambda: models.adapt(_Own("plain"), SHAPE, 4, head="body.1")),
        refused(lambda: models.adapt(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(90, 4)).half(), SHAPE, 4)),
    ]
    return found


@case("somebody's arrays under a model's names")
def _() -> object:
    model, found = victim(), {}
    state = {name: value + 1 for name, value in model.state_dict().items()}
    own = {name: value for name, value in state.items() if "normalize" not in name}
    forms = {
        "named": state,
        "prefixed": {f"net.{name}": value for name, value in state.items()},
        "numpy": {name: value.float().numpy() for name, value in own.items()},
        "pairs": list(own.items()),
        "in order": list(own.values()),
        "another order": list(own.values())[::-1],
        "vector": torch.cat([value.flatten() for value in own.values()]),
        "turned": {name: value.T for name, value in own.items()},
        "half": {name: value.half() for name, value in own.items()},
        "whole": {name: np.ones(tuple(value.shape), dtype=int) for name, value in own.items()},
        "none": {name: None if "bias" in name else value for name, value in own.items()},
        "unknown": state | {"more": drawn(2)},
    }
    for name, numbers in forms.items():
        found[name] = refused(lambda n=numbers: incoming.named(model, n, "these")) or incoming.named(
            model, numbers, "these"
        )
    return found


# --- what is set where nothing is said

MADE = {
    "generator": models.build_generator("wgan", (3, 8, 8), 0, latent_dim=2, width=1),
    "decoder": models.build_generator("decoder", (3, 8, 8), 0, channels=2, widths=(2,)),
    "auxiliary": images_of(20),
    "variance": 0.3,
    "scale": 0.2,
}
"""What presets are made of that need something."""

PLAIN = int | float | str | bool | None


def _said(value: object) -> str | None:
    """Text for plain values, and for what holds such; None for others."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, tuple | list | set | frozenset):
        parts = [_said(part) for part in value]
        return (
            None if None in parts else f"({', '.join(sorted(parts) if isinstance(value, set | frozenset) else parts)})"
        )
    if isinstance(value, dict):
        parts = [(_said(key), _said(part)) for key, part in value.items()]
        return None if any(None in pair for pair in parts) else str(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}{_said({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})}"
    if isinstance(value, torch.Tensor) and value.numel() < 100:
        return str(value.tolist())
    return None


def _defaults(call: object) -> str:
    parameters = inspect.signature(call).parameters.values()
    told = {p.name: _said(p.default) for p in parameters if p.default is not p.empty}
    return ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)


def _of_a_module(name: str) -> dict[str, str]:
    """Its constants, the defaults of its functions, methods and settings, and its presets."""
    module, found = importlib.import_module(name), {}
    for key, value in vars(module).items():
        if key.strip("_").isupper() and key not in ("FOLDER", "_MEASURED"):
            found[key] = _said(value)
        elif getattr(value, "__module__", None) != name:
            continue
        elif inspect.isfunction(value):
            found[key] = _defaults(value)
        elif inspect.isclass(value):
            found |= {f"{key}.{part}": own for part, own in _of_a_class(value).items()}
    return {key: value for key, value in found.items() if value}


def _of_a_class(kind: type) -> dict[str, str]:
    found = {}
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found[field.name] = None if made is dataclasses.MISSING else _said(made)
    for name, member in vars(kind).items():
        if isinstance(member, classmethod) and member.__func__.__annotations__.get("return") == kind.__name__:
            needed = inspect.signature(getattr(kind, name)).parameters.values()
            told = {p.name: MADE[p.name] for p in needed if p.default is p.empty and p.name in MADE}
            if all(p.default is not p.empty or p.name in MADE for p in needed):
                found[f"{name}()"] = repr(getattr(kind, name)(**told))
        elif inspect.isfunction(member):
            found[f"{name}()"] = _defaults(member)
        elif not name.startswith("__") and isinstance(member, PLAIN | tuple) and name not in found:
            found[name] = _said(member)
    return found


@case("defaults, presets and constants")
def _() -> object:
    packages = ("attacks", "data", "defenses", "experiments", "federated", "measure", "models", "optimizers", "servers")
    modules = [
        f"reprolib.{info.name}" if info.name == "settings" else info.name
        for info in pkgutil.walk_packages(reprolib.__path__, "reprolib.")
        if info.name.split(".")[1] in packages and not info.name.startswith("reprolib.experiments.measures")
    ]
    return {name: found for name in modules if (found := _of_a_module(name))}
