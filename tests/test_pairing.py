"""What was found against what was there, where the two are not equally many."""

import math

import pytest
import torch

from reprolib.measure import metrics, pairing


@pytest.fixture
def images():
    return torch.rand(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


GREY = torch.full((3, 16, 16), 0.5)


def test_each_image_gets_its_own_candidate_whatever_their_order_and_number(images):
    more = torch.cat([torch.rand_like(images[:, :2]), images[:, [2, 0, 3, 1]]], 1)
    assert pairing.pair(more, images).tolist() == [[3, 5, 2, 4]] * 3
    assert pairing.pair(images[:, [3, 1]], images).tolist() == [[-1, 1, -1, 0]] * 3


def test_as_many_candidates_as_images_are_paired_as_the_batches_of_searches(images):
    near = (images[:, [1, 3, 0, 2]] + 0.1 * torch.randn(images.shape)).clamp(0, 1)
    assert torch.equal(pairing.pair(near, images), metrics.match_batches(near, images))


def test_a_bad_candidate_does_not_push_exact_ones_away():
    grey = [torch.full((1, 1, 1, 16, 16), level) for level in (0.0, 0.3, 0.6, 1.0)]
    images = torch.cat(grey[:3], 1)
    # white is nearest to the lightest image, and all shifted by one are nearer than black under white
    order = pairing.pair(torch.cat([grey[3], grey[1], grey[2]], 1), images)
    assert order.tolist() == [[0, 1, 2]]


def test_candidates_are_paired_as_they_are_shown():
    white, grey = (torch.full((1, 1, 1, 16, 16), level) for level in (1.0, 0.9))
    beyond = 3 * white  # shown, it is white to the last pixel
    assert pairing.pair(torch.cat([grey, beyond], 1), torch.cat([white, grey], 1)).tolist() == [[1, 0]]
    assert pairing.pair(torch.cat([grey - 0.05, beyond], 1), white).tolist() == [[1]]


def test_a_candidate_that_holds_nothing_is_given_to_no_image(images):
    lost = torch.zeros(3, 4, dtype=torch.bool)
    lost[1, 2] = lost[2] = True
    assert pairing.pair(images, images, lost).tolist() == [[0, 1, 2, 3], [0, 1, -1, 3], [-1] * 4]


def test_an_image_not_recovered_counts_as_the_fallback_and_is_never_exact(images):
    scores = pairing.score(images[:, :2], images, GREY)
    assert scores.recovered.tolist() == [True, True, False, False] * 3
    assert scores.exact.tolist() == scores.recovered.tolist()
    expected = metrics.psnr(GREY.expand(3, 3, 16, 16), images[:, 2]).tolist()
    assert scores.psnr[2::4].tolist() == pytest.approx(expected)
    assert (scores.psnr[0::4] == metrics.PSNR_CAP).all() and (scores.mse[0::4] == 0).all()
    black = torch.zeros(3, 1, 3, 16, 16)
    assert not pairing.score(torch.ones_like(black), black, black[0, 0], torch.ones(3, 1).bool()).exact.any()


def test_a_candidate_that_is_no_number_is_the_worst_and_spoils_no_other(images):
    broken = images.clone()
    broken[:, 1] = torch.nan
    scores = pairing.score(broken, images, GREY)
    assert scores.candidate.tolist() == [0, 1, 2, 3] * 3
    assert scores.mse[1::4].tolist() == [math.inf] * 3 and (scores.mse[0::4] == 0).all()


def test_a_candidate_that_is_no_number_takes_no_image_from_a_faint_one(images):
    candidates = torch.stack([torch.full_like(images[:, 0], torch.nan), 0.9 * images[:, 0]], 1)
    assert pairing.pair(candidates, images[:, :1]).tolist() == [[1]] * 3


def test_shares_count_numbers_levels_and_what_the_rest_is_worth(images):
    scores = pairing.score(images[:, :2], images, GREY)
    table = pairing.shares(scores)
    assert table.trial.tolist() == [0, 1, 2] and table.images.tolist() == [4] * 3
    assert table.recovered.tolist() == table.exact.tolist() == [2] * 3
    assert table["at least 19 dB"].tolist() == table["at least 30 dB"].tolist() == [0.5] * 3
    assert table.rest[0] == pytest.approx(scores.psnr[2:4].median())
    assert math.isnan(pairing.shares(pairing.score(images, images, GREY)).rest[0])


def test_the_rest_is_what_is_not_exact_recovered_or_not(images):
    # of four images two are exact, one is dimmed and one has no candidate
    scores = pairing.score(torch.cat([images[:, :2], 0.9 * images[:, 2:3]], 1), images, GREY)
    table = pairing.shares(scores)
    assert table.recovered.tolist() == [3] * 3 and table.exact.tolist() == [2] * 3
    assert table.rest[0] == pytest.approx(scores.psnr[2:4].mean())


@pytest.mark.parametrize(
    ("candidates", "lost", "message"),
    [
        ((3, 4, 3, 16), None, r"expected \[T, n, C, H, W\] and \[T, B, C, H, W\]"),
        ((2, 4, 3, 16, 16), None, "of the same trials and the same size of image"),
        ((3, 4, 3, 16, 8), None, "of the same trials and the same size of image"),
        ((3, 5, 3, 16, 16), torch.zeros(3, 4).bool(), r"expected bool of shape \(3, 5\)"),
        ((3, 5, 3, 16, 16), torch.zeros(3, 5), "lost is torch.float32"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(images, candidates, lost, message):
    with pytest.raises(ValueError, match=message):
        pairing.pair(torch.zeros(candidates), images, lost)


def test_a_fallback_of_another_size_and_unknown_columns_are_refused(images):
    with pytest.raises(ValueError, match=r"fallback has shape \(3, 8, 8\)"):
        pairing.score(images, images, torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"by names \['setting'\]"):
        pairing.shares(pairing.score(images, images, GREY), ["setting"])
