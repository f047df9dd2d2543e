"""What training under a defense costs: the update rule, its randomness, and the choice of the learning rate."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reprolib import data, defenses, models
from reprolib.experiments import utility
from reprolib.federated.streams import generator


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train", 300), data.load("digits", "test", 200)


def lenet(images, seed=0):
    return models.build("lenet", images.num_classes, images.image_shape, seed=seed, activation="relu", init="default")


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_step_is_sgd_on_what_the_client_shares(digits):
    train, _ = digits
    model, rate, defense = lenet(train), 0.1, defenses.TopK(0.5)
    index = torch.randint(len(train), (8,), generator=generator(3, 0))
    x, y = train.images[index], train.labels[index]
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    named = dict(zip(dict(model.named_parameters()), gradients, strict=True))
    shared = defense.protect(named, model, x, y, generator(3, 0, 1))
    expected = torch.cat([(p - rate * shared[n]).detach().flatten() for n, p in model.named_parameters()])
    trained = utility.train(model, train, 1, rate, batch_size=8, defense=defense, seed=3)
    torch.testing.assert_close(weights(trained), expected)


def test_a_defense_that_protects_nothing_costs_nothing(digits):
    train, _ = digits
    plain, silent = (
        utility.train(lenet(train), train, 5, 0.1, batch_size=8, defense=defense)
        for defense in (None, defenses.GaussianNoise(0.0))
    )
    assert torch.equal(weights(plain), weights(silent))


def test_noise_is_new_at_every_step_and_repeats_under_the_same_seed(digits):
    train, _ = digits
    runs = [
        weights(utility.train(lenet(train), train, 2, 0.1, batch_size=8, defense=defenses.GaussianNoise(0.1), seed=s))
        for s in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_training_that_diverges_ends_with_a_model_that_can_be_scored(digits):
    train, test = digits
    model = utility.train(lenet(train), train, 30, 1e20, batch_size=8)
    assert not model.training
    assert 0 <= utility.accuracy(model, test) <= 1


def test_accuracy_is_one_on_its_own_predictions_and_zero_beside_them():
    images = data.load("digits", "test", 50)
    model = lenet(images)
    predicted = model(images.images).argmax(1)
    assert utility.accuracy(model, replace(images, labels=predicted)) == 1.0
    assert utility.accuracy(model, replace(images, labels=(predicted + 1) % images.num_classes)) == 0.0


def test_outputs_that_are_no_numbers_are_wrong_in_every_class():
    images = data.load("digits", "test", 50)
    model = lenet(images)
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    for label in range(images.num_classes):
        assert utility.accuracy(model, replace(images, labels=torch.full_like(images.labels, label))) == 0.0


def test_strong_noise_costs_accuracy_and_the_table_has_a_row_a_seed(digits):
    plain, noisy = (
        utility.with_defense(*digits, defense, steps=150, seeds=2, learning_rates=(0.1,))
        for defense in (None, defenses.GaussianNoise(1.0))
    )
    assert list(plain.columns) == ["defense", "seed", "learning_rate", "accuracy"]
    assert plain.seed.tolist() == [0, 1]
    assert plain.defense.unique().tolist() == ["no defense"]
    assert plain.accuracy.mean() > 0.5
    assert plain.accuracy.mean() > noisy.accuracy.mean() + 0.1


def test_the_learning_rate_is_the_best_of_those_offered(digits):
    table = utility.with_defense(*digits, None, steps=60, seeds=1, learning_rates=(1e-6, 0.1))
    assert table.learning_rate.tolist() == [0.1]


def test_no_model_trains_on_the_images_that_choose_its_rate(digits):
    train, test = digits
    labels = train.labels.clone()
    labels[-30:] = (labels[-30:] + 1) % train.num_classes
    tables = [
        utility.with_defense(own, test, None, steps=40, seeds=1, learning_rates=(0.1,))
        for own in (train, replace(train, labels=labels))
    ]
    assert tables[0].equals(tables[1])


def test_the_learning_rate_is_not_chosen_on_the_test_images(digits):
    # test labels under which a network that has learned nothing is always right
    train, test = digits
    told = replace(test, labels=lenet(train)(test.images).argmax(1))
    table = utility.with_defense(train, told, None, steps=60, seeds=1, learning_rates=(1e-6, 0.1))
    assert table.learning_rate.tolist() == [0.1]
