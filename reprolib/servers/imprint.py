"""Robbing the Fed: a block in front of the model sorts the images into bins. Fowl, Geiping, Czaja et al., ICLR 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from scipy.stats import laplace, norm
from torch import Tensor, nn

from reprolib import models, settings
from reprolib.data import ImageSet
from reprolib.federated.server import Honest
from reprolib.federated.streams import generator
from reprolib.federated.threat import ServerKind
from reprolib.models.imprint import Connection, ImprintBlock, in_front
from reprolib.models.victim import Victim, require_victim

Query = Literal["avg", "fourier", "randn", "rand"]

CDF = Literal["empirical", "fitted", "gaussian", "laplace"]

LARGEST = 2**28
"""Weights of a block, a gigabyte in float32; its gradient takes as much again for each trial."""

END = 10.0
"""What stands for infinity at the ends of the bins: the released code's lowest threshold is -10."""


@dataclass(frozen=True, eq=False)
class Imprint(Honest):
    """Put a block of `num_bins` rows in front of the model, each with a threshold on a linear statistic of the image.

    The statistic is h(x) = v x of the flattened, normalised image with d values. query: v is 1/d ("avg"), the cosine of
    a frequency `mode` ("fourier"), or a standardised vector of normal or uniform numbers over sqrt(d) ("randn",
    "rand"). cdf: where the thresholds c_k = F^-1(k / K) come from: F is the law of h over the `surrogate` images
    ("empirical"), the normal law with their mean and deviation ("fitted"), or a law of variance 1 that takes no images
    ("gaussian"; "laplace", the code's for "fourier").
    layout: "cumulative" are ReLUs, row k passes what lies above c_k; "sparse" passes one bin alone; "one-shot" has two
    rows around the bin, of `num_bins`, that holds `target`; "scattered", the book's, gives each row its own normal
    query and its own bin, which holds the share `rate` of the images, so that rows are of full rank and in no order.
    gain, strength, connection: a = f(gain (h - c)), and what becomes of it (`models.imprint`). With "addition" and
    "linear" the gradient of the rows grows with `strength`; gain = 1 / strength leaves the output as it was.
    shuffled: the rows stand in an order drawn from `seed`, as do the queries.
    Errors: ValueError for settings outside their range; when sending, for a law of images without `surrogate`, for
    surrogate images of another shape, whose statistic leaves [-10, 10], or too few of them, for more bins than a
    gigabyte holds, "cat" with more bins than values, and a model that is no victim or has such a block.
    Source: Fowl et al. 2022, section 4; the released code for the defaults of `official`, and for what is not said.
    """

    kind: ClassVar[ServerKind] = "malicious architecture"
    num_bins: settings.Count = 128
    query: Query = "avg"
    mode: settings.WholeOrZero = 0
    gain: settings.Length = 1.0
    strength: settings.Length = 1.0
    connection: Connection = "addition"
    cdf: CDF = "empirical"
    layout: Literal["cumulative", "sparse", "one-shot", "scattered"] = "cumulative"
    target: float = 0.0
    rate: Annotated[float, settings.Range(0, 1, above=True, below=True)] = 1 / 64
    shuffled: bool = False
    surrogate: ImageSet | None = None
    seed: settings.WholeOrZero = 0

    def __post_init__(self) -> None:
        settings.check(self)
        if self.num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {self.num_bins}: one bin holds every image")
        if self.layout == "scattered" and self.cdf in ("gaussian", "laplace"):
            raise ValueError(f"layout='scattered' needs the law of each row's own query, not cdf={self.cdf!r}")

    @classmethod
    def official(cls, num_bins: int = 100) -> Imprint:
        """As the released code sets it: the lowest frequency, Laplacian bins of variance 1, the linear way back."""
        return cls(
            num_bins=num_bins,
            query="fourier",
            cdf="laplace",
            connection="linear",
            gain=1e-3,
            strength=1e3,
        )

    @property
    def draws(self) -> bool:
        """Whether anything of the block comes from `seed`: blocks of other seeds are other blocks."""
        drawn = self.layout == "scattered" or self.query in ("randn", "rand")
        return drawn or self.shuffled or self.connection == "linear"

    def broadcast(self, model: nn.Module) -> Victim:
        require_victim(model)
        size = math.prod(model.image_shape)
        if self.cdf in ("empirical", "fitted") and self.surrogate is None:
            raise ValueError(f"cdf={self.cdf!r} reads the law of the statistic off images: give surrogate=...")
        if self.num_bins * size > LARGEST:
            raise ValueError(
                f"num_bins={self.num_bins} rows of {size} values are {4 * self.num_bins * size / 1e9:.3g} GB of "
                f"weights, and a gradient of as much for each trial: take at most {LARGEST // size}"
            )
        if self.connection == "cat" and self.num_bins > size:
            raise ValueError(
                f"connection='cat' puts num_bins={self.num_bins} rows in place of as many of {size} values: take fewer"
            )
        queries = self._queries(size)
        edges = self._edges(self._measured(model, queries), len(queries))
        if self.layout == "cumulative":
            weight, bias, top = queries.expand(self.num_bins, size), -edges[0, :-1], math.inf
        elif self.layout == "one-shot":
            k = int((edges[0] <= self.target).sum()) - 1
            weight, bias, top = queries.expand(2, size), -edges[0, k : k + 2], math.inf
        else:
            low, width = edges[:, :-1].reshape(-1), edges.diff(dim=1).reshape(-1)
            if not (width > 0).all():
                raise ValueError(
                    f"{int((width <= 0).sum())} of num_bins={self.num_bins} bins are empty: give more surrogate images"
                )
            weight, bias, top = queries.expand(self.num_bins, size) / width[:, None], -low / width, self.gain
        if self.shuffled:
            order = torch.randperm(len(bias), generator=generator(self.seed, 1))
            weight, bias = weight[order], bias[order]
        offset = None
        if self.connection == "linear":
            drawn = models.drawn(lambda: nn.Linear(len(bias), size).bias.detach(), self.seed)
            offset = drawn - float(edges[0, :-1].mean())
        layout = "cumulative" if self.layout == "one-shot" else self.layout
        weight, bias = ((self.gain * part).to(next(model.parameters())) for part in (weight, bias))
        return in_front(model, ImprintBlock(weight, bias, layout, self.connection, top, self.strength, offset))

    def statistic(self, model: Victim, images: Tensor) -> Tensor:
        """The statistic h of images [N, C, H, W] in [0, 1]: [N, Q] float64, Q = 1 unless each row has its own."""
        return self._statistic(model, images, self._queries(math.prod(model.image_shape)))

    def _statistic(self, model: Victim, images: Tensor, queries: Tensor) -> Tensor:
        found = []
        with torch.no_grad():
            for part in images.split(2000):
                entered = model.normalize.forward(part.to(next(model.parameters())))
                found.append(entered.flatten(1).cpu().double() @ queries.T)
        return torch.cat(found)

    def _queries(self, size: int) -> Tensor:
        """v, [1, d]; in the layout "scattered" one for each row, [K, d]. float64."""
        random = generator(self.seed, 0)
        if self.layout == "scattered":
            return torch.randn(self.num_bins, size, generator=random).double() / math.sqrt(size)
        if self.query == "avg":
            return torch.full((1, size), 1 / size, dtype=torch.float64)
        if self.query == "fourier":
            at = torch.arange(size, dtype=torch.float64) + 0.5
            return (torch.cos(math.pi / size * at * self.mode) / size * max(self.mode, 0.33) * 4)[None]
        draw = torch.randn if self.query == "randn" else torch.rand
        v = draw(size, generator=random).double()
        return ((v - v.mean()) / v.std() / math.sqrt(size))[None]

    def _measured(self, model: Victim, queries: Tensor) -> Tensor | None:
        """The surrogate images' statistics, sorted, [N, Q]; None where no images are asked."""
        if self.cdf in ("gaussian", "laplace") or self.surrogate is None:
            return None
        images = self.surrogate.images
        if tuple(images.shape[1:]) != tuple(model.image_shape):
            raise ValueError(
                f"surrogate holds images of {tuple(images.shape[1:])}, the model takes {tuple(model.image_shape)}"
            )
        found = self._statistic(model, images, queries).sort(dim=0).values
        if found.abs().max() >= END:
            raise ValueError(
                f"the surrogate images' statistic reaches {float(found.abs().max()):.3g}, beyond the outermost "
                f"thresholds at {END:g}: normalise the model's input"
            )
        return found

    def _edges(self, measured: Tensor | None, queries: int) -> Tensor:
        """The ends of the bins, ascending: [1, K + 1] of one query, or [K, 2] of each row's own bin. float64."""
        if self.layout == "scattered":
            low = torch.linspace(0, 1 - self.rate, queries, dtype=torch.float64)
            low = low[torch.randperm(queries, generator=generator(self.seed, 2))]
            return self._quantiles(measured, torch.stack([low, low + self.rate])).T
        levels = torch.arange(1, self.num_bins, dtype=torch.float64) / self.num_bins
        inner = self._quantiles(measured, levels[:, None])[:, 0]
        return torch.cat([inner.new_tensor([-END]), inner, inner.new_tensor([END])])[None]

    def _quantiles(self, measured: Tensor | None, levels: Tensor) -> Tensor:
        """F^-1 of the levels [L, Q] in [0, 1], each of its own query: [L, Q]. measured: [N, Q], ascending."""
        if self.cdf == "laplace":
            return torch.from_numpy(laplace.ppf(levels.numpy(), scale=1 / math.sqrt(2)))
        if measured is None:
            return torch.from_numpy(norm.ppf(levels.numpy()))
        if self.cdf == "fitted":
            deviations = torch.from_numpy(norm.ppf(levels.clamp(1e-3, 1 - 1e-3).numpy()))
            return measured.mean(0) + measured.std(0) * deviations
        at = levels * (len(measured) - 1)
        below = at.floor().long().clamp(max=max(len(measured) - 2, 0))
        above = (below + 1).clamp(max=len(measured) - 1)
        return torch.lerp(measured.gather(0, below), measured.gather(0, above), at - below)
