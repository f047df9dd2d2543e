"""Sets that no test machine holds: a few generated pictures in the true layout of each set's archive or folder.

torchvision compares the real files' checksums, which generated ones cannot have: there a test puts its own.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets import celeba, lfw

from reprolib import data


def picture(path, size, value, mode="RGB"):
    """A picture of one brightness, in the format that its ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def level(image):
    return round(255 * image.mean().item())


# --- SVHN: one Matlab file a split, X [32, 32, 3, N], the digit 0 labelled 10


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    known = {}
    for split, labels in (("train", [1, 10, 9]), ("test", [10, 3])):
        path = tmp_path / "svhn" / f"{split}_32x32.mat"
        path.parent.mkdir(exist_ok=True)
        pixels = np.zeros((32, 32, 3, len(labels)), dtype=np.uint8)
        pixels[:16, :, 0], pixels[:, :16, 2] = 10 * np.array(labels), 255
        scipy.io.savemat(path, {"X": pixels, "y": np.array(labels, dtype=np.uint8)[:, None]})
        known[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", known)
    return tmp_path


def test_svhn(svhn):
    test, train = data.load("svhn", root=svhn), data.load("svhn", "train", root=svhn)
    assert test.image_shape == (3, 32, 32) and test.classes == tuple("0123456789")
    assert sorted(test.labels.tolist()) == [0, 3] and sorted(train.labels.tolist()) == [0, 1, 9]
    for image, label in zip(train.images, train.labels.tolist(), strict=True):
        assert torch.equal(image[0, :16], torch.full((16, 32), 10 * (label or 10) / 255)), "rows are rows, red is red"
        assert image[0, 16:].max() == 0 and image[2, :, :16].min() == 1 and image[2, :, 16:].max() == 0


def test_svhn_cut_short(svhn):
    path = svhn / "svhn" / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="'svhn' in .*svhn is incomplete or damaged .*: remove it and get it again"):
        data.load("svhn", root=svhn)


# --- LFW: the archive's folder a person, or torchvision's folder with the lists of people

PEOPLE = {"Aaron_Eckhart": 1, "Ann_Veneman": 3, "Zico": 2}


def test_lfw_as_its_archive_unpacks(tmp_path):
    for label, (person, count) in enumerate(PEOPLE.items()):
        for number in range(1, count + 1):
            picture(tmp_path / "lfw_funneled" / person / f"{person}_{number:04d}.jpg", (250, 250), 50 * label + number)
    for attempt in range(3):  # the funneled archive holds such lists beside the people
        (tmp_path / "lfw_funneled" / f"pairs_0{attempt + 1}.txt").write_text("Zico\t1\t2\n")
    test, train = data.load("lfw", root=tmp_path), data.load("lfw", "train", root=tmp_path)
    assert test.classes == train.classes == tuple(PEOPLE) and test.image_shape == (3, 32, 32)
    assert sorted(test.labels.tolist()) == [0, 1, 1, 2] and sorted(train.labels.tolist()) == [1, 2]
    seen = sorted(map(level, [*test.images, *train.images]))
    assert seen == pytest.approx([1, 51, 52, 53, 101, 102], abs=1), "each picture once"


def test_lfw_in_torchvisions_layout(tmp_path, monkeypatch):
    home = tmp_path / "lfw-py"
    for number, (person, count) in enumerate(PEOPLE.items()):
        for copy in range(1, count + 1):
            picture(home / "lfw_funneled" / person / f"{person}_{copy:04d}.jpg", (250, 250), 50 * number + copy)
    (home / "lfw-names.txt").write_text("".join(f"{person}\t{count}\n" for person, count in PEOPLE.items()))
    (home / "peopleDevTrain.txt").write_text("2\nAaron_Eckhart\t1\nZico\t2\n")
    (home / "peopleDevTest.txt").write_text("1\nAnn_Veneman\t3\n")
    (home / "lfw-funneled.tgz").touch()
    monkeypatch.setattr(lfw, "check_integrity", lambda path, md5: (home / path).is_file())
    test, train = data.load("lfw", root=tmp_path), data.load("lfw", "train", root=tmp_path)
    assert test.classes == train.classes == tuple(PEOPLE)
    assert test.labels.tolist() == [1, 1, 1] and sorted(train.labels.tolist()) == [0, 2, 2]
    assert sorted(map(level, train.images)) == pytest.approx([1, 101, 102], abs=1)
    (home / "lfw-names.txt").unlink()
    for opened in (data.load, data.choose):
        with pytest.raises(FileNotFoundError, match="'lfw' is without lfw-py/lfw-names.txt under .* Put it at"):
            opened("lfw", root=tmp_path)


def test_an_archive_in_a_data_root_makes_it_no_set(tmp_path):
    (tmp_path / "lfw-funneled.tgz").touch()
    assert data.choose("lfw", count=1, root=tmp_path).substitute


# --- CelebA: numbered pictures of 178x218 and lists whose columns are padded with spaces

ATTRIBUTES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair "
    "Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male "
    "Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
    "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)


def test_celeba(tmp_path, monkeypatch):
    home, male, part = tmp_path / "celeba", [True, False, False, True, False], [0, 0, 1, 2, 2]
    names = [f"{number:06d}.jpg" for number in range(1, 6)]
    for number, name in enumerate(names):
        picture(home / "img_align_celeba" / name, (178, 218), 50 * number)
    flags = [" ".join(" 1" if (a == "Male") == man else "-1" for a in ATTRIBUTES.split()) for man in male]
    lists = {
        "list_attr_celeba.txt": f"5\n{ATTRIBUTES} \n"
        + "".join(f"{n} {f}\n" for n, f in zip(names, flags, strict=True)),
        "list_eval_partition.txt": "".join(f"{n} {p}\n" for n, p in zip(names, part, strict=True)),
        "identity_CelebA.txt": "".join(f"{n} {i}\n" for i, n in enumerate(names)),
        "list_bbox_celeba.txt": "5\nimage_id x_1 y_1 width height\n"
        + "".join(f"{n}    95  71 226 313\n" for n in names),
        "list_landmarks_align_celeba.txt": "5\nlefteye_x lefteye_y\n" + "".join(f"{n} 69  109\n" for n in names),
    }
    for name, text in lists.items():
        (home / name).write_text(text)
    monkeypatch.setattr(celeba, "check_integrity", lambda path, md5: (home / path).is_file())
    test, train = data.load("celeba", root=tmp_path), data.load("celeba", "train", root=tmp_path)
    assert test.classes == train.classes == ("female", "male") and test.image_shape == (3, 32, 32)
    for half, expected in ((test, {3: 1, 4: 0}), (train, {0: 1, 1: 0})):
        seen = {round(level(image) / 50): label for image, label in zip(half.images, half.labels.tolist(), strict=True)}
        assert seen == expected, "the picture of a man is labelled male"
    for name in ("identity_CelebA.txt", "list_bbox_celeba.txt"):
        (home / name).unlink()
    lists = "celeba/list_bbox_celeba.txt, celeba/identity_CelebA.txt"
    for opened in (data.load, data.choose):
        with pytest.raises(FileNotFoundError, match=f"the test split of 'celeba' is without {lists} under"):
            opened("celeba", root=tmp_path)


# --- Caltech-256: 257 numbered folders, with a stray folder and a stray file as in the archive


def test_caltech256(tmp_path):
    home = tmp_path / "caltech256" / "256_ObjectCategories"
    for number, (name, count) in enumerate((("001.ak47", 3), ("002.american-flag", 2), ("003.backpack", 1)), start=1):
        for copy in range(1, count + 1):
            mode = "L" if name == "003.backpack" else "RGB"
            picture(home / name / f"{number:03d}_{copy:04d}.jpg", (300, 260), 40 * number + copy, mode)
    (home / "002.american-flag" / "greg").mkdir()  # as 056.dog has
    (home / "003.backpack" / "RENAME2").write_text("")  # as 198.spider has
    test, train = data.load("caltech256", root=tmp_path), data.load("caltech256", "train", root=tmp_path)
    assert test.classes == train.classes == ("001.ak47", "002.american-flag", "003.backpack")
    assert test.image_shape == (3, 224, 224)
    assert sorted(test.labels.tolist()) == [0, 0, 1, 2] and sorted(train.labels.tolist()) == [0, 1]
    assert sorted(map(level, test.images)) == pytest.approx([41, 43, 81, 121], abs=1)
    assert sorted(map(level, train.images)) == pytest.approx([42, 82], abs=1)


# --- Tiny ImageNet: train/<class>/images/*, val sorted by class as `by_hand` says


@pytest.fixture
def tiny_imagenet(tmp_path):
    home = tmp_path / "tiny-imagenet-200"
    for number, wnid in enumerate(("n01443537", "n01629819")):
        for copy in range(2):
            picture(home / "train" / wnid / "images" / f"{wnid}_{copy}.JPEG", (64, 64), 100 * number + copy)
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
        picture(home / "val" / wnid / f"val_{number}.JPEG", (64, 64), 100 * number + 50, "L")
    (home / "wnids.txt").write_text("n01443537\nn01629819\n")
    (home / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    return tmp_path


def test_tiny_imagenet(tiny_imagenet):
    test, train = (data.load("tiny-imagenet", split, root=tiny_imagenet) for split in ("test", "train"))
    assert test.classes == train.classes == ("n01443537", "n01629819") and test.image_shape == (3, 64, 64)
    assert sorted(train.labels.tolist()) == [0, 0, 1, 1]
    pairs = sorted((label, level(image)) for image, label in zip(test.images, test.labels.tolist(), strict=True))
    assert [label for label, _ in pairs] == [0, 1] and [seen for _, seen in pairs] == pytest.approx([50, 150], abs=1)


def test_the_unlabelled_pictures_of_tiny_imagenet_are_no_class(tiny_imagenet):
    picture(tiny_imagenet / "tiny-imagenet-200" / "test" / "images" / "test_0.JPEG", (64, 64), 7)
    test = data.load("tiny-imagenet", root=tiny_imagenet)
    assert test.classes == ("n01443537", "n01629819") and len(test) == 2


# --- ImageNet: train/<class>/*.JPEG and val, whose archive has no class folders


def test_imagenet(tmp_path):
    home = tmp_path / "imagenet"
    for number, wnid in enumerate(("n01440764", "n02105855")):
        picture(home / "train" / wnid / f"{wnid}_18.JPEG", (500, 375), 100 * number + 20)
        picture(home / "val" / wnid / f"ILSVRC2012_val_0000{number:04d}.JPEG", (375, 500), 100 * number + 60, "L")
    picture(home / "train" / "n01440764" / "n01440764_2.JPEG", (400, 400), 200, "CMYK")  # a few of the set's are
    picture(home / "train" / "n02105855" / "real.png", (300, 300), 120)
    (home / "train" / "n02105855" / "real.png").rename(
        home / "train" / "n02105855" / "n02105855_2933.JPEG"
    )  # one is a PNG
    test, train = data.load("imagenet", root=tmp_path), data.load("imagenet", "train", root=tmp_path)
    assert test.classes == train.classes == ("n01440764", "n02105855") and test.image_shape == (3, 224, 224)
    assert sorted(map(level, test.images)) == pytest.approx([60, 160], abs=1)
    assert sorted(map(level, train.images)) == pytest.approx([20, 120, 120, 200], abs=1)
    assert data.load("imagenet", root=tmp_path, size=64).image_shape == (3, 64, 64)


def test_imagenets_validation_pictures_as_their_archive_unpacks(tmp_path):
    picture(tmp_path / "imagenet" / "train" / "n01440764" / "n01440764_18.JPEG", (500, 375), 20)
    picture(tmp_path / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG", (500, 375), 20)
    with pytest.raises(ValueError, match="val holds no pictures in class folders: expected <class>/"):
        data.load("imagenet", root=tmp_path)
