"""Sets by their names, the papers' or those that stand in for them."""

from __future__ import annotations

import reprlib
from numbers import Integral
from pathlib import Path

from reprolib import settings
from reprolib.data.folders import SPLITS, left_out_of, open_folder, split_folders
from reprolib.data.imageset import ImageSet
from reprolib.data.offline import OFFLINE_SETS
from reprolib.data.papers import PAPER_SETS, named_set, resized
from reprolib.data.pictures import decode, drawn_order
from reprolib.data.roots import download_into, find_root, how_to_get, lacking, open_set, place_of, splits_of


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

    The images come in an order drawn from `seed`; `count` keeps the first ones, and only those are decoded. Pictures in
    grey, with a palette or transparency become RGB; those of `mnist` grey. 16 bits a channel become 8; an animation is
    its first picture. `folder:PATH` holds PATH/{train,test}/<class>/* or PATH/<class>/*, all of one size, turned
    upright by their EXIF orientation; hidden files and other endings are left out, which `source` says.
    `download` fetches a missing set where torchvision can. size: the side of the square to which pictures are brought:
    those of a folder by the square at their centre, resized; those of a paper's set by their shorter side, and the
    centre kept, in place of the papers' own. grey: pictures of a folder get 1 channel and not 3.
    Raises ValueError for unknown names and splits, unreadable or ill-sized pictures, impossible counts and sizes, and a
    data root that is a set itself; FileNotFoundError for a set or data root that is not there.

    >>> from reprolib import data
    >>> photos = data.load("photos", count=100)
    >>> len(photos), photos.image_shape, photos.classes[:2]
    (100, (3, 32, 32), ('astronaut', 'camera'))
    >>> [part.shape for part in photos.batches(size=4, count=2)]
    [torch.Size([2, 4, 3, 32, 32]), torch.Size([2, 4])]
    """
    if not isinstance(name, str):
        raise ValueError(f"name must be a str, such as 'photos' or 'cifar10', got {reprlib.repr(name)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    folder = name.startswith("folder:")
    check_size(name, size)
    if settings.held("grey", bool, grey) and not folder:
        raise ValueError(f"grey={grey!r} of {name!r}: only the pictures of folder:PATH can be asked for in grey")
    if name in OFFLINE_SETS:
        return _load_offline(name, OFFLINE_SETS[name].image_shape, split, count, seed, asked=name)
    if folder:
        path = Path(name.removeprefix("folder:")).expanduser()
        dataset = open_folder(path, split)
        channels = 1 if grey else 3
        images, labels = decode(dataset, name, count, seed, (channels, size, size) if size else channels, "square")
        said = f", the square at the centre of each resized to {size}x{size}" if size else ""
        left_out = left_out_of(split_folders(path).get(split, path))
        # Names go into results and pages, where a machine's paths have no place.
        source = f"Images of the folder {path.name}, {split} split{', in grey' if grey else ''}{said}"
        name, source = f"folder:{path.name}", f"{source}; {left_out}." if left_out else f"{source}."
        return ImageSet(name, split, images, labels, tuple(dataset.classes), source, asked=name)
    paper_set = resized(named_set(name), size)
    found_root = find_root(root)
    if found_root is None:
        raise FileNotFoundError(f"{name!r} needs a data root: pass root=... or set REPROLIB_DATA. {how_to_get(name)}")
    if download and not splits_of(paper_set, found_root):
        download_into(name, found_root)
    if split not in splits_of(paper_set, found_root):
        absent = lacking(paper_set, found_root, split)
        where = f"without {', '.join(absent)}" if absent else "not"
        raise FileNotFoundError(f"the {split} split of {name!r} is {where} under {found_root}. {how_to_get(name)}")
    dataset, where = open_set(name, found_root, split), place_of(paper_set, found_root, split)
    if paper_set.num_classes not in (None, len(dataset.classes)):
        raise ValueError(
            f"{name!r} in {found_root / where} has {len(dataset.classes)} classes, expected {paper_set.num_classes} "
            "(a class without images needs its empty folder)"
        )
    images, labels = decode(dataset, name, count, seed, paper_set.image_shape, paper_set.fit)
    said = "" if size is None else f", brought to {size}x{size}"
    source = f"{paper_set.title}, {split} split, from {where} of the data root{said}."
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
    if not isinstance(name, str):
        raise ValueError(f"name must be a str, such as 'photos' or 'cifar10', got {reprlib.repr(name)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    if name in OFFLINE_SETS or name.startswith("folder:") or settings.held("grey", bool, grey):
        return load(name, split, count, seed, size=size, grey=grey)
    paper_set = named_set(name)
    check_size(name, size)
    found_root = find_root(root)
    if found_root is not None and (splits_of(paper_set, found_root) or lacking(paper_set, found_root, split)):
        return load(name, split, count, seed, found_root, size=size)
    shape = resized(paper_set, size).image_shape
    return _load_offline(paper_set.stand_in, shape, split, count, seed, asked=name)


def check_size(name: str, size: int | None) -> None:
    whole = isinstance(size, Integral) and not isinstance(size, bool)
    sizable = name in PAPER_SETS or name.startswith("folder:")
    if size is not None and not (whole and size >= 8 and sizable):
        raise ValueError(
            f"size={size!r} of {name!r}: expected an integer of at least 8, and folder:PATH or one of "
            f"{', '.join(PAPER_SETS)}"
        )


def _load_offline(
    name: str, shape: tuple[int, int, int], split: str, count: int | None, seed: int, asked: str
) -> ImageSet:
    images, labels, classes = OFFLINE_SETS[name].made(split, shape[-1])
    if asked != name and count is not None:
        count = min(count, len(images))
    index = drawn_order(len(images), count, seed, f"{name!r} ({split})")
    images = images[index].expand(-1, shape[0], -1, -1).contiguous()
    title = OFFLINE_SETS[name].title
    source = f"{title[0].upper()}{title[1:]}, {split} split."
    if asked != name:
        size = "" if shape[1:] == OFFLINE_SETS[name].image_shape[1:] else f", resized to {shape[1]}x{shape[2]}"
        source = f"{source[:-1]}{size}; a substitute for {asked}, which is not under the data root."
    return ImageSet(name, split, images, labels[index], classes, source, asked)
