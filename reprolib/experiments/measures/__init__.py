"""The measures of the chapters' experiments, a file for each chapter: what the ledger is told of a table.

Every function takes what an experiment returned and gives measures by name, as `Chapter.measure` enters them: an
interval, `Measured` with the conditions it was taken under, or `Unmeasured` with the reason. The names are those that
`claims/` declares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reprolib.measure import intervals
from reprolib.measure.entries import Unmeasured
from reprolib.measure.intervals import Interval

if TYPE_CHECKING:
    from reprolib.experiments.networks import Attacked


NOT_RUN = Unmeasured("not run in this profile", "budget")


def share(batches: pd.DataFrame, column: str = "exact") -> Interval:
    """The share of images that a column counts (of "identified" it has the share), with its interval over networks."""
    counts = batches[column] * (batches.images if column == "identified" else 1)
    hits = np.concatenate([np.arange(n) < round(c) for n, c in zip(batches.images, counts, strict=True)])
    return intervals.proportion(hits, np.repeat(batches.network.to_numpy(), batches.images))


def identified(run: Attacked) -> Interval:
    """The share of images identified, with its interval over networks."""
    return intervals.proportion(run.scores.identified, run.scores.network)


def recovered(scores: pd.DataFrame) -> pd.Series:
    """Whether each image came back pixel by pixel, as 0 and 1."""
    return (scores.mse < 1e-3).astype(float)


def outer_steps(count: int) -> dict[str, str]:
    """The condition of a run of L-BFGS."""
    return {"budget": f"{count} outer steps"}


def iterations(count: int) -> dict[str, str]:
    """The condition of another search."""
    return {"budget": f"{count} iterations"}
