"""Experiments of the chapter on the Cocktail Party Attack: batches unmixed from a layer's gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reprolib import models
from reprolib.attacks import CocktailParty, DerivativeICA
from reprolib.attacks.fgla import FGLA
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.reconstruction import Reconstruction
from reprolib.attacks.separation import separate
from reprolib.data import ImageSet
from reprolib.defenses import Defense
from reprolib.experiments import utility
from reprolib.experiments.generators import check_disjoint
from reprolib.experiments.networks import SHOWN, TRAINED_AT, network_seed, one_hidden
from reprolib.experiments.separation import fresh_head
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.streams import Seed, generator
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate
from reprolib.measure import metrics, pairing
from reprolib.models import Victims

AMONG = 500
"""Images of the set, of which the original must be the nearest to what was read."""

CHANCE_STREAM = 0xCA7C  # of the guesses of `by_chance`


@dataclass(frozen=True, eq=False)
class Room:
    """Batches at their clients, each under a network of its own: `count` batches of `size` of a set's images.

    width: of the hidden layer. training: steps of SGD that each network takes first, on `public`. local, clients,
    defense, known: how an update comes about, and whether the server knows the defense. first: batches left out, those
    of an earlier experiment.
    """

    images: ImageSet
    count: int
    size: int
    width: int
    seed: int
    public: ImageSet
    training: int = 0
    local: LocalTraining | None = None
    clients: int = 1
    defense: Defense | None = None
    known: bool = False
    first: int = 0

    def batches(self) -> tuple[Tensor, Tensor]:
        """Images [T, B, C, H, W] in float64 and labels [T, B]."""
        x, y = self.images.batches(self.size, self.first + self.count, seed=self.seed)
        return x[self.first :].double(), y[self.first :]

    def shared(self) -> tuple[Victims, SharedUpdate, Tensor]:
        """The networks, what their clients share, and the images."""
        x, y = self.batches()
        observes = "one client" if self.clients == 1 else f"mean of {self.clients}"
        threat = ThreatModel(labels="known", observes=observes, defense_known=self.known)
        networks, updates = [], []
        for k in range(self.count):
            own = network_seed(self.seed, self.first + k)
            network = one_hidden(self.images.image_shape, self.images.num_classes, self.width, own)
            if self.training:
                network = utility.train(network, self.public, self.training, TRAINED_AT, seed=own)
            network = client.extended(network.double(), self.defense)
            updates.append(
                client.share(
                    network, x[k : k + 1], y[k : k + 1], threat=threat, defense=self.defense, local=self.local, seed=own
                )
            )
            networks.append(network)
        victims = Victims.of(networks)
        return victims, SharedUpdate.join(updates, victims), x


@dataclass(frozen=True, eq=False)
class SingleRoom(Room):
    """A `Room` of untrained networks that compute in float32, as clients do; those of a plain one have float64.

    One client with one gradient, without a defense.
    """

    def shared(self) -> tuple[Victims, SharedUpdate, Tensor]:
        """As `Room.shared`."""
        x, y = self.batches()
        networks, updates = [], []
        for k in range(self.count):
            own = network_seed(self.seed, self.first + k)
            networks.append(one_hidden(self.images.image_shape, self.images.num_classes, self.width, own))
            updates.append(client.share(networks[k], x[k : k + 1].float(), y[k : k + 1], seed=own))
        victims = Victims.of(networks)
        return victims, SharedUpdate.join(updates, victims), x


@dataclass(frozen=True)
class Stretched:
    """FastICA scored as the paper's objective is: each image stretched to [0, 1], the sign from the truth (`unmixed`).

    What the bias gradient says of sign and scale is so thrown away.
    """

    attack: DerivativeICA
    reading: str = "range"

    def __call__(
        self, model: Victims, update: SharedUpdate, seed: Seed = 0, progress: bool | None = None
    ) -> Reconstruction:
        """What the attack reads, stretched. Errors: the attack's."""
        found = self.attack(model, update, seed, progress)
        return replace(found, raw=_stretched(found.raw.flatten(0, 1)).view_as(found.raw))


def unmixed(room: Room, attacks: Mapping[str, Any]) -> dict[str, Any]:
    """What each of several attacks reads out of the same updates: "scores" and pictures of the first batch.

    Scores: a row an (attack, image) with trial, image, psnr, ssim, recovered, exact (as `pairing.score`), identified
    (nearest to what was read among AMONG of the set), converged and seconds (a batch). An attack that leaves sign and
    range open gets the sign from the truth (`upright`). The rows of "mean image" are what the mean of the public images
    would get. Pictures of the first batch: "truth" and NAME, [n, C, H, W].
    """
    victims, update, x = room.shared()
    pool, fallback = room.images.images[:AMONG], room.public.mean_image.double()
    tables, shown = [], {"truth": x[0, :SHOWN].float()}
    for name, attack in attacks.items():
        found = attack(victims, update, seed=room.seed, progress=False)
        images, lost = found.images.double(), found.lost
        if getattr(attack, "reading", "bias") == "range":
            images = upright(images, x)
        table = pairing.score(images, x, fallback, lost)
        placed = _placed(images, torch.tensor(table.candidate.tolist()).view(x.shape[:2]), fallback)
        table["identified"] = _identified(placed.flatten(0, 1), x.flatten(0, 1), pool)
        table["converged"] = np.repeat((~found.diverged).numpy(), room.size)
        tables.append(table.assign(seconds=found.seconds / len(x), attack=name))
        shown[name] = placed[0, :SHOWN].float()
    nothing = torch.ones(x.shape[:2], dtype=torch.bool)
    grey = pairing.score(torch.zeros_like(x), x, fallback, nothing)
    tables.append(grey.assign(identified=False, converged=True, seconds=0.0, attack="mean image"))
    return shown | {"scores": pd.concat(tables, ignore_index=True)}


def of_full_rank(room: Room, attack: DerivativeICA) -> dict[str, Any]:
    """`unmixed` by an attacker who looks for as many images as the gradient's rank allows, however many there are."""
    victims, update, _ = room.shared()
    rank = int(FirstLayer.of(victims, update).rank.rank.min())
    return unmixed(room, {"bands": replace(attack, sources=min(rank, room.size))})


def by_chance(room: Room, candidates: int | None = None) -> pd.DataFrame:
    """What who read nothing would score on a room's batches: a row a (guess, image), columns as `unmixed`'s scores.

    Guesses: "unrelated", as many public images, and "blends", random mixtures of the batch with factors that sum to
    one, as anybody can take them out of the gradient's rows. Both are paired with the truth as a reconstruction is,
    which lifts their chance far over one in AMONG in large batches. candidates: how many; None is the batch.
    """
    x, _ = room.batches()
    count, pool, tables = candidates or room.size, room.images.images[:AMONG], []
    for trial, own in enumerate(x):
        random = generator(room.seed, trial, CHANCE_STREAM)
        chosen = torch.randperm(len(room.public), generator=random)[:count]
        factors = torch.randn(count, room.size, generator=random, dtype=torch.float64) / room.size**0.5
        factors = factors - factors.mean(1, keepdim=True) + 1 / room.size
        blends = torch.einsum("nb,bchw->nchw", factors, own).clamp(0, 1)
        guesses = {"unrelated": room.public.images[chosen].double(), "blends": blends}
        for name, guess in guesses.items():
            table = pairing.score(guess[None], own[None], room.public.mean_image.double())
            order = torch.tensor(table.candidate.tolist())[None]
            placed = _placed(guess[None], order, room.public.mean_image.double())
            table["identified"] = _identified(placed[0], own, pool)
            tables.append(table.assign(trial=trial, attack=name))
    return pd.concat(tables, ignore_index=True)


def upright(images: Tensor, truth: Tensor) -> Tensor:
    """Images [T, n, C, H, W] whose sign is not known, each turned to where it is nearer to one of the truth's."""
    flat, true = images.flatten(2), truth.flatten(2)
    plain, turned = (torch.cdist(own, true).amin(2) for own in (flat, 1 - flat))
    return torch.where((turned < plain)[:, :, None, None, None], 1 - images, images)


def _placed(images: Tensor, order: Tensor, fallback: Tensor) -> Tensor:
    """Candidates in the order of the truth, the fallback where there is none."""
    found = fallback.expand(*order.shape, *fallback.shape).clone()
    trial = torch.arange(len(order))[:, None].expand(order.shape)
    found[order >= 0] = images.clamp(0, 1)[trial[order >= 0], order[order >= 0]]
    return found


def _identified(found: Tensor, truth: Tensor, pool: Tensor) -> np.ndarray:
    return (metrics.identify(found.float(), truth.float(), pool)[0] == 1).numpy()


def spectra(room: Room) -> pd.DataFrame:
    """The singular values of each batch's gradient and what it tells: a row a (trial, index).

    Columns: trial, index (from 1), value (over the largest), rank, gap and span, the largest share of one of the
    batch's images that lies outside the span of the rows.
    """
    victims, update, x = room.shared()
    layer = FirstLayer.of(victims, update)
    inputs, rows = layer.of_pixels(x), layer.subspace(room.size)
    outside = (inputs - inputs @ rows.mT @ rows).norm(dim=2) / inputs.norm(dim=2)
    rank, tables = layer.rank, []
    for trial in range(room.count):
        values = rank.values[trial] / rank.values[trial, 0]
        columns = {"trial": trial, "index": np.arange(1, len(values) + 1), "value": values.numpy()}
        known = {"rank": int(rank.rank[trial]), "gap": float(rank.gap[trial]), "span": float(outside[trial].max())}
        tables.append(pd.DataFrame(columns | known))
    return pd.concat(tables, ignore_index=True)


def mixtures(room: Room, samples: str = "bands") -> dict[str, Tensor]:
    """The first batch on its way: pictures of sources, of rows of the gradient, of their differences, of what is read.

    Every row of pictures is [n, C, H, W]; rows of the gradient and differences are stretched to [0, 1].
    """
    victims, update, x = room.shared()
    layer = FirstLayer.of(victims, update)
    count = min(SHOWN, room.size)
    largest = layer.weight[0].norm(dim=1).argsort(descending=True)[:count]
    rows = layer.weight[0, largest].unflatten(1, layer.shape)
    found = layer.to_pixels(separate(layer, samples=samples, seed=room.seed).inputs).clamp(0, 1)
    order = pairing.pair(found, x)
    edges = torch.nn.functional.pad(rows.diff(dim=-1), (0, 1))
    return {
        "the client's images": x[0, :count].float(),
        "rows of the gradient": _stretched(rows).float(),
        "their differences": _stretched(edges).float(),
        "read from it": found[0, order[0, :count]].float(),
    }


def _stretched(images: Tensor) -> Tensor:
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low)


def swept(room: Room, attack: CocktailParty, settings: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """The objective under other weights, on batches held out: a row a setting with its values and the mean PSNR."""
    rows = []
    for changed in settings:
        scores = unmixed(room, {"swept": replace(attack, **changed)})["scores"].query("attack == 'swept'")
        rows.append(dict(changed) | {"psnr": scores.psnr.mean()})
    return pd.DataFrame(rows)


def behind_a_trunk(trunk: nn.Module, width: int, classes: int, seed: int) -> nn.Module:
    """The trunk of a convolutional victim, a fresh hidden layer of `width` ReLU units, and a fresh head."""
    features = trunk.head.in_features
    layers = models.drawn(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes)), seed
    )
    return models.adapt(
        nn.Sequential(trunk.trunk, *layers), trunk.image_shape, classes, normalize=trunk.normalize
    ).double()


def decoded_features(
    trunk: nn.Module,
    decoder: nn.Module,
    images: ImageSet,
    public: ImageSet,
    count: int,
    size: int,
    width: int,
    seed: int,
) -> dict[str, Any]:
    """Features read out of a hidden layer behind a trunk, and out of a head of 1,000 classes, then decoded.

    Labels repeat as they come and are not used, but for FGLA's row. Returns "scores", a row an (attack, image) with
    trial, psnr, identified, and repeated (its label occurs again in the batch), and pictures of the first batch.
    Attacks: "oracle" is the decoder on the true features, "hidden layer" and "head" what separation makes of the two,
    no feature below zero, "FGLA" its quotient at the same head, labels given, and "mean image" that of the public
    images.
    Errors: ValueError for a public image that is among the private ones.
    """
    check_disjoint(public, images)
    x, y = images.batches(size, count, seed=seed)
    fallback, pool = public.mean_image, images.images[:AMONG]
    decoder, tables, shown = decoder.cpu(), [], {"truth": x[0][:SHOWN]}
    for k in range(count):
        own = network_seed(seed, k)
        wide = fresh_head(trunk, 1000, own).double()
        update = client.share(wide, x[k : k + 1].double(), y[k : k + 1], threat=ThreatModel(labels="known"))
        hidden = behind_a_trunk(trunk, width, images.num_classes, own)
        through = client.share(hidden, x[k : k + 1].double(), y[k : k + 1])
        name = next(n for n, m in hidden.named_modules() if isinstance(m, nn.Linear))
        found = {
            "oracle": models.penultimate(trunk, x[k])[None],
            "hidden layer": separate(FirstLayer.of(hidden, through, name), seed=own).inputs,
            "head": separate(FirstLayer.of(wide, update, "head"), seed=own).inputs,
        }
        pictures: dict[str, Tensor] = {}
        with torch.no_grad():
            pictures |= {name: decoder(features[0].clamp(min=0).float()) for name, features in found.items()}
        blended = FGLA(decoder, missing_offset="none")
        single = fresh_head(trunk, 1000, own)
        quotient = client.share(single, x[k : k + 1], y[k : k + 1], threat=ThreatModel(labels="known"))
        pictures["FGLA"] = blended(single, quotient).images[0]
        pictures["mean image"] = fallback.expand_as(x[k])
        for attack, made in pictures.items():
            order = pairing.pair(made[None], x[k : k + 1])[0]
            placed = made[order]
            psnr = metrics.psnr(placed, x[k]).double().numpy()
            row = {"trial": k, "image": np.arange(size), "psnr": psnr, "identified": _identified(placed, x[k], pool)}
            row |= {"repeated": ((y[k][:, None] == y[k]).sum(1) > 1).numpy()}
            tables.append(pd.DataFrame(row).assign(attack=attack))
            if k == 0:
                shown[attack] = placed[:SHOWN]
    return shown | {"scores": pd.concat(tables, ignore_index=True)}
