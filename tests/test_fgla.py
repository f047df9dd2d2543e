"""FGLA: the closed form of the separation, what compression and repeated labels do to it, and the decoder behind it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reprolib import attacks, data, experiments, models
from reprolib.attacks import labels
from reprolib.attacks.fgla import head_gradients, refine, separate
from reprolib.defenses import Clipping, TopK
from reprolib.experiments import generators
from reprolib.federated import client
from reprolib.federated.client import LocalTraining
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.measure import metrics

KNOWN = ThreatModel(labels="known")
KAPPAS = ("none", "official", "full")


def synthetic(
    classes: int, width: int, size: int, seed: int = 0, head: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ReLU features [1, B, F] with a common mean, distinct labels [1, B], and a default head (weight, bias)."""
    random = torch.Generator().manual_seed(seed)
    mean = torch.randn(width, generator=random, dtype=dtype)
    features = (mean + torch.randn(1, size, width, generator=random, dtype=dtype)).relu()
    bound = head / math.sqrt(width)
    weight, bias = (
        bound * (2 * torch.rand(*shape, generator=random, dtype=dtype) - 1) for shape in ((classes, width), (classes,))
    )
    given = torch.randperm(classes, generator=random)[None, :size]
    return features, given, weight, bias


def far(found: Tensor, truth: Tensor) -> float:
    """Largest relative error of a feature vector."""
    return ((found - truth).norm(dim=-1) / truth.norm(dim=-1)).max().item()


def loop(weight_gradient: Tensor, bias_gradient: Tensor, given: Tensor, kappa: float) -> Tensor:
    """The paper's formula image by image, written out."""
    found = torch.zeros(*given.shape, weight_gradient.shape[2], dtype=weight_gradient.dtype)
    for t in range(len(given)):
        absent = [c for c in range(weight_gradient.shape[1]) if c not in given[t].tolist()]
        off_weight = kappa * torch.stack([weight_gradient[t, c] for c in absent]).mean(0)
        off_bias = kappa * torch.stack([bias_gradient[t, c] for c in absent]).mean()
        for k, label in enumerate(given[t].tolist()):
            found[t, k] = (weight_gradient[t, label] - off_weight) / (bias_gradient[t, label] - off_bias)
    return found


def test_the_closed_form_is_the_gradient_of_the_head():
    model = models.build("lenet", 10, (3, 32, 32), seed=0).double()
    x = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = torch.tensor([[3, 1, 4, 0], [5, 5, 2, 6]])
    shared = client.share(model, x, given).gradients
    features = models.penultimate(model, x.flatten(0, 1)).view(2, 4, -1)
    assert shared["head.weight"].shape == (2, 10, 768) and shared["head.bias"].shape == (2, 10)
    found = head_gradients(features, given, model.head.weight.detach(), model.head.bias.detach())
    torch.testing.assert_close(found[0], shared["head.weight"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], shared["head.bias"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_single_image_comes_out_exactly_of_any_head(dtype, within):
    features, given, weight, bias = synthetic(10, 64, 1, head=20.0, dtype=dtype)
    rows, entries = head_gradients(features, given, weight, bias)
    for offset in ("none", "official"):
        assert far(separate(rows, entries, given, offset).features, features) < within
    assert far(rows[0, 7] / entries[0, 7], features[0, 0]) < within


@pytest.mark.parametrize("size", [2, 8, 19])
def test_a_zero_head_has_exact_formulas(size):
    classes = 20
    f, given, weight, bias = synthetic(classes, 64, size)
    rows, entries = head_gradients(f, given, 0 * weight, 0 * bias)
    found = {offset: separate(rows, entries, given, offset).features for offset in KAPPAS}
    assert far(found["full"], f) < 1e-10
    assert far(found["official"], (classes * f - f.mean(1, keepdim=True)) / (classes - 1)) < 1e-10
    others = f.sum(1, keepdim=True) - f
    assert far(found["none"], ((classes - 1) * f - others) / (classes - size)) < 1e-10


@pytest.mark.parametrize("head", [1.0, 10.0])
@pytest.mark.parametrize("offset", KAPPAS)
def test_every_head_gives_the_mixture_of_the_identity(offset, head):
    f, given, weight, bias = synthetic(30, 64, 8, head=head)
    found = separate(*head_gradients(f, given, weight, bias), given, offset).features
    kappa = {"none": 0.0, "official": 7 / 8, "full": 1.0}[offset]
    p = (f @ weight.T + bias).softmax(2)[0]
    absent = [c for c in range(30) if c not in given[0].tolist()]
    mean = p[:, absent].mean(1)
    shares = kappa * mean - p[:, given[0]].T  # [k, i]
    shares.diagonal().copy_(1 - p[range(8), given[0]] + kappa * mean)
    assert far(found, (shares @ f[0] / shares.sum(1, keepdim=True))[None]) < 1e-9


def test_scale_and_order_change_nothing():
    f, given, weight, bias = synthetic(30, 64, 8)
    rows, entries = head_gradients(f, given, weight, bias)
    found = separate(rows, entries, given).features
    assert far(separate(1e-3 * rows, 1e-3 * entries, given).features, found) < 1e-10
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert far(separate(rows[:, order.argsort()], entries[:, order.argsort()], order[given]).features, found) < 1e-10
    assert torch.equal(separate(rows, entries, given.flip(1)).features, found.flip(1))


def test_repeated_labels_blend_into_the_mean_of_their_class():
    f, _, weight, bias = synthetic(10, 64, 6)
    given = torch.tensor([[3, 3, 3, 8, 8, 1]])
    rows, entries = head_gradients(f, given, 0 * weight, 0 * bias)
    found = separate(rows, entries, given, "full").features
    means = torch.stack([f[0, given[0] == label].mean(0) for label in given[0]])
    assert far(found[0], means) < 1e-10
    imputed = separate(rows, None, given, "full", impute_bias=True).features
    assert far(imputed[0], means) < 1e-10, "-n/B takes the place of the bias, n images a class"
    counts = torch.nn.functional.one_hot(given, 10).sum(1)
    torch.testing.assert_close(6 * (1 / 10 - entries), counts.double(), rtol=0, atol=1e-10)
    assert torch.equal(labels.infer_counts(rows, entries, 6, "uniform"), counts)


def test_label_rules_on_untrained_heads():
    for seed in range(10):
        f, given, weight, bias = synthetic(1000, 500, 32, seed)
        rows, entries = head_gradients(f, given, weight, bias)
        assert torch.equal(
            labels.infer_counts(rows, entries, 32, "bias_negative")[0].nonzero()[:, 0], given[0].sort()[0]
        )
        for head in (1.0, 30.0):
            f, given, weight, bias = synthetic(20, 64, 8, seed, head)
            negative = head_gradients(f, given, weight, bias)[1][0] < 0
            assert set(negative.nonzero()[:, 0].tolist()) <= set(given[0].tolist())
        for classes, size, width in ((10, 8, 256), (100, 32, 4096)):
            f, given, weight, bias = synthetic(classes, width, size, seed)
            counts = labels.infer_counts(*head_gradients(f, given, weight, bias), size, "yin")
            assert counts[0].nonzero()[:, 0].tolist() == given[0].sort()[0].tolist()


@pytest.mark.parametrize("kappa", [0.0, 7 / 8, 1.0])
def test_the_separation_is_the_loop(kappa):
    draws = [synthetic(20, 64, 8, seed) for seed in range(3)]
    parts = [head_gradients(*draw) for draw in draws]
    rows, entries = (torch.cat(part) for part in zip(*parts, strict=True))
    given = torch.cat([draw[1] for draw in draws])
    offset = dict(zip((0.0, 7 / 8, 1.0), KAPPAS, strict=True))[kappa]
    found = separate(rows, entries, given, offset)
    torch.testing.assert_close(found.features, loop(rows, entries, given, kappa), rtol=1e-12, atol=1e-12)
    assert not found.lost.any()
    for t in range(3):
        alone = separate(rows[t : t + 1], entries[t : t + 1], given[t : t + 1], offset).features
        torch.testing.assert_close(alone[0], found.features[t], rtol=1e-12, atol=1e-12)


def test_a_batch_of_all_classes_has_no_offset():
    f, given, weight, bias = synthetic(8, 64, 8)
    rows, entries = head_gradients(f, given, weight, bias)
    with pytest.raises(ValueError, match="every class is present in trial 0: no absent row.*use missing_offset='none'"):
        separate(rows, entries, given)
    without = separate(rows, entries, given, missing_offset="none").features
    assert torch.equal(without, separate(rows, entries, given, "none").features)
    mixed = torch.cat([given, torch.zeros_like(given)])
    both = separate(rows.repeat(2, 1, 1), entries.repeat(2, 1), mixed, missing_offset="none").features
    assert torch.equal(both[:1], without), "the other trial keeps its offset"


def pruned(rows: Tensor, entries: Tensor, kept: float, scope: str) -> tuple[Tensor, Tensor]:
    """What top-k keeps of one trial's head gradient."""
    gradients = {"head.weight": rows[0], "head.bias": entries[0]}
    protected = TopK(1 - kept, scope).protect(gradients, None, None, None, generator(0, 0))
    return protected["head.weight"][None], protected["head.bias"][None]


def test_per_tensor_compression_loses_a_batch_at_its_share_of_the_classes():
    for seed in range(20):
        f, given, weight, bias = synthetic(1000, 200, 8, seed)
        gradient = head_gradients(f, given, weight, bias)
        for kept, gone in ((0.008, 0), (0.007, 1), (0.004, 4)):
            found = separate(*pruned(*gradient, kept, "tensor"), given)
            assert found.lost.sum() == gone and found.features.isfinite().all()
            assert (found.features[found.lost] == 0).all()
            imputed = separate(*pruned(*gradient, kept, "tensor"), given, impute_bias=True)
            assert not imputed.lost.any()
            whole = separate(*pruned(*gradient, kept, "weights"), given)
            assert not whole.lost.any() and far(imputed.features, whole.features) < 0.02


def test_rows_that_compression_emptied_are_counted():
    f, given, weight, bias = synthetic(50, 64, 4)
    rows, entries = head_gradients(f, given, weight, bias)
    rows[0, given[0, 2]] = 0
    found = separate(rows, entries, given, impute_bias=True)
    assert found.lost.tolist() == [[False, False, True, False]] and (found.features[0, 2] == 0).all()
    nothing = separate(0 * rows, 0 * entries, given, impute_bias=True)
    assert nothing.lost.all() and (nothing.features == 0).all()


def test_an_image_without_its_bias_entry_is_lost_whatever_the_offset_leaves_of_it():
    f, given, weight, bias = synthetic(50, 64, 4)
    rows, entries = head_gradients(f + 1, given, weight, bias)  # no feature is dead
    entries[0, given[0, 1]] = 0
    for offset in KAPPAS:
        found = separate(rows, entries, given, offset)
        assert found.lost.tolist() == [[False, True, False, False]] and not found.features[0, 1].any()


def test_a_feature_emptied_in_all_absent_rows_takes_no_offset_of_the_bias_either():
    f, given, weight, bias = synthetic(100, 400, 64)
    rows, entries = head_gradients(f, given, 0 * weight, 0 * bias)
    absent = torch.ones(100, dtype=torch.bool)
    absent[given[0]] = False
    whole = separate(rows, entries, given, "full").features
    rows[0, absent, :300] = 0
    found = separate(rows, entries, given, "full").features
    assert torch.equal(found[:, :, :300], separate(rows, entries, given, "none").features[:, :, :300])
    assert torch.equal(found[:, :, 300:], whole[:, :, 300:])


@pytest.mark.parametrize("scope", ["tensor", "weights", "global"])
def test_top_k_keeps_exactly_its_share_and_is_idempotent(scope):
    random = torch.Generator().manual_seed(0)
    gradients = {"w": torch.randn(40, 25, generator=random), "b": torch.randn(40, generator=random)}

    def protect(kept: float, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return TopK(1 - kept, scope).protect(gradients, None, None, None, generator(0, 0))

    assert all(torch.equal(protect(1.0, gradients)[name], g) for name, g in gradients.items())
    once = protect(0.1, gradients)
    kept = {name: int((g != 0).sum()) for name, g in once.items()}
    assert sum(kept.values()) == {"tensor": 104, "weights": 140, "global": 104}[scope]
    assert scope == "global" or kept["b"] == {"tensor": 4, "weights": 40}[scope]
    assert all(torch.equal(protect(0.1, once)[name], g) for name, g in once.items())


def test_refining_an_untrained_head_is_exact():
    for seed in range(3):
        f, given, weight, bias = synthetic(100, 2048, 32, seed)
        rows, entries = head_gradients(f, given, weight, bias)
        start = separate(rows, entries, given, "full").features
        found, residual = refine(start, rows, given, weight, bias, 20)
        assert (found - f).abs().max() < 1e-10 and residual < 1e-12
        assert far(start, f) > 1e-2


def test_refining_never_ends_worse_than_it_began():
    for head in (1.0, 50.0):
        f, given, weight, bias = synthetic(20, 64, 8, head=head)
        rows, entries = head_gradients(f, given, weight, bias)
        start = separate(rows, entries, given, "full").features
        before = refine(start, rows, given, weight, bias, 0)
        after = refine(start, rows, given, weight, bias, 20)
        assert torch.equal(before[0], start) and after[1] <= before[1]
        expected = (rows - head_gradients(after[0], given, weight, bias)[0]).norm() / rows.norm()
        torch.testing.assert_close(after[1][0], expected)


def test_clipping_and_smoothing_change_nothing_and_noise_grows_with_the_batch():
    f, given, weight, bias = synthetic(100, 500, 8)
    for smoothing in (0.1, 0.3):  # of a zero head: the targets' constant cancels against the offset
        errors = (1 / 100 - (1 - smoothing) * torch.nn.functional.one_hot(given, 100).double() - smoothing / 100) / 8
        assert far(separate(errors.mT @ f, errors.sum(1), given, "full").features, f) < 1e-10
    error = {}
    for size in (8, 64):
        f, given, weight, bias = synthetic(100, 500, size)
        rows, entries = head_gradients(f, given, 0 * weight, 0 * bias)
        noise = 1e-2 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0), dtype=rows.dtype)
        found = (
            separate(rows + noise, entries, given, "full").features - separate(rows, entries, given, "full").features
        )
        error[size] = found.norm(dim=2).mean().item()
    assert 7.5 < error[64] / error[8] < 8.5


def test_psnr_over_the_batch_axis_is_never_below_the_true_one():
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(8, 3, 16, 16, generator=random)
    for spread in (0.0, 0.05):
        found = (truth + spread * torch.randn(truth.shape, generator=random)).clamp(0, 1)
        found[0] = (truth[0] + 0.2).clamp(0, 1)
        whole = -10 * math.log10((found - truth).square().mean())
        assert metrics.psnr_dim0(found, truth) >= whole
    half = torch.full_like(truth, 0.4)
    assert metrics.psnr_dim0(half + 0.1, half) == pytest.approx(20, abs=1e-4)
    assert metrics.psnr_dim0(truth, truth) == math.inf


# --- the attack with its decoder


@pytest.fixture(scope="module")
def small() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A victim for 16 x 16 pixels, 20 classes, and an untrained decoder of its trunk."""
    victim = models.build("convnet8", 20, (3, 16, 16), seed=0, width=4)
    trunk = models.trunk_fingerprint(victim)
    return victim, decoder(trunk=trunk)


def decoder(channels: int = 16, trunk: str = "", **options) -> torch.nn.Module:
    sizes = {"size": 4, "widths": (8, 8)} | options
    return models.build_generator("decoder", (3, 16, 16), seed=1, channels=channels, trunk=trunk, **sizes)


def batch(size: int, trials: int = 2, classes: int = 20) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(trials, size, 3, 16, 16, generator=random)
    return x, torch.stack([torch.randperm(classes, generator=random)[:size] for _ in range(trials)])


def test_a_zero_head_decodes_like_the_true_features(small):
    victim, inverse = small
    victim = experiments.fresh_head(victim, 20, 0)
    torch.nn.init.zeros_(victim.head.weight)
    torch.nn.init.zeros_(victim.head.bias)
    x, y = batch(6)
    found = attacks.FGLA(inverse, offset="full")(victim, client.share(victim, x, y, threat=KNOWN))
    true = torch.stack([inverse(models.penultimate(victim, own)) for own in x])
    torch.testing.assert_close(found.raw, true, rtol=0, atol=1e-4)
    assert (found.objective < 1e-4).all() and not found.lost.any() and torch.equal(found.labels, y)


@pytest.mark.parametrize("rule", ["minimum", "sign", "count"])
def test_labels_are_inferred_where_the_update_has_none(small, rule):
    victim, inverse = small
    x, y = batch(4)
    attack = attacks.FGLA(inverse, labels=rule)
    blind, told = (attack(victim, client.share(victim, x, y, threat=threat)) for threat in (ThreatModel(), KNOWN))
    assert torch.equal(blind.labels, y.sort(dim=1).values)
    order = y.argsort(dim=1)
    torch.testing.assert_close(blind.raw, told.raw[torch.arange(2)[:, None], order], rtol=0, atol=1e-5)
    alone = attack(victim, client.share(victim, x[1:], y[1:]))
    torch.testing.assert_close(alone.raw[0], blind.raw[1], rtol=0, atol=1e-6)


def test_repeated_labels_are_said_to_blend(small):
    victim, inverse = small
    x, y = batch(4)
    y[1, 1] = y[1, 0]
    with pytest.warns(UserWarning, match="labels repeat in 1 of 2 batches: their images come out as one blend"):
        found = attacks.FGLA(inverse)(victim, client.share(victim, x, y, threat=KNOWN))
    assert torch.equal(found.raw[1, 0], found.raw[1, 1]) and not torch.equal(found.raw[0, 0], found.raw[0, 1])


def test_clipping_leaves_the_pictures_as_they_are(small):
    victim, inverse = small
    x, y = batch(4)
    plain, clipped = (
        attacks.FGLA(inverse)(victim, client.share(victim, x, y, threat=KNOWN, defense=d))
        for d in (None, Clipping(1e-3))
    )
    torch.testing.assert_close(plain.raw, clipped.raw, rtol=0, atol=1e-4)


def test_a_decoder_in_train_mode_sees_its_own_batch_alone(small):
    victim, inverse = small
    x, y = batch(4)
    before = models.fingerprint(inverse)
    attack = attacks.FGLA.official(inverse)
    both = attack(victim, client.share(victim, x, y, threat=replace(KNOWN, mode="train"))).raw
    alone = attack(victim, client.share(victim, x[1:], y[1:], threat=replace(KNOWN, mode="train"))).raw
    torch.testing.assert_close(both[1], alone[0], rtol=0, atol=1e-5)
    assert models.fingerprint(inverse) == before and not inverse.training
    evaluated = attacks.FGLA(inverse)(victim, client.share(victim, x, y, threat=KNOWN)).raw
    assert (both - evaluated).abs().max() > 1e-3


def test_the_preset_that_uses_all_it_knows(small):
    _, inverse = small
    attack = attacks.FGLA.self_consistent(inverse)
    assert (attack.offset, attack.refine_steps, attack.impute_bias) == ("full", 20, True)
    assert attacks.FGLA(inverse) == attacks.FGLA(inverse) and "decoder=" not in repr(attack)


def test_what_does_not_fit_is_refused(small):
    victim, inverse = small
    x, y = batch(4)
    update = client.share(victim, x, y, threat=KNOWN)
    trained = experiments.fresh_head(victim, 20, 0)
    with torch.no_grad():
        next(trained.parameters()).add_(1e-3)
    many = client.share(victim, *batch(8, classes=20), threat=ThreatModel())
    few = experiments.fresh_head(victim, 6, 0)
    full = client.share(few, x, torch.tensor([[0, 1, 2, 3], [4, 5, 0, 1]]), threat=KNOWN)
    assert attacks.FGLA(inverse)(few, full).raw.shape == x.shape
    steps = client.share(victim, x, y, threat=KNOWN, local=LocalTraining(2, 4, 0.1))
    no_bias = experiments.fresh_head(victim, 20, 0)
    no_bias.head = torch.nn.Linear(256, 20, bias=False)
    without = client.share(no_bias, x, y, threat=KNOWN)
    crowd = client.share(few, torch.rand(1, 8, 3, 16, 16), torch.arange(8)[None] % 6)
    several = models.Victims.of([victim, victim], update.trials)
    together = client.SharedUpdate.join([update, update], several)
    cases = [
        (inverse, trained, client.share(trained, x, y, threat=KNOWN), "was trained for the trunk .*, this model's is"),
        (decoder(channels=8), victim, update, "takes 128 features, the model's head has 256.*another width or pooling"),
        (inverse, victim, steps, "FGLA matches one gradient, but this update is the .* of 2 local steps"),
        (inverse, no_bias, without, "the head has no bias.*impute_bias=True takes -1/B instead"),
        (inverse, few, crowd, "batch_size 8 exceeds 6 classes"),
        (inverse, several, together, "a decoder belongs to one trunk, but these are several victims"),
        (inverse, victim, client.share(few, x, y % 6), "the update is not of this model"),
    ]
    for own, model, shared, message in cases:
        with pytest.raises(ValueError, match=message):
            attacks.FGLA(own)(model, shared)
    larger = models.build_generator("decoder", (3, 32, 32), 1, channels=16, size=4, widths=(8, 8, 8))
    with pytest.raises(ValueError, match=r"gives images of \(3, 32, 32\), the update's are \(3, 16, 16\)"):
        attacks.FGLA(larger)(victim, update)
    assert attacks.FGLA(inverse, impute_bias=True)(no_bias, without).raw.shape == x.shape
    assert attacks.FGLA(inverse)(victim, many).labels.shape == (2, 8)
    everyone = client.share(few, torch.rand(1, 6, 3, 16, 16), torch.arange(6)[None], threat=KNOWN)
    with pytest.raises(ValueError, match="every class is present in trial 0"):
        attacks.FGLA(inverse)(few, everyone)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: attacks.FGLA(d, offset="half"), "offset must be one of 'none', 'official', 'full', got 'half'"),
        (lambda d: attacks.FGLA(d, labels="sum"), "labels must be one of 'minimum', 'sign', 'count', got 'sum'"),
        (
            lambda d: attacks.FGLA(d, missing_offset="zero"),
            "missing_offset must be one of 'raise', 'none', got 'zero'",
        ),
        (
            lambda d: attacks.FGLA(d, decoder_mode="batch"),
            "decoder_mode must be one of 'eval', 'train', got 'batch'",
        ),
        (lambda d: attacks.FGLA(d, refine_steps=-1), "refine_steps must be a whole number >= 0, got -1"),
        (
            lambda d: separate(torch.zeros(2, 3), None, torch.zeros(2, 1)),
            r"weight_gradient must have shape \[trials, cl",
        ),
        (
            lambda d: separate(torch.zeros(1, 3, 2), torch.zeros(1, 2), torch.zeros(1, 1).long()),
            r"bias_gradient must have shape \[1, 3\], got \[1, 2\]",
        ),
        (
            lambda d: separate(torch.zeros(1, 3, 2), torch.zeros(1, 3), torch.tensor([[3]])),
            r"labels must lie in 0..2 for this head, got \[\[3\]\]",
        ),
        (
            lambda d: separate(torch.zeros(1, 3, 2), torch.zeros(1, 3), torch.zeros(2, 1)),
            r"labels must be int64 of shape \[1, batch\], got torch.float32 \[2, 1\]",
        ),
    ],
)
def test_bad_settings_are_refused(small, make, message):
    with pytest.raises(ValueError, match=message):
        make(small[1])


def test_the_published_sizes():
    with torch.device("meta"):
        inverse = models.GENERATORS["decoder"](
            (3, 224, 224), channels=2048, size=7, widths=(1024, 512, 256, 128, 64), blocks=3
        )
        larger = models.GENERATORS["decoder"](
            (3, 256, 256), channels=2048, size=8, widths=(1024, 512, 256, 128, 64), blocks=3
        )
        victim = models.ARCHITECTURES["imagenet-resnet50"](1000, (3, 224, 224), torch.nn.Identity(), pooled=False)
        assert inverse(torch.empty(2, 100352)).shape == (2, 3, 224, 224)
        assert larger(torch.empty(2, 131072)).shape == (2, 3, 256, 256)
    assert sum(p.numel() for p in inverse.parameters()) == 100_590_979
    assert sum(p.numel() for p in victim.parameters()) == 123_861_032
    kinds = [type(module).__name__ for module in inverse.modules()]
    assert kinds.count("ConvTranspose2d") == 5 and kinds.count("BatchNorm2d") == 2 * 15
    shown = decoder()(torch.randn(2, 256))
    assert shown.min() > 0 and shown.max() < 1


def test_a_decoder_learns_eight_images_by_heart(small):
    victim, _ = small
    photos = data.load("photos", count=8)
    tiles = replace(photos, images=F.avg_pool2d(photos.images, 2))
    recipe = generators.DecoderRecipe(
        150, decoder={"channels": 16, "size": 4, "widths": (16, 16)}, batch_size=8, learning_rate=1e-2
    )
    found = generators.fit_decoder(recipe, victim, tiles)(models.penultimate(victim, tiles.images))
    assert metrics.psnr(found, tiles.images).mean() > 25


# --- the experiments


def test_samplers():
    photos = data.load("photos", count=200)
    x, y = experiments.draw(photos, 4, 3, "relabel", 1000, 0)
    assert (
        x.shape == (3, 4, 3, 32, 32) and all(len(set(own.tolist())) == 4 for own in y) and y.max() > photos.num_classes
    )
    _, y = experiments.draw(photos, 4, 3, "distinct", 10, 0)
    assert all(len(set(own.tolist())) == 4 for own in y)
    natural, own = experiments.draw(photos, 40, 1, "natural", 10, 0)
    assert natural.shape[1] == 40 and len(set(own[0].tolist())) < 40
    with pytest.raises(ValueError, match="sampler='all' is unknown; use 'distinct', 'relabel' or 'natural'"):
        experiments.draw(photos, 4, 1, "all", 10, 0)
    with pytest.raises(ValueError, match="8 images cannot have different labels among 4 classes"):
        experiments.draw(photos, 8, 1, "relabel", 4, 0)


def test_experiments_bound_the_attack_by_its_references(small):
    victim, inverse = small
    photos = data.load("photos", count=64)
    tiles = replace(photos, images=F.avg_pool2d(photos.images, 2))
    batches = experiments.Batches(tiles, 4, 3, "relabel", victim.num_classes, 0)
    x, y = batches.drawn(range(3))
    forms = {"FGLA": attacks.FGLA(inverse), "half": attacks.FGLA(inverse, offset="none")}
    found = experiments.decoded(victim, forms, batches, tiles, 0, range(3))
    scores = found["scores"]
    assert scores.groupby("attack").size().to_dict() == {"FGLA": 12, "half": 12, "mean image": 12, "oracle": 12}
    order = y.argsort(dim=1)
    truth = torch.stack([inverse(models.penultimate(victim, own)) for own in x])
    expected = metrics.psnr(truth.flatten(0, 1), x.flatten(0, 1)).view(3, 4).gather(1, order).flatten()
    assert scores[scores.attack == "oracle"].psnr.to_numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    lossy = experiments.compared(victim, forms, batches, 0, range(3), KNOWN, TopK(0.9))["scores"]
    assert lossy.lost.mean() == 0.5, "of 20 bias entries two are kept, of four images two are there"
    assert (scores.psnr_dim0 >= scores.psnr_whole).all()


def test_separation_experiments(small):
    trunk, photos = small[0], data.load("photos", count=64)
    tiles = replace(photos, images=F.avg_pool2d(photos.images, 2))
    rows = experiments.separation_errors(trunk, tiles, [(10, 4), (50, 8)], 2, 0, 5)
    means = rows.groupby("offset").error.mean()
    assert means["self-consistent"] < means["full"] < means["none"] and len(rows) == 2 * 2 * 4
    smooth = experiments.separation_errors(trunk, tiles, [(50, 8)], 1, 0, 0, smoothing=0.1)
    assert smooth.groupby("offset").error.mean()["full"] < 0.05
    assert experiments.separation_errors(trunk, tiles, [(50, 8)], 1, 0, 0, with_bias=False).error.max() < 0.5
    noisy = experiments.separation_errors(trunk, tiles, [(50, 8)], 1, 0, 0, noise=0.1)
    assert noisy.error.min() > 10 * rows[rows.classes == 50].error.max()
    right = experiments.restored_labels(trunk, tiles, [(10, 4)], 3, 0)
    assert (right[right.rule == "minimum"].right == 1).all() and set(right.rule) == {"minimum", "sign", "count"}
    trained = experiments.heads_in_training(trunk, tiles, tiles, (0, 5), 4, 2, 0, 2)
    assert trained.groupby("steps").size().tolist() == [8, 8]
    speed = experiments.speed(trunk, attacks.FGLA(small[1]), tiles, (2,), 1, 0)
    assert set(speed.stage) == {"separation", "decoder"} and (speed.seconds > 0).all()


def test_blends(small):
    victim, inverse = small
    photos = data.load("photos", count=64)
    tiles = replace(photos, images=F.avg_pool2d(photos.images, 2))
    with pytest.warns(UserWarning, match="labels repeat"):
        found = experiments.blends(victim, attacks.FGLA(inverse, offset="full"), tiles, 4, 3, 0)
    assert found["rows"].blended.all() and found["found"].shape == (3, 3, 16, 16)
    with pytest.warns(UserWarning, match="labels repeat"):
        rows = experiments.natural(
            experiments.fresh_head(victim, photos.num_classes, 0), attacks.FGLA(inverse), tiles, 8, 2, 0
        )
    assert len(rows) == 16 and rows.repeated.any()
