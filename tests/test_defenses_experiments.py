"""The experiments of the page on all defenses: defenses on public images, rivals under noise, learning to invert."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from reprolib import attacks, data, defenses, experiments, models
from reprolib.attacks import matching
from reprolib.book import description, recorded_set
from reprolib.defenses.graddefense import root_set
from reprolib.experiments.defenses import (
    OnPublic,
    RivalReading,
    graddefense,
    graddefense_slices,
    learned_from_another_set,
    learned_from_other_classes,
    mean_guess,
    random_spectra,
)
from reprolib.federated import client
from reprolib.federated.threat import ThreatModel

TOLD = ThreatModel(labels="known", defense_known=True)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train", 200)


@pytest.fixture(scope="module")
def model(digits):
    return models.build("lenet", digits.num_classes, digits.image_shape, seed=0)


@pytest.mark.parametrize(
    ("deferred", "own"),
    [
        (lambda digits: OnPublic(defenses.MixUp, digits, "MixUp"), defenses.MixUp),
        (
            lambda digits: OnPublic(graddefense, digits, "GradDefense", {"std": 0.1}),
            lambda digits: defenses.GradDefense(root_set(digits, 2), std=0.1),
        ),
    ],
)
def test_a_defense_on_public_images_is_that_defense(deferred, own, model, digits):
    x, y = digits.batches(1, 2, seed=0)
    one, other = (client.share(model, x, y, threat=TOLD, defense=d(digits), seed=1).gradients for d in (deferred, own))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_defense_on_public_images_needs_no_pixels_to_be_named(digits):
    def missing():
        raise FileNotFoundError("no images here")

    known = recorded_set.RecordedSet(recorded_set.known_of(digits), missing)
    named = defenses.Compose([OnPublic(defenses.IntraInstaHide, known, "Intra-InstaHide of 4"), defenses.TopK(0.9)])
    own = replace(named.defenses[0], images=digits)
    assert str(named) == "Intra-InstaHide of 4, then pruning 90%"
    assert description.describe(named.defenses[0]) == description.describe(own)
    assert attacks.LearningToInvert.small(known).auxiliary is known
    with pytest.raises(ValueError, match="MixUp has no `reread`"):
        OnPublic(defenses.MixUp, digits, "MixUp").reread(None, None, {})


def test_the_squared_rival_with_the_noises_own_trust_is_the_maximum_a_posteriori(model, digits):
    x, y = digits.batches(1, 2, seed=0)
    attack = attacks.DLG(iterations=2, init_mean=0.5, init_std=0.1, labels="known")
    noise, rival = defenses.GaussianNoise(0.1), RivalReading(0.1, "squared", 0.1)
    one, other = (attack(model, client.share(model, x, y, threat=TOLD, defense=d)) for d in (noise, rival))
    assert torch.equal(one.raw, other.raw)


def test_the_cosine_rival_sees_directions_and_the_absolute_one_magnitudes(model, digits):
    x, y = digits.batches(1, 2, seed=0)
    update = client.share(model, x, y, threat=TOLD, defense=RivalReading(0.0, "cosine"))
    reading, every = update.defense.counter(model, update), torch.arange(2)
    tripled = reading.as_shared({name: 3 * g for name, g in update.gradients.items()}, every)
    assert matching.distance(tripled, reading, every) == pytest.approx([0, 0], abs=1e-6)
    assert RivalReading(0.1, "absolute").counter(model, update).law == "laplace"
    with pytest.raises(ValueError, match="distance must be one of 'squared', 'absolute', 'cosine', got 'hinge'"):
        RivalReading(0.1, "hinge")
    with pytest.raises(ValueError, match="trust must be a finite number > 0, got 0.0"):
        RivalReading(0.1, "squared", 0.0)


def test_slices_add_up_to_the_update(model, digits):
    rows = graddefense_slices(model, digits)
    assert rows.fixed.sum() == sum(p.numel() for p in model.parameters()) and (rows.released >= 1).all()


def test_a_pruned_mixture_is_decoded_by_an_attacker_who_knows_of_the_pruning(digits):
    attack = attacks.DLG(iterations=1, max_iter=2, init_mean=0.5, init_std=0.1, labels="joint")
    settings = {"private": 4, "rounds": 2, "defense": defenses.IntraInstaHide, "seed": 0, "pool": digits}
    plain = experiments.decode_client(attack, digits, 0, **settings)
    pruned = experiments.decode_client(attack, digits, 0, **settings, then=defenses.TopK(0.9))
    assert len(pruned["scores"]) == 4 and not torch.equal(pruned["encodings"], plain["encodings"])


def test_random_spectra_keep_the_mean_and_the_deviation_of_each_frequency():
    torch.manual_seed(0)
    images = 0.5 + 0.05 * torch.randn(1, 1, 8, 8) + 0.02 * torch.randn(400, 1, 8, 8)
    made = random_spectra(images, client.generator(0, 0))
    torch.testing.assert_close(made.mean(0), images.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(made.std(0), images.std(0), atol=0.01, rtol=0)
    assert made.shape == images.shape and not torch.equal(made, images)


def test_learning_to_invert_from_other_images(model, digits, monkeypatch):
    seen = []
    monkeypatch.setattr(experiments.defenses, "attack_trials", lambda *given, **rest: seen.append((given, rest)))
    attack = attacks.LearningToInvert(digits, hidden=4, epochs=1)
    learned_from_other_classes(attack, digits, seed=0, trials=[0, 1])
    (own, private), rest = seen[0][0][:2], seen[0][1]
    assert private.labels.max() == 4 and len(rest["pool"]) <= 100 and rest["trials"] == [0, 1]
    known = own.auxiliary
    assert len(known) == 2 * int((digits.labels >= 5).sum()) and known.labels[: len(known) // 2].min() == 5
    hundred = replace(digits, labels=digits.labels * 10 + 3, classes=tuple(map(str, range(100))))
    learned_from_another_set(replace(attack, auxiliary=hundred), digits, seed=0, trials=[0])
    assert seen[1][0][0].auxiliary.labels.tolist() == [3] * len(digits)


def test_the_mean_guess_is_that_of_the_auxiliary_images(digits):
    rows = mean_guess(digits, digits, 3, 0)
    assert isinstance(rows, pd.DataFrame) and rows.trial.tolist() == [0, 1, 2] and rows.psnr.between(5, 30).all()
