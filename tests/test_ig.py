"""Inverting Gradients: the cosine, closed forms, training steps unrolled, and the signed optimiser in its box."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from reprolib import attacks, data, models, optimizers
from reprolib.attacks import matching, priors
from reprolib.attacks.labels import infer
from reprolib.attacks.matching import cosine, dummy_gradients
from reprolib.experiments import ig
from reprolib.experiments.measures import ig as measures
from reprolib.federated import client, gradients
from reprolib.federated.client import LocalTraining
from reprolib.federated.observation import Observation
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics

SHAPE, CLASSES = (3, 8, 8), 5
NORMAL = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
KNOWN = ThreatModel(labels="known")


def victim(name="lenet", dtype=torch.float64, seed=0, **options):
    return models.build(name, CLASSES, SHAPE, seed=seed, normalize=NORMAL, **options).to(dtype)


def batch(trials, size=1, dtype=torch.float64, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(trials, size, *SHAPE, generator=random, dtype=dtype)
    return images, torch.randint(CLASSES, (trials, size), generator=random)


def soft(labels):
    return F.one_hot(labels, CLASSES).double()


# --- the distance and the prior


def test_the_cosine_is_one_over_all_parameters_and_blind_to_scale():
    a = {"w": torch.randn(3, 4, 5, dtype=torch.float64), "b": torch.randn(3, 2, dtype=torch.float64)}
    b = {name: torch.randn_like(v) for name, v in a.items()}
    trials = torch.arange(3)
    flat = [torch.cat([v.flatten(1) for v in g.values()], 1) for g in (a, b)]
    expected = 1 - F.cosine_similarity(*flat)
    torch.testing.assert_close(cosine(a, Observation(b), trials), expected)
    for factor, value in ((1, 0.0), (7, 0.0), (-1, 2.0)):
        scaled = {name: factor * v for name, v in a.items()}
        torch.testing.assert_close(cosine(scaled, Observation(a), trials), torch.full((3,), value, dtype=torch.float64))
    unequal = {"large": torch.tensor([[10.0, 0.0]]), "small": torch.tensor([[0.1, 0.0]])}
    turned = {"large": torch.tensor([[10.0, 0.0]]), "small": torch.tensor([[0.0, 0.1]])}
    assert cosine(turned, Observation(unequal), torch.arange(1)).item() == pytest.approx(1e-4, rel=1e-2)


def test_masked_and_pruned_entries_do_not_count_for_the_cosine():
    seen = {"w": torch.tensor([[1.0, 2.0, 0.0]])}
    dummy = {"w": torch.tensor([[1.0, 2.0, 50.0]])}
    pruned = Observation(seen, slack={"w": torch.tensor([[0.0, 0.0, 0.5]])})
    masked = Observation(seen, weight={"w": torch.tensor([[1.0, 1.0, 0.0]])})
    for observation in (pruned, masked):
        assert cosine(dummy, observation, torch.arange(1)).item() == pytest.approx(0, abs=1e-6)
    assert cosine(dummy, Observation(seen), torch.arange(1)).item() > 0.5


def test_rounded_entries_count_for_the_cosine():
    seen = {"w": torch.tensor([[1.0, 2.0, 0.0]])}
    dummy = {"w": torch.tensor([[2.0, 1.0, 0.0]])}
    rounded = Observation(seen, slack={"w": torch.tensor([[0.5, 0.5, 0.0]])})
    assert cosine(dummy, rounded, torch.arange(1)).item() == pytest.approx(1 - 4 / 5)


def test_total_variation_is_a_mean():
    assert priors.total_variation(torch.full((1, 1, 3, 4, 4), 0.3)).item() == 0
    ramp = torch.arange(6.0).mul(0.1).expand(1, 1, 3, 6, 6)
    assert priors.total_variation(ramp).item() == pytest.approx(0.1)
    board = (torch.arange(6)[:, None] + torch.arange(6)).remainder(2).float().expand(1, 1, 1, 6, 6)
    assert priors.total_variation(board).item() == pytest.approx(2)
    assert priors.total_variation(torch.cat([board, board], 1)).item() == pytest.approx(2)


def test_the_prior_is_of_the_victims_units():
    model, (x, y) = victim(), batch(1)
    update = client.share(model, x, y, threat=KNOWN)
    (problem,) = attacks.InvertingGradients(total_variation=2.0, labels="known").searches(model, update)
    slope = 0.05 * torch.arange(8, dtype=torch.float64).expand(1, 1, *SHAPE)
    trial = torch.arange(1)
    expected = 2.0 * 0.05 * sum(1 / std for std in NORMAL[1]) / 3
    assert problem.prior(slope, trial).item() == pytest.approx(expected)
    normalised = model.normalize(slope[0]).view(1, -1)  # as the optimiser's rows have it
    whole, alone = (problem.matching(0, prior=prior)(normalised, trial)[0] for prior in (problem.prior, None))
    assert (whole - alone).item() == pytest.approx(expected)


def test_the_largest_row_is_that_of_the_largest_magnitude():
    weight = torch.tensor([[[2.0, 4.0], [-9.0, 3.0]]])
    bias = torch.tensor([[2.0, -3.0]])
    assert attacks.linear_inputs(weight, bias, "largest").tolist() == [[3.0, -1.0]]
    mixed = (2 * weight[0, 0] - 3 * weight[0, 1]) / (4 + 9)
    torch.testing.assert_close(attacks.linear_inputs(weight, bias)[0], mixed)


# --- closed forms


@pytest.mark.parametrize("rows", ["least_squares", "largest"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_one_sample_leaves_a_linear_layer_exactly(rows, dtype, tolerance):
    model, (images, labels) = victim("mlp", dtype), batch(4, dtype=dtype)
    g = client.share(model, images, labels).gradients
    found = attacks.linear_inputs(g["hidden1.weight"], g["hidden1.bias"], rows)
    expected = model.normalize(images[:, 0]).flatten(1)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_five_local_steps_leave_it_as_exactly():
    model, (images, labels) = victim("mlp"), batch(3)
    update = client.share(model, images, labels, local=LocalTraining(epochs=5, batch_size=1, learning_rate=1e-4))
    found = attacks.linear_inputs(update.gradients["hidden1.weight"], update.gradients["hidden1.bias"])
    torch.testing.assert_close(found, model.normalize(images[:, 0]).flatten(1), rtol=0, atol=1e-8)


def test_a_batch_leaves_a_signed_mixture():
    model, (images, labels) = victim("mlp"), batch(1, size=2)
    g = client.share(model, images, labels).gradients
    alone = [client.share(model, images[:, [k]], labels[:, [k]]).gradients["hidden1.bias"][0] for k in (0, 1)]
    unit = int((alone[0] + alone[1]).abs().argmax())
    shares = torch.stack([a[unit] for a in alone]) / (alone[0] + alone[1])[unit]
    expected = shares @ model.normalize(images[0]).flatten(1)
    found = attacks.linear_inputs(g["hidden1.weight"], g["hidden1.bias"], "largest")
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)
    assert shares.sum().item() == pytest.approx(1)


def test_what_has_no_closed_form_is_refused():
    with pytest.raises(ValueError, match=r"must have the shapes \[T, K, F\] and \[T, K\], got \[2, 3\] and \[2\]"):
        attacks.linear_inputs(torch.ones(2, 3), torch.ones(2))
    with pytest.raises(ValueError, match=r"the bias gradient of the trials \[1\] is zero"):
        attacks.linear_inputs(torch.ones(2, 3, 4), torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="rows='all' is unknown"):
        attacks.linear_inputs(torch.ones(2, 3, 4), torch.ones(2, 3), "all")


@pytest.mark.parametrize("local", [None, LocalTraining(5, 1, 0.1)])
def test_the_whole_image_comes_back_from_a_network_that_starts_linear(local):
    model, (images, labels) = victim("mlp", activation="relu"), batch(4)
    found = attacks.AnalyticRecovery()(model, client.share(model, images, labels, local=local))
    torch.testing.assert_close(found.raw, images, rtol=0, atol=1e-9)
    assert found.labels.tolist() == labels.tolist() and not found.diverged.any()
    single = model.float()
    found = attacks.AnalyticRecovery()(single, client.share(single, images.float(), labels))
    torch.testing.assert_close(found.raw, images.float(), rtol=1e-5, atol=1e-5)


def test_a_batch_comes_back_as_one_picture_and_other_networks_are_refused():
    model, (images, labels) = victim("mlp", activation="relu"), batch(2, size=3)
    found = attacks.AnalyticRecovery()(model, client.share(model, images, labels))
    assert found.raw.shape == images.shape and torch.equal(found.raw[:, 0], found.raw[:, 2])
    assert (found.raw - images).square().mean((2, 3, 4)).sqrt().min() > 0.1
    lenet, (images, labels) = victim(), batch(2)
    update = client.share(lenet, images, labels)
    with pytest.raises(ValueError, match=r"layer='hidden1' is no linear layer with a bias of this model; it has \['he"):
        attacks.AnalyticRecovery()(lenet, update)
    with pytest.raises(
        ValueError, match="layer='head' takes 48 values, an image has 192: what leaks there are feature"
    ):
        attacks.AnalyticRecovery(layer="head")(lenet, update)


# --- local steps


def test_one_local_step_is_the_gradient_and_small_steps_are_nearly_so():
    model, (images, labels) = victim(), batch(2, size=4)
    single = dummy_gradients(model, images, soft(labels))
    one = dummy_gradients(model, images, soft(labels), LocalTraining(1, 4, 0.3))
    tiny = dummy_gradients(model, images, soft(labels), LocalTraining(5, 4, 1e-8))
    for name in single:
        torch.testing.assert_close(one[name], single[name], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tiny[name], single[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("local", [LocalTraining(2, 2, 0.1), LocalTraining(1, 3, 0.1)])
def test_the_attacker_simulates_what_the_client_does(local):
    model, (images, labels) = victim(), batch(2, size=4)
    update = client.share(model, images, labels, local=local)
    simulated = dummy_gradients(model, images, soft(labels), local)
    for name, gradient in update.as_gradients().items():
        torch.testing.assert_close(simulated[name], gradient, rtol=1e-8, atol=1e-10)


def test_steps_computed_twice_give_the_same_gradients(monkeypatch):
    model, (images, labels), local = victim(), batch(2, size=4), LocalTraining(3, 2, 0.1)
    x = images.clone().requires_grad_()

    def derivative():
        found = dummy_gradients(model, x, soft(labels), local)
        return found, torch.autograd.grad(sum(g.square().sum() for g in found.values()), x)[0]

    kept, slope = derivative()
    calls, plain = [], gradients._Recomputed.forward
    monkeypatch.setattr(gradients, "RECOMPUTED_FROM", 6)
    monkeypatch.setattr(gradients._Recomputed, "forward", lambda *args: calls.append(1) or plain(*args))
    again, same_slope = derivative()
    assert len(calls) == 6
    for name in kept:
        torch.testing.assert_close(again[name], kept[name])
    torch.testing.assert_close(same_slope, slope)


def test_its_gradient_agrees_with_finite_differences():
    model, (images, labels) = victim(), batch(1, size=2)
    local = LocalTraining(1, 1, 0.1)
    update = client.share(model, images, labels, local=local)
    objective = matching.Matching(
        model,
        Observation(update.as_gradients()),
        lambda x, of: (x.view(-1, 2, *SHAPE), soft(labels)[of]),
        compare=cosine,
        local=local,
    )
    x = torch.rand(1, images[0].numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, gradient = objective(x, torch.arange(1))
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    above, below = (objective(x + sign * 1e-5 * direction, torch.arange(1))[0] for sign in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(1), (above - below) / 2e-5, rtol=1e-4, atol=1e-9)


# --- the attack

SHORT = attacks.InvertingGradients(iterations=6, milestones="none")


def test_the_first_step_moves_every_pixel_by_the_learning_rate():
    model, (images, labels) = victim(), batch(2)
    update = client.share(model, images, labels, threat=KNOWN)
    run = replace(SHORT, boxed=False)(model, update, seed=1, snapshots=(0, 1)).history.images
    moved = (run[1] - run[0]).abs() / model.normalize.std
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=0, atol=1e-6)


def test_pixels_stay_in_their_box():
    model, (images, labels) = victim(), batch(2)
    update = client.share(model, images, labels, threat=KNOWN)
    raw = replace(SHORT, learning_rate=5.0)(model, update).raw
    assert raw.min() >= -1e-6 and raw.max() <= 1 + 1e-6 and (raw < 1e-6).any() and (raw > 1 - 1e-6).any()


def test_the_learning_rate_falls_where_the_code_lets_it_fall():
    assert replace(SHORT, iterations=4800, milestones="official").schedule() == (1799, 2999, 4203)
    assert replace(SHORT, iterations=24000, milestones="official").schedule() == (8998, 14999, 21015)
    assert replace(SHORT, iterations=4800, milestones="exact").schedule() == (1800, 3000, 4200)


def test_at_the_truth_the_cosine_distance_is_zero():
    model, (images, labels) = victim(), batch(1)
    update = client.share(model, images, labels, threat=KNOWN)
    dummies = dummy_gradients(model, images, soft(labels))
    assert cosine(dummies, Observation(update.gradients), torch.arange(1)).item() < 1e-12


def test_a_signed_step_leaves_a_perfect_start():
    model, (images, labels) = victim(), batch(4)
    update, mean, std = client.share(model, images, labels), model.normalize.mean, model.normalize.std
    hidden = soft(labels)

    def parts(x, index):
        return x.view(-1, 1, *SHAPE) * std + mean, hidden[index]

    objective = matching.Matching(model, Observation(update.gradients), parts, compare=cosine)
    truth = ((images - mean) / std).flatten(1)
    value, gradient = objective(truth, torch.arange(4))
    assert value.max() < 1e-12 and gradient.abs().max() < 1e-6
    *_, end = optimizers.signed_adam(objective, truth, 1, 0.1)
    after = parts(end.last, torch.arange(4))[0]
    # rounding noise has a sign too: every pixel moves by 0.1 deviations, -20 log10(0.1 std) decibels
    expected = -10 * torch.log10((0.1 * std).square().mean())
    assert metrics.psnr(after, images).mean().item() == pytest.approx(expected.item(), abs=0.5)


def test_order_in_a_batch_hides_from_a_gradient_and_not_from_local_batches():
    model, (images, labels) = victim(), batch(1, size=4)
    order = torch.tensor([2, 0, 3, 1])
    ours = client.share(model, images, labels).gradients
    theirs = client.share(model, images[:, order], labels[:, order]).gradients
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-12)
    local = LocalTraining(1, 2, 0.1)
    ours = client.share(model, images, labels, local=local).gradients
    theirs = client.share(model, images[:, order], labels[:, order], local=local).gradients
    assert max((theirs[name] - ours[name]).abs().max() for name in ours) > 1e-6


@pytest.mark.parametrize(("name", "options"), [("lenet", {}), ("convnet", {"width": 4})])
def test_the_label_of_one_image_is_read_exactly(name, options):
    images = data.choose("cifar10", count=100)
    x, y = images.batches(1, 100)
    model = models.build(name, images.num_classes, images.image_shape, seed=0, **options)
    head = client.share(model, x, y).gradients
    for rule in ("row_sum", "bias"):
        assert torch.equal(infer(head["head.weight"], head["head.bias"], rule), y[:, 0])


def test_trials_do_not_depend_on_their_neighbours_and_scale_changes_nothing():
    model, (images, labels) = victim(), batch(3)
    update = client.share(model, images, labels, threat=KNOWN)
    whole = SHORT(model, update, seed=2)
    alone = SHORT(model, update.select(0), seed=2)
    torch.testing.assert_close(whole.raw[:1], alone.raw, rtol=0, atol=1e-8)
    louder = replace(update, gradients={name: 4 * g for name, g in update.gradients.items()})
    torch.testing.assert_close(SHORT(model, louder, seed=2).raw, whole.raw, rtol=0, atol=1e-8)
    assert torch.equal(SHORT(model, update, seed=2).raw, whole.raw)


def test_the_distance_falls_and_labels_are_read():
    model, (images, labels) = victim(), batch(2)
    update = client.share(model, images, labels)
    run = replace(SHORT, iterations=150, labels="inferred", milestones="official")(model, update, snapshots=(0, 150))
    assert torch.equal(run.labels, labels)
    assert (run.history.objective[1] < 0.5 * run.history.objective[0]).all()
    several = client.share(model, *batch(2, size=3))
    assert replace(SHORT, labels="inferred")(model, several).labels.shape == (2, 3)


def test_the_baseline_is_lbfgs_in_normalised_space():
    model, (images, labels) = victim(), batch(3)
    update = client.share(model, images, labels, threat=KNOWN)
    attack = replace(attacks.InvertingGradients.baseline(), iterations=3)
    found = attack(model, update, snapshots=[0])
    x = ((found.history.images[0, 1] - model.normalize.mean) / model.normalize.std).clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x])

    def closure():
        optimizer.zero_grad()
        pixels = x * model.normalize.std + model.normalize.mean
        dummy = torch.autograd.grad(F.cross_entropy(model(pixels), labels[1]), model.parameters(), create_graph=True)
        value = sum((d - g[1]).square().sum() for d, g in zip(dummy, update.gradients.values(), strict=True))
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)
    expected = x.detach() * model.normalize.std + model.normalize.mean
    torch.testing.assert_close(found.raw[1], expected, rtol=1e-5, atol=1e-6)


def test_local_steps_and_restarts_run_and_keep_the_lower_distance():
    model, (images, labels) = victim(), batch(2, size=2)
    local = LocalTraining(2, 1, 1e-3)
    update = client.share(model, images, labels, threat=KNOWN, local=local)
    once, twice = SHORT(model, update), replace(SHORT, starts=2)(model, update)
    assert (twice.objective <= once.objective + 1e-12).all()
    assert (twice.evaluations == 2 * once.evaluations).all()


def test_eval_and_train_mode_are_different_victims():
    model = models.build("convnet", CLASSES, (3, 9, 9), seed=0, normalize=NORMAL, width=2).double()
    random = torch.Generator().manual_seed(0)
    images, labels = torch.rand(1, 4, 3, 9, 9, generator=random, dtype=torch.float64), torch.tensor([[0, 1, 2, 3]])
    eval_mode, train_mode = (client.share(model, images, labels, threat=ThreatModel(mode=m)) for m in ("eval", "train"))
    a, b = (torch.cat([g.flatten() for g in u.gradients.values()]) for u in (eval_mode, train_mode))
    assert (a - b).norm() / a.norm() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "l1"}, "objective must be one of 'cosine', 'euclidean', got 'l1'"),
        ({"iterations": 0}, "iterations must be a whole number >= 1, got 0"),
        ({"total_variation": -1.0}, "total_variation must be a finite number >= 0, got -1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        attacks.InvertingGradients(**settings)


def test_updates_that_cannot_be_attacked_are_refused():
    model, (images, labels) = victim(), batch(2)
    with pytest.raises(ValueError, match="labels='known' needs labels in the update"):
        SHORT(model, client.share(model, images, labels))
    update = client.share(model, images, labels, threat=KNOWN)
    silent = {name: torch.stack([g[0], torch.zeros_like(g[1])]) for name, g in update.gradients.items()}
    with pytest.raises(ValueError, match="the gradient of trial 1 is zero: it has no direction"):
        SHORT(model, replace(update, gradients=silent))


def test_convnet_is_the_network_that_the_released_code_builds():
    model = models.build("convnet", 10, (3, 32, 32), seed=0)
    assert sum(p.numel() for p in model.parameters()) == 2_904_970
    assert models.build("convnet", 10, (3, 32, 32), seed=0, width=16).head.in_features == 36 * 16
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="need at least 9 x 9 pixels"):
        models.build("convnet", 10, (3, 8, 8), seed=0)
    with pytest.raises(ValueError, match="width=0: expected an integer of at least 1"):
        models.build("convnet", 10, (3, 32, 32), seed=0, width=0)


# --- experiments


def test_a_longer_gradient_has_the_same_first_distance_and_grey_is_what_it_scores():
    digits = data.load("digits", "test", 200)
    rows = ig.first_distances(digits, [0, 1, 2], 2, 0, 10.0)
    assert rows.network.tolist() == [0, 0, 1] and (rows.distance - rows.rescaled).abs().max() < 1e-6
    cards = ig.grey_cards(digits, [1, 2], 0, batch=2, distinct_labels=True)
    x, _ = digits.batches(2, 3, seed=0, distinct_labels=True)
    truth = x[1:].flatten(0, 1)
    assert cards.psnr.to_numpy() == pytest.approx(metrics.psnr(torch.full_like(truth, 0.5), truth).numpy(), rel=1e-6)
    assert cards.trial.tolist() == [1, 1, 2, 2] and cards.image.tolist() == [0, 1, 0, 1]


def test_rows_that_agree_are_the_images_of_a_pair():
    digits = data.load("digits", "test", 200)
    rows = ig.read_rows(digits, (1, 2, 4), 4, 2, 0, 1e-3, width=256, activation="relu")
    assert rows.groupby("batch").size().to_dict() == {1: 4, 2: 4, 4: 4}
    assert (rows.nearest <= rows.kept + 1e-12).all()
    few = rows[rows.batch < 3]
    assert (few.kept < 1e-3).all() and (few.false == 0).all() and (few.pictures == few.batch).all()
    assert not ig._agreeing(torch.eye(3, dtype=torch.float64), 3, 1e-3).numel()


def test_small_local_steps_leave_the_first_gradient_and_large_ones_fit_the_image():
    digits = data.load("digits", "test", 200)
    told = ig.local_motion(digits, [0, 1, 2], 2, 0, [(1, 1e-1), (5, 1e-4), (5, 1e-2)])
    assert told.groupby(["steps", "rate"]).size().eq(3).all() and told.network.tolist() == [0, 0] * 3 + [1] * 3
    one, small, large = (told[(told.steps == n) & (told.rate == rate)] for n, rate in ((1, 1e-1), (5, 1e-4), (5, 1e-2)))
    assert one.cosine.to_numpy() == pytest.approx(1) and (one["first"] == one["last"]).all()
    assert (small.cosine > 0.999).all() and (small.moved.to_numpy() < large.moved.to_numpy()).all()
    assert (large["last"].to_numpy() > large.before.to_numpy()).all() and told["last"].between(0, 1).all()


def test_pictures_that_no_attack_made_are_scored_as_an_attacks():
    digits = data.load("digits", "test", 200)
    rows = ig.guesses(digits, data.load("digits", "train", 50), 8, 0)
    known = rows.groupby("picture").agg(psnr=("psnr", "mean"), identified=("identified", "mean"))
    assert known.identified["constant grey"] == 0
    assert known.psnr["truth: means of 4 x 4 pixels"] > known.psnr["truth: its mean colour"]
    cards = ig.grey_cards(digits, list(range(8)), 0)
    assert known.psnr["constant grey"] == pytest.approx(cards.psnr.mean(), abs=1e-6)


def test_a_repeated_label_is_compared_within_its_batch_over_grey():
    natural = pd.DataFrame({"network": [0, 0, 0, 1, 1, 1, 2, 2], "trial": [0, 0, 0, 1, 1, 1, 2, 2]})
    natural["label"], natural["psnr"] = [1, 1, 2, 3, 4, 4, 5, 6], [13.0, 14, 17, 20, 16, 18, 30, 30]
    alone = pd.DataFrame({"network": [0, 1], "psnr": [20.0, 21], "identified": [True, True]})
    distinct = alone.assign(identified=False)
    own = [12.0, 12, 12, 14, 14, 14, 9, 9]
    found = measures.batches(distinct, natural, alone, [12.0, 12.0], own)
    assert found["batch_repeated"].value == pytest.approx((4 + 3 + 4 + 2) / 4) and found["batch_repeated"].n == 4
    few = measures.batches(distinct, natural[:3], alone, [12.0, 12.0], own[:3])["batch_repeated"]
    assert few.reason == "few"
