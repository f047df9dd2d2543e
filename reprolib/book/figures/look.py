"""The look that all figures share: style, colours and markers, legends, and the PNG that is saved."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from torch import Tensor

WIDTH = 6.4
"""Inches that the page's column is wide."""

CHART = 5.0
"""Inches of the widest figure: narrower than the column, so that type of 9.5 points has 9 pixels on a phone."""

SMALL = 9.5
"""Points of the smallest type."""

MARKERS = "os^DvPX*"


def style() -> None:
    """Set the book's look; `chapter.start` does it."""
    mpl.rcdefaults()  # a reader's own matplotlibrc would change the book's figures
    sns.set_theme(style="whitegrid", palette="colorblind", font="DejaVu Sans")
    sizes: dict[Any, Any] = {"font.size": 10, "axes.labelsize": 10, "axes.titlesize": 10.5, "legend.fontsize": SMALL}
    sizes |= {"xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "lines.linewidth": 1.8, "lines.markersize": 5}
    mpl.rcParams.update(sizes | {"figure.facecolor": "white", "savefig.facecolor": "white", "axes.edgecolor": "0.4"})
    mpl.rcParams.update({"grid.color": "0.9", "text.color": "0.1", "axes.labelcolor": "0.1"})


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as a PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.04, "facecolor": "white"}
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None}, **options)
    return buffer.getvalue()


def png_within(figure: Figure, limit: int, whole: bytes) -> bytes:
    """The figure as a PNG of at most `limit` bytes: in 256 colours and at lower resolution where it has to be.

    whole: its `png`, which the caller has drawn anyway.
    Raises ValueError when not even 40 dots an inch fit.
    """
    for dpi in (None, 120, 100, 80, 60, 40):
        whole = whole if dpi is None else png(figure, dpi)
        if len(whole) <= limit:
            return whole
        buffer = io.BytesIO()
        opened = Image.open(io.BytesIO(whole))
        opened.convert("RGB").quantize(256).save(buffer, format="png", optimize=True, dpi=opened.info["dpi"])
        if len(buffer.getvalue()) <= limit:
            return buffer.getvalue()
    raise ValueError(f"limit={limit}: the figure takes {len(whole)} bytes even at 40 dots an inch; show less in it")


def plain_axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(CHART, height), layout="constrained")
    axes = figure.subplots()
    sns.despine(ax=axes)
    return figure, axes


COLOURS = {
    "plain": 0, "plain attacker": 0, "informed": 1, "dropped": 2, "kept columns": 3, "tensor dropped": 2,
    "DLG": 0, "iDLG": 1, "Inverting Gradients": 2, "IG": 2, "GGL": 3, "GradInversion": 4, "GRNN": 5, "FGLA": 0,
    "official": 0, "stable": 1,
}  # fmt: skip
"""Name -> its place among colours and markers, the same in every chapter."""


def looks_of(names: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Colour and marker of each name of a figure: its own through the book, and for others what is left.

    A name of several parts ("iDLG, MNIST (100 runs)") has that of its last part that is known and not taken.
    """
    places: dict[str, int] = {}
    for name in names:
        parts = [name, *reversed(re.split(r", | \(", name))]
        known = [COLOURS[part] for part in parts if part in COLOURS and COLOURS[part] not in places.values()]
        if known:
            places[name] = known[0]
    free = (i for i in range(len(names) + len(COLOURS)) if i not in places.values())
    return {name: look_of(places[name] if name in places else next(free)) for name in names}


def look_of(i: int) -> tuple[Any, str]:
    palette = sns.color_palette("colorblind")
    return palette[i % len(palette)], MARKERS[i % len(MARKERS)]


def groups_of(table: pd.DataFrame, column: str | None) -> list[tuple[str, pd.DataFrame]]:
    if column is None:
        return [("", table)]
    return [(str(name), group) for name, group in table.groupby(column, sort=False)]


def legend_below(figure: Figure | SubFigure, wanted: str | None) -> None:
    """One legend for all axes under them, where it covers nothing on a narrow screen."""
    pairs: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            if name and not name.startswith("_"):
                pairs.setdefault(name, handle)
    if wanted and pairs:
        columns = min(4, len(pairs), max(1, int(66 / (6 + max(map(len, pairs))))))
        figure.legend(pairs.values(), pairs.keys(), loc="outside lower center", ncols=columns, frameon=False)


LEGEND = 5
"""Lines up to which a legend names them; more have their names at their ends."""


def label_ends(axes: Axes) -> None:
    """The name of each line at its right end, in its colour, moved up or down where two would lie together."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    heights = [_height(axes, np.asarray(line.get_xydata())[-1]) for line in lines]
    for line, height in zip(lines, _apart(heights), strict=True):
        axes.annotate(
            str(line.get_label()), (1.02, height), xycoords="axes fraction", va="center", fontsize=SMALL,
            color=line.get_color(), annotation_clip=False,
        )  # fmt: skip


def number_points(axes: Axes, places: Sequence[tuple[float, float]]) -> None:
    """A number for each point, at the right and from the top, with a thin line to it. places: x and y, from the top."""
    heights = _apart([_height(axes, place) for place in reversed(places)])[::-1]
    for i, (place, height) in enumerate(zip(places, heights, strict=True), 1):
        axes.annotate(
            str(i), place, (1.02, height), textcoords="axes fraction", va="center", fontsize=SMALL,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5}, annotation_clip=False,
        )  # fmt: skip


def _height(axes: Axes, place: Any) -> float:
    """Of a point, as a share of the axes' height."""
    return float(np.clip(axes.transAxes.inverted().transform(axes.transData.transform(place))[1], 0, 1))


def _apart(heights: list[float]) -> list[float]:
    """The heights, moved so that lines of type there do not touch, and none further up than it has to be."""
    step = min(0.075, 1.0 / max(1, len(heights) - 1))
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for rank, i in enumerate(order):
        lowest = placed[order[rank - 1]] + step if rank else 0.0
        placed[i] = max(placed[i], lowest)
    for rank, i in enumerate(order):  # what was pushed out above goes down again
        placed[i] = min(placed[i], 1.0 - step * (len(order) - 1 - rank))
    return placed


def check_columns(table: pd.DataFrame, *names: str | None) -> None:
    if missing := [name for name in names if name is not None and name not in table.columns]:
        raise ValueError(f"the table has no columns {missing}; it has: {', '.join(map(str, table.columns))}")
    if table.empty:
        raise ValueError("the table has no rows: there is nothing to draw")


def check_length(argument: str, values: Sequence[Any], count: int) -> None:
    if len(values) != count or count == 0:
        raise ValueError(
            f"{argument} has {len(values)} entries for {count} images: expected one each, and at least one"
        )


def shown_image(image: Tensor) -> np.ndarray:
    """[C, H, W] -> [H, W, C] in [0, 1]; pixels that are not a number become black."""
    return torch.nan_to_num(image.detach().cpu().float(), nan=0.0).clamp(0, 1).permute(1, 2, 0).numpy()


def show_image(axes: Axes, image: Tensor) -> None:
    axes.imshow(shown_image(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")  # cmap: for one channel only
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    sns.despine(ax=axes, left=True, bottom=True)
