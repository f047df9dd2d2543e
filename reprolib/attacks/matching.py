"""Distances between gradients, and what an attacker who knows the defense compares its dummy gradients with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from reprolib import models
from reprolib.federated import client, gradients
from reprolib.federated.observation import Observation, by_trial, of_trials
from reprolib.models import Victims
from reprolib.models.adapt import second_derivatives

BLOCK = {"cpu": 256, "cuda": 1024}
"""Trials differentiated together at most. LeNet still gains from 128 to 256 on two cores."""


@dataclass(frozen=True, eq=False)
class Matching:
    """The gradient-matching objective of T trials, ready for an optimiser over the trial axis.

    D(x', y') = sum over parameters of weight * rho(max(0, |dl(F(x'), y')/dW - target| - slack)): a sum and not a mean,
    without a factor, because L-BFGS's thresholds are absolute (DLG, equation 4). Where the
    observation says so, the dummy gradients are defended first, image by image and as a whole. To D comes
    `prior(x', trials) [R]`, where the attacker has one, and `statistics`, a penalty [R] on what enters the batch-norm
    layers `layers` (layer -> (mean [R, C], biased variance [R, C]), and the trials).

    `parts(x [R, N], trials [R])` cuts the optimiser's rows into images [R, B, C, H, W] and soft labels [R, B, K];
    it must be differentiable. mode: how the victim's batch norm runs, as in `client.ThreatModel`. model: one victim for
    all trials, or victims with one for each. compare: `distance` (when left out) or `cosine`. local: the client's
    training, where the observation is the average gradient along its steps. sizes: images of each of several clients,
    () for one, or for `local`'s. order: [T, epochs, B], where the local passes take their images from. noise: rows of x
    and their trials -> the noise for the model's bottlenecks, one dictionary a pass to average over (`dummy_noise`,
    `draw_noise`).
    Errors: ValueError for a model with a bottleneck and no noise for it, or with several local steps.
    """

    model: nn.Module | Victims
    observation: Observation
    parts: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    prior: Callable[[Tensor, Tensor], Tensor] | None = None
    mode: Literal["eval", "train"] = "eval"
    compare: Callable[[dict[str, Tensor], Observation, Tensor], Tensor] | None = None
    local: client.LocalTraining | None = None
    layers: tuple[str, ...] = ()
    statistics: Callable[[dict[str, tuple[Tensor, Tensor]], Tensor], Tensor] | None = None
    noise: Callable[[Tensor, Tensor], Sequence[dict[str, Tensor]]] | None = None
    sizes: tuple[int, ...] = ()
    order: Tensor | None = None

    def __post_init__(self) -> None:
        victims = Victims.of(self.model)
        network = client.worker(victims.skeleton, self.mode)
        if wanted := list(models.noise_shapes(network)):
            if self.noise is None:
                raise ValueError(f"the model's bottleneck needs noise={wanted}: give Matching a source of it")
            if self.local is not None:
                raise ValueError("a model with a bottleneck is matched by a single gradient, not along local steps")
            if self.observation.of_each_image is not None:
                raise ValueError("a model with a bottleneck is matched by the gradient of the batch, not of each image")
            if not self.observation.penalty:
                models.leave_out_penalty(network)
        if self.statistics is not None and self.mode == "train" and len(self.sizes) > 1:
            raise ValueError(
                f"the mean of {len(self.sizes)} clients in mode='train' has no batch-norm statistics of one batch: "
                "leave the statistics out"
            )
        if self.observation.of_each_image is not None and (self.local is not None or self.statistics is not None):
            raise ValueError(
                "the defense changes the gradient of each image, which is matched without local steps and without "
                "batch-norm statistics: leave `local` or the statistics out"
            )
        object.__setattr__(self, "_worker", replace(victims, skeleton=network))
        object.__setattr__(self, "_size", [])

    def __call__(self, x: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
        """Values [R] and gradients [R, N] of the objective at the rows of x."""
        block = self._block_size(x, trials)
        results = [self._block(x[i : i + block], trials[i : i + block]) for i in range(0, len(x), block)]
        if len(results) == 1:
            return results[0]
        return torch.cat([value for value, _ in results]), torch.cat([gradient for _, gradient in results])

    def _block_size(self, x: Tensor, trials: Tensor) -> int:
        """Trials a block, from the memory that one needs; the second differentiation keeps about as much again."""
        if not self._size:  # type: ignore[attr-defined]
            images, _ = self.parts(x[:1], trials[:1])
            steps = 1 if self.local is None else self.local.most_steps(images.shape[1])
            kept = steps if steps < gradients.RECOMPUTED_FROM else 1
            kept *= images.shape[1] if self.observation.of_each_image else 1
            fit = client.trials_that_fit(self._worker.skeleton, images[0].detach()) // (2 * kept)  # type: ignore[attr-defined]
            self._size.append(max(1, min(BLOCK[x.device.type], fit)))  # type: ignore[attr-defined]
        return self._size[0]  # type: ignore[attr-defined]

    def alone(self, x: Tensor, trials: Tensor, noise: Callable | None = None) -> Tensor:
        """The distance [R] at the rows of x, without the prior and the statistics. noise: in the place of the field."""
        block, found = self._block_size(x, trials), []
        for rows, of in zip(x.detach().split(block), trials.split(block), strict=True):
            images, soft_labels = self.parts(rows, of)
            passes = [{}] if self.noise is None else (noise or self.noise)(rows, of)
            found.append(self._distance(images, soft_labels, of, passes)[0].detach())
        return torch.cat(found)

    def _block(self, x: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        images, soft_labels = self.parts(x, trials)
        value, seen = self._distance(images, soft_labels, trials, [{}] if self.noise is None else self.noise(x, trials))
        if self.statistics is not None:
            value = value + self.statistics(seen, trials)
        if self.prior is not None:
            value = value + self.prior(images, trials)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    def _distance(
        self, images: Tensor, soft_labels: Tensor, trials: Tensor, passes: Sequence[dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The distance [R] at these images, and what entered the batch-norm layers where the statistics ask for it."""
        worker = self._worker.select(trials)  # type: ignore[attr-defined]
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        if self.observation.of_each_image is not None:
            of_each_image = self.observation.of_each_image
            found = dummy_gradients_of_images(worker, images, soft_labels, of_each_image)
        elif self.statistics is None:
            order = None if self.order is None else self.order[trials]
            found = [  # type: ignore[assignment]
                dummy_gradients(worker, images, soft_labels, self.local, drawn, self.sizes, order) for drawn in passes
            ]
            found = _average(found)
        else:
            found, seen = dummy_gradients_and_statistics(worker, images, soft_labels, self.layers, passes[0])
        found = self.observation.as_shared(found, trials)
        return (self.compare or distance)(found, self.observation, trials), seen


def dummy_noise(
    model: nn.Module | Victims, observation: Observation, streams: Sequence[torch.Generator], batch: int
) -> Callable[[Tensor, Tensor], list[dict[str, Tensor]]] | None:
    """The noise that the observation asks for in the model's bottlenecks; None for a model without one.

    streams: a generator a trial, so that what a trial draws does not depend on the others. batch: images a trial.
    Errors: ValueError for noise that is to be optimised with the images: only the attack can do that.
    """
    network = Victims.of(model).skeleton
    if not models.noise_shapes(network):
        return None
    if not isinstance(observation.noise, str):
        return lambda _, trials: [{name: values[trials] for name, values in observation.noise.items()}]
    if observation.noise == "joint":
        raise ValueError(
            f"noise={observation.noise!r} is optimised with the images, which this attack does not do: use "
            "attacks.InvertingGradients"
        )

    def drawn(trials: Sequence[int]) -> dict[str, Tensor]:
        each = [models.draw_noise(network, batch, streams[trial]) for trial in trials]
        return {name: torch.stack([own[name] for own in each]) for name in each[0]}

    if observation.noise == "fixed":
        once = drawn(range(len(streams)))
        return lambda _, trials: [{name: values[trials] for name, values in once.items()}]
    return lambda _, trials: [drawn(trials.tolist()) for _ in range(observation.draws)]


def _average(passes: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(passes) == 1:
        return passes[0]
    return {name: sum(gradients[name] for gradients in passes) / len(passes) for name in passes[0]}  # type: ignore[misc]


def dummy_gradients(
    worker: nn.Module | Victims,
    images: Tensor,
    soft_labels: Tensor,
    local: client.LocalTraining | None = None,
    noise: dict[str, Tensor] | None = None,
    sizes: Sequence[int] = (),
    order: Tensor | None = None,
) -> dict[str, Tensor]:
    """The gradients that dummy batches would have shared: name -> [R, *param], differentiable in both arguments.

    images: [R, B, C, H, W]. soft_labels: [R, B, K]. The rest, and what it gives with `local`: `gradients.shared`.
    One trial alone takes plain autograd, which is the faster path there; more share one `vmap`, over the weights too
    where each trial has its own.
    """
    worker = Victims.of(worker)
    if len(images) > 1 or worker.axis is not None or local is not None or len(sizes) > 1:
        sizes = sizes or (local.sizes if local is not None else ())
        return gradients.shared(worker, images, soft_labels, local, sizes, noise, order)
    noise = {name: values[0] for name, values in (noise or {}).items()}
    network, names = worker.skeleton, gradients.trained_names(worker.skeleton)
    with second_derivatives():
        loss = client.loss(network, noise, images[0], soft_labels[0])
        wanted = [network.get_parameter(name) for name in names]
        found = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True, materialize_grads=True)
    return {name: gradient[None] for name, gradient in zip(names, found, strict=True)}


def dummy_gradients_of_images(
    worker: nn.Module | Victims,
    images: Tensor,
    soft_labels: Tensor,
    of_each_image: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The mean, over a dummy batch, of what `of_each_image` makes of its images' own gradients: name -> [R, *param]."""
    trials, size = images.shape[:2]
    worker = Victims.of(worker).repeat(size)
    alone = dummy_gradients(worker, images.flatten(0, 1)[:, None], soft_labels.flatten(0, 1)[:, None])
    return {name: g.view(trials, size, *g.shape[1:]).mean(1) for name, g in of_each_image(alone).items()}


def dummy_gradients_and_statistics(
    worker: nn.Module | Victims,
    images: Tensor,
    soft_labels: Tensor,
    layers: tuple[str, ...],
    noise: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """`dummy_gradients`, and the mean and biased variance [R, C] of what enters the named layers in the same pass."""
    network, weights, frozen, axis = gradients.parameters(Victims.of(worker))

    def loss_of(
        weights: dict[str, Tensor], frozen: dict[str, Tensor], x: Tensor, y: Tensor, drawn: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        return client.loss(network, weights | frozen | drawn, x, y), dict(seen)

    with client.recorded(network, layers) as seen, second_derivatives():
        found = grad(loss_of, has_aux=True)
        return vmap(found, in_dims=(axis, axis, 0, 0, 0))(weights, frozen, images, soft_labels, noise or {})


def distance(gradients: dict[str, Tensor], observation: Observation, trials: Tensor) -> Tensor:
    """How far dummy gradients (name -> [R, *param]) are from the observation of the named trials: [R]."""
    return sum(per_parameter(gradients, observation, trials).values())  # type: ignore[return-value]


def cosine(gradients: dict[str, Tensor], observation: Observation, trials: Tensor) -> Tensor:
    """One minus the cosine between dummy gradients (name -> [R, *param]) and the observation of the trials: [R].

    One cosine over all parameters together, not a mean over layers; in [0, 2], and blind to the gradient's scale.
    Entries of weight 0 do not count, nor do entries known only to be small (target 0, positive slack: pruned ones).
    Source: Geiping et al. 2020, equation 4.
    """
    ours, theirs = [], []
    for name, gradient in gradients.items():
        target = of_trials(observation.target[name], trials)
        if observation.weight is not None and name in observation.weight:
            seen = of_trials(observation.weight[name], trials)
            gradient, target = gradient * seen, target * seen
        if observation.slack is not None and name in observation.slack:
            gradient = gradient * ~((target == 0) & (of_trials(observation.slack[name], trials) > 0))
        ours.append(by_trial(gradient))
        theirs.append(by_trial(target))
    dummy, shared = torch.cat(ours, 1), torch.cat(theirs, 1)  # three products in all, not three a parameter
    inner, own, given = (torch.linalg.vecdot(a, b) for a, b in ((dummy, shared), (dummy, dummy), (shared, shared)))
    return 1 - inner / (own.sqrt() * given.sqrt())


def require_direction(observation: Observation) -> None:
    """Errors: ValueError for a gradient of length zero, which the cosine cannot be taken with."""
    length = sum(by_trial(g).square().sum(1) for g in observation.target.values())
    if (length == 0).any():
        raise ValueError(f"the gradient of trial {int((length == 0).nonzero()[0])} is zero: it has no direction")


def norms(gradients: dict[str, Tensor], observation: Observation, trials: Tensor) -> Tensor:
    """The sum of the parameters' distances, each a norm and not its square, of the named trials: [R].

    Source: Yin et al. 2021 (GradInversion), equation 3.
    """
    squares = per_parameter(gradients, observation, trials).values()
    return sum(square.clamp(min=torch.finfo(square.dtype).tiny).sqrt() for square in squares)  # type: ignore[return-value]  # no NaN slope at zero


def per_parameter(gradients: dict[str, Tensor], observation: Observation, trials: Tensor) -> dict[str, Tensor]:
    """The distance of each parameter alone: name -> [R]."""
    return {name: _penalty(name, gradient, observation, trials) for name, gradient in gradients.items()}


def _penalty(name: str, gradient: Tensor, observation: Observation, trials: Tensor) -> Tensor:
    residual = gradient - of_trials(observation.target[name], trials)
    if observation.slack is not None and name in observation.slack:
        excess = residual.abs() - of_trials(observation.slack[name], trials)
        if observation.beyond is not None and name in observation.beyond:
            excess = torch.minimum(excess, of_trials(observation.beyond[name], trials) - residual.abs())
        residual = excess.clamp(min=0)
    if observation.law == "laplace":
        # |r|, rounded off below a hundredth of the noise so that curvature exists for L-BFGS
        corner = 0.01 * observation.noise_std
        cost = (residual.square() + corner**2).sqrt() - corner
    else:
        cost = residual.square()
    if observation.weight is not None and name in observation.weight:
        cost = cost * of_trials(observation.weight[name], trials)
    return by_trial(cost).sum(1)
