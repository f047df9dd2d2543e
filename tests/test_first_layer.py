"""The first layer's gradient as a mixture of the batch, its rank, its refusals, and the separation of what is mixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import fastica
from torch import Tensor, nn

from reprolib import data, models
from reprolib.attacks import first_layer, separation
from reprolib.attacks.first_layer import FirstLayer, numerical_rank
from reprolib.defenses import GaussianNoise, TopK
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, ThreatModel
from reprolib.models.inputs import Tokens
from reprolib.models.victim import Victim

HALF = ((0.5,) * 3, (0.4, 0.5, 0.6))


def victim(shape: tuple[int, int, int] = (3, 8, 8), width: int = 32, seed: int = 0, **options: object) -> Victim:
    """A network of one hidden ReLU layer, the paper's FC2 in small, in float64."""
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], width), nn.ReLU(), nn.Linear(width, 10)]
    return models.adapt(nn.Sequential(*layers), shape, 10, normalize=HALF, **options).double()


def batch(size: int, trials: int, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(trials, size, *shape, generator=random, dtype=torch.float64)
    return images, torch.randint(10, (trials, size), generator=random)


def photos(size: int, trials: int) -> tuple[Tensor, Tensor]:
    images, labels = data.load("photos", count=size * trials).batches(size, trials)
    return images.double(), labels


def own_deltas(model: Victim, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Deltas [m, B] and inputs [B, d] of one batch, image by image with plain autograd: the independent computation."""
    first, deltas, inputs = model.body[1], [], []
    for image, label in zip(images, labels, strict=True):
        entered = model.normalize(image[None]).flatten(1)
        z = first(entered).detach().requires_grad_()
        loss = nn.functional.cross_entropy(model.head(model.body[2](z)), label[None]) / len(images)
        deltas.append(torch.autograd.grad(loss, z)[0][0])
        inputs.append(entered[0].detach())
    return torch.stack(deltas, 1), torch.stack(inputs)


def test_it_is_the_mixture_of_the_batch():
    model, (images, labels) = victim(), batch(5, 2)
    layer = FirstLayer.of(model, client.share(model, images, labels))
    assert (layer.name, layer.shape, layer.batch_size) == ("body.1", (3, 8, 8), 5)
    for trial in range(2):
        deltas, inputs = own_deltas(model, images[trial], labels[trial])
        torch.testing.assert_close(layer.weight[trial], deltas @ inputs, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(layer.bias[trial], deltas.sum(1), rtol=1e-12, atol=1e-15)
    assert layer.rank.rank.tolist() == [5, 5] and (layer.rank.gap > 1e9).all()
    torch.testing.assert_close(layer.to_pixels(layer.of_pixels(images)), images)
    left, values, right = layer.decomposed
    torch.testing.assert_close(left * values[:, None] @ right, layer.weight)
    torch.testing.assert_close(values, torch.linalg.svdvals(layer.weight), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_reads_in_float64_and_counts_images_in_either_dtype(dtype):
    model, (images, labels) = victim().to(dtype), batch(7, 3)
    layer = FirstLayer.of(model, client.share(model, images.to(dtype), labels))
    assert layer.weight.dtype == layer.bias.dtype == torch.float64
    assert layer.rank.rank.tolist() == [7] * 3


@pytest.mark.parametrize(
    "local",
    [
        LocalTraining(epochs=1, batch_size=3, learning_rate=0.1),
        LocalTraining(epochs=3, batch_size=2, learning_rate=0.1, momentum=0.9, shuffle=True),
        LocalTraining(epochs=2, batch_size=2, learning_rate=0.1, weight_decay=0.1),
        LocalTraining(epochs=2, batch_size=2, learning_rate=0.1, weight_decay=0.1, momentum=0.5),
    ],
)
@pytest.mark.parametrize("threat", [ThreatModel(), ThreatModel(observes="mean of 2")])
def test_steps_of_sgd_and_several_clients_leave_the_images_span(local, threat):
    model, (images, labels) = victim(), batch(6, 2)
    layer = FirstLayer.of(model, client.share(model, images, labels, local=local, threat=threat))
    assert layer.rank.rank.tolist() == [6, 6]
    inputs = layer.of_pixels(images)
    found, _, lost, residual = separation.scaled_by_bias(layer, inputs * torch.tensor([1, -2, 3, -4, 5, 6.0])[:, None])
    torch.testing.assert_close(found, inputs)
    assert not lost.any() and residual.max() < 1e-8


def test_unequal_clients_with_weight_decay():
    local = LocalTraining(epochs=1, batch_size=2, learning_rate=0.1, weight_decay=0.1)
    model, (images, labels) = victim(), batch(6, 1)
    threat = ThreatModel(observes="mean of 2")
    layer = FirstLayer.of(model, client.share(model, images, labels, local=local, threat=threat, clients=(1, 5)))
    assert layer.rank.rank.tolist() == [6]


def test_dead_rows_are_left_out():
    model, (images, labels) = victim(), batch(3, 1)
    with torch.no_grad():
        model.body[1].bias[[2, 5]] = -100.0
    layer = FirstLayer.of(model, client.share(model, images, labels))
    assert not layer.alive[0, [2, 5]].any()
    weight, bias = layer.rows(0)
    assert len(weight) == len(bias) == int(layer.alive.sum()) <= 30
    assert layer.rank.rank.tolist() == [3]


def test_a_row_that_lost_its_bias_entry_alone_is_not_dead():
    model, (images, labels) = victim(), batch(3, 1)
    layer = FirstLayer.of(model, client.share(model, images, labels))
    row, bias = layer.alive[0].nonzero()[0, 0], layer.bias.clone()
    bias[0, row] = 0
    pruned = replace(layer, bias=bias)
    assert pruned.alive[0, row] and torch.equal(pruned.rows(0)[0], layer.rows(0)[0])


def test_a_layer_behind_a_trunk_is_read_by_name():
    model = models.build("convnet8", 10, (3, 8, 8), seed=0, width=4).double()
    images, labels = batch(2, 2)
    update = client.share(model, images, labels)
    with pytest.raises(ValueError, match="first layer is not linear: the image enters 'trunk.0', a Conv2d.*'head'"):
        FirstLayer.of(model, update)
    layer = FirstLayer.of(model, update, "head")
    assert layer.shape == (16, 2, 2) and layer.rank.rank.tolist() == [2, 2]
    features = model.trunk(model.normalize(images.flatten(0, 1))).flatten(1).view(2, 2, -1).detach()
    spanned = features @ layer.subspace(2).mT @ layer.subspace(2)
    torch.testing.assert_close(spanned, features)
    with pytest.raises(ValueError, match="features, not images: a decoder"):
        layer.to_pixels(features)
    local = LocalTraining(epochs=2, batch_size=2, learning_rate=0.1)
    with pytest.raises(ValueError, match="'head', which lies behind others, matches one gradient.*2 local steps"):
        FirstLayer.of(model, client.share(model, images, labels, local=local), "head")
    pooled = models.build("convnet8", 10, (3, 8, 8), seed=0, width=4, pooled=True).double()
    assert FirstLayer.of(pooled, client.share(pooled, images, labels), "head").shape == (16,)


class _NoBias(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 8, bias=False), nn.ReLU(), nn.Linear(8, 10))


class _OfRows(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(0, 2), nn.Linear(8, 8), nn.Unflatten(0, (-1, 24)), nn.Flatten(), nn.Linear(192, 10))


def test_refusals():
    model, (images, labels) = victim(), batch(4, 2)
    update = client.share(model, images, labels)
    with pytest.raises(
        ValueError, match=r"layer='body.2' is no linear layer of this model; it has \['body.1', 'head'\]"
    ):
        FirstLayer.of(model, update, "body.2")
    adam = LocalTraining(epochs=2, batch_size=2, learning_rate=0.01, optimizer="adam")
    with pytest.raises(ValueError, match="linear in the gradients.*'adam'.*mixing of the images is lost"):
        FirstLayer.of(model, client.share(model, images, labels, local=adam))
    broken = replace(update, gradients={n: g.clone() for n, g in update.gradients.items()})
    broken.gradients["body.1.weight"][1, 3] = float("nan")
    with pytest.raises(ValueError, match="'body.1.weight' has a NaN or infinite entry in trial 1"):
        FirstLayer.of(model, broken)
    with pytest.raises(ValueError, match="other weights"):
        FirstLayer.of(victim(seed=1), update)
    for module, message in ((_NoBias(), "'body.1' has no bias"), (_OfRows(), "'body.1' does not take one vector")):
        other = models.adapt(module, (3, 8, 8), 10).double()
        with pytest.raises(ValueError, match=message):
            FirstLayer.of(other, client.share(other, images, labels), "body.1")
    frozen = victim()
    frozen.body[1].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing of \['body.1.weight'\]: the clients do not train that layer"):
        FirstLayer.of(frozen, client.share(frozen, images, labels))
    layer = FirstLayer.of(model, update)
    nan = layer.weight.clone()
    nan[1, 3, 0] = float("inf")
    with pytest.raises(ValueError, match="weight gradient has a NaN or infinite entry in row 3 of trial 1"):
        replace(layer, weight=nan)
    with pytest.raises(ValueError, match="bias gradient has a NaN or infinite entry in trial 0"):
        replace(layer, bias=layer.bias * float("nan"))
    with pytest.raises(ValueError, match=r"shapes \[T, m, d\] and \[T, m\]"):
        replace(layer, bias=layer.bias[:1])
    with pytest.raises(ValueError, match=r"shape=\(3, 8\) holds no 192 values"):
        replace(layer, shape=(3, 8))


def test_batches_that_cannot_be_separated_are_refused():
    model, (images, labels) = victim(width=6), batch(8, 1)
    layer = FirstLayer.of(model, client.share(model, images, labels))
    with pytest.raises(ValueError, match="8 images are mixed in the layer 'body.1', which is 6 wide.*at most 6"):
        layer.sources()
    model, (images, labels) = victim(), batch(4, 2)
    images[1, 3], labels[1, 3] = images[1, 2], labels[1, 2]
    layer = FirstLayer.of(model, client.share(model, images, labels))
    assert layer.rank.rank.tolist() == [4, 3]
    with pytest.raises(ValueError, match="numerical rank 3 in trial 1, below the 4 images.*copies.*sources=3"):
        separation.separate(layer)
    assert separation.separate(layer, sources=3, samples="pixels", iterations=3).inputs.shape == (2, 3, 192)


def test_numerical_rank():
    values = torch.tensor(
        [[4.0, 2.0, 1e-3, 1e-18], [1.0, 1e-17, 1e-18, 0.0], [3.0, 2.0, 1.0, 0.5]], dtype=torch.float64
    )
    found = numerical_rank(values, 2.2e-16)
    assert found.rank.tolist() == [3, 1, 4]
    torch.testing.assert_close(found.gap, torch.tensor([1e15, 1e17, torch.inf], dtype=torch.float64))


def test_what_a_known_defense_leaves_open():
    model, (images, labels) = victim(), batch(4, 2)
    known = ThreatModel(defense_known=True)
    plain = FirstLayer.of(model, client.share(model, images, labels))
    assert plain.slack is None and plain.bias_slack is None and separation.completed(plain) is plain
    layer = FirstLayer.of(model, client.share(model, images, labels, defense=TopK(0.5), threat=known))
    assert torch.equal(layer.slack > 0, layer.weight == 0) and 0.4 < (layer.slack > 0).double().mean() < 0.6
    assert (layer.slack >= (plain.weight - layer.weight).abs() - 1e-15).all()
    assert ((layer.bias_slack > 0) == (layer.bias == 0)).all()
    assert FirstLayer.of(model, client.share(model, images, labels, defense=TopK(0.5))).slack is None
    noisy = FirstLayer.of(model, client.share(model, images, labels, defense=GaussianNoise(1e-3), threat=known))
    assert noisy.noise_std == 1e-3 and noisy.slack is None and noisy.rank.rank.tolist() == [32, 32]


def test_pruned_entries_are_filled_in():
    model, (images, labels) = victim(), batch(3, 2)
    plain = FirstLayer.of(model, client.share(model, images, labels))
    threat = ThreatModel(defense_known=True)
    layer = FirstLayer.of(model, client.share(model, images, labels, defense=TopK(0.3), threat=threat))
    filled = separation.completed(layer)
    before, after = ((own.weight - plain.weight).norm() for own in (layer, filled))
    assert after < 0.1 * before
    assert torch.equal(filled.weight[layer.slack == 0], plain.weight[layer.slack == 0])
    assert ((filled.weight - layer.weight).abs() <= layer.slack).all()
    found, *_ = separation.scaled_by_bias(filled, filled.of_pixels(images))
    torch.testing.assert_close(filled.to_pixels(found), images, rtol=0, atol=0.1)


def test_derivatives_are_differences_and_commute_with_mixing():
    images, _ = batch(5, 2)
    found = separation.derivatives(images.flatten(2), (3, 8, 8))
    slow = torch.cat(
        [(images[..., 1:] - images[..., :-1]).flatten(2), (images[..., 1:, :] - images[..., :-1, :]).flatten(2)], 2
    )
    assert torch.equal(found, slow)
    mixing = torch.randn(2, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(separation.derivatives(mixing @ images.flatten(2), (3, 8, 8)), mixing @ found)
    with pytest.raises(ValueError, match=r"shape=\(192,\) has no neighbouring pixels.*samples='pixels'"):
        separation.derivatives(images.flatten(2), (192,))


def test_bands_are_all_differences_of_two_orders_by_colour():
    images, _ = batch(5, 2)
    found = separation.bands(images.flatten(2), (3, 8, 8))
    brightness = images.sum(2) / 3**0.5
    band = brightness[..., 2:, :] - 2 * brightness[..., 1:-1, :] + brightness[..., :-2, :]  # the third of the bands
    band = band / band.square().mean((1, 2, 3), keepdim=True).sqrt()
    start = 3 * (8 * 6 + 7 * 7)
    torch.testing.assert_close(found[:, :, start : start + 48], band.flatten(2))
    assert found.shape[2] == 3 * (48 + 49 + 48 + 40 + 42 + 42 + 40)
    torch.testing.assert_close(found.square().mean(), torch.ones((), dtype=torch.float64))
    turned = torch.linalg.qr(torch.randn(2, 5, 5, dtype=torch.float64)).Q
    torch.testing.assert_close(separation.bands(turned @ images.flatten(2), (3, 8, 8)), turned @ found)
    for shape in ((192,), (3, 3, 8)):
        with pytest.raises(ValueError, match="no map of four pixels a side: use samples='derivatives' or 'pixels'"):
            separation.bands(images.flatten(2)[..., : torch.Size(shape).numel()], shape)
    grey = separation.bands(images[:, :, 0].flatten(2), (1, 8, 8))
    assert grey.shape[2] * 3 == found.shape[2] and grey.isfinite().all()


def test_bands_of_noise_count_for_nothing_where_it_is_known():
    noise = torch.randn(1, 40, 3 * 16 * 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = torch.tensor([0.25], dtype=torch.float64)
    plain = separation.bands(0.5 * noise, (3, 16, 16))
    told = separation.bands(0.5 * noise, (3, 16, 16), variance)
    assert told.shape[2] == plain.shape[2] + 3 * 2 * 16 * 15  # first differences too
    torch.testing.assert_close(plain.square().mean(), torch.ones((), dtype=torch.float64))
    assert told.square().mean() < 0.02
    images, _ = photos(40, 1)
    kept = separation.bands(images.flatten(2)[..., :3072], (3, 32, 32), torch.tensor([1e-12], dtype=torch.float64))
    torch.testing.assert_close(kept.square().mean(), torch.ones((), dtype=torch.float64))


def laplacian_sources(sources: int, count: int, trials: int = 1, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(size=(trials, sources, count)))


def test_whitening():
    torch.manual_seed(0)
    mixed = torch.randn(2, 9, 6, dtype=torch.float64) @ laplacian_sources(6, 500, 2)
    unit = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    with pytest.raises(ValueError, match="trial 0 vary in fewer than 9 directions"):
        separation.whitened(mixed)
    mixed = mixed[:, :6]
    white, whitening = separation.whitened(mixed)
    torch.testing.assert_close(white @ white.mT / 500, unit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whitening @ (mixed - mixed.mean(2, keepdim=True)), white)


def test_fast_ica_is_scikit_learns():
    torch.manual_seed(0)
    mixed = torch.randn(3, 5, 5, dtype=torch.float64) @ laplacian_sources(5, 800, 3)
    white, _ = separation.whitened(mixed)
    start = torch.randn(3, 5, 5, dtype=torch.float64)
    found = separation.fast_ica(white, start)
    assert found.converged.all()
    for trial in range(3):
        _, theirs, _ = fastica(
            white[trial].numpy().T, whiten=False, tol=1e-7, max_iter=2000, w_init=start[trial].numpy(), fun="logcosh"
        )
        torch.testing.assert_close(found.matrix[trial], torch.from_numpy(theirs), rtol=1e-6, atol=1e-6)
    alone = separation.fast_ica(white[1:2], start[1:2])
    torch.testing.assert_close(alone.matrix[0], found.matrix[1])
    assert int(alone.iterations) == int(found.iterations[1])
    short = separation.fast_ica(white, start, iterations=1)
    assert not short.converged.any() and short.iterations.tolist() == [1, 1, 1]


def test_64_independent_sources_are_found():
    torch.manual_seed(0)
    sources = laplacian_sources(64, 6000)
    white, _ = separation.whitened(torch.randn(1, 64, 64, dtype=torch.float64) @ sources)
    found = separation.fast_ica(white, torch.randn(1, 64, 64, dtype=torch.float64)).matrix @ white
    cosines = nn.functional.normalize(found[0], dim=1) @ nn.functional.normalize(sources[0], dim=1).T
    best = cosines.abs().amax(0)
    assert best.min() > 0.98 and len(cosines.abs().argmax(0).unique()) == 64


def closest(found: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each true image's nearest found one: [T, B]."""
    return (found[:, :, None] - truth[:, None]).square().flatten(3).mean(3).amin(1)


def test_real_images_are_separated_without_the_truth():
    model, (images, labels) = victim((3, 32, 32), 64), photos(6, 2)
    update = client.share(model, images, labels)
    layer = FirstLayer.of(model, update)
    found = separation.separate(layer)
    pixels = layer.to_pixels(found.inputs).clamp(0, 1)
    assert found.converged.all() and not found.lost.any() and found.residual.max() < 1e-8
    assert closest(pixels, images).log10().mean() < -2.9
    torch.testing.assert_close(found.mixing @ found.inputs, layer.weight, rtol=1e-8, atol=1e-10)
    # neither the batch's order nor a factor of the update changes the images
    turned = client.share(model, images.flip(1), labels.flip(1))
    longer = replace(update, gradients={n: 7 * g for n, g in update.gradients.items()})
    for other in (turned, longer):
        again = separation.separate(FirstLayer.of(model, other))
        assert closest(layer.to_pixels(again.inputs).clamp(0, 1), pixels).max() < 1e-6
    alone = separation.separate(FirstLayer.of(model, update.select(1)), seed=[(0, 1)])
    torch.testing.assert_close(alone.inputs[0], found.inputs[1], rtol=1e-8, atol=1e-8)


def test_scale_and_sign_come_from_the_bias_in_any_order():
    model, (images, labels) = victim(), batch(4, 2)
    layer = FirstLayer.of(model, client.share(model, images, labels))
    inputs = layer.of_pixels(images)
    directions = (inputs * torch.tensor([0.1, -3.0, 50.0, -1.0])[:, None])[:, [2, 0, 3, 1]]
    found, mixing, lost, residual = separation.scaled_by_bias(layer, directions)
    torch.testing.assert_close(found, inputs[:, [2, 0, 3, 1]])
    assert not lost.any() and residual.max() < 1e-8
    deltas, _ = own_deltas(model, images[0], labels[0])
    torch.testing.assert_close(mixing[0], deltas[:, [2, 0, 3, 1]], rtol=1e-8, atol=1e-12)


def test_an_input_without_weight_in_the_bias_is_lost():
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(1, 8, 3, generator=random, dtype=torch.float64)
    inputs = torch.randn(1, 3, 12, generator=random, dtype=torch.float64)
    bias = mixing @ torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    layer = FirstLayer("hidden1", (3, 2, 2), mixing @ inputs, bias, 3, 2.2e-16)
    found, _, lost, _ = separation.scaled_by_bias(layer, inputs)
    assert lost.tolist() == [[False, False, True]]
    torch.testing.assert_close(found[:, :2], inputs[:, :2])
    assert not found[:, 2].any()


def test_tokens_have_no_first_layer_of_pixels():
    class OfTokens(nn.Module):
        inputs = Tokens(4, torch.zeros(5, 3))

    with pytest.raises(ValueError, match="the model takes tokens, not images"):
        first_layer._found(OfTokens(), None)
