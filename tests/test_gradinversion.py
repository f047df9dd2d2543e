"""GradInversion: its terms at the truth, its schedule and noise, and seeds that agree."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reprolib import attacks, data, models
from reprolib.attacks import GradInversion, labels, matching, priors
from reprolib.attacks.matching import Matching
from reprolib.experiments import gradinversion
from reprolib.experiments.measures import gradinversion as measures
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.observation import Observation
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics
from reprolib.models import fingerprint
from reprolib.optimizers import Minimum, langevin_adam, warm_cosine

SHAPE, CLASSES = (3, 12, 12), 6
NORMAL = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
SHORT = replace(GradInversion.paper().compressed(8), seeds=2, labels="known", group_start=2, group_every=3)


def victim(dtype=torch.float64, **options):
    return models.build("resnetbn8", CLASSES, SHAPE, seed=1, normalize=NORMAL, **({"width": 4} | options)).to(dtype)


def batch(trials=1, size=3, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    images = torch.rand(trials, size, *SHAPE, generator=random, dtype=dtype)
    return images, torch.stack([torch.randperm(CLASSES, generator=random)[:size] for _ in range(trials)])


def known(mode="train", batch_norm="exact"):
    return ThreatModel(mode=mode, labels="known", batch_norm=batch_norm)


def soft(y):
    return F.one_hot(y, CLASSES).double()


# --- labels


@pytest.mark.parametrize("rule", ["yin", "yin_sum"])
def test_distinct_labels_are_read_off_positive_features(rule):
    random = torch.Generator().manual_seed(0)
    for size, classes in ((1, 120), (8, 120)):
        y = torch.randperm(classes, generator=random)[:size]
        p = (torch.rand(size, classes, generator=random) * 3).softmax(1)
        h = torch.rand(size, 40, generator=random)
        weight = (p - F.one_hot(y, classes)).T @ h / size
        assert labels.infer_counts(weight[None], None, size, rule)[0].nonzero()[:, 0].tolist() == sorted(y.tolist())
    same = torch.full((4,), 2)
    p = torch.full((4, 6), 1 / 6)
    weight = (p - F.one_hot(same, 6)).T @ torch.rand(4, 5, generator=random) / 4
    found = labels.infer_counts(weight[None], None, 4, rule)[0]
    assert metrics.label_overlap(found.nonzero().T, same[None]).item() == 1 / 4  # distinct guesses, one label


def test_the_heads_gradient_is_the_analytic_one():
    model, (x, y) = victim(), batch()
    h = models.penultimate(client.worker(model, "train"), x[0])
    p = model.head(h).softmax(1)
    gradients = client.share(model, x, y, threat=ThreatModel(mode="train")).gradients
    torch.testing.assert_close(gradients["head.weight"][0], (p - soft(y[0])).T @ h / 3, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradients["head.weight"][0].sum(0), torch.zeros_like(h[0]), rtol=0, atol=1e-12)
    assert gradients["head.bias"].sum().abs() < 1e-12


# --- the terms at the truth


def at_truth(model, update, x, y, statistics=True):
    targets = client.batch_statistics(model, update)
    seen = matching.dummy_gradients_and_statistics(client.worker(model, update.threat.mode), x, soft(y), tuple(targets))
    trials = torch.arange(len(x))
    distance = matching.norms(seen[0], Observation(update.gradients), trials)
    length = sum(g.flatten(1).norm(dim=1) for g in update.gradients.values())
    return distance / length, priors.batch_norm_distance(seen[1], targets, trials)


@pytest.mark.parametrize("threat", [known(), known("train", "buffers"), known("eval", "exact")])
def test_the_truth_has_the_shared_gradient_and_statistics(threat):
    model, (x, y) = victim(), batch(2)
    update = client.share(model, x, y, threat=threat)
    distance, statistics = at_truth(model, update, x, y)
    assert distance.max() < 1e-6 and statistics.max() < 1e-5


def test_the_running_statistics_are_not_the_batchs():
    model, (x, y) = victim(), batch()
    _, statistics = at_truth(model, client.share(model, x, y, threat=known("eval", "running")), x, y)
    assert statistics.item() > 0.1


def test_a_client_in_train_mode_is_not_matched_in_eval_mode():
    model, (x, y) = victim(), batch()
    update = client.share(model, x, y, threat=known("train", "exact"))
    wrong = replace(update, threat=replace(update.threat, mode="eval"))
    distance, _ = at_truth(model, wrong, x, y)
    assert distance.item() > 0.1


def test_buffers_are_those_of_a_training_step_and_give_the_batch_back():
    model, (x, y) = victim(torch.float32), batch(dtype=torch.float32)
    buffers = client.share(model, x, y, threat=known("train", "buffers"))
    exact = client.share(model, x, y, threat=known("train", "exact"))
    stepped = victim(torch.float32).train()
    stepped(x[0])
    for layer, (mean, variance) in buffers.batch_norm.items():
        module = stepped.get_submodule(layer)
        torch.testing.assert_close(mean[0], module.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(variance[0], module.running_var, rtol=1e-5, atol=1e-6)
    for layer, pair in client.batch_statistics(model, buffers).items():
        for found, expected in zip(pair, exact.batch_norm[layer], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_norms_are_linear_and_squares_are_squares():
    g = {"a": torch.randn(1, 4, 3), "b": torch.randn(1, 5)}
    trials, seen = torch.arange(1), Observation(g)
    off = {"a": torch.randn(1, 4, 3), "b": torch.zeros(1, 5)}
    for c in (0.5, 2.0):
        moved = {name: value + c * off[name] for name, value in g.items()}
        assert matching.norms(moved, seen, trials).item() == pytest.approx(c * off["a"].norm().item(), rel=1e-5)
        squares = matching.distance(moved, seen, trials).item()
        assert squares == pytest.approx(matching.norms(moved, seen, trials).item() ** 2, rel=1e-5)
    both = {name: value + 1 for name, value in g.items()}
    assert matching.norms(both, seen, trials) > torch.cat([torch.ones(12), torch.ones(5)]).norm()
    x = {name: value.clone().requires_grad_() for name, value in g.items()}
    matching.norms(x, seen, trials).sum().backward()
    assert all((value.grad == 0).all() for value in x.values())


def test_the_order_of_a_batch_does_not_matter():
    model, (x, y) = victim(), batch()
    update = client.share(model, x, y, threat=known())
    order = torch.tensor([2, 0, 1])
    for images, target in ((x[:, order], y[:, order]), (x, y)):
        distance, statistics = at_truth(model, update, images, target)
        assert distance.item() < 1e-5 and statistics.item() < 1e-5
    for prior in (priors.four_direction_variation, priors.mean_norm, priors.summed_variation):
        torch.testing.assert_close(prior(x[:, order]), prior(x))
    same = torch.zeros_like(y)
    update = client.share(model, x, same, threat=known())
    assert at_truth(model, update, x[:, order], same)[0].item() < 1e-5


# --- priors


def test_variations_of_flat_and_sloping_images():
    flat = torch.full((1, 2, 3, 5, 7), 0.3, requires_grad=True)
    for prior in (priors.four_direction_variation, priors.summed_variation, priors.mean_norm):
        (slope,) = torch.autograd.grad(prior(flat).sum(), flat)
        assert slope.isfinite().all()
    assert priors.four_direction_variation(flat).item() == pytest.approx(0, abs=1e-15)
    s, height, width = 0.1, 5, 7
    ramp = (s * torch.arange(width, dtype=torch.float64)).expand(1, 1, 1, height, width)
    expected = s * math.sqrt(height * (width - 1)) + 2 * s * math.sqrt((height - 1) * (width - 1))
    assert priors.four_direction_variation(ramp).item() == pytest.approx(expected)
    assert priors.summed_variation(torch.cat([ramp, ramp], 1)).item() == pytest.approx(s * height * (width - 1))
    assert priors.mean_norm(torch.ones(1, 2, 1, 3, 3)).item() == pytest.approx(3)


def test_the_four_directions_of_four_pixels():
    a, b, c, d = 0.1, 0.5, 0.3, 1.0
    image = torch.tensor([[[[[a, b], [c, d]]]]], dtype=torch.float64)
    expected = math.hypot(b - a, d - c) + math.hypot(c - a, d - b) + abs(d - a) + abs(c - b)
    assert priors.four_direction_variation(image).item() == pytest.approx(expected)


def test_seeds_that_are_equal_agree_on_themselves():
    x = torch.rand(1, 2, 3, 16, 16).expand(4, -1, -1, -1, -1).clone().requires_grad_()
    for registration in ("none", "translation", "affine"):
        agreed = priors.consensus(x, registration)
        assert not agreed.requires_grad
        torch.testing.assert_close(agreed, x[0].detach())


def smooth(size=32):
    random = torch.Generator().manual_seed(3)
    return F.interpolate(torch.rand(1, 3, 6, 6, generator=random), size, mode="bicubic").clamp(0, 1)


def test_shifted_seeds_are_moved_back():
    image = smooth()
    shifts = [(0, 0), (0, 0), (0, 0), (2, -1), (-3, 2)]
    seeds = torch.stack([image.roll(shift, (2, 3)) for shift in shifts])
    inside = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    lazy, moved = priors.consensus(seeds), priors.consensus(seeds, "translation")
    assert (moved - image)[inside].abs().max() < 1e-5 < (lazy - image)[inside].abs().max()


@pytest.mark.parametrize("shift", [(2, 2), (-2, -2), (2, -2), (-2, 0), (0, 2)])
def test_every_shift_up_to_an_eighth_of_the_height_is_found(shift):
    image = smooth(16)
    moved = priors.registered(image.roll(shift, (2, 3)), image, "translation")
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(moved[inside], image[inside], rtol=0, atol=1e-6)


def test_affine_registration_brings_a_turned_image_nearer_and_never_takes_one_away():
    image = smooth()
    angle = torch.tensor(0.12)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.05], [angle.sin(), angle.cos(), -0.04]])
    turned = F.grid_sample(
        image, F.affine_grid(turn[None], list(image.shape), align_corners=False), align_corners=False
    )
    before, after = (
        (moved - image)[..., 4:-4, 4:-4].square().mean()
        for moved in (turned, priors.registered(turned, image, "affine"))
    )
    assert after < 0.04 * before  # a level of half the pixels leaves twice as much
    noise = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    target = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for registration in ("translation", "affine"):
        moved = priors.registered(noise, target, registration)
        assert ((moved - target).square().flatten(1).sum(1) <= (noise - target).square().flatten(1).sum(1)).all()
    with pytest.raises(ValueError, match="registration='flow' is unknown; use 'none', 'translation' or 'affine'"):
        priors.consensus(noise[None], "flow")


# --- the search


def test_the_rate_rises_then_falls_to_nothing():
    rate = [warm_cosine(0.1, 400, 20)(t) for t in range(400)]
    assert rate[19] == pytest.approx(0.1) and rate[0] == pytest.approx(0.005) and rate[-1] < 1e-4
    assert all(a >= b for a, b in zip(rate[20:], rate[21:], strict=False))


def test_noise_has_the_size_of_the_rate_times_its_weight():
    random = torch.Generator().manual_seed(0)

    def still(x, trials):
        return x.new_zeros(len(x)), torch.zeros_like(x)

    def noise():
        return 0.2 * torch.randn(2, 50_000, generator=random)

    start = torch.zeros(2, 50_000)
    *_, minimum = langevin_adam(still, start, 1, lambda t: 0.1, noise)
    assert minimum.last.std().item() == pytest.approx(0.1 * 0.2, rel=0.02)
    *_, minimum = langevin_adam(still, start, 1, lambda t: 0.1, noise, noise_on="gradient")
    assert minimum.last.abs().median().item() == pytest.approx(0.1, rel=0.02)  # Adam has rescaled it


def test_noise_is_drawn_behind_the_start(monkeypatch):
    model, (x, y) = victim(torch.float32), batch(dtype=torch.float32)
    update, told = client.share(model, x, y, threat=known()), []

    def spy(objective, start, iterations, rate, noise, *rest, **more):
        told.append((start, noise()))
        return langevin_adam(objective, start, iterations, rate, noise, *rest, **more)

    monkeypatch.setattr(attacks.gradinversion, "langevin_adam", spy)
    SHORT(model, update)
    pair = torch.stack([part.flatten() for part in told[0]])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.2, "another draw than the start's"


def test_seeds_are_refreshed_on_their_dates_and_only_then(monkeypatch):
    model, (x, y) = victim(torch.float32), batch(dtype=torch.float32)
    update, calls, plain = client.share(model, x, y, threat=known()), [], priors.consensus
    attack = replace(SHORT, registration="none", iterations=9)

    def spy(candidates, registration):
        calls.append(candidates)
        return plain(candidates, registration)

    monkeypatch.setattr(priors, "consensus", spy)
    attack(model, update)
    assert len(calls) == 3  # before iterations 2, 5 and 8
    assert calls[0].shape == (2, 3, *SHAPE)
    calls.clear()
    replace(attack, seeds=1)(model, update)
    replace(attack, group=0.0)(model, update)
    assert not calls


def test_without_its_terms_it_is_adam_on_the_norms():
    model, (x, y) = victim(), batch()
    update = client.share(model, x, y, threat=known())
    attack = replace(
        SHORT, gradient=1.0, total_variation=0.0, energy=0.0, batch_norm=0.0, group=0.0, noise=0.0, seeds=1, boxed=False
    )
    found = attack(model, update, seed=4, snapshots=[0])
    start = (found.history.images[0, 0] - model.normalize.mean) / model.normalize.std
    dummy = start.clone().requires_grad_()
    optimizer, worker = torch.optim.Adam([dummy]), client.worker(model, "train")
    for step in range(attack.iterations):
        loss = F.cross_entropy(worker(dummy * model.normalize.std + model.normalize.mean), y[0])
        gradients = torch.autograd.grad(loss, list(worker.parameters()), create_graph=True)
        value = sum((a - b[0]).norm() for a, b in zip(gradients, update.gradients.values(), strict=True))
        (dummy.grad,) = torch.autograd.grad(value, dummy)
        optimizer.param_groups[0]["lr"] = warm_cosine(0.1, attack.iterations, attack.warmup)(step)
        optimizer.step()
    torch.testing.assert_close(found.raw[0], dummy.detach() * model.normalize.std + model.normalize.mean)


def test_the_victim_stays_as_it_was_and_runs_repeat():
    model, (x, y) = victim(torch.float32), batch(2, dtype=torch.float32)
    before = fingerprint(model)
    update = client.share(model, x, y, threat=known())
    first, second = (SHORT(model, update, seed=7) for _ in range(2))
    assert torch.equal(first.raw, second.raw) and fingerprint(model) == before
    assert all(p.grad is None for p in model.parameters())
    assert first.candidates.shape == (2, 2, 3, *SHAPE) and first.evaluations.tolist() == [18, 18]
    assert not torch.equal(first.candidates[:, 0], first.candidates[:, 1])
    assert ((first.raw >= -1e-6) & (first.raw <= 1 + 1e-6)).all()
    alone = SHORT(model, update.select(0), seed=7)
    torch.testing.assert_close(alone.raw, first.raw[:1], rtol=1e-3, atol=1e-4)
    agreed = replace(SHORT, select="consensus", registration="none")(model, update, seed=7)
    torch.testing.assert_close(agreed.raw, agreed.candidates.mean(1))
    seen = update.observed(model, "GradInversion")
    shown = client.share(model, agreed.images, agreed.labels, threat=known()).gradients
    torch.testing.assert_close(agreed.objective, matching.norms(shown, seen, torch.arange(2)))


def test_a_trials_history_ends_where_the_trial_does():
    model, (x, y) = victim(torch.float32), batch(3, dtype=torch.float32)
    found = SHORT(model, client.share(model, x, y, threat=known()), seed=7, snapshots=(0, 8))
    assert torch.equal(found.history.images[-1], found.raw)
    assert torch.equal(found.history.objective[-1], found.objective)


class SmoothNet(models.Victim):
    """Two convolutions with batch norm and softplus, so that finite differences apply."""

    def __init__(self):
        super().__init__(CLASSES, (3, 6, 6), nn.Identity())
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = F.softplus(self.norm1(self.conv1(self.normalize(x))))
        return self.head(F.softplus(self.norm2(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_slope_of_all_terms_agrees_with_finite_differences(mode):
    torch.manual_seed(0)
    model = SmoothNet().double().eval()
    random = torch.Generator().manual_seed(0)
    x, y = torch.rand(1, 2, 3, 6, 6, generator=random, dtype=torch.float64), torch.tensor([[1, 4]])
    update = client.share(model, x, y, threat=known(mode))
    targets = client.batch_statistics(model, update)
    objective = Matching(
        model,
        Observation(update.gradients),
        lambda z, rows: (z.view(-1, 2, 3, 6, 6), soft(y)),
        lambda images, rows: priors.four_direction_variation(images) + priors.mean_norm(images),
        mode,
        matching.norms,
        layers=tuple(targets),
        statistics=lambda seen, rows: priors.batch_norm_distance(seen, targets, rows),
    )
    z, rows = torch.rand(1, 216, generator=random, dtype=torch.float64), torch.arange(1)
    slope = objective(z, rows)[1]
    direction = torch.randn(1, 216, generator=random, dtype=torch.float64)
    up, down = (objective(z + e * direction, rows)[0] for e in (1e-5, -1e-5))
    assert ((up - down) / 2e-5).item() == pytest.approx((slope * direction).sum().item(), rel=1e-5)


def searched(attack, seeds=2, **threat):
    """A search on one update of a normalised victim, and the points of its rows at the pixels given."""
    model, (x, y) = victim(), batch()
    update = client.share(model, x, y, threat=replace(known(), **threat))
    (search,) = replace(attack, seeds=seeds, labels="known").searches(model, update)
    mean, std = (torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in NORMAL)
    return search, lambda pixels: ((pixels - mean) / std).view(len(pixels), -1)


@pytest.mark.parametrize("registration", ["none", "translation", "affine"])
def test_seeds_that_agree_pay_nothing_for_it_and_others_their_distance_in_the_victims_units(registration):
    weight = 3.0
    plain = replace(SHORT, total_variation=0.0, energy=0.0, registration=registration, group_start=0, group_every=1)
    with_group, without = (searched(replace(plain, group=group)) for group in (weight, 0.0))
    rows, (x, _) = torch.arange(2), batch()

    def term(pixels):
        (search, points), (other, _), one = with_group, without, torch.ones(2, dtype=torch.float64)
        agreed = attacks.gradinversion._Group(search.agreed(points(pixels)))
        alone = other.everything(one, attacks.gradinversion._Group())
        return search.everything(one, agreed)(points(pixels), rows)[0] - alone(points(pixels), rows)[0]

    assert term(x.expand(2, -1, -1, -1, -1)).abs().max() < 1e-9
    if registration == "none":  # two seeds are each half of their distance from their mean
        pixels = torch.cat([x, 0.5 * x])
        away = (with_group[1](pixels)[0] - with_group[1](pixels)[1]).norm() / 2
        torch.testing.assert_close(term(pixels), weight * away.expand(2))


@pytest.mark.parametrize("form", ["mean_norm", "norm", "mean_square"])
def test_the_priors_are_of_the_victims_units(form):
    search, _ = searched(replace(SHORT, total_variation=0.0, energy=1.0, energy_form=form))
    mean, std = (torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in NORMAL)
    grey = mean.expand(1, 3, *SHAPE)
    rows = torch.arange(1)
    assert search.prior(grey, rows, attacks.gradinversion._Group()).item() < 1e-5, "the mean image has no energy"
    pixels = math.prod(SHAPE)
    energy = {"mean_norm": 2 * pixels**0.5, "norm": 2 * (3 * pixels) ** 0.5, "mean_square": 4.0}[form]
    assert search.prior(grey + 2 * std, rows, attacks.gradinversion._Group()).item() == pytest.approx(energy)
    smooth, _ = searched(replace(SHORT, total_variation=1.0, energy=0.0, smoothness="mean"))
    slope = 0.01 * torch.arange(12, dtype=torch.float64).expand(1, 3, *SHAPE)
    assert smooth.prior(slope, rows, attacks.gradinversion._Group()).item() == pytest.approx(
        0.01 * (1 / std).mean().item()
    )


def test_a_trial_has_diverged_when_all_its_seeds_have_and_the_others_are_chosen_from():
    model, (x, y) = victim(), batch(3)
    update = client.share(model, x, y, threat=known())
    (search,) = SHORT.searches(model, update)
    mean, std = (torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in NORMAL)
    truth, other = (((pixels - mean) / std).view(3, -1) for pixels in (x, 0.5 * x))
    minimum = Minimum.start(torch.stack([truth, other], 1).flatten(0, 1))  # the first seed of each trial is better
    minimum.diverged = torch.tensor([True, False, False, False, True, True])
    found = search.result(minimum, 0, [])
    assert found.diverged.tolist() == [False, False, True]
    torch.testing.assert_close(found.raw[0], 0.5 * x[0])
    torch.testing.assert_close(found.raw[1], x[1])
    assert found.objective[1] < 1e-6 < found.objective[0] < math.inf == found.objective[2]


def test_the_weight_of_the_first_layer_is_the_firsts_alone():
    seen = {"first": (torch.tensor([[3.0, 4.0]]), torch.ones(1, 2)), "last": (torch.ones(1, 1), torch.tensor([[3.0]]))}
    targets = {"first": (torch.zeros(1, 2), torch.ones(1, 2)), "last": (torch.ones(1, 1), torch.ones(1, 1))}
    trial = torch.arange(1)
    assert priors.batch_norm_distance(seen, targets, trial, first=10.0).item() == pytest.approx(10 * 5 + 2)
    assert priors.batch_norm_distance(seen, targets, trial, 10.0, squared=True).item() == pytest.approx(10 * 25 + 4)


def test_several_clients_buffers_give_the_mean_of_their_statistics_back():
    model, (x, y) = victim(), batch(2, size=4)
    threat = replace(known("train", "buffers"), observes="mean of 2")
    buffers = client.share(model, x, y, threat=threat)
    exact = client.share(model, x, y, threat=replace(threat, batch_norm="exact"))
    for layer, pair in client.batch_statistics(model, buffers).items():
        for found, expected in zip(pair, exact.batch_norm[layer], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_balanced_terms_start_equal():
    model, (x, y) = victim(torch.float32), batch(2, dtype=torch.float32)
    update = client.share(model, x, y, threat=known())
    attack = replace(SHORT, gradient=None)
    (search,) = attack.searches(model, update)
    start = torch.randn(4, 3 * math.prod(SHAPE))
    rows = torch.arange(4)
    weights, nobody = search.weights(start), attacks.gradinversion._Group()
    term = weights * search.value(start, 0)
    whole = search.everything(weights, nobody)(start, rows)[0] - search.prior(search.images(start), rows, nobody)
    torch.testing.assert_close(whole, 2 * term, rtol=1e-4, atol=1e-5)
    assert attack(model, update).raw.isfinite().all()


def test_the_first_signed_step_moves_every_pixel_by_the_rate_and_noise_is_none():
    model, (x, y) = victim(), batch()
    update = client.share(model, x, y, threat=known("eval"))
    attack = replace(GradInversion.strong(), iterations=2, warmup=1, labels="known", boxed=False)
    first, second = (found / model.normalize.std for found in attack(model, update, snapshots=[0, 1]).history.images)
    torch.testing.assert_close((second - first).abs(), torch.full_like(first, 0.1), rtol=1e-4, atol=0)


def test_a_cosine_needs_a_direction():
    model, (x, y) = victim(), batch()
    update = client.share(model, x, y, threat=known("eval"))
    update = replace(update, gradients={name: torch.zeros_like(g) for name, g in update.gradients.items()})
    with pytest.raises(ValueError, match="the gradient of trial 0 is zero: it has no direction"):
        replace(GradInversion.strong().compressed(3), labels="known")(model, update)


@pytest.mark.parametrize("preset", ["paper", "balanced", "breaching", "fgla_stg", "strong"])
def test_every_preset_runs_and_lowers_what_it_minimises(preset):
    model, (x, y) = victim(torch.float32), batch(dtype=torch.float32)
    update = client.share(model, x, y, threat=known())
    attack = replace(attacks.build("GradInversion", preset).compressed(40), seeds=2)
    found = attack(model, update, snapshots=[0, 40])
    assert found.objective.item() < found.history.objective[0].item() and not found.diverged.any()


# --- experiments


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "test", 200)


def test_networks_with_buffers_of_their_own_are_attacked_apart(digits):
    known = client.ThreatModel(labels="known", batch_norm="exact")
    quick = attacks.GradInversion.strong().compressed(3)
    inputs = {"seed": 0, "device": torch.device("cpu"), "batch": 2, "distinct_labels": True, "pool": digits}
    inputs |= {"options": {"width": 4}, "trained_on": digits, "train_steps": 2}
    both = {"strong": (quick, known), "no statistics": (quick, replace(known, batch_norm="none"))}
    found = gradinversion.attack_apart(both, digits, [0, 1, 2, 3], 2, **inputs)
    scores = found["scores"]
    assert scores.attack.tolist() == ["strong"] * 8 + ["no statistics"] * 8
    assert (
        scores.trial.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 2
        and scores.network.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    )
    alone = gradinversion.attack_apart({"strong": both["strong"]}, digits, [2, 3], 2, **inputs)["scores"]
    assert alone.psnr.to_numpy() == pytest.approx(scores.psnr[4:8].to_numpy(), abs=0.05)
    assert found["truth"].shape == found["strong"].shape == (8, *digits.image_shape)
    plain = gradinversion.guesses(digits, [0, 1, 2, 3], 0, 2)
    truth = found["truth"]
    grey = metrics.psnr(torch.full_like(truth, 0.5), truth).double().numpy()
    assert plain.grey.to_numpy() == pytest.approx(grey) and (plain.best >= plain.grey).all()


def test_buffers_give_the_statistics_of_each_layer_away(digits):
    victim = models.build("resnetbn8", 10, digits.image_shape, seed=0, width=4)
    rows = gradinversion.statistics_from_buffers(victim, digits, size=4, batches=3, seed=0)
    assert rows.trial.nunique() == 3 and len(rows) % 3 == 0 and rows.error.max() < 1e-4


def test_labels_are_counted_after_training(digits):
    found = gradinversion.labels_after_training(
        digits, [0, 1], 4, 3, 0, torch.device("cpu"), trained_on=digits, train_steps=2, width=4
    )
    assert found.groupby(["network", "rule"]).size().eq(3).all() and found.accuracy.between(0, 1).all()


def test_labels_are_read_off_disjoint_batches_of_one_network(digits):
    victim = models.build("resnetbn8", 10, digits.image_shape, seed=0, width=4)
    found = gradinversion.labels_apart(victim, digits, 8, [0, 1, 2, 3, 4], 0)
    assert set(found.rule) == set(gradinversion.SHOWN_RULES)
    assert found[found.rule == "yin"].trial.tolist() == [0, 1, 2, 3, 4]
    (alone,) = gradinversion.labels_apart(victim, digits, 8, [3], 0).query("rule == 'yin'").right
    assert alone == found.query("rule == 'yin' and trial == 3").right.item() >= 6 / 8  # what any rule of 8 classes has


def test_tanh_makes_features_negative_and_a_leaky_relu_hardly_any(digits):
    found = gradinversion.labels_by_activation(digits, [0, 1], 4, 0, width=4)
    negative = found.groupby("activation").negative.max()
    assert negative["relu"] == 0 and negative["leaky_relu"] < 0.1 < 0.3 < negative["tanh"]
    assert found.groupby(["activation", "rule"]).trial.apply(list).map(lambda trials: trials == [0, 1]).all()


def test_the_terms_are_those_of_the_search_at_its_start(digits):
    paper = replace(GradInversion.paper(), labels="known")
    inputs = {"threat": known(), "batch": 2, "options": {"width": 4}}
    found = gradinversion.weighed_terms(paper, digits, [0, 1], 0, torch.device("cpu"), **inputs)
    tenfold = replace(paper, gradient=10 * paper.gradient, batch_norm=paper.batch_norm / 10)
    other = gradinversion.weighed_terms(tenfold, digits, [1], 0, torch.device("cpu"), **inputs).iloc[0]
    assert other.gradient == pytest.approx(10 * found.gradient[1], rel=1e-4)
    assert other.batch_norm == pytest.approx(found.batch_norm[1] / 10, rel=1e-4)
    drawn = 100_000 * 0 + 1
    model = models.build("resnetbn8", 10, digits.image_shape, seed=drawn, width=4)
    x, y = digits.batches(2, 2, seed=0, distinct_labels=True)
    ended = replace(paper, iterations=2, warmup=1, seeds=1, learning_rate=0.0, noise=0.0, boxed=False)
    stays = ended(model, client.share(model, x[1, None], y[1, None], threat=known()), seed=[(drawn, 0)])
    assert found.gradient[1] == pytest.approx(paper.gradient * stays.objective.item(), rel=1e-4)


# --- measures


def test_single_images_are_compared_by_the_names_of_their_attacks():
    networks = [0, 0, 1, 1, 2, 2]
    psnr = {"norms for the cosine": 12.0, "strong": 20.0, "strong, no statistics": 15.0}
    tables = [
        pd.DataFrame({"attack": name, "network": networks, "psnr": level + torch.rand(6).numpy(), "identified": True})
        for name, level in psnr.items()
    ]
    for name, level in {"no statistics, smoother": 14.0, "the paper's recipe": 10.0}.items():
        tables.append(tables[0][:4].assign(attack=name, psnr=level, identified=[False, True, False, False]))
    found = measures.singles(pd.concat(tables, ignore_index=True), {})
    assert found["strong_identified"].interval.value == 1 and found["withheld_identified_loss"].interval.value == 0
    assert found["withheld_smoother_loss"].interval.value == 0.75 and found["withheld_smoother_loss"].interval.n == 4
    assert found["strong_minus_norm"].interval.value == pytest.approx(8, abs=1)
    assert found["strong_minus_paper"].interval.value == pytest.approx(10, abs=1)


def test_a_group_gains_where_the_features_come_nearer():
    levels = {"gradient alone": 0, "+ image priors": 1, "+ batch norm": 3, "+ lazy group": 6, "+ registered group": 10}
    rows = {name: (10.0 + level, 0.9 - level / 20) for name, level in (levels | {"statistics alone": -1}).items()}
    noise = torch.arange(4).numpy() / 100
    done = pd.concat(
        pd.DataFrame(
            {"attack": name, "network": [0, 1, 2, 3], "psnr": psnr * (1 + noise), "features": far * (1 - noise)}
        )
        for name, (psnr, far) in rows.items()
    ).assign(registered=99.0, in_class=True, in_class_chance=0.1)
    found = measures.steps(done.reset_index(drop=True), pd.DataFrame({"best": [10.0, 10.5, 10.0, 10.2]}))
    gained = {name: found[name].value for name in ("step_priors", "step_fidelity", "step_group", "step_registered")}
    assert gained == pytest.approx(
        {"step_priors": 1, "step_fidelity": 3, "step_group": 3, "step_registered": 4}, rel=0.05
    )
    assert found["step_group_features"].value == pytest.approx(0.15, rel=0.05)
    assert found["step_registered_features"].value == pytest.approx(0.2, rel=0.05)
    assert found["full_over_baseline"].value == pytest.approx(10, abs=0.5), "plain PSNR, as the guesses have"


def test_identification_in_class_and_its_chance():
    digits = data.load("digits", "test", 200)
    x, y = digits.images[:20], digits.labels[:20]

    def pixels(images):
        return images.double().flatten(1) - 0.5

    hits, chance = metrics.identify_in_class(x, x, y, digits, pixels)
    assert hits.all() and chance[0].item() == pytest.approx(1 / (digits.labels == y[0]).sum().item())
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    assert metrics.identify_in_class(noise, x, y, digits, pixels)[0].double().mean() < 0.3
    shared = metrics.identify_in_class(noise, x, y, digits, pixels, pixels(digits.images))
    assert shared[0].equal(metrics.identify_in_class(noise, x, y, digits, pixels)[0]) and shared[1].equal(chance)
    grey = torch.full_like(x, 0.5)
    model = models.build("lenet", 10, digits.image_shape, seed=0)
    hits, _ = metrics.identify_in_class(x, x, y, digits, lambda images: models.penultimate(model, images))
    assert hits.all()
    away = metrics.feature_distance(grey, x, lambda images: models.penultimate(model, images))
    assert (away > 0).all() and metrics.feature_distance(x, x, lambda i: i.flatten(1)).abs().max() < 1e-5


def test_registered_psnr_is_never_lower():
    image = smooth()
    shifted = image.roll((2, 1), (2, 3))
    assert metrics.registered_psnr(shifted, image) > metrics.psnr(shifted, image) + 3
    assert metrics.registered_psnr(image, image).item() == metrics.PSNR_CAP
    colour = image.mean((2, 3), keepdim=True).expand_as(image)
    variance = (image - colour).square().mean()
    assert metrics.psnr(colour, image).item() == pytest.approx(10 * math.log10(1 / variance), abs=1e-4)


# --- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothness": "round"}, "smoothness must be one of 'four_directions', 'mean', 'sum', got 'round'"),
        ({"seeds": 0}, "seeds must be a whole number >= 1, got 0"),
        ({"noise": math.nan}, "noise must be a finite number >= 0, got nan"),
        ({"warmup": 50, "iterations": 50}, "warmup=50 must be below iterations=50"),
        ({"gradient": None, "batch_norm": 0.0}, "gradient=None balances it against batch norm, but batch_norm=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(GradInversion(), **settings)


def test_updates_that_cannot_be_attacked_are_refused():
    model, (x, y) = victim(), batch()
    with pytest.raises(ValueError, match="labels='known' needs labels in the update"):
        SHORT(model, client.share(model, x, y))
    with pytest.raises(ValueError, match="gradient=None balances it against batch-norm statistics, but this update"):
        replace(SHORT, gradient=None)(model, client.share(model, x, y, threat=ThreatModel(labels="known")))
    steps = client.share(model, x, y, threat=known(), local=LocalTraining(2, 3, 0.1))
    with pytest.raises(ValueError, match="GradInversion matches one gradient, but .* 2 local steps"):
        SHORT(model, steps)
    with pytest.raises(ValueError, match="carries no batch-norm statistics: share with ThreatModel"):
        client.batch_statistics(model, client.share(model, x, y))
    with pytest.raises(ValueError, match="in mode='eval' a client's step changes no buffer"):
        client.share(model, x, y, threat=known("eval", "buffers"))
    with pytest.raises(ValueError, match="is the state after one step, but `local` takes several"):
        client.share(model, x, y, threat=known("train", "buffers"), local=LocalTraining(2, 3, 0.1))
    lenet = models.build("lenet", CLASSES, SHAPE, seed=0).double()
    with pytest.raises(ValueError, match="batch_norm='exact', but the model has no batch-norm layer"):
        client.share(lenet, x, y, threat=known("eval", "exact"))
    many = client.share(model, *batch(size=6), threat=ThreatModel(mode="train"))
    many = replace(many, batch_size=7)
    with pytest.raises(ValueError, match="the rule 'yin' assumes distinct labels: batch_size 7 exceeds 6 classes"):
        replace(SHORT, labels="minimum")(model, many)
