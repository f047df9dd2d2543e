"""Experiments of the chapter on Inverting Gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from reprolib import models
from reprolib.attacks import AnalyticRecovery, InvertingGradients, TrapRows
from reprolib.data import ImageSet
from reprolib.defenses import Defense, Rescale
from reprolib.experiments.networks import SHOWN, network_seed, shared
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics


def trace(
    attack: Any,
    images: ImageSet,
    trials: int,
    steps: Sequence[int],
    seed: int,
    device: torch.device,
    *,
    threat: ThreatModel | None = None,
    defense: Defense | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Watch an attack on `trials` images under one drawn LeNet.

    steps: iterations to look at; 0 is the start. threat: what the attacker knows, the labels when left out. options:
    LeNet's, for `models.build`. Returns "images" [S, C, H, W] of the image with most contrast and "truth" [C, H, W];
    and "rows": a row a (trial, iteration) with the PSNR and the distance that the attack minimises.
    """
    x, y = images.batches(1, trials, seed=seed)
    richest = int(x.flatten(1).std(1).argmax())
    threat = threat or ThreatModel(labels="known")
    model, update = shared(images, range(trials), 0, seed, device, defense, threat, "lenet", options)
    attack = replace(attack, iterations=max(steps))
    history = attack(model, update, seed=network_seed(seed, 0), snapshots=steps).history
    rows = []
    for step, shown, distance in zip(history.iterations, history.images.cpu(), history.objective.cpu(), strict=True):
        psnr = metrics.psnr(shown[:, 0].clamp(0, 1), x[:, 0]).numpy()
        columns = {"trial": range(trials), "iteration": step, "psnr": psnr, "distance": distance.numpy()}
        rows.append(pd.DataFrame(columns))
    shown = history.images[:, richest, 0].clamp(0, 1).cpu()
    return {"rows": pd.concat(rows, ignore_index=True), "images": shown, "truth": x[richest, 0]}


def read_first_layer(
    images: ImageSet, sizes: Sequence[int], count: int, networks: int, local: LocalTraining, seed: int, **options: Any
) -> dict[str, Any]:
    """What the closed form reads off an MLP's first layer: from one image, from batches, after several local steps.

    sizes: of the batches; `count` images in all are attacked at each size, in batches dealt out to `networks` drawn
    networks. local: of the case with local steps, which attacks single images, in float32 and in float64. options: the
    MLP's. Returns "rows": a row an image with the columns case, batch, network, trial (the batch), image, error
    (largest of a pixel) and rms (of the image); and for each size "batch N truth" and "batch N read" [n, C, H, W] of
    the first images.
    """
    cases = [(f"batch of {size}", size, torch.float32, None) for size in sizes]
    cases += [("local steps, float32", 1, torch.float32, local), ("local steps, float64", 1, torch.float64, local)]  # type: ignore[list-item]  # with and without local training
    rows, found = [], {}
    for name, size, dtype, of_client in cases:
        batches = max(1, count // size)
        x, y = images.batches(size, batches, seed=seed)
        x, read = x.to(dtype), []
        for network, own in enumerate(torch.arange(batches).tensor_split(min(networks, batches))):
            model = models.build(
                "mlp", images.num_classes, images.image_shape, seed=network_seed(seed, network), **options
            ).to(dtype)
            result = AnalyticRecovery()(model, client.share(model, x[own], y[own], local=of_client))
            read.append(result.images.flatten(0, 1))
            off = (result.raw - x[own]).flatten(0, 1).flatten(1)
            columns = {"case": name, "batch": size, "network": network, "trial": own.repeat_interleave(size)}
            columns |= {"image": torch.arange(size).repeat(len(own)), "error": off.abs().amax(1)}
            columns |= {"rms": off.square().mean(1).sqrt()}
            rows.append(pd.DataFrame({k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}))
        if of_client is None:
            found[f"batch {size} truth"] = x.flatten(0, 1)[:SHOWN]
            found[f"batch {size} read"] = torch.cat(read)[:SHOWN]
    return found | {"rows": pd.concat(rows, ignore_index=True)}


def read_rows(
    images: ImageSet, sizes: Sequence[int], count: int, networks: int, seed: int, agree: float, **options: Any
) -> pd.DataFrame:
    """What single rows of an MLP's first layer hold of a batch: a row that one image alone passes holds that image.

    The attacker, who does not know the images, keeps what two rows or more say alike (`_agreeing`). sizes, count,
    networks: as `read_first_layer`. agree: the RMS distance below which two pictures are one. options: the MLP's.
    Columns, a row an image: batch, network, trial, image, nearest and kept (RMS distance to the nearest row, and to the
    nearest picture that the attacker keeps), pictures (that it keeps of the batch) and false (those that are no image).
    """
    rows = []
    for size in sizes:
        batches = max(1, count // size)
        x, y = images.batches(size, batches, seed=seed)
        for network, own in enumerate(torch.arange(batches).tensor_split(min(networks, batches))):
            model = models.build(
                "mlp", images.num_classes, images.image_shape, seed=network_seed(seed, network), **options
            )
            for trial in own.tolist():
                found = TrapRows()(model, client.share(model, x[trial : trial + 1], y[trial : trial + 1]))
                read = found.raw[0][~found.lost[0]].flatten(1).double()  # type: ignore[index]  # TrapRows counts the lost
                kept, truth = _agreeing(read, size, agree), x[trial].flatten(1).double()
                far = _rms(kept, truth)
                columns = {"batch": size, "network": network, "trial": trial, "image": range(size)}
                columns |= {"nearest": _rms(read, truth).amin(0).numpy()}
                columns |= {"kept": far.amin(0).numpy() if len(kept) else np.inf, "pictures": len(kept)}
                columns |= {"false": int((far.amin(1) >= agree).sum()) if len(kept) else 0}
                rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def _rms(one: Tensor, other: Tensor) -> Tensor:
    """The root of the mean squared difference between pictures [n, d] and others [m, d]: [n, m]."""
    return torch.cdist(one, other) / one.shape[1] ** 0.5


def _agreeing(read: Tensor, most: int, agree: float) -> Tensor:
    """Of what rows hold, [k, d], the pictures that two or more hold alike, at most `most`, the best supported first."""
    near = _rms(read, read) < agree
    kept: list[int]
    support, kept = near.sum(1), []
    for row in support.argsort(descending=True, stable=True).tolist():
        if support[row] < 2 or len(kept) == most:
            break
        if not near[row, kept].any():
            kept.append(row)
    return read[kept]


def local_motion(
    images: ImageSet,
    trials: Sequence[int],
    each: int,
    seed: int,
    cases: Sequence[tuple[int, float]],
    model: str = "lenet",
    **options: Any,
) -> pd.DataFrame:
    """How far local steps on one image carry a client from a single gradient; cases: (steps, learning rate).

    Trial t meets the image and the network t // each of `attack_trials`. options: the network's. Columns, a row a
    (case, trial): network, trial, steps, rate, cosine (of the update and the gradient at the weights that were sent),
    moved (length of the weights' change over that of the weights), and before, first, last: the probability of the
    label at the weights that were sent, after one step and after all.
    """
    drawn, labels = images.batches(1, max(trials) + 1, seed=seed)
    rows = []
    for network in sorted({trial // each for trial in trials}):
        own = [trial for trial in trials if trial // each == network]
        x, y = drawn[own], labels[own]
        victim = models.build(
            model, images.num_classes, images.image_shape, seed=network_seed(seed, network), **options
        )
        sent = {name: value.detach() for name, value in victim.named_parameters()}
        nothing = {name: value.new_zeros(len(own), *value.shape) for name, value in sent.items()}
        gradient = _flat(client.share(victim, x, y).gradients)
        size = _flat({name: value[None] for name, value in sent.items()}).norm()
        row = {"network": network, "trial": own, "before": _probability(victim, sent, nothing, x, y)}
        for steps, rate in cases:
            one, all_of_them = (
                client.share(victim, x, y, local=LocalTraining(count, 1, rate)).gradients for count in (1, steps)
            )
            change = _flat(all_of_them)
            row |= {"steps": steps, "rate": rate, "moved": (change.norm(dim=1) / size).numpy()}
            row |= {"cosine": F.cosine_similarity(-change, gradient).numpy()}
            row |= {"first": _probability(victim, sent, one, x, y)}
            row |= {"last": _probability(victim, sent, all_of_them, x, y)}
            rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    """All parameters of a trial in one row, in float64: [T, P]."""
    return torch.cat([value.detach().double().flatten(1) for value in gradients.values()], 1)


def _probability(
    victim: torch.nn.Module, sent: dict[str, Tensor], change: dict[str, Tensor], x: Tensor, y: Tensor
) -> np.ndarray:
    """The probability of each trial's label under the weights that were sent and its own change of them."""
    with torch.no_grad():
        logits = [
            functional_call(victim, {name: sent[name] + change[name][t] for name in sent}, (x[t],))
            for t in range(len(x))
        ]
    return torch.stack(logits).softmax(-1).gather(2, y[..., None]).flatten().double().numpy()


def guesses(images: ImageSet, auxiliary: ImageSet, count: int, seed: int) -> pd.DataFrame:
    """What pictures score that no attack made: guesses without the gradient, and the truth seen badly.

    auxiliary: images of the attacker's own. Columns, a row a (picture, image): picture, trial, psnr (dB), identified
    (among all of `images`).
    """
    truth = images.batches(1, count, seed=seed)[0].flatten(0, 1)
    made = {
        "constant grey": torch.full_like(truth, 0.5),
        "mean image": auxiliary.mean_image.expand_as(truth),
        "nearest image of the attacker's own (oracle)": auxiliary.nearest(truth),
        "truth: its mean colour": truth.mean((2, 3), keepdim=True).expand_as(truth),
        "truth: means of 4 x 4 pixels": F.interpolate(F.avg_pool2d(truth, 4), scale_factor=4.0),
        "truth: shifted by a pixel": F.pad(truth, (1, 0, 0, 0), mode="replicate")[..., :-1],
        "truth: blurred, 5 x 5": F.avg_pool2d(F.pad(truth, (2, 2, 2, 2), mode="reflect"), 5, stride=1),
    }
    rows = []
    for name, picture in made.items():
        rank, _ = metrics.identify(picture, truth, images.images)
        columns = {"picture": name, "trial": range(count), "psnr": metrics.psnr(picture, truth).double().numpy()}
        rows.append(pd.DataFrame(columns | {"identified": (rank == 1).numpy()}))
    return pd.concat(rows, ignore_index=True)


def grey_cards(
    images: ImageSet, trials: Sequence[int], seed: int, batch: int = 1, distinct_labels: bool = False
) -> pd.DataFrame:
    """What a constant grey image scores on the images that `attack_trials` meets in these trials: a row an image.

    Columns: trial, image, psnr (dB), in the order of the attack's scores.
    """
    drawn, _ = images.batches(batch, max(trials) + 1, seed=seed, distinct_labels=distinct_labels)
    truth = drawn[list(trials)].flatten(0, 1)
    psnr = metrics.psnr(torch.full_like(truth, 0.5), truth).double().numpy()
    trial, image = np.repeat(list(trials), batch), np.tile(np.arange(batch), len(trials))
    return pd.DataFrame({"trial": trial, "image": image, "psnr": psnr})


def first_distances(
    images: ImageSet, trials: Sequence[int], each: int, seed: int, factor: float, **options: Any
) -> pd.DataFrame:
    """The cosine distance at the attack's first iterate, on the gradient and on one `factor` times as long.

    Trial t meets the image, the network t // each and the start of `attack_trials`. options: LeNet's. Columns: network,
    trial, distance, rescaled; a row a trial.
    """
    drawn, labels = images.batches(1, max(trials) + 1, seed=seed)
    attack, known, rows = InvertingGradients(iterations=1), ThreatModel(labels="known"), []
    for network in sorted({trial // each for trial in trials}):
        own = [trial for trial in trials if trial // each == network]
        model = models.build(
            "lenet", images.num_classes, images.image_shape, seed=network_seed(seed, network), **options
        )
        streams, row = (
            [(network_seed(seed, network), trial % each) for trial in own],
            {"network": network, "trial": own},
        )
        for name, defense in (("distance", None), ("rescaled", Rescale(factor))):
            update = client.share(model, drawn[own], labels[own], threat=known, defense=defense, seed=streams)
            row[name] = attack(model, update, seed=streams, snapshots=[0]).history.objective[0].double().numpy()
        rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)
