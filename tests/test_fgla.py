"""FGLA: the closed form of the separation, what compression and repeated labels do to it, and the decoder behind it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reprolib import client, labels, metrics, models
from reprolib.attacks.fgla import head_gradients, refine, separate
from reprolib.client import ThreatModel, generator
from reprolib.defenses import TopK

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


def test_no_offset_is_taken_from_a_bias_whose_rows_were_emptied():
    f, given, weight, bias = synthetic(100, 400, 64)
    rows, entries = head_gradients(f, given, 0 * weight, 0 * bias)
    absent = torch.ones(100, dtype=torch.bool)
    absent[given[0]] = False
    rows[0, absent] = 0
    found = separate(rows, entries, given, "full").features
    assert torch.equal(found, separate(rows, entries, given, "none").features)


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
