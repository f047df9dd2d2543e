"""A part's result beside its record: where two runs of one part differ.

It measures nothing and shows nothing.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor

from reprolib.book import results

KEYS = (
    *("network", "trial", "image", "draw", "batch", "attack", "rule", "offset", "classes", "steps", "stage", "case"),
    *("attacker", "outer", "defense", "client", "seed", "tensor", "baseline"),
)
"""Columns by which rows of two tables are found to be the same trial; not where they hold fractions."""

TIMES = ("seconds", "cpu")
"""Seconds of a clock and of a processor: columns and entries that no two runs share."""

WAYS = ("outer", "iteration")
"""Columns of a table that follows searches: a row for each of their steps."""

COSTS = ("evaluations", "spent", "tried", "starts", "rank", "candidate")
"""Whole numbers that depend on the last digits of a search, as which of its pictures is which image."""

EXACT_HITS = ("psnr_dim0",)
"""Measures that are infinite as soon as one pixel is met to its last digit, which another machine need not do."""

ELSEWHERE = 10
"""On another kind of machine one search in so many may end elsewhere: how its sums are rounded decides which."""

THRESHOLD = 100
"""On another kind of machine one image in so many may fall on the other side of a threshold that rounding decides."""

ROUNDED = 5e-7
"""What 32 bits leave open of a number near one, such as a cosine: below it, another machine's digits say nothing."""

BEYOND = 1e12
"""Where a ratio is only as large as rounding leaves its divisor small: two of such size say the same."""

AROUND_ZERO = {"ssim": 0.02}
"""Measures with either sign, and how far apart two of them say the same."""

LOST = 1e-2
"""Mean squared error beyond which a search ended away from its image."""


def by_trial(value: Any) -> bool:
    """Whether a few trials of what a part returned can be compared: it holds tables, and each knows its trials."""
    tables = _tables(value).values()
    return bool(tables) and all("trial" in table for table in tables)


def _named(value: Any) -> Mapping[str, Any]:
    """What a part returned by names; a table alone is called so."""
    if isinstance(value, pd.DataFrame):
        return {"table": value}
    return value if isinstance(value, Mapping) else {}


def _tables(value: Any) -> dict[str, pd.DataFrame]:
    """The tables of what a part returned, by their names."""
    return {name: item for name, item in _named(value).items() if isinstance(item, pd.DataFrame)}


def _of_trials(value: Any, trials: Sequence[int]) -> dict[str, pd.DataFrame]:
    """The rows of these trials in the tables of what a part returned."""
    return {name: table[table.trial.isin(trials)] for name, table in _tables(value).items()}


def differences(recorded: Any, fresh: Any, exact: bool = True, trials: Sequence[int] | None = None) -> list[str]:
    """Where a part that ran again differs from its record, one line each.

    Everything is compared: tables row by row, with the same columns and rows, tensors, texts and numbers; seconds
    never. Rows are matched by the columns of KEYS that they have, and by their order where these are equal.
    exact: every number must be equal to six digits, or to 1e-12, as on the kind of machine that made the record; and
    pictures to a level of 8 bits. Otherwise, on another kind, or where fewer trials ran at once, what was decided must
    be equal, truths, texts and whole numbers other than COSTS, and of fractions the size, because a search is chaotic
    in its last digits: a factor of two, and below one a factor of two in decibels, or ROUNDED, or BEYOND. Tensors
    of fractions are not compared there, nor whether one of EXACT_HITS is infinite; and of a search that ended away from
    its image both times (LOST), at other objectives or errors, only whether its images were identified: chaos alone
    says where it ended. That, and all of searches that were stopped both times before they converged, is compared
    together: not all may have ended better, or all worse (a sign test over searches, 5 %).
    trials: those that ran again, where these are not all (`by_trial`): then the tables are compared in their rows, and
    nothing else.
    """
    if trials is not None:
        if not by_trial(recorded):
            return ["nothing of it can be compared on a few trials: run all of it"]
        recorded, fresh = _of_trials(recorded, trials), _tables(fresh)
    return _compared(recorded, fresh, "", exact)


def ended_elsewhere(recorded: Any, fresh: Any, trials: Sequence[int] | None = None) -> str:
    """In words, how many searches went elsewhere, where that is all in which a part differs from its record.

    trials: those that ran again, where these are not all. For two kinds of machine, and tables of searches: with an
    error "mse" of each, or of their ways with a row for each step (WAYS). At most one in ELSEWHERE of a table's
    searches, or one of at least five; and from six of them on not all for the worse or all for the better (a sign test
    of their errors, 5 %): what is wrong in the code shows in more of them, or in one direction. "" where a part differs
    in more.
    """
    if trials is not None and not by_trial(recorded):
        return ""
    old, new = _ran(recorded, fresh, trials)
    kept_old, kept_new, found, searches = dict(old), dict(new), 0, 0
    for name, table in _tables(old).items():
        if name not in _tables(new) or not {"mse", *WAYS} & {*table}:
            continue
        keys, left, right, more, fewer = _paired(table, new[name])
        if more or fewer:
            return ""
        there, here = table.iloc[left].reset_index(drop=True), new[name].iloc[right].reset_index(drop=True)
        rows = np.zeros(len(here), dtype=bool)
        for unequal in _unequal(here, there, False).values():
            rows |= unequal
        units = pd.Series(_rows(here, [key for key in keys if key != "outer"]))
        other = set(units[rows])
        if len(other) > max(units.nunique() // ELSEWHERE, units.nunique() >= 5):
            return ""
        lower = int((here.mse < there.mse)[rows].sum()) if "mse" in here else 0
        if "mse" in here and other and binomtest(lower, int(rows.sum())).pvalue < 0.05:
            return ""
        same = ~units.isin(other).to_numpy()
        kept_old[name], kept_new[name] = there[same], here[same]
        found, searches = found + len(other), searches + units.nunique()
    if not found or differences(kept_old, kept_new, False):
        return ""
    return f"{found} of {searches} searches ended elsewhere"


def fell_otherwise(recorded: Any, fresh: Any, trials: Sequence[int] | None = None) -> str:
    """In words, how many images fell on the other side of a threshold, where that is all in which a part differs.

    For two kinds of machine, and tables that count: whole numbers and shares of a row's "images", or yes and no of a
    row. Whether an error of float32 is below 1e-10, or an image at the edge of a bin, its last digits decide. At most
    one image in THRESHOLD of a table, or one; and from six rows on not all more or all fewer (a sign test, 5 %). ""
    where a part differs in more, or in anything else. trials: as for `ended_elsewhere`.
    """
    if trials is not None and not by_trial(recorded):
        return ""
    old, new = _ran(recorded, fresh, trials)
    kept_old, kept_new, found, images = dict(old), dict(new), 0, 0
    for name, table in _tables(old).items():
        if name not in _tables(new) or {"mse", *WAYS} & {*table}:
            continue
        keys, left, right, more, fewer = _paired(table, new[name])
        if more or fewer:
            return ""
        there, here = _counted(table.iloc[left]), _counted(new[name].iloc[right])
        kinds = "bi" if "images" in there else "b"
        told = [c for c in here if str(c) in there and {here[c].dtype.kind, there[str(c)].dtype.kind} <= {*kinds}]
        told = [c for c in told if c not in (*keys, "images")]
        gaps = here[told].astype(int) - there[told].astype(int)
        apart, size = int(gaps.abs().max(axis=1).sum()), int(there.images.sum()) if "images" in there else len(there)
        if apart > max(size // THRESHOLD, 1):
            return ""
        whole = [c for c in told if here[c].dtype.kind == "i"] or told
        ways = np.sign(gaps[whole].sum(axis=1))
        if ways.any() and binomtest(int((ways < 0).sum()), int((ways != 0).sum())).pvalue < 0.05:
            return ""
        kept_old[name], kept_new[name] = there, here.assign(**{c: there[str(c)] for c in told})
        found, images = found + apart, images + size
    if not found or differences(kept_old, kept_new, False):
        return ""
    return f"{found} of {images} images fell on the other side of a threshold"


def _counted(table: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the shares of a row's images as whole numbers of them."""
    if "images" not in table:
        return table.reset_index(drop=True)
    counts = {column: table[column] * table.images for column in table if str(column).startswith("share")}
    whole = {str(c): n.round().astype(int) for c, n in counts.items() if (np.abs(n - n.round()) < 1e-6).all()}
    return table.assign(**whole).reset_index(drop=True)


def _ran(recorded: Any, fresh: Any, trials: Sequence[int] | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the record and the new run have by names; of some trials, their rows alone."""
    if trials is None:
        return _named(recorded), _named(fresh)
    return _of_trials(recorded, trials), _tables(fresh)


def beside(recorded: Any, fresh: Any) -> list[str]:
    """Fresh numbers beside recorded ones, one line a column: its mean over the rows that both have."""
    lines, every = [], _tables(fresh)
    for name, old in _tables(recorded).items():
        if (new := every.get(name)) is None:
            continue
        keys, theirs, ours, _, _ = _paired(old, new)
        for column in new.select_dtypes(["bool", "number"]).columns.difference([*keys, *TIMES], sort=False):
            if ours and column in old and old[column].dtype.kind in "biuf":
                here, there = (t[column].iloc[rows].astype(float).mean() for t, rows in ((new, ours), (old, theirs)))
                lines.append(f"{name}, {column}: {here:.6g} here, {there:.6g} recorded")
    return lines


def _compared(old: Any, new: Any, name: str, exact: bool) -> list[str]:
    """Lines on where two values differ, and in what."""
    if dataclasses.is_dataclass(new) and not isinstance(new, type):  # a record holds its fields
        new = {field.name: getattr(new, field.name) for field in dataclasses.fields(new)}
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = [f"{_of(name, key)}: not here" for key in old.keys() - new.keys()]
        lines += [f"{_of(name, key)}: not recorded" for key in new.keys() - old.keys()]
        lines.sort()
        for key in old:
            if key in new and key not in TIMES:
                lines += _compared(old[key], new[key], _of(name, key), exact)
        return lines
    if isinstance(old, pd.DataFrame) and isinstance(new, pd.DataFrame):
        return _compared_tables(old, new, name or "table", exact)
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return _compared_tensors(old, new.detach().cpu(), name, exact)
    kinds = pd.DataFrame | Tensor | Mapping
    lists = isinstance(old, list) and isinstance(new, list | tuple) and len(old) == len(new)
    if lists and any(isinstance(item, kinds | list) for item in old):
        parts = enumerate(zip(old, new, strict=True))
        return [line for i, pair in parts for line in _compared(*pair, _of(name, str(i)), exact)]
    if isinstance(old, kinds) or isinstance(new, kinds):
        return [f"{name or 'the part'} is a {type(new).__name__} here, a {type(old).__name__} recorded"]
    same = _same(results.encoded(old), results.encoded(new), exact)
    return [] if same else [f"{name}: {_short(new)} here, {_short(old)} recorded"]


def _of(name: str, key: str) -> str:
    return f"{name}/{key}" if name else key


def _short(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _compared_tables(old: pd.DataFrame, new: pd.DataFrame, name: str, exact: bool) -> list[str]:
    ours, theirs = ({str(column) for column in table} for table in (new, old))
    lines = [f"{name}: column {column} is not here" for column in sorted(theirs - ours)]
    lines += [f"{name}: column {column} is not recorded" for column in sorted(ours - theirs)]
    keys, left, right, more, fewer = _paired(old, new)
    if more:
        lines.append(f"{name}: {more} of {len(new)} rows have no counterpart in the record")
    if fewer:
        lines.append(f"{name}: {fewer} of {len(old)} recorded rows are not here")
    here, there = new.iloc[right].reset_index(drop=True), old.iloc[left].reset_index(drop=True)
    for column, unequal in _unequal(here, there, exact).items():
        if column not in keys and unequal.any():
            row = int(np.flatnonzero(unequal)[0])
            place = ", ".join(f"{key} {new[key].iloc[right[row]]}" for key in keys) or f"row {right[row]}"
            lines.append(
                f"{name}, {column}: {unequal.sum()} of {len(unequal)} rows differ, first at {place}: "
                f"{_short(here[column][row])} here, {_short(there[str(column)][row])} recorded"
            )
    return lines


def _unequal(here: pd.DataFrame, there: pd.DataFrame, exact: bool) -> dict[Any, np.ndarray]:
    """Which rows differ, a column at a time, in the columns that both tables have."""
    lost, stopped = (np.zeros(len(here), dtype=bool) if exact else of(here, there) for of in (_lost, _stopped))
    found = {}
    theirs = {str(column) for column in there}
    for column in [column for column in here if str(column) in theirs and column not in TIMES]:
        a, b = here[column], there[str(column)]
        equal = _equal(a, b, exact, str(column))
        if not exact and str(column) in AROUND_ZERO:
            equal |= (np.abs(a - b) <= AROUND_ZERO[str(column)]).to_numpy()
        if not exact and column in EXACT_HITS:
            equal |= np.isinf(a.to_numpy()) ^ np.isinf(b.to_numpy())
        chaotic = stopped | lost if column == "identified" else stopped
        if _either_way(here, there, str(column), chaotic):
            equal |= chaotic
        found[column] = ~equal if column == "identified" else ~equal & ~lost
    return found


def _stopped(here: pd.DataFrame, there: pd.DataFrame) -> np.ndarray:
    """Rows of searches that were stopped before they converged, in both tables: where, the last digits decide."""
    if not all("converged" in table for table in (here, there)):
        return np.zeros(len(here), dtype=bool)
    return ~(here.converged.to_numpy(bool) | there.converged.to_numpy(bool))


def _either_way(here: pd.DataFrame, there: pd.DataFrame, column: str, rows: np.ndarray) -> bool:
    """Whether the searches of these rows do not all differ in one direction in a column (a sign test, 5 %)."""
    kinds = {table[column].dtype.kind for table in (here, there)}
    if not kinds <= {*"bif"} or not rows.any() or column in KEYS:
        return False
    gaps = (here[column].astype(float) - there[column].astype(float))[rows]
    search = [key for key in KEYS if key in here and key != "image"]
    ways = np.sign(gaps.groupby([here[key][rows] for key in search]).sum() if search else gaps)
    return not ways.any() or binomtest(int((ways < 0).sum()), int((ways != 0).sum())).pvalue >= 0.05


def _lost(here: pd.DataFrame, there: pd.DataFrame) -> np.ndarray:
    """Rows of searches that ended away from their image in both tables, and not in one place."""
    if not all({"mse", "objective"} <= set(table) for table in (here, there)):
        return np.zeros(len(here), dtype=bool)
    away = (here.mse.to_numpy() > LOST) & (there.mse.to_numpy() > LOST)
    one_place = [_near(here[what].to_numpy(), there[what].to_numpy(), True) for what in ("objective", "mse")]
    return away & ~(one_place[0] & one_place[1])


def _paired(old: pd.DataFrame, new: pd.DataFrame) -> tuple[list[str], list[int], list[int], int, int]:
    """Rows of two tables that are the same trial: the key columns, places in old and in new, and how many are alone."""
    keys = [key for key in KEYS if all(key in table and table[key].dtype.kind != "f" for table in (old, new))]
    found: dict[tuple[str, ...], deque[int]] = {}
    for place, key in enumerate(_rows(old, keys)):
        found.setdefault(key, deque()).append(place)
    left, right = [], []
    for place, key in enumerate(_rows(new, keys)):
        if found.get(key):
            left.append(found[key].popleft())
            right.append(place)
    return keys, left, right, len(new) - len(right), len(old) - len(left)


def _rows(table: pd.DataFrame, keys: list[str]) -> list[tuple[str, ...]]:
    if not keys:
        return [()] * len(table)
    return list(zip(*(map(repr, table[key].tolist()) for key in keys), strict=True))


def _equal(a: pd.Series, b: pd.Series, exact: bool, column: str) -> np.ndarray:
    if a.dtype.kind in "biuf" and b.dtype.kind in "biuf":
        if "f" in (a.dtype.kind, b.dtype.kind):
            return _near(a.to_numpy(float), b.to_numpy(float), exact)
        return (a == b).to_numpy() | (not exact and column in COSTS)

    def plain(item: Any) -> Any:  # what is missing in a column of text is None or NaN, as pandas has it
        return None if isinstance(item, float) and np.isnan(item) else results.encoded(item)

    ours, theirs = (map(plain, side.tolist()) for side in (a, b))
    return np.array([_same(x, y, exact) for x, y in zip(ours, theirs, strict=True)], dtype=bool)


def _near(x: np.ndarray, y: np.ndarray, exact: bool) -> np.ndarray:
    """Whether numbers are equal as `differences` says; NaN and an infinite number equal nothing but themselves."""
    with np.errstate(all="ignore"):
        tolerance = 1e-6 if exact else 0.5
        near = np.abs(x - y) <= tolerance * np.maximum(np.abs(x), np.abs(y)) + 1e-12
        if not exact:
            near |= (np.abs(x - y) <= ROUNDED) | (np.minimum(x, y) >= BEYOND)
            low, high = np.log(np.minimum(x, y)), np.log(np.maximum(x, y))
            near |= (high < 0) & np.isfinite(low) & (high - low <= -0.5 * low)
        return (np.isfinite(x) & np.isfinite(y) & near) | (x == y) | (np.isnan(x) & np.isnan(y))


def _same(x: Any, y: Any, exact: bool) -> bool:
    """Whether two JSON values are equal as `differences` says."""
    if isinstance(x, dict) and isinstance(y, dict):
        return x.keys() == y.keys() and all(key in TIMES or _same(x[key], y[key], exact) for key in x)
    if isinstance(x, list) and isinstance(y, list):
        return len(x) == len(y) and all(_same(one, other, exact) for one, other in zip(x, y, strict=True))
    numbers = [one for one in (x, y) if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) == 2 and any(isinstance(one, float) for one in numbers):
        return bool(_near(np.array(float(x)), np.array(float(y)), exact))
    return type(x) is type(y) and x == y


def _compared_tensors(old: Tensor, new: Tensor, name: str, exact: bool) -> list[str]:
    if old.ndim >= 4 and old.shape[1:] == new.shape[1:] and len(old) < len(new):
        new = new[: len(old)]  # a record may keep the first pictures only
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        shapes = [f"{str(one.dtype).removeprefix('torch.')}{list(one.shape)}" for one in (new, old)]
        return [f"{name} is {shapes[0]} here, {shapes[1]} recorded"]
    if not old.is_floating_point():
        unequal = old != new
    elif not exact:
        return []
    else:
        unequal = ~torch.from_numpy(_near(new.double().numpy(), old.double().numpy(), exact))
        levels = old.double() * 255
        if old.numel() and (levels - levels.round()).abs().max() < 1e-3:  # pictures are kept in 8 bits
            unequal &= (levels - new.double() * 255).abs().nan_to_num(nan=256.0) > 0.51
    if not unequal.any():
        return []
    return [f"{name}: {int(unequal.sum())} of {unequal.numel()} numbers differ, by up to {_gap(old, new):.3g}"]


def _gap(old: Tensor, new: Tensor) -> float:
    return float((old.double() - new.double()).abs().nan_to_num(nan=torch.inf).max())
