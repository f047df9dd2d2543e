"""The measures of the chapters' experiments, a file for each chapter: what the ledger is told of a table.

Every function takes what an experiment returned and gives measures by name, as `Chapter.measure` enters them: an
interval, `Measured` with the conditions it was taken under, or `Unmeasured` with the reason. The names are those that
`claims/` declares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from reprolib.measure import intervals
from reprolib.measure.intervals import Interval

if TYPE_CHECKING:
    from reprolib.experiments.networks import Attacked


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
