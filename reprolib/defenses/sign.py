"""Sign compression: one bit an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reprolib.defenses.base import Defense
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate

Scale = Literal["one", "mean_abs"]
Zeros = Literal["random", "kept"]


@dataclass(frozen=True)
class SignCompression(Defense):
    """Share the sign of every entry, times `scale`.

    scale: "one" (signSGD), or "mean_abs", the mean magnitude of the tensor (EF-signSGD). zeros: what an entry of
    exactly zero becomes: "random" draws its sign, which is what one bit can hold; "kept" shares 0, as sign(0) does in
    code, and gives away the dead units.
    Errors: ValueError for another scale or another word on zeros. Source: Bernstein et al. 2018 (signSGD).
    """

    scale: Scale = "one"
    zeros: Zeros = "random"

    def __str__(self) -> str:
        scale = "" if self.scale == "one" else ", scaled by the mean magnitude"
        return "signs" + (", zeros kept" if self.zeros == "kept" else "") + scale

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {name: self._sign(g, generator) * self._scale(g) for name, g in gradients.items()}

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """Only the side of zero counts: an entry on the wrong side costs its size, in units of its tensor's RMS.

        Without a margin on the right side: more than a third of a LeNet's true gradient lies below
        a tenth of the RMS, so that with the margin wrong images cost less than the right one.
        """

        def on_their_side(gradients: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: _against(g, target[name]) for name, g in gradients.items()}

        return Observation(target=update.as_gradients(), of_the_mean=on_their_side)

    def _sign(self, gradient: Tensor, generator: torch.Generator) -> Tensor:
        sign, empty = gradient.sign(), gradient == 0
        if self.zeros == "random" and empty.any():
            drawn = torch.randint(2, gradient.shape, generator=generator).to(gradient) * 2 - 1
            sign = torch.where(empty, drawn, sign)
        return sign

    def _scale(self, gradient: Tensor) -> Tensor | float:
        return 1.0 if self.scale == "one" else gradient.abs().mean()


def _against(gradients: Tensor, target: Tensor) -> Tensor:
    """Dummy gradients [R, *param] as signs: the target itself on its side of zero, less and less beyond it.

    An entry whose target is zero (a kept zero, or one that was pruned) stays a number in units of the scale.
    """
    axes = tuple(range(1, gradients.ndim))
    square = gradients.square().mean(axes, keepdim=True).clamp(min=torch.finfo(gradients.dtype).tiny)
    level = gradients / square.sqrt()
    reached = (1 + (target.sign() * level).clamp(max=0)) * target
    return torch.where(target == 0, level * target.abs().amax(axes, keepdim=True), reached)
