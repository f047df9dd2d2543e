"""Named image sets: what the papers attack, and offline stand-ins out of scikit-image and scikit-learn.

Sets of the papers lie under one data root (argument `root`, or the environment variable REPROLIB_DATA) in torchvision's
own layout or as class folders (torchvision's `ImageFolder`): `<root>/cifar10/{train,test}/<class>/*`. A set without
split folders is divided by us, every other image of a class: the first, third, ... are `test`, the others `train`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.resources import as_file, files
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

SPLITS = ("train", "test")
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
INNER_FILES = {"cifar10": ("cifar-10-batches-py/data_batch_1",), "cifar100": ("cifar-100-python/meta",)}
"""What lies in folders that `PaperSet.files` names as a whole."""
ANNOTATIONS = "val_annotations.txt"
"""In Tiny-ImageNet's archive, the classes of the pictures in val/images."""
LEFTOVERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders of archivers and file systems; with all whose names begin with a dot they are no classes."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels, and where they come from.

    images: [N, C, H, W] float32 in [0, 1]. labels: [N] int64 in 0..len(classes)-1. `source` is a sentence for the
    reader; `asked` is the name that was asked for, which differs from `name` where a substitute stands in.
    Raises ValueError for other shapes, values or labels.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    asked: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) == 0:
            raise ValueError(
                f"images of {self.name!r}: expected shape [N, C, H, W] with N > 0, got {self.images.shape}"
            )
        if self.images.dtype != torch.float32 or not ((self.images >= 0) & (self.images <= 1)).all():
            raise ValueError(
                f"images of {self.name!r}: expected float32 values in [0, 1], got {self.images.dtype} values"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(f"labels of {self.name!r}: expected {len(self.images)} int64, got {self.labels.shape}")
        if not ((self.labels >= 0) & (self.labels < len(self.classes))).all():
            raise ValueError(f"labels of {self.name!r}: expected 0..{len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def substitute(self) -> bool:
        return self.name != self.asked

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def mean_image(self) -> Tensor:
        """[C, H, W]: the average image, a baseline that any reconstruction must beat."""
        return self.images.mean(0)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over pixels, labels and class names."""
        digest = hashlib.sha256(repr((self.image_shape, self.classes)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def batches(self, size: int, count: int, seed: int = 0, distinct_labels: bool = False) -> tuple[Tensor, Tensor]:
        """Draw `count` victims' batches of `size` images; no image occurs twice.

        Returns images [T, B, C, H, W] and labels [T, B] with T = count, B = size. The first t batches are the same for
        every count >= t. `distinct_labels` keeps the labels within a batch different from each other.
        Raises ValueError where the set holds too few images or classes.
        """
        for argument, value in (("size", size), ("count", count)):
            if value < 1:
                raise ValueError(f"{argument}={value}: expected at least 1")
        if size * count > len(self):
            raise ValueError(
                f"size={size} x count={count} needs {size * count} images, but {self.name!r} ({self.split}) holds "
                f"{len(self)} here: ask for fewer, or load more"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        index = self._distinct(order.tolist(), size, count) if distinct_labels else order[: size * count]
        index = index.view(count, size)
        return self.images[index], self.labels[index]

    def after(self, count: int, seed: int = 0) -> ImageSet:
        """The set without the images that the first `count` trials of one image under that seed meet (`batches`).

        For a run that must not see the images of an earlier one. Raises ValueError where nothing would be left.
        """
        if not 0 <= count < len(self):
            raise ValueError(f"count={count}: {self.name!r} ({self.split}) holds {len(self)} images here")
        kept = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[count:]
        return replace(self, images=self.images[kept], labels=self.labels[kept])

    def _distinct(self, order: list[int], size: int, count: int) -> Tensor:
        labels = self.labels.tolist()
        if size > len(set(labels)):
            raise ValueError(
                f"size={size} with distinct labels: the {len(self)} images of {self.name!r} ({self.split}) are of "
                f"{len(set(labels))} classes"
            )
        chosen: list[int] = []
        for trial in range(count):
            batch: dict[int, int] = {}
            for position in order:
                if len(batch) == size:
                    break
                batch.setdefault(labels[position], position)
            if len(batch) < size:
                raise ValueError(
                    f"count={count}: only {trial} batches of {size} distinct labels can be drawn from the {len(self)} "
                    f"images of {self.name!r} ({self.split}): ask for fewer, or load more"
                )
            taken = set(batch.values())
            order = [position for position in order if position not in taken]
            chosen.extend(batch.values())
        return torch.tensor(chosen)


# ---------------------------------------------------------------------------------------------- sets of the papers


@dataclass(frozen=True)
class PaperSet:
    """What is known of a set of the papers before it is opened.

    image_shape is the papers' resolution; `fit` says how a picture gets there (`_fitted`). num_classes is None where
    the copy at hand decides.
    `files` are what torchvision's layout must hold for a split to be there; `opened` opens it.
    """

    title: str
    image_shape: tuple[int, int, int]
    num_classes: int | None
    stand_in: str
    fit: str = "exact"
    folders: tuple[str, ...] = ()
    files: dict[str, tuple[str, ...]] | None = None
    opened: Callable[[Path, str, bool], Dataset] | None = None
    downloads: bool = False
    by_hand: str = ""


def _mnist(root: Path, split: str, download: bool) -> Dataset:
    return datasets.MNIST(root, train=split == "train", download=download)


def _cifar10(root: Path, split: str, download: bool) -> Dataset:
    return datasets.CIFAR10(root, train=split == "train", download=download)


def _cifar100(root: Path, split: str, download: bool) -> Dataset:
    return datasets.CIFAR100(root, train=split == "train", download=download)


def _svhn(root: Path, split: str, download: bool) -> Dataset:
    dataset = datasets.SVHN(root / "svhn", split=split, download=download)
    dataset.classes = [str(digit) for digit in range(10)]
    return dataset


def _lfw(root: Path, split: str, download: bool) -> Dataset:
    dataset = datasets.LFWPeople(root, split=split, download=download)
    dataset.classes = list(dataset.class_to_idx)
    return dataset


def _celeba(root: Path, split: str, download: bool) -> Dataset:
    # GGL's task: attribute 20, "Male", as their code has it.
    dataset = datasets.CelebA(root, split=split, download=download, target_transform=lambda attributes: attributes[20])
    dataset.classes = ["female", "male"]
    return dataset


def _caltech256(root: Path, split: str, download: bool) -> Dataset:
    dataset = datasets.Caltech256(root, download=download)
    dataset.classes = dataset.categories
    return _Half(dataset, dataset.y, split)


_MNIST_FILES = tuple(
    f"MNIST/raw/{part}-ubyte"
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
)

PAPER_SETS: dict[str, PaperSet] = {
    "mnist": PaperSet(
        title="MNIST (LeCun et al., 1998)",
        image_shape=(1, 28, 28),
        num_classes=10,
        stand_in="digits",
        folders=("mnist",),
        files={"train": _MNIST_FILES, "test": _MNIST_FILES},
        opened=_mnist,
        downloads=True,
    ),
    "cifar10": PaperSet(
        title="CIFAR-10 (Krizhevsky, 2009)",
        image_shape=(3, 32, 32),
        num_classes=10,
        stand_in="photos",
        folders=("cifar10",),
        files={"train": ("cifar-10-batches-py",), "test": ("cifar-10-batches-py",)},
        opened=_cifar10,
        downloads=True,
    ),
    "cifar100": PaperSet(
        title="CIFAR-100 (Krizhevsky, 2009)",
        image_shape=(3, 32, 32),
        num_classes=100,
        stand_in="photos",
        folders=("cifar100",),
        files={"train": ("cifar-100-python",), "test": ("cifar-100-python",)},
        opened=_cifar100,
        downloads=True,
    ),
    "svhn": PaperSet(
        title="SVHN (Netzer et al., 2011)",
        image_shape=(3, 32, 32),
        num_classes=10,
        stand_in="photos",
        folders=("svhn",),
        files={"train": ("svhn/train_32x32.mat",), "test": ("svhn/test_32x32.mat",)},
        opened=_svhn,
        downloads=True,
    ),
    "lfw": PaperSet(
        title="LFW (Huang et al., 2007), whole pictures squeezed to 32x32",
        image_shape=(3, 32, 32),
        num_classes=None,
        stand_in="faces",
        fit="whole",
        folders=("lfw", "lfw_funneled", "lfw-deepfunneled"),
        files={
            "train": ("lfw-py/lfw_funneled", "lfw-py/peopleDevTrain.txt"),
            "test": ("lfw-py/lfw_funneled", "lfw-py/peopleDevTest.txt"),
        },
        opened=_lfw,
        by_hand="its authors' site no longer serves it: take a copy with one folder a person",
    ),
    "imagenet": PaperSet(
        title="ImageNet (Russakovsky et al., 2015), centre crops of 224x224",
        image_shape=(3, 224, 224),
        num_classes=None,
        stand_in="photos",
        fit="crop",
        folders=("imagenet", "imagenet-sample"),
        by_hand="register at https://image-net.org",
    ),
    "caltech256": PaperSet(
        title="Caltech-256 (Griffin et al., 2007), centre crops of 224x224",
        image_shape=(3, 224, 224),
        num_classes=None,
        stand_in="photos",
        fit="crop",
        folders=("caltech256",),
        files={"train": ("caltech256/256_ObjectCategories",), "test": ("caltech256/256_ObjectCategories",)},
        opened=_caltech256,
        downloads=True,
    ),
    "celeba": PaperSet(
        title="CelebA (Liu et al., 2015), centre crops of 32x32, labelled by its attribute Male",
        image_shape=(3, 32, 32),
        num_classes=2,
        stand_in="faces",
        fit="crop",
        folders=("celeba",),
        files={
            split: ("celeba/img_align_celeba", "celeba/list_attr_celeba.txt", "celeba/list_eval_partition.txt")
            for split in SPLITS
        },
        opened=_celeba,
        downloads=True,
    ),
    "tiny-imagenet": PaperSet(
        title="Tiny ImageNet (Stanford CS231n)",
        image_shape=(3, 64, 64),
        num_classes=None,
        stand_in="photos",
        folders=("tiny-imagenet", "tiny-imagenet-200"),
        by_hand="http://cs231n.stanford.edu/tiny-imagenet-200.zip, its val images sorted into class folders",
    ),
}

# ------------------------------------------------------------------------------------------------- offline sets

# Ten photographs, as CIFAR-10 has ten classes. The tiles' scales (side of a tile in the photograph's pixels) go from a
# detail to most of the subject; every photograph's left 60 % holds its subject and is the test region.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
TEST_REGION = 0.6
TILE_SIDES = (64, 96, 144, 208)
TILES_PER_PHOTOGRAPH = {"train": 200, "test": 100}
FLAT = 0.05  # tiles with a smaller standard deviation of brightness show nothing


@dataclass(frozen=True)
class OfflineSet:
    """A set made of files inside installed packages. `made(split, size)` gives images, labels and class names."""

    title: str
    image_shape: tuple[int, int, int]
    num_classes: int
    made: Callable[[str, int], tuple[Tensor, Tensor, tuple[str, ...]]]


def _shipped(package: str, path: str) -> Path:
    with as_file(files(package) / path) as found:
        if not found.is_file():
            raise FileNotFoundError(f"the installed {package} lacks {path}: reinstall it from its wheel")
        return found


@lru_cache
def _photos(split: str, size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    tiles, labels = [], []
    for label, (package, path) in enumerate(PHOTOGRAPHS.values()):
        with Image.open(_shipped(package, path)) as photograph:
            border = round(photograph.width * TEST_REGION)
            left, right = (0, border) if split == "test" else (border, photograph.width)
            region = photograph.convert("RGB").crop((left, 0, right, photograph.height))
        boxes = _boxes(region, TILES_PER_PHOTOGRAPH[split])
        tiles.extend(_pixels(region.resize((size, size), Image.Resampling.BOX, box)) for box in boxes)
        labels.extend([label] * len(boxes))
    return torch.stack(tiles), torch.tensor(labels), tuple(PHOTOGRAPHS)


def _boxes(region: Image.Image, count: int) -> list[tuple[int, int, int, int]]:
    """At most `count` squares that show something and differ: every scale, on a grid of a quarter of their side."""
    boxes, tiles = [], []
    for side in TILE_SIDES:
        step = side // 4
        rows, columns = (region.height - side) // step + 1, (region.width - side) // step + 1
        if min(rows, columns) < 1:
            continue
        boxes += [(c * step, r * step, c * step + side, r * step + side) for r in range(rows) for c in range(columns)]
        # one shrunken picture holds all tiles of a scale, at 8 pixels a step
        whole = (columns + 3, rows + 3)
        small = region.resize([8 * n for n in whole], Image.Resampling.BOX, (0, 0, *(step * n for n in whole)))
        tiles.append(_pixels(small).unfold(1, 32, 8).unfold(2, 32, 8).flatten(1, 2).transpose(0, 1))
    tiles = torch.cat(tiles)
    shown = (tiles.mean(1).flatten(1).std(1) > FLAT).nonzero().flatten()
    return [boxes[shown[index]] for index in _spread(tiles[shown], count).tolist()]


def _spread(tiles: Tensor, count: int) -> Tensor:
    """Indices of `count` tiles far from each other: each next one is the farthest from those taken, at 8x8 pixels."""
    flat = F.adaptive_avg_pool2d(tiles, 8).flatten(1)
    chosen = [int(flat.std(1).argmax())]
    nearest = torch.full((len(flat),), torch.inf)
    while len(chosen) < min(count, len(flat)):
        nearest = torch.minimum(nearest, (flat - flat[chosen[-1]]).square().mean(1))
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def _faces(split: str, size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    # The first 100 of 200 are faces, the others background (docstring of skimage.data.lfw_subset).
    crops = torch.from_numpy(np.load(_shipped("skimage", "data/lfw_subset.npy"))[:100]).float()[:, None]
    kept = torch.arange(80) if split == "test" else torch.arange(80, 100)
    return _resized(crops[kept], size), kept, tuple(f"face {number:02d}" for number in range(100))


def _digits(split: str, size: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    bunch = load_digits()
    kept = slice(-1000, None) if split == "test" else slice(None, -1000)
    images = torch.from_numpy(bunch.images[kept] / 16).float()[:, None]
    return _resized(images, size), torch.from_numpy(bunch.target[kept]).long(), tuple(map(str, range(10)))


def _resized(images: Tensor, size: int) -> Tensor:
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


OFFLINE_SETS: dict[str, OfflineSet] = {
    "photos": OfflineSet(
        title="tiles of ten photographs that scikit-image and scikit-learn ship, one class a photograph, "
        "train and test tiles from different regions",
        image_shape=(3, 32, 32),
        num_classes=len(PHOTOGRAPHS),
        made=_photos,
    ),
    "faces": OfflineSet(
        title="100 grey face crops of LFW that scikit-image ships without their names, each its own class",
        image_shape=(1, 25, 25),
        num_classes=100,
        made=_faces,
    ),
    "digits": OfflineSet(
        title="handwritten digits of 8x8 pixels that scikit-learn ships (UCI optdigits)",
        image_shape=(1, 8, 8),
        num_classes=10,
        made=_digits,
    ),
}

NAMES = (*OFFLINE_SETS, *PAPER_SETS)


# ------------------------------------------------------------------------------------------------------- opening


def load(
    name: str,
    split: str = "test",
    count: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    download: bool = False,
    size: int | None = None,
    grey: bool = False,
) -> ImageSet:
    """Open the set called `name`: an offline one, one of the papers', or `folder:PATH` (images of your own).

    The images come in an order drawn from `seed`; `count` keeps the first ones, and only those are decoded. Pictures
    in grey, with a palette or with transparency become RGB (transparency is dropped); those of `mnist` become grey.
    16 bits a channel are rounded to 8, and of an animation the first picture counts.
    `folder:PATH` holds PATH/{train,test}/<class>/* or PATH/<class>/*, all pictures of one size. They are turned upright
    as their EXIF orientation says. Hidden files and those with other endings are left out, which `source` says.
    `download` fetches a missing set where torchvision can. size: the side of the square to which pictures are brought:
    those of a folder by the square at their centre, resized; those of a paper's set, in place of the papers' own
    resolution, by their shorter side, and the centre kept. grey: pictures of a folder get 1 channel and not 3.
    Raises ValueError for unknown names and splits, unreadable or ill-sized pictures, impossible counts and sizes, and a
    data root that is a set itself; FileNotFoundError for a set or data root that is not there.

    >>> from reprolib import data
    >>> photos = data.load("photos", count=100)
    >>> len(photos), photos.image_shape, photos.classes[:2]
    (100, (3, 32, 32), ('astronaut', 'camera'))
    >>> images, labels = photos.batches(size=4, count=2)
    >>> images.shape, labels.shape
    (torch.Size([2, 4, 3, 32, 32]), torch.Size([2, 4]))
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    folder = name.startswith("folder:")
    _check_size(name, size)
    if grey and not folder:
        raise ValueError(f"grey={grey!r} of {name!r}: only the pictures of folder:PATH can be asked for in grey")
    if name in OFFLINE_SETS:
        return _load_offline(name, OFFLINE_SETS[name].image_shape, split, count, seed, asked=name)
    if folder:
        path = Path(name.removeprefix("folder:")).expanduser()
        dataset = _open_folder(path, split)
        channels = 1 if grey else 3
        images, labels = _decode(dataset, name, count, seed, (channels, size, size) if size else channels, "square")
        resized = f", the square at the centre of each resized to {size}x{size}" if size else ""
        left_out = _all_left_out(_split_folders(path).get(split, path))
        # Names go into results and pages, where a machine's paths have no place.
        source = f"Images of the folder {path.name}, {split} split{', in grey' if grey else ''}{resized}"
        name, source = f"folder:{path.name}", f"{source}; {left_out}." if left_out else f"{source}."
        return ImageSet(name, split, images, labels, tuple(dataset.classes), source, asked=name)
    paper_set = _sized(_paper_set(name), size)
    found_root = _data_root(root)
    if found_root is None:
        raise FileNotFoundError(f"{name!r} needs a data root: pass root=... or set REPROLIB_DATA. {_how_to_get(name)}")
    if download and not _splits(paper_set, found_root):
        _download_into(name, found_root)
    if split not in _splits(paper_set, found_root):
        raise FileNotFoundError(f"the {split} split of {name!r} is not under {found_root}. {_how_to_get(name)}")
    dataset, where = _open(name, found_root, split), _where(paper_set, found_root, split)
    if paper_set.num_classes not in (None, len(dataset.classes)):
        raise ValueError(
            f"{name!r} in {found_root / where} has {len(dataset.classes)} classes, expected {paper_set.num_classes} "
            "(a class without images needs its empty folder)"
        )
    images, labels = _decode(dataset, name, count, seed, paper_set.image_shape, paper_set.fit)
    resized = "" if size is None else f", brought to {size}x{size}"
    source = f"{paper_set.title}, {split} split, from {where} of the data root{resized}."
    return ImageSet(name, split, images, labels, tuple(dataset.classes), source, name)


def choose(
    name: str,
    split: str = "test",
    count: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    size: int | None = None,
    grey: bool = False,
) -> ImageSet:
    """Open the paper's set where it is under the data root, and otherwise the offline set of its kind.

    The substitute has the paper's image shape, its own classes, and `asked` set to `name`; it is smaller, and one with
    fewer than `count` images gives all it has. A set that is there and broken, or there without the split, is an error,
    not a reason to substitute. Arguments and errors as in `load`.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    if name in OFFLINE_SETS or name.startswith("folder:") or grey:
        return load(name, split, count, seed, size=size, grey=grey)
    paper_set = _paper_set(name)
    _check_size(name, size)
    found_root = _data_root(root)
    if found_root is not None and _splits(paper_set, found_root):
        return load(name, split, count, seed, found_root, size=size)
    shape = _sized(paper_set, size).image_shape
    return _load_offline(paper_set.stand_in, shape, split, count, seed, asked=name)


def _check_size(name: str, size: int | None) -> None:
    whole = isinstance(size, Integral) and not isinstance(size, bool)
    sizable = name in PAPER_SETS or name.startswith("folder:")
    if size is not None and not (whole and size >= 8 and sizable):
        raise ValueError(
            f"size={size!r} of {name!r}: expected an integer of at least 8, and folder:PATH or one of "
            f"{', '.join(PAPER_SETS)}"
        )


def _sized(paper_set: PaperSet, size: int | None) -> PaperSet:
    if size is None:
        return paper_set
    return replace(paper_set, image_shape=(paper_set.image_shape[0], size, size), fit="crop")


def _paper_set(name: str) -> PaperSet:
    if name not in PAPER_SETS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(NAMES)}, or folder:PATH")
    return PAPER_SETS[name]


def _data_root(root: str | Path | None) -> Path | None:
    origin, value = ("root", root) if root else ("REPROLIB_DATA", os.environ.get("REPROLIB_DATA"))
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{origin}={str(value)!r} is not a folder: create it, correct it, or leave it unset")
    if not any(_splits(paper_set, path) for paper_set in PAPER_SETS.values()):
        _refuse_a_set(path, f"{origin}={str(value)!r}")
    return path


def _refuse_a_set(path: Path, what: str) -> None:
    """Raise ValueError where a folder is a set, or a part of one, by its name or by what it holds."""
    for name, paper_set in PAPER_SETS.items():
        files = [*(paper_set.files or {}).get("train", ()), *INNER_FILES.get(name, ())]
        parts = [Path(file).parts for file in files]
        inner = [path.joinpath(*file[deep:]) for file in parts for deep in range(1, len(file))]
        named = path.resolve().name in (*paper_set.folders, *(file[-1] for file in parts))
        if named and _subfolders(path) or any(file.exists() for file in inner):
            raise ValueError(f"{what} is (a part of) the set {name!r}: name the folder above it. {_how_to_get(name)}")
    if found := _split_folders(path):
        raise ValueError(f"{what} holds the folder {min(found.values()).name} of a set: name the folder above it")


def _how_to_get(name: str) -> str:
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


def _load_offline(
    name: str, shape: tuple[int, int, int], split: str, count: int | None, seed: int, asked: str
) -> ImageSet:
    images, labels, classes = OFFLINE_SETS[name].made(split, shape[-1])
    if asked != name and count is not None:
        count = min(count, len(images))
    index = _order(len(images), count, seed, f"{name!r} ({split})")
    images = images[index].expand(-1, shape[0], -1, -1).contiguous()
    title = OFFLINE_SETS[name].title
    source = f"{title[0].upper()}{title[1:]}, {split} split."
    if asked != name:
        size = "" if shape[1:] == OFFLINE_SETS[name].image_shape[1:] else f", resized to {shape[1]}x{shape[2]}"
        source = f"{source[:-1]}{size}; a substitute for {asked}, which is not under the data root."
    return ImageSet(name, split, images, labels[index], classes, source, asked)


def _order(total: int, count: int | None, seed: int, what: str) -> Tensor:
    if total == 0:
        raise ValueError(f"{what} holds no images here: where a class has a single one, that is in the test half")
    if count is not None and count < 1:
        raise ValueError(f"count={count}: expected at least 1, or None for the whole set")
    if count is not None and count > total:
        raise ValueError(f"count={count}: {what} holds {total} images")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]


class _Half(Dataset):
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
        return _path(self.dataset, self.index[item])


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


def _all_left_out(folder: Path) -> str:
    """How many files lie beside the pictures, by their kinds, in words; "" for none."""
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    kinds = Counter(kind for file in files if (kind := _left_out(file, folder)))
    return f"left out: {_listed(kinds)}" if kinds else ""


def _load_picture(path: str) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


def _load_upright(path: str) -> Image.Image:
    return ImageOps.exif_transpose(_load_picture(path))


def _path(dataset: Dataset, item: int) -> str:
    return dataset.path(item) if hasattr(dataset, "path") else f"image {item}"


def _subfolders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not _hidden(entry.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFTOVERS


def _split_folders(path: Path) -> dict[str, Path]:
    """Which of the splits have a folder of their own; empty where the class folders lie directly in `path`."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        present = [path / name for name in names if (path / name).is_dir() and not _is_unlabelled(path / name)]
        if present:
            found[split] = present[0]
    return found


def _is_unlabelled(folder: Path) -> bool:
    """Whether a split is pictures without classes, like the test split in Tiny-ImageNet's archive."""
    return _subfolders(folder) == ["images"] and not (folder / ANNOTATIONS).is_file()


def _open_folder(path: Path, split: str, loader: Callable[[str], Image.Image] = _load_upright) -> Dataset:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: expected a folder with {{train,test}}/<class>/* or <class>/*")
    parts = _split_folders(path)
    if parts and split not in parts:
        raise FileNotFoundError(f"{path} has no {split} split: expected a folder {' or '.join(SPLIT_FOLDERS[split])}")
    unsorted = [part for part in parts.values() if _subfolders(part) == ["images"]]
    if unsorted:
        raise ValueError(
            f"{unsorted[0]} is not sorted by class: move its images into {unsorted[0].name}/<class>/ first"
        )
    classes = sorted({name for part in parts.values() or [path] for name in _subfolders(part)})
    dataset = _ClassFolders(parts.get(split, path), classes, loader) if classes else ()
    if len(dataset) == 0:
        left_out = _all_left_out(parts.get(split, path)) or "no file is there"
        raise ValueError(
            f"{parts.get(split, path)} holds no pictures in class folders: expected <class>/* with one of the endings "
            f"{', '.join(datasets.folder.IMG_EXTENSIONS)}; {left_out}"
        )
    return dataset if parts else _Half(dataset, dataset.targets, split)


def _in_torchvision_layout(paper_set: PaperSet, root: Path, split: str) -> bool:
    return paper_set.files is not None and all((root / file).exists() for file in paper_set.files[split])


def _as_folder(paper_set: PaperSet, root: Path) -> str | None:
    """The folder, relative to the root, that holds the set in class folders."""
    for folder in paper_set.folders:
        if (root / folder).is_dir() and _subfolders(root / folder):
            return folder
    return None


def _splits(paper_set: PaperSet, root: Path) -> tuple[str, ...]:
    """The splits of a set that are under the root, in either layout."""
    there = [split for split in SPLITS if _in_torchvision_layout(paper_set, root, split)]
    folder = _as_folder(paper_set, root)
    if not there and folder:
        there = list(_split_folders(root / folder)) or list(SPLITS)
    return tuple(there)


def _where(paper_set: PaperSet, root: Path, split: str) -> str:
    """The folder of a set that is there, relative to the root."""
    if _in_torchvision_layout(paper_set, root, split):
        return Path(paper_set.files[split][0]).parts[0]
    return _as_folder(paper_set, root)


def _open(name: str, root: Path, split: str) -> Dataset:
    paper_set, where = PAPER_SETS[name], _where(PAPER_SETS[name], root, split)
    if not _in_torchvision_layout(paper_set, root, split):
        return _open_folder(root / where, split, _load_picture)  # as the papers read them: no EXIF
    try:
        return paper_set.opened(root, split, False)
    except Exception as error:  # each reader of torchvision fails in its own way on a damaged file
        raise ValueError(
            f"{name!r} in {root / where} is incomplete or damaged ({error}): remove it and get it again. "
            f"{_how_to_get(name)}"
        ) from error


def _decode(
    dataset: Dataset, name: str, count: int | None, seed: int, shape: tuple[int, int, int] | int, fit: str
) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] and labels [N] of the first `count` items in the order of `seed`.

    shape: (C, H, W), or C alone, where all pictures must have the first one's size.
    """
    images, labels = [], []
    for item in _order(len(dataset), count, seed, repr(name)).tolist():
        picture, label = _read(dataset, item, name)
        if isinstance(shape, int):
            shape, fit = (shape, *picture.size[::-1]), "exact"
        if fit == "exact" and picture.size != shape[:0:-1]:
            raise ValueError(
                f"{_path(dataset, item)} of {name!r} is {_by(picture.size)} pixels, expected {_by(shape[:0:-1])} like "
                "the others: resize it first, or give size="
            )
        images.append(_fitted(picture, shape, fit))
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def _read(dataset: Dataset, item: int, name: str) -> tuple[Image.Image, int]:
    """A picture as "L", "RGB" or "RGBA", and its label. Raises ValueError that names a file which cannot be read."""
    try:
        picture, label = dataset[item]
        if picture.mode.startswith("I;16"):  # PIL's own conversion cuts everything above 255
            picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
        if picture.mode in ("I", "F"):
            raise ValueError(f"it has mode {picture.mode}, expected 8 or 16 bits a channel: convert it first")
        if picture.mode not in ("L", "RGB", "RGBA"):
            grey, clear = picture.mode in ("1", "LA"), "transparency" in picture.info  # of a palette
            picture = picture.convert("L" if grey else "RGBA" if clear else "RGB")
        return picture, int(label)
    except Exception as error:  # a damaged file makes PIL's readers fail in many ways
        raise ValueError(f"cannot read {_path(dataset, item)} of {name!r}: {error}") from error


def _fitted(picture: Image.Image, shape: tuple[int, int, int], fit: str) -> Tensor:
    """[C, H, W] in [0, 1] of the given shape.

    fit: "exact", it has that size; "whole", it is squeezed; "crop", its shorter side is resized, then the centre cut
    out; "square", the square at its centre is cut out, then resized.
    """
    channels, height, width = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if fit == "whole":
        picture = resize(picture, [height, width])
    if fit == "crop":
        # 256 before a crop of 224 is ImageNet's customary evaluation; smaller targets are filled by the shorter side.
        picture = center_crop(resize(picture, 256 if height == 224 else height), [height, width])
    if fit == "square":
        picture = ImageOps.fit(picture, (width, height))
    return _pixels(picture)


def _pixels(picture: Image.Image) -> Tensor:
    return pil_to_tensor(picture).float() / 255


# ------------------------------------------------------------------------------------ for the command line


def catalogue(root: str | Path | None = None) -> pd.DataFrame:
    """One row a named set: name, present, where, splits, classes, shape, how to get it.

    Raises FileNotFoundError where the data root (argument or REPROLIB_DATA) is given and is no folder.
    """
    found_root = _data_root(root)
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
        splits = _splits(paper_set, found_root) if found_root else ()
        where = ""
        if splits:
            where = _where(paper_set, found_root, splits[0])
        rows.append(
            {
                "name": name,
                "present": bool(splits),
                "where": where,
                "splits": ", ".join(splits),
                "classes": str(paper_set.num_classes or "as found"),
                "shape": "x".join(map(str, paper_set.image_shape)),
                "how to get it": _how_to_get(name),
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
        paper_set, found_root = PAPER_SETS[name], _data_root(root)
        splits = _splits(paper_set, found_root) if found_root else ()
        if not splits:
            raise FileNotFoundError(f"{name!r} is not under a data root. {_how_to_get(name)}")
        opened = {split: _open(name, found_root, split) for split in splits}
        side = None if size or paper_set.fit != "exact" else paper_set.image_shape[:0:-1]
    else:
        path = Path(name.removeprefix("folder:")).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(f"{name!r} is neither a folder nor a known data set: {', '.join(NAMES)}")
        opened = {split: _open_folder(path, split) for split in tuple(_split_folders(path)) or SPLITS}
        side = None
    _check_size(name if name in PAPER_SETS else f"folder:{name}", size)
    lines, problems, sizes = [f"{name}: {', '.join(opened)}"], [], Counter()
    for split, dataset in opened.items():
        classes, modes = Counter(), Counter()
        for item in range(len(dataset)):
            try:
                picture, label = _read(dataset, item, name)
            except ValueError as error:
                problems.append(str(error))
                continue
            classes[dataset.classes[label]] += 1
            modes[picture.mode] += 1
            sizes[picture.size] += 1
            if side and picture.size != side:
                problems.append(f"{_path(dataset, item)} is {_by(picture.size)} pixels, expected {_by(side)}")
        lines.append(f"{split}: {classes.total()} images, modes {_listed(modes)}")
        lines.append(f"{split}: {len(classes)} of {len(dataset.classes)} classes: {_listed(classes)}")
        if name not in PAPER_SETS and (left_out := _all_left_out(_split_folders(path).get(split, path))):
            lines.append(f"{split}: {left_out}")
    lines.append(f"sizes: {_listed(Counter({_by(pixels): number for pixels, number in sizes.items()}))}")
    if len(sizes) > 1 and name not in PAPER_SETS and not size:
        problems.append(f"pictures of {len(sizes)} sizes: a folder needs one size for all, resize them or give a size")
    return Check(tuple(lines), tuple(problems))


def _by(pixels: tuple[int, int]) -> str:
    return f"{pixels[0]}x{pixels[1]}"


def _listed(counter: Counter[str]) -> str:
    """The most common entries with their counts, in words."""
    shown = ", ".join(f"{entry} ({number})" for entry, number in counter.most_common(10))
    return shown if len(counter) <= 10 else f"{shown} and {len(counter) - 10} more"


def download(name: str, root: str | Path | None = None) -> Path:
    """Fetch a set of the papers with torchvision into the data root (created if need be); returns the root.

    The files go to a folder beside their place and move there when all of them are complete, so nothing half-written
    is ever taken for a set. Raises ValueError for sets that torchvision cannot fetch, RuntimeError for a failure.
    """
    if name in OFFLINE_SETS:
        raise ValueError(f"{name!r} comes with the installed packages: nothing to download")
    paper_set = _paper_set(name)
    if not paper_set.downloads:
        raise ValueError(f"{name!r} cannot be downloaded for you. {_how_to_get(name)}")
    value = root or os.environ.get("REPROLIB_DATA")
    if not value:
        raise FileNotFoundError("no data root to download into: pass root=... or set REPROLIB_DATA")
    path = Path(value).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    if _splits(paper_set, path) != SPLITS:
        _download_into(name, path)
    return path


def _download_into(name: str, root: Path) -> None:
    paper_set = PAPER_SETS[name]
    if not paper_set.downloads:
        raise ValueError(f"{name!r} cannot be downloaded for you. {_how_to_get(name)}")
    staging = root / f".download-{name}-{os.getpid()}"
    try:
        for split in SPLITS:
            paper_set.opened(staging, split, True)
        for part in staging.iterdir():
            if part.is_dir():  # the archives beside the folders have served
                part.rename(root / part.name)
    except Exception as error:  # network, disk, checksum, a missing downloader: torchvision raises them all
        raise RuntimeError(
            f"downloading {name!r} failed ({type(error).__name__}: {error}) and nothing was kept. {_how_to_get(name)}"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
