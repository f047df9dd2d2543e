"""Experiments of the chapter on GGL: planted images, null controls, races, landscapes, what local steps change."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from reprolib import models
from reprolib.attacks import GGL
from reprolib.attacks.matching import Matching
from reprolib.data import ImageSet
from reprolib.defenses import Defense
from reprolib.defenses.estimated import zero_shares
from reprolib.experiments import generators
from reprolib.experiments.networks import attack_together, attack_trials, network_seed, shared
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.observation import Observation
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate
from reprolib.measure import metrics

KNOWN = ThreatModel(labels="known")

NULLS = ("Gaussian of equal length", "gradient of another image")
"""Controls that attack as the attack does, with nothing of the client's image in what they attack."""


def prior_at_best(prior: torch.nn.Module, images: ImageSet, public: ImageSet, count: int, seed: int) -> dict[str, Any]:
    """What a prior can make: samples of it, and the nearest it has to the first `count` clients' images.

    Returns "truth", "nearest" and "samples" [count, C, H, W], and "scores", a row a trial with the psnr of the nearest.
    Errors: ValueError where one of `public`'s images, on which the prior was trained, is among `images`.
    """
    generators.check_disjoint(public, images)
    x = images.batches(1, count, seed=seed)[0][:, 0]
    best = generators.nearest(prior, x)
    scores = pd.DataFrame({"trial": range(count), "psnr": metrics.psnr(best, x).double().numpy()})
    return {"truth": x, "nearest": best, "samples": generators.samples(prior, count, seed), "scores": scores}


def planted(
    attacks: Mapping[str, GGL], prior: torch.nn.Module, count: int, classes: int, seed: int, device: torch.device
) -> pd.DataFrame:
    """Attacks on images that their prior can make: a row an (attack, trial), a drawn LeNet and latent for each trial.

    Columns: attack, trial, mse, psnr, evaluations. Source: this book.
    """
    latents = torch.stack([torch.randn(prior.latent_dim, generator=generator(seed, k)) for k in range(count)])
    with torch.no_grad():
        x = prior(latents)[:, None].to(device)
    y = torch.arange(count)[:, None] % classes
    victims = [models.build("lenet", classes, tuple(x.shape[2:]), seed=network_seed(seed, k)) for k in range(count)]
    victims = [victim.to(device) for victim in victims]
    updates = [client.share(victims[k], x[k, None], y[k, None].to(device)) for k in range(count)]
    rows = []
    for name, attack in attacks.items():
        found = attack_together(attack, victims, updates, seed)
        scores = metrics.score(found, x.cpu(), y)[["trial", "mse", "psnr", "evaluations"]]
        rows.append(scores.assign(attack=name))
    return pd.concat(rows, ignore_index=True)


def nulls(
    attack: GGL,
    images: ImageSet,
    public: ImageSet,
    count: int,
    seed: int,
    device: torch.device,
    defense: Defense | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What an attack makes of what is not the client's gradient: a network an image, the labels given.

    It attacks a Gaussian vector of the gradient's length, and the gradient of another image of the class, out of
    `public`, under the same network.
    defense: what both gradients are shared under; the attacker knows it and reads its setting off what it is given.
    options: LeNet's, for `models.build`. Returns "scores", a row a (control, trial) with mse, psnr, ssim, identified
    (among `images`) and chance, and the images [count, C, H, W] under each control's name.
    Source: this book.
    """
    x, y = images.batches(1, count, seed=seed)
    random = [generator(seed, k, 7) for k in range(count)]
    own = [public.images[public.labels == label] for label in y[:, 0]]
    others = torch.stack([part[torch.randint(len(part), (), generator=random[k])] for k, part in enumerate(own)])
    updates: dict[str, list[SharedUpdate]] = {name: [] for name in NULLS}
    attack, victims, threat = replace(attack, labels="known"), [], replace(KNOWN, defense_known=defense is not None)
    for k in range(count):
        victim, update = shared(images, [k], k, seed, device, defense, threat, "lenet", options)
        theirs = others[k, None, None].to(device), y[k, None].to(device)
        other = client.share(victim, *theirs, threat=threat, defense=defense, seed=network_seed(seed, k) + 25_000)
        victims.append(victim)
        for name, given in zip(NULLS, (of_equal_length(update, random[k]), other), strict=True):
            updates[name].append(given)
    shown = {name: attack_together(attack, victims, given, seed).images[:, 0].cpu() for name, given in updates.items()}
    return {"scores": _scored(shown, x[:, 0], images)} | shown


def guesses(prior: torch.nn.Module, images: ImageSet, public: ImageSet, count: int, seed: int) -> dict[str, Any]:
    """Answers that need no gradient, and the floor, the image of the prior that is nearest to the client's.

    They are a random sample of the prior; a random image of the class; the class's and the public set's mean image; and
    a grey card. Returns as `nulls`. Source: this book.
    """
    x, y = (part[:, 0] for part in images.batches(1, count, seed=seed))
    of_class = [public.images[public.labels == label] for label in y]
    drawn = [torch.randint(len(own), (), generator=generator(seed, k, 9)) for k, own in enumerate(of_class)]
    shown = {
        "random sample of the prior": generators.samples(prior, count, seed),
        "random image of the class": torch.stack([own[one] for own, one in zip(of_class, drawn, strict=True)]),
        "mean image of the class": torch.stack([own.mean(0) for own in of_class]),
        "mean image": public.mean_image.expand_as(x),
        "grey card": torch.full_like(x, 0.5),
        "floor": generators.nearest(prior, x),
    }
    return {"scores": _scored(shown, x, images)} | shown


def _scored(shown: Mapping[str, Tensor], x: Tensor, images: ImageSet) -> pd.DataFrame:
    """A row a (control, trial) of answers [T, C, H, W] to clients' images."""
    rows = []
    for name, pictures in shown.items():
        ranks, candidates = metrics.identify(pictures, x, images.images)
        columns = {
            "trial": torch.arange(len(x)),
            "mse": metrics.mse(pictures, x),
            "psnr": metrics.psnr(pictures, x).double(),
            "ssim": metrics.ssim(pictures, x).double(),
            "identified": ranks == 1,
            "chance": 1 / candidates.double(),
        }
        rows.append(pd.DataFrame({"control": name} | {key: value.numpy() for key, value in columns.items()}))
    return pd.concat(rows, ignore_index=True)


def of_equal_length(update: SharedUpdate, random: torch.Generator) -> SharedUpdate:
    """The update with a Gaussian vector of the same length, over all tensors, in each trial's place."""
    noise = {name: torch.randn(g.shape, generator=random, dtype=g.dtype).to(g) for name, g in update.gradients.items()}
    lengths = [sum(g.flatten(1).square().sum(1) for g in part.values()).sqrt() for part in (update.gradients, noise)]
    factor = lengths[0] / lengths[1]
    return replace(update, gradients={name: n * factor.view(-1, *[1] * (n.ndim - 1)) for name, n in noise.items()})


def of_the_picture(scores: pd.DataFrame, null: str) -> np.ndarray:
    """For each trial, the share of the way from a null control to the floor that the gradient gave.

    scores: rows of `nulls` and `guesses`, and those of the attack as the control "gradient".

    (null - found) / (null - floor) in squared errors: 1 where the attack found the best image that the prior can make,
    0 where it did as well as the control, below 0 where it did worse.
    """
    error = scores.pivot(index="trial", columns="control", values="mse")
    return ((error[null] - error["gradient"]) / (error[null] - error["floor"])).to_numpy()


def race(
    attacks: Mapping[str, GGL],
    images: ImageSet,
    count: int,
    marks: Sequence[int],
    seed: int,
    device: torch.device,
    **options: Any,
) -> dict[str, Any]:
    """Attacks over the gradients of the victim that they spent, and where they end.

    marks: numbers of evaluations at which to look, those within each attack's budget, rounded down to whole generations
    (and up to one). Returns "path", a row an (attack, spent, trial): spent (at the most, where a trial converged),
    psnr, and distance, the squared distance to the shared gradient over its squared length, whatever the attack's own
    distance is divided by; "ends", a row an (attack, trial) with the columns of `metrics.score` among `images`; and
    pictures [count, C, H, W], "truth" and each attack's under its name. options: LeNet's.
    """
    x, y = images.batches(1, count, seed=seed)
    pairs = [shared(images, [k], k, seed, device, None, ThreatModel(), "lenet", options) for k in range(count)]
    victims, updates = (list(part) for part in zip(*pairs, strict=True))
    length = torch.cat([sum(g.flatten(1).square().sum(1) for g in update.gradients.values()) for update in updates])
    path, ends, pictures = [], [], {"truth": x[:, 0]}
    for name, attack in attacks.items():
        each = attack.population if attack.optimizer == "cma" else 1
        steps = sorted({min(max(1, mark // each), attack.iterations) for mark in marks if mark <= attack.evaluations})
        found = attack_together(attack, victims, updates, seed, steps)
        parts, history = len(updates[0].gradients) if attack.reduction == "mean_tensors" else 1, found.history
        for spent, value, shown in zip(history.evaluations, history.objective, history.images, strict=True):
            columns = {"attack": name, "spent": int(spent.max()), "trial": range(count)}
            columns |= {"psnr": metrics.psnr(shown[:, 0].cpu(), x[:, 0]).double().numpy()}
            path.append(pd.DataFrame(columns | {"distance": (parts * value / length).cpu().numpy()}))
        ends.append(metrics.score(found, x, y, images).assign(attack=name))
        pictures[name] = found.images[:, 0].cpu()
    return {"path": pd.concat(path, ignore_index=True), "ends": pd.concat(ends, ignore_index=True)} | pictures


def watch(
    attack: GGL, images: ImageSet, count: int, steps: Sequence[int], seed: int, device: torch.device, **options: Any
) -> dict[str, Any]:
    """One attack followed on the image of most contrast among `count`: "images" [S, C, H, W], "truth" [C, H, W]."""
    x, _ = images.batches(1, count, seed=seed)
    k = int(x.flatten(1).std(1).argmax())
    victim, update = shared(images, [k], k, seed, device, None, KNOWN, "lenet", options)
    history = attack(victim, update, seed=network_seed(seed, k), snapshots=steps).history
    return {"images": history.images[:, 0, 0].cpu(), "truth": x[k, 0]}


def readings(
    images: ImageSet, count: int, cases: Mapping[str, Defense], seed: int, device: torch.device, **options: Any
) -> pd.DataFrame:
    """What an update says of the defense that made it: a row a (case, trial), a drawn LeNet for each trial.

    Columns: case, trial, clean (length of the gradient), shared (of the update), zeros (share in the update), columns
    (share of the head's columns that hold something), cosine (between update and gradient), label (whether read).
    """
    rows, (_, y) = [], images.batches(1, count, seed=seed)
    for k in range(count):
        clean = shared(images, [k], k, seed, device, None, ThreatModel(), "lenet", options)[1].gradients
        length = _length(clean)
        for case, defense in cases.items():
            _, update = shared(images, [k], k, seed, device, defense, ThreatModel(), "lenet", options)
            own = _length(update.gradients)
            inner = sum((g * update.gradients[name]).sum() for name, g in clean.items())
            row = {"case": case, "trial": k, "clean": length.item(), "shared": own.item()}
            row["zeros"] = zero_shares(update.gradients, "update")["head.bias"].item()
            row["columns"] = (update.gradients["head.weight"][0] != 0).any(0).double().mean().item()
            row["cosine"] = (inner / (length * own)).item()
            row["label"] = int(update.gradients["head.weight"][0].sum(1).argmin()) == int(y[k, 0])
            rows.append(row)
    return pd.DataFrame(rows)


def landscape(
    attack: GGL,
    images: ImageSet,
    count: int,
    cases: Mapping[str, Defense | None],
    side: int,
    seed: int,
    device: torch.device,
    **options: Any,
) -> dict[str, Any]:
    """The objective around an image's own latent, under defenses, as the plain and the informed attacker see it.

    attack: its generator must have `encode`, whose mean stands for the image. Around it lies a plane, spanned by the
    way to what the attack finds undefended and by a drawn direction at a right angle to it; the distance is taken on
    side x side points of it, from one such way before the image to one behind what was found. Returns "ranks", a row a
    (trial, case, attacker) with the Spearman correlation of that surface with the undefended one; "path", the first
    trial's distances on the way (case, attacker, step, distance over the largest; the case "image" is the error of the
    image itself); and "CASE, ATTACKER" [1, side, side], its surfaces, dark where low. Source: GGL, Figs. 9, 12, 13.
    """
    x, _ = images.batches(1, count, seed=seed)
    steps = torch.linspace(-1, 2, side)
    ranks, path, found = [], [], {}
    for k in range(count):
        victim, update = shared(images, [k], k, seed, device, None, KNOWN, "lenet", options)
        prior = copy.deepcopy(attack.generator).to(device)
        with torch.no_grad():
            own = prior.encode(x[k].to(device))[0][0]
        away = attack(victim, update, seed=network_seed(seed, k)).latents[0, 0] - own  # type: ignore[index]
        aside = torch.randn(len(own), generator=generator(seed, k, 8)).to(own)
        aside = aside - (aside @ away) / away.square().sum() * away
        aside = aside * away.norm() / aside.norm()
        along, across = (part.flatten()[:, None].to(own) for part in torch.meshgrid(steps, steps - 0.5, indexing="xy"))
        plane = own + along * away + across * aside
        line = own + steps[:, None].to(own) * away
        clean = None
        for case, defense in cases.items():
            for attacker in ("plain", "informed") if defense is not None else ("plain",):
                told = replace(KNOWN, defense_known=attacker == "informed")
                _, update = shared(images, [k], k, seed, device, defense, told, "lenet", options)
                reading = defense.counter(victim, update) if told.defense_known else Observation(update.gradients)
                soft = F.one_hot(update.labels, images.num_classes).to(own)
                objective = Matching(
                    victim,
                    reading,
                    lambda z, _, prior=prior, soft=soft: (prior(z)[:, None], soft.expand(len(z), -1, -1)),  # type: ignore[misc]  # binds the loop's values
                )
                values, way = (
                    objective.alone(z, torch.zeros(len(z), dtype=torch.long, device=device)).cpu()
                    for z in (plane, line)
                )
                clean = values if clean is None else clean
                rank = spearmanr(values.numpy(), clean.numpy()).statistic
                ranks.append({"trial": k, "case": case, "attacker": attacker, "rank": float(rank)})
                if k == 0:
                    found[f"{case}, {attacker}"] = _shades(values).view(1, side, side)
                    path.append(_profile(case, attacker, steps, way))
        if k == 0:
            with torch.no_grad():
                error = metrics.mse(prior(line).cpu(), x[0].expand(side, *x.shape[2:]))
            path.append(_profile("image", "error", steps, error))
    return {"ranks": pd.DataFrame(ranks), "path": pd.concat(path, ignore_index=True)} | found


def upside_down(attack: GGL, images: ImageSet, count: int, seed: int, device: torch.device) -> dict[str, Any]:
    """`attack_trials` on images turned upside down, under the networks that met them upright, among all so turned.

    The scores have a column more: floor, the PSNR of the nearest image that the prior can make. Source: this book.
    """
    turned = replace(images, images=images.images.flip(2))
    found = attack_trials(attack, turned, range(count), 1, seed, device, pool=turned)
    x = turned.batches(1, count, seed=seed)[0][:, 0]
    floor = metrics.psnr(generators.nearest(attack.generator, x), x).double().numpy()
    return found | {"scores": found["scores"].assign(floor=floor)}


def drift(
    images: ImageSet, count: int, batch: int, local: LocalTraining, seed: int, device: torch.device, **options: Any
) -> pd.DataFrame:
    """How far several local steps turn an update away from the one gradient at their start, a network a batch.

    Columns: trial, cosine. Labels within a batch differ, as in `attack_networks`. options: LeNet's.
    """
    x, y = (part.to(device) for part in images.batches(batch, count, seed=seed, distinct_labels=True))
    cosines = []
    for k in range(count):
        size = images.num_classes, images.image_shape
        victim = models.build("lenet", *size, seed=network_seed(seed, k), **options).to(device)
        once, more = (client.share(victim, x[k, None], y[k, None], local=own).as_gradients() for own in (None, local))
        inner = sum((g * more[name]).sum() for name, g in once.items())
        cosines.append((inner / (_length(once) * _length(more))).item())
    return pd.DataFrame({"trial": range(count), "cosine": cosines})


def _length(gradients: dict[str, Tensor]) -> Tensor:
    return sum(g.square().sum() for g in gradients.values()).sqrt()


def _shades(values: Tensor) -> Tensor:
    """Ranks between 0 (lowest) and 1: surfaces of different scales then show their shapes alike."""
    return values.argsort().argsort() / (len(values) - 1)


def _profile(case: str, attacker: str, steps: Tensor, values: Tensor) -> pd.DataFrame:
    low, high = values.min(), values.max()
    columns = {"case": case, "attacker": attacker, "step": steps.numpy()}
    return pd.DataFrame(columns | {"distance": ((values - low) / (high - low)).double().numpy()})
