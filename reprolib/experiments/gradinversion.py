"""Experiments of the chapter on GradInversion."""

from __future__ import annotations

import copy

import pandas as pd
import torch
import torch.nn.functional as F

from reprolib import client, matching
from reprolib.client import ThreatModel
from reprolib.data import ImageSet


def mode_mismatch(victim: torch.nn.Module, images: ImageSet, size: int, batches: int, seed: int) -> pd.DataFrame:
    """How far the attacker's gradient at the true batch is from the shared one, by the batch-norm modes of both sides.

    Columns: client, attacker, mismatch (|g' - g| / |g| over all parameters); a row a batch and case. An attacker in
    eval mode who loads the client's buffers does not undo a train-mode client: it does not differentiate through the
    batch's mean and variance. Source: sheet `gradinversion.md`, section 4.6.
    """
    x, y = images.batches(size, batches, seed=seed, distinct_labels=True)
    soft, rows = F.one_hot(y, images.num_classes).to(x.dtype), []
    for mode, attacker in (("train", "train"), ("eval", "eval"), ("train", "eval, the client's buffers")):
        update = client.share(
            victim, x, y, threat=ThreatModel(mode, batch_norm="buffers" if mode == "train" else "none")
        )
        for k in range(batches):
            model = victim
            if attacker.endswith("buffers"):
                model = copy.deepcopy(victim)
                for layer, (mean, variance) in update.batch_norm.items():
                    model.get_submodule(layer).running_mean.copy_(mean[k])
                    model.get_submodule(layer).running_var.copy_(variance[k])
            worker = client.worker(model, attacker.split(",")[0])
            found = matching.dummy_gradients(worker, x[k, None], soft[k, None])
            pairs = [(found[name][0].detach().flatten(), g[k].flatten()) for name, g in update.gradients.items()]
            ours, theirs = (torch.cat(part) for part in zip(*pairs, strict=True))
            rows.append(
                {"client": mode, "attacker": attacker, "mismatch": ((ours - theirs).norm() / theirs.norm()).item()}
            )
    return pd.DataFrame(rows)
