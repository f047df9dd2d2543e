"""Where under a data root a paper's set lies, and what to do where it is not there."""

from __future__ import annotations

import os
import reprlib
import shutil
from pathlib import Path

from torch.utils.data import Dataset

from reprolib.data.folders import SPLITS, load_picture, open_folder, split_folders, subfolders
from reprolib.data.papers import PAPER_SETS, PaperSet

INNER_FILES = {"cifar10": ("cifar-10-batches-py/data_batch_1",), "cifar100": ("cifar-100-python/meta",)}
"""What lies in folders that `PaperSet.files` names as a whole."""


def find_root(root: str | Path | None) -> Path | None:
    given = root is not None and not (isinstance(root, str) and not root)
    origin, value = ("root", root) if given else ("REPROLIB_DATA", os.environ.get("REPROLIB_DATA"))
    if value is None or isinstance(value, str) and not value:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{origin} must be a str or a Path, got {reprlib.repr(value)}")
    path = Path(value).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{origin}={str(value)!r} is not a folder: create it, correct it, or leave it unset")
    if not any(splits_of(paper_set, path) for paper_set in PAPER_SETS.values()):
        _refuse_a_set(path, f"{origin}={str(value)!r}")
    return path


def _refuse_a_set(path: Path, what: str) -> None:
    """Raise ValueError where a folder is a set, or a part of one, by its name or by what it holds."""
    for name, paper_set in PAPER_SETS.items():
        files = [*(paper_set.files or {}).get("train", ()), *INNER_FILES.get(name, ())]
        parts = [Path(file).parts for file in files]
        inner = [path.joinpath(*file[deep:]) for file in parts for deep in range(1, len(file))]
        inner = [file for file in inner if file.suffix != ".tgz"]  # an archive may lie anywhere
        named = path.resolve().name in (*paper_set.folders, *(file[-1] for file in parts))
        if named and subfolders(path) or any(file.exists() for file in inner):
            raise ValueError(f"{what} is (a part of) the set {name!r}: name the folder above it. {how_to_get(name)}")
    if found := split_folders(path):
        raise ValueError(f"{what} holds the folder {min(found.values()).name} of a set: name the folder above it")


def how_to_get(name: str) -> str:
    paper_set = PAPER_SETS[name]
    places = [f"{paper_set.folders[0]}/{{train,test}}/<class>/*"]
    if paper_set.files:
        places.append(" + ".join(paper_set.files["test"]) + " (torchvision's layout)")
    how = f"Put it at {' or '.join(places)} of the data root"
    if paper_set.downloads:
        return (
            f"{how}, or download it: `reprolib data download {name}` (in Python reprolib.data.download({name!r}, root))"
        )
    return f"{how} ({paper_set.by_hand})"


def _in_torchvision_layout(paper_set: PaperSet, root: Path, split: str) -> bool:
    return paper_set.files is not None and all((root / file).exists() for file in paper_set.files[split])


def lacking(paper_set: PaperSet, root: Path, split: str) -> list[str]:
    """The files of torchvision's layout that are not there, where others of them are."""
    files = (paper_set.files or {}).get(split, ())
    absent = [file for file in files if not (root / file).exists()]
    return absent if len(absent) < len(files) else []


def _as_folder(paper_set: PaperSet, root: Path) -> str | None:
    """The folder, relative to the root, that holds the set in class folders."""
    other = {root / file for files in (paper_set.files or {}).values() for file in files}
    for folder in paper_set.folders:
        if (root / folder).is_dir() and any(root / folder / name not in other for name in subfolders(root / folder)):
            return folder
    return None


def splits_of(paper_set: PaperSet, root: Path) -> tuple[str, ...]:
    """The splits of a set that are under the root, in either layout."""
    there = [split for split in SPLITS if _in_torchvision_layout(paper_set, root, split)]
    folder = _as_folder(paper_set, root)
    if not there and folder:
        there = list(split_folders(root / folder)) or list(SPLITS)
    return tuple(there)


def place_of(paper_set: PaperSet, root: Path, split: str) -> str:
    """The folder of a set that is there, relative to the root."""
    if _in_torchvision_layout(paper_set, root, split):
        return Path(paper_set.files[split][0]).parts[0]  # type: ignore[index]
    return _as_folder(paper_set, root)  # type: ignore[return-value]  # one of the layouts is there


def open_set(name: str, root: Path, split: str) -> Dataset:
    paper_set, where = PAPER_SETS[name], place_of(PAPER_SETS[name], root, split)
    if not _in_torchvision_layout(paper_set, root, split):
        return open_folder(root / where, split, load_picture)  # as the papers read them: no EXIF
    try:
        return paper_set.opened(root, split, False)  # type: ignore[misc]  # a set in this layout has a reader
    except Exception as error:  # each reader of torchvision fails in its own way on a damaged file
        raise ValueError(
            f"{name!r} in {root / where} is incomplete or damaged ({error}): remove it and get it again. "
            f"{how_to_get(name)}"
        ) from error


def download_into(name: str, root: Path) -> None:
    paper_set = PAPER_SETS[name]
    if not paper_set.downloads:
        raise ValueError(f"{name!r} cannot be downloaded for you. {how_to_get(name)}")
    staging = root / f".download-{name}-{os.getpid()}"
    try:
        for split in SPLITS:
            paper_set.opened(staging, split, True)  # type: ignore[misc]  # asked above: it downloads
        for part in staging.iterdir():
            if part.is_dir():  # the archives beside the folders have served
                part.rename(root / part.name)
    except Exception as error:  # network, disk, checksum, a missing downloader: torchvision raises them all
        raise RuntimeError(
            f"downloading {name!r} failed ({type(error).__name__}: {error}) and nothing was kept. {how_to_get(name)}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
