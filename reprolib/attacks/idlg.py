"""Improved Deep Leakage from Gradients: Zhao, Mopuri and Bilen, 2020."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from reprolib import settings
from reprolib.attacks.dlg import DLG
from reprolib.attacks.labels import RULES, from_update
from reprolib.federated.update import SharedUpdate


@dataclass(frozen=True)
class IDLG(DLG):
    """Read the label off the last layer's gradient, then match gradients with that label fixed: one image a trial.

    rule: how the label is read, one of `labels.RULES`; "row_sum" is what the public code does, "pairwise" what the
    paper's text says. The remaining fields are DLG's; the defaults are those of the code, which stops a trial whose
    objective is below 1e-6 at every tenth outer step.
    """

    iterations: settings.Count = 300
    stop_objective: settings.Level | None = 1e-6
    labels: str = field(default="inferred", init=False)  # type: ignore[assignment]
    rule: Annotated[str, settings.OneOf(RULES)] = "row_sum"

    @classmethod
    def official(cls) -> IDLG:
        """The settings of the public code."""
        return cls()

    @classmethod
    def paper(cls) -> IDLG:
        """The paper's text: the code's settings, with the label read by the pairwise rule that the text states."""
        return cls(rule="pairwise")

    def given_labels(self, update: SharedUpdate) -> Tensor:
        if update.batch_size != 1:
            raise ValueError(
                f"IDLG reads the label of a single image, but the update is of {update.batch_size}: "
                "use DLG for batches, and labels.infer_counts for their labels"
            )
        found = from_update(update, self.rule)
        if (found < 0).any():
            undecided = (found < 0).nonzero()[:, 0].tolist()
            raise ValueError(f"rule {self.rule!r} decides no label in the trials {undecided}: use 'row_sum' or 'bias'")
        return found[:, None]
