"""Experiments that chapters repeat: attacks on many images under drawn networks, one attack followed, labels read."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from reprolib import client, labels, matching, metrics, models, training, utility
from reprolib.attacks import AnalyticRecovery, linear_inputs
from reprolib.chapter import Chapter
from reprolib.client import LocalTraining, SharedUpdate, ThreatModel, generator
from reprolib.data import ImageSet
from reprolib.defenses import PRECODE, Counter, Defense, GradDefense, KeptColumns, Soteria, describe
from reprolib.defenses.graddefense import compensate
from reprolib.defenses.precode import recovered_noise
from reprolib.models import Ensemble
from reprolib.models.bottleneck import kl_bits

TOGETHER = 64
"""Trials attacked at once, and so the size of a part that a killed chapter computes again."""

CPU = torch.device("cpu")

SHOWN = 8
"""Images of an experiment that are kept to be looked at."""

TRAINED_AT = 0.01
"""Learning rate of victims that are trained before they are attacked: the best of 0.003, 0.01 and 0.03."""


@dataclass(frozen=True, eq=False)
class Attacked:
    """What came of `attack_networks`: all scores, and the first images and their reconstructions.

    scores: a row an image. truth, shown: [n, C, H, W] with n at most SHOWN, the reconstructions clamped and in the
    order of their images.
    """

    scores: pd.DataFrame
    truth: Tensor
    shown: Tensor


def attack_networks(
    ch: Chapter,
    name: str,
    attack: Any,
    images: ImageSet,
    networks: int,
    each: int,
    *,
    batch: int = 1,
    distinct_labels: bool = False,
    threat: ThreatModel | None = None,
    defense: Defense | None = None,
    local: LocalTraining | None = None,
    pool: ImageSet | None = None,
    model: str = "lenet",
    checkpoint: str | None = None,
    trained_on: ImageSet | None = None,
    train_steps: int = 0,
    watch: float | None = None,
    judge: torch.nn.Module | None = None,
    **options: Any,
) -> Attacked:
    """Attack `each` batches of different images under each of `networks` drawn networks.

    The columns of the scores are `metrics.score`'s, before them `network` and `defense`, after them `starts`,
    `seconds` (of the whole call, shared out evenly) and, with `watch`, `evaluations_to`: what a trial had spent after
    the first outer step at which all its images were below that MSE, +inf where it never got there. Network k, its
    images and the dummies against it are the same for every attack and defense under one seed, so that results
    compare in pairs. Networks are attacked together, up to TOGETHER trials at once; each such group is a part of the
    chapter: a killed run continues with the next one.
    distinct_labels: within a batch. local: what the clients train, where they share a weight difference. checkpoint: a
    shipped victim by its name in `training.RECIPES`, the one network of all trials. judge: a network whose features
    add the columns `registered` (PSNR), `features` (distance) and `in_class`, `in_class_chance` (identified among the
    images of its class, in `pool`). trained_on: images on which every network trains `train_steps` steps before it is
    attacked. options: the architecture's, for `models.build`.
    Errors: ValueError for several networks with a checkpoint.
    """
    if checkpoint is not None and networks != 1:
        raise ValueError(f"checkpoint={checkpoint!r} is one network, but networks={networks}")
    victims, truth = images.batches(batch, networks * each, seed=ch.seed, distinct_labels=distinct_labels)
    shipped = None if checkpoint is None else training.victim(checkpoint)
    group, parts = max(1, TOGETHER // each), []
    for first in range(0, networks, group):
        chosen = list(range(first, min(first + group, networks)))
        mine = slice(first * each, (chosen[-1] + 1) * each)
        parts.append(
            ch.part(
                f"{name}-networks-{first}",
                attack_group,
                attack=attack,
                images=victims[mine],
                truth=truth[mine],
                classes=images.num_classes,
                networks=chosen,
                seed=ch.seed,
                device=ch.device,
                threat=threat,
                defense=defense,
                local=local,
                pool=pool,
                model=model,
                shipped=shipped,
                trained_on=trained_on,
                train_steps=train_steps,
                watch=watch,
                judge=judge,
                options=options,
            )
        )
    scores = pd.concat([part["scores"] for part in parts], ignore_index=True)
    return Attacked(scores, parts[0]["truth"], parts[0]["shown"])


def attack_group(
    attack: Any,
    images: Tensor,
    truth: Tensor,
    classes: int,
    networks: Sequence[int],
    seed: int,
    device: torch.device,
    threat: ThreatModel | None,
    defense: Defense | None,
    local: LocalTraining | None,
    pool: ImageSet | None,
    model: str,
    shipped: torch.nn.Module | None,
    trained_on: ImageSet | None,
    train_steps: int,
    watch: float | None,
    judge: torch.nn.Module | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """A part of `attack_networks`: build the victims, share, attack, score. images: [T, B, C, H, W], truth: [T, B]."""
    each = len(images) // len(networks)
    victims, updates = [], []
    for i, network in enumerate(networks):
        victim = shipped
        if victim is None:
            victim = models.build(model, classes, tuple(images.shape[2:]), seed=network_seed(seed, network), **options)
        # the model that the clients train; the attacker is given the same
        victim = client.extended(victim.to(device), defense)
        if trained_on is not None:
            utility.train(victim, trained_on, train_steps, TRAINED_AT, seed=network_seed(seed, network))
        mine = slice(i * each, (i + 1) * each)
        x, y = images[mine].to(device), truth[mine].to(device)
        own = network_seed(seed, network)
        updates.append(client.share(victim, x, y, threat=threat, defense=defense, local=local, seed=own))
        victims.append(victim)
    together, update = victims[0], updates[0]
    if len(victims) > 1:
        together = Ensemble.of(victims, each)
        update = SharedUpdate.join(updates, together)
    steps = range(attack.iterations + 1) if watch is not None else ()
    reconstruction = attack(together, update, seed=network_seed(seed, networks[0]), snapshots=steps)
    scores = metrics.score(reconstruction, images, truth, pool)
    scores.insert(0, "network", torch.tensor(networks).repeat_interleave(each * images.shape[1]).numpy())
    scores.insert(1, "defense", describe(defense))
    scores["starts"] = reconstruction.starts.cpu().repeat_interleave(images.shape[1]).numpy()
    scores["seconds"] = reconstruction.seconds / len(scores)
    if watch is not None:
        spent = evaluations_to(reconstruction.history, images, watch)
        scores["evaluations_to"] = spent.repeat_interleave(images.shape[1]).numpy()
    placed = in_order(reconstruction.images.cpu(), images)
    if judge is not None:
        found, originals = placed.flatten(0, 1), images.flatten(0, 1)

        def features(pictures: Tensor) -> Tensor:
            return models.penultimate(judge, pictures)

        scores["registered"] = metrics.registered_psnr(found, originals).double().numpy()
        scores["features"] = metrics.feature_distance(found, originals, features).double().numpy()
        hits, chance = metrics.identify_in_class(found, originals, truth.flatten(), pool, features)
        scores["in_class"], scores["in_class_chance"] = hits.numpy(), chance.numpy()
    return {"scores": scores, "truth": images.flatten(0, 1)[:SHOWN], "shown": placed.flatten(0, 1)[:SHOWN]}


def in_order(raw: Tensor, images: Tensor) -> Tensor:
    """Reconstructions [T, B, C, H, W] in the order of the images that they are matched to."""
    return raw[torch.arange(len(raw))[:, None], metrics.match_batches(raw, images)]


def evaluations_to(history: Any, images: Tensor, threshold: float) -> Tensor:
    """Evaluations a trial had spent when all its images first lay below the MSE: [T], +inf where they never did.

    history: of a run with a snapshot after every outer step; the count is exact to one such step. images: the truth,
    [T, B, C, H, W]. Batches are matched anew at every snapshot.
    """
    spent = torch.full((len(images),), math.inf, dtype=torch.float64)
    for raw, evaluations in zip(history.images.cpu(), history.evaluations.cpu(), strict=True):
        placed = in_order(raw, images).flatten(0, 1)
        error = metrics.mse(placed, images.flatten(0, 1)).view(len(images), -1).amax(1)
        arrived = (error < threshold) & spent.isinf()
        spent[arrived] = evaluations[arrived].double()
    return spent


def network_seed(seed: int, network: int) -> int:
    """The seed of the weights, and of the dummies against them: no two (seed, network) pairs share one."""
    return 100_000 * seed + network


def follow(
    attacks: Mapping[str, Any], images: ImageSet, trials: int, steps: Sequence[int], seed: int, device: torch.device
) -> dict[str, Any]:
    """Watch attacks on the same images under one drawn network, from the same dummy pixels.

    steps: outer iterations to look at. Returns, for each attack NAME, "NAME images" [S, C, H, W] of the image with most
    contrast and "NAME objective" [S]; "truth" [C, H, W] of that image; and "layers": a row a (attack, trial, outer
    iteration) with the MSE of the image and the distance of every parameter's gradient.
    """
    x, y = images.batches(1, trials, seed=seed)
    richest = int(x.flatten(1).std(1).argmax())
    model = models.build("lenet", images.num_classes, images.image_shape, seed=network_seed(seed, 0)).to(device)
    update, found, rows = client.share(model, x.to(device), y.to(device)), {"truth": x[richest, 0]}, []
    for name, attack in attacks.items():
        attack = replace(attack, starts=1, stop_objective=None, iterations=max(steps))
        history = attack(model, update, seed=network_seed(seed, 0), snapshots=steps).history
        found |= {f"{name} images": history.images[:, richest, 0], f"{name} objective": history.objective[:, richest]}
        for step, shown, soft in zip(history.iterations, history.images, history.soft_labels, strict=True):
            distances = matching.per_parameter(
                matching.dummy_gradients(model, shown, soft),
                matching.Observation(update.gradients),
                torch.arange(trials, device=device),
            )
            columns = {parameter: values.detach().cpu().numpy() for parameter, values in distances.items()}
            columns = {"attack": name, "trial": range(trials), "outer": step} | columns
            rows.append(pd.DataFrame(columns | {"image": metrics.mse(shown[:, 0].cpu(), x[:, 0]).numpy()}))
    return found | {"layers": pd.concat(rows, ignore_index=True)}


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
        network, update = _shared(
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
    options: for `models.build`. Source: sheet `precode.md`, sections 4.2 and 4.3.
    """
    rows, told = [], ThreatModel(labels="known", defense_known=True)
    for trial in range(trials):
        network, update = _shared(images, [trial], trial, seed, device, defense, told, model, options)
        worker = client.worker(network, "eval")
        models.leave_out_penalty(worker)
        true = images.batches(1, trials, seed=seed)[0][trial, None].to(device)
        uniform = torch.rand(true.shape, generator=generator(seed, trial)).to(true)
        soft = F.one_hot(update.labels, images.num_classes).to(true.dtype)
        for tensors in ("all", "upstream"):
            for noise, name in (("recovered", "the client's"), ("fixed", "fresh"), ("zero", "none")):
                reading = replace(defense, against=Counter(tensors, noise)).counter(network, update)
                for image, pixels in (("true", true), ("random", uniform)):
                    dummies = matching.dummy_gradients(worker, pixels, soft, noise=reading.noise)
                    distance = matching.cosine(
                        dummies, reading, torch.zeros(1, dtype=torch.int64, device=device)
                    ).item()
                    rows.append((trial, tensors, image, name, distance))
    return pd.DataFrame(rows, columns=["trial", "tensors", "image", "noise", "distance"])


def noise_by_layer(
    images: ImageSet, trials: int, seed: int, device: torch.device, defense: PRECODE, model: str, **options: Any
) -> pd.DataFrame:
    """How much each parameter's gradient depends on a bottleneck's noise: a row a (trial, parameter).

    Columns: share, of the gradient's squared length; cosine, between the gradients of one image under two draws. Trials
    as `noise_at_truth`'s. Source: sheet `precode.md`, section 4.2.
    """
    rows = []
    for trial in range(trials):
        drawn = [
            _shared(images, [trial], trial, seed, device, defense, ThreatModel(), model, options, draw)[1].gradients
            for draw in (0, 1)
        ]
        whole = sum(g.square().sum() for g in drawn[0].values())
        for name, first in drawn[0].items():
            cosine = F.cosine_similarity(first.flatten(), drawn[1][name].flatten(), dim=0).item()
            rows.append((trial, name, (first.square().sum() / whole).item(), cosine))
    return pd.DataFrame(rows, columns=["trial", "parameter", "share", "cosine"])


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
        network, update = _shared(images, [trial], trial, seed, device, defense, ThreatModel(), model, options)
        own = generator(network_seed(seed, trial), 0, client.DEFENSE_STREAM, 0)
        (drawn,) = models.draw_noise(network, 1, own).values()
        row = {"noise": (recovered_noise(network, update) - drawn).abs().max().item()}
        row["label"] = bool(labels.of_update(update).cpu() == y[trial])
        if model == "mlp":
            row["image"] = (AnalyticRecovery()(network, update).raw.cpu() - x[trial]).abs().max().item()
        rows.append(row)
    return pd.DataFrame(rows)


def _shared(
    images: ImageSet,
    trials: Sequence[int],
    network: int,
    seed: int,
    device: torch.device,
    defense: Defense | None,
    threat: ThreatModel,
    model: str,
    options: Mapping[str, Any],
    draw: int = 0,
) -> tuple[torch.nn.Module, SharedUpdate]:
    """The network of that number as its clients train it, and what they share of single images under draw `draw`."""
    x, y = (part[list(trials)].to(device) for part in images.batches(1, max(trials) + 1, seed=seed))
    own = network_seed(seed, network)
    victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options).to(device)
    victim = client.extended(victim, defense)
    return victim, client.share(victim, x, y, threat=threat, defense=defense, seed=own + 50_000 * draw)


def _attack_together(
    attack: Any, victims: Sequence[torch.nn.Module], updates: Sequence[SharedUpdate], seed: int
) -> Any:
    """The reconstruction from updates of one trial each, every one under a network of its own."""
    together = Ensemble.of(victims, 1)
    return attack(together, SharedUpdate.join(updates, together), seed=network_seed(seed, 0))


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


def read_labels(
    images: ImageSet,
    networks: int,
    each: int,
    seed: int,
    defense: Defense | None = None,
    model: str = "lenet",
    **options: Any,
) -> pd.DataFrame:
    """What each rule of `labels.RULES` reads off single images' gradients: a row a (network, image) pair.

    Columns: network; one_negative, whether the true class alone has a negative bias gradient; a column a rule, whether
    it found the label. An image may recur under another network. options: the architecture's, for `models.build`.
    """
    rows = []
    for k in range(networks):
        own = network_seed(seed, k)
        x, y = images.batches(1, each, seed=own)
        victim = models.build(model, images.num_classes, images.image_shape, seed=own, **options)
        update, truth = client.share(victim, x, y, defense=defense, seed=own), y[:, 0]
        bias = update.gradients["head.bias"]
        row = {"one_negative": ((bias < 0).sum(1) == 1) & (bias.argmin(1) == truth)}
        row |= {rule: labels.from_update(update, rule) == truth for rule in labels.RULES}
        rows.append(pd.DataFrame({"network": k} | {name: value.numpy() for name, value in row.items()}))
    return pd.concat(rows, ignore_index=True)


def predict_labels(images: ImageSet, networks: int, each: int, seed: int, levels: Sequence[float]) -> pd.DataFrame:
    """The share of labels that theory grants to two rules under Gaussian noise: a row a level.

    Noise of standard deviation s on every entry is noise of s in the bias rule's scores and of s * sqrt(F) in the row
    sums'. Columns: level, row_sum, bias. The pairs are those of `read_labels`. Source: sheet `idlg.md`, section 7.
    """
    chances = {(level, rule): [] for level in levels for rule in ("row_sum", "bias")}
    for k in range(networks):
        own = network_seed(seed, k)
        x, y = images.batches(1, each, seed=own)
        model = models.build("lenet", images.num_classes, images.image_shape, seed=own)
        gradients = client.share(model, x, y).gradients
        weight = gradients["head.weight"]
        for level in levels:
            row_sum = labels.chance_under_noise(weight.sum(2), y[:, 0], level * math.sqrt(weight.shape[2]))
            chances[level, "row_sum"].append(row_sum)
            chances[level, "bias"].append(labels.chance_under_noise(gradients["head.bias"], y[:, 0], level))
    means = {key: torch.cat(values).mean().item() for key, values in chances.items()}
    return pd.DataFrame({"level": s, "row_sum": means[s, "row_sum"], "bias": means[s, "bias"]} for s in levels)


def head_gradients(
    pairs: int, classes: int, seed: int, smoothing: float = 0.0, shift: float = 0.0, features: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact last-layer gradients of random heads: labels [T], weight gradients [T, K, F], bias gradients [T, K].

    Features are uniform in [0, 1], minus `shift` times their mean; weights U(-0.5, 0.5); smoothing: of the labels.
    """
    random = generator(seed, classes)
    h = torch.rand(pairs, features, generator=random)
    h = h - shift * h.mean(1, keepdim=True)
    logits = (h[:, None] * (torch.rand(pairs, classes, features, generator=random) - 0.5)).sum(2)
    truth = torch.randint(classes, (pairs,), generator=random)
    target = F.one_hot(truth, classes) * (1 - smoothing) + smoothing / classes
    g = logits.softmax(1) - target
    return truth, g[:, :, None] * h[:, None], g


def mode_mismatch(victim: torch.nn.Module, images: ImageSet, size: int, batches: int, seed: int) -> pd.DataFrame:
    """How far the attacker's gradient at the true batch is from the shared one, by the batch-norm modes of both sides.

    Columns: client, attacker, mismatch (|g' - g| / |g| over all parameters); a row a batch and case. An attacker in
    eval mode who loads the client's buffers does not undo a train-mode client: it does not differentiate through the
    batch's mean and variance. Source: sheet `gradinversion.md`, section 4.6.
    """
    x, y = images.batches(size, batches, seed=seed, distinct_labels=True)
    soft, rows = F.one_hot(y, images.num_classes).to(x.dtype), []
    for mode, attacker in (("train", "train"), ("eval", "eval"), ("train", "eval, the client's buffers")):
        update = client.share(
            victim, x, y, threat=ThreatModel(mode, batch_norm="buffers" if mode == "train" else "none")
        )
        for k in range(batches):
            model = victim
            if attacker.endswith("buffers"):
                model = copy.deepcopy(victim)
                for layer, (mean, variance) in update.batch_norm.items():
                    model.get_submodule(layer).running_mean.copy_(mean[k])
                    model.get_submodule(layer).running_var.copy_(variance[k])
            worker = client.worker(model, attacker.split(",")[0])
            found = matching.dummy_gradients(worker, x[k, None], soft[k, None])
            pairs = [(found[name][0].detach().flatten(), g[k].flatten()) for name, g in update.gradients.items()]
            ours, theirs = (torch.cat(part) for part in zip(*pairs, strict=True))
            rows.append(
                {"client": mode, "attacker": attacker, "mismatch": ((ours - theirs).norm() / theirs.norm()).item()}
            )
    return pd.DataFrame(rows)


def count_labels(
    images: ImageSet,
    sizes: Sequence[int],
    batches: int,
    seed: int,
    *,
    distinct: bool = False,
    mode: client.Mode = "eval",
    model: str = "lenet",
    shipped: torch.nn.Module | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The share of a batch's labels that each counting rule restores: columns batch, rule, right; a row a batch.

    Every batch meets a drawn network of its own, or the `shipped` one. It is drawn with replacement, so that labels
    repeat, or with `distinct` labels. The rules "yin" and "yin_sum" assume distinct labels and are left out where a
    batch has more images than there are classes. options: the architecture's, for `models.build`.
    Errors: ValueError for distinct batches of more images than there are classes.
    """
    present = images.labels.unique()
    if distinct and max(sizes) > len(present):
        raise ValueError(f"sizes={list(sizes)} with distinct labels: the images are of {len(present)} classes")
    rows = []
    for size in sizes:
        index = torch.stack([_batch_of(images, size, generator(seed, size, k), distinct) for k in range(batches)])
        x, y = images.images[index], images.labels[index]
        if shipped is not None:
            updates = [client.share(shipped, x, y, threat=ThreatModel(mode=mode))]
        else:
            drawn = (
                models.build(model, images.num_classes, images.image_shape, seed=network_seed(seed, k), **options)
                for k in range(batches)
            )
            updates = [
                client.share(victim, x[k, None], y[k, None], threat=ThreatModel(mode=mode))
                for k, victim in enumerate(drawn)
            ]
        weight, bias = (
            torch.cat([update.gradients[f"head.{name}"] for update in updates]) for name in ("weight", "bias")
        )
        truth = F.one_hot(y, images.num_classes).sum(1)
        for rule in labels.COUNT_RULES:
            if not rule.startswith("yin") or size <= images.num_classes:
                counts = labels.infer_counts(weight, bias, size, rule)
                right = torch.minimum(counts, truth).sum(1) / size
                rows.append(pd.DataFrame({"batch": size, "rule": rule, "right": right.numpy()}))
    return pd.concat(rows, ignore_index=True)


def _batch_of(images: ImageSet, size: int, random: torch.Generator, distinct: bool) -> Tensor:
    """Which images a drawn batch holds: [size] int64, with replacement, or of classes that differ."""
    if not distinct:
        return torch.randint(len(images), (size,), generator=random)
    order = torch.randperm(len(images), generator=random)
    index = torch.stack([order[images.labels[order] == c][0] for c in images.labels.unique()])
    return index[torch.randperm(len(index), generator=random)[:size]]


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
    model, update = _shared(images, range(trials), 0, seed, device, defense, threat, "lenet", options)
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
    images: ImageSet, sizes: Sequence[int], count: int, local: LocalTraining, seed: int, **options: Any
) -> dict[str, Any]:
    """What the closed form reads off an MLP's first layer: from one image, from batches, after several local steps.

    sizes: of the batches; `count` images in all are attacked at each size. local: of the case with local steps, which
    attacks single images, in float32 and in float64. options: the MLP's. Returns "rows": a row an image with the
    columns case, batch, error (largest of a pixel) and rms (of the image); and for each size "batch N truth" and
    "batch N read" [n, C, H, W] of the first images.
    """
    cases = [(f"batch of {size}", size, torch.float32, None) for size in sizes]
    cases += [("local steps, float32", 1, torch.float32, local), ("local steps, float64", 1, torch.float64, local)]
    rows, found = [], {}
    for name, size, dtype, of_client in cases:
        x, y = images.batches(size, max(1, count // size), seed=seed)
        x = x.to(dtype)
        model = models.build("mlp", images.num_classes, images.image_shape, seed=network_seed(seed, 0), **options)
        model = model.to(dtype)
        result = AnalyticRecovery()(model, client.share(model, x, y, local=of_client))
        off = (result.raw - x).flatten(0, 1).flatten(1)
        columns = {"case": name, "batch": size, "error": off.abs().amax(1), "rms": off.square().mean(1).sqrt()}
        rows.append(pd.DataFrame({k: v.numpy() if isinstance(v, Tensor) else v for k, v in columns.items()}))
        if of_client is None:
            found[f"batch {size} truth"] = x.flatten(0, 1)[:SHOWN]
            found[f"batch {size} read"] = result.images.flatten(0, 1)[:SHOWN]
    return found | {"rows": pd.concat(rows, ignore_index=True)}


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
        victim, update = _shared(images, [k], k, seed, CPU, defense, ThreatModel(labels="known"), "lenet", options)
        clean = defense.without_noise(update, victim, network_seed(seed, k))
        updates.append(replace(update, gradients=clean))
        victims.append(victim)
    return metrics.score(_attack_together(attack, victims, updates, seed), x, y, pool)


def attack_encoded(
    attack: Any,
    images: ImageSet,
    defense: Defense | None,
    networks: int,
    seed: int,
    pool: ImageSet,
    threat: ThreatModel,
    **options: Any,
) -> pd.DataFrame:
    """The scores of an attack on clients that alter their data, against what they trained on: a network an image.

    The last column, `original_identified`, is whether the reconstruction identifies the image that was altered.
    options: LeNet's, for `models.build`.
    """
    x, y = images.batches(1, networks, seed=seed)
    victims, updates, encoded = [], [], []
    for k in range(networks):
        victim, update = _shared(images, [k], k, seed, CPU, defense, threat, "lenet", options)
        victims.append(victim)
        updates.append(update)
        targets = F.one_hot(y[k], images.num_classes).float()
        random = generator(network_seed(seed, k), 0, client.DEFENSE_STREAM, 0)  # as `share` does for its first trial
        encoded.append(x[k] if defense is None else defense.encode(x[k], targets, random)[0])
    reconstruction = _attack_together(attack, victims, updates, seed)
    scores = metrics.score(reconstruction, torch.stack(encoded), y, pool)
    scores["original_identified"] = metrics.score(reconstruction, x, y, pool).identified
    return scores


def examine_soteria(images: ImageSet, count: int, defense: Soteria, seed: int) -> pd.DataFrame:
    """What an update under Soteria gives away without any search, and what the defense leaves as it is: a row an image.

    Columns: repeats, whether clients with other random numbers share the same bits; untouched, whether all but whole
    columns of the head's weight gradient is the true gradient; feature_error, the largest of a shared feature read in
    closed form; label, whether the bias rule reads it; mlp_error, the largest of a pixel read off an MLP's first layer.
    """
    x, y = images.batches(1, count, seed=seed)
    size, own = (images.num_classes, images.image_shape), network_seed(seed, 0)
    options = {"init": "default", "normalize": training.CIFAR10}
    model = models.build("lenet", *size, seed=own, **options)
    clean = client.share(model, x, y).gradients
    update, again = (client.share(model, x, y, defense=defense, seed=own + i) for i in range(2))
    weight, name = update.gradients["head.weight"], "head.weight"
    kept = (weight != 0).any(1, keepdim=True)
    same = [torch.eq(g, again.gradients[key]).flatten(1).all(1) for key, g in update.gradients.items()]
    true = [torch.eq(g, clean[key]).flatten(1).all(1) for key, g in update.gradients.items() if key != name]
    true.append((weight == clean[name] * kept).flatten(1).all(1))
    read = linear_inputs(weight, update.gradients["head.bias"], "largest")
    features = models.penultimate(model, x[:, 0])
    mlp = models.build("mlp", *size, seed=own, width=1024, activation="relu", normalize=training.CIFAR10)
    pixels = AnalyticRecovery()(mlp, client.share(mlp, x, y, defense=defense, seed=own)).raw
    columns = {
        "repeats": torch.stack(same).all(0),
        "untouched": torch.stack(true).all(0),
        "feature_error": ((read - features).abs() * kept[:, 0]).amax(1),
        "label": labels.from_update(update, "bias") == y[:, 0],
        "mlp_error": (pixels - x).abs().flatten(1).amax(1),
    }
    return pd.DataFrame({key: values.numpy() for key, values in columns.items()})


def cost_of_the_truth(
    images: ImageSet, count: int, rates: Sequence[float], seed: int, defense: Soteria, **options: Any
) -> pd.DataFrame:
    """What the true image costs three attackers on updates under Soteria: a row an (image, rate), in float64.

    defense: its rate is replaced by each of `rates`, in percent. options: LeNet's, for `models.build`.
    Columns: image, rate, shared (of the squared gradient's sum), floor = 1 - sqrt(shared), and one minus the cosine at
    the true image for the attackers plain, dropped (without the tensor) and columns (on kept ones).
    Source: sheet `soteria.md`, section 8, test 10.
    """
    x, y = images.batches(1, count, seed=seed)
    x, own = x.double(), network_seed(seed, 0)
    model = models.build("lenet", images.num_classes, images.image_shape, seed=own, **options).double()
    soft = F.one_hot(y, images.num_classes).double()
    dummies = matching.dummy_gradients(client.worker(model, "eval"), x, soft)
    whole = sum(g.flatten(1).square().sum(1) for g in client.share(model, x, y).gradients.values())
    rows = []
    for rate in rates:
        chosen = replace(defense, pruning_rate=rate)
        update = client.share(model, x, y, defense=chosen, seed=own)
        shared = sum(g.flatten(1).square().sum(1) for g in update.gradients.values()) / whole
        known = KeptColumns(**vars(chosen))
        readings = {"plain": matching.Observation(update.gradients), "dropped": chosen.counter(model, update)}
        readings["columns"] = known.counter(model, update)
        columns = {"image": torch.arange(count), "shared": shared, "floor": 1 - shared.sqrt()}
        for name, reading in readings.items():
            columns[name] = matching.cosine(dummies, reading, torch.arange(count)).detach()
        table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
        table.insert(1, "rate", rate)
        rows.append(table)
    return pd.concat(rows, ignore_index=True)
