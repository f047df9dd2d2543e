"""PRECODE: the bottleneck's law and sizes, the client's noise and loss, and what each informed attacker makes of it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from reprolib import attacks, data, defenses, experiments, models
from reprolib.attacks import AnalyticRecovery, InvertingGradients, linear_inputs, matching
from reprolib.attacks.matching import cosine, dummy_gradients
from reprolib.defenses import (
    PRECODE,
    Compose,
    ConvolutionalBottleneckSketch,
    Counter,
    GaussianNoise,
    PartialPerturbation,
    TopK,
)
from reprolib.defenses.precode import recovered_noise, upstream
from reprolib.experiments import utility
from reprolib.experiments.precode import attack_trained, losses_of_training
from reprolib.federated import client
from reprolib.federated.client import LocalTraining, share
from reprolib.federated.observation import Observation
from reprolib.federated.streams import generator
from reprolib.federated.threat import ThreatModel
from reprolib.models.bottleneck import ConvolutionalBottleneck, VariationalBottleneck, kl_bits

SHAPE, CLASSES = (3, 8, 8), 5
NORMAL = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
SMALL = PRECODE(k=16)
TOLD = ThreatModel(labels="known", defense_known=True)
NOISE = "bottleneck.noise"


@pytest.fixture(autouse=True)
def _seeded():
    """Layers built by hand draw their weights from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def victim(name="mlp", dtype=torch.float32, seed=0, **options):
    options = {"mlp": {"width": 32, "activation": "relu"}, "lenet": {"init": "default"}}[name] | options
    return models.build(name, CLASSES, SHAPE, seed=seed, normalize=NORMAL, **options).to(dtype)


def batch(trials, size=1, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(trials, size, *SHAPE, generator=random).to(dtype)
    return images, torch.randint(CLASSES, (trials, size), generator=random)


def soft(labels, dtype=torch.float32):
    return F.one_hot(labels, CLASSES).to(dtype)


def client_noise(model, trials, size=1, seed=0):
    """The noise that `share` draws for one client: [T, B, k] by its buffer."""
    drawn = [models.draw_noise(model, size, generator(seed, t, client.DEFENSE_STREAM, 0)) for t in range(trials)]
    return {name: torch.stack([own[name] for own in drawn]) for name in drawn[0]}


# --- the layer


def test_the_divergence_is_in_bits():
    zero, one = torch.zeros(3, 256), torch.ones(3, 256)
    assert kl_bits(zero, one).tolist() == [0, 0, 0]
    torch.testing.assert_close(kl_bits(one, one), torch.full((3,), 184.66), rtol=1e-4, atol=0)
    mu, std = torch.randn(4, 7, dtype=torch.float64), torch.rand(4, 7, dtype=torch.float64) + 0.1
    unit = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    nats = torch.distributions.kl_divergence(torch.distributions.Normal(mu, std), unit).sum(1)
    torch.testing.assert_close(kl_bits(mu, std), nats / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    maps = kl_bits(mu.view(2, 2, 7), std.view(2, 2, 7))  # of maps: over all of a sample's entries
    torch.testing.assert_close(maps, (nats / torch.log(torch.tensor(2.0, dtype=torch.float64))).view(2, 2).sum(1))


def test_the_spread_is_a_softplus_without_offset():
    layer = VariationalBottleneck((10,), k=4)
    for parameter in layer.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    mu, std = layer.encode(torch.randn(3, 10))
    assert mu.abs().max() == 0
    torch.testing.assert_close(std, torch.full((3, 4), 0.6931), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_forward_samples_unless_noise_is_given(mode):
    layer = VariationalBottleneck((10,), k=4).train(mode == "train")
    a, noise = torch.randn(3, 10), {"noise": torch.randn(3, 4)}
    assert not torch.equal(layer(a), layer(a))
    assert torch.equal(functional_call(layer, noise, (a,)), functional_call(layer, noise, (a,)))
    assert layer.noise is None and "noise" not in layer.state_dict()


def test_the_sample_has_the_mean_and_the_variance_that_the_encoder_gives():
    layer = VariationalBottleneck((4,), k=4)
    layer.decoder = torch.nn.Identity()  # so that the sample itself comes out
    a = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)).expand(10_000, -1)
    mu, std = (value[0] for value in layer.encode(a))
    z = layer(a)
    torch.testing.assert_close(z.mean(0), mu, rtol=0, atol=0.03)
    torch.testing.assert_close(z.var(0), std.square(), rtol=0.05, atol=0)


@pytest.mark.parametrize("in_shape", [(1024,), (12, 8, 8)])
def test_shapes_come_out_as_they_went_in(in_shape):
    layer = VariationalBottleneck(in_shape, k=6)
    assert layer(torch.randn(3, *in_shape)).shape == (3, *in_shape)
    assert layer.noise_shape == (6,)


def test_without_noise_or_spread_the_bottleneck_is_an_affine_map():
    layer = VariationalBottleneck((10,), k=4).double()
    a = torch.randn(3, 10, dtype=torch.float64)
    mean = a @ layer.encoder.weight[:4].T + layer.encoder.bias[:4]
    expected = mean @ layer.decoder.weight.T + layer.decoder.bias
    torch.testing.assert_close(functional_call(layer, {"noise": torch.zeros(3, 4).double()}, (a,)), expected)
    with torch.no_grad():
        layer.encoder.weight[4:] = 0
        layer.encoder.bias[4:] = -60  # softplus(-60) is 1e-26
    torch.testing.assert_close(layer(a), expected)


def test_noise_must_have_a_row_for_each_sample():
    layer = VariationalBottleneck((10,), k=4)
    with pytest.raises(ValueError, match=r"noise must have shape \[3, 4\] here, one row a sample, got \[4\]"):
        functional_call(layer, {"noise": torch.zeros(4)}, (torch.randn(3, 10),))


def test_the_penalty_is_the_mean_divergence_times_beta_and_handed_out_once():
    model = SMALL.extend(victim())
    x = batch(1, 4)[0][0]
    with pytest.raises(ValueError, match="'bottleneck' belongs to a forward pass"):
        models.penalty(model)
    features = models.penultimate(victim(), x)
    model(x)
    expected = 1e-3 * kl_bits(*model.bottleneck.encode(features)).mean()
    torch.testing.assert_close(models.penalty(model), expected)
    with pytest.raises(ValueError, match="run the model first"):
        models.penalty(model)
    assert models.penalty(victim()) == 0


# --- the extended model


def test_parameter_counts_and_order_are_the_official_ones():
    model = models.build("mlp", 10, (3, 32, 32), seed=0, width=1024, activation="relu")
    larger = PRECODE().extend(model)
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in larger.named_modules()}
    assert count["bottleneck.encoder"] == 524_800 and count["bottleneck.decoder"] == 263_168
    assert count["bottleneck"] == 787_968
    assert sum(p.numel() for p in model.parameters()) == 4_206_602 and count[""] == 4_994_570
    assert [name for name, _ in larger.named_parameters()] == [
        f"{layer}.{part}"
        for layer in ("hidden1", "hidden2", "bottleneck.encoder", "bottleneck.decoder", "head")
        for part in ("weight", "bias")
    ]


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_what_stands_before_and_behind_the_bottleneck_stays(name):
    model, x = victim(name), batch(1, 2)[0][0]
    before = models.fingerprint(model)
    larger = SMALL.extend(model)
    assert models.fingerprint(model) == before and not model.head._forward_pre_hooks
    assert isinstance(larger.head, torch.nn.Linear) and larger.image_shape == SHAPE and larger.num_classes == CLASSES
    for key, value in model.state_dict().items():
        assert torch.equal(larger.state_dict()[key], value)
    noise = models.no_noise(larger, 2)
    mean = functional_call(larger.bottleneck, {"noise": noise[NOISE]}, (models.penultimate(model, x),))
    torch.testing.assert_close(functional_call(larger, noise, (x,)), model.head(mean))


def test_client_and_attacker_extend_a_victim_to_the_same_network():
    first, again, other = (SMALL.extend(victim(seed=seed)) for seed in (0, 0, 1))
    assert models.fingerprint(first) == models.fingerprint(again)
    assert not torch.equal(first.bottleneck.encoder.weight, other.bottleneck.encoder.weight)
    state = torch.random.get_rng_state()
    update = share(victim(), *batch(2), defense=SMALL)
    update.check(SMALL.extend(victim()))
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ValueError, match="not of this model"):
        update.check(victim())
    assert SMALL.extend(victim(dtype=torch.float64)).bottleneck.encoder.weight.dtype == torch.float64


def test_copies_use_their_own_weights_and_do_not_drag_a_graph_along():
    model = SMALL.extend(victim())
    model(batch(1)[0][0])  # leaves a penalty with its graph
    copied = client.worker(model, "eval")
    assert copied.bottleneck.penalty is None
    with torch.no_grad():
        copied.bottleneck.decoder.weight.zero_()
        copied.bottleneck.decoder.bias.zero_()
    x = batch(1)[0][0]
    torch.testing.assert_close(copied(x), copied.head.bias.expand(1, -1))
    assert not torch.allclose(model(x), model.head.bias.expand(1, -1))


def test_a_model_is_extended_once_and_then_shared_as_it_was_trained():
    model = client.extended(victim(), SMALL)
    assert client.extended(model, SMALL) is model
    assert client.extended(model, replace(SMALL, against=Counter(noise="joint"))) is model
    with torch.no_grad():
        model.bottleneck.encoder.bias += 1
    share(model, *batch(2), defense=SMALL).check(model)
    assert client.extended(victim(), GaussianNoise(1.0)).__class__ is victim().__class__


# --- the client


def by_hand(model, x, y, noise):
    """Gradients of cross-entropy and penalty by plain autograd, for one trial."""
    loss = F.cross_entropy(functional_call(model, noise, (x,)), y) + models.penalty(model)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), gradients, strict=True))


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_the_client_shares_the_gradient_of_its_loss_under_its_own_noise(name):
    images, labels = batch(3, 2, torch.float64)
    model = SMALL.extend(victim(name, torch.float64))
    update, noise = share(victim(name, torch.float64), images, labels, defense=SMALL), client_noise(model, 3, 2)
    for t in range(3):
        expected = by_hand(model, images[t], labels[t], {key: value[t] for key, value in noise.items()})
        for key, gradient in expected.items():
            torch.testing.assert_close(update.gradients[key][t], gradient)


def test_a_trials_noise_is_its_own_and_the_seeds():
    images, labels = batch(3)
    whole = share(victim(), images, labels, defense=SMALL, seed=4)
    part = share(victim(), images[:2], labels[:2], defense=SMALL, seed=4)
    other = share(victim(), images, labels, defense=SMALL, seed=5)
    alike = share(victim(), images[:1].expand(2, -1, -1, -1, -1), labels[:1].expand(2, -1), defense=SMALL)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(gradient[:2], part.gradients[name])
    assert not torch.allclose(whole.gradients["head.weight"], other.gradients["head.weight"])
    assert not torch.allclose(*alike.gradients["head.weight"])
    assert not {NOISE, "noise"} & set(vars(whole)) and not any("noise" in name for name in whole.gradients)


def test_averaged_clients_draw_noise_apart():
    images, labels = batch(1, 2, torch.float64)
    model, twice = victim(dtype=torch.float64), images[:, :1].expand(-1, 2, -1, -1, -1)
    same = labels[:, :1].expand(-1, 2)
    mean = share(model, twice, same, defense=SMALL, threat=ThreatModel(observes="mean of 2"))
    larger = SMALL.extend(model)
    own = [
        by_hand(
            larger, twice[0, :1], same[0, :1], models.draw_noise(larger, 1, generator(0, 0, client.DEFENSE_STREAM, i))
        )
        for i in (0, 1)
    ]
    torch.testing.assert_close(mean.gradients["head.weight"][0], (own[0]["head.weight"] + own[1]["head.weight"]) / 2)


def test_local_steps_take_fresh_noise_in_order():
    images, labels = batch(2, 3, torch.float64)
    local = LocalTraining(epochs=2, batch_size=2, learning_rate=0.1)
    model = SMALL.extend(victim(dtype=torch.float64))
    update = share(victim(dtype=torch.float64), images, labels, defense=SMALL, local=local)
    noise = client_noise(model, 2, 6)[NOISE]
    for t in range(2):
        trained = client.worker(model, "eval")
        for rows, pictures in ((slice(0, 2), slice(0, 2)), (slice(2, 3), slice(2, 3))) + (
            (slice(3, 5), slice(0, 2)),
            (slice(5, 6), slice(2, 3)),
        ):
            step = by_hand(trained, images[t, pictures], labels[t, pictures], {NOISE: noise[t, rows]})
            with torch.no_grad():
                for key, parameter in trained.named_parameters():
                    parameter -= 0.1 * step[key]
        for (key, after), before in zip(trained.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(update.gradients[key][t], (after - before).detach())


def test_a_later_defense_does_not_repeat_the_noise_of_the_bottleneck():
    model, (images, labels) = victim(), batch(1)
    plain = share(model, images, labels, defense=SMALL)
    noisy = share(model, images, labels, defense=Compose([SMALL, GaussianNoise(1.0)]))
    added = (noisy.gradients["hidden1.weight"] - plain.gradients["hidden1.weight"]).flatten()[:16]
    assert (added - client_noise(SMALL.extend(model), 1)[NOISE].flatten()).abs().max() > 0.1
    draws = generator(0, 0, client.DEFENSE_STREAM, 0)
    assert share(model, images, labels).gradients["head.bias"].shape == (1, CLASSES)
    noise = torch.randn(32, 3 * 64, generator=draws)  # without a bottleneck the sequence is the old one
    bare = share(model, images, labels, defense=GaussianNoise(1.0)).gradients["hidden1.weight"]
    clean = share(model, images, labels).gradients["hidden1.weight"]
    torch.testing.assert_close(bare - clean, noise[None], rtol=0, atol=1e-6)


def test_statistics_of_batch_norm_and_training_go_with_a_bottleneck():
    model = models.build("resnetbn8", CLASSES, SHAPE, seed=0, width=4)
    images, labels = batch(2, 2)
    threat = ThreatModel(mode="train", labels="known", batch_norm="exact")
    exact = share(model, images, labels, threat=threat, defense=SMALL).batch_norm
    plain = share(model, images, labels, threat=threat).batch_norm
    for name, (mean, _) in plain.items():  # all of them are upstream
        torch.testing.assert_close(exact[name][0], mean)


# --- the objective at the truth


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_the_distance_is_zero_at_the_truth_under_the_clients_noise_alone(name):
    images, labels = batch(4, dtype=torch.float64)
    model = SMALL.extend(victim(name, torch.float64))
    update = share(victim(name, torch.float64), images, labels, defense=SMALL)
    trials, targets = torch.arange(4), soft(labels, torch.float64)

    def distance(noise, network=model):
        return cosine(dummy_gradients(network, images, targets, None, noise), Observation(update.gradients), trials)

    assert distance(client_noise(model, 4)).abs().max() < 1e-6
    fresh = {NOISE: torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(9)).double()}
    assert distance(fresh).mean() > 0.3
    forgetful = client.worker(model, "eval")
    models.leave_out_penalty(forgetful)
    assert 0 < distance(client_noise(model, 4), forgetful).max() < 1e-2  # the missing KL term is not what protects


def test_excluding_tensors_is_leaving_them_out_of_product_and_norms():
    images, labels = batch(3)
    model = SMALL.extend(victim())
    update = share(victim(), images, labels, defense=SMALL, threat=TOLD)
    reading = replace(SMALL, against=Counter("upstream", "resample")).counter(model, update)
    dummies = {name: torch.randn_like(g) for name, g in update.gradients.items()}
    matched = upstream(model)
    assert matched == ["hidden1.weight", "hidden1.bias", "hidden2.weight", "hidden2.bias"]
    assert {name for name in dummies if name not in reading.weight} == set(matched)
    a, b = (torch.cat([g[name].flatten(1) for name in matched], 1) for g in (dummies, update.gradients))
    torch.testing.assert_close(cosine(dummies, reading, torch.arange(3)), 1 - F.cosine_similarity(a, b))


def test_the_cosine_of_the_first_layer_is_a_product_of_two():
    images, _ = batch(2, dtype=torch.float64)
    model, others = SMALL.extend(victim(dtype=torch.float64)), batch(2, dtype=torch.float64, seed=5)[0]
    y = soft(torch.tensor([[1], [2]]), torch.float64)
    gradients = [
        dummy_gradients(model, x, y, None, {NOISE: torch.randn(2, 1, 16, dtype=torch.float64)})
        for x in (images, others)
    ]
    first, deltas = ([g[f"hidden1.{part}"].flatten(1) for g in gradients] for part in ("weight", "bias"))
    inputs = [((x - model.normalize.mean) / model.normalize.std).flatten(1) for x in (images, others)]
    product = F.cosine_similarity(*deltas) * F.cosine_similarity(*inputs)
    torch.testing.assert_close(F.cosine_similarity(*first), product, rtol=0, atol=1e-5)


# --- what leaks in closed form


@pytest.mark.parametrize("beta", [0.0, 1e-3, 1.0])
def test_the_first_layer_gives_the_image_whatever_the_noise(beta):
    images, labels = batch(6)
    for seed in (0, 1):
        defense = PRECODE(k=16, beta=beta)
        update = share(victim(), images, labels, defense=defense, seed=seed)
        found = AnalyticRecovery()(defense.extend(victim()), update)
        assert (found.raw - images).abs().max() < 1e-5
        assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_the_noise_of_a_single_image_can_be_read_off(name):
    images, labels = batch(6)
    update = share(victim(name), images, labels, defense=SMALL)
    model = SMALL.extend(victim(name))
    truth = client_noise(model, 6)[NOISE][:, 0]
    assert (recovered_noise(model, update) - truth).abs().max() < 1e-4
    entered = linear_inputs(update.gradients["bottleneck.encoder.weight"], update.gradients["bottleneck.encoder.bias"])
    torch.testing.assert_close(entered, models.penultimate(victim(name), images[:, 0]), rtol=0, atol=1e-5)
    networks = [SMALL.extend(victim(name, seed=seed)) for seed in (0, 1)]
    updates = [share(victim(name, seed=seed), images[:3], labels[:3], defense=SMALL) for seed in (0, 1)]
    together = models.Victims.of(networks, 3)
    joined = client.SharedUpdate.join(updates, together)
    torch.testing.assert_close(recovered_noise(together, joined), torch.cat([truth[:3]] * 2), rtol=0, atol=1e-4)


def test_the_recovered_noise_makes_the_network_deterministic():
    images, labels = batch(3, dtype=torch.float64)
    update = share(victim(dtype=torch.float64), images, labels, defense=SMALL, threat=TOLD)
    model, trials = SMALL.extend(victim(dtype=torch.float64)), torch.arange(3)
    reading = replace(SMALL, against=Counter("all", "recovered")).counter(model, update)
    found = dummy_gradients(model, images, soft(labels, torch.float64), None, reading.noise)
    assert cosine(found, reading, trials).abs().max() < 1e-6


# --- attacks


QUICK = InvertingGradients(iterations=60, total_variation=1e-6, milestones="exact")


def attacked(defense, name="mlp", threat=TOLD, attack=QUICK, trials=2):
    images, labels = batch(trials)
    update = share(victim(name), images, labels, defense=defense, threat=threat)
    return attack(defense.extend(victim(name)), update), images


def error(result):
    found, images = result
    return (found.images - images).square().mean().item()


def test_the_informed_attackers_do_better_than_the_naive_one():
    naive = error(attacked(SMALL, threat=ThreatModel(labels="known")))
    for counter in (Counter("upstream", "resample"), Counter("upstream", "zero"), Counter("all", "recovered")):
        assert error(attacked(replace(SMALL, against=counter))) < 0.7 * naive


def test_joint_noise_is_optimised_and_lowers_the_objective():
    fixed, _ = attacked(replace(SMALL, against=Counter("all", "fixed")), trials=4)
    joint, _ = attacked(replace(SMALL, against=Counter("all", "joint")), trials=4)
    assert (joint.objective < fixed.objective).all() and joint.objective.mean() < 0.5 * fixed.objective.mean()
    assert joint.raw.shape == fixed.raw.shape


@pytest.mark.parametrize("counter", [Counter("all", "resample"), Counter("upstream", "fixed"), Counter("all", "joint")])
def test_a_trials_result_does_not_depend_on_the_others(counter):
    defense, attack = replace(SMALL, against=counter), replace(QUICK, iterations=5)
    images, labels = batch(3, dtype=torch.float64)
    model = victim(dtype=torch.float64)
    whole = share(model, images, labels, defense=defense, threat=TOLD)
    together = attack(defense.extend(model), whole, seed=3)
    alone = attack(defense.extend(model), whole.select([0]), seed=3)
    torch.testing.assert_close(together.raw[:1], alone.raw)
    torch.testing.assert_close(together.objective[:1], alone.objective)
    watched = attack(defense.extend(model), whole, seed=3, snapshots=(0, 2, 5))
    assert torch.equal(watched.raw, together.raw) and torch.equal(watched.objective, together.objective)


def test_an_attackers_noise_is_not_the_clients():
    images, labels = batch(1)
    model, seen = SMALL.extend(victim()), []
    update = share(victim(), images, labels, defense=SMALL, threat=ThreatModel(labels="known"), seed=0)

    def spy(network, tensors, x, y):
        seen.append(tensors[NOISE])
        return F.cross_entropy(functional_call(network, tensors, (x,)), y) + models.penalty(network)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "loss", spy)
        replace(QUICK, iterations=3)(model, update, seed=0)
    truth = client_noise(model, 1)[NOISE][0]
    assert len(seen) == 5 and all((drawn - truth).abs().max() > 0.5 for drawn in seen)
    assert not torch.equal(seen[0], seen[1])  # drawn anew at every pass


def test_averaging_is_the_mean_gradient_over_fresh_noise():
    images, labels = batch(2, dtype=torch.float64)
    model = SMALL.extend(victim(dtype=torch.float64))
    update = share(victim(dtype=torch.float64), images, labels, defense=SMALL, threat=TOLD)
    reading = replace(SMALL, against=Counter("all", "resample", draws=3)).counter(model, update)
    source = matching.dummy_noise(model, reading, [generator(0, t, 0, 1) for t in range(2)], 1)
    again = matching.dummy_noise(model, reading, [generator(0, t, 0, 1) for t in range(2)], 1)
    y, trials = soft(labels, torch.float64), torch.arange(2)

    def parts(x, of):
        return x.view(-1, *images.shape[1:]), y[of]

    objective = matching.Matching(model, reading, parts, noise=source, compare=cosine)
    passes = [dummy_gradients(model, images, y, None, drawn) for drawn in again(images, trials)]
    mean = {name: sum(g[name] for g in passes) / 3 for name in passes[0]}
    torch.testing.assert_close(objective(images.flatten(1), trials)[0], cosine(mean, reading, trials).detach())


def test_three_passes_of_one_noise_are_one_pass():
    images, labels = batch(2, dtype=torch.float64)
    model = SMALL.extend(victim(dtype=torch.float64))
    update = share(victim(dtype=torch.float64), images, labels, defense=SMALL, threat=TOLD)
    y, trials, noise = soft(labels, torch.float64), torch.arange(2), client_noise(model, 2)
    drawn = {name: values.double() for name, values in noise.items()}

    def cost(passes):
        reading = Observation(update.gradients, penalty=True)
        parts = lambda x, of: (x.view(-1, *images.shape[1:]), y[of])  # noqa: E731
        return matching.Matching(model, reading, parts, noise=lambda x, of: [drawn] * passes)

    dummies = 0.5 * images.flatten(1)
    for once, thrice in zip(cost(1)(dummies, trials), cost(3)(dummies, trials), strict=True):
        torch.testing.assert_close(once, thrice)
    assert cost(3)(images.flatten(1), trials)[0].max() < 1e-20


def test_a_composition_reads_the_bottleneck_as_its_member_does():
    images, labels = batch(2)
    member = replace(SMALL, against=Counter("all", "resample", draws=3, penalty=True))
    defense = Compose([member, GaussianNoise(0.1)])
    model = defense.extend(victim())
    update = share(victim(), images, labels, defense=defense, threat=TOLD)
    whole, own = defense.counter(model, update), member.counter(model, update)
    assert (whole.noise, whole.draws, whole.penalty) == (own.noise, own.draws, own.penalty) == ("resample", 3, True)


def test_the_seeds_of_an_update_draw_their_noise_apart():
    images, labels = batch(2, dtype=torch.float64)
    model = SMALL.extend(victim(dtype=torch.float64))
    update = share(victim(dtype=torch.float64), images, labels, defense=SMALL, threat=ThreatModel(labels="known"))
    attack = attacks.GradInversion(iterations=3, warmup=1, gradient=1.0, labels="known", seeds=2, group=0.0)
    (search,) = attack.searches(model, update)
    at_one_point = search.value(images.flatten(1).repeat_interleave(2, 0), 0).view(2, 2)
    assert ((at_one_point[:, 0] - at_one_point[:, 1]).abs() > 1e-6).all()


def test_an_attackers_noise_is_not_where_its_images_start():
    images, labels = batch(2)
    model = SMALL.extend(victim())
    update = share(victim(), images, labels, defense=SMALL, threat=ThreatModel(labels="known"))
    (search,) = QUICK.searches(model, update)
    start = search.first(0)
    (drawn,) = search.noise(0)(start, torch.arange(2))
    assert not torch.isin(drawn[NOISE], start).any()


@pytest.mark.parametrize("chosen", [[0], [2], [2, 0], [1, 1]])
def test_noise_that_is_drawn_once_is_a_trials_own(chosen):
    """Whatever company a trial is attacked in: by its pair (seed, trial), as everything that an attack draws."""
    images, labels = batch(3, dtype=torch.float64)
    defense, model = replace(SMALL, against=Counter("all", "fixed")), victim(dtype=torch.float64)
    update, larger = share(model, images, labels, defense=defense, threat=TOLD), defense.extend(model)
    for attack in (replace(QUICK, iterations=3), attacks.DLG(iterations=1, labels="known")):
        together = attack(larger, update, seed=3)
        apart = attack(larger, update.select(chosen), seed=[(3, trial) for trial in chosen])
        torch.testing.assert_close(apart.objective, together.objective[chosen], rtol=1e-9, atol=0)
        torch.testing.assert_close(apart.raw, together.raw[chosen], rtol=1e-9, atol=1e-12)


def test_noise_that_is_drawn_once_is_the_same_at_every_pass_and_another_for_every_trial_and_seed():
    images, labels = batch(3)
    defense, model = replace(SMALL, against=Counter("all", "fixed")), SMALL.extend(victim())
    reading = defense.counter(model, share(victim(), images, labels, defense=SMALL, threat=TOLD))
    drawn = []
    for seed in (0, 1):
        source = matching.dummy_noise(model, reading, [client.generator(seed, trial) for trial in range(3)], 1)
        (first,), (again,) = (source(images, torch.tensor(rows)) for rows in ([0, 1, 2], [2, 1]))
        assert first[NOISE].shape == (3, 1, 16) and torch.equal(first[NOISE][[2, 1]], again[NOISE])
        drawn.append(first[NOISE])
    every = torch.cat(drawn)
    assert all((every[i] - every[j]).abs().max() > 0.1 for i in range(6) for j in range(i))


@pytest.mark.parametrize(
    "attack",
    [attacks.DLG(iterations=2, labels="known"), replace(attacks.GradInversion.balanced().compressed(3), gradient=0.1)],
)
def test_other_attacks_draw_noise_too_and_refuse_to_optimise_it(attack):
    attack = replace(attack, labels="known")
    attacked(SMALL, threat=ThreatModel(labels="known"), attack=attack)
    attacked(SMALL, attack=attack)
    with pytest.raises(ValueError, match="use attacks.InvertingGradients"):
        attacked(replace(SMALL, against=Counter("all", "joint")), attack=attack)


def test_drawn_networks_are_attacked_together():
    images = data.load("photos", "test", 40)
    for defense in (SMALL, Compose([SMALL, PartialPerturbation(GaussianNoise(1e-3))])):
        scores = experiments.attack_trials(
            replace(QUICK, iterations=2),
            images,
            trials=[0, 1, 2, 3],
            each=2,
            seed=0,
            device=torch.device("cpu"),
            threat=TOLD,
            defense=defense,
            model="mlp",
            trained_on=images,
            train_steps=2,
            options={"width": 8},
        )["scores"]
        assert len(scores) == 4 and scores.network.tolist() == [0, 0, 1, 1]


# --- the chapter's measurements


def measured(function, trials=3, model="mlp", **more):
    options = {"mlp": {"width": 16, "activation": "relu"}, "lenet": {"init": "default"}}[model]
    images, device = data.load("photos", "test", 40), torch.device("cpu")
    return function(images=images, trials=trials, seed=0, device=device, model=model, **more, **options)


def test_the_distance_at_the_truth_is_split_by_noise_and_by_layer():
    table = measured(experiments.noise_at_truth, defense=SMALL)
    assert len(table) == 3 * 2 * 3 * 2
    mean = table.groupby(["tensors", "image", "noise"]).distance.mean()
    assert mean["all", "true", "the client's"] < 1e-2  # the KL term is left out
    assert mean["upstream", "true", "none"] < mean["upstream", "random", "none"]
    again = measured(experiments.noise_at_truth, defense=SMALL, trials=2)
    torch.testing.assert_close(torch.tensor(again.distance), torch.tensor(table.distance[: len(again)]))
    layers = measured(experiments.noise_by_layer, defense=SMALL)
    assert layers.groupby("trial").share.sum().tolist() == pytest.approx([1] * 3)
    cosines = layers.groupby("parameter").cosine.mean()
    assert cosines["hidden1.weight"] > cosines["head.weight"]
    bare = measured(experiments.noise_by_layer, defense=None)
    assert (bare.cosine > 0.9999).all() and bare.length.gt(0).all() and "head.weight" in set(bare.parameter)
    squares = bare.length.pow(2) / bare.groupby("trial").length.transform(lambda part: part.pow(2).sum())
    assert bare.share.tolist() == pytest.approx(squares.tolist(), rel=1e-4)


@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_closed_forms_need_no_search(model):
    table = measured(experiments.closed_form, defense=SMALL, model=model)
    assert table.label.all() and (table.noise < 1e-3).all()
    assert "image" not in table if model == "lenet" else (table.image < 1e-5).all()


def test_objectives_are_followed_from_the_start_to_the_end():
    cases = {"plain": None, "PRECODE": SMALL}
    attack, steps = replace(QUICK, iterations=20), (0, 10, 20)
    table = measured(experiments.objective_curves, 2, attack=attack, steps=steps, cases=cases)
    assert table.case.tolist() == ["plain"] * 3 + ["PRECODE"] * 3 and table.iteration.tolist() == [0, 10, 20] * 2
    assert table.distance[2] < table.distance[0]


def test_training_is_looked_at_inside():
    images = data.load("photos", "test", 40)
    table = experiments.noise_after_training(
        images, images, (0, 60), 0, torch.device("cpu"), SMALL, "mlp", width=16, activation="relu"
    )
    assert table.steps.tolist() == [0, 60]
    assert table["std"][0] == pytest.approx(0.69, abs=0.1) and table.accuracy[1] > table.accuracy[0]


def trained(trials, **more):
    images, options = data.load("photos", "test", 40), {"model": "mlp", "width": 8, "activation": "relu"}
    aims = {"unchanged": (SMALL, replace(TOLD, defense_known=False)), "omit": (replace(SMALL, against=ZERO), TOLD)}
    how = {"attack": replace(QUICK, iterations=2), "each": 2, "seed": 0, "device": torch.device("cpu"), "steps": 3}
    return attack_trained(
        images=images, trials=trials, train_images=images, **how | {"defense": SMALL, "aims": aims} | more, **options
    )


ZERO = Counter("upstream", "zero")


def test_a_trained_network_is_attacked_in_several_ways_and_any_trial_can_be_run_again():
    table = trained([0, 1, 2, 3])
    assert table.network.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert table.aim.tolist() == ["unchanged", "unchanged", "omit", "omit"] * 2
    again = trained([3])
    pairs = table[table.trial == 3].set_index("aim"), again.set_index("aim")
    torch.testing.assert_close(*(torch.tensor(t.mse.loc[["unchanged", "omit"]].to_numpy()) for t in pairs))
    assert not torch.allclose(*(torch.tensor(t.mse.to_numpy()) for t in (table, trained([0, 1, 2, 3], steps=0))))


def test_a_network_is_attacked_under_the_defense_that_it_trained_with():
    with pytest.raises(ValueError, match="aims plain read another defense than defense=PRECODE: train for each apart"):
        trained([0], aims={"plain": (None, TOLD)})


def losses(**more):
    images = data.load("photos", "test", 40)
    options = {"model": "mlp", "width": 32, "activation": "relu"}
    given = {"defense": SMALL, "runs": [0, 1], "epochs": (0, 4), "seed": 0, "device": torch.device("cpu")}
    return losses_of_training(images, images, **given | {"batch_size": 8} | more, **options)


def test_losses_fall_in_training_and_hold_the_divergence_of_a_bottleneck():
    table = losses()
    assert table.run.tolist() == [0, 0, 1, 1] and table.epochs.tolist() == [0, 4, 0, 4]
    first, last = (table[table.epochs == count].train_loss.to_numpy() for count in (0, 4))
    assert (last < first).all() and (table.test_loss > table.test_entropy).all()
    plain = losses(defense=None)
    assert plain.test_loss.tolist() == pytest.approx(plain.test_entropy.tolist())
    assert losses(runs=[1]).test_loss.tolist() == pytest.approx(table[table.run == 1].test_loss.tolist())


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(ValueError, match="40 training images make no batch of 64: pass more, or a smaller one"):
        losses(batch_size=64)


# --- partial perturbation, and the convolutional sketch


@pytest.mark.parametrize("inner", [GaussianNoise(0.1), TopK(0.9)], ids=str)
def test_partial_perturbation_leaves_the_random_gradients_bit_by_bit(inner):
    images, labels = batch(2)
    plain = share(victim(), images, labels, defense=SMALL)
    partial = share(victim(), images, labels, defense=Compose([SMALL, PartialPerturbation(inner)]))
    names = list(plain.gradients)
    for name in names[:4]:
        assert not torch.equal(plain.gradients[name], partial.gradients[name])
    for name in names[4:]:
        assert torch.equal(plain.gradients[name], partial.gradients[name])


def test_the_counter_of_partial_perturbation_is_that_of_the_perturbation():
    images, labels = batch(2)
    both = Compose([SMALL, PartialPerturbation(TopK(0.5))])
    update = share(victim(), images, labels, defense=both, threat=TOLD)
    reading = both.counter(both.extend(victim()), update)
    assert set(reading.slack) == set(upstream(SMALL.extend(victim()))) and reading.penalty
    assert set(reading.weight) == set(update.gradients) - set(reading.slack) and NOISE in reading.noise
    noisy = Compose([SMALL, PartialPerturbation(GaussianNoise(0.5))])
    assert noisy.counter(both.extend(victim()), update).noise_std == 0.5


def test_the_convolutional_sketch_stands_early_and_keeps_the_maps():
    sketch = ConvolutionalBottleneckSketch(k=3)
    assert "sketch" in str(sketch)
    model = sketch.extend(victim("lenet"))
    assert isinstance(model.bottleneck, ConvolutionalBottleneck) and model.bottleneck.noise_shape == (3, 4, 4)
    assert upstream(model) == ["conv1.weight", "conv1.bias"]
    assert model(batch(1, 2)[0][0]).shape == (2, CLASSES)
    attacked(sketch, "lenet", attack=replace(QUICK, iterations=2))
    update = share(victim("lenet"), *batch(1), defense=sketch)
    with pytest.raises(ValueError, match="ConvolutionalBottleneck cannot be recovered"):
        recovered_noise(model, update)


# --- utility


def test_training_minimises_the_clients_loss_and_repeats():
    images = data.load("photos", "train", 60)
    model = models.build("mlp", images.num_classes, images.image_shape, seed=0, width=16, activation="relu")
    runs = [
        utility.train(client.extended(model, PRECODE(k=4, beta=beta)), images, 40, 0.01, seed=0)
        for beta in (1e-3, 1e-3, 0.3)
    ]
    assert models.fingerprint(runs[0]) == models.fingerprint(runs[1])
    assert utility.accuracy(runs[0], images) == utility.accuracy(runs[1], images)

    def divergence(run):
        seen = []
        handle = run.bottleneck.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        run(images.images)
        handle.remove()
        return kl_bits(*run.bottleneck.encode(seen[0])).mean()

    assert divergence(runs[2]) < divergence(runs[0])


# --- bad input


def test_a_second_bottleneck_is_refused():
    once = SMALL.extend(victim("lenet"))
    for again in (SMALL, PRECODE(k=3, before="conv2"), ConvolutionalBottleneckSketch()):
        with pytest.raises(ValueError, match="has a bottleneck already"):
            again.extend(once)
    with pytest.raises(ValueError, match="has a bottleneck already"):
        share(victim(), *batch(1), defense=Compose([SMALL, SMALL]))
    with pytest.raises(ValueError, match="has a bottleneck already"):
        share(client.extended(victim(), SMALL), *batch(1), defense=PRECODE(k=8))


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (PRECODE(before="fc9"), r"before='fc9' is no layer that PRECODE before fc9 can stand before: .*'hidden1'"),
        (PRECODE(before="activation"), "before='activation' is no layer"),
        (ConvolutionalBottleneckSketch(before="head"), "before='head' is no layer"),
    ],
)
def test_a_layer_that_is_not_there_or_of_another_kind_is_refused(defense, message):
    with pytest.raises(ValueError, match=message):
        defense.extend(victim())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PRECODE(k=0), "k must be a whole number >= 1, got 0"),
        (lambda: PRECODE(k=True), "k must be a whole number >= 1, got True"),
        (lambda: PRECODE(beta=-1.0), "beta must be a finite number >= 0, got -1.0"),
        (lambda: PRECODE(before=3), "before must be a str, got 3"),
        (lambda: PRECODE(against="joint"), "against must be a Counter, got 'joint'"),
        (lambda: Counter(tensors="prefix"), "tensors must be one of 'all', 'upstream', got 'prefix'"),
        (lambda: Counter(noise="none"), "noise must be one of 'resample', .*, got 'none'"),
        (lambda: Counter(draws=0), "draws must be a whole number >= 1, got 0"),
        (lambda: Counter(noise="zero", draws=4), "draws=4 averages over fresh noise, but noise='zero'"),
        (lambda: PartialPerturbation(0.1), "perturbation must be a Defense, got 0.1"),
        (lambda: defenses.build("PRECODE", width=3), "unknown settings .*known settings are k, beta, before, against"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_cannot_be_read_or_matched_is_refused():
    images, labels = batch(1, 2)
    model = SMALL.extend(victim())
    for local, found in ((None, r"2 image\(s\) and 1 step"), (LocalTraining(1, 1, 0.1), r"2 image\(s\) and 2 step")):
        update = share(victim(), images, labels, defense=SMALL, threat=TOLD, local=local)
        with pytest.raises(ValueError, match=found):
            QUICK(model, update)
    naive = share(victim(), images, labels, defense=SMALL, threat=ThreatModel(labels="known"), local=local)
    with pytest.raises(ValueError, match="matched by a single gradient, not along local steps"):
        QUICK(model, naive)
    at_the_input = PRECODE(k=4, before="hidden1", against=Counter(noise="zero"))
    with pytest.raises(ValueError, match="no parameter is upstream of the bottleneck"):
        attacked(at_the_input)
    with pytest.raises(ValueError, match="the model has no bottleneck"):
        share(victim(), *batch(1), defense=PartialPerturbation(GaussianNoise(1.0)))
    with pytest.raises(ValueError, match=r"bottleneck needs noise=\['bottleneck.noise'\]"):
        matching.Matching(model, Observation(naive.gradients), lambda x, of: (x, x))
