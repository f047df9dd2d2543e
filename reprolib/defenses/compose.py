"""Several defenses, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

import torch
from torch import Tensor, nn

from reprolib.client import SharedUpdate
from reprolib.defenses.base import Defense
from reprolib.matching import Observation


@dataclass(frozen=True)
class Compose(Defense):
    """Apply the defenses in the order given: `Compose([TopK(0.9), GaussianNoise(1e-3)])` prunes, then adds noise.

    Errors: ValueError for an empty sequence or a member that is no defense.
    """

    defenses: Sequence[Defense]

    def __post_init__(self) -> None:
        if isinstance(self.defenses, Defense) or not isinstance(self.defenses, Sequence) or not self.defenses:
            raise ValueError(f"Compose needs a sequence of at least one defense, got {self.defenses!r}")
        for member in self.defenses:
            if not isinstance(member, Defense):
                raise ValueError(f"Compose takes instances of reprolib.defenses, got {member!r}")
        object.__setattr__(self, "defenses", tuple(self.defenses))  # a tuple, so that equal settings compare equal

    def __str__(self) -> str:
        return ", then ".join(map(str, self.defenses))

    def extend(self, model: nn.Module) -> nn.Module:
        for defense in self.defenses:
            model = defense.extend(model)
        return model

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        for defense in self.defenses:
            gradients = defense.protect(gradients, model, images, labels, generator)
        return gradients

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """Every member reads the final update, and the readings add up.

        Slacks add, because errors do; weights multiply; the variances of noises add, and the law stays Laplacian only
        if no other noise is there. A member's reading can be void after a later one: noise after pruning fills the
        zeros, so that nothing is known of what was pruned, whereas pruning after noise keeps both readings. What is to
        be done about a bottleneck says the one member that has it.
        """
        readings = [defense.counter(model, update) for defense in self.defenses]
        laws = {reading.law for reading in readings if reading.noise_std > 0}
        return Observation(
            target=update.as_gradients(),
            weight=_merge([reading.weight for reading in readings], torch.mul),
            slack=_merge([reading.slack for reading in readings], torch.add),
            law="laplace" if laws == {"laplace"} else "gaussian",
            noise_std=hypot(*(reading.noise_std for reading in readings)),
            noise=next((reading.noise for reading in readings if reading.noise != "resample"), "resample"),
            draws=max(reading.draws for reading in readings),
            penalty=any(reading.penalty for reading in readings),
        )


def _merge(parts: list[dict[str, Tensor] | None], combine) -> dict[str, Tensor] | None:
    """Combine the readings entry by entry; None (no reading) leaves the others as they are."""
    merged: dict[str, Tensor] = {}
    for part in parts:
        for name, value in (part or {}).items():
            merged[name] = combine(merged[name], value) if name in merged else value
    return merged or None
