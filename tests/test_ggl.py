"""GGL: its objective, its searches on planted images, what it estimates of a defense, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reprolib import data, experiments, models
from reprolib.attacks import GGL, labels, matching, priors
from reprolib.defenses import (
    Clipping,
    Compose,
    GaussianNoise,
    KeptColumns,
    KeptEntries,
    NormOfUpdate,
    RateOfUpdate,
    Soteria,
    TopK,
)
from reprolib.defenses.clipping import clipped
from reprolib.defenses.estimated import pruned_at, zero_shares
from reprolib.experiments.ggl import of_equal_length
from reprolib.experiments.measures import ggl as measures
from reprolib.experiments.networks import Attacked, attack_together, attack_trials
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.observation import Observation
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics
from reprolib.models import Victims
from reprolib.optimizers import cma_es, ramp

SHAPE, CLASSES, LATENT = (3, 8, 8), 5, 8
TOLD = ThreatModel(labels="known", defense_known=True)


class Prior(nn.Module):
    """A small generator with batch norm, so that its mode matters."""

    def __init__(self, shape=SHAPE, latent_dim=LATENT, takes=None):
        super().__init__()
        self.hidden, self.norm, self.out = (
            nn.Linear(takes or latent_dim, 24),
            nn.BatchNorm1d(24),
            nn.Linear(24, math.prod(shape)),
        )
        random = torch.Generator().manual_seed(0)
        nn.init.normal_(self.hidden.weight, std=0.25, generator=random)  # weak enough for tanh to stay invertible
        nn.init.normal_(self.out.weight, std=0.5, generator=random)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.out.bias)
        self.latent_dim, self.image_shape = latent_dim, shape

    def forward(self, latent):
        return self.out(self.norm(self.hidden(latent)).tanh()).sigmoid().view(-1, *self.image_shape)


def prior(**options):
    return Prior(**options).eval()


def victim(dtype=torch.float32, seed=0, **options):
    return models.build("lenet", CLASSES, SHAPE, seed=seed, **options).to(dtype)


def batch(trials=1, size=1, dtype=torch.float32, seed=0, shape=SHAPE):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(trials, size, *shape, generator=random, dtype=dtype)
    return images, torch.stack([torch.randperm(CLASSES, generator=random)[:size] for _ in range(trials)])


def planted(trials, seed=1, size=1):
    """Images that the prior can make, and their labels."""
    latents = torch.randn(trials * size, LATENT, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        images = prior()(latents).view(trials, size, *SHAPE)
    return images, batch(trials, size)[1]


def gradients_of(model, x, y):
    return client.share(model, x, y).gradients


SMALL = GGL(prior(), evaluations=60, population=12, regularizer="none")


# --- the regularisers and distances


def test_the_divergence_of_the_latents_moments():  # 8.1
    z = torch.randn(4, 2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    standard = (z - z.mean(2, keepdim=True)) / z.std(2, correction=0, keepdim=True)
    assert priors.moment_divergence(standard).abs().max() < 1e-6
    many = torch.randn(200, 1, 8) * torch.rand(200, 1, 1) * 3 + torch.randn(200, 1, 1)
    assert priors.moment_divergence(many).min() >= 0
    alone = torch.stack([priors.moment_divergence(row[None])[0] for row in z])
    torch.testing.assert_close(priors.moment_divergence(z), alone)
    assert priors.moment_divergence(torch.zeros(1, 1, 8)).item() == pytest.approx(11.01, abs=0.02)
    start = torch.zeros(1, 1, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(priors.moment_divergence(start).sum(), start)
    assert slope.isfinite().all()


def test_the_norm_counts_the_entries():
    z = torch.full((1, 2, 9), 1.0)
    assert priors.norm_excess(z).item() == 0
    assert priors.norm_excess(2 * z).item() == 2 * (36 - 9) ** 2


def test_the_truth_costs_nothing():  # 8.2
    model, (x, y) = victim(torch.float64), planted(3)
    x = x.double()
    update = client.share(model, x, y)
    dummies = matching.dummy_gradients(client.worker(model, "eval"), x, F.one_hot(y, CLASSES).double())
    trials, whole = torch.arange(3), sum(g.square().sum() for g in update.gradients.values())
    for distance, reduction in (("l2", "mean_tensors"), ("l2", "sum"), ("cosine", "sum")):
        attack = GGL(prior(), distance=distance, reduction=reduction)
        (search,) = attack.searches(model, update)
        off = search.compare(dummies, Observation(update.gradients), trials)
        assert (off.abs() < (1e-6 if distance == "cosine" else 1e-10 * whole)).all()
    both = {name: g + 1 for name, g in dummies.items()}
    mean, total = (
        next(GGL(prior(), reduction=how).searches(model, update)).compare(both, Observation(update.gradients), trials)
        for how in ("mean_tensors", "sum")
    )
    torch.testing.assert_close(mean * len(dummies), total)


# --- the searches


@pytest.mark.parametrize("defense", [None, NormOfUpdate(1.0)], ids=["plain", "clipped"])
def test_cma_finds_planted_images(defense):  # 8.3
    x, y = planted(2)
    model = victim()
    update = client.share(model, x, y, defense=defense, threat=TOLD)
    attack = GGL(prior(), evaluations=1500, population=20, reg_weight=0.0)
    found = attack(model, update)
    assert metrics.mse(found.images, x).max() < 1e-3
    assert (found.labels == y).all() and not found.diverged.any() and (found.evaluations <= 1500).all()


@pytest.mark.parametrize("preset", ["adam", "adam_ramp"])
def test_adam_finds_planted_images(preset):  # 8.3
    x, y = planted(1)
    model = victim()
    attack = replace(getattr(GGL, preset)(prior()), evaluations=120, reg_weight=0.0)
    found = attack(model, client.share(model, x, y))
    assert metrics.mse(found.images, x).max() < 1e-3
    assert (found.evaluations == 120).all()


def test_starts_add_up_and_the_smallest_distance_wins():
    model, (x, y) = victim(), batch(2)
    update = client.share(model, x, y)
    one, two = (replace(SMALL, evaluations=24, starts=n)(model, update) for n in (1, 2))
    assert (two.objective <= one.objective).all() and (two.evaluations == 48).all() and (two.starts == 2).all()
    with torch.no_grad():
        torch.testing.assert_close(prior()(two.latents[:, 0]), two.raw[:, 0])


def test_a_batch_is_found_together():
    x, y = planted(1, size=2)
    model = victim()
    attack = replace(GGL.adam(prior()), evaluations=120, reg_weight=0.0)
    found = attack(model, client.share(model, x, y))
    assert sorted(found.labels[0].tolist()) == sorted(y[0].tolist())
    assert metrics.score(found, x, y).mse.max() < 1e-2


def test_several_local_steps_are_simulated():
    x, y = planted(1)
    model, local = victim(), LocalTraining(2, 1, 0.05)
    found = GGL(prior(), evaluations=900, population=20, reg_weight=0.0)(model, client.share(model, x, y, local=local))
    assert metrics.mse(found.images, x).max() < 1e-3


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", ["lenet", "resnetbn8"])
def test_the_population_in_one_batch_is_the_loop(name, dtype, off):  # 8.4
    model = models.build(name, CLASSES, SHAPE, seed=0).to(dtype)
    worker = client.worker(model, "eval")
    x, y = batch(6, dtype=dtype)
    soft = F.one_hot(y, CLASSES).to(dtype)
    found = matching.dummy_gradients(worker, x, soft)
    for i in range(6):
        alone = torch.autograd.grad(F.cross_entropy(worker(x[i]), soft[i]), list(worker.parameters()))
        for (parameter, g), expected in zip(found.items(), alone, strict=True):
            assert g.shape[1:] == dict(worker.named_parameters())[parameter].shape
            torch.testing.assert_close(g[i], expected, rtol=off, atol=off * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_values_are_those_of_the_differentiated_objective(distance, monkeypatch):
    model, (x, y) = victim(torch.float64), batch(2, dtype=torch.float64)
    (search,) = replace(SMALL, distance=distance).searches(model, client.share(model, x, y))
    points = torch.randn(9, LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trials = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 1])
    expected, _ = search.matching(0)(points, trials)
    torch.testing.assert_close(search.matching(0).alone(points, trials), expected)
    monkeypatch.setitem(matching.BLOCK, "cpu", 2)
    torch.testing.assert_close(search.matching(0).alone(points, trials), expected)
    torch.testing.assert_close(search.matching(0).alone(points[:1], trials[:1]), expected[:1])


def test_the_same_seed_gives_the_same_latents_and_other_generators_are_left_alone():  # 8.10
    model, (x, y) = victim(), batch(2)
    update = client.share(model, x, y)
    before = np.random.get_state()  # noqa: NPY002 - the state that the package would seed
    first = SMALL(model, update, seed=0)
    after = np.random.get_state()  # noqa: NPY002
    assert (after[1] == before[1]).all() and after[2] == before[2]
    again, other = SMALL(model, update, seed=0), SMALL(model, update, seed=1)
    assert torch.equal(first.latents, again.latents) and torch.equal(first.raw, again.raw)
    assert not torch.equal(first.latents, other.latents)
    alone = SMALL(model, update.select(0), seed=0)
    torch.testing.assert_close(alone.latents[0], first.latents[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(prior()(first.latents[:, 0]), first.raw[:, 0])


def test_cma_minimises_and_counts():
    def bowl(x, trials):
        return (x - trials[:, None]).square().sum(1)

    random = [torch.Generator().manual_seed(t) for t in range(3)]
    states = list(cma_es(bowl, torch.zeros(3, 4), 60, 10, 1.0, random))
    assert len(states) == 60 and states[-1] is states[0]
    minimum = states[-1]
    torch.testing.assert_close(minimum.best, torch.arange(3.0)[:, None].expand(3, 4), rtol=0, atol=1e-2)
    torch.testing.assert_close(minimum.last, minimum.best, rtol=0, atol=2e-2)
    assert (minimum.evaluations == 600).all() and not minimum.diverged.any()


def test_cma_leaves_what_converged_and_what_diverged():
    def flat(x, trials):
        return torch.where(trials == 1, math.nan, (trials == 2) * x.square().sum(1))

    random = [torch.Generator().manual_seed(t) for t in range(3)]
    *_, minimum = cma_es(flat, torch.zeros(3, 4), 30, 10, 1.0, random)
    assert minimum.diverged.tolist() == [False, True, False]
    assert minimum.converged.tolist()[0] and minimum.evaluations[0] < 300 and minimum.evaluations[1] == 10
    assert minimum.evaluations[2] == 300 and minimum.best[2].abs().max() < 0.5

    def holes(x, trials):
        value = x.square().sum(1)
        return torch.where(torch.arange(len(x)) % 3 == 0, math.inf, value)

    *_, minimum = cma_es(holes, torch.ones(1, 4), 60, 12, 1.0, random[:1])
    assert not minimum.diverged.any() and minimum.best.abs().max() < 0.05


def test_snapshots_say_what_was_spent():
    model, (x, y) = victim(), batch(2)
    for attack, spent in ((SMALL, [0, 24, 60]), (replace(GGL.adam(prior()), evaluations=6), [0, 3, 6])):
        wanted = [0, 2, 5]
        found = attack(model, client.share(model, x, y), snapshots=wanted)
        assert found.history.iterations == wanted and found.history.evaluations[:, 0].tolist() == spent
        assert found.history.images.shape == (3, 2, 1, *SHAPE)
        if attack is SMALL:
            torch.testing.assert_close(found.history.objective[-1], found.objective)
            assert (found.history.objective[1:].diff(dim=0) <= 0).all()  # of the best so far; it begins with the start


def test_the_regulariser_is_of_what_enters_the_generator():
    model, (x, y) = victim(), batch(2)
    z = 3 * torch.randn(2, LATENT, generator=torch.Generator().manual_seed(1))
    for bound, entered in (("tanh", z.tanh()), ("none", z)):
        attack = replace(SMALL, bound=bound, regularizer="norm", reg_weight=0.3)
        expected = 0.3 * (entered.square().sum(1) - LATENT).square()
        (search,) = attack.searches(model, client.share(model, x, y))
        torch.testing.assert_close(search.penalty(z), expected)


def test_the_mean_is_not_the_best():
    model, (x, y) = victim(), batch(1)
    update = client.share(model, x, y)
    best, mean = (replace(SMALL, iterate=which)(model, update) for which in ("best", "last"))
    assert not torch.equal(best.latents, mean.latents) and torch.equal(best.evaluations, mean.evaluations)


def test_tanh_bounds_the_latents():
    model, (x, y) = victim(), batch(1)
    attack = replace(GGL.official_bounded(prior()), evaluations=90)
    assert attack(model, client.share(model, x, y)).latents.abs().max() <= 1


def test_networks_together_are_networks_apart():
    victims = [victim(torch.float64, seed=k) for k in range(2)]
    x, y = batch(2, dtype=torch.float64)
    updates = [client.share(model, x[k, None], y[k, None]) for k, model in enumerate(victims)]
    together = Victims.of(victims, 1)
    found = SMALL(together, client.SharedUpdate.join(updates, together))
    torch.testing.assert_close(found.raw[0], SMALL(victims[0], updates[0]).raw[0])


def test_the_generator_is_left_as_it_was():  # 8.12
    own = Prior().train().requires_grad_(True)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    model, (x, y) = victim(), batch(1)
    trained = replace(SMALL, generator=own)(model, client.share(model, x, y))
    assert own.training and all(p.requires_grad and p.grad is None for p in own.parameters())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert torch.equal(trained.raw, SMALL(model, client.share(model, x, y)).raw)  # in evaluation mode all the same
    (search,) = SMALL.searches(model, client.share(model, x, y))
    assert not search.generator.training and not any(p.requires_grad for p in search.generator.parameters())


# --- what the attacker makes of a defense


def told(defense, x, y, model):
    update = client.share(model, x, y, defense=defense, threat=TOLD)
    return update, defense.counter(model, update)


@pytest.mark.parametrize(
    "defense",
    [NormOfUpdate(0.5), NormOfUpdate(0.2, "tensor"), NormOfUpdate(1e9), TopK(0.9), KeptEntries(0.9)]
    + [RateOfUpdate(0.9, rate_of="tensor"), KeptColumns(60), Soteria(60)],
    ids=str,
)
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_the_truth_costs_an_informed_attacker_nothing(defense, activation):
    model, (x, y) = victim(torch.float64, activation=activation, init="default"), batch(3, dtype=torch.float64)
    update, reading = told(defense, x, y, model)
    dummies = reading.as_shared(gradients_of(model, x, y), torch.arange(3))
    whole = sum(g.flatten(1).square().sum(1) for g in update.gradients.values())
    assert (matching.distance(dummies, reading, torch.arange(3)) < 1e-10 * whole).all()


def test_clipping_shortens_each_candidate_and_nothing_else():  # 8.5
    model, (x, y) = victim(torch.float64), batch(4, dtype=torch.float64)
    g = gradients_of(model, x, y)
    g = {name: value * torch.tensor([0.1, 1, 10, 100.0]).view(-1, *[1] * (value.ndim - 1)) for name, value in g.items()}
    kept = {name: value.clone() for name, value in g.items()}

    def length(gradients):
        return sum(v.flatten(1).square().sum(1) for v in gradients.values()).sqrt()

    bounds = torch.tensor([5.0, 1, 1e-3, 20], dtype=torch.float64)
    for bound in (0.7, bounds):
        short = clipped(g, bound)
        torch.testing.assert_close(length(short), length(g).minimum(torch.as_tensor(bound)), rtol=0, atol=1e-5)
        again = clipped(short, bound)
        assert all(torch.allclose(again[name], short[name]) for name in g)
    assert all(torch.equal(g[name], kept[name]) for name in g)


def test_the_unclipped_update_is_read_as_its_own_bound():
    model, (x, y) = victim(torch.float64), batch(2, dtype=torch.float64)
    update, reading = told(NormOfUpdate(1e9), x, y, model)
    longer = {name: 3 * g for name, g in update.gradients.items()}
    seen = reading.as_shared(longer, torch.tensor([0, 1]))
    for name, g in update.gradients.items():
        torch.testing.assert_close(seen[name], g)
    shorter = {name: 0.5 * g for name, g in update.gradients.items()}
    seen = reading.as_shared(shorter, torch.tensor([0, 1]))
    assert all(torch.allclose(seen[name], shorter[name]) for name in seen)


def test_noise_moves_the_ranking_by_its_projection_alone():  # 8.6
    random = torch.Generator().manual_seed(0)
    true, other = ({"a": torch.randn(1, 400, generator=random, dtype=torch.float64)} for _ in range(2))
    away = other["a"] - true["a"]
    gaps = []
    for _ in range(600):
        noise = 0.1 * torch.randn(1, 400, generator=random, dtype=torch.float64)
        seen, trial = Observation({"a": true["a"] + noise}), torch.arange(1)
        gap = (matching.distance(other, seen, trial) - matching.distance(true, seen, trial)).item()
        expected = (away.square().sum() - 2 * (away * noise).sum()).item()
        assert gap == pytest.approx(expected, rel=1e-4)
        gaps.append(gap)
    assert np.std(gaps) == pytest.approx(2 * 0.1 * away.norm().item(), rel=0.15)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.99])
def test_pruning_at_a_rate_is_the_percentile(share):  # 8.7
    random = torch.Generator().manual_seed(0)
    g = torch.randn(3, 7, 31, generator=random, dtype=torch.float64)
    found = pruned_at(g, torch.full((3,), share, dtype=torch.float64))
    n = g[0].numel()
    for row, kept in zip(g, found, strict=True):
        threshold = np.percentile(row.abs().numpy(), 100 * share)
        assert threshold == pytest.approx(torch.quantile(row.abs(), share).item())
        assert torch.equal(kept, row * (row.abs() >= threshold))
        assert 1 - share - 1 / n <= (kept != 0).double().mean() <= 1 - share + 2 / n
    if share == 0:
        assert torch.equal(found, g)
    assert torch.equal(pruned_at(g, torch.tensor([share], dtype=torch.float64)), found)
    mixed = pruned_at(g, torch.tensor([0.0, share, 0.5], dtype=torch.float64))
    assert torch.equal(mixed[0], g[0]) and torch.equal(mixed[1], found[1])


def test_the_rate_of_an_update_counts_dead_features_too():
    model, (x, y) = victim(activation="relu", init="default"), batch(2)
    update, reading = told(RateOfUpdate(0.5), x, y, model)
    own, whole = zero_shares(update.gradients), zero_shares(update.gradients, "update")
    assert (own["conv1.bias"] <= 0.5).all() and own["head.weight"].max() > 0.5
    assert (whole["conv1.bias"] == whole["head.weight"]).all() and whole["conv1.bias"].min() > 0.5
    clean = {name: g.requires_grad_() for name, g in gradients_of(model, x, y).items()}
    seen = reading.as_shared(clean, torch.arange(2))
    seen["conv1.weight"].sum().backward()  # the released code cannot
    assert clean["conv1.weight"].grad.unique().tolist() == [0, 1]


def test_soterias_mask_is_read_off_the_update():  # 8.8
    model = victim(torch.float64, activation="relu", init="default")
    x, y = batch(1, dtype=torch.float64)
    update, reading = told(KeptColumns(60), x, y, model)
    selection = KeptColumns(60).select(model, x[0], torch.Generator())
    true = selection.kept & (selection.representation[0] != 0)
    assert torch.equal(reading.weight["head.weight"][0, 0].bool(), true)
    columns = update.gradients["head.weight"][0] != 0
    assert (columns == columns[0]).all()
    clean = gradients_of(model, x, y)
    assert all(torch.equal(g, clean[name]) for name, g in update.gradients.items() if name != "head.weight")
    d = len(selection.kept)
    assert abs(int((~selection.kept).sum()) - 0.6 * d) <= 1


def test_an_informed_attacker_uses_the_defenses_reading():
    x, y = planted(2)
    model = victim()
    clips = Clipping(0.5)
    assert isinstance(NormOfUpdate(0.5), Clipping) and str(NormOfUpdate(0.5)) == str(clips)
    plain, informed = (
        GGL(prior(), evaluations=600, population=20, reg_weight=0.0)(
            model, client.share(model, x, y, defense=NormOfUpdate(0.5), threat=replace(TOLD, defense_known=knows))
        )
        for knows in (False, True)
    )
    assert metrics.mse(informed.images, x).mean() * 3 < metrics.mse(plain.images, x).mean()
    for alone in (NormOfUpdate(0.5), RateOfUpdate(0.9), RateOfUpdate(0.9, rate_of="tensor")):  # one trial, many rows
        update = client.share(model, x[:1], y[:1], defense=alone, threat=TOLD)
        assert replace(SMALL, evaluations=24)(model, update).objective.isfinite().all()
    both = Compose([NormOfUpdate(0.5), GaussianNoise(1e-3)])
    update = client.share(model, x, y, defense=both, threat=TOLD)
    assert both.counter(model, update).of_the_mean is not None


# --- labels, and conventions


def test_the_rows_of_two_classes_are_opposite():  # 8.9
    model = models.build("lenet", 2, SHAPE, seed=0)
    x, y = batch(8)[0], torch.tensor([[0], [1]] * 4)
    weight = client.share(model, x, y).gradients["head.weight"]
    assert weight.sum(1).abs().max() < 1e-6
    assert torch.equal(labels.of_update(client.share(model, x, y), "yin_sum"), y)


@pytest.mark.parametrize("defense", [None, Clipping(0.1), TopK(0.9), Soteria(80)], ids=str)
def test_the_label_of_every_class_is_read(defense):  # 8.9
    model, x = victim(), batch(CLASSES)[0]
    y = torch.arange(CLASSES)[:, None]
    assert torch.equal(SMALL.given_labels(client.share(model, x, y, defense=defense)), y)


def test_the_papers_psnr_is_six_decibels_lower():  # 8.11
    a, b = batch(3)[0][:, 0], batch(3, seed=1)[0][:, 0]
    theirs = -10 * torch.log10(((2 * a - 1) - (2 * b - 1)).square().mean((1, 2, 3)))
    torch.testing.assert_close(metrics.psnr_ggl(a, b), theirs)
    torch.testing.assert_close(metrics.psnr(a, b) - metrics.psnr_ggl(a, b), torch.full((3,), 6.0206))


def test_the_presets():
    own = prior()
    assert GGL.paper(own) == GGL(own) and GGL.paper(own).iterations == 800
    assert GGL.official(own).population == 18 and GGL.official(own).iterations == 1388
    assert GGL.adam(own).iterations == 2499 and GGL.adam(own).reduction == "sum"
    assert GGL.official_bounded(own).bound == "tanh" and GGL.official_bounded(own).regularizer == "none"
    rate = ramp(0.1, 2500)
    assert rate(0) == 0 and rate(125) == pytest.approx(0.1) == rate(1875) and rate(62) == pytest.approx(0.0496)
    assert rate(2187) == pytest.approx(0.05, abs=1e-3) and rate(2500) == pytest.approx(0, abs=1e-9)


def test_adams_rate_falls_where_the_released_code_has_it(monkeypatch):
    # at 2,500 gradients over 2.667, 1.6 and 1.142, rounded down, though only 2,499 of them are steps
    seen = []
    monkeypatch.setattr("reprolib.attacks.ggl.signed_adam", lambda *_, milestones: seen.append(milestones) or iter(()))
    model, (x, y) = victim(), planted(1)
    GGL.adam(prior())(model, client.share(model, x, y))
    assert seen == [(937, 1562, 2189)]


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "turbo"}, "optimizer must be one of 'cma', 'adam', got 'turbo'"),
        ({"population": 1}, "population must be a whole number >= 4, got 1"),
        ({"population": 10.5}, "population must be a whole number >= 4, got 10.5"),
        ({"evaluations": 11}, "evaluations must be at least 12, one generation, got 11"),
        ({"optimizer": "adam", "evaluations": 1}, "evaluations must be at least 2, one step of Adam, got 1"),
        ({"sigma0": 0.0}, "sigma0 must be a finite number > 0, got 0.0"),
        ({"reg_weight": -1.0}, "reg_weight must be a finite number >= 0, got -1.0"),
        ({"starts": 0}, "starts must be a whole number >= 1, got 0"),
        ({"schedule": "ramp"}, "schedule='ramp' goes with signed=False"),
        ({"generator": nn.Identity()}, "generator must be a module with `latent_dim`.*got Identity"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (prior(shape=(1, 8, 8)), r"makes images of \(1, 8, 8\), the client's are \(3, 8, 8\)"),
        (prior(takes=6), "takes no latents of its latent_dim=8"),
    ],
    ids=["shape", "latents"],
)
def test_a_generator_that_does_not_fit_is_refused(generator, message):
    model, (x, y) = victim(), batch(1)
    with pytest.raises(ValueError, match=message):
        replace(SMALL, generator=generator)(model, client.share(model, x, y))


def test_an_update_that_does_not_fit_is_refused():
    model, (x, y) = victim(), batch(1)
    update = client.share(model, x, y)
    with pytest.raises(ValueError, match="other weights"):
        SMALL(victim(seed=1), update)
    with pytest.raises(ValueError, match="labels='known' needs labels in the update"):
        replace(SMALL, labels="known")(model, update)
    nothing = replace(update, gradients={name: torch.zeros_like(g) for name, g in update.gradients.items()})
    with pytest.raises(ValueError, match="the gradient of trial 0 is zero: it has no direction"):
        replace(SMALL, distance="cosine")(model, nothing)
    with pytest.raises(ValueError, match="rate_of must be one of 'update', 'tensor', got 'layer'"):
        RateOfUpdate(0.5, rate_of="layer")


# --- the chapter's experiments


class Coder(Prior):
    def encode(self, images):
        return self.hidden.weight[0, 0] * images.flatten(1)[:, :LATENT], None


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "test", 60), data.load("digits", "train", 60)


def test_controls_have_what_they_say(digits):
    images, public = digits
    own, cpu = replace(SMALL, generator=prior(shape=images.image_shape), evaluations=24), torch.device("cpu")
    found = experiments.guesses(own.generator, images, public, 3, 0)
    null = experiments.nulls(own, images, public, 3, 0, cpu)
    assert list(null["scores"].control.unique()) == ["Gaussian of equal length", "gradient of another image"]
    scores = pd.concat([null["scores"].replace("gradient of another image", "gradient"), found["scores"]])
    assert scores.control.iloc[-1] == "floor" and (scores.groupby("control").trial.apply(list).map(len) == 3).all()
    y = images.batches(1, 3, seed=0)[1][:, 0]
    mean = torch.stack([public.images[public.labels == label].mean(0) for label in y])
    torch.testing.assert_close(found["mean image of the class"], mean)
    known = {picture.numpy().tobytes() for picture in public.images}
    assert all(picture.numpy().tobytes() in known for picture in found["random image of the class"])
    share = experiments.of_the_picture(scores, "mean image")
    error = {name: part.mse.to_numpy() for name, part in scores.groupby("control")}
    away = error["mean image"] - error["floor"]
    assert share == pytest.approx((error["mean image"] - error["gradient"]) / away)


def test_controls_behind_a_defense_are_attacked_by_one_who_knows_it(digits, monkeypatch):
    from reprolib.experiments import ggl as chapter_of

    seen = []

    def noted(attack, victims, updates, seed):
        seen.extend(updates)
        return attack_together(attack, victims, updates, seed)

    monkeypatch.setattr(chapter_of, "attack_together", noted)
    images, public = digits
    own = replace(SMALL, generator=prior(shape=images.image_shape), evaluations=24)
    bound = NormOfUpdate(0.5)
    experiments.nulls(own, images, public, 2, 0, torch.device("cpu"), defense=bound)
    assert len(seen) == 4 and all(update.threat.defense_known and update.defense == bound for update in seen)
    for update in seen:
        length = sum(g.square().sum() for g in update.gradients.values()).sqrt()
        torch.testing.assert_close(length, torch.tensor(0.5))


def test_a_gaussian_vector_has_the_gradients_length():
    model, (x, y) = victim(), batch(2)
    update = client.share(model, x, y)
    noise = of_equal_length(update, torch.Generator().manual_seed(0))
    for gradients in (update.gradients, noise.gradients):
        lengths = sum(g.flatten(1).square().sum(1) for g in gradients.values())
        torch.testing.assert_close(lengths, sum(g.flatten(1).square().sum(1) for g in update.gradients.values()))
    assert noise.gradients["head.weight"].mean().abs() < noise.gradients["head.weight"].std()


def test_races_planted_images_and_readings(digits):
    images, device = digits[0], torch.device("cpu")
    own = replace(SMALL, generator=prior(shape=images.image_shape), evaluations=36)
    adam = replace(GGL.adam(own.generator), evaluations=4)
    found = experiments.race({"cma": own, "adam": adam}, images, 2, [2, 4, 13, 36], 0, device)
    rows, ends = found["path"], found["ends"]
    assert rows[rows.attack == "cma"].spent.unique().tolist() == [12, 36]
    assert rows[rows.attack == "adam"].spent.unique().tolist() == [3, 4]
    assert rows.distance.between(0, 10).all() and len(rows) == 8
    alone = attack_trials(own, images, [0, 1], 1, 0, device, pool=images)  # its end is the undefended attack
    for column in ("psnr", "label_correct", "identified"):
        assert ends[ends.attack == "cma"][column].tolist() == alone["scores"][column].tolist()
    assert torch.equal(found["cma"], alone["shown"]) and torch.equal(found["truth"], alone["truth"])
    found = experiments.planted({"cma": own}, own.generator, 2, CLASSES, 0, device)
    assert found.columns.tolist() == ["trial", "mse", "psnr", "evaluations", "attack"] and len(found) == 2
    cases = {"none": None, "clipped": Clipping(1e-3), "pruned": TopK(0.5), "Soteria": Soteria(50)}
    told = experiments.readings(images, 2, cases, 0, device).set_index("case")
    assert told.shared["clipped"].tolist() == pytest.approx([1e-3] * 2) and told.cosine["clipped"].min() > 0.999
    assert (
        told.zeros["pruned"].min() > told.zeros["none"].max()
    )  # some are zero anyway: kernels that meet the border alone
    assert told["columns"]["Soteria"].tolist() == pytest.approx([0.5] * 2, abs=0.02)


def test_the_landscape_is_lowest_where_informed_and_clean_agree(digits):
    images = digits[0]
    own = replace(SMALL, generator=Coder(shape=images.image_shape).eval(), evaluations=24)
    cases = {"no defense": None, "Soteria": Soteria(50), "clipping": NormOfUpdate(1e-3)}
    scene = experiments.landscape(own, images, 2, cases, 5, 0, torch.device("cpu"))
    ranks = scene["ranks"].set_index(["case", "attacker"])["rank"]
    assert (ranks["no defense", "plain"] > 0.999).all() and len(ranks) == 10
    assert scene["clipping, informed"].shape == (1, 5, 5) and scene["clipping, informed"].max() == 1
    assert (
        scene["path"].distance.between(0, 1).all() and (scene["path"].groupby(["case", "attacker"]).size() == 5).all()
    )


def test_a_step_aside_in_the_landscape_is_at_a_right_angle_and_as_long(digits, monkeypatch):
    seen, alone = [], matching.Matching.alone
    monkeypatch.setattr(matching.Matching, "alone", lambda self, z, *told: seen.append(z) or alone(self, z, *told))
    own = replace(SMALL, generator=Coder(shape=digits[0].image_shape).eval(), evaluations=24)
    experiments.landscape(own, digits[0], 1, {"no defense": None}, 5, 0, torch.device("cpu"))
    (plane,) = (z.view(5, 5, LATENT) for z in seen if len(z) == 25)
    on, aside = plane[0, 1] - plane[0, 0], plane[1, 0] - plane[0, 0]
    torch.testing.assert_close(aside.norm(), on.norm())
    assert abs(aside @ on) < 1e-5 * on @ on


def test_images_upside_down_meet_the_same_networks(digits):
    images, device = digits[0], torch.device("cpu")
    adam = replace(GGL.adam(Coder(shape=images.image_shape).eval()), evaluations=3)
    found = experiments.upside_down(adam, images, 2, 0, device)
    upright = attack_trials(adam, images, [0, 1], 1, 0, device, pool=images)
    assert torch.equal(found["truth"].flip(2), upright["truth"])
    assert found["scores"].network.tolist() == [0, 1] and found["scores"].floor.notna().all()
    assert found["scores"].label.tolist() == upright["scores"].label.tolist()


def test_local_steps_turn_an_update_the_more_the_longer_they_are(digits):
    images, device = digits[0], torch.device("cpu")
    none, short, long = (
        experiments.drift(images, 2, 4, LocalTraining(*steps), 0, device).cosine
        for steps in ((1, 4, 1e-2), (5, 4, 1e-4), (5, 4, 1e-2))
    )
    assert none.tolist() == pytest.approx([1, 1], abs=1e-4) and (long < short).all()


# --- its measures


def attacked(*identified, psnr=20.0):
    scores = pd.DataFrame({"identified": [*identified], "psnr": psnr + np.arange(len(identified)) / 10})
    return Attacked(scores, torch.zeros(0), torch.zeros(0))


def test_the_control_of_two_attacks_is_the_one_that_identifies_fewer():
    most, some = attacked(True, True, True, False), attacked(True, False, False, False)
    assert measures.fewer(most.scores, some.scores).value == 0.25
    runs = {("no defense", "plain", name): most for name in ("GGL", "GGL, Adam", "iDLG")}
    found = measures.undefended(runs | {("no defense", "plain", "IG"): some}, "iDLG")
    assert {name: share.value for name, share in found.items()} == {
        "ggl_undefended_identified": 0.75,
        "adam_undefended_identified": 0.75,
        "pixels_undefended_identified": 0.75,
        "fewer_pixels_undefended_identified": 0.25,
    }


def test_a_rival_that_fails_undefended_decides_nothing():
    told = {("noise", "GGL"): 18, ("noise", "A"): 9, ("noise", "B"): 12, ("no defense", "A"): 30}
    grey = np.full(3, 11.0)

    def over(undefended):
        def psnr(case, name, who="informed"):
            value = undefended if (case, name) == ("no defense", "B") else told[case, name]
            return value + np.arange(3) / 10

        return measures.rivals(psnr, ["noise"], ["A", "B"], grey, ["over_baselines_noise"])["over_baselines_noise"]

    assert over(15).value == pytest.approx(6)  # against B, the best on average behind the defense
    assert over(11.5).reason == "gate"  # whatever A does undefended


def test_what_a_prior_can_do_is_shown_for_clients_it_has_not_seen(digits):
    images, public = digits
    own = Coder(shape=images.image_shape).eval()
    found = experiments.ggl.prior_at_best(own, images, public, 3, 0)
    truth = images.batches(1, 3, seed=0)[0][:, 0]
    assert torch.equal(found["truth"], truth) and found["samples"].shape == truth.shape
    assert found["scores"].psnr.tolist() == pytest.approx(metrics.psnr(found["nearest"], truth).tolist())
    with pytest.raises(ValueError, match="60 of the 60 private images"):
        experiments.ggl.prior_at_best(own, images, images, 3, 0)
