"""Robbing the Fed's experiments: batches robbed by a malicious server, its price, and clients who look and defend."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from reprolib import models
from reprolib.attacks.likely import LikelyImages
from reprolib.attacks.reconstruction import Attack
from reprolib.attacks.rtf import RobbingTheFed
from reprolib.data import ImageSet
from reprolib.defenses import DPSGD, Defense
from reprolib.defenses.inspection import Inspection, examined
from reprolib.experiments import utility
from reprolib.experiments.networks import SHOWN, network_seed
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.server import Honest
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics, pairing
from reprolib.models.imprint import NAME, in_front
from reprolib.models.victim import Victim
from reprolib.servers import Imprint, TrapWeights
from reprolib.servers.imprint import Query
from reprolib.servers.traps import first_linear

HALF = ((0.5,) * 3, (0.5,) * 3)
"""The normalisation of the released experiments on CIFAR-10: pixels in [-1, 1]."""

TOGETHER = 2**22
"""Weights of the rows whose gradients are read together, in all trials: 32 MB in float64, and some copies of them."""


@dataclass(frozen=True, eq=False)
class Holdings:
    """A set cut in two: the first `public` images are the server's, clients hold batches of the others.

    size: images of a batch; networks, each: how many victims are drawn, and how many batches each of them meets. No
    image occurs twice. victim, options, normalize: of `models.build`; pixels come to lie in [-1, 1] by default.
    """

    images: ImageSet
    public: int
    size: int
    networks: int
    each: int
    seed: int
    victim: str = "lenet"
    options: tuple[tuple[str, Any], ...] = (("activation", "relu"), ("init", "default"))
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = HALF
    dtype: torch.dtype = torch.float32

    @cached_property
    def servers_own(self) -> ImageSet:
        """The public images."""
        return self.images.subset(slice(None, self.public))

    @cached_property
    def of_clients(self) -> ImageSet:
        """The private images."""
        return self.images.subset(slice(self.public, None))

    def network(self, k: int) -> Victim:
        """The victim number k, its weights drawn."""
        shape, classes = self.images.image_shape, self.images.num_classes
        drawn = network_seed(self.seed, k)
        built = models.build(self.victim, classes, shape, drawn, normalize=self.normalize, **dict(self.options))
        return built.to(self.dtype)

    def batches(self) -> tuple[Tensor, Tensor]:
        """Images [T, B, C, H, W] and labels [T, B] of all batches, T = networks x each."""
        images, labels = self.of_clients.batches(self.size, self.networks * self.each, seed=self.seed)
        return images.to(self.dtype), labels

    def candidates(self, network: int, count: int) -> Tensor:
        """The private images among which those of this network's batches are to be told, [count, C, H, W]: a draw."""
        random = client.generator(network_seed(self.seed, network), 2)
        return self.of_clients.images[torch.randperm(len(self.of_clients), generator=random)[:count]]


def passed(sent: Victim, images: Tensor) -> Tensor:
    """Which images [N, C, H, W] lie in which bin of a block, or pass which row of the first layer: [N, R] bool."""
    if hasattr(sent, NAME):
        found = sent.imprint.passed(sent.normalize.forward(images))
        if sent.imprint.layout == "cumulative":  # who passes a row and not the next one, in the order of thresholds
            found = found[:, (-sent.imprint.rows.bias).argsort(stable=True)]
            found = found & ~torch.nn.functional.pad(found[:, 1:], (0, 1))
        return found
    with torch.no_grad():
        return sent.get_submodule(first_linear(sent))(sent.normalize(images).flatten(1)) > 0


def alone(sent: Victim, images: Tensor) -> Tensor:
    """Which images of a batch [B, C, H, W] some bin or row holds alone: [B] bool."""
    found = passed(sent, images)
    return (found & (found.sum(0) == 1)).any(1)


def robbed(
    holdings: Holdings,
    server: Imprint | TrapWeights,
    attack: Attack,
    defense: Defense | None = None,
    local: LocalTraining | None = None,
    observes: str = "one client",
    known: bool = False,
    among: int = 0,
) -> dict[str, Any]:
    """Attack every batch of the holdings; the server's bins come from its own images, the clients' are new to it.

    known: the attacker knows the defense. among: private images, drawn for each network, among which the original is to
    be told, 0 for none. What the server draws, it draws for each network.
    Returns "batches", a row a batch, and of the first one the pictures "truth" and "found" [B, C, H, W], where an image
    not recovered is the mean image, and "alone" [B], who was alone in a bin.
    Columns: network, trial, images, and of these the numbers alone (in a bin), exact (within 60 dB of the original),
    strict (within an MSE of 1e-10), precise (strict and alone) and recovered; same, same60: whether those strict, or
    exact, are those alone; worst: the largest MSE of one alone; at least 19, 30 and 40 dB: shares of all images; psnr:
    mean in dB, not capped; rest: median PSNR of those not exact; identified: the share nearest to what was read, NaN
    without `among`; chance: the same of what was read from the network's next batch, NaN where batches are read one by
    one; seconds of reading it off.
    """
    server = replace(server, surrogate=holdings.servers_own) if isinstance(server, Imprint) else server
    threat = ThreatModel(server=server.kind, observes=observes, defense_known=known)
    mean = holdings.servers_own.mean_image
    tables, first, trial = [], None, 0
    for sent, images, labels in _sent(holdings, server, defense):
        streams = [(holdings.seed, trial + t) for t in range(len(images))]
        update = client.share(sent, images, labels, threat=threat, defense=defense, local=local, seed=streams)
        found = attack(sent, update, seed=streams)
        order = pairing.pair(found.images, images, found.lost)
        single = torch.stack([alone(sent, own) for own in images])
        shown = _placed(found.images, order, mean.to(images))
        scores = pd.DataFrame(
            {
                "trial": np.repeat(np.arange(len(images)), images.shape[1]),
                "recovered": (order >= 0).flatten().numpy(),
                "mse": metrics.mse(shown, images).flatten().numpy(),
                "alone": single.flatten().numpy(),
                "identified": math.nan,
                "chance": math.nan,
            }
        )
        if among:
            pool = holdings.candidates(trial // holdings.each, among)
            scores["identified"] = _identified(shown, images, pool)
            if len(images) > 1:
                others = images.roll(1, 0)
                told = _placed(found.images, pairing.pair(found.images, others, found.lost), mean.to(images))
                scores["chance"] = _identified(told, others, pool)
        first = {"truth": images[0], "found": shown[0], "alone": single[0]} if first is None else first
        for t, own in scores.groupby("trial"):
            number = trial + int(t)
            tables.append(
                {"network": number // holdings.each, "trial": number} | _of_a_batch(own, found.seconds / len(images))
            )
        trial += len(images)
    return {name: value.float() for name, value in first.items()} | {"batches": pd.DataFrame(tables)}


def robbed_by_who_knows(
    holdings: Holdings, server: Imprint, attack: Attack, defense: Defense | None, among: int
) -> dict[str, Any]:
    """`robbed` by a server that knows the defense; under DP-SGD it looks at its own images (`LikelyImages`)."""
    if isinstance(defense, DPSGD):
        attack = LikelyImages(holdings.servers_own, defense.max_norm)
    return robbed(holdings, server, attack, defense, known=True, among=among)


def guessed(holdings: Holdings, among: int) -> pd.DataFrame:
    """What guesses identify that have seen no gradient: a row a batch of the holdings, told apart as `robbed` does.

    Columns: network, trial, images, and shares: grey; mean, the mean of the server's images; nearest, for each image
    the nearest that the server owns, which takes the truth to choose.
    """
    own, rows = holdings.servers_own, []
    for trial, images in enumerate(holdings.batches()[0]):
        pool = holdings.candidates(trial // holdings.each, among)
        guesses = {
            "grey": torch.full_like(images, 0.5),
            "mean": own.mean_image.to(images).expand_as(images),
            "nearest": own.nearest(images).to(images),
        }
        told = {name: _identified(guess[None], images[None], pool).mean() for name, guess in guesses.items()}
        rows.append({"network": trial // holdings.each, "trial": trial, "images": len(images)} | told)
    return pd.DataFrame(rows)


def _identified(shown: Tensor, images: Tensor, pool: Tensor) -> np.ndarray:
    """Which images [T, B, C, H, W] are nearer to what is shown than all of the pool: [T * B], 0 and 1."""
    ranks, _ = metrics.identify(shown.flatten(0, 1), images.flatten(0, 1), pool)
    return (ranks == 1).double().numpy()


def _sent(holdings: Holdings, server: Imprint | TrapWeights, defense: Defense | None) -> Iterator[Any]:
    """Each network as the clients train it, with as many of its batches as are read together: images and labels."""
    images, labels = holdings.batches()
    # of a victim the block depends on how it normalises alone: one that draws nothing is measured once
    fixed = isinstance(server, Imprint) and not server.draws
    block = getattr(server.broadcast(holdings.network(0)), NAME) if fixed else None
    for k in range(holdings.networks):
        network = holdings.network(k)
        if block is None:
            first = replace(server, seed=network_seed(holdings.seed, k)).broadcast(network)
        else:
            first = in_front(network, copy.deepcopy(block))
        sent = client.extended(first, defense)
        rows = sent.imprint.rows if hasattr(sent, NAME) else sent.get_submodule(first_linear(sent))
        together = max(1, TOGETHER // rows.weight.numel())
        own = slice(k * holdings.each, (k + 1) * holdings.each)
        for x, y in zip(images[own].split(together), labels[own].split(together), strict=True):
            yield sent, x, y


def _placed(found: Tensor, order: Tensor, mean: Tensor) -> Tensor:
    """Each image's candidate by the order [T, B], the mean image where it has none: [T, B, C, H, W]."""
    placed = found.to(mean)[torch.arange(len(order))[:, None], order.clamp(min=0)]
    return torch.where((order < 0)[:, :, None, None, None], mean, placed)


def _of_a_batch(scores: pd.DataFrame, seconds: float) -> dict[str, Any]:
    strict, single = scores["mse"] < 1e-10, scores["alone"]
    exact = scores["recovered"] & (scores["mse"] < pairing.EXACT_MSE)
    decibels = -10 * np.log10(scores["mse"].clip(lower=1e-20))
    rest = decibels[~exact]
    return {
        "images": len(scores),
        "alone": int(single.sum()),
        "exact": int(exact.sum()),
        "strict": int(strict.sum()),
        "same": bool((strict == single).all()),
        "same60": bool((exact == single).all()),
        "precise": int((strict & single).sum()),
        "worst": float(scores.loc[single, "mse"].max()) if single.any() else 0.0,
        "recovered": int(scores["recovered"].sum()),
        **{f"at least {level} dB": float((decibels >= level).mean()) for level in (19, 30, 40)},
        "psnr": float(decibels.mean()),
        "rest": float(rest.median()) if len(rest) else math.nan,
        "identified": float(scores["identified"].mean()),
        "chance": float(scores["chance"].mean()),
        "seconds": seconds,
    }


def outlined(images: Tensor, which: Tensor) -> Tensor:
    """Images [N, C, H, W] with a frame of one pixel in orange around those of `which` [N]."""
    framed, colour = images.clone(), torch.tensor([0.9, 0.45, 0.0])[:, None, None]
    inside = torch.zeros(images.shape[-2:], dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    around = ~inside & which.bool()[:, None, None, None]
    return torch.where(around, colour.expand_as(framed), framed)


def one_shots(holdings: Holdings, num_bins: int, draws: int, read: int, query: Query, mode: int) -> pd.DataFrame:
    """A server after one image, whose statistic it knows: a row a draw of `size` private images, the first the target.

    Whether the target is alone in its bin of `num_bins` is seen from the statistics alone; the first `read` draws are
    robbed too. Columns: draw, alone, exact (NaN where it was not read), psnr (dB, not capped).
    """
    server = Imprint(num_bins=num_bins, query=query, mode=mode, surrogate=holdings.servers_own)
    victim, private = holdings.network(0), holdings.of_clients
    sent, rows = server.broadcast(victim), []
    bin_of = passed(sent, private.images.to(holdings.dtype)).int().argmax(1)
    for draw in range(draws):
        index = torch.randperm(len(private), generator=client.generator(holdings.seed, draw))[: holdings.size]
        lone = int((bin_of[index] == bin_of[index[0]]).sum()) == 1
        row: dict[str, float] = {"draw": draw, "alone": lone, "exact": math.nan, "psnr": math.nan}
        if draw < read:
            row |= _one_shot(
                server, victim, private.images[index][None].to(holdings.dtype), private.labels[index][None]
            )
        rows.append(row)
    return pd.DataFrame(rows)


def _one_shot(server: Imprint, victim: Victim, images: Tensor, labels: Tensor) -> dict[str, float]:
    target = float(server.statistic(victim, images[0, :1])[0, 0])
    sent = replace(server, layout="one-shot", target=target).broadcast(victim)
    update = client.share(sent, images, labels, threat=ThreatModel(server=server.kind))
    error = float(metrics.mse(RobbingTheFed()(sent, update).images[:, 0], images[:, 0])[0])
    return {"exact": float(error < pairing.EXACT_MSE), "psnr": -10 * math.log10(max(error, 1e-20))}


def prices(
    holdings: Holdings, test: ImageSet, servers: Mapping[str, Honest], steps: int, rates: Sequence[float]
) -> pd.DataFrame:
    """What each server's model learns in so many steps of batches of 64: a row a (server, rate, network).

    Trained on the private images; accuracy on `test`. Columns: server, rate, network, accuracy, finite (whether its
    outputs still are numbers).
    """
    rows, public = [], holdings.servers_own
    for name, server in servers.items():
        sender = replace(server, surrogate=public) if isinstance(server, Imprint) else server
        for rate in rates:
            for k in range(holdings.networks):
                model = sender.broadcast(holdings.network(k))
                seed = network_seed(holdings.seed, k)
                utility.train(model, holdings.of_clients, steps, rate, seed=seed)
                with torch.no_grad():
                    finite = bool(model(test.images[:8].to(holdings.dtype)).isfinite().all())
                row = {"server": name, "rate": rate, "network": k, "accuracy": utility.accuracy(model, test)}
                rows.append(row | {"finite": finite})
    return pd.DataFrame(rows)


def inspected(holdings: Holdings, servers: Mapping[str, Honest], inspection: Inspection) -> pd.DataFrame:
    """What an inspecting client sees of each server's model: a row a (server, network), of its first linear layer.

    What a server draws, it draws for each network.
    Columns: server, network, rank_one, in_order, refused; own, the share of the layer's rows whose update is one of the
    client's own images alone, which it sees when it has computed it.
    """
    rows, public = [], holdings.servers_own
    images, labels = holdings.batches()
    for name, server in servers.items():
        sender = replace(server, surrogate=public) if isinstance(server, Imprint) else server
        for k in range(holdings.networks):
            if isinstance(sender, Imprint | TrapWeights):
                sender = replace(sender, seed=network_seed(holdings.seed, k))
            sent = sender.broadcast(holdings.network(k))
            seen = examined(sent).iloc[0]
            row = {"server": name, "network": k, "rank_one": seen.rank_one, "in_order": seen.in_order}
            row["refused"] = bool(inspection.refuses(sent))
            rows.append(
                row | {"own": _own_rows(sent, images[k * holdings.each], labels[k * holdings.each], seen.layer)}
            )
    return pd.DataFrame(rows)


def _own_rows(sent: Victim, images: Tensor, labels: Tensor, layer: str) -> float:
    """The share of a layer's rows that one of the images alone left a gradient in, by the gradients of each."""
    each = client.image_gradients(sent, images, labels)[f"{layer}.bias"]
    return float(((each != 0).sum(0) == 1).double().mean())


def first_pictures(found: Mapping[str, Any], count: int = 2 * SHOWN) -> dict[str, Tensor]:
    """The first batch's first images, those that shared a bin outlined: "truth" and "found", [count, C, H, W]."""
    shared = found["alone"][:count] == 0
    return {name: outlined(found[name][:count], shared) for name in ("truth", "found")}
