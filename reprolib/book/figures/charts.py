"""Figures of numbers: curves, scatter, intervals, shares, distributions, and matrices."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor

from reprolib.book.figures.look import (
    CHART,
    LEGEND,
    SMALL,
    check_columns,
    groups_of,
    label_ends,
    legend_below,
    look_of,
    looks_of,
    number_points,
    plain_axes,
    show_image,
)
from reprolib.book.numbers import digits

Scale = Literal["linear", "log", "symlog"]


def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    low: str | None = None,
    high: str | None = None,
    xscale: Scale = "linear",
    yscale: Scale = "linear",
    xlabel: str | None = None,
    ylabel: str | None = None,
    level: tuple[float, str] | None = None,
) -> Figure:
    """Lines of y over x, one a value of `hue`, with a band between the columns `low` and `high` where given.

    A value of `hue` that has one row is a point, and its band a line.

    level: a dashed line across at that value, and its name in the legend.
    """
    check_columns(table, x, y, hue, low, high)
    figure, axes = plain_axes(3.6)
    groups = groups_of(table, hue)
    looks = looks_of([name for name, _ in groups])
    for place, (name, group) in enumerate(groups):
        group = group.sort_values(x, kind="stable")
        _line(axes, group, x, y, looks[name], name, len(groups) - 1 - place)
        _band(axes, group, x, low, high, looks[name][0])
    axes.set(xscale=xscale, yscale=yscale, xlabel=xlabel or x, ylabel=ylabel or y)
    _ticks(axes, table[x], xscale, yscale)
    if level is not None:  # after the scale: a line across fixes the limits of the other axis
        axes.axhline(level[0], color="0.25", linestyle="--", linewidth=1.2, label=level[1])
    if hue is not None and table[hue].nunique() > LEGEND:
        label_ends(axes)
    else:
        legend_below(figure, hue or (level and level[1]))
    return figure


def _line(axes: Axes, group: pd.DataFrame, x: str, y: str, look: tuple[Any, str], name: str, above: int) -> None:
    """A line with its markers. above: how many are drawn on it later: it is wider, to be seen below them."""
    colour, marker = look
    more = min(0.6 * above, 3.0)
    axes.plot(
        group[x], group[y], color=colour, marker=marker if len(group) <= 40 else None, markersize=4 + more,
        linewidth=1.4 + more, label=name,
    )  # fmt: skip


def _band(axes: Axes, group: pd.DataFrame, x: str, low: str | None, high: str | None, colour: Any) -> None:
    """Between the columns `low` and `high`, where given; of a single point, a line."""
    if low and high and len(group) == 1:
        axes.vlines(group[x], group[low], group[high], color=colour, linewidth=1.4)
    elif low and high:
        axes.fill_between(group[x], group[low], group[high], color=colour, alpha=0.18, linewidth=0)


def facets(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    panel: str,
    low: str | None = None,
    high: str | None = None,
    xscale: Scale = "linear",
    yscale: Scale = "linear",
    xlabel: str | None = None,
    ylabel: str | None = None,
    level: tuple[float, str] | None = None,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """`curves` in a panel for each value of `panel`, one above the other: all have one x-axis and one y-axis.

    marks: panel -> where a dotted line stands across its x-axis.
    """
    check_columns(table, x, y, hue, panel, low, high)
    titles, order = groups_of(table, panel), [name for name, _ in groups_of(table, hue)]
    looks = looks_of(order)
    figure = Figure(figsize=(CHART, 0.9 + 1.55 * len(titles) + 0.1 * len(order)), layout="constrained")
    row = figure.subplots(len(titles), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (title, shown) in zip(row, titles, strict=True):
        for name, group in groups_of(shown, hue):
            group = group.sort_values(x, kind="stable")
            _line(axes, group, x, y, looks[name], name, len(order) - 1 - order.index(name))
            _band(axes, group, x, low, high, looks[name][0])
        if marks is not None and title in marks:
            axes.axvline(marks[title], color="0.25", linestyle=":", linewidth=1.2)
        axes.set(xscale=xscale, yscale=yscale)
        axes.set_title(title, loc="left")
        _ticks(axes, table[x], xscale, yscale)
        if level is not None:
            axes.axhline(level[0], color="0.25", linestyle="--", linewidth=1.2, label=level[1])
        sns.despine(ax=axes)
    figure.supylabel(ylabel or y, fontsize="medium")
    row[-1].set_xlabel(xlabel or x)
    legend_below(figure, hue)
    return figure


def _ticks(axes: Axes, values: pd.Series, xscale: Scale, yscale: Scale) -> None:
    """Numbers as a reader writes them: whole ones of counts, and no 2.35 x 10^0 on a short logarithmic axis.

    values: on the x-axis.
    """
    for axis, scale in ((axes.xaxis, xscale), (axes.yaxis, yscale)):
        low, high = axis.get_view_interval()
        if scale == "log" and high == low:  # a single value has no range of its own
            (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(low / 2, 2 * high)
            low, high = low / 2, 2 * high
        if scale == "log" and high < 20 * low:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high > 3 * low else MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(lambda value, _: digits(value)))
            axis.set_minor_formatter(NullFormatter())
    at = np.unique(values)
    if xscale == "linear" and (at == at.round()).all():
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if xscale == "log" and len(at) <= 10 and (at == at.round()).all() and (at[1:] >= 1.25 * at[:-1]).all():
        axes.set_xticks(at, [f"{value:,.0f}" for value in at])
        axes.set_xticks([], minor=True)


def panels(
    table: pd.DataFrame, x: str, measures: Mapping[str, str], log: Sequence[str] = (), xlabel: str | None = None
) -> Figure:
    """Several measures over the same x, a panel each, one above the other.

    measures: column -> the label of its axis. log: the columns on a logarithmic axis.
    """
    check_columns(table, x, *measures)
    figure = Figure(figsize=(CHART, 0.5 + 1.9 * len(measures)), layout="constrained")
    rows = figure.subplots(len(measures), 1, sharex=True, squeeze=False)[:, 0]
    for i, (axes, (column, label)) in enumerate(zip(rows, measures.items(), strict=True)):
        colour, marker = look_of(i)
        axes.plot(table[x], table[column], color=colour, marker=marker if len(table) <= 40 else None)
        axes.set(ylabel=label, yscale="log" if column in log else "linear")
        sns.despine(ax=axes)
    rows[-1].set_xlabel(xlabel or x)
    return figure


def scatter(
    table: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    xscale: Scale = "linear",
    yscale: Scale = "linear",
    xlabel: str | None = None,
    ylabel: str | None = None,
) -> Figure:
    """Points, one a row of the table, in a colour and marker a value of `hue`."""
    check_columns(table, x, y, hue)
    figure, axes = plain_axes(3.6)
    groups = groups_of(table, hue)
    looks = looks_of([name for name, _ in groups])
    for name, group in groups:
        colour, marker = looks[name]
        axes.scatter(group[x], group[y], color=colour, marker=marker, s=26, alpha=0.75, linewidth=0, label=name)
    axes.set(xscale=xscale, yscale=yscale, xlabel=xlabel or x, ylabel=ylabel or y)
    legend_below(figure, hue)
    return figure


def tradeoff(table: pd.DataFrame, x: str, y: str, label: str, xlabel: str, ylabel: str) -> Figure:
    """One marker a row with its intervals both ways, and the front: rows that no other beats in x (more) and y (less).

    The columns are x, y, each with _low and _high (NaN draws no line), and label. Rows are numbered from the top, at
    the right with a thin line to the marker and below with the label: markers that lie together would hide labels
    beside them, and long ones at the right take half of a narrow screen. The front is a dotted line of full markers.
    """
    ends = [f"{column}_{end}" for column in (x, y) for end in ("low", "high")]
    check_columns(table, x, y, label, *ends)
    figure, axes = plain_axes(max(3.8, 0.2 * len(table)) + 0.12 * len(table))
    table = table.sort_values([y, x], ascending=False)
    reached, front = np.inf, []
    for _, row in table.sort_values([x, y], ascending=[False, True]).iterrows():
        if row[y] < reached:
            front.append((row[x], row[y]))
            reached = row[y]
    # right of a point of the front, only the next one's height can be had
    axes.step(*zip(*front, strict=True), where="post", color="0.45", linestyle=":", linewidth=1.2, label="front")
    for _, row in table.iterrows():
        colour, inside = ("#0b5a94", "#0b5a94") if (row[x], row[y]) in front else ("0.35", "white")
        bars = [np.nan_to_num([[abs(row[c] - row[f"{c}_low"])], [abs(row[f"{c}_high"] - row[c])]]) for c in (x, y)]
        axes.errorbar(
            row[x], row[y], xerr=bars[0], yerr=bars[1], fmt="o", color=colour, markersize=6, alpha=0.85,
            capsize=2, linewidth=1.0, markerfacecolor=inside,
        )  # fmt: skip
    # an interval of two seeds may be wider than all that is to be seen
    margin = max(0.03, 0.15 * (table[x].max() - table[x].min()))
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.04, 1.04), xlim=(table[x].min() - margin, table[x].max() + margin))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    number_points(axes, list(zip(table[x], table[y], strict=True)))
    words = ["\n".join(textwrap.wrap(f"{i}  {name}", 30)) for i, name in enumerate(table[label], 1)]
    figure.legend(
        [Line2D([], [], linestyle="none")] * len(words), words, loc="outside lower center", ncols=2, frameon=False,
        handlelength=0, handletextpad=0, columnspacing=1.5, fontsize=SMALL,
    )  # fmt: skip
    return figure


_IGNORES, _KNOWS = ", who ignores it", ", who knows it"


def _attack(name: str) -> str:
    """The name without who attacks: both attackers have one look."""
    return name.removesuffix(_IGNORES).removesuffix(_KNOWS)


def forest(
    table: pd.DataFrame,
    label: str = "label",
    hue: str | None = None,
    criterion: float | None = None,
    xlabel: str = "share of images",
    percent: bool = True,
    criterion_label: str = "criterion",
) -> Figure:
    """A dot with its 95 % interval a line, from the columns value, low and high.

    label: the column that names the lines, in order of appearance; rows of one label and different `hue` lie beside
    each other; an attacker "who ignores it" is drawn hollow, as in `dumbbells`, in the colour of the one "who knows
    it". criterion: a dashed line at the value that the claim asks for, or at another that its label names.
    """
    check_columns(table, label, "value", "low", "high", hue)
    names = list(dict.fromkeys(table[label].astype(str)))
    groups = groups_of(table, hue)
    looks = looks_of(list(dict.fromkeys(_attack(name) for name, _ in groups)))
    entries = pd.concat([group[label].astype(str) for _, group in groups])
    words = {name: textwrap.wrap(name, 26) for name in names}
    # in inches: a line is as high as the dots beside each other in it, and half a dot of air, or as its name
    heights = {name: max(0.13 + 0.16 * (entries == name).sum(), 0.05 + 0.16 * len(words[name])) for name in names}
    tops = dict(zip(names, np.cumsum([0.0, *heights.values()]), strict=False))
    figure, axes = plain_axes(0.9 + sum(heights.values()))
    met = dict.fromkeys(names, 0)
    for name, group in groups:
        colour, marker = looks[_attack(name)]
        places = []
        for entry in group[label].astype(str):
            places.append(tops[entry] + 0.145 + 0.16 * met[entry])
            met[entry] += 1
        ends = [group["value"] - group["low"], group["high"] - group["value"]]
        axes.errorbar(
            group["value"], places, xerr=ends, fmt=marker, color=colour, capsize=2.5, linewidth=1.4, label=name,
            markerfacecolor="white" if name.endswith(_IGNORES) else colour,
        )  # fmt: skip
    for top in list(tops.values())[1:]:
        axes.axhline(top, color="0.92", linewidth=0.8, zorder=0)
    if criterion is not None:
        axes.axvline(criterion, color="0.25", linestyle="--", linewidth=1.2, label=criterion_label)
    middles = [tops[name] + heights[name] / 2 for name in names]
    axes.set_yticks(middles, ["\n".join(words[name]) for name in names])
    axes.set_ylim(sum(heights.values()), 0)
    axes.grid(False, axis="y")
    axes.set_xlabel(xlabel)
    if percent:
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    legend_below(figure, hue or (None if criterion is None else label))
    return figure


def dumbbells(
    table: pd.DataFrame,
    broken: float = 0.5,
    protects: float = 0.2,
    pictures: Mapping[str, Tensor] | None = None,
    attack: str = "",
) -> Figure:
    """A line a row from the attacker who ignores a defense to the one who knows it, and its cost at the right.

    pictures: text -> [C, H, W], a few images beside each other at the top: what an attacker sees of one image.

    table: columns defense; static and adaptive, shares in [0, 1], each with _low and _high (NaN: not measured); cost, a
    text ("" for none measured). attack: what identifies them, below the axis.
    broken, protects: where the two zones begin that say what an interval means.
    """
    ends = [f"{who}{end}" for who in ("static", "adaptive") for end in ("", "_low", "_high")]
    check_columns(table, "defense", "cost", *ends)
    signs = {"static": "◇", "adaptive": "◆"}
    names = []  # beside them, off the scale, whom nobody measured
    for _, row in table.iterrows():
        unknown = [
            f" ({sign}\N{NO-BREAK SPACE}not\N{NO-BREAK SPACE}measured)"
            for who, sign in signs.items()
            if np.isnan(row[who])
        ]
        names.append(textwrap.wrap(f"{row.defense}{''.join(unknown)}", 24 if unknown else 22))
    height = 1.35 + max(0.4, 0.05 + 0.16 * max(map(len, names))) * len(names)
    figure = Figure(figsize=(CHART, height + (1.6 if pictures else 0.0)), layout="constrained")
    chart: Figure | SubFigure = figure
    if pictures:
        rows = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.6, height))
        top, chart = rows[:, 0]
        places = top.subplots(1, len(pictures), squeeze=False)[0]
        for above, (text, image) in zip(places, pictures.items(), strict=True):
            show_image(above, image)
            above.set_xlabel("\n".join(textwrap.wrap(text, 22)), fontsize=SMALL)
    axes = chart.subplots()
    sns.despine(ax=axes)
    axes.axvspan(-0.02, protects, color="#0b5a94", alpha=0.10, linewidth=0)
    axes.axvspan(broken, 1.02, color="#9b2c12", alpha=0.08, linewidth=0)
    for x, name, place in ((-0.015, "protects", "left"), (1.015, "broken", "right")):
        axes.annotate(name, (x, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                      ha=place, va="bottom", fontsize=9.5, style="italic")  # fmt: skip
    looks = {"static": ("ignores the defense", "white", -0.1), "adaptive": ("knows the defense", "0.15", 0.1)}
    for line, (_, row) in enumerate(table.iterrows()):
        axes.plot([row.static, row.adaptive], [line, line], color="0.55", linewidth=1.4, zorder=1)
        for who, (_, fill, shift) in looks.items():
            if np.isnan(row[who]):
                continue
            axes.plot([row[f"{who}_low"], row[f"{who}_high"]], [line + shift] * 2, color="0.3", linewidth=1, zorder=2)
            axes.plot(row[who], line, "D", color="0.15", markerfacecolor=fill, markersize=7, zorder=3, clip_on=False)
        axes.annotate(row.cost or "not measured", (1.04, line), xycoords=("axes fraction", "data"), va="center",
                      fontsize=SMALL, color="0.1" if row.cost else "0.35", annotation_clip=False)  # fmt: skip
    axes.annotate("accuracy lost\n(points)", (1.04, 1.0), xycoords="axes fraction", xytext=(0, 3), va="bottom",
                  textcoords="offset points", fontsize=SMALL, style="italic", annotation_clip=False)  # fmt: skip
    for label, fill, _ in looks.values():
        axes.plot([], [], "D", color="0.15", markerfacecolor=fill, markersize=7, label=label)
    axes.set_yticks(range(len(names)), ["\n".join(name) for name in names])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(table) - 0.5, -0.5))
    axes.set_xlabel("share of images identified" + (f" by\n{textwrap.fill(attack, 48)}" if attack else ""))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(False, axis="y")
    legend_below(chart, "attacker")
    return figure


def fidelity(
    table: pd.DataFrame, published: pd.DataFrame | None = None, hue: str | None = None, panel: str | None = None
) -> Figure:
    """Share of runs below each error threshold (iDLG, Figure 1), with bands; published values as crosses.

    table: rows of `metrics.fidelity_curve` (threshold, value, low, high), with the columns `hue` (the method) and
    `panel` (the data set) where given. published: threshold, value and the same two columns.
    """
    check_columns(table, "threshold", "value", "low", "high", hue, panel)
    panels = groups_of(table, panel)
    figure = Figure(figsize=(CHART, 3.4), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    looks = looks_of([name for name, _ in groups_of(table, hue)])
    for axes, (title, shown) in zip(row, panels, strict=True):
        for name, group in groups_of(shown, hue):
            colour, marker = looks[name]
            group = group.sort_values("threshold")
            axes.plot(group["threshold"], group["value"], color=colour, marker=marker, label=name)
            axes.fill_between(group["threshold"], group["low"], group["high"], color=colour, alpha=0.18, linewidth=0)
        if published is not None:
            check_columns(published, "threshold", "value", hue, panel)
            there = published[published[panel].astype(str) == title] if panel else published
            for name, group in groups_of(there, hue):
                colour = looks[name][0] if name in looks else "0.3"
                words = f"{name}, published" if name else "published"
                axes.plot(group["threshold"], group["value"], "x", color=colour, markersize=8, mew=2, label=words)
        axes.set(xscale="log", xlabel="MSE threshold", ylim=(-0.03, 1.03), title=title or "")
        axes.invert_xaxis()
        sns.despine(ax=axes)
    row[0].set_ylabel("share of runs below")
    row[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    legend_below(figure, hue or (None if published is None else "published"))
    return figure


def histogram(errors: Mapping[str, Any], threshold: float | None = None) -> Figure:
    """How final errors are distributed on a logarithmic axis, one panel a name, with a bin for what diverged.

    errors: name -> MSE of each run; NaN, inf and anything above 100 fall into the bin "diverged", anything below
    1e-8 into the first bin. threshold: a dashed line, below which a run is a success.
    """
    if not errors or any(len(values) == 0 for values in errors.values()):
        raise ValueError(f"errors holds { ({k: len(v) for k, v in errors.items()}) } runs: expected at least one each")
    low, high, step = -8.0, 2.0, 0.5
    edges = np.arange(low, high + step / 2, step)
    figure = Figure(figsize=(CHART, 1.2 + 1.2 * len(errors)), layout="constrained")
    rows = figure.subplots(len(errors), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(rows, errors.items(), strict=True):
        values = np.asarray(values, dtype=float)
        lost = ~(values <= 10.0**high)  # also true for NaN
        logs = np.log10(np.clip(values[~lost], 10.0 ** (low + step / 4), 10.0 ** (high - step / 4)))
        axes.hist(logs, edges, color=looks_of([name])[name][0], edgecolor="white", linewidth=0.6)
        bar = axes.bar(high + 3 * step, lost.sum(), width=2 * step, color="0.35", hatch="///", edgecolor="white")
        axes.bar_label(bar, fontsize=SMALL)
        axes.margins(y=0.15)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylabel("runs")
        axes.set_title(f"{name} ({len(values)} runs)", loc="left")
        if threshold is not None:
            axes.axvline(np.log10(threshold), color="0.25", linestyle="--", linewidth=1.2)
    ticks = np.arange(low, high + 0.1, 2)
    rows[-1].set_xticks([*ticks, high + 3 * step], [*(f"$10^{{{int(t)}}}$" for t in ticks), "diverged"])
    rows[-1].set_xlabel("final MSE" + ("" if threshold is None else f" (dashed: success below {threshold:g})"))
    return figure


def heatmap(
    table: pd.DataFrame, label: str, fmt: str = ".0%", limits: tuple[float, float] | None = (0.0, 1.0)
) -> Figure:
    """A matrix with its numbers: index down, columns across. label: what the numbers are. limits: of the colours.

    fmt: of the numbers; "" writes two digits, and powers of ten.
    """
    values = table.astype(float)
    written = True if fmt else values.map(lambda value: digits(value, 2)).to_numpy()
    figure, axes = plain_axes(1.1 + 0.38 * len(values))
    low, high = limits or (None, None)
    colours = {"vmin": low, "vmax": high, "cmap": "cividis", "cbar_kws": {"label": label}}
    sns.heatmap(values, ax=axes, annot=written, fmt=fmt, annot_kws={"size": SMALL}, **colours)
    axes.set_xlabel(table.columns.name or "")
    axes.set_ylabel(table.index.name or "")
    axes.tick_params(axis="y", rotation=0)
    return figure
