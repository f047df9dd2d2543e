"""DLG and iDLG: identities of the objective, equality with torch's optimiser, independence of the trials, messages."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reprolib import attacks, defenses, models
from reprolib.attacks import dlg, priors
from reprolib.attacks.matching import Matching, distance, dummy_gradients, per_parameter
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.observation import Observation
from reprolib.federated.threat import ThreatModel

SHAPE, CLASSES = (1, 8, 8), 4


def victim(dtype=torch.float64, seed=0):
    return models.build("lenet", CLASSES, SHAPE, seed=seed).to(dtype)


def batch(trials, size=1, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(trials, size, *SHAPE, generator=random, dtype=dtype)
    return images, torch.randint(CLASSES, (trials, size), generator=random)


def one_hot(labels, dtype=torch.float64):
    return F.one_hot(labels, CLASSES).to(dtype)


def test_the_objective_is_zero_at_the_truth():
    model, (images, labels) = victim(), batch(3)
    update = client.share(model, images, labels)
    dummies = dummy_gradients(client.worker(model, "eval"), images, one_hot(labels))
    assert (distance(dummies, Observation(update.gradients), torch.arange(3)) < 1e-20).all()
    saturated = (40 * one_hot(labels)).softmax(-1)
    dummies = dummy_gradients(client.worker(model, "eval"), images, saturated)
    assert (distance(dummies, Observation(update.gradients), torch.arange(3)) < 1e-10).all()


@pytest.mark.parametrize("trials", [1, 3])
def test_its_gradient_agrees_with_finite_differences(trials):
    model, (images, labels) = victim(), batch(trials)
    update = client.share(model, images, labels)
    parts = lambda x, of: (x[:, :64].view(-1, 1, *SHAPE), x[:, 64:].view(-1, 1, CLASSES).softmax(-1))  # noqa: E731
    objective = Matching(model, Observation(update.gradients), parts)
    x = torch.randn(trials, 64 + CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, gradient = objective(x, torch.arange(trials))
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    above, below = (objective(x + sign * 1e-6 * direction, torch.arange(trials))[0] for sign in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(1), (above - below) / 2e-6, rtol=1e-5, atol=1e-9)


def test_the_gradient_of_one_trial_alone_is_that_beside_others():
    model, (images, labels) = victim(), batch(4)
    worker = client.worker(model, "eval")
    together = dummy_gradients(worker, images, one_hot(labels))
    alone = dummy_gradients(worker, images[2:3], one_hot(labels)[2:3])
    for name in together:
        torch.testing.assert_close(together[name][2], alone[name][0])


def test_a_batch_may_come_in_any_order():
    model, (images, labels) = victim(), batch(1, size=4)
    update = client.share(model, images, labels)
    order = torch.tensor([2, 0, 3, 1])
    dummies = dummy_gradients(client.worker(model, "eval"), images[:, order], one_hot(labels[:, order]))
    assert distance(dummies, Observation(update.gradients), torch.arange(1)).item() < 1e-20


def test_masks_boxes_and_laws():
    model, (images, labels) = victim(), batch(2)
    update = client.share(model, images, labels)
    dummies = dummy_gradients(client.worker(model, "eval"), images.flip(0), one_hot(labels))
    trials, target = torch.arange(2), update.gradients
    plain = distance(dummies, Observation(target), trials)
    ones = {name: torch.ones_like(g) for name, g in target.items()}
    torch.testing.assert_close(distance(dummies, Observation(target, weight=ones), trials), plain)
    assert sum(per_parameter(dummies, Observation(target), trials).values()).allclose(plain)
    none = {name: torch.zeros_like(g) for name, g in target.items()}
    assert (distance(dummies, Observation(target, weight=none), trials) == 0).all()
    wide = {name: (dummies[name] - g).abs() for name, g in target.items()}
    assert (distance(dummies, Observation(target, slack=wide), trials) == 0).all()
    absolute = sum((dummies[name] - g).abs().flatten(1).sum(1) for name, g in target.items())
    laplace = distance(dummies, Observation(target, law="laplace", noise_std=1e-9), trials)
    torch.testing.assert_close(laplace, absolute, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("line_search", ["none", "strong_wolfe"])
def test_the_attack_follows_torch_on_a_real_problem(line_search):
    model, (images, labels) = victim(), batch(2)
    update = client.share(model, images, labels, threat=ThreatModel(labels="known"))
    attack = attacks.DLG(iterations=5, labels="known", line_search=line_search, init_mean=0.5, init_std=0.1)
    history = attack(model, update, seed=5, snapshots=range(6)).history.images
    parameters = list(model.parameters())
    for trial in range(2):
        # the engine's own start: one rounded differently, by 3e-8, ends 1e-4 away
        x = history[0, trial].clone().requires_grad_()
        optimizer = torch.optim.LBFGS([x], line_search_fn=None if line_search == "none" else line_search)

        def closure(x=x, trial=trial):
            loss = F.cross_entropy(model(x), labels[trial])
            dummy = torch.autograd.grad(loss, parameters, create_graph=True)
            value = sum((d - g[trial]).square().sum() for d, g in zip(dummy, update.gradients.values(), strict=True))
            (x.grad,) = torch.autograd.grad(value, x)
            return value

        for step in range(1, 6):
            optimizer.step(closure)
            torch.testing.assert_close(history[step, trial], x.detach(), rtol=0, atol=1e-8)


def several(networks=3, each=2, size=1, dtype=torch.float64):
    victims = [victim(dtype, seed=network) for network in range(networks)]
    images, labels = batch(networks * each, size, dtype)
    rows = [slice(k * each, (k + 1) * each) for k in range(networks)]
    updates = [client.share(v, images[r], labels[r]) for v, r in zip(victims, rows, strict=True)]
    together = models.Victims.of(victims, each)
    return victims, updates, together, client.SharedUpdate.join(updates, together)


@pytest.mark.parametrize("rule", ["joint", "cyclic"])
def test_several_victims_are_attacked_as_the_networks_are_one_by_one(rule):
    attack = attacks.DLG(
        iterations=3, max_iter=5, init_mean=0.5, init_std=0.1, batch_update=rule
    )  # before chaos sets in
    victims, updates, together, update = several(size=2)
    start = attack(together, update, seed=4, snapshots=(0, 3)).history
    assert (start.evaluations[1] > start.evaluations[0]).all()
    whole = attack(together, update, seed=4)
    first = attack(victims[0], updates[0], seed=4)  # its trials are the victims' first two: the same dummies
    torch.testing.assert_close(whole.raw[:2], first.raw, rtol=1e-6, atol=1e-6)
    assert torch.equal(whole.evaluations[:2], first.evaluations)
    last = distance(
        dummy_gradients(victims[2], whole.raw[4:], start.soft_labels[1, 4:]),
        Observation(updates[2].gradients),
        torch.arange(2),
    )
    torch.testing.assert_close(last.detach(), whole.objective[4:], rtol=1e-6, atol=1e-9)


def test_victims_and_their_update_belong_together():
    victims, updates, together, update = several()
    with pytest.raises(ValueError, match="the updates hold 4 trials, the victims 6"):
        client.SharedUpdate.join(updates[:2], together)
    with pytest.raises(ValueError, match="the updates differ in threat"):
        other = client.share(victims[2], *batch(2), threat=ThreatModel(labels="known"))
        client.SharedUpdate.join([*updates[:2], other], together)
    with pytest.raises(ValueError, match="other weights"):
        attacks.DLG(iterations=1)(models.Victims.of([victims[0], victims[2], victims[1]], 2), update)
    with pytest.raises(ValueError, match="differ in architecture"):
        models.Victims.of([victim(), models.build("lenet", CLASSES + 1, SHAPE, seed=0).double()], 1)
    with pytest.raises(ValueError, match="victims are networks with trials, got 0 networks"):
        models.Victims.of([], 1)
    trained = models.build("dlg-resnet20", CLASSES, SHAPE, seed=0, norm="batch")
    with torch.no_grad():
        trained.norm.running_mean.add_(1)
    with pytest.raises(ValueError, match="different buffers"):
        models.Victims.of([models.build("dlg-resnet20", CLASSES, SHAPE, seed=0, norm="batch"), trained], 1)


def test_the_plain_loop_and_the_engine_agree():
    _, _, together, update = several()
    ours = attacks.DLG(iterations=1)(together, update, seed=2)
    plain = attacks.PlainDLG(iterations=1)(together, update, seed=2)
    torch.testing.assert_close(plain.raw, ours.raw, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain.objective, ours.objective, rtol=1e-5, atol=1e-9)
    assert torch.equal(plain.labels, ours.labels)
    assert plain.evaluations.tolist() == [20] * 6  # the engine spares the second look at every step's start
    with pytest.raises(ValueError, match="PlainDLG takes one image a trial, got batches of 2"):
        attacks.PlainDLG()(victim(), client.share(victim(), *batch(1, size=2)))


def test_dummies_are_drawn_for_the_seed_and_the_trial():
    model, (images, labels) = victim(torch.float32), batch(2, dtype=torch.float32)
    update = client.share(model, images, labels)
    start = attacks.DLG(iterations=1)(model, update, seed=5, snapshots=(0,)).history.images[0]
    for trial in range(2):
        expected = torch.randn(64, generator=client.generator(5, trial, 0))
        assert torch.equal(start[trial].flatten(), expected)


def test_idlg_is_dlg_with_the_true_label_given_bit_by_bit():
    model, (images, labels) = victim(torch.float32), batch(3, dtype=torch.float32)
    told = client.share(model, images, labels, threat=ThreatModel(labels="known"))
    known = replace(attacks.DLG.first_release(), iterations=4, stop_objective=1e-6)(model, told, seed=1)
    inferred = replace(attacks.IDLG.official(), iterations=4)(model, client.share(model, images, labels), seed=1)
    assert torch.equal(known.raw, inferred.raw)
    assert torch.equal(inferred.labels, labels)


def test_results_do_not_depend_on_the_chunk(monkeypatch):
    model, (images, labels) = victim(), batch(5)
    update = client.share(model, images, labels)
    attack = attacks.DLG(iterations=2, init_mean=0.5, init_std=0.1)
    whole = attack(model, update, seed=3, snapshots=(0, 2))
    monkeypatch.setattr("reprolib.attacks.search.rows_that_fit", lambda start, history_size: 2)
    chunked = attack(model, update, seed=3, snapshots=(0, 2))
    torch.testing.assert_close(whole.raw, chunked.raw, rtol=1e-6, atol=1e-6)
    assert torch.equal(whole.evaluations, chunked.evaluations)
    assert chunked.history.images.shape == (2, 5, 1, *SHAPE)
    again = attack(model, update, seed=3)
    assert torch.equal(again.raw, chunked.raw), "the same seed gives the same numbers"


def test_the_official_stop_rule_looks_at_every_tenth_step_only():
    model, (images, labels) = victim(), batch(1)
    update = client.share(model, images, labels)
    early = attacks.IDLG(iterations=12, stop_objective=1e9)(model, update)
    late = attacks.IDLG(iterations=12, stop_objective=1e9, stop_every=5)(model, update)
    assert early.evaluations.item() <= 21, "looked at after step 0"
    assert late.evaluations.item() == early.evaluations.item()
    slow = attacks.IDLG(iterations=12, max_iter=2, init_mean=0.5, init_std=0.1, stop_objective=None)
    run = slow(model, update, snapshots=range(13)).history
    below = run.objective[8, 0].item() * 1.0001
    assert run.objective[1, 0] > below > run.objective[11, 0], "the case under test: passed between two looks"
    assert not torch.equal(run.images[12], run.images[11]), "and still moving"
    stopped = replace(slow, stop_objective=below)(model, update, snapshots=range(13)).history
    assert torch.equal(stopped.images[:12], run.images[:12]), "it goes on to the look after step 10, counted from 0"
    assert torch.equal(stopped.images[12], run.images[11]), "and ends there"


def test_a_restart_keeps_the_lower_objective_and_adds_up_its_cost():
    model, (images, labels) = victim(), batch(4)
    update = client.share(model, images, labels)
    once = attacks.DLG(iterations=1, iterate="best", restart_above=0.0)
    thrice = replace(once, starts=3)
    single, several = once(model, update, seed=2), thrice(model, update, seed=2)
    assert (several.objective <= single.objective).all()
    assert (several.evaluations > single.evaluations).all()
    assert (several.starts == 3).all()


def test_an_iterate_comes_with_its_own_objective():
    model, (images, labels) = victim(), batch(4)
    update = client.share(model, images, labels, threat=ThreatModel(labels="known"))
    steep = attacks.DLG(iterations=1, max_iter=3, learning_rate=3.0, labels="known")
    last, best = (replace(steep, iterate=which)(model, update) for which in ("last", "best"))
    for found in (last, best):
        dummies = dummy_gradients(client.worker(model, "eval"), found.raw, one_hot(labels))
        expected = distance(dummies, Observation(update.gradients), torch.arange(4))
        torch.testing.assert_close(found.objective, expected.detach())
    assert (best.objective < last.objective).all(), "the case under test: it goes up again"


@pytest.mark.parametrize("rule", ["joint", "cyclic"])
def test_the_best_of_several_starts_is_the_best_of_as_many_attacks(rule, monkeypatch):
    model, (images, labels) = victim(), batch(3, size=2)
    update = client.share(model, images, labels)
    once = attacks.DLG(iterations=2, iterate="best", restart_above=0.0, batch_update=rule, init_mean=0.5, init_std=0.1)
    together = replace(once, starts=3)(model, update, seed=2, snapshots=(0, 2, 4))
    drawn, alone = attacks.dlg._Search._dummies, []
    for start in range(3):
        monkeypatch.setattr(
            attacks.dlg._Search, "_dummies", lambda self, starts, rows, s=start: drawn(self, starts * 0 + s, rows)
        )
        alone.append(once(model, update, seed=2, snapshots=(0, 2, 4)))
    lowest = torch.stack([run.objective for run in alone]).min(0)
    expected = torch.stack([run.raw for run in alone])[lowest.indices, torch.arange(3)]
    torch.testing.assert_close(together.objective, lowest.values, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(together.raw, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(together.evaluations, sum(run.evaluations for run in alone))
    torch.testing.assert_close(together.history.images, alone[0].history.images, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["joint", "cyclic"])
def test_a_batch_is_searched_jointly_or_one_image_at_a_time(rule):
    model, (images, labels) = victim(), batch(2, size=2)
    update = client.share(model, images, labels)
    attack = attacks.DLG(iterations=6, batch_update=rule, init_mean=0.5, init_std=0.1)
    found = attack(model, update, snapshots=(0, 6))
    assert found.raw.shape == images.shape
    assert (found.history.objective[1] < found.history.objective[0]).all()


def test_a_cyclic_step_moves_one_image_only():
    model, (images, labels) = victim(), batch(1, size=3)
    update = client.share(model, images, labels)
    run = attacks.DLG(iterations=1, batch_update="cyclic", init_mean=0.5, init_std=0.1)
    history = run(model, update, snapshots=(0, 1)).history.images[:, 0]
    moved = (history[1] != history[0]).flatten(1).any(1)
    assert moved.tolist() == [True, False, False]


def test_an_attacker_who_knows_the_defense_reads_the_update_through_it():
    model, (images, labels) = victim(), batch(4)
    attack = attacks.DLG(iterations=25, init_mean=0.5, init_std=0.1, iterate="best")
    error = {}
    for known in (False, True):
        update = client.share(
            model, images, labels, defense=defenses.TopK(0.3), threat=ThreatModel(defense_known=known)
        )
        error[known] = (attack(model, update).images - images).square().mean().item()
    assert error[True] < error[False]


def test_against_noise_the_attacker_has_a_prior():
    model, (images, labels) = victim(), batch(2)
    noise = defenses.GaussianNoise(0.05)
    update = client.share(model, images, labels, defense=noise, threat=ThreatModel(defense_known=True))
    smooth = attacks.DLG(iterations=5, total_variation=1e4, init_mean=0.5, init_std=0.1)(model, update)
    rough = attacks.DLG(iterations=5, total_variation=0.0, init_mean=0.5, init_std=0.1)(model, update)
    assert (priors.squared_total_variation(smooth.raw) < priors.squared_total_variation(rough.raw)).all()


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_against_noise_the_objective_is_the_posterior_in_some_unit(law):
    model, (images, labels) = victim(), batch(4)
    noise, density = {
        "gaussian": (defenses.GaussianNoise(0.05), torch.distributions.Normal(0, 0.05)),
        "laplace": (defenses.LaplaceNoise(0.05), torch.distributions.Laplace(0, 0.05 / 2**0.5)),
    }[law]
    threat = ThreatModel(labels="known", defense_known=True)
    update = client.share(model, images, labels, defense=noise, threat=threat)
    start = attacks.DLG(iterations=1, labels="known", total_variation=7.0)(model, update, snapshots=(0,)).history
    x = start.images[0]
    dummies = dummy_gradients(client.worker(model, "eval"), x, one_hot(labels))
    likelihood = sum(density.log_prob(update.gradients[n] - g).flatten(1).sum(1) for n, g in dummies.items()).detach()
    prior = 7.0 * priors.squared_total_variation(x) + attacks.dlg.BOX_WEIGHT * priors.outside_box(x)
    # proportional up to a constant: between any two of the four starts the objective moves in the same proportion
    moved, by_hand = (value[1:] - value[0] for value in (start.objective[0], prior - likelihood))
    torch.testing.assert_close(moved / moved[0], by_hand / by_hand[0], rtol=1e-3, atol=0)
    unit = {"gaussian": 2 * 0.05**2, "laplace": 0.05 / 2**0.5}[law]
    torch.testing.assert_close(moved, unit * by_hand, rtol=1e-3, atol=0)


def test_an_absolute_cost_is_zero_at_the_target_and_round_below_a_hundredth_of_the_noise():
    read = Observation({"w": torch.zeros(1, 1, dtype=torch.float64)}, law="laplace", noise_std=2.0)
    cost = [distance({"w": torch.tensor([[r]], dtype=torch.float64)}, read, torch.arange(1)).item() for r in (0, 0.02)]
    assert cost == pytest.approx([0, 0.02 * (2**0.5 - 1)], abs=1e-15)


def test_priors_are_what_they_say():
    image = torch.tensor([[[[[0.0, 1.0], [0.5, 2.0]]]]])
    assert priors.squared_total_variation(image).item() == pytest.approx(0.25 + 1 + 1 + 2.25)
    assert priors.outside_box(image).item() == pytest.approx(1.0)


def test_a_run_of_thirty_steps_ends_where_it_always_did():
    model, (images, labels) = victim(seed=7), batch(4, seed=7)
    attack = attacks.IDLG(init_mean=0.5, init_std=0.1, iterations=30, stop_objective=None)
    run = attack(model, client.share(model, images, labels), seed=7, snapshots=(0, 30))
    start = torch.tensor([0.12963900116287777, 0.04342814326041122, 0.01180874701883778, 0.09792224435152261])
    torch.testing.assert_close(run.history.objective[0], start.double(), rtol=1e-6, atol=0)
    assert (run.history.objective[1] < 1e-6).all()
    assert run.labels.tolist() == [[0], [1], [3], [0]]
    assert ((run.raw - images).square().flatten(1).mean(1) < 1e-6).all()


@pytest.mark.parametrize("line_search", ["none", "strong_wolfe"])
def test_images_and_labels_come_back_from_near_grey(line_search):
    model, (images, labels) = victim(seed=7), batch(4, seed=7)
    attack = replace(attacks.DLG.stable(), iterations=100, line_search=line_search, stop_objective=None)
    found = attack(model, client.share(model, images, labels), seed=7)
    assert ((found.raw - images).square().flatten(1).mean(1) < 1e-3).all()
    assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_an_attacker_who_knows_of_pruning_does_no_worse(ratio):
    model, (images, labels) = victim(seed=7), batch(4, seed=7)
    attack = attacks.DLG(iterations=20, init_mean=0.5, init_std=0.1, iterate="best")
    errors = []
    for known in (True, False):
        threat = ThreatModel(defense_known=known)
        update = client.share(model, images, labels, threat=threat, defense=defenses.TopK(ratio))
        errors.append((attack(model, update, seed=7).raw - images).square().flatten(1).mean(1))
    assert (errors[0] < 1e-3).all() and (errors[0] <= errors[1]).all()


def test_soft_labels_at_a_corner_give_cross_entropy_and_its_gradients():
    model, (images, labels) = victim(), batch(3)
    for image, label in zip(images, labels, strict=True):
        soft = F.cross_entropy(model(image), one_hot(label))
        two_steps = -(one_hot(label) * model(image).softmax(-1).log()).sum(-1).mean()
        hard = F.cross_entropy(model(image), label)
        torch.testing.assert_close(soft, hard, rtol=0, atol=1e-6)
        torch.testing.assert_close(two_steps, hard, rtol=0, atol=1e-6)
        theirs, ours = (torch.autograd.grad(loss, list(model.parameters())) for loss in (hard, soft))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_one_hot_is_unusable_under_vmap_so_soft_labels_are_passed():
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda label: F.one_hot(label))(torch.tensor([0, 1]))


class Painter(nn.Module):
    """A generator of images from four numbers."""

    latent_dim = 4

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 64)
        nn.init.normal_(self.out.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.out.bias)

    def forward(self, latent):
        return self.out(latent).sigmoid().view(-1, *SHAPE)


@pytest.mark.parametrize("extended", [False, True], ids=["plain", "with a bottleneck"])
@pytest.mark.parametrize(
    "attack",
    [
        attacks.DLG(iterations=1, max_iter=3, init_mean=0.5, init_std=0.1, labels="known"),
        attacks.InvertingGradients(iterations=2),
        attacks.GradInversion(iterations=3, warmup=1, gradient=1.0, labels="known", seeds=2, group=0.0),
        attacks.GGL(Painter(), evaluations=24, population=8, start="zeros", iterate="last"),
        attacks.GGL(Painter(), evaluations=4, optimizer="adam", start="normal"),
        attacks.HCGLA(start="random", iterations=1, max_iter=3),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_random_numbers_belong_to_a_trial(attack, extended):
    """Of equal updates every trial makes something else, and a trial alone what it makes beside others."""
    defense = defenses.PRECODE(k=4, against=defenses.Counter("all", "resample")) if extended else None
    if extended and isinstance(attack, attacks.HCGLA):
        pytest.skip("HCGLA has no source of noise")
    images, labels = (part[[0, 0]] for part in batch(1))
    threat = ThreatModel(labels="known", defense_known=extended)
    update = client.share(victim(), images, labels, threat=threat, defense=defense, seed=[(0, 0), (0, 0)])
    model = client.extended(victim(), defense)
    assert all(torch.equal(g[0], g[1]) for g in update.gradients.values())
    both = attack(model, update, seed=3)
    assert (both.raw[0] - both.raw[1]).abs().max() > 1e-3
    alone = attack(model, update.select([1]), seed=[(3, 1)])
    torch.testing.assert_close(alone.raw[0], both.raw[1], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(alone.objective[0], both.objective[1], rtol=1e-6, atol=1e-8)


def test_of_two_starts_one_that_diverged_never_wins():
    def ended(objective, diverged):
        found = torch.tensor(objective)
        raw, count = found.view(-1, 1, 1, 1, 1), torch.ones(3, dtype=torch.int64)
        each = {"candidates": raw[:, None], "lost": found[:, None] > 1.5, "latents": found.view(-1, 1, 1)}
        return attacks.Reconstruction(raw, count[:, None], found, count, count, torch.tensor(diverged), 0.0, **each)

    first = ended([2.0, 2.0, 0.5], [False, False, True])
    again = ended([1.0, 0.1, 3.0], [False, True, False])
    kept = attacks.reconstruction.keep_better(first, again)
    assert kept.objective.tolist() == kept.raw.flatten().tolist() == [1.0, 2.0, 3.0]
    assert kept.diverged.tolist() == [False, False, False] and kept.evaluations.tolist() == [2, 2, 2]
    assert kept.candidates.flatten().tolist() == kept.latents.flatten().tolist() == [1.0, 2.0, 3.0]
    assert kept.lost.flatten().tolist() == [False, True, True], "all that is told of the start that won"


def test_settings_compare_and_presets_are_the_published_ones():
    assert attacks.DLG.paper() == attacks.DLG() and attacks.DLG.paper().iterations == 1200
    assert attacks.DLG.official().iterations == 300 and attacks.DLG.official().stop_objective is None
    assert attacks.IDLG.official().stop_objective == 1e-6 and attacks.IDLG.official().stop_every == 10
    assert attacks.IDLG.paper().rule == "pairwise"
    assert attacks.IDLG.stable().starts > 1 and attacks.DLG.stable().iterate == "best"


def test_bad_input_is_refused_before_any_work():
    model, (images, labels) = victim(), batch(2, size=2)
    update = client.share(model, images, labels)
    with pytest.raises(ValueError, match="IDLG reads the label of a single image, but the update is of 2: use DLG"):
        attacks.IDLG.official()(model, update)
    with pytest.raises(ValueError, match="labels='known' needs labels in the update"):
        attacks.DLG.first_release()(model, update)
    with pytest.raises(ValueError, match="computed with other weights"):
        attacks.DLG.official()(victim(seed=9), update)
    broken = {name: g.clone() for name, g in update.gradients.items()}
    broken["head.bias"][1, 0] = torch.nan
    with pytest.raises(ValueError, match="'head.bias' has a NaN or infinite entry in trial 1"):
        attacks.DLG.official()(model, replace(update, gradients=broken))
    local = client.share(model, images, labels, local=LocalTraining(2, 1, 0.1))
    with pytest.raises(ValueError, match="matches one gradient, but .* the weight difference of 4 local steps"):
        attacks.DLG.official()(model, local)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "guessed"}, "labels must be one of 'joint', 'known', got 'guessed'"),
        ({"batch_update": "random"}, "batch_update must be one of 'joint', 'cyclic', got 'random'"),
        ({"iterate": "first"}, "iterate must be one of 'last', 'best', got 'first'"),
        ({"iterations": 0}, "iterations must be a whole number >= 1, got 0"),
        ({"line_search": "armijo"}, "line_search must be one of 'none', 'strong_wolfe', got 'armijo'"),
    ],
)
def test_unknown_settings_list_the_known_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        attacks.DLG(**settings)
    if "labels" not in settings:
        with pytest.raises(ValueError, match=message):
            attacks.IDLG(**settings)


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(ValueError, match="rule must be one of 'row_sum', 'bias', 'pairwise', 'norm', got 'sign'"):
        attacks.IDLG(rule="sign")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the result must not depend on it")
def test_a_gpu_finds_the_same():
    model, (images, labels) = victim(), batch(2)
    attack = attacks.DLG(iterations=2, init_mean=0.5, init_std=0.1)
    here = attack(model, client.share(model, images, labels))
    there = attack(model.cuda(), client.share(model, images.cuda(), labels.cuda()))
    torch.testing.assert_close(here.raw, there.raw.cpu(), rtol=1e-5, atol=1e-5)


def test_build_makes_what_it_is_told_and_lists_what_it_knows():
    assert attacks.build("DLG", "stable", iterations=7) == replace(attacks.DLG.stable(), iterations=7)
    assert attacks.build("IDLG", "paper").rule == "pairwise"
    with pytest.raises(ValueError, match="unknown attack 'GGL': known attacks are DLG, IDLG, InvertingGradients"):
        attacks.build("GGL", "official")
    with pytest.raises(ValueError, match="unknown preset 'best' of IDLG: known presets are official, paper, stable"):
        attacks.build("IDLG", "best")
    with pytest.raises(ValueError, match=r"unknown settings \['steps'\] of DLG: known settings are iterations, "):
        attacks.build("DLG", "official", steps=3)


def test_a_restarted_trial_shows_how_its_first_start_ended():
    ended = dlg._Ended.none(torch.zeros(2, 3))
    for start, value in ((0, 1.0), (1, 0.5)):
        x, each = torch.full((2, 3), value), torch.full((2,), value)
        minimum = SimpleNamespace(
            last=x, best=x, objective=each, best_objective=each, evaluations=torch.tensor([9 + start] * 2),
            diverged=torch.zeros(2, dtype=torch.bool),
        )  # fmt: skip
        ended.settle(torch.tensor([True, True]), minimum, torch.tensor([start, start]), "last")
    assert (ended.first_end[0] == 1.0).all() and ended.first_end[2].tolist() == [9, 9]
    assert (ended.x == 0.5).all(), "what is kept is the lower end"
