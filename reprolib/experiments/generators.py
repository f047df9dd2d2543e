"""Learned priors: how decoders of features, WGANs and VAEs are trained, and the ones that ship."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import save_image

from reprolib import data, models
from reprolib.atomic import write_atomic
from reprolib.data import ImageSet
from reprolib.experiments import training
from reprolib.federated import client
from reprolib.federated.closed_form import rows_of_labels
from reprolib.federated.streams import generator
from reprolib.measure import intervals, metrics
from reprolib.models.latent import Critic

SEARCH_STEPS = 300
"""Adam's steps of `nearest`. On 48 test images 300 more lower the error by 0.01 % for the shipped VAE, which starts at
its encoder's answer, and by 12 % for the shipped WGAN: its floor is an upper bound."""


@dataclass(frozen=True)
class DecoderRecipe:
    """How a decoder learns to undo a victim's trunk: Adam on the squared error, the rate falling to zero as a cosine.

    victim: the arguments of `models.build` that make the trunk whose features it reads, its head of no importance; or
    checkpoint: a shipped one. mode: batch norm of the victim while its features are read, "eval" or "train" (FGLA's
    released code). decoder: options of `models.build_generator`. Source: Xue et al. 2023, released code, with a rate
    and a schedule for short budgets of this book's (theirs: a constant 1e-4, 30 epochs, batch 24).
    """

    epochs: int
    victim: Mapping[str, Any] = field(default_factory=lambda: {"name": "convnet8", "seed": 0})
    checkpoint: str | None = None
    mode: str = "eval"
    decoder: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3
    batch_size: int = 128
    data: str = "cifar10"
    seed: int = 1225


@dataclass(frozen=True)
class VAERecipe:
    """How a VAE is trained: Adam on `reconstruction_weight` times the squared error in [-1, 1], plus the KL divergence.

    The rate falls to zero as a cosine. Source: Kingma and Welling 2014; the numbers are this book's.
    """

    epochs: int
    latent_dim: int = 64
    width: int = 32
    reconstruction_weight: float = 2.0
    learning_rate: float = 2e-3
    batch_size: int = 128
    data: str = "cifar10"
    seed: int = 0


@dataclass(frozen=True)
class WGANRecipe:
    """How a WGAN is trained: Adam (0.5, 0.999), gradient penalty, a step of the generator every `critic_steps` batches.

    Source: Li et al. 2022, released notebook: width 128, rate 1e-4, 100 epochs.
    """

    epochs: int
    latent_dim: int = 128
    width: int = 128
    critic_steps: int = 5
    penalty: float = 10.0
    learning_rate: float = 1e-4
    batch_size: int = 64
    data: str = "cifar10"
    seed: int = 0


GeneratorRecipe = DecoderRecipe | VAERecipe | WGANRecipe

RECIPES: dict[str, GeneratorRecipe] = {
    "decoder-cifar10": DecoderRecipe(4),
    "decoder-trained-cifar10": DecoderRecipe(2, checkpoint="convnet8-cifar10"),
    "decoder-pooled-cifar10": DecoderRecipe(
        2, victim={"name": "convnet8", "seed": 0, "pooled": True}, decoder={"pooled": True}
    ),
    "vae-cifar10": VAERecipe(12),
    "wgan-cifar10": WGANRecipe(12, width=32, learning_rate=2e-4),
}


def recipe_of(name: str) -> GeneratorRecipe:
    """The recipe called KIND-DATA; a KIND that is known for CIFAR-10 is one for any set of the project.

    Errors: ValueError for an unknown kind or set.
    """
    kind, _, images = name.rpartition("-")
    kinds = [known.removesuffix("-cifar10") for known in RECIPES]
    if kind not in kinds or images not in data.NAMES:
        raise ValueError(
            f"unknown checkpoint {name!r}: expected a victim ({', '.join(training.RECIPES)}) or a generator KIND-DATA, "
            f"the kind one of {', '.join(kinds)}, the data one of {', '.join(data.NAMES)}"
        )
    return replace(RECIPES[f"{kind}-cifar10"], data=images)


def victim_of(recipe: DecoderRecipe, num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """The victim whose trunk the decoder undoes, in evaluation mode.

    Errors: ValueError for a shipped victim of other images.
    """
    if recipe.checkpoint is not None:
        victim = training.victim(recipe.checkpoint)
        if tuple(victim.image_shape) != tuple(image_shape):
            raise ValueError(
                f"{recipe.checkpoint!r} was trained on images of {tuple(victim.image_shape)}, {recipe.data!r} has "
                f"{tuple(image_shape)}: a decoder of its trunk needs images of that shape"
            )
        return victim
    return models.build(num_classes=num_classes, image_shape=image_shape, **recipe.victim)


def fit_decoder(
    recipe: DecoderRecipe,
    victim: nn.Module,
    images: ImageSet,
    device: torch.device | str = "cpu",
    **running: Any,
) -> nn.Module:
    """A decoder of the victim's features, trained on these public images.

    running: name, unfinished and progress of `training.run_epochs`, with its errors.
    Errors: ValueError for a decoder whose input is not the size of the victim's features.
    """
    device = torch.device(device)
    origin = {"trunk": models.trunk_fingerprint(victim), "data": images.name}
    model = models.build_generator("decoder", images.image_shape, recipe.seed, **origin, **recipe.decoder)
    if model.features != victim.head.in_features:
        raise ValueError(
            f"decoder={dict(recipe.decoder)!r} reads {model.features} features, the victim's head "
            f"{victim.head.in_features}: give channels and size of the victim's feature map"
        )
    if recipe.mode not in get_args(client.Mode):
        raise ValueError(f"mode={recipe.mode!r}: expected eval or train")
    worker = client.worker(victim, recipe.mode).to(device)
    model = model.to(device, memory_format=torch.channels_last).requires_grad_(True).train()
    optimizer, schedule = _adam(model, recipe, len(images))
    pixels = images.images.to(device)
    # a drawn trunk's features are a hundredth of what the decoder's layers are made for
    model.scale.copy_(models.penultimate(worker, pixels[: recipe.batch_size]).square().mean().sqrt())

    def step(batch: Tensor, number: int, random: torch.Generator) -> float:
        x = pixels[batch]
        loss = F.mse_loss(model(models.penultimate(worker, x)), x)
        _stepped(optimizer, loss)
        schedule.step()
        return loss.item()

    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    return _finished(model, step, stateful, recipe, images, device, running)


def fit_vae(
    recipe: VAERecipe,
    images: ImageSet,
    device: torch.device | str = "cpu",
    **running: Any,
) -> nn.Module:
    """A VAE of these public images. running: as `fit_decoder`'s."""
    device = torch.device(device)
    sizes = {"latent_dim": recipe.latent_dim, "width": recipe.width, "data": images.name}
    model = models.build_generator("vae", images.image_shape, recipe.seed, **sizes)
    model = model.to(device, memory_format=torch.channels_last).requires_grad_(True).train()
    optimizer, schedule = _adam(model, recipe, len(images))
    pixels = images.images.to(device)

    def step(batch: Tensor, number: int, random: torch.Generator) -> float:
        x = pixels[batch]
        mean, log_variance = model.encode(x)
        noise = torch.randn(mean.shape, generator=random).to(device)
        restored = model(mean + (log_variance / 2).exp() * noise)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        error = 4 * (restored - x).square().flatten(1).sum(1)  # four times: a range of 2, as images in [-1, 1] have
        loss = (recipe.reconstruction_weight * error + divergence).mean()
        _stepped(optimizer, loss)
        schedule.step()
        return loss.item()

    stateful = {"model": model, "optimizer": optimizer, "schedule": schedule}
    return _finished(model, step, stateful, recipe, images, device, running)


def fit_wgan(
    recipe: WGANRecipe,
    images: ImageSet,
    device: torch.device | str = "cpu",
    **running: Any,
) -> nn.Module:
    """A WGAN's generator for these public images. running: as `fit_decoder`'s."""
    device = torch.device(device)
    sizes = {"latent_dim": recipe.latent_dim, "width": recipe.width, "data": images.name}
    model = models.build_generator("wgan", images.image_shape, recipe.seed, **sizes)
    critic = models.drawn(lambda: Critic(images.image_shape, recipe.width), recipe.seed + 1)
    model, critic = (part.to(device, memory_format=torch.channels_last).train() for part in (model, critic))
    model.requires_grad_(True)
    make, judge = (
        torch.optim.Adam(part.parameters(), recipe.learning_rate, betas=(0.5, 0.999)) for part in (model, critic)
    )
    pixels = images.images.to(device)

    def step(batch: Tensor, number: int, random: torch.Generator) -> float:
        x = pixels[batch]
        latent = torch.randn(len(x), recipe.latent_dim, generator=random).to(device)
        with torch.no_grad():
            made = model(latent)
        mixed = torch.rand(len(x), 1, 1, 1, generator=random).to(device)
        between = (mixed * x + (1 - mixed) * made).requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        # slopes are per unit of an image in [-1, 1], as in the paper
        penalty = (slope.flatten(1).norm(dim=1) / 2 - 1).square().mean()
        distance = critic(x).mean() - critic(made).mean()
        _stepped(judge, recipe.penalty * penalty - distance)
        if (number + 1) % recipe.critic_steps == 0:
            _stepped(make, -critic(model(latent)).mean())
        return distance.item()

    stateful = {"model": model, "critic": critic, "make": make, "judge": judge}
    return _finished(model, step, stateful, recipe, images, device, running)


def fit_rows(
    victim: nn.Module,
    public: ImageSet,
    defense: Any,
    *,
    name: str = "dcgan",
    batch: int = 1,
    epochs: int = 10,
    minibatch: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> nn.Module:
    """A generator that turns the victim's compressed rows gW[y] into images: Adam on the binary cross-entropy.

    public: images that the attacker owns; they get random labels that differ within a batch, since the head is
    untrained, and are shared once, `batch` at a time, under the defense. name, options: for `models.build_generator`.
    In evaluation mode and without gradients, the victim's trunk noted in it.
    Errors: ValueError for batches of more images than classes. Source: Yang et al. 2023, released code.
    """
    if batch > victim.num_classes:
        raise ValueError(f"batch={batch} with different labels: the victim has {victim.num_classes} classes")
    trunk = models.trunk_fingerprint(victim)
    model = models.build_generator(name, public.image_shape, seed, trunk=trunk, **options).requires_grad_(True).train()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    parameter = next(victim.parameters())
    model.to(parameter)
    order = torch.randperm(len(public), generator=generator(seed, 0))
    order, rows = order[: len(order) // batch * batch], []
    for number, part in enumerate(order.view(-1, batch).split(16)):  # a head's gradients are large
        random = generator(seed, number, 1)
        given = torch.stack([torch.randperm(victim.num_classes, generator=random)[:batch] for _ in part])
        images, given = public.images[part].to(parameter), given.to(parameter.device)
        own = int(torch.randint(2**31, (), generator=random))
        update = client.share(victim, images, given, defense=defense, seed=own)
        rows.append(rows_of_labels(update.gradients["head.weight"], given).flatten(0, 1))
    rows, images = torch.cat(rows), public.images[order]  # type: ignore[assignment]
    for epoch in range(epochs):
        for index in torch.randperm(len(rows), generator=generator(seed, epoch, 2)).split(minibatch):
            loss = F.binary_cross_entropy(model(rows[index.to(rows.device)]), images[index].to(parameter))  # type: ignore[attr-defined]  # a tensor by now
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def shipped(name: str, folder: Path | None = None) -> nn.Module:
    """The generator that ships under this name, in evaluation mode and without gradients.

    Errors: ValueError for an unknown name, a checkpoint of another set than its name says and one that its card does
    not describe, FileNotFoundError for one that is not there, with the command that makes it.
    """
    folder, recipe = folder or training.FOLDER, recipe_of(name)
    weights = folder / f"{name}.safetensors"
    if not weights.with_suffix(".json").is_file():
        raise FileNotFoundError(f"checkpoint {name!r} is missing in {folder}: `reprolib train {name}` trains it")
    options = dict(models.card(weights)["architecture"])
    if options.get("data") != recipe.data:
        raise ValueError(
            f"checkpoint {name!r} was trained on {options.get('data')!r}, its name says {recipe.data!r}: "
            f"`reprolib train {name}` trains it again"
        )
    return models.build_generator(options.pop("name"), tuple(options.pop("image_shape")), 0, weights, **options)


def train(
    name: str,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    progress: bool | None = None,
) -> dict:
    """Train the generator as its recipe says on the set's train images and write its checkpoint; the card.

    Killed at any moment, the next call goes on after the last finished epoch. The card's error is over test images: a
    decoder's of their true features, a prior's of the nearest image that it can give (`nearest`).
    Errors: ValueError for an unknown name and for images that are both public and private, FileNotFoundError where the
    images are not under the data root. Beside the weights and the card, NAME.png shows samples: a prior's, or
    what a decoder makes of the features of the offline photographs, which stand above.
    """
    recipe, folder = recipe_of(name), folder or training.FOLDER
    public, private = (data.load(recipe.data, split, root=root) for split in ("train", "test"))
    check_disjoint(public, private)
    given = {"name": name, "unfinished": folder / f".{name}.unfinished", "progress": progress}
    x = private.images[:1000]
    if isinstance(recipe, DecoderRecipe):
        victim = victim_of(recipe, public.num_classes, public.image_shape)
        model = fit_decoder(recipe, victim, public, device, **given)
        worker = client.worker(victim, recipe.mode)
        with torch.no_grad():
            found = torch.cat([model(models.penultimate(worker, part)) for part in x.split(recipe.batch_size)])
        shown = decoded_photographs(model, worker)
    else:
        model = (fit_vae if isinstance(recipe, VAERecipe) else fit_wgan)(recipe, public, device, **given)
        x = x[:128]
        found = nearest(model, x)
        shown = samples(model, 16)
    error = intervals.mean(metrics.psnr(found, x))
    card = {
        "name": name,
        "recipe": asdict(recipe),
        "data": {
            "train": public.source,
            "images": len(public),
            "fingerprint": public.fingerprint,
            "test": private.source,
        },
        "test_psnr": {"value": error.value, "low": error.low, "high": error.high, "images": len(x)},
        "samples": f"{name}.png",
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    write_atomic(folder / f"{name}.png", sheet(shown))
    models.save_checkpoint(model, folder / f"{name}.safetensors", card)
    given["unfinished"].unlink(missing_ok=True)  # type: ignore[attr-defined]  # a path
    return card


def nearest(prior: nn.Module, images: Tensor, steps: int = SEARCH_STEPS) -> Tensor:
    """The images [N, C, H, W] that a prior can give nearest to these: Adam on the latent vectors, from zero.

    The floor of every attack that searches the prior's latent space. A VAE starts at what its encoder says.
    """
    start = prior.encode(images)[0] if hasattr(prior, "encode") else torch.zeros(len(images), prior.latent_dim)
    latent = start.detach().to(images).requires_grad_(True)
    optimizer = torch.optim.Adam([latent], 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        _stepped(optimizer, (prior(latent) - images).square().flatten(1).mean(1).sum())
        schedule.step()
    with torch.no_grad():
        return prior(latent)


def samples(prior: nn.Module, count: int, seed: int = 0) -> Tensor:
    """Images [count, C, H, W] of latent vectors drawn from the prior's standard normal distribution."""
    device = next(prior.parameters()).device
    with torch.no_grad():
        return prior(torch.randn(count, prior.latent_dim, generator=generator(seed, 0)).to(device))


def decoded_photographs(decoder: nn.Module, victim: nn.Module) -> Tensor:
    """Eight offline photographs in the size of the victim's images, and what the decoder makes of their features."""
    channels, *sides = victim.image_shape
    x = F.interpolate(data.load("photos", "test").images[:8], sides, mode="bilinear", antialias=True)
    x = x if channels == 3 else x.mean(1, keepdim=True)
    with torch.no_grad():
        return torch.cat([x, decoder(models.penultimate(victim, x))])


def sheet(images: Tensor) -> bytes:
    """A PNG of images [N, C, H, W] in [0, 1], eight in a row, every pixel twice as wide and as high."""
    written = io.BytesIO()
    save_image(F.interpolate(images, scale_factor=2.0), written, format="png", nrow=8, padding=0)
    return written.getvalue()


def check_disjoint(public: ImageSet, private: ImageSet) -> None:
    """Refuse a prior's training images among which a victim's image is. Raises ValueError with their number."""

    def digest(image: Tensor) -> bytes:
        return hashlib.sha256(image.numpy().tobytes()).digest()

    known = {digest(image) for image in public.images}  # their pixels would take as much memory as the set again
    both = sum(digest(image) in known for image in private.images)
    if both:
        raise ValueError(
            f"{both} of the {len(private)} private images of {private.name!r} are also among the public ones: a prior "
            "that was trained on its victims proves nothing; take them out"
        )


def _adam(model: nn.Module, recipe: Any, images: int) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    total = recipe.epochs * (images // recipe.batch_size)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * min(1.0, step / max(1, total)))) / 2
    )


def _stepped(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _finished(
    model: nn.Module,
    step: Any,
    stateful: Mapping[str, Any],
    recipe: GeneratorRecipe,
    images: ImageSet,
    device: torch.device,
    running: Mapping[str, Any],
) -> nn.Module:
    """The model after all its epochs, on the CPU, in evaluation mode and without gradients."""
    name = running.get("name", model.architecture["name"])
    training.run_epochs(step, stateful, recipe, images, device=device, **{**running, "name": name})
    return model.cpu().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
