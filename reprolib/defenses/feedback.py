"""Error feedback: what a client withholds in one round it adds to the gradient of the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from reprolib.defenses.base import Defense
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate


def with_feedback(
    defense: Defense,
    gradients: dict[str, Tensor],
    withheld: dict[str, Tensor],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One round of one client: what it shares, s = A(g + r), and what it withholds for the next, g + r - s.

    withheld: r, of the round before; empty in the first round. The other arguments are those of `Defense.protect`.
    Source: Lin et al. 2018 (Deep Gradient Compression), section 3.1.
    """
    whole = {name: g + withheld[name] for name, g in gradients.items()} if withheld else gradients
    shared = defense.protect(whole, model, images, labels, generator)
    return shared, {name: g - shared[name] for name, g in whole.items()}


@dataclass(frozen=True, eq=False)
class AfterFeedback(Defense):
    """How an attacker reads a round of a client with error feedback whose round before it saw as well.

    What the client had withheld there is bounded by that round's own reading: nothing of an entry that it sent, and no
    more than the smallest entry it sent of the others. So the slack of the round before comes on top of this one's.
    For defenses that bound what they withhold (pruning, rounding). It protects nothing: it is an attacker's reading.

    defense: the client's. before: name -> [T, *param], what it shared in the round before.
    Errors: ValueError, when read, for a defense without such a bound and for a `before` of another model.
    Source: this book.
    """

    defense: Defense
    before: dict[str, Tensor]

    def __str__(self) -> str:
        return f"{self.defense}, with error feedback"

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        shapes = {name: list(g.shape) for name, g in update.gradients.items()}
        for name in sorted(shapes.keys() | self.before.keys()):
            got = list(self.before[name].shape) if name in self.before else None
            if got != shapes.get(name):
                raise ValueError(f"before has shape {got} of {name!r}, this round's update {shapes.get(name)}")
        reading = self.defense.counter(model, update)
        earlier = self.defense.counter(model, replace(update, gradients=self.before))
        if reading.slack is None or reading.beyond is not None:
            raise ValueError(
                f"{self.defense} sets no bound to what a client withholds from one round for the next: read the update "
                "by the defense's own counter"
            )
        return replace(reading, slack={name: own + earlier.slack[name] for name, own in reading.slack.items()})  # type: ignore[index]
