"""Learning to Invert: a network that maps what clients share to their images. Wu et al., UAI 2023."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from reprolib import models, settings
from reprolib.attacks import labels
from reprolib.attacks.reconstruction import Reconstruction, check_call, refuse_snapshots
from reprolib.data import ImageSet
from reprolib.federated import client
from reprolib.federated.observation import by_trial
from reprolib.federated.streams import Seed, generator
from reprolib.federated.update import SharedUpdate
from reprolib.measure import metrics
from reprolib.models import Victims

HELD_OUT = 10
"""One in so many auxiliary images is kept to choose the epoch; the paper's script chooses it on its victims."""


@dataclass(frozen=True)
class LearningToInvert:
    """Train a multilayer perceptron on pairs (defended gradient of auxiliary images, the images), then apply it.

    The generic adaptive attacker: if the update grants the defense, the pairs are made with it, its random numbers
    drawn anew in every epoch; otherwise with none. One perceptron for each network of the victims, because a gradient
    belongs to one set of weights. The defaults are the paper's for single images.

    auxiliary: images that the attacker owns. hidden: units of the two hidden layers. epochs, learning_rate: of Adam,
    whose rate falls tenfold after three quarters. minibatch: pairs a step. coordinates: entries of the update that the
    perceptron sees, drawn once; None shows it all. standardised: scale each entry by its mean and deviation over a
    first draw of the pairs, which the paper does not. In batches, the loss is taken after matching (Hungarian).
    Labels: `labels.of_update`. Source: Wu et al. 2023 (arXiv:2210.10880), and their code.
    """

    # a record has a stand-in for a set whose pixels are not at hand
    auxiliary: Annotated[ImageSet, settings.Like("fingerprint")] = field(repr=False)
    hidden: settings.Whole = 3000
    epochs: settings.Whole = 200
    learning_rate: settings.Positive = 1e-4
    minibatch: settings.Whole = 256
    coordinates: settings.Whole | None = None
    standardised: bool = False

    @classmethod
    def paper(cls, auxiliary: ImageSet) -> LearningToInvert:
        """The settings for single images; the paper's auxiliary images are CIFAR-10's 50,000 for training."""
        return cls(auxiliary)

    @classmethod
    def paper_batches(cls, auxiliary: ImageSet) -> LearningToInvert:
        """The settings for batches of four."""
        return cls(auxiliary, hidden=10_000, epochs=5000)

    @classmethod
    def small(cls, auxiliary: ImageSet) -> LearningToInvert:
        """For a laptop: 512 units, 4,096 entries of the update, 20 epochs; meant for 5,000 auxiliary images."""
        return cls(auxiliary, 512, 20, 1e-3, 64, 4096, True)

    def __post_init__(self) -> None:
        settings.check(self)
        if len(self.auxiliary) < 2 * HELD_OUT:
            raise ValueError(f"auxiliary must be an ImageSet of at least {2 * HELD_OUT} images, got {self.auxiliary!r}")

    def __call__(
        self,
        model: nn.Module | Victims,
        update: SharedUpdate,
        seed: Seed = 0,
        progress: bool | None = None,
        snapshots: Sequence[int] = (),
    ) -> Reconstruction:
        """Reconstruct the batch behind each trial; arguments as `attacks.DLG`'s. It keeps no snapshots.

        objective of the result: the perceptron's mean squared error on the held-out auxiliary images; evaluations: the
        pairs it was trained on.
        Errors: ValueError for an update of another model, auxiliary images of another shape or fewer than a batch of
        them held out, and snapshots.
        """
        began = time.perf_counter()
        refuse_snapshots(self, check_call(update, snapshots))
        update.check(model)
        if self.auxiliary.image_shape != tuple(update.image_shape):
            raise ValueError(
                f"auxiliary images are of shape {self.auxiliary.image_shape}, the update's {update.image_shape}"
            )
        if len(self.auxiliary) // HELD_OUT < update.batch_size:
            raise ValueError(
                f"auxiliary holds {len(self.auxiliary)} images, too few for batches of {update.batch_size}: "
                f"expected at least {HELD_OUT * update.batch_size}"
            )
        victims, raw, loss = Victims.of(model), None, torch.zeros(update.trials)
        for rows in victims.groups(update.trials):
            inverter = _Inverter(self, victims.network(int(rows[0])), update, seed)
            loss[rows] = inverter.train(progress)
            images = inverter(update.select(rows))
            raw = images.new_zeros(update.trials, *images.shape[1:]) if raw is None else raw
            raw[rows] = images
        spent = self.epochs * inverter.pairs
        return Reconstruction(
            raw=raw,
            labels=labels.of_update(update),
            objective=loss.to(raw),
            evaluations=torch.full((update.trials,), spent, device=raw.device),
            starts=torch.ones(update.trials, dtype=torch.int64, device=raw.device),
            diverged=torch.zeros(update.trials, dtype=torch.bool, device=raw.device),
            seconds=time.perf_counter() - began,
        )


class _Inverter:
    """The perceptron for one network, and the pairs it learns from."""

    def __init__(self, attack: LearningToInvert, network: nn.Module, update: SharedUpdate, seed: Seed) -> None:
        self.attack, self.network, self.update = attack, network, update
        self.random = generator(seed, 0)
        first = next(iter(update.gradients.values()))
        self.device, self.dtype = first.device, first.dtype
        entries = sum(g[0].numel() for g in update.gradients.values())
        seen = entries if attack.coordinates is None else min(attack.coordinates, entries)
        self.seen = torch.randperm(entries, generator=self.random)[:seen].sort().values.to(self.device)
        self.mean: float | Tensor
        self.std: float | Tensor
        self.mean, self.std = 0.0, 1.0
        order = torch.randperm(len(attack.auxiliary), generator=self.random)
        held_out = len(order) // HELD_OUT
        self.held_out, self.learned = order[:held_out], order[held_out:]
        pixels = update.batch_size * math.prod(update.image_shape)

        def layers() -> nn.Module:
            hidden = [nn.Linear(seen, attack.hidden), nn.ReLU(), nn.Linear(attack.hidden, attack.hidden), nn.ReLU()]
            return nn.Sequential(*hidden, nn.Linear(attack.hidden, pixels), nn.Sigmoid())

        self.perceptron = models.drawn(layers, int(torch.randint(2**31, (), generator=self.random)))
        self.perceptron.to(self.device, self.dtype)

    @property
    def pairs(self) -> int:
        return len(self.learned) // self.update.batch_size

    def __call__(self, update: SharedUpdate) -> Tensor:
        """[T, B, C, H, W]."""
        with torch.no_grad():
            return self._images(self._entries(update))

    def train(self, progress: bool | None) -> float:
        """Adam on the pairs; keeps the epoch with the smallest error on the held-out images and returns that error."""
        attack = self.attack
        optimizer = torch.optim.Adam(self.perceptron.parameters(), lr=attack.learning_rate)
        held_out = list(self._minibatches(self.held_out))
        if attack.standardised:
            entries = torch.cat([entries for entries, _ in self._minibatches(self.learned)])
            self.mean, self.std = entries.mean(0), entries.std(0).clamp(min=1e-12 + 1e-3 * float(entries.std()))
        best, kept = math.inf, copy.deepcopy(self.perceptron.state_dict())
        shown = not (sys.stderr.isatty() if progress is None else progress)
        for epoch in tqdm(range(attack.epochs), desc="LearningToInvert", unit=" epochs", disable=shown):
            if epoch == attack.epochs * 3 // 4:
                for group in optimizer.param_groups:
                    group["lr"] /= 10
            for entries, images in self._minibatches(self.learned):
                optimizer.zero_grad()
                self._loss(entries, images).backward()
                optimizer.step()
            with torch.no_grad():
                errors = [(self._loss(entries, images), len(images)) for entries, images in held_out]
            error = float(sum(e * n for e, n in errors) / sum(n for _, n in errors))
            if error < best:
                best, kept = error, copy.deepcopy(self.perceptron.state_dict())
        self.perceptron.load_state_dict(kept)
        return best

    def _minibatches(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of entries [n, N] and images [n, B, C, H, W], the images in a new order and newly defended."""
        size, own = self.update.batch_size, self.attack.auxiliary
        index = index[torch.randperm(len(index), generator=self.random)]
        for part in index[: len(index) // size * size].view(-1, size).split(self.attack.minibatch):
            images = own.images[part].to(self.device, self.dtype)
            shared = client.share(
                self.network,
                images,
                own.labels[part].to(self.device),
                threat=replace(self.update.threat, labels="unknown", batch_norm="none", defense_known=False),
                defense=self.update.defense and _Extended(self.update.defense),
                local=self.update.local,
                seed=int(torch.randint(2**31, (), generator=self.random)),
            )
            yield self._entries(shared), images

    def _entries(self, update: SharedUpdate) -> Tensor:
        return torch.cat([by_trial(g) for g in update.gradients.values()], 1)[:, self.seen]

    def _images(self, entries: Tensor) -> Tensor:
        found = self.perceptron((entries - self.mean) / self.std)
        return found.view(len(entries), self.update.batch_size, *self.update.image_shape)

    def _loss(self, entries: Tensor, images: Tensor) -> Tensor:
        found = self._images(entries)
        order = metrics.match_batches(found.detach(), images).to(found.device)
        return F.mse_loss(found[torch.arange(len(found), device=found.device)[:, None], order], images)


class _Extended:
    """A defense whose model was extended already: the attacker is given the extended one."""

    def __init__(self, defense: Any) -> None:
        self.encode, self.protect = defense.encode, defense.protect

    def extend(self, model: nn.Module) -> nn.Module:
        return model
