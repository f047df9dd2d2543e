"""What a federated client computes from its private images, and what of it the server gets to see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from reprolib import models
from reprolib.federated import gradients
from reprolib.federated.gradients import LocalTraining, Mode, loss, worker
from reprolib.federated.protection import Protection
from reprolib.federated.streams import Seed, generator
from reprolib.federated.threat import ThreatModel, check_types, client_sizes
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims, fingerprint, task
from reprolib.models.victim import require_victim

__all__ = [
    "LocalTraining",
    "Mode",
    "SharedUpdate",
    "ThreatModel",
    "batch_statistics",
    "extended",
    "generator",
    "image_gradients",
    "loss",
    "recorded",
    "share",
    "trials_that_fit",
    "worker",
]


MEMORY_BUDGET = 512 * 2**20  # bytes that the trials of one chunk may take together
ORDER_STREAM = 0x0DE4  # of the orders in which clients take their images
DEFENSE_STREAM = 0xDEFE  # keeps a defense's random numbers apart from an attack's drawn with the same (seed, trial)


def share(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel | None = None,
    defense: Protection | None = None,
    local: LocalTraining | None = None,
    clients: Sequence[int] = (),
    seed: Seed = 0,
) -> SharedUpdate:
    """What T clients (or groups of clients) with one set of weights share after one round of training.

    images: [T, B, C, H, W] in [0, 1], of the model's dtype and device, or what else the model takes (`model.inputs`).
    labels: [T, B] int64 in [0, num_classes).
    threat: what the server knows; default `ThreatModel()`. With "mean of N", each of N clients contributes B / N
    images and its own defense randomness, and the exact batch-norm statistics are averaged like everything else.
    clients: how many of the B images each of the N has, where they are not equally many; they count by their sizes.
    Only parameters that require a gradient are trained and shared; one that the forward pass does not use has a zero.
    local: None for one gradient of the mean cross-entropy (FedSGD), or the SGD whose weight difference is shared.
    seed: of the defense's random numbers and of the noise in a bottleneck; trial t's depend on (seed, t) alone.
    A model that the defense has extended already (`extended`) is taken as it is. The victim is left as it was,
    batch-norm buffers included. With batch_norm "exact", the statistics are those of the client's images at the weights
    that the server sent; "buffers" needs mode "train" and a single step.
    Errors: ValueError, before any work, for every input that does not fit these lines.

    >>> from reprolib import data, defenses, models
    >>> from reprolib.federated import client
    >>> images, labels = data.load("photos", count=8).batches(size=4, count=2)
    >>> victim = models.build("lenet", num_classes=10, image_shape=(3, 32, 32), seed=0)
    >>> update = client.share(victim, images, labels, defense=defenses.TopK(0.9))
    >>> update.trials, update.batch_size, update.gradients["head.weight"].shape
    (2, 4, torch.Size([2, 10, 768]))
    >>> round((update.gradients["head.weight"] == 0).float().mean().item(), 2)  # what the defense left out
    0.9
    >>> update.labels is None, update.defense is None  # the threat model grants neither
    (True, True)
    """
    check_types(threat, local)
    threat = ThreatModel() if threat is None else threat
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    sizes = client_sizes(images, threat, clients)
    _check_inputs(model, images, labels, local, sizes)
    generator(seed, 0)  # refuses a bad seed before any work
    images, labels = model.inputs.enter(images.detach()), labels.detach()
    model = extended(model, defense)
    victim = worker(model, threat.mode)
    norms = {name: module for name, module in victim.named_modules() if isinstance(module, _BatchNorm)}
    if threat.batch_norm != "none" and not norms:
        raise ValueError(f"batch_norm={threat.batch_norm!r}, but the model has no batch-norm layer: use 'none'")
    if threat.batch_norm == "buffers" and threat.mode == "eval":
        raise ValueError("batch_norm='buffers', but in mode='eval' a client's step changes no buffer: use mode='train'")
    if threat.batch_norm == "buffers" and len(set(sizes)) > 1:
        raise ValueError(f"batch_norm='buffers' of clients with {sizes} images cannot be told apart: use 'exact'")
    if threat.batch_norm == "buffers" and local is not None and local.steps(sizes[0]) > 1:
        raise ValueError("batch_norm='buffers' is the state after one step, but `local` takes several: use 'exact'")
    batch_norm = _running_statistics(model, len(images)) if threat.batch_norm == "running" else None

    parts = list(zip(images.split(sizes, 1), labels.split(sizes, 1), strict=True))
    chunk = trials_that_fit(victim, max((own for own, _ in parts), key=lambda own: own.shape[1])[0])
    updates, statistics, orders = [], [], []
    for client, (own_images, own_labels) in enumerate(parts):
        randoms = [generator(seed, trial, DEFENSE_STREAM, client) for trial in range(len(images))]
        noise = _noise(victim, own_images.shape[1] * (1 if local is None else local.epochs), randoms)
        targets = task.of(model).targets(own_labels, model.num_classes, own_images)
        if defense is not None:
            own_images, targets = _encode(defense, own_images, targets, randoms)
        order = _orders(local, own_images, seed, client)
        orders.append(order)
        update = _compute(victim, own_images, targets, local, chunk, noise, order)
        if defense is not None:
            update = _protect(defense, update, model, own_images, own_labels, randoms)
        updates.append(update)
        if threat.batch_norm in ("exact", "buffers"):
            statistics.append(_batch_statistics(victim, norms, own_images, chunk, noise))

    if statistics:
        means = _mean([{name: mean for name, (mean, _) in client.items()} for client in statistics], sizes)
        variances = _mean([{name: variance for name, (_, variance) in client.items()} for client in statistics], sizes)
        batch_norm = {name: (means[name], variances[name]) for name in norms}
    if threat.batch_norm == "buffers":
        batch_norm = _buffers_after(model, batch_norm, parts[0][0][0])
    order = None
    if local is not None and local.shuffle:
        order = torch.cat([own + first for own, first in zip(orders, np.cumsum([0, *sizes]), strict=False)], 2)
    if order is not None and not local.order_known:
        labels, order = labels.gather(1, order[:, 0]), None
    if local is not None and len(sizes) > 1:
        local = replace(local, sizes=sizes)
    return SharedUpdate(
        gradients=_mean(updates, sizes),
        batch_size=images.shape[1],
        image_shape=tuple(images.shape[2:]),
        num_classes=model.num_classes,
        threat=threat,
        model=fingerprint(model),
        local=local,
        labels=labels.clone() if threat.labels == "known" else None,
        batch_norm=batch_norm,
        defense=defense if threat.defense_known else None,
        task=task.of(model),
        sizes=sizes if len(sizes) > 1 else (),
        order=order,
    )


def extended(model: nn.Module, defense: Protection | None) -> nn.Module:
    """The model that a client with this defense trains: `defense.extend(model)`, or a model that is that already.

    So a model can be extended, trained, and then shared under the same defense, with its trained weights. Attackers
    are given the same.
    Errors: ValueError for what is no defense.
    """
    if defense is None or getattr(model, "extended_by", None) == defense:
        return model
    if isinstance(defense, type) or not all(hasattr(defense, hook) for hook in ("extend", "encode", "protect")):
        raise ValueError(f"defense must be one of reprolib.defenses, such as TopK(0.9), got {defense!r}")
    larger = defense.extend(model)
    if larger is not model:
        larger.extended_by = defense
    return larger


def image_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Each image's own gradient, in evaluation mode: name -> [N, *param]. images: [N, C, H, W], labels: [N] int64.

    Errors: ValueError for a model with a bottleneck, whose gradient depends on the noise that was drawn for it.
    """
    if noisy := list(models.noise_shapes(model)):
        raise ValueError(f"an image's own gradient is not determined: the model draws {noisy}; use another defense")
    victim = worker(model, "eval")
    targets = task.of(model).targets(labels, model.num_classes, images)
    return _compute(victim, images[:, None], targets[:, None], None, trials_that_fit(victim, images[:1]), {}, None)


def _noise(victim: nn.Module, samples: int, randoms: Sequence[torch.Generator]) -> dict[str, Tensor]:
    """The clients' noise for the victim's bottlenecks, one row a sample that passes: name -> [T, samples, *shape]."""
    drawn = [models.draw_noise(victim, samples, random) for random in randoms]
    return {name: torch.stack([own[name] for own in drawn]) for name in drawn[0]}


def _orders(local: LocalTraining | None, images: Tensor, seed: Seed, client: int) -> Tensor | None:
    """Where a client's passes take their images from, drawn for each trial: [T, epochs, B]; None without shuffling."""
    if local is None or not local.shuffle:
        return None
    drawn = []
    for trial in range(len(images)):
        random = generator(seed, trial, ORDER_STREAM, client)
        drawn.append(torch.stack([torch.randperm(images.shape[1], generator=random) for _ in range(local.epochs)]))
    return torch.stack(drawn).to(images.device)


def _compute(
    victim: nn.Module,
    images: Tensor,
    targets: Tensor,
    local: LocalTraining | None,
    chunk: int,
    noise: dict[str, Tensor],
    order: Tensor | None,
) -> dict[str, Tensor]:
    """Gradients, or weight differences with `local`, of one client in every trial: name -> [T, *param]."""
    parts = []
    for first in range(0, len(images), chunk):
        rows = slice(first, first + chunk)
        drawn = {name: values[rows] for name, values in noise.items()}
        own = None if order is None else order[rows]
        parts.append(gradients.shared(Victims(victim), images[rows], targets[rows], local, noise=drawn, order=own))
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if local is None:
        return together
    far = -local.learning_rate * local.steps(images.shape[1])
    return {name: far * direction for name, direction in together.items()}


def _encode(
    defense: Protection, images: Tensor, targets: Tensor, random: list[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """What the clients train on, trial by trial."""
    encoded = [defense.encode(*each) for each in zip(images, targets, random, strict=True)]
    return tuple(torch.stack(part) for part in zip(*encoded, strict=True))  # type: ignore[return-value]


def _protect(
    defense: Protection,
    update: dict[str, Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    randoms: Sequence[torch.Generator],
) -> dict[str, Tensor]:
    """The update after the defense, trial by trial: a trial's randomness is its own."""
    protected = []
    for trial, random in enumerate(randoms):
        own = {name: g[trial] for name, g in update.items()}
        result = defense.protect(own, model, images[trial], labels[trial], random)
        if {name: g.shape for name, g in result.items()} != {name: g.shape for name, g in own.items()}:
            raise ValueError(f"{defense!r} returned gradients of other names or shapes than it was given")
        protected.append(result)
    return {name: torch.stack([trial[name] for trial in protected]) for name in update}


def _mean(clients: list[dict[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    """The mean over clients by their images, entry by entry; one client's values stay bit-identical."""
    if len(clients) == 1:
        return clients[0]
    if len(set(sizes)) == 1:
        return {name: sum(client[name] for client in clients) / len(clients) for name in clients[0]}  # type: ignore[misc]
    shares = [size / sum(sizes) for size in sizes]
    return {
        name: sum(share * client[name] for share, client in zip(shares, clients, strict=True))  # type: ignore[misc]
        for name in clients[0]
    }


def _batch_statistics(
    victim: nn.Module, norms: dict[str, nn.Module], images: Tensor, chunk: int, noise: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and biased variance of what enters each batch-norm layer: layer -> ([T, C], [T, C])."""

    def statistics(x: Tensor, drawn: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        functional_call(victim, {name: values[: len(x)] for name, values in drawn.items()}, (x,))
        return dict(seen)

    with recorded(victim, norms) as seen, torch.no_grad():
        return vmap(statistics, chunk_size=chunk)(images, noise)


@contextmanager
def recorded(network: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While it lasts, every forward pass notes the mean and biased variance [C] of what enters the named layers."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            axes = [0, *range(2, inputs[0].ndim)]
            seen[name] = (inputs[0].mean(axes), inputs[0].var(axes, correction=0))

        return record

    handles = [network.get_submodule(name).register_forward_pre_hook(recorder(name)) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def batch_statistics(model: nn.Module, update: SharedUpdate) -> dict[str, tuple[Tensor, Tensor]]:
    """What the server knows of the private batch at each batch-norm layer: layer -> (mean [T, C], biased variance).

    From "buffers" the batch's own are computed: after = (1 - m) before + m batch, the variance there with n - 1.
    Errors: ValueError for an update whose threat model grants none. Source: Hatamizadeh et al. 2023 (arXiv:2202.06924).
    """
    if update.batch_norm is None:
        raise ValueError(
            "this update carries no batch-norm statistics: share with ThreatModel(batch_norm='running', 'exact' or "
            "'buffers')"
        )
    if update.threat.batch_norm != "buffers":
        return update.batch_norm
    images = torch.zeros(update.batch_size // update.threat.clients, *update.image_shape)
    found = {}
    for name, (module, count) in _tracked(model, images.to(next(model.parameters()))).items():
        after_mean, after_variance = update.batch_norm[name]
        m = module.momentum
        mean = (after_mean - (1 - m) * module.running_mean) / m
        variance = (after_variance - (1 - m) * module.running_var) / m * (count - 1) / count
        found[name] = (mean, variance)
    return found


def _buffers_after(
    model: nn.Module, batch_norm: dict[str, tuple[Tensor, Tensor]], images: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """The running statistics after one step in training mode on a batch with these statistics; images: [B, C, H, W]."""
    after = {}
    for name, (module, count) in _tracked(model, images).items():
        mean, variance = batch_norm[name]
        m = module.momentum
        unbiased = variance * count / (count - 1)
        after[name] = ((1 - m) * module.running_mean + m * mean, (1 - m) * module.running_var + m * unbiased)
    return after


def _tracked(model: nn.Module, images: Tensor) -> dict[str, tuple[nn.Module, int]]:
    """Each batch-norm layer with a momentum, and how many values a channel of it gets from such a batch."""
    network, counts = worker(model, "eval"), {}
    norms = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    if bad := [name for name, module in norms.items() if module.running_mean is None or module.momentum is None]:
        raise ValueError(f"batch_norm='buffers', but the layers {bad} keep no running statistics with a momentum")

    def counter(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: counts.update({name: inputs[0].numel() // inputs[0].shape[1]})

    for name, module in norms.items():
        module.register_forward_pre_hook(counter(name))  # on a copy, which ends with this call
    with torch.no_grad():
        functional_call(network, models.no_noise(network, len(images)), (images,))
    return {name: (module, counts[name]) for name, module in norms.items()}


def _running_statistics(model: nn.Module, trials: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The running mean and variance of each batch-norm layer, the same for every trial: layer -> ([T, C], [T, C])."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if untracked := [name for name, module in norms.items() if module.running_mean is None]:
        raise ValueError(f"batch_norm='running', but the layers {untracked} keep no running statistics")
    return {
        name: tuple(value.detach().clone().expand(trials, -1) for value in (module.running_mean, module.running_var))  # type: ignore[misc]
        for name, module in norms.items()
    }


def trials_that_fit(victim: nn.Module, images: Tensor) -> int:
    """Trials that fit the memory budget together, from what one trial's forward pass keeps for its backward pass."""
    kept = 0

    def pack(tensor: Tensor) -> None:  # a tensor given back here would hold the graph that holds it, for ever
        nonlocal kept
        kept += tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda _: None):  # type: ignore[return-value]  # never unpacked
        functional_call(victim, models.no_noise(victim, len(images)), (images,))
    # the backward pass holds about as much again, and a trial's own weights and gradients beside it
    trial = 2 * kept + 3 * sum(parameter.nbytes for parameter in victim.parameters())
    return max(1, MEMORY_BUDGET // trial)


def _check_inputs(
    model: nn.Module, images: Tensor, labels: Tensor, local: LocalTraining | None, sizes: Sequence[int]
) -> None:
    require_victim(model)
    parameter = next(model.parameters())
    model.inputs.check(images, parameter)
    trials, batch = images.shape[:2]
    if trials == 0 or batch == 0:
        raise ValueError(f"images must hold at least one trial and one image a trial, got shape {list(images.shape)}")
    if not (images.device == labels.device == parameter.device):
        raise ValueError(
            f"model, images and labels must be on one device, got {parameter.device}, {images.device} and "
            f"{labels.device}"
        )
    task.of(model).check(labels, trials, batch, model.num_classes, parameter.dtype)
    own = max(sizes)
    if local is not None and local.batch_size > own:
        raise ValueError(f"batch_size of LocalTraining is {local.batch_size}, but a client has only {own} image(s)")
    if local is not None and local.sizes:
        raise ValueError("sizes of LocalTraining is for `share` to fill in: name them as clients=(...)")
