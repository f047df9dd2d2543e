import io
import math
import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from reprolib.book import figures
from reprolib.book.figures.look import looks_of
from reprolib.measure import metrics


@pytest.fixture(autouse=True)
def look():
    figures.style()
    yield
    assert plt.get_fignums() == []  # pyplot knows none of them: a notebook shows each once


@pytest.fixture
def images():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def table():
    rows = [{"std": s, "attack": a, "value": 0.5, "low": 0.4, "high": 0.6} for s in (1e-3, 1e-2) for a in ("x", "y")]
    return pd.DataFrame(rows)


def _both_ways(table):
    ends = {"value_low": table.low, "value_high": table.high, "std_low": math.nan, "std_high": math.nan}
    return table.assign(label=[f"defense {i}" for i in range(len(table))], **ends)


def _every(images, table):
    curve = metrics.fidelity_curve([1e-5, 1e-3, math.inf]).assign(method="iDLG", data="MNIST")
    return {
        "grid": figures.reconstruction_grid({"truth": images, "DLG": images * torch.nan}, list("abcde")),
        "strip": figures.strip(images[:, :1], range(5), ["1e-3"] * 5),
        "curves": figures.curves(table, "std", "value", "attack", "low", "high", xscale="log"),
        "facets": figures.facets(table, "std", "value", "attack", "attack", "low", "high", level=(0.3, "grey")),
        "level": figures.curves(table, "std", "value", level=(0.3, "constant grey")),
        "panels": figures.panels(table, "std", {"value": "share", "low": "lower end"}, log=("low",)),
        "scatter": figures.scatter(table, "std", "value", "attack"),
        "tradeoff": figures.tradeoff(_both_ways(table), "std", "value", "label", "accuracy", "identified"),
        "forest": figures.forest(table.assign(label=table["std"]), hue="attack", criterion=0.5, criterion_label="half"),
        "fidelity": figures.fidelity(curve, curve, hue="method", panel="data"),
        "histogram": figures.histogram({"DLG": [1e-12, 1e-3, math.nan, math.inf, 1e16]}, 1e-3),
        "heatmap": figures.heatmap(table.pivot(index="std", columns="attack", values="value"), "success"),
    }


def test_a_readers_own_settings_of_matplotlib_change_no_figure():
    with mpl.rc_context():
        figures.style()
        ours = dict(mpl.rcParams)
        mpl.rcParams.update({"axes.titlepad": 40, "text.color": "red", "lines.linestyle": "--"})
        figures.style()
        assert dict(mpl.rcParams) == ours


def test_a_few_counts_on_a_logarithmic_axis_are_named_themselves():
    def ticks(values):
        curve = pd.DataFrame({"batch": values, "error": 1.0})
        axis = figures.curves(curve, "batch", "error", xscale="log").axes[0].xaxis
        return [label.get_text() for label in axis.get_ticklabels()]

    assert ticks([2, 4, 8, 1000]) == ["2", "4", "8", "1,000"]
    assert ticks([100, 101]) != ["100", "101"] and ticks([0.5, 1]) != ["0", "1"]


def test_every_figure_fits_a_page_and_is_the_same_each_time(images, table):
    first, second = _every(images, table), _every(images, table)
    for name, figure in first.items():
        assert isinstance(figure, Figure) and figure.get_figwidth() <= figures.WIDTH, name
        assert figures.png(figure, 60) == figures.png(second[name], 60), name


def test_figures_are_white_so_that_dark_pages_show_them(table):
    picture = Image.open(io.BytesIO(figures.png(figures.curves(table, "std", "value"), 60))).convert("RGBA")
    assert picture.getpixel((0, 0)) == (255, 255, 255, 255)


def test_the_front_of_a_tradeoff_holds_what_nothing_beats():
    points = {"best": (0.9, 0.5), "beaten": (0.8, 0.6), "private": (0.3, 0.0)}
    rows = [{"x": x, "y": y, "name": name} for name, (x, y) in points.items()]
    table = pd.DataFrame(rows).assign(x_low=0.2, x_high=0.95, y_low=0.0, y_high=0.7)
    axes = figures.tradeoff(table, "x", "y", "name", "accuracy", "identified").axes[0]
    front = next(line for line in axes.lines if line.get_label() == "front")
    assert set(zip(*front.get_data(orig=True), strict=True)) == {points["best"], points["private"]}
    full = {bar[0].get_xydata()[0][0] for bar in axes.containers if bar[0].get_markerfacecolor() != "white"}
    assert full == {0.9, 0.3}
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"], "numbered from the top"
    key = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert key == ["1  beaten", "2  best", "3  private"]
    wide = figures.tradeoff(table.assign(x_low=-9.0, x_high=9.0), "x", "y", "name", "accuracy", "identified").axes[0]
    assert wide.get_xlim() == pytest.approx((0.21, 0.99))  # the points, whatever their intervals


def test_broken_and_diverged_runs_are_counted_not_dropped():
    axes = figures.histogram({"DLG": [1e-12, 1e-3, math.nan, math.inf, 1e16]}).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 5
    assert axes.patches[-1].get_height() == 3
    assert axes.get_xticklabels()[-1].get_text() == "diverged"


def test_a_grid_names_its_rows_and_shows_grey_images_grey(images):
    figure = figures.reconstruction_grid(
        {"truth": images[:, :1], "DLG": images[:, :1]}, captions={"DLG": list("abcde")}
    )
    assert [axes.get_ylabel() for axes in figure.axes[::5]] == ["truth", "DLG"]
    assert [axes.get_xlabel() for axes in figure.axes[5:]] == list("abcde")
    assert figure.axes[0].images[0].cmap.name == "gray" and figure.axes[0].images[0].get_clim() == (0, 1)


def test_a_level_leaves_the_scale_of_the_steps():
    table = pd.DataFrame({"steps": [0, 10, 1000], "psnr": [27.0, 26.0, 14.0]})
    limits = [
        figures.curves(table, "steps", "psnr", xscale="symlog", level=level).axes[0].get_xlim()
        for level in (None, (11, "grey"))
    ]
    assert limits[0] == limits[1] and limits[0][0] > -1


def test_a_picture_is_made_to_fit(images):
    figure = figures.reconstruction_grid({"truth": images})
    whole = figures.png(figure)
    assert len(figures.png_within(figure, 10**6, whole)) == len(whole)
    small = figures.png_within(figure, len(whole) // 2, whole)
    assert len(small) <= len(whole) // 2
    Image.open(io.BytesIO(small)).verify()
    with pytest.raises(ValueError, match="limit=100: the figure takes"):
        figures.png_within(figure, 100, whole)


def test_the_slider_needs_no_network_and_no_script(images):
    page = figures.slider(images, [0, 10, 20, 30, 40], ["<b>"] * 5, truth=images[0])
    assert page == figures.slider(images, [0, 10, 20, 30, 40], ["<b>"] * 5, truth=images[0])
    assert "http" not in page and 'src="data:image/png' in page and "&lt;b&gt;" in page
    assert page.count("<img") == 6 == page.count('alt="')
    static = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    frames = static[static.index("data-frames") : static.index("data-control")]
    assert frames.count("<figure") == 5 and "display:none" not in frames and "hidden" not in frames
    assert 'type="range"' in page and "aria-label" in page and 'max="4"' in page


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: figures.reconstruction_grid({"a": x, "b": x[:2]}), "rows holds {'a': 5, 'b': 2} images"),
        (lambda x, t: figures.reconstruction_grid({}), "rows holds {} images"),
        (lambda x, t: figures.reconstruction_grid({"a": x}, ["only one"]), "'titles': expected 5 texts"),
        (lambda x, t: figures.reconstruction_grid({"a": x}, captions={"b": list("abcde")}), "'b': expected 5 texts"),
        (lambda x, t: figures.strip(x, [1, 2]), "iterations has 2 entries for 5 images"),
        (lambda x, t: figures.slider(x[:0], []), "iterations has 0 entries"),
        (lambda x, t: figures.curves(t, "noise", "value"), r"no columns \['noise'\]; it has: std, attack"),
        (lambda x, t: figures.forest(t[:0], "attack"), "no rows"),
        (lambda x, t: figures.fidelity(t), r"no columns \['threshold'\]"),
        (lambda x, t: figures.histogram({"a": np.array([])}), "expected at least one each"),
    ],
)
def test_what_cannot_be_drawn_is_named(images, table, call, message):
    with pytest.raises(ValueError, match=message):
        call(images, table)


def test_a_level_is_drawn_and_named_and_panels_share_their_axis(table):
    figure = figures.curves(table, "std", "value", "attack", level=(0.3, "constant grey"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y", "constant grey"]
    figure = figures.panels(table, "std", {"value": "share", "low": "lower end"}, log=("low",), xlabel="noise")
    top, bottom = figure.axes
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("share", "lower end")
    assert (bottom.get_xlabel(), top.get_yscale(), bottom.get_yscale()) == ("noise", "linear", "log")


def test_facets_draw_a_panel_each_with_one_legend_and_a_mark(tmp_path):
    rows = [
        {"x": x, "y": x * (i + 1), "line": f"l{i}", "panel": panel} for x in (1, 10) for i in range(2) for panel in "ab"
    ]
    drawn = figures.facets(pd.DataFrame(rows), "x", "y", "line", "panel", xscale="log", marks={"b": 3.0})
    assert [axes.get_title("left") for axes in drawn.axes] == ["a", "b"]
    assert [len(axes.lines) for axes in drawn.axes] == [2, 3]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["l0", "l1"]


def test_more_than_five_lines_have_their_names_at_their_ends_apart():
    rows = [{"x": x, "y": 1.0, "line": f"line {i}"} for x in (0, 1) for i in range(7)]
    axes = figures.curves(pd.DataFrame(rows), "x", "y", "line").axes[0]
    heights = [text.xy[1] for text in axes.texts]
    assert len(heights) == 7 and min(b - a for a, b in zip(sorted(heights), sorted(heights)[1:], strict=False)) > 0.05
    assert min(heights) >= 0 and max(heights) <= 1


def test_a_name_has_one_colour_and_marker_in_every_figure():
    few, other = looks_of(["iDLG", "DLG"]), looks_of(["something", "DLG", "GGL (2,500 evaluations)"])
    assert few["DLG"] == other["DLG"] and len(set(other.values())) == 3
    assert looks_of(["a", "b"])["a"] == looks_of(["a"])["a"]


def test_a_row_of_a_forest_is_as_high_as_what_it_holds_and_who_ignores_is_hollow():
    rows = [("noise", "stable, who ignores it"), ("noise", "stable, who knows it"), ("none", "stable, who knows it")]
    table = pd.DataFrame(rows, columns=["label", "who"]).assign(value=0.5, low=0.4, high=0.6)
    axes = figures.forest(table, hue="who").axes[0]
    dots = [bar[0] for bar in axes.containers]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [True, False]
    assert dots[0].get_color() == dots[1].get_color()
    places = sorted(y for dot in dots for _, y in dot.get_xydata())
    assert len(set(places)) == 3 and places[2] - places[1] > places[1] - places[0]


def test_a_short_logarithmic_axis_has_numbers_as_a_reader_writes_them():
    curve = pd.DataFrame({"epoch": [0, 1, 2], "loss": [2.3, 2.2, 2.1]})
    figure = figures.curves(curve, "epoch", "loss", yscale="log")
    figure.canvas.draw()
    texts = [text.get_text() for axis in (figure.axes[0].yaxis, figure.axes[0].xaxis) for text in axis.get_ticklabels()]
    assert "10^" not in "".join(texts) and "2.2" in texts and not any(text.endswith(".5") for text in texts)


def test_a_single_row_has_its_interval_as_a_line():
    table = pd.DataFrame({"x": [1.0, 2.0, 1.0], "y": [1.0, 2.0, 3.0], "what": ["a", "a", "b"]})
    axes = figures.curves(table.assign(low=0.5, high=3.5), "x", "y", "what", "low", "high").axes[0]
    assert len(axes.collections) == 2 and len(axes.collections[1].get_segments()) == 1


def test_dumbbells_show_a_few_images_at_the_left(images):
    row = {"defense": "noise", "cost": "", "static": 0.0, "static_low": 0.0, "static_high": 0.1}
    table = pd.DataFrame([row | {"adaptive": 0.9, "adaptive_low": 0.8, "adaptive_high": 1.0}])
    drawn = figures.dumbbells(table, pictures={"the client's": images[0], "found": images[1]})
    assert sum(bool(axes.images) for axes in drawn.axes) == 2


def test_many_images_stand_in_blocks_with_their_names_and_captions(images):
    many = torch.cat([images] * 3)[:11]
    texts = [str(i) for i in range(11)]
    figure = figures.reconstruction_grid({"truth": many, "found": many}, texts, {"found": texts})
    shown = [axes for axes in figure.axes if axes.images]
    assert len(figure.axes) == 4 * 8 and len(shown) == 2 * 11
    assert [axes.get_title() for axes in shown if axes.get_title()] == texts
    assert [axes.get_xlabel() for axes in shown if axes.get_xlabel()] == texts
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["truth", "found"] * 2


def test_a_single_value_has_a_range_on_a_logarithmic_axis():
    table = pd.DataFrame({"x": [3.0, 3.0], "y": [1.0, 2.0], "of": ["a", "b"]})
    low, high = figures.curves(table, "x", "y", "of", xscale="log").axes[0].get_xlim()
    assert low < 3 < high


def test_a_line_below_another_is_the_wider_one():
    table = pd.DataFrame({"x": [1, 2, 1, 2], "y": [1.0, 2.0, 1.0, 2.0], "of": ["a", "a", "b", "b"]})
    first, second = figures.curves(table, "x", "y", "of").axes[0].lines
    assert first.get_linewidth() > second.get_linewidth()
