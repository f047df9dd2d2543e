"""Exact batches: the columns behind a ReLU, the certificate, SPEAR and the mask-guided recovery, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from reprolib import attacks, data, defenses, models
from reprolib.attacks import mask_guided, masks_at_once
from reprolib.attacks.columns import Mixture, completed, null_vector, true_column
from reprolib.attacks.first_layer import FirstLayer
from reprolib.attacks.masks_at_once import leak
from reprolib.experiments import networks, spear
from reprolib.experiments.measures import spear as measures
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, ThreatModel
from reprolib.federated.update import SharedUpdate
from reprolib.measure import pairing
from reprolib.models import Victims
from reprolib.models.victim import Victim

MASKS, SAMPLING = attacks.MaskGuided(), attacks.SPEAR(max_samples=40_960)
AT_ONCE = attacks.MasksAtOnce()


def photos(size: int, trials: int = 1) -> tuple[Tensor, Tensor]:
    images, labels = data.load("photos", count=size * trials).batches(size, trials)
    return images.double(), labels


def shared(size: int = 6, width: int = 128, **options: object) -> tuple[Victim, SharedUpdate, Tensor]:
    victim = networks.one_hidden((3, 32, 32), 10, width, seed=0).double()
    images, labels = photos(size)
    return victim, client.share(victim, images, labels, **options), images


def exact(found: attacks.Reconstruction, images: Tensor) -> list[bool]:
    return pairing.score(found.images, images, images.mean((0, 1)), found.lost).exact.tolist()


def truth(size: int = 6, width: int = 128) -> tuple[Mixture, Tensor, Tensor]:
    """A mixture, its true columns [B, B] of unit length, and the inputs."""
    victim, update, images = shared(size, width)
    layer = FirstLayer.of(victim, update)
    mixture = Mixture.of(layer, 0, Victims.of(victim), size, None)
    inputs = layer.of_pixels(images)[0]
    columns = torch.linalg.lstsq(inputs.T, mixture.right.T).solution.T
    return mixture, columns / columns.norm(dim=0), inputs


def test_true_columns_are_null_vectors_and_certified():
    mixture, columns, inputs = truth()
    off = mixture.units(inputs) < 0
    for own, rows in zip(columns.T, off.T, strict=True):
        assert (mixture.left[rows] @ own).abs().max() < 1e-10
        found = null_vector(mixture.left[rows])
        assert (found @ own).abs() > 1 - 1e-10
        assert (true_column(mixture, own + 1e-9) @ own).abs() > 1 - 1e-10
    whole = completed(mixture, columns)
    assert whole.certified and whole.agreement == 1.0
    torch.testing.assert_close(whole.inputs, inputs, atol=1e-8, rtol=0)
    again = whole.mixing @ whole.inputs - mixture.left @ mixture.right
    assert again.norm() < 1e-8 and (whole.mixing.sum(1) - mixture.bias).norm() < 1e-8


def test_a_wrong_column_is_no_column_and_fails_the_certificate():
    mixture, columns, _ = truth()
    mixed = columns.clone()
    mixed[:, 0] = columns[:, 0] + 0.5 * columns[:, 1]
    assert true_column(mixture, mixed[:, 0]) is None
    whole = completed(mixture, mixed)
    assert not whole.certified and whole.agreement < 1
    assert not completed(mixture, columns.roll(1, 1) * 0 + columns[:, :1]).certified  # one column six times


def test_a_zero_that_was_asked_for_is_not_taken_for_a_unit_left_off():
    mixture, columns, inputs = truth()
    units = mixture.left @ columns
    alive = ((units[:, 0].abs() > 1e-3) & (units[:, 1].abs() > 1e-3)).nonzero()[0, 0]
    forced = units[alive, 1] * columns[:, 0] - units[alive, 0] * columns[:, 1]  # zero there, and where both are off
    assert true_column(mixture, forced) is None


def test_a_faint_image_is_explained_as_well_as_a_strong_one():
    mixture, columns, inputs = truth()
    mixture = replace(mixture, zero=1e-4)
    strong = completed(mixture, columns)
    strength = torch.tensor([1e-3, 1, 1, 1, 1, 1], dtype=torch.float64)
    mixing = mixture.left.T @ strong.mixing * strength
    faint = replace(mixture, right=mixing @ inputs, bias=mixture.left @ mixing.sum(1))
    torch.testing.assert_close(completed(faint, columns).explained, strong.explained)


def test_the_column_that_is_explained_least_is_exchanged_first():
    mixture, columns, _ = truth()
    wrong = torch.randn(6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pool, chosen = torch.cat([columns, wrong / wrong.norm()], 1), [0, 1, 6, 3, 4, 5]
    assert completed(mixture, pool[:, chosen]).explained.argmin() == 2
    assert replace(SAMPLING, swaps=1)._second_stage(mixture, pool, chosen).certified


def test_rows_that_fit_a_column_worst_are_left_out():
    mixture, columns, inputs = truth()
    off = mixture.units(inputs)[:, 0] < 0
    rows = mixture.left[off]
    false = mixture.left[~off][:1]  # a unit that is on, taken for one that is off
    assert (masks_at_once._column(torch.cat([rows, false])) @ columns[:, 0]).abs() > 1 - 1e-10


def test_what_is_separated_lies_within_the_range_of_pixels():
    victim, update, _ = shared()
    layer = FirstLayer.of(victim, update)
    mixture = Mixture.of(layer, 0, Victims.of(victim), 6, None)
    search = mask_guided._Search(MASKS, layer, mixture, client.generator(0, 0))
    mixing = torch.eye(6, dtype=torch.float64)
    inputs = layer.of_pixels(torch.linspace(-1, 2, 6 * 3072, dtype=torch.float64).view(1, 6, 3, 32, 32))[0]
    found = layer.to_pixels(search._scaled(inputs, mixing, mixing.sum(1))[None])
    torch.testing.assert_close(found, layer.to_pixels(inputs[None]).clamp(0, 1))


@pytest.mark.parametrize("attack", [MASKS, SAMPLING, AT_ONCE])
def test_a_batch_comes_out_exactly_whatever_its_order(attack):
    victim, update, images = shared()
    found = attack(victim, update, seed=1)
    assert all(exact(found, images)) and not found.diverged.any() and found.objective.max() == 0
    assert (found.labels == -1).all() and found.evaluations.min() > 0
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    x, y = photos(6)
    other = attack(victim, client.share(victim, x[:, order], y[:, order]), seed=1)
    assert all(exact(other, images)) and not other.diverged.any()


def test_a_trial_does_not_depend_on_the_others():
    victim = networks.one_hidden((3, 32, 32), 10, 128, seed=0).double()
    x, y = photos(5, 2)
    update = client.share(victim, x, y)
    both, alone = MASKS(victim, update, seed=3), MASKS(victim, update.select(0), seed=3)
    torch.testing.assert_close(both.raw[:1], alone.raw)


@pytest.mark.parametrize("options", [{"dtype": torch.float32}, {"normalize": ((0.5,) * 3, (0.2,) * 3)}])
def test_single_precision_and_normalised_victims(options):
    dtype = options.pop("dtype", torch.float64)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3072, 128), nn.ReLU(), nn.Linear(128, 10))
    victim = models.adapt(layers, (3, 32, 32), 10, **options).to(dtype)
    x, y = photos(6)
    found = MASKS(victim, client.share(victim, x.to(dtype), y), seed=1)
    assert all(exact(found, x)) and not found.diverged.any()


@pytest.mark.parametrize("options", [{"defense": defenses.CastPrecision("bf16")}, {"local": LocalTraining(4, 8, 0.01)}])
def test_masks_at_once_read_what_is_rounded_and_what_crosses_zero(options):
    victim, update, images = shared(8, 256, **options)
    found = AT_ONCE(victim, update, seed=1)
    assert all(exact(found, images)) and found.evaluations.max() <= len(AT_ONCE.margins)


def test_the_truth_leaks_nothing_and_a_mixture_does():
    mixture, columns, _ = truth()
    assert leak(mixture, completed(mixture, columns)) < 1e-20
    mixed = columns.clone()
    mixed[:, 0] = columns[:, 0] + 0.5 * columns[:, 1]
    assert leak(mixture, completed(mixture, mixed)) > 1e-3


def test_of_batches_that_nothing_certifies_the_one_that_leaks_least_is_kept(monkeypatch):
    mixture, columns, _ = truth()
    victim, update, _ = shared()
    mixed = columns.clone()
    mixed[:, 0] = columns[:, 0] + 0.5 * columns[:, 1]
    right, wrong = (replace(completed(mixture, own), certified=False) for own in (columns, mixed))
    found = iter([right, wrong])
    monkeypatch.setattr(masks_at_once, "completed", lambda *_: next(found))
    attack = attacks.MasksAtOnce(margins=(0.1, 0.0))
    assert attack.followed(FirstLayer.of(victim, update), mixture, wrong.inputs).batch is right


def test_deeper_networks_and_clients_and_steps():
    deep = models.build("mlp", 10, (3, 32, 32), seed=0, width=128, activation="relu").double()
    x, y = photos(6)
    for more in ({}, {"threat": ThreatModel(observes="mean of 2")}, {"local": LocalTraining(3, 6, 0.001)}):
        found = MASKS(deep, client.share(deep, x, y, **more), seed=1)
        assert all(exact(found, x)) and not found.diverged.any(), more


def test_a_layer_behind_a_trunk_is_read_as_features():
    trunk = models.build("convnet8", 10, (3, 32, 32), seed=0, width=4)
    victim = spear.behind(trunk, 512, 10, seed=0).double()
    x, y = photos(3)
    name = next(name for name, module in victim.named_modules() if isinstance(module, nn.Linear))
    attack = replace(MASKS, layer=name)
    _, (read,) = attack.read(victim, client.share(victim, x, y), 1)
    with torch.no_grad():
        true = trunk.trunk(trunk.normalize(x[0].float())).flatten(1).double()
    assert read.batch.certified
    assert torch.cdist(true, read.batch.inputs).amin(1).max() < 1e-3 * true.norm(dim=1).min()
    with pytest.raises(ValueError, match="features, not images: a decoder"):
        attack(victim, client.share(victim, x, y))


# --- what cannot be read, and is said


@pytest.mark.parametrize("attack", [MASKS, SAMPLING, AT_ONCE])
def test_batches_that_the_layer_cannot_tell_apart(attack):
    victim, update, _ = shared(size=20, width=16)
    with pytest.raises(ValueError, match="20 images are mixed in the layer .* at most 1"):
        attack(victim, update)
    victim = networks.one_hidden((3, 32, 32), 10, 128, seed=0).double()
    x, y = photos(6)
    x[0, 1], y[0, 1] = x[0, 0], y[0, 0]
    copies = client.share(victim, x, y)
    with pytest.raises(ValueError, match="numerical rank 5 in trial 0, below the 6 images.*copies.*sources=5"):
        attack(victim, copies)
    found = replace(attack, sources=5)(victim, copies, seed=1)  # the pair counts as one image of twice the weight
    assert not found.diverged.any()
    assert found.raw.shape[1] == 5 and sum(exact(found, x)) == 5  # the pair is one picture, given to one of both


def test_dead_units_are_left_out():
    victim, _, x = shared()
    with torch.no_grad():
        victim.body[1].bias[[3, 9, 20]] = -1e3
    found = MASKS(victim, client.share(victim, x, photos(6)[1]), seed=1)
    assert all(exact(found, x)) and not found.diverged.any()


@pytest.mark.parametrize("attack", [replace(MASKS, passes=3), replace(SAMPLING, max_samples=8192)])
def test_two_images_with_one_mask_are_not_certified(attack):
    victim, _, x = shared()
    with torch.no_grad():  # units that all images switch on or off alike tell none from another
        victim.body[1].weight.mul_(1e-3)
        victim.body[1].bias.copy_(torch.where(torch.arange(128) % 2 == 0, 5.0, -5.0))
        victim.body[1].bias[:8] = torch.linspace(-0.01, 0.01, 8)
    found = attack(victim, client.share(victim, x, photos(6)[1], seed=0), seed=1)
    assert found.diverged.all() and not any(exact(found, x))


@pytest.mark.parametrize("activation", ["leaky", "gelu", "sigmoid"])
@pytest.mark.parametrize("attack", [MASKS, SAMPLING, AT_ONCE])
def test_activations_without_zeros_are_refused(attack, activation):
    victim = networks.one_hidden((3, 32, 32), 10, 128, seed=0, activation=activation).double()
    update = client.share(victim, *photos(4))
    with pytest.raises(ValueError, match=f"{type(attack).__name__} needs units that images leave off.*ReLU.*0%"):
        attack(victim, update)


@pytest.mark.parametrize("attack", [MASKS, SAMPLING, AT_ONCE])
def test_what_the_first_layer_refuses(attack):
    x, y = photos(4)
    victim, _, _ = shared()
    adam = LocalTraining(2, 4, 0.01, optimizer="adam")
    with pytest.raises(ValueError, match="linear in the gradients.*'adam'.*mixing of the images is lost"):
        attack(victim, client.share(victim, x, y, local=adam))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 32, bias=False), nn.ReLU(), nn.Linear(32, 10))
    unbiased = models.adapt(plain, (3, 32, 32), 10).double()
    with pytest.raises(ValueError, match="has no bias"):
        attack(unbiased, client.share(unbiased, x, y))
    conv = models.build("convnet8", 10, (3, 32, 32), seed=0, width=4).double()
    with pytest.raises(ValueError, match="first layer is not linear.*Conv2d"):
        attack(conv, client.share(conv, x, y))
    update = client.share(victim, x, y)
    update.gradients["body.1.weight"][0, 3, 5] = torch.nan
    with pytest.raises(ValueError, match="'body.1.weight' has a NaN"):
        attack(victim, update)


@pytest.mark.parametrize("defense", [defenses.GaussianNoise(1e-2), defenses.TopK(0.5)])
def test_noise_and_pruning_are_never_certified(defense):
    victim, update, x = shared(defense=defense)
    for attack in (replace(MASKS, passes=2), replace(SAMPLING, max_samples=8192), AT_ONCE):
        found = attack(victim, update, seed=1)
        assert found.diverged.all() and not any(exact(found, x))


def test_what_is_read_makes_the_gradient_that_was_shared_again():
    victim, update, _ = shared()
    layer, (read,) = MASKS.read(victim, update, [(0, 0)])
    assert read.batch.certified
    again = read.batch.mixing @ read.batch.inputs
    live = layer.weight[0][layer.weight[0].abs().amax(1) > 0]
    torch.testing.assert_close(again, live, rtol=0, atol=1e-8 * float(live.abs().max()))


def clients(networks_: int = 2, size: int = 5, **options: object) -> spear.Clients:
    pool = data.load("photos", "train", count=networks_ * size + 40)
    return spear.Clients(pool, size, networks_, 1, seed=0, width=128, **options)


def test_the_chapters_table_has_every_batch_and_never_calls_exact_what_failed():
    both = {"mask-guided": MASKS, "derivative ICA": attacks.DerivativeICA()}
    plain = spear.compared(clients(), both)
    own = measures.of(plain["batches"], "mask-guided")
    assert (own.exact == own.images).all() and own.certified.all() and plain["mask-guided"].shape == (5, 3, 32, 32)
    assert not measures.of(plain["batches"], "derivative ICA").certified.any()
    blurred = spear.compared(clients(), {"mask-guided": MASKS}, defense=defenses.GaussianNoise(1e-2))["batches"]
    assert not blurred.certified.any() and not blurred.exact.any()
    refused = spear.compared(clients(activation="gelu"), {"mask-guided": MASKS})["batches"]
    assert refused.refused.str.contains("gradients are zero").all() and not refused.exact.any()
    entries = measures.variants({"plain": own, "trained": own})
    assert entries["plain"].interval.value == entries["trained"].interval.value == 1


def test_masks_at_once_stand_between_the_separation_and_the_true_mixing():
    plain = spear.at_once(clients(), AT_ONCE)
    own, before, most = (
        measures.of(plain, name).reset_index() for name in ("masks at once", "separation", "true mixing")
    )
    assert (own.exact == own.images).all() and own.certified.all() and not before.certified.any()
    assert (most.psnr >= own.psnr).all() and (own.psnr > before.psnr).all() and (own.identified == 1).all()
    noisy = spear.at_once(clients(), AT_ONCE, defense=defenses.GaussianNoise(1e-2))
    kinds = dict.fromkeys(("float32", "steps", "plain", "bfloat16"), plain) | {"noise": noisy}
    entries = measures.at_once(kinds)
    assert entries["float32"].interval.value == entries["plain_identified"].interval.value == 1
    assert entries["plain_gain"].interval.value > 5 and entries["noise_ceiling"].interval.value < 60
    one = plain[plain.network == 0]
    assert set(measures.at_once(dict.fromkeys(kinds, one)).values()) == {measures.NOT_RUN}
    assert measures.at_once(dict.fromkeys(kinds, one)).keys() == entries.keys()


def test_a_false_certificate_is_counted_among_those_given():
    row = {"attack": "SPEAR", "network": 0, "images": 4, "exact": 4, "certified": True}
    double = pd.DataFrame(
        [row, row | {"network": 1, "certified": False}, row | {"attack": "derivative ICA", "certified": False}]
    )
    rounded = pd.DataFrame([row | {"network": 2, "exact": 3}, row | {"network": 3, "exact": 0, "certified": False}])
    guided = pd.DataFrame([row | {"network": 4, "certified": False}, row | {"network": 5, "certified": False}])
    entries = measures.certificate(double, guided, rounded)
    assert entries["false_certificate"].interval.value == entries["certified_spear"].interval.value == 0.5
    assert entries["certified_masks"].interval.value == 0  # they are called SPEAR in their table
    assert measures.certificate(double, guided.iloc[:0], rounded)["certified_masks"] == measures.NOT_RUN


def test_a_batch_counts_once_and_is_whole_or_not():
    batches = pd.DataFrame({"images": [64] * 4, "exact": [64, 64, 64, 63], "network": range(4)})
    assert measures.whole(batches).value == 0.75 and measures.whole(batches).n == 4


def test_samples_are_counted_and_the_largest_batch_is_looked_for():
    counted = spear.samples(clients(), [3, 4], replace(SAMPLING, batch_samples=64))
    assert set(counted.images) == {3, 4} and (counted.tried % 64 == 0).all() and counted.certified.all()
    grown = counted.assign(images=counted.images.map({3: 8, 4: 12}), tried=counted.images.map({3: 64, 4: 1024}))
    assert measures.growth(grown)["samples_growth"].interval.value == pytest.approx(2)
    censored = pd.concat([grown, grown.assign(network=grown.network + 2, tried=40_000, certified=False)])
    assert measures.growth(censored) == measures.growth(grown)
    assert measures.growth(counted) == {"samples_growth": measures.NOT_RUN}
    reached = spear.largest(clients(), [4, 5, 400], MASKS)
    assert reached.images.tolist() == [4, 4, 5, 5] and (reached.width == 128).all()
    inside = spear.anatomy(clients(), MASKS)
    assert inside.certified.all() and (inside["columns"] == 5).all()
