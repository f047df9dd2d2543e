"""Fixed numbers of the attacks that search, of what they share, and of those that learn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from unittest import mock

import torch
from fixed import NORMAL, SINGLE, batch, case, classes, drawn, exact, images_of, known, refused, victim
from torch import nn

from reprolib import attacks, defenses, models
from reprolib.attacks import labels as rules
from reprolib.attacks import plain
from reprolib.federated import client
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims

FLAT = (3, 4, 5)


def shared(size: int = 1, trials: int = 2, **told: object) -> tuple[nn.Module, SharedUpdate]:
    """A small victim and an update of it that carries its labels."""
    model, (images, labels) = victim(shape=FLAT), batch(trials, size, FLAT)
    threat = known(**{name: told.pop(name) for name in ("defense_known", "observes", "mode") if name in told})
    update = client.share(model, images, labels, threat=threat, seed=6, **told)
    return client.extended(model, told.get("defense")), update


def normed(**told: object) -> tuple[nn.Module, SharedUpdate]:
    """The same of a victim with batch norm, in batches of two."""
    model, (images, labels) = victim("convnet8", FLAT, width=2, normalize=((0.5,) * 3, (0.2,) * 3)), batch(2, 2, FLAT)
    return model, client.share(model, images, labels, threat=known(**told))


def run(attack: object, model: object, update: SharedUpdate, **told: object) -> object:
    return attack(model, update, **({"seed": 5, "progress": False} | told))


@case("DLG", rtol=NORMAL)
def _() -> object:
    few = attacks.DLG(iterations=4, max_iter=3)
    ways = {
        "joint": few,
        "history": replace(few, history_size=2, learning_rate=0.5, iterations=6),
        "line search": replace(few, line_search="strong_wolfe"),
        "known": replace(few, labels="known", init_mean=0.5, init_std=0.1),
        "stable": replace(attacks.DLG.stable(), iterations=3, starts=4, max_iter=2),
        "first best": replace(few, iterate="best", learning_rate=1.5, starts=2, restart_above=0.0),
        "last": replace(few, learning_rate=1.5, starts=3, restart_above=0.0),
        "few restart": replace(few, starts=3, restart_above=0.05),
        "stopped": replace(few, stop_objective=0.5, stop_every=3, iterations=7, max_iter=1),
        "stopped at once": replace(few, stop_objective=1e3, stop_every=2),
    }
    model, update = shared(1, 3)
    found = {name: run(way, model, update, snapshots=[0, 2, 4]) for name, way in ways.items()}
    model, update = shared(2)
    found["batch"] = run(few, model, update)
    found["cyclic"] = run(replace(few, batch_update="cyclic", iterations=5), model, update, snapshots=[1])
    found["cyclic, known"] = run(replace(few, batch_update="cyclic", labels="known", starts=2), model, update)
    pairs = [(9, 1), (2, 0)]
    return found | {"pairs": run(few, model, update, seed=pairs).raw}


@case("DLG against every counter", rtol=NORMAL)
def _() -> object:
    found = {}
    for name, defense in _defenses().items():
        model, update = shared(1, 2, defense=defense, defense_known=True)
        found[name] = run(attacks.DLG(iterations=2, max_iter=2), model, update)
    return found


def _defenses() -> dict[str, defenses.Defense]:
    return {
        "gaussian": defenses.GaussianNoise(0.05),
        "laplace": defenses.LaplaceNoise(0.05),
        "int8": defenses.CastPrecision("int8"),
        "pruned": defenses.TopK(0.5),
        "clipped": defenses.Clipping(0.2),
        "sign": defenses.SignCompression("mean_abs"),
        "dual": defenses.DualPruning(0.1, 0.5),
        "dpsgd": defenses.DPSGD(0.3, 0.1),
        "outpost": defenses.Outpost(),
        "columns": defenses.KeptColumns(40.0),
        "rescaled": defenses.Rescale(0.5),
    }


@case("IDLG and PlainDLG", rtol=NORMAL)
def _() -> object:
    model, update = shared(1, 3)
    few = attacks.IDLG(iterations=2, max_iter=3)
    found = {rule: run(replace(few, rule=rule), model, update) for rule in rules.RULES}
    two = client.share(two_classes := victim(shape=FLAT, count=2), drawn(1, 1, *FLAT), classes(1, 1, below=2))
    found["undecided"] = refused(lambda: run(replace(few, rule="pairwise"), two_classes, two))
    with mock.patch.object(torch.optim, "LBFGS", partial(torch.optim.LBFGS, max_iter=3)):
        found["PlainDLG"] = run(attacks.PlainDLG(iterations=2), model, update)
    target = {name: g[0] for name, g in update.gradients.items()}
    found["objective"] = plain.objective(model, target, drawn(1, *FLAT), drawn(1, 4))
    return found


@case("InvertingGradients", rtol=NORMAL)
def _() -> object:
    few = attacks.InvertingGradients(iterations=8)
    ways = {
        "paper": few,
        "official": replace(attacks.InvertingGradients.official(), iterations=9),
        "exact": replace(few, milestones="exact", signed=False),
        "unboxed": replace(few, milestones="none", boxed=False, learning_rate=0.5, total_variation=0.3),
        "euclidean": replace(few, objective="euclidean", iterate="best", learning_rate=1.0),
        "starts": replace(few, starts=3, iterations=3),
        "inferred": replace(few, labels="inferred", iterations=2),
        "baseline": replace(attacks.InvertingGradients.baseline(), iterations=1),
    }
    found = {}
    for size in (1, 2):
        model, update = shared(size)
        found |= {f"{size}, {name}": run(way, model, update, snapshots=[0, 2]) for name, way in ways.items()}
        ways.pop("baseline", None)  # so near the end that rounding is what is left
    found["schedules"] = [replace(few, iterations=n, milestones=m).schedule() for n in (8, 30, 4800) for m in
                          ("official", "exact", "none")]  # fmt: skip
    return found


@case("InvertingGradients over local steps, clients and modes", rtol=NORMAL)
def _() -> object:
    few, found = attacks.InvertingGradients(iterations=3, total_variation=0.0), {}
    for local in (
        client.LocalTraining(2, 1, 0.2, momentum=0.5),
        client.LocalTraining(2, 1, 0.1, optimizer="adam"),
        client.LocalTraining(2, 1, 0.1, shuffle=True, order_known=True, weight_decay=0.1),
        client.LocalTraining(2, 1, 0.1, shuffle=True),
    ):
        found[str(local)] = run(few, *shared(2, local=local))
        found[f"clients {local}"] = run(few, *shared(3, local=local, clients=(1, 2), observes="mean of 2"))
    for mode in ("eval", "train"):
        found[mode] = run(few, *normed(mode=mode))
    found["clients"] = run(few, *shared(3, clients=(1, 2), observes="mean of 2"))
    stacked = Victims.of([victim(shape=FLAT, seed=k) for k in range(2)])
    images, labels = batch(2, 2, FLAT)
    parts = [client.share(stacked.network(k), images[k, None], labels[k, None], threat=known()) for k in range(2)]
    return found | {"networks": run(few, stacked, SharedUpdate.join(parts, stacked))}


@case("a bottleneck's noise, in every way that an attacker takes it", rtol=NORMAL)
def _() -> object:
    found, few = {}, attacks.InvertingGradients(iterations=3)
    for tensors, noise in product(("all", "upstream"), ("resample", "fixed", "zero", "joint", "recovered")):
        against = defenses.Counter(tensors, noise, draws=2 if noise == "resample" else 1, penalty=noise != "zero")
        model, update = shared(1, 2, defense=defenses.PRECODE(k=3, beta=0.1, against=against), defense_known=True)
        found[f"{tensors} {noise}"] = run(replace(few, starts=2), model, update)
        if noise == "fixed":
            found[f"DLG {tensors}"] = run(attacks.DLG(iterations=1, max_iter=2), model, update)
    plain_update = shared(1, 2, defense=defenses.PRECODE(k=3))
    return found | {"not known": run(few, *plain_update)}


@case("GradInversion", rtol=NORMAL)
def _() -> object:
    few = attacks.GradInversion(iterations=6, warmup=2, seeds=2, group_start=2, group_every=2, gradient=0.5)
    ways = {
        "paper": replace(few, registration="translation", group=1.0),
        "alone": replace(few, seeds=1, signed=True, boxed=False, energy=0.1, total_variation=0.1),
        "balanced": replace(few, gradient=None, registration="none", group=0.5),
        "breaching": replace(attacks.GradInversion.breaching(), iterations=3, warmup=1),
        "fgla": replace(attacks.GradInversion.fgla_stg(), iterations=3, warmup=1, energy=0.2),
        "strong": replace(attacks.GradInversion.strong(), iterations=3, warmup=1),
        "consensus": replace(few, select="consensus", registration="none", labels="sum", group=0.3, seeds=3),
        "heavy first": replace(
            few, first_batch_norm=7.0, batch_norm=1.0, batch_norm_form="square", registration="none"
        ),
    }
    model, update = normed(batch_norm="exact")
    found = {name: run(way, model, update, snapshots=[0, 2]) for name, way in ways.items()}
    found["train mode"] = run(ways["alone"], *normed(mode="train", batch_norm="buffers"))
    found["no statistics"] = run(replace(few, registration="none"), *normed())
    found["compressed"] = [str(attacks.GradInversion.paper().compressed(n)) for n in (20, 333, 2000)]
    return found


@case("GradInversion, seeds registered by affine maps", rtol=SINGLE)
def _() -> object:
    few = attacks.GradInversion(iterations=2, warmup=1, seeds=2, group_start=1, gradient=0.5, group=1.0, labels="known")
    return run(few, *normed(batch_norm="running"))


@case("GGL", rtol=NORMAL)
def _() -> object:
    prior = exact(models.build_generator("wgan", FLAT, 3, latent_dim=5, width=2))
    few = attacks.GGL(prior, evaluations=20, population=5, starts=2)
    adam = replace(attacks.GGL.adam(prior), evaluations=9, labels="known")
    ways = {
        "paper": few,
        "last": replace(few, iterate="last", sigma0=0.4, start="normal", regularizer="norm", reg_weight=0.01),
        "bounded": replace(attacks.GGL.official_bounded(prior), evaluations=36, distance="cosine"),
        "bounded, regularised": replace(few, bound="tanh", start="uniform", reduction="sum", reg_weight=2.0),
        "adam": adam,
        "adam, plain": replace(adam, signed=False, bound="tanh", starts=2, reg_weight=1.0, iterate="last"),
        "ramp": replace(attacks.GGL.adam_ramp(prior), evaluations=6),
    }
    model, update = shared(1, 2)
    found = {name: run(way, model, update, snapshots=[0, 2]) for name, way in ways.items()}
    model, update = shared(2, 1)
    return found | {"batch": run(few, model, update), "batch, adam": run(adam, model, update)}


@case("GRNN", rtol=NORMAL)
def _() -> object:
    shape = (2, 8, 8)
    model, (images, labels) = victim(shape=shape, normalize=((0.4, 0.5), (0.3, 0.2))), batch(2, 2, shape)
    update = client.share(model, images, labels, threat=known())
    few = attacks.GRNN(iterations=3, learning_rate=1e-2, noise_dim=5, width=3)
    ways = {
        "official": few,
        "known": replace(few, labels="known", momentum=0.5, starts=2, iterate="best"),
        "normalised": replace(few, units="normalised", total_variation=1.0),
        "rough": replace(few, total_variation=0.0),
    }
    return {name: run(way, model, update, snapshots=[0, 3]) for name, way in ways.items()}


@case("HCGLA", rtol=NORMAL)
def _() -> object:
    shape = (3, 32, 32)
    model, found = victim("convnet8", shape, width=1, pooled=True), {}
    maker = exact(models.build_generator("dcgan", shape, 0, features=4, width=1))
    full = replace(attacks.HCGLA.official(maker), iterations=2, max_iter=2)
    for informed in (False, True):
        images, labels = batch(2, 1, shape)
        threat = known(defense_known=informed)
        update = client.share(model, images, labels, threat=threat, defense=defenses.TopK(0.6))
        for mask in ("all", "head", "none"):
            found[f"{mask} {informed}"] = run(replace(full, mask=mask), model, update)
        found[f"single {informed}"] = run(replace(attacks.HCGLA.single(maker), iterations=1, max_iter=1), model, update)
        found[f"DLG {informed}"] = run(replace(attacks.HCGLA.masked_dlg(), iterations=1, max_iter=2), model, update)
    images, labels = batch(1, 2, shape)
    update = client.share(model, images, labels, threat=known(), defense=defenses.TopK(0.97))
    return found | {"batch": run(replace(full, iterate="best"), model, update)}


@case("FGLA")
def _() -> object:
    shape, found = (3, 8, 8), {}
    model = victim("convnet8", shape, count=6, width=2)
    made = {"channels": 8, "widths": (4, 3), "trunk": models.trunk_fingerprint(model)}
    decoder = exact(models.build_generator("decoder", shape, 2, **made))
    decoder.scale.fill_(1.7)
    images, _ = batch(2, 3, shape)
    given = torch.tensor([[4, 1, 2], [0, 5, 5]])
    ways = {
        "official": attacks.FGLA.official(decoder),
        "self consistent": attacks.FGLA.self_consistent(decoder),
        "defaults": attacks.FGLA(decoder),
        "no offset": attacks.FGLA(decoder, offset="none"),
        **{
            f"labels {rule}": attacks.FGLA(decoder, labels=rule, offset="full") for rule in ("minimum", "sign", "count")
        },
    }
    for defense in (None, defenses.TopK(0.7), defenses.TopK(0.98)):
        for name, way in ways.items():
            threat = client.ThreatModel() if name.startswith("labels") else known()
            update = client.share(model, images, given[:1].expand(2, -1) if "labels" in name else given, threat=threat,
                                  defense=defense)  # fmt: skip
            found[f"{name}, {defense}"] = refused(lambda u=update, w=way: run(w, model, u)) or run(way, model, update)
    return found


@case("LearningToInvert", rtol=NORMAL)
def _() -> object:
    model, update = shared(2, 2, defense=defenses.GaussianNoise(0.05), defense_known=True)
    few = attacks.LearningToInvert(images_of(40, FLAT), hidden=6, epochs=4, learning_rate=1e-2, minibatch=4)
    found = {"plain": run(few, model, update)}
    found["small"] = run(replace(few, coordinates=50, standardised=True), model, update)
    stacked = Victims.of([victim(shape=FLAT, seed=k) for k in range(2)])
    images, labels = batch(2, 1, FLAT)
    parts = [client.share(stacked.network(k), images[k, None], labels[k, None]) for k in range(2)]
    return found | {"networks": run(replace(few, epochs=1), stacked, SharedUpdate.join(parts, stacked))}


@case("Rereading", rtol=NORMAL)
def _() -> object:
    defense = defenses.GradDefense(images_of(8, FLAT), slices=5, perturbed=2, std=0.05)
    attack = attacks.Rereading(attacks.InvertingGradients(iterations=2, objective="euclidean"))
    dlg = attacks.Rereading(attacks.DLG(iterations=1, max_iter=2))
    model, update = shared(1, 2, defense=defense, defense_known=True)
    return run(attack, model, update, snapshots=[1]), run(dlg, model, update)


@case("attacks by name, and what is refused")
def _() -> object:
    model, update = shared(2, 1)
    local = shared(2, 1, local=client.LocalTraining(2, 1, 0.1))
    return [
        repr(attacks.build("DLG", "stable", starts=2)),
        repr(attacks.build("GradInversion", "strong")),
        refused(lambda: attacks.build("DLG", "unknown")),
        refused(lambda: run(attacks.IDLG(), model, update)),
        refused(lambda: run(attacks.PlainDLG(), model, update)),
        refused(lambda: run(attacks.DLG(), *local)),
    ]
