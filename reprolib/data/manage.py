"""What is at hand, whether it is whole, and how to get it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from reprolib.data.folders import SPLITS, counted, left_out_of, open_folder, path_of, split_folders
from reprolib.data.named import check_size, load
from reprolib.data.offline import OFFLINE_SETS
from reprolib.data.papers import NAMES, PAPER_SETS, named_set
from reprolib.data.pictures import read, size_words
from reprolib.data.roots import download_into, find_root, how_to_get, open_set, place_of, splits_of


def catalogue(root: str | Path | None = None) -> pd.DataFrame:
    """One row a named set: name, present, where, splits, classes, shape, how to get it.

    Raises FileNotFoundError where the data root (argument or REPROLIB_DATA) is given and is no folder.
    """
    found_root = find_root(root)
    rows = [
        {
            "name": name,
            "present": True,
            "where": "installed packages",
            "splits": ", ".join(SPLITS),
            "classes": str(offline.num_classes),
            "shape": "x".join(map(str, offline.image_shape)),
            "how to get it": f"comes with the book: {offline.title}",
        }
        for name, offline in OFFLINE_SETS.items()
    ]
    for name, paper_set in PAPER_SETS.items():
        splits = splits_of(paper_set, found_root) if found_root else ()
        where = ""
        if splits:
            where = place_of(paper_set, found_root, splits[0])
        rows.append(
            {
                "name": name,
                "present": bool(splits),
                "where": where,
                "splits": ", ".join(splits),
                "classes": str(paper_set.num_classes or "as found"),
                "shape": "x".join(map(str, paper_set.image_shape)),
                "how to get it": how_to_get(name),
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Check:
    """What `check` found: `lines` for the reader, and `problems`, empty where all is well."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        verdict = [f"problem: {problem}" for problem in self.problems] or ["no problem found"]
        return "\n".join([*self.lines, *verdict])


def check(name_or_path: str | Path, root: str | Path | None = None, size: int | None = None) -> Check:
    """Decode every picture of a named set or a folder and report counts, classes, sizes, modes and unreadable files.

    What it finds no problem in, `load` opens with this `size`.
    Raises ValueError or FileNotFoundError, as `load` does, where there is nothing to look at.
    """
    name = str(name_or_path)
    if name in OFFLINE_SETS:
        counts = [f"{split}: {len(load(name, split))} images" for split in SPLITS]
        return Check((f"{name}: {OFFLINE_SETS[name].title}", *counts), ())
    if name in PAPER_SETS:
        paper_set, found_root = PAPER_SETS[name], find_root(root)
        splits = splits_of(paper_set, found_root) if found_root else ()
        if not splits:
            raise FileNotFoundError(f"{name!r} is not under a data root. {how_to_get(name)}")
        opened = {split: open_set(name, found_root, split) for split in splits}
        side = None if size or paper_set.fit != "exact" else paper_set.image_shape[:0:-1]
    else:
        path = Path(name.removeprefix("folder:")).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(f"{name!r} is neither a folder nor a known data set: {', '.join(NAMES)}")
        opened = {split: open_folder(path, split) for split in tuple(split_folders(path)) or SPLITS}
        side = None
    check_size(name if name in PAPER_SETS else f"folder:{name}", size)
    sizes: Counter[tuple[int, int]]
    lines, problems, sizes = [f"{name}: {', '.join(opened)}"], [], Counter()
    for split, dataset in opened.items():
        classes: Counter[str]
        modes: Counter[str]
        classes, modes = Counter(), Counter()
        for item in range(len(dataset)):
            try:
                picture, label = read(dataset, item, name)
            except ValueError as error:
                problems.append(str(error))
                continue
            classes[dataset.classes[label]] += 1
            modes[picture.mode] += 1
            sizes[picture.size] += 1
            if side and picture.size != side:
                problems.append(
                    f"{path_of(dataset, item)} is {size_words(picture.size)} pixels, expected {size_words(side)}"
                )
        lines.append(f"{split}: {classes.total()} images, modes {counted(modes)}")
        lines.append(f"{split}: {len(classes)} of {len(dataset.classes)} classes: {counted(classes)}")
        if name not in PAPER_SETS and (left_out := left_out_of(split_folders(path).get(split, path))):
            lines.append(f"{split}: {left_out}")
    lines.append(f"sizes: {counted(Counter({size_words(pixels): number for pixels, number in sizes.items()}))}")
    if len(sizes) > 1 and name not in PAPER_SETS and not size:
        problems.append(f"pictures of {len(sizes)} sizes: a folder needs one size for all, resize them or give a size")
    return Check(tuple(lines), tuple(problems))


def download(name: str, root: str | Path | None = None) -> Path:
    """Fetch a set of the papers with torchvision into the data root (created if need be); returns the root.

    The files go to a folder beside their place and move there when all of them are complete, so nothing half-written
    is ever taken for a set. Raises ValueError for sets that torchvision cannot fetch, RuntimeError for a failure.
    """
    if name in OFFLINE_SETS:
        raise ValueError(f"{name!r} comes with the installed packages: nothing to download")
    paper_set = named_set(name)
    if not paper_set.downloads:
        raise ValueError(f"{name!r} cannot be downloaded for you. {how_to_get(name)}")
    value = root or os.environ.get("REPROLIB_DATA")
    if not value:
        raise FileNotFoundError("no data root to download into: pass root=... or set REPROLIB_DATA")
    path = Path(value).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    if splits_of(paper_set, path) != SPLITS:
        download_into(name, path)
    return path
