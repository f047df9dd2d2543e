"""Fixed numbers of the attacks that read images out of a layer's gradient, and of what they stand on."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from fixed import MEANS, SINGLE, batch, case, drawn, exact, images_of, known, refused, settled, victim
from torch import Tensor, nn

from reprolib import attacks, defenses, models, servers
from reprolib.attacks import columns, masks_at_once, rtf, separation, spear
from reprolib.attacks.cocktail_party import Party
from reprolib.attacks.columns import Mixture
from reprolib.attacks.first_layer import FirstLayer, numerical_rank
from reprolib.attacks.likely import LikelyImages, most_likely
from reprolib.experiments.networks import one_hidden
from reprolib.federated import client
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims

SHAPE = (3, 6, 5)


def hidden(width: int = 40, activation: str = "relu", count: int = 4, seed: int = 0) -> models.Victim:
    """One hidden layer in front of a ReLU."""
    return exact(one_hidden(SHAPE, count, width, seed, activation), seed)


def shared(size: int = 3, trials: int = 2, model: nn.Module | None = None, **told: object) -> tuple:
    model = model or hidden()
    images, labels = batch(trials, size, SHAPE)
    threat = known(**{name: told.pop(name) for name in ("defense_known", "observes", "server") if name in told})
    return model, client.share(model, images, labels, threat=threat, seed=6, **told), images


def mixed(size: int = 4, width: int = 40, seed: int = 0) -> tuple[Mixture, FirstLayer, Tensor]:
    """A batch's gradient, decomposed, and the columns that are true."""
    model, update, images = shared(size, 1, hidden(width, seed=seed))
    layer = FirstLayer.of(model, update)
    mixture = Mixture.of(layer, 0, Victims.of(model), size, None)
    return mixture, layer, torch.linalg.lstsq(layer.of_pixels(images)[0].T, mixture.right.T).solution.T


@case("AnalyticRecovery and linear_inputs")
def _() -> object:
    found = {}
    for size, rows in product((1, 2), ("least_squares", "largest")):
        model, (images, labels) = victim(), batch(3, size)
        for name, local in {"gradient": None, "local": client.LocalTraining(2, 1, 0.1)}.items():
            update = client.share(model, images, labels, local=local)
            if local is None or size == 1:
                found[f"{size} {rows} {name}"] = attacks.AnalyticRecovery(rows=rows)(model, update)
    head = update.gradients["head.weight"], update.gradients["head.bias"]
    return found, attacks.linear_inputs(*head), refused(lambda: attacks.AnalyticRecovery("hidden2")(model, update))


@case("a first layer, as attacks read it")
def _() -> object:
    found, decay = {}, client.LocalTraining(2, 1, 0.1, weight_decay=0.1)
    for name, told in {
        "gradient": {},
        "decay": {"local": decay},
        "clients": {"local": decay, "clients": (1, 2), "observes": "mean of 2"},
        "pruned": {"defense": defenses.TopK(0.6), "defense_known": True},
        "dual": {"defense": defenses.DualPruning(0.1, 0.5), "defense_known": True},
        "noise": {"defense": defenses.GaussianNoise(1e-3), "defense_known": True},
    }.items():
        model, update, _ = shared(3, 2, **told)
        layer = FirstLayer.of(model, update)
        kept = [layer.weight, layer.bias, layer.slack, layer.bias_slack, layer.noise_std, layer.eps, layer.name]
        decomposed = layer.decomposed[1][:, :8], layer.alive.double(), layer.rank.rank
        found[name] = [*kept, *decomposed, layer.subspace(3).square(), [row.shape for row in layer.rows(1)]]
    model, update, images = shared(3, 2, hidden(5))
    wide = FirstLayer.of(model, update)
    layer = FirstLayer.of(model, update, "head")
    values = torch.tensor([[3.0, 1.0, 1e-12, 0.0], [1.0, 1e-3, 1e-4, 1e-5]], dtype=torch.float64)
    made = FirstLayer("a", (3, 6, 5), torch.zeros(1, 4, 90).double(), torch.tensor([[0.0, 1, 0, 2]]).double(), 2, 1e-16)
    made.weight[0, 2, 5] = 1.0
    found["dead rows"] = [made.alive, made.rows(0)]
    found["ranks"] = [numerical_rank(values, 2e-16), numerical_rank(values, 1e-5)]
    found["refused"] = [refused(lambda: layer.sources(9)), refused(lambda: layer.to_pixels(drawn(2, 3, 5)))]
    return found | {
        "wide": wide.decomposed[1],
        "pixels": wide.of_pixels(images),
        "back": wide.to_pixels(drawn(2, 3, 90)),
    }


@case("RobbingTheFed and TrapRows")
def _() -> object:
    found, plain = {}, victim(activation="relu")
    blocks = {
        "cumulative": servers.Imprint(num_bins=6, surrogate=images_of(40), shuffled=True),
        "sparse": servers.Imprint(num_bins=6, surrogate=images_of(40), layout="sparse"),
        "scattered": servers.Imprint(num_bins=8, surrogate=images_of(40), layout="scattered", rate=0.3),
    }
    for name, block in blocks.items():
        sent = block.broadcast(plain)
        for defense, differences in product((None, defenses.GaussianNoise(3e-3)), ("downward", "upward")):
            told = {"server": block.kind, "defense": defense, "defense_known": defense is not None}
            model, update, _ = shared(4, 2, sent, **told)
            for tolerance in (1e-5, 0.3):
                attack = attacks.RobbingTheFed(tolerance, differences)
                found[f"{name} {defense} {differences} {tolerance}"] = attack(model, update)
    for seed, defense in ((0, None), (1, defenses.GaussianNoise(1e-2))):
        sent = servers.TrapWeights(seed=seed).broadcast(victim(activation="relu", normalize=None, width=20))
        told = {"server": "malicious parameters", "defense": defense, "defense_known": True}
        model, update, _ = shared(4, 2, sent, **told)
        found[f"traps {seed}"] = [attacks.TrapRows(t)(model, update) for t in (1e-5, 0.2)]
    weight, bias = drawn(2, 4, 3), drawn(2, 4, seed=3) * torch.tensor([[1.0], [1e-4]])
    found["bins"] = [rtf.bins(weight, bias, way) for way in ("downward", "upward")]
    found["rows"] = [rtf.read_rows(weight, bias, *way) for way in ((0.3, 0.0), (1e-5, 2e-5))]
    numbers = ((10, 4), (1, 1), (64, 100))
    return found | {"told": [(rtf.expected_alone(*n), rtf.expected_by_configurations(*n)) for n in numbers]}


@case("the likeliest images behind noise")
def _() -> object:
    public = images_of(60)
    block = servers.Imprint(num_bins=6, surrogate=public, layout="sparse", gain=1e-3, strength=1e3)
    told = {"server": block.kind, "defense": defenses.DPSGD(1.0, 0.05), "defense_known": True}
    model, update, _ = shared(2, 2, block.broadcast(victim(activation="relu")), **told)
    images = drawn(48, 7, seed=5)
    places = (drawn(48, 4, seed=6) - 0.3) * 2
    rows = torch.nn.functional.normalize(torch.cat([images[:8], torch.ones(8, 1)], 1)).view(2, 4, 8)
    found = most_likely(rows + 0.1 * (drawn(2, 4, 8) - 0.5), 0.1, images, places, 3)
    return LikelyImages(public, 1.0)(model, update), found


@case("blind separation, step by step")
@settled()
def _() -> object:
    maps = drawn(2, 4, 90) - 0.3
    bands = [separation.bands(maps, SHAPE), separation.bands(maps, SHAPE, torch.tensor([0.01, 0.05]))]
    bands.append(separation.bands(maps[:, :, :60], (2, 6, 5)))
    white, whitening = separation.whitened(bands[0])
    start = drawn(2, 4, 4, seed=4) - 0.5
    ica = [separation.fast_ica(white, start, n, steepness=a).matrix for n, a in product((1, 3), (1.0, 3.0))]
    ended = separation.fast_ica(white, start, 40, 1e-2)
    return (
        bands,
        separation.derivatives(maps, SHAPE),
        white.square(),
        whitening.square(),
        ica,
        ended.iterations,
        ended.converged,
    )


@case("separated inputs and what fills a known defense's gaps")
@settled()
def _() -> object:
    model, update, _ = shared(3, 2)
    layer, found = FirstLayer.of(model, update), {}
    for samples in ("bands", "derivatives", "pixels"):
        way = separation.separate(layer, 3, samples, 4, iterations=3)
        if samples == "pixels":  # whose whitening any rotation leaves as it is
            found[samples] = [way.residual, way.lost]
            continue
        found[samples] = [way.inputs.square().sum(1), way.residual, way.lost, way.mixing.square().sum(2)]
    directions = drawn(2, 3, 90, seed=4)
    found["scaled"] = separation.scaled_by_bias(layer, directions)
    shown = torch.where(drawn(2, 40, seed=5) < 0.6, 0.0, torch.inf)
    found["scaled by some"] = separation.scaled_by_bias(replace(layer, bias_slack=shown), directions)
    pruned = FirstLayer.of(*shared(3, 2, defense=defenses.TopK(0.6), defense_known=True)[:2])
    found["completed"] = [separation.completed(pruned, n, steps).weight for n, steps in ((None, 3), (2, 4))]
    noisy = replace(layer, noise_std=1e-3)
    return found | {"noisy": separation.separate(noisy, iterations=2).inputs.square().sum(1)}


@case("DerivativeICA")
@settled()
def _() -> object:
    found = {}
    for name, told in {
        "gradient": {},
        "pruned": {"defense": defenses.TopK(0.3), "defense_known": True},
        "local": {"local": client.LocalTraining(2, 1, 0.1)},
    }.items():
        model, update, _ = shared(3, 2, **told)
        got = attacks.DerivativeICA(iterations=4)(model, update, seed=3)
        found[name] = [got.raw.square().sum(1), got.objective, got.evaluations, got.diverged, got.lost]
    return found


@case("CocktailParty", rtol=SINGLE)
@settled()
def _() -> object:
    model, update, _ = shared(3, 2)
    few, found = attacks.CocktailParty(iterations=3, learning_rate=0.05), {}
    released = replace(attacks.CocktailParty.released(), iterations=2, learning_rate=0.05)
    ways = {"paper": few, "bias": replace(few, reading="bias"), "released": released}
    for name, way in ways.items():
        got = way(model, update)
        found[name] = [(got.raw.double() - 0.5).abs().sum((2, 3, 4)).sort(1).values, got.objective, got.lost]
    party = Party(drawn(2, 3, 90) - 0.5, drawn(2, 3, 40), drawn(2, 3, 1))
    values = [way.objective(drawn(2, 3, 3, seed=4) - 0.3, party, SHAPE) for way in ways.values()]
    of = Party.of(FirstLayer.of(model, update), 3)
    return found | {"objective": values, "party": [of.white.square(), of.whitening.square(), of.offset.square()]}


@case("columns of a mixture, their zeros and the certificate")
@settled()
def _() -> object:
    found = {}
    for size, width, seed in ((1, 20, 0), (3, 40, 0), (4, 60, 1)):
        mixture, _, true = mixed(size, width, seed)
        whole = columns.completed(mixture, true)
        off = columns.completed(mixture, true + 0.05 * drawn(size, size))
        told = [mixture.zero < 1e-9, mixture.null, mixture.values, mixture.size, mixture.units(whole.inputs)]
        tried = [columns.true_column(mixture, column) for column in (true + 1e-9).T]
        tried += [columns.true_column(mixture, column) for column in (true @ drawn(size, size, seed=4)).T]
        shown = [None if one is None else one.abs() for one in tried]
        blurred = replace(mixture, zero=0.02)
        rough = [columns.completed(blurred, true), columns.completed(blurred, true + 0.02 * drawn(size, size, seed=5))]
        leaks = [masks_at_once.leak(mixture, one) for one in (off, *rough)]
        found[f"{size}"] = [whole, off, told, shown, rough, leaks]
    after = replace(mixture, after=(mixture.weights + 0.1 * (drawn(*mixture.weights.shape) - 0.5), mixture.offset))
    found["after"] = [columns.completed(after, true), after.units(whole.inputs)]
    left = torch.linalg.qr(drawn(20, 4) - 0.5)[0]
    draws = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(k))[:3] for k in range(6)])
    found["sampled"] = [part.abs() for part in columns.sampled(left, 0.05, draws, 3)]
    found["null"] = [columns.null_vector(left[:k]).abs() for k in (3, 6)]
    found["independent"] = spear._independent(torch.cat([true[:, :2], true[:, :1], true[:, 2:]], 1), 4)
    column = torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
    return found | {"new": [columns.is_new(column, true / true.norm(dim=0)), columns.is_new(column, column[:, None])]}


def read(attack: object, model: nn.Module, update: SharedUpdate) -> list:
    """The images by their first pixel, where they are certified: what else is shown hangs on every rounding."""
    found = attack(model, update, seed=3)
    by = found.raw[:, :, 0, 0, 0].argsort(dim=1)
    images = found.raw.take_along_dim(by[:, :, None, None, None], 1)
    told = [found.diverged, found.lost, found.starts, found.labels]
    return told if found.diverged.any() else [images, found.objective, *told]


@case("SPEAR, MaskGuided and MasksAtOnce")
@settled()
def _() -> object:
    found = {}
    ways = {
        "SPEAR": attacks.SPEAR(batch_samples=256, max_samples=2048),
        "guided": attacks.MaskGuided(passes=6),
        "at once": attacks.MasksAtOnce(),
        "at once, few": attacks.MasksAtOnce((0.5, 0.1)),
    }
    cases = {
        "one": shared(1, 1),
        "three": shared(3, 1, hidden(60)),
        "four": shared(4, 1, hidden(250, seed=2)),
        "normalised": shared(2, 1, victim(activation="relu", width=50, normalize=MEANS)),
    }
    for (name, way), (case_, (model, update, _)) in product(ways.items(), cases.items()):
        if case_ != "four" or "once" not in name:  # certified by one processor and not by another
            found[f"{name}, {case_}"] = read(way, model, update)
    model, update, _ = shared(2, 1, hidden(50), local=client.LocalTraining(2, 1, 0.01))
    found["local"] = read(ways["at once"], model, update)
    found["refused"] = [refused(lambda: attacks.SPEAR()(*shared(2, 1, hidden(20, "sigmoid"))[:2]))]
    return found


@case("masks followed from a guess, and columns exchanged")
@settled()
def _() -> object:
    mixture, layer, true = mixed(3, 60)
    truth = columns.completed(mixture, true).inputs
    guess = truth + 0.05 * (drawn(*truth.shape, seed=7) - 0.5)
    found = {}
    for noise in (0.05, 1.0):
        start = truth + noise * (drawn(*truth.shape, seed=7) - 0.5)
        for margins in ((0.5,), (0.5, 0.0), ()):
            got = attacks.MasksAtOnce(margins).followed(layer, mixture, start)
            found[f"{noise} {margins}"] = [got.batch, got.tried, got.columns]
    found["rough"] = attacks.MasksAtOnce((0.3, 0.3, 0.0)).followed(layer, replace(mixture, zero=0.01), guess).batch
    pool = torch.cat([true / true.norm(dim=0), torch.nn.functional.normalize(drawn(3, 3, seed=4) - 0.5, dim=0)], 1)
    attack = attacks.SPEAR(swaps=3)
    chosen = ([0, 1, 3], [3, 1, 2], [0, 4, 5], [5, 4, 3])
    return found | {"second": [attack._second_stage(mixture, pool, own) for own in chosen]}
