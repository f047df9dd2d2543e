"""Robbing the Fed: what its block lets through, what is read off it, and who is refused."""

from dataclasses import replace
from math import comb, inf

import pytest
import torch
from torch import nn

from reprolib import data, models, servers
from reprolib.attacks import likely, rtf
from reprolib.attacks.rtf import RobbingTheFed, TrapRows, read_rows
from reprolib.defenses import DPSGD, GaussianNoise, Inspection
from reprolib.defenses.inspection import examined
from reprolib.experiments import rtf as experiment
from reprolib.experiments.networks import network_seed
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, SharedUpdate, ThreatModel
from reprolib.federated.server import Honest
from reprolib.measure import pairing
from reprolib.models.imprint import ImprintBlock, in_front
from reprolib.servers import Imprint, TrapWeights

SHAPE, CLASSES, SIZE = (3, 8, 8), 5, 192
MALICIOUS = ThreatModel(server="malicious architecture")
HALF = ((0.5,) * 3, (0.5,) * 3)


def pictures(count, seed):
    """Images that differ in brightness most of all, as photographs do."""
    random = torch.Generator().manual_seed(seed)
    brightness = 0.2 + 0.6 * torch.rand(count, 1, 1, 1, generator=random)
    pixels = (brightness + 0.2 * torch.rand(count, *SHAPE, generator=random) - 0.1).clamp(0, 1)
    names = tuple("abcde")
    return data.ImageSet("tiny", "train", pixels, torch.arange(count) % CLASSES, names, "drawn for this test", "tiny")


PUBLIC = pictures(2000, seed=1)


def victim(dtype=torch.float32, normalize=HALF, activation="relu"):
    built = models.build("mlp", CLASSES, SHAPE, 0, normalize=normalize, width=16, activation=activation)
    return built.to(dtype)


def sent(dtype=torch.float32, **settings):
    return Imprint(surrogate=PUBLIC, **({"num_bins": 32} | settings)).broadcast(victim(dtype))


def batch(size, dtype=torch.float32, trials=1, seed=2):
    images, labels = pictures(size * trials, seed).batches(size, trials)
    return images.to(dtype), labels


def alone(model, images):
    """Which images [T, B, ...] some bin of the block holds alone: [T, B] bool."""
    return torch.stack([experiment.alone(model, own) for own in images])


def recovered(model, images, labels, attack=None, threat=MALICIOUS, **options):
    update = client.share(model, images, labels, threat=threat, **options)
    found = (attack or RobbingTheFed())(model, update)
    return found, pairing.score(found.raw, images, PUBLIC.mean_image, found.lost)


# --- the identities


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("connection", ["addition", "linear"])
def test_every_row_that_one_image_passes_holds_that_image(dtype, close, connection):
    model, (images, labels) = sent(dtype, connection=connection), batch(1, dtype)
    update = client.share(model, images, labels, threat=MALICIOUS)
    weight, bias = (update.gradients[f"imprint.rows.{part}"][0] for part in ("weight", "bias"))
    active = model.imprint.passed(model.normalize.forward(images[0]))[0]
    assert 0 < active.sum() < 32 and torch.equal(bias != 0, active)
    entered = model.normalize.forward(images[0]).flatten(1)
    assert (weight[active] / bias[active, None] - entered).abs().max() < close


@pytest.mark.parametrize("layout", ["cumulative", "sparse"])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-10), (torch.float64, 1e-25)])
def test_who_is_alone_in_a_bin_comes_out_exactly_and_nobody_else(dtype, exact, layout):
    model, (images, labels) = sent(dtype, layout=layout), batch(12, dtype, trials=10)
    _, scores = recovered(model, images, labels)
    singles = alone(model, images).flatten().numpy()
    assert 0.4 < singles.mean() < 0.95
    # a mixture may be one image but for a thousandth of another: that is exact to the eye, and not alone
    assert ((scores.mse < exact) == singles).all() and scores.exact[singles].all()


def test_a_bin_of_two_is_their_mean_by_the_gradients_of_each():
    model, (images, labels) = sent(torch.float64, num_bins=4), batch(6, torch.float64)
    found, _ = recovered(model, images, labels)
    each = client.image_gradients(model, images[0], labels[0])["imprint.rows.bias"]
    passed = model.imprint.passed(model.normalize.forward(images[0])).sum(1)
    crowded = [k for k in range(1, 5) if (passed == k).sum() == 2]
    assert crowded, "a bin of two"
    for k in crowded:
        two = (passed == k).nonzero()[:, 0]
        s = each[two, 0]
        mean = (s[:, None, None, None] * images[0, two]).sum(0) / s.sum()
        torch.testing.assert_close(found.raw[0, k - 1], mean, rtol=0, atol=1e-10)


def test_two_copies_of_an_image_share_a_bin_that_holds_it_exactly():
    model, (images, labels) = sent(torch.float64, num_bins=64), batch(5, torch.float64)
    images[0, 1] = images[0, 0]
    found, scores = recovered(model, images, labels)
    assert not alone(model, images)[0, :2].any()
    assert (found.raw[0] - images[0, 0]).flatten(1).abs().amax(1).min() < 1e-10
    assert scores.exact[:2].sum() == 1, "one candidate is given to one of the copies"


def test_the_differences_add_up_to_the_lowest_row_and_leave_what_was_given():
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(2, 6, 5, generator=random), torch.randn(2, 6, generator=random)
    given = weight.clone(), bias.clone()
    own, counts = rtf.bins(weight, bias)
    torch.testing.assert_close(own.sum(1), weight[:, 0])
    torch.testing.assert_close(counts.sum(1), bias[:, 0])
    assert torch.equal(weight, given[0]) and torch.equal(bias, given[1])
    upward, _ = rtf.bins(weight, bias, "upward")
    assert torch.equal(upward[:, 0], weight[:, 0]) and torch.equal(upward[:, 1:], -own[:, :-1])


def test_read_upward_as_the_released_code_does_the_topmost_bin_is_never_alone():
    model, (images, labels) = sent(torch.float64, num_bins=64), batch(8, torch.float64, trials=10)
    down, up = (
        recovered(model, images, labels, RobbingTheFed(differences=way))[1].exact.to_numpy()
        for way in ("downward", "upward")
    )
    top = model.imprint.passed(model.normalize.forward(images.flatten(0, 1))).all(1).numpy()
    assert (up <= down).all() and (down & ~up == down & top).all() and (down & top).any()


@pytest.mark.parametrize(("deviations", "empty"), [(4.0, True), (4.5, False)])
def test_a_difference_of_rows_has_the_noise_of_both(deviations, empty):
    model, (images, labels) = sent(), batch(6)
    threat = replace(MALICIOUS, defense_known=True)
    update = client.share(model, images, labels, threat=threat, defense=GaussianNoise(0.01))
    steps = 0.01 * deviations * torch.arange(32, 0, -1.0)[None]  # each bin holds as much as the next
    found = RobbingTheFed()(model, replace(update, gradients=update.gradients | {"imprint.rows.bias": steps}))
    assert (found.lost == empty).all(), "three deviations of a difference are 4.24 of a row"


def test_a_bin_is_empty_or_not_whatever_trials_are_beside():
    random = torch.Generator().manual_seed(0)
    weight, bias = torch.rand(2, 4, 6, generator=random), torch.rand(2, 4, generator=random) + 1
    bias[1] *= 1e6
    inputs, lost = read_rows(weight, bias, 1e-5, 0.0)
    assert not lost.any()
    torch.testing.assert_close(inputs * bias[:, :, None], weight)


def test_an_update_is_left_as_it_was():
    model, (images, labels) = sent(), batch(6)
    update = client.share(model, images, labels, threat=MALICIOUS)
    before = {name: g.clone() for name, g in update.gradients.items()}
    RobbingTheFed()(model, update)
    assert all(torch.equal(g, before[name]) for name, g in update.gradients.items())


# --- how many


def test_the_count_over_images_is_met_by_bins_of_equal_mass():
    n, k, draws = 16, 32, 300
    server = Imprint(surrogate=PUBLIC, num_bins=k)
    model, own = server.broadcast(victim()), pictures(n * draws, seed=3).images
    counts = alone(model, own.view(draws, n, *SHAPE)).sum(1).double()
    error = counts.std() / draws**0.5
    assert abs(counts.mean() - rtf.expected_alone(n, k)) < 4 * error
    assert counts.mean() - rtf.expected_by_configurations(n, k) > 10 * error


@pytest.mark.parametrize("n", [5, 8, 64])
@pytest.mark.parametrize("k", [5, 64, 128])
def test_the_papers_count_in_closed_form_is_its_double_sum(n, k):
    total = 0
    for i in range(1, min(n, k) + 1):  # i bins of one image, j bins of two and more
        others = 1 if i == n else 0
        for j in range(1, min(k - i, (n - i) // 2) + 1):
            others += comb(k - i, j) * comb(n - i - j - 1, j - 1)
        total += i * comb(k, i) * others
    assert rtf.expected_by_configurations(n, k) == pytest.approx(total / comb(n + k - 1, k - 1) - n / k)


def test_the_counts_at_their_ends():
    assert rtf.expected_alone(1, 7) == 1 and rtf.expected_alone(2, 1) == 0
    assert rtf.expected_alone(64, 128) == pytest.approx(39.05, abs=0.01)
    assert rtf.expected_by_configurations(64, 128) == pytest.approx(28.17, abs=0.01)
    assert rtf.expected_by_configurations(1, 1) == 0
    for count in (rtf.expected_alone, rtf.expected_by_configurations):
        with pytest.raises(ValueError, match="bins must be a whole number >= 1, got 0"):
            count(3, 0)


def test_the_one_shot_succeeds_once_in_e():
    n, draws = 64, 2000
    model = Imprint(surrogate=PUBLIC, num_bins=n, layout="one-shot").broadcast(victim())
    random = torch.Generator().manual_seed(4)
    passed = model.imprint.passed(model.normalize.forward(pictures(20000, seed=5).images)).sum(1) == 1
    inside = torch.stack([passed[torch.randperm(20000, generator=random)[:n]].sum() for _ in range(draws)])
    assert 0.34 < (inside == 1).double().mean() < 0.40


def test_the_one_shot_takes_the_target_alone():
    (images, labels), dtype = batch(40, torch.float64), torch.float64
    plain = Imprint(surrogate=PUBLIC, num_bins=400)
    h = plain.statistic(victim(dtype), images[0])[:, 0]
    hits = 0
    for i in range(5):
        model = replace(plain, layout="one-shot", target=float(h[i])).broadcast(victim(dtype))
        assert model.imprint.rows.weight.shape == (2, SIZE)
        found, scores = recovered(model, images, labels)
        single = int(alone(model, images)[0].sum() == 1 and alone(model, images)[0, i])
        hits += single
        assert scores.exact[i] == bool(single) and found.raw.shape[1] == 2
    assert hits >= 3


# --- connections, queries, laws


def test_addition_and_the_linear_way_back_agree_and_the_others_fail():
    images, labels = batch(12, torch.float64, trials=5)
    models_ = {way: sent(torch.float64, connection=way) for way in ("addition", "linear", "cat", "softmax")}
    exact = {way: recovered(model, images, labels)[1].exact.to_numpy() for way, model in models_.items()}
    singles = alone(models_["addition"], images).flatten().numpy()
    assert (exact["addition"] == singles).all() and (exact["linear"] == singles).all()
    assert exact["cat"].sum() < singles.sum() / 2, "its rows count differently in what follows"
    gradient = client.share(models_["softmax"], images, labels, threat=MALICIOUS).gradients["imprint.rows.bias"]
    assert gradient.abs().max() < 1e-15, "its weights sum to one, so the block changes nothing"


def test_the_ways_back_by_hand():
    weight, bias = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), torch.tensor([-0.5, 1.0])
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)  # the rows give 0.5 and 6
    for connection, layout, expected in (
        ("addition", "cumulative", [7.5, 8.5, 9.5]),  # 2 x the mean of the rows
        ("addition", "sparse", [2.5, 3.5, 4.5]),  # clamped to 1
        ("linear", "cumulative", [13.0, 13.0, 13.0]),  # 2 x their sum
        ("cat", "cumulative", [0.5, 6.0, 3.0]),
        ("softmax", "cumulative", [1.0, 2.0, 3.0]),
    ):
        block = ImprintBlock(weight, bias, layout, connection, top=1.0, strength=2.0)
        assert block(x).flatten().tolist() == pytest.approx(expected)


def test_strength_scales_the_gradient_and_gain_takes_it_back_from_the_output():
    images, labels = batch(6, torch.float64)
    plain, strong = sent(torch.float64), sent(torch.float64, gain=1e-3, strength=1e3)
    torch.testing.assert_close(plain(images[0]), strong(images[0]))
    one, other = (client.share(m, images, labels, threat=MALICIOUS).gradients for m in (plain, strong))
    torch.testing.assert_close(1e3 * one["imprint.rows.weight"], other["imprint.rows.weight"])


@pytest.mark.parametrize("query", ["avg", "fourier", "randn", "rand"])
def test_a_query_is_one_vector_and_its_thresholds_have_equal_mass(query):
    server = Imprint(surrogate=PUBLIC, num_bins=16, query=query, mode=3)
    model = server.broadcast(victim(torch.float64))
    assert torch.linalg.matrix_rank(model.imprint.rows.weight) == 1
    passed = model.imprint.passed(model.normalize.forward(PUBLIC.images.double())).sum(1)
    assert passed.bincount(minlength=17)[1:].tolist() == [125] * 16 and passed.min() == 1
    h = server.statistic(model, PUBLIC.images)
    rows = model.imprint.rows(model.normalize.forward(PUBLIC.images.double()).flatten(1))
    torch.testing.assert_close(rows - model.imprint.rows.bias, h.expand(-1, 16))


def test_queries_are_the_released_ones():
    _, size = victim(), SIZE
    at = torch.arange(size) + 0.5
    expected = {
        "avg": torch.full((size,), 1 / size),
        "fourier": torch.cos(torch.pi / size * at * 3) / size * 3 * 4,
    }
    for query, v in expected.items():
        weight = sent(query=query, mode=3).imprint.rows.weight[0]
        torch.testing.assert_close(weight, v)
    lowest = sent(query="fourier", mode=0).imprint.rows.weight[0]
    torch.testing.assert_close(lowest, torch.full((size,), 0.33 * 4 / size))
    for query in ("randn", "rand"):
        v = sent(query=query).imprint.rows.weight[0].detach()
        assert v.mean().abs() < 1e-7 and v.norm() == pytest.approx((1 - 1 / size) ** 0.5, rel=1e-4)


def test_laws_of_the_statistic():
    official = Imprint.official(4).broadcast(victim())
    thresholds = -official.imprint.rows.bias / official.imprint.rows.weight.new_tensor(1e-3)
    torch.testing.assert_close(thresholds, torch.tensor([-10, -0.490129, 0.0, 0.490129]), rtol=1e-4, atol=1e-5)
    assert (official.imprint.back.weight == 1e3).all()
    gaussian = -Imprint(num_bins=4, cdf="gaussian").broadcast(victim()).imprint.rows.bias
    torch.testing.assert_close(gaussian, torch.tensor([-10, -0.67449, 0.0, 0.67449]), rtol=1e-4, atol=1e-5)
    h = Imprint(num_bins=4, surrogate=PUBLIC).statistic(victim(), PUBLIC.images)
    fitted = -sent(num_bins=4, cdf="fitted").imprint.rows.bias
    torch.testing.assert_close(fitted[2].double(), h.mean(), rtol=1e-4, atol=1e-5)
    wide, true = (-sent(num_bins=4, cdf=cdf).imprint.rows.bias for cdf in ("gaussian", "empirical"))
    assert wide[3] - wide[1] > 2 * (true[3] - true[1]), "a law of variance 1 is too wide for images"


def test_rows_in_another_order_are_read_alike():
    images, labels = batch(12, trials=4)
    straight, mixed = (recovered(sent(shuffled=s), images, labels)[1].exact for s in (False, True))
    assert straight.tolist() == mixed.tolist() and straight.any()


def test_rows_with_queries_of_their_own_are_read_one_by_one():
    model, (images, labels) = (
        sent(torch.float64, layout="scattered", num_bins=64, rate=1 / 12),
        batch(12, torch.float64, trials=5),
    )
    _, scores = recovered(model, images, labels)
    singles = alone(model, images).flatten().numpy()
    assert (scores.exact.to_numpy() == singles).all() and singles.mean() > 0.5


# --- local steps and several clients


def test_after_local_steps_of_sgd_images_still_come_out():
    model, (images, labels) = sent(torch.float64), batch(8, torch.float64, trials=4)
    one, four = (recovered(model, images, labels, local=LocalTraining(epochs, 8, 0.01))[1] for epochs in (1, 4))
    assert one.exact.sum() == alone(model, images).sum()
    assert (four.psnr > 40).mean() > 0.8 * (one.psnr > 40).mean()


def test_a_mean_of_clients_is_a_larger_batch():
    model, (images, labels) = sent(torch.float64), batch(12, torch.float64)
    mean = replace(MALICIOUS, observes="mean of 4")
    alone_, together = recovered(model, images, labels)[1], recovered(model, images, labels, threat=mean)[1]
    assert alone_.exact.tolist() == together.exact.tolist()


# --- trap weights


def test_traps_have_a_gradient_where_an_image_passes_and_give_who_passes_alone():
    plain = models.build("mlp", CLASSES, SHAPE, 0, width=256, activation="relu").double()
    server = TrapWeights(scale=0.97)
    model = server.broadcast(plain)
    assert not torch.equal(model.hidden1.weight, plain.hidden1.weight) and (model.hidden1.bias == 0).all()
    assert ((model.hidden1.weight < 0).sum(1) == SIZE // 2).all() and (
        (model.hidden1.weight > 0).sum(1) == SIZE // 2
    ).all()
    images, labels = batch(8, torch.float64, trials=3)
    update = client.share(model, images, labels, threat=ThreatModel(server="malicious parameters"))
    found = TrapRows()(model, update)
    scores = pairing.score(found.raw, images, PUBLIC.mean_image, found.lost)
    for t in range(3):
        passed = model.hidden1(images[t].flatten(1)) > 0
        assert torch.equal(update.gradients["hidden1.bias"][t] != 0, passed.any(0))
        single = (passed & (passed.sum(0) == 1)).any(1)
        assert single.tolist() == scores[scores.trial == t].exact.tolist()
    assert scores.exact.any()
    adam = LocalTraining(1, 8, 0.1, optimizer="adam")
    with pytest.raises(ValueError, match="optimiser is 'adam'"):
        TrapRows()(model, client.share(model, images, labels, threat=update.threat, local=adam))
    update.gradients["hidden1.weight"][1, 3] = torch.nan
    with pytest.raises(ValueError, match="'hidden1.weight' has a NaN or infinite entry in trial 1"):
        TrapRows()(model, update)


# --- inspection


def test_an_inspecting_client_sees_one_direction_and_an_order_and_not_what_hides_them():
    wary = Inspection()
    assert wary.refuses(victim()) == []
    assert wary.refuses(sent()) == [
        "the 32 rows of 'imprint.rows' are all one direction",
        "the 32 biases of 'imprint.rows' stand in order",
    ]
    assert len(wary.refuses(sent(shuffled=True))) == 1
    hidden = sent(layout="scattered", num_bins=64, rate=1 / 12)
    assert wary.refuses(hidden) == []
    images, labels = batch(4)
    with pytest.raises(ValueError, match="refuses to train this model: the 32 rows of 'imprint.rows' are all one"):
        client.share(sent(), images, labels, defense=wary, threat=MALICIOUS)
    client.share(hidden, images, labels, defense=wary, threat=MALICIOUS)
    assert list(examined(sent()).columns) == ["layer", "rows", "rank_one", "in_order"]
    assert str(wary) == "inspection of the model"


# --- who is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_bins": 0}, "num_bins must be a whole number >= 1, got 0"),
        ({"num_bins": 1}, "num_bins must be at least 2, got 1"),
        ({"query": "mean"}, "query must"),
        ({"connection": "add"}, "connection must"),
        ({"cdf": "true"}, "cdf must"),
        ({"layout": "dense"}, "layout must"),
        ({"gain": 0.0}, "gain must"),
        ({"rate": 1.0}, "rate must"),
        ({"layout": "scattered", "cdf": "gaussian"}, "layout='scattered' needs the law of each row's own query"),
    ],
)
def test_settings_of_the_block_are_held(settings, message):
    with pytest.raises(ValueError, match=message):
        Imprint(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "cdf='empirical' reads the law of the statistic off images: give surrogate"),
        ({"surrogate": data.load("photos", count=3)}, r"surrogate holds images of \(3, 32, 32\), the model takes"),
        (
            {"cdf": "gaussian", "connection": "cat", "num_bins": 300},
            "puts num_bins=300 rows in place of as many of 192",
        ),
        (
            {
                "surrogate": replace(PUBLIC, images=PUBLIC.images[:2].repeat(20, 1, 1, 1), labels=PUBLIC.labels[:40]),
                "layout": "sparse",
            },
            "of num_bins=128 bins are empty: give more surrogate images",
        ),
    ],
)
def test_what_no_block_can_be_made_of_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Imprint(**settings).broadcast(victim())


def test_more_bins_than_memory_holds_are_refused():
    with pytest.raises(ValueError, match="rows of 3072 values are 12.3 GB of weights.*: take at most 87381"):
        Imprint(num_bins=10**6, cdf="gaussian").broadcast(models.build("mlp", 5, (3, 32, 32), 0))


def test_surrogate_images_of_another_scale_are_refused():
    far = victim(normalize=((0.5,) * 3, (0.01,) * 3))
    with pytest.raises(ValueError, match="statistic reaches .*, beyond the outermost thresholds at 10"):
        Imprint(surrogate=PUBLIC).broadcast(far)


def test_a_second_block_and_what_is_no_victim_are_refused():
    with pytest.raises(ValueError, match="has an imprint block already"):
        Imprint(surrogate=PUBLIC).broadcast(sent())
    with pytest.raises(ValueError, match="Linear is no victim as it is"):
        Imprint(surrogate=PUBLIC).broadcast(nn.Linear(3, 3))


def test_traps_need_a_first_layer_that_is_linear_over_the_image():
    with pytest.raises(ValueError, match="the first layer of LeNet, 'conv1', is Conv2d"):
        TrapWeights().broadcast(models.build("lenet", CLASSES, SHAPE, 0))
    body = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 16, bias=False), nn.ReLU(), nn.Linear(16, CLASSES))
    with pytest.raises(ValueError, match="has no bias, by whose gradient images are divided"):
        TrapWeights().broadcast(models.adapt(body, image_shape=SHAPE, num_classes=CLASSES))


def test_the_attack_refuses_what_it_cannot_read():
    model, (images, labels) = sent(), batch(4)
    attack, update = RobbingTheFed(), client.share(model, images, labels, threat=MALICIOUS)
    with pytest.raises(ValueError, match="RobbingTheFed needs a server of the kind 'malicious architecture'"):
        attack(model, client.share(model, images, labels))
    plain = victim()
    with pytest.raises(ValueError, match="the model has no imprint block"):
        attack(plain, client.share(plain, images, labels, threat=MALICIOUS))
    with pytest.raises(ValueError, match="optimiser is 'adam'"):
        attack(
            model,
            client.share(model, images, labels, threat=MALICIOUS, local=LocalTraining(1, 2, 0.1, optimizer="adam")),
        )
    with pytest.raises(ValueError, match="computed with other weights"):
        attack(sent(num_bins=32, shuffled=True), update)
    update.gradients["imprint.rows.weight"][0, 3] = torch.nan
    with pytest.raises(ValueError, match="'imprint.rows.weight' has a NaN or infinite entry in trial 0"):
        attack(model, update)
    with pytest.raises(ValueError, match="tolerance must"):
        RobbingTheFed(tolerance=1.0)
    with pytest.raises(ValueError, match="differences must"):
        RobbingTheFed(differences="sideways")


def test_a_dead_block_holds_nothing_and_says_so():
    model, (images, labels) = sent(), batch(4)
    update = client.share(model, images, labels, threat=MALICIOUS)
    for part in ("weight", "bias"):
        update.gradients[f"imprint.rows.{part}"].zero_()
    found = RobbingTheFed()(model, update)
    assert found.lost.all() and (found.raw == 0.5).all() and (found.labels == -1).all()


def test_numbers_brought_by_anybody_are_read_alike():
    model, (images, labels) = sent(), batch(6)
    update = client.share(model, images, labels, threat=MALICIOUS)
    own = SharedUpdate.of(model, {name: g[0] for name, g in update.gradients.items()}, batch_size=6, threat=MALICIOUS)
    assert torch.equal(RobbingTheFed()(model, own).raw, RobbingTheFed()(model, update).raw)


def test_the_block_stands_first_and_the_victim_stays():
    plain = victim()
    before = models.fingerprint(plain)
    model = Imprint(surrogate=PUBLIC, num_bins=8).broadcast(plain)
    assert models.fingerprint(plain) == before and not hasattr(plain, "imprint")
    assert list(dict(model.named_parameters()))[:2] == ["imprint.rows.weight", "imprint.rows.bias"]
    assert model.imprint.top == inf and "layout=cumulative" in repr(model.imprint)
    assert servers.Imprint.kind == "malicious architecture" and servers.TrapWeights.kind == "malicious parameters"
    block = ImprintBlock(torch.zeros(2, SIZE), torch.zeros(2), "cumulative", "addition")
    images = batch(3)[0][0]
    torch.testing.assert_close(in_front(plain, block)(images), plain(images))


# --- the experiments


def holdings(**changed):
    small = {"public": 400, "size": 6, "networks": 2, "each": 3, "seed": 1, "victim": "mlp"}
    options = (("width", 16), ("activation", "relu"))
    return experiment.Holdings(PUBLIC, **small | {"options": options} | changed)


def test_holdings_are_cut_in_two_and_networks_differ():
    own = holdings()
    assert len(own.servers_own) == 400 and len(own.of_clients) == 1600
    images, labels = own.batches()
    assert images.shape == (6, 6, *SHAPE) and labels.shape == (6, 6)
    assert not any((own.servers_own.images == image).flatten(1).all(1).any() for image in images.flatten(0, 1))
    assert models.fingerprint(own.network(0)) != models.fingerprint(own.network(1))
    assert (
        holdings(dtype=torch.float64).batches()[0].dtype
        == next(holdings(dtype=torch.float64).network(0).parameters()).dtype
    )


@pytest.mark.parametrize("layout", ["cumulative", "sparse", "scattered"])
def test_batches_are_robbed_of_those_alone_and_counted(layout):
    server = Imprint(num_bins=32, layout=layout, rate=1 / 6)
    found = experiment.robbed(holdings(dtype=torch.float64), server, RobbingTheFed(), among=50)
    batches = found["batches"]
    assert batches.network.tolist() == [0, 0, 0, 1, 1, 1] and batches.trial.tolist() == list(range(6))
    assert batches.same.all() and (batches.strict == batches.alone).all() and (batches.worst < 1e-20).all()
    assert (batches.identified >= batches.exact / 6 - 1e-9).all() and (batches.images == 6).all()
    assert found["truth"].shape == found["found"].shape == (6, *SHAPE)
    exact = (found["truth"] == found["found"]).flatten(1).all(1) | (found["alone"] == 0)
    assert (
        (found["truth"] - found["found"]).abs().flatten(1).amax(1)[found["alone"] == 1] < 1e-6
    ).all() and exact.any()


def test_a_block_is_measured_once_and_what_the_server_draws_is_drawn_for_each_network():
    own, surrogate = holdings(), holdings().servers_own
    for server in (Imprint(num_bins=16), Imprint(num_bins=16, layout="scattered")):
        known = replace(server, surrogate=surrogate)
        sent = [model for model, _, _ in experiment._sent(own, known, None)]
        for k in range(2):
            drawn = replace(known, seed=network_seed(own.seed, k))
            assert models.fingerprint(sent[k]) == models.fingerprint(drawn.broadcast(own.network(k)))
        same = torch.equal(sent[0].imprint.rows.weight, sent[1].imprint.rows.weight)
        assert same != server.draws


def test_each_network_has_candidates_of_its_own():
    one, other = (holdings().candidates(k, 20) for k in range(2))
    assert one.shape == (20, *SHAPE) and not torch.equal(one, other)


def test_trap_weights_are_robbed_alike_and_secure_aggregation_changes_nothing():
    own = holdings(dtype=torch.float64, normalize=None, options=(("width", 64), ("activation", "relu")))
    trapped = experiment.robbed(own, TrapWeights(), TrapRows())["batches"]
    assert trapped.same.all()
    server = Imprint(num_bins=32)
    one, mean = (
        experiment.robbed(holdings(), server, RobbingTheFed(), observes=observes)["batches"]
        for observes in ("one client", "mean of 3")
    )
    assert one.exact.tolist() == mean.exact.tolist()


def test_one_shots_come_out_if_and_only_if_alone():
    shots = experiment.one_shots(holdings(size=20, dtype=torch.float64), 40, draws=30, read=10, query="avg", mode=0)
    read = shots.dropna(subset="exact")
    assert len(shots) == 30 and len(read) == 10 and (read.exact.astype(bool) == read.alone).all()
    assert 0.3 < shots.alone.mean() < 0.95


def test_prices_and_looks_have_a_row_for_each_server_and_network():
    blocks = {"no block": Honest(), "as released": Imprint.official(8)}
    paid = experiment.prices(holdings(), PUBLIC, blocks, steps=3, rates=(0.01,))
    assert paid.server.tolist() == ["no block"] * 2 + ["as released"] * 2 and paid.accuracy.between(0, 1).all()
    seen = experiment.inspected(holdings(), {"honest": Honest(), "block": Imprint(num_bins=16)}, Inspection())
    assert seen.refused.tolist() == [False, False, True, True] and seen.own.between(0, 1).all()


def test_frames_are_drawn_around_the_chosen_images_alone():
    images = torch.zeros(2, 3, 8, 8)
    framed = experiment.outlined(images, torch.tensor([0.0, 1.0]))
    assert torch.equal(framed[0], images[0]) and (framed[1, 0, 0] > 0.8).all() and (framed[1, :, 1:-1, 1:-1] == 0).all()
    pictures = experiment.first_pictures({"truth": images, "found": images, "alone": torch.tensor([1.0, 0.0])}, 2)
    assert (pictures["truth"][1, 0, 0] > 0.8).all() and (pictures["found"][0] == 0).all()


# --- rows under DP-SGD ------------------------------------------------------------------------------------------------


def rows_of(held, noise, bins=8):
    """Rows [1, bins, d + 1] of which the first hold one image each, at length 1 and of either sign, and noise."""
    draw = torch.Generator().manual_seed(7)
    unit = nn.functional.normalize(nn.functional.pad(held, (0, 1), value=1.0))
    rows = torch.zeros(1, bins, unit.shape[1])
    rows[0, : len(held)] = unit * torch.tensor([1.0, -1.0]).repeat(len(held))[: len(held), None]
    return rows + noise * torch.randn(rows.shape, generator=draw)


def smooth(count, seed):
    """Inputs [count, 48] that differ in six directions, and where they lie on eight bins of the first of these."""
    draw, fixed = (torch.Generator().manual_seed(s) for s in (seed, 0))
    basis = torch.randn(6, 48, generator=fixed) * torch.tensor([4, 3, 2, 1, 0.5, 0.2])[:, None]
    along = torch.randn(count, 6, generator=draw)
    edges = torch.special.ndtri(torch.linspace(0.001, 0.999, 9))
    places = (along[:, :1] - edges[:-1]) / edges.diff()
    return 0.3 + along @ basis, places


def held_in_bins(count):
    """For each of the first bins an image that lies in it."""
    images, places = smooth(500, seed=2)
    inside = (places > 0) & (places < 1)
    return images[inside[:, :count].int().argmax(0)]


def test_the_likeliest_images_are_those_in_the_rows_and_the_batch_says_how_many():
    images, places = smooth(1200, seed=1)
    held = held_in_bins(3)
    found = likely.most_likely(rows_of(held, 0.02), 0.02, images, places, count=3)
    assert found.shape == (1, 3, 48)
    away = torch.cdist(found[0], held)
    assert sorted(away.argmin(1).tolist()) == [0, 1, 2]
    mean = (held - images.mean(0)).norm(dim=1)
    assert (away.amin(0) < 0.9 * mean).all()


def test_a_row_is_as_likely_as_the_normal_law_of_its_bin_says():
    torch.manual_seed(0)
    images, places = smooth(400, seed=1)
    law, noise = likely._Law.of(images @ torch.randn(48, 5), places[:, 3], 100, 8), 0.3
    seen = torch.randn(6, 5)
    spread = law.basis @ torch.diag(law.variances) @ law.basis.T + noise**2 * torch.eye(5)
    full = torch.distributions.MultivariateNormal(law.mean, spread)
    empty = torch.distributions.MultivariateNormal(torch.zeros(5), noise**2 * torch.eye(5)).log_prob(seen)
    either = torch.stack([full.log_prob(seen), full.log_prob(-seen)]).logsumexp(0)
    torch.testing.assert_close(law.read(seen, noise)[0], either - empty, rtol=1e-3, atol=1e-3)


def test_it_guesses_from_rows_of_noise_alone():
    images, places = smooth(1200, seed=1)
    found = likely.most_likely(rows_of(images[:0], 1.0), 1.0, images, places, count=5)
    assert found.shape == (1, 5, 48) and found.isfinite().all()


def test_few_images_are_no_law():
    images, places = smooth(31, seed=1)
    with pytest.raises(ValueError, match="31 images do not say what images look like: give 32 or more"):
        likely.most_likely(rows_of(images[:1], 1.0), 1.0, images, places, 1)


def test_what_is_no_sparse_block_under_known_noise_is_refused():
    images, labels = batch(6)
    reader = likely.LikelyImages(PUBLIC, 1.0)
    for model, says in (
        (victim(), "no rows that pass one bin each"),
        (sent(), "no rows that pass one bin each"),
        (sent(layout="sparse"), "knows of no noise"),
    ):
        with pytest.raises(ValueError, match=says):
            reader(model, client.share(model, images, labels, threat=MALICIOUS))


def test_a_server_that_knows_the_clip_reads_on_where_noise_drowns_the_bias():
    own = holdings()
    server = Imprint(num_bins=32, layout="sparse", strength=1e6, gain=1e-6)
    plain = experiment.robbed(own, server, RobbingTheFed(), DPSGD(1.0, 0.05), known=True, among=50)["batches"]
    informed = experiment.robbed_by_who_knows(own, server, RobbingTheFed(), DPSGD(1.0, 0.05), 50)["batches"]
    assert informed.psnr.mean() > plain.psnr.mean() and informed.recovered.sum() == informed.images.sum()
    assert informed.identified.mean() > informed.chance.mean() and informed.chance.between(0, 1).all()
    # without DP-SGD it divides as ever
    one = experiment.robbed_by_who_knows(own, server, RobbingTheFed(), None, 50)["batches"].drop(columns="seconds")
    other = experiment.robbed(own, server, RobbingTheFed(), known=True, among=50)["batches"].drop(columns="seconds")
    assert one.equals(other)


def test_guesses_of_who_has_seen_nothing():
    told = experiment.guessed(holdings(), 50)
    assert told.trial.tolist() == list(range(6)) and (told.nearest >= told.grey).all()
    assert told[["grey", "mean", "nearest"]].stack().between(0, 1).all()
