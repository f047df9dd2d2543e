"""Figures of images: grids of reconstructions, their way over the iterations, and a slider over it."""

from __future__ import annotations

import hashlib
import html
import io
import textwrap
from base64 import b64encode
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from reprolib.book.figures.look import CHART, SMALL, WIDTH, check_length, show_image, shown_image

ACROSS = 8
"""Images beside each other at most: more would be smaller on a phone than their own pixels."""


def reconstruction_grid(
    rows: Mapping[str, Tensor],
    titles: Sequence[str] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Images in rows with a name each: truth, then one row an attack or defense; beyond ACROSS columns in blocks.

    rows: name -> [n, C, H, W], the same n in all; clamped to [0, 1] for display. titles: over the n columns.
    captions: row name -> n short texts below its images, for instance the MSE.
    """
    captions = captions or {}
    counts = {name: len(images) for name, images in rows.items()}
    columns = next(iter(counts.values()), 0)
    if columns == 0 or set(counts.values()) != {columns}:
        raise ValueError(f"rows holds {counts} images: expected at least one, and as many in every row")
    for name, texts in {**captions, **({"titles": titles} if titles else {})}.items():
        if len(texts) != columns or name not in {*rows, "titles"}:
            raise ValueError(f"captions or titles of {name!r}: expected {columns} texts for one of {list(rows)}")
    for letters in (15, 20, 26):  # the narrowest names that are no higher than their rows
        labels = [textwrap.wrap(name, letters) for name in rows]
        beside = 0.08 * letters
        # many rows must not make an endless figure
        side = min(1.0, (CHART - beside) / min(columns, ACROSS), max(8 / len(rows), 0.6))
        if 0.16 * max(map(len, labels)) <= side + 0.03:
            break
    across = min(columns, ACROSS)
    blocks = range(0, columns, across)
    heights = [side + (0.2 if name in captions else 0.04) for name in rows] * len(blocks)
    figure = Figure(figsize=(beside + across * side, sum(heights) + (0.25 if titles else 0.05) * len(blocks)))
    figure.set_layout_engine("compressed", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(len(rows) * len(blocks), across, squeeze=False)
    longest = max((len(text) for texts in captions.values() for text in texts), default=0)
    small = max(6.5, min(SMALL, 72 * side / (0.62 * max(1, longest))))  # a character is 0.62 of its size wide
    for line, (first, (label, (name, images))) in zip(
        grid, product(blocks, zip(labels, rows.items(), strict=True)), strict=True
    ):
        for i, axes in enumerate(line, first):
            if i >= columns:
                axes.set_axis_off()
                continue
            show_image(axes, images[i])
            if name in captions:
                axes.set_xlabel(captions[name][i], fontsize=small, labelpad=1)
            if titles and name == next(iter(rows)):
                axes.set_title(titles[i], fontsize=SMALL, pad=2)
        line[0].set_ylabel("\n".join(label), rotation=0, ha="right", va="center", labelpad=4, fontsize=SMALL)
    return figure


def strip(images: Tensor, iterations: Sequence[int], captions: Sequence[str] | None = None) -> Figure:
    """One reconstruction over the iterations, left to right, in lines of at most five.

    images: [S, C, H, W]; iterations: S numbers; captions: S texts below, for instance the objective.
    """
    check_length("iterations", iterations, len(images))
    check_length("captions", captions or iterations, len(images))
    lines = -(-len(images) // 5)
    columns = -(-len(images) // lines)
    side = CHART / 5
    figure = Figure(figsize=(columns * side, lines * (side + (0.42 if captions else 0.25))))
    figure.set_layout_engine("compressed", w_pad=0.02, h_pad=0.06, wspace=0, hspace=0)
    every = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in every[len(images) :]:
        axes.set_axis_off()
    for i, (axes, image) in enumerate(zip(every, images, strict=False)):
        show_image(axes, image)
        axes.set_title(f"{iterations[i]}", fontsize=SMALL, pad=2)
        if captions:
            axes.set_xlabel(captions[i], fontsize=SMALL, labelpad=1)
    return figure


def slider(
    images: Tensor, iterations: Sequence[int], captions: Sequence[str] | None = None, truth: Tensor | None = None
) -> str:
    """HTML with a slider over the iterations of a reconstruction; the truth, where given, stays beside it.

    images: [S, C, H, W]; truth: [C, H, W]. The pictures are in the page, so it works without network. The slider is a
    range input (arrow keys move it); without scripts the page shows all iterations in a row.
    """
    check_length("iterations", iterations, len(images))
    check_length("captions", captions or iterations, len(images))
    frames = []
    for i, image in enumerate(images):
        text = f"iteration {iterations[i]}" + (f", {captions[i]}" if captions else "")
        frames.append(_frame(image, text))
    mark = "s" + hashlib.sha256("".join(frames).encode()).hexdigest()[:12]
    beside = "" if truth is None else _frame(truth, "the client's image")
    last = len(frames) - 1
    return f"""<div id="{mark}" style="margin:1rem 0">
<div style="display:flex;flex-wrap:wrap;gap:1rem">{beside}
<div data-frames style="display:flex;flex-wrap:wrap;gap:.6rem">{"".join(frames)}</div></div>
<label data-control hidden style="display:none;max-width:24rem">Iteration
<input type="range" min="0" max="{last}" value="{last}" step="1" style="width:100%" aria-label="iteration"></label>
<script>(function () {{
  const box = document.getElementById("{mark}"), input = box.querySelector("input");
  const frames = box.querySelectorAll("[data-frames] figure"), control = box.querySelector("[data-control]");
  function show() {{
    frames.forEach(function (frame, i) {{ frame.style.display = i === Number(input.value) ? "" : "none"; }});
    input.setAttribute("aria-valuetext", frames[Number(input.value)].textContent.trim());
  }}
  control.hidden = false; control.style.display = "block";
  input.addEventListener("input", show); show();
}})();</script></div>"""


def picture(png: bytes, alt: str) -> str:
    """A PNG as HTML that holds it, as wide as it was drawn, so that type has one size. alt: what it shows, in words."""
    try:
        opened = Image.open(io.BytesIO(png))
        inches = opened.width / opened.info["dpi"][0]
    except (OSError, KeyError, ZeroDivisionError):  # no picture, or of no known size
        inches = WIDTH
    width = f"width:{min(100, 100 * inches / WIDTH):.0f}%;" if inches < WIDTH else ""
    least = f"{5 * min(inches, WIDTH):.0f}rem"  # on a narrow screen type grows, and does not of a few small images
    return (
        f'<img src="{_address(png)}" alt="{html.escape(alt, quote=True)}" '
        f'style="{width}min-width:min(100%,{least});max-width:100%;height:auto">'
    )


def captioned(body: str, caption: str, anchor: str = "") -> str:
    """HTML with a caption below it, which is HTML too. anchor: a name that links can lead to."""
    name = f' id="{anchor}"' if anchor else ""
    below = f'<figcaption style="margin-top:.3rem">{caption}</figcaption>'
    return f'<figure{name} style="margin:1rem 0">{body}{below}</figure>'


def _address(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _frame(image: Tensor, text: str) -> str:
    buffer = io.BytesIO()
    pixels = (shown_image(image) * 255).round().astype(np.uint8)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, format="png")
    source, alt = _address(buffer.getvalue()), html.escape(text, quote=True)
    return (
        f'<figure style="margin:0;width:9rem"><img src="{source}" alt="{alt}" width="144" '
        f'style="width:9rem;height:auto;image-rendering:pixelated"><figcaption style="font-size:.85rem">'
        f"{html.escape(text)}</figcaption></figure>"
    )
