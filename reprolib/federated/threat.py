"""What a server sees of its clients and knows about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from reprolib import settings
from reprolib.federated.gradients import LocalTraining, Mode

Labels = Literal["unknown", "known"]


BatchNorm = Literal["none", "running", "exact", "buffers"]

ServerKind = Literal["curious", "malicious parameters", "malicious architecture"]


@dataclass(frozen=True)
class ThreatModel:
    """What the server may do, and what it knows besides the model, its weights, the loss and the size of the batch.

    mode: how the client runs batch norm: "eval" (with running statistics) or "train" (with the batch's own).
    labels: "unknown", or "known" (the update carries them).
    batch_norm: "none", "running" (the running statistics stand in for the batch's), "exact" (the batch's own) or
    "buffers" (the running statistics after the client's step, as a client in "train" mode sends them with its update).
    defense_known: the server knows the client's defense and its settings, never its random numbers.
    server: "curious" (it does as agreed and looks), or "malicious parameters" or "malicious architecture", what it may
    change of the model before clients get it (`federated.server`).
    observes: "one client", or "mean of N" (secure aggregation: only the mean of N clients' updates is seen).
    Errors: ValueError for any other value, listing the known ones. Source: the developer guide, "Contracts".

    >>> from reprolib.federated.client import ThreatModel
    >>> ThreatModel(labels="known", observes="mean of 10").clients
    10
    """

    mode: Mode = "eval"
    labels: Labels = "unknown"
    batch_norm: BatchNorm = "none"
    defense_known: bool = False
    observes: str = "one client"
    server: ServerKind = "curious"

    def __post_init__(self) -> None:
        if self.observes != "one client" and not re.fullmatch(r"mean of [1-9]\d*", str(self.observes)):
            raise ValueError(f"observes must be 'one client' or 'mean of N' with N >= 1, got {self.observes!r}")
        settings.check(self)

    @property
    def clients(self) -> int:
        """How many clients' updates are averaged before the server sees them."""
        return 1 if self.observes == "one client" else int(self.observes.removeprefix("mean of "))

    def rows(self) -> list[tuple[str, str]]:
        """(question, answer) pairs in plain English for a chapter's threat-model box."""
        n = self.clients
        return [
            (
                "Who attacks?",
                {
                    "curious": "An honest-but-curious server.",
                    "malicious parameters": "A malicious server, which chose the weights that it sent.",
                    "malicious architecture": "A malicious server, which changed the model that it sent.",
                }[self.server]
                + " It sent the model, so it knows the architecture, the weights, the loss, the image size, the "
                "classes and the batch size.",
            ),
            (
                "What does it see?",
                "The update of one client."
                if n == 1
                else f"Only the mean of {n} clients' updates, never one client's own.",
            ),
            (
                "How does the client run batch norm?",
                {
                    "eval": "In evaluation mode, with the running statistics that came with the model.",
                    "train": "In training mode, with the statistics of its own batch.",
                }[self.mode],
            ),
            (
                "Which batch-norm statistics does the server use?",
                {
                    "none": "None.",
                    "running": "The running statistics of the model, as a stand-in for the batch's.",
                    "exact": "The exact mean and variance of the private batch at every batch-norm layer.",
                    "buffers": "The running statistics after the client's step, which give the private batch's own.",
                }[self.batch_norm],
            ),
            (
                "Does it know the labels?",
                {
                    "unknown": "No. It must infer or optimise them.",
                    "known": "Yes. They come with the update.",
                }[self.labels],
            ),
            (
                "Does it know the defense?",
                "Yes, with its settings, but not its random numbers: it is an adaptive attacker."
                if self.defense_known
                else "No. It attacks as if there were none: it is a static attacker.",
            ),
        ]


def client_sizes(images: Tensor, threat: ThreatModel, clients: Sequence[int]) -> tuple[int, ...]:
    """How many images each client has."""
    batch, sizes = images.shape[1] if images.ndim > 1 else 0, settings.each("clients", settings.Whole, clients)
    if not sizes:
        if batch % threat.clients:
            raise ValueError(
                f"observes={threat.observes!r} needs a batch that divides evenly among the clients, got {batch} "
                "images: clients=(...) names how many each has"
            )
        return (batch // threat.clients,) * threat.clients
    if sum(sizes) != batch:
        raise ValueError(f"clients={sizes}: expected whole numbers of images >= 1 that sum up to the batch's {batch}")
    if len(sizes) != threat.clients:
        raise ValueError(
            f"clients={sizes} are {len(sizes)}, but the threat model observes {threat.observes!r}: use "
            f"ThreatModel(observes='mean of {len(sizes)}')"
        )
    return sizes


def check_types(threat: object, local: object) -> None:
    for name, value, kind in (("local", local, LocalTraining), ("threat", threat, ThreatModel)):
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} must be a client.{kind.__name__}(...), got {value!r}")
