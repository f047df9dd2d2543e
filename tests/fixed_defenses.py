"""Fixed numbers of the defenses: what they share, and how somebody who knows them reads it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from fixed import SHAPE, SINGLE, batch, case, classes, drawn, images_of, known, refused, victim
from torch import Tensor

from reprolib import defenses, models
from reprolib.defenses import ats, graddefense, inspection, mixing, soteria
from reprolib.defenses.base import count_of
from reprolib.defenses.clipping import clipped
from reprolib.defenses.estimated import pruned_at, zero_shares
from reprolib.defenses.precode import recovered_noise, upstream
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.models import Victims

PUBLIC = images_of(12)

EVERY: dict[str, defenses.Defense] = {
    "gaussian": defenses.GaussianNoise(0.1),
    "gaussian, by variance": defenses.GaussianNoise.from_variance(0.04),
    "laplace": defenses.LaplaceNoise(0.1),
    "laplace, by scale": defenses.LaplaceNoise.from_scale(0.1),
    "laplace, by variance": defenses.LaplaceNoise.from_variance(0.04),
    **{kind: defenses.CastPrecision(kind) for kind in ("fp16", "bf16", "int8")},
    **{f"pruned {scope}": defenses.TopK(0.6, scope) for scope in ("tensor", "global", "weights")},
    "kept entries": defenses.KeptEntries(0.6),
    **{f"rate of {of}": defenses.RateOfUpdate(0.6, rate_of=of) for of in ("update", "tensor")},
    "rescaled": defenses.Rescale(-0.5),
    **{f"clipped {scope}": defenses.Clipping(0.15, scope) for scope in ("global", "tensor")},
    **{f"norm of {scope}": defenses.NormOfUpdate(0.15, scope) for scope in ("global", "tensor")},
    **{f"sign {s} {z}": defenses.SignCompression(s, z) for s in ("one", "mean_abs") for z in ("random", "kept")},
    "dual": defenses.DualPruning(0.1, 0.5),
    "dual, bottom alone": defenses.DualPruning(0.0, 0.5),
    "dual, top alone": defenses.DualPruning(0.2, 0.0),
    "dpsgd": defenses.DPSGD(0.3, 0.2),
    "dpsgd, expected": defenses.DPSGD(0.3, 0.2, expected_batch=5),
    "dpsgd, silent": defenses.DPSGD(0.3, 0.0),
    "graddefense": defenses.GradDefense(PUBLIC, slices=6, perturbed=2, std=0.05),
    "graddefense, clipped": defenses.GradDefense(PUBLIC, slices=4, perturbed=3, std=0.05, clip=True),
    "graddefense, official": defenses.GradDefense(PUBLIC, slices=4, perturbed=2, std=0.05, variant="official"),
    "outpost": defenses.Outpost(),
    "outpost, other": defenses.Outpost(phi=0.2, prune_ratio=0.5, noise_base=3.0, iteration=1, beta=0.01),
    "outpost, late": defenses.Outpost(beta=5.0, iteration=9),
    "ats": defenses.ATS(),
    "mixup": defenses.MixUp(PUBLIC),
    "mixup, of 2": defenses.MixUp(PUBLIC, 2, 0.9),
    "instahide": defenses.IntraInstaHide(PUBLIC, k=3),
    "inspection": defenses.Inspection(),
    **{f"soteria {score}": defenses.Soteria(40.0, score=score) for score in ("row", "pinv", "elementwise", "random")},
    "soteria, hidden": defenses.Soteria(30.0, layer="hidden2", eps=0.3, signed_denominator=False),
    "kept columns": defenses.KeptColumns(40.0),
    "precode": defenses.PRECODE(k=3, against=defenses.Counter("all", "zero", penalty=False)),
    "composed": defenses.Compose([defenses.TopK(0.4), defenses.GaussianNoise(0.05), defenses.CastPrecision("int8")]),
    "composed noises": defenses.Compose([defenses.LaplaceNoise(0.05), defenses.LaplaceNoise(0.02)]),
    "composed steps": defenses.Compose([defenses.DPSGD(0.3, 0.1), defenses.Rescale(2.0), defenses.Clipping(0.1)]),
    "composed, altered": defenses.Compose([defenses.MixUp(PUBLIC), defenses.DualPruning(), defenses.TopK(0.9)]),
    "partial": defenses.Compose(
        [
            defenses.PRECODE(k=3, against=defenses.Counter(noise="zero")),
            defenses.PartialPerturbation(defenses.TopK(0.5)),
        ]
    ),
}


def _model(activation: str = "relu"):
    return victim(activation=activation, width=8)


@case("encode, protect and counter of every defense")
def _() -> object:
    model, (images, labels), found = _model(), batch(2, 2), {}
    rows = torch.tensor([1, 0])
    for name, defense in EVERY.items():
        update = client.share(model, images, labels, threat=known(defense_known=True), defense=defense, seed=3)
        larger = client.extended(model, defense)
        reading = defense.counter(larger, update)
        dummies = {key: g * 1.1 + 0.03 * (drawn(*g.shape) - 0.5) for key, g in update.gradients.items()}
        told = [str(defense), defense.per_image, defense.mixes, reading.noise if isinstance(reading.noise, str) else 0]
        seen = _seen(reading, dummies, rows)
        found[name] = [update.gradients, told, seen]
    return found


def _seen(reading: Observation, dummies: dict[str, Tensor], rows: Tensor) -> list:
    """A reading without its functions, and what these make of dummy gradients."""
    parts = [
        reading.weight,
        reading.slack,
        reading.beyond,
        reading.law,
        reading.noise_std,
        reading.draws,
        reading.penalty,
    ]
    parts.append(None if reading.of_each_image is None else reading.of_each_image(dummies))
    return [*parts, None if reading.of_the_mean is None else reading.as_shared(dummies, rows)]


@case("counters of several clients and of local steps")
def _() -> object:
    model, (images, labels), found = _model(), batch(2, 4), {}
    names = [
        "gaussian",
        "laplace",
        "int8",
        "fp16",
        "pruned tensor",
        "pruned global",
        "pruned weights",
        "dual",
        "outpost",
    ]
    names += ["graddefense", "clipped global", "composed noises", "dpsgd", "dpsgd, expected"]
    local = client.LocalTraining(1, 2, 0.2)
    for name, (clients, own) in product(names, ((1, local), (2, None), (2, local))):
        if "dpsgd" in name and own is not None:
            continue
        threat = known(defense_known=True, observes=f"mean of {clients}")
        update = client.share(model, images, labels, threat=threat, defense=EVERY[name], local=own, seed=3)
        dummies = {key: g * 1.1 + 0.03 for key, g in update.gradients.items()}
        found[f"{name} {clients} {own is None}"] = _seen(
            EVERY[name].counter(model, update), dummies, torch.tensor([1, 0])
        )
    return found


@case("Outpost against several networks")
def _() -> object:
    networks = [victim(width=8, seed=k, init="uniform") for k in range(2)]
    for number, network in enumerate(networks):
        for parameter in network.parameters():
            parameter.data *= 1 + 3 * number
    together = Victims.of(networks)
    images, labels = batch(2, 1)
    update = client.share(networks[0], images, labels, defense=defenses.Outpost())
    return _seen(defenses.Outpost(noise_base=0.5).counter(together, update), update.gradients, torch.tensor([0, 1]))


@case("describe, statistics, build and what is refused")
def _() -> object:
    clean = {"a": drawn(4, 3) - 0.5, "b": drawn(5)}
    shared = {"a": clean["a"] * (drawn(4, 3, seed=4) > 0.5), "b": clean["b"] + 0.1}
    return [
        defenses.statistics(clean, shared),
        defenses.describe(None),
        repr(defenses.build("TopK", prune_ratio=0.3)),
        refused(lambda: defenses.build("TopK")),
        refused(lambda: defenses.Compose([defenses.TopK(0.5), defenses.DPSGD(1.0, 1.0)])),
        refused(lambda: defenses.Compose([defenses.TopK(0.5), defenses.MixUp(PUBLIC)])),
        refused(lambda: defenses.Compose([defenses.MixUp(PUBLIC), defenses.DPSGD(1.0, 1.0)])),
        refused(lambda: defenses.GaussianNoise(1.0).epsilon(1, 1e-5)),
        [count_of(share, n) for share, n in ((0.29, 100), (0.1, 9), (0.0, 5))],
    ]


@case("privacy's accounting")
def _() -> object:
    ways = [defenses.DPSGD(1.0, z, sample_rate=q) for z, q in ((1.0, 1.0), (0.7, 0.01), (0.0, 1.0))]
    whole = defenses.Compose([ways[1], defenses.TopK(0.5)])
    spent = [way.epsilon(steps, 1e-5, how) for way in ways for steps in (1, 20) for how in ("balle", "mironov")]
    spent += [way.epsilon_of_an_upload(1e-5) for way in ways] + [whole.epsilon(20, 1e-5)]
    bounds = [defenses.reconstruction_bound(prior, z) for prior in (0.01, 0.5) for z in (0.3, 2.0)]
    return spent, bounds


@case("clipping and quantiles")
def _() -> object:
    g = {"a": drawn(3, 4, 2) - 0.5, "b": drawn(3)}
    g["a"][1] = 0
    limits = torch.tensor([0.1, 0.2, 5.0])
    shares = torch.tensor([0.3, 0.0, 0.55]).double()
    found = [clipped(g, limit, scope) for limit in (0.7, limits) for scope in ("global", "tensor")]
    return found, pruned_at(g["a"], shares), [zero_shares(g, of) for of in ("update", "tensor")]


@case("ATS, every transformation of the library", rtol=SINGLE)
def _() -> object:
    found = {}
    for shape in ((3, 12, 10), (1, 9, 12)):
        image = drawn(*shape).float()
        for place in range(len(ats.LIBRARY)):
            defense = defenses.ATS((str(place),), augment=place % 2 == 0)
            found[f"{shape[0]} {place}"] = defense.transform(image, client.generator(4, place))
    return found


@case("ATS's scores and search", rtol=SINGLE)
def _() -> object:
    shape = (3, 8, 7)
    trained, untrained = (models.build("lenet", 4, shape, k, activation="relu", init="default") for k in (0, 1))
    images, labels = drawn(6, *shape).float(), classes(6)
    policies = ats.draw_policies(4, 3)
    privacy = [ats.privacy_score(trained, images[:2], labels[:2], p, client.generator(1, 0), 4) for p in ("21-13", "7")]
    accuracy = [ats.accuracy_score(untrained, images, p, client.generator(1, 1)) for p in ("21-13", "7")]
    return policies, privacy, accuracy, ats.search(trained, untrained, images, labels, ["21", "3-8"], 5, least=-1e9)


@case("mixtures and their decoding")
def _() -> object:
    own, targets, found = drawn(3, *SHAPE), torch.nn.functional.one_hot(classes(3), 4).double(), {}
    for name, defense in {
        "mixup": defenses.MixUp(PUBLIC, 3),
        "few partners": defenses.MixUp(images_of(2), 4),
        "instahide": defenses.IntraInstaHide(PUBLIC, 2, 0.8),
    }.items():
        encoded = defense.encode(own, targets, client.generator(3, 1))
        places = torch.tensor([0, 1, 1])
        found[name] = [
            encoded,
            defense.pairings(places, client.generator(3, 1)),
            defense.weights(4, client.generator(2, 2)),
        ]
    private, weights = drawn(2, 2, 4, 5, seed=7), drawn(7, 2, seed=8) + torch.tensor([0.5, 0.0])
    plain = torch.einsum("mn,nchw->mchw", weights, private)
    signed = mixing.CENTRE + (plain - mixing.CENTRE) * (2 * (drawn(*plain.shape, seed=9) > 0.5) - 1)
    found["decoded"] = mixing.decode(plain + 0.1 * drawn(*plain.shape, seed=3), weights)
    return found | {"magnitudes": mixing.decode_magnitudes(signed, weights, client.generator(1, 0), 3, 20)}


@case("Soteria's measurements")
def _() -> object:
    model, images = victim("cnn", width=2), drawn(2, *SHAPE)
    model.hidden1.bias.data -= 0.1
    found, random = {}, client.generator(4, 0)
    for score, jacobian in product(("row", "pinv", "elementwise", "random"), ("auto", "vjp", "jacrev", "jvp")):
        if jacobian != "jvp" or score in ("row", "random"):
            defense = defenses.Soteria(45.0, score=score, jacobian=jacobian, draws=5, ridge=1e-6)
            chosen = defense.select(model, images, random)
            told = chosen.live, chosen.dead, chosen.pruned_live
            found[f"{score} {jacobian}"] = [chosen.gain, chosen.ranked, chosen.kept, told]
    presets = (defenses.Soteria.dlg(20.0), defenses.Soteria.gs(), defenses.Soteria.ggl(), EVERY["soteria, hidden"])
    for preset in presets[:3]:
        found[str(preset)] = preset.select(victim("lenet"), images, random).ranked
    found["leaky"] = presets[3].select(victim(width=8), images, random).ranked
    rates = defenses.pruned_features(defenses.Soteria(45.0), model, drawn(2, 2, *SHAPE), 3, (20.0, 60.0))
    update = client.share(model, *batch(2, 2), defense=defenses.Soteria(45.0))
    return found | {
        "rates": rates,
        "readings": [soteria.without_layer(update, "head"), soteria.with_kept_columns(update, "head")],
    }


@case("GradDefense's slices, noise and cleaning")
def _() -> object:
    model, (images, labels), found = victim(width=8, seed=3), batch(2, 2), {}
    for estimator in ("vjp_ones", "hutchinson"):
        found[estimator] = graddefense.sensitivity(model, PUBLIC, estimator)
        for variant in ("fixed", "official"):
            defense = defenses.GradDefense(PUBLIC, slices=5, estimator=estimator, variant=variant)
            found[f"{estimator} {variant}"] = defense.cuts(model)
    for way in (graddefense.equal_mass_cuts, graddefense.official_cuts):
        found[way.__name__] = [way((8, 4, 12), s, n) for s in ((1.0, 2.0, 0.5), (0.0, 5.0, 1.0)) for n in (2, 4)]
    defense = defenses.GradDefense(PUBLIC, slices=6, perturbed=2, std=0.05)
    update = client.share(model, images, labels, threat=known(defense_known=True), defense=defense, seed=3)
    clean = client.share(model, images, labels).gradients
    found["reread"] = defense.reread(model, update, {n: g + 0.004 for n, g in clean.items()}).observation
    found["silent"] = defense.without_noise(update, model, 3)
    found["variance"] = defense.noise_variance([0.5, 0.3])
    rounds = [{n: g[0] + k * (g[0] > 0.05) for n, g in clean.items()} for k in (0, 1, 1, 2)]
    found["rounds"] = [graddefense.over_rounds(rounds), graddefense.over_rounds(rounds[1::2])]
    one = {name: g[0] for name, g in update.gradients.items()}
    found["compensated"] = [graddefense.compensate(one, v, q) for v, q in ((1e-3, 6.0), (1e-2, 2.0))]
    found["layout"] = [graddefense.layout(n, q) for n, q in ((120, 6.0), (97, 6.0), (4096, 2.0))]
    return found | {"edges": graddefense.edges(0.3, 6.0), "root": graddefense.root_set(images_of(20), 2)}


@case("bottlenecks, where they stand and what leaks of them")
def _() -> object:
    found = {}
    for name, defense in {
        "head": defenses.PRECODE(k=3, beta=0.1),
        "hidden": defenses.PRECODE(k=2, before="hidden2"),
    }.items():
        larger = client.extended(victim(), defense)
        update = client.share(larger, *batch(2, 1), defense=defense, seed=3)
        noise = models.draw_noise(larger, 2, client.generator(1, 0))
        out = torch.func.functional_call(larger, noise, (drawn(2, *SHAPE),))
        found[name] = [larger, upstream(larger), recovered_noise(larger, update), out, models.penalty(larger)]
    sketch = defenses.ConvolutionalBottleneckSketch(k=2)
    early = client.extended(victim("lenet"), sketch)
    out = torch.func.functional_call(early, models.no_noise(early, 2), (drawn(2, *SHAPE),))
    silent = [models.noise_shapes(early), out, models.penalty(early), upstream(early)]
    models.leave_out_penalty(early)
    update = client.share(early, *batch(2, 1), defense=sketch, seed=3)
    return found | {"early": silent, "shared": update.gradients}


@case("models inspected")
def _() -> object:
    model = victim(width=9, count=8)
    rank_one = victim(width=9, count=8)
    rank_one.hidden1.weight.data = drawn(9, 1) * drawn(1, 90) + 0.01 * drawn(9, 90, seed=5)
    rank_one.hidden2.bias.data = torch.arange(9).double() * -1
    rank_one.head.bias.data = torch.ones(8).double()
    check = defenses.Inspection(rank_one=0.9, in_order=0.9)
    return [(inspection.examined(m), check.refuses(m)) for m in (model, rank_one)]


@case("error feedback")
def _() -> object:
    model, (images, labels), found = victim(width=8), batch(1, 2), {}
    gradients = {name: g[0] for name, g in client.share(model, images, labels).gradients.items()}
    for name in ("pruned tensor", "dual", "int8"):
        args, withheld, rounds = (model, images[0], labels[0]), {}, []
        for number in range(3):
            shared, withheld = defenses.with_feedback(
                EVERY[name], gradients, withheld, *args, client.generator(1, number)
            )
            rounds.append([shared, withheld])
        found[name] = rounds
    before = {name: value[None] for name, value in rounds[0][0].items()}
    update = client.share(model, images, labels, threat=known(defense_known=True), defense=EVERY["int8"])
    later = defenses.AfterFeedback(EVERY["int8"], before)
    refusal = refused(lambda: defenses.AfterFeedback(EVERY["dual"], before).counter(model, update))
    return (
        found,
        str(later),
        _seen(later.counter(model, update), {}, torch.tensor([0])),
        refusal,
        replace(later, before={}),
    )
