"""Label rules: exact where algebra says so, undecided or refused where they cannot know."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from reprolib import models
from reprolib.attacks import labels
from reprolib.experiments.measures import idlg as measures
from reprolib.federated.client import LocalTraining, share

NETS, CLASSES = 1000, 10


def lenet(num_classes: int = CLASSES) -> nn.Module:
    """DLG's network on images so small that a thousand of them take a second."""
    return models.build("lenet", num_classes, (1, 12, 12), seed=0)


def uniform(*shape: int, numbers: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=numbers) - 0.5


def head_gradients(num_classes: int = CLASSES, batch: int = 1, nets: int = NETS, shift: float = 0.0, distinct=False):
    """Gradients of the head for `nets` drawn networks and batches: weight [T,K,F], bias [T,K], features, labels [T,B].

    shift: subtracted from the features, in units of their mean, so that their sum turns negative above 1.
    """
    backbone, numbers = lenet(num_classes), torch.Generator().manual_seed(0)
    head = (uniform(nets, *backbone.head.weight.shape, numbers=numbers), uniform(nets, num_classes, numbers=numbers))
    backbone.head = nn.Identity()
    body = {name: uniform(nets, *part.shape, numbers=numbers) for name, part in backbone.named_parameters()}
    images = torch.rand(nets, batch, 1, 12, 12, generator=numbers)
    if distinct:
        target = torch.rand(nets, num_classes, generator=numbers).argsort(1)[:, :batch]
    else:
        target = torch.randint(num_classes, (nets, batch), generator=numbers)

    def features(body, x):
        h = functional_call(backbone, body, (x,))
        return h - shift * h.mean(1, keepdim=True)

    h = vmap(features, chunk_size=250)(body, images)

    def loss(head, h, y):
        return F.cross_entropy(h @ head[0].T + head[1], y)

    weight, bias = vmap(grad(loss))(head, h, F.one_hot(target, num_classes) * 1.0)
    return weight, bias, h, target


@pytest.fixture(scope="module")
def single():
    return head_gradients()


def accuracy(found, target):
    return (found == target[:, 0]).float().mean().item()


@pytest.mark.parametrize("rule", labels.RULES)
def test_every_rule_finds_every_label_of_a_single_sample(single, rule):
    weight, bias, _, target = single
    assert accuracy(labels.infer(weight, bias, rule), target) == 1


def test_the_bias_gradient_sums_to_zero_with_one_negative_entry_at_the_label(single):
    _, bias, _, target = single
    assert bias.sum(1).abs().max() < 1e-6
    assert ((bias < 0).sum(1) == 1).all()
    assert torch.equal(bias.argmin(1), target[:, 0])


def test_row_sums_are_the_bias_gradient_times_the_sum_of_the_features(single):
    weight, bias, h, _ = single
    torch.testing.assert_close(weight.sum(2), bias * h.sum(2), rtol=1e-5, atol=1e-6)


def test_the_weight_gradient_has_rank_one(single):
    values = torch.linalg.svdvals(single[0][:100])
    assert (values[:, 1] / values[:, 0]).max() < 1e-5


def test_a_row_over_its_bias_gradient_is_the_input_of_the_head(single):
    weight, bias, h, _ = single
    largest = bias.abs().argmax(1)
    trial = torch.arange(NETS)
    torch.testing.assert_close(weight[trial, largest] / bias[trial, largest, None], h[:, 0], rtol=1e-5, atol=1e-6)


def test_features_with_a_negative_sum_break_the_row_sum_and_no_other_rule():
    weight, bias, _, target = head_gradients(shift=1.2)
    assert accuracy(labels.infer(weight, bias, "row_sum"), target) == 0
    for rule in ("bias", "pairwise", "norm"):
        assert accuracy(labels.infer(weight, bias, rule), target) == 1


def test_two_classes_are_undecidable_by_pairs_and_norms_alone():
    weight, bias, _, target = head_gradients(num_classes=2, nets=100)
    for rule in ("pairwise", "norm"):
        assert (labels.infer(weight, bias, rule) == -1).all()
    for rule in ("row_sum", "bias"):
        assert accuracy(labels.infer(weight, bias, rule), target) == 1


@pytest.mark.parametrize("rule", labels.RULES)
def test_a_positive_factor_changes_nothing(single, rule):
    weight, bias, _, _ = single
    for factor in (1e-3, 7.0):
        assert torch.equal(labels.infer(factor * weight, factor * bias, rule), labels.infer(weight, bias, rule))


@pytest.mark.parametrize("rule", labels.RULES)
def test_a_gradient_without_signal_is_undecided(rule):
    assert labels.infer(torch.zeros(2, 4, 3), torch.zeros(2, 4), rule).tolist() == [-1, -1]


def test_noise_and_pruned_rows_leave_pairs_undecided(single):
    weight, bias, _, _ = single
    noisy = weight + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert (labels.infer(noisy, bias, "pairwise") == -1).float().mean() > 0.5
    pruned = weight.clone()
    pruned[torch.arange(NETS), bias.abs().argmin(1)] = 0  # 0 <= 0 holds: the empty row satisfies the rule too
    assert (labels.infer(pruned, bias, "pairwise") == -1).all()


def victims(trials: int = 12):
    numbers = torch.Generator().manual_seed(3)
    images = torch.rand(trials, 1, 1, 12, 12, generator=numbers)
    return lenet(), images, torch.randint(CLASSES, (trials, 1), generator=numbers)


@pytest.mark.parametrize("rule", labels.RULES)
def test_from_update_reads_the_head_of_gradients_and_of_weight_differences(rule):
    model, images, target = victims()
    for local in (None, LocalTraining(1, 1, 0.1)):
        update = share(model, images, target, local=local)
        assert torch.equal(labels.from_update(update, rule), target[:, 0])


def test_a_weight_difference_misleads_without_conversion():
    model, images, target = victims()
    update = share(model, images, target, local=LocalTraining(1, 1, 0.1))
    raw = labels.infer(update.gradients["head.weight"], update.gradients["head.bias"], "row_sum")
    assert not (raw == target[:, 0]).any()


def histogram(target, num_classes=CLASSES):
    return F.one_hot(target, num_classes).sum(1)


@pytest.mark.parametrize("rule", labels.COUNT_RULES)
@pytest.mark.parametrize("batch", [1, 4, 10])
def test_counts_sum_to_the_batch_size(rule, batch):
    weight, bias, _, _ = head_gradients(batch=batch, nets=100, distinct=True)
    counts = labels.infer_counts(weight, bias, batch, rule)
    assert counts.shape == (100, CLASSES) and counts.dtype == torch.int64 and (counts >= 0).all()
    if rule == "bias_negative":
        assert (counts.sum(1) <= batch).all()
    else:
        assert (counts.sum(1) == batch).all()


@pytest.mark.parametrize("rule", ["wainakh", "bias_corrected"])
def test_counts_of_large_and_of_noisy_batches_still_sum(rule):
    weight, bias, _, _ = head_gradients(batch=32, nets=50)
    assert (labels.infer_counts(weight, bias, 32, rule).sum(1) == 32).all()
    noise = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(50, 10, 7, generator=noise), torch.randn(50, 10, generator=noise)
    for batch in (1, 3, 40):  # more negative entries than samples, and fewer
        assert (labels.infer_counts(weight, bias, batch, rule).sum(1) == batch).all()


@pytest.mark.parametrize("rule", labels.COUNT_RULES)
def test_a_batch_of_one_is_counted_exactly(single, rule):
    weight, bias, _, target = single
    assert torch.equal(labels.infer_counts(weight, bias, 1, rule), histogram(target))


def test_a_negative_bias_gradient_is_never_a_false_presence():
    weight, bias, _, target = head_gradients(batch=16, nets=200)
    negative = labels.infer_counts(weight, bias, 16, "bias_negative")
    assert (histogram(target)[negative == 1] > 0).all()


def test_repeated_labels_are_counted_by_the_greedy_rules():
    # p = 1/4 for each class and labels 0, 0, 1, 2: g = p - count / 4
    counts = torch.tensor([2, 1, 1, 0])
    bias = (0.25 - counts / 4)[None]
    weight = bias[:, :, None] * torch.ones(1, 1, 6)
    assert labels.infer_counts(weight, bias, 4, "bias_corrected").tolist()[0][0] >= 2
    assert labels.infer_counts(weight, bias, 4, "wainakh").sum() == 4


def test_greedy_rules_by_hand():
    def counted(rule, values, size):
        values = torch.tensor([values], dtype=torch.float64)
        return labels.infer_counts(values[:, :, None], values, size, rule)[0].tolist()

    # LLG: one label is worth (6 + 2.5) (1 + 1/3) / 2 = 5.67, which brings class 0 to -0.33, above class 1
    assert counted("wainakh", [-6.0, -2.5, 5.0], 2) == [1, 1, 0]
    # one label is worth (0.31 + 0.29) / 4 = 0.15: both classes once, then -0.16 and -0.14, then -0.01 and -0.14
    assert counted("bias_corrected", [-0.31, -0.29, 0.6], 4) == [2, 2, 0]
    assert counted("bias_corrected", [-0.45, -0.15, 0.6], 4) == [3, 1, 0]
    # 4 (1/3 - g) = 2.53, 1.93, -0.47: the class with the largest rest comes first
    assert counted("uniform", [-0.3, -0.15, 0.45], 4) == [2, 2, 0]


def test_the_chance_of_two_classes_is_a_gaussian_of_their_gap():
    scores, truth = torch.tensor([[0.0, 0.3], [0.2, -0.1], [0.5, 0.5]], dtype=torch.float64), torch.tensor([0, 0, 1])
    gap = torch.tensor([0.3, -0.3, 0.0], dtype=torch.float64)
    expected = torch.special.ndtr(gap / (2**0.5 * 0.25))  # the difference of two noises
    torch.testing.assert_close(labels.chance_under_noise(scores, truth, 0.25), expected, rtol=0, atol=1e-6)
    alike = torch.zeros(1, 7, dtype=torch.float64)  # of seven equal ones each is the lowest as often
    assert labels.chance_under_noise(alike, torch.tensor([3]), 1.0).item() == pytest.approx(1 / 7, abs=1e-6)


def test_unusable_arguments_are_refused():
    weight, bias = torch.ones(2, 4, 3), torch.ones(2, 4)
    with pytest.raises(ValueError, match="unknown rule 'sign': known rules are row_sum, bias, pairwise, norm"):
        labels.infer(weight, bias, "sign")
    with pytest.raises(ValueError, match="unknown rule 'row_sum': known rules are bias_negative, yin, yin_sum, wain"):
        labels.infer_counts(weight, bias, 2, "row_sum")
    with pytest.raises(ValueError, match="the rule 'bias' needs the bias gradient"):
        labels.infer(weight, None, "bias")
    for rule in ("bias_negative", "bias_corrected"):
        with pytest.raises(ValueError, match=f"the rule '{rule}' needs the bias gradient"):
            labels.infer_counts(weight, None, 2, rule)
    assert labels.infer(weight * torch.tensor([1.0, -1, 1, 1])[:, None], None).tolist() == [1, 1]
    with pytest.raises(
        ValueError, match=r"weight_gradient must have shape \[trials, classes, features\], got \[4, 3\]"
    ):
        labels.infer(weight[0], bias)
    with pytest.raises(ValueError, match=r"bias_gradient must have shape \[2, 4\], got \[2, 3\]"):
        labels.infer(weight, bias[:, :3])
    with pytest.raises(ValueError, match="weight_gradient has a NaN or infinite entry"):
        labels.infer(weight * float("nan"), bias)
    with pytest.raises(ValueError, match="bias_gradient has a NaN or infinite entry"):
        labels.infer_counts(weight, bias * float("inf"), 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        labels.infer_counts(weight, bias, 0)
    with pytest.raises(ValueError, match="'yin' assumes distinct labels: batch_size 5 exceeds 4 classes"):
        labels.infer_counts(weight, bias, 5, "yin")


def test_a_batch_given_to_a_one_sample_rule_is_refused():
    model, images, target = victims()
    update = replace(share(model, images, target), batch_size=4)
    with pytest.raises(
        ValueError, match="reads the label of one sample, but the update has batch_size 4: use labels.inf"
    ):
        labels.from_update(update)


def test_the_ceiling_of_distinct_labels_is_the_expected_number_of_classes():
    assert labels.distinct_ceiling(10, 1) == pytest.approx(1)
    for classes, size, least in ((10, 8, 0.712), (10, 48, 0.207), (100, 8, 0.966), (1000, 48, 0.977)):
        assert labels.distinct_ceiling(classes, size) == pytest.approx(least, abs=6e-4)
    draws = torch.randint(10, (20_000, 8), generator=torch.Generator().manual_seed(0))
    found = torch.nn.functional.one_hot(draws, 10).amax(1).sum(1).double().mean() / 8
    assert found.item() == pytest.approx(labels.distinct_ceiling(10, 8), abs=3e-3)


def test_labels_of_a_batch_count_from_blind_naming_to_all():
    blind = 1 - (1 - 1 / 100) ** 8  # of 8 labels of 100 classes, by naming 8 different ones
    for right, restored in (([1.0, 1.0], 1), ([blind, blind], 0), ([blind, 1.0], 0.5)):
        counted = pd.DataFrame({"batch": 8, "rule": "bias_corrected", "right": right})
        found = measures.batch_labels(counted, 100)["batch_labels_8"]
        assert found.interval.value == pytest.approx(restored, abs=1e-12) and found.images == 16
