"""What an attacker holds dummy gradients against: the update as it is, or as one reads it who knows the defense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Observation:
    """The attacker's reading of an update: what each dummy gradient entry is compared with, and how strictly.

    A difference r between a dummy gradient and `target` costs `weight * rho(max(0, |r| - slack))`, where rho is the
    square for Gaussian noise (and for none) and the absolute value for Laplacian noise. This one form holds a mask
    (weight 0), a pruned entry known only to be small (target 0, slack = smallest kept magnitude), a quantiser's box
    (slack = half a step) and the law of a noise. A pruned entry that is either small or large costs nothing from
    `beyond` on either: the excess over `slack` is then no more than what is missing to `beyond`.

    What a defense computes from the gradient, the attacker computes from its dummy gradients before it compares them:
    `of_each_image` of the gradient of every dummy image, before their mean (per-sample clipping), then `of_the_mean`
    of the mean, beside the targets of the same trials (clipping, signs, a factor). `as_shared` applies the latter.

    target: name -> [T, *param]. weight, slack, beyond: name -> tensor broadcastable to the target's, or None for 1, 0
    and infinity. noise_std: the standard deviation of additive noise the attacker allows for; it sets the weight of its
    image prior. of_each_image: name -> [N, *param] to the same; of_the_mean: that, and the targets, to the same.

    What the attacker puts in place of the client's noise where the model has a bottleneck: noise is "resample" (drawn
    anew at every pass, the model as it was sent), "fixed" (drawn once, before the first), "joint" (optimised with the
    images) or its values, buffer name -> [T, B, *shape]. draws: passes whose gradients are averaged. penalty: its loss
    has the bottleneck's penalty too.
    Source: the developer guide, "Contracts".
    """

    target: dict[str, Tensor]
    weight: dict[str, Tensor] | None = None
    slack: dict[str, Tensor] | None = None
    beyond: dict[str, Tensor] | None = None
    law: Literal["gaussian", "laplace"] = "gaussian"
    noise_std: float = 0.0
    of_each_image: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    of_the_mean: Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]] | None = None
    noise: dict[str, Tensor] | Literal["resample", "fixed", "joint"] = "resample"
    draws: int = 1
    penalty: bool = False

    def as_shared(self, gradients: dict[str, Tensor], trials: Tensor) -> dict[str, Tensor]:
        """Dummy gradients (name -> [R, *param]) of the named trials as the defense would have made them."""
        if self.of_the_mean is None:
            return gradients
        return self.of_the_mean(gradients, {name: of_trials(target, trials) for name, target in self.target.items()})

    def select(self, trials: Tensor) -> Observation:
        """The observation of the chosen trials, in their order."""

        def chosen(tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
            return tensors and {name: of_trials(tensor, trials) for name, tensor in tensors.items()}

        return replace(
            self,
            target={n: t[trials] for n, t in self.target.items()},
            weight=chosen(self.weight),
            slack=chosen(self.slack),
            beyond=chosen(self.beyond),
            noise=self.noise if isinstance(self.noise, str) else {n: v[trials] for n, v in self.noise.items()},
        )


def by_trial(values: Tensor) -> Tensor:
    """[T, *param] as [T, N]: of a parameter that is a single number, N is 1."""
    return values.flatten(1) if values.ndim > 1 else values[:, None]


def of_trials(tensor: Tensor, trials: Tensor) -> Tensor:
    """The trials' entries; a tensor without a trial axis of its own serves every trial."""
    return tensor[trials] if tensor.ndim and len(tensor) > 1 else tensor
