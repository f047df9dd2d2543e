"""The Cocktail Party Attack: the objective, the closed form, what they refuse, and the runs of the chapter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from reprolib import attacks, data, models
from reprolib.attacks.cocktail_party import CocktailParty, DerivativeICA, Party, _stretched
from reprolib.attacks.first_layer import FirstLayer
from reprolib.defenses import TopK
from reprolib.experiments import cocktail_party as experiments
from reprolib.experiments import networks
from reprolib.experiments.measures import cpa as measures
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, ThreatModel
from reprolib.measure import pairing


@pytest.fixture(scope="module")
def photos() -> data.ImageSet:
    return data.load("photos")


@pytest.fixture(scope="module")
def case(photos) -> tuple[nn.Module, object, Tensor]:
    """A network, what it shares of two batches of six photographs, and these."""
    images, labels = photos.batches(6, 2)
    model = networks.one_hidden((3, 32, 32), 10, 64, 0).double()
    return model, client.share(model, images.double(), labels), images.double()


def far(found: Tensor, truth: Tensor) -> float:
    """Largest mean squared error of one set of images from another, in any order."""
    away = (found[:, :, None] - truth[:, None]).square().flatten(3).mean(3)
    return float(torch.maximum(away.amin(1), away.amin(2)).max())


def mean_psnr(found: Tensor, truth: Tensor) -> float:
    return float(pairing.score(found, truth, torch.full(truth.shape[2:], 0.5)).psnr.mean())


def test_the_objective_is_what_the_paper_writes(case):
    model, update, _ = case
    layer = FirstLayer.of(model, update)
    party, attack = Party.of(layer, 6), CocktailParty()
    torch.testing.assert_close(party.white @ party.white.mT / 3071, torch.eye(6).expand(2, 6, 6), rtol=0, atol=1e-4)
    unmixing = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    found = attack.objective(unmixing, party, layer.shape)
    for t in range(2):
        rows = unmixing[t] / unmixing[t].norm(dim=1, keepdim=True)
        sources = rows @ party.white[t]
        images = (sources + rows @ party.offset[t]).view(6, 3, 32, 32)
        contrast = sum(torch.log(torch.cosh(source.double())).mean() ** 2 for source in sources) / 6
        pairs = [(i, k) for i in range(6) for k in range(6) if i != k]
        apart = sum(torch.exp(12.4 * (rows[i] @ rows[k]).abs()) - 1 for i, k in pairs) / len(pairs)
        variation = images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()
        expected = -contrast + 1.47 * apart + 3.1 * variation
        torch.testing.assert_close(found[t].double(), expected.double(), rtol=1e-5, atol=1e-5)


def test_the_contrast_is_the_mean_of_squares_over_sources(case):
    model, update, _ = case
    layer = FirstLayer.of(model, update)
    party = Party.of(layer, 6)
    unmixing = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    found = CocktailParty(decorrelation=0.0, variation=0.0).objective(unmixing, party, layer.shape)
    sources = unmixing / unmixing.norm(dim=2, keepdim=True) @ party.white
    expected = -sources.double().cosh().log().mean(2).square().mean(1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_whitening_keeps_the_mixture(case):
    model, update, images = case
    layer = FirstLayer.of(model, update)
    party = Party.of(layer, 6)
    # the oracle: the unmixing of the whitened rows that gives the images back
    mixed = party.whitening @ layer.weight
    truth = layer.of_pixels(images)
    oracle = truth @ torch.linalg.pinv(mixed)
    assert (layer.to_pixels(oracle @ mixed) - images).square().mean() < 1e-6


def test_the_presets():
    assert CocktailParty.paper() == CocktailParty() and CocktailParty.released().contrast == 0
    assert CocktailParty().iterations == 25000 and CocktailParty().learning_rate == 1e-3
    for make, message in (
        (lambda: CocktailParty(contrast=-1), "contrast must be a finite number >= 0"),
        (lambda: CocktailParty(reading="min"), "reading must be one of 'range', 'bias'"),
        (lambda: CocktailParty(iterations=0), "iterations must be a whole number >= 1"),
        (lambda: DerivativeICA("edges"), "samples must be one of 'bands', 'derivatives', 'pixels'"),
        (lambda: DerivativeICA(sources=0), "sources must be a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_the_search_lowers_its_objective_and_stretches_images(case):
    model, update, images = case
    few, more = (CocktailParty(iterations=n)(model, update, progress=False) for n in (1, 60))
    assert (more.objective < few.objective).all() and (more.evaluations >= 60).all()
    assert not more.diverged.any() and (more.labels == -1).all() and more.lost is None
    torch.testing.assert_close(more.raw.amin((2, 3, 4)), torch.zeros(2, 6).double())
    torch.testing.assert_close(more.raw.amax((2, 3, 4)), torch.ones(2, 6).double())
    again = CocktailParty(iterations=60)(model, update.select(1), progress=False)
    torch.testing.assert_close(again.raw[0], more.raw[1], rtol=1e-4, atol=1e-4)
    biased = CocktailParty(iterations=60, reading="bias")(model, update, progress=False)
    assert biased.raw.shape == images.shape and not torch.equal(biased.raw, more.raw)


def test_a_stretched_image_keeps_its_colours(case):
    model, update, images = case
    layer = FirstLayer.of(model, update)
    low, high = images.amin((2, 3, 4), keepdim=True), images.amax((2, 3, 4), keepdim=True)
    whole = (images - low) / (high - low)
    assert (whole.amin((3, 4)) > 0.01).any() and (whole.amax((3, 4)) < 0.99).any(), "not of every channel"
    torch.testing.assert_close(_stretched(7 * layer.of_pixels(whole), layer), whole)


def test_bands_beat_derivatives_and_these_pixels(case):
    model, update, images = case
    psnr = {name: mean_psnr(DerivativeICA(name)(model, update).images, images) for name in ("bands", "derivatives")}
    psnr["pixels"] = mean_psnr(DerivativeICA("pixels", iterations=100)(model, update).images, images)
    assert psnr["bands"] > psnr["derivatives"] + 2 > psnr["pixels"] + 5


def test_neither_order_nor_scale_nor_local_steps_change_the_images(case, photos):
    model, update, images = case
    labels = photos.batches(6, 2)[1]
    settled = DerivativeICA(tolerance=1e-13)
    found = settled(model, update).images
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    others = [
        replace(update, gradients={name: 3 * g for name, g in update.gradients.items()}),
        client.share(model, images[:, order], labels[:, order]),
        client.share(model, images, labels, local=LocalTraining(10, 3, 0.1)),
        client.share(model, images, labels, local=LocalTraining(10, 3, 0.05, momentum=0.5, shuffle=True)),
        client.share(model, images, labels, threat=ThreatModel(observes="mean of 3")),
    ]
    for other in others:
        assert far(settled(model, other).images, found) < 1e-8


def test_rank_counts_and_sources_may_be_fewer_or_more(case):
    model, update, images = case
    assert FirstLayer.of(model, update).rank.rank.tolist() == [6, 6]
    assert DerivativeICA(sources=4)(model, update).raw.shape == (2, 4, 3, 32, 32)
    with pytest.raises(ValueError, match="numerical rank 6 in trial 0, below the 7 images"):
        DerivativeICA(sources=7)(model, update)


def test_bad_updates_are_refused(case, photos):
    model, update, images = case
    labels = photos.batches(6, 2)[1]
    for attack in (DerivativeICA(), CocktailParty(iterations=2)):
        adam = client.share(model, images, labels, local=LocalTraining(2, 3, 0.01, optimizer="adam"))
        with pytest.raises(ValueError, match="optimiser is 'adam'.*the mixing of the images is lost"):
            attack(model, adam)
        narrow = networks.one_hidden((3, 32, 32), 10, 4, 0).double()
        with pytest.raises(ValueError, match="6 images are mixed in the layer 'body.1', which is 4 wide"):
            attack(narrow, client.share(narrow, images, labels))
        twice = images.clone()
        twice[:, 1], same = twice[:, 0], labels.clone()
        same[:, 1] = same[:, 0]
        with pytest.raises(ValueError, match="some are copies of each other"):
            attack(model, client.share(model, twice, same))
        convolutional = models.build("convnet8", 10, (3, 32, 32), seed=0, width=4)
        shared = client.share(convolutional, images.float(), labels)
        with pytest.raises(ValueError, match="the image enters 'trunk.0', a Conv2d"):
            attack(convolutional, shared)
        with pytest.raises(ValueError, match="layer='head' lies behind others, its inputs are features"):
            replace(attack, layer="head")(convolutional, shared)
        broken = replace(update, gradients={n: g * float("nan") for n, g in update.gradients.items()})
        with pytest.raises(ValueError, match="NaN or infinite entry"):
            attack(model, broken)


def test_the_informed_attacker_fills_in_what_was_pruned(case, photos):
    model, _, images = case
    images, labels, psnr = images[:1], photos.batches(6, 2)[1][:1], []
    for known in (False, True):
        update = client.share(model, images, labels, defense=TopK(0.5), threat=ThreatModel(defense_known=known))
        psnr.append(mean_psnr(DerivativeICA()(model, update).images, images))
    assert psnr[1] > psnr[0] + 3


def test_the_sign_that_is_not_known_is_taken_from_the_truth():
    truth = torch.rand(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = truth[:, [2, 0, 1]].clone()
    turned[:, 1] = 1 - turned[:, 1]
    torch.testing.assert_close(experiments.upright(turned, truth), truth[:, [2, 0, 1]])


def room(photos: data.ImageSet, **options: object) -> experiments.Room:
    return experiments.Room(photos, 2, 4, 32, 1, photos, **options)


def test_experiments(photos):
    attack = {"bands": DerivativeICA(), "paper": CocktailParty(iterations=3)}
    five = LocalTraining(5, 2, 0.1)
    found = experiments.unmixed(room(photos), attack)
    scores = found["scores"]
    assert set(scores.attack) == {"bands", "paper", "mean image"} and len(scores) == 3 * 8
    assert found["truth"].shape == found["bands"].shape == (4, 3, 32, 32)
    assert measures.of(scores, "bands").identified.all() and measures.of(scores, "bands").recovered.all()
    assert not measures.of(scores, "mean image").identified.any()
    spectra = experiments.spectra(room(photos))
    entries = measures.span({4: spectra})
    assert entries["span_error"].interval.value < 1e-10 and entries["rank_excess"].interval.value == 0
    swept = experiments.swept(room(photos), CocktailParty(iterations=2), [{"variation": 1.0}, {"variation": 2.0}])
    assert swept.variation.tolist() == [1, 2] and np.isfinite(swept.psnr).all()
    assert set(experiments.mixtures(room(photos))) >= {"the client's images", "read from it"}
    means = [experiments.unmixed(room(photos, clients=2, local=local), attack)["scores"] for local in (None, five)]
    assert measures.clients(scores, *means)["clients_gap"].interval.value < 0.1
    one = experiments.SingleRoom(photos, 2, 4, 32, 1, photos)
    runs = {
        "one step": scores,
        "20 steps": experiments.unmixed(room(photos, local=five), attack)["scores"],
        "trained": experiments.unmixed(room(photos, training=2), attack)["scores"],
        "one step, in float32": experiments.unmixed(one, attack)["scores"],
    }
    same = measures.invariance(runs)
    assert all(entry.interval.value < 0.1 for entry in same.values())
    assert same["trained_gap"].images == 8
    assert measures.rank_in_single({4: experiments.spectra(one)})["rank_excess_float32"].interval.value == 0


def test_stretched_images_end_at_0_and_1_and_get_their_sign_from_the_truth(photos):
    attack = DerivativeICA()
    found = experiments.unmixed(room(photos), {"plain": attack, "stretched": experiments.Stretched(attack)})
    flat = found["stretched"].flatten(1)
    assert flat.amin(1).abs().max() < 1e-6 and (flat.amax(1) - 1).abs().max() < 1e-6
    own = measures.of(found["scores"], "stretched")
    assert own.identified.all() and own.psnr.mean() > 15


def test_guesses_are_recognised_by_chance_alone(photos):
    guesses = experiments.by_chance(room(photos))
    assert set(guesses.attack) == {"unrelated", "blends"} and len(guesses) == 2 * 8
    assert guesses[guesses.attack == "blends"].identified.mean() < 1
    assert experiments.by_chance(room(photos), 3).recovered.sum() == 2 * 2 * 3
    scores = experiments.unmixed(room(photos), {"bands": DerivativeICA()})["scores"]
    over = measures.over_chance(scores, "bands", guesses)
    assert over.value == pytest.approx(1 - measures.chance(guesses).identified.mean())


def test_chance_is_the_guess_that_recognises_more():
    guesses = pd.DataFrame({"attack": ["blends"] * 2 + ["unrelated"] * 2, "trial": [0, 1] * 2, "image": 0})
    guesses["identified"] = [True, False, True, True]
    assert set(measures.chance(guesses).attack) == {"unrelated"}
    scores = pd.DataFrame({"attack": "bands", "trial": [0, 1], "image": 0, "identified": [True, True]})
    assert measures.over_chance(scores, "bands", guesses).value == 0


def test_beyond_the_width_as_many_as_the_rank_allows_are_read(photos):
    narrow = replace(room(photos), width=3)
    scores = experiments.of_full_rank(narrow, DerivativeICA(iterations=50))["scores"]
    assert measures.of(scores, "bands").recovered.sum() <= 6


def test_features_behind_a_trunk_are_read_by_a_decoder(photos):
    trunk = models.build("convnet8", 10, (3, 32, 32), seed=0, width=8)
    decoder = models.build_generator("decoder", (3, 32, 32), seed=1, channels=32, size=8, widths=(8, 8))
    with pytest.raises(ValueError, match="are also among the public ones"):
        experiments.decoded_features(trunk, decoder, photos, photos, 1, 2, 16, 0)
    private, public = data.load("photos", count=8), data.load("photos", "train", count=8)
    found = experiments.decoded_features(trunk, decoder, private, public, 1, 2, 16, 0)
    assert set(found["scores"].attack) == {"oracle", "hidden layer", "head", "FGLA", "mean image"}
    assert found["truth"].shape == found["head"].shape


def test_every_attack_is_exported():
    assert attacks.DerivativeICA is DerivativeICA and attacks.CocktailParty is CocktailParty
