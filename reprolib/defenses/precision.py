"""Fewer bits: gradients sent in half precision or as eight-bit integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reprolib.defenses.base import Defense
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate

Precision = Literal["fp16", "bf16", "int8"]

_FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class CastPrecision(Defense):
    """Round every shared entry to what the type can hold; the values travel in their old dtype.

    "fp16", "bf16": to the nearest, ties to even, with gradual underflow. "int8": symmetric and per tensor, to a
    multiple of the step max|g| / 127. DLG does not say what its Int8 is; this is the usual reading.
    Errors: ValueError for another dtype, listing the known ones; when protecting, for an entry beyond the type's range.
    Source: DLG, section 5.1.
    """

    dtype: Precision

    def __str__(self) -> str:
        return {"fp16": "half precision (fp16)", "bf16": "half precision (bf16)", "int8": "8-bit integers"}[self.dtype]

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.dtype == "int8":
            return {name: _round_to_step(g) for name, g in gradients.items()}
        cast = {name: g.to(_FLOATS[self.dtype]).to(g.dtype) for name, g in gradients.items()}
        for name, g in gradients.items():
            if not torch.equal(cast[name].isfinite(), g.isfinite()):
                raise ValueError(
                    f"the gradient of {name!r} reaches {g.abs().max():.4g}, beyond the range of {self.dtype}: "
                    "use 'bf16' or 'int8'"
                )
        return cast

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """Any value that rounds to the shared one fits: the slack is half a step, or half a unit in the last place."""
        width = _half_step if self.dtype == "int8" else self._half_ulp
        return Observation(
            target=update.as_gradients(),
            slack={name: width(g) * abs(update.scale) for name, g in update.gradients.items()},
        )

    def _half_ulp(self, shared: Tensor) -> Tensor:
        """Half the spacing of the type at each entry; at and below the smallest normal number that of the subnormals.

        For a zero it is the width of what is flushed to zero: 2^-25 in fp16.
        """
        info = torch.finfo(_FLOATS[self.dtype])
        _, exponent = shared.frexp()  # |shared| = m 2^exponent with m in [1/2, 1): spacing eps 2^(exponent - 1)
        half = torch.ldexp(torch.full_like(shared, info.eps / 4), exponent)
        return half.where(shared.abs() >= info.smallest_normal, info.smallest_normal * info.eps / 2)


def _round_to_step(gradient: Tensor) -> Tensor:
    step = gradient.abs().max() / 127
    return (gradient / step).round().clamp(-127, 127) * step if step > 0 else gradient


def _half_step(shared: Tensor) -> Tensor:
    """[T, 1, ..., 1]: half of each trial's step, read off its largest shared value, which is 127 steps."""
    return shared.abs().amax(dim=tuple(range(1, shared.ndim)), keepdim=True) / 127 / 2
