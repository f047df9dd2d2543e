"""Experiments of exact batches: SPEAR, mask-guided recovery and what they start from, on the same updates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from reprolib import models
from reprolib.attacks.columns import Mixture, completed
from reprolib.attacks.fgla import FGLA
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.mask_guided import MaskGuided
from reprolib.attacks.masks_at_once import MasksAtOnce
from reprolib.attacks.reading import started
from reprolib.attacks.reconstruction import Attack
from reprolib.attacks.separation import separate
from reprolib.attacks.spear import SPEAR
from reprolib.data import ImageSet
from reprolib.defenses import Defense
from reprolib.experiments import utility
from reprolib.experiments.networks import TRAINED_AT, network_seed, one_hidden
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate
from reprolib.measure import metrics, pairing
from reprolib.models.victim import Victim

AMONG = 500
"""Images of the set, of which the original must be the nearest to what was read."""

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def behind(trunk: Victim, width: int, classes: int, seed: int) -> Victim:
    """A convolutional trunk, as it is, with a hidden layer and a head behind it, both drawn: `adapt`ed, in float32."""
    layers = models.drawn(
        lambda: nn.Sequential(
            trunk.normalize,
            trunk.trunk,
            nn.Flatten(),
            nn.Linear(trunk.head.in_features, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        ),
        seed,
    )
    return models.adapt(layers, trunk.image_shape, classes)


@dataclass(frozen=True, eq=False)
class Clients:
    """Batches of a set under drawn networks of one hidden layer; no image occurs twice.

    size: images of a batch; networks, each: how many networks are drawn, and how many batches each of them meets.
    width, activation: the network's. dtype: of the network, and so of the update. steps: of training on the images
    behind those of the batches, before the update is shared.
    """

    images: ImageSet
    size: int
    networks: int
    each: int
    seed: int
    width: int = 512
    activation: str = "relu"
    dtype: str = "float64"
    steps: int = 0

    def network(self, k: int) -> Victim:
        """The network number k, drawn and, where `steps` says so, trained."""
        images = self.images
        drawn = network_seed(self.seed, k)
        built = one_hidden(images.image_shape, images.num_classes, self.width, drawn, self.activation)
        if self.steps:
            others = images.after(self.size * self.networks * self.each, self.seed)
            utility.train(built, others, self.steps, TRAINED_AT, seed=drawn)
        return built.to(DTYPES[self.dtype])

    def batches(self) -> tuple[Tensor, Tensor]:
        """Images [T, B, C, H, W] and labels [T, B] of all batches, T = networks x each."""
        x, y = self.images.batches(self.size, self.networks * self.each, seed=self.seed)
        return x.to(DTYPES[self.dtype]), y


def compared(
    clients: Clients,
    attacks: Mapping[str, Attack],
    local: LocalTraining | None = None,
    defense: Defense | None = None,
    known: bool = False,
    observes: str = "one client",
) -> dict[str, Any]:
    """Attack every batch with each of the attacks: "batches", a row for each of both, and the first batch's pictures.

    Columns: attack, network, trial, images, exact (number of images within 60 dB), certified, psnr (mean in dB, at most
    60), share19 (share of images above 19 dB), tried, cpu (seconds of one core), refused (an attack's reason, or "").
    Pictures: "truth" and NAME [B, C, H, W], an image not recovered grey.
    """
    images, labels = clients.batches()
    rows, pictures = [], {"truth": images[0].float()}
    threat = ThreatModel(observes=observes, defense_known=known)
    for trial in range(len(images)):
        victim = clients.network(trial // clients.each)
        x, y, stream = images[trial : trial + 1], labels[trial : trial + 1], [(clients.seed, trial)]
        update = client.share(victim, x, y, threat=threat, local=local, defense=defense, seed=stream)
        for name, attack in attacks.items():
            row, shown = _attacked(attack, victim, update, x, stream)
            rows.append({"attack": name, "network": trial // clients.each, "trial": trial, **row})
            if trial == 0:
                pictures[name] = shown
    return pictures | {"batches": pd.DataFrame(rows)}


def _attacked(
    attack: Attack, victim: Victim, update: SharedUpdate, x: Tensor, stream: Any
) -> tuple[dict[str, Any], Tensor]:
    began, certified, tried, lost, refused = time.process_time(), False, 0, None, ""
    try:
        read = attack(victim, update, seed=stream)
        found, lost = read.raw, read.lost
        certified = isinstance(attack, SPEAR | MaskGuided) and not bool(read.diverged[0])
        tried = int(read.evaluations[0])
    except ValueError as error:
        found, lost, refused = torch.full_like(x, 0.5), torch.ones(x.shape[:2], dtype=torch.bool), str(error)
    seconds = time.process_time() - began
    found = found.float().clamp(0, 1)
    scores = pairing.score(found, x.float(), torch.full(x.shape[2:], 0.5), lost)
    order = torch.tensor(scores.candidate.to_numpy())
    shown = torch.where((order >= 0)[:, None, None, None], found[0, order.clamp(min=0)], torch.tensor(0.5))
    row: dict[str, Any] = {"images": x.shape[1], "exact": int(scores.exact.sum()), "certified": certified}
    row |= {"psnr": scores.psnr.mean(), "share19": (scores.psnr > 19).mean(), "tried": tried, "cpu": seconds}
    return row | {"refused": refused}, shown


def at_once(
    clients: Clients, attack: MasksAtOnce, local: LocalTraining | None = None, defense: Defense | None = None
) -> pd.DataFrame:
    """Batches of the set's last images by masks at once, with what it starts from and the most it could reach.

    Three rows a batch, `attack`: "masks at once", "separation", and "true mixing": what the leading directions of
    the update hold at most, with columns made from the truth. Columns: network, trial, images, exact (number
    of images within 60 dB), certified, psnr (mean in dB, at most 60), identified (share of images that are the
    nearest to what was read among AMONG of the set).
    """
    last = clients.images.subset(slice(-clients.size * clients.networks * clients.each, None))
    images, labels = replace(clients, images=last).batches()
    rows = []
    for trial in range(len(images)):
        victim, x = clients.network(trial // clients.each), images[trial : trial + 1]
        stream = [(clients.seed, trial)]
        update = client.share(victim, x, labels[trial : trial + 1], local=local, defense=defense, seed=stream)
        layer, ((_, mixture),) = started(attack, victim, update, (), None, None)
        blurred = separate(layer, seed=stream).inputs[0]
        read = attack.followed(layer, mixture, blurred).batch
        true = torch.linalg.lstsq(layer.of_pixels(x.double())[0].T, mixture.right.T).solution.T
        found = {
            "masks at once": read.inputs,
            "separation": blurred,
            "true mixing": torch.linalg.solve(true, mixture.right),
        }
        for name, inputs in found.items():
            row = {"attack": name, "network": trial // clients.each, "trial": trial, "images": clients.size}
            row |= _scored(layer.to_pixels(inputs[None]).clamp(0, 1), x.double(), clients.images.images[:AMONG])
            rows.append(row | {"certified": name == "masks at once" and read.certified})
    return pd.DataFrame(rows)


def _scored(found: Tensor, x: Tensor, pool: Tensor) -> dict[str, Any]:
    """How many of the images x [1, B, C, H, W] are exact, and identified; and their mean PSNR."""
    scores = pairing.score(found, x, torch.full(x.shape[2:], 0.5, dtype=x.dtype))
    shown = found[0, torch.tensor(scores.candidate.to_numpy())]
    identified = metrics.identify(shown.float(), x[0].float(), pool)[0] == 1
    return {
        "exact": int(scores.exact.sum()),
        "psnr": scores.psnr.mean(),
        "identified": float(identified.double().mean()),
    }


def anatomy(clients: Clients, attack: MaskGuided) -> pd.DataFrame:
    """Why a batch is read or is not, a row a batch: what a separation of bands knows, and what the columns need.

    Columns: network, trial, images, separated (dB, of the separation alone), masks (share of units that a separated
    image switches as the true one does), first (columns after the first pass), passes, columns, certified, off (mean
    share of live units that an image leaves off), second (the smallest singular value but one of these rows, the
    least over the batch: zero where two images cannot be told apart), condition (of the batch's singular values).
    """
    images, labels = clients.batches()
    rows = []
    for trial in range(len(images)):
        victim = clients.network(trial // clients.each)
        x, y, stream = images[trial : trial + 1], labels[trial : trial + 1], [(clients.seed, trial)]
        update = client.share(victim, x, y, seed=stream)
        layer, (read,) = attack.read(victim, update, stream)
        mixture = Mixture.of(layer, 0, models.Victims.of(victim), clients.size, None)
        first = layer.to_pixels(separate(layer, seed=stream).inputs).clamp(0, 1)
        order = pairing.pair(first, x)[0]
        true = mixture.units(layer.of_pixels(x)[0])
        guess = mixture.units(layer.of_pixels(first)[0, order])
        off = true < 0
        second = min(float(torch.linalg.svdvals(mixture.left[own])[-2]) for own in off.T if own.sum() >= clients.size)
        rows.append(
            {
                "network": trial // clients.each,
                "trial": trial,
                "images": clients.size,
                "separated": float(metrics.psnr(first[0, order].float(), x[0].float()).mean()),
                "masks": float(((guess < 0) == off).double().mean()),
                "first": read.trace[0],
                "passes": len(read.trace),
                "columns": read.columns,
                "certified": read.batch.certified,
                "off": float(off.double().mean()),
                "second": second,
                "condition": float(mixture.values[0] / mixture.values[clients.size - 1]),
            }
        )
    return pd.DataFrame(rows)


def sparsity(clients: Clients) -> dict[str, Any]:
    """The first batch's gradient: "values", its singular values, and "zeros", those of the mixing, [1, 1, B, k]."""
    images, labels = clients.batches()
    victim = clients.network(0)
    update = client.share(victim, images[:1], labels[:1])
    layer = FirstLayer.of(victim, update)
    values = layer.decomposed[1][0, : 2 * clients.size]
    mixture = Mixture.of(layer, 0, models.Victims.of(victim), clients.size, None)
    inputs = layer.of_pixels(images[:1])[0]
    truth = completed(mixture, torch.linalg.lstsq(inputs.T, mixture.right.T).solution.T)
    zeros = truth.mixing.abs() < mixture.zero * truth.mixing.norm(dim=0)
    return {
        "values": pd.DataFrame({"index": range(1, len(values) + 1), "value": values.clamp(min=1e-18).numpy()}),
        "zeros": zeros.T[None, None].float(),
        "certified": bool(truth.certified),
    }


def behind_a_trunk(
    trunk: Victim,
    decoder: nn.Module,
    images: ImageSet,
    width: int,
    size: int,
    count: int,
    attack: MaskGuided,
    seed: int,
) -> dict[str, Any]:
    """Batches behind a convolutional trunk: exact features, then FGLA's decoder, beside the decoder's on true features.

    Returns "batches", a row a batch: certified, error (largest relative error of an image's features), psnr of the
    decoded ones, oracle (of decoded true features), repeated (images whose label occurs again); and pictures.
    """
    x, y = images.batches(size, count, seed=seed)
    rows, pictures, fgla = [], {}, FGLA(decoder)
    for trial in range(count):
        victim = behind(trunk, width, images.num_classes, network_seed(seed, trial)).double()
        name = next(name for name, module in victim.named_modules() if isinstance(module, nn.Linear))
        update = client.share(victim, x[trial : trial + 1].double(), y[trial : trial + 1])
        _, (read,) = replace(attack, layer=name).read(victim, update, [(seed, trial)])
        with torch.no_grad():
            true = trunk.trunk(trunk.normalize(x[trial])).flatten(1)
        away = torch.cdist(true.double(), read.batch.inputs)
        nearest = away.argmin(1)
        found = fgla.decode(read.batch.inputs[nearest].float()[None])[0]
        best = fgla.decode(true[None])[0]
        rows.append(
            {
                "trial": trial,
                "images": size,
                "certified": read.batch.certified,
                "error": float((away.amin(1) / true.double().norm(dim=1)).max()),
                "psnr": float(metrics.psnr(found, x[trial]).mean()),
                "oracle": float(metrics.psnr(best, x[trial]).mean()),
                "repeated": int((y[trial][:, None] == y[trial]).sum(1).gt(1).sum()),
            }
        )
        if trial == 0:
            pictures = {"truth": x[0], "decoded": found, "decoded true features": best}
    return pictures | {"batches": pd.DataFrame(rows)}


def largest(clients: Clients, sizes: Sequence[int], attack: Attack) -> pd.DataFrame:
    """Ever larger batches under networks of one width until fewer than half are exact: rows as `compared`'s."""
    tables = []
    for size in sizes:
        if size * clients.networks * clients.each > len(clients.images):
            break
        found = compared(replace(clients, size=size), {"mask-guided": attack})["batches"]
        tables.append(found.assign(width=clients.width))
        if (found.exact == found.images).mean() < 0.5:
            break
    return pd.concat(tables, ignore_index=True)


def samples(clients: Clients, sizes: Sequence[int], attack: SPEAR) -> pd.DataFrame:
    """SPEAR over batch sizes: a row a batch, with `tried`, the submatrices it took."""
    tables = [compared(replace(clients, size=size), {"SPEAR": attack})["batches"] for size in sizes]
    return pd.concat(tables, ignore_index=True)
