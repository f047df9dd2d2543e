"""An attack in two rounds, for defenses whose random choices show once a first reconstruction is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from reprolib import settings
from reprolib.attacks.dlg import DLG
from reprolib.attacks.ig import InvertingGradients
from reprolib.attacks.matching import dummy_gradients
from reprolib.attacks.reconstruction import Reconstruction, check_call
from reprolib.federated.streams import Seed
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims


@dataclass(frozen=True)
class Rereading:
    """Attack, show the defense's `reread` what came of it, and attack again with what it now reads.

    Expectation and maximisation, one step of each: for GradDefense, whose noisy slices show by their residuals.
    Source: this book.
    """

    attack: DLG | InvertingGradients

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
        """Reconstruct the batch behind each trial; arguments as `attacks.DLG`'s, snapshots of the second attack.

        Errors: ValueError for an update that grants no defense or one without `reread`, besides the attack's own.
        """
        snapshots = check_call(update, snapshots)
        update.check(model)
        if not hasattr(update.defense, "reread"):
            raise ValueError(
                f"Rereading needs an update that grants a defense with `reread`, such as GradDefense, got "
                f"{update.defense}: share with ThreatModel(defense_known=True)"
            )
        began = time.perf_counter()
        first = self.attack(model, update, seed, progress)
        soft = update.targets(first.labels, first.raw)
        dummies = dummy_gradients(model, first.images, soft, update.local, None, update.sizes, update.order)
        dummies = {name: g.detach() for name, g in dummies.items()}
        informed = replace(update, defense=update.defense.reread(model, update, dummies))
        second = self.attack(model, informed, seed, progress, snapshots)
        spent = first.evaluations + second.evaluations + torch.ones_like(first.evaluations)
        return replace(second, evaluations=spent, seconds=time.perf_counter() - began)
