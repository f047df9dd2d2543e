"""Defenses that alter the data (ATS, MixUp, Intra-InstaHide), and Outpost (defenses.md 8.10)."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reprolib import data, models
from reprolib.defenses import ATS, Compose, GaussianNoise, IntraInstaHide, MixUp, Outpost
from reprolib.defenses.ats import LIBRARY, accuracy_score, draw_policies, privacy_score, search
from reprolib.defenses.mixing import decode, decode_magnitudes
from reprolib.experiments import utility
from reprolib.federated import client
from reprolib.federated.client import share
from reprolib.federated.threat import ThreatModel


@pytest.fixture(scope="module")
def photos():
    return data.load("photos", "train", 60)


@pytest.fixture(scope="module")
def model(photos):
    return models.build("lenet", photos.num_classes, photos.image_shape, seed=0)


# --- Outpost ----------------------------------------------------------------------------------------------------------


def test_outpost_perturbs_at_the_first_iteration_and_leaves_its_zeros(model, photos):
    x, y = photos.batches(1, 3, seed=0)
    plain, shared = share(model, x, y), share(model, x, y, defense=Outpost())
    every = torch.cat([g.flatten(1) for g in shared.gradients.values()], 1)
    before = torch.cat([g.flatten(1) for g in plain.gradients.values()], 1)
    assert (every != before).any(1).all()
    assert ((every == 0).double().mean(1) >= 0.8 - 0.4).all()


def test_outposts_noise_is_read_by_the_spread_of_each_tensor():
    net = torch.nn.Module()
    net.quiet, net.loud = (torch.nn.Parameter(torch.tensor([0.0, s, -s, 0.0])) for s in (0.3, 0.6))
    variance = {"quiet": 0.06, "loud": 0.24}
    gradients = {name: torch.tensor([[0.0, 0.0, 0.0, 5.0]]) for name in variance}
    for clients, local in ((1, None), (4, None), (4, client.LocalTraining(2, 1, 0.1))):
        threat = ThreatModel(observes=f"mean of {clients}")
        update = client.SharedUpdate(gradients, clients, (1, 1, 1), 2, threat, "none", local)
        reading = Outpost(noise_base=0.5).counter(net, update)
        assert reading.noise_std == pytest.approx(0.5 * variance["quiet"] * abs(update.scale) / clients**0.5)
        assert reading.weight["quiet"].tolist() == [[1, 1, 1, 1]]
        assert reading.weight["loud"][0].tolist() == pytest.approx(
            [1, 1, 1, (variance["quiet"] / variance["loud"]) ** 2]
        )


def test_outpost_leaves_later_updates_alone_more_and_more_often(model, photos):
    assert Outpost().probability == 1
    assert Outpost(iteration=8).probability == pytest.approx(0.5)
    g = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    never = Outpost(beta=1e18, iteration=1)
    same = never.protect(g, model, torch.empty(0), torch.empty(0), client.generator(0, 0))
    assert all(same[name] is g[name] for name in g)
    hits = 0
    for trial in range(200):
        small = {"head.bias": g["head.bias"]}
        out = Outpost(iteration=8).protect(small, model, x := torch.empty(0), x, client.generator(0, trial))
        hits += out["head.bias"] is not small["head.bias"]
    assert 70 < hits < 130


def test_outposts_noise_is_on_the_largest_entries_and_follows_the_weights_spread(model):
    model = models.build("lenet", 10, (3, 32, 32), seed=0)
    g = {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for name, p in model.named_parameters()}
    runs = [
        Outpost(phi=0.1, prune_ratio=0.5).protect(g, model, torch.empty(0), torch.empty(0), client.generator(0, t))
        for t in range(50)
    ]
    every = torch.cat([value.abs().flatten() for value in g.values()])
    threshold = every.quantile(0.9)
    name = "conv2.weight"
    spread = torch.stack([run[name] for run in runs]).std(0)
    large = g[name].abs() >= threshold
    assert (spread[~large] == 0).all()
    expected = 0.8 * dict(model.named_parameters())[name].var().item()
    assert spread[large].mean() == pytest.approx(expected, rel=0.05)
    smallest = g[name].abs() < g[name].abs().median()
    assert (runs[0][name][smallest & ~large] == 0).all()


def test_who_knows_outpost_tells_perturbed_updates_by_their_zeros(model, photos):
    x, y = photos.batches(1, 6, seed=0)
    defense = Outpost(iteration=8)
    plain, update = share(model, x, y), share(model, x, y, defense=defense)
    untouched = torch.stack([(update.gradients[n] == g).flatten(1).all(1) for n, g in plain.gradients.items()]).all(0)
    assert 0 < untouched.sum() < 6
    reading = defense.counter(model, update)
    for name, weight in reading.weight.items():
        assert (weight[untouched] == 1e6).all() and (weight[~untouched] <= 1).all()
        assert (reading.slack[name][untouched] == 0).all()
        zero = update.gradients[name][~untouched] == 0
        assert (reading.slack[name][~untouched][zero] > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phi": 1.0}, r"phi must lie in \[0, 1\), got 1.0"),
        ({"prune_ratio": -0.1}, r"prune_ratio must lie in \[0, 1\), got -0.1"),
        ({"beta": -1.0}, "beta must be a finite number >= 0, got -1.0"),
        ({"noise_base": -1.0}, "noise_base must be a finite number >= 0, got -1.0"),
        ({"iteration": -1}, "iteration must be a whole number >= 0, got -1"),
    ],
)
def test_bad_settings_of_outpost_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Outpost(**settings)


# --- MixUp and InstaHide ----------------------------------------------------------------------------------------------


def test_mixing_weights_add_up_within_their_bound(photos):
    weights = MixUp(photos, k=4).weights(4000, client.generator(0, 0))
    torch.testing.assert_close(weights.sum(1), torch.ones(4000, dtype=torch.float64))
    assert weights.min() >= 0 and weights.max() <= 0.65
    # the bound cuts a Dirichlet law whose mean is 3/6, 1/6, 1/6, 1/6
    assert 0.4 < weights[:, 0].mean() < 0.5
    others = weights[:, 1:].mean(0)
    assert (others - others.mean()).abs().max() < 0.01


def test_a_mixture_is_the_sum_and_so_is_its_label(photos):
    x, y = photos.images[:2], F.one_hot(photos.labels[:2], photos.num_classes).float()
    encoded, targets = MixUp(photos).encode(x, y, client.generator(0, 0))
    assert encoded.shape == x.shape and (targets.sum(1) - 1).abs().max() < 1e-6
    random = client.generator(0, 0)
    weights = MixUp(photos).weights(2, random).float()
    others = torch.randint(60, (2, 3), generator=random)
    for i in range(2):
        expected = weights[i, 0] * x[i] + sum(weights[i, j + 1] * photos.images[others[i, j]] for j in range(3))
        torch.testing.assert_close(encoded[i], expected)


def test_instahide_flips_signs_around_the_centre(photos):
    x, y = photos.images[:2], F.one_hot(photos.labels[:2], photos.num_classes).float()
    mixed, _ = MixUp(photos).encode(x, y, client.generator(0, 0))
    hidden, _ = IntraInstaHide(photos).encode(x, y, client.generator(0, 0))
    torch.testing.assert_close((hidden - 0.5).abs(), (mixed - 0.5).abs())
    assert ((hidden - mixed).abs() > 1e-6).float().mean() == pytest.approx(0.5, abs=0.03)


def test_the_client_trains_on_the_encoding(model, photos):
    x, y = photos.batches(1, 2, seed=0)
    defense = MixUp(photos)
    update = share(model, x, y, defense=defense, seed=3)
    target = F.one_hot(y, photos.num_classes).float()
    for trial in range(2):
        random = client.generator(3, trial, client.DEFENSE_STREAM, 0)
        encoded, targets = defense.encode(x[trial], target[trial], random)
        gradients = torch.autograd.grad(F.cross_entropy(model(encoded), targets), list(model.parameters()))
        for (name, g), own in zip(update.gradients.items(), gradients, strict=True):
            torch.testing.assert_close(g[trial], own, msg=name)
    both = share(model, x, y, defense=Compose([defense, GaussianNoise(0.1)]), seed=3)
    assert (both.gradients["head.bias"] - update.gradients["head.bias"]).std() < 0.5
    assert update.labels is None and share(model, x, y, threat=ThreatModel(labels="known")).labels is not None


def test_enough_mixtures_with_known_pairings_decode(photos):
    weights = torch.zeros(20, 6)
    random = torch.Generator().manual_seed(0)
    for row in weights:
        row[torch.randperm(6, generator=random)[:4]] = torch.tensor([0.5, 0.2, 0.2, 0.1])
    encodings = torch.einsum("mn,nchw->mchw", weights, photos.images[:6])
    torch.testing.assert_close(decode(encodings, weights), photos.images[:6], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="4 mixtures do not determine 6 images: decode more of them"):
        decode(encodings[:4], weights[:4])
    with pytest.raises(ValueError, match=r"weights must be \[4, N\] like encodings, got \[20, 6\]"):
        decode(encodings[:4], weights)


def test_pairings_are_the_weights_that_an_encoding_was_made_with(photos):
    own, places = MixUp(photos), torch.tensor([3, 3, 7])
    targets = F.one_hot(photos.labels[places], photos.num_classes).float()
    mixed, mixed_targets = own.encode(photos.images[places], targets, client.generator(5, 0))
    weights = own.pairings(places, client.generator(5, 0)).float()
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    torch.testing.assert_close(torch.einsum("mn,nchw->mchw", weights, photos.images), mixed)
    torch.testing.assert_close(weights @ F.one_hot(photos.labels, photos.num_classes).float(), mixed_targets)


def encodings_of(private, rounds, noise=0.0):
    """All rounds of one client under Intra-InstaHide, and the weights of its images in them."""
    hidden, random = IntraInstaHide(private), client.generator(0, 1)
    places = torch.arange(len(private)).repeat(rounds)
    targets = F.one_hot(private.labels[places], private.num_classes).float()
    encodings, _ = hidden.encode(private.images[places], targets, client.generator(0, 0))
    encodings = encodings + noise * torch.randn(encodings.shape, generator=random)
    return encodings, hidden.pairings(places, client.generator(0, 0))


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_magnitudes_decode_up_to_one_sign_for_the_whole_set(noise):
    private = data.load("photos", "train", 6)
    encodings, weights = encodings_of(private, 8, noise)
    found = decode_magnitudes(encodings, weights, client.generator(0, 2))
    errors = [((reading - private.images) ** 2).flatten(1).mean(1) for reading in (found, 1 - found)]
    nearer = min(errors, key=lambda error: error.mean())
    assert (nearer < 0.01).all() and max(e.mean() for e in errors) > 0.02
    # plain least squares, as for MixUp, leaves nothing of the images
    assert ((decode(encodings, weights.float()) - private.images) ** 2).mean() > 2 * nearer.mean()


def test_negative_images_have_the_same_magnitudes(photos):
    private = data.load("photos", "train", 6)
    encodings, weights = encodings_of(private, 4)
    found = decode_magnitudes(encodings, weights, client.generator(0, 2))
    again = decode_magnitudes(1 - encodings, weights, client.generator(0, 2))
    torch.testing.assert_close(found, again)
    with pytest.raises(ValueError, match="4 mixtures do not determine 6 images: decode more of them"):
        decode_magnitudes(encodings[:4], weights[:4], client.generator(0, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partners": None}, "partners must be an ImageSet, got None"),
        ({"k": 1}, "k must be a whole number >= 2, got 1"),
        ({"largest": 0.2}, r"largest must lie in \(1 / k, 1\] = \(0.25, 1\], got 0.2"),
    ],
)
def test_bad_settings_of_mixup_are_refused(photos, settings, message):
    with pytest.raises(ValueError, match=message):
        MixUp(**({"partners": photos} | settings))


def test_partners_of_another_shape_are_refused(model, photos):
    with pytest.raises(ValueError, match=r"partners are of shape \(1, 8, 8\), the images \(3, 32, 32\)"):
        share(model, *photos.batches(1, 1, seed=0), defense=MixUp(data.load("digits", "train", 20)))


@pytest.mark.parametrize("kind", [MixUp, IntraInstaHide])
def test_partners_of_classes_that_the_model_does_not_have_are_refused(model, photos, kind):
    classes = (*photos.classes, *map(str, range(1000)))
    more = replace(photos, labels=photos.labels + 1000, classes=classes)
    with pytest.raises(ValueError, match=r"partners have a label 10\d\d, the model \d+ classes"):
        share(model, *photos.batches(1, 1, seed=0), defense=kind(more))


# --- ATS --------------------------------------------------------------------------------------------------------------


def test_the_library_has_fifty_places_and_every_one_works(photos):
    assert len(LIBRARY) == 50
    assert [LIBRARY[place] for place in (21, 13, 3, 7, 4, 15)] == [
        *(("translateX", 5), ("brightness", 5), ("translateX", 9), ("translateY", 2), ("sharpness", 1)),
        ("brightness", 9),
    ]
    image = photos.images[0]
    for place in range(50):
        out = ATS((str(place),), augment=False).transform(image, client.generator(0, place))
        assert out.shape == image.shape and out.dtype == image.dtype and out.min() >= 0 and out.max() <= 1
        if LIBRARY[place][1] > 1 and LIBRARY[place][0] != "autocontrast":
            assert not torch.equal(out, image), LIBRARY[place]


def test_translation_moves_by_the_levels_share_and_inversion_inverts(photos):
    image = photos.images[0]
    inverted = ATS(("0",), augment=False).transform(image, client.generator(0, 0))
    torch.testing.assert_close(inverted, 1 - image)
    moved = ATS(("3",), augment=False).transform(image, client.generator(0, 0))
    by = round(150 / 331 * 32)
    right, left = F.pad(image, (by, 0))[..., :32], F.pad(image, (0, by))[..., by:]
    assert min((moved - right).abs().max(), (moved - left).abs().max()) < 1e-5


def test_ats_draws_a_policy_an_image_and_repeats_with_its_generator(photos):
    x, y = photos.images[:8], F.one_hot(photos.labels[:8], photos.num_classes).float()
    first, targets = ATS().encode(x, y, client.generator(0, 0))
    again, _ = ATS().encode(x, y, client.generator(0, 0))
    other, _ = ATS().encode(x, y, client.generator(0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and targets is y


def test_the_random_crop_moves_by_up_to_four_pixels_either_way():
    # one bright pixel in the middle of 9 x 9, inverted by the policy: it comes to lie in every row and every column
    image = torch.zeros(1, 9, 9)
    image[0, 4, 4] = 1
    made = [ATS(("0",)).transform(image, client.generator(0, k)) for k in range(200)]
    _, rows, columns = torch.cat([(1 - one).nonzero() for one in made]).T.tolist()
    assert len(rows) == 200 and set(rows) == set(columns) == set(range(9))


@pytest.mark.parametrize("channels", [2, 4])
def test_ats_says_which_channels_it_transforms(channels):
    with pytest.raises(ValueError, match=rf"of 1 or 3 channels, got \[{channels}, 8, 8\]"):
        ATS().transform(torch.rand(channels, 8, 8), client.generator(0, 0))


def test_the_accuracy_score_leaves_the_callers_images_as_they_are(model, photos):
    images = photos.images[:4].clone().requires_grad_()
    plain = accuracy_score(model, photos.images[:4], "31", client.generator(0, 0))
    assert accuracy_score(model, images, "31", client.generator(0, 0)) == plain and images.grad is None


def test_the_privacy_score_is_the_area_under_the_cosines(model, photos):
    x, y = photos.images[:1], photos.labels[:1]
    random = client.generator(0, 0)
    image = ATS(("0",), augment=False).transform(x[0], random)
    noise = torch.rand(image.shape, generator=random)
    points = torch.stack([noise, (image + noise) / 2, image])
    gradients = client.image_gradients(model, points, y.expand(3))
    cosine = [
        torch.stack([F.cosine_similarity(g[i].flatten(), g[2].flatten(), 0) for g in gradients.values()]).mean()
        for i in range(3)
    ]
    expected = (cosine[0] + 2 * cosine[1] + cosine[2]) / 4
    assert privacy_score(model, x, y, "0", client.generator(0, 0), steps=2) == pytest.approx(expected.item(), abs=1e-6)


def test_scores_tell_a_policy_that_changes_nothing(model, photos):
    x, y = photos.images[:4], photos.labels[:4]
    score = privacy_score(model, x, y, "31", client.generator(0, 0))
    assert -1 <= score <= 1
    assert privacy_score(model, x, y, "31", client.generator(0, 0)) == score
    assert accuracy_score(model, photos.images[:10], "31", client.generator(0, 0)) < 0
    # ten times the same image cannot be told apart
    same = photos.images[:1].expand(10, -1, -1, -1)
    distinct = accuracy_score(model, photos.images[:10], "31", client.generator(0, 0))
    assert accuracy_score(model, same, "31", client.generator(0, 0)) < distinct
    found = search(model, model, photos.images[:10], photos.labels[:10], ["31", "3-1-7"], seed=0)
    assert [row[1] for row in found] == sorted(row[1] for row in found)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ("21-13-3", r"policies must be a sequence such as \('21-13-3',\), got '21-13-3'"),
        ((), "policies must be a sequence"),
        (("1-2-3-4",), "a policy is one to three places in the library such as '21-13-3', got '1-2-3-4'"),
        (("50",), "policy '50' names a place outside 0..49"),
    ],
)
def test_bad_policies_are_refused(policies, message):
    with pytest.raises(ValueError, match=message):
        ATS(policies)


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_encodes_and_feeds_back_what_was_withheld(photos):
    from reprolib.defenses import DualPruning

    def weights(defense, feedback=False, steps=3):
        net = models.build("lenet", photos.num_classes, photos.image_shape, seed=0, activation="relu", init="default")
        utility.train(net, photos, steps, 0.1, batch_size=8, defense=defense, error_feedback=feedback)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert not torch.equal(weights(None), weights(MixUp(photos)))
    assert torch.equal(weights(DualPruning(), steps=1), weights(DualPruning(), True, steps=1))
    assert not torch.equal(weights(DualPruning()), weights(DualPruning(), True))
    assert torch.equal(weights(None), weights(None, True))


def test_drawn_policies_differ_and_can_be_used():
    found = draw_policies(100, seed=0)
    assert len(set(found)) == 100 and found == draw_policies(100, seed=0) != draw_policies(100, seed=1)
    assert {policy.count("-") for policy in found} == {0, 1, 2}
    ATS(found)  # refuses places outside the library
