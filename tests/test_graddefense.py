"""GradDefense: reference cuts, noise, sensitivity, the denoising server and its attackers (defenses.md 8.8, 8.9)."""

from dataclasses import replace

import pytest
import torch

from reprolib import attacks, data, defenses, models
from reprolib.attacks.matching import Matching, distance
from reprolib.defenses import Compose, GradDefense, TopK
from reprolib.defenses.graddefense import (
    compensate,
    edges,
    equal_mass_cuts,
    layout,
    official_cuts,
    over_rounds,
    root_set,
    sensitivity,
)
from reprolib.federated import client
from reprolib.federated.client import share
from reprolib.federated.threat import ThreatModel

LENET = [900, 12, 3600, 12, 3600, 12, 7680, 10]
EQUAL = [1.0] * 8
STEEP = [0.1, 0.1, 0.2, 0.1, 0.3, 0.1, 3, 5]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train", 120)


@pytest.fixture(scope="module")
def root(digits):
    return root_set(digits, 2)


@pytest.fixture(scope="module")
def model(digits):
    return models.build("lenet", digits.num_classes, digits.image_shape, seed=0)


@pytest.fixture(scope="module")
def batch(digits):
    return digits.batches(1, 3, seed=0)


def flat(gradients) -> torch.Tensor:
    return torch.cat([g.flatten(1) for g in gradients.values()], 1)


def test_cuts_are_those_of_the_reference():
    assert equal_mass_cuts(LENET, EQUAL, 10) == [0, 720, 906, 2352, 4514, 4524, 7404, 8130, 11208, 15818, 15826]
    assert equal_mass_cuts(LENET, STEEP, 10) == [
        *(0, 8134, 10388, 12666, 14944, 15816, 15818, 15820, 15822, 15824, 15826),
    ]


def test_official_cuts_are_those_of_the_released_code():
    assert official_cuts(LENET, EQUAL, 10) == [0, 717, 905, 1991, 4511, 4519, 6203, 8125, 8133, 12999, 15825]
    assert official_cuts(LENET, STEEP, 10) == [0, 8133, 10369, 12647, 14925, *[15815] * 5, 15825]


def test_slices_partition_the_update_and_none_is_empty():
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        sensitivities = (10 ** (6 * torch.rand(8, generator=random) - 3)).tolist()
        cuts = equal_mass_cuts(LENET, sensitivities, 10)
        assert cuts[0] == 0 and cuts[-1] == 15826 and all(a < b for a, b in zip(cuts, cuts[1:], strict=False))
        assert all(cut % 2 == 0 for cut in cuts)
    assert equal_mass_cuts([2, 4], [0.0, 1.0], 3) == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="slices=4: sizes .2, 4. can be cut into 3 pieces of 2 at most"):
        equal_mass_cuts([2, 4], [1.0, 1.0], 4)
    with pytest.raises(ValueError, match="sensitivities must be a number >= 0 for each of 2 parameters"):
        equal_mass_cuts([2, 4], [0.0, 0.0], 2)


def test_without_noise_or_slices_nothing_changes(model, batch, root):
    plain = share(model, *batch)
    for defense in (GradDefense(root, std=0.0), GradDefense(root, perturbed=0), GradDefense(root, std=0, clip=True)):
        shared = share(model, *batch, defense=defense)
        assert all(torch.equal(shared.gradients[name], g) for name, g in plain.gradients.items())


def test_noise_is_in_whole_slices_and_nowhere_else(model, batch, root):
    defense = GradDefense(root, std=1e-2)
    cuts = defense.cuts(model)
    change = flat(share(model, *batch, defense=defense).gradients) - flat(share(model, *batch).gradients)
    for row in change:
        noisy = [bool((row[a:b] != 0).any()) for a, b in zip(cuts, cuts[1:], strict=False)]
        assert sum(noisy) == 5
        for touched, a, b in zip(noisy, cuts, cuts[1:], strict=False):
            assert (row[a:b] != 0).all() if touched else (row[a:b] == 0).all()
    assert not torch.equal(change[0], change[1])


def test_slices_are_drawn_with_equal_chance_and_the_noise_has_its_energy(model, root):
    defense = GradDefense(root, std=0.5)
    cuts = defense.cuts(model)
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    hits, energy = torch.zeros(10), []
    for trial in range(300):
        noise = defense.protect(zeros, model, torch.empty(0), torch.empty(0), client.generator(0, trial))
        row = torch.cat([g.flatten() for g in noise.values()])
        hits += torch.tensor([float((row[a:b] != 0).any()) for a, b in zip(cuts, cuts[1:], strict=False)])
        count = int((row != 0).sum())
        energy.append((row.double().square().sum() / 0.25 - count) / (2 * count) ** 0.5)
    assert (hits / 300 - 0.5).abs().max() < 0.12
    energy = torch.stack(energy)  # chi-square in standard units: mean 0, deviation 1
    assert abs(energy.mean()) < 0.2 and energy.std() == pytest.approx(1, abs=0.15)


def test_official_neighbours_share_an_entry(model, root):
    defense = GradDefense(root, slices=4, perturbed=4, variant="official")
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    cuts, rows = defense.cuts(model), []
    for trial in range(400):
        noise = defense.protect(zeros, model, torch.empty(0), torch.empty(0), client.generator(1, trial))
        rows.append(torch.cat([g.flatten() for g in noise.values()]))
    variance = torch.stack(rows).var(0) / 5e-4**2
    inner = sorted(set(cuts[1:-1]))
    assert variance[inner].min() > 1.5 and variance[0] == pytest.approx(1, abs=0.3)


def test_the_sensitivity_is_the_derivative_of_the_summed_gradient(digits):
    model = models.build("mlp", digits.num_classes, digits.image_shape, seed=0, width=4)
    root = root_set(digits, 1)
    found = sensitivity(model, root)
    names = list(dict(model.named_parameters()))
    assert len(found) == len(names)
    # by differences, along one pixel of one image after the other, for the last bias
    images, labels = root.images.double(), root.labels
    model = model.double()

    def summed(x):
        return client.share(model, x[None], labels[None]).gradients["hidden2.bias"].sum()

    slopes = torch.zeros(len(images), images[0].numel(), dtype=torch.float64)
    for i in range(1):
        for pixel in range(images[0].numel()):
            step = torch.zeros_like(images)
            step[i].view(-1)[pixel] = 1e-4
            low, high = (images - step).clamp(0, 1), (images + step).clamp(0, 1)
            slopes[i, pixel] = (summed(high) - summed(low)) / (high - low).sum()
    single = replace(root, images=root.images, labels=labels)
    by_image = _slopes(model, single, names.index("hidden2.bias"))
    torch.testing.assert_close(slopes[0], by_image[0], rtol=1e-4, atol=1e-9)
    assert found[names.index("hidden2.bias")] == pytest.approx(by_image.norm(dim=1).mean().item(), rel=1e-4)


def _slopes(model, root, place):
    images = root.images.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(images), root.labels)
    gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)[place]
    return torch.autograd.grad(gradient.sum(), images)[0].flatten(1)


def test_the_hutchinson_estimate_is_the_jacobians_norm(digits):
    model = models.build("mlp", digits.num_classes, digits.image_shape, seed=0, width=4)
    root = root_set(digits, 1)
    images = root.images.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(images), root.labels)
    gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)[-1]
    rows = [torch.autograd.grad(entry, images, retain_graph=True)[0].flatten(1) for entry in gradient]
    exact = torch.stack(rows).square().sum((0, 2)).mean().item()
    assert sensitivity(model, root, "hutchinson")[-1] == pytest.approx(exact, rel=0.5)


def test_the_root_set_stays_as_it_is_and_fits_the_model(digits):
    model = models.build("mlp", digits.num_classes, digits.image_shape, seed=0, width=4)
    root = root_set(digits, 1)
    sensitivity(model, root)
    assert not root.images.requires_grad
    fewer = models.build("mlp", 5, digits.image_shape, seed=0, width=4)
    with pytest.raises(ValueError, match="the root set has a label 9, the model 5 classes"):
        sensitivity(fewer, root)
    wider = models.build("mlp", digits.num_classes, (1, 16, 16), seed=0, width=4)
    with pytest.raises(ValueError, match=r"images must have shape \[trials, batch, 1, 16, 16\]"):
        sensitivity(wider, root)


def test_root_sets_take_the_first_of_each_class(digits):
    root = root_set(digits, 2)
    assert torch.bincount(root.labels).tolist() == [2] * 10
    first = (digits.labels == 3).nonzero()[0, 0]
    assert (root.images[root.labels == 3][0] == digits.images[first]).all()
    with pytest.raises(ValueError, match="per_class=500: the classes of 'digits' hold at least"):
        root_set(digits, 500)


# --- compensation -----------------------------------------------------------------------------------------------------


def test_the_layout_and_the_edges_are_those_of_the_reference():
    assert layout(15826, 6.0) == (386, 41)
    assert pytest.approx(9.4146, abs=1e-4) == 386 / 41
    assert layout(13, 6.0) == (13, 1)
    low, high = edges(2.0, 4.0)
    assert (low, high) == (0.5, 4.5)


def test_pure_noise_is_removed():
    shares, norms = [], []
    for draw in range(40):
        noise = 5e-4 * torch.randn(15826, generator=torch.Generator().manual_seed(draw))
        values = torch.linalg.eigvalsh(noise.double().view(386, 41).T.cov())
        low, high = edges(5e-4**2, 386 / 41)
        shares.append(((values > low) & (values < high)).double().mean())
        norms.append(compensate({"a": noise}, 5e-4**2)["a"].norm() / noise.norm())
    assert min(shares) >= 0.9 and max(norms) < 0.3


def test_a_signal_of_low_rank_stays_and_its_noise_goes():
    random = torch.Generator().manual_seed(0)
    signal = torch.randn(386, 3, generator=random) @ torch.randn(3, 41, generator=random) * 1e-3
    noise = 5e-4 * torch.randn(386, 41, generator=random)
    cleaned = compensate({"a": signal + noise}, 5e-4**2)["a"]
    assert (cleaned - signal).norm() < 0.5 * noise.norm()


def test_without_noise_compensation_changes_nothing():
    g = {"a": torch.randn(20, 5), "b": torch.randn(26)}
    assert all(torch.equal(compensate(g, 0.0)[name], value) for name, value in g.items())
    kept = compensate(g, 1e-12)
    assert all(torch.allclose(kept[name], value, atol=1e-6) for name, value in g.items())
    prime = compensate({"a": torch.randn(13)}, 1e-12)["a"]
    assert prime.shape == (13,)
    with pytest.raises(ValueError, match="variance must be a finite number >= 0, got -1"):
        compensate(g, -1)
    with pytest.raises(ValueError, match="aspect must be a finite number > 0, got 0"):
        compensate(g, 1.0, 0)


def test_the_variance_of_a_weighted_sum_over_clients(root):
    assert GradDefense(root, std=0.1).noise_variance([0.1] * 10) == pytest.approx(0.5 * 0.01 / 10)


# --- the attacker -----------------------------------------------------------------------------------------------------


def test_several_rounds_give_away_what_repeats(model, batch, root):
    defense = GradDefense(root, std=1e-2)
    plain = share(model, *batch).gradients
    rounds = [share(model, *batch, defense=defense, seed=seed).gradients for seed in range(9)]
    found = over_rounds(rounds)
    right = (flat(found) == flat(plain)).float().mean()
    # a slice is clean at least twice in nine rounds with probability 1 - 10 / 512
    assert right > 0.9
    once = over_rounds(rounds[:1])
    assert all(torch.equal(once[name], g) for name, g in rounds[0].items())
    with pytest.raises(ValueError, match="over_rounds needs at least one round"):
        over_rounds([])


@pytest.mark.parametrize("variant", ["fixed", "official"])
def test_who_knows_the_seed_subtracts_the_noise(model, batch, root, variant):
    defense = GradDefense(root, std=1e-2, variant=variant)
    clean = defense.without_noise(share(model, *batch, defense=defense, seed=5), model, seed=5)
    for name, g in share(model, *batch).gradients.items():
        torch.testing.assert_close(clean[name], g, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="without_noise needs clip=False and the update of one client"):
        replace(defense, clip=True).without_noise(share(model, *batch), model, seed=5)


def test_a_first_reconstruction_tells_the_noisy_slices(model, batch, root):
    defense = GradDefense(root, std=1e-2)
    update = share(model, *batch, defense=defense, threat=ThreatModel(defense_known=True))
    plain = share(model, *batch).gradients
    near = {
        name: g + 1e-4 * torch.randn(g.shape, generator=torch.Generator().manual_seed(0)) for name, g in plain.items()
    }
    reading = defense.reread(model, update, near).counter(model, update)
    noisy = flat(update.gradients) != flat(plain)
    weights = flat(reading.weight)
    assert (weights[noisy] < 1.01).float().mean() > 0.999 and (weights[~noisy] > 900).float().mean() > 0.999
    assert reading.noise_std == pytest.approx(1e-2)
    trials = torch.arange(3)
    assert (distance(plain, reading, trials) < distance(near, reading, trials)).all()


def test_the_reading_of_several_victims_is_that_of_each(digits, root):
    from reprolib.models import Victims

    networks = [models.build("lenet", 10, digits.image_shape, seed=s) for s in (0, 1)]
    defense, (x, y) = GradDefense(root, std=1e-2), digits.batches(1, 2, seed=0)
    updates = [share(net, x[i, None], y[i, None], defense=defense) for i, net in enumerate(networks)]
    together = Victims.of(networks, 1)
    joined = client.SharedUpdate.join(updates, together)
    dummies = {name: g + 1e-3 for name, g in joined.gradients.items()}
    both = defense.reread(together, joined, dummies).observation
    for i, net in enumerate(networks):
        own = defense.reread(net, updates[i], {name: g[i, None] for name, g in dummies.items()}).observation
        torch.testing.assert_close(flat(both.weight)[i], flat(own.weight)[0])


def test_the_noise_of_a_mean_is_its_square_root_smaller(model, batch, root):
    defense = GradDefense(root, slices=10, perturbed=4, std=0.2)
    update = share(model, *batch, defense=defense)
    dummies = {name: g + 1e-3 for name, g in update.gradients.items()}
    for clients, local in ((1, None), (4, None), (4, client.LocalTraining(1, 1, 0.5))):
        seen = replace(update, threat=ThreatModel(observes=f"mean of {clients}"), local=local)
        unit = abs(seen.scale) / clients**0.5
        assert defense.counter(model, seen).noise_std == pytest.approx(0.4**0.5 * 0.2 * unit)
        assert defense.reread(model, seen, dummies).observation.noise_std == pytest.approx(0.2 * unit)


def test_the_reading_meets_the_attack(model, batch, root):
    defense = GradDefense(root, std=1e-2)
    update = share(model, *batch, defense=defense, threat=ThreatModel(defense_known=True))
    reading = update.defense.counter(model, update)
    assert reading.noise_std == pytest.approx(1e-2 * 0.5**0.5)
    Matching(model, reading, lambda x, t: (x, t))


def test_a_second_attack_sees_through_strong_noise(model, digits, root):
    images, labels = digits.batches(1, 4, seed=3)
    threat = ThreatModel(labels="known", defense_known=True)
    update = share(model, images, labels, threat=threat, defense=GradDefense(root, std=0.1))
    attack = attacks.DLG(iterations=6, init_mean=0.5, init_std=0.1, labels="known", iterate="best")
    once, twice = attack(model, update), attacks.Rereading(attack)(model, update)
    assert (twice.evaluations > once.evaluations).all()
    assert (twice.images - images).square().mean() < 0.5 * (once.images - images).square().mean()
    with pytest.raises(ValueError, match="Rereading needs an update that grants a defense with `reread`.*got None"):
        attacks.Rereading(attack)(model, replace(update, defense=None))


def test_a_second_look_costs_one_gradient_and_another_attack(model, batch, root):
    threat = ThreatModel(labels="known", defense_known=True)
    update = share(model, *batch, threat=threat, defense=GradDefense(root, std=1e-2))
    adam = attacks.InvertingGradients(iterations=2)
    assert (attacks.Rereading(adam)(model, update).evaluations == 2 * adam(model, update).evaluations + 1).all()


def test_clipping_takes_the_images_of_the_noisy_slices_only(model, digits, root):
    images, labels = digits.batches(4, 1, seed=0)
    plain = flat(share(model, images, labels).gradients)[0]
    defense = GradDefense(root, std=1e-9, clip=True)
    shared = flat(share(model, images, labels, defense=defense).gradients)[0]
    cuts = defense.cuts(model)
    lengths = torch.stack([shared[a:b].norm() for a, b in zip(cuts, cuts[1:], strict=False)])
    same = torch.tensor([torch.equal(shared[a:b], plain[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)])
    assert same.sum() == 5 and (lengths[~same] < 1e-7).all()
    with pytest.raises(ValueError, match="GradDefense.*would not see what pruning 90%"):
        Compose([TopK(0.9), defense])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": None}, "root must be an ImageSet, got None"),
        ({"slices": 0}, "slices must be a whole number >= 1, got 0"),
        ({"perturbed": -1}, "perturbed must be a whole number >= 0, got -1"),
        ({"perturbed": 11}, "perturbed=11 slices cannot be drawn from slices=10"),
        ({"std": -1.0}, "std must be a finite number >= 0, got -1.0"),
        ({"variant": "new"}, "variant must be one of 'fixed', 'official', got 'new'"),
        ({"estimator": "exact"}, "estimator must be one of 'vjp_ones', 'hutchinson', got 'exact'"),
    ],
)
def test_bad_settings_are_refused(root, settings, message):
    with pytest.raises(ValueError, match=message):
        GradDefense(**({"root": root} | settings))


def test_it_has_no_epsilon(root):
    with pytest.raises(ValueError, match="there is no epsilon for GradDefense"):
        GradDefense(root, clip=True).epsilon(1, 1e-5)
    assert defenses.describe(GradDefense(root)) == "GradDefense, std 0.0005 in 5 of 10 slices"
