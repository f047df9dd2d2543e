"""What a federated client computes from its private images, and what of it the server gets to see."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from reprolib import gradients, models, task
from reprolib.gradients import LocalTraining, Mode, loss, worker
from reprolib.models import Victim, Victims, fingerprint, incoming
from reprolib.task import Task

if TYPE_CHECKING:  # defenses stand to the left of this file: it calls their hooks and never imports them
    from reprolib.defenses.base import Defense

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

Labels = Literal["unknown", "known"]
BatchNorm = Literal["none", "running", "exact", "buffers"]
Seed = int | Sequence[tuple[int, int]]
"""A seed for all trials of a call, or a pair (seed, trial) for each of them: see `generator`."""

MEMORY_BUDGET = 512 * 2**20  # bytes that the trials of one chunk may take together
ORDER_STREAM = 0x0DE4  # of the orders in which clients take their images
DEFENSE_STREAM = 0xDEFE  # keeps a defense's random numbers apart from an attack's drawn with the same (seed, trial)


def generator(seed: Seed, trial: int, *stream: int) -> torch.Generator:
    """The CPU generator of trial `trial` under `seed`: the one source of randomness for clients and attacks.

    seed, trial, stream: integers >= 0. `stream` separates uses within a trial (a restart, a client): every distinct
    tuple gives an unrelated sequence, because `numpy.random.SeedSequence` hashes the whole tuple. Draw on the CPU and
    move the numbers, so that they are the same on every device. Clients use `(seed, trial, DEFENSE_STREAM, client)`.
    seed may also be a sequence with a pair (seed, trial) for each trial of the call: trial t then draws what that pair
    alone would, whatever company it is attacked in.
    Errors: ValueError for a negative number or one that is no integer, and for a trial that has no pair.

    >>> import torch
    >>> from reprolib import client
    >>> torch.rand(1, generator=client.generator(7, 3)) == torch.rand(1, generator=client.generator([(7, 3)], 0))
    tensor([True])
    """
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if not trial < len(seed):
            raise ValueError(f"generator: trial {trial} has no pair (seed, trial); seed holds {len(seed)} of them")
        seed, trial = seed[trial]
    key = (seed, trial, *stream)
    if not all(isinstance(part, int | np.integer) and not isinstance(part, bool) and part >= 0 for part in key):
        raise ValueError(f"generator: seed, trial and stream must be integers >= 0, got {key}")
    state = np.random.SeedSequence(int(seed), spawn_key=[int(part) for part in key[1:]]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True)
class ThreatModel:
    """What the honest-but-curious server knows besides the model, its weights, the loss and the size of the batch.

    mode: how the client runs batch norm: "eval" (with running statistics) or "train" (with the batch's own).
    labels: "unknown", or "known" (the update carries them).
    batch_norm: "none", "running" (the running statistics stand in for the batch's), "exact" (the batch's own) or
    "buffers" (the running statistics after the client's step, as a client in "train" mode sends them with its update).
    defense_known: the server knows the client's defense and its settings, never its random numbers.
    observes: "one client", or "mean of N" (secure aggregation: only the mean of N clients' updates is seen).
    Errors: ValueError for any other value, listing the known ones. Source: the developer guide, "Contracts".

    >>> from reprolib.client import ThreatModel
    >>> ThreatModel(labels="known", observes="mean of 10").clients
    10
    """

    mode: Mode = "eval"
    labels: Labels = "unknown"
    batch_norm: BatchNorm = "none"
    defense_known: bool = False
    observes: str = "one client"

    def __post_init__(self) -> None:
        for name, known in (
            ("mode", get_args(Mode)),
            ("labels", get_args(Labels)),
            ("batch_norm", get_args(BatchNorm)),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        if not isinstance(self.defense_known, bool):
            raise ValueError(f"defense_known must be True or False, got {self.defense_known!r}")
        if self.observes != "one client" and not re.fullmatch(r"mean of [1-9]\d*", str(self.observes)):
            raise ValueError(f"observes must be 'one client' or 'mean of N' with N >= 1, got {self.observes!r}")

    @property
    def clients(self) -> int:
        """How many clients' updates are averaged before the server sees them."""
        return 1 if self.observes == "one client" else int(self.observes.removeprefix("mean of "))

    def rows(self) -> list[tuple[str, str]]:
        """(question, answer) pairs in plain English for a chapter's threat-model box."""
        n = self.clients
        return [
            (
                "Who attacks?",
                "An honest-but-curious server. It sent the model, so it knows the architecture, the weights, the loss, "
                "the image size, the classes and the batch size.",
            ),
            (
                "What does it see?",
                "The update of one client."
                if n == 1
                else f"Only the mean of {n} clients' updates, never one client's own.",
            ),
            (
                "How does the client run batch norm?",
                {
                    "eval": "In evaluation mode, with the running statistics that came with the model.",
                    "train": "In training mode, with the statistics of its own batch.",
                }[self.mode],
            ),
            (
                "Which batch-norm statistics does the server use?",
                {
                    "none": "None.",
                    "running": "The running statistics of the model, as a stand-in for the batch's.",
                    "exact": "The exact mean and variance of the private batch at every batch-norm layer.",
                    "buffers": "The running statistics after the client's step, which give the private batch's own.",
                }[self.batch_norm],
            ),
            (
                "Does it know the labels?",
                {
                    "unknown": "No. It must infer or optimise them.",
                    "known": "Yes. They come with the update.",
                }[self.labels],
            ),
            (
                "Does it know the defense?",
                "Yes, with its settings, but not its random numbers: it is an adaptive attacker."
                if self.defense_known
                else "No. It attacks as if there were none: it is a static attacker.",
            ),
        ]


@dataclass(frozen=True, eq=False)
class SharedUpdate:
    """What the server sees of T clients' rounds under one set of weights, and nothing else.

    gradients: name -> [T, *param] of the parameters that the clients train: the gradient of the mean loss, or with
    `local` the weight difference after - before.
    batch_size: images behind one trial's update (of all averaged clients together). image_shape: (C, H, W).
    model: `models.fingerprint` of the model the update was computed with (extended, where the defense extends it).
    labels: [T, B] int64, batch_norm: layer -> (mean [T, C], biased variance [T, C]) and defense are None unless
    `threat` grants them. task: what the clients minimise, and so the form of their labels. With batch_norm "buffers"
    the pair is the client's running mean and variance. sizes: images of each of several clients, () for one. order:
    [T, epochs, B], where each local pass takes its images from, if the server knows it; if it does not, `labels` stand
    in the order of the first pass. assumed: what `of` had to assume about somebody's numbers, a line each.
    """

    gradients: dict[str, Tensor]
    batch_size: int
    image_shape: tuple[int, int, int]
    num_classes: int
    threat: ThreatModel
    model: str
    local: LocalTraining | None = None
    labels: Tensor | None = None
    batch_norm: dict[str, tuple[Tensor, Tensor]] | None = None
    defense: Defense | None = None
    task: Task = Task()
    sizes: tuple[int, ...] = ()
    order: Tensor | None = None
    assumed: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        gradients: incoming.Numbers | None = None,
        *,
        batch_size: int,
        before: incoming.Numbers | None = None,
        after: incoming.Numbers | None = None,
        local: LocalTraining | None = None,
        threat: ThreatModel | None = None,
        labels: Sequence[int] | Tensor | None = None,
    ) -> SharedUpdate:
        """One client's update from numbers that somebody has: a gradient, a weight difference, or the weights.

        model: the victim with the weights that the server sent (`models.adapt` or `models.build`). gradients: of the
        mean loss, or with `local` the weight difference after - before; else after: the weights that came back, and
        before: those that were sent, if the model's own are to be compared with them. Each in any form that
        `incoming.named` reads. batch_size: images behind the update. local: how the client trained; needed for weights,
        because a difference says nothing of its learning rate. labels: [B], where the update carries them.
        What was assumed is in `assumed`. Buffers, such as batch norm's statistics, are left aside.
        Errors: ValueError for numbers of another model, of another dtype, weights in place of an update, the opposite
        sign, a scale that no mean loss has, and parameters without a gradient.

        >>> import torch
        >>> from reprolib import labels, models
        >>> from reprolib.client import SharedUpdate
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> torch.nn.functional.cross_entropy(net(torch.rand(1, 3, 8, 8)), torch.tensor([7])).backward()
        >>> victim = models.adapt(net, image_shape=(3, 8, 8), num_classes=10)
        >>> gradients = [parameter.grad for parameter in net.parameters()]
        >>> update = SharedUpdate.of(victim, gradients, batch_size=1)
        >>> labels.from_update(update)
        tensor([7])
        """
        if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of images >= 1, got {batch_size!r}")
        batch_size = int(batch_size)
        _check_types(threat, local)
        _check_victim(model)
        threat = ThreatModel(labels="known" if labels is not None else "unknown") if threat is None else threat
        if threat.batch_norm != "none":
            raise ValueError(f"batch_norm={threat.batch_norm!r}: an update of one's own numbers carries no statistics")
        found, assumed = _brought(model, gradients, before, after, local, threat, batch_size)
        if labels is not None:
            labels = _labels(labels).to(next(model.parameters()).device)[None]
            task.of(model).check(labels, 1, batch_size, model.num_classes, next(model.parameters()).dtype)
        if (labels is None) != (threat.labels == "unknown"):
            raise ValueError(f"threat.labels={threat.labels!r}, but labels={labels!r}: give both or neither")
        sizes = _sizes(torch.empty(1, batch_size), threat, ()) if threat.clients > 1 else ()
        update = cls(
            gradients=found,
            batch_size=batch_size,
            image_shape=tuple(model.image_shape),
            num_classes=model.num_classes,
            threat=threat,
            model=fingerprint(model),
            local=local and replace(local, sizes=sizes),
            labels=labels,
            task=task.of(model),
            sizes=sizes,
            assumed=tuple(assumed),
        )
        update.check(model)
        return replace(update, assumed=(*assumed, *_check_direction(update)))

    @property
    def trials(self) -> int:
        """The number of trials T."""
        return len(next(iter(self.gradients.values())))

    @property
    def scale(self) -> float:
        """The factor that turns shared values into gradients: 1, or -1 / (learning rate x steps) for FedAvg.

        Of clients that take different numbers of steps, those of the client that takes most count.
        """
        if self.local is None:
            return 1.0
        return -1.0 / (self.local.learning_rate * self.local.most_steps(self.batch_size))

    def require_one_gradient(self, attack: str) -> None:
        """Errors: ValueError for a weight difference that is no multiple of one gradient, which `attack` matches."""
        if self.local is not None and not self.local.is_one_gradient(self.batch_size):
            steps = self.local.most_steps(self.batch_size)
            what = f"{steps} local steps" if steps > 1 else f"a step of {self.local}"
            raise ValueError(
                f"{attack} matches one gradient, but this update is the weight difference of {what}: share without "
                "`local`, or with a single step of plain SGD"
            )

    def as_gradients(self) -> dict[str, Tensor]:
        """name -> [T, *param]: the shared gradients; for FedAvg the average gradient along the local steps."""
        return self.gradients if self.local is None else {name: g * self.scale for name, g in self.gradients.items()}

    def targets(self, labels: Tensor, like: Tensor) -> Tensor:
        """Labels, given or found, as the soft targets [T, B, K] that the clients trained on."""
        return self.task.targets(labels, self.num_classes, like)

    def require_classes(self, what: str) -> None:
        """Errors: ValueError for another loss than the cross-entropy, whose gradient alone shows classes."""
        if self.task.loss != "cross-entropy":
            raise ValueError(
                f"{what} needs the gradient of a cross-entropy over classes, but the clients minimise "
                f"{self.task.loss!r}: use an attack that is given the labels, with ThreatModel(labels='known')"
            )

    def of_the_head(self) -> tuple[Tensor, Tensor | None]:
        """The last layer's gradients of the mean loss: weight [T, K, F] and bias [T, K], None where it has no bias.

        Errors: ValueError where the clients do not train the last layer, and so share nothing of it, and for another
        loss than the cross-entropy.
        """
        self.require_classes("reading the last layer")
        found = self.as_gradients()
        if "head.weight" not in found:
            raise ValueError(
                "the update has no gradient of head.weight, because the clients do not train the last layer "
                "(requires_grad): nothing can be read off it; use an attack that is told the labels"
            )
        weight, bias = found["head.weight"], found.get("head.bias")
        if self.task.reduction == "sum":
            weight, bias = weight / self.batch_size, None if bias is None else bias / self.batch_size
        return weight, bias

    def select(self, index: int | slice | Sequence[int] | Tensor) -> SharedUpdate:
        """The update of the chosen trials; the trial axis stays, also for a single integer."""
        index = [index] if isinstance(index, int) else index
        return self._map(lambda tensor: tensor[index])

    @classmethod
    def join(cls, updates: Sequence[SharedUpdate], victims: Victims) -> SharedUpdate:
        """One update of all trials, for one attack on them: updates[k] was shared by network k of the victims.

        Errors: ValueError for updates that differ in anything but their numbers, or in the number of trials from the
        victims.
        """
        first = updates[0]
        for name in ("batch_size", "image_shape", "num_classes", "threat", "local", "defense", "task", "sizes"):
            if any(getattr(update, name) != getattr(first, name) for update in updates):
                raise ValueError(f"the updates differ in {name}: only rounds of the same kind can be attacked together")
        if sum(update.trials for update in updates) != victims.trials:
            raise ValueError(
                f"the updates hold {sum(update.trials for update in updates)} trials, the victims {victims.trials}"
            )
        statistics = first.batch_norm and {
            layer: tuple(torch.cat([update.batch_norm[layer][i] for update in updates]) for i in (0, 1))
            for layer in first.batch_norm
        }
        return replace(
            first,
            gradients={name: torch.cat([update.gradients[name] for update in updates]) for name in first.gradients},
            labels=None if first.labels is None else torch.cat([update.labels for update in updates]),
            order=None if first.order is None else torch.cat([update.order for update in updates]),
            batch_norm=statistics,
            model=victims.fingerprint,
        )

    def to(self, device: torch.device | str) -> SharedUpdate:
        """The same update on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> SharedUpdate:
        statistics = self.batch_norm
        return replace(
            self,
            gradients={name: function(g) for name, g in self.gradients.items()},
            labels=None if self.labels is None else function(self.labels),
            order=None if self.order is None else function(self.order),
            batch_norm=statistics and {name: (function(m), function(v)) for name, (m, v) in statistics.items()},
        )

    def check(self, model: nn.Module | Victims) -> None:
        """Refuse a model that this update does not belong to, and values no attack can use; every attack calls it.

        Errors: ValueError for a parameter without gradient or a gradient without parameter, another shape, another
        dtype or device, other weights (fingerprint), and a NaN or infinity, naming the trial and the parameter.
        """
        victims = Victims.of(model)
        if not isinstance(self.gradients, dict) or not all(isinstance(g, Tensor) for g in self.gradients.values()):
            raise ValueError("the update's gradients are no tensors by name: SharedUpdate.of makes them of one's own")
        parameters = {name: victims.skeleton.get_parameter(name) for name in gradients.trained_names(victims.skeleton)}
        if parameters.keys() != self.gradients.keys():
            missing = [name for name in parameters if name not in self.gradients]
            unknown = [name for name in self.gradients if name not in parameters]
            raise ValueError(
                f"the update is not of this model: no gradient for the parameters {missing}, "
                f"and gradients for {unknown}, which the model does not have or does not train (requires_grad)"
            )
        for name, parameter in parameters.items():
            gradient = self.gradients[name]
            if gradient.shape[1:] != parameter.shape:
                raise ValueError(
                    f"the update is not of this model: the gradient of {name!r} has shape {tuple(gradient.shape[1:])} "
                    f"a trial, the parameter {tuple(parameter.shape)}"
                )
            if gradient.dtype != parameter.dtype:
                raise ValueError(
                    f"the gradient of {name!r} is of dtype {gradient.dtype}, the model of {parameter.dtype}: "
                    "SharedUpdate.of reads numbers of another dtype"
                )
            if gradient.device != parameter.device:
                raise ValueError(
                    f"the update is on {gradient.device} and the model on {parameter.device}: use update.to(device)"
                )
        if (own := task.of(victims.skeleton)) != self.task:
            raise ValueError(f"the clients minimise {self.task}, but the model is adapted for {own}")
        if (found := victims.fingerprint) != self.model:
            raise ValueError(
                f"the update was computed with other weights: model fingerprint {found}, the update's is {self.model}; "
                "attack the victim itself, or defense.extend(victim) where the defense extends it"
            )
        for name, gradient in self.gradients.items():
            bad = ~gradient.isfinite().flatten(1).all(1)
            if bad.any():
                raise ValueError(
                    f"the gradient of {name!r} has a NaN or infinite entry in trial {int(bad.nonzero()[0])} "
                    f"({int(bad.sum())} of {self.trials} trials): leave these trials out with update.select"
                )


def _brought(
    model: nn.Module,
    gradients: incoming.Numbers | None,
    before: incoming.Numbers | None,
    after: incoming.Numbers | None,
    local: LocalTraining | None,
    threat: ThreatModel,
    batch_size: int,
) -> tuple[dict[str, Tensor], list[str]]:
    """Somebody's numbers as name -> [1, *param] of what the model's client trains, and what was assumed of them."""
    if (gradients is None) == (after is None):
        raise ValueError(
            "give either gradients=, a gradient or weight difference, or after=, the weights that came back"
        )
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    called = incoming.called(model)
    if before is not None:
        sent, _ = incoming.named(model, before, "before")
        if other := [called[n] for n, p in parameters.items() if sent.get(n) is None or not torch.allclose(sent[n], p)]:
            raise ValueError(
                f"before: {other[:3]} are not the model's weights; give it those that the server sent: "
                "models.adapt(..., weights=before)"
            )
    if after is None:
        what = "gradients"
        found, assumed = incoming.named(model, gradients, what)
    else:
        what = "after"
        if local is None:
            raise ValueError(
                "after: weights need local=LocalTraining(epochs, batch_size, learning_rate), as the client trained"
            )
        found, assumed = incoming.named(model, after, what)
        if missing := [called[name] for name in parameters if found.get(name) is None]:
            raise ValueError(
                f"after: no weights for {missing}; expected all of the module's, as `state_dict()` holds them"
            )
    named = {name: found[name] for name in parameters if name in found}
    if bad := [called[name] for name, value in named.items() if value is not None and not value.isfinite().all()]:
        raise ValueError(f"{what}: {bad} hold NaN or infinite values")
    if after is not None:
        named = {name: value - parameters[name] for name, value in named.items()}
        if not any(value.any() for value in named.values()):
            raise ValueError(
                "after: the weights are those that the model has: nothing was trained, or it was loaded twice"
            )
    elif named and all(v is None or not v.any() for v in named.values()):
        raise ValueError("gradients: all are zero or None: read them after loss.backward() and before zero_grad()")
    elif _are_weights(named, parameters):
        raise ValueError("gradients: these are weights, near the model's own: give them as after=")
    if frozen := [called[n] for n, v in named.items() if n not in trained and v is not None and v.any()]:
        raise ValueError(
            f"{what}: {frozen} changed, but the model's do not require a gradient: unfreeze them, or leave them out"
        )
    if unused := [called[name] for name in trained if name in named and named[name] is None]:
        assumed.append(f"{what}: None for {unused} was taken as zero, a parameter that the loss does not depend on")
    if missing := [called[name] for name in trained if name not in named]:
        raise ValueError(
            f"{what}: nothing for {missing}; where the client does not train them, freeze them: "
            "parameter.requires_grad_(False)"
        )
    assumed += _of_the_buffers(model, found if after is not None else {}, local, threat, batch_size)
    return {
        name: (torch.zeros_like(parameters[name]) if named[name] is None else named[name])[None] for name in trained
    }, assumed


def _are_weights(found: dict[str, Tensor | None], parameters: dict[str, Tensor]) -> bool:
    """Whether these are the model's weights after some training: of as many numbers, no gradient is as parallel."""
    both = [(value.flatten(), parameters[name].flatten()) for name, value in found.items() if value is not None]
    if not both:
        return False
    theirs, own = (torch.cat(parts) for parts in zip(*both, strict=True))
    near = torch.allclose(theirs, own, rtol=0.2, atol=1e-8)
    return near or (len(own) >= 100 and bool(torch.cosine_similarity(theirs, own, dim=0) > 0.5))


def _of_the_buffers(
    model: nn.Module,
    after: dict[str, Tensor | None],
    local: LocalTraining | None,
    threat: ThreatModel,
    batch_size: int,
) -> list[str]:
    """What batch norm's statistics after the round say against what was said of the client: in words, or refused.

    Errors: ValueError for statistics that moved under mode "eval".
    """
    norms = {
        n: layer
        for n, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
    sent = {name: layer for name, layer in norms.items() if after.get(f"{name}.running_mean") is not None}
    if not sent:
        return [f"batch norm was taken to run in mode={threat.mode!r}, as `threat` has it"] if norms else []
    if all(torch.allclose(after[f"{name}.running_mean"], layer.running_mean) for name, layer in sent.items()):
        still = "after: mode='train', though batch norm's running statistics did not move"
        return [still] if threat.mode == "train" else []
    if threat.mode == "eval":
        raise ValueError(
            "after: the running statistics of batch norm moved, so the client trained in training mode: give "
            "threat=ThreatModel(mode='train')"
        )
    first = next(iter(sent))
    counted, steps = after.get(f"{first}.num_batches_tracked"), local.most_steps(batch_size)
    passed = steps if counted is None else int(counted - sent[first].num_batches_tracked)
    said = (
        f"after: batch norm counted {passed} passes, but a client of {batch_size} images takes {steps} steps by `local`"
    )
    return [said] if passed not in (0, steps) and threat.clients == 1 else []


def _labels(labels: Sequence[int] | Tensor) -> Tensor:
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels must be numbers, got {labels!r}") from error
    return found if found.is_floating_point() or found.dtype == torch.bool else found.long()


def _check_direction(update: SharedUpdate) -> list[str]:
    """Refuse an update of the opposite sign or a scale that no mean cross-entropy has, by the head's bias.

    Its gradient is p - y averaged over the images (iDLG, section 2): it sums to 0, and at most as many entries as there
    are images are negative and sum to -1 at least. Returns what was not checked: where it does not sum to 0, nothing.
    """
    bias = None
    whole = {"head.weight", "head.bias"} <= update.gradients.keys()
    if update.task.loss == "cross-entropy" and whole and not update.task.smoothing:
        bias = update.of_the_head()[1]
    if bias is None or (update.local is not None and not update.local.is_one_gradient(update.batch_size)):
        return [
            "sign and scale could not be checked: the update is no single gradient of a cross-entropy without "
            "smoothing and a last layer with a bias"
        ]
    total = float(bias.abs().sum())
    if abs(float(bias.sum())) > 1e-3 * total:
        return [
            "sign and scale could not be checked: the last bias's gradient does not sum to 0, as after noise or "
            "rounding"
        ]
    negative, positive = (int((side > 1e-3 * total).sum()) for side in (-bias, bias))
    if negative > update.batch_size >= positive:
        what = "after - before" if update.local else "the gradient of the loss"
        hint = "" if update.local else ", or give local=LocalTraining(...) if it is a weight difference"
        raise ValueError(
            f"the update points the other way: {negative} entries of the last bias's gradient are negative, of "
            f"{update.batch_size} image(s) at most so many can be; expected {what}: change its sign{hint}"
        )
    if (size := total / 2) > 1.01:
        raise ValueError(
            f"the update is at least {size:.3g} times too large for a mean loss: divide a sum over the batch by "
            f"{update.batch_size}, or give local=LocalTraining(...) with the client's learning rate and steps"
        )
    return []


def share(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel | None = None,
    defense: Defense | None = None,
    local: LocalTraining | None = None,
    clients: Sequence[int] = (),
    seed: Seed = 0,
) -> SharedUpdate:
    """What T clients (or groups of clients) with one set of weights share after one round of training.

    images: [T, B, C, H, W] in [0, 1], of the model's dtype and device. labels: [T, B] int64 in [0, num_classes).
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

    >>> from reprolib import client, data, defenses, models
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
    _check_types(threat, local)
    threat = ThreatModel() if threat is None else threat
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
    sizes = _sizes(images, threat, clients)
    _check_inputs(model, images, labels, local, sizes)
    generator(seed, 0)  # refuses a bad seed before any work
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


def extended(model: nn.Module, defense: Defense | None) -> nn.Module:
    """The model that a client with this defense trains: `defense.extend(model)`, or a model that is that already.

    So a model can be extended, trained, and then shared under the same defense, with its trained weights. Attackers
    are given the same.
    """
    if defense is None or getattr(model, "extended_by", None) == defense:
        return model
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


def _encode(defense: Defense, images: Tensor, targets: Tensor, random: list[torch.Generator]) -> tuple[Tensor, Tensor]:
    """What the clients train on, trial by trial."""
    encoded = [defense.encode(*each) for each in zip(images, targets, random, strict=True)]
    return tuple(torch.stack(part) for part in zip(*encoded, strict=True))


def _protect(
    defense: Defense,
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
        return {name: sum(client[name] for client in clients) / len(clients) for name in clients[0]}
    shares = [size / sum(sizes) for size in sizes]
    return {
        name: sum(share * client[name] for share, client in zip(shares, clients, strict=True)) for name in clients[0]
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
        name: tuple(value.detach().clone().expand(trials, -1) for value in (module.running_mean, module.running_var))
        for name, module in norms.items()
    }


def trials_that_fit(victim: nn.Module, images: Tensor) -> int:
    """Trials that fit the memory budget together, from what one trial's forward pass keeps for its backward pass."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional_call(victim, models.no_noise(victim, len(images)), (images,))
    # the backward pass holds about as much again, and a trial's own weights and gradients beside it
    trial = 2 * kept + 3 * sum(parameter.nbytes for parameter in victim.parameters())
    return max(1, MEMORY_BUDGET // trial)


def _sizes(images: Tensor, threat: ThreatModel, clients: Sequence[int]) -> tuple[int, ...]:
    """How many images each client has."""
    batch = images.shape[1] if images.ndim > 1 else 0
    if not clients:
        if batch % threat.clients:
            raise ValueError(
                f"observes={threat.observes!r} needs a batch that divides evenly among the clients, got {batch} "
                "images: clients=(...) names how many each has"
            )
        return (batch // threat.clients,) * threat.clients
    sizes = tuple(clients)
    if any(not isinstance(size, int) or size < 1 for size in sizes) or sum(sizes) != batch:
        raise ValueError(f"clients={sizes}: expected whole numbers of images >= 1 that sum up to the batch's {batch}")
    if len(sizes) != threat.clients:
        raise ValueError(
            f"clients={sizes} are {len(sizes)}, but the threat model observes {threat.observes!r}: use "
            f"ThreatModel(observes='mean of {len(sizes)}')"
        )
    return sizes


def _check_types(threat: object, local: object) -> None:
    for name, value, kind in (("local", local, LocalTraining), ("threat", threat, ThreatModel)):
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} must be a client.{kind.__name__}(...), got {value!r}")


def _check_victim(model: nn.Module) -> None:
    """Refuse what is no victim: attacks read its last layer, its normalisation and its shapes."""
    known = isinstance(model, Victim)
    if not known or model.head.out_features != model.num_classes:
        what = f"its head gives {model.head.out_features} classes" if known else "it is no models.Victim"
        raise ValueError(
            f"{type(model).__name__} is no victim as it is ({what}): models.adapt(module, image_shape, num_classes) "
            "makes anybody's network one, models.build one of the book's"
        )


def _check_inputs(
    model: nn.Module, images: Tensor, labels: Tensor, local: LocalTraining | None, sizes: Sequence[int]
) -> None:
    _check_victim(model)
    shape = tuple(model.image_shape)
    if images.ndim != 5 or tuple(images.shape[2:]) != shape:
        raise ValueError(
            f"images must have shape [trials, batch, {', '.join(map(str, shape))}] for this model, "
            f"got {list(images.shape)}"
        )
    trials, batch = images.shape[:2]
    if trials == 0 or batch == 0:
        raise ValueError(f"images must hold at least one trial and one image a trial, got shape {list(images.shape)}")
    parameter = next(model.parameters())
    if not (images.device == labels.device == parameter.device):
        raise ValueError(
            f"model, images and labels must be on one device, got {parameter.device}, {images.device} and "
            f"{labels.device}"
        )
    if images.dtype != parameter.dtype:
        raise ValueError(f"images must be of the model's dtype {parameter.dtype}, got {images.dtype}")
    if not images.isfinite().all():
        trial = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"images have a NaN or infinite value in trial {trial}")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"images must lie in [0, 1], got values from {images.min():.4g} to {images.max():.4g}; "
            "normalisation belongs into the model's first layer"
        )
    task.of(model).check(labels, trials, batch, model.num_classes, images.dtype)
    own = max(sizes)
    if local is not None and local.batch_size > own:
        raise ValueError(f"batch_size of LocalTraining is {local.batch_size}, but a client has only {own} image(s)")
    if local is not None and local.sizes:
        raise ValueError("sizes of LocalTraining is for `share` to fill in: name them as clients=(...)")
