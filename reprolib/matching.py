"""Distances between gradients, and what an attacker who knows the defense compares its dummy gradients with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Observation:
    """The attacker's reading of an update: what each dummy gradient entry is compared with, and how strictly.

    A difference r between a dummy gradient and `target` costs `weight * rho(max(0, |r| - slack))`, where rho is the
    square for Gaussian noise (and for none) and the absolute value for Laplacian noise. This one form holds a mask
    (weight 0), a pruned entry known only to be small (target 0, slack = smallest kept magnitude), a quantiser's box
    (slack = half a step) and the law of a noise.

    target: name -> [T, *param]. weight, slack: name -> tensor broadcastable to the target's, or None for 1 and 0.
    noise_std: the standard deviation of additive noise the attacker allows for; it sets the weight of its image prior.
    Source: design section 2 (contracts), sheet `defenses.md` section 7.
    """

    target: dict[str, Tensor]
    weight: dict[str, Tensor] | None = None
    slack: dict[str, Tensor] | None = None
    law: Literal["gaussian", "laplace"] = "gaussian"
    noise_std: float = 0.0
