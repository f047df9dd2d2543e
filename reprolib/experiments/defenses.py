"""Experiments of the page on all defenses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reprolib import client, metrics, models, utility
from reprolib.client import SharedUpdate, ThreatModel, generator
from reprolib.data import ImageSet
from reprolib.defenses import AfterFeedback, Defense, GradDefense, IntraInstaHide, MixUp, ats, with_feedback
from reprolib.defenses.graddefense import compensate
from reprolib.defenses.mixing import decode, decode_magnitudes
from reprolib.experiments.networks import CPU, TRAINED_AT, attack_together, network_seed, shared
from reprolib.models import Ensemble


def denoised(
    model: torch.nn.Module, images: ImageSet, defense: GradDefense, clients: int, size: int, seed: int
) -> pd.DataFrame:
    """What the server's denoising makes of GradDefense's noise in the mean of clients' updates: a row a tensor.

    Columns: tensor; before, and after, the denoising, the Euclidean distance to the mean of the clean updates; after
    with the noise's variance in a mean ("fixed"), and with the one that the released demo computes ("official"),
    clients^2 times as large. Each client has `size` images. Source: sheet `defenses.md`, section 5, GradDefense 4.
    """
    x, y = images.batches(size, clients, seed=seed)
    clean, noisy = (client.share(model, x, y, defense=d, seed=seed).gradients for d in (None, defense))
    clean, noisy = ({name: g.mean(0) for name, g in gradients.items()} for gradients in (clean, noisy))
    variance = defense.noise_variance([1 / clients] * clients)
    cleaned = {"fixed": compensate(noisy, variance), "official": compensate(noisy, clients**2 * variance)}
    rows = []
    for name, g in clean.items():
        row = {"tensor": name, "before": (noisy[name] - g).norm().item()}
        rows.append(row | {way: (found[name] - g).norm().item() for way, found in cleaned.items()})
    return pd.DataFrame(rows)


def without_noise(
    images: ImageSet, defense: GradDefense, networks: int, attack: Any, seed: int, pool: ImageSet, **options: Any
) -> pd.DataFrame:
    """The scores of an attack by somebody who knows the seed of GradDefense's noise: a drawn network for each image."""
    x, y = images.batches(1, networks, seed=seed)
    victims, updates = [], []
    for k in range(networks):
        victim, update = shared(images, [k], k, seed, CPU, defense, ThreatModel(labels="known"), "lenet", options)
        clean = defense.without_noise(update, victim, network_seed(seed, k))
        updates.append(replace(update, gradients=clean))
        victims.append(victim)
    return metrics.score(attack_together(attack, victims, updates, seed), x, y, pool)


def attack_encoded(
    attack: Any,
    images: ImageSet,
    defense: Defense | None,
    networks: int,
    seed: int,
    pool: ImageSet,
    threat: ThreatModel,
    *,
    views: int = 0,
    victim: torch.nn.Module | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The scores of an attack on clients that alter their data, against what they trained on: a network an image.

    Behind the scores: `original_identified`, whether the reconstruction identifies the image that was altered; and with
    `views`, `altered_identified`, the same where the attacker alters each candidate so many times as the client would
    and takes the nearest form. victim: the network of all images, in place of drawn ones. options: LeNet's, for
    `models.build`.
    """
    x, y = images.batches(1, networks, seed=seed)
    victims, updates, encoded = [], [], []
    for k in range(networks):
        own = network_seed(seed, k)
        if victim is None:
            drawn, update = shared(images, [k], k, seed, CPU, defense, threat, "lenet", options)
        else:
            drawn = victim
            update = client.share(victim, x[k, None], y[k, None], threat=threat, defense=defense, seed=own)
        victims.append(drawn)
        updates.append(update)
        encoded.append(x[k] if defense is None else _encoded(defense, x[k], y[k], images.num_classes, own))
    reconstruction = attack_together(attack, victims, updates, seed)
    scores = metrics.score(reconstruction, torch.stack(encoded), y, pool)
    scores["original_identified"] = metrics.score(reconstruction, x, y, pool).identified
    if views:

        def altered(candidates: Tensor) -> Tensor:
            nobodys = torch.zeros(len(candidates), dtype=torch.int64)
            forms = (_encoded(defense, candidates, nobodys, images.num_classes, seed, k) for k in range(1, views + 1))
            return torch.stack(list(forms))

        ranks, _ = metrics.identify(reconstruction.images[:, 0], x[:, 0], pool.images, altered)
        scores["altered_identified"] = (ranks == 1).numpy()
    return scores


def _encoded(defense: Defense, images: Tensor, labels: Tensor, classes: int, seed: int, number: int = 0) -> Tensor:
    """What a client trains on in place of images [B, C, H, W]; number 0: as the first trial of `share` does."""
    random = generator(seed, 0, client.DEFENSE_STREAM, number)
    return defense.encode(images, F.one_hot(labels, classes).float(), random)[0]


KEPT = 0.75
"""Of a client's reconstructed encodings, those with the smallest distance, which are decoded; the attacker sees it."""


def decode_client(
    attack: Any,
    images: ImageSet,
    client_number: int,
    private: int,
    rounds: int,
    defense: type[MixUp],
    seed: int,
    pool: ImageSet,
    **options: Any,
) -> dict[str, Any]:
    """Collect the encodings of a client's images over the rounds of training, and decode them together.

    The client has `private` images and shares a mixture of each in every round, one an update, under a network of its
    own (a global model moves between rounds). Each update is attacked for its encoding by an attacker without labels;
    then the images come out of all encodings, whose pairings and weights are given: an oracle. Behind InstaHide's signs
    a set comes out up to its negative, so both count as forms of a candidate.
    defense: MixUp or IntraInstaHide. attack: DLG or one like it, with labels optimised. options: LeNet's.
    Returns "scores", a row an image: client; encoding_psnr, mean over its encodings; single_identified, whether its
    first encoding alone identifies it; psnr and identified of the decoded image; and "truth", "encodings" (the first
    reconstructed ones) and "decoded" [private, C, H, W], the better of the two readings of the set.
    Source: sheet `defenses.md`, section 4.12.
    """
    x, y = images.batches(private, client_number + 1, seed=seed)
    x, y = x[client_number], y[client_number]
    own = replace(images, images=x, labels=y)
    mixing = defense(own)
    victims, updates, encodings, pairings = [], [], [], []
    for number in range(private * rounds):
        place = torch.tensor([number % private])
        drawn = network_seed(seed, client_number * private * rounds + number)
        victim = models.build("lenet", images.num_classes, images.image_shape, seed=drawn, **options)
        updates.append(client.share(victim, x[place][None], y[place][None], defense=mixing, seed=drawn))
        victims.append(victim)
        encodings.append(_encoded(mixing, x[place], y[place], images.num_classes, drawn))
        pairings.append(mixing.pairings(place, generator(drawn, 0, client.DEFENSE_STREAM, 0)))
    reconstruction = attack_together(attack, victims, updates, network_seed(seed, client_number))
    found, weights = reconstruction.images[:, 0].cpu(), torch.cat(pairings)
    kept = reconstruction.objective.cpu().argsort()[: max(private, round(KEPT * len(found)))]
    if torch.linalg.matrix_rank(weights[kept]) < private:
        kept = torch.arange(len(found))
    forms: dict[str, Any] = {}
    if defense is IntraInstaHide:
        decoded = decode_magnitudes(found[kept], weights[kept], generator(seed, client_number))
        if metrics.mse(decoded, x).mean() > metrics.mse(1 - decoded, x).mean():
            decoded = 1 - decoded
        forms = {"seen_as": lambda candidates: torch.stack([candidates, 1 - candidates])}
    else:
        decoded = decode(found[kept], weights[kept])
    psnr = metrics.psnr(found, torch.cat(encodings)).view(rounds, private).mean(0)
    columns = {"encoding_psnr": psnr, "psnr": metrics.psnr(decoded, x)}
    for name, guess in (("single_identified", found[:private]), ("identified", decoded)):
        columns[name] = metrics.identify(guess, x, pool.images, **forms)[0] == 1
    scores = pd.DataFrame({"client": client_number} | {name: values.numpy() for name, values in columns.items()})
    return {"scores": scores, "truth": x, "encodings": found[:private], "decoded": decoded.clamp(0, 1)}


MOVES = 0.01
"""Learning rate with which a server moves its model by a client's shared updates."""


def attack_after_feedback(
    attack: Any,
    images: ImageSet,
    earlier: ImageSet,
    defense: Defense,
    rounds: int,
    networks: int,
    seed: int,
    pool: ImageSet,
    knows: Literal["nothing", "defense", "feedback"],
    **options: Any,
) -> pd.DataFrame:
    """The scores of an attack on a client's update that carries what `rounds` earlier rounds withheld: a row an image.

    Every image has a client and a drawn network of its own. In each earlier round the client has another image of
    `earlier`, and the server moves the weights by what it shares; the attacked round has the same image whatever the
    number of rounds. knows: "nothing" of the defense; the "defense", read as in a first round; or the "feedback" too,
    whose bound the attacker reads off the round before (`defenses.AfterFeedback`). options: LeNet's.
    Source: sheet `defenses.md`, section 4.3.
    """
    x, y = images.batches(1, networks, seed=seed)
    past, past_labels = earlier.batches(1, networks * max(1, rounds), seed=seed)
    victims, updates, befores = [], [], []
    for k in range(networks):
        own, mine = network_seed(seed, k), slice(k * rounds, (k + 1) * rounds)
        victim = models.build("lenet", images.num_classes, images.image_shape, seed=own, **options)
        queue = [*zip(past[mine, None], past_labels[mine, None], strict=True), (x[k, None], y[k, None])]
        withheld, values, before = {}, {}, {}
        for number, (pixels, truth) in enumerate(queue):
            for name, parameter in victim.named_parameters():
                parameter.data -= MOVES * values.get(name, torch.zeros(()))
            update, before = client.share(victim, pixels, truth, threat=ThreatModel(labels="known")), values
            gradients = {name: g[0] for name, g in update.gradients.items()}
            random = generator(own, number, client.DEFENSE_STREAM)
            values, withheld = with_feedback(defense, gradients, withheld, victim, pixels[0], truth[0], random)
        victims.append(victim)
        updates.append(replace(update, gradients={name: g[None] for name, g in values.items()}))
        befores.append(before)
    together = Ensemble.of(victims, 1)
    joined, reading = SharedUpdate.join(updates, together), None
    if knows == "feedback" and rounds:
        reading = AfterFeedback(defense, {name: torch.stack([b[name] for b in befores]) for name in befores[0]})
    elif knows != "nothing":
        reading = defense
    streams = [(network_seed(seed, k), 0) for k in range(networks)]
    return metrics.score(attack(together, replace(joined, defense=reading), seed=streams), x, y, pool)


def search_policies(
    train_images: ImageSet, candidates: Sequence[str], steps: int, seed: int, scored: int = 100
) -> dict[str, Any]:
    """ATS's search: a network is trained briefly, and every candidate gets its two scores there.

    scored: images for the accuracy score; the privacy score takes the first five. Returns "table", a row a policy, most
    private first: policy, privacy (low is private), accuracy (high is good) and kept, whether its accuracy score is in
    the better half (the released limit belongs to another network and number of images); and, for attacks on it, the
    weights of the trained network (a ReLU LeNet with torch's initialisation), a tensor a parameter.
    Source: sheet `defenses.md`, section 4.11.
    """
    untrained, trained = (policy_victim(train_images, seed) for _ in range(2))
    utility.train(trained, train_images, steps, TRAINED_AT, seed=seed)
    x, y = train_images.images[:scored], train_images.labels[:scored]
    rows = ats.search(trained, untrained, x, y, candidates, seed, least=-math.inf)
    table = pd.DataFrame(rows, columns=["policy", "privacy", "accuracy"])
    table["kept"] = table.accuracy >= table.accuracy.median()
    return {"table": table} | {name: p.detach() for name, p in trained.named_parameters()}


def policy_victim(images: ImageSet, seed: int) -> torch.nn.Module:
    """The untrained network of `search_policies`."""
    own = network_seed(seed, 0)
    return models.build("lenet", images.num_classes, images.image_shape, seed=own, activation="relu", init="default")
