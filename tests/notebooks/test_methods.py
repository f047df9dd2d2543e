"""The twenty lines of plain torch in which a chapter shows its method give what the library gives."""

import ast
import math
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cma import CMAEvolutionStrategy

from reprolib import attacks, data, defenses, experiments, models, servers
from reprolib.attacks import labels, matching, priors, separation
from reprolib.attacks.fgla import separate
from reprolib.attacks.first_layer import FirstLayer
from reprolib.defenses.precode import recovered_noise
from reprolib.experiments import networks, training
from reprolib.federated import client
from reprolib.federated.observation import Observation

NOTEBOOKS = Path(__file__).resolve().parent.parent.parent / "notebooks"


def method(stem, name, *called):
    """The function of that name in the chapter's cells, which calls those other functions of the chapter."""
    cells = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4).cells
    statements = [s for cell in cells if cell.cell_type == "code" for s in ast.parse(cell.source).body]
    defined = {
        "math": math,
        "np": np,
        "torch": torch,
        "nn": torch.nn,
        "F": F,
        "CMAEvolutionStrategy": CMAEvolutionStrategy,
    }
    for wanted in (name, *called):
        (found,) = [s for s in statements if isinstance(s, ast.FunctionDef) and s.name == wanted]
        exec(ast.unparse(found), defined)
    return defined[name]


@pytest.fixture
def victim():
    return models.build("lenet", 5, (3, 16, 16), seed=3).double()


@pytest.fixture
def images():
    return torch.rand(1, 1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_dlg(victim, images):
    update = client.share(victim, images, torch.tensor([[2]]))
    engine = replace(attacks.DLG.official(), iterations=3, init_mean=0.5, init_std=0.1)
    random = client.generator(7, 0, 0)
    start = 0.5 + 0.1 * torch.randn(1, 3, 16, 16, generator=random).double()
    logits = torch.randn(1, 5, generator=random).double()
    shared = [gradient[0] for gradient in update.gradients.values()]
    found = method("01-dlg", "dlg")(victim, shared, start, logits, steps=3)
    torch.testing.assert_close(found, engine(victim, update, seed=7).raw[0], rtol=0, atol=1e-6)


def test_the_label_rules():
    truth, weights, biases = experiments.head_gradients(50, 7, seed=3)
    named = [method("02-idlg", "rules")(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    for rule in labels.RULES:
        assert [one[rule] for one in named] == labels.infer(weights, biases, rule).tolist()
        assert [one[rule] for one in named] == truth.tolist()
    assert method("02-idlg", "rules")(weights[0, :2], biases[0, :2])["pairwise"] == -1, "two classes are opposites"


def test_idlg(victim, images):
    update = client.share(victim, images, torch.tensor([[2]]))
    engine = replace(attacks.IDLG.official(), iterations=3, init_mean=0.5, init_std=0.1)
    start = 0.5 + 0.1 * torch.randn(1, 3, 16, 16, generator=client.generator(7, 0, 0)).double()
    shared = [gradient[0] for gradient in update.gradients.values()]
    found, label = method("02-idlg", "idlg")(victim, shared, start, steps=3)
    assert label.tolist() == [2]
    torch.testing.assert_close(found, engine(victim, update, seed=7).raw[0], rtol=0, atol=1e-6)


@pytest.fixture
def normalised():
    """A victim that normalises its images, and a client's update of one image with its label."""

    def build(name, defense=None, knows=False, statistics="none", **options):
        victim = models.build(name, 5, (3, 16, 16), 3, normalize=training.CIFAR10, **options).double()
        images = torch.rand(1, 1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        threat = client.ThreatModel(labels="known", defense_known=knows, batch_norm=statistics)
        return victim, client.share(victim, images, torch.tensor([[2]]), threat=threat, defense=defense), images[0]

    return build


def numbers(update):
    return [gradient[0] for gradient in update.gradients.values()]


def first_draw(seed, *shape):
    return torch.randn(*shape, generator=client.generator(seed, 0, 0)).double()


def test_inverting_gradients(normalised):
    victim, update, _ = normalised("convnet8", width=4)
    engine = attacks.InvertingGradients(iterations=16)
    assert engine.schedule() == (5, 9, 14), "past every fall of the rate"
    by_hand = method("03-inverting-gradients", "inverting_gradients", "cost")
    found = by_hand(victim, numbers(update), torch.tensor([2]), first_draw(7, 1, 3, 16, 16), iterations=16)
    torch.testing.assert_close(found, engine(victim, update, seed=7).raw[0], rtol=0, atol=1e-6)


def test_gradinversion(normalised):
    victim, update, images = normalised("resnetbn8", statistics="exact", width=4)
    engine = replace(attacks.GradInversion.strong(), labels="known").compressed(12)
    assert engine.warmup == 5 and (engine.batch_norm, engine.total_variation) == (1e-3, 1e-3)
    statistics = method("04-gradinversion", "entering")(victim, images)[1]
    granted = [values[0] for pair in update.batch_norm.values() for values in pair]
    torch.testing.assert_close(statistics, granted, rtol=0, atol=1e-12)
    by_hand = method("04-gradinversion", "strong_by_hand", "cost", "entering")
    found = by_hand(victim, numbers(update), granted, torch.tensor([2]), first_draw(7, 1, 3, 16, 16), iterations=12)
    torch.testing.assert_close(found, engine(victim, update, seed=7).raw[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("init", ["default", "uniform"])
def test_soteria(normalised, init):
    victim, honest, images = normalised("lenet", init=init)
    batch = torch.cat([images, images.flip(-1)])
    for rate, shown in ((1, images), (60, images), (80, batch)):
        kept = method("06-soteria", "soteria")(victim, shown, rate)
        own = defenses.Soteria(rate).select(victim, shown, torch.Generator()).kept
        assert torch.equal(kept, own) and 0 < (~own).sum() < len(own)
    _, shared, _ = normalised("lenet", defenses.Soteria(80), knows=True, init=init)
    *trunk, weight, bias = numbers(honest)
    kept = method("06-soteria", "soteria")(victim, images, 80)
    torch.testing.assert_close(numbers(shared), [*trunk, weight * kept, bias], rtol=0, atol=0)


def test_soterias_two_attackers(normalised):
    victim, shared, _ = normalised("lenet", defenses.Soteria(80), knows=True)
    dummy = {name: torch.randn_like(gradient) for name, gradient in shared.gradients.items()}
    plain, told = Observation(shared.gradients), shared.defense.counter(victim, shared)
    ours = [gradient[0] for gradient in dummy.values()]
    for seen, left_out in ((plain, None), (told, len(ours) - 2)):
        found = method("06-soteria", "distance")(ours, numbers(shared), left_out)
        torch.testing.assert_close(found[None], matching.cosine(dummy, seen, torch.arange(1)), rtol=0, atol=1e-12)


def test_precode(normalised):
    plain, update, images = normalised("mlp", defenses.PRECODE(k=12), width=8, activation="relu")
    victim, given = defenses.PRECODE(k=12).extend(plain), torch.tensor([2])
    drawn = models.draw_noise(victim, 1, client.generator(0, 0, client.DEFENSE_STREAM, 0))
    loss = method("07-precode", "defended_loss")(victim, images, given, drawn["bottleneck.noise"])
    target = F.one_hot(given, 5).double()
    torch.testing.assert_close(loss, client.loss(victim, drawn, images, target), rtol=0, atol=1e-12)
    names, weights = zip(*victim.named_parameters(), strict=True)
    gradient = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    shared = {name: values[0] for name, values in update.gradients.items()}
    torch.testing.assert_close(gradient, shared, rtol=0, atol=1e-12)
    image, noise = method("07-precode", "secrets", "entered")(victim, shared)
    torch.testing.assert_close(noise, recovered_noise(victim, update)[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(noise, drawn["bottleneck.noise"][0], rtol=0, atol=1e-6)
    read = attacks.AnalyticRecovery()(victim, update).raw[0]
    torch.testing.assert_close(image, victim.normalize(read).flatten(), rtol=0, atol=1e-9)


def test_ggl(victim, images):
    clipping = defenses.NormOfUpdate(0.5)
    threat = client.ThreatModel(defense_known=True)
    update = client.share(victim, images, torch.tensor([[2]]), threat=threat, defense=clipping)
    prior = models.build_generator("vae", (3, 16, 16), 5, latent_dim=6, width=4).double()
    engine = replace(attacks.GGL.paper(prior), evaluations=60, population=10)
    functions = ("ggl", "cost", "shortened")
    by_hand = method("08-ggl", *functions)
    found = by_hand(victim, numbers(update), prior, client.generator(7, 0, 0, 1), generations=6, population=10)
    torch.testing.assert_close(found, engine(victim, update, seed=7).raw[0], rtol=0, atol=1e-9)
    z, one, seen = first_draw(8, 6), torch.arange(1), clipping.counter(victim, update)
    value = method("08-ggl", "cost", "shortened")(victim, numbers(update), prior, torch.tensor([2]), z)
    dummy = matching.dummy_gradients(victim, prior(z[None])[None], F.one_hot(torch.tensor([[2]]), 5).double())
    distance = matching.distance(seen.as_shared(dummy, one), seen, one) / len(dummy)
    penalty = engine.reg_weight * priors.moment_divergence(z[None, None])
    torch.testing.assert_close(value[None], distance + penalty, rtol=0, atol=1e-9)
    honest = client.share(victim, images, torch.tensor([[2]]))
    clipped = method("08-ggl", "shortened")(numbers(honest), [torch.tensor(0.5)])
    torch.testing.assert_close(clipped, numbers(update), rtol=0, atol=1e-9)


def test_grnn(victim, images):
    update = client.share(victim, images, torch.tensor([[2]]))
    engine = attacks.GRNN(iterations=4, noise_dim=6, width=2)
    (search,) = engine.searches(victim, update, 7)
    *parts, noise = search.first(0)[0].split(search.sizes)
    own = dict(zip(search.shapes, parts, strict=True))
    draw = method("16-grnn", "picture")(16, 6, 2).double()
    label = torch.nn.Linear(6, 5).double()
    order = ["first.weight", "first.bias"]
    for i in range(2):  # two doublings of a map of 4 x 4
        order += [f"convs.{i}.weight", f"norms.{i}.weight", f"norms.{i}.bias"]
    pairs = [*zip(draw.parameters(), order, strict=True), (label.weight, "label.weight"), (label.bias, "label.bias")]
    for parameter, name in pairs:
        parameter.data.copy_(own[name].view_as(parameter))
    loop = method("16-grnn", "grnn_by_hand", "variation")
    found, guess = loop(victim, numbers(update), draw, label, noise.view(1, 6), 4)
    ours = engine(victim, update, seed=7)
    torch.testing.assert_close(found, ours.raw[0], rtol=1e-6, atol=1e-8)
    assert torch.equal(guess, ours.labels[0])


def test_dual_pruning_and_its_two_attackers(victim, images):
    defense = defenses.DualPruning()
    honest = numbers(client.share(victim, images, torch.tensor([[2]])))
    for knows, name in ((False, "ignoring"), (True, "knowing")):
        threat = client.ThreatModel(labels="known", defense_known=knows)
        update = client.share(victim, images, torch.tensor([[2]]), threat=threat, defense=defense)
        shared = [method("09-defenses", "protect")(gradient) for gradient in honest]
        torch.testing.assert_close(shared, numbers(update), rtol=0, atol=0)
        engine = replace(attacks.DLG.first_release(), iterations=3, init_mean=0.5, init_std=0.1)
        start = 0.5 + 0.1 * torch.randn(1, 3, 16, 16, generator=client.generator(7, 0, 0)).double()
        cost = method("09-defenses", name)
        found = method("09-defenses", "reconstruct")(victim, shared, torch.tensor([2]), start.double(), cost, steps=3)
        torch.testing.assert_close(found, engine(victim, update, seed=7).raw[0], rtol=0, atol=1e-6)


def test_fgla():
    random = torch.Generator().manual_seed(1)
    head, features = torch.nn.Linear(6, 12).double(), torch.rand(3, 6, dtype=torch.float64, generator=random)
    given = torch.tensor([4, 0, 9])
    gradients = torch.autograd.grad(F.cross_entropy(head(features), given), list(head.parameters()))
    found = method("05-fgla", "fgla_by_hand")(*gradients, given, lambda features: features)
    own = separate(*(gradient[None] for gradient in gradients), given[None]).features[0]
    torch.testing.assert_close(found, own, rtol=0, atol=1e-12)


def test_cocktail_party():
    # edges of photographs, so that FastICA ends at one place, wherever it starts
    photos, _ = data.load("photos", count=5).batches(5, 1)
    inputs = photos[0].double().flatten(1)
    mixing = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight, bias = mixing @ inputs, mixing.sum(1)
    found = method("11-cocktail-party", "cocktail_party", "fast_ica")(weight, bias, (3, 32, 32), 5)
    layer = FirstLayer("hidden1", (3, 32, 32), weight[None], bias[None], 5, 2.2e-16)
    own = separation.separate(layer, samples="derivatives", tolerance=1e-14).inputs[0]
    nearest = torch.cdist(own, found).argmin(1)
    assert sorted(nearest.tolist()) == list(range(5))
    torch.testing.assert_close(found[nearest], own, rtol=0, atol=1e-4)


def test_robbing_the_fed(victim):
    random = torch.Generator().manual_seed(1)
    pixels, own = (torch.rand(n, 1, 1, 1, generator=random).double().expand(n, 3, 16, 16) for n in (200, 7))
    own = 0.8 * own + 0.2 * torch.rand(own.shape, dtype=torch.float64, generator=random)
    public = data.ImageSet("p", "train", pixels.float(), torch.zeros(200).long(), ("a",), "drawn", "p")
    sent = servers.Imprint(num_bins=16, surrogate=public).broadcast(victim)
    labels = torch.arange(7) % 5
    threat = client.ThreatModel(server="malicious architecture")
    engine = attacks.RobbingTheFed()(sent, client.share(sent, own[None], labels[None], threat=threat))
    bins = method("10-robbing-the-fed", "thresholds")(public.images.double(), 16)
    found = method("10-robbing-the-fed", "robbed_by_hand")(victim, own, labels, bins)
    torch.testing.assert_close(found, engine.raw[0][~engine.lost[0]], rtol=0, atol=1e-9)
    assert len(found) > 3


def test_exact_batches():
    images, labels = data.load("photos", count=5).batches(5, 1)
    victim = networks.one_hidden((3, 32, 32), 10, 128, seed=0).double()
    layer = FirstLayer.of(victim, client.share(victim, images.double(), labels))
    own = victim.get_submodule(layer.name)
    blurred = layer.of_pixels(images)[0] + 1e-3
    numbers = layer.weight[0], layer.bias[0], own.weight.detach(), own.bias.detach()
    found = method("12-exact-batches", "exact_by_hand")(*numbers, blurred)
    (read,) = attacks.MaskGuided()(victim, client.share(victim, images.double(), labels), seed=1).raw
    away = torch.cdist(found, layer.of_pixels(read[None])[0])
    assert away.amin(1).max() < 1e-6 and away.argmin(1).unique().numel() == 5
