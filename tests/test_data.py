from __future__ import annotations

import io
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from reprolib import data
from reprolib.data import folders, roots


def write_picture(path, size=(32, 32), value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if value is not None:
        pixels[:] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def cifar_root(tmp_path):
    """CIFAR-10 in ImageFolder layout: the picture's value is its number; `truck` has no training picture."""
    for split, first in (("train", 0), ("test", 100)):
        for label, name in enumerate(["plane", "auto", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]):
            for copy in range(3):
                if split == "test" or name != "truck":
                    write_picture(tmp_path / "cifar10" / split / name / f"{copy}.png", value=first + 3 * label + copy)
    return tmp_path


def write_mnist(root, count=6):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes(range(count)))


def image_set(count=12, classes=3):
    images = torch.arange(count).view(count, 1, 1, 1).expand(count, 1, 2, 2) / count
    labels = torch.arange(count) % classes
    return data.ImageSet("toy", "test", images, labels, tuple("abcdefgh"[:classes]), "A toy.", "toy")


# ---------------------------------------------------------------------------------------------------- offline sets


@pytest.mark.parametrize(
    ("name", "shape", "classes", "least"),
    [("photos", (3, 32, 32), 10, 1000), ("faces", (1, 25, 25), 100, 80), ("digits", (1, 8, 8), 10, 1000)],
)
def test_offline_sets_are_there_without_a_root(name, shape, classes, least):
    images = data.load(name)
    assert images.image_shape == shape
    assert images.num_classes == classes
    assert len(images) >= least
    assert not images.substitute
    assert images.images.dtype == torch.float32
    assert images.images.min() >= 0 and images.images.max() <= 1
    assert images.source.endswith("test split.")


@pytest.mark.parametrize("name", ["photos", "faces", "digits"])
def test_offline_train_and_test_share_no_image(name):
    train, test = data.load(name, "train"), data.load(name, "test")
    assert torch.cdist(train.images.flatten(1), test.images.flatten(1)).min() > 0.1


def test_photos_are_neither_flat_nor_alike():
    photos = data.load("photos")
    assert torch.bincount(photos.labels).tolist() == [100] * 10
    assert photos.images.mean(1).flatten(1).std(1).min() > 0.04
    distances = torch.cdist(photos.images.flatten(1), photos.images.flatten(1)).square() / photos.images[0].numel()
    assert distances.fill_diagonal_(1).min() > 1e-4


def test_count_keeps_the_first_of_the_seeds_order():
    few, many = data.load("digits", count=5), data.load("digits", count=50)
    assert torch.equal(few.images, many.images[:5])
    assert torch.equal(few.labels, many.labels[:5])
    assert not torch.equal(few.images, data.load("digits", count=5, seed=1).images)


# --------------------------------------------------------------------------------------------------------- choose


@pytest.mark.parametrize(
    ("asked", "name", "shape"),
    [
        ("mnist", "digits", (1, 28, 28)),
        ("cifar10", "photos", (3, 32, 32)),
        ("cifar100", "photos", (3, 32, 32)),
        ("svhn", "photos", (3, 32, 32)),
        ("lfw", "faces", (3, 32, 32)),
        ("celeba", "faces", (3, 32, 32)),
        ("tiny-imagenet", "photos", (3, 64, 64)),
        ("photos", "photos", (3, 32, 32)),
    ],
)
def test_choose_substitutes_with_the_papers_shape_and_says_so(asked, name, shape, tmp_path):
    chosen = data.choose(asked, count=4, root=tmp_path)
    assert (chosen.name, chosen.asked, chosen.image_shape) == (name, asked, shape)
    assert chosen.substitute == (asked != name)
    assert (f"a substitute for {asked}" in chosen.source) == chosen.substitute


def test_choose_takes_the_papers_set_from_the_argument_or_the_environment(cifar_root, monkeypatch):
    given = data.choose("cifar10", root=cifar_root)
    monkeypatch.setenv("REPROLIB_DATA", str(cifar_root))
    from_environment = data.choose("cifar10")
    assert not given.substitute
    assert given.fingerprint == from_environment.fingerprint
    assert given.source == "CIFAR-10 (Krizhevsky, 2009), test split, from cifar10 of the data root."
    assert data.choose("svhn", count=2).substitute


def test_a_substitute_with_fewer_images_than_asked_gives_all_it_has(tmp_path):
    assert len(data.choose("cifar10", "train", 50000, root=tmp_path)) == len(data.load("photos", "train"))
    with pytest.raises(ValueError, match="count=50000: 'photos' \\(train\\) holds 1654 images"):
        data.load("photos", "train", 50000)


def test_choose_does_not_paper_over_a_broken_or_missing_split(cifar_root):
    (cifar_root / "cifar10" / "test" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="0.png"):
        data.choose("cifar10", root=cifar_root)
    write_picture(cifar_root / "imagenet-sample" / "val" / "n01" / "a.jpg", (256, 256))
    assert data.choose("imagenet", root=cifar_root).image_shape == (3, 224, 224)
    with pytest.raises(FileNotFoundError, match="the train split of 'imagenet' is not under"):
        data.choose("imagenet", "train", root=cifar_root)


# ---------------------------------------------------------------------------------------------------- the two layouts


def test_class_folders_keep_their_numbers_when_a_split_lacks_one(cifar_root):
    test, train = data.load("cifar10", root=cifar_root), data.load("cifar10", "train", root=cifar_root)
    assert test.classes == train.classes
    assert (len(test), len(train)) == (30, 27)
    # The picture's value is 100 + its number in the order in which the fixture wrote it.
    values = (test.images[:, 0, 0, 0] * 255).round().long()
    written = ["plane", "auto", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert [test.classes[label] for label in test.labels] == [written[(value - 100) // 3] for value in values]
    train_values = (train.images[:, 0, 0, 0] * 255).round().long()
    assert [train.classes[label] for label in train.labels] == [written[value // 3] for value in train_values]


def test_only_the_pictures_that_count_asks_for_are_decoded(cifar_root, monkeypatch):
    decoded = []
    original = roots.load_picture
    monkeypatch.setattr(roots, "load_picture", lambda path: decoded.append(path) or original(path))
    data.load("cifar10", count=4, root=cifar_root)
    assert len(decoded) == 4


def test_torchvision_layout(tmp_path):
    write_mnist(tmp_path)
    mnist = data.load("mnist", root=tmp_path)
    assert mnist.images.shape == (6, 1, 28, 28)
    assert sorted(mnist.labels.tolist()) == list(range(6))
    assert mnist.num_classes == 10
    assert "MNIST of the data root" in mnist.source


def test_torchvision_set_cut_in_half(tmp_path):
    write_mnist(tmp_path)
    images = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:500])
    with pytest.raises(ValueError, match="'mnist' in .*MNIST is incomplete or damaged .*: remove it and get it again"):
        data.load("mnist", root=tmp_path)
    images.unlink()
    with pytest.raises(
        FileNotFoundError, match="the test split of 'mnist' is without MNIST/raw/t10k-images-idx3-ubyte"
    ):
        data.load("mnist", root=tmp_path)


def test_undivided_sets_are_halved_by_class(tmp_path):
    for person, count in (("Ann", 3), ("Bob", 1)):
        for number in range(count):
            write_picture(tmp_path / "lfw" / person / f"{number}.jpg", (250, 250), value=10 * number)
    test, train = data.load("lfw", root=tmp_path), data.load("lfw", "train", root=tmp_path)
    assert test.image_shape == (3, 32, 32)
    assert sorted(test.labels.tolist()) == [0, 0, 1]
    assert train.labels.tolist() == [0]
    assert train.classes == ("Ann", "Bob")
    assert train.images[0, 0, 0, 0].item() == pytest.approx(10 / 255, abs=0.01)


def test_large_pictures_are_cropped_and_faces_squeezed(tmp_path):
    wide = np.zeros((100, 300, 3), dtype=np.uint8)
    wide[:, :100, 0] = 255
    for folder in ("imagenet/val/n01", "lfw/test/Ann"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / folder / "wide.png")
    assert data.load("imagenet", root=tmp_path).images[0, 0].max() == 0
    assert data.load("lfw", root=tmp_path).images[0, 0].mean().item() == pytest.approx(1 / 3, abs=0.01)


def test_own_folder_with_and_without_splits(tmp_path):
    for name in ("cup", "dog"):
        for number in range(4):
            write_picture(tmp_path / "plain" / name / f"{number}.png", (20, 16))
            write_picture(tmp_path / "split" / "validation" / name / f"{number}.png", (20, 16))
    plain = data.load(f"folder:{tmp_path / 'plain'}")
    assert plain.images.shape == (4, 3, 16, 20)
    assert plain.classes == ("cup", "dog")
    assert (plain.name, plain.asked, plain.substitute) == ("folder:plain", "folder:plain", False)
    assert str(tmp_path) not in plain.source
    assert len(data.choose(f"folder:{tmp_path / 'split'}", count=5)) == 5
    with pytest.raises(FileNotFoundError, match="has no train split: expected a folder train"):
        data.load(f"folder:{tmp_path / 'split'}", "train")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "class" / ("picture.jpg" if mode == "CMYK" else "picture.png")
    path.parent.mkdir()
    Image.new("RGB", (8, 8), (10, 200, 60)).convert("L" if mode == "LA" else mode).convert(mode).save(path)
    picture = data.load(f"folder:{tmp_path}").images[0]
    expected = [129, 129, 129] if mode in ("L", "LA") else [10, 200, 60]
    torch.testing.assert_close(picture[:, 4, 4] * 255, torch.tensor(expected).float(), atol=12, rtol=0)


def test_pictures_of_phones_and_cameras_are_turned_upright(tmp_path):
    for ending in ("jpg", "png", "tif", "webp"):
        picture = Image.new("RGB", (32, 24), "red")
        picture.paste("blue", (0, 0, 16, 24))  # the left half, which orientation 6 turns to the top
        exif = Image.Exif()
        exif[0x0112] = 6
        (tmp_path / ending / "a").mkdir(parents=True)
        picture.save(tmp_path / ending / "a" / f"0.{ending}", exif=exif)
        upright = data.load(f"folder:{tmp_path / ending}")
        assert upright.image_shape == (3, 32, 24)
        assert upright.images[0, 2, :14].min() > 0.9 and upright.images[0, 2, 18:].max() < 0.1
        assert "sizes: 24x32 (1)" in str(data.check(tmp_path / ending))


def test_sixteen_bits_keep_their_levels(tmp_path):
    levels = np.array([0, 256, 1000, 32896, 65535], dtype=np.uint16)
    for name in ("a.png", "b.tif"):
        (tmp_path / name / "class").mkdir(parents=True)
        Image.fromarray(np.tile(levels, (8, 1))).save(tmp_path / name / "class" / name)
        assert data.check(tmp_path / name).problems == ()
        images = data.load(f"folder:{tmp_path / name}", grey=True).images
        assert images.shape == (1, 1, 8, 5)
        assert (images[0, 0, 0] * 255).tolist() == [0, 1, 4, 128, 255]


def test_of_an_animation_the_first_picture_counts(tmp_path):
    (tmp_path / "a").mkdir()
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("lime", "red"))
    for name in ("a.png", "b.webp", "c.tif"):
        first.save(tmp_path / "a" / name, save_all=True, append_images=[second], lossless=True)
    first.save(tmp_path / "a" / "d.gif", save_all=True, append_images=[second])
    assert "left out: .gif (1)" in str(data.check(tmp_path))
    images = data.load(f"folder:{tmp_path}", "test")
    assert images.source == f"Images of the folder {tmp_path.name}, test split; left out: .gif (1)."
    assert (images.images == torch.tensor([0.0, 1, 0]).view(3, 1, 1)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_an_own_folder_in_grey_and_of_one_size(tmp_path, mode):
    for number, (width, height) in enumerate([(60, 20), (20, 60), (9, 9), (20, 20)]):
        picture = Image.new("RGB", (width, height), "black")
        picture.paste("white", ((width - 9) // 2, (height - 9) // 2, (width + 9) // 2, (height + 9) // 2))
        (tmp_path / "test" / "a").mkdir(parents=True, exist_ok=True)
        picture.convert(mode).save(tmp_path / "test" / "a" / f"{number}.tif")
    assert data.check(tmp_path).problems == (
        "pictures of 4 sizes: a folder needs one size for all, resize them or give a size",
    )
    assert data.check(tmp_path, size=10).problems == ()
    images = data.choose(f"folder:{tmp_path}", "test", size=10, grey=True)
    assert images.image_shape == (1, 10, 10)
    assert images.source == (
        f"Images of the folder {tmp_path.name}, test split, in grey, the square at the centre of each resized to 10x10."
    )
    assert (images.images[:, 0, 4:6, 4:6] > 0.9).all() and data.load(f"folder:{tmp_path}", size=10).image_shape[0] == 3


LEFT_BEHIND = {
    **{f"cat/{name}": b"\0\0" for name in (".DS_Store", "._0.png", ".hidden.jpg")},
    **{name: b"\0\0" for name in (".DS_Store", "__MACOSX/cat/._0.png", "@eaDir/cat/0.png", ".thumbnails/0.jpg")},
    **{f"cat/{name}": b"x" for name in ("Thumbs.db", "desktop.ini", "notes.txt", "a.HEIC", "b.heic", "README")},
    "cover.png": b"",
}


def test_what_archives_phones_and_cameras_leave_is_left_out_and_named(tmp_path):
    write_picture(tmp_path / "cat" / "0.png")
    for name, content in LEFT_BEHIND.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    images, found = data.load(f"folder:{tmp_path}"), data.check(tmp_path)
    assert images.classes == ("cat",) and len(images) == 1 and found.problems == ()
    for text in (images.source, str(found)):
        words = ("hidden files (7)", ".heic (2)", "README (1)", ".txt (1)", "pictures outside class folders (1)")
        assert all(word in text for word in words)
    (tmp_path / "cat" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"holds no pictures in class folders: .*\.webp; left out: hidden files \(7\)"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="holds no pictures in class folders: .*; no file is there"):
        (tmp_path / "empty" / "a").mkdir(parents=True)
        data.check(tmp_path / "empty")


def encoded(ending, mode, width, height, orientation):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    try:
        Image.effect_noise((width, height), 90).convert(mode).save(file, ending, exif=exif)
    except (OSError, ValueError):  # not every format has every mode
        return b""
    return file.getvalue()


PICTURES = st.builds(
    encoded,
    st.sampled_from(["png", "jpeg", "tiff", "webp", "bmp", "gif", "ppm"]),
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 9),
)
DAMAGED = st.builds(
    lambda whole, at, byte, cut: whole[:at] + byte + whole[at + 1 :][:cut],
    PICTURES,
    st.integers(0, 300),
    st.binary(max_size=1),
    st.integers(0, 600),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from(["cat", "dog", "cat/more", "val/cat", "train/cat", "train/dog", "__MACOSX/cat", "."]),
            st.sampled_from(["0.png", "1.JPG", "2.tif", "3.webp", "._4.png", "5.gif", ".DS_Store", "6.txt", "7"]),
        ).map("/".join),
        PICTURES | DAMAGED | st.just(b""),
        max_size=5,
    ),
    st.none() | st.integers(7, 12),
    st.booleans(),
)
def test_what_check_accepts_of_any_folder_load_opens(tmp_path, contents, size, grey):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    accepted, refused = None, []
    try:
        accepted = not (found := data.check(folder, size=size)).problems
    except (ValueError, FileNotFoundError) as error:
        refused.append(str(error))
    for split in data.SPLITS:
        try:
            images = data.load(f"folder:{folder}", split, size=size, grey=grey)
            assert images.image_shape[0] == (1 if grey else 3)
            assert size is None or images.image_shape[1:] == (size, size)
        except (ValueError, FileNotFoundError) as error:
            assert not accepted or f"{split}: 0 images" in str(found) or f"{folder} has no {split} split" in str(error)
            refused.append(str(error))
    assert all(message and "\n" not in message for message in refused)


def test_one_picture_a_class_is_no_training_half(tmp_path):
    write_picture(tmp_path / "cat" / "0.png")
    assert "train: 0 images" in str(data.check(tmp_path)) and len(data.load(f"folder:{tmp_path}")) == 1
    with pytest.raises(ValueError, match="holds no images here: where a class has a single one, that is in the test"):
        data.load(f"folder:{tmp_path}", "train")


# -------------------------------------------------------------------------------------------------------- batches


def test_batches_use_no_image_twice_and_do_not_depend_on_the_count():
    toy = image_set(12)
    images, labels = toy.batches(3, 4, seed=5)
    assert images.shape == (4, 3, 1, 2, 2)
    assert labels.shape == (4, 3)
    assert len(images[..., 0, 0].unique()) == 12
    assert torch.equal(images[:2], toy.batches(3, 2, seed=5)[0])
    assert torch.equal((images[:, :, 0, 0, 0] * 12).round().long() % 3, labels)
    assert not torch.equal(images, toy.batches(3, 4, seed=6)[0])


def test_batches_with_distinct_labels():
    _, labels = image_set(30, classes=5).batches(4, 5, distinct_labels=True)
    assert all(len(set(batch)) == 4 for batch in labels.tolist())
    shorter = image_set(30, classes=5).batches(4, 2, distinct_labels=True)[1]
    assert torch.equal(shorter, labels[:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0, "count": 1}, "size=0: expected at least 1"),
        ({"size": 1, "count": 0}, "count=0: expected at least 1"),
        ({"size": 13, "count": 1}, "size=13 x count=1 needs 13 images, but 'toy' .test. holds 12 here"),
        ({"size": 4, "count": 4}, "needs 16 images.*ask for fewer, or load more"),
        ({"size": 4, "count": 1, "distinct_labels": True}, "size=4 with distinct labels: .*are of 3 classes"),
    ],
)
def test_batches_refuse_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_set().batches(**arguments)


def test_batches_say_how_many_of_distinct_labels_there_are():
    toy = image_set(6)
    lopsided = replace(toy, labels=torch.tensor([0, 0, 0, 0, 1, 2]))
    with pytest.raises(ValueError, match="count=3: only 2 batches of 2 distinct labels can be drawn"):
        lopsided.batches(2, 3, seed=1, distinct_labels=True)


def test_image_set_properties():
    toy = image_set(12)
    assert toy.num_classes == 3
    assert toy.mean_image.shape == (1, 2, 2)
    assert toy.fingerprint == image_set(12).fingerprint
    assert len(toy.fingerprint) == 16
    assert toy.fingerprint != replace(toy, labels=toy.labels.flip(0)).fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(12, 2, 2)}, r"expected shape \[N, C, H, W\]"),
        ({"images": torch.rand(12, 1, 2, 2) + 1.5}, r"expected float32 values in \[0, 1\]"),
        ({"images": torch.full((12, 1, 2, 2), torch.nan)}, r"expected float32 values in \[0, 1\]"),
        ({"images": torch.rand(12, 1, 2, 2).double()}, r"expected float32 values"),
        ({"labels": torch.arange(11)}, "expected 12 int64"),
        ({"labels": torch.arange(12)}, r"expected 0\.\.2"),
    ],
)
def test_image_set_refuses_what_breaks_its_contract(change, message):
    with pytest.raises(ValueError, match=message):
        replace(image_set(12), **change)


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("function", [data.load, data.choose])
def test_unknown_names_and_splits_list_the_known(function):
    with pytest.raises(
        ValueError, match="unknown data set 'cifar': expected one of photos, faces, digits, mnist, .*folder:PATH"
    ):
        function("cifar")
    with pytest.raises(ValueError, match="split='val': expected one of train, test"):
        function("photos", "val")


def test_impossible_counts():
    for argument, value, expected in (
        ("seed", 1.5, "seed must be a whole number >= 0, got 1.5; the largest is 18446744073709551615"),
        ("seed", -1, "seed must be a whole number >= 0, got -1; the largest is 18446744073709551615"),
        ("seed", 2**64, "seed must be a whole number >= 0, got 18446744073709551616; the largest is 1844674407370"),
        ("count", "3", "count must be a whole number, got '3'"),
        ("count", True, "count must be a whole number, got True"),
        ("grey", torch.zeros(3), "grey must be True or False, got tensor([0., 0., 0.])"),
    ):
        for opened in (data.load, data.choose):
            with pytest.raises(ValueError, match=re.escape(expected)):
                opened("digits", **{argument: value})
    with pytest.raises(ValueError, match="seed must be a whole number >= 0, got None"):
        data.load("digits", count=5).batches(1, 1, seed=None)
    with pytest.raises(ValueError, match="size must be a whole number, got 1.5"):
        data.load("digits", count=5).batches(1.5, 1)
    assert len(data.load("digits", count=np.int64(5), seed=np.int64(2))) == 5
    with pytest.raises(ValueError, match="count=0: expected at least 1, or None"):
        data.load("digits", count=0)
    with pytest.raises(ValueError, match=r"count=5000: 'digits' \(test\) holds 1000 images"):
        data.load("digits", count=5000)


def test_missing_set_says_where_to_put_it_and_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'svhn' needs a data root: pass root=... or set REPROLIB_DATA"):
        data.load("svhn")
    with pytest.raises(FileNotFoundError) as caught:
        data.load("svhn", root=tmp_path)
    assert "svhn/{train,test}/<class>/*" in str(caught.value)
    assert "svhn/test_32x32.mat (torchvision's layout)" in str(caught.value)
    assert "reprolib.data.download('svhn', root)" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="register at https://image-net.org"):
        data.load("imagenet", root=tmp_path)


@pytest.mark.parametrize("function", [data.load, data.choose])
def test_data_root_pointing_nowhere(function, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="root='.*nowhere' is not a folder: create it, correct it"):
        function("cifar10", root=tmp_path / "nowhere")
    monkeypatch.setenv("REPROLIB_DATA", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="REPROLIB_DATA='.*gone' is not a folder"):
        function("cifar10")


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nothing is not a folder: expected a folder with \{train,test\}/<class>"
    ):
        data.load(f"folder:{tmp_path / 'nothing'}")
    with pytest.raises(ValueError, match="holds no pictures in class folders: expected <class>/.*.png"):
        data.load(f"folder:{tmp_path}")
    write_picture(tmp_path / "flat.png")
    with pytest.raises(ValueError, match="holds no pictures in class folders"):
        data.load(f"folder:{tmp_path}")


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    write_picture(tmp_path / "class" / "a.png")

    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folders, "load_picture", denied)
    with pytest.raises(ValueError, match="cannot read .*a.png of 'folder:.*Permission denied"):
        data.load(f"folder:{tmp_path}")


def test_corrupted_picture_is_named(tmp_path):
    write_picture(tmp_path / "class" / "good.png")
    whole = (tmp_path / "class" / "good.png").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "class" / "bad.png").write_bytes(content)
        (tmp_path / "class" / "third.png").write_bytes(content)
        with pytest.raises(ValueError, match="cannot read .*(bad|third).png of 'folder:"):
            data.load(f"folder:{tmp_path}")


def test_pictures_of_another_size_or_depth_are_named(tmp_path, cifar_root):
    for number, size in enumerate([(8, 8), (8, 8), (9, 8)]):
        write_picture(tmp_path / "own" / "test" / "class" / f"{number}.png", size)
    with pytest.raises(
        ValueError, match=r"\.png of 'folder:.*' is .* pixels, expected .* like the others: resize it first"
    ):
        data.load(f"folder:{tmp_path / 'own'}")
    write_picture(cifar_root / "cifar10" / "test" / "cat" / "0.png", (40, 32))
    with pytest.raises(ValueError, match="cat/0.png of 'cifar10' is 40x32 pixels, expected 32x32"):
        data.load("cifar10", root=cifar_root)
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(tmp_path / "own" / "test" / "class" / "2.tif")
    problem = "cannot read .*2.tif of '.*own': it has mode F, expected 8 or 16 bits a channel: convert it first"
    with pytest.raises(ValueError, match=problem):
        data.load(f"folder:{tmp_path / 'own'}", size=8)
    assert re.match(problem, data.check(tmp_path / "own", size=8).problems[0])


@pytest.mark.parametrize("size", [7, -1, 9.5, True, "x", torch.nan])
def test_sizes_that_are_none(tmp_path, size):
    write_picture(tmp_path / "cat" / "0.png")
    for function in (data.load, data.choose, lambda name, size: data.check(name, size=size)):
        with pytest.raises(ValueError, match=rf"size={size!r} of 'folder:.*': expected an integer of at least 8"):
            function(f"folder:{tmp_path}", size=size)
    with pytest.raises(ValueError, match="size=.* of 'cifar10': expected an integer of at least 8"):
        data.choose("cifar10", size=size)


def test_what_has_no_size_or_grey(tmp_path):
    for function in (data.load, data.choose):
        with pytest.raises(ValueError, match="size=16 of 'photos': expected an integer of at least 8, and folder:PATH"):
            function("photos", size=16)
        with pytest.raises(ValueError, match="grey=True of 'cifar10': only the pictures of folder:PATH"):
            function("cifar10", grey=True)


@pytest.mark.parametrize(
    ("file", "below", "message"),
    [
        ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py", "is .a part of. the set 'cifar10'"),
        ("renamed/data_batch_1", "renamed", "is .a part of. the set 'cifar10': name the folder above it. Put it at"),
        ("renamed/meta", "renamed", "is .a part of. the set 'cifar100'"),
        ("MNIST/raw/train-images-idx3-ubyte", "MNIST", "is .a part of. the set 'mnist'"),
        ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw", "is .a part of. the set 'mnist'"),
        ("svhn/train_32x32.mat", "svhn", "is .a part of. the set 'svhn'"),
        ("imagenet-sample/val/n01/a.jpg", "imagenet-sample", "is .a part of. the set 'imagenet'"),
        ("own/val/n01/a.jpg", "own", "holds the folder val of a set: name the folder above it"),
    ],
)
def test_a_data_root_that_is_a_set_itself(tmp_path, file, below, message):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    for function in (data.load, data.choose, data.check):
        with pytest.raises(ValueError, match=f"root='.*{below}' {message}"):
            function("cifar10", root=tmp_path / below)
    with pytest.raises(ValueError, match=message):
        data.catalogue(tmp_path / below)


def test_wrong_number_of_class_folders(tmp_path):
    write_picture(tmp_path / "cifar10" / "test" / "cat" / "0.png")
    with pytest.raises(ValueError, match="has 1 classes, expected 10 .a class without images needs its empty folder"):
        data.load("cifar10", root=tmp_path)


def test_tiny_imagenet_as_it_is_unpacked(tmp_path):
    write_picture(tmp_path / "tiny-imagenet-200" / "val" / "images" / "0.png", (64, 64))
    (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("0.png n01")
    with pytest.raises(ValueError, match="val is not sorted by class: move its images into val/<class>/ first"):
        data.load("tiny-imagenet", root=tmp_path)


# ------------------------------------------------------------------------------------------------ command line


def test_catalogue(cifar_root):
    table = data.catalogue(cifar_root).set_index("name")
    assert list(table.index) == list(data.NAMES)
    assert table.loc["cifar10", ["present", "where", "splits"]].tolist() == [True, "cifar10", "train, test"]
    assert not table.loc["svhn", "present"]
    assert "download" in table.loc["svhn", "how to get it"]
    assert data.catalogue()["present"].sum() == 3


def test_check_reports_counts_and_problems(cifar_root):
    sound = data.check("cifar10", cifar_root)
    assert sound.problems == ()
    assert "train: 9 of 10 classes" in str(sound)
    assert "test: 30 images, modes RGB (30)" in str(sound)
    assert "sizes: 32x32 (57)" in str(sound)
    (cifar_root / "cifar10" / "test" / "cat" / "0.png").write_bytes(b"no picture")
    write_picture(cifar_root / "cifar10" / "test" / "cat" / "1.png", (30, 20))
    problems = data.check("cifar10", cifar_root).problems
    assert len(problems) == 2
    assert "cannot read" in problems[0] and "cat/0.png" in problems[0]
    assert "cat/1.png is 30x20 pixels, expected 32x32" in problems[1]
    assert "pictures of 2 sizes" in str(data.check(cifar_root / "cifar10"))
    assert data.check("digits").problems == ()


def test_check_refuses_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a known data set: photos, faces"):
        data.check(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="'mnist' is not under a data root. Put it at"):
        data.check("mnist", tmp_path)


def fake_download(monkeypatch, opened):
    monkeypatch.setitem(data.PAPER_SETS, "mnist", replace(data.PAPER_SETS["mnist"], opened=opened))


def test_download_moves_into_place_only_what_is_complete(tmp_path, monkeypatch):
    genuine = data.PAPER_SETS["mnist"].opened

    def opened(root, split, download):
        if download and not (root / "MNIST").exists():
            write_mnist(root)
        return genuine(root, split, False)

    fake_download(monkeypatch, opened)
    mnist = data.load("mnist", root=tmp_path, download=True)
    assert len(mnist) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    assert data.download("mnist", tmp_path / "new") == tmp_path / "new"
    assert len(data.load("mnist", root=tmp_path / "new")) == 6


def test_failed_download_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    def opened(root, split, download):
        (root / "MNIST" / "raw").mkdir(parents=True)
        (root / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"half")
        raise OSError("network is unreachable")

    fake_download(monkeypatch, opened)
    with pytest.raises(
        RuntimeError,
        match="downloading 'mnist' failed .OSError: network is unreachable. and nothing was kept. Put it at",
    ):
        data.download("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="downloading 'mnist' failed"):
        data.load("mnist", root=tmp_path, download=True)


def test_download_of_what_cannot_be_downloaded(tmp_path):
    with pytest.raises(ValueError, match="'photos' comes with the installed packages: nothing to download"):
        data.download("photos", tmp_path)
    with pytest.raises(ValueError, match="'lfw' cannot be downloaded for you. Put it at lfw/"):
        data.download("lfw", tmp_path)
    with pytest.raises(ValueError, match="'imagenet' cannot be downloaded for you"):
        data.load("imagenet", root=tmp_path, download=True)
    with pytest.raises(ValueError, match="unknown data set 'cifar'"):
        data.download("cifar", tmp_path)
    with pytest.raises(FileNotFoundError, match="no data root to download into"):
        data.download("mnist")
