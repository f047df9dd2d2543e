"""The papers' own sets: their shapes, their layouts on disk, and how each is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch.utils.data import Dataset
from torchvision import datasets

from reprolib.data.folders import SPLITS, Half
from reprolib.data.offline import OFFLINE_SETS


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
    return Half(dataset, dataset.y, split)


_MNIST_FILES = tuple(
    f"MNIST/raw/{part}-ubyte"
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
)
# torchvision's readers open these too, though no chapter looks at them: the archive, and celeba's other lists
_LFW_FILES = ("lfw-py/lfw_funneled", "lfw-py/lfw-funneled.tgz", "lfw-py/lfw-names.txt")
_CELEBA_FILES = (
    "celeba/img_align_celeba",
    *(f"celeba/list_{part}.txt" for part in ("attr_celeba", "eval_partition", "bbox_celeba", "landmarks_align_celeba")),
    "celeba/identity_CelebA.txt",
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
            "train": (*_LFW_FILES, "lfw-py/peopleDevTrain.txt"),
            "test": (*_LFW_FILES, "lfw-py/peopleDevTest.txt"),
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
        files={split: _CELEBA_FILES for split in SPLITS},
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


NAMES = (*OFFLINE_SETS, *PAPER_SETS)


def resized(paper_set: PaperSet, size: int | None) -> PaperSet:
    if size is None:
        return paper_set
    return replace(paper_set, image_shape=(paper_set.image_shape[0], size, size), fit="crop")


def named_set(name: str) -> PaperSet:
    if name not in PAPER_SETS:
        raise ValueError(f"unknown data set {name!r}: expected one of {', '.join(NAMES)}, or folder:PATH")
    return PAPER_SETS[name]
