"""Defenses: identities, exact counts and laws (dlg.md 8.10, defenses.md 8.1-8.4), and the informed attacker."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from reprolib import defenses, models
from reprolib.attacks.matching import per_parameter
from reprolib.defenses import (
    CastPrecision,
    Clipping,
    Compose,
    Defense,
    DualPruning,
    GaussianNoise,
    LaplaceNoise,
    Rescale,
    SignCompression,
    TopK,
)
from reprolib.federated.client import LocalTraining, share
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate

IDENTITIES = [
    GaussianNoise(0),
    LaplaceNoise(0.0),
    GaussianNoise.from_variance(0),
    LaplaceNoise.from_scale(0),
    TopK(0),
    TopK(0.0, scope="global"),
    Clipping(math.inf),
    DualPruning(0, 0.0),
    Compose([GaussianNoise(0), TopK(0)]),
    Defense(),
]
CHANGES = [
    GaussianNoise(0.1),
    LaplaceNoise(0.1),
    CastPrecision("fp16"),
    CastPrecision("bf16"),
    CastPrecision("int8"),
    TopK(0.5),
    TopK(0.5, scope="global"),
    TopK(0.5, scope="weights"),
    Rescale(-0.5),
    Clipping(0.5),
    Clipping(0.01, scope="tensor"),
    SignCompression(),
    SignCompression("mean_abs"),
    DualPruning(0.1, 0.5),
    Compose([TopK(0.5), GaussianNoise(0.1)]),
]


def sample(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """One trial's gradient of three tensors at different levels."""
    numbers = torch.Generator().manual_seed(seed)
    sizes = {"conv.weight": (4, 2, 3, 3), "conv.bias": (4,), "head.weight": (5, 20)}
    return {
        name: (10.0**-power * torch.randn(size, generator=numbers)).to(dtype)
        for power, (name, size) in enumerate(sizes.items())
    }


def protect(defense: Defense, gradients, seed: int = 0):
    return defense.protect(gradients, nn.Identity(), torch.rand(1), torch.zeros(1), torch.Generator().manual_seed(seed))


def shared(defense: Defense, trials: int = 3, local=None, threat=None) -> tuple[SharedUpdate, dict[str, torch.Tensor]]:
    """The update of several trials under a defense, and the clean values that it hides: name -> [T, *param]."""
    clean = [sample(seed) for seed in range(trials)]
    hidden = {name: torch.stack([trial[name] for trial in clean]) for name in clean[0]}
    safe = [protect(defense, trial, seed) for seed, trial in enumerate(clean)]
    gradients = {name: torch.stack([trial[name] for trial in safe]) for name in hidden}
    return SharedUpdate(gradients, 4, (1, 2, 2), 5, threat or ThreatModel(), "none", local), hidden


def cost(observation, gradients) -> float:
    """Total cost of all trials' dummy gradients, name -> [T, *param], under an observation."""
    trials = torch.arange(len(next(iter(gradients.values()))))
    values = per_parameter(observation.as_shared(gradients, trials), observation, trials)
    return float(sum(values.values()).sum())


@pytest.mark.parametrize("defense", IDENTITIES, ids=lambda defense: type(defense).__name__)
def test_identity_settings_return_the_same_bits_and_draw_nothing(defense):
    gradients, numbers = sample(), torch.Generator().manual_seed(0)
    state = numbers.get_state()
    result = defense.protect(gradients, nn.Identity(), torch.rand(1), torch.zeros(1), numbers)
    assert all(torch.equal(result[name], g) for name, g in gradients.items())
    assert torch.equal(numbers.get_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("defense", CHANGES, ids=str)
def test_names_shapes_and_dtypes_stay_and_the_input_is_not_modified(defense, dtype):
    gradients = sample(dtype=dtype)
    before = {name: g.clone() for name, g in gradients.items()}
    result = protect(defense, gradients)
    assert list(result) == list(gradients)
    for name, g in gradients.items():
        assert result[name].shape == g.shape and result[name].dtype == dtype
        assert torch.equal(g, before[name])
    assert any(not torch.equal(result[name], g) for name, g in gradients.items())


@pytest.mark.parametrize("defense", CHANGES, ids=str)
def test_the_same_generator_repeats_and_only_noise_differs_under_another(defense):
    def same(first, second):
        return all(torch.equal(first[name], second[name]) for name in first)

    random = "noise" in str(defense)
    assert same(protect(defense, sample(), 1), protect(defense, sample(), 1))
    assert same(protect(defense, sample(), 1), protect(defense, sample(), 2)) is not random


@pytest.mark.parametrize("defense", [GaussianNoise(0.3), LaplaceNoise(0.3)], ids=str)
def test_noise_has_its_std_and_tensors_are_uncorrelated(defense):
    zeros = {"a": torch.zeros(1000, 1000), "b": torch.zeros(1000, 1000)}
    noise = protect(defense, zeros)
    a, b = noise["a"].flatten(), noise["b"].flatten()
    assert a.std() == pytest.approx(0.3, rel=0.01) and abs(a.mean()) < 0.002
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.005
    assert torch.unique(a).numel() > 900_000


def test_noise_follows_its_law():
    zeros = {"a": torch.zeros(1_000_000)}
    scale = 0.2
    laplace = protect(LaplaceNoise.from_scale(scale), zeros)["a"]
    assert laplace.std() == pytest.approx(math.sqrt(2) * scale, rel=0.01)
    assert laplace.abs().mean() == pytest.approx(scale, rel=0.01)  # b maximises the likelihood
    assert (laplace.abs() > 3 * scale).float().mean() == pytest.approx(math.exp(-3), rel=0.03)
    gaussian = protect(GaussianNoise(1.0), zeros)["a"]
    assert (gaussian.abs() > 1.96).float().mean() == pytest.approx(0.05, rel=0.03)


def test_the_readings_of_a_level():
    assert GaussianNoise.from_variance(0.01).std == pytest.approx(0.1)
    assert LaplaceNoise.from_variance(0.01).std == pytest.approx(0.1)
    assert LaplaceNoise.from_scale(0.1).std == pytest.approx(math.sqrt(0.02))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.2, 0.29, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999])
def test_pruning_zeros_exactly_its_share_and_keeps_the_largest(ratio):
    gradients = {
        "a": torch.randn(100, generator=torch.Generator().manual_seed(0)),
        "b": torch.randn(7, 11, generator=torch.Generator().manual_seed(1)),
    }
    for name, result in protect(TopK(ratio), gradients).items():
        g = gradients[name]
        count = round(ratio * 1000) * g.numel() // 1000  # floor(p n) in integers
        assert (result == 0).sum() == count
        assert torch.equal(result[result != 0], g[result != 0])
        if count:
            assert g[result == 0].abs().max() <= g[result != 0].abs().min()
    every = protect(TopK(ratio, scope="global"), gradients)
    assert sum(int((g == 0).sum()) for g in every.values()) == round(ratio * 1000) * 177 // 1000


def test_pruning_counts_exactly_among_ties_and_zeros():
    ties = {"a": torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1, 1, -1]), "b": torch.tensor([0.0, 0, 0, 0, 5])}
    result = protect(TopK(0.3), ties)
    assert result["a"].tolist() == [0, 0, 0, -1, 1, -1, 1, -1, 1, -1]  # the earlier go first
    assert result["b"].tolist() == [0, 0, 0, 0, 5]
    assert (protect(TopK(0.4, scope="global"), ties)["a"] == 0).sum() == 2  # 6 of 15, four of them zeros already


def test_global_pruning_can_empty_a_tensor():
    gradients = {"weak": 1e-3 * torch.ones(10), "strong": torch.ones(10)}
    result = protect(TopK(0.5, scope="global"), gradients)
    assert (result["weak"] == 0).all() and torch.equal(result["strong"], gradients["strong"])


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_pruning_again_changes_nothing(scope):
    once = protect(TopK(0.7, scope), sample())
    twice = protect(TopK(0.7, scope), once)
    assert all(torch.equal(twice[name], g) for name, g in once.items())


def test_int8_rounds_to_the_nearest_of_255_levels():
    gradients = sample()
    for name, s in protect(CastPrecision("int8"), gradients).items():
        g = gradients[name]
        step = g.abs().max() / 127
        assert (s - g).abs().max() <= step / 2 * (1 + 1e-5)
        steps = s / step
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert steps.abs().max() == pytest.approx(127)
    zeros = protect(CastPrecision("int8"), {"a": torch.zeros(3)})["a"]
    assert torch.equal(zeros, torch.zeros(3))


@pytest.mark.parametrize(("dtype", "error", "least"), [("fp16", 2**-11, 6.2e-5), ("bf16", 2**-8, 1.2e-38)])
def test_floats_are_rounded_to_their_significand(dtype, error, least):
    g = torch.logspace(-12, 4, 10_001) * torch.tensor([-1.0, 1.0]).repeat(5001)[:10_001]
    s = protect(CastPrecision(dtype), {"a": g})["a"]
    normal = g.abs() >= least
    assert ((s - g).abs() / g.abs())[normal].max() <= error
    assert torch.equal(s, protect(CastPrecision(dtype), {"a": s})["a"])
    assert torch.equal(s.sign()[normal], g.sign()[normal])


def test_fp16_flushes_below_half_its_least_subnormal_and_refuses_overflow():
    s = protect(CastPrecision("fp16"), {"a": torch.tensor([2.0**-25, 2.0**-25 * 1.01, 2.0**-26])})["a"]
    assert s.tolist() == [0, 2.0**-24, 0]
    with pytest.raises(ValueError, match="'a' reaches 1e.05, beyond the range of fp16: use 'bf16' or 'int8'"):
        protect(CastPrecision("fp16"), {"a": torch.tensor([1e5])})


@pytest.mark.parametrize("local", [None, LocalTraining(1, 1, 0.5)])
@pytest.mark.parametrize(
    "defense",
    [
        CastPrecision("fp16"),
        CastPrecision("bf16"),
        CastPrecision("int8"),
        TopK(0.3),
        TopK(0.9),
        TopK(0.5, scope="global"),
        TopK(0.5, scope="weights"),
        DualPruning(0.1, 0.5),
        Rescale(-0.5),
        Clipping(0.5),
        Clipping(0.01, scope="tensor"),
        SignCompression(),
        SignCompression("mean_abs"),
        Compose([Clipping(0.5), Rescale(3.0)]),
        Compose([TopK(0.5), CastPrecision("int8")]),
    ],
    ids=str,
)
def test_the_true_gradient_costs_the_informed_attacker_nothing(defense, local):
    update, hidden = shared(defense, local=local)
    truth = {name: g * update.scale for name, g in hidden.items()}
    adaptive = defense.counter(nn.Identity(), update)
    naive = Defense().counter(nn.Identity(), update)
    assert adaptive.law == "gaussian" and adaptive.noise_std == 0
    assert cost(naive, truth) > 0
    assert cost(adaptive, truth) <= 1e-9 * cost(naive, truth)
    # and it is no blank cheque: another image's gradient still costs, in units of what was shared
    other = {name: g.roll(1, 0) for name, g in truth.items()}
    assert cost(adaptive, other) > 0.01 * min(cost(naive, other), cost(naive, {n: 0 * g for n, g in other.items()}))


def test_pruned_entries_may_be_as_large_as_the_smallest_kept_one():
    update, _ = shared(TopK(0.5))
    reading = TopK(0.5).counter(nn.Identity(), update)
    for name, s in update.gradients.items():
        for trial in range(3):
            zero = s[trial] == 0
            smallest = s[trial][~zero].abs().min()
            assert torch.equal(reading.slack[name][trial], torch.where(zero, smallest, 0.0))
    everywhere, _ = shared(TopK(0.5, scope="global"))
    reading = TopK(0.5, scope="global").counter(nn.Identity(), everywhere)
    for trial in range(3):
        kept = torch.cat([s[trial].flatten() for s in everywhere.gradients.values()])
        bounds = torch.cat([slack[trial].flatten() for slack in reading.slack.values()]).unique()
        assert bounds.tolist() == [0, kept[kept != 0].abs().min().item()]


@pytest.mark.parametrize("scope", ["tensor", "global", "weights"])
def test_after_local_steps_the_bound_is_in_units_of_the_gradient(scope):
    local = LocalTraining(2, 2, 0.1)
    update, hidden = shared(TopK(0.5, scope), local=local)
    reading, target = TopK(0.5, scope).counter(nn.Identity(), update), update.as_gradients()
    kept = {name: g.abs().flatten(1).masked_fill((g == 0).flatten(1), math.inf) for name, g in target.items()}
    pruned = [name for name, g in target.items() if scope != "weights" or g.ndim > 2]
    assert list(reading.slack) == pruned
    for name in pruned:
        smallest = (torch.cat(list(kept.values()), 1) if scope == "global" else kept[name]).amin(1)
        expected = torch.where(target[name] == 0, smallest.view(-1, *[1] * (target[name].ndim - 1)), 0.0)
        torch.testing.assert_close(reading.slack[name], expected, rtol=1e-6, atol=0)
        assert ((hidden[name] * update.scale - target[name]).abs() <= reading.slack[name] * (1 + 1e-6)).all()


def test_zeros_that_were_not_pruned_are_known_to_be_zero():
    gradients = {"a": torch.tensor([[0.0, 0, 0, 0, 5]])}
    update = SharedUpdate(gradients, 1, (1, 1, 1), 2, ThreatModel(), "none")
    assert TopK(0.3).counter(nn.Identity(), update).slack["a"].tolist() == [[0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("dtype", "ulp", "flush"), [("fp16", 2**-11, 2**-25), ("bf16", 2**-8, 2**-134)])
def test_slack_of_floats_is_half_a_unit_in_the_last_place(dtype, ulp, flush):
    gradients = {"a": torch.tensor([[0.0, 1.0, -1.5, 3.0]])}
    update = SharedUpdate(gradients, 1, (1, 1, 1), 2, ThreatModel(), "none")
    slack = CastPrecision(dtype).counter(nn.Identity(), update).slack["a"][0]
    assert slack.tolist() == [flush, ulp, ulp, 2 * ulp]


def test_slack_of_int8_is_half_a_step_of_each_tensor_and_trial():
    update, hidden = shared(CastPrecision("int8"))
    slack = CastPrecision("int8").counter(nn.Identity(), update).slack
    for name, g in hidden.items():
        assert slack[name].shape == (3, *[1] * (g.ndim - 1))
        torch.testing.assert_close(slack[name].flatten(), g.abs().flatten(1).amax(1) / 254)


@pytest.mark.parametrize("rate", [0.1, 5.0])
def test_slack_of_what_was_rounded_is_in_units_of_the_gradient(rate):
    update, _ = shared(CastPrecision("int8"), local=LocalTraining(1, 4, rate))
    reading = CastPrecision("int8").counter(nn.Identity(), update)
    for name, target in reading.target.items():
        torch.testing.assert_close(reading.slack[name].flatten(), target.abs().flatten(1).amax(1) / 254)


def test_the_law_and_level_of_noise_are_read_in_gradient_units():
    for defense, law in ((GaussianNoise(0.2), "gaussian"), (LaplaceNoise(0.2), "laplace")):
        update, _ = shared(defense)
        reading = defense.counter(nn.Identity(), update)
        assert reading.law == law and reading.noise_std == 0.2 and reading.slack is None and reading.weight is None
        assert all(torch.equal(reading.target[name], g) for name, g in update.gradients.items())
        local, _ = shared(defense, local=LocalTraining(2, 2, 0.1))
        reading = defense.counter(nn.Identity(), local)
        assert reading.noise_std == pytest.approx(0.2 / (0.1 * 4))
        assert all(torch.allclose(reading.target[name], -g / 0.4) for name, g in local.gradients.items())
        mean = replace(update, threat=ThreatModel(observes="mean of 4"))
        reading = defense.counter(nn.Identity(), mean)
        assert reading.noise_std == pytest.approx(0.1) and reading.law == "gaussian"


def test_compose_applies_in_order_and_equals_the_steps():
    both = Compose([TopK(0.5), GaussianNoise(0.1)])
    noise = torch.Generator().manual_seed(0)
    pruned = protect(TopK(0.5), sample())
    expected = GaussianNoise(0.1).protect(pruned, nn.Identity(), torch.rand(1), torch.zeros(1), noise)
    assert all(torch.equal(protect(both, sample())[name], g) for name, g in expected.items())
    assert all((g != 0).all() for g in expected.values())
    other = protect(Compose([GaussianNoise(0.1), TopK(0.5)]), sample())
    assert (other["head.weight"] == 0).sum() == 50


def test_compose_adds_up_the_readings():
    def read(*members):
        defense = Compose(members)
        return defense.counter(nn.Identity(), shared(defense)[0])

    assert read(GaussianNoise(0.3), GaussianNoise(0.4)).noise_std == pytest.approx(0.5)
    assert read(GaussianNoise(0.3), LaplaceNoise(0.4)).law == "gaussian"
    assert read(GaussianNoise(0), LaplaceNoise(0.4)).law == "laplace"
    assert read(GaussianNoise(0.1)).slack is None
    defense = Compose([CastPrecision("int8"), TopK(0.5)])
    update, _ = shared(defense)
    slack = defense.counter(nn.Identity(), update).slack
    parts = [member.counter(nn.Identity(), update).slack for member in defense.defenses]
    for name in slack:
        torch.testing.assert_close(slack[name], parts[0][name] + parts[1][name])
    mixed = read(GaussianNoise(0.1), TopK(0.5))
    assert mixed.noise_std == 0.1 and mixed.slack is not None


def test_compose_extends_in_order():
    class Wrap(Defense):
        def __init__(self, layer):
            self.layer = layer

        def extend(self, model):
            return nn.Sequential(model, self.layer)

    model = Compose([Wrap(nn.ReLU()), Wrap(nn.Tanh())]).extend(nn.Identity())
    assert isinstance(model[1], nn.Tanh) and isinstance(model[0][1], nn.ReLU)


def test_the_base_reads_the_update_as_it_is():
    update, _ = shared(Defense())
    reading = Defense().counter(nn.Identity(), update)
    assert reading.target is update.gradients and reading.slack is None and reading.noise_std == 0


def test_equal_settings_compare_equal_and_print_themselves():
    assert Compose([TopK(0.5), GaussianNoise(0.1)]) == Compose((TopK(0.5), GaussianNoise(0.1)))
    assert repr(TopK(0.5)) == "TopK(prune_ratio=0.5, scope='tensor')"
    assert len({GaussianNoise(0.1), GaussianNoise(0.1), Compose([TopK(0.5)])}) == 2


@pytest.mark.parametrize(
    ("defense", "label"),
    [
        (None, "no defense"),
        (GaussianNoise(0.01), "Gaussian noise, std 0.01"),
        (LaplaceNoise.from_scale(1e-4), "Laplacian noise, std 0.000141"),
        (CastPrecision("fp16"), "half precision (fp16)"),
        (CastPrecision("int8"), "8-bit integers"),
        (TopK(0.2), "pruning 20%"),
        (TopK(0.999, "global"), "pruning 99.9% globally"),
        (TopK(0.9, "weights"), "pruning 90% of the weights"),
        (Compose([TopK(0.9), GaussianNoise(1e-3)]), "pruning 90%, then Gaussian noise, std 0.001"),
    ],
)
def test_describe(defense, label):
    assert defenses.describe(defense) == label


def test_statistics_tell_the_relative_level_and_what_was_flushed():
    clean = {"a": torch.full((100_000,), 2.0), "b": torch.tensor([1.0, 0.0, 1.0, 1.0])}
    table = defenses.statistics(clean, protect(GaussianNoise(0.5), clean)).set_index("parameter")
    assert table.loc["a", "rms"] == 2 and table.loc["a", "relative_error"] == pytest.approx(0.25, rel=0.02)
    assert table.loc["all", "entries"] == 100_004 and table.loc["all", "zeroed"] == 0
    table = defenses.statistics(clean, protect(TopK(0.5), clean)).set_index("parameter")
    assert table.loc["a", "zeroed"] == 0.5 and table.loc["b", "zeroed"] == 0.25  # one of the two was zero already
    with pytest.raises(ValueError, match="the same parameters in the same shapes"):
        defenses.statistics(clean, {"a": clean["a"]})


def test_build_makes_what_it_is_told_and_lists_what_it_knows():
    assert defenses.build("GaussianNoise", std=0.01) == GaussianNoise(0.01)
    assert defenses.build("TopK", prune_ratio=0.5, scope="global") == TopK(0.5, "global")
    with pytest.raises(
        ValueError, match="unknown defense 'Noise': known defenses are GaussianNoise, LaplaceNoise, Cast"
    ):
        defenses.build("Noise", std=0.01)
    with pytest.raises(ValueError, match=r"unknown settings \['sigma'\] of GaussianNoise: known settings are std"):
        defenses.build("GaussianNoise", sigma=0.01)
    with pytest.raises(ValueError, match="TopK needs more settings.*prune_ratio"):
        defenses.build("TopK")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianNoise(-0.1), "std must be a finite number >= 0, got -0.1"),
        (lambda: GaussianNoise(float("nan")), "std must be a finite number >= 0, got nan"),
        (lambda: LaplaceNoise(float("inf")), "std must be a finite number >= 0, got inf"),
        (lambda: LaplaceNoise("0.1"), "std must be a finite number >= 0, got '0.1'"),
        (lambda: GaussianNoise.from_variance(-1), "variance must be a finite number >= 0, got -1"),
        (lambda: LaplaceNoise.from_variance(-1), "variance must be a finite number >= 0, got -1"),
        (lambda: LaplaceNoise.from_scale(-1), "scale must be a finite number >= 0, got -1"),
        (lambda: CastPrecision("fp8"), "dtype must be one of 'fp16', 'bf16', 'int8', got 'fp8'"),
        (lambda: TopK(1), r"prune_ratio must lie in \[0, 1\), got 1"),
        (lambda: TopK(-0.1), r"prune_ratio must lie in \[0, 1\), got -0.1"),
        (lambda: TopK(float("nan")), r"prune_ratio must lie in \[0, 1\), got nan"),
        (lambda: TopK(0.5, "layer"), "scope must be one of 'tensor', 'global', 'weights', got 'layer'"),
        (lambda: Compose([]), r"Compose needs a sequence of at least one defense, got \[\]"),
        (lambda: Compose(TopK(0.5)), "defenses must be a sequence, got TopK"),
        (lambda: Compose([TopK(0.5), "noise"]), "Compose takes instances of reprolib.defenses, got 'noise'"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_defenses_meet_the_client():
    model = models.build("mlp", 4, (1, 3, 3), seed=0)
    images = torch.rand(2, 3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2], [3, 3, 0]])
    defense = Compose([GaussianNoise(0.1), TopK(0.5)])
    update = share(model, images, labels, defense=defense, threat=ThreatModel(defense_known=True))
    update.check(model)
    reading = update.defense.counter(model, update)
    assert reading.noise_std == 0.1
    zeros = (update.gradients["head.weight"] == 0).flatten(1).sum(1)
    assert (zeros == model.head.weight.numel() // 2).all()


def test_rescaling_multiplies_and_an_informed_attacker_does_too():
    update, hidden = shared(Rescale(-0.5))
    reading = Rescale(-0.5).counter(None, update)
    seen = reading.as_shared(hidden, torch.arange(3))
    for name, gradient in hidden.items():
        assert torch.equal(update.gradients[name], -0.5 * gradient)
        assert torch.equal(seen[name], reading.target[name])
    with pytest.raises(ValueError, match="factor must be a finite number other than 0"):
        Rescale(0.0)
    for factor in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"factor must be a finite number, got {factor}"):
            Rescale(factor)


@pytest.mark.parametrize(("top", "bottom"), [(0.05, 0.75), (0.29, 0.29), (0.1, 0.0), (0.0, 0.5)])
def test_dual_pruning_zeros_both_ends_and_keeps_the_middle(top, bottom):
    g = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    result = protect(DualPruning(top, bottom), {"a": g})["a"]
    upper, lower = round(100 * top), round(100 * bottom)
    order = g.abs().flatten().argsort()
    assert (result == 0).sum() == upper + lower
    assert (result.flatten()[order[:lower]] == 0).all() and (result.flatten()[order[100 - upper :]] == 0).all()
    assert torch.equal(result[result != 0], g[result != 0])


def test_a_withheld_entry_is_small_or_large():
    gradients = {"a": torch.tensor([[0.0, 0, 1, -2, 3]])}
    update = SharedUpdate(gradients, 1, (1, 1, 1), 2, ThreatModel(), "none")
    reading = DualPruning(0.2, 0.2).counter(nn.Identity(), update)

    def of(first: float, second: float) -> float:
        return cost(reading, {"a": torch.tensor([[first, second, 1, -2, 3]])})

    assert of(1.0, -3.0) == of(-0.5, 7.0) == of(0.0, 0.0) == 0
    assert of(1.5, 0.0) == pytest.approx(0.25) and of(-2.9, 0.0) == pytest.approx(0.01, rel=1e-3)


def test_signs_are_one_bit_with_a_scale():
    gradients = {"a": torch.tensor([2.0, -1.0, 0.0, 0.0, 5.0]), "b": torch.tensor([[-4.0]])}
    signs = protect(SignCompression(), gradients)
    assert signs["a"][[0, 1, 4]].tolist() == [1, -1, 1] and set(signs["a"].abs().tolist()) == {1.0}
    many = protect(SignCompression(), {"a": torch.zeros(10_000)})["a"]
    assert abs(many.mean()) < 0.05 and (many.abs() == 1).all()
    kept = protect(SignCompression(zeros="kept"), gradients)
    assert kept["a"].tolist() == [1, -1, 0, 0, 1]
    scaled = protect(SignCompression("mean_abs", "kept"), gradients)
    assert scaled["a"].tolist() == pytest.approx([1.6, -1.6, 0, 0, 1.6]) and scaled["b"].tolist() == [[-4.0]]


@pytest.mark.parametrize("scale", ["one", "mean_abs"])
def test_the_informed_attacker_asks_for_the_side_of_zero_alone(scale):
    defense = SignCompression(scale)
    update, hidden = shared(defense)
    reading = defense.counter(nn.Identity(), update)
    truth = {name: g * g.new_tensor(1e-3) for name, g in hidden.items()}
    assert cost(reading, hidden) == cost(reading, truth) == cost(reading, {n: g.sign() for n, g in hidden.items()}) == 0
    one = {name: g.clone() for name, g in hidden.items()}
    one["head.weight"][0, 0, 0] *= -2
    level = one["head.weight"][0, 0, 0] / one["head.weight"][0].square().mean().sqrt()
    scale = update.gradients["head.weight"][0].abs().max()
    assert cost(reading, one) == pytest.approx(float(level * scale) ** 2, rel=1e-4)


def test_a_composition_hands_every_step_to_the_attacker():
    defense = Compose([Clipping(0.5), Rescale(3.0)])
    update, hidden = shared(defense)
    seen = defense.counter(nn.Identity(), update).as_shared(hidden, torch.arange(3))
    for name, g in update.gradients.items():
        torch.testing.assert_close(seen[name], g)


def test_selecting_trials_of_a_reading_selects_its_bounds():
    update, hidden = shared(DualPruning(0.1, 0.5))
    reading = DualPruning(0.1, 0.5).counter(nn.Identity(), update)
    other = {name: g.roll(1, 0) for name, g in hidden.items()}
    whole = sum(per_parameter(other, reading, torch.arange(3)).values())
    part = reading.select(torch.tensor([2, 0]))
    picked = {name: g[[2, 0]] for name, g in other.items()}
    torch.testing.assert_close(sum(per_parameter(picked, part, torch.arange(2)).values()), whole[[2, 0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DualPruning(1.0, 0.0), r"drop_top must lie in \[0, 1\), got 1.0"),
        (lambda: DualPruning(0.5, -0.1), r"drop_bottom must lie in \[0, 1\), got -0.1"),
        (lambda: DualPruning(0.5, 0.5), "drop_top=0.5 and drop_bottom=0.5 leave nothing"),
        (lambda: SignCompression("rms"), "scale must be one of 'one', 'mean_abs', got 'rms'"),
        (lambda: SignCompression(zeros="up"), "zeros must be one of 'random', 'kept', got 'up'"),
    ],
)
def test_bad_settings_of_the_newer_defenses_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
