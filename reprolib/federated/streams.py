"""Random numbers: each trial has a generator of its own, from (seed, trial, stream)."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

import numpy as np
import torch

Seed = int | Sequence[tuple[int, int]]
"""A seed for all trials of a call, or a pair (seed, trial) for each of them: see `generator`."""


def generator(seed: Seed, trial: int, *stream: int) -> torch.Generator:
    """The CPU generator of trial `trial` under `seed`: the one source of randomness for clients and attacks.

    seed, trial, stream: integers >= 0. `stream` separates uses within a trial (a restart, a client): every distinct
    tuple gives an unrelated sequence, because `numpy.random.SeedSequence` hashes the whole tuple. Draw on the CPU and
    move the numbers, so that they are the same on every device. Clients use `(seed, trial, DEFENSE_STREAM, client)`.
    seed may also be a sequence with a pair (seed, trial) for each trial of the call: trial t then draws what that pair
    alone would, whatever company it is attacked in.
    Errors: ValueError for a negative number or one that is no integer, and for a trial that has no pair.

    >>> import torch
    >>> from reprolib.federated import client
    >>> torch.rand(1, generator=client.generator(7, 3)) == torch.rand(1, generator=client.generator([(7, 3)], 0))
    tensor([True])
    """
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if not trial < len(seed):
            raise ValueError(f"generator: trial {trial} has no pair (seed, trial); seed holds {len(seed)} of them")
        if not isinstance(seed[trial], Sequence) or isinstance(seed[trial], str) or len(seed[trial]) != 2:
            raise ValueError(
                f"generator: a seed for each trial is a pair (seed, trial), got {reprlib.repr(seed[trial])}"
            )
        seed, trial = seed[trial]
    key = (seed, trial, *stream)
    if not all(isinstance(part, int | np.integer) and not isinstance(part, bool) and part >= 0 for part in key):
        raise ValueError(f"generator: seed, trial and stream must be integers >= 0, got {key}")
    state = np.random.SeedSequence(int(seed), spawn_key=[int(part) for part in key[1:]]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
