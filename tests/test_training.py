"""Shipped victims: the recipe's steps, going on after a kill, and checkpoints that are not what they should be."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from reprolib import data, models
from reprolib.experiments import training
from reprolib.federated.streams import generator

# Eight channels: with fewer, oneDNN of torch 2.11 writes beyond its memory on processors without AVX-512.
TINY = training.Recipe("resnetbn8", epochs=2, learning_rate=0.1, options={"width": 8}, batch_size=8)


@pytest.fixture
def root(tmp_path):
    """CIFAR-10 in class folders: 30 training and 10 test pictures of plain colours with a little noise."""
    random = torch.Generator().manual_seed(0)
    for split, each in (("train", 3), ("test", 1)):
        for label in range(10):
            folder = tmp_path / "cifar10" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = (torch.rand(32, 32, 3, generator=random) * 50 + 20 * label).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(training.RECIPES, "tiny", TINY)


def test_shifts_and_mirrors_are_of_the_same_image():
    random = torch.Generator().manual_seed(1)
    images = torch.rand(40, 3, 9, 9, generator=random)
    moved, padded = training.augmented(images, generator(0, 0)), F.pad(images, [4] * 4)
    found = set()
    for image, border in zip(moved, padded, strict=True):
        crops = {
            (i, j, mirrored): border[:, i : i + 9, j : j + 9].flip([2] if mirrored else [])
            for i in range(9)
            for j in range(9)
            for mirrored in (False, True)
        }
        matching = [where for where, crop in crops.items() if torch.equal(crop, image)]
        assert len(matching) == 1
        found.add(matching[0])
    assert {mirrored for *_, mirrored in found} == {False, True} and len(found) > 20
    assert torch.equal(training.augmented(images, generator(0, 0)), moved)


def test_a_victim_is_trained_and_opens(root, tiny, tmp_path):
    card = training.train("tiny", root, folder=tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert stored["recipe"] == json.loads(json.dumps(card["recipe"])) and stored["data"]["images"] == 30
    accuracy = stored["test_accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"] and accuracy["images"] == 10
    victim = training.victim("tiny", tmp_path / "out")
    assert not victim.training and victim.norm.num_batches_tracked == 2 * 3
    drawn = models.build("resnetbn8", 10, (3, 32, 32), 0, normalize=training.CIFAR10, width=2)
    assert not torch.equal(drawn.conv.weight, victim.conv.weight)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_single_step_is_sgd_at_the_top_of_the_cycle(root, monkeypatch, tmp_path):
    recipe = replace(TINY, model="lenet", options={}, epochs=1, batch_size=30, augment=False, weight_decay=0.0)
    monkeypatch.setitem(training.RECIPES, "one", recipe)
    training.train("one", root, folder=tmp_path)
    images = data.load("cifar10", "train", root=root)
    model = models.build("lenet", 10, (3, 32, 32), 0, normalize=training.CIFAR10)
    F.cross_entropy(model(images.images), images.labels).backward()
    for (name, found), start in zip(
        training.victim("one", tmp_path).named_parameters(), model.parameters(), strict=True
    ):
        expected = start - 0.1 * (1 + 0.9) * start.grad  # Nesterov's first step, at the top of the cycle
        torch.testing.assert_close(found, expected, msg=name)


def test_a_killed_training_goes_on_and_ends_the_same(root, tiny, tmp_path, monkeypatch):
    whole = training.train("tiny", root, folder=tmp_path / "whole")
    saved, calls = training.write_atomic, []

    def killed(path, content):
        saved(path, content)
        calls.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train("tiny", root, folder=tmp_path / "parts")
    monkeypatch.setattr(training, "write_atomic", saved)
    assert calls == [tmp_path / "parts" / ".tiny.unfinished"] and not (tmp_path / "parts" / "tiny.json").exists()
    card = training.train("tiny", root, folder=tmp_path / "parts")
    assert card["test_accuracy"] == whole["test_accuracy"]
    a, b = (training.victim("tiny", tmp_path / name) for name in ("whole", "parts"))
    assert models.fingerprint(a) == models.fingerprint(b)


def test_what_another_recipe_had_reached_is_not_taken(root, tiny, tmp_path, monkeypatch):
    unfinished = tmp_path / ".tiny.unfinished"
    torch.save({"identity": "another", "epochs": 2, "seconds": 1.0}, unfinished)
    training.train("tiny", root, folder=tmp_path)
    assert training.victim("tiny", tmp_path).norm.num_batches_tracked == 6


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "code", "list", "epochs", "part", "nan"])
def test_a_damaged_state_does_not_block_a_training(root, tiny, tmp_path, monkeypatch, damage):
    whole = training.train("tiny", root, folder=tmp_path / "whole")
    saved = training.write_atomic

    def killed(path, content):
        saved(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train("tiny", root, folder=tmp_path)
    monkeypatch.setattr(training, "write_atomic", saved)
    unfinished = tmp_path / ".tiny.unfinished"
    content, state = unfinished.read_bytes(), torch.load(unfinished, weights_only=True)
    files = {"cut": content[: len(content) // 2], "empty": b"", "text": b"text"}
    files["code"] = pickle.dumps(print)
    states = {
        "list": [1, 2],
        "epochs": {**state, "epochs": "two"},
        "part": {**state, "optimizer": state["schedule"]},  # the model is loaded before this fails
        "nan": {**state, "seconds": float("nan")},
    }
    if damage in files:
        unfinished.write_bytes(files[damage])
    else:
        torch.save(states[damage], unfinished)
    with pytest.warns(UserWarning, match=r"\.tiny\.unfinished is damaged \(.*\): the training starts anew"):
        card = training.train("tiny", root, folder=tmp_path)
    assert card["test_accuracy"] == whole["test_accuracy"] and not unfinished.exists()
    a, b = (training.victim("tiny", folder) for folder in (tmp_path, tmp_path / "whole"))
    assert models.fingerprint(a) == models.fingerprint(b)


def test_what_cannot_be_trained_or_opened_is_refused(root, tiny, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown checkpoint 'vgg': expected one of lenet-cifar10"):
        training.train("vgg", root)
    with pytest.raises(FileNotFoundError, match="'tiny' is missing in .*`reprolib train tiny`"):
        training.victim("tiny", tmp_path)
    with pytest.raises(FileNotFoundError, match="'cifar10' needs a data root"):
        training.train("tiny")
    monkeypatch.setitem(training.RECIPES, "hot", replace(TINY, learning_rate=1e30))
    with pytest.raises(RuntimeError, match="the loss of 'hot' is .* in epoch"):
        training.train("hot", root, folder=tmp_path)
    training.train("tiny", root, folder=tmp_path)
    monkeypatch.setitem(training.RECIPES, "tiny", replace(TINY, options={"width": 4}))
    with pytest.raises(ValueError, match="of another architecture: width is 8, asked for 4"):
        training.victim("tiny", tmp_path)


def test_every_recipe_names_a_model_that_builds():
    for recipe in training.RECIPES.values():
        models.build(recipe.model, 10, (3, 32, 32), 0, normalize=recipe.normalize, **recipe.options)
