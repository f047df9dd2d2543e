"""Victims and generators, each in a file of its own: `build` them by name, or `adapt` anybody's network.

Here stands what a network is and what its loss is. How it is trained, and on what, stands in `experiments`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path

import torch
from safetensors.torch import load as read_safetensors
from safetensors.torch import save as write_safetensors
from torch import Tensor, nn

from reprolib.atomic import write_atomic
from reprolib.models.adapt import adapt
from reprolib.models.bottleneck import draw_noise, leave_out_penalty, no_noise, noise_shapes, penalty
from reprolib.models.cnn import CNN
from reprolib.models.convbig import ConvBig
from reprolib.models.convnet import ConvNet
from reprolib.models.convnet8 import ConvNet8
from reprolib.models.dcgan import DCGAN
from reprolib.models.decoder import Decoder
from reprolib.models.dlg_resnet import DLGResNet20, DLGResNet56
from reprolib.models.imagenet_resnet import ImageNetResNet18, ImageNetResNet50
from reprolib.models.latent import VAE, WGAN
from reprolib.models.lenet import LeNet
from reprolib.models.lenet5 import LeNet5
from reprolib.models.mlp import MLP
from reprolib.models.resnet import ResNet18, ResNet20, ResNet32, ResNetBN8
from reprolib.models.victim import Normalize, Victim, checked_normalize
from reprolib.models.victims import Victims, digest

__all__ = [
    "ARCHITECTURES",
    "GENERATORS",
    "Normalize",
    "Victim",
    "Victims",
    "adapt",
    "build",
    "build_generator",
    "card",
    "draw_noise",
    "drawn",
    "fingerprint",
    "leave_out_penalty",
    "no_noise",
    "noise_shapes",
    "penalty",
    "penultimate",
    "save_checkpoint",
    "trunk_fingerprint",
]

ARCHITECTURES: dict[str, Callable[..., Victim]] = {
    "lenet": LeNet,
    "mlp": MLP,
    "convnet": ConvNet,
    "convnet8": ConvNet8,
    "resnet20": ResNet20,
    "resnet32": ResNet32,
    "resnet18": ResNet18,
    "resnetbn8": ResNetBN8,
    "imagenet-resnet18": ImageNetResNet18,
    "imagenet-resnet50": ImageNetResNet50,
    "dlg-resnet20": DLGResNet20,
    "dlg-resnet56": DLGResNet56,
    "convbig": ConvBig,
    "lenet5": LeNet5,
    "cnn": CNN,
}

GENERATORS: dict[str, Callable[..., nn.Module]] = {"dcgan": DCGAN, "decoder": Decoder, "wgan": WGAN, "vae": VAE}
"""What attacks with a learned prior bring: features or latent vectors to images."""


def build(
    name: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    seed: int,
    checkpoint: str | Path | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    **options: object,
) -> Victim:
    """The named architecture in eval mode, its weights drawn on the CPU from `seed` or read from `checkpoint`.

    image_shape: (C, H, W). normalize: (mean, std), a number a channel, applied as the model's first layer; None leaves
    [0, 1]. options: the architecture's own. The result carries `architecture` (all of these arguments but seed and
    checkpoint), `image_shape` and `num_classes`, and its last layer is the `nn.Linear` called `head`. The global
    random state is left as it was.
    Raises ValueError for unknown names, options and values, impossible sizes, and any checkpoint that is not exactly
    what its card says; FileNotFoundError for a missing one.

    >>> from reprolib import models
    >>> victim = models.build("lenet", num_classes=10, image_shape=(3, 32, 32), seed=0)
    >>> sum(parameter.numel() for parameter in victim.parameters())
    15826
    """
    if not isinstance(num_classes, Integral) or num_classes < 2:
        raise ValueError(f"num_classes={num_classes!r}: expected an integer of at least 2")
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed!r}: expected an integer in [0, 2^64)")
    num_classes, image_shape = int(num_classes), _checked_shape(image_shape)
    known = _options("model", name, ARCHITECTURES, options, ("normalize",))
    normalize = None if normalize is None else checked_normalize(normalize, image_shape[0])
    first = nn.Identity() if normalize is None else Normalize(*normalize)
    model = drawn(lambda: ARCHITECTURES[name](num_classes, image_shape, first, **options), seed)
    model.architecture = {"name": name, "num_classes": num_classes, "image_shape": image_shape, **known, **options}
    model.architecture["normalize"] = None if normalize is None else tuple(tuple(part) for part in normalize)
    if checkpoint is not None:
        _load_checkpoint(model, Path(checkpoint))
    return model.eval()


def build_generator(
    name: str, image_shape: tuple[int, int, int], seed: int, checkpoint: str | Path | None = None, **options: object
) -> nn.Module:
    """The named generator in eval mode and without gradients, drawn from `seed` or read from `checkpoint`.

    image_shape: (C, H, W) of the images that it gives, in [0, 1]. options: the generator's own. The result carries
    `architecture` and `image_shape`. Raises what `build` raises.
    """
    image_shape = _checked_shape(image_shape)
    known = _options("generator", name, GENERATORS, options, ())
    model = drawn(lambda: GENERATORS[name](image_shape, **options), seed)
    model.image_shape = image_shape
    model.architecture = {"name": name, "image_shape": image_shape, **known, **options}
    if checkpoint is not None:
        _load_checkpoint(model, Path(checkpoint))
    return model.eval().requires_grad_(False)


def drawn(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `make` makes on the CPU, its weights drawn from `seed`; the global random state is left as it was."""
    # the layers' own initialisers draw from torch's global generator: lend it this seed and give it back
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return make()


def fingerprint(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 over names, shapes, types and values of all parameters and buffers."""
    return digest(model.state_dict())


def trunk_fingerprint(model: nn.Module) -> str:
    """`fingerprint` of all but the head: what a decoder of the features that enter the head belongs to."""
    return digest({name: value for name, value in model.state_dict().items() if not name.startswith("head.")})


def check_inverse(network: nn.Module, victim: nn.Module | Victims, image_shape: Sequence[int], what: str) -> None:
    """Raise ValueError unless `network` was made for this victim's head, trunk and images; `what` is its name there."""
    victims = Victims.of(victim)
    if victims.stacked is not None:
        raise ValueError(f"a {what} belongs to one trunk, but these are several victims: attack one network at a time")
    victim = victims.skeleton
    if network.features != victim.head.in_features:
        raise ValueError(
            f"{what} takes {network.features} features, the model's head has {victim.head.in_features}: it was made "
            "for another victim, or another width or pooling"
        )
    if tuple(network.image_shape) != tuple(image_shape):
        raise ValueError(f"{what} gives images of {tuple(network.image_shape)}, the update's are {tuple(image_shape)}")
    if network.trunk and network.trunk != (trunk := trunk_fingerprint(victim)):
        raise ValueError(
            f"{what} was trained for the trunk {network.trunk}, this model's is {trunk}: a {what} inverts one state "
            "of the weights; train another"
        )


def penultimate(model: nn.Module, images: Tensor) -> Tensor:
    """What enters the model's head for images [N, C, H, W]: [N, F], without gradient and on the images' device."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for part in images.split(500):
                model(part.to(device))
    finally:
        handle.remove()
    return torch.cat(seen).to(images.device)


def save_checkpoint(model: nn.Module, path: str | Path, card: dict) -> None:
    """Write the weights as safetensors to `path` and the card beside them, `path` with the ending .json.

    The card holds what the caller knows (data, recipe, accuracy) and, added here, the architecture and the checksum.
    Each file appears whole or not at all; weights without their own card are refused by `build`.
    Raises ValueError for another ending than .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path={str(path)!r}: expected the ending .safetensors")
    weights = write_safetensors({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
    card = {
        **card,
        "architecture": model.architecture,
        "bytes": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(card, indent=2) + "\n"
    write_atomic(path, weights)
    write_atomic(path.with_suffix(".json"), text.encode())


def card(path: str | Path) -> dict:
    """The card beside the weights at `path`. Errors: FileNotFoundError where one is missing, ValueError if damaged."""
    path = Path(path)
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise FileNotFoundError(f"checkpoint {path.name!r}: {file} is missing (weights and card belong together)")
    try:
        found = json.loads(beside.read_text())
        return {
            **found,
            "bytes": found["bytes"],
            "sha256": found["sha256"],
            "architecture": dict(found["architecture"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"checkpoint card {beside} is damaged ({error!r}): expected JSON with architecture, bytes and sha256"
        ) from error


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(
            f"checkpoint={str(path)!r}: expected a .safetensors file (a pickle may run code, so none is opened)"
        )
    theirs = card(path)
    size, checksum, theirs = theirs["bytes"], theirs["sha256"], theirs["architecture"]
    weights = path.read_bytes()
    if len(weights) != size:
        raise ValueError(f"checkpoint {path} is truncated or altered: {len(weights)} bytes, its card says {size}")
    if hashlib.sha256(weights).hexdigest() != checksum:
        raise ValueError(f"checkpoint {path} was altered: its SHA-256 is not the one on its card")
    # How weights were drawn does not matter once they are read; JSON has lists for tuples.
    ours = json.loads(json.dumps(model.architecture))
    differing = [key for key in {**ours, **theirs} if key != "init" and ours.get(key) != theirs.get(key)]
    if differing:
        raise ValueError(
            f"checkpoint {path.name!r} is of another architecture: "
            + ", ".join(f"{key} is {theirs.get(key)!r}, asked for {ours.get(key)!r}" for key in differing)
        )
    try:
        tensors = read_safetensors(weights)
        if nonsense := _nonsense(tensors, model.state_dict()):
            raise ValueError(nonsense)
        model.load_state_dict(tensors)
    except Exception as error:  # safetensors has its own exception; load_state_dict raises RuntimeError
        raise ValueError(f"checkpoint {path} does not hold the weights of its architecture: {error}") from error


def _nonsense(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str:
    """What no training leaves in weights, of the first such tensor; "" for none. like: the model's own tensors."""
    for name, value in tensors.items():
        if name in like and value.dtype != like[name].dtype:
            return f"{name!r} holds {value.dtype}, the model's is {like[name].dtype}"
        if not value.isfinite().all():
            return f"{name!r} holds NaN or infinite values"
        # variances of batch norm, and what `Normalize` divides by
        if name.endswith("running_var") and (value < 0).any() or name.endswith(".std") and (value <= 0).any():
            return f"{name!r} holds variances or deviations that are not positive"
        if name.startswith("normalize.") and name in like and not torch.equal(value, like[name]):
            return f"{name!r} is not the normalisation that its card names"
    return ""


def _options(
    kind: str,
    name: str,
    known: Mapping[str, Callable[..., nn.Module]],
    asked: Mapping[str, object],
    more: Sequence[str],
) -> dict[str, object]:
    """The architecture's keyword-only options with their defaults; ValueError for an unknown name or option."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}")
    parameters = inspect.signature(known[name]).parameters.values()
    options = {
        parameter.name: parameter.default for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY
    }
    for option in asked:
        if option not in options:
            raise ValueError(f"unknown option {option!r} of {name!r}: expected one of {', '.join([*more, *options])}")
    return options


def _checked_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    if len(shape) != 3 or not all(isinstance(size, Integral) and size >= 1 for size in shape):
        raise ValueError(f"image_shape={image_shape!r}: expected (channels, height, width), each at least 1")
    return tuple(map(int, shape))  # type: ignore[return-value]  # checked above: three of them
