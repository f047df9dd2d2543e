"""Learning to invert: it learns, it adapts, and its numbers are those of its seed."""

import pytest
import torch

from reprolib import data, models
from reprolib.attacks import LearningToInvert, lti
from reprolib.defenses import GaussianNoise, SignCompression
from reprolib.federated.client import LocalTraining, share
from reprolib.federated.threat import ThreatModel
from reprolib.measure.metrics import mse


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train", 400), data.load("digits", "test", 64)


@pytest.fixture(scope="module")
def model(digits):
    return models.build("mlp", 10, digits[0].image_shape, seed=0, width=16)


def attack(auxiliary, epochs=10, **settings):
    return LearningToInvert(auxiliary, 128, epochs, 4e-3, 60, standardised=True, **settings)


def test_it_beats_the_mean_image_and_knowing_the_defense_helps(digits, model):
    auxiliary, victims = digits
    x, y = victims.batches(1, 32, seed=0)
    mean = mse(auxiliary.images.mean(0).expand_as(x), x).mean()
    error = {}
    for known in (False, True):
        update = share(model, x, y, threat=ThreatModel(defense_known=known), defense=SignCompression())
        found = attack(auxiliary)(model, update)
        assert found.images.shape == x.shape and found.labels.shape == y.shape
        assert found.objective.unique().numel() == 1 and found.evaluations[0] == 10 * 360
        error[known] = mse(found.images, x).mean()
    assert error[True] < 0.8 * mean and error[True] < error[False]


def test_the_same_seed_gives_the_same_images_whatever_trials_are_beside(digits, model):
    auxiliary, victims = digits
    x, y = victims.batches(1, 4, seed=0)
    update = share(model, x, y, threat=ThreatModel(defense_known=True), defense=GaussianNoise(0.1))
    short = attack(auxiliary, epochs=1)
    first, again, other = (short(model, update, seed=s).images for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.testing.assert_close(short(model, update.select([2])).images, first[2:3])


def test_a_pair_is_defended_anew_whenever_it_is_made(digits, model):
    auxiliary, victims = digits
    told = {"threat": ThreatModel(defense_known=True), "defense": GaussianNoise(0.1)}
    inverter = lti._Inverter(attack(auxiliary), model, share(model, *victims.batches(1, 1, seed=0), **told), 0)
    (first,), (again,) = (list(inverter._minibatches(torch.tensor([7]))) for _ in range(2))
    assert torch.equal(first[1], again[1])
    assert (first[0] - again[0]).std() == pytest.approx(0.1 * 2**0.5, rel=0.1)


def test_it_learns_from_weight_differences_where_clients_share_those(digits, model):
    auxiliary, victims = digits
    batch = victims.batches(1, 1, seed=0)
    shared = [share(model, *batch, local=local) for local in (None, LocalTraining(1, 1, 0.5))]
    gradient, difference = (
        next(lti._Inverter(attack(auxiliary), model, update, 0)._minibatches(torch.tensor([7]))) for update in shared
    )
    torch.testing.assert_close(difference[0], -0.5 * gradient[0])


def test_batches_are_matched_before_the_loss(digits, model):
    auxiliary, victims = digits
    x, y = victims.batches(2, 3, seed=0)
    found = attack(auxiliary, epochs=1, coordinates=100)(model, share(model, x, y))
    assert found.images.shape == x.shape and found.evaluations[0] == 180


def test_images_of_a_batch_find_their_own_in_whatever_order(digits, model):
    auxiliary, victims = digits
    x, y = victims.batches(3, 2, seed=0)
    inverter = lti._Inverter(attack(auxiliary), model, share(model, x, y), 0)
    for order in ([1, 2, 0], [2, 0, 1], [0, 2, 1]):
        inverter._images = lambda entries, order=order: x[:, order]
        assert inverter._loss(torch.empty(2, 0), x) == 0, order


def test_the_held_out_error_is_a_mean_over_images_however_they_are_split(digits, model):
    auxiliary, victims = digits
    update = share(model, *victims.batches(1, 1, seed=0))
    # of 40 held-out images; a rate that moves nothing
    whole, parts = (LearningToInvert(auxiliary, 8, 1, 1e-12, minibatch)(model, update) for minibatch in (40, 39))
    torch.testing.assert_close(parts.objective, whole.objective, rtol=1e-5, atol=0)


def test_several_victims_each_get_a_perceptron(digits):
    from reprolib.federated.update import SharedUpdate
    from reprolib.models import Victims

    auxiliary, victims = digits
    x, y = victims.batches(1, 2, seed=0)
    networks = [models.build("mlp", 10, auxiliary.image_shape, seed=s, width=16) for s in (0, 1)]
    updates = [share(net, x[i, None], y[i, None]) for i, net in enumerate(networks)]
    together = Victims.of(networks, 1)
    both = attack(auxiliary, epochs=1)(together, SharedUpdate.join(updates, together))
    for i, net in enumerate(networks):
        torch.testing.assert_close(both.images[i, None], attack(auxiliary, epochs=1)(net, updates[i]).images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden must be a whole number >= 1, got 0"),
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"minibatch": 1.5}, "minibatch must be a whole number >= 1, got 1.5"),
        ({"coordinates": 0}, "coordinates must be a whole number >= 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
    ],
)
def test_bad_settings_are_refused(digits, settings, message):
    with pytest.raises(ValueError, match=message):
        LearningToInvert(digits[0], **settings)


def test_auxiliary_images_must_fit(digits, model):
    x, y = digits[1].batches(1, 1, seed=0)
    with pytest.raises(ValueError, match=r"auxiliary images are of shape \(3, 32, 32\), the update's \(1, 8, 8\)"):
        LearningToInvert(data.load("photos", "train", 20))(model, share(model, x, y))
    with pytest.raises(ValueError, match="auxiliary must be an ImageSet of at least 20 images"):
        LearningToInvert(data.load("digits", "train", 10))
    x, y = digits[1].batches(4, 1, seed=0)
    with pytest.raises(ValueError, match="auxiliary holds 30 images, too few for batches of 4: expected at least 40"):
        LearningToInvert(data.load("digits", "train", 30))(model, share(model, x, y))
    with pytest.raises(ValueError, match="LearningToInvert keeps no snapshots, got 1"):
        LearningToInvert(digits[0])(model, share(model, x, y), snapshots=[1])
