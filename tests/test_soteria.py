"""Soteria: its invariants, the official procedure, refusals."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from reprolib import attacks, data, defenses, models
from reprolib.attacks import matching
from reprolib.defenses import Compose, GaussianNoise, KeptColumns, Soteria, soteria
from reprolib.experiments.ig import grey_cards
from reprolib.experiments.measures.soteria import stays_high
from reprolib.experiments.soteria import (
    accuracy_on_defended_gradients,
    effective_rates,
    examine_soteria,
    features_of_one,
)
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, share
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics

KNOWN = ThreatModel(labels="known", defense_known=True)
NORMALIZE = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class Flat(models.Victim):
    """A linear representation r = A x, and a head."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__(3, (1, 1, matrix.shape[1]), nn.Identity())
        self.first = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        self.first.weight = nn.Parameter(matrix)
        self.head = nn.Linear(matrix.shape[0], 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(self.normalize(x).flatten(1)))


def lenet(seed: int = 0, **options) -> nn.Module:
    return models.build("lenet", 10, (3, 32, 32), seed, **{"init": "default", "normalize": NORMALIZE} | options)


def small(seed: int = 0, **options) -> nn.Module:
    """48 features of 8 x 8 images."""
    return models.build("lenet", 5, (3, 8, 8), seed, **{"init": "default", "normalize": NORMALIZE} | options)


def half_dead(seed: int = 0) -> nn.Module:
    """An MLP whose representation is never negative, its first 32 of 64 features never above zero."""
    model = models.build("mlp", 5, (3, 8, 8), seed, width=64, activation="relu")
    with torch.no_grad():
        model.hidden2.bias[:32] = -100.0
        model.hidden2.bias[32:] = 1.0
    return model


def pictures(trials: int, size: int = 1, shape=(3, 8, 8), classes: int = 5, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    return (
        torch.rand(trials, size, *shape, generator=random),
        torch.randint(classes, (trials, size), generator=random),
    )


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_case(rows: int = 6, columns: int = 10, orthogonal: bool = False) -> tuple[Flat, torch.Tensor]:
    matrix = torch.randn(rows, columns, generator=random())
    if orthogonal:
        matrix = torch.linalg.qr(matrix.T)[0].T * torch.arange(1.0, rows + 1)[:, None]
    return Flat(matrix), torch.rand(1, 1, 1, columns, generator=random(1))


# --- the gradient and the Jacobian


def test_the_gradient_of_a_linear_layer_is_the_outer_product_of_its_error_and_its_input():  # 8.1
    model = lenet()
    x, y = pictures(3, shape=(3, 32, 32), classes=10)
    gradients = share(model, x, y).gradients
    for trial in range(3):
        r = Soteria(10).select(model, x[trial], random()).representation[0]
        outer = gradients["head.bias"][trial][:, None] * r
        assert torch.allclose(gradients["head.weight"][trial], outer, atol=1e-6)


@pytest.mark.parametrize("build", [small, half_dead])
def test_the_batched_backward_pass_the_whole_jacobian_and_the_loop_agree(build):  # 8.2
    model = build()
    (x,), _ = pictures(1, 3)
    ways = {way: Soteria(10, jacobian=way).select(model, x, random()).gain for way in ("vjp", "jacrev", "auto")}
    inner, seen = model.normalize(x).requires_grad_(), []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    normalize, model.normalize = model.normalize, nn.Identity()
    model(inner)
    handle.remove()
    model.normalize = normalize
    loop = torch.empty_like(seen[0])
    for feature in range(loop.shape[1]):
        (g,) = torch.autograd.grad(seen[0][:, feature].sum(), inner, retain_graph=True)
        loop[:, feature] = g.flatten(1).norm(dim=1)
    for way, gain in ways.items():
        assert torch.allclose(gain, loop, rtol=1e-5, atol=1e-6 * loop.max()), way


def test_the_norms_do_not_depend_on_how_many_rows_go_together(monkeypatch):
    (x,), _ = pictures(1, 2)
    settings = [Soteria(10, jacobian=way) for way in ("vjp", "jacrev", "jvp")]
    settings.append(Soteria(10, score="elementwise"))
    whole = [setting.select(small(), x, random()).gain for setting in settings]
    monkeypatch.setattr(soteria, "TOGETHER", 5)
    for setting, expected in zip(settings, whole, strict=True):
        found = setting.select(small(), x, random()).gain
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-9), setting


def test_random_directions_estimate_the_norms():  # 8.3
    model, x = linear_case(40, 100)
    found = Soteria(10, jacobian="jvp", draws=2000).select(model, x, random()).gain[0]
    assert torch.allclose(found, model.first.weight.norm(dim=1), rtol=0.1)


def test_large_networks_are_estimated_and_small_ones_are_not(monkeypatch):
    (x,), _ = pictures(1)
    exact, estimated = (Soteria(10, jacobian=way).select(small(), x, random()).gain for way in ("vjp", "jvp"))
    assert torch.equal(Soteria(10).select(small(), x, random()).gain, exact)
    monkeypatch.setattr(soteria, "EXACT_UP_TO", 1e3)
    assert torch.equal(Soteria(10).select(small(), x, random()).gain, estimated)
    assert not torch.equal(exact, estimated)


def test_the_scores_of_a_linear_representation():  # 8.4
    model, x = linear_case()
    matrix = model.first.weight.detach()
    row, pinv, elementwise = (
        Soteria(10, score=score, ridge=0.0).select(model, x, random()).gain[0].double()
        for score in ("row", "pinv", "elementwise")
    )
    assert torch.allclose(row, matrix.norm(dim=1).double(), rtol=1e-5)
    inverse = torch.linalg.pinv(matrix.double())
    assert torch.allclose(1 / pinv, inverse.norm(dim=0), rtol=1e-4)
    assert torch.allclose(elementwise, matrix.double().square().reciprocal().sum(1).rsqrt(), rtol=1e-4)
    assert (1 / pinv >= 1 / row * (1 - 1e-6)).all()  # the score |r| / gain of pinv is never below that of row
    model, x = linear_case(orthogonal=True)
    row, pinv = (Soteria(10, score=score).select(model, x, random()).gain for score in ("row", "pinv"))
    assert torch.allclose(row, pinv, rtol=1e-4)


def test_a_singular_jacobian_needs_its_ridge():
    matrix = torch.randn(4, 10, generator=random())
    model, x = Flat(torch.cat([matrix, matrix])), torch.rand(1, 1, 1, 10, generator=random(1))
    assert Soteria(10, score="pinv").select(model, x, random()).gain.isfinite().all()
    # J J^T is exactly singular here, but its factor may pass by rounding: a wider case never does
    wide = Flat(torch.ones(6, 3))
    with pytest.raises(ValueError, match=r"ridge=0\.0: J J\^T of these features is singular, use a larger one"):
        Soteria(10, score="pinv", ridge=0.0).select(wide, torch.ones(1, 1, 1, 3), random())


# --- what is zeroed


def official(model: nn.Module, x: torch.Tensor, rate: float, c: float) -> torch.Tensor:
    """The published procedure for one image, line by line: a backward pass a feature, and numpy's percentile."""
    seen, inner = [], model.normalize(x).requires_grad_()
    handle = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    normalize, model.normalize = model.normalize, nn.Identity()
    model(inner)
    handle.remove()
    model.normalize = normalize
    ranked = np.zeros(seen[0].shape[1])
    for feature in range(len(ranked)):
        (g,) = torch.autograd.grad(seen[0][0, feature], inner, retain_graph=True)
        ranked[feature] = (g.norm() / (seen[0][0, feature].detach() + c)).item()
    threshold = np.percentile(ranked, rate)
    return torch.from_numpy(~(np.abs(ranked) < threshold))


@pytest.mark.parametrize("preset", [Soteria.dlg(20), Soteria.gs(20), Soteria.gs(60), Soteria.ggl(60)], ids=repr)
def test_the_mask_is_that_of_the_official_procedure(preset):
    (x,), _ = pictures(1)
    mask = preset.select(small(), x, random()).kept
    assert torch.equal(mask, official(small(), x, preset.pruning_rate, preset.eps))


def test_the_presets():
    assert Soteria.dlg() == Soteria(1.0, eps=0.0)
    assert Soteria.gs() == Soteria(60.0, eps=0.1)
    assert Soteria.ggl() == Soteria(80.0, eps=1e-10)
    assert str(Soteria.gs()) == "Soteria, 60%"
    assert str(Soteria(5, "hidden2", "pinv")) == "Soteria, 5% of hidden2, pinv score"


@pytest.mark.parametrize(("rate", "zeroed"), [(0, 0), (1, 8), (10, 77), (40, 307), (60, 461), (80, 614), (100, 767)])
def test_the_percentile_counts_exactly(rate, zeroed):  # 8.5
    model = lenet()
    (x,), _ = pictures(1, shape=(3, 32, 32), classes=10)
    assert int((~Soteria(rate).select(model, x, random()).kept).sum()) == zeroed


def test_a_rate_of_zero_returns_the_same_bits_and_draws_nothing():  # 8.5
    gradients, numbers = {"head.weight": torch.rand(5, 48)}, random()
    state = numbers.get_state()
    assert Soteria(0, score="random").protect(gradients, small(), torch.rand(1, 3, 8, 8), None, numbers) is gradients
    assert torch.equal(numbers.get_state(), state)


@pytest.mark.parametrize("score", ["row", "pinv", "elementwise", "random"])
def test_only_whole_columns_of_one_tensor_change(score):  # 8.6
    model, defense = small(), Soteria(30, score=score)
    x, y = pictures(2, 2)
    clean, shared = share(model, x, y).gradients, share(model, x, y, defense=defense).gradients
    for trial in range(2):
        kept = defense.select(model, x[trial], client.generator(0, trial, client.DEFENSE_STREAM, 0)).kept
        assert 0 < (~kept).sum() < len(kept)
        assert torch.equal((shared["head.weight"][trial] == 0).all(0), ~kept)
        assert torch.equal(shared["head.weight"][trial][:, kept], clean["head.weight"][trial][:, kept])
    assert all(torch.equal(shared[name], g) for name, g in clean.items() if name != "head.weight")


def test_it_is_deterministic_and_idempotent_and_leaves_its_input_alone():  # 8.7
    model, defense = small(), Soteria(30)
    x, y = pictures(1, 2)
    clean = {name: g[0] for name, g in share(model, x, y).gradients.items()}
    before = {name: g.clone() for name, g in clean.items()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    once = defense.protect(clean, model, x[0], y[0], random(0))
    again = defense.protect(clean, model, x[0], y[0], random(1))
    twice = defense.protect(once, model, x[0], y[0], random(2))
    for name, g in once.items():
        assert torch.equal(g, again[name]) and torch.equal(g, twice[name]) and torch.equal(clean[name], before[name])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not list(model.head._forward_pre_hooks)


def test_the_random_score_draws_from_the_clients_generator():
    defense, model = Soteria(50, score="random"), small()
    (x,), _ = pictures(1)
    first, same, other = (defense.select(model, x, random(seed)).kept for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert (~first).sum() == (~Soteria(50).select(model, x, random()).kept).sum()


def test_masks_of_a_higher_rate_keep_nothing_that_a_lower_one_zeroes():  # 8.12
    model = small()
    (x,), _ = pictures(1, 2)
    for setting in (Soteria(0), Soteria(0, score="pinv"), Soteria(0, eps=0.0, signed_denominator=False)):
        kept = [replace(setting, pruning_rate=rate).select(model, x, random()).kept for rate in range(0, 101, 5)]
        assert all((later <= earlier).all() for earlier, later in zip(kept, kept[1:], strict=False))


# --- dead features, negative features, batches


@pytest.mark.parametrize("eps", [0.1, 1e-10])
def test_dead_features_take_the_rate_and_a_warning_says_so(eps):  # 8.8
    model, (x, y) = half_dead(), pictures(1)
    assert Soteria(20, eps=eps).select(model, x[0], random()).dead == 32
    with pytest.warns(UserWarning, match=r"Soteria, 40% prunes none of the 32 live features .* 32 of 64 are dead"):
        update = share(model, x, y, defense=Soteria(40, eps=eps))
    assert torch.equal(update.gradients["head.weight"], share(model, x, y).gradients["head.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        share(model, x, y, defense=Soteria(80, eps=eps))
    table = defenses.pruned_features(Soteria(80, eps=eps), model, x)
    # 0.8 x 63 = 50.4: 51 columns, of which 32 are dead
    assert table.to_dict("records") == [
        {
            "trial": 0,
            "rate": 80,
            "features": 64,
            "dead": 32,
            "pruned": 51,
            "pruned_live": 19,
            "effective_rate": 100 * 19 / 32,
        }
    ]
    assert list(defenses.pruned_features(Soteria(80, eps=eps), model, x, rates=(0, 40, 60)).pruned_live) == [0, 0, 6]


def test_without_eps_a_dead_feature_switches_the_defense_off():
    model, (x, y) = half_dead(), pictures(1)
    with pytest.warns(UserWarning, match="prunes none of the 32 live features"):
        update = share(model, x, y, defense=Soteria.dlg(90))
    assert torch.equal(update.gradients["head.weight"], share(model, x, y).gradients["head.weight"])


def test_the_signed_denominator_keeps_what_the_absolute_one_prunes():
    matrix = torch.eye(4)
    model, x = Flat(matrix), torch.tensor([0.2, 0.5, -0.9, -0.95]).view(1, 1, 1, 4)
    # q = 1 / r is (5, 2, -1.1, -1.05): its 50th percentile 0.5 is above no |q|
    assert Soteria(50, eps=0.0).select(model, x, random()).kept.all()
    chosen = Soteria(50, eps=0.0, signed_denominator=False).select(model, x, random()).kept
    assert chosen.tolist() == [True, True, False, False]


def test_a_batch_shares_one_mask_from_the_added_ratios():
    model, defense = small(), Soteria(40)
    (x,), _ = pictures(1, 4)
    batch = defense.select(model, x, random())
    alone = [defense.select(model, image[None], random()) for image in x]
    ratios = sum(one.gain / (one.representation + 0.1) for one in alone)[0].double()
    assert torch.allclose(batch.gain, torch.cat([one.gain for one in alone]), rtol=1e-5)
    assert torch.equal(batch.kept, ~(ratios < np.percentile(ratios.numpy(), 40)))


def test_a_feature_that_is_dead_in_one_image_counts_by_the_others():
    model, defense = models.build("mlp", 5, (3, 8, 8), 0, width=64, activation="relu"), Soteria(40)
    (x,), _ = pictures(1, 4)
    batch = defense.select(model, x, random())
    live = batch.representation != 0
    assert (live.any(0) & ~live.all(0)).any()
    alone = torch.cat([defense.select(model, image[None], random()).gain for image in x])
    torch.testing.assert_close(batch.gain[live], alone[live])


def test_samples_do_not_interact_in_training_mode():
    model = models.build("resnet20", 5, (3, 8, 8), 0, width=4)
    (x,), _ = pictures(1, 2)
    expected = Soteria(40).select(model, x, random())
    found = Soteria(40).select(model.train(), x, random())
    assert torch.equal(found.gain, expected.gain) and torch.equal(found.kept, expected.kept)
    assert model.training


def test_fedavg_and_clients_prune_the_columns_of_what_they_send():
    model, (x, y) = small(), pictures(2, 4)
    defense = Soteria(40)
    update = share(model, x, y, defense=defense, local=LocalTraining(2, 2, 0.1))
    for trial in range(2):
        kept = defense.select(model, x[trial], random()).kept
        assert torch.equal((update.gradients["head.weight"][trial] == 0).all(0), ~kept)
    mean = share(model, x, y, threat=ThreatModel(observes="mean of 2"), defense=defense).gradients["head.weight"]
    both = [defense.select(model, part, random()).kept for part in x[0].chunk(2)]
    assert torch.equal((mean[0] == 0).all(0), ~(both[0] | both[1]))


def test_another_layer_can_be_defended():
    model, (x, y) = models.build("convbig", 5, (3, 8, 8), 0, width=4, features=40), pictures(1)
    clean = share(model, x, y).gradients
    shared = share(model, x, y, defense=Soteria.ggl(80, layer="hidden2")).gradients
    different = [name for name, g in clean.items() if not torch.equal(g, shared[name])]
    assert different == ["hidden2.weight"] and (shared["hidden2.weight"] == 0).all(1).sum() >= 32


# --- the attacker


def cosine_at_truth(model, update, observation, x, y) -> torch.Tensor:
    soft = nn.functional.one_hot(y, update.num_classes).to(x.dtype)
    dummies = matching.dummy_gradients(client.worker(model, "eval"), x, soft)
    return matching.cosine(dummies, observation, torch.arange(len(x))).detach()


@pytest.mark.parametrize("rate", [1, 10, 40, 80])
def test_the_true_image_costs_the_plain_attacker_and_not_the_informed_ones(rate):  # 8.10
    model = lenet().double()
    x, y = pictures(2, shape=(3, 32, 32), classes=10)
    x = x.double()
    clean, update = share(model, x, y), share(model, x, y, threat=KNOWN, defense=Soteria(rate))
    kept, everything = (
        sum(g.flatten(1).square().sum(1) for g in found.gradients.values()) for found in (update, clean)
    )
    plain = matching.Observation(update.gradients)
    floor = 1 - (kept / everything).sqrt()
    assert floor.min() > 0
    assert torch.allclose(cosine_at_truth(model, update, plain, x, y), floor, atol=1e-6)
    for known in (Soteria(rate), KeptColumns(rate)):
        assert cosine_at_truth(model, update, known.counter(model, update), x, y).abs().max() < 1e-6
    soft = nn.functional.one_hot(y, 10).to(x.dtype)
    dummies = matching.dummy_gradients(client.worker(model, "eval"), x, soft)
    everyone = torch.arange(2)
    assert torch.allclose(matching.distance(dummies, plain, everyone), everything - kept, rtol=1e-6)
    for known in (Soteria(rate), KeptColumns(rate)):
        assert matching.distance(dummies, known.counter(model, update), everyone).abs().max() < 1e-12


def test_the_dropped_tensor_is_the_plain_cost_without_it():  # 8.11
    model, (x, y) = small(), pictures(2)
    update, (other, _) = share(model, x, y), pictures(2, seed=1)
    soft = nn.functional.one_hot(y, 5).to(x.dtype)
    dummies = matching.dummy_gradients(client.worker(model, "eval"), other, soft)
    everyone = torch.arange(2)
    rest = {name: g for name, g in dummies.items() if name != "head.weight"}
    alone = matching.Observation({name: update.gradients[name] for name in rest})
    for compare in (matching.cosine, matching.distance, matching.norms):
        found = compare(dummies, Soteria(50).counter(model, update), everyone)
        expected = compare(rest, alone, everyone)
        assert torch.allclose(found, expected, rtol=1e-5)


def test_no_rate_changes_the_attack_on_what_is_left():
    model, (x, y) = small(), pictures(2)
    attack = replace(attacks.InvertingGradients(), iterations=5)
    found = []
    for rate in (0, 40, 90):
        update = share(model, x, y, threat=KNOWN, defense=Soteria(rate))
        found.append(attack(model, update, progress=False).raw)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_informed_attacker_finds_an_image_that_the_plain_one_does_not():
    model, (x, y) = small(), pictures(2, seed=3)
    attack, defense = replace(attacks.InvertingGradients.official(), iterations=150), Soteria(60)
    plain = share(model, x, y, threat=ThreatModel(labels="known"), defense=defense)
    informed = share(model, x, y, threat=KNOWN, defense=defense)
    error = [(attack(model, update, progress=False).images - x).square().mean() for update in (plain, informed)]
    assert error[1] < 0.5 * error[0]


def test_readings_survive_other_defenses_and_local_steps():
    model, (x, y) = small(), pictures(2, 2)
    update = share(
        model, x, y, threat=KNOWN, defense=Compose([Soteria(40), GaussianNoise(1e-3)]), local=LocalTraining(1, 1, 0.1)
    )
    observation = update.defense.counter(model, update)
    assert observation.weight["head.weight"].count_nonzero() == 0 and observation.noise_std > 0
    alone = share(model, x, y, threat=KNOWN, defense=KeptColumns(40), local=LocalTraining(1, 1, 0.1))
    reading = alone.defense.counter(model, alone)
    zero = (alone.gradients["head.weight"] == 0).all(1, keepdim=True)
    assert torch.equal(reading.weight["head.weight"] == 0, zero) and zero.any()
    assert torch.equal(reading.target["conv1.weight"], alone.as_gradients()["conv1.weight"])


def test_shared_features_are_read_in_closed_form():  # 8.9
    model, defense = lenet(), Soteria(80)
    x, y = pictures(3, shape=(3, 32, 32), classes=10)
    gradients = share(model, x, y, defense=defense).gradients
    read = attacks.linear_inputs(gradients["head.weight"], gradients["head.bias"], "largest")
    for trial in range(3):
        chosen = defense.select(model, x[trial], random())
        assert torch.allclose(read[trial][chosen.kept], chosen.representation[0][chosen.kept], atol=1e-5)
        assert (read[trial][~chosen.kept] == 0).all()


@pytest.mark.parametrize("rate", [10, 100])
def test_it_does_nothing_where_the_first_layer_gives_the_image_away(rate):  # 8.13
    model = models.build("mlp", 5, (3, 8, 8), 0, width=256, normalize=NORMALIZE)
    x, y = pictures(4)
    found = attacks.AnalyticRecovery()(model, share(model, x, y, defense=Soteria(rate)))
    assert (found.raw - x).abs().max() < 1e-5


# --- refusals


@pytest.mark.parametrize("rate", [-1, 100.5, float("nan"), True, "60"])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"pruning_rate must lie in \[0, 100\], got .*percent of the features"):
        Soteria(rate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "best"}, "score must be one of 'row', 'pinv', 'elementwise', 'random', got 'best'"),
        ({"jacobian": "loop"}, "jacobian must be one of 'auto', 'vjp', 'jacrev', 'jvp', got 'loop'"),
        ({"score": "pinv", "jacobian": "jvp"}, "jacobian='jvp' estimates row norms only, and score='pinv' needs more"),
        ({"eps": -0.1}, "eps must be a finite number >= 0, got -0.1"),
        ({"ridge": float("inf")}, "ridge must be a finite number >= 0, got inf"),
        ({"draws": 0}, "draws must be a whole number >= 1, got 0"),
    ],
)
def test_other_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Soteria(40, **changes)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("fc", "layer='fc' is not there: expected a linear layer of this model, one of head"),
        ("conv1", "layer='conv1' is of type Conv2d: expected a linear layer of this model, one of head"),
    ],
)
def test_a_layer_that_is_not_there_or_not_linear_is_refused(layer, message):
    model, (x, y) = small(), pictures(1)
    with pytest.raises(ValueError, match=message):
        share(model, x, y, defense=Soteria(40, layer=layer))
    with pytest.raises(ValueError, match=message):
        defenses.pruned_features(Soteria(40, layer=layer), model, x)
    update = share(model, x, y)
    for read in (soteria.without_layer, soteria.with_kept_columns):
        with pytest.raises(ValueError, match=f"layer='{layer}' is no linear layer of this update; it has head"):
            read(update, layer)


class Odd(Flat):
    """Runs its linear layer on two pieces of every image, or twice, or not at all."""

    use = "tokens"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = self.first(x.flatten(1))
        if self.use == "tokens":
            return self.head(r[:, None].expand(-1, 2, -1)).sum(1)
        if self.use == "twice":
            return self.head(r) + self.head(2 * r)
        return r @ self.head.weight.T


@pytest.mark.parametrize(("use", "shapes"), [("tokens", "2, 2, 6"), ("twice", r"2, 6\], \[2, 6"), ("never", "")])
def test_a_layer_whose_input_is_no_representation_is_refused(use, shapes):
    model = Odd(torch.randn(6, 10, generator=random()))
    model.use = use
    (x,), _ = pictures(1, 2, shape=(1, 1, 10))
    with pytest.raises(
        ValueError, match=rf"layer='head' must take one representation \[N, features\].*N = 2.*{shapes}"
    ):
        Soteria(40).select(model, x, random())


def test_it_is_built_by_name():
    assert defenses.build("Soteria", pruning_rate=40, layer="hidden2") == Soteria(40, layer="hidden2")
    assert defenses.build("KeptColumns", pruning_rate=40) == KeptColumns(40)
    with pytest.raises(ValueError, match="Soteria needs more settings"):
        defenses.build("Soteria")


# --- the chapter's measurements


def photos():
    return data.load("photos", "test", 40)


class KeepsAll(Soteria):
    def protect(self, gradients, *told):
        return gradients


class KeepsNone(Soteria):
    def protect(self, gradients, *told):
        name = f"{self.layer}.weight"
        return gradients | {name: torch.zeros_like(gradients[name])}


def test_a_defense_that_prunes_nothing_or_everything_is_not_untouched():
    given = {"images": photos(), "count": 2, "seed": 0, "features": 20}
    table = examine_soteria(defense=Soteria(80), **given)
    assert table[["repeats", "untouched", "label"]].all(axis=None)
    assert table[["feature_error", "mlp_error", "hidden1_error"]].max(axis=None) < 1e-5
    for other in (KeepsAll(80), KeepsNone(80)):
        assert not examine_soteria(defense=other, **given).untouched.any()


def test_an_objective_stays_high_only_where_most_searches_stay_finite():
    table = pd.DataFrame({"network": range(8), "objective": 12.0, "diverged": [True] * 4 + [False] * 4})
    found = stays_high(table.assign(objective=table.objective.where(~table.diverged, 1e9)), 300)
    assert found.interval.value == 12 and found.conditions == {"budget": "300 outer steps"}
    assert stays_high(table.assign(diverged=[True] * 5 + [False] * 3), 300).reason == "out of scope"


def test_effective_rates_are_counted_over_networks_and_any_trial_can_be_run_again():
    defense, options = Soteria(0, jacobian="jvp", draws=1), {"width": 4}
    given = {"images": photos(), "each": 2, "rates": (10, 60), "seed": 0, "defense": defense}
    table = effective_rates(trials=range(4), model="convnet", options=options, **given)
    assert table.network.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and table.trial.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    below = 100 * table.dead > table.rate * table.features
    assert below.any() and (table[below].pruned_live == 0).all() and (table[~below].pruned_live > 0).all()
    again = effective_rates(trials=[1, 3], model="convnet", options=options, **given)
    assert again.pruned_live.tolist() == table[table.trial.isin([1, 3])].pruned_live.tolist()
    sigmoid = effective_rates(trials=[0, 1], options={"init": "default"}, **given)
    assert (sigmoid.dead == 0).all()
    one = effective_rates(trials=[0, 2], shipped=lenet(), **given)
    assert one.network.tolist() == [0, 0, 1, 1] and (one.features == 768).all()


def test_the_features_of_one_image_are_kept_zeroed_or_dead():
    victims = {"LeNet": {"name": "lenet", "init": "default"}, "ConvNet": {"name": "convnet", "width": 4}}
    table = features_of_one(photos(), victims, Soteria(60), 0)
    assert table.groupby("victim").r.max().tolist() == table.groupby("victim").g.max().tolist() == [1.0, 1.0]
    states = table.groupby("victim").state.agg(set)
    assert states["LeNet"] == {"kept", "zeroed"} and "dead" in states["ConvNet"]


def test_grey_cards_are_those_of_the_trials():
    images = photos()
    table = grey_cards(images, [1, 3], 0)
    truth = images.batches(1, 4, seed=0)[0][[1, 3], 0]
    assert table.trial.tolist() == [1, 3]
    assert table.psnr.tolist() == pytest.approx(metrics.psnr(torch.full_like(truth, 0.5), truth).tolist())


def test_training_on_defended_gradients_starts_from_the_same_weights():
    given = {"steps": 2, "batch_size": 4, "runs": 2, "seed": 0, "device": torch.device("cpu")}
    plain, bare = (
        accuracy_on_defended_gradients(photos(), photos(), defense, learning_rates=(0.01,), **given)
        for defense in (None, Soteria(0))
    )
    assert plain.run.tolist() == [0, 1] and plain.learning_rate.tolist() == [0.01, 0.01]
    assert plain.accuracy.tolist() == bare.accuracy.tolist() and (plain.seconds > 0).all()
