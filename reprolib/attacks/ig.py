"""Inverting Gradients: Geiping, Bauermeister, Dröge and Moeller, NeurIPS 2020."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from reprolib import models, settings
from reprolib.attacks import matching, priors
from reprolib.attacks.reconstruction import require_images
from reprolib.attacks.search import NormalisedSearch, Search, SearchAttack
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.optimizers import LBFGS, Minimum, adam, lbfgs, signed_adam

_OFFICIAL = (2.667, 1.6, 1.142)  # of the released code: the learning rate falls at T over these, rounded down


@dataclass(frozen=True)
class InvertingGradients(SearchAttack):
    """Find the images whose gradient points in the direction of the one that was shared.

    Minimises 1 - cos(g', g) + total_variation * TV(x) by Adam on the sign of its gradient, in the victim's normalised
    space and inside the box of valid pixels (equation 4). Updates of several local steps are
    matched by differentiating through the client's training. The defaults are the paper's for CIFAR-10.

    iterations, learning_rate: of Adam; the rate falls tenfold three times, at the `milestones`: "official" as the code
    rounds them, "exact" at 3/8, 5/8 and 7/8, or "none". total_variation: its weight, in normalised units.
    objective: "cosine", or "euclidean" for the sum of squares. optimizer: "adam", or "lbfgs" with torch's defaults, as
    the paper's baseline has it: then `iterations` are outer steps of up to 20, and learning_rate, signed, boxed and
    milestones are not used. signed, boxed: as above, or plain Adam, or no box.
    labels: "known" takes the update's, "inferred" reads them off the last layer (`labels.of_update`). starts: normal
    draws, of which the smallest distance wins, which the attacker sees. iterate: return the "last" iterate, as the code
    does, or the "best".

    A bottleneck's noise is drawn anew in every iteration, as the public code does, unless the defense is known: then as
    its `counter` says. Noise that is optimised too starts normal, moves by the same steps and has no box.
    """

    iterations: settings.Count = 4800
    learning_rate: settings.Level = 0.1
    total_variation: settings.Level = 0.01
    objective: Literal["cosine", "euclidean"] = "cosine"
    optimizer: Literal["adam", "lbfgs"] = "adam"
    signed: bool = True
    boxed: bool = True
    milestones: Literal["official", "exact", "none"] = "official"
    labels: Literal["known", "inferred"] = "known"
    starts: settings.Count = 1
    iterate: Literal["last", "best"] = "last"

    rules = {"inferred": "bias_corrected"}

    @classmethod
    def official(cls) -> InvertingGradients:
        """The settings of the released baseline script for CIFAR-10: total variation 1e-4."""
        return cls(total_variation=1e-4)

    @classmethod
    def paper(cls) -> InvertingGradients:
        """The paper's settings for CIFAR-10: 4,800 iterations, total variation 0.01 for the untrained LeNet."""
        return cls()

    @classmethod
    def local_steps(cls) -> InvertingGradients:
        """The released notebook's settings for one image and five local steps."""
        return cls(iterations=8000, total_variation=1e-6)

    @classmethod
    def baseline(cls) -> InvertingGradients:
        """The paper's "Euclidean loss + L-BFGS": DLG with the label given, as its Table 1 compares it; no prior.

        The released script leaves its total variation of 1e-4 on for this row too.
        """
        return cls(iterations=500, learning_rate=1.0, total_variation=0.0, objective="euclidean", optimizer="lbfgs")

    def schedule(self) -> tuple[int, ...]:
        """The iterations at which the learning rate falls tenfold."""
        if self.milestones == "none":
            return ()
        if self.milestones == "exact":
            return tuple(self.iterations * eighths // 8 for eighths in (3, 5, 7))
        return tuple(int(self.iterations // part) for part in _OFFICIAL)

    def search(self, *told: Any) -> Search:
        return _Search(self, *told)

    def lbfgs(self) -> LBFGS | None:
        return LBFGS() if self.optimizer == "lbfgs" else None

    def of_direction(self) -> bool:
        return self.objective == "cosine"

    def refuse(self, model: nn.Module | Victims, update: SharedUpdate) -> None:
        if self.total_variation:
            require_images("InvertingGradients", model, f"with total_variation={self.total_variation} smooths pixels")


class _Search(NormalisedSearch):
    """Behind the pixels of a row stands the noise of the bottlenecks, where the attacker looks for that too."""

    def __init__(self, attack: InvertingGradients, model: nn.Module | Victims, *told: Any) -> None:
        super().__init__(attack, model, *told)
        bottleneck = models.noise_shapes(Victims.of(model).skeleton)
        joint = bottleneck if self.observation.noise == "joint" else {}
        self.noise_shapes = {name: (self.batch_shape[0], *shape) for name, shape in joint.items()}
        self.noise_sizes = [math.prod(shape) for shape in self.noise_shapes.values()]

    def first(self, start: int) -> Tensor:
        return self.drawn(self.streams(start), self.pixels, *self.noise_sizes)

    def compare(self, gradients: dict[str, Tensor], observation: Observation, rows: Tensor) -> Tensor:
        how = matching.cosine if self.attack.objective == "cosine" else matching.distance
        return how(gradients, observation, rows)

    def noise(self, start: int) -> Callable[[Tensor, Tensor], list[dict[str, Tensor]]] | None:
        return self.joint_noise if self.noise_shapes else super().noise(start)  # type: ignore[return-value]

    def joint_noise(self, x: Tensor, rows: Tensor) -> list[dict[str, Tensor]]:
        """The noise of the bottlenecks among the variables: a single pass, as `matching.dummy_noise` gives it."""
        named = zip(self.noise_shapes.items(), x[:, self.pixels :].split(self.noise_sizes, 1), strict=True)
        return [{name: part.view(-1, *shape) for (name, shape), part in named}]

    def prior(self, images: Tensor, rows: Tensor) -> Tensor:
        return self.attack.total_variation * priors.total_variation(self.inputs.to_points(images))

    def steps(self, x: Tensor, start: int) -> Iterator[Minimum]:
        attack = self.attack
        objective = self.matching(start, prior=self.prior if attack.total_variation else None)
        if attack.optimizer == "lbfgs":
            return lbfgs(objective, x, attack.iterations)
        return (signed_adam if attack.signed else adam)(
            objective,
            x,
            attack.iterations,
            attack.learning_rate,
            milestones=attack.schedule(),
            project=self.inside if attack.boxed else (lambda y: y),
        )
