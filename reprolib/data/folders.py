"""Pictures in class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision import datasets

SPLITS = ("train", "test")
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
ANNOTATIONS = "val_annotations.txt"
"""In Tiny-ImageNet's archive, the classes of the pictures in val/images."""


LEFTOVERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders of archivers and file systems; with all whose names begin with a dot they are no classes."""


class Half(Dataset):
    """Every other item of each class of a set that comes without splits: even places are test, odd ones train."""

    def __init__(self, dataset: Dataset, labels: list[int], split: str) -> None:
        place: dict[int, int] = {}
        self.index = []
        for item, label in enumerate(labels):
            place[label] = place.get(label, -1) + 1
            if place[label] % 2 == (split == "train"):
                self.index.append(item)
        self.dataset, self.classes = dataset, dataset.classes

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Image.Image, int]:
        return self.dataset[self.index[item]]

    def path(self, item: int) -> str:
        return path_of(self.dataset, self.index[item])


class _ClassFolders(datasets.ImageFolder):
    """`ImageFolder` over given classes, so that a class missing from one split does not renumber the others."""

    def __init__(self, path: Path, classes: list[str], loader: Callable[[str], Image.Image]) -> None:
        self._all = classes
        super().__init__(
            str(path), loader=loader, is_valid_file=lambda file: not _left_out(Path(file), path), allow_empty=True
        )

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        return self._all, {name: label for label, name in enumerate(self._all)}

    def path(self, item: int) -> str:
        return self.samples[item][0]


def _left_out(file: Path, folder: Path) -> str:
    """What a file in a set's folder is that is no picture of a class; "" for one that is."""
    parts = file.relative_to(folder).parts
    if any(map(_hidden, parts)):
        return "hidden files"
    if file.suffix.lower() not in datasets.folder.IMG_EXTENSIONS:
        return file.suffix.lower() or file.name
    return "pictures outside class folders" if len(parts) == 1 else ""


def left_out_of(folder: Path) -> str:
    """How many files lie beside the pictures, by their kinds, in words; "" for none."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    kinds = Counter(kind for file in files if (kind := _left_out(file, folder)))
    return f"left out: {counted(kinds)}" if kinds else ""


def load_picture(path: str) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def _load_upright(path: str) -> Image.Image:
    return ImageOps.exif_transpose(load_picture(path))


def path_of(dataset: Dataset, item: int) -> str:
    return dataset.path(item) if hasattr(dataset, "path") else f"image {item}"


def subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not _hidden(entry.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFTOVERS


def split_folders(path: Path) -> dict[str, Path]:
    """Which of the splits have a folder of their own; empty where the class folders lie directly in `path`."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        present = [path / name for name in names if (path / name).is_dir() and not _is_unlabelled(path / name)]
        if present:
            found[split] = present[0]
    return found


def _is_unlabelled(folder: Path) -> bool:
    """Whether a split is pictures without classes, like the test split in Tiny-ImageNet's archive."""
    return subfolders(folder) == ["images"] and not (folder / ANNOTATIONS).is_file()


def open_folder(path: Path, split: str, loader: Callable[[str], Image.Image] = _load_upright) -> Dataset:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: expected a folder with {{train,test}}/<class>/* or <class>/*")
    parts = split_folders(path)
    if parts and split not in parts:
        raise FileNotFoundError(f"{path} has no {split} split: expected a folder {' or '.join(SPLIT_FOLDERS[split])}")
    unsorted = [part for part in parts.values() if subfolders(part) == ["images"]]
    if unsorted:
        raise ValueError(
            f"{unsorted[0]} is not sorted by class: move its images into {unsorted[0].name}/<class>/ first"
        )
    classes = sorted({name for part in parts.values() or [path] for name in subfolders(part)})
    dataset = _ClassFolders(parts.get(split, path), classes, loader) if classes else ()
    if len(dataset) == 0:
        left_out = left_out_of(parts.get(split, path)) or "no file is there"
        raise ValueError(
            f"{parts.get(split, path)} holds no pictures in class folders: expected <class>/* with one of the endings "
            f"{', '.join(datasets.folder.IMG_EXTENSIONS)}; {left_out}"
        )
    return dataset if parts else Half(dataset, dataset.targets, split)


def counted(counter: Counter[str]) -> str:
    """The most common entries with their counts, in words."""
    shown = ", ".join(f"{entry} ({number})" for entry, number in counter.most_common(10))
    return shown if len(counter) <= 10 else f"{shown} and {len(counter) - 10} more"
