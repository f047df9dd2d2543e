"""The server: what it sends to clients, and what it makes of what they send back.

The book's chapters have honest servers and single rounds; malicious ones and attacks over rounds build on this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.federated.client import extended, share
from reprolib.federated.streams import Seed, generator
from reprolib.federated.threat import ServerKind, ThreatModel
from reprolib.federated.update import SharedUpdate


class Server(Protocol):
    """Who runs the federation. kind: what it changes of the model, as the threat model has to say (`ThreatModel`)."""

    kind: ClassVar[ServerKind]

    def broadcast(self, model: nn.Module) -> nn.Module:
        """The model that the clients get; the one given is left as it is."""

    def aggregate(self, model: nn.Module, update: SharedUpdate) -> nn.Module:
        """The next model: the one that was sent, and the mean of what came back of it (one trial)."""


@dataclass(frozen=True)
class Honest:
    """Federated averaging, by a server that does as agreed, and looks.

    learning_rate: of the step along a shared gradient (FedSGD); a weight difference is added as it is (FedAvg). Batch
    norm's running statistics move where the clients share theirs (`ThreatModel(batch_norm="buffers")`), and stay
    otherwise.
    Source: McMahan et al. 2017, algorithm 1.
    """

    kind: ClassVar[ServerKind] = "curious"
    learning_rate: settings.Length = 0.1

    def __post_init__(self) -> None:
        settings.check(self)

    def broadcast(self, model: nn.Module) -> nn.Module:
        return model

    def aggregate(self, model: nn.Module, update: SharedUpdate) -> nn.Module:
        after = copy.deepcopy(model)
        factor = -self.learning_rate if update.local is None else 1.0
        with torch.no_grad():
            for name, shared in update.gradients.items():
                after.get_parameter(name).add_(factor * shared[0])
            if update.threat.batch_norm == "buffers":
                for layer, (mean, variance) in (update.batch_norm or {}).items():
                    after.get_buffer(f"{layer}.running_mean").copy_(mean[0])
                    after.get_buffer(f"{layer}.running_var").copy_(variance[0])
        return after


@dataclass(frozen=True, eq=False)
class Round:
    """One round of a federation: its number from 0, the model that clients trained, and what the server saw of it.

    model: as it was sent, or extended, where the clients' defense extends it (`client.extended`).
    """

    number: int
    model: nn.Module
    update: SharedUpdate


def rounds(
    server: Server,
    model: nn.Module,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    count: int,
    *,
    threat: ThreatModel | None = None,
    seed: Seed = 0,
    **options: Any,
) -> Iterator[Round]:
    """A federation over rounds: the server sends its model, the clients of the round share, the server averages.

    batches: round -> images [1, B, C, H, W] and labels [1, B] of all clients that take part. options: of `share`
    (defense, local, clients). Round r draws its random numbers as trial r of the seed does. Each round is computed when
    it is asked for: an attacker may look, and stop.
    Errors: ValueError for a threat model that speaks of another server, a count below 1, a seed without a pair for each
    round, more than one trial, and those of `share`.

    >>> from reprolib import data, models
    >>> from reprolib.federated import server
    >>> images, labels = data.load("photos", count=6).batches(size=2, count=3)
    >>> victim = models.build("mlp", num_classes=10, image_shape=(3, 32, 32), seed=0)
    >>> of_round = lambda r: (images[r : r + 1], labels[r : r + 1])
    >>> [(r.number, r.update.batch_size) for r in server.rounds(server.Honest(), victim, of_round, 3)]
    [(0, 2), (1, 2), (2, 2)]
    """
    threat = ThreatModel(server=server.kind) if threat is None else threat
    if threat.server != server.kind:
        raise ValueError(f"the threat model says server={threat.server!r}, but {server} is {server.kind!r}")
    for number in range(settings.held("count", settings.Count, count)):
        generator(seed, number)  # refuses a bad seed, and one that has no pair for this round
    return _rounds(server, model, batches, count, threat, seed, options)


def _rounds(
    server: Server,
    model: nn.Module,
    batches: Callable[[int], tuple[Tensor, Tensor]],
    count: int,
    threat: ThreatModel,
    seed: Seed,
    options: dict[str, Any],
) -> Iterator[Round]:
    for number in range(count):
        images, labels = batches(number)
        if len(images) != 1:
            raise ValueError(f"a round has one trial, images [1, B, ..], got {len(images)}: federations share no model")
        own = [(seed, number)] if isinstance(seed, int) else [seed[number]]
        sent = extended(server.broadcast(model), options.get("defense"))
        update = share(sent, images, labels, threat=threat, seed=own, **options)
        yield Round(number, sent, update)
        model = server.aggregate(sent, update)
