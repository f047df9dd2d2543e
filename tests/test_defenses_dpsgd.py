"""DP-SGD, its accountant and its bound (defenses.md 8.6, 8.7), and clipping (8.5)."""

import math
from dataclasses import replace

import pytest
import torch

from reprolib import attacks, defenses, models
from reprolib.attacks.matching import Matching, cosine, dummy_gradients, dummy_gradients_of_images
from reprolib.defenses import DPSGD, Clipping, Compose, GaussianNoise, MixUp, TopK, reconstruction_bound
from reprolib.defenses.clipping import clipped
from reprolib.federated.client import LocalTraining, image_gradients, share
from reprolib.federated.observation import Observation
from reprolib.federated.threat import ThreatModel


@pytest.fixture
def mlp():
    return models.build("mlp", 4, (1, 3, 3), seed=0)


@pytest.fixture
def batch():
    return torch.rand(2, 3, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1, 2], [3, 3, 0]])


def norm(gradients) -> torch.Tensor:
    return sum(g.double().flatten(1).square().sum(1) for g in gradients.values()).sqrt()


# --- clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.1, 0.9, 1.1])
def test_clipping_shortens_what_is_longer_and_keeps_the_direction(mlp, batch, factor):
    plain = share(mlp, *batch)
    limit = factor * float(norm(plain.gradients)[0])
    shared = share(mlp, *batch, defense=Clipping(limit)).gradients
    assert norm(shared)[0] <= limit * (1 + 1e-6)
    if factor < 1:
        assert norm(shared)[0] == pytest.approx(limit, rel=1e-6)
    else:
        assert all(torch.equal(shared[name][0], g[0]) for name, g in plain.gradients.items())
    assert (cosine(shared, Observation(plain.gradients), torch.arange(2)).abs() < 1e-6).all()


def test_clipping_a_tensor_at_a_time_bounds_each(mlp, batch):
    shared = share(mlp, *batch, defense=Clipping(1e-3, scope="tensor")).gradients
    assert all((g.flatten(1).norm(dim=1) <= 1e-3 * (1 + 1e-6)).all() for g in shared.values())
    assert norm(shared)[0] == pytest.approx(1e-3 * math.sqrt(len(shared)), rel=1e-5)


@pytest.mark.parametrize("limit", [1e-3, 10.0])
def test_a_gradient_of_zero_has_a_slope_to_clip(limit):
    g = torch.zeros(2, 3, requires_grad=True)
    clipped({"a": g}, limit)["a"].sum().backward()
    assert g.grad.isfinite().all()


def test_clipping_hides_nothing_from_the_closed_form(mlp, batch):
    images, labels = batch[0][:, :1], batch[1][:, :1]
    update = share(mlp, images, labels, defense=Clipping(1e-2))
    found = attacks.AnalyticRecovery()(mlp, update)
    torch.testing.assert_close(found.raw, images, rtol=0, atol=1e-5)


def test_an_attack_on_directions_does_not_see_clipping(mlp, batch):
    images, labels = batch[0][:, :1], batch[1][:, :1]
    dummies = dummy_gradients(mlp, torch.rand_like(images), torch.full((2, 1, 4), 0.25))
    trials = torch.arange(2)
    values = [
        cosine(dummies, Observation(share(mlp, images, labels, defense=defense).gradients), trials)
        for defense in (None, Clipping(1e-3))
    ]
    torch.testing.assert_close(*values, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("defense", "observes"),
    [
        (Clipping(0.05), "one client"),  # clipped means of several clients are read as one's, an approximation
        (Clipping(0.05, "tensor"), "one client"),
        (DPSGD(0.05, 0.0), "one client"),
        (DPSGD(0.05, 0.0), "mean of 3"),
    ],
    ids=str,
)
def test_the_truth_costs_an_attacker_who_clips_too_nothing(mlp, batch, defense, observes):
    images, labels = batch
    update = share(mlp, images, labels, defense=defense, threat=ThreatModel(observes=observes))
    soft = torch.nn.functional.one_hot(labels, 4).float()

    def parts(x, trials):
        return x.view(-1, *images.shape[1:]), soft[trials]

    cost = [
        Matching(mlp, reading, parts)(images.flatten(1), torch.arange(2))[0].sum()
        for reading in (defense.counter(mlp, update), Observation(update.gradients))
    ]
    assert cost[0] < 1e-10 < 1e-3 < cost[1]


@pytest.mark.parametrize(("observes", "clients"), [("one client", 1), ("mean of 3", 3)])
@pytest.mark.parametrize("expected", [None, 1, 5])
def test_the_truth_costs_nothing_whatever_the_sum_is_divided_by(mlp, expected, observes, clients):
    images = torch.rand(2, 6, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, model = torch.arange(12).view(2, 6) % 4, mlp.double()
    threat = ThreatModel(observes=observes)
    defense = DPSGD(0.05, 0.0, expected_batch=expected)
    update = share(model, images, labels, defense=defense, threat=threat)
    soft = torch.nn.functional.one_hot(labels, 4).double()
    objective = Matching(model, defense.counter(model, update), lambda x, t: (x.view(-1, 6, 1, 3, 3), soft[t]))
    assert objective(images.flatten(1), torch.arange(2))[0].max() < 1e-20
    assert objective(0.5 * images.flatten(1), torch.arange(2))[0].min() > 1e-12
    # and the noise is that of a mean over clients of sums over the expected batch
    noisy = DPSGD(0.05, 2.0, expected_batch=expected)
    size = expected or 6 // clients
    assert noisy.counter(model, update).noise_std == pytest.approx(2.0 * 0.05 / size / math.sqrt(clients))
    seen = share(model, images, labels, defense=noisy, threat=threat).gradients
    noise = torch.cat([(seen[name] - g).flatten() for name, g in update.gradients.items()])
    assert noise.std().item() == pytest.approx(noisy.counter(model, update).noise_std, rel=0.02)


# --- DP-SGD -----------------------------------------------------------------------------------------------------------


def test_each_image_counts_with_at_most_the_norm(mlp):
    images = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    labels, limit = torch.tensor([0, 1, 2, 3, 0, 1]), 0.02

    def total(keep):
        defense = DPSGD(limit, 0.0, expected_batch=1)
        return share(mlp, images[None, keep], labels[None, keep], defense=defense).gradients

    everything = total(list(range(6)))
    for left_out in range(6):
        rest = total([i for i in range(6) if i != left_out])
        assert norm({name: everything[name] - rest[name] for name in rest})[0] <= limit * (1 + 1e-5)


def test_dpsgd_is_the_mean_of_clipped_gradients_and_noise(mlp, batch):
    images, labels = batch[0][:1], batch[1][:1]
    each = image_gradients(mlp, images[0], labels[0])
    factors = (0.05 / norm(each)).clamp(max=1).float()
    shared = share(mlp, images, labels, defense=DPSGD(0.05, 0.0)).gradients
    for name, g in each.items():
        expected = (factors.view(-1, *[1] * (g.ndim - 1)) * g).mean(0)
        torch.testing.assert_close(shared[name][0], expected)
    noisy = [share(mlp, images, labels, defense=DPSGD(0.05, 2.0), seed=s).gradients for s in range(20)]
    noise = torch.cat([(run["hidden1.weight"] - shared["hidden1.weight"]).flatten() for run in noisy])
    assert noise.std() == pytest.approx(2.0 * 0.05 / 3, rel=0.02)
    reading = DPSGD(0.05, 2.0).counter(mlp, share(mlp, images, labels, defense=DPSGD(0.05, 2.0)))
    assert reading.noise_std == pytest.approx(2.0 * 0.05 / 3)


def test_no_clipping_and_no_noise_return_the_same_bits(mlp, batch):
    plain, same = share(mlp, *batch), share(mlp, *batch, defense=DPSGD(math.inf, 0.0))
    assert all(torch.equal(plain.gradients[name], g) for name, g in same.gradients.items())


def test_gradients_of_each_dummy_image_are_averaged_after_the_change(mlp, batch):
    images, labels = batch
    soft = torch.nn.functional.one_hot(labels, 4).float()
    same = dummy_gradients_of_images(mlp, images, soft, lambda each: each)
    for name, g in dummy_gradients(mlp, images, soft).items():
        torch.testing.assert_close(same[name], g)


def test_what_is_changed_image_by_image_is_matched_without_local_steps(mlp, batch):
    update = share(mlp, *batch, defense=DPSGD(0.05, 0.0))
    with pytest.raises(ValueError, match="the defense changes the gradient of each image, which is matched without"):
        Matching(mlp, DPSGD(0.05, 0.0).counter(mlp, update), lambda x, t: (x, t), local=LocalTraining(1, 1, 0.1))


def test_batch_norm_is_refused():
    model = models.build("resnetbn8", 4, (3, 32, 32), seed=0)
    with pytest.raises(ValueError, match="DPSGD on a model with batch norm .*use a model with group norm"):
        share(model, torch.rand(1, 2, 3, 32, 32), torch.tensor([[0, 1]]), defense=DPSGD(1.0, 1.0))


def test_several_local_steps_are_refused(mlp, batch):
    with pytest.raises(ValueError, match="works on the gradient of each image, but the update is not their mean"):
        share(mlp, *batch, defense=DPSGD(1.0, 1.0), local=LocalTraining(2, 1, 0.1))


# --- the accountant ---------------------------------------------------------------------------------------------------

REFERENCE = [
    (256 / 60000, 1.1, 14062, 3.008, 2.597),
    (250 / 60000, 1.3, 3600, 1.180, 0.942),
    (0.01, 1.0, 1000, 2.538, 2.101),
    (0.01, 4.0, 10000, 1.259, 1.035),
    (1.0, 1.0, 1, 5.299, 4.729),
    (1.0, 0.5, 1, 11.597, 10.726),
]


@pytest.mark.parametrize(("q", "z", "steps", "old", "new"), REFERENCE)
def test_epsilon_is_that_of_the_reference(q, z, steps, old, new):
    defense = DPSGD(1.0, z, sample_rate=q)
    assert defense.epsilon(steps, 1e-5, "mironov") == pytest.approx(old, abs=1.5e-3)
    assert defense.epsilon(steps, 1e-5) == pytest.approx(new, abs=1.5e-3)


def test_the_accountant_has_the_renyi_divergence_of_the_sampled_gaussian():
    rdp = pytest.importorskip("opacus.accountants.analysis.rdp")
    for alpha, value in ((2.0, 1.71813e-4), (2.5, 2.17575e-4), (8.0, 8.93644e-4)):
        assert rdp.compute_rdp(q=0.01, noise_multiplier=1.0, steps=1, orders=alpha) == pytest.approx(value, rel=1e-4)


def test_epsilon_grows_with_steps_and_sampling_and_falls_with_noise():
    base = DPSGD(1.0, 1.0, sample_rate=0.01)
    assert base.epsilon(100, 1e-5) < base.epsilon(1000, 1e-5)
    assert base.epsilon(100, 1e-5) < replace(base, sample_rate=0.1).epsilon(100, 1e-5)
    assert base.epsilon(100, 1e-5) > replace(base, noise_multiplier=2.0).epsilon(100, 1e-5)
    assert replace(base, noise_multiplier=0.0).epsilon(1, 1e-5) == math.inf


def test_an_upload_has_no_sampling_to_hide_behind():
    defense = DPSGD(1.0, 1.0, sample_rate=0.01)
    assert defense.epsilon_of_an_upload(1e-5) == pytest.approx(4.729, abs=1.5e-3)
    assert defense.epsilon_of_an_upload(1e-5) > defense.epsilon(1, 1e-5)


def test_what_comes_after_keeps_the_epsilon():
    assert Compose([DPSGD(1.0, 1.0), TopK(0.9)]).epsilon(1, 1e-5) == DPSGD(1.0, 1.0).epsilon(1, 1e-5)


@pytest.mark.parametrize("defense", [GaussianNoise(0.1), Compose([Clipping(1.0), GaussianNoise(0.1)])], ids=str)
def test_unclipped_noise_has_no_epsilon(defense):
    with pytest.raises(
        ValueError, match=r"there is no epsilon for .*Gaussian noise, std 0.1: unless the gradient of each"
    ):
        defense.epsilon(1, 1e-5)


@pytest.mark.parametrize(
    ("prior", "noise", "bound"),
    [
        *((0.1, z, b) for z, b in ((0.5, 0.764), (1, 0.389), (2, 0.217), (5, 0.140), (10, 0.119))),
        *((0.01, z, b) for z, b in ((0.5, 0.372), (1, 0.0924), (2, 0.0339), (5, 0.0167), (10, 0.0130))),
    ],
)
def test_reconstruction_is_bounded(prior, noise, bound):
    assert reconstruction_bound(prior, noise) == pytest.approx(bound, rel=5e-3)


def test_the_bound_begins_at_the_prior_and_refuses_what_is_no_chance():
    assert reconstruction_bound(0.01, math.inf) == pytest.approx(0.01)
    with pytest.raises(ValueError, match=r"prior must lie in \[0, 1\], got 2"):
        reconstruction_bound(2, 1.0)
    with pytest.raises(ValueError, match="noise_multiplier must be a number > 0, got 0"):
        reconstruction_bound(0.1, 0)


def test_without_noise_its_name_promises_no_privacy():
    assert str(DPSGD(1.0, 0.0)) == "clipping each image to 1"
    assert str(DPSGD(1.0, 2.0)) == "DP-SGD, clipping to 1, noise multiplier 2"


# --- order and bad settings -------------------------------------------------------------------------------------------


def test_orders_that_make_no_sense_are_refused(batch):
    from reprolib import data

    own = data.load("digits", "train", 20)
    for members, message in (
        ([TopK(0.9), DPSGD(1.0, 1.0)], "DP-SGD.*would not see what pruning 90% made of their mean: put it first"),
        ([Compose([TopK(0.9)]), DPSGD(1.0, 1.0)], "DP-SGD.*would not see what pruning 90%"),
        ([DPSGD(1.0, 1.0), DPSGD(1.0, 1.0)], "DP-SGD.*would not see what DP-SGD"),
        ([TopK(0.9), MixUp(own)], "MixUp of 4 alters the images, before there is a gradient for pruning 90%: put it"),
        ([MixUp(own), DPSGD(1.0, 1.0)], "DP-SGD.* after MixUp of 4: an image enters several mixtures"),
    ):
        with pytest.raises(ValueError, match=message):
            Compose(members)
    Compose([MixUp(own), TopK(0.9)])
    Compose([DPSGD(1.0, 1.0), TopK(0.9)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clipping(0.0), "max_norm must be a number > 0, got 0.0"),
        (lambda: Clipping(float("nan")), "max_norm must be a number > 0, got nan"),
        (lambda: Clipping(1.0, "layer"), "scope must be one of 'global', 'tensor', got 'layer'"),
        (lambda: DPSGD(-1.0, 1.0), "max_norm must be a number > 0, got -1.0"),
        (lambda: DPSGD(1.0, -1.0), "noise_multiplier must be a finite number >= 0, got -1.0"),
        (lambda: DPSGD(math.inf, 1.0), "max_norm=inf clips nothing"),
        (lambda: DPSGD(1.0, 1.0, sample_rate=0), r"sample_rate must lie in \(0, 1\], got 0"),
        (lambda: DPSGD(1.0, 1.0, expected_batch=0), "expected_batch must be a whole number >= 1, got 0"),
        (lambda: DPSGD(1.0, 1.0).epsilon(0, 1e-5), "steps must be a whole number >= 1, got 0"),
        (lambda: DPSGD(1.0, 1.0).epsilon(True, 1e-5), "steps must be a whole number >= 1, got True"),
        (lambda: DPSGD(1.0, 1.0).epsilon(2.5, 1e-5), "steps must be a whole number >= 1, got 2.5"),
        (lambda: DPSGD(1.0, 1.0).epsilon(1, "3"), r"delta must lie in \(0, 1\), got '3'"),
        (lambda: DPSGD(1.0, 1.0).epsilon(1, 0), r"delta must lie in \(0, 1\), got 0"),
        (lambda: DPSGD(1.0, 1.0).epsilon(1, 1e-5, "new"), "conversion must be one of 'balle', 'mironov', got 'new'"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_defenses_with_numbers_are_built_by_name():
    assert defenses.build("DPSGD", max_norm=1.0, noise_multiplier=1.1) == DPSGD(1.0, 1.1)
    assert defenses.build("Clipping", max_norm=1.0) == Clipping(1.0)


# --- aggregation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [2, 4])
def test_the_mean_of_clients_is_the_gradient_of_their_joint_batch(clients):
    model = models.build("lenet", 4, (1, 8, 8), seed=0).double()
    images = torch.rand(2, 4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 1]])
    joint = share(model, images, labels)
    mean = share(model, images, labels, threat=ThreatModel(observes=f"mean of {clients}"))
    for name, g in joint.gradients.items():
        torch.testing.assert_close(mean.gradients[name], g, rtol=0, atol=1e-6)


# --- the same attack with and without knowledge -----------------------------------------------------------------------


# the gradients are 2.9 long: clipped to 1 the informed search works, at 0.05 it stalls at just half of the static error
@pytest.mark.parametrize("defense", [TopK(0.7), Clipping(1.0), DPSGD(1.0, 0.0)], ids=str)
def test_knowing_the_defense_is_never_worse(defense):
    from reprolib import data

    digits = data.load("digits", "test", 40)
    images, labels = digits.batches(1, 8, seed=0)
    model = models.build("mlp", 10, digits.image_shape, seed=0, width=32)
    attack = attacks.DLG(iterations=5, init_mean=0.5, init_std=0.1, labels="known", iterate="best")
    error = {}
    for known in (False, True):
        threat = ThreatModel(labels="known", defense_known=known)
        found = attack(model, share(model, images, labels, threat=threat, defense=defense))
        error[known] = (found.images - images).square().flatten(1).mean(1)
    assert error[True].mean() < 0.5 * error[False].mean()
