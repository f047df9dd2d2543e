"""Victims that ship trained: a recipe each, `reprolib train` to repeat it, `victim` to open the result."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from reprolib import clone, data, models
from reprolib.atomic import write_atomic
from reprolib.experiments import utility
from reprolib.federated.streams import generator
from reprolib.measure import intervals

FOLDER = clone.shipped() / "checkpoints"
CIFAR10 = ((0.49147, 0.48226, 0.44677), (0.24703, 0.24349, 0.26159))
"""Mean and standard deviation of CIFAR-10's training images, as the official code of Inverting Gradients has them."""


@dataclass(frozen=True)
class Recipe:
    """How a shipped victim was trained: SGD with Nesterov momentum, the learning rate on one cycle.

    model, options: as for `models.build`, the inputs normalised as `normalize`. The rate rises to `learning_rate` over
    the first fifth of all steps and falls to zero over the rest, linearly. Images are shifted by up to 4 pixels and
    mirrored at random where `augment` says so. data: a set of the data root with a train and a test split.
    """

    model: str
    epochs: int
    learning_rate: float
    options: Mapping[str, object] = field(default_factory=dict)
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = True
    data: str = "cifar10"
    normalize: tuple[tuple[float, ...], tuple[float, ...]] = CIFAR10
    seed: int = 0


RECIPES: dict[str, Recipe] = {
    "lenet-cifar10": Recipe("lenet", 30, 0.02, weight_decay=0.0, augment=False),
    "convnet16-cifar10": Recipe("convnet", 2, 0.1, {"width": 16}),
    "resnet20-cifar10": Recipe("resnet20", 8, 0.4, {"width": 16}),
    "resnetbn8-cifar10": Recipe("resnetbn8", 8, 0.4, {"width": 16}),
    "convnet8-cifar10": Recipe("convnet8", 6, 0.1),
}


def victim(name: str, folder: Path | None = None) -> nn.Module:
    """The shipped victim of that name, in evaluation mode.

    Errors: ValueError for an unknown name or a checkpoint that its card does not describe, FileNotFoundError for one
    that is not there, with the command that makes it.
    """
    recipe = _recipe(name)
    card = (folder or FOLDER) / f"{name}.json"
    if not card.is_file():
        raise FileNotFoundError(
            f"checkpoint {name!r} is missing in {folder or FOLDER}: `reprolib train {name}` trains it"
        )
    classes, shape = _size(recipe)
    return models.build(
        recipe.model,
        classes,
        shape,
        recipe.seed,
        checkpoint=card.with_suffix(".safetensors"),
        normalize=recipe.normalize,
        **recipe.options,
    )


def train(
    name: str,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    progress: bool | None = None,
) -> dict:
    """Train the victim as its recipe says and write its checkpoint; the card.

    root: the data root. Killed at any moment, the next call goes on after the last finished epoch. The state that it
    needs for that lies beside the checkpoint and is deleted at the end. progress: True shows a bar, False none, None
    one in a terminal.
    Errors: ValueError for an unknown name, FileNotFoundError where the recipe's images are not under the data root,
    RuntimeError for a loss that is not finite.
    """
    recipe, folder = _recipe(name), folder or FOLDER
    fit, test = (data.load(recipe.data, split, root=root) for split in ("train", "test"))
    device = torch.device(device)
    model = models.build(
        recipe.model, fit.num_classes, fit.image_shape, recipe.seed, normalize=recipe.normalize, **recipe.options
    )
    # two cores train ResNet-20 one and a half times faster in this layout
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    steps = len(fit) // recipe.batch_size
    total = steps * recipe.epochs
    cycle = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cycle(step, total))
    images, labels = fit.images.to(device), fit.labels.to(device)
    model.train()

    def step(batch: Tensor, number: int, random: torch.Generator) -> float:
        x = images[batch]
        loss = F.cross_entropy(model(augmented(x, random) if recipe.augment else x), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        return loss.item()

    unfinished = folder / f".{name}.unfinished"
    seconds = run_epochs(
        step,
        {"model": model, "optimizer": optimizer, "schedule": cycle},
        recipe,
        fit,
        name=name,
        device=device,
        unfinished=unfinished,
        progress=progress,
    )
    model.eval()
    right = round(utility.accuracy(model, test) * len(test))
    interval = intervals.proportion(torch.arange(len(test)) < right)
    card = {
        "name": name,
        "recipe": asdict(recipe),
        "data": {"train": fit.source, "images": len(fit), "fingerprint": fit.fingerprint, "test": test.source},
        "test_accuracy": {"value": interval.value, "low": interval.low, "high": interval.high, "images": len(test)},
        "train_accuracy": utility.accuracy(model, fit),
        "seconds": round(seconds),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    models.save_checkpoint(model.cpu().to(memory_format=torch.contiguous_format), folder / f"{name}.safetensors", card)
    unfinished.unlink(missing_ok=True)
    return card


def run_epochs(
    step: Callable[[Tensor, int, torch.Generator], float],
    stateful: Mapping[str, Any],
    recipe: Any,
    images: data.ImageSet,
    *,
    name: str,
    device: torch.device,
    unfinished: Path | None = None,
    progress: bool | None = None,
) -> float:
    """Take a training's steps, epoch by epoch, and keep its state after each; the seconds it took in all.

    step(batch, number, random): one step on the images of these indices, the number counting from the epoch's first;
    its loss. stateful: all that changes with the steps, by name. recipe: a dataclass with `epochs`, `batch_size` and
    `seed`. unfinished: the file of the state; None keeps none. It is read again only by the same recipe on the same
    images, and whoever has written the result deletes it.
    Errors: ValueError for fewer images than a batch, RuntimeError for a loss that is not finite.
    """
    steps = len(images) // recipe.batch_size
    if not steps:
        raise ValueError(f"{name}: {len(images)} images do not fill a batch of {recipe.batch_size}")
    identity = hashlib.sha256(f"{asdict(recipe)} {images.fingerprint}".encode()).hexdigest()
    done, seconds = (0, 0.0) if unfinished is None else _resume(unfinished, identity, stateful)
    began = time.perf_counter() - seconds
    for epoch in range(done, recipe.epochs):
        random = generator(recipe.seed, epoch)
        order = torch.randperm(len(images), generator=random)[: steps * recipe.batch_size].view(steps, -1)
        bar = tqdm(
            order, desc=f"{name}, epoch {epoch + 1} of {recipe.epochs}", disable=_silent(progress), mininterval=0.5
        )
        losses = 0.0
        for number, batch in enumerate(bar):
            loss = step(batch.to(device), number, random)
            if not math.isfinite(loss):
                raise RuntimeError(f"the loss of {name!r} is {loss} in epoch {epoch + 1}: lower its rate")
            losses += loss
            bar.set_postfix(loss=f"{losses / (number + 1):.3f}", refresh=False)
        if unfinished is not None:
            state = {part: thing.state_dict() for part, thing in stateful.items()}
            written, so_far = io.BytesIO(), time.perf_counter() - began
            torch.save({"identity": identity, "epochs": epoch + 1, "seconds": so_far, **state}, written)
            write_atomic(unfinished, written.getvalue())
    return time.perf_counter() - began


def augmented(images: Tensor, random: torch.Generator, reach: int = 4) -> Tensor:
    """Every image [N, C, H, W] shifted by up to `reach` pixels, the border black, and mirrored in half the cases."""
    count, _, height, width = images.shape
    shifts = torch.randint(2 * reach + 1, (2, count, 1), generator=random)
    mirror = torch.rand(count, 1, generator=random) < 0.5
    rows = shifts[0] + torch.arange(height)
    across = torch.arange(width).expand(count, width)
    columns = shifts[1] + torch.where(mirror, across.flip(1), across)
    padded = F.pad(images, [reach] * 4)
    device = images.device
    which = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None].to(device), columns[:, None].to(device)].permute(
        0, 3, 1, 2
    )


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"unknown checkpoint {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]


def _size(recipe: Recipe) -> tuple[int, tuple[int, int, int]]:
    paper_set = data.PAPER_SETS[recipe.data]
    return paper_set.num_classes, paper_set.image_shape  # type: ignore[return-value]  # these sets have their number of classes


def _cycle(step: int, total: int) -> float:
    rising = total / 5
    return min(1.0, (step + 1) / rising, (total - step) / (total - rising))


def _silent(progress: bool | None) -> bool:
    return not (sys.stderr.isatty() if progress is None else progress)


def _resume(path: Path, identity: str, stateful: Mapping[str, object]) -> tuple[int, float]:
    """Load what an earlier run of the same recipe on the same images had reached: epochs and seconds.

    A damaged state is as good as none, with a warning.
    """
    if not path.is_file():
        return 0, 0.0
    fresh = copy.deepcopy({part: thing.state_dict() for part, thing in stateful.items()})  # type: ignore[attr-defined]  # modules, optimisers, schedules
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["identity"] != identity:
            return 0, 0.0
        done, seconds = state["epochs"], float(state["seconds"])
        if not isinstance(done, int) or done < 1 or not 0 <= seconds < math.inf:
            raise ValueError(f"it holds {done!r} epochs in {seconds} seconds")
        for part, thing in stateful.items():
            thing.load_state_dict(state[part])  # type: ignore[attr-defined]
        return done, seconds
    except Exception as error:  # torch, zip and pickle each fail in their own ways on a damaged file
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"{path} is damaged ({why}): the training starts anew", stacklevel=3)
        for part, thing in stateful.items():
            thing.load_state_dict(fresh[part])  # type: ignore[attr-defined]
        return 0, 0.0
