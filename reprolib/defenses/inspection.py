"""A client that looks at the model before it trains it: what an imprint block's rows betray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.defenses.base import Defense


def examined(model: nn.Module) -> pd.DataFrame:
    """What the linear layers with a bias and at least eight rows look like: one row for each layer.

    The rows of a layer that was drawn, or trained, lie in many directions, and its biases in no order.
    Columns: layer, rows, rank_one (the share of the weights' energy in their largest singular value, in [0, 1]),
    in_order (the rank correlation of the biases with the rows' order, without its sign).
    """
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None and layer.out_features >= 8:
            weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
            # of the small side's Gram matrix: the same singular values for a fraction of the time
            gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
            values = torch.linalg.eigvalsh(gram).clamp(min=0)
            share = float(values[-1] / values.sum()) if values.sum() > 0 else 0.0
            row = {"layer": name, "rows": len(weight), "rank_one": share, "in_order": _in_order(bias)}
            found.append(row)
    return pd.DataFrame(found, columns=["layer", "rows", "rank_one", "in_order"])


@dataclass(frozen=True)
class Inspection(Defense):
    """Refuse to train a model of which a linear layer's rows are all one direction, or its biases all in order.

    rank_one: the share of a layer's energy in one direction from which on it is refused. in_order: the rank correlation
    of its biases with their order from which on it is refused. It changes no update: a model that passes is trained as
    without it, and a server that knows of it sends one that passes.
    Errors: ValueError, when a model is to be trained, that names the layers. Source: this book.
    """

    rank_one: Annotated[float, settings.Range(0, 1, above=True)] = 0.95
    in_order: Annotated[float, settings.Range(0, 1, above=True)] = 0.95

    def __str__(self) -> str:
        return "inspection of the model"

    def refuses(self, model: nn.Module) -> list[str]:
        """Why the client would not train this model, a line a layer; none if it would."""
        reasons = []
        for row in examined(model).itertuples():
            if row.rank_one >= self.rank_one:
                reasons.append(f"the {row.rows} rows of {row.layer!r} are all one direction")
            if row.in_order >= self.in_order:
                reasons.append(f"the {row.rows} biases of {row.layer!r} stand in order")
        return reasons

    def extend(self, model: nn.Module) -> nn.Module:
        if reasons := self.refuses(model):
            raise ValueError(f"the client refuses to train this model: {'; '.join(reasons)}")
        return model


def _in_order(values: Tensor) -> float:
    """The absolute rank correlation of values [K] with 0..K-1; 0 where all are equal."""
    if (values == values[0]).all():
        return 0.0
    ranks = values.argsort().argsort().double()
    order = torch.arange(len(values), dtype=torch.float64)
    return float(torch.corrcoef(torch.stack([ranks, order]))[0, 1].abs())
