"""Figures of the book, in one look: white ground (it reads on light and dark pages), colours and markers that a
colour-blind reader can tell apart, at most 7 inches wide with type of 9 points and more (legible at 390 pixels).

Every function returns a `matplotlib.figure.Figure` that pyplot does not know, so that nothing is shown twice.
"""

from reprolib.book.figures.charts import (
    curves,
    dumbbells,
    facets,
    fidelity,
    forest,
    heatmap,
    histogram,
    panels,
    scatter,
    tradeoff,
)
from reprolib.book.figures.look import WIDTH, png, png_within, style
from reprolib.book.figures.pictures import captioned, picture, reconstruction_grid, slider, strip

__all__ = [
    "WIDTH",
    "captioned",
    "curves",
    "dumbbells",
    "facets",
    "fidelity",
    "forest",
    "heatmap",
    "histogram",
    "panels",
    "picture",
    "png",
    "png_within",
    "reconstruction_grid",
    "scatter",
    "slider",
    "strip",
    "style",
    "tradeoff",
]
