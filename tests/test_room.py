"""Room for what comes next: a malicious server, tokens, several rounds. Each attack stands here, on no shared file."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from reprolib import data, defenses, models
from reprolib.attacks import AnalyticRecovery, GradInversion, InvertingGradients, Reconstruction
from reprolib.attacks.matching import Matching
from reprolib.attacks.search import Search, SearchAttack
from reprolib.federated import client, server
from reprolib.federated.client import LocalTraining, ThreatModel
from reprolib.federated.observation import Observation
from reprolib.measure import metrics
from reprolib.models.inputs import Tokens
from reprolib.models.victim import Victim
from reprolib.optimizers import adam, signed_adam


def photos(count, size=1):
    return data.load("photos", count=count * size).batches(size=size, count=count)


def mlp():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(3 * 32 * 32, 128), nn.ReLU(), nn.Linear(128, 10)
    return models.adapt(nn.Sequential(*layers), image_shape=(3, 32, 32), num_classes=10)


# --- a malicious server


@dataclass(frozen=True)
class Steps(server.Honest):
    """Every neuron of the first layer measures brightness, with a threshold of its own: imprint by weights alone."""

    kind: ClassVar[str] = "malicious parameters"

    def broadcast(self, model):
        sent = copy.deepcopy(model)
        first, second = (layer for layer in sent.modules() if isinstance(layer, nn.Linear))
        with torch.no_grad():
            first.weight.fill_(1 / first.in_features)
            first.bias.copy_(-torch.linspace(0, 1, len(first.bias)))
            second.weight.copy_(second.weight[:, :1])  # so that neighbours differ in nothing but their thresholds
        return sent


class Differences:
    """What a neuron lets through and the next does not, divided by the bias gradients' difference: one image alone."""

    def __call__(self, model, update, seed=0, progress=None, snapshots=()):
        update.check(model)
        update.require_server("Differences", "malicious parameters")
        name = next(name for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
        weight, bias = (update.gradients[f"{name}.{part}"].diff(dim=1) for part in ("weight", "bias"))
        images = model.inputs.of_points((weight / bias[:, :, None]).unflatten(2, update.image_shape))
        fits = ((images > -1e-2) & (images < 1.01)).flatten(2).all(2)
        raw = torch.stack([(own[ok] if ok.any() else own)[:1] for own, ok in zip(images, fits, strict=True)])
        nothing = torch.zeros(update.trials)
        labels = torch.zeros(update.trials, 1, dtype=torch.int64)
        return Reconstruction(raw, labels, nothing, nothing.long(), nothing.long() + 1, nothing.bool(), 0.0)


def test_a_malicious_server_sends_its_weights_and_reads_a_batch():
    (images, labels), crooked = photos(3, size=4), Steps()
    sent = crooked.broadcast(mlp())
    update = client.share(sent, images, labels, threat=ThreatModel(server=crooked.kind))
    found = Differences()(sent, update)
    nearest = (found.images - images).flatten(2).square().mean(2).min(1).values
    assert (nearest < 1e-4).all(), "one image of each batch, exactly"
    with pytest.raises(ValueError, match="Differences needs a server of the kind 'malicious parameters'.*'curious'"):
        Differences()(sent, client.share(sent, images, labels))


# --- tokens


class Reader(Victim):
    """Embeddings [N, L, D] of a few tokens, to classes."""

    def __init__(self, vocabulary=20, length=5, width=8, classes=4):
        super().__init__(classes, (length, width), nn.Identity())
        self.register_buffer("table", torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(1)))
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(length * width, 64), nn.Linear(64, classes)

    @property
    def inputs(self):
        return Tokens(self.image_shape[0], self.table)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x.flatten(1))))


@dataclass(frozen=True)
class Words(SearchAttack):
    """Gradient matching over embeddings, read as the nearest tokens."""

    iterations: int = 300
    labels: str = "known"

    def search(self, *told):
        return WordSearch(self, *told)


class WordSearch(Search):
    def steps(self, x, start):
        return adam(self.matching(start), x, self.attack.iterations, 0.05)


def test_an_attack_on_tokens_goes_the_way_of_images():
    model, random = Reader(), torch.Generator().manual_seed(0)
    tokens = torch.randint(20, (3, 1, 5), generator=random)
    labels = torch.randint(4, (3, 1), generator=random)
    update = client.share(model, tokens, labels, threat=ThreatModel(labels="known"))
    for attack in (Words(), InvertingGradients(300, 0.05, total_variation=0.0, signed=False)):
        assert torch.equal(attack(model, update).images, tokens), attack
    with pytest.raises(ValueError, match=r"tokens must lie in 0\.\.19, got 0 to 20"):
        client.share(model, torch.tensor([[[0, 1, 2, 3, 20]]]), labels[:1])
    with pytest.raises(ValueError, match=r"tokens must be int64 of shape \[trials, batch, 5\].*\[3, 1, 4\]"):
        client.share(model, tokens[:, :, :4], labels)
    for attack, message in (
        (
            InvertingGradients(2),
            "InvertingGradients with total_variation=0.01 smooths pixels, but this victim takes Tok",
        ),
        (GradInversion(iterations=60), "GradInversion registers and smooths pixels, but this victim takes Tokens"),
        (AnalyticRecovery("body"), "AnalyticRecovery reads pixels off a layer, but this victim takes Tokens: only"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(model, update)


def searching(**told):
    return dataclass(frozen=True)(type("Mine", (SearchAttack,), told))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "Mine searches, and needs labels and iterations: a field or an attribute"),
        ({"labels": "known", "iterations": 2}, r"Mine needs a method search\(self, \*told\) that returns a Search"),
        (
            {"labels": "read", "iterations": 2, "search": Words.search},
            "Mine has no rule for labels='read': rules = {'read': 'yin_sum'}, or another of .*bias_corrected",
        ),
        (
            {"labels": "known", "iterations": 2, "search": Words.search, "iterate": "lowest"},
            "Mine.iterate must be 'last' or 'best', got 'lowest'",
        ),
    ],
)
def test_an_attack_that_searches_says_what_it_lacks(told, message):
    with pytest.raises(TypeError, match=message):
        searching(**told)()


# --- rounds


@dataclass(frozen=True)
class Together:
    """One batch that takes part in every round, matched with all its updates at once."""

    iterations: int = 60

    def __call__(self, seen, seed=0):
        first = seen[0].update
        shape = (first.batch_size, *first.image_shape)
        labels = first.targets(first.labels, first.gradients["head.bias"])

        def of(round_):
            observation = Observation(round_.update.as_gradients())
            return Matching(round_.model, observation, lambda x, rows: (x.view(-1, *shape), labels[rows]))

        each = [of(round_) for round_ in seen]

        def objective(x, rows):
            values, slopes = zip(*(matching(x, rows) for matching in each), strict=True)
            return sum(values), sum(slopes)

        start = torch.rand(1, torch.Size(shape).numel(), generator=client.generator(seed, 0))
        *_, minimum = signed_adam(objective, start, self.iterations, 0.05, project=lambda x: x.clamp(0, 1))
        return minimum.last.view(1, *shape)


def test_three_rounds_say_more_than_one():
    (images, labels), told = photos(1, size=2), ThreatModel(labels="known")
    honest, lenet = server.Honest(learning_rate=1e-3), models.build("lenet", 10, (3, 32, 32), seed=0)
    rounds = list(server.rounds(honest, lenet, lambda _: (images, labels), 3, threat=told))
    alone, together = (Together()(seen) for seen in (rounds[:1], rounds))
    assert metrics.mse(together, images).mean() < metrics.mse(alone, images).mean()


@pytest.mark.parametrize("local", [None, LocalTraining(2, 1, 0.1)])
def test_a_round_is_a_step_of_federated_averaging(local):
    (images, labels), told = photos(2, size=4), ThreatModel(observes="mean of 2")
    model, honest = mlp(), server.Honest(learning_rate=0.2)
    of_round = lambda r: (images[r : r + 1], labels[r : r + 1])  # noqa: E731
    first, second = server.rounds(honest, model, of_round, 2, threat=told, local=local, seed=3)
    assert first.model is model and (first.number, second.number) == (0, 1)
    update = client.share(model, images[:1], labels[:1], threat=told, local=local, seed=3)
    factor = -0.2 if local is None else 1.0
    for name, weight in model.named_parameters():
        torch.testing.assert_close(second.model.get_parameter(name), weight + factor * update.gradients[name][0])
    again = client.share(second.model, images[1:], labels[1:], threat=told, local=local, seed=[(3, 1)])
    torch.testing.assert_close(second.update.gradients, again.gradients)


def test_each_round_draws_numbers_of_its_own():
    # round r is trial r of the seed, also where a pair names each round
    (images, labels), model, noise = photos(1, size=2), mlp(), defenses.GaussianNoise(0.1)
    for seed in (3, [(3, 0), (3, 1)]):
        for seen in server.rounds(server.Honest(), model, lambda _: (images, labels), 2, defense=noise, seed=seed):
            alone = client.share(seen.model, images, labels, defense=noise, seed=[(3, seen.number)])
            torch.testing.assert_close(seen.update.gradients, alone.gradients)


def test_clients_of_a_round_may_be_unequal_and_defended():
    (images, labels), told = photos(2, size=4), ThreatModel(observes="mean of 2", labels="known", defense_known=True)
    of_round = lambda r: (images[r : r + 1], labels[r : r + 1])  # noqa: E731
    defense, model = defenses.PRECODE(k=8), models.build("lenet", 10, (3, 32, 32), seed=0)
    for seen in server.rounds(server.Honest(), model, of_round, 2, threat=told, defense=defense, clients=(1, 3)):
        assert seen.update.sizes == (1, 3)
        seen.update.check(seen.model)


def test_running_statistics_move_where_clients_share_theirs():
    (images, labels), model = photos(1, size=4), models.build("resnetbn8", 10, (3, 32, 32), seed=0)
    layer = next(name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d))
    for shared, moved in (("buffers", True), ("none", False), ("exact", False)):
        told = ThreatModel(mode="train", batch_norm=shared)
        _, second = server.rounds(server.Honest(), model, lambda _: (images, labels), 2, threat=told)
        assert bool(second.model.get_buffer(f"{layer}.running_mean").any()) == moved


def test_rounds_refuse_what_is_no_federation():
    (images, labels), model = photos(2), mlp()
    with pytest.raises(ValueError, match="the threat model says server='curious', but .* is 'malicious parameters'"):
        server.rounds(Steps(), model, lambda _: (images, labels), 1, threat=ThreatModel())
    for count in (0, "2", True):
        with pytest.raises(ValueError, match="count must be a whole number >= 1, got"):
            server.rounds(server.Honest(), model, lambda _: (images, labels), count)
    with pytest.raises(ValueError, match=r"trial 1 has no pair \(seed, trial\); seed holds 1 of them"):
        server.rounds(server.Honest(), model, lambda _: (images, labels), 2, seed=[(0, 0)])
    with pytest.raises(ValueError, match=r"a round has one trial, images \[1, B, ..\], got 2"):
        next(server.rounds(server.Honest(), model, lambda _: (images, labels), 1))
    with pytest.raises(ValueError, match="learning_rate must be a finite number > 0, got 0"):
        server.Honest(learning_rate=0)
    with pytest.raises(ValueError, match="server must be one of 'curious', 'malicious parameters'.*got 'evil'"):
        ThreatModel(server="evil")
