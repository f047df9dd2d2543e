"""The server: what it sends to clients, and what it makes of what they send back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.federated.client import share
from reprolib.federated.streams import Seed, generator
from reprolib.federated.threat import ServerKind, ThreatModel
from reprolib.federated.update import SharedUpdate


class Server(Protocol):
    """Who runs the federation. kind: what it changes of the model, as the threat model has to say (`ThreatModel`)."""

    @property
    def kind(self) -> ServerKind: ...

    def broadcast(self, model: nn.Module) -> nn.Module:
        """The model that the clients get; the one given is left as it is."""

    def aggregate(self, model: nn.Module, update: SharedUpdate) -> nn.Module:
        """The next model: the one that was sent, and the mean of what came back of it (one trial)."""


@dataclass(frozen=True)
class Honest:
    """Federated averaging, by a server that does as agreed, and looks.

    learning_rate: of the step along a shared gradient (FedSGD); a weight difference is added as it is (FedAvg).
    Source: McMahan et al. 2017, algorithm 1.
    """

    learning_rate: settings.Length = 0.1
    kind: ServerKind = "curious"

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
        return after


@dataclass(frozen=True, eq=False)
class Round:
    """One round of a federation: its number from 0, the model that was sent, and what the server saw of it."""

    number: int
    model: nn.Module
    update: SharedUpdate


def rounds(
    server: Server,
    model: nn.Module,
    clients: Callable[[int], tuple[Tensor, Tensor]],
    count: int,
    *,
    threat: ThreatModel | None = None,
    seed: Seed = 0,
    **options: Any,
) -> Iterator[Round]:
    """A federation over rounds: the server sends its model, the clients of the round share, the server averages.

    clients: round -> images [1, B, C, H, W] and labels [1, B] of all clients that take part. options: of `share`
    (defense, local, clients). Round r draws its random numbers as trial r of the seed does. Each round is there when it
    is asked for: an attacker may look, and stop.
    Errors: ValueError for a threat model that speaks of another server, for more than one trial, and those of `share`.

    >>> from reprolib import data, models
    >>> from reprolib.federated import server
    >>> batches = data.load("photos", count=6).batches(size=2, count=3)
    >>> victim = models.build("mlp", num_classes=10, image_shape=(3, 32, 32), seed=0)
    >>> of_round = lambda r: tuple(part[r : r + 1] for part in batches)
    >>> [(r.number, r.update.batch_size) for r in server.rounds(server.Honest(), victim, of_round, 3)]
    [(0, 2), (1, 2), (2, 2)]
    """
    threat = ThreatModel(server=server.kind) if threat is None else threat
    if threat.server != server.kind:
        raise ValueError(f"the threat model says server={threat.server!r}, but {server} is {server.kind!r}")
    for number in range(count):
        generator(seed, number)  # refuses a seed that has no pair for this round
        own = [seed[number]] if isinstance(seed, (list, tuple)) else [(int(seed), number)]
        images, labels = clients(number)
        if len(images) != 1:
            raise ValueError(f"a round has one trial, images [1, B, ..], got {len(images)}: federations share no model")
        sent = server.broadcast(model)
        update = share(sent, images, labels, threat=threat, seed=own, **options)
        yield Round(number, sent, update)
        model = server.aggregate(sent, update)
