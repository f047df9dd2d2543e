"""What the protocol asks of a defense; `reprolib.defenses.Defense` is the base class of all."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Protection(Protocol):
    """The hooks that `client.share` and an attacker call; `reprolib.defenses.Defense` says what each does.

    The update that `counter` reads is a `SharedUpdate`, which itself names the defense that it was made under.
    """

    per_image: bool
    mixes: bool

    def extend(self, model: nn.Module) -> nn.Module: ...

    def encode(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]: ...

    def counter(self, model: nn.Module, update: Any) -> Any: ...
