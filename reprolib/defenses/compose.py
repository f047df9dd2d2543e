"""Several defenses, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot

import torch
from torch import Tensor, nn

from reprolib.defenses.base import Defense
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate


@dataclass(frozen=True)
class Compose(Defense):
    """Apply the defenses in the order given: `Compose([TopK(0.9), GaussianNoise(1e-3)])` prunes, then adds noise.

    What alters the images comes first, then what works on the gradient of each image, then what changes their mean.
    Errors: ValueError for an empty sequence, a member that is no defense, and an order in which a member would undo or
    not see what an earlier one did.
    """

    defenses: Sequence[Defense]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.defenses:
            raise ValueError(f"Compose needs a sequence of at least one defense, got {self.defenses!r}")
        for member in self.defenses:
            if not isinstance(member, Defense):
                raise ValueError(f"Compose takes instances of reprolib.defenses, got {member!r}")
        object.__setattr__(self, "defenses", tuple(self.defenses))  # a tuple, so that equal settings compare equal
        _check_order(self.members())

    def __str__(self) -> str:
        return ", then ".join(map(str, self.defenses))

    @property
    def per_image(self) -> bool:  # type: ignore[override]  # of what it is composed of
        return any(member.per_image for member in self.defenses)

    def members(self) -> list[Defense]:
        """The defenses in order, those of members that are compositions themselves in their place."""
        parts = (member.members() if isinstance(member, Compose) else [member] for member in self.defenses)
        return [member for part in parts for member in part]

    def epsilon(self, steps: int, delta: float) -> float:
        """Of the member that has one: what comes after it only processes what it shared."""
        for member in self.members():
            if member.per_image:
                return member.epsilon(steps, delta)
        return super().epsilon(steps, delta)

    def extend(self, model: nn.Module) -> nn.Module:
        for defense in self.defenses:
            model = defense.extend(model)
        return model

    def encode(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        for defense in self.defenses:
            images, targets = defense.encode(images, targets, generator)
        return images, targets

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        for defense in self.defenses:
            gradients = defense.protect(gradients, model, images, labels, generator)
        return gradients

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """Every member reads the final update, and the readings add up.

        Slacks add, because errors do; weights multiply; the variances of noises add, and the law stays Laplacian only
        if no other noise is there. What members make of a gradient, the attacker does in their order. A member's
        reading can be void after a later one: noise after pruning fills the zeros, so that nothing is known of what
        was pruned, whereas pruning after noise keeps both readings. What is to be done about a bottleneck says the one
        member that has it.
        """
        readings = [defense.counter(model, update) for defense in self.defenses]
        laws = {reading.law for reading in readings if reading.noise_std > 0}
        return Observation(
            target=update.as_gradients(),
            weight=_merge([reading.weight for reading in readings], torch.mul),
            slack=_merge([reading.slack for reading in readings], torch.add),
            beyond=_merge([reading.beyond for reading in readings], torch.minimum),
            law="laplace" if laws == {"laplace"} else "gaussian",
            noise_std=hypot(*(reading.noise_std for reading in readings)),
            of_each_image=next((reading.of_each_image for reading in readings if reading.of_each_image), None),
            of_the_mean=_one_after_the_other([reading.of_the_mean for reading in readings if reading.of_the_mean]),
            noise=next((reading.noise for reading in readings if reading.noise != "resample"), "resample"),
            draws=max(reading.draws for reading in readings),
            penalty=any(reading.penalty for reading in readings),
        )


def _check_order(members: Sequence[Defense]) -> None:
    """Errors: ValueError for an order that makes no sense, naming the two members."""
    for place, member in enumerate(members):
        earlier = [other for other in members[:place] if type(other).protect is not Defense.protect]
        if type(member).encode is not Defense.encode and earlier:
            raise ValueError(f"{member} alters the images, before there is a gradient for {earlier[0]}: put it first")
        if not member.per_image:
            continue
        if earlier:
            raise ValueError(
                f"{member} works on the gradient of each image and would not see what {earlier[0]} made of their "
                "mean: put it first"
            )
        if mixed := [other for other in members[:place] if other.mixes]:
            raise ValueError(
                f"{member} after {mixed[0]}: an image enters several mixtures, so that clipping each mixture's "
                "gradient does not bound what one image contributes"
            )


def _one_after_the_other(steps: list[Callable]) -> Callable | None:
    if not steps:
        return None

    def all_of_them(gradients: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
        for step in steps:
            gradients = step(gradients, target)
        return gradients

    return all_of_them


def _merge(parts: list[dict[str, Tensor] | None], combine) -> dict[str, Tensor] | None:  # type: ignore[no-untyped-def]
    """Combine the readings entry by entry; None (no reading) leaves the others as they are."""
    merged: dict[str, Tensor] = {}
    for part in parts:
        for name, value in (part or {}).items():
            merged[name] = combine(merged[name], value) if name in merged else value
    return merged or None
