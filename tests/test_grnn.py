"""GRNN: a generator of one's own for each update, trained until what it makes has the gradient that was shared."""

from __future__ import annotations

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from reprolib import attacks, data, models
from reprolib.attacks import matching, priors
from reprolib.attacks.grnn import TOGETHER
from reprolib.defenses import GaussianNoise, KeptEntries, NormOfUpdate
from reprolib.experiments import grnn as experiments
from reprolib.experiments.measures import grnn as measures
from reprolib.experiments.networks import network_seed
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, SharedUpdate
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics
from reprolib.models import Victims
from reprolib.models.cnn import CNN
from reprolib.models.grnn import RegressionGenerator
from reprolib.models.lenet5 import LeNet5
from reprolib.models.task import Task
from reprolib.models.victim import Normalize
from reprolib.optimizers import rmsprop

CLASSES, SHAPE = 5, (3, 16, 16)
KNOWN = ThreatModel(labels="known")
SMALL = attacks.GRNN(iterations=3, noise_dim=6, width=2)
HALVES = ([0.5] * 3, [0.5] * 3)


def lenet(seed=0, first=None):
    made = models.drawn(lambda: LeNet5(CLASSES, SHAPE, torch.nn.Identity() if first is None else first), seed)
    return made.eval().double()


@pytest.fixture(scope="module")
def victim():
    return lenet()


def batch(size=1, trials=3):
    random = torch.Generator().manual_seed(4)
    x = torch.rand(trials, size, *SHAPE, generator=random, dtype=torch.float64)
    return x, torch.randint(CLASSES, (trials, size), generator=random)


def search_of(attack, victim, update, seed=0):
    (search,) = attack.searches(victim, update, seed)
    return search


def module_of(search, row):
    """The generator of one row as a module, and its noise."""
    made = RegressionGenerator(CLASSES, SHAPE, noise_dim=6, width=2).double()
    *parts, noise = row.split(search.sizes)
    for parameter, part in zip(made.parameters(), parts, strict=True):
        parameter.data.copy_(part.view_as(parameter))
    return made, noise.view(search.noise_shape)


# --- the generator


def test_the_generator_has_the_released_layers():
    made = RegressionGenerator(10, (3, 32, 32))
    assert sum(p.numel() for p in made.parameters()) == 712_278
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    assert shapes["first.weight"] == (128, 256, 4, 4) and shapes["label.weight"] == (10, 128)
    assert [shapes[f"convs.{i}.weight"] for i in range(3)] == [(128, 128, 3, 3), (64, 64, 3, 3), (6, 32, 3, 3)]
    assert not any(name.startswith("convs") and name.endswith("bias") for name in shapes)
    assert not list(made.buffers()), "batch norm keeps no statistics: it is trained on one batch and then forgotten"


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_images_lie_in_the_unit_box_and_labels_sum_to_one(side):
    made = RegressionGenerator(7, (1, side, side), noise_dim=5, width=3)
    images, soft = made(torch.randn(4, 5))
    assert images.shape == (4, 1, side, side) and soft.shape == (4, 7)
    assert images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(soft.sum(1), torch.ones(4))


def test_a_doubling_repeats_every_pixel():
    made = RegressionGenerator(7, (1, 8, 8), noise_dim=5, width=3)
    with torch.no_grad():  # a convolution that looks at no neighbour
        made.convs[0].weight.mul_(F.pad(torch.ones(1, 1), (1, 1, 1, 1)))
        images, _ = made(torch.randn(4, 5))
    assert images.flatten(1).std(1).min() > 0
    torch.testing.assert_close(images, images[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 16), (3, 4, 4)])
def test_images_that_it_cannot_make_are_refused(shape):
    with pytest.raises(ValueError, match="this generator doubles a side of 4, so that images must be square"):
        RegressionGenerator(10, shape)
    with pytest.raises(ValueError, match="noise_dim=0, width=32: expected integers of at least 1"):
        RegressionGenerator(10, (1, 8, 8), noise_dim=0)


def test_the_attack_refuses_them_before_any_work():
    model = models.build("mlp", CLASSES, (1, 28, 28), seed=0, width=4)
    update = client.share(model, torch.rand(1, 1, 1, 28, 28), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"image_shape=\(1, 28, 28\): this generator doubles a side of 4"):
        attacks.GRNN()(model, update)


def test_it_starts_as_torch_draws_its_layers(victim):
    x, y = batch()
    attack = attacks.GRNN(noise_dim=16, width=8)
    search = search_of(attack, victim, client.share(victim, x, y))
    row = search.first(0)[0]
    parts = dict(zip(search.shapes, row.split(search.sizes)[:-1], strict=True))
    torch.manual_seed(0)
    for name, drawn in RegressionGenerator(CLASSES, SHAPE, noise_dim=16, width=8).named_parameters():
        own = parts[name]
        if name.startswith("norms"):
            assert torch.equal(own, drawn.detach().flatten().double())
        elif own.numel() > 500:
            assert own.abs().max() == pytest.approx(drawn.abs().max().item(), rel=0.05)
            assert own.std() == pytest.approx(drawn.std().item(), rel=0.05)
        else:
            assert own.abs().max() <= 1.01 * drawn.abs().max() / 0.5


# --- the objective


def released_wasserstein(first, second):
    """`wasserstein_distance` of the released code, of two vectors."""
    distance = (first - second).abs()
    distance = distance.pow(2).sum().pow(0.5)
    return distance.pow(2).mean().pow(0.5)


def test_the_wasserstein_term_is_the_norm(victim):
    x, y = batch()
    update = client.share(victim, x, y)
    search = search_of(SMALL, victim, update)
    other = client.share(victim, x.flip(0), y.flip(0)).gradients
    cost = search.compare(other, search.observation, search.everyone)
    for t in range(3):
        pair = [torch.cat([g[t].flatten() for g in part.values()]) for part in (other, update.gradients)]
        square = (pair[0] - pair[1]).square().sum()
        torch.testing.assert_close(released_wasserstein(*pair), square.sqrt())
        torch.testing.assert_close(cost[t], square + released_wasserstein(*pair))
    assert search.compare(update.gradients, search.observation, search.everyone).max() < 1e-150, "and a slope of zero"


@pytest.mark.parametrize("size", [1, 4])
def test_total_variation_is_the_released_one(size):
    x = torch.rand(2, size, 3, 16, 8, dtype=torch.float64)
    for own, found in zip(x, priors.mean_squared_variation(x), strict=True):
        down = (own[:, :, 1:] - own[:, :, :-1]).square().sum() / (3 * 15 * 8)
        right = (own[..., 1:] - own[..., :-1]).square().sum() / (3 * 16 * 7)
        torch.testing.assert_close(found, 2 * (down + right) / size)


def test_at_the_truth_only_the_total_variation_is_left(victim):
    x, y = batch(2)
    attack = replace(SMALL, labels="known")
    rows = search_of(attack, victim, client.share(victim, x, y, threat=KNOWN)).first(0)
    made = search_of(attack, victim, client.share(victim, x, y, threat=KNOWN)).images(rows)
    search = search_of(attack, victim, client.share(victim, made, y, threat=KNOWN))
    value, slope = search.matching(0, prior=search.prior)(rows, search.everyone)
    torch.testing.assert_close(value, 1e-3 * priors.mean_squared_variation(made), rtol=1e-9, atol=1e-12)
    assert slope.isfinite().all(), "the root has no infinite slope there"
    assert (search.value(rows, 0) < 1e-12).all()


# --- the search


def plain(victim, shared, made, noise, steps, weight=1e-3):
    """The released loop in plain torch on one update, from these weights and this noise."""
    optimizer = torch.optim.RMSprop(made.parameters(), lr=1e-4, momentum=0.99)
    weights = list(victim.parameters())
    for _ in range(steps):
        images, soft = made(noise)
        loss = -(soft * victim(images).log_softmax(1)).sum(1).mean()
        dummy = torch.autograd.grad(loss, weights, create_graph=True)
        square = sum((d - g).square().sum() for d, g in zip(dummy, shared, strict=True))
        cost = square + square.sqrt() + weight * priors.mean_squared_variation(images[None])[0]
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    return [part.detach() for part in made(noise)]


@pytest.mark.parametrize("size", [1, 2])
def test_the_search_is_the_released_loop(victim, size):
    x, y = batch(size)
    update = client.share(victim, x, y)
    attack = replace(SMALL, iterations=6)
    found = attack(victim, update, seed=2)
    search = search_of(attack, victim, update, 2)
    for t, row in enumerate(search.first(0)):
        images, soft = plain(
            copy.deepcopy(victim), [g[t] for g in update.gradients.values()], *module_of(search, row), 6
        )
        torch.testing.assert_close(found.raw[t], images, rtol=1e-6, atol=1e-8)
        assert torch.equal(found.labels[t], soft.argmax(1))
    assert (found.evaluations == 7).all() and not found.diverged.any()


def test_only_the_generator_moves(victim):
    x, y = batch()
    before, update = models.fingerprint(victim), client.share(victim, x, y)
    shared = {name: g.clone() for name, g in update.gradients.items()}
    search = search_of(SMALL, victim, update)
    start = search.first(0)
    *_, end = search.steps(start, 0)
    noise = search.sizes[-1]
    assert torch.equal(end.last[:, -noise:], start[:, -noise:]), "the noise stands still"
    assert (end.last[:, :-noise] != start[:, :-noise]).any(1).all()
    assert models.fingerprint(victim) == before
    assert all(torch.equal(update.gradients[name], g) for name, g in shared.items())


def test_a_trial_knows_nothing_of_its_company(victim):
    x, y = batch(1, TOGETHER + 2)
    update = client.share(victim, x, y)
    found = SMALL(victim, update, seed=5)
    alone = SMALL(victim, update.select(slice(TOGETHER, TOGETHER + 1)), seed=[(5, TOGETHER)])
    torch.testing.assert_close(alone.raw[0], found.raw[TOGETHER])
    assert not torch.equal(SMALL(victim, update, seed=6).raw, found.raw)


def test_starts_are_other_generators_and_the_lowest_wins(victim):
    x, y = batch()
    update = client.share(victim, x, y)
    several = replace(SMALL, starts=3)(victim, update)
    assert (several.evaluations == 12).all() and (several.starts == 3).all()
    assert (several.objective <= SMALL(victim, update).objective).all()
    assert (several.labels >= 0).all()


def test_it_finds_small_images():
    model = lenet(1).float()
    x, y = batch(1, 2)
    x = F.interpolate(F.avg_pool2d(x[:, 0], 4), scale_factor=4, mode="bilinear")[:, None].float()
    update = client.share(model, x, y)
    attack = attacks.GRNN(iterations=150, noise_dim=32, width=8, learning_rate=1e-3)
    found, start = attack(model, update), replace(attack, iterations=1)(model, update)
    assert (found.objective < 0.1 * start.objective).all() and torch.equal(found.labels, y)
    assert ((found.raw - x).square().mean() < 0.5 * (start.raw - x).square().mean()).all()


def test_the_sigmoid_reaches_half_of_what_a_normalised_network_takes():
    model = lenet(0, Normalize(*HALVES))
    x, y = batch()
    update = client.share(model, x, y)
    pixels, values = (replace(SMALL, units=units)(model, update) for units in ("pixels", "normalised"))
    assert pixels.raw.min() < 0.5 <= values.raw.min() and values.raw.max() <= 1
    search = search_of(replace(SMALL, units="normalised"), model, update)
    made = search.images(search.first(0))
    torch.testing.assert_close(search.prior(made, search.everyone), 1e-3 * priors.mean_squared_variation(2 * made - 1))


@pytest.mark.parametrize("defense", [NormOfUpdate(0.5), KeptEntries(0.5)])
def test_who_knows_the_defense_compares_what_it_left(victim, defense):
    x, y = batch()
    attack, cost = replace(SMALL, labels="known"), {}
    rows = search_of(attack, victim, client.share(victim, x, y, threat=KNOWN)).first(0)
    made = search_of(attack, victim, client.share(victim, x, y, threat=KNOWN)).images(rows)
    for known in (False, True):
        told = ThreatModel(labels="known", defense_known=known)
        search = search_of(attack, victim, client.share(victim, made, y, threat=told, defense=defense))
        cost[known] = search.value(rows, 0)
    assert (cost[True] < 1e-6).all() and (cost[False] > 1e-2).all()


# --- bad input


def test_settings_are_refused():
    for field, value, message in (
        ("iterations", 0, "iterations must be a whole number >= 1, got 0"),
        ("learning_rate", 0.0, "learning_rate must be"),
        ("momentum", 1.5, r"momentum must lie in \[0, 1\), got 1.5"),
        ("total_variation", -1.0, "total_variation must be"),
        ("width", 0, "width must be a whole number >= 1, got 0"),
        ("labels", "joint", "labels must be one of 'generated', 'known', got 'joint'"),
        ("units", "dB", "units must be one of 'pixels', 'normalised', got 'dB'"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.GRNN(**{field: value})
    assert attacks.GRNN.official() == attacks.GRNN() and attacks.GRNN.residual().total_variation == 1e-6


def test_updates_are_refused(victim):
    x, y = batch()
    local = client.share(victim, x, y, local=LocalTraining(2, 1, 0.1))
    with pytest.raises(
        ValueError, match="GRNN matches one gradient, but this update is the weight difference of 2 loc"
    ):
        SMALL(victim, local)
    one = client.share(victim, x, y, local=LocalTraining(1, 1, 0.1))
    torch.testing.assert_close(SMALL(victim, one).raw, SMALL(victim, client.share(victim, x, y)).raw)
    with pytest.raises(ValueError, match="adam"):
        SMALL(victim, client.share(victim, x, y, local=LocalTraining(1, 1, 0.1, optimizer="adam")))
    with pytest.raises(ValueError, match="labels='known'"):
        replace(SMALL, labels="known")(victim, client.share(victim, x, y))
    hurt = client.share(victim, x, y)
    hurt.gradients["head.bias"][1, 0] = float("nan")
    with pytest.raises(ValueError, match="trial 1"):
        SMALL(victim, hurt)
    with pytest.raises(ValueError, match="model"):
        SMALL(lenet(9), client.share(victim, x, y))


def test_a_loss_without_classes_has_no_softmax_for_its_labels():
    model = lenet()
    model.task = Task("bce")
    x, _ = batch()
    y = torch.randint(2, (3, 1, CLASSES)).double()
    with pytest.raises(ValueError, match="making up the labels too needs the gradient of a cross-entropy over classes"):
        SMALL(model, client.share(model, x, y))


# --- RMSprop


def test_rmsprop_is_torchs_row_by_row_and_a_row_that_is_lost_stays():
    start = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def objective(x, trials):
        value = (x.square() * torch.arange(1, 10)).sum(1)
        slope = 2 * x * torch.arange(1, 10)
        lost = (trials == 1) & (value < 0.9 * (start[1].square() * torch.arange(1, 10)).sum())
        return value.masked_fill(lost, float("nan")), slope

    *_, end = rmsprop(objective, start, 40, 1e-2, momentum=0.9)
    for t in (0, 2):
        x = start[t].clone().requires_grad_()
        optimizer = torch.optim.RMSprop([x], lr=1e-2, momentum=0.9)
        for _ in range(40):
            optimizer.zero_grad()
            objective(x[None], torch.tensor([t]))[0].sum().backward()
            optimizer.step()
        torch.testing.assert_close(end.last[t], x.detach())
    assert end.diverged.tolist() == [False, True, False] and end.last.isfinite().all()
    assert end.evaluations[0] == 41 and end.evaluations[1] < 41


# --- its victims


def test_victims_have_the_released_counts():
    count = {
        "lenet": sum(p.numel() for p in LeNet5(100, (3, 32, 32), torch.nn.Identity()).parameters()),
        "cnn": sum(p.numel() for p in CNN(10, (3, 32, 32), torch.nn.Identity()).parameters()),
    }
    assert count == {"lenet": 456 + 2416 + 48120 + 10164 + 8500, "cnn": 8_413_642}
    drawn = torch.cat([p.detach().flatten() for p in LeNet5(10, (3, 32, 32), torch.nn.Identity()).parameters()])
    assert drawn.abs().max() <= 0.5 and abs(drawn.std().item() - 12**-0.5) < 5e-3
    for make, message in (
        (
            lambda: LeNet5(10, (3, 32, 32), torch.nn.Identity(), init="zeros"),
            "init='zeros': expected uniform or default",
        ),
        (lambda: LeNet5(10, (3, 15, 15), torch.nn.Identity()), "need at least 16 x 16 pixels"),
        (lambda: CNN(10, (3, 32, 32), torch.nn.Identity(), width=0), "width=0: expected an integer of at least 1"),
        (lambda: CNN(10, (3, 1, 8), torch.nn.Identity()), "a pooling by two needs at least 2 x 2 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("make", [LeNet5, lambda *told: CNN(*told, width=2)])
def test_pooling_is_differentiated_twice_alike_in_batches_and_alone(make):
    model = models.drawn(lambda: make(CLASSES, SHAPE, torch.nn.Identity()), 3).eval().double()
    x, y = batch(2)
    soft, slopes = F.one_hot(y, CLASSES).double(), []
    for parts in ([slice(0, 3)], [slice(t, t + 1) for t in range(3)]):
        found = []
        for part in parts:
            own = x[part].clone().requires_grad_()
            gradients = matching.dummy_gradients(model, own, soft[part])
            cost = sum(g.pow(3).sum() for g in gradients.values())
            found.append(torch.autograd.grad(cost, own)[0])
        slopes.append(torch.cat(found))
    torch.testing.assert_close(*slopes)


# --- the experiments


def pictures(count=12, split="test", seed=0):
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    names = tuple("abc")
    return data.ImageSet("tiny", split, pixels, torch.arange(count) % 3, names, "drawn for this test", "tiny")


def test_trials_of_an_experiment_do_not_depend_on_their_company():
    told = {"images": pictures(), "seed": 1, "device": torch.device("cpu"), "batch": 2}
    three = experiments.attack_drawn(SMALL, trials=[0, 1, 2], marks=(0, 3), **told)
    one = experiments.attack_drawn(SMALL, trials=[1], marks=(0, 3), **told)
    mine = three["scores"][three["scores"].trial == 1].reset_index(drop=True)
    assert one["scores"].psnr.tolist() == pytest.approx(mine.psnr.tolist(), abs=1e-3)
    path = three["path"]
    assert len(path) == 2 * 3 * 2 and set(path.iteration) == {0, 3} and path[path.iteration == 0].spent.max() == 0
    last = path[path.iteration == 3].sort_values(["trial", "image"]).psnr.to_numpy()
    assert last.tolist() == pytest.approx(three["scores"].psnr.tolist(), abs=1e-6)
    assert three["scores"].network.tolist() == [0, 0, 1, 1, 2, 2]


def test_null_controls_see_nothing_of_the_image():
    told = {"images": pictures(), "trials": [0, 1], "seed": 1, "device": torch.device("cpu")}
    public = pictures(30, "train", 1)
    own = experiments.attack_drawn(SMALL, **told)
    noise = experiments.attack_drawn(SMALL, seen="Gaussian of equal length", **told)
    other = experiments.attack_drawn(SMALL, seen="gradient of another image", public=public, **told)
    assert torch.equal(own["truth"], noise["truth"]) and torch.equal(own["truth"], other["truth"])
    assert not torch.equal(own["shown"], noise["shown"]) and not torch.equal(own["shown"], other["shown"])
    answers = experiments.without_gradient(told["images"], public, 2, 1)
    assert set(answers["scores"].control) == {
        "image of the class",
        "mean image of the class",
        "mean image",
        "grey card",
    }
    with pytest.raises(ValueError, match="public=None, but seen='gradient of another image' with train_steps=0"):
        experiments.attack_drawn(SMALL, seen="gradient of another image", **told)
    with pytest.raises(ValueError, match="private images of 'tiny' are also among the public ones"):
        experiments.attack_drawn(SMALL, public=pictures(), train_steps=1, **told)


def test_a_null_control_is_never_below_the_best_answer_without_a_gradient():
    psnr = {"gradient": [20.0, 21.0], "noise": [5.0, 18.0], "other": [4.0, 3.0], "grey card": [12.0, 14.0]}
    by = {name: pd.DataFrame({"psnr": values, "identified": False}) for name, values in psnr.items()}
    found = measures.controls(by, ("noise", "other"))
    assert found["over_best_null"].value == pytest.approx((8 + 7) / 2)
    assert found["over_gaussian"].value == pytest.approx((8 + 3) / 2) and found["over_other"].value == pytest.approx(
        7.5
    )
    assert found["grey_over_gaussian"].value == pytest.approx((7 - 4) / 2)


def test_dlg_spends_what_an_early_end_leaves_and_keeps_the_lowest():
    told = {"images": pictures(), "trials": [0, 1], "seed": 1, "device": torch.device("cpu"), "marks": (0, 2)}
    dlg = attacks.DLG(iterations=2)
    once = experiments.attack_drawn(dlg, **told)["scores"]
    same = experiments.attack_drawn(experiments.Spending(dlg, 40), **told)["scores"]
    more = experiments.attack_drawn(experiments.Spending(dlg, 81), **told)["scores"]
    assert (once.evaluations == 41).all() and same.psnr.tolist() == pytest.approx(once.psnr.tolist(), abs=0.1)
    assert (more.evaluations == 82).all() and (more.objective <= once.objective * (1 + 1e-6)).all()
    solved = experiments.Spending(replace(dlg, restart_above=1e9), 81)
    assert (experiments.attack_drawn(solved, **told)["scores"].evaluations == 41).all()


def test_only_searches_that_ended_early_and_high_run_again():
    scores = pd.DataFrame({"trial": [0, 1, 2, 2], "evaluations": [1001, 30, 600, 600], "objective": [1, 1, 1e-6, 1e-6]})
    assert measures.unspent(scores, 1000, 1e-4) == [1]
    again = pd.DataFrame({"trial": [1], "evaluations": [990], "objective": [0.5]})
    assert measures.renewed(scores, again).evaluations.tolist() == [1001, 990, 600, 600]


def test_answers_without_an_attack():
    images, public = pictures(), pictures(30, "train", 1)
    near = experiments.nearest_public(images, public, 3, 0)
    truth = images.batches(1, 3, seed=0)[0][:, 0]
    best = [max(metrics.psnr(other[None], x[None]).item() for other in public.images) for x in truth]
    assert near.psnr.tolist() == pytest.approx(best, abs=1e-4)
    card = experiments.grey(images, 2, 3, 0)
    assert card.trial.tolist() == [0, 0, 1, 1, 2, 2] and card.image.tolist() == [0, 1] * 3
    same = experiments.without_gradient(images, public, 2, 0)["scores"]
    alone = experiments.grey(images, 1, 2, 0).psnr.tolist()
    assert same[same.control == "grey card"].psnr.tolist() == pytest.approx(alone)


def test_what_a_sigmoid_cannot_say_of_normalised_images():
    dark = replace(pictures(4), images=torch.full((4, 3, 16, 16), 0.25))
    table = experiments.out_of_reach(dark, 2, 0)
    assert (table.below == 1).all() and table.psnr.tolist() == pytest.approx([12.0412] * 2, abs=1e-3)


def test_victims_of_the_experiments_are_trained_and_normalised():
    told = {"images": pictures(), "network": 0, "seed": 1, "device": torch.device("cpu")}
    drawn = experiments.victim(**told)
    trained = experiments.victim(**told, trained_on=pictures(30, "train", 1), train_steps=2)
    assert models.fingerprint(drawn) != models.fingerprint(trained)
    assert experiments.victim(**told, normalised=True).mean.flatten().tolist() == [0.5] * 3
    shape, own = (told["images"].num_classes, told["images"].image_shape), network_seed(1, 0)
    for name, built in (
        ("lenet", models.build("lenet5", *shape, own)),
        ("cnn", models.build("cnn", *shape, own, width=8)),
    ):
        assert models.fingerprint(built) == models.fingerprint(experiments.victim(**told, architecture=name))


def test_one_attack_is_followed():
    seen = experiments.watch(SMALL, pictures(), 3, (0, 1, 3), 1, torch.device("cpu"))
    assert seen["images"].shape == (3, 3, 16, 16) and seen["truth"].shape == (3, 16, 16)


def test_several_victims_are_attacked_together(victim):
    x, y = batch()
    networks = [lenet(seed) for seed in range(3)]
    several = Victims.of(networks)
    update = SharedUpdate.join([client.share(n, x[t, None], y[t, None]) for t, n in enumerate(networks)], several)
    found = SMALL(several, update, seed=1)
    alone = SMALL(networks[2], client.share(networks[2], x[2, None], y[2, None]), seed=[(1, 2)])
    torch.testing.assert_close(found.raw[2:], alone.raw)


def test_noise_of_a_defense_changes_the_update_and_not_the_attack(victim):
    x, y = batch()
    update = client.share(victim, x, y, defense=GaussianNoise(1e-2), threat=ThreatModel(defense_known=True))
    assert SMALL(victim, update).raw.isfinite().all()
