"""Experiments of the chapter on PRECODE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from reprolib import models
from reprolib.attacks import AnalyticRecovery, labels, matching
from reprolib.data import ImageSet
from reprolib.defenses import PRECODE, Counter, Defense
from reprolib.defenses.precode import recovered_noise
from reprolib.experiments import utility
from reprolib.experiments.networks import TRAINED_AT, attack_trials, network_seed, shared
from reprolib.federated import client
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.models.bottleneck import kl_bits


def objective_curves(
    attack: Any,
    images: ImageSet,
    trials: int,
    steps: Sequence[int],
    seed: int,
    device: torch.device,
    cases: Mapping[str, Defense | None],
    model: str,
    **options: Any,
) -> pd.DataFrame:
    """The objective of an attack that knows no defense, over its iterations: columns case, iteration, distance.

    A row a (case, step), means over `trials` images under one drawn network, the same for all cases.
    """
    rows = []
    for case, defense in cases.items():
        network, update = shared(
            images, range(trials), 0, seed, device, defense, ThreatModel(labels="known"), model, options
        )
        history = attack(network, update, seed=network_seed(seed, 0), snapshots=steps).history
        distance = history.objective.mean(1).cpu().numpy()
        rows.append(pd.DataFrame({"case": case, "iteration": history.iterations, "distance": distance}))
    return pd.concat(rows, ignore_index=True)


def noise_at_truth(
    images: ImageSet, trials: int, seed: int, device: torch.device, defense: PRECODE, model: str, **options: Any
) -> pd.DataFrame:
    """What the cosine distance is worth where an attack on PRECODE should end, and where it should not.

    A row a (trial, tensors, image, noise), in column `distance`: at the true image and at one of uniform noise; over
    all tensors and over those upstream of the bottleneck; under the client's noise, fresh noise and none. The KL term
    is left out, as the unchanged attack does. Trials are the first of `attack_networks` with one image a network.
    options: for `models.build`. Source: this book.
    """
    rows, told = [], ThreatModel(labels="known", defense_known=True)
    for trial in range(trials):
        network, update = shared(images, [trial], trial, seed, device, defense, told, model, options)
        worker = client.worker(network, "eval")
        models.leave_out_penalty(worker)
        true = images.batches(1, trials, seed=seed)[0][trial, None].to(device)
        uniform = torch.rand(true.shape, generator=generator(seed, trial)).to(true)
        soft = F.one_hot(update.labels, images.num_classes).to(true.dtype)
        only = torch.zeros(1, dtype=torch.int64, device=device)
        for tensors in ("all", "upstream"):
            for noise, name in (("recovered", "the client's"), ("fixed", "fresh"), ("zero", "none")):
                reading = replace(defense, against=Counter(tensors, noise)).counter(network, update)
                streams = [generator(network_seed(seed, trial), 0, 0, 1)]  # as an attack on this network would draw
                (drawn,) = matching.dummy_noise(network, reading, streams, 1)(true, only)  # type: ignore[misc]  # the reading has noise
                for image, pixels in (("true", true), ("random", uniform)):
                    dummies = matching.dummy_gradients(worker, pixels, soft, noise=drawn)
                    distance = matching.cosine(dummies, reading, only).item()
                    rows.append((trial, tensors, image, name, distance))
    return pd.DataFrame(rows, columns=["trial", "tensors", "image", "noise", "distance"])


def noise_by_layer(
    images: ImageSet, trials: int, seed: int, device: torch.device, defense: PRECODE | None, model: str, **options: Any
) -> pd.DataFrame:
    """How much each parameter's gradient depends on a bottleneck's noise: a row a (trial, parameter).

    Columns: length, of its gradient; share, of the whole gradient's squared length; cosine, between the gradients of
    one image under two draws, 1 without a defense. Trials as `noise_at_truth`'s. Source: this book.
    """
    rows = []
    for trial in range(trials):
        drawn = [
            shared(images, [trial], trial, seed, device, defense, ThreatModel(), model, options, draw)[1].gradients
            for draw in (0, 1)
        ]
        whole = sum(g.square().sum() for g in drawn[0].values())
        for name, first in drawn[0].items():
            cosine = F.cosine_similarity(first.flatten(), drawn[1][name].flatten(), dim=0).item()
            rows.append((trial, name, first.norm().item(), (first.square().sum() / whole).item(), cosine))
    return pd.DataFrame(rows, columns=["trial", "parameter", "length", "share", "cosine"])


def closed_form(
    images: ImageSet, trials: int, seed: int, device: torch.device, defense: PRECODE, model: str, **options: Any
) -> pd.DataFrame:
    """What PRECODE gives away without any search, from single images: a row an image. Trials as `noise_at_truth`'s.

    Columns: noise, the largest error of the client's noise as an attacker recovers it; label, whether it was read; for
    the `mlp` also image, the largest error of a pixel that `attacks.AnalyticRecovery` leaves.
    """
    x, y = images.batches(1, trials, seed=seed)
    rows = []
    for trial in range(trials):
        network, update = shared(images, [trial], trial, seed, device, defense, ThreatModel(), model, options)
        own = generator(network_seed(seed, trial), 0, client.DEFENSE_STREAM, 0)
        (drawn,) = models.draw_noise(network, 1, own).values()
        row = {"noise": (recovered_noise(network, update) - drawn).abs().max().item()}
        row["label"] = bool(labels.of_update(update).cpu() == y[trial])
        if model == "mlp":
            row["image"] = (AnalyticRecovery()(network, update).raw.cpu() - x[trial]).abs().max().item()
        rows.append(row)
    return pd.DataFrame(rows)


def noise_after_training(
    images: ImageSet,
    train_images: ImageSet,
    steps: Sequence[int],
    seed: int,
    device: torch.device,
    defense: PRECODE,
    model: str,
    **options: Any,
) -> pd.DataFrame:
    """What training does to a bottleneck: a row a number of steps, of the networks that `attack_networks` trains.

    Columns: steps, accuracy, std and mean (of the sample, over `images`: the mean std and the mean |mu|), bits (of the
    divergence, for one image).
    """
    rows, codes, own = [], [], network_seed(seed, 0)

    def note(layer: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        codes.append(layer.encode(inputs[0]))

    for count in steps:
        victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options).to(device)
        network = client.extended(victim, defense)
        utility.train(network, train_images, count, TRAINED_AT, seed=own)
        codes.clear()
        network.bottleneck.register_forward_pre_hook(note)
        row = {"steps": count, "accuracy": utility.accuracy(network, images)}
        mu, std = (torch.cat(parts) for parts in zip(*codes, strict=True))
        row |= {"std": std.mean().item(), "mean": mu.abs().mean().item(), "bits": kl_bits(mu, std).mean().item()}
        rows.append(row)
    return pd.DataFrame(rows)


def attack_trained(
    attack: Any,
    images: ImageSet,
    trials: Sequence[int],
    each: int,
    seed: int,
    device: torch.device,
    train_images: ImageSet,
    steps: int,
    defense: Defense | None,
    aims: Mapping[str, tuple[Defense | None, ThreatModel]],
    model: str,
    **options: Any,
) -> pd.DataFrame:
    """Train every network once, with the defense's bottleneck, and attack it in several ways: a row an (image, aim).

    trials: ascending; trial t attacks batch t of single images under network t // each, which trains `steps` steps.
    aims: name -> the defense as the attacker reads it, equal to `defense` but for `PRECODE.against`, and what the
    attacker knows. Columns: aim, and those of `attack_trials`, identified among all of `images`.
    Errors: ValueError for an aim at another defense than the networks trained with.
    """
    if other := [aim for aim, (reading, _) in aims.items() if reading != defense]:
        raise ValueError(f"aims {', '.join(other)} read another defense than defense={defense}: train for each apart")
    rows = []
    for network in sorted({trial // each for trial in trials}):
        own = network_seed(seed, network)
        victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options).to(device)
        victim = client.extended(victim, defense)
        utility.train(victim, train_images, steps, TRAINED_AT, seed=own)
        mine = [trial for trial in trials if trial // each == network]
        for aim, (reading, threat) in aims.items():
            found = attack_trials(
                attack,
                images,
                mine,
                each,
                seed,
                device,
                threat=threat,
                defense=reading,
                pool=images,
                shipped=victim,
            )
            rows.append(found["scores"].assign(aim=aim))
    return pd.concat(rows, ignore_index=True)


def losses_of_training(
    train_images: ImageSet,
    test_images: ImageSet,
    defense: Defense | None,
    runs: Sequence[int],
    epochs: Sequence[int],
    seed: int,
    device: torch.device,
    model: str,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    **options: Any,
) -> pd.DataFrame:
    """Loss and accuracy on training and test images after so many epochs of Adam: a row a (run, epochs).

    Every epoch visits each training image once, in an order drawn for (seed, run, epoch); what no full batch holds is
    left out, as the official loop does. Runs of one number start from the same weights and see the same batches under
    every defense. Columns: run, epochs, train_loss and test_loss (with the divergence's term where there is a
    bottleneck, one draw of noise an image, as the official notebook prints them), test_entropy (the cross-entropy
    alone), test_accuracy. options: for `models.build`. Source: the official notebook, PRECODE.ipynb.
    Errors: ValueError for fewer training images than a batch has.
    """
    if len(train_images) < batch_size:
        raise ValueError(
            f"{len(train_images)} training images make no batch of {batch_size}: pass more, or a smaller one"
        )
    rows = []
    for run in runs:
        own = network_seed(seed, run)
        network = models.build(model, train_images.num_classes, train_images.image_shape, seed=own, **options)
        network = client.extended(network.to(device), defense)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        for epoch in range(max(epochs) + 1):
            if epoch in epochs:
                row = {"run": run, "epochs": epoch, "train_loss": _losses(network, train_images, own)[0]}
                whole, entropy, accuracy = _losses(network, test_images, own)
                rows.append(row | {"test_loss": whole, "test_entropy": entropy, "test_accuracy": accuracy})
            if epoch == max(epochs):
                break
            random = generator(own, epoch)
            order = torch.randperm(len(train_images), generator=random)
            network.train()
            for index in order[: len(order) // batch_size * batch_size].split(batch_size):
                x, y = train_images.images[index].to(device), train_images.labels[index].to(device)
                optimizer.zero_grad()
                client.loss(network, models.draw_noise(network, batch_size, random), x, y).backward()
                optimizer.step()
    return pd.DataFrame(rows)


def _losses(network: torch.nn.Module, images: ImageSet, seed: int) -> tuple[float, float, float]:
    """The loss that a client minimises, its cross-entropy alone, and the accuracy, means over the images."""
    device, random, whole, entropy, right = next(network.parameters()).device, generator(seed, 0, 1), 0.0, 0.0, 0
    network.eval()
    with torch.no_grad():
        for x, y in zip(images.images.split(500), images.labels.split(500), strict=True):
            logits = functional_call(network, models.draw_noise(network, len(x), random), (x.to(device),))
            own = F.cross_entropy(logits, y.to(device), reduction="sum").item()
            entropy += own
            whole += own + len(x) * float(models.penalty(network))
            right += int((logits.argmax(1).cpu() == y).sum())
    return whole / len(images), entropy / len(images), right / len(images)
