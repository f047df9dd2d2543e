"""Experiments of the chapter on GRNN: attacks on its victims with budgets alike, null controls, a picture growing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from reprolib import models
from reprolib.attacks.dlg import DLG
from reprolib.attacks.reconstruction import Reconstruction, join, keep_better
from reprolib.data import ImageSet
from reprolib.defenses import Defense
from reprolib.experiments import generators, utility
from reprolib.experiments.ggl import of_equal_length
from reprolib.experiments.networks import SHOWN, in_order, network_seed
from reprolib.federated import client
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate
from reprolib.measure import metrics
from reprolib.models import Victims
from reprolib.models.cnn import CNN
from reprolib.models.lenet5 import LeNet5
from reprolib.models.victim import Normalize

Architecture = Literal["lenet", "cnn"]
VICTIMS: dict[str, Callable[..., models.Victim]] = {"lenet": LeNet5, "cnn": partial(CNN, width=8)}
"""GRNN's LeNet, and FLEAK's network at a quarter of its width."""

Seen = Literal["gradient", "Gaussian of equal length", "gradient of another image"]
"""What is attacked: the client's gradient, or one of GGL's null controls, in which nothing of its image is left."""

TRAINED_AT = 0.1
"""Learning rate of victims that are trained before they are attacked: 300 steps bring the LeNet to a third right."""


@dataclass(frozen=True)
class Spending:
    """DLG that spends its budget: while gradients are left and no start has matched, the next one takes the rest.

    Of the starts the one of lowest objective wins, which the attacker sees; one below the attack's `restart_above` ends
    the search. gradients: of the victim, over all starts of a trial; an outer step that would exceed them is not begun.
    It is called with a pair (seed, trial) for each trial, and `history` is that of the first start.
    """

    attack: DLG
    gradients: int

    @property
    def iterations(self) -> int:
        return self.attack.iterations

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Sequence[tuple[int, int]],
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        began, victims, runs = time.perf_counter(), Victims.of(model), []
        for trial, (own, first) in enumerate(seed):
            network = victims.select(torch.tensor([trial]))
            alone = network, SharedUpdate.join([update.select(trial)], network)
            best, start = self.attack(*alone, [(own, first)], progress, snapshots), first
            while (left := self._outer_steps(best)) and best.objective.item() > self.attack.restart_above:
                start += 1
                best = keep_better(best, replace(self.attack, iterations=left)(*alone, [(own, start)], progress))
            runs.append(best)
        return join(runs, time.perf_counter() - began)

    def _outer_steps(self, spent: Reconstruction) -> int:
        """How many the next start may take; the one gradient before its first step is not counted."""
        left = self.gradients - int(spent.evaluations)
        return min(self.iterations, max(0, left) // self.attack.max_iter)


def victim(
    images: ImageSet,
    network: int,
    seed: int,
    device: torch.device,
    architecture: Architecture = "lenet",
    normalised: bool = False,
    trained_on: ImageSet | None = None,
    train_steps: int = 0,
) -> models.Victim:
    """The network of that number; normalised: its images enter in [-1, 1]. trained_on: for `train_steps` steps."""
    first = Normalize([0.5] * images.image_shape[0], [0.5] * images.image_shape[0]) if normalised else nn.Identity()
    own = network_seed(seed, network)
    made = models.drawn(lambda: VICTIMS[architecture](images.num_classes, images.image_shape, first), own)
    made = made.eval().to(device)
    if trained_on is not None and train_steps:
        utility.train(made, trained_on, train_steps, TRAINED_AT, seed=own)
    return made


def attack_drawn(
    attack: Any,
    images: ImageSet,
    trials: Sequence[int],
    seed: int,
    device: torch.device,
    batch: int = 1,
    defense: Defense | None = None,
    informed: bool = False,
    seen: Seen = "gradient",
    public: ImageSet | None = None,
    marks: Sequence[int] = (),
    architecture: Architecture = "lenet",
    normalised: bool = False,
    train_steps: int = 0,
) -> dict[str, Any]:
    """Attack a batch under a drawn network in each trial; the attacker is told no label.

    Trial t attacks the set's batch t under network t, whatever the attack, so that results compare in pairs. informed:
    the attacker knows the defense. seen: the null controls take another image of the class out of `public`, which
    `train_steps` trains on as well. marks: iterations after which the picture is looked at.
    Returns "scores", `metrics.score`'s rows with `network` before them; "path", a row a (mark, image): iteration, spent
    (gradients of the victim), trial, image, psnr; "accuracy" of each victim on `images` (NaN untrained); and the first
    images, "truth" and "shown" [n, C, H, W].
    Errors: ValueError for a null control or training without `public`, and where one of its images is attacked.
    """
    if public is None and (seen == "gradient of another image" or train_steps):
        raise ValueError(f"public=None, but seen={seen!r} with train_steps={train_steps} takes images of it")
    if public is not None:
        generators.check_disjoint(public, images)
    drawn, labels = images.batches(batch, max(trials) + 1, seed=seed)
    drawn, labels = drawn[list(trials)], labels[list(trials)]
    threat = ThreatModel(defense_known=informed)
    victims, updates, right = [], [], []
    for t, x, y in zip(trials, drawn, labels, strict=True):
        network = victim(images, t, seed, device, architecture, normalised, public, train_steps)
        right.append(utility.accuracy(network, images) if train_steps else float("nan"))
        random = generator(seed, t, 7)
        if seen == "gradient of another image":
            x = _of_the_same_classes(public, y, random)
        share = partial(client.share, network, threat=threat, defense=defense, seed=network_seed(seed, t))
        update = share(x[None].to(device), y[None].to(device))
        updates.append(of_equal_length(update, random) if seen == "Gaussian of equal length" else update)
        victims.append(network)
    found = _attack(attack, victims, updates, trials, seed, marks)
    scores = metrics.score(found, drawn, labels, images)
    scores["trial"] = scores["trial"].map(dict(enumerate(trials)))
    scores.insert(0, "network", scores["trial"])
    placed = in_order(found.images.cpu(), drawn).flatten(0, 1)
    return {
        "scores": scores,
        "path": _path(found.history, drawn, trials) if marks else pd.DataFrame(),
        "accuracy": right,
        "truth": drawn.flatten(0, 1)[:SHOWN],
        "shown": placed[:SHOWN],
    }


def _attack(
    attack: Any,
    victims: Sequence[models.Victim],
    updates: Sequence[SharedUpdate],
    trials: Sequence[int],
    seed: int,
    marks: Sequence[int],
) -> Any:
    """As `networks.attack_together`, each trial under its own number."""
    together = models.Victims.of(victims, 1)
    streams = [(network_seed(seed, trial), 0) for trial in trials]
    return attack(together, SharedUpdate.join(updates, together), seed=streams, snapshots=marks)


def _of_the_same_classes(public: ImageSet, labels: Tensor, random: torch.Generator) -> Tensor:
    """An image of `public` for each label [B]: [B, C, H, W]."""
    every = [public.images[public.labels == label] for label in labels]
    return torch.stack([own[torch.randint(len(own), (), generator=random)] for own in every])


def _path(history: Any, images: Tensor, trials: Sequence[int]) -> pd.DataFrame:
    rows = []
    for iteration, spent, found in zip(history.iterations, history.evaluations, history.images, strict=True):
        placed = in_order(found.clamp(0, 1).cpu(), images)
        psnr = metrics.psnr(placed.flatten(0, 1), images.flatten(0, 1)).double().view(images.shape[:2])
        for trial, own, cost in zip(trials, psnr, spent.tolist(), strict=True):
            told = {"iteration": iteration, "spent": cost, "trial": trial}
            rows += [told | {"image": i, "psnr": value} for i, value in enumerate(own.tolist())]
    return pd.DataFrame(rows)


def without_gradient(images: ImageSet, public: ImageSet, count: int, seed: int) -> dict[str, Any]:
    """Answers of who saw no gradient, for the first `count` clients of single images.

    Returns "scores", a row a (control, trial) with mse, psnr, ssim and identified (among `images`), and the first
    pictures of each control: an image of the class, the mean of the class, both out of `public`, its mean image, and a
    grey card. Source: the controls of GGL's chapter.
    """
    x, y = images.batches(1, count, seed=seed)
    truth = x[:, 0]
    of_class = [public.images[public.labels == label] for label in y[:, 0]]
    shown = {
        "image of the class": torch.cat(
            [_of_the_same_classes(public, y[k], generator(seed, k, 8)) for k in range(count)]
        ),
        "mean image of the class": torch.stack([own.mean(0) for own in of_class]),
        "mean image": public.mean_image.expand_as(truth),
        "grey card": torch.full_like(truth, 0.5),
    }
    rows = []
    for name, pictures in shown.items():
        columns = {
            "trial": torch.arange(count),
            "mse": metrics.mse(pictures, truth),
            "psnr": metrics.psnr(pictures, truth).double(),
            "ssim": metrics.ssim(pictures, truth).double(),
            "identified": metrics.identify(pictures, truth, images.images)[0] == 1,
        }
        rows.append(pd.DataFrame({"control": name} | {key: value.numpy() for key, value in columns.items()}))
    return {"scores": pd.concat(rows, ignore_index=True)} | {name: p[:SHOWN] for name, p in shown.items()}


def nearest_public(images: ImageSet, public: ImageSet, count: int, seed: int) -> pd.DataFrame:
    """The image of `public` nearest to each of the first `count` single clients': a row a trial, an oracle's answer.

    Nobody without the truth could give it: it says what the best guess of a real image would be worth. Columns: trial,
    psnr, ssim and identified (among `images`).
    """
    generators.check_disjoint(public, images)
    truth = images.batches(1, count, seed=seed)[0][:, 0]
    near = public.nearest(truth)
    columns: dict[str, Any] = {"trial": range(count), "psnr": metrics.psnr(near, truth).double().numpy()}
    columns |= {"ssim": metrics.ssim(near, truth).double().numpy()}
    return pd.DataFrame(columns | {"identified": (metrics.identify(near, truth, images.images)[0] == 1).numpy()})


def grey(images: ImageSet, batch: int, count: int, seed: int) -> pd.DataFrame:
    """What a grey card is worth to the first `count` batches: a row an image, with trial, image and psnr."""
    x = images.batches(batch, count, seed=seed)[0]
    table: Mapping[str, Any] = {
        "trial": torch.arange(count).repeat_interleave(batch).numpy(),
        "image": torch.arange(batch).repeat(count).numpy(),
        "psnr": metrics.psnr(torch.full_like(x, 0.5).flatten(0, 1), x.flatten(0, 1)).double().numpy(),
    }
    return pd.DataFrame(dict(table))


def out_of_reach(images: ImageSet, count: int, seed: int) -> pd.DataFrame:
    """What a sigmoid cannot say that makes images in [-1, 1]: a row an image of the first `count` clients.

    Columns: trial; below, the share of pixels under 0.5, which stand for negative numbers; psnr, of the nearest image
    without any: the highest that such a generator can reach.
    """
    x = images.batches(1, count, seed=seed)[0][:, 0]
    best = x.clamp(min=0.5)
    below = (x < 0.5).flatten(1).double().mean(1)
    table: Mapping[str, Any] = {"trial": range(count), "below": below.numpy()}
    return pd.DataFrame(dict(table) | {"psnr": metrics.psnr(best, x).double().numpy()})


def watch(
    attack: Any, images: ImageSet, count: int, steps: Sequence[int], seed: int, device: torch.device
) -> dict[str, Any]:
    """One attack followed on the image of most contrast among `count`: "images" [S, C, H, W], "truth" [C, H, W]."""
    x, y = images.batches(1, count, seed=seed)
    k = int(x.flatten(1).std(1).argmax())
    network = victim(images, k, seed, device)
    update = client.share(network, x[k, None].to(device), y[k, None].to(device))
    history = _attack(attack, [network], [update], [k], seed, steps).history
    return {"images": history.images[:, 0, 0].cpu(), "truth": x[k, 0]}
