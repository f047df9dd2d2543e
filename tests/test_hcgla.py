"""HCGLA: gradients matched under the mask of what compression left, from images that a generator made of rows."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from reprolib import attacks, data, models
from reprolib.defenses import TopK
from reprolib.experiments.generators import fit_rows
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics
from reprolib.models import Victims

KNOWN = ThreatModel(labels="known")


@pytest.fixture(scope="module")
def victim() -> torch.nn.Module:
    return models.build("lenet", 50, (3, 32, 32), seed=0)


@pytest.fixture(scope="module")
def generator(victim) -> torch.nn.Module:
    return models.build_generator("dcgan", (3, 32, 32), 0, width=2, trunk=models.trunk_fingerprint(victim))


def batch(size: int = 1, trials: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(trials, size, 3, 32, 32, generator=random)
    return x, torch.stack([torch.randperm(50, generator=random)[:size] for _ in range(trials)])


def at_truth(attack, victim, x, update) -> torch.Tensor:
    (search,) = attack.searches(victim, update)
    return search.value(x.flatten(1), 0)


def test_the_truth_costs_nothing_under_the_mask(victim):
    x, y = batch()
    update = client.share(victim, x, y, threat=KNOWN, defense=TopK(0.99))
    told = client.share(victim, x, y, threat=ThreatModel(labels="known", defense_known=True), defense=TopK(0.99))
    cost = {
        mask: at_truth(attacks.HCGLA(start="random", mask=mask), victim, x, update) for mask in ("all", "head", "none")
    }
    assert (cost["all"] < 1e-10).all() and (cost["all"] < cost["head"]).all() and (cost["head"] < cost["none"]).all()
    assert (at_truth(attacks.HCGLA(start="random", mask="none"), victim, x, told) < 1e-10).all(), "the counter's slack"


def test_the_mask_of_the_head_is_of_its_weight_alone(victim):
    x, y = batch()
    clean = client.share(victim, x, y, threat=KNOWN)
    holes = {"head.weight": (slice(None), 0), "head.bias": (slice(None), 1), "conv1.bias": (slice(None), 2)}
    gradients = {name: g.clone() for name, g in clean.gradients.items()}
    for name, hole in holes.items():
        gradients[name][hole] = 0.0
    lost = {
        name: clean.gradients[name][hole].flatten(1 if name == "head.weight" else 0) for name, hole in holes.items()
    }
    square = {name: values.view(2, -1).square().sum(1) for name, values in lost.items()}
    cost = {
        mask: at_truth(attacks.HCGLA(start="random", mask=mask), victim, x, replace(clean, gradients=gradients))
        for mask in ("all", "head", "none")
    }
    torch.testing.assert_close(cost["none"], sum(square.values()), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(cost["head"], square["head.bias"] + square["conv1.bias"], rtol=1e-4, atol=1e-8)
    assert cost["all"].max() < 1e-10


def test_the_mask_is_of_all_that_was_shared_whatever_its_sign(victim):
    x, y = batch()
    update = client.share(victim, x, y, threat=KNOWN)
    for sign in (1, -1):
        gradients = {name: sign * g.abs() for name, g in update.gradients.items()}
        seen = attacks.HCGLA(start="random").observed(victim, replace(update, gradients=gradients))
        assert all(torch.equal(seen.weight[name], (g != 0).float()) for name, g in gradients.items())


def test_without_compression_and_generator_it_is_dlg_with_the_label_given(victim):
    x, y = batch()
    update = client.share(victim, x, y, threat=KNOWN)
    ours = attacks.HCGLA(start="random", learning_rate=1.0, iterations=2, max_iter=4)(
        victim, update, seed=3, snapshots=(0, 2)
    )
    theirs = attacks.DLG(labels="known", iterations=2, max_iter=4)(victim, update, seed=3)
    torch.testing.assert_close(ours.raw, theirs.raw)
    torch.testing.assert_close(ours.objective, theirs.objective)
    assert ours.history.iterations == [0, 2] and torch.equal(ours.history.images[1], ours.raw)


def test_the_start_is_what_the_generator_makes_of_the_rows(victim, generator):
    x, y = batch(2)
    update = client.share(victim, x, y, threat=KNOWN, defense=TopK(0.9))
    found = attacks.HCGLA(generator, iterations=0)(victim, update)
    rows = update.gradients["head.weight"][1, y[1]]
    generator.train()
    torch.testing.assert_close(found.raw[1], copy.deepcopy(generator).eval()(rows))
    assert torch.equal(attacks.HCGLA(generator, iterations=0)(victim, update).raw, found.raw)
    double, free = copy.deepcopy(victim).double(), copy.deepcopy(generator)
    free.trunk = ""  # of no state of the weights, whose fingerprint another dtype changes
    wide = client.share(double, x.double(), y, threat=KNOWN, defense=TopK(0.9))
    torch.testing.assert_close(attacks.HCGLA(free, iterations=0)(double, wide).raw, found.raw.double())
    assert (found.evaluations == 0).all() and found.objective.isfinite().all()
    single = client.share(victim, *batch(), threat=KNOWN)
    assert generator.training, "what runs in evaluation mode is a copy"
    generator.eval()
    mean = attacks.HCGLA(generator, start="mean_of_rows", iterations=0)(victim, single)
    torch.testing.assert_close(mean.raw[0, 0], generator(single.gradients["head.weight"][0]).mean(0))


def test_a_search_lowers_the_objective_and_trials_do_not_mix(victim, generator):
    x, y = batch()
    update = client.share(victim, x, y, threat=KNOWN, defense=TopK(0.9))
    attack = attacks.HCGLA(generator, iterations=1, max_iter=5, iterate="best")
    start, found = attacks.HCGLA(generator, iterations=0)(victim, update), attack(victim, update)
    assert (found.objective < start.objective).all()
    alone = attack(victim, client.share(victim, x[1:], y[1:], threat=KNOWN, defense=TopK(0.9)))
    torch.testing.assert_close(alone.raw[0], found.raw[1], rtol=1e-3, atol=1e-3)


def test_lost_rows_are_counted(victim, generator):
    x, y = batch(4)
    update = client.share(victim, x, y, threat=KNOWN, defense=TopK(1 - 1e-4))
    found = attacks.HCGLA(generator, iterations=0)(victim, update)
    rows = update.gradients["head.weight"][torch.arange(2)[:, None], y]
    assert torch.equal(found.lost, (rows == 0).all(2)) and found.lost.any() and found.raw.isfinite().all()


def test_presets(generator):
    official = attacks.HCGLA.official(generator)
    assert (official.iterations, official.learning_rate, official.mask, official.start) == (
        42,
        0.01,
        "all",
        "generated",
    )
    assert attacks.HCGLA.single(generator).start == "mean_of_rows"
    assert attacks.HCGLA.masked_dlg() == attacks.HCGLA(start="random", learning_rate=1.0)


def test_the_published_generator():
    with torch.device("meta"):
        model = models.GENERATORS["dcgan"]((3, 32, 32))
        assert model(torch.empty(2, 768)).shape == (2, 3, 32, 32)
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4]
    assert [s[:2] for s in shapes] == [(768, 512), (512, 256), (256, 128), (128, 64), (64, 3)]


def test_a_generator_learns_from_compressed_rows(victim):
    photos = data.load("photos", "train", count=8)
    settings = {"minibatch": 8, "learning_rate": 3e-2, "width": 2}
    model = fit_rows(victim, photos, TopK(0.98), epochs=25, **settings)
    assert model.trunk == models.trunk_fingerprint(victim) and not model.training
    x, y = photos.images[:, None], torch.arange(8)[:, None]
    update = client.share(victim, x, y, threat=KNOWN, defense=TopK(0.98))
    untrained = fit_rows(victim, photos, TopK(0.98), epochs=0, **settings)
    error = [
        metrics.mse(attacks.HCGLA(own, iterations=0)(victim, update).images, x).mean() for own in (model, untrained)
    ]
    assert error[0] < 0.8 * error[1]
    again, same = (fit_rows(victim, photos, TopK(0.98), epochs=1, **settings) for _ in range(2))
    assert models.fingerprint(again) == models.fingerprint(same)


def test_bad_input_is_refused(victim, generator):
    x, y = batch(2)
    update = client.share(victim, x, y, threat=KNOWN)
    other = models.build("lenet", 50, (3, 32, 32), seed=1)
    attack = attacks.HCGLA(generator)
    wide = models.build_generator("dcgan", (3, 32, 32), 0, width=2, features=12)
    cases = [
        (
            attack,
            other,
            client.share(other, x, y, threat=KNOWN),
            "generator was trained for the trunk .* train another",
        ),
        (
            attack,
            victim,
            client.share(victim, x, y),
            "labels='known' needs labels in the update",
        ),
        (attack, victim, client.share(victim, x, y, threat=KNOWN, local=LocalTraining(2, 2, 0.1)), "of 2 local steps"),
        (attacks.HCGLA.single(generator), victim, update, "start='mean_of_rows' is for single images.*batch_size=2"),
        (attacks.HCGLA(wide), victim, update, "generator takes 12 features, the model's head has 768"),
    ]
    for own, model, shared, message in cases:
        with pytest.raises(ValueError, match=message):
            own(model, shared)
    together = Victims.of([victim, other], 1)
    joined = client.SharedUpdate.join([client.share(m, x[:1], y[:1], threat=KNOWN) for m in (victim, other)], together)
    with pytest.raises(ValueError, match="a generator belongs to one trunk, but these are several victims"):
        attack(together, joined)
    for make, message in (
        (lambda: attacks.HCGLA(), "start='generated' goes with a generator"),
        (lambda: attacks.HCGLA(generator, start="random"), "start='random' goes without a generator"),
        (lambda: attacks.HCGLA(generator, mask="conv"), "mask must be one of 'all', 'head', 'none', got 'conv'"),
        (lambda: attacks.HCGLA(generator, iterations=-1), "iterations must be a whole number >= 0, got -1"),
        (lambda: models.build_generator("dcgan", (3, 16, 16), 0), "this generator gives images of 32 x 32 pixels"),
        (lambda: fit_rows(victim, data.load("photos", count=8), None, batch=60), "the victim has 50 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
