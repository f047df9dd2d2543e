"""Several victims of one architecture, so that attacks on all of them run as one batch."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The victims of T trials: trial t attacks the network that has row `index[t]` of every stacked parameter.

    skeleton: a network of the architecture; its own weights are not used. stacked: name -> [K, *param]. index: [T].
    An attack takes an ensemble wherever it takes a model; the update to it is `SharedUpdate.join`'s.
    """

    skeleton: nn.Module
    stacked: dict[str, Tensor]
    index: Tensor

    @classmethod
    def of(cls, victims: Sequence[nn.Module], each: int) -> Ensemble:
        """K victims with `each` trials a victim, in their order.

        Errors: ValueError for no victim, for victims of different architectures, and for layers with buffers that
        differ between networks (batch norm): only parameters are stacked.
        """
        if not victims or each < 1:
            raise ValueError(
                f"an ensemble needs victims and trials, got {len(victims)} victims with {each} trials each"
            )
        shapes = [{name: (p.shape, p.device, p.dtype) for name, p in victim.named_parameters()} for victim in victims]
        if any(other != shapes[0] for other in shapes) or len({type(victim) for victim in victims}) > 1:
            raise ValueError("the victims of an ensemble differ in architecture, device or dtype: attack them apart")
        buffers = [dict(victim.named_buffers()) for victim in victims]
        if any(not torch.equal(value, other[name]) for other in buffers[1:] for name, value in buffers[0].items()):
            raise ValueError("the victims of an ensemble have different buffers (batch norm's): attack them apart")
        parameters = [dict(victim.named_parameters()) for victim in victims]
        stacked = {name: torch.stack([p[name].detach() for p in parameters]) for name in shapes[0]}
        index = torch.arange(len(victims), device=next(iter(stacked.values())).device).repeat_interleave(each)
        return cls(victims[0], stacked, index)

    @property
    def trials(self) -> int:
        """The number of trials T."""
        return len(self.index)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over the weights that each trial meets."""
        digest = hashlib.sha256(self.index.cpu().numpy().tobytes())
        for name, weights in sorted(self.stacked.items()):
            digest.update(repr((name, tuple(weights.shape), str(weights.dtype))).encode())
            digest.update(weights.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def select(self, trials: Tensor) -> Ensemble:
        """The ensemble of the chosen trials, in their order."""
        return replace(self, index=self.index[trials.to(self.index.device)])

    def network(self, trial: int) -> nn.Module:
        """The one network that a trial meets, as a copy."""
        network = copy.deepcopy(self.skeleton)
        weights = {name: weights[self.index[trial]] for name, weights in self.stacked.items()}
        network.load_state_dict(weights, strict=False)
        return network

    def weights(self) -> dict[str, Tensor]:
        """name -> [T, *param]: the parameters that each trial meets."""
        return {name: weights[self.index] for name, weights in self.stacked.items()}
