"""What a client shares, as the server has it: made by `client.share`, or from anybody's numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.federated import gradients
from reprolib.federated.brought import brought
from reprolib.federated.gradients import LocalTraining
from reprolib.federated.observation import Observation, by_trial
from reprolib.federated.protection import Protection
from reprolib.federated.threat import ServerKind, ThreatModel, check_types, client_sizes
from reprolib.models import Victims, fingerprint, incoming, task
from reprolib.models.task import Task
from reprolib.models.victim import require_victim


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
    defense: Protection | None = None
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
        >>> from reprolib import models
        >>> from reprolib.attacks import labels
        >>> from reprolib.federated.client import SharedUpdate
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
        >>> torch.nn.functional.cross_entropy(net(torch.rand(1, 3, 8, 8)), torch.tensor([7])).backward()
        >>> victim = models.adapt(net, image_shape=(3, 8, 8), num_classes=10)
        >>> gradients = [parameter.grad for parameter in net.parameters()]
        >>> update = SharedUpdate.of(victim, gradients, batch_size=1)
        >>> labels.from_update(update)
        tensor([7])
        """
        batch_size = settings.held("batch_size", settings.Count, batch_size)
        check_types(threat, local)
        require_victim(model)
        threat = ThreatModel(labels="known" if labels is not None else "unknown") if threat is None else threat
        if threat.batch_norm != "none":
            raise ValueError(f"batch_norm={threat.batch_norm!r}: an update of one's own numbers carries no statistics")
        found, assumed = brought(model, gradients, before, after, local, threat, batch_size)
        if labels is not None:
            labels = _labels(labels).to(next(model.parameters()).device)[None]
            task.of(model).check(labels, 1, batch_size, model.num_classes, next(model.parameters()).dtype)
        if (labels is None) != (threat.labels == "unknown"):
            raise ValueError(f"threat.labels={threat.labels!r}, but labels={labels!r}: give both or neither")
        sizes = client_sizes(torch.empty(1, batch_size), threat, ()) if threat.clients > 1 else ()
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

    def require_server(self, attack: str, *kinds: ServerKind) -> None:
        """Errors: ValueError where the threat model does not let the server do what `attack` needs."""
        if self.threat.server not in kinds:
            raise ValueError(
                f"{attack} needs a server of the kind {' or '.join(map(repr, kinds))}, but this update's threat model "
                f"says server={self.threat.server!r}"
            )

    def observed(self, model: nn.Module | Victims, attack: str, one_gradient: bool = False) -> Observation:
        """The update as an attacker reads it: with the defense's counter, if it knows the defense.

        one_gradient: `attack`, by its name, matches a single gradient.
        Errors: ValueError as `check`, and `require_one_gradient` where it is asked for.
        """
        self.check(model)
        if one_gradient:
            self.require_one_gradient(attack)
        if self.defense is not None:
            return self.defense.counter(model, self)
        return Observation(self.as_gradients())

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
        """The update of the chosen trials; the trial axis stays, also for a single integer.

        Errors: ValueError for trials that are not there, and for none.
        """
        every = np.arange(self.trials)
        try:
            chosen = np.atleast_1d(every[index.cpu().numpy() if isinstance(index, Tensor) else index])
        except (IndexError, TypeError, ValueError) as error:
            raise ValueError(f"select takes trials of 0..{self.trials - 1}, got {index!r}: {error}") from error
        if not len(chosen) or chosen.ndim > 1:
            raise ValueError(f"select needs one trial at least, and a flat list of them, got {index!r}")
        rows = torch.from_numpy(chosen).to(next(iter(self.gradients.values())).device)
        return self._map(lambda tensor: tensor[rows])

    @classmethod
    def join(cls, updates: Sequence[SharedUpdate], victims: Victims) -> SharedUpdate:
        """One update of all trials, for one attack on them: updates[k] was shared by network k of the victims.

        Errors: ValueError for updates that differ in anything but their numbers, or in the number of trials from the
        victims, and for none.
        """
        if not updates:
            raise ValueError("join needs one update at least, got none")
        first = updates[0]
        for name in ("batch_size", "image_shape", "num_classes", "threat", "local", "defense", "task", "sizes"):
            if any(getattr(update, name) != getattr(first, name) for update in updates):
                raise ValueError(f"the updates differ in {name}: only rounds of the same kind can be attacked together")
        if sum(update.trials for update in updates) != victims.trials:
            raise ValueError(
                f"the updates hold {sum(update.trials for update in updates)} trials, the victims {victims.trials}"
            )
        statistics = first.batch_norm and {
            layer: tuple(torch.cat([update.batch_norm[layer][i] for update in updates]) for i in (0, 1))  # type: ignore[misc, index]
            for layer in first.batch_norm
        }
        return replace(
            first,
            gradients={name: torch.cat([update.gradients[name] for update in updates]) for name in first.gradients},
            labels=None if first.labels is None else torch.cat([update.labels for update in updates]),  # type: ignore[misc]
            order=None if first.order is None else torch.cat([update.order for update in updates]),  # type: ignore[misc]
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
        require_victim(victims.skeleton)
        if not isinstance(self.gradients, dict) or not all(isinstance(g, Tensor) for g in self.gradients.values()):
            raise ValueError("the update's gradients are no tensors by name: SharedUpdate.of makes them of one's own")
        if len({len(g) if g.ndim else 0 for g in self.gradients.values()}) > 1:
            raise ValueError("the update's gradients are of different numbers of trials: [T, *param] each, of one T")
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
            bad = ~by_trial(gradient.isfinite()).all(1)
            if bad.any():
                raise ValueError(
                    f"the gradient of {name!r} has a NaN or infinite entry in trial {int(bad.nonzero()[0])} "
                    f"({int(bad.sum())} of {self.trials} trials): leave these trials out with update.select"
                )


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
