"""The library on a pretended device, number for number as on the CPU; `test_pretend_device.py` runs this file.

What CUDA would refuse (two devices in one operation, a CPU generator for a device, numpy on a device's tensor) raises
here. Everything is small, in float64 where the parts allow it.
"""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretend_device import DEVICE, DevicesMeet, PretendDevice, PretendTensor
from torch import Tensor, nn

from reprolib import attacks, data, defenses, models, optimizers, servers
from reprolib.attacks import labels, matching, priors
from reprolib.attacks.matching import Matching
from reprolib.defenses import ats, graddefense, mixing
from reprolib.federated import client, closed_form, gradients
from reprolib.federated.client import LocalTraining, share
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate
from reprolib.measure import metrics
from reprolib.models import Victims

SHAPE, CLASSES = (3, 8, 8), 4
NORMAL = ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
TOLD = ThreatModel(labels="known", defense_known=True)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """The device, with the two things that are asked of CUDA by its name: free memory, and trials at once."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**32, 2**32))
    monkeypatch.setitem(matching.BLOCK, DEVICE.type, 8)
    with PretendDevice():
        yield


def there(thing):
    """The same on the device: a tensor, a module, victims, an update, or a dictionary of tensors."""
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).to(DEVICE)
    if isinstance(thing, Victims):
        stacked = {name: weights.to(DEVICE) for name, weights in thing.stacked.items()}
        return Victims(there(thing.skeleton), stacked, thing.index.to(DEVICE))
    if isinstance(thing, dict):
        return {name: there(value) for name, value in thing.items()}
    return thing.to(DEVICE)


def assert_same(found, expected, where="result"):
    """Equal numbers but for rounding, found's tensors on the device; into dataclasses and dictionaries."""
    if isinstance(expected, Tensor):
        assert isinstance(found, PretendTensor), f"{where} is not on the device"
        double = expected.dtype == torch.float64  # products of other strides round otherwise
        within = {"rtol": 1e-7, "atol": 1e-11} if double else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(found.cpu(), expected, **within, msg=lambda text: f"{where}: {text}")
    elif is_dataclass(expected):
        for field in fields(expected):
            if field.name not in ("seconds", "defense", "of_each_image", "of_the_mean"):
                assert_same(getattr(found, field.name), getattr(expected, field.name), f"{where}.{field.name}")
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}[{name!r}]")
    elif isinstance(expected, list | tuple):
        for place, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    else:
        assert found == expected, where


def victim(name="lenet", dtype=torch.float64, seed=0, **options):
    options = ({"width": 8, "activation": "relu"} if name == "mlp" else {}) | options
    return models.build(name, CLASSES, SHAPE, seed=seed, normalize=NORMAL, **options).to(dtype)


class Normed(models.Victim):
    """A convolution, batch norm with running statistics of its own, and the head."""

    def __init__(self) -> None:
        super().__init__(CLASSES, SHAPE, models.Normalize(*NORMAL))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3, stride=2)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(36, CLASSES)
            nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.eval().double()

    def forward(self, x):
        return self.head(self.norm(self.conv(self.normalize(x))).sigmoid().flatten(1))


def batch(trials=2, size=1, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    images = torch.rand(trials, size, *SHAPE, generator=random, dtype=dtype)
    return images, torch.stack([torch.randperm(CLASSES, generator=random)[:size] for _ in range(trials)])


def shared_twice(model, x, y, **options) -> tuple[SharedUpdate, SharedUpdate]:
    """One round on the device and one on the CPU."""
    return share(there(model), there(x), there(y), **options), share(model, x, y, **options)


# --- the device itself


def test_the_device_refuses_what_cuda_would():
    x = torch.arange(6.0).to(DEVICE)
    assert x.is_cuda and x.device == DEVICE and (2 * x + torch.tensor(1.0)).tolist() == [1, 3, 5, 7, 9, 11]
    assert torch.zeros(2, device=DEVICE).device == torch.tensor([1.0], device=DEVICE).device == DEVICE
    assert x[torch.tensor([1, 2])].tolist() == [1, 2], "indices may come from the CPU"
    assert float(x.sum()) == 15 and x.cpu().numpy().sum() == 15 and not isinstance(x.cpu(), PretendTensor)
    for meeting in (
        lambda: x + torch.ones(6),
        lambda: torch.cat([x, torch.ones(1)]),
        lambda: torch.stack([x[0], torch.tensor(1.0)]),
        lambda: torch.ones(6)[x.long()],
        lambda: x.gather(0, torch.zeros(1, dtype=torch.int64)),
        lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
        lambda: x.exponential_(generator=torch.Generator()),
    ):
        with pytest.raises(DevicesMeet):
            meeting()
    for unreadable in (x.numpy, lambda: np.asarray(x), lambda: torch.from_numpy(x)):
        with pytest.raises(TypeError):
            unreadable()


def test_derivatives_and_batches_work_there():
    x = torch.linspace(0.1, 1, 6, dtype=torch.float64).view(2, 3)

    def slopes(x):
        inner = torch.vmap(torch.func.grad(lambda row: (row.sin() * row).sum()))(x)
        outer = x.detach().clone().requires_grad_()
        (twice,) = torch.autograd.grad(
            torch.autograd.grad(outer.pow(3).sum(), outer, create_graph=True)[0].sum(), outer
        )
        return inner, twice

    assert_same(slopes(there(x)), slopes(x))


# --- what clients share

ROUNDS = {
    "one gradient": {},
    "mean of clients": {"threat": ThreatModel(observes="mean of 2"), "clients": (1, 3)},
    "local steps": {"local": LocalTraining(2, 3, 0.1, momentum=0.5, weight_decay=0.1)},
    "local steps, computed twice": {"local": LocalTraining(2, 2, 0.1)},
    "adam, shuffled": {
        "local": LocalTraining(2, 2, 0.1, optimizer="adam", shuffle=True, order_known=True),
        "threat": ThreatModel(labels="known"),
    },
    "clients of several steps": {
        "local": LocalTraining(2, 1, 0.1, shuffle=True),
        "threat": ThreatModel(observes="mean of 2", labels="known"),
        "clients": (3, 1),
    },
}


@pytest.mark.parametrize("options", ROUNDS.values(), ids=ROUNDS)
def test_rounds(options, monkeypatch, request):
    if "twice" in request.node.name:
        monkeypatch.setattr(gradients, "RECOMPUTED_FROM", 2)
    model, (x, y) = victim("mlp"), batch(size=4)
    found, expected = shared_twice(model, x, y, **options)
    assert_same(found, expected)
    found.check(there(model))
    assert_same(found.select(torch.tensor([1])), expected.select(torch.tensor([1])))
    assert_same(found.as_gradients(), expected.as_gradients())
    soft = F.one_hot(y, CLASSES).double()

    def at_the_truth(update, model, x, soft):
        objective = Matching(
            model,
            matching.Observation(update.as_gradients()),
            lambda z, trials: (z.view(-1, *x.shape[1:]), soft[trials]),
            local=update.local,
            sizes=update.sizes,
            order=update.order,
        )
        return objective(x.flatten(1) * 0.9, torch.arange(len(x), device=x.device))

    assert_same(at_the_truth(found, there(model), there(x), there(soft)), at_the_truth(expected, model, x, soft))


@pytest.mark.parametrize("statistics", ["running", "exact", "buffers"])
def test_batch_norm(statistics):
    model, (x, y) = Normed(), batch(size=2)
    threat = ThreatModel(mode="eval" if statistics == "running" else "train", batch_norm=statistics)
    found, expected = shared_twice(model, x, y, threat=threat)
    assert_same(found, expected)
    assert_same(client.batch_statistics(there(model), found), client.batch_statistics(model, expected))


# --- defenses


def pool(count=16):
    """Images that somebody owns, on the CPU as all data are."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    return data.ImageSet("pool", "train", images, torch.arange(count) % CLASSES, tuple("abcd"), "drawn", "pool")


def every_defense():
    of = {
        "GaussianNoise": [defenses.GaussianNoise(0.1)],
        "LaplaceNoise": [defenses.LaplaceNoise(0.1)],
        "CastPrecision": [defenses.CastPrecision(dtype) for dtype in ("fp16", "bf16", "int8")],
        "TopK": [defenses.TopK(0.5, scope) for scope in ("tensor", "global", "weights")],
        "KeptEntries": [defenses.KeptEntries(0.5)],
        "RateOfUpdate": [defenses.RateOfUpdate(0.5, rate_of=of) for of in ("update", "tensor")],
        "Rescale": [defenses.Rescale(-2.0)],
        "Clipping": [defenses.Clipping(0.1), defenses.Clipping(0.1, "tensor")],
        "NormOfUpdate": [defenses.NormOfUpdate(0.1), defenses.NormOfUpdate(0.1, "tensor")],
        "SignCompression": [defenses.SignCompression(), defenses.SignCompression("mean_abs", "kept")],
        "DualPruning": [defenses.DualPruning()],
        "DPSGD": [defenses.DPSGD(0.1, 1.0), defenses.DPSGD(0.1, 0.0, expected_batch=3)],
        "GradDefense": [
            defenses.GradDefense(pool(), std=0.1),
            defenses.GradDefense(pool(), std=0.1, clip=True, estimator="hutchinson", variant="official"),
        ],
        "Outpost": [defenses.Outpost(), defenses.Outpost(phi=0.0)],
        "ATS": [defenses.ATS(), defenses.ATS(("3-1-7",), augment=False)],
        "MixUp": [defenses.MixUp(pool())],
        "IntraInstaHide": [defenses.IntraInstaHide(pool())],
        "Soteria": [defenses.Soteria(50, score=score) for score in ("row", "pinv", "elementwise", "random")]
        + [defenses.Soteria(50, jacobian="jacrev")],  # "jvp": torch's forward mode wants real storage
        "KeptColumns": [defenses.KeptColumns(50)],
        "PRECODE": [
            defenses.PRECODE(k=4, against=against)
            for against in (
                defenses.Counter(),
                defenses.Counter("all", "fixed", penalty=False),
                defenses.Counter("upstream", "zero"),
                defenses.Counter("all", "resample", draws=2),
            )
        ],
        "ConvolutionalBottleneckSketch": [defenses.ConvolutionalBottleneckSketch(k=2)],
        "PartialPerturbation": [
            defenses.Compose([defenses.PRECODE(k=4), defenses.PartialPerturbation(defenses.TopK(0.5))])
        ],
        "Inspection": [defenses.Inspection()],
        "Compose": [defenses.Compose([defenses.Clipping(0.2), defenses.TopK(0.5), defenses.GaussianNoise(0.1)])],
    }
    assert of.keys() == defenses._KNOWN.keys(), "a defense without a case here"
    return [pytest.param(each, id=f"{name} {number}") for name, some in of.items() for number, each in enumerate(some)]


@pytest.mark.parametrize("defense", every_defense())
def test_what_a_defense_shares_and_how_it_is_read(defense):
    size = 1 if "bottleneck" in str(defense) or "PRECODE" in str(defense) else 2
    x, y = batch(size=size)
    model = client.extended(victim("lenet"), defense)
    elsewhere = there(model)
    if hasattr(model, "extended_by"):
        elsewhere.extended_by = defense
    expected = share(model, x, y, defense=defense, threat=TOLD)
    found = share(elsewhere, there(x), there(y), defense=defense, threat=TOLD)
    assert_same(found, expected)
    readings = defense.counter(elsewhere, found), defense.counter(model, expected)
    assert_same(*readings)
    assert_same(*(reading.select(torch.tensor([1])) for reading in readings))

    def cost(model, reading, x, y):
        soft = F.one_hot(y, CLASSES).to(x)
        streams = [client.generator(0, trial, 5) for trial in range(len(x))]
        noise = matching.dummy_noise(model, reading, streams, size)
        objective = Matching(model, reading, lambda z, of: (z.view(-1, *x.shape[1:]), soft[of]), noise=noise)
        return objective(0.9 * x.flatten(1), torch.arange(len(x), device=x.device))

    assert_same(cost(elsewhere, readings[0], there(x), there(y)), cost(model, readings[1], x, y))


def test_a_bottleneck_is_inserted_there():
    model = victim()
    assert_same(
        dict(defenses.PRECODE(k=4).extend(there(model)).named_parameters()),
        dict(defenses.PRECODE(k=4).extend(model).named_parameters()),
    )


def test_defenses_read_more_than_once():
    model, (x, y) = victim(), batch()
    defense = defenses.GradDefense(pool(), std=0.1)
    pair = shared_twice(model, x, y, defense=defense, threat=TOLD)
    near = {name: 0.9 * g for name, g in pair[1].gradients.items()}
    on_both = ((there(model), pair[0], there(near)), (model, pair[1], near))
    assert_same(*(defense.reread(*each).observation for each in on_both))
    assert_same(*(defense.without_noise(update, own, 0) for own, update, _ in on_both))
    assert_same(*(graddefense.over_rounds([update.gradients, other]) for _, update, other in on_both))
    flat = [{name: g[0] for name, g in update.gradients.items()} for _, update, _ in on_both]
    assert_same(*(graddefense.compensate(own, 0.01) for own in flat))
    pruned = shared_twice(model, x, y, defense=defenses.TopK(0.5))
    after = [defenses.AfterFeedback(defenses.TopK(0.5), update.gradients) for update in pruned]
    assert_same(after[0].counter(there(model), pruned[0]), after[1].counter(model, pruned[1]))
    rounds = [
        defenses.with_feedback(defenses.TopK(0.5), own, {n: g / 2 for n, g in own.items()}, m, x, y, torch.Generator())
        for own, m in zip(flat, (there(model), model), strict=True)
    ]
    assert_same(*rounds)
    tables = [defenses.statistics(clean, shared) for clean, (shared, _) in zip(flat, rounds, strict=True)]
    assert tables[0].equals(tables[1])


def test_defenses_measure():
    model, (x, y) = victim(), batch(size=2)
    defense = defenses.Soteria(50)
    tables = [defenses.pruned_features(defense, m, images) for m, images in ((there(model), there(x)), (model, x))]
    assert tables[0].equals(tables[1])
    scores = [
        (
            ats.privacy_score(m, images, own, "0-1", torch.Generator().manual_seed(0), steps=3),
            ats.accuracy_score(m, images, "0-1", torch.Generator().manual_seed(0)),
        )
        for m, images, own in ((there(model), there(x[0]), there(y[0])), (model, x[0], y[0]))
    ]
    assert scores[0] == scores[1]
    encodings, weights = torch.rand(6, *SHAPE, dtype=torch.float64), torch.rand(6, 3, dtype=torch.float64)
    assert_same(mixing.decode(there(encodings), there(weights)), mixing.decode(encodings, weights))
    decoded = [
        mixing.decode_magnitudes(e, w, torch.Generator().manual_seed(0), 2, 3)
        for e, w in ((there(encodings), there(weights)), (encodings, weights))
    ]
    assert_same(*decoded)


# --- attacks


class Latents(nn.Module):
    """A generator for GGL."""

    latent_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 192)
        nn.init.normal_(self.out.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, latent):
        return self.out(latent).sigmoid().view(-1, *SHAPE)


NEAR = {"init_mean": 0.5, "init_std": 0.1, "max_iter": 2}


def attacks_of_one_image():
    return {
        "DLG": attacks.DLG(iterations=2, starts=2, **NEAR),
        "DLG, wolfe": attacks.DLG(iterations=2, line_search="strong_wolfe", iterate="best", **NEAR),
        "IDLG": attacks.IDLG(iterations=2, stop_every=1, **NEAR),
        "IDLG, pairs": replace(attacks.IDLG.paper(), iterations=1, **NEAR),
        "PlainDLG": attacks.PlainDLG(iterations=1),
        "InvertingGradients": attacks.InvertingGradients(iterations=3, starts=2),
        "InvertingGradients, inferred": replace(attacks.InvertingGradients.baseline(), iterations=1, labels="inferred"),
        "GradInversion": replace(
            attacks.GradInversion.paper().compressed(3), seeds=2, group_start=1, registration="none"
        ),
        "GGL": attacks.GGL(Latents(), evaluations=20, population=5, starts=2),
        "GGL, adam": replace(attacks.GGL.adam_ramp(Latents()), evaluations=4, distance="cosine"),
        "GRNN": attacks.GRNN(iterations=2, noise_dim=4, width=2, starts=2),
        "HCGLA": attacks.HCGLA(start="random", iterations=1, max_iter=2),
        "Rereading": attacks.Rereading(attacks.DLG(iterations=1, labels="known", **NEAR)),
    }


def victims(trials):
    """One network, or one for each trial."""
    return victim("mlp") if trials == 1 else Victims.of([victim("mlp", seed=seed) for seed in (0, 1)], 1)


def update_of(model, x, y, **options):
    if isinstance(model, Victims):
        own = [share(model.network(t), x[t : t + 1], y[t : t + 1], **options) for t in range(len(x))]
        return SharedUpdate.join(own, model)
    return share(model, x, y, **options)


def attacked_twice(attack, model, x, y, snapshots=(0, 1), **options):
    """What comes of the attack on the device and on the CPU."""
    more = {"snapshots": snapshots} if snapshots else {}
    results = [
        attack(own, update_of(own, images, true, **options), seed=3, progress=False, **more)
        for own, images, true in ((there(model), there(x), there(y)), (model, x, y))
    ]
    assert_same(*results)


LONG = {"PlainDLG", "InvertingGradients, inferred"}
"""Attacks whose L-BFGS takes twenty iterations a step: one network is enough."""


@pytest.mark.parametrize(
    ("name", "trials"),
    [(name, trials) for name in attacks_of_one_image() for trials in (1, 2) if trials == 1 or name not in LONG],
)
def test_attacks(name, trials):
    attack = attacks_of_one_image()[name]
    defense = defenses.GradDefense(pool(), std=0.01) if name == "Rereading" else None
    plain = name == "PlainDLG"
    attacked_twice(attack, victims(trials), *batch(trials), () if plain else (0, 1), threat=TOLD, defense=defense)


def test_attacks_on_batches():
    x, y = batch(size=2)
    attacked_twice(attacks.DLG(iterations=2, batch_update="cyclic", **NEAR), victim("mlp"), x, y)
    local = {"local": LocalTraining(1, 1, 0.1, shuffle=True, order_known=True), "threat": TOLD}
    attacked_twice(attacks.InvertingGradients(iterations=2), victim("mlp"), x, y, **local)
    attacked_twice(attacks.GGL(Latents(), evaluations=10, population=5), victim("mlp"), x, y, **local)


@pytest.mark.parametrize("statistics", ["exact", "buffers", "running"])
def test_attacks_with_statistics(statistics):
    threat = ThreatModel("eval" if statistics == "running" else "train", "known", statistics)
    small = replace(attacks.GradInversion.balanced().compressed(2), seeds=2, group_start=1, registration="translation")
    small = replace(small, noise_on="gradient", select="consensus") if statistics == "running" else small
    attacked_twice(small, Normed(), *batch(size=2), threat=threat)


@pytest.mark.parametrize(
    "defense", [defenses.LaplaceNoise(0.01), defenses.TopK(0.5), defenses.DPSGD(0.1, 1.0)], ids=str
)
def test_attackers_who_know(defense):
    for attack in (attacks.DLG(iterations=2, **NEAR), attacks.HCGLA(start="random", iterations=1, max_iter=2)):
        attacked_twice(attack, victim("mlp"), *batch(), threat=TOLD, defense=defense)


@pytest.mark.parametrize("noise", ["recovered", "fixed", "joint", "resample"])
def test_attackers_of_a_bottleneck(noise):
    defense = defenses.PRECODE(k=4, against=defenses.Counter(noise=noise))
    model = client.extended(victim("mlp"), defense)
    x, y = batch()
    update = share(model, x, y, defense=defense, threat=TOLD)
    attack = attacks.InvertingGradients(iterations=2)
    assert_same(attack(there(model), update.to(DEVICE)), attack(model, update))


def test_closed_forms():
    x, y = batch()
    attacked_twice(attacks.AnalyticRecovery(), victim("mlp"), x, y, snapshots=())
    attacked_twice(attacks.DerivativeICA(iterations=5), victim("mlp"), x, y, snapshots=())
    attacked_twice(attacks.CocktailParty(iterations=3), victim("mlp"), x, y, snapshots=())
    guided = attacks.MaskGuided(passes=2), attacks.MasksAtOnce()
    for attack in (*guided, attacks.SPEAR(max_samples=64, batch_samples=64)):
        attacked_twice(attack, victim("mlp", activation="relu"), x, y, snapshots=())
    gradients = share(victim("mlp"), x, y).gradients
    head = gradients["head.weight"], gradients["head.bias"]
    for rows in ("least_squares", "largest"):
        on_both = (closed_form.linear_inputs(*(move(g) for g in head), rows) for move in (there, lambda g: g))
        assert_same(*on_both)


@pytest.mark.parametrize("layout", ["cumulative", "sparse", "scattered"])
def test_servers_that_read_rows(layout):
    x, y = batch(size=3)
    server = servers.Imprint(num_bins=8, layout=layout, rate=0.3, surrogate=pool())
    for sender, attack in ((server, attacks.RobbingTheFed()), (servers.TrapWeights(), attacks.TrapRows())):
        model, threat = victim("mlp"), ThreatModel(server=sender.kind)
        assert_same(
            dict(sender.broadcast(there(model)).named_parameters()), dict(sender.broadcast(model).named_parameters())
        )
        attacked_twice(attack, sender.broadcast(model), x, y, snapshots=(), threat=threat)


@pytest.mark.parametrize("place", ["the CPU", "the device"])
def test_learned_inverses(place):
    """The attacker's network may stand elsewhere than the victim: it is the attack that brings them together."""
    moved = there if place == "the device" else lambda network: network
    model, (x, y) = victim("convnet8", torch.float32, width=4), batch(size=2, dtype=torch.float32)
    decoder = models.build_generator("decoder", SHAPE, seed=1, channels=16, size=2, widths=(8, 8))
    update = share(model, x, y, threat=ThreatModel(labels="known"))
    for attack in (attacks.FGLA, attacks.FGLA.official, attacks.FGLA.self_consistent):
        assert_same(attack(moved(decoder))(there(model), update.to(DEVICE)), attack(decoder)(model, update))
    for attack in (
        replace(attacks.HCGLA.official(decoder), iterations=1, max_iter=2),
        attacks.GGL(Latents(), evaluations=10, population=5),
    ):
        elsewhere = replace(attack, generator=moved(attack.generator))
        assert_same(elsewhere(there(model), update.to(DEVICE)), attack(model, update))


def test_learning_to_invert():
    auxiliary = pool(40)
    x, y = batch(size=2, dtype=torch.float32)
    attack = attacks.LearningToInvert(auxiliary, 8, 2, 1e-3, 8, coordinates=50, standardised=True)
    options = {"threat": TOLD, "defense": defenses.GaussianNoise(0.1)}
    attacked_twice(attack, victim("mlp", torch.float32), x, y, (), **options)


def test_every_attack_has_a_case():
    covered = {type(attack).__name__ for attack in attacks_of_one_image().values()}
    covered |= {"AnalyticRecovery", "CocktailParty", "DerivativeICA", "FGLA", "LearningToInvert", "MaskGuided"}
    covered |= {"MasksAtOnce", "RobbingTheFed", "SPEAR", "TrapRows"}
    assert covered == set(attacks.__all__) - {"Attack", "History", "Reconstruction", "build", "linear_inputs"}


# --- what is read off, and how results are measured


@pytest.mark.parametrize("rule", labels.RULES)
def test_labels_of_one_image(rule):
    found, expected = shared_twice(victim("mlp"), *batch(4))
    assert_same(labels.from_update(found, rule), labels.from_update(expected, rule))
    two = [share(m, x, y) for m, x, y in on_both(models.build("mlp", 2, SHAPE, seed=0).double(), *batch_of_two())]
    assert_same(*(labels.from_update(update, rule) for update in two))


def batch_of_two():
    x, y = batch()
    return x, y % 2


def on_both(*things):
    return tuple(map(there, things)), things


@pytest.mark.parametrize("rule", labels.COUNT_RULES)
def test_labels_of_a_batch(rule):
    found, expected = shared_twice(victim("mlp"), *batch(size=3))
    assert_same(*(labels.infer_counts(*update.of_the_head(), 3, rule) for update in (found, expected)))
    if rule != "bias_negative":
        assert_same(labels.of_update(found, rule), labels.of_update(expected, rule))


def test_the_chance_of_a_rule_under_noise():
    scores, truth = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1])
    assert_same(*(labels.chance_under_noise(s, t, 0.5) for s, t in on_both(scores, truth)))


def test_priors():
    images = torch.rand(2, 2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in (
        "squared_total_variation",
        "total_variation",
        "outside_box",
        "four_direction_variation",
        "summed_variation",
        "mean_norm",
    ):
        assert_same(*(getattr(priors, name)(x) for x in (there(images), images)))
    for registration in ("none", "translation", "affine"):
        assert_same(*(priors.consensus(x[:, :1], registration) for x in (there(images), images)))
    for of_latents in (priors.moment_divergence, priors.norm_excess):
        assert_same(*(of_latents(x) for x in (there(images[:, :, 0, 0]), images[:, :, 0, 0])))


def test_measures():
    """They end on the CPU, wherever the images are."""
    x, y = batch(size=2, dtype=torch.float32)
    guess = (x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))).flip(1)
    flat = (guess.flatten(0, 1), x.flatten(0, 1))
    auxiliary = pool()
    calls = {
        "mse": flat,
        "psnr": flat,
        "psnr_dim0": flat,
        "psnr_ggl": flat,
        "ssim": flat,
        "registered_psnr": flat,
        "match_batches": (guess, x),
        "label_overlap": (y.flip(1), y),
        "identify": (*flat, auxiliary.images),
    }
    for name, arguments in calls.items():
        found, expected = (getattr(metrics, name)(*own) for own in on_both(*arguments))
        for one, other in zip(*(v if isinstance(v, tuple) else (v,) for v in (found, expected)), strict=True):
            assert not isinstance(one, PretendTensor) and torch.equal(torch.as_tensor(one), torch.as_tensor(other)), (
                name
            )
    result = attacks.AnalyticRecovery()(victim("mlp", torch.float32), share(victim("mlp", torch.float32), x, y))
    result = replace(result, lost=torch.zeros_like(y, dtype=torch.bool))
    moved = replace(
        result, **{f.name: there(v) for f in fields(result) if isinstance(v := getattr(result, f.name), Tensor)}
    )
    tables = metrics.score(moved, there(x), there(y), there(auxiliary.images)), metrics.score(result, x, y, auxiliary)
    assert tables[0].equals(tables[1])
    assert metrics.baselines(there(x), auxiliary).equals(metrics.baselines(x, auxiliary))


def test_optimizers():
    centre = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def ends(centre):
        def objective(x, trials):
            away = x - centre[trials]
            return away.square().sum(1), 2 * away

        start = torch.zeros_like(centre)
        runs = (
            optimizers.lbfgs(objective, start, 2, optimizers.LBFGS(line_search="strong_wolfe")),
            optimizers.lbfgs(objective, start, 2),
            optimizers.adam(objective, start, 3, 0.1, milestones=(2,)),
            optimizers.cma_es(
                lambda x, trials: objective(x, trials)[0], start, 3, 6, 1.0, [torch.Generator() for _ in range(3)]
            ),
        )
        return [list(run)[-1] for run in runs]

    assert_same(ends(there(centre)), ends(centre))
