"""What the trials of an attack meet: one network for all of them, or a network for each, attacked as one batch."""

from __future__ import annotations

import copy
import hashlib
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from reprolib.models.victim import Victim


def digest(tensors: dict[str, Tensor], digest: hashlib._Hash | None = None) -> str:
    """16 hex digits of the SHA-256 over names, shapes, types and values."""
    digest = hashlib.sha256() if digest is None else digest
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(repr((name, tuple(value.shape), str(value.dtype))).encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Victims:
    """The victims of an update's trials; every attack takes them, or one module, of which `of` makes them.

    skeleton: the network that all trials meet; where each meets its own, one of their architecture, whose weights are
    not used. stacked: None, or name -> [K, *param]. index: None, or [T], the row of `stacked` that a trial meets.
    """

    skeleton: Victim
    stacked: dict[str, Tensor] | None = None
    index: Tensor | None = None

    @classmethod
    def of(cls, models: nn.Module | Victims | Sequence[nn.Module], each: int = 1) -> Victims:
        """One model for all trials, or K models with `each` trials a model, in their order; victims stay as they are.

        Errors: ValueError for no model, for models of different architectures, and for layers with buffers that differ
        between them (batch norm): only parameters are stacked.
        """
        if isinstance(models, Victims):
            return models
        if isinstance(models, nn.Module):
            return cls(models)
        if not isinstance(models, Sequence) or not all(isinstance(model, nn.Module) for model in models):
            raise ValueError(f"victims are a network or a sequence of networks, got {reprlib.repr(models)}")
        if not models or each < 1:
            raise ValueError(f"victims are networks with trials, got {len(models)} networks with {each} trials each")
        shapes = [{name: (p.shape, p.device, p.dtype) for name, p in model.named_parameters()} for model in models]
        if any(other != shapes[0] for other in shapes) or len({type(model) for model in models}) > 1:
            raise ValueError("the victims differ in architecture, device or dtype: attack them apart")
        buffers = [dict(model.named_buffers()) for model in models]
        if any(not torch.equal(value, other[name]) for other in buffers[1:] for name, value in buffers[0].items()):
            raise ValueError("the victims have different buffers (batch norm's): attack them apart")
        parameters = [dict(model.named_parameters()) for model in models]
        stacked = {name: torch.stack([p[name].detach() for p in parameters]) for name in shapes[0]}
        index = torch.arange(len(models), device=next(iter(stacked.values())).device).repeat_interleave(each)
        return cls(models[0], stacked, index)

    @property
    def axis(self) -> int | None:
        """The trial axis of `weights`: None where all trials meet one network."""
        return None if self.stacked is None else 0

    @property
    def trials(self) -> int | None:
        """How many trials these are the victims of; None where one network is met by however many there are."""
        return None if self.index is None else len(self.index)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over the weights that the trials meet: `models.fingerprint` of one network."""
        if self.stacked is None:
            return digest(self.skeleton.state_dict())
        return digest(self.stacked, hashlib.sha256(self.index.cpu().numpy().tobytes()))

    def select(self, trials: Tensor) -> Victims:
        """The victims of the chosen trials, in their order."""
        return self if self.index is None else replace(self, index=self.index[trials.to(self.index.device)])

    def repeat(self, each: int) -> Victims:
        """The victims of trials that are each split into `each`, one behind the other."""
        return self if self.index is None else replace(self, index=self.index.repeat_interleave(each))

    def network(self, trial: int) -> Victim:
        """The one network that a trial meets; a copy, where each meets its own."""
        if self.stacked is None:
            return self.skeleton
        network = copy.deepcopy(self.skeleton)
        weights = {name: weights[self.index[trial]] for name, weights in self.stacked.items()}  # type: ignore[index]
        network.load_state_dict(weights, strict=False)
        return network

    def groups(self, trials: int) -> list[Tensor]:
        """The trials that meet one network, of `trials` in all, a tensor for each network."""
        if self.index is None:
            return [torch.arange(trials)]
        index = self.index.cpu()
        return [(index == k).nonzero()[:, 0] for k in index.unique().tolist()]

    def weights(self) -> dict[str, Tensor]:
        """name -> the parameters that the trials meet: [T, *param], or [*param] where all meet one network."""
        if self.stacked is None:
            return {name: parameter.detach() for name, parameter in self.skeleton.named_parameters()}
        return {name: weights[self.index] for name, weights in self.stacked.items()}
