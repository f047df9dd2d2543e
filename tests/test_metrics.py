import math
from dataclasses import dataclass

import pandas as pd
import pytest
import torch

from reprolib import data
from reprolib.experiments import training
from reprolib.measure import intervals, metrics


@dataclass
class Outcome:
    """What `score` reads of a Reconstruction."""

    raw: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self):
        trials = len(self.raw)
        self.objective = torch.arange(trials, dtype=torch.float32)
        self.evaluations = torch.full((trials,), 40)
        self.diverged = torch.zeros(trials, dtype=torch.bool)
        self.lost = None


@dataclass
class Auxiliary:
    images: torch.Tensor


@pytest.fixture
def images():
    return torch.rand(4, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# --- images


def test_mse_is_of_raw_pixels_and_broken_images_count_as_infinite():
    truth = torch.zeros(4, 1, 8, 8)
    guess = torch.stack([truth[0], truth[0] + 2, truth[0] + torch.nan, truth[0] + 1e30])
    assert metrics.mse(guess, truth).tolist()[:3] == [0.0, 4.0, math.inf]
    assert metrics.mse(guess, truth)[3] == pytest.approx(1e60)  # beyond float32: computed in double


def test_psnr_and_its_cap():
    truth = torch.full((2, 1, 8, 8), 0.5)
    guess = truth.clone()
    guess[1] += 0.1
    assert metrics.psnr(guess, truth).tolist() == pytest.approx([60.0, 20.0], abs=1e-3)


def test_psnr_of_normalised_images_is_another_number():
    """The trap: without the factor of the deviation the same errors score 12 dB less."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(8, 3, 32, 32, generator=generator)
    guess = truth + 0.01 * torch.randn(truth.shape, generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in training.CIFAR10)
    pixels = -10 * torch.log10(metrics.mse(guess, truth)).mean()
    normalised = -10 * torch.log10(metrics.mse((guess - mean) / std, (truth - mean) / std)).mean()
    assert pixels - normalised == pytest.approx(12.02, abs=0.1)


def test_the_grey_baseline_is_the_psnr_of_a_half():
    photos = data.load("photos")
    rows = metrics.baselines(photos.images[:100], photos).set_index("baseline")
    squares = ((photos.images[:100].double() - 0.5) ** 2).flatten(1).mean(1)
    assert rows.psnr["constant grey"] == pytest.approx((-10 * squares.log10()).mean().item(), abs=0.01)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 5, 5)])
def test_ssim_is_one_for_equal_images_and_falls_with_noise(shape):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(5, *shape, generator=generator)
    noise = torch.randn(truth.shape, generator=generator)
    assert metrics.ssim(truth, truth).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    little, much = metrics.ssim(truth + 0.1 * noise, truth), metrics.ssim(truth + noise, truth)
    assert little.shape == (5,) and (little > much).all() and (little < 1).all()


def test_ssim_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    truth = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    guess = (truth + 0.1).clamp(0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "full": True}
    _, reference = structural_similarity(truth[0, 0].numpy(), guess[0, 0].numpy(), **options)
    assert metrics.ssim(guess, truth).item() == pytest.approx(reference.mean(), abs=5e-3)  # borders differ a little


def test_a_permuted_batch_is_matched_exactly(images):
    order = torch.tensor([2, 0, 1])
    assignment = metrics.match_batches(images[:, order], images)
    assert assignment.tolist() == [order.argsort().tolist()] * 4
    table = metrics.score(Outcome(images[:, order], torch.tensor([[7, 8, 9]] * 4)[:, order]), images, labels=_labels())
    assert (table["mse"] == 0).all() and table["label_correct"].all() and (table["psnr"] == 60).all()


def test_the_matching_does_not_depend_on_the_order_of_the_truth(images):
    raw = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([1, 2, 0])
    straight, turned = metrics.match_batches(raw, images), metrics.match_batches(raw, images[:, order])
    assert torch.equal(straight[:, order], turned)


def test_a_diverged_image_does_not_disturb_the_matching_of_the_others(images):
    raw = images[:, [1, 0, 2]].clone()
    raw[:, 0] = 1e16 * torch.randn(raw[:, 0].shape, generator=torch.Generator().manual_seed(1))
    raw[0, 0] = torch.nan
    assert metrics.match_batches(raw, images).tolist() == [[1, 0, 2]] * 4


def _labels():
    return torch.tensor([[7, 8, 9]] * 4)


def test_score_has_a_row_an_image(images):
    raw = images.clone()
    raw[1] += 3.0
    raw[2, 0, 0, 0, 0] = torch.inf
    labels = _labels().clone()
    labels[3, 2] = -1
    table = metrics.score(Outcome(raw, labels), images, _labels())
    assert len(table) == 12 and table["trial"].tolist() == [t for t in range(4) for _ in range(3)]
    assert table["image"].tolist() == [0, 1, 2] * 4
    assert table.query("trial == 1")["mse"].tolist() == pytest.approx([9.0] * 3, rel=1e-5)
    assert (table.query("trial == 1")["mse_clamped"] < 1).all()
    assert table.query("trial == 2")["mse"].tolist().count(math.inf) == 1
    assert table[["mse_clamped", "psnr", "ssim"]].notna().all().all()
    assert table["label_correct"].tolist() == [True] * 11 + [False]
    assert table.query("trial == 3")["objective"].tolist() == [3.0] * 3 and (table["evaluations"] == 40).all()
    assert "rank" not in table


def test_what_is_said_of_an_image_goes_with_it(images):
    order = torch.tensor([2, 0, 1])
    outcome = Outcome(images[:, order], _labels()[:, order])
    outcome.lost = torch.tensor([[True, False, False]] * 4)  # of the first one found, which is the last true one
    table = metrics.score(outcome, images, _labels())
    assert table["lost"].tolist() == [False, False, True] * 4 and table["label_correct"].all()


def test_identification_in_a_pool(images):
    pool = torch.rand(99, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    raw = images.clone()
    raw[0] = 0.5  # grey is closer to other images than a noisy truth: no identification
    raw[1] = torch.nan
    table = metrics.score(Outcome(raw, _labels()), images, _labels(), pool=Auxiliary(pool))
    assert table["identified"].tolist()[6:] == [True] * 6 and (table["chance"] == 0.01).all()
    assert not table["identified"][3:6].any()
    everyone = torch.cat([pool, images.flatten(0, 1)])
    again = metrics.score(Outcome(raw, _labels()), images, _labels(), pool=everyone)
    assert again["identified"].tolist()[6:] == [True] * 6  # the truth in the pool is no rival of itself
    assert again["chance"][0] == pytest.approx(1 / 111)
    ranks, candidates = metrics.identify(torch.full((1, 3, 16, 16), 0.5), torch.ones(1, 3, 16, 16), pool)
    assert ranks.item() == candidates.item() == 100


def test_a_tie_identifies_nothing():
    grey, pool = torch.full((1, 1, 8, 8), 0.5), torch.zeros(3, 1, 8, 8)
    ranks, _ = metrics.identify(grey, torch.ones(1, 1, 8, 8), pool)
    assert ranks.item() == 4
    own = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)
    gallery = data.ImageSet("own", "train", *own, ("a", "b"), "tests", "own")
    same = lambda images: torch.ones(len(images), 2)  # noqa: E731
    hits, _ = metrics.identify_in_class(grey, torch.ones(1, 1, 8, 8), torch.tensor([0]), gallery, same)
    assert not hits.any()


def test_a_candidate_counts_in_its_nearest_form():
    random = torch.Generator().manual_seed(7)
    truth, pool = torch.rand(4, 1, 8, 8, generator=random), torch.rand(50, 1, 8, 8, generator=random)
    negative = 1 - truth
    assert (metrics.identify(negative, truth, pool)[0] > 1).all()
    both = metrics.identify(negative, truth, pool, lambda candidates: torch.stack([candidates, 1 - candidates]))
    assert both[0].tolist() == [1] * 4 and both[1].tolist() == [51] * 4
    # forms serve all candidates alike: one that comes out as anything else is a rival
    rival = torch.cat([pool, 1 - negative[:1] + 1e-6])
    tied = metrics.identify(negative, truth, rival, lambda candidates: (1 - candidates).round(decimals=2)[None])
    assert tied[0][0] == 2


def test_label_overlap_counts_repetitions():
    truth = torch.tensor([[1, 1, 2, 3], [0, 0, 0, 0]])
    guess = torch.tensor([[3, 1, 1, 1], [0, 1, 2, -1]])
    assert metrics.label_overlap(guess, truth).tolist() == [0.75, 0.25]


def test_summarise_groups_and_counts_failures(images):
    raw = images.clone()
    raw[0] = torch.nan
    table = metrics.score(Outcome(raw, _labels()), images, _labels())
    table["network"] = table["trial"]
    table["attack"] = ["a"] * 6 + ["b"] * 6
    summary = metrics.summarise(table, "attack")
    assert summary["attack"].tolist() == ["a", "b"] and summary["images"].tolist() == [6, 6]
    assert summary["success"].tolist() == [0.5, 1.0] and summary["labels right"].tolist() == [1.0, 1.0]
    assert summary["median mse"].tolist() == [math.inf, 0.0]
    with pytest.raises(ValueError, match=r"by names \['defense'\].*columns"):
        metrics.summarise(table, ["defense"])


def test_networks_are_the_units_and_under_one_network_its_batches(images):
    table = metrics.score(Outcome(images, _labels()), images, _labels())
    assert metrics.units(table).tolist() == table["trial"].tolist()
    table["network"] = "one"
    assert metrics.units(table).tolist() == table["trial"].tolist()
    table["network"] = table["trial"] // 2
    assert metrics.units(table).tolist() == [0] * 6 + [1] * 6
    table["attack"] = "none"
    row = metrics.summarise(table, "attack").iloc[0]
    expected = intervals.below(table["mse"], 1e-3, table["network"])
    assert (row["low"], row["high"]) == (expected.low, expected.high)
    each = metrics.summarise(table, "network")  # one network a row: its two batches of three images
    assert each["low"].tolist() == [intervals.proportion([1] * 6, [0, 0, 0, 1, 1, 1]).low] * 2


def test_the_mean_image_baseline_is_the_pixel_variance():
    known = torch.rand(50, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    table = metrics.baselines(known, Auxiliary(known)).set_index("baseline")
    variance = known.double().var(0, unbiased=False).mean().item()
    assert table.loc["mean image", "mean mse"] == pytest.approx(variance, rel=1e-5)
    assert table.loc["nearest auxiliary image (oracle)", "success"] == 1.0
    assert table.loc["constant grey", "mean mse"] == pytest.approx(1 / 12, rel=0.05)
    assert table.loc["random start N(0, 1)", "mean mse"] == pytest.approx(1 + 1 / 3, rel=0.05)
    assert list(table.index) == list(metrics.baselines(known[:1], Auxiliary(known))["baseline"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: metrics.mse(x, x[:, :2]), r"reconstructed has shape .* expected that of images"),
        (lambda x: metrics.score(Outcome(x[:2], _labels()), x, _labels()), r"images has shape .*\[T, B, C, H, W\]"),
        (lambda x: metrics.score(Outcome(x, _labels()), x, _labels()[:, 0]), r"labels has shape \(4,\), expected"),
        (
            lambda x: metrics.score(Outcome(x, _labels()), x, torch.zeros(4, 3, 10)),
            r"labels has shape \(4, 3, 10\), .* targets of every class",
        ),
        (lambda x: metrics.score(Outcome(x, _labels()), x, _labels().float()), "labels is of dtype torch.float32, exp"),
        (lambda x: metrics.score(Outcome(x, _labels()), x, _labels() > 7), "labels is of dtype torch.bool"),
        (lambda x: metrics.score(Outcome(x, _labels()), x, _labels() - 8), "labels holds -1, expected classes from 0"),
        (
            lambda x: metrics.score(Outcome(x, _labels() / 2), x, _labels()),
            "the reconstruction's labels is of dtype torch.float32",
        ),
        (
            lambda x: metrics.score(Outcome(x, _labels()[:2]), x, _labels()),
            r"the reconstruction's labels has shape \(2, 3\)",
        ),
        (lambda x: metrics.identify(x[0], x[0], x[0, :0]), r"pool has shape .*expected \[M, 3, 16, 16\]"),
        (lambda x: metrics.baselines(x, Auxiliary(x[0, :, :1])), r"auxiliary holds images of \(1, 16, 16\)"),
        (lambda x: metrics.label_overlap(_labels(), _labels()[:, :1]), "expected that of labels"),
    ],
)
def test_bad_shapes_name_the_argument(images, call, message):
    with pytest.raises(ValueError, match=message):
        call(images)


def test_fidelity_curve_falls_with_the_threshold():
    errors = [3e-3, 8e-4, 2e-4, 5e-5, math.inf]
    curve = metrics.fidelity_curve(errors)
    assert curve["threshold"].tolist() == list(metrics.THRESHOLDS)
    assert curve["value"].tolist() == [0.8, 0.8, 0.6, 0.4, 0.2] and (curve["n"] == 5).all()
    assert isinstance(curve, pd.DataFrame) and (curve["low"] < curve["value"]).all()
    clustered = metrics.fidelity_curve(errors * 2, clusters=[*range(5)] * 2)
    expected = intervals.below(errors * 2, metrics.THRESHOLDS[0], [*range(5)] * 2)
    assert clustered["low"][0] == expected.low and clustered["high"][0] == expected.high
