"""Attackers of noise beside the maximum a posteriori, and the one whom the reconstruction bound means."""

from dataclasses import replace

import pytest
import torch

from reprolib import data, defenses, models
from reprolib.attacks import matching
from reprolib.experiments import rivals
from reprolib.experiments.defenses import encoded_mean_guess
from reprolib.federated import client
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics

TOLD = ThreatModel(labels="known", defense_known=True)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train", 200)


def test_the_squared_reading_of_laplace_noise_costs_what_gaussian_noise_of_its_trust_would(digits):
    model = models.build("lenet", digits.num_classes, digits.image_shape, seed=0)
    x, y = digits.batches(1, 2, seed=0)
    reading = rivals.SquaredReading(0.1, trust=0.3)
    update, plain = (client.share(model, x, y, threat=TOLD, defense=d, seed=1) for d in (reading, None))
    same = client.share(model, x, y, threat=TOLD, defense=defenses.LaplaceNoise(0.1), seed=1)
    assert all(torch.equal(g, same.gradients[name]) for name, g in update.gradients.items())
    every, costs = torch.arange(2), []
    for defense in (reading, defenses.GaussianNoise(0.3)):
        observation = defense.counter(model, replace(update, defense=defense))
        costs.append(matching.distance(plain.as_gradients(), observation, every) / observation.noise_std**2)
    assert torch.equal(*costs)


@pytest.mark.parametrize("trust", [0.0, -1.0, float("nan")])
def test_a_trust_is_positive(trust):
    with pytest.raises(ValueError, match="trust"):
        rivals.SquaredReading(0.1, trust=trust)


@pytest.mark.parametrize(("peak", "more", "best"), [(1, 0, 1), (5, 0, 2), (8, 3, 8), (8, 1, 4), (0.125, 3, 0.125)])
def test_a_weight_is_tuned_until_one_beyond_it_is_worse(peak, more, best):
    asked = []

    def score(factor):
        asked.append(factor)
        return -abs(torch.tensor(factor / peak).log().item())

    assert rivals.tuned(score, (1, 0.5, 2), more) == best
    assert len(asked) == len(set(asked)) <= 3 + more


def test_who_weighs_all_candidates_names_the_image_without_noise_and_guesses_under_much(digits):
    pool = digits.subset(slice(100, 120))
    t = rivals.weighed_candidates(digits, pool, 1.0, [0.0, 1e9], networks=60, seed=3)
    quiet, loud = (t[t.multiplier == z] for z in (0.0, 1e9))
    assert quiet.identified.all() and len(quiet) == len(loud) == 60
    assert loud.identified.mean() < 0.2
    assert set(t.chance) <= {1 / 21, 1 / 20}  # an image that the pool holds is one candidate


def test_weighing_is_the_same_whatever_other_multipliers_are_asked_for(digits):
    pool = digits.subset(slice(100, 120))
    one, two = (rivals.weighed_candidates(digits, pool, 1.0, zs, networks=5, seed=3) for zs in ([0.5], [0.1, 0.5]))
    assert one.identified.tolist() == two[two.multiplier == 0.5].identified.tolist()


def test_the_mean_guess_of_altered_images_is_scored_against_what_the_client_trained_on(digits):
    x = digits.batches(1, 4, seed=0)[0][:, 0]
    plain = encoded_mean_guess(digits, digits, None, 4, seed=0)
    assert plain.psnr.tolist() == pytest.approx(metrics.psnr(digits.mean_image.expand_as(x), x).tolist())
    altered = encoded_mean_guess(digits, digits, defenses.MixUp(digits), 4, seed=0)
    assert (altered.psnr > plain.psnr).all()  # a mixture of four is nearer to the mean than an image
