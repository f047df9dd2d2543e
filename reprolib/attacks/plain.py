"""DLG as one `torch.optim.LBFGS` after another: the yardstick for the batched engine, in success and in speed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprolib import settings
from reprolib.attacks.reconstruction import Reconstruction, check_call, refuse_snapshots
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims
from reprolib.models.task import Task


@dataclass(frozen=True)
class PlainDLG:
    """DLG's published loop, trial by trial, from the dummies that `DLG` draws for the same (seed, trial).

    Written from the paper's Algorithm 1, with torch's own optimiser at its defaults and joint labels. The
    closure differentiates the dummies alone, which spares it the public code's growing weight gradients, and a dummy
    that is no longer finite ends its trial: torch would go on to no effect. iterations: outer steps of up to 20.
    """

    iterations: settings.WholeOrZero = 300

    def __post_init__(self) -> None:
        settings.check(self)

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the one image behind each trial; arguments as `DLG`'s. It keeps no snapshots and has no bar.

        Errors: ValueError for an update of another model, for a batch, another loss, and for snapshots.
        """
        refuse_snapshots(self, check_call(update, snapshots))
        update.check(model)
        if update.batch_size != 1:
            raise ValueError(f"PlainDLG takes one image a trial, got batches of {update.batch_size}: use DLG")
        if update.task != Task():
            raise ValueError(f"PlainDLG minimises a mean cross-entropy, the clients {update.task}: use DLG")
        began = time.perf_counter()
        victims = Victims.of(model)
        runs = [self._trial(victims.network(t), update, t, seed) for t in range(update.trials)]
        images, labels, objectives, evaluations, diverged = (torch.stack(column) for column in zip(*runs, strict=True))
        return Reconstruction(
            raw=images,
            labels=labels,
            objective=objectives,
            evaluations=evaluations,
            starts=torch.ones_like(evaluations),
            diverged=diverged,
            seconds=time.perf_counter() - began,
        )

    def _trial(self, model: nn.Module, update: SharedUpdate, trial: int, seed: Seed) -> tuple[Tensor, ...]:
        target = {name: g[trial] for name, g in update.as_gradients().items()}
        random, (device, dtype) = generator(seed, trial, 0), _kind(target)
        pixels = torch.randn(math.prod(update.image_shape), generator=random).view(1, *update.image_shape)
        logits = torch.randn(1, update.num_classes, generator=random)
        image, logits = (dummy.to(device, dtype).requires_grad_() for dummy in (pixels, logits))
        optimizer = torch.optim.LBFGS([image, logits], lr=1.0)
        spent, last = 0, (image.detach().clone(), logits.detach().clone())

        def closure() -> Tensor:
            nonlocal spent
            spent += 1
            result = objective(model, target, image, logits.softmax(-1))
            image.grad, logits.grad = torch.autograd.grad(result, [image, logits])
            return result.detach()

        for _ in range(self.iterations):
            optimizer.step(closure)
            if not (image.isfinite().all() and logits.isfinite().all()):
                break
            last = (image.detach().clone(), logits.detach().clone())
        diverged = ~image.isfinite().all()
        value = objective(model, target, last[0], last[1].softmax(-1)).detach()
        return last[0], last[1].argmax(-1), value, torch.tensor(spent, device=device), diverged


def objective(model: nn.Module, target: dict[str, Tensor], image: Tensor, soft_label: Tensor) -> Tensor:
    """DLG's squared distance of one trial by autograd alone. image: [1, C, H, W]. soft_label: [1, K]."""
    loss = F.cross_entropy(model(image), soft_label)
    dummy = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return sum((d - g).square().sum() for d, g in zip(dummy, target.values(), strict=True))  # type: ignore[return-value]


def _kind(target: dict[str, Tensor]) -> tuple[torch.device, torch.dtype]:
    first = next(iter(target.values()))
    return first.device, first.dtype
