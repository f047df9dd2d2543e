"""The block that a malicious server puts in front of a network to sort a client's images into bins."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn

from reprolib.models.victim import Victim

NAME = "imprint"
"""The block's name in a victim that has one."""

Connection = Literal["addition", "linear", "cat", "softmax"]

Layout = Literal["cumulative", "sparse", "scattered"]


class ImprintBlock(nn.Module):
    """Rows a = f(W x + b) of the flattened input [N, C, H, W], and a way back to its shape.

    weight: [K, d], bias: [K]. layout: "cumulative" is a ReLU, a row passes all images above its threshold; "sparse" and
    "scattered" have a hard tanh from 0 to `top`, a row passes the images of one bin; in "scattered" each row has a
    query of its own. connection: "addition" gives x + strength x mean_k a_k; "linear" a second linear layer with all
    weights `strength` and the bias `offset` [d]; "cat" puts the rows in place of the first K values; "softmax" gives
    sum_k softmax(a)_k x, which is x.
    Source: Fowl et al. 2022, section 4, and the released code; "scattered" and `strength` are the book's.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        layout: Layout,
        connection: Connection,
        top: float = math.inf,
        strength: float = 1.0,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.connection, self.top, self.strength = layout, connection, top, strength
        bins, size = weight.shape
        self.rows = _layer(weight, bias)
        if connection == "linear":
            self.back = _layer(weight.new_full((size, bins), strength), offset)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        a = self.rows(flat).relu() if self.layout == "cumulative" else self.rows(flat).clamp(0, self.top)
        if self.connection == "linear":
            out = self.back(a)
        elif self.connection == "addition":
            out = flat + self.strength * a.mean(1, keepdim=True)
        elif self.connection == "cat":
            out = torch.cat([a, flat[:, a.shape[1] :]], 1)
        else:
            out = flat * a.softmax(1).sum(1, keepdim=True)
        return out.view(x.shape)

    def enter(self, _: nn.Module, __: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """The forward hook of the layer that the block stands behind."""
        return self(x)

    def passed(self, x: Tensor) -> Tensor:
        """Which images [N, C, H, W], as they enter the block, send a gradient through which row: [N, K] bool."""
        with torch.no_grad():
            rows = self.rows(x.flatten(1))
        return (rows > 0) & (rows < self.top)

    def extra_repr(self) -> str:
        return f"layout={self.layout}, connection={self.connection}, top={self.top:g}, strength={self.strength:g}"


def in_front(model: Victim, block: ImprintBlock) -> Victim:
    """A copy of the victim with the block, as its module `imprint`, between its normalisation and its first layer.

    Errors: ValueError for a victim that has such a block already.
    """
    if hasattr(model, NAME):
        raise ValueError("the model has an imprint block already: give the victim as it was before")
    larger, like = copy.deepcopy(model), next(model.parameters())
    larger.add_module(NAME, block.to(like).train(model.training))
    # parameters in the order in which they are passed
    for name in [name for name in larger._modules if name not in (NAME, "normalize")]:
        larger._modules[name] = larger._modules.pop(name)
    larger.normalize.register_forward_hook(block.enter)
    if hasattr(model, "architecture"):
        larger.architecture = {**model.architecture, NAME: f"{block.layout}, {block.connection}"}
    return larger


def _layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    bias = weight.new_zeros(len(weight)) if bias is None else bias.to(weight)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return layer
